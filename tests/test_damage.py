"""Odd documents and damaged spools: each costs itself and no other, and nothing pretends that all is well."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import growth, held

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.journal import segment_path
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("start", {"time": math.nan}),
        ("start", {"time": "noon"}),
        ("stop", {"time": math.nan}),
        ("stop", {"time": math.inf}),
        ("stop", {"time": "noon"}),
        ("stop", {"reason": "no file b\udcff"}),
        ("stop", {"exit_status": "\ud800"}),
        ("stop", {"reason": "x" * 10**7}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_run_with_an_odd_start_or_stop_is_delivered_all_the_same(
    callback: AtomscaleCallback, server: LocalServer, kind: str, change: dict[str, Any]
) -> None:
    for name, doc in growth(points=3):
        callback(name, doc | change if name == kind else doc)

    assert callback.drain(timeout_s=10)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 6)]


def spooled(make_callback: MakeCallback, spool_dir: Path) -> Path:
    """The journal of a run of 25 points that waits in the spool."""
    with make_callback(offline=True) as callback:
        for name, doc in growth(points=25):
            callback(name, doc)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    return segment_path(folder, 1)


def flip(path: Path, needle: bytes, *, nth: int = 0) -> None:
    """Change one bit of the nth place where these bytes stand."""
    content = bytearray(path.read_bytes())
    at = -1
    for _ in range(nth + 1):
        at = content.index(needle, at + 1)
    content[at + len(needle) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["header", "layout"])
def test_a_flipped_bit_in_what_all_rows_need_costs_nothing(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, kind: str
) -> None:
    flip(spooled(make_callback, spool_dir), b'"kind":"%s"' % kind.encode())

    assert make_callback().drain(timeout_s=10)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


@pytest.mark.parametrize("kind", ["header", "layout"])
def test_drain_is_not_true_while_a_run_that_is_damaged_is_undelivered(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, kind: str
) -> None:
    journal = spooled(make_callback, spool_dir)
    for _ in range(2):
        flip(journal, b'"kind":"%s"' % kind.encode())

    callback = make_callback()
    assert not callback.drain(timeout_s=5)
    assert [run.state for run in callback.status()] == ["unreadable"]


@pytest.mark.parametrize("row", [0, 7, 24])
def test_a_flipped_bit_in_a_row_costs_that_row_and_is_counted_as_lost(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, row: int
) -> None:
    journal = spooled(make_callback, spool_dir)
    flip(journal, b"[0,%d," % row)

    callback = make_callback()
    assert callback.drain(timeout_s=10)
    assert held(server)["k0"] == [float(n) for n in range(25) if n != row]
    (entry,) = Spool(spool_dir).history()
    assert (entry["delivered"], entry["lost"]) == (48, 2)


def test_a_row_damaged_after_its_chunk_was_tried_costs_itself_and_doubles_nothing(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    # Chunk 1 is refused and so stays unconfirmed, the others go through; then a row of it is damaged.
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=1, status=503))
    callback = make_callback()
    for name, doc in growth(points=45):
        callback(name, doc)
    assert not callback.drain(timeout_s=2)
    callback.close(timeout_s=0)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    flip(segment_path(folder, 1), b"[0,13,")
    server.behave()

    assert make_callback().drain(timeout_s=15)
    assert sorted(held(server)["k0"]) == [float(n) for n in range(45) if n != 13]
    assert all(stream.changed == 0 for stream in server.streams())
