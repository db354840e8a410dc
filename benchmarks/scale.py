"""Whether the cost stays flat: over the length of a run, over the runs in the spool, over runs at once, over an hour.

A run of a million events is fed event by event, and its cost told by stretches. Runs are piled up in the spool, and a
new one begins beside them. Fifty runs are fed in turns, an event of each, beside one run of as many events. And a plan
of a thousand keys goes on at a fixed pace, with the upload beside it: who falls behind would show it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from atomscale_bluesky import AtomscaleCallback

from . import documents
from .report import Report, Table, middle, percentile
from .sink import counted, sink
from .spooled import connected, offline, spool_run

LONG_KEYS, LONG_EVENTS = 10, 1_000_000
PILES = (1, 100, 1000)
AT_ONCE, AT_ONCE_KEYS, AT_ONCE_EVENTS = 50, 10, 50_000
PACED_KEYS, PACED_HZ, PACED_S = 1000, 100, 600.0


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Measure each once; with `rounds`, the paced plan goes on for so many seconds."""
    report = Report("Whether the cost stays flat")
    with tempfile.TemporaryDirectory() as name, sink() as url:
        folder = Path(name)
        report.tables = [
            _length(folder, 3000 if short else LONG_EVENTS),
            _piles(folder, url, (1, 20) if short else PILES),
            _at_once(folder, url, 1000 if short else AT_ONCE_EVENTS),
            _paced(folder, url, rounds or (1.0 if short else PACED_S)),
        ]
    report.notes += [
        "a run's cost is that of the calls on the thread that feeds it; without a network in the first two tables",
        "late: how long after its time an event was handed over, because the call before it took longer than the pace",
    ]
    return report


def _length(folder: Path, events: int) -> Table:
    title = f"AtomscaleCallback, events of {LONG_KEYS} keys in one run, µs per event"
    table = Table(title, ["events", "mean", "p99.9"])
    opening, coming, stop = documents.stream(LONG_KEYS, events)
    bounds = [10**i for i in range(3, 9) if 10**i < events] + [events]
    with AtomscaleCallback(settings=offline(folder / "long", "http://127.0.0.1:9")) as callback:
        for name, doc in opening:
            callback(name, doc)
        took: list[float] = []
        since = 0
        for i, doc in enumerate(coming, start=1):
            begin = time.perf_counter()
            callback("event", doc)
            took.append(1e6 * (time.perf_counter() - begin))
            if i == bounds[0]:
                table.rows.append([f"{since + 1} to {i}", sum(took) / len(took), percentile(took, 0.999)])
                bounds.pop(0)
                since, took = i, []
        callback("stop", stop)
    shutil.rmtree(folder / "long")
    return table


def _piles(folder: Path, url: str, piles: tuple[int, ...]) -> Table:
    table = Table(
        "AtomscaleCallback, a new session beside runs that wait in the spool, ms",
        ["runs in the spool", "constructed", "start", "first event", "a later event, µs", "delivered after, s"],
    )
    spool, there = folder / "pile", 0
    for pile in piles:
        while there < pile:
            spool_run(spool, url, channels=10, events=20, points_per_chunk=10)
            there += 1
        prepared = documents.run(10, 500)
        begin = time.perf_counter()
        callback = AtomscaleCallback(settings=offline(spool, url))
        constructed = time.perf_counter() - begin
        took = []
        for name, doc in [*prepared.opening, *(("event", event) for event in prepared.events)]:
            begin = time.perf_counter()
            callback(name, doc)
            took.append(time.perf_counter() - begin)
        callback("stop", prepared.stop)
        callback.close(0.0)
        begin = time.perf_counter()
        with AtomscaleCallback(settings=connected(spool, url)) as sending:
            if not sending.drain(600.0):
                raise RuntimeError(f"not delivered: {sending.status()}")
            delivered = time.perf_counter() - begin
        there = 0
        ms = [1000 * constructed, 1000 * took[0], 1000 * took[2]]
        table.rows.append([pile, *ms, 1e6 * middle(took[3:]), delivered])
    return table


def _at_once(folder: Path, url: str, events: int) -> Table:
    table = Table(
        f"AtomscaleCallback, {events} events of {AT_ONCE_KEYS} keys, uploaded meanwhile",
        ["runs at once", "median, µs per event", "p99", "delivered after the last stop, s"],
    )
    for runs in (1, AT_ONCE):
        streams = [documents.stream(AT_ONCE_KEYS, events // runs) for _ in range(runs)]
        spool = folder / f"at-once-{runs}"
        with AtomscaleCallback(settings=connected(spool, url)) as callback:
            for opening, _, _ in streams:
                for name, doc in opening:
                    callback(name, doc)
            took = []
            for event in _in_turns([coming for _, coming, _ in streams]):
                begin = time.perf_counter()
                callback("event", event)
                took.append(1e6 * (time.perf_counter() - begin))
            for _, _, stop in streams:
                callback("stop", stop)
            begin = time.perf_counter()
            if not callback.drain(600.0):
                raise RuntimeError(f"not delivered: {callback.status()}")
            table.rows.append([runs, middle(took), percentile(took, 0.99), time.perf_counter() - begin])
    return table


def _in_turns(streams: list[Iterator[documents.Document]]) -> Iterator[documents.Document]:
    for together in zip(*streams, strict=True):
        yield from together


def _paced(folder: Path, url: str, seconds: float) -> Table:
    table = Table(
        f"AtomscaleCallback, {PACED_KEYS} keys at {PACED_HZ} events/s for {seconds:g} s, uploaded meanwhile",
        ["", "events", "call, median, µs", "p99", "most", "late, most, ms", "CPU, s per s", "sink's", "to finalize, s"],
    )
    events = int(seconds * PACED_HZ)
    opening, coming, stop = documents.stream(PACED_KEYS, events)
    took, late = [], []
    with AtomscaleCallback(settings=connected(folder / "paced", url)) as callback:
        for name, doc in opening:
            callback(name, doc)
        cpu, sink_cpu = time.process_time(), counted(url).cpu_s
        started = time.perf_counter()
        for i, doc in enumerate(coming):
            due = started + i / PACED_HZ
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            begin = time.perf_counter()
            callback("event", doc)
            took.append(1e6 * (time.perf_counter() - begin))
            late.append(1000 * max(0.0, begin - due))
        lasted = time.perf_counter() - started
        used = [(time.process_time() - cpu) / lasted, (counted(url).cpu_s - sink_cpu) / lasted]
        callback("stop", stop)
        begin = time.perf_counter()
        if not callback.drain(600.0):
            raise RuntimeError(f"not delivered: {callback.status()}")
        finalized = time.perf_counter() - begin
    table.rows.append(["a plan", events, middle(took), percentile(took, 0.99), max(took), max(late), *used, finalized])
    return table
