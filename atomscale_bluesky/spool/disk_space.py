"""The spool's disk space: its size limit, its disk's free-space floor, and whether the disk belongs to this machine."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import OrderedDict, deque
from itertools import islice
from pathlib import Path

from .own_files import is_run_name
from .reserve import Reserve, least_bytes

_logger = logging.getLogger(__name__)

# How often the spool's size and free space are measured. In between, the bytes that this process writes are counted.
ROOM_INTERVAL_S = 1.0
BEHIND_INTERVAL_S = 0.05  # while some runs have not been measured yet
# How many runs one poll measures: runs never measured before, and runs measured before. With these bounds a poll takes
# as long for twenty thousand runs as for a few hundred, and each run's size is measured again within minutes.
NEW_PER_LOOK, KNOWN_PER_LOOK = 500, 32
# A folder's modification time may be as coarse as 2 s. For this long after a change the folder is listed again.
COARSE_S = 3.0


class DiskSpace:
    """The disk space of one spool.

    `used_bytes` is the spool's size at the last poll plus the bytes written since, which the writers add.
    `grown` names the runs that were written to: each poll measures these, and the others in turns.
    """

    def __init__(self, path: Path, *, max_bytes: int, min_free_bytes: int) -> None:
        self.used_bytes: int = 0
        self.grown: deque[str] = deque()  # names of run folders; any thread may append
        self.behind: bool = False  # some runs have not been measured yet
        self._path = path
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._free_enough = True
        self._why_not_free = ""
        self._refused = False  # the disk was full, and the reserve has not been made again since
        self._reserve = Reserve(path)
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by folder name, the one measured longest ago first
        self._names: set[str] = set()
        self._changed_at = -1
        self._list_until = float("-inf")

    @property
    def there_is(self) -> bool:
        """Return True if new readings can be kept. Reads no disk."""
        return self._free_enough and self.used_bytes < self._max_bytes

    @property
    def why_none(self) -> str:
        """Why new readings cannot be kept, while that is so. Reads no disk."""
        size = f"it holds {self.used_bytes / 1e6:.0f} of {self._max_bytes / 1e6:.0f} MB (spool_max_bytes)"
        return self._why_not_free or size

    def disk_is_full(self) -> None:
        """Note that the disk is full: new readings are left out until a poll finds free space again."""
        self._refused = True
        self._free_enough = False
        self._why_not_free = "its disk is full"

    def give_up_reserve(self) -> None:
        """Release the reserve, so that delivery and the operator's orders can be written on a full disk."""
        self.disk_is_full()
        self._reserve.give_up()

    def measure(self) -> tuple[int, int]:
        """Return the spool's size and the free space on its disk, in bytes. Reads the size of every file.

        Raises:
            OSError: The folder cannot be read.
        """
        return sum(self._size(name) for name in self._listed()), shutil.disk_usage(self._path).free

    def why_no_room(self) -> str:
        """Return why new readings are left out now, or an empty text if they are not. Measures the disk."""
        self.measure_some()
        return "" if self.there_is else self.why_none

    def measure_some(self, *, keep_reserve: bool = False) -> None:
        """Measure some runs and the disk, in bounded time. Only one thread may call this at a time.

        Args:
            keep_reserve: Make the reserve if it is missing and there is space for it.
        """
        try:
            self._measure_some_runs()
            usage = shutil.disk_usage(self._path)
            disk = usage.total
            if keep_reserve:
                self._refused = not self._reserve.keep(self.used_bytes, usage.free, disk)
            free = shutil.disk_usage(self._path).free
        except OSError as error:
            _logger.warning("the size of spool %s cannot be measured: %s", self._path, error)
            return
        least = least_bytes(disk)
        full = self._refused or free < (least if self._reserve.size() >= least else 2 * least)
        self._free_enough = free >= self._min_free_bytes and not full
        if full:
            self._why_not_free = f"its disk is full ({free / 1e3:.0f} kB free)"
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

    def _measure_some_runs(self) -> None:
        now, changed_at = time.monotonic(), self._path.stat().st_mtime_ns
        if changed_at != self._changed_at:
            self._changed_at, self._list_until = changed_at, now + COARSE_S
        if now < self._list_until:
            self._names = self._listed()
            for gone in self._sizes.keys() - self._names:
                del self._sizes[gone]
        due = {self.grown.popleft() for _ in range(len(self.grown))} & self._names
        due.update(islice(self._sizes, KNOWN_PER_LOOK))
        new = self._names - self._sizes.keys() - due
        due.update(islice(new, NEW_PER_LOOK))
        for name in due:
            self._sizes[name] = self._size(name)
            self._sizes.move_to_end(name)
        self.behind = len(new) > NEW_PER_LOOK
        self.used_bytes = sum(self._sizes.values())

    def _size(self, name: str) -> int:
        try:
            with os.scandir(os.path.join(self._path, name)) as entries:  # noqa: PTH118 - a tenth of the price
                return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
        except FileNotFoundError:  # the run was finished meanwhile
            return 0


# Network file systems: their locks and syncs are only as good as the network's.
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "afpfs", "lustre", "gpfs", "beegfs", "ceph", "9p",
     "fuse.sshfs", "fuse.glusterfs", "webdav", "davfs"}
)  # fmt: skip


def network_file_system(path: Path) -> str | None:
    """Return the kind of network file system that `path` is on, or None if it is on a local one."""
    import psutil  # `Spool` has imported it, which takes long, and a session without a spool does not need it

    here = path.resolve()
    best = ("", "", "")
    for partition in psutil.disk_partitions(all=True):
        mount = Path(partition.mountpoint)
        if (here == mount or mount in here.parents) and len(partition.mountpoint) >= len(best[0]):
            best = (partition.mountpoint, partition.fstype.lower(), partition.opts)
    _, kind, options = best
    return kind if kind in _NETWORK or "remote" in options.split(",") else None
