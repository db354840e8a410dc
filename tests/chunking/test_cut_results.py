"""Which of the chunks that were cut are still to be pushed, and what delivery takes of them."""

from __future__ import annotations

import pytest
from chunks import chunk_of
from msgspec import structs

from atomscale_bluesky.chunking.cut_results import CutResults
from atomscale_bluesky.model.chunk import Chunk, Column
from atomscale_bluesky.spool.ledger_format import (
    Confirmed,
    Finalized,
    Finalizing,
    Initialized,
    LedgerLine,
    Opened,
    Parked,
    Refused,
    Tried,
)
from atomscale_bluesky.spool.ledger_state import LedgerState

BEGUN = [Opened(0, "primary", 0, "run start", "label", "t", 3, 1, 0), Initialized(0, "id", "metrology")]
TRIED = Tried(0, 0, 0, 2, 3, ("a",), 1, 0, 5.0)


def chunk(index: int, points: int = 3, stream: int = 0) -> Chunk:
    columns = [Column("a", None, tuple([1.0] * points))]
    return structs.replace(chunk_of(index, [5.0] * points, columns, first_row=3 * index), stream=stream)


def results(*facts: LedgerLine) -> CutResults:
    state = LedgerState()
    for fact in facts:
        state.apply(fact)
    return CutResults(state)


@pytest.mark.parametrize(
    ("facts", "ready"),
    [
        (BEGUN[:1], True),
        (BEGUN, True),
        ([*BEGUN, TRIED], True),
        ([*BEGUN, TRIED, Confirmed(0, 0, 9.0)], False),
        ([*BEGUN, TRIED, Refused(0, 0, ("a",), 422, "no")], False),
        ([*BEGUN, Parked("it is too large", 0)], False),
        ([*BEGUN, Finalizing(0)], False),
        ([*BEGUN, Finalizing(0), Finalized(0, 9.0)], False),
    ],
)
def test_a_chunk_is_pushed_unless_it_was_or_may_not_be(facts: list[LedgerLine], ready: bool) -> None:
    found = results(*facts)
    one = chunk(0)

    found.add_if_to_push(one)

    assert list(found.ready) == ([one] if ready else [])
    assert found.pop_damaged() == []


@pytest.mark.parametrize(("points", "damaged"), [(2, True), (3, False), (4, False)])
def test_a_chunk_that_was_tried_and_has_fewer_points_now_is_never_sent(points: int, damaged: bool) -> None:
    found = results(*BEGUN, TRIED)
    one = chunk(0, points)

    found.add_if_to_push(one)

    assert (list(found.ready), found.pop_damaged()) == (([], [one]) if damaged else ([one], []))
    assert found.pop_damaged() == []


def test_the_first_chunk_that_may_leave_is_taken_and_the_others_keep_their_order() -> None:
    found = results(*BEGUN, structs.replace(BEGUN[0], stream=1))
    chunks = [chunk(0), chunk(0, stream=1), chunk(1), chunk(1, stream=1)]
    for one in chunks:
        found.add_if_to_push(one)

    assert found.pop_ready(lambda one: one.index == 7) is None
    assert found.pop_ready(lambda one: one.stream == 1) is chunks[1]
    assert list(found.ready) == [chunks[0], *chunks[2:]]
    assert found.drop_ready({0}) == [chunks[0], chunks[2]]
    assert list(found.ready) == [chunks[3]]
    assert found.pop_ready(lambda one: True) is chunks[3]
    assert found.pop_ready(lambda one: True) is None


def test_a_stream_is_cut_short_once_it_may_end() -> None:
    found = results(*BEGUN)
    for stream in (3, 1, 3):
        found.add_to_cut_short(stream)
        found.add_outgrown(stream)

    assert sorted(found.outgrown) == [1, 3]
    assert found.pop_to_cut_short(lambda stream: stream == 3) == [3]
    assert found.pop_to_cut_short(lambda stream: stream == 3) == []
    assert found.pop_to_cut_short(lambda stream: True) == [1]
