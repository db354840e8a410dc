"""The format of a run's files: what was written is read back as it was, and nothing is guessed."""

from __future__ import annotations

import json
import math
import struct
import typing
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomscale_bluesky import SpoolError
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.model.rows import Channel, Row, Rows
from atomscale_bluesky.spool import journal_format as lines
from atomscale_bluesky.spool.journal_format import (
    Header,
    JournalLine,
    Layout,
    decode_journal,
    decode_payloads,
    encode_row,
    join_rows,
    pack_values,
    start_of_row,
)
from atomscale_bluesky.spool.ledger_format import LedgerLine, decode_ledger
from atomscale_bluesky.spool.lines import encode
from atomscale_bluesky.spool.orders import OrderLine, decode_order

JOURNAL_TYPES = typing.get_args(JournalLine)
LEDGER_TYPES = typing.get_args(LedgerLine)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)

HEADER = Header(
    format=1,
    run_uid="b7c2e9f1",
    started=1_760_000_000.1,
    label="grow · 17 °C",
    points_per_chunk=100,
    primary="primary",
    endpoint="https://api.atomscale.ai",
    non_finite="own_stream",
    links=Links(42, None, "0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60"),
)


def example(kind: Any) -> Any:
    """A line of this kind with something in every member."""
    return msgspec.convert({field.encode_name: _value(field.type) for field in msgspec.structs.fields(kind)}, kind)


def _value(kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return msgspec.to_builtins(example(kind))
    if origin is typing.Literal:
        return arguments[-1]
    if origin is dict:
        return {"k": _value(arguments[1])}
    if origin is tuple:
        return [_value(argument) for argument in arguments if argument is not ...]
    if arguments:
        return _value(arguments[0])
    return {int: 7, float: 1.5, str: 'a "quoted"\nword', bool: True}[kind]


@pytest.mark.parametrize("kind", JOURNAL_TYPES, ids=lambda kind: kind.__name__)
def test_each_line_of_a_journal_is_read_back_as_it_was(kind: Any) -> None:
    line = example(kind)

    assert decode_journal(encode(line)) == line


@pytest.mark.parametrize("kind", LEDGER_TYPES, ids=lambda kind: kind.__name__)
def test_each_line_of_a_ledger_is_read_back_as_it_was(kind: Any) -> None:
    line = example(kind)

    assert decode_ledger(encode(line)) == line


@pytest.mark.parametrize("kind", [*JOURNAL_TYPES, *LEDGER_TYPES], ids=lambda kind: kind.__name__)
def test_each_line_is_one_line_of_json_that_says_its_kind(kind: Any) -> None:
    text = encode(example(kind))

    assert b"\n" not in text
    assert orjson.loads(text)["kind"] == kind.__struct_config__.tag


@pytest.mark.parametrize("kind", [*JOURNAL_TYPES, *LEDGER_TYPES, *typing.get_args(OrderLine), Links, Channel])
def test_a_line_that_was_read_cannot_be_changed(kind: Any) -> None:
    line = example(kind)

    for name in kind.__struct_fields__ or ("kind",):
        with pytest.raises(AttributeError):
            setattr(line, name, None)


def test_no_two_kinds_of_a_file_share_a_tag() -> None:
    for kinds in (JOURNAL_TYPES, LEDGER_TYPES):
        assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds)


def test_what_has_its_default_is_not_written() -> None:
    layout = Layout(layout=0, event_stream="primary", time_base="primary", channels=(Channel("T", "t"),))

    assert orjson.loads(encode(layout)) == {
        "kind": "layout", "layout": 0, "event_stream": "primary", "time_base": "primary",
        "channels": [{"name": "T", "key": "t"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "future"},
        {"kind": None},
        {"compression": "zstd"},
        {"format": "one"},
        {"started": None},
    ],
)
def test_a_kind_or_member_that_is_not_known_is_an_error_and_never_a_guess(change: dict[str, Any]) -> None:
    payload = orjson.dumps(orjson.loads(encode(HEADER)) | change)

    with pytest.raises(
        SpoolError, match=r"a journal's line is not understood: .*; was it written by a newer version\?"
    ):
        decode_journal(payload)
    with pytest.raises(SpoolError, match=r"a ledger's line is not understood: .*; was it written by a newer version\?"):
        decode_ledger(payload)


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"7", b"{}", b"[", b"[0]", b"[0,0,1.0,nan]", b"[0,0,1,2,3,4,5,6]", b"\xff"]
)
def test_a_line_of_no_kind_is_an_error(payload: bytes) -> None:
    with pytest.raises(SpoolError, match="is not understood"):
        decode_journal(payload)


@pytest.mark.parametrize("payload", [b"[]", b"[0]", b"[0,0,1.0]", b"[0,0,null,1]", b'["a",0,1.0,"e",[]]'])
def test_the_start_of_a_row_of_another_shape_is_an_error(payload: bytes) -> None:
    with pytest.raises(SpoolError, match="is not understood"):
        start_of_row(payload)


@given(
    layout=st.integers(0, 10**6),
    number=st.integers(0, 2**53),
    time=FINITE,
    uid=TEXTS,
    values=st.lists(st.none() | FINITE, max_size=5),
    gaps=st.dictionaries(TEXTS, TEXTS, max_size=3),
)
def test_a_row_is_read_back_exactly(
    layout: int, number: int, time: float, uid: str, values: list[float | None], gaps: dict[str, str]
) -> None:
    text = encode_row(layout, number, time, uid, pack_values(values), gaps)

    row = decode_journal(text)

    assert row == Row(layout, number, time, uid, values, gaps)
    assert isinstance(row, Row)
    assert [math.copysign(1, v) for v in row.values if v is not None] == [
        math.copysign(1, v) for v in values if v is not None
    ]
    assert b"\n" not in text


@pytest.mark.parametrize("gaps", [None, {}, {"a": "not finite"}])
def test_a_row_tells_which_integers_lost_digits(gaps: dict[str, str] | None) -> None:
    row = decode_journal(encode_row(3, 7, 1.5, "uid", pack_values([1.0, 2.0]), gaps, ["b"]))

    assert row == Row(3, 7, 1.5, "uid", [1.0, 2.0], gaps or {}, ["b"])


@pytest.mark.parametrize("kind", typing.get_args(OrderLine))
def test_each_order_is_read_back_as_it_was(kind: Any) -> None:
    assert decode_order(encode(example(kind))) == example(kind)


@pytest.mark.parametrize("payload", [b"", b"{}", b"[0]", b'{"kind":"explode"}', b'{"kind":"retry","hard":true}'])
def test_an_order_that_is_not_known_is_an_error(payload: bytes) -> None:
    with pytest.raises(SpoolError, match=r"an order is not understood: .*; was it written by a newer version\?"):
        decode_order(payload)


# ---- many rows at once -----------------------------------------------------------------------------------------------


def safe(number: int, layout: int = 0) -> bytes:
    head, values = encode_row(layout, number, number / 4, "uid", pack_values([number + 0.5, -number])).rsplit(b",", 1)
    return head.ljust(40) + b"," + values  # as in format 2


def gone(payload: bytes, size: int) -> bytes:
    """A row without its last values, as wide as before."""
    return payload[: -size - 2] + b'"]' + b" " * size


def together(payloads: list[bytes]) -> Rows | None:
    """Lines of one width, decoded at once."""
    return decode_payloads(payloads)


def shown(rows: Rows | None) -> Any:
    return None if rows is None else (rows.layout, rows.number, rows.times, rows.values.tolist())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_plain_rows_that_follow_each_other_are_read_at_once(count: int) -> None:
    rows = together([safe(number, 6) for number in range(3, 3 + count)])

    numbers = range(3, 3 + count)
    assert shown(rows) == (6, 3, tuple(n / 4 for n in numbers), [[n + 0.5, -n] for n in numbers])
    assert rows is not None
    assert rows.values.dtype == np.float64


@pytest.mark.parametrize(
    "payloads",
    [
        pytest.param([safe(0), safe(2)], id="a number is missing"),
        pytest.param([safe(1), safe(0)], id="out of order"),
        pytest.param([safe(0), safe(0)], id="a number twice"),
        pytest.param([safe(0, 1), safe(1, 2)], id="two layouts"),
        pytest.param([encode_row(0, 1, 1.0, "uid", pack_values([1.0, None]), {"b": "gap"})], id="a gap"),
        pytest.param([encode_row(0, 1, 1.0, "uid", pack_values([1.0, 2.0]), {}, ["b"])], id="lost digits"),
        pytest.param([encode_row(0, 0, 1.0, "uid", pack_values([1.0, None]))], id="a value that is none"),
        pytest.param([encode_row(0, 0, 1.0, "uid", pack_values([1.0, math.inf]))], id="a value that is not finite"),
        pytest.param([encode_row(0, 0, 1.0, "uid", b"x" * 16)], id="a text"),
        pytest.param([safe(0), gone(safe(1), 16)], id="fewer values"),
        pytest.param([encode_row(0, 0, 1.0, "uid", pack_values([1.0])[:-1])], id="half a value"),
        pytest.param([b'[0,0,1.0,"uid",1.0]'], id="no values"),
        pytest.param([b'[0,0,1.0,"uid",[1.0,2.0]]'], id="as they were in format 1"),
        pytest.param([encode(HEADER)], id="another line"),
        pytest.param([safe(0), safe(1)[:-1] + b","], id="half a line"),
        pytest.param([b"[0,0,1.0]"], id="fewer members"),
        pytest.param([b'[0,0,1.0,"' + b"0" * 16 + b'"]'], id="no uid"),
    ],
)
def test_rows_of_which_one_is_not_plain_are_read_one_by_one(payloads: list[bytes]) -> None:
    assert together(payloads) is None


def test_parts_that_follow_each_other_are_joined() -> None:
    whole = together([safe(number, 2) for number in range(10, 20)])
    parts = [together([safe(n, 2) for n in range(begin, end)]) for begin, end in ((10, 11), (11, 16), (16, 20))]

    assert shown(join_rows([part for part in parts if part])) == shown(whole)
    assert whole is not None
    assert join_rows([whole]) is whole


@pytest.mark.parametrize(
    "following",
    [
        [safe(3)],
        [safe(1)],
        [safe(0)],
        [safe(2, 1)],
        [encode_row(0, 2, 1.0, "uid", pack_values([1.0]))],
        [encode_row(0, 2, 1.0, "uid", pack_values([1.0, 2.0, 3.0]))],
    ],
)
def test_parts_that_do_not_follow_each_other_are_not_joined(following: list[bytes]) -> None:
    first, second = together([safe(0), safe(1)]), together(following)

    assert first is not None
    assert second is not None
    assert join_rows([first, second]) is None


def test_the_format_has_a_number() -> None:
    assert lines.FORMAT == 3


def test_a_row_of_format_1_is_read() -> None:
    row = decode_journal(b'[3,7,1.5,"uid",[1.0,null],{"b":"not finite"}]')

    assert row == Row(3, 7, 1.5, "uid", [1.0, None], {"b": "not finite"})


def test_a_person_reads_values_as_the_documentation_says() -> None:
    text = json.loads(encode_row(0, 0, 1.0, "uid", pack_values([1.0, -0.1, None])))[4]

    values = struct.unpack(f">{len(text) // 16}d", bytes.fromhex(text))

    assert text.startswith("3ff0000000000000")
    assert values[:2] == (1.0, -0.1)
    assert math.isnan(values[2])
