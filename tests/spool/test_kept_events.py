"""What is known of an interrupted run's events, and what that takes."""

from __future__ import annotations

import errno
import math
import os
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from refusing import refuse
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, SpoolFullError
from atomscale_bluesky.model.rows import Channel
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.journal_events import MAX_ROWS, EventDigests, digest_of, fingerprint_of, read_events
from atomscale_bluesky.spool.journal_format import (
    DataKey,
    Described,
    Header,
    Layout,
    LeftOut,
    Stop,
    encode_row,
    pack_values,
)
from atomscale_bluesky.spool.journal_writer import JournalWriter
from atomscale_bluesky.spool.kept_events import KeptEvents, KeptSpan
from atomscale_bluesky.spool.lines import checksummed, encode
from atomscale_bluesky.spool.row_record import encode_one
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.spool.stored_events import MAX_BYTES, load_events, store_events

MakeCallback = Callable[..., AtomscaleCallback]


def events_of(*uids: str, **times: list[float]) -> EventDigests:
    """The events of an earlier version's file, which knows uids and times alone."""
    stored = {name: array("d", values) for name, values in times.items()}
    return EventDigests(
        array("Q", map(digest_of, uids)), array("H", [0xFFFF]) * len(uids), array("Q", [0]) * len(uids), times=stored
    )


def has(kept: KeptEvents, event_stream: str, uid: str, times: list[float]) -> bool:
    return kept.recognise(event_stream, uid, ["a"], times, lambda layout: iter(())) is not None


def test_an_event_is_known_by_its_uid_or_as_often_as_its_time_was_kept() -> None:
    kept = KeptEvents([events_of("e1", "e2", "e3", "e4", primary=[1.0, 2.0, 2.0], fly=[5.0])])

    assert has(kept, "primary", "new 1", [1.0])
    assert not has(kept, "primary", "new 2", [1.0])
    assert [has(kept, "primary", f"newer {n}", [0.5, 2.0]) for n in range(3)] == [True, True, False]
    assert has(kept, "fly", "e4", [5.0])
    assert not has(kept, "fly", "new", [5.0])  # its source keeps uids, so this one is new
    assert not has(kept, "other", "new", [5.0])
    assert kept.recognised_by_time == 3


def test_a_replay_with_uids_of_its_own_tells_nothing_of_another_journal() -> None:
    kept = KeptEvents([events_of("e1", "e2", primary=[1.0, 2.0]), events_of("f3", "f4", primary=[3.0, 4.0])])

    assert [has(kept, "primary", uid, [at]) for uid, at in [("f3", 3.0), ("f1", 1.0), ("f2", 2.0)]] == [True] * 3
    assert not has(kept, "primary", "f5", [4.0])  # another event at the time of f4, in the journal that keeps uids
    assert not has(kept, "primary", "f6", [2.0])
    assert kept.recognised_by_time == 2


def test_an_event_that_its_time_told_is_told_again_where_its_call_was_interrupted() -> None:
    kept = KeptEvents([events_of("e1", primary=[1.0])])

    assert [has(kept, "primary", uid, [1.0]) for uid in ("new 1", "new 1", "new 2")] == [True, True, False]
    assert kept.recognised_by_time == 1


@pytest.mark.parametrize("uid", ["", "\ud800", 'with "quotes" and \\', 7, None])
def test_any_uid_has_a_digest(uid: object) -> None:
    assert 0 <= digest_of(uid) < 2**64


def test_a_uid_that_needs_escapes_is_known_again(make_callback: MakeCallback) -> None:
    documents = [
        (name, doc | {"time": time.time() - 60} if name == "start" else doc | {"uid": f'"{n}\\'})
        if name in {"start", "event"}
        else (name, doc)
        for n, (name, doc) in enumerate(growth(points=8))
    ]
    with make_callback(offline=True) as first:
        for name, doc in documents[:6]:
            first(name, doc)
    second = make_callback(offline=True)
    for name, doc in documents:
        second(name, doc)

    assert second.ignored == {"event seen before": 4}


@pytest.mark.parametrize(
    "uid", ["e-1", "0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60", 'quote "', "back\\slash", "Grö\u00dfe", "", "a,b", 7]
)
@pytest.mark.parametrize("gaps", [{}, {"b": "not finite"}])
@pytest.mark.parametrize("rounded", [[], ["a"]])
def test_a_row_is_known_by_its_uid_time_and_values_however_it_is_written(
    tmp_path: Path, uid: Any, gaps: dict[str, str], rounded: list[str]
) -> None:
    known = layout(3, "m", "a", "b")
    values = [1.5, None if gaps else -0.25]
    lines = [encode(known), encode_row(3, 0, 1760000000.125, uid, pack_values(values), gaps, rounded)]
    record = None if gaps else encode_one(3, 1, 1760000000.125, uid, [1.5, -0.25])
    writer = JournalWriter(tmp_path)
    writer.append(b"".join(map(checksummed, lines)) + (record or b""))
    writer.close()

    events = read_events(tmp_path)

    count = 1 if record is None else 2
    assert list(events.uids) == [digest_of(uid)] * count
    assert list(events.fingerprints) == [fingerprint_of(known, 1760000000.125, pack_values(values))] * count
    assert (list(events.layout_places), events.layouts) == ([0] * count, [known])
    other = fingerprint_of(known, 1760000000.125, pack_values([2.5, values[1]]))
    assert events.fingerprints[0] != other


def test_the_source_of_a_journal_made_up_its_uids_if_any_of_them_looks_so(tmp_path: Path) -> None:
    for number, uids in enumerate((["e-1", "my event-2"], ["e-1", "event-d-2", "e-3"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        writer = JournalWriter(folder)
        lines = [encode(layout(0, "m", "a"))] + [
            encode_row(0, n, 5.5, uid, pack_values([1])) for n, uid in enumerate(uids)
        ]
        writer.append(b"".join(map(checksummed, lines)))
        writer.close()

    assert [read_events(tmp_path / str(number)).made_up for number in range(2)] == [False, True]


def test_rows_beyond_the_bound_are_counted_and_not_known() -> None:
    half = MAX_ROWS // 2 + 1
    many = [
        EventDigests(array("Q", range(n, n + half)), array("H", [0xFFFF]) * half, array("Q", [0]) * half)
        for n in (0, half)
    ]
    kept = KeptEvents(many)

    assert kept.rows_not_remembered == 2


def layout(number: int, time_base: str, *keys: str, **left_out: str) -> Layout:
    channels = tuple(Channel(key, key) for key in keys)
    return Layout(number, time_base.partition("/")[0], time_base, channels, left_out)


def rows_of(*rows: tuple[str, int, float, float], known: list[Layout]) -> EventDigests:
    """The rows of a journal: event uid, layout, time and value of its one channel."""
    return EventDigests(
        array("Q", [digest_of(uid) for uid, *_ in rows]),
        array("H", [number for _, number, *_ in rows]),
        array("Q", [
            fingerprint_of(known[number], at, pack_values([value])) if "/" not in known[number].time_base else 0
            for _, number, at, value in rows
        ]),
        known,
    )  # fmt: skip


def of(kept: KeptEvents, uid: str, at: float, **data: float) -> set[str] | None:
    """The data keys of an event that are not kept; None for a new event."""

    def possible_rows(layout: Layout) -> Iterator[tuple[float, bytes]]:
        yield at, pack_values(data[channel.key] for channel in layout.channels)

    found = kept.recognise("m", uid, data.keys(), [at], possible_rows)
    return None if found is None else set(found.lacks(data))


BASES = [layout(0, "m", "a", note="text"), layout(1, "m/b", "b")]


@pytest.mark.parametrize(
    ("rows", "shows"),
    [
        ([], False),
        ([[0]], False),
        ([[1]], False),  # only a guess, by the first row
        ([[1, 1]], True),
        ([[1, 1, 1]], True),
        ([[1], [1]], True),  # in two journals
        ([[0, 1, 0, 2]], False),  # the other one is of another event stream
        ([[3, 3]], False),  # of a key that has times of its own
    ],
)
def test_two_rows_at_their_readings_own_times_show_that_rows_were_collected(rows: list[list[int]], shows: bool) -> None:
    layouts = [
        layout(0, "m", "a"),
        structs.replace(layout(1, "m", "a"), own_times=True),
        structs.replace(layout(2, "another", "a"), own_times=True),
        structs.replace(layout(3, "m/b", "b"), own_times=True),
    ]
    journals = [
        rows_of(*[(f"e{n}", number, float(n), 1.0) for n, number in enumerate(numbers)], known=layouts)
        for numbers in rows
    ]

    assert KeptEvents(journals).shows_collected("m") == shows


def test_an_event_of_which_a_row_is_missing_lacks_the_keys_of_that_row() -> None:
    kept = KeptEvents([rows_of(("e1", 0, 1.0, 5.0), ("e1", 1, 0.5, 6.0), ("e2", 0, 2.0, 7.0), known=BASES)])

    assert of(kept, "e1", 1.0, a=5.0, b=6.0, note=0.0) == set()
    assert of(kept, "e2", 2.0, a=7.0, b=6.0, note=0.0) == {"b"}
    assert of(kept, "e3", 1.0, a=5.0, b=6.0) is None  # its source keeps uids


def test_an_event_with_a_new_uid_is_known_by_its_time_and_values_as_often_as_they_were_kept() -> None:
    kept = KeptEvents([rows_of(("e1", 0, 1.0, 5.0), ("e1", 1, 0.5, 6.0), ("e2", 0, 1.0, 5.0), known=BASES)])

    assert of(kept, "x1", 1.0, a=4.0, b=6.0) is None
    assert of(kept, "x2", 1.5, a=5.0, b=6.0) is None
    assert [of(kept, f"y{n}", 1.0, a=5.0, b=6.0) for n in range(3)] == [set(), {"b"}, None]
    assert of(kept, "y0", 1.0, a=5.0, b=6.0) == set()  # it comes again
    assert kept.recognised_by_time == 2


def test_the_parts_of_an_event_in_two_journals_are_known_together() -> None:
    first = rows_of(("e1", 0, 1.0, 5.0), known=BASES)
    second = rows_of(("e1", 1, 0.5, 6.0), known=BASES)

    assert of(KeptEvents([first, second]), "e1", 1.0, a=5.0, b=6.0) == set()
    assert of(KeptEvents([first, second]), "x1", 1.0, a=5.0, b=6.0) == set()


def test_where_a_run_goes_on_with_its_own_uids_equal_rows_are_new_ones() -> None:
    kept = KeptEvents([rows_of(("e1", 0, 1.0, 5.0), known=BASES)], uids_alone=True)

    assert of(kept, "e2", 1.0, a=5.0) is None
    assert of(kept, "e1", 1.0, a=5.0) == set()


RUN = "20260101T020000-deadbeef"


def run_with_events(spool: Path) -> Path:
    """A journal with each kind of line that its run needs to go on."""
    folder = spool / RUN
    folder.mkdir()
    lines: list[Any] = [
        Header(1, "b7c2e9f1", 1760000000.0, "growth", 10, "primary", "https://api.atomscale.ai", "null"),
        Described("d-1", "m", {"a": DataKey()}),
        *BASES,
        LeftOut("", "text", 3, {"note": 3}),
    ]
    rows = [encode_row(n % 2, n // 2, 5.5 + n, f"event-d-1-{n // 2}", pack_values([n])) for n in range(6)]
    stop = Stop(1760000100.0, "", "no stop document", interrupted=True)
    writer = JournalWriter(folder)
    writer.append(b"".join(map(checksummed, [*map(encode, lines), *rows, encode(stop)])))
    writer.close()
    return folder


def test_the_events_of_a_run_are_loaded_as_they_were_stored(tmp_path: Path) -> None:
    folder = run_with_events(tmp_path)
    events = read_events(folder)
    assert (len(events.uids), len(events.descriptors), len(events.left_out), events.made_up) == (6, 1, 1, True)
    assert [bool(one) for one in events.fingerprints] == [True, False] * 3  # each second row is of the same event

    assert store_events(folder) == (tmp_path / f"{RUN}.events", ["d-1"], None)

    assert load_events(tmp_path, f"{RUN}.events") == structs.replace(events, stop=None)  # whose run was interrupted


def test_a_list_of_events_that_is_gone_damaged_or_none_of_ours_tells_nothing(tmp_path: Path) -> None:
    store_events(run_with_events(tmp_path))
    path = tmp_path / f"{RUN}.events"
    for name in ("20260101T020000-0badbeef.events", f"../{tmp_path.name}/{RUN}.events", "None"):
        assert load_events(tmp_path, name) is None
    whole = path.read_bytes()
    damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 4, len(whole) - 1)]
    for content in (b"", whole[:4], whole[:-1], *damaged):
        path.write_bytes(content)
        assert load_events(tmp_path, path.name) is None
    path.write_bytes(whole)
    assert load_events(tmp_path, path.name) is not None


def test_on_a_disk_that_takes_nothing_no_list_of_events_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_with_events(tmp_path)
    before = sorted(tmp_path.iterdir())
    refuse(monkeypatch, "replace", tmp_path, errno.ENOSPC)

    with pytest.raises(SpoolFullError):
        store_events(folder)
    assert sorted(tmp_path.iterdir()) == before


def test_files_of_events_that_are_too_large_together_go_oldest_first_and_no_others(
    make_callback: MakeCallback, spool_dir: Path
) -> None:
    Spool(spool_dir).writers.stop_threads()
    names = ["20200101T000000-00000001.events", "20200102T000000-00000002.events", "mine.events"]
    for name in names:
        with (spool_dir / name).open("wb") as file:
            file.truncate(MAX_BYTES // 2 + 1)  # takes no room on the disk
    callback = make_callback()
    for name, doc in list(growth(points=5))[:-1]:
        callback(name, doc)
    assert callback.close(timeout_s=20)

    (entry,) = Spool(spool_dir).history.entries()
    assert sorted(path.name for path in spool_dir.glob("*.events")) == sorted([names[1], names[2], entry["events"]])
    events = load_events(spool_dir, entry["events"])
    assert events is not None
    assert len(events.uids) == len(events.fingerprints) == len(events.layout_places) == 5
    assert [layout.event_stream for layout in events.layouts] == ["primary"]
    assert events.header is not None
    assert list(events.descriptors) == entry["descriptors"]
    assert load_events(spool_dir, names[1]) is None  # damaged: that costs nothing but what it knew


def test_what_is_left_of_a_journal_recognises_a_replay_from_its_beginning_alone() -> None:
    whole, late = (KeptEvents([], {"primary": [KeptSpan(first, 13.0)]}) for first in (10.0, 12.0))
    old_stamp = 1.0  # of a signal that has not changed for long

    assert [has(whole, "primary", f"e{n}", [10.0 + n, old_stamp]) for n in range(6)] == [True] * 4 + [False] * 2
    assert [n for n in range(6) if has(late, "primary", f"e{n}", [10.0 + n, old_stamp])] == [2, 3]
    assert (whole.recognised_by_time, whole.possibly_taken_twice) == (4, 0)
    assert (late.recognised_by_time, late.possibly_taken_twice) == (2, 2)


@pytest.mark.parametrize("first", [10.0, math.nan])
def test_the_rest_of_a_run_is_new_although_the_clock_was_set_back_or_a_stamp_is_old(first: float) -> None:
    kept = KeptEvents([], {"primary": [KeptSpan(first, 13.0)]})

    assert not any(has(kept, "primary", f"e{n}", [11.5 + n, 1.0]) for n in range(4))
    assert kept.possibly_taken_twice == 2  # those not later than the last row


def test_behind_a_step_back_of_the_clock_a_replay_is_new() -> None:
    kept = KeptEvents([], {"primary": [KeptSpan(10.0, 13.0)]})

    assert [has(kept, "primary", f"e{at}", [at]) for at in (10.0, 11.0, 10.5, 12.0)] == [True, True, False, False]
    assert kept.possibly_taken_twice == 2


@pytest.mark.parametrize("from_the_beginning", [True, False])
def test_of_an_interrupted_run_whose_list_of_events_is_gone_nothing_is_lost(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer, from_the_beginning: bool
) -> None:
    documents = list(growth(points=30, keys=1))
    before = make_callback()
    for name, doc in documents[:22]:
        before(name, doc)
    assert before.close(timeout_s=20)
    (entry,) = Spool(spool_dir).history.entries()
    (spool_dir / entry["events"]).unlink()
    if not from_the_beginning:  # the clock was set back before the rest
        for name, doc in documents[22:]:
            doc["time"] -= 0.1
            if name == "event":
                doc["timestamps"] = {"k0": doc["time"]}

    callback = make_callback()
    for name, doc in documents if from_the_beginning else [*documents[:2], *documents[22:]]:
        callback(name, doc)

    assert callback.drain(timeout_s=20)
    assert sorted(held(server)["k0"]) == [float(n) for n in range(30)]


def test_the_list_of_events_is_on_the_disk_before_the_journal_is_removed(
    make_callback: MakeCallback, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    removed: list[tuple[str, set[int]]] = []  # each file with what was synced before
    sync, remove = os.fdatasync, os.unlink

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def watched(path: Any, *args: Any, **more: Any) -> None:
        removed.append((str(path), set(synced)))
        remove(path, *args, **more)

    monkeypatch.setattr(os, "fdatasync", noted)
    monkeypatch.setattr(os, "unlink", watched)
    callback = make_callback()
    for name, doc in list(growth(points=5))[:-1]:
        callback(name, doc)
    assert callback.close(timeout_s=20)

    (entry,) = Spool(spool_dir).history.entries()
    number = (spool_dir / entry["events"]).stat().st_ino
    of_the_run = [before for path, before in removed if path.endswith(("head.jsonl", "journal-0001.jsonl"))]
    assert len(of_the_run) == 2
    assert all(number in before for before in of_the_run)


def test_a_run_whose_list_of_events_cannot_be_written_stays_and_holds_up_no_other(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer
) -> None:
    before = make_callback(offline=True)
    for name, doc in list(growth(points=5, keys=1))[:-1]:
        before(name, doc)
    before.close()
    (folder,) = Spool(spool_dir).run_folders()
    in_its_place = spool_dir / f"{folder.name}.events"
    in_its_place.mkdir()

    callback = make_callback()
    other = list(growth(points=7, keys=1))
    for name, doc in other:
        callback(name, doc)
    wait_until(lambda: len(Spool(spool_dir).history.entries()) == 1 and len(held(server)["k0"]) == 12)
    assert Spool(spool_dir).history.entries()[0]["run_uid"] == other[0][1]["uid"]
    assert Spool(spool_dir).run_folders() == [folder]

    in_its_place.rmdir()
    assert callback.drain(timeout_s=20)
    assert [entry["interrupted"] for entry in Spool(spool_dir).history.entries()] == [False, True]
    assert in_its_place.is_file()
