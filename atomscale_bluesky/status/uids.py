"""Which runs are meant by the beginning of a uid. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def uids_meant(uids: Iterable[str], text: str) -> set[str]:
    """Return the uids that begin with `text`. A whole uid means this run only, even if others begin with it."""
    found = {uid for uid in uids if text and uid.startswith(text)}
    return {text} if text in found else found
