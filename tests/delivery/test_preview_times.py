"""When a preview leaves, by a clock of the test's own, and what is shown next after each answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atomscale_bluesky.delivery.run_delivery import RunDelivery
from atomscale_bluesky.delivery.tasks.chunk_requests import Sent
from atomscale_bluesky.delivery.tasks.work import Kind
from atomscale_bluesky.delivery.unfinished_tasks import Task
from atomscale_bluesky.errors import ApiRefusedError, ApiUnavailableError
from atomscale_bluesky.model.rows import Channel
from atomscale_bluesky.spool.journal_format import Header, Layout, encode_row, pack_values
from atomscale_bluesky.spool.lines import encode
from atomscale_bluesky.spool.spool import Spool

T0 = 1_760_000_000.0
LAYOUT = Layout(layout=0, event_stream="primary", time_base="primary", channels=(Channel("a", "a"),))


class Growing:
    """A run that is being written, with a point shown within 2 s, and its delivery. It was made at second 100."""

    def __init__(self, spool: Spool, points_per_chunk: int = 50, max_latency_s: float = 2.0) -> None:
        header = Header(
            1, "b7c2e9f1", T0, "growth", points_per_chunk, "primary", "https://api.atomscale.ai", "null",
            max_latency_s=max_latency_s,
        )  # fmt: skip
        self.writer = spool.writers.create(header)
        self.writer.append([encode(LAYOUT)])
        claim = spool.claim(self.writer.folder)
        assert claim is not None
        self.delivery = RunDelivery(claim)
        self.rows = 0
        task = self.delivery.next_task(100.0)
        assert task is not None
        self.delivery.apply_result(task, "id", 100.0)

    def write(self, rows: int) -> None:
        for number in range(self.rows, self.rows + rows):
            values = pack_values([float(number)])
            self.writer.append([encode_row(0, number, T0 + number, f"uid {number}", values)])
        self.rows += rows

    def task(self, at: float) -> Task | None:
        return self.delivery.next_task(at)

    def points(self, at: float) -> int | None:
        """How many points a preview shows that leaves now; None if none does."""
        task = self.task(at)
        if task is None:
            return None
        assert task.kind is Kind.PREVIEW
        assert task.chunk is not None
        self.delivery.apply_result(task, Sent(task.chunk.names), at)
        return task.chunk.points


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool")
    yield spool
    spool.writers.stop_threads()
    spool.writers.close_writers()


@pytest.fixture
def growing(spool: Spool) -> Iterator[Growing]:
    growing = Growing(spool)
    yield growing
    growing.delivery.close()


def test_points_that_may_have_waited_for_long_are_shown_at_once_and_new_ones_in_time(growing: Growing) -> None:
    growing.write(3)
    assert growing.points(100.0) == 3
    assert (growing.points(100.0), growing.delivery.next_due()) == (None, 101.0)  # to see whether there are more

    growing.write(2)
    assert (growing.points(101.0), growing.delivery.next_due()) == (None, 102.0)  # they came since second 100
    assert growing.points(101.75) is None
    growing.write(1)
    assert growing.points(102.0) == 6
    assert growing.points(110.0) is None  # nothing is new


def test_points_are_shown_for_a_chunk_that_is_not_full_and_not_for_a_full_one(spool: Spool) -> None:
    growing = Growing(spool, points_per_chunk=4)
    growing.write(6)
    task = growing.task(100.0)
    assert task is not None
    assert (task.kind, task.chunk.points if task.chunk else 0) == (Kind.PUSH, 4)
    # While a chunk of the stream is under way, none of its points are shown.
    assert growing.task(100.0) is None
    growing.delivery.apply_result(task, Sent(("a",)), 100.0)
    assert growing.points(100.0) == 2
    growing.delivery.close()


def test_a_preview_that_was_surely_not_applied_is_made_again_with_what_is_new(growing: Growing) -> None:
    growing.write(3)
    task = growing.task(100.0)
    assert task is not None
    never = ApiUnavailableError("no connection", may_have_been_applied=False)
    assert growing.task(100.0) is None  # one is under way

    assert not growing.delivery.apply_failure(task, never, 105.0)

    stream = growing.delivery.run.state.streams[0]
    assert (stream.last_preview, growing.delivery.may_reload_now) == (None, False)
    growing.write(1)
    assert growing.points(103.0) == 4


def test_a_preview_that_may_have_been_applied_ends_its_chunk(growing: Growing) -> None:
    growing.write(3)
    task = growing.task(100.0)
    assert task is not None

    assert not growing.delivery.apply_failure(task, ApiUnavailableError("no answer"), 105.0)

    tried = growing.delivery.run.state.streams[0].last_tried
    assert tried is not None
    assert (tried.points, tried.cut_short, growing.delivery.may_reload_now) == (3, True, True)
    assert growing.delivery.next_due() is None


@pytest.mark.parametrize("shown", [0, 3])
def test_a_preview_that_is_refused_is_the_last_and_the_chunk_ends_with_what_was_shown(
    growing: Growing, shown: int
) -> None:
    if shown:
        growing.write(shown)
        assert growing.points(100.0) == shown
    growing.write(2)
    task = growing.task(101.0) or growing.task(103.0)
    assert task is not None

    growing.delivery.apply_result(task, Sent(refused={"a": ApiRefusedError("it has grown", status=409)}), 103.0)

    state = growing.delivery.run.state
    assert state.previews_ended == "it has grown"
    tried = state.streams[0].last_tried
    assert (tried.points if tried else 0, growing.delivery.may_reload_now) == (shown, shown > 0)
    assert growing.delivery.next_due() is None


def test_a_preview_that_no_worker_has_begun_is_made_anew(growing: Growing) -> None:
    growing.write(3)
    task = growing.task(100.0)
    assert task is not None

    growing.delivery.put_back(task)

    assert growing.delivery.run.state.streams[0].last_preview is None
    growing.write(1)
    assert growing.points(102.0) == 4


def test_a_run_is_idle_when_nothing_can_be_done_before_more_is_written(spool: Spool) -> None:
    growing = Growing(spool, points_per_chunk=4, max_latency_s=0.0)
    delivery = growing.delivery
    assert not delivery.idle  # nobody has asked for a task
    assert (growing.task(100.0), delivery.idle) == (None, True)
    delivery.wake()
    assert not delivery.idle
    growing.write(3)
    assert (growing.task(100.0), delivery.idle, delivery.next_due()) == (None, True, None)

    growing.write(1)
    task = growing.task(100.0)
    assert task is not None
    assert (task.kind, task.given_out_at, delivery.idle) == (Kind.PUSH, 100.0, False)
    assert (growing.task(101.0), delivery.idle) == (None, False)  # it is under way
    assert delivery.apply_failure(task, ApiUnavailableError("no answer"), 107.0)
    assert (growing.task(102.0), delivery.idle, delivery.next_due()) == (None, False, 107.0)
    assert growing.task(107.0) is task
    delivery.put_back(task)
    assert (growing.task(107.0), delivery.idle, task.given_out_at) == (task, False, 107.0)
    delivery.apply_result(task, Sent(("a",)), 108.0)
    assert not delivery.idle
    assert (growing.task(108.0), delivery.idle) == (None, True)
    delivery.close()
