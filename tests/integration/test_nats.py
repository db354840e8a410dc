"""NATS JetStream: a real server with its disk, two workers on one spool, and each of them killed while it works."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.needs import need_module, need_program
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.sources.incoming import IDLE, UNREADABLE, Incoming

pytestmark = pytest.mark.integration

WORKER = [sys.executable, "-m", "atomscale_bluesky", "consume", "nats", "--stream", "BLUESKY", "--durable", "atomscale"]


class Broker:
    """A server of NATS with JetStream on disk."""

    def __init__(self, folder: Path) -> None:
        self._program = need_program("nats-server", "nats-server")
        need_module("nats", "nats-py")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self._port}"
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Start it, also again, and wait until it takes connections."""
        command = [self._program, "-a", "127.0.0.1", "-p", str(self._port), "-js", "-sd", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._listens)

    def _listens(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self._port)) == 0

    def kill(self) -> None:
        """Kill it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def publish(self, messages: list[tuple[str, bytes]], pause_s: float = 0.0) -> None:
        """Publish in order, each until the server has it."""
        asyncio.run(self._publish(messages, pause_s))

    async def _publish(self, messages: list[tuple[str, bytes]], pause_s: float) -> None:
        import nats

        async def ignore(error: Exception) -> None:
            pass

        connection = await nats.connect(self.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=ignore)
        stream = connection.jetstream()
        await stream.add_stream(name="BLUESKY", subjects=["bluesky.>"])
        for number, (subject, body) in enumerate(messages):
            while True:
                try:
                    await stream.publish(subject, body, timeout=1, headers={"Nats-Msg-Id": f"{id(messages)} {number}"})
                    break
                except Exception:  # noqa: BLE001 - the server is away
                    await asyncio.sleep(0.1)
            if pause_s and number % 20 == 0:
                await asyncio.sleep(pause_s)
        await connection.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path / "broker")
    yield broker
    broker.kill()


@pytest.fixture(autouse=True)
def _of_this_server(monkeypatch: pytest.MonkeyPatch, server: LocalServer, spool_dir: Path) -> None:
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")
    monkeypatch.setenv("ATOMSCALE_BLUESKY_POINTS_PER_CHUNK", "10")


def points_in(server: LocalServer) -> int:
    return sum(stream.points for stream in server.streams())


def messages_of(documents: list[Document]) -> list[tuple[str, bytes]]:
    import msgpack

    return [(f"bluesky.mbe.{name}", msgpack.packb(doc)) for name, doc in documents]


@pytest.fixture
def start_worker(broker: Broker, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        with (tmp_path / "workers.log").open("a") as log:
            process = subprocess.Popen([*WORKER, "--server", broker.url], stderr=log, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("seed", [1])
def test_each_reading_arrives_once_though_workers_and_server_are_killed(
    broker: Broker, server: LocalServer, start_worker: Callable[[], Any], tmp_path: Path, seed: int
) -> None:
    runs, points = 8, 150
    chance = random.Random(seed)
    together: list[Document] = []
    left = [list(growth(points=points, keys=1)) for _ in range(runs)]
    while any(left):
        together.append(chance.choice([run for run in left if run]).pop(0))
    publishing = threading.Thread(target=broker.publish, args=(messages_of(together), 0.3))
    publishing.start()
    workers = [start_worker() for _ in "12"]
    for step in range(4):
        before = points_in(server)
        wait_until(lambda before=before: before < points_in(server) or points_in(server) == runs * points, 60)
        if step == 2:
            broker.kill()
            broker.start()
            continue
        number = chance.randrange(2)
        workers[number].kill()
        workers[number].wait()
        workers[number] = start_worker()

    publishing.join(60)
    due = sorted(float(n) for n in range(points) for _ in range(runs))
    wait_until(lambda: len(held(server).get("k0", ())) >= len(due), 90)
    for worker in workers:
        worker.terminate()
        assert worker.wait(30) in {0, -signal.SIGTERM}  # the youngest may not have begun yet
    assert sorted(held(server)["k0"]) == due
    said = (tmp_path / "workers.log").read_text()
    assert "its start document never came" not in said
    assert "Traceback" not in said


def test_hostile_messages_are_named_and_do_not_come_again(broker: Broker) -> None:
    from atomscale_bluesky.sources.nats import NatsDocuments

    documents = list(growth(points=3))
    hostile = [("bluesky.mbe.event", body) for body in (b"", b"garbage", b"\x80\x04N.", b"[1]", b"x" * 900_000)]
    broker.publish([*messages_of(documents[:2]), *hostile, *messages_of(documents[2:])])

    def taken() -> list[Incoming]:
        source = NatsDocuments(broker.url, stream="BLUESKY", durable="atomscale")
        found: list[Incoming] = []
        for one in source:
            if one.name == IDLE:
                break
            one.ack()
            found.append(one)
        source.close()
        return found

    found = taken()
    assert [one.name for one in found] == ["start", "descriptor", *[UNREADABLE] * 5, *["event"] * 3, "stop"]
    assert taken() == []


def test_a_missing_stream_is_one_line_and_exit_code_2(broker: Broker) -> None:
    done = subprocess.run([*WORKER, "--server", broker.url], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "stream 'BLUESKY' is not on" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_waits_for_a_server_that_is_away_and_ends_when_told_to(
    broker: Broker, start_worker: Callable[[], Any], tmp_path: Path
) -> None:
    broker.kill()
    worker = start_worker()
    wait_until(lambda: "the connection to" in (tmp_path / "workers.log").read_text())
    worker.terminate()
    assert worker.wait(30) == 0
    assert "Traceback" not in (tmp_path / "workers.log").read_text()
