"""Disk space that the spool holds back for itself, so that a full disk does not block delivery.

On a full disk nothing could be delivered: each delivery is noted before it is sent, and an order is a line in a file.
So one file of the spool holds nothing but space. It is removed when a ledger, an order, the history, the list of an
interrupted run's events or a run's stop finds no disk space, and these use the space that it leaves. When delivered
runs have left the spool, there is space to make the reserve again.

The file is filled with random bytes, since a file system may store neither zeros nor holes. Removing it is one call,
which fails harmlessly if another process was first, so processes need no lock to agree.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import SpoolError
from .own_files import open_own
from .sync import sync_file

_logger = logging.getLogger(__name__)

NAME = "reserve.bin"
# How the file begins. A file of that name with another beginning is not ours and is left alone.
_BEGINNING = b"Space that atomscale-bluesky gives up when the disk is full.\n"
# Enough for the ledgers of a hundred runs. On a small disk the reserve is an eighth of the disk instead.
MIN_BYTES = 2**20
# A ledger grows to about a hundredth of its run's journal, so the reserve grows with the waiting data …
SHARE_OF_SPOOL = 1 / 32
# … but only up to a bound, and in steps: the thread that writes it has other work.
MAX_BYTES = 64 * 2**20
STEP_BYTES = 4 * 2**20
# Where the user's quota is used up, only an attempt shows whether there is space again. Wait this long before the next.
AGAIN_S = 10.0

# A file that was not finished when its process was killed. One that is younger than this may still be written.
_UNFINISHED = re.compile(rf"\.{re.escape(NAME)}-[0-9a-f]{{8}}")
UNFINISHED_S = 60.0

_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
_BLOCK_BYTES = 2**18

T = TypeVar("T")


def is_full(error: OSError) -> bool:
    """Return True if an error says that the disk, or the user's quota on it, is full."""
    return error.errno in _FULL


def is_limit(error: OSError) -> bool:
    """Return True if a file would become larger than the user's or the file system's limit for one file."""
    return error.errno == errno.EFBIG


def with_room(step: Callable[[], T], make_room: Callable[[], object]) -> T:
    """Call `step`. If the disk is full, call `make_room` and then `step` again."""
    try:
        return step()
    except OSError as error:
        if not is_full(error):
            raise
    make_room()
    return step()


def min_bytes(disk_bytes: int) -> int:
    """Return how large the reserve is on a disk of this size while little data waits."""
    return min(MIN_BYTES, disk_bytes // 8)


class Reserve:
    """The reserve of one spool. It belongs to one thread, except `release`."""

    def __init__(self, spool: Path) -> None:
        self._path = spool / NAME
        self._not_before = 0.0  # monotonic
        self._looked_for_unfinished = False
        self._checked = False  # the file that is there is a reserve
        self._impossible = False  # it cannot be made, though the disk is not full

    def size(self) -> int:
        """Return the reserve's size in bytes, 0 if there is none."""
        try:
            found = self._path.lstat()
        except OSError:
            return 0
        return found.st_size if stat.S_ISREG(found.st_mode) else 0

    def maintain(self, used_bytes: int, free_bytes: int, disk_bytes: int) -> bool:
        """Make the reserve, or make it larger, if the disk has space. May write up to `STEP_BYTES`.

        Args:
            used_bytes: The spool's size.
            free_bytes: The free space on its disk.
            disk_bytes: The disk's size.

        Returns:
            False if there is no reserve because the disk is full. True also if there is none for another reason, such
            as a foreign file in its place.
        """
        size, minimum = self.size(), min_bytes(disk_bytes)
        goal = max(minimum, min(MAX_BYTES, disk_bytes // 8, int(used_bytes * SHARE_OF_SPOOL)))
        if not self._looked_for_unfinished:
            self._looked_for_unfinished = True
            self._remove_unfinished()
        if self._impossible:
            return True
        if os.path.lexists(self._path):
            if (self._checked or self._is_ours()) and size < goal and free_bytes >= 2 * goal:
                self._grow(size, min(goal, size + STEP_BYTES))
            return True
        # Twice its size has to fit: the reserve just released must not take back the space that it was released for.
        if free_bytes < 2 * minimum or time.monotonic() < self._not_before:
            return False
        return self._make(2 * minimum, minimum)

    def release(self) -> None:
        """Remove the reserve for lines that must be written now. Any thread may call this."""
        try:
            descriptor = open_own(self._path, os.O_RDONLY)
        except OSError:  # it is missing, or is no file
            return
        try:
            ours = _begins_as_ours(descriptor)
        finally:
            os.close(descriptor)
        if ours:
            with contextlib.suppress(OSError):
                self._path.unlink()
                _logger.warning(
                    "spool %s: its disk is full; the spool's reserve was released, so that kept readings can be "
                    "delivered; free some space", self._path.parent,
                )  # fmt: skip

    def _remove_unfinished(self) -> None:
        """Remove the files that killed processes were making."""
        for path in self._path.parent.glob(f".{NAME}-*"):
            with contextlib.suppress(OSError, SpoolError):
                if not _UNFINISHED.fullmatch(path.name) or time.time() - path.lstat().st_mtime < UNFINISHED_S:
                    continue
                descriptor = open_own(path, os.O_RDONLY)
                try:
                    ours = _begins_as_ours(descriptor)
                finally:
                    os.close(descriptor)
                if ours:
                    path.unlink()

    def _is_ours(self) -> bool:
        """Return True if the file in the reserve's place is one. If it is not, log that once, and make none.

        Return False also if that cannot be found out now: it was released just now, or no file can be opened.
        """
        ours = False
        try:
            descriptor = open_own(self._path, os.O_RDONLY)
        except SpoolError:  # it is a link, or another user's
            pass
        except OSError:
            return False
        else:
            try:
                ours = _begins_as_ours(descriptor)
            finally:
                os.close(descriptor)
        self._checked, self._impossible = ours, not ours
        if not ours:
            _logger.warning(
                "%s is not the file that this package makes there, so it is left alone, and the spool has no reserve: "
                "on a full disk nothing could be delivered; if nobody needs the file, remove it", self._path,
            )  # fmt: skip
        return ours

    def _make(self, write_to: int, final_bytes: int) -> bool:
        """Make the file: write up to `write_to` and cut it to `final_bytes`. Return False if the disk is full.

        It gets its name when its content is on the disk. So after a power cut it is whole, or missing.
        """
        fresh = self._path.with_name(f".{NAME}-{secrets.token_hex(4)}")
        try:
            descriptor = open_own(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                _fill(descriptor, 0, write_to)
                os.ftruncate(descriptor, final_bytes)
                sync_file(descriptor)
            finally:
                os.close(descriptor)
            fresh.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            self._note_failure(error)
            return not is_full(error)
        self._checked = True
        return True

    def _grow(self, present_bytes: int, write_to: int) -> None:
        """Make the file larger. It keeps its size if the disk is full."""
        try:
            descriptor = open_own(self._path, os.O_RDWR)
        except OSError:  # released just now
            return
        try:
            os.lseek(descriptor, present_bytes, os.SEEK_SET)
            try:
                _fill(descriptor, present_bytes, write_to)
            except OSError as error:
                self._note_failure(error)
                os.ftruncate(descriptor, present_bytes)
        except OSError as error:
            self._note_failure(error)
        finally:
            os.close(descriptor)

    def _note_failure(self, error: OSError) -> None:
        """Try again later if the disk is full, else never."""
        self._not_before = time.monotonic() + AGAIN_S
        if not is_full(error):
            _logger.debug("%s cannot be written: %s", self._path, error)
            self._impossible = True


def _begins_as_ours(descriptor: int) -> bool:
    try:
        return os.read(descriptor, len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def _fill(descriptor: int, at: int, until: int) -> None:
    if at == 0:
        at += os.write(descriptor, _BEGINNING)
    while at < until:
        at += os.write(descriptor, os.urandom(min(_BLOCK_BYTES, until - at)))
