"""How far the process grows while it works: a long run beside its upload, and a backlog that is delivered.

Each is done by a process of its own, which looks at its resident size after the imports, along the way, and at its
peak. What has to stay bounded must not grow from one half of the work to the other.
"""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from atomscale_bluesky import AtomscaleCallback

from . import documents
from .report import Report, Table
from .sink import sink
from .spooled import connected, spool_run

CHANNELS = 100
EVENTS = (20_000, 100_000)
SHORT_EVENTS = (500, 1500)
LOOKS = 20
MB = 2**20


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Measure both, in two lengths."""
    report = Report("How far the process grows over its size after the imports")
    table = Table(
        f"AtomscaleCallback, {CHANNELS} channels, MB",
        ["", "rows", "after the imports", "grown at a quarter", "at half", "at the end", "peak", "spooled on disk"],
    )
    with tempfile.TemporaryDirectory() as name, sink() as url:
        for what in ("a long run, uploaded meanwhile", "a long run, nobody listens", "a backlog delivered"):
            for events in SHORT_EVENTS if short else EVENTS:
                spool = Path(name) / "spool"
                if what.startswith("a backlog"):
                    spool_run(spool, url, CHANNELS, events)
                found = _in_a_process(what, spool, "http://127.0.0.1:9" if "nobody" in what else url, events)
                table.rows.append([what, events, *found])
                shutil.rmtree(spool, ignore_errors=True)
    report.tables.append(table)
    report.notes += [
        "resident size as the system tells it, Linux only; the peak includes what was given back",
        "a long run is fed back to back, far faster than a plan makes events, so that much of it waits to be uploaded",
    ]
    return report


def _in_a_process(what: str, spool: Path, url: str, events: int) -> list[float | str]:
    order = json.dumps([what, str(spool), url, events])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", order], capture_output=True, text=True, check=True, timeout=900
    )
    return json.loads(done.stdout)


def _work(what: str, spool: Path, url: str, events: int) -> list[float | str]:
    begin = resident()
    if begin is None:
        return ["unknown"] * 6
    grown: list[float] = []

    def look() -> None:
        grown.append((resident() or 0.0) - begin)

    callback = AtomscaleCallback(settings=connected(spool, url))
    if what.startswith("a backlog"):
        done = threading.Event()
        thread = threading.Thread(target=lambda: (callback.drain(600.0), done.set()))
        thread.start()
        while not done.wait(0.05):
            look()
        thread.join()
        size = 0.0
    else:
        opening, coming, stop = documents.stream(CHANNELS, events)
        for name, doc in opening:
            callback(name, doc)
        for i, doc in enumerate(coming):
            callback("event", doc)
            if i % (events // LOOKS) == 0:
                look()
        size = sum(path.stat().st_size for path in spool.rglob("*") if path.is_file()) / MB
        callback("stop", stop)
        if "nobody" not in what:
            callback.drain(600.0)
    gc.collect()
    look()
    callback.close(0.0)
    quarter, half = grown[len(grown) // 4], grown[len(grown) // 2]
    return [begin, quarter, half, grown[-1], (resident("VmHWM") or 0.0) - begin, size]


def resident(line: str = "VmRSS") -> float | None:
    """This process's size, MB."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return next((int(text.split()[1]) / 1024 for text in status.splitlines() if text.startswith(line)), None)


if __name__ == "__main__":
    import logging

    logging.getLogger("atomscale_bluesky").setLevel(logging.CRITICAL)
    told = json.loads(sys.argv[1])
    print(json.dumps(_work(told[0], Path(told[1]), told[2], told[3])))
