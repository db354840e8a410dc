"""A port that can be opened and closed while the program runs, and connections that can be reset.

During a simulated outage the port is held without listening: connections are refused, and no other program can take it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import SettingsError
from .guard import Guard, is_loopback
from .middleware import ABORT, App

# How long a request in progress may go on when the server stops regularly.
GRACE_S = 2.0


class AbortableProtocol(H11Protocol):
    """Uvicorn's HTTP protocol. Each request's extensions hold the function that resets its connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})[ABORT] = self.abort
            await inner(scope, receive, send)

        self.app = app

    def abort(self) -> None:
        """Reset the connection, as a machine that has restarted would: no answer, nothing flushed."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            # a linger time of zero makes the system send RST instead of FIN
            with contextlib.suppress(OSError):
                sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
                )
        self.transport.abort()


class Listener:
    """One port. Call `bind` before the event loop runs, and `open` and `shut` inside it, any number of times."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._held_socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def bind(self) -> None:
        """Hold the port without listening. Port 0 becomes the number that the system gave.

        Raises:
            SettingsError: The port is taken, or the host is not an address of this machine.
        """
        if self._held_socket is not None:
            return
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # asyncio sends small answers at once (TCP_NODELAY) only if the protocol is named. Otherwise each takes 40 ms.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if sys.platform != "win32":
                # Allows opening the same port again at once. A port that another program listens on stays taken. On
                # Windows both hold without the option, which would there let two programs share a port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.host, self.port))
        except OSError as error:
            sock.close()
            raise SettingsError(
                f"port {self.port} of {self.host} cannot be used ({error.strerror or error}); "
                "stop the program that has it, or give another port (0 takes any free one)"
            ) from error
        self.port = sock.getsockname()[1]
        self._held_socket = sock

    def release(self) -> None:
        """Release the port. Idempotent. The listener must be shut."""
        if self._held_socket is not None:
            self._held_socket.close()
            self._held_socket = None

    @property
    def is_open(self) -> bool:
        """Return True while it listens."""
        return self._server is not None

    async def open(self, app: App) -> None:
        """Listen. Does nothing if it already listens."""
        if self._server is not None:
            return
        self.bind()
        config = uvicorn.Config(
            Guard(app, self.host),
            http=AbortableProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        held, self._held_socket = self._held_socket, None
        await server.startup(sockets=[held] if held is not None else None)
        await server.on_tick(0)
        self._server = server
        self._ticking = asyncio.create_task(_tick(server))

    async def shut(self, *, reset: bool = False) -> None:
        """Stop listening.

        Args:
            reset: Reset every connection, even in the middle of a request, and keep holding the port. Otherwise
                requests in progress get `GRACE_S` to end, and the port is free afterwards.
        """
        server, self._server = self._server, None
        if server is None:
            return
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        # Accept no more, and wait some turns of the loop before the rest. A connection that was just accepted is set up
        # in these turns. If its server were closed before that, asyncio would leave it open for good.
        loop = asyncio.get_running_loop()
        for sock in [sock for listening in server.servers for sock in listening.sockets]:
            with contextlib.suppress(NotImplementedError):  # Windows' own loop
                loop.remove_reader(sock.fileno())
        for _ in range(5):
            await asyncio.sleep(0)
        for listening in server.servers:
            listening.close()
        for connection in list(server.server_state.connections):
            if reset and isinstance(connection, AbortableProtocol):
                connection.abort()
            else:
                connection.shutdown()
        await _until(lambda: not server.server_state.connections, GRACE_S)
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await _until(lambda: not server.server_state.connections and not server.server_state.tasks, GRACE_S)
        if reset:
            self.bind()


async def _tick(server: uvicorn.Server) -> None:
    """Keep the Date header right, as uvicorn's own main loop would."""
    while True:
        await asyncio.sleep(1.0)
        await server.on_tick(0)


async def _until(done: Callable[[], bool], limit_s: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while not done() and loop.time() < end:
        await asyncio.sleep(0.005)


def check_host(host: str, *, allow_remote: bool) -> None:
    """Refuse an address that other machines could reach, unless `allow_remote` is set.

    Raises:
        SettingsError: `host` is not this machine's loopback.
    """
    if not is_loopback(host) and not allow_remote:
        raise SettingsError(
            f"this would listen on {host}, where other machines reach it; use 127.0.0.1, or say `allow_remote` "
            "(--allow-remote) if that is meant"
        )
