"""Refuses requests to the local server from web pages of another origin.

A browser on the same machine reaches the loopback too, and runs whatever a page contains. A page can make its own name
resolve to 127.0.0.1 and then read every answer (the `Host` is then its name). It can also send a form without
permission (the `Origin` is then its own, and the content type is not that of JSON). The key protects nothing, since it
is publicly known, and the control has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Return True if a name or an address is this machine's loopback."""
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host.lower().rstrip(".") == "localhost"


class Guard:
    """An ASGI application that passes on requests made under the server's own name.

    Args:
        app: The application behind it.
        host: The address that the server listens on. If other machines can reach it, it may have any name, so none is
            refused.
    """

    def __init__(self, app: App, host: str) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, detail = refusal
        body = msgspec.json.encode({"detail": detail})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if host is not None and is_loopback(self._host) and not is_loopback(_name(f"//{host}")):
            return 421, (
                f"the request is for {host!r:.100}, and this server is {self._host!r} alone: it answers no other name, "
                "since a web page could have its own name lead here; ask it as 127.0.0.1 or localhost, or start it "
                "with `allow_remote` on an address that others reach"
            )
        if origin is not None and _address(origin) != host:
            return 403, (
                f"the request comes from a web page of {origin!r:.100}, and this server takes none from pages of other "
                "origins"
            )
        return None


def _address(url: str) -> str | None:
    """Return a URL's host and port, or None if it has none or is not a URL."""
    try:
        return urlsplit(url).netloc or None
    except ValueError:
        return None


def _name(url: str) -> str:
    """Return a URL's host, or an empty text if there is none that can be parsed."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
