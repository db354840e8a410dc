"""How much of a slow link is used: a server that answers late, and as many connections as the uploader finds.

With so many connections, each of which waits for its answer, a link carries connections over delay requests a second
and no more. The sink counts the connections, and the time from the first chunk's arrival to the last one's answer. Each
backlog goes out twice in a round: with the number of connections that the uploader finds, and with at most eight.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from atomscale_bluesky import AtomscaleCallback, Settings

from . import drainers
from .report import Report, Table
from .sink import counted, sink
from .spooled import connected, spool_run

POINTS = 100
FEW = 8


class Link(NamedTuple):
    """One link and its backlog."""

    delay_s: float
    channels: int
    chunks: int


LINKS = (Link(0.02, 10, 2000), Link(0.02, 100, 800), Link(0.1, 10, 1500), Link(0.1, 100, 1000), Link(0.25, 10, 500))


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Drain a backlog over each link."""
    report = Report("A backlog over a slow link")
    permitted = Settings().max_connections
    table = Table(
        f"AtomscaleCallback, {POINTS} points per chunk",
        [
            "the server answers after, ms", "channels", "chunks", "at most", "most connections", "10⁶ points/s",
            f"times those of {FEW}", "bare connections carry", "used, %",
        ],
    )  # fmt: skip
    for link in LINKS:
        for _ in range(1 if short else rounds or 3):
            chunks = 40 if short else link.chunks
            with tempfile.TemporaryDirectory() as name, sink(link.delay_s) as url:
                spool_run(Path(name) / "backlog", url, link.channels, POINTS * chunks, POINTS)
                speeds = {most: _drained(Path(name), url, link, chunks, most) for most in (FEW, permitted)}
                carried = {most: _carried(url, link, most) for most in speeds}
            for most, (speed, connections) in speeds.items():
                table.rows.append(
                    [
                        int(1000 * link.delay_s), link.channels, chunks, most, connections, speed,
                        speed / speeds[FEW][0], carried[most], 100 * speed / carried[most],
                    ]
                )  # fmt: skip
    report.tables.append(table)
    report.notes.append(
        "the first chunk of a stream goes alone, and then the number of connections grows, which is in the figure; "
        "bare connections: as many sockets as permitted, and down each a body that is ready as soon as the answer to "
        "the one before is there"
    )
    return report


def _drained(folder: Path, url: str, link: Link, chunks: int, most: int) -> tuple[float, int]:
    """Return 10⁶ points per second, and the most connections that there were at a time."""
    shutil.copytree(folder / "backlog", folder / "spool")
    counted(url)
    with AtomscaleCallback(settings=connected(folder / "spool", url, max_connections=most)) as callback:
        if not callback.drain(600.0):
            raise RuntimeError(f"the backlog was not delivered: {callback.status()}")
    found = counted(url)
    shutil.rmtree(folder / "spool")
    return chunks * POINTS * link.channels / found.chunks_s / 1e6, min(most, found.connections)


def _carried(url: str, link: Link, connections: int) -> float:
    """10⁶ points per second of sockets that do nothing else."""
    order = {"channels": link.channels, "points_per_chunk": POINTS, "chunks": 1}
    [(_, channels)] = drainers.chunks(order)
    body = json.dumps({"data_id": "bare", "chunk_index": 0, "channels": channels}).encode()
    message = b"POST /metrology/stream/chunk/multi HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    each = max(2, int(1.0 / link.delay_s))  # a second, or more if the sink is what bounds it
    host, _, port = url.removeprefix("http://").partition(":")

    def send() -> None:
        with socket.create_connection((host, int(port))) as connection:
            for _ in range(each):
                connection.sendall(message)
                connection.recv(2**16)

    threads = [threading.Thread(target=send) for _ in range(connections)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    return each * connections * POINTS * link.channels / seconds / 1e6
