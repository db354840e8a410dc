"""Requests to the server and their results: the newest requests, and counts of all.

Bounded: the log keeps the newest `LIMIT` records; the counts include all. It never holds the API key, only whether the
key was right.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Literal

import msgspec

LIMIT = 20_000


class RequestRecord(msgspec.Struct):
    """One request. The record is made when the request arrives, and its result is filled in later."""

    number: int
    """Counts from 1 in order of arrival."""
    time: float
    """When its body had arrived; Unix seconds."""
    method: str
    path: str
    query: str
    headers: dict[str, str]
    """Those of interest, by their names in lower case; the key is not among them."""
    key: Literal["right", "wrong", "absent"]
    client_port: int
    """Tells which requests shared a connection."""
    size: int
    call: str
    family: str | None = None
    data_id: str | None = None
    label: str | None = None
    chunk_index: int | None = None
    channels: tuple[str, ...] = ()
    fault: int | None = None
    """The number of the fault that acted on it."""
    handled: int | None = None
    """The status with which the request was handled, whether or not the client got to see it; None: not applied."""
    status: int | None = None
    """The status that was sent; None while it is under way, and where no answer was sent."""
    duration_s: float | None = None
    """From arrival to the end of the answer or of the connection; None while it is under way."""


class RequestCounts(msgspec.Struct):
    """Counts of all requests since the server was made."""

    total: int = 0
    under_way: int = 0
    most_under_way: int = 0
    connections: int = 0
    by_call: dict[str, int] = {}
    by_status: dict[str, int] = {}
    """By the status sent; `"none"` where there was no answer."""


class RequestLog:
    """The records and counts of one server."""

    def __init__(self) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=LIMIT)
        self._counts = RequestCounts()
        self._calls: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._ports: set[int] = set()

    def begin(self, record: RequestRecord) -> None:
        """Note that a request has arrived, and give it its number."""
        self._counts.total += 1
        self._counts.under_way += 1
        self._counts.most_under_way = max(self._counts.most_under_way, self._counts.under_way)
        self._calls[record.call] += 1
        self._ports.add(record.client_port)
        record.number = self._counts.total
        self._records.append(record)

    def end(self, record: RequestRecord, duration_s: float) -> None:
        """Note that a request has been answered or given up."""
        self._counts.under_way -= 1
        self._statuses["none" if record.status is None else str(record.status)] += 1
        record.duration_s = duration_s

    @property
    def under_way(self) -> int:
        """How many requests have arrived and are not answered."""
        return self._counts.under_way

    def records(self, *, call: str | None = None, after: int = 0) -> list[RequestRecord]:
        """Return the records kept, oldest first: of one call, if given, and with a number above `after`."""
        return [record for record in self._records if record.number > after and call in (None, record.call)]

    def counts(self) -> RequestCounts:
        """Return a copy of the counts."""
        return msgspec.structs.replace(
            self._counts,
            connections=len(self._ports),
            by_call=dict(self._calls),
            by_status=dict(self._statuses),
        )
