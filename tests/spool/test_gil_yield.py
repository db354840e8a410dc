"""Making way for the plan's thread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from runs import growth, held

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool import gil_yield as gil_yield

MakeCallback = Callable[..., AtomscaleCallback]


class Clock:
    """Stands for the module `time`, and notes how long somebody rests."""

    def __init__(self) -> None:
        self.rests: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(gil_yield, "time", clock)
    return clock


def spool_a_run(make_callback: MakeCallback) -> None:
    callback = make_callback(offline=True)
    for name, doc in growth(points=500, keys=20):
        callback(name, doc)
    callback.close()


def test_a_backlog_makes_way_while_a_run_is_open_here(
    make_callback: MakeCallback, server: LocalServer, clock: Clock
) -> None:
    server.unreachable()
    spool_a_run(make_callback)
    live = make_callback()
    for name, doc in list(growth(points=25))[:-1]:
        live(name, doc)
    server.reachable()

    assert live.drain(timeout_s=30)
    assert len(held(server)["k0"]) == 520
    assert sum(rest > 0 for rest in clock.rests) > 20


def test_a_backlog_goes_out_at_full_speed_where_no_run_is_open(
    make_callback: MakeCallback, server: LocalServer, clock: Clock
) -> None:
    spool_a_run(make_callback)

    assert make_callback().drain(timeout_s=30)
    assert len(held(server)["k0"]) == 500
    assert not any(clock.rests)
