"""Append-only files of lines: append, sync, cut a torn tail. Knows nothing of runs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import SpoolError, SpoolFullError
from .own_files import open_own
from .reserve import is_full, is_limit, with_room
from .sync import sync_file, sync_folder

# How much of a file is read from its end at a time, to find the last line.
BLOCK_BYTES = 2**20
# No line is longer: a row of 100 000 channels has 1.6 MB, and about 30 MB with a gap in each. A longer line was not
# written by this package and is damage, for example zeros after a power cut.
MAX_LINE_BYTES = 64 * 2**20

_CLOSED, _CLOSED_UNTIL_NEEDED = -1, -2  # instead of a descriptor


class LineFile:
    """One file of lines, open for appending by its only writer.

    Opening it cuts off a torn tail: bytes after the last whole line were never acknowledged.

    An exception raised by a signal handler may end `append` at any point. The next call of any method finds out from
    the file what was written.

    Args:
        path: The file. It is made if it is missing.
        make_room: Called when the disk is full, before the failed write is tried again.
        end_of_whole: Given a descriptor and the file's size, returns where the last whole line ends.
        name_synced: Its name in the folder is known to survive a power cut. Then the first sync does not sync the
            folder.
    """

    _descriptor = _CLOSED  # if opening failed

    def __init__(
        self,
        path: Path,
        *,
        make_room: Callable[[], object] | None = None,
        end_of_whole: Callable[[int, int], int] | None = None,
        name_synced: bool = False,
    ) -> None:
        self.path = path
        self._make_room = make_room
        self._times_closed = 0  # a thread that syncs meanwhile notices by it that its descriptor is no longer valid
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._descriptor = with_room(lambda: open_own(path, flags), make_room or _nothing)
        try:
            self.size = self._cut_torn_tail(end_of_whole or end_of_lines)
        except OSError:
            self.close()
            raise
        self._expected_end = self.size  # differs while lines are being written: where the file will end with them
        self._name_synced = name_synced  # its name in the folder survives a power cut

    def append(self, lines: bytes) -> None:
        """Write whole lines, all of them or none.

        Raises:
            SpoolFullError: The disk has no space for them. The file is unchanged.
            SpoolError: The disk failed in another way. The file is unchanged, or is cut back before the next append.
        """
        if self._descriptor == _CLOSED_UNTIL_NEEDED:
            self._open_again()
        if self._expected_end != self.size:
            self._find_end()
        self._expected_end = end = self.size + len(lines)
        try:
            written = os.write(self._descriptor, lines)
        except OSError as error:
            self._expected_end = self.size
            self._append_with_room(lines, write_error(f"{self.path} cannot take more", error), error)
            return
        if written != len(lines):
            self._cut_back()
            text = f"{self.path} took only {written} of {len(lines)} bytes"
            self._append_with_room(lines, write_error(text, _no_space()), None)
            return
        self.size = end

    def _append_with_room(self, lines: bytes, failure: SpoolError, cause: OSError | None) -> None:
        """Make disk space and append the lines again. If no space can be made, raise `failure`."""
        make_room = self._make_room
        if make_room is None or not is_full(failure):
            raise failure from cause
        make_room()
        self._make_room = None
        try:
            self.append(lines)
        finally:
            self._make_room = make_room

    def whole_size(self) -> int:
        """Return how many bytes of whole lines the file has, even after an interrupted `append`.

        Raises:
            SpoolError: The file's size cannot be read, or half a line cannot be removed.
        """
        if self._expected_end != self.size:
            self._find_end()
        return self.size

    def truncate(self, size: int) -> None:
        """Remove everything after the first `size` bytes."""
        if self._descriptor == _CLOSED_UNTIL_NEEDED:
            self._open_again()
        os.ftruncate(self._descriptor, size)
        self.size = self._expected_end = size

    def sync(self) -> None:
        """Make everything appended so far survive a power cut. May take as long as the disk needs.

        Another thread may call `append` or `close_until_needed` meanwhile. A closed file was synced before.
        """
        times_closed, descriptor = self._times_closed, self._descriptor
        if descriptor == _CLOSED:
            return
        try:
            if descriptor != _CLOSED_UNTIL_NEEDED:
                sync_file(descriptor)
        except OSError:
            if times_closed == self._times_closed:
                raise
        # If it was closed meanwhile, its number may mean another file.
        if descriptor == _CLOSED_UNTIL_NEEDED or times_closed != self._times_closed:
            self._sync_by_name()
        if not self._name_synced:
            sync_folder(self.path.parent)
            self._name_synced = True

    def close_until_needed(self) -> None:
        """Close the file until the next append. Must not run while another thread appends."""
        if self._descriptor >= 0:
            # In this order, so that a sync that still has the old descriptor notices.
            descriptor, self._descriptor = self._descriptor, _CLOSED_UNTIL_NEEDED
            self._times_closed += 1
            os.close(descriptor)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        # Forgotten before it is closed: by a second close, the number may belong to another file.
        descriptor, self._descriptor = self._descriptor, _CLOSED
        if descriptor >= 0:
            self._times_closed += 1
            os.close(descriptor)

    def __del__(self) -> None:
        """Close a file whose opening was interrupted, so that no caller has it."""
        self.close()

    def _open_again(self) -> None:
        try:
            self._descriptor = open_own(self.path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            raise SpoolError(f"{self.path} cannot be opened again: {error.strerror}") from error

    def _sync_by_name(self) -> None:
        descriptor = open_own(self.path, os.O_RDWR)
        try:
            sync_file(descriptor)
        finally:
            os.close(descriptor)

    def _find_end(self) -> None:
        """Find out how an append ended that was interrupted, or whose half line could not be removed."""
        if self._descriptor == _CLOSED_UNTIL_NEEDED:
            self._open_again()
        try:
            size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise SpoolError(f"the size of {self.path} cannot be read: {error.strerror}") from error
        if size == self._expected_end:
            self.size = size
        else:
            self._cut_back()

    def _cut_back(self) -> None:
        """Remove what an append has left behind the last whole line."""
        try:
            os.ftruncate(self._descriptor, self.size)
        except OSError as error:
            raise SpoolError(f"{self.path} ends in half a line that cannot be removed: {error.strerror}") from error
        self._expected_end = self.size

    def _cut_torn_tail(self, end_of_whole: Callable[[int, int], int]) -> int:
        size = os.lseek(self._descriptor, 0, os.SEEK_END)
        whole = end_of_whole(self._descriptor, size)
        if whole != size:
            os.ftruncate(self._descriptor, whole)
        return whole


def _nothing() -> None:
    """Do nothing: no disk space can be made."""


def write_error(text: str, cause: OSError) -> SpoolError:
    """Return the error for a failed write, with the cause's `errno`. A `SpoolFullError` if freeing disk space helps."""
    kind, remedy = (SpoolFullError, ". Free some space") if is_full(cause) or is_limit(cause) else (SpoolError, "")
    error = kind(f"{text}: {cause.strerror}{remedy}")
    error.errno = cause.errno
    return error


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def end_of_lines(descriptor: int, size: int) -> int:
    """Return where the last whole line of a file of this size ends. Reads in blocks, from the end."""
    while size > 0:
        start = max(0, size - BLOCK_BYTES)
        os.lseek(descriptor, start, os.SEEK_SET)
        newline = os.read(descriptor, size - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0


def whole_lines(file: BinaryIO, offset: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """Yield each whole line of a file from `offset` on: the offset at which it ends, and its text without the newline.

    A line longer than `MAX_LINE_BYTES` is yielded as None. Bytes after the last newline are not yielded.
    """
    file.seek(offset)
    held: list[bytes] = []  # parts of the current line, unless it is too long
    length = 0
    while block := file.read(BLOCK_BYTES):
        *texts, rest = block.split(b"\n")
        for text in texts:
            length += len(text)
            offset += length + 1
            if length > MAX_LINE_BYTES:
                yield offset, None
            else:
                yield offset, b"".join([*held, text]) if held else text
            held, length = [], 0
        length += len(rest)
        if length > MAX_LINE_BYTES:
            held = []
        elif rest:
            held.append(rest)
