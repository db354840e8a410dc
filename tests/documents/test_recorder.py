"""A recorder says of each document what became of it, whoever gives the documents."""

from __future__ import annotations

import errno
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from event_model import compose_run, pack_event_page
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky import (
    Accepted,
    AtomscaleCallback,
    DocumentError,
    DocumentRecorder,
    Settings,
    SettingsError,
    SpoolError,
    StartMissingError,
)
from atomscale_bluesky.documents import known_runs, open_run, open_runs, remembered_runs
from atomscale_bluesky.documents.open_run import OpenRun
from atomscale_bluesky.model.loss import Loss
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.journal_format import Layout, LeftOut, decode_journal
from atomscale_bluesky.spool.lines import payload_of
from atomscale_bluesky.spool.run_reader import read_header, stop_of
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

MakeCallback = Callable[..., AtomscaleCallback]


@pytest.fixture
def settings(spool_dir: Path, server: LocalServer) -> Settings:
    return Settings.load(environ={}, endpoint=server.url, spool_dir=str(spool_dir), spool_min_free_bytes=0)


def take_all(recorder: DocumentRecorder, documents: list[Document]) -> list[Accepted]:
    return [recorder.take(name, doc) for name, doc in documents]


def old(points: int) -> list[Document]:
    """The documents of a run that began a minute ago."""
    return [(name, doc | {"time": doc["time"] - 60} if name == "start" else doc) for name, doc in growth(points)]


def test_what_is_recorded_is_counted_and_delivered_by_a_later_callback(
    settings: Settings, make_callback: MakeCallback, server: LocalServer
) -> None:
    with DocumentRecorder(settings) as recorder:
        accepted = take_all(recorder, list(growth(points=25)))

    assert [one.rows for one in accepted] == [0, 0, *[1] * 25, 0]
    assert all(one == Accepted(rows=one.rows) for one in accepted)
    assert make_callback().drain(20)
    assert held(server)["k0"] == [float(n) for n in range(25)]
    assert [stream.status for stream in server.streams()] == ["success"]


def test_readings_that_never_become_points_are_reported_with_their_reason(settings: Settings) -> None:
    run = compose_run()
    described = {
        "T": {"source": "sim", "dtype": "number", "shape": []},
        "note": {"source": "sim", "dtype": "string", "shape": []},
        "image": {"source": "sim", "dtype": "array", "shape": [50, 50]},
    }
    stream = run.compose_descriptor(name="primary", data_keys=described)
    data = {"T": 1.0, "note": "hot", "image": [[0.0] * 50] * 50}

    with DocumentRecorder(settings) as recorder:
        recorder.take("start", run.start_doc)
        recorder.take("descriptor", stream.descriptor_doc)
        for _ in range(2):
            event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, time.time()))
            accepted = recorder.take("event", event)
            assert (accepted.rows, accepted.known) == (1, 0)
            assert dict(accepted.left_out) == {"text": 1, "array": 1}
        more = data | {"extra": 5.0}
        event = stream.compose_event(data=more, timestamps=dict.fromkeys(more, time.time()), validate=False)
        assert dict(recorder.take("event", event).left_out) == {"text": 1, "array": 1}


@pytest.mark.parametrize("empty", [[], (), np.array([])], ids=repr)
def test_an_array_without_elements_is_no_value_where_numbers_came_before(settings: Settings, empty: Any) -> None:
    run = compose_run()
    stream = run.compose_descriptor(
        name="primary", data_keys={"peaks": {"source": "sim", "dtype": "array", "shape": [None]}}, validate=False
    )

    with DocumentRecorder(settings) as recorder:
        recorder.take("start", run.start_doc)
        recorder.take("descriptor", stream.descriptor_doc)
        for value in ([1.5], empty, [2.5]):
            stamps = {"peaks": time.time()}
            recorder.take("event", stream.compose_event(data={"peaks": value}, timestamps=stamps, validate=False))

    (status,) = SpoolStatus(Spool(Path(settings.spool_path), read_only=True)).status()
    assert status.points.left_out == {"no value": 1}


def test_each_time_base_of_an_event_has_a_row(settings: Settings) -> None:
    run = compose_run()
    described = {key: {"source": "sim", "dtype": "number", "shape": []} for key in ("a", "b")}
    stream = run.compose_descriptor(name="gauge_monitor", data_keys=described)
    now = time.time()
    event = stream.compose_event(data={"a": 1.0, "b": 2.0}, timestamps={"a": now, "b": now - 1.0})

    with DocumentRecorder(settings) as recorder:
        recorder.take("start", run.start_doc)
        recorder.take("descriptor", stream.descriptor_doc)
        assert recorder.take("event", event) == Accepted(rows=2)


def test_an_answer_counts_a_row_more_when_a_key_parts_from_the_others(settings: Settings) -> None:
    run = compose_run()
    keys = {key: {"source": "sim", "dtype": "number", "shape": []} for key in "ab"}
    stream = run.compose_descriptor(name="both_monitor", data_keys=keys)
    now = time.time()

    with DocumentRecorder(settings) as recorder:
        recorder.take("start", run.start_doc)
        recorder.take("descriptor", stream.descriptor_doc)
        rows = []
        for n, apart_s in enumerate((0.0, 0.0, 0.5, 0.5, 0.0)):
            stamps = {"a": now + n, "b": now + n + apart_s}
            event = stream.compose_event(data={"a": 1.0, "b": 2.0}, timestamps=stamps)
            rows.append(recorder.take("event", event).rows)

    assert rows == [1, 1, 2, 2, 2]


def test_an_event_that_comes_again_is_known_in_a_page_too(settings: Settings) -> None:
    documents = list(growth(points=3))
    events = [doc for name, doc in documents if name == "event"]
    page = {
        "descriptor": events[0]["descriptor"],
        **{member: [event[member] for event in events] for member in ("uid", "time", "seq_num")},
        **{
            member: {key: [event[member][key] for event in events] for key in events[0]["data"]}
            for member in ("data", "timestamps")
        },
    }

    with DocumentRecorder(settings) as recorder:
        take_all(recorder, documents[:3])
        assert recorder.take("event", events[0]) == Accepted(known=1)
        accepted = recorder.take("event_page", page)
        assert (accepted.rows, accepted.known) == (2, 1)
        assert recorder.take("event_page", page) == Accepted(known=3)


@pytest.mark.parametrize("stamps", [5.0, [1.0], None, "now"])
def test_the_new_events_of_a_page_are_taken_whatever_its_time_stamps_are(settings: Settings, stamps: Any) -> None:
    (_, start), (_, descriptor), *_ = growth(points=1, keys=1)
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [("start", start), ("descriptor", descriptor)])
        for uids, expected in ((["a", "b"], Accepted(rows=2)), (["b", "c"], Accepted(rows=1, known=1))):
            page = {"descriptor": descriptor["uid"], "uid": uids, "time": [start["time"]] * 2, "seq_num": 1}
            page |= {"data": {"k0": np.zeros(2)}, "timestamps": {"k0": stamps}, "filled": {"k0": 1.5}}
            assert recorder.take("event_page", page) == expected


@pytest.mark.parametrize("broken", [{"time": 5.0}, {"data": {"k0": 1.0}}, {"data": {"k0": [1.0]}}, {"data": 5}])
def test_the_new_events_of_a_broken_page_are_counted(
    settings: Settings, make_callback: MakeCallback, broken: dict[str, Any]
) -> None:
    (_, start), (_, descriptor), (_, event), *_ = growth(points=1, keys=1)
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [("start", start), ("descriptor", descriptor), ("event", event)])
        page = {"descriptor": descriptor["uid"], "uid": [event["uid"], "b", "c"], "time": [start["time"]] * 3}
        page |= {"data": {"k0": [1.0, 2.0, 3.0]}, "timestamps": {}, "filled": {}} | broken
        with pytest.raises(DocumentError):
            recorder.take("event_page", page)
    (run,) = make_callback(offline=True).status()
    assert (run.points.seen, sum(run.points.left_out.values())) == (
        1 + 2 * (broken != {"data": 5}),
        2 * (broken != {"data": 5}),
    )


def test_a_page_answers_for_the_rest_of_a_cut_event_and_for_its_new_events(settings: Settings) -> None:
    """Its rows and its known events add up."""
    run = compose_run()
    described = {key: {"source": "s", "dtype": "number", "shape": []} for key in ("a", "b")}
    stream = run.compose_descriptor(name="m_monitor", data_keys=described)
    at = run.start_doc["time"]
    page = {"descriptor": stream.descriptor_doc["uid"], "uid": ["e", "f"], "time": [at, at + 1], "seq_num": [1, 2]}
    page |= {"data": {"a": [1.0, 2.0], "b": [3.0, 4.0]}, "filled": {}}
    page |= {"timestamps": {"a": [at + 0.1, at + 1.1], "b": [at + 0.2, at + 1.2]}}
    begun: list[Document] = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all(recorder, begun)
        event = {name: page[name][0] for name in ("uid", "time", "seq_num")} | {"descriptor": page["descriptor"]}
        event |= {name: {key: column[0] for key, column in page[name].items()} for name in ("data", "timestamps")}
        assert recorder.take("event", event).rows == 2
    (journal,) = settings.spool_path.glob("2*/journal-0001.jsonl")
    whole = journal.read_bytes()
    journal.write_bytes(whole[: whole.rindex(b"\xf5row")])  # as after a kill
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all(recorder, begun)
        assert recorder.take("event_page", page) == Accepted(rows=3, known=1)


@pytest.mark.parametrize("timestamps", ["reading", "event", ""])
def test_a_page_whose_time_stamps_are_arrays_is_taken_as_its_events_are(settings: Settings, timestamps: str) -> None:
    (_, start), (_, descriptor), *_ = growth(points=1)
    stamps = {key: [np.array([start["time"] + n] * 2) for n in range(2)] for key in ("k0", "k1")}
    page = {"descriptor": descriptor["uid"], "uid": ["a", "b"], "time": [start["time"], start["time"] + 1]}
    page |= {"data": {"k0": [1.0, 2.0], "k1": [3.0, 4.0]}, "timestamps": stamps, "filled": {}}
    with DocumentRecorder(settings.replaced(timestamps=timestamps) if timestamps else settings) as recorder:
        take_all(recorder, [("start", start), ("descriptor", descriptor)])
        assert recorder.take("event_page", page) == Accepted(rows=2)


def test_nested_runs_that_another_recorder_takes_are_known_to_their_ends(settings: Settings) -> None:
    outer, inner = list(growth(points=3)), list(growth(points=1))
    order = [*outer[:3], *inner, *outer[3:]]
    with DocumentRecorder(settings) as recorder, DocumentRecorder(settings) as second:
        for name, doc in order:
            recorder.take(name, doc)
            assert second.take(name, doc) == Accepted(known=1), name
        assert second.ignored == {"run taken before": 2}


def test_a_run_that_was_recorded_before_is_known_whatever_its_metadata_have_become(settings: Settings) -> None:
    documents = old(points=3)
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, documents)
    name, start = documents[0]
    for changed in (start, start | {"plan_name": "another one", "catalogue": 5}, {"uid": start["uid"], "time": 0.0}):
        with DocumentRecorder(settings) as recorder:
            assert take_all(recorder, [(name, changed), *documents[1:]]) == [Accepted(known=1)] * 6
            assert recorder.ignored == {"run taken before": 1}


def test_events_that_come_before_their_descriptor_are_taken_with_it(settings: Settings) -> None:
    start, descriptor, *events, stop = list(growth(points=3))
    with DocumentRecorder(settings) as recorder:
        recorder.take(*start)
        assert take_all(recorder, events) == [Accepted(put_off=True)] * 3
        assert recorder.take(*descriptor) == Accepted(rows=3)
        assert take_all(recorder, events) == [Accepted(known=1)] * 3
        recorder.take(*stop)
        assert recorder.ignored == {"event seen before": 3}


def test_an_event_that_waits_for_its_descriptor_keeps_its_values_when_it_is_changed(
    settings: Settings, spool_dir: Path
) -> None:
    start, descriptor, event, stop = list(growth(points=1))
    with DocumentRecorder(settings) as recorder:
        recorder.take(*start)
        recorder.take(*event)
        event[1]["data"].clear()
        event[1].clear()
        assert recorder.take(*descriptor) == Accepted(rows=1)
        recorder.take(*stop)

    (run,) = SpoolStatus(Spool(spool_dir)).status()
    assert (run.points.seen, dict(run.points.left_out)) == (2, {})


def test_events_whose_descriptor_never_comes_are_counted_at_the_runs_stop(
    settings: Settings, make_callback: MakeCallback
) -> None:
    start, _, *events, stop = list(growth(points=3))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, *events, stop])
        assert recorder.ignored == {"event": 3}
    (run,) = make_callback(offline=True).status()
    assert (run.points.seen, run.points.left_out) == (6, {"its descriptor never came": 6})


@pytest.fixture
def no_files_can_be_opened() -> Iterator[Callable[[], None]]:
    """Use up the process's file descriptors; a call gives them back."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, before[1]))
    taken: list[int] = []

    def give_back() -> None:
        while taken:
            os.close(taken.pop())

    with suppress(OSError):
        while True:
            taken.append(os.dup(0))
    yield give_back
    give_back()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("first", ["descriptor", "event", "stop"])
def test_the_rest_of_a_run_waits_until_files_can_be_opened_again(
    settings: Settings, make_callback: MakeCallback, request: pytest.FixtureRequest, first: str
) -> None:
    start, descriptor, *events, stop = old(points=6)
    with DocumentRecorder(settings) as recorder:  # ends in mid-run
        take_all(recorder, [start, descriptor, *events[:3]])
    given = {"descriptor": [descriptor, *events[3:], stop], "event": [*events[3:], stop], "stop": [stop]}[first]
    with DocumentRecorder(settings, redelivers=True) as recorder:
        give_back = request.getfixturevalue("no_files_can_be_opened")
        assert recorder.take(*given[0]).try_again
        give_back()
        answers = take_all(recorder, given)
        assert sum(answer.rows for answer in answers) == (0 if first == "stop" else 3)
        assert not any(answer.try_again for answer in answers)
        assert recorder.ignored == {}
    points = sum(run.points.seen for run in make_callback(offline=True).status())
    assert points == (6 if first == "stop" else 12)


def test_an_event_finds_its_run_once_the_process_that_wrote_it_has_ended(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_runs, "SEARCH_AGAIN_S", 0.0)
    start, descriptor, *events, stop = old(points=6)
    dying = DocumentRecorder(settings)
    take_all(dying, [start, descriptor, *events[:3]])
    with DocumentRecorder(settings, redelivers=True) as recorder:
        with pytest.raises(StartMissingError):
            recorder.take(*events[3])
        dying.close()
        assert [answer.rows for answer in take_all(recorder, [*events[3:], stop])] == [1, 1, 1, 0]


def test_early_events_are_given_up_after_a_hundred_stops_while_a_run_stays_open(settings: Settings) -> None:
    abandoned, orphan = list(growth(points=1)), list(growth(points=2))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, abandoned[:-1])  # its producer was killed
        take_all(recorder, orphan[2:4])
        for _ in range(99):
            take_all(recorder, list(growth(points=0)))
        assert recorder.early_descriptors == {orphan[1][1]["uid"]}
        assert recorder.ignored == {}
        take_all(recorder, list(growth(points=0)))
        assert recorder.early_descriptors == set()
        assert recorder.ignored == {"event": 2}


@pytest.mark.parametrize("ends", ["with its stop", "as interrupted"])
def test_early_events_that_may_be_of_a_run_that_has_ended_are_not_counted_against_the_next_one(
    settings: Settings, make_callback: MakeCallback, ends: str
) -> None:
    first, second = list(growth(points=2)), list(growth(points=3))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [first[0], second[0], first[2], second[2]])
        if ends == "with its stop":
            recorder.take(*first[-1])
        else:
            (folder,) = (
                folder
                for folder in Spool(settings.spool_path).run_folders()
                if (header := read_header(folder)) is not None and header.run_uid == first[0][1]["uid"]
            )
            recorder.complete_open_runs(folder)
        take_all(recorder, [*second[1:2], *second[3:]])
        assert recorder.early_descriptors == set()
        assert recorder.ignored == {"event": 1}
    accounts = {run.run_uid: run.points for run in make_callback(offline=True).status()}
    assert [accounts[run[0][1]["uid"]].left_out for run in (first, second)] == [{}, {}]
    assert accounts[second[0][1]["uid"]].seen == 6


def test_early_events_have_room_again_when_their_descriptors_have_come(settings: Settings) -> None:
    abandoned, orphan = list(growth(points=1)), list(growth(points=1))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, abandoned[:-1])
        assert recorder.take(*orphan[2]).put_off
        for _ in range(3):  # more values than may wait at a time
            start, descriptor, event, stop = list(growth(points=1))
            event[1]["data"]["k0"] = np.zeros(500_000)
            assert [one.put_off for one in take_all(recorder, [start, event])] == [False, True]
            assert take_all(recorder, [descriptor, stop])[0].rows == 1


@pytest.mark.parametrize("runs", [1, 2])
def test_an_event_that_finds_no_room_to_wait_is_left_out_of_the_only_open_run(
    settings: Settings, make_callback: MakeCallback, caplog: pytest.LogCaptureFixture, runs: int
) -> None:
    first, second = list(growth(points=1)), list(growth(points=1))
    first[2][1]["data"]["k0"] = np.zeros(10**6 + 1)  # one value more than may wait
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [first[0], second[0]][:runs])
        assert recorder.take(*first[2]) == Accepted(left_out={"its descriptor never came": 2})
        assert recorder.ignored == {"event": 1}
        take_all(recorder, [first[1], first[3]])
    account = next(run for run in make_callback(offline=True).status() if run.run_uid == first[0][1]["uid"])

    assert dict(account.points.left_out) == ({"its descriptor never came": 2} if runs == 1 else {})
    assert "because too many wait for their descriptors: 100,000 documents or 1,000,000 values may" in caplog.text


def test_early_events_that_are_given_up_are_counted_and_wait_no_longer(settings: Settings) -> None:
    first, second = list(growth(points=2)), list(growth(points=1))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [first[0], second[0], first[2], first[3], second[2]])
        recorder.give_up_early_events([first[1][1]["uid"], "unknown"])
        assert recorder.early_descriptors == {second[1][1]["uid"]}
        assert recorder.ignored == {"event": 2}
        assert take_all(recorder, [first[1], second[1]])[1].rows == 1  # the descriptor takes what waits for it


def test_a_completed_run_gives_no_early_event_a_reason_to_wait(settings: Settings, make_callback: MakeCallback) -> None:
    interrupted, (start, _, *events, stop) = list(growth(points=1)), list(growth(points=3))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, interrupted[:-1])
        recorder.complete_open_runs()
        take_all(recorder, [start, *events, stop])
        assert recorder.early_descriptors == set()
    left_out = {run.run_uid: run.points.left_out for run in make_callback(offline=True).status()}
    assert left_out == {interrupted[0][1]["uid"]: {}, start[1]["uid"]: {"its descriptor never came": 6}}


def test_any_of_many_completed_runs_goes_on(
    settings: Settings, make_callback: MakeCallback, server: LocalServer
) -> None:
    runs = [list(growth(points=4)) for _ in range(60)]  # more than are searched for a descriptor
    with DocumentRecorder(settings, redelivers=True) as recorder:
        for documents in runs:
            take_all(recorder, documents[:4])
            recorder.complete_open_runs()
        answers = [take_all(recorder, documents[3:]) for documents in (runs[0], runs[30], runs[-1])]
        assert [[(one.rows, one.known) for one in taken] for taken in answers] == [[(0, 1), (1, 0), (1, 0), (0, 0)]] * 3
        assert recorder.ignored == {"event seen before": 3}


def alike(uids: str) -> list[Document]:
    """A run of long ago, by a coarse clock: its second and third event have one time and one value."""
    documents = old(points=4)
    for n, (at, (_, event)) in enumerate(zip((0, 1, 1, 2), documents[2:-1], strict=True)):
        at += documents[0][1]["time"]
        event |= {"uid": f"{uids}{n}", "time": at, "data": {"k0": 5.0, "k1": 6.0}}
        event["timestamps"] = {"k0": at, "k1": at}
    return documents


TOGETHER: dict[str, Callable[[list[Document]], list[Document]]] = {
    "events": lambda events: events,
    "page": lambda events: [("event_page", pack_event_page(*(doc for _, doc in events)))],
    "bulk events": lambda events: [("bulk_events", {events[0][1]["descriptor"]: [doc for _, doc in events]})],
}


@pytest.mark.parametrize("form", TOGETHER)
def test_an_event_that_is_like_a_kept_one_is_taken_when_a_completed_run_comes_again(
    settings: Settings, make_callback: MakeCallback, server: LocalServer, form: str
) -> None:
    start, descriptor, *events, stop = alike("e")
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all(recorder, [start, descriptor, *events[:2]])
        recorder.complete_open_runs()
        answers = take_all(recorder, [start, descriptor, *TOGETHER[form](events), stop])
        assert sum(answers, Accepted()) == Accepted(rows=2, known=3)  # one is the start
        assert recorder.ignored == {"start": 1, "event seen before": 2}

    assert make_callback().drain(20)
    assert held(server) == {"k0": [5.0] * 4, "k1": [6.0] * 4}


@pytest.mark.parametrize("form", TOGETHER)
@pytest.mark.parametrize("begun", [False, True], ids=["nothing new yet", "a new event"])
def test_an_event_that_is_like_a_kept_one_is_taken_when_a_replay_with_new_uids_begins_again(
    settings: Settings, make_callback: MakeCallback, server: LocalServer, begun: bool, form: str
) -> None:
    start, descriptor, *events, stop = alike("e")
    with DocumentRecorder(settings) as first:
        take_all(first, [start, descriptor, *events[:2]])
    renewed = [(name, doc | {"uid": f"new {doc['uid']}"}) for name, doc in events]
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, descriptor, *renewed[:2], *(renewed[3:] if begun else [])])
        answers = take_all(recorder, [start, descriptor, *TOGETHER[form](renewed), stop])
        assert sum(one.rows for one in answers) == (1 if begun else 2)

    assert make_callback().drain(20)
    assert held(server) == {"k0": [5.0] * 4, "k1": [6.0] * 4}


def test_completed_runs_take_bounded_memory(settings: Settings) -> None:
    with DocumentRecorder(settings, redelivers=True) as recorder:
        recorder.complete_open_runs()
        gc.collect()
        before = sum(isinstance(one, OpenRun) for one in gc.get_objects())
        for _ in range(100):
            take_all(recorder, list(growth(points=1))[:-1])
            recorder.complete_open_runs()
        gc.collect()
        assert sum(isinstance(one, OpenRun) for one in gc.get_objects()) - before < 20


def test_a_descriptor_that_says_the_same_as_an_earlier_one_takes_little_memory(settings: Settings) -> None:
    start, described, event = list(growth(points=1, keys=50))[:3]

    def configure_and_read(recorder: DocumentRecorder, times: int) -> None:
        for _ in range(times):
            descriptor, uid = str(uuid.uuid4()), str(uuid.uuid4())
            configuration = {"dev": {"data": {"exposure": uid}}}
            recorder.take("descriptor", described[1] | {"uid": descriptor, "configuration": configuration})
            recorder.take("event", event[1] | {"uid": uid, "descriptor": descriptor})

    with DocumentRecorder(settings) as recorder:
        recorder.take(*start)
        configure_and_read(recorder, 100)
        tracemalloc.start()
        try:
            configure_and_read(recorder, 300)
            recorder.sync()
            assert tracemalloc.get_traced_memory()[0] < 300 * 1000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "doc", "said"),
    [
        ("event", {}, "KeyError: 'descriptor'"),
        ("descriptor", {"run_start": "nobody", "uid": "d"}, "whose start never came"),
        ("stop", {"run_start": "nobody"}, "whose start never came"),
        ("start", {"uid": 7}, "uid is a int, expected text"),
        ("start", None, "a document of kind 'start' cannot be used"),
    ],
)
def test_a_document_that_cannot_be_used_raises_and_costs_nothing_else(
    settings: Settings, name: str, doc: Any, said: str
) -> None:
    documents = list(growth(points=4))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, documents[:4])
        with pytest.raises(DocumentError, match=said):
            recorder.take(name, doc)
        assert sum(recorder.ignored.values()) == 1
        assert [one.rows for one in take_all(recorder, documents[4:])] == [1, 1, 0]


@pytest.mark.parametrize("name", ["event", "event_page"])
def test_an_event_of_no_run_at_all_is_refused(settings: Settings, name: str) -> None:
    with DocumentRecorder(settings) as recorder:
        with pytest.raises(DocumentError, match="which never came"):
            recorder.take(name, {"descriptor": "nobody", "uid": ["e"], "data": {}, "time": [1.0]})
        assert recorder.ignored == {name: 1}


def test_an_event_is_known_until_twice_as_many_as_are_remembered_have_come_since(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_run, "REMEMBERED_EVENTS", 3)
    start, descriptor, *events, _ = growth(points=9)
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, descriptor, *events[:7]])
        assert [answer.known for answer in take_all(recorder, events[:7])] == [1] * 7
        assert recorder.take(*events[7]).rows == 1
        assert [recorder.take(*events[n]).known for n in (7, 6, 5, 4)] == [1] * 4  # the others are forgotten
        assert [recorder.take(*events[n]).rows for n in (0, 3)] == [1, 1]


def test_many_keys_that_are_left_out_stand_in_several_lines(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, spool_dir: Path
) -> None:
    monkeypatch.setattr(open_run, "KEYS_PER_LINE", 3)
    start, (_, descriptor), event, stop = growth(points=1)
    event[1]["uid"] = None  # it cannot be read
    event[1]["data"] = {f"k{n}": n for n in range(7)}
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, ("descriptor", descriptor)])
        with pytest.raises(DocumentError):
            recorder.take(*event)
        recorder.take(*stop)
    (journal,) = spool_dir.glob("*/journal-0001.jsonl")
    payloads = [payload for text in journal.read_bytes().split(b"\n") if (payload := payload_of(text)) is not None]
    lines = [line for line in map(decode_journal, payloads) if isinstance(line, LeftOut)]

    assert [(line.reason, line.readings, len(line.keys)) for line in lines] == [
        ("malformed document", 3, 3), ("malformed document", 3, 3), ("malformed document", 1, 1),
    ]  # fmt: skip
    assert set().union(*(line.keys for line in lines)) == {f"k{n}" for n in range(7)}


def test_the_fourth_run_of_which_nothing_but_the_start_comes_is_warned_of(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [list(growth(points=1)) for _ in range(5)]
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [run[0] for run in runs[:3]])
        take_all(recorder, runs[0][1:2])  # its descriptor
        take_all(recorder, runs[3][:1])
        assert "only their start documents" not in caplog.text
        take_all(recorder, runs[4][:1])
        assert "several runs have only their start documents" in caplog.text


@pytest.mark.parametrize("as_page", [False, True])
def test_events_of_a_stream_that_is_not_selected_are_left_out(settings: Settings, as_page: bool) -> None:
    documents = list(growth(points=3))
    events = [event for _, event in documents[2:5]]
    with DocumentRecorder(settings.replaced(event_streams="-primary")) as recorder:
        take_all(recorder, documents[:3])
        given = [("event_page", pack_event_page(*events))] if as_page else documents[2:5]
        total = sum(take_all(recorder, given), Accepted())

    assert total == Accepted(known=1, left_out={Loss.EVENT_STREAM_NOT_SELECTED: 2 * 2})


@pytest.mark.parametrize("as_page", [False, True])
def test_an_event_has_the_unit_of_the_descriptor_that_it_names(
    settings: Settings, spool_dir: Path, as_page: bool
) -> None:
    start, (_, descriptor), *events, _ = growth(points=2, keys=1)
    keys = {"k0": descriptor["data_keys"]["k0"] | {"units": "C"}}
    other = descriptor | {"uid": "in degrees Celsius", "data_keys": keys}
    second = events[1][1] | {"descriptor": other["uid"]}
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, ("descriptor", descriptor), events[0], ("descriptor", other)])
        recorder.take(*(("event_page", pack_event_page(second)) if as_page else ("event", second)))
    (journal,) = spool_dir.glob("*/journal-0001.jsonl")
    payloads = [payload for text in journal.read_bytes().split(b"\n") if (payload := payload_of(text)) is not None]
    layouts = [line for line in map(decode_journal, payloads) if isinstance(line, Layout)]

    assert [(one.name, one.unit) for layout in layouts[::2] for one in layout.channels] == [
        ("k0", "K"), ("k0 (C)", "C"),
    ]  # fmt: skip


def test_other_kinds_of_documents_are_passed_over(settings: Settings) -> None:
    with DocumentRecorder(settings) as recorder:
        assert recorder.take("datum", {"datum_id": "x"}) == Accepted()
        assert recorder.ignored == {}


def test_what_finds_no_room_is_reported_and_may_be_given_again(spool_dir: Path) -> None:
    settings = Settings.load(environ={}, spool_dir=str(spool_dir), spool_min_free_bytes=0, spool_max_bytes=1_000_000)
    documents = list(growth(points=3, keys=1))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, documents[:3])
        stuffing = spool_dir / "20200101T000000-00000000"
        stuffing.mkdir()
        (stuffing / "journal-0001.jsonl").write_bytes(b"x" * 1_000_000)
        wait_until(lambda: "no room" in str(recorder.take(*full_event(documents)).left_out), timeout_s=30)
        refused = recorder.take(*documents[3])
        assert refused == Accepted(left_out={"no room in the spool": 1}, try_again=True)
        (stuffing / "journal-0001.jsonl").unlink()
        wait_until(lambda: recorder.take(*documents[3]).rows == 1, timeout_s=30)
        assert recorder.take(*documents[3]) == Accepted(known=1)


def stuffed(spool_dir: Path) -> Path:
    """Fill a spool up to its limit of a million bytes. Return the file that does it."""
    stuffing = spool_dir / "20200101T000000-00000000"
    stuffing.mkdir()
    file = stuffing / "journal-0001.jsonl"
    file.write_bytes(b"x" * 1_000_000)
    return file


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_was_written_is_not_asked_for_again(settings: Settings, interrupted: bool) -> None:
    documents = list(growth(points=3))
    further = documents[1][1] | {"uid": "a descriptor that says the same"}
    with DocumentRecorder(settings, redelivers=True) as recorder:
        if interrupted:
            take_all(recorder, documents[:3])
            recorder.complete_open_runs()
        answers = take_all(recorder, [*documents[:2], ("descriptor", further), *documents[2:]])

    assert [answer.try_again for answer in answers] == [False] * len(answers)
    assert sum(answer.rows for answer in answers) == (2 if interrupted else 3)


def test_a_source_that_gives_documents_again_loses_none_for_want_of_room(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    settings = Settings.load(
        environ={}, spool_dir=str(spool_dir), endpoint=server.url, spool_min_free_bytes=0, spool_max_bytes=1_000_000
    )
    first, second = list(growth(points=20, keys=1)), list(growth(points=20, keys=1))
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all(recorder, first[:12])
        assert recorder.has_room
        stuffing = stuffed(spool_dir)
        wait_until(lambda: not recorder.has_room)
        assert [recorder.take(*document).try_again for document in (first[12], second[0])] == [True, True]
        with pytest.raises(StartMissingError) as missing:
            recorder.take(*second[1])  # its start was not taken
        assert missing.value.run_uid == second[0][1]["uid"]
        stuffing.unlink()
        wait_until(lambda: recorder.has_room)
        take_all(recorder, [*first[12:], *second])

    callback = make_callback()
    assert callback.drain(20)
    assert callback.status().not_kept == ()
    assert held(server)["k0"] == [float(n) for _ in "12" for n in range(20)]


def test_events_of_a_bulk_that_fills_the_spool_several_times_are_taken_once(
    spool_dir: Path, monkeypatch: pytest.MonkeyPatch, make_callback: MakeCallback
) -> None:
    monkeypatch.setattr(open_run, "REMEMBERED_EVENTS", 50)
    settings = Settings.load(environ={}, spool_dir=str(spool_dir), spool_min_free_bytes=0, spool_max_bytes=1_000_000)
    start, descriptor, *events, stop = growth(points=2000, keys=1)
    bulk = "bulk_events", {descriptor[1]["uid"]: [doc for _, doc in events]}
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all(recorder, [start, descriptor])
        stuffing = stuffed(spool_dir)
        wait_until(lambda: not recorder.has_room)
        rows = []
        for size in (950_000, 900_000, 850_000):
            os.truncate(stuffing, size)
            wait_until(lambda: recorder.has_room)
            answer = recorder.take(*bulk)
            assert answer.try_again
            assert answer.known == sum(rows)
            rows.append(answer.rows)
        assert min(rows) > 2 * 50
        stuffing.unlink()
        wait_until(lambda: recorder.take(*bulk).known == 2000)
        assert recorder.take(*bulk) == Accepted(known=2000)
        assert recorder.take(*events[0]) == Accepted(known=1)
        recorder.take(*stop)
    assert [run.points.seen for run in make_callback(offline=True).status()] == [2000]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the name of every file is text")
@pytest.mark.parametrize("uploader", ["thread", "process"])
def test_in_a_folder_whose_name_is_no_text_a_run_is_kept_or_noted(
    monkeypatch: pytest.MonkeyPatch, make_callback: MakeCallback, tmp_path: Path, uploader: str
) -> None:
    # The log names the folder, and the processes that run the tests cannot exchange such a name.
    monkeypatch.setattr(logging.getLogger("atomscale_bluesky"), "propagate", False)
    spool_dir, aside = tmp_path / "spool\udcff", tmp_path / "aside"
    callback = make_callback(spool_dir=str(spool_dir), uploader=uploader)
    spool_dir.rename(aside)
    for name, doc in growth(points=3, keys=1):
        callback(name, doc)
    aside.rename(spool_dir)

    wait_until((spool_dir / "not-kept.jsonl").exists)
    (not_kept,) = callback.status().not_kept
    assert (not_kept.readings, "spool?" in not_kept.reason) == (3, True)
    for name, doc in growth(points=3, keys=1):
        callback(name, doc)
    delivers = uploader == "thread"  # the settings of a process are text
    assert callback.drain(20 if delivers else 0.5) is delivers
    assert [run.points.seen for run in callback.status()] == ([] if delivers else [3])


def test_an_event_that_cannot_be_used_hides_no_other_of_its_document_that_waits(
    settings: Settings, spool_dir: Path
) -> None:
    start, (_, descriptor), (_, event), (_, other), _ = growth(points=2, keys=1)
    broken = {"uid": "broken", "descriptor": descriptor["uid"]}
    with DocumentRecorder(settings.replaced(spool_max_bytes=1_000_000), redelivers=True) as recorder:
        recorder.take(*start)
        bulk = {descriptor["uid"]: [broken, event]}
        assert recorder.take("bulk_events", bulk) == Accepted(put_off=True)
        recorder.take("descriptor", descriptor)

        stuffing = stuffed(spool_dir)
        wait_until(lambda: not recorder.has_room)
        assert recorder.take("bulk_events", {descriptor["uid"]: [broken, other]}).try_again
        stuffing.unlink()
        wait_until(lambda: recorder.has_room)
        with pytest.raises(DocumentError):
            recorder.take("bulk_events", {descriptor["uid"]: [broken, other]})
        assert recorder.take("event", other) == recorder.take("event", event) == Accepted(known=1)


def test_a_descriptor_without_room_is_given_again_and_survives_a_restart(settings: Settings, spool_dir: Path) -> None:
    settings = settings.replaced(spool_max_bytes=1_000_000)
    documents = list(growth(points=5, keys=1))
    recorder = DocumentRecorder(settings, redelivers=True)
    recorder.take(*documents[0])
    stuffing = stuffed(spool_dir)
    wait_until(lambda: not recorder.has_room)
    assert recorder.take(*documents[1]) == Accepted(try_again=True)
    stuffing.unlink()
    wait_until(lambda: recorder.has_room)
    assert recorder.take(*documents[1]) == Accepted()
    recorder.close()

    with DocumentRecorder(settings, redelivers=True) as later:  # its source goes on behind the descriptor
        assert [one.rows for one in take_all(later, documents[2:])] == [1] * 5 + [0]


def test_a_descriptor_that_comes_after_a_restart_survives_the_next_one(settings: Settings) -> None:
    run = compose_run()
    described = {"T": {"source": "sim", "dtype": "number", "shape": []}}
    first, second = (run.compose_descriptor(name=name, data_keys=described) for name in ("primary", "other"))

    def event(of: Any) -> dict[str, Any]:
        return of.compose_event(data={"T": 1.0}, timestamps={"T": time.time()})

    stages: list[list[Document]] = [
        [("start", run.start_doc), ("descriptor", first.descriptor_doc), ("event", event(first))],
        [("descriptor", second.descriptor_doc)],
        [("event", event(second)), ("stop", run.compose_stop())],
    ]
    rows = 0
    for documents in stages:  # each in a recorder of its own, which sees nothing but these
        with DocumentRecorder(settings, redelivers=True) as recorder:
            rows += sum(one.rows for one in take_all(recorder, documents))
    assert rows == 2


def test_a_signal_while_a_journal_is_made_costs_it_no_descriptor(settings: Settings, spool_dir: Path) -> None:
    start, descriptor, *events, _ = growth(points=3, keys=1)
    recorder = DocumentRecorder(settings.replaced(spool_max_bytes=1_000_000))
    recorder.take(*next(growth(points=0)))  # another run, for which the spool's size is measured
    stuffing = stuffed(spool_dir)
    wait_until(lambda: not recorder.has_room)
    take_all(recorder, [start, descriptor])
    stuffing.unlink()
    wait_until(lambda: recorder.has_room)

    def signalled(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_qualname == "RunFiles.describe":  # once the folder is made
            sys.settrace(None)
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(signalled)
    try:
        with pytest.raises(KeyboardInterrupt):
            recorder.take(*events[0])
    finally:
        sys.settrace(before)
    assert recorder.take(*events[1]) == Accepted(rows=1)
    recorder.close()

    with DocumentRecorder(settings, redelivers=True) as later:  # its source goes on behind the descriptor
        assert later.take(*events[2]) == Accepted(rows=1)


def test_however_many_runs_a_restart_interrupts_each_goes_on(settings: Settings) -> None:
    documents = [list(growth(points=2, keys=1)) for _ in range(60)]
    with DocumentRecorder(settings, redelivers=True) as recorder:
        for run in documents:
            take_all(recorder, run[:3])

    with DocumentRecorder(settings, redelivers=True) as later:  # its source goes on in the middle of all of them
        assert [later.take(*run[3]) for run in documents] == [Accepted(rows=1)] * 60


def test_a_run_with_a_descriptor_of_half_a_megabyte_goes_on_after_a_restart(settings: Settings) -> None:
    documents = list(growth(points=2, keys=500))
    for described in documents[1][1]["data_keys"].values():
        described["choices"] = [f"choice {n}" for n in range(100)]
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all(recorder, documents[:3])

    with DocumentRecorder(settings, redelivers=True) as later:
        assert later.take(*documents[3]) == Accepted(rows=1)


def test_a_stop_of_more_than_a_megabyte_ends_its_run(settings: Settings, spool_dir: Path) -> None:
    *documents, (_, stop) = growth(points=2, keys=1)
    stop["num_events"] = {f"{n:04d}{'度' * 496}": 1 for n in range(1000)}  # each is named in the stop, as not given
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [*documents, ("stop", stop)])

    (journal,) = spool_dir.glob("*/journal-0001.jsonl")
    assert len(journal.read_bytes().splitlines()[-1]) > 2**20
    found = stop_of(journal.parent)  # if there is none, the run is taken as interrupted, and gets another stop
    assert found is not None
    assert len(found.not_given) == 1000


class OwnText(str):
    """Text of another type, as libraries have it."""

    __slots__ = ()


def with_texts_of(kind: type[str], value: Any) -> Any:
    """Return a document in which all texts and keys are of this type."""
    if isinstance(value, dict):
        return {kind(key): with_texts_of(kind, member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts_of(kind, one) for one in value]
    return kind(value) if isinstance(value, str) else value


@pytest.mark.parametrize("kind", [np.str_, OwnText])
def test_texts_of_any_type_are_recorded_resumed_and_recognised_like_plain_ones(
    settings: Settings, make_callback: MakeCallback, server: LocalServer, kind: type[str]
) -> None:
    documents = list(growth(points=4, start_metadata={"physical_sample": "Si 1", "tags": ["a"], "stream_name": "x"}))
    described = documents[1][1]
    described["data_keys"]["state"] = {"source": "sim", "dtype": "string", "shape": [], "choices": ["off", "on"]}
    described["hints"] = {"dev": {"fields": ["k0", "state"]}}
    for _, event in documents[2:-1]:
        event["data"]["state"], event["timestamps"]["state"] = "on", event["time"]
    documents = [(name, with_texts_of(kind, doc)) for name, doc in documents]

    with DocumentRecorder(settings, redelivers=True) as recorder:
        assert [one.rows for one in take_all(recorder, documents[:4])] == [0, 0, 1, 1]
    with DocumentRecorder(settings, redelivers=True) as later:  # its source goes on in mid-run
        assert [one.rows for one in take_all(later, documents[4:])] == [1, 1, 0]
    assert make_callback().drain(20)
    assert {name: sorted(values) for name, values in held(server).items()} == {
        "k0": [0.0, 1.0, 2.0, 3.0], "k1": [0.1, 1.1, 2.1, 3.1], "state": [1.0] * 4,
    }  # fmt: skip
    with DocumentRecorder(settings, redelivers=True) as later:
        assert take_all(later, documents[2:-1]) == [Accepted(known=1)] * 4


@pytest.mark.parametrize("kind", [np.str_, OwnText])
def test_a_descriptor_with_choices_hints_and_a_dtype_of_any_type_of_text_survives_a_restart(
    settings: Settings, kind: type[str]
) -> None:
    documents = list(growth(points=2, keys=1))
    described = documents[1][1]
    described["data_keys"]["k0"] |= {"dtype": kind("number"), "choices": [kind("off"), kind("on")]}
    described["hints"] = {"dev": {"fields": [kind("k0")]}}
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all(recorder, documents[:3])
        assert not recorder.ignored

    with DocumentRecorder(settings, redelivers=True) as later:
        assert later.take(*documents[3]) == Accepted(rows=1)


def test_an_event_stream_may_be_called_like_a_key_of_another_one(
    settings: Settings, make_callback: MakeCallback, server: LocalServer
) -> None:
    run = compose_run()
    described = {key: {"source": "sim", "dtype": "number", "shape": []} for key in ("T", "p")}
    monitor, other = (
        run.compose_descriptor(name=name, data_keys=described) for name in ("chamber_monitor", "chamber_monitor/p")
    )
    start = run.start_doc["time"]
    documents: list[Document] = [("start", run.start_doc)]
    for stream in (monitor, other):
        documents.append(("descriptor", stream.descriptor_doc))
    for n in range(5):
        stamps = {"T": start + n, "p": start + n / 2}  # each key has times of its own
        documents.append(("event", monitor.compose_event(data={"T": n, "p": n}, timestamps=stamps, time=start + n)))
    for n in range(3):
        stamps = dict.fromkeys(described, start + n)
        documents.append(("event", other.compose_event(data={"T": n, "p": n}, timestamps=stamps, time=start + n)))
    documents.append(("stop", run.compose_stop()))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, documents)

    assert make_callback().drain(20)
    assert {name: sorted(values) for name, values in held(server).items()} == {
        key: sorted([0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 1.0, 2.0]) for key in ("T", "p")
    }


def test_an_event_that_a_page_has_twice_is_taken_once(
    settings: Settings, make_callback: MakeCallback, server: LocalServer
) -> None:
    start, descriptor, *events, stop = growth(points=4, keys=1)
    page = pack_event_page(*[events[i][1] for i in (0, 1, 0, 2, 1, 3)])
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, descriptor])
        assert recorder.take("event_page", page) == Accepted(rows=4, known=2)
        recorder.take(*stop)

    assert make_callback().drain(20)
    assert held(server) == {"k0": [0.0, 1.0, 2.0, 3.0]}


@pytest.mark.parametrize("uid", ["a]b", 'a"b', "a\\", "a,b", "\u00e9"])
def test_a_run_that_has_left_the_spool_goes_on_whatever_its_descriptor_is_called(
    settings: Settings, make_callback: MakeCallback, uid: str
) -> None:
    start, (_, descriptor), *events, _ = growth(points=2, keys=1)
    with DocumentRecorder(settings, redelivers=True) as recorder:
        take_all(
            recorder, [start, ("descriptor", descriptor | {"uid": uid}), ("event", events[0][1] | {"descriptor": uid})]
        )
    assert make_callback().close(20)

    with DocumentRecorder(settings, redelivers=True) as later:
        assert later.take("event", events[1][1] | {"descriptor": uid}) == Accepted(rows=1)


@pytest.mark.parametrize("sample", ["GaN 17", "6f0e2c1a-93c4-4b7e-8d55-0a1b2c3d4e5f"])
def test_a_sample_given_to_the_recorder_is_for_runs_that_name_none(settings: Settings, sample: str) -> None:
    with DocumentRecorder(settings, physical_sample=sample) as recorder:
        take_all(recorder, list(growth(points=1)))
        take_all(recorder, list(growth(points=1, start_metadata={"physical_sample": "its own"})))
        take_all(recorder, list(growth(points=1, start_metadata={"atomscale": {"physical_sample": None}})))

    spool = Spool(settings.spool_path)
    links = []
    for folder in sorted(spool.run_folders(), key=lambda folder: folder.stat().st_mtime_ns):
        header = read_header(folder)
        assert header is not None
        links.append(header.links)
    named = {(one.physical_sample, one.physical_sample_id) for one in links}
    given = (None, sample) if "-" in sample else (sample, None)
    assert named == {given, ("its own", None), (None, None)}


def test_the_journal_of_a_run_that_is_being_recorded_is_not_read_to_find_that_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, descriptor, *events, stop = old(points=30)
    with DocumentRecorder(settings) as first:
        take_all(first, [start, descriptor, *events])
        with DocumentRecorder(settings) as second:
            monkeypatch.setattr(known_runs, "read_events", lambda folder: pytest.fail(f"{folder} was read"))
            assert second.take(*stop).known == 1
            assert first.take(*stop) == Accepted()


def full_event(documents: list[Document]) -> Document:
    """A further event of the run, with a uid of its own."""
    name, doc = documents[2]
    return name, doc | {"uid": f"{time.monotonic_ns()}"}


def test_a_sync_that_fails_says_so_and_succeeds_later(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = list(growth(points=2))

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with DocumentRecorder(settings) as recorder:
        take_all(recorder, documents[:3])
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", fails)
            recorder.take(*documents[3])
            with pytest.raises(SpoolError, match="could not be synced: .*Input/output error"):
                recorder.sync()
        recorder.sync()
        synced: list[int] = []
        with monkeypatch.context() as watched:
            watched.setattr(os, "fdatasync", synced.append)
            recorder.sync()
        assert synced == []  # all of it was


@pytest.mark.skipif(sys.platform != "linux", reason="another call syncs a file there")
def test_a_sync_that_fails_says_so_until_it_succeeds_although_the_run_has_ended(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failed, synced = os.fdatasync, threading.Event(), threading.Event()

    def fails(descriptor: int) -> None:
        if "journal-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            failed.set()
            raise OSError(5, "Input/output error")
        real(descriptor)

    def works(descriptor: int) -> None:
        real(descriptor)
        if "journal-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            synced.set()

    with DocumentRecorder(settings) as recorder:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", fails)
            take_all(recorder, list(growth(points=2)))
            assert failed.wait(10)  # the spool's thread has tried to sync the ended run
            for _ in range(2):
                with pytest.raises(SpoolError, match="could not be synced: .*Input/output error"):
                    recorder.sync()
        monkeypatch.setattr(os, "fdatasync", works)
        wait_until(lambda: not any("could not" in str(sync_error(recorder)) for _ in range(1)))
        assert synced.is_set()
    assert [record.message for record in caplog.records if "could not be synced, it is tried again" in record.message]


def sync_error(recorder: DocumentRecorder) -> SpoolError | None:
    try:
        recorder.sync()
    except SpoolError as error:
        return error
    return None


def test_sync_waits_for_the_disk_to_have_each_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real, files = os.fdatasync, set[str]()

    def noted(descriptor: int) -> None:
        real(descriptor)
        files.add(os.readlink(f"/proc/self/fd/{descriptor}"))

    runs = [list(growth(points=2)) for _ in range(3)]
    with DocumentRecorder(settings) as recorder:
        for documents in runs[:2]:
            take_all(recorder, documents[:3])
        take_all(recorder, runs[2])  # one that has ended
        monkeypatch.setattr(os, "fdatasync", noted)
        for documents in runs[:2]:
            recorder.take(*documents[3])
        recorder.sync()
        assert len({path for path in files if path.endswith("journal-0001.jsonl")}) >= 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_stops_wait_for_no_sync_and_leave_the_process_its_descriptors(
    settings: Settings, make_callback: MakeCallback, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, real, disk_works = ("fsync", "fdatasync"), (os.fsync, os.fdatasync), threading.Event()
    here: list[int] = []

    def hangs(descriptor: int) -> None:
        if threading.current_thread() is threading.main_thread() and not disk_works.is_set():
            here.append(descriptor)
        elif threading.current_thread().name == "atomscale-spool":
            assert disk_works.wait(60)
        real[1](descriptor)

    before = len(os.listdir("/proc/self/fd"))
    with DocumentRecorder(settings) as recorder:
        for name in names:
            monkeypatch.setattr(os, name, hangs)
        try:
            for _ in range(60):
                take_all(recorder, list(growth(points=3, keys=1)))
            assert here == []
            assert len(os.listdir("/proc/self/fd")) - before < 70
        finally:
            disk_works.set()
        recorder.sync()
        wait_until(lambda: len(list(settings.spool_path.glob("2*/head.jsonl"))) == 60)
    assert len(os.listdir("/proc/self/fd")) - before < 10
    callback = make_callback()
    assert callback.drain(60)
    assert list(callback.status()) == []
    assert len(server.streams()) == 60
    assert sorted(held(server)["k0"]) == [float(n) for n in range(3) for _ in range(60)]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_runs_that_gave_their_files_back_are_delivered_while_the_disk_hangs(
    settings: Settings, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the runs whose sync is still to come. It finishes them, and leaves nothing behind."""
    disk_works, real = threading.Event(), os.fdatasync

    def hangs(descriptor: int) -> None:
        if threading.current_thread().name == "atomscale-spool":
            assert disk_works.wait(100)
        real(descriptor)

    with DocumentRecorder(settings) as recorder:
        monkeypatch.setattr(os, "fdatasync", hangs)
        try:
            for _ in range(60):
                take_all(recorder, list(growth(points=3, keys=1)))
            uploading = [sys.executable, "-m", "atomscale_bluesky", "upload", "--spool-dir", str(settings.spool_path)]
            environment = os.environ | {"ATOMSCALE_API_KEY": server.api_key, "ATOMSCALE_API_ENDPOINT": server.url}
            child = subprocess.Popen([*uploading, "--timeout", "60"], env=environment)
            try:
                wait_until(lambda: len(list(settings.spool_path.glob("2*"))) < 40, timeout_s=60)
            finally:
                disk_works.set()
                child.wait(90)
        finally:
            disk_works.set()
        recorder.sync()
        assert list(settings.spool_path.glob("2*")) == []
    assert sorted(held(server)["k0"]) == [float(n) for n in range(3) for _ in range(60)]


def test_a_document_from_within_another_one_is_put_off_and_taken_behind_it(settings: Settings) -> None:
    documents = list(growth(points=3, keys=1))
    inner: list[Accepted] = []

    class Asks(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            if not inner:
                inner.append(recorder.take(*documents[4]))
            return super().__getitem__(key)

    with DocumentRecorder(settings) as recorder:
        take_all(recorder, documents[:3])
        name, doc = documents[3]
        assert recorder.take(name, Asks(doc)).rows == 1
        assert inner == [Accepted(put_off=True)]
        assert recorder.take(*documents[4]) == Accepted(known=1)


def test_several_threads_may_record_at_once(
    settings: Settings, make_callback: MakeCallback, server: LocalServer
) -> None:
    runs = [list(growth(points=200, keys=1)) for _ in range(4)]
    together = threading.Barrier(4)

    def record(documents: list[Document]) -> int:
        together.wait(10)
        return sum(one.rows for one in take_all(recorder, documents))

    with DocumentRecorder(settings) as recorder, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(record, runs)) == [200] * 4
    assert make_callback().drain(30)
    assert sorted(held(server)["k0"]) == sorted([float(n) for n in range(200)] * 4)


def test_a_recorder_that_is_closed_twice_completes_what_came_in_between(settings: Settings) -> None:
    documents = old(points=4)
    recorder = DocumentRecorder(settings)
    take_all(recorder, documents[:3])
    assert recorder.close()
    assert recorder.take(*documents[3]).rows == 1
    assert recorder.close()
    with DocumentRecorder(settings) as another:
        assert [one.rows for one in take_all(another, documents)] == [0, 0, 0, 0, 1, 1, 0]


def test_a_folder_that_cannot_be_a_spool_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file"):
        DocumentRecorder(Settings.load(environ={}, spool_dir=str(tmp_path / "file")))


def test_what_is_no_document_raises_and_an_unknown_kind_is_counted(settings: Settings) -> None:
    with DocumentRecorder(settings) as recorder:
        with pytest.raises(DocumentError, match="expected a kind of document and a mapping, got 'name' and a str"):
            recorder.take("name", "doc")  # type: ignore[arg-type]
        assert recorder.take("strat", {"uid": "a"}) == Accepted()
        assert recorder.take("datum", {"datum_id": "a"}) == Accepted()
        assert recorder.ignored == {"malformed document": 1, "unknown kind": 1}


class HostileMapping(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("a mapping that cannot be read")

    values = items


@pytest.mark.parametrize(
    ("more", "not_given"),
    [
        ({"half \ud83d": 2}, {"half ?": 2}),
        ({"half \ud83d": 1, "half " + chr(0xD800): 1, "primary": 3}, {"half ?": 2, "primary": 1}),
        ({"huge": 10**400, "large": 2**70}, {}),
        ({f"s{n}": 1 for n in range(1003)}, {f"s{n}": 1 for n in range(1000)} | {"(other event streams)": 3}),
        (HostileMapping(), {}),
    ],
    ids=["a name no file can hold", "two such names", "counts no reader takes", "a thousand names", "foreign"],
)
@pytest.mark.parametrize("redelivers", [False, True])
def test_a_stop_ends_its_run_whatever_it_counts_and_the_next_run_is_whole(
    settings: Settings, more: dict[str, int], not_given: dict[str, int], redelivers: bool
) -> None:
    documents, following = list(growth(points=2, keys=1)), list(growth(points=3, keys=1))
    counts = more | {"primary": more.get("primary", 2)} if type(more) is dict else more
    documents[-1] = "stop", {**documents[-1][1], "num_events": counts}
    with DocumentRecorder(settings, redelivers=redelivers) as recorder:
        assert [one.rows for one in take_all(recorder, documents)] == [0, 0, 1, 1, 0]
        assert [one.rows for one in take_all(recorder, following)] == [0, 0, 1, 1, 1, 0]
        assert recorder.ignored == {}
        recorder.sync()
    runs = {run.run_uid: run for run in SpoolStatus(Spool(settings.spool_path, read_only=True)).status()}
    first, second = runs[documents[0][1]["uid"]], runs[following[0][1]["uid"]]
    assert (first.points.seen, first.interrupted, dict(first.not_given)) == (2, False, not_given)
    assert (second.points.seen, second.interrupted, dict(second.not_given)) == (3, False, {})


def test_an_event_stream_whose_name_no_file_can_hold_has_no_missing_event(settings: Settings) -> None:
    start, (_, descriptor), event, stop = list(growth(points=1, keys=1))
    descriptor, stop = dict(descriptor, name="half \ud83d"), ("stop", {**stop[1], "num_events": {"half \ud83d": 1}})
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, ("descriptor", descriptor), event, stop])
    (run,) = SpoolStatus(Spool(settings.spool_path, read_only=True)).status()
    assert (run.points.seen, dict(run.not_given)) == (1, {})


@pytest.mark.parametrize("length", [10**30, 10**5000, -1], ids=["large", "huge", "negative"])
def test_a_descriptor_whose_shape_is_impossible_costs_no_event(settings: Settings, length: int) -> None:
    start, (_, descriptor), *events, stop = list(growth(points=2, keys=1))
    descriptor = {**descriptor, "data_keys": {"k0": {"dtype": "array", "shape": [length], "source": ""}}}
    with DocumentRecorder(settings) as recorder:
        answers = take_all(recorder, [start, ("descriptor", descriptor), *events, stop])
    assert [one.rows for one in answers] == [0, 0, 1, 1, 0]


class Refusing:
    """A listener that fails whenever a run has ended."""

    delivers_new_runs = False

    def add(self, writer: Any) -> None:
        pass

    def wake(self, folder: Any = None) -> None:
        pass

    def writer_done(self, folder: Any) -> None:
        raise RuntimeError("the listener fails")


@pytest.mark.parametrize("stopped", [True, False])
def test_an_end_that_cannot_be_completed_costs_no_other_document(
    settings: Settings, stopped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = list(growth(points=2, keys=1)), list(growth(points=3, keys=1))
    recorder = DocumentRecorder(settings, listener=Refusing())
    take_all(recorder, first[:-1])
    if stopped:
        with pytest.raises(DocumentError, match="the listener fails"):
            recorder.take(*first[-1])
    assert [one.rows for one in take_all(recorder, second[:-1])] == [0, 0, 1, 1, 1]
    assert recorder.close()
    assert "what was being written could not be completed" in caplog.text
    runs = {run.run_uid: run for run in SpoolStatus(Spool(settings.spool_path, read_only=True)).status()}
    account = {uid: (run.points.seen, run.interrupted, run.state) for uid, run in runs.items()}
    assert account == {
        first[0][1]["uid"]: (2, not stopped, "waiting"),
        second[0][1]["uid"]: (3, True, "waiting"),
    }


def test_a_page_whose_uids_are_an_array_may_wait_in_vain(settings: Settings, make_callback: MakeCallback) -> None:
    start, _, (_, event), stop = list(growth(points=1, keys=1))
    uids = np.array(["a", "b", "c"])
    page = {"descriptor": event["descriptor"], "uid": uids, "time": [event["time"]] * 3, "data": {"k0": [1.0] * 3}}
    with DocumentRecorder(settings) as recorder:
        assert take_all(recorder, [start, ("event_page", page)])[1].put_off
        recorder.take(*stop)
    (run,) = make_callback(offline=True).status()
    assert (run.points.left_out, run.interrupted) == ({"its descriptor never came": 3}, False)


@pytest.mark.parametrize("as_pages", [False, True])
@pytest.mark.parametrize("others", [{}, {"c": 2.0}], ids=["one channel", "two channels"])
@pytest.mark.parametrize(
    ("more", "value", "reason"),
    [({}, "text", "text"), ({"channels": ("*", "!t")}, 5.0, "not selected"), ({}, [[1.0]] * 3, "array")],
    ids=["text", "not selected", "array"],
)
def test_a_new_key_is_taken_in_the_place_of_one_that_is_left_out(
    settings: Settings, more: dict[str, Any], value: Any, reason: str, others: dict[str, float], as_pages: bool
) -> None:
    run = compose_run()
    keys = {key: {"source": "sim", "dtype": "number", "shape": []} for key in ("a", "c", "t")}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    both, new = {"a": 1.0, **others, "t": value}, {"a": 1.0, **others, "b": 7.0}
    answers = []
    with DocumentRecorder(settings.replaced(**more)) as recorder:
        recorder.take("start", run.start_doc)
        recorder.take("descriptor", stream.descriptor_doc)
        for data in [both] * 3 + [new] * 5 + [both, new, {"b": 8.0, **others, "t": value}]:
            stamps = dict.fromkeys(data, time.time())
            event = stream.compose_event(data=data, timestamps=stamps, validate=False)
            answers.append(recorder.take(*(("event_page", pack_event_page(event)) if as_pages else ("event", event))))
        recorder.take("stop", run.compose_stop())
    left_out = {reason: 1}
    assert [dict(one.left_out) for one in answers] == [left_out] * 3 + [{}] * 5 + [left_out, {}, left_out]
    assert [one.rows for one in answers] == [1] * 11
    (status,) = SpoolStatus(Spool(settings.spool_path, read_only=True)).status()
    waiting = {name: channel.waiting for name, channel in status.channels.items()}
    assert waiting == {"a": 10, "b": 7, "c": 11 if others else 0, "t": 0}


@pytest.mark.parametrize("kind", ["event", "event_page"])
def test_a_replay_in_the_same_process_may_bring_events_before_their_descriptor(
    settings: Settings, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a recording that was sorted by time."""
    start, descriptor, *events, stop = old(points=4)
    if kind == "event_page":
        events = [("event_page", pack_event_page(event)) for _, event in events]
    order = [start, *events[:2], descriptor, *events[2:], stop]
    with DocumentRecorder(settings.replaced(resend=True)) as recorder:
        for _ in range(2):
            answers = take_all(recorder, order)
            assert [one.put_off for one in answers] == [False, True, True, *[False] * 4]
            assert [one.rows for one in answers] == [0, 0, 0, 2, 1, 1, 0]
        assert recorder.ignored == {}
    with DocumentRecorder(settings) as recorder:
        for other in ([], list(growth(points=1))[:1]):  # nothing else is open, or another run
            take_all(recorder, other)
            answers = take_all(recorder, [order[0], *order * 2])
            assert answers == [Accepted(known=1)] * len(answers)
        assert set(recorder.ignored) == {"run taken before"}
    assert "came behind its stop document" not in caplog.text
    runs = SpoolStatus(Spool(settings.spool_path, read_only=True)).status()
    assert sorted(run.points.seen for run in runs if run.run_uid == start[1]["uid"]) == [8, 8]


def test_a_run_that_found_no_room_is_taken_from_a_replay_whose_events_come_first(
    settings: Settings, spool_dir: Path
) -> None:
    start, descriptor, *events, stop = old(points=3)
    order = [start, *events[:2], descriptor, *events[2:], stop]
    with DocumentRecorder(settings.replaced(spool_max_bytes=1_000_000)) as recorder:
        take_all(recorder, list(growth(points=1)))
        stuffing = stuffed(spool_dir)
        wait_until(lambda: not recorder.has_room)
        take_all(recorder, order)
        assert recorder.ignored == {"run not kept": 1}
        stuffing.unlink()
        wait_until(lambda: recorder.has_room)
        assert sum(one.rows for one in take_all(recorder, order)) == 3
        assert recorder.ignored == {"run not kept": 1}


class HostileUid(str):
    def __hash__(self) -> int:
        raise RuntimeError("a uid that cannot be compared")


MISSING = object()


@pytest.mark.parametrize("kind", ["event", "event_page", "bulk_events"])
@pytest.mark.parametrize("event_stream", ["primary", "baseline"])
@pytest.mark.parametrize("uid", [MISSING, None, ["e"], HostileUid("e")], ids=["missing", "none", "a list", "hostile"])
def test_an_event_without_a_usable_uid_is_in_the_account_of_its_run(
    settings: Settings, kind: str, event_stream: str, uid: Any
) -> None:
    start, (_, descriptor), (_, event), (_, other), (_, stop) = list(growth(points=2))
    documents = [start, ("descriptor", {**descriptor, "name": event_stream}), ("event", other)]
    if kind == "event_page":
        event = pack_event_page(event, {**event, "uid": "another"})
        event = {**event, "uid": [uid, "another"]}
    else:
        event = {**event, "uid": uid}
    if uid is MISSING:
        del event["uid"]
    doc = {descriptor["uid"]: [event]} if kind == "bulk_events" else event
    bad = 2 if kind == "event_page" else 1
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, documents)
        with pytest.raises(DocumentError, match="cannot be used"):
            recorder.take(kind, doc)
        assert recorder.ignored == {"malformed document": 1}
        recorder.take("stop", {**stop, "num_events": {event_stream: 1 + bad}})
    (run,) = SpoolStatus(Spool(settings.spool_path, read_only=True)).status()
    assert run.points.seen == 2 + 2 * bad
    assert dict(run.points.left_out)["malformed document"] == 2 * bad
    assert dict(run.not_given) == {}


@pytest.mark.parametrize("data", [MISSING, None, [], 5, np.zeros(3)], ids=["missing", "none", "[]", "5", "array"])
@pytest.mark.parametrize("event_stream", ["primary", "baseline"])
def test_an_event_without_readings_did_come(settings: Settings, data: Any, event_stream: str) -> None:
    start, (_, descriptor), (_, event), (_, other), (_, stop) = list(growth(points=2))
    event = {**event, "data": data}
    if data is MISSING:
        del event["data"]
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, ("descriptor", {**descriptor, "name": event_stream}), ("event", other)])
        if event_stream == "primary":
            with pytest.raises(DocumentError, match="cannot be used"):
                recorder.take("event", event)
        else:
            assert recorder.take("event", event).rows == 0
        recorder.take("stop", {**stop, "num_events": {event_stream: 2}})
    (run,) = SpoolStatus(Spool(settings.spool_path, read_only=True)).status()
    assert (run.points.seen, dict(run.not_given)) == (2, {})


@pytest.mark.parametrize("kind", ["event", "event_page"])
def test_an_event_that_cannot_be_read_counts_in_a_run_that_goes_on_too(settings: Settings, kind: str) -> None:
    start, descriptor, *events, stop = old(points=6)
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, descriptor, *events[:3]])
    broken = pack_event_page(*(event for _, event in events[3:5])) if kind == "event_page" else events[4][1]
    broken = {**broken, "timestamps": HostileMapping(broken["timestamps"])}
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, descriptor])
        with pytest.raises(DocumentError, match="cannot be used"):
            recorder.take(kind, broken)
        take_all(recorder, [*events[5:], stop])
    runs = SpoolStatus(Spool(settings.spool_path, read_only=True)).status()
    left_out = sum((Counter(run.points.left_out) for run in runs), Counter())
    assert left_out == {"malformed document": 2 if kind == "event" else 4}
    assert [dict(run.not_given) for run in runs] == [{}, {}]


class HostileColumn(list[Any]):
    """A column of somebody else's whose third row cannot be read."""

    def __getitem__(self, row: Any) -> Any:
        if row == 2:
            raise RuntimeError("not this one")
        return super().__getitem__(row)


def test_the_new_events_of_a_page_of_which_one_cannot_be_read_are_counted_and_no_others(settings: Settings) -> None:
    start, descriptor, *events, _ = old(points=6)
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, descriptor, *events[:2]])
    page = pack_event_page(*(events[n][1] for n in (1, 3, 4, 5)))  # the first of them is kept already
    page = {**page, "timestamps": {key: HostileColumn(column) for key, column in page["timestamps"].items()}}
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, descriptor])
        with pytest.raises(DocumentError, match="cannot be used"):
            recorder.take("event_page", page)
        take_all(recorder, events[2:3])
    runs = SpoolStatus(Spool(settings.spool_path, read_only=True)).status()

    assert sum((Counter(run.points.left_out) for run in runs), Counter()) == {"malformed document": 3 * 2}
    assert sum(run.points.waiting for run in runs) == 3 * 2


@pytest.mark.parametrize("as_page", [False, True])
@pytest.mark.parametrize("unit", ["ns", "s", "D"])
@pytest.mark.parametrize("kind", ["M8", "m8"])
def test_dates_in_an_array_are_no_numbers(settings: Settings, kind: str, unit: str, as_page: bool) -> None:
    (_, start), (_, descriptor), (_, event), (_, stop) = list(growth(points=1, keys=1))
    descriptor = {**descriptor, "data_keys": {"k0": {"dtype": "array", "shape": [3], "source": "sim"}}}
    dates = np.array([5, 6, 7], dtype=f"{kind}[{unit}]")
    values: list[Any] = [[1.0, 2.0, 3.0], dates, dates[:2], list(dates), dates.tolist() if unit != "ns" else dates]
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [("start", start), ("descriptor", descriptor)])
        for n, value in enumerate(values):
            doc = {**event, "uid": f"e{n}", "data": {"k0": value}}
            name = "event_page" if as_page else "event"
            if as_page:
                column = [value] if isinstance(value, list) else value.reshape(1, -1)
                doc = {**pack_event_page({**doc, "data": {}}), "data": {"k0": column}}
            assert recorder.take(name, doc).rows == 1
        recorder.take("stop", stop)
    (run,) = SpoolStatus(Spool(settings.spool_path, read_only=True)).status()
    assert (run.points.seen, run.points.waiting) == (3 * len(values), 3)
    assert dict(run.points.left_out) == {"not numeric": 3 * 4 - 1, "missing": 1}


def test_a_date_is_no_time(settings: Settings) -> None:
    (_, start), descriptor, (_, event), (_, other), (_, stop) = list(growth(points=2, keys=1))
    date = np.datetime64(int(start["time"] * 1e9), "ns")
    before = time.time()
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [("start", {**start, "time": date}), descriptor])
        for name, doc in (("event", event), ("event_page", pack_event_page(event))):
            with pytest.raises(DocumentError, match="no finite time"):
                recorder.take(name, {**doc, "time": np.array([date]) if name == "event_page" else date})
        assert recorder.take("event", {**other, "timestamps": {"k0": date}}).rows == 1
        recorder.take("stop", {**stop, "time": date})
    (run,) = SpoolStatus(Spool(settings.spool_path, read_only=True)).status()
    assert before - 1 < run.started < time.time() + 1
    assert dict(run.points.left_out) == {"malformed document": 2}


def test_what_tells_of_lost_readings_is_logged_however_much_was_logged_before(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    lost, late, growing = (list(growth(points=2)) for _ in range(3))
    with DocumentRecorder(settings.replaced(spool_max_bytes=1_000_000)) as recorder:
        take_all(recorder, growing[:1])
        take_all(recorder, late)
        for n in range(1500):
            recorder.take(f"kind {n}", {})
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(said) == 1001
        assert "that was the last of 1000 different warnings" in said[-1]
        caplog.clear()
        stuffed(settings.spool_path)
        wait_until(lambda: not recorder.has_room)
        take_all(recorder, lost)
        assert recorder.take(*late[2]).left_out == {"event behind its run's stop": 2}
        with pytest.raises(StartMissingError):
            recorder.take("stop", {"run_start": "nobody"})
        with pytest.raises(DocumentError):
            recorder.take("descriptor", {"run_start": 5})
        for _ in range(3):
            recorder.take("another kind", {})
    text = caplog.text
    for said_once in (
        f"run {lost[0][1]['uid']} is not recorded until there is room",
        f"an event of run {late[0][1]['uid']} came behind its stop document",
        "a stop document of run nobody, whose start never came, is ignored",
        "a document of kind 'descriptor' could not be used",
    ):
        assert text.count(said_once) == 1, said_once
    assert "another kind" not in text


class HostileText:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


def test_kinds_of_documents_that_are_none_are_logged_once_and_cost_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    documents = list(growth(points=2))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, documents[:3])
        for kind in [*map("kind {}".format, range(1500)), HostileText(), ["a list"], None]:
            with pytest.raises(DocumentError, match="cannot be used"):
                recorder.take(kind, None)  # type: ignore[arg-type]
        with pytest.raises(DocumentError, match="a document of kind HostileText cannot be used"):
            recorder.take(HostileText(), {})  # type: ignore[arg-type]
        assert recorder.ignored == {"malformed document": 1504}
        assert [one.rows for one in take_all(recorder, documents[3:])] == [1, 0]
    assert caplog.text.count("could not be used, the run goes on") == 1


class Uid(str):
    """A text that a weak reference may name."""


def test_runs_that_are_skipped_and_never_stop_are_forgotten_and_found_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remembered_runs, "REMEMBERED_RUNS", 5)
    caplog.set_level(logging.CRITICAL, "atomscale_bluesky.callback")  # a captured entry holds the uid too
    runs = [old(points=2) for _ in range(20)]
    with DocumentRecorder(settings) as recorder:
        for documents in runs:
            take_all(recorder, documents)
    with DocumentRecorder(settings) as recorder:
        uids: weakref.WeakSet[Uid] = weakref.WeakSet()
        for (_, start), descriptor, *_ in runs:
            uid = Uid(start["uid"])
            uids.add(uid)
            assert recorder.take("start", {**start, "uid": uid}) == Accepted(known=1)
            assert recorder.take(*descriptor) == Accepted(known=1)
            del uid, start
        gc.collect()
        assert len(uids) <= 5
        for _, descriptor, *events, stop in runs:
            assert take_all(recorder, [*events, descriptor, events[0], stop]) == [Accepted(known=1)] * 5
        assert recorder.ignored == {"run taken before": 20}


@pytest.mark.parametrize("bad", [None, 5, "text", {"uid": "e"}], ids=repr)
def test_a_list_of_events_that_is_none_costs_the_others_nothing(settings: Settings, bad: Any) -> None:
    start, descriptor, (_, event), stop = list(growth(points=1))
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, descriptor])
        with pytest.raises(DocumentError, match="expected a list of events"):
            recorder.take("bulk_events", {"first": bad, descriptor[1]["uid"]: [event], "last": bad})
        assert recorder.ignored == {"malformed document": 2}
        assert recorder.take("event", event) == Accepted(known=1)
        recorder.take(*stop)


@pytest.mark.parametrize("bad", [None, [1, 2], "text"], ids=repr)
def test_bulk_events_that_are_no_mapping_are_counted(settings: Settings, bad: Any) -> None:
    with DocumentRecorder(settings) as recorder:
        with pytest.raises(DocumentError, match="expected lists of events by descriptor uid"):
            recorder.take("bulk_events", bad)
        assert recorder.ignored == {"malformed document": 1}


@pytest.mark.parametrize("first", ["event", "stop"])
def test_a_run_whose_files_cannot_be_read_for_a_moment_goes_on_after_that(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    start, descriptor, *events, stop = old(points=6)
    with DocumentRecorder(settings) as recorder:
        take_all(recorder, [start, descriptor, *events[:3]])
    read_events, failures = known_runs.read_events, [OSError(errno.EIO, "Input/output error")]

    def fail_once(folder: Path) -> Any:
        if failures:
            raise failures.pop()
        return read_events(folder)

    with DocumentRecorder(settings, redelivers=True) as recorder:
        monkeypatch.setattr(known_runs, "read_events", fail_once)
        with pytest.raises(DocumentError, match="Input/output error"):
            recorder.take(*(stop if first == "stop" else events[3]))
        answers = take_all(recorder, [*events[3:], stop])
        assert [one.rows for one in answers] == [1, 1, 1, 0]
        assert recorder.ignored == {"malformed document": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_is_forked_by_a_log_handler_writes_its_own_log(settings: Settings) -> None:
    script = """
import logging, os, sys, threading
from atomscale_bluesky import AtomscaleCallback, Settings
callback = AtomscaleCallback(settings=Settings.load(environ={}, offline=True, spool_dir=sys.argv[1]))
class Panel(logging.Handler):
    def emit(self, record):
        if "first" in record.getMessage() and os.fork() == 0:
            logger.removeHandler(self)
            logger.addHandler(logging.StreamHandler(sys.stdout))
            callback("second", {})
            sys.stdout.flush()
            os._exit(0)
logger = logging.getLogger("atomscale_bluesky.callback")
logger.addHandler(Panel())
callback("first", {})
os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(settings.spool_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("'second'") == 1, done.stderr
