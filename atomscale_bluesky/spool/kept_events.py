"""Which events of an interrupted run its journals hold, so that a replay delivers each reading once.

An event is recognised by its uid. Some sources, above all catalogues, make up new uids for every replay. Their events
are recognised by event stream and exact time, as many times as a journal has that time. The rows of a journal give
both. When an interrupted run leaves the spool, digests of its events stay in a file beside the history.

Bounded: up to `MAX_EVENTS` events of a run, 20 bytes each in memory and 16 on disk. All files together have up to
`MAX_BYTES`.
"""

from __future__ import annotations

import re
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from ..errors import SpoolError
from ..model.rows import Row
from . import atomic_file as notes
from .gil_yield import GilYield
from .journal_format import Layout, Stop, decode_journal
from .own_files import read_own
from .run_reader import RunReader

# A run of three weeks at one event per second.
MAX_EVENTS = 2_000_000
# The last events that were recognised by time are also remembered by uid, up to this many: an event whose call was
# interrupted comes again, and its time has already been counted.
MAX_TOLD = 100_000
# Total size of the digests of interrupted runs that left the spool. The oldest are removed first. The newest stays
# whatever its size.
MAX_BYTES = 64 * 2**20

_NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}\.events")


class Events(msgspec.Struct):
    """The events of one journal, in the journal's order."""

    uids: array[int]  # digests
    times: dict[str, array[float]]  # by event stream, one time per event
    beyond: int = 0  # how many events could not be remembered
    stop: Stop | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The stored form of the events: little-endian, 8 bytes each."""

    version: int
    uids: bytes
    times: dict[str, bytes]
    beyond: int


class KeptEvents:
    """The events of a run that earlier journals hold.

    Args:
        parts: The events of these journals.
        until: By event stream, the time of the last row of a journal that is gone, if nothing else is known of its
            events.
        by_uid: The events of a journal that are recognised only by uid, because the same process sends them again.
    """

    def __init__(
        self, parts: Iterable[Events] = (), until: dict[str, float] | None = None, *, by_uid: Events | None = None
    ) -> None:
        self.by_time = 0  # how many events were recognised only by time
        self.in_doubt = 0  # how many events were taken although a journal that is gone may have had them
        self.beyond = 0  # how many events are not remembered, because there are too many
        self._until = dict(until or {})
        self._latest: dict[str, float] = {}
        self._set_back: set[str] = set()
        self._told: set[int] = set()  # digests of events recognised by time, the youngest …
        self._told_before: set[int] = set()  # … and those before them
        self._journals: list[_Journal] = []
        room = MAX_EVENTS
        for part in [*parts, *([by_uid] if by_uid else [])]:
            self.beyond += part.beyond + max(0, len(part.uids) - room)
            self._journals.append(_Journal(part, room, by_uid=part is by_uid))
            room -= min(room, len(part.uids))

    def has(self, event_stream: str, uid: Any, times: Sequence[float]) -> bool:
        """Return True if an event was kept before.

        Args:
            event_stream: The event stream's name.
            uid: The event's uid.
            times: The event's own time and those of its readings. The journal has one of them.
        """
        digest = digest_of(uid)
        if sum(journal.has_uid(digest) for journal in self._journals):  # not any(): each one has to note it
            return True
        if digest in self._told or digest in self._told_before:
            return True
        if self._has_time(event_stream, digest, times) or self._was_before(event_stream, times):
            self.by_time += 1
            return True
        return False

    def _has_time(self, event_stream: str, digest: int, times: Sequence[float]) -> bool:
        for journal in self._journals:
            place = journal.place_of(event_stream, times)
            if place is not None:
                self._told.add(digest)  # first: after an interruption here, one time too few is counted
                place[0][place[1]] += 1
                if len(self._told) > MAX_TOLD:
                    self._told, self._told_before = set(), self._told
                return True
        return False

    def _was_before(self, event_stream: str, times: Sequence[float]) -> bool:
        """Return True if the event is not later than the last row of a journal of which only that time is known.

        The comparison means nothing once the clock was set back. From then on every event is taken.
        """
        until = self._until.get(event_stream)
        if until is None or not times:
            return False
        at = min(times)
        if at < self._latest.get(event_stream, at):
            self._set_back.add(event_stream)
        self._latest[event_stream] = at
        if at > until:
            return False
        self.in_doubt += event_stream in self._set_back
        return event_stream not in self._set_back


class _Journal:
    """The events of one journal: up to `room` of them, sorted by uid and by time.

    Once a uid is recognised, the source is known to keep uids, and times are no longer compared: rows of two pages may
    share a time. That holds for this journal only, because another journal may come from a replay with made-up uids.
    """

    def __init__(self, events: Events, room: int, *, by_uid: bool) -> None:
        self._keeps_uids = by_uid
        self._uids = array("Q", np.sort(np.array(events.uids[:room], dtype=np.uint64)).tobytes())
        self._times: dict[str, array[float]] = {}
        self._taken: dict[str, array[int]] = {}  # by event stream: how often the time at this place was recognised
        for name, times in {} if by_uid else events.times.items():
            self._times[name] = array("d", np.sort(np.array(times[:room], dtype=np.float64)).tobytes())
            self._taken[name] = array("I", [0]) * len(self._times[name])

    def has_uid(self, digest: int) -> bool:
        at = bisect_left(self._uids, digest)
        found = at < len(self._uids) and self._uids[at] == digest
        self._keeps_uids = self._keeps_uids or found
        return found

    def place_of(self, event_stream: str, times: Sequence[float]) -> tuple[array[int], int] | None:
        """Return where to count an event with one of these times as recognised.

        None if the journal has none of the times.
        """
        if self._keeps_uids or event_stream not in self._times:
            return None
        kept, taken = self._times[event_stream], self._taken[event_stream]
        for time in times:
            first = bisect_left(kept, time)
            if first < len(kept) and kept[first] == time and taken[first] < bisect_right(kept, time) - first:
                return taken, first
        return None


def digest_of(uid: Any) -> int:
    """Return 8 bytes that stand for an event's uid. Two of a run's millions of uids collide once in about 10^6 runs."""
    text = uid.encode(errors="replace") if isinstance(uid, str) else orjson.dumps(uid)
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def times_of(*stamps: Any) -> list[float]:
    """Return the stamps that are numbers, as floats."""
    plain = (stamp.item() if isinstance(stamp, np.generic) else stamp for stamp in stamps)
    return [float(stamp) for stamp in plain if isinstance(stamp, float) or type(stamp) is int]


def read_events(folder: Path, gil_yield: GilYield | None = None) -> Events:
    """Read the events of the journal in a run's folder, as far as it is readable, and how the journal ended.

    Takes a few microseconds per row.
    """
    events = Events(array("Q"), {})
    layouts: dict[int, Layout] = {}
    last: int | None = None
    reader = RunReader(folder)
    try:
        for line in reader.read():
            if gil_yield is not None:
                gil_yield.worked_through(len(line.payload))
            if not line.payload.startswith(b"["):
                found = decode_journal(line.payload)
                if isinstance(found, Layout):
                    layouts[found.layout] = found
                elif isinstance(found, Stop):
                    events.stop = found
                continue
            layout, time, uid = _head_of(line.payload)
            known = layouts.get(layout)
            if known is None:
                continue
            digest = digest_of(uid)
            if len(events.uids) >= MAX_EVENTS:
                events.beyond += digest != last
            else:
                if digest != last:  # an event has one row per time base, one after the other
                    events.uids.append(digest)
                if known.time_base == known.event_stream:  # every event has a row in this time base
                    events.times.setdefault(known.event_stream, array("d")).append(time)
            last = digest
    except SpoolError:  # a line that cannot be decoded: only the lines before it count
        pass
    finally:
        reader.close()
    return events


def _head_of(payload: bytes) -> tuple[int, float, Any]:
    """Return the layout, the time and the event's uid of a row."""
    layout, _, time, rest = payload[1:].split(b",", 3)
    end = rest.find(b'"', 1)
    if rest[:1] != b'"' or end < 0 or b"\\" in rest[:end]:
        row = decode_journal(payload)
        assert isinstance(row, Row)  # noqa: S101 - a line that begins with a bracket is one
        return row.layout, row.time, row.event_uid
    return int(layout), float(time), rest[1:end].decode(errors="replace")


# ---- of runs that have left the spool --------------------------------------------------------------------------------


def keep_events(folder: Path, gil_yield: GilYield | None = None) -> str | None:
    """Store the events of an interrupted run that leaves the spool.

    Returns:
        The file's name, or None if the disk is full.
    """
    events = read_events(folder, gil_yield)
    name = f"{folder.name}.events"
    if not _NAME.fullmatch(name):
        return None
    stored = msgspec.msgpack.encode(
        _File(
            1, _to_bytes(events.uids), {name: _to_bytes(times) for name, times in events.times.items()}, events.beyond
        )
    )
    try:
        notes.keep(folder.parent / name, zlib.crc32(stored).to_bytes(4, "little") + stored)
    except OSError:
        return None
    with suppress(OSError):
        _make_room(folder.parent, name)
    return name


def stored_events(spool: Path, name: str) -> Events | None:
    """Return the stored events of a run that has left the spool, or None if they are gone or damaged."""
    if not _NAME.fullmatch(name):
        return None
    try:
        text = read_own(spool / name)
        if zlib.crc32(text[4:]).to_bytes(4, "little") != text[:4]:
            return None
        found = msgspec.msgpack.decode(text[4:], type=_File)
        times = {stream: _from_bytes("d", values) for stream, values in found.times.items()}
        return Events(_from_bytes("Q", found.uids), times, found.beyond)
    except (OSError, msgspec.DecodeError, ValueError):
        return None


def _make_room(spool: Path, newest: str) -> None:
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
