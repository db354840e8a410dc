"""The keys of a start document that are read, and where they may be. Pure."""

from __future__ import annotations

from collections.abc import Mapping

# The dict in a start document in which every key is ours.
NAMESPACE = "atomscale"
METADATA_KEYS = (
    "synth_source_id",
    "physical_sample",
    "physical_sample_id",
    "project_id",
    "tags",
    "track_sample",
    "stream_name",
    "points_per_chunk",
)
# In the setting `metadata_keys`: all keys that it does not name.
ALL_OTHERS = "*"
# How alike two keys have to be, from 0 to 1. `synth_source` and `synth_source_id` are at 0.9.
_ALIKE = 0.85
_MAX_COMPARED = max(map(len, METADATA_KEYS)) + 5


def _bare(key: str) -> str:
    return "".join(filter(str.isalnum, key.lower()))


_BARE = {_bare(name): name for name in METADATA_KEYS}


def nearest_key(key: str) -> str | None:
    """Return the one of our keys that another one is nearly, such as `synthSourceId`; None if it is not like any."""
    if len(key) > _MAX_COMPARED:
        return None
    import difflib  # takes a while, and is needed for unusual keys only

    alike = difflib.get_close_matches(_bare(key), _BARE, n=1, cutoff=_ALIKE)
    return _BARE[alike[0]] if alike else None


def checked_keys(keys: Mapping[str, str]) -> dict[str, str]:
    """Return the setting `metadata_keys`, which names the key of the start document to read for each of ours.

    Raises:
        ValueError: It names a key that is not read, or no key to read. Says what was expected.
    """
    for ours, theirs in keys.items():
        if ours not in METADATA_KEYS and ours != ALL_OTHERS:
            raise ValueError(f"there is no {ours!r}; expected {', '.join(METADATA_KEYS)} or {ALL_OTHERS!r}")
        if not theirs.strip():
            raise ValueError(
                f"expected the name of a key for {ours!r}, or {NAMESPACE!r} for the dict of that name alone"
            )
        if ours == ALL_OTHERS and theirs != NAMESPACE:
            raise ValueError(f"expected {NAMESPACE!r} for {ours!r}; another key can be named for one of ours only")
    return dict(keys)
