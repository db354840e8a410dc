"""The folder that holds the runs not yet finalized: their journals and ledgers, locks, limits and history.

    <spool>/<run folder>/journal-NNNN.jsonl, head.jsonl, ledger.jsonl, orders.jsonl, writer.lock, uploader.lock
    <spool>/history.jsonl      one line per finished run

A run has two owners, each behind a lock of the operating system that ends with its process: the writer appends to the
journal, the uploader to the ledger. A free writer lock without a stop means that the run was interrupted. A free
uploader lock means that the next process to ask may deliver the run. An order of the operator is a line in a third
file, which the uploader carries out. Folders are named by time and a random number, never from a document. Folders have
mode 0700 and files 0600.

Appending is one `write`. A thread of the spool syncs what was appended, so a power cut takes 250 ms of data at most. A
second thread watches the disk space: at the spool's size limit or its disk's free-space floor, new readings are left
out until there is space again, and what was kept before stays.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ..errors import SpoolError, SpoolFullError
from ..model.links import Links
from ..model.text import plain
from .disk_space import BEHIND_INTERVAL_S, ROOM_INTERVAL_S, DiskSpace, network_file_system
from .history import History, NotKept
from .journal import segment_path
from .journal_format import Header
from .ledger import is_delivered
from .line_file import LineFile, sync_folder
from .lines import encode, line
from .locks import (
    A_LOOK_S,
    SESSION_LOCK,
    UPLOADER_LOCK,
    WRITER_LOCK,
    Bell,
    RunLock,
    is_held,
    locked,
    remove_folder,
    session_lives,
    session_locks,
)
from .orders import ORDERS, Edit, OrderLine, read_orders
from .own_files import is_run_name, open_own, run_files
from .place import mark
from .reserve import is_full, with_room
from .run_claim import RunClaim
from .run_reader import HEAD, LEDGER, has_lines, has_stop, read_header, was_synced
from .run_writer import FolderTakenError, OpenJournals, RunWriter

_logger = logging.getLogger(__name__)

# Touched with every order, so that the uploader does not have to check every run for one.
ORDERED = "orders.touched"
# A power cut may take 250 ms of data: short enough to accept, long enough to batch the disk's work. The sync itself and
# the thread's scheduling need a part of that.
SYNC_INTERVAL_S = 0.15
# How many open runs have a lock of their own. The session's lock stands for those of all others.
OWN_LOCKS = 16
# How many ended runs may wait to be synced and closed. When one more run ends, it waits for one of them to close.
MOST_CLOSING = 16

# A run's folder that has no header after this long never gets one: the process that was making it has died.
BEGINNING_S = 60.0
# The runs that found no disk space, one line each: about a thousand of them.
NOT_KEPT = "not-kept.jsonl"
NOT_KEPT_BYTES = 2**18
# How many of them are kept in memory while the disk has no space even for their lines.
MOST_NOT_KEPT = 1000


class Spool:
    """The spool in one folder, for one callback or command.

    Args:
        path: The folder. It is made if it is missing. The mode of an existing folder is not changed.
        max_bytes: The spool's size from which on it takes no new readings.
        min_free_bytes: The free space on its disk below which it takes no new readings.
        sync_each: Sync each reading before it is accepted, so that it survives a power cut.
        read_only: For a command that only reads: the folder has to exist, and nothing in it is made or written.

    Raises:
        SpoolError: The folder cannot be made, written or read, or belongs to another user.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 20 * 10**9,
        min_free_bytes: int = 0,
        sync_each: bool = False,
        read_only: bool = False,
    ) -> None:
        self.path = path
        self.sync_each = sync_each
        self._disk_space = DiskSpace(path, max_bytes=max_bytes, min_free_bytes=min_free_bytes)
        self._history = History(path, make_room=self._disk_space.give_up_reserve)
        self._not_kept = History(
            path, name=NOT_KEPT, max_bytes=NOT_KEPT_BYTES, make_room=self._disk_space.give_up_reserve
        )
        self._not_noted: deque[NotKept] = deque(maxlen=MOST_NOT_KEPT)
        self._said: set[Path] = set()
        self._writers: list[RunWriter] = []
        self._closing: list[RunWriter] = []
        self._unended: set[RunWriter] = set()  # the ones in `_closing` whose last lines could not be written yet
        self._locked: list[RunWriter] = []  # writers with a lock of their own
        self._journals = OpenJournals()
        self._session: RunLock | None = None  # stands for the locks of further runs
        self._session_name = ""
        self._retired = False
        self._stopping = threading.Event()
        self._wake = Bell()
        self._thread: threading.Thread | None = None
        self._room_thread: threading.Thread | None = None
        self._in_background: Callable[[], bool] | None = None
        # Guards the threads' start and end. Held for memory operations only, and re-entrant for signal handlers.
        self._guard = threading.RLock()
        self._syncing = threading.RLock()  # a caller that syncs everything waits for the thread that is syncing
        # filelock takes longer to import than the rest of the package, so it is imported only when there is a spool. It
        # is imported here and not later in a thread, because a fork during the import would leave it half done.
        import filelock  # noqa: F401

        if read_only:
            _check_folder(path)
        else:
            _prepare_folder(path)
        self._disk_space.look()

    @property
    def has_room(self) -> bool:
        """Return True if new readings can be kept. Reads no disk."""
        return self._disk_space.there_is

    @property
    def has_unended(self) -> bool:
        """Return True if a run has ended whose stop could not be written yet. The spool keeps trying."""
        return bool(self._unended)

    # ---- writing ---------------------------------------------------------------------------------------------------

    def create(
        self, header: Header, *, to_deliver: bool = False, accept: Callable[[RunWriter], None] | None = None
    ) -> RunWriter:
        """Make the folder of a new run, with its header in it.

        The run is ours until the writer is closed or this process ends. With `to_deliver` the writer also has the run's
        uploader lock, taken before another process can take it. The writer is passed to `accept`, which sets its
        `in_use`. If making the folder is interrupted before that, nothing of it is left.

        Raises:
            SpoolFullError: There is no disk space for a further run.
            SpoolError: The folder cannot be made.
        """
        with self._guard:
            self._start_threads()  # also without disk space: a thread notices when there is some again
        if not self.has_room:
            raise SpoolFullError(f"the spool has no room: {self._disk_space.why_none}")
        try:
            return self._create(header, to_deliver=to_deliver, accept=accept)
        except FolderTakenError:  # a new name is not taken
            return self._create(header, to_deliver=to_deliver, accept=accept)

    def _create(self, header: Header, *, to_deliver: bool, accept: Callable[[RunWriter], None] | None) -> RunWriter:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        folder = self.path / name
        delivering = RunLock(folder / UPLOADER_LOCK) if to_deliver else None
        made = False
        writer: RunWriter | None = None
        try:
            folder.mkdir(mode=0o700)
            made = True
            if delivering is not None and not delivering.acquire(patience_s=A_LOOK_S):
                delivering = None  # the process that holds it delivers the run
            self._locked = [writer for writer in self._locked if writer.has_lock]
            if len(self._locked) >= OWN_LOCKS:
                header = replace(header, session=self._session_lock())
            writer = RunWriter(
                folder,
                header,
                self._disk_space,
                sync_each=self.sync_each,
                delivering=delivering,
                journals=self._journals,
            )
            if writer.has_lock:
                self._locked.append(writer)
            with self._guard:
                self._writers.append(writer)
            if accept is None:
                writer.in_use = True
            else:
                accept(writer)
        except BaseException as error:
            if writer is not None and writer.in_use:  # interrupted after it was accepted
                raise
            if made:
                self._give_up(folder, writer, delivering)
            if isinstance(error, OSError):
                if is_full(error):
                    self._disk_space.disk_is_full()
                kind = FolderTakenError if isinstance(error, FolderTakenError) else SpoolError
                raise kind(f"spool {self.path} takes no further run: {error}") from error
            raise
        return writer

    def _give_up(self, folder: Path, writer: RunWriter | None, delivering: RunLock | None) -> None:
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
        if delivering is not None:
            delivering.release()
        with suppress(OSError):
            folder.rmdir()

    def _session_lock(self) -> str:
        """Return the name of the session's lock, which stands for the locks of further runs.

        Takes it on the first call.
        """
        if self._session is None:
            for path in session_locks(self.path):  # of sessions that have ended
                with suppress(OSError):
                    if not is_held(path) and time.time() - path.stat().st_mtime > 60:
                        path.unlink()
            name = SESSION_LOCK.format(secrets.token_hex(8))
            lock = RunLock(self.path / name)
            if not lock.acquire():
                raise SpoolError(f"{self.path / name} cannot be locked")
            self._session, self._session_name = lock, name
        return self._session_name

    def release(self, writer: RunWriter) -> None:
        """Sync and close an ended run's files in the spool's thread, unless too many already wait there."""
        oldest = None
        writer.released()
        with self._guard:
            # In this order, and repeatable: after an interruption the writer is still in at least one of the lists.
            if writer not in self._closing:
                self._closing.append(writer)
            if writer in self._writers:
                self._writers.remove(writer)
            running = self._thread is not None and self._thread.is_alive()
            if writer.last:
                self._unended.add(writer)
            elif running and len(self._closing) - len(self._unended) > MOST_CLOSING:
                oldest = next(one for one in self._closing if one not in self._unended)
                self._closing.remove(oldest)
        if running:
            self._wake.ring()
        else:
            self._sync_all()
        if oldest is not None:
            oldest.close()

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
            writer.try_to_end()
            writer.close()
        if self._session is not None:
            self._session.release()
            with suppress(OSError):
                (self.path / self._session_name).unlink()
            self._session = None

    def close(self, timeout_s: float = 5.0) -> bool:
        """Sync everything and stop the threads. Return True if the syncing thread has ended.

        Writers stay usable, and from then on each call syncs.
        """
        self._stopping.set()
        self._wake.ring()
        with self._guard:
            thread, room_thread = self._thread, self._room_thread
        end = time.monotonic() + timeout_s
        for one in filter(None, (thread, room_thread)):
            # A log handler may call this from such a thread. A thread whose start was interrupted never runs.
            if one is not threading.current_thread() and one.ident is not None:
                one.join(max(0.0, end - time.monotonic()))
        ended = thread is None or not thread.is_alive()
        if ended:
            self._sync_all(last_time=True)
            self.sync_each = True
            with self._guard:
                for writer in self._writers:
                    writer.sync_each = True
        return ended

    def forget_after_fork(self) -> None:
        """In a forked child, leave the files and locks of the parent's runs alone: they belong to the parent."""
        self._guard, self._syncing = threading.RLock(), threading.RLock()
        self._writers, self._closing, self._locked, self._unended = [], [], [], set()
        self._journals, self._session = OpenJournals(), None
        self._not_noted.clear()
        self._thread = self._room_thread = None
        self._stopping = threading.Event()
        self._wake = Bell()

    def _start_threads(self) -> None:
        if self._stopping.is_set() or (self._room_thread is not None and self._room_thread.ident is not None):
            return
        # Stored before they start: if starting them is interrupted, others replace them and these end.
        self._thread = threading.Thread(target=self._keep_synced, name="atomscale-spool", daemon=True)
        self._room_thread = threading.Thread(target=self._keep_measured, name="atomscale-room", daemon=True)
        try:
            self._thread.start()
            self._room_thread.start()
        except RuntimeError:  # the interpreter is ending: sync within each call instead
            self.sync_each = True
            self._thread = self._room_thread = None

    def _goes_on(self, thread: threading.Thread | None) -> bool:
        return not (self._stopping.is_set() or self._retired) and thread is threading.current_thread()

    def _keep_synced(self) -> None:
        while self._goes_on(self._thread):
            self._wake.wait(SYNC_INTERVAL_S)
            self._sync_all()

    def _keep_measured(self) -> None:
        """Watch the disk space in a thread of its own, so that no sync waits however long the disk takes."""
        self._disk_space.look(keep_reserve=True)
        kind = network_file_system(self.path)
        if kind:
            _logger.warning(
                "spool %s is on a network file system (%s): what a crash keeps depends on it; set `spool_dir` to a "
                "local disk", self.path, kind,
            )  # fmt: skip
        more = True
        while self._goes_on(self._room_thread):
            self._stopping.wait(BEHIND_INTERVAL_S if more or self._disk_space.behind else ROOM_INTERVAL_S)
            self._disk_space.look(keep_reserve=True)
            self._note_not_kept()
            try:
                more = self._in_background is not None and self._in_background()
            except OSError as error:
                _logger.warning("spool %s cannot be read: %s", self.path, error)
                more = False
            if not more:
                self._in_background = None
        self._note_not_kept()

    def in_background(self, step: Callable[[], bool]) -> None:
        """Call `step` repeatedly in a thread of the spool, until it returns False."""
        self._in_background = step
        with self._guard:
            self._start_threads()

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

    def _sync_all(self, *, last_time: bool = False) -> None:
        with self._syncing:
            self._sync_each(last_time=last_time)

    def _sync_each(self, *, last_time: bool) -> None:
        with self._guard:
            writers, closing = list(self._writers), self._closing
            self._closing = []
        for writer in writers:
            if writer.dirty:
                self._disk_space.grown.append(writer.folder.name)
                try:
                    writer.sync()
                    writer.sync_failed = False
                except OSError as error:
                    writer.dirty = True
                    if not writer.sync_failed:
                        writer.sync_failed = True
                        _logger.warning(
                            "journal in %s could not be synced, it is tried again: %s", writer.folder, error
                        )
        unwritten: list[RunWriter] = []
        for writer in closing:
            if writer.try_to_end() or last_time:
                writer.close()
                self._unended.discard(writer)
            else:
                writer.rest()
                unwritten.append(writer)
        with self._guard:
            self._closing[:0] = unwritten

    def measure(self) -> tuple[int, int]:
        """Return the spool's size and the free space on its disk, in bytes.

        Raises:
            OSError: The folder cannot be read.
        """
        return self._disk_space.measure()

    def why_no_room(self) -> str:
        """Return why new readings are left out now, or an empty text if they are not. Measures the disk."""
        self._disk_space.look()
        return "" if self._disk_space.there_is else self._disk_space.why_none

    def not_kept(self, run: NotKept) -> None:
        """Note an ended run that found no disk space, as soon as the disk takes a line. Does not wait for the disk.

        After the spool's thread has ended, this does wait for the disk.
        """
        with self._guard:
            self._not_noted.append(run)
            running = self._thread is not None and self._thread.is_alive()
        if not running:
            self._note_not_kept()

    def runs_not_kept(self) -> list[NotKept]:
        """Return the runs that found no disk space, oldest first: the last thousand or so, of all processes."""
        with self._guard:
            here = list(self._not_noted)
        noted = [msgspec.convert(entry, NotKept) for entry in self._not_kept.entries()]
        return list(dict.fromkeys([*noted, *here]))

    def _note_not_kept(self) -> None:
        try:
            while self._not_noted:
                run = self._not_noted[0]
                self._not_kept.add(msgspec.to_builtins(run))
                with self._guard:
                    if self._not_noted and self._not_noted[0] is run:
                        self._not_noted.popleft()
        except OSError as error:  # a SpoolError is one too
            _logger.debug("%d runs that were not kept could not be noted: %s", len(self._not_noted), error)

    # ---- reading and delivering ------------------------------------------------------------------------------------

    def run_folders(self) -> list[Path]:
        """Return the folders of the unfinished runs, oldest first. Folders with other names are never read."""
        return [self.path / name for name in sorted(self.run_names())]

    def run_names(self) -> list[str]:
        """Return the names of these folders, unsorted. For thousands of runs this takes a tenth of the time."""
        with os.scandir(self.path) as entries:
            return [entry.name for entry in entries if is_run_name(entry.name) and entry.is_dir(follow_symlinks=False)]

    def is_empty(self) -> bool:
        """Return True if no run is left in the spool. Return False also if the folder cannot be read."""
        try:
            return not any(self._holds_a_run(folder) for folder in self.run_folders())
        except OSError:
            return False

    def is_beginning(self, folder: Path) -> bool:
        """Return True if a run's folder without a header may still get one."""
        try:
            return self._holds_a_run(folder) and time.time() - folder.stat().st_mtime <= BEGINNING_S
        except OSError:  # removed meanwhile
            return False

    def _holds_a_run(self, folder: Path) -> bool:
        """Return False for the folder of a finished run that remains because it holds files of another origin."""
        try:
            own, foreign = run_files(folder)
        except FileNotFoundError:
            return False
        return bool(own) or not foreign

    def changed_at(self) -> int:
        """Return when a run was last added or removed, by the file system's time. For comparing only."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0

    def ordered_at(self) -> int:
        """Return when any process last gave an order for a run. For comparing only."""
        try:
            return (self.path / ORDERED).stat().st_mtime_ns
        except OSError:
            return 0

    def claim(self, folder: Path, lock: RunLock | None = None) -> RunClaim | None:
        """Take over the delivery of a run. Return None if another process delivers it, or if the folder holds no run.

        Args:
            folder: The run's folder.
            lock: The run's uploader lock, if it is already ours. If None is returned, the caller releases it.

        Raises:
            SpoolError: The run's files cannot be read, or were written by a newer version.
        """
        header = read_header(folder)
        if header is None:
            self._remove_corpse(folder)
            return None
        if lock is None:
            lock = RunLock(folder / UPLOADER_LOCK)
            if not with_room(lock.acquire, self._disk_space.give_up_reserve):
                return None
            if read_header(folder) is None:  # its previous owner has just finished it
                lock.release()
                return None
        try:
            return RunClaim(folder, header, lock, self._history, self._disk_space.give_up_reserve)
        except BaseException:
            lock.release()
            raise

    def writer_alive(self, folder: Path) -> bool:
        """Return True if a process has the run open for writing."""
        if is_held(folder / WRITER_LOCK):
            return True
        try:
            header = read_header(folder)
            return header is not None and session_lives(self.path, header.session) and not has_stop(folder)
        except SpoolError:  # its lines cannot be decoded
            return False

    def uploader_alive(self, folder: Path) -> bool:
        """Return True if a process delivers the run."""
        return is_held(folder / UPLOADER_LOCK)

    def links_of(self, folder: Path) -> Links:
        """Return what a run's streams are linked to: by its metadata, or by the operator's last edit.

        Raises:
            SpoolError: The run's files cannot be read.
        """
        edits = [order.links for order in read_orders(folder) if isinstance(order, Edit)]
        header = read_header(folder)
        return edits[-1] if edits else header.links if header else Links()

    def order(self, folder: Path, order: OrderLine) -> None:
        """Write an order for a run. If a process delivers the run now, it carries the order out within seconds.

        Raises:
            SpoolError: The file cannot be written.
        """
        with locked(folder / "orders.lock", self._disk_space.give_up_reserve):
            file = LineFile(folder / ORDERS, make_room=self._disk_space.give_up_reserve)
            try:
                file.append(line(encode(order)))
                file.sync()
            finally:
                file.close()
        with suppress(OSError):  # then the order is noticed a little later
            descriptor = open_own(self.path / ORDERED, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                os.write(descriptor, b".")  # changes the file's time on every platform
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)

    def history(self) -> list[dict[str, Any]]:
        """Return the entries of finished runs, oldest first."""
        return self._history.entries()

    def history_of(self, run_uid: str) -> list[dict[str, Any]]:
        """Return the entries of one finished run, one for each time that it was taken."""
        return self._history.of(run_uid)

    def has_finished(self, beginning: str) -> bool:
        """Return True if a run whose uid begins with this text is in the history."""
        return self._history.has_one_like(beginning)

    def read_history(self) -> None:
        """Read which runs are in the history, so that `history_of` has to read only what is added later."""
        self._history.read_on()

    def _remove_corpse(self, folder: Path) -> None:
        """Remove the folder of a run without a header, whose writer or machine died at its start.

        A folder that holds any file which the package did not make is left as it is.

        Raises:
            SpoolError: The run had a header that was safe on the disk. So the header is damaged, and the rest is kept.
        """
        if not is_run_name(folder.name):
            return
        try:
            age_s = time.time() - folder.stat().st_mtime
            if is_held(folder / WRITER_LOCK):
                return  # it is just being made
            if was_synced(folder) and not is_delivered(folder / LEDGER):
                raise SpoolError(f"{folder} holds a run whose header is damaged or gone; its other lines are kept")
            foreign = run_files(folder)[1]
            if has_lines(folder) and folder not in self._said:
                self._said.add(folder)
                _logger.warning(
                    "%s holds the rest of a run whose beginning a power cut took; %s",
                    folder, f"it stays, for it also holds {plain(', '.join(foreign))}" if foreign else "it is removed",
                )  # fmt: skip
            if age_s > BEGINNING_S and not foreign:
                self._remove_unless_owned(folder)
        except FileNotFoundError:  # removed meanwhile
            return

    def _remove_unless_owned(self, folder: Path) -> None:
        """Remove a run's folder, unless a process writes or delivers the run, or has begun to."""
        locks: list[RunLock] = []
        for name in (WRITER_LOCK, UPLOADER_LOCK):
            lock = RunLock(folder / name)
            if not lock.acquire():
                break
            locks.append(lock)
        if len(locks) == 2 and read_header(folder) is None:
            remove_folder(folder, *locks)
        else:
            for lock in locks:
                lock.release()


def _check_folder(path: Path) -> None:
    """Check that a folder belongs to this user and can be read. Changes nothing.

    Raises:
        SpoolError: It does not, or cannot be read.
    """
    try:
        _check_owner(path)
        os.scandir(path).close()
    except OSError as error:
        raise _unusable(path, "read", error) from error


def _prepare_folder(path: Path) -> None:
    """Make a spool of a folder of this user. The mode of an existing folder is not changed.

    Raises:
        SpoolError: It cannot be a spool.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path)
        mark(path)  # first of all, so that no other process takes the folder for a foreign one
        probe = path / f".probe-{secrets.token_hex(4)}"
        probe.touch(mode=0o600, exist_ok=False)
        probe.unlink()
        sync_folder(path)
    except OSError as error:
        raise _unusable(path, "written", error) from error


def _check_owner(path: Path) -> None:
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise SpoolError(f"spool folder {str(path)!r} belongs to another user; choose another `spool_dir`")


def _unusable(path: Path, what: str, error: OSError) -> SpoolError:
    if isinstance(error, SpoolError):
        return error
    return SpoolError(f"spool folder {str(path)!r} cannot be {what} ({error.strerror}); choose another `spool_dir`")
