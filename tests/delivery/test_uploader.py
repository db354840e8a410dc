"""How much is under way at a time, what is said of a lasting trouble, and what one run has done when."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.checks.verification import Verification
from atomscale_bluesky.delivery import worker_pool
from atomscale_bluesky.delivery.active_runs import MAX_ACTIVE
from atomscale_bluesky.delivery.backoff import MISSING
from atomscale_bluesky.delivery.drain import DrainQuestion
from atomscale_bluesky.delivery.outage_log import SAME_OUTAGE_S
from atomscale_bluesky.delivery.retry_policy import RetryPolicy
from atomscale_bluesky.delivery.run_delivery import RunDelivery
from atomscale_bluesky.delivery.run_orders import obey_orders
from atomscale_bluesky.delivery.task_runner import Outcome
from atomscale_bluesky.delivery.tasks.chunk_requests import Sent
from atomscale_bluesky.delivery.tasks.work import Kind
from atomscale_bluesky.delivery.unfinished_tasks import MAX_FAILED, Task
from atomscale_bluesky.delivery.uploader import Uploader
from atomscale_bluesky.errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.model.rows import Channel
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.journal_format import Header, Layout, Stop, encode_row, pack_values
from atomscale_bluesky.spool.lines import encode
from atomscale_bluesky.spool.orders import Edit, Retry
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
T0 = 1_760_000_000.0
DOWN = ApiUnavailableError("no answer")
ENDPOINT = "https://api.atomscale.ai"


# ---- with a server ---------------------------------------------------------------------------------------------------


def test_as_many_requests_are_under_way_as_the_setting_says_and_no_more(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="chunk_multi", delay_s=1.0, times=3))
    callback = make_callback(max_connections=3)
    for _ in range(7):
        for name, doc in growth(points=25):
            callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"] * 7
    assert server.counts().most_under_way == 3
    assert server.counts().connections == 3


def test_while_nothing_succeeds_one_request_at_a_time_is_sent(make_callback: MakeCallback, server: LocalServer) -> None:
    callback = make_callback(max_connections=4)
    runs = [list(growth(points=30)) for _ in range(6)]
    for documents in runs:
        for name, doc in documents[:3]:
            callback(name, doc)
    wait_until(lambda: len(server.streams()) == 6 and callback.drain(timeout_s=30))
    before = server.requests()[-1].number
    server.misbehave(Fault(status=503, headers={"Retry-After": "1"}, delay_s=0.2))

    for documents in runs:
        for name, doc in documents[3:]:
            callback(name, doc)
    wait_until(lambda: len(server.requests(after=before)) >= 10, timeout_s=30)

    asking = server.requests(after=before)[4:]  # the first four had left when the first failure came
    assert all(later.time - earlier.time >= 0.2 for earlier, later in pairwise(asking))
    server.behave()
    assert callback.drain(timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"] * 6


@pytest.mark.parametrize("asked", ["0", "Thu, 01 Jan 2026 00:00:00 GMT"], ids=["zero", "a date that is over"])
def test_pauses_grow_when_the_server_asks_for_none(
    make_callback: MakeCallback, server: LocalServer, asked: str
) -> None:
    callback = make_callback()
    server.misbehave(Fault(status=503, headers={"Retry-After": asked}))
    for name, doc in growth(points=30):
        callback(name, doc)

    wait_until(lambda: len(server.requests()) >= 5, timeout_s=30)

    times = [request.time for request in server.requests()]
    assert all(later - earlier >= 0.25 * 2**n for n, (earlier, later) in enumerate(pairwise(times)))


def test_after_a_failure_tasks_that_lie_ready_are_held_back(make_callback: MakeCallback, server: LocalServer) -> None:
    callback = make_callback(max_connections=2)
    documents = list(growth(points=95))
    for name, doc in documents[:12]:  # up to the first chunk, which goes alone
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    before = server.requests()[-1].number
    server.misbehave(Fault(call="chunk_multi", status=503, headers={"Retry-After": "1"}, delay_s=0.3, times=2))

    for name, doc in documents[12:]:
        callback(name, doc)
    wait_until(lambda: len(server.requests(after=before)) >= 3, timeout_s=30)

    first, second, third = server.requests(after=before)[:3]
    assert (first.status, second.status) == (503, 503)
    assert third.time - max(first.time, second.time) >= 1.0
    assert callback.drain(timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"]
    assert held(server)["k0"] == list(range(95))


def test_more_runs_than_are_delivered_at_a_time_have_their_turn_one_after_the_other(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    runs = MAX_ACTIVE + 6
    without_key = make_callback(api_key="", max_connections=2)
    for _ in range(runs):
        for name, doc in growth(points=3, keys=1):
            without_key(name, doc)
    without_key.close(timeout_s=5)

    callback = make_callback()

    assert callback.drain(timeout_s=60)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 3)] * runs
    assert callback.status() == ()


def test_a_finished_run_has_a_line_in_the_log_and_one_in_the_history(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    documents = list(growth(points=25))
    with caplog.at_level(logging.INFO):
        for name, doc in documents:
            callback(name, doc)
        assert callback.drain(timeout_s=30)

    (stream,) = server.streams()
    uid, started = documents[0][1]["uid"], documents[0][1]["time"]
    said = re.search(rf"run {uid} finalized: 50 points delivered to {stream.data_id}; (.*)", caplog.text)
    assert said is not None
    expected = r"waiting: 0; refused: 0; left out: none; discarded: 0; lost: 0; the last point took \d+\.\d s"
    assert re.fullmatch(expected, said[1])
    (entry,) = Spool(spool_dir).history.entries()
    assert started <= entry["finished"]
    assert {key: entry[key] for key in ("run_uid", "started", "data_ids", "delivered", "left_out", "lost")} == {
        "run_uid": uid,
        "started": started,
        "data_ids": [stream.data_id],
        "delivered": 50,
        "left_out": {},
        "lost": 0,
    }
    assert (entry["discarded"], entry["interrupted"], entry["verified"]) == (0, False, False)
    assert (entry["exit_status"], entry["endpoint"]) == ("success", server.url)


def test_the_history_marks_a_run_without_a_stop_as_interrupted(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback()
    *documents, _ = growth(points=5)
    for name, doc in documents:
        callback(name, doc)

    callback.close(timeout_s=10)

    assert make_callback().drain(timeout_s=30)
    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["interrupted"], entry["delivered"], entry["exit_status"]) == (True, 10, "")
    assert held(server)["k0"] == [0.0, 1.0, 2.0, 3.0, 4.0]


# ---- one run, step by step -------------------------------------------------------------------------------------------

Deliver = Callable[..., RunDelivery]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool")
    yield spool
    spool.writers.stop_threads()


@pytest.fixture
def deliver(spool: Spool) -> Iterator[Deliver]:
    made: list[RunDelivery] = []

    def make(
        points: int, *, stopped: bool = True, channels: int = 1, keep: str = "finalized", links: Links | None = None
    ) -> RunDelivery:
        header = Header(
            1, "b7c2e9f1-0000", T0, "growth", 10, "primary", ENDPOINT, "null", keep=keep, links=links or Links()
        )
        writer = spool.writers.create(header)
        names = tuple(Channel(f"c{n}", f"c{n}") for n in range(channels))
        writer.append([encode(Layout(layout=0, event_stream="primary", time_base="primary", channels=names))])
        for number in range(points):
            values = pack_values([number + n / 10 for n in range(channels)])
            writer.append([encode_row(0, number, T0 + number, "uid", values)])
        if stopped:
            writer.append([encode(Stop(time=T0 + 1000, exit_status="success"))])
        spool.writers.release(writer)
        claim = spool.claim(writer.folder)
        assert claim is not None
        made.append(RunDelivery(claim))
        return made[-1]

    yield make
    for delivery in made:
        delivery.close()


def tasks(delivery: RunDelivery, now: float = 0.0) -> list[Task]:
    """All that can be done at a moment."""
    found: list[Task] = []
    while (task := delivery.next_task(now)) is not None:
        found.append(task)
    return found


def what(found: list[Task]) -> list[tuple[Kind, int | None]]:
    return [(task.kind, task.chunk.index if task.chunk else None) for task in found]


def initialized(delivery: RunDelivery) -> RunDelivery:
    (task,) = tasks(delivery)
    assert task.kind is Kind.INITIALIZE
    delivery.apply_result(task, "id-0", 0.0)
    return delivery


def begun_anew(delivery: RunDelivery, spool: Spool) -> RunDelivery:
    """The same run, read again after something has changed what its files mean."""
    assert (tasks(delivery), delivery.may_reload_now) == ([], True)
    delivery.close()
    claim = spool.claim(delivery.claim.folder)
    assert claim is not None
    return RunDelivery(claim)


def confirm(delivery: RunDelivery, task: Task) -> None:
    assert task.chunk is not None
    delivery.apply_result(task, Sent(task.chunk.names), 0.0)


def test_the_first_chunk_goes_alone_and_then_several_at_a_time_and_finalize_last(deliver: Deliver) -> None:
    delivery = initialized(deliver(35))

    (first,) = tasks(delivery)
    assert first.chunk is not None
    assert (first.chunk.index, delivery.run.unfinished_tasks.in_flight) == (0, 1)
    confirm(delivery, first)
    rest = tasks(delivery)
    assert what(rest) == [(Kind.PUSH, 1), (Kind.PUSH, 2), (Kind.PUSH, 3)]
    for task in reversed(rest):
        assert tasks(delivery) == []
        confirm(delivery, task)
    (last,) = tasks(delivery)
    assert (last.kind, delivery.run.finished) == (Kind.FINALIZE, False)
    delivery.apply_result(last, None, 0.0)
    assert (tasks(delivery), delivery.run.finished, delivery.run.unfinished_tasks.in_flight) == ([], True, 0)


def test_a_first_chunk_that_failed_is_still_alone(deliver: Deliver) -> None:
    delivery = initialized(deliver(35))
    (first,) = tasks(delivery)

    delivery.apply_failure(first, DOWN, 7.0)

    assert (tasks(delivery, 6.9), delivery.next_due()) == ([], 7.0)
    assert what(tasks(delivery, 7.0)) == [(Kind.PUSH, 0)]
    assert (first.attempts, delivery.next_due()) == (1, None)


def test_no_further_chunk_is_begun_while_too_many_have_failed(deliver: Deliver) -> None:
    delivery = initialized(deliver(10 * (MAX_FAILED + 5), stopped=False))
    (first,) = tasks(delivery)
    confirm(delivery, first)
    begun = 0
    while (task := delivery.next_task(0.0)) is not None:
        begun += 1
        delivery.apply_failure(task, DOWN, 100.0 - begun)

    assert begun == MAX_FAILED
    assert delivery.next_due() == 100.0 - MAX_FAILED
    again = tasks(delivery, 100.0)
    assert sorted(number or 0 for _, number in what(again)) == list(range(1, MAX_FAILED + 5))


def test_there_is_no_more_to_read_at_once_while_no_further_chunk_may_begin(spool: Spool) -> None:
    points = 3000
    writer = spool.writers.create(Header(1, "b7c2e9f1-0000", T0, "growth", points, "s0", ENDPOINT, "own_stream"))
    for layout in range(9):  # the chunks of the first time base, then many rows of others without a full chunk
        name = f"s{layout}"
        writer.append([encode(Layout(layout, name, name, (Channel(name, name),)))])
        rows = points * (MAX_FAILED + 1) if layout == 0 else points - 1
        value = pack_values([1.0])
        writer.append([encode_row(layout, number, T0 + number, "uid", value) for number in range(rows)])
    writer.append([encode(Stop(time=T0 + 1e6, exit_status="success"))])
    spool.writers.release(writer)
    claim = spool.claim(writer.folder)
    assert claim is not None
    delivery = initialized(RunDelivery(claim))
    confirm(delivery, delivery.next_task(0.0) or pytest.fail("no chunk"))
    pushes = [task for _ in range(MAX_FAILED) if (task := delivery.next_task(0.0))]
    assert {task.kind for task in pushes} == {Kind.PUSH}
    delivery.next_task(0.0)
    assert delivery.more_to_read

    for task in pushes:
        delivery.apply_failure(task, DOWN, 100.0)

    assert not delivery.more_to_read
    assert {*pushes} < {*tasks(delivery, 100.0)}
    delivery.close()


@pytest.mark.skipif(sys.platform != "linux", reason="another call syncs a file there")
def test_a_further_opening_is_synced_because_nothing_later_would_contradict_its_loss(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = spool.writers.create(Header(1, "b7c2e9f1-0000", T0, "growth", 10, "s0", ENDPOINT, "own_stream"))
    for layout in range(2):
        name = f"s{layout}"
        writer.append([encode(Layout(layout, name, name, (Channel(name, name),)))])
        writer.append([encode_row(layout, number, T0 + number, "uid", pack_values([1.0])) for number in range(5)])
    spool.writers.release(writer)
    ledger = writer.folder / "ledger.jsonl"
    synced: list[bytes] = []

    def note_sync(file: int) -> None:
        if ledger.exists() and os.path.samestat(os.fstat(file), ledger.stat()):
            synced.append(ledger.read_bytes())

    monkeypatch.setattr(os, "fdatasync", note_sync)
    claim = spool.claim(writer.folder)
    assert claim is not None
    delivery = RunDelivery(claim)

    assert [task.kind for task in tasks(delivery)] == [Kind.INITIALIZE] * 2

    opened = [content for content in synced if b'"opened","stream":1' in content]
    assert b'"initializing","stream":1' not in opened[0]
    delivery.close()


def test_a_task_that_was_not_begun_comes_back_as_it_was(deliver: Deliver) -> None:
    delivery = initialized(deliver(35))
    confirm(delivery, tasks(delivery)[0])
    rest = tasks(delivery)
    assert [tasks(delivery), delivery.run.unfinished_tasks.in_flight] == [[], 3]

    for task in rest[1:]:
        delivery.put_back(task)

    assert delivery.run.unfinished_tasks.in_flight == 1
    assert tasks(delivery) == rest[1:]
    assert [(task.attempts, task.work.may_be_there) for task in rest] == [(0, False)] * 3


def test_what_was_confirmed_of_a_failed_chunk_is_not_pushed_again(deliver: Deliver) -> None:
    delivery = initialized(deliver(10, channels=3))
    (task,) = tasks(delivery)

    delivery.apply_failure(task, DOWN, 0.0, Sent(("c1",)))

    (again,) = tasks(delivery)
    assert again.chunk is not None
    assert again.chunk.names == ("c0", "c2")
    delivery.apply_result(again, Sent(("c0",), {"c2": ApiRefusedError("not this one", status=422)}), 0.0)
    points = delivery.run.status().points
    assert (points.delivered, points.refused, points.waiting) == (20, 10, 0)
    assert tasks(delivery) == []  # a stream with a refused chunk is not finalized


def test_a_refused_chunk_is_pushed_again_by_the_next_process_after_a_retry(deliver: Deliver, spool: Spool) -> None:
    delivery = initialized(deliver(10))
    (task,) = tasks(delivery)
    delivery.apply_result(task, Sent((), {"c0": ApiRefusedError("not this one", status=422)}), 0.0)
    obey_orders(delivery.run)
    assert not delivery.may_reload_now

    spool.give_order(delivery.claim.folder, Retry())
    obey_orders(delivery.run)

    fresh = begun_anew(delivery, spool)
    obey_orders(fresh.run)
    assert not fresh.may_reload_now  # an order is obeyed once
    assert what(tasks(fresh)) == [(Kind.PUSH, 0)]
    fresh.close()


@pytest.mark.parametrize("at_a_time", [1, 2, 4])
def test_what_a_process_that_died_has_sent_to_a_stream_that_closed_since_is_read_back_and_not_sent_again(
    deliver: Deliver, spool: Spool, at_a_time: int
) -> None:
    delivery = initialized(deliver(45))
    (confirmed,) = tasks(delivery)
    confirm(delivery, confirmed)
    first, _, third, _ = tasks(delivery)  # it dies when the first and the third of these are taken and not answered
    assert confirmed.chunk is not None
    assert first.chunk is not None
    assert third.chunk is not None
    points = {"c0": (None, [], [])}
    for chunk in (confirmed.chunk, first.chunk, third.chunk):
        points["c0"][1].extend(chunk.times)
        points["c0"][2].extend(chunk.columns[0].values)
    delivery.close()
    claim = spool.claim(delivery.claim.folder)
    assert claim is not None
    delivery = RunDelivery(claim)

    under_way = [task for _ in range(at_a_time) if (task := delivery.next_task(0.0))]
    for task in under_way:
        delivery.apply_result(task, Sent(closed=True), 0.0)

    (look,) = tasks(delivery)
    assert look.kind is Kind.READ_BACK
    delivery.apply_result(look, points, 0.0)
    delivery = begun_anew(delivery, spool)
    (task,) = tasks(delivery)
    assert task.kind is Kind.INITIALIZE
    delivery.apply_result(task, "id-1", 0.0)
    (again,) = tasks(delivery)
    assert again.chunk is not None
    assert [time - T0 for time in again.chunk.times] == [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]
    confirm(delivery, again)
    (last,) = tasks(delivery)
    assert last.chunk is not None
    assert [time - T0 for time in last.chunk.times] == [40, 41, 42, 43, 44]
    delivery.close()


def test_parking_one_time_base_ends_no_other_that_shares_its_metrology_stream(spool: Spool) -> None:
    header = Header(1, "b7c2e9f1-0000", T0, "growth", 10, "primary", ENDPOINT, "own_stream", layout="run")
    writer = spool.writers.create(header)
    for layout, name in enumerate(("primary", "slow")):
        channels = (Channel(name, name),)
        writer.append([encode(Layout(layout=layout, event_stream=name, time_base=name, channels=channels))])
    for number in range(30):
        for layout in range(2):
            writer.append([encode_row(layout, number, T0 + number, "uid", pack_values([float(number)]))])
    writer.append([encode(Stop(time=T0 + 1000, exit_status="success"))])
    spool.writers.release(writer)
    claim = spool.claim(writer.folder)
    assert claim is not None
    delivery = initialized(RunDelivery(claim))
    for task in tasks(delivery):
        confirm(delivery, task)
    under_way = {task.stream: task for task in tasks(delivery) if task.chunk and task.chunk.index == 1}

    delivery.apply_failure(under_way[0], DOWN, 1.0)  # perhaps it was taken
    delivery.park(under_way[1], "it is forbidden")

    delivery.close()
    claim = spool.claim(writer.folder)
    assert claim is not None
    delivery = RunDelivery(claim)
    assert tasks(delivery) == []
    spool.give_order(writer.folder, Retry())
    obey_orders(delivery.run)
    delivery = begun_anew(delivery, spool)
    again = sorted((task.stream, task.chunk.first_row) for task in tasks(delivery) if task.chunk)
    assert again == [(0, 10), (0, 20), (1, 10), (1, 20)]
    assert [stream.ended for stream in delivery.run.streams.values()] == [None, None]
    delivery.close()


def test_a_runs_links_are_looked_up_again_after_a_failure(deliver: Deliver) -> None:
    delivery = deliver(5, links=Links(synth_source_id=1, physical_sample="wafer 7"))
    (task,) = tasks(delivery)
    delivery.park(task, "there is no such sample")
    assert tasks(delivery, 0.0) == []
    (again,) = tasks(delivery, MISSING.max_s)

    delivery.apply_failure(again, DOWN, MISSING.max_s + 7.0)

    assert delivery.next_due() == MISSING.max_s + 7.0
    assert tasks(delivery, MISSING.max_s + 6.0) == []
    assert tasks(delivery, MISSING.max_s + 7.0) == [again]
    delivery.put_back(again)
    assert tasks(delivery, MISSING.max_s + 8.0) == [again]


def test_a_run_that_is_to_be_read_again_has_nothing_due(deliver: Deliver, spool: Spool) -> None:
    delivery = initialized(deliver(35))
    confirm(delivery, tasks(delivery)[0])
    first, second, _ = tasks(delivery)
    delivery.apply_failure(first, DOWN, 7.0)
    assert delivery.next_due() == 7.0

    spool.give_order(delivery.claim.folder, Retry())
    obey_orders(delivery.run)

    assert (delivery.next_due(), delivery.more_to_read, delivery.may_reload_now) == (None, False, False)
    confirm(delivery, second)


def test_a_read_back_that_fails_is_one_task(deliver: Deliver) -> None:
    delivery = initialized(deliver(35))
    confirm(delivery, tasks(delivery)[0])
    first, second, third = tasks(delivery)
    delivery.apply_failure(first, DOWN, 0.0)
    assert tasks(delivery) == [first]
    for task in (first, second, third):
        delivery.apply_result(task, Sent(closed=True), 0.0)
    (read_back,) = tasks(delivery)
    assert read_back.kind is Kind.READ_BACK

    delivery.apply_failure(read_back, DOWN, 7.0)

    assert tasks(delivery, 6.0) == []
    assert tasks(delivery, 7.0) == [read_back]


def test_a_stream_that_ends_because_its_chunk_is_too_large_is_not_read_back(deliver: Deliver, spool: Spool) -> None:
    delivery = initialized(deliver(35))
    (first,) = tasks(delivery)
    delivery.apply_failure(first, DOWN, 0.0)
    (again,) = tasks(delivery)

    delivery.apply_result(again, Sent(refused={"c0": ApiRefusedError("too large", status=413)}), 0.0)

    delivery = begun_anew(delivery, spool)
    (task,) = tasks(delivery)
    assert (task.kind, task.work.points_per_chunk) == (Kind.INITIALIZE, 5)
    delivery.close()


def test_a_run_is_read_back_by_one_task_at_a_time_also_after_a_failure(deliver: Deliver) -> None:
    delivery = initialized(deliver(0, keep="verified"))
    (last,) = tasks(delivery)
    delivery.apply_result(last, None, 0.0)
    (verify,) = tasks(delivery)
    assert verify.kind is Kind.VERIFY

    delivery.apply_failure(verify, DOWN, 7.0)

    assert tasks(delivery, 6.0) == []
    assert tasks(delivery, 7.0) == [verify]


def test_orders_wait_for_what_is_under_way(deliver: Deliver, spool: Spool) -> None:
    delivery = initialized(deliver(35))
    (task,) = tasks(delivery)
    spool.give_order(delivery.claim.folder, Edit(Links(synth_source_id=7)))

    obey_orders(delivery.run)

    assert (delivery.may_reload_now, delivery.run.unfinished_tasks.in_flight) == (False, 1)
    confirm(delivery, task)
    assert (delivery.may_reload_now, delivery.run.unfinished_tasks.in_flight, tasks(delivery)) == (True, 0, [])


# ---- what came of it -------------------------------------------------------------------------------------------------


class Server:
    """How one run's tasks are answered, by a clock of the test's own."""

    def __init__(self, delivery: RunDelivery, spool: Path) -> None:
        self.now = 0.0
        self.retries = RetryPolicy((ENDPOINT, str(spool)), lambda: self.now, lambda: 1.0)
        self.delivery = delivery

    def task(self) -> Task:
        task = self.delivery.next_task(self.now)
        assert task is not None
        return task

    def fails(self, error: ApiError) -> Task:
        task = self.task()
        self.retries.apply_outcome(self.delivery, Outcome(task, error=error))
        return task

    def initializes(self) -> None:
        task = self.task()
        self.retries.apply_outcome(self.delivery, Outcome(task, f"id-{task.stream}"))


@pytest.fixture
def answering(deliver: Deliver, tmp_path: Path) -> Server:
    return Server(deliver(35), tmp_path)


def test_waiting_readings_are_logged_at_once_and_at_growing_intervals(
    answering: Server, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[float] = []
    answering.now = 1000.0
    while answering.now < 1000.0 + 3 * 3600:
        caplog.clear()
        answering.fails(DOWN)
        if "does not take data" in caplog.text:
            said.append(answering.now - 1000.0)
            assert ("(for" in caplog.text) == (said[-1] > 0)
            assert said[-1] == 0 or f"(for {said[-1]:.0f} s now)" in caplog.text
            assert "sending is tried again until it works" in caplog.text
        answering.now += 30.0

    assert said == [0.0, 60.0, 360.0, 1260.0, 4860.0, 8460.0]


def test_the_end_of_an_outage_and_the_next_one_after_a_calm_are_logged_at_once(
    answering: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answering.fails(DOWN)
    answering.now = 10.0
    answering.fails(DOWN)
    assert caplog.text.count("does not take data") == 1

    answering.now = 40.0
    answering.initializes()
    assert caplog.text.count("takes data again") == 1
    answering.now += SAME_OUTAGE_S
    answering.fails(DOWN)
    assert caplog.text.count("does not take data") == 2
    assert "(for" not in caplog.text  # both have only just begun


def test_a_key_counts_as_refused_since_the_first_refusal_until_an_answer_comes(
    answering: Server, caplog: pytest.LogCaptureFixture
) -> None:
    assert answering.retries.key_refused_since is None
    for now in (5.0, 10.0, 100.0):
        answering.now = now
        answering.fails(ApiKeyError("no such key", status=401))
    assert answering.retries.key_refused_since == 5.0
    assert "check the API key" in caplog.text

    answering.now = 1000.0
    answering.initializes()
    assert answering.retries.key_refused_since is None


@pytest.mark.parametrize(
    ("error", "may_exist"),
    [
        (DOWN, True),
        (ApiUnavailableError("refused connection", may_have_been_applied=False), False),
        (ApiKeyError("no such key", status=401), False),
    ],
)
def test_a_stream_may_exist_after_a_failure_unless_the_request_surely_did_nothing(
    answering: Server, error: ApiError, may_exist: bool
) -> None:
    assert answering.fails(error).work.may_exist is may_exist


def test_a_stream_may_be_closed_after_a_finalize_unless_the_request_surely_did_nothing(
    answering: Server, deliver: Deliver, spool: Spool
) -> None:
    answering.delivery = initialized(deliver(5))
    confirm(answering.delivery, answering.task())
    refused = ApiUnavailableError("refused connection", may_have_been_applied=False)
    for answering.now, error, may_be_closed in ((0.0, refused, False), (100.0, DOWN, True), (200.0, refused, True)):
        assert answering.fails(error).work.may_be_closed is may_be_closed

    (task,) = tasks(answering.delivery, math.inf)
    answering.delivery.apply_result(task, ApiRefusedError("is closed", status=409), 0.0)  # not in the catalogue
    (again,) = tasks(answering.delivery, math.inf)
    assert (again.kind, again.work.may_be_closed, again.work.looks) == (Kind.FINALIZE, True, 1)

    answering.delivery.close()
    claim = spool.claim(answering.delivery.claim.folder)
    assert claim is not None
    (in_next_process,) = tasks(fresh := RunDelivery(claim))
    assert (in_next_process.kind, in_next_process.work.may_be_closed) == (Kind.FINALIZE, True)
    fresh.close()


def test_a_task_forbidden_while_others_are_taken_is_parked_and_else_tried_again(
    answering: Server, deliver: Deliver
) -> None:
    forbidden = ApiKeyError("not yours", status=403)
    for _ in range(3):  # everything is forbidden: that is the key's fault, not the stream's
        answering.now += 400.0
        answering.fails(forbidden)
    assert answering.delivery.run.state.streams[0].parked is None

    first, answering.delivery = answering.delivery, deliver(5)
    answering.initializes()
    answering.delivery = first
    answering.now += 400.0
    answering.fails(forbidden)
    assert "forbidden while other requests are accepted" in (first.run.state.streams[0].parked or "")


def test_a_revoked_key_parks_no_task_when_an_answer_to_an_earlier_request_comes_late(answering: Server) -> None:
    answering.initializes()
    answering.retries.apply_outcome(answering.delivery, Outcome(first := answering.task(), Sent(("c0",))))
    late, forbidden = answering.task(), answering.task()  # the key is revoked when the first of them has arrived
    error = ApiKeyError("revoked", status=403)
    answering.now = 1.0
    answering.retries.apply_outcome(answering.delivery, Outcome(forbidden, error=error))
    answering.now = 2.0
    answering.retries.apply_outcome(answering.delivery, Outcome(late, Sent(("c0",))))

    answering.now = 400.0
    again = answering.fails(error)

    assert (first.stream, again) == (0, forbidden)
    assert answering.delivery.run.state.streams[0].parked is None


@pytest.mark.parametrize(
    "between", [DOWN, ApiRefusedError("malformed", status=400)], ids=["an outage", "a refusal of another run"]
)
def test_a_task_forbidden_again_is_not_parked_when_nothing_was_accepted_meanwhile(
    answering: Server, deliver: Deliver, between: ApiError
) -> None:
    forbidden = ApiKeyError("not yours", status=403)
    answering.fails(forbidden)
    first, answering.delivery = answering.delivery, deliver(5)
    answering.now += 400.0
    answering.fails(between)
    answering.delivery = first
    answering.now += 400.0

    answering.fails(forbidden)

    assert first.run.state.streams[0].parked is None


def test_the_family_that_the_first_stream_was_made_in_is_kept_for_all(answering: Server) -> None:
    server_facts = answering.delivery.run.server_facts
    assert server_facts.family is None
    answering.initializes()
    assert server_facts.family == "metrology"


def test_a_chunk_too_large_alone_halves_the_points_and_at_one_point_it_is_refused(
    answering: Server, spool: Spool
) -> None:
    too_large = ApiRefusedError("too large", status=413)
    for points in (10, 5, 2, 1):
        if points < 10:  # its rows have to be cut again
            answering.delivery = begun_anew(answering.delivery, spool)
        answering.initializes()
        task = answering.task()
        assert task.chunk is not None
        assert (task.work.points_per_chunk, task.chunk.points) == (points, points)
        answering.retries.apply_outcome(answering.delivery, Outcome(task, Sent(refused={"c0": too_large})))

    assert answering.delivery.run.status().points.refused == 1
    answering.delivery.close()


def test_a_run_that_reads_back_unequal_is_parked_after_a_minute_and_a_half(answering: Server, deliver: Deliver) -> None:
    delivery = answering.delivery = deliver(5, keep="verified")
    answering.initializes()
    confirm(delivery, answering.task())
    delivery.apply_result(answering.task(), None, 0.0)
    missing = Verification(delivery.run.header.run_uid, "growth", (), (), waiting=5)
    pauses: list[float] = []
    while delivery.run.parked is None:
        task = answering.task()
        assert task.kind is Kind.VERIFY
        answering.retries.apply_outcome(delivery, Outcome(task, missing))
        if (due := delivery.next_due()) is not None:
            pauses.append(due - answering.now)
            answering.now = due

    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert "read back, and not equal" in delivery.run.parked
    assert (delivery.run.finished, answering.retries.pause.failures) == (False, 0)


def test_a_run_that_is_equal_in_the_end_is_finished(answering: Server, deliver: Deliver) -> None:
    delivery = answering.delivery = deliver(0, keep="verified")
    answering.initializes()
    delivery.apply_result(answering.task(), None, 0.0)
    assert not delivery.run.finished
    equal = Verification(delivery.run.header.run_uid, "growth", (), ())

    answering.retries.apply_outcome(delivery, Outcome(answering.task(), equal))

    assert delivery.run.finished


# ---- the uploader's own life -----------------------------------------------------------------------------------------

MakeUploader = Callable[..., Uploader]


@pytest.fixture
def make_uploader(server: LocalServer, spool: Spool) -> Iterator[MakeUploader]:
    made: list[Uploader] = []

    def make(**settings: object) -> Uploader:
        given = {"endpoint": server.url, "api_key": server.api_key, "spool_dir": str(spool.path)}
        given |= {"request_timeout_s": 2} | settings
        made.append(Uploader(spool, Settings.load(environ={}, **given)))
        return made[-1]

    yield make
    server.behave()
    for uploader in made:
        assert uploader.stop(timeout_s=20)


def spooled(spool: Spool, server: LocalServer, points: int = 25) -> Path:
    """A run that has stopped and waits for somebody to deliver it."""
    writer = spool.writers.create(Header(1, "b7c2e9f1-0000", T0, "growth", 10, "primary", server.url, "null"))
    layout = Layout(layout=0, event_stream="primary", time_base="primary", channels=(Channel("c0", "c0"),))
    writer.append([encode(layout)])
    for number in range(points):
        writer.append([encode_row(0, number, T0 + number, "uid", pack_values([number]))])
    writer.append([encode(Stop(time=T0 + 1000, exit_status="success"))])
    spool.writers.release(writer)
    return writer.folder


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("limit_s", "said"), [(1.0, "atomscale: up to 1 s for what is under way"), (0.25, "")])
def test_a_terminal_gets_a_line_when_the_exit_waits(
    make_uploader: MakeUploader,
    spool: Spool,
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
    limit_s: float,
    said: str,
) -> None:
    server.misbehave(Fault(call="initialize", hang=True))
    spooled(spool, server)
    uploader = make_uploader(exit_timeout_s=limit_s)
    uploader.start()
    monkeypatch.setattr(sys, "stderr", Terminal())

    uploader.close_at_exit()

    assert isinstance(sys.stderr, Terminal)
    assert sys.stderr.getvalue().startswith(said)
    assert bool(sys.stderr.getvalue()) is bool(said)
    assert len(spool.run_folders()) == 1


def test_a_terminal_gets_no_line_when_the_exit_does_not_wait(
    make_uploader: MakeUploader, spool: Spool, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled(spool, server)
    uploader = make_uploader()
    uploader.start()
    assert uploader.drain(timeout_s=30)
    monkeypatch.setattr(sys, "stderr", Terminal())

    uploader.close_at_exit()

    assert isinstance(sys.stderr, Terminal)
    assert sys.stderr.getvalue() == ""
    assert not uploader.running


def test_an_uploader_that_does_not_run_drains_nothing_and_counts_as_stopped(make_uploader: MakeUploader) -> None:
    uploader = make_uploader()

    assert (uploader.running, uploader.drain(timeout_s=0), uploader.ask_whether_drained()) == (False, False, None)
    assert uploader.stop()
    uploader.start()
    uploader.start()
    assert uploader.running
    assert uploader.drain(timeout_s=30)
    assert uploader.stop(timeout_s=10)
    assert not uploader.running


def test_stop_returns_false_while_a_request_is_under_way(
    make_uploader: MakeUploader, spool: Spool, server: LocalServer
) -> None:
    server.misbehave(Fault(call="initialize", hang=True))
    spooled(spool, server)
    uploader = make_uploader(request_timeout_s=3)
    uploader.start()
    wait_until(lambda: server.counts().under_way == 1)

    assert uploader.stop(timeout_s=0.2) is False
    assert uploader.stop(timeout_s=20) is True


def test_stop_does_not_wait_for_a_measurement_of_the_clock(
    make_uploader: MakeUploader, spool: Spool, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "CLOCK_LIMIT_S", 60.0)
    server.misbehave(Fault(call="time", hang=True))
    spooled(spool, server)
    uploader = make_uploader(request_timeout_s=60)
    uploader.start()
    wait_until(lambda: server.faults()[0].acted)

    assert uploader.stop(timeout_s=20) is True


def test_what_waits_is_sent_once_a_thread_can_be_started_again(
    make_callback: MakeCallback, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refusals = threading.Thread.start, iter([True] * 3)

    def refused_three_times(thread: threading.Thread) -> None:
        if thread.name.startswith("atomscale-sender") and next(refusals, False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused_three_times)
    callback = make_callback()
    for name, doc in growth(points=5):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"]


def test_the_uploader_reports_for_how_long_the_key_is_refused(
    make_uploader: MakeUploader, spool: Spool, server: LocalServer
) -> None:
    uploader = make_uploader()
    assert uploader.key_refused_s == 0.0
    server.misbehave(Fault(call="initialize", status=401, times=1))
    spooled(spool, server)
    uploader.start()

    wait_until(lambda: uploader.key_refused_s > 0)
    assert uploader.key_refused_s < 3600
    assert uploader.drain(timeout_s=20)
    assert uploader.key_refused_s == 0.0


def test_an_uploader_is_idle_once_everything_is_delivered_and_not_before(
    make_uploader: MakeUploader, spool: Spool, server: LocalServer
) -> None:
    server.unreachable()
    folder = spooled(spool, server)
    uploader = make_uploader()
    uploader.start()
    wait_until(lambda: spool.uploader_alive(folder))
    assert uploader.idle_since is None

    server.reachable()
    assert uploader.drain(timeout_s=20)

    begin = time.monotonic()
    assert wait_until(lambda: uploader.idle_since) <= begin + 10
    since = uploader.idle_since
    uploader.wake()
    assert uploader.drain(timeout_s=30)
    assert uploader.idle_since == since


def test_drains_asked_while_the_uploader_ends_are_answered(make_callback: MakeCallback) -> None:
    for _ in range(20):
        callback = make_callback()
        asked: list[DrainQuestion | None] = []
        closing = threading.Thread(target=callback.close)
        closing.start()
        while closing.is_alive():
            asked.append(callback.ask_whether_drained())
        closing.join()
        assert all(drain.answered.wait(10) for drain in asked if drain is not None)


# ---- several uploaders of one spool ----------------------------------------------------------------------------------


def test_a_run_that_begins_is_delivered_by_the_uploader_of_its_own_process(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer
) -> None:
    callback, other = make_callback(), Spool(spool_dir)
    for _ in range(20):
        documents = list(growth(points=1))
        callback(*documents[0])
        assert not list(filter(None, map(other.claim, other.run_folders())))
        for name, doc in documents[1:]:
            callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"] * 20
    other.writers.stop_threads()


def test_a_drain_waits_for_a_run_that_another_process_has_just_released(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer
) -> None:
    session, other = make_callback(uploader="none"), Spool(spool_dir)
    for name, doc in growth(points=25):
        session(name, doc)
    session.close(timeout_s=0.1)
    claim = other.claim(other.run_folders()[0])
    assert claim is not None
    callback = make_callback()
    assert not callback.drain(timeout_s=0.5)
    assert not server.streams()

    claim.close()

    assert callback.drain(timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"]
    other.writers.stop_threads()


def test_a_drain_waits_for_stopped_runs_that_another_uploader_has(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    first = make_callback()
    server.misbehave(Fault(call="finalize", status=503))
    for name, doc in growth(points=25):
        first(name, doc)
    wait_until(lambda: first.status().trouble is not None)

    assert not make_callback().drain(timeout_s=1)
    server.behave()
    assert make_callback().drain(timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"]


def test_a_drain_says_at_once_that_a_run_of_another_uploader_needs_the_operator(make_callback: MakeCallback) -> None:
    first = make_callback()
    for name, doc in growth(points=25, start_metadata={"synth_source_id": "the big one"}):
        first(name, doc)
    wait_until(lambda: any(run.state == "parked" for run in first.status()))

    assert not make_callback().drain(timeout_s=600)  # longer than a test may take


def test_a_drain_does_not_wait_for_an_open_run_of_another_uploader(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    first = make_callback()
    documents = list(growth(points=3))
    for name, doc in documents[:-1]:
        first(name, doc)
    wait_until(lambda: server.streams())

    assert make_callback().drain(timeout_s=30)
    first(*documents[-1])


def test_runs_that_begin_while_the_uploader_ends_are_left_to_others(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer
) -> None:
    callback, other = make_callback(), make_callback()
    ended = threading.Thread(target=callback.close)
    ended.start()
    for documents in [list(growth(points=3)) for _ in range(20)]:
        for name, doc in documents:
            callback(name, doc)
    ended.join(10)

    assert other.drain(timeout_s=30)
    wait_until(lambda: not Spool(spool_dir).run_folders(), timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"] * 20


def test_a_run_that_is_read_again_is_not_released_meanwhile(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer
) -> None:
    callback, other = make_callback(), Spool(spool_dir)
    documents = list(growth(points=200))
    for name, doc in documents[:30]:
        callback(name, doc)
    (folder,) = other.run_folders()
    ledger = folder / "ledger.jsonl"
    wait_until(ledger.exists)
    for order in range(1, 3):
        other.give_order(folder, Retry())
        end = time.monotonic() + 20
        while f'"order":{order}' not in ledger.read_text() and time.monotonic() < end:
            assert other.claim(folder) is None
        for _ in range(50):
            assert other.claim(folder) is None

    for name, doc in documents[30:]:
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    assert held(server)["k0"] == list(range(200))
    other.writers.stop_threads()


def test_locks_of_runs_that_are_being_finished_can_be_checked(
    make_callback: MakeCallback, spool_dir: Path, server: LocalServer
) -> None:
    callback, other = make_callback(), Spool(spool_dir)
    problems: list[Exception] = []
    over = threading.Event()

    def look() -> None:
        try:
            while not over.is_set():
                for folder in other.run_folders():
                    other.writer_alive(folder)
                    other.uploader_alive(folder)
        except Exception as error:  # noqa: BLE001 - whatever it is fails the test
            problems.append(error)

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(40):
        for name, doc in growth(points=1):
            callback(name, doc)
    assert callback.drain(timeout_s=60)
    over.set()
    looking.join()

    assert not problems
    assert [stream.status for stream in server.streams()] == ["success"] * 40
    other.writers.stop_threads()
