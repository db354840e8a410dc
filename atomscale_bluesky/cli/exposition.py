"""The numbers of spools in the form that Prometheus reads, and the application that answers with them.

Names follow Prometheus' conventions: a unit at the end, `_total` for what only grows. A label has few values: the
spools that were named, and fixed words. No label holds a run, a channel or an error's text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ..model.loss import Loss
from ..status.account import Counts
from ..status.spool_figures import Figures, SpoolFigures

_STATES = ("running", "delivering", "waiting", "parked", "interrupted", "finalized", "discarded", "unreadable")
# For reasons of another version's. Keeps the number of label values bounded.
_OTHER = "other"


class Watched(NamedTuple):
    """A spool, and the limits that its settings give."""

    path: Path
    figures: SpoolFigures
    max_bytes: int
    min_free_bytes: int


class SpoolCollector(Collector):
    """Reads the spools when Prometheus asks."""

    def __init__(self, spools: Iterable[Watched], version: str) -> None:
        self._spools = tuple(spools)
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """Yield the present numbers."""
        yield InfoMetricFamily(
            "atomscale_bluesky_build", "The version of the package that reads.", {"version": self._version}
        )
        families = _Families()
        for spool in self._spools:
            figures = spool.figures.read()
            name = str(spool.path)
            families.gauge("spool_readable", name, figures is not None)
            if figures is not None:
                _in_the_spool(families, name, figures, time.time())
                _room(families, name, figures, spool)
                _since_the_start(families, name, figures)
        yield from families.all()


def _in_the_spool(families: _Families, spool: str, figures: Figures, now: float) -> None:
    for state in _STATES:
        families.gauge("spool_runs", spool, figures.runs.get(state, 0), state)
    for fate, n in _fates(figures.points).items():
        families.gauge("spool_points", spool, n, fate)
    families.gauge("spool_runs_for_operator", spool, figures.runs_for_operator)
    families.gauge("spool_runs_without_uploader", spool, figures.runs_without_uploader)
    families.gauge("spool_runs_not_kept", spool, figures.runs_not_kept)
    families.gauge("oldest_waiting_point_age_seconds", spool, _age(figures.oldest_waiting, now))
    families.gauge("outage_age_seconds", spool, _age(figures.outage_since, now))
    if figures.last_success is not None:
        families.gauge("last_success_timestamp_seconds", spool, figures.last_success)
    if figures.clock_offset_s is not None:
        families.gauge("clock_offset_seconds", spool, figures.clock_offset_s)
    families.gauge("spool_read_duration_seconds", spool, figures.read_s)


def _room(families: _Families, spool: str, figures: Figures, limits: Watched) -> None:
    families.gauge("spool_takes_readings", spool, figures.takes_readings)
    families.gauge("spool_size_bytes", spool, figures.used_bytes)
    families.gauge("spool_size_limit_bytes", spool, limits.max_bytes)
    families.gauge("spool_disk_free_bytes", spool, figures.free_bytes)
    families.gauge("spool_disk_free_limit_bytes", spool, limits.min_free_bytes)


def _since_the_start(families: _Families, spool: str, figures: Figures) -> None:
    totals = figures.totals
    families.counter("points_seen", spool, totals.points.seen)
    for fate in ("delivered", "left_out", "discarded", "lost"):
        families.counter("points", spool, _fates(totals.points)[fate], fate)
    known = {str(reason): totals.points.left_out.get(reason, 0) for reason in Loss}
    known[_OTHER] = sum(totals.points.left_out.values()) - sum(known.values())
    for reason, n in known.items():
        families.counter("points_left_out", spool, n, reason)
    families.counter("chunks_confirmed", spool, totals.chunks_confirmed)
    families.counter("runs_finished", spool, totals.runs_finished)


def _fates(points: Counts) -> Mapping[str, int]:
    return {
        "delivered": points.delivered,
        "waiting": points.waiting,
        "refused": points.refused,
        "discarded": points.discarded,
        "left_out": sum(points.left_out.values()),
        "lost": points.lost,
    }


def _age(since: float | None, now: float) -> float:
    return 0.0 if since is None else max(0.0, now - since)


# Each metric's help and its labels beside `spool`. The documentation's table has the same.
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "spool_readable": ("1 if the spool was read; 0 if there is none or it cannot be read.", ()),
    "spool_points": ("Points of the runs in the spool, by what happened to them.", ("fate",)),
    "spool_runs": ("Runs in the spool, by state.", ("state",)),
    "spool_runs_for_operator": ("Runs in which something waits for the operator.", ()),
    "spool_runs_without_uploader": ("Runs that are not finished and that no living process delivers.", ()),
    "spool_runs_not_kept": ("Runs of the last seven days that found no disk space.", ()),
    "oldest_waiting_point_age_seconds": ("Age of the oldest waiting point; 0 if none waits.", ()),
    "outage_age_seconds": ("For how long Atomscale has taken no data; 0 if it takes them.", ()),
    "last_success_timestamp_seconds": ("When Atomscale last confirmed a chunk, in Unix time.", ()),
    "clock_offset_seconds": ("What to add to this host's clock to get the server's, when last measured.", ()),
    "spool_read_duration_seconds": ("How long it took to read the spool.", ()),
    "spool_takes_readings": ("1 if new readings are kept; 0 if they are left out for want of space.", ()),
    "spool_size_bytes": ("Size of the spool.", ()),
    "spool_size_limit_bytes": ("Size of the spool at which new readings begin to be left out.", ()),
    "spool_disk_free_bytes": ("Free space on the spool's disk.", ()),
    "spool_disk_free_limit_bytes": ("Free space below which new readings are left out.", ()),
}
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "points_seen": ("Points that came, including those that were left out.", ()),
    "points": ("Points by how they ended.", ("fate",)),
    "points_left_out": ("Readings that did not become points, by the reason.", ("reason",)),
    "chunks_confirmed": ("Chunks that Atomscale confirmed.", ()),
    "runs_finished": ("Runs that were finished and left the spool.", ()),
}


class _Families:
    """The metrics of all spools, each with its samples."""

    def __init__(self) -> None:
        self._gauges = {
            name: GaugeMetricFamily(f"atomscale_bluesky_{name}", text, labels=("spool", *labels))
            for name, (text, labels) in GAUGES.items()
        }
        self._counters = {
            name: CounterMetricFamily(
                f"atomscale_bluesky_{name}", f"{text} Since this process began.", labels=("spool", *labels)
            )
            for name, (text, labels) in COUNTERS.items()
        }

    def gauge(self, name: str, spool: str, value: float, *label: str) -> None:
        """Add a sample of what can rise and fall."""
        self._gauges[name].add_metric((spool, *label), value)

    def counter(self, name: str, spool: str, value: float, *label: str) -> None:
        """Add a sample of what only grows."""
        self._counters[name].add_metric((spool, *label), value)

    def all(self) -> Iterator[Metric]:
        """Yield those with a sample."""
        yield from (one for one in (*self._gauges.values(), *self._counters.values()) if one.samples)


class MetricsApp:
    """The ASGI application that answers GET and HEAD of /metrics."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        status, kind, body = await self._answer(scope)
        headers = {"content-type": kind, "content-length": str(len(body)), "x-content-type-options": "nosniff"}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Any) -> tuple[int, str, bytes]:
        if scope["path"] != "/metrics":
            return 404, "text/plain; charset=utf-8", b"the metrics are at /metrics\n"
        if scope["method"] not in {"GET", "HEAD"}:
            return 405, "text/plain; charset=utf-8", b"this only shows, so it takes nothing but GET\n"
        accept = b",".join(value for name, value in scope["headers"] if name.lower() == b"accept")
        encode, kind = choose_encoder(accept.decode("latin-1"))
        return 200, kind, await asyncio.to_thread(encode, self._registry)
