"""What one event costs on the RunEngine's thread.

The floor is what nobody who keeps an event's values can go below: encode them with orjson, hand them to the system with
one `write`. Everybody gets the same documents in every round, in an order that rotates, and every call is timed by
itself. A round's mean is set against the floor's mean in the same round; what the tables show of these is the median
over the rounds, since on a machine that does other things too a mean over everything is mostly about those.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter_ns, sleep
from typing import Any, Protocol

import orjson
from bluesky.callbacks import CallbackBase

from atomscale_bluesky import AtomscaleCallback, Settings

from . import documents, peers
from .documents import RunDocuments
from .report import Cell, Report, Table, file_system, middle, percentile, spread
from .sink import sink

# Data keys → events in a round: rounds are short, so that some of them are left alone by whatever else runs.
EVENTS = {10: 1000, 100: 500, 1000: 150}
PAGE_ROWS = 100
# What a first event sets off in other threads is over after this.
SETTLE_S = 0.05
ROUNDS = 30
FLOOR = "floor: orjson + write"
PEER = "suitcase-jsonl"

Call = Callable[[str, dict[str, Any]], object]


class Contestant(Protocol):
    """Something that takes the documents of one run after the other."""

    def run(self, prepared: RunDocuments) -> Any:
        """A context in which one run is open: what to call with its events."""
        ...


class Floor:
    """The values of an event as JSON, one `write` each; nothing else."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "floor"

    @contextmanager
    def run(self, prepared: RunDocuments) -> Iterator[Call]:
        """Write to a new file."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        write, dumps = os.write, orjson.dumps
        try:
            yield lambda _, doc: write(descriptor, dumps(list(doc["data"].values())))
        finally:
            os.close(descriptor)


class Ours:
    """Our callback, everything on."""

    def __init__(self, callback: AtomscaleCallback) -> None:
        self._callback = callback

    @contextmanager
    def run(self, prepared: RunDocuments) -> Iterator[Call]:
        """Open and close a run of the callback; what it left to do is done before the next contestant's turn."""
        for name, doc in prepared.opening:
            self._callback(name, doc)
        self._callback.drain(5.0)
        try:
            yield self._callback
        finally:
            self._callback("stop", prepared.stop)
            self._callback.drain(30.0)


class Empty:
    """Bluesky's own base class of callbacks, which keeps nothing."""

    @contextmanager
    def run(self, prepared: RunDocuments) -> Iterator[Call]:
        """Nothing to open."""
        callback = CallbackBase()
        for name, doc in prepared.opening:
            callback(name, doc)
        yield callback


class Suitcase:
    """suitcase-jsonl, one serializer per run as it asks for, its file flushed when the system likes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def run(self, prepared: RunDocuments) -> Iterator[Call]:
        """Open a serializer."""
        from suitcase.jsonl import Serializer

        with Serializer(self._folder, file_prefix="suitcase-{start[uid]}") as serializer:
            for name, doc in prepared.opening:
                serializer(name, doc)
            yield serializer
        for path in self._folder.glob("suitcase-*"):
            path.unlink()


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Time everybody with events of 10, 100 and 1000 keys, and with pages of them."""
    rounds = rounds or (2 if short else ROUNDS)
    report = Report(f"What one event costs on the RunEngine's thread, {rounds} rounds")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        contestants, problem = _contestants(folder, stack, with_peers)
        for channels, events in EVENTS.items():
            report.tables.append(_events(contestants, channels, max(20, events // 20) if short else events, rounds))
        for channels, events in EVENTS.items():
            count = 2 if short else max(3, events // PAGE_ROWS + 1)
            report.tables.append(_pages(contestants, channels, count, rounds))
        report.notes.append(f"files on {file_system(folder)}; every call is timed by itself, which adds some 0.1 µs")
    if problem:
        report.notes.append(f"{PEER} is left out: {problem}")
    report.notes.append(
        "mean: of a round, the median over the rounds; least: that of the quietest round, which is the one to look at "
        "where other programs take the processor away for milliseconds at a time; percentiles are over all calls"
    )
    report.notes.append(
        "ratio: a round's mean over the floor's mean of the same round, median over the rounds and the middle half of "
        "them; ratio of the least: quietest round over quietest round"
    )
    report.notes.append(
        "a run's first event decides which keys become channels; it is shown by itself and is in no other figure"
    )
    report.notes.append(
        f"idle uploader: its threads run, the stream is initialized, the first reading was looked at (everybody rests "
        f"{SETTLE_S:g} s after it), and no chunk is full yet"
    )
    return report


def _contestants(folder: Path, stack: ExitStack, with_peers: bool) -> tuple[dict[str, Contestant], str | None]:
    offline = Settings(spool_dir=str(folder / "offline"), offline=True)
    idle = Settings(spool_dir=str(folder / "idle"), api_key="none", endpoint=stack.enter_context(sink()))
    found: dict[str, Contestant] = {
        FLOOR: Floor(folder),
        "AtomscaleCallback, offline": Ours(stack.enter_context(AtomscaleCallback(settings=offline))),
        "AtomscaleCallback, idle uploader": Ours(stack.enter_context(AtomscaleCallback(settings=idle))),
        "bluesky CallbackBase (keeps nothing)": Empty(),
    }
    problem = peers.add_suitcase_jsonl() if with_peers else "not asked for"
    if problem is None:
        found[PEER] = Suitcase(folder)
    return found, problem


def _events(contestants: dict[str, Contestant], channels: int, events: int, rounds: int) -> Table:
    times = _rounds(contestants, "event", lambda: documents.run(channels, events, points_per_chunk=events + 1), rounds)
    return _table(f"Events of {channels} keys, µs per event ({events} in a round)", times, 1, tails=True)


def _pages(contestants: dict[str, Contestant], channels: int, count: int, rounds: int) -> Table:
    def prepare() -> RunDocuments:
        rows = count * PAGE_ROWS
        return documents.pages(documents.run(channels, rows, points_per_chunk=rows + 1), PAGE_ROWS)

    times = _rounds(contestants, "event_page", prepare, rounds)
    title = f"Event pages of {PAGE_ROWS} rows of {channels} keys, µs per row ({count} pages in a round)"
    return _table(title, times, PAGE_ROWS, tails=False)


def _rounds(
    contestants: dict[str, Contestant], kind: str, prepare: Callable[[], RunDocuments], rounds: int
) -> dict[str, list[list[float]]]:
    """For each contestant the times of its calls in every round, µs, the run's first call in front.

    A first round warms up and does not count.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    order = list(contestants)
    for number in range(rounds + 1):
        prepared = prepare()
        for name in order:
            # The documents are not what a session holds: keep the collector from walking through them.
            gc.collect()
            gc.freeze()
            with contestants[name].run(prepared) as call:
                took = _timed(call, kind, prepared.events)
            gc.unfreeze()
            if number:
                times[name].append(took)
        order.append(order.pop(0))
    return times


def _timed(call: Call, kind: str, docs: list[dict[str, Any]]) -> list[float]:
    took: list[int] = []
    for doc in docs:
        begin = perf_counter_ns()
        call(kind, doc)
        took.append(perf_counter_ns() - begin)
        if len(took) == 1:
            sleep(SETTLE_S)
    return [nanoseconds / 1000 for nanoseconds in took]


def _table(title: str, times: dict[str, list[list[float]]], rows: int, *, tails: bool) -> Table:
    columns = ["", "mean", "least", "median", *(["p99", "p99.9"] if tails else [])]
    table = Table(title, [*columns, "ratio to the floor", "middle half", "ratio of the least", "a run's first"])
    later = {name: [took[1:] for took in per_round] for name, per_round in times.items()}
    means = {name: [sum(took) / len(took) / rows for took in per_round] for name, per_round in later.items()}
    for name, per_round in later.items():
        every = [one / rows for took in per_round for one in took]
        first = middle([took[0] / rows for took in times[name]])
        ratios = [own / floor for own, floor in zip(means[name], means[FLOOR], strict=True)]
        quantiles = [percentile(every, 0.99), percentile(every, 0.999)] if tails else []
        row: list[Cell] = [name, middle(means[name]), min(means[name]), middle(every), *quantiles]
        least = min(means[name]) / min(means[FLOOR])
        table.rows.append([*row, f"{middle(ratios):.2f}x", spread(ratios), f"{least:.2f}x", first])
    return table
