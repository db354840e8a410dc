"""Finds out which runs of the spool a living process writes, whichever process that is."""

from __future__ import annotations

import time
from pathlib import Path

from .locks import WRITER_LOCK, is_held
from .own_files import OUT_OF_RESOURCES
from .run_reader import has_stop, read_header
from .session_lock import is_session_alive

# A run that has ended is written no more: what comes later of it has a folder of its own. So thousands of them are not
# read each second. They are read again after this time, since a run looks ended while its first line is being written.
REMEMBERED_S = 60.0


def writer_alive(spool: Path, folder: Path, *, guess: bool = True) -> bool:
    """Return True if a process has the run open for writing. Return False also if its files cannot be read.

    Args:
        spool: The spool's folder.
        folder: The run's folder.
        guess: Return True if nothing can be found out for want of descriptors or of memory: the writer may be alive.

    Raises:
        OSError: Nothing can be found out, and `guess` is False.
    """
    if is_held(folder / WRITER_LOCK, guess=guess):
        return True
    try:
        header = read_header(folder)
        return header is not None and is_session_alive(spool, header.session) and not has_stop(folder)
    except OSError as error:  # a SpoolError is one: its lines cannot be decoded
        if error.errno in OUT_OF_RESOURCES and not guess:
            raise
        return error.errno in OUT_OF_RESOURCES


class WrittenRuns:
    """The runs of one spool that are being written. Used by one thread at a time."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._ended: set[str] = set()
        self._forget_at = 0.0  # monotonic

    def has(self, name: str) -> bool:
        """Return True if a living process writes the run in this folder, and its stop is not in the journal yet.

        Reads the disk, except for a run that had ended up to `REMEMBERED_S` ago.
        """
        now = time.monotonic()
        if now >= self._forget_at:
            self._ended, self._forget_at = set(), now + REMEMBERED_S
        if name in self._ended:
            return False
        if self._is_written(self._spool / name):
            return True
        self._ended.add(name)
        return False

    def _is_written(self, folder: Path) -> bool:
        try:
            return writer_alive(self._spool, folder) and not has_stop(folder)  # its lock is free a little later
        except OSError as error:
            return error.errno in OUT_OF_RESOURCES
