"""Finds metadata keys that are nearly one of ours, such as `synth_source`. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import MetadataError
from ..model.metadata_keys import METADATA_KEYS, NAMESPACE
from .metadata import read_metadata

# How alike two keys have to be, from 0 to 1. `synth_source` and `synth_source_id` are at 0.9.
ALIKE = 0.85
# Only keys that begin like one of ours are compared further, because the plan waits meanwhile.
_BEGINNING = 3


def _bare(key: str) -> str:
    return "".join(filter(str.isalnum, key.lower()))


# `tags` is too short: every other word with four letters would be nearly it.
_OURS = {_bare(name): name for name in METADATA_KEYS if len(name) > 6}
_LONGEST = max(map(len, METADATA_KEYS)) + 5
_BEGINNINGS = frozenset(bare[:_BEGINNING] for bare in _OURS)


def near_misses(start: Mapping[str, Any], keys: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each key of a start document that is nearly one of ours, and ours.

    A key counts only if its value could be meant: `synth_source` with a number, but not with text. It does not count
    if the document has our key too, or if the setting `metadata_keys`, given as `keys`, names it for something.
    """
    nested = start.get(NAMESPACE)
    given = start.keys() | (nested.keys() if isinstance(nested, Mapping) else set()) | keys.keys()
    for key in start:
        if not isinstance(key, str) or len(key) > _LONGEST or key in METADATA_KEYS or key in keys.values():
            continue
        bare = _bare(key)
        if bare[:_BEGINNING] not in _BEGINNINGS:
            continue
        alike = difflib.get_close_matches(bare, _OURS, n=1, cutoff=ALIKE)
        if alike and _OURS[alike[0]] not in given and _can_be(_OURS[alike[0]], start[key]):
            yield key, _OURS[alike[0]]


def _can_be(name: str, value: object) -> bool:
    """Return True if a value could be that of one of our keys."""
    try:
        return not read_metadata({name: value}).others
    except MetadataError:
        return False
    except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked for its value
        return False
