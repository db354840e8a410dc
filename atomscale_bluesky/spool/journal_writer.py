"""Appends lines to a journal.

Each `append` is one `write` to a descriptor that stays open: once `append` returns, the lines survive a killed process,
and once `sync` returns, they survive a power cut. If the disk takes only a part of a write, that part is removed before
anything else is written, so half a line never stands before a whole one. One process appends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from .line_bounds import end_of_journal_lines
from .line_file import LineFile, write_error
from .segments import segment_path, segments

# Segments keep single files small enough to open with any tool.
SEGMENT_BYTES = 64 * 2**20


class JournalWriter:
    """The writing end of a journal. It appends to the last segment that exists."""

    def __init__(
        self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, make_room: Callable[[], object] | None = None
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._make_room = make_room
        self._segment = max(segments(folder), default=1)
        self._file = LineFile(
            segment_path(folder, self._segment), make_room=make_room, end_of_whole=end_of_journal_lines
        )
        self._before = 0  # total size of the earlier segments
        self._unsynced: list[LineFile] = []  # earlier segments that have not been synced yet

    def append(self, lines: bytes) -> None:
        """Write all of the lines or none. They survive a killed process once this returns.

        Raises:
            SpoolFullError: The disk has no space. None of `lines` was kept.
            SpoolError: The file cannot be written.
        """
        if self._file.size >= self._segment_bytes:
            self._next_segment()
        self._file.append(lines)

    def whole_size(self) -> int:
        """Return how many bytes of whole lines there are, even after an interrupted `append`.

        Raises:
            SpoolError: The file's size cannot be read, or half a line cannot be removed.
        """
        return self._before + self._file.whole_size()

    def sync(self) -> None:
        """Sync every line appended before this call, so that it survives a power cut.

        Other threads may append or sync meanwhile.
        """
        for left_behind in list(self._unsynced):
            left_behind.sync()
            left_behind.close()
            with contextlib.suppress(ValueError):  # another thread that syncs has removed it
                self._unsynced.remove(left_behind)
        self._file.sync()

    def close_until_needed(self) -> None:
        """Close the files until the next append or sync. Must not run while another thread appends."""
        for file in [*self._unsynced, self._file]:
            file.close_until_needed()

    def close(self) -> None:
        """Close the files. A second call does nothing."""
        for file in [*self._unsynced, self._file]:
            file.close()

    def _next_segment(self) -> None:
        try:
            following = LineFile(
                segment_path(self._folder, self._segment + 1),
                make_room=self._make_room,
                end_of_whole=end_of_journal_lines,
            )
        except OSError as error:
            raise write_error(f"{self._folder} takes no further file", error) from error
        # CPython runs signal handlers only at calls and backward jumps, and the first call here is the last step. A
        # handler in between could sync and close a segment that is still written, or forget one.
        behind = self._file
        self._before += behind.size - following.size
        self._segment, self._file = self._segment + 1, following
        self._unsynced.append(behind)
