"""Two workers that take a bus's documents into one spool, and are killed while they work."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky.server import LocalServer

RUNS, POINTS = 8, 150
Start = Callable[[], subprocess.Popen[str]]


def use(server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the workers deliver to a local server."""
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")
    monkeypatch.setenv("ATOMSCALE_BLUESKY_POINTS_PER_CHUNK", "10")


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
    server: LocalServer,
    start: Start,
    log: Path,
    *,
    seed: int,
    publish: Callable[[list[Document], float], object],
    harm_the_broker: Callable[[], object],
) -> None:
    """Publish interleaved runs while workers are killed and the broker is harmed."""
    chance = random.Random(seed)
    together: list[Document] = []
    left = [list(growth(points=POINTS, keys=1)) for _ in range(RUNS)]
    while any(left):
        together.append(chance.choice([run for run in left if run]).pop(0))
    publishing = threading.Thread(target=publish, args=(together, 0.3))
    publishing.start()
    workers = [start() for _ in "12"]
    for step in range(4):
        before = _points_in(server)
        wait_until(lambda before=before: before < _points_in(server) or _points_in(server) == RUNS * POINTS, 60)
        if step == 2:
            harm_the_broker()
            continue
        number = chance.randrange(2)
        workers[number].kill()
        workers[number].wait()
        workers[number] = start()

    publishing.join(60)
    due = sorted(float(n) for n in range(POINTS) for _ in range(RUNS))
    wait_until(lambda: len(held(server).get("k0", ())) >= len(due), 90)
    for worker in workers:
        worker.terminate()
        code = worker.wait(30)
        assert code in {0, -signal.SIGTERM}, (code, log.read_text())  # the youngest may not have begun yet
    assert sorted(held(server)["k0"]) == due
    said = log.read_text()
    assert "its start document never came" not in said
    assert "Traceback" not in said, said


def _points_in(server: LocalServer) -> int:
    return sum(stream.points for stream in server.streams())
