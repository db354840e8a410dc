"""What happens in notebooks and start-up files: nothing is sent twice by mistake, nothing is missing in silence."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky.plan_stubs import close_run, open_run
from bluesky.plans import count
from bluesky.preprocessors import set_run_key_wrapper
from ophyd.sim import det
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]


@pytest.fixture
def engine() -> RunEngine:
    return RunEngine({"synth_source_id": 42}, context_managers=[])


def warnings(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    found = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in found if text in record.getMessage()]


def points(server: LocalServer) -> list[int]:
    return [stream.points for stream in server.streams() if stream.status == "success"]


# ---- two callbacks ---------------------------------------------------------------------------------------------------


def test_a_start_up_file_that_is_executed_twice_makes_one_recording_and_one_warning(
    engine: RunEngine, make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    for source in (42, 7):
        callback = make_callback(synth_source_id=source)
        engine.subscribe(callback)
    engine.md.clear()

    for _ in range(3):
        engine(count([det], num=25))

    assert callback.drain(20)
    assert points(server) == [25, 25, 25]
    assert {stream.synth_source_id for stream in server.streams()} == {7}  # what was executed last is meant
    assert len(warnings(caplog, "two callbacks of this process")) == 1
    assert "RE.unsubscribe(token)" in warnings(caplog, "two callbacks of this process")[0]


def test_a_closed_callback_that_is_still_subscribed_leaves_runs_to_the_one_that_is_open(
    engine: RunEngine, make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with make_callback() as callback:
            engine.subscribe(callback)
            engine(count([det], num=25))
            assert callback.drain(20)

    assert points(server) == [25, 25, 25]
    assert len(warnings(caplog, "two callbacks of this process")) == 2  # each closed one says it once
    assert warnings(caplog, "is closed") == []


def test_a_callback_that_is_closed_within_a_run_beside_an_older_one_says_that_nobody_takes_the_rest(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = make_callback(), make_callback()
    documents = list(growth(points=20, keys=1))
    for name, doc in documents[:12]:
        older(name, doc)
        newer(name, doc)
    newer.close(20)
    for name, doc in documents[12:]:
        older(name, doc)

    assert older.drain(20)
    assert held(server)["k0"] == [float(n) for n in range(10)]
    (said,) = warnings(caplog, "will not go on with it")
    assert documents[0][1]["uid"] in said


def test_two_callbacks_with_spools_of_their_own_make_two_recordings_without_a_warning(
    engine: RunEngine,
    make_callback: MakeCallback,
    server: LocalServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    both = [make_callback(spool_dir=str(tmp_path / name)) for name in ("a", "b")]
    for callback in both:
        engine.subscribe(callback)

    engine(count([det], num=25))

    assert all(callback.drain(20) for callback in both)
    assert points(server) == [25, 25]
    assert warnings(caplog, "") == []


def test_two_callbacks_for_two_accounts_each_record_the_run(
    engine: RunEngine, make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalServer(control=True) as other:
        both = [make_callback(), make_callback(endpoint=other.url, api_key=other.api_key)]
        for callback in both:
            engine.subscribe(callback)

        engine(count([det], num=25))

        wait_until(lambda: points(server) == points(other) == [25], timeout_s=20)
        for callback in both:
            callback.close()
    assert warnings(caplog, "two callbacks") == []


def test_a_younger_callback_that_gets_no_documents_costs_the_older_one_nothing(
    engine: RunEngine, make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    callback, _forgotten = make_callback(), make_callback()
    engine.subscribe(callback)

    engine(count([det], num=25))
    callback("start", {"uid": "no further document", "time": 1.0})
    callback.close()

    assert sorted(points(server)) == [0, 25]  # the run that only began is recorded, too
    assert warnings(caplog, "two callbacks") == []


@pytest.mark.parametrize("closed", [True, False])
def test_a_start_document_that_cannot_be_used_costs_no_document_behind_it(
    make_callback: MakeCallback, server: LocalServer, closed: bool
) -> None:
    callback = make_callback()
    if closed:
        callback.close()
    younger = make_callback()

    for name, doc in growth(points=25, keys=1):
        callback("start", {"uid": 7})
        callback(name, doc)

    callback.close()
    assert younger.drain(20)
    assert points(server) == [25]
    assert callback.ignored["malformed document"] == 28


def test_a_callback_made_behind_a_start_document_costs_the_run_nothing(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback, younger = make_callback(), make_callback()

    for name, doc in growth(points=25, keys=1):
        callback(name, doc)
        if name == "start":
            make_callback()  # the one that has stepped back does so once more

    callback.close()
    assert younger.drain(20)
    assert points(server) == [25]


def test_a_run_that_reaches_a_second_callback_when_it_is_over_is_not_recorded_again(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    older, younger = make_callback(), make_callback()
    documents = list(growth(points=25, keys=1))

    for callback in (younger, older, younger, older):
        for name, doc in documents:
            callback(name, doc)

    assert younger.drain(20)
    assert points(server) == [25]


# ---- one callback, two subscriptions ---------------------------------------------------------------------------------


def test_a_callback_for_one_call_that_is_subscribed_for_good_is_warned_about_in_that_run(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    engine.subscribe(callback)
    engine(count([det], num=15))
    assert warnings(caplog, "") == []

    for _ in range(2):
        engine(count([det], num=15), callback)

    assert callback.drain(20)
    assert points(server) == [15, 15, 15]
    (warning,) = warnings(caplog, "subscribed to its RunEngine 2 times")
    assert "after this call: `RE([])`, then `RE.subscribe(callback)`" in warning

    engine([])
    engine.subscribe(callback)
    for _ in range(2):
        engine(count([det], num=15))
    assert callback.drain(20)
    assert points(server) == [15] * 5


@pytest.mark.parametrize("times", [1, 2])
def test_a_callback_that_is_subscribed_for_each_call_is_as_good_as_any(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    for _ in range(3):
        engine(count([det], num=15), [callback] * times)

    assert callback.drain(20)
    assert points(server) == [15, 15, 15]
    assert len(warnings(caplog, "")) == times - 1


# ---- after close -----------------------------------------------------------------------------------------------------


def test_a_run_of_a_closed_callback_is_kept_with_a_warning_and_close_says_that_it_waits(
    engine: RunEngine, make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    with make_callback() as callback:
        token = engine.subscribe(callback)
        engine(count([det], num=15))
    assert (warnings(caplog, ""), points(server), callback.close()) == ([], [15], True)

    (uid,) = engine(count([det], num=15))

    assert "kept in the spool, and is sent by the next session" in warnings(caplog, f"still subscribed: run {uid}")[0]
    assert callback.status().points.waiting == 15
    assert not callback.close()
    engine.unsubscribe(token)
    assert make_callback().drain(20)
    assert points(server) == [15, 15]
    assert callback.close()


def test_a_callback_that_is_closed_within_a_run_warns_once_and_keeps_the_rest(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    callback = make_callback()
    documents = list(growth(points=25, keys=1))
    for name, doc in documents[:12]:
        callback(name, doc)
    callback.close()

    for name, doc in documents[12:]:
        callback(name, doc)

    assert len(warnings(caplog, "was closed within a run")) == 1
    assert not callback.close()
    assert make_callback().drain(20)
    assert held(server) == {"k0": [float(n) for n in range(25)]}


# ---- subscribed in a wrong way ---------------------------------------------------------------------------------------


def test_the_class_in_place_of_an_instance_ends_no_plan_and_is_an_error_for_each_run(
    engine: RunEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.subscribe(AtomscaleCallback)

    for _ in range(2):
        engine(count([det], num=5))

    errors = warnings(caplog, "RE.subscribe(AtomscaleCallback())")
    assert len(errors) == 2
    assert "nothing of this run is recorded" in errors[0]


@pytest.mark.parametrize("arguments", [("key",), ("key", "https://host"), ("start", {}, 1)])
def test_arguments_without_names_are_an_error(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="takes only keyword arguments"):
        AtomscaleCallback(*arguments)


@pytest.mark.parametrize(
    "names", [["event"], ["descriptor"], ["stop"], ["start"], ["start", "stop"], ["start", "event", "stop"]]
)
def test_a_callback_that_gets_some_kinds_of_documents_alone_says_so_once(
    engine: RunEngine, callback: AtomscaleCallback, caplog: pytest.LogCaptureFixture, names: list[str]
) -> None:
    for name in names:
        engine.subscribe(callback, name)

    for _ in range(5):
        engine(count([det], num=5))

    assert len(warnings(caplog, "to documents of every kind: `RE.subscribe(callback)`")) == 1


def test_runs_around_others_and_runs_without_events_are_no_mistake(
    engine: RunEngine, callback: AtomscaleCallback, caplog: pytest.LogCaptureFixture
) -> None:
    def around() -> Any:
        yield from set_run_key_wrapper(open_run(), "outer")
        yield from set_run_key_wrapper(open_run(), "middle")
        yield from count([det], num=5)
        yield from set_run_key_wrapper(close_run(), "middle")
        yield from set_run_key_wrapper(close_run(), "outer")

    engine.subscribe(callback)
    engine(around())

    assert callback.drain(20)
    assert warnings(caplog, "") == []


# ---- modules that are loaded again -----------------------------------------------------------------------------------

SESSION = """
import importlib, sys
from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import det

RE = RunEngine({{"synth_source_id": 42}}, context_managers=[])

def start_up():
    from atomscale_bluesky import AtomscaleCallback, Settings
    callback = AtomscaleCallback(settings=Settings.load(
        endpoint={url!r}, api_key={key!r}, spool_dir={spool!r}, spool_min_free_bytes=0, points_per_chunk=10))
    RE.subscribe(callback)
    return callback

def ours():
    return [name for name in sys.modules if name.partition(".")[0] == "atomscale_bluesky"]

def reload(order):
    for name in order(ours()):
        importlib.reload(sys.modules[name])

def forget():
    for name in ours():
        del sys.modules[name]

first = start_up()
RE(count([det], num=15))
{change}
RE(count([det], num=15))          # with the callback of the modules before
second = start_up()               # and now the start-up file again
RE(count([det], num=15))
assert second.drain(20)
assert first.close(), first.status()
assert second.close(), second.status()
"""


def run_session(server: LocalServer, spool_dir: Path, script: Path, change: str) -> subprocess.CompletedProcess[str]:
    session = SESSION.format(url=server.url, key=server.api_key, spool=str(spool_dir), change=change)
    script.write_text(textwrap.dedent(session))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)


# What a thread in the middle of a request makes of a class that is replaced is chance: the test after this one.
@pytest.mark.parametrize("change", ["first.drain(20); reload(list)", "forget()"], ids=["reload", "forget"])
def test_a_session_that_loads_all_modules_again_loses_nothing_and_sends_nothing_twice(
    server: LocalServer, spool_dir: Path, tmp_path: Path, change: str
) -> None:
    done = run_session(server, spool_dir, tmp_path / "session.py", change)

    assert done.returncode == 0, done.stderr
    assert points(server) == [15, 15, 15]
    assert len(server.streams()) == 3
    assert done.stderr.count("two callbacks of this process") == 1


def test_modules_loaded_again_in_the_middle_of_a_request_send_nothing_twice_and_hide_nothing(
    server: LocalServer, spool_dir: Path, tmp_path: Path, make_callback: MakeCallback
) -> None:
    server.misbehave(Fault(call="finalize", delay_s=1.0, times=1))
    run_session(server, spool_dir, tmp_path / "session.py", "reload(list)")

    callback = make_callback()
    callback.drain(20)

    assert len(server.streams()) == 3
    assert [stream.points for stream in server.streams()] == [15, 15, 15]
    waiting = callback.status()
    finished = {entry["run_uid"]: entry["delivered"] for entry in Spool(spool_dir).history.entries()}
    assert len(finished) + len(waiting) == 3
    assert set(finished.values()) <= {15}
    assert all(run.state == "parked" and run.problem and run.points.seen == 15 for run in waiting)


def test_a_session_whose_modules_are_a_mixture_keeps_what_it_cannot_send(
    server: LocalServer, spool_dir: Path, tmp_path: Path, make_callback: MakeCallback
) -> None:
    # Modules that are loaded again before those that they import go on with the classes from before.
    done = run_session(server, spool_dir, tmp_path / "session.py", "reload(lambda names: names[::-1])")

    assert "cannot be delivered now, it is kept" in done.stderr
    assert make_callback().drain(20)
    assert points(server) == [15, 15, 15]


# ---- patterns that match nothing -------------------------------------------------------------------------------------


def test_a_pattern_that_leaves_out_a_whole_run_is_named_once_with_the_names_that_came(
    engine: RunEngine, make_callback: MakeCallback, caplog: pytest.LogCaptureFixture
) -> None:
    for settings, said in (
        ({"channels": ["detektor", "det, det1"]}, "`channels` is 'detektor', 'det, det1', and the data keys are det;"),
        ({"event_streams": ["primry"]}, "`event_streams` is 'primry', and the event streams are primary;"),
    ):
        caplog.clear()
        callback = make_callback(**settings)
        token = engine.subscribe(callback)
        for _ in range(2):
            engine(count([det], num=3))
        engine.unsubscribe(token)
        (warning,) = warnings(caplog, "all of its readings are left out")
        assert said in warning
        assert warning.endswith("correct the setting, then start the session again")
        assert callback.drain(30)


def test_a_run_of_which_something_was_wanted_brings_no_warning_about_patterns(
    engine: RunEngine, make_callback: MakeCallback, caplog: pytest.LogCaptureFixture
) -> None:
    callback = make_callback(channels="det, motor", event_streams="*, !baseline")
    engine.subscribe(callback)
    engine(count([det], num=2))
    engine(count([], num=2))

    assert callback.drain(30)
    assert warnings(caplog, "all of its readings are left out") == []
