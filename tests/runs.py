"""Recorded readings, and what a server must hold in the end: told by the documents alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from event_model import compose_run

from atomscale_bluesky.server import LocalServer

Document = tuple[str, dict[str, Any]]


class Recorder:
    """A subscriber that keeps every document, as a neighbour of the callback."""

    def __init__(self) -> None:
        self.documents: list[Document] = []

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        self.documents.append((name, doc))

    def points(self, event_stream: str = "primary") -> dict[str, list[tuple[float, float]]]:
        """Time and value of every reading of an event stream, by data key."""
        found: dict[str, list[tuple[float, float]]] = {}
        names = {doc["uid"]: doc["name"] for name, doc in self.documents if name == "descriptor"}
        for name, doc in self.documents:
            if name == "event" and names[doc["descriptor"]] == event_stream:
                time = doc["time"] if found else _time_of_first(doc, self.documents[0][1]["time"])
                for key, value in doc["data"].items():
                    found.setdefault(key, []).append((time, float(value)))
        return found


def _time_of_first(event: Mapping[str, Any], started: float) -> float:
    """When the first row of an event stream stands: with its readings, if the host stood still before the event.

    Decision 0081 has the rule and its two limits.
    """
    newest, oldest = max(event["timestamps"].values()), min(event["timestamps"].values())
    age = event["time"] - newest
    stood_still = oldest >= started and age > (0.25 if newest == oldest else 1.0) and newest - oldest <= age / 10
    return newest if stood_still else event["time"]


def growth(
    points: int, *, keys: int = 2, first: int = 0, start_metadata: Mapping[str, Any] | None = None
) -> Iterator[Document]:
    """The documents of one run of `points` events with `keys` numeric data keys, `k0`, `k1` …."""
    run = compose_run(metadata={"synth_source_id": 42, "plan_name": "grow", **(start_metadata or {})})
    yield "start", run.start_doc
    described = {f"k{i}": {"source": "sim", "dtype": "number", "shape": [], "units": "K"} for i in range(keys)}
    stream = run.compose_descriptor(name="primary", data_keys=described)
    yield "descriptor", stream.descriptor_doc
    for n in range(points):
        data = {f"k{i}": first + n + i / 10 for i in range(keys)}
        stamp = run.start_doc["time"] + n / 100
        stamps = dict.fromkeys(data, stamp)
        event = stream.compose_event(
            data=data, timestamps=stamps, time=stamp, validate=n == 0
        )  # the others are like it
        yield "event", event
    yield "stop", run.compose_stop()


def held(server: LocalServer) -> dict[str, list[float]]:
    """All values that the server holds, by channel, over all streams in the order they were made."""
    found: dict[str, list[float]] = {}
    for stream in server.streams():
        for name, series in server.points(stream.data_id).items():
            found.setdefault(name, []).extend(series.values)
    return found
