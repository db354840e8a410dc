"""A Tiled catalogue: a real server, written to by a RunEngine with TiledWriter; each of its runs arrives once.

Server and writer are in an environment of their own, because they bring 130 packages.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from environments import python_with
from integration.recording import recorded
from integration.wire import Wire
from integration.workers import use
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, DocumentRecorder, Settings
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.sources.incoming import IDLE
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PACKAGES = (
    "tiled[server]>=0.2.20",
    "bluesky-tiled-plugins>=2.0.12",
    "adbc-driver-manager",  # with it and duckdb Tiled keeps tables
    "duckdb<2",
    "databroker[server]>=2.0.2",
    "bluesky>=1.14",
    "ophyd>=1.10",
)
SITE = Path(__file__).with_name("tiled_site.py")
START_S = 180  # a server of Tiled imports for some seconds, and for many on a busy machine
Say = Callable[..., tuple[int, str]]
Send = Callable[..., subprocess.Popen[str]]


class Site(NamedTuple):
    """A server with the runs that an engine has written, and the documents as they were emitted."""

    python: Path
    port: int
    folder: Path
    documents: dict[str, list[Document]]

    @property
    def address(self) -> str:
        """The catalogue."""
        return f"http://127.0.0.1:{self.port}/mbe"

    def copy(self, documents: Iterable[Document], file: Path) -> str:
        """Write documents into the catalogue, and return their run's uid."""
        documents = list(documents)
        file.write_text("".join(json.dumps(document) + "\n" for document in documents))
        self.run("copy", self.api, str(file))
        return str(documents[0][1]["uid"])

    def end(self, uid: str, stop: Mapping[str, Any]) -> None:
        """Write a run's stop document."""
        from tiled.client import from_uri

        run: Any = from_uri(self.api)["mbe"][uid]
        run.update_metadata(metadata={**run.metadata, "stop": stop})
        run.context.http_client.close()

    @property
    def api(self) -> str:
        """The server, with the key."""
        return f"http://127.0.0.1:{self.port}/api/v1?api_key=secret"

    def run(self, *arguments: str) -> None:
        """Do something with the site's own tools."""
        done = subprocess.run([self.python, SITE, *arguments], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(python: Path, folder: Path, *more: str) -> Iterator[int]:
    """A server of Tiled, which ends with the `with`."""
    port = free_port()
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        command = [python, SITE, "serve", str(folder), str(port), *more]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, START_S)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tiled")
    python = python_with("tiled-0.2.20-databroker-2.0.2", PACKAGES)
    with serving(python, folder / "server") as port:
        site = Site(python, port, folder / "server", {})
        site.run("write", site.api, str(folder))
        site.documents.update({path.stem: recorded(path) for path in sorted(folder.glob("*.jsonl"))})
        yield site


@pytest.fixture(autouse=True)
def _delivers_to_this_server(monkeypatch: pytest.MonkeyPatch, server: LocalServer, spool_dir: Path) -> None:
    use(server, spool_dir, monkeypatch)
    monkeypatch.setenv("TILED_API_KEY", "secret")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run the command; its exit code, and what it said with line breaks as spaces."""

    def run(*arguments: Any) -> tuple[int, str]:
        code = main(["send", "tiled", *map(str, arguments)])
        said, complaint = capsys.readouterr()
        return code, " ".join((said + complaint).replace("\N{NO-BREAK SPACE}", "").split())

    return run


Series = tuple[str, str, list[float | None], list[float | None], str | None]


def points(server: LocalServer) -> list[Series]:
    """Label of the stream, name, times, values and unit of every channel. A label ends with where it was sent from."""
    return sorted(
        (str(stream.label).partition(" [")[0], name, series.times, series.values, series.units)
        for stream in server.streams()
        for name, series in server.points(stream.data_id).items()
    )


def uid_of(documents: list[Document]) -> str:
    return str(documents[0][1]["uid"])


def the_runs(site: Site, *names: str) -> list[str]:
    """The options that name these runs."""
    return [option for name in names for option in ("--run", uid_of(site.documents[name]))]


# ---- what arrives ----------------------------------------------------------------------------------------------------


def test_runs_of_a_catalogue_arrive_with_the_channels_values_times_and_units_of_live_ones(
    site: Site, server: LocalServer, say: Say, tmp_path: Path
) -> None:
    names = ["growth", "spectrum", *(f"short{n}" for n in range(5))]
    with LocalServer(control=True) as live:
        settings = Settings.load(environ={}, endpoint=live.url, api_key=live.api_key, spool_dir=str(tmp_path / "live"))
        callback = AtomscaleCallback(settings=settings)
        for name in names:
            for kind, doc in site.documents[name]:
                callback(kind, doc)
        callback.close(timeout_s=60)
        expected = points(live)

    code, said = say(site.address, *the_runs(site, *names))

    assert code == 0, said
    assert "7 runs read" in said
    assert "All of it is delivered." in said
    assert points(server) == expected
    assert {name for _, name, *_ in expected} >= {"zones[0]", "zones[2]", "pressure", "motor"}
    assert {unit for *_, unit in expected} == {"mbar", None}
    assert {stream.status for stream in server.streams()} == {"success"}

    code, said = say(site.address, *the_runs(site, *names))
    assert (code, "0 runs read, and 7 runs that had been taken before: 0 rows taken" in said) == (0, True)
    assert points(server) == expected


def test_runs_are_chosen_by_time_number_and_scan_id(site: Site, say: Say, spool_dir: Path) -> None:
    first, last = (site.documents[name][0][1] for name in ("growth", "short4"))
    second = site.documents["spectrum"][0][1]

    def listed(*options: object) -> int:
        code, said = say(site.address, "--dry-run", *options)
        assert code == 0, said
        return sum(uid_of(documents)[:8] in said for documents in site.documents.values())

    assert listed("--since", "2024-01-01", *the_runs(site, *site.documents)) == 7
    assert listed("--since", "2100-01-01") == 0
    assert listed("--until", "2024-01-01") == 0
    assert listed("--scan-id", second["scan_id"], *the_runs(site, "growth")) == 2
    assert listed("--run", first["uid"][:8], "--limit", 1) == 1
    assert listed("--limit", 2) == 2
    assert say(site.address, "--dry-run", "--run", last["uid"], "--since", "2100-01-01")[0] == 2
    assert not spool_dir.exists()


def test_a_dry_run_tells_which_runs_are_known_and_what_the_catalogue_says_of_the_others(
    site: Site, server: LocalServer, say: Say
) -> None:
    assert say(site.address, *the_runs(site, "short0"))[0] == 0

    code, said = say(site.address, "--dry-run", *the_runs(site, "short0", "short1"), "--physical-sample", "GaN 17")

    assert code == 0
    assert " 3 42 GaN 17 sent before" in said
    assert " 4 42 GaN 17 would be sent " in said
    assert len(server.streams()) == 1


def test_what_old_runs_lack_is_filled_in(site: Site, server: LocalServer, say: Say, tmp_path: Path) -> None:
    bare = [(name, {k: v for k, v in doc.items() if k != "synth_source_id"}) for name, doc in growth(points=3)]
    uid = site.copy(bare, tmp_path / "bare.jsonl")

    code, said = say(site.address, "--run", uid, "--synth-source-id", 7, "--tag", "archive")

    assert code == 0, said
    (stream,) = server.streams()
    assert stream.synth_source_id == 7
    assert "archive" in stream.tags


def test_events_that_the_catalogue_has_dropped_are_reported_as_not_given(
    site: Site, server: LocalServer, say: Say, tmp_path: Path, spool_dir: Path
) -> None:
    documents = list(growth(points=5, keys=1))
    events = [doc for name, doc in documents if name == "event"]
    for n, doc in enumerate(events):
        doc["seq_num"] = min(n + 1, 3)  # three of one number, of which the exporter gives the last
    uid = site.copy(documents, tmp_path / "repeated.jsonl")

    code, said = say(site.address, "--run", uid)

    assert code == 0, said
    assert held(server)["k0"] == [0.0, 1.0, 4.0]
    (entry,) = Spool(spool_dir).history.entries_of(uid)
    assert entry["not_given"] == {"primary": 2}


# ---- runs that do not come -------------------------------------------------------------------------------------------


def test_a_run_without_a_stop_document_is_left_until_it_has_one(
    site: Site, server: LocalServer, say: Say, tmp_path: Path, spool_dir: Path
) -> None:
    documents = list(growth(points=8, keys=1))
    uid = site.copy(documents[:-1], tmp_path / "going-on.jsonl")

    code, said = say(site.address, "--run", uid)
    assert code == 1
    assert f"Run {uid} has no stop document yet, so it is left for another time" in said
    assert "would be left for another time" in say(site.address, "--run", uid, "--dry-run")[1]
    assert server.streams() == []

    site.end(uid, documents[-1][1])
    code, said = say(site.address, "--run", uid)
    assert code == 0, said
    (stream,) = server.streams()
    assert (stream.status, stream.points) == ("success", 8)


def test_an_unfinished_run_is_sent_where_that_is_asked_for_and_its_rest_follows(
    site: Site, server: LocalServer, say: Say, tmp_path: Path, spool_dir: Path
) -> None:
    documents = list(growth(points=8, keys=1))
    uid = site.copy(documents[:-1], tmp_path / "dead.jsonl")

    code, said = say(site.address, "--run", uid, "--unfinished")
    assert code == 1
    assert f"Run {uid} has no stop document, so it counts as interrupted" in said
    before = points(server)
    assert say(site.address, "--run", uid, "--unfinished")[0] == 1
    assert points(server) == before

    site.end(uid, documents[-1][1])
    assert say(site.address, "--run", uid)[0] == 0
    assert sorted(held(server)["k0"]) == [float(n) for n in range(8)]
    assert "1 run that had been taken before" in say(site.address, "--run", uid)[1]


def test_a_run_that_cannot_be_read_is_named_and_the_others_go_on(site: Site, server: LocalServer, say: Say) -> None:
    uid = uid_of(site.documents["spectrum"])
    described = {path: path.read_bytes() for path in (site.folder / "data" / "mbe" / uid).rglob("zarr.json")}
    assert described
    for path in described:
        path.write_bytes(b"damaged")
    try:
        code, said = say(site.address, *the_runs(site, "spectrum", "short0"))
    finally:
        for path, content in described.items():
            path.write_bytes(content)

    assert code == 1
    assert f"1 run or document cannot be used: run {uid} cannot be read" in said
    assert "1 run read: 3 rows taken" in said
    assert [stream.points for stream in server.streams()] == [6 + 3]

    assert say(site.address, *the_runs(site, "spectrum", "short0"))[0] == 0


# ---- a catalogue of databroker, which keeps documents in MongoDB ----------------------------------------------------


@pytest.fixture(scope="module")
def databroker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[list[Document]]]]:
    """A catalogue's address, and its runs: 120, more than are asked for at a time, and one without a stop."""
    folder = tmp_path_factory.mktemp("databroker")
    runs = [list(growth(points={0: 60, 120: 40}.get(n, 2), start_metadata={"scan_id": n + 1})) for n in range(121)]
    for n, documents in enumerate(runs):
        for _, doc in documents:
            doc["time"] = doc.get("time", 0) + n  # so their order is known
        if n == 120:
            documents.pop()
        (folder / f"{n}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    with serving(python_with("tiled-0.2.20-databroker-2.0.2", PACKAGES), folder, "databroker") as port:
        yield f"http://127.0.0.1:{port}/", runs


def test_runs_that_databroker_kept_in_mongodb_arrive_as_live_ones(
    databroker: tuple[str, list[list[Document]]], server: LocalServer, say: Say, tmp_path: Path
) -> None:
    address, runs = databroker
    with LocalServer(control=True) as live:
        settings = Settings.load(environ={}, endpoint=live.url, api_key=live.api_key, spool_dir=str(tmp_path / "live"))
        callback = AtomscaleCallback(settings=settings)
        for documents in runs[:120]:
            for kind, doc in documents:
                callback(kind, doc)
        callback.close(timeout_s=60)
        expected = points(live)

    code, said = say(address)

    assert code == 1  # because of the last one
    assert "120 runs read: 298 rows taken" in said
    assert f"Run {uid_of(runs[120])} has no stop document yet, so it is left for another time" in said
    assert points(server) == expected
    assert {stream.status for stream in server.streams()} == {"success"}


def test_a_run_that_was_recorded_in_part_is_completed_from_databroker_by_the_uids_of_its_events(
    databroker: tuple[str, list[list[Document]]], server: LocalServer, say: Say
) -> None:
    address, runs = databroker
    with DocumentRecorder(Settings.load()) as recorder:
        for kind, doc in runs[0][:20]:
            recorder.take(kind, doc)

    code, said = say(address, "--run", uid_of(runs[0]))

    assert code == 0, said
    assert sorted(held(server)["k0"]) == [float(n) for n in range(60)]


def test_runs_of_databroker_are_chosen_by_time_number_and_uid(
    databroker: tuple[str, list[list[Document]]], say: Say
) -> None:
    address, runs = databroker

    def listed(*options: object) -> list[int]:
        code, said = say(address, "--dry-run", *options)
        assert code == 0, said
        return [n for n, documents in enumerate(runs) if f"{uid_of(documents)[:8]} " in said]

    assert listed("--limit", 110) == [*range(110)]
    assert listed("--run", uid_of(runs[7])[:8]) == [7]
    assert listed("--scan-id", 4, "--scan-id", 101) == [3, 100]
    assert listed("--since", "2100-01-01") == listed("--until", "2024-01-01") == []
    assert say(address, "--dry-run", "--run", "00000000-0000")[0] == 2


def test_an_unfinished_run_of_databroker_is_sent_where_that_is_asked_for(
    databroker: tuple[str, list[list[Document]]], server: LocalServer, say: Say
) -> None:
    address, runs = databroker

    code, said = say(address, "--run", uid_of(runs[120]), "--unfinished")

    assert code == 1
    assert f"Run {uid_of(runs[120])} has no stop document, so it counts as interrupted" in said
    assert held(server)["k0"] == [float(n) for n in range(25)]  # databroker gives the last ones with the stop


# ---- outages and processes that end ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(site: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A run that takes a while, and how many events it has."""
    file = tmp_path_factory.mktemp("large") / "large.jsonl"
    return site.copy(growth(points=6000, keys=1), file), 6000


@pytest.fixture
def wire(site: Site) -> Iterator[Wire]:
    wire = Wire(site.port)
    yield wire
    wire.close()


@pytest.fixture
def sending() -> Iterator[Send]:
    """Commands in processes of their own, which end with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "atomscale_bluesky", "send", "tiled", *arguments]
        environment = os.environ | {"TILED_RETRY_ATTEMPTS": "2"}
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()
        process.wait()


def test_a_connection_that_breaks_in_mid_run_leaves_the_run_for_the_next_time(
    site: Site, server: LocalServer, say: Say, wire: Wire, large: tuple[str, int], spool_dir: Path
) -> None:
    uid, events = large
    runs = ["--run", uid_of(site.documents["short0"]), "--run", uid]
    address = f"http://127.0.0.1:{wire.port}/mbe"
    wire.cut_after = 300_000
    code, said = say(address, *runs)
    assert code == 1
    assert f"run {uid} cannot be read: RemoteProtocolError" in said
    assert "5 times" in said
    assert held(server).keys() == {"det", "motor", "motor_setpoint"}
    assert list(Spool(spool_dir).run_folders()) == []

    wire.cut_after = None
    assert say(address, *runs)[0] == 0
    assert held(server)["k0"] == [float(n) for n in range(events)]


def test_a_catalogue_that_goes_away_ends_the_command_which_says_so(
    site: Site, server: LocalServer, wire: Wire, large: tuple[str, int], sending: Send
) -> None:
    uid, events = large
    address = f"http://127.0.0.1:{wire.port}/mbe"
    wire.silent.set()
    process = sending(address, "--run", uid)
    assert wire.waits.wait(START_S)
    wire.close()
    said, _ = process.communicate(timeout=START_S)
    assert process.returncode == 1
    assert "cannot be read" in said
    assert "Traceback" not in said

    process = sending(site.address, "--run", uid)
    assert process.communicate(timeout=START_S)[1] is None
    assert process.returncode == 0
    assert held(server)["k0"] == [float(n) for n in range(events)]


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals to a process of its own")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_although_the_server_is_silent(
    wire: Wire, number: signal.Signals, sending: Send
) -> None:
    wire.silent.set()
    process = sending(f"http://127.0.0.1:{wire.port}/mbe")
    assert wire.waits.wait(START_S)
    process.send_signal(number)
    said, _ = process.communicate(timeout=40)  # the client's own retries take longer
    assert process.returncode == 128 + number
    assert "Begin again whenever you like" in said


def test_killed_again_and_again_each_reading_arrives_once(
    site: Site, server: LocalServer, say: Say, large: tuple[str, int], spool_dir: Path, sending: Send
) -> None:
    uid, events = large
    killed_while_recording = 0
    for _ in range(4):
        before = set(spool_dir.glob("*/journal-*"))

        def recording(before: set[Path] = before) -> bool:
            return any(file.stat().st_size > 20_000 for file in set(spool_dir.glob("*/journal-*")) - before)

        process = sending(site.address, "--run", uid)
        wait_until(lambda recording=recording, process=process: recording() or process.poll() is not None, START_S)
        process.kill()
        killed_while_recording += process.wait() == -signal.SIGKILL
    assert killed_while_recording > 0

    code, said = say(site.address, "--run", uid)

    assert code == 0, said
    assert sorted(held(server)["k0"]) == [float(n) for n in range(events)]
    assert SpoolStatus(Spool(spool_dir)).status().points.lost == 0


# ---- keys and addresses ----------------------------------------------------------------------------------------------


def test_a_key_in_the_address_a_wrong_one_and_a_missing_one_are_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, sending: Send
) -> None:
    def refused(address: str) -> str:
        process = sending(address)
        said, _ = process.communicate(timeout=START_S)
        assert (process.returncode, said.count("\n")) == (2, 1), said
        return said

    said = refused(f"{site.address}?api_key=secret")
    assert "put it into TILED_API_KEY" in said
    assert "=secret" not in said
    monkeypatch.setenv("TILED_API_KEY", "other")
    assert "refuses the key" in refused(site.address)
    monkeypatch.delenv("TILED_API_KEY")
    assert "put the key into TILED_API_KEY" in refused(site.address)


def test_an_address_without_runs_names_what_is_there(site: Site, say: Say) -> None:
    code, said = say(f"http://127.0.0.1:{site.port}")
    assert code == 2
    assert "there are no runs at this address; below it are mbe" in said
    assert say(f"http://127.0.0.1:{site.port}/other")[0] == 2
    assert say(f"http://127.0.0.1:{site.port}/ui/browse/mbe", "--dry-run", "--limit", 1)[0] == 0


def test_a_server_that_gives_no_documents_is_told_what_to_configure(site: Site, say: Say, tmp_path: Path) -> None:
    with serving(site.python, tmp_path / "bare", "bare") as port:
        bare = site._replace(port=port)
        bare.copy(growth(points=3), tmp_path / "run.jsonl")
        code, said = say(bare.address)
    assert code == 1
    assert "bluesky_tiled_plugins.exporters:json_seq_exporter" in said


def test_the_loop_of_the_documentation_takes_the_runs(site: Site, server: LocalServer) -> None:
    from atomscale_bluesky.sources import tiled

    with DocumentRecorder(redelivers=True) as recorder:
        runs = tiled.TiledRuns(site.address, run_uids=[uid_of(site.documents["short2"])], known=recorder.has_whole)
        for name, doc, ack in runs:
            recorder.take(name, doc)
            ack()
        assert [one for one in runs if one.name != IDLE] == []
        assert runs.known_runs == 1
