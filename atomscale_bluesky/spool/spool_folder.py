"""Which folder is the spool: the one in the settings, unless it holds other files.

Every process gets the same answer at any time, because the content of the folder decides. Checking changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import stat
from pathlib import Path

import msgspec

from ..errors import SpoolError
from .lines import payload_of
from .own_files import MARKER, is_run_name, is_spool_file, open_own, open_to_read, run_files
from .reserve import is_full
from .sync import sync_folder

_logger = logging.getLogger(__name__)

# The subfolder that is the spool if the named folder holds other files.
SUBFOLDER = "atomscale-bluesky"
# How many levels of subfolders are tried: a folder of this name may itself be, say, a checkout of this package.
_DEPTH = 8

_MARKER_TEXT = b"""\
This folder is the spool of atomscale-bluesky: it holds measured data that may not have been delivered yet.
Leave it alone while it does; `atomscale-bluesky status` shows that. This file only says whose folder it is.
"""

# A run's file starts with one of its first lines, and a history soon has a line. Some lines may be damaged.
_RUN_FILES = re.compile(r"journal-[0-9]{4,}\.jsonl|(head|ledger)\.jsonl")
_LINES, _LINE_BYTES = 16, 2**20
# The notes beside the runs, with the members of each.
_NOTES = {
    "trouble": {"since", "time", "error", "endpoint"},
    "clock": {"endpoint", "offset_s", "delay_s", "measured"},
    "probed": {"endpoint", "time", "version", "facts"},
}

_warned_about: set[Path] = set()  # folders that this process has warned about


def spool_folder(wanted: Path) -> Path:
    """Return the spool's folder for the named one.

    That is the named folder if it is missing, empty or a spool. Otherwise it is its subfolder `SUBFOLDER`, by the same
    rule.

    Raises:
        SpoolError: Each of the possible folders holds other files.
    """
    folder = wanted
    for _ in range(_DEPTH):
        if _is_marked(folder):
            return folder
        if _is_marked(folder / SUBFOLDER):  # in use before; files put above it since then change nothing
            return folder / SUBFOLDER
        if not _holds_other_things(folder):
            return folder
        folder /= SUBFOLDER
    raise SpoolError(f"spool folder {str(wanted)!r} holds other things; choose another `spool_dir`")


def warn_if_elsewhere(wanted: Path, folder: Path) -> None:
    """Log, once per process, that the spool is not in the named folder."""
    if folder != wanted and wanted not in _warned_about:
        _warned_about.add(wanted)
        _logger.warning(
            "%s holds other things, which are left alone: the spool is %s. Set `spool_dir` to that, or to a folder of "
            "its own", wanted, folder,
        )  # fmt: skip


def mark(folder: Path) -> None:
    """Put the file into a folder that marks it as a spool, unless it is there.

    Raises:
        OSError: The folder cannot be written.
    """
    if _is_marked(folder):
        return
    # Two processes may begin a spool at once. The file's name alone marks the spool, so neither waits for its content.
    try:
        descriptor = open_own(folder / MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    try:
        with contextlib.suppress(OSError):  # even a full disk takes the name
            os.write(descriptor, _MARKER_TEXT)
    finally:
        os.close(descriptor)


def _is_marked(folder: Path) -> bool:
    try:
        return stat.S_ISREG((folder / MARKER).lstat().st_mode)
    except OSError:  # it is missing; or the folder cannot be searched, which is reported on opening
        return False


def _holds_other_things(folder: Path) -> bool:
    """Return True if a folder is neither empty nor a spool. An unreadable folder is reported when it is opened."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return False
    if not found or any(map(_is_surely_from_a_spool, found)):
        return False
    if all(map(_may_be_from_a_spool, found)) and any(map(_is_a_run, found)):
        return False
    return not _is_marked(folder)  # the marker is written before all else, so it is there now if anything is


def _is_surely_from_a_spool(entry: os.DirEntry[str]) -> bool:
    """Return True if an entry certainly belongs to a spool: a run, or a file beside the runs, with matching content."""
    try:
        if entry.is_dir(follow_symlinks=False):
            if not is_run_name(entry.name):
                return False
            names = filter(_RUN_FILES.fullmatch, run_files(Path(entry.path))[0])
            return any(_has_a_line(os.path.join(entry.path, name)) for name in names)
        if not is_spool_file(entry.name) or not entry.is_file(follow_symlinks=False):
            return False
        if entry.name == "history.jsonl":
            return _has_a_line(entry.path)
        members = _NOTES.get(entry.name.partition(".")[0].partition("-")[0])
        return members is not None and entry.name.endswith(".json") and members <= _members(entry.path)
    except OSError:  # removed meanwhile, or not ours to read
        return False


def _may_be_from_a_spool(entry: os.DirEntry[str]) -> bool:
    """Return True if an entry may belong to a spool, though its content may be damaged."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return is_run_name(entry.name) and not run_files(Path(entry.path))[1]
        return is_spool_file(entry.name) and entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _is_a_run(entry: os.DirEntry[str]) -> bool:
    """Return True if an entry is a run's folder, by its name and the names in it."""
    try:
        return entry.is_dir(follow_symlinks=False) and is_run_name(entry.name) and bool(run_files(Path(entry.path))[0])
    except OSError:
        return False


def _has_a_line(path: str) -> bool:
    with open_to_read(path) as file:
        for _ in range(_LINES):
            text = file.readline(_LINE_BYTES)
            if not text:
                return False
            if payload_of(text.removesuffix(b"\n")) is not None:
                return True
    return False


def _members(path: str) -> set[str]:
    """Return the names of the members of a small JSON file."""
    with open_to_read(path) as file:
        text = file.read(_LINE_BYTES)
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return set()
    return set(found) if isinstance(found, dict) else set()


def check_folder(path: Path) -> None:
    """Check that a folder belongs to this user and can be read. Changes nothing.

    Raises:
        SpoolError: It does not, or cannot be read.
    """
    try:
        _check_owner(path)
        os.scandir(path).close()
    except OSError as error:
        raise _unusable(path, "read", error) from error


def prepare_folder(path: Path) -> None:
    """Make a spool of a folder of this user. The mode of an existing folder is not changed.

    Raises:
        SpoolError: It cannot be a spool.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path)
        mark(path)  # first of all, so that no other process takes the folder for a foreign one
        try:
            probe = path / f".probe-{secrets.token_hex(4)}"
            probe.touch(mode=0o600, exist_ok=False)
            probe.unlink()
        except OSError as error:
            if not is_full(error):  # a spool on a full disk has a reserve, and what waits in it can be delivered
                raise
        sync_folder(path)
    except OSError as error:
        raise _unusable(path, "written", error) from error


def _check_owner(path: Path) -> None:
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise SpoolError(f"spool folder {str(path)!r} belongs to another user; choose another `spool_dir`")


def _unusable(path: Path, what: str, error: OSError) -> SpoolError:
    if isinstance(error, SpoolError):
        return error
    if os.path.lexists(path) and not os.path.isdir(path):
        return SpoolError(f"spool folder {str(path)!r} is a file and no folder; choose another `spool_dir`")
    return SpoolError(f"spool folder {str(path)!r} cannot be {what} ({error.strerror}); choose another `spool_dir`")
