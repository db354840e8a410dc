"""Everything that a folder holds, to compare before and after."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One file, folder or link as it lies there."""

    mode: str
    owner: int
    size: int
    changed_ns: int
    content: bytes | str


def tree(folder: Path) -> dict[str, Entry]:
    """A folder and all that is in it, links not followed: mode, owner, size, times of change and content."""
    found: dict[str, Entry] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        told = path.lstat()
        content: bytes | str = ""
        if stat.S_ISLNK(told.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(told.st_mode):
            content = path.read_bytes()
        size = 0 if path.is_dir() else told.st_size
        name = path.relative_to(folder).as_posix()
        found[name] = Entry(oct(told.st_mode), told.st_uid, size, told.st_mtime_ns, content)
    return found
