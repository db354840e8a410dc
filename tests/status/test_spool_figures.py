"""The numbers of a spool that monitoring reads: what can fall, and what never does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_figures import FRESH_S, Figures, SpoolFigures

MakeCallback = Callable[..., AtomscaleCallback]
Read = Callable[[], Figures]


@pytest.fixture
def figures(spool_dir: Path) -> SpoolFigures:
    return SpoolFigures(lambda: Spool(spool_dir, read_only=True) if spool_dir.exists() else None)


@pytest.fixture
def read(figures: SpoolFigures) -> Read:
    """Read the files again, rather than what was read just before."""

    def read() -> Figures:
        before = figures.read()
        return wait_until(lambda: (now := figures.read()) is not before and now)

    return read


def record(callback: AtomscaleCallback, points: int, **metadata: Any) -> None:
    for name, doc in growth(points, start_metadata=metadata):
        callback(name, doc)


def test_totals_begin_at_the_first_reading_and_grow_while_runs_come_and_leave(
    make_callback: MakeCallback, server: LocalServer, read: Read, figures: SpoolFigures
) -> None:
    server.misbehave(Fault(status=503))
    callback = make_callback()
    record(callback, 15)
    first = figures.read()
    assert first is not None
    assert (first.points.seen, first.points.waiting) == (30, 30)
    assert (first.totals.points.seen, first.totals.points.delivered) == (0, 0)

    record(callback, 25)
    second = read()
    assert second.points.waiting == 80
    assert (second.totals.points.seen, second.totals.points.delivered) == (50, 0)
    assert second.outage_since is not None
    assert second.last_success is None
    assert second.oldest_waiting == pytest.approx(time.time(), abs=60)

    begin = time.time()
    server.behave()
    assert callback.drain(60)
    wait_until(lambda: not callback.status())
    third = read()
    assert (third.points.seen, third.runs, third.oldest_waiting, third.outage_since) == (0, {}, None, None)
    assert (third.totals.points.seen, third.totals.points.delivered) == (50, 80)
    assert (third.totals.chunks_confirmed, third.totals.runs_finished) == (2 + 3, 2)
    assert third.last_success is not None
    assert begin - 1 <= third.last_success <= time.time() + 1


def test_a_run_that_comes_and_leaves_between_two_readings_is_counted(callback: AtomscaleCallback, read: Read) -> None:
    record(callback, 5)
    assert callback.drain(30)
    wait_until(lambda: not callback.status())
    read()

    record(callback, 25)
    assert callback.drain(30)
    wait_until(lambda: not callback.status())

    totals = read().totals
    assert (totals.points.seen, totals.points.delivered) == (50, 50)
    assert (totals.chunks_confirmed, totals.runs_finished) == (3, 1)


def test_a_spool_that_comes_later_is_counted_from_its_beginning(
    make_callback: MakeCallback, read: Read, figures: SpoolFigures
) -> None:
    assert figures.read() is None

    record(make_callback(offline=True), 5)

    found = wait_until(lambda: figures.read())
    assert found.totals.points.seen == 10
    assert (found.runs, found.runs_without_uploader) == ({"waiting": 1}, 1)


def test_totals_never_fall_when_the_history_forgets_and_a_run_is_removed_by_hand(
    make_callback: MakeCallback, spool_dir: Path, read: Read
) -> None:
    callback = make_callback()
    read_nothing = callback.status()
    assert not read_nothing
    record(callback, 5)
    assert callback.drain(30)
    wait_until(lambda: not callback.status())
    record(make_callback(offline=True, endpoint="http://127.0.0.1:9"), 5)
    before = read()

    (folder,) = Spool(spool_dir, read_only=True).run_folders()
    shutil.rmtree(folder)
    (spool_dir / "history.jsonl").rename(spool_dir / "history-1.jsonl")
    after = read()
    assert (after.points.seen, after.totals) == (0, before.totals)
    (spool_dir / "history-1.jsonl").unlink()
    assert read().totals == before.totals

    record(callback, 5)
    assert callback.drain(30)
    wait_until(lambda: not callback.status())
    assert read().totals.points.delivered == before.totals.points.delivered + 10


def test_left_out_readings_and_runs_for_the_operator_are_counted(
    make_callback: MakeCallback, server: LocalServer, read: Read, figures: SpoolFigures
) -> None:
    figures.read()
    server.misbehave(Fault(call=("chunk", "chunk_multi"), channel="k1", status=422))
    callback = make_callback()
    for name, doc in growth(10, start_metadata={"synth_source_id": 42}):
        if name == "event" and doc["seq_num"] == 3:
            doc = doc | {"data": doc["data"] | {"k0": "hot"}}
        callback(name, doc)
    wait_until(lambda: callback.status().points.refused)

    found = read()
    assert found.runs_for_operator == 1
    assert found.points.refused > 0
    assert found.totals.points.left_out == {"text": 1}
    assert found.totals.points.seen == 20


def test_a_reading_is_shared_by_those_who_ask_at_the_same_time(
    make_callback: MakeCallback, figures: SpoolFigures
) -> None:
    record(make_callback(offline=True), 5)
    begin = time.monotonic()
    first = figures.read()
    if time.monotonic() - begin < FRESH_S:
        assert figures.read() is first


def test_a_spool_that_cannot_be_read_has_no_numbers_until_it_can(
    make_callback: MakeCallback, spool_dir: Path, figures: SpoolFigures, caplog: pytest.LogCaptureFixture
) -> None:
    record(make_callback(offline=True), 5)
    assert figures.read() is not None
    aside = spool_dir.rename(spool_dir.with_name("aside"))

    wait_until(lambda: figures.read() is None)
    assert "cannot be read now" in caplog.text
    aside.rename(spool_dir)
    assert wait_until(lambda: figures.read()).points.seen == 10
