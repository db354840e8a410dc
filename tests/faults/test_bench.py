"""The bench itself: the oracle sees what is amiss, and the model of the disk keeps what was synced."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from .bench import bench
from .disk import after_power_cut
from .oracle import judge
from .story import Doc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench is made for Linux")


def test_the_oracle_sees_points_that_are_lost_doubled_or_wrong() -> None:
    with bench("oracle", 1) as b:
        story = b.story(points=23, keys=2, gaps=0.0, late=False, monitor=True, pages=True, repeats=0.0)
        documents = story.documents()
        for name in ("one", "two"):
            callback = b.callback(spool_dir=str(b.folder / name))
            b.play(callback, documents)
            assert callback.drain(20.0)
            verdict = judge(b.server, documents)
            assert verdict.doubled == (verdict.expected if name == "two" else 0)
            assert (verdict.lost, verdict.wrong, verdict.unfinished, verdict.orphans) == (0, 0, 0, 0)

        first = next(n for n, doc in enumerate(documents) if doc.name == "event")
        fewer = documents[:first] + documents[first + 1 :]
        assert judge(b.server, fewer).wrong > 0
        other = b.story(points=5).documents()
        assert judge(b.server, documents + other).lost > 0
        late = [Doc(run, name, _later(doc) if name == "event" else doc) for run, name, doc in documents]
        assert judge(b.server, late).wrong > 0


def test_the_bench_waits_long_for_what_it_asks_the_server_itself() -> None:
    with bench("patience", 1) as b:
        assert b.server.streams() == []
        assert b.server.control._timeout_s > 10 * b.settings()["request_timeout_s"]


def _later(event: dict[str, Any]) -> dict[str, Any]:
    later = {key: stamp + 0.001 for key, stamp in event["timestamps"].items()}
    return event | {"time": event["time"] + 0.001, "timestamps": later}


@pytest.mark.parametrize("strict", [True, False])
def test_a_power_cut_keeps_what_was_synced_and_may_take_what_was_not(strict: bool, tmp_path: Path) -> None:
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("mkdir", "run", {}),
        ("sync", "", {"since": 1}),
        ("create", "run/file", {}),
        ("write", "run/file", {"data": b"kept".hex()}),
        ("sync", "run/file", {"since": 4}),
        ("sync", "run", {"since": 5}),
        ("write", "run/file", {"data": b"perhaps".hex()}),
        ("create", "run/other", {}),
    ]
    log = [{"n": n, "t": 0.0, "op": op, "path": path, **more} for n, (op, path, more) in enumerate(steps, start=1)]
    found: set[bytes] = set()
    others: set[bool] = set()
    for seed in range(60):
        target = tmp_path / str(seed)
        after_power_cut(log, target, strict=strict, seed=seed)
        found.add((target / "run" / "file").read_bytes())
        others.add(os.path.exists(target / "run" / "other"))

    assert all(content.startswith(b"kept") for content in found)
    assert {b"kept", b"keptperhaps", b"kept" + bytes(7)} <= found
    assert others == {True, False}


def test_in_the_strict_model_a_synced_file_is_gone_with_a_name_that_was_not_synced(tmp_path: Path) -> None:
    log = [
        {"n": 1, "t": 0.0, "op": "create", "path": "file"},
        {"n": 2, "t": 0.0, "op": "write", "path": "file", "data": b"kept".hex()},
        {"n": 3, "t": 0.0, "op": "sync", "path": "file", "since": 2},
    ]
    there = {True: set(), False: set()}
    for strict in there:
        for seed in range(30):
            target = tmp_path / f"{strict} {seed}"
            after_power_cut(log, target, strict=strict, seed=seed)
            there[strict].add((target / "file").exists())

    assert there == {True: {True, False}, False: {True}}
