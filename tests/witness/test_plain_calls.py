"""The documented calls, made plainly with `requests` and with cURL, work; and the callback's are the same calls.

Whatever passes between a speaker and the server is written down on its way, so what is compared are the requests as
they went over the wire.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from event_model import compose_run

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

pytestmark = [pytest.mark.witness, pytest.mark.timeout(120)]

FAMILIES = ["metrology", "tool-state"]
T0 = 1_760_000_000.1
TIMES = [T0, T0 + 1 / 3, T0 + 2 / 3, T0 + 1.5]
VALUES = {"substrate_T": [612.4, 612.9, 614.0, 615.2], "ion_gauge": [3.1e-9, 3.2e-9, 3.3e-9, 3.4e-9]}
UNITS = {"substrate_T": "°C", "ion_gauge": "mbar"}
# What a server may look at; the others tell who asks, or are the transport's.
HEADERS_THAT_MATTER = ("content-type", "x-api-key", "content-encoding", "transfer-encoding", "expect")

Ask = Callable[[str, "dict[str, Any] | None"], Any]


@dataclass(frozen=True)
class Asked:
    """One request as it went over the wire."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def call(self) -> str:
        """Which of the documented calls it is."""
        return self.path.rpartition("/stream/")[2].rpartition("/")[2]

    def shape(self) -> tuple[Any, ...]:
        """What has to be the same, whoever asks: ids and numbers may differ, their places and kinds may not."""
        data_id = self.path.split("/")[3] if self.call == "finalize" else "-"
        headers = {name: self.headers.get(name) for name in HEADERS_THAT_MATTER}
        return self.method, self.path.replace(data_id, "{data_id}"), headers, _kinds(json.loads(self.body or b"null"))


def _kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _kinds(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_kinds(one) for one in value]
    return "number" if type(value) in (int, float) else type(value).__name__


class Between(ThreadingHTTPServer):
    """Hands every request on to the server as it is, and writes it down."""

    daemon_threads = True

    def __init__(self, server: LocalServer) -> None:
        super().__init__(("127.0.0.1", 0), _HandOn)
        self.behind = server.url
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def calls(self) -> dict[str, Asked]:
        """The first request of each streaming call."""
        return {one.call: one for one in reversed(self.asked) if "/stream/" in one.path}


class _HandOn(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Between

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(self.command, self.path, headers, body))
        with requests.Session() as session:
            session.trust_env = False
            answer = session.request(
                self.command, self.server.behind + self.path, data=body, headers=headers, timeout=10
            )
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = _hand_on  # noqa: N815 - the names that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def between(server: LocalServer) -> Iterator[Between]:
    with Between(server) as between:
        thread = threading.Thread(target=between.serve_forever, args=(0.05,))
        thread.start()
        yield between
        between.shutdown()
        thread.join()


@pytest.fixture(params=["requests", "curl"])
def ask(request: pytest.FixtureRequest, between: Between, server: LocalServer) -> Ask:
    """Make one documented call, plainly; its answer."""
    if request.param == "requests":
        return lambda path, body: _by_requests(between.url + path, server.api_key, body)
    curl = shutil.which("curl")
    if curl is None:
        if os.environ.get("REQUIRE_ALL_TESTS") == "1":
            pytest.fail("curl is not on this machine")
        pytest.skip("curl is not on this machine")
    return lambda path, body: _by_curl(curl, between.url + path, server.api_key, body)


def _by_requests(url: str, key: str, body: dict[str, Any] | None) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(url, json=body, headers={"X-API-KEY": key}, timeout=10)
    answer.raise_for_status()
    return answer.json()


def _by_curl(curl: str, url: str, key: str, body: dict[str, Any] | None) -> Any:
    command = [curl, "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "10"]
    command += ["--request", "POST", url, "--header", f"X-API-KEY: {key}"]
    if body is not None:
        command += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def initialize(ask: Ask, family: str, **links: Any) -> str:
    body = {"points_per_chunk": 3, "stream_name": "growth 0417", **links}
    return ask(f"/{family}/stream/initialize", body)["data_id"]


def channel(name: str, part: slice) -> dict[str, Any]:
    return {"timestamps": TIMES[part], "values": VALUES[name][part], "units": UNITS[name]}


def links(server: LocalServer, ask: Ask, family: str) -> dict[str, Any]:
    """All that `initialize` documents; the sample in the documented family alone."""
    named: dict[str, Any] = {"synth_source_id": 42, "project_id": server.add_project("Nitrides")}
    if family == "metrology":
        named["physical_sample_id"] = ask("/physical_samples/", {"name": "GaN-0417"})["id"]
    return named


def stream_plainly(server: LocalServer, ask: Ask, family: str) -> str:
    """A whole stream by the four calls: a full chunk of both channels, and a short one of each alone."""
    data_id = initialize(ask, family, **links(server, ask, family))
    first, last = slice(0, 3), slice(3, 4)
    channels = {name: channel(name, first) for name in VALUES}
    answers = ask(f"/{family}/stream/chunk/multi", {"data_id": data_id, "chunk_index": 0, "channels": channels})
    assert {(one["channel_name"], one["chunk_index"], one["total_points"]) for one in answers} == {
        ("substrate_T", 0, 3), ("ion_gauge", 0, 3),
    }  # fmt: skip
    for name in VALUES:
        answer = ask(
            f"/{family}/stream/chunk",
            {"data_id": data_id, "chunk_index": 1, "channel_name": name, **channel(name, last)},
        )
        assert (answer["data_id"], answer["total_points"]) == (data_id, 4)
    assert ask(f"/{family}/stream/{data_id}/finalize", None)["data_id"] == data_id
    return data_id


@pytest.mark.parametrize("family", FAMILIES)
def test_the_documented_calls_made_plainly_leave_a_whole_stream(server: LocalServer, ask: Ask, family: str) -> None:
    data_id = stream_plainly(server, ask, family)

    (stream,) = server.streams()
    assert (stream.data_id, stream.family, stream.status, stream.label) == (data_id, family, "success", "growth 0417")
    assert stream.synth_source_id == 42
    for name, series in server.points(data_id).items():
        assert (series.times, series.values, series.units) == (TIMES, VALUES[name], UNITS[name])
        assert series.chunks == [(0, 3), (1, 1)]
    assert {record.status for record in server.requests()} == {200}
    assert {record.key for record in server.requests()} == {"right"}


@pytest.mark.parametrize("multi", [True, False], ids=["multi", "single"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_callbacks_calls_are_the_documented_ones_in_method_path_headers_and_body_members(
    server: LocalServer,
    between: Between,
    ask: Ask,
    make_server: Callable[..., LocalServer],
    make_callback: Callable[..., AtomscaleCallback],
    family: str,
    multi: bool,
) -> None:
    stream_plainly(server, ask, family)
    plain = between.calls()
    between.asked.clear()
    between.behind = (ours := server if multi else make_server(multi=False)).url
    callback = make_callback(endpoint=between.url, api=family, points_per_chunk=3)

    for name, doc in documents(project_id=ours.add_project("Nitrides"), physical_sample="GaN-0417"):
        callback(name, doc)
    assert callback.drain(timeout_s=30)

    calls = between.calls()
    assert set(calls) == {"initialize", "multi", "finalize"} | (set() if multi else {"chunk"})
    for name, asked in calls.items():
        documented = plain[name].shape()
        assert asked.shape() == (_of_three(documented) if name == "chunk" else documented), name
    finalized = calls["finalize"]
    assert (finalized.body, finalized.headers["content-length"]) == (b"", "0")
    assert ours.streams()[-1].status == "success"


def _of_three(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """A chunk of one point, had it three."""
    *rest, body = shape
    return *rest, body | {"timestamps": ["number"] * 3, "values": ["number"] * 3}


def documents(**metadata: Any) -> Iterator[tuple[str, Any]]:
    run = compose_run(metadata={"synth_source_id": 42, "stream_name": "growth 0417", **metadata})
    yield "start", run.start_doc
    keys = {name: {"source": "sim", "dtype": "number", "shape": [], "units": unit} for name, unit in UNITS.items()}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    yield "descriptor", stream.descriptor_doc
    for n, time in enumerate(TIMES):
        data = {name: values[n] for name, values in VALUES.items()}
        yield "event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, time), time=time)
    yield "stop", run.compose_stop()
