"""What became of streams and chunks: moves that cannot follow are refused, and reading back tells the same."""

from __future__ import annotations

import os
import random
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from atomscale_bluesky import SpoolError
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.model.rows import Position
from atomscale_bluesky.spool.ledger import Ledger, LedgerReader
from atomscale_bluesky.spool.ledger_format import (
    ChannelLeft,
    ClockFixed,
    Confirmed,
    Discarded,
    Edited,
    Ended,
    Finalized,
    Finalizing,
    Initialized,
    Initializing,
    LedgerLine,
    Linked,
    LinkRefused,
    Moved,
    Opened,
    Parked,
    PreviewAnswered,
    Previewed,
    PreviewsEnded,
    Refused,
    Resolved,
    Together,
    Tried,
    Unparked,
    Unresolved,
    Verified,
)
from atomscale_bluesky.spool.ledger_state import LedgerState
from atomscale_bluesky.spool.lines import checksummed, encode
from atomscale_bluesky.spool.stream_state import Life, MetrologyStreamState, RowsNotHeld

OPENED = Opened(0, "primary", 0, "run start", "label", "token", 10, 1, 0)
INITIALIZING = Initializing(0, "metrology")
INITIALIZED = Initialized(0, "id", "metrology")


def tried(index: int, channels: str = "ab", stream: int = 0) -> Tried:
    return Tried(stream, index, 10 * index, 10 * index + 9, 10, tuple(channels), 1, 100 * index, 5.0 + index)


def folded(*facts: LedgerLine) -> LedgerState:
    state = LedgerState()
    for fact in facts:
        state.apply(fact)
    return state


def stream_of(*facts: LedgerLine) -> MetrologyStreamState:
    return folded(OPENED, INITIALIZING, INITIALIZED, *facts).streams[0]


# ---- moves -----------------------------------------------------------------------------------------------------------


def test_a_stream_lives_from_its_opening_to_its_end() -> None:
    state = LedgerState()
    lives = []
    for fact in (OPENED, INITIALIZING, INITIALIZED, tried(0), Confirmed(0, 0, 9.0), Finalizing(0), Finalized(0, 10.0)):
        state.apply(fact)
        lives.append(state.streams[0].life)

    assert lives == [
        Life.OPENED, Life.INITIALIZING, Life.INITIALIZED, Life.INITIALIZED, Life.INITIALIZED, Life.FINALIZING,
        Life.FINALIZED,
    ]  # fmt: skip
    assert (state.streams[0].data_id, state.streams[0].family) == ("id", "metrology")
    assert (state.streams[0].confirmed_at, state.streams[0].finalized_at) == (9.0, 10.0)


WHOLE = [OPENED, INITIALIZING, INITIALIZED, tried(0), Confirmed(0, 0, 9.0), Finalizing(0), Finalized(0, 10.0)]


@pytest.mark.parametrize(
    ("before", "fact"),
    [
        (1, OPENED),
        (0, INITIALIZING),
        (0, INITIALIZED),
        (0, tried(0)),
        (0, Confirmed(0, 0, 1.0)),
        (0, ChannelLeft(0, "a", 5)),
        (0, Finalizing(0)),
        (1, Finalizing(0)),
        (1, Finalized(0, 1.0)),
        (1, Confirmed(0, 0, 1.0)),
        (1, Refused(0, 0, ("a",), 422, "no")),
        (3, INITIALIZING),
        (3, INITIALIZED),
        (3, tried(1)),
        (3, Confirmed(0, 0, 1.0)),
        (3, Finalized(0, 1.0)),
        (4, tried(0)),
        (4, tried(2)),
        (4, Finalizing(0)),
        (4, Confirmed(0, 1, 1.0)),
        (5, Confirmed(0, 0, 1.0)),
        (6, INITIALIZED),
        (6, Confirmed(0, 0, 1.0)),
        (6, Refused(0, 0, ("a",), 422, "no")),
        (7, Finalized(0, 1.0)),
        (7, Finalizing(0)),
        (7, INITIALIZING),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else None,
)
def test_a_move_that_cannot_follow_is_refused_and_changes_nothing(before: int, fact: LedgerLine) -> None:
    state = folded(*WHOLE[:before])
    shown = repr(state.streams)

    with pytest.raises(SpoolError):
        state.apply(fact)

    assert repr(state.streams) == shown


def previewed(index: int, points: int) -> Previewed:
    return Previewed(0, index, 10 * index, 10 * index + points - 1, points, ("a", "b"), 1, 100 * index, 5.0)


SHOWN = PreviewAnswered(0, 0, taken=True)


@pytest.mark.parametrize(
    "facts",
    [
        [previewed(1, 4)],
        [tried(0), previewed(0, 4)],
        [previewed(0, 4), previewed(0, 5)],
        [previewed(0, 4), SHOWN, previewed(0, 4)],
        [previewed(0, 4), SHOWN, previewed(0, 3)],
        [previewed(0, 4), PreviewAnswered(0, 0, taken=False), previewed(0, 5), previewed(0, 6)],
    ],
    ids=["of a later chunk", "of a tried chunk", "before an answer", "without more", "with fewer", "before another"],
)
def test_a_preview_only_ever_grows_and_waits_for_the_answer_to_the_last_one(facts: list[LedgerLine]) -> None:
    stream_of(*facts[:-1])
    with pytest.raises(SpoolError, match="cannot follow"):
        stream_of(*facts)


def test_a_preview_that_was_not_taken_leaves_what_was_shown_before() -> None:
    stream = stream_of(previewed(0, 4), SHOWN, previewed(0, 6), PreviewAnswered(0, 0, taken=False))

    assert stream.last_preview_taken == stream.last_preview == previewed(0, 4)
    assert stream.delivered.total() == 0


def test_a_chunk_that_is_cut_short_replaces_the_one_that_was_tried_whole_and_is_the_last() -> None:
    short = previewed(0, 4).as_tried(cut_short=True)
    stream = stream_of(
        previewed(0, 4), SHOWN, tried(0), Refused(0, 0, ("a", "b"), 409, "grown"), short, Confirmed(0, 0, 9.0)
    )

    assert stream.all_confirmed
    assert stream.delivered == {("a", "b"): 4}
    assert stream.last_tried == short
    assert stream.rows_not_held(("a", "b")) == {RowsNotHeld(4, (), Position(1, 0)): ("a", "b")}


def test_a_channel_that_left_behind_a_chunk_that_was_cut_short_goes_on_up_to_where_it_left() -> None:
    short = previewed(0, 4).as_tried(cut_short=True)
    stream = stream_of(previewed(0, 4), SHOWN, tried(0), ChannelLeft(0, "b", 10), short, Confirmed(0, 0, 9.0))

    rests = {
        channels: (rest.from_row, [first for first, _ in rest.skip])
        for rest, channels in stream.rows_not_held(("a", "b")).items()
    }
    assert rests == {("a",): (4, []), ("b",): (4, [10])}


def test_facts_noted_together_are_all_there_after_a_crash_or_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for fact in (OPENED, INITIALIZING, INITIALIZED):
        ledger.note(fact)
    before = path.stat().st_size
    with ledger.together():
        ledger.note(tried(0))
        ledger.note(Confirmed(0, 0, 9.0))
        assert path.stat().st_size == before
    ledger.close()

    assert LedgerReader(path).read_on().streams[0].chunks_confirmed == 1
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)  # of the second copy
    assert LedgerReader(path).read_on().streams[0].chunks_confirmed == 1
    with path.open("r+b") as file:
        file.truncate(before + (path.stat().st_size - before) // 2 - 5)
    assert LedgerReader(path).read_on().streams[0].last_tried is None


def test_what_a_refused_move_says_names_the_stream_and_the_likely_cause() -> None:
    with pytest.raises(
        SpoolError, match="metrology stream 3 is unknown, so this cannot follow; do two uploaders share"
    ):
        folded().apply(Initialized(3, "id", "metrology"))
    with pytest.raises(SpoolError, match="metrology stream 0 is finalized, so this cannot follow"):
        folded(*WHOLE).apply(Finalizing(0))
    with pytest.raises(SpoolError, match="metrology stream 0 has chunks that are not confirmed; it stays open"):
        folded(*WHOLE[:4]).apply(Finalizing(0))
    with pytest.raises(SpoolError, match="chunk 5 of metrology stream 0 cannot follow 2$"):
        folded(*WHOLE[:3], *map(tried, range(3)), tried(5))
    with pytest.raises(
        SpoolError, match="chunk 5 of metrology stream 0 is not under way, so it cannot become confirmed"
    ):
        folded(*WHOLE[:4]).apply(Confirmed(0, 5, 1.0))


def test_a_stream_with_a_refused_chunk_is_not_finalized() -> None:
    stream = stream_of(tried(0), Refused(0, 0, ("a",), 422, "no"), Confirmed(0, 0, 1.0, ("b",)))

    assert not stream.all_confirmed
    assert stream.refused[0].channels == {"a"}


def test_finalizing_may_be_noted_again_after_a_crash() -> None:
    assert folded(*WHOLE[:6], Finalizing(0)).streams[0].life is Life.FINALIZING


def test_initializing_may_be_noted_again_for_another_family() -> None:
    assert folded(OPENED, INITIALIZING, Initializing(0, "tool-state")).streams[0].family == "tool-state"


def test_an_id_that_is_known_ends_what_parked_the_stream() -> None:
    parked = folded(OPENED, INITIALIZING, Parked("no such instrument", 0))
    assert (parked.streams[0].parked, parked.streams[0].group_parked) == ("no such instrument",) * 2

    parked.apply(INITIALIZED)

    assert (parked.streams[0].parked, parked.streams[0].group_parked) == (None, None)


def test_a_channel_ends_with_the_earliest_row_at_which_it_is_said_to_have_left() -> None:
    stream = stream_of(*(ChannelLeft(0, "a", row) for row in (30, 20, 25)), ChannelLeft(0, "b", 40))

    assert stream.left_at_row == {"a": 20, "b": 40}


def test_a_run_has_one_clock() -> None:
    state = folded(ClockFixed(0.5, 9.0, 0.125))
    with pytest.raises(SpoolError, match="the clock of this run is fixed already; do two uploaders share this run?"):
        state.apply(ClockFixed(0.25, 10.0))

    assert state.clock == ClockFixed(0.5, 9.0, 0.125)


def test_a_stream_that_joins_another_one_is_where_that_one_is_and_is_finalized_with_it() -> None:
    joins = structs.replace(OPENED, stream=1, joins=0)
    state = folded(OPENED, INITIALIZING, joins)
    assert [(one.life, one.is_not_requested) for one in state.streams.values()] == [(Life.INITIALIZING, False)] * 2

    state.apply(INITIALIZED)
    third = structs.replace(OPENED, stream=2, joins=1)
    for fact in (third, tried(0), tried(0, stream=2), Confirmed(0, 0, 9.0)):
        state.apply(fact)
    assert [(one.life, one.data_id, one.family) for one in state.streams.values()] == (
        [(Life.INITIALIZED, "id", "metrology")] * 3
    )
    with pytest.raises(SpoolError, match="metrology stream 0 has chunks that are not confirmed; it stays open"):
        state.apply(Finalizing(0))
    state.apply(Confirmed(2, 0, 9.5))
    state.apply(Finalizing(0))
    assert {one.life for one in state.streams.values()} == {Life.FINALIZING}
    assert not state.is_done
    state.apply(Finalized(0, 10.0))
    assert [(one.life, one.finalized_at) for one in state.streams.values()] == [(Life.FINALIZED, 10.0)] * 3
    assert state.is_done
    with pytest.raises(SpoolError, match="metrology stream 0 is finalized, so this cannot follow"):
        state.apply(structs.replace(OPENED, stream=3, joins=0))


# ---- orders ----------------------------------------------------------------------------------------------------------

NIGHT = Resolved(Links(project_id="p-1", tags=("t-1",)))


def troubled(*facts: LedgerLine) -> LedgerState:
    """A run with a stream of which everything is refused or parked, and then these facts."""
    return folded(
        OPENED, INITIALIZING, INITIALIZED, NIGHT, tried(0), Refused(0, 0, ("a",), 422, "no"), Parked("full", 0),
        LinkRefused(0, "tags", "t-1", "gone"), Unresolved("no such project"), Parked("no key"), *facts,
    )  # fmt: skip


@pytest.mark.parametrize("order", [Unparked(3), Edited(Links(42), 3, 50, "renamed")])
def test_what_was_parked_or_refused_is_tried_again_by_an_order(order: Unparked | Edited) -> None:
    before = troubled()
    assert (before.parked_reason, before.unresolved, before.orders_obeyed) == ("no key", "no such project", 0)
    assert (before.streams[0].parked, before.streams[0].links_refused) == ("full", {("tags", "t-1"): "gone"})

    state = troubled(order)

    assert (state.parked_reason, state.unresolved, state.orders_obeyed) == (None, None, 3)
    assert (state.streams[0].parked, state.streams[0].links_refused, state.streams[0].refused) == (None, {}, {})
    assert state.streams[0].resume_point == (0, 0, Position(1, 0))
    assert state.resolved == NIGHT  # the stream is linked to these ids
    assert state.edited == (order if isinstance(order, Edited) else None)


def test_ids_of_names_are_asked_for_again_after_an_order_if_nothing_is_made_yet() -> None:
    assert folded(OPENED, NIGHT, Unparked(1)).resolved is None
    assert folded(OPENED, INITIALIZING, NIGHT, Unparked(1)).resolved is None
    assert folded(OPENED, INITIALIZING, INITIALIZED, NIGHT, Unparked(1)).resolved == NIGHT


def test_ids_that_are_found_replace_the_reason_why_there_were_none() -> None:
    state = folded(Unresolved("no such project"), NIGHT)

    assert (state.resolved, state.unresolved) == (NIGHT, None)


def test_a_run_that_is_moved_begins_again_at_its_new_endpoint_with_the_values_it_was_given() -> None:
    edited = Edited(Links(42), 1)
    state = troubled(
        edited, ClockFixed(0.5, 9.0), PreviewsEnded("refused"), Verified(9.0), Discarded(9.0, 2),
        Moved("https://other.example", 3),
    )  # fmt: skip

    assert told(state) == told(folded(edited, Moved("https://other.example", 3)))
    assert (state.endpoint, state.orders_obeyed, state.edited) == ("https://other.example", 3, edited)
    assert (state.streams, state.clock, state.previews_ended, state.verified) == ({}, None, None, None)
    assert not state.is_done


def test_a_run_is_done_when_all_of_its_streams_are_or_when_it_is_discarded() -> None:
    second = structs.replace(OPENED, stream=1)
    assert not folded().is_done
    assert not folded(*WHOLE[:-1]).is_done
    assert folded(*WHOLE).is_done
    assert not folded(*WHOLE, second).is_done
    assert folded(*WHOLE, second, Ended(1, "no point")).is_done
    discarded = folded(OPENED, Discarded(9.0, 4))
    assert (discarded.is_done, discarded.discarded, discarded.orders_obeyed) == (True, 9.0, 4)


# ---- links -----------------------------------------------------------------------------------------------------------


def test_a_link_is_made_or_refused_and_what_was_made_stays_made() -> None:
    refused = stream_of(LinkRefused(0, "tags", "night", "gone"), LinkRefused(0, "project", "p", "no right"))
    assert (refused.linked, refused.renamed) == (set(), None)
    assert refused.links_refused == {("tags", "night"): "gone", ("project", "p"): "no right"}

    made = stream_of(
        LinkRefused(0, "tags", "night", "gone"),
        LinkRefused(0, "tags", "day", "gone"),
        Linked(0, "tags", "night"),
        LinkRefused(0, "tags", "night", "gone"),
    )
    assert (made.linked, made.links_refused) == ({("tags", "night")}, {("tags", "day"): "gone"})


def test_a_streams_name_is_the_last_one_that_it_was_given() -> None:
    stream = stream_of(Linked(0, "label", "first"), Linked(0, "label", "second"), Linked(0, "tags", "night"))

    assert stream.renamed == "second"


# ---- streams that end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "why", "life"),
    [
        ([], "too large", Life.INITIALIZED),
        ([], "closed by the server", Life.CLOSED),
        ([tried(0)], "too large", Life.INITIALIZED),
        ([tried(0), tried(1), Confirmed(0, 1, 9.0)], "too large", Life.CLOSED),  # chunk 0 is a hole
        ([tried(0), Confirmed(0, 0, 9.0, ("a",))], "too large", Life.INITIALIZED),  # channel b goes on elsewhere
        (
            [tried(0), tried(1), Confirmed(0, 0, 9.0, ("a",)), Confirmed(0, 1, 9.0, ("a",))],
            "too large",
            Life.INITIALIZED,
        ),
        ([tried(0), tried(1), Confirmed(0, 0, 9.0, ("a",)), Confirmed(0, 1, 9.0, ("b",))], "damaged", Life.CLOSED),
        ([tried(0), tried(1), Confirmed(0, 0, 9.0, ("a",)), Confirmed(0, 1, 9.0)], "too large", Life.CLOSED),
        ([tried(0), Confirmed(0, 0, 9.0)], "too large", Life.INITIALIZED),
    ],
)
def test_a_stream_that_ends_is_finalized_unless_it_is_closed_or_has_a_hole(
    facts: list[LedgerLine], why: Any, life: Life
) -> None:
    stream = stream_of(*facts, Ended(0, why))

    assert (stream.life, stream.ended) == (life, why)
    assert stream.is_done == (life is Life.CLOSED)
    assert stream.all_confirmed


def test_a_stream_that_ends_has_no_chunk_under_way_and_shows_no_preview() -> None:
    stream = stream_of(
        tried(0), tried(1), Refused(0, 1, ("a",), 422, "no"), Confirmed(0, 0, 9.0, ("a",)),
        Previewed(0, 2, 20, 23, 4, ("a", "b"), 1, 200, 5.0), PreviewAnswered(0, 2, taken=True), Ended(0, "too large"),
    )  # fmt: skip

    assert (stream.tried, stream.refused, stream.confirmed_channels) == ({}, {}, {})
    assert (stream.last_preview, stream.last_preview_taken) == (None, None)


def test_only_a_stream_that_was_never_made_ends_for_want_of_a_point() -> None:
    assert folded(OPENED, Ended(0, "no point")).streams[0].life is Life.CLOSED
    with pytest.raises(SpoolError, match="metrology stream 0 is initialized, so this cannot follow"):
        stream_of(Ended(0, "no point"))
    with pytest.raises(SpoolError, match="metrology stream 0 is opened, so this cannot follow"):
        folded(OPENED, Ended(0, "too large"))


def test_a_stream_has_an_answer_once_any_part_of_a_chunk_is_confirmed_or_refused() -> None:
    assert not stream_of(tried(0)).has_an_answer
    assert stream_of(tried(0), Confirmed(0, 0, 9.0, ("a",))).has_an_answer
    assert stream_of(tried(0), Confirmed(0, 0, 9.0)).has_an_answer
    assert stream_of(tried(0), Refused(0, 0, ("a",), 422, "no")).has_an_answer


def test_a_chunk_that_was_shown_and_has_no_answer_may_become_the_last_one() -> None:
    whole = [previewed(0, 4), SHOWN, tried(0)]

    assert stream_of(*whole).may_be_cut_short_before(1)
    assert not stream_of(*whole).may_be_cut_short_before(0)
    assert not stream_of(*whole, Refused(0, 0, ("a", "b"), 409, "grown")).may_be_cut_short_before(1)
    assert not stream_of(*whole, Confirmed(0, 0, 9.0)).may_be_cut_short_before(1)
    assert not stream_of(tried(0)).may_be_cut_short_before(1)


# ---- chunks ----------------------------------------------------------------------------------------------------------


def test_a_chunk_that_is_confirmed_in_parts_counts_each_part_once() -> None:
    stream = stream_of(
        tried(0, "abc"), Confirmed(0, 0, 1.0, ("a",)), Confirmed(0, 0, 2.0, ("a", "b")), Confirmed(0, 0, 3.0)
    )

    assert stream.delivered == {("a",): 10, ("b",): 10, ("c",): 10}
    assert stream.chunks_confirmed == 1
    assert stream.all_confirmed


def test_a_channel_that_was_refused_and_then_confirmed_is_delivered() -> None:
    stream = stream_of(
        tried(0), Refused(0, 0, ("a",), 422, "no"), Refused(0, 0, ("b",), 409, "no"), Confirmed(0, 0, 1.0, ("b",))
    )
    assert (stream.refused[0].channels, stream.refused[0].status) == ({"a"}, 409)

    stream = stream_of(tried(0), Refused(0, 0, ("a",), 422, "no"), Confirmed(0, 0, 1.0))
    assert stream.all_confirmed


def test_what_is_confirmed_takes_no_memory_however_long_the_run() -> None:
    stream = stream_of(*(fact for index in range(5000) for fact in (tried(index), Confirmed(0, index, 1.0))))

    assert (stream.tried, stream.confirmed_channels, stream.refused, stream.confirmed_ahead) == ({}, {}, {}, [])
    assert stream.delivered == {("a", "b"): 50_000}
    assert (stream.chunks_confirmed, stream.next_index) == (5000, 5000)


def test_a_stream_goes_on_with_its_first_chunk_that_is_neither_confirmed_nor_refused() -> None:
    assert stream_of().resume_point == (0, 0, Position(1, 0))
    assert stream_of(tried(0)).resume_point == (0, 0, Position(1, 0))
    assert stream_of(tried(0), Confirmed(0, 0, 1.0)).resume_point == (1, 10, Position(1, 0))
    assert stream_of(*(tried(n) for n in range(4)), Confirmed(0, 0, 1.0), Confirmed(0, 2, 1.0)).resume_point == (
        1, 10, Position(1, 100),
    )  # fmt: skip
    assert stream_of(tried(0), tried(1), Refused(0, 0, ("a",), 422, "no")).resume_point == (1, 10, Position(1, 100))
    assert stream_of(tried(0), Refused(0, 0, ("a", "b"), 422, "no")).resume_point == (1, 10, Position(1, 0))


def test_the_rows_of_a_channel_that_left_go_on_elsewhere_from_where_it_left() -> None:
    def rest(left_at: int) -> dict[tuple[str, ...], tuple[int, list[int]]]:
        stream = stream_of(tried(0), Confirmed(0, 0, 9.0), ChannelLeft(0, "b", left_at))
        found = stream.rows_not_held(("a", "b"))
        return {names: (rows.from_row, [first for first, _ in rows.skip]) for rows, names in found.items()}

    assert rest(9) == {("a",): (10, [])}
    assert rest(10) == {("a",): (10, [])}
    assert rest(11) == {("a",): (10, []), ("b",): (10, [11])}


@given(st.permutations(range(8)), st.integers(0, 8))
def test_chunks_that_are_confirmed_above_one_that_is_not_are_known_by_their_rows(
    order: list[int], confirmed: int
) -> None:
    stream = stream_of(*(tried(n) for n in range(8)), *(Confirmed(0, n, 1.0) for n in order[:confirmed]))

    first = min(stream.tried, default=8)
    assert first == min(set(order[confirmed:]), default=8)
    ahead = {n for span in stream.confirmed_ahead for n in range(span.first_index, span.last_index + 1)}
    assert ahead == {n for n in order[:confirmed] if n > first}
    assert all(
        (span.first_row, span.last_row) == (10 * span.first_index, 10 * span.last_index + 9)
        for span in stream.confirmed_ahead
    )
    assert all(
        one.last_index + 1 < other.first_index
        for one, other in zip(stream.confirmed_ahead, stream.confirmed_ahead[1:], strict=False)
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def told(state: LedgerState) -> Any:
    """Everything that a state says, to be compared."""
    members = {name: value for name, value in vars(state).items() if name != "streams"}
    streams = {
        number: structs.asdict(stream) | {"group": [one.opening for one in stream.group]}
        for number, stream in state.streams.items()
    }
    return members, streams


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), torn=st.integers(0, 30))
@example(seed=26310, torn=0)  # a part of a chunk is confirmed twice in a row
def test_a_ledger_read_back_tells_what_was_known_in_memory(
    tmp_path_factory: pytest.TempPathFactory, seed: int, torn: int
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    chance = random.Random(seed)
    ledger = Ledger(path)
    reader = LedgerReader(path)
    for stream in range(chance.randint(1, 3)):
        ledger.note(Opened(stream, "primary", 0, "gap", f"label {stream}", "t", 10, 1, 0, ("a", "b"), own=bool(stream)))
    for _ in range(chance.randint(0, 60)):
        number = chance.randrange(len(ledger.state.streams))
        state = ledger.state.streams[number]
        index = chance.choice([*state.tried, state.next_index])
        fact = chance.choice(
            [
                Initializing(number, chance.choice(["metrology", "tool-state"])),
                Initialized(number, f"id-{number}", "metrology"),
                tried(state.next_index, "ab", number),
                tried(state.next_index, "a", number),
                Confirmed(number, index, 1.0),
                Confirmed(number, index, 2.0, (chance.choice("ab"),)),
                ChannelLeft(number, chance.choice("ab"), chance.randrange(100)),
                Parked("why", number),
                Finalizing(number),
                Finalized(number, 3.0),
            ]
        )
        try:
            LedgerReader(path).read_on().apply(fact)  # a state of its own, so that what cannot follow leaves no trace
        except SpoolError:
            continue
        ledger.note(fact, sync=chance.random() < 0.1)
        if chance.random() < 0.2:
            reader.read_on()
    ledger.close()
    if torn:
        with path.open("ab") as file:
            file.write(checksummed(encode(Parked("torn")))[:torn])

    assert told(reader.read_on()) == told(ledger.state)
    assert told(LedgerReader(path).read_on()) == told(ledger.state)
    again = Ledger(path)
    assert told(again.state) == told(ledger.state)
    again.note(Parked("after"))
    again.close()
    assert LedgerReader(path).read_on().parked == "after"


def test_an_absent_ledger_tells_nothing(tmp_path: Path) -> None:
    reader = LedgerReader(tmp_path / "ledger.jsonl")

    assert told(reader.read_on()) == told(LedgerState())
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_reader_reads_on_while_the_ledger_is_written_and_counts_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    reader = LedgerReader(path)
    ledger = Ledger(path)
    ledger.note(OPENED)
    ledger.write()
    assert reader.read_on().streams[0].life is Life.OPENED
    with path.open("ab") as file:
        file.write(b"damaged line\n")
        file.write(checksummed(encode(INITIALIZED))[:20])
    assert reader.read_on().streams[0].life is Life.OPENED
    ledger.close()

    ledger = Ledger(path)  # cuts the torn line off
    ledger.note(INITIALIZED)
    ledger.close()

    assert reader.read_on().streams[0].data_id == "id"
    assert reader.damaged == 1


def test_a_ledger_of_a_newer_version_is_left_alone_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(checksummed(b'{"kind":"teleported","stream":0}'))

    with pytest.raises(SpoolError, match=r"a ledger's line is not understood: .*was it written by a newer version\?"):
        Ledger(path)

    assert path.read_bytes() == checksummed(b'{"kind":"teleported","stream":0}')


def test_a_ledger_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Ledger(tmp_path / "ledger.jsonl").close()
    finally:
        os.umask(before)

    assert (tmp_path / "ledger.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="another call syncs a file there")
def test_a_fact_is_synced_unless_it_can_be_found_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def syncs(*facts: LedgerLine, sync: bool = False) -> list[int]:
        counts = []
        for fact in facts:
            before = len(synced)
            ledger.note(fact, sync=sync)
            counts.append(len(synced) - before)
        return counts

    assert syncs(OPENED, INITIALIZING, INITIALIZED) == [0, 1, 1]
    assert syncs(tried(0), Confirmed(0, 0, 1.0, ("b",))) == [0, 0]
    assert syncs(Confirmed(0, 0, 1.0, ("a",)), sync=True) == [1]
    assert syncs(previewed(1, 5), PreviewAnswered(0, 1, taken=True), ChannelLeft(0, "b", 20)) == [1, 0, 0]
    assert syncs(Parked("why", 0), Ended(0, "too large")) == [1, 1]
    assert syncs(Finalizing(0), Finalized(0, 2.0)) == [1, 1]
    ledger.close()


@pytest.mark.parametrize(
    ("before", "during"),
    [
        ((), (OPENED, INITIALIZING)),
        ((OPENED, INITIALIZING), (structs.replace(OPENED, stream=1), Initializing(1, "metrology"))),
        ((OPENED, INITIALIZING, INITIALIZED), (tried(0), tried(1), Linked(0, "tags", "night"))),
        ((OPENED, INITIALIZING, INITIALIZED), (tried(0), Confirmed(0, 0, 1.0), Finalizing(0))),
    ],
)
def test_a_power_cut_during_the_sync_of_a_fact_leaves_what_was_synced_before(
    tmp_path: Path, before: tuple[LedgerLine, ...], during: tuple[LedgerLine, ...]
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for fact in before:
        ledger.note(fact)
    ledger.close()
    intact = path.read_bytes()
    path.write_bytes(intact + bytes(2 * len(checksummed(encode(during[0])))))  # the disk has only later blocks
    with path.open("ab") as file:
        for fact in during[1:]:
            file.write(checksummed(encode(fact)) * 2)

    ledger = Ledger(path)

    assert ledger.state.broken is None
    assert told(ledger.state) == told(folded(*before))
    ledger.close()
    assert path.read_bytes() == intact


def test_each_line_stands_there_twice(tmp_path: Path) -> None:
    ledger, facts = Ledger(tmp_path / "ledger.jsonl"), [OPENED, INITIALIZING, INITIALIZED, tried(0)]
    for fact in facts:
        ledger.note(fact)
    with ledger.together():
        ledger.note(ChannelLeft(0, "a", 10))
        ledger.note(ChannelLeft(0, "b", 10))
    ledger.close()

    lines = [*facts, Together((ChannelLeft(0, "a", 10), ChannelLeft(0, "b", 10)))]
    assert (tmp_path / "ledger.jsonl").read_bytes() == b"".join(checksummed(encode(line)) * 2 for line in lines)


ELSEWHERE = ChannelLeft(1, "b", 20)  # of a stream whose opening is damaged, so it cannot follow
FURTHER = structs.replace(OPENED, stream=2)


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ([ELSEWHERE], False),
        ([ELSEWHERE, tried(0)], False),  # neither is synced
        ([FURTHER], False),  # perhaps the power went during its sync
        ([FURTHER, ELSEWHERE], True),
        ([Parked("no key"), ELSEWHERE], True),
        ([ELSEWHERE, Parked("no key")], False),
        ([tried(0, stream=1)], True),  # the id of its stream, which is in no line now, had been synced
    ],
)
def test_facts_behind_a_damaged_line_count_if_one_of_them_had_been_synced(
    tmp_path: Path, after: list[LedgerLine], kept: bool
) -> None:
    path = tmp_path / "ledger.jsonl"
    sound = b"".join(checksummed(encode(fact)) * 2 for fact in (OPENED, INITIALIZING, INITIALIZED))
    rest = b"".join(checksummed(encode(fact)) * 2 for fact in after)
    path.write_bytes(sound + bytes(50) + b"\n" + rest)

    ledger = Ledger(path)

    assert (ledger.state.broken is not None) == kept
    ledger.close()
    assert path.stat().st_size == (len(sound) + 51 + len(rest) if kept else len(sound))


def test_the_first_opening_of_a_run_behind_damage_shows_no_sync(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(bytes(50) + b"\n" + b"".join(checksummed(encode(fact)) * 2 for fact in (OPENED, ELSEWHERE)))

    Ledger(path).close()

    assert path.stat().st_size == 0


def test_facts_that_are_not_synced_are_written_in_one_go_before_the_next_one_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, written, write = Ledger(tmp_path / "ledger.jsonl"), [], os.write
    monkeypatch.setattr(os, "write", lambda file, data: (written.append(bytes(data)), write(file, data))[1])

    def on_disk() -> int:
        return LedgerReader(tmp_path / "ledger.jsonl").read_on().streams[0].next_index

    for fact in (OPENED, INITIALIZING, INITIALIZED):
        ledger.note(fact)
    written.clear()
    for fact in (tried(0), Confirmed(0, 0, 1.0), tried(1)):
        ledger.note(fact)
    assert (written, on_disk(), ledger.state.streams[0].next_index) == ([], 0, 2)
    assert ledger.size > (tmp_path / "ledger.jsonl").stat().st_size
    ledger.write()
    assert (len(written), on_disk()) == (1, 2)
    assert ledger.size == (tmp_path / "ledger.jsonl").stat().st_size
    ledger.note(Confirmed(0, 1, 2.0))
    ledger.note(Finalizing(0))
    assert len(written) == 2
    ledger.note(Finalized(0, 3.0))
    ledger.close()
    assert LedgerReader(tmp_path / "ledger.jsonl").read_on().is_done


@pytest.mark.parametrize("close", [Ledger.close, Ledger.close_until_needed])
def test_what_was_noted_is_written_when_the_file_is_closed(tmp_path: Path, close: Callable[[Ledger], None]) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.note(OPENED)
    close(ledger)

    assert LedgerReader(tmp_path / "ledger.jsonl").read_on().streams[0].life is Life.OPENED


def test_the_chunks_that_a_stream_has_tried_are_told_from_any_of_them_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in range(3):
        ledger.note(structs.replace(OPENED, stream=number))
    for index in range(3):
        for number in range(3):
            ledger.note(tried(index, stream=number))
    short = structs.replace(tried(2, stream=1), last_row=23, points=4, cut_short=True)
    ledger.note(short)

    assert ledger.tried_chunks(1, 0) == {0: tried(0, stream=1), 1: tried(1, stream=1), 2: short}
    assert ledger.tried_chunks(1, 1) == {1: tried(1, stream=1), 2: short}
    assert ledger.tried_chunks(0, 2) == {2: tried(2)}
    assert ledger.tried_chunks(0, 3) == {}
    ledger.note(Moved("https://other.example", 1))
    assert ledger.tried_chunks(1, 0) == {}
    ledger.close()


def test_every_kind_of_line_is_taken_in() -> None:
    known = {kind.__name__ for kind in typing.get_args(LedgerLine)}

    assert {
        "Opened",
        "Initializing",
        "Initialized",
        "ChannelLeft",
        "Tried",
        "Confirmed",
        "Refused",
        "Finalizing",
    } <= known
    assert Links() == Links()
