"""One request, one answer: what counts as done, what may be tried again, and where the key goes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from chunks import chunk_of

from atomscale_bluesky import ApiKeyError, ApiRefusedError, ApiUnavailableError, Settings
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.model.chunk import Column
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.server import LOGIN_PAGE, Fault, LocalServer

CHUNK = chunk_of(0, (1.0, 2.0), [Column("t", "K", (3.0, 4.0))])


def settings(url: str, **more: object) -> Settings:
    return Settings.load(environ={}, endpoint=url, api_key="local-key", **more)


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    client = Client(settings(server.url))
    yield client
    client.close()


def initialize(client: Client) -> str:
    return client.initialize("metrology", label="a label", points_per_chunk=2, links=Links())


def test_a_stream_is_initialized_pushed_finalized_and_read_back(client: Client) -> None:
    data_id = initialize(client)
    client.push("metrology", data_id, CHUNK)
    client.finalize("metrology", data_id)

    ((name, (unit, times, values)),) = client.points("metrology", data_id, {"t": 2}).points.items()
    assert (name, unit, list(times), list(values)) == ("t", "K", [1.0, 2.0], [3.0, 4.0])
    assert client.find_entry("a label") == client.entry_of(data_id)


def test_samples_tags_and_projects_are_listed_made_and_linked(client: Client, server: LocalServer) -> None:
    data_id = initialize(client)
    sample, tag = client.create_sample("GaN-0417"), client.create_tag("night shift")
    (project,) = client.projects()

    client.link_sample(data_id, sample)
    client.attach_tags(data_id, [tag])
    client.track_sample(project.id, sample, active=True)
    client.rename(data_id, "another label")

    assert [(item.id, item.name) for item in client.samples()] == [(sample, "GaN-0417")]
    assert client.samples(sample) == client.samples() == client.project_samples(project.id)
    assert [(item.id, item.name) for item in client.tags()] == [(tag, "night shift")]
    entry = client.entry_of(data_id)
    assert entry is not None
    assert (entry.label, entry.physical_sample_id, entry.tags) == ("another label", sample, ("night shift",))


def test_creating_a_sample_whose_name_is_taken_gives_the_one_that_has_it(client: Client, server: LocalServer) -> None:
    sample = client.create_sample("GaN-0417")
    assert client.create_sample(" gan-0417 ") == sample

    server.misbehave(Fault(call="samples", method="POST", status=409, body='{"detail": "taken"}', times=1))
    with pytest.raises(ApiRefusedError, match="answered 409"):
        client.create_sample("GaN-0417")


def test_creating_a_tag_that_exists_is_refused(client: Client) -> None:
    client.create_tag("night shift")
    with pytest.raises(ApiRefusedError, match="answered 400"):
        client.create_tag("Night shift")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 301, 302, 307, 308])
def test_statuses_that_can_clear_raise_unavailable(client: Client, server: LocalServer, status: int) -> None:
    server.misbehave(Fault(call="initialize", status=status, headers={"Location": "http://127.0.0.1:9/"}, times=1))

    with pytest.raises(ApiUnavailableError, match=f"was answered {status}"):
        initialize(client)


@pytest.mark.parametrize("status", [400, 404, 405, 409, 410, 413, 422])
def test_statuses_that_are_final_raise_refused(client: Client, server: LocalServer, status: int) -> None:
    server.misbehave(Fault(call="initialize", status=status, body='{"detail": "no\\u001b[31m"}', times=1))

    with pytest.raises(ApiRefusedError) as raised:
        initialize(client)

    assert raised.value.status == status
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("status", [401, 403])
def test_statuses_about_the_key_raise_key_error(client: Client, server: LocalServer, status: int) -> None:
    server.misbehave(Fault(call="initialize", status=status, times=1))

    with pytest.raises(ApiKeyError):
        initialize(client)


@pytest.mark.parametrize("body", [LOGIN_PAGE, "", "{", "[]", '{"data_id": "../../admin"}', '{"data_id": 7}', "null"])
def test_a_success_that_is_not_the_apis_counts_as_no_answer(client: Client, server: LocalServer, body: str) -> None:
    server.misbehave(Fault(call="initialize", body=body, status=200, times=1))

    with pytest.raises(ApiUnavailableError, match="is a proxy between"):
        initialize(client)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_as_far_as_it_can_be(
    client: Client, server: LocalServer, text: str, expected: float | None
) -> None:
    server.misbehave(Fault(call="initialize", status=503, headers={"Retry-After": text}, times=1))

    with pytest.raises(ApiUnavailableError) as raised:
        initialize(client)

    assert raised.value.retry_after_s == expected


def test_a_retry_after_date_is_read_by_the_servers_own_clock() -> None:
    fast = time.time() + 90
    answer = (
        f"HTTP/1.1 503 Busy\r\nDate: {formatdate(fast, usegmt=True)}\r\n"
        f"Retry-After: {formatdate(fast + 30, usegmt=True)}\r\nContent-Length: 0\r\n\r\n"
    )
    listening, thread = _answering(answer.encode(), pause_s=0, times=1)
    client = Client(settings(f"http://127.0.0.1:{listening.getsockname()[1]}"))

    with pytest.raises(ApiUnavailableError) as raised:
        initialize(client)

    assert raised.value.retry_after_s == 30
    client.close()
    listening.close()
    thread.join(5)


def test_a_redirect_is_not_followed_and_gets_no_key(client: Client, server: LocalServer) -> None:
    with LocalServer(control=True) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            server.misbehave(Fault(status=status, headers={"Location": elsewhere.url + "/data_entries/"}, times=1))
            with pytest.raises(ApiUnavailableError):
                client.find_entry("anything")

        assert elsewhere.requests() == []


def test_netrc_is_not_read(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    client = Client(settings(server.url))
    client.find_entry("anything")
    client.close()

    assert "authorization" not in {name.lower() for name in server.requests()[-1].headers}


def test_a_proxy_of_the_environment_is_not_asked_for_a_server_on_this_machine(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client = Client(settings(server.url))

    assert client.find_entry("anything") is None
    client.close()


@pytest.mark.parametrize("proxy", ["http://{}", "{}", "http://{}/", "http://me:p%2Fw:d@{}", "http://me:p/w@d@{}"])
def test_the_error_names_the_proxy_without_its_password(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy.format(address))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    client = Client(settings("https://server.example.org"))

    with pytest.raises(ApiUnavailableError) as raised:
        client.find_entry("anything")
    client.close()
    assert f"through the proxy {address}: " in str(raised.value)
    assert "me:" not in str(raised.value)

    direct = Client(settings(f"https://{address}"))  # this machine is asked without a proxy
    with pytest.raises(ApiUnavailableError) as raised:
        direct.find_entry("anything")
    direct.close()
    assert "proxy" not in str(raised.value)


def test_the_error_of_a_failed_connection_does_not_name_the_key(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = Client(settings(f"http://127.0.0.1:{port}"))

    with pytest.raises(ApiUnavailableError, match="refused") as raised:
        initialize(client)

    assert "local-key" not in repr(raised.value)
    assert not raised.value.may_have_been_applied
    client.close()


def _answering(part: bytes, *, pause_s: float, times: int, end: bytes = b"}") -> tuple[socket.socket, threading.Thread]:
    """A server that answers one request with these bytes, so often, one at a time with a pause between."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        pause = threading.Event()
        connection, _ = listening.accept()
        with connection:
            request = b""
            while not request.endswith(end):  # closing with something unread would reset the connection
                request += connection.recv(65536)
            try:
                for byte in part * times:
                    connection.sendall(bytes([byte]))
                    pause.wait(pause_s)
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listening, thread


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 60000, b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 60000])
def test_a_server_that_drips_bytes_is_left_at_the_deadline(part: bytes) -> None:
    listening, thread = _answering(part, pause_s=0.02, times=100)
    try:
        _ends_at_its_deadline(settings(f"http://127.0.0.1:{listening.getsockname()[1]}", request_timeout_s=0.5))
    finally:
        listening.close()
        thread.join(5)


def test_a_proxy_that_drips_its_answer_to_connect_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    part = b"HTTP/1.1 " + b" " * 60000
    listening, thread = _answering(part, pause_s=0.02, times=1, end=b"\r\n\r\n")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listening.getsockname()[1]}")
    try:
        _ends_at_its_deadline(settings("https://api.example.org", request_timeout_s=0.5))
    finally:
        listening.close()
        thread.join(5)


def _ends_at_its_deadline(asked: Settings) -> None:
    client = Client(asked)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            client.connection.cut_if_late()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(ApiUnavailableError, match=r"no complete answer within 0\.5 s"):
            initialize(client)
    finally:
        ended.set()
        watcher.join()
        client.close()


def test_an_answer_without_end_is_not_read_to_its_end(server: LocalServer, client: Client) -> None:
    server.misbehave(Fault(call="initialize", status=200, body="[" * (2 * 2**20), times=1))

    with pytest.raises(ApiUnavailableError, match="more than 1048576 bytes"):
        initialize(client)


def test_the_answer_to_a_push_may_be_as_large_as_its_channels_require() -> None:
    names = [f"{'sensor of module ' * 8}{n}" for n in range(6000)]
    chunk = chunk_of(0, (1.0,), [Column(name, None, (2.0,)) for name in names])
    with LocalServer(control=True, max_body_bytes=2**26) as server:
        client = Client(settings(server.url))
        data_id = initialize(client)

        client.push("metrology", data_id, chunk)

        assert [stream.points for stream in server.streams()] == [len(names)]
        client.close()
