"""Any runs, any order, any values, any restart: what arrives is what a plain reading of the documents says.

Runs are composed at random with event-model's own composers and fed to the real callback; the spool that it leaves is
delivered by the real back half to an Atomscale that only remembers, with restarts in between.
`LONG=100000 pytest -m long tests/stories/test_random_runs.py` tries that many examples; `WITHIN=/dev/shm` spares the
disk, `FIRST` is the first seed.
"""

from __future__ import annotations

import math
import os
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from event_model import compose_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.delivery.run_delivery import RunDelivery
from atomscale_bluesky.delivery.run_end import finish
from atomscale_bluesky.delivery.tasks.chunk_requests import Sent
from atomscale_bluesky.delivery.tasks.work import Kind
from atomscale_bluesky.delivery.unfinished_tasks import Task
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

START = 1_600_000_000.0
Points = dict[str, list[tuple[float, float]]]

NUMBERS = (0, 1, -7, 2.5, 1e-12, 2**60, np.float64(3.25), np.float32(0.1), np.int32(9), np.array(4.0), [6.5], True)
NUMBERS += (2**53 + 1, np.uint64(2**64 - 1), np.bool_(False), np.array([[7]]), (8,), -0.0)
GAPS = (None, math.nan, math.inf, -math.inf, "closed", 10**400, {"odd": 1}, object(), b"x", 1j, np.datetime64("2026"))
CHOICES = ("shut", "open", "moving")
IMPOSSIBLE = (None, "now", math.nan, 0.0, 1e12, [1.0], {})
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
METADATA = (
    lambda: 0,
    ENDLESS,
    "x" * 100_000,
    {math.nan: object()},
    np.zeros((3, 3)),
    {"deep": [{}] * 1000},
    b"\xff",
    1j,
)
MALFORMED = (
    ("event", {}),
    ("event", {"descriptor": "nobody's", "data": {}, "time": 1.0, "uid": "x"}),
    ("event", {"descriptor": ["unhashable"], "data": {}}),
    ("start", {"uid": "no time"}),
    ("start", {"uid": ENDLESS, "time": ENDLESS}),
    ("descriptor", {"uid": "lost", "run_start": "nobody"}),
    ("stop", {"run_start": "nobody"}),
    ("event_page", {"descriptor": None}),
    ("nonsense", {"a": 1}),
    ("stop", None),
    (None, 7),
)
# What an event or a page may not lack, and what may not stand there; no reading of such a document is a point.
NO_EVENT = {
    "data": (None, 7, "text", []),
    "time": (None, math.nan, "now", []),
    "uid": ({}, []),
    "descriptor": (None, []),
}
NO_PAGE = {"time": (None, 7, [1.0] * 50), "uid": (None, 7), "descriptor": (None, {}), "data": ({"ragged": [1] * 50},)}


def plain_number(value: Any) -> float | None:
    """The finite number that a value is, the slow and obvious way."""
    while isinstance(value, list | tuple) and len(value) == 1:
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


def loses_digits(value: Any) -> bool:
    """Whether a value is an integer that is another number as a float, the slow and obvious way."""
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return isinstance(value, int | np.integer) and plain_number(value) not in {None, int(value)}


class Key(NamedTuple):
    """What a data key gives."""

    kind: str  # number, array, choice, flag, late or file
    length: int = 0  # of an array

    def described(self) -> dict[str, Any]:
        dtype = {"array": "array", "choice": "string", "flag": "boolean", "late": "string"}.get(self.kind, "number")
        more: dict[str, Any] = {"choice": {"choices": list(CHOICES)}, "file": {"external": "FILESTORE:"}}.get(
            self.kind, {}
        )
        return {"source": "dice", "dtype": dtype, "shape": [self.length] if self.length else [], **more}

    def points(self, value: Any) -> dict[str, float]:
        """What a value has to become, by the suffix of its channel's name."""
        if self.kind == "file":
            return {}
        if self.kind == "choice" and value in CHOICES:
            return {"": float(CHOICES.index(value))}
        elements = self.elements(value).items()
        return {name: number for name, one in elements if (number := plain_number(one)) is not None}

    def elements(self, value: Any) -> dict[str, Any]:
        """What is said of which channel, by the suffix of its name."""
        return {f"[{i}]": one for i, one in enumerate(value)} if self.length else {"": value}


class Composed:
    """One run as it is composed, and what has to arrive of it."""

    def __init__(self, dice: random.Random, layout: str) -> None:
        self.dice = dice
        self.layout = layout
        metadata = {"synth_source_id": 42, "plan_name": "random"}
        if dice.random() < 0.2:
            metadata["odd"] = dice.choice(METADATA)
        self.run = compose_run(time=START, metadata=metadata, validate=False)
        self.uid = self.run.start_doc["uid"]
        self.streams: dict[str, Any] = {}
        self.keys: dict[str, dict[str, Key]] = {}  # by event stream
        self.begun: set[str] = set()  # event streams that have had an event
        self.expected: Points = defaultdict(list)
        self.rounded: Counter[str] = Counter()
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.time = START + 30.0
        self.stopped = False

    def start(self) -> list[tuple[str, dict[str, Any]]]:
        return [("start", self.run.start_doc)]

    def step(self) -> list[tuple[str, dict[str, Any]]]:
        """Some documents that may come next."""
        name = self.dice.choice(["primary", "primary", "extra", "slow_monitor", "fly", "baseline"])
        if name not in self.streams:
            return [self._descriptor(name)]
        roll = self.dice.random()
        if roll < 0.06 and self.sent:
            return [self.dice.choice(self.sent)]  # delivered again
        if roll < 0.10:  # the configuration has changed
            described = {key: kind.described() for key, kind in self.keys[name].items()}
            self.streams[name] = self.run.compose_descriptor(name=name, data_keys=described, validate=False)
            return [("descriptor", self.streams[name].descriptor_doc)]
        if roll < 0.14 and (name in self.begun or name != "fly"):  # the times of an odd document count as times too
            return [self._malformed(name)]
        if roll < 0.22 or name == "fly":
            return [self._page(name)]
        return [self._event(name)]

    def stop(self) -> list[tuple[str, dict[str, Any]]]:
        self.stopped = True
        return [("stop", self.run.compose_stop(validate=False))]

    def _descriptor(self, name: str) -> tuple[str, dict[str, Any]]:
        kinds = self.dice.choices(["number", "array", "choice", "flag", "late", "file"], [6, 2, 1, 1, 1, 1], k=4)
        self.keys[name] = {
            f"{name} {kind} {i}": Key(kind, self.dice.randint(2, 3) if kind == "array" else 0)
            for i, kind in enumerate(kinds[: self.dice.randint(0, 4)])
        }
        described = {key: kind.described() for key, kind in self.keys[name].items()}
        self.streams[name] = self.run.compose_descriptor(name=name, data_keys=described, validate=False)
        return "descriptor", self.streams[name].descriptor_doc

    def _value(self, name: str, key: Key) -> Any:
        dice = self.dice
        if key.kind == "array":
            gaps = (None, math.nan, -math.inf, "text", 2**53 + 1)
            # The first one tells how many channels there are; later ones may be of another length.
            length = key.length if name not in self.begun or dice.random() < 0.8 else dice.randint(0, key.length + 2)
            values = [dice.choice(gaps) if dice.random() < 0.1 else dice.random() for _ in range(length)]
            if name not in self.begun and values and all(one == "text" for one in values):
                values[0] = 0.5  # a list of texts is no array of numbers yet, whatever its length
            return values
        if key.kind == "choice":
            return dice.choice((*CHOICES, "none of them", None))
        if key.kind == "flag":
            return dice.choice((True, False, np.bool_(True), 1, None))
        if key.kind == "file":
            return "datum/1"
        if key.kind == "late" and (name not in self.begun or dice.random() < 0.6):
            return "warming up"
        return dice.choice(NUMBERS if dice.random() < 0.85 else GAPS)

    def _row(self, name: str) -> tuple[dict[str, Any], dict[str, Any], float]:
        """Values and time stamps by key, and the event's time."""
        self.time += self.dice.choice([0.01, 0.02, 1.5, 0.01 if name == "fly" else -0.3])
        data = {key: self._value(name, kind) for key, kind in self.keys[name].items()}
        stamps: dict[str, Any] = dict.fromkeys(data, self.time - 0.2)
        for key in data if name in self.begun else ():  # the first row of an event stream says least about itself
            roll = self.dice.random()
            if roll < 0.03:
                stamps[key] = self.time - self.dice.choice([0.5, 20.0])
            elif roll < 0.05:
                stamps[key] = self.dice.choice(IMPOSSIBLE)
        return data, stamps, self.time

    def _note(self, name: str, data: dict[str, Any], stamps: dict[str, Any] | None, at: float) -> None:
        """Note what an event has to become; with the times of its readings, where it is those that count."""
        self.begun.add(name)
        if name == "baseline":
            return
        prefix = f"{name}/" if self.layout == "run" and name != "primary" else ""
        for key, value in data.items():
            own = None if stamps is None else stamps.get(key)
            when = self._placed(name, own, at)
            for suffix, number in self.keys[name][key].points(value).items():
                self.expected[f"{prefix}{key}{suffix}"].append((when, number))
            for suffix, element in self.keys[name][key].elements(value).items():
                self.rounded[f"{prefix}{key}{suffix}"] += loses_digits(element)

    def _placed(self, name: str, own: Any, at: float) -> float:
        """The time of a reading of which its own time counts."""
        if not isinstance(own, float) or math.isnan(own):
            return at
        if own == 0.0 and name == "fly":
            return START  # a flyer's stamps may count from its start
        before = name.endswith("monitor") and own < START and at - own > 1
        return own if START - 86400 <= own <= at + 3600 and not before else at

    def _event(self, name: str) -> tuple[str, dict[str, Any]]:
        data, stamps, at = self._row(name)
        if name in self.begun and data and self.dice.random() < 0.05:
            del data[self.dice.choice(list(data))]
        seq_num = self.dice.randint(1, 9) if self.dice.random() < 0.3 else None  # a pause sets the counter back
        event = self.streams[name].compose_event(
            data=data, timestamps=stamps, time=at, seq_num=seq_num, filled=self._filled(name), validate=False
        )
        self._note(name, data, stamps if name.endswith("monitor") else None, at)
        self.sent.append(("event", event))
        return "event", event

    def _filled(self, name: str) -> dict[str, bool]:
        return {key: False for key, kind in self.keys[name].items() if kind.kind == "file"}

    def _page(self, name: str, *, note: bool = True) -> tuple[str, dict[str, Any]]:
        rows = []
        for _ in range(self.dice.randint(2 if name == "fly" else 1, 7)):
            rows.append(self._row(name))
        if name == "fly":  # collected later, all at once
            self.time += 1.0
            rows = [(data, stamps, self.time + 5.0) for data, stamps, _ in rows]
        for data, stamps, at in rows if note else ():
            self._note(name, data, stamps if name == "fly" or name.endswith("monitor") else None, at)
        keys = self.keys[name]
        columns: dict[str, Any] = {key: [data[key] for data, *_ in rows] for key in keys}
        for key, column in columns.items():
            if all(type(value) is float for value in column) or (
                keys[key].length and all(len(v) == keys[key].length and set(map(type, v)) <= {float} for v in column)
            ):
                columns[key] = np.array(column)
        page = {
            "descriptor": self.streams[name].descriptor_doc["uid"],
            "uid": [f"{self.uid}-{self.dice.getrandbits(64)}" for _ in rows],
            "time": [at for *_, at in rows],
            "seq_num": list(range(1, len(rows) + 1)),
            "data": columns,
            "timestamps": {key: [stamps[key] for _, stamps, _ in rows] for key in keys},
            "filled": {key: [value] * len(rows) for key, value in self._filled(name).items()},
        }
        if note:
            self.sent.append(("event_page", page))
        return "event_page", page

    def _malformed(self, name: str) -> tuple[str, dict[str, Any]]:
        """An event or a page that cannot be used."""
        kind, doc = self._page(name, note=False)
        odd = NO_PAGE
        if self.dice.random() < 0.5:
            data, stamps, at = self._row(name)
            kind, doc = "event", {**doc, "uid": "odd", "time": at, "data": data, "timestamps": stamps, "seq_num": 1}
            odd = NO_EVENT
        member = self.dice.choice(list(odd))
        doc[member] = self.dice.choice(odd[member])
        return kind, doc


class Atomscale:
    """An Atomscale that takes everything, remembers it, and insists on what the API promises."""

    def __init__(self) -> None:
        self.streams: dict[str, dict[int, dict[str, list[tuple[float, float]]]]] = {}
        self.points: dict[str, int] = {}
        self.data_ids: dict[str, str] = {}  # by label
        self.finalized: set[str] = set()

    def do(self, delivery: RunDelivery, task: Task) -> None:
        match task.kind:
            case Kind.INITIALIZE:
                data_id = self.data_ids.setdefault(task.work.label, f"id-{len(self.data_ids)}")
                self.streams.setdefault(data_id, {})
                self.points[data_id] = task.work.points_per_chunk
                delivery.apply_result(task, data_id, 0.0)
            case Kind.PUSH:
                assert task.chunk is not None
                assert task.work.data_id not in self.finalized
                held = self.streams[task.work.data_id].setdefault(task.chunk.index, {})
                for column in task.chunk.columns:
                    assert len(column.values) == len(task.chunk.times) <= self.points[task.work.data_id]
                    assert all(value is not None and math.isfinite(value) for value in column.values)
                    points = list(zip(task.chunk.times, map(float, column.values), strict=True))
                    assert held.setdefault(column.name, points) == points  # a chunk never changes
                delivery.apply_result(task, Sent(task.chunk.names), 0.0)
            case Kind.FINALIZE:
                chunks = self.streams[task.work.data_id]
                for name in {name for chunk in chunks.values() for name in chunk}:
                    mine = {index: chunk[name] for index, chunk in sorted(chunks.items()) if name in chunk}
                    assert list(mine) == list(range(len(mine)))
                    assert all(len(points) == self.points[task.work.data_id] for points in list(mine.values())[:-1])
                self.finalized.add(task.work.data_id)
                delivery.apply_result(task, None, 0.0)
            case Kind.READ_BACK:
                raise AssertionError("nothing was in doubt")

    def arrived(self, run_uid: str) -> dict[str, list[list[tuple[float, float]]]]:
        """What a run became: by channel, the points of each of its streams that has any, in their order."""
        found: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
        for data_id in (data_id for label, data_id in self.data_ids.items() if f"[{run_uid[:8]}-" in label):
            chunks = [chunk for _, chunk in sorted(self.streams[data_id].items())]
            for name in {name for chunk in chunks for name in chunk}:
                found[name].append([point for chunk in chunks for point in chunk.get(name, [])])
        return found


def is_within(some: list[tuple[float, float]], whole: list[tuple[float, float]]) -> bool:
    """Whether the whole holds some points in their order."""
    rest = iter(whole)
    return all(point in rest for point in some)


def deliver(spool: Spool, atomscale: Atomscale, dice: random.Random) -> None:
    """Deliver every run of the spool, starting again from the files now and then."""
    for folder in spool.run_folders():
        finished = False
        while not finished:
            claim = spool.claim(folder)
            assert claim is not None
            delivery = RunDelivery(claim)
            delivery.complete_if_interrupted()
            while True:
                task = delivery.next_task(0.0)
                if delivery.run.finished:
                    finished = finish(delivery.run)  # not yet, while the callback's own thread still closes its files
                    break
                if task is None:
                    assert delivery.run.run_chunker.more_to_read
                elif dice.random() < 0.05:  # killed before the answer was noted, or before the request had left
                    if task.kind is Kind.PUSH and dice.random() < 0.5:
                        copy = atomscale.streams[task.work.data_id].setdefault(task.chunk.index, {})
                        for column in task.chunk.columns:
                            copy[column.name] = list(zip(task.chunk.times, map(float, column.values), strict=True))
                    break
                else:
                    atomscale.do(delivery, task)
            delivery.close()


def check(seeds: Sequence[int], *, within: str | None = None) -> None:
    """Compose, take and deliver the runs of these seeds through one spool."""
    with tempfile.TemporaryDirectory(dir=within) as folder:
        path = Path(folder) / "spool"
        compositions = [take(path, seed) for seed in seeds]
        atomscale = Atomscale()
        spool = Spool(path)
        status = {one.run_uid: one for one in SpoolStatus(spool).status()}
        deliver(spool, atomscale, random.Random(seeds[0]))
        history = {entry["run_uid"]: entry for entry in spool.history.entries()}
        for seed, runs in zip(seeds, compositions, strict=True):
            for run in runs:
                arrived, expected = atomscale.arrived(run.uid), dict(run.expected)
                assert {name: sorted(sum(parts, [])) for name, parts in arrived.items()} == {
                    name: sorted(points) for name, points in expected.items()
                }, seed
                assert all(is_within(part, expected[name]) for name, parts in arrived.items() for part in parts), seed
                points = status[run.uid].points
                assert points.seen == points.waiting + sum(points.left_out.values()), seed
                assert history[run.uid]["delivered"] == points.waiting == sum(map(len, expected.values())), seed
                assert history[run.uid]["lost"] == 0, seed
                assert status[run.uid].rounded == dict(+run.rounded), seed


def take(path: Path, seed: int) -> list[Composed]:
    """Give a callback some runs at once."""
    dice = random.Random(seed)
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
    callback.close(0)
    return runs


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_arrives_is_what_the_documents_say(seed: int) -> None:
    check([seed])


@pytest.mark.long
@pytest.mark.timeout(0)
def test_what_arrives_is_what_the_documents_say_for_very_many_runs() -> None:
    first, examples = int(os.environ.get("FIRST", "0")), int(os.environ.get("LONG", "10000"))
    for seed in range(first, first + examples, 10):
        check(range(seed, seed + 10), within=os.environ.get("WITHIN"))
