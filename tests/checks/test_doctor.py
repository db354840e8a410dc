"""Checks before a run, and what a person can order afterwards, through the command line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer

MakeCallback = Callable[..., AtomscaleCallback]


def run(*arguments: str, url: str, key: str, spool_dir: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atomscale_bluesky", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=os.environ
        | {
            "ATOMSCALE_API_ENDPOINT": url,
            "ATOMSCALE_API_KEY": key,
            "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
            "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        }
        | more,
    )


def doctor(server: LocalServer, spool_dir: Path, **more: str) -> tuple[int, dict[str, dict[str, str]]]:
    spool_dir.mkdir(mode=0o700, exist_ok=True)
    done = run("doctor", "--json", url=server.url, key=more.pop("key", server.api_key), spool_dir=spool_dir, **more)
    assert done.stdout, done.stderr
    return done.returncode, {check["what"]: check for check in json.loads(done.stdout)}


def test_when_all_is_well_every_check_passes(server: LocalServer, spool_dir: Path) -> None:
    code, checks = doctor(server, spool_dir, ATOMSCALE_BLUESKY_SYNTH_SOURCE_ID="42")

    assert code == 0
    assert {check["result"] for check in checks.values()} == {"passed"}
    assert set(checks) == {
        "API key", "spool", "file system", "room", "leftovers", "server", "TLS", "clock", "key works", "instrument",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "what", "found"),
    [
        ({"key": ""}, "API key", "not set"),
        ({"key": "wrong"}, "key works", "401"),
        ({"ATOMSCALE_BLUESKY_SYNTH_SOURCE_ID": "999"}, "instrument", "there is no instrument 999; there are 7"),
        (
            {"ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": str(10**18)},
            "room",
            "and 1000000000000 MB are to stay free (`spool_min_free_bytes`): new readings are left out",
        ),
    ],
)
def test_what_keeps_a_run_from_arriving_fails_its_check(
    server: LocalServer, spool_dir: Path, more: dict[str, str], what: str, found: str
) -> None:
    code, checks = doctor(server, spool_dir, **more)

    assert code == 1
    assert checks[what]["result"] == "failed"
    assert found in checks[what]["found"]
    assert checks[what]["remedy"]


@pytest.mark.parametrize("status", [403, 404])
def test_a_key_that_may_not_look_into_the_catalogue_is_not_called_wrong(
    server: LocalServer, spool_dir: Path, status: int
) -> None:
    server.misbehave(Fault(call="catalogue", status=status))
    code, checks = doctor(server, spool_dir)

    assert (code, checks["key works"]["result"]) == (0, "warning")
    assert checks["key works"]["found"].startswith(f"not known: GET data_entries/ was answered {status}")
    assert checks["key works"]["remedy"] == (
        "none, if readings arrive; else ask for the permissions that the key lacks"
    )


def test_a_session_that_leaves_delivery_to_a_service_needs_no_key(server: LocalServer, spool_dir: Path) -> None:
    code, checks = doctor(server, spool_dir, key="", ATOMSCALE_BLUESKY_UPLOADER="none")

    assert (code, checks["API key"]["result"]) == (0, "passed")
    assert "`uploader` is `none`" in checks["API key"]["found"]


def test_a_spool_at_its_limit_is_helped_by_delivery_or_a_higher_limit(
    server: LocalServer, spool_dir: Path, make_callback: MakeCallback
) -> None:
    with make_callback(offline=True) as callback:
        for name, doc in growth(12_000):
            callback(name, doc)
    more = {"ATOMSCALE_BLUESKY_SPOOL_MAX_BYTES": "1000000"}
    code, checks = doctor(server, spool_dir, **more)

    assert (code, checks["room"]["remedy"]) == (1, "deliver what waits, or raise `spool_max_bytes`")
    said = run("status", url=server.url, key=server.api_key, spool_dir=spool_dir, **more).stdout
    assert "(spool_max_bytes). What is delivered makes room; or raise that setting." in said


def test_a_large_number_reads_as_in_the_other_commands(
    server: LocalServer, spool_dir: Path, make_callback: MakeCallback
) -> None:
    with make_callback(offline=True) as callback:
        for name, doc in growth(700):
            callback(name, doc)

    assert "1 400 points of 1 run wait" in run("doctor", url=server.url, key="", spool_dir=spool_dir).stdout


def test_a_server_that_is_not_there_fails_with_a_remedy(server: LocalServer, spool_dir: Path) -> None:
    server.unreachable()
    code, checks = doctor(server, spool_dir)

    assert (code, checks["server"]["result"]) == (1, "failed")
    assert "refused" in checks["server"]["found"]


@pytest.mark.parametrize("key", [None, ""])
def test_an_endpoint_with_a_path_fails_and_the_remedy_names_the_path(
    server: LocalServer, spool_dir: Path, key: str | None
) -> None:
    more = {} if key is None else {"key": key}
    code, checks = doctor(server, spool_dir, ATOMSCALE_API_ENDPOINT=server.url + "/api/v1", **more)

    assert (code, checks["server"]["result"]) == (1, "failed")
    assert "answers, but not as Atomscale does" in checks["server"]["found"]
    assert checks["server"]["remedy"].startswith("leave out '/api/v1': ")


def test_another_service_at_the_endpoint_fails_with_the_address_of_atomscale(
    server: LocalServer, spool_dir: Path
) -> None:
    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}"
        code, checks = doctor(server, spool_dir, ATOMSCALE_API_ENDPOINT=url)
        other.shutdown()

    assert (code, checks["server"]["result"]) == (1, "failed")
    assert checks["server"]["remedy"] == "set `endpoint` to Atomscale's, such as https://api.atomscale.ai"
    assert "key works" not in checks


# Each is a file, or a variable of the environment, with a mistake that leaves open which server is meant.
@pytest.mark.parametrize(
    ("content", "variables", "found"),
    [
        ("points_per_chunk = \n", {}, "cannot be read"),
        ("endpoint = 'http://lab-server.example.org'\n", {}, "plain http"),
        ("endpoint = 'lab-server'\n", {}, "expected an address"),
        ("endpont = 'https://lab-server.example.org'\n", {}, "there is no setting 'endpont'"),
        ("offline = 'perhaps'\n", {}, "'offline'"),
        ("", {"ATOMSCALE_API_ENDPOINT": "http://lab-server.example.org"}, "plain http"),
        ("", {"ATOMSCALE_BLUESKY_API_ENDPOINT": "https://lab-server.example.org"}, "no effect"),
        ("", {"ATOMSCALE_BLUESKY_SETTING": "site.toml"}, "no effect"),
    ],
)
def test_no_server_is_asked_while_it_is_unclear_which_one_is_meant(
    server: LocalServer, spool_dir: Path, content: str, variables: dict[str, str], found: str
) -> None:
    file = spool_dir.parent / "settings.toml"
    file.write_text(content)
    environ = {"ATOMSCALE_BLUESKY_SETTINGS": str(file), "ATOMSCALE_API_ENDPOINT": ""} | variables
    with socket.create_server(("127.0.0.1", 0)) as proxy:  # whatever host is asked, the proxy would be asked for it
        proxy.setblocking(False)
        environ["HTTPS_PROXY"] = environ["HTTP_PROXY"] = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        code, checks = doctor(server, spool_dir, **environ)
        with pytest.raises(BlockingIOError):  # nobody has connected
            proxy.accept()

    assert code == 1
    assert found in checks["settings"]["found"]
    assert (checks["server"]["result"], checks["server"]["remedy"]) == ("failed", "first mend the settings")
    assert checks["server"]["found"].startswith("not asked: ")
    assert "allow_http" not in checks["server"]["found"]
    assert not {"TLS", "clock", "key works", "instrument"} & set(checks)


def test_a_broken_settings_file_leaves_the_spool_that_the_environment_names(
    server: LocalServer, spool_dir: Path
) -> None:
    file = spool_dir.parent / "settings.toml"
    file.write_text("spool_dir = \n")
    _, checks = doctor(server, spool_dir, ATOMSCALE_BLUESKY_SETTINGS=str(file))
    assert checks["spool"]["result"] == "passed"

    _, checks = doctor(server, spool_dir, ATOMSCALE_BLUESKY_SETTINGS=str(file), ATOMSCALE_BLUESKY_SPOOL_DIR="")
    assert checks["spool"]["found"] == "not looked at: no usable `spool_dir`"
    assert "room" not in checks


def test_a_clock_that_is_far_off_is_warned_about(server: LocalServer, spool_dir: Path) -> None:
    body = '{"receivedAtUnixMs": 1000, "transmittedAtUnixMs": 1000}'
    server.misbehave(Fault(call="time", status=200, body=body))

    code, checks = doctor(server, spool_dir)

    assert (code, checks["clock"]["result"]) == (0, "warning")
    assert "ahead of the server" in checks["clock"]["found"]


def test_points_that_wait_are_warned_about(server: LocalServer, spool_dir: Path, make_callback: MakeCallback) -> None:
    with make_callback(offline=True) as callback:
        for name, doc in growth(points=25):
            callback(name, doc)

    _, checks = doctor(server, spool_dir)

    assert checks["leftovers"]["result"] == "warning"
    assert checks["leftovers"]["found"].startswith(f"50 points of 1 run wait; nobody delivers 1 run for {server.url}")
    assert checks["leftovers"]["remedy"] == "the next session will, or now `atomscale-bluesky upload`"

    for more, found, remedy in (
        ({"ATOMSCALE_BLUESKY_UPLOADER": "none"}, "`uploader` is `none`", "start the service"),
        ({"key": ""}, "there is no API key here", "put the key into ATOMSCALE_API_KEY"),
        ({"ATOMSCALE_BLUESKY_OFFLINE": "1"}, "`offline` is on", ""),
        ({"ATOMSCALE_API_ENDPOINT": "http://127.0.0.1:9"}, "endpoint is another", f"upload --endpoint {server.url}"),
    ):
        check = doctor(server, spool_dir, **more)[1]["leftovers"]
        assert (check["result"], found in check["found"], remedy in check["remedy"]) == ("warning", True, True)


def test_points_that_a_living_session_delivers_need_nothing(
    server: LocalServer, spool_dir: Path, callback: AtomscaleCallback
) -> None:
    for name, doc in list(growth(points=25))[:-1]:  # the last chunk is not full, and the run goes on
        callback(name, doc)
    wait_until(lambda: callback.status().points.delivered == 40)

    check = doctor(server, spool_dir)[1]["leftovers"]
    assert (check["result"], check["remedy"]) == ("passed", "")
    assert check["found"] == "10 points of 1 run wait, and a process delivers them"

    server.misbehave(Fault(call=("chunk", "chunk_multi"), status=503))
    for name, doc in growth(points=25):
        callback(name, doc)
    wait_until(lambda: callback.status().trouble is not None)
    check = doctor(server, spool_dir)[1]["leftovers"]
    assert check["result"] == "warning"
    assert "Atomscale takes no data" in check["found"]
    assert check["remedy"] == "a process goes on trying; see `atomscale-bluesky status`"


def test_a_run_that_cannot_be_read_is_warned_about_and_needs_a_person(server: LocalServer, spool_dir: Path) -> None:
    folder = spool_dir / "20260101T020000-deadbeef"
    folder.mkdir(parents=True)
    for name in ("journal-0001.jsonl", "head.jsonl"):
        (folder / name).write_bytes(b"damaged\n")

    _, checks = doctor(server, spool_dir)
    status = run("status", url=server.url, key=server.api_key, spool_dir=spool_dir, COLUMNS="500")

    assert checks["leftovers"]["result"] == "warning"
    assert folder.name in checks["leftovers"]["found"]
    assert checks["leftovers"]["remedy"]
    assert status.returncode == 1
    assert f"{folder}  unreadable" in status.stdout
    assert "1970" not in status.stdout


def test_a_spool_that_cannot_be_made_fails_before_a_run_finds_out(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "spool"
    done = run("doctor", "--json", url=server.url, key=server.api_key, spool_dir=path)
    (check,) = [check for check in json.loads(done.stdout) if check["what"] == "spool"]

    assert (done.returncode, check["result"]) == (1, "failed")
    assert f"{tmp_path / 'file'} is no folder" in check["found"]
    assert "spool_dir" in check["remedy"]


def test_a_spool_that_is_a_file_is_named_with_one_remedy(server: LocalServer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    done = run("doctor", "--json", url=server.url, key=server.api_key, spool_dir=path)
    (check,) = [check for check in json.loads(done.stdout) if check["what"] == "spool"]

    assert check["found"] == f"spool folder '{path}' is a file and no folder"
    assert check["remedy"] == "choose another `spool_dir`"


def test_a_broken_settings_file_leaves_the_server_unasked_although_the_endpoint_is_given(
    server: LocalServer, spool_dir: Path
) -> None:
    file = spool_dir.parent / "settings.toml"
    file.write_text("points_per_chunk = \n")
    code, checks = doctor(server, spool_dir, ATOMSCALE_BLUESKY_SETTINGS=str(file))

    assert code == 1
    assert checks["server"]["found"] == (
        "not asked: what cannot be read or used of the settings may say which server is meant, or that none is to be "
        "asked"
    )
    file.write_text("offline = 'perhaps'\n")
    _, checks = doctor(server, spool_dir, ATOMSCALE_BLUESKY_SETTINGS=str(file))
    assert checks["server"]["found"] == "not asked: no usable `offline`"


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_does_not_tell_its_time_answers_all_the_same(
    server: LocalServer, spool_dir: Path, status: int
) -> None:
    server.misbehave(Fault(call="time", status=status))

    code, checks = doctor(server, spool_dir)

    assert code == 0
    assert {what: checks[what]["result"] for what in ("server", "TLS", "clock", "key works")} == {
        "server": "passed", "TLS": "passed", "clock": "warning", "key works": "passed",
    }  # fmt: skip
    assert str(status) in checks["clock"]["found"]


@pytest.fixture
def refused(callback: AtomscaleCallback, server: LocalServer) -> str:
    """A run one of whose chunks was refused; its uid."""
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=1, channel="k1", status=422))
    documents = list(growth(points=30))
    for name, doc in documents:
        callback(name, doc)
    assert not callback.drain(timeout_s=10)
    server.behave()
    return documents[0][1]["uid"]


def test_retry_reaches_the_living_process(
    refused: str, callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    done = run("retry", refused[:8], url=server.url, key=server.api_key, spool_dir=spool_dir)

    assert done.returncode == 0, done.stderr
    assert "within seconds" in done.stdout
    wait_until(lambda: not callback.status())
    assert held(server)["k1"] == [n + 0.1 for n in range(30)]


def test_discard_asks_first_and_does_nothing_without_an_answer(
    refused: str, callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    asked = run("discard", refused[:8], url=server.url, key=server.api_key, spool_dir=spool_dir)
    assert "Give up 10 points" in asked.stdout + asked.stderr
    assert "Nothing was done." in asked.stderr
    assert asked.returncode == 130

    done = run("discard", refused[:8], "--yes", url=server.url, key=server.api_key, spool_dir=spool_dir)

    assert done.returncode == 0, done.stderr
    wait_until(lambda: not callback.status())
    assert [stream.status for stream in server.streams()] == ["stream_active"]


def test_edit_mends_the_metadata_of_a_parked_run(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    documents = list(growth(points=30, start_metadata={"synth_source_id": "GEN-II"}))
    for name, doc in documents:
        callback(name, doc)
    assert not callback.drain(timeout_s=10)
    uid = documents[0][1]["uid"][:8]

    wrong = ("--synth-source-id", "42", "--project-id", "nonsense")
    bad = run("edit", uid, *wrong, url=server.url, key=server.api_key, spool_dir=spool_dir)
    assert (bad.returncode, "expected a UUID" in bad.stderr) == (2, True)
    done = run("edit", uid, "--synth-source-id", "42", url=server.url, key=server.api_key, spool_dir=spool_dir)

    assert done.returncode == 0, done.stderr
    wait_until(lambda: not callback.status())
    assert [(stream.status, stream.synth_source_id) for stream in server.streams()] == [("success", 42)]


def test_edit_is_refused_for_what_atomscale_has_already(refused: str, server: LocalServer, spool_dir: Path) -> None:
    done = run("edit", refused[:8], "--synth-source-id", "7", url=server.url, key=server.api_key, spool_dir=spool_dir)

    assert done.returncode == 1
    assert server.streams()[0].data_id in done.stderr


def test_settle_completes_a_run_whose_stop_never_came(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    *documents, _stop = growth(points=25)
    for name, doc in documents:
        callback(name, doc)
    assert callback.drain(timeout_s=30)

    done = run("settle", documents[0][1]["uid"], url=server.url, key=server.api_key, spool_dir=spool_dir)

    assert done.returncode == 0, done.stderr
    wait_until(lambda: not callback.status())
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


def test_a_run_that_has_stopped_needs_no_settling(refused: str, server: LocalServer, spool_dir: Path) -> None:
    done = run("settle", refused, url=server.url, key=server.api_key, spool_dir=spool_dir)

    assert done.returncode == 1
    assert "there is nothing to settle" in done.stderr


def test_a_status_says_whether_anybody_delivers_what_waits(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    def said() -> str:
        return run("status", url=server.url, key=server.api_key, spool_dir=spool_dir).stdout

    server.unreachable()
    with make_callback() as callback:
        for name, doc in growth(points=25):
            callback(name, doc)
        wait_until(lambda: list(spool_dir.glob("*/ledger.jsonl")))
        living = said()
        callback.close(timeout_s=0)
    assert "50 points waiting" in living
    assert "Nobody delivers" not in living
    assert "Nobody delivers 1 run" in said()


def test_a_run_that_is_not_there_is_said_so(server: LocalServer, spool_dir: Path, make_callback: MakeCallback) -> None:
    make_callback(offline=True).close()
    done = run("retry", "nothing", url=server.url, key=server.api_key, spool_dir=spool_dir)

    assert done.returncode == 1
    assert "no run in the spool begins with 'nothing'" in done.stderr
