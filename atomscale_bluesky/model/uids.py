"""Which runs are meant by the beginning of a uid, and how much of a uid is shown. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .text import safe

# How much of a UUID is shown. A shorter number that is a run's scan id means that run.
UID_SHOWN = 8

_UUID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}")


def shown_uid(uid: str) -> str:
    """Return a uid as it is shown and as commands name it, without control characters.

    This is the beginning of a UUID. Any other uid is whole, because such uids, as from a bus or a file, often begin
    alike.
    """
    return uid[:UID_SHOWN] if _UUID.fullmatch(uid) else safe(uid)


def uids_meant(uids: Iterable[str], text: str) -> set[str]:
    """Return the uids that begin with `text`. A whole uid means this run only, even if others begin with it."""
    found = {uid for uid in uids if text and uid.startswith(text)}
    return {text} if text in found else found
