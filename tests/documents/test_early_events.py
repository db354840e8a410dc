"""Events that wait for their descriptors: how many may, how long they do, and when there is room again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atomscale_bluesky.documents import early_events
from atomscale_bluesky.documents.early_events import EarlyEvents


def hold(early: EarlyEvents, descriptor: str, *values: Any, name: str = "event") -> bool:
    return early.hold(descriptor, name, {"data": {f"k{n}": value for n, value in enumerate(values)}}, events=1)


def test_events_come_out_as_they_came_by_descriptor() -> None:
    early = EarlyEvents()
    assert not early
    for descriptor, value in (("a", 1), ("b", 2), ("a", 3)):
        assert hold(early, descriptor, value)

    assert early
    assert list(early.descriptors) == ["a", "b"]
    for expected in (1, 3):
        event = early.first("a")
        assert event is not None
        assert (event.descriptor, event.name, event.doc, event.events) == ("a", "event", {"data": {"k0": expected}}, 1)
        assert early.first("a") is event  # it waits until it is forgotten
        early.forget_first("a")
    assert (early.first("a"), list(early.descriptors), bool(early)) == (None, ["b"], True)
    early.forget_first("b")
    assert not early


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1.5, 1), (None, 1), ({}, 1), ("five.", 5), (b"four", 4), ([1, 2, 3], 3), ((1, 2), 2), ([], 0),
        (np.zeros((2, 3)), 6), (np.float64(1), 1),
    ],
    ids=repr,
)  # fmt: skip
def test_events_wait_with_up_to_so_many_values(monkeypatch: pytest.MonkeyPatch, value: Any, size: int) -> None:
    monkeypatch.setattr(early_events, "MAX_VALUES", 2 * size + 3)
    early = EarlyEvents()
    assert hold(early, "a", value, 1)
    assert hold(early, "a", value, 1, 1)

    assert not hold(early, "b", 1)
    assert hold(early, "b")  # it has no value
    early.forget_first("a")
    assert not hold(early, "c", value, 1, 1)
    assert hold(early, "c", value, 1)


def test_up_to_so_many_documents_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_events, "MAX_DOCUMENTS", 3)
    early = EarlyEvents()

    assert [hold(early, str(n)) for n in range(5)] == [True, True, True, False, False]
    early.forget_first("1")
    assert [hold(early, str(n)) for n in range(5, 7)] == [True, False]
    assert list(early.descriptors) == ["0", "2", "5"]


def test_what_is_given_up_waits_no_longer_and_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_events, "MAX_DOCUMENTS", 3)
    early = EarlyEvents()
    for descriptor in ("a", "b", "a"):
        hold(early, descriptor, 1)

    assert [event.descriptor for event in early.give_up(["a", "unknown"])] == ["a", "a"]
    assert list(early.descriptors) == ["b"]
    assert [hold(early, "c") for _ in range(3)] == [True, True, False]
    assert [event.descriptor for event in early.give_up(early.descriptors)] == ["b", "c", "c"]
    assert not early


def test_all_are_forgotten_at_once() -> None:
    early = EarlyEvents()
    hold(early, "a", np.zeros(early_events.MAX_VALUES))
    early.note_run_ended()

    early.clear()

    assert (bool(early), list(early.descriptors), list(early.of_any_run), early.note_stop()) == (False, [], [], [])
    assert hold(early, "b", np.zeros(early_events.MAX_VALUES))


def test_events_wait_for_a_hundred_stops_after_the_first_of_their_descriptor() -> None:
    early = EarlyEvents()
    early.note_stop()
    hold(early, "a")
    for _ in range(50):
        assert early.note_stop() == []
    hold(early, "a")
    hold(early, "b")
    for _ in range(49):
        assert early.note_stop() == []

    assert early.note_stop() == ["a"]
    assert early.note_stop() == ["a"]  # until they are given up
    early.forget_first("a")
    early.forget_first("a")
    hold(early, "a")  # waits anew
    for _ in range(48):
        assert early.note_stop() == []
    assert early.note_stop() == ["b"]


def test_events_that_wait_while_a_run_ends_may_be_of_that_run() -> None:
    early = EarlyEvents()
    hold(early, "a")
    early.note_run_ended()
    hold(early, "a")
    hold(early, "b")
    assert set(early.of_any_run) == {"a"}

    early.forget_first("a")
    assert set(early.of_any_run) == {"a"}
    early.forget_first("a")
    assert set(early.of_any_run) == set()
