"""Which of the runs that are not active comes next, and which of those set aside are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomscale_bluesky.delivery.waiting_runs import (
    CHECKS_PER_ROUND,
    OPENED_PER_CHECK,
    PER_CHECK,
    Reason,
    SetAside,
    WaitingRuns,
    file_sizes,
)

A, B, C, D = map(Path, "abcd")


def test_queued_runs_come_in_their_order_and_one_kind_before_the_other() -> None:
    waiting = WaitingRuns()
    for folder, live in ((A, False), (B, True), (C, False), (D, True)):
        waiting.queue(folder, live=live)
    assert (waiting.any_live, waiting.any_backlog, waiting.any_queued) == (True, True, True)
    assert list(waiting) == [B, D, A, C]

    assert [waiting.pop_next(live_first=first) for first in (True, False, True)] == [B, A, D]
    assert (waiting.any_live, waiting.any_backlog, waiting.any_queued) == (False, True, True)
    assert [waiting.pop_next(live_first=True) for _ in range(2)] == [C, None]
    assert (waiting.any_live, waiting.any_backlog, waiting.any_queued) == (False, False, False)


def test_a_run_that_is_queued_first_or_again_changes_its_place() -> None:
    waiting = WaitingRuns()
    for folder in (A, B, C):
        waiting.queue(folder, live=False)
    waiting.queue(D, live=False, first=True)
    waiting.queue(A, live=False)
    waiting.queue(B, live=True)

    assert [waiting.pop_next(live_first=False) for _ in range(5)] == [D, C, A, B, None]
    waiting.queue(A, live=True)
    assert (waiting.pop_next(live_first=False), waiting.any_queued) == (A, False)


@pytest.mark.parametrize("reason", Reason)
def test_a_run_waits_in_one_place_and_is_counted_under_one_reason(reason: Reason) -> None:
    waiting = WaitingRuns()
    waiting.queue(A, live=True)
    for written_elsewhere in (True, False):
        waiting.set_aside(A, SetAside(reason, written_elsewhere=written_elsewhere))

    assert (A in waiting, B in waiting, list(waiting), waiting.any_queued) == (True, False, [A], False)
    assert (waiting.reason(A), waiting.reason(B)) == (reason, None)
    assert {one: waiting.count(one) for one in Reason} == {one: int(one is reason) for one in Reason}
    waiting.queue(A, live=False)
    assert (waiting.reason(A), waiting.count(reason), list(waiting)) == (None, 0, [A])
    waiting.forget(A)
    waiting.forget(B)
    assert (A in waiting, waiting.any_queued, waiting.count(reason)) == (False, False, 0)


@pytest.mark.parametrize("written_elsewhere", [False, True])
def test_a_free_place_goes_to_a_run_that_is_written_and_then_to_one_that_waits_for_the_operator(
    written_elsewhere: bool,
) -> None:
    waiting = WaitingRuns()
    waiting.set_aside(A, SetAside(Reason.NEEDS_OPERATOR))
    waiting.set_aside(B, SetAside(Reason.OTHER_ENDPOINT))
    waiting.set_aside(C, SetAside(Reason.NOTHING_TO_SEND, written_elsewhere=written_elsewhere))
    waiting.set_aside(D, SetAside(Reason.BROKEN))

    assert [waiting.pop_set_aside() for _ in range(3)] == [C, A, None]
    assert list(waiting) == [B, D]
    assert (waiting.count(Reason.NOTHING_TO_SEND), waiting.count(Reason.NEEDS_OPERATOR)) == (0, 0)


def test_a_run_needs_the_operator_if_a_part_of_it_does_or_its_files_cannot_be_used() -> None:
    waiting = WaitingRuns()
    waiting.set_aside(A, SetAside(Reason.NOTHING_TO_SEND))
    assert not waiting.needs_operator
    waiting.set_aside(B, SetAside(Reason.NOTHING_TO_SEND, needs_operator=True))
    assert waiting.needs_operator
    waiting.forget(B)
    assert not waiting.needs_operator
    waiting.set_aside(B, SetAside(Reason.BROKEN))
    assert waiting.needs_operator


def many(count: int, note: SetAside) -> tuple[WaitingRuns, list[Path]]:
    waiting, folders = WaitingRuns(), [Path(str(number)) for number in range(count)]
    for folder in folders:
        waiting.set_aside(folder, note)
    return waiting, folders


def checked(waiting: WaitingRuns, *, all_by_size: bool = False, all_by_opening: bool = False) -> list[Path]:
    """The runs that one check asks about."""
    asked: list[Path] = []
    due = waiting.find_due(
        lambda folder, _: asked.append(folder) is None, all_by_size=all_by_size, all_by_opening=all_by_opening
    )
    assert due == asked
    return asked


@pytest.mark.parametrize(
    ("note", "count", "share"),
    [
        (SetAside(Reason.NOTHING_TO_SEND), 100, PER_CHECK),
        (SetAside(Reason.NOTHING_TO_SEND), 3000, 3000 // CHECKS_PER_ROUND + 1),
        (SetAside(Reason.NOTHING_TO_SEND, written_elsewhere=True), 3000, OPENED_PER_CHECK),
        (SetAside(Reason.BROKEN), 3000, OPENED_PER_CHECK),
        (SetAside(Reason.CLAIMED_ELSEWHERE), 100, OPENED_PER_CHECK),
        (SetAside(Reason.NO_HEADER_YET), 100, OPENED_PER_CHECK),
    ],
)
def test_runs_that_are_set_aside_are_checked_some_at_a_time_in_turn(note: SetAside, count: int, share: int) -> None:
    waiting, folders = many(count, note)
    by_opening = share == OPENED_PER_CHECK

    assert checked(waiting) == folders[:share]
    assert checked(waiting, all_by_size=by_opening, all_by_opening=not by_opening) == (folders * 2)[share : 2 * share]
    rest = checked(waiting, all_by_size=not by_opening, all_by_opening=by_opening)
    assert rest == (folders * 3)[2 * share : 2 * share + count]


def test_only_the_runs_that_can_go_on_are_due() -> None:
    waiting, folders = many(5, SetAside(Reason.NOTHING_TO_SEND))

    due = waiting.find_due(lambda folder, _: folder in folders[1:3], all_by_size=False, all_by_opening=False)

    assert due == folders[1:3]


def test_the_sizes_of_a_runs_files_tell_that_it_was_written_on_or_given_an_order(tmp_path: Path) -> None:
    (tmp_path / "journal-0001.jsonl").write_bytes(b"four")
    (tmp_path / "ledger.jsonl").write_bytes(b"of no account")
    assert file_sizes(tmp_path) == {("journal-0001.jsonl", 4)}

    (tmp_path / "orders.jsonl").write_bytes(b"retry")
    assert file_sizes(tmp_path) == {("journal-0001.jsonl", 4), ("orders.jsonl", 5)}
    assert file_sizes(tmp_path / "gone") == frozenset()
