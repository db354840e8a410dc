"""The demo as a person runs it, and what it takes for equal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.demo import Emitted, Moment, Series, compare, join_streams
from atomscale_bluesky.demo.watcher import Watcher
from atomscale_bluesky.server import Control, LocalServer
from atomscale_bluesky.spool.spool import Spool


def series(**changes: Any) -> dict[str, Series]:
    given = {"unit": "K", "times": [1000.0, 1001.0, 1002.0], "values": [1.0, 2.0, 3.0]} | changes
    return {"T": Series(**given)}


@pytest.fixture
def demo(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `atomscale-bluesky demo` in an empty folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "atomscale_bluesky", "demo", *arguments],
            cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8", timeout=100,
        )  # fmt: skip

    return run


# ---- the comparison --------------------------------------------------------------------------------------------------


def test_the_same_points_are_equal() -> None:
    (one,) = compare(series(), series())

    assert one.equal


def test_a_time_may_differ_by_what_the_milliseconds_of_the_api_cannot_hold() -> None:
    (one,) = compare(series(times=[1000.0004, 1001.0009, 1002.0]), series(times=[1000.0, 1001.001, 1002.0]))

    assert one.equal


@pytest.mark.parametrize(
    ("arrived", "said"),
    [
        (series(values=[1.0, 2.0000000000000004, 3.0]), "point 1: 2.0 arrived as 2.0000000000000004"),
        (series(values=[1.0, 3.0, 2.0]), "point 1: 2.0 arrived as 3.0"),
        (series(values=[1.0, None, 3.0]), "point 1: 2.0 arrived as None"),
        (series(times=[1000.0, 1001.0, 1002.002]), "point 2: time 1002.0 arrived as 1002.002"),
        (series(times=[1000.0, None, 1002.0]), "point 1: time 1001.0 arrived as None"),
        (series(unit="degC"), "unit 'K' arrived as 'degC'"),
        (series(times=[1000.0, 1001.0], values=[1.0, 2.0]), "2 of 3 points arrived"),
        (series(times=[1000.0, 1001.0, 1002.0, 1003.0], values=[1.0, 2.0, 3.0, 4.0]), "4 of 3 points arrived"),
        ({}, "did not arrive"),
    ],
)
def test_anything_else_that_differs_is_said(arrived: dict[str, Series], said: str) -> None:
    (one,) = compare(series(), arrived)

    assert one.difference == said


def test_a_channel_that_nobody_emitted_is_a_difference() -> None:
    comparisons = compare(series(), series() | {"ghost": Series()})

    assert [(one.channel, one.difference) for one in comparisons] == [("T", None), ("ghost", "was never emitted")]


def test_the_streams_of_a_run_are_joined_in_their_order() -> None:
    first = {"T": ("K", [1.0, 2.0], [10.0, 20.0])}
    second = {"T": ("K", [3.0], [30.0]), "p": (None, [3.0], [0.5])}

    assert join_streams([first, second]) == {
        "T": Series("K", [1.0, 2.0, 3.0], [10.0, 20.0, 30.0]),
        "p": Series(None, [3.0], [0.5]),
    }


def test_what_was_emitted_is_taken_from_the_documents_of_the_primary_event_stream_alone() -> None:
    emitted = Emitted()
    emitted("start", {"uid": "run", "time": 5.0})
    emitted("descriptor", {"uid": "d1", "name": "primary", "data_keys": {"T": {"units": "K"}}})
    emitted("descriptor", {"uid": "d2", "name": "baseline", "data_keys": {"T": {"units": "K"}}})
    emitted("event", {"descriptor": "d1", "time": 6.0, "data": {"T": 1.5}})
    emitted("event", {"descriptor": "d2", "time": 7.0, "data": {"T": 2.5}})

    assert emitted.channels == {"T": Series("K", [6.0], [1.5])}
    assert (emitted.run_uid, emitted.points, emitted.times) == ("run", 1, [6.0])


# ---- the whole of it -------------------------------------------------------------------------------------------------


def test_the_demo_streams_through_an_outage_and_finds_every_point_equal(
    demo: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    ended = demo("--quick")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    assert "the server is made unreachable" in ended.stdout
    assert "the server can be reached again" in ended.stdout
    assert len(re.findall(r"  equal", ended.stdout)) == 21
    verdict = re.search(r"All ([\d ]+) points of 21 channels arrived as measured", ended.stdout)
    assert verdict is not None
    assert int(verdict[1].replace(" ", "")) % 21 == 0
    assert "RE.subscribe(AtomscaleCallback())" in ended.stdout
    picture = (tmp_path / "atomscale-demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 20_000 < len(picture) < 600_000


def test_an_outage_that_ends_just_before_the_demo_does_is_said_to_have_ended(tmp_path: Path) -> None:
    said: list[str] = []

    class Told:
        def step(self, text: str) -> None:
            said.append(text)

        def moment(self, moment: Moment) -> None:
            pass

    with LocalServer(control=True) as server:
        settings = Settings.load(
            environ={}, endpoint=server.url, api_key=server.api_key, spool_dir=tmp_path, spool_min_free_bytes=0
        )
        with AtomscaleCallback(settings=settings) as callback:
            control = Control(server.control_url)
            watcher = Watcher(callback, Spool(tmp_path, read_only=True), Told(), control, 0.3)
            watcher.start()
            watcher.take_server_away()
            while not said or not control.info().reachable:
                time.sleep(0.001)
            watcher.finish()

    assert said == ["the server is made unreachable for 0.3 s; the plan goes on", "the server can be reached again"]
    assert watcher.outage is not None


def test_the_demo_opens_the_page_and_stays_until_ctrl_c(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f"#!{sys.executable}\nimport sys; open({str(tmp_path / 'opened')!r}, 'w').write(sys.argv[1])\n")
    browser.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-m", "atomscale_bluesky", "demo", "--quick", "--no-plot", "--open"],
        cwd=tmp_path, env=os.environ | {"BROWSER": f"{browser} %s", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, text=True, encoding="utf-8",
    ) as child:  # fmt: skip
        assert child.stdout is not None
        said = ""
        while "until you press Ctrl-C" not in said:
            said = child.stdout.readline()
            assert said, "the demo has ended"
        url = (tmp_path / "opened").read_text()
        assert url in said
        told = requests.get(f"{url}/page/overview", timeout=10).json()
        assert [stream["status"] for stream in told["streams"]] == ["complete"]
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


def test_the_demo_streams_to_a_server_that_is_named_and_leaves_it_alone(
    demo: Callable[..., subprocess.CompletedProcess[str]], server: LocalServer, tmp_path: Path
) -> None:
    ended = demo(
        "--quick", "--endpoint", server.url, "--no-plot", "--synth-source-id", "7", ATOMSCALE_API_KEY=server.api_key
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    (stream,) = server.streams()
    assert (stream.status, stream.synth_source_id, len(stream.channels)) == ("success", 7, 21)
    assert stream.data_id in ended.stdout
    assert "unreachable" not in ended.stdout
    assert list(tmp_path.glob("*.png")) == []


def test_a_point_that_comes_back_changed_fails_the_demo_and_is_named(
    demo: Callable[..., subprocess.CompletedProcess[str]], server: LocalServer, falsifier: str
) -> None:
    ended = demo("--quick", "--endpoint", falsifier, "--no-plot", ATOMSCALE_API_KEY=server.api_key)

    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert re.search(r"film_thickness: point 7: .* arrived as ", ended.stdout)
    assert "1 of 21 channels did not arrive as measured" in ended.stdout


def test_what_a_site_has_chosen_to_leave_out_does_not_reach_the_demo(
    demo: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "settings.toml").write_text('channels = ["!*"]\nendpoint = "https://atomscale.invalid"\n')
    ended = demo("--quick", "--no-plot", ATOMSCALE_BLUESKY_SETTINGS=str(tmp_path / "settings.toml"))

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_demo_says_in_one_line_that_a_port_is_taken(
    demo: Callable[..., subprocess.CompletedProcess[str]], server: LocalServer
) -> None:
    port = server.url.rpartition(":")[2]
    ended = demo("--port", port, "--no-plot")

    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"port {port}" in ended.stderr


def test_the_demo_says_in_one_line_that_a_server_wants_another_key(
    demo: Callable[..., subprocess.CompletedProcess[str]], server: LocalServer
) -> None:
    ended = demo("--endpoint", server.url, "--no-plot", ATOMSCALE_API_KEY="not-the-one")

    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "check the key in ATOMSCALE_API_KEY" in ended.stderr
    assert "not-the-one" not in ended.stdout + ended.stderr


def test_a_server_that_is_named_needs_a_key(capsys: pytest.CaptureFixture[str], server: LocalServer) -> None:
    assert main(["demo", "--endpoint", server.url, "--no-plot"]) == 2
    assert "no API key" in capsys.readouterr().err


def test_a_picture_needs_a_folder_that_exists(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--plot", str(tmp_path / "nowhere" / "picture.png")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_server_that_is_kept_runs_on_after_the_demo(demo: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    ended = demo("--quick", "--no-plot", "--keep")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = re.search(r"still at (\S+), with control at (\S+)\. .*\n.*process (\d+)", ended.stdout)
    assert said is not None
    try:
        (stream,) = Control(said[2]).streams()
        assert stream.status == "success"
    finally:
        os.kill(int(said[3]), signal.SIGTERM)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process of its own")
def test_ctrl_c_ends_the_demo_its_server_and_its_folder(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "atomscale_bluesky", "demo", "--no-plot"],
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        url, looks = "", 0
        for line in process.stdout:
            if found := re.search(r"it listens on (\S+)", line):
                url = found[1]
            looks += "confirmed" in line
            if looks == 2:  # bluesky takes no notice of Ctrl-C in the first moment of a run
                break
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "the run is aborted" in said
    assert complaint.strip() == "atomscale-bluesky: stopped"
    assert list(temporary.iterdir()) == []
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


@pytest.fixture
def falsifier(server: LocalServer) -> Iterator[str]:
    """The URL of a proxy before the server that changes one value of what is read back."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - http.server's name
            self._pass_on(None)

        def do_POST(self) -> None:  # noqa: N802
            self._pass_on(self.rfile.read(int(self.headers["Content-Length"] or 0)))

        def _pass_on(self, body: bytes | None) -> None:
            headers = {name: self.headers[name] for name in ("X-API-KEY", "Content-Type") if self.headers[name]}
            answer = requests.request(self.command, server.url + self.path, data=body, headers=headers, timeout=10)
            content = answer.content
            if self.path.rstrip("/").endswith("timeseries") and answer.ok:
                told = answer.json()
                told["properties"]["film_thickness"]["values"][7] += 1e-9
                content = json.dumps(told).encode()
            self.send_response(answer.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, name="falsifier")
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()
        thread.join()
