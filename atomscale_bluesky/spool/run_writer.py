"""The writing end of one run: what the callback keeps of it, behind a lock that ends with its process.

The plan's process has few file descriptors, so only some of the open runs use any. A bounded number have their journal
open; the others open it again for the next line. A bounded number have a lock of their own. All others share the
session's lock, which their header names, until they end.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path

from ..errors import LineTooLongError, SpoolError, SpoolFullError
from .disk_space import DiskSpace
from .journal_format import Header
from .journal_writer import JournalWriter
from .line_file import MAX_LINE_BYTES
from .lines import checksummed, encode
from .locks import LOCK_TEST_S, WRITER_LOCK, RunLock
from .reserve import is_full
from .row_record import RECORD
from .run_reader import append_to_copy, needs_copy
from .sync import sync_folder

_logger = logging.getLogger(__name__)

# How many open runs have their journal file open.
MAX_OPEN_JOURNALS = 56


class FolderTakenError(SpoolError):
    """Another process owns the new folder: it tests the lock for too long, or takes the folder for an abandoned one."""


class OpenJournals:
    """The writers of a spool whose journal file is open. When one too many is open, one chosen at random is closed.

    If a few more runs than `MAX_OPEN_JOURNALS` are written in turns, most of them then still have their file at their
    next turn. The file opened longest ago would always be the one that is needed next.
    """

    def __init__(self) -> None:
        self._writers: list[RunWriter] = []
        # A writer may be closed in another thread than the one that opened it, or by a signal handler.
        self._guard = threading.RLock()

    def add(self, writer: RunWriter) -> None:
        """Note that a journal is open. Called by the thread that may append to any of them."""
        with self._guard:
            if writer in self._writers:  # it could not be opened the last time
                return
            too_many = len(self._writers) >= MAX_OPEN_JOURNALS
            other = self._writers.pop(random.randrange(len(self._writers))) if too_many else None  # noqa: S311
            self._writers.append(writer)
        if other is not None:
            other.close_until_needed()

    def remove(self, writer: RunWriter) -> None:
        """Note that a journal is closed."""
        with self._guard, contextlib.suppress(ValueError):
            self._writers.remove(writer)


class RunWriter:
    """The writing end of one run: what the callback keeps of it.

    Only one thread at a time may call `append`, for all writers that share `journals`. `uploader_lock` is the lock of
    the process that delivers the run, if it was taken for this process. The uploader in this process takes it over.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        disk_space: DiskSpace,
        *,
        sync_each: bool,
        uploader_lock: RunLock | None = None,
        journals: OpenJournals | None = None,
    ) -> None:
        self.folder = folder
        self.uploader_lock = uploader_lock
        self.sync_each = sync_each
        self.unwritten_ending: list[bytes] = []  # lines that could not be written when the run ended
        self._size_before_ending = 0
        self._disk_space = disk_space
        self._journals = journals or OpenJournals()
        self._lock = RunLock(folder / WRITER_LOCK)
        self.has_lock: bool = not header.session
        if self.has_lock and not self._lock.acquire(patience_s=LOCK_TEST_S):
            raise FolderTakenError(f"another process writes {folder}; leave the folder to it")
        self.is_released: bool = False  # its journal and lock, before the last sync
        self._closed_until_needed = False  # its journal has to be opened again
        self.is_accepted = False  # the caller has received it
        self.dirty: bool = True  # appended to since the last sync
        self.sync_failed: bool = False  # already reported
        self._folder_name_synced = False  # the folder's own name survives a power cut
        payload = encode(header)
        self._lines_to_copy = [payload]  # header and layouts that are not in the copy yet
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock.release)
            self._journal = JournalWriter(folder)
            undo.callback(self._journal.close)
            self._journal.append(checksummed(payload) * 2)  # twice, for rows are worthless without it
            # How many bytes were appended so far. After an interrupted `append` it is too small until `recover_append`
            # has measured the file.
            self.written: int = self._journal.whole_size()
            undo.pop_all()
        self._journals.add(self)

    def append(self, payloads: list[bytes], *, beyond_limits: bool = False) -> OSError | None:
        """Append these lines, all or none. They survive a killed process once this returns.

        With `durability = "event"` they survive a power cut too. With `beyond_limits` the spool's limits do not count,
        only the disk's. That is for a few bytes, such as those that say how a run ended. For them the reserve is
        released.

        An exception raised by a signal handler may end this call at any point. `recover_append` finds out
        afterwards what was written.

        Returns:
            Why the lines could not be synced, but only the first time. They are in the file and keep their numbers, so
            they are accepted, and the next sync tries again.

        Raises:
            SpoolFullError: There is no disk space. The journal is unchanged.
            LineTooLongError: One of them is longer than a reader takes. The journal is unchanged.
            SpoolError: The file cannot be written.
        """
        if len(payloads) == 1:
            lines = _as_written(payloads[0])
        else:
            lines = b"".join([one if one[0] == RECORD else checksummed(one) for one in payloads])
        if len(lines) > MAX_LINE_BYTES:
            longest = max(map(len, payloads)) + len(checksummed(b""))
            if longest > MAX_LINE_BYTES:
                raise LineTooLongError(
                    f"a line of {longest} bytes is longer than {MAX_LINE_BYTES}, the most it may have"
                )
        if not (beyond_limits or self._disk_space.has_room):
            raise SpoolFullError(f"the spool has no room: {self._disk_space.why_full}")
        if self._closed_until_needed:
            self._journals.add(self)
            self._closed_until_needed = False
        try:
            self._journal.append(lines)
        except SpoolFullError as error:
            if not is_full(error):
                raise
            if not beyond_limits:
                self._disk_space.note_disk_full()
                raise
            self._disk_space.release_reserve()
            self._journal.append(lines)
        self.written += len(lines)
        self._disk_space.used_bytes += len(lines)
        if len(payloads) > 1:
            self._lines_to_copy += dict.fromkeys([one for one in payloads if one[0] != RECORD and needs_copy(one)])
        self.dirty = True
        if self.sync_each:
            try:
                self.sync()
            except OSError as error:
                if not self.sync_failed:
                    self.sync_failed = True
                    return error
        return None

    def append_within_allowance(self, payloads: list[bytes]) -> OSError | None:
        """Append these lines as `append` does. If there is no room for them, they use the spool's allowance.

        That is for lines without which later readings would be lost, although there may be room for these.

        Raises:
            SpoolFullError: There is no disk space, and the allowance is used up. The journal is unchanged.
            LineTooLongError: As `append` raises it.
            SpoolError: The file cannot be written.
        """
        try:
            return self.append(payloads)
        except SpoolFullError:
            if not self._disk_space.use_allowance(sum(len(_as_written(one)) for one in payloads)):
                raise
        return self.append(payloads, beyond_limits=True)

    def recover_append(self, payloads: list[bytes], written_before: int) -> bool:
        """Return True if an `append` of these lines has written them. Needed only if it may have been interrupted.

        Measures the file, and removes half a line. If the lines are there, does what `append` would have done next.

        Args:
            payloads: The lines.
            written_before: The value of `written` before that call.

        Raises:
            SpoolError: The file's size cannot be read, or half a line cannot be removed.
        """
        self.written = self._journal.whole_size()
        if self.written == written_before:
            return False
        self._lines_to_copy += dict.fromkeys(filter(needs_copy, payloads))
        self.dirty = True
        return True

    def end(self, payloads: list[bytes], written_before: int) -> None:
        """Write a run's last lines, once. If that fails they are kept in memory, and `retry_ending` tries again.

        From here on the run has a lock of its own, if one can be had: once that is free, another process may finish the
        run.

        Args:
            payloads: The lines.
            written_before: The value of `written` before the first attempt to write them.

        Raises:
            SpoolError: The lines could not be written yet.
        """
        self.unwritten_ending, self._size_before_ending = payloads, written_before
        with contextlib.suppress(OSError):
            self.has_lock = self.has_lock or self._lock.acquire(patience_s=LOCK_TEST_S)
        if not self.recover_append(payloads, written_before):
            self.append(payloads, beyond_limits=True)
        self.unwritten_ending = []

    def detach(self) -> None:
        """Leave the shared open journals: from here on this writer and others do not close each other's journals."""
        self._journals.remove(self)
        self._journals = OpenJournals()

    def retry_ending(self) -> bool:
        """Write the last lines if that failed before. Return False if it still fails."""
        if self.unwritten_ending:
            with contextlib.suppress(OSError):
                self.end(self.unwritten_ending, self._size_before_ending)
        return not self.unwritten_ending

    def close_until_needed(self) -> None:
        """Close the journal until the next line."""
        self._closed_until_needed = True
        self._attempt(self._journal.close_until_needed)

    def release_unsynced(self) -> None:
        """Close an ended run's files and release its lock, without waiting for the disk. `sync` opens them again.

        Another process may take the run then. It syncs the journal before it sends anything.
        """
        self.is_released = True
        self._attempt(self._journal.close_until_needed)
        self._lock.release()
        self.has_lock = False

    def sync(self) -> None:
        """Make everything appended so far survive a power cut."""
        self.dirty = False
        try:
            self._sync()
        except BaseException:  # also for an exception from a signal handler: nothing was synced
            self.dirty = True
            raise

    def _sync(self) -> None:
        if not self.is_released:
            self._sync_files()
            return
        # With the lock no other process finishes the run meanwhile, and removes its folder.
        try:
            if self._lock.acquire(patience_s=LOCK_TEST_S):
                self._sync_files()
            else:
                self._journal.sync()
        except FileNotFoundError:  # another process has delivered it
            pass
        finally:
            self._lock.release()

    def _sync_files(self) -> None:
        described = len(self._lines_to_copy)  # another thread may append meanwhile
        self._journal.sync()
        if not self._folder_name_synced:
            sync_folder(self.folder.parent)
            self._folder_name_synced = True
        if described:
            # After the journal's sync: a line missing in the copy was then never synced. If the disk does not take the
            # copy, the next sync tries again.
            with contextlib.suppress(OSError):
                append_to_copy(self.folder, self._lines_to_copy[:described])
                del self._lines_to_copy[:described]

    def close(self) -> None:
        """Sync, close and release the run. A second call does nothing."""
        if self.dirty:
            with contextlib.suppress(OSError, ValueError):  # the disk fails, or it is already closed
                self.sync()
        self._attempt(self._journal.close)
        self._journals.remove(self)
        with contextlib.suppress(OSError):  # its file is closed all the same
            self._lock.release()
        self.has_lock = False

    def _attempt(self, close: Callable[[], None]) -> None:
        """Close the journal's files. A network disk may tell only now that it could not write; that is logged."""
        try:
            close()
        except OSError as error:
            _logger.warning("journal in %s is closed, but the disk reports an error: %s", self.folder, error)


def _as_written(payload: bytes) -> bytes:
    """Return a line as the file holds it. A record has its checksum already."""
    return payload if payload[0] == RECORD else checksummed(payload)
