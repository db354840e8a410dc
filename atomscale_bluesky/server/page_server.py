"""Serves the page alone, for a source that is not the local server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..page import PageApp, Source
from .ending import ending_at_signals
from .listener import Listener


def serve_page(source: Source, *, port: int = 0, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve the page on the loopback, read only, until SIGINT or SIGTERM. Call it from the main thread.

    Args:
        source: What there is to see.
        port: Where to listen; 0 takes any free one.
        ready: Called with the address once it listens.

    Raises:
        SettingsError: The port is taken.
    """
    asyncio.run(_serve(PageApp(source), Listener("127.0.0.1", port), ready))


async def _serve(app: PageApp, listener: Listener, ready: Callable[[str], None]) -> None:
    with ending_at_signals() as ending:
        await listener.open(app)
        try:
            ready(listener.url)
            while not ending.is_set():
                await asyncio.sleep(0.1)
        finally:
            await listener.shut()
