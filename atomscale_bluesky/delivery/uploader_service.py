"""An uploader in a process of its own: started by a callback, or run by the site (`atomscale-bluesky upload --follow`).

It is the callback's uploader without a callback: it polls the journals that other processes write into the spool,
completes the runs of processes that have died, and delivers. One process at a time serves a spool and an endpoint. It
holds a lock of the operating system, and a second process for the same spool and endpoint ends at once. Each run has
its own lock too, so even two processes could not touch the same run.

A process that a callback has started ends by itself, `idle_s` after there is nothing left to do and the callback's
process has ended. A process whose API key is refused for a while ends too, so that another can start with a right key.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import msgspec

from ..settings import Settings
from ..spool.locks import RunLock, SignalEvent, is_held, service_lock
from ..spool.own_files import open_own
from ..spool.spool import Spool
from .tracing import set_up_by_environment
from .uploader import Uploader

_logger = logging.getLogger(__name__)

# Exit codes; 75 and 77 have these meanings in BSD's sysexits.h.
STOPPED, FAILED, ALREADY_SERVED, KEY_REFUSED = 0, 1, 75, 77

# A refused key is tried for this time. After that another process may start with another key.
KEY_PATIENCE_S = 30.0
POLL_S = 0.2
# A process that checks whether the lock is free holds it for a moment.
LOCK_ATTEMPTS, LOCK_PAUSE_S = 10, 0.03

LOG = "uploader.log"
LOG_BYTES = 1_000_000
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class Assignment(msgspec.Struct, frozen=True):
    """What a process is to do. The callback that starts it writes this into its standard input."""

    settings: Settings
    idle_s: float


def serve(
    settings: Settings,
    *,
    stopping: threading.Event,
    needed: Callable[[], bool] = lambda: True,
    idle_s: float = 0.0,
) -> int:
    """Deliver the spool's runs until `stopping` is set. Return the exit code.

    Ends by itself when nothing was left to do for `idle_s` and it is no longer `needed`.

    Raises:
        SpoolError: The spool cannot be used.
    """
    spool = Spool(settings.locate_spool(), min_free_bytes=settings.spool_min_free_bytes)
    lock = RunLock(service_lock_path(settings))
    if not _acquired(lock, stopping):
        _logger.info("spool %s is served by another process already", spool.path)
        return ALREADY_SERVED
    uploader = Uploader(spool, settings, follow=True)
    uploader.start()
    _logger.info("process %d serves spool %s, to %s", os.getpid(), spool.path, settings.endpoint)
    code = STOPPED
    try:
        while not stopping.wait(POLL_S):
            if not uploader.running:
                code = FAILED  # by what not even its loop could go on after; its traceback is on standard error
                break
            if not service_lock_path(settings).exists():
                _logger.error("spool %s was removed, so this process ends", spool.path)
                code = FAILED
                break
            if uploader.key_refused_s > KEY_PATIENCE_S:
                _logger.warning("the API key is refused, so this process ends; another can start with a key that works")
                code = KEY_REFUSED
                break
            idle = uploader.idle_since
            if idle is not None and time.monotonic() - idle >= idle_s and not needed():
                break
    finally:
        uploader.stop()
        lock.release()
    _logger.info("process %d ends", os.getpid())
    return code


def service_lock_path(settings: Settings) -> Path:
    """Return the lock of the process that serves the settings' spool and endpoint."""
    return settings.spool_path / service_lock(settings.endpoint)


def is_served(settings: Settings) -> bool:
    """Return True if a living process serves the settings' spool and endpoint."""
    return is_held(service_lock_path(settings))


class _PrivateLog(RotatingFileHandler):
    """A log file that only its owner can read, whatever the umask. Never follows a link."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=open_own)

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - logging's name
        """Return True if a new file is to be begun. Never if the older one, which is removed then, is not a file."""
        older = f"{self.baseFilename}.1"
        is_a_file = os.path.isfile(older) and not os.path.islink(older)
        return (is_a_file or not os.path.lexists(older)) and bool(super().shouldRollover(record))


def main() -> int:
    """Run the process that a callback starts. Its input is one line, and ends with the process of the callback."""
    with open(0, "rb", closefd=False) as given:  # noqa: SIM115, PTH123 - a descriptor
        assignment = msgspec.json.decode(given.readline(), type=Assignment)
    handler = _PrivateLog(assignment.settings.spool_path / LOG, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logger = logging.getLogger("atomscale_bluesky")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    orphaned = threading.Event()
    stopping, _ = stop_on_signals()

    def wait_for_the_end_of_input() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 64):
                pass
        orphaned.set()

    threading.Thread(target=wait_for_the_end_of_input, name="orphaned", daemon=True).start()
    set_up_by_environment(handler)
    try:
        return serve(
            assignment.settings,
            stopping=stopping,
            needed=lambda: not orphaned.is_set(),
            idle_s=assignment.idle_s,
        )
    except Exception:
        _logger.exception("the uploader's process has failed")
        return FAILED


def stop_on_signals() -> tuple[threading.Event, Callable[[], None]]:
    """Return an event that SIGTERM, Ctrl-C and Ctrl-Break set, and a function that restores the handlers."""
    stopping = SignalEvent()
    before: dict[signal.Signals, Any] = {}
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            number = getattr(signal, name)
            before[number] = signal.signal(number, lambda _number, _frame: stopping.set())

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return stopping, restore


def _acquired(lock: RunLock, stopping: threading.Event) -> bool:
    for _ in range(LOCK_ATTEMPTS):
        if lock.acquire():
            return True
        if stopping.wait(LOCK_PAUSE_S):
            return False
    return False


if __name__ == "__main__":
    sys.exit(main())
