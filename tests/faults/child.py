"""The process that is killed: a real callback fed by a story, which reports each call that returned.

Children are forked from a clean process that has imported everything, so that hundreds of kills take minutes. A report
is a few bytes in a pipe: which document's call returned and how long it took; an exception; how the end was.
"""

from __future__ import annotations

import logging
import resource
import struct
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.delivery import backoff, delivery_loop
from atomscale_bluesky.delivery.backoff import Backoff
from atomscale_bluesky.spool.journal_writer import JournalWriter

from . import disk
from .story import Story

RETURNED, RAISED, ENDED = b"r", b"x", b"e"
_CALL = struct.Struct("<cIdd10s")


@dataclass(frozen=True)
class Job:
    """What a child does: feed the documents from `first` to `last`, then end in one of the ways."""

    settings: dict[str, Any]
    story: Story | None = None  # None: recover what is in the spool
    first: int = 0
    last: int | None = None
    pace_s: float = 0.0  # the plan's own time between documents
    drain_s: float = 20.0
    end: str = "close"  # close; return or sys.exit, as a script ends
    hurried: float = 1.0  # pauses are this many times shorter
    segment_bytes: int | None = None
    file_limit: int | None = None  # bytes; RLIMIT_FSIZE
    record: str | None = None  # file of the disk's log
    cut_at: int | None = None  # the operation of the disk's log before which everything ends


class Ending(msgspec.Struct):
    """How a child ended of its own accord."""

    drained: bool
    ignored: dict[str, int]
    seen: int
    delivered: int
    waiting: int
    refused: int
    lost: int
    left_out: dict[str, int]
    runs: list[tuple[str, str]]  # uid and state of what is left
    took_s: float


@dataclass
class Told:
    """What the parent has read of a child's reports."""

    plain: bool = True  # nothing of the bench, and no sync, lengthens its calls
    returned: int = 0  # documents whose call returned
    calls: list[tuple[str, float]] = field(default_factory=list)  # kind of document, seconds
    at: list[float] = field(default_factory=list)  # monotonic: when each returned
    raised: list[str] = field(default_factory=list)
    ending: Ending | None = None

    def take(self, report: bytes) -> None:
        """Take in one report."""
        if report[:1] == RETURNED:
            _, number, took, at, name = _CALL.unpack(report)
            self.returned = number + 1
            self.calls.append((name.rstrip(b"\0").decode(), took))
            self.at.append(at)
        elif report[:1] == RAISED:
            self.raised.append(report[1:].decode())
        else:
            self.ending = msgspec.json.decode(report[1:], type=Ending)


def hurry(factor: float) -> None:
    """Make the pauses between attempts shorter; what is tried, and in which order, stays the same."""
    for name, unhurried in _BACKOFFS.items():
        setattr(backoff, name, Backoff(unhurried.first_s / factor, unhurried.max_s / factor))
    for name, unhurried_s in _INTERVALS.items():
        setattr(delivery_loop, name, unhurried_s / factor)


_BACKOFFS: dict[str, Backoff] = {name: getattr(backoff, name) for name in ("SERVER", "KEY")}
_INTERVALS: dict[str, float] = {name: getattr(delivery_loop, name) for name in ("SCAN_S", "POLL_S")}


def run(job: Job, reports: Connection) -> None:
    """The child's whole life."""

    def raised(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
        reports.send_bytes(RAISED + "".join(traceback.format_exception(kind, error, trace)).encode())

    sys.excepthook = raised
    threading.excepthook = lambda args: raised(args.exc_type, args.exc_value, args.exc_traceback)
    logging.getLogger("atomscale_bluesky").addHandler(_Unexpected(reports))
    if job.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_limit, resource.RLIM_INFINITY))
    if job.segment_bytes is not None:
        JournalWriter.__init__.__kwdefaults__["segment_bytes"] = job.segment_bytes
    hurry(job.hurried)
    settings = Settings.load(environ={}, **job.settings)
    if job.record is not None:
        disk.Recorder(settings.spool_path, Path(job.record), job.cut_at).install()
    begin = time.monotonic()
    callback = AtomscaleCallback(settings=settings)
    if job.story is not None:
        _feed(callback, job, reports)
    if job.end == "return":
        return
    if job.end == "sys.exit":
        sys.exit(3)
    drained = callback.drain(job.drain_s) if job.story is None or job.drain_s else False
    reports.send_bytes(ENDED + msgspec.json.encode(_ending(callback, drained, begin)))
    callback.close(0.5)


def _feed(callback: AtomscaleCallback, job: Job, reports: Connection) -> None:
    assert job.story is not None
    documents = job.story.documents()
    pause = threading.Event()
    for number in range(job.first, len(documents) if job.last is None else job.last):
        _, name, doc = documents[number]
        begin = time.perf_counter()
        callback(name, doc)
        took = time.perf_counter() - begin
        reports.send_bytes(_CALL.pack(RETURNED, number, took, time.monotonic(), name.encode()))
        if job.pace_s:
            pause.wait(job.pace_s)


def _ending(callback: AtomscaleCallback, drained: bool, begin: float) -> Ending:
    status = callback.status()
    points = status.points
    return Ending(
        drained=drained,
        ignored=dict(callback.ignored),
        seen=points.seen,
        delivered=points.delivered,
        waiting=points.waiting,
        refused=points.refused,
        lost=points.lost,
        left_out=dict(points.left_out),
        runs=[(run.run_uid, run.state) for run in status],
        took_s=time.monotonic() - begin,
    )


class _Unexpected(logging.Handler):
    """Reports what the package logs with a traceback: an error that it did not expect."""

    def __init__(self, reports: Connection) -> None:
        super().__init__(logging.ERROR)
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[0] is not None:
            self._reports.send_bytes(RAISED + self.format(record).encode())
