"""The writing end of one run: what the callback keeps of it, behind a lock that ends with its process.

The plan's process has few descriptors, so only some of the runs that are open hold any: a bounded number have their
journal open (the others open it again for the next line), and a bounded number a lock of their own. For the others the
lock of the session stands, which their header names, until they end.
"""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path

from ..errors import LineTooLongError, SpoolError, SpoolFullError
from .disk_space import Room
from .journal import JournalWriter
from .journal_format import Header
from .line_file import MAX_LINE_BYTES, sync_folder
from .lines import encode, line
from .locks import A_LOOK_S, WRITER_LOCK, RunLock
from .reserve import is_full
from .run_reader import describes, keep_copies

# How many journals of open runs have their file open.
OPEN_JOURNALS = 56


class FolderTakenError(SpoolError):
    """The new folder has another owner: somebody who looks at its lock for too long, or takes it for a left one."""


class OpenJournals:
    """The writers of a spool whose journal has its file open. Which one makes way for another is left to chance.

    So runs that are never written to again lose theirs, and a few more runs than files that are written in turns do not
    all lose theirs before they come again.
    """

    def __init__(self) -> None:
        self._writers: list[RunWriter] = []
        # A writer is closed in another thread than it is opened in, or by a signal's handler.
        self._guard = threading.RLock()

    def add(self, writer: RunWriter) -> None:
        """Note that a journal is opened; by the thread that may append to any of them."""
        with self._guard:
            if writer in self._writers:  # it could not be opened the last time
                return
            too_many = len(self._writers) >= OPEN_JOURNALS
            other = self._writers.pop(random.randrange(len(self._writers))) if too_many else None  # noqa: S311
            self._writers.append(writer)
        if other is not None:
            other.rest()

    def remove(self, writer: RunWriter) -> None:
        """Note that a journal is closed."""
        with self._guard, contextlib.suppress(ValueError):
            self._writers.remove(writer)


class RunWriter:
    """The writing end of one run: what the callback keeps of it.

    `append` may be called by one thread at a time, for all writers with the same `journals`. `delivering` is the lock
    of who delivers the run, if it was taken for this process: whoever delivers it here takes it over.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        room: Room,
        *,
        sync_each: bool,
        delivering: RunLock | None = None,
        journals: OpenJournals | None = None,
    ) -> None:
        self.folder = folder
        self.delivering = delivering
        self.sync_each = sync_each
        self.last: list[bytes] = []  # what could not be written when the run ended
        self._last_from = 0
        self._room = room
        self._journals = journals or OpenJournals()
        self._lock = RunLock(folder / WRITER_LOCK)
        self.has_lock = not header.session
        if self.has_lock and not self._lock.acquire(patience_s=A_LOOK_S):
            raise FolderTakenError(f"{folder} belongs to another process, which writes it; leave it to that")
        self._resting = False  # its journal is to be opened again
        self.in_use = False  # whoever wanted it has it
        self.dirty = True  # appended to since the last sync
        self.sync_failed = False  # said once
        self._named = False  # whether the folder's own name survives a power cut
        payload = encode(header)
        self._described = [payload]  # header and layouts that are not in their copy yet
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock.release)
            self._journal = JournalWriter(folder)
            undo.callback(self._journal.close)
            self._journal.append(line(payload) * 2)  # twice, for the run is worth nothing without it
            # How much was appended so far; too little where an append was interrupted, until `kept` is asked.
            self.written = self._journal.settled_size()
            undo.pop_all()
        self._journals.add(self)

    def append(self, payloads: list[bytes], *, always: bool = False) -> OSError | None:
        """Keep these lines, all or none; they survive a killed process once this returns.

        With `durability = "event"` they survive a power cut too. With `always` the spool's limits do not count, only
        the disk's: for the few bytes that tell how a run ended, for which the reserve is given up.

        An exception that a signal raises may end it anywhere; `kept` finds out afterwards what came of it.

        Returns:
            Why the lines could not be synced, the first time that it is so. They are in the file and keep their
            numbers, so they are accepted, and the next sync tries again.

        Raises:
            SpoolFullError: There is no room; the journal is as it was.
            LineTooLongError: One of them is longer than a reader takes; the journal is as it was.
            SpoolError: The file cannot be written.
        """
        lines = b"".join(map(line, payloads)) if len(payloads) > 1 else line(payloads[0])
        if len(lines) > MAX_LINE_BYTES and max(map(len, payloads)) + len(line(b"")) > MAX_LINE_BYTES:
            raise LineTooLongError(f"a line of {len(lines)} bytes is longer than the {MAX_LINE_BYTES} that it may have")
        if not (always or self._room.there_is):
            raise SpoolFullError(f"the spool has no room: {self._room.why_none}")
        if self._resting:
            self._journals.add(self)
            self._resting = False
        try:
            self._journal.append(lines)
        except SpoolFullError as error:
            if not is_full(error):
                raise
            if not always:
                self._room.disk_is_full()
                raise
            self._room.give_up_reserve()
            self._journal.append(lines)
        self.written += len(lines)
        self._room.used_bytes += len(lines)
        if len(payloads) > 1:
            self._described += dict.fromkeys(filter(describes, payloads))
        self.dirty = True
        if self.sync_each:
            try:
                self.sync()
            except OSError as error:
                if not self.sync_failed:
                    self.sync_failed = True
                    return error
        return None

    def kept(self, payloads: list[bytes], written_before: int) -> bool:
        """Return True if an `append` of these lines that was interrupted, or may have been, has written them.

        Args:
            payloads: The lines.
            written_before: What `written` was before.

        Raises:
            SpoolError: The file cannot be looked at, or half a line cannot be taken back.
        """
        self.written = self._journal.settled_size()
        if self.written == written_before:
            return False
        self._described += dict.fromkeys(filter(describes, payloads))
        self.dirty = True
        return True

    def end(self, payloads: list[bytes], written_before: int) -> None:
        """Keep a run's last lines, once. Where that fails they are kept in memory, and tried again by `try_to_end`.

        From here on the run has a lock of its own: it may be finished once that is free.

        Args:
            payloads: The lines.
            written_before: What `written` was before the first attempt to write them.

        Raises:
            SpoolError: The lines could not be written yet.
        """
        self.last, self._last_from = payloads, written_before
        with contextlib.suppress(OSError):
            self.has_lock = self.has_lock or self._lock.acquire(patience_s=A_LOOK_S)
        if not self.kept(payloads, written_before):
            self.append(payloads, always=True)
        self.last = []

    def released(self) -> None:
        """Note that only the spool uses it from here on: it closes no other's journal, and no other closes its own."""
        self._journals.remove(self)
        self._journals = OpenJournals()

    def try_to_end(self) -> bool:
        """Write the last lines if they could not be written before; False if they still cannot be."""
        if self.last:
            with contextlib.suppress(OSError):
                self.end(self.last, self._last_from)
        return not self.last

    def rest(self) -> None:
        """Close the journal until the next line."""
        self._resting = True
        self._journal.rest()

    def sync(self) -> None:
        """Have what was appended survive a power cut."""
        self.dirty = False
        try:
            self._sync()
        except BaseException:  # also one that a signal raises: it was not synced
            self.dirty = True
            raise

    def _sync(self) -> None:
        described = len(self._described)  # another thread may append meanwhile
        self._journal.sync()
        if not self._named:
            sync_folder(self.folder.parent)
            self._named = True
        if described:
            # After the journal: what the copy lacks tells what was never synced. Where the disk does not take it, the
            # next sync tries again.
            with contextlib.suppress(OSError):
                keep_copies(self.folder, self._described[:described])
                del self._described[:described]

    def close(self) -> None:
        """Sync, close and let go of the run; idempotent."""
        with contextlib.suppress(OSError, ValueError):  # the disk fails, or it is closed already
            self.sync()
        self._journal.close()
        self._journals.remove(self)
        self._lock.release()
        self.has_lock = False
