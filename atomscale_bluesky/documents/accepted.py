"""What a recorder did with one document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import msgspec


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """What happened to one document.

    A value that is not a finite number is a gap in its row, and counts here as written; `status` reports how many there
    are.
    """

    rows: int = 0  # rows written to the run's journal: one for each time base of an event
    known: int = 0  # runs or events that were written before, so nothing of them is written again
    left_out: Mapping[str, int] = MappingProxyType({})  # readings that are in no row, by reason
    put_off: bool = False  # it is taken later: at the end of the call that it interrupted, or when its descriptor comes
    try_again: bool = False  # no disk space, or the disk failed: the same document may be given again later

    def __add__(self, other: Accepted) -> Accepted:
        """Return what happened to two documents together."""
        return Accepted(
            rows=self.rows + other.rows,
            known=self.known + other.known,
            left_out=dict(Counter(self.left_out) + Counter(other.left_out)),
            put_off=self.put_off or other.put_off,
            try_again=self.try_again or other.try_again,
        )


NOTHING = Accepted()
KNOWN = Accepted(known=1)
PUT_OFF = Accepted(put_off=True)
TRY_AGAIN = Accepted(try_again=True)
