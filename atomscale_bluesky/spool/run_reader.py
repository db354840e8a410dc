"""Reads a run's journal, and takes the lines that all rows need from a copy where the journal is damaged.

Rows are worthless without the header and their layouts. Each of these lines is in the journal twice, which repairs a
flipped bit, and also in `head.jsonl`, a file of its own, which repairs a lost block. The copy is written after the
journal was synced. So if a layout is in neither place, none of the rows that need it were ever synced. A power cut may
take such rows: they were never promised to survive it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import SpoolError
from .journal_format import Described, Header, Layout, Stop, decode_journal, is_row, start_of_row
from .journal_reader import JournalReader, Line
from .line_file import LineFile, whole_lines
from .lines import checksummed, payload_of
from .own_files import OUT_OF_RESOURCES, open_to_read
from .segments import START, first_line, last_line, segment_path

HEAD = "head.jsonl"
LEDGER = "ledger.jsonl"

# How much of a journal is searched for descriptors, up to the end of the line that is there.
MAX_BYTES_SEARCHED = 2**18
_HEADER = -1  # stands for the header among the layouts' numbers


class RunReader(JournalReader):
    """The reading end of a run's journal. Yields lines of the copy before the first line that needs them.

    A row whose layout was never written is yielded too, and the account counts it as lost. If the layout was written
    and all its copies are damaged, the run is kept as it is: a bit may be mended by hand.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._seen_numbers: set[int] = set()
        self._copy: dict[int, bytes] | None = None
        self._copy_is_whole = True

    def read(self) -> Iterator[Line]:
        """Yield the lines written since the last call.

        Raises:
            SpoolError: A line cannot be decoded, or a layout and its copies are damaged.
        """
        for found in super().read():
            number = _number_in_copy(found.payload)
            if number is not None:
                self._seen_numbers.add(number)
            elif self.damaged or found.position.segment > 1:
                # Only after damage, or in a later segment, can a line be missing that this one needs.
                yield from self._mended(_HEADER, found)
                layout = _layout_of(found.payload)
                if layout is not None and layout not in self._seen_numbers:
                    yield from self._mended(layout, found)
                    if layout not in self._seen_numbers and not self._copy_is_whole:
                        self.position = found.position  # the next read finds it again
                        raise SpoolError(f"both copies of layout {layout} in the journal are damaged; the run is kept")
            yield found
        if self.damaged:
            # The header, although no line is left that would ask for it.
            yield from self._mended(_HEADER, Line(self.position, b""))

    def _mended(self, number: int, before: Line) -> Iterator[Line]:
        """Yield the copy of the header or a layout, unless it was read already or there is no copy."""
        if number in self._seen_numbers:
            return
        if self._copy is None or number not in self._copy:
            self._copy, self._copy_is_whole = _read_copy(self._folder)
        payload = self._copy.get(number)
        if payload is not None:
            self._seen_numbers.add(number)
            yield Line(before.position, payload)


def needs_copy(payload: bytes) -> bool:
    """Return True if a journal's line is a header or layout, without which the rows are worthless, or a descriptor."""
    return payload.startswith((b'{"kind":"layout"', b'{"kind":"header"', b'{"kind":"descriptor"'))


def append_to_copy(folder: Path, payloads: list[bytes], *, make_room: Callable[[], object] | None = None) -> None:
    """Add headers and layouts that the journal holds, synced, to their copy.

    Args:
        folder: The run's folder.
        payloads: The lines.
        make_room: Called when the disk is full, before the failed write is tried again.

    Raises:
        OSError: The disk does not take them.
    """
    file = LineFile(folder / HEAD, make_room=make_room)
    try:
        file.append(b"".join(map(checksummed, payloads)))
        file.sync()
    finally:
        file.close()


def read_header(folder: Path) -> Header | None:
    """Return a run's header, or None if there is no intact one.

    Raises:
        SpoolError: The journal does not begin with a header that this version understands.
    """
    payload = first_line(folder)
    if payload is None or not needs_copy(payload):
        reader = RunReader(folder)
        try:
            first = next(reader.read(), None)
        finally:
            reader.close()
        payload = None if first is None else first.payload
    header = None if payload is None else decode_journal(payload)
    return header if isinstance(header, Header) else None


def descriptors_in(folder: Path) -> set[str]:
    """Return the uids of a run's descriptors, as far as the copy or the beginning of its journal has them.

    A file that cannot be read counts as empty.

    Raises:
        OSError: No file can be opened at present, for want of a descriptor or of memory.
    """
    found: set[str] = set()
    for path, max_bytes in ((folder / HEAD, None), (segment_path(folder, START.segment), MAX_BYTES_SEARCHED)):
        try:
            found |= _descriptors_in(path, max_bytes)
        except OSError as error:  # a SpoolError is one
            if error.errno in OUT_OF_RESOURCES:
                raise
    return found


def _descriptors_in(path: Path, max_bytes: int | None) -> set[str]:
    """Return the uids of the descriptors in a file, or in its first `max_bytes` bytes."""
    found: set[str] = set()
    with open_to_read(path) as file, contextlib.suppress(SpoolError):  # what comes before a damaged line counts
        for end, text in whole_lines(file):
            payload = payload_of(text) if text is not None and b'{"kind":"descriptor"' in text else None
            line = None if payload is None else decode_journal(payload)
            if isinstance(line, Described):
                found.add(line.uid)
            if max_bytes is not None and end >= max_bytes:
                break
    return found


def has_lines(folder: Path) -> bool:
    """Return True if anything was ever written to a run's journal, damaged or not."""
    reader = JournalReader(folder)
    try:
        return next(reader.read(), None) is not None or reader.damaged > 0
    finally:
        reader.close()


def was_synced(folder: Path) -> bool:
    """Return True if the start of a run's journal was once safe from a power cut: copied, or read for a ledger."""
    return any((folder / name).exists() and (folder / name).stat().st_size for name in (HEAD, LEDGER))


def has_stop(folder: Path) -> bool:
    """Return True if a run's journal ends with its stop.

    Raises:
        SpoolError: Its last line cannot be decoded.
    """
    return stop_of(folder) is not None


def stop_of(folder: Path) -> Stop | None:
    """Return the stop at the end of a run's journal, or None if the journal does not end with one.

    Raises:
        SpoolError: Its last line cannot be decoded.
    """
    payload = last_line(folder)
    if payload is None or is_row(payload):
        return None
    line = decode_journal(payload)
    return line if isinstance(line, Stop) else None


def lines_to_copy(folder: Path) -> list[bytes]:
    """Return the header and layouts of a journal as it is now.

    Raises:
        SpoolError: A line cannot be decoded.
    """
    reader = RunReader(folder)
    try:
        return list(dict.fromkeys(found.payload for found in reader.read() if needs_copy(found.payload)))
    finally:
        reader.close()


def _read_copy(folder: Path) -> tuple[dict[int, bytes], bool]:
    """Return the copy's lines, and True if the copy is intact, so that a line missing in it was never written."""
    try:
        file = open_to_read(folder / HEAD)
    except FileNotFoundError:
        return {}, True
    with file:
        payloads = [None if text is None else payload_of(text) for _, text in whole_lines(file)]
    found: dict[int, bytes] = {}
    for payload in payloads:
        number = None if payload is None else _number_in_copy(payload)
        if payload is not None and number is not None:
            found[number] = payload
    return found, None not in payloads


def _number_in_copy(payload: bytes) -> int | None:
    """Return the number of the layout in a line, `_HEADER` for a header, None for any other line."""
    if not needs_copy(payload):
        return None
    match decode_journal(payload):
        case Layout(layout=number):
            return number
        case Header():
            return _HEADER
        case Described():
            return None
        case other:
            raise SpoolError(f"a journal's line is not understood: {type(other).__name__}")


def _layout_of(payload: bytes) -> int | None:
    """Return the layout that a row names, or None for any other line."""
    return start_of_row(payload)[0] if is_row(payload) else None
