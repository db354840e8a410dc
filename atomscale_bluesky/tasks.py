"""What can be done for a run at this moment, as values: one request's worth for one metrology stream. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .chunks import Chunk
from .lines import Links

# Points as they were read back: channel name → unit, times, values.
Points = dict[str, tuple[str | None, list[float | None], list[float | None]]]


class Kind(Enum):
    """What a task asks of Atomscale."""

    INITIALIZE = "initialize"
    PUSH = "push"
    READ_BACK = "read back"
    FINALIZE = "finalize"
    CLOCK = "measure the clock for"
    VERIFY = "verify"


@dataclass(slots=True)
class Task:
    """One thing to do for a metrology stream, and how often it was tried already."""

    kind: Kind
    stream: int
    label: str
    links: Links
    points_per_chunk: int
    data_id: str = ""
    family: str = ""
    chunk: Chunk | None = None
    attempts: int = 0
    not_before: float = 0.0  # monotonic
    may_exist: bool = False  # an earlier attempt to initialize may have made the stream
    apart: frozenset[str] = field(default_factory=frozenset)  # channels refused before: pushed one by one
    refusal: str = ""  # why another path family refused it before
    folder: str = ""  # of the run, where it is read back to be verified
    looks: int = 0  # how often it was read back and not equal
    forbidden_at: float | None = None  # monotonic: when it was first answered 403

    def __str__(self) -> str:
        """What a log line calls it."""
        what = f"chunk {self.chunk.index} of " if self.chunk else ""
        return f"{self.kind.value} {what}{self.label!r}"
