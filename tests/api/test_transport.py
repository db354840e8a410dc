"""Requests over a connection that is there already: what a server may do to them, by a server that does it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pytest
from chunks import chunk_of

from atomscale_bluesky import ApiKeyError, ApiRefusedError, ApiUnavailableError, Settings
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.api.wire import push
from atomscale_bluesky.model.chunk import Column
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.server import Fault, LocalServer

CHUNKS = [chunk_of(i, (1.0, 2.0), [Column("t", "K", (3.0, 4.0))], first_row=2 * i) for i in range(4)]


def confirmation(index: int) -> bytes:
    return json.dumps([{"data_id": "id", "chunk_index": index, "channel_name": "t"}]).encode()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    length = f"Content-Length: {len(body)}"
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, length, "", ""]).encode() + body


class Scripted:
    """A server that gives one answer after the other, and tells what it was asked over which connection."""

    def __init__(self, answers: list[bytes | None]) -> None:
        self.asked: list[tuple[int, bytes, bytes]] = []  # connection, head, body
        self._answers = answers  # None: the connection is closed instead
        self._connection: socket.socket | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def volunteer(self, data: bytes) -> None:
        """Send something that nobody has asked for over the newest connection."""
        assert self._connection is not None
        self._connection.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        number = 0
        while self._answers:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            number += 1
            self._connection = connection
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is sent is there at once
            with connection, connection.makefile("rb") as reader:
                while self._answers and (head := _head(reader)):
                    length = next(int(one[15:]) for one in head.lower().split(b"\r\n") if one.startswith(b"content-l"))
                    self.asked.append((number, head, reader.read(length)))
                    told = self._answers.pop(0)
                    if told is None:
                        break
                    try:
                        connection.sendall(told)
                    except OSError:  # the client has read enough
                        break
                    if b"connection: close" in told.lower() or b"HTTP/1.0" in told or b"TORN" in told:
                        break


def _head(reader: BinaryIO) -> bytes:
    """Return the next request's first line and headers; nothing where the client has gone."""
    head = b""
    try:
        while (line := reader.readline()).strip():
            head += line
    except OSError:
        return b""
    return head


@pytest.fixture
def served() -> Iterator[Callable[..., tuple[Scripted, Client]]]:
    made: list[Scripted | Client] = []

    def serve(*answers: bytes | None) -> tuple[Scripted, Client]:
        server = Scripted(list(answers))
        client = Client(Settings.load(environ={}, endpoint=server.url, api_key="local-key", request_timeout_s=5.0))
        made.extend([client, server])
        return server, client

    yield serve
    for one in made:
        one.close()


Serve = Callable[..., tuple[Scripted, Client]]


def test_further_chunks_go_over_the_same_connection_with_the_same_headers(served: Serve) -> None:
    server, client = served(*[answer(confirmation(i)) for i in range(4)])

    for chunk in CHUNKS:
        client.push("metrology", "id", chunk)

    assert [number for number, *_ in server.asked] == [1, 1, 1, 1]
    said = [sorted(head.lower().replace(b": ", b":").split(b"\r\n")) for _, head, _ in server.asked]
    assert said[0] == said[1] == said[2] == said[3]
    assert b"x-api-key:local-key" in said[3]
    assert [body for *_, body in server.asked] == [push("metrology", "id", chunk).body for chunk in CHUNKS]


def test_streams_are_finalized_over_the_same_connection_each_at_its_own_path(served: Serve) -> None:
    server, client = served(*[answer(json.dumps({"data_id": f"id-{n}"}).encode()) for n in range(3)])

    for n in range(3):
        client.finalize("metrology", f"id-{n}")

    assert [number for number, *_ in server.asked] == [1, 1, 1]
    lines = [head.partition(b"\r\n") for _, head, _ in server.asked]
    assert [first for first, *_ in lines] == [
        b"POST /metrology/stream/id-%d/finalize HTTP/1.1" % n for n in range(3)
    ]  # fmt: skip
    said = [sorted(rest.lower().replace(b": ", b":").split(b"\r\n")) for *_, rest in lines]
    assert said[0] == said[1] == said[2]
    assert b"content-length:0" in said[2]


@pytest.mark.parametrize(
    "told",
    [
        answer(confirmation(1)),
        b"HTTP/1.1 100 Continue\r\n\r\n" + answer(confirmation(1)),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"
        + confirmation(1)[:5]
        + b"\r\n%x\r\n" % (len(confirmation(1)) - 5)
        + confirmation(1)[5:]
        + b"\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + confirmation(1),
        answer(confirmation(1), "Connection: close"),
        answer(confirmation(1), "Connection: Keep-Alive", "X-Folded: one", "\ttwo"),
        answer(confirmation(1) + b" " * 200_000),
        answer(confirmation(1), "X-Long: " + "x" * 60_000, "Y-Long: " + "y" * 60_000),
        answer(confirmation(1), status="201 Created"),
    ],
    ids=[
        "with its length",
        "after a continue",
        "in pieces",
        "to the end of the connection",
        "and no more",
        "and more",
        "in several parts",
        "with headers in several parts",
        "of another kind",
    ],
)
def test_an_answer_of_any_shape_is_read_and_the_next_chunk_is_sent(served: Serve, told: bytes) -> None:
    server, client = served(answer(confirmation(0)), told, answer(confirmation(2)), answer(confirmation(3)))

    for chunk in CHUNKS:
        client.push("metrology", "id", chunk)

    assert len(server.asked) == 4


def test_a_connection_that_the_server_closed_is_opened_again(served: Serve) -> None:
    server, client = served(answer(confirmation(0)), None, answer(confirmation(1)), answer(confirmation(2)))

    client.push("metrology", "id", CHUNKS[0])
    with pytest.raises(ApiUnavailableError):
        client.push("metrology", "id", CHUNKS[1])
    client.push("metrology", "id", CHUNKS[1])
    client.push("metrology", "id", CHUNKS[2])

    assert [number for number, *_ in server.asked] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "told",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX: TORN\r\n\r\n" + confirmation(1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: TORN\r\n\r\n500\r\n" + confirmation(1),
        b"SSH-2.0-TORN\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTORN: " + b"x" * 100_000 + b"\r\n\r\n",
        answer(confirmation(1), "Content-Encoding: gzip", "X: TORN"),
        answer(b"[" * (2 * 2**20), "X: TORN"),
    ],
    ids=["cut short", "cut short in pieces", "not HTTP", "an endless header", "packed", "without end"],
)
def test_an_answer_that_is_not_whole_counts_as_none_and_the_chunk_goes_again(served: Serve, told: bytes) -> None:
    _, client = served(answer(confirmation(0)), told, answer(confirmation(1)))

    client.push("metrology", "id", CHUNKS[0])
    with pytest.raises(ApiUnavailableError):
        client.push("metrology", "id", CHUNKS[1])
    client.push("metrology", "id", CHUNKS[1])


def test_a_server_that_drips_is_left_at_the_deadline_over_a_used_connection_too(server: LocalServer) -> None:
    client = Client(Settings.load(environ={}, endpoint=server.url, api_key="local-key", request_timeout_s=0.5))
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            client.connection.cut_if_late()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        data_id = client.initialize("metrology", label="x", points_per_chunk=2, links=Links())
        client.push("metrology", data_id, CHUNKS[0])
        server.misbehave(Fault(call="chunk_multi", drip_s=0.1, times=1))
        with pytest.raises(ApiUnavailableError, match="no complete answer"):
            client.push("metrology", data_id, CHUNKS[1])
        client.push("metrology", data_id, CHUNKS[1])
    finally:
        ended.set()
        watcher.join()
        client.close()


def test_cookies_are_not_kept_and_not_sent(served: Serve) -> None:
    cookies = [f"Set-Cookie: c{i}={'v' * 200}; Path=/; Max-Age=99999" for i in range(20)]
    told = [answer(confirmation(i), *cookies, *(["Connection: close"] if i % 2 else [])) for i in range(4)]
    server, client = served(*told)

    for chunk in CHUNKS:
        client.push("metrology", "id", chunk)

    assert [number for number, *_ in server.asked] == [1, 1, 2, 2]
    assert not any(b"cookie" in head.lower() for _, head, _ in server.asked)


@pytest.mark.parametrize(
    "stale",
    [
        answer(b'{"detail": "bad request"}', status="400 Bad Request"),
        answer(confirmation(1)),
        answer(b"{}", status="401 Unauthorized"),
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"\0",
    ],
    ids=["a refusal", "a confirmation of what comes next", "about the key", "an interim answer", "no HTTP"],
)
def test_an_unrequested_answer_is_not_taken_for_the_next_pushs(served: Serve, stale: bytes) -> None:
    server, client = served(*[answer(confirmation(i)) for i in range(4)])

    client.push("metrology", "id", CHUNKS[0])
    server.volunteer(stale)
    client.push("metrology", "id", CHUNKS[1])
    client.push("metrology", "id", CHUNKS[2])
    server.volunteer(stale)
    client.push("metrology", "id", CHUNKS[3])

    assert [number for number, *_ in server.asked] == [1, 2, 2, 3]
    assert [body for *_, body in server.asked] == [push("metrology", "id", chunk).body for chunk in CHUNKS]


NESTED = b'{"detail": ' + b"[" * 400 + b"]" * 400 + b"}"
ODD = {
    "nested deeper than can be written": (NESTED,),
    "nested deeper than can be read": (b"[" * 100_000,),
    "text that is no UTF-8": (b'{"detail": "\xff\xfe"}',),
    "a lone surrogate": (b'{"detail": "\\ud800"}',),
    "control codes": (b'{"detail": "\\u001b[2J"}',),
    "a page": (b"<html>sign in</html>",),
    "nothing": (b"",),
    "large": (b"x" * (4 * 2**20),),
    "packed": (b"\x1f\x8b", "Content-Encoding: gzip"),
    "cut short": (b"{", "Content-Length: 4000", "X: TORN"),
    "of two lengths": (b"{", "Content-Length: 4000"),
}


@pytest.mark.parametrize("used", [False, True], ids=["first", "over a used connection"])
@pytest.mark.parametrize(
    ("status", "error"),
    [("401 No", ApiKeyError), ("403 No", ApiKeyError), ("422 No", ApiRefusedError), ("503 No", ApiUnavailableError)],
)
@pytest.mark.parametrize("body", ODD.values(), ids=ODD.keys())
def test_a_status_means_the_same_whatever_the_body(
    served: Serve, body: tuple[bytes, str], status: str, error: type[Exception], used: bool
) -> None:
    first = [answer(confirmation(0))] if used else []
    server, client = served(*first, answer(*body, status=status), answer(confirmation(2)))

    if used:
        client.push("metrology", "id", CHUNKS[0])
    with pytest.raises(error, match=r"was answered \d+") as raised:
        client.push("metrology", "id", CHUNKS[1])
    client.push("metrology", "id", CHUNKS[2])

    assert len(str(raised.value)) < 500
    assert str(raised.value).isprintable()
    assert len(server.asked) == 2 + used


@pytest.mark.parametrize("used", [False, True], ids=["first", "over a used connection"])
@pytest.mark.parametrize(
    "interim",
    [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n" * 3],
    ids=["hints", "three times"],
)
def test_the_final_answer_counts_when_interim_ones_come_before_it(served: Serve, interim: bytes, used: bool) -> None:
    first = [answer(confirmation(0))] if used else []
    server, client = served(*first, interim + answer(confirmation(1)), answer(confirmation(2)))

    if used:
        client.push("metrology", "id", CHUNKS[0])
    client.push("metrology", "id", CHUNKS[1])
    client.push("metrology", "id", CHUNKS[2])

    assert len({number for number, *_ in server.asked}) == 1


@pytest.mark.parametrize("used", [False, True], ids=["first", "over a used connection"])
def test_a_success_with_two_lengths_counts_as_no_answer(served: Serve, used: bool) -> None:
    first = [answer(confirmation(0))] if used else []
    _, client = served(*first, answer(confirmation(1), "Content-Length: 5"), answer(confirmation(1)))

    if used:
        client.push("metrology", "id", CHUNKS[0])
    with pytest.raises(ApiUnavailableError):
        client.push("metrology", "id", CHUNKS[1])
    client.push("metrology", "id", CHUNKS[1])


def test_a_refusal_that_comes_before_the_body_was_read_is_a_refusal(served: Serve) -> None:
    _, client = served(answer(confirmation(0)), answer(b'{"detail": "no"}', status="413 Too Large"))

    client.push("metrology", "id", CHUNKS[0])
    with pytest.raises(ApiRefusedError) as raised:
        client.push("metrology", "id", CHUNKS[1])

    assert raised.value.status == 413
