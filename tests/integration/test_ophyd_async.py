"""Devices of ophyd-async: soft signals of every type, simulated motors, and detectors that write files."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bluesky import Msg, RunEngine
from bluesky.plan_stubs import (
    abs_set,
    close_run,
    collect_while_completing,
    create,
    declare_stream,
    kickoff,
    open_run,
    prepare,
    read,
    save,
    stage,
    unstage,
)
from bluesky.plans import count, scan
from bluesky.preprocessors import monitor_during_wrapper
from integration.expected import Source, assert_held
from integration.needs import need_module
from ophyd import Signal
from ophyd_async.core import (
    Array1D,
    StandardReadable,
    StandardReadableFormat,
    StaticPathProvider,
    StrictEnum,
    TriggerInfo,
    UUIDFilenameProvider,
    soft_signal_rw,
)
from runs import Recorder

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

MakeCallback = Callable[..., AtomscaleCallback]


class Shutter(StrictEnum):
    CLOSED = "Closed"
    OPEN = "Open"
    FAULT = "Fault"


class Cell(StandardReadable):
    """An effusion cell with a reading of each kind."""

    def __init__(self, name: str = "") -> None:
        with self.add_children_as_readables(StandardReadableFormat.UNCACHED_SIGNAL):
            self.temperature = soft_signal_rw(float, 1173.0, units="K", precision=2)
            self.turns = soft_signal_rw(int, 3, units="turns")
            self.interlock = soft_signal_rw(bool, True)
            self.shutter = soft_signal_rw(Shutter, Shutter.OPEN)
            self.zones = soft_signal_rw(Array1D[np.float64], np.array([1.5, 2.5, 3.5]), units="W")
            self.spectrum = soft_signal_rw(Array1D[np.float64], np.linspace(0, 1, 64))
            self.material = soft_signal_rw(str, "Ga")
        super().__init__(name=name)


def connected(engine: RunEngine, device: Any) -> Any:
    """The device, connected in the engine's loop."""
    asyncio.run_coroutine_threadsafe(device.connect(), engine.loop).result(10)
    return device


@pytest.fixture
def sim() -> ModuleType:
    """The simulated devices of ophyd-async, which write files."""
    need_module("h5py", "ophyd-async[sim]")
    return importlib.import_module("ophyd_async.sim")


@pytest.fixture
def cell(engine: RunEngine) -> Cell:
    return connected(engine, Cell(name="cell"))


def test_a_reading_of_each_type_arrives_as_a_number_or_is_left_out(
    engine: RunEngine, callback: AtomscaleCallback, cell: Cell, recorder: Recorder, server: LocalServer
) -> None:
    def plan() -> Iterator[Msg]:
        yield from open_run()
        for n in range(17):
            yield from abs_set(cell.temperature, 1173.0 + n / 4, wait=True)
            yield from abs_set(cell.turns, n, wait=True)
            yield from abs_set(cell.interlock, n % 2 == 0, wait=True)
            yield from abs_set(cell.shutter, list(Shutter)[n % 3], wait=True)
            yield from abs_set(cell.zones, np.array([n, n + 0.5, n + 0.75]), wait=True)
            yield from abs_set(cell.material, f"material {n}", wait=True)
            yield from create()
            yield from read(cell)
            yield from save()
        yield from close_run()

    engine(plan())

    assert callback.drain(timeout_s=20)
    (channels,) = assert_held(server, recorder.documents).values()
    assert {name: [point.value for point in points] for name, points in channels.items()} == {
        "cell-temperature": [1173.0 + n / 4 for n in range(17)],
        "cell-turns": list(range(17)),
        "cell-interlock": [float(n % 2 == 0) for n in range(17)],
        "cell-shutter": [n % 3 for n in range(17)],
        "cell-zones[0]": list(range(17)),
        "cell-zones[1]": [n + 0.5 for n in range(17)],
        "cell-zones[2]": [n + 0.75 for n in range(17)],
    }
    assert {name: points[0].units for name, points in channels.items() if points[0].units} == {
        "cell-temperature": "K",
        "cell-turns": "turns",
        "cell-zones[0]": "W",
        "cell-zones[1]": "W",
        "cell-zones[2]": "W",
    }


def test_monitored_signals_arrive_at_the_times_of_their_readings(
    engine: RunEngine, callback: AtomscaleCallback, cell: Cell, recorder: Recorder, server: LocalServer
) -> None:
    def plan() -> Iterator[Msg]:
        yield from open_run()
        for n in range(12):
            yield from abs_set(cell.shutter, list(Shutter)[n % 3], wait=True)
            yield from abs_set(cell.temperature, 1173.0 + n, wait=True)
            yield from create()
            yield from read(cell.turns)
            yield from save()
        yield from close_run()

    engine(monitor_during_wrapper(plan(), [cell.shutter, cell.temperature]))

    assert callback.drain(timeout_s=20)
    held = assert_held(server, recorder.documents)
    (run,) = {source.run for source in held}
    shutter = held[Source(run, "cell-shutter_monitor")]["cell-shutter"]
    assert [point.value for point in shutter] == [1, *(n % 3 for n in range(12))]
    assert len(held[Source(run, "cell-temperature_monitor")]["cell-temperature"]) == 13


def test_threads_that_hammer_monitored_signals_of_both_ophyds_lose_nothing(
    engine: RunEngine, callback: AtomscaleCallback, cell: Cell, recorder: Recorder, server: LocalServer
) -> None:
    classic = Signal(name="pressure", value=0.0)

    def hammer_classic() -> None:
        for n in range(1, 501):
            classic.put(float(n))

    def hammer_async() -> None:
        for n in range(1, 501):
            asyncio.run_coroutine_threadsafe(set_temperature(n), engine.loop).result(30)

    async def set_temperature(n: int) -> None:
        await cell.temperature.set(float(n))

    def plan() -> Iterator[Msg]:
        threads = [threading.Thread(target=hammer) for hammer in (hammer_classic, hammer_async)]
        yield from open_run()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            yield from create()
            yield from read(cell.turns)
            yield from save()
        yield from close_run()

    engine(monitor_during_wrapper(plan(), [classic, cell.temperature]))

    assert callback.drain(timeout_s=30)
    held = assert_held(server, recorder.documents)
    (run,) = {source.run for source in held}
    numbers = [float(n) for n in range(1, 501)]
    assert [point.value for point in held[Source(run, "pressure_monitor")]["pressure"]] == numbers
    temperatures = held[Source(run, "cell-temperature_monitor")]["cell-temperature"]
    assert [point.value for point in temperatures] == [1173.0, *numbers]


def test_a_step_scan_of_a_simulated_motor_and_detector_arrives(
    engine: RunEngine, callback: AtomscaleCallback, sim: ModuleType, recorder: Recorder, server: LocalServer
) -> None:
    motor = connected(engine, sim.SimMotor(name="stage", instant=True))
    detector = connected(engine, sim.SimPointDetector(sim.PatternGenerator(), name="detector"))

    def plan() -> Iterator[Msg]:
        yield from abs_set(detector.acquire_time, 0.001, wait=True)
        yield from scan([detector], motor, -2, 2, 15)

    engine(plan())

    assert callback.drain(timeout_s=20)
    (channels,) = assert_held(server, recorder.documents).values()
    assert [point.value for point in channels["stage"]] == pytest.approx(np.linspace(-2, 2, 15))
    assert channels["stage"][0].units == "mm"
    assert channels.keys() == {"stage", *(f"detector-channel-{n}-value" for n in (1, 2, 3))}


def test_a_detector_that_writes_frames_leaves_the_numbers_beside_them(
    engine: RunEngine,
    callback: AtomscaleCallback,
    cell: Cell,
    sim: ModuleType,
    recorder: Recorder,
    server: LocalServer,
    tmp_path: Path,
) -> None:
    paths = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
    camera = connected(engine, sim.SimBlobDetector(paths, name="camera"))

    def plan() -> Iterator[Msg]:
        yield from prepare(camera, TriggerInfo(livetime=0.001), wait=True)
        yield from count([camera, cell], num=11)

    engine(plan())

    assert callback.drain(timeout_s=30)
    assert {"stream_resource", "stream_datum"} <= {name for name, _ in recorder.documents}
    (channels,) = assert_held(server, recorder.documents).values()
    assert len(channels["cell-temperature"]) == 11
    assert not [name for name in channels if name.startswith("camera")]


def test_a_fly_scan_that_gives_files_alone_leaves_an_empty_run(
    engine: RunEngine,
    callback: AtomscaleCallback,
    sim: ModuleType,
    recorder: Recorder,
    server: LocalServer,
    tmp_path: Path,
) -> None:
    paths = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
    camera = connected(engine, sim.SimBlobDetector(paths, name="camera"))

    def plan() -> Iterator[Msg]:
        yield from stage(camera)
        yield from open_run()
        yield from prepare(camera, TriggerInfo(livetime=0.001, number_of_events=5), wait=True)
        yield from declare_stream(camera, name="flown", collect=True)
        yield from kickoff(camera, wait=True)
        yield from collect_while_completing([camera], [camera], flush_period=0.1, stream_name="flown")
        yield from close_run()
        yield from unstage(camera)

    engine(plan())

    assert callback.drain(timeout_s=20)
    names = {name for name, _ in recorder.documents}
    assert "stream_datum" in names
    assert not names & {"event", "event_page"}
    assert_held(server, recorder.documents)
    assert [stream.points for stream in server.streams()] == [0]
