"""Reads the API's lists while the answer comes in: catalogue entries, samples, projects, tags, instruments. Pure.

Paging is not documented, so a list may be long. It is decoded some kilobytes at a time, and only what a delivery uses
is kept of each element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from .answers import DATA_ID, AnswerError, Entry, Item
from .json_parts import JsonParts, TooMuchError

# How many elements a list may have, and how large one may be: the largest takes some 10 ms, in which no other thread
# runs.
MAX_ELEMENTS, MAX_ELEMENT_BYTES = 100_000, 2**18

Pause = Callable[[], object]


def read_entries(parts: Iterable[bytes], *, pause: Pause = lambda: None) -> Iterator[Entry]:
    """Read the entries of a catalogue answer, without those that have no id.

    Args:
        parts: The answer, in parts of any size.
        pause: Called after every few kilobytes.

    Raises:
        AnswerError: The answer is no list.
        TooMuchError: It has more than `MAX_ELEMENTS`, or, at its end, an element had more than `MAX_ELEMENT_BYTES`.
    """
    for one in _elements(parts, pause):
        if isinstance(one, dict) and isinstance(one.get("data_id"), str) and DATA_ID.fullmatch(one["data_id"]):
            yield Entry(
                one["data_id"],
                _text(one.get("raw_name")),
                _text(one.get("pipeline_status")),
                source if isinstance(source := one.get("synth_source_id"), int) else None,
                sample if isinstance(sample := one.get("physical_sample_id"), str) else None,
                tuple(item.id for item in map(_item, _list(one.get("projects"))) if item is not None),
                _tags(one.get("tags")),
            )


def read_items(parts: Iterable[bytes], *, pause: Pause = lambda: None) -> list[Item]:
    """Return the physical samples, projects or tags of an answer, without those that have no valid id.

    Arguments and errors are those of `read_entries`.
    """
    return [item for one in _elements(parts, pause) if (item := _item(one)) is not None]


def read_instruments(parts: Iterable[bytes], *, pause: Pause = lambda: None) -> dict[int, str]:
    """Return the growth instruments of an answer: id → name.

    Arguments and errors are those of `read_entries`.
    """
    return {
        one["synth_source_id"]: _text(one.get("source_name"))
        for one in _elements(parts, pause)
        if isinstance(one, dict) and isinstance(one.get("synth_source_id"), int)
    }


def _elements(parts: Iterable[bytes], pause: Pause) -> Iterator[Any]:
    """Read a list: yields its elements, decoded."""
    text = JsonParts(parts, pause, max_members=0)
    if (first := text.peek()) != b"[":
        raise AnswerError(f"the answer is not a list: it begins with {first!r}")
    count = 0
    for block in text.blocks(MAX_ELEMENT_BYTES):
        try:
            elements = orjson.loads(b"[%b]" % block)
        except orjson.JSONDecodeError as error:
            raise AnswerError(f"the answer is no JSON: {block[:60]!r}") from error
        count += len(elements)
        if count > MAX_ELEMENTS:
            raise TooMuchError(f"the answer is a list of more than {MAX_ELEMENTS} elements")
        yield from elements
    text.check_end()
    if text.left_out:
        raise TooMuchError(f"the answer has elements of more than {MAX_ELEMENT_BYTES} bytes, which were not read")


def _text(value: Any) -> str:
    """Return a member that should be text, or an empty text if it is neither text nor a number."""
    return str(value) if isinstance(value, str | int | float) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _item(one: Any) -> Item | None:
    """Return an element as a record, or None if it has no valid id."""
    if isinstance(one, dict) and isinstance(one.get("id"), str) and DATA_ID.fullmatch(one["id"]):
        return Item(one["id"], _text(one.get("name")))
    return None


def _tags(value: Any) -> tuple[str, ...]:
    """Return the tags of a catalogue entry. It is not documented whether each is text or an object."""
    tags = (tag.get("name") or tag.get("id") if isinstance(tag, dict) else tag for tag in _list(value))
    return tuple(tag for tag in tags if isinstance(tag, str))
