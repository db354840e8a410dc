"""How much room a spool has: its size limit, its disk's free-space floor, and whether the disk is this machine's."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import OrderedDict, deque
from itertools import islice
from pathlib import Path

import psutil

from .own_files import is_run_name
from .reserve import Reserve, least_bytes

_logger = logging.getLogger(__name__)

# How often the disk is asked for the spool's size and its free space; in between our own writing is counted.
ROOM_INTERVAL_S = 1.0
BEHIND_INTERVAL_S = 0.05  # while there are runs that were not measured yet
# How many runs one look measures: of those that were not measured yet, and again of those that were. So it takes as
# long for twenty thousand runs as for a few hundred, and the size of each is known anew after some minutes at most.
NEW_PER_LOOK, KNOWN_PER_LOOK = 500, 64
# A folder's time of change may be as coarse as 2 s: what changes within that time of a listing is listed again.
COARSE_S = 3.0


class Room:
    """The room of the spool in a folder.

    `used_bytes` is what the folder held at the last look, and what was written since then, which whoever writes adds.
    Which runs were written to is told through `grown`: these are measured at each look, and the others in turns.
    """

    def __init__(self, path: Path, *, max_bytes: int, min_free_bytes: int) -> None:
        self.used_bytes = 0
        self.why_none = ""
        self.grown: deque[str] = deque()  # names of runs' folders; from any thread
        self.behind = False  # there are runs that were not measured yet
        self._path = path
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._free_enough = True
        self._refused = False  # the disk took no more, and the reserve was not made again since
        self._reserve = Reserve(path)
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by folder's name, the one measured longest ago first
        self._names: set[str] = set()
        self._changed_at = -1
        self._list_until = float("-inf")

    @property
    def there_is(self) -> bool:
        """Whether new readings can be kept; costs nothing to ask."""
        return self._free_enough and self.used_bytes < self._max_bytes

    def disk_is_full(self) -> None:
        """The disk took no more: new readings are left out from now on, until a look finds room again."""
        self._refused = True
        self._free_enough = False
        self.why_none = "its disk is full"

    def give_up_reserve(self) -> None:
        """Make room for what delivery and people have to write, on a disk that is full."""
        self.disk_is_full()
        self._reserve.give_up()

    def measure(self) -> tuple[int, int]:
        """How large the spool is, and how much is free on its disk, in bytes. Looks at every file.

        Raises:
            OSError: The folder cannot be read.
        """
        return sum(self._size(name) for name in self._listed()), shutil.disk_usage(self._path).free

    def look(self, *, keep_reserve: bool = False) -> None:
        """Ask the disk, for a bounded time. One thread at a time.

        Args:
            keep_reserve: Make the reserve where it is missing and there is room for it.
        """
        try:
            self._look_at_some()
            usage = shutil.disk_usage(self._path)
            disk = usage.total
            if keep_reserve:
                self._refused = not self._reserve.keep(self.used_bytes, usage.free, disk)
            free = shutil.disk_usage(self._path).free
        except OSError as error:
            _logger.warning("spool %s cannot be measured: %s", self._path, error)
            return
        least = least_bytes(disk)
        full = self._refused or free < (least if self._reserve.size() >= least else 2 * least)
        self._free_enough = free >= self._min_free_bytes and not full
        if full:
            self.why_none = f"its disk is full ({free / 1e3:.0f} kB free)"
        elif not self._free_enough:
            self.why_none = (
                f"its disk has {free / 1e6:.0f} MB free, and {self._min_free_bytes / 1e6:.0f} MB are to stay free "
                f"(spool_min_free_bytes)"
            )
        else:
            self.why_none = f"it holds {self.used_bytes / 1e6:.0f} of {self._max_bytes / 1e6:.0f} MB (spool_max_bytes)"

    def _listed(self) -> set[str]:
        with os.scandir(self._path) as entries:
            return {entry.name for entry in entries if is_run_name(entry.name) and entry.is_dir(follow_symlinks=False)}

    def _look_at_some(self) -> None:
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
        except FileNotFoundError:  # finished meanwhile
            return 0


# File systems of other machines: their locks and syncs are what the network makes of them.
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "afpfs", "lustre", "gpfs", "beegfs", "ceph", "9p",
     "fuse.sshfs", "fuse.glusterfs", "webdav", "davfs"}
)  # fmt: skip


def network_file_system(path: Path) -> str | None:
    """The kind of file system if `path` is on one of another machine, None if it is on this one."""
    here = path.resolve()
    best = ("", "", "")
    for partition in psutil.disk_partitions(all=True):
        mount = Path(partition.mountpoint)
        if (here == mount or mount in here.parents) and len(partition.mountpoint) >= len(best[0]):
            best = (partition.mountpoint, partition.fstype.lower(), partition.opts)
    _, kind, options = best
    return kind if kind in _NETWORK or "remote" in options.split(",") else None
