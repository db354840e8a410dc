"""The control of a running server from outside, over HTTP, for tests and demonstrations.

`Control(url)` works the same for a server in this process and one in a process of its own. It uses a port of its own,
so it works while the server itself is unreachable. Loopback only.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import requests

from ..errors import ApiError, ApiUnavailableError
from .faults import Fault, FaultState
from .request_log import RequestCounts, RequestRecord

T = TypeVar("T")


class StreamState(msgspec.Struct, frozen=True):
    """A stream as the server holds it."""

    data_id: str
    processed_data_id: str
    family: str
    label: str | None
    status: str
    points_per_chunk: int
    synth_source_id: int | None
    physical_sample_id: str | None
    project_id: str | None
    tags: tuple[str, ...]
    created: float
    updated: float
    finalized: float | None
    finalize_calls: int
    """How often finalize was called, refusals included."""
    channels: tuple[str, ...]
    points: int
    """Over all channels."""
    chunks: int
    """Over all channels."""
    doubled: int
    """How often a chunk came again with the same content."""
    changed: int
    """How often a chunk came again with other content, refused or not."""


class ChannelPoints(msgspec.Struct, frozen=True):
    """All stored points of one channel, in the order of the chunk indices, not rounded; None stands for not finite."""

    times: list[float | None]
    values: list[float | None]
    units: str | None
    chunks: list[tuple[int, int]]
    """Each chunk's index and its number of points."""
    doubled: int
    changed: int


class ServerInfo(msgspec.Struct, frozen=True):
    """The settings of the server."""

    url: str
    reachable: bool
    families: tuple[str, ...]
    multi: bool
    max_body_bytes: int
    relaxed: tuple[str, ...]
    rules: dict[str, str]
    """Every rule's name and what it demands."""


class Unreachable(msgspec.Struct, frozen=True):
    """The request body that makes the server unreachable."""

    seconds: float | None = None


class Project(msgspec.Struct, frozen=True):
    """The request body that creates a project."""

    name: str


class Control:
    """Calls the server's `control_url`. Every method is one short request and may be called from any thread."""

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        self.url: str = url.rstrip("/")
        self._timeout_s = timeout_s

    def info(self) -> ServerInfo:
        """Return the server's settings, and whether it can be reached."""
        return self._ask("GET", "", ServerInfo)

    def streams(self) -> list[StreamState]:
        """Return every stream, in the order in which they were initialized."""
        return self._ask("GET", "/streams", list[StreamState])

    def points(self, data_id: str) -> dict[str, ChannelPoints]:
        """Return the stored points of a stream, by channel."""
        return self._ask("GET", f"/streams/{data_id}/points", dict[str, ChannelPoints])

    def requests(self, call: str | None = None, *, after: int = 0) -> list[RequestRecord]:
        """Return the newest requests, oldest first: those of one `call`, if given, with numbers above `after`."""
        wanted: dict[str, Any] = {"after": after}
        if call is not None:
            wanted["call"] = call
        return self._ask("GET", "/requests", list[RequestRecord], params=wanted)

    def counts(self) -> RequestCounts:
        """Return how many requests there ever were."""
        return self._ask("GET", "/counts", RequestCounts)

    def misbehave(self, *faults: Fault) -> list[int]:
        """Put faults in force, after those already in force. Return the number of each, as request records name it."""
        return self._ask("POST", "/faults", list[int], body=faults)

    def faults(self) -> list[FaultState]:
        """Return the faults in force, and how often each has acted."""
        return self._ask("GET", "/faults", list[FaultState])

    def behave(self) -> None:
        """Remove every fault. A server that is unreachable stays unreachable."""
        self._ask("DELETE", "/faults", dict[str, Any])

    def unreachable(self, seconds: float | None = None) -> None:
        """Stop listening and reset every connection, for this many seconds or until `reachable`."""
        self._ask("POST", "/unreachable", dict[str, Any], body=Unreachable(seconds))

    def reachable(self) -> None:
        """Listen again, on the same port."""
        self._ask("POST", "/reachable", dict[str, Any])

    def add_project(self, name: str) -> str:
        """Create a project, for which the API has no known call, and return its id."""
        return self._ask("POST", "/projects", dict[str, str], body=Project(name))["id"]

    def _ask(
        self, method: str, path: str, kind: type[T], *, params: dict[str, Any] | None = None, body: object = None
    ) -> T:
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the environment must not come between us and the loopback
            try:
                answer = session.request(
                    method,
                    f"{self.url}/control{path}",
                    params=params,
                    data=None if body is None else msgspec.json.encode(body),
                    headers={} if body is None else {"Content-Type": "application/json"},
                    timeout=self._timeout_s,
                )
            except requests.RequestException as error:
                raise ApiUnavailableError(
                    f"the local server's control at {self.url} does not answer ({error}); does the server run?"
                ) from error
        if answer.status_code != 200:
            raise ApiError(
                f"the local server's control refused {method} {path}: {answer.text[:500]}", status=answer.status_code
            )
        return msgspec.json.decode(answer.content, type=kind)
