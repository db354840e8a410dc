"""How long a call can take at worst: with a backlog that drains at full speed beside it.

Python runs one thread at a time. Whoever writes to a file lets the others go first and asks for its turn again, and a
thread that computes gives it up after the interpreter's switch interval only, 5 ms unless somebody changes it. So a
call while a backlog goes out can take that much longer, and so can everything else that the plan's thread does: the
floor, which knows nothing of us, is timed in the same way beside the same backlog.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.delivery.uploader_service import is_served

from . import documents
from .event import Floor
from .report import Report, Table, middle, percentile
from .sink import counted, sink
from .spooled import connected, spool_run

CHANNELS = 100
POINTS_PER_CHUNK = 100
PACE_S = 0.001  # between two events: a fast plan
EVENTS = 1500
BACKLOG_ROWS = 60_000
ROUNDS = 5


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Time calls alone and beside a draining backlog."""
    rounds = rounds or (1 if short else ROUNDS)
    report = Report(f"How long a call takes at worst, {rounds} rounds")
    table = Table(
        f"AtomscaleCallback.__call__ with an event of {CHANNELS} keys every {1000 * PACE_S:g} ms, µs",
        ["", "calls", "p50", "p99", "p99.9", "max", "backlog, 10⁶ points/s"],
    )
    took: dict[str, list[float]] = {}
    speeds: dict[str, list[float]] = {}
    events, rows = (100, 3000) if short else (EVENTS, BACKLOG_ROWS)
    with tempfile.TemporaryDirectory() as name, sink() as url:
        folder = Path(name)
        spool_run(folder / "backlog", url, CHANNELS, rows)
        who: dict[str, Callable[[], tuple[list[float], float]]] = {
            "our callback, nothing else to do": lambda: _ours(folder, url, events, backlog=False),
            "our callback, its own backlog draining": lambda: _ours(folder, url, events, backlog=True),
            "our callback, a process of its own draining": lambda: _process(folder, url, events),
            "our callback offline, another's backlog draining": lambda: _beside(folder, url, events, "offline"),
            "floor (orjson + write), a backlog draining": lambda: _beside(folder, url, events, "floor"),
            "an empty function, a backlog draining": lambda: _beside(folder, url, events, "empty"),
        }
        names = list(who)
        for _ in range(rounds):
            for one in names:
                times, speed = who[one]()
                took.setdefault(one, []).extend(times)
                speeds.setdefault(one, []).append(speed)
            names.append(names.pop(0))
    for one in who:
        tails = [percentile(took[one], share) for share in (0.5, 0.99, 0.999)]
        table.rows.append([one, len(took[one]), *tails, max(took[one]), middle(speeds[one])])
    report.tables.append(table)
    report.notes += [
        "calls while the backlog was draining; those after its end are not counted",
        "the pace is kept by waiting, so every call begins on a thread that has just got its turn",
    ]
    return report


def _ours(folder: Path, url: str, events: int, *, backlog: bool) -> tuple[list[float], float]:
    if backlog:
        shutil.copytree(folder / "backlog", folder / "spool")
    with AtomscaleCallback(settings=connected(folder / "spool", url)) as callback:
        found = _paced(callback, events, callback if backlog else None, url)
        callback.drain(60.0)
    shutil.rmtree(folder / "spool")
    return found


def _process(folder: Path, url: str, events: int) -> tuple[list[float], float]:
    """With the uploader in a process of its own, as a site would run it; it is there before the first event."""
    spool = folder / "spool"
    shutil.copytree(folder / "backlog", spool)
    settings = connected(spool, url, uploader="none")
    environment = {
        "ATOMSCALE_API_KEY": "none",
        "ATOMSCALE_API_ENDPOINT": url,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool),
    }
    command = [sys.executable, "-m", "atomscale_bluesky", "upload", "--follow"]
    with AtomscaleCallback(settings=settings) as callback:
        serving = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
        try:
            while not is_served(settings):
                time.sleep(0.01)
            found = _paced(callback, events, callback, url)
            callback.drain(60.0)
        finally:
            serving.terminate()
            serving.wait(30.0)
    shutil.rmtree(spool)
    return found


def _beside(folder: Path, url: str, events: int, who: str) -> tuple[list[float], float]:
    shutil.copytree(folder / "backlog", folder / "spool")
    with ExitStack() as stack:
        draining = stack.enter_context(AtomscaleCallback(settings=connected(folder / "spool", url)))
        call: Any = lambda name, doc: None  # noqa: E731 - the empty function that is timed
        if who == "offline":
            settings = Settings(spool_dir=str(folder / "offline"), offline=True)
            call = stack.enter_context(AtomscaleCallback(settings=settings))
        elif who == "floor":
            write = stack.enter_context(Floor(folder).run(documents.run(1, 0)))
            call = lambda name, doc: write(name, doc) if name == "event" else None  # noqa: E731 - events only
        found = _paced(call, events, draining, url)
        draining.drain(60.0)
    shutil.rmtree(folder / "spool")
    shutil.rmtree(folder / "offline", ignore_errors=True)
    return found


def _paced(
    call: Callable[[str, dict[str, Any]], object], events: int, draining: AtomscaleCallback | None, url: str
) -> tuple[list[float], float]:
    """Times of the calls, µs, and 10⁶ points/s that went out meanwhile; ends with the backlog, if there is one."""
    opening, coming, stop = documents.stream(CHANNELS, events + 1)
    for name, doc in opening:
        call(name, doc)
    prepared = list(coming)
    call("event", prepared[0])  # a run's first event is another matter
    done, pause, took = threading.Event(), threading.Event(), []
    waiting = threading.Thread(target=lambda: draining and (draining.drain(60.0), done.set()))
    waiting.start()
    before, begin = counted(url).series, perf_counter_ns()
    for doc in prepared[1:]:
        pause.wait(PACE_S)
        if done.is_set():
            break
        start = perf_counter_ns()
        call("event", doc)
        took.append((perf_counter_ns() - start) / 1000)
    seconds = (perf_counter_ns() - begin) / 1e9
    series = counted(url).series - before if draining else 0
    call("stop", stop)
    waiting.join()
    return took, series * POINTS_PER_CHUNK / seconds / 1e6
