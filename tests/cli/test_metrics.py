"""`metrics`: the account of spools in the form that Prometheus reads, from a process beside the plan."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.cli.exposition import COUNTERS, GAUGES
from atomscale_bluesky.server import Fault, LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
PREFIX = "atomscale_bluesky_"
ROOT = Path(__file__).parents[2]
FACILITY = ROOT / "examples" / "facility"


class Exporter:
    """The command in a process of its own, without key and server."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def samples(self) -> dict[str, dict[tuple[str, ...], float]]:
        """The samples of a scrape, by name and labels but for the spool, without the package's prefix."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(self.ask().text):
            for sample in family.samples:
                labels = tuple(sample.labels[name] for name in sorted(sample.labels) if name != "spool")
                found.setdefault(sample.name.removeprefix(PREFIX), {})[labels] = sample.value
        return found

    def ask(self, **headers: str) -> requests.Response:
        return requests.get(f"{self.url}/metrics", headers=headers, timeout=20)


@contextmanager
def exporting(*arguments: str) -> Iterator[Exporter]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("ATOMSCALE_API", "AS_"))}
    command = [sys.executable, "-m", "atomscale_bluesky", "metrics", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[4].removesuffix("/metrics;")
        yield Exporter(process, url)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.fixture
def exporter(spool_dir: Path) -> Iterator[Exporter]:
    with exporting(str(spool_dir)) as found:
        yield found


def test_the_account_is_served_while_a_run_waits_is_delivered_and_leaves(
    exporter: Exporter, make_callback: MakeCallback, server: LocalServer
) -> None:
    assert exporter.samples()["spool_readable"] == {(): 0}
    server.misbehave(Fault(status=503))
    callback = make_callback()
    for name, doc in growth(25):
        callback(name, doc)

    found = wait_until(lambda: (now := exporter.samples()).get("outage_age_seconds", {}).get(()) and now)
    assert found["spool_readable"] == {(): 1}
    assert found["spool_points"] == {
        ("waiting",): 50, ("delivered",): 0, ("refused",): 0, ("discarded",): 0, ("left_out",): 0, ("lost",): 0,
    }  # fmt: skip
    assert found["spool_runs"]["delivering",] == 1
    assert 0 < found["oldest_waiting_point_age_seconds"][()] < 120
    assert "last_success_timestamp_seconds" not in found
    assert found["spool_size_bytes"][()] > 0
    assert found["spool_takes_readings"] == {(): 1}
    assert found["points_seen_total"] == {(): 50}

    server.behave()
    assert callback.drain(60)
    found = wait_until(lambda: (now := exporter.samples())["runs_finished_total"][()] and now)
    assert found["points_total"]["delivered",] == 50
    assert found["points_seen_total"] == {(): 50}
    assert found["chunks_confirmed_total"] == {(): 3}
    assert sum(found["spool_points"].values()) == sum(found["spool_runs"].values()) == 0
    assert found["outage_age_seconds"] == found["oldest_waiting_point_age_seconds"] == {(): 0}
    assert found["last_success_timestamp_seconds"][()] > 0


def test_it_writes_nothing_and_says_nothing_of_runs_and_keys(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(offline=True)
    for name, doc in growth(5, start_metadata={"plan_name": "secret_recipe", "weird": "x"}):
        callback(name, doc)
    callback.close()
    before = {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in spool_dir.rglob("*")}

    with exporting(str(spool_dir)) as exporter:
        wait_until(lambda: exporter.samples()["spool_points"]["waiting",] == 10)
        text = exporter.ask().text

    assert before == {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in spool_dir.rglob("*")}
    assert "secret_recipe" not in text
    assert server.api_key not in text


def test_several_spools_are_told_apart_and_named_by_their_folders(make_callback: MakeCallback, tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for n, place in enumerate(places, start=1):
        callback = make_callback(offline=True, spool_dir=str(place))
        for name, doc in growth(5 * n):
            callback(name, doc)
        callback.close()

    with exporting(*map(str, places), str(places[0])) as exporter:
        families = {family.name: family for family in text_string_to_metric_families(exporter.ask().text)}

    points = families[f"{PREFIX}spool_points"].samples
    waiting = {sample.labels["spool"]: sample.value for sample in points if sample.labels["fate"] == "waiting"}
    assert waiting == {str(places[0]): 10, str(places[1]): 20}
    assert len(points) == 12


def test_names_follow_the_conventions_and_every_metric_is_there(callback: AtomscaleCallback, spool_dir: Path) -> None:
    for name, doc in growth(5):
        callback(name, doc)
    assert callback.drain(30)

    with exporting(str(spool_dir)) as exporter:
        families = list(text_string_to_metric_families(exporter.ask().text))
        answer = exporter.ask(Accept="application/openmetrics-text; version=1.0.0")

    names = {family.name.removeprefix(PREFIX): family for family in families}
    assert set(names) == {"build_info", *GAUGES, *COUNTERS}
    for name, family in names.items():
        assert family.type == ("counter" if name in COUNTERS else "gauge")
        assert family.documentation.endswith(".")
        assert all(set(sample.labels) <= {"spool", "fate", "state", "reason", "version"} for sample in family.samples)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert len(list(openmetrics(answer.text))) == len(families)  # its parser is strict


def test_alerts_and_dashboard_use_only_metrics_and_labels_of_a_scrape(
    callback: AtomscaleCallback, exporter: Exporter
) -> None:
    for name, doc in growth(5):
        callback(name, doc)
    assert callback.drain(30)
    found = wait_until(lambda: (now := exporter.samples()).get("last_success_timestamp_seconds") and now)
    known = {name: {label for labels in samples for label in labels} for name, samples in found.items()}
    known["clock_offset_seconds"] = set()  # measured once an hour

    rules = (FACILITY / "prometheus" / "atomscale-rules.yml").read_text()
    dashboard = json.loads((FACILITY / "grafana" / "atomscale.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = re.findall(rf"{PREFIX}(\w+)(?:{{([^}}]*)}})?", rules + " ".join(asked))
    assert len(used) > 25
    for name, labels in used:
        assert name in known, name
        for label, value in re.findall(r'(\w+)="(\w+)"', labels):
            assert label in {"fate", "state", "reason"}
            assert value in known[name]


def test_each_alert_is_explained_in_the_guide() -> None:
    rules = (FACILITY / "prometheus" / "atomscale-rules.yml").read_text()
    guide = (ROOT / "docs" / "how-to" / "run-a-facility.md").read_text(encoding="utf-8")
    assert re.findall(r"alert: (\w+)", rules)
    assert set(re.findall(r"alert: (\w+)", rules)) == set(re.findall(r"^\| `(Atomscale\w+)`", guide, re.MULTILINE))


def test_only_get_of_the_own_name_is_answered(exporter: Exporter) -> None:
    assert exporter.ask(Host="evil.example").status_code == 421
    assert exporter.ask(Origin="https://evil.example").status_code == 403
    assert requests.post(f"{exporter.url}/metrics", timeout=5).status_code == 405
    assert requests.head(f"{exporter.url}/metrics", timeout=5).content == b""
    assert requests.get(f"{exporter.url}/etc/passwd", timeout=5).status_code == 404


@pytest.mark.parametrize(
    ("listen", "complaint"),
    [
        ("127.0.0.1", "is no address"),
        ("127.0.0.1:http", "is no address"),
        (":9464", "is no address"),
        ("127.0.0.1:70000", "is no address"),
        ("0.0.0.0:0", "--allow-remote"),
    ],
)
def test_an_address_that_cannot_be_used_ends_the_command(
    listen: str, complaint: str, say: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, complained = say("metrics", "--listen", listen)
    assert code == 2
    assert complaint in complained


def test_a_port_that_is_taken_ends_the_command(say: Callable[..., tuple[int, str, str]]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, complained = say("metrics", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 2
    assert "cannot be used" in complained


def test_one_reading_of_the_files_serves_many_scrapes(make_callback: MakeCallback, spool_dir: Path) -> None:
    import psutil

    callback = make_callback(offline=True)
    for _ in range(40):
        for name, doc in growth(2, keys=1):
            callback(name, doc)
    callback.close()

    def reads(found: dict[str, dict[tuple[str, ...], float]]) -> float:
        return found["spool_read_duration_seconds"][()]

    with exporting(str(spool_dir)) as exporter:
        seen = {reads(exporter.samples()) for _ in range(20)}
        assert len(seen) <= 3  # one answer after the other, and few of them read the files
        assert psutil.Process(exporter.process.pid).num_fds() < 60


def test_help_names_the_path_and_the_port(say: Callable[..., tuple[int, str, str]]) -> None:
    code, said, _ = say("metrics", "--help")
    assert code == 0
    assert "/metrics" in said
    assert "127.0.0.1:9464" in said
