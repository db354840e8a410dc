"""Append-only files of checksummed lines: append, read on, cut a torn tail. Knows nothing of runs.

A line is the CRC-32 of what follows as eight hexadecimal digits, a space, one JSON value, a newline. So a pager shows
it, a line that was cut short or changed by the disk is recognised, and costs itself and no other.

A journal is a sequence of segments, `journal-0001.jsonl`, `journal-0002.jsonl` …; a position names a segment and an
offset in it. Each `append` is one `write` to a descriptor that stays open: once it returns the lines survive a killed
process, and once `sync` returns they survive a power cut. A write that the disk takes only in part is taken back before
anything else is written, so that there is never half a line before a whole one.

One process appends; any number may read, at any time. Reading takes time by the size of the file and memory by that of
its longest line, whatever the disk has made of it: what has no newline for `MAX_LINE_BYTES` is passed over as damage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..model.rows import Position
from .line_file import BLOCK_BYTES, MAX_LINE_BYTES, LineFile, end_of_lines, not_written, sync_file, sync_folder
from .lines import payload_of
from .own_files import is_run_file, open_own, open_to_read

# Segments keep single files handy for a person, and let the confirmed part of a long run go first when room is short.
SEGMENT_BYTES = 64 * 2**20
# How much of a journal is in memory while it is read; a longer line is read whole.
READ_BYTES = 2**18
# How much of it is read to find its header.
FIRST_BYTES = 4096
# How much of it may be looked at ahead: 100 points of 5000 channels, and no more.
MOST_AHEAD_BYTES = 8 * 2**20


START = Position(1, 0)


class Line(NamedTuple):
    """One intact line as read back: where it begins, and its JSON text."""

    position: Position
    payload: bytes


def segment_path(folder: Path, segment: int) -> Path:
    """The file of a journal's `segment`."""
    return folder / f"journal-{segment:04d}.jsonl"


def segments(folder: Path) -> list[int]:
    """The numbers of the segments that a folder holds, in order."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # the run is finished meanwhile, or not ours
        return []
    journals = [name for name in names if name.startswith("journal-") and is_run_file(name)]
    return sorted(int(name.removeprefix("journal-").removesuffix(".jsonl")) for name in journals)


def first_line(folder: Path) -> bytes | None:
    """Return the JSON text of a journal's first line; None if it is damaged, not there, or longer than a header.

    At a third of the price of a reader.
    """
    try:
        descriptor = open_own(segment_path(folder, START.segment), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        text, newline, _ = os.read(descriptor, FIRST_BYTES).partition(b"\n")
    finally:
        os.close(descriptor)
    return payload_of(text) if newline else None


def last_line(folder: Path) -> bytes | None:
    """The JSON text of a journal's last intact line, of up to `BLOCK_BYTES`; None if there is none."""
    for segment in reversed(segments(folder)):
        with open_to_read(segment_path(folder, segment)) as file:
            descriptor = file.fileno()
            end = end_of_lines(descriptor, os.lseek(descriptor, 0, os.SEEK_END))
            os.lseek(descriptor, max(0, end - BLOCK_BYTES), os.SEEK_SET)
            block = os.read(descriptor, min(end, BLOCK_BYTES))
        for text in reversed(block.split(b"\n")[:-1]):
            payload = payload_of(text)
            if payload is not None:
                return payload
    return None


class JournalWriter:
    """The writing end of a journal; goes on in the last segment that is there."""

    def __init__(
        self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, make_room: Callable[[], object] | None = None
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._segment = max(segments(folder), default=1)
        self._file = LineFile(segment_path(folder, self._segment), make_room=make_room)
        self._before = 0  # bytes in the segments left behind
        self._unsynced: list[LineFile] = []  # segments left behind since the last sync

    def append(self, lines: bytes) -> None:
        """Write whole lines, all or none; they survive a killed process once this returns.

        Raises:
            SpoolFullError: There is no room; nothing of `lines` was kept.
            SpoolError: The file cannot be written.
        """
        if self._file.size >= self._segment_bytes:
            self._next_segment()
        self._file.append(lines)

    def settled_size(self) -> int:
        """Return how many bytes of whole lines there are, also where the last `append` was interrupted.

        Raises:
            SpoolError: The file cannot be looked at, or half a line cannot be taken back.
        """
        return self._before + self._file.settled_size()

    def sync(self) -> None:
        """Have every line appended before this call survive a power cut. Another thread may be appending meanwhile."""
        while self._unsynced:
            left_behind = self._unsynced[0]
            left_behind.sync()
            left_behind.close()
            self._unsynced.pop(0)
        self._file.sync()

    def rest(self) -> None:
        """Close the file until it is written to again; not while another thread appends."""
        self._file.rest()

    def close(self) -> None:
        """Close the files; idempotent."""
        for file in [*self._unsynced, self._file]:
            file.close()

    def _next_segment(self) -> None:
        try:
            following = LineFile(segment_path(self._folder, self._segment + 1))
        except OSError as error:
            raise not_written(f"{self._folder} takes no further file: {error.strerror}", error.errno) from error
        # No signal comes between these: not to sync and close a file that is still written, nor to forget one.
        behind = self._file
        self._before += behind.size - following.size
        self._segment, self._file = self._segment + 1, following
        self._unsynced.append(behind)


class JournalReader:
    """The reading end of a journal: each intact line once, from a position on, as far as it is written.

    `damaged` counts the lines that failed their checksum, which were passed over.
    """

    def __init__(self, folder: Path, position: Position = START) -> None:
        self._folder = folder
        self.position = position
        self.damaged = 0
        self._descriptor = -1
        self._synced_segment = position.segment
        self._named = False  # whether the folder was synced
        self._block = b""  # what was read last; from `_at` on it goes on at the position
        self._at = 0
        self._to_the_end = False  # the block holds all that was written then
        self._skipping = False  # the position is within a line that is longer than any
        self._torn: tuple[int, int, int] | None = None  # segment, size and time of a file that ends in a long half line

    def read(self) -> Iterator[Line]:
        """The lines written since the last call; ends where no whole line follows. Bounded memory."""
        self._block, self._at = b"", 0
        while True:
            if not self._fill_line():
                following = next((n for n in segments(self._folder) if n > self.position.segment), None)
                if following is None:
                    return
                # The writer never comes back to a segment once the next one is there; what it wrote in between counts.
                self._torn = None
                if not self._fill_line():
                    self._on_to(following)
                    continue
            yield from self._lines()

    def ahead(self, lines: int) -> memoryview | None:
        """The next lines, without taking them: `read` gives them too, unless `skip` passes over them.

        None where so many are not there, or not all as wide as the first, not in this segment, or more than is to be in
        memory; and after any damage, which `read` alone knows to handle. To be called between two lines of `read`.
        """
        size = lines * self._width()
        if self.damaged or not 0 < size <= MOST_AHEAD_BYTES:
            return None
        if self._at + size > len(self._block):
            self._fill(max(size, READ_BYTES))
        found = memoryview(self._block)[self._at : self._at + size]
        return found if len(found) == size else None

    def ends_before(self, lines: int, without: bytes) -> bool:
        """Whether the journal ended, when it was read last, before so many further lines, none of them with this in it.

        To be called after `ahead`. False where so many would be more than is to be in memory.
        """
        return (
            self._to_the_end
            and lines * self._width() <= MOST_AHEAD_BYTES
            and not self.damaged
            and self._block.count(b"\n", self._at) < lines
            and self._block.find(without, self._at) < 0
            and segments(self._folder)[-1:] == [self.position.segment]
        )

    def skip(self, lines: int) -> None:
        """Pass over lines that `ahead` has shown."""
        size = lines * self._width()
        self._at += size
        self.position = Position(self.position.segment, self.position.offset + size)

    def sync(self) -> Position:
        """Have what is written so far survive a power cut, also what another process wrote; gives how far that is."""
        reached = self.position
        for segment in range(self._synced_segment, self.position.segment + 1):
            descriptor = open_own(segment_path(self._folder, segment), os.O_RDWR)
            try:
                size = os.lseek(descriptor, 0, os.SEEK_END)
                sync_file(descriptor)
                os.lseek(descriptor, max(0, size - 1), os.SEEK_SET)
                if os.read(descriptor, 1) == b"\n":  # half a line may still be taken back and written anew
                    reached = max(reached, Position(segment, size))
            finally:
                os.close(descriptor)
        if self._synced_segment != self.position.segment or not self._named:
            sync_folder(self._folder)  # the names of the segments
            self._named = True
        self._synced_segment = self.position.segment
        return reached

    def is_at_end(self) -> bool:
        """Return True if no more is written than was read, half a line at the end included."""
        try:
            size = segment_path(self._folder, self.position.segment).stat().st_size
        except FileNotFoundError:
            size = 0
        read_to = self.position.offset + len(self._block) - self._at
        return size <= read_to and segments(self._folder)[-1:] in ([], [self.position.segment])

    def close(self) -> None:
        """Close the file until more is read; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _width(self) -> int:
        """How many bytes the next line has; 0 where its end is not there."""
        if self._block.find(b"\n", self._at) < 0:
            self._fill_line()
        return max(0, self._block.find(b"\n", self._at) + 1 - self._at)

    def _fill_line(self) -> bool:
        """Read on from the position; return True if a whole line is there.

        Each attempt doubles what is read, so that a long line takes time by its length only. One that is longer than
        any is passed over in blocks, as far as it goes.
        """
        while True:
            if not self._skipping:
                if self._is_known_to_be_torn():
                    return False
                before = len(self._block) - self._at
                self._fill(min(max(READ_BYTES, before), MAX_LINE_BYTES + 1 - before))
                if self._block.find(b"\n") >= 0:
                    return True
                if self._to_the_end or not self._block:
                    self._note_if_torn()
                    return False
                if len(self._block) <= MAX_LINE_BYTES:
                    continue
                self._skipping = True
                self.damaged += 1
            elif not self._fill(READ_BYTES):
                return False
            self._pass_over(self._block.find(b"\n"))

    def _pass_over(self, newline: int) -> None:
        """Pass over what was read of a line that is too long, up to its end if that was read."""
        passed = len(self._block) if newline < 0 else newline + 1
        self.position = Position(self.position.segment, self.position.offset + passed)
        self._block, self._at = b"", 0
        self._skipping = newline < 0

    def _note_if_torn(self) -> None:
        """Remember a file that ends in a long half line, so that it is read again only when it has changed."""
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
        """Read on, so much at most, from the position; return True if there is anything."""
        if self._descriptor < 0:
            try:
                self._descriptor = open_own(segment_path(self._folder, self.position.segment), os.O_RDONLY)
            except FileNotFoundError:
                return False
        rest = len(self._block) - self._at
        # From the line's beginning: its writer may have taken half of it back meanwhile and written another there.
        os.lseek(self._descriptor, self.position.offset, os.SEEK_SET)
        self._block = b""  # never two of them at once
        self._block, self._at = os.read(self._descriptor, size + rest), 0
        self._to_the_end = len(self._block) < size + rest
        return bool(self._block)

    def _lines(self) -> Iterator[Line]:
        while (end := self._block.find(b"\n", self._at)) >= 0:
            text = self._block[self._at : end]
            self._at = end + 1
            begin = self.position
            self.position = Position(begin.segment, begin.offset + len(text) + 1)
            payload = payload_of(text)
            if payload is None:
                self.damaged += 1
                continue
            yield Line(begin, payload)

    def _on_to(self, segment: int) -> None:
        if self._at < len(self._block) and not self._skipping:
            self.damaged += 1
        self._block, self._at = b"", 0
        self._skipping, self._torn = False, None
        self.close()
        self.position = Position(segment, 0)
