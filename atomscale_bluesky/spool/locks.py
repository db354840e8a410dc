"""Who owns what of a run, through locks of the operating system: they end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from .own_files import LOCK_SUFFIX, open_own, refuse_link, run_files
from .reserve import with_room

WRITER_LOCK = "writer.lock"
UPLOADER_LOCK = "uploader.lock"
# The lock of a session that writes more runs than it has locks for: one in the spool stands for all of those.
SESSION_LOCK = "writers-{}.lock"
_SESSION_LOCK = re.compile(r"writers-[0-9a-f]{16}\.lock")

# Nobody owns a run that is just being made, but others look whether somebody does, and hold its lock meanwhile.
A_LOOK_S = 0.5


class Bell:
    """Wakes a thread that waits. Unlike an `Event` it may be rung by a signal's handler, whatever that interrupts."""

    def __init__(self) -> None:
        self._rung: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """Have the thread go on; does not wait."""
        self._rung.put(None)

    def wait(self, timeout_s: float) -> None:
        """Wait until it was rung since the last call, for `timeout_s` at most."""
        with suppress(queue.Empty):
            self._rung.get(timeout=timeout_s)
            while True:
                self._rung.get_nowait()


class RunLock:
    """One owner's claim on a run, held through the operating system while the owner lives."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._path = path
        self._lock = FileLock(path, mode=0o600, thread_local=False)

    def acquire(self, *, patience_s: float = 0.0) -> bool:
        """Take the lock if it is free, or becomes free within this time; also False while its folder is removed.

        Raises:
            SpoolError: Its file is a link.
        """
        from filelock import Timeout

        refuse_link(self._path)
        try:
            self._lock.acquire(timeout=patience_s, poll_interval=0.001)
        except (Timeout, FileNotFoundError, FileExistsError):
            return False
        return True

    def release(self) -> None:
        """Give it back; idempotent."""
        self._lock.release()


@contextlib.contextmanager
def locked(path: Path, make_room: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold a lock for the few lines that several processes may want to write; waits for it.

    Args:
        path: The lock's file.
        make_room: Called where the disk has no room for that file, before it is tried again.

    Raises:
        SpoolError: Its file is a link.
    """
    from filelock import FileLock

    refuse_link(path)
    lock = FileLock(path, mode=0o600)
    with with_room(lock.acquire, make_room or (lambda: None)):
        yield


def session_lives(spool: Path, name: str) -> bool:
    """Return True if a living process has the session lock of this name; a file's text may be no such name."""
    return bool(_SESSION_LOCK.fullmatch(name)) and is_held(spool / name)


def session_locks(spool: Path) -> list[Path]:
    """Return the session locks in a spool, also those of processes that have ended."""
    return [path for path in spool.glob(SESSION_LOCK.format("*")) if _SESSION_LOCK.fullmatch(path.name)]


def is_held(path: Path) -> bool:
    """Return True if a living process has the lock of this file; makes no file, and changes none."""
    if sys.platform != "win32":
        import fcntl

        try:
            descriptor = open_own(path, os.O_RDONLY)
        except OSError:  # there is none; or what is there is refused, and says so, when it is to be taken
            return False
        try:
            # Shared, so that two who look do not take each other for an owner.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}:
                return True
        else:
            return False
        finally:
            os.close(descriptor)
    # Windows, or a file system without such locks, where filelock has another way.
    if not path.exists():
        return False
    lock = RunLock(path)
    if lock.acquire():
        lock.release()
        return False
    return True


def remove_folder(folder: Path, *held: RunLock) -> list[str]:
    """Remove a run's files and its folder, and give its locks back; anything else in it stays, and so the folder.

    Args:
        folder: The run's.
        held: Its locks, all of them ours: what is removed under them is nobody's.

    Returns:
        The names of what the package did not make.
    """
    foreign: list[str] = []
    try:
        with contextlib.suppress(FileNotFoundError):
            own, foreign = run_files(folder)
            own.sort(key=lambda name: name.endswith(LOCK_SUFFIX))
            # Windows does not remove a file that is open.
            _remove(folder, [name for name in own if os.name != "nt" or not name.endswith(LOCK_SUFFIX)])
    finally:
        for lock in held:
            lock.release()
    with contextlib.suppress(OSError):  # not empty; or an earlier failure, which a later look at the folder mends
        if os.name == "nt":
            _remove(folder, [name for name in run_files(folder)[0] if name.endswith(LOCK_SUFFIX)])
        folder.rmdir()
    return foreign


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
