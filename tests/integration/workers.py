"""Two workers that take a bus's documents into one spool, and are killed while they work."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from runs import Document, growth
from waiting import wait_until

from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

Start = Callable[[], subprocess.Popen[str]]
# By how much a worker may be larger after everything than after a tenth of it, when it takes some 75 MB. What it keeps
# is bounded: some chunks, the uids of the last 10 000 events of each run, and what the broker's client has fetched.
MAX_GROWTH = 32 * 2**20


@dataclass(frozen=True)
class Trial:
    """How much is published, and how often what is harmed meanwhile."""

    runs: int
    points: int
    kills: int  # moments at which one worker or both are killed
    harms: int  # moments at which the broker is harmed
    outages: int  # moments at which Atomscale goes away for `OUTAGE_S`
    points_per_chunk: int
    pause_s: float  # between 20 documents and the next 20
    timeout_s: float  # for the first tenth, and for the end

    @property
    def total(self) -> int:
        """The number of readings."""
        return self.runs * self.points


SHORT = Trial(runs=8, points=150, kills=3, harms=1, outages=0, points_per_chunk=10, pause_s=0.3, timeout_s=90)
# Three more documents of each run make 100 000.
LONG = Trial(runs=40, points=2497, kills=20, harms=5, outages=2, points_per_chunk=50, pause_s=0.03, timeout_s=600)
OUTAGE_S = 15.0


def use(server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the workers deliver to a local server."""
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")


@contextmanager
def starting(command: Sequence[str], log: Path) -> Iterator[Start]:
    """Start workers, which write into one log, and end those that are left."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        with log.open("a") as file:
            process = subprocess.Popen(command, stderr=file, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def assert_each_reading_arrives_once(
    trial: Trial,
    server: LocalServer,
    spool_dir: Path,
    start: Start,
    log: Path,
    *,
    seed: int,
    publish: Callable[[list[Document], float], object],
    harm_the_broker: Callable[[random.Random], object],
) -> None:
    """Publish interleaved runs while workers are killed, the broker is harmed and Atomscale goes away."""
    chance = random.Random(seed)
    documents = _interleaved(trial, chance)
    publishing = threading.Thread(target=publish, args=(documents, trial.pause_s))
    publishing.start()
    try:
        workers = [start() for _ in "12"]
        begin = _harmed_meanwhile(trial, server, start, workers, chance, harm_the_broker)
        publishing.join(trial.timeout_s)
        wait_until(lambda: _points_in(server) >= trial.total, trial.timeout_s)
        wait_until(lambda: not _status(spool_dir), trial.timeout_s)
    finally:
        publishing.join()
    end = _memory(workers)
    for worker in workers:
        worker.terminate()
        code = worker.wait(30)
        assert code in {0, -signal.SIGTERM}, (code, log.read_text())  # the youngest may not have begun yet
    said = log.read_text()
    assert "its start document never came" not in said
    assert "Traceback" not in said, said
    _assert_held_once(trial, server)
    _assert_accounts(trial, server, spool_dir, {doc["uid"] for name, doc in documents if name == "start"})
    assert end < begin + MAX_GROWTH, (begin, end)


def _interleaved(trial: Trial, chance: random.Random) -> list[Document]:
    """Return the documents of all runs. Each reading's value tells its run, and the place in it."""
    left = [growth(trial.points, keys=1, first=n * trial.points) for n in range(trial.runs)]
    found: list[Document] = []
    while left:
        run = chance.choice(left)
        document = next(run, None)
        if document is None:
            left.remove(run)
        else:
            found.append(document)
    return found


def _harmed_meanwhile(
    trial: Trial,
    server: LocalServer,
    start: Start,
    workers: list[subprocess.Popen[str]],
    chance: random.Random,
    harm_the_broker: Callable[[random.Random], object],
) -> int:
    """Kill and harm at random moments. Return the memory of the larger worker after the first tenth, in bytes."""
    what = ["kill"] * trial.kills + ["harm"] * trial.harms + ["outage"] * trial.outages
    chance.shuffle(what)
    begin, tenth = 0, trial.total // 10
    moments = sorted((chance.uniform(0, 0.95 * trial.total), one) for one in what)
    for points, one in sorted([*moments, (float(tenth), "")]):
        wait_until(lambda points=points: _points_in(server) > points, trial.timeout_s)
        threading.Event().wait(chance.random())  # not only right after a chunk has come
        match one:
            case "kill":
                for number in chance.choice(([0], [1], [0, 1])):
                    workers[number].kill()
                    workers[number].wait()
                    workers[number] = start()
            case "harm":
                harm_the_broker(chance)
            case "outage":
                server.unreachable(OUTAGE_S)
            case _:
                # A worker that was started just now is smaller. One that delivers has begun.
                delivered = _points_in(server) + 10 * trial.points_per_chunk
                wait_until(lambda delivered=delivered: _points_in(server) > delivered, trial.timeout_s)
                begin = _memory(workers)
    return begin


def _points_in(server: LocalServer) -> int:
    threading.Event().wait(0.1)  # the server shares the machine with the workers
    return sum(stream.points for stream in server.streams())


def _status(spool_dir: Path) -> Sequence[object]:
    return SpoolStatus(Spool(spool_dir, read_only=True)).status()


def _memory(workers: Sequence[subprocess.Popen[str]]) -> int:
    """Return the memory of the worker that has more: the other one waits for its turn."""
    return max(psutil.Process(worker.pid).memory_info().rss for worker in workers)


def _assert_held_once(trial: Trial, server: LocalServer) -> None:
    """Assert that each stream has readings of one run, in order, and that all streams together have each once.

    A run that a worker's death has interrupted is several streams.
    """
    held: list[float] = []
    for stream in server.streams():
        assert stream.status == "success", stream
        (series,) = server.points(stream.data_id).values()
        values = [value for value in series.values if value is not None]
        assert values == sorted(values)
        assert len({value // trial.points for value in values}) == 1
        held += values
    assert sorted(held) == [float(n) for n in range(trial.total)]


def _assert_accounts(trial: Trial, server: LocalServer, spool_dir: Path, runs: set[str]) -> None:
    """Assert that the history has each run's readings as delivered, and knows every stream."""
    delivered: Counter[str] = Counter()
    streams: list[str] = []
    for entry in Spool(spool_dir, read_only=True).history.entries():
        delivered[entry["run_uid"]] += entry["delivered"]
        streams += entry["data_ids"]
        assert not any(entry.get(name) for name in ("left_out", "lost", "discarded", "not_given")), entry
    assert delivered == dict.fromkeys(runs, trial.points)
    assert sorted(streams) == sorted(stream.data_id for stream in server.streams())
