"""Which readings become points of which channel, at what time, and why the others do not."""

from __future__ import annotations

import array
import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import orjson
import pytest
from event_model import compose_run
from hypothesis import given
from hypothesis import strategies as st
from ophyd import Signal
from ophyd import sim as ophyd_sim
from ophyd_async.core import StrictEnum, soft_signal_rw

from atomscale_bluesky.documents.conversion import Rounded, has_no_elements, length_of, number
from atomscale_bluesky.documents.description import Description, description_of
from atomscale_bluesky.documents.descriptor import event_stream_of
from atomscale_bluesky.documents.event_page import only_rows
from atomscale_bluesky.documents.event_stream import EventStream
from atomscale_bluesky.documents.selection import Selection
from atomscale_bluesky.errors import ChannelError
from atomscale_bluesky.model.loss import Loss
from atomscale_bluesky.model.rows import Row
from atomscale_bluesky.spool.journal_format import Layout, decode_journal

NUMBER = {"source": "sim", "dtype": "number", "shape": []}
INTEGER = {"source": "sim", "dtype": "integer", "shape": []}
TEXT_KEY = {"source": "sim", "dtype": "string", "shape": []}
BOOLEAN = {"source": "sim", "dtype": "boolean", "shape": []}


class Mode(StrictEnum):
    HOLD = "hold"
    RAMP = "ramp"
    IDLE = "idle"


class Told:
    """An event stream with real documents, and the journal's lines that it gave."""

    def __init__(
        self,
        data_keys: Mapping[str, Any],
        selection: Selection | None = None,
        *,
        name: str = "primary",
        hints: Mapping[str, Any] | None = None,
    ) -> None:
        self.run = compose_run()
        self.now = self.run.start_doc["time"]
        self.composed = self.run.compose_descriptor(
            name=name,
            data_keys=dict(data_keys),
            hints=hints,
            object_keys={"dev": list(data_keys)},
            configuration={},
        )
        self.stream = EventStream(
            description_of(self.composed.descriptor_doc, name),
            selection or Selection(),
            started=self.now - 100,
            next_layout=itertools.count().__next__,
        )
        self.lines: list[Layout | Row] = []

    def event(self, data: Mapping[str, Any], *, accept: bool = True, **members: Any) -> dict[str, Any]:
        """Give one event, whatever it holds; as a document that was composed before it was filled."""
        time = members.pop("time", self.now)
        doc = {
            "uid": f"event-{len(self.lines)}",
            "time": time,
            "descriptor": self.composed.descriptor_doc["uid"],
            "seq_num": 1,
            "data": dict(data),
            "timestamps": dict.fromkeys(data, self.now),
            "filled": {},
        } | members
        self._keep(self.stream.lines_of_event(doc), accept)
        return doc

    def part(self, data: Mapping[str, Any], only: set[str]) -> None:
        """Give an event of which the readings of some keys are wanted."""
        doc = {"uid": f"event-{len(self.lines)}", "time": self.now, "data": dict(data), "timestamps": {}}
        self._keep(self.stream.lines_of_keys(doc, only), accept=True)

    def page(self, data: Mapping[str, Any], *, accept: bool = True, **members: Any) -> None:
        rows = len(next(iter(data.values()), members.get("seq_num", [1])))
        doc = {
            "uid": [f"page-{len(self.lines)}-{i}" for i in range(rows)],
            "time": [self.now] * rows,
            "descriptor": self.composed.descriptor_doc["uid"],
            "seq_num": list(range(1, rows + 1)),
            "data": dict(data),
            "timestamps": {key: [self.now] * rows for key in data},
            "filled": {},
        } | members
        self._keep(self.stream.lines_of_page(doc), accept)

    def _keep(self, payloads: list[bytes], accept: bool) -> None:
        found = [decode_journal(payload) for payload in payloads]
        if accept:
            self.stream.note_written()
            self.lines += [line for line in found if isinstance(line, Layout | Row)]

    @property
    def layouts(self) -> list[Layout]:
        """Each layout once; it stands twice in a journal."""
        layouts = [line for line in self.lines if isinstance(line, Layout)]
        assert layouts[::2] == layouts[1::2]
        return layouts[::2]

    @property
    def rows(self) -> list[Row]:
        return [line for line in self.lines if isinstance(line, Row)]

    @property
    def names(self) -> list[str]:
        return [channel.name for channel in self.layouts[-1].channels]

    def points(self) -> dict[str, list[tuple[float, float]]]:
        """Time and value of every point, by channel."""
        layouts = {layout.layout: layout for layout in self.layouts}
        found: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            for channel, value in zip(layouts[row.layout].channels, row.values, strict=True):
                if value is not None:
                    found.setdefault(channel.name, []).append((row.time, value))
        return found

    def values(self) -> dict[str, list[float]]:
        return {name: [value for _, value in points] for name, points in self.points().items()}

    def gaps(self) -> list[dict[str, str]]:
        return [row.gaps for row in self.rows]


# ---- one value -------------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = 3.5
    WORD = "word"


class Level(IntEnum):
    HIGH = 7


class OwnFloat(float):
    """A float of somebody's own, which encoders do not know."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        (2.5, 2.5),
        (np.int32(-4), -4.0),
        (np.uint64(2**64 - 1), Rounded(2**64 - 1)),
        (np.float32(0.1), 0.10000000149011612),
        (np.float64(0.1), 0.1),
        (np.float16(1.5), 1.5),
        (np.longdouble("0.5"), 0.5),
        (OwnFloat(1.25), 1.25),
        (True, 1.0),
        (False, 0.0),
        (np.bool_(True), 1.0),
        (Level.HIGH, 7.0),
        (Colour.RED, 3.5),
        (np.array(3.0), 3.0),
        (np.array([4]), 4.0),
        (np.array([[5.5]]), 5.5),
        ([6], 6.0),
        ((7.5,), 7.5),
        (2**53 + 1, Rounded(2**53)),
        (2**70, float(2**70)),
        (10**400, Loss.TOO_LARGE),
        (math.nan, Loss.NOT_FINITE),
        (math.inf, Loss.NOT_FINITE),
        (-math.inf, Loss.NOT_FINITE),
        (np.float32("nan"), Loss.NOT_FINITE),
        (np.longdouble("1e4000"), Loss.NOT_FINITE),
        (None, Loss.NO_VALUE),
        (np.ma.masked, Loss.NO_VALUE),
        (np.ma.array([1.0], mask=[True]), Loss.NO_VALUE),
        (np.ma.array([1.0], mask=[False]), 1.0),
        ("12", Loss.TEXT),
        (np.str_("12"), Loss.TEXT),
        (Colour.WORD, Loss.TEXT),
        (Mode.RAMP, Loss.TEXT),
        ([], Loss.ARRAY),
        ([1, 2], Loss.ARRAY),
        (np.zeros((2, 2)), Loss.ARRAY),
        (b"12", Loss.NOT_NUMERIC),
        ({"value": 1}, Loss.NOT_NUMERIC),
        (Decimal("1.5"), 1.5),
        (Decimal("nan"), Loss.NOT_FINITE),
        (Decimal("snan"), Loss.NOT_FINITE),
        (Decimal("1e400"), Loss.TOO_LARGE),
        (1 + 2j, Loss.NOT_NUMERIC),
        (np.complex128(1j), Loss.NOT_NUMERIC),
        (np.datetime64("2026-01-01"), Loss.NOT_NUMERIC),
        (np.datetime64("2026-01-01", "ns"), Loss.NOT_NUMERIC),
        (np.timedelta64(5, "ns"), Loss.NOT_NUMERIC),
        (..., Loss.NOT_NUMERIC),
    ],
    ids=repr,
)
def test_a_value_is_a_finite_number_or_has_a_reason_why_not(value: Any, expected: float | str) -> None:
    assert number(value) == expected
    assert type(number(value)) is type(expected)


ODD = st.sampled_from(
    [None, math.nan, math.inf, -math.inf, "", "text", "null", "1", 'quote "', 10**400, -(2**70), b"x", 1j, Decimal(1)]
    + [Level.HIGH, Colour.RED, Colour.WORD, Mode.IDLE, [], [1.5], [1, 2], [[3]], {}, {"a": 1}, (), (2,), np.ma.masked]
    + [np.zeros(3), np.array(1.5), np.array([2]), np.array("text"), np.float32("nan"), np.bool_(False), object()]
    + [np.datetime64("2026-01-01", "ns"), np.longdouble("1e4000"), OwnFloat(0.1), OwnFloat("nan"), 2**63, 2**53 + 1]
)
VALUES = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.floats(width=32).map(np.float32),
    st.integers(-(2**31), 2**31 - 1).map(np.int32),
    st.integers(0, 2**64 - 1).map(np.uint64),
    st.floats().map(np.array),
    ODD,
)


def compared(value: float | str) -> object:
    """A number with its sign, which -0.0 has too."""
    return (float(value), math.copysign(1, value)) if isinstance(value, int | float) else value


@given(first=st.lists(st.floats(), min_size=1, max_size=6), later=st.data())
def test_every_value_of_a_row_is_kept_exactly_or_is_a_gap_with_its_reason(first: list[float], later: Any) -> None:
    told = Told({f"k{i}": NUMBER for i in range(len(first))})
    told.event({f"k{i}": value for i, value in enumerate(first)})
    alone = VALUES.filter(lambda value: length_of(value) is None)
    told.event({f"k{i}": later.draw(alone) for i in range(len(first))} | {"late": 1})
    values = later.draw(st.lists(alone, min_size=len(first), max_size=len(first)))

    told.event({f"k{i}": value for i, value in enumerate(values)})

    row = told.rows[-1]
    for i, (name, value) in enumerate(zip(told.names, values, strict=False)):  # the channel of the late key comes last
        kept = row.gaps[name] if row.values[i] is None else row.values[i]
        wanted = number(value)
        if wanted is Loss.ARRAY and has_no_elements(value):
            wanted = Loss.NO_VALUE
        assert compared(kept) == compared(wanted)
    assert all(row.values[told.names.index(name)] is None for name in row.gaps)


@given(columns=st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_page_says_the_same_as_its_events_one_by_one(columns: list[list[Any]]) -> None:
    keys = {f"k{i}": NUMBER for i in range(len(columns))}
    numbers = dict.fromkeys(keys, 0.5)
    by_event, by_page = Told(keys, Selection(timestamps="event")), Told(keys, Selection(timestamps="event"))
    by_event.event(numbers)
    by_page.event(numbers)

    for i in range(3):
        by_event.event({key: column[i] for key, column in zip(keys, columns, strict=True)})
    by_page.page(dict(zip(keys, columns, strict=True)))

    assert [(row.number, row.values, row.gaps) for row in by_page.rows] == [
        (row.number, row.values, row.gaps) for row in by_event.rows
    ]


def test_an_integer_that_no_float_can_tell_apart_is_rounded_and_never_refused() -> None:
    told = Told({"count": INTEGER})
    for value in (2**53 + 1, 2**63, 2**70, 10**400):
        told.event({"count": value})

    assert [None if v is None else float(v) for v in (row.values[0] for row in told.rows)] == [
        float(2**53), float(2**63), float(2**70), None,
    ]  # fmt: skip
    assert told.gaps()[-1] == {"count": Loss.TOO_LARGE}
    assert [row.rounded for row in told.rows] == [["count"], [], [], []]


@pytest.mark.parametrize("value", [2**53 + 1, np.int64(2**53 + 1), np.array(2**53 + 1), [-(2**53) - 1]])
def test_an_integer_that_loses_digits_is_noted_wherever_it_stands(value: Any) -> None:
    told = Told({"count": INTEGER, "other": NUMBER, "wave": NUMBER})
    told.event({"count": 1, "other": 2.5, "wave": [1, 2]})
    told.event({"count": value, "other": 2.5, "wave": [2**53 + 3, 2]})
    told.page({"count": [value, 7], "other": [1, 1], "wave": [[1, 2], [1, 2**63 + 1]]})

    assert [row.rounded for row in told.rows] == [[], ["count", "wave[0]"], ["count"], ["wave[1]"]]
    assert told.gaps() == [{}] * 4


# ---- which keys become channels --------------------------------------------------------------------------------------


def test_values_decide_what_is_numeric_whatever_the_descriptor_promises() -> None:
    told = Told({"word": NUMBER, "digit": TEXT_KEY, "flag": NUMBER, "state": INTEGER})

    told.event({"word": "open", "digit": 4.5, "flag": np.bool_(True), "state": None})

    assert told.values() == {"digit": [4.5], "flag": [1.0]}
    assert told.stream.left_out == {"word": Loss.TEXT}
    assert told.gaps() == [{"state": Loss.NO_VALUE}]


def test_a_value_that_leaves_its_type_is_a_gap_while_it_does() -> None:
    told = Told({"soft": INTEGER, "other": NUMBER})
    for value in (0, 1.5, True, None, "text", math.nan, math.inf, {"a": 1}, 2):
        told.event({"soft": value, "other": 1})

    assert told.values()["soft"] == [0, 1.5, 1, 2]
    assert [gap.get("soft") for gap in told.gaps()] == [
        None, None, None, Loss.NO_VALUE, Loss.TEXT, Loss.NOT_FINITE, Loss.NOT_FINITE, Loss.NOT_NUMERIC, None,
    ]  # fmt: skip
    assert len(told.values()["other"]) == 9


def test_text_that_becomes_a_number_joins_as_a_late_channel() -> None:
    told = Told({"T": NUMBER, "state": TEXT_KEY})
    told.event({"T": 1, "state": "off"})
    told.event({"T": 2, "state": None})
    told.event({"T": 3, "state": 8})
    told.event({"T": 4, "state": "off"})

    first, second = told.layouts
    assert [channel.name for channel in first.channels] == ["T"]
    assert first.left_out == {"state": Loss.TEXT}
    assert [channel.name for channel in second.channels] == ["T", "state"]
    assert second.left_out == {}
    assert (first.time_base, second.time_base) == ("primary", "primary")
    assert [(row.layout, row.number) for row in told.rows] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert told.gaps()[-1] == {"state": Loss.TEXT}


def test_text_that_becomes_a_number_within_a_page_joins_from_there_on() -> None:
    told = Told({"T": NUMBER, "state": TEXT_KEY}, Selection(timestamps="event"))
    told.event({"T": 1, "state": "off"})

    told.page({"T": [2, 3], "state": ["off", 5]})

    assert told.values() == {"T": [1, 2, 3], "state": [5]}
    assert [layout.left_out for layout in told.layouts] == [{"state": Loss.TEXT}, {}]
    assert [row.layout for row in told.rows] == [0, 0, told.layouts[1].layout]


def test_a_new_key_in_the_place_of_another_is_taken_though_a_text_becomes_a_number_in_the_same_event() -> None:
    told = Told({"a": NUMBER, "b": TEXT_KEY})
    for n in (1, 2):
        told.event({"a": n, "b": "warming up"}, time=told.now + n)
    told.event({"b": 5, "c": 7}, time=told.now + 3)
    told.event({"a": 4, "b": 6}, time=told.now + 4)

    assert told.values() == {"a": [1, 2, 4], "b": [5, 6], "c": [7]}


def test_a_new_key_in_the_place_of_another_is_taken_from_a_part_of_an_event() -> None:
    told = Told({"a": NUMBER, "b": NUMBER})
    told.event({"a": 1, "b": 2})
    told.part({"b": 3, "c": 4}, {"c"})

    assert told.values() == {"a": [1], "b": [2], "c": [4]}


@pytest.mark.parametrize("page", [False, True], ids=["events", "pages"])
def test_a_late_channel_has_its_own_times_from_its_first_point_on(page: bool) -> None:
    told = Told({"a": NUMBER, "b": TEXT_KEY}, name="x_monitor")
    for value, later in (("warming up", 0.0), (5.0, 0.25)):
        stamps = {"a": told.now, "b": told.now + later}
        if page:
            told.page({"a": [1], "b": [value]}, timestamps={key: [stamp] for key, stamp in stamps.items()})
        else:
            told.event({"a": 1, "b": value}, timestamps=stamps)

    assert told.points() == {"a": [(told.now, 1), (told.now, 1)], "b": [(told.now + 0.25, 5)]}


def test_an_array_of_which_an_element_is_text_at_first_has_a_gap_there() -> None:
    told = Told({"wave": {"source": "sim", "dtype": "array", "shape": [2]}})
    told.event({"wave": ["text", 2.5]})
    told.event({"wave": [1.5, 3.5]})

    assert told.values() == {"wave[0]": [1.5], "wave[1]": [2.5, 3.5]}


def test_a_list_of_texts_that_becomes_numbers_joins_as_late_channels() -> None:
    told = Told({"wave": {"source": "sim", "dtype": "array", "shape": [2]}})
    told.event({"wave": ["off", "off"]})
    told.event({"wave": [1.5, 2.5]})

    assert told.values() == {"wave[0]": [1.5], "wave[1]": [2.5]}


def test_a_key_that_an_event_does_not_have_is_missing_in_its_row() -> None:
    told = Told({"a": NUMBER, "b": NUMBER})
    told.event({"a": 1, "b": 2})
    told.event({"a": 3})

    assert told.gaps() == [{}, {"b": Loss.MISSING}]
    assert told.values() == {"a": [1, 3], "b": [2]}


def test_a_key_that_the_descriptor_does_not_know_is_taken_when_the_first_event_has_it() -> None:
    told = Told({"a": NUMBER})

    told.event({"a": 1, "extra": 2})

    assert told.values() == {"a": [1], "extra": [2]}


@pytest.mark.parametrize("key", [7, None, math.nan, ("a", "b"), b"a"], ids=repr)
def test_a_key_that_is_no_text_is_left_out_and_the_others_are_not(key: Any) -> None:
    told = Told({"a": NUMBER})
    told.event({"a": 1.5, key: 2.5})
    told.page({"a": [2.5], key: [3.5]})

    assert told.values() == {"a": [1.5, 2.5]}
    assert list(told.stream.left_out.values()) == [Loss.NAMELESS]


def test_a_name_that_no_file_can_hold_is_made_one_that_it_can() -> None:
    told = Told({"a": NUMBER})
    told.event({"a": 1.5, "bad \ud800 key": 2.5, "text \ud800": "x"})
    told.event({"a": 1.5, "bad \ud800 key": 3.5})

    assert told.values() == {"a": [1.5, 1.5], "bad ? key": [2.5, 3.5]}
    assert told.stream.left_out == {"text ?": Loss.TEXT}


class Hostile:
    """Raises whatever it is asked."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_a_value_that_raises_when_it_is_looked_at_costs_itself_alone() -> None:
    told = Told({"a": NUMBER, "b": NUMBER})
    told.event({"a": 1, "b": 2})
    told.event({"a": 3, "b": Hostile()})
    told.event({"a": 4, "b": 5})

    assert told.values() == {"a": [1, 3, 4], "b": [2, 5]}
    assert told.gaps()[1] == {"b": Loss.NOT_NUMERIC}


def test_a_value_that_raises_at_first_is_left_out_and_the_others_are_not() -> None:
    told = Told({"a": NUMBER, "b": NUMBER})
    told.event({"a": 1, "b": Hostile()})

    assert told.values() == {"a": [1]}
    assert told.stream.left_out == {"b": Loss.NOT_NUMERIC}


def test_a_list_that_holds_itself_is_no_number() -> None:
    endless: list[Any] = []
    endless.append(endless)
    told = Told({"a": NUMBER, "b": NUMBER})
    told.event({"a": 1, "b": endless})
    told.event({"a": 2, "b": 3})

    assert told.values()["a"] == [1, 2]


@pytest.mark.parametrize(
    "described", [{}, {"choices": 5}, {"choices": [{}, None, "x"]}, {"shape": [None]}, {"units": b"K"}, None, 7, "text"]
)
def test_a_data_key_described_in_an_odd_way_is_taken_by_its_value(described: Any) -> None:
    told = Told({"a": NUMBER, "b": NUMBER})
    descriptor = {"data_keys": {"a": NUMBER, "b": described}, "hints": {"dev": {"fields": 7}}}
    told.stream = EventStream(
        description_of(descriptor, "primary"),
        Selection(), started=told.now, next_layout=itertools.count().__next__,
    )  # fmt: skip
    told.event({"a": 1, "b": 2})

    assert told.values() == {"a": [1], "b": [2]}


def test_an_event_without_data_keys_is_an_empty_row() -> None:
    told = Told({})

    told.event({})

    assert [(layout.channels, layout.time_base) for layout in told.layouts] == [((), "primary")]
    assert [row.values for row in told.rows] == [[]]


def test_external_data_are_left_out_unless_they_were_filled_in() -> None:
    keys = {
        "image": {"source": "file", "dtype": "array", "shape": [4, 4], "external": "FILESTORE:"},
        "filled": {"source": "file", "dtype": "number", "shape": [], "external": "FILESTORE:"},
        "asset": {"source": "file", "dtype": "array", "shape": [1, 4, 4], "external": "STREAM:"},
        "T": NUMBER,
    }
    told = Told(keys)

    told.event({"image": "datum/0", "filled": 3.5, "T": 1}, filled={"image": False, "filled": True})

    assert told.values() == {"filled": [3.5], "T": [1]}
    assert told.stream.left_out == {"image": Loss.EXTERNAL, "asset": Loss.EXTERNAL}


def test_a_number_that_stands_for_a_file_not_filled_in_is_left_out() -> None:
    told = Told({"frame": {"source": "file", "dtype": "number", "shape": [], "external": "FILESTORE:"}})

    told.event({"frame": 17}, filled={"frame": False})

    assert told.stream.left_out == {"frame": Loss.EXTERNAL}


@pytest.mark.parametrize("flag", [True, np.bool_(True), "6f0e2c1a/0"], ids=["true", "numpy", "datum id"])
@pytest.mark.parametrize(
    "column",
    [lambda flag: [flag] * 3, lambda flag: np.array([flag] * 3), lambda flag: flag],
    ids=["list", "array", "one"],
)
def test_external_numbers_that_were_filled_in_are_taken_from_events_and_pages(flag: Any, column: Any) -> None:
    keys = {"counts": {"source": "file", "dtype": "number", "shape": [], "external": "FILESTORE:"}, "T": NUMBER}
    by_event, by_page = Told(keys), Told(keys)

    for n in range(3):
        by_event.event({"counts": 100.0 + n, "T": n}, filled={"counts": flag})
    by_page.page({"counts": [100.0, 101.0, 102.0], "T": [0, 1, 2]}, filled={"counts": column(flag)})

    assert by_event.values() == by_page.values() == {"counts": [100.0, 101.0, 102.0], "T": [0.0, 1.0, 2.0]}


@pytest.mark.parametrize("size", [0, 1, 2, 3, 6], ids=lambda size: f"pages of {size}" if size else "events")
def test_an_external_number_is_taken_in_each_row_that_is_filled_in(size: int) -> None:
    keys = {"counts": {"source": "file", "dtype": "number", "shape": [], "external": "FILESTORE:"}, "T": NUMBER}
    counts = ["datum/0", 101.0, "103", 17, 104.0, None]  # text never becomes a number, and 17 stands for a file
    filled = [False, True, False, False, "datum/4", False]
    told = Told(keys)

    for n in range(0, 6, max(size, 1)):
        if size:
            data = {"counts": counts[n : n + size], "T": [float(t) for t in range(n, n + size)]}
            told.page(data, filled={"counts": filled[n : n + size]})
        else:
            told.event({"counts": counts[n], "T": float(n)}, filled={"counts": filled[n]})

    assert told.values() == {"counts": [101.0, 104.0], "T": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}
    assert [dict(layout.left_out) for layout in told.layouts] == [{"counts": Loss.EXTERNAL}, {}]


@pytest.mark.parametrize("flags", [[False] * 2, ["", ""], False, None, "", 7.5, [None, None], [True]])
def test_external_numbers_that_a_page_does_not_call_filled_are_left_out(flags: Any) -> None:
    keys = {"counts": {"source": "file", "dtype": "number", "shape": [], "external": "FILESTORE:"}, "T": NUMBER}
    told = Told(keys)

    told.page({"counts": [17, 18], "T": [0, 1]}, filled={"counts": flags})

    assert told.values() == {"T": [0.0, 1.0]}
    assert told.stream.left_out == {"counts": Loss.EXTERNAL}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"data_keys": None, "object_keys": None, "hints": None, "configuration": None},
        {"data_keys": [], "hints": [], "object_keys": "x"},
        {"data_keys": {"T": None}, "hints": {"dev": None}},
        {"hints": {"dev": {"fields": "T"}}},
    ],
    ids=["nothing", "none", "lists", "none within", "text"],
)
def test_a_descriptor_may_lack_nearly_everything(members: dict[str, Any]) -> None:
    descriptor = {"uid": "d", "run_start": "r", "time": 1.0, **members}
    description = description_of(descriptor, event_stream_of(descriptor))
    stream = EventStream(description, Selection(), started=0.0, next_layout=itertools.count().__next__)

    lines = stream.lines_of_event({"uid": "e", "time": 2.0, "descriptor": "d", "seq_num": 1, "data": {"T": 3.5}})

    found = [decode_journal(line) for line in lines]
    assert [line.event_stream for line in found if isinstance(line, Layout)] == ["primary", "primary"]
    assert [line.values for line in found if isinstance(line, Row)] == [[3.5]]


@pytest.mark.parametrize("choices", [("Closed", "Open"), ["Closed", "Open"], np.array(["Closed", "Open"])])
@pytest.mark.parametrize("word", ["choices", "enum_strs"])
def test_the_texts_of_an_enum_may_be_a_list_of_any_kind(word: str, choices: Any) -> None:
    told = Told({"shutter": TEXT_KEY | {word: choices}})

    told.event({"shutter": "Open"})
    told.event({"shutter": "Closed"})

    assert told.values() == {"shutter": [1.0, 0.0]}


def test_channels_are_selected_by_patterns_of_which_the_last_match_decides() -> None:
    told = Told(
        {"cell_ga": NUMBER, "cell_as": NUMBER, "cell_as_raw": NUMBER, "gauge": NUMBER},
        Selection(channels=("cell_*", "!*_raw")),
    )

    told.event({"cell_ga": 1, "cell_as": 2, "cell_as_raw": 3, "gauge": 4})

    assert told.names == ["cell_ga", "cell_as"]
    assert told.stream.left_out == {"cell_as_raw": Loss.KEY_NOT_SELECTED, "gauge": Loss.KEY_NOT_SELECTED}


def test_patterns_that_only_leave_out_take_all_the_others() -> None:
    selection = Selection(event_streams=("!baseline",))

    assert selection.takes_event_stream("primary")
    assert not selection.takes_event_stream("baseline")
    assert not Selection(event_streams=()).takes_event_stream("primary")


def test_hints_alone_take_the_hinted_fields() -> None:
    told = Told({"a": NUMBER, "b": NUMBER}, Selection(channels=("hints",)), hints={"dev": {"fields": ["b"]}, "x": {}})

    told.event({"a": 1, "b": 2})

    assert told.values() == {"b": [2]}


# ---- enums and booleans of both ophyds -------------------------------------------------------------------------------


def read_of(signal: Any) -> tuple[dict[str, Any], Any]:
    """What a device of ophyd-async describes, and reads, as documents have it."""

    async def both() -> tuple[dict[str, Any], Any]:
        await signal.connect()
        return await signal.describe(), await signal.read()

    described, read = asyncio.run(both())
    return described, {key: reading["value"] for key, reading in read.items()}


def test_an_ophyd_async_enum_is_its_index_among_the_choices() -> None:
    described, read = read_of(soft_signal_rw(Mode, Mode.RAMP, name="mode"))
    told = Told(described)

    told.event(read)
    told.event({"mode": Mode.IDLE})
    told.event({"mode": "hold"})
    told.event({"mode": "unheard of"})

    assert told.values() == {"mode": [1, 2, 0]}
    assert told.gaps()[-1] == {"mode": Loss.TEXT}


def test_an_ophyd_async_enum_that_has_no_value_at_first_is_a_channel_all_the_same() -> None:
    described, _ = read_of(soft_signal_rw(Mode, Mode.RAMP, name="mode"))
    told = Told(described)

    told.event({"mode": None})
    told.event({"mode": Mode.IDLE})

    assert told.values() == {"mode": [2]}


def test_an_epics_enum_that_is_read_as_text_is_its_index_among_the_enum_strs() -> None:
    told = Told({"shutter": {**TEXT_KEY, "enum_strs": ("Closed", "Open")}})
    for value in ("Closed", "Open", "Closed"):
        told.event({"shutter": value})

    assert told.values() == {"shutter": [0.0, 1.0, 0.0]}


class Column:
    """A column as pandas has it: a sequence of its own with `__array__`."""

    def __init__(self, values: list[float]) -> None:
        self.values = np.asarray(values)

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


@pytest.mark.parametrize(
    "make",
    [list, tuple, np.array, lambda v: array.array("d", v), deque, Column, lambda v: memoryview(np.array(v))],
    ids=["list", "tuple", "numpy", "array", "deque", "series", "memoryview"],
)
def test_the_columns_of_a_page_may_be_sequences_of_any_kind(make: Callable[[list[float]], Any]) -> None:
    told = Told({"T": NUMBER})
    doc = {
        "uid": [f"e{i}" for i in range(3)],
        "time": make([told.now + i for i in range(3)]),
        "descriptor": told.composed.descriptor_doc["uid"],
        "seq_num": [1, 2, 3],
        "data": {"T": make([1.0, 2.0, 3.0])},
        "timestamps": {"T": make([told.now + i for i in range(3)])},
    }
    told._keep(told.stream.lines_of_page(doc), accept=True)

    assert told.values() == {"T": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize("column", ["123", b"123", {"a": 1}, {1.0, 2.0, 3.0}, 5, None])
def test_what_has_no_order_or_is_text_is_no_column(column: Any) -> None:
    told = Told({"T": NUMBER})
    doc = {
        "uid": ["a", "b", "c"], "time": [told.now] * 3, "descriptor": "d", "seq_num": [1, 2, 3], "data": {"T": column},
        "timestamps": {},
    }  # fmt: skip

    with pytest.raises(ChannelError, match="expected a list"):
        told.stream.lines_of_page(doc)


def test_an_enum_whose_first_value_is_none_of_its_choices_is_a_channel_all_the_same() -> None:
    told = Told({"mode": {**TEXT_KEY, "choices": ["hold", "ramp"]}})
    for value in ("unknown", "ramp"):
        told.event({"mode": value})

    assert told.gaps() == [{"mode": Loss.TEXT}, {}]
    assert told.values() == {"mode": [1]}


def test_an_integer_that_loses_digits_is_noted_in_a_channel_that_began_as_a_flag() -> None:
    told = Told({"flag": BOOLEAN})
    for value in (True, 2**53 + 1):
        told.event({"flag": value})

    assert [row.rounded for row in told.rows] == [[], ["flag"]]


def test_booleans_of_both_ophyds_are_zero_and_one() -> None:
    described, read = read_of(soft_signal_rw(bool, True, name="shutter-open"))
    classic = Signal(name="valve", value=False)
    told = Told(described | classic.describe())

    told.event(read | {"valve": classic.get()})
    told.event({"shutter-open": np.bool_(False), "valve": np.bool_(True)})

    assert told.values() == {"shutter-open": [1, 0], "valve": [0, 1]}


def test_an_enum_of_classic_ophyd_is_its_index_read_as_integer_or_as_text() -> None:
    told = Told({"mode": INTEGER | {"enum_strs": ("hold", "ramp")}, "word": TEXT_KEY | {"enum_strs": ("hold", "ramp")}})

    told.event({"mode": 1, "word": "ramp"})

    assert told.values() == {"mode": [1], "word": [1]}
    assert not told.stream.left_out


def test_simulated_ophyd_devices_read_numbers() -> None:
    devices = [ophyd_sim.det1, ophyd_sim.motor, ophyd_sim.rand]
    described: dict[str, Any] = {}
    data: dict[str, Any] = {}
    for device in devices:
        described |= device.describe()
        data |= {key: reading["value"] for key, reading in device.read().items()}
    told = Told(described)

    told.event(data)

    assert told.values() == {key: [float(value)] for key, value in data.items()}
    assert not told.stream.left_out


# ---- arrays ----------------------------------------------------------------------------------------------------------


def array_of(*shape: int) -> dict[str, Any]:
    return {"source": "sim", "dtype": "array", "shape": list(shape)}


@pytest.mark.parametrize("make", [list, tuple, np.array])
def test_a_short_array_becomes_one_channel_per_element(make: Callable[[Any], Any]) -> None:
    told = Told({"flux": array_of(3) | {"units": "A"}})

    told.event({"flux": make([1.5, 2, 3])})

    assert told.values() == {"flux[0]": [1.5], "flux[1]": [2], "flux[2]": [3]}
    assert {channel.unit for channel in told.layouts[0].channels} == {"A"}


@pytest.mark.parametrize("value", [[4.5], (4.5,), np.array([4.5]), np.array(4.5)])
def test_an_array_of_one_element_is_a_scalar(value: Any) -> None:
    told = Told({"flux": array_of(1)})

    told.event({"flux": value})

    assert told.values() == {"flux": [4.5]}


def test_an_array_of_one_element_that_has_no_value_at_first_is_a_scalar() -> None:
    told = Told({"flux": array_of(1)})

    told.event({"flux": None})
    told.event({"flux": [4.5]})

    assert told.values() == {"flux": [4.5]}


def test_an_array_that_is_longer_than_the_limit_is_left_out() -> None:
    told = Told({"flux": array_of(5), "T": NUMBER}, Selection(max_elements=4))

    told.event({"flux": np.arange(5), "T": 1})

    assert told.stream.left_out == {"flux": Loss.LONG_ARRAY}
    assert told.values() == {"T": [1]}


@pytest.mark.parametrize("value", [[1.5], [1.5, 2.5], None, [1.5, 2.5, 3.5, 4.5]])
def test_an_array_has_at_least_the_elements_that_it_had_before_an_interruption(value: Any) -> None:
    before = Told({"zones": array_of(3)})
    before.event({"zones": [1, 2, 3]})
    after = EventStream(
        description_of(before.composed.descriptor_doc | {"data_keys": {"zones": NUMBER}}, "primary"),
        Selection(),
        started=before.now - 100,
        next_layout=itertools.count(1).__next__,
        earlier=before.layouts,
    )

    first, *_ = after.lines_of_event({"uid": "e", "time": before.now, "data": {"zones": value}, "timestamps": {}})

    layout = decode_journal(first)
    assert isinstance(layout, Layout)
    assert [channel.element for channel in layout.channels] == list(range(4 if value and len(value) == 4 else 3))


def test_an_array_may_have_and_grow_to_as_many_elements_as_the_limit_and_no_more() -> None:
    told = Told({"flux": array_of(2), "wave": array_of(4)}, Selection(max_elements=4))

    told.event({"flux": [1, 2], "wave": [1, 2, 3, 4]})
    told.event({"flux": [3, 4, 5, 6], "wave": [5, 6, 7, 8]})
    told.event({"flux": [0] * 5, "wave": [0] * 5})
    told.event({"flux": [7, 8, 9, 10], "wave": [9, 10, 11, 12]})

    assert told.values() == {f"flux[{i}]": [i + n for n in ([1, 3, 7] if i < 2 else [3, 7])] for i in range(4)} | {
        f"wave[{i}]": [i + n for n in (1, 5, 9)] for i in range(4)
    }
    assert set(told.rows[2].gaps.values()) == {Loss.LONG_ARRAY}
    assert not told.stream.left_out


def test_one_number_in_lists_within_lists_is_found_up_to_eight_levels_deep() -> None:
    within = [7.5]
    for _ in range(7):
        within = [within]  # type: ignore[list-item]

    assert number(within) == 7.5
    assert number([within]) is Loss.ARRAY
    assert number(np.array(7.5)) == number(np.array([[7.5]])) == 7.5


def test_of_a_long_list_the_first_thousand_elements_show_whether_it_holds_numbers() -> None:
    assert length_of(["text"] * 999 + [1.5]) == 1000
    assert length_of(["text"] * 1000) is None
    assert length_of(["text"] * 1000 + [1.5]) is None
    assert length_of([1.5] + ["text"] * 1000) == 1001


@pytest.mark.parametrize(
    ("value", "promised", "length"),
    [
        ([1.5, 2.5], None, 2),
        ([1.5, 2.5], 5, 2),
        ([], 5, 5),
        (np.zeros(0), 2, 2),
        (None, 3, 3),
        (None, None, None),
        ([], None, None),
        (None, 1, None),
        ([1.5], 5, None),
        (1.5, 5, None),
        ("text", 5, None),
        (np.zeros((2, 2)), 5, None),
        (np.array(["a", "b"]), 5, None),
        (np.zeros(2, dtype=bool), None, 2),
        (np.zeros(2, dtype="M8[s]"), None, None),
    ],
)
def test_the_length_that_is_promised_counts_where_there_is_no_element(
    value: Any, promised: int | None, length: int | None
) -> None:
    assert length_of(value, promised) == length


@pytest.mark.parametrize("value", [np.zeros((2, 2)), [[1, 2], [3, 4]], ["a", "b"], np.array(["a", "b"])])
def test_tables_images_and_lists_of_text_are_left_out(value: Any) -> None:
    told = Told({"image": array_of(2, 2), "T": NUMBER})

    told.event({"image": value, "T": 1})

    assert told.stream.left_out == {"image": Loss.ARRAY}


def test_the_length_seen_counts_and_not_the_shape_promised() -> None:
    told = Told({"flux": array_of(2)})
    told.event({"flux": [1, 2, 3]})
    told.event({"flux": [4, 5]})
    told.event({"flux": np.array([6.0, 7.0, 8.0, 9.0])})
    told.event({"flux": None})

    assert told.values() == {"flux[0]": [1, 4, 6], "flux[1]": [2, 5, 7], "flux[2]": [3, 8], "flux[3]": [9]}
    assert told.gaps() == [{}, {"flux[2]": Loss.MISSING}, {}, dict.fromkeys(told.names, Loss.MISSING)]


@pytest.mark.parametrize("empty", [[], (), np.array([]), None])
def test_an_array_that_is_empty_at_first_gets_the_channels_that_its_shape_promises(empty: Any) -> None:
    told = Told({"flux": array_of(2), "T": NUMBER})

    told.event({"flux": empty, "T": 1})
    told.event({"flux": [3, 4], "T": 2})

    assert told.values() == {"T": [1, 2], "flux[0]": [3], "flux[1]": [4]}
    assert told.gaps()[0] == {"flux[0]": Loss.MISSING, "flux[1]": Loss.MISSING}


@pytest.mark.parametrize("empty", [[], np.array([])])
def test_an_array_that_is_empty_and_promises_no_length_is_left_out_and_the_others_are_not(empty: Any) -> None:
    told = Told({"flux": array_of(0), "T": NUMBER})

    told.event({"flux": empty, "T": 1})

    assert told.stream.left_out == {"flux": Loss.ARRAY}
    assert told.values() == {"T": [1]}


def test_a_gap_in_one_element_of_an_array_is_a_gap_of_that_channel() -> None:
    told = Told({"flux": array_of(2)})

    told.event({"flux": [1, 2]})
    told.event({"flux": [math.nan, 3]})

    assert told.values() == {"flux[0]": [1], "flux[1]": [2, 3]}
    assert told.gaps()[-1] == {"flux[0]": Loss.NOT_FINITE}


# ---- names and units -------------------------------------------------------------------------------------------------


def test_names_that_differ_only_in_case_are_told_apart() -> None:
    told = Told({"Flux": NUMBER, "flux": NUMBER, "FLUX": NUMBER})

    told.event({"Flux": 1, "flux": 2, "FLUX": 3})

    assert told.values() == {"Flux": [1], "flux (2)": [2], "FLUX (3)": [3]}


def test_a_channel_can_be_renamed_and_a_name_that_is_taken_is_counted_up() -> None:
    told = Told(
        {"a": NUMBER, "b": NUMBER, "c": NUMBER}, Selection(rename={"a": " pressure ", "b": "Pressure", "c": " "})
    )

    told.event({"a": 1, "b": 2, "c": 3})

    assert told.values() == {"pressure": [1], "Pressure (2)": [2], "channel": [3]}


def test_the_elements_of_a_renamed_array_carry_its_new_name() -> None:
    told = Told({"a": array_of(2)}, Selection(rename={"a": "flux"}))

    told.event({"a": [1, 2]})

    assert told.names == ["flux[0]", "flux[1]"]


def test_an_element_and_a_key_that_is_called_like_it_are_two_channels() -> None:
    told = Told({"a": array_of(2), "a[0]": NUMBER})

    told.event({"a": [1, 2], "a[0]": 3})

    assert told.values() == {"a[0]": [1], "a[1]": [2], "a[0] (2)": [3]}


@pytest.mark.parametrize("letter", ["x", "é", "温", "🌡"])
def test_a_long_name_is_cut_to_what_the_api_takes_in_characters_and_bytes_and_stays_unique(letter: str) -> None:
    long = letter * 300
    told = Told({long: NUMBER, long + "1": NUMBER, long + "2": array_of(11)})

    told.event({long: 1, long + "1": 2, long + "2": list(range(11))})

    assert len(set(told.names)) == 13
    assert all(len(name.encode()) <= 255 for name in told.names)
    assert told.names[0].endswith("…")
    assert told.names[1].endswith("… (2)")
    assert told.names[-1].endswith("…[10]")


def test_names_stay_unique_over_all_time_bases_of_an_event_stream() -> None:
    told = Told({"a": NUMBER, "A": NUMBER}, name="x_monitor")

    told.event({"a": 1, "A": 2}, timestamps={"a": told.now, "A": told.now - 1})

    assert told.values() == {"a": [1], "A (2)": [2]}


@pytest.mark.parametrize(("units", "unit"), [("K", "K"), (None, None), (5, None), ("", None), ("  ", None)])
def test_units_are_taken_where_they_are_text(units: Any, unit: str | None) -> None:
    told = Told({"T": NUMBER})
    descriptor = {"data_keys": {"T": NUMBER | {"units": units}}}
    told.stream.describe(description_of(descriptor, "primary"))

    told.event({"T": 1})

    assert [channel.unit for channel in told.layouts[0].channels] == [unit]


def test_a_descriptor_makes_a_layout_only_if_units_or_choices_change() -> None:
    def described(*choices: str, **members: Any) -> Description:
        keys = {"mode": TEXT_KEY | {"choices": list(choices)}, "T": NUMBER, "ready": BOOLEAN}
        return description_of({"data_keys": keys, **members}, "primary")

    told = Told({"mode": TEXT_KEY | {"choices": ["hold", "ramp"]}, "T": NUMBER, "ready": BOOLEAN})
    for description in (
        described("hold", "ramp"),
        described("hold", "ramp", hints={"dev": {"fields": ["T"]}}),
        described("idle", "hold", "ramp"),
        described("idle", "hold", "ramp", hints={"dev": {"fields": ["T"]}}),
    ):
        told.stream.describe(description)
        told.event({"mode": "ramp", "T": 1, "ready": True})

    assert told.values() == {"mode": [1.0, 1.0, 2.0, 2.0], "T": [1.0] * 4, "ready": [1.0] * 4}
    assert len(told.layouts) == 2


def test_units_longer_than_other_names_may_be_are_cut() -> None:
    told = Told({"T": NUMBER | {"units": "K" * 1000}})

    told.event({"T": 1})

    (channel,) = told.layouts[0].channels
    assert channel.unit is not None
    assert len(channel.unit.encode()) == 255


# ---- times -----------------------------------------------------------------------------------------------------------


def test_events_of_a_plan_have_one_time_for_all_channels() -> None:
    told = Told({"fast": NUMBER, "slow": NUMBER})

    told.event({"fast": 1, "slow": 2}, timestamps={"fast": told.now, "slow": told.now - 500}, time=told.now + 1)

    assert told.points() == {"fast": [(told.now + 1, 1)], "slow": [(told.now + 1, 2)]}


def test_a_monitors_points_have_the_readings_own_time() -> None:
    told = Told({"gauge": NUMBER}, name="gauge_monitor")

    told.event({"gauge": 1}, timestamps={"gauge": told.now - 2.5}, time=told.now)

    assert told.points() == {"gauge": [(told.now - 2.5, 1)]}


def test_a_pages_points_have_the_readings_own_times() -> None:
    told = Told({"a": NUMBER})

    told.page({"a": [1, 2, 3]}, timestamps={"a": [told.now - 3, told.now - 2, told.now - 1]}, time=[told.now] * 3)

    assert [time for time, _ in told.points()["a"]] == [told.now - 3, told.now - 2, told.now - 1]


@pytest.mark.parametrize(("apart_s", "collected"), [(0.0003, True), (0.001, False)])
def test_events_composed_one_right_after_the_other_have_their_readings_own_times(
    apart_s: float, collected: bool
) -> None:
    told = Told({"a": NUMBER})
    ages_s = [0.125, 0.0625, 0.03125]

    for n, age_s in enumerate(ages_s):
        told.event({"a": n}, time=told.now + n * apart_s, timestamps={"a": told.now - age_s})

    own = [told.now, told.now - ages_s[1], told.now - ages_s[2]]  # nothing shows yet that the first one was collected
    times = own if collected else [told.now + n * apart_s for n in range(3)]
    assert told.points()["a"] == list(zip(times, (0, 1, 2), strict=True))


def test_a_page_of_hundreds_of_rows_has_its_readings_own_times_and_flags() -> None:
    external = {"source": "file", "dtype": "number", "shape": [], "external": "FILESTORE:"}
    told = Told({"a": NUMBER, "frame": external}, name="fly")
    stamps = [told.now - 50 + n / 8 for n in range(300)]
    filled = [f"datum {n}" if n % 2 else False for n in range(300)]

    told.page(
        {"a": list(range(300)), "frame": list(range(300))},
        timestamps=dict.fromkeys(("a", "frame"), stamps),
        filled={"frame": filled},
    )

    assert told.points()["a"] == [(stamps[n], n) for n in range(300)]
    assert told.points()["frame"] == [(stamps[n], n) for n in range(1, 300, 2)]


def test_some_rows_of_a_page_of_hundreds_keep_their_stamps_and_flags() -> None:
    count, new = 300, [0, 257, 299]
    columns = {"a": list(range(count)), "b": tuple(range(count))}
    page = {"descriptor": "d", "uid": list(map(str, range(count))), "time": np.arange(count) / 8, "data": columns}
    page |= {
        "timestamps": {"a": [n / 4 for n in range(count)], "b": [0.0] * 2},
        "filled": {"a": True, "b": [1] * count},
    }
    page |= {"seq_num": list(range(count))}

    assert only_rows(page, new) == {
        "descriptor": "d",
        "uid": ["0", "257", "299"],
        "time": [n / 8 for n in new],
        "data": {"a": new, "b": new},
        "timestamps": {"a": [n / 4 for n in new]},
        "filled": {"a": True, "b": [1, 1, 1]},
    }


@pytest.mark.parametrize(("member", "what"), [("time", "the times"), ("data", "data key 'a'")])
@pytest.mark.parametrize("rows", [2, 4])
def test_some_rows_of_a_page_whose_columns_differ_in_length_are_refused(member: str, what: str, rows: int) -> None:
    page: dict[str, Any] = {"descriptor": "d", "uid": ["x", "y", "z"], "time": [0.5] * 3, "data": {"a": [1, 2, 3]}}
    page[member] = {"a": [1] * rows} if member == "data" else [0.5] * rows

    with pytest.raises(ChannelError, match=f"{what} has {rows} values in a page of 3 events; the page is left out"):
        only_rows(page, [0])


def test_columns_of_a_page_may_be_arrays() -> None:
    told = Told({"a": NUMBER, "wave": array_of(2), "b": NUMBER})
    stamps = told.now - np.array([2.0, 1.0])

    told.page(
        {"a": np.array([1.5, 2.5], dtype=np.float32), "wave": np.array([[1, 2], [3, 4]]), "b": [7, 8]},
        timestamps={"a": stamps, "wave": stamps, "b": list(stamps)},
    )

    assert told.values() == {"a": [1.5, 2.5], "wave[0]": [1, 3], "wave[1]": [2, 4], "b": [7, 8]}
    assert len(told.layouts) == 1


def test_keys_of_a_page_whose_times_differ_get_time_bases_of_their_own() -> None:
    told = Told({"a": NUMBER, "b": NUMBER, "c": NUMBER}, name="fly")
    early, late = [told.now - 3, told.now - 2], [told.now - 2.75, told.now - 1.75]

    told.page({"a": [1, 2], "b": [3, 4], "c": [5, 6]}, timestamps={"a": early, "b": late, "c": early})

    assert {layout.time_base: [c.name for c in layout.channels] for layout in told.layouts} == {
        "fly": ["a", "c"], "fly/b": ["b"],
    }  # fmt: skip
    assert told.points()["b"] == [(late[0], 3), (late[1], 4)]
    assert told.points()["c"] == [(late[0], 5), (early[1], 6)]  # whether they are a flyer's, the second row tells
    assert [row.number for row in told.rows] == [0, 1, 0]


def test_keys_that_cease_to_share_their_times_part_from_there_on_and_never_meet_again() -> None:
    told = Told({"a": NUMBER, "b": NUMBER}, name="x_monitor")
    together = {"a": told.now, "b": told.now}
    told.event({"a": 1, "b": 2}, timestamps=together)
    told.event({"a": 3, "b": 4}, timestamps={"a": told.now, "b": told.now - 1})
    told.event({"a": 5, "b": 6}, timestamps=together)

    assert [(layout.time_base, [c.name for c in layout.channels]) for layout in told.layouts] == [
        ("x_monitor", ["a", "b"]), ("x_monitor", ["a"]), ("x_monitor/b", ["b"]),
    ]  # fmt: skip
    assert told.values() == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert [row.number for row in told.rows] == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("offset", [-86401.0, 3601.0])
def test_a_time_stamp_that_no_clock_could_have_shown_gives_way_to_the_events_time_and_is_counted(offset: float) -> None:
    told = Told({"gauge": NUMBER}, name="gauge_monitor")

    told.event({"gauge": 1}, timestamps={"gauge": told.now + offset}, time=told.now - 1)

    assert told.points() == {"gauge": [(told.now - 1, 1)]}
    assert told.stream.replaced_times == 1


@pytest.mark.parametrize("stamp", [math.nan, math.inf, None, "noon", 631152000.0, 12.5])
def test_a_time_stamp_that_is_none_gives_way_to_the_events_time(stamp: Any) -> None:
    told = Told({"gauge": NUMBER}, name="gauge_monitor")

    told.event({"gauge": 1}, timestamps={"gauge": stamp}, time=told.now)
    told.event({"gauge": 2}, timestamps={}, time=told.now)

    assert told.points() == {"gauge": [(told.now, 1), (told.now, 2)]}
    assert told.stream.replaced_times == 2


def test_keys_of_a_monitor_that_come_in_turns_have_their_own_times() -> None:
    told = Told({"a": NUMBER, "b": NUMBER}, name="x_monitor")
    for n, key in enumerate(("c", "b", "b")):
        told.event({key: n}, time=told.now + n, timestamps={key: told.now + n - 0.5})

    assert told.points() == {
        "c": [(told.now - 0.5, 0)], "b": [(told.now + 0.5, 1), (told.now + 1.5, 2)],
    }  # fmt: skip
    assert told.stream.replaced_times == 0


@pytest.mark.parametrize("page", [False, True], ids=["events", "pages"])
@pytest.mark.parametrize("lacking", ["a", "b"])
def test_a_reading_without_a_stamp_of_its_own_leaves_the_others_at_theirs(lacking: str, page: bool) -> None:
    told = Told({"a": NUMBER, "b": NUMBER}, name="x_monitor")
    for n in range(3):
        stamps = {key: told.now + n - 0.5 for key in ("a", "b") if n != 1 or key != lacking}
        if page:
            columns = {key: [stamp] for key, stamp in stamps.items()}
            told.page({"a": [n], "b": [n]}, time=[told.now + n], timestamps=columns)
        else:
            told.event({"a": n, "b": n}, time=told.now + n, timestamps=stamps)

    stamped = [(told.now + n - 0.5, n) for n in range(3)]
    assert told.points() == {key: stamped for key in ("a", "b") if key != lacking} | {
        lacking: [stamped[0], (told.now + 1, 1), stamped[2]],
    }
    assert told.stream.replaced_times == 1


@pytest.mark.parametrize("page", [False, True], ids=["events", "pages"])
def test_a_key_that_does_not_come_has_no_reading_whose_time_is_replaced(page: bool) -> None:
    told = Told({"a": NUMBER, "b": NUMBER}, name="x_monitor")
    told.event({"a": 1, "b": 1})
    if page:
        told.page({"b": [2, 3]})
    else:
        told.event({"b": 2})
        told.event({"b": 3})

    assert told.values() == {"a": [1], "b": [1, 2, 3]}
    assert told.stream.replaced_times == 0


def test_a_part_of_an_event_has_no_replaced_times_of_other_keys() -> None:
    told = Told({"a": NUMBER, "b": NUMBER}, name="x_monitor")
    told.event({"a": 1, "b": 2}, timestamps={"b": told.now})
    told.part({"a": 3, "b": 4}, {"b"})

    assert told.values() == {"a": [1], "b": [2, 4]}
    assert told.stream.replaced_times == 2  # `a` at first, and then `b`, since a part has no stamps


def test_settings_can_ask_for_either_time() -> None:
    by_reading = Told({"a": NUMBER}, Selection(timestamps="reading"))
    by_reading.event({"a": 1}, timestamps={"a": by_reading.now - 7})
    by_event = Told({"a": NUMBER}, Selection(timestamps="event"), name="a_monitor")
    by_event.event({"a": 1}, timestamps={"a": by_event.now - 7})

    assert by_reading.points() == {"a": [(by_reading.now - 7, 1)]}
    assert by_event.points() == {"a": [(by_event.now, 1)]}


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf, 10**400, None])
def test_an_event_whose_own_time_is_none_is_refused_and_breaks_nothing(time: Any) -> None:
    told = Told({"a": NUMBER})
    told.event({"a": 1})

    with pytest.raises(ChannelError, match=r"event stream 'primary'.*time"):
        told.event({"a": 2}, time=time)
    with pytest.raises(ChannelError, match=r"event stream 'primary'.*time"):
        told.page({"a": [2, 3]}, time=[told.now, time], timestamps={})
    told.event({"a": 4})

    assert told.values() == {"a": [1, 4]}
    assert [row.number for row in told.rows] == [0, 1]


def test_it_is_told_when_a_chunk_becomes_full_of_whichever_time_base() -> None:
    told = Told({"a": NUMBER, "b": NUMBER})

    def is_full(rows: int) -> bool:
        told.page({"a": [1.0] * rows, "b": [2.0] * rows}, accept=False)
        return told.stream.note_written(4)

    # 1, 3, 4, 7, 8, 17, 18 and 20 rows
    assert [is_full(rows) for rows in (1, 2, 1, 3, 1, 9, 1, 2)] == [False, False, True, False, True, True, False, True]
    for rows in (21, 22, 23):  # of a alone
        told.part({"a": 1.0, "b": 2.0}, {"a"})
        assert told.stream.rows_by_time_base["primary"] == rows
    told.event({"a": 1.0, "b": 2.0}, accept=False)
    assert told.stream.note_written(4)
    told.event({"a": 1.0, "b": 2.0}, accept=False)
    assert not told.stream.note_written(4)


def test_a_part_of_an_event_has_rows_of_its_keys_alone_and_the_others_begin_with_their_layout() -> None:
    told = Told({"a": NUMBER, "b": NUMBER, "c": NUMBER})

    told.part({"a": 1, "b": 2, "c": 3}, {"b"})
    assert (told.values(), told.stream.rows_by_time_base) == ({"b": [2]}, {"primary": 0, "primary/b": 1})
    told.event({"a": 4, "b": 5, "c": 6})
    told.part({"a": 7, "b": 8, "c": 9}, {"a", "b"})

    assert told.values() == {"a": [4, 7], "b": [2, 5, 8], "c": [6]}
    assert told.stream.events == 2


# ---- documents that are not as they should be ------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["data", "time", "uid"])
def test_an_event_that_lacks_what_it_must_have_is_refused_by_name(member: str) -> None:
    told = Told({"a": NUMBER})
    doc = told.event({"a": 1})
    del doc[member]

    with pytest.raises(ChannelError, match=rf"event stream 'primary' has no '{member}'"):
        told.stream.lines_of_event(doc)


def test_a_page_whose_columns_differ_in_length_is_refused_as_a_whole() -> None:
    told = Told({"a": NUMBER, "b": NUMBER})

    with pytest.raises(ChannelError, match="'b'.*1 values in a page of 2 events"):
        told.page({"a": [1, 2], "b": [1]})


def test_a_page_without_data_keys_has_as_many_rows_as_events() -> None:
    told = Told({}, name="fly")

    told.page({}, seq_num=[1, 2, 3])

    assert [row.number for row in told.rows] == [0, 1, 2]


def test_an_empty_page_gives_nothing() -> None:
    told = Told({"a": NUMBER})

    told.page({"a": []})

    assert told.lines == []


def test_what_could_not_be_kept_leaves_no_hole() -> None:
    told = Told({"a": NUMBER, "state": TEXT_KEY})
    told.event({"a": 1, "state": "x"}, accept=False)
    told.event({"a": 2, "state": "x"})
    told.event({"a": 3, "state": 9}, accept=False)
    told.page({"a": [4, 5], "state": [9, 9]}, accept=False)
    told.event({"a": 6, "state": 8})

    assert [row.number for row in told.rows] == [0, 1]
    assert [layout.layout for layout in told.layouts] == [row.layout for row in told.rows]
    assert told.values() == {"a": [2, 6], "state": [8]}


def test_lines_are_json_whatever_the_names_hold() -> None:
    told = Told({'a "b"\n温': NUMBER})

    told.event({'a "b"\n温': math.nan}, uid='u"\\')

    (row,) = told.rows
    assert row.event_uid == 'u"\\'
    assert row.gaps == {'a "b"\n温': Loss.NOT_FINITE}
    assert orjson.loads(orjson.dumps(row.values)) == [None]
