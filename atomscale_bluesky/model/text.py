"""Makes text from outside safe for one line of a log, a terminal or a file. Pure."""

from __future__ import annotations

# What stands in a large number of ours, as in 1 250 points. Python does not count it as printable.
_BLANK = "\N{NO-BREAK SPACE}"


def safe(text: str, limit: int = 1000) -> str:
    """Return text that may come from outside as one line for a log. Unprintable characters are escaped as in Python."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() or c == _BLANK else repr(c)[1:-1] for c in text)


def encodable(text: str) -> str:
    """Return the text without lone surrogates, which a file cannot hold."""
    return text.encode(errors="replace").decode()


def cut_to_bytes(text: str, limit: int) -> str:
    """Return text cut to `limit` bytes, with an ellipsis if it was cut. Never cuts within a character."""
    if len(text.encode(errors="replace")) <= limit:
        return text
    return text.encode(errors="replace")[: limit - 3].decode(errors="ignore") + "…"
