"""A server that is not the bottleneck: valid answers to the streaming calls, and nothing behind them.

`python -m benchmarks.sink` prints the port it took and serves until its input ends, so it goes when its parent does.
It keeps no points and looks into a body no further than it must: the channels of a stream are read from its first
chunk, later chunks of it are answered from their index. Whether what arrives is right is the local server's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import orjson

_NO_ROUTE = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_INDEX = b'"chunk_index":'
_ID = b'"data_id":'


class Counted(NamedTuple):
    """What a sink has received, and what that cost it."""

    requests: int
    chunks: int
    series: int  # channels of chunks
    bytes: int
    cpu_s: float
    connections: int  # the most that there were at a time since the last question, this question's among them
    chunks_s: float  # from the arrival of the first chunk after the last question to the answer to the last one


class _Sink(asyncio.Protocol):
    channels: ClassVar[dict[tuple[bytes, bytes], tuple[list[bytes], int]]] = {}  # stream, channel → all beside it, size
    delay_s = 0.0  # before a chunk is answered
    single_only = False  # there is no way to push several channels at once
    requests = chunks = series = received = now = most = 0
    first = last = 0.0  # when the first chunk came, and the last one was answered

    def connection_lost(self, exc: Exception | None) -> None:
        _Sink.now -= 1

    def connection_made(self, transport: Any) -> None:
        _Sink.now += 1
        _Sink.most = max(_Sink.most, _Sink.now)
        self._transport = transport
        self._data = bytearray()
        self._needed = 0

    def data_received(self, data: bytes) -> None:
        _Sink.received += len(data)
        self._data += data
        while len(self._data) >= self._needed:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._data[:end])
            length, expects = _length(head)
            if expects and not self._needed:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._needed = end + 4 + length
            if len(self._data) < self._needed:
                return
            body = bytes(memoryview(self._data)[end + 4 : self._needed])
            del self._data[: self._needed]
            self._needed = 0
            path = head[: head.index(b"\r\n")].split(b" ")[1]
            if _Sink.single_only and path.endswith(b"/multi"):
                self._transport.write(_NO_ROUTE)
                continue
            chunk = b"/chunk" in path
            if chunk:
                _Sink.first = _Sink.first or time.perf_counter()
            answer = self._answer(path, body)
            if chunk and _Sink.delay_s:
                asyncio.get_running_loop().call_later(_Sink.delay_s, self._tell, answer)
            else:
                self._tell(answer, chunk=chunk)

    def _tell(self, answer: bytes, *, chunk: bool = True) -> None:
        self._transport.write(_HEAD % (len(answer), answer))
        if chunk:
            _Sink.last = time.perf_counter()

    def _answer(self, path: bytes, body: bytes) -> bytes:
        _Sink.requests += 1
        if path.endswith(b"/chunk/multi"):
            return self._multi(body)
        if path.endswith(b"/chunk"):
            _Sink.chunks += 1
            _Sink.series += 1
            return b'{"data_id":%b,"chunk_index":%b,"channel_name":%b}' % (
                _text(body, _ID), _number(body, _INDEX), _text(body, b'"channel_name":'),
            )  # fmt: skip
        if path.endswith(b"/initialize"):
            data_id = str(uuid.uuid4()).encode()
            return b'{"data_id":"%b","processed_data_id":"%b"}' % (data_id, data_id)
        if path.endswith(b"/finalize"):
            return b'{"data_id":"%b","status":"success"}' % path.split(b"/")[-2]
        if path == b"/gateway/time":
            now = time.time() * 1000.0
            return orjson.dumps({"receivedAtUnixMs": now, "transmittedAtUnixMs": now})
        if path == b"/counted":
            told = (_Sink.requests, _Sink.chunks, _Sink.series, _Sink.received, time.process_time())
            counted = Counted(*told, _Sink.most, _Sink.last - _Sink.first)
            _Sink.most, _Sink.first = _Sink.now, 0.0
            return orjson.dumps(tuple(counted))
        return b"[]"

    def _multi(self, body: bytes) -> bytes:
        data_id, index, first = _text(body, _ID), _number(body, _INDEX), _text(body, b'"channels":')
        names, size = _Sink.channels.get((data_id, first), ([], 0))
        # Chunks of a stream have the same channels, unless a large one comes in parts.
        if abs(len(body) - size) > 0.03 * size:
            names = [orjson.dumps(name) for name in orjson.loads(body)["channels"]]
            _Sink.channels.update(dict.fromkeys(((data_id, name) for name in names), (names, len(body))))
        _Sink.chunks += 1
        _Sink.series += len(names)
        begin = b'{"data_id":%b,"chunk_index":%b,"channel_name":' % (data_id, index)
        return b"[" + b",".join([begin + name + b"}" for name in names]) + b"]"


def _length(head: bytes) -> tuple[int, bool]:
    lower = head.lower()
    at = lower.find(b"content-length:")
    length = int(lower[at + 15 :].partition(b"\r\n")[0]) if at >= 0 else 0
    return length, b"100-continue" in lower


def _value(body: bytes, name: bytes) -> bytes:
    at = body.find(name, 0, 400)
    if at < 0:
        at = body.rfind(name)
    begin = at + len(name)
    return body[begin : begin + 400].lstrip(b" {")


def _text(body: bytes, name: bytes) -> bytes:
    value = _value(body, name)
    return value[: value.index(b'"', 1) + 1]


def _number(body: bytes, name: bytes) -> bytes:
    value = _value(body, name)
    end = 0
    while value[end : end + 1].isdigit():
        end += 1
    return value[:end]


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


def counted(url: str) -> Counted:
    """What a sink has counted so far."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{url}/counted", timeout=10.0) as answer:
        return Counted(*orjson.loads(answer.read()))


@contextlib.contextmanager
def sink(delay_s: float = 0.0, *, single_only: bool = False) -> Iterator[str]:
    """A sink in a process of its own, which answers each chunk after this delay; its URL."""
    with serving([sys.executable, "-m", "benchmarks.sink", str(delay_s), *["single"] * single_only]) as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """A server that prints one line when it listens; that line. It is ended with the block."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a started program has no pipes")
        yield process.stdout.readline().strip()
    finally:
        if process.stdin:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


if __name__ == "__main__":
    _Sink.delay_s = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    _Sink.single_only = "single" in sys.argv[2:]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve())
