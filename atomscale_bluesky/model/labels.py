"""The names that runs and metrology streams have in Atomscale. Pure."""

from __future__ import annotations

# No limit is documented for a stream's name; other names end at 255, so this one is kept below that too.
MAX_LABEL = 240
# A text of megabytes is not looked at whole to make a name of it: the plan waits meanwhile.
MAX_LOOKED_AT = 4000


def stream_label(label: str, *, event_stream: str | None, number: int, run_uid: str, token: str) -> str:
    """The name of one metrology stream, unlike any other's: it ends in the run's uid and a token of its own.

    Args:
        label: The run's.
        event_stream: What to add for an event stream that is not the primary one.
        number: 1 for the first of its time base; continuations count up.
        run_uid: Its first eight characters are shown.
        token: Makes the name unique, so that a stream whose creation was never answered can be found again.
    """
    tail = f" · {shortened(one_line(event_stream), 100)}" if event_stream else ""
    tail += f" ({number})" if number > 1 else ""
    tail += f" [{one_line(run_uid[:8])}-{token}]"
    return shortened(label, MAX_LABEL - len(tail)) + tail


def label_with_reason(label: str, reason: str) -> str:
    """A stream's label with the reason why its run ended before what makes the label unique, which stays whole."""
    name, bracket, tail = label.rpartition(" [")
    shown = shortened(one_line(reason), 100)
    room = MAX_LABEL - len(shown) - len(tail) - 5
    return f"{shortened(name, room)} · {shown}{bracket}{tail}"


def one_line(text: str) -> str:
    """Text without control characters, and with single blanks; of a very long one the beginning."""
    return " ".join("".join(char if char.isprintable() else " " for char in text[:MAX_LOOKED_AT]).split())


def shortened(text: str, limit: int) -> str:
    """Text of at most `limit` characters; of a longer one the beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
