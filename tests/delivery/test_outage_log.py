"""How a night without Atomscale reads in the log: what is said, and how often."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from atomscale_bluesky import ApiUnavailableError
from atomscale_bluesky.delivery.outage_log import OutageLog
from atomscale_bluesky.errors import ApiError, ApiKeyError

HOUR_S = 3600.0


class Night:
    """A server whose answers come when the test says so; `said` has what was logged, with its time in seconds."""

    def __init__(self, spool: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 0.0
        self.said: list[tuple[float, str]] = []
        self._caplog = caplog
        self._log = OutageLog("https://api.example.org", str(spool))

    def at(self, seconds: float, error: ApiError | None) -> None:
        """An answer, or what came in its place."""
        self.now = seconds
        if error is None:
            self._log.note_answer(self.now)
        else:
            self._log.note_failed_request(self.now, error)
        self.said += [(seconds, record.getMessage()) for record in self._caplog.records]
        self._caplog.clear()


@pytest.fixture
def night(spool_dir: Path, caplog: pytest.LogCaptureFixture) -> Night:
    caplog.set_level(logging.INFO)
    spool_dir.mkdir()
    return Night(spool_dir, caplog)


NO_NETWORK = ApiUnavailableError("no route to host")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (lambda: NO_NETWORK, "sending is tried again until it works"),
        (lambda: ApiKeyError("answered 401", status=401), "check the API key"),
    ],
    ids=["no network", "no key"],
)
def test_an_outage_is_logged_at_once_then_at_growing_intervals(
    night: Night, error: Callable[[], ApiError], advice: str
) -> None:
    for seconds in range(0, 8 * 3600, 30):
        night.at(float(seconds), error())
    night.at(8 * HOUR_S, None)

    minutes = [round(seconds / 60) for seconds, _ in night.said]
    assert minutes == [0, 1, 6, 21, 81, 141, 201, 261, 321, 381, 441, 480]
    assert all(advice in text for _, text in night.said[:-1])
    assert "for 3600 s now" not in night.said[1][1]
    assert "for 60 s now" in night.said[1][1]
    assert "takes data again" in night.said[-1][1]


def test_failures_of_every_third_request_are_logged_as_one_outage(night: Night) -> None:
    for n in range(8 * 3600):
        night.at(float(n), NO_NETWORK if n % 3 == 0 else None)

    warnings = [text for _, text in night.said if "does not take data" in text]
    assert len(warnings) == 11
    assert len(night.said) == 22  # each with its end
    assert "on and off for 60 s" in warnings[1]


def test_an_outage_of_a_minute_is_logged_whatever_came_and_went_before(night: Night) -> None:
    for n in range(7200):
        night.at(float(n), NO_NETWORK if n % 3 == 0 else None)
    night.said.clear()
    for n in range(7200, 7300):
        night.at(float(n), NO_NETWORK)

    assert [seconds for seconds, _ in night.said] == [7260.0]


def test_an_outage_after_a_calm_is_logged_at_once(night: Night) -> None:
    night.at(0.0, NO_NETWORK)
    night.at(1.0, None)
    night.at(HOUR_S, NO_NETWORK)

    assert [seconds for seconds, _ in night.said] == [0.0, 1.0, HOUR_S]
    assert "does not take data; readings are kept in " in night.said[-1][1]
