"""The local server's port: opened and shut at any moment, and no connection is left behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from contextlib import suppress

import pytest

from atomscale_bluesky.server.listener import Listener


async def _nothing(scope: object, receive: object, send: object) -> None:
    """No request comes."""


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("turns", range(8))
def test_a_connection_that_comes_while_the_port_is_being_shut_is_closed(turns: int, reset: bool) -> None:
    async def connect_and_shut() -> bytes:
        listener = Listener("127.0.0.1", 0)
        await listener.open(_nothing)

        async def connect() -> socket.socket | None:
            for _ in range(turns):  # of the loop: the connection comes at another moment of `shut` each time
                await asyncio.sleep(0)
            try:
                return socket.create_connection(("127.0.0.1", listener.port))
            except ConnectionRefusedError:
                return None

        client, _ = await asyncio.gather(connect(), listener.shut(reset=reset))
        listener.release()
        if client is None:
            return b""
        with client:
            client.settimeout(10)
            return client.recv(1)

    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always", ResourceWarning)
        with suppress(ConnectionResetError):
            assert asyncio.run(connect_and_shut()) == b""
        gc.collect()

    assert [str(one.message) for one in left_open] == []
