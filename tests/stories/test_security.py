"""Nothing leaks and nothing from outside is trusted: one test for each sentence of that promise."""

from __future__ import annotations

import ast
import contextlib
import gzip
import hashlib
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from runs import growth
from waiting import wait_until

import atomscale_bluesky
from atomscale_bluesky import ApiError, ApiRefusedError, ApiUnavailableError, AtomscaleCallback, Settings, SettingsError
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.checks.doctor import Result, examine
from atomscale_bluesky.delivery.task_runner import perform
from atomscale_bluesky.delivery.tasks.finalize import Finalize
from atomscale_bluesky.delivery.tasks.work import ServerFacts
from atomscale_bluesky.delivery.unfinished_tasks import Task
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.journal_format import decode_journal
from atomscale_bluesky.spool.ledger_format import Initialized, Initializing, LedgerLine, Opened, Resolved, Together
from atomscale_bluesky.spool.ledger_state import LedgerState
from atomscale_bluesky.spool.lines import checksummed, encode
from atomscale_bluesky.status.probe_results import Findings, write_findings

MakeCallback = Callable[..., AtomscaleCallback]

KEY = "key-1e9c4a17-that-nobody-may-see"
NASTY = "\x1b[31mred\x1b[0m\r\n\x07 \u202edlrow"


# ---- the key ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def keyed(spool_dir: Path) -> Iterator[tuple[LocalServer, Callable[..., AtomscaleCallback]]]:
    """A server that takes `KEY` alone, and callbacks that have it."""
    made: list[AtomscaleCallback] = []
    with LocalServer(control=True, api_key=KEY) as server:

        def make(**settings: Any) -> AtomscaleCallback:
            given = {"endpoint": server.url, "api_key": KEY, "spool_dir": str(spool_dir), "spool_min_free_bytes": 0}
            made.append(AtomscaleCallback(settings=Settings.load(environ={}, **given | settings)))
            return made[-1]

        yield server, make
        for callback in made:
            callback.close(timeout_s=0)


def test_the_key_is_in_no_log_of_any_level_also_not_of_the_libraries_below(
    keyed: tuple[LocalServer, MakeCallback], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    server, make = keyed
    caplog.set_level(0)
    for name in ("urllib3", "requests", "atomscale_bluesky"):
        caplog.set_level(1, logger=name)
    server.misbehave(
        Fault(call="initialize", status=500, times=1),
        Fault(call="chunk_multi", reset_after=True, times=1),
        Fault(call="chunk_multi", status=401, times=1),
        Fault(call="finalize", status=422, body='{"detail": "no"}', times=1),
    )
    callback = make(points_per_chunk=10, offline=False)
    for name, doc in growth(points=25):
        callback(name, doc)
    callback.drain(timeout_s=8)

    assert "urllib3" in {record.name.partition(".")[0] for record in caplog.records}
    said = caplog.text + "".join(capsys.readouterr())
    said += "".join(repr(record.__dict__) for record in caplog.records)
    assert KEY not in said


def test_the_key_is_in_no_representation(keyed: tuple[LocalServer, MakeCallback]) -> None:
    _, make = keyed
    callback = make()
    client = Client(callback.settings)

    for thing in (callback, callback.settings, client, callback.status(), vars(callback)["_uploader"]):
        assert KEY not in repr(thing)
        assert KEY not in str(thing)
    assert KEY not in f"{callback.settings}"
    client.close()


def test_the_key_is_in_no_exception(keyed: tuple[LocalServer, MakeCallback]) -> None:
    server, make = keyed
    server.misbehave(Fault(status=503))
    client = Client(make(offline=True).settings)

    with pytest.raises(ApiUnavailableError) as raised:
        client.find_entry("anything")
    error: BaseException | None = raised.value
    while error is not None:
        assert KEY not in repr(error)
        error = error.__cause__ or error.__context__
    client.close()


def test_the_key_is_in_no_file_of_the_spool_and_in_no_status(
    keyed: tuple[LocalServer, MakeCallback], spool_dir: Path
) -> None:
    server, make = keyed
    server.misbehave(Fault(call="chunk_multi", status=401))
    callback = make(points_per_chunk=10)
    for name, doc in growth(points=25):
        callback(name, doc)
    callback.drain(timeout_s=1)
    environment = os.environ | {
        "ATOMSCALE_API_ENDPOINT": server.url,
        "ATOMSCALE_API_KEY": KEY,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
    }
    said = ""
    for command in (["status"], ["status", "--json", "--all"], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-m", "atomscale_bluesky", *command], env=environment, capture_output=True, text=True
        )
        said += done.stdout + done.stderr

    assert "50" in said
    assert KEY not in said
    for path in spool_dir.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("status", [401, 422, 503])
@pytest.mark.parametrize(
    "body",
    [
        '{"detail": "Incorrect API key provided: ' + KEY + '"}',
        '{"detail": "Incorrect API key provided: ' + "".join(f"\\u{ord(one):04X}" for one in KEY) + '"}',
        "<p>" + "x" * (190 - len(KEY)) + KEY + "</p>",
        "{" + "x" * 190 + KEY,
    ],
    ids=["json", "escaped", "html", "cut"],
)
def test_a_key_that_the_server_repeats_is_in_no_log_file_status_or_error(
    keyed: tuple[LocalServer, MakeCallback],
    spool_dir: Path,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: str,
) -> None:
    server, make = keyed
    caplog.set_level(1)
    server.misbehave(Fault(status=status, body=body))
    callback = make(points_per_chunk=10)
    for name, doc in growth(points=25):
        callback(name, doc)
    wait_until(lambda: f"was answered {status}" in caplog.text)
    callback.drain(timeout_s=1)
    said = caplog.text + str(callback.status()) + repr(callback.status().runs) + repr(callback.status().trouble)
    callback.close(timeout_s=0)
    said += "".join(path.read_text("latin-1") for path in spool_dir.rglob("*") if path.is_file())
    client = Client(callback.settings)
    with pytest.raises(ApiError) as raised:
        client.create_tag("x")
    client.close()
    said += told_by(raised.value)

    assert f"was answered {status}" in said
    assert KEY[:6] not in said


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 %b\r\n\r\n" % KEY.encode(),
        b"%b\r\n\r\n" % (b"x" * 200 + KEY.encode()),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b\r\n" % KEY.encode(),
        b"HTTP/1.1 400 %b\r\nX: %b\r\nContent-Length: 0\r\n\r\n" % (KEY.encode(), KEY.encode()),
        *(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            for body in (
                KEY.encode(),
                b"[%b]" % KEY.encode(),
                b'{"data_id": "no id: %b"}' % KEY.encode(),
                b'{"data_id": "%b%b"}' % (b" " * 60, KEY.encode()),
                b"x" * 40 + KEY.encode(),
            )
        ),
    ],
    ids=lambda answer: repr(answer[-40:]),
)
def test_a_key_in_what_a_server_sends_in_the_place_of_an_answer_is_in_no_error(answer: bytes) -> None:
    for call in (
        lambda client: client.find_entry("anything"),
        lambda client: client.initialize("metrology", label="x", points_per_chunk=10, links=Links()),
    ):
        for endpoint in answering(answer):
            client = Client(Settings.load(environ={}, endpoint=endpoint, api_key=KEY))
            with pytest.raises(ApiError) as raised:
                call(client)
            client.close()
            assert KEY[:6] not in told_by(raised.value)


@pytest.mark.parametrize("key", [None, "e", "answer"])
def test_a_very_short_key_garbles_no_error(server: LocalServer, key: str | None) -> None:
    server.misbehave(Fault(status=422, body='{"detail": "the answer"}'))
    client = Client(Settings.load(environ={}, endpoint=server.url, api_key=key))

    with pytest.raises(ApiRefusedError, match="POST tags/ was answered 422: 'the answer'") as raised:
        client.create_tag("x")
    client.close()
    assert raised.value.answer == b'{"detail": "the answer"}'


def told_by(error: BaseException) -> str:
    """All that an error and those behind it hold."""
    said = "".join(traceback.format_exception(error))
    behind: BaseException | None = error
    while behind is not None:
        said += repr(behind) + repr(vars(behind))
        behind = behind.__cause__ or behind.__context__
    return said


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks into /proc")
def test_the_key_is_on_no_command_line_of_a_process(keyed: tuple[LocalServer, MakeCallback]) -> None:
    server, make = keyed
    callback = make(points_per_chunk=10)
    for name, doc in growth(points=25):
        callback(name, doc)
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert KEY.encode() not in command.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
        if name == "descriptor":
            wait_until(server.streams)


@pytest.mark.parametrize(
    "proxy",
    [
        "http://grower:{}@127.0.0.1:1",
        "http://grower:{}#{}@127.0.0.1:1",
        "http://grower:{}/{}@127.0.0.1:1",
        "http://grower:{}?{}@127.0.0.1:1",
        "http://grower:{} {}@127.0.0.1:1",
        "http://grower:{}:{}@127.0.0.1:1",
        "http://grower:{}@@127.0.0.1:1",
        "http://grower:{}\u20ac@127.0.0.1:1",
        "http://grower:{}%E2%82%AC@127.0.0.1:1",
        "http://grower:{}@[::1",
        "http://grower:{}@127.0.0.1:99999",
        "http://grower:{}@",
        "http://:{}@",
        "grower:{}@127.0.0.1:1",
        "{}:grower@127.0.0.1:1",
        "ftp://grower:{}@127.0.0.1:1",
        "socks5://grower:{}@127.0.0.1:1",
        "http:/grower:{}@127.0.0.1:1",
        "//grower:{}@127.0.0.1:1",
    ],
)
def test_a_proxys_password_is_in_no_log_error_or_traceback(
    proxy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "hush8f2c"
    monkeypatch.setenv("HTTPS_PROXY", proxy.replace("{}", secret))
    monkeypatch.setenv("https_proxy", proxy.replace("{}", secret))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    caplog.set_level("DEBUG")
    settings = Settings.load(environ={}, endpoint="https://api.example.invalid", api_key=KEY, request_timeout_s=5)
    client = Client(settings)

    task = Task(Finalize(0, "label", "id", "metrology"))
    outcome = perform(client, task, ServerFacts())
    client.close()

    assert isinstance(outcome.error, ApiUnavailableError)
    assert not outcome.error.may_have_been_applied
    told = caplog.text + "".join(traceback.format_exception(outcome.error)) + repr(client) + repr(settings)
    assert secret not in told
    assert KEY not in told
    assert "Traceback" not in caplog.text


# ---- where requests go -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", ["port", "host", "scheme"])
def test_no_redirect_is_followed_to_another_port_host_or_scheme(
    make_callback: MakeCallback, server: LocalServer, status: int, kind: str
) -> None:
    with LocalServer(control=True) as elsewhere:
        location = {
            "port": elsewhere.url,
            "host": elsewhere.url.replace("127.0.0.1", "localhost"),
            "scheme": elsewhere.url.replace("http:", "https:"),
        }[kind]
        location += "/metrology/stream/chunk/multi"
        server.misbehave(Fault(call="chunk_multi", status=status, headers={"Location": location}, times=1))
        callback = make_callback()
        for name, doc in growth(points=15):
            callback(name, doc)

        assert callback.drain(timeout_s=30)
        assert [stream.points for stream in server.streams()] == [30]
        assert elsewhere.requests() == []


@pytest.fixture
def tls() -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """A server behind TLS under a name that is not this machine's; its endpoint, its authority, the headers it got."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("atomscale.test").configure_cert(context)
    got: list[dict[str, str]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            got.append(dict(self.headers))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that trusts it not breaks off
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with authority.cert_pem.tempfile() as path:
        yield f"https://atomscale.test:{server.server_address[1]}", path, got
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`atomscale.test` leads to this machine."""
    real = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "atomscale.test" else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for name in ("http_proxy", "https_proxy", "all_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def ask(endpoint: str, **settings: Any) -> None:
    client = Client(Settings.load(environ={}, endpoint=endpoint, api_key=KEY, **settings))
    try:
        client.find_entry("anything")
    finally:
        client.close()


@pytest.mark.usefixtures("_named")
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"PYTHONHTTPSVERIFY": "0"},
        {"REQUESTS_CA_BUNDLE": ""},
        {"CURL_CA_BUNDLE": ""},
        {"REQUESTS_CA_BUNDLE": "0", "CURL_CA_BUNDLE": "false"},
        {"REQUESTS_CA_BUNDLE": "False"},
        {"SSL_CERT_FILE": "/dev/null", "SSL_CERT_DIR": "/dev/null"},
        {"GIT_SSL_NO_VERIFY": "1", "NODE_TLS_REJECT_UNAUTHORIZED": "0", "SSL_NO_VERIFY": "1"},
    ],
    ids=str,
)
def test_no_environment_variable_switches_verification_off(
    tls: tuple[str, str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    endpoint, _, got = tls
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ApiUnavailableError):
        ask(endpoint)
    assert got == []


@pytest.mark.usefixtures("_named")
def test_an_authority_of_ones_own_is_trusted_by_its_explicit_path(tls: tuple[str, str, list[dict[str, str]]]) -> None:
    endpoint, authority, got = tls

    ask(endpoint, ca_bundle=authority)

    assert [headers["X-API-KEY"] for headers in got] == [KEY]


@pytest.mark.usefixtures("_named")
def test_the_explicit_path_wins_over_the_environment(
    tls: tuple[str, str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    endpoint, authority, got = tls
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    ask(endpoint, ca_bundle=authority)
    assert len(got) == 1

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority)
    with pytest.raises(ApiUnavailableError, match="certificate"):
        ask(endpoint, ca_bundle=str(other))
    assert len(got) == 1


@pytest.mark.usefixtures("_named")
def test_doctor_tells_a_certificate_that_is_not_trusted_from_a_server_that_is_not_there(
    tls: tuple[str, str, list[dict[str, str]]], tmp_path: Path
) -> None:
    settings = Settings.load(environ={}, endpoint=tls[0], api_key=KEY, spool_dir=str(tmp_path))

    checks = {check.what: check for check in examine(settings)}

    assert checks["TLS"].result is Result.FAILED
    assert "certificate" in checks["TLS"].found
    assert "ca_bundle" in checks["TLS"].remedy
    assert "server" not in checks


@pytest.mark.usefixtures("_named")
def test_a_certificate_for_another_name_is_refused(tls: tuple[str, str, list[dict[str, str]]]) -> None:
    endpoint, authority, got = tls

    with pytest.raises(ApiUnavailableError, match="certificate|mismatch"):
        ask(endpoint.replace("atomscale.test", "localhost"), ca_bundle=authority)
    assert got == []


# ---- what comes from outside -----------------------------------------------------------------------------------------


def test_what_a_server_says_reaches_the_log_quoted_and_cut(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    server.misbehave(Fault(call="chunk_multi", status=422, body=NASTY + "x" * 100_000))
    for name, doc in growth(points=15, start_metadata={"plan_name": NASTY, "synth_source_id": 42}):
        callback(name, doc)
    assert not callback.drain(timeout_s=10)

    ours = [record.getMessage() for record in caplog.records if record.name.startswith("atomscale_bluesky")]
    assert any("was answered 422" in text for text in ours)
    assert all(character.isprintable() for text in ours for character in text)
    assert max(map(len, ours)) < 2000


def test_an_answer_that_unpacks_to_many_times_its_size_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(200 * 2**20), 9)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    for endpoint in answering(head + bomb):
        with pytest.raises(ApiUnavailableError, match="encoding"):
            ask(endpoint)


def answering(answer: bytes) -> Iterator[str]:
    """The address of a server that answers one request with these bytes, whatever they are."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            with contextlib.suppress(OSError):  # whoever asked has seen enough
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    thread.join(10)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x1b[31mEVIL\x07 " + b"x" * 60_000 + b"\r\n\r\n",
        b"HTTP/1.1 \x1b[31m200 OK\r\n\r\n",
        b"HTTP/1.1 200 \x1b[31m\r\nContent-Length: \x1b[31m\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\x1b[31m" + b"z" * 3000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: \x1b[31m\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 \x1b[31m\r\nLocation: http://[\x1b[31m/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 \x1b[31m\r\nRetry-After: \x1b[31m" + b"9" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nRetry-After: " + b"9" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 6\r\n\r\n\x1b[31mx",
    ],
    ids=lambda answer: repr(answer[:40]),
)
def test_what_a_server_sends_in_the_place_of_an_answer_is_an_error_in_one_printable_short_line(answer: bytes) -> None:
    for endpoint in answering(answer):
        with pytest.raises(ApiUnavailableError) as raised:
            ask(endpoint)
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_body_of_a_redirect_is_not_unpacked_either(status: int) -> None:
    bomb = gzip.compress(bytes(200 * 2**20), 9)
    head = f"HTTP/1.1 {status} Go\r\nLocation: /there\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    for endpoint in answering(head.encode() + bomb):
        tracemalloc.start()
        try:
            with pytest.raises(ApiUnavailableError):
                ask(endpoint)
            assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "data_id", ["../../admin", "a/b", "https://evil.invalid", "x" * 1000, "", "a?b", "a\nb", "%2e%2e"]
)
def test_a_data_id_that_looks_like_none_never_becomes_part_of_a_path(
    callback: AtomscaleCallback, server: LocalServer, data_id: str
) -> None:
    import json

    server.misbehave(Fault(call="initialize", status=200, body=json.dumps({"data_id": data_id}), times=1))
    for name, doc in growth(points=15):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    (stream,) = [stream for stream in server.streams() if stream.points]
    assert all(request.data_id in {None, stream.data_id} for request in server.requests())


@pytest.mark.parametrize("uid", ["../../escape", "/etc/passwd", "con"])
def test_nothing_of_a_document_becomes_part_of_a_path(make_callback: MakeCallback, tmp_path: Path, uid: str) -> None:
    callback = make_callback(offline=True)
    for name, doc in growth(points=3, start_metadata={"plan_name": uid, "sample": uid}):
        callback(name, doc | ({"uid": uid} if name == "start" else {"run_start": uid} if "run_start" in doc else {}))
    callback.close()

    paths = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert any(path.startswith("spool/") for path in paths)
    assert all(uid[:20] not in path for path in paths)
    assert all(path == "spool" or path.startswith("spool/") for path in paths)


@pytest.mark.parametrize("uid", ["a\x00b\x1b[31m\nforged line", "x" * 10_000_000], ids=["unprintable", "long"])
def test_a_uid_that_nobody_could_print_is_refused_and_reaches_no_log_as_it_is(
    make_callback: MakeCallback, caplog: pytest.LogCaptureFixture, uid: str
) -> None:
    callback = make_callback(offline=True)
    for name, doc in growth(points=3):
        callback(name, doc | ({"uid": uid} if name == "start" else {"run_start": uid} if "run_start" in doc else {}))
        if name == "event":
            callback(name, doc | {"descriptor": uid})

    assert not callback.status()
    assert callback.ignored["malformed document"]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) > 2
    assert all(message.isprintable() and len(message) < 2000 for message in messages)


def test_nothing_that_comes_from_outside_can_become_code() -> None:
    forbidden_modules = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
    forbidden_calls = {"eval", "exec", "compile", "__import__"}
    found: list[str] = []
    for path in Path(atomscale_bluesky.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names} & forbidden_modules
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module.partition(".")[0]} & forbidden_modules
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & forbidden_calls
            found += [f"{path.name}: {name}" for name in names]
    assert found == ["forms.py: pickle"]  # of a sender that the user trusts, with `--trust-pickle` alone


# ---- the spool's folder ----------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name == "nt", reason="modes and owners of POSIX")


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_folders_are_0700_and_files_0600_whatever_the_umask(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, umask: int
) -> None:
    if umask == 0o777 and os.getuid() != 0:
        pytest.skip("who is not root could not open its own files")
    server.misbehave(Fault(call="finalize", status=503))
    before = os.umask(umask)
    try:
        callback = make_callback()
        for name, doc in growth(points=25):
            callback(name, doc)
        wait_until(lambda: server.requests("finalize"))
        wait_until(lambda: list(spool_dir.glob("*/head.jsonl")))
        wait_until(lambda: (spool_dir / "trouble.json").exists())
        modes = {
            path.relative_to(spool_dir).as_posix(): (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
            for path in [spool_dir, *spool_dir.rglob("*")]
        }
        server.behave()
        assert callback.drain(timeout_s=20)
        wait_until(lambda: (spool_dir / "history.jsonl").exists())
        wait_until(lambda: (spool_dir / "clock.json").exists())
        write_findings(spool_dir, Findings(server.url, 0.0, "1", ()))
        notes = [path for path in spool_dir.iterdir() if path.is_file()]
    finally:
        os.umask(before)

    assert len(modes) >= 7
    allowed = {(True, 0o700), (False, 0o600)} | ({(True, 0o700 & ~umask), (False, 0o600 & ~umask)})
    assert set(modes.values()) <= allowed, modes
    assert len(notes) >= 4
    assert {path.name: stat.S_IMODE(path.stat().st_mode) & 0o177 for path in notes} == {path.name: 0 for path in notes}


@posix
@pytest.mark.skipif(os.name != "nt" and os.getuid() != 0, reason="only root gives folders away")
def test_a_spool_that_belongs_to_another_user_is_refused(make_callback: MakeCallback, spool_dir: Path) -> None:
    spool_dir.mkdir()
    os.chown(spool_dir, 12345, 12345)

    with pytest.raises(SettingsError, match="belongs to another user"):
        make_callback()


def test_without_tls_the_key_leaves_for_no_other_machine() -> None:
    with pytest.raises(SettingsError, match="http"):
        Settings.load(environ={}, endpoint="http://api.example.org", api_key=KEY)

    assert Settings.load(environ={}, endpoint="http://api.example.org", api_key=KEY, allow_http=True)


# ---- links in the place of files -------------------------------------------------------------------------------------

OF_A_RUN = ["journal-0001.jsonl", "head.jsonl", "ledger.jsonl", "orders.jsonl"]
LOCKS = ["writer.lock", "uploader.lock", "orders.lock"]


@posix
@pytest.mark.parametrize("name", [*OF_A_RUN, *LOCKS])
def test_a_link_in_the_place_of_a_runs_file_is_not_followed_and_costs_that_run_alone(
    make_callback: MakeCallback,
    server: LocalServer,
    spool_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    victim = tmp_path / "precious"
    victim.write_text("line one\nand no newline at its end")
    victim.chmod(0o644)
    before = victim.stat()
    with make_callback(offline=True) as callback:
        for kind, doc in growth(points=15):
            callback(kind, doc)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)

    callback = make_callback()
    for kind, doc in growth(points=25):
        callback(kind, doc)
    wait_until(lambda: sum(stream.points for stream in server.streams()) == 50)
    wait_until(lambda: "cannot be delivered now" in caplog.text)
    callback.drain(timeout_s=1)

    (status,) = callback.status()
    assert (status.folder, status.state) == (str(folder), "unreadable")
    for said in (status.problem, caplog.text):
        assert f"{folder / name} is a link, which is not followed; remove the link" in said
    callback.close(timeout_s=0)
    after = victim.stat()
    assert victim.read_text() == "line one\nand no newline at its end"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert (folder / name).is_symlink()

    if name != "journal-0001.jsonl":
        (folder / name).unlink()
        assert make_callback().drain(timeout_s=20)
        assert sum(stream.points for stream in server.streams()) == 80


@posix
@pytest.mark.parametrize("uploader", ["thread", "process"])
def test_links_in_the_place_of_the_files_beside_the_runs_are_not_followed(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, tmp_path: Path, uploader: str
) -> None:
    make_callback(offline=True).close()
    endpoint = hashlib.sha256(server.url.encode()).hexdigest()[:8]
    names = ["history.jsonl", "history.lock", "trouble.json", "clock.json", f"probed-{endpoint}.json"]
    if uploader == "process":
        names += ["uploader.log.1", "uploader.stderr"]
    for name in names:
        (tmp_path / name).write_text(f"{name} of somebody else")
        (spool_dir / name).symlink_to(tmp_path / name)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    server.misbehave(Fault(status=503, times=3))

    callback = make_callback(uploader=uploader)
    for name, doc in growth(points=25):
        callback(name, doc)
    if uploader == "thread":
        wait_until(lambda: sum(stream.points for stream in server.streams()) == 50, timeout_s=30)
    assert not callback.drain(timeout_s=2)
    callback.close(timeout_s=0)

    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names} == before
    assert all((tmp_path / name).read_text() == f"{name} of somebody else" for name in names)
    assert all((spool_dir / name).is_symlink() for name in names)
    assert any(path.is_dir() for path in spool_dir.iterdir())  # the run is kept


@posix
def test_a_history_that_cannot_be_read_costs_no_run_that_begins(
    make_callback: MakeCallback, spool_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_callback(offline=True).close()
    (spool_dir / "history.jsonl").symlink_to(tmp_path / "nothing")
    callback = make_callback(offline=True)
    for name, doc in growth(points=5):
        callback(name, doc | ({"time": 1_700_000_000.0} if name == "start" else {}))

    assert [run.points.waiting for run in callback.status()] == [10]
    assert "although it may have been recorded before" in caplog.text


@posix
@pytest.mark.parametrize("name", ["ledger.jsonl", "journal-0001.jsonl", "writer.lock"])
def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, name: str
) -> None:
    with make_callback(offline=True) as callback:
        for kind, doc in growth(points=15):
            callback(kind, doc)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)

    callback = make_callback()
    for kind, doc in growth(points=25):
        callback(kind, doc)
    wait_until(lambda: sum(stream.points for stream in server.streams()) >= 50)
    callback.status()
    callback.drain(timeout_s=1)
    assert (folder / name).is_fifo()


@posix
@pytest.mark.skipif(os.name != "nt" and os.getuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_in_the_place_of_ours_is_refused(make_callback: MakeCallback, spool_dir: Path) -> None:
    with make_callback(offline=True) as callback:
        for name, doc in growth(points=15):
            callback(name, doc)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    (folder / "ledger.jsonl").touch()
    os.chown(folder / "ledger.jsonl", 12345, 12345)

    (status,) = make_callback(offline=True).status()

    assert status.state == "unreadable"
    assert "ledger.jsonl belongs to another user" in status.problem


# ---- what a copied spool names ---------------------------------------------------------------------------------------

EVIL_IDS = [
    "../../tags/data-items/?x=", "a/b", "a?b", "a#b", "a%2fb", "..", ".", "a..b", "a b", "a\nb", "a\\b", "", "x" * 300,
]  # fmt: skip


def planted(spool_dir: Path, facts: list[LedgerLine]) -> Path:
    """The folder of the one run in the spool, with a ledger that somebody else wrote."""
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    (folder / "ledger.jsonl").write_bytes(b"".join(checksummed(encode(fact)) for fact in facts))
    return folder


@pytest.mark.parametrize(
    "facts",
    [
        *([Initialized(0, data_id, "metrology")] for data_id in EVIL_IDS),
        *([Initialized(0, "id", family)] for family in ("../admin?x=", "", "metrology/..", "Metrology")),
        [Initializing(0, "../admin?x=")],
        *([Resolved(Links(project_id=project))] for project in ("../../admin?x=", "a b")),
        [Resolved(Links(physical_sample_id="../x"))],
        [Together((Initialized(0, "../x", "metrology"),))],
    ],
    ids=lambda facts: repr(facts[0])[:60],
)
def test_a_ledger_that_names_what_cannot_be_an_id_costs_its_run_and_leads_no_request(
    make_callback: MakeCallback,
    server: LocalServer,
    spool_dir: Path,
    caplog: pytest.LogCaptureFixture,
    facts: list[LedgerLine],
) -> None:
    with make_callback(offline=True) as callback:
        for name, doc in growth(points=15):
            callback(name, doc)
    opened = Opened(0, "primary", 0, "run start", "x", "aaaa", points_per_chunk=10, segment=1, offset=0)
    folder = planted(spool_dir, [opened, *facts])
    kept = (folder / "journal-0001.jsonl").read_bytes()

    callback = make_callback()
    for name, doc in growth(points=25):
        callback(name, doc)
    wait_until(lambda: sum(stream.points for stream in server.streams()) == 50)
    wait_until(lambda: "cannot be delivered now" in caplog.text)

    (status,) = wait_until(lambda: (runs := callback.status()) and len(runs) == 1 and runs)
    assert status.state == "unreadable"
    assert "nothing is sent for this run" in status.problem
    assert status.problem.isprintable()
    assert not callback.close(timeout_s=2)
    paths = {request.path.partition("?")[0] for request in server.requests()}
    ids = {stream.data_id for stream in server.streams()}
    assert not [path for path in paths if "admin" in path or ".." in path or "/tags" in path]
    assert len(ids) == 1
    assert (folder / "journal-0001.jsonl").read_bytes() == kept

    watching = make_callback(offline=True)
    assert [run.state for _ in range(2) for run in watching.status()] == ["unreadable"] * 2
    (folder / "ledger.jsonl").unlink()
    assert [run.points.waiting for run in watching.status()] == [30]  # mended


@pytest.mark.parametrize("evil", EVIL_IDS)
def test_a_client_puts_only_ids_into_a_path(server: LocalServer, evil: str) -> None:
    client = Client(Settings.load(environ={}, endpoint=server.url, api_key=server.api_key))
    before = len(server.requests())
    for ask in (
        lambda: client.finalize("metrology", evil),
        lambda: client.points("metrology", evil, {"a": 1}),
        lambda: client.rename(evil, "label"),
        lambda: client.project_samples(evil),
        lambda: client.track_sample(evil, "sample", active=False),
        lambda: client.finalize(evil, "id"),
        lambda: client.points(evil, "id", {"a": 1}),
        lambda: client.initialize(evil, label="x", points_per_chunk=10, links=Links()),
    ):
        with pytest.raises(ApiRefusedError, match="nothing was sent") as raised:
            ask()
        assert str(raised.value).isprintable()
    assert len(server.requests()) == before
    client.close()


def test_a_header_that_names_a_project_which_cannot_be_one_parks_its_run(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    with make_callback(offline=True) as callback:
        for name, doc in growth(points=15):
            callback(name, doc)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    journal = folder / "journal-0001.jsonl"
    first, _, rest = journal.read_bytes().partition(b"\n")
    header = msgspec.structs.replace(decode_journal(first[9:]), links=Links(project_id="../../admin?x="))
    journal.write_bytes(checksummed(encode(header)) * 2 + rest.partition(b"\n")[2])

    callback = make_callback()
    (status,) = wait_until(lambda: (runs := callback.status()) and runs[0].state == "parked" and runs)
    assert "../../admin?x=" in status.problem
    assert not callback.drain(timeout_s=5)
    assert not [request for request in server.requests() if "admin" in request.path]


@pytest.mark.parametrize("data_id", ["e81d0f3a-6d1e-4d5b-a3d4-51f0c2b97a10", "ds_1.2~3", "urn:uuid:1", "x" * 255])
def test_an_id_of_another_form_is_taken_from_a_ledger(data_id: str) -> None:
    state = LedgerState()
    state.apply(Opened(0, "primary", 0, "run start", "x", "aaaa", points_per_chunk=10, segment=1, offset=0))
    state.apply(Initialized(0, data_id, "tool-state"))

    assert state.streams[0].data_id == data_id
