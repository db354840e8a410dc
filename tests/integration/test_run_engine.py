"""What a real RunEngine does to a run: pauses, suspenders, endings, nested runs, several engines, side tools."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from bluesky import Msg, RunEngine
from bluesky.plan_stubs import checkpoint, close_run, create, mv, open_run, pause, read, save, trigger
from bluesky.plans import count, scan
from bluesky.preprocessors import SupplementalData, set_run_key_decorator
from bluesky.simulators import check_limits, summarize_plan
from bluesky.suspenders import SuspendBoolHigh
from bluesky.utils import RunEngineInterrupted
from integration.expected import Source, assert_held, run_of
from ophyd import Signal
from ophyd.sim import SynAxis, det1, det2
from ophyd.status import Status
from runs import Recorder
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, MetadataError, validate_metadata
from atomscale_bluesky.server import LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
MakeEngine = Callable[..., RunEngine]


@pytest.fixture
def motor() -> SynAxis:
    """An axis of the test's own: those of `ophyd.sim` stay where another test left them."""
    return SynAxis(name="motor")


class Gate:
    """A device whose first triggering starts something in a thread of its own and is not done until that is."""

    name = "gate"
    parent = None

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act
        self.thread: threading.Thread | None = None

    def trigger(self) -> Status:
        status = Status(timeout=30)
        if self.thread is not None:
            status.set_finished()
            return status

        def work() -> None:
            self._act()
            status.set_finished()

        self.thread = threading.Thread(target=work)
        self.thread.start()
        return status


def point(*devices: Any) -> Iterator[Msg]:
    yield from create()
    for device in devices:
        yield from read(device)
    yield from save()


def points_with(gate: Gate, *devices: Any, at: int = 7, num: int = 25) -> Iterator[Msg]:
    """A run whose gate is triggered between the saving of a point and the next checkpoint."""
    yield from open_run()
    for n in range(num):
        yield from checkpoint()
        yield from point(*devices)
        if n == at:
            yield from trigger(gate, wait=True)
    yield from close_run()


def events(recorder: Recorder) -> list[dict[str, Any]]:
    return [doc for name, doc in recorder.documents if name == "event"]


def test_monitors_and_baseline_of_supplemental_data_are_taken_as_the_settings_say(
    make_callback: MakeCallback, make_engine: MakeEngine, motor: SynAxis, recorder: Recorder, server: LocalServer
) -> None:
    callback = make_callback(event_streams=["*"])
    engine = make_engine(callback)
    pressure = Signal(name="pressure", value=0.0)
    engine.preprocessors.append(SupplementalData(baseline=[motor], monitors=[pressure]))

    def plan() -> Iterator[Msg]:
        yield from open_run()
        for n in range(23):
            yield from mv(motor, n)
            yield from point(det1)
            pressure.put(n + 0.5)
        yield from close_run()

    engine(plan())

    assert callback.drain(timeout_s=20)
    held = assert_held(server, recorder.documents, leave_out=())
    (run,) = {source.run for source in held}
    assert [point.value for point in held[Source(run, "baseline")]["motor"]] == [0, 22]
    assert len(held[Source(run, "pressure_monitor")]["pressure"]) == 23


def test_baseline_is_left_out_unless_it_is_asked_for(
    engine: RunEngine, callback: AtomscaleCallback, motor: SynAxis, recorder: Recorder, server: LocalServer
) -> None:
    engine.preprocessors.append(SupplementalData(baseline=[motor]))

    engine(count([det1], num=12))

    assert callback.drain(timeout_s=20)
    assert [source.event_stream for source in assert_held(server, recorder.documents)] == ["primary"]


def test_plans_that_are_only_simulated_leave_no_trace(
    engine: RunEngine,
    callback: AtomscaleCallback,
    motor: SynAxis,
    recorder: Recorder,
    server: LocalServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_limits(scan([det1], motor, -1, 1, 5))
    summarize_plan(scan([det1], motor, -1, 1, 5))
    engine(scan([det1], motor, -1, 1, 15))
    summarize_plan(scan([det1], motor, -1, 1, 5))

    assert "Open Run" in capsys.readouterr().out
    assert callback.drain(timeout_s=20)
    assert_held(server, recorder.documents)
    assert len(server.streams()) == 1


def test_a_point_taken_again_after_a_pause_from_another_thread_is_kept_twice(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    gate = Gate(engine.request_pause)
    with pytest.raises(RunEngineInterrupted):
        engine(points_with(gate, det1, det2))
    assert engine.state == "paused"

    engine.resume()

    assert callback.drain(timeout_s=20)
    assert [event["seq_num"] for event in events(recorder)] == [*range(1, 9), *range(8, 26)]
    held = assert_held(server, recorder.documents)
    assert [len(points) for channels in held.values() for points in channels.values()] == [26, 26]


def test_a_monitor_keeps_what_it_saw_before_and_after_a_pause(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    pressure = Signal(name="pressure", value=0.0)
    engine.preprocessors.append(SupplementalData(monitors=[pressure]))

    def plan() -> Iterator[Msg]:
        yield from open_run()
        for n in range(4):
            yield from checkpoint()
            yield from point(det1)
            pressure.put(n + 0.25)
            pressure.put(n + 0.75)
            if n == 2:
                yield from pause()
        yield from close_run()

    with pytest.raises(RunEngineInterrupted):
        engine(plan())
    pressure.put(99.0)
    engine.resume()

    assert callback.drain(timeout_s=20)
    held = assert_held(server, recorder.documents)
    (monitored,) = [channels["pressure"] for source, channels in held.items() if source.event_stream != "primary"]
    numbers = [event["seq_num"] for event in events(recorder) if "pressure" in event["data"]]
    assert len(set(numbers)) < len(numbers) == len(monitored)
    assert 99.0 in [point.value for point in monitored]


@pytest.mark.parametrize("ending", ["abort", "stop", "halt"])
def test_a_run_that_is_ended_early_is_delivered_and_finalized(
    ending: str, engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    with pytest.raises(RunEngineInterrupted):
        engine(points_with(Gate(engine.request_pause), det1, at=13))

    getattr(engine, ending)()

    assert callback.drain(timeout_s=20)
    assert recorder.documents[-1][0] == "stop"
    assert recorder.documents[-1][1]["exit_status"] == ("success" if ending == "stop" else "abort")
    held = assert_held(server, recorder.documents)
    assert [len(points) for channels in held.values() for points in channels.values()] == [14]


def test_a_plan_that_raises_leaves_a_whole_run_behind(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    def plan() -> Iterator[Msg]:
        yield from open_run()
        for _ in range(12):
            yield from point(det1)
        raise RuntimeError("the shutter is stuck")

    with pytest.raises(RuntimeError, match="the shutter is stuck"):
        engine(plan())

    assert callback.drain(timeout_s=20)
    assert len(events(recorder)) == 12
    assert_held(server, recorder.documents)


def test_points_taken_again_after_a_suspension_are_kept(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    shutter_closed = Signal(name="shutter_closed", value=0)
    suspender = SuspendBoolHigh(shutter_closed, sleep=0)
    engine.install_suspender(suspender)

    def close_for_a_moment() -> None:
        shutter_closed.put(1)
        wait_until(lambda: suspender.tripped)
        shutter_closed.put(0)

    gate = Gate(close_for_a_moment)
    engine(points_with(gate, det1))
    engine.clear_suspenders()

    assert callback.drain(timeout_s=20)
    assert events(recorder)[-1]["seq_num"] == 25
    assert len(events(recorder)) == 26
    assert_held(server, recorder.documents)


def test_recorded_interruptions_are_text_and_disturb_nothing(
    make_callback: MakeCallback, make_engine: MakeEngine, recorder: Recorder, server: LocalServer
) -> None:
    callback = make_callback(event_streams=["*"])
    engine = make_engine(callback)
    engine.record_interruptions = True
    with pytest.raises(RunEngineInterrupted):
        engine(points_with(Gate(engine.request_pause), det1))
    engine.resume()

    assert callback.drain(timeout_s=20)
    assert [event["data"]["interruption"] for event in events(recorder) if "interruption" in event["data"]] == [
        "pause",
        "resume",
    ]
    assert [source.event_stream for source in assert_held(server, recorder.documents, leave_out=())] == ["primary"]


def test_two_engines_at_once_with_a_callback_each_share_a_spool(
    make_callback: MakeCallback, make_engine: MakeEngine, recorder: Recorder, server: LocalServer
) -> None:
    callbacks = [make_callback(), make_callback()]
    engines = [make_engine(callback) for callback in callbacks]
    run_at_once([(engine, count([detector], num=57)) for engine, detector in zip(engines, (det1, det2), strict=True)])

    assert all(callback.drain(timeout_s=20) for callback in callbacks)
    assert len(server.streams()) == 2
    assert_held(server, recorder.documents)


def test_two_engines_at_once_may_share_a_callback(
    callback: AtomscaleCallback, make_engine: MakeEngine, recorder: Recorder, server: LocalServer
) -> None:
    engines = [make_engine(callback), make_engine(callback)]
    run_at_once([(engine, count([detector], num=57)) for engine, detector in zip(engines, (det1, det2), strict=True)])

    assert callback.drain(timeout_s=20)
    assert len(server.streams()) == 2
    assert_held(server, recorder.documents)


def run_at_once(runs: list[tuple[RunEngine, Iterator[Msg]]]) -> None:
    """Run plans on engines in threads that begin together."""
    together = threading.Barrier(len(runs))
    errors: list[BaseException] = []

    def run(engine: RunEngine, plan: Iterator[Msg]) -> None:
        together.wait(10)
        try:
            engine(plan)
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=each) for each in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


@pytest.mark.parametrize(
    "metadata",
    [{"synth_source_id": "GEN-II"}, {"atomscale": {"synth_source": 42}}, {"atomscale": {"points_per_chunk": 0}}],
)
def test_the_validator_refuses_metadata_before_any_device_moves(
    metadata: dict[str, Any],
    engine: RunEngine,
    callback: AtomscaleCallback,
    motor: SynAxis,
    recorder: Recorder,
    server: LocalServer,
) -> None:
    engine.md_validator = validate_metadata

    with pytest.raises(MetadataError):
        engine(scan([det1], motor, 3, 5, 5), **metadata)
    assert motor.position == 0
    assert recorder.documents == []
    engine(scan([det1], motor, 3, 5, 5), synth_source_id=7)

    assert callback.drain(timeout_s=20)
    assert [stream.synth_source_id for stream in server.streams()] == [7]
    assert_held(server, recorder.documents)


@pytest.mark.parametrize("metadata", [{}, {"synth_source_id": " "}, {"atomscale": {"synth_source_id": None}}])
def test_the_validator_can_refuse_a_run_that_names_no_instrument_before_any_device_moves(
    metadata: dict[str, Any], callback: AtomscaleCallback, motor: SynAxis, recorder: Recorder, server: LocalServer
) -> None:
    engine = RunEngine(context_managers=[])
    engine.subscribe(callback)
    engine.subscribe(recorder)
    engine.md_validator = partial(validate_metadata, require_synth_source_id=True)

    with pytest.raises(MetadataError, match="name the growth instrument of this run, as in"):
        engine(scan([det1], motor, 3, 5, 5), **metadata)
    assert motor.position == 0
    assert recorder.documents == []
    engine(scan([det1], motor, 3, 5, 5), atomscale={"synth_source_id": 7})

    assert callback.drain(timeout_s=20)
    assert [stream.synth_source_id for stream in server.streams()] == [7]


def test_runs_within_a_run_have_streams_and_metadata_of_their_own(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    @set_run_key_decorator("inner")
    def inner(n: int) -> Iterator[Msg]:
        yield from open_run(md={"stream_name": f"inner {n}", "synth_source_id": 7})
        for _ in range(11 + n):
            yield from point(det2)
        yield from close_run()

    @set_run_key_decorator("outer")
    def outer() -> Iterator[Msg]:
        yield from open_run(md={"stream_name": "outer"})
        for n in range(3):
            yield from point(det1)
            yield from inner(n)
            yield from point(det1)
        yield from close_run()

    engine(outer())

    assert callback.drain(timeout_s=20)
    assert_held(server, recorder.documents)
    streams = {str(stream.label).partition(" [")[0]: stream for stream in server.streams()}
    assert {name: (stream.points, stream.synth_source_id) for name, stream in streams.items()} == {
        "outer": (6, 42),
        "inner 0": (11, 7),
        "inner 1": (12, 7),
        "inner 2": (13, 7),
    }


def test_a_callback_for_one_call_takes_that_call_alone(
    callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine(count([det1], num=11))
    engine(count([det1], num=12), [callback, recorder])
    engine(count([det1], num=13))

    assert callback.drain(timeout_s=20)
    assert [stream.points for stream in server.streams()] == [12]
    assert run_of(server.streams()[0].label) == recorder.documents[0][1]["uid"][:8]
    assert_held(server, recorder.documents)
