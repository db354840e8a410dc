"""How long the server is left alone after failures."""

from __future__ import annotations

import pytest

from atomscale_bluesky.delivery import backoff
from atomscale_bluesky.delivery.backoff import Backoff, Pause, RunPauses
from atomscale_bluesky.errors import ApiError, ApiKeyError, ApiUnavailableError

NOW = 1000.0
DOWN = ApiUnavailableError("no answer")


def longest(_: object = None) -> Pause:
    """A pause that chance does not shorten."""
    return Pause(lambda: 1.0)


def pauses(pause: Pause, error: ApiError, count: int) -> list[float]:
    """How long each of several pauses is, if the request that is tried after one fails as well."""
    found: list[float] = []
    for _ in range(count):
        now = max(NOW, pause.until)
        found.append(pause.note_failure(now, error) - now)
    return found


def asked(seconds: float) -> ApiUnavailableError:
    return ApiUnavailableError("busy", retry_after_s=seconds)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DOWN, [0.5, 1, 2, 4, 8, 16, 30, 30]),
        (ApiKeyError("wrong key"), [5, 10, 20, 40, 80, 160, 300, 300]),
    ],
)
def test_each_failure_doubles_the_pause_up_to_a_limit_which_is_higher_for_a_wrong_key(
    error: ApiError, expected: list[float]
) -> None:
    pause = longest()

    assert pauses(pause, error, len(expected)) == expected


def test_the_pause_stays_at_its_limit_however_many_failures_there_were() -> None:
    assert pauses(longest(), DOWN, 5000)[-1] == pytest.approx(30)


def test_jitter_shortens_a_pause_by_up_to_half() -> None:
    assert Pause(lambda: 0.0).note_failure(NOW, DOWN) == NOW + 0.25
    assert Pause(lambda: 0.5).note_failure(NOW, DOWN) == NOW + 0.375
    waits = {Pause().note_failure(NOW, DOWN) - NOW for _ in range(50)}
    assert len(waits) > 1
    assert all(0.25 <= wait <= 0.5 for wait in waits)


@pytest.mark.parametrize(("asks_for", "gets"), [(7.0, 7.0), (1.0, 1.0), (600.0, 600.0), (86_400.0, 600.0)])
def test_nothing_is_sent_for_as_long_as_the_server_asks_within_a_limit(asks_for: float, gets: float) -> None:
    pause = longest()

    assert pause.note_failure(NOW, asked(asks_for)) == NOW + gets


@pytest.mark.parametrize("asks_for", [0.0, -5.0, 0.2])
def test_a_retry_after_below_a_second_leaves_the_growing_pause(asks_for: float) -> None:
    pause = longest()

    assert pauses(pause, asked(asks_for), 8) == [0.5, 1, 2, 4, 8, 16, 30, 30]
    pause.note_success()
    assert pause.is_over(NOW)


def test_a_later_failure_does_not_shorten_a_pause() -> None:
    pause = longest()
    pause.note_failure(NOW, asked(60))

    assert pause.note_failure(NOW + 1, DOWN) == NOW + 60
    assert pause.note_failure(NOW + 2, asked(10)) == NOW + 60


def test_requests_that_were_under_way_do_not_make_the_pause_of_one_outage_longer() -> None:
    pause = longest()
    until = pause.note_failure(NOW, DOWN)

    assert {pause.note_failure(NOW + n / 100, DOWN) for n in range(16)} == {until}
    assert pause.note_failure(until, DOWN) == until + 1.0


def test_requests_leave_again_at_the_end_of_a_pause_and_not_before() -> None:
    pause = longest()
    assert pause.is_over(NOW)
    until = pause.note_failure(NOW, DOWN)

    assert (pause.is_over(NOW), pause.is_over(until - 0.01), pause.is_over(until), pause.is_over(until + 1)) == (
        False,
        False,
        True,
        True,
    )


def test_after_a_success_nothing_waits_and_the_next_pause_is_short_again() -> None:
    pause = longest()
    pauses(pause, DOWN, 6)
    assert pause.failures == 6

    pause.note_success()

    assert (pause.failures, pause.is_over(NOW)) == (0, True)
    assert pause.note_failure(NOW, DOWN) == NOW + 0.5


def test_a_success_does_not_undo_what_the_server_asked_for() -> None:
    pause = longest()
    pause.note_failure(NOW, asked(20))
    pause.note_failure(NOW, asked(10))

    pause.note_success()

    assert (pause.is_over(NOW + 19), pause.is_over(NOW + 20)) == (False, True)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (backoff.LINK, [0.5, 1, 2, 4, 8, 16, 32, 60, 60]),
        (backoff.READ, [0.5, 1, 2, 4, 8, 16, 30, 30, 30]),
        (backoff.MISSING, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]),
        (backoff.RESTART, [1, 2, 4, 8, 16, 32, 60, 60, 60]),
        (backoff.FILES, [2, 4, 8, 16, 32, 64, 128, 256, 300]),
    ],
)
def test_pauses_double_up_to_the_limit_of_their_kind(kind: Backoff, expected: list[float]) -> None:
    assert [kind.pause_s(failures) for failures in range(9)] == expected
    assert kind.pause_s(5000) == expected[-1]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def test_a_run_whose_files_fail_is_tried_after_pauses_that_grow_and_no_other_run_waits() -> None:
    clock = Clock()
    pauses_of_runs, waits = RunPauses(clock), []
    for _ in range(9):
        pauses_of_runs.note_failure("run")
        begin = clock.now
        while not pauses_of_runs.is_over("run"):
            assert pauses_of_runs.is_over("another")
            clock.now += 1
        waits.append(clock.now - begin)

    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300]


@pytest.mark.parametrize(("later", "pause"), [(300.0, 4.0), (300.5, 2.0)])
def test_a_run_whose_last_failure_is_long_past_has_its_first_pause_again(later: float, pause: float) -> None:
    clock = Clock()
    pauses_of_runs = RunPauses(clock)
    pauses_of_runs.note_failure("run")
    clock.now += 2 + later  # behind the end of the first pause

    pauses_of_runs.note_failure("run")

    clock.now += pause - 0.25
    assert not pauses_of_runs.is_over("run")
    clock.now += 0.25
    assert pauses_of_runs.is_over("run")


def test_an_order_ends_the_pauses_of_all_runs_and_the_next_one_is_longer_all_the_same() -> None:
    clock = Clock()
    pauses_of_runs = RunPauses(clock)
    for run in ("one", "another"):
        pauses_of_runs.note_failure(run)
    pauses_of_runs.end_all()
    assert pauses_of_runs.is_over("one")
    assert pauses_of_runs.is_over("another")

    pauses_of_runs.note_failure("one")
    pauses_of_runs.forget("another")
    pauses_of_runs.note_failure("another")

    clock.now += 2
    assert (pauses_of_runs.is_over("one"), pauses_of_runs.is_over("another")) == (False, True)
    clock.now += 2
    assert pauses_of_runs.is_over("one")


def test_a_pause_that_is_over_is_not_begun_again_by_an_order() -> None:
    clock = Clock()
    pauses_of_runs = RunPauses(clock)
    pauses_of_runs.note_failure("run")
    clock.now += 200
    pauses_of_runs.end_all()
    clock.now += 150  # more than five minutes after the first pause, though less after the order

    pauses_of_runs.note_failure("run")

    clock.now += 2
    assert pauses_of_runs.is_over("run")
