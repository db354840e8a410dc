"""The spool's disk space: its size limit, its disk's free-space floor, and whether the disk belongs to this machine."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from .own_files import is_run_name
from .reserve import MIN_BYTES, Reserve, min_bytes

_logger = logging.getLogger(__name__)

# How often the spool's size and free space are measured. In between, the bytes that this process writes are counted.
ROOM_INTERVAL_S = 1.0
CATCH_UP_INTERVAL_S = 0.05  # while some runs have not been measured yet
# After the disk has had too little free space for this long, nothing but delivery is expected to free any. Other
# programs often free within seconds what they took, and then nothing has to be left out.
PATIENCE_S = 30.0
# How many runs one update measures: runs never measured before, and runs measured before. With these bounds an update
# takes as long for twenty thousand runs as for a few hundred, and each run's size is measured again within minutes.
NEW_PER_UPDATE, KNOWN_PER_UPDATE = 500, 32
# A folder's modification time may be as coarse as 2 s. For this long after a change the folder is listed again.
COARSE_S = 3.0
# What one process may write while there is no room, apart from the ends of its runs. It is a quarter of the smallest
# usual reserve, so that on a full disk most of the reserve is left for delivery.
ALLOWANCE_BYTES = MIN_BYTES // 4


class DiskSpace:
    """The disk space of one spool.

    `used_bytes` is the spool's size at the last `update` plus the bytes written since, which the writers add.
    `grown_runs` names the runs that were written to: each update measures these, and the others in turns.
    """

    def __init__(self, path: Path, *, max_bytes: int, min_free_bytes: int, patience_s: float = PATIENCE_S) -> None:
        self.used_bytes: int = 0
        self.grown_runs: deque[str] = deque()  # names of run folders; any thread may append
        self.has_unmeasured_runs: bool = False
        self.unwatched: bool = False  # no thread calls `update` any more, so who asks for room has to wait for one
        self._measure_at = 0.0  # while it is unwatched: when to measure again, monotonic
        self._path = path
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._patience_s = patience_s
        self._free_enough = True
        self._lacking_bytes = 0  # so much more free space was needed at the last update
        self._not_free_since: float | None = None  # monotonic; None while there is enough free space
        self._why_not_free = ""
        self._allowance = ALLOWANCE_BYTES
        self._lacks_reserve = False  # the disk was full, and the reserve has not been made again since
        self._reserve = Reserve(path)
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by folder name, the one measured longest ago first
        self._names: set[str] = set()
        self._changed_at = -1
        self._list_until = float("-inf")
        self._measuring = threading.RLock()  # one thread at a time measures; others wait for it
        self._is_measuring = False  # a signal handler that comes in meanwhile goes without
        self._unreadable: set[str] = set()  # names of run folders whose size could not be read the last time
        self._failing: set[str] = set()  # what could not be measured the last time

    def after_fork_in_child(self) -> None:
        """Renew the lock in a forked child: a thread of the parent may have had it, and never releases this copy."""
        self._measuring, self._is_measuring = threading.RLock(), False

    @property
    def has_room(self) -> bool:
        """Return True if new readings can be kept. Reads no disk, unless it is `unwatched`: then once a second."""
        if self.unwatched and time.monotonic() >= self._measure_at:
            self._measure_at = time.monotonic() + ROOM_INTERVAL_S
            self.update(maintain_reserve=True)
        return self._free_enough and self.used_bytes < self._max_bytes

    def is_filled_by(self, names: Collection[str], is_written: Callable[[str], bool]) -> bool:
        """Return True if these runs, and all others that are being written, leave the spool no room.

        Then delivery can make none: without all other runs the spool would still reach its limit, or its disk would
        still lack free space, and has lacked it for some time. Measures these runs again, and the disk, if they did not
        reach the limit when they were last measured.

        Args:
            names: Runs that are being written.
            is_written: Returns True if a run of another name is. Called only for as many runs as needed.
        """
        if self._size_of(names) >= self._max_bytes:
            return True
        self.grown_runs.extend(names)
        self.update()
        with self._measuring:
            sizes = dict(self._sizes)
        # Without so many bytes there would still be no room.
        spare = max(sum(sizes.values()) - self._max_bytes, self._lacks_for_long())
        for name in sorted(sizes.keys() - set(names), key=sizes.__getitem__, reverse=True):
            if spare < 0:
                return False
            if sizes[name] and not is_written(name):
                spare -= sizes[name]
        return spare >= 0

    def _lacks_for_long(self) -> int:
        """Return how many bytes of free space the disk has lacked for some time; -1 if it has not."""
        since = self._not_free_since
        return -1 if since is None or time.monotonic() - since < self._patience_s else self._lacking_bytes

    @property
    def remedy(self) -> str:
        """What makes room beside delivery, as an imperative, while new readings cannot be kept. Reads no disk."""
        return "free some space on that disk" if self._why_not_free else "set a larger `spool_max_bytes`"

    @property
    def why_full(self) -> str:
        """Why new readings cannot be kept, while that is so. Reads no disk."""
        size = f"it holds {self.used_bytes / 1e6:.0f} of {self._max_bytes / 1e6:.0f} MB (spool_max_bytes)"
        return self._why_not_free or size

    def use_allowance(self, n_bytes: int) -> bool:
        """Return True if so many bytes may be written although there is no room. They count as used.

        An update that finds room again renews the allowance.
        """
        if n_bytes > self._allowance:
            return False
        self._allowance -= n_bytes
        return True

    def note_disk_full(self) -> None:
        """Note that the disk is full: new readings are left out until an update finds free space again."""
        self._lacks_reserve = True
        self._free_enough = False
        self._why_not_free = "its disk is full"
        if self._not_free_since is None:
            self._not_free_since = time.monotonic()

    def release_reserve(self) -> None:
        """Release the reserve, so that delivery and the operator's orders can be written on a full disk."""
        self.note_disk_full()
        self._reserve.release()

    def measure_all(self) -> tuple[int, int]:
        """Return the spool's size and the free space on its disk, in bytes. Reads the size of every file.

        A run whose folder cannot be read counts as nothing.

        Raises:
            OSError: The spool's folder cannot be read.
        """
        used = 0
        for name in self._listed():
            with suppress(OSError):
                used += self._size(name)
        return used, shutil.disk_usage(self._path).free

    def why_full_now(self) -> str:
        """Measure the disk, and return why new readings are left out; an empty text if they are not."""
        self.update()
        return "" if self.has_room else self.why_full

    def update(self, *, maintain_reserve: bool = False) -> None:
        """Measure a few runs and the disk again, in bounded time. If that fails, what was known before still counts.

        Any thread may call this; one waits for another. What cannot be measured is logged once until it can be again.

        Args:
            maintain_reserve: Make the reserve if it is missing and there is space for it.
        """
        with self._measuring:
            if self._is_measuring:
                return
            self._is_measuring = True
            try:
                self._attempt("size", self._update_sizes)
                self._attempt("free space", lambda: self._update_free_space(maintain_reserve=maintain_reserve))
            finally:
                self._is_measuring = False
            if self._free_enough and self.used_bytes < self._max_bytes:
                self._allowance = ALLOWANCE_BYTES

    def _attempt(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            self.has_unmeasured_runs = False  # so that the next attempt comes at the usual interval
            if what not in self._failing:
                self._failing.add(what)
                _logger.warning("the %s of spool %s cannot be measured, it is tried again: %s", what, self._path, error)
        else:
            self._failing.discard(what)

    def _update_free_space(self, *, maintain_reserve: bool) -> None:
        usage = shutil.disk_usage(self._path)
        disk, free = usage.total, usage.free
        if maintain_reserve:
            self._lacks_reserve = not self._reserve.maintain(self.used_bytes, free, disk)
            free = shutil.disk_usage(self._path).free
        minimum = min_bytes(disk)
        # Without a reserve, space for one and as much again: making it must not use up what it is to keep free.
        needed = minimum if self._reserve.size() >= minimum else 2 * minimum
        full = self._lacks_reserve or free < needed
        self._free_enough = free >= self._min_free_bytes and not full
        self._lacking_bytes = max(0, needed - free, self._min_free_bytes - free)
        if self._free_enough:
            self._not_free_since = None
        elif self._not_free_since is None:
            self._not_free_since = time.monotonic()
        if full:
            self._why_not_free = _why_full(free, needed, self._min_free_bytes)
        elif not self._free_enough:
            self._why_not_free = (
                f"its disk has {free / 1e6:.0f} MB free, and {self._min_free_bytes / 1e6:.0f} MB are to stay free "
                f"(spool_min_free_bytes)"
            )
        else:
            self._why_not_free = ""

    def _listed(self) -> set[str]:
        with os.scandir(self._path) as entries:
            return {entry.name for entry in entries if is_run_name(entry.name) and entry.is_dir(follow_symlinks=False)}

    def _update_sizes(self) -> None:
        now, changed_at = time.monotonic(), self._path.stat().st_mtime_ns
        if changed_at != self._changed_at:
            self._changed_at, self._list_until = changed_at, now + COARSE_S
        if now < self._list_until:
            self._names = self._listed()
            for gone in self._sizes.keys() - self._names:
                del self._sizes[gone]
            self._unreadable &= self._names
        due = {self.grown_runs.popleft() for _ in range(len(self.grown_runs))} & self._names
        due.update(islice(self._sizes, KNOWN_PER_UPDATE))
        new = self._names - self._sizes.keys() - due
        due.update(islice(new, NEW_PER_UPDATE))
        for name in due:
            self._sizes[name] = self._size_or_last(name)
            self._sizes.move_to_end(name)
        self.has_unmeasured_runs = len(new) > NEW_PER_UPDATE
        self.used_bytes = sum(self._sizes.values())

    def _size_of(self, names: Iterable[str]) -> int:
        return sum(self._sizes.get(name, 0) for name in names)

    def _size_or_last(self, name: str) -> int:
        """Return the size of a run, or the last one that was known if its folder cannot be read."""
        try:
            size = self._size(name)
        except OSError as error:
            if not self._unreadable:
                _logger.warning(
                    "the size of a run in spool %s cannot be read, its last size counts: %s", self._path, error
                )
            self._unreadable.add(name)
            return self._sizes.get(name, 0)
        self._unreadable.discard(name)
        return size

    def _size(self, name: str) -> int:
        try:
            with os.scandir(os.path.join(self._path, name)) as entries:  # noqa: PTH118 - a tenth of the price
                return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
        except FileNotFoundError:  # the run was finished meanwhile
            return 0


def _why_full(free: int, needed: int, min_free_bytes: int) -> str:
    """Return that the disk is full, how much of it is free, and how much must be, all in bytes."""
    if max(free, needed) < min_free_bytes:
        return (
            f"its disk is full: {free / 1e6:.1f} MB free, and {min_free_bytes / 1e6:.0f} MB are to stay free "
            f"(spool_min_free_bytes)"
        )
    if free < needed:
        return f"its disk is full: {free / 1e3:.0f} kB free, and delivery needs {needed / 1e3:.0f} kB"
    return f"its disk takes no more data although {free / 1e3:.0f} kB are free; a quota may be used up"


# Network file systems: their locks and syncs are only as good as the network's.
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "afpfs", "lustre", "gpfs", "beegfs", "ceph", "9p",
     "fuse.sshfs", "fuse.glusterfs", "webdav", "davfs"}
)  # fmt: skip


def network_file_system(path: Path) -> str | None:
    """Return the kind of network file system that `path` is on; None if it is on a local one, or if that is unknown."""
    import psutil  # `Spool` has imported it, which takes long, and a session without a spool does not need it

    try:
        here = path.resolve()
        partitions = psutil.disk_partitions(all=True)
    except (OSError, RuntimeError, psutil.Error):  # RuntimeError: a loop of links, before Python 3.13
        return None
    best = ("", "", "")
    for partition in partitions:
        mount = Path(partition.mountpoint)
        if (here == mount or mount in here.parents) and len(partition.mountpoint) >= len(best[0]):
            best = (partition.mountpoint, partition.fstype.lower(), partition.opts)
    _, kind, options = best
    return kind if kind in _NETWORK or "remote" in options.split(",") else None
