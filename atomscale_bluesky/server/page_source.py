"""What the page shows of the local server: its streams as stored, and the requests that it has had.

It only reads. The points of the few streams that are shown are kept thinned, so the page costs the same
however long a stream is.
"""

from __future__ import annotations

import re
import sqlite3
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..page import Channel, Mark, Overview, Requests, Stream, StreamLine, Trace, sparkline
from .request_log import RequestLog
from .store import Store
from .streams import ACTIVE, ERROR, SUCCESS, Streams

# How many streams are listed, and of how many the points are kept.
MAX_LISTED, MAX_KEPT_STREAMS = 200, 4
# How many chunks a stream's small picture is made of, at most about twice as many.
SPARK_CHUNKS = 40

_STATUS = {ACTIVE: ("growing", "live"), SUCCESS: ("complete", "done"), ERROR: ("ended after a silence", "bad")}
# A stream's name as the callback makes it: perhaps a continuation's number and its channels, then the run's uid and a
# token.
_NAME = re.compile(r"(?P<base>.*?)(?: \((?P<number>\d+)\)(?: · .*)?)? \[(?P<run>[^\[\]-]+)-[^\[\]]+\]", re.DOTALL)


class PageSource:
    """The streams of one server. Used inside the event loop; no call waits."""

    def __init__(self, store: Store, streams: Streams, log: RequestLog, url: Callable[[], str]) -> None:
        self._store = store
        self._streams = streams
        self._log = log
        self._url = url
        self._sparks: dict[int, tuple[int, list[float | None]]] = {}  # by stream: points, picture
        self._points_kept: OrderedDict[int, _Points] = OrderedDict()

    async def overview(self) -> Overview:
        """Return the newest streams and the counts of requests."""
        self._streams.close_silent()
        rows = self._store.all("SELECT * FROM streams ORDER BY id DESC LIMIT ?", MAX_LISTED)
        total = self._store.one("SELECT count(*) FROM streams")[0]
        counts = self._log.counts()
        lines = [self._line(row) for row in rows]
        listed = {row["id"] for row in rows}
        for gone in self._sparks.keys() - listed:
            del self._sparks[gone]
        return Overview(
            title="Local Atomscale",
            place=self._url(),
            now=time.time(),
            streams=lines,
            more=total - len(rows),
            requests=Requests(counts.total, counts.under_way, counts.by_status),
        )

    async def stream(self, identity: str, begin: float, end: float, version: str) -> Stream | None:
        """Return a stream's points from `begin` to `end`."""
        row = self._store.first("SELECT * FROM streams WHERE data_id = ?", identity)
        if row is None:
            return None
        points = self._points_kept.setdefault(row["id"], _Points(self._store, row["id"]))
        self._points_kept.move_to_end(row["id"])
        while len(self._points_kept) > MAX_KEPT_STREAMS:
            self._points_kept.popitem(last=False)
        points.read_on()
        name = row["label"] or row["data_id"]
        present = f"{points.version} {row['status']} {begin} {end}"
        facts = self._facts(row)
        if present == version:
            return Stream(identity, name, present, [], facts=facts)
        channels, thinned = points.channels(begin, end)
        return Stream(identity, name, present, channels, self._marks(row), facts, thinned)

    def _line(self, row: sqlite3.Row) -> StreamLine:
        channels = self._store.all("SELECT id, points FROM channels WHERE stream = ? ORDER BY id", row["id"])
        points = sum(channel["points"] for channel in channels)
        known = self._sparks.get(row["id"])
        if known is None or known[0] != points:
            known = self._sparks[row["id"]] = points, self._spark(channels[0]["id"]) if channels else []
        status, tone = _STATUS.get(row["status"], (row["status"], "wait"))
        name = row["label"] or row["data_id"]
        found = _NAME.fullmatch(name)
        return StreamLine(
            id=row["data_id"],
            name=name,
            status=status,
            tone=tone,
            updated=row["updated"],
            points=points,
            channels=len(channels),
            run=found["run"] if found else "",
            sample=self._name_of("samples", "name", row["physical_sample_id"]),
            instrument=self._name_of("instruments", "label", row["synth_source_id"]),
            spark=known[1],
        )

    def _spark(self, channel: int) -> list[float | None]:
        chunks = self._store.one("SELECT count(*) FROM chunks WHERE channel = ?", channel)[0]
        step = max(1, chunks // SPARK_CHUNKS)
        rows = self._store.all(
            "SELECT data FROM chunks WHERE channel = ? AND chunk_index % ? = 0 ORDER BY chunk_index", channel, step
        )
        return sparkline(np.concatenate([_numbers(row["data"]) for row in rows] or [np.empty(0)]))

    def _facts(self, row: sqlite3.Row) -> list[tuple[str, str]]:
        tags = self._store.all(
            "SELECT name FROM tags JOIN stream_tags ON tag = tags.id WHERE stream = ? ORDER BY name", row["id"]
        )
        facts = {
            "data_id": row["data_id"],
            "instrument": self._name_of("instruments", "label", row["synth_source_id"]),
            "sample": self._name_of("samples", "name", row["physical_sample_id"]),
            "project": self._name_of("projects", "name", row["project_id"]),
            "tags": ", ".join(tag["name"] for tag in tags),
            "points per chunk": str(row["points_per_chunk"]),
        }
        return [(name, text) for name, text in facts.items() if text]

    def _name_of(self, table: str, column: str, identity: Any) -> str | None:
        if identity is None:
            return None
        row = self._store.first(f"SELECT {column} FROM {table} WHERE id = ?", identity)
        return str(identity) if row is None else row[0]

    def _marks(self, row: sqlite3.Row) -> list[Mark]:
        """Return where the streams that this one goes on from, or goes on as, begin."""
        here = _NAME.fullmatch(row["label"] or "")
        if here is None:
            return []
        marks: list[Mark] = []
        others = self._store.all("SELECT id, label FROM streams WHERE label LIKE ? LIMIT 100", f"%[{here['run']}-%")
        for other in others:
            there = _NAME.fullmatch(other["label"] or "")
            if there is None or (there["base"], there["run"]) != (here["base"], here["run"]):
                continue
            if other["id"] == row["id"]:
                if here["number"]:
                    marks += self._mark(other["id"], f"continues here as ({here['number']})")
            else:
                marks += self._mark(other["id"], f"stream ({there['number'] or 1}) begins")
        return marks

    def _mark(self, stream: int, text: str) -> list[Mark]:
        first = self._store.first("SELECT times FROM chunks WHERE stream = ? ORDER BY chunk_index LIMIT 1", stream)
        return [] if first is None else [Mark(struct.unpack("=d", first["times"][:8])[0], text)]


class _Points:
    """The points of one stream's channels, read chunk by chunk. A later chunk waits for those before it."""

    def __init__(self, store: Store, stream: int) -> None:
        self._store = store
        self._stream = stream
        self._traces: dict[int, tuple[str, str | None, Trace, int]] = {}  # by channel; the last is the next chunk
        self._last_chunks: dict[int, list[sqlite3.Row]] = {}  # by channel: chunks that may still change
        self.version = ""

    def read_on(self) -> None:
        """Read the chunks that came since the last call. The newest chunk of a channel may still grow."""
        total = 0
        for row in self._store.all("SELECT * FROM channels WHERE stream = ? ORDER BY id", self._stream):
            total += row["points"]
            _, _, trace, following = self._traces.get(row["id"], ("", None, Trace(), 0))
            chunks = self._store.all(
                "SELECT chunk_index, times, data FROM chunks WHERE channel = ? AND chunk_index >= ?"
                " ORDER BY chunk_index", row["id"], following,
            )  # fmt: skip
            complete: list[sqlite3.Row] = []
            while len(chunks) > 1 and chunks[0]["chunk_index"] == following:
                complete.append(chunks.pop(0))
                following += 1
            if complete:
                trace.extend(
                    np.concatenate([_numbers(chunk["times"]) for chunk in complete]),
                    np.concatenate([_numbers(chunk["data"]) for chunk in complete]),
                )
            self._traces[row["id"]] = row["name"], row["units"], trace, following
            self._last_chunks[row["id"]] = chunks
        self.version = f"{total} {sum(len(chunks) for chunks in self._last_chunks.values())}"

    def channels(self, begin: float, end: float) -> tuple[list[Channel], bool]:
        """Return the points from `begin` to `end`, and True if some of them are left out."""
        found: list[Channel] = []
        any_left_out = False
        for identity, (name, unit, trace, _) in self._traces.items():
            times, values, left_out = trace.window(begin, end)
            count = trace.count
            for chunk in self._last_chunks[identity]:
                newest = Trace()
                newest.extend(_numbers(chunk["times"]), _numbers(chunk["data"]))
                more_times, more_values, more_left_out = newest.window(begin, end)
                times, values, left_out = times + more_times, values + more_values, left_out or more_left_out
                count += newest.count
            found.append(Channel(name, unit, count, times, values))
            any_left_out = any_left_out or left_out
        return found, any_left_out


def _numbers(blob: bytes) -> NDArray[np.float64]:
    return np.frombuffer(blob, dtype=np.float64)
