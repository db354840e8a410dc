"""Which names in a spool belong to the package, and how its files are opened: never through a link.

A spool may lie beside other files, or hold some. So only names of the forms below are ever read, and only files of
these names are ever removed, one by one. A link in the place of a file, a pipe, or a file of another user is refused:
its content is not ours to read, cut or write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from ..errors import SpoolError

# A run's folder is named by time and a random number, and holds only these files.
_RUN = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{8}")
_RUN_FILE = re.compile(r"journal-[0-9]{4,}\.jsonl|(head|ledger|orders)\.jsonl|(writer|uploader|orders)\.lock")
LOCK_SUFFIX = ".lock"

# Files beside the runs. A name that begins with a dot is a file not yet renamed to its final name, or a test whether
# the folder can be written. A killed process leaves it behind.
MARKER = "atomscale-bluesky-spool.txt"
_NAMED = (
    r"(history|not-kept)(-1)?\.jsonl|(history|not-kept)\.lock|[0-9]{8}T[0-9]{6}-[0-9a-f]{8}\.events"
    r"|reserve\.bin|orders\.touched|writers-[0-9a-f]{16}\.lock|(trouble|clock|probed-[0-9a-f]{8})\.json"
    r"|uploader-[0-9a-f]{8}\.(lock|starting)|uploader\.(log|log\.1|stderr)"
    r"|consumer-[0-9a-f]{8}\.lock"
)
_SPOOL_FILE = re.compile(rf"{re.escape(MARKER)}|{_NAMED}|\.({_NAMED})-[0-9a-f]{{8}}|\.probe-[0-9a-f]{{8}}")

# Errors that say nothing about the file: this process or its machine has no descriptor or no memory left.
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

_O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_ALWAYS = (
    _O_NOFOLLOW
    | getattr(os, "O_BINARY", 0)  # Windows would translate newlines without it
    | getattr(os, "O_CLOEXEC", 0)  # a child process must not keep our files open
    | getattr(os, "O_NONBLOCK", 0)  # must not wait for a pipe in a file's place; makes no difference for a file
)


def is_run_name(name: str) -> bool:
    """Return True if the name has the form that the package gives to a run's folder."""
    return _RUN.fullmatch(name) is not None


def recording_began(folder: str) -> float:
    """Return when the recording of a run began, Unix seconds, by the name of its folder; 0.0 for another folder.

    A run of an archive, or from a bus, may be much older.
    """
    name = Path(folder).name
    if not is_run_name(name):
        return 0.0
    try:
        return datetime.fromisoformat(name[:15]).replace(tzinfo=UTC).timestamp()
    except ValueError:  # no day has this date
        return 0.0


def is_run_file(name: str) -> bool:
    """Return True if the package makes files of this name in a run's folder."""
    return _RUN_FILE.fullmatch(name) is not None


def is_spool_file(name: str) -> bool:
    """Return True if the package makes files of this name beside the runs of a spool."""
    return _SPOOL_FILE.fullmatch(name) is not None


def open_own(path: str | Path, flags: int) -> int:
    """Open one of our files and return its descriptor. Only its owner may read and write a new file.

    Args:
        path: The file.
        flags: As for `os.open`. The flags that each of our files needs are added.

    Raises:
        FileNotFoundError: The file is missing, and `flags` do not ask to make it.
        SpoolError: `path` is a link, no regular file, or another user's file. It was not touched.
        OSError: The file cannot be opened.
    """
    if not _O_NOFOLLOW:
        refuse_link(path)
    try:
        descriptor = os.open(path, flags & ~os.O_TRUNC | _ALWAYS, 0o600)
    except OSError:
        refuse_link(path)
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SpoolError(
                f"{path} is not a regular file, although the spool keeps a file of this name; move it away"
            )
        if hasattr(os, "getuid") and found.st_uid != os.getuid():
            raise SpoolError(
                f"{path} belongs to another user, but has the name of one of the spool's files; move it away"
            )
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)  # only now that it is certainly ours
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_to_read(path: str | Path) -> BinaryIO:
    """Open one of our files for reading.

    Raises:
        FileNotFoundError: The file is missing.
        SpoolError: As for `open_own`.
        OSError: The file cannot be opened.
    """
    return os.fdopen(open_own(path, os.O_RDONLY), "rb")


def read_own(path: str | Path) -> bytes:
    """Return the content of one of our files.

    Raises:
        FileNotFoundError: The file is missing.
        SpoolError: As for `open_own`.
        OSError: The file cannot be read.
    """
    with open_to_read(path) as file:
        return file.read()


def refuse_link(path: str | Path) -> None:
    """Check that one of our files is not a link.

    Raises:
        SpoolError: It is a link.
    """
    if os.path.islink(path):
        raise SpoolError(f"{path} is a link, which is not followed; remove the link")


def refuse_links_in(folder: Path) -> None:
    """Check that none of a run's files is a link.

    Raises:
        SpoolError: One of them is a link.
    """
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and is_run_file(entry.name):
                refuse_link(entry.path)


def run_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of a run's files in its folder, and the names of everything else there.

    Raises:
        OSError: The folder cannot be read.
    """
    own: list[str] = []
    foreign: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_own = is_run_file(entry.name) and entry.is_file(follow_symlinks=False)
            (own if is_own else foreign).append(entry.name)
    return own, foreign
