"""By how much the times of a run are shifted, by what its uploader has measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atomscale_bluesky.api.client import ClockReading
from atomscale_bluesky.delivery.run_delivery import RunDelivery
from atomscale_bluesky.delivery.tasks.measure_clock import MeasureClock
from atomscale_bluesky.spool.journal_format import Header
from atomscale_bluesky.spool.ledger_format import ClockFixed
from atomscale_bluesky.spool.spool import Spool

DAY_S = 86400.0


@pytest.fixture
def delivery(tmp_path: Path) -> Iterator[RunDelivery]:
    spool = Spool(tmp_path / "spool")
    header = Header(1, "b7c2e9f1", 5.0, "growth", 10, "primary", "https://api.atomscale.ai", "null")
    claim = spool.claim(spool.writers.create(header).folder)
    assert claim is not None
    delivery = RunDelivery(claim, unix_time=lambda: 9.0)
    yield delivery
    delivery.close()
    spool.writers.stop_threads()
    spool.writers.close_writers()


@pytest.mark.parametrize(
    ("offset_s", "shift_s"),
    [(1.5, 1.5), (-1.5, -1.5), (DAY_S, DAY_S), (-DAY_S, -DAY_S), (DAY_S + 0.5, 0.0), (-DAY_S - 0.5, 0.0), (None, 0.0)],
)
def test_times_are_shifted_by_up_to_a_day(
    delivery: RunDelivery, caplog: pytest.LogCaptureFixture, offset_s: float | None, shift_s: float
) -> None:
    reading = None if offset_s is None else ClockReading(offset_s, 0.25)

    MeasureClock(0, "label", "id").apply_result(delivery.run, reading)

    assert delivery.run.state.clock == ClockFixed(shift_s, 9.0, 0.25 if shift_s else None)
    assert any("that this host recorded" in message for message in caplog.messages) == (shift_s == 0)


@pytest.mark.parametrize(
    ("offset_s", "told"),
    [
        (None, "because the server's clock cannot be measured"),
        (DAY_S + 0.5, "cannot be right: it is 86400.5 s ahead of this host's, and at most 86400 s are possible"),
        (-100_000.0, "cannot be right: it is 100000 s behind this host's, and at most 86400 s are possible"),
    ],
)
def test_a_warning_says_why_times_are_not_shifted(
    delivery: RunDelivery, caplog: pytest.LogCaptureFixture, offset_s: float | None, told: str
) -> None:
    reading = None if offset_s is None else ClockReading(offset_s, 0.25)

    MeasureClock(0, "label", "id").apply_result(delivery.run, reading)

    (message,) = [message for message in caplog.messages if "that this host recorded" in message]
    assert message.startswith("run b7c2e9f1 is sent with the times that this host recorded, ")
    assert message.endswith(told)
