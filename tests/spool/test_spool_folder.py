"""Where the spool is: in the folder that was named, or below it where other people's things are; who touches what."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusing import refuse
from runs import growth
from trees import tree
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, Settings, SettingsError
from atomscale_bluesky.checks.doctor import Result, examine
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.leftovers import is_beginning
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.spool.spool_folder import mark
from atomscale_bluesky.status.clock_note import ClockNote, write_note
from atomscale_bluesky.status.probe_results import Findings, read_findings, write_findings
from atomscale_bluesky.status.spool_status import SpoolStatus

MakeCallback = Callable[..., AtomscaleCallback]

MARKER = "atomscale-bluesky-spool.txt"
OURS = "atomscale-bluesky"
RUN = "20260101T020000-deadbeef"
posix = pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")


def things_in(folder: Path) -> None:
    """What somebody else keeps there, long untouched."""
    (folder / "thesis" / "chapter1").mkdir(parents=True)
    (folder / "thesis" / "chapter1" / "text.tex").write_text("ten years of work")
    (folder / "empty").mkdir()
    (folder / "20260101").mkdir()
    (folder / "users_data.h5").write_bytes(b"x" * 1000)
    hour_ago = time.time() - 3600
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, (hour_ago, hour_ago))


def located(folder: Path) -> Path:
    return Settings.load(environ={}, spool_dir=folder).spool_path


def offline_run(make_callback: MakeCallback, **settings: Any) -> None:
    """A run that is kept and not sent."""
    with make_callback(offline=True, **settings) as callback:
        for name, doc in growth(points=5):
            callback(name, doc)


def unmarked(spool_dir: Path) -> None:
    """As a version left it that put no file into the folder to tell whose it is."""
    (spool_dir / MARKER).unlink()


def command(*arguments: str, server: LocalServer | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "500", "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0"} | more
    if server is not None:
        environment |= {"ATOMSCALE_API_ENDPOINT": server.url, "ATOMSCALE_API_KEY": server.api_key}
    return subprocess.run(
        [sys.executable, "-m", "atomscale_bluesky", *arguments],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


# ---- which folder ----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_or_is_empty_is_the_spool_and_stays_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        assert located(tmp_path / name) == tmp_path / name
        Spool(tmp_path / name).writers.stop_threads()
        things_in(tmp_path / name)  # put there later
        assert located(tmp_path / name) == tmp_path / name


@posix
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2775, 0o1777])
def test_the_mode_of_an_empty_folder_is_left_and_what_is_made_in_it_is_its_owners(
    make_callback: MakeCallback, spool_dir: Path, mode: int
) -> None:
    spool_dir.mkdir()
    spool_dir.chmod(mode)

    offline_run(make_callback)

    assert spool_dir.stat().st_mode & 0o7777 == mode
    inside = {path: path.stat().st_mode & 0o777 for path in spool_dir.rglob("*")}
    assert inside
    assert all(found == (0o700 if path.is_dir() else 0o600) for path, found in inside.items())


@posix
@pytest.mark.parametrize("mode", [0o755, 0o2775, 0o1777])
def test_a_folder_with_other_things_is_left_alone_and_one_below_it_is_used(
    callback: AtomscaleCallback,
    make_callback: MakeCallback,
    tmp_path: Path,
    mode: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = tmp_path / "beamline"
    things_in(shared)
    shared.chmod(mode)
    before = tree(shared)

    callback = make_callback(spool_dir=str(shared))
    other = make_callback(spool_dir=str(shared))
    for name, doc in growth(points=25):
        callback(name, doc)
    assert callback.drain(timeout_s=20)
    other.close()

    after = tree(shared)
    added = {name for name in after if name == OURS or name.startswith(f"{OURS}/")}
    assert {f"{OURS}/{MARKER}", f"{OURS}/history.jsonl"} <= added
    assert (shared / OURS).stat().st_mode & 0o777 == 0o700
    of_others = {name: entry for name, entry in after.items() if name not in added}
    assert of_others.pop(".").mode == before.pop(".").mode
    assert of_others == before
    (said,) = [record.getMessage() for record in caplog.records if "holds other things" in record.getMessage()]
    assert str(shared) in said
    assert str(shared / OURS) in said
    assert "`spool_dir`" in said


def test_every_command_finds_the_spool_below_a_folder_with_other_things(
    make_callback: MakeCallback, server: LocalServer, tmp_path: Path
) -> None:
    shared = tmp_path / "beamline"
    things_in(shared)
    offline_run(make_callback, spool_dir=str(shared))
    place = {"ATOMSCALE_BLUESKY_SPOOL_DIR": str(shared)}

    told = json.loads(command("status", "--json", server=server, **place).stdout)
    assert (told["spool"], told["points"]["waiting"]) == (str(shared / OURS), 10)
    uid = told["runs"][0]["run_uid"]
    checks = json.loads(command("doctor", "--json", server=server, **place).stdout)
    spools = [check for check in checks if check["what"] == "spool"]
    assert [check["result"] for check in spools] == ["warning", "passed"]
    assert "set `spool_dir`" in spools[0]["remedy"]
    assert command("retry", uid[:8], server=server, **place).returncode == 0
    assert command("verify", uid[:8], "--patience", "0", server=server, **place).returncode == 1  # known, and waits
    uploaded = command("upload", server=server, **place)
    assert uploaded.returncode == 0, uploaded.stderr
    assert "All of it is delivered" in uploaded.stdout
    assert (shared / "thesis" / "chapter1" / "text.tex").read_text() == "ten years of work"


def test_findings_are_kept_and_read_where_the_spool_is(tmp_path: Path) -> None:
    things_in(tmp_path)
    (tmp_path / OURS).mkdir()
    endpoint = "http://127.0.0.1:9"
    write_findings(tmp_path / OURS, Findings(endpoint, 0.0, "1", ()))

    assert read_findings(located(tmp_path), endpoint) is not None


def test_a_spool_below_stays_the_spool_whatever_comes_or_goes_above_it(tmp_path: Path) -> None:
    things_in(tmp_path)
    Spool(located(tmp_path)).writers.stop_threads()
    for name in ("thesis", "empty", "20260101"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "users_data.h5").unlink()
    assert located(tmp_path) == tmp_path / OURS

    Spool(tmp_path / "another").writers.stop_threads()
    shutil.copytree(tmp_path / "another", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARKER))
    assert located(tmp_path) == tmp_path / OURS


def test_a_checkout_of_the_same_name_is_other_peoples_too(tmp_path: Path) -> None:
    things_in(tmp_path)
    things_in(tmp_path / OURS)

    assert located(tmp_path) == tmp_path / OURS / OURS
    Spool(located(tmp_path)).writers.stop_threads()
    assert located(tmp_path) == tmp_path / OURS / OURS


def test_a_spool_without_its_marker_is_known_by_a_run_that_waits(make_callback: MakeCallback, spool_dir: Path) -> None:
    offline_run(make_callback)
    unmarked(spool_dir)
    things_in(spool_dir)

    assert located(spool_dir) == spool_dir
    assert sum(run.points.waiting for run in make_callback(offline=True).status()) == 10
    assert (spool_dir / MARKER).exists()


def test_a_spool_without_its_marker_is_known_by_its_history(make_callback: MakeCallback, spool_dir: Path) -> None:
    callback = make_callback()
    for name, doc in growth(points=5):
        callback(name, doc)
    assert callback.drain(timeout_s=20)
    callback.close()
    unmarked(spool_dir)
    for path in spool_dir.iterdir():
        if path.name != "history.jsonl":
            path.unlink()
    things_in(spool_dir)

    assert located(spool_dir) == spool_dir


def test_a_spool_without_its_marker_is_known_by_its_notes(tmp_path: Path) -> None:
    endpoint = "http://127.0.0.1:9"
    for name in ("probed", "clock"):
        (tmp_path / name).mkdir()
        things_in(tmp_path / name)
    write_findings(tmp_path / "probed", Findings(endpoint, 0.0, "1", ()))
    write_note(tmp_path / "clock", ClockNote(endpoint, 0.0, 0.0, 0.0))

    assert located(tmp_path / "probed") == tmp_path / "probed"
    assert located(tmp_path / "clock") == tmp_path / "clock"


def test_a_spool_without_its_marker_whose_only_run_is_damaged_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / RUN).mkdir()
    for name in ("journal-0001.jsonl", "head.jsonl"):
        (tmp_path / RUN / name).write_bytes(b"damaged\n")

    assert located(tmp_path) == tmp_path
    (status,) = SpoolStatus(Spool(tmp_path, read_only=True)).status()
    assert status.state == "unreadable"


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: (folder / "history.jsonl").write_text("1  ls\n2  cd thesis\n"),
        lambda folder: (folder / "clock.json").write_text('{"time": "noon"}'),
        lambda folder: (folder / "uploader.log").write_text("mine"),
        lambda folder: (folder / RUN).mkdir(),
        lambda folder: [(folder / RUN).mkdir(), (folder / RUN / "scan.h5").write_bytes(b"x")],
        lambda folder: [(folder / "backup").mkdir(), (folder / "backup" / "journal-0001.jsonl").write_bytes(b"x\n")],
    ],
    ids=["a history", "a clock", "a log", "an empty folder", "a measurement", "a backup"],
)
def test_other_peoples_things_are_not_taken_for_ours_by_their_names(tmp_path: Path, make: Callable[..., Any]) -> None:
    make(tmp_path)
    before = tree(tmp_path)

    assert located(tmp_path) == tmp_path / OURS
    Spool(located(tmp_path)).writers.stop_threads()
    assert {name: entry for name, entry in tree(tmp_path).items() if name != "." and OURS not in name} == {
        name: entry for name, entry in before.items() if name != "."
    }


@pytest.mark.parametrize("before", ["missing", "empty", "other things"])
def test_processes_that_begin_at_the_same_time_share_one_spool(tmp_path: Path, before: str) -> None:
    program = """
        import sys
        from atomscale_bluesky import AtomscaleCallback
        sys.stdin.readline()
        callback = AtomscaleCallback(spool_dir=sys.argv[1])
        print(callback._spool.path)
    """
    folder = tmp_path / "spool"
    if before != "missing":
        folder.mkdir()
    if before == "other things":
        things_in(folder)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    told = [process.communicate(timeout=60) for process in processes]

    expected = folder / OURS if before == "other things" else folder
    assert {out.strip() for out, _ in told} == {str(expected)}, told


def test_a_marker_that_another_process_makes_at_the_same_moment_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MARKER).write_bytes(b"of another process")
    with monkeypatch.context() as patched:
        for call in ("stat", "lstat"):  # it is not there yet when it is looked for
            refuse(patched, call, tmp_path / MARKER, errno.ENOENT)
        mark(tmp_path)

    assert (tmp_path / MARKER).read_bytes() == b"of another process"


@posix
def test_a_folder_that_a_link_leads_to_is_used_and_keeps_its_mode(
    make_callback: MakeCallback, server: LocalServer, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o755)
    disk.chmod(0o2775)
    (tmp_path / "link").symlink_to(disk)
    callback = make_callback(spool_dir=str(tmp_path / "link"))
    for name, doc in growth(points=15):
        callback(name, doc)

    assert callback.drain(timeout_s=20)
    assert (disk / "history.jsonl").exists()
    assert disk.stat().st_mode & 0o7777 == 0o2775
    assert (tmp_path / "link").is_symlink()


def test_a_folder_full_of_folders_of_our_name_is_refused(make_callback: MakeCallback, tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(10):
        things_in(folder)
        folder /= OURS

    with pytest.raises(SettingsError, match="holds other things; choose another `spool_dir`"):
        make_callback(spool_dir=str(tmp_path))


@posix
def test_a_folder_that_may_not_be_searched_is_for_its_opener_to_report(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    Spool(closed).writers.stop_threads()
    settings = Settings.load(environ={}, spool_dir=closed)
    closed.chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(12345)  # root may search everything
    try:
        assert settings.spool_path == closed
    finally:
        os.seteuid(before)
        closed.chmod(0o700)


# ---- what only looks -------------------------------------------------------------------------------------------------


def test_commands_that_only_look_leave_a_spool_as_it_is(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.misbehave(Fault(call="finalize", status=503))
    callback = make_callback()
    for name, doc in growth(points=25):
        callback(name, doc)
    wait_until(lambda: server.requests("finalize"))
    wait_until(lambda: (spool_dir / "trouble.json").exists())
    uid = callback.status()[0].run_uid
    callback.close(timeout_s=0)
    offline_run(make_callback)
    (spool_dir / "backup").mkdir()
    server.behave()
    for run in spool_dir.glob("*-*/"):
        for lock in run.glob("*.lock"):
            lock.unlink()  # to look whether one is held makes none
    (spool_dir / "history.jsonl").touch()
    if os.name != "nt":
        spool_dir.chmod(0o2775)
    before = tree(spool_dir)

    for arguments in (
        ["status"], ["status", "--json", "--all"], ["doctor"], ["verify", uid[:8], "--patience", "0"],
    ):  # fmt: skip
        done = command(*arguments, server=server, ATOMSCALE_BLUESKY_SPOOL_DIR=str(spool_dir))
        assert "Traceback" not in done.stderr
        assert tree(spool_dir) == before, arguments
    Settings.load(environ={}, spool_dir=spool_dir, probed=True, endpoint=server.url)
    assert tree(spool_dir) == before


@pytest.mark.parametrize("there", ["missing", "empty", "other things", "a spool of before"])
def test_commands_that_only_look_begin_no_spool(
    make_callback: MakeCallback, server: LocalServer, tmp_path: Path, there: str
) -> None:
    folder = tmp_path / "elsewhere"
    if there != "missing":
        folder.mkdir(mode=0o755)
    if there == "other things":
        things_in(folder)
    if there == "a spool of before":
        offline_run(make_callback, spool_dir=str(folder))
        unmarked(folder)
    before = tree(tmp_path)

    for arguments in (["status"], ["doctor"], ["verify", "abc", "--patience", "0"]):
        done = command(*arguments, server=server, ATOMSCALE_BLUESKY_SPOOL_DIR=str(folder))
        assert "Traceback" not in done.stderr
        assert tree(tmp_path) == before, arguments


def test_looking_whether_a_run_is_delivered_disturbs_nobody_who_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "uploader.lock"
    path.touch()
    from atomscale_bluesky.spool.locks import is_held

    seen: list[bool] = []
    threads = [threading.Thread(target=lambda: seen.extend(is_held(path) for _ in range(200))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [False] * 800


@posix
def test_doctor_warns_of_a_spool_that_others_can_change_and_leaves_it(server: LocalServer, spool_dir: Path) -> None:
    Spool(spool_dir).writers.stop_threads()
    spool_dir.chmod(0o775)
    settings = Settings.load(environ={}, endpoint=server.url, spool_dir=spool_dir, offline=True)

    (check,) = [check for check in examine(settings) if check.what == "spool"]

    assert check.result is Result.WARNING
    assert "others can rename and remove what is in" in check.found
    assert spool_dir.stat().st_mode & 0o777 == 0o775


# ---- what is removed -------------------------------------------------------------------------------------------------


def test_nothing_that_others_keep_is_removed_by_a_callback_or_an_upload(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    Spool(spool_dir).writers.stop_threads()  # it is ours, and they put their things into it all the same
    things_in(spool_dir)
    (spool_dir / RUN.replace("-", "_")).mkdir()
    kept = spool_dir / "backup" / RUN
    kept.mkdir(parents=True)
    (kept / "journal-0001.jsonl").write_bytes(b"x\n")
    for path in (kept, kept.parent, spool_dir / RUN.replace("-", "_")):
        os.utime(path, (1e9, 1e9))
    before = {name: entry for name, entry in tree(spool_dir).items() if name != "."}

    callback = make_callback()
    for name, doc in growth(points=5):
        callback(name, doc)
    assert callback.drain(timeout_s=20)  # it has looked for runs by then
    assert callback.close()
    done = command("upload", server=server, ATOMSCALE_BLUESKY_SPOOL_DIR=str(spool_dir))
    assert done.returncode == 0
    assert make_callback(offline=True).close()  # of these nothing waits

    after = tree(spool_dir)
    assert {name: after.get(name) for name in before} == before


def test_a_finished_run_leaves_what_a_person_has_put_into_its_folder(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.unreachable()
    callback = make_callback()
    for name, doc in growth(points=25):
        callback(name, doc)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    server.reachable()

    assert callback.drain(timeout_s=30)
    wait_until(lambda: sorted(path.name for path in folder.iterdir()) == ["notes.txt", "plots"])
    (said,) = [record.getMessage() for record in caplog.records if "did not make" in record.getMessage()]
    assert "notes.txt, plots" in said
    assert str(folder) in said
    assert not callback.status()
    assert callback.close()

    os.utime(folder, (1e9, 1e9))
    again = make_callback()
    assert again.drain(timeout_s=20)
    assert not again.status()
    assert again.close()
    assert make_callback(offline=True).close()
    assert (folder / "notes.txt").read_text() == "mine"
    # Nothing of it keeps a process that serves the spool from ending when all is done.
    spool = Spool(spool_dir)
    assert not is_beginning(folder)
    assert spool.is_empty()


def test_the_rest_of_a_run_stays_where_a_person_has_put_something_to_it(
    make_callback: MakeCallback, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Spool(spool_dir).writers.stop_threads()
    rest, other = spool_dir / RUN, spool_dir / RUN.replace("dead", "0ff0")
    for folder in (rest, other):
        folder.mkdir()
        (folder / "journal-0001.jsonl").write_bytes(b'6faacdeb {"kind"')
    (rest / "notes.txt").write_text("mine")
    for folder in (rest, other):
        os.utime(folder, (1e9, 1e9))
    before = tree(rest)

    callback = make_callback()
    wait_until(lambda: not other.exists())  # both were looked at in one go
    callback.close()

    assert tree(rest) == before


@posix
def test_a_run_folder_that_is_a_link_is_not_looked_at(
    make_callback: MakeCallback, server: LocalServer, tmp_path: Path, spool_dir: Path
) -> None:
    offline_run(make_callback, spool_dir=str(tmp_path / "elsewhere"))
    (run,) = [path for path in (tmp_path / "elsewhere").iterdir() if path.is_dir()]
    Spool(spool_dir).writers.stop_threads()
    (spool_dir / RUN).symlink_to(run)
    before = tree(run)

    callback = make_callback()
    for name, doc in growth(points=5):
        callback(name, doc)
    assert callback.drain(timeout_s=20)

    assert tree(run) == before
    assert len(server.streams()) == 1
