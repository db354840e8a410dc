"""What is known of an interrupted run's events, and what that takes."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import growth

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.spool.kept_events import MAX_BYTES, MAX_EVENTS, Events, KeptEvents, digest_of, stored_events
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]


def events_of(*uids: str, **times: list[float]) -> Events:
    return Events(array("Q", map(digest_of, uids)), {name: array("d", values) for name, values in times.items()})


def test_an_event_is_known_by_its_uid_or_as_often_as_its_time_was_kept() -> None:
    kept = KeptEvents([events_of("e1", "e2", "e3", "e4", primary=[1.0, 2.0, 2.0], fly=[5.0])])

    assert kept.has("primary", "new 1", [1.0])
    assert not kept.has("primary", "new 2", [1.0])
    assert [kept.has("primary", f"newer {n}", [0.5, 2.0]) for n in range(3)] == [True, True, False]
    assert kept.has("fly", "e4", [5.0])
    assert not kept.has("fly", "new", [5.0])  # its source keeps uids, so this one is new
    assert not kept.has("other", "new", [5.0])
    assert kept.by_time == 3


def test_a_replay_with_uids_of_its_own_tells_nothing_of_another_journal() -> None:
    kept = KeptEvents([events_of("e1", "e2", primary=[1.0, 2.0]), events_of("f3", "f4", primary=[3.0, 4.0])])

    assert [kept.has("primary", uid, [at]) for uid, at in [("f3", 3.0), ("f1", 1.0), ("f2", 2.0)]] == [True] * 3
    assert not kept.has("primary", "f5", [4.0])  # another event at the time of f4, in the journal that keeps uids
    assert not kept.has("primary", "f6", [2.0])
    assert kept.by_time == 2


def test_an_event_that_its_time_told_is_told_again_where_its_call_was_interrupted() -> None:
    kept = KeptEvents([events_of("e1", primary=[1.0])])

    assert [kept.has("primary", uid, [1.0]) for uid in ("new 1", "new 1", "new 2")] == [True, True, False]
    assert kept.by_time == 1


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


def test_events_beyond_the_bound_are_counted_and_not_known() -> None:
    half = MAX_EVENTS // 2 + 1
    many = [Events(array("Q", range(n, n + half)), {"primary": array("d", [n]) * half}) for n in (0, half)]
    kept = KeptEvents(many)

    assert kept.beyond == 2


def test_files_of_events_that_are_too_large_together_go_oldest_first_and_no_others(
    make_callback: MakeCallback, spool_dir: Path
) -> None:
    Spool(spool_dir).writers.close()
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
    events = stored_events(spool_dir, entry["events"])
    assert events is not None
    assert len(events.uids) == len(events.times["primary"]) == 5
    assert stored_events(spool_dir, names[1]) is None  # damaged: that costs nothing but what it knew
