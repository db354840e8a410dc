"""Documents of a run as a RunEngine makes them, prepared before the clock starts.

Values and time stamps are Python floats of their own, as EPICS through ophyd gives them; every event has a uid of its
own. They come from `event_model.compose_run`, validation apart, which is not ours to measure.
"""

from __future__ import annotations

import random
import time
import uuid
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

from event_model import compose_run

Document = dict[str, Any]


class RunDocuments(NamedTuple):
    """One run: what opens it, its events (or pages of them), and what closes it."""

    opening: list[tuple[str, Document]]
    events: list[Document]
    stop: Document


def keys(count: int) -> list[str]:
    """Names such as a chamber's signals have."""
    return [f"chamber_signal_{i:04d}" for i in range(count)]


def run(channels: int, events: int, **metadata: Any) -> RunDocuments:
    """A run whose primary event stream has this many data keys and events, all in memory."""
    opening, coming, stop = stream(channels, events, **metadata)
    return RunDocuments(opening, list(coming), stop)


def stream(
    channels: int, events: int, **metadata: Any
) -> tuple[list[tuple[str, Document]], Iterator[Document], Document]:
    """The same with its events made one by one, for runs that are longer than memory."""
    names = keys(channels)
    bundle = compose_run(metadata={"plan_name": "count", "scan_id": 1, **metadata}, validate=False)
    primary = bundle.compose_descriptor(
        name="primary",
        data_keys={
            name: {"dtype": "number", "shape": [], "source": f"PV:{name}", "units": "degC", "precision": 3}
            for name in names
        },
        validate=False,
    )
    stop = {
        "uid": str(uuid.uuid4()),
        "time": time.time(),
        "run_start": bundle.start_doc["uid"],
        "exit_status": "success",
        "reason": "",
        "num_events": {"primary": events},
    }
    opening = [("start", bundle.start_doc), ("descriptor", primary.descriptor_doc)]
    return opening, _events(names, events, primary.descriptor_doc["uid"]), stop


def _events(names: list[str], events: int, descriptor: str) -> Iterator[Document]:
    """At most one event in a millisecond, with readings taken since the one before, as a plan makes them."""
    chance = random.Random(len(names)).random
    now = 0.0
    for i in range(events):
        now = max(time.time(), now + 0.001)
        yield {
            "uid": str(uuid.uuid4()),
            "time": now,
            "data": {name: chance() * 1000.0 for name in names},
            "timestamps": {name: now - 0.001 * chance() for name in names},
            "seq_num": i + 1,
            "filled": {},
            "descriptor": descriptor,
        }


def pages(prepared: RunDocuments, rows: int) -> RunDocuments:
    """The same run with its events in pages of so many rows, with one time stamp per row as a flyer gives them.

    Each column's values are made one after the other, as they are where a device hands over its buffer.
    """
    out = []
    for begin in range(0, len(prepared.events), rows):
        events = prepared.events[begin : begin + rows]
        names = list(events[0]["data"])
        out.append(
            {
                "uid": [event["uid"] for event in events],
                "time": [event["time"] for event in events],
                "seq_num": [event["seq_num"] for event in events],
                "data": {name: array("d", [event["data"][name] for event in events]).tolist() for name in names},
                "timestamps": {name: [event["time"] for event in events] for name in names},
                "filled": {},
                "descriptor": events[0]["descriptor"],
            }
        )
    return RunDocuments(prepared.opening, out, prepared.stop)
