"""A requests adapter whose requests end at a deadline, whatever the server does.

The library's time-outs apply between two bytes. A server that sends one byte now and then, especially in the headers,
could hold a request for any length of time. So each connection says which socket it uses, and another thread shuts that
socket down at the deadline. The waiting thread then sees a broken connection. Never retries.

Requests and urllib3 take about 350 µs of processor time per request. Nearly all of it goes into decisions that were the
same for the previous request: proxy, certificates, headers, cookies. `exchange` sends another request of the same kind
over their open connection in about 50 µs. Every blocking call releases Python's lock and has to queue for it again, so
an ordinary exchange makes only three: one checks whether the connection is still good, one sends, and one receives. The
check takes about 6 µs and is made every time: bytes that arrive before a request is sent, such as a second answer to an
earlier request, would be taken for its answer.
"""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.client import CONTINUE, SWITCHING_PROTOCOLS, HTTPException, HTTPResponse, IncompleteRead
from typing import Any, Protocol
from urllib.parse import urlsplit

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidProxyURL
from requests.utils import get_auth_from_url, prepend_scheme_if_needed, select_proxy
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

# Up to this size, copying the body is cheaper than a second call.
_ONE_SEND_BYTES = 2**19
_RECEIVED_BYTES = 2**16
_NOT_PLAIN = frozenset({b"transfer-encoding", b"content-encoding"})
_PROXY_SCHEMES = frozenset({"http", "https", "socks4", "socks4a", "socks5", "socks5h"})
_LENGTH_DIGITS = 19  # digits of a plausible length


class DeadlineAdapter(HTTPAdapter):
    """Adapter for one thread's session, with one connection.

    `begin` starts the time of a request and `end` stops it. Another thread regularly calls `cut_if_late`, which ends a
    request that takes too long.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        self._connection: HTTPConnection | None = None
        self._deadline: float | None = None
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def begin(self, deadline: float) -> None:
        """Note that a request begins, which must be over at the time `deadline`."""
        with self._guard:
            self._deadline = deadline

    def end(self) -> None:
        """Note that the request is over."""
        with self._guard:
            self._deadline = None

    def cut_if_late(self, now: float) -> bool:
        """Break the connection of a request that is past its deadline. Return True if there was one."""
        with self._guard:
            late = self._deadline is not None and now > self._deadline
            if late and self._socket is not None:
                with contextlib.suppress(OSError):
                    # The plain socket's method: that of a TLS socket would change the socket while another thread reads
                    # from it.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return late

    @contextlib.contextmanager
    def exchange(self, head: bytes, parts: Sequence[bytes], timeout_s: float) -> Iterator[Response | None]:
        """Send a request over the connection that an earlier one has left open, and yield the answer, to be read.

        Yield None if there is no such connection, or if it goes through a proxy, which only requests can handle. A
        connection that cannot be used again afterwards is closed, and requests makes another.

        Args:
            head: The first line, and the result of `headers_of` for a request of this kind that requests has sent.
            parts: The body. Its length is added to the head.
            timeout_s: The limit of each wait.

        Raises:
            OSError, http.client.HTTPException: There was no answer, or none that is valid HTTP.
        """
        connection = self._connection
        if connection is None or connection.proxy is not None:
            yield None
            return
        if not connection.is_connected:
            connection.close()  # nothing was sent over it yet, so requests makes another and nothing is lost
            yield None
            return
        sound = False
        try:
            size = sum(map(len, parts))
            first_bytes = _send_and_receive(
                connection.sock, b"%bContent-Length: %d\r\n\r\n" % (head, size), parts, size, timeout_s
            )
            response = _PlainResponse.of(first_bytes, connection.sock)
            if response is None:  # a chunked answer, say: the library can read every kind
                response = _FinalResponse(_StartedSocket(first_bytes, connection.sock), method="POST")  # pyright: ignore[reportArgumentType]
            with contextlib.closing(response):
                if isinstance(response, HTTPResponse):
                    response.begin()
                yield response
                if response.length and _is_success(response.status):  # of any other answer the beginning is enough
                    raise IncompleteRead(b"", response.length)
                sound = not response.will_close and (response.length == 0 or response.isclosed())  # read to its end
        finally:
            if not sound:
                connection.close()

    def get_connection_with_tls_context(
        self, request: PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """Return the connection pool for a request.

        Raises:
            InvalidProxyURL: The environment names a proxy that cannot be used. The error's text does not quote it.
        """
        proxy = select_proxy(request.url or "", proxies)
        if proxy and not _is_usable(proxy):
            raise InvalidProxyURL(
                "the proxy that the environment names cannot be used; HTTPS_PROXY, HTTP_PROXY or ALL_PROXY must be "
                "like http://user:password@host:port, with all but letters and digits of user and password as %XX"
            )
        return super().get_connection_with_tls_context(request, verify, proxies, cert)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool of direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Make the pool of connections through a proxy."""
        return self._watch(super().proxy_manager_for(*args, **kwargs))

    def _watch(self, manager: PoolManager) -> PoolManager:
        connected, dialled = self._connected, self._dialled

        class Connection(HTTPConnection):
            response_class = _FinalResponse

            def _new_conn(self) -> socket.socket:
                return dialled(super()._new_conn())

            def connect(self) -> None:
                super().connect()
                connected(self)

        class SecureConnection(HTTPSConnection):
            response_class = _FinalResponse

            @property
            def is_connected(self) -> bool:
                unread = getattr(self.sock, "pending", int)  # bytes that TLS has already read from the system
                return super().is_connected and not unread()

            def _new_conn(self) -> socket.socket:
                return dialled(super()._new_conn())

            def connect(self) -> None:
                super().connect()
                connected(self)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection  # pyright: ignore[reportAssignmentType] - as urllib3's own pools do

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = SecureConnection  # pyright: ignore[reportAssignmentType]

        manager.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}
        return manager

    def _dialled(self, sock: socket.socket) -> socket.socket:
        """Note a socket before a proxy's CONNECT and TLS, which may take any time, and return it."""
        with self._guard:
            self._socket = sock
        return sock

    def _connected(self, connection: HTTPConnection) -> None:
        with self._guard:
            self._connection = connection
            self._socket = connection.sock


class Response(Protocol):
    """An answer whose headers have been read."""

    status: int
    headers: Any  # finds a name in any case
    length: int | None  # of the unread part of the body, if known
    will_close: bool

    def read1(self, size: int, /) -> bytes:
        """Return some of the body, or nothing at its end."""
        ...

    def isclosed(self) -> bool:
        """Return True if the answer was read to its end."""
        ...

    def close(self) -> None:
        """Stop reading the answer."""
        ...


class _FinalResponse(HTTPResponse):
    """The final answer to a request, after any interim answers.

    http.client skips only "100 Continue", and takes the first of several lengths.
    """

    length: int | None
    will_close: bool

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # pyright: ignore[reportAttributeAccessIssue]
        interim = 100 <= status < 200 and status != SWITCHING_PROTOCOLS
        return version, CONTINUE if interim else status, reason

    def begin(self) -> None:
        """Read status and headers.

        Raises:
            HTTPException: It is ambiguous where the answer ends.
        """
        super().begin()
        lengths = set(self.headers.get_all("Content-Length") or ())
        if len(lengths) > 1:
            if _is_success(self.status):
                raise HTTPException(f"an answer with {len(lengths)} different lengths")
            del self.headers["Content-Length"]
            self.length = None
        if len(lengths) > 1 or (self.chunked and lengths):  # a proxy in between may see another end
            self.will_close = True


class _PlainResponse:
    """A success of known length over a connection that stays open, like nearly every answer."""

    status = 200
    headers: Mapping[str, str] = {}  # it has none of the headers that matter

    def __init__(self, length: int, body: bytes, sock: socket.socket) -> None:
        self.length: int | None = length
        self.will_close = len(body) > length  # the rest belongs to nothing known
        self._body = body
        self._sock = sock

    @classmethod
    def of(cls, first_bytes: bytes, sock: socket.socket) -> _PlainResponse | None:
        """Return the answer that begins like this, or None if it is of another kind or its headers are not complete."""
        head, end, body = first_bytes.partition(b"\r\n\r\n")
        length = _plain_length(head) if end else None
        return None if length is None else cls(length, body, sock)

    def read1(self, size: int, /) -> bytes:
        size = min(size, self.length or 0)
        part = self._body[:size] if self._body else self._sock.recv(size) if size else b""
        self._body = self._body[size:]
        self.length = (self.length or 0) - len(part)
        return part

    def isclosed(self) -> bool:
        return not self.length

    def close(self) -> None:
        self._body = b""


class _StartedSocket(io.RawIOBase):
    """A socket from which some bytes were already received, as a file for the library to read."""

    def __init__(self, first_bytes: bytes, sock: socket.socket) -> None:
        self._begin = first_bytes
        self._sock = sock

    def makefile(self, *_: object) -> io.BufferedReader:
        """Return the file that `HTTPResponse` reads from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._begin:
            return self._sock.recv_into(buffer)
        size = min(len(buffer), len(self._begin))
        buffer[:size] = self._begin[:size]
        self._begin = self._begin[size:]
        return size


def _is_usable(proxy: str) -> bool:
    """Return True if a proxy's URL is unambiguous.

    The errors of requests and urllib3 quote a URL that they cannot parse, including its password. A URL with a bare "/"
    or "#" in its password parses to another host, with the rest of the password in its path.
    """
    try:
        parts = parse_url(prepend_scheme_if_needed(proxy, "http"))
        "".join(get_auth_from_url(proxy)).encode("latin-1")
    except (LocationParseError, TypeError, ValueError):  # TypeError: from requests, if there is no host
        return False
    rest = (parts.path or "/", parts.query, parts.fragment)
    return bool(parts.host) and (parts.scheme or "").lower() in _PROXY_SCHEMES and rest == ("/", None, None)


def _send_and_receive(sock: socket.socket, head: bytes, parts: Sequence[bytes], size: int, timeout_s: float) -> bytes:
    """Send a request and return the first bytes of the answer."""
    if sock.gettimeout() != timeout_s:
        sock.settimeout(timeout_s)
    # A server may answer and close before it has read all of the request. Then its answer counts.
    with contextlib.suppress(BrokenPipeError):
        for data in (head, *parts) if size >= _ONE_SEND_BYTES else (b"".join((head, *parts)),):
            sock.sendall(data)
    return sock.recv(_RECEIVED_BYTES)


@functools.lru_cache(maxsize=16)  # answers to the same kind of request have the same few heads
def _plain_length(head: bytes) -> int | None:
    """Return how long the body is behind this status line and these headers, or None if the answer is not plain."""
    status, *lines = head.lower().split(b"\r\n")
    if not status.startswith(b"http/1.1 200 "):
        return None
    headers = {name: text.strip() for name, _, text in [line.partition(b":") for line in lines]}
    length = headers.get(b"content-length", b"")
    if len(headers) != len(lines) or not (length.isdigit() and len(length) < _LENGTH_DIGITS):
        return None
    if headers.get(b"connection", b"keep-alive") != b"keep-alive" or not headers.keys().isdisjoint(_NOT_PLAIN):
        return None
    return int(length)


def headers_of(request: PreparedRequest) -> bytes:
    """Return a request's headers as they are sent, without its body's length."""
    names = {"host": urlsplit(request.url or "").netloc, **request.headers}
    names.pop("Content-Length", None)
    return "".join(f"{name}: {_text(value)}\r\n" for name, value in names.items()).encode("latin-1")


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
