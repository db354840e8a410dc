"""One seed: some lives of processes on one spool, then a delivery of what is left, then the judgement."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.server import LocalServer

from .child import hurry
from .life import HURRIED, LIFE_S, Plan, live
from .oracle import Points, points_of
from .story import Doc, Story

DELIVERY_S = 90.0

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["atomscale_bluesky.callback", "event_model", "msgspec", "psutil", "tests.faults.child", "tests.faults.life"]
)


def play(seed: int, server: LocalServer, folder: Path) -> list[str]:
    """Play a seed in a new folder; what was wrong, nothing if all is well."""
    chance = random.Random(f"front door {seed}")
    story = Story(
        seed=chance.getrandbits(48),
        t0=round(time.time()) - 7200.0,
        runs=chance.randrange(1, 7),
        points=chance.choice([3, 20, 60]),
        keys=chance.randrange(1, 4),
        gaps=chance.choice([0.0, 0.0, 0.0, 0.02]),
        late=chance.random() < 0.2,
        monitor=chance.random() < 0.3,
        pages=chance.random() < 0.2,
    )
    settings = {
        "endpoint": server.url,
        "spool_dir": str(folder / "spool"),
        "spool_min_free_bytes": 0,
        "points_per_chunk": chance.choice([5, 10]),
        "durability": chance.choice(["interval", "interval", "event"]),
        "exit_timeout_s": 1.0,
    }
    documents = story.documents()
    reports, problems = folder / "reports.txt", folder / "problems.txt"
    begun: set[int] = set()
    taken: set[int] = set()
    found: list[str] = []
    for number in range(chance.randrange(1, 4)):
        key = {"api_key": server.api_key} if chance.random() < 0.6 else {}
        over, ended = _ended(documents, taken), _ended(documents, taken | begun)
        plan = Plan(f"{seed} {number}", story, settings | key, reports, problems, over, ended)
        found += _live(plan)
        _take(reports, begun, taken)
    found += _deliver(settings | {"api_key": server.api_key})
    for path in (problems, folder / "hung.txt"):
        if path.exists() and (text := path.read_text()):
            found.append(text[-3000:])
    accepted = [doc for number, doc in enumerate(documents) if number in taken]
    tried = [doc for number, doc in enumerate(documents) if number in begun | taken]
    return found + _judged(server, story, accepted, tried)


def _live(plan: Plan) -> list[str]:
    process = _forks.Process(target=live, args=(plan,), daemon=False)
    process.start()
    process.join(LIFE_S + 10.0)
    if process.exitcode is not None:
        return [] if process.exitcode in {0, -9} else [f"a life ended with code {process.exitcode}"]
    process.kill()
    process.join()
    return [f"a life hung (seed {plan.seed})"]


def _take(reports: Path, begun: set[int], taken: set[int]) -> None:
    """Read the reports; only whole lines count."""
    text = reports.read_text() if reports.exists() else ""
    for line in text.split("\n")[:-1]:
        what, _, number = line.partition(" ")
        if number:
            (begun if what == "begun" else taken).add(int(number))


def _ended(documents: list[Doc], fed: set[int]) -> frozenset[int]:
    """The runs whose stop document was fed."""
    return frozenset(doc.run for number, doc in enumerate(documents) if doc.name == "stop" and number in fed)


def _deliver(settings: dict[str, Any]) -> list[str]:
    """Deliver what the lives have left; every run must leave the spool, and each account must add up."""
    callback = AtomscaleCallback(settings=Settings.load(environ={}, **settings))
    try:
        drained = callback.drain(DELIVERY_S)
        left = [(run.run_uid, run.state, run.problem, run.points) for run in callback.status()]
        bad = [run for run in left if run[3].lost]
        return ([f"not delivered: {left}"] if left or not drained else []) + ([f"lost: {bad}"] if bad else [])
    finally:
        callback.close(1.0)


def _judged(server: LocalServer, story: Story, accepted: list[Doc], tried: list[Doc]) -> list[str]:
    """Each accepted reading is there exactly once, one that was only tried at most once, and nothing else is."""
    expected, possible = points_of(accepted), points_of(tried)
    counts: dict[tuple[str, str, float | None], int] = {}
    found: list[str] = []
    runs = {story.uid(run)[:8] for run in range(story.runs)}
    for stream in server.streams():
        run = (stream.label or "").rpartition(" [")[2][:8]
        if run not in runs:
            continue
        for name, series in server.points(stream.data_id).items():
            for at, value in zip(series.times, series.values, strict=True):
                counts[run, name, value] = counts.get((run, name, value), 0) + 1
                found += _wrong(possible, run, name, at, value)
        if stream.status != "success" and stream.points:
            found.append(f"{stream.label!r} is {stream.status} with {stream.points} points")
    for channel, points in expected.items():
        for value in points:
            if (channel.run, channel.key, value) not in counts:
                found.append(f"{channel} lacks {value}, which was taken")
    found += [f"{run} {name} has {value} {n} times" for (run, name, value), n in counts.items() if n > 1]
    return found[:12]


def _wrong(possible: Points, run: str, name: str, at: float | None, value: float | None) -> Iterator[str]:
    channel = next((channel for channel in possible if channel == (run, name)), None)
    point = possible[channel].get(value) if channel is not None and value is not None else None
    if point is None:
        yield f"{run} {name} holds {value}, which no document has"
    elif at is None or round(at * 1000) != round(point.time * 1000):
        yield f"{run} {name} holds {value} at {at} instead of {point.time}"


def play_many(first: int, count: int, keep: Path | None = None) -> list[tuple[int, list[str]]]:
    """Play consecutive seeds against one server, in this process; the seeds that had problems."""
    failed: list[tuple[int, list[str]]] = []
    hurry(HURRIED)
    try:
        with LocalServer(control=True) as server:
            for seed in range(first, first + count):
                folder = Path(tempfile.mkdtemp(prefix="front-door-"))
                try:
                    problems = play(seed, server, folder)
                except Exception:  # noqa: BLE001 - a seed that breaks is a finding like any other
                    problems = [traceback.format_exc()]
                if problems:
                    failed.append((seed, problems))
                    if keep is not None:
                        shutil.copytree(folder, keep / str(seed), dirs_exist_ok=True)
                with contextlib.suppress(OSError):
                    shutil.rmtree(folder)
    finally:
        hurry(1.0)
    return failed
