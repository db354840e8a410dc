"""The rows of interrupted runs that left the spool: a file for each, beside the history.

So a replay of such a run delivers each reading once, and a consumer that restarts can go on with it. All files together
have up to `MAX_BYTES`.
"""

from __future__ import annotations

import re
import sys
import zlib
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from .atomic_file import replace_file
from .gil_yield import GilYield
from .journal_events import WHOLE_EVENT, EventDigests, read_events
from .journal_format import Described, Header, Layout, LeftOut, decode_journal
from .lines import encode
from .own_files import read_own

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


def store_events(folder: Path, gil_yield: GilYield | None = None) -> tuple[str, list[str]] | None:
    """Store the events of an interrupted run that leaves the spool.

    Returns:
        The file's name, and the uids of the run's descriptors; None if the disk is full.
    """
    events = read_events(folder, gil_yield)
    name = f"{folder.name}.events"
    if not _NAME.fullmatch(name):
        return None
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
    try:
        # The run's journal is removed next, so this has to survive a power cut.
        replace_file(folder.parent / name, zlib.crc32(stored).to_bytes(4, "little") + stored, durable=True)
    except OSError:
        return None
    with suppress(OSError):
        _remove_oldest(folder.parent, name)
    return name, list(events.descriptors)


def load_events(spool: Path, name: str) -> EventDigests | None:
    """Return the stored events of a run that has left the spool, or None if they are gone or damaged."""
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
    except (OSError, msgspec.DecodeError, ValueError):
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
