"""Which tasks of a run are under way, which are tried again, and what may begin beside them."""

from __future__ import annotations

from typing import Any

import pytest
from chunks import chunk_of

from atomscale_bluesky.delivery.tasks.finalize import Finalize
from atomscale_bluesky.delivery.tasks.make_links import MakeLinks
from atomscale_bluesky.delivery.tasks.push import Push
from atomscale_bluesky.delivery.tasks.work import Kind
from atomscale_bluesky.delivery.unfinished_tasks import MAX_FAILED, Task, UnfinishedTasks
from atomscale_bluesky.model.chunk import Column

FINALIZE = Finalize(0, "label", "id", "metrology")
LINK = MakeLinks(1, "label", "id", ())
PUSH = Push(0, "label", "id", "metrology", 10, chunk_of(0, [5.0], [Column("a", None, (1.0,))]))


def failed(tasks: UnfinishedTasks, work: Any, not_before: float = 0.0) -> Task:
    task = tasks.begin(work)
    tasks.note_returned(task)
    task.not_before = not_before
    tasks.keep_for_retry(task)
    return task


def test_a_task_holds_its_kind_until_it_is_finished() -> None:
    tasks = UnfinishedTasks()
    task = tasks.begin(FINALIZE)
    assert (tasks.in_flight, tasks.is_busy, tasks.is_in_flight(0), tasks.is_in_flight(1)) == (1, True, True, False)
    assert (tasks.holds(Kind.FINALIZE, 0), tasks.holds(Kind.FINALIZE, 1), tasks.holds(Kind.LINK, 0)) == (
        (True, False, False)
    )
    assert (tasks.holds_any(Kind.FINALIZE), tasks.holds_any(Kind.LINK)) == (True, False)

    tasks.note_returned(task)
    assert (tasks.in_flight, tasks.is_busy, tasks.is_in_flight(0)) == (0, False, False)
    assert tasks.holds(Kind.FINALIZE, 0)
    tasks.finish(task)
    assert (tasks.holds(Kind.FINALIZE, 0), tasks.holds_any(Kind.FINALIZE)) == (False, False)


def test_a_failed_task_is_given_out_when_its_time_has_come() -> None:
    tasks = UnfinishedTasks()
    later, sooner = failed(tasks, FINALIZE, 7.0), failed(tasks, FINALIZE, 5.0)
    assert (tasks.next_due(), tasks.is_busy, tasks.in_flight) == (5.0, True, 0)

    assert tasks.give_out_failed(4.5) is None
    assert tasks.give_out_failed(5.0) is sooner
    assert (tasks.in_flight, tasks.is_in_flight(0), tasks.next_due()) == (1, True, 7.0)
    assert tasks.give_out_failed(6.5) is None
    assert tasks.give_out_failed(7.5) is later
    assert (tasks.next_due(), list(tasks.failed_tasks)) == (None, [])


@pytest.mark.parametrize(("links", "kinds"), [(None, ["push", "link"]), (True, ["link"]), (False, ["push"])])
def test_tasks_that_make_links_are_told_from_others(links: bool | None, kinds: list[str]) -> None:
    tasks = UnfinishedTasks()
    failed(tasks, PUSH)
    assert not tasks.links_fail
    failed(tasks, LINK)
    assert tasks.links_fail

    given: list[str] = []
    while (task := tasks.give_out_failed(1.0, links=links)) is not None:
        given.append(task.kind.value.partition(" ")[0])

    assert given == kinds


def test_no_chunk_begins_while_many_have_failed() -> None:
    tasks = UnfinishedTasks()
    failed(tasks, LINK)
    for _ in range(MAX_FAILED - 1):
        failed(tasks, PUSH)
    assert tasks.may_begin_chunk

    failed(tasks, PUSH)
    assert not tasks.may_begin_chunk
    assert tasks.give_out_failed(1.0, links=False) is not None
    assert tasks.may_begin_chunk


def test_the_failed_tasks_of_some_streams_are_taken_out_in_their_order() -> None:
    tasks = UnfinishedTasks()
    first, link, second = failed(tasks, PUSH), failed(tasks, LINK), failed(tasks, FINALIZE)

    assert tasks.pop_failed({7}) == []
    assert tasks.pop_failed({0}) == [first, second]
    assert list(tasks.failed_tasks) == [link]
    assert tasks.holds(Kind.PUSH, 0)  # until it is finished
    assert (first.chunk, link.chunk) == (PUSH.chunk, None)
