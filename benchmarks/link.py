"""How much of a slow link is used: a server that answers late, and as many connections as are permitted.

With so many connections, each of which waits for its answer, a link carries connections over delay requests a second
and no more. The sink counts the connections, and the time from the first chunk's arrival to the last one's answer.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from atomscale_bluesky import AtomscaleCallback, Settings

from .report import Report, Table
from .sink import counted, sink
from .spooled import connected, spool_run

CHANNELS, POINTS = 10, 100
# How late the server answers → chunks in a round.
DELAYS_S = {0.02: 1600, 0.25: 480}


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Drain a backlog over each link."""
    report = Report("A backlog over a slow link")
    permitted = Settings().max_connections
    table = Table(
        f"AtomscaleCallback, {CHANNELS} channels x {POINTS} points per chunk, {permitted} connections permitted",
        ["the server answers after, ms", "chunks", "most connections", "chunks/s", "the connections carry", "used, %"],
    )
    for delay_s, chunks in DELAYS_S.items():
        for _ in range(1 if short else rounds or 3):
            chunks = 40 if short else chunks
            with tempfile.TemporaryDirectory() as name, sink(delay_s) as url:
                spool = Path(name) / "spool"
                spool_run(spool, url, CHANNELS, POINTS * chunks, POINTS)
                with AtomscaleCallback(settings=connected(spool, url)) as callback:
                    if not callback.drain(600.0):
                        raise RuntimeError(f"the backlog was not delivered: {callback.status()}")
                found = counted(url)
                shutil.rmtree(spool)
            most, rate = permitted / delay_s, chunks / found.chunks_s
            table.rows.append([int(1000 * delay_s), chunks, found.connections, rate, most, 100 * rate / most])
    report.tables.append(table)
    report.notes.append(
        "the first chunk of a stream goes alone, which is in the figure; the sink's own time for an answer is, too"
    )
    return report
