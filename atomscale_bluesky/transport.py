"""A requests adapter whose requests end at a deadline, whatever the server does.

Time-outs of the library are between bytes: a server that sends one byte now and then, in the headers above all, holds
a request for as long as it likes. So each connection says which socket it uses, and another thread shuts that down when
the time is over; the one that waits then sees a broken connection. Never retries.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

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
                connected(self.sock)

        class SecureConnection(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                connected(self.sock)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection  # pyright: ignore[reportAssignmentType] - as urllib3's own pools do

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = SecureConnection  # pyright: ignore[reportAssignmentType]

        manager.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}
        return manager

    def _connected(self, sock: Any) -> None:
        with self._guard:
            self._socket = sock
