"""What a session pays before its first plan: the import, the construction, and a run of a single event.

Imports are timed in processes of their own, in turns with one that imports only what a Bluesky session and any HTTP
client have loaded anyway. The run of one event is a RunEngine's, from the call to when it gives back, with our callback
and without; its delivery goes on beside it and is waited for behind the clock.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bluesky import RunEngine
from bluesky.plans import count

from atomscale_bluesky import AtomscaleCallback

from .plan import Quick
from .report import Report, Table, middle, percentile, spread
from .sink import sink
from .spooled import connected

ROUNDS = 20
SIGNALS = 10
BEFORE = "import bluesky, bluesky.run_engine, requests, orjson"
UNCOLLECTED = "import gc; gc.disable()"
OURS = "import atomscale_bluesky"
TIMED = "import time; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Time all three, in so many turns."""
    rounds = rounds or (1 if short else ROUNDS)
    report = Report(f"What a session pays before its first plan, {rounds} turns")
    importing = Table("Importing, ms", ["", "median", "middle half"])
    for setup, how in (("pass", ""), (UNCOLLECTED, ", garbage collector off")):
        before, with_ours = _imports(rounds, setup)
        more = [b - a for a, b in zip(before, with_ours, strict=True)]
        importing.rows.append([BEFORE + how, middle(before), spread(before, 1)])
        importing.rows.append([f"that and atomscale_bluesky{how}", middle(with_ours), spread(with_ours, 1)])
        importing.rows.append(["which is more by", middle(more), spread(more, 1)])

    with tempfile.TemporaryDirectory() as name, sink() as url:
        constructed, first = _constructions(rounds, Path(name), url)
        without, ours = _single_events(rounds, Path(name), url)
    making = Table("AtomscaleCallback, constructing it, ms", ["", "median", "p90"])
    making.rows.append(["the process's first, which loads what only it needs", middle(first), percentile(first, 0.9)])
    making.rows.append(["a further one", middle(constructed), percentile(constructed, 0.9)])

    running = Table(f"A run of one event of {SIGNALS} signals, start to stop, ms", ["", "median", "middle half"])
    adds = [b - a for a, b in zip(without, ours, strict=True)]
    for what, took in (("without", without), ("with AtomscaleCallback", ours), ("which is more by", adds)):
        running.rows.append([what, middle(took), spread(took)])
    report.tables += [importing, making, running]
    return report


def _python(code: str) -> float:
    # An installed package has its byte code; where none may be written, compiling it would be timed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    return 1000 * float(done.stdout.split()[-1])


def _imports(rounds: int, setup: str) -> tuple[list[float], list[float]]:
    before: list[float] = []
    with_ours: list[float] = []
    for _ in range(rounds + 1):  # the first of each writes byte code
        before.append(_python(f"{setup}; {TIMED.format(BEFORE)}"))
        with_ours.append(_python(f"{setup}; {TIMED.format(f'{BEFORE}; {OURS}')}"))
    return before[1:], with_ours[1:]


def _constructions(rounds: int, folder: Path, url: str) -> tuple[list[float], list[float]]:
    """How long a further callback of a process takes, and the first one of each process."""
    further: list[float] = []
    for i in range(rounds):
        begin = time.perf_counter()
        callback = AtomscaleCallback(settings=connected(folder / f"made-{i}", url))
        further.append(1000 * (time.perf_counter() - begin))
        callback.close(0.0)
    first = [
        _python(
            f"{BEFORE}; {OURS}\n"
            f"settings = atomscale_bluesky.Settings(spool_dir={str(folder / f'first-{i}')!r}, endpoint={url!r}, "
            f"api_key='none', exit_timeout_s=0.0)\n"
            + TIMED.format("callback = atomscale_bluesky.AtomscaleCallback(settings=settings)")
        )
        for i in range(rounds)
    ]
    return further, first


def _single_events(rounds: int, folder: Path, url: str) -> tuple[list[float], list[float]]:
    engine, device = RunEngine({}, call_returns_result=False), Quick(SIGNALS)
    without: list[float] = []
    ours: list[float] = []
    with AtomscaleCallback(settings=connected(folder / "single", url)) as callback:
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            engine(count([device]))
            without.append(1000 * (time.perf_counter() - begin))
            begin = time.perf_counter()
            engine(count([device]), callback)
            ours.append(1000 * (time.perf_counter() - begin))
            if not callback.drain(30.0):
                raise RuntimeError(f"not delivered: {callback.status()}")
    return without[1:], ours[1:]
