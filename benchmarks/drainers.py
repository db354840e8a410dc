"""Who is timed by `drain`, one per process: `python drainers.py <who> <order as JSON>` prints one line of JSON.

Needs nothing but what the contestant itself needs, so that it runs in that one's environment. Everybody gets the same
number of points in the same chunks; those who have no spool get them as lists in memory, made before the clock starts.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

Order = dict[str, Any]

# How far the vendor's client, which has no limit of its own, may be ahead of the confirmations.
WINDOW = 64


class Clocks:
    """When the timed part began, by the wall and by the processor."""

    begin = cpu = 0.0

    def start(self) -> None:
        """From now on it counts."""
        self.begin, self.cpu = time.perf_counter(), time.process_time()


clocks = Clocks()


def chunks(order: Order) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
    """Index and channels of every chunk; values from one pool, so that making them is no work worth a mention."""
    chance, points = random.Random(1), order["points_per_chunk"]
    pool = [chance.random() * 1000.0 for _ in range(10 * points)]
    for index in range(order["chunks"]):
        begin = 1.76e9 + index * points
        times = [begin + i for i in range(points)]
        yield (
            index,
            {
                f"chamber_signal_{i:04d}": {
                    "timestamps": times,
                    "values": pool[(i * 7) % points :][:points],
                    "units": "degC",
                }
                for i in range(order["channels"])
            },
        )


def ours(order: Order) -> None:
    """The callback that finds a backlog in its spool, from its construction to `drain`'s return."""
    from pathlib import Path

    from atomscale_bluesky import AtomscaleCallback
    from benchmarks.spooled import connected

    with AtomscaleCallback(settings=connected(Path(order["spool"]), order["url"])) as callback:
        if not callback.drain(600.0):
            raise RuntimeError(f"the backlog was not delivered: {callback.status()}")


def plain(order: Order) -> None:
    """A loop that posts one chunk after the other with `requests` and `json=`, and looks at the status."""
    import requests

    session = requests.Session()
    base = f"{order['url']}/metrology/stream"
    data_id = session.post(f"{base}/initialize", json={"stream_name": "plain"}).json()["data_id"]
    for index, channels in chunks(order):
        chunk = {"data_id": data_id, "chunk_index": index}
        if order["single"]:
            bodies = [{**chunk, "channel_name": name, **channel} for name, channel in channels.items()]
        else:
            bodies = [{**chunk, "channels": channels}]
        for body in bodies:
            answer = session.post(f"{base}/chunk" if order["single"] else f"{base}/chunk/multi", json=body)
            answer.raise_for_status()
            answer.json()
    session.post(f"{base}/{data_id}/finalize").raise_for_status()


def vendor(order: Order) -> None:
    """The vendor's client; it tells nobody what arrived, so the sink is asked, and it is never far ahead."""
    from atomscale.streaming import TimeseriesStreamer

    streamer = TimeseriesStreamer("none", endpoint=order["url"], points_per_chunk=order["points_per_chunk"])
    data_id = streamer.initialize(stream_name="vendor")
    counter = http.client.HTTPConnection(order["url"].removeprefix("http://"))

    def arrived() -> int:
        counter.request("GET", "/counted")
        return json.loads(counter.getresponse().read())[1]

    before = arrived()
    clocks.start()  # initialize may first measure the server's clock for some seconds
    requests = looked = 0
    for index, channels in chunks(order):
        if order["single"]:
            for name, channel in channels.items():
                streamer.push(data_id, index, name, channel["timestamps"], channel["values"], channel["units"])
        else:
            streamer.push_multi(data_id, index, channels)
        requests += len(channels) if order["single"] else 1
        if requests - looked >= WINDOW // 2:
            looked = requests
            while arrived() - before < requests - WINDOW:
                time.sleep(0.001)
    while arrived() - before < requests:
        time.sleep(0.001)
    streamer.finalize(data_id)


def ceiling(order: Order) -> None:
    """Bodies that are ready as bytes, sent down two sockets without waiting for each answer: what the sink can take."""
    import socket
    import threading

    channels = dict(next(chunks(order))[1])
    chunk: dict[str, Any] = {"data_id": "ceiling", "chunk_index": 0}
    if order["single"]:
        path, count = "chunk", order["chunks"] * len(channels)
        [(name, channel), *_] = channels.items()
        chunk |= {"channel_name": name, **channel}
    else:
        path, count = "chunk/multi", order["chunks"]
        chunk["channels"] = channels
    body = json.dumps(chunk).encode()
    head = f"POST /metrology/stream/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    message = head.encode() + body
    host, port = order["url"].removeprefix("http://").split(":")

    def send(count: int) -> None:
        with socket.create_connection((host, int(port))) as connection:
            reader = connection.makefile("rb")
            ahead = 0
            for _ in range(count):
                connection.sendall(message)
                ahead += 1
                if ahead == 4:
                    _skip(reader)
                    ahead -= 1
            for _ in range(ahead):
                _skip(reader)

    threads = [threading.Thread(target=send, args=(part,)) for part in (count // 2, count - count // 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _skip(reader: Any) -> None:
    length = 0
    while (line := reader.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    reader.read(length)


def main() -> None:
    """Import first, then run the contestant with the clocks on."""
    who = {"ours": ours, "plain": plain, "vendor": vendor, "ceiling": ceiling}[sys.argv[1]]
    order = json.loads(sys.argv[2])
    # Of the callback also what it imports where it delivers: a session pays that once.
    imported = {
        "ours": ("atomscale_bluesky", "atomscale_bluesky.delivery.uploader", "requests", "psutil"),
        "plain": ("requests",),
        "vendor": ("atomscale.streaming",),
    }
    for name in imported.get(sys.argv[1], ()):
        __import__(name)
    clocks.start()
    who(order)
    print(json.dumps({"s": time.perf_counter() - clocks.begin, "cpu_s": time.process_time() - clocks.cpu}))


if __name__ == "__main__":
    main()
