"""Reads the intact lines of a journal, however damaged it is, while another process may append to it.

Any number of processes may read, at any time. Reading takes time in proportion to the file's size, and memory in
proportion to its longest line. If no line ends within `MAX_LINE_BYTES`, these bytes are skipped as damage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..model.rows import Position
from .line_bounds import (
    MAX_STARTS_TRIED,
    end_of_alike,
    end_of_journal_lines,
    end_of_line,
    has_lines,
    looks_like_a_line,
    next_begin,
    payload_in,
)
from .line_file import MAX_LINE_BYTES
from .lines import PREFIX_BYTES
from .own_files import open_own
from .row_record import MAGIC
from .segments import START, segment_path, segments
from .sync import sync_file, sync_folder

# How much of a journal is in memory while it is read. A longer line is read whole.
READ_BYTES = 2**18
# How much of a journal may be read ahead: 100 points of 5000 channels.
MAX_PEEK_BYTES = 8 * 2**20


class Line(NamedTuple):
    """One intact line: where it begins, and its JSON text or the whole record."""

    position: Position
    payload: bytes


class JournalReader:
    """The reading end of a journal: yields each intact line once, from a position to the end of what is written.

    `damaged` counts the lines that failed their checksum and were skipped. A line of which nothing can be recognised
    counts with the one before it.
    """

    def __init__(self, folder: Path, position: Position = START) -> None:
        self._folder = folder
        self.position = position
        self.damaged = 0
        self._descriptor = -1
        self._synced_segment = position.segment
        self._folder_synced = False  # the folder was synced
        self._block = b""  # the block read last; its byte `_at` stands at `position`
        self._at = 0
        self._block_reaches_end = False  # the block reached the end of the file when it was read
        self._in_long_line = False  # the position is within a line longer than `MAX_LINE_BYTES`
        self._starts_tried = (0, 0)  # a newline's offset, and how many damaged lines of text began before it
        self._unsure_of_start = False  # what was read last was damaged, so a line may or may not begin at the position
        self._torn: tuple[int, int, int] | None = None  # segment, size and time of a file that ends in a long half line

    def read(self) -> Iterator[Line]:
        """Yield the lines written since the last call, up to the last whole line. Memory is bounded."""
        self._block, self._at = b"", 0
        while True:
            if not self._fill_line():
                following = next((n for n in segments(self._folder) if n > self.position.segment), None)
                if following is None:
                    return
                # Once the next segment exists the writer never appends to this one, but lines may have been added
                # before that.
                self._torn = None
                if not self._fill_line():
                    self._go_to_segment(following)
                    continue
            yield from self._lines()

    def peek(self, lines: int) -> memoryview | None:
        """Return the next lines without consuming them: `read` yields them too, unless `skip` passes over them.

        Return None if there are not that many lines, if they differ in width from the first, reach beyond this segment
        or are more than may be in memory; and after any damage, which only `read` can handle. Call this between two
        lines of `read`.
        """
        size = lines * self._width()
        if self.damaged or not 0 < size <= MAX_PEEK_BYTES:
            return None
        if self._at + size > len(self._block):
            self._fill(max(size, READ_BYTES))
        found = memoryview(self._block)[self._at : self._at + size]
        return found if len(found) == size else None

    def peek_records(self, before: Position | None = None) -> tuple[memoryview, int]:
        """Return the next records in memory that begin alike, without consuming them, and how wide each of them is.

        They end before a position, if one is given. Return none if the next line is no record; and after any damage,
        which only `read` can handle. Call this between two lines of `read`.
        """
        at, limit = self._at, min(len(self._block), self._at + READ_BYTES)
        if before is not None and before.segment <= self.position.segment:
            same = before.segment == self.position.segment
            limit = min(limit, at + before.offset - self.position.offset) if same else at
        width = max(0, end_of_line(self._block, at) - at)
        end = end_of_alike(self._block, at, width, limit) if width and not self.damaged else at
        return memoryview(self._block)[at:end], width

    def ends_before(self, lines: int, *, unless_containing: bytes) -> bool:
        """Return True if fewer than `lines` more lines were there at the last read. None contains the given bytes.

        Call this after `peek`. Return False if that many lines are more than may be in memory.
        """
        size = lines * self._width()
        if self.damaged or size > MAX_PEEK_BYTES:
            return False
        if len(self._block) - self._at >= size:  # so `peek` has read nothing more
            self._fill(max(size, READ_BYTES))
        return (
            self._block_reaches_end
            and not has_lines(self._block, self._at, lines)
            and self._block.find(unless_containing, self._at) < 0
            and segments(self._folder)[-1:] == [self.position.segment]
        )

    def skip(self, lines: int) -> None:
        """Skip lines that `peek` or `peek_records` has returned."""
        size = lines * self._width()
        self._at += size
        self.position = Position(self.position.segment, self.position.offset + size)

    def sync(self) -> Position:
        """Sync everything written so far, also by another process, and return the position up to which it is synced."""
        reached = self.position
        for segment in range(self._synced_segment, self.position.segment + 1):
            descriptor = open_own(segment_path(self._folder, segment), os.O_RDWR)
            try:
                size = os.lseek(descriptor, 0, os.SEEK_END)
                sync_file(descriptor)
                whole = end_of_journal_lines(descriptor, size)  # half a line may still be removed and rewritten
                reached = max(reached, Position(segment, whole))
            finally:
                os.close(descriptor)
        if self._synced_segment != self.position.segment or not self._folder_synced:
            sync_folder(self._folder)  # the names of the segments
            self._folder_synced = True
        self._synced_segment = self.position.segment
        return reached

    def is_at_end(self) -> bool:
        """Return True if everything written was read, except half a line at the end."""
        try:
            size = segment_path(self._folder, self.position.segment).stat().st_size
        except FileNotFoundError:
            size = 0
        read_to = self.position.offset + len(self._block) - self._at
        return size <= read_to and segments(self._folder)[-1:] in ([], [self.position.segment])

    def close(self) -> None:
        """Close the file until the next read. A second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _width(self) -> int:
        """Return how many bytes the next line has, or 0 if its end is not written."""
        end = end_of_line(self._block, self._at)
        if not end:
            self._fill_line()
            end = end_of_line(self._block, self._at)
        return max(0, end - self._at)

    def _fill_line(self) -> bool:
        """Read from the position on. Return True if a whole line is there.

        Each attempt doubles the bytes read, so a long line takes time only in proportion to its length. A line longer
        than `MAX_LINE_BYTES` is skipped in blocks, as far as it is written.
        """
        while True:
            if not self._in_long_line:
                is_whole = self._fill_until_line_ends()
                if is_whole is not None:
                    return is_whole
                self._in_long_line = True
                self.damaged += 1
            elif not self._fill(READ_BYTES):
                return False
            self._pass_over(self._block.find(b"\n"))

    def _fill_until_line_ends(self) -> bool | None:
        """Return True if a whole line is there, False if its end is not written, None if it is too long."""
        if self._is_known_to_be_torn():
            return False
        while True:
            before = len(self._block) - self._at
            self._fill(min(max(READ_BYTES, before), MAX_LINE_BYTES + 1 - before))
            if end_of_line(self._block, 0):
                return True
            if self._block_reaches_end or not self._block:
                begin = self._line_behind_damage()
                if begin:
                    self._skip_damage(begin)
                    return True
                self._note_if_torn()
                return False
            if len(self._block) > MAX_LINE_BYTES:
                return None

    def _line_behind_damage(self) -> int:
        """Return where a whole line begins behind the record at the position, whose end is not in the file; 0 if none.

        Then that record is damaged: a writer makes one line after the other.
        """
        at = self._at
        while self._block[self._at : self._at + 1] == MAGIC[:1] and (at := next_begin(self._block, at)):
            end = end_of_line(self._block, at)
            if end and payload_in(self._block, at, end) is not None:
                return at
        return 0

    def _pass_over(self, newline: int) -> None:
        """Skip what was read of a line that is too long, up to its newline if that was read."""
        passed = len(self._block) if newline < 0 else newline + 1
        self.position = Position(self.position.segment, self.position.offset + passed)
        self._block, self._at = b"", 0
        self._in_long_line = newline < 0

    def _note_if_torn(self) -> None:
        """Remember a file that ends in a long half line, so that it is read again only after it has changed."""
        self._torn = None
        if len(self._block) > READ_BYTES and self._descriptor >= 0:
            found = os.fstat(self._descriptor)
            if found.st_size == self.position.offset + len(self._block):
                self._torn = (self.position.segment, found.st_size, found.st_mtime_ns)

    def _is_known_to_be_torn(self) -> bool:
        if self._torn is None:
            return False
        try:
            found = os.stat(segment_path(self._folder, self.position.segment))
        except OSError:
            return False
        return self._torn == (self.position.segment, found.st_size, found.st_mtime_ns)

    def _fill(self, size: int = READ_BYTES) -> bool:
        """Read up to `size` more bytes at the position. Return True if any bytes are there."""
        if self._descriptor < 0:
            try:
                self._descriptor = open_own(segment_path(self._folder, self.position.segment), os.O_RDONLY)
            except FileNotFoundError:  # removed: nothing follows, and what was read before is not read again
                self._block, self._at, self._block_reaches_end = b"", 0, True
                return False
        rest = len(self._block) - self._at
        # From the line's beginning: the writer may have removed half of it meanwhile and written another line there.
        os.lseek(self._descriptor, self.position.offset, os.SEEK_SET)
        self._block, self._at = b"", 0  # never two blocks in memory at once
        self._block = os.read(self._descriptor, size + rest)
        self._block_reaches_end = len(self._block) < size + rest
        return bool(self._block)

    def _lines(self) -> Iterator[Line]:
        while True:
            end = end_of_line(self._block, self._at)
            if not end:
                begin = self._line_behind_damage() if self._block_reaches_end else 0
                if not begin:
                    return
                self._skip_damage(begin)
                continue
            payload = payload_in(self._block, self._at, end)
            if payload is None:
                self._skip_damage(self._next_start(end))
                continue
            position = self.position
            self.position = Position(position.segment, position.offset + end - self._at)
            self._at, self._unsure_of_start = end, False
            yield Line(position, payload)

    def _next_start(self, end: int) -> int:
        """Return where to go on behind the damaged line at the position, which ends at `end`."""
        following = next_begin(self._block, self._at)
        if not following:  # the first bytes of the next line may be the last ones of the block
            return max(self._at + 1, len(self._block) - PREFIX_BYTES)
        at = self.position.offset + end - self._at
        self._starts_tried = (at, self._starts_tried[1] + 1 if self._starts_tried[0] == at else 1)
        if self._starts_tried[1] < MAX_STARTS_TRIED or following >= end:
            return following
        magic = self._block.find(MAGIC, following, end)
        return magic if magic >= 0 else end

    def _skip_damage(self, at: int) -> None:
        """Skip what is damaged, up to this place in the block. Count it, unless it is a part of what was counted."""
        if not self._unsure_of_start or looks_like_a_line(self._block, self._at):
            self.damaged += 1
        self._unsure_of_start = True
        self.position = Position(self.position.segment, self.position.offset + at - self._at)
        self._at = at

    def _go_to_segment(self, segment: int) -> None:
        if self._at < len(self._block) and not self._in_long_line:
            self.damaged += 1
        self._block, self._at = b"", 0
        self._in_long_line, self._torn = False, None
        self.close()
        self.position = Position(segment, 0)
