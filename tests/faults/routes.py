"""One run by every route: `python -m tests.faults.routes --first N --seeds M --jobs J`.

A seed makes the documents of one run, with several event streams. They are recorded once without any interruption, and
once by sessions that are killed anywhere, each of which gets the rest, or all of it, by a route of its own. Every
reading must be in the journals once, with the same time, value, unit and channel, in the same event stream. No reading
may be counted twice among those that were left out; a kill may take such counts.

A kill leaves the spool's files as they are at that moment, without their locks, so the next session gets a copy that
was made then. Some seeds kill processes, which costs more and must give the same.
"""

# ruff: noqa: T201 - it is a program that speaks to a person

from __future__ import annotations

import argparse
import atexit
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import msgspec
from event_model import DocumentRouter, Filler, RunRouter, pack_event_page, unpack_event_page

from atomscale_bluesky import DocumentError, DocumentRecorder, Settings
from atomscale_bluesky.model.loss import Loss
from atomscale_bluesky.model.rows import Row
from atomscale_bluesky.spool.journal_format import Header, Layout, Stop, decode_journal
from atomscale_bluesky.spool.reserve import NAME, Reserve
from atomscale_bluesky.spool.run_reader import RunReader
from atomscale_bluesky.spool.segments import segment_path
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

# How often a seed kills processes. A fork costs ten times as much as a session in this process.
FORK_EACH = 50
SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None

Document = tuple[str, dict[str, Any]]
Take = Callable[[str, dict[str, Any]], object]


class Reading(NamedTuple):
    """One point, as a journal has it."""

    event_stream: str
    channel: str
    key: str
    unit: str | None
    time: float
    value: float


# ---- the documents ---------------------------------------------------------------------------------------------------


class Run:
    """The documents of one run, made from a seed, and what is known of where its readings belong."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.start = round(time.time()) - chance.choice([2.0, 3600.0, 864000.0]) + chance.random()
        self.now = self.start
        self.tick = chance.choice([0.0, 0.0, 0.0, 0.015625])
        self.start = self.clock()
        self.uid = self._uid()
        self.documents: list[Document] = []
        self.truth: dict[str, list[tuple[str, float, float]]] = {}  # by event stream: key, time and value
        self._seq: Counter[str] = Counter()
        self._descriptors: dict[str, str] = {}
        self._make()

    def _uid(self) -> str:
        return f"{self.chance.getrandbits(128):032x}"

    def clock(self) -> float:
        """The host's clock, which may tick coarsely."""
        return self.now - self.now % self.tick if self.tick else self.now

    def _make(self) -> None:
        chance = self.chance
        metadata = {"plan_name": "grow", "scan_id": 3, "synth_source_id": 42, "pair": (1, 2), "note": None}
        self.documents.append(("start", {"uid": self.uid, "time": self.clock(), **metadata}))
        self.now += chance.choice([0.0, 0.01, 5.0])
        streams: list[Iterator[None]] = [self._primary()]
        if chance.random() < 0.5:
            streams.append(self._baseline())
        if chance.random() < 0.6:
            streams.append(self._monitor("pair_monitor", together=True))
        if chance.random() < 0.6:
            streams.append(self._monitor("gauge_monitor", together=False))
        if chance.random() < 0.4:
            streams.append(self._never())
        if chance.random() < 0.6:
            streams.append(self._flyer())
        step_at = chance.randrange(40) if chance.random() < 0.3 else -1
        steps = 0
        while streams:
            stream = chance.choice(streams)
            if next(stream, 1) == 1:
                streams.remove(stream)
            steps += 1
            self.now += chance.choice([0.001, 0.0123, 0.3, 2.0])
            if steps == step_at:
                self.now += chance.choice([-3600.0, -1.0, 60.0])
        self.documents.append(("stop", {"uid": self._uid(), "run_start": self.uid, "time": self.clock(),
                                        "exit_status": "success", "num_events": dict(self._seq)}))  # fmt: skip

    def _describe(self, name: str, keys: dict[str, dict[str, Any]]) -> None:
        uid = self._descriptors[name] = self._uid()
        keys = {key: {"source": "sim", "dtype": "number", "shape": [], **described} for key, described in keys.items()}
        self.documents.append(("descriptor", {
            "uid": uid, "run_start": self.uid, "name": name, "time": self.clock(), "data_keys": keys,
            "object_keys": {"dev": list(keys)}, "hints": {}, "configuration": {},
        }))  # fmt: skip

    def _event(self, name: str, data: dict[str, Any], stamps: dict[str, float], at: float) -> dict[str, Any]:
        again = self._seq[name] > 1 and self.chance.random() < 0.03  # taken again after a pause
        self._seq[name] += 0 if again else 1
        return {"uid": self._uid(), "descriptor": self._descriptors[name], "time": at, "seq_num": self._seq[name],
                "data": data, "timestamps": stamps, "filled": {}}  # fmt: skip

    def _primary(self) -> Iterator[None]:
        chance = self.chance
        changes = chance.choice(["", "", "late", "text", "grows", "unit", "array"])
        equal = chance.random() < 0.5
        units = {"a": {"units": "K"}, "b": {"units": "mm"}, "c": {}}
        if changes == "text":
            units["t"] = {"dtype": "string"}
        if changes in {"grows", "array"}:
            units["w"] = {"dtype": "array", "shape": [None]}
        self._describe("primary", units)
        events = chance.randrange(0, 25)
        turn = chance.randrange(0, events + 1)
        slow = self.clock() - chance.choice([0.2, 50.0])
        for n in range(events):
            yield
            if changes == "unit" and n == turn and n:
                self._describe("primary", units | {"b": {"units": "um"}})
            at = self.clock()
            if chance.random() < 0.2:
                slow = at - 0.0002
            data: dict[str, Any] = {"a": n + 0.5, "b": n * 7.0 + 1, "c": float(chance.randrange(3))}
            if chance.random() < 0.05:
                data["a"] = None
            if changes == "late" and n >= turn:
                data["l"] = n + 0.125
            if changes == "text":
                data["t"] = n + 0.25 if n >= turn else "cold"
            if changes == "grows":
                data["w"] = [n + i / 8 for i in range(chance.randrange(0, 2 + min(4, n)))]
            if changes == "array":
                data["w"] = n + 0.75 if n < turn else [n + 0.75, n + 0.875]
            fresh = at if equal else at - 0.0031
            if self.tick:
                fresh = slow = at
            stamps = {key: slow if key == "b" and not equal else fresh for key in data}
            self.documents.append(("event", self._event("primary", data, stamps, at)))
            for key, value in data.items():
                if isinstance(value, float):
                    self.truth.setdefault("primary", []).append((key, at, value))

    def _baseline(self) -> Iterator[None]:
        self._describe("baseline", {"z": {}})
        for n in range(2):
            yield
            at = self.clock()
            self.documents.append(("event", self._event("baseline", {"z": float(n)}, {"z": at}, at)))

    def _monitor(self, name: str, *, together: bool) -> Iterator[None]:
        chance = self.chance
        first, second = (f"{name}_{key}" for key in "xy")
        self._describe(name, {first: {"units": "mbar"}, second: {}})
        slow, value = self.start - 500.0, -1.0
        for n in range(chance.randrange(1, 20)):
            stamp = self.clock()
            at = stamp + chance.choice([0.0, 0.00021])
            if together or chance.random() < 0.2:
                slow, value = stamp, n + 0.5
            data, stamps = {first: float(n), second: value}, {first: stamp, second: slow}
            self.documents.append(("event", self._event(name, data, stamps, at)))
            for key in data:
                own = stamps[key]
                before = own < self.start and at - own > 1
                self.truth.setdefault(name, []).append((key, at if before else own, data[key]))
            yield

    def _never(self) -> Iterator[None]:
        self._describe("still_monitor", {"q": {}})
        at = self.clock()
        self.documents.append(("event", self._event("still_monitor", {"q": 3.5}, {"q": self.start - 7200.0}, at)))
        self.truth.setdefault("still_monitor", []).append(("q", at, 3.5))
        yield

    def _flyer(self) -> Iterator[None]:
        chance = self.chance
        relative = chance.random() < 0.3
        begin, spacing, count = self.clock(), chance.choice([0.0001, 0.01, 0.7]), 0
        for _ in range(chance.randrange(1, 4)):
            for _ in range(chance.randrange(1, 5)):
                yield
            self.now += 2.0
            rows = chance.randrange(2, 15)
            self.now = max(self.now, begin + spacing * (count + rows) + 0.3)
            if "fly" not in self._descriptors:
                self._describe("fly", {"i": {"units": "A"}, "j": {}})
            collected = self.clock()
            apart = chance.choice([0.0, 0.00002])
            page = []
            for i in range(rows):
                own = (0.0 if relative else begin) + spacing * (count + i)
                data = {"i": count + i + 0.5, "j": 1.0 / (count + i + 1)}
                page.append(self._event("fly", data, dict.fromkeys(data, own), collected + apart * i))
                if not relative and begin >= self.start:  # a clock that was set back may show a time before the run
                    for key, value in data.items():
                        self.truth.setdefault("fly", []).append((key, own, value))
            count += rows
            self.documents.append(("event_page", dict(pack_event_page(*page))))


# ---- the routes ------------------------------------------------------------------------------------------------------


def as_events(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents with every page unpacked."""
    for name, doc in documents:
        if name == "event_page":
            for event in unpack_event_page(doc):
                yield "event", dict(event)
        else:
            yield name, doc


def paged(documents: list[Document], sizes: Callable[[], int]) -> Iterator[Document]:
    """The documents with the events of each descriptor in pages; what waits for its page comes before the stop."""
    waiting: dict[str, list[dict[str, Any]]] = {}
    wanted: dict[str, int] = {}
    for name, doc in as_events(documents):
        if name == "event":
            uid = doc["descriptor"]
            if waiting.get(uid) and waiting[uid][-1]["data"].keys() != doc["data"].keys():
                yield "event_page", dict(pack_event_page(*waiting.pop(uid)))
            waiting.setdefault(uid, []).append(doc)
            wanted.setdefault(uid, sizes())
            if len(waiting[uid]) >= wanted[uid]:
                yield "event_page", dict(pack_event_page(*waiting.pop(uid)))
                del wanted[uid]
            continue
        if name in {"stop", "descriptor"}:  # a later descriptor of an event stream comes after the events before it
            for events in waiting.values():
                if events:
                    yield "event_page", dict(pack_event_page(*events))
            waiting.clear()
            wanted.clear()
        yield name, doc


def with_empty_pages(documents: Iterable[Document], chance: random.Random) -> Iterator[Document]:
    """The documents with pages without rows among them."""
    described: list[dict[str, Any]] = []
    for name, doc in documents:
        yield name, doc
        if name == "descriptor":
            described.append(doc)
        if described and chance.random() < 0.2:
            descriptor = chance.choice(described)
            columns: dict[str, Any] = {key: [] for key in descriptor["data_keys"]}
            yield "event_page", {
                "descriptor": descriptor["uid"], "uid": [], "time": [], "seq_num": [], "data": columns,
                "timestamps": columns, "filled": {},
            }  # fmt: skip


def tiled(documents: list[Document]) -> Iterator[Document]:
    """The documents as a catalogue exports them: made-up uids, and of equal numbers only the last."""
    last: dict[tuple[str, int], str] = {}
    names = {doc["uid"]: doc["name"] for name, doc in documents if name == "descriptor"}
    events = list(as_events(documents))
    for name, doc in events:
        if name == "event":
            last[names[doc["descriptor"]], doc["seq_num"]] = doc["uid"]
    for name, doc in events:
        if name == "event":
            if last[names[doc["descriptor"]], doc["seq_num"]] == doc["uid"]:
                yield name, doc | {"uid": f"event-{doc['descriptor']}-{doc['seq_num']}"}
        elif name == "start":
            yield name, json.loads(json.dumps(doc)) | {"catalogue": {"access": []}}
        else:
            yield name, doc


def routes(documents: list[Document], chance: random.Random) -> tuple[str, list[Document], str]:
    """Choose a route: its name, the documents that it gives, and how they are handed over."""
    kind = chance.choice(
        ["as it was", "events", "page each", "one page", "pages", "repeats", "json", "msgpack", "tiled"]
    )
    match kind:
        case "events":
            given = list(as_events(documents))
        case "page each":
            given = list(paged(documents, lambda: 1))
        case "one page":
            given = list(paged(documents, lambda: 10**9))
        case "pages":
            given = list(paged(documents, lambda: chance.randrange(1, 8)))
        case "repeats":
            given = [one for one in documents for _ in range(chance.choice([1, 1, 2]))]
        case "json":
            given = [(name, json.loads(json.dumps(doc))) for name, doc in documents]
        case "msgpack":
            given = [(name, msgpack.unpackb(msgpack.packb(doc), strict_map_key=False)) for name, doc in documents]
        case "tiled":
            given = list(tiled(documents))
        case _:
            given = documents
    over = chance.choice(["", "", "RunRouter", "DocumentRouter", "Filler"])
    if over in {"RunRouter", "Filler"} and kind == "repeats":
        over = ""
    if kind == "pages" and over not in {"RunRouter", "Filler"}:  # which do not take pages without rows
        given = list(with_empty_pages(given, chance))
    return f"{kind} {over}".strip(), given, over


class _Through(DocumentRouter):
    def __init__(self, take: Take) -> None:
        super().__init__()
        self._take = take

    def start(self, doc: Any) -> None:
        self._take("start", doc)

    def descriptor(self, doc: Any) -> None:
        self._take("descriptor", doc)

    def event_page(self, doc: Any) -> None:
        self._take("event_page", doc)

    def stop(self, doc: Any) -> None:
        self._take("stop", doc)


def hand_over(documents: Iterable[Document], take: Take, over: str) -> None:
    """Give the documents to a recorder, through one of event-model's routers."""
    if over == "RunRouter":
        router: Take = RunRouter([lambda name, doc: ([take], [])])
    elif over == "DocumentRouter":
        router = _Through(take)
    elif over == "Filler":
        filler = Filler({}, inplace=False)
        router = lambda name, doc: take(*filler(name, doc))  # noqa: E731
    else:
        router = take
    for name, doc in documents:
        router(name, doc)


# ---- sessions --------------------------------------------------------------------------------------------------------


class Session(NamedTuple):
    """What one process gets, and how it ends."""

    route: str
    documents: list[Document]
    over: str
    upto: int  # it ends when it has got so many documents; more than there are: after the last one
    killed: bool = True  # if it ends before the last document; otherwise it closes in order


def in_child(work: Callable[[], Any]) -> Any:
    """Do something in a child that ends as if it were killed, and return what it gave."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - log lines of sessions that nobody reads
            result = msgspec.msgpack.encode(work())
            while result:
                result = result[os.write(writer, result) :]
            code = 0
        except BaseException:  # noqa: BLE001 - the parent raises it
            os.write(writer, msgspec.msgpack.encode(traceback.format_exc()))
        finally:
            os._exit(code)
    os.close(writer)
    text = b""
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    found = msgspec.msgpack.decode(text) if text else None
    if status:
        raise RuntimeError(found or f"a session ended with {status}")
    return found


def record(spool: Path, session: Session, left: Path | None = None) -> tuple[int, int]:
    """Record documents until the session is killed.

    Args:
        spool: The spool's folder.
        session: What comes, and when the session is killed.
        left: Where the spool goes as it is at the kill. None if the process really ends then.

    Returns:
        How many documents were taken, and how many bytes of the journal the last one wrote that may not be there.
    """
    recorder = _recorder(spool)
    before = taken = unsure = 0

    def take(name: str, doc: dict[str, Any]) -> None:
        nonlocal before, taken, unsure
        before = _journal_bytes(spool) if taken == session.upto - 1 else before
        taken += 1
        try:
            recorder.take(name, doc)
        except DocumentError as error:
            if "never came" in str(error):
                raise
        if taken == session.upto:
            unsure = max(0, _journal_bytes(spool) - before)
            if session.killed and left is not None:
                shutil.copytree(spool, left, copy_function=_copy)  # without the locks, as a killed process leaves it
            raise _Killed

    try:
        hand_over(session.documents, take, session.over)
    except _Killed:
        if session.killed and left is None:
            return taken, unsure
    recorder.close()
    return taken, unsure if session.killed else 0


class _Killed(BaseException):
    pass


def _recorder(spool: Path) -> DocumentRecorder:
    settings = {"spool_dir": str(spool), "spool_min_free_bytes": 0, "endpoint": "http://127.0.0.1:9"}
    return DocumentRecorder(Settings.load(environ={}, **settings))


def _copy(source: str, target: str) -> None:
    """Copy a file of a spool. The reserve is large and never changes, so it is linked."""
    (os.link if source.endswith(NAME) else shutil.copy2)(source, target)


@cache
def _empty_spool() -> Path:
    """Return an empty spool of this process, with its reserve. To make one costs more than all else in a seed."""
    folder = Path(tempfile.mkdtemp(prefix="routes-empty-", dir=SHM))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _recorder(folder / "spool").close()
    Reserve(folder / "spool").maintain(0, 2**40, 2**40)
    return folder / "spool"


def _new_spool(path: Path) -> Path:
    return Path(shutil.copytree(_empty_spool(), path, copy_function=_copy))


def _youngest(spool: Path) -> Path | None:
    folders = sorted(path for path in spool.iterdir() if path.is_dir()) if spool.exists() else []
    return max(folders, key=lambda path: path.stat().st_mtime_ns) if folders else None


def _journal_bytes(spool: Path) -> int:
    folder = _youngest(spool)
    path = segment_path(folder, 1) if folder else None
    return path.stat().st_size if path is not None and path.exists() else 0


def readings_in(spool: Path) -> tuple[Counter[Reading], Counter[str], list[str]]:
    """All readings in a spool's journals, how many were left out for which reason, and what is wrong with these."""
    found: Counter[Reading] = Counter()
    problems: list[str] = []
    for folder in sorted(path for path in spool.iterdir() if path.is_dir()):
        layouts: dict[int, Layout] = {}
        rows: Counter[str] = Counter()
        reader = RunReader(folder)
        for line in reader.read():
            match decode_journal(line.payload):
                case Layout() as layout:
                    layouts[layout.layout] = layout
                case Row() as row:
                    layout = layouts[row.layout]
                    if row.number != rows[layout.time_base]:
                        problems.append(f"row {row.number} of {layout.time_base} instead of {rows[layout.time_base]}")
                    rows[layout.time_base] += 1
                    for channel, value in zip(layout.channels, row.values, strict=True):
                        if value is not None:
                            found[
                                Reading(layout.event_stream, channel.name, channel.key, channel.unit, row.time, value)
                            ] += 1
                case Stop() as stop if stop.not_given:
                    problems.append(f"not given, it says: {stop.not_given}")
                case Header() | _:
                    pass
        reader.close()
        if reader.damaged:
            problems.append(f"{reader.damaged} damaged lines")
    left_out: Counter[str] = Counter()
    spool_status = SpoolStatus(Spool(spool, read_only=True))
    for run in spool_status.status():
        points = run.points
        total = points.delivered + points.waiting + points.refused + points.discarded + points.lost
        if points.seen != total + sum(points.left_out.values()) or points.lost:
            problems.append(f"the account does not add up: {points}")
        left_out.update(points.left_out)
    return found, left_out, problems


def play(seed: int) -> list[str]:
    """Play one seed, and return its problems."""
    run = Run(seed)
    chance = run.chance
    documents = run.documents
    forks = seed % FORK_EACH == 0
    folder = Path(tempfile.mkdtemp(prefix=f"routes-{seed}-", dir=SHM))
    told: list[str] = []
    try:
        live, spool = _new_spool(folder / "live"), _new_spool(folder / "spool")
        record(live, Session("live", documents, "", 10**9))
        expected, left_out, problems = readings_in(live)
        problems = [f"live: {problem}" for problem in problems]
        problems += _truth(run, expected)
        at = 0  # how many documents were taken for good, as they were
        droppable = overlaps = False
        sessions = chance.choice([1, 1, 1, 2])
        for number in range(sessions + 2):
            upto = chance.randrange(1, len(documents) + 1) if number < sessions else 10**9
            if number == 0 or (chance.random() < 0.4 and number < sessions + 1):
                name, given, over = "live", documents[at:], ""
                upto = upto if upto > 10**6 else chance.randrange(1, max(2, len(given)))
            else:
                name, given, over = routes(documents, chance)
                upto = upto if upto > 10**6 else chance.randrange(1, len(given) + 1)
            session = Session(name, given, over, upto, killed=chance.random() < 0.7)
            if forks:
                taken, unsure = in_child(lambda session=session, spool=spool: record(spool, session))
            else:
                left = folder / f"left {number}"
                taken, unsure = record(spool, session, left)
                spool = left if left.exists() else spool
            told.append(f"{name} {taken}/{len(given)}")
            cut = 0
            if upto < 10**6 and unsure and chance.random() < 0.5:
                youngest = _youngest(spool)
                path = segment_path(youngest, 1) if youngest else None
                size = path.stat().st_size if path else 0
                cut = chance.randrange(1, unsure + 1)
                if path and size - cut > 0:
                    os.truncate(path, size - cut)
            if name == "live":
                at += taken - (1 if cut else 0)
            elif taken == len(given) and not cut:
                at = len(documents)
            droppable = droppable or name.startswith("tiled")
            # What a replay has brought of event streams that are not selected comes again, and has left no uids.
            overlaps = overlaps or (name == "live" and any(not one.startswith("live ") for one in told))
        found, left_out_here, wrong = readings_in(spool)
        problems += wrong
        problems += [] if overlaps else _counted_twice(left_out, left_out_here)
        surplus = found - expected
        for reading, n in (expected - found).items():
            elsewhere = _in_another_channel(surplus, reading) if droppable else None
            if droppable and _was_dropped(run, reading):
                if elsewhere:
                    surplus[elsewhere] -= 1
            elif elsewhere and _growth_was_dropped(run, reading):
                surplus[elsewhere] -= n
            else:
                problems.append(f"lacks {n} of {reading}")
        problems += [f"has {n} too many of {reading}" for reading, n in (+surplus).items()]
    except Exception:  # noqa: BLE001 - it is the seed's problem
        problems = [traceback.format_exc()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [f"{'; '.join(told)}", *problems] if problems else []


def _counted_twice(live: Counter[str], here: Counter[str]) -> list[str]:
    """Compare what was left out, except elements of arrays: how many lack a value depends on how long they were."""
    more = {reason: n for reason, n in (here - live).items() if reason not in {Loss.MISSING, Loss.NO_VALUE, Loss.ARRAY}}
    return [f"left out are {dict(here)} instead of {dict(live)}"] if more else []


def _in_another_channel(surplus: Counter[Reading], lacking: Reading) -> Reading | None:
    """The same reading under another channel: it came before or after its array had grown."""
    same = (lacking.event_stream, lacking.key, lacking.time, lacking.value)
    return next((one for one in +surplus if (one.event_stream, one.key, one.time, one.value) == same), None)


def _was_dropped(run: Run, reading: Reading) -> bool:
    """Whether a catalogue has dropped the event of a reading, because a later one has its number."""
    names = {doc["uid"]: doc["name"] for name, doc in run.documents if name == "descriptor"}
    kept = {doc["uid"] for doc in _events_of(tiled_before_renaming(run.documents))}
    for doc in _events_of(run.documents):
        if names[doc["descriptor"]] == reading.event_stream and doc["uid"] not in kept:
            value = doc["data"].get(reading.key)
            if value == reading.value or (isinstance(value, list) and reading.value in value):
                return True
    return False


def _growth_was_dropped(run: Run, reading: Reading) -> bool:
    """Whether a catalogue has dropped an earlier event in which the reading's array had several elements."""
    names = {doc["uid"]: doc["name"] for name, doc in run.documents if name == "descriptor"}
    kept = {doc["uid"] for doc in _events_of(tiled_before_renaming(run.documents))}
    dropped = [doc for doc in _events_of(run.documents) if doc["uid"] not in kept and doc["time"] <= reading.time]
    values = [doc["data"].get(reading.key) for doc in dropped if names[doc["descriptor"]] == reading.event_stream]
    return any(isinstance(value, list) and len(value) > 1 for value in values)


def tiled_before_renaming(documents: list[Document]) -> list[Document]:
    """The documents that a catalogue keeps, with their own uids."""
    names = {doc["uid"]: doc["name"] for name, doc in documents if name == "descriptor"}
    last = {(names[doc["descriptor"]], doc["seq_num"]): doc["uid"] for doc in _events_of(documents)}
    uids = set(last.values())
    return [(name, doc) for name, doc in as_events(documents) if name != "event" or doc["uid"] in uids]


def _events_of(documents: list[Document]) -> Iterator[dict[str, Any]]:
    return (doc for name, doc in as_events(documents) if name == "event")


def _truth(run: Run, readings: Counter[Reading]) -> list[str]:
    """Compare what was recorded live with what is known of the run; names and units aside."""
    problems: list[str] = []
    for event_stream, points in run.truth.items():
        should = Counter(points)
        have = Counter({
            (one.key, one.time, one.value): 0 for one in readings if one.event_stream == event_stream
        })  # fmt: skip
        scalar = {key for key, _, _ in points}
        for one, n in readings.items():
            if one.event_stream == event_stream and one.key in scalar and one.key != "w":
                have[one.key, one.time, one.value] += n
        have = +have
        for key in [key for key in should if key[0] == "w"]:
            del should[key]
        problems += [f"live lacks {n} of {one} in {event_stream}" for one, n in (should - have).items()]
        problems += [f"live has {n} too many of {one} in {event_stream}" for one, n in (have - should).items()]
    for one in readings:
        if one.event_stream == "primary" and one.key == "b" and one.unit not in {"mm", "um"}:
            problems.append(f"unit {one.unit} of b")
    return problems


def _be_quiet() -> None:
    logging.getLogger("atomscale_bluesky").addHandler(logging.NullHandler())


def main() -> int:
    """Play the seeds, and print what came of them; 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.routes", description="One run by every route.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--stop-after", type=int, default=20, help="failed seeds after which it stops")
    given = parser.parse_args()
    begun, failed, done = time.monotonic(), 0, 0
    seeds = range(given.first, given.first + given.seeds)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn"), initializer=_be_quiet) as pool:
        for seed, problems in zip(seeds, pool.map(play, seeds, chunksize=20), strict=True):
            done += 1
            if problems:
                failed += 1
                print(f"seed {seed}:", *problems[:6], sep="\n    ", flush=True)
                if failed >= given.stop_after:
                    pool.shutdown(cancel_futures=True)
                    break
            if done % 1000 == 0:
                print(f"{done} seeds, {failed} failed, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{done} seeds, {failed} failed, {(time.monotonic() - begun) / max(1, done) * 1e3:.1f} ms each")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
