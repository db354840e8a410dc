"""What can be done for a run at this moment, as values: one request's worth for one metrology stream. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import NamedTuple

import msgspec

from ..model.chunk import Chunk
from ..model.links import Links

# Points as they were read back: channel name → unit, times, values.
Points = dict[str, tuple[str | None, Sequence[float | None], Sequence[float | None]]]


# What Atomscale has refused because something is not there is asked for again, in case somebody has put it there.
FIRST_WAIT_S = 60.0
LONGEST_WAIT_S = 3600.0


class Kind(Enum):
    """What a task asks of Atomscale."""

    RESOLVE = "resolve the links of"
    INITIALIZE = "initialize"
    PUSH = "push"
    PREVIEW = "show what there is so far of"
    LINK = "link"
    READ_BACK = "read back"
    FINALIZE = "finalize"
    CLOCK = "measure the clock for"
    VERIFY = "verify"


class Link(NamedTuple):
    """One link of a stream that exists; `linking` tells which there are."""

    kind: str
    to: str


class Patience:
    """When to ask again, by itself, for what was refused: after a minute, and ever less often."""

    def __init__(self) -> None:
        self._waits: dict[Hashable, tuple[float, float]] = {}

    def is_over(self, what: Hashable, now: float) -> bool:
        """Whether to ask for it again now, monotonic; the first time that this is asked begins the wait."""
        at, wait_s = self._waits.setdefault(what, (now + FIRST_WAIT_S, FIRST_WAIT_S))
        if now < at:
            return False
        longer_s = min(2 * wait_s, LONGEST_WAIT_S)
        self._waits[what] = (now + longer_s, longer_s)
        return True


# The stream of a task that is about the whole run.
RUN = -1


class Task(msgspec.Struct, eq=False):
    """One thing to do for a metrology stream, or for the run before it has one; and how often it was tried already."""

    kind: Kind
    stream: int
    label: str
    links: Links
    points_per_chunk: int
    data_id: str = ""
    family: str = ""
    chunk: Chunk | None = None
    to_link: tuple[Link, ...] = ()
    stopped_at: float | None = None  # when the run had stopped, as far as was known; Unix seconds
    order: int = 0  # the edit whose links are to be resolved
    attempts: int = 0
    not_before: float = 0.0  # monotonic
    may_exist: bool = False  # an earlier attempt may have made the stream, or brought the chunk
    apart: frozenset[str] = frozenset()  # channels refused before: pushed one by one
    refusal: str = ""  # why another path family refused it before
    due: dict[str, int] = {}  # to be read back: channels, and how many points of each may be there
    folder: str = ""  # of the run, where it is read back to be verified
    looks: int = 0  # how often it was read back and not equal
    unexplained: int = 0  # how often it was refused while the catalogue gave no answer about its stream
    forbidden_at: float | None = None  # monotonic: when it was first answered 403

    def __str__(self) -> str:
        """What a log line calls it."""
        what = f"chunk {self.chunk.index} of " if self.chunk else ""
        return f"{self.kind.value} {what}{self.label!r}"
