"""What `atomscale-bluesky send` takes for a large recording: time, and memory over its imports; killed and resumed too.

Each is done by a process of its own, whose peak is read from outside. After the kills every reading has to be in the
spool once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

from . import documents
from .report import Report, Table
from .sink import sink

CHANNELS = 12
EVENTS, SHORT_EVENTS = 340_000, 2000
KILLS = 10
IMPORTS = (
    "import atomscale_bluesky.cli.send, atomscale_bluesky.sources.recordings, atomscale_bluesky.sources.intake, "
    "atomscale_bluesky.delivery.uploader; print(open('/proc/self/status').read())"
)


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Measure a file into the spool, the same with delivery, and the same with kills."""
    events = SHORT_EVENTS if short else EVENTS
    report = Report("What sending a recording takes")
    with tempfile.TemporaryDirectory() as name, sink() as url:
        path = Path(name) / "recording.jsonl"
        write(path, events)
        size = path.stat().st_size / 1e6
        table = Table(
            f"AtomscaleCallback's spool, {CHANNELS} channels, {size:.0f} MB of JSON lines, {events} events",
            ["", "s", "MB/s", "peak over the imports, MB", "points in the spool or sent"],
        )
        begin = _memory(subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True).stdout)
        one_go = _Sending(path, Path(name) / "one go", url, "--spool-only")
        took = one_go.to_its_end()
        table.rows.append(["into the spool", took, size / took, one_go.peak - begin, one_go.points()])
        delivered = _Sending(path, Path(name) / "delivered", url)
        took = delivered.to_its_end()
        table.rows.append(["delivered", took, size / took, delivered.peak - begin, events * CHANNELS])
        killed = _Sending(path, Path(name) / "killed", url, "--spool-only")
        took = sum(killed.until(one_go.bytes() * n / (KILLS + 1)) for n in range(1, KILLS + 1)) + killed.to_its_end()
        table.rows.append([f"killed {KILLS} times", took, size / took, killed.peak - begin, killed.points()])
    report.tables.append(table)
    report.notes += [
        f"{events * CHANNELS} points are in the file; a run that was killed begins again at the file's first line",
        "the peak is that of the largest process, Linux only",
    ]
    return report


def write(path: Path, events: int) -> None:
    """Write a recording with one run, as suitcase-jsonl does."""
    opening, coming, stop = documents.stream(CHANNELS, events)
    with path.open("w", encoding="utf-8") as file:
        for document in opening:
            file.write(json.dumps(document) + "\n")
        for doc in coming:
            file.write(json.dumps(["event", doc]) + "\n")
        file.write(json.dumps(["stop", stop]) + "\n")


class _Sending:
    """Processes that send one file through one spool."""

    def __init__(self, path: Path, spool: Path, url: str, *options: str) -> None:
        self.peak = 0.0
        self._command = [sys.executable, "-m", "atomscale_bluesky", "send", str(path), *options]
        self._spool = spool
        self._environment = os.environ | {
            "ATOMSCALE_API_ENDPOINT": url,
            "ATOMSCALE_API_KEY": "as_benchmark",
            "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool),
            "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        }

    def to_its_end(self) -> float:
        """Send until it is done. Return the seconds."""
        return self._send(None)

    def until(self, size: float) -> float:
        """Send, and kill the process when the spool has so many bytes. Return the seconds."""
        return self._send(size)

    def bytes(self) -> int:
        """The size of the journals."""
        return sum(file.stat().st_size for file in self._spool.glob("*/journal-*"))

    def points(self) -> int:
        """The points that wait in the spool."""
        return SpoolStatus(Spool(self._spool, read_only=True)).status().points.waiting

    def _send(self, size: float | None) -> float:
        begin = time.monotonic()
        with subprocess.Popen(self._command, env=self._environment, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
                except OSError:
                    status = ""
                self.peak = max(self.peak, _memory(status))
                if size is not None and self.bytes() >= size:
                    process.kill()
                time.sleep(0.05)
        if size is None and process.returncode != 0:
            raise RuntimeError(f"`send` has ended with {process.returncode}")
        return time.monotonic() - begin


def _memory(status: str) -> float:
    """Return a process's peak, MB; 0 where the system does not tell it."""
    return next((int(text.split()[1]) / 1024 for text in status.splitlines() if text.startswith("VmHWM")), 0.0)
