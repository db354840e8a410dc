"""The rows of interrupted runs that left the spool: a file for each, beside the history.

So a replay of such a run delivers each reading once, and a consumer that restarts can go on with it. All files together
have up to `MAX_BYTES`.
"""

from __future__ import annotations

import re
import sys
import zlib
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from ..errors import SpoolError, SpoolFullError
from .atomic_file import replace_file
from .gil_yield import GilYield
from .journal_events import WHOLE_EVENT, EventDigests, read_events
from .journal_format import Described, Header, Layout, LeftOut, decode_journal
from .line_file import write_error
from .lines import encode
from .own_files import OUT_OF_RESOURCES, read_own
from .reserve import with_room

# Total size of the files of interrupted runs that left the spool. The oldest are removed first. The newest stays
# whatever its size.
MAX_BYTES = 64 * 2**20
_NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}\.events")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The stored form of the events: little-endian, 8 bytes each, 2 per layout."""

    version: int
    uids: bytes
    times: dict[str, bytes]
    beyond: int
    layouts: bytes = b""
    prints: bytes = b""
    made_up: bool = False
    lines: list[bytes] = []  # header, descriptors, layouts and what was left out, in this order


class StoredEvents(NamedTuple):
    """What was stored of an interrupted run's events."""

    path: Path
    descriptors: list[str]  # their uids
    # The whole file, if it did not fit on the disk and has no rows yet. Write it once the journal is removed.
    whole: bytes | None


def store_events(
    folder: Path, gil_yield: GilYield | None = None, *, make_room: Callable[[], object] = lambda: None
) -> StoredEvents | None:
    """Store the events of an interrupted run that leaves the spool. The file survives a power cut.

    If the disk is full, the file has what the run needs to go on, and no rows.

    Args:
        folder: The run's.
        gil_yield: Makes way for a plan's thread.
        make_room: Called when the disk is full, before the file is written again.

    Returns:
        What was stored; None if the folder has a name that the package does not give.

    Raises:
        SpoolError: The file cannot be written, not even without rows.
    """
    events = read_events(folder, gil_yield)
    name = f"{folder.name}.events"
    if not _NAME.fullmatch(name):
        return None
    path, whole, left = folder.parent / name, _content_of(events), None
    try:
        with_room(lambda: write_events(path, whole), make_room)
    except SpoolFullError:
        # The journal is larger than the list of its rows, so there is space for the list once the journal is removed.
        # Waiting for space instead could be for ever, if nothing but the journal fills the disk.
        write_events(path, _content_of(_without_rows(events)))
        left = whole
    return StoredEvents(path, list(events.descriptors), left)


def write_events(path: Path, content: bytes) -> None:
    """Write the file of a run's events. It survives a power cut.

    Raises:
        SpoolFullError: The disk has no space for it. What was there before stays.
        SpoolError: The file cannot be written for another reason.
    """
    try:
        replace_file(path, content, durable=True)
    except SpoolError:
        raise
    except OSError as error:
        raise write_error(f"{path} cannot be written", error) from error
    with suppress(OSError):
        _remove_oldest(path.parent, path.name)


def _content_of(events: EventDigests) -> bytes:
    """Return the content of the file with these events."""
    header = [events.header] if events.header else []
    lines = [*header, *events.descriptors.values(), *events.layouts, *events.left_out]
    stored = msgspec.msgpack.encode(
        _File(
            version=2,
            uids=_to_bytes(events.uids),
            times={},
            beyond=events.rows_not_remembered,
            layouts=_to_bytes(events.layout_places),
            prints=_to_bytes(events.fingerprints),
            made_up=events.made_up,
            lines=[encode(line) for line in lines],
        )
    )
    return zlib.crc32(stored).to_bytes(4, "little") + stored


def _without_rows(events: EventDigests) -> EventDigests:
    return replace(
        events,
        uids=array("Q"),
        layout_places=array("H"),
        fingerprints=array("Q"),
        rows_not_remembered=events.rows_not_remembered + len(events.uids),
    )


def load_events(spool: Path, name: str) -> EventDigests | None:
    """Return the stored events of a run that has left the spool, or None if they are gone or damaged.

    Raises:
        OSError: They cannot be read at present, for want of a descriptor or of memory.
    """
    if not _NAME.fullmatch(name):
        return None
    try:
        text = read_own(spool / name)
        if zlib.crc32(text[4:]).to_bytes(4, "little") != text[:4]:
            return None
        found = msgspec.msgpack.decode(text[4:], type=_File)
        uids = _from_bytes("Q", found.uids)
        if found.version == 1:
            times = {stream: _from_bytes("d", values) for stream, values in found.times.items()}
            whole = array("H", [WHOLE_EVENT]) * len(uids)
            return EventDigests(
                uids, whole, array("Q", bytes(8 * len(uids))), times=times, rows_not_remembered=found.beyond
            )
        events = EventDigests(
            uids,
            _from_bytes("H", found.layouts),
            _from_bytes("Q", found.prints),
            [],
            descriptors={},
            rows_not_remembered=found.beyond,
            made_up=found.made_up,
        )
        for line in map(decode_journal, found.lines):
            match line:
                case Header():
                    events.header = line
                case Described():
                    events.descriptors[line.uid] = line
                case Layout():
                    events.layouts.append(line)
                case LeftOut():
                    events.left_out.append(line)
                case _:
                    pass
        return events
    except OSError as error:
        if error.errno in OUT_OF_RESOURCES:
            raise
        return None
    except (msgspec.DecodeError, ValueError):
        return None


def _remove_oldest(spool: Path, newest: str) -> None:
    """Remove the oldest files of this kind until all together are small enough."""
    names = sorted(path.name for path in spool.glob("*.events") if _NAME.fullmatch(path.name) and path.name != newest)
    size = sum((spool / name).lstat().st_size for name in [*names, newest])
    for name in names:
        if size <= MAX_BYTES:
            return
        size -= (spool / name).lstat().st_size
        (spool / name).unlink()


def _to_bytes(values: array[Any]) -> bytes:
    values = values[:]
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _from_bytes(kind: str, stored: bytes) -> array[Any]:
    values = array(kind)
    values.frombytes(stored)
    if sys.byteorder == "big":
        values.byteswap()
    return values
