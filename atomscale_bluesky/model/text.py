"""Text from outside, made safe for one line of a log or a terminal. Pure."""

from __future__ import annotations


def plain(text: str, limit: int = 1000) -> str:
    """Text with something from outside in it, for one line of a log: unprintable characters as Python writes them."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
