"""What the time goes into: the parts of an event, and those of a chunk, each timed by itself.

Each part is called over and over with the same input, so it finds its data in the processor's caches, which is kinder
than life: the parts do not add up to what `event` and `drain` tell, and the difference is the last row of each table.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import timeit
import zlib
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

import msgspec
import numpy as np
import orjson

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.api import answers, wire
from atomscale_bluesky.model.chunk import Chunk
from atomscale_bluesky.model.rows import Position
from atomscale_bluesky.spool import row_record

from . import documents
from .report import Report, Table
from .spooled import offline

SIZES = (10, 100, 1000)
POINTS = 100  # per chunk
ROUNDS = 7
Part = Callable[[], object]


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Time the parts at each number of keys."""
    rounds = rounds or (1 if short else ROUNDS)
    report = Report(f"What the time goes into, the quickest of {rounds} rounds")
    sizes = [str(size) for size in SIZES]
    event = Table("AtomscaleCallback, an event, µs by its number of keys", ["", *sizes])
    chunk = Table(
        f"AtomscaleCallback, a chunk of {POINTS} points of each channel, ns per point by channels", ["", *sizes]
    )
    with tempfile.TemporaryDirectory() as name:
        for size in SIZES:
            _add(event, _event(size, Path(name), rounds, short=short), 1e6)
            _add(chunk, _chunk(size, rounds, short=short), 1e9 / (size * POINTS))
    report.tables += [event, chunk]
    report.notes.append("all of the rest: calls of Python functions, uids that are remembered, and what is in no cache")
    return report


def _add(table: Table, took: dict[str, float], factor: float) -> None:
    for number, (what, seconds) in enumerate(took.items()):
        if len(table.rows) == number:
            table.rows.append([what])
        table.rows[number].append(seconds * factor)


def _least(part: Part, rounds: int, *, short: bool) -> float:
    """Seconds of one call, in the quickest round."""
    timer = timeit.Timer(part)
    once = max(timer.timeit(1), 1e-7)
    number = max(1, int((0.001 if short else 0.03) / once))
    return min(timer.repeat(rounds, number)) / number


def _event(size: int, folder: Path, rounds: int, *, short: bool) -> dict[str, float]:
    run = documents.run(size, 300)
    data, uid = run.events[0]["data"], run.events[0]["uid"]
    pick, encode, pack = itemgetter(*data), row_record.encoder(0, size), msgspec.msgpack.Encoder().encode_into
    values = pick(data)
    record = encode(1.0, 1.76e9, uid, values)
    if record is None:
        raise RuntimeError("an ordinary row is no record")
    buffer = bytearray(record[:8])
    descriptor = os.open(folder / f"written-{size}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    parts: dict[str, Part] = {
        "pick the channels' values": lambda: pick(data),
        "encode the row": lambda: encode(1.0, 1.76e9, uid, values),
        "`write`": lambda: os.write(descriptor, record),
    }
    of_these: dict[str, Part] = {
        "of it, what MessagePack takes alone": lambda: pack((0, 1.0, 1.76e9, uid, values), buffer, 8),
        "of it, the checksum": lambda: zlib.crc32(record),
    }
    took = {what: _least(part, rounds, short=short) for what, part in parts.items()}
    within = {what: _least(part, rounds, short=short) for what, part in of_these.items()}
    os.close(descriptor)
    whole = min(_called(run, folder / f"spool-{size}-{turn}") for turn in range(rounds))
    return took | within | {"all of the rest": whole - sum(took.values()), "the call, whole": whole}


def _called(run: documents.RunDocuments, folder: Path) -> float:
    """Seconds of one call of ours with an event."""
    with AtomscaleCallback(settings=offline(folder, "http://127.0.0.1:9")) as callback:
        for name, doc in run.opening:
            callback(name, doc)
        callback("event", run.events[0])
        begin = time.perf_counter()
        for doc in run.events[1:]:
            callback("event", doc)
        took = (time.perf_counter() - begin) / (len(run.events) - 1)
        callback("stop", run.stop)
    return took


def _chunk(size: int, rounds: int, *, short: bool) -> dict[str, float]:
    names = documents.keys(size)
    chance = np.random.default_rng(1).random((POINTS, size)) * 1000.0
    times = tuple(1.76e9 + n / 10 for n in range(POINTS))
    records = row_record.encode_rows(0, 0, times, ["0" * 36] * POINTS, chance.T.tolist())
    if records is None:
        raise RuntimeError("ordinary rows are no records")
    block, width = b"".join(records), len(records[0])
    values = np.ascontiguousarray(chance.T)
    chunk = Chunk(0, 0, times, tuple(names), ("degC",) * size, values, 0, POINTS - 1, Position(1, 0))
    body = wire.push("metrology", "x", chunk).body or b""
    answer = json.dumps([{"data_id": "x", "chunk_index": 0, "channel_name": name} for name in names]).encode()
    usual = answers.UsualAnswers()
    parts: dict[str, Part] = {
        "rows as numbers, checksum included": lambda: row_record.decode_records(block, width),
        "of it, the checksum": lambda: zlib.crc32(block),
        "rows to columns": lambda: np.ascontiguousarray(chance.T),
        "the body of a request": lambda: wire.push("metrology", "x", chunk),
        "of it, what orjson takes for the numbers alone": lambda: orjson.dumps(
            chance.ravel(), option=orjson.OPT_SERIALIZE_NUMPY
        ),
        "copying the body once": lambda: bytes(bytearray(body)),
        "an answer like the one before": lambda: usual.check_confirmed(answer, "x", 0, chunk.names),
        "another answer": lambda: answers.check_confirmed(answer, "x", 0, chunk.names),
    }
    return {what: _least(part, rounds, short=short) for what, part in parts.items()}
