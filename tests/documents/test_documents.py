"""What the callback makes of the documents that RunEngines, flyers, buses and broken neighbours give it."""

from __future__ import annotations

import math
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import orjson
import pytest
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from event_model import Filler, compose_run, compose_stream_resource, pack_event_page, unpack_event_page
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ophyd import Signal
from ophyd.sim import det1, det2, motor, trivial_flyer
from runs import Recorder, growth, held

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.documents.open_run import REMEMBERED_EVENTS
from atomscale_bluesky.model.labels import MAX_LABEL
from atomscale_bluesky.server import ChannelPoints, LocalServer, StreamState
from atomscale_bluesky.status.run_status import RunStatus

MakeCallback = Callable[..., AtomscaleCallback]
NUMBER = {"source": "sim", "dtype": "number", "shape": [], "units": "K"}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def engine(callback: AtomscaleCallback, recorder: Recorder) -> RunEngine:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    engine.subscribe(recorder)
    return engine


@pytest.fixture
def quiet(make_callback: MakeCallback) -> AtomscaleCallback:
    """A callback that only spools, for what is about documents alone."""
    return make_callback(offline=True)


class Run:
    """One run's documents, composed as event-model says, handed over one by one."""

    def __init__(self, callback: AtomscaleCallback, *, age_s: float = 0.0, **metadata: Any) -> None:
        self.callback = callback
        self.composed = compose_run(time=time.time() - age_s, metadata={"synth_source_id": 42, **metadata})
        self.start: dict[str, Any] = self.composed.start_doc
        self.uid: str = self.start["uid"]
        self.time: float = self.start["time"]
        self.sent: list[tuple[str, Any]] = []
        self.give("start", self.start)

    def give(self, name: str, doc: Any) -> Any:
        self.sent.append((name, doc))
        self.callback(name, doc)
        return doc

    def describe(self, *keys: str, name: str = "primary", **more: Any) -> Any:
        described = dict.fromkeys(keys, NUMBER) | more
        composed = self.composed.compose_descriptor(name=name, data_keys=described)
        self.give("descriptor", composed.descriptor_doc)
        return composed

    def event(self, composed: Any, *, after: float = 0.0, **data: Any) -> Any:
        event = composed.compose_event(
            data=data, timestamps=dict.fromkeys(data, self.time + after), time=self.time + after, validate=False
        )
        return self.give("event", event)

    def stop(self, **members: Any) -> Any:
        return self.give("stop", self.composed.compose_stop(**members))


def streams_of(server: LocalServer) -> dict[str, StreamState]:
    """Streams by the event stream that their labels name, `""` for the run's own."""
    named = {stream.label.partition(" [")[0].partition(" · ")[2]: stream for stream in server.streams() if stream.label}
    assert len(named) == len(server.streams())
    return named


def values(points: Mapping[str, ChannelPoints]) -> dict[str, list[float | None]]:
    return {name: series.values for name, series in points.items()}


def status_of(callback: AtomscaleCallback, run: Run) -> RunStatus:
    (status,) = [one for one in callback.status() if one.run_uid == run.uid]
    return status


def assert_adds_up(status: RunStatus) -> None:
    for counts in (status.points, *status.channels.values()):
        parts = counts.delivered + counts.waiting + counts.refused + counts.discarded + counts.lost
        assert counts.seen == parts + sum(counts.left_out.values())
        assert counts.lost == 0


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_several_runs_of_one_call_each_have_their_own_stream(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    def three() -> Iterator[Any]:
        for n in (1, 2, 3):
            yield from bp.count([det1], num=n)

    engine(three())

    assert callback.drain(timeout_s=30)
    assert sorted(stream.points for stream in server.streams()) == [1, 2, 3]
    assert {stream.status for stream in server.streams()} == {"success"}


def test_a_later_run_may_have_other_keys_in_the_same_event_stream(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    engine(bp.count([det1], num=2))
    engine(bp.count([det1, det2], num=2))

    assert callback.drain(timeout_s=30)
    channels = [sorted(server.points(stream.data_id)) for stream in server.streams()]
    assert sorted(channels) == [["det1"], ["det1", "det2"]]  # which stream is made first is nobody's promise


def test_interleaved_runs_are_told_apart_by_their_descriptors(callback: AtomscaleCallback, server: LocalServer) -> None:
    one, other = Run(callback, stream_name="one"), Run(callback, stream_name="other")
    primary = one.describe("a")
    one.event(primary, a=1)
    secondary = other.describe("a")
    other.event(secondary, a=10)
    one.event(primary, a=2)
    other.event(secondary, a=20)
    one.stop()
    other.event(secondary, a=30)
    other.stop()

    assert callback.drain(timeout_s=30)
    held = {(stream.label or "")[:3]: values(server.points(stream.data_id)) for stream in server.streams()}
    assert held == {"one": {"a": [1, 2]}, "oth": {"a": [10, 20, 30]}}


def test_an_empty_run_leaves_an_empty_stream_that_is_finalized(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    engine(bpp.run_wrapper(bps.null()))

    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert (stream.status, stream.points, stream.channels) == ("success", 0, ())
    assert callback.status() == ()


def test_a_descriptor_without_events_is_no_loss(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    run.describe("a")
    run.describe("b", name="second")
    run.stop()

    assert callback.drain(timeout_s=30)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 0)]


@pytest.mark.parametrize("exit_status", ["success", "abort", "fail"])
def test_however_a_run_ends_its_stream_is_complete(
    callback: AtomscaleCallback, server: LocalServer, exit_status: str
) -> None:
    run = Run(callback)
    run.event(run.describe("a"), a=1)
    run.stop(exit_status=exit_status, reason="because" * 1000)

    assert callback.drain(timeout_s=30)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 1)]


def test_a_plan_that_fails_keeps_what_it_read(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    def failing() -> Iterator[Any]:
        yield from bps.open_run()
        for _ in range(3):
            yield from bps.trigger_and_read([det1])
        raise RuntimeError("shutter stuck")

    with pytest.raises(RuntimeError, match="shutter stuck"):
        engine(failing())

    assert callback.drain(timeout_s=30)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 3)]


# ---- event streams ---------------------------------------------------------------------------------------------------


def test_each_further_event_stream_has_a_metrology_stream_of_its_own(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = Run(callback, stream_name="grow")
    primary, dark = run.describe("a", "b"), run.describe("a", name="dark")
    for n in range(12):
        run.event(primary, a=n, b=-n)
        run.event(dark, a=100 + n)
    run.stop()

    assert callback.drain(timeout_s=30)
    named = streams_of(server)
    assert values(server.points(named[""].data_id)) == {
        "a": [float(n) for n in range(12)], "b": [float(-n) for n in range(12)],
    }  # fmt: skip
    assert values(server.points(named["dark"].data_id)) == {"a": [100.0 + n for n in range(12)]}
    assert {stream.status for stream in named.values()} == {"success"}


def test_a_run_without_its_primary_event_stream_leaves_that_one_empty(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = Run(callback)
    run.event(run.describe("a", name="dark"), a=1)
    run.stop()

    assert callback.drain(timeout_s=30)
    assert {name: (stream.status, stream.points) for name, stream in streams_of(server).items()} == {
        "": ("success", 0), "dark": ("success", 1),
    }  # fmt: skip


def test_another_event_stream_may_be_the_primary_one(make_callback: MakeCallback, server: LocalServer) -> None:
    run = Run(make_callback(primary="fly"))
    run.event(run.describe("a", name="fly"), a=1)
    run.stop()

    assert run.callback.drain(timeout_s=30)
    assert [stream.points for stream in server.streams()] == [1]


def test_the_baseline_is_left_out_unless_asked_for(
    engine: RunEngine, make_callback: MakeCallback, callback: AtomscaleCallback, server: LocalServer, tmp_path: Any
) -> None:
    asked = make_callback(event_streams=["*"], spool_dir=str(tmp_path / "other"))
    engine.subscribe(asked)

    engine(bpp.baseline_wrapper(bp.count([det1], num=2), [motor]))

    assert callback.drain(timeout_s=30)
    assert asked.drain(timeout_s=30)
    assert sorted(stream.points for stream in server.streams()) == [2, 2, 4]


def test_what_is_not_selected_is_counted_with_its_reason(quiet: AtomscaleCallback) -> None:
    run = Run(quiet)
    baseline = run.describe("a", "b", name="baseline")
    run.event(run.describe("a"), a=1)
    run.event(baseline, a=2, b=3)
    page = {
        "descriptor": baseline.descriptor_doc["uid"], "uid": ["1", "2"], "time": [run.time] * 2, "seq_num": [2, 3],
        "data": {"a": [4, 5], "b": [6, 7]}, "timestamps": {}, "filled": {},
    }  # fmt: skip
    run.give("event_page", page)
    run.stop()

    status = status_of(quiet, run)
    assert_adds_up(status)
    assert status.channels["b"].left_out == {"event stream not selected": 3}
    assert status.points.waiting == 1


def test_monitors_on_a_devices_threads_lose_nothing_and_keep_their_own_times(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    gauge = Signal(name="gauge", value=0.0)
    hammers = 2

    def hammer(number: int, ready: threading.Barrier) -> None:
        ready.wait()
        for n in range(150):
            gauge.put(1000.0 * number + n)

    def plan() -> Iterator[Any]:
        yield from bps.open_run()
        yield from bps.monitor(gauge, name="gauge_monitor")
        ready = threading.Barrier(hammers + 1)
        threads = [threading.Thread(target=hammer, args=(n, ready)) for n in range(hammers)]
        for thread in threads:
            thread.start()
        ready.wait()
        for _ in range(20):
            yield from bps.trigger_and_read([det1])
        for thread in threads:
            thread.join()
        yield from bps.unmonitor(gauge)
        yield from bps.close_run()

    engine(plan())

    assert callback.drain(timeout_s=20)
    stream = streams_of(server)["gauge_monitor"]
    points = server.points(stream.data_id)["gauge"]
    names = {doc["uid"]: doc["name"] for name, doc in recorder.documents if name == "descriptor"}
    told = [
        (doc["timestamps"]["gauge"], float(doc["data"]["gauge"]))
        for name, doc in recorder.documents
        if name == "event" and names[doc["descriptor"]] == "gauge_monitor"
    ]
    assert len(told) > 150  # ophyd may pass over a value that another thread has overtaken
    assert sorted(zip(points.times, points.values, strict=True)) == sorted(told)
    assert all(length == 10 for _, length in points.chunks[:-1])
    assert callback.status() == ()


def test_a_changed_configuration_goes_on_in_the_same_stream(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    for n in range(3):
        composed = run.describe("a")  # the same event stream, described anew
        run.event(composed, a=n)
    run.stop()

    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert values(server.points(stream.data_id)) == {"a": [0, 1, 2]}


# ---- flyers ----------------------------------------------------------------------------------------------------------


def page_of(composed: Any, first: int, **columns: Any) -> dict[str, Any]:
    times, data = columns.pop("times"), columns
    rows = len(next(iter(data.values())))
    return {
        "descriptor": composed.descriptor_doc["uid"],
        "uid": [str(uuid.uuid4()) for _ in range(rows)],
        "time": [times[-1]] * rows,
        "seq_num": list(range(first, first + rows)),
        "data": data,
        "timestamps": dict.fromkeys(data, times),
        "filled": {},
    }


def test_a_flyers_pages_are_cut_into_chunks_with_the_flyers_own_times(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = Run(callback)
    fly = run.describe("a", "b", name="fly")
    times = [run.time + n / 100 for n in range(35)]
    run.give("event_page", page_of(fly, 1, a=list(range(30)), b=np.arange(30.0), times=times[:30]))
    run.give("event_page", page_of(fly, 31, a=[30] * 5, b=[31] * 5, times=np.array(times[30:])))
    run.stop()

    assert callback.drain(timeout_s=30)
    points = server.points(streams_of(server)["fly"].data_id)
    assert points["a"].values == [*map(float, range(30)), 30, 30, 30, 30, 30]
    assert points["a"].times == pytest.approx(times)
    assert [length for _, length in points["b"].chunks] == [10, 10, 10, 5]


def times_in(points: Mapping[str, Any], channel: str) -> list[float]:
    return list(points[channel].times) if channel in points else []


def test_channels_of_a_flyer_with_times_of_their_own_share_no_stream(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = Run(callback)
    fly = run.describe("a", "b", name="fly")
    page = page_of(fly, 1, a=[1, 2], b=[3, 4], times=[run.time, run.time + 1])
    page["timestamps"] = page["timestamps"] | {"b": [run.time + 2, run.time + 3]}
    page["time"] = [run.time + 300] * 2
    run.give("event_page", page)
    run.stop()

    assert callback.drain(timeout_s=30)
    named = streams_of(server)
    assert server.points(named["fly"].data_id)["a"].times == [run.time + 2, run.time + 1]  # the second row tells
    assert server.points(named["fly/b"].data_id)["b"].times == [run.time + 3]
    assert sorted(at for s in server.streams() for at in times_in(server.points(s.data_id), "b")) == [
        run.time + 2, run.time + 3,
    ]  # fmt: skip


def test_keys_of_a_flyer_that_part_after_a_while_lose_nothing(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    fly = run.describe("a", "b", name="fly")
    for n in range(25):
        page = page_of(fly, n, a=[n], b=[-n], times=[run.time + n])
        if n >= 13:
            page["timestamps"]["b"] = [run.time + n + 0.5]
        run.give("event_page", page)
    run.stop()

    assert callback.drain(timeout_s=30)
    held: dict[str, list[float | None]] = {}
    for stream in server.streams():
        assert stream.status == "success"
        for name, series in server.points(stream.data_id).items():
            held.setdefault(name, []).extend(series.values)
    assert held["a"] == [float(n) for n in range(25)]
    assert sorted(held["b"], key=abs) == [float(-n) for n in range(25)]


def test_a_flyer_without_data_keys_has_nothing_to_send(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    engine(bp.fly([trivial_flyer]))

    assert callback.drain(timeout_s=30)
    assert {stream.points for stream in server.streams()} == {0}
    assert dict(callback.ignored) == {}


# ---- external data ---------------------------------------------------------------------------------------------------


def test_stream_assets_are_no_points_and_no_loss(quiet: AtomscaleCallback) -> None:
    run = Run(quiet)
    image = {"source": "file", "dtype": "array", "shape": [1, 4, 4], "external": "STREAM:"}
    primary = run.describe("a", image=image)
    only_assets = run.describe(name="fly", image=image)
    bundle = compose_stream_resource(
        start=run.start, mimetype="application/x-hdf5", uri="file://localhost/x.h5", data_key="image", parameters={}
    )
    run.give("stream_resource", bundle.stream_resource_doc)
    for n in range(3):
        descriptor = only_assets if n == 2 else primary
        seq_nums, indices = {"start": n + 1, "stop": n + 2}, {"start": n, "stop": n + 1}
        datum = bundle.compose_stream_datum(seq_nums=seq_nums, indices=indices, descriptor=descriptor.descriptor_doc)
        run.give("stream_datum", datum)
    run.give("event", primary.compose_event(data={"a": 1}, timestamps={"a": run.time}, filled={}, validate=False))
    run.stop()

    status = status_of(quiet, run)
    assert_adds_up(status)
    assert status.points.waiting == 1
    assert status.channels["image"].left_out == {"external data": 1}
    assert dict(quiet.ignored) == {}


def test_a_datum_id_is_left_out_and_its_event_is_not(quiet: AtomscaleCallback) -> None:
    run = Run(quiet)
    image = {"source": "file", "dtype": "array", "shape": [4, 4], "external": "FILESTORE:"}
    primary = run.describe("a", image=image)
    run.give("resource", {"uid": "r", "run_start": run.uid})
    run.give("datum", {"datum_id": "r/0", "resource": "r", "datum_kwargs": {}})
    event = primary.compose_event(
        data={"a": 1, "image": "r/0"}, timestamps={"a": run.time, "image": run.time}, filled={"image": False}
    )
    run.give("event", event)

    assert status_of(quiet, run).channels["image"].left_out == {"external data": 1}
    assert status_of(quiet, run).channels["a"].waiting == 1


class OneNumber:
    """A file with a number for each event, as a handler of event-model's Filler reads it."""

    def __init__(self, path: str, **kwargs: Any) -> None:
        pass

    def __call__(self, index: int) -> float:
        return 100.0 + index


def test_numbers_that_a_filler_took_from_files_arrive(callback: AtomscaleCallback, server: LocalServer) -> None:
    filler = Filler({"NUMBERS": OneNumber}, inplace=False)
    run = Run(lambda name, doc: callback(*filler(name, doc)))  # type: ignore[arg-type] - a chain of two callbacks
    counts = {"source": "file", "dtype": "number", "shape": [], "external": "FILESTORE:"}
    primary = run.describe("T", counts=counts)
    files = run.composed.compose_resource(spec="NUMBERS", root="/", resource_path="x", resource_kwargs={})
    run.give("resource", files.resource_doc)
    for n in range(12):
        datum = run.give("datum", files.compose_datum(datum_kwargs={"index": n}))
        stamps = {"T": run.time + n, "counts": run.time + n}
        event = primary.compose_event(
            data={"T": n, "counts": datum["datum_id"]}, timestamps=stamps, filled={"counts": False}
        )
        run.give("event", event)
    run.stop()

    assert callback.drain(10)
    assert held(server) == {"T": [float(n) for n in range(12)], "counts": [100.0 + n for n in range(12)]}


def test_the_events_of_a_bulk_are_taken_like_any_others(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    primary = run.describe("a")
    uid = primary.descriptor_doc["uid"]
    events = [
        primary.compose_event(data={"a": n}, timestamps={"a": run.time + n}, time=run.time + n) for n in range(25)
    ]

    run.give("bulk_events", {uid: events[:20]})
    run.give("bulk_events", {uid: [events[19], {"uid": "broken", "descriptor": uid}, *events[20:]]})
    run.stop()

    assert callback.drain(10)
    assert held(server) == {"a": [float(n) for n in range(25)]}
    assert callback.ignored == {"event seen before": 1, "malformed document": 1}


def test_an_event_stream_whose_descriptor_has_no_name_is_the_primary_one(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = Run(callback)
    composed = run.composed.compose_descriptor(name="x", data_keys={"a": NUMBER})
    run.give("descriptor", {key: value for key, value in composed.descriptor_doc.items() if key != "name"})
    for n in range(12):
        run.event(composed, after=float(n), a=n)
    run.stop(exit_status="success")

    assert callback.drain(10)
    (stream,) = server.streams()
    assert (stream.status, stream.points, stream.channels) == ("success", 12, ("a",))


@pytest.mark.parametrize("filled", [True, False, [True] * 4, {}])
def test_a_page_that_repeats_events_may_have_one_flag_for_all_rows(callback: AtomscaleCallback, filled: Any) -> None:
    run = Run(callback)
    primary = run.describe("a")
    page = page_of(primary, 1, a=[1, 2, 3, 4], times=[run.time] * 4)
    first = {**page, "uid": page["uid"][:2], "time": page["time"][:2], "seq_num": page["seq_num"][:2]}
    first |= {"data": {"a": [1, 2]}, "timestamps": {"a": [run.time] * 2}}

    run.give("event_page", first)
    run.give("event_page", {**page, "filled": {"a": filled}})

    assert status_of(callback, run).points.seen == 4
    assert "malformed document" not in callback.ignored


# ---- the same again --------------------------------------------------------------------------------------------------


def test_readings_that_a_pause_has_taken_again_are_both_kept(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    paused = False

    def plan() -> Iterator[Any]:
        nonlocal paused
        yield from bps.open_run()
        for n in range(3):
            yield from bps.checkpoint()
            yield from bps.trigger_and_read([det1])
            yield from bps.trigger_and_read([det1])
            if n == 1 and not paused:
                paused = True
                yield from bps.pause()
        yield from bps.close_run()

    with pytest.raises(RunEngineInterrupted):
        engine(plan())
    engine.resume()

    numbers = [doc["seq_num"] for name, doc in recorder.documents if name == "event"]
    assert numbers == [1, 2, 3, 4, 3, 4, 5, 6]
    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert stream.points == 8
    series = server.points(stream.data_id)["det1"]
    assert list(zip(series.times, series.values, strict=True)) == recorder.points()["det1"]


class Stubborn(Signal):
    """A signal that cannot be triggered the first time."""

    refused = 0

    def trigger(self) -> Any:
        if not self.refused:
            self.refused += 1
            raise OSError("no answer from the device")
        return super().trigger()


def test_a_point_that_a_plan_has_tried_again_is_there_once(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    stubborn = Stubborn(name="stubborn", value=1.5)

    def plan() -> Iterator[Any]:
        yield from bps.open_run()
        for _ in range(2):
            try:
                yield from bps.trigger_and_read([det1, stubborn])
            except OSError:
                yield from bps.trigger_and_read([det1, stubborn])
        yield from bps.close_run()

    engine(plan())

    assert stubborn.refused == 1
    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert values(server.points(stream.data_id))["stubborn"] == [1.5, 1.5]
    assert len(recorder.points()["det1"]) == 2


def test_a_reading_that_a_plan_drops_leaves_no_hole(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    number = Signal(name="number", value=0)

    def plan() -> Iterator[Any]:
        yield from bps.open_run()
        for n in range(5):
            number.put(n)
            yield from bps.create()
            yield from bps.read(number)
            yield from bps.drop() if n == 2 else bps.save()
        yield from bps.close_run()

    engine(plan())

    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert values(server.points(stream.data_id)) == {"number": [0, 1, 3, 4]}
    assert (stream.status, stream.doubled) == ("success", 0)


def test_an_event_that_comes_twice_is_taken_once(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    primary = run.describe("a")
    for n in range(3):
        event = run.event(primary, a=n)
        run.give("event", event)
        run.give("event", dict(event))
    run.stop()

    assert callback.drain(timeout_s=30)
    assert [stream.points for stream in server.streams()] == [3]
    assert callback.ignored == {"event seen before": 6}


def test_rows_of_a_page_that_came_before_are_taken_once(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    fly = run.describe("a", "b", name="fly")
    page = page_of(fly, 1, a=[1, 2, 3], b=np.array([1.0, 2, 3]), times=[run.time, run.time + 1, run.time + 2])
    first = {
        key: (value[:1] if isinstance(value, list) else value) for key, value in page.items() if key != "descriptor"
    } | {"descriptor": page["descriptor"]}
    first["data"] = {key: column[:1] for key, column in page["data"].items()}
    first["timestamps"] = {key: column[:1] for key, column in page["timestamps"].items()}
    run.give("event_page", first)
    run.give("event_page", page)
    run.give("event_page", page)
    run.stop()

    assert callback.drain(timeout_s=30)
    assert values(server.points(streams_of(server)["fly"].data_id)) == {"a": [1, 2, 3], "b": [1, 2, 3]}
    assert callback.ignored == {"event seen before": 4}


def test_the_same_start_again_changes_nothing(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    primary = run.describe("a")
    run.event(primary, a=1)
    run.give("start", run.start)
    run.give("descriptor", primary.descriptor_doc)
    run.event(primary, a=2)
    run.stop()

    assert callback.drain(timeout_s=30)
    assert [values(server.points(stream.data_id)) for stream in server.streams()] == [{"a": [1, 2]}]


def test_a_run_that_is_replayed_is_not_sent_again(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(callback)
    primary = run.describe("a")
    run.event(primary, a=1)
    run.stop()
    assert callback.drain(timeout_s=30)

    for name, doc in list(run.sent):
        callback(name, dict(doc))
    other = [("start", run.start | {"more": "content"}), *run.sent[1:]]
    for name, doc in other:
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert [stream.points for stream in server.streams()] == [1]
    assert "was recorded before and is not sent again" in caplog.text
    assert callback.ignored["run taken before"] == 2


def as_tiled_gives_it(documents: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """A run as a catalogue replays it: uids of events made up, pages as events, tuples as lists."""
    for name, doc in documents:
        if name == "event":
            yield name, {**doc, "uid": f"event-{doc['descriptor']}-{doc['seq_num']}"}
        elif name == "event_page":
            for event in unpack_event_page(doc):
                yield "event", {**event, "uid": f"event-{doc['descriptor']}-{event['seq_num']}"}
        else:
            yield name, orjson.loads(orjson.dumps(doc))


def interrupted_run(callback: AtomscaleCallback) -> Run:
    """A run of two event streams whose second half the callback never saw."""
    run = Run(callback, age_s=60)
    primary, monitor = run.describe("a", "b"), run.describe("m", name="m_monitor")
    for n in range(12):
        if n == 6:
            callback.close(timeout_s=10)  # as the next process does for one that was killed
            run.callback = lambda *_: None  # type: ignore[assignment]
        run.event(primary, after=float(n), a=n, b=-n)
        run.event(monitor, after=n + 0.5, m=n)
    run.stop()
    return run


@pytest.mark.parametrize("replayed", [list, as_tiled_gives_it], ids=["from a bus or file", "from a catalogue"])
@pytest.mark.parametrize("delivered", [True, False], ids=["delivered before", "still spooled"])
def test_a_run_that_was_interrupted_goes_on_when_it_is_replayed_and_nothing_arrives_twice(
    make_callback: MakeCallback, server: LocalServer, replayed: Any, delivered: bool
) -> None:
    run = interrupted_run(make_callback(offline=not delivered))
    callback = make_callback(offline=not delivered)
    for name, doc in replayed(run.sent):
        callback(name, doc)
    callback.close(timeout_s=10)
    assert callback.ignored["event seen before"] == 12

    last = make_callback()
    assert last.drain(timeout_s=30)
    assert sorted(n for n in held(server)["a"]) == list(range(12))
    assert sorted(n for n in held(server)["b"]) == list(range(-11, 1))
    assert sorted(n for n in held(server)["m"]) == list(range(12))
    before = len(server.streams())
    for name, doc in replayed(run.sent):  # once more: now it is whole
        last(name, doc)
    assert last.drain(timeout_s=30)
    assert len(server.streams()) == before
    assert last.ignored == {"run taken before": 1}


def test_a_replayed_run_can_be_read_when_a_signal_of_its_monitor_seldom_changes(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    run = Run(make_callback(), age_s=60)
    gauge = run.describe("fast", "slow", name="gauge_monitor")
    for n in range(30):
        if n == 12:
            run.callback.close(timeout_s=10)
            run.callback = lambda *_: None  # type: ignore[assignment]
        at, slow = run.time + n, run.time + (20.0 if n >= 20 else 0.0)
        event = gauge.compose_event(data={"fast": n, "slow": -n}, timestamps={"fast": at, "slow": slow}, time=at)
        run.give("event", event)
    run.stop()

    callback = make_callback()
    for name, doc in run.sent:
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert sorted(held(server)["fast"]) == list(range(30))
    assert sorted(held(server)["slow"]) == list(range(-29, 1))
    assert callback.ignored == {"event seen before": 12}


@pytest.mark.parametrize("replayed", [list, as_tiled_gives_it], ids=["from a bus or file", "from a catalogue"])
@pytest.mark.parametrize("delivered", [True, False], ids=["delivered before", "still spooled"])
@pytest.mark.parametrize("step", [-3600.0, -9.0, 0.0], ids=["an hour back", "a little back", "stands still"])
def test_a_clock_that_was_set_back_costs_no_reading_of_a_run_that_is_replayed(
    make_callback: MakeCallback, server: LocalServer, replayed: Any, delivered: bool, step: float
) -> None:
    run = Run(make_callback(offline=not delivered), age_s=7200)
    primary, monitor = run.describe("a"), run.describe("m", name="m_monitor")
    for n in range(30):
        if n == 20:
            run.callback.close(timeout_s=10)
            run.callback = lambda *_: None  # type: ignore[assignment]
        after = 60.0 + (n + (step if n >= 15 else 0.0)) * (step != 0.0)
        run.event(primary, after=after, a=n)
        run.event(monitor, after=after, m=n)
    run.stop()

    callback = make_callback()
    for name, doc in replayed(run.sent):
        callback(name, doc)

    assert callback.drain(timeout_s=20)
    assert {name: sorted(values) for name, values in held(server).items()} == {"a": [*range(30)], "m": [*range(30)]}
    assert callback.ignored == {"event seen before": 40}


def test_a_run_of_events_that_is_replayed_as_pages_arrives_once(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    run = Run(make_callback(), age_s=60)
    primary = run.describe("a", "b")
    for n in range(12):
        if n == 6:
            run.callback.close(timeout_s=10)
            run.callback = lambda *_: None  # type: ignore[assignment]
        stamps = {"a": run.time + n, "b": run.time + n / 2}  # which count in pages, and not in a plan's events
        run.give("event", primary.compose_event(data={"a": n, "b": -n}, timestamps=stamps, time=run.time + n + 0.1))
    run.stop()

    callback = make_callback()
    for name, doc in run.sent:
        callback(*(("event_page", pack_event_page(doc)) if name == "event" else (name, doc)))

    assert callback.drain(timeout_s=20)
    assert {name: sorted(values) for name, values in held(server).items()} == {"a": [*range(12)], "b": [*range(-11, 1)]}


@pytest.mark.parametrize("step", [0.0, -5.0], ids=["a steady clock", "a clock set back"])
def test_where_the_events_of_an_interrupted_run_are_gone_nothing_is_lost_and_what_may_be_double_is_said(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, caplog: pytest.LogCaptureFixture, step: float
) -> None:
    run = Run(make_callback(), age_s=60)
    primary = run.describe("a")
    for n in range(30):
        if n == 20:
            run.callback.close(timeout_s=10)
            run.callback = lambda *_: None  # type: ignore[assignment]
        run.event(primary, after=n + (step if n >= 15 else 0.0), a=n)
    run.stop()
    for path in spool_dir.glob("*.events"):
        path.unlink()

    callback = make_callback()
    for name, doc in run.sent:
        callback(name, doc)

    assert callback.drain(timeout_s=20)
    twice = [] if step == 0.0 else [15, 16, 17, 18, 19]
    assert sorted(held(server)["a"]) == sorted([*range(30), *twice])
    assert ("5 events may be recorded twice" in caplog.text) == bool(twice)


def test_an_event_that_memory_has_forgotten_is_known_from_the_journal_when_its_run_comes_again(
    quiet: AtomscaleCallback,
) -> None:
    run = Run(quiet, age_s=3600)
    fly = run.describe("a", name="fly")
    rows = 2 * REMEMBERED_EVENTS + 5000
    page = page_of(fly, 1, a=list(range(rows)), times=[run.time + n / 100 for n in range(rows)])
    run.give("event_page", page)
    for name, doc in [*run.sent, ("event_page", page_of(fly, rows + 1, a=[1, 2], times=[run.time, run.time + 1]))]:
        quiet(name, doc)

    assert quiet.ignored == {"start": 1, "event seen before": rows}
    assert status_of(quiet, run).points.seen == rows + 2


def test_pages_of_an_interrupted_run_go_on_with_the_first_row_that_is_new(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    first = make_callback()
    run = Run(first, age_s=60)
    flyer = run.describe("a", name="fly")
    run.give("event_page", page_of(flyer, 1, a=[0, 1, 2], times=[run.time + n for n in range(3)]))
    first.close(timeout_s=10)

    callback = run.callback = make_callback()
    callback("start", run.start)
    callback(*run.sent[1])
    run.give("event_page", page_of(flyer, 1, a=[0, 1, 2, 3, 4], times=[run.time + n for n in range(5)]))
    run.stop()

    assert callback.drain(timeout_s=30)
    assert sorted(held(server)["a"]) == [0, 1, 2, 3, 4]


def test_a_run_that_another_process_takes_just_now_is_not_taken_twice(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    taking = Run(make_callback(), age_s=60)
    primary = taking.describe("a")
    taking.event(primary, a=1)

    other = make_callback()
    for name, doc in taking.sent:
        other(name, doc)
    taking.event(primary, a=2)
    taking.stop()

    assert taking.callback.drain(timeout_s=30)
    assert held(server) == {"a": [1, 2]}
    assert other.ignored == {"run taken before": 1}


def test_every_document_twice_is_as_good_as_once(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    engine.subscribe(lambda name, doc: callback(name, doc))

    engine(bp.scan([det1, det2], motor, -1, 1, 12))

    assert callback.drain(timeout_s=30)
    points = [server.points(stream.data_id) for stream in server.streams() if stream.points]
    assert len(points) == 1
    assert {name: len(series.values) for name, series in points[0].items()} == dict.fromkeys(recorder.points(), 12)


# ---- what belongs to nothing that is known ---------------------------------------------------------------------------


def test_documents_of_a_run_whose_start_never_came_are_counted_and_said_once(
    callback: AtomscaleCallback, caplog: pytest.LogCaptureFixture, server: LocalServer
) -> None:
    missed = compose_run()
    descriptor = missed.compose_descriptor(name="primary", data_keys={"a": NUMBER})
    events = [descriptor.compose_event(data={"a": n}, timestamps={"a": n}) for n in range(3)]

    callback("descriptor", descriptor.descriptor_doc)
    for event in events:
        callback("event", event)
    callback("event_page", page_of(descriptor, 4, a=[1], times=[1.0]))
    callback("stop", missed.compose_stop())
    callback("stop", {"uid": "x", "run_start": missed.start_doc["uid"], "time": 1.0, "exit_status": "success"})

    assert callback.ignored == {"descriptor": 1, "event": 3, "event_page": 1, "stop": 2}
    assert len([record for record in caplog.records if "never came" in record.message]) <= 4
    assert callback.status() == ()
    assert callback.drain(timeout_s=30)
    assert server.streams() == []


def test_events_that_come_after_their_runs_stop_are_counted_and_break_nothing(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = Run(callback)
    primary = run.describe("a")
    run.event(primary, a=1)
    late = primary.compose_event(data={"a": 2}, timestamps={"a": run.time})
    run.stop()
    run.give("event", late)
    run.give("event_page", page_of(primary, 3, a=[3, 4], times=[run.time, run.time]))

    assert callback.drain(timeout_s=30)
    assert [stream.points for stream in server.streams()] == [1]
    assert callback.ignored == {"event behind its run's stop": 3}


def test_a_descriptor_that_never_came_costs_its_events_and_no_others(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = Run(callback)
    primary = run.describe("a")
    unseen = run.composed.compose_descriptor(name="second", data_keys={"b": NUMBER})
    run.event(primary, a=1)
    run.event(unseen, b=2)
    run.event(primary, a=3)
    run.stop()

    assert callback.drain(timeout_s=30)
    assert [values(server.points(stream.data_id)) for stream in server.streams()] == [{"a": [1, 3]}]


def test_a_neighbour_that_breaks_the_plan_costs_nothing_that_came_before(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)

    def fragile(name: str, doc: Any) -> None:
        if name == "event" and doc["seq_num"] == 4:
            raise RuntimeError("a neighbour's trouble")

    engine.subscribe(fragile)

    with pytest.raises(RuntimeError, match="a neighbour's trouble"):
        engine(bp.count([det1], num=10))

    assert callback.drain(timeout_s=30)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 4)]


# ---- metadata --------------------------------------------------------------------------------------------------------


class Unwritable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


def test_metadata_that_no_encoder_takes_do_no_harm(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    metadata = {"thing": object(), "function": lambda: None, "array": np.arange(3), "gap": math.nan, "none": None}

    engine(bp.count([det1], num=2), **metadata, huge=10**400, odd={1, 2})
    run = Run(callback, **metadata, cyclic=cyclic, unwritable=Unwritable(), bytes=b"\xff", half="\ud800")
    run.event(run.describe("a"), a=1)
    run.stop()

    assert callback.drain(timeout_s=30)
    assert sorted((stream.status, stream.points) for stream in server.streams()) == [("success", 1), ("success", 2)]


def test_of_a_start_document_only_what_is_needed_is_kept_and_so_can_leave_the_machine(
    quiet: AtomscaleCallback, spool_dir: Path
) -> None:
    run = Run(
        quiet, plan_name="grow", tags=["night shift"], recipe="confidential", operator={"name": "confidential"},
        sample="confidential", plan_args={"notes": ["confidential"]},
    )  # fmt: skip
    run.event(run.describe("a"), a=1)
    run.stop(exit_status="success", reason="")

    kept = b"".join(path.read_bytes() for path in spool_dir.rglob("*") if path.is_file())
    assert b"night shift" in kept
    assert b"grow" in kept
    assert b"confidential" not in kept


def test_texts_of_ten_megabytes_in_metadata_and_names_are_cut_and_cost_no_point(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    long = "x" * 10**7
    run = Run(callback, plan_name=long, recipe=long, sample=long)
    primary = run.describe(long, a={**NUMBER, "units": long})
    for n in range(3):
        run.event(primary, **{long: n, "a": n})
    run.stop(exit_status="fail", reason=long)

    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert (stream.status, stream.points) == ("success", 6)
    assert stream.label is not None
    assert len(stream.label) <= MAX_LABEL
    assert sorted(map(len, server.points(stream.data_id))) == [1, 253]


def test_a_document_is_never_changed(quiet: AtomscaleCallback) -> None:
    run = Run(quiet, atomscale={"points_per_chunk": 7}, hints={"dimensions": [(("a",), "primary")]})
    primary = run.describe("a", "b", flux={"source": "sim", "dtype": "array", "shape": [2]})
    run.event(primary, a=1, b=math.nan, flux=np.array([1.0, 2.0]))
    run.event(primary, a=1, b="text", flux=[1])
    run.give("event_page", page_of(primary, 3, a=[1], b=[None], flux=[[3, 4]], times=[run.time]))
    before = repr(run.sent)
    for name, doc in run.sent:
        quiet(name, doc)
    run.stop()

    assert repr(run.sent[:-1]) == before


@pytest.mark.parametrize(
    "metadata",
    [
        {"synth_source_id": "MBE 2"},
        {"atomscale": {"synth_source": 42}},
        {"atomscale": {"project_id": b"x"}},
        {"atomscale": {"points_per_chunk": 0}},
    ],
)
def test_unusable_metadata_park_the_run_and_keep_its_readings(
    callback: AtomscaleCallback, server: LocalServer, metadata: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(callback, **metadata)
    primary = run.describe("a")
    for n in range(25):
        run.event(primary, a=n)
    run.stop()

    assert not callback.drain(timeout_s=10)
    status = status_of(callback, run)
    assert status.state == "parked"
    assert status.problem is not None
    assert next(iter(metadata.get("atomscale", metadata))) in status.problem
    assert status.points.waiting == 25
    assert_adds_up(status)
    assert server.streams() == []
    assert "atomscale-bluesky edit" in caplog.text


# ---- values ----------------------------------------------------------------------------------------------------------


def test_a_channel_with_gaps_goes_on_alone_and_the_others_stay_complete(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = Run(callback)
    primary = run.describe("a", "b", "never", state={"source": "sim", "dtype": "string", "shape": []})
    for n in range(35):
        run.event(primary, after=n, a=n, b=math.nan if n in {14, 15, 30} else -n, never=None, state="ok")
    status = status_of(callback, run)
    run.stop()

    assert callback.drain(timeout_s=30)
    assert_adds_up(status)
    assert status.channels["b"].left_out == {"not finite": 3}
    assert status.channels["never"].left_out == {"no value": 35}
    assert status.channels["state"].left_out == {"text": 35}
    held: dict[str, list[tuple[float | None, float | None]]] = {}
    for stream in server.streams():
        assert stream.status == "success"
        for name, series in server.points(stream.data_id).items():
            held.setdefault(name, []).extend(zip(series.times, series.values, strict=True))
    assert held["a"] == [(run.time + n, n) for n in range(35)]
    assert held["b"] == [(run.time + n, -n) for n in range(35) if n not in {14, 15, 30}]
    assert set(held) == {"a", "b"}


def test_a_signal_that_leaves_its_type_is_followed_value_by_value(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    soft = Signal(name="soft", value=0)

    def plan() -> Iterator[Any]:
        yield from bps.open_run()
        for value in (1, 2.5, True, None, "text", math.inf, np.float32(0.1)):
            soft.put(value)
            yield from bps.trigger_and_read([soft, det1])
        yield from bps.close_run()

    engine(plan())

    assert callback.drain(timeout_s=30)
    held: dict[str, list[float | None]] = {}
    for stream in server.streams():
        for name, series in server.points(stream.data_id).items():
            held.setdefault(name, []).extend(series.values)
    assert held["soft"] == [1.0, 2.5, 1.0, 0.10000000149011612]
    assert len(held["det1"]) == 7


def test_integers_that_lose_digits_arrive_rounded_and_are_counted_and_said_once(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(callback)
    primary = run.describe("ticks", "exact")
    for n in range(3):
        run.event(primary, ticks=2**60 + n, exact=2**60)
    assert status_of(callback, run).rounded == {"ticks": 2}  # 2**60 itself is a float
    run.stop()

    assert callback.drain(timeout_s=30)
    assert held(server) == {"ticks": [2.0**60] * 3, "exact": [2.0**60] * 3}
    assert [r.message.split(": ")[1] for r in caplog.records if "lost digits" in r.message] == [
        f"integers beyond 2**53 lost digits in ticks; `atomscale-bluesky status --spool-dir {spool_dir}` has the counts"
    ]


def test_thousands_of_channels_arrive(make_callback: MakeCallback, server: LocalServer) -> None:
    run = Run(make_callback(points_per_chunk=3))
    primary = run.describe(*(f"k{n}" for n in range(5000)))
    for row in range(4):
        run.event(primary, **{f"k{n}": n + row / 8 for n in range(5000)})
    run.stop()

    assert run.callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert (stream.status, stream.points) == ("success", 20_000)


def test_a_page_of_a_hundred_thousand_rows_crosses_many_chunks(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    rows = 100_000
    run = Run(make_callback(points_per_chunk=4000))
    primary = run.describe("a", "b")
    times = (run.time + np.arange(rows) / 1000).tolist()
    columns = {"a": np.arange(rows, dtype=float), "b": (np.arange(rows) / 8).tolist()}
    page = primary.compose_event_page(
        data=columns, timestamps=dict.fromkeys(columns, times), seq_num=list(range(1, rows + 1)), time=times,
        filled={}, uid=[str(n) for n in range(rows)], validate=False,
    )  # fmt: skip
    run.give("event_page", page)
    run.stop()

    assert run.callback.drain(timeout_s=60)
    (stream,) = server.streams()
    assert (stream.status, stream.points) == ("success", 2 * rows)
    points = server.points(stream.data_id)
    assert points["a"].values == list(map(float, range(rows)))
    assert points["b"].values == columns["b"]
    assert points["b"].times == pytest.approx(times, abs=1e-6)


def test_a_page_of_a_hundred_thousand_rows_is_taken_in_bounded_memory(quiet: AtomscaleCallback) -> None:
    rows = 100_000
    run = Run(quiet)
    primary = run.describe("a", "b")
    column = (np.arange(rows) / 8).tolist()
    page = page_of(primary, 1, a=column, b=column, times=[run.time + n / 1000 for n in range(rows)])
    tracemalloc.start()
    try:
        run.give("event_page", page)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert status_of(quiet, run).points.waiting == 2 * rows
    assert peak < 80 * 2**20
    run.stop()


def test_a_page_for_which_there_is_no_room_is_left_out_whole(make_callback: MakeCallback) -> None:
    run = Run(make_callback(offline=True, spool_max_bytes=1_000_000))
    primary = run.describe("a")
    run.event(primary, a=1)
    rows = 2000
    for _ in range(10):
        page = primary.compose_event_page(
            data={"a": list(range(rows))}, timestamps={"a": [run.time] * rows}, seq_num=list(range(rows)),
            time=[run.time] * rows, filled={}, uid=[str(uuid.uuid4()) for _ in range(rows)], validate=False,
        )  # fmt: skip
        run.give("event_page", page)
    run.stop()

    status = status_of(run.callback, run)
    assert_adds_up(status)
    assert status.points.seen == 10 * rows + 1
    assert status.points.waiting % rows == 1
    left_out = dict(status.points.left_out)
    assert left_out.pop("no room in the spool") >= rows
    assert not left_out


@pytest.mark.parametrize("same_number", [False, True], ids=["one more", "in the place of another"])
@pytest.mark.parametrize("page", [False, True], ids=["event", "page"])
def test_a_key_that_comes_later_is_a_channel_from_there_on(
    callback: AtomscaleCallback, page: bool, same_number: bool
) -> None:
    run = Run(callback)
    primary = run.describe("a", "b")

    def give(**data: float) -> None:
        if not page:
            run.give("event", primary.compose_event(
                data=data, timestamps=dict.fromkeys(data, run.time), time=run.time, validate=False))  # fmt: skip
            return
        run.give("event_page", primary.compose_event_page(
            data={key: [value, value] for key, value in data.items()},
            timestamps={key: [run.time] * 2 for key in data}, seq_num=[1, 2], time=[run.time] * 2, filled={},
            uid=[str(uuid.uuid4()) for _ in range(2)], validate=False))  # fmt: skip

    for n in range(3):
        give(a=n, b=n)
    for n in range(5):
        give(a=n, late=n) if same_number else give(a=n, b=n, late=n)
    give(a=1, b=1)
    run.stop()

    status = status_of(callback, run)
    assert_adds_up(status)
    rows = 2 if page else 1
    assert (status.channels["late"].seen, dict(status.channels["late"].left_out)) == (6 * rows, {"missing": rows})
    assert status.channels["a"].seen == 9 * rows


def test_a_key_that_a_second_descriptor_adds_is_a_channel(callback: AtomscaleCallback) -> None:
    run = Run(callback)
    first, text = run.describe("a", note={"source": "sim", "dtype": "string", "shape": []}), "x"
    run.event(first, a=1, note=text)
    second = str(uuid.uuid4())
    run.give("descriptor", {**first.descriptor_doc, "uid": second, "data_keys": dict.fromkeys("ab", NUMBER)})
    for n in range(4):  # as many keys as before, and no channel is missing
        event = first.compose_event(data={"a": n, "b": n}, timestamps={}, time=run.time, validate=False)
        run.give("event", event | {"descriptor": second})
    run.stop()

    status = status_of(callback, run)
    assert_adds_up(status)
    assert (status.channels["b"].seen, dict(status.channels["b"].left_out)) == (4, {})
    assert status.channels["a"].seen == 5


def test_ever_new_keys_are_counted_in_bounded_memory(callback: AtomscaleCallback) -> None:
    run = Run(callback)
    primary = run.describe("a")
    run.event(primary, a=0)
    for n in range(1500):
        data = {"a": n, f"image {n}": n}
        run.give("event", primary.compose_event(data=data, timestamps={}, time=run.time, validate=False))
    run.stop()

    status = status_of(callback, run)
    assert_adds_up(status)
    left_out = dict(status.points.left_out)
    assert left_out.pop("not there at first") == 1400  # the first hundred became channels
    assert left_out.keys() == {"missing"}
    assert status.channels["(other keys)"].seen == 400


@pytest.mark.parametrize("rows", [1, 2, 10])
def test_readings_of_a_page_that_came_too_late_are_counted_once(callback: AtomscaleCallback, rows: int) -> None:
    run = Run(callback)
    primary = run.describe("a")
    run.event(primary, a=0)
    for n in range(100):
        data = {"a": n, f"image {n}": n}
        run.give("event", primary.compose_event(data=data, timestamps={}, time=run.time, validate=False))
    for _ in range(2):
        times = [run.time + n for n in range(1, rows + 1)]  # a second apart, as a plan reads
        run.give("event_page", primary.compose_event_page(
            data={"a": [1] * rows, "late": [2] * rows}, timestamps={"a": times, "late": times}, time=times, filled={},
            seq_num=list(range(rows)), uid=[str(uuid.uuid4()) for _ in times], validate=False))  # fmt: skip
    run.stop()

    status = status_of(callback, run)
    assert_adds_up(status)
    assert status.points.left_out["not there at first"] == status.channels["late"].seen == 2 * rows


def test_an_event_too_long_for_any_line_is_left_out_and_counted(callback: AtomscaleCallback) -> None:
    run = Run(callback)
    primary = run.describe("a")
    run.event(primary, a=1)
    run.give("event", primary.compose_event(data={"a": 2}, timestamps={"a": run.time}, uid="x" * 70 * 2**20))
    run.event(primary, a=3)
    status = status_of(callback, run)
    assert status.points.seen == 2
    run.stop()

    status = status_of(callback, run)
    assert_adds_up(status)
    assert dict(status.points.left_out) == {"document too long": 1}


@pytest.mark.parametrize(
    ("first", "later", "points"),
    [
        (np.zeros(4), np.zeros(4 * 10**6), 4),
        ([0.0] * 4, [0.0] * 4 * 10**6, 4),
        (np.zeros(4), np.zeros((2048, 2048)), 4),
        ([0.0] * 4, [[0.0] * 2048] * 2048, 4),
        (["a"] * 10**6, ["a"] * 10**6, 0),
        (np.zeros(10**6), np.zeros(10**6), 0),
        (1.0, np.zeros((2048, 2048)), 1),
    ],
    ids=["array", "list", "picture", "rows", "texts", "long", "number"],
)
def test_a_value_of_any_size_holds_the_plan_for_a_moment(
    callback: AtomscaleCallback, first: Any, later: Any, points: int
) -> None:
    run = Run(callback)
    primary = run.describe("a", "b")
    run.event(primary, a=1, b=1)  # what a session does once is done
    other = run.describe("c", name="other")
    took_s: list[float] = []
    for value in (first, later, later):
        begin = time.thread_time()
        run.event(other, c=value)
        took_s.append(time.thread_time() - begin)
    run.stop()

    assert max(took_s) < 0.1
    status = status_of(callback, run)
    assert_adds_up(status)
    assert (
        sum(counts.waiting + counts.delivered for name, counts in status.channels.items() if name[0] == "c") == points
    )


def test_a_value_of_ten_megabytes_costs_no_point_beside_it(callback: AtomscaleCallback, server: LocalServer) -> None:
    run = Run(callback)
    primary = run.describe("a", text={"source": "sim", "dtype": "string", "shape": []})
    for n in range(3):
        run.event(primary, a=n, text="x" * 10**7)
    run.stop()

    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert values(server.points(stream.data_id)) == {"a": [0, 1, 2]}


# ---- malformed documents ---------------------------------------------------------------------------------------------


ODD = [None, 5, "text", b"", [], {}, math.nan, object(), {"uid": None}, [1], {"a": {"b": object()}}, ...]


def variants(doc: Mapping[str, Any]) -> Iterable[Any]:
    """A document with one member gone, or of another kind; then no document at all."""
    for member in doc:
        yield {key: value for key, value in doc.items() if key != member}
        for odd in ODD:
            yield {**doc, member: odd}
    yield from ODD


def test_readings_of_an_event_that_cannot_be_used_are_counted_in_the_account(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = compose_run(metadata={"synth_source_id": 42})
    primary = run.compose_descriptor(name="primary", data_keys={"a": NUMBER})
    callback("start", run.start_doc)
    callback("descriptor", primary.descriptor_doc)
    for n in range(2):
        callback("event", primary.compose_event(data={"a": n}, timestamps={"a": 1.0}))
    server.unreachable()
    callback("event", {**primary.compose_event(data={"a": 2}, timestamps={"a": 1.0}), "time": math.nan})
    callback("event_page", {**page_of(primary, 3, a=[3, 4, 5], times=[1.0, 2.0, 3.0]), "time": [1.0]})
    callback("stop", run.compose_stop())

    (status,) = callback.status()
    counts = status.channels["a"]
    assert (counts.seen, counts.waiting, counts.left_out) == (6, 2, {"malformed document": 4})
    server.reachable()


@pytest.mark.parametrize("kind", ["start", "descriptor", "event", "event_page", "stop"])
def test_no_malformed_document_ever_raises_and_runs_beside_it_go_on(
    callback: AtomscaleCallback, server: LocalServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = Run(callback)
    primary = healthy.describe("a")
    sick = compose_run(metadata={"synth_source_id": 42})
    described = sick.compose_descriptor(name="primary", data_keys={"a": NUMBER})
    docs: dict[str, Any] = {
        "start": sick.start_doc,
        "descriptor": described.descriptor_doc,
        "event": described.compose_event(data={"a": 1}, timestamps={"a": 1.0}),
        "event_page": page_of(described, 2, a=[1, 2], times=[1.0, 2.0]),
        "stop": sick.compose_stop(),
    }
    order = list(docs)
    for n, broken in enumerate(variants(docs[kind])):
        for name in order[: order.index(kind)]:
            callback(name, docs[name])
        callback(kind, broken)
        healthy.event(primary, a=n)
    callback("stop", docs["stop"])
    healthy.stop()

    assert callback.ignored["malformed document"] >= len(ODD)
    said = [record.message for record in caplog.records if "could not be used, the run goes on" in record.message]
    assert len([line for line in said if line.startswith(f"a document of kind {kind!r} ")]) == 1

    assert [one.points.lost for one in callback.status() if one.run_uid == healthy.uid] in (
        [0],
        [],
    )  # delivered already
    callback.drain(timeout_s=30)
    series = [server.points(s.data_id) for s in server.streams() if s.points > n]
    assert any(values(points).get("a") == [float(i) for i in range(n + 1)] for points in series)


@pytest.mark.parametrize("name", ["bulk_datum", "datum_page", "stream_resource"])
def test_documents_of_kinds_without_readings_are_nobodys_business(quiet: AtomscaleCallback, name: str) -> None:
    quiet(name, {"uid": "x"})
    quiet(name, None)  # type: ignore[arg-type]

    assert dict(quiet.ignored) == {}


@pytest.mark.parametrize("name", ["", "EVENT", None, 7, b"event", ("event",)])
def test_documents_of_unknown_kinds_are_counted(quiet: AtomscaleCallback, name: Any) -> None:
    quiet(name, {"uid": "x"})
    quiet(name, None)  # type: ignore[arg-type]

    assert dict(quiet.ignored) == {"unknown kind": 1, "malformed document": 1}


A_DESCRIPTOR_BEHIND_ITS_STOP = [
    (name, which, False)
    for name, which in (("start", 0), ("start", 1), ("stop", 0), ("descriptor", 0), ("event", 0), ("stop", 1))
]


A_STOP_THAT_COMES_TWICE = [
    (name, which, False)
    for name, which in (
        ("start", 0),
        ("start", 1),
        ("stop", 1),
        ("descriptor", 1),
        ("stop", 1),
        ("event", 1),
        ("stop", 0),
    )
]


@settings(max_examples=60)
@example(A_DESCRIPTOR_BEHIND_ITS_STOP)
@example(A_STOP_THAT_COMES_TWICE)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "descriptor", "event", "event_page", "stop"]),
            st.integers(0, 1),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_documents_in_any_order_never_raise_and_the_account_adds_up(
    tmp_path_factory: pytest.TempPathFactory, order: list[tuple[str, int, bool]]
) -> None:
    callback = AtomscaleCallback(spool_dir=tmp_path_factory.mktemp("spool"), points_per_chunk=3)
    runs = [compose_run(metadata={"synth_source_id": n}) for n in range(2)]
    described = [run.compose_descriptor(name="primary", data_keys={"a": NUMBER}) for run in runs]
    taken = 0
    early = [0, 0]  # readings that wait for their descriptor
    of_any_run: set[int] = set()  # the runs of which some waited when another run ended
    open_runs: set[int] = set()
    known: set[int] = set()  # runs whose descriptor came after their start
    ended: set[int] = set()
    ready: set[int] = set()
    for n, (name, which, odd) in enumerate(order):
        if name == "start":
            doc: Any = runs[which].start_doc
            open_runs |= {which} - ended  # a run that was taken to its end is not taken again
        elif name == "descriptor":
            doc = described[which].descriptor_doc
            ready |= {which} & open_runs
            known |= {which} & (open_runs | ended)  # the events of an ended run are nobody else's
            if which in open_runs:
                taken, early[which] = taken + early[which], 0
                of_any_run.discard(which)
        elif name == "stop":
            doc = {"run_start": runs[which].start_doc["uid"], "uid": str(n), "time": 5.0, "exit_status": "success"}
            if open_runs == {which}:  # then they can only be this run's, or of a run that has ended since
                taken += sum(readings for n, readings in enumerate(early) if n not in of_any_run)
                early, of_any_run = [0, 0], set()
            elif which in open_runs | ended:
                of_any_run |= {n for n, readings in enumerate(early) if readings}
            ended |= {which} & open_runs
            open_runs.discard(which)
            ready.discard(which)
        elif name == "event":
            value = "text" if odd else 1.5
            doc = {"descriptor": described[which].descriptor_doc["uid"], "uid": str(n), "time": 5.0, "seq_num": 1}
            doc |= {"data": {"a": value}, "timestamps": {"a": 5.0}, "filled": {}}
            taken += which in ready
            early[which] += bool(open_runs) and which not in known
        else:
            doc = page_of(described[which], 1, a=[1, "x"] if odd else [1, 2], times=[5.0, 6.0])
            taken += 2 * (which in ready)
            early[which] += 2 * (bool(open_runs) and which not in known)
        callback(name, doc)

    statuses = callback.status()
    callback.close(timeout_s=0)

    for status in statuses:
        assert_adds_up(status)
    assert sum(status.points.seen for status in statuses) == taken


def test_documents_without_the_run_s_beginning_are_logged_once_with_the_remedy(
    make_callback: MakeCallback, caplog: pytest.LogCaptureFixture
) -> None:
    callback = make_callback(offline=True)
    for _ in range(3):  # as where it is subscribed to events alone
        for name, doc in growth(points=2):
            if name in {"event", "descriptor"}:
                callback(name, doc)

    (record,) = [record for record in caplog.records if "never came" in record.message]
    assert "`RE.subscribe(callback)`" in record.message
    assert callback.ignored == {"descriptor": 3, "event": 6}
