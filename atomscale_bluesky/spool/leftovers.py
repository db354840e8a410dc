"""Folders of runs whose writer or machine died at their start: they have no header, and are removed by name."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from ..errors import SpoolError
from ..model.text import safe
from .ledger import is_delivered
from .locks import UPLOADER_LOCK, WRITER_LOCK, RunLock, is_held, remove_folder
from .own_files import is_run_name, run_files
from .run_reader import LEDGER, has_lines, read_header, was_synced

_logger = logging.getLogger(__name__)

# A run's folder that has no header after this long never gets one: the process that was making it has died.
BEGINNING_S = 60.0


def is_beginning(folder: Path) -> bool:
    """Return True if a run's folder without a header may still get one."""
    try:
        return holds_a_run(folder) and time.time() - folder.stat().st_mtime <= BEGINNING_S
    except OSError:  # removed meanwhile
        return False


def holds_a_run(folder: Path) -> bool:
    """Return False for the folder of a finished run that remains because it holds files of another origin."""
    try:
        own, foreign = run_files(folder)
    except FileNotFoundError:
        return False
    return bool(own) or not foreign


def remove_leftover(folder: Path, logged: set[Path]) -> None:
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
        if has_lines(folder) and folder not in logged:
            logged.add(folder)
            _logger.warning(
                "%s holds the rest of a run whose beginning a power cut took; %s",
                folder, f"it stays, because it also holds {safe(', '.join(foreign))}" if foreign else "it is removed",
            )  # fmt: skip
        if age_s > BEGINNING_S and not foreign:
            _remove_unless_owned(folder)
    except FileNotFoundError:  # removed meanwhile
        return


def _remove_unless_owned(folder: Path) -> None:
    """Remove a run's folder, unless a process writes or delivers the run, or has begun to."""
    locks = [RunLock(folder / name) for name in (WRITER_LOCK, UPLOADER_LOCK)]
    try:
        if all(lock.acquire() for lock in locks) and read_header(folder) is None:
            remove_folder(folder, *locks)
    finally:
        for lock in locks:
            lock.release()
