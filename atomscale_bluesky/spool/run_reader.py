"""A run's journal as it is read: its lines, and what all rows need once more from a copy where the journal is damaged.

The rows are worth nothing without the header and their layouts. Each is in the journal twice, which mends a flipped
bit, and once more in `head.jsonl`, a file of its own, which mends a block that is gone. The copy is written when the
journal has been synced; so what stands in neither was never synced, and rows that need it are those that a power cut
may take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import SpoolError
from .journal import JournalReader, Line, first_line, last_line
from .journal_format import Header, Layout, Stop, decode_journal
from .line_file import LineFile, whole_lines
from .lines import line, payload_of
from .own_files import open_to_read

HEAD = "head.jsonl"
LEDGER = "ledger.jsonl"

_HEADER = -1  # stands for the header among the numbers of the layouts


class RunReader(JournalReader):
    """The reading end of a run's journal; gives the lines of the copy before the first line that needs them.

    A row whose layout was never there comes all the same, and the account counts it as lost. Where the layout was there
    and all its copies are damaged, the run is kept as it is: somebody may be able to mend a bit.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._known: set[int] = set()
        self._copy: dict[int, bytes] | None = None
        self._copy_is_whole = True

    def read(self) -> Iterator[Line]:
        """The lines written since the last call.

        Raises:
            SpoolError: A line is not understood, or a layout and its copies are damaged.
        """
        for found in super().read():
            number = _described(found.payload)
            if number is not None:
                self._known.add(number)
            elif self.damaged or found.position.segment > 1:  # something may be missing before this line
                yield from self._mended(_HEADER, found)
                layout = _layout_of(found.payload)
                if layout is not None and layout not in self._known:
                    yield from self._mended(layout, found)
                    if layout not in self._known and not self._copy_is_whole:
                        self.position = found.position  # whoever reads on meets it again
                        raise SpoolError(f"layout {layout} is damaged in the journal and in its copy; the run is kept")
            yield found
        if self.damaged:
            yield from self._mended(_HEADER, Line(self.position, b""))  # also where no other line is left

    def _mended(self, number: int, before: Line) -> Iterator[Line]:
        """The copy of the header or a layout, unless it was read already or there is none."""
        if number in self._known:
            return
        if self._copy is None or number not in self._copy:
            self._copy, self._copy_is_whole = _copied(self._folder)
        payload = self._copy.get(number)
        if payload is not None:
            self._known.add(number)
            yield Line(before.position, payload)


def describes(payload: bytes) -> bool:
    """Whether a journal's line is one that the rows are worth nothing without."""
    return payload.startswith((b'{"kind":"layout"', b'{"kind":"header"'))


def keep_copies(folder: Path, payloads: list[bytes], *, make_room: Callable[[], object] | None = None) -> None:
    """Add headers and layouts that the journal holds, synced, to their copy.

    Args:
        folder: The run's.
        payloads: The lines.
        make_room: Called where the disk is full, before they are written again.

    Raises:
        OSError: The disk does not take them.
    """
    file = LineFile(folder / HEAD, make_room=make_room)
    try:
        file.append(b"".join(map(line, payloads)))
        file.sync()
    finally:
        file.close()


def read_header(folder: Path) -> Header | None:
    """A run's header, or None where there is no whole one.

    Raises:
        SpoolError: The journal does not begin with a header that this version understands.
    """
    payload = first_line(folder)
    if payload is None or not describes(payload):
        reader = RunReader(folder)
        try:
            first = next(reader.read(), None)
        finally:
            reader.close()
        payload = None if first is None else first.payload
    header = None if payload is None else decode_journal(payload)
    return header if isinstance(header, Header) else None


def has_lines(folder: Path) -> bool:
    """Whether anything was ever written to a run's journal, damaged or not."""
    reader = JournalReader(folder)
    try:
        return next(reader.read(), None) is not None or reader.damaged > 0
    finally:
        reader.close()


def was_synced(folder: Path) -> bool:
    """Whether the beginning of a run's journal was once safe from a power cut: copied, or read for a ledger."""
    return any((folder / name).exists() and (folder / name).stat().st_size for name in (HEAD, LEDGER))


def has_stop(folder: Path) -> bool:
    """Whether a run's journal ends with its stop.

    Raises:
        SpoolError: Its last line is not understood.
    """
    return stop_of(folder) is not None


def stop_of(folder: Path) -> Stop | None:
    """The stop that a run's journal ends with; None if it goes on.

    Raises:
        SpoolError: Its last line is not understood.
    """
    payload = last_line(folder)
    if payload is None or payload.startswith(b"["):
        return None
    line = decode_journal(payload)
    return line if isinstance(line, Stop) else None


def described_lines(folder: Path) -> list[bytes]:
    """Header and layouts of a journal as it stands.

    Raises:
        SpoolError: A line is not understood.
    """
    reader = RunReader(folder)
    try:
        return list(dict.fromkeys(found.payload for found in reader.read() if describes(found.payload)))
    finally:
        reader.close()


def _copied(folder: Path) -> tuple[dict[int, bytes], bool]:
    """What the copy holds, and whether it is whole, so that what it does not hold never was there."""
    try:
        file = open_to_read(folder / HEAD)
    except FileNotFoundError:
        return {}, True
    with file:
        payloads = [None if text is None else payload_of(text) for _, text in whole_lines(file)]
    found: dict[int, bytes] = {}
    for payload in payloads:
        number = None if payload is None else _described(payload)
        if payload is not None and number is not None:
            found[number] = payload
    return found, None not in payloads


def _described(payload: bytes) -> int | None:
    """The number of the layout that a line holds, `_HEADER` for a header, None for any other line."""
    if not describes(payload):
        return None
    match decode_journal(payload):
        case Layout(layout=number):
            return number
        case Header():
            return _HEADER
        case other:
            raise SpoolError(f"a journal's line is not understood: {type(other).__name__}")


def _layout_of(payload: bytes) -> int | None:
    """The layout that a row names; None for any other line."""
    if not payload.startswith(b"["):
        return None
    return int(payload[1 : payload.index(b",")])
