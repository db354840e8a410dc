"""Flyers and external data: pages of thousands of rows with times of their own, and files that the events only name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from bluesky import Msg, RunEngine
from bluesky.plan_stubs import close_run, collect, complete, kickoff, open_run
from bluesky.plans import count, fly
from integration.expected import assert_held, emitted
from ophyd.sim import NullStatus, SynSignalWithRegistry, det1, trivial_flyer
from ophyd.status import Status
from runs import Recorder

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

MakeCallback = Callable[..., AtomscaleCallback]

SKEW_S = 1e-4  # how much one clock of a flyer is ahead of the others


class Flyer:
    """Takes `rows` readings of three signals while nobody looks, in a flight of `lasts_s` seconds."""

    name = "flyer"
    parent = None

    def __init__(self, rows: int, *, lasts_s: float = 1.2, skewed: bool = False) -> None:
        self.rows = rows
        self.lasts_s = lasts_s
        self.skewed = skewed  # one of the signals has a clock of its own

    def kickoff(self) -> NullStatus:
        self.began = time.time()
        return NullStatus()

    def complete(self) -> Status:
        landed = Status()
        threading.Timer(self.began + self.lasts_s - time.time(), landed.set_finished).start()
        return landed

    def times(self) -> list[float]:
        """When the readings of each row were taken."""
        return [self.began + row * (self.lasts_s / self.rows) for row in range(self.rows)]

    def describe_collect(self) -> dict[str, Any]:
        number = {"source": "sim", "dtype": "number", "shape": [], "units": "nA"}
        spectrum = {"source": "sim", "dtype": "array", "shape": [3], "units": "counts"}
        return {"flown": {"current": number, "flux": number, "spectrum": spectrum}}

    def describe_configuration(self) -> dict[str, Any]:
        return {}

    def read_configuration(self) -> dict[str, Any]:
        return {}

    def columns(self, first: int, last: int) -> dict[str, Any]:
        """The readings of some rows, in columns."""
        steps = np.arange(first, last, dtype=float)
        stamps = self.began + steps * (self.lasts_s / self.rows)
        return {
            "data": {
                "current": steps / 8,
                "flux": -steps,
                "spectrum": np.stack([steps, steps + 0.25, steps + 0.5], axis=1),
            },
            "timestamps": {"current": stamps, "flux": stamps + self.skewed * SKEW_S, "spectrum": stamps},
            "time": stamps,
        }


class PageFlyer(Flyer):
    """Gives its readings in pages, whose columns are lists or arrays."""

    def __init__(self, rows: int, *, rows_per_page: int = 2500, arrays: bool = False, **flight: Any) -> None:
        super().__init__(rows, **flight)
        self._rows_per_page, self._arrays = rows_per_page, arrays

    def collect_pages(self) -> Iterator[dict[str, Any]]:
        for first in range(0, self.rows, self._rows_per_page):
            page = self.columns(first, min(first + self._rows_per_page, self.rows))
            yield page if self._arrays else listed(page)


class EventFlyer(Flyer):
    """Gives its readings one by one; the engine packs them into a page."""

    def collect(self) -> Iterator[dict[str, Any]]:
        columns = listed(self.columns(0, self.rows))
        for row, at in enumerate(columns["time"]):
            yield {
                "data": {key: column[row] for key, column in columns["data"].items()},
                "timestamps": {key: column[row] for key, column in columns["timestamps"].items()},
                "time": at,
            }


def listed(columns: Any) -> Any:
    """The same with lists for arrays."""
    if isinstance(columns, dict):
        return {key: listed(value) for key, value in columns.items()}
    return columns.tolist()


def flown(flyer: Any, **how: Any) -> Iterator[Msg]:
    yield from open_run()
    yield from kickoff(flyer, wait=True)
    yield from complete(flyer, wait=True)
    yield from collect(flyer, **how)
    yield from close_run()


@pytest.mark.parametrize("arrays", [False, True], ids=["lists", "arrays"])
@pytest.mark.parametrize("skewed", [False, True], ids=["one clock", "two clocks"])
def test_the_pages_of_a_flyer_arrive_whole_and_at_their_own_times(
    arrays: bool,
    skewed: bool,
    make_callback: MakeCallback,
    make_engine: Callable[..., RunEngine],
    recorder: Recorder,
    server: LocalServer,
) -> None:
    callback = make_callback(points_per_chunk=1000)
    flyer = PageFlyer(6200, arrays=arrays, skewed=skewed)
    make_engine(callback)(flown(flyer))

    assert callback.drain(timeout_s=30)
    assert sum(name == "event_page" for name, _ in recorder.documents) == 3
    (channels,) = assert_held(server, recorder.documents).values()
    assert {name: len(points) for name, points in channels.items()} == dict.fromkeys(
        ["current", "flux", "spectrum[0]", "spectrum[1]", "spectrum[2]"], 6200
    )
    first, *others = flyer.times()
    # Whether the rows were collected is a guess as yet when the first one comes: all its readings stand at one time.
    assert [point.time for point in channels["current"]] == [first + skewed * SKEW_S, *others]
    assert [point.time for point in channels["flux"]] == [at + skewed * SKEW_S for at in flyer.times()]
    # The empty stream of the run's start, one for each clock, and one for what the second clock shared with the first.
    assert len(server.streams()) == (4 if skewed else 2)


@pytest.mark.parametrize("skewed", [False, True], ids=["one clock", "two clocks"])
def test_a_very_short_flight_has_only_its_first_row_at_the_collection(
    skewed: bool,
    make_callback: MakeCallback,
    make_engine: Callable[..., RunEngine],
    recorder: Recorder,
    server: LocalServer,
) -> None:
    callback = make_callback()
    flyer = PageFlyer(50, rows_per_page=20, lasts_s=0.01, skewed=skewed)
    make_engine(callback)(flown(flyer))

    assert callback.drain(timeout_s=20)
    (channels,) = assert_held(server, recorder.documents).values()
    collected = next(doc["time"][0] for name, doc in recorder.documents if name == "event_page")
    for channel, skew in ("current", 0.0), ("flux", skewed * SKEW_S):
        first, *others = [point.time for point in channels[channel]]
        assert others == [at + skew for at in flyer.times()[1:]]
        # A busy host may collect late enough to tell.
        assert first == collected or collected - first > 0.25


def test_events_that_the_engine_packs_into_a_page_arrive_at_the_flyers_times(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    flyer = EventFlyer(333)
    engine(fly([flyer]))

    assert callback.drain(timeout_s=20)
    (channels,) = assert_held(server, recorder.documents).values()
    assert [point.time for point in channels["flux"]] == flyer.times()


def test_a_flyer_without_data_leaves_an_empty_run(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    engine(fly([trivial_flyer]))

    assert callback.drain(timeout_s=20)
    assert emitted(recorder.documents) == {}
    assert_held(server, recorder.documents)


def test_pictures_in_files_are_left_out_and_the_numbers_beside_them_arrive(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer, tmp_path: Any
) -> None:
    camera = SynSignalWithRegistry(
        func=lambda: np.ones((8, 8)), name="camera", labels={"detectors"}, save_path=str(tmp_path)
    )

    engine(count([camera, det1], num=13))

    assert callback.drain(timeout_s=20)
    kinds = {name for name, _ in recorder.documents}
    assert {"resource", "datum"} <= kinds
    filled = [doc["filled"] for name, doc in recorder.documents if name == "event"]
    assert filled == [{"camera": False}] * 13
    assert [stream.channels for stream in server.streams()] == [("det1",)]
    assert_held(server, recorder.documents)
