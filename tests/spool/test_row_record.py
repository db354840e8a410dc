"""The binary rows of a journal: read back as they were, one by one and together, and nothing false after damage."""

from __future__ import annotations

import math
import struct
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import renumbered

from atomscale_bluesky.model.rows import Row
from atomscale_bluesky.spool.row_record import (
    MAGIC,
    MAX_VALUES,
    decode_record,
    decode_records,
    encode_one,
    encode_rows,
    encoder,
    head_of,
    is_intact,
    shape_of,
    start_of,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
COMMON = st.floats(-(2.0**49) + 1, 2.0**49 - 1, exclude_max=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=300)


class Foreign:
    """What no document should hold."""

    def __repr__(self) -> str:
        return "Foreign()"


UID = "0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60"


@given(
    layout=st.integers(0, 2**20),
    number=st.integers(0, 2**53),
    time=FINITE,
    uid=TEXTS,
    values=st.lists(FINITE, max_size=40),
)
def test_a_row_is_read_back_exactly(layout: int, number: int, time: float, uid: str, values: list[float]) -> None:
    record = encode_one(layout, number, time, uid, values)

    assert record is not None
    assert is_intact(record)
    assert decode_record(record) == Row(layout, number, time, uid, values)
    assert start_of(record) == (layout, number, time)
    assert head_of(record) == (layout, number, time, uid, struct.pack(f">{len(values)}d", *values))


@given(
    layout=st.integers(0, 300),
    uid=st.text(st.characters(codec="ascii", exclude_characters="\n"), max_size=300),
    values=st.lists(COMMON, max_size=40),
)
def test_ordinary_values_give_the_same_record_the_quick_way(layout: int, uid: str, values: list[float]) -> None:
    assert encoder(layout, len(values))(7.0, 1.5, uid, values) == encode_one(layout, 7, 1.5, uid, values)


@pytest.mark.parametrize(
    "value",
    [
        1,
        True,
        None,
        float("nan"),
        float("-inf"),
        2.0**60,
        "1.0",
        "\u02cb" * 4,
        b"12345678",
        "@2345678",  # these take as many bytes as a float, and go on like one
        b"@234567",
        2**62,
        -(2**40),
        [1.0],
        np.float64(1.0),
        Foreign(),
    ],
    ids=lambda value: ascii(value)[:30],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_quick_way_takes_no_other_value(value: Any, place: int) -> None:
    values: list[Any] = [1.0, 2.0, 3.0]
    values[place] = value

    assert encoder(0, 3)(0.0, 1.5, UID, values) is None


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_the_quick_way_takes_no_other_number_of_values(values: list[float]) -> None:
    assert encoder(0, 3)(0.0, 1.5, UID, values) is None


@pytest.mark.parametrize(
    "uid",
    [b"0" * 36, bytearray(36), "a\nb", "x" * 70_000, None, 7, "\ud800", "\u02cb", b"0b9c"],
    ids=lambda uid: ascii(uid)[:20],
)
def test_the_quick_way_takes_no_uid_that_is_no_line_of_ascii_text(uid: Any) -> None:
    assert encoder(0, 1)(0.0, 1.5, uid, [1.0]) is None


def test_an_encoder_goes_on_after_a_row_that_it_did_not_take() -> None:
    encode = encoder(0, 2)
    expected = [encode_one(0, n, 1.5, UID[:n], [n + 0.5, float(-n)]) for n in range(1, 9)]

    found = []
    for n in range(1, 9):
        assert encode(float(n), 1.5, UID[:n], [None, object()]) is None
        found.append(encode(float(n), 1.5, UID[:n], [n + 0.5, float(-n)]))

    assert found == expected


@pytest.mark.parametrize("channels", [0, 1, 15, 16, 300, 70_000])
def test_rows_are_encoded_and_decoded_together_as_one_by_one(channels: int) -> None:
    values = np.arange(5 * channels, dtype=np.float64).reshape(5, channels) / 7
    times, uids = [1.7e9 + n / 7 for n in range(5)], [str(uuid.uuid4()) for _ in range(5)]

    records = encode_rows(3, 20, times, uids, values.T.tolist())

    assert records is not None
    assert records == [encode_one(3, 20 + n, times[n], uids[n], values[n].tolist()) for n in range(5)]
    found = decode_records(b"".join(records), len(records[0]))
    assert found is not None
    assert (found.layout, found.number, found.times) == (3, 20, tuple(times))
    assert (found.values == values).all()


@pytest.mark.parametrize("uids", [["a", "bb"], ["a", 7], ["\u02cb", "a"], ["a", "\n"]])
def test_rows_whose_uids_differ_in_kind_are_encoded_one_by_one(uids: list[Any]) -> None:
    assert encode_rows(0, 0, [1.0, 2.0], uids, [[0.0, 0.0]]) is None


@pytest.mark.parametrize(
    "odd",
    [7, True, None, "a", math.nan, -math.inf, 2.0**60, [1.0], object(), np.float64(1.5)]
    + ["@2345678", b"@234567", 2**62, -(2**40)],
)
def test_rows_of_other_values_than_plain_floats_are_encoded_one_by_one(odd: object) -> None:
    uids = [str(uuid.uuid4()) for _ in range(3)]

    assert encode_rows(0, 0, [1.0, 2.0, 3.0], uids, [[0.0, 1.0, 2.0], [0.0, odd, 2.0]]) is None


@pytest.mark.parametrize("uid", ["a\nb", "x" * 70_000, "\ud800", b"0b9c", 7])
def test_a_row_of_such_a_uid_has_no_record(uid: Any) -> None:
    assert encode_one(0, 0, 1.5, uid, [1.0]) is None


def test_no_row_has_more_values_than_a_line_may_hold() -> None:
    values = [1.0] * (MAX_VALUES + 1)

    assert encode_one(0, 0, 1.5, UID, values) is None
    assert encoder(0, len(values))(0.0, 1.5, UID, values) is None


def one(layout: int, number: int, time: float, uid: str, values: list[float]) -> bytes:
    record = encode_one(layout, number, time, uid, values)
    assert record is not None
    return record


def rows(*numbers: int, layout: int = 0, channels: int = 2) -> list[bytes]:
    return [one(layout, n, n / 4, UID, [n + 0.5] * channels) for n in numbers]


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(rows(0, 2), id="a number is missing"),
        pytest.param(rows(1, 0), id="out of order"),
        pytest.param(rows(0, 0), id="a number twice"),
        pytest.param([*rows(0), *rows(1, layout=1)], id="two layouts"),
        pytest.param([*rows(0, channels=5), one(0, 1, 1.0, UID + "x" * 9, [1.0] * 4)], id="as wide by chance"),
        pytest.param([*rows(0), one(0, 1, 1.0, UID, [float("inf")] * 2)], id="a value that is not finite"),
        pytest.param([rows(0)[0], bytes(len(rows(0)[0]))], id="zeros"),
        pytest.param([rows(0)[0][:-1] + b" ", rows(1)[0]], id="no newline"),
    ],
)
def test_rows_that_do_not_follow_each_other_are_not_read_together(records: list[bytes]) -> None:
    assert decode_records(b"".join(records), len(records[0])) is None


def test_no_flipped_bit_of_a_block_is_overlooked() -> None:
    whole = b"".join(rows(0, 1, 2))
    width = len(whole) // 3
    assert decode_records(whole, width) is not None

    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode_records(bytes(damaged), width) is None


def test_swapped_rows_are_noticed_although_each_is_intact() -> None:
    one, two, three = rows(0, 1, 2)

    assert decode_records(one + three + two, len(one)) is None
    assert decode_records(one + renumbered(three, 1), len(one)) is not None


@pytest.mark.parametrize("channels", [1, 15, 16, 40])
def test_a_damaged_width_is_not_believed(channels: int) -> None:
    (record,) = rows(0, channels=channels)

    for bit in range(32):
        damaged = bytearray(record + bytes(64))
        damaged[len(MAGIC) + bit // 8] ^= 1 << bit % 8
        assert shape_of(bytes(damaged), 0) is None


@pytest.mark.parametrize("size", range(67))
def test_half_a_beginning_tells_nothing_yet(size: int) -> None:
    (record,) = rows(0)
    assert shape_of(record, 0) is not None

    with pytest.raises(IndexError):
        shape_of(record[:size], 0)
