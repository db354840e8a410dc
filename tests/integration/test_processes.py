"""A process that runs plans and ends in every way, and the next one that delivers what it left."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from integration.ends import exit_code
from integration.expected import assert_held, emitted, held
from integration.recording import recorded
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
StartScript = Callable[..., "subprocess.Popen[str]"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")

SESSION = """
import itertools
from bluesky import RunEngine
from bluesky.plan_stubs import checkpoint, close_run, create, open_run, pause, read, save, sleep
from bluesky.plans import count
from bluesky.utils import RunEngineInterrupted
from integration.recording import FileRecorder
from ophyd import Signal
from ophyd.sim import det1, det2
from atomscale_bluesky import AtomscaleCallback

step = Signal(name="step", value=0)

def steps(ends=None):
    yield from open_run()
    for n in itertools.count() if ends is None else range(ends):
        step.put(n)
        yield from checkpoint()
        yield from create()
        yield from read(step)
        yield from read(det1)
        yield from save()

RE = RunEngine({"synth_source_id": 42}, context_managers=[])
RE.subscribe(AtomscaleCallback())
RE.subscribe(FileRecorder())
"""

PAUSED = """
def paused():
    yield from steps(25)
    yield from pause()

try:
    RE(paused())
except RunEngineInterrupted:
    pass
"""


def test_a_session_that_ends_while_paused_has_delivered_its_run(
    start_script: StartScript, server: LocalServer, documents_file: Path, output: Callable[[], str]
) -> None:
    session = start_script(SESSION + PAUSED)

    assert exit_code(session) == 0, output()
    documents = recorded(documents_file)
    assert sum(name == "event" for name, _ in documents) == 25
    assert_held(server, documents)


def test_a_session_that_was_paused_and_then_left_unsent_is_delivered_by_the_next(
    start_script: StartScript,
    server: LocalServer,
    documents_file: Path,
    make_callback: MakeCallback,
    output: Callable[[], str],
) -> None:
    server.unreachable()
    session = start_script(SESSION + PAUSED, ATOMSCALE_BLUESKY_EXIT_TIMEOUT_S="0.2")
    assert exit_code(session) == 0, output()
    server.reachable()

    assert make_callback().drain(timeout_s=30)
    assert_held(server, recorded(documents_file))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("points", [1, 37, 400])
def test_a_session_killed_in_mid_run_loses_no_point_and_the_next_one_completes_it(
    how: signal.Signals,
    points: int,
    start_script: StartScript,
    server: LocalServer,
    documents_file: Path,
    make_callback: MakeCallback,
    output: Callable[[], str],
) -> None:
    session = start_script(SESSION + "\nRE(steps())\n")
    wait_until(lambda: session.poll() is not None or len(recorded(documents_file)) > points + 1, timeout_s=30)
    session.send_signal(how)
    assert exit_code(session) == -how, output()

    (run,) = make_callback(offline=True).status()
    assert run.state == "interrupted"
    again = make_callback()
    assert again.drain(timeout_s=30)

    assert_held_but_for_the_last_event(server, recorded(documents_file))
    assert again.status() == ()


def test_a_killed_session_is_completed_by_the_same_script_started_again(
    start_script: StartScript, server: LocalServer, documents_file: Path, output: Callable[[], str]
) -> None:
    first = start_script(SESSION + "\nRE(steps())\n")
    wait_until(lambda: len(recorded(documents_file)) > 50, timeout_s=30)
    first.kill()
    first.wait(10)
    killed = recorded(documents_file)

    second = start_script(SESSION + "\nRE(count([det1, det2], num=25))\n")
    assert exit_code(second) == 0, output()

    streams = server.streams()
    assert [stream.status for stream in streams] == ["success"] * 2
    whole = recorded(documents_file)[len(killed) :]
    found, expected = held(server), emitted(whole)
    (source,) = expected
    assert found.pop(source) == expected[source]
    (interrupted,), (told,) = found.values(), emitted(killed).values()
    for channel, readings in told.items():
        assert interrupted[channel][: len(readings)] == readings


@pytest.mark.parametrize("hanging", [False, True], ids=["server answers", "server hangs"])
def test_a_session_that_is_interrupted_from_the_keyboard_pauses_at_once_and_keeps_its_run(
    hanging: bool,
    start_script: StartScript,
    server: LocalServer,
    documents_file: Path,
    make_callback: MakeCallback,
    output: Callable[[], str],
) -> None:
    if hanging:
        server.misbehave(Fault(hang=True))
    session = start_script(
        SESSION.replace(", context_managers=[]", "") + "\nRE(steps())\n",
        ATOMSCALE_BLUESKY_EXIT_TIMEOUT_S="1" if hanging else "20",
    )
    wait_until(lambda: seconds_of_run(recorded(documents_file)) > 0.5, timeout_s=30)
    session.send_signal(signal.SIGINT)  # the engine takes none for its own in the first tenth of a second
    assert exit_code(session) == 1, output()
    assert "RunEngineInterrupted" in output()

    if hanging:
        server.behave()
        assert make_callback().drain(timeout_s=30)
    assert_held(server, recorded(documents_file))


def test_two_sessions_at_once_share_a_spool(
    start_script: StartScript, server: LocalServer, documents_file: Path, tmp_path: Path, output: Callable[[], str]
) -> None:
    files = [tmp_path / f"{name}.jsonl" for name in ("first", "second")]
    sessions = [
        start_script(SESSION + "\nRE(steps(333))\nRE(count([det1, det2], num=25))\n", RECORDED_DOCUMENTS=str(file))
        for file in files
    ]

    assert [exit_code(session) for session in sessions] == [0, 0], output()
    assert_held(server, [document for file in files for document in recorded(file)])
    assert len(server.streams()) == 4


def seconds_of_run(documents: list) -> float:
    """How long the run that is being recorded has gone on."""
    return documents[-1][1]["time"] - documents[0][1]["time"] if len(documents) > 2 else 0.0


def assert_held_but_for_the_last_event(server: LocalServer, documents: list) -> None:
    """The server holds every event that was recorded, and at most the one whose recording the kill prevented."""
    (channels,), (expected,) = held(server).values(), emitted(documents).values()
    assert channels.keys() == expected.keys()
    for channel, points in expected.items():
        assert channels[channel][: len(points)] == points
        assert len(channels[channel]) <= len(points) + 1
    assert [point.value for point in channels["step"]] == list(range(len(channels["step"])))
    assert [(stream.status, stream.changed) for stream in server.streams()] == [("success", 0)]
