"""The folder that holds the runs: who may write and deliver them, what is kept of them, and when they go."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from msgspec import structs
from refusing import refuse
from waiting import wait_until

from atomscale_bluesky import SpoolError, SpoolFullError
from atomscale_bluesky.errors import LineTooLongError
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.spool import run_writer
from atomscale_bluesky.spool.disk_space import DiskSpace
from atomscale_bluesky.spool.history import History
from atomscale_bluesky.spool.journal_format import FORMAT, Header, Layout, Stop, decode_journal
from atomscale_bluesky.spool.ledger import facts_of
from atomscale_bluesky.spool.ledger_format import Discarded, Finalizing, LedgerLine, Obeyed, Opened, Parked
from atomscale_bluesky.spool.lines import checksummed, encode
from atomscale_bluesky.spool.orders import Discard, Edit, Retry
from atomscale_bluesky.spool.run_claim import RunClaim
from atomscale_bluesky.spool.run_reader import has_stop, stop_of
from atomscale_bluesky.spool.run_writer import OpenJournals, RunWriter
from atomscale_bluesky.spool.run_writers import MAX_OWN_LOCKS
from atomscale_bluesky.spool.segments import segment_path
from atomscale_bluesky.spool.spool import Spool

T0 = 1_760_000_000.0
MakeSpool = Callable[..., Spool]


@pytest.fixture
def make_spool(tmp_path: Path) -> Iterator[MakeSpool]:
    made: list[Spool] = []

    def make(**limits: int) -> Spool:
        made.append(Spool(tmp_path / "spool", **limits))
        return made[-1]

    yield make
    for spool in made:
        spool.writers.stop_threads()
        spool.writers.close_writers()


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


def header(uid: str = "b7c2e9f1-0000", **changed: object) -> Header:
    given = {"format": FORMAT, "run_uid": uid, "started": T0, "label": "growth", "points_per_chunk": 10}
    given |= {"primary": "primary", "endpoint": "https://api.atomscale.ai", "non_finite": "null"}
    return Header(**(given | changed))


def row(number: int) -> bytes:
    return b'[0,%d,%f,"uid",[1.0]]' % (number, T0 + number)


STOP = Stop(time=T0 + 9, exit_status="success")


def claimed(spool: Spool, folder: Path) -> RunClaim:
    claim = spool.claim(folder)
    assert claim is not None
    return claim


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_runs_folder_is_named_by_time_and_chance_and_is_its_owners_alone(spool: Spool) -> None:
    folders = [spool.writers.create(header("../../etc\n")).folder for _ in range(3)]

    assert all(re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{8}", folder.name) for folder in folders)
    assert spool.run_folders() == sorted(folders)
    if os.name != "nt":
        assert {folder.stat().st_mode & 0o777 for folder in [spool.path, *folders]} == {0o700}
        assert {path.stat().st_mode & 0o777 for folder in folders for path in folder.iterdir()} == {0o600}


def test_what_was_appended_is_synced_without_being_asked_for(spool: Spool) -> None:
    writer = spool.writers.create(header())
    for number in range(3):
        writer.append([row(number)])
        assert wait_until(lambda: not writer.dirty)
    assert (writer.folder / "head.jsonl").read_bytes() == checksummed(encode(header()))


def test_a_disk_that_takes_long_to_be_measured_delays_no_sync(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = spool.writers.create(header())
    wait_until((writer.folder / "head.jsonl").exists)
    over, measuring = threading.Event(), threading.Event()
    real, here = os.scandir, threading.current_thread()

    def slow(path: object) -> os.ScandirIterator[str]:
        if threading.current_thread() is not here:
            measuring.set()
            over.wait(30)
        return real(path)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(os, "scandir", slow)
    assert measuring.wait(30)
    other = spool.writers.create(header())

    wait_until((other.folder / "head.jsonl").exists, 10)  # it is written when the journal was synced
    over.set()


def test_a_released_run_is_closed_soon_and_nobody_writes_it_any_more(spool: Spool) -> None:
    first, second = spool.writers.create(header()), spool.writers.create(header())

    spool.writers.release(first)

    wait_until(lambda: not spool.writer_alive(first.folder))
    assert spool.writer_alive(second.folder)
    second.append([row(0)])


def test_a_closed_spool_lets_its_writers_go_on_and_syncs_each_call(spool: Spool) -> None:
    writer = spool.writers.create(header())
    assert spool.writers.stop_threads()

    writer.append([row(0)])
    assert not writer.dirty
    late = spool.writers.create(header())
    late.append([row(0)])
    assert not late.dirty
    spool.writers.release(late)
    assert not spool.writer_alive(late.folder)
    assert spool.writer_alive(writer.folder)


def test_a_full_spool_takes_no_run_and_no_reading_and_says_why_until_there_is_room(make_spool: MakeSpool) -> None:
    spool = make_spool(max_bytes=5000)
    writer = spool.writers.create(header())
    while spool.writers.has_room:
        writer.append([row(0)])
    size = sum(path.stat().st_size for path in writer.folder.iterdir())

    with pytest.raises(SpoolFullError, match=r"the spool has no room: .*spool_max_bytes"):
        writer.append([row(1)])
    with pytest.raises(SpoolFullError, match=r"the spool has no room: .*spool_max_bytes"):
        make_spool(max_bytes=size // 2).writers.create(header())
    writer.append([encode(STOP)], beyond_limits=True)  # how it ended is always kept
    assert has_stop(writer.folder)
    assert len(spool.run_folders()) == 1

    spool.writers.release(writer)
    claimed(spool, writer.folder).close()
    wait_until(lambda: not spool.writer_alive(writer.folder))
    assert claimed(spool, writer.folder).finish({"run_uid": "1"})
    wait_until(lambda: spool.writers.has_room)
    spool.writers.create(header()).append([row(0)])


def test_a_spool_that_is_full_from_the_start_notices_when_there_is_room(make_spool: MakeSpool) -> None:
    old = make_spool()
    writer = old.writers.create(header())
    writer.append([row(n) for n in range(300)])
    old.writers.release(writer)
    wait_until(lambda: not old.writer_alive(writer.folder))
    spool = make_spool(max_bytes=4000)
    with pytest.raises(SpoolFullError):
        spool.writers.create(header())

    for path in writer.folder.iterdir():
        path.unlink()

    wait_until(lambda: spool.writers.has_room)
    spool.writers.create(header())


def test_what_is_no_folder_cannot_be_a_spool(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    with pytest.raises(SpoolError, match=r"file' is a file and no folder; choose another `spool_dir`"):
        Spool(tmp_path / "file")
    with pytest.raises(SpoolError, match=r"below' cannot be written"):
        Spool(tmp_path / "file" / "below")


def test_looking_at_a_spool_leaves_nothing_in_it(spool: Spool) -> None:
    assert [path.name for path in spool.path.iterdir()] == ["atomscale-bluesky-spool.txt"]
    assert spool.run_folders() == []
    assert spool.history.entries() == []


def test_that_runs_come_and_go_is_seen(spool: Spool, tmp_path: Path) -> None:
    before = spool.changed_at()
    assert before == spool.changed_at() > 0
    os.utime(spool.path, (1, 1))

    folder = spool.writers.create(header()).folder
    assert spool.changed_at() > 10**9
    assert spool.disk_space.measure_all()[0] == sum(path.stat().st_size for path in folder.iterdir()) > 0
    spool.writers.stop_threads()
    spool.writers.close_writers()
    spool.path.rename(tmp_path / "moved")
    assert spool.changed_at() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="another call syncs a file there")
def test_a_disk_that_cannot_be_synced_costs_no_reading_and_is_tried_again(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer = make_spool(sync_each=True).writers.create(header())
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", broken)
        problems = []
        for number in range(3):
            problems.append(writer.append([row(number)]))
            assert writer.dirty
        assert list(map(str, problems)) == ["[Errno 5] Input/output error", "None", "None"]

    wait_until(lambda: not writer.dirty)  # the spool's own thread has tried again
    assert [
        json.loads(text[9:])[1] for text in (writer.folder / "journal-0001.jsonl").read_bytes().splitlines()[2:]
    ] == [
        0,
        1,
        2,
    ]


def test_a_copy_of_the_header_that_the_disk_did_not_take_is_written_by_a_later_sync(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "head.jsonl").mkdir()  # nothing can be written there
    room = DiskSpace(tmp_path, max_bytes=10**6, min_free_bytes=0)
    writer = RunWriter(tmp_path / "run", header(), room, sync_each=False)
    layout = encode(Layout(layout=0, event_stream="primary", time_base="primary", channels=()))
    writer.append([layout, layout, row(0)])
    writer.sync()
    assert not writer.dirty

    (tmp_path / "run" / "head.jsonl").rmdir()
    writer.sync()
    writer.sync()

    assert (tmp_path / "run" / "head.jsonl").read_bytes() == checksummed(encode(header())) + checksummed(layout)
    size = (tmp_path / "run" / "journal-0001.jsonl").stat().st_size
    assert room.used_bytes == size - 2 * len(checksummed(encode(header())))
    writer.close()
    writer.close()


def test_a_run_has_one_writer_at_a_time(spool: Spool) -> None:
    writer = spool.writers.create(header())

    with pytest.raises(SpoolError, match="another process writes"):
        RunWriter(writer.folder, header(), DiskSpace(spool.path, max_bytes=1, min_free_bytes=0), sync_each=False)


# ---- delivering ------------------------------------------------------------------------------------------------------


def test_a_run_has_one_deliverer_at_a_time(make_spool: MakeSpool) -> None:
    one, other = make_spool(), make_spool()
    folder = one.writers.create(header()).folder
    assert not one.uploader_alive(folder)

    claim = claimed(one, folder)

    assert one.uploader_alive(folder)
    assert other.claim(folder) is None
    claim.close()
    claim.close()
    assert not other.uploader_alive(folder)
    claimed(other, folder).close()


def test_a_run_of_a_newer_version_is_left_alone_and_stays_free(spool: Spool) -> None:
    newer = spool.writers.create(header(format=FORMAT + 1)).folder

    for _ in range(2):
        with pytest.raises(SpoolError, match=f"format {FORMAT + 1}, this version knows up to {FORMAT}; update"):
            spool.claim(newer)
        assert not spool.uploader_alive(newer)


def test_a_disk_that_reports_an_error_when_a_file_is_closed_stops_no_later_sync(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = make_spool()
    first, second = (spool.writers.create(header(f"b7c2e9f1-000{n}")) for n in range(2))
    journal = first.folder / "journal-0001.jsonl"
    number, failures, real = journal.stat().st_ino, iter([True]), os.close

    def close(descriptor: int) -> None:
        of_the_first = os.fstat(descriptor).st_ino == number
        real(descriptor)
        if of_the_first and next(failures, False):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "close", close)
    first.append([row(0), encode(STOP)])
    spool.writers.release(first)
    wait_until(lambda: "the disk reports an error: [Errno" in caplog.text)
    wait_until(lambda: not spool.writer_alive(first.folder))
    for n in range(3):
        second.append([row(n)])
        wait_until(lambda: not second.dirty)

    assert has_stop(first.folder)
    assert sum("the disk reports an error" in record.getMessage() for record in caplog.records) == 1


def test_what_a_sync_trips_over_is_tried_again_and_logged_once(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = make_spool()
    writer = spool.writers.create(header())
    wait_until(lambda: not writer.dirty)
    tries: list[int] = []
    sync = "fdatasync" if hasattr(os, "fdatasync") else "fsync"

    def broken(descriptor: int) -> None:
        tries.append(descriptor)
        raise MemoryError

    with monkeypatch.context() as disk:
        disk.setattr(os, sync, broken)
        writer.append([row(0)])
        wait_until(lambda: len(tries) >= 3)
    wait_until(lambda: not writer.dirty)
    assert sum("syncing the journals failed" in record.getMessage() for record in caplog.records) == 1


def test_a_run_that_has_ended_is_closed_although_another_ones_sync_fails(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make_spool()
    open_run, ended_run = spool.writers.create(header()), spool.writers.create(header("the other"))
    wait_until(lambda: not open_run.dirty and not ended_run.dirty)
    number = segment_path(open_run.folder, 1).stat().st_ino
    failures: list[int] = []
    sync = "fdatasync" if hasattr(os, "fdatasync") else "fsync"
    real = getattr(os, sync)

    def broken(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == number:
            failures.append(descriptor)
            raise MemoryError
        real(descriptor)

    with monkeypatch.context() as disk:
        disk.setattr(os, sync, broken)
        open_run.append([row(0)])
        ended_run.append([row(0), encode(STOP)])
        spool.writers.release(ended_run)
        wait_until(lambda: len(failures) >= 3)
    wait_until(lambda: not spool.writer_alive(ended_run.folder))
    assert not ended_run.dirty
    assert has_stop(ended_run.folder)


@pytest.mark.skipif(sys.platform == "win32", reason="locks are others there")
def test_a_session_lock_that_another_session_tests_just_now_is_waited_for(
    make_spool: MakeSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    spool, name = make_spool(), f"writers-{'0' * 16}.lock"
    token = secrets.token_hex
    monkeypatch.setattr(secrets, "token_hex", lambda size=None: "0" * 16 if size == 8 else token(size))
    with (tmp_path / "spool" / name).open("wb") as tested:
        (tmp_path / "spool" / name).chmod(0o600)
        fcntl.flock(tested, fcntl.LOCK_SH)
        release = threading.Timer(0.1, fcntl.flock, (tested, fcntl.LOCK_UN))
        release.start()
        writers = [spool.writers.create(header(f"b7c2e9f1-{n:04}")) for n in range(MAX_OWN_LOCKS + 1)]
        release.join()

    assert all(spool.writer_alive(writer.folder) for writer in writers)
    assert [writer.has_lock for writer in writers].count(False) == 1


def test_a_step_in_the_background_that_fails_ends_no_thread(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    spool.writers.create(header())
    called: list[bool] = []

    def broken() -> bool:
        raise MemoryError

    spool.writers.run_in_background(broken)
    wait_until(lambda: "reading its runs failed" in caplog.text)
    spool.writers.run_in_background(lambda: called.append(True) is not None)

    wait_until(lambda: called == [True])


def test_a_run_whose_writer_is_gone_gets_the_stop_that_never_came_once(spool: Spool) -> None:
    writer = spool.writers.create(header())
    writer.append([row(0)])
    claim = claimed(spool, writer.folder)
    assert not claim.complete_if_interrupted()  # its writer lives
    spool.writers.release(writer)
    wait_until(lambda: not spool.writer_alive(writer.folder))

    begin = time.time()
    assert claim.complete_if_interrupted()
    assert not claim.complete_if_interrupted()

    stop = stop_of(writer.folder)
    assert stop is not None
    assert begin <= stop.time <= time.time()
    assert stop == Stop(stop.time, "", "no stop document", interrupted=True)
    assert not spool.writer_alive(writer.folder)
    claim.close()


def test_a_run_that_is_being_completed_does_not_look_like_one_that_is_written(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = spool.writers.create(header())
    writer.append([row(0)])
    claim = claimed(spool, writer.folder)
    spool.writers.release(writer)
    wait_until(lambda: not spool.writer_alive(writer.folder))
    written: list[bool] = []
    real = os.write

    def noted(descriptor: int, data: bytes) -> int:
        written.append(spool.writer_alive(writer.folder))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", noted)
    assert claim.complete_if_interrupted()
    monkeypatch.undo()

    assert has_stop(writer.folder)
    assert len(written) >= 1
    assert not any(written)
    claim.close()


@pytest.mark.parametrize(
    ("lines", "stopped"),
    [([], False), ([row(0)], False), ([row(0), encode(STOP)], True), ([encode(STOP), row(0)], False)],
)
def test_a_journal_has_a_stop_only_at_its_end(tmp_path: Path, lines: list[bytes], stopped: bool) -> None:
    (tmp_path / "journal-0001.jsonl").write_bytes(b"".join(map(checksummed, lines)))

    assert has_stop(tmp_path) == stopped
    assert stop_of(tmp_path) == (STOP if stopped else None)


def test_a_run_that_was_stopped_keeps_its_own_stop(spool: Spool) -> None:
    writer = spool.writers.create(header())
    writer.append([encode(STOP)])
    spool.writers.release(writer)
    wait_until(lambda: not spool.writer_alive(writer.folder))
    claim = claimed(spool, writer.folder)

    assert not claim.complete_if_interrupted()
    assert stop_of(writer.folder) == STOP
    claim.close()


def finished(spool: Spool, uid: str) -> RunWriter:
    writer = spool.writers.create(header(uid))
    writer.append([row(0), encode(STOP)])
    return writer


OPENED = Opened(0, "primary", 0, "run start", "label", "t", 10, 1, 0)


@pytest.mark.parametrize(
    ("broken_by", "orders", "noted"),
    [
        (Finalizing(0), 0, []),
        (Finalizing(0), 2, []),
        (structs.replace(OPENED, label="another"), 0, []),
        (
            structs.replace(OPENED, label="another"),
            2,
            [Obeyed(2)],
        ),  # perhaps it was moved, and that must not be repeated
    ],
)
def test_a_ledger_that_cannot_be_understood_is_noted_once(
    spool: Spool, broken_by: LedgerLine, orders: int, noted: list[LedgerLine]
) -> None:
    folder = finished(spool, "b7c2e9f1").folder
    path = folder / "ledger.jsonl"
    path.write_bytes(b"".join(checksummed(encode(fact)) * 2 for fact in (OPENED, broken_by)))
    for _ in range(orders):
        spool.give_order(folder, Retry())

    for _ in range(2):
        claim = claimed(spool, folder)
        state = claim.ledger.state
        assert (state.parked_reason or "").startswith("line 3 of its ledger cannot follow those before it (")
        assert (state.may_have_moved, state.orders_obeyed) == (isinstance(broken_by, Opened), orders if noted else 0)
        claim.close()

    assert [*facts_of(path)][2:] == [*noted, Parked(state.parked_reason or "")]


def test_a_finished_run_moves_into_the_history_once_its_writer_is_done(spool: Spool) -> None:
    writers = [finished(spool, uid) for uid in ("one", "two")]
    claims = [claimed(spool, writer.folder) for writer in writers]
    assert not claims[0].finish({"run_uid": "one"})
    for writer in writers:
        spool.writers.release(writer)
        wait_until(lambda writer=writer: not spool.writer_alive(writer.folder))

    assert all(claim.finish({"run_uid": claim.header.run_uid}) for claim in claims)

    assert spool.run_folders() == []
    assert [(entry["run_uid"], entry["folder"]) for entry in spool.history.entries()] == [
        (claim.header.run_uid, claim.folder.name) for claim in claims
    ]


def test_a_run_that_is_in_the_history_already_is_only_removed(spool: Spool) -> None:
    writer = finished(spool, "one")
    spool.writers.release(writer)
    wait_until(lambda: not spool.writer_alive(writer.folder))
    before = claimed(spool, writer.folder)
    before.ledger.note(Discarded(T0, 1), sync=True)
    before.close()  # killed just after it was noted in the history
    History(spool.path).add({"run_uid": "one", "folder": writer.folder.name, "delivered": 1})

    assert claimed(spool, writer.folder).finish({"run_uid": "one", "delivered": 0})

    assert spool.run_folders() == []
    assert [entry["delivered"] for entry in spool.history.entries()] == [1]


def test_a_run_finds_its_place_in_the_history_whichever_others_are_there(spool: Spool) -> None:
    writer = finished(spool, "one")
    spool.writers.release(writer)
    wait_until(lambda: not spool.writer_alive(writer.folder))
    for other in ("20000101T000000-00000000", "29991231T235959-ffffffff"):
        History(spool.path).add({"run_uid": other, "folder": other})

    assert claimed(spool, writer.folder).finish({"run_uid": "one"})

    assert [entry["run_uid"] for entry in spool.history.entries()][2:] == ["one"]


def test_the_history_is_bounded_and_keeps_its_newest_runs(spool: Spool) -> None:
    history = History(spool.path, max_bytes=1000)
    for number in range(200):
        history.add({"run_uid": f"run {number}"})

    files = sorted(path.name for path in spool.path.glob("history*.jsonl"))
    assert files == ["history-1.jsonl", "history.jsonl"]
    assert all((spool.path / name).stat().st_size < 1100 for name in files)
    kept = [entry["run_uid"] for entry in history.entries()]
    assert kept == [f"run {number}" for number in range(200 - len(kept), 200)]
    assert len(kept) * len(checksummed(b'{"run_uid":"run 100"}')) >= 1000


def test_each_entry_that_is_added_is_yielded_once_over_changes_of_the_file(spool: Spool) -> None:
    history, marks = History(spool.path, max_bytes=500), dict[tuple[int, int], int]()
    history.add({"run_uid": "earlier"})
    assert [entry["run_uid"] for entry in history.entries_added(marks)] == ["earlier"]
    assert list(history.entries_added(marks)) == []

    found: list[str] = []
    for n in range(60):
        history.add({"run_uid": str(n)})
        if n % 3 == 0:
            found += [entry["run_uid"] for entry in history.entries_added(marks)]
    found += [entry["run_uid"] for entry in history.entries_added(marks)]

    assert found == [str(n) for n in range(60)]
    assert len(marks) == 2


def test_a_run_is_found_in_the_history_wherever_it_stands_and_whoever_added_it(spool: Spool) -> None:
    ours, other = History(spool.path, max_bytes=500), History(spool.path, max_bytes=500)
    for number in range(60):
        (ours if number % 2 else other).add({"run_uid": f'run "{number}"', "n": number})
        found = [ours.entries_of(f'run "{known}"') for known in range(number + 1)]
        gone = next(n for n, entries in enumerate(found) if entries)
        assert found[gone:] == [[{"run_uid": f'run "{n}"', "n": n}] for n in range(gone, number + 1)]
        assert ours.entries_of(f'run "{number + 1}"') == []
        assert ours.newest_beginning_with(f'run "{number}') == {"run_uid": f'run "{number}"', "n": number}
        assert ours.newest_beginning_with(f"{number}") is None


def test_damage_to_one_line_of_the_history_costs_no_other(spool: Spool) -> None:
    history = History(spool.path)
    for number in range(3):
        history.add({"number": number})
    path = spool.path / "history.jsonl"
    texts = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(texts[0] + texts[1].replace(b":1", b":7") + texts[2])

    assert [entry["number"] for entry in history.entries()] == [0, 2]


# ---- what a killed process or a power cut leaves ---------------------------------------------------------------------


YOUNG, OLD = "20260101T020100-deadbeef", "20260101T020000-deadbeef"


def left(spool: Spool, name: str, age_s: float) -> Path:
    """A run's folder in which nothing was written, as old as this."""
    folder = spool.path / name
    folder.mkdir()
    then = time.time() - age_s
    os.utime(folder, (then, then))
    return folder


def test_a_folder_that_died_before_its_first_line_is_removed_when_it_cannot_be_a_beginning(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    young, old = left(spool, YOUNG, age_s=30), left(spool, OLD, age_s=90)

    assert (spool.claim(young), spool.claim(old)) == (None, None)

    assert (young.exists(), old.exists()) == (True, False)
    assert spool.claim(old) is None  # removed meanwhile by somebody else
    assert caplog.text == ""


def test_rows_whose_header_a_power_cut_took_are_removed_and_that_is_said_once(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = left(spool, YOUNG, age_s=0)
    (folder / "journal-0001.jsonl").write_bytes(checksummed(row(0)))
    assert (spool.claim(folder), spool.claim(folder)) == (None, None)
    assert caplog.text.count("holds the rest of a run whose beginning a power cut took; it is removed") == 1

    os.utime(folder, (T0, T0))
    assert spool.claim(folder) is None
    assert not folder.exists()


def test_a_run_that_is_just_being_made_is_left_alone(spool: Spool) -> None:
    writer = spool.writers.create(header())
    for path in writer.folder.glob("*.jsonl"):
        path.rename(spool.path / path.name)
    then = time.time() - 90
    os.utime(writer.folder, (then, then))

    assert spool.claim(writer.folder) is None
    assert writer.folder.exists()


@pytest.mark.parametrize("safe", ["head.jsonl", "ledger.jsonl"])
def test_a_run_whose_header_was_safe_and_is_gone_is_kept_for_a_person(spool: Spool, safe: str) -> None:
    folder = left(spool, OLD, age_s=90)
    (folder / safe).write_bytes(b"damaged\n")

    with pytest.raises(SpoolError, match="header is damaged or gone; its other lines are kept"):
        spool.claim(folder)
    assert folder.exists()


# ---- orders ----------------------------------------------------------------------------------------------------------


def test_orders_are_kept_in_order_beside_the_run_and_the_last_edit_counts(spool: Spool) -> None:
    folder = spool.writers.create(header(links=Links(synth_source_id=42))).folder
    assert spool.last_edit(folder) is None
    orders = [Retry(), Edit(Links(synth_source_id=7)), Edit(Links(project_id="p"), 50, "grow 17"), Discard()]

    for order in orders:
        spool.give_order(folder, order)

    claim = claimed(spool, folder)
    assert claim.orders() == orders
    assert spool.last_edit(folder) == Edit(Links(project_id="p"), 50, "grow 17")
    claim.close()


def test_a_run_with_an_order_that_is_not_obeyed_stays(spool: Spool) -> None:
    writer = finished(spool, "one")
    spool.writers.release(writer)
    wait_until(lambda: not spool.writer_alive(writer.folder))
    claim = claimed(spool, writer.folder)
    assert spool.give_order(writer.folder, Retry())

    assert not claim.finish({"run_uid": "one"})
    assert spool.history.entries() == []
    claim.ledger.note(Obeyed(1))
    assert claim.finish({"run_uid": "one"})
    assert spool.run_folders() == []


@pytest.mark.parametrize("others_file", [False, True])
def test_a_run_that_has_left_takes_no_order(spool: Spool, others_file: bool) -> None:
    writer = finished(spool, "one")
    spool.writers.release(writer)
    wait_until(lambda: not spool.writer_alive(writer.folder))
    if others_file:
        (writer.folder / "notes.txt").touch()
    assert claimed(spool, writer.folder).finish({"run_uid": "one"})

    assert not spool.give_order(writer.folder, Retry())
    assert [path.name for path in writer.folder.rglob("*")] == ["notes.txt"] * others_file


def test_half_an_order_is_none(spool: Spool) -> None:
    folder = spool.writers.create(header()).folder
    spool.give_order(folder, Retry())
    with (folder / "orders.jsonl").open("ab") as file:
        file.write(checksummed(encode(Discard()))[:-1])

    claim = claimed(spool, folder)
    assert claim.orders() == [Retry()]
    spool.give_order(folder, Edit(Links()))
    assert claim.orders() == [Retry(), Edit(Links())]
    claim.close()


def test_the_header_is_in_the_journal_twice_and_mends_itself(spool: Spool) -> None:
    folder = spool.writers.create(header("mine")).folder
    journal = folder / "journal-0001.jsonl"
    texts = journal.read_bytes().split(b"\n")[:-1]

    assert len(texts) == 2
    assert {decode_journal(text[9:]) for text in texts} == {header("mine")}
    journal.write_bytes(b"\n".join([texts[0].replace(b"mine", b"yours"), texts[1], b""]))
    claim = claimed(spool, folder)
    assert claim.header == header("mine")
    claim.close()


def test_of_many_open_runs_few_have_their_journal_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_writer, "MAX_OPEN_JOURNALS", 3)
    disk_space, journals, writers = DiskSpace(tmp_path, max_bytes=10**9, min_free_bytes=0), OpenJournals(), []
    for number in range(7):
        folder = tmp_path / str(number)
        folder.mkdir()
        writers.append(RunWriter(folder, header(str(number)), disk_space, sync_each=False, journals=journals))

    def open_journals() -> int:
        return sum(Path(file.path).name == "journal-0001.jsonl" for file in psutil.Process().open_files())

    assert open_journals() == 3
    for number in range(3):
        for writer in writers:
            writer.append([row(number)])
            assert open_journals() == 3
    for writer in writers[:5]:
        writer.close()
    assert open_journals() <= 2
    for writer in writers[5:]:
        writer.append([row(3)])
    assert open_journals() == 2
    for writer in writers:
        writer.close()
    lines = [(writer.folder / "journal-0001.jsonl").read_bytes().count(b"\n") for writer in writers]
    assert lines == [5, 5, 5, 5, 5, 6, 6]  # the header stands there twice


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_disk_that_takes_no_header_costs_no_open_file(tmp_path: Path) -> None:
    program = """
        import os, resource, signal, sys
        from runs import growth
        from atomscale_bluesky import AtomscaleCallback
        callback = AtomscaleCallback(spool_dir=sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # as a quota does, which no look at the disk tells of
        before = len(os.listdir("/proc/self/fd"))
        for name, doc in growth(points=50):
            callback(name, doc)
        print(len(os.listdir("/proc/self/fd")) - before)
    """
    environment = os.environ | {"ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0", "ATOMSCALE_BLUESKY_OFFLINE": "true"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "spool")],
        capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[1], env=environment,
    )  # fmt: skip
    assert int(done.stdout) < 10


def test_a_step_in_the_background_is_called_again_if_it_is_asked_for_during_its_call(tmp_path: Path) -> None:
    spool = Spool(tmp_path, min_free_bytes=0)
    calls: list[str] = []
    begun, asked = threading.Event(), threading.Event()

    def step() -> bool:
        calls.append("step")
        begun.set()
        return not asked.wait(20)

    spool.writers.run_in_background(step)
    spool.writers.run_in_background(other := lambda: bool(calls.append("other")))
    assert begun.wait(20)
    spool.writers.run_in_background(step)
    spool.writers.run_in_background(other)
    asked.set()
    wait_until(lambda: calls.count("step") == 2 and calls.count("other") >= 1)
    spool.writers.stop_threads()


def test_a_line_that_is_too_long_is_refused_with_its_own_length(tmp_path: Path) -> None:
    spool = Spool(tmp_path, min_free_bytes=0)
    writer = spool.writers.create(header())
    too_long, others = b"[%b]" % (b"1" * (64 * 2**20)), [b"[%b]" % (b"1" * 1_000_000)] * 3
    with pytest.raises(LineTooLongError, match=rf"a line of {64 * 2**20 + 12} bytes is longer than {64 * 2**20}"):
        writer.append([*others, too_long, *others])
    writer.append(others)  # as long together as they like
    spool.writers.close_writers()
    spool.writers.stop_threads()


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, SpoolFullError), (errno.EIO, SpoolError)])
def test_a_full_disk_at_a_runs_start_is_told_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[SpoolError]
) -> None:
    spool = Spool(tmp_path, min_free_bytes=0)
    with monkeypatch.context() as patch:
        refuse(patch, "mkdir", tmp_path, code)
        with pytest.raises(SpoolError, match="takes no further run") as raised:
            spool.writers.create(header())

    assert raised.type is kind
    spool.writers.stop_threads()


def test_a_folder_is_removed_if_a_signal_interrupts_its_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, min_free_bytes=0)
    make = os.mkdir

    def make_and_interrupt(path: Path, mode: int = 0o777) -> None:
        make(path, mode)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", make_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            spool.writers.create(header())

    assert spool.run_folders() == []
    spool.writers.stop_threads()


def test_the_lock_of_a_session_is_removed_with_its_last_writer(tmp_path: Path) -> None:
    spool = Spool(tmp_path, min_free_bytes=0)
    for n in range(MAX_OWN_LOCKS + 2):
        spool.writers.create(header(f"run {n}"))
    assert len(list(tmp_path.glob("writers-*.lock"))) == 1

    spool.writers.close_writers()
    spool.writers.stop_threads()
    assert list(tmp_path.glob("writers-*.lock")) == []
    assert not any(spool.writer_alive(folder) for folder in spool.run_folders())


def test_the_lock_of_a_session_that_was_killed_goes_after_a_minute_and_others_stay(tmp_path: Path) -> None:
    ages = {"1" * 16: 3600.0, "2" * 16: 5.0}
    for name, age in ages.items():
        path = tmp_path / f"writers-{name}.lock"
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    notes = tmp_path / "writers-of-mine.lock"
    notes.write_text("mine")
    spool = Spool(tmp_path, min_free_bytes=0)
    for n in range(MAX_OWN_LOCKS + 2):
        spool.writers.create(header(f"run {n}"))

    left = {path.name for path in tmp_path.glob("writers-*.lock")}
    assert "writers-1111111111111111.lock" not in left
    assert {"writers-2222222222222222.lock", "writers-of-mine.lock"} <= left
    spool.writers.close_writers()
    spool.writers.stop_threads()
