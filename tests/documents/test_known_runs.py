"""What is known of a run whose start document comes again, and what looking it up costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.documents import known_runs as past
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.journal_format import Header
from atomscale_bluesky.spool.run_reader import read_header
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
T0 = 1_760_000_000.0


def old(points: int = 3, age_s: float = 3600.0) -> list[Document]:
    """The documents of a run that began an hour ago."""
    return [(name, doc | {"time": doc["time"] - age_s} if name == "start" else doc) for name, doc in growth(points)]


@pytest.mark.parametrize("waiting", [1, 30])
def test_a_start_that_may_have_come_before_opens_no_file_of_the_runs_that_wait(
    make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    before = make_callback(offline=True)
    for _ in range(waiting):
        for name, doc in old():
            before(name, doc)
    before.close()
    callback = make_callback(offline=True)
    known = {run.folder for run in callback.status()}
    opened: list[str] = []
    real = os.open

    def noted(path: Any, *args: Any, **more: Any) -> int:
        opened.append(str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", noted)
    (_, start), *_ = old()
    callback("start", start)
    monkeypatch.undo()

    assert len(known) == waiting
    assert [path for path in opened if str(Path(path).parent) in known] == []
    assert len(callback.status()) == waiting + 1


def test_of_many_runs_few_are_read_at_construction_and_the_others_soon_after(
    make_callback: MakeCallback, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "HEADERS_AT_CONSTRUCTION", 4)
    before = make_callback(offline=True)
    runs = [old() for _ in range(30)]
    for documents in runs:
        for name, doc in documents:
            before(name, doc)
    before.close()
    headers = {folder: header for folder in Spool(spool_dir).run_folders() if (header := read_header(folder))}
    read: dict[int, set[str]] = {}
    real = os.open

    def noted(path: Any, *args: Any, **more: Any) -> int:
        if str(path).endswith("journal-0001.jsonl"):
            read.setdefault(threading.get_ident(), set()).add(str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", noted)
    callback = make_callback(offline=True)
    here = read[threading.get_ident()]
    assert len(here) == 4
    wait_until(lambda: len(set().union(*read.values())) == 30)
    # A run that was not read here yet. Which ones were is chance: all began in the same second.
    name_of = {header.run_uid: folder.name for folder, header in headers.items()}
    read_here = {Path(path).parent.name for path in here}
    documents = next(run for run in runs if name_of[run[0][1]["uid"]] not in read_here)
    for name, doc in documents:
        callback(name, doc)

    assert callback.ignored == {"run taken before": 1}
    assert len(here) == 5  # what was kept of it


def test_a_run_that_begins_now_waits_for_no_header_of_the_many_that_wait(
    make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "HEADERS_AT_CONSTRUCTION", 4)
    before = make_callback(offline=True)
    for _ in range(30):
        for name, doc in old():
            before(name, doc)
    before.close()
    here = threading.get_ident()
    callback = make_callback(offline=True)
    opened: list[str] = []
    real = os.open

    def noted(path: Any, *args: Any, **more: Any) -> int:
        if threading.get_ident() == here:
            opened.append(str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", noted)
    (_, start), *_ = growth(points=1)
    callback("start", start)
    monkeypatch.undo()

    begun = next(run.folder for run in callback.status() if run.run_uid == start["uid"])
    assert [path for path in opened if "journal" in path and not path.startswith(begun)] == []
    assert len(callback.status()) == 31


def test_a_run_whose_header_was_not_read_at_construction_is_known_at_once(
    make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "HEADERS_AT_CONSTRUCTION", 0)
    before = make_callback(offline=True)
    runs = [old() for _ in range(3)]
    for documents in runs:
        for name, doc in documents:
            before(name, doc)
    before.close()
    callback = make_callback(offline=True)
    for documents in runs:
        for name, doc in documents:
            callback(name, doc)

    assert callback.ignored == {"run taken before": 3}


def test_a_run_that_another_process_has_begun_since_is_known_all_the_same(make_callback: MakeCallback) -> None:
    documents = old()
    callback, other = make_callback(offline=True), make_callback(offline=True)
    for name, doc in documents:
        other(name, doc)
    for name, doc in documents:
        callback(name, doc)

    assert callback.ignored == {"run taken before": 1}


def test_a_damaged_run_in_the_spool_keeps_no_other_from_beginning(make_callback: MakeCallback, spool_dir: Path) -> None:
    folder = spool_dir / "20260101T020000-deadbeef"
    folder.mkdir(parents=True)
    (folder / "journal-0001.jsonl").write_bytes(b'6faacdeb {"kind":"from a newer version"}\n')
    callback = make_callback(offline=True)
    for name, doc in old():
        callback(name, doc)

    assert callback.ignored == {}
    assert sum(run.points.seen for run in callback.status()) == 6


def test_of_a_long_history_the_one_run_is_found_whatever_the_others_quote(
    make_callback: MakeCallback, spool_dir: Path
) -> None:
    callback = make_callback()
    documents = old()
    uid = documents[0][1]["uid"]
    for name, doc in documents:
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    for label in (uid, f'"run_uid":"{uid}"'):  # another run whose label quotes it
        for name, doc in growth(points=1, start_metadata={"plan_name": label}):
            callback(name, doc)
    assert callback.drain(timeout_s=30)
    callback.close()

    again = make_callback()
    assert len(again.streams(uid)) == 1
    for name, doc in documents:
        again(name, doc)
    assert again.ignored == {"run taken before": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="what was read is told by Linux alone")
def test_a_long_history_is_not_read_by_a_run_a_status_or_a_start_that_may_have_come_before(
    make_callback: MakeCallback, spool_dir: Path
) -> None:
    callback = make_callback()
    for name, doc in growth(points=3):
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    history = spool_dir / "history.jsonl"
    entry = history.read_bytes()
    with history.open("ab") as file:
        file.write(entry * (20_000_000 // len(entry)))
    callback.close()
    callback = make_callback()

    def bytes_read() -> int:
        with open("/proc/self/io") as told:
            return int(told.readline().removeprefix("rchar:"))

    before = bytes_read()
    for documents in (growth(points=3), old(points=3)):
        for name, doc in documents:
            callback(name, doc)
        assert callback.drain(timeout_s=30)
        assert callback.status() == ()
    assert callback.ignored == {}
    assert bytes_read() - before < 2_000_000

    assert (spool_dir / "history-1.jsonl").stat().st_size > 16 * 2**20  # it made way for a new one
    assert history.stat().st_size < 10_000
    again = make_callback()
    for name, doc in old(points=3):
        again(name, doc)
    assert again.ignored == {}


def with_other_uids(documents: list[Document]) -> list[Document]:
    """The same run as a catalogue gives it, which makes up new uids for its events."""
    return [(name, doc | {"uid": str(uuid.uuid4())} if name == "event" else doc) for name, doc in documents]


def values_in(server: LocalServer) -> list[float | None]:
    return sorted(value for values in held(server).values() for value in values)


def test_a_run_in_several_journals_is_sent_once_whichever_uids_come_again(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    documents = old(points=12)
    again = with_other_uids(documents)
    first = make_callback(offline=True)
    for name, doc in documents[:6]:
        first(name, doc)
    first.close()
    second = make_callback(offline=True)
    for name, doc in again[:10]:  # of which four are known by their times, and four are kept with uids of their own
        second(name, doc)
    second.close()
    third = make_callback()
    for name, doc in again:
        third(name, doc)

    assert third.drain(20)
    assert third.ignored == {"event seen before": 8}
    assert values_in(server) == sorted(
        value for name, doc in documents if name == "event" for value in doc["data"].values()
    )


def test_an_event_that_its_time_told_is_known_when_it_comes_once_more(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    documents = old(points=4)
    again = with_other_uids(documents)
    first = make_callback(offline=True)
    for name, doc in documents[:-1]:
        first(name, doc)
    first.close()
    second = make_callback()
    for name, doc in [*again[:-1], *again[-3:]]:
        second(name, doc)

    assert second.drain(20)
    assert second.ignored == {"event seen before": 6}
    assert values_in(server) == sorted(
        value for name, doc in documents if name == "event" for value in doc["data"].values()
    )


def test_closing_once_more_completes_what_came_behind_the_first_time(make_callback: MakeCallback) -> None:
    documents = old(points=6)
    first = make_callback(offline=True)
    for name, doc in documents[:4]:
        first(name, doc)
    first.close()
    for name, doc in documents[4:6]:
        first(name, doc)
    first.close()
    second = make_callback(offline=True)
    for name, doc in documents:
        second(name, doc)
    second.close()

    assert second.ignored == {"event seen before": 4}
    assert [run.points.waiting for run in second.status()] == [4, 4, 4]


RECORDS = """
import json, shutil, sys, threading, time
if "slow disk" in sys.argv:
    measure = shutil.disk_usage
    def measure_slowly(path):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3)
        return measure(path)
    shutil.disk_usage = measure_slowly
from atomscale_bluesky import DocumentRecorder, Settings
recorder = DocumentRecorder(Settings.load(environ={}, spool_dir=sys.argv[1], spool_min_free_bytes=0))
for name, doc in json.load(sys.stdin):
    recorder.take(name, doc)
recorder.close()
"""


@pytest.mark.parametrize("disk", ["quick disk", "slow disk"])  # a session may end before a slow one is measured
def test_runs_that_two_processes_record_in_one_spool_are_reported_once_by_the_later_one(
    make_callback: MakeCallback, spool_dir: Path, disk: str
) -> None:
    documents = [document for _ in range(2) for document in list(growth(points=3))[:4]]
    callback = make_callback(offline=True)
    for name, doc in documents:
        callback(name, doc)
    command = [sys.executable, "-c", RECORDS, str(spool_dir), disk]
    later = subprocess.run(command, input=json.dumps(documents), text=True, check=True, capture_output=True)

    (told,) = [line for line in later.stderr.splitlines() if "another process" in line]
    assert told.startswith("run ")
    assert told.endswith("a second recording on purpose needs a `spool_dir` of its own")
    assert len(list(spool_dir.glob("*/journal-0001.jsonl"))) == 4  # nothing is lost by that


def test_a_run_that_goes_to_two_accounts_or_is_sent_again_is_no_mistake(
    make_callback: MakeCallback, caplog: pytest.LogCaptureFixture
) -> None:
    documents = list(growth(points=3))
    callbacks = [make_callback(offline=True), make_callback(offline=True, api_key="of another account")]
    for name, doc in documents:
        for callback in callbacks:
            callback(name, doc)
    callbacks.append(make_callback(offline=True, resend=True))
    for name, doc in documents:
        callbacks[-1](name, doc)
    for callback in callbacks:
        callback.close()

    assert "another process" not in caplog.text


def header_of(run_uid: str, part: int = 0) -> Header:
    return Header(1, run_uid, T0, "growth", 10, "primary", "https://api.atomscale.ai", "own_stream", part=part)


@pytest.mark.parametrize("name", ["20010101T000000-0a1b2c3d", "20990101T000000-0a1b2c3d"])
@pytest.mark.parametrize(
    ("other", "on_purpose", "reported"),
    [
        pytest.param(header_of("b7c2e9f1"), False, True, id="the same run"),
        pytest.param(header_of("b7c2e9f1"), True, False, id="the same run, on purpose"),
        pytest.param(header_of("b7c2e9f1", part=1), False, False, id="what came after an interruption"),
        pytest.param(header_of("0d9f1c22"), False, False, id="another run"),
    ],
)
def test_a_second_recorder_is_reported_whatever_the_folder_of_its_run_is_called(
    spool_dir: Path, caplog: pytest.LogCaptureFixture, name: str, other: Header, on_purpose: bool, reported: bool
) -> None:
    another = Spool(spool_dir)
    folder = another.writers.create(other).folder
    another.writers.stop_threads()
    another.writers.close_writers()
    folder.rename(spool_dir / name)
    spool = Spool(spool_dir)
    known_runs = past.KnownRuns(spool)
    folder = spool.writers.create(header_of("b7c2e9f1")).folder

    for _ in range(2):
        known_runs.check_for_second_recorder("b7c2e9f1", folder, on_purpose=lambda _: on_purpose)
    spool.writers.stop_threads()

    told = [record.getMessage() for record in caplog.records if "another process" in record.getMessage()]
    assert len(told) == reported
    assert all(
        f"run b7c2e9f1 is recorded by another process too, with the same spool {spool_dir}" in text for text in told
    )
    spool.writers.close_writers()


def channels_of(server: LocalServer) -> dict[str, tuple[str | None, list[float | None]]]:
    """Unit and values of every channel, over all streams."""
    found: dict[str, tuple[str | None, list[float | None]]] = {}
    for stream in server.streams():
        for name, series in server.points(stream.data_id).items():
            found.setdefault(name, (series.units, []))[1].extend(series.values)
    return found


def test_channels_have_the_names_and_the_lengths_that_they_had_before_the_interruption(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    run = compose_run(metadata={"synth_source_id": 42})

    def described(unit: str) -> Any:
        keys = {
            "zones": {"source": "sim", "dtype": "array", "shape": [None], "units": "K"},
            "power": {"source": "sim", "dtype": "number", "shape": [], "units": unit},
        }
        return run.compose_descriptor(name="primary", data_keys=keys)

    def event(described: Any, seq_num: int, zones: list[float], power: float) -> Document:
        now = run.start_doc["time"] + seq_num
        data = {"zones": zones, "power": power}
        doc = described.compose_event(data=data, timestamps=dict.fromkeys(data, now), time=now, seq_num=seq_num)
        return "event", doc

    in_watts, in_kilowatts = described("W"), described("kW")
    before = make_callback(offline=True)
    before("start", run.start_doc)
    before("descriptor", in_watts.descriptor_doc)
    before(*event(in_watts, 1, [1.0, 2.0, 3.0], 500.0))
    before.close()
    callback = make_callback()
    callback("start", run.start_doc)
    callback("descriptor", in_kilowatts.descriptor_doc)
    callback(*event(in_kilowatts, 2, [1.5, 2.5], 0.5))
    callback(*event(in_kilowatts, 3, [1.7, 2.7, 3.7], 0.6))
    callback("stop", run.compose_stop())

    assert callback.drain(20)
    assert channels_of(server) == {
        "zones[0]": ("K", [1.0, 1.5, 1.7]),
        "zones[1]": ("K", [2.0, 2.5, 2.7]),
        "zones[2]": ("K", [3.0, 3.7]),
        "power": ("W", [500.0]),
        "power (kW)": ("kW", [0.5, 0.6]),
    }
