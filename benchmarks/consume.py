"""What taking documents from a bus costs: our consumer, and the bus's own client, which receives, decodes and forgets.

Each is a process of its own. Its clocks run from the end of the first tenth of the messages, in which all is loaded, to
the last acknowledgement. The processor time is that of all its threads, the client's own included. Nothing is delivered
meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from . import documents
from .brokers import BUSES, STREAM, TOPIC, Message, broker, missing, publish
from .report import Report, Table, middle

RUNS = 4
KEYS = (10, 100)
PARTITIONS = {"kafka": (1, 2, 4), "nats": (1,)}
EVENTS = {10: 24_000, 100: 8000}  # of all runs together
SHORT_EVENTS = 200
ROUNDS = 5
BATCH = 256
CONTESTANTS = ("client", "ours")


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Measure each bus, one contestant after the other."""
    rounds = rounds or (1 if short else ROUNDS)
    report = Report(f"What taking documents from a bus costs, medians of {rounds} rounds")
    table = Table(
        "AtomscaleCallback's recorder behind a bus, and the bus's own client, which keeps nothing",
        [
            *("bus, partitions, keys", "client, documents/s", "ours", "ratio of the times"),
            *("client, µs of processor time per document", "ours", "ratio"),
        ],
    )
    for bus in BUSES:
        if why := missing(bus):
            report.notes.append(f"{bus} was not measured: {why}")
            continue
        for partitions in PARTITIONS[bus][-1:] if short else PARTITIONS[bus]:
            for keys in KEYS:
                table.rows.append(_row(bus, partitions, keys, SHORT_EVENTS if short else EVENTS[keys], rounds))
    report.tables.append(table)
    report.notes.append(f"{RUNS} interleaved runs, in MessagePack, as bluesky-kafka and bluesky-nats write documents")
    return report


def _row(bus: str, partitions: int, keys: int, events: int, rounds: int) -> list[str | float]:
    messages = _messages(keys, events)
    wall: dict[str, list[float]] = {who: [] for who in CONTESTANTS}
    used: dict[str, list[float]] = {who: [] for who in CONTESTANTS}
    with tempfile.TemporaryDirectory() as name, broker(bus, Path(name) / "broker", partitions) as address:
        publish(bus, address, messages, partitions)
        for turn in range(rounds):
            for who in CONTESTANTS if turn % 2 else CONTESTANTS[::-1]:
                order = {"who": who, "bus": bus, "address": address, "messages": len(messages)}
                order["spool"] = str(Path(name) / f"spool {turn}")
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.consume", json.dumps(order)],
                    stdout=subprocess.PIPE, text=True, check=True, timeout=600,
                )  # fmt: skip
                took, processor = json.loads(done.stdout)
                wall[who].append(took)
                used[who].append(processor)
    title = f"{bus}, {partitions}, {keys}"
    speeds = [1 / middle(wall[who]) for who in CONTESTANTS]
    costs = [1e6 * middle(used[who]) for who in CONTESTANTS]
    return [title, *speeds, _ratio(wall), *costs, _ratio(used)]


def _ratio(found: Mapping[str, Sequence[float]]) -> str:
    """The median of the rounds' ratios: both sides of each met the same machine."""
    return f"{middle([b / a for a, b in zip(found['client'], found['ours'], strict=True)]):.2f}x"


def _messages(keys: int, events: int) -> list[Message]:
    """The documents of interleaved runs."""
    found: list[Message] = []
    runs = [documents.run(keys, events // RUNS) for _ in range(RUNS)]
    for n, run in enumerate(runs):
        found += [(n, name, doc) for name, doc in run.opening]
    found += [(n, "event", runs[n].events[i]) for i in range(events // RUNS) for n in range(RUNS)]
    return found + [(n, "stop", run.stop) for n, run in enumerate(runs)]


class _Clocks:
    """Wall and processor time, from the end of the first tenth of the messages."""

    def __init__(self, messages: int) -> None:
        self.left = messages
        self._timed = messages - messages // 10
        self._begin = (0.0, 0.0)

    def came(self) -> None:
        """Count a message."""
        if self.left == self._timed:
            self._begin = time.perf_counter(), time.process_time()
        self.left -= 1

    def read(self) -> tuple[float, float]:
        """Seconds of both, per message."""
        took = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
        return took[0] / self._timed, took[1] / self._timed


def _kafka_client(address: str, messages: int) -> tuple[float, float]:
    from confluent_kafka import Consumer

    clocks = _Clocks(messages)
    settings = {"bootstrap.servers": address, "group.id": str(uuid.uuid4()), "auto.offset.reset": "earliest"}
    settings["session.timeout.ms"] = "10000"  # joining takes the broker about as long
    consumer = Consumer(settings)
    consumer.subscribe([TOPIC])
    while clocks.left:
        message = consumer.poll(1.0)
        if message is None or message.error():
            continue
        clocks.came()
        msgpack.unpackb(message.value())
    took = clocks.read()
    consumer.close()
    return took


def _nats_client(address: str, messages: int) -> tuple[float, float]:
    return asyncio.run(_nats(address, messages))


async def _nats(address: str, messages: int) -> tuple[float, float]:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig

    clocks = _Clocks(messages)
    connection = await nats.connect(address)
    forgets = ConsumerConfig(ack_policy=AckPolicy.NONE)
    subscription = await connection.jetstream().pull_subscribe(
        "bluesky.>", durable=uuid.uuid4().hex, stream=STREAM, config=forgets
    )
    while clocks.left:
        for message in await subscription.fetch(BATCH, timeout=10):
            clocks.came()
            msgpack.unpackb(message.data)
    took = clocks.read()
    await connection.close()
    return took


def _ours(bus: str, address: str, messages: int, spool: str) -> tuple[float, float]:
    from atomscale_bluesky import DocumentRecorder, Settings
    from atomscale_bluesky.sources.incoming import IDLE
    from atomscale_bluesky.sources.intake import Intake

    if bus == "nats":
        from atomscale_bluesky.sources.nats import NatsDocuments

        source: Any = NatsDocuments(address, stream=STREAM, durable=uuid.uuid4().hex)
    else:
        from atomscale_bluesky.sources.kafka import KafkaDocuments

        source = KafkaDocuments(address, [TOPIC], group=str(uuid.uuid4()))
    clocks = _Clocks(messages)

    class Counted:
        """The source, up to the last message."""

        def __iter__(self) -> Any:
            for one in source:
                if one.name != IDLE:
                    clocks.came()
                yield one
                if not clocks.left:
                    break

        def pause(self, timeout_s: float) -> None:
            source.pause(timeout_s)

        def close(self) -> None:
            source.close()

    settings = Settings.load(environ={}, spool_dir=spool, spool_min_free_bytes=0, offline=True)
    with DocumentRecorder(settings, redelivers=True) as recorder:
        intake = Intake(recorder)
        intake.take_all(Counted())
        took = clocks.read()
        if intake.documents != messages or intake.unusable or intake.without_start or intake.left_out:
            raise RuntimeError(f"not everything was taken: {intake.documents} of {messages} documents")
    return took


def _work(who: str, bus: str, address: str, messages: int, spool: str) -> tuple[float, float]:
    clients: dict[str, Callable[[str, int], tuple[float, float]]] = {"kafka": _kafka_client, "nats": _nats_client}
    return clients[bus](address, messages) if who == "client" else _ours(bus, address, messages, spool)


if __name__ == "__main__":
    print(json.dumps(_work(**json.loads(sys.argv[1]))))
