"""Runs that an earlier version left in the middle of a story of gaps are delivered whole; `stored_gaps` has them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from atomscale_bluesky.delivery.run_delivery import RunDelivery
from atomscale_bluesky.delivery.tasks.chunk_requests import Sent
from atomscale_bluesky.delivery.tasks.work import Kind
from atomscale_bluesky.model.rows import Row
from atomscale_bluesky.spool.journal_format import Layout, decode_journal
from atomscale_bluesky.spool.journal_reader import JournalReader
from atomscale_bluesky.spool.spool import Spool

STORED = Path(__file__).parent / "stored_gaps"
HELD: dict[str, Any] = json.loads((STORED / "runs.json").read_text())
T0 = 1_760_000_000.0
Points = Counter[tuple[str, float]]


def due(folder: Path) -> Points:
    """Every finite value of a run, by channel and time."""
    found, names = Points(), list[str]()
    reader = JournalReader(folder)
    for line in reader.read():
        match decode_journal(line.payload):
            case Layout(channels=channels):
                names = [channel.name for channel in channels]
            case Row(time=time, values=values):
                found.update((name, time - T0) for name, value in zip(names, values, strict=True) if value is not None)
            case _:
                pass
    reader.close()
    return found


def deliver_the_rest(delivery: RunDelivery) -> Points:
    found = Points()
    while not delivery.run.finished:
        task = delivery.next_task(0.0)
        assert task is not None
        if task.chunk is not None:
            found.update((name, time - T0) for name in task.chunk.names for time in task.chunk.times)
            delivery.apply_result(task, Sent(task.chunk.names), 0.0)
        else:
            made = f"id-new-{task.stream}" if task.kind is Kind.INITIALIZE else None
            delivery.apply_result(task, made, 0.0)
    return found


@pytest.mark.parametrize(("uid", "new_streams"), [("1111aaaa-0000", 1), ("2222bbbb-0000", 1)])
def test_what_an_earlier_version_left_of_channels_with_gaps_arrives_once(
    tmp_path: Path, uid: str, new_streams: int
) -> None:
    shutil.copytree(STORED / "spool", tmp_path / "spool")
    spool = Spool(tmp_path / "spool")
    claims = [claim for folder in spool.run_folders() if (claim := spool.claim(folder))]
    (claim,) = [claim for claim in claims if claim.header.run_uid == uid]
    before = len(claim.ledger.state.streams)
    delivery = RunDelivery(claim)

    arrived = deliver_the_rest(delivery)

    held = Points((name, time) for name, times in HELD[uid]["held"].items() for time in times)
    assert arrived + held == due(claim.folder)
    assert len(delivery.run.streams) - before == new_streams  # for `d`, and for the three without a stream
    points = delivery.run.status().points
    assert (points.delivered, points.waiting, points.lost) == (len(due(claim.folder)), 0, 0)
    assert points.left_out == {"not finite": points.seen - points.delivered}
    for one in claims:
        one.close()
