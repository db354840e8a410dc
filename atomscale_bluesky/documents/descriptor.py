"""Reads descriptors, and what events say about their keys, as old and new versions of Bluesky's tools write them. Pure.

Every member but the descriptor's uid and its run's uid may be missing or of another kind. What cannot be read counts as
missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# The event stream of a descriptor without a name: event-model's schema allows that, and databroker reads it so.
UNNAMED = "primary"
_MAX_EVENT_STREAM_NAME = 500


def event_stream_of(descriptor: Mapping[str, Any]) -> str:
    """Return the name of the descriptor's event stream: up to 500 characters, without lone surrogates."""
    name = descriptor.get("name")
    try:
        text = "" if name is None else str(name)
    except Exception:  # noqa: BLE001 - a foreign object's text may do anything
        text = type(name).__name__
    return text[:_MAX_EVENT_STREAM_NAME].encode(errors="replace").decode() or UNNAMED


def mapping_of(value: Any) -> Mapping[Any, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if type(value) is dict or isinstance(value, Mapping) else {}  # a dict mostly, and `is` is quick


def list_of(value: Any) -> list[Any]:
    """Return the elements of a list, tuple or one-dimensional array; none for anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    return list(value) if isinstance(value, list | tuple) else []


def choices_of(described: Mapping[str, Any]) -> list[str]:
    """Return the texts among which an enum's value is one, in the order of their indices; none if it is no enum."""
    choices = list_of(described.get("choices"))  # ophyd-async's word
    choices = choices or list_of(described.get("enum_strs"))  # ophyd's
    return [one for one in choices if isinstance(one, str)]


def hinted(descriptor: Mapping[str, Any]) -> set[str]:
    """Return the data keys that the descriptor's hints name."""
    fields: list[Any] = []
    for hint in mapping_of(descriptor.get("hints")).values():
        fields += list_of(mapping_of(hint).get("fields"))
    return {field for field in fields if isinstance(field, str)}


def is_filled(flag: Any) -> bool:
    """Return True if a value of external data is the value itself, and not the id of a datum in a file.

    Args:
        flag: What `filled` has for the data key. Event-model's Filler writes the datum's id there once it has put the
            value in, other tools write True.
    """
    return bool(flag) if isinstance(flag, bool | np.bool_ | int | str) else False


def is_flag(filled: Any) -> bool:
    """Return True if `filled` of a page has one flag for all rows, and not a column of flags."""
    return filled is None or isinstance(filled, bool | np.bool_ | int | str)


def reading_of(value: Any, flag: Any) -> Any:
    """Return a value of external data, or an empty text for a number that is not filled in.

    Such a number stands for a file, as the id of a datum does. Text never becomes a number.

    Args:
        value: The value.
        flag: As `is_filled` has it.
    """
    return value if value is None or issubclass(type(value), str) or is_filled(flag) else ""
