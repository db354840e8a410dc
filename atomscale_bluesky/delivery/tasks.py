"""What can be done for a run at this moment, as values: one request's worth for one metrology stream. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import msgspec

from ..model.chunk import Chunk
from ..model.links import Links

# Points as they were read back: channel name → unit, times, values.
Points = dict[str, tuple[str | None, Sequence[float | None], Sequence[float | None]]]


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
