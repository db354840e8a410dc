"""Making files and names survive a power cut, on each platform."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_O_CLOEXEC = getattr(os, "O_CLOEXEC", 0)  # a child process must not keep our files open


def sync_file(descriptor: int) -> None:
    """Make the file's content survive a power cut, by the strongest means of the platform."""
    if sys.platform == "darwin":
        # On macOS fsync leaves the data in the drive's cache. Only F_FULLFSYNC writes them out.
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError:  # some network file systems do not support it
            os.fsync(descriptor)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, on platforms that can sync a folder."""
    if os.name == "nt":
        return  # Windows has no such call; its journaling file system keeps names on its own
    descriptor = os.open(folder, os.O_RDONLY | _O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
