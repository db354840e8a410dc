"""What the server must hold, told by the documents that a RunEngine emitted and by nothing of the package's own."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from atomscale_bluesky.server import LocalServer

MAX_ARRAY = 16

# A further stream of an event stream has a number, and may name its channels behind that.
_LABEL = re.compile(
    r"(.*?)(?: · (?P<event_stream>(?!fail\b|abort\b).+?))?(?: \(\d+\)(?: · .+?)?)?(?: · (?:fail|abort)\b.*?)? "
    r"\[(?P<run>.{8})-[0-9a-f]+\]",
    re.DOTALL,
)


class Source(NamedTuple):
    """An event stream of a run, the run by the first characters of its uid."""

    run: str
    event_stream: str


class Point(NamedTuple):
    time: float
    value: float
    units: str | None


Points = dict[Source, dict[str, list[Point]]]


def emitted(
    documents: Iterable[tuple[str, Mapping[str, Any]]], *, leave_out: Iterable[str] = ("baseline", "interruptions")
) -> Points:
    """Every reading that is a number, by event stream and channel, in order of arrival."""
    found: Points = {}
    descriptors: dict[str, Mapping[str, Any]] = {}
    starts: dict[str, float] = {}
    begun: set[tuple[str, str]] = set()  # event streams that have had a row, by run
    for name, doc in documents:
        if name == "start":
            starts[doc["uid"]] = doc["time"]
        if name == "descriptor":
            descriptors[doc["uid"]] = doc
        if name not in {"event", "event_page"}:
            continue
        descriptor = descriptors[doc["descriptor"]]
        if descriptor["name"] in leave_out:
            continue
        source = Source(descriptor["run_start"][:8], descriptor["name"])
        event_stream, started = (descriptor["run_start"], descriptor["name"]), starts[descriptor["run_start"]]
        for event in [doc] if name == "event" else _unpacked(doc):
            if fnmatchcase(descriptor["name"], "*_monitor"):
                times = _monitored(event, started)
            elif event_stream not in begun:
                times = _begun(event, started)
            else:  # a page is a flyer's: the engine packs no event that a plan has read
                times = event["timestamps"] if name == "event_page" else dict.fromkeys(event["data"], event["time"])
            begun.add(event_stream)
            for key, reading in event["data"].items():
                data_key = descriptor["data_keys"][key]
                if data_key.get("external") and event.get("filled", {}).get(key) is not True:
                    continue
                for channel, value in _numbers(key, reading, data_key):
                    points = found.setdefault(source, {}).setdefault(channel, [])
                    points.append(Point(times[key], value, data_key.get("units") or None))
    return found


def held(server: LocalServer) -> Points:
    """What the server holds, in the order in which its streams were made."""
    found: Points = {}
    for stream in server.streams():
        label = _LABEL.fullmatch(stream.label or "")
        assert label, stream.label
        # Keys of one event stream whose times differ have streams of their own, named `event stream/key`.
        source = Source(label["run"], (label["event_stream"] or "primary").partition("/")[0])
        for channel, series in server.points(stream.data_id).items():
            points = found.setdefault(source, {}).setdefault(channel, [])
            for time, value in zip(series.times, series.values, strict=True):
                assert time is not None
                assert value is not None
                points.append(Point(time, value, series.units or None))
    return found


def assert_held(
    server: LocalServer,
    documents: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    leave_out: Iterable[str] = ("baseline", "interruptions"),
) -> Points:
    """Fail unless the server holds every reading once, in order, and every stream is finalized; what it holds."""
    documents = list(documents)
    expected, found = emitted(documents, leave_out=leave_out), held(server)
    # Events of a monitor come from several threads, so two subscribers may be told of them in different orders.
    for points in (expected, found):
        for source, channels in points.items():
            if fnmatchcase(source.event_stream, "*_monitor"):
                for channel in channels:
                    channels[channel].sort()
    assert found.keys() == expected.keys()
    for source, channels in expected.items():
        assert found[source].keys() == channels.keys(), source
        for channel, points in channels.items():
            assert found[source][channel] == points, (source, channel, *_difference(points, found[source][channel]))
    states = [(stream.label, stream.status, stream.finalize_calls, stream.changed) for stream in server.streams()]
    assert states == [(stream.label, "success", 1, 0) for stream in server.streams()]
    starts = {doc["uid"][:8] for name, doc in documents if name == "start"}
    assert {run_of(stream.label) for stream in server.streams()} == starts
    return found


def _difference(expected: list[Point], found: list[Point]) -> tuple[str, str]:
    """The first points that one list has more often than the other, for the message of a test that fails."""
    missing, extra = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    return f"missing: {list(missing.elements())[:5]}", f"extra: {list(extra.elements())[:5]}"


def run_of(label: str | None) -> str:
    """The first characters of the uid of the run that a stream is of."""
    match = _LABEL.fullmatch(label or "")
    assert match, label
    return match["run"]


def _monitored(event: Mapping[str, Any], started: float) -> dict[str, float]:
    """Where a monitor's readings stand: at their own times, but for a value that the signal had long before the run."""
    return {
        key: event["time"] if stamp < started and event["time"] - stamp > 1.0 else stamp
        for key, stamp in event["timestamps"].items()
    }


def _begun(event: Mapping[str, Any], started: float) -> dict[str, float]:
    """Where the first row of an event stream stands, of which only its age tells whether it was collected later."""
    stamps = event["timestamps"].values()
    if not stamps:
        return {}
    oldest, newest = min(stamps), max(stamps)
    age = event["time"] - newest
    collected = oldest >= started and age > (0.25 if oldest == newest else 1.0) and newest - oldest <= age / 10
    return dict.fromkeys(event["data"], newest if collected else event["time"])


def _unpacked(page: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for row in range(len(page["seq_num"])):
        yield {
            "time": page["time"][row],
            "data": {key: column[row] for key, column in page["data"].items()},
            "timestamps": {key: column[row] for key, column in page["timestamps"].items()},
            "filled": {key: column[row] for key, column in page.get("filled", {}).items()},
        }


def _numbers(key: str, value: Any, data_key: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str):
        choices = list(data_key.get("choices") or ())
        if value in choices:
            yield key, float(choices.index(value))
    elif isinstance(value, list | tuple):
        if len(value) == 1:
            yield from _numbers(key, value[0], data_key)
        elif len(value) <= MAX_ARRAY and all(isinstance(item, int | float) for item in value):
            yield from ((f"{key}[{i}]", float(item)) for i, item in enumerate(value))
    elif isinstance(value, int | float) and math.isfinite(value):
        yield key, float(value)
