"""How long a chunk's last event takes to its confirmation, at a plan's pace, beside the bare request.

Every event fills a chunk, so each is one: the clock runs from before the callback is called to the time that the
ledger gives for the chunk's confirmation. Beside it the same body is posted by a loop with `requests` over a connection
that is kept, and the two take turns event by event, against the same sink.

Where `max_latency_s` is set and no chunk is ever filled, each point waits for a preview that shows it: how long, from
its time to when the ledger says that such a preview was taken.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import requests

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.spool.sync import sync_file

from . import documents
from .report import Report, Table, middle, percentile
from .sink import sink
from .spooled import connected

POINTS_PER_CHUNK = 1
SIZES = (10, 100, 1000)
PACE_S = 1.0
EVENTS = 60
SHORT_EVENTS, SHORT_PACE_S = 3, 0.05
LIMIT_S, SHORT_LIMIT_S = 2.0, 0.2
SHOWN_PACE_S = 0.1
LOOK_S = 0.002
OURS, BARE, DISK = "AtomscaleCallback", "requests, the same body", "write and sync, the same values"


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Time chunks of one row, of several numbers of channels; `rounds` is the number of events."""
    events, pace_s = (SHORT_EVENTS, SHORT_PACE_S) if short else (rounds or EVENTS, PACE_S)
    report = Report(f"From the event that fills a chunk to its confirmation, one event every {pace_s:g} s")
    table = Table(
        f"AtomscaleCallback, {events} events, ms", ["channels", "", "median", "p90", "p99", "most", "ratio of medians"]
    )
    with tempfile.TemporaryDirectory() as name, sink() as url:
        for channels in SIZES:
            found = _paced(Path(name) / str(channels), url, channels, events, pace_s)
            bare = found[BARE]
            for who, took in found.items():
                tails = [percentile(took, share) for share in (0.9, 0.99)]
                ratio = f"{middle(took) / middle(bare):.2f}x"
                table.rows.append([channels, who, middle(took), *tails, max(took), ratio])
    limit_s = SHORT_LIMIT_S if short else LIMIT_S
    shown = Table(
        f"AtomscaleCallback, max_latency_s = {limit_s:g}, points that fill no chunk, s until a preview shows them",
        ["channels", "events/s", "median", "p99", "most"],
    )
    with tempfile.TemporaryDirectory() as name, sink() as url:
        for channels in SIZES:
            took = _shown(Path(name) / str(channels), url, channels, 2 * events, SHOWN_PACE_S, limit_s)
            shown.rows.append([channels, round(1 / SHOWN_PACE_S), middle(took), percentile(took, 0.99), max(took)])
    report.tables += [table, shown]
    report.notes.append(f"whether a preview was taken is seen by looking into the ledger every {1000 * LOOK_S:g} ms")
    return report


def _paced(folder: Path, url: str, channels: int, events: int, pace_s: float) -> dict[str, list[float]]:
    opening, coming, stop = documents.stream(channels, events + 1)
    session = requests.Session()
    session.trust_env = False
    began: list[float] = []
    bare: list[float] = []
    disk: list[float] = []
    settings = connected(folder, url, points_per_chunk=POINTS_PER_CHUNK)
    folder.mkdir()
    path = folder.with_name("synced")
    with session, path.open("ab", buffering=0) as synced, AtomscaleCallback(settings=settings) as callback:
        for name, doc in opening:
            callback(name, doc)
        for i, doc in enumerate(coming):
            began.append(time.time())
            callback("event", doc)
            time.sleep(pace_s / 2)  # nobody looks meanwhile: that would take a thread's turn from who is timed
            body = _body(doc, i)
            begin = time.perf_counter()
            session.post(f"{url}/metrology/stream/chunk/multi", data=body, timeout=10).json()
            bare.append(1000 * (time.perf_counter() - begin))
            begin = time.perf_counter()
            synced.write(orjson.dumps(list(doc["data"].values())))
            sync_file(synced.fileno())
            disk.append(1000 * (time.perf_counter() - begin))
            time.sleep(pace_s / 2)
        confirmed = _Ledger(folder).confirmed(len(began))
        callback("stop", stop)
        callback.drain(30.0)
    ours = [1000 * (confirmed[i] - at) for i, at in enumerate(began)]
    return {OURS: ours[1:], BARE: bare[1:], DISK: disk[1:]}  # the first waits for initialize


def _shown(folder: Path, url: str, channels: int, events: int, pace_s: float, limit_s: float) -> list[float]:
    """How long each event waited until a preview that holds it was taken."""
    opening, coming, stop = documents.stream(channels, events)
    settings = connected(folder, url, points_per_chunk=10 * events, max_latency_s=limit_s)
    came: list[float] = []
    took: list[float] = []
    with AtomscaleCallback(settings=settings) as callback:
        for name, doc in opening:
            callback(name, doc)
        ledger = _Ledger(folder)
        begin = time.perf_counter()
        for i in range(events + math.ceil(2 * limit_s / pace_s)):
            if i < events:
                came.append(time.perf_counter())
                callback("event", next(coming))
            while time.perf_counter() < begin + (i + 1) * pace_s:
                time.sleep(LOOK_S)
                now = time.perf_counter()
                took += [now - at for at in came[len(took) : ledger.rows_shown()]]
        callback("stop", stop)
        callback.drain(30.0)
    if len(took) != events:
        raise RuntimeError(f"{events - len(took)} of {events} points were not shown")
    return took


class _Ledger:
    """The only run's ledger, read on."""

    def __init__(self, folder: Path) -> None:
        self._path = next(folder.glob("*/journal-0001.jsonl")).with_name("ledger.jsonl")
        self._offset = 0
        self._previewed = self._shown = 0  # rows

    def confirmed(self, chunks: int) -> dict[int, float]:
        """When each chunk was confirmed, Unix seconds by its index, once so many are."""
        deadline = time.perf_counter() + 60.0
        found: dict[int, float] = {}
        while len(found) < chunks:
            if time.perf_counter() > deadline:
                raise RuntimeError(f"{chunks - len(found)} chunks were not confirmed within a minute")
            time.sleep(LOOK_S)
            found |= {fact["index"]: fact["time"] for fact in self._facts() if fact["kind"] == "confirmed"}
        return found

    def rows_shown(self) -> int:
        """How many rows the previews have shown so far."""
        for fact in self._facts():
            if fact["kind"] == "previewed":
                self._previewed = fact["last_row"] + 1
            elif fact["kind"] == "preview_answered" and fact["taken"]:
                self._shown = self._previewed
        return self._shown

    def _facts(self) -> list[dict[str, Any]]:
        """What was noted since the last look."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + end)
        return [orjson.loads(line.partition(b" ")[2]) for line in whole.splitlines()]


def _body(doc: dict[str, Any], index: int) -> bytes:
    channels = {name: {"timestamps": [doc["time"]], "values": [value]} for name, value in doc["data"].items()}
    return orjson.dumps({"data_id": "bare", "chunk_index": index, "channels": channels})
