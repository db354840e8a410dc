"""One server inside one event loop: the store, the routes, the middleware before them, and the two ports."""

from __future__ import annotations

import asyncio

from ..page import PageApp, is_page_path
from .catalogue import Catalogue
from .faults import FaultTable
from .guard import App, Receive, Scope, Send
from .listener import Listener
from .middleware import Middleware
from .options import Options
from .page_source import PageSource
from .request_log import RequestLog
from .routes import create_app
from .store import Store
from .streams import Streams


class ServerInstance:
    """Made and used inside the event loop. Faults and log are passed in, since they survive a restart."""

    def __init__(
        self,
        options: Options,
        store: Store,
        listener: Listener,
        control_listener: Listener | None,
        faults: FaultTable,
        log: RequestLog,
    ) -> None:
        self.options = options
        self.store = store
        self.streams = Streams(store, options)
        self.listener = listener
        self.faults = faults
        self.log = log
        self._control_listener = control_listener
        app = create_app(self.streams, Catalogue(store, options), options)
        self._middleware = Middleware(app, options, faults, log, self._label_of)
        self._dispatcher = _Dispatcher(
            PageApp(PageSource(store, self.streams, log, lambda: listener.url)), self._middleware
        )
        self._reachable_again: asyncio.Task[None] | None = None

    def _label_of(self, data_id: str) -> str | None:
        row = self.store.first("SELECT label FROM streams WHERE data_id = ?", data_id)
        return None if row is None else row["label"]

    async def start(self) -> None:
        """Listen on the server's port, and on the control's if there is one."""
        await self.listener.open(self._dispatcher)
        if self._control_listener is not None:
            from .control_routes import create_control  # it needs this module's class, and only where control is on

            await self._control_listener.open(create_control(self))

    async def stop(self) -> None:
        """Answer the requests in progress, and stop listening. The store stays open."""
        await self._forget_return()
        await self._middleware.close()
        await self.listener.shut()
        if self._control_listener is not None:
            await self._control_listener.shut()

    async def unreachable(self, seconds: float | None) -> None:
        """Stop listening and reset every connection, for this many seconds or until `reachable`."""
        await self._forget_return()
        await self.listener.shut(reset=True)
        if seconds is not None:
            self._reachable_again = asyncio.create_task(self._return_after(seconds))

    async def reachable(self) -> None:
        """Listen again. Does nothing if it already listens."""
        await self._forget_return()
        await self.listener.open(self._dispatcher)

    async def _return_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.listener.open(self._dispatcher)

    async def _forget_return(self) -> None:
        if self._reachable_again is not None:
            self._reachable_again.cancel()
            await asyncio.gather(self._reachable_again, return_exceptions=True)
            self._reachable_again = None


class _Dispatcher:
    """Sends the page's requests to the page, which is neither logged nor made to misbehave, and all others on."""

    def __init__(self, page: App, middleware: App) -> None:
        self._page = page
        self._middleware = middleware

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request."""
        is_page = scope["type"] == "http" and is_page_path(scope["path"])
        await (self._page if is_page else self._middleware)(scope, receive, send)
