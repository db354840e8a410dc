"""What a session costs that has nothing to do, beside runs that wait in the spool: processor time, and descriptors.

The runs go to another endpoint, or wait for the operator, for a server that does not listen, or for a key. Once the
session has looked at all of them it is left alone, with one run open, and the share of a core that it takes is
measured; side by side with a session beside a single run. It has looked at them when it has been calm for a while.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import psutil

from atomscale_bluesky import AtomscaleCallback, Settings

from . import documents
from .report import Report, Table
from .sink import sink
from .spooled import offline

PILES, LEFT_ALONE_S = (1, 3000, 10_000), 30.0
CALM, CALM_S = 0.03, 5  # that share of a core at most, for so many seconds one after the other
KINDS = ("another endpoint", "the operator", "a server", "a key")


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Measure each once; with `rounds`, each session is left alone for so many seconds."""
    report = Report("What an idle session costs")
    table = Table(
        "AtomscaleCallback, a session with nothing to do, one run open",
        ["what the runs wait for", "runs", "constructed, ms", "looked at after, s", "of a core, %", "descriptors"],
    )
    report.tables.append(table)
    with tempfile.TemporaryDirectory() as name, sink() as url, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        nobody = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        for kind in KINDS:
            for runs in (1, 20) if short else PILES:
                spool = Path(name) / "spool"
                endpoint = nobody if kind == "a server" else url
                _pile(spool, runs, nobody if kind == "another endpoint" else endpoint, parked=kind == "the operator")
                key = "" if kind == "a key" else "key"
                table.rows.append(
                    [kind, runs, *_idle(spool, endpoint, key, rounds or (1.0 if short else LEFT_ALONE_S))]
                )
                shutil.rmtree(spool)
    report.notes.append(f"looked at: from then on it took {CALM:.0%} of a core at most, for {CALM_S} s")
    return report


def _pile(spool: Path, runs: int, endpoint: str, *, parked: bool) -> None:
    prepared = documents.run(10, 20)
    with AtomscaleCallback(settings=offline(spool, endpoint)) as callback:
        for name, doc in prepared.opening:
            callback(name, doc | {"synth_source_id": "none"} if parked and name == "start" else doc)
        for event in prepared.events:
            callback("event", event)
        callback("stop", prepared.stop)
    (folder,) = (path for path in spool.iterdir() if path.is_dir())
    for n in range(runs - 1):
        shutil.copytree(folder, spool / f"20260101T000000-{n:08x}")


def _idle(spool: Path, endpoint: str, key: str, seconds: float) -> list[float | int]:
    settings = Settings.load(
        environ={}, endpoint=endpoint, api_key=key, spool_dir=str(spool), spool_min_free_bytes=0, exit_timeout_s=0
    )
    begin = time.perf_counter()
    callback = AtomscaleCallback(settings=settings)
    constructed = time.perf_counter() - begin
    prepared = documents.run(10, 1)
    for name, doc in prepared.opening:
        callback(name, doc)
    looked_at = _until_calm()
    used = _share_of_a_core(seconds)
    me = psutil.Process()
    descriptors = me.num_fds() if os.name != "nt" else me.num_handles()
    callback("stop", prepared.stop)
    callback.close(0.0)
    return [1000 * constructed, looked_at, 100 * used, descriptors]


def _until_calm() -> float:
    """Wait until this process has hardly anything to do, and return how long that took."""
    begin = time.perf_counter()
    calm_since = begin
    while time.perf_counter() < calm_since + CALM_S:
        if _share_of_a_core(1.0) > CALM:
            calm_since = time.perf_counter()
    return calm_since - begin


def _share_of_a_core(seconds: float) -> float:
    """Sleep, and return the processor time that this process took meanwhile, divided by the time that went by."""
    cpu = time.process_time()
    time.sleep(seconds)
    return (time.process_time() - cpu) / seconds
