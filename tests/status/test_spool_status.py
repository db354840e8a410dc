"""What a status tells: from the files alone, so in any process, also of what keeps readings from leaving."""

from __future__ import annotations

import builtins
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, SettingsError
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.outage import OutageNote, read_outage
from atomscale_bluesky.status.spool_status import SpoolStatus

MakeCallback = Callable[..., AtomscaleCallback]
Environment = dict[str, str]


@pytest.fixture
def environment(server: LocalServer, spool_dir: Path) -> Environment:
    return {
        **os.environ,
        "ATOMSCALE_API_ENDPOINT": server.url,
        "ATOMSCALE_API_KEY": server.api_key,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
        "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        "COLUMNS": "120",
    }


def test_a_status_names_the_last_error_and_since_when_while_atomscale_takes_nothing(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.misbehave(Fault(status=503))
    begin = time.time()
    for name, doc in growth(points=25):
        callback(name, doc)

    status = wait_until(lambda: (found := callback.status()).trouble and found)
    assert "was answered 503" in status.last_error
    assert begin - 1 <= status.trouble.since <= status.trouble.time <= time.time()
    assert status.oldest_waiting == min(run.oldest_waiting for run in status.runs) > 0
    # Another process sees the same: it is in the spool.
    assert SpoolStatus(Spool(spool_dir)).status().last_error == status.last_error

    server.behave()
    assert callback.drain(timeout_s=20)
    assert (callback.status().trouble, callback.status().last_error, callback.status().oldest_waiting) == (None,) * 3


def test_what_an_uploader_that_died_has_left_of_its_trouble_goes_with_the_next_answer(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    spool_dir.mkdir(mode=0o700)
    note = OutageNote(spool_dir, server.url)
    note.note_failure("no route to host")
    assert read_outage(spool_dir) is None  # once is none
    note.note_failure("no route to host")
    assert read_outage(spool_dir).error == "no route to host"
    assert (spool_dir / "trouble.json").stat().st_mode & 0o777 == 0o600

    callback = make_callback()
    for name, doc in growth(points=5):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert read_outage(spool_dir) is None


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=401),
        Fault(status=401, body='{"detail": ' + "[" * 400 + "]" * 400 + "}"),
        Fault(status=503, headers={"Retry-After": "3600"}),
    ],
    ids=["a dead key", "a dead key, told oddly", "an hour off"],
)
def test_one_failure_is_told_at_once_where_the_next_attempt_is_a_while_away(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path, fault: Fault
) -> None:
    server.misbehave(fault)
    for name, doc in growth(points=25):
        callback(name, doc)

    trouble = wait_until(lambda: read_outage(spool_dir))
    assert f"was answered {fault.status}" in trouble.error
    assert trouble.since == trouble.time  # no second attempt was needed


def test_a_trouble_that_a_restart_did_not_end_is_told_since_it_began(spool_dir: Path) -> None:
    spool_dir.mkdir()
    for begin in (1000.0, 5000.0):  # two processes, one after the other
        note = OutageNote(spool_dir, "https://a.invalid", unix_time=iter([begin]).__next__)
        note.note_failure("no route", lasting=begin == 1000.0)

    elsewhere = OutageNote(spool_dir, "https://b.invalid", unix_time=lambda: 6000.0)
    assert (read_outage(spool_dir).since, read_outage(spool_dir).time) == (1000.0, 5000.0)
    elsewhere.note_failure("no route", lasting=True)
    assert read_outage(spool_dir).since == 6000.0


def test_a_lasting_trouble_is_written_seldom_and_keeps_its_beginning(spool_dir: Path) -> None:
    spool_dir.mkdir()
    now = [1000.0]
    note = OutageNote(spool_dir, "https://a.invalid", unix_time=lambda: now[0], monotonic=lambda: now[0])
    for n in range(12):
        note.note_failure(f"error {n}")
        now[0] += 1.0

    trouble = read_outage(spool_dir)
    assert (trouble.since, trouble.time, trouble.error) == (1000.0, 1011.0, "error 11")
    note.note_answer()
    assert list(spool_dir.iterdir()) == []


def test_a_note_tells_since_when_the_key_is_refused_and_is_written_at_once_when_that_changes(spool_dir: Path) -> None:
    spool_dir.mkdir()
    now = [1000.0]
    note = OutageNote(spool_dir, "https://a.invalid", unix_time=lambda: now[0], monotonic=lambda: now[0])
    told = []
    for key_refused in (False, True, True, False):
        note.note_failure("why", lasting=True, key_refused=key_refused)
        found = read_outage(spool_dir)
        told.append((found.since, found.key_refused, found.kind_since))
        now[0] += 1.0

    assert told == [
        (1000.0, False, 1000.0), (1000.0, True, 1001.0), (1000.0, True, 1001.0), (1000.0, False, 1003.0)
    ]  # fmt: skip


def test_an_answer_of_another_endpoint_leaves_a_trouble_that_lasts_and_removes_an_old_one(spool_dir: Path) -> None:
    spool_dir.mkdir()
    now = [1000.0]
    ours, another = (
        OutageNote(spool_dir, endpoint, unix_time=lambda: now[0], monotonic=lambda: now[0])
        for endpoint in ("https://a.invalid", "https://b.invalid")
    )
    ours.note_failure("the key is refused", lasting=True, key_refused=True)
    for _ in range(3):
        another.note_answer()
        now[0] += 300.0
        ours.note_failure("the key is refused", lasting=True, key_refused=True)
    assert (read_outage(spool_dir).endpoint, read_outage(spool_dir).since) == ("https://a.invalid", 1000.0)

    now[0] += 1800.0  # the process that met it has ended
    another.note_answer()
    assert read_outage(spool_dir) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"since": "noon"}'])
def test_a_note_that_cannot_be_read_is_none(spool_dir: Path, content: bytes) -> None:
    spool_dir.mkdir()
    (spool_dir / "trouble.json").write_bytes(content)

    assert read_outage(spool_dir) is None


def test_a_parked_runs_problem_is_the_last_error_while_atomscale_answers(callback: AtomscaleCallback) -> None:
    for name, doc in growth(points=5, start_metadata={"synth_source_id": "the big one"}):
        callback(name, doc)

    assert "'the big one'" in wait_until(lambda: callback.status().last_error)


# ---- status --watch --------------------------------------------------------------------------------------------------


def test_in_a_pipe_watching_says_each_change_until_ctrl_c(
    environment: Environment, callback: AtomscaleCallback, server: LocalServer
) -> None:
    documents = list(growth(points=25))
    for name, doc in documents[:-1]:
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    command = [sys.executable, "-m", "atomscale_bluesky", "status", "--watch"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        said = _Said(watching.stdout)
        wait_until(lambda: "10 waiting" in said.text)
        callback(*documents[-1])
        assert callback.drain(timeout_s=30)
        wait_until(lambda: "nothing waits" in said.text)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0
        assert watching.stderr.read() == ""


def test_watching_as_json_gives_one_object_per_line_and_ends_with_its_reader(
    environment: Environment, make_callback: MakeCallback
) -> None:
    callback = make_callback(offline=True)
    *documents, last, stop = growth(points=25)
    for name, doc in documents:
        callback(name, doc)
    command = [sys.executable, "-m", "atomscale_bluesky", "status", "--watch", "--json"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert json.loads(watching.stdout.readline())["points"]["waiting"] == 48
        callback(*last)
        assert json.loads(watching.stdout.readline())["points"]["waiting"] == 50
        watching.stdout.close()
        callback(*stop)
        assert watching.wait(20) == 1
        assert watching.stderr.read() == ""  # and it makes no fuss about it


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo terminals")
def test_on_a_terminal_watching_rewrites_its_place_until_ctrl_c(
    environment: Environment, make_callback: MakeCallback
) -> None:
    callback = make_callback(offline=True)
    for name, doc in growth(points=25):
        callback(name, doc)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "atomscale_bluesky", "status", "--watch"]
    watching = subprocess.Popen(command, env=environment | {"TERM": "xterm"}, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = _Said(os.fdopen(ours, errors="replace"))
    try:
        wait_until(lambda: said.text.count(" seen = ") >= 2, timeout_s=30)
        assert "\x1b[1A" in said.text  # back to where it began
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0
    finally:
        watching.kill()
        watching.wait()
        assert said.ended.wait(10)
    assert "Traceback" not in said.text


class _Said:
    """What a process has said so far."""

    def __init__(self, stream: Any) -> None:
        self.text = ""
        self.ended = threading.Event()
        self._stream = stream
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while character := self._stream.read(1):
                self.text += character
        except (OSError, ValueError):  # the other side of a terminal is gone
            pass
        finally:
            self._stream.close()
            self.ended.set()


# ---- the bar of drain ------------------------------------------------------------------------------------------------


def test_draining_with_a_bar_tells_how_far_it_is(
    callback: AtomscaleCallback, server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), status=503, times=3))
    for name, doc in growth(points=25):
        callback(name, doc)

    assert callback.drain(timeout_s=10, progress=True)
    said = capsys.readouterr().err.splitlines()
    # Where there is no terminal, now and then a line, and one at the end, of what it saw waiting.
    assert re.fullmatch(r"(\d+) of \1 points", said[-1])
    assert len(said) == len(set(said))

    assert callback.drain(timeout_s=10, progress=True)
    assert capsys.readouterr().err == ""  # nothing waits any more


def test_draining_with_a_bar_ends_at_the_time_out(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(status=503))
    for name, doc in growth(points=25):
        callback(name, doc)

    assert not callback.drain(timeout_s=0.5, progress=True)


def test_a_bar_without_the_extra_that_draws_it_is_refused_with_the_remedy(
    callback: AtomscaleCallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_rich(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    with pytest.raises(SettingsError, match=r"pip install 'atomscale-bluesky\[cli\]'"):
        callback.drain(timeout_s=1, progress=True)


# ---- the line at a run's end -----------------------------------------------------------------------------------------


def test_a_run_that_is_finalized_says_in_one_line_what_became_of_it(
    callback: AtomscaleCallback, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="atomscale_bluesky")
    for name, doc in growth(points=25):
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    wait_until(lambda: "the last point took" in caplog.text)

    (said,) = [record for record in caplog.records if "the last point took" in record.getMessage()]
    assert "finalized: 50 points delivered to " in said.getMessage()
    assert "waiting: 0; refused: 0; left out: none; discarded: 0; lost: 0" in said.getMessage()


def test_a_run_that_stays_behind_when_its_callback_closes_says_what_waits(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=2, status=503))
    for name, doc in growth(points=25):
        callback(name, doc)
    assert not callback.close(timeout_s=1)

    (said,) = [record for record in caplog.records if "waiting: 10;" in record.getMessage()]
    assert said.levelname == "WARNING"
    assert "delivering: 40 points delivered to " in said.getMessage()
    assert said.getMessage().endswith("; lost: 0")  # and not how long the last point took, which waits


def test_a_parked_run_is_logged_shortly_when_its_callback_closes(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call="initialize", status=404))
    for name, doc in growth(points=25):
        callback(name, doc)
    wait_until(lambda: callback.status()[0].state == "parked")
    assert not callback.close(timeout_s=1)

    (said,) = [record for record in caplog.records if "50 not" in record.getMessage()]
    assert said.levelname == "WARNING"
    text = "is parked: 0 points delivered, 50 not; `atomscale-bluesky status --spool-dir "
    assert text in said.getMessage()
    assert said.getMessage().endswith("` says what to do")


def test_the_streams_of_a_run_are_found_by_the_beginning_of_its_uid(make_callback: MakeCallback) -> None:
    callback = make_callback()
    uids: list[str] = []
    for _ in range(2):
        documents = list(growth(25))
        uids.append(documents[0][1]["uid"])
        for name, doc in documents:
            callback(name, doc)
    wait_until(lambda: all(callback.streams(uid) and callback.streams(uid)[0].data_id for uid in uids))
    ids = [callback.streams(uid)[0].data_id for uid in uids]
    assert [callback.streams(uid[:8])[0].data_id for uid in uids] == ids
    assert callback.drain(20)

    assert [callback.streams(uid[:8])[0].data_id for uid in uids] == ids
    assert callback.streams("no-such") == ()
    assert callback.streams("") == ()


OPENED = """
import sys
from pathlib import Path
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

folder = Path(sys.argv[1])
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
status = SpoolStatus(Spool(folder, read_only=True))
print(len(status.status()), status.status().points.waiting)
opened.clear()
status.status()
print({Path(path).name for path in opened if Path(path).parent.parent == folder})
"""


def test_a_later_status_reads_no_run_that_has_stopped_and_not_changed(
    make_callback: MakeCallback, spool_dir: Path
) -> None:
    callback = make_callback(api_key="", offline=True)
    for name, doc in growth(points=5, keys=2):
        callback(name, doc)
    callback.close()
    (run,) = Spool(spool_dir).run_folders()
    for n in range(20):
        shutil.copytree(run, spool_dir / f"20260101T000000-{n:08x}")

    told = subprocess.run(
        [sys.executable, "-c", OPENED, str(spool_dir)], capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()

    assert told[0] == "21 210"
    assert told[1] == "{'uploader.lock'}"  # whether anybody delivers it


def test_a_run_of_many_channels_takes_little_of_the_history(make_callback: MakeCallback, spool_dir: Path) -> None:
    callback = make_callback()
    uids = []
    for keys in (100, 2000):
        for name, doc in growth(points=3, keys=keys):
            callback(name, doc)
        uids.append(doc["run_start"])
    assert callback.close(30)

    few, many = (callback.streams(uid)[0] for uid in uids)
    assert (len(few.channels), many.channels) == (100, ())
    assert max(map(len, (spool_dir / "history.jsonl").read_bytes().splitlines())) < 20_000
