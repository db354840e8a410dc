"""Finds metadata keys that are nearly one of ours, such as `synth_source`, or another word for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import MetadataError
from ..model.metadata_keys import METADATA_KEYS, NAMESPACE, nearest_key
from .metadata import read_metadata

# Only keys that begin like one of ours are compared further, because the plan waits meanwhile.
_BEGINNING = 3
# `tags` is too short: every other word with four letters would be nearly it.
_SHORT = 6
_SAMPLE = frozenset({"physical_sample", "physical_sample_id"})
# Words that people use for one of ours.
_OTHER_WORDS = {"sample": "physical_sample"}
_BEGINNINGS = frozenset(name[:_BEGINNING] for name in METADATA_KEYS if len(name) > _SHORT)


def near_misses(start: Mapping[str, Any], keys: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each key of a start document that is nearly one of ours, or another word for it, and ours.

    A key counts only if its value could be meant: `synth_source` with a number, but not with text. It does not count
    if the setting `metadata_keys`, given as `keys`, names it for something. If the document has our key too, another
    word for it does not count, and a key that is nearly it only with another value: in `RE(plan, synth_source=7)` the
    instrument of `RE.md` is not the one that was meant.
    """
    nested = start.get(NAMESPACE)
    present = {**start, **nested} if isinstance(nested, Mapping) else start
    for key in start:
        if not isinstance(key, str) or key in METADATA_KEYS or key in keys.values():
            continue
        meant = _OTHER_WORDS.get(key)
        if meant is None and key[:_BEGINNING].lower() in _BEGINNINGS:
            meant = nearest_key(key)
        if meant is None or len(meant) <= _SHORT or meant in keys or not _can_be(meant, start[key]):
            continue
        same = _SAMPLE if meant in _SAMPLE else {meant}
        if key in _OTHER_WORDS:
            missed = same.isdisjoint(present)
        else:
            missed = all(not _has_value(present.get(name), start[key]) for name in same)
        if missed:
            yield key, meant


def _has_value(ours: object, other: object) -> bool:
    """Return True if the value of our key is that of another key, such as 42 and `"42"`."""
    try:
        return ours == other or str(ours) == str(other)
    except Exception:  # noqa: BLE001 - a foreign object may do anything when it is compared
        return False


def _can_be(name: str, value: object) -> bool:
    """Return True if a value could be that of one of our keys."""
    try:
        return not read_metadata({name: value}).not_ours
    except MetadataError:
        return False
    except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked for its value
        return False
