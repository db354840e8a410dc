"""The command line: what it tells, and its exit codes."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from event_model import compose_run
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.cli import formatting
from atomscale_bluesky.cli.formatting import ConsoleLog, age, console, safe
from atomscale_bluesky.delivery import active_runs
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.lines import checksummed, payload_of
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
Say = Callable[..., tuple[int, str, str]]

NASTY = "\x1b[31mred\x1b[0m [bold]loud[/bold] \u202edlrow\x07"


@pytest.fixture
def spooled(make_callback: MakeCallback) -> Callable[..., None]:
    """Leave a run in the spool that nobody delivers: 25 events of 2 keys, 10 points per chunk."""

    def spool(points: int = 25, **metadata: Any) -> None:
        callback = make_callback(offline=True)
        for name, doc in growth(points, start_metadata=metadata):
            callback(name, doc)
        callback.close()

    return spool


# ---- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("status >&-", 0),
        ("status --check >&-", 1),
        ("status --check <&- >&- 2>&-", 1),
        ("upload >&-", 0),
        ("upload --follow --timeout 1 >&- 2>&-", 0),
        ("discard last --yes >&- <&-", 0),
        ("show nothing >&-", 1),
    ],
)
def test_a_command_does_its_work_with_closed_output(
    server: LocalServer, spooled: Callable[..., None], command: str, code: int
) -> None:
    spooled(25)
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m atomscale_bluesky {command}"], capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    delivered = [(stream.status, stream.points) for stream in server.streams()]
    assert delivered == ([("success", 50)] if command.startswith("upload") else [])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell, and sends SIGINT")
def test_status_watch_goes_on_with_a_closed_output(spooled: Callable[..., None]) -> None:
    spooled(25)
    begin = f"exec '{sys.executable}' -X importtime -m atomscale_bluesky status --watch >&-"
    with subprocess.Popen(["sh", "-c", begin], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "atomscale_bluesky.status.spool_status" in line:
                break
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)  # it has polled the spool meanwhile
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert (process.returncode, "Traceback" in rest) == (0, False)


def test_without_a_command_it_says_what_there_is(say: Say) -> None:
    _, said, complaint = say("--help")

    assert "Begin with `atomscale-bluesky demo`" in said
    for command in ("demo", "serve", "status", "upload"):
        assert f" {command} " in said
    assert complaint == ""


def test_it_tells_its_version(say: Say) -> None:
    code, said, _ = say("--version")

    assert code == 0
    assert said.startswith("atomscale-bluesky ")


def test_an_unknown_command_is_a_usage_error(say: Say) -> None:
    code, _, complaint = say("statsu")

    assert code == 2
    assert "statsu" in complaint


def test_no_command_takes_an_api_key() -> None:
    from atomscale_bluesky.cli import commands

    options = [option for command in commands.commands.values() for p in command.params for option in p.opts]
    assert options
    assert not [option for option in options if "key" in option]


def test_a_spool_or_an_endpoint_given_twice_is_refused_and_does_not_win_silently(say: Say, tmp_path: Path) -> None:
    from atomscale_bluesky.cli import commands

    values = {"--spool-dir": (str(tmp_path / "mbe1"), str(tmp_path / "mbe2")), "--endpoint": ("http://a", "http://b")}
    tried = 0
    for name, command in commands.commands.items():
        for option, (first, second) in values.items():
            if any(option in parameter.opts for parameter in command.params):
                tried += 1
                code, _, complaint = say(name, option, first, option, second)
                assert (code, f"{option} is given 2 times" in complaint or "Missing argument" in complaint) == (2, True)
    assert tried > 15
    code, _, complaint = say(
        "status", "--check", "--spool-dir", str(tmp_path / "a"), "--spool-dir", str(tmp_path / "b")
    )
    assert (code, "--spool-dir is given 2 times; run the command once for each" in complaint) == (2, True)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("status", "--spool-dir"),
        ("upload", "--spool-dir"),
        ("upload", "--endpoint"),
        ("config show", "--spool-dir"),
        ("doctor", "--endpoint"),
    ],
)
@pytest.mark.parametrize("text", ["", " "])
def test_an_option_with_an_empty_value_is_refused(say: Say, command: str, option: str, text: str) -> None:
    code, _, complaint = say(*command.split(), option, text)

    assert code == 2
    assert f"{option} is given without a value; give one, or leave it out" in complaint


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("click", ["status"], "cli"),
        ("rich", ["status"], "cli"),
        ("uvicorn", ["serve"], "server"),
        ("fastapi", ["serve"], "server"),
        ("ophyd", ["demo"], "demo"),
        ("bluesky", ["demo"], "demo"),
        ("matplotlib", ["demo"], "demo"),
        ("prometheus_client", ["metrics"], "metrics"),
        ("uvicorn", ["metrics"], "metrics"),
        ("tiled", ["send", "tiled", "http://tiled.lab:8000/mbe", "--dry-run"], "tiled"),
        ("httpx", ["send", "tiled", "http://tiled.lab:8000/mbe", "--dry-run"], "tiled"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(missing: str, arguments: list[str], extra: str) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None; from atomscale_bluesky.__main__ import main; sys.exit(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 2
    assert ended.stderr == (
        f"atomscale-bluesky: this command needs {missing}, which is not installed; "
        f"python -m pip install 'atomscale-bluesky[{extra}]'\n"
    )


def test_help_needs_neither_server_nor_bluesky() -> None:
    script = """
import sys
for name in ("fastapi", "uvicorn", "bluesky", "ophyd", "matplotlib"):
    sys.modules[name] = None
from atomscale_bluesky.__main__ import main
sys.exit(main(["--help"]) or main(["demo", "--help"]) or main(["serve", "--help"]) or main(["status"]))
"""
    subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)


@pytest.mark.parametrize("command", ["status", "upload"])
def test_a_wrong_setting_is_one_line_and_exit_code_2(say: Say, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("ATOMSCALE_BLUESKY_POINTS_PER_CHUNK", "many")
    code, _, complaint = say(command)

    assert code == 2
    assert complaint.count("\n") == 1
    assert "'points_per_chunk' (environment variable ATOMSCALE_BLUESKY_POINTS_PER_CHUNK) is 'many'" in complaint


@pytest.mark.parametrize("command", ["status", "upload"])
def test_a_spool_that_cannot_be_used_is_one_line_and_exit_code_2(
    say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(tmp_path / "file"))
    code, _, complaint = say(command)

    assert code == 2
    assert complaint.count("\n") == 1
    assert "is a file and no folder" in complaint


# ---- status ----------------------------------------------------------------------------------------------------------


def test_where_nothing_was_spooled_that_is_said_and_no_folder_is_made(say: Say, spool_dir: Path) -> None:
    code, said, _ = say("status")

    assert code == 0
    assert f"There is no spool in {spool_dir} yet" in said
    assert not spool_dir.exists()


def test_a_run_that_waits_is_told_as_a_sum_that_comes_out(say: Say, spooled: Callable[..., None]) -> None:
    spooled(25)
    code, said, _ = say("status")

    assert code == 0
    assert " waiting run " in said
    assert "50 seen = 0 delivered + 50 waiting" in said
    assert "the oldest point for " in said
    assert "1 run, 50 points waiting" in said


def test_the_run_of_a_living_process_is_running_and_has_a_data_id(
    say: Say, callback: AtomscaleCallback, server: LocalServer
) -> None:
    documents = list(growth(25))
    for name, doc in documents[:-1]:
        callback(name, doc)
    callback.drain(10)
    code, said, _ = say("status")

    (stream,) = server.streams()
    assert code == 0
    assert "running" in said
    assert "50 seen = 40 delivered + 10 waiting" in said
    assert f"{stream.data_id} primary, initialized, 2 chunks confirmed" in said


def test_a_run_whose_process_died_is_interrupted(say: Say, killed: Callable[[int], None]) -> None:
    killed(25)
    _, said, _ = say("status")

    assert "interrupted" in said
    assert "50 seen = 0 delivered + 50 waiting" in said


def test_a_finished_run_is_shown_with_all_alone(say: Say, callback: AtomscaleCallback, server: LocalServer) -> None:
    for name, doc in growth(25):
        callback(name, doc)
    assert callback.drain(10)
    (stream,) = server.streams()

    assert stream.data_id not in say("status")[1]
    code, said, _ = say("status", "--all")
    assert code == 0
    assert "50 delivered, all of them" in said
    assert stream.data_id in said


def test_what_is_left_out_is_told_with_its_reason_and_its_keys(say: Say, make_callback: MakeCallback) -> None:
    callback = make_callback(offline=True)
    run = compose_run()
    stream = run.compose_descriptor(
        name="primary",
        data_keys={
            "T": {"source": "sim", "dtype": "number", "shape": []},
            "note": {"source": "sim", "dtype": "string", "shape": []},
        },
    )
    event = stream.compose_event(data={"T": 1.0, "note": "warm"}, timestamps={"T": 0.0, "note": 0.0})
    for name, doc in (("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("event", event)):
        callback(name, doc)
    _, said, _ = say("status")

    assert "2 seen = 0 delivered + 1 waiting + 1 left out" in said
    assert "left out 1 " in said
    assert ": note" in said


def test_a_parked_run_needs_a_person_so_the_exit_code_is_1(say: Say, spooled: Callable[..., None]) -> None:
    spooled(5, synth_source_id="the big one")
    code, said, _ = say("status")

    assert code == 1
    assert "parked" in said
    assert "'the big one'" in said


def test_a_refused_chunk_needs_a_person_so_the_exit_code_is_1(
    say: Say, callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=0, status=422, body='{"detail": "no"}'))
    for name, doc in growth(25):
        callback(name, doc)
    assert not callback.drain(10)
    code, said, _ = say("status")

    assert code == 1
    assert "20 refused" in said
    assert "was answered 422" in said


def test_text_from_outside_reaches_no_terminal_as_markup_or_control(
    say: Say, spooled: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    spooled(5, plan_name=NASTY, synth_source_id=NASTY)
    main(["status"])
    said = capsys.readouterr().out
    main(["status", "--json"])
    said += capsys.readouterr().out

    assert "[bold]loud[/bold]" in said
    assert all(character.isprintable() or character == "\n" for character in said.replace("\N{NO-BREAK SPACE}", " "))


def test_as_json_a_program_can_add_it_up_channel_by_channel(
    capsys: pytest.CaptureFixture[str], spooled: Callable[..., None], spool_dir: Path
) -> None:
    spooled(25)
    assert main(["status", "--json", "--all"]) == 0
    told = json.loads(capsys.readouterr().out)

    (run,) = told["runs"]
    assert told["spool"] == str(spool_dir)
    assert told["finished"] == []
    assert run["channels"]["k0"] == {
        "seen": 25, "delivered": 0, "waiting": 25, "refused": 0, "discarded": 0, "lost": 0, "left_out": {},
    }  # fmt: skip
    assert run["oldest_waiting_s"] >= 0
    assert told["points"]["waiting"] == run["points"]["waiting"] == 50


# ---- upload ----------------------------------------------------------------------------------------------------------


def test_a_run_that_was_completed_and_still_waits_says_that_it_was_interrupted(
    say: Say, server: LocalServer, killed: Callable[[int], None]
) -> None:
    killed(25)
    server.unreachable()
    code, said, _ = say("upload", "--timeout", "3")

    assert (code, "waiting (interrupted): 50 points waiting" in said) == (1, True)
    assert "plan interrupted: no stop document came" in say("status")[1]
    assert "ended interrupted: no stop document came" in say("show", "last")[1]
    server.reachable()
    code, said, _ = say("upload")
    assert (code, "finalized, interrupted: 50 points delivered to " in said) == (0, True)


def test_upload_delivers_the_run_of_a_killed_process_and_completes_it(
    say: Say, server: LocalServer, killed: Callable[[int], None]
) -> None:
    killed(25)
    code, said, _ = say("upload")

    assert code == 0
    assert "All of it is delivered." in said
    assert "ended interrupted: no stop document came" in say("show", "last")[1]
    (stream,) = server.streams()
    assert (stream.status, stream.points) == ("success", 50)
    assert say("status")[1].endswith("nothing waits.")


def test_upload_has_nothing_to_do_where_nothing_waits(say: Say, spooled: Callable[..., None]) -> None:
    spooled(25)
    say("upload")
    code, said, _ = say("upload")

    assert code == 0
    assert "Nothing waits" in said


def test_upload_delivers_more_runs_than_are_delivered_at_a_time(
    say: Say, server: LocalServer, spooled: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_runs, "MAX_ACTIVE", 2)
    for _ in range(5):
        spooled(5)
    code, _, _ = say("upload")

    assert code == 0
    assert [stream.status for stream in server.streams()] == ["success"] * 5


def test_upload_without_a_key_is_one_line_and_exit_code_2(
    say: Say, spooled: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled()
    monkeypatch.delenv("ATOMSCALE_API_KEY")
    code, _, complaint = say("upload")

    assert code == 2
    assert complaint == (
        "atomscale-bluesky: no API key: put the key of your Atomscale account into ATOMSCALE_API_KEY\n"
    )


def test_upload_without_a_key_names_the_service_if_only_that_one_needs_the_key(
    say: Say, spooled: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled()
    monkeypatch.delenv("ATOMSCALE_API_KEY")
    monkeypatch.setenv("ATOMSCALE_BLUESKY_UPLOADER", "none")
    code, _, complaint = say("upload")

    assert code == 2
    assert complaint == (
        "atomscale-bluesky: no API key here, and the setting 'uploader' is 'none': the service `atomscale-bluesky "
        "upload --follow` has the key and delivers; to deliver once from here, put the key into ATOMSCALE_API_KEY\n"
    )
    assert say("upload", "--follow")[2] == (
        "atomscale-bluesky: no API key: put the key of your Atomscale account into ATOMSCALE_API_KEY\n"
    )


def test_upload_with_a_wrong_key_ends_and_never_shows_it(
    say: Say, spooled: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled()
    monkeypatch.setenv("ATOMSCALE_API_KEY", "not-the-one")
    code, said, complaint = say("upload")

    assert code == 1
    assert "check the key in ATOMSCALE_API_KEY" in complaint
    assert "not-the-one" not in said + complaint


@pytest.mark.parametrize("status", [403, 404])
def test_upload_delivers_with_a_key_that_may_not_look_into_the_catalogue(
    say: Say, server: LocalServer, spooled: Callable[..., None], status: int
) -> None:
    spooled()
    server.misbehave(Fault(call="catalogue", status=status))
    code, said, complaint = say("upload")

    assert (code, [stream.status for stream in server.streams()]) == (0, ["success"])
    assert "All of it is delivered." in said
    assert complaint.count("\n") == 1
    assert (
        f"whether the key works is not known, and it is tried (GET data_entries/ was answered {status}: " in complaint
    )


def test_upload_with_a_key_that_may_do_nothing_ends(
    say: Say, server: LocalServer, spooled: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atomscale_bluesky.delivery.uploader_service.KEY_PATIENCE_S", 0.0)
    spooled()
    server.misbehave(Fault(status=403))
    code, said, _ = say("upload")

    assert code == 1
    assert "check the API key" in said
    assert "Not all of it is delivered" in said


@pytest.mark.parametrize("status", [403, 404])
def test_upload_follow_calls_no_key_refused_that_may_not_look_into_the_catalogue(
    server: LocalServer, spool_dir: Path, status: int
) -> None:
    server.misbehave(Fault(call="catalogue", status=status))
    with subprocess.Popen(
        [sys.executable, "-m", "atomscale_bluesky", "upload", "--follow"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if f"was answered {status}" in line)
        process.terminate()
        process.communicate(timeout=30)

    assert " WARNING " in said
    assert "whether the key works is not known, and it is tried" in said


def test_upload_that_runs_out_of_time_fails_and_leaves_everything_for_the_next(
    say: Say, server: LocalServer, spooled: Callable[..., None]
) -> None:
    spooled(25)
    server.unreachable()
    code, said, _ = say("upload", "--timeout", "0.5")
    assert code == 1
    assert "50 points waiting" in said
    assert "Not all of it is delivered" in said

    server.reachable()
    assert say("upload")[0] == 0
    (stream,) = server.streams()
    assert (stream.status, stream.points) == ("success", 50)


@pytest.mark.parametrize("timeout", ["nan", "inf", "1e300"])
@pytest.mark.parametrize("more", [(), ("--follow",)])
def test_upload_refuses_a_timeout_that_no_timer_can_wait_for(say: Say, timeout: str, more: tuple[str, ...]) -> None:
    code, _, complaint = say("upload", "--timeout", timeout, *more)

    assert code == 2
    assert "give a number of seconds, or leave it out" in complaint


def test_upload_ends_in_time_although_the_server_never_answers(
    say: Say, spooled: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled(25)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and reads nothing
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", endpoint)
        begun = time.monotonic()
        code, said, _ = say("upload", "--timeout", "1")

    assert (code, "Not all of it is delivered" in said) == (1, True)
    assert time.monotonic() - begun < 10


def test_upload_of_a_refused_chunk_ends_by_itself_and_fails(
    say: Say, server: LocalServer, spooled: Callable[..., None]
) -> None:
    spooled(25)
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=0, status=422, body='{"detail": "no"}'))
    code, said, _ = say("upload")

    assert code == 1
    assert "20 refused" in said


def test_upload_leaves_alone_what_another_process_delivers(
    say: Say, spooled: Callable[..., None], spool_dir: Path
) -> None:
    spooled(25)
    spool = Spool(spool_dir)
    claim = spool.claim(spool.run_folders()[0])
    assert claim is not None
    try:
        code, said, _ = say("upload")
    finally:
        claim.close()

    assert code == 1
    assert "1 run is in the hands of another process" in said


def test_upload_sends_nothing_that_was_spooled_for_another_endpoint(
    say: Say, server: LocalServer, spooled: Callable[..., None]
) -> None:
    spooled(25)
    with LocalServer(control=True) as other:
        code, said, _ = say("upload", "--endpoint", other.url)

        assert other.streams() == []
    assert code == 1
    assert f"was spooled for {server.url}" in said


def test_upload_delivers_runs_whose_endpoint_an_earlier_version_kept_in_capitals(
    say: Say, server: LocalServer, spooled: Callable[..., None], spool_dir: Path
) -> None:
    spooled(25)
    (journal,) = spool_dir.glob("*/journal*")
    header, _, rest = journal.read_bytes().partition(b"\n")
    payload = payload_of(header)
    assert payload is not None
    capitals = payload.replace(server.url.encode(), server.url.replace("http", "HTTP").encode())
    assert capitals != payload
    journal.write_bytes(checksummed(capitals) + rest)

    assert say("upload")[0] == 0
    (stream,) = server.streams()
    assert (stream.status, stream.points) == ("success", 50)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process of its own")
def test_ctrl_c_leaves_an_upload_resumable(say: Say, server: LocalServer, spooled: Callable[..., None]) -> None:
    spooled(25)
    server.unreachable()
    with subprocess.Popen(
        [sys.executable, "-m", "atomscale_bluesky", "upload"],
        env=os.environ | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if "does not take data" in line:
                break
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stays in the spool" in said
    assert complaint == ""

    server.reachable()
    assert say("upload")[0] == 0


def test_upload_follow_says_within_seconds_that_the_key_is_refused_although_nothing_waits(
    server: LocalServer, spool_dir: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "atomscale_bluesky", "upload", "--follow"],
        env=os.environ | {"ATOMSCALE_API_KEY": "not-the-one"}, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = next(line for line in process.stderr if " ERROR " in line)
        process.terminate()
        process.communicate(timeout=30)

    assert f"{server.url} refuses the API key" in said
    assert "not-the-one" not in said


# ---- serve -----------------------------------------------------------------------------------------------------------


def test_serve_says_where_it_listens_and_ends_with_its_standard_input() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "atomscale_bluesky", "serve", "--port", "0", "--control", "--json", "--until-eof"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert requests.get(ready["url"] + "/data_entries/", timeout=10).status_code == 401
        _, complaint = process.communicate("", timeout=30)

    assert process.returncode == 0
    assert complaint == ""
    assert set(ready) == {"url", "control_url"}


def test_serve_tells_a_person_what_to_set(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "atomscale_bluesky", "serve", "--port", "0", "--until-eof"],
        env=os.environ | {"PYTHONUNBUFFERED": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(6)]
        process.communicate("", timeout=30)

    assert said[0].startswith("A local Atomscale server listens on http://127.0.0.1:")
    assert "in a browser" in said[1]
    assert "ATOMSCALE_API_ENDPOINT=http://127.0.0.1:" in said[4]


def test_a_taken_port_is_one_line_and_exit_code_2(say: Say, server: LocalServer) -> None:
    port = server.url.rpartition(":")[2]
    code, _, complaint = say("serve", "--port", port)

    assert code == 2
    assert complaint.count("\n") == 1
    assert f"port {port}" in complaint


def test_an_unknown_rule_is_one_line_and_exit_code_2(say: Say) -> None:
    code, _, complaint = say("serve", "--port", "0", "--relax", "everything")

    assert code == 2
    assert "'everything'" in complaint


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (4.4, "4 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7300, "2 h 1 min"), (190_800, "2 d 5 h")],
)
def test_an_age_has_at_most_two_places(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_plain_text_keeps_what_can_be_printed_and_spells_out_the_rest() -> None:
    assert safe("25 °C \x1b[2J\r\n\u202e") == r"25 °C \x1b[2J\r\n\u202e"
    assert len(safe("x" * 600)) == 500


@pytest.fixture
def killed(server: LocalServer, spool_dir: Path) -> Callable[[int], None]:
    """Leave the run of a process that was killed before its stop document."""

    def run(points: int) -> None:
        script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from runs import growth
from atomscale_bluesky import AtomscaleCallback
callback = AtomscaleCallback(points_per_chunk=10)
for name, doc in growth({points}):
    if name == "stop":
        os.kill(os.getpid(), 9) if hasattr(os, "fork") else os._exit(9)
    callback(name, doc)
"""
        environment = os.environ | {"ATOMSCALE_BLUESKY_OFFLINE": "true"}
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60, check=False)
        wait_until(lambda: Spool(spool_dir).run_folders())

    return run


@pytest.mark.parametrize("arguments", [["send", "-"], ["serve", "--port", "0", "--until-eof"]])
def test_a_closed_standard_input_is_named(
    server: LocalServer,
    spool_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it where the descriptor is closed

    assert main(arguments) != 0

    said = capsys.readouterr()
    assert re.search(r"standard input.* is closed", said.out + said.err)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("show", "no-such"), 1, "no run begins with 'no-such'"),
        (("retry", "no-such"), 1, "no run in the spool begins with 'no-such'"),
        (("status", "--last", "none"), 2, "Invalid value for '--last'"),
        (("status", "--spool-dir", "/dev/null/spool"), 2, ""),
    ],
)
def test_every_error_begins_with_the_name_of_the_program(
    say: Say, spooled: Callable[..., None], arguments: tuple[str, ...], code: int, error: str
) -> None:
    spooled()
    ended, _, complaint = say(*arguments)

    assert ended == code
    assert "Error:" not in complaint
    assert complaint.splitlines()[-1].startswith(f"atomscale-bluesky: {error}")
    assert complaint.startswith("Usage: atomscale-bluesky status") == ("--last" in arguments)


def test_a_line_about_a_run_is_not_printed_twice_in_a_minute_and_again_when_it_comes_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(formatting.time, "monotonic", lambda: now)
    monkeypatch.setattr(formatting, "MAX_PRINTED", 3)
    log = ConsoleLog(console(stderr=True), logging.INFO)

    def note(text: str, *args: str) -> None:
        log.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": text, "args": args}))

    def printed(*runs: str) -> list[str]:
        for run in runs:
            note("run %s is parked", run)
        return capsys.readouterr().err.split("\n")[:-1]

    assert printed("a", "a", "b") == ["run a is parked", "run b is parked"]
    now += 59.0
    assert printed("a") == []
    now += 1.0
    assert printed("a", "b") == ["run a is parked", "run b is parked"]
    assert printed("c", "d", "e", "a") == ["run c is parked", "run d is parked", "run e is parked", "run a is parked"]
    note("the disk has room")
    note("the disk has room")
    assert len(printed()) == 2
