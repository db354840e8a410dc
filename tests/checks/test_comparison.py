"""Which chunks a stream holds, told by the places of its points and not by the points alone."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomscale_bluesky.checks.comparison import Part, Series, arrangement

T0 = 1_760_000_000.0
THERE = ["must", "is", "is not"]


def part(values: str, required: bool = False, *, known: bool = True, **more: object) -> Part:
    """A chunk of points that all have one time; each character is a value."""
    return Part(len(values), required, [T0] * len(values) if known else None, [float(ord(v)) for v in values], **more)


def theirs(values: str) -> Series:
    return Series.of(None, [T0] * len(values), [float(ord(value)) for value in values])


@pytest.mark.parametrize(
    ("parts", "held", "expected"),
    [
        pytest.param([part("aa"), part("aa", True)], "aa", [0, 2], id="hidden by the chunk behind it"),
        pytest.param([part("aa", True), part("aa")], "aa", [2, 0], id="hidden by the chunk before it"),
        pytest.param([part("aa"), part("aa")], "aa", [2, 0], id="one of two alike: the earlier"),
        pytest.param([part("aa"), part("aa", True), part("bb")], "aabb", [0, 2, 2], id="told by a later one"),
        pytest.param([part("aa"), part("bb", True), part("aa")], "bbaa", [0, 2, 2], id="the later of two alike"),
        pytest.param([part("aa"), part("bb", True), part("aa")], "aabb", [2, 2, 0], id="the earlier of two alike"),
        pytest.param([part("aa", known=False), part("bb")], "bb", [0, 2], id="known rather than unknown"),
        pytest.param([part("aa", known=False), part("bb")], "cc", [2, 0], id="unknown where nothing else fits"),
        pytest.param([part("aa"), part("bb", True)], "b", None, id="fewer than must be there"),
        pytest.param([part("aa"), part("bb", True)], "ccbb", None, id="points of nobody"),
        pytest.param([part("abcd", shown=(2,), at_least=2)], "ab", [2], id="what a preview showed"),
        pytest.param([part("abcd", shown=(2,), at_least=2)], "abcd", [4], id="more than a preview showed"),
        pytest.param([part("abcd", shown=(2,))], "", [0], id="a preview that was not taken"),
    ],
)
def test_a_part_is_there_if_it_is_in_its_place(parts: list[Part], held: str, expected: list[int] | None) -> None:
    assert arrangement(parts, theirs(held)) == expected
    if expected is not None:
        assert arrangement(parts, theirs("zz" + held), at=2) == expected


@settings(max_examples=300)
@given(
    chunks=st.lists(
        st.tuples(st.text("ab", min_size=1, max_size=3), st.sampled_from(["must", "is", "is not"])), max_size=7
    )
)
def test_what_counts_as_held_is_what_is_held_value_by_value(chunks: list[tuple[str, str]]) -> None:
    held = "".join(values for values, there in chunks if there != "is not")
    parts = [part(values, there == "must") for values, there in chunks]

    found = arrangement(parts, theirs(held))

    assert found is not None
    assert "".join(values for (values, _), count in zip(chunks, found, strict=True) if count) == held
    earlier = next(  # of all choices that explain it, the first in which as much as possible is early
        choice
        for choice in product(*[([len(values)] if there == "must" else [len(values), 0]) for values, there in chunks])
        if "".join(values for (values, _), count in zip(chunks, choice, strict=True) if count) == held
    )
    assert found == list(earlier)
