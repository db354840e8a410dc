"""The ASGI application behind the page: static files, and what a source tells as JSON.

It answers GET and HEAD and nothing else. It stands behind a guard that refuses names that are not the server's own, so
that a web page cannot have its name lead here. In addition it refuses requests that a browser says come from another
site, and forbids others to embed what it returns.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import parse_qs

import msgspec

from .records import Overview, Stream

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PREFIX = "/page/"
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/uPlot.js": ("uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/page/uPlot.css": ("uPlot.min.css", "text/css; charset=utf-8"),
    "/page/uPlot.LICENSE.txt": ("uPlot.LICENSE.txt", "text/plain; charset=utf-8"),
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
# A browser's own word for where a request comes from; a program sends none.
_OWN_SITES = {None, b"same-origin", b"none"}


class Source(Protocol):
    """What there is to see."""

    async def overview(self) -> Overview:
        """Return everything but the points."""
        ...

    async def stream(self, identity: str, begin: float, end: float, version: str) -> Stream | None:
        """Return a stream's points from `begin` to `end`, Unix seconds.

        Without channels if `version` is the one that it still has; None if there is no such stream.
        """
        ...


def is_page_path(path: str) -> bool:
    """Return True if a path is one of the page."""
    return path == "/" or path.startswith(PREFIX)


class PageApp:
    """Serves the page for one source."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        status, kind, body = await self._answer(scope)
        headers = {"content-type": kind, "content-length": str(len(body)), **_HEADERS}
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope) -> tuple[int, str, bytes]:
        headers = dict(scope["headers"])
        if scope["method"] not in {"GET", "HEAD"}:
            return _text(405, "this page only shows, so it takes nothing but GET")
        path: str = scope["path"]
        if path == "/" and headers.get(b"sec-fetch-mode") == b"navigate":
            pass  # a link on another page may lead here: it sees nothing of the answer
        elif headers.get(b"sec-fetch-site") not in _OWN_SITES:
            return _text(403, "the request comes from a page of another site")
        if path in _FILES:
            name, kind = _FILES[path]
            return 200, kind, (files("atomscale_bluesky.page") / "static" / name).read_bytes()
        if path == "/page/overview":
            return _json(await self._source.overview())
        if path == "/page/stream":
            query = parse_qs(scope["query_string"].decode("latin-1"))
            try:
                begin, end = _number(query, "begin", -math.inf), _number(query, "end", math.inf)
            except ValueError:
                return _text(422, "`begin` and `end` are Unix seconds")
            identity, version = query.get("id", [""])[0], query.get("version", [""])[0]
            found = await self._source.stream(identity, begin, end, version)
            if found is not None:
                return _json(found)
        return _text(404, "there is no such page")


def _number(query: dict[str, list[str]], name: str, otherwise: float) -> float:
    return float(query[name][0]) if name in query else otherwise


def _json(value: msgspec.Struct) -> tuple[int, str, bytes]:
    return 200, "application/json", msgspec.json.encode(value)


def _text(status: int, text: str) -> tuple[int, str, bytes]:
    return status, "text/plain; charset=utf-8", text.encode()
