"""How fast a backlog goes out: from the journal on disk to the last confirmation.

Beside us a plain loop with `requests`, and the vendor's client in an environment of its own. Both push from memory what
we read from disk, check, cut, and keep an account of; neither would know after a crash what is still to be sent.
Everybody sends the same number of points in chunks of the same shape to a sink that answers and keeps nothing, and runs
in a process of its own, in an order that rotates from round to round.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import peers
from .report import Report, Table, middle, percentile, spread
from .sink import counted, sink
from .spooled import spool_run

# Channels, points per chunk → chunks in a round: all channels of a chunk in one request, and where that does not exist.
SIZES = {(10, 100): 3000, (100, 100): 1000, (1000, 100): 100}
SINGLE_SIZES = {(1, 100): 2000, (10, 100): 300}
STREAMS = 50
ROUNDS = 5
SCRIPT = Path(__file__).with_name("drainers.py")
OURS, PLAIN, VENDOR, VENDOR_OLD, CEILING = (
    "AtomscaleCallback", "requests, json=, one by one", "atomscale 0.21.10, push_multi", "atomscale 0.16.0, push",
    "ceiling of the sink",
)  # fmt: skip
Contestants = dict[str, tuple[str, str]]


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Drain backlogs of 10, 100 and 1000 channels, of one run and of fifty, and channel by channel."""
    rounds = rounds or (1 if short else ROUNDS)
    report = Report(f"Draining a backlog: journal on disk to last confirmation, {rounds} rounds")
    new = _contestants(report, VENDOR, peers.ATOMSCALE, with_peers=with_peers)
    old = _contestants(report, VENDOR_OLD, peers.ATOMSCALE_OLD, with_peers=with_peers)
    for single, sizes, contestants in ((False, SIZES, new), (True, SINGLE_SIZES, old)):
        with tempfile.TemporaryDirectory() as name, sink(single_only=single) as url:
            for (channels, points), chunks in sizes.items():
                order = {"url": url, "channels": channels, "points_per_chunk": points, "single": single}
                order["chunks"] = max(2, chunks // 15) if short else chunks
                report.tables.append(_drained(contestants, order, rounds, Path(name)))
                if (channels, single) == (100, False):
                    ours = {OURS: new[OURS]}
                    order["chunks"] = STREAMS if short else chunks
                    report.tables.append(_drained(ours, order, rounds, Path(name), runs=STREAMS))
    report.notes += [
        "speed: millions of points per second, median of the rounds and their middle half; CPU: seconds of the sending "
        "process per million points, all its threads; the sink's beside it",
        "ours includes opening the spool, initialize and finalize; the vendor's client starts its clock after "
        "initialize, and is kept from running more than 64 requests ahead of what has arrived",
        "ceiling: bodies that are ready as bytes, down two sockets, four ahead of their answers",
        "channel by channel: the server knows no other way, which ours finds out at the first chunk",
    ]
    return report


def _contestants(report: Report, vendor: str, requirement: tuple[str, ...], *, with_peers: bool) -> Contestants:
    """Who takes part, and under which interpreter."""
    found = {OURS: ("ours", sys.executable), PLAIN: ("plain", sys.executable)}
    name = requirement[0].replace("==", "-")
    python, problem = peers.environment(name, *requirement) if with_peers else (None, "not asked for")
    if python:
        found[vendor] = ("vendor", str(python))
    else:
        report.notes.append(f"{vendor} is left out: {problem}")
    return found | {CEILING: ("ceiling", sys.executable)}


def _drained(contestants: Contestants, order: dict[str, object], rounds: int, folder: Path, runs: int = 1) -> Table:
    channels, points, chunks = (int(str(order[key])) for key in ("channels", "points_per_chunk", "chunks"))
    backlog = folder / f"backlog-{channels}-{runs}"
    total = sum(spool_run(backlog, str(order["url"]), channels, points * chunks // runs, points) for _ in range(runs))
    took: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    names = list(contestants)
    for _ in range(rounds):
        for name in names:
            who, python = contestants[name]
            spool = folder / "spool"
            if who == "ours":
                shutil.copytree(backlog, spool)
            before = counted(str(order["url"]))
            found = _run(python, who, {**order, "spool": str(spool)})
            after = counted(str(order["url"]))
            if after.series - before.series != chunks * channels:
                raise RuntimeError(f"{name} pushed {after.series - before.series} series of {chunks * channels}")
            took[name].append({**found, "sink_s": after.cpu_s - before.cpu_s, "bytes": after.bytes - before.bytes})
            shutil.rmtree(spool, ignore_errors=True)
        names.append(names.pop(0))
    shutil.rmtree(backlog)
    how = ", channel by channel" if order["single"] else f", {runs} runs" if runs > 1 else ""
    return _table(f"{channels} channels x {points} points per chunk, {chunks} chunks{how}", took, total)


def _run(python: str, who: str, order: dict[str, object]) -> dict[str, float]:
    done = subprocess.run(
        [python, str(SCRIPT), who, json.dumps(order)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        cwd=SCRIPT.parent.parent,
        env={**_environ(), "PYTHONPATH": str(SCRIPT.parent.parent)} if who == "ours" else _environ(),
    )
    if done.returncode:
        raise RuntimeError(f"{who} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _environ() -> dict[str, str]:
    import os

    # Loopback is asked directly, whatever proxies this machine uses.
    return {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def _table(title: str, took: dict[str, list[dict[str, float]]], total: int) -> Table:
    table = Table(
        title,
        [
            "",
            "10⁶ points/s",
            "middle half",
            "CPU s per 10⁶",
            "least",
            "sink's CPU s per 10⁶",
            "MB on the wire",
            "ratio",
        ],
    )
    millions = total / 1e6
    ours = [one["s"] for one in took[OURS]]
    for name, rounds in took.items():
        speeds = [millions / one["s"] for one in rounds]
        cpu = [one["cpu_s"] / millions for one in rounds]
        ratio = middle([own / one["s"] for own, one in zip(ours, rounds, strict=True)])
        table.rows.append(
            [
                name,
                middle(speeds),
                spread(speeds),
                middle(cpu),
                percentile(cpu, 0.0),
                middle([one["sink_s"] for one in rounds]) / millions,
                middle([one["bytes"] for one in rounds]) / 1e6,
                f"{ratio:.2f}x",
            ]
        )
    return table
