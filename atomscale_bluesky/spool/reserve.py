"""Disk space that the spool holds back for itself, so that a full disk is no dead end.

Nothing leaves a disk that takes no byte more: what is delivered is noted before it is sent, and what a person orders is
a line in a file. So one file of the spool holds nothing but space, and is removed when a ledger, an order, the history
or a run's stop finds no room. Their lines go in its place, runs leave, and with them comes the room to make it again.

It is filled with random bytes, since a file system may keep neither zeros nor holes. Removing it is one call that fails
harmlessly where another process was first, so processes need no lock to agree.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_logger = logging.getLogger(__name__)

NAME = "reserve.bin"
# How it begins: a file of that name that begins otherwise is somebody else's, and is left alone.
_BEGINNING = b"Space that atomscale-bluesky gives up when the disk is full.\n"
# Enough for the ledgers of a hundred runs; on a small disk an eighth of it.
LEAST_BYTES = 2**20
# A ledger grows with its run, to some hundredth of the journal, so there is more for more that waits …
SHARE_OF_SPOOL = 1 / 32
# … but not without end, and not all at once: the thread that makes it has other work.
MOST_BYTES = 64 * 2**20
STEP_BYTES = 4 * 2**20
# Where a user's share of the disk is used up, nothing but an attempt tells whether there is room again.
AGAIN_S = 10.0

_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_BLOCK_BYTES = 2**18

T = TypeVar("T")


def is_full(error: OSError) -> bool:
    """Return True if an error says that the disk, or the user's share of it, has no room."""
    return error.errno in _FULL


def with_room(step: Callable[[], T], make_room: Callable[[], object]) -> T:
    """Take a step, and if the disk is full take it again after room was made."""
    try:
        return step()
    except OSError as error:
        if not is_full(error):
            raise
    make_room()
    return step()


def least_bytes(disk_bytes: int) -> int:
    """Return how large the reserve is on a disk of this size, unless much waits."""
    return min(LEAST_BYTES, disk_bytes // 8)


class Reserve:
    """The reserve of the spool in a folder; belongs to one thread, but for `give_up`."""

    def __init__(self, spool: Path) -> None:
        self._path = spool / NAME
        self._not_before = 0.0  # monotonic
        self._impossible = False  # there is none, for another reason than that the disk is full

    def size(self) -> int:
        """Return how many bytes it holds; 0 where there is none."""
        try:
            found = self._path.lstat()
        except OSError:
            return 0
        return found.st_size if stat.S_ISREG(found.st_mode) else 0

    def keep(self, used_bytes: int, free_bytes: int, disk_bytes: int) -> bool:
        """Make it, or make it larger, where the disk has room; may write up to `STEP_BYTES`.

        Args:
            used_bytes: How large the spool is.
            free_bytes: How much is free on its disk.
            disk_bytes: How large that is.

        Returns:
            False if there is none because the disk is full. True also where there is none for another reason, such as
            a file of somebody else's in its place.
        """
        size, least = self.size(), least_bytes(disk_bytes)
        goal = max(least, min(MOST_BYTES, disk_bytes // 8, int(used_bytes * SHARE_OF_SPOOL)))
        if self._impossible:
            return True
        if size < least:
            # Twice as much has to fit: what was just given up must not come back at the price of what it was for.
            if free_bytes + size < 2 * least or time.monotonic() < self._not_before:
                return False
            return self._write(size, 2 * least, least)
        if size < goal and free_bytes >= 2 * goal:
            self._write(size, min(goal, size + STEP_BYTES), min(goal, size + STEP_BYTES))
        return True

    def give_up(self) -> None:
        """Remove it, for what has to be written now; may be called by any thread."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | _FLAGS)
        except OSError:  # there is none, or it is no file
            return
        try:
            ours = os.read(descriptor, len(_BEGINNING)) == _BEGINNING
        except OSError:
            ours = False
        finally:
            os.close(descriptor)
        if ours:
            with contextlib.suppress(OSError):
                self._path.unlink()
                _logger.warning(
                    "spool %s: its disk is full; the spool's reserve is given up, so that what is kept can leave; free "
                    "some space", self._path.parent,
                )  # fmt: skip

    def _write(self, known: int, until: int, size: int) -> bool:
        """Write it on up to `until`, and cut it to `size`; False, and as it was, if the disk has no room for that."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        except OSError as error:
            return not is_full(error)
        full = False
        try:
            known = min(known, os.lseek(descriptor, 0, os.SEEK_END))
            os.lseek(descriptor, 0, os.SEEK_SET)
            if known and os.read(descriptor, len(_BEGINNING)) != _BEGINNING:
                return True  # not ours
            os.lseek(descriptor, known, os.SEEK_SET)
            try:
                _fill(descriptor, known, until)
            except OSError as error:
                size, full = known, is_full(error)
                self._impossible = not full
                self._not_before = time.monotonic() + AGAIN_S
            os.ftruncate(descriptor, size)
        except OSError as error:
            _logger.debug("%s cannot be written: %s", self._path, error)
            self._impossible = True
            return True
        finally:
            os.close(descriptor)
        if not size:
            with contextlib.suppress(OSError):
                self._path.unlink()
        return not full


def _fill(descriptor: int, at: int, until: int) -> None:
    if at == 0:
        at += os.write(descriptor, _BEGINNING)
    while at < until:
        at += os.write(descriptor, os.urandom(min(_BLOCK_BYTES, until - at)))
