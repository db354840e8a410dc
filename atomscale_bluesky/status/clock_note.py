"""Stores how far this host's clock is from the server's in a file of the spool, where `status` finds it.

The file has only the last measurement. `api/clock` measures.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..spool.atomic_file import replace_file
from ..spool.own_files import read_own

# Beyond this the points of two hosts visibly no longer line up in a plot.
CLOCK_WARNS_S = 1.0
NOTE = "clock.json"


class ClockNote(msgspec.Struct, frozen=True):
    """The last measurement of an uploader."""

    endpoint: str
    offset_s: float  # what to add to this host's time to get the server's time
    delay_s: float
    measured: float  # Unix seconds, by this host's clock


def write_note(spool: Path, note: ClockNote) -> None:
    """Replace the note in the spool's folder, whole or not at all.

    Raises:
        OSError: The folder cannot be written.
    """
    replace_file(spool / NOTE, msgspec.json.encode(note))


def read_note(spool: Path) -> ClockNote | None:
    """Return the last measurement, or None if there is none or it cannot be read."""
    try:
        return msgspec.json.decode(read_own(spool / NOTE), type=ClockNote)
    except (OSError, msgspec.DecodeError):
        return None


def offset_in_words(offset_s: float, delay_s: float) -> str:
    """Return an offset in words."""
    side = "behind" if offset_s > 0 else "ahead of"
    return f"this host is {abs(offset_s):.3f} s {side} the server (\N{PLUS-MINUS SIGN} {delay_s / 2:.3f} s)"
