"""An uploader in another process: started and watched by the callback, run by the site, killed and stopped."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import det1
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.delivery import backoff, uploader_elsewhere, uploader_watcher
from atomscale_bluesky.delivery import uploader_service as service
from atomscale_bluesky.delivery.backoff import Backoff
from atomscale_bluesky.delivery.uploader import Uploader
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.plans import wait_until_delivered
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.lines import checksummed
from atomscale_bluesky.spool.orders import Edit, Settle
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


@pytest.fixture(autouse=True)
def _no_process_of_ours_is_left(
    monkeypatch: pytest.MonkeyPatch, spool_dir: Path, server: LocalServer, make_callback: MakeCallback
) -> Iterator[None]:
    monkeypatch.setattr(uploader_watcher, "IDLE_S", 0.2)
    yield
    server.behave()
    for pid in started(spool_dir):
        if alive(pid):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not any(map(alive, started(spool_dir))))


def started(spool_dir: Path) -> list[int]:
    """The processes that have served a spool, the present one last."""
    log = spool_dir / service.LOG
    return [int(pid) for pid in re.findall(r"process (\d+) serves", log.read_text())] if log.exists() else []


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie has ended and was not asked for its code yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def serving(spool_dir: Path) -> int:
    """The process that serves a spool, as soon as one does."""
    return wait_until(lambda: [pid for pid in started(spool_dir) if alive(pid)], 20)[-1]


def another(spool_dir: Path, pid: int) -> int:
    """The process that serves a spool after the one named."""
    return wait_until(lambda: [p for p in started(spool_dir) if alive(p) and p != pid], 20)[-1]


def whole(server: LocalServer, points: int) -> bool:
    return [(stream.status, stream.points) for stream in server.streams()] == [("success", points)]


def environment(server: LocalServer, spool_dir: Path, **more: str) -> dict[str, str]:
    return {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "ATOMSCALE_API_ENDPOINT": server.url,
        "ATOMSCALE_API_KEY": server.api_key,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
        "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        "ATOMSCALE_BLUESKY_UPLOADER": "process",
    } | more


def run_script(script: str, environ: dict[str, str], **more: object) -> subprocess.CompletedProcess[str]:
    text = "from atomscale_bluesky.delivery import uploader_watcher\nuploader_watcher.IDLE_S = 0.2\n" + textwrap.dedent(
        script
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environ,
        **more,  # pyright: ignore[reportArgumentType]
    )


GROW = """
    from runs import growth
    from atomscale_bluesky import AtomscaleCallback
    callback = AtomscaleCallback(points_per_chunk=10)
    for name, doc in growth(points=25):
        callback(name, doc)
"""


# ---- a process that the callback starts ------------------------------------------------------------------------------


def test_a_process_of_its_own_delivers_a_run_while_it_goes_on_and_finalizes_it(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(uploader="process")
    documents = list(growth(points=25))
    for name, doc in documents[:14]:
        callback(name, doc)

    assert callback.drain(timeout_s=20)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("stream_active", 20)]
    for name, doc in documents[14:]:
        callback(name, doc)
    assert callback.drain(timeout_s=20)
    assert whole(server, 50)
    assert serving(spool_dir) != os.getpid()


def test_the_key_is_in_no_command_line_environment_or_log_of_the_process(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer
) -> None:
    make_callback(uploader="process")
    pid = serving(spool_dir)

    for path in (Path(f"/proc/{pid}/cmdline"), Path(f"/proc/{pid}/environ"), spool_dir / service.LOG):
        if path.exists():
            assert server.api_key.encode() not in path.read_bytes()


@posix
def test_what_the_process_writes_is_for_its_owner_alone_whatever_the_umask(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer
) -> None:
    before = os.umask(0)
    try:
        callback = make_callback(uploader="process")
        for name, doc in growth(points=25):
            callback(name, doc)
        assert serving(spool_dir)
        assert callback.drain(timeout_s=20)
    finally:
        os.umask(before)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in spool_dir.rglob("*") if path.is_file()}
    assert {service.LOG, uploader_watcher.LAST_WORDS} <= modes.keys()
    assert set(modes.values()) == {0o600}, modes


def test_what_is_passed_on_from_its_log_is_printable(
    make_callback: MakeCallback, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_callback(uploader="process")
    serving(spool_dir)
    with (spool_dir / service.LOG).open("a", encoding="utf-8") as log:
        log.write("2026-01-01 02:00:00,000 WARNING \x1b[31mred\x07\n")

    wait_until(lambda: "red" in caplog.text)
    (said,) = [record.getMessage() for record in caplog.records if "red" in record.getMessage()]
    assert said == "\\x1b[31mred\\x07"


def test_the_process_ends_by_itself_when_all_is_delivered_and_its_starter_is_gone(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer
) -> None:
    callback = make_callback(uploader="process")
    pid = serving(spool_dir)
    for name, doc in growth(points=25):
        callback(name, doc)

    assert callback.close(timeout_s=20)
    wait_until(lambda: not alive(pid))
    assert whole(server, 50)


@posix
def test_the_process_stays_while_its_starter_lives(make_callback: MakeCallback, spool_dir: Path) -> None:
    make_callback(uploader="process")
    pid = serving(spool_dir)

    with pytest.raises(AssertionError, match="not so"):
        wait_until(lambda: not alive(pid), 2)


def test_the_interpreter_exits_at_once_and_the_process_finishes_the_run(server: LocalServer, spool_dir: Path) -> None:
    done = run_script(GROW, environment(server, spool_dir))

    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: whole(server, 50), 20)


def test_the_process_finishes_the_run_of_a_killed_engine(server: LocalServer, spool_dir: Path) -> None:
    script = """
        import os, signal
        from runs import growth
        from atomscale_bluesky import AtomscaleCallback
        callback = AtomscaleCallback(points_per_chunk=10)
        for name, doc in list(growth(points=25))[:-1]:
            callback(name, doc)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    """
    done = run_script(script, environment(server, spool_dir))

    assert done.returncode != 0
    wait_until(lambda: whole(server, 50), 20)


@pytest.mark.parametrize("call", ["initialize", "chunk_multi", "finalize"])
@posix
def test_a_process_that_is_killed_in_a_request_is_replaced_and_nothing_is_there_twice(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, call: str
) -> None:
    callback = make_callback(uploader="process")
    pid = serving(spool_dir)
    server.misbehave(Fault(call=call, hang=True))  # type: ignore[arg-type]
    for name, doc in growth(points=25):
        callback(name, doc)
    wait_until(lambda: any(entry.call == call for entry in server.requests()))
    os.kill(pid, signal.SIGKILL)
    server.behave()

    assert callback.drain(timeout_s=30)
    assert another(spool_dir, pid) != pid
    assert sum(stream.points for stream in server.streams() if stream.status == "success") == 50
    assert held(server)["k0"] == [float(n) for n in range(25)]


@posix
def test_engine_and_process_both_killed_leave_a_run_to_the_next_session(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.unreachable()
    script = """
        import os, re, signal, time
        from pathlib import Path
        from runs import growth
        from atomscale_bluesky import AtomscaleCallback
        callback = AtomscaleCallback(points_per_chunk=10)
        for name, doc in list(growth(points=25))[:-1]:
            callback(name, doc)
        log = Path(os.environ["ATOMSCALE_BLUESKY_SPOOL_DIR"]) / "uploader.log"
        while not (found := re.findall(r"process (\\d+) serves", log.read_text() if log.exists() else "")):
            time.sleep(0.01)
        os.kill(int(found[-1]), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_script(script, environment(server, spool_dir)).returncode == -signal.SIGKILL
    server.reachable()

    assert make_callback(uploader="process").drain(timeout_s=30)
    assert whole(server, 50)


@posix
def test_a_process_that_is_halted_loses_nothing(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(uploader="process")
    pid = serving(spool_dir)
    os.kill(pid, signal.SIGSTOP)
    try:
        for name, doc in growth(points=25):
            callback(name, doc)
        assert not callback.drain(timeout_s=0.5)
        assert callback.status().points.waiting == 50
    finally:
        os.kill(pid, signal.SIGCONT)

    assert callback.drain(timeout_s=20)
    assert whole(server, 50)


def test_ten_callbacks_that_begin_at_once_share_one_process(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callbacks = []
    together = threading.Barrier(10)

    def begin() -> None:
        together.wait()
        callback = make_callback(uploader="process")
        callbacks.append(callback)
        for name, doc in growth(points=25):
            callback(name, doc)

    threads = [threading.Thread(target=begin) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for callback in callbacks:
        assert callback.drain(timeout_s=30)
    assert sorted((stream.status, stream.points) for stream in server.streams()) == [("success", 50)] * 10
    assert len(started(spool_dir)) == 1


@posix
def test_another_callback_takes_over_the_watch_when_the_starter_is_gone(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    first = make_callback(uploader="process")
    pid = serving(spool_dir)
    second = make_callback(uploader="process")
    first.close(timeout_s=5)
    wait_until(lambda: not alive(pid))

    for name, doc in growth(points=25):
        second(name, doc)

    assert second.drain(timeout_s=30)
    assert whole(server, 50)


def test_a_revoked_key_ends_the_process_so_that_one_with_the_new_key_delivers(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = make_callback(uploader="process", api_key="old-key-123")
    for name, doc in growth(points=25):
        old(name, doc)
    first = serving(spool_dir)
    wait_until(lambda: "check the API key" in caplog.text, 20)  # its warning is passed on to whoever runs the plan
    os.kill(first, signal.SIGTERM)  # as it would itself, half a minute later
    old.close(timeout_s=0)
    wait_until(lambda: not alive(first))

    assert make_callback(uploader="process").drain(timeout_s=30)
    assert whole(server, 50)
    assert "old-key-123" not in caplog.text


def test_a_process_whose_key_is_refused_ends_with_a_code_that_says_so(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = make_callback(offline=True)
    for name, doc in growth(points=25):
        callback(name, doc)
    callback.close()
    monkeypatch.setattr(service, "KEY_PATIENCE_S", 0.0)

    settings = Settings.load(environ={}, endpoint=server.url, api_key="old-key-123", spool_dir=str(spool_dir))

    assert service.serve(settings, stopping=threading.Event()) == service.KEY_REFUSED


def test_a_second_service_of_the_same_spool_ends_at_once(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(uploader="process")
    serving(spool_dir)

    assert service.serve(callback.settings, stopping=threading.Event()) == service.ALREADY_SERVED


def test_a_process_that_cannot_be_started_is_logged_and_the_readings_are_kept(
    make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment_of_python = tmp_path / "deleted" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(environment_of_python))

    callback = make_callback(uploader="process")
    for name, doc in growth(points=25):
        callback(name, doc)

    assert "cannot be started" in caplog.text
    assert "readings are kept in" in caplog.text
    assert callback.status().points.waiting == 50


@posix
def test_a_dying_process_is_started_again_after_growing_pauses_and_its_error_logged(
    make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    monkeypatch.setattr(uploader_elsewhere, "POLL_S", 0.05)
    monkeypatch.setattr(backoff, "RESTART", Backoff(0.1, 60.0))
    make_callback(uploader="process")

    pauses = wait_until(lambda: len(found := re.findall(r"started in ([\d.]+) s", caplog.text)) >= 4 and found)
    assert "ended with code 3 (no such module)" in caplog.text
    assert len(pauses) >= 4


def test_neither_the_plans_folder_nor_its_environment_changes_what_the_process_finds(
    server: LocalServer, spool_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "requests.py").write_text("raise ImportError('not the one that is meant')")
    script = """
        import os
        import runs
        from atomscale_bluesky import AtomscaleCallback, Settings
        settings = Settings.load(points_per_chunk=10)
        os.environ.clear()
        os.chdir({folder!r})
        callback = AtomscaleCallback(settings=settings)
        for name, doc in runs.growth(points=25):
            callback(name, doc)
    """
    done = run_script(script.format(folder=str(tmp_path)), environment(server, spool_dir))

    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: whole(server, 50), 20)


@posix
def test_what_the_process_says_never_fills_the_plans_output(server: LocalServer, spool_dir: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(GROW)],
        stdout=write,
        stderr=subprocess.PIPE,
        env=os.environ | environment(server, spool_dir),
    )
    try:
        wait_until(lambda: whole(server, 50), 20)
    finally:
        os.close(read)
        os.close(write)
        child.communicate(timeout=20)


# Whoever runs the tests in the background may have them, and their children, ignore it.
HEARS_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


@posix
def test_ctrl_c_in_the_plans_terminal_does_not_reach_the_process(server: LocalServer, spool_dir: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C + textwrap.dedent(GROW) + "import time\ntime.sleep(60)"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment(server, spool_dir),
        start_new_session=True,
    )
    pid = serving(spool_dir)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does to all of a session's foreground
    child.wait(20)

    wait_until(lambda: whole(server, 50), 20)
    assert re.search(rf"process {pid} ends", (spool_dir / service.LOG).read_text()) is None


@posix
def test_a_forked_child_leaves_the_process_to_its_parent(server: LocalServer, spool_dir: Path) -> None:
    done = run_script(
        """
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
        from runs import growth
        from atomscale_bluesky import AtomscaleCallback
        callback = AtomscaleCallback(points_per_chunk=10)
        documents = list(growth(points=25))
        for name, doc in documents[:14]:
            callback(name, doc)
        child = os.fork()
        if child == 0:
            for name, doc in growth(points=12, start_metadata={"stream_name": "child"}):
                callback(name, doc)
            os._exit(callback.ask_whether_drained() is not None)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        for name, doc in documents[14:]:
            callback(name, doc)
        assert callback.drain(20)
        """,
        environment(server, spool_dir),
    )

    assert (done.returncode, done.stderr) == (0, "")
    streams = {stream.label.split()[0]: (stream.status, stream.points) for stream in server.streams()}
    assert streams == {"grow": ("success", 50), "child": ("success", 24)}


def test_a_plan_can_wait_until_the_process_has_delivered(make_callback: MakeCallback, server: LocalServer) -> None:
    callback = make_callback(uploader="process")
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    answers: list[bool] = []

    def plan():
        yield from count([det1], num=12)
        answers.append((yield from wait_until_delivered(callback, timeout_s=20)))

    engine(plan())

    assert answers == [True]
    assert [stream.status for stream in server.streams()] == ["success"]


def test_draining_returns_false_at_once_when_the_rest_waits_for_the_operator(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call="chunk_multi", status=422), Fault(call="chunk", status=422))
    callback = make_callback(uploader="process")
    for name, doc in growth(points=25):
        callback(name, doc)

    assert not callback.drain(timeout_s=60)
    assert callback.status().points.refused > 0
    wait_until(lambda: "was refused and is kept" in caplog.text)


def test_a_run_without_a_stop_is_settled_when_the_operator_orders_it(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(uploader="process")
    for name, doc in list(growth(points=25))[:-1]:
        callback(name, doc)
    run = callback.status().runs[0]
    Spool(spool_dir).give_order(Path(run.folder), Settle())

    wait_until(lambda: whole(server, 50), 20)


def test_a_run_is_settled_beside_one_with_an_order_that_cannot_be_read(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(uploader="process")
    for _ in range(4):  # which of the folders comes first is chance
        for name, doc in list(growth(points=25))[:-1]:
            callback(name, doc)
    *others, last = callback.status().runs
    for run in others:
        (Path(run.folder) / "orders.jsonl").write_bytes(checksummed(b'{"kind":"of a newer version"}'))
    Spool(spool_dir).give_order(Path(last.folder), Settle())

    wait_until(lambda: [stream.status for stream in server.streams()].count("success") == 1, 20)


def test_a_callback_without_references_leaves_its_run_to_the_process(
    server: LocalServer, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = Settings.load(
        environ={}, endpoint=server.url, api_key=server.api_key, spool_dir=str(spool_dir), uploader="process"
    )
    callback = AtomscaleCallback(settings=settings, points_per_chunk=10)
    for name, doc in list(growth(points=25))[:-1]:
        callback(name, doc)
    del callback

    wait_until(lambda: whole(server, 50), 20)


# ---- nobody here ----------------------------------------------------------------------------------------------------


def test_with_none_the_engine_needs_no_key_and_the_facilitys_service_delivers(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(uploader="none", api_key=None)
    for name, doc in growth(points=25):
        callback(name, doc)
    assert not callback.drain(timeout_s=0.2)
    assert server.streams() == []

    ending = threading.Event()
    settings = Settings.load(environ={}, endpoint=server.url, api_key=server.api_key, spool_dir=str(spool_dir))
    thread = threading.Thread(target=service.serve, args=(settings,), kwargs={"stopping": ending})
    thread.start()
    try:
        assert callback.drain(timeout_s=20)
    finally:
        ending.set()
        thread.join(10)
    assert whole(server, 50)


# ---- as a service of the site ---------------------------------------------------------------------------------------


@pytest.fixture
def follow(server: LocalServer, spool_dir: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    made: list[subprocess.Popen[str]] = []

    def begin(**environ: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-m", "atomscale_bluesky", "upload", "--follow"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment(server, spool_dir) | environ,
        )
        made.append(child)
        return child

    yield begin
    for child in made:
        child.kill()
        child.communicate(timeout=10)


@posix
def test_follow_delivers_one_run_after_the_other_and_ends_cleanly_on_sigterm(
    follow: Callable[..., subprocess.Popen[str]], make_callback: MakeCallback, server: LocalServer
) -> None:
    service_process = follow()
    callback = make_callback(uploader="none", api_key=None)
    for _ in range(2):
        for name, doc in growth(points=25):
            callback(name, doc)
        assert callback.drain(timeout_s=30)
    service_process.terminate()
    _, log = service_process.communicate(timeout=20)

    assert service_process.returncode == 0
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)] * 2
    assert "serves spool" in log
    assert "50 points delivered" in log
    assert server.api_key not in log


def test_follow_with_a_refused_key_ends_with_exit_code_77(
    follow: Callable[..., subprocess.Popen[str]],
    make_callback: MakeCallback,
) -> None:
    callback = make_callback(uploader="none", api_key=None)
    for name, doc in growth(points=25):
        callback(name, doc)
    service_process = follow(ATOMSCALE_API_KEY="wrong", ATOMSCALE_BLUESKY_REQUEST_TIMEOUT_S="5")
    _, log = service_process.communicate(timeout=60)

    assert service_process.returncode == service.KEY_REFUSED
    assert "check the API key" in log


@posix
def test_follow_ends_where_its_spool_is_removed(
    follow: Callable[..., subprocess.Popen[str]], make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.misbehave(Fault(call="chunk_multi", status=503))  # so that there is a run which it would go on with
    callback = make_callback(uploader="none")
    for name, doc in growth(points=25):
        callback(name, doc)
    service_process = follow()
    wait_until(lambda: server.requests("chunk_multi"), 20)

    while spool_dir.exists():  # the one that serves it may be writing
        shutil.rmtree(spool_dir, ignore_errors=True)
    _, log = service_process.communicate(timeout=20)

    assert service_process.returncode == service.FAILED
    assert f"spool {spool_dir} was removed" in log


def test_follow_ends_with_exit_code_75_where_the_spool_is_served_already(
    follow: Callable[..., subprocess.Popen[str]], make_callback: MakeCallback, spool_dir: Path
) -> None:
    make_callback(uploader="process")
    serving(spool_dir)
    service_process = follow()
    _, log = service_process.communicate(timeout=20)

    assert service_process.returncode == service.ALREADY_SERVED
    assert "served by another process already" in log


def test_follow_without_a_key_is_one_line_and_exit_code_2(follow: Callable[..., subprocess.Popen[str]]) -> None:
    service_process = follow(ATOMSCALE_API_KEY="")
    said, log = service_process.communicate(timeout=20)

    assert service_process.returncode == 2
    assert said == ""
    assert len(log.splitlines()) == 1
    assert "ATOMSCALE_API_KEY" in log


def test_what_the_process_logs_behind_a_very_long_line_and_before_a_rotation_is_passed_on(
    make_callback: MakeCallback, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_callback(uploader="process")
    serving(spool_dir)
    log, begin = spool_dir / service.LOG, "2026-01-01 00:00:00,000 WARNING"
    with log.open("a") as file:
        file.write(f"{begin} {'x' * 200_000}\n{begin} behind the long line\n")
    wait_until(lambda: "behind the long line" in caplog.text, 20)

    with log.open("a") as file:
        file.write(f"{begin} the last of the old file\n")
    log.rename(f"{log}.1")
    log.write_text(f"{begin} the first of the new file\n")
    wait_until(lambda: "the first of the new file" in caplog.text, 20)

    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if " of the " in text] == ["the last of the old file", "the first of the new file"]
    with log.open("a") as file:
        file.write(Path(f"{log}.1").read_text())  # names the process, for the end of this test


def test_a_drain_waits_for_the_chunks_that_an_edit_has_made_smaller(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(uploader="none", points_per_chunk=100)
    for name, doc in list(growth(points=55, start_metadata={"synth_source_id": "GM2"}))[:-1]:
        callback(name, doc)
    spool = Spool(spool_dir)
    (folder,) = spool.run_folders()
    found = spool.find_run(folder)
    assert found is not None
    spool.give_order(folder, Edit(Links(synth_source_id=42), points_per_chunk=10))
    server.misbehave(Fault(call="chunk_multi", status=503))
    uploader = Uploader(spool, callback.settings, follow=True)
    uploader.start()
    try:
        wait_until(lambda: any(stream.data_id for stream in callback.streams(found.header.run_uid)))
        drain = callback.ask_whether_drained()
        assert drain is not None
        assert not drain.answered.wait(1.5)

        server.behave()
        assert drain.answered.wait(30)
        assert drain.answer is True
        assert [stream.points for stream in server.streams()] == [100]
    finally:
        assert uploader.stop(10)


@pytest.mark.skipif(sys.platform == "win32", reason="there a process cannot send itself SIGTERM")
@pytest.mark.parametrize(
    "begin",
    [
        "from atomscale_bluesky.delivery.uploader_service import stop_on_signals; ending, _ = stop_on_signals()",
        "from atomscale_bluesky.cli.ending import Ending; ending = Ending().__enter__().event",
    ],
    ids=["the service", "a command"],
)
def test_a_signal_to_end_is_taken_at_any_moment_of_waiting_for_one(begin: str) -> None:
    program = f"""
        import signal, sys
        {begin}
        def end(frame, event, _):
            signal.raise_signal(signal.SIGTERM)
            return end
        sys.settrace(end)  # a signal at every line of the wait
        ending.wait(0.01)
        sys.settrace(None)
        print(ending.wait(0.01), ending.is_set())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30, check=False
    )

    assert run.stdout.split() == ["True", "True"], run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there a process leaves nothing behind")
def test_the_process_of_a_closed_callback_leaves_nothing_behind(
    make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader_watcher, "IDLE_S", 0.1)
    before = {child.pid for child in psutil.Process().children()}
    callback = make_callback(uploader="process")
    (child,) = wait_until(lambda: [one for one in psutil.Process().children() if one.pid not in before])

    callback.close(timeout_s=5)

    wait_until(lambda: not psutil.pid_exists(child.pid), timeout_s=30)
