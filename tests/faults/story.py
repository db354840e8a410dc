"""Documents from a seed: the same in every process, so that a number says which of them were accepted.

Each value of a data key tells the event that it belongs to, because no value comes twice: what the server holds can be
traced back to a document, whatever happened in between.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from event_model import ComposeDescriptorBundle, ComposeRunBundle, compose_run

EVENT_STREAMS = ("primary", "pressure_monitor", "flyer", "baseline")


class Doc(NamedTuple):
    """One document, and the number of the run that it belongs to."""

    run: int
    name: str
    doc: dict[str, Any]


@dataclass(frozen=True)
class Story:
    """What happens in the runs of one seed; everything else follows from these."""

    seed: int
    t0: float  # Unix seconds: when the first run starts
    runs: int = 1
    points: int = 100  # events of the primary event stream of each run
    keys: int = 3
    gaps: float = 0.0  # share of the primary values that are no finite number
    late: bool = False  # one more key that is text first and a number later
    monitor: bool = False
    pages: bool = False
    baseline: bool = False
    repeats: float = 0.0  # share of events that come twice
    at_once: bool = False  # the runs are interleaved rather than one after the other
    points_per_chunk: int | None = None
    stops: bool = True

    def documents(self) -> list[Doc]:
        """All documents in the order in which they come."""
        chance = random.Random(self.seed)
        runs = [self._run(n, random.Random(f"{self.seed} {n}")) for n in range(self.runs)]
        if not self.at_once:
            return [doc for run in runs for doc in run]
        found: list[Doc] = []
        while runs:
            run = chance.choice(runs)
            doc = next(run, None)
            if doc is None:
                runs.remove(run)
            else:
                found.append(doc)
        return found

    def uid(self, run: int) -> str:
        """The uid of a run's start document."""
        return str(UUID(int=random.Random(f"uid {self.seed} {run}").getrandbits(128), version=4))

    def _run(self, number: int, chance: random.Random) -> Iterator[Doc]:
        t0 = self.t0 + number
        metadata: dict[str, Any] = {"plan_name": "grow", "scan_id": number, "synth_source_id": 42}
        if self.points_per_chunk:
            metadata["points_per_chunk"] = self.points_per_chunk
        run = compose_run(uid=self.uid(number), time=t0, metadata=metadata, validate=False)
        yield Doc(number, "start", run.start_doc)
        keys = [f"k{i}" for i in range(self.keys)]
        late_from = chance.randrange(1, max(2, self.points)) if self.late else 0
        described = {key: _number("K") for key in keys} | ({"late": _number("s")} if self.late else {})
        described["note"] = {"source": "sim", "dtype": "string", "shape": []}
        primary = _descriptor(run, "primary", described)
        yield Doc(number, "descriptor", primary.descriptor_doc)
        others: dict[str, ComposeDescriptorBundle] = {}
        if self.baseline:
            baseline = _descriptor(run, "baseline", {"b0": _number(None)})
            yield Doc(number, "descriptor", baseline.descriptor_doc)
            yield Doc(number, "event", _event(baseline, {"b0": 1.0}, t0))
        paged = 0
        for n in range(self.points):
            at = t0 + n / 100 + chance.randrange(5) / 1000
            data: dict[str, Any] = {key: n + i / 8 for i, key in enumerate(keys)}
            for key in keys if self.gaps else ():
                if chance.random() < self.gaps:
                    data[key] = chance.choice([float("nan"), float("inf"), None])
            if self.late:
                data["late"] = n + 0.75 if n >= late_from else "not yet"
            data["note"] = "a text"
            event = _event(primary, data, at)
            yield Doc(number, "event", event)
            if chance.random() < self.repeats:
                yield Doc(number, "event", event)
            if self.monitor and chance.random() < 0.4:
                if "pressure_monitor" not in others:
                    others["pressure_monitor"] = _descriptor(run, "pressure_monitor", {"p": _number("mbar")})
                    yield Doc(number, "descriptor", others["pressure_monitor"].descriptor_doc)
                event = _event(others["pressure_monitor"], {"p": n + 0.5}, at + 0.5, own=at + 0.0031)
                yield Doc(number, "event", event)
            if self.pages and chance.random() < 0.1:
                if "flyer" not in others:
                    others["flyer"] = _descriptor(run, "flyer", {"x": _number("mm"), "y": _number("V")})
                    yield Doc(number, "descriptor", others["flyer"].descriptor_doc)
                rows = chance.randrange(1, 30)
                yield Doc(number, "event_page", _page(others["flyer"], paged, rows, at))
                paged += rows
        if self.stops:
            yield Doc(number, "stop", run.compose_stop(time=t0 + self.points, validate=False))


def _number(units: str | None) -> dict[str, Any]:
    return {"source": "sim", "dtype": "number", "shape": []} | ({"units": units} if units else {})


def _descriptor(run: ComposeRunBundle, name: str, described: dict[str, Any]) -> ComposeDescriptorBundle:
    return run.compose_descriptor(name=name, data_keys=described, validate=False)


def _event(
    descriptor: ComposeDescriptorBundle, data: dict[str, Any], at: float, *, own: float | None = None
) -> dict[str, Any]:
    stamps = dict.fromkeys(data, at if own is None else own)
    return descriptor.compose_event(data=data, timestamps=stamps, time=at, validate=False)


def _page(descriptor: ComposeDescriptorBundle, first: int, rows: int, at: float) -> dict[str, Any]:
    stamps = [at + i / 5000 for i in range(rows)]  # before the next page's: a flyer's rows have times of their own
    return descriptor.compose_event_page(
        data={"x": [first + i + 0.25 for i in range(rows)], "y": [first + i + 0.5 for i in range(rows)]},
        timestamps={"x": stamps, "y": stamps},
        time=[at + 1.0] * rows,  # when the page was collected, which is not when the readings were made
        seq_num=list(range(first + 1, first + rows + 1)),
        validate=False,
    )
