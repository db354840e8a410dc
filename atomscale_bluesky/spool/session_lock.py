"""The lock of a session that writes more runs than it may hold locks: this one lock stands for the other runs.

The headers of these runs name it. A process that finds such a run asks whether a living process has the lock.
"""

from __future__ import annotations

import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from ..errors import SpoolError
from .locks import LOCK_TEST_S, RunLock, is_held

_NAME = "writers-{}.lock"
_ANY_NAME = re.compile(r"writers-[0-9a-f]{16}\.lock")


class SessionLock:
    """The session lock of one process in one spool. It is taken only when a run needs it.

    Args:
        spool: The spool's folder.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._lock: RunLock | None = None
        self._name = ""

    def take(self) -> str:
        """Take the lock if this process does not have it yet. Return its name, for a run's header.

        Raises:
            SpoolError: The lock cannot be taken.
        """
        if self._lock is None:
            self._remove_abandoned()
            name = _NAME.format(secrets.token_hex(8))
            lock = RunLock(self._spool / name)
            if not lock.acquire(patience_s=LOCK_TEST_S):  # another session may test it just now
                raise SpoolError(f"{self._spool / name} cannot be locked")
            self._lock, self._name = lock, name
        return self._name

    def release(self) -> None:
        """Release the lock and remove its file. Does nothing if this process does not have it."""
        if self._lock is not None:
            self._lock.release()
            with suppress(OSError):
                (self._spool / self._name).unlink()
            self._lock = None

    def _remove_abandoned(self) -> None:
        """Remove the locks of sessions that have ended."""
        for path in self._spool.glob(_NAME.format("*")):
            if _ANY_NAME.fullmatch(path.name):
                with suppress(OSError):
                    if not is_held(path) and time.time() - path.stat().st_mtime > 60:
                        path.unlink()


def is_session_alive(spool: Path, name: str) -> bool:
    """Return True if a living process has the session lock of this name.

    A name from a file may be of no lock at all.
    """
    return bool(_ANY_NAME.fullmatch(name)) and is_held(spool / name)
