"""A wire between a client and a server on this machine, which a test can cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Wire:
    """Passes bytes on in both directions, each connection in threads of its own."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.cut_after: int | None = None  # so many bytes of an answer pass, then all connections end
        self.silent = threading.Event()  # while it is set, no byte passes, and nobody is told
        self.waits = threading.Event()  # a byte waits while it is silent
        self._open: list[socket.socket] = []
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """End all connections, and take no more."""
        self._closed.set()
        self.silent.clear()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._end_all()
        for thread in self._threads:
            thread.join(10)
        for end in self._open:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._open += [client, server]
            for one, other, answers in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._pass_on, args=(one, other, answers), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, one: socket.socket, other: socket.socket, answers: bool) -> None:
        passed = 0
        with suppress(OSError):
            while block := one.recv(4096):
                while self.silent.is_set() and not self._closed.is_set():
                    self.waits.set()
                    self._closed.wait(0.05)
                if answers and self.cut_after is not None and passed + len(block) > self.cut_after:
                    self._end_all(one, other)
                    return
                passed += len(block)
                other.sendall(block)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _end_all(self, *last: socket.socket) -> None:
        """End the connections of this moment, those in use last: who notices it uses another one or connects again."""
        for end in [*(end for end in self._open if end not in last), *last]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
