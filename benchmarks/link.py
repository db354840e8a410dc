"""How much of a slow link is used: a server that answers late, and as many connections as are permitted.

With so many connections, each of which waits for its answer, a link carries connections over delay requests a second
and no more. The sink counts the connections, and the time from the first chunk's arrival to the last one's answer.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

from atomscale_bluesky import AtomscaleCallback, Settings

from . import drainers
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
        ["the server answers after, ms", "chunks", "most connections", "chunks/s", "bare connections carry", "used, %"],
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
                carried = _carried(url, chunks, permitted)
            rate = chunks / found.chunks_s
            table.rows.append([int(1000 * delay_s), chunks, found.connections, rate, carried, 100 * rate / carried])
    report.tables.append(table)
    report.notes.append(
        "the first chunk of a stream goes alone, which is in the figure; bare connections: as many sockets, and down "
        "each a body that is ready as soon as the answer to the one before is there"
    )
    return report


def _carried(url: str, chunks: int, connections: int) -> float:
    """Chunks per second of sockets that do nothing else."""
    order = {"channels": CHANNELS, "points_per_chunk": POINTS, "chunks": 1}
    [(_, channels)] = drainers.chunks(order)
    body = json.dumps({"data_id": "bare", "chunk_index": 0, "channels": channels}).encode()
    message = b"POST /metrology/stream/chunk/multi HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    host, _, port = url.removeprefix("http://").partition(":")

    def send() -> None:
        with socket.create_connection((host, int(port))) as connection:
            for _ in range(chunks // connections):
                connection.sendall(message)
                connection.recv(2**16)

    threads = [threading.Thread(target=send) for _ in range(connections)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return chunks // connections * connections / (time.perf_counter() - begin)
