"""The account adds up: seen = delivered + waiting + refused + discarded + left out, and lost = 0."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from atomscale_bluesky import SpoolError
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.model.loss import Loss
from atomscale_bluesky.model.rows import Channel
from atomscale_bluesky.spool.journal_format import Header, Layout, LeftOut, Stop, encode_row, pack_values
from atomscale_bluesky.spool.ledger_format import (
    Confirmed,
    Discarded,
    Edited,
    Finalized,
    Finalizing,
    Initialized,
    Opened,
    Parked,
    Refused,
    Tried,
)
from atomscale_bluesky.spool.ledger_state import LedgerState
from atomscale_bluesky.spool.lines import encode
from atomscale_bluesky.status.account import ROWS_WITHOUT_LAYOUT, Account, Counts
from atomscale_bluesky.status.run_status import status_of

T0 = 1_760_000_000.0
HEADER = Header(
    format=1,
    run_uid="b7c2e9f1-0000",
    started=T0,
    label="grow 17",
    points_per_chunk=4,
    primary="primary",
    endpoint="https://api.atomscale.ai",
    non_finite="own_stream",
)


def layout_of(number: int, names: str, left_out: dict[str, str] | None = None, time_base: str = "primary") -> Layout:
    channels = tuple(Channel(name, name) for name in names)
    return Layout(number, time_base.partition("/")[0], time_base, channels, left_out or {})


def row(layout: Layout, number: int, *values: float | None) -> bytes:
    names = [channel.name for channel in layout.channels]
    gaps = {name: "not finite" for name, value in zip(names, values, strict=True) if value is None}
    return encode_row(layout.layout, number, T0 + number, f"uid {number}", pack_values(values), gaps)


def account_of(*payloads: bytes, header: Header = HEADER) -> Account:
    account = Account()
    for payload in (encode(header), *payloads):
        account.take_line(payload)
    return account


def ledger_of(*facts: object, time_base: str = "primary") -> LedgerState:
    state = LedgerState()
    state.apply(Opened(0, time_base, 0, "run start", "grow 17 [b7c2e9f1-t]", "t", 4, 1, 0))
    state.apply(Initialized(0, "id", "metrology"))
    for fact in facts:
        state.apply(fact)  # type: ignore[arg-type]
    return state


def tried(index: int, channels: str = "ab", points: int = 4) -> Tried:
    first = 4 * index
    return Tried(0, index, first, first + points - 1, points, tuple(channels), 1, 0, T0 + first + points - 1)


AB = layout_of(0, "ab", {"note": "text"})
TEN = [encode(AB), *(row(AB, n, 1.0, 2.0) for n in range(10))]


def test_what_no_ledger_speaks_of_waits() -> None:
    assert account_of(*TEN).channels(LedgerState()) == {
        "a": Counts(seen=10, waiting=10),
        "b": Counts(seen=10, waiting=10),
        "note": Counts(seen=10, left_out={"text": 10}),
    }


def test_each_fate_is_counted_for_each_channel() -> None:
    ledger = ledger_of(
        tried(0), tried(1), Confirmed(0, 0, 1.0), Confirmed(0, 1, 1.0, ("a",)), Refused(0, 1, ("b",), 422, "no")
    )

    channels = account_of(*TEN).channels(ledger)

    assert channels["a"] == Counts(seen=10, delivered=8, waiting=2)
    assert channels["b"] == Counts(seen=10, delivered=4, refused=4, waiting=2)


def test_what_a_person_gave_up_is_discarded_and_waits_no_more() -> None:
    ledger = ledger_of(tried(0), tried(1), Confirmed(0, 0, 1.0), Refused(0, 1, ("b",), 422, "no"), Discarded(5.0, 1))

    status = status_of(account_of(*TEN), ledger)

    assert status.channels["b"] == Counts(seen=10, delivered=4, discarded=6)
    assert status.state == "discarded"
    assert status.points.waiting == 0


def test_a_gap_is_left_out_with_its_reason() -> None:
    account = account_of(encode(AB), row(AB, 0, None, 2.0), row(AB, 1, 1.0, 2.0))

    channels = account.channels(LedgerState())

    assert channels["a"] == Counts(seen=2, waiting=1, left_out={"not finite": 1})
    assert channels["b"] == Counts(seen=2, waiting=2)


def test_a_gap_that_is_sent_as_null_is_a_point() -> None:
    account = account_of(encode(AB), row(AB, 0, None, 2.0), header=replaced(non_finite="null"))

    assert account.channels(LedgerState())["a"] == Counts(seen=1, waiting=1)


def test_a_row_that_is_dropped_for_a_gap_is_left_out_for_the_channels_of_its_stream() -> None:
    late = layout_of(1, "abl")
    account = account_of(
        encode(AB), row(AB, 0, None, 2.0), encode(late), row(late, 1, None, 2.0, 3.0),
        header=replaced(non_finite="drop_row"),
    )  # fmt: skip

    channels = account.channels(LedgerState())

    assert channels["a"] == Counts(seen=2, left_out={"not finite": 2})
    assert channels["b"] == Counts(seen=2, left_out={Loss.ROW_DROPPED: 2})
    assert channels["l"] == Counts(seen=1, waiting=1)


def replaced(**members: object) -> Header:
    return Header(**{name: getattr(HEADER, name) for name in HEADER.__struct_fields__} | members)  # type: ignore[arg-type]


def test_a_key_that_was_text_and_became_a_number_has_one_account() -> None:
    late = layout_of(1, "abn")
    first = layout_of(0, "ab", {"n": "text"})
    account = account_of(encode(first), row(first, 0, 1.0, 2.0), encode(late), row(late, 1, 1.0, 2.0, 3.0))

    assert account.channels(LedgerState())["n"] == Counts(seen=2, waiting=1, left_out={"text": 1})


def test_channels_of_one_name_in_several_event_streams_are_told_apart() -> None:
    other = layout_of(1, "a", time_base="baseline")
    account = account_of(encode(AB), row(AB, 0, 1.0, 2.0), encode(other), row(other, 0, 3.0), row(other, 1, 4.0))

    channels = account.channels(ledger_of(tried(0, points=1), Confirmed(0, 0, 1.0)))

    assert channels["a"] == Counts(seen=1, delivered=1)
    assert channels["baseline: a"] == Counts(seen=2, waiting=2)


def test_readings_that_never_became_rows_are_left_out_with_their_reason() -> None:
    left_out = encode(LeftOut("", "no room in the spool", 5, {"a": 3, "x": 2}))

    channels = account_of(*TEN, left_out).channels(LedgerState())

    assert channels["a"] == Counts(seen=13, waiting=10, left_out={"no room in the spool": 3})
    assert channels["x"] == Counts(seen=2, left_out={"no room in the spool": 2})


def test_a_row_whose_line_was_damaged_is_lost_and_said_so() -> None:
    channels = account_of(*(line for n, line in enumerate(TEN) if n not in {3, 4})).channels(LedgerState())

    assert channels["a"] == Counts(seen=10, waiting=8, lost=2)
    assert channels["note"] == Counts(seen=10, left_out={"text": 10})


def test_a_row_of_a_missing_layout_counts_as_lost() -> None:
    other = layout_of(7, "z", time_base="primary/z")
    channels = account_of(*TEN, row(other, 0, 1.0), row(other, 1, 2.0)).channels(LedgerState())

    assert channels["a"] == Counts(seen=10, waiting=10)
    assert channels[ROWS_WITHOUT_LAYOUT] == Counts(seen=2, lost=2)


def test_rows_of_a_missing_layout_are_counted_once_where_a_stop_or_a_number_tells_of_them() -> None:
    other, later = layout_of(7, "z", time_base="primary/z"), layout_of(8, "zy", time_base="primary/z")
    rows = (row(other, 0, 1.0), row(other, 1, 2.0))
    stopped = account_of(*TEN, *rows, encode(Stop(T0, "success", rows={"primary": 10, "primary/z": 2})))
    gone_on = account_of(*TEN, *rows, encode(later), row(later, 2, 1.0, 2.0))

    assert stopped.channels(LedgerState())["primary/z"] == Counts(seen=2, lost=2)
    assert gone_on.channels(LedgerState())["z"] == Counts(seen=3, waiting=1, lost=2)
    assert ROWS_WITHOUT_LAYOUT not in stopped.channels(LedgerState()) | gone_on.channels(LedgerState())


def test_a_journal_without_a_header_is_an_error() -> None:
    with pytest.raises(SpoolError, match="the journal has no header"):
        status_of(Account(), LedgerState())


def test_counts_add_up_with_their_reasons() -> None:
    one = Counts(seen=5, delivered=1, waiting=1, refused=1, left_out={"text": 2})
    other = Counts(seen=4, discarded=1, lost=1, left_out={"text": 1, "array": 1})

    assert one + other == Counts(
        seen=9, delivered=1, waiting=1, refused=1, discarded=1, lost=1, left_out={"text": 3, "array": 1}
    )
    assert replace(one) == one


STOP = encode(Stop(time=T0 + 11, exit_status="success"))


def test_a_runs_state_follows_its_files() -> None:
    full = [tried(0), tried(1), tried(2, points=2), *(Confirmed(0, n, 1.0) for n in range(3))]
    running, stopped = account_of(*TEN), account_of(*TEN, STOP)

    assert status_of(running, ledger_of()).state == "running"
    assert status_of(running, ledger_of(), writer_alive=False).state == "interrupted"
    assert status_of(stopped, ledger_of()).state == "delivering"
    assert status_of(stopped, ledger_of(tried(0), Refused(0, 0, ("a",), 422, "no"))).state == "parked"
    assert status_of(stopped, ledger_of(Parked("wrong project", 0))).problem == "wrong project"
    assert status_of(stopped, ledger_of(*full, Finalizing(0), Finalized(0, 2.0))).state == "finalized"


def test_unusable_metadata_park_a_run_until_they_are_edited() -> None:
    account = account_of(*TEN, header=replaced(problem="metadata 'synth_source_id' is 'x'"))

    assert status_of(account, LedgerState()).state == "parked"
    assert status_of(account, LedgerState()).problem == "metadata 'synth_source_id' is 'x'"
    assert status_of(account, ledger_of(Edited(Links(42), 1))).state == "running"


def test_a_status_names_the_streams_and_what_was_refused() -> None:
    status = status_of(account_of(*TEN), ledger_of(tried(0), Refused(0, 0, ("a",), 422, "too hot")))

    (stream,) = status.streams
    assert (stream.label, stream.event_stream, stream.why) == ("grow 17 [b7c2e9f1-t]", "primary", "run start")
    assert (stream.state, stream.problem, stream.chunks_refused) == ("parked", "too hot", 1)
    assert status.data_ids == ("id",)
    assert status.oldest_waiting is not None


@given(seed=st.integers(0, 2**32), policy=st.sampled_from(["own_stream", "null", "drop_row"]))
def test_every_reading_is_in_exactly_one_place(seed: int, policy: str) -> None:
    chance = random.Random(seed)
    account = account_of(header=replaced(non_finite=policy))
    layouts = [layout_of(0, "ab", {"t": "text"}), layout_of(1, "abc")]
    number, given_number = 0, 0
    for layout in layouts[: chance.randint(1, 2)]:
        account.take_line(encode(layout))
        for _ in range(chance.randint(1, 20)):
            if chance.random() > 0.05:
                values = [None if chance.random() < 0.2 else math.pi for _ in layout.channels]
                account.take_line(row(layout, number, *values))
                given_number = number + 1
            number += 1
    ledger = ledger_of()
    for index in range(chance.randint(0, 2)):
        ledger.apply(tried(index, "ab", points=1))
        ledger.apply(chance.choice([Confirmed(0, index, 1.0), Confirmed(0, index, 1.0, ("a",))]))
        if 0 in ledger.streams[0].tried and chance.random() < 0.5:
            ledger.apply(Refused(0, 0, ("b",), 422, "no"))
    if chance.random() < 0.2:
        ledger.apply(Discarded(1.0, 1))

    status = status_of(account, ledger)

    for counts in [status.points, *status.channels.values()]:
        parts = counts.delivered + counts.waiting + counts.refused + counts.discarded + counts.lost
        assert counts.seen == parts + sum(counts.left_out.values())
    assert status.channels["a"].seen == given_number
