"""Events that came before their descriptor, as in a recording that was sorted by time. They wait in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .descriptor import mapping_of

# Up to this many documents wait, for as many a source keeps its place, and up to this many values in them.
MAX_DOCUMENTS = 100_000
MAX_VALUES = 1_000_000
# An event waits until this many runs have ended. Its descriptor comes before the stop of its own run, and forty
# chambers that share a bus end a few runs in between.
MAX_STOPS = 100


class EarlyEvent(NamedTuple):
    """A document that waits for its descriptor."""

    descriptor: str
    name: str
    doc: Mapping[str, Any]
    events: int  # how many it is
    values: int  # how many they hold


class EarlyEvents:
    """The documents that wait for their descriptors, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[EarlyEvent]] = {}  # by descriptor uid
        self._until: dict[str, int] = {}  # by descriptor uid: after how many stops its events are given up
        # Descriptor uids whose events waited while a run ended, so they may be that run's.
        self._of_any_run: set[str] = set()
        self._stops = 0
        self._documents = 0
        self._values = 0

    def __bool__(self) -> bool:
        """Return True if any document waits."""
        return self._documents > 0

    @property
    def descriptors(self) -> Iterable[str]:
        """The uids of the descriptors that are waited for."""
        return self._waiting.keys()

    def hold(self, descriptor: str, name: str, doc: Mapping[str, Any], events: int) -> bool:
        """Keep a copy of a document until its descriptor comes. Return False if there is no room for it."""
        values = sum(map(_size, mapping_of(doc.get("data")).values()))
        if self._documents >= MAX_DOCUMENTS or self._values + values > MAX_VALUES:
            return False
        # A copy of its members too: its source may go on to change it, as event-model's Filler does.
        copy = {member: dict(value) if isinstance(value, Mapping) else value for member, value in doc.items()}
        self._until.setdefault(descriptor, self._stops + MAX_STOPS)
        self._waiting.setdefault(descriptor, deque()).append(EarlyEvent(descriptor, name, copy, events, values))
        self._documents += 1
        self._values += values
        return True

    def first(self, descriptor: str) -> EarlyEvent | None:
        """Return the oldest document that waits for a descriptor, or None. It waits until `forget_first` is called."""
        waiting = self._waiting.get(descriptor)
        return waiting[0] if waiting else None

    def forget_first(self, descriptor: str) -> None:
        """Forget the oldest document that waits for a descriptor."""
        waiting = self._waiting[descriptor]
        self._documents -= 1
        self._values -= waiting.popleft().values
        if not waiting:
            del self._waiting[descriptor], self._until[descriptor]
            self._of_any_run.discard(descriptor)

    def give_up(self, descriptors: Iterable[str]) -> Iterator[EarlyEvent]:
        """Yield the documents that wait for any of these descriptors. They wait no longer."""
        for descriptor in list(descriptors):
            while (event := self.first(descriptor)) is not None:
                yield event
                self.forget_first(descriptor)

    def clear(self) -> None:
        """Forget all documents."""
        self._waiting, self._until, self._documents, self._values = {}, {}, 0, 0
        self._of_any_run.clear()

    @property
    def of_any_run(self) -> Iterable[str]:
        """The uids of those descriptors whose events may belong to a run that has ended while they waited."""
        return self._of_any_run

    def note_run_ended(self) -> None:
        """Note that all events that wait now may belong to a run that has just ended."""
        self._of_any_run.update(self._waiting)

    def note_stop(self) -> list[str]:
        """Note that a run has ended. Return the uids of the descriptors that have been waited for too long."""
        self._stops += 1
        return [descriptor for descriptor, until in self._until.items() if until <= self._stops]


def _size(value: Any) -> int:
    size = getattr(value, "size", None)
    if isinstance(size, int):
        return size
    return len(value) if isinstance(value, str | bytes | list | tuple) else 1
