"""A relay of TCP connections on the loopback interface, which drops them when it is told to."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

# How often the relay finds out that it was closed.
ACCEPT_S = 0.2


class Relay:
    """Passes connections on to a port of this machine. Close it at the end."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._sockets: set[socket.socket] = set()
        self._away = threading.Event()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(ACCEPT_S)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self, for_s: float) -> None:
        """Drop all connections, and each new one during `for_s`."""
        self._away.set()
        self._drop()
        self._closed.wait(for_s)
        self._away.clear()

    def close(self) -> None:
        """Drop all connections, and take no further ones."""
        self._closed.set()
        self._threads[0].join()
        self._listener.close()
        self._drop()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                one, _ = self._listener.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._connect, args=(one,))
            self._threads.append(thread)
            thread.start()

    def _connect(self, one: socket.socket) -> None:
        with one, suppress(OSError), socket.create_connection(("127.0.0.1", self._to_port)) as other:
            self._sockets |= {one, other}
            back = threading.Thread(target=self._pass, args=(other, one))
            back.start()
            self._pass(one, other)
            back.join()
            self._sockets -= {one, other}

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while not self._away.is_set() and (some := one.recv(65536)):
                other.sendall(some)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        for each in self._sockets.copy():
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
