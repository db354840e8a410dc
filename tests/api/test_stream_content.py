"""A stream's answer, a piece at a time: what is due is read exactly, what was added is named, nothing else is kept."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from atomscale_bluesky.api.answers import AnswerError
from atomscale_bluesky.api.json_parts import STEP_BYTES, TooMuchError
from atomscale_bluesky.api.stream_content import (
    MAX_ADDED,
    StreamContent,
    max_bytes,
    read_points,
)


def read(body: object, due: Mapping[str, int]) -> StreamContent:
    return read_points([body if isinstance(body, bytes) else json.dumps(body).encode()], due)


def listed(found: StreamContent) -> dict[str, tuple[str | None, list[float | None], list[float | None]]]:
    return {name: (unit, list(times), list(values)) for name, (unit, times, values) in found.points.items()}


def series(times: list[Any], values: list[Any], units: str | None = None, **more: Any) -> dict[str, Any]:
    return {"unix_timestamp_ms": times, "values": values, "units": units} | more


# ---- what is due -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {},
        {"values": [1]},
        {"unix_timestamp_ms": [1000]},
        {"unix_timestamp_ms": 5, "values": [1]},
        {"unix_timestamp_ms": ["noon"], "values": [1]},
        {"unix_timestamp_ms": [1000], "values": ["high"]},
        {"unix_timestamp_ms": [1000], "values": [1, 2]},
    ],
)
def test_points_that_are_not_of_the_apis_shape_are_refused(told: Any) -> None:
    with pytest.raises(AnswerError):
        read({"properties": {"T": told}}, {"T": 2})


def test_points_that_the_server_holds_as_missing_read_back_as_none() -> None:
    body = {"properties": {"T": {"unix_timestamp_ms": [1000, None], "values": [None, 2]}}}

    assert listed(read(body, {"T": 2})) == {"T": (None, [1.0, None], [None, 2])}


def test_values_fewer_than_their_times_read_back_as_missing_at_the_end() -> None:
    body = {"properties": {"T": {"unix_timestamp_ms": [1000, 2000, 3000], "values": [1]}}}

    unit, times, values = read(body, {"T": 3}).points["T"]

    assert (unit, list(times), list(values)) == (None, [1.0, 2.0, 3.0], [1, None, None])


def test_the_older_shape_of_rows_reads_back_by_channel() -> None:
    rows = [
        {"unix_timestamp_ms": 1000, "relative_time_seconds": 0.0, "T": 1.5, "p": 7},
        {"unix_timestamp_ms": 2000, "relative_time_seconds": 1.0, "T": None},
    ]

    assert listed(read({"series": rows}, {"T": 2, "p": 2})) == {
        "T": (None, [1.0, 2.0], [1.5, None]),
        "p": (None, [1.0], [7.0]),
    }


@pytest.mark.parametrize("rows", [[5], [{"T": 1.0}], [{"unix_timestamp_ms": "noon", "T": 1}], [[]]])
def test_rows_that_are_not_of_the_apis_shape_are_refused(rows: Any) -> None:
    with pytest.raises(AnswerError):
        read({"series": rows}, {"T": 1})


NUMBERS = st.lists(
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53), max_size=6
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=5,
)
SERIES = st.tuples(NUMBERS, st.none() | NAMES, st.dictionaries(NAMES.map("_".__add__), ANYTHING, max_size=2)).map(
    lambda one: series([1000 * n for n in range(len(one[0]))], one[0], one[1], **one[2])
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    due=st.dictionaries(NAMES.map("due ".__add__), SERIES, max_size=3),
    added=st.dictionaries(NAMES.map("added ".__add__), ANYTHING | SERIES, max_size=3),
    around=st.dictionaries(NAMES.map("other ".__add__), ANYTHING, max_size=2),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
)
def test_any_answer_in_any_parts_reads_as_json_does(
    due: dict[str, Any],
    added: dict[str, Any],
    around: dict[str, Any],
    cuts: list[int],
    indent: int | None,
    ascii_only: bool,
) -> None:
    members = list((around | {"properties": dict(sorted((due | added).items(), key=lambda one: hash(one[0])))}).items())
    body = json.dumps(dict(members[::-1]), indent=indent, ensure_ascii=ascii_only).encode()

    found = read_points(in_parts(body, cuts), dict.fromkeys(due, 6))

    assert listed(found) == {
        name: (one["units"], [ms / 1000 for ms in one["unix_timestamp_ms"]], one["values"]) for name, one in due.items()
    }
    assert found.added == {name: number_of_values(one) for name, one in added.items()}


def in_parts(body: bytes, cuts: list[int]) -> Iterator[bytes]:
    at, n = 0, 0
    while at < len(body):
        yield body[at : at + cuts[n % len(cuts)]]
        at += cuts[n % len(cuts)]
        n += 1


def number_of_values(told: Any) -> int:
    values = told.get("values") if isinstance(told, dict) else None
    return len(values) if isinstance(values, list) else 0


@given(st.binary(max_size=200), st.integers(0, 200))
@example(b"", 7)
@example(b"\v", 13)
def test_a_damaged_answer_is_either_read_or_refused(noise: bytes, at: int) -> None:
    body = json.dumps({"properties": {"T": series([1000, 2000], [1, 2], "K"), "S": series([1], ["a,]"])}}).encode()

    for spoilt in (body[:at] + noise, body[:at] + noise + body[at:]):
        try:
            found = read(spoilt, {"T": 2})
        except AnswerError:
            continue
        assert set(found.points) <= {"T"}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b"null", b"[]", b"7", b'"properties"', b"{}", b'{"properties": {}', b'{"properties": {}}}'),
        *(b'{"properties": {},}', b'{"properties": {} "x": 1}', b'{"properties" {}}', b"{properties: {}}", b"\xff"),
        *(
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"properties": {"T": ' + b"[" * 100_000,
            b'{"properties": {"',
            b"<html>",
        ),
        b'{"properties": {"T": {"unix_timestamp_ms": [1,], "values": [1]}}}',
        b'{"properties": {"T": {"unix_timestamp_ms": [1 2], "values": [1]}}}',
        b'{"properties": {"T": {"unix_timestamp_ms": [1], "values": [NaN]}}}',
        b'{"properties": {"T": {"unix_timestamp_ms": [1], "values": [' + b"9" * 20_000 + b"]}}}",
        b'{"properties": {"' + b"n" * 10_000 + b'": 1}}',
        b'{"series": [{"a": "' + b"n" * 2**21 + b'"}]}',
        b'{"series": [{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_an_answer_without_points_is_refused(body: bytes) -> None:
    with pytest.raises(AnswerError):
        read(body, {"T": 2})


def test_the_last_of_two_series_of_a_channel_counts_and_an_empty_one_is_empty() -> None:
    first, second = (json.dumps(series(times, times)).encode() for times in ([7], []))
    body = b'{"properties": {"T": %b, "T": %b}}' % (first, second)

    assert listed(read(body, {"T": 1})) == {"T": (None, [], [])}


# ---- what the service added ------------------------------------------------------------------------------------------


def test_added_series_are_named_and_counted_whatever_they_hold() -> None:
    added = {
        "T_anomaly_score": series([1, 2, 3], [0.5, None, 0.1]),
        "T_anomaly_class": series([1, 2], ["a, b", 'say "]", \\']),
        "odd": [1, 2, 3],
        "nested": {"values": [[1, 2], {"a": [3, 4]}, "x,y"], "z": None},
        "none": None,
        "quality": {"values": 0.7},
    }

    found = read({"properties": {"T": series([1000], [5.0], "K")} | added}, {"T": 1})

    assert listed(found) == {"T": ("K", [1.0], [5.0])}
    assert found.added == {
        "T_anomaly_score": 3,
        "T_anomaly_class": 2,
        "odd": 0,
        "nested": 3,
        "none": 0,
        "quality": 0,
    }


def test_in_the_older_shape_added_members_of_a_row_are_counted_too() -> None:
    rows = [{"unix_timestamp_ms": 1000 * n, "T": n, "T_anomaly_class": "normal", "more": [n]} for n in range(3)]

    found = read({"series": rows}, {"T": 3})

    assert listed(found) == {"T": (None, [0.0, 1.0, 2.0], [0.0, 1.0, 2.0])}
    assert found.added == {"T_anomaly_class": 3, "more": 3}


def test_of_very_many_added_series_the_first_are_named() -> None:
    found = read({"properties": {f"a{n}": series([], []) for n in range(MAX_ADDED + 500)}}, {"T": 1})

    assert len(found.added) == MAX_ADDED


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bomb",
    [
        b'{"properties": {"T": {"unix_timestamp_ms": [' + b"0," * 3_000_000 + b'0], "values": []}}}',
        b'{"properties": {"T": {"unix_timestamp_ms": [], "values": [' + b"null," * 3_000_000 + b"0]}}}",
        b'{"series": [' + b'{"unix_timestamp_ms":1,"T":1},' * 50_000 + b"{}]}",
        b'{"series": [' + b'{"unix_timestamp_ms":1},' * 50_000 + b"{}]}",
        b'{"series": ['
        + b"".join(b'{"unix_timestamp_ms":1,"%05d%b":1},' % (n, b"x" * 5000) for n in range(1100))
        + b"{}]}",
        b'{"properties": {' + b'"a":1,' * 200_000 + b'"b":1}}',
    ],
    ids=["times", "values", "rows", "rows of nothing", "rows of long names", "series"],
)
def test_an_answer_with_far_too_much_is_not_read_to_its_end(bomb: bytes) -> None:
    peak, error = traced(bomb, {"T": 20})

    assert isinstance(error, TooMuchError)
    assert peak < 2**20


@pytest.mark.parametrize(
    "body",
    [
        b'{"properties": {"x": {"unix_timestamp_ms": ['
        + b"0," * 2_000_000
        + b'0], "values": ['
        + b"0," * 2_000_000
        + b"0]}}}",
        b'{"properties": {"x": {"values": [' + b'"normal",' * 400_000 + b'"normal"]}}}',
        b'{"properties": {"x": {"values": ["' + b"n" * 4_000_000 + b'"]}}}',
        b'{"other": ' + b"[" * 2_000_000 + b"]" * 2_000_000 + b', "properties": {}}',
        b'{"properties": {}, "other": {' + b'"a": {"b": [1, 2]},' * 200_000 + b'"c": 1}}' + b" " * 2_000_000,
    ],
    ids=["numbers", "texts", "a text", "nested", "members and blanks"],
)
def test_series_that_are_not_due_take_no_memory(body: bytes) -> None:
    peak, error = traced(body, {"T": 20})

    assert error is None
    assert peak < 2**20


def test_points_that_are_due_take_sixteen_bytes_each() -> None:
    channel = series([1_760_000_000_000 + n for n in range(20_000)], [n / 7 for n in range(20_000)])
    body = json.dumps({"properties": {f"k{n}": channel for n in range(5)}}).encode()
    read_points(pieces(body), {})  # what is imported and compiled once does not count
    tracemalloc.start()
    try:
        found = read_points(pieces(body), {f"k{n}": 20_000 for n in range(5)})
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(found.points["k4"][1]) == 20_000
    assert held < 100_000 * 20
    assert peak < held + 2**20


def test_a_pause_is_made_after_every_step_whatever_is_read() -> None:
    text = json.dumps(
        {"properties": {"T": series(list(range(50_000)), list(range(50_000))), "x": {"values": ["a"] * 50_000}}}
    )
    pauses: list[int] = []

    read_points(pieces(text.encode()), {"T": 50_000}, pause=lambda: pauses.append(1))

    assert len(pauses) > 0.7 * len(text) / STEP_BYTES


def test_an_answers_bound_grows_with_its_points_between_a_floor_and_a_ceiling() -> None:
    assert max_bytes({}) == 4 * 2**20
    assert max_bytes({"T": 40}) == 4 * 2**20 + 40 * (1024 + 16)
    assert max_bytes({"Tür": 40, "b": 7}) == 4 * 2**20 + 40 * (1024 + 16 * 4) + 7 * (1024 + 16)
    assert max_bytes(dict.fromkeys("abc", 10**9)) == 2**30


def traced(body: bytes, due: Mapping[str, int]) -> tuple[int, Exception | None]:
    """The memory that reading an answer takes beside the answer itself, and how it ends."""
    error = None
    tracemalloc.start()
    try:
        read_points(pieces(body), due)
    except AnswerError as raised:
        error = raised
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak, error


def pieces(body: bytes) -> Iterator[bytes]:
    """A body in parts as a socket gives them."""
    return (body[at : at + 2**16] for at in range(0, len(body), 2**16))
