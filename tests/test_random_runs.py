"""Any runs, any order, any values, any restart: what arrives is what a plain reading of the documents says.

Runs are composed at random with event-model's own composers and fed to the real callback; the spool that it leaves is
delivered by the real back half to an Atomscale that only remembers, with restarts in between. `LONG=100000 pytest -m
long tests/test_random_runs.py` tries that many examples.
"""

from __future__ import annotations

import math
import os
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_model import compose_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.delivery import Delivery
from atomscale_bluesky.spool import Spool
from atomscale_bluesky.tasks import Kind, Task

START = 1_790_000_000.0
Points = dict[str, list[tuple[float, float]]]

NUMBERS = (0, 1, -7, 2.5, 1e-12, 2**60, np.float64(3.25), np.float32(0.1), np.int32(9), np.array(4.0), [6.5], True)
GAPS = (None, math.nan, math.inf, -math.inf, "closed", 10**400, {"odd": 1}, object())
MALFORMED = (
    ("event", {}),
    ("event", {"descriptor": "nobody's", "data": {}, "time": 1.0, "uid": "x"}),
    ("event", {"descriptor": ["unhashable"], "data": {}}),
    ("start", {"uid": "no time"}),
    ("descriptor", {"uid": "lost", "run_start": "nobody"}),
    ("stop", {"run_start": "nobody"}),
    ("event_page", {"descriptor": None}),
    ("nonsense", {"a": 1}),
    ("stop", None),
    (None, 7),
)


def plain_number(value: Any) -> float | None:
    """The finite number that a value is, the slow and obvious way."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        try:
            value = float(value)
        except OverflowError:
            return None
        return value if math.isfinite(value) else None
    return None


class Composed:
    """One run as it is composed, and what has to arrive of it."""

    def __init__(self, dice: random.Random, layout: str) -> None:
        self.dice = dice
        self.layout = layout
        self.run = compose_run(time=START, metadata={"synth_source_id": 42, "plan_name": "random"})
        self.uid = self.run.start_doc["uid"]
        self.streams: dict[str, Any] = {}
        self.keys: dict[str, dict[str, int]] = {}  # event stream → scalar keys (0) and array keys (their length)
        self.expected: Points = defaultdict(list)
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.time = START
        self.stopped = False

    def start(self) -> list[tuple[str, dict[str, Any]]]:
        return [("start", self.run.start_doc)]

    def step(self) -> list[tuple[str, dict[str, Any]]]:
        """Some documents that may come next."""
        name = self.dice.choice(["primary", "primary", "extra", "slow_monitor"])
        if name not in self.streams:
            return [self._descriptor(name)]
        roll = self.dice.random()
        if roll < 0.06 and self.sent:
            return [self.dice.choice(self.sent)]  # delivered again
        if roll < 0.16 and name != "slow_monitor":
            return [self._page(name)]
        return [self._event(name)]

    def stop(self) -> list[tuple[str, dict[str, Any]]]:
        self.stopped = True
        return [("stop", self.run.compose_stop())]

    def _descriptor(self, name: str) -> tuple[str, dict[str, Any]]:
        scalars = 1 if name == "slow_monitor" else self.dice.randint(0, 4)
        arrays = 0 if name == "slow_monitor" else self.dice.randint(0, 1)
        self.keys[name] = {f"{name}_{i}": 0 for i in range(scalars)}
        self.keys[name] |= {f"{name}_array_{i}": self.dice.randint(2, 3) for i in range(arrays)}
        data_keys = {
            key: {"source": "dice", "dtype": "array" if length else "number", "shape": [length] if length else []}
            for key, length in self.keys[name].items()
        }
        self.streams[name] = self.run.compose_descriptor(name=name, data_keys=data_keys)
        return "descriptor", self.streams[name].descriptor_doc

    def _value(self, length: int) -> Any:
        if length:
            gaps = (None, math.nan, -math.inf)
            return [self.dice.choice(gaps) if self.dice.random() < 0.1 else self.dice.random() for _ in range(length)]
        return self.dice.choice(NUMBERS if self.dice.random() < 0.85 else GAPS)

    def _row(self, name: str) -> tuple[dict[str, Any], dict[str, float], float]:
        self.time += self.dice.choice([0.0, 0.01, 1.5])
        data = {key: self._value(length) for key, length in self.keys[name].items()}
        own = self.time - 0.25
        return data, dict.fromkeys(data, own), self.time

    def _note(self, name: str, data: dict[str, Any], at: float) -> None:
        prefix = f"{name}/" if self.layout == "run" and name != "primary" else ""
        for key, value in data.items():
            length = self.keys[name][key]
            elements = enumerate(value) if length else [(None, value)]
            for i, element in elements:
                number = plain_number(element)
                if number is not None:
                    self.expected[prefix + (key if i is None else f"{key}[{i}]")].append((at, number))

    def _event(self, name: str) -> tuple[str, dict[str, Any]]:
        data, stamps, at = self._row(name)
        event = self.streams[name].compose_event(data=data, timestamps=stamps, time=at, validate=False)
        self._note(name, data, stamps[next(iter(stamps))] if name.endswith("monitor") else at)
        self.sent.append(("event", event))
        return "event", event

    def _page(self, name: str) -> tuple[str, dict[str, Any]]:
        rows = [self._row(name) for _ in range(self.dice.randint(1, 7))]
        keys = self.keys[name]
        page = {
            "descriptor": self.streams[name].descriptor_doc["uid"],
            "uid": [f"{self.uid}-{self.dice.getrandbits(64)}" for _ in rows],
            "time": [at for *_, at in rows],
            "seq_num": list(range(1, len(rows) + 1)),
            "data": {key: [data[key] for data, *_ in rows] for key in keys},
            "timestamps": {key: [stamps[key] for _, stamps, _ in rows] for key in keys},
            "filled": {},
        }
        for data, stamps, at in rows:
            self._note(name, data, stamps[next(iter(stamps))] if stamps else at)
        self.sent.append(("event_page", page))
        return "event_page", page


class Atomscale:
    """An Atomscale that takes everything, remembers it, and insists on what the API promises."""

    def __init__(self) -> None:
        self.streams: dict[str, dict[int, dict[str, list[tuple[float, float]]]]] = {}
        self.points: dict[str, int] = {}
        self.finalized: set[str] = set()

    def do(self, delivery: Delivery, task: Task) -> None:
        match task.kind:
            case Kind.INITIALIZE:
                delivery.about_to_initialize(task, "metrology")
                self.streams.setdefault(task.label, {})
                self.points[task.label] = task.points_per_chunk
                delivery.initialized(task, task.label, "metrology")
            case Kind.PUSH:
                assert task.chunk is not None
                assert task.data_id not in self.finalized
                held = self.streams[task.data_id].setdefault(task.chunk.index, {})
                for column in task.chunk.columns:
                    assert len(column.values) == len(task.chunk.times) <= self.points[task.data_id]
                    assert all(value is not None and math.isfinite(value) for value in column.values)
                    points = list(zip(task.chunk.times, map(float, column.values), strict=True))
                    assert held.setdefault(column.name, points) == points  # a chunk never changes
                delivery.pushed(task, task.chunk.names, {})
            case Kind.FINALIZE:
                chunks = self.streams[task.data_id]
                for name in {name for chunk in chunks.values() for name in chunk}:
                    mine = {index: chunk[name] for index, chunk in sorted(chunks.items()) if name in chunk}
                    assert list(mine) == list(range(len(mine)))
                    assert all(len(points) == self.points[task.data_id] for points in list(mine.values())[:-1])
                self.finalized.add(task.data_id)
                delivery.finalized(task)
            case Kind.READ_BACK:
                raise AssertionError("nothing was in doubt")

    def arrived(self, run_uid: str) -> Points:
        """What a run became, by channel, over all its streams in the order of their times of arrival."""
        found: Points = defaultdict(list)
        for label, chunks in self.streams.items():
            if f"[{run_uid[:8]}-" in label:
                for _, chunk in sorted(chunks.items()):
                    for name, points in chunk.items():
                        found[name].extend(points)
        return found


def deliver(spool: Spool, atomscale: Atomscale, dice: random.Random) -> None:
    """Deliver every run of the spool, starting again from the files now and then."""
    for folder in spool.run_folders():
        finished = False
        while not finished:
            claim = spool.claim(folder)
            assert claim is not None
            delivery = Delivery(claim)
            delivery.settle_if_interrupted()
            while True:
                task = delivery.next_task(0.0)
                if delivery.finished:
                    finished = delivery.finish()  # not yet, while the callback's own thread still closes its files
                    break
                if task is None:
                    assert delivery.cutting.more_to_read
                elif dice.random() < 0.05:  # killed before the answer was noted, or before the request had left
                    if task.kind is Kind.PUSH and dice.random() < 0.5:
                        copy = atomscale.streams[task.data_id].setdefault(task.chunk.index, {})
                        for column in task.chunk.columns:
                            copy[column.name] = list(zip(task.chunk.times, map(float, column.values), strict=True))
                    break
                else:
                    atomscale.do(delivery, task)
            delivery.close()


def check(seed: int) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spool"
        layout = dice.choice(["time_base", "run"])
        callback = AtomscaleCallback(
            settings=Settings.load(
                environ={},
                spool_dir=str(path),
                offline=True,
                spool_min_free_bytes=0,
                points_per_chunk=dice.choice([1, 2, 3, 5, 8]),
                layout=layout,
                resend=True,
            )
        )
        runs = [Composed(dice, layout) for _ in range(dice.randint(1, 3))]
        pending = [doc for run in runs for doc in run.start()]
        for _ in range(dice.randint(0, 60)):
            pending += dice.choice(runs).step() if dice.random() < 0.93 else [dice.choice(MALFORMED)]
        for run in runs:
            if dice.random() < 0.8:
                pending += run.stop()
        for name, doc in pending:
            callback(name, doc)  # type: ignore[arg-type]
        status = callback.status()
        callback.close(0)

        atomscale = Atomscale()
        spool = Spool(path)
        deliver(spool, atomscale, dice)

        history = {entry["run_uid"]: entry for entry in spool.history()}
        for run in runs:
            arrived, expected = atomscale.arrived(run.uid), dict(run.expected)
            assert dict(arrived) == expected, seed
            account = next(one for one in status if one.run_uid == run.uid).points
            assert account.seen == account.waiting + sum(account.left_out.values())
            assert history[run.uid]["delivered"] == account.waiting == sum(map(len, expected.values()))
            assert history[run.uid]["lost"] == 0


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_arrives_is_what_the_documents_say(seed: int) -> None:
    check(seed)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_what_arrives_is_what_the_documents_say_for_very_many_runs() -> None:
    first = int(os.environ.get("FIRST", "0"))
    for seed in range(first, first + int(os.environ.get("LONG", "10000"))):
        check(seed)
