"""How long a chunk's last event takes to its confirmation, at a plan's pace, beside the bare request.

Every event fills a chunk, so each is one: the clock runs from before the callback is called to when the ledger says
that the chunk is confirmed. Beside it the same body is posted by a loop with `requests` over a connection that is kept,
and the two take turns event by event, against the same sink.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import requests

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.journal import sync_file

from . import documents
from .report import Report, Table, middle, percentile
from .sink import sink
from .spooled import connected

POINTS_PER_CHUNK = 1
SIZES = (10, 100, 1000)
PACE_S = 1.0
EVENTS = 60
SHORT_EVENTS, SHORT_PACE_S = 3, 0.05
LOOK_S = 0.0002
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
    report.tables.append(table)
    report.notes.append(
        "the confirmation is seen by looking into the ledger every 0.2 ms, on a thread that needs its turn for it"
    )
    return report


def _paced(folder: Path, url: str, channels: int, events: int, pace_s: float) -> dict[str, list[float]]:
    opening, coming, stop = documents.stream(channels, events + 1)
    session = requests.Session()
    session.trust_env = False
    ours: list[float] = []
    bare: list[float] = []
    disk: list[float] = []
    settings = connected(folder, url, points_per_chunk=POINTS_PER_CHUNK)
    folder.mkdir()
    path = folder.with_name("synced")
    with session, path.open("ab", buffering=0) as synced, AtomscaleCallback(settings=settings) as callback:
        for name, doc in opening:
            callback(name, doc)
        ledger = _Ledger(folder)
        for i, doc in enumerate(coming):
            begin = time.perf_counter()
            callback("event", doc)
            ledger.wait_for(i + 1)
            if i:  # the first waits for initialize
                ours.append(1000 * (time.perf_counter() - begin))
            time.sleep(pace_s / 2)
            body = _body(doc, i)
            begin = time.perf_counter()
            session.post(f"{url}/metrology/stream/chunk/multi", data=body, timeout=10).json()
            bare.append(1000 * (time.perf_counter() - begin))
            begin = time.perf_counter()
            synced.write(orjson.dumps(list(doc["data"].values())))
            sync_file(synced.fileno())
            disk.append(1000 * (time.perf_counter() - begin))
            time.sleep(pace_s / 2)
        callback("stop", stop)
        callback.drain(30.0)
    return {OURS: ours, BARE: bare[1:], DISK: disk[1:]}


class _Ledger:
    """The only run's ledger, read on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._confirmed = self._offset = 0

    def wait_for(self, chunks: int) -> None:
        """Return as soon as so many chunks are confirmed."""
        deadline = time.perf_counter() + 60.0
        path = next(self._folder.glob("*/journal-0001.jsonl")).with_name("ledger.jsonl")
        while self._confirmed < chunks:
            if time.perf_counter() > deadline:
                raise RuntimeError(f"chunk {chunks - 1} was not confirmed within a minute")
            time.sleep(LOOK_S)
            if path.exists():
                with path.open("rb") as file:
                    file.seek(self._offset)
                    whole, end, _ = file.read().rpartition(b"\n")
                self._offset += len(whole + end)
                self._confirmed += whole.count(b'"kind":"confirmed"')


def _body(doc: dict[str, Any], index: int) -> bytes:
    channels = {name: {"timestamps": [doc["time"]], "values": [value]} for name, value in doc["data"].items()}
    return orjson.dumps({"data_id": "bare", "chunk_index": index, "channels": channels})
