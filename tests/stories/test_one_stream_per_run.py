"""`layout = "run"`: all event streams of a run in one metrology stream, where channels may have their own times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import pytest
from bluesky import RunEngine, SupplementalData
from event_model import compose_run
from ophyd import Signal
from ophyd.sim import det1, motor
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.server import Fault, LocalServer, Rule
from atomscale_bluesky.spool.orders import Retry

NUMBER = {"source": "sim", "dtype": "number", "shape": []}
MakeCallback = Callable[..., AtomscaleCallback]


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(control=True, relax=[Rule.TIME_BASE]) as server:
        yield server


@pytest.fixture
def callback(make_callback: MakeCallback) -> AtomscaleCallback:
    return make_callback(layout="run", event_streams=["*"], points_per_chunk=2)


class Run:
    """One run with any event streams, each event of which has one key, `x`."""

    def __init__(self, callback: AtomscaleCallback) -> None:
        self.callback = callback
        self.run = compose_run(metadata={"synth_source_id": 42, "stream_name": "growth"})
        self.uid: str = self.run.start_doc["uid"]
        self.composed: dict[str, Any] = {}
        callback("start", self.run.start_doc)

    def event(self, name: str, at: float, **data: float) -> None:
        if name not in self.composed:
            self.composed[name] = composed = self.run.compose_descriptor(
                name=name, data_keys=dict.fromkeys(data, NUMBER)
            )
            self.callback("descriptor", composed.descriptor_doc)
        time = self.run.start_doc["time"] + at
        event = self.composed[name].compose_event(data=data, timestamps=dict.fromkeys(data, time), time=time)
        self.callback("event", event)

    def stop(self) -> None:
        self.callback("stop", self.run.compose_stop())


def held(server: LocalServer) -> list[dict[str, list[float | None]]]:
    """Per metrology stream, in the order in which they were made: what each channel holds."""
    return [
        {name: series.values for name, series in server.points(stream.data_id).items()} for stream in server.streams()
    ]


def test_all_event_streams_of_a_run_arrive_in_one_metrology_stream(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    pressure = Signal(name="pressure", value=1.0)
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.preprocessors.append(SupplementalData(baseline=[motor], monitors=[pressure]))
    engine.subscribe(callback)

    def plan() -> Iterator[Any]:
        yield from bp.count([det1], num=5, per_shot=vented)

    def vented(detectors: Any) -> Iterator[Any]:
        yield from bps.mv(pressure, pressure.get() + 1)
        yield from bps.one_shot(detectors)

    engine(plan())

    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert stream.status == "success"
    points = {name: len(series.values) for name, series in server.points(stream.data_id).items()}
    assert points == {
        "det1": 5,
        "baseline/motor": 2,
        "baseline/motor_setpoint": 2,
        "pressure_monitor/pressure": 5,
    }
    assert {server.counts().by_call[call] for call in ("initialize", "finalize")} == {1}


def test_channels_of_the_event_stream_that_primary_names_keep_their_names(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(layout="run", primary="growth")
    run = Run(callback)
    run.event("growth", 0, x=1)
    run.event("primary", 1, x=2)
    run.stop()

    assert callback.drain(timeout_s=30)
    assert held(server) == [{"x": [1], "primary/x": [2]}]


def test_names_are_unique_over_the_run_whatever_their_case(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    run.event("side", 0, x=1)
    run.event("Side", 0, X=2)
    run.stop()

    assert callback.drain(timeout_s=30)
    assert held(server) == [{"side/x": [1], "Side/X (2)": [2]}]


def test_the_stream_stays_open_while_a_chunk_of_any_event_stream_is_refused(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(channel="side/x", status=422, times=2))
    run = Run(callback)
    for n in range(4):
        run.event("primary", n, x=n)
        run.event("side", n, x=10 + n)
    run.stop()

    assert not callback.drain(timeout_s=10)
    (stream,) = server.streams()
    assert stream.status == "stream_active"
    (status,) = callback.status()
    assert status.points.refused == 4
    assert status.data_ids == (stream.data_id,)

    callback._spool.give_order(callback._spool.run_folders()[0], Retry())
    wait_until(lambda: server.streams()[0].status == "success")
    assert held(server) == [{"x": [0, 1, 2, 3], "side/x": [10, 11, 12, 13]}]


def test_channels_with_gaps_share_one_further_stream(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    for n in range(6):
        run.event("primary", n, a=n, b=math.nan if n == 2 else n, c=math.nan if n == 3 else n)
    run.stop()

    assert callback.drain(timeout_s=30)
    assert held(server) == [
        {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1], "c": [0, 1]},
        {"b": [3, 4, 5], "c": [2, 4, 5]},
    ]
    assert {stream.status for stream in server.streams()} == {"success"}


def test_what_follows_a_stream_that_the_server_closed_goes_on_in_one_further_stream(
    make_callback: MakeCallback,
) -> None:
    with LocalServer(control=True, relax=[Rule.TIME_BASE], silence_s=1.5) as server:
        callback = make_callback(layout="run", endpoint=server.url, points_per_chunk=2)
        run = Run(callback)
        for n in range(3):
            run.event("side", n, x=n)
        wait_until(lambda: held(server) == [{"side/x": [0, 1]}])
        wait_until(lambda: server.streams()[0].status == "stream_error")
        for n in range(3):
            run.event("primary", n, x=n)
            run.event("side", 3 + n, x=3 + n)
        run.stop()

        assert callback.drain(timeout_s=30)
        assert held(server) == [{"side/x": [0, 1]}, {"x": [0, 1, 2], "side/x": [2, 3, 4, 5]}]
        assert [stream.status for stream in server.streams()] == ["stream_error", "success"]
        first, second = (stream.label or "" for stream in server.streams())
        assert second.startswith(f"{first.partition(' [')[0]} (2)")


def test_a_further_process_goes_on_in_the_same_stream(make_callback: MakeCallback, server: LocalServer) -> None:
    first = make_callback(layout="run", points_per_chunk=2, exit_timeout_s=0)
    run = Run(first)
    for n in range(3):
        run.event("primary", n, x=n)
        run.event("side", n, x=n)
    wait_until(lambda: held(server) == [{"x": [0, 1], "side/x": [0, 1]}])
    server.stop()
    run.event("primary", 3, x=3)
    run.stop()
    assert not first.close(timeout_s=0)
    server.start()

    second = make_callback()  # the run was begun with its layout, and keeps it
    assert second.drain(timeout_s=30)
    assert held(server) == [{"x": [0, 1, 2, 3], "side/x": [0, 1, 2]}]


def test_a_server_that_insists_on_one_time_base_refuses_and_nothing_is_lost(make_callback: MakeCallback) -> None:
    with LocalServer(control=True) as server:
        callback = make_callback(layout="run", endpoint=server.url, points_per_chunk=2)
        run = Run(callback)
        for n in range(2):
            run.event("primary", n, x=n)
            run.event("side", n + 0.5, x=n)
        run.stop()

        assert not callback.drain(timeout_s=10)
        (status,) = callback.status()
        assert (status.points.delivered, status.points.refused, status.points.lost) == (2, 2, 0)
        assert [stream.status for stream in server.streams()] == ["stream_active"]


def test_an_unknown_layout_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="layout"):
        Settings.load(environ={}, layout="channel")
