"""The names that runs and metrology streams have in Atomscale. Pure."""

from __future__ import annotations

from collections.abc import Sequence

# No limit is documented for a stream's name. Other names end at 255, and this one is kept below that.
MAX_LABEL = 240
# How much of that the channels' names take at most.
MAX_CHANNELS = 80
# Only the start of a text of megabytes is used to make a name, because the plan waits meanwhile.
MAX_CHARACTERS_USED = 4000


def stream_label(
    label: str, *, event_stream: str | None, number: int, run_uid: str, token: str, channels: Sequence[str] = ()
) -> str:
    """Return the unique name of one metrology stream: it ends in the run's uid and a token of its own.

    Args:
        label: The run's label.
        event_stream: The event stream to name in it; None for the primary one.
        number: 1 for the first stream of its time base; continuations count up.
        run_uid: The run's uid, of which the first eight characters are shown.
        token: Makes the name unique, so that a stream whose creation was never answered can be found again.
        channels: The channels to name in it.
    """
    tail = f" · {shortened(one_line(event_stream), 100)}" if event_stream else ""
    tail += f" ({number})" if number > 1 else ""
    tail += f" · {join_names([one_line(name) for name in channels], MAX_CHANNELS)}" if channels else ""
    tail += f" [{one_line(run_uid[:8])}-{token}]"
    return shortened(label, MAX_LABEL - len(tail)) + tail


def label_with_reason(label: str, reason: str) -> str:
    """Return a stream's label with the reason why its run ended. Its unique end stays whole."""
    name, bracket, tail = label.rpartition(" [")
    shown = shortened(one_line(reason), 100)
    room = MAX_LABEL - len(shown) - len(tail) - 5
    return f"{shortened(name, room)} · {shown}{bracket}{tail}"


def join_names(names: Sequence[str], limit: int) -> str:
    """Return names in one text of some `limit` characters: the first few, and how many more there are."""
    shown = [shortened(names[0], limit)]
    for name in names[1:]:
        if len(", ".join([*shown, name])) > limit:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name)
    return ", ".join(shown)


def one_line(text: str) -> str:
    """Return text without control characters and with single blanks; of a very long text only the beginning."""
    return " ".join("".join(char if char.isprintable() else " " for char in text[:MAX_CHARACTERS_USED]).split())


def shortened(text: str, limit: int) -> str:
    """Return text of at most `limit` characters: a longer one is cut and ends in an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
