"""Makes text from outside safe for one line of a log or a terminal. Pure."""

from __future__ import annotations


def plain(text: str, limit: int = 1000) -> str:
    """Return text that may come from outside as one line for a log. Unprintable characters are escaped as in Python."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
