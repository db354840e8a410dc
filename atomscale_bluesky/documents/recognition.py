"""Finds the readings of a document that earlier journals of its run already hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..model.loss import Loss
from ..spool.journal_format import DataKey, Layout, pack_values
from ..spool.kept_events import KeptEvents, KeptReadings, PossibleRows
from .conversion import choice, number, numbers
from .descriptor import is_flag, mapping_of
from .event_stream import EventStream


def kept_readings_of(
    earlier_events: KeptEvents, event_stream: EventStream, doc: Mapping[str, Any]
) -> KeptReadings | None:
    """Return what earlier journals hold of an event, or None if it is new. Counts it: call it once per event."""
    stamps = _numbers_of(*mapping_of(doc.get("timestamps")).values())
    times = _numbers_of(doc.get("time"))
    keys = mapping_of(doc.get("data")).keys()
    return earlier_events.recognise(
        event_stream.name, doc["uid"], keys, times + stamps, _possible_rows(event_stream, doc, times, stamps)
    )


def event_of(page: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return one row of an event page as an event. What is no column of a value per row is left out."""
    rows = len(page["uid"])
    out: dict[str, Any] = {"descriptor": page["descriptor"]}
    for member in ("uid", "time", "seq_num"):
        column: Any = page.get(member)
        if hasattr(column, "__len__") and len(column) == rows:
            out[member] = column[row]
    for member in ("data", "timestamps", "filled"):
        columns = mapping_of(page.get(member)).items()
        out[member] = {
            key: column if is_flag(column) else column[row]
            for key, column in columns
            if is_flag(column) or (hasattr(column, "__len__") and len(column) == rows)
        }
    return out


def _numbers_of(*stamps: Any) -> list[float]:
    """Return the stamps that are numbers, as floats."""
    plain = (stamp.item() if isinstance(stamp, np.generic) else stamp for stamp in stamps)
    return [float(stamp) for stamp in plain if isinstance(stamp, float) or type(stamp) is int]


def _possible_rows(
    event_stream: EventStream, doc: Mapping[str, Any], times: Sequence[float], stamps: Sequence[float]
) -> PossibleRows:
    """Return a function that gives the rows which an event may have made under a layout."""
    data = event_stream.readings_of(doc)
    candidates = dict.fromkeys([*times, *stamps, *(event_stream.times.started + stamp for stamp in stamps)])
    described = event_stream.description.data_keys

    def rows(layout: Layout) -> Iterator[tuple[float, bytes]]:
        values = pack_values(_values(layout, data, described))
        for time in candidates:
            yield time, values

    return rows


def _values(layout: Layout, data: Mapping[str, Any], described: Mapping[str, DataKey]) -> Iterator[float | None]:
    arrays: dict[str, list[Any]] = {}
    for channel in layout.channels:
        if channel.element is None:
            choices = described[channel.key].choices if channel.key in described else ()
            yield _number(data, channel.key, choices)
            continue
        if channel.key not in arrays:
            count = sum(1 for other in layout.channels if other.key == channel.key)
            try:
                arrays[channel.key] = list(numbers(data.get(channel.key), count))
            except Exception:  # noqa: BLE001 - a foreign object
                arrays[channel.key] = [Loss.NOT_NUMERIC] * count
        value = arrays[channel.key][channel.element]
        yield None if isinstance(value, str) else value


def _number(data: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> float | None:
    try:
        value = choice(choices)(data.get(key)) if choices else number(data.get(key))
    except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked what it is
        return None
    return None if isinstance(value, str) else value
