"""The runs that found no disk space from their start to their stop: one line each in `not-kept.jsonl`.

The package counts what it could not keep. So such a run is noted as soon as the disk takes a line again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from .history import History

_logger = logging.getLogger(__name__)

# About a thousand runs.
FILE, FILE_BYTES = "not-kept.jsonl", 2**18
# How many of them are kept in memory while the disk has no space even for their lines.
MAX_IN_MEMORY = 1000


class NotKept(msgspec.Struct, frozen=True):
    """A run that found no disk space from its start to its stop, so the spool has nothing of it."""

    run_uid: str
    label: str
    started: float  # Unix seconds
    ended: float  # Unix seconds
    readings: int  # how many readings were left out
    reason: str


class RunsNotKept:
    """The last thousand or so of these runs, of all processes. Several threads may use it at once.

    Args:
        spool: The spool's folder.
        make_room: Called when the disk is full, before a failed write is tried again.
    """

    def __init__(self, spool: Path, *, make_room: Callable[[], object]) -> None:
        self._file = History(spool, name=FILE, max_bytes=FILE_BYTES, make_room=make_room)
        self._unwritten: deque[NotKept] = deque(maxlen=MAX_IN_MEMORY)
        self._guard = threading.RLock()  # held for memory operations only, and re-entrant for signal handlers

    def add(self, run: NotKept) -> None:
        """Note a run, in memory until `write`."""
        with self._guard:
            self._unwritten.append(run)

    def runs(self) -> list[NotKept]:
        """Return the runs, oldest first. Reads the file."""
        with self._guard:
            here = list(self._unwritten)
        written = [msgspec.convert(entry, NotKept) for entry in self._file.entries()]
        return list(dict.fromkeys([*written, *here]))

    def write(self) -> None:
        """Write the runs that are only in memory, as far as the disk takes them."""
        try:
            while self._unwritten:
                run = self._unwritten[0]
                self._file.add(msgspec.to_builtins(run))
                with self._guard:
                    if self._unwritten and self._unwritten[0] is run:
                        self._unwritten.popleft()
        except OSError as error:  # a SpoolError is one too
            _logger.debug("%d runs that were not kept could not be noted: %s", len(self._unwritten), error)

    def after_fork_in_child(self) -> None:
        """Forget what is only in memory, in a forked child: it belongs to the parent."""
        self._unwritten.clear()
        self._guard = threading.RLock()
        self._file.after_fork_in_child()
