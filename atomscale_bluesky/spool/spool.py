"""The folder that holds the runs not yet finalized: their journals and ledgers, locks, limits and history.

    <spool>/<run folder>/journal-NNNN.jsonl, head.jsonl, ledger.jsonl, orders.jsonl, writer.lock, uploader.lock
    <spool>/history.jsonl      one line per finished run

A run has two owners, each behind a lock of the operating system that ends with its process: the writer appends to the
journal, the uploader to the ledger. A free writer lock without a stop means that the run was interrupted. A free
uploader lock means that the next process to ask may deliver the run. An order of the operator is a line in a third
file, which the uploader carries out. Folders are named by time and a random number, never from a document. Folders have
mode 0700 and files 0600.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Set
from contextlib import suppress
from pathlib import Path

from .disk_space import PATIENCE_S, DiskSpace
from .history import History
from .leftovers import holds_a_run, remove_leftover
from .locks import UPLOADER_LOCK, RunLock, is_held, service_lock
from .orders import Edit, OrderLine, append_order, read_orders
from .own_files import is_run_name, open_own
from .reserve import with_room
from .run_claim import FoundRun, RunClaim
from .run_reader import read_header
from .run_writers import RunWriters
from .runs_not_kept import RunsNotKept
from .segments import segments
from .spool_folder import check_folder, prepare_folder
from .sync import sync_folder
from .written_runs import writer_alive

# Touched with every order, so that the uploader does not have to check every run for one.
ORDERED = "orders.touched"


class Spool:
    """The spool in one folder, for one callback or command.

    `writers` records runs in it, `history` has the finished ones, `not_kept` those that found no disk space.

    Args:
        path: The folder. It is made if it is missing. The mode of an existing folder is not changed.
        max_bytes: The spool's size from which on it takes no new readings.
        min_free_bytes: The free space on its disk below which it takes no new readings.
        sync_each: Sync each reading before it is accepted, so that it survives a power cut.
        patience_s: How long the disk may lack free space before only delivery is expected to make room.
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
        patience_s: float = PATIENCE_S,
        read_only: bool = False,
    ) -> None:
        self.path = path
        self.disk_space: DiskSpace = DiskSpace(
            path, max_bytes=max_bytes, min_free_bytes=min_free_bytes, patience_s=patience_s
        )
        self._make_room = self.disk_space.release_reserve
        self.history: History = History(path, make_room=self._make_room)
        self.not_kept: RunsNotKept = RunsNotKept(path, make_room=self._make_room)
        self.writers: RunWriters = RunWriters(path, self.disk_space, self.not_kept, sync_each=sync_each)
        self._logged_folders: set[Path] = set()  # folders without a header that were logged
        self._synced_names: Set[str] = frozenset()  # of run folders: these names survive a power cut
        # psutil takes half as long to import as the rest of the package, so it is imported only when there is a spool.
        # It is imported here and not later in a thread, because a fork during the import would leave it half done.
        if read_only:
            check_folder(path)
        else:
            import psutil  # noqa: F401

            prepare_folder(path)
        self.disk_space.update()

    def after_fork_in_child(self) -> None:
        """In a forked child, leave the parent's runs alone, and wait for no lock that one of its threads had."""
        self.history.after_fork_in_child()
        self.disk_space.after_fork_in_child()
        self.writers.after_fork_in_child()

    def run_folders(self) -> list[Path]:
        """Return the folders of the unfinished runs, oldest first. Folders with other names are never read."""
        return [self.path / name for name in sorted(self.run_names())]

    def run_names(self) -> list[str]:
        """Return the names of these folders, unsorted. For thousands of runs this takes a tenth of the time."""
        with os.scandir(self.path) as entries:
            return [entry.name for entry in entries if is_run_name(entry.name) and entry.is_dir(follow_symlinks=False)]

    def new_run_names(self, *known: Iterable[str]) -> list[str]:
        """Return the names of these folders that are in no collection of known ones, oldest first.

        With thousands of runs of which nearly all are known, this takes a tenth of the time of `run_names`.
        """
        names = filter(is_run_name, set(os.listdir(self.path)).difference(*known))
        return sorted(
            name for name in names if os.path.isdir(self.path / name) and not os.path.islink(self.path / name)
        )

    def is_empty(self) -> bool:
        """Return True if no run is left in the spool. Return False also if the folder cannot be read."""
        try:
            return not any(holds_a_run(folder) for folder in self.run_folders())
        except OSError:
            return False

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

    def find_run(self, folder: Path) -> FoundRun | None:
        """Return what the files of a run say to a process that may deliver it, or None if there is no header.

        Raises:
            SpoolError: The run's files cannot be read.
        """
        header = read_header(folder)
        return None if header is None else FoundRun(folder, header)

    def claim(self, folder: Path, lock: RunLock | None = None, *, found: FoundRun | None = None) -> RunClaim | None:
        """Take over the delivery of a run. Return None if another process delivers it, or if the folder holds no run.

        Args:
            folder: The run's folder.
            lock: The run's uploader lock, if it is already ours. If None is returned, the caller releases it.
            found: What `find_run` has just returned, so that nothing is read twice.

        Raises:
            SpoolError: The run's files cannot be read, or were written by a newer version.
        """
        found = found or self.find_run(folder)
        if found is None:
            remove_leftover(folder, self._logged_folders)
            return None
        ours = lock is not None
        lock = lock or RunLock(folder / UPLOADER_LOCK)
        if not ours and not with_room(lock.acquire, self._make_room):
            return None
        try:
            if not ours and not segments(folder):  # its previous owner has just finished it
                lock.release()
                return None
            self._sync_name(folder)
            return RunClaim(found, lock, self.history, self._make_room)
        except BaseException:
            lock.release()
            raise

    def _sync_name(self, folder: Path) -> None:
        """Let the name of a run's folder survive a power cut, and those of all other runs that are there now."""
        if folder.name not in self._synced_names:
            names = frozenset(self.run_names())
            sync_folder(self.path)
            self._synced_names = names

    def writer_alive(self, folder: Path, *, guess: bool = True) -> bool:
        """Return True if a process has the run open for writing, see `written_runs.writer_alive`."""
        return writer_alive(self.path, folder, guess=guess)

    def is_served(self, endpoint: str) -> bool:
        """Return True if a living process serves this spool: it delivers all runs for this endpoint."""
        return is_held(self.path / service_lock(endpoint))

    def uploader_alive(self, folder: Path) -> bool:
        """Return True if a process delivers the run."""
        return is_held(folder / UPLOADER_LOCK)

    def last_edit(self, folder: Path) -> Edit | None:
        """Return the operator's last edit of a run, or None.

        Raises:
            SpoolError: The run's files cannot be read.
        """
        edits = [order for order in read_orders(folder) if isinstance(order, Edit)]
        return edits[-1] if edits else None

    def give_order(self, folder: Path, order: OrderLine) -> bool:
        """Write an order for a run. If a process delivers the run now, it carries the order out within seconds.

        Return False if the run has left the spool, so that nobody can carry the order out.

        Raises:
            SpoolError: The file cannot be written, or another process has its lock for too long.
        """
        if not append_order(folder, order, self._make_room):
            return False
        with suppress(OSError):  # then the order is noticed a little later
            descriptor = open_own(self.path / ORDERED, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                os.write(descriptor, b".")  # changes the file's time on every platform
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)
        return True
