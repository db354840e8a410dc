"""The tasks of one run that have begun and are not finished: a worker has them, or they failed and are tried again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container
from typing import Any

import msgspec

from ..model.chunk import Chunk
from .tasks.work import Kind, Work

# When this many chunks of a run have failed and wait for another attempt, no further one is begun.
MAX_FAILED = 8


class Task(msgspec.Struct, eq=False):
    """One task, and how often it was tried. Only the deciding thread changes it, and only while no worker has it."""

    work: Work[Any]
    attempts: int = 0
    not_before: float = 0.0  # monotonic
    unexplained: int = 0  # how often it was refused while the catalogue did not tell about its stream
    given_out_at: float = 0.0  # monotonic: before its last attempt was sent
    forbidden_at: float | None = None  # monotonic: since when each of its attempts was answered 403

    @property
    def kind(self) -> Kind:
        """The kind of request."""
        return self.work.kind

    @property
    def stream(self) -> int:
        """The number of its metrology stream."""
        return self.work.stream

    @property
    def chunk(self) -> Chunk | None:
        """The chunk that it sends, or None."""
        return getattr(self.work, "chunk", None)

    def __str__(self) -> str:
        """Return its name for log lines."""
        return str(self.work)


class UnfinishedTasks:
    """The unfinished tasks of one run. Belongs to the deciding thread.

    A task *holds* its kind for its stream from `begin` to `finish`, over all failed attempts. So no second task does
    the same.
    """

    def __init__(self) -> None:
        self.failed_tasks: deque[Task] = deque()
        self.in_flight = 0  # given to workers, and not returned
        self._in_flight_by_stream: Counter[int] = Counter()  # the same, by stream
        self._held: Counter[tuple[Kind, int]] = Counter()

    def begin(self, work: Work[Any]) -> Task:
        """Return a new task that is given out now."""
        task = Task(work)
        self.hold(work.kind, work.stream)
        self._give_out(task)
        return task

    def give_out_failed(self, now: float, *, links: bool | None = None) -> Task | None:
        """Give out a failed task whose time has come, by a monotonic clock. Return None if there is none.

        Args:
            now: The time.
            links: True for a task that makes links, False for one that does not, None for either.
        """
        for task in self.failed_tasks:
            if task.not_before <= now and links in {None, task.kind is Kind.LINK}:
                self.failed_tasks.remove(task)
                self._give_out(task)
                return task
        return None

    def note_returned(self, task: Task) -> None:
        """Note that the worker is done with a task. It still holds its kind."""
        self.in_flight -= 1
        self._in_flight_by_stream[task.stream] -= 1

    def keep_for_retry(self, task: Task) -> None:
        """Keep a returned task until it is given out again."""
        self.failed_tasks.append(task)

    def finish(self, task: Task) -> None:
        """Note that nothing is left to do of a returned task."""
        self._held[task.kind, task.stream] -= 1

    def hold(self, kind: Kind, stream: int) -> None:
        """Let no task of a kind begin for a stream until `finish` was called as often."""
        self._held[kind, stream] += 1

    def pop_failed(self, streams: Container[int]) -> list[Task]:
        """Remove and return the failed tasks of some streams, in their order."""
        popped = [task for task in self.failed_tasks if task.stream in streams]
        if popped:
            self.failed_tasks = deque(task for task in self.failed_tasks if task.stream not in streams)
        return popped

    @property
    def may_begin_chunk(self) -> bool:
        """Return True if few enough chunks have failed that a further one may be begun."""
        return sum(task.kind is Kind.PUSH for task in self.failed_tasks) < MAX_FAILED

    @property
    def links_fail(self) -> bool:
        """Return True if an attempt at links has failed and is to be tried again."""
        return any(task.kind is Kind.LINK for task in self.failed_tasks)

    def holds(self, kind: Kind, stream: int) -> bool:
        """Return True if a task of a kind is unfinished for a stream."""
        return self._held[kind, stream] > 0

    def holds_any(self, kind: Kind) -> bool:
        """Return True if a task of a kind is unfinished for any stream."""
        return any(held for (one, _), held in self._held.items() if one is kind)

    @property
    def is_busy(self) -> bool:
        """Return True if a worker has a task, or one has failed and is to be tried again."""
        return self.in_flight > 0 or bool(self.failed_tasks)

    def is_in_flight(self, stream: int) -> bool:
        """Return True if a worker has a task of a stream."""
        return self._in_flight_by_stream[stream] > 0

    def next_due(self) -> float | None:
        """Return when the next failed task may be tried again, monotonic, or None if there is none."""
        return min((task.not_before for task in self.failed_tasks), default=None)

    def _give_out(self, task: Task) -> None:
        self.in_flight += 1
        self._in_flight_by_stream[task.stream] += 1
