"""How much longer a plan takes because our callback is subscribed.

A RunEngine counts a device, in turns with no callback, with an empty function and with our callback, in an order that
rotates; the difference within a turn is what counts. The device's readings cost next to nothing, which is
unkind to us: the quicker the device, the larger our share. The same is measured with ophyd signals. Uploading goes on
while the plan runs, to a sink in a process of its own, which takes as little as it can of a machine that a server would
not be on; and once more with nobody listening.
"""

from __future__ import annotations

import random
import shutil
import socket
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bluesky import RunEngine
from bluesky.plans import count

from atomscale_bluesky import AtomscaleCallback, Settings

from . import documents
from .report import Cell, Report, Table, middle, percentile
from .sink import sink

# Signals → events in one run.
EVENTS = {10: 2000, 100: 1000, 1000: 250}
SHORT_EVENTS = {10: 20, 100: 10}
TURNS = 8


class Quick:
    """A device whose signals are at hand: reading it costs one dict per signal, made new each time."""

    parent = None

    def __init__(self, signals: int) -> None:
        self.name = "quick"
        self._names = documents.keys(signals)
        self._chance = random.Random(signals).random

    def read(self) -> OrderedDict[str, Any]:
        """A new float for each signal."""
        now = time.time()
        return OrderedDict((name, {"value": self._chance() * 1000.0, "timestamp": now}) for name in self._names)

    def describe(self) -> OrderedDict[str, Any]:
        """Plain numbers with a unit."""
        described = {"source": "quick", "dtype": "number", "shape": [], "units": "degC"}
        return OrderedDict((name, dict(described)) for name in self._names)

    def read_configuration(self) -> dict[str, Any]:
        """None."""
        return {}

    describe_configuration = read_configuration


def ophyd_device(signals: int) -> Any:
    """A device of so many ophyd signals that hold their value themselves."""
    from ophyd import Component, Device, Signal

    names = documents.keys(signals)
    kind = type("Chamber", (Device,), {name: Component(Signal, value=0.5, kind="hinted") for name in names})
    return kind("", name="chamber")


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Measure with the server up and with the server down."""
    rounds = rounds or (1 if short else TURNS)
    report = Report(f"How much longer a plan takes with our callback, {rounds} turns")
    engine = RunEngine({}, call_returns_result=False)
    with tempfile.TemporaryDirectory() as name, sink() as url:
        report.tables = [
            _measured("server up, quick device", engine, Quick, url, Path(name), rounds, short),
            _measured("server up, ophyd signals", engine, ophyd_device, url, Path(name), rounds, short),
            _measured("server down, quick device", engine, Quick, _nobody(), Path(name), rounds, short, up=False),
        ]
    report.notes += [
        "µs per event: a run's time over its events, opening and closing it included; median of the runs",
        "%: how much longer a run takes than the one without in the same turn, median of the turns and their middle "
        "half; where the half is wide it is mostly noise; least: the quickest run of each, set against each other",
        "each run has a callback and a spool of its own, made before its clock starts; what is left to deliver when "
        "the run is over is delivered, or thrown away where nobody listens, before the next run",
        "inside: what the RunEngine's thread spent in `__call__`, timed there, per event",
    ]
    return report


def _measured(
    title: str,
    engine: RunEngine,
    make: Callable[[int], Any],
    url: str,
    folder: Path,
    rounds: int,
    short: bool,
    *,
    up: bool = True,
) -> Table:
    table = Table(
        f"AtomscaleCallback, {title}",
        [
            "signals",
            "events",
            "without, µs per event",
            "empty callback, %",
            "ours, %",
            "middle half",
            "least, %",
            "inside, µs",
            "least, µs",
        ],  # fmt: skip
    )
    for signals, events in (SHORT_EVENTS if short else EVENTS).items():
        without, empty, ours, inside = _turns(engine, make(signals), events, url, folder, rounds, up=up)
        longer = [100.0 * (b - a) / a for a, b in zip(without, ours, strict=True)]
        of_empty = [100.0 * (b - a) / a for a, b in zip(without, empty, strict=True)]
        half = f"{percentile(longer, 0.25):+.1f} to {percentile(longer, 0.75):+.1f}"
        row: list[Cell] = [signals, events, middle(without), f"{middle(of_empty):+.1f}", f"{middle(longer):+.1f}", half]
        least = 100.0 * (min(ours) - min(without)) / min(without)
        table.rows.append([*row, f"{least:+.1f}", middle(inside), min(inside)])
    return table


def _turns(
    engine: RunEngine, device: Any, events: int, url: str, folder: Path, rounds: int, *, up: bool
) -> tuple[list[float], list[float], list[float], list[float]]:
    """The µs per event of each run: without a callback, with an empty one, with ours, and what ours took of it."""
    without: list[float] = []
    empty: list[float] = []
    with_ours: list[float] = []
    inside: list[float] = []

    def none() -> None:
        without.append(_run(engine, device, events, None) / events * 1e6)

    def nothing() -> None:
        empty.append(_run(engine, device, events, lambda name, doc: None) / events * 1e6)

    def ours() -> None:
        settings = Settings(spool_dir=str(folder / "spool"), endpoint=url, api_key="local-key", exit_timeout_s=0.0)
        with AtomscaleCallback(settings=settings) as callback:
            timed = _Timed(callback)
            with_ours.append(_run(engine, device, events, timed) / events * 1e6)
            inside.append(timed.spent_s / events * 1e6)
            callback.close(20.0 if up else 0.0)
        shutil.rmtree(folder / "spool")

    order = [none, nothing, ours]
    for _ in range(rounds + 1):
        for run in order:
            run()
        order.append(order.pop(0))
    return without[1:], empty[1:], with_ours[1:], inside[1:]


class _Timed:
    """The callback with a clock around it."""

    def __init__(self, callback: AtomscaleCallback) -> None:
        self._callback = callback
        self.spent_s = 0.0

    def __call__(self, name: str, doc: Any) -> None:
        begin = time.perf_counter()
        self._callback(name, doc)
        self.spent_s += time.perf_counter() - begin


def _run(engine: RunEngine, device: Any, events: int, callback: Any) -> float:
    plan = count([device], num=events)
    begin = time.perf_counter()
    if callback is None:
        engine(plan)
    else:
        engine(plan, callback)
    return time.perf_counter() - begin


def _nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"
