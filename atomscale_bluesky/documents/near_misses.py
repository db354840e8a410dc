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
    if the document has our key too, or if the setting `metadata_keys`, given as `keys`, names it for something.
    """
    nested = start.get(NAMESPACE)
    present_keys = _SAMPLE if start.keys() & _SAMPLE else frozenset[str]()
    present_keys = present_keys | start.keys() | (nested.keys() if isinstance(nested, Mapping) else set()) | keys.keys()
    for key in start:
        if not isinstance(key, str) or key in METADATA_KEYS or key in keys.values():
            continue
        meant = _OTHER_WORDS.get(key)
        if meant is None and key[:_BEGINNING].lower() in _BEGINNINGS:
            meant = nearest_key(key)
        if meant is not None and len(meant) > _SHORT and meant not in present_keys and _can_be(meant, start[key]):
            yield key, meant


def _can_be(name: str, value: object) -> bool:
    """Return True if a value could be that of one of our keys."""
    try:
        return not read_metadata({name: value}).others
    except MetadataError:
        return False
    except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked for its value
        return False
