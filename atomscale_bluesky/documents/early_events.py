"""Events that came before their descriptor, as in a recording that was sorted by time. They wait in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .descriptor import mapping_of

# Up to this many documents wait, and up to this many values in them.
MAX_DOCUMENTS = 10_000
MAX_VALUES = 1_000_000


class EarlyEvents:
    """The documents that wait for their descriptors, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}  # by descriptor uid
        self._documents = 0
        self._values = 0

    def __bool__(self) -> bool:
        """Return True if any document waits."""
        return self._documents > 0

    def hold(self, descriptor: str, name: str, doc: Mapping[str, Any]) -> bool:
        """Keep a copy of a document until its descriptor comes. Return False if there is no room for it."""
        values = sum(map(_size, mapping_of(doc.get("data")).values()))
        if self._documents >= MAX_DOCUMENTS or self._values + values > MAX_VALUES:
            return False
        # A copy of its members too: whoever gave it may go on to use it, as event-model's Filler does.
        copy = {member: dict(value) if isinstance(value, Mapping) else value for member, value in doc.items()}
        self._waiting.setdefault(descriptor, []).append((name, copy))
        self._documents += 1
        self._values += values
        return True

    def of(self, descriptor: str) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the documents that waited for a descriptor. They wait no longer."""
        found = self._waiting.pop(descriptor, [])
        self._documents -= len(found)
        if not self._documents:
            self._values = 0
        return found

    def clear(self) -> None:
        """Forget all documents."""
        self._waiting, self._documents, self._values = {}, 0, 0

    def all(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Yield all documents with their descriptors' uids. They wait no longer."""
        waiting, self._waiting, self._documents, self._values = self._waiting, {}, 0, 0
        for descriptor, documents in waiting.items():
            for name, doc in documents:
                yield descriptor, name, doc


def _size(value: Any) -> int:
    size = getattr(value, "size", None)
    if isinstance(size, int):
        return size
    return len(value) if isinstance(value, str | bytes | list | tuple) else 1
