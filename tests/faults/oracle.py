"""What the server must hold, told by the accepted documents alone; and how what it holds differs from that.

The rules are written down here once more, from the manual and not from the code: which readings become points, which
time they have, and that each point is there once, in order, in a stream that is finalized after its last chunk.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from atomscale_bluesky.server import LocalServer, RequestRecord

from .story import Doc

STREAMING = ("initialize", "chunk", "chunk_multi", "finalize", "catalogue", "read", "link_sample")
NOT_SELECTED = {"baseline", "interruptions"}


class Channel(NamedTuple):
    """A run's first eight characters, and a data key."""

    run: str
    key: str


class Point(NamedTuple):
    """A reading as the server must hold it, and which document and row of it brought it."""

    time: float
    value: float
    units: str | None
    document: int
    row: int


Points = dict[Channel, dict[float, Point]]  # by value, of which each comes once


def points_of(documents: Iterable[Doc]) -> Points:
    """The points that these documents make."""
    found: Points = defaultdict(dict)
    started: dict[str, float] = {}
    streams: dict[str, tuple[str, dict[str, Any]]] = {}
    rules: dict[tuple[str, str], RowTimes] = {}
    seen: set[str] = set()
    for number, (_, kind, doc) in enumerate(documents):
        if kind == "start":
            started[doc["uid"]] = doc["time"]
        if kind == "descriptor":
            streams[doc["uid"]] = (doc["run_start"], doc)
        if kind not in {"event", "event_page"}:
            continue
        run, descriptor = streams[doc["descriptor"]]
        if descriptor["name"] in NOT_SELECTED:
            continue
        if (run, descriptor["name"]) not in rules:
            rules[run, descriptor["name"]] = RowTimes(descriptor["name"], started[run])
        uids = doc["uid"] if kind == "event_page" else [doc["uid"]]
        for row, uid in enumerate(uids):
            if uid in seen:
                continue
            seen.add(uid)
            data, stamps, time = doc["data"], doc["timestamps"], doc["time"]
            if kind == "event_page":
                data = {key: column[row] for key, column in data.items()}
                stamps = {key: column[row] for key, column in stamps.items()}
                time = time[row]
            at = rules[run, descriptor["name"]].of(time, stamps)
            for key, value in data.items():
                if isinstance(value, float | int) and math.isfinite(value):
                    units = descriptor["data_keys"][key].get("units")
                    found[Channel(run[:8], key)][value] = Point(at[key], value, units, number, row)
    return found


class RowTimes:
    """Where the readings of an event stream stand, row by row: decision 81, from its text."""

    def __init__(self, event_stream: str, started: float) -> None:
        self._monitor = event_stream.endswith("_monitor")
        self._started = started
        self._collected = False  # the row before was
        self._rule_2 = False  # has ever applied, and rule 3 not since
        self._before: tuple[float, dict[str, float]] | None = None  # the row before: its event's time, its stamps

    def of(self, time: float, stamps: dict[str, float]) -> dict[str, float]:
        """Return the time of each reading of the next row."""
        placed = {key: self._placed(time, stamp) for key, stamp in stamps.items()}
        if self._monitor:
            return {key: time if at is None else at for key, at in placed.items()}
        possible = {key: at for key, at in placed.items() if at is not None}
        if possible:
            self._decide(time, possible)
        self._before = (time, possible)
        if not self._collected or not possible:
            return dict.fromkeys(stamps, time)
        if not self._rule_2:
            return dict.fromkeys(stamps, max(possible.values()))
        return {key: possible.get(key, time) for key in stamps}

    def _placed(self, time: float, stamp: float) -> float | None:
        """Return where a reading stands by its stamp, None for its event's time."""
        if self._started - 86400 <= stamp <= time + 3600:
            before_the_run = self._monitor and stamp < self._started and time - stamp > 1
            return None if before_the_run else stamp
        relative = not self._monitor and 0 <= stamp <= time - self._started
        return self._started + stamp if relative else None

    def _decide(self, time: float, stamps: dict[str, float]) -> None:
        oldest, newest = min(stamps.values()), max(stamps.values())
        if self._before is None:
            old, apart = time - newest, newest - oldest
            within = oldest >= self._started
            self._collected = within and (old > 0.25 if not apart else old > 1 and apart <= old / 10)
            return
        before, stamps_before = self._before
        changed = [at for key, at in stamps.items() if at != stamps_before.get(key)]
        if abs(time - before) <= 0.0005 and changed and max(changed) < before:
            self._collected = self._rule_2 = True
        elif time > before + 0.0005 and (not changed or (newest > before and not self._rule_2)):
            self._collected = self._rule_2 = False


@dataclass
class Verdict:
    """How what the server holds differs from what it must hold; all counts are points but where it is said."""

    expected: int = 0
    held: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0  # a value, time or unit that no document has, or out of order
    orphans: int = 0  # streams without a point that nobody finalized
    unfinished: int = 0  # streams with points that are not finalized
    changed: int = 0  # chunks that came again with other content
    early_finalize: int = 0  # streams finalized before each chunk was answered, or fed after it
    requests: int = 0
    needed: int = 0  # requests where nothing fails
    lost_points: list[tuple[Channel, Point]] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Keep what was found, up to a handful."""
        if len(self.details) < 12:
            self.details.append(text)


def judge(server: LocalServer, accepted: list[Doc], *, begun: list[Doc] = (), forgiven: bool = False) -> Verdict:  # type: ignore[assignment]
    """Compare.

    Args:
        server: Where everything should be.
        accepted: The documents whose call returned.
        begun: Further ones whose call may have got as far as the disk.
        forgiven: Streams that wait for a person are no finding.
    """
    verdict = Verdict()
    expected, possible = points_of(accepted), points_of([*accepted, *begun])
    verdict.expected = sum(len(points) for points in expected.values())
    held: dict[Channel, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    requests = server.requests()
    by_stream: dict[str | None, list[RequestRecord]] = defaultdict(list)
    for request in requests:
        by_stream[request.data_id].append(request)
    for stream in server.streams():
        run = (stream.label or "").rpartition(" [")[2][:8]
        indices: set[int] = set()
        for name, series in server.points(stream.data_id).items():
            channel = Channel(run, name)
            verdict.changed += series.changed
            indices |= {index for index, _ in series.chunks}
            before: tuple[int, int] = (-1, -1)
            for at, value in zip(series.times, series.values, strict=True):
                held[channel][value] += 1  # type: ignore[index]
                verdict.held += 1
                point = possible[channel].get(value) if value is not None else None
                if point is None:
                    verdict.wrong += 1
                    verdict.say(f"{channel} holds {value} at {at}, which no document has")
                    continue
                if at is None or round(at * 1000) != round(point.time * 1000):
                    verdict.wrong += 1
                    verdict.say(f"{channel} holds {value} at {at} instead of {point.time}")
                elif series.units != point.units:
                    verdict.wrong += 1
                    verdict.say(f"{channel} holds {value} in {series.units!r} instead of {point.units!r}")
                elif (point.document, point.row) <= before:
                    verdict.wrong += 1
                    verdict.say(f"{channel} holds {value} out of order")
                before = (point.document, point.row)
        if stream.status != "success":
            if stream.points == 0:
                verdict.orphans += 1
                verdict.say(f"{stream.label!r} is {stream.status} and empty")
            elif not forgiven:
                verdict.unfinished += 1
                verdict.say(f"{stream.label!r} is {stream.status} with {stream.points} points")
        if stream.status == "success" or stream.points:
            verdict.needed += 2 + len(indices)
        if _finalized_early(by_stream[stream.data_id]):
            verdict.early_finalize += 1
            verdict.say(f"{stream.label!r} was finalized before its last chunk was answered, or fed after that")
    for channel, points in expected.items():
        for value, point in points.items():
            if held[channel][value] == 0:
                verdict.lost += 1
                verdict.lost_points.append((channel, point))
                verdict.say(f"{channel} lacks {value} of document {point.document}")
    for channel, counts in held.items():
        for value, count in counts.items():
            if count > 1:
                verdict.doubled += count - 1
                verdict.say(f"{channel} holds {value} {count} times")
    verdict.requests = sum(request.call in STREAMING for request in requests)
    return verdict


def _finalized_early(requests: list[RequestRecord]) -> bool:
    """Whether finalize left before some chunk and channel had been answered, or one was pushed after it."""
    finals = [request for request in requests if request.call == "finalize"]
    if not finals:
        return False
    first = finals[0]
    answered: set[tuple[int | None, str]] = set()
    applied: set[tuple[int | None, str]] = set()
    for request in requests:
        if request.call not in {"chunk", "chunk_multi"}:
            continue
        if request.number > first.number:
            return True
        parts = {(request.chunk_index, name) for name in request.channels}
        applied |= parts
        if request.status == 200 and request.duration_s is not None:
            answered |= parts
    return bool(applied - answered)
