"""Makes text from outside safe for one line of a log, a terminal or a file. Pure."""

from __future__ import annotations

import re

# What stands in a large number of ours, as in 1 250 points. Python does not count it as printable.
_BLANK = "\N{NO-BREAK SPACE}"

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def safe(text: str, limit: int = 1000) -> str:
    """Return text that may come from outside as one line for a log. Unprintable characters are escaped as in Python."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() or c == _BLANK else repr(c)[1:-1] for c in text)


def without_user(address: str) -> str:
    """Return an address without its user and password, even if these have characters that stand for something else."""
    scheme = _SCHEME.match(address)
    return (scheme[0] if scheme else "") + address.rpartition("@")[2] if "@" in address else address


def encodable(text: str) -> str:
    """Return the text as plain `str`, without lone surrogates, which a file cannot hold."""
    return text.encode(errors="replace").decode()


def cut_to_bytes(text: str, limit: int) -> str:
    """Return text cut to `limit` bytes, with an ellipsis if it was cut. Never cuts within a character."""
    if len(text.encode(errors="replace")) <= limit:
        return text
    return text.encode(errors="replace")[: limit - 3].decode(errors="ignore") + "…"
