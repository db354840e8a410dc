"""The entry of every request: reads its body up to the limit, identifies and logs it, and applies a fault if due.

Sits before the routes as plain ASGI. An answer is complete before any of it is sent, so that it can be dropped, spoiled
or sent byte by byte. Delayed requests, and those to be applied later, end with the server: if they are not applied by
then, they never are.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from .faults import CallName, Fault, FaultTable, Request
from .guard import App, Message, Receive, Scope, Send
from .options import Family, Options
from .request_log import RequestLog, RequestRecord

# The key under which `listener` puts the function that resets the connection into a request's extensions.
ABORT = "atomscale_bluesky.abort"
# A body above the limit is still read up to this size, and discarded: an answer in the middle would reset the
# connection.
DRAINED_BYTES = 64 * 1024 * 1024
LOGGED_HEADERS = (
    *("content-type", "content-length", "content-encoding", "user-agent", "accept", "cache-control", "connection"),
    "host",
)
FAMILIES = {family.value for family in Family}
NAMES: dict[tuple[str, ...], CallName] = {
    ("data_entries",): CallName.CATALOGUE,
    ("data_entries", "physical_sample"): CallName.LINK_SAMPLE,
    ("instruments", "synthesis"): CallName.INSTRUMENTS,
    ("physical_samples",): CallName.SAMPLES,
    ("projects",): CallName.PROJECTS,
    ("tags",): CallName.TAGS,
    ("tags", "data-items"): CallName.ATTACH_TAGS,
    ("gateway", "time"): CallName.TIME,
}


class _EndingError(Exception):
    """The server ends while a request waits: its connection is reset, as with any server that ends."""


class _StreamingNames(msgspec.Struct):
    """The members of a streaming body that identify it. Its numbers are skipped."""

    data_id: str | None = None
    chunk_index: int | None = None
    channel_name: str | None = None
    channels: dict[str, msgspec.Raw] = {}
    stream_name: str | None = None


@dataclass(slots=True)
class WholeResponse:
    """A complete response."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] | None = None
    body: bytes = b""


class Middleware:
    """The ASGI application behind the server's port."""

    def __init__(
        self,
        app: App,
        options: Options,
        faults: FaultTable,
        log: RequestLog,
        label_of: Callable[[str], str | None],
    ) -> None:
        self._app = app
        self._options = options
        self._faults = faults
        self._log = log
        self._label_of = label_of
        self._closing = asyncio.Event()
        self._applied_later: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End the waits of delayed requests, and drop those that were to be applied later."""
        self._closing.set()
        for task in list(self._applied_later):
            task.cancel()
        await asyncio.gather(*self._applied_later, return_exceptions=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None:
            return
        record, request = self._describe_request(scope, body)
        self._log.begin(record)
        started = time.monotonic()
        try:
            drawn = self._faults.draw(request, started)
            if drawn is not None:
                record.fault, fault = drawn
                await self._misbehave(fault, request, record, scope, body, receive, send)
            else:
                await self._send(await self._handle(scope, body, record), record, send)
        except _EndingError:
            await _abort(scope, receive)
        finally:
            self._log.end(record, time.monotonic() - started)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body; zeros, one byte more than allowed, if it is too large; None if the client left early."""
        parts: list[bytes] = []
        size, limit = 0, self._options.max_body_bytes
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= limit:
                parts.append(part)
            elif size > DRAINED_BYTES:
                return bytes(limit + 1)
            if not message.get("more_body", False):
                return b"".join(parts) if size <= limit else bytes(limit + 1)

    def _describe_request(self, scope: Scope, body: bytes) -> tuple[RequestRecord, Request]:
        parts = tuple(part for part in scope["path"].split("/") if part)
        call, family, data_id = _call_of(parts)
        names = _StreamingNames()
        if call in (CallName.INITIALIZE, CallName.CHUNK, CallName.CHUNK_MULTI):
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                names = msgspec.json.decode(body, type=_StreamingNames)
        data_id = data_id or names.data_id
        label = names.stream_name
        if label is None and data_id is not None:
            label = self._label_of(data_id)
        channels = (names.channel_name,) if names.channel_name is not None else tuple(names.channels)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(call, scope["method"], family, data_id, names.chunk_index, channels, label, len(body))
        record = RequestRecord(
            number=0,
            time=time.time(),
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            headers={name: value for name, value in headers.items() if name in LOGGED_HEADERS},
            key=_key_of(headers, self._options.api_key),
            client_port=(scope.get("client") or ("", 0))[1],
            size=len(body),
            call=call.value,
            family=family,
            data_id=data_id,
            label=label,
            chunk_index=names.chunk_index,
            channels=channels,
        )
        return record, request

    async def _handle(self, scope: Scope, body: bytes, record: RequestRecord) -> WholeResponse:
        """Let the routes apply the request."""
        if len(body) > self._options.max_body_bytes:
            detail = f"the body has more than {self._options.max_body_bytes} bytes"
            answer = WholeResponse(413, _json_headers(), msgspec.json.encode({"detail": detail}))
            record.handled = answer.status
            return answer
        answer = WholeResponse()
        given = False

        async def receive() -> Message:
            nonlocal given
            if given:
                await self._closing.wait()
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], list(message.get("headers", ()))
            elif message["type"] == "http.response.body":
                answer.body += message.get("body", b"")

        await self._app(scope, receive, send)
        record.handled = answer.status
        if record.call == CallName.INITIALIZE.value and answer.status == 200:
            record.data_id = msgspec.json.decode(answer.body)["data_id"]
        return answer

    async def _misbehave(
        self,
        fault: Fault,
        request: Request,
        record: RequestRecord,
        scope: Scope,
        body: bytes,
        receive: Receive,
        send: Send,
    ) -> None:
        delay_s = fault.delay_s + fault.delay_each_s * (self._log.under_way - 1)
        if delay_s:
            await self._wait(delay_s)
        if fault.partly is not None and request.call is CallName.CHUNK_MULTI:
            body = _first_channels(body, fault.partly)
        if fault.hang:
            await self._hang(receive)
        elif fault.reset_before:
            await _abort(scope, receive)
        elif fault.reset_after:
            await self._handle(scope, body, record)
            await _abort(scope, receive)
        elif fault.apply_later_s is not None:
            task = asyncio.create_task(self._apply_later(fault.apply_later_s, scope, body, record))
            self._applied_later.add(task)
            task.add_done_callback(self._applied_later.discard)
            await _abort(scope, receive)
        elif fault.status is not None or fault.body is not None:
            if fault.applied:
                await self._handle(scope, body, record)
            await self._send(_canned(fault, request), record, send)
        else:
            answer = await self._handle(scope, body, record)
            if fault.garble is not None:
                answer = _garbled(answer, fault.garble)
            await self._send(answer, record, send, pause_s=fault.drip_s)

    async def _apply_later(self, seconds: float, scope: Scope, body: bytes, record: RequestRecord) -> None:
        with suppress(_EndingError):
            await self._wait(seconds)
            await self._handle(scope, body, record)

    async def _wait(self, seconds: float) -> None:
        """Wait, unless the server ends first."""
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return
        raise _EndingError

    async def _hang(self, receive: Receive) -> None:
        """Do nothing until the client leaves, or the server ends."""
        gone, ending = asyncio.ensure_future(_until_client_leaves(receive)), asyncio.ensure_future(self._closing.wait())
        await asyncio.wait({gone, ending}, return_when=asyncio.FIRST_COMPLETED)
        for waiting in gone, ending:
            waiting.cancel()
        await asyncio.gather(gone, ending, return_exceptions=True)
        if self._closing.is_set():
            raise _EndingError

    async def _send(
        self, answer: WholeResponse, record: RequestRecord, send: Send, *, pause_s: float | None = None
    ) -> None:
        record.status = answer.status
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers or []})
        if pause_s is not None:
            for byte in answer.body:
                await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
                await self._wait(pause_s)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _call_of(parts: tuple[str, ...]) -> tuple[CallName, str | None, str | None]:
    """Return the call, its family and the data_id in its path."""
    if parts and parts[0] in FAMILIES:
        family = parts[0]
        match parts[1:]:
            case ("stream", "initialize"):
                return CallName.INITIALIZE, family, None
            case ("stream", "chunk"):
                return CallName.CHUNK, family, None
            case ("stream", "chunk", "multi"):
                return CallName.CHUNK_MULTI, family, None
            case ("stream", data_id, "finalize"):
                return CallName.FINALIZE, family, data_id
            case (data_id, "timeseries"):
                return CallName.READ, family, data_id
        return CallName.OTHER, family, None
    if len(parts) > 2 and parts[0] == "projects":
        return (CallName.TRACK_SAMPLE if parts[-1] == "tracking_samples" else CallName.PROJECTS), None, None
    if parts not in NAMES and len(parts) == 2 and parts[0] == "data_entries":
        return CallName.CHANGE_ENTRY, None, parts[1]
    return NAMES.get(parts, CallName.OTHER), None, None


def _key_of(headers: dict[str, str], right: str) -> Any:
    if "x-api-key" not in headers:
        return "absent"
    return "right" if hmac.compare_digest(headers["x-api-key"].encode(), right.encode()) else "wrong"


def _json_headers() -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json")]


def _canned(fault: Fault, request: Request) -> WholeResponse:
    """Return the answer that a fault gives instead. Only the framing declares its length, unless the fault does."""
    status = 200 if fault.status is None else fault.status
    if fault.body is not None:
        body = fault.body.encode()
    elif status in (204, 304):
        body = b""
    else:
        about = f" about channel {fault.channel!r}" if fault.channel is not None else ""
        body = msgspec.json.encode({"detail": f"a fault was ordered for {request.call.value}{about}"})
    headers = {"content-type": fault.content_type, "content-length": str(len(body))}
    if status in (204, 304):
        headers = {}
    headers |= {name.lower(): value for name, value in fault.headers.items()}
    return WholeResponse(
        status, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()], body
    )


def _garbled(answer: WholeResponse, how: str) -> WholeResponse:
    if how == "empty":
        body = b""
    elif how == "half":
        body = answer.body[: len(answer.body) // 2]
    else:
        value = msgspec.json.decode(answer.body)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and isinstance(item.get("chunk_index"), int):
                item["chunk_index"] += 1
        body = msgspec.json.encode(value)
    headers = [header for header in answer.headers or [] if header[0].lower() != b"content-length"]
    return WholeResponse(answer.status, [*headers, (b"content-length", str(len(body)).encode())], body)


def _first_channels(body: bytes, count: int) -> bytes:
    try:
        value = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        channels = msgspec.json.decode(value["channels"], type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, KeyError):
        return body
    kept = dict(list(channels.items())[:count])
    return msgspec.json.encode({**value, "channels": kept})


async def _abort(scope: Scope, receive: Receive) -> None:
    scope["extensions"][ABORT]()
    await _until_client_leaves(receive)


async def _until_client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
