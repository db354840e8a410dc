"""Which runs have the places when more wait than there are: those written here, and a quarter for all others."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atomscale_bluesky.delivery import active_runs
from atomscale_bluesky.delivery.run_scheduler import RunScheduler
from atomscale_bluesky.delivery.waiting_runs import Reason, SetAside, file_sizes
from atomscale_bluesky.errors import ApiUnavailableError
from atomscale_bluesky.model.rows import Channel
from atomscale_bluesky.spool.journal_format import Header, Layout, Stop, encode_row, pack_values
from atomscale_bluesky.spool.lines import encode
from atomscale_bluesky.spool.locks import UPLOADER_LOCK, RunLock
from atomscale_bluesky.spool.spool import Spool

T0 = 1_760_000_000.0
ENDPOINT = "https://api.atomscale.ai"
LAYOUT = Layout(layout=0, event_stream="primary", time_base="primary", channels=(Channel("a", "a"),))


class Uploader:
    """The scheduling part of an uploader with eight places, and a clock of the test's own."""

    def __init__(self, path: Path) -> None:
        self.spool = Spool(path)
        self.now = 1000.0
        self.scheduler = RunScheduler(self.spool, ENDPOINT, monotonic=lambda: self.now, unix_time=lambda: T0)

    def add(self, count: int, *, live: bool) -> None:
        """Add runs with something to send: some that are being written here, or some that have ended."""
        for number in range(count):
            writer = self.spool.writers.create(
                Header(1, f"{live}-{number}", T0, "growth", 2, "primary", ENDPOINT, "null")
            )
            rows = [encode_row(0, row, T0 + row, f"uid {row}", pack_values([1.0])) for row in range(4)]
            writer.append([encode(LAYOUT), *rows])
            if live:
                self.scheduler.active.written_here.add(writer.folder)
            else:
                writer.append([encode(Stop(T0 + 9, "success"))])
                self.spool.writers.release(writer)

    def places(self, *, server_answers: bool = True) -> tuple[int, int]:
        """How many active runs are written here, and how many are others, after a scan."""
        self.scheduler.scan(server_answers=server_answers)
        active = self.scheduler.active
        live = sum(delivery.claim.folder in active.written_here for delivery in active)
        return live, len(active) - live


@pytest.fixture
def uploader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploader]:
    monkeypatch.setattr(active_runs, "MAX_ACTIVE", 8)
    uploader = Uploader(tmp_path / "spool")
    yield uploader
    uploader.scheduler.active.close()
    uploader.spool.writers.stop_threads()
    uploader.spool.writers.close_writers()


@pytest.mark.parametrize(
    ("live", "others", "places"),
    [(10, 10, (6, 2)), (10, 1, (7, 1)), (3, 10, (3, 5)), (10, 0, (8, 0)), (0, 10, (0, 8)), (2, 3, (2, 3))],
)
def test_a_quarter_of_the_places_is_for_runs_that_are_not_written_here(
    uploader: Uploader, live: int, others: int, places: tuple[int, int]
) -> None:
    uploader.add(live, live=True)
    uploader.add(others, live=False)

    assert uploader.places() == places


def test_the_only_place_is_for_a_run_that_has_ended_as_long_as_it_has_something_to_do(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_runs, "MAX_ACTIVE", 1)
    uploader.add(1, live=True)
    uploader.add(1, live=False)

    assert [uploader.places() for _ in range(3)] == [(0, 1)] * 3


def test_runs_that_are_written_here_get_the_places_beyond_that_quarter_some_at_a_time(uploader: Uploader) -> None:
    uploader.add(20, live=False)
    assert uploader.places() == (0, 8)
    uploader.add(20, live=True)

    assert uploader.places(server_answers=False) == (0, 8)
    assert uploader.places() == (4, 4)
    assert uploader.places() == (6, 2)
    assert uploader.places() == (6, 2)


def test_other_runs_get_their_quarter_back(uploader: Uploader) -> None:
    uploader.add(8, live=True)
    assert uploader.places() == (8, 0)
    uploader.add(3, live=False)

    assert uploader.places(server_answers=False) == (8, 0)
    assert uploader.places() == (6, 2)


def test_runs_that_are_written_here_take_turns(uploader: Uploader) -> None:
    uploader.add(12, live=True)
    seen: set[str] = set()
    for _ in range(3):
        assert uploader.places() == (8, 0)
        seen |= {delivery.claim.folder.name for delivery in uploader.scheduler.active}

    assert len(seen) == 12


def test_a_run_without_progress_for_a_minute_makes_way_one_every_ten_seconds(uploader: Uploader) -> None:
    uploader.add(12, live=False)
    assert uploader.places() == (0, 8)
    first = list(uploader.scheduler.active)
    for delivery in first[:5]:
        task = delivery.next_task(uploader.now)
        assert task is not None
        delivery.apply_failure(task, ApiUnavailableError("no answer"), uploader.now + 1e6)

    def made_way(after_s: float) -> list[int]:
        """Which of the first runs have made way."""
        uploader.now += after_s
        assert uploader.places(server_answers=False) == (0, 8)
        return [number for number, delivery in enumerate(first) if not uploader.scheduler.active.is_active(delivery)]

    assert [made_way(0.0), made_way(59.5)] == [[], []]  # it counts from when its ledger was last seen to grow
    assert [made_way(0.5), made_way(9.5), made_way(0.5)] == [[0], [0], [0, 1]]
    # A run whose task is under way is left alone, and so is one of which nothing has failed.
    task = first[2].next_task(uploader.now + 2e6)
    assert task is not None
    assert [made_way(10.0), made_way(10.0), made_way(10.0)] == [[0, 1, 3], [0, 1, 3, 4], [0, 1, 3, 4]]


def test_the_last_place_goes_to_a_run_that_was_set_aside_when_no_other_wants_it(uploader: Uploader) -> None:
    uploader.add(7, live=True)
    assert uploader.places() == (7, 0)
    active = uploader.scheduler.active
    waiting = [uploader.spool.path / f"20010101T000000-0000000{number}" for number in range(2)]
    for folder in waiting:
        shutil.copytree(next(iter(active)).claim.folder, folder)
        active.waiting.set_aside(folder, SetAside(Reason.NOTHING_TO_SEND, file_sizes(folder)))

    assert uploader.places() == (7, 1)
    assert waiting[0] in active
    assert uploader.places() == (7, 1)


def test_a_run_without_a_header_may_get_readings_as_long_as_it_may_get_a_header(uploader: Uploader) -> None:
    scheduler, folder = uploader.scheduler, uploader.spool.path / "20260101T020000-deadbeef"
    assert not scheduler.anything_open
    folder.mkdir()
    scheduler.scan()
    assert (scheduler.has_run_without_header, scheduler.anything_open) == (True, True)
    minutes_ago = time.time() - 120
    os.utime(folder, (minutes_ago, minutes_ago))
    scheduler.scan()

    assert (scheduler.has_run_without_header, scheduler.anything_open) == (False, False)
    assert not folder.exists()  # whoever was making it has died


def test_a_run_that_another_process_delivers_is_left_to_it_and_taken_over_when_it_lets_go(uploader: Uploader) -> None:
    uploader.add(1, live=False)
    (folder,) = uploader.spool.run_folders()
    lock, scheduler = RunLock(folder / UPLOADER_LOCK), uploader.scheduler
    assert lock.acquire()
    assert uploader.places() == (0, 0)
    assert (scheduler.others_deliver, scheduler.anything_open, scheduler.needs_operator) == (True, False, False)

    lock.release()

    assert uploader.places() == (0, 1)
    assert (scheduler.others_deliver, scheduler.anything_open) == (False, True)
