"""What every kind of task has: an input that never changes, and functions that use it, each in a certain thread.

    next_work       the deciding thread: may it run now? A function in each file. Notes what must be known after a crash
    perform         a worker thread: sends the requests of one task. Touches no run and no ledger
    apply_result    the deciding thread: notes in the run's ledger what the result means
    apply_refusal   the deciding thread: notes that Atomscale has refused it
    apply_failure   the deciding thread: it failed and may succeed later. Returns what is left to do
    put_back        the deciding thread: no worker has begun it

What remains after a failure becomes a new input.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec

from ...api.client import Client
from ...errors import ApiError, ApiRefusedError
from ..backoff import Backoff

if TYPE_CHECKING:
    from ..claimed_run import ClaimedRun

R = TypeVar("R")

# The stream of a task that is about the whole run.
RUN = -1
# After how long a server without `chunk/multi` is asked for it again: a proxy may have given its answers for a while.
ASK_FOR_MULTI_AGAIN_S = 600.0
# Of how many streams that were made last the ids are remembered.
REMEMBERED_STREAMS = 1000


class Kind(Enum):
    """The kind of a task: its request to Atomscale."""

    RESOLVE = "resolve the links of"
    INITIALIZE = "initialize"
    PUSH = "push"
    PREVIEW = "show what there is so far of"
    LINK = "link"
    READ_BACK = "read back"
    FINALIZE = "finalize"
    CLOCK = "measure the clock for"
    VERIFY = "verify"

    __hash__ = object.__hash__  # each exists once. The hash of `Enum` is a call in Python, several for each chunk.


class ServerFacts(msgspec.Struct):
    """What is known about the server, and how the operator's commands find the spool.

    Any worker may set each member about the server.
    """

    family: str | None = None  # the one that streams are made in
    clock_measured: float = -math.inf  # when, monotonic
    spool_option: str = ""  # appended to commands in the log, such as ` --spool-dir /data/spool`
    monotonic: Callable[[], float] = time.monotonic  # a test passes its own
    _families_with_multi: set[str] = set()  # families whose chunk/multi has taken a chunk
    _no_multi_until: dict[str, float] = {}  # family → until when it counts as one without chunk/multi, monotonic
    _labels: dict[str, str] = {}  # the streams that were made last: id → label

    def note_stream(self, data_id: str, label: str) -> str | None:
        """Note that a stream has an id. Return the label of the other stream that was given the same id, or None."""
        if (noted := self._labels.setdefault(data_id, label)) != label:
            return noted
        if len(self._labels) > REMEMBERED_STREAMS:
            del self._labels[next(iter(self._labels))]
        return None

    def note_multi(self, family: str) -> None:
        """Note that a family's `chunk/multi` has taken a chunk. From then on it counts as there."""
        self._families_with_multi.add(family)

    def note_no_multi(self, family: str) -> None:
        """Note that a family took the channels of a chunk one by one, but had no `chunk/multi`."""
        if family not in self._families_with_multi:
            self._no_multi_until[family] = self.monotonic() + ASK_FOR_MULTI_AGAIN_S

    def lacks_multi(self, family: str) -> bool:
        """Return True if a family has no `chunk/multi`, as far as is known, and is not to be asked for it again yet."""
        until = self._no_multi_until.get(family)
        return until is not None and self.monotonic() < until


class WorkerContext(NamedTuple):
    """What a worker must know beside a task's input."""

    server_facts: ServerFacts
    attempts: int = 0  # how often the task failed before
    unexplained: int = 0  # how often it was refused while the catalogue did not tell about its stream


class RetryAfter(NamedTuple):
    """The rest of a task that is tried again although the server answers."""

    work: Work[Any]
    after_s: float


class PartlyDoneError(Exception):
    """A part of a task is done. The rest failed with the error that this one is raised from."""

    def __init__(self, result: Any) -> None:
        super().__init__("a part of a task failed")
        self.result = result


class UnexplainedError(Exception):
    """A request was refused, and the catalogue did not answer whether its stream is closed."""


class Work(msgspec.Struct, Generic[R], frozen=True, eq=False):
    """The input of a task. Each kind adds what it needs. `R` is the type of its result."""

    kind: ClassVar[Kind]
    # How long a failed task of this kind waits, if that is longer than the pause that all tasks share.
    backoff: ClassVar[Backoff | None] = None

    stream: int  # RUN if it is about the whole run
    label: str

    def __str__(self) -> str:
        """Return its name for log lines."""
        return f"{self.kind.value} {self.label!r}"

    def perform(self, client: Client, context: WorkerContext) -> R:
        """Send the requests. Repeats nothing, notes nothing, and waits only for answers.

        Raises:
            ApiError: It was refused or not answered.
            PartlyDoneError: The same, after a part of it was done.
            UnexplainedError: It was refused, and the reason cannot be found out now.
        """
        raise NotImplementedError

    def apply_result(self, run: ClaimedRun, result: R) -> RetryAfter | None:
        """Note what the result means for the run. Return what is to be tried again, and when, or None."""
        raise NotImplementedError

    def shows_write_access(self, result: R) -> bool:
        """Return True if a result shows that the API key was accepted for a request that writes."""
        return False

    def apply_refusal(self, run: ClaimedRun, error: ApiRefusedError) -> RetryAfter | None:
        """Note that Atomscale has refused the task. Returns the same as `apply_result`."""
        self.park(run, str(error))

    def park(self, run: ClaimedRun, reason: str) -> None:
        """Park what the task is about, until the operator acts or what is missing appears in Atomscale."""
        run.park_stream(self.stream, self.label, reason)

    def apply_failure(self, run: ClaimedRun, error: ApiError, part: R | None) -> Work[R] | None:
        """Note the part that was done before an attempt failed. Return the rest, or None if there is none."""
        return self

    def put_back(self, run: ClaimedRun) -> Work[R] | None:
        """Return the rest of a task that no worker has begun, or None if there is none."""
        return self
