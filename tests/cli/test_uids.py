"""Runs whose uids are no UUIDs, as from a bus or a file: one uid may be the beginning of another, or a number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback

MakeCallback = Callable[..., AtomscaleCallback]
Say = Callable[..., tuple[int, str, str]]
SHORT, LONG = "growth-2026-1", "growth-2026-10"


def record(callback: AtomscaleCallback, uid: str, points: int = 5, file: TextIO | None = None, **metadata: Any) -> None:
    documents = list(growth(points, start_metadata=metadata))
    for name, doc in json.loads(json.dumps(documents).replace(documents[0][1]["uid"], uid)):
        callback(name, doc)
        if file is not None:
            file.write(json.dumps([name, doc]) + "\n")


@pytest.mark.parametrize("command", ["status", "show", "verify", "retry", "edit", "discard", "export"])
def test_a_whole_uid_means_its_run_although_another_uid_begins_so(
    say: Say, make_callback: MakeCallback, tmp_path: Path, command: str
) -> None:
    callback = make_callback(offline=True)
    record(callback, SHORT, 5, plan_name="short")
    record(callback, LONG, 7, plan_name="long")
    callback.close()
    options = {"edit": ["--tag", "night"], "discard": ["--yes"], "export": ["--csv", str(tmp_path / "run.csv")]}

    _, said, complaint = say(command, SHORT, *options.get(command, []))

    assert complaint == ""
    assert "long" not in said
    expected = {"verify": "10 waiting", "export": "run.csv: 5 rows"}.get(command, "short")
    assert expected in said
    assert "give more of the uid" in say("retry", "growth-2026")[2]


@pytest.mark.parametrize("command", ["retry", "discard"])
def test_an_order_for_a_finished_run_goes_to_no_run_whose_uid_begins_so(
    say: Say, make_callback: MakeCallback, spool_dir: Path, command: str
) -> None:
    callback = make_callback()
    record(callback, SHORT)
    assert callback.drain(20)
    callback.close()
    waiting = make_callback(offline=True)
    record(waiting, LONG)
    waiting.close()

    code, _, complaint = say(command, SHORT, *(["--yes"] if command == "discard" else []))

    assert code == 1
    assert f"run '{SHORT}' is not in the spool; it is finished and has left the spool" in complaint
    assert not list(spool_dir.glob("*/orders.jsonl"))


def test_a_whole_uid_of_a_run_that_was_not_kept_means_no_run_whose_uid_begins_so(
    say: Say, make_callback: MakeCallback
) -> None:
    full = make_callback(spool_min_free_bytes=2**60)
    record(full, SHORT)
    full.close()
    callback = make_callback(offline=True)
    record(callback, LONG)
    callback.close()

    for command in ("show", "verify", "retry"):
        code, _, complaint = say(command, SHORT)
        assert code == 1
        assert "not kept" in complaint


def test_a_number_that_is_a_whole_uid_is_no_scan_id(say: Say, make_callback: MakeCallback) -> None:
    callback = make_callback(offline=True)
    record(callback, "2026", scan_id=2025, plan_name="first")
    record(callback, "2025", scan_id=2026, plan_name="second")
    record(callback, "20", scan_id=3, plan_name="third")
    callback.close()

    for text, name in (("2026", "first"), ("2025", "second"), ("20", "third"), ("3", "third")):
        assert f"({name} " in say("retry", text)[1]


def test_the_streams_of_a_whole_uid_are_those_of_its_run(make_callback: MakeCallback) -> None:
    callback = make_callback()
    for uid in (SHORT, LONG):
        record(callback, uid)
    wait_until(lambda: callback.streams(SHORT) and callback.streams(LONG))

    assert callback.streams(SHORT) != callback.streams(LONG)
    assert len(callback.streams(SHORT)) == 1


def test_a_whole_uid_means_its_run_of_a_file_although_another_uid_begins_so(
    say: Say, make_callback: MakeCallback, tmp_path: Path
) -> None:
    callback = make_callback()
    recording = tmp_path / "runs.jsonl"
    with recording.open("w") as file:
        for uid in (SHORT, LONG):
            record(callback, uid, file=file)
    assert callback.drain(20)

    code, said, _ = say("verify", SHORT, "--file", str(recording), "--patience", "0")

    assert code == 0
    assert "all 10 points that were confirmed are equal" in said


def test_a_uid_that_is_no_uuid_is_shown_whole_so_that_its_commands_can_be_pasted(
    say: Say, make_callback: MakeCallback
) -> None:
    callback = make_callback(offline=True)
    for uid in (SHORT, LONG):
        record(callback, uid, synth_source_id="the big one")
    callback.close()

    said = say("status")[1]
    for uid in (SHORT, LONG):
        assert f"run {uid}, started" in said
        assert f"discard {uid} " in f"{said} "
        assert f"Run {uid} (" in say("retry", uid)[1]
        assert f"Run {uid}: no point is confirmed" in say("verify", uid)[1]
