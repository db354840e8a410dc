"""The lines about each run: what they say, where they are printed, and that nothing waits for a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.errors import SpoolError
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]

RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from runs import growth
from atomscale_bluesky import AtomscaleCallback
callback = AtomscaleCallback()
for name, doc in growth(25):
    callback(name, doc)
callback.drain(20)
print("the plan is over", flush=True)
"""


@pytest.fixture
def environment(server: LocalServer, spool_dir: Path) -> dict[str, str]:
    return {
        **os.environ,
        "ATOMSCALE_API_ENDPOINT": server.url,
        "ATOMSCALE_API_KEY": server.api_key,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
        "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
    }


def a_run(callback: AtomscaleCallback, points: int = 25, **metadata: Any) -> str:
    uid = ""
    for name, doc in growth(points, start_metadata=metadata):
        uid = uid or doc["uid"]
        callback(name, doc)
    return uid


class Printed:
    """What a callback prints on standard error. It goes into a file, since reading capfd may lose a line."""

    def __init__(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, make_callback: MakeCallback, opened: ExitStack
    ) -> None:
        self._path = path
        self._read_to = 0
        self._monkeypatch = monkeypatch
        self._make_callback = make_callback
        self._opened = opened

    def callback(self, **settings: Any) -> AtomscaleCallback:
        """A callback that announces its runs. Call it in the test: pytest sets standard error anew after a fixture."""
        self._monkeypatch.setattr(sys, "stderr", self._opened.enter_context(self._path.open("a", encoding="utf-8")))
        return self._make_callback(announce="on", **settings)

    def rest(self) -> str:
        """Return what was printed since the last call."""
        new = self._path.read_bytes()[self._read_to :]
        self._read_to += len(new)
        return new.decode()

    def until(self, sought: str) -> str:
        """Wait until a text was printed. Return what was printed since the last call."""
        wait_until(lambda: sought in self._path.read_bytes()[self._read_to :].decode())
        return self.rest()


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_callback: MakeCallback) -> Iterator[Printed]:
    with ExitStack() as opened:
        yield Printed(tmp_path / "stderr", monkeypatch, make_callback, opened)


def test_a_run_is_announced_by_its_name_and_its_end_by_points_and_data_id(
    server: LocalServer, printed: Printed
) -> None:
    callback = printed.callback()
    uid = a_run(callback)

    lines = printed.until("delivered").splitlines()
    (stream,) = server.streams()
    assert lines == [
        f'atomscale: run {uid[:8]} goes to {server.url} as "{stream.label}"',
        f"atomscale: run {uid[:8]}: 50 points delivered; data_id {stream.data_id}",
    ]


def test_the_end_of_a_run_names_the_main_reason_why_readings_are_left_out(printed: Printed) -> None:
    callback = printed.callback(channels=["*", "!k1"])
    a_run(callback)
    assert "25 points delivered, 25 left out (not selected: k1); data_id " in printed.until("delivered")

    run = compose_run(metadata={"synth_source_id": 42})
    described = {key: {"source": "sim", "dtype": "number", "shape": []} for key in ("k0", "k1", "note")}
    stream = run.compose_descriptor(name="primary", data_keys=described)
    callback("start", run.start_doc)
    callback("descriptor", stream.descriptor_doc)
    for value in (1.0, float("nan")):
        data = {"k0": value, "k1": 2.0, "note": 3.0}
        callback("event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0)))
    callback("stop", run.compose_stop())
    assert "3 left out (not selected: k1; and for other reasons); data_id " in printed.until("delivered")


def test_a_run_that_failed_says_so_at_its_end(printed: Printed) -> None:
    callback = printed.callback()
    for name, doc in growth(25):
        callback(name, doc | {"exit_status": "fail"} if name == "stop" else doc)

    assert "(fail): 50 points delivered" in printed.until("delivered")


def test_without_a_key_both_lines_say_that_nothing_is_sent(spool_dir: Path, printed: Printed) -> None:
    callback = printed.callback(api_key=None)
    uid = a_run(callback)

    begin, end = printed.until("upload").splitlines()[-2:]
    assert begin == (
        f"atomscale: run {uid[:8]} is kept in {spool_dir} and not sent: there is no API key (ATOMSCALE_API_KEY)"
    )
    assert end.startswith(f"atomscale: run {uid[:8]}: 0 points delivered, 50 wait: there is no API key")


def test_where_only_a_service_delivers_and_none_runs_both_lines_say_so(spool_dir: Path, printed: Printed) -> None:
    callback = printed.callback(uploader="none", api_key=None)
    uid = a_run(callback)
    callback.close(0)

    begin, end = printed.until("wait: ").splitlines()[-2:]
    upload = f"atomscale-bluesky upload --spool-dir {spool_dir}"
    remedy = f"no service delivers it now: start `{upload} --follow`, or deliver once with `{upload}`"
    assert begin.startswith(f"atomscale: run {uid[:8]} is kept in {spool_dir}: {remedy}")
    assert end.startswith(f"atomscale: run {uid[:8]}: 0 points delivered, 50 wait: {remedy}")


@pytest.mark.skipif(sys.platform == "win32", reason="stops a process by a signal")
@pytest.mark.parametrize(
    ("uploader", "who"), [("none", "the service"), ("process", "the uploader's own process, also after this session")]
)
def test_a_run_that_a_living_service_has_not_taken_up_yet_names_who_sends_it(
    environment: dict[str, str], server: LocalServer, spool_dir: Path, printed: Printed, uploader: str, who: str
) -> None:
    command = [sys.executable, "-m", "atomscale_bluesky", "upload", "--follow"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as service:
        try:
            wait_until(lambda: spool_dir.exists() and Spool(spool_dir, read_only=True).is_served(server.url))
            service.send_signal(signal.SIGSTOP)
            callback = printed.callback(uploader=uploader)
            uid = a_run(callback)
            callback.close(0)
            begin, end = printed.until("wait: ").splitlines()
            assert begin.startswith(f"atomscale: run {uid[:8]} goes to {server.url} as ")
            assert end.startswith(f"atomscale: run {uid[:8]}: 0 points delivered, 50 wait: it is sent by {who}")
            assert end.endswith(f"; `atomscale-bluesky status --spool-dir {spool_dir}` has more")
        finally:
            service.send_signal(signal.SIGCONT)
            service.terminate()


def test_a_parked_run_is_announced_with_the_reason(printed: Printed) -> None:
    callback = printed.callback()
    a_run(callback, synth_source_id=999)

    text = printed.until("parked")
    assert "50 wait: parked: " in text
    assert "999" in text
    assert "atomscale-bluesky status" in text
    callback.close()
    assert "goes to" not in printed.rest()


def test_a_run_whose_uid_is_no_uuid_is_named_so_that_commands_find_it(
    printed: Printed, caplog: pytest.LogCaptureFixture
) -> None:
    callback = printed.callback()
    for night in ("growth-2026-11-30-001", "growth-2026-11-30-002"):
        uid = ""
        for name, doc in growth(5, start_metadata={"synth_source_id": "the big one"}):
            uid = uid or doc["uid"]
            callback(name, json.loads(json.dumps(doc).replace(uid, night)))

    assert "run growth-2026-11-30-002: 0 points delivered" in printed.until("growth-2026-11-30-002: ")
    assert "mend it with `atomscale-bluesky edit growth-2026-11-30-002 …" in caplog.text


def test_the_commands_that_a_session_names_find_its_spool(
    spool_dir: Path, printed: Printed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = f"--spool-dir {spool_dir}"  # the session's spool is an argument, and a command's is another
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir.parent / "another"))
    callback = printed.callback()
    first, second = a_run(callback, synth_source_id="the big one"), a_run(callback, synth_source_id=999)

    text = printed.until(f"run {second[:8]}: 0 points delivered, 50 wait: parked: ")
    assert f"; `atomscale-bluesky status {here}` has more" in text
    assert f"mend it with `atomscale-bluesky edit {first[:8]} … {here}`" in caplog.text
    edit, retry = f"atomscale-bluesky edit {second[:8]} … {here}", f"atomscale-bluesky retry {second[:8]} {here}"
    assert f"mend it with `{edit}` or `{retry}`" in caplog.text
    assert main(edit.replace("…", "--synth-source-id 42").split()[1:]) == 0
    assert f"run {second[:8]}: 50 points delivered" in printed.until("delivered; data_id")

    with pytest.raises(SpoolError, match=f"verify {second[:8]} --file FILE {here}`"):
        callback.verify(second)


def test_the_commands_name_no_spool_that_they_find_by_themselves(
    spool_dir: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    a_run(printed.callback(), synth_source_id="the big one")

    assert "; `atomscale-bluesky status` has more" in printed.until("has more")


def test_a_parked_run_is_announced_as_going_once_it_is_mended(
    server: LocalServer, spool_dir: Path, printed: Printed
) -> None:
    callback = printed.callback()
    uid = a_run(callback, synth_source_id="the big one")
    text = printed.until("50 wait: parked: ")
    assert "goes to" not in text

    assert main(["edit", uid[:8], "--synth-source-id", "42", "--spool-dir", str(spool_dir)]) == 0

    text = printed.until("50 points delivered")
    assert text.index(f"run {uid[:8]} goes to {server.url}") < text.index("50 points delivered")


def test_what_an_earlier_session_has_left_is_announced_when_it_is_delivered(
    environment: dict[str, str], printed: Printed
) -> None:
    killed = RUN.replace("for name, doc in growth(25):", "for name, doc in list(growth(48))[:-1]:")
    killed = killed.replace("callback.drain(20)", "import os; os._exit(9)")
    subprocess.run(
        [sys.executable, "-c", killed.format(tests=str(Path(__file__).parents[1]))],
        env=environment | {"ATOMSCALE_BLUESKY_OFFLINE": "1"}, timeout=60, capture_output=True,
    )  # fmt: skip
    callback = printed.callback()
    left = callback.status()
    callback.drain(20)

    text = printed.until("delivered")
    assert len(text.splitlines()) == 1
    assert " of an earlier session (interrupted): 96 points delivered; data_id " in text
    assert all(run.run_uid[:8] in text for run in left)

    uid = a_run(callback)
    callback.drain(20)
    text = printed.until("50 points delivered")
    assert f"run {uid[:8]} goes to" in text
    assert f"run {uid[:8]}: 50 points delivered" in text


def test_closing_during_an_outage_announces_what_waits_and_why(server: LocalServer, printed: Printed) -> None:
    server.misbehave(Fault(status=503))
    callback = printed.callback()
    a_run(callback)
    wait_until(lambda: callback.status().trouble)
    callback.close(timeout_s=0.0)

    text = printed.until("wait")
    assert "0 points delivered, 50 wait: " in text
    assert "503" in text


def test_a_name_with_control_characters_cannot_steer_the_terminal(printed: Printed) -> None:
    callback = printed.callback(label="{plan_name}")
    a_run(callback, plan_name="\x1b[31mred\x07\u202e")

    assert all(line.isprintable() for line in printed.until("delivered").splitlines())


@pytest.mark.parametrize(("choice", "lines"), [("auto", 0), ("off", 0), ("on", 2)])
def test_without_a_terminal_only_on_prints_lines(environment: dict[str, str], choice: str, lines: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", RUN.format(tests=str(Path(__file__).parents[1]))],
        env=environment | {"ATOMSCALE_BLUESKY_ANNOUNCE": choice},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert len(re.findall("^atomscale: run", ended.stderr, re.MULTILINE)) == lines
    assert ended.stdout == "the plan is over\n"


@pytest.mark.parametrize(("choice", "lines"), [("auto", 2), ("off", 0)])
def test_on_a_terminal_lines_are_printed_unless_they_are_off(
    environment: dict[str, str], choice: str, lines: int
) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", RUN.format(tests=str(Path(__file__).parents[1]))],
        env=environment | {"ATOMSCALE_BLUESKY_ANNOUNCE": choice},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as child:
        assert child.wait(60) == 0
    os.write(theirs, b"end")
    shown = b""
    while b"end" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    assert len(re.findall(rb"^atomscale: run", shown, re.MULTILINE)) == lines


def test_a_line_that_comes_while_python_waits_for_a_command_leaves_the_prompt_behind_it(
    server: LocalServer, environment: dict[str, str]
) -> None:
    server.unreachable()
    ours, theirs = pty.openpty()
    program = RUN.format(tests=str(Path(__file__).parents[1])).replace("callback.drain(20)", "")
    typed = environment | {"PYTHON_BASIC_REPL": "1", "TERM": "dumb"}
    with subprocess.Popen(
        [sys.executable, "-q", "-i", "-c", program], env=typed, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        try:
            read_until(ours, ">>> $")
            os.write(ours, b"RE(gro")
            read_until(ours, r"RE\(gro$")
            server.reachable()
            shown = read_until(ours, r"delivered; data_id \S+\r\n>>> RE\(gro$")
        finally:
            process.kill()
            os.close(ours)

    # The terminal may show what was typed before Python has read it, and Python shows it once more.
    before, text = shown[: shown.index("atomscale")], shown[shown.index("atomscale") :]
    assert "RE(gro\r\n".endswith(before), shown
    assert re.fullmatch(r"(\r\natomscale: .+\r\n>>> (RE\(gro)?)+", f"\r\n{text}"), shown


def read_until(terminal: int, pattern: str) -> str:
    """What a terminal shows from now on, up to what matches a pattern."""
    found = ""
    while not re.search(pattern, found):
        assert select.select([terminal], [], [], 30.0)[0], f"{pattern!r} was not shown, but {found!r}"
        found += os.read(terminal, 4096).decode()
    return found


def test_a_terminal_that_stands_still_holds_neither_plan_nor_exit(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)  # as Ctrl-S does
    with subprocess.Popen(
        [sys.executable, "-c", RUN.format(tests=str(Path(__file__).parents[1]))],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"the plan is over\n"
        over = time.monotonic()
        assert child.wait(30) == 0
        assert time.monotonic() - over < 10
    termios.tcflow(theirs, termios.TCOON)
    os.close(ours)
    os.close(theirs)


def test_status_and_verification_are_readable_at_a_prompt_and_in_a_notebook(make_callback: MakeCallback) -> None:
    callback = make_callback(label="<b>{plan_name}</b>")
    assert repr(callback.status()) == "no run waits"
    documents = list(growth(20))
    uid = documents[0][1]["uid"]
    for name, doc in documents[:-1]:  # without its stop, so that the run stays in the spool
        callback(name, doc)
    assert callback.drain(timeout_s=30)

    found = callback.verify(uid)
    assert repr(found).startswith(f"<Verification of run {uid[:8]}: all ")
    callback.close()
    waiting = make_callback(offline=True, label="<b>{plan_name}</b>")
    uid = a_run(waiting)
    text = repr(waiting.status())
    assert text.splitlines()[0].startswith("1 run, 50 points waiting")
    assert f"  {uid[:8]}  waiting      50 seen = 0 delivered + 50 waiting" in text
    assert "offline" in repr(waiting)
    for shown in (waiting._repr_html_(), waiting.status()._repr_html_(), found._repr_html_()):
        assert "<table>" in shown
        assert "<b>" not in shown
