"""This host's clock against the server's reference: measured by a few exchanges, noted where `status` finds it.

An exchange has four time stamps: when the question left, when the server received it and sent its answer, and when that
arrived. Of several the least delayed is kept, since its offset is right to half of its delay. One with a negative
delay, because a clock was set meanwhile, is passed over.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..spool.atomic_file import keep
from ..spool.own_files import read_own

# Beyond this the points of two hosts no longer line up for a person who looks at a plot.
CLOCK_WARNS_S = 1.0
NOTE = "clock.json"


class ClockNote(msgspec.Struct, frozen=True):
    """What an uploader has measured last."""

    endpoint: str
    offset_s: float  # what to add to this host's time to get the server's
    delay_s: float
    measured: float  # Unix seconds, this host's


def write_note(spool: Path, note: ClockNote) -> None:
    """Keep what was measured in the spool's folder, instead of what was there; whole or not at all.

    Raises:
        OSError: The folder cannot be written.
    """
    keep(spool / NOTE, msgspec.json.encode(note))


def read_note(spool: Path) -> ClockNote | None:
    """What was measured last; None where nothing was, or it cannot be read."""
    try:
        return msgspec.json.decode(read_own(spool / NOTE), type=ClockNote)
    except (OSError, msgspec.DecodeError):
        return None


def told(offset_s: float, delay_s: float) -> str:
    """An offset in words."""
    side = "behind" if offset_s > 0 else "ahead of"
    return f"this host is {abs(offset_s):.3f} s {side} the server (\N{PLUS-MINUS SIGN} {delay_s / 2:.3f} s)"
