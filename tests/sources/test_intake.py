"""Documents from a source: acknowledged when they are safe, counted when they cannot be used, taken once."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from refusing import refuse
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, DocumentRecorder, Settings
from atomscale_bluesky.documents import early_events
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.sources.incoming import IDLE, UNREADABLE, Incoming, SourceError, idle, unreadable
from atomscale_bluesky.sources.intake import Intake
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
GARBAGE = (UNREADABLE, {"reason": "it is a picture"})
PAUSE = (IDLE, {})


class Bus:
    """A bus that delivers again what was not acknowledged. It fails behind its last document if it is to be cut off."""

    def __init__(self, documents: list[Document], ending: threading.Event | None = None) -> None:
        self.documents = documents
        self.acknowledged: list[int] = []
        self.rests = 0
        self.cut_off = self.closed = False
        self._ending = ending or threading.Event()

    def __iter__(self) -> Iterator[Incoming]:
        for number, (name, doc) in enumerate(self.documents):
            if number in self.acknowledged:
                continue
            if name == IDLE:
                yield idle()
                continue

            def ack(number: int = number) -> None:
                self.acknowledged.append(number)

            yield unreadable(doc["reason"], ack) if name == UNREADABLE else Incoming(name, doc, ack)
        if self.cut_off:
            raise ConnectionError("the bus is gone")

    def pause(self, timeout_s: float) -> None:
        self.rests += 1
        self._ending.wait(min(timeout_s, 0.05))

    def close(self) -> None:
        self.closed = True


def take_all_or_fail(intake: Intake, bus: Bus, ending: threading.Event) -> None:
    """Take all of a bus. An intake that waits for ever fails the test, and is ended."""
    thread = threading.Thread(target=intake.take_all, args=(bus,))
    thread.start()
    try:
        wait_until(lambda: not thread.is_alive())
    finally:
        ending.set()
        thread.join(20)


@pytest.fixture
def settings(spool_dir: Path, server: LocalServer) -> Settings:
    return Settings.load(environ={}, endpoint=server.url, spool_dir=str(spool_dir), spool_min_free_bytes=0)


def taken(settings: Settings, bus: Bus, ending: threading.Event | None = None) -> Intake:
    """What a process takes of a bus until there is nothing more."""
    with DocumentRecorder(settings, redelivers=True) as recorder:
        intake = Intake(recorder, ending)
        intake.take_all(bus)
    return intake


def test_every_document_is_taken_and_acknowledged(
    settings: Settings, make_callback: MakeCallback, server: LocalServer
) -> None:
    bus = Bus([*growth(points=25), PAUSE, *growth(points=5)])

    intake = taken(settings, bus)

    assert bus.acknowledged == [n for n in range(len(bus.documents)) if n != 28]
    assert (intake.documents, intake.runs, intake.rows, intake.open_runs) == (36, 2, 30, set())
    assert make_callback().drain(20)
    assert sorted(held(server)["k0"]) == sorted(float(n) for n in (*range(25), *range(5)))


def test_a_pause_acknowledges_what_was_taken_before_it(settings: Settings) -> None:
    seen: list[list[int]] = []

    class Watched(Bus):
        def __iter__(self) -> Iterator[Incoming]:
            yield from super().__iter__()
            seen.append(list(self.acknowledged))  # the next document is asked for only now

    taken(settings, Watched([*growth(points=3), PAUSE]))
    assert seen == [list(range(6))]


def test_what_comes_again_changes_nothing_and_a_run_goes_on(
    settings: Settings, make_callback: MakeCallback, server: LocalServer
) -> None:
    documents = list(growth(points=20))
    taken(settings, Bus(documents[:9]))  # this process is gone

    again = taken(settings, Bus(documents[5:]))  # from an earlier position, without start and descriptor
    assert (again.rows, again.known, again.without_start) == (13, 4, {})
    last = taken(settings, Bus(documents))
    assert (last.rows, last.known) == (0, 20)

    assert make_callback().drain(20)
    assert sorted(held(server)["k0"]) == [float(n) for n in range(20)]


def test_a_finished_run_that_comes_again_is_known_by_its_uid(settings: Settings) -> None:
    documents = list(growth(points=5))
    taken(settings, Bus(documents))
    again = taken(settings, Bus(documents))
    assert (again.runs, again.known_runs, again.rows) == (0, 1, 0)


def test_a_run_is_whole_once_its_stop_was_taken_unless_it_is_to_be_resent(settings: Settings) -> None:
    documents = list(growth(points=3))
    uid = documents[0][1]["uid"]
    with DocumentRecorder(settings, redelivers=True) as recorder:
        for n, (name, doc) in enumerate(documents):
            assert not recorder.has_whole(uid), n
            recorder.take(name, doc)
        assert recorder.has_whole(uid)
        assert not recorder.has_whole("another")
    taken(settings, Bus(interrupted := list(growth(points=3))[:-1]))
    with DocumentRecorder(settings, redelivers=True) as recorder:
        assert recorder.has_whole(uid)
        assert not recorder.has_whole(interrupted[0][1]["uid"])
    with DocumentRecorder(msgspec.structs.replace(settings, resend=True)) as recorder:
        assert not recorder.has_whole(uid)


def test_what_cannot_be_used_is_counted_and_acknowledged(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    documents = list(growth(points=3))
    broken: list[Document] = [GARBAGE, ("event", {"no": "member"}), GARBAGE, ("descriptor", {}), ("datum", {})]
    bus = Bus([*documents[:3], *broken, *documents[3:]])

    intake = taken(settings, bus)

    assert sorted(bus.acknowledged) == list(range(len(bus.documents)))
    assert intake.rows == 3
    assert intake.unusable["it is a picture"] == 2
    assert sum(intake.unusable.values()) == 4
    assert caplog.text.count("it is a picture") == 1


def test_a_run_whose_start_never_came_is_reported_by_its_uid(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    documents, others = list(growth(points=3)), list(growth(points=4))
    bus = Bus([*documents[1:], *others[2:]])

    intake = taken(settings, bus)

    assert len(bus.acknowledged) == len(bus.documents)
    run_uid, descriptor = documents[0][1]["uid"], others[1][1]["uid"]
    other_uid = others[0][1]["uid"]  # of which the descriptor did not come either, but the stop
    assert intake.without_start == {run_uid: 5, f"of descriptor {descriptor}": 4, other_uid: 1}
    assert caplog.text.count(f"run {run_uid}: its start document never came") == 1


def test_events_before_their_descriptor_are_acknowledged_with_it(settings: Settings) -> None:
    start, descriptor, *rest = growth(points=3)
    early = Bus([start, *rest[:-1]])
    early.cut_off = True  # before it comes

    with DocumentRecorder(settings, redelivers=True) as recorder:
        with pytest.raises(ConnectionError):
            Intake(recorder).take_all(early)
        assert early.acknowledged == [0]
        bus = Bus([descriptor, rest[-1]])
        intake = Intake(recorder)
        intake.take_all(bus)
        assert intake.rows == 3


def test_many_events_before_their_descriptor_are_all_taken_with_it(settings: Settings) -> None:
    start, descriptor, *events, stop = growth(points=20_000, keys=1)
    bus = Bus([start, *events, descriptor, stop])

    intake = taken(settings, bus)

    assert (intake.rows, intake.without_start) == (20_000, {})
    assert len(bus.acknowledged) == len(bus.documents)


def test_events_for_which_there_is_no_room_before_their_descriptor_are_in_the_account(
    settings: Settings,
    make_callback: MakeCallback,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(early_events, "MAX_DOCUMENTS", 10)
    start, descriptor, *events, stop = growth(points=15, keys=2)
    bus = Bus([start, *events[:14], descriptor, events[14], stop])

    intake = taken(settings, bus)

    assert len(bus.acknowledged) == len(bus.documents)
    assert (intake.rows, intake.without_start) == (11, {})
    assert intake.left_out == {"its descriptor never came": 8}
    (run,) = make_callback(offline=True).status()
    assert (run.points.seen, run.points.left_out) == (30, {"its descriptor never came": 8})
    assert f"events of descriptor {descriptor[1]['uid']} are left out, because too many wait" in caplog.text
    assert "start document" not in caplog.text


def test_an_event_without_its_descriptor_holds_no_other_acknowledgement(settings: Settings) -> None:
    abandoned, orphan, early = list(growth(points=1)), list(growth(points=1)), list(growth(points=2))
    start, descriptor, *events, stop = early
    bus = Bus([*abandoned[:-1], orphan[2], start, *events, descriptor, stop])
    with DocumentRecorder(settings, redelivers=True) as recorder:
        intake = Intake(recorder)
        intake.take_all(bus)
        assert sorted(bus.acknowledged) == [n for n in range(len(bus.documents)) if n != 3]
        assert intake.rows == 3


def test_an_event_without_its_descriptor_is_given_up_and_logged_after_many_documents(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    abandoned, orphan = list(growth(points=1)), list(growth(points=1))
    held: list[bool] = []

    class Long(Bus):
        def __iter__(self) -> Iterator[Incoming]:
            yield from super().__iter__()
            for further in (99_000, 2_000):
                for _ in range(further):
                    yield unreadable("it is a picture")
                yield idle()
                held.append(3 not in self.acknowledged)

    with DocumentRecorder(settings, redelivers=True) as recorder:
        Intake(recorder).take_all(Long([*abandoned[:-1], orphan[2]]))
        assert held == [True, False]
        assert recorder.ignored == {"event": 1}
    assert f"events of descriptor {orphan[1][1]['uid']} are left out: it has not come" in caplog.text


def test_an_early_event_is_not_lost_when_the_spool_is_full_at_its_descriptor(
    settings: Settings, spool_dir: Path, make_callback: MakeCallback, server: LocalServer
) -> None:
    settings = settings.replaced(spool_max_bytes=1_000_000)
    start, descriptor, *events, stop = growth(points=3)
    with DocumentRecorder(settings, redelivers=True) as recorder:
        for name, doc in (start, *events):
            recorder.take(name, doc)
        stuffing = spool_dir / "20200101T000000-00000000"
        stuffing.mkdir()
        (stuffing / "journal-0001.jsonl").write_bytes(b"x" * 1_000_000)
        wait_until(lambda: not recorder.has_room)
        assert recorder.take(*descriptor).try_again
        (stuffing / "journal-0001.jsonl").unlink()
        wait_until(lambda: recorder.has_room)
        assert recorder.take(*descriptor).rows == 3
        recorder.take(*stop)
    assert make_callback().drain(20)
    assert held(server)["k0"] == [0.0, 1.0, 2.0]


def test_a_full_spool_holds_the_source_back_and_loses_nothing(
    settings: Settings,
    spool_dir: Path,
    make_callback: MakeCallback,
    server: LocalServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings.replaced(spool_max_bytes=1_000_000)
    documents = list(growth(points=20))
    with DocumentRecorder(settings, redelivers=True) as recorder:
        intake = Intake(recorder)
        intake.take_all(Bus(documents[:12]))
        stuffing = spool_dir / "20200101T000000-00000000"
        stuffing.mkdir()
        (stuffing / "journal-0001.jsonl").write_bytes(b"x" * 1_000_000)
        wait_until(lambda: not recorder.has_room)
        bus = Bus(documents[12:])
        thread = threading.Thread(target=intake.take_all, args=(bus,))
        thread.start()
        wait_until(lambda: bus.rests > 2)
        assert bus.acknowledged == []
        assert "what is delivered makes room (if no process delivers, start `atomscale-bluesky upload`)" in caplog.text
        (stuffing / "journal-0001.jsonl").unlink()
        thread.join(30)
        assert len(bus.acknowledged) == len(bus.documents)

    callback = make_callback()
    assert callback.drain(20)
    assert [run.left_out for run in callback.status()] == []
    assert held(server)["k0"] == [float(n) for n in range(20)]


def test_a_run_larger_than_the_spool_does_not_hold_its_source_back_for_ever(
    settings: Settings, make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings.replaced(spool_max_bytes=1_000_000)
    large, small = list(growth(points=20_000, keys=1)), list(growth(points=3, keys=1))
    bus, ending = Bus([*large, *small]), threading.Event()
    with DocumentRecorder(settings, redelivers=True) as recorder:
        intake = Intake(recorder, ending)
        thread = threading.Thread(target=intake.take_all, args=(bus,))
        thread.start()
        try:
            wait_until(lambda: intake.documents == len(large) and bus.rests > 2)  # at the next run's start
            assert "what is delivered makes room" in caplog.text
            left_out = 20_000 - intake.rows
            (run,) = make_callback(offline=True).status()
            assert (run.points.seen, run.points.left_out) == (20_000, {"no room in the spool": left_out})
            assert make_callback().drain(20)
            wait_until(lambda: not thread.is_alive())
        finally:
            ending.set()
            thread.join(20)
    assert len(bus.acknowledged) == len(bus.documents)
    assert intake.left_out == {"no room in the spool": left_out}
    assert make_callback().drain(20)
    assert held(server)["k0"] == [*map(float, range(20_000 - left_out)), 0.0, 1.0, 2.0]
    assert caplog.text.count(f"new readings of run {large[0][1]['uid']} are left out: the spool has no room") == 1
    assert "; runs that are being recorded fill it" in caplog.text


def test_a_run_that_begins_within_one_that_fills_the_spool_is_noted_as_not_kept(
    settings: Settings, make_callback: MakeCallback
) -> None:
    settings = settings.replaced(spool_max_bytes=1_000_000)
    large, inner = list(growth(points=20_000, keys=1)), list(growth(points=3, keys=1))
    bus, ending = Bus([*large[:-1], *inner, large[-1]]), threading.Event()
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all_or_fail(Intake(recorder, ending), bus, ending)
    assert len(bus.acknowledged) == len(bus.documents)
    (run,) = make_callback(offline=True).status().not_kept
    assert (run.run_uid, run.readings) == (inner[0][1]["uid"], 3)


def second_stream(run: list[Document], points: int) -> list[Document]:
    """The descriptor of a second event stream of this run, and its events."""
    _, descriptor, *events, _ = growth(points=points, keys=1, first=1000)
    name = ("descriptor", descriptor[1] | {"run_start": run[0][1]["uid"], "name": "second"})
    return [name, *events]


def test_a_descriptor_that_comes_while_its_run_fills_the_spool_is_kept_for_the_next_process(
    settings: Settings, make_callback: MakeCallback, server: LocalServer
) -> None:
    run = list(growth(points=20_000, keys=1))
    second = second_stream(run, 10)
    bus = Bus([*run[:-1], *second[:6]])
    intake = taken(settings.replaced(spool_max_bytes=1_000_000), bus)
    assert len(bus.acknowledged) == len(bus.documents)
    assert intake.left_out == {"no room in the spool": 20_005 - intake.rows}

    rest = taken(settings, Bus([*second[6:], run[-1]]))

    assert (rest.rows, rest.left_out, rest.unusable, rest.without_start) == (5, {}, {}, {})
    assert make_callback().drain(20)
    assert [1005.0, 1006.0, 1007.0, 1008.0, 1009.0] in [
        series.values for stream in server.streams() for series in server.points(stream.data_id).values()
    ]


def test_descriptors_without_room_end_the_intake_before_one_is_acknowledged_that_is_not_kept(
    settings: Settings, spool_dir: Path
) -> None:
    small = settings.replaced(spool_max_bytes=1_000_000)
    run = list(growth(points=20_000, keys=1))
    descriptor = run[1][1]
    again: list[Document] = [("descriptor", descriptor | {"uid": f"again {n}"}) for n in range(2000)]
    event = run[2][1]
    last: Document = ("event", event | {"uid": "last", "descriptor": "again 1999", "time": event["time"] + 1000})
    bus = Bus([*run[:-1], *again, last, run[-1]])
    with DocumentRecorder(small, redelivers=True) as recorder:
        with pytest.raises(SourceError, match="no room for a descriptor, .*; set a larger `spool_max_bytes`"):
            Intake(recorder).take_all(bus)
        used = sum(file.stat().st_size for file in spool_dir.glob("*/journal-*"))
    assert len(run) - 1 < len(bus.acknowledged) < len(run) - 1 + len(again)
    assert bus.acknowledged == list(range(len(bus.acknowledged)))
    assert 1_000_000 < used < 1_000_000 + 2**18 + 50_000

    rest = taken(settings, bus)

    assert (rest.rows, rest.left_out, rest.unusable) == (1, {}, {})
    assert len(bus.acknowledged) == len(bus.documents)


def test_a_descriptor_too_long_to_be_kept_holds_no_source_back(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    run = list(growth(points=3, keys=1))
    key = run[1][1]["data_keys"]["k0"] | {"choices": ["x" * 2**26]}
    run[1] = ("descriptor", run[1][1] | {"data_keys": {"k0": key}})
    bus, ending = Bus(run), threading.Event()
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all_or_fail(Intake(recorder, ending), bus, ending)
    assert len(bus.acknowledged) == len(bus.documents)
    assert f"a descriptor of run {run[0][1]['uid']} could not be kept, so a process that resumes" in caplog.text


OTHER_CONSUMER = """
import sys, time
from atomscale_bluesky import DocumentRecorder, Settings
settings = Settings.load(environ={}, spool_dir=sys.argv[1], spool_min_free_bytes=0, spool_max_bytes=1_000_000)
recorder = DocumentRecorder(settings, redelivers=True)
recorder.take("start", {"uid": "other", "time": 1e9})
keys = {f"k{n}": {"dtype": "number", "shape": [], "source": "sim"} for n in range(100)}
recorder.take("descriptor", {"uid": "d", "run_start": "other", "name": "primary", "data_keys": keys})
for n in range(550):
    data = {key: n / 7 for key in keys}
    recorder.take("event", {"uid": str(n), "descriptor": "d", "time": 1e9 + n, "data": data, "timestamps": {}})
print("half full", flush=True)
sys.stdin.readline()
recorder.take("stop", {"uid": "s", "run_start": "other", "time": 2e9, "exit_status": "success"})
recorder.close()
"""


def test_two_consumers_whose_runs_fill_the_spool_together_do_not_wait_for_each_other(
    settings: Settings, spool_dir: Path, make_callback: MakeCallback
) -> None:
    settings = settings.replaced(spool_max_bytes=1_000_000)
    run = list(growth(points=20_000, keys=1))
    bus, ending = Bus(run), threading.Event()
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_CONSUMER, str(spool_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "half full\n"
        used = sum(file.stat().st_size for file in spool_dir.glob("*/journal-*"))
        assert 300_000 < used < 900_000
        with DocumentRecorder(settings, redelivers=True) as recorder:
            intake = Intake(recorder, ending)
            take_all_or_fail(intake, bus, ending)
    finally:
        other.communicate("end", timeout=30)
    left_out = 20_000 - intake.rows
    assert left_out > 0
    assert len(bus.acknowledged) == len(bus.documents)
    assert intake.left_out == {"no room in the spool": left_out}
    (account,) = [one for one in make_callback(offline=True).status() if one.run_uid == run[0][1]["uid"]]
    assert (account.points.seen, account.points.left_out) == (20_000, {"no room in the spool": left_out})


class Disk:
    """A disk on which the spool and a file of another program have a megabyte above the free-space floor."""

    def __init__(self, spool_dir: Path, patch: pytest.MonkeyPatch) -> None:
        self.others_bytes = 0
        self._spool_dir = spool_dir
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, free=self._free_bytes()))

    def _free_bytes(self) -> int:
        used = sum(file.stat().st_size for file in self._spool_dir.glob("*/journal-*"))
        return 501_000_000 - used - self.others_bytes

    def spool(self, patience_s: float) -> Spool:
        return Spool(self._spool_dir, min_free_bytes=500_000_000, patience_s=patience_s)


@pytest.mark.parametrize("leaves_out", [True, False])
def test_a_run_on_a_disk_at_its_floor_does_not_hold_its_source_back_for_ever(
    settings: Settings,
    spool_dir: Path,
    make_callback: MakeCallback,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    leaves_out: bool,
) -> None:
    disk = Disk(spool_dir, monkeypatch)
    spool, run = disk.spool(patience_s=0.5), list(growth(points=200, keys=1))

    class FillingBus(Bus):
        def __iter__(self) -> Iterator[Incoming]:
            for incoming in super().__iter__():
                if incoming.name == "event" and incoming.doc["seq_num"] == 101:
                    disk.others_bytes = 2_000_000
                    wait_until(lambda: not recorder.has_room)
                yield incoming

    bus, ending, errors = FillingBus(run), threading.Event(), list[str]()
    with DocumentRecorder(settings, spool=spool, redelivers=True) as recorder:
        intake = Intake(recorder, ending, leaves_out=leaves_out)

        def take_all() -> None:
            try:
                intake.take_all(bus)
            except SourceError as error:
                errors.append(str(error))

        thread = threading.Thread(target=take_all)
        thread.start()
        try:
            wait_until(lambda: not thread.is_alive())
        finally:
            ending.set()
            thread.join(20)
    spool.writers.stop_threads()
    assert intake.rows == 100
    floor = (
        r"its disk has 499 MB free, and 500 MB are to stay free \(spool_min_free_bytes\); free some space on that disk"
    )
    assert re.search(f"the spool has no room: {floor}, or wait: what is delivered makes room", caplog.text)
    if leaves_out:
        assert len(bus.acknowledged) == len(bus.documents)
        (account,) = make_callback(offline=True).status()
        assert (account.points.seen, account.points.left_out) == (200, {"no room in the spool": 100})
        assert "fill it, so delivery makes none; free some space on that disk" in caplog.text
    else:
        assert bus.acknowledged == list(range(2 + intake.rows))
        assert intake.left_out == {}
        (error,) = errors
        assert re.search(f"delivery makes none, .*: {floor} and begin again", error)


def test_a_file_is_given_up_if_its_disk_is_full_before_its_first_run(
    settings: Settings, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(spool_dir, monkeypatch)
    disk.others_bytes = 10**8
    spool, bus = disk.spool(patience_s=0.5), Bus(list(growth(points=3)))
    with DocumentRecorder(settings, spool=spool, redelivers=True) as recorder:
        with pytest.raises(SourceError, match="its disk has 401 MB free, and 500 MB are to stay free"):
            Intake(recorder, leaves_out=False).take_all(bus)
        assert recorder.may_get_room()  # nothing waits for a bus that has no run yet, so it may wait
    spool.writers.stop_threads()
    assert bus.acknowledged == []


@pytest.mark.parametrize("whose", ["another program", "an ended run"])
def test_a_bus_waits_at_the_floor_of_the_disk_while_something_else_may_free_space(
    settings: Settings, spool_dir: Path, make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    disk = Disk(spool_dir, monkeypatch)
    spool = disk.spool(patience_s=3600 if whose == "another program" else 0)
    documents, ending = list(growth(points=20)), threading.Event()
    stuffing = spool_dir / "20200101T000000-00000000" / "journal-0001.jsonl"
    with DocumentRecorder(settings, spool=spool, redelivers=True) as recorder:
        intake = Intake(recorder, ending)
        intake.take_all(Bus(documents[:12]))
        if whose == "another program":
            disk.others_bytes = 2_000_000
        else:
            stuffing.parent.mkdir()
            stuffing.write_bytes(b"x" * 2_000_000)
        wait_until(lambda: not recorder.has_room)
        bus = Bus(documents[12:])
        thread = threading.Thread(target=intake.take_all, args=(bus,))
        thread.start()
        try:
            wait_until(lambda: bus.rests > 30)
            assert bus.acknowledged == []
            disk.others_bytes = 0
            stuffing.unlink(missing_ok=True)
            wait_until(lambda: not thread.is_alive())
        finally:
            ending.set()
            thread.join(30)
    spool.writers.stop_threads()
    assert len(bus.acknowledged) == len(bus.documents)
    assert (intake.rows, intake.left_out) == (20, {})


def test_a_stop_is_taken_without_room_so_that_its_run_can_leave_the_spool(
    settings: Settings, spool_dir: Path, make_callback: MakeCallback, server: LocalServer
) -> None:
    settings = settings.replaced(spool_max_bytes=1_000_000)
    documents, others = list(growth(points=20)), list(growth(points=1))
    with DocumentRecorder(settings, redelivers=True) as recorder:
        intake = Intake(recorder)
        intake.take_all(Bus(documents[:-1]))
        stuffing = spool_dir / "20200101T000000-00000000"
        stuffing.mkdir()
        (stuffing / "journal-0001.jsonl").write_bytes(b"x" * 1_000_000)
        wait_until(lambda: not recorder.has_room)
        bus = Bus([documents[-1], *others])
        thread = threading.Thread(target=intake.take_all, args=(bus,))
        thread.start()
        wait_until(lambda: bus.rests > 2)  # at the next run's start, which needs room
        assert make_callback().drain(20)
        assert held(server)["k0"] == [float(n) for n in range(20)]
        assert {stream.status for stream in server.streams()} == {"success"}
        (stuffing / "journal-0001.jsonl").unlink()
        thread.join(30)
        assert len(bus.acknowledged) == len(bus.documents)


def test_what_is_no_event_among_early_ones_ends_no_worker(settings: Settings) -> None:
    start, descriptor, event, *_ = growth(points=1)
    early = event[1] | {"descriptor": "comes later", "uid": "early"}
    bulk = ("bulk_events", {"comes later": [early, "garbage"]})

    intake = taken(settings, bus := Bus([start, descriptor, bulk, event]))

    assert intake.documents == 4
    assert {0, 1, 3} <= {*bus.acknowledged}


def test_a_stop_whose_run_cannot_be_written_now_is_given_again(
    settings: Settings, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = list(growth(points=2))
    taken(settings, Bus(documents[:-1]))
    bus, ending, make = Bus(documents), threading.Event(), Path.mkdir

    def refuses(path: Path, *args: Any, **more: Any) -> None:
        if path.parent == spool_dir:
            raise OSError(24, "Too many open files")
        make(path, *args, **more)

    monkeypatch.setattr(Path, "mkdir", refuses)
    with DocumentRecorder(settings, redelivers=True) as recorder:
        thread = threading.Thread(target=Intake(recorder, ending).take_all, args=[bus])
        thread.start()
        wait_until(lambda: bus.rests > 1)
        assert len(documents) - 1 not in bus.acknowledged
        monkeypatch.setattr(Path, "mkdir", make)
        thread.join(60)
        assert recorder.has_whole(documents[0][1]["uid"])
    assert bus.acknowledged == list(range(len(documents)))


def test_a_disk_that_fails_holds_the_source_back_and_is_not_called_full(
    settings: Settings, spool_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus(list(growth(points=20)))
    with DocumentRecorder(settings, redelivers=True) as recorder:
        intake = Intake(recorder)
        with monkeypatch.context() as patch:
            refuse(patch, "mkdir", spool_dir)
            thread = threading.Thread(target=intake.take_all, args=(bus,))
            thread.start()
            wait_until(lambda: bus.rests > 2)
            assert bus.acknowledged == []
        thread.join(30)
        assert (len(bus.acknowledged), intake.rows) == (len(bus.documents), 20)
    assert "the spool cannot be read or written at present, as the log says; until then" in caplog.text
    assert "Input/output error" in caplog.text
    assert "has no room" not in caplog.text


def test_told_to_end_it_leaves_the_rest_to_the_source(settings: Settings, spool_dir: Path) -> None:
    settings = settings.replaced(spool_max_bytes=1_000_000)
    ending = threading.Event()
    documents = list(growth(points=20))
    with DocumentRecorder(settings, redelivers=True) as recorder:
        intake = Intake(recorder, ending)
        intake.take_all(Bus(documents[:12]))
        stuffing = spool_dir / "20200101T000000-00000000"
        stuffing.mkdir()
        (stuffing / "journal-0001.jsonl").write_bytes(b"x" * 1_000_000)
        wait_until(lambda: not recorder.has_room)
        bus = Bus(documents[12:], ending)
        thread = threading.Thread(target=intake.take_all, args=(bus,))
        thread.start()
        wait_until(lambda: bus.rests)
        ending.set()
        thread.join(30)
        assert not thread.is_alive()
        assert bus.acknowledged == []


def test_a_source_that_fails_has_what_was_taken_acknowledged(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    bus = Bus(list(growth(points=3)))
    bus.cut_off = True
    with DocumentRecorder(settings, redelivers=True) as recorder, pytest.raises(ConnectionError):
        Intake(recorder).take_all(bus)
    assert bus.acknowledged == list(range(6))
    assert bus.closed


def test_many_reasons_and_runs_take_bounded_memory(settings: Settings) -> None:
    many: list[Any] = [(UNREADABLE, {"reason": f"reason {n}"}) for n in range(1500)]
    many += [("stop", {"run_start": f"run {n}", "uid": "s", "time": 1.0}) for n in range(1500)]
    intake = taken(settings, Bus(many))
    assert len(intake.unusable) == len(intake.without_start) == 1001
    assert intake.unusable["others"] == intake.without_start["others"] == 500


def test_a_run_without_a_stop_is_open_when_its_source_ends(settings: Settings) -> None:
    documents = list(growth(points=3))
    intake = taken(settings, Bus(documents[:-1]))
    assert intake.open_runs == {documents[0][1]["uid"]}
    assert len(Spool(settings.spool_path).run_folders()) == 1
