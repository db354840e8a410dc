"""`status`: what it tells of each run, what to do next, and what a monitoring system gets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run
from rich.console import Console
from rich.text import Text
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.cli import commands
from atomscale_bluesky.cli.shown_runs import not_shown, shown_runs
from atomscale_bluesky.cli.status_text import blocks, fit_terminal
from atomscale_bluesky.delivery.uploader_service import serve
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.settings import Settings
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.commands import with_option
from atomscale_bluesky.status.outage import OutageNote
from atomscale_bluesky.status.spool_status import SpoolStatus

MakeCallback = Callable[..., AtomscaleCallback]
Say = Callable[..., tuple[int, str, str]]
Spooled = Callable[..., str]


def told(say: Say, *arguments: str) -> dict[str, Any]:
    return json.loads(say("status", "--json", *arguments)[1])


def fail(callback: AtomscaleCallback, *, exit_status: str = "fail", reason: str = "heater tripped") -> str:
    """Record a growth that does not end well, and return its uid."""
    run = compose_run(metadata={"plan_name": "grow", "synth_source_id": 42})
    stream = run.compose_descriptor(name="primary", data_keys={"T": {"source": "s", "dtype": "number", "shape": []}})
    callback("start", run.start_doc)
    callback("descriptor", stream.descriptor_doc)
    callback("event", stream.compose_event(data={"T": 1.0}, timestamps={"T": 0.0}))
    callback("stop", run.compose_stop(exit_status=exit_status, reason=reason))
    return run.start_doc["uid"]


# ---- names, remedies, endings ----------------------------------------------------------------------------------------


def test_the_name_in_atomscale_is_shown_for_waiting_and_finished_runs(
    say: Say, callback: AtomscaleCallback, server: LocalServer
) -> None:
    documents = list(growth(25))
    for name, doc in documents[:-1]:
        callback(name, doc)
    wait_until(lambda: server.streams())
    (stream,) = server.streams()
    assert stream.label is not None

    assert f"name {stream.label}" in say("status")[1]
    assert told(say)["runs"][0]["name"] == stream.label
    callback(*documents[-1])
    assert callback.drain(20)
    assert f"name {stream.label}" in say("status", "--all")[1]


def test_the_name_of_a_run_that_ended_badly_is_the_one_that_atomscale_has(
    say: Say, callback: AtomscaleCallback, server: LocalServer
) -> None:
    uid = fail(callback, exit_status="abort")
    assert callback.drain(20)

    (stream,) = server.streams()
    assert stream.label is not None
    assert " · abort [" in stream.label
    assert f"name {stream.label}" in say("status", "--all")[1]
    assert stream.label in say("show", uid)[1]
    assert [one.label for one in callback.streams(uid)] == [stream.label]


@pytest.mark.parametrize(
    ("metadata", "command"),
    [
        ({"synth_source_id": "the big one"}, "edit {} --synth-source-id NUMBER"),
        ({"project_id": "9c1e66aa-0000-4000-8000-00000000000g"}, "edit {} --project-id UUID"),
    ],
)
def test_wrong_metadata_name_the_edit_that_mends_them(
    say: Say, spooled: Spooled, metadata: dict[str, Any], command: str
) -> None:
    uid = spooled(5, **metadata)

    assert f"do atomscale-bluesky {command.format(uid[:8])}" in say("status")[1]
    assert told(say)["runs"][0]["remedies"][0] == f"atomscale-bluesky {command.format(uid[:8])}"


def test_a_refused_chunk_names_retry_and_discard(say: Say, callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=0, status=422, body='{"detail": "no"}'))
    documents = list(growth(25))
    for name, doc in documents:
        callback(name, doc)
    assert not callback.drain(20)
    uid = documents[0][1]["uid"][:8]

    said = say("status")[1]
    assert f"do atomscale-bluesky retry {uid}" in said
    assert f"or atomscale-bluesky discard {uid}" in said
    assert told(say)["runs"][0]["cause"] == "chunk"


def test_an_unknown_project_names_an_edit_and_a_retry(say: Say, make_callback: MakeCallback) -> None:
    callback = make_callback(project_id="0f14d0ab-9605-4a62-a9e4-5ed26688389b")
    documents = list(growth(5))
    for name, doc in documents:
        callback(name, doc)
    wait_until(lambda: callback.status()[0].state == "parked")

    uid = documents[0][1]["uid"][:8]
    said = say("status")[1]
    assert f"do atomscale-bluesky edit {uid} --project-id UUID" in said
    assert f"or atomscale-bluesky retry {uid}" in said


@pytest.mark.parametrize("exit_status", ["fail", "abort"])
def test_a_growth_that_did_not_end_well_says_so_wherever_it_is_reported(
    say: Say, make_callback: MakeCallback, exit_status: str
) -> None:
    waiting = make_callback(offline=True)
    uid = fail(waiting, exit_status=exit_status)
    waiting.close()

    assert f"plan ended with {exit_status}: heater tripped" in say("status")[1]
    run = told(say)["runs"][0]
    assert (run["exit_status"], run["reason"]) == (exit_status, "heater tripped")
    assert f"({exit_status})" in repr(waiting.status())
    assert f"ended {exit_status}: heater tripped" in say("show", uid[:8])[1]
    code, said, _ = say("upload")
    assert code == 0
    assert f"plan ended with {exit_status}: heater tripped" in say("status", "--all")[1]
    assert f"ended {exit_status}: heater tripped" in say("show", uid[:8])[1]


# ---- who delivers ----------------------------------------------------------------------------------------------------


def test_a_run_that_nobody_delivers_is_waiting_and_one_with_a_deliverer_is_delivering(
    say: Say, spooled: Spooled, spool_dir: Path, server: LocalServer
) -> None:
    spooled(25)
    spool = Spool(spool_dir)
    assert SpoolStatus(spool).status()[0].state == "waiting"
    assert told(say)["delivered_to"] == []

    claim = spool.claim(spool.run_folders()[0])
    assert claim is not None
    try:
        assert SpoolStatus(spool).status()[0].state == "delivering"
        assert told(say)["delivered_to"] == [server.url]
        assert "Nobody delivers" not in say("status")[1]
    finally:
        claim.close()


def test_status_says_that_a_process_serves_the_spool_even_if_nothing_waits(say: Say, server: LocalServer) -> None:
    ending = threading.Event()
    service = threading.Thread(target=serve, args=(Settings.load(),), kwargs={"stopping": ending})
    service.start()
    try:
        wait_until(lambda: told(say)["delivered_to"] == [server.url])
        assert f"nothing waits. A process delivers to {server.url}." in say("status")[1]
    finally:
        ending.set()
        service.join()
    assert "A process delivers" not in say("status")[1]


def test_status_does_not_send_the_operator_to_an_upload_with_the_key_that_is_refused(
    say: Say, make_callback: MakeCallback
) -> None:
    callback = make_callback(api_key="revoked")
    for name, doc in growth(25):
        callback(name, doc)
    wait_until(lambda: callback.status().key_refused)
    callback.close(timeout_s=0)

    code, said, _ = say("status")
    assert code == 1
    assert "put a key that works into ATOMSCALE_API_KEY, then the next session delivers" in said


@pytest.mark.parametrize(
    ("variable", "text", "remedy"),
    [
        ("ATOMSCALE_BLUESKY_UPLOADER", "none", "start the service `atomscale-bluesky upload --follow`"),
        ("ATOMSCALE_BLUESKY_OFFLINE", "true", "the setting `offline` is on"),
        ("ATOMSCALE_API_KEY", "", "there is no API key here: put the key into ATOMSCALE_API_KEY"),
        ("ATOMSCALE_API_ENDPOINT", "https://elsewhere.example", "`atomscale-bluesky upload --endpoint http://127"),
        ("ATOMSCALE_BLUESKY_UPLOADER", "thread", "the next session will, or now `atomscale-bluesky upload`"),
    ],
)
def test_who_will_deliver_is_told_as_the_settings_have_it(
    say: Say, spooled: Spooled, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, remedy: str
) -> None:
    spooled(25)
    monkeypatch.setenv(variable, text)
    said = say("status")[1]

    assert "Nobody delivers 1 run for http://127" in said
    assert remedy in said
    assert ("the next session will" in said) == (text == "thread")


# ---- which runs ------------------------------------------------------------------------------------------------------


def test_only_the_newest_runs_are_shown_and_the_others_are_counted(say: Say, spooled: Spooled) -> None:
    uids = [spooled(2) for _ in range(4)]
    said = say("status", "--last", "2")[1]

    assert [uid[:8] in said for uid in uids] == [False, False, True, True]
    assert "2 older runs in the spool not shown" in said
    assert "4 runs, 16 points waiting" in said
    assert len(told(say, "--last", "2")["runs"]) == 4  # a program gets all of them


def test_an_old_run_for_the_operator_is_shown_whatever_came_later(say: Say, spooled: Spooled) -> None:
    parked = spooled(2, synth_source_id="the big one")
    for _ in range(3):
        spooled(2)

    assert parked[:8] in say("status", "--last", "1")[1]
    said = say("status", "--last", "2")[1]
    assert f"do atomscale-bluesky edit {parked[:8]} --synth-source-id NUMBER" in said
    assert "2 older runs in the spool not shown; see `--last`." in said


def test_no_more_runs_are_shown_than_asked_for_however_many_need_the_operator(say: Say, spooled: Spooled) -> None:
    uids = [spooled(2, synth_source_id=f"number {n}") for n in range(6)]

    said = say("status", "--last", "2")[1]
    assert [f"run {uid[:8]}, started" in said for uid in uids] == [False] * 4 + [True] * 2
    named = ", ".join(uid[:8] for uid in reversed(uids[:4]))
    assert f"4 older runs in the spool not shown, 4 of them for the operator ({named}); see `--last`." in said


def test_runs_with_the_same_problem_are_shown_as_one_with_the_command_that_mends_all(
    say: Say, spooled: Spooled, server: LocalServer
) -> None:
    uids = [spooled(2, synth_source_id="the big one") for _ in range(7)]

    said = say("status", "--last", "1")[1]
    assert "7 runs parked for the same problem" in said
    assert f"runs {', '.join(uid[:8] for uid in reversed(uids[2:]))} and 2 more points 28 seen" in said
    assert said.count("problem metadata 'synth_source_id' is 'the big one'") == 1
    assert (
        "do atomscale-bluesky edit --all-parked --synth-source-id NUMBER `atomscale-bluesky instruments` lists" in said
    )
    assert "not shown" not in said
    assert len(told(say)["runs"]) == 7

    another = spooled(2, synth_source_id="the small one")
    said = say("status")[1]
    assert f"do atomscale-bluesky edit {' '.join(uid[:8] for uid in uids)} --synth-source-id NUMBER" in said
    assert f"do atomscale-bluesky edit {another[:8]} --synth-source-id NUMBER" in said
    assert "--all-parked" not in said
    assert say("edit", *(uid[:8] for uid in uids), "--synth-source-id", "42")[0] == 0
    assert say("upload")[0] == 1
    assert len(server.streams()) == 7
    assert len(told(say)["runs"]) == 1


def test_runs_that_atomscale_refused_for_the_same_reason_are_shown_as_one_whatever_their_uids(
    say: Say, make_callback: MakeCallback
) -> None:
    callback = make_callback(project_id="0f14d0ab-9605-4a62-a9e4-5ed26688389b")
    for _ in range(3):
        for name, doc in growth(5):
            callback(name, doc)
    wait_until(lambda: [run.state for run in callback.status()] == ["parked"] * 3)

    said = say("status")[1]
    assert "3 runs parked for the same problem" in said
    assert "correct it with `atomscale-bluesky edit --all-parked --project-id UUID`" in said
    assert "do atomscale-bluesky edit --all-parked --project-id UUID or atomscale-bluesky retry --all-parked" in said
    assert "discard" not in said


@pytest.mark.parametrize("height", [10, 20])
def test_watching_many_runs_with_one_problem_fits_a_small_terminal(
    spooled: Spooled, spool_dir: Path, height: int
) -> None:
    uids = [spooled(2) for _ in range(3)] + [spooled(2, synth_source_id="the big one") for _ in range(8)]
    runs = SpoolStatus(Spool(spool_dir)).status()
    out = Console(width=60, height=height)
    shown = shown_runs(runs, 3)

    found = blocks(shown, [], runs[0].endpoint, runs[0].started)
    with out.capture() as capture:
        out.print(fit_terminal(out, found, [Text("the outage")], hidden=len(not_shown(runs, shown))))
    lines = capture.get().splitlines()

    assert len(lines) < height
    assert "8 runs  parked" in lines[1]
    assert any(uids[-1][:8] in line for line in lines)
    assert re.match(r"[123] older runs? not shown(: this terminal is too small|; see `--last`)\.", lines[-1])


def test_one_run_is_shown_by_its_uid_also_if_it_is_finished(
    say: Say, spooled: Spooled, make_callback: MakeCallback
) -> None:
    first = spooled(5)
    assert say("upload")[0] == 0
    second = spooled(5)

    assert first[:8] in say("status", first[:8])[1]
    said = say("status", second[:8])[1]
    assert second[:8] in said
    assert first[:8] not in said
    code, _, complaint = say("status", "no-such")
    assert code == 1
    assert "no run begins with 'no-such'" in complaint


def test_the_last_line_is_about_the_whole_spool_also_if_one_run_is_shown(say: Say, spooled: Spooled) -> None:
    delivered = spooled(5)
    assert say("upload")[0] == 0
    uids = [spooled(3, scan_id=n) for n in (7, 8, 9)]

    for name in (uids[0][:8], "last", "8", delivered[:8]):
        said = say("status", name)[1]
        assert "3 runs, 18 points waiting." in said
        assert "Nobody delivers 3 runs for http" in said
    found = told(say, "last")
    assert (len(found["runs"]), found["points"]["waiting"]) == (1, 6)
    assert (found["in_spool"]["runs"], found["in_spool"]["points"]["waiting"]) == (3, 18)


def test_finished_runs_are_bounded(say: Say, spooled: Spooled) -> None:
    uids = [spooled(2) for _ in range(3)]
    assert say("upload")[0] == 0
    said = say("status", "--all", "--last", "2")[1]

    assert [uid[:8] in said for uid in uids] == [False, True, True]
    assert "1 older finished run not shown" in said


def test_watching_keeps_the_newest_run_and_the_totals_on_a_small_terminal(spooled: Spooled, spool_dir: Path) -> None:
    uids = [spooled(2) for _ in range(6)]
    runs = SpoolStatus(Spool(spool_dir)).status()
    out = Console(width=60, height=16)

    found = blocks(shown_runs(runs, 20), [], runs[0].endpoint, runs[0].started)
    shown = fit_terminal(out, found, [Text("the outage")])
    with out.capture() as capture:
        out.print(shown)
    lines = capture.get().splitlines()

    assert len(lines) < 16
    assert "the outage" in lines[0]
    assert any(uids[-1][:8] in line for line in lines)
    assert not any(uids[0][:8] in line for line in lines)
    assert "older runs not shown" in lines[-1]
    assert all(len(line) <= 60 for line in lines)


# ---- a pipe and a program --------------------------------------------------------------------------------------------


def test_in_a_pipe_there_are_plain_blanks_and_no_line_is_wrapped(spooled: Spooled) -> None:
    spooled(600, plan_name="a rather long name of a plan " * 6)
    ended = subprocess.run(
        [sys.executable, "-m", "atomscale_bluesky", "status"], capture_output=True, text=True, timeout=60, check=True
    )

    assert "\N{NO-BREAK SPACE}" not in ended.stdout
    (points,) = [line for line in ended.stdout.splitlines() if line.split()[:1] == ["points"]]
    assert points == "    points  1 200 seen = 0 delivered + 1 200 waiting"
    assert ended.stdout.splitlines()[0].startswith("a rather long name")
    assert "run " in ended.stdout.splitlines()[0]


def test_json_tells_all_that_the_text_tells(
    say: Say, callback: AtomscaleCallback, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.unreachable()
    for name, doc in growth(25):
        callback(name, doc)
    wait_until(lambda: callback.status().trouble is not None)
    found = told(say)

    assert found["endpoint"] == server.url
    assert found["delivered_to"] == [server.url]
    assert (found["api_key"], found["offline"], found["uploader"], found["exit_code"]) == (True, False, "thread", 0)
    assert found["trouble"]["endpoint"] == server.url
    assert found["runs"][0]["delivered_by_a_process"] is True
    server.reachable()


@pytest.mark.parametrize(
    ("what", "arguments", "code", "text"),
    [
        ("nothing", (), 3, "UNKNOWN: there is no spool in "),
        ("empty", (), 3, "UNKNOWN: there is no spool in "),
        ("delivered", (), 0, "OK: 0 runs in "),
        ("waiting", (), 1, "WARNING: nobody delivers 1 run; 1 run in "),
        ("waiting", ("--max-age", "10m"), 1, "WARNING: nobody delivers 1 run; 1 run in "),
        ("waiting", ("--max-age", "0"), 2, "CRITICAL: the oldest point has waited for "),
        ("parked", (), 2, "CRITICAL: 1 run for the operator, such as "),
        ("wrong", (), 3, "UNKNOWN: "),
    ],
)
def test_monitoring_gets_one_line_and_an_exit_code_of_its_own(
    capsys: pytest.CaptureFixture[str],
    spooled: Spooled,
    spool_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    arguments: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    if what == "waiting":
        spooled(25)
    if what == "empty":
        spool_dir.mkdir()
    if what == "delivered":
        spooled(25)
        main(["upload"])
        capsys.readouterr()
    if what == "parked":
        spooled(25, synth_source_id="the big one")
    if what == "wrong":
        monkeypatch.setenv("ATOMSCALE_BLUESKY_POINTS_PER_CHUNK", "many")

    assert main(["status", "--check", *arguments]) == code
    said = capsys.readouterr().out
    assert said.startswith(text)
    assert said.count("\n") == 1


def test_a_run_that_is_only_to_be_finalized_is_watched_as_well(
    say: Say, make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="finalize", status=503))
    callback = make_callback(exit_timeout_s=0.0)
    for name, doc in growth(25):
        callback(name, doc)
    wait_until(lambda: callback.status().trouble is not None)
    uid = callback.status()[0].run_uid

    assert callback.status().points.waiting == 0
    assert say("status", "--check")[1].startswith("WARNING: no data taken for ")
    code, said, _ = say("status", "--check", "--max-age", "0")
    assert code == 2
    assert said.startswith(f"CRITICAL: run {uid[:8]} is not finalized, longer than 0 s after its last point; ")

    callback.close(0)
    code, said, _ = say("status", "--check")
    assert code == 1
    assert "nobody delivers 1 run; 1 run in " in said
    server.behave()
    assert say("upload")[0] == 0
    assert say("status", "--check")[0] == 0


def test_a_time_that_is_none_is_a_usage_error(say: Say) -> None:
    code, _, complaint = say("status", "--check", "--max-age", "soon")

    assert code == 2
    assert "write 90s, 10m, 2h or 1d" in complaint


def test_each_command_that_is_named_works_as_pasted_for_a_spool_given_by_option(
    say: Say, spooled: Spooled, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = spooled(synth_source_id="the big one")
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir.parent / "another"))
    monkeypatch.setenv("COLUMNS", "300")
    here = f"--spool-dir {spool_dir}"

    said = say("status", *here.split())[1]
    assert f"do atomscale-bluesky edit {uid[:8]} --synth-source-id NUMBER {here} " in said
    assert f"or atomscale-bluesky discard {uid[:8]} {here} " in said
    (run,) = told(say, *here.split())["runs"]
    edit, discard = run["remedies"]
    assert edit.endswith(here)
    assert discard.endswith(here)
    assert f"; `atomscale-bluesky edit {uid[:8]} --synth-source-id NUMBER {here}`" in (
        left := say("upload", *here.split())[1]
    )
    assert left.endswith(f"`atomscale-bluesky status {here}` tells more.")

    pasted = edit.replace("NUMBER", "42").split()[1:]
    assert say(*pasted)[0] == 0
    said = say("status", *here.split())[1]
    assert said.endswith(f"the next session will, or now `atomscale-bluesky upload {here}`.")
    assert f"`atomscale-bluesky status --all {here}`" in say("show", "nosuch", *here.split())[2]
    assert f"`atomscale-bluesky status {here}`" in say("retry", "nosuch", *here.split())[2]
    assert say("upload", *here.split())[0] == 0
    finished = say("verify", "last", *here.split())[2]
    assert f"(`atomscale-bluesky verify {uid[:8]} --file FILE {here}`)" in finished
    assert f"(`atomscale-bluesky show {uid[:8]} --from api {here}`)" in finished


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_a_command_stays_on_one_line_of_a_narrow_terminal(
    spooled: Spooled, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pty

    uid = spooled(synth_source_id="the big one")
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "atomscale_bluesky", "status", "--spool-dir", str(spool_dir)]
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir.parent / "another"))
    monkeypatch.setenv("COLUMNS", "60")
    with subprocess.Popen(command, stdout=inner, stderr=inner) as process:
        os.close(inner)
        said = b""
        with contextlib.suppress(OSError):  # the terminal is gone
            while part := os.read(outer, 65536):
                said += part
    os.close(outer)

    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in said.decode().splitlines()]
    assert process.returncode == 1
    assert f"        do  atomscale-bluesky edit {uid[:8]} --synth-source-id NUMBER --spool-dir {spool_dir}" in lines
    assert max(len(line) for line in lines if "problem" in line) <= 60


def test_the_option_is_added_to_the_commands_that_take_it_and_to_no_other() -> None:
    takes = {
        name for name, command in commands.commands.items() if any(one.name == "spool_dir" for one in command.params)
    }
    named = {name for name in commands.commands if with_option(f"`atomscale-bluesky {name}`", " X").endswith(" X`")}

    assert named == takes
    assert with_option("`atomscale-bluesky edit 1 --tag A`, or `RE([])`", " X") == (
        "`atomscale-bluesky edit 1 --tag A X`, or `RE([])`"
    )


def test_a_spool_that_is_not_there_is_not_called_empty(say: Say, tmp_path: Path) -> None:
    missing = str(tmp_path / "spoool")

    for command in ("status", "upload"):
        code, said, _ = say(command, "--spool-dir", missing)
        assert (code, said.split(":")[0]) == (0, f"There is no spool in {missing} yet")
        assert "the setting `spool_dir` says where it is, or the option --spool-dir" in said
    assert told(say, "--spool-dir", missing)["spool_is_there"] is False
    assert not Path(missing).exists()


def test_a_session_whose_key_is_refused_is_named_with_what_to_do(
    say: Say, make_callback: MakeCallback, server: LocalServer
) -> None:
    remedy = (
        "a process keeps the key that it began with: to use another key, end the process, or unsubscribe and close its "
        "callback before you subscribe a new one"
    )
    callback = make_callback(api_key="revoked")
    for name, doc in growth(25):
        callback(name, doc)
    wait_until(lambda: callback.status().key_refused)

    code, said, _ = say("status")
    assert code == 1
    assert remedy in said
    assert told(say)["trouble"]["key_refused"] is True
    code, said, _ = say("status", "--check")
    assert code == 2
    assert said.startswith("CRITICAL: the API key has been refused for ")
    code, said, _ = say("upload")
    assert code == 1
    assert f"which goes on once its API key is taken: it is refused now, and {remedy}" in said

    callback.close()
    assert say("upload")[0] == 0
    assert say("status", "--check")[0] == 0
    assert [stream.points for stream in server.streams()] == [50]


def test_status_reports_since_when_the_key_is_refused_and_not_since_an_earlier_outage(
    say: Say, make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    spool_dir.mkdir(mode=0o700)
    before = OutageNote(spool_dir, server.url, unix_time=lambda: time.time() - 7200.0)
    before.note_failure("connection refused", lasting=True)
    begin = time.time()
    callback = make_callback(api_key="revoked")
    for name, doc in growth(25):
        callback(name, doc)
    wait_until(lambda: callback.status().key_refused)

    code, said, _ = say("status", "--check")
    assert code == 2
    assert re.match(r"CRITICAL: the API key has been refused for \d\d? s: ", said)
    assert "(the outage began 2 h 0 min ago, with another error)" in said
    said = say("status")[1]
    assert re.search(rf"Atomscale at {server.url} has refused the API key for \d\d? s, since ", said)
    trouble = told(say)["trouble"]
    assert begin - 1 < trouble["kind_since"] <= time.time()
    assert trouble["since"] < begin - 7000

    callback.close(timeout_s=0)
    server.unreachable()
    callback = make_callback(api_key="revoked")
    wait_until(lambda: not told(say)["trouble"]["key_refused"])
    trouble = told(say)["trouble"]
    assert trouble["since"] < begin - 7000
    assert trouble["kind_since"] > begin
    assert re.search(r"has taken no data for \d\d? s, since .*; the outage began at ", say("status")[1])


def test_a_finished_run_without_a_point_does_not_say_that_all_were_delivered(
    say: Say, make_callback: MakeCallback
) -> None:
    callback = make_callback(channels=["nothing like it"])
    for name, doc in growth(20):
        callback(name, doc)
    assert callback.drain(10)
    said = say("status", "--all")[1]

    assert "points 0 delivered, 40 left out, by " in said
    assert "all of them" not in said


def test_a_finished_run_names_the_keys_that_were_left_out(say: Say, make_callback: MakeCallback) -> None:
    callback = make_callback(channels=["*", "!k1", "!k2"])
    for name, doc in growth(20, keys=3):
        callback(name, doc)
    assert callback.drain(10)

    assert " left out 40 not selected: k1, k2 " in say("status", "--all")[1]
    assert "left out 40 not selected: k1 (20), k2 (20)" in say("show", "last")[1]
    (entry,) = told(say, "--all")["finished"]
    assert entry["left_out_keys"] == {"not selected": {"k1": 20, "k2": 20}}


def test_of_many_keys_that_were_left_out_the_first_are_named(say: Say, make_callback: MakeCallback) -> None:
    callback = make_callback(channels=["k0"])
    for name, doc in growth(2, keys=60):
        callback(name, doc)
    assert callback.drain(10)

    assert "left out 118 not selected: k1, k2, " in say("status", "--all")[1]
    assert ", k50 and others " in say("status", "--all")[1]
    assert "k50 (2) and others " in say("show", "last")[1]
