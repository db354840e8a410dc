"""The same run gives the same points, whichever way and in whichever form its documents come."""

from __future__ import annotations

import time
import uuid
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky import plans as bp
from click.testing import CliRunner
from event_model import RunRouter, pack_event_page
from ophyd.sim import det1, det2, motor
from runs import Document, growth

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.cli import commands
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
Points = dict[str, list[tuple[float, float | None]]]

T0 = round(time.time()) - 3600.0


def number(**more: Any) -> dict[str, Any]:
    return {"source": "sim", "dtype": "number", "shape": [], **more}


def run_of(*documents: Document, **metadata: Any) -> list[Document]:
    start = {"uid": str(uuid.uuid4()), "time": T0, "plan_name": "grow", **metadata}
    stop = {"uid": str(uuid.uuid4()), "run_start": start["uid"], "time": T0 + 900, "exit_status": "success"}
    described = [(name, doc | {"run_start": start["uid"]} if name == "descriptor" else doc) for name, doc in documents]
    return [("start", start), *described, ("stop", stop)]


def descriptor(uid: str, name: str, **data_keys: dict[str, Any]) -> Document:
    return "descriptor", {"uid": uid, "name": name, "time": T0, "data_keys": data_keys}


def event(descriptor: str, at: float, data: dict[str, Any], stamps: dict[str, float] | float | None = None) -> Document:
    stamps = T0 + at if stamps is None else stamps
    return "event", {
        "uid": str(uuid.uuid4()), "descriptor": descriptor, "time": T0 + at, "seq_num": 1, "data": data, "filled": {},
        "timestamps": stamps if isinstance(stamps, dict) else dict.fromkeys(data, stamps),
    }  # fmt: skip


def page(events: Iterable[Document]) -> Document:
    return "event_page", dict(pack_event_page(*(doc for _, doc in events)))


def play(callback: Callable[..., object], documents: Iterable[Document]) -> None:
    for name, doc in documents:
        callback(name, doc)


def points(server: LocalServer) -> Points:
    found: Points = {}
    for stream in server.streams():
        for name, series in server.points(stream.data_id).items():
            found.setdefault(name, []).extend(
                (round(at - T0, 3), value)
                for at, value in zip(series.times, series.values, strict=True)
                if at is not None
            )
    return {name: sorted(values) for name, values in found.items()}


@pytest.mark.parametrize("paged", [False, True])
def test_what_was_odd_about_times_is_logged_with_counts_and_ordinary_times_are_not(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture, paged: bool
) -> None:
    keys = {"a": number(), "b": number(), "c": number()}
    values = {"a": 1.0, "b": 2.0, "c": 3.0}
    events = [
        event("old", 2, values, -100.0 + T0),  # the value that three signals had before
        event("old", 3, values, {"a": T0 - 0.5, "b": T0 + 3, "c": 7.0}),  # one is no time of this run
        event("old", 4, values),
    ]
    young = [event("young", 0.25, {"d": 1.0}, T0 - 0.5), event("young", 5, {"d": 2.0})]
    given = [page(events), page(young)] if paged else [*events, *young]
    with caplog.at_level("INFO", logger="atomscale_bluesky"):
        play(
            callback,
            run_of(descriptor("old", "a_monitor", **keys), descriptor("young", "d_monitor", d=number()), *given),
        )
    assert callback.drain(20)

    said = "\n".join(record.getMessage() for record in caplog.records)
    assert said.count("readings were taken before the run") == 1
    assert ": 4 readings were taken before the run; they have their event's time" in said
    assert said.count("readings had impossible times") == 1
    assert ": 1 readings had impossible times and got their event's" in said
    assert "no Unix seconds" not in said
    assert points(server)["a"] == [(2.0, 1.0), (3.0, 1.0), (4.0, 1.0)]
    assert points(server)["d"] == [(-0.5, 1.0), (5.0, 2.0)]


def test_a_plan_through_a_run_router_gives_the_same_points_as_directly(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    motor.delay = 0
    direct, routed = make_callback(), make_callback()
    engine = RunEngine()
    times: list[float] = []
    engine.subscribe(direct)
    engine(bp.scan([det1, det2], motor, -1, 1, 12))
    engine.unsubscribe(0)
    engine.subscribe(RunRouter([lambda name, doc: ([routed], [])]))
    engine.subscribe(lambda name, doc: times.append(doc["time"]), "event")
    engine(bp.scan([det1, det2], motor, -1, 1, 12))
    assert direct.drain(10)
    assert routed.drain(10)

    first, second = server.streams()
    assert server.points(first.data_id).keys() == server.points(second.data_id).keys()
    assert [round(at, 3) for at in server.points(second.data_id)["motor"].times if at] == [round(at, 3) for at in times]


FLIGHT = [event("d", 5.1 + i * 1e-4, {"i0": 1.0 + i}, T0 + 1 + 0.1 * i) for i in range(10)]
FLOWN = [(round(1 + 0.1 * i, 3), 1.0 + i) for i in range(10)]


def exported(documents: list[Document]) -> Iterator[Document]:
    """What a catalogue gives: events with uids of its own."""
    for n, (name, doc) in enumerate(documents):
        yield name, doc | {"uid": f"event-{doc['descriptor']}-{n}"} if name == "event" else doc


def test_a_flyers_pages_and_its_exported_events_are_the_same_run(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    described = descriptor("d", "i0_fly", i0=number(units="A"))
    live = run_of(described, page(FLIGHT[:6]), page(FLIGHT[6:]))
    first = make_callback()
    play(first, live[:3])
    first.close()
    second = make_callback()
    play(second, exported([live[0], described, *FLIGHT, live[-1]]))
    assert second.drain(20)

    assert points(server) == {"i0": FLOWN}


@pytest.mark.parametrize("sizes", [[10], [1] * 10, [3, 7]])
def test_the_size_of_pages_changes_nothing(make_callback: MakeCallback, server: LocalServer, sizes: list[int]) -> None:
    callback = make_callback()
    rest = iter(FLIGHT)
    pages = [page([next(rest) for _ in range(size)]) for size in sizes]
    play(callback, run_of(descriptor("d", "i0_fly", i0=number()), *pages))
    assert callback.drain(20)

    assert points(server) == {"i0": FLOWN}
    assert len(server.streams()) == 1 + 1  # the run's own, without a primary event stream, and the flyer's


MALFORMED: list[dict[str, Any]] = [
    {"data": [1.0]}, {"data": "x"}, {"data": None}, {"uid": b"x"}, {"uid": "\udc80"}, {"time": None}, {"time": "noon"},
]  # fmt: skip


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("bad", MALFORMED, ids=str)
def test_a_malformed_event_says_nothing_about_the_times_of_the_next(
    make_callback: MakeCallback, server: LocalServer, bad: dict[str, Any], paged: bool
) -> None:
    rows = [event("d", 60.0 + n / 10**5, {"I": float(n)}, T0 + 40.0 + n) for n in range(4)]  # collected from a flyer
    malformed: Document = "event", event("d", 61.0, {"I": 9.0})[1] | bad  # as if a plan had read it
    if paged:
        columns = {name: [malformed[1][name]] for name in ("uid", "time", "seq_num")}
        data = malformed[1]["data"]
        columns["data"] = {"I": [9.0]} if isinstance(data, dict) else data
        malformed = "event_page", {"descriptor": "d", "timestamps": {"I": [T0 + 61.0]}, "filled": {}, **columns}
    callback = make_callback()
    play(callback, run_of(descriptor("d", "fly", I=number()), rows[0], malformed, *rows[1:]))
    assert callback.drain(20)

    taken = {value: at for at, value in points(server)["I"]}
    assert {value: at for value, at in taken.items() if value < 9} == {float(n): 40.0 + n for n in range(4)}
    assert callback.ignored["malformed document"] == 1


def test_a_flyer_with_two_clocks_leaves_the_first_point_of_some_keys_apart(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    rows = [
        event("d", 60.0 + n / 10**5, {"i": float(n), "j": n + 0.5, "k": n + 0.25},
              {"i": T0 + 20.0 + n, "j": T0 + 19.5 + n, "k": T0 + 19.5 + n})
        for n in range(12)
    ]  # fmt: skip
    callback = make_callback()
    play(callback, run_of(descriptor("d", "fly", i=number(), j=number(), k=number()), page(rows)))
    assert callback.drain(20)

    assert points(server) == {
        "i": [(20.0 + n, float(n)) for n in range(12)],
        "j": [(20.0, 0.5), *((19.5 + n, n + 0.5) for n in range(1, 12))],
        "k": [(20.0, 0.25), *((19.5 + n, n + 0.25) for n in range(1, 12))],
    }
    held = [
        {name: len(series.times) for name, series in server.points(stream.data_id).items()}
        for stream in server.streams()
    ]
    assert sorted(held, key=str) == [{"i": 12}, {"j": 1, "k": 1}, {"j": 11, "k": 11}, {}]


def test_a_page_without_rows_says_nothing_wherever_it_comes(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = {"uid": [], "time": [], "seq_num": [], "filled": {}, "data": {"T": []}, "timestamps": {"T": []}}
    documents = run_of(descriptor("d", "primary", T=number()), event("d", 1, {"T": 1.0}), synth_source_id=42)
    given = [
        one
        for document in documents
        for one in (
            document,
            ("event_page", nothing | {"descriptor": "d"}),
            ("event_page", nothing | {"descriptor": "e"}),
        )
    ]
    callback = make_callback()
    play(callback, [*given[1:3], *given])
    assert callback.drain(20)

    assert callback.ignored == {}
    assert points(server) == {"T": [(1.0, 1.0)]}
    assert [stream.points for stream in server.streams()] == [1]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


def test_relative_stamps_of_a_flyer_keep_their_spacing(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    flight = [event("d", 5.0 + i * 1e-4, {"counts": float(i)}, i / 100) for i in range(40)]
    callback = make_callback()
    play(callback, run_of(descriptor("d", "panda", counts=number()), page(flight)))
    assert callback.drain(20)

    assert points(server) == {"counts": [(i / 100, float(i)) for i in range(40)]}
    assert "time stamps are no Unix seconds, the first is 0.0" in caplog.text


def test_a_monitors_value_from_before_the_run_has_its_events_time(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    before, after = T0 - 7200.0, T0 + 7.0
    documents = run_of(
        descriptor("d", "valve_monitor", valve=number()),
        event("d", 0.5, {"valve": 1.0}, before),
        event("d", 7.1, {"valve": 0.0}, after),
    )
    callback = make_callback()
    play(callback, documents)
    assert callback.drain(20)

    assert points(server) == {"valve": [(0.5, 1.0), (7.0, 0.0)]}


@pytest.mark.parametrize("taken", [1, 2, 3, 8])
@pytest.mark.parametrize("finished", [True, False])
def test_a_consumer_that_restarts_goes_on_with_the_run(
    make_callback: MakeCallback, server: LocalServer, taken: int, finished: bool
) -> None:
    documents = list(growth(points=12, keys=1))
    documents[0] = ("start", documents[0][1] | {"time": T0})
    first = make_callback(**({} if finished else {"offline": True}))
    play(first, documents[:taken])
    first.close()
    second = make_callback()
    play(second, documents[taken:])
    assert second.drain(20)

    if taken >= 2:
        assert second.ignored == {}
    held = sorted(value for values in points(server).values() for _, value in values)
    assert held == [float(n) for n in range(12)]


@pytest.mark.parametrize("finished", [True, False])
def test_a_descriptor_that_comes_alone_is_there_for_the_next_process(
    make_callback: MakeCallback, server: LocalServer, finished: bool
) -> None:
    later = [event("fly", n, {"I": n + 0.5}) for n in range(3)]
    documents = run_of(descriptor("d", "primary", T=number()), event("d", 0, {"T": 1.0}))
    stop = documents.pop()
    described = "descriptor", descriptor("fly", "fly", I=number())[1] | {"run_start": documents[0][1]["uid"]}
    for given in (documents, [described]):
        callback = make_callback(**({} if finished else {"offline": True}))
        play(callback, given)
        callback.close()
    last = make_callback()
    play(last, [*later, stop])
    assert last.drain(20)

    assert last.ignored == {}
    assert points(server) == {"T": [(0.0, 1.0)], "I": [(float(n), n + 0.5) for n in range(3)]}
    assert [stream.points for stream in server.streams()] == [1, 3]


@pytest.mark.parametrize("finished", [True, False])
def test_what_was_left_out_is_counted_once_when_a_run_is_replayed(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, finished: bool
) -> None:
    documents = run_of(
        descriptor("b", "baseline", z=number()),
        descriptor("d", "primary", T=number()),
        event("b", 0, {"z": 1.0}),
        *(event("d", n, {"T": n + 0.5}) for n in range(3)),
        ("event", event("d", 3, {"T": 9.0})[1] | {"time": None}),
        *(event("d", n, {"T": n + 0.5}) for n in range(4, 6)),
        event("b", 7, {"z": 2.0}),
    )
    first = make_callback(**({} if finished else {"offline": True}))
    play(first, [*documents[:8], documents[3]])
    first.close()
    second = make_callback()
    play(second, [*documents[:-1], documents[-2], documents[-1]])
    assert second.drain(20)
    second.close()

    entries = Spool(spool_dir, read_only=True).history.entries()
    left_out = sum((Counter(entry["left_out"]) for entry in entries), Counter())
    assert left_out == {"event stream not selected": 2, "malformed document": 1}
    assert points(server) == {"T": [(float(n), n + 0.5) for n in (0, 1, 2, 4, 5)]}


@pytest.mark.parametrize("finished", [True, False])
def test_events_that_a_restart_has_missed_are_reported_at_the_stop(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, finished: bool, caplog: pytest.LogCaptureFixture
) -> None:
    documents = list(growth(points=12, keys=1))
    first = make_callback(**({} if finished else {"offline": True}))
    play(first, documents[:6])
    first.close()
    second = make_callback()
    play(second, documents[9:])
    assert second.drain(20)
    second.close()

    shown = CliRunner().invoke(commands, ["status", "--all", "--spool-dir", str(spool_dir)], env={"COLUMNS": "200"})
    assert "not given  3 events of primary, which the stop document counts, never came" in shown.output
    assert "counts events that never came: 3 of event stream 'primary'" in caplog.text


@pytest.mark.parametrize("what_came_before", ["nothing", "a restart", "a close"])
def test_a_second_start_document_hides_no_event_that_never_came(
    make_callback: MakeCallback, what_came_before: str
) -> None:
    events = [event("d", n, {"T": float(n)}) for n in range(5)]
    start, described, *_, stop = run_of(descriptor("d", "primary", T=number()), *events)
    stop[1]["num_events"] = {"primary": 8}
    callback = make_callback(offline=True)
    play(callback, [start, described, *events[:2]])
    if what_came_before != "nothing":
        callback.close()
    if what_came_before == "a restart":
        callback = make_callback(offline=True)
        play(callback, [start, described])
    play(callback, [events[2], start, described, *events[3:], stop])

    assert [run.not_given for run in callback.status() if run.not_given] == [{"primary": 3}]


def test_a_complete_run_has_nothing_that_was_not_given(make_callback: MakeCallback, server: LocalServer) -> None:
    again = event("d", 4, {"T": 4.0})[1] | {"seq_num": 3}  # taken again after a pause
    frames = descriptor("f", "camera", frame=number(external="STREAM:"), T2=number())
    documents = run_of(
        descriptor("d", "primary", T=number()), frames, *(event("d", n, {"T": float(n)}) for n in range(3)),
        ("event", again), event("f", 5, {"T2": 1.0}),
    )  # fmt: skip
    documents[-1][1]["num_events"] = {"primary": 3, "camera": 100, "baseline": 2}
    callback = make_callback(offline=True)
    play(callback, documents)

    assert [run.not_given for run in callback.status()] == [{}]


@pytest.mark.parametrize("finished", [True, False])
def test_a_stop_that_comes_alone_ends_the_run(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, finished: bool
) -> None:
    documents = run_of(descriptor("d", "primary", T=number()), *(event("d", n, {"T": n + 0.5}) for n in range(3)))
    first = make_callback(**({} if finished else {"offline": True}))
    play(first, documents[:-1])
    first.close()
    second = make_callback()
    play(second, documents[-1:])
    assert second.drain(20)
    second.close()
    again = make_callback()
    play(again, documents)

    assert again.ignored == {"run taken before": 1}
    assert [stream.points for stream in server.streams()] == [3]
    told = CliRunner().invoke(commands, ["status", "--all", "--spool-dir", str(spool_dir)]).output
    assert "no stop document came" not in told
    assert "it went on" in told


@pytest.mark.parametrize("lengths", [[2, 3, 4, 5] * 3, [1, 3, 2, 4] * 3, [0, 3, 2, 3] * 3, [20, 3, 2, 3] * 3], ids=str)
@pytest.mark.parametrize("paged", [False, True])
def test_each_element_of_a_ragged_array_arrives(
    make_callback: MakeCallback, server: LocalServer, lengths: list[int], paged: bool
) -> None:
    values = [[100.0 * n + i for i in range(length)] for n, length in enumerate(lengths)]
    events = [event("d", n, {"peaks": one}) for n, one in enumerate(values)]
    described = descriptor("d", "primary", peaks={"source": "sim", "dtype": "array", "shape": [None]})
    callback = make_callback()
    play(callback, run_of(described, *([page(events)] if paged else events)))
    assert callback.drain(20)

    held = sorted(value for one in points(server).values() for _, value in one if value is not None)
    assert held == sorted(value for one in values for value in one if len(one) <= 16)


@pytest.mark.parametrize("paged", [False, True])
def test_a_key_that_comes_later_becomes_a_channel(
    make_callback: MakeCallback, server: LocalServer, paged: bool
) -> None:
    events = [event("d", n, {"T": float(n)} | ({"fit": n + 0.5} if n >= 5 else {})) for n in range(12)]
    given = [page(events[:5]), page(events[5:])] if paged else events
    callback = make_callback()
    play(callback, run_of(descriptor("d", "primary", T=number()), *given))
    assert callback.drain(20)

    assert points(server) == {
        "T": [(float(n), float(n)) for n in range(12)], "fit": [(float(n), n + 0.5) for n in range(5, 12)],
    }  # fmt: skip


def test_a_unit_that_changes_gives_a_channel_of_another_name(make_callback: MakeCallback, server: LocalServer) -> None:
    documents = run_of(
        descriptor("mm", "primary", t=number(units="mm"), P=number(units="K")),
        *(event("mm", n, {"t": float(n), "P": 1.0}) for n in range(3)),
        descriptor("um", "primary", t=number(units="um"), P=number(units="K")),
        *(event("um", n, {"t": 1000.0 * n, "P": 1.0}) for n in range(3, 6)),
    )
    callback = make_callback()
    play(callback, documents)
    assert callback.drain(20)

    assert points(server)["t"] == [(float(n), float(n)) for n in range(3)]
    assert points(server)["t (um)"] == [(float(n), 1000.0 * n) for n in range(3, 6)]
    units = {
        name: series.units for stream in server.streams() for name, series in server.points(stream.data_id).items()
    }
    assert units == {"t": "mm", "t (um)": "um", "P": "K"}


def test_a_part_of_an_event_that_a_kill_took_is_taken_again(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    events = [event("d", n, {"a": n + 0.5, "b": n + 0.25}, {"a": T0 + n, "b": T0 + n / 2 + 0.25}) for n in range(4)]
    documents = run_of(descriptor("d", "gauge_monitor", a=number(), b=number()), *events)
    first = make_callback(offline=True)
    play(first, documents[:-1])
    first.close()
    (journal,) = spool_dir.glob("*/journal-0001.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert lines[-1].endswith(b'"interrupted":true,"rows":{"gauge_monitor":4,"gauge_monitor/b":4}}\n')
    journal.write_bytes(b"".join(lines[:-2]))  # as if killed while the last event was written
    second = make_callback()
    play(second, documents)
    assert second.drain(20)

    assert points(server) == {
        "a": [(float(n), n + 0.5) for n in range(4)], "b": [(n / 2 + 0.25, n + 0.25) for n in range(4)],
    }  # fmt: skip


@pytest.mark.parametrize("made_up", [False, True])
def test_a_part_that_a_kill_took_is_taken_again_when_another_event_has_one_like_it(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, made_up: bool
) -> None:
    events = [event("d", n, {"a": n + 0.5, "b": 7.0}, {"a": T0 + n, "b": T0}) for n in range(4)]
    documents = run_of(descriptor("d", "gauge_monitor", a=number(), b=number()), *events)
    for given in (documents[:4], documents[3:5]):
        callback = make_callback(offline=True)
        play(callback, given)
        callback.close()
        journal = max(spool_dir.glob("*/journal-0001.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        lines = journal.read_bytes().splitlines(keepends=True)
        assert b'"stop"' in lines[-1]
        journal.write_bytes(b"".join(lines[:-2]))  # as if killed while the last event was written
    last = make_callback()
    uids = (lambda: {"uid": str(uuid.uuid4())}) if made_up else dict[str, str]
    play(last, [(name, doc | uids() if name == "event" else doc) for name, doc in documents])
    assert last.drain(20)

    assert points(server) == {"a": [(float(n), n + 0.5) for n in range(4)], "b": [(0.0, 7.0)] * 4}


def test_a_part_that_a_catalogue_has_brought_keeps_its_event_known_for_the_next_replay(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    events = [event("d", n, {"a": n + 0.5, "b": 7.0}, {"a": T0 + n, "b": T0}) for n in range(1, 4)]
    documents = run_of(descriptor("d", "gauge_monitor", a=number(), b=number()), *events)
    killed = make_callback(offline=True)
    play(killed, documents[:3])
    killed.close()
    (journal,) = spool_dir.glob("*/journal-0001.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b'"stop"' in lines[-1]
    journal.write_bytes(b"".join(lines[:-2]))  # as if killed while the first event was written
    exported = [
        (name, doc | {"uid": f"event-{number}"} if name == "event" else doc)
        for number, (name, doc) in enumerate(documents)
    ]
    for given in (exported[:-1], exported):
        callback = make_callback()
        play(callback, given)
        callback.close()
    assert make_callback().drain(20)

    assert points(server) == {"a": [(float(n), n + 0.5) for n in range(1, 4)], "b": [(0.0, 7.0)] * 3}


@pytest.mark.parametrize("paged", [False, True])
def test_parts_from_two_interruptions_are_not_taken_again_with_the_part_that_is_missing(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, paged: bool
) -> None:
    keys = {"a": number(), "b": number(), "c": number()}
    own = [{"a": T0 + n, "b": T0 + n / 2, "c": T0 + n / 4} for n in range(1, 4)]
    events = [event("d", n, {"a": n + 0.5, "b": 7.0, "c": 8.0}, own[n - 1]) for n in range(1, 4)]
    documents = run_of(descriptor("d", "gauge_monitor", **keys), *events)
    for made_up, rows_of_the_last in ((False, 1), (True, 1)):  # the first row, then the second
        callback = make_callback(offline=True)
        for name, doc in documents[:3]:
            callback(name, doc | {"uid": f"event-{made_up}"} if made_up and name == "event" else doc)
        callback.close()
        journal = max(spool_dir.glob("*/journal-0001.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        lines = journal.read_bytes().splitlines(keepends=True)
        rows = [place for place, text in enumerate(lines) if text.startswith(b"\xf5row")]
        journal.write_bytes(b"".join(lines[: rows[0] + rows_of_the_last]))  # as if killed while the event was written
    again = [(name, doc | {"uid": f"event-again-{n}"}) for n, (name, doc) in enumerate(documents[2:-1])]
    last = make_callback()
    play(last, [*documents[:2], *([page(again)] if paged else again), documents[-1]])
    assert last.drain(20)

    assert points(server) == {
        "a": [(float(n), n + 0.5) for n in range(1, 4)],
        "b": [(n / 2, 7.0) for n in range(1, 4)],
        "c": [(n / 4, 8.0) for n in range(1, 4)],
    }


@pytest.mark.parametrize("again", ["not at all", "as they were", "with other uids"])
@pytest.mark.parametrize("late", [False, True])
def test_an_event_stream_is_called_like_another_one_and_a_key_that_has_times_of_its_own(
    make_callback: MakeCallback, server: LocalServer, late: bool, again: str
) -> None:
    first = descriptor("d", "m_monitor", a=number(), y=number())
    second = descriptor("e", "m_monitor/y", z=number())
    own = [event("d", n, {"a": n + 0.5, "y": n + 0.25}, {"a": T0 + n, "y": T0 + n / 2}) for n in range(1, 4)]
    other = [event("e", n, {"z": n + 0.75}) for n in range(1, 4)]
    documents = run_of(*([first, *own, second, *other] if late else [first, second, *own, *other]))
    callback = make_callback()
    play(callback, documents if again == "not at all" else documents[:-2])
    if again != "not at all":
        callback.close()
        callback = make_callback()
        given = [
            (name, doc | {"uid": f"event-{n}"} if name == "event" else doc) for n, (name, doc) in enumerate(documents)
        ]
        play(callback, given if again == "with other uids" else documents)
    assert callback.drain(20)

    assert points(server) == {
        "a": [(float(n), n + 0.5) for n in range(1, 4)],
        "y": [(n / 2, n + 0.25) for n in range(1, 4)],
        "z": [(float(n), n + 0.75) for n in range(1, 4)],
    }


# ---- forms of documents that public reports describe -----------------------------------------------------------------


def test_documents_that_are_views_of_other_mappings_are_taken(callback: AtomscaleCallback, server: LocalServer) -> None:
    documents = run_of(descriptor("d", "primary", a=number()), event("d", 1, {"a": 1.0}), event("d", 2, {"a": 2.0}))
    for name, doc in documents:
        if name == "event":
            doc["data"] = ChainMap({}, doc["data"])
        callback(name, ChainMap({}, doc))

    assert callback.drain(20)
    assert points(server) == {"a": [(1.0, 1.0), (2.0, 2.0)]}


def test_the_stamp_of_a_record_that_was_never_processed_gives_way_to_the_events_time(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    epics_epoch = 631152000.0
    play(
        callback,
        run_of(
            descriptor("plan", "primary", a=number()),
            descriptor("monitor", "b_monitor", b=number()),
            descriptor("flyer", "fly", c=number()),
            event("plan", 1, {"a": 1.0}, epics_epoch),
            event("monitor", 2, {"b": 2.0}, epics_epoch),
            event("flyer", 3, {"c": 3.0}, epics_epoch),
            event("flyer", 3.0001, {"c": 3.5}, epics_epoch + 1),
        ),
    )

    assert callback.drain(20)
    assert points(server) == {"a": [(1.0, 1.0)], "b": [(2.0, 2.0)], "c": [(3.0, 3.0), (3.0, 3.5)]}


def test_a_value_of_a_structured_type_is_left_out_and_counted(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    pairs = np.array([(1, 2), (3, 4)], dtype=[("x", "f4"), ("y", "f4")])
    key = number(dtype="array", shape=[2], dtype_numpy=[["x", "<f4"], ["y", "<f4"]])
    play(
        callback,
        run_of(
            descriptor("d", "primary", a=number(), t=key),
            event("d", 1, {"a": 1.0, "t": pairs}),
            event("d", 2, {"a": 2.0, "t": pairs[0]}),
        ),
    )

    assert callback.drain(20)
    assert points(server) == {"a": [(1.0, 1.0), (2.0, 2.0)]}
    assert [entry["left_out"] for entry in Spool(spool_dir).history.entries()] == [{"array": 2}]


def test_an_external_number_is_taken_if_filled_says_nothing_about_its_key(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    play(
        callback,
        run_of(
            descriptor("d", "primary", a=number(), x=number(external="FILESTORE:")),
            event("d", 1, {"a": 1.0, "x": 7.0}),
            event("d", 2, {"a": 2.0, "x": "datum/1"}),
        ),
    )

    assert callback.drain(20)
    assert points(server) == {"a": [(1.0, 1.0), (2.0, 2.0)], "x": [(1.0, 7.0)]}
    assert [entry["left_out"] for entry in Spool(spool_dir).history.entries()] == [{"text": 1}]


def external_run() -> list[Document]:
    """A run whose external numbers are filled in twice; the others stand for files."""
    given = [("datum/0", False), (5.0, True), (1002, False), (1003, False), (6.0, True)]
    events = [event("d", n, {"x": x, "T": 20.0 + n}) for n, (x, _) in enumerate(given, start=1)]
    for (_, doc), (_, filled) in zip(events, given, strict=True):
        doc["filled"] = {"x": filled}
    return run_of(descriptor("d", "primary", x=number(external="FILESTORE:"), T=number()), *events)


FORMS: dict[str, Callable[[list[Document]], list[Document]]] = {
    "events": lambda events: events,
    "one page": lambda events: [page(events)],
    "pages": lambda events: [page([one]) for one in events],
    "a page, then events": lambda events: [page(events[:2]), *events[2:]],
    "bulk events": lambda events: [("bulk_events", {"d": [doc for _, doc in events]})],
}


@pytest.mark.parametrize("form", FORMS)
def test_an_external_number_that_is_not_filled_in_is_no_point_behind_one_that_is(
    make_callback: MakeCallback, server: LocalServer, form: str
) -> None:
    start, described, *events, stop = external_run()
    callback = make_callback()

    play(callback, [start, described, *FORMS[form](events), stop])

    assert callback.drain(20)
    assert points(server) == {"x": [(2.0, 5.0), (5.0, 6.0)], "T": [(float(n), 20.0 + n) for n in range(1, 6)]}


def test_an_external_number_that_is_not_filled_in_is_no_point_in_the_place_of_a_missing_key(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    datum = event("second", 3, {"T": 3.0, "x": 1002})
    datum[1]["filled"] = {"x": False}
    play(
        callback,
        run_of(
            descriptor("first", "primary", T=number(), U=number()),
            descriptor("second", "primary", T=number(), U=number(), x=number(external="FILESTORE:")),
            event("first", 1, {"T": 1.0, "U": 10.0}),
            event("second", 2, {"T": 2.0, "U": 20.0}),
            datum,
        ),
    )

    assert callback.drain(20)
    assert points(server) == {"T": [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)], "U": [(1.0, 10.0), (2.0, 20.0)]}


def test_a_replay_with_new_uids_takes_no_event_twice_whose_external_number_is_not_filled_in(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    start, described, *events, stop = external_run()
    first = make_callback(offline=True)
    play(first, [start, described, *events[:-1]])
    first.close()
    renewed = [(name, doc | {"uid": str(uuid.uuid4())}) for name, doc in events]

    second = make_callback()
    play(second, [start, described, *renewed, stop])

    assert second.drain(20)
    assert second.ignored == {"event seen before": 4}
    assert points(server) == {"x": [(2.0, 5.0), (5.0, 6.0)], "T": [(float(n), 20.0 + n) for n in range(1, 6)]}


@pytest.mark.parametrize("made_up", [False, True])
def test_a_reading_is_taken_after_a_restart_if_a_monitor_kept_its_value_and_stamp(
    make_callback: MakeCallback, server: LocalServer, made_up: bool
) -> None:
    monitor = [event("m", 2 * n + 1.001, {"T": 300.0 + n}, T0 + 2 * n + 1) for n in range(4)]
    plan = [event("d", 2 * n + 1.2, {"T": 300.0 + n}, T0 + 2 * n + 1) for n in range(4)]
    live = [one for pair in zip(monitor, plan, strict=True) for one in pair]
    described = [descriptor("d", "primary", T=number()), descriptor("m", "T_monitor", T=number())]
    documents = run_of(*described, *live)
    first = make_callback(offline=True)
    play(first, documents[:-2])  # all but the plan's last reading
    first.close()
    again = [documents[0], *documents[1:3], *documents[-2:]]  # the source goes on where it was, with its own uids
    if made_up:  # a catalogue brings one event stream after the other
        renewed = [(name, doc | {"uid": f"event-{doc['uid']}"}) for name, doc in [*plan, *monitor]]
        again = [*documents[:3], *renewed, documents[-1]]
    second = make_callback()
    play(second, again)
    assert second.drain(20)

    of_monitor, of_plan = ([(2 * n + at, 300.0 + n) for n in range(4)] for at in (1.0, 1.2))
    assert points(server) == {"T": sorted(of_monitor + of_plan)}
