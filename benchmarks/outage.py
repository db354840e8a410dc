"""A long outage: what it takes on disk and in memory, how soon a new callback is ready beside it, and draining it.

One process piles the rows up without a network, a second one is a new session on that spool: it is timed from its
construction to the end of its first document, then delivers everything. Both look at their resident size.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import orjson

from atomscale_bluesky import AtomscaleCallback

from . import documents
from .memory import resident
from .report import Report, Table
from .sink import counted, sink
from .spooled import connected, offline

CHANNELS = 100
ROWS = 1_000_000
SHORT_ROWS = 3000
LOOK_S = 0.05


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Pile up and drain once; with `rounds`, so many rows instead of a million."""
    rows = rounds or (SHORT_ROWS if short else ROWS)
    report = Report(f"An outage of {rows * CHANNELS / 1e6:g} million points, {CHANNELS} channels")
    table = Table(
        "AtomscaleCallback",
        ["", "rows", "grown at half, MB", "at the end", "peak", "disk, bytes over those of the values as JSON", "s"],
    )
    with tempfile.TemporaryDirectory() as name, sink() as url:
        piled = _in_a_process("pile up", Path(name), url, rows)
        table.rows.append(
            ["piled up", rows, *piled["grown"], f"{piled['bytes'] / piled['json_bytes']:.2f}", piled["s"]]
        )
        drained = _in_a_process("drain", Path(name), url, rows)
        table.rows.append(["drained by a new session", rows, *drained["grown"], "", drained["s"]])
        if (series := counted(url).series) * 100 != rows * CHANNELS:
            raise RuntimeError(f"{series} series of 100 points arrived for {rows} rows")
    report.tables.append(table)
    ready = Table("AtomscaleCallback, new beside that backlog, ms", ["", "constructed", "first document taken"])
    ready.rows.append(["a new callback", drained["constructed_ms"], drained["first_ms"]])
    report.tables.append(ready)
    report.notes += [
        "growth: resident size over that after the imports, MB of 2**20 bytes, Linux only",
        "first document taken: from the beginning of the construction, with the drain beginning beside it",
    ]
    return report


def _in_a_process(what: str, folder: Path, url: str, rows: int) -> dict[str, Any]:
    order = json.dumps([what, str(folder), url, rows])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.outage", order], capture_output=True, text=True, check=True, timeout=3600
    )
    return json.loads(done.stdout)


class _Looks:
    """Resident sizes from the end of the imports on, taken by a thread."""

    def __init__(self) -> None:
        self._begin = resident() or 0.0
        self._sizes: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._sizes.append((resident() or 0.0) - self._begin)

    def end(self) -> list[float]:
        """Growth at half of the time, at the end, and at its peak."""
        self._ended.set()
        self._thread.join()
        gc.collect()
        last = (resident() or 0.0) - self._begin
        sizes = [*self._sizes, last]
        return [sizes[len(sizes) // 2], last, (resident("VmHWM") or 0.0) - self._begin]


def _pile_up(folder: Path, url: str, rows: int) -> dict[str, Any]:
    opening, coming, stop = documents.stream(CHANNELS, rows)
    looks, begin, json_bytes = _Looks(), time.perf_counter(), 0
    with AtomscaleCallback(settings=offline(folder, url)) as callback:
        for name, doc in opening:
            callback(name, doc)
        for i, doc in enumerate(coming):
            callback("event", doc)
            if i < 1000:
                json_bytes += len(orjson.dumps(list(doc["data"].values())))
        callback("stop", stop)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    seconds = time.perf_counter() - begin
    return {"grown": looks.end(), "bytes": size, "json_bytes": json_bytes * rows / min(rows, 1000), "s": seconds}


def _drain(folder: Path, url: str) -> dict[str, Any]:
    opening, _, stop = documents.stream(1, 0)
    looks, begin = _Looks(), time.perf_counter()
    callback = AtomscaleCallback(settings=connected(folder, url))
    constructed = time.perf_counter() - begin
    callback(*opening[0])
    first = time.perf_counter() - begin
    callback("stop", stop)
    if not callback.drain(3000.0):
        raise RuntimeError(f"not delivered: {callback.status()}")
    seconds = time.perf_counter() - begin
    grown = looks.end()
    callback.close()
    return {"grown": grown, "s": seconds, "constructed_ms": 1000 * constructed, "first_ms": 1000 * first}


if __name__ == "__main__":
    import logging

    logging.getLogger("atomscale_bluesky").setLevel(logging.CRITICAL)
    what, where, server, count = json.loads(sys.argv[1])
    print(json.dumps(_pile_up(Path(where), server, count) if what == "pile up" else _drain(Path(where), server)))
