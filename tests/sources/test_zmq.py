"""Documents from 0MQ: Bluesky's own publisher and proxy, and other forms; pickles only where they are trusted."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest
import zmq
from bluesky import RunEngine
from bluesky.callbacks.zmq import Publisher
from bluesky.plans import scan
from ophyd.sim import det, motor
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.sources import zmq_connection
from atomscale_bluesky.sources.forms import MessageError, document_in
from atomscale_bluesky.sources.incoming import IDLE, UNREADABLE, Incoming
from atomscale_bluesky.sources.zmq import ZmqDocuments
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

PROXY = """
from bluesky.callbacks.zmq import Proxy
proxy = Proxy(in_address="tcp://127.0.0.1", out_address="tcp://127.0.0.1")
print(proxy.in_port, proxy.out_port, flush=True)
proxy.start()
"""


@pytest.fixture
def proxy() -> Iterator[tuple[str, str]]:
    """Bluesky's proxy: where to send to, and where to listen."""
    with subprocess.Popen([sys.executable, "-c", PROXY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ports = [word.rpartition(":")[2] for word in process.stdout.readline().split()]
        yield f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
        process.kill()


class Listening:
    """A source that is read in a thread, as soon as it is connected."""

    def __init__(self, address: str, publish: Callable[[str, dict[str, Any]], object], **options: Any) -> None:
        self.found: list[Incoming] = []
        self._ending = threading.Event()
        self._source = ZmqDocuments(address, ending=self._ending, **options)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        here = str(uuid.uuid4())

        def connected() -> bool:
            publish("datum", {"datum_id": here})
            return bool(self.found)

        wait_until(connected)
        publish("datum_page", {})
        wait_until(lambda: self.found[-1].name in {"datum_page", UNREADABLE})
        self.found.clear()

    def _read(self) -> None:
        self.found.extend(one for one in self._source if one.name != IDLE)

    def close(self) -> list[Incoming]:
        """What has come."""
        self._ending.set()
        self._thread.join(20)
        return self.found


def lists(doc: Any) -> Any:
    """A document with lists for arrays."""
    return json.loads(json.dumps(doc, default=lambda value: value.tolist()))


SERIALIZERS: dict[str, Callable[[Any], bytes]] = {
    "json": lambda doc: json.dumps(doc, default=lambda value: value.tolist()).encode(),
    "msgpack": msgpack.packb,
    "msgpack of numpy": msgpack_numpy.packb,
}


@pytest.mark.parametrize("kind", SERIALIZERS)
def test_what_a_runengine_publishes_comes_as_it_was_sent(proxy: tuple[str, str], kind: str) -> None:
    sending, receiving = proxy
    publisher = Publisher(sending, serializer=SERIALIZERS[kind])
    listening = Listening(receiving, publisher)
    sent: list[Document] = []
    engine = RunEngine()
    engine.subscribe(lambda name, doc: sent.append((name, lists(doc))))
    engine.subscribe(publisher)
    engine(scan([det], motor, -1, 1, 5))

    wait_until(lambda: len(listening.found) >= len(sent))
    publisher.close()
    assert [(name, lists(doc)) for name, doc, _ in listening.close()] == sent


@pytest.mark.parametrize("trusted", [False, True])
def test_a_pickle_is_read_only_if_it_is_trusted(proxy: tuple[str, str], trusted: bool, tmp_path: Path) -> None:
    sending, receiving = proxy
    publisher = Publisher(sending)  # pickles, as Bluesky does by default
    listening = Listening(receiving, publisher, trust_pickle=trusted)
    documents = list(growth(points=3))
    for name, doc in documents:
        publisher(name, doc)

    wait_until(lambda: len(listening.found) >= len(documents))
    publisher.close()
    found = listening.close()
    if trusted:
        assert [one[:2] for one in found] == documents
    else:
        assert {one.name for one in found} == {UNREADABLE}
        assert "reading a pickle can run any code" in found[0].doc["reason"]


class Evil:
    """Runs code when its pickle is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickle_runs_code_whatever_it_is_called(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        body = pickle.dumps(("start", {"x": Evil(mark)}), protocol)
        for name in (None, "start"):
            with pytest.raises(MessageError):
                document_in(body, name=name)
    array = msgpack.packb({b"nd": True, b"kind": b"O", b"type": "O", b"data": pickle.dumps(Evil(mark)), b"shape": [1]})
    assert document_in(msgpack.packb(["event", {"data": msgpack.unpackb(array)}]))[0] == "event"
    assert not mark.exists()


@pytest.mark.parametrize(
    "frames",
    [
        [b'["start", {"uid": "u"}]'],
        [msgpack.packb(["start", {"uid": "u"}])],
        [b"start", b'{"uid": "u"}'],
        [b"beamline.start", msgpack.packb({"uid": "u"})],
        [b"QS_documents", b'{"name": "start", "doc": {"uid": "u"}}'],
        [b"topic", b"start", b'{"uid": "u"}'],
        [b'prefix start {"uid": "u"}'],
        [b' start {"uid": "u"}'],
        [b'["start",{"uid":"u","purpose":"no stop at night"}]'],
        [msgpack.packb(["start", {"uid": "u", "purpose": "the event itself"}])],
    ],
)
def test_other_forms_of_messages_are_read(frames: list[bytes]) -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")

        def publish(name: str, doc: dict[str, Any]) -> None:
            socket.send_multipart([b" ".join([b"", name.encode(), json.dumps(doc).encode()])])

        listening = Listening(f"tcp://127.0.0.1:{port}", publish)
        socket.send_multipart(frames)
        wait_until(lambda: listening.found)
        assert [(name, doc["uid"]) for name, doc, _ in listening.close()] == [("start", "u")]


def test_hostile_messages_are_named_and_the_next_is_read() -> None:
    hostile = [
        b"", b"garbage", b"\x00" * 100, b"\xff\xfe", b"[" * 100_000, b"a b c", b" start [1]", b" event \xc1",
        b'{"x": NaN', b"x" * 10_000_000, b"\x81\xa1x", pickle.dumps({"a": 1}), np.arange(3).tobytes(),
    ]  # fmt: skip
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")

        def publish(name: str, doc: dict[str, Any]) -> None:
            socket.send(b" ".join([b"", name.encode(), json.dumps(doc).encode()]))

        listening = Listening(f"tcp://127.0.0.1:{port}", publish)
        for message in hostile:
            socket.send(message)
        publish("start", {"uid": "u"})
        wait_until(lambda: listening.found and listening.found[-1].name == "start")
        found = listening.close()
        assert [one.name for one in found] == [UNREADABLE] * len(hostile) + ["start"]
        assert all(one.doc["reason"] for one in found[:-1])


def test_another_prefix_is_not_taken(proxy: tuple[str, str]) -> None:
    sending, receiving = proxy
    ours, other = (Publisher(sending, prefix=prefix, serializer=msgpack.packb) for prefix in (b"mbe", b"mbe2"))
    listening = Listening(receiving, ours, prefix="mbe")
    other_is_there = Listening(receiving, other, prefix="mbe2")
    other("start", {"uid": "theirs"})
    wait_until(lambda: other_is_there.found)
    ours("start", {"uid": "ours"})
    wait_until(lambda: listening.found)
    for publisher in (ours, other):
        publisher.close()
    other_is_there.close()
    assert [one.doc["uid"] for one in listening.close()] == ["ours"]


def test_of_several_frames_only_messages_with_the_prefix_are_taken() -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")

        def publish(name: str, doc: dict[str, Any]) -> None:
            socket.send(b" ".join([b"mbe", name.encode(), json.dumps(doc).encode()]))

        listening = Listening(f"tcp://127.0.0.1:{port}", publish, prefix="mbe")
        for prefix in (b"mbe", b"mbe2", b"mbe.b", b"mbe-2", b"other"):
            uid = f"of {prefix.decode()}"
            body, whole = (json.dumps(one).encode() for one in ({"uid": uid}, ["start", {"uid": uid}]))
            for message in (
                [prefix, b"start", body],
                [prefix, whole],
                [prefix + b".start", body],
                [prefix, b"", whole],
            ):
                socket.send_multipart(message)
        publish("stop", {"uid": "the last"})
        wait_until(lambda: listening.found and listening.found[-1].name == "stop")
        assert [one.doc["uid"] for one in listening.close()] == ["of mbe"] * 4 + ["the last"]


# ---- the connection --------------------------------------------------------------------------------------------------


@contextmanager
def listening(address: str) -> Iterator[None]:
    """A source that is read in a thread, whether it is connected or not."""
    ending = threading.Event()
    thread = threading.Thread(target=lambda: [None for _ in ZmqDocuments(address, ending=ending)])
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(20)


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_an_address_where_nothing_listens_is_warned_about_now_and_then_until_something_does(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(zmq_connection, "PATIENCE_S", 1.0)
    monkeypatch.setattr(zmq_connection, "WARN_AGAIN_S", 1.0)
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with listening(address):
        wait_until(lambda: len(said(caplog, f"not connected to {address} for ")) >= 2)
        assert "documents that are sent are lost: nothing answers there; start the proxy" in caplog.text
        assert said(caplog, "connected to tcp") == said(caplog, "not connected to tcp")
        with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
            publisher.bind(address)
            wait_until(lambda: f"connected to {address}" in caplog.messages)
            caplog.clear()
        wait_until(lambda: said(caplog, f"the connection to {address} is lost"))
        with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
            publisher.bind(address)
            wait_until(lambda: f"connected to {address} again" in caplog.messages)


def test_the_proxys_other_address_is_warned_about_and_tried_again(
    proxy: tuple[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq_connection, "PATIENCE_S", 1.0)
    monkeypatch.setattr(zmq_connection, "RECONNECT_S", 0.5)
    sending, receiving = proxy
    with listening(sending):
        wait_until(lambda: said(caplog, "what answers there is no publisher"))
        assert "the second of its two addresses" in caplog.text
    caplog.clear()
    port = free_port()
    with listening(f"127.0.0.1:{port}"), zmq.Context() as context:
        with context.socket(zmq.SUB) as other:
            other.bind(f"tcp://127.0.0.1:{port}")
            wait_until(lambda: said(caplog, "what answers there is no publisher"))
        caplog.set_level(logging.INFO)
        with context.socket(zmq.PUB) as publisher:
            wait_until(lambda: bound(publisher, port))
            wait_until(lambda: f"connected to tcp://127.0.0.1:{port}" in caplog.messages)


def bound(publisher: zmq.Socket[bytes], port: int) -> bool:
    """Bind a socket. False while the port is still taken."""
    try:
        publisher.bind(f"tcp://127.0.0.1:{port}")
    except zmq.ZMQError:
        return False
    return True


def test_a_host_that_is_not_known_is_warned_about_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with listening("tcp://no-such-host.invalid:5568"):
        wait_until(lambda: said(caplog, "tcp://no-such-host.invalid:5568: its host is not known: "))
    assert said(caplog, "not connected to") == []


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals to a process of its own")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_consume_records_and_delivers_until_it_is_told_to_end(
    proxy: tuple[str, str], server: LocalServer, spool_dir: Path, number: signal.Signals
) -> None:
    sending, receiving = proxy
    publisher = Publisher(sending, serializer=msgpack_numpy.packb)
    environment = os.environ | {
        "ATOMSCALE_API_ENDPOINT": server.url,
        "ATOMSCALE_API_KEY": server.api_key,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
        "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
    }
    command = [sys.executable, "-m", "atomscale_bluesky", "consume", "zmq", "--address", receiving]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:

        def listens() -> bool:
            for name, doc in growth(points=1, keys=1):
                publisher(name, doc)
            return bool(server.streams())

        wait_until(listens)
        missed, documents, unfinished, gaps = (list(growth(points=20, keys=3)) for _ in "1234")
        for name, doc in [("event", {"no": "event"}), *missed[1:], *documents, *gaps[:5], *gaps[8:], *unfinished[:-1]]:
            publisher(name, doc)
        wait_until(lambda: held(server).get("k2", []).count(19.2) >= 2)
        wait_until(lambda: seen_of(spool_dir, unfinished[0][1]["uid"]) == 60)
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    publisher.close()
    arrived = held(server)["k2"]  # of the open run, too, if there was time
    assert arrived.count(19.2) - arrived.count(4.2) == 1
    assert f"run {missed[0][1]['uid']}: its start document never came" in said
    assert f"run {gaps[0][1]['uid']}: its stop document counts events that never came: 3 of" in said
    assert "open runs, which count as interrupted until they go on: 1: " in said
    assert "documents that could not be used: 1: " in said
    assert "Traceback" not in said
    assert seen_of(spool_dir, unfinished[0][1]["uid"]) == 60


def seen_of(spool_dir: Path, uid: str) -> int:
    """How many points of a run are in the spool."""
    status = SpoolStatus(Spool(spool_dir, read_only=True)).status()
    return sum(run.points.seen for run in status if run.run_uid == uid)
