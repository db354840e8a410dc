"""What every kind of task has: an input that never changes, and what to do with it in which thread.

    plan        the deciding thread: may it run now? A function of each file; notes what has to be known before
    perform     a worker thread: the requests of one task. It touches no run and no ledger
    apply       the deciding thread: what the result means for the run, noted in its ledger
    refused     the deciding thread: Atomscale has refused it
    failed      the deciding thread: it failed in a way that can clear; what is left to do
    put_back    the deciding thread: no worker has begun it

What is left to do after a failure is another input.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec

from ...api.client import Client
from ...errors import ApiError, ApiRefusedError
from ..backoff import Backoff

if TYPE_CHECKING:
    from ..run import Run

R = TypeVar("R")

# The stream of a task that is about the whole run.
RUN = -1


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

    __hash__ = object.__hash__  # each is there once; the hash of `Enum` is a call in Python, several for each chunk


class Knowledge(msgspec.Struct):
    """What has been found out about the server; each is a plain flag that any worker may set."""

    family: str | None = None  # the one that streams are made in
    clock_measured: float = -math.inf  # when, monotonic
    single_only: set[str] = set()  # families without chunk/multi


class Attempt(NamedTuple):
    """What a worker has to know beside a task's input."""

    knowledge: Knowledge
    attempts: int = 0  # how often the task failed before
    unexplained: int = 0  # how often it was refused while the catalogue gave no answer about its stream


class Again(NamedTuple):
    """What is left of a task that is tried again although the server is well."""

    work: Work[Any]
    after_s: float


class PartlyDoneError(Exception):
    """A part of a task is done, the rest failed with the error that this one is raised from."""

    def __init__(self, result: Any) -> None:
        super().__init__("a part of a task failed")
        self.result = result


class UnexplainedError(Exception):
    """A request was refused, and the catalogue did not answer whether its stream is closed."""


class Work(msgspec.Struct, Generic[R], frozen=True, eq=False):
    """What one task asks of Atomscale; each kind adds what it needs. `R` is what `perform` brings."""

    kind: ClassVar[Kind]
    # How long a failed task of this kind waits at least, where that is more than the pause that all tasks share.
    backoff: ClassVar[Backoff | None] = None

    stream: int  # RUN if it is about the whole run
    label: str

    def __str__(self) -> str:
        """Return what a log line calls it."""
        return f"{self.kind.value} {self.label!r}"

    def perform(self, client: Client, attempt: Attempt) -> R:
        """Send the requests that it takes; nothing is repeated, noted or waited for.

        Raises:
            ApiError: It was refused or not answered.
            PartlyDoneError: The same, when a part of it was done.
            UnexplainedError: It was refused, and why cannot be found out now.
        """
        raise NotImplementedError

    def apply(self, run: Run, result: R) -> Again | None:
        """Note what the result means for the run; say if and when the task is to be tried again."""
        raise NotImplementedError

    def refused(self, run: Run, error: ApiRefusedError) -> Again | None:
        """Note that Atomscale has refused it."""
        self.park(run, str(error))

    def park(self, run: Run, reason: str) -> None:
        """Note that it cannot go on until the operator acts, or what is missing appears in Atomscale."""
        run.park_stream(self.stream, self.label, reason)

    def failed(self, run: Run, error: ApiError, part: R | None) -> Work[R] | None:
        """Note the part that was done before an attempt failed; return what is left to do, None for nothing."""
        return self

    def put_back(self, run: Run) -> Work[R] | None:
        """Return what is left to do of a task that no worker has begun, None for nothing."""
        return self
