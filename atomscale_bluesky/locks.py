"""Who owns what of a run, through locks of the operating system: they end with the process that holds them."""

from __future__ import annotations

from pathlib import Path

WRITER_LOCK = "writer.lock"
UPLOADER_LOCK = "uploader.lock"

# Nobody owns a run that is just being made, but others look whether somebody does, and hold its lock meanwhile.
A_LOOK_S = 0.5


class RunLock:
    """One owner's claim on a run, held through the operating system while the owner lives."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(path, mode=0o600, thread_local=False)

    def acquire(self, *, patience_s: float = 0.0) -> bool:
        """Take the lock if it is free, or becomes free within this time; also False while its folder is removed."""
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=patience_s, poll_interval=0.001)
        except (Timeout, FileNotFoundError, FileExistsError):
            return False
        return True

    def release(self) -> None:
        """Give it back; idempotent."""
        self._lock.release()


def is_held(path: Path) -> bool:
    """Whether a living process has the lock of this file; a file that is not there, nobody."""
    if not path.exists():
        return False
    lock = RunLock(path)
    if lock.acquire():
        lock.release()
        return False
    return True
