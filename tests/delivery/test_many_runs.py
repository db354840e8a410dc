"""Hundreds of runs in one session or one spool: what they take of the plan's process, and that all arrive once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.delivery import active_runs
from atomscale_bluesky.delivery.run_scheduler import RunScheduler
from atomscale_bluesky.documents.run_files import TRY_AGAIN_S
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.line_file import LineFile
from atomscale_bluesky.spool.lines import checksummed, encode
from atomscale_bluesky.spool.orders import ORDERS, Discard, Edit, Move, Settle
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of descriptors to lower")

# What the scripts below share: a low limit, documents, and the most descriptors that were ever open.
SESSION = """
    import os, resource, sys
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    from runs import growth
    from atomscale_bluesky import AtomscaleCallback
    callback = AtomscaleCallback(points_per_chunk=10)
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    most = 0
    def feed(documents):
        global most
        for name, doc in documents:
            callback(name, doc)
        most = max(most, len(os.listdir(folder)))
"""


@contextmanager
def session(script: str, server: LocalServer, spool_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a callback in it; its output is read and its input written line by line."""
    environ = {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "ATOMSCALE_API_ENDPOINT": server.url,
        "ATOMSCALE_API_KEY": server.api_key,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
        "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SESSION) + textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environ,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> list[int]:
    """The numbers in the next line that a process prints."""
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def delivered(server: LocalServer) -> Counter[tuple[str, int]]:
    return Counter((stream.status, stream.points) for stream in server.streams())


@posix
def test_runs_of_an_outage_leave_the_plan_its_descriptors_and_arrive_once(server: LocalServer, spool_dir: Path) -> None:
    server.unreachable()
    script = """
        for _ in range(300):
            feed(growth(points=3))
        print(most, flush=True)
        sys.stdin.readline()
        print(int(callback.drain(120)), len(callback.status()), flush=True)
    """
    with session(script, server, spool_dir) as process:
        (most,) = said(process)
        assert most < 230
        assert len(Spool(spool_dir).run_folders()) == 300
        server.reachable()
        go_on(process)

        assert said(process) == [1, 0]
    assert delivered(server) == {("success", 6): 300}
    assert Spool(spool_dir).run_folders() == []


@posix
def test_parked_runs_of_this_session_leave_the_plan_its_descriptors_and_others_their_turn(
    server: LocalServer, spool_dir: Path
) -> None:
    script = """
        for n in range(200):
            feed(growth(points=3, start_metadata={} if n % 10 == 0 else {"synth_source_id": "rubbish"}))
        print(most, flush=True)
        print(int(callback.drain(120)), len(callback.status()), flush=True)
        sys.stdin.readline()
    """
    with session(script, server, spool_dir) as process:
        (most,) = said(process)
        assert most < 230
        assert said(process) == [0, 180]
        assert delivered(server) == {("success", 6): 20}

        spool = Spool(spool_dir)
        for folder in spool.run_folders():
            spool.give_order(folder, Discard())
        wait_until(lambda: not spool.run_folders(), timeout_s=60)
    assert delivered(server) == {("success", 6): 20}


@posix
def test_runs_of_a_killed_session_are_delivered_once_by_the_next(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.unreachable()
    script = """
        for n in range(120):
            documents = list(growth(points=3))
            feed(documents[:-1] if n % 4 == 0 else documents)
        print(most, flush=True)
        sys.stdin.readline()
    """
    with session(script, server, spool_dir) as process:
        said(process)
        next_session = make_callback()
        server.reachable()
        wait_until(lambda: sum(delivered(server).values()) >= 20)  # both deliver
        process.kill()
        wait_until(lambda: not Spool(spool_dir).run_folders(), timeout_s=120)

    assert delivered(server) == {("success", 6): 120}
    assert next_session.drain(timeout_s=60)


def test_more_runs_are_written_than_delivered_at_a_time_and_each_sends_its_chunks(
    make_callback: MakeCallback, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_runs, "MAX_ACTIVE", 3)
    callback = make_callback(max_connections=2)
    runs = [list(growth(points=40, keys=1)) for _ in range(8)]
    for row in zip(*(documents[:27] for documents in runs), strict=True):
        for name, doc in row:
            callback(name, doc)
    wait_until(lambda: [stream.points for stream in server.streams()] == [20] * 8)
    for documents in runs:
        for name, doc in documents[27:]:
            callback(name, doc)

    assert callback.drain(timeout_s=60)
    assert delivered(server) == {("success", 40): 8}


def test_a_run_that_is_written_does_not_wait_behind_a_backlog(
    make_callback: MakeCallback, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_runs, "MAX_ACTIVE", 2)
    before = make_callback(offline=True)
    for _ in range(6):
        for name, doc in growth(points=2000, keys=1):
            before(name, doc)
    before.close()
    server.misbehave(Fault(call="chunk_multi", delay_s=0.02))
    callback = make_callback(max_connections=1)
    wait_until(server.streams)
    live = list(growth(points=15, keys=1, start_metadata={"stream_name": "live"}))
    for name, doc in live[:-1]:
        callback(name, doc)

    wait_until(lambda: any("live" in stream.label and stream.points == 10 for stream in server.streams()))
    assert len(callback.status()) > 4
    server.behave()
    callback(*live[-1])
    assert callback.drain(timeout_s=60)
    assert delivered(server) == {("success", 2000): 6, ("success", 15): 1}


# ---- a pile of runs that wait ----------------------------------------------------------------------------------------


@pytest.fixture
def pile(make_callback: MakeCallback, spool_dir: Path) -> list[Path]:
    """Runs in the spool for another endpoint."""
    before = make_callback(offline=True, endpoint="https://elsewhere.example")
    for _ in range(200):
        for name, doc in growth(points=1, keys=1):
            before(name, doc)
    before.close()
    return Spool(spool_dir).run_folders()


# Counts what a scan opens and lists; a hook for audits stays for good, so it is in a process of its own.
SCANS = """
    import sys
    from pathlib import Path
    from atomscale_bluesky.delivery.run_scheduler import RunScheduler
    from atomscale_bluesky.spool.spool import Spool
    clock = [0.0]
    scheduler = RunScheduler(Spool(Path(sys.argv[1])), sys.argv[2], monotonic=lambda: clock[0])
    scheduler.scan()
    clock[0] += 10
    scheduler.scan()
    clock[0] += 2
    counted = {"open": 0, "os.listdir": 0, "os.scandir": 0}
    def count(event, args):
        if event in counted:
            counted[event] += 1
    sys.addaudithook(count)
    for _ in range(10):
        scheduler.scan()
        clock[0] += 2
    print(*counted.values())
"""


def test_runs_that_are_set_aside_are_not_opened_and_a_scan_checks_only_a_few(pile: list[Path], spool_dir: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCANS), str(spool_dir), "https://here.example"],
        capture_output=True,
        text=True,
        check=True,
    )
    opened, listed, scanned = map(int, found.stdout.split())

    assert opened == 0
    assert listed <= 10 * 64 < 10 * len(pile)
    assert scanned == 0


def test_an_order_in_the_runs_own_file_alone_is_seen_within_thirty_scans(pile: list[Path], spool_dir: Path) -> None:
    clock = [0.0]
    spool = Spool(spool_dir)
    ours = RunScheduler(spool, "https://here.example", monotonic=lambda: clock[0])
    for _ in range(3):
        ours.scan()
        clock[0] += 10
    assert len(ours.active) == 0

    file = LineFile(pile[150] / ORDERS)  # as versions do that touch nothing else
    file.append(checksummed(encode(Move("https://here.example"))))
    file.close()
    for _ in range(30):
        ours.scan()
        clock[0] += 2
        if len(ours.active):
            break

    assert spool.uploader_alive(pile[150])
    ours.active.close()


def test_an_order_is_seen_at_the_next_scan_however_many_runs_are_set_aside(pile: list[Path], spool_dir: Path) -> None:
    clock = [0.0]
    spool = Spool(spool_dir)
    ours = RunScheduler(spool, "https://here.example", monotonic=lambda: clock[0])
    for _ in range(3):
        ours.scan()
        clock[0] += 10
    for folder in pile[50::10]:
        spool.give_order(folder, Move("https://here.example"))
    ours.scan()

    assert len(ours.active) == 15
    ours.active.close()


# ---- runs that fail at their end -------------------------------------------------------------------------------------


@pytest.fixture
def failing(callback: AtomscaleCallback, spool_dir: Path) -> tuple[RunScheduler, list[float], Path]:
    """A scheduler of a delivered run that cannot move into the history, its clock, and the file that is in the way."""
    in_the_way = spool_dir / "history.jsonl"
    in_the_way.unlink(missing_ok=True)
    in_the_way.symlink_to(spool_dir / "nowhere")
    for name, doc in growth(points=25):
        callback(name, doc)
    assert not callback.drain(timeout_s=20)
    endpoint = callback.status()[0].endpoint
    callback.close()
    now = [0.0]
    return RunScheduler(Spool(spool_dir), endpoint, monotonic=lambda: now[0]), now, in_the_way


def tried_at(scheduler: RunScheduler, now: list[float], seconds: float) -> list[float]:
    """When a scheduler that scans every two seconds for so long claims a run."""
    tried: list[float] = []
    for _ in range(round(seconds / 2)):
        scheduler.scan()
        for delivery in scheduler.active:
            tried.append(now[0])
            while not delivery.run.finished:
                assert delivery.next_task(now[0]) is None  # reads on
        scheduler.active.finish_runs()
        now[0] += 2
    return tried


def test_a_run_whose_end_fails_is_tried_again_after_pauses_that_grow_up_to_five_minutes(
    failing: tuple[RunScheduler, list[float], Path],
) -> None:
    scheduler, now, _ = failing

    assert tried_at(scheduler, now, 1200) == [0, 2, 6, 14, 30, 62, 126, 254, 510, 810, 1110]
    assert scheduler.needs_operator


def test_a_run_whose_end_fails_leaves_the_spool_at_once_when_a_drain_asks_after_the_cause_is_gone(
    failing: tuple[RunScheduler, list[float], Path], spool_dir: Path
) -> None:
    scheduler, now, in_the_way = failing
    tried_at(scheduler, now, 300)
    in_the_way.unlink()

    assert tried_at(scheduler, now, 10) == []
    scheduler.check_all()
    assert tried_at(scheduler, now, 10) == [310]
    assert not Spool(spool_dir).run_folders()
    assert not scheduler.needs_operator


# ---- runs whose stop does not come -----------------------------------------------------------------------------------

OPEN_RUNS = """
    runs = [list(growth(points=3)) for _ in range(300)]
    for documents in runs:
        feed(documents[:-1])
    print(most, flush=True)
    sys.stdin.readline()
    for documents in runs:
        feed(documents[-1:])
    print(most, int(callback.drain(120)), len(callback.status()), flush=True)
"""


def test_a_run_that_is_settled_and_edited_at_once_is_completed_also_if_it_was_set_aside(
    monkeypatch: pytest.MonkeyPatch, make_callback: MakeCallback, server: LocalServer
) -> None:
    monkeypatch.setattr(active_runs, "MAX_ACTIVE", 2)
    callback = make_callback()
    for _ in range(6):  # more than there are places, each with a stop document that never comes
        for name, doc in list(growth(points=5, keys=1, start_metadata={"synth_source_id": "none"}))[:-1]:
            callback(name, doc)
    wait_until(lambda: [run.state for run in callback.status()] == ["parked"] * 6)
    spool = Spool(callback.settings.spool_path)

    for run in callback.status():
        spool.give_order(Path(run.folder), Settle())
        spool.give_order(Path(run.folder), Edit(Links(synth_source_id=42)))

    wait_until(lambda: callback.status() == ())
    assert [stream.points for stream in server.streams()] == [5] * 6


@posix
def test_open_runs_leave_the_plan_its_descriptors_and_are_delivered_whole_when_their_stops_come(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    with session(OPEN_RUNS, server, spool_dir) as process:
        (most,) = said(process)
        assert most < 230
        other = make_callback()  # delivers some of them, and leaves them to their writer
        assert {run.state for run in other.status()} == {"running"}
        assert len(other.status()) == 300
        wait_until(lambda: len(server.streams()) == 300, timeout_s=120)
        go_on(process)

        most, drained, left = said(process)
        assert (most < 240, drained, left) == (True, 1, 0)
    assert delivered(server) == {("success", 6): 300}
    assert not any(entry["interrupted"] for entry in Spool(spool_dir).history.entries())


@posix
def test_open_runs_of_a_killed_session_are_completed_by_the_next(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    with session(OPEN_RUNS, server, spool_dir) as process:
        said(process)
        process.kill()
    callback = make_callback()

    assert callback.drain(timeout_s=120)
    assert delivered(server) == {("success", 6): 300}
    history = Spool(spool_dir).history.entries()
    assert len(history) == 300
    assert all(entry["interrupted"] for entry in history)


# ---- a process without a descriptor left -----------------------------------------------------------------------------

NO_DESCRIPTORS = """
    import threading, time
    def use_up():
        found = []
        try:
            while True:
                found.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return found
    def give_back(found):
        for descriptor in found:
            os.close(descriptor)
    made = set()
    sys.addaudithook(lambda event, args: made.add(str(args[0])) if event == "os.mkdir" else None)
"""


@posix
def test_readings_that_find_no_descriptor_are_counted_with_their_reason(server: LocalServer, spool_dir: Path) -> None:
    script = """
        begun, late, never = [list(growth(points=100)) for _ in range(3)]
        feed(begun[:10])
        threading.Event().wait(1.0)
        found, begin = use_up(), time.monotonic()
        for name, doc in [*begun[10:20], *late[:30], *never]:
            found += use_up()  # what another thread has closed meanwhile
            callback(name, doc)
        attempts, took_s = len(made), time.monotonic() - begin
        give_back(found)
        threading.Event().wait(1.1)
        feed([*begun[20:], *late[30:]])
        callback.drain(60)
        lost = sum(run.readings for run in callback.status().not_kept)
        print(attempts, lost, int(took_s), flush=True)
    """
    with session(textwrap.dedent(NO_DESCRIPTORS) + textwrap.dedent(script), server, spool_dir) as process:
        attempts, lost, took_s = said(process)

    assert attempts <= 4 + took_s / TRY_AGAIN_S  # folders: now and then, and not one for each event
    assert lost == 200
    assert Spool(spool_dir).run_folders() == []
    history = sorted(Spool(spool_dir).history.entries(), key=lambda entry: -entry["delivered"])
    assert [entry["delivered"] for entry in history] == [200, 200 - 2 * 28]
    assert [entry["left_out"] for entry in history] == [{}, {"its file could not be written": 56}]


@posix
def test_a_writer_counts_as_alive_while_there_is_no_descriptor_to_find_out(
    server: LocalServer, spool_dir: Path
) -> None:
    script = """
        feed(list(growth(points=3))[:-1])
        threading.Event().wait(0.5)
        (folder,) = callback._spool.run_folders()
        found = use_up()
        alive = callback._spool.writer_alive(folder)
        give_back(found)
        print(int(alive), int(callback._spool.writer_alive(folder)), flush=True)
    """
    with session(textwrap.dedent(NO_DESCRIPTORS) + textwrap.dedent(script), server, spool_dir) as process:
        assert said(process) == [1, 1]


@posix
def test_a_stop_that_finds_no_descriptor_is_written_when_there_is_one(server: LocalServer, spool_dir: Path) -> None:
    script = """
        runs = [list(growth(points=3)) for _ in range(120)]
        for documents in runs:
            feed(documents[:-1])
        threading.Event().wait(0.5)
        found = use_up()
        feed_stops = [documents[-1] for documents in runs]
        for name, doc in feed_stops:
            callback(name, doc)
        give_back(found)
        print(int(callback.drain(120)), len(callback.status()), flush=True)
    """
    with session(textwrap.dedent(NO_DESCRIPTORS) + textwrap.dedent(script), server, spool_dir) as process:
        assert said(process) == [1, 0]

    history = Spool(spool_dir).history.entries()
    assert [(entry["interrupted"], entry["exit_status"]) for entry in history] == [(False, "success")] * 120
    assert delivered(server) == {("success", 6): 120}
