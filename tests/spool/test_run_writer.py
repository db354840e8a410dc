"""The writing end of one run: what it counts, what it does on a full disk, and how a run's end is written once."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from refusing import refuse

from atomscale_bluesky import SpoolError, SpoolFullError
from atomscale_bluesky.model.rows import Channel
from atomscale_bluesky.spool.disk_space import DiskSpace
from atomscale_bluesky.spool.journal_format import Header, Layout, Stop, encode_row, pack_values
from atomscale_bluesky.spool.lines import checksummed, encode
from atomscale_bluesky.spool.locks import WRITER_LOCK, is_held
from atomscale_bluesky.spool.reserve import NAME
from atomscale_bluesky.spool.run_reader import HEAD, has_stop
from atomscale_bluesky.spool.run_writer import RunWriter

HEADER = Header(1, "b7c2e9f1", 1_760_000_000.0, "growth", 10, "primary", "https://api.atomscale.ai", "null")
LAYOUT = encode(Layout(layout=0, event_stream="primary", time_base="primary", channels=(Channel("a", "a"),)))
STOP = encode(Stop(1_760_000_100.0, "success"))


def row(number: int) -> bytes:
    return encode_row(0, number, 1_760_000_000.0 + number, f"uid {number}", pack_values([None]), {"a": "missing"})


class Written:
    """A writer in a spool of its own, and what its journal holds beside the header."""

    def __init__(self, spool: Path) -> None:
        self.disk_space = DiskSpace(spool, max_bytes=10**9, min_free_bytes=0)
        self.disk_space.update(maintain_reserve=True)
        self.reserve = spool / NAME
        folder = spool / "20260101T020000-deadbeef"
        folder.mkdir()
        self.writer = RunWriter(folder, HEADER, self.disk_space, sync_each=False)
        self.journal = folder / "journal-0001.jsonl"
        self.head = folder / HEAD

    @property
    def lines(self) -> list[bytes]:
        header, *others = self.journal.read_bytes().split(b"\n")[1:-1]
        assert header == checksummed(encode(HEADER))[:-1]
        return [text[9:] for text in others]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    written = Written(tmp_path)
    yield written
    written.writer.close()


def fill_disk(monkeypatch: pytest.MonkeyPatch, failure: int = errno.ENOSPC, times: int = 10**6) -> None:
    """Let so many writes fail."""
    left, write = [times], os.write

    def refused(descriptor: int, data: bytes) -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(failure, os.strerror(failure))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", refused)


def test_what_is_written_is_counted_and_waits_for_a_sync(written: Written) -> None:
    writer, used = written.writer, written.disk_space.used_bytes
    assert writer.written == written.journal.stat().st_size
    before = writer.written
    assert writer.append([LAYOUT, LAYOUT, row(0)]) is None

    assert writer.written == written.journal.stat().st_size
    assert written.disk_space.used_bytes - used == writer.written - before
    assert (writer.dirty, written.lines) == (True, [LAYOUT, LAYOUT, row(0)])
    assert not written.head.exists()
    for _ in range(2):
        writer.sync()
        assert not writer.dirty
        assert written.head.read_bytes() == checksummed(encode(HEADER)) + checksummed(LAYOUT)


def test_a_reading_that_finds_a_full_disk_is_refused_and_leaves_no_trace(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written.writer.written
    written.writer.sync()
    with monkeypatch.context() as patched:
        fill_disk(patched)
        with pytest.raises(SpoolFullError):
            written.writer.append([row(0)])
    assert (written.disk_space.has_room, written.disk_space.why_full) == (False, "its disk is full")
    with pytest.raises(SpoolFullError, match="the spool has no room: its disk is full"):
        written.writer.append([row(0)])

    assert (written.lines, written.writer.written, written.writer.dirty) == ([], before, False)
    assert written.reserve.exists()  # it is for what delivery has to write


def test_the_end_of_a_run_is_written_beyond_all_limits_and_takes_the_reserve_if_it_must(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.disk_space.note_disk_full()
    with monkeypatch.context() as patched:
        fill_disk(patched, times=1)
        written.writer.append([STOP], beyond_limits=True)

    assert (written.lines, written.reserve.exists()) == ([STOP], False)


def test_a_file_that_reaches_its_limit_is_no_full_disk(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        fill_disk(patched, errno.EFBIG)
        with pytest.raises(SpoolFullError, match=os.strerror(errno.EFBIG)):
            written.writer.append([STOP], beyond_limits=True)

    assert (written.disk_space.has_room, written.reserve.exists()) == (True, True)


def test_an_end_that_could_not_be_written_is_tried_again_and_written_once(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = written.writer
    before = writer.written
    with monkeypatch.context() as patched:
        fill_disk(patched, errno.EIO)
        with pytest.raises(SpoolError):
            writer.end([STOP], before)
        assert (writer.unwritten_ending, writer.retry_ending()) == ([STOP], False)
    assert (writer.retry_ending(), writer.unwritten_ending, writer.dirty) == (True, [], True)
    assert writer.retry_ending()

    writer.end([STOP], before)  # again, since the first time was interrupted when it was written
    assert written.lines == [STOP]
    assert has_stop(writer.folder)


def test_lines_of_which_an_interruption_hides_whether_they_were_written_are_found(written: Written) -> None:
    writer = written.writer
    before = writer.written
    writer.sync()
    assert not writer.recover_append([LAYOUT, row(0)], before)
    assert not writer.dirty
    writer.append([LAYOUT, row(0)])
    writer.sync()
    written.head.unlink()
    writer.written = before  # as it is when the append was interrupted at its end

    assert writer.recover_append([LAYOUT, row(0)], before)

    assert (writer.written, writer.dirty) == (written.journal.stat().st_size, True)
    writer.sync()
    assert written.head.read_bytes() == checksummed(LAYOUT)  # it is not known whether it was copied


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="this system syncs by other calls")
def test_a_reading_that_cannot_be_synced_is_kept_and_that_is_told_once(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.writer.sync_each = True

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fails)
        told = [written.writer.append([row(number)]) for number in range(3)]
    assert [error and error.errno for error in told] == [errno.EIO, None, None]
    assert written.writer.dirty
    assert written.writer.append([row(3)]) is None

    assert (written.writer.dirty, len(written.lines)) == (False, 4)


def test_a_run_that_was_released_before_its_last_sync_is_synced_unless_it_has_been_delivered(written: Written) -> None:
    writer = written.writer
    writer.append([row(0)])
    writer.append([STOP])
    writer.release_unsynced()
    assert (writer.is_released, writer.dirty, is_held(writer.folder / WRITER_LOCK)) == (True, True, False)

    writer.sync()
    assert (writer.dirty, written.head.exists(), is_held(writer.folder / WRITER_LOCK)) == (False, True, False)
    writer.dirty = True
    shutil.rmtree(writer.folder)
    writer.sync()
    assert not writer.folder.exists()


def test_a_disk_that_refuses_the_lock_keeps_no_end_from_being_written(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = written.writer
    writer.release_unsynced()
    with monkeypatch.context() as patched:
        refuse(patched, "open", writer.folder / WRITER_LOCK)
        writer.end([STOP], writer.written)

    assert (written.lines, writer.has_lock) == ([STOP], False)
