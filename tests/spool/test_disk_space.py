"""How much room there is, on whose disk, and who owns what."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from refusing import refuse
from waiting import wait_until

from atomscale_bluesky.errors import SpoolError
from atomscale_bluesky.spool import locks
from atomscale_bluesky.spool.disk_space import DiskSpace, network_file_system
from atomscale_bluesky.spool.journal_format import Header
from atomscale_bluesky.spool.locks import RunLock, is_held
from atomscale_bluesky.spool.orders import Retry
from atomscale_bluesky.spool.spool import Spool

RUN, ANOTHER, LINK = "20260101T020000-deadbeef", "20260101T020001-deadbeef", "20260101T020002-deadbeef"


def spool_of(folder: Path, *sizes: int) -> Path:
    """A spool with one run whose files have these sizes, and with the files that are no run's."""
    run = folder / RUN
    run.mkdir(parents=True)
    for n, size in enumerate(sizes):
        (run / f"{n}.jsonl").write_bytes(b"x" * size)
    (folder / "history.jsonl").write_bytes(b"x" * 5000)
    return folder


def test_a_spool_is_as_large_as_the_files_of_its_runs(tmp_path: Path) -> None:
    room = DiskSpace(spool_of(tmp_path, 10, 20), max_bytes=100, min_free_bytes=0)
    for name in (ANOTHER, "backup"):  # a person's own folder is no run
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jsonl").write_bytes(b"x" * 7)

    used, free = room.measure_all()

    assert used == 37
    assert free > 0


@pytest.mark.skipif(os.name == "nt", reason="a link needs rights there")
def test_what_a_link_in_the_spool_leads_to_is_not_part_of_it(tmp_path: Path) -> None:
    elsewhere = spool_of(tmp_path / "elsewhere", 1000)
    room = DiskSpace(spool_of(tmp_path / "spool", 10), max_bytes=100, min_free_bytes=0)
    (tmp_path / "spool" / LINK).symlink_to(elsewhere / RUN)

    assert room.measure_all()[0] == 10


def test_there_is_room_until_the_limit_is_reached_also_between_two_looks(tmp_path: Path) -> None:
    room = DiskSpace(spool_of(tmp_path, 30), max_bytes=40, min_free_bytes=0)
    room.update()
    assert (room.used_bytes, room.has_room) == (30, True)

    room.used_bytes += 9
    assert room.has_room
    room.used_bytes += 1
    assert not room.has_room

    room.update()  # what was written in between is on the disk, or was not
    assert (room.used_bytes, room.has_room) == (30, True)


def test_one_look_measures_few_of_many_runs_and_some_looks_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = DiskSpace(tmp_path, max_bytes=10**9, min_free_bytes=0)
    runs = [f"20260101T000000-{n:08x}" for n in range(700)]
    for run in runs:
        (tmp_path / run).mkdir()
        (tmp_path / run / "journal-0001.jsonl").write_bytes(b"x")
    measured: list[str] = []
    real = os.scandir

    def noted(path: str) -> os.ScandirIterator[str]:
        measured.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", noted)
    room.update()
    assert (room.has_unmeasured_runs, 400 < room.used_bytes < 700) == (True, True)
    assert len(measured) == 1 + room.used_bytes
    room.update()
    assert (room.has_unmeasured_runs, room.used_bytes) == (False, 700)
    measured.clear()
    room.update()
    assert len(measured) <= 1 + 32

    (tmp_path / runs[7] / "journal-0001.jsonl").write_bytes(b"x" * 11)
    room.grown_runs.append(runs[7])
    room.update()
    assert room.used_bytes == 710
    for run in runs:
        (tmp_path / run / "ledger.jsonl").write_bytes(b"x")
    for _ in range(22):
        room.update()
    assert room.used_bytes == 1410
    shutil.rmtree(tmp_path / runs[7])
    room.update()
    assert room.used_bytes == 1398


def test_a_full_spool_says_how_full_and_which_setting_limits_it(tmp_path: Path) -> None:
    room = DiskSpace(spool_of(tmp_path, 3_000_000), max_bytes=2_000_000, min_free_bytes=0)
    room.update()

    assert not room.has_room
    assert room.why_full == "it holds 3 of 2 MB (spool_max_bytes)"


def test_a_spool_that_fills_up_between_two_looks_says_how_full_it_is_now(tmp_path: Path) -> None:
    room = DiskSpace(spool_of(tmp_path, 1_000_000), max_bytes=3_000_000, min_free_bytes=0)
    room.update()
    assert room.has_room
    room.used_bytes += 2_000_000

    assert not room.has_room
    assert room.why_full == "it holds 3 of 3 MB (spool_max_bytes)"


def test_a_disk_below_its_floor_leaves_no_room_and_says_so_until_somebody_frees_some(tmp_path: Path) -> None:
    room = DiskSpace(spool_of(tmp_path, 10), max_bytes=10**9, min_free_bytes=10**18)
    room.update()

    assert not room.has_room
    said = room.why_full
    assert said.startswith("its disk has ")
    assert said.endswith(" MB free, and 1000000000000 MB are to stay free (spool_min_free_bytes)")
    megabytes = float(said.removeprefix("its disk has ").split(" ")[0])
    total = psutil.disk_usage(str(tmp_path)).total / 1e6
    assert 1 <= megabytes <= total


def test_a_spool_that_cannot_be_measured_keeps_what_was_known_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = DiskSpace(spool_of(tmp_path / "spool", 10), max_bytes=100, min_free_bytes=0)
    room.update()
    (tmp_path / "spool").rename(tmp_path / "moved")

    with caplog.at_level(logging.WARNING):
        room.update()

    assert (room.used_bytes, room.has_room) == (10, True)
    assert "cannot be measured" in caplog.text


def test_a_trouble_with_one_run_is_logged_once_and_the_disk_is_watched_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = DiskSpace(spool_of(tmp_path, 10), max_bytes=100, min_free_bytes=10**6)
    (tmp_path / ANOTHER).mkdir()
    (tmp_path / ANOTHER / "0.jsonl").write_bytes(b"x" * 7)
    room.update()
    assert (room.used_bytes, room.has_room) == (17, True)
    with monkeypatch.context() as patch:
        refuse(patch, "scandir", tmp_path / RUN)
        disk = psutil.disk_usage(str(tmp_path))
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=disk.total, free=10))
        (tmp_path / ANOTHER / "1.jsonl").write_bytes(b"x" * 5)
        for _ in range(20):
            room.update()
        assert (room.used_bytes, room.has_room, room.has_unmeasured_runs) == (22, False, False)
        assert room.measure_all()[0] == 12
    assert len(caplog.records) == 1
    assert RUN in caplog.text

    room.update()
    assert (room.used_bytes, room.has_room) == (22, True)
    refuse(monkeypatch, "scandir", tmp_path / RUN)
    room.update()
    assert len(caplog.records) == 2  # it was over in between


def test_a_folder_that_is_gone_is_logged_once_and_hurries_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(700):
        (tmp_path / "spool" / f"20260101T000000-{n:08x}").mkdir(parents=True)
    room = DiskSpace(tmp_path / "spool", max_bytes=100, min_free_bytes=0)
    room.update()
    assert room.has_unmeasured_runs
    (tmp_path / "spool").rename(tmp_path / "moved")

    for _ in range(20):
        room.update(maintain_reserve=True)

    assert not room.has_unmeasured_runs
    assert ["size" in record.getMessage() for record in caplog.records] == [True, False]


def test_several_threads_may_measure_at_once(tmp_path: Path) -> None:
    room = DiskSpace(tmp_path, max_bytes=10**9, min_free_bytes=0)
    begin, failed = time.monotonic(), list[RuntimeError]()

    def measure() -> None:
        try:
            while time.monotonic() < begin + 2:
                room.update()
        except RuntimeError as error:  # a collection was changed meanwhile
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=measure) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        made: list[Path] = []
        while any(thread.is_alive() for thread in threads):
            made.append(tmp_path / f"20260101T000000-{len(made):08x}")
            made[-1].mkdir()
            if len(made) > 60:
                made[-61].rmdir()
    finally:
        sys.setswitchinterval(interval)
    assert not failed


def test_a_signal_handler_that_asks_for_room_while_it_is_measured_gets_what_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = DiskSpace(spool_of(tmp_path, 10), max_bytes=100, min_free_bytes=0)
    room.update()
    answers: list[str] = []
    real = os.scandir

    def interrupted(path: str) -> os.ScandirIterator[str]:
        if not answers:
            answers.append("")
            answers.append(room.why_full_now())
        return real(path)

    monkeypatch.setattr(os, "scandir", interrupted)
    room.update()

    assert (answers, room.used_bytes) == (["", ""], 10)


def test_a_list_of_mounts_that_cannot_be_read_leaves_the_kind_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(all: bool) -> list[object]:
        raise PermissionError(13, "Permission denied", "/proc/self/mounts")

    monkeypatch.setattr(psutil, "disk_partitions", refused)

    assert network_file_system(tmp_path) is None


@pytest.mark.parametrize(
    ("partitions", "expected"),
    [
        ([("", "ext4", "rw")], None),
        ([("", "nfs4", "rw")], "nfs4"),
        ([("", "NFS", "rw")], "nfs"),
        ([("", "ext4", "rw"), ("net", "cifs", "rw")], "cifs"),
        ([("net", "cifs", "rw"), ("", "ext4", "rw")], "cifs"),
        ([("", "nfs", "rw"), ("net", "xfs", "rw")], None),
        ([("", "ext4", "rw"), ("net/spool", "9p", "rw")], "9p"),
        ([("", "ext4", "rw"), ("net/spool/below", "nfs", "rw"), ("other", "nfs", "rw")], None),
        ([("net", "ext4", "rw"), ("net", "nfs", "rw")], "nfs"),  # mounted over it
        ([("", "ntfs", "rw,remote")], "ntfs"),
        ([("", "ntfs", "rw,fixed")], None),
    ],
)
def test_the_kind_of_the_nearest_mount_tells_whether_the_disk_is_another_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partitions: list[tuple[str, str, str]], expected: str | None
) -> None:
    mounts = [
        SimpleNamespace(mountpoint=str(tmp_path / mount), fstype=kind, opts=options)
        for mount, kind, options in partitions
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts if all else [])

    assert network_file_system(tmp_path / "net" / "spool") == expected


def test_a_lock_has_one_owner_at_a_time_and_is_free_when_it_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "writer.lock"
    assert not is_held(path)  # a file that is not there is nobody's
    assert not path.exists()
    lock, other = RunLock(path), RunLock(path)

    assert lock.acquire()
    assert is_held(path)
    assert not other.acquire()

    lock.release()
    lock.release()
    assert not is_held(path)
    assert other.acquire()
    other.release()


@pytest.mark.skipif(sys.platform == "win32", reason="it has other locks")
def test_a_lock_is_seen_where_the_file_system_has_no_shared_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real, path = fcntl.flock, tmp_path / "writer.lock"

    def exclusive_only(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_SH:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", exclusive_only)
    lock = RunLock(path)
    assert not is_held(path)
    assert lock.acquire()
    assert is_held(path)
    lock.release()
    for _ in range(2):  # to look takes nothing
        assert not is_held(path)
    assert lock.acquire()
    lock.release()


def test_a_lock_is_free_again_when_its_process_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "writer.lock"
    program = (
        "import sys; from pathlib import Path; from atomscale_bluesky.spool.locks import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); print(lock.acquire(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert is_held(path)
        process.kill()

    assert not is_held(path)


def test_a_lock_that_a_stopped_process_holds_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_WAIT_S", 0.2)
    spool = Spool(tmp_path)
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "head.jsonl").touch()
    holders = [RunLock(tmp_path / "history.lock"), RunLock(tmp_path / RUN / "orders.lock")]
    assert all(lock.acquire() for lock in holders)

    with pytest.raises(SpoolError, match=r"history\.lock for 0\.2 s; if that process is suspended"):
        spool.history.add({"run_uid": "u"})
    with pytest.raises(SpoolError, match=r"orders\.lock"):
        spool.give_order(tmp_path / RUN, Retry())

    for lock in holders:
        lock.release()
    spool.history.add({"run_uid": "u"})
    assert [entry["run_uid"] for entry in spool.history.entries()] == ["u"]


@pytest.mark.skipif(sys.platform == "win32", reason="there a test of a lock is the lock itself")
def test_a_child_that_is_forked_while_a_lock_is_tested_keeps_nobody_from_taking_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, close, copies = RunLock(tmp_path / "writer.lock"), os.close, list[int]()
    assert lock.acquire()
    lock.release()
    # What a child has that another thread forks just before the descriptor is closed.
    monkeypatch.setattr(os, "close", lambda file: (copies.append(os.dup(file)), close(file))[1])
    assert not is_held(tmp_path / "writer.lock")
    monkeypatch.undo()

    assert copies
    assert lock.acquire()
    lock.release()
    for copy in copies:
        os.close(copy)


# ---- after the threads have ended --------------------------------------------------------------------------------


def test_a_closed_spool_finds_out_itself_that_its_disk_has_room_again(tmp_path: Path) -> None:
    room = DiskSpace(spool_of(tmp_path, 10), max_bytes=10**9, min_free_bytes=0)
    room.update()
    room.note_disk_full()
    assert not room.has_room
    room.unwatched = True

    assert room.has_room


@pytest.mark.skipif(sys.platform != "linux", reason="another call syncs a file there")
def test_after_a_close_that_could_not_wait_for_the_disk_each_reading_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, disk_works, waits = os.fdatasync, threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        waits.set()
        disk_works.wait(60)
        real(descriptor)

    spool = Spool(tmp_path / "spool")
    header = Header(1, "b7c2e9f1", 1.76e9, "growth", 10, "primary", "http://x", non_finite="null", layout="run")
    writer = spool.writers.create(header)
    monkeypatch.setattr(os, "fdatasync", slow)
    writer.append([b"{}"])
    assert waits.wait(30)
    assert not spool.writers.stop_threads(timeout_s=0.1)
    disk_works.set()
    wait_until(lambda: not writer.dirty)

    writer.append([b"{}"])
    assert not writer.dirty
    spool.writers.close_writers()
