"""What the server's tests share: servers that are closed again, and a plain speaker of the API's paths."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from atomscale_bluesky.server import LocalServer

T0 = 1_760_000_000.0


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < end:
        for thread in left:
            thread.join(0.1)
    assert not left


class Api:
    """Plain requests in one path family, with the right key; answers are `requests.Response`."""

    def __init__(self, server: LocalServer, family: str) -> None:
        self.server = server
        self.family = family
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["X-API-KEY"] = server.api_key

    def ask(self, method: str, path: str, body: object = None, **more: Any) -> requests.Response:
        more.setdefault("timeout", 10)
        return self.session.request(method, self.server.url + path, json=body, allow_redirects=False, **more)

    def initialize(self, points_per_chunk: int = 4, **members: Any) -> str:
        answer = self.try_initialize(points_per_chunk=points_per_chunk, **members)
        assert answer.status_code == 200, answer.text
        return answer.json()["data_id"]

    def try_initialize(self, **members: Any) -> requests.Response:
        return self.ask("POST", f"/{self.family}/stream/initialize", {"points_per_chunk": 4} | members)

    def chunk(
        self,
        data_id: str,
        index: int,
        channel: str = "T",
        *,
        count: int = 4,
        offset: float = 0.0,
        units: str | None = "K",
        **members: Any,
    ) -> requests.Response:
        """A chunk that every call with the same arguments repeats exactly."""
        times = [T0 + index * 4 + i for i in range(count)]
        body: dict[str, Any] = {"data_id": data_id, "chunk_index": index, "channel_name": channel}
        body |= {"timestamps": times, "values": [time - T0 + offset for time in times]}
        if units is not None:
            body["units"] = units
        return self.ask("POST", f"/{self.family}/stream/chunk", body | members)

    def multi(self, data_id: str, index: int, channels: Any, **members: Any) -> requests.Response:
        """`channels`: names, for full chunks, or the member as it shall go out."""
        if not isinstance(channels, dict):
            times = [T0 + index * 4 + i for i in range(4)]
            channels = {name: {"timestamps": times, "values": [time - T0 for time in times]} for name in channels}
        body = {"data_id": data_id, "chunk_index": index, "channels": channels}
        return self.ask("POST", f"/{self.family}/stream/chunk/multi", body | members)

    def finalize(self, data_id: str) -> requests.Response:
        return self.ask("POST", f"/{self.family}/stream/{data_id}/finalize")

    def read(self, data_id: str) -> requests.Response:
        return self.ask("GET", f"/{self.family}/{data_id}/timeseries/")

    def entries(self, **query: Any) -> requests.Response:
        return self.ask("GET", "/data_entries/", params=query)


@pytest.fixture
def make_server() -> Iterator[Callable[..., LocalServer]]:
    """Start a server with the given options; it is closed after the test."""
    made: list[LocalServer] = []

    def make(**options: Any) -> LocalServer:
        server = LocalServer(**({"control": True} | options))
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        assert server.close()


@pytest.fixture
def make_api() -> Iterator[Callable[..., Api]]:
    """A speaker to a server, in a family; its connections are closed after the test."""
    made: list[Api] = []

    def make(server: LocalServer, family: str = "metrology") -> Api:
        made.append(Api(server, family))
        return made[-1]

    yield make
    for api in made:
        api.session.close()


@pytest.fixture
def server(make_server: Callable[..., LocalServer]) -> LocalServer:
    """A strict server with control."""
    return make_server()


@pytest.fixture
def api(server: LocalServer, make_api: Callable[..., Api]) -> Api:
    """A speaker of the metrology family."""
    return make_api(server)


@pytest.fixture
def wait_for() -> Callable[[Callable[[], Any]], Any]:
    """Wait until a condition holds, for at most five seconds; its value."""

    def wait(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 5
        pause = threading.Event()
        while not (value := condition()):
            assert time.monotonic() < end, "the condition did not come true in time"
            pause.wait(0.01)
        return value

    return wait
