"""Compares this host's clock with the server's: measured by a few exchanges, noted where `status` finds it.

An exchange has four time stamps: when the request was sent, when the server received it and sent its answer, and when
the answer arrived. Of several exchanges the one with the least delay is kept, since its offset is right to half of its
delay. An exchange with a negative delay, because a clock was set meanwhile, is skipped.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..spool.atomic_file import keep
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
    keep(spool / NOTE, msgspec.json.encode(note))


def read_note(spool: Path) -> ClockNote | None:
    """Return the last measurement, or None if there is none or it cannot be read."""
    try:
        return msgspec.json.decode(read_own(spool / NOTE), type=ClockNote)
    except (OSError, msgspec.DecodeError):
        return None


def told(offset_s: float, delay_s: float) -> str:
    """Return an offset in words."""
    side = "behind" if offset_s > 0 else "ahead of"
    return f"this host is {abs(offset_s):.3f} s {side} the server (\N{PLUS-MINUS SIGN} {delay_s / 2:.3f} s)"
