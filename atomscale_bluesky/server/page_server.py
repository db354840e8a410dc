"""Serves the page, or another application that only shows things, in the foreground."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..page import PageApp, Source
from .ending import ending_at_signals
from .listener import Listener, check_host
from .middleware import App


def serve_page(source: Source, *, port: int = 0, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve the page on the loopback, read only, until SIGINT or SIGTERM. Call it from the main thread.

    Args:
        source: What there is to see.
        port: Where to listen; 0 takes any free one.
        ready: Called with the address once it listens.

    Raises:
        SettingsError: The port is taken.
    """
    serve_app(PageApp(source), port=port, ready=ready)


def serve_app(
    app: App,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    allow_remote: bool = False,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve an ASGI application until SIGINT or SIGTERM. Call it from the main thread.

    On the loopback it answers requests for names of the loopback alone, so that no web page can have its own name lead
    here.

    Args:
        app: The application.
        host: The address to listen on.
        port: Where to listen; 0 takes any free one.
        allow_remote: Permit an address that other machines reach.
        ready: Called with the address once it listens.

    Raises:
        SettingsError: The port is taken, or the host is not the loopback and not permitted.
    """
    check_host(host, allow_remote=allow_remote)
    asyncio.run(_serve(app, Listener(host, port), ready))


async def _serve(app: App, listener: Listener, ready: Callable[[str], None]) -> None:
    with ending_at_signals() as ending:
        await listener.open(app)
        try:
            ready(listener.url)
            while not ending.is_set():
                await asyncio.sleep(0.1)
        finally:
            await listener.shut()
