"""What a terminal shows when a session ends, and where nobody has configured the log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atomscale_bluesky.server import Fault, LocalServer

GROW = """
from runs import growth
from atomscale_bluesky import AtomscaleCallback
callback = AtomscaleCallback(points_per_chunk=10)
for name, doc in growth(points=25):
    callback(name, doc)
print("over", flush=True)
"""

WITH_HANDLER = (
    """
import signal
class Handler:
    __hash__ = None
    def __call__(self, number, frame):
        print("a handler of the session", flush=True)
signal.signal(signal.SIGINT, Handler())
"""
    + GROW
)

ON_ANOTHER_THREAD = (
    """
import os, signal, threading
def interrupt():
    open(os.environ["MAY_INTERRUPT"]).read()
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
"""
    + GROW
)

LET_GO = GROW + "import gc; del callback; gc.collect()"  # as IPython does before the process ends

CLOSED = GROW + "callback.close(60)"

BAD_EVENT = """
from runs import growth
from atomscale_bluesky import AtomscaleCallback
callback = AtomscaleCallback(points_per_chunk=10)
start, descriptor, *others = growth(points=25)
for name, doc in [start, descriptor, ("event", {"descriptor": descriptor[1]["uid"]}), *others]:
    callback(name, doc)  # the third is logged, in the plan's thread
print("over", flush=True)
"""

PARKED = """
from runs import growth
from atomscale_bluesky import AtomscaleCallback
callback = AtomscaleCallback()
for name, doc in growth(points=25, start_metadata={"synth_source_id": "the big one"}):
    callback(name, doc)
"""

PAUSED = """
import warnings; warnings.simplefilter("default")  # of the session's own packages
from bluesky import RunEngine, RunEngineInterrupted, plan_stubs as bps
from ophyd.sim import det1
from atomscale_bluesky import AtomscaleCallback
RE = RunEngine()
RE.subscribe(AtomscaleCallback(points_per_chunk=10))

def plan():
    yield from bps.open_run({"synth_source_id": 42})
    for _ in range(25):
        yield from bps.trigger_and_read([det1])
    yield from bps.pause()

try:
    RE(plan())
except RunEngineInterrupted:
    print(RE.state)
"""


def start(
    script: str, server: LocalServer, spool_dir: Path, stderr: int = subprocess.PIPE, **more: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "ATOMSCALE_API_ENDPOINT": server.url,
            "ATOMSCALE_API_KEY": server.api_key,
            "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
            "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        }
        | more,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
@pytest.mark.parametrize("answers", [True, False])
def test_a_terminal_that_stands_still_holds_up_neither_plan_nor_delivery_nor_exit(
    server: LocalServer, spool_dir: Path, answers: bool
) -> None:
    import termios

    if answers:
        server.misbehave(Fault(call="chunk_multi", status=503, times=1))  # a warning says so
    else:
        server.unreachable()
    terminal, stderr = os.openpty()
    termios.tcflow(stderr, termios.TCOOFF)  # as Ctrl-S does
    more = {"ATOMSCALE_BLUESKY_EXIT_TIMEOUT_S": "3", "ATOMSCALE_BLUESKY_ANNOUNCE": "off"}
    with start(BAD_EVENT, server, spool_dir, stderr, **more) as session:
        try:
            printed, _ = session.communicate(timeout=30)
        finally:
            session.kill()
            termios.tcflow(stderr, termios.TCOON)
    os.close(terminal)
    os.close(stderr)
    assert (printed, session.returncode) == ("over\n", 0)
    if answers:
        assert [stream.points for stream in server.streams()] == [50]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_what_is_said_to_a_terminal_is_all_there_when_the_process_has_ended(
    server: LocalServer, spool_dir: Path
) -> None:
    terminal, stderr = os.openpty()
    with open(terminal, errors="replace") as shown, start(BAD_EVENT, server, spool_dir, stderr) as session:
        os.close(stderr)
        said = ""
        with contextlib.suppress(OSError):  # at the end of what a terminal shows
            for line in shown:
                said += line
        assert session.wait(60) == 0
    assert said.count("atomscale: a document of kind 'event' could not be used, the run goes on") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process of its own")
@pytest.mark.parametrize("script", [GROW, WITH_HANDLER, LET_GO], ids=["plain", "with a handler", "let go"])
def test_ctrl_c_while_a_session_ends_says_what_stays_and_who_sends_it(
    server: LocalServer, spool_dir: Path, script: str
) -> None:
    server.unreachable()
    terminal, stderr = os.openpty()
    with (
        open(terminal, errors="replace") as shown,
        start(script, server, spool_dir, stderr, ATOMSCALE_BLUESKY_EXIT_TIMEOUT_S="60") as session,
    ):
        os.close(stderr)
        said = next(line for line in shown if "up to 60 s" in line)  # now it waits
        begin = time.monotonic()
        session.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # at the end of what a terminal shows
            for line in shown:
                said += line

        printed, _ = session.communicate(timeout=60)

    assert time.monotonic() - begin < 30
    assert session.returncode == 0
    assert printed.splitlines() == ["over"] + ["a handler of the session"] * (script == WITH_HANDLER)
    assert "Traceback" not in said
    last = f"readings that are not delivered stay in {spool_dir}, and the next session or `atomscale-bluesky upload`"
    assert said.splitlines()[-1] == f"atomscale: stopped; {last} sends them"


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process of its own")
def test_ctrl_c_ends_the_wait_even_if_it_does_not_wake_the_main_thread(
    server: LocalServer, spool_dir: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "interrupt")
    server.unreachable()
    terminal, stderr = os.openpty()
    more = {"ATOMSCALE_BLUESKY_EXIT_TIMEOUT_S": "60", "MAY_INTERRUPT": str(tmp_path / "interrupt")}
    with (
        open(terminal, errors="replace") as shown,
        start(ON_ANOTHER_THREAD, server, spool_dir, stderr, **more) as session,
    ):
        os.close(stderr)
        said = next(line for line in shown if "up to 60 s" in line)
        begin = time.monotonic()
        (tmp_path / "interrupt").write_text("now")
        with contextlib.suppress(OSError):  # at the end of what a terminal shows
            for line in shown:
                said += line

    assert time.monotonic() - begin < 30
    assert session.returncode == 0
    assert "atomscale: stopped; " in said.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process of its own")
def test_after_ctrl_c_in_close_the_session_says_what_stays_and_does_not_wait_again(
    server: LocalServer, spool_dir: Path
) -> None:
    server.unreachable()
    with start(CLOSED, server, spool_dir, ATOMSCALE_BLUESKY_EXIT_TIMEOUT_S="60") as session:
        assert session.stdout is not None
        assert session.stderr is not None
        assert session.stdout.readline() == "over\n"
        said = next(line for line in session.stderr if "does not take data" in line)  # by now it is in `close`
        begin = time.monotonic()
        session.send_signal(signal.SIGINT)
        said += session.communicate(timeout=90)[1]

    assert time.monotonic() - begin < 30
    assert session.returncode == -signal.SIGINT
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    stays = f"readings that are not delivered stay in {spool_dir}, and the next session or `atomscale-bluesky upload`"
    assert f"atomscale: closing was interrupted; {stays} sends them\n" in said


def test_the_end_of_a_session_does_not_wait_for_a_server_that_refuses_the_key(
    server: LocalServer, spool_dir: Path
) -> None:
    begin = time.monotonic()
    with start(
        GROW, server, spool_dir, ATOMSCALE_BLUESKY_EXIT_TIMEOUT_S="100", ATOMSCALE_API_KEY="not-the-one"
    ) as session:
        _, said = session.communicate(timeout=60)

    assert session.returncode == 0
    assert time.monotonic() - begin < 50
    assert "atomscale: " in said
    assert "check the API key" in said
    remedy = "put a key that works into ATOMSCALE_API_KEY, then `atomscale-bluesky upload` sends what waits"
    assert said.splitlines()[-1] == f"atomscale: the API key is refused, and this session ends; {remedy}"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_the_last_line_about_a_run_names_what_helps_after_the_session_if_the_key_is_refused(
    server: LocalServer, spool_dir: Path
) -> None:
    terminal, stderr = os.openpty()
    with (
        open(terminal, errors="replace") as shown,
        start(GROW, server, spool_dir, stderr, ATOMSCALE_API_KEY="not-the-one") as session,
    ):
        os.close(stderr)
        said: list[str] = []
        with contextlib.suppress(OSError):  # at the end of what a terminal shows
            said += shown

    assert session.returncode == 0
    (about_the_run,) = [line for line in said if "50 wait: the API key is refused" in line]
    assert "; put a key that works into ATOMSCALE_API_KEY, then `atomscale-bluesky upload` sends" in about_the_run
    assert "end the process" not in about_the_run


@pytest.mark.parametrize("configured", [False, True])
def test_a_warning_names_the_package_where_nobody_has_configured_the_log(
    server: LocalServer, spool_dir: Path, configured: bool
) -> None:
    script = "import logging; logging.basicConfig(format='mine: %(message)s')\n" if configured else ""
    with start(script + GROW, server, spool_dir, ATOMSCALE_BLUESKY_OFFLINE="true") as session:
        _, said = session.communicate(timeout=60)

    lines = said.splitlines()
    assert lines[0].startswith("mine: offline by setting" if configured else "atomscale: offline by setting")
    assert len([line for line in lines if "offline by setting" in line]) == 1


def test_a_warning_about_the_settings_names_the_package_too(server: LocalServer, tmp_path: Path) -> None:
    script = f"import os, atomscale_bluesky; os.chdir({str(tmp_path)!r})\n{GROW}"
    with start(script, server, tmp_path, ATOMSCALE_BLUESKY_SPOOL_DIR="relative") as session:
        _, said = session.communicate(timeout=60)

    assert said.startswith(
        "atomscale: setting 'spool_dir' (environment variable ATOMSCALE_BLUESKY_SPOOL_DIR) is 'relative'"
    )


def test_a_session_that_ends_in_a_paused_plan_completes_its_run_and_says_nothing_of_a_stop(
    server: LocalServer, spool_dir: Path
) -> None:
    with start(PAUSED, server, spool_dir) as session:
        printed, said = session.communicate(timeout=60)

    assert (session.returncode, printed.splitlines()[-1]) == (0, "paused")
    assert "atomscale" not in said  # Bluesky itself has more to say when Python takes its engine apart
    (stream,) = server.streams()
    assert (stream.status, stream.points) == ("success", 25)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_a_session_with_a_parked_run_ends_without_waiting_and_mentions_the_run_once_more(
    server: LocalServer, spool_dir: Path
) -> None:
    terminal, stderr = os.openpty()
    with (
        open(terminal, errors="replace") as shown,
        start(PARKED, server, spool_dir, stderr, ATOMSCALE_BLUESKY_ANNOUNCE="off") as session,
    ):
        os.close(stderr)
        said: list[str] = []
        with contextlib.suppress(OSError):  # at the end of what a terminal shows
            said += shown

    assert session.returncode == 0
    happened, at_the_end = said
    assert "is parked, its readings are kept: metadata 'synth_source_id' is 'the big one'" in happened
    assert "is parked: 0 points delivered, 50 not; `atomscale-bluesky status` says what to do" in at_the_end
