"""A requests adapter whose requests end at a deadline, whatever the server does.

Time-outs of the library are between bytes: a server that sends one byte now and then, in the headers above all, holds
a request for as long as it likes. So each connection says which socket it uses, and another thread shuts that down when
the time is over; the one that waits then sees a broken connection. Never retries.

Requests and urllib3 take some 350 µs of a processor per request, of which nearly all is deciding again what was decided
for the one before: proxy, certificates, headers, cookies. `exchange` sends a further one of the same kind over the
connection that they have made, for some 50 µs.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPResponse, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection


class DeadlineAdapter(HTTPAdapter):
    """Adapter for one thread's session, with one connection.

    `begin` starts the time of a request, `end` stops it, and `cut_if_late`, called from another thread now and then,
    ends a request that took too long.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        self._connection: HTTPConnection | None = None
        self._deadline: float | None = None
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def begin(self, deadline: float) -> None:
        """The request that begins must be over at this time."""
        with self._guard:
            self._deadline = deadline

    def end(self) -> None:
        """The request is over."""
        with self._guard:
            self._deadline = None

    def cut_if_late(self, now: float) -> bool:
        """Break the connection of a request that is past its deadline; whether there was one."""
        with self._guard:
            late = self._deadline is not None and now > self._deadline
            if late and self._socket is not None:
                with contextlib.suppress(OSError):
                    # The plain socket's method: that of a TLS socket would change it under the hands of its reader.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return late

    @contextlib.contextmanager
    def exchange(self, head: bytes, body: bytes, timeout_s: float) -> Iterator[HTTPResponse | None]:
        """Send a request over the connection that an earlier one has left open; gives the answer, to be read.

        None where there is no such connection, or one through a proxy: then requests knows what to do. A connection
        that cannot be used again afterwards is closed, and requests makes another.

        Args:
            head: As `head_of` gives it, of a request that requests sent to the same address.
            body: Its length is added to the head.
            timeout_s: For each wait.

        Raises:
            OSError, http.client.HTTPException: No answer, or none that HTTP knows.
        """
        connection = self._connection
        if connection is None or not connection.is_connected or connection.proxy is not None:
            yield None
            return
        sound = False
        try:
            connection.sock.settimeout(timeout_s)
            # A server may answer and close before it has read all: then its answer is what counts.
            with contextlib.suppress(BrokenPipeError):
                connection.sock.sendall(b"%bContent-Length: %d\r\n\r\n" % (head, len(body)))
                connection.sock.sendall(body)
            with contextlib.closing(HTTPResponse(connection.sock, method="POST")) as response:
                response.begin()
                yield response
                if response.length:
                    raise IncompleteRead(b"", response.length)
                sound = not response.will_close and (response.length == 0 or response.isclosed())  # read to its end
        finally:
            if not sound:
                connection.close()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool of direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Make the pool of connections through a proxy."""
        return self._watch(super().proxy_manager_for(*args, **kwargs))

    def _watch(self, manager: PoolManager) -> PoolManager:
        connected = self._connected

        class Connection(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                connected(self)

        class SecureConnection(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                connected(self)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection  # pyright: ignore[reportAssignmentType] - as urllib3's own pools do

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = SecureConnection  # pyright: ignore[reportAssignmentType]

        manager.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}
        return manager

    def _connected(self, connection: HTTPConnection) -> None:
        with self._guard:
            self._connection = connection
            self._socket = connection.sock


def head_of(request: PreparedRequest) -> bytes:
    """A request's first line and headers, but for the length of its body, as they go over the wire."""
    names = {"host": urlsplit(request.url or "").netloc, **request.headers}
    names.pop("Content-Length", None)
    headers = "".join(f"{name}: {_text(value)}\r\n" for name, value in names.items())
    return f"{request.method} {request.path_url} HTTP/1.1\r\n{headers}".encode("latin-1")


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
