"""NATS JetStream: a real server with its disk, two workers on one spool, and each of them killed while it works."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from integration.needs import need_module, need_program
from integration.workers import LONG, SHORT, Trial, assert_each_reading_arrives_once, starting, use
from runs import Document, growth
from waiting import wait_until

from atomscale_bluesky import DocumentRecorder, Settings
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.sources.incoming import IDLE, UNREADABLE, Incoming
from atomscale_bluesky.sources.intake import Intake

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

    def add_consumer(self, durable: str, **limits: int) -> None:
        """Add a durable consumer, as a site may have one."""
        asyncio.run(self._add_consumer(durable, limits))

    async def _add_consumer(self, durable: str, limits: dict[str, int]) -> None:
        import nats
        from nats.js.api import AckPolicy, ConsumerConfig

        connection = await nats.connect(self.url)
        config = ConsumerConfig(durable_name=durable, ack_policy=AckPolicy.EXPLICIT, **limits)
        await connection.jetstream().add_consumer("BLUESKY", config)
        await connection.close()

    async def _publish(self, messages: list[tuple[str, bytes]], pause_s: float) -> None:
        import nats

        async def ignore(error: Exception) -> None:
            pass

        connection = await nats.connect(self.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=ignore)
        stream = connection.jetstream()
        await stream.add_stream(name="BLUESKY", subjects=["bluesky.>"])  # also if it is there
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
    use(server, spool_dir, monkeypatch)


def messages_of(documents: list[Document]) -> list[tuple[str, bytes]]:
    import msgpack

    return [(f"bluesky.mbe.{name}", msgpack.packb(doc)) for name, doc in documents]


@pytest.mark.parametrize(
    ("trial", "seed"),
    [(SHORT, 1), pytest.param(LONG, 1, marks=[pytest.mark.long, pytest.mark.timeout(2400)])],
    ids=["short", "long"],
)
def test_each_reading_arrives_once_though_workers_and_server_are_killed(
    broker: Broker,
    server: LocalServer,
    tmp_path: Path,
    spool_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    trial: Trial,
    seed: int,
) -> None:
    def kill_and_start(chance: random.Random) -> None:
        broker.kill()
        threading.Event().wait(chance.uniform(0, 3))
        broker.start()

    def publish(documents: list[Document], pause_s: float) -> None:
        broker.publish(messages_of(documents), pause_s)

    broker.publish([])  # makes the stream, which workers look for
    log = tmp_path / "workers.log"
    monkeypatch.setenv("ATOMSCALE_BLUESKY_POINTS_PER_CHUNK", str(trial.points_per_chunk))
    with starting([*WORKER, "--server", broker.url], log) as start:
        assert_each_reading_arrives_once(
            trial, server, spool_dir, start, log, seed=seed, publish=publish, harm_the_broker=kill_and_start
        )


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


def test_a_consumer_that_gives_few_messages_at_a_time_is_read_without_waiting(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atomscale_bluesky.sources import nats

    documents = list(growth(points=300, keys=1))
    broker.publish(messages_of(documents))
    broker.add_consumer("atomscale", max_ack_pending=5)
    monkeypatch.setattr(nats, "FETCH_S", 30.0)
    source = nats.NatsDocuments(broker.url, stream="BLUESKY", durable="atomscale")
    found: list[Incoming] = []
    waiting: list[Incoming] = []
    for one in source:
        if one.name == IDLE:
            for taken in waiting:
                taken.ack()
            waiting = []
            continue
        waiting.append(one)
        found.append(one)
        if one.name == "stop":
            break
    source.close()
    assert [(one.name, one.doc) for one in found] == documents


def test_thousands_of_events_before_their_descriptor_are_taken_with_it(broker: Broker, spool_dir: Path) -> None:
    start, descriptor, *events, stop = growth(points=6000, keys=1)
    broker.publish(messages_of([start, *events, descriptor, stop]))

    with taking(broker, spool_dir) as intake:
        wait_until(lambda: intake.documents == 6003)
        assert intake.rows == 6000


def test_an_event_that_waits_for_its_descriptor_does_not_come_again(broker: Broker, spool_dir: Path) -> None:
    start, descriptor, *events, stop = growth(points=20, keys=1)
    broker.publish(messages_of([start, *events]))
    broker.add_consumer("atomscale", ack_wait=3)

    with taking(broker, spool_dir) as intake:
        wait_until(lambda: intake.documents == 21)
        held_since = time.monotonic()
        wait_until(lambda: time.monotonic() > held_since + 7)  # more than `ack_wait`, twice
        broker.publish(messages_of([descriptor, stop]))
        wait_until(lambda: intake.rows == 20 and not intake.open_runs)
        assert intake.documents == 23


@contextmanager
def taking(broker: Broker, spool_dir: Path) -> Iterator[Intake]:
    """Take documents in a thread."""
    from atomscale_bluesky.sources.nats import NatsDocuments

    ending = threading.Event()
    settings = Settings.load(spool_dir=str(spool_dir), spool_min_free_bytes=0)
    source = NatsDocuments(broker.url, stream="BLUESKY", durable="atomscale", ending=ending)
    with DocumentRecorder(settings, redelivers=True) as recorder:
        intake = Intake(recorder, ending)
        thread = threading.Thread(target=intake.take_all, args=[source])
        thread.start()
        try:
            yield intake
        finally:
            ending.set()
            thread.join(20)


@pytest.mark.parametrize("fetch_s", [0.0002, 0.0004, 0.0006, 0.0008, 0.001, 0.0015, 0.002])
def test_a_server_that_answers_at_the_last_moment_is_asked_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, fetch_s: float
) -> None:
    from atomscale_bluesky.sources import nats

    broker.publish([])
    monkeypatch.setattr(nats, "FETCH_S", fetch_s)
    source = nats.NatsDocuments(broker.url, stream="BLUESKY", durable="atomscale")
    for number, one in enumerate(source):
        assert one.name == IDLE
        if number == 100:
            break
    source.close()


def test_a_missing_stream_is_one_line_and_exit_code_2(broker: Broker) -> None:
    url = broker.url.replace("//", "//grower:hush8f2c@")
    done = subprocess.run([*WORKER, "--server", url], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"stream 'BLUESKY' is not on {broker.url}: " in done.stderr
    assert "hush8f2c" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["http://bus:4222", "https://bus", "nat://bus:4222"])
def test_a_server_that_is_no_address_of_nats_is_one_line_and_exit_code_2(address: str) -> None:
    done = subprocess.run([*WORKER, "--server", address], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"the server's address is '{address}': expected such as nats://bus:4222" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_waits_for_a_server_that_is_away_and_ends_when_told_to(broker: Broker, tmp_path: Path) -> None:
    broker.kill()
    log = tmp_path / "workers.log"
    with starting([*WORKER, "--server", broker.url], log) as start:
        worker = start()
        wait_until(lambda: "the connection to" in log.read_text())
        worker.terminate()
        assert worker.wait(30) == 0
        assert "Traceback" not in log.read_text()
