"""Chambers behind the gateway of the example `facility`: tokens, one key, one limit, and a proxy that is restarted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import trustme
from integration.gateway import FACILITY, Gateway, most_within, temporary
from integration.needs import need_program
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

KEY = "the-key-of-the-account-5f0c9a"
Start = Callable[..., "subprocess.Popen[str]"]
MakeGateway = Callable[..., Gateway]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="nginx is tried where facilities run it")

CHAMBER = """
import os, sys, time
from runs import growth
from atomscale_bluesky import AtomscaleCallback

name, runs, points, keys, pace_s = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
with AtomscaleCallback() as callback:
    for _ in range(runs):
        for document in growth(points, keys=keys, start_metadata={"plan_name": name}):
            callback(*document)
            time.sleep(pace_s)
    print("recorded", flush=True)
    sys.exit(not callback.drain(float(os.environ["DRAIN_S"])))
"""


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(control=True, api_key=KEY) as server:
        yield server


@pytest.fixture
def make_gateway(server: LocalServer, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[MakeGateway]:
    """A gateway in front of the local server, ended with the test."""
    made: list[Gateway] = []

    def make(*chambers: str, site: int, chamber: int) -> Gateway:
        ports = (free_port(), free_port())
        gateway = Gateway(tmp_path / "nginx", upstream=server.url, key=KEY, chambers=chambers, ports=ports)
        gateway.limit(site=site, chamber=chamber)
        made.append(gateway)
        gateway.start()
        return gateway

    yield make
    for gateway in made:
        gateway.stop(signal.SIGKILL)


@pytest.fixture
def start_chamber(start_process: Start, tmp_path: Path) -> Start:
    """A chamber's session, in a process with its own token and spool."""

    def start(
        gateway: Gateway, name: str, *, runs: int = 1, points: int, keys: int = 2, pace_s: float = 0.0, **settings: str
    ) -> subprocess.Popen[str]:
        given = {f"ATOMSCALE_BLUESKY_{setting.upper()}": value for setting, value in settings.items()}
        return start_process(
            sys.executable, "-c", CHAMBER, name, str(runs), str(points), str(keys), str(pace_s),
            ATOMSCALE_API_ENDPOINT=gateway.url,
            ATOMSCALE_API_KEY=gateway.tokens[name],
            ATOMSCALE_BLUESKY_SPOOL_DIR=str(tmp_path / "chambers" / name / "spool"),
            HOME=str(tmp_path / "chambers" / name),
            DRAIN_S="1500",
            **given,
        )  # fmt: skip

    return start


def streams_of(server: LocalServer, chamber: str) -> list[Any]:
    return [stream for stream in server.streams() if stream.label.startswith(f"{chamber} ")]


def assert_arrived_once(server: LocalServer, chamber: str, *, runs: int, points: int, keys: int = 2) -> None:
    """Each reading of a chamber is there once, in order, and its streams are finalized."""
    streams = streams_of(server, chamber)
    assert [stream.status for stream in streams] == ["success"] * runs
    for stream in streams:
        held = server.points(stream.data_id)
        assert {name: series.values for name, series in held.items()} == {
            f"k{i}": [n + i / 10 for n in range(points)] for i in range(keys)
        }


def keyless(processes: list[subprocess.Popen[str]], chambers: Path) -> bool:
    """True if the account's key is nowhere where a chamber's user could see it."""
    found = [psutil.Process(process.pid) for process in processes if process.poll() is None]
    found += [child for process in found for child in process.children(recursive=True)]
    told = [text for process in found for text in process.environ().values()]
    told += [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    told += [path.read_text(errors="replace") for path in chambers.rglob("*") if path.is_file()]
    return not any(KEY in text for text in told)


def times_at(server: LocalServer) -> list[float]:
    return [request.time for request in server.requests()]


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_chambers_deliver_with_tokens_through_a_gateway_that_is_restarted_ten_times(
    make_gateway: MakeGateway, start_chamber: Start, server: LocalServer, tmp_path: Path
) -> None:
    names, site = [f"mbe-{n}" for n in range(5)], 40
    gateway = make_gateway(*names, site=site, chamber=20)
    processes = [
        start_chamber(
            gateway, name, points=600, max_connections="2", uploader="process" if name == "mbe-0" else "thread"
        )
        for name in names
    ]
    for n in range(10):
        before = server.counts().total
        wait_until(lambda before=before: server.counts().total > before + 10, 60)
        assert keyless(processes, tmp_path / "chambers")
        gateway.stop(signal.SIGKILL if n % 2 else signal.SIGTERM)
        gateway.start()

    for process in processes:
        assert process.wait(120) == 0
    for name in names:
        assert_arrived_once(server, name, runs=1, points=600)
    assert {request.key for request in server.requests()} == {"right"}
    assert keyless(processes, tmp_path / "chambers")
    times = times_at(server)
    assert most_within(times, 5.0) <= 5.0 * site * 1.05 + 1
    log = gateway.log()
    assert 'chamber="mbe-0"' in log
    assert not any(secret in log for secret in (KEY, *gateway.tokens.values()))


@pytest.mark.integration
def test_all_chambers_together_never_ask_more_often_than_the_site_may(
    make_gateway: MakeGateway, start_chamber: Start, server: LocalServer
) -> None:
    names, site = [f"mbe-{n}" for n in range(4)], 20
    gateway = make_gateway(*names, site=site, chamber=15)
    processes = [start_chamber(gateway, name, points=400) for name in names]
    for process in processes:
        assert process.wait(120) == 0
    for name in names:
        assert_arrived_once(server, name, runs=1, points=400)

    times = times_at(server)
    assert len(times) >= 4 * 40
    assert 5.0 * site * 0.5 < most_within(times, 5.0) <= 5.0 * site * 1.05 + 1  # it is what held them up


@pytest.mark.integration
def test_a_large_backlog_of_one_chamber_does_not_hold_up_a_fresh_chunk_of_another(
    make_gateway: MakeGateway,
    start_chamber: Start,
    server: LocalServer,
    make_callback: Callable[..., AtomscaleCallback],
) -> None:
    site, chamber = 30, 20
    gateway = make_gateway("full", "fresh", site=site, chamber=chamber)
    backlog = start_chamber(gateway, "full", points=2500, points_per_chunk="10")
    wait_until(lambda: sum(stream.points for stream in streams_of(server, "full")) > 500)

    took: list[float] = []
    callback = make_callback(endpoint=gateway.url, api_key=gateway.tokens["fresh"], points_per_chunk=10)
    for _ in range(4):
        begin = time.monotonic()
        for document in growth(10, start_metadata={"plan_name": "fresh"}):
            callback(*document)
        assert callback.drain(60)
        took.append(time.monotonic() - begin)
    assert streams_of(server, "full")[0].points < 5000  # it was still at it
    assert max(took) < 5.0
    assert backlog.wait(120) == 0
    assert_arrived_once(server, "full", runs=1, points=2500)
    assert_arrived_once(server, "fresh", runs=4, points=10)
    assert most_within(times_at(server), 5.0) <= 5.0 * site * 1.05 + 1


@pytest.mark.integration
def test_a_chamber_that_is_revoked_keeps_its_readings_and_no_other_notices(
    make_gateway: MakeGateway, start_chamber: Start, server: LocalServer, tmp_path: Path
) -> None:
    gateway = make_gateway("stolen", "other", site=50, chamber=30)
    gateway.revoke("stolen")
    wait_until(lambda: asked(gateway, "stolen") == 401)
    stolen, other = (start_chamber(gateway, name, points=50) for name in ("stolen", "other"))

    assert other.wait(60) == 0
    assert_arrived_once(server, "other", runs=1, points=50)
    wait_until(lambda: "does not know this token" in told(tmp_path))
    assert streams_of(server, "stolen") == []
    assert server.counts().by_status.get("401") is None  # the gateway says no, and Atomscale is not asked

    gateway.permit("stolen")
    assert stolen.wait(60) == 0
    assert_arrived_once(server, "stolen", runs=1, points=50)


@pytest.mark.integration
def test_a_new_key_of_the_account_goes_into_one_file(
    make_gateway: MakeGateway, start_chamber: Start, server: LocalServer
) -> None:
    gateway = make_gateway("mbe-1", "mbe-2", site=50, chamber=30)
    gateway.use_key("the-key-that-was-revoked")
    wait_until(lambda: asked(gateway, "mbe-1") in {401, 403})
    processes = [start_chamber(gateway, name, points=50) for name in gateway.tokens]
    wait_until(lambda: sum(server.counts().by_status.get(status, 0) for status in ("401", "403")) > 2)

    gateway.use_key(KEY)

    for process in processes:
        assert process.wait(90) == 0
    for name in gateway.tokens:
        assert_arrived_once(server, name, runs=1, points=50)


@pytest.mark.integration
def test_a_chamber_that_asks_too_often_is_told_for_how_long_to_wait(make_gateway: MakeGateway) -> None:
    gateway = make_gateway("greedy", site=50, chamber=5)

    def ask(_: int) -> requests.Response:
        return requests.get(gateway.url, headers={"X-API-KEY": gateway.tokens["greedy"]}, timeout=60)

    with ThreadPoolExecutor(30) as pool:
        answers = [answer for answer in pool.map(ask, range(30)) if answer.status_code == 429]
    assert answers
    assert {answer.headers["Retry-After"] for answer in answers} == {"1"}
    assert "too often" in answers[0].json()["detail"]


@pytest.mark.integration
def test_nginx_takes_every_file_of_the_example_once_it_has_a_certificate(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    certificate = trustme.CA().issue_cert("atomscale.example.org")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "gateway.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "gateway.key")
    shutil.copytree(FACILITY / "nginx", tmp_path / "nginx")
    site = tmp_path / "nginx" / "atomscale" / "site.conf"
    there = site.read_text().replace("/etc/ssl/atomscale", str(tmp_path)).replace("/var/log/nginx", str(tmp_path))
    site.write_text(there.replace("listen 443", f"listen 127.0.0.1:{free_port()}"))
    main = tmp_path / "nginx" / "nginx.conf"
    main.write_text(
        f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{temporary(tmp_path)}include atomscale-gateway.conf;\n}}\n"
    )

    command = [need_program("nginx", "nginx-light"), "-t", "-e", str(tmp_path / "error.log"), "-c", str(main)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert "warn" not in ended.stderr


@pytest.mark.integration
def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool = need_program("promtool", "prometheus")
    for what, file in (("config", "prometheus.yml"), ("rules", "atomscale-rules.yml")):
        command = [promtool, "check", what, str(FACILITY / "prometheus" / file)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.integration
def test_alerts_fire_for_the_chamber_that_they_are_about(tmp_path: Path) -> None:
    promtool = need_program("promtool", "prometheus")

    def series(name: str, chamber: str, values: str, **more: str) -> dict[str, str]:
        labels = {"chamber": chamber, "spool": "/s"} | more
        told = ",".join(f'{label}="{value}"' for label, value in labels.items())
        return {"series": f"atomscale_bluesky_{name}{{{told}}}", "values": values}

    def fires(alert: str, at: str, chamber: str, summary: str, **labels: str) -> dict[str, Any]:
        expected = {
            "exp_labels": {"chamber": chamber, "spool": "/s"} | labels,
            "exp_annotations": {"summary": f"{chamber} {summary}"},
        }
        return {"alertname": alert, "eval_time": at, "exp_alerts": [expected]}

    def silent(alert: str, at: str) -> dict[str, Any]:
        return {"alertname": alert, "eval_time": at, "exp_alerts": []}

    test = {
        "interval": "1m",
        "input_series": [
            series("outage_age_seconds", "a", "0+60x60"),
            series("outage_age_seconds", "b", "0x60"),
            series("points_total", "a", "0x30 5x30", fate="lost"),
            series("points_total", "b", "0+100x60", fate="delivered"),
            series("spool_takes_readings", "a", "1x60"),
            series("spool_takes_readings", "b", "0x60"),
            series("spool_size_bytes", "a", "81x60"),
            series("spool_size_limit_bytes", "a", "100x60"),
        ],
        "alert_rule_test": [
            silent("AtomscaleOutage", "10m"),
            fires("AtomscaleOutage", "20m", "a", "could not deliver for 20m 0s", severity="ticket"),
            silent("AtomscaleOutageOfTheSite", "50m"),
            silent("AtomscalePointsLost", "20m"),
            fires("AtomscalePointsLost", "40m", "a", "has lost points: a journal is damaged", severity="page",
                  fate="lost"),
            fires("AtomscaleReadingsLeftOut", "5m", "b", "keeps no new readings: the spool or its disk is full",
                  severity="page"),
            fires("AtomscaleSpoolFillsUp", "50m", "a", "will have no room for new readings within a day",
                  severity="ticket"),
        ],
    }  # fmt: skip
    rules = str(FACILITY / "prometheus" / "atomscale-rules.yml")
    file = tmp_path / "test.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": [rules], "evaluation_interval": "1m", "tests": [test]}))

    ended = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_forty_chambers_deliver_ten_million_points_within_the_limit_of_the_site(
    make_gateway: MakeGateway, start_chamber: Start, start_process: Start, server: LocalServer, tmp_path: Path,
    free_port: Callable[[], int],
) -> None:  # fmt: skip
    names, site, events, keys = [f"mbe-{n:02}" for n in range(40)], 60, 5000, 50
    gateway = make_gateway(*names, site=site, chamber=12)
    address = f"127.0.0.1:{free_port()}"
    spools = [str(tmp_path / "chambers" / name / "spool") for name in names]
    start_process(sys.executable, "-m", "atomscale_bluesky", "metrics", "--listen", address, *spools)
    wait_until(lambda: "metrics are at" in told(tmp_path), 120)
    processes = [start_chamber(gateway, name, points=events, keys=keys, points_per_chunk="100") for name in names]
    for n in range(10):
        before = server.counts().total
        wait_until(lambda before=before: server.counts().total > before + 120, 600)
        gateway.stop(signal.SIGKILL if n % 2 else signal.SIGTERM)
        gateway.start()

    for process in processes:
        assert process.wait(1800) == 0
    for name in names:
        assert_arrived_once(server, name, runs=1, points=events, keys=keys)
    assert keyless(processes, tmp_path / "chambers")
    assert most_within(times_at(server), 5.0) <= 5.0 * site * 1.05 + 1
    scrape = requests.get(f"http://{address}/metrics", timeout=60).text
    assert delivered(scrape) == 40 * events * keys


def delivered(scrape: str) -> float:
    """The points that were delivered, of all spools of a scrape."""
    lines = [line for line in scrape.splitlines() if line.startswith("atomscale_bluesky_points_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'fate="delivered"' in line)


def asked(gateway: Gateway, chamber: str) -> int:
    headers = {"X-API-KEY": gateway.tokens[chamber]}
    return requests.get(f"{gateway.url}/data_entries/", headers=headers, timeout=10).status_code


def told(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.glob("output-*.txt"))
