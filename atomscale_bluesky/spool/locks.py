"""Who owns which part of a run, by locks of the operating system: a lock ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import SpoolError
from .file_lock import FileLock
from .own_files import LOCK_SUFFIX, OUT_OF_RESOURCES, open_own, run_files
from .reserve import with_room

WRITER_LOCK = "writer.lock"
UPLOADER_LOCK = "uploader.lock"

# No process owns a run that is just being made, but other processes test its lock and hold it for that moment.
LOCK_TEST_S = 0.5
# How often a lock is tried while another process has it.
ATTEMPT_S = 0.001
# A lock for a few lines is held for as long as writing and syncing them takes. Who holds it longer was stopped, or its
# disk does not answer.
LOCK_WAIT_S = 5.0


class Bell:
    """Wakes a waiting thread. Unlike an `Event`, a signal handler may ring it, whatever code the signal interrupts."""

    def __init__(self) -> None:
        self._rung: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """Wake the waiting thread; returns at once."""
        self._rung.put(None)

    def wait(self, timeout_s: float) -> None:
        """Wait until it is rung, or was rung since the last call, for up to `timeout_s`."""
        with suppress(queue.Empty):
            self._rung.get(timeout=timeout_s)
            while True:
                self._rung.get_nowait()


class SignalEvent(threading.Event):
    """An event that a signal handler may set, whatever code the signal interrupts.

    Setting a plain one waits for a lock. The code that the handler interrupts may hold it, and then waits for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._was_set = False
        self._rung: queue.SimpleQueue[None] = queue.SimpleQueue()

    def is_set(self) -> bool:
        """Return True if it was set."""
        return self._was_set

    def set(self) -> None:
        """Set it, and wake all threads that wait; returns at once."""
        self._was_set = True
        self._rung.put(None)

    def clear(self) -> None:
        """Refuse: it is set once, for good."""
        raise NotImplementedError("an event for signals is set once")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, for up to `timeout` seconds. Return True if it is set."""
        if not self._was_set:
            with suppress(queue.Empty):
                self._rung.get(timeout=None if timeout is None else max(0.0, timeout))
                self._rung.put(None)  # for the next thread that waits
        return self._was_set


class RunLock:
    """One owner's claim on a run, held by the operating system while the owner's process lives."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self, *, patience_s: float = 0.0) -> bool:
        """Take the lock if it is or becomes free within `patience_s`. Return True if it was taken.

        Return False also if its folder is being removed.

        Raises:
            SpoolError: The lock's file is a link, or not ours.
        """
        end = time.monotonic() + patience_s
        try:
            while not self._lock.acquire():
                if time.monotonic() >= end:
                    return False
                time.sleep(ATTEMPT_S)
        except (FileNotFoundError, FileExistsError):
            return False
        return True

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        self._lock.release()


@contextlib.contextmanager
def locked(path: Path, make_room: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold a lock while writing a few lines that other processes may want to write too. Waits up to `LOCK_WAIT_S`.

    Args:
        path: The lock's file.
        make_room: Called when the disk has no space for that file, before it is tried again.

    Raises:
        SpoolError: The lock's file is a link, or not ours; or another process held the lock all the time.
    """
    lock = FileLock(path)
    end = time.monotonic() + LOCK_WAIT_S
    try:
        while not with_room(lock.acquire, make_room or (lambda: None)):
            if time.monotonic() >= end:
                raise SpoolError(
                    f"another process has held the lock {path} for {LOCK_WAIT_S:g} s; if that process is suspended "
                    f"(Ctrl-Z), resume or end it"
                )
            time.sleep(ATTEMPT_S)
        yield
    finally:
        lock.release()


def service_lock(endpoint: str) -> str:
    """Return the name of the lock that the process holds which serves a spool for this endpoint."""
    return f"uploader-{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}.lock"


def is_held(path: Path, *, guess: bool = True) -> bool:
    """Return True if a living process has the lock of this file. Makes no file and changes none.

    Args:
        path: The lock's file.
        guess: Return True if nothing can be found out for want of descriptors or of memory: its owner may be alive.

    Raises:
        OSError: Nothing can be found out, and `guess` is False.
    """
    if sys.platform != "win32":
        import fcntl

        try:
            descriptor = open_own(path, os.O_RDONLY)
        except OSError as error:  # it is missing; or it is refused, which is reported when it is taken
            if error.errno in OUT_OF_RESOURCES and not guess:
                raise
            return error.errno in OUT_OF_RESOURCES
        try:
            # A shared lock, so that two processes that test the lock do not take each other for its owner.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}:
                return True
        else:
            # Not only by closing it: a child that another thread forks just now has a copy that stays open.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            return False
        finally:
            os.close(descriptor)
    # Windows, or a file system without such locks.
    if not path.exists():
        return False
    lock = RunLock(path)
    if lock.acquire():
        lock.release()
        return False
    return True


def remove_folder(folder: Path, *held: RunLock) -> list[str]:
    """Remove a run's files and folder, and release its locks. Other files stay, and with them the folder.

    Args:
        folder: The run's folder.
        held: The run's locks, all held by us, so that no other process uses what is removed.

    Returns:
        The names of files that the package did not make.
    """
    foreign: list[str] = []
    try:
        with contextlib.suppress(FileNotFoundError):
            own, foreign = run_files(folder)
            own.sort(key=lambda name: name.endswith(LOCK_SUFFIX))
            # Windows cannot remove a file that is open.
            _remove(folder, [name for name in own if os.name != "nt" or not name.endswith(LOCK_SUFFIX)])
    finally:
        for lock in held:
            lock.release()
    with contextlib.suppress(OSError):  # not empty; or an earlier failure, which a later check of the folder mends
        if os.name == "nt":
            _remove(folder, [name for name in run_files(folder)[0] if name.endswith(LOCK_SUFFIX)])
        folder.rmdir()
    return foreign


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
