"""`send`: recorded runs arrive once, whatever happens to the process that sends them."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import requests
from bluesky import RunEngine
from bluesky.callbacks.json_writer import JSONLinesWriter
from bluesky.plans import scan
from ophyd.sim import det, motor
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky import Settings
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

Say = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-m", "atomscale_bluesky", "send"]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run the command; its exit code, what it said with line breaks as spaces, and its complaints."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        code = main(["send", *map(str, arguments)])
        said, complaint = capsys.readouterr()
        return code, " ".join(said.replace("\N{NO-BREAK SPACE}", "").split()), complaint

    return run


def lines(documents: Iterable[Document]) -> str:
    return "".join(json.dumps(document) + "\n" for document in documents)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file with one run of 25 events of 2 keys."""
    path = tmp_path / "growth.jsonl"
    path.write_text(lines(growth(points=25)))
    return path


# ---- what arrives ----------------------------------------------------------------------------------------------------


def test_a_run_that_blueskys_own_writer_recorded_arrives_with_its_times(
    say: Say, server: LocalServer, tmp_path: Path
) -> None:
    engine = RunEngine({"synth_source_id": 42})
    times: list[float] = []
    engine.subscribe(JSONLinesWriter(str(tmp_path), filename="run"))
    engine.subscribe(lambda name, doc: times.append(doc["time"]), "event")
    engine(scan([det], motor, -1, 1, 7))
    (path,) = tmp_path.glob("run*")

    code, said, complaint = say(path)

    assert (code, complaint) == (0, "")
    assert "1 run read: 7 rows taken. " in said
    assert "All of it is delivered." in said
    (stream,) = server.streams()
    assert (stream.status, stream.synth_source_id) == ("success", 42)
    assert server.points(stream.data_id)["motor"].times == pytest.approx(times, abs=0.002)


def test_several_files_with_several_runs_arrive(say: Say, server: LocalServer, tmp_path: Path, recording: Path) -> None:
    other = tmp_path / "other.jsonl.gz"
    other.write_bytes(gzip.compress(lines([*growth(points=12, keys=1), *growth(points=3, keys=1)]).encode()))

    code, said, _ = say(recording, other)

    assert code == 0
    assert "3 runs read: 40 rows taken" in said
    assert sorted(held(server)["k0"]) == sorted(float(n) for n in (*range(25), *range(12), *range(3)))
    assert {stream.status for stream in server.streams()} == {"success"}


def test_a_run_that_was_sent_is_not_sent_again(say: Say, server: LocalServer, recording: Path) -> None:
    assert say(recording)[0] == 0
    code, said, _ = say(recording)

    assert code == 0
    assert "0 runs read, and 1 run that had been taken before: 0 rows taken" in said
    assert held(server)["k0"] == [float(n) for n in range(25)]
    assert len(server.streams()) == 1


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["--tag", "archive", "--tag", "2024"], {"archive", "2024"}),
        (["--tag", "archive, 2024"], {"archive, 2024"}),  # as `edit --tag`, and a text in a file or in metadata
        (["--tags", "archive, 2024"], {"archive", "2024"}),  # as before
    ],
)
def test_what_old_runs_lack_is_filled_in_and_what_they_say_stays(
    say: Say, server: LocalServer, tmp_path: Path, tags: list[str], expected: set[str]
) -> None:
    path = tmp_path / "runs.jsonl"
    bare = [(name, {k: v for k, v in doc.items() if k != "synth_source_id"}) for name, doc in growth(points=3)]
    own = growth(points=3, start_metadata={"physical_sample": "its own", "tags": ["old"], "synth_source_id": 7})
    path.write_text(lines([*bare, *own]))
    before = path.read_bytes()

    code, _, complaint = say(path, "--synth-source-id", 42, "--physical-sample", "GaN 17", *tags)

    assert (code, complaint) == (0, "")
    assert path.read_bytes() == before
    streams = {stream.synth_source_id: stream for stream in server.streams()}
    assert streams.keys() == {42, 7}
    assert set(streams[42].tags) == expected | {"bluesky: success"}  # and one that says how the run ended
    assert "archive" not in streams[7].tags
    with requests.Session() as session:
        session.headers["X-API-KEY"] = server.api_key
        found = session.get(f"{server.url}/physical_samples/").json()
    names = {sample["id"]: sample["name"] for sample in found}
    assert [names[streams[source].physical_sample_id] for source in (42, 7)] == ["GaN 17", "its own"]


def test_standard_input_is_read(server: LocalServer, recording: Path) -> None:
    done = subprocess.run([*COMMAND, "-"], input=recording.read_bytes(), capture_output=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, b"")
    assert held(server)["k0"] == [float(n) for n in range(25)]


def test_the_spool_only_is_filled_where_that_is_asked_for(
    say: Say, server: LocalServer, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATOMSCALE_API_KEY")
    assert say(recording)[0] == 2
    code, said, _ = say(recording, "--spool-only")

    assert code == 0
    assert "`atomscale-bluesky upload` delivers it" in said
    assert server.streams() == []
    (run,) = SpoolStatus(Spool(Settings.load().spool_path)).status()
    assert run.points.waiting == 50


def test_the_service_is_named_if_only_that_one_delivers(
    say: Say, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOMSCALE_BLUESKY_UPLOADER", "none")
    code, said, _ = say(recording, "--spool-dir", str(tmp_path / "archive"))

    assert code == 0
    upload = f"atomscale-bluesky upload --spool-dir {tmp_path / 'archive'}"
    assert f"It is in the spool; the service `{upload} --follow` delivers it." in said


# ---- what is odd in a file -------------------------------------------------------------------------------------------


def test_a_last_line_that_is_cut_off_is_named_and_the_run_counts_as_interrupted(
    say: Say, server: LocalServer, recording: Path
) -> None:
    recording.write_text(recording.read_text()[:-30])

    code, said, _ = say(recording)

    assert code == 1
    assert f"{recording}, line 28 is cut off: the file ends within this document" in said
    assert "has no stop document, so it counts as interrupted" in said
    assert held(server)["k0"] == [float(n) for n in range(25)]


def test_an_array_that_is_cut_off_behind_a_document_is_named(say: Say, recording: Path) -> None:
    runs = [*growth(points=5), *growth(points=5)]
    whole = json.dumps(runs)
    recording.write_text(whole[: whole.index('["start"', 10)])

    code, said, _ = say(recording, "--dry-run")

    assert code == 1
    assert f"{recording} is cut off: the file ends within an array of documents" in said


def test_the_rest_of_a_run_follows_when_the_file_has_grown(say: Say, server: LocalServer, recording: Path) -> None:
    whole = recording.read_text().splitlines(keepends=True)
    recording.write_text("".join(whole[:15]))
    assert say(recording)[0] == 1
    recording.write_text("".join(whole))

    code, said, _ = say(recording)

    assert code == 0
    assert "12 rows taken, 13 events known already" in said
    assert sorted(held(server)["k0"]) == [float(n) for n in range(25)]


def test_what_cannot_be_used_is_counted_with_its_reason(say: Say, server: LocalServer, recording: Path) -> None:
    whole = recording.read_text().splitlines(keepends=True)
    recording.write_text("".join([*whole[:5], "no document\n", *whole[5:], lines(list(growth(points=2))[1:])]))

    code, said, _ = say(recording)

    assert code == 1
    assert f"1 document cannot be used: {recording}, line 6 is no JSON" in said
    assert "4 documents of run" in said
    assert "whose start document is not there" in said
    assert held(server)["k0"] == [float(n) for n in range(25)]


def test_a_dry_run_tells_what_would_happen_and_changes_nothing(
    say: Say, server: LocalServer, recording: Path, tmp_path: Path, spool_dir: Path
) -> None:
    sent = tmp_path / "sent.jsonl"
    sent.write_text(lines(growth(points=3)))
    assert say(sent)[0] == 0
    bad = tmp_path / "bad.jsonl"
    bad.write_text(lines(growth(points=4, start_metadata={"synth_source_id": "the big one"})))
    cut = tmp_path / "cut.jsonl"
    cut.write_text(lines(list(growth(points=5))[:-1]))
    before = sorted(str(path) for path in spool_dir.rglob("*"))

    code, said, _ = say("--dry-run", sent, recording, bad, cut, "--physical-sample", "GaN 17")

    assert code == 1
    assert "grow 3 42" not in said
    assert said.count("GaN 17") == 4  # also of the one that would be parked
    for what in (
        "sent before",
        "25 42 GaN 17 would be sent",
        "would be parked",
        "would be sent as interrupted",
        "metadata 'synth_source_id' is 'the big one'",
    ):
        assert what in said
    assert len(server.streams()) == 1
    assert sorted(str(path) for path in spool_dir.rglob("*")) == before


def test_a_run_is_reported_by_two_lines_and_none_about_points_that_wait_for_a_moment(server: LocalServer) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), status=503, times=1))
    with subprocess.Popen([*COMMAND, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(lines(growth(points=5)))
        process.stdin.flush()
        # Its only chunk is sent when the run has stopped. It is to be sent again when the recording ends.
        wait_until(lambda: server.faults()[0].acted)
        said, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert [line for line in said.splitlines() if "waiting:" in line or "points delivered" in line] == []
    assert "1 run read: 5 rows taken." in said.splitlines()
    assert said.splitlines()[-1] == "All of it is delivered."


def test_a_dry_run_counts_the_events_of_a_run_once_however_many_files_hold_it(
    say: Say, recording: Path, tmp_path: Path
) -> None:
    whole = recording.read_text().splitlines(keepends=True)
    packed, begun, rest = tmp_path / "again.json.gz", tmp_path / "begun.jsonl", tmp_path / "rest.jsonl"
    packed.write_bytes(gzip.compress(recording.read_bytes()))
    begun.write_text("".join(whole[:12]))  # 10 events, and no stop document
    rest.write_text("".join([*whole[:2], *whole[12:]]))  # the other 15, behind the same start document

    for files in ([recording], [recording, packed], [begun, recording], [begun, rest], [packed, begun, rest]):
        assert " 25 42 " in say("--dry-run", *files)[1]


# ---- processes that end ----------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, int]:
    """A file that takes some seconds to send: three runs that take turns."""
    points = 4000
    runs = [list(growth(points=points, keys=1)) for _ in range(3)]
    path = tmp_path / "large.jsonl"
    path.write_text(lines(document for together in zip(*runs, strict=True) for document in together))
    return path, points


def rows_in(spool_dir: Path) -> int:
    """How many bytes of journals there are. A run that is delivered meanwhile has none."""
    found = 0
    for folder in spool_dir.iterdir() if spool_dir.exists() else ():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found += sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith("journal-"))
    return found


def test_killed_again_and_again_each_reading_arrives_once(
    say: Say, server: LocalServer, large: tuple[Path, int], spool_dir: Path
) -> None:
    path, points = large
    for n in range(5):
        before = rows_in(spool_dir)
        with subprocess.Popen([*COMMAND, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(
                lambda before=before, n=n: rows_in(spool_dir) > before + 20_000 * n or process.poll() is not None  # noqa: B023
            )
            process.kill()

    code, said, _ = say(path)

    assert code == 0, said
    assert sorted(held(server)["k0"]) == sorted(float(n) for n in range(points) for _ in range(3))
    assert SpoolStatus(Spool(spool_dir)).status().points.lost == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals to a process of its own")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal_it_says_so_and_goes_on_the_next_time(
    say: Say, server: LocalServer, recording: Path, number: signal.Signals
) -> None:
    whole = recording.read_bytes().splitlines(keepends=True)
    with subprocess.Popen(
        [*COMMAND, "-"], env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(b"".join(whole[:12]))
        process.stdin.flush()  # and nothing more, while the pipe stays open
        wait_until(lambda: any(stream.points for stream in server.streams()) or rows_in(Settings.load().spool_path) > 0)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.read()
        assert b"Stopped before the end. Begin again whenever you like" in said
        assert b"read 0.0 of 0.0 MB" not in said
        assert process.stderr.read() == b""

    assert say(recording)[0] == 0
    assert sorted(held(server)["k0"]) == [float(n) for n in range(25)]


def test_a_run_that_is_larger_than_the_spool_ends_with_an_error_and_goes_on_when_there_is_room(
    say: Say, server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "larger_than_the_spool.jsonl"
    path.write_text(lines(growth(points=20_000, keys=1)))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MAX_BYTES", "1000000")
    code, said, _ = say(path)
    assert code == 1
    assert "delivery makes none, since each run stays in it until it has ended: it holds 1 of 1 MB" in said
    assert "set a larger `spool_max_bytes` and begin again" in said

    monkeypatch.delenv("ATOMSCALE_BLUESKY_SPOOL_MAX_BYTES")
    assert say(path)[0] == 0
    assert sorted(held(server)["k0"]) == [float(n) for n in range(20_000)]


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals to a process of its own")
def test_ended_on_a_full_spool_it_does_not_say_that_all_was_read(tmp_path: Path, spool_dir: Path) -> None:
    path = tmp_path / "larger_than_the_spool.jsonl"
    path.write_text("".join(lines(growth(points=3000)) for _ in range(7)))
    more = {"PYTHONUNBUFFERED": "1", "ATOMSCALE_BLUESKY_SPOOL_MAX_BYTES": "1000000"}
    with subprocess.Popen(
        [*COMMAND, str(path), "--spool-only"], env=os.environ | more, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first = next(line for line in process.stdout if "room" in line)
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()

    assert "if no process delivers, start `atomscale-bluesky upload`" in first
    assert "Stopped before the end. What was taken is in the spool; begin again whenever you like" in said
    assert process.returncode == 128 + signal.SIGINT


def test_an_archive_that_was_just_taken_has_not_waited_for_years(
    say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="atomscale_bluesky")
    old = tmp_path / "old.jsonl"
    text = lines(growth(25))
    # Three years are 94 608 000 s.
    old.write_text(re.sub(r"\b1[789]\d{8}(?=\.)", lambda found: str(int(found[0]) - 94_608_000), text))
    assert say("--spool-only", old)[0] == 0

    assert main(["status", "--check", "--max-age", "10m"]) == 1
    assert capsys.readouterr().out.startswith("WARNING: nobody delivers 1 run; ")
    main(["status", "--json"])
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert 0 <= run["oldest_waiting_s"] < 120
    assert main(["upload"]) == 0
    took = re.findall(r"the last point took (\d+)\.\d s", capsys.readouterr().out)
    assert [int(seconds) < 120 for seconds in took] == [True]
