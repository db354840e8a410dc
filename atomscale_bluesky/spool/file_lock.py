"""An exclusive lock on a file, which the operating system holds while its process lives.

On Linux and macOS it is an `flock`. A signal handler may raise in the middle of any method, so each step leaves a state
from which the next call goes on, and nothing is shared between locks that an interruption could spoil for the others.
On Windows, and on a file system without `flock`, the library filelock has other ways.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Any

from .own_files import open_own, refuse_link

_HELD_BY_ANOTHER = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
_NO_FLOCK = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

# The open descriptors of this process. A forked child closes its copies: they would keep its parent's locks alive.
_descriptors: set[int] = set()
_hooked_in = False


class FileLock:
    """A lock that one thread at a time uses. It is released at the latest when the object or its process is gone."""

    # Until `__init__` has set them, which may be interrupted too.
    _process: int = -1
    _descriptor: int = -1

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._process = os.getpid()
        self._is_held = False
        self._filelock: Any = None  # filelock's, if there is no `flock`

    def acquire(self) -> bool:
        """Take the lock if it is free, or held by this object. Return True if it is held now. Does not wait.

        Raises:
            FileNotFoundError: Its folder is missing.
            SpoolError: Its file is a link, or not ours.
            OSError: Its file cannot be made.
        """
        self._forget_parents()
        if self._is_held:
            return True
        if sys.platform == "win32" or self._filelock is not None:
            return self._acquire_filelock()
        try:
            while _flock(self._open()):
                if self._file_has_its_name():
                    self._is_held = True
                    break
                self.release()  # its owner has just removed the file: another process may lock a new one of that name
        except OSError as error:
            self.release()
            if error.errno not in _NO_FLOCK:
                raise
            return self._acquire_filelock()
        if not self._is_held:
            self.release()
        return self._is_held

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        self._forget_parents()
        if self._filelock is not None:
            self._filelock.release()
        self._is_held = False
        if self._descriptor >= 0:
            _descriptors.discard(self._descriptor)
            _unlock(self._descriptor)
            # In this order: a descriptor that is closed twice may be another file's by then.
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __del__(self) -> None:
        """Release the lock of an owner that was interrupted before it had the object."""
        if self._process == os.getpid() and self._descriptor >= 0:
            self.release()

    def _forget_parents(self) -> None:
        if self._process != os.getpid():
            self._process, self._descriptor, self._is_held, self._filelock = os.getpid(), -1, False, None

    def _open(self) -> int:
        if self._descriptor < 0:
            _close_copies_in_children()
            self._descriptor = open_own(self._path, os.O_RDWR | os.O_CREAT)
        _descriptors.add(self._descriptor)  # again, if the first time was interrupted
        return self._descriptor

    def _file_has_its_name(self) -> bool:
        """Return True if the file that is locked still has its name."""
        try:
            named = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._descriptor))

    def _acquire_filelock(self) -> bool:
        from filelock import FileLock as Other
        from filelock import Timeout

        refuse_link(self._path)
        if self._filelock is None:
            self._filelock = Other(self._path, mode=0o600, thread_local=False)
        try:
            self._filelock.acquire(timeout=0)
        except Timeout:
            return False
        self._is_held = True
        return True


def _close_copies_in_children() -> None:
    """Have forked children close their copies of the descriptors, from the first lock of the process on."""
    global _hooked_in
    if not _hooked_in:
        os.register_at_fork(after_in_child=_close_copies)
        _hooked_in = True  # in this order: if that is interrupted, registering twice does no harm


def _close_copies() -> None:
    copies = list(_descriptors)
    _descriptors.clear()
    for descriptor in copies:
        with contextlib.suppress(OSError):
            os.close(descriptor)


if sys.platform != "win32":
    import fcntl

    def _flock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_BY_ANOTHER:
                return False
            raise
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # otherwise a forked child's copy would keep the lock

else:

    def _flock(descriptor: int) -> bool:
        raise OSError(errno.ENOSYS, "there is no flock")

    def _unlock(descriptor: int) -> None:
        del descriptor
