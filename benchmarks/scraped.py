"""What it costs a plan that `atomscale-bluesky metrics` reads its spool and is scraped every second.

The command and the one who scrapes have processes of their own, and take no lock that a callback waits for. So what is
left to see is that they share the machine. One contestant, with nobody reading, has two turns in a round: what these
two differ by is noise.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import requests

from atomscale_bluesky import AtomscaleCallback

from . import documents
from .report import Report, Table, middle, percentile, spread
from .sink import sink
from .spooled import connected

CHANNELS = 100
PACE_S = 0.001  # between two events: a fast plan
EVENTS = 6000
SCRAPE_EVERY_S = 1.0
ROUNDS = 7
ALONE, AGAIN, SCRAPED = "nobody reads the spool", "nobody, once more", "`metrics`, scraped every second"


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Time calls with and without the command beside them."""
    rounds = rounds or (1 if short else ROUNDS)
    took: dict[str, list[list[float]]] = {who: [] for who in (ALONE, AGAIN, SCRAPED)}
    scrapes: list[float] = []
    order = list(took)
    with sink() as url:
        for _ in range(rounds):
            for who in order:
                with tempfile.TemporaryDirectory() as name:
                    beside = _scraped(Path(name), scrapes) if who == SCRAPED else nullcontext()
                    took[who].append(_calls(Path(name), url, 200 if short else EVENTS, beside))
            order.append(order.pop(0))

    table = Table(
        f"AtomscaleCallback, a call with an event of {CHANNELS} keys every {1000 * PACE_S:g} ms beside `metrics`, µs",
        ["", "calls", "p50", "p99", "p99.9", "max", "ratio of p50", "middle half", "ratio of p99", "middle half "],
    )
    for who, turns in took.items():
        every = sorted(one for turn in turns for one in turn)
        ratios = [
            [percentile(turn, share) / percentile(alone, share) for turn, alone in zip(turns, took[ALONE], strict=True)]
            for share in (0.5, 0.99)
        ]
        table.rows.append(
            [who, len(every), *(percentile(every, share) for share in (0.5, 0.99, 0.999)), every[-1]]
            + [cell for found in ratios for cell in (f"{middle(found):.2f}x", spread(found))]
        )
    report = Report(f"What a plan pays for being watched, {rounds} rounds", [table])
    report.notes += [
        f"{len(scrapes)} scrapes, of which each took {1000 * middle(scrapes):.0f} ms (median)",
        "the ratios are those of the rounds, to the first row; the second row has the same contestant: its ratios are "
        "the noise",
    ]
    return report


def _calls(folder: Path, url: str, events: int, beside: object) -> list[float]:
    """Times of the calls of one run, µs, while its chunks are delivered."""
    opening, coming, stop = documents.stream(CHANNELS, events + 1)
    pause, took = threading.Event(), []
    with AtomscaleCallback(settings=connected(folder / "spool", url)) as callback, beside:  # type: ignore[attr-defined]
        for name, doc in opening:
            callback(name, doc)
        callback("event", next(coming))  # a run's first event is another matter
        for doc in coming:
            pause.wait(PACE_S)
            begin = time.perf_counter_ns()
            callback("event", doc)
            took.append((time.perf_counter_ns() - begin) / 1000)
        callback("stop", stop)
        callback.drain(60.0)
    return took


@contextmanager
def _scraped(folder: Path, scrapes: list[float]) -> Iterator[None]:
    """`atomscale-bluesky metrics` for the spool in `folder`, asked every second; adds what each scrape took, in s."""
    serve = [sys.executable, "-m", "atomscale_bluesky", "metrics", "--listen", "127.0.0.1:0", str(folder / "spool")]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as serving:
        assert serving.stdout is not None
        address = next(word for word in serving.stdout.readline().split() if word.startswith("http")).rstrip(";")
        ask = [sys.executable, "-m", "benchmarks.scraped", address]
        with subprocess.Popen(ask, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
            try:
                yield
            finally:
                said, _ = asking.communicate("\n")
                serving.terminate()
    scrapes.extend(map(float, said.split()))


def scrape_until_told(address: str) -> None:
    """Scrape every second until a line comes on the standard input, and print what each scrape took, in s."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set())).start()
    while True:
        begin = time.perf_counter()
        requests.get(address, timeout=10).raise_for_status()
        sys.stdout.write(f"{time.perf_counter() - begin}\n")
        if over.wait(SCRAPE_EVERY_S):
            return


if __name__ == "__main__":
    scrape_until_told(sys.argv[1])
