"""How the number of connections follows from the answers: against simulated servers, in no real time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import count

import pytest
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.delivery.connection_limit import FIRST, MEASURE_S, ConnectionLimit
from atomscale_bluesky.delivery.delivery_loop import MAX_BESIDE_A_PLAN
from atomscale_bluesky.server import Fault, LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
# Given the time and how many requests are under way: how long this request takes, and whether it fails: False, True
# for any failure, or "overloaded".
Answers = Callable[[float, int], tuple[float, bool | str]]


def feed(callback: AtomscaleCallback, documents: Iterable[Document]) -> None:
    for name, doc in documents:
        callback(name, doc)


def used(
    answers: Answers, seconds: float, *, limits: list[ConnectionLimit] | None = None, begin: float = 1000.0
) -> Iterator[tuple[float, int, bool | str]]:
    """Keep all permitted connections in use. Yield for each answer its time, the number then, and the failure."""
    limits = limits or [ConnectionLimit(32)]
    under_way = [0] * len(limits)
    events: list[tuple[float, int, int, float, bool | str]] = []
    numbers = count()
    chance = random.Random(1)

    def send(now: float, who: int) -> None:
        while under_way[who] < limits[who].number:
            under_way[who] += 1
            took_s, failure = answers(now, sum(under_way))
            took_s *= chance.uniform(1.0, 1.1)
            heapq.heappush(events, (now + took_s, next(numbers), who, now, failure))

    for who in range(len(limits)):
        send(begin, who)
    while events:
        now, _, who, sent, failure = heapq.heappop(events)
        if now > begin + seconds:
            return
        limit = limits[who]
        in_use = under_way[who] >= limit.number
        under_way[who] -= 1
        if failure:
            limit.note_failure(now, now - sent, overloaded=failure == "overloaded")
        else:
            limit.note_answer(now, now - sent, 20_000, in_use=in_use)
        yield now - begin, limit.number, failure
        send(now, who)


def far(delay_s: float) -> Answers:
    return lambda now, under_way: (delay_s, False)


def workers(number: int, each_s: float) -> Answers:
    """A server with some workers. Further requests wait in a queue."""
    free_at = [0.0] * number

    def answer(now: float, under_way: int) -> tuple[float, bool | str]:
        done = max(now, heapq.heappop(free_at)) + each_s
        heapq.heappush(free_at, done)
        return done - now, False

    return answer


def at_most(number: int, failure: bool | str) -> Answers:
    """A server that fails at once while it has this many requests to do."""
    return lambda now, under_way: (0.02, failure) if under_way > number else (0.05, False)


def by_chance(share: float) -> Answers:
    chance = random.Random(2)
    return lambda now, under_way: (0.02, chance.random() < share)


def median(numbers: list[int]) -> int:
    return sorted(numbers)[len(numbers) // 2]


@pytest.mark.parametrize("delay_s", [0.02, 0.1])
def test_all_connections_are_in_use_within_seconds_on_a_far_link(delay_s: float) -> None:
    answers = list(used(far(delay_s), 60.0))

    assert next(number for _, number, _ in answers) == FIRST
    assert min(number for at, number, _ in answers if 2.0 <= at <= 19.0) == 32
    rate = sum(at >= 5.0 for at, _, _ in answers) / 55.0
    assert rate >= 0.9 * 32 / (1.05 * delay_s)


def test_no_more_connections_than_permitted_are_used_at_any_time() -> None:
    limit = ConnectionLimit(32)
    for at, _, _ in used(far(0.02), 10.0, limits=[limit]):
        limit.maximum = MAX_BESIDE_A_PLAN if 3.0 <= at <= 6.0 else 32
        assert limit.number <= limit.maximum
        if at >= 6.0:
            break
    assert limit.number == MAX_BESIDE_A_PLAN

    assert max(number for _, number, _ in used(far(0.02), 20.0, limits=[limit], begin=1010.0)) == 32
    assert max(number for _, number, _ in used(far(0.02), 20.0, limits=[ConnectionLimit(3)])) == 3


def test_a_server_with_a_few_workers_gets_few_more_requests_than_it_can_do() -> None:
    late = [(at, number) for at, number, _ in used(workers(12, 0.05), 50.0) if at >= 5.0]

    assert min(number for at, number in late if at < 19.0) >= 12
    assert median([number for _, number in late]) <= 28
    assert len(late) >= 0.9 * 12 / 0.0525 * 45


def test_a_server_that_slows_down_with_load_is_used_where_it_does_most() -> None:
    slower: Answers = lambda now, under_way: (0.02 * (1 + (under_way / 10) ** 2), False)  # noqa: E731
    late = [number for at, number, _ in used(slower, 50.0) if at >= 5.0]

    assert 7 <= median(late) <= 11
    assert len(late) >= 0.85 * 45 * 10 / 0.042


def test_uploaders_that_share_nothing_share_a_server_equally_after_they_have_measured_together() -> None:
    limits = [ConnectionLimit(32) for _ in range(3)]
    answers = [answer for answer in used(workers(12, 0.05), 3 * MEASURE_S, limits=limits) if answer[0] >= 2 * MEASURE_S]

    assert all(limit.number <= 20 for limit in limits), [limit.number for limit in limits]
    assert len(answers) >= 0.9 * 12 / 0.0525 * MEASURE_S


@pytest.mark.parametrize("failure", [True, "overloaded"])
def test_a_server_that_refuses_more_than_some_at_a_time_is_asked_for_them_and_seldom_for_more(
    failure: bool | str,
) -> None:
    late = [(number, failed) for at, number, failed in used(at_most(12, failure), 60.0) if at >= 5.0]

    assert 6 <= median([number for number, _ in late]) <= 12
    assert max(number for number, _ in late) <= 14
    assert sum(bool(failed) for _, failed in late) <= 0.02 * len(late)


def test_the_first_refusal_halves_the_number_and_the_others_of_its_kind_do_not() -> None:
    limit = ConnectionLimit(32)
    for at, number, _ in used(far(0.1), 10.0, limits=[limit]):
        if number == 32 and at > 3.0:
            break
    now = 1000.0 + at

    for _ in range(32):
        limit.note_failure(now + 0.05, 0.1, overloaded=True)
    assert limit.number == 16
    limit.note_answer(now + 1.0, 0.1, 20_000, in_use=True)
    limit.note_failure(now + 1.1, 0.1, overloaded=True)
    assert limit.number == 8


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2])
def test_failures_by_chance_cost_no_connections(share: float) -> None:
    answers = list(used(by_chance(share), 40.0))

    assert median([number for at, number, _ in answers if at >= 5.0]) == 32
    assert sum(at >= 5.0 for at, _, _ in answers) >= 0.9 * 35 * 32 / 0.021


def test_an_outage_leaves_the_number_where_it_begins_and_it_doubles_again() -> None:
    limit = ConnectionLimit(32)
    assert max(number for _, number, _ in used(far(0.02), 5.0, limits=[limit])) == 32
    for second in range(600):
        limit.note_failure(1005.0 + second, 0.5, overloaded=False)
    limit.note_answer(1606.0, 0.02, 20_000, in_use=True)

    assert limit.number == FIRST
    assert [number for at, number, _ in used(far(0.02), 1.0, limits=[limit], begin=1607.0) if at >= 0.5][0] == 32


def test_a_longer_way_to_the_server_is_learned_within_two_minutes() -> None:
    way: Answers = lambda now, under_way: (0.02 if now < 1030.0 else 0.1, False)  # noqa: E731
    answers = list(used(way, 3 * MEASURE_S))

    assert min(number for at, number, _ in answers if at > 32.0 and at < 55.0) == FIRST
    assert median([number for at, number, _ in answers if at >= 2 * MEASURE_S]) == 32


@pytest.mark.parametrize(("then_s", "fewer"), [(0.05, True), (0.2, False)])
def test_answers_that_have_become_quicker_are_what_later_ones_are_compared_with(then_s: float, fewer: bool) -> None:
    answers: Answers = lambda now, under_way: (  # noqa: E731
        (0.2 if now < 1006 else then_s if now < 1012 else 0.15), False
    )  # fmt: skip
    numbers = [(at, number) for at, number, _ in used(answers, 18.0)]

    assert {number for at, number in numbers if 5.0 <= at < 12.0} == {32}
    assert (min(number for at, number in numbers if at >= 13.0) <= 24) == fewer


def test_requests_that_leave_now_and_then_change_nothing() -> None:
    limit = ConnectionLimit(32)
    for n in range(200):
        limit.note_answer(1000.0 + 10.0 * n, 0.02 if n % 3 else 0.5, 20_000, in_use=False)

    assert limit.number == FIRST


def test_more_connections_that_bring_no_more_answers_are_taken_back() -> None:
    """What bounds the answers is this process: each takes as long as before, and there are no more of them."""
    limit = ConnectionLimit(32)
    numbers: list[int] = []
    for n in range(20_000):
        limit.note_answer(1000.0 + 0.002 * n, 0.001, 20_000, in_use=True)
        numbers.append(limit.number)

    assert numbers[0] == FIRST
    assert max(numbers) <= 2 * FIRST
    assert median(numbers) <= FIRST + 2


def test_large_bodies_that_take_longer_are_not_slow_answers() -> None:
    limit = ConnectionLimit(32)
    now, large = 1000.0, random.Random(3)
    for _ in range(4000):
        now += 0.08 / limit.number
        size, took_s = (1_000_000, 0.2) if large.random() < 0.3 else (20_000, 0.02)
        limit.note_answer(now, took_s * large.uniform(1.0, 1.2), size, in_use=True)
        if now < 1019.0 and now > 1010.0:
            assert limit.number == 32


# ---- with a server ---------------------------------------------------------------------------------------------------


def test_a_backlog_goes_over_more_connections_once_answers_come_late(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    before = make_callback(api_key="")
    feed(before, growth(points=2000, keys=1))
    before.close()
    server.misbehave(Fault(call="chunk_multi", delay_s=0.25))

    callback = make_callback(max_connections=12)

    assert callback.drain(timeout_s=60)
    assert held(server)["k0"] == list(range(2000))
    assert MAX_BESIDE_A_PLAN < server.counts().most_under_way <= 12


def test_fewer_connections_are_used_beside_a_plan_and_more_after_it(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="chunk_multi", delay_s=0.25))
    callback = make_callback(max_connections=12)
    documents = list(growth(points=2000, keys=1))
    feed(callback, documents[:-1])
    wait_until(lambda: len(server.requests()) > 60)
    assert server.counts().most_under_way <= MAX_BESIDE_A_PLAN

    feed(callback, documents[-1:])

    assert callback.drain(timeout_s=60)
    assert held(server)["k0"] == list(range(2000))


def test_connections_that_rest_after_a_refusal_are_used_again(make_callback: MakeCallback, server: LocalServer) -> None:
    before = make_callback(api_key="")
    feed(before, growth(points=1500, keys=1))
    before.close()
    server.misbehave(Fault(call="chunk_multi", skip=100, times=1, status=429), Fault(call="chunk_multi", delay_s=0.05))

    callback = make_callback(max_connections=8)

    assert callback.drain(timeout_s=60)
    assert held(server)["k0"] == list(range(1500))
    assert server.counts().connections <= 9


def test_a_server_that_refuses_what_is_above_a_rate_gets_little_that_it_refuses(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    before = make_callback(api_key="")
    feed(before, growth(points=2500, keys=1))
    before.close()
    server.misbehave(Fault(call="chunk_multi", status=429, above_per_s=40.0), Fault(call="chunk_multi", delay_s=0.05))

    callback = make_callback()

    assert callback.drain(timeout_s=90)
    assert held(server)["k0"] == list(range(2500))
    refused = [record for record in server.requests("chunk_multi") if record.status == 429]
    assert len(refused) <= 25
