"""Reads the events of one run's journal as digests, small enough to be kept when the journal leaves the spool.

Of a row they have its event's uid, its layout, and its time and values. `kept_events` recognises a replay by them.

Bounded: up to `MAX_ROWS` rows of a journal, 18 bytes each in memory and on disk.
"""

from __future__ import annotations

import struct
from array import array
from binascii import hexlify
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import SpoolError
from .gil_yield import GilYield
from .journal_format import Described, Header, Layout, LeftOut, Stop, decode_journal, decode_row, is_row, pack_values
from .row_record import head_of, is_record
from .run_reader import RunReader

# A run of three weeks at one row per second.
MAX_ROWS = 2_000_000
# How a uid begins that Tiled makes up: a descriptor's uid and the `seq_num` follow.
MADE_UP = "event-"
# A row under this layout stands for a whole event, as in the files of earlier versions.
WHOLE_EVENT = 0xFFFF


class EventDigests(msgspec.Struct):
    """The rows of one journal, in the journal's order, and what its run needs to go on."""

    uids: array[int]  # digests of the event uids
    layout_places: array[int]  # places in `layouts`
    fingerprints: array[int]  # digests of time and values; 0 for a further row of an event
    layouts: list[Layout] = []
    header: Header | None = None
    descriptors: dict[str, Described] = {}  # by uid
    times: dict[str, array[float]] = {}  # by event stream, one time per event; only in files of earlier versions
    rows_not_remembered: int = 0  # because there are too many
    made_up: bool = False  # its source made up the events' uids, as a catalogue does
    left_out: list[LeftOut] = []  # readings that are not in its rows
    stop: Stop | None = None


def read_events(folder: Path, gil_yield: GilYield | None = None) -> EventDigests:
    """Read the events of the journal in a run's folder, as far as it is readable, and how the journal ended.

    Takes a few microseconds per row.
    """
    events = EventDigests(array("Q"), array("H"), array("Q"), [], descriptors={})
    places: dict[int, int] = {}  # by layout
    reader = RunReader(folder)
    try:
        for line in reader.read():
            if gil_yield is not None:
                gil_yield.worked_through(len(line.payload))
            if not is_row(line.payload):
                match decode_journal(line.payload):
                    case Layout() as layout if layout.layout not in places and len(events.layouts) < WHOLE_EVENT:
                        places[layout.layout] = len(events.layouts)
                        events.layouts.append(layout)
                    case Described() as descriptor:
                        events.descriptors[descriptor.uid] = descriptor
                    case Header() as header:
                        events.header = header
                    case LeftOut() as left_out:
                        events.left_out.append(left_out)
                    case Stop() as stop:
                        events.stop = stop
                    case _:
                        pass
                continue
            number, time, uid, values = _parts_of(line.payload)
            place = places.get(number)
            if place is None:
                continue
            if len(events.uids) >= MAX_ROWS:
                events.rows_not_remembered += 1
                continue
            known = events.layouts[place]
            events.made_up = events.made_up or str(uid).startswith(MADE_UP)
            events.uids.append(digest_of(uid))
            events.layout_places.append(place)
            events.fingerprints.append(fingerprint_of(known, time, values))
    except SpoolError:  # a line that cannot be decoded: only the lines before it count
        pass
    finally:
        reader.close()
    _forget_further_rows(events)
    return events


def _forget_further_rows(events: EventDigests) -> None:
    """Set the fingerprint of each further row of an event to 0, if the event's first row is in the same journal."""
    further = ~is_first_row(events.layouts, np.array(events.layout_places, dtype=np.uint16))
    uids = np.array(events.uids, dtype=np.uint64)
    fingerprints = np.array(events.fingerprints, dtype=np.uint64)
    with_first = np.sort(uids[~further])
    places = np.searchsorted(with_first, uids)
    places[places == len(with_first)] = 0
    if len(with_first):
        fingerprints[further & (with_first[places] == uids)] = 0
    events.fingerprints = array("Q", fingerprints.tobytes())


def is_first_row(layouts: Sequence[Layout], places: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return for each row whether it is its event's first row, that of the event stream's own time base.

    Args:
        layouts: The layouts of the rows.
        places: The place of each row's layout in `layouts`, or `WHOLE_EVENT`.
    """
    # Not `np.isin`, whose first call imports a module: a process forked meanwhile would wait for that import for ever.
    of_layout = np.zeros(WHOLE_EVENT + 1, dtype=np.bool_)
    of_layout[: len(layouts)] = [layout.has_first_rows for layout in layouts]
    return of_layout[places]


def _parts_of(payload: bytes) -> tuple[int, float, Any, bytes]:
    """Return the layout, the time, the event's uid and the packed values of a row."""
    if is_record(payload):
        try:
            layout, _, time, uid, values = head_of(payload)
        except (ValueError, IndexError) as error:
            raise SpoolError(f"a row is not understood: {error}") from error
        return layout, time, uid, hexlify(values)
    layout, _, time, rest = payload[1:].split(b",", 3)
    end = rest.find(b'"', 1)
    begin = rest.find(b',"', end)
    if rest[:1] != b'"' or end < 0 or b"\\" in rest[:end] or begin < 0:
        row = decode_row(payload)
        return row.layout, row.time, row.event_uid, pack_values(row.values)
    return int(layout), float(time), rest[1:end].decode(errors="replace"), rest[begin + 2 : rest.find(b'"', begin + 2)]


def digest_of(uid: Any) -> int:
    """Return 8 bytes that stand for an event's uid. Two of a run's millions of uids collide once in about 10^6 runs."""
    text = uid.encode(errors="replace") if isinstance(uid, str) else orjson.dumps(uid)
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def fingerprint_of(layout: Layout, time: float, values: bytes) -> int:
    """Return 8 bytes that stand for a row's time and values. Never 0.

    Args:
        layout: The row's layout. Its keys count too: rows of two layouts may have equal values.
        time: The row's time.
        values: Its packed values.
    """
    keys = "\0".join(channel.name for channel in layout.channels).encode(errors="replace")
    digest = blake2b(struct.pack(">d", time) + values + keys, digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
