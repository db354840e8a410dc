"""The runs that this process writes: their folders, the syncing of their journals, and their end.

Appending is one `write`. A thread syncs what was appended, so a power cut takes 250 ms of data at most. A second thread
watches the disk space: at the spool's size limit or its disk's free-space floor, new readings are left out until there
is space again, and what was kept before stays.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from ..errors import SpoolError, SpoolFullError
from .disk_space import CATCH_UP_INTERVAL_S, ROOM_INTERVAL_S, DiskSpace, network_file_system
from .journal_format import Header
from .locks import LOCK_TEST_S, UPLOADER_LOCK, WRITER_LOCK, Bell, RunLock
from .reserve import is_full
from .run_reader import HEAD
from .run_writer import FolderTakenError, OpenJournals, RunWriter
from .runs_not_kept import NotKept, RunsNotKept
from .segments import segment_path
from .session_lock import SessionLock
from .written_runs import WrittenRuns

_logger = logging.getLogger(__name__)

# A power cut may take 250 ms of data: short enough to accept, long enough to batch the disk's work. The sync itself and
# the thread's scheduling need a part of that.
SYNC_INTERVAL_S = 0.15
# How many open runs have a lock of their own. The session's lock stands for those of all others.
MAX_OWN_LOCKS = 16
# How many ended runs keep their files open until they are synced. When one more run ends, the oldest of them gives its
# files back, and they are opened again for the sync.
MAX_CLOSING = 16
# For this long the answer of `fill_spool` is given again. A source that must not wait asks with each document.
ASK_AGAIN_S = 1.0


class RunWriters:
    """The writers of one process in one spool, and the threads that sync them and watch the disk.

    Args:
        path: The spool's folder.
        disk_space: The spool's limit and its disk's free space.
        not_kept: Where runs are noted that found no disk space.
        sync_each: Sync each reading before it is accepted, so that it survives a power cut.
    """

    def __init__(self, path: Path, disk_space: DiskSpace, not_kept: RunsNotKept, *, sync_each: bool = False) -> None:
        self.sync_each: bool = sync_each
        self._path = path
        self._disk_space = disk_space
        self._not_kept = not_kept
        self._writers: list[RunWriter] = []
        self._closing: list[RunWriter] = []
        self._unended: set[RunWriter] = set()  # the ones in `_closing` whose last lines could not be written yet
        self._with_own_lock: list[RunWriter] = []  # writers with a lock of their own
        self._written_runs = WrittenRuns(path)
        self._asked_for: frozenset[str] = frozenset()  # for which runs `fill_spool` was last found out
        self._ask_again_at = 0.0  # monotonic
        self._fill_spool = False
        self._journals = OpenJournals()
        self._session_lock = SessionLock(path)  # runs without a lock of their own name it in their header
        self._retired = False
        self._stopping = threading.Event()
        self._wake = Bell()
        self._thread: threading.Thread | None = None
        self._room_thread: threading.Thread | None = None
        self._in_background: deque[Callable[[], bool]] = deque()
        self._attempts = _Attempts(path)
        # Guards the lists, and the threads' start and end. Never held during a sync. Re-entrant for signal handlers.
        self._guard = threading.RLock()
        self._syncing = threading.RLock()  # a caller that syncs everything waits for the thread that is syncing

    @property
    def has_room(self) -> bool:
        """Return True if new readings can be kept. Reads no disk."""
        return self._disk_space.has_room

    def fill_spool(self, *, also_without_a_run: bool = False) -> bool:
        """Return True if the runs that are being written leave the spool no room, so that delivery makes none.

        They reach its limit, or its disk has too little free space, and what else the spool holds is less than lacks.
        Runs of other processes count too: if two processes wait for room, neither ends its run.

        Args:
            also_without_a_run: Find that out also if this process writes no run. Without this, the answer is False
                then: nothing waits for this process, so it may wait for others.
        """
        with self._guard:
            names = frozenset(writer.folder.name for writer in self._writers)
        now = time.monotonic()
        if not (names or also_without_a_run):
            return False
        if names != self._asked_for or now >= self._ask_again_at:
            self._asked_for, self._ask_again_at = names, now + ASK_AGAIN_S
            self._fill_spool = self._disk_space.is_filled_by(names, self._written_runs.has)
        return self._fill_spool

    @property
    def has_unended(self) -> bool:
        """Return True if a run has ended whose stop could not be written yet. The spool keeps trying."""
        return bool(self._unended)

    def create(
        self, header: Header, *, to_deliver: bool = False, accept: Callable[[RunWriter], None] | None = None
    ) -> RunWriter:
        """Make the folder of a new run, with its header in it.

        The run is ours until the writer is closed or this process ends. With `to_deliver` the writer also has the run's
        uploader lock, taken before another process can take it.

        A caller that a signal handler may interrupt passes `accept`, which gets the writer and sets its `is_accepted`.
        Then the caller either has the writer, or nothing of the folder is left.

        Raises:
            SpoolFullError: There is no disk space for a further run.
            SpoolError: The folder cannot be made.
        """
        with self._guard:
            self._start_threads()  # also without disk space: a thread notices when there is some again
        if not self.has_room:
            raise SpoolFullError(f"the spool has no room: {self._disk_space.why_full}")
        try:
            return self._create(header, to_deliver=to_deliver, accept=accept)
        except FolderTakenError:  # a new name is not taken
            return self._create(header, to_deliver=to_deliver, accept=accept)

    def _create(self, header: Header, *, to_deliver: bool, accept: Callable[[RunWriter], None] | None) -> RunWriter:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        folder = self._path / name
        uploader_lock = RunLock(folder / UPLOADER_LOCK) if to_deliver else None
        made = False
        writer: RunWriter | None = None
        try:
            folder.mkdir(mode=0o700)
            made = True
            if uploader_lock is not None and not uploader_lock.acquire(patience_s=LOCK_TEST_S):
                uploader_lock = None  # the process that holds it delivers the run
            writer = RunWriter(
                folder,
                self._with_session(header),
                self._disk_space,
                sync_each=self.sync_each,
                uploader_lock=uploader_lock,
                journals=self._journals,
            )
            self._add(writer)
            if accept is None:
                writer.is_accepted = True
            else:
                accept(writer)
        except BaseException as error:
            if writer is not None and writer.is_accepted:  # interrupted after it was accepted
                raise
            if made:
                self._remove_unfinished(folder, writer, uploader_lock)
            elif not isinstance(error, OSError):  # interrupted, perhaps when the folder had just been made
                with suppress(OSError):
                    folder.rmdir()
            if isinstance(error, OSError):
                raise self._no_further_run(error) from error
            raise
        return writer

    def _with_session(self, header: Header) -> Header:
        """Return the header, with the session's lock in it if no further run may have a lock of its own."""
        self._with_own_lock = [writer for writer in self._with_own_lock if writer.has_lock]
        if len(self._with_own_lock) < MAX_OWN_LOCKS:
            return header
        return replace(header, session=self._session_lock.take())

    def _add(self, writer: RunWriter) -> None:
        if writer.has_lock:
            self._with_own_lock.append(writer)
        with self._guard:
            self._writers.append(writer)

    def _no_further_run(self, error: OSError) -> SpoolError:
        """Return the error for a run whose folder could not be made. Notes it if the disk is full."""
        kind = FolderTakenError if isinstance(error, FolderTakenError) else SpoolError
        if is_full(error):
            self._disk_space.note_disk_full()
            kind = SpoolFullError
        return kind(f"spool {self._path} takes no further run: {error}")

    def _remove_unfinished(self, folder: Path, writer: RunWriter | None, uploader_lock: RunLock | None) -> None:
        """Remove all files of a run's folder that was being made and has no writer."""
        if writer is not None:
            with self._guard:
                if writer in self._writers:
                    self._writers.remove(writer)
            writer.close()
        # By name, which opens nothing: there may be no descriptor left, and a file left here would stay for ever.
        for path in (segment_path(folder, 1), folder / HEAD, folder / WRITER_LOCK, folder / UPLOADER_LOCK):
            with suppress(OSError):
                path.unlink()
        if uploader_lock is not None:
            uploader_lock.release()
        with suppress(OSError):
            folder.rmdir()

    def release(self, writer: RunWriter) -> None:
        """Sync and close an ended run's files in the spool's thread. Does not wait for the disk while that runs."""
        writer.detach()
        with self._guard:
            # In this order, and repeatable: after an interruption the writer is still in at least one of the lists.
            if writer not in self._closing:
                self._closing.append(writer)
            if writer in self._writers:
                self._writers.remove(writer)
            running = self._thread is not None and self._thread.is_alive()
            if writer.unwritten_ending:
                self._unended.add(writer)
            elif running:
                holding = [one for one in self._closing if not one.is_released and one not in self._unended]
                for surplus in holding[: max(0, len(holding) - MAX_CLOSING)]:
                    surplus.release_unsynced()  # with the guard held, so that the thread does not close it too
        if running:
            self._wake.ring()
        else:
            self._sync_and_close()

    def retire(self) -> None:
        """End the threads soon, since nothing writes any more.

        Takes no lock, so the garbage collector may call this.
        """
        self._retired = True

    def close_writers(self) -> None:
        """Close all writers, which nothing writes to any more, and release their runs."""
        with self._guard:
            writers = self._writers + self._closing
            self._writers, self._closing, self._unended = [], [], set()
        for writer in writers:
            writer.retry_ending()
            writer.close()
        self._session_lock.release()

    def stop_threads(self, timeout_s: float = 5.0) -> bool:
        """Sync everything and stop the threads. Return True if the syncing thread has ended.

        Writers stay usable. From now on each call syncs, and measures the disk space where that is due.
        """
        self._stopping.set()
        self._wake.ring()
        self._disk_space.unwatched = True
        self.sync_each = True  # before the wait below: a thread that is late syncs nothing more
        with self._guard:
            for writer in self._writers:
                writer.sync_each = True
            thread, room_thread = self._thread, self._room_thread
        end = time.monotonic() + timeout_s
        for one in filter(None, (thread, room_thread)):
            # A log handler may call this from such a thread. A thread whose start was interrupted never runs.
            if one is not threading.current_thread() and one.ident is not None:
                one.join(max(0.0, end - time.monotonic()))
        ended = thread is None or not thread.is_alive()
        if ended:
            self._sync_and_close(last_time=True)
        return ended

    def after_fork_in_child(self) -> None:
        """In a forked child, leave the files and locks of the parent's runs alone: they belong to the parent."""
        self._guard, self._syncing = threading.RLock(), threading.RLock()
        self._writers, self._closing, self._with_own_lock, self._unended = [], [], [], set()
        self._journals, self._session_lock = OpenJournals(), SessionLock(self._path)
        self._not_kept.after_fork_in_child()
        self._thread = self._room_thread = None
        self._stopping = threading.Event()
        self._wake = Bell()

    def sync(self) -> None:
        """Make everything appended so far survive a power cut.

        Raises:
            SpoolError: A journal could not be synced. It is synced again next time.
        """
        with self._syncing:
            with self._guard:
                writers = [writer for writer in [*self._writers, *self._closing] if writer.dirty]
            failed: list[str] = []
            for writer in writers:
                try:
                    writer.sync()
                except OSError as error:
                    failed.append(f"the journal in {writer.folder} could not be synced: {error}")
        if failed:
            raise SpoolError("; ".join(failed))

    def run_in_background(self, step: Callable[[], bool]) -> None:
        """Call `step` repeatedly in a thread of the spool, until it returns False or the spool closes; at least once.

        If this is called during a call of the same step, the step is called again after that.
        """
        with self._guard:
            if step not in self._in_background:
                self._in_background.append(step)
            self._start_threads()

    def note_not_kept(self, run: NotKept) -> None:
        """Note an ended run that found no disk space, as soon as the disk takes a line. Does not wait for the disk.

        After the syncing thread has ended, this does wait for the disk.
        """
        self._not_kept.add(run)
        with self._guard:
            running = self._thread is not None and self._thread.is_alive()
        if not running:
            self._not_kept.write()

    # ---- the threads -----------------------------------------------------------------------------------------------

    def _start_threads(self) -> None:
        if self._stopping.is_set() or (self._room_thread is not None and self._room_thread.ident is not None):
            return
        # Stored before they start: if starting them is interrupted, others replace them and these end.
        self._thread = threading.Thread(target=self._sync_loop, name="atomscale-spool", daemon=True)
        self._room_thread = threading.Thread(target=self._measure_loop, name="atomscale-room", daemon=True)
        try:
            self._thread.start()
            self._room_thread.start()
        except RuntimeError:  # the interpreter is ending: sync within each call instead
            self.sync_each = self._disk_space.unwatched = True
            self._thread = self._room_thread = None

    def _may_continue(self, thread: threading.Thread | None) -> bool:
        return not (self._stopping.is_set() or self._retired) and thread is threading.current_thread()

    def _sync_loop(self) -> None:
        while self._may_continue(self._thread):
            self._wake.wait(SYNC_INTERVAL_S)
            self._attempts.make("syncing the journals", self._sync_and_close)

    def _measure_loop(self) -> None:
        """Watch the disk space in a thread of its own, so that no sync waits however long the disk takes."""

        def measure() -> None:
            self._disk_space.update(maintain_reserve=True)

        self._attempts.make("measuring the disk space", measure)
        kind = network_file_system(self._path)
        if kind:
            _logger.warning(
                "spool %s is on a network file system (%s): what survives a crash depends on it; set `spool_dir` to a "
                "local disk", self._path, kind,
            )  # fmt: skip
        while self._may_continue(self._room_thread):
            catching_up = self._in_background or self._disk_space.has_unmeasured_runs
            self._stopping.wait(CATCH_UP_INTERVAL_S if catching_up else ROOM_INTERVAL_S)
            self._attempts.make("measuring the disk space", measure)
            self._attempts.make("noting runs that found no room", self._not_kept.write)
            self._attempts.make("reading its runs", self._call_background_steps)
        if self._stopping.is_set():  # steps that a short session asked for while the disk space was measured
            self._attempts.make("reading its runs", self._call_background_steps)
        self._attempts.make("noting runs that found no room", self._not_kept.write)

    def _call_background_steps(self) -> None:
        """Call each step in `_in_background` once."""
        for _ in range(len(self._in_background)):
            step = self._in_background.popleft()  # before the call: from then on it can be asked for again
            try:
                if step():
                    self.run_in_background(step)
            except OSError as error:
                _logger.warning("spool %s cannot be read: %s", self._path, error)

    def _sync_and_close(self, *, last_time: bool = False) -> None:
        """Sync all journals, and close those of ended runs.

        What fails is tried again at the next call. With `last_time` ended runs are closed all the same.
        """
        with self._syncing:
            closing: list[RunWriter] = []
            kept: list[RunWriter] = []
            try:
                with self._guard:
                    writers = list(self._writers)
                    closing, self._closing = self._closing, closing
                for writer in writers:
                    if writer.dirty:
                        self._disk_space.grown_runs.append(writer.folder.name)
                        _try_to_sync(writer)
                while closing:
                    if not self._has_closed(closing[0], last_time=last_time):
                        kept.append(closing[0])
                    del closing[0]
            finally:  # whatever was raised, each of them is closed at a later call
                with self._guard:
                    if closing is not self._closing:
                        self._closing[:0] = kept + closing

    def _has_closed(self, writer: RunWriter, *, last_time: bool) -> bool:
        """Write, sync and close what is left of an ended run. Return False if it has to be tried again."""
        ended, synced = writer.retry_ending(), not writer.dirty or _try_to_sync(writer)
        if ended or last_time:
            self._unended.discard(writer)
        if (ended and synced) or last_time:
            writer.close()
            return True
        if not ended:
            writer.close_until_needed()
        return False


class _Attempts:
    """The attempts of a spool's threads. Whatever goes wrong in one is logged once, and does not end the thread.

    Without its threads the spool would sync no reading, and never notice that its disk is full or has room again.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._failing: set[str] = set()  # which steps failed the last time

    def make(self, what: str, step: Callable[[], object]) -> None:
        """Call `step`, which `what` names in the log."""
        try:
            step()
        except Exception:
            if what not in self._failing:
                _logger.exception("spool %s: %s failed; it is tried again", self._spool, what)
            self._failing.add(what)
        else:
            self._failing.discard(what)


def _try_to_sync(writer: RunWriter) -> bool:
    """Sync a journal. Return False if that failed: it stays dirty, and the first failure is logged."""
    try:
        writer.sync()
    except OSError as error:
        if not writer.sync_failed:
            writer.sync_failed = True
            _logger.warning("journal in %s could not be synced, it is tried again: %s", writer.folder, error)
        return False
    writer.sync_failed = False
    return True
