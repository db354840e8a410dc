"""Which links of a stream are still to be made, by what its run says and what is noted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from atomscale_bluesky.delivery.pending_links import Link, PendingLinks
from atomscale_bluesky.delivery.run_delivery import RunDelivery
from atomscale_bluesky.delivery.tasks.make_links import LinksMade, MakeLinks
from atomscale_bluesky.delivery.tasks.work import Kind
from atomscale_bluesky.delivery.unfinished_tasks import Task
from atomscale_bluesky.errors import ApiUnavailableError
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.spool.journal_format import Header, Stop
from atomscale_bluesky.spool.ledger_format import (
    Edited,
    Initialized,
    LedgerLine,
    Linked,
    LinkRefused,
    Opened,
    Resolved,
)
from atomscale_bluesky.spool.ledger_state import LedgerState
from atomscale_bluesky.spool.spool import Spool

OPENED = Opened(0, "primary", 0, "run start", "growth [b7c2e9f1-0a1b2c3d]", "0a1b2c3d", 10, 1, 0)
MADE = [OPENED, Initialized(0, "id", "metrology")]
TAG = "6f0e2c1a-93c4-4b7e-8d55-0a1b2c3d4e5f"
NAMED = Links(42, None, "p-1", "GaN-0417", tags=("night", TAG), track_sample=True)
FOUND = Links(42, "s-1", "p-1", tags=("t-1", TAG), track_sample=True)


def pending(links: Links, *facts: LedgerLine) -> tuple[PendingLinks, LedgerState]:
    state = LedgerState()
    for fact in facts:
        state.apply(fact)
    header = Header(1, "b7c2e9f1", 5.0, "growth", 10, "primary", "https://api.atomscale.ai", "null", links=links)
    return PendingLinks(header, state), state


@pytest.mark.parametrize(
    ("links", "must"),
    [
        (Links(), False),
        (Links(42, track_sample=True), False),
        (Links(physical_sample="GaN-0417"), True),
        (Links(physical_sample_id="s-1"), True),
        (Links(project_id="p-1"), True),
        (Links(tags=("night",)), True),
    ],
)
def test_a_run_that_names_something_waits_for_its_ids_before_its_first_stream_is_made(links: Links, must: bool) -> None:
    before, _ = pending(links, OPENED)
    assert (before.must_resolve, before.may_initialize) == (must, not must)

    after, _ = pending(links, OPENED, Resolved(links))
    assert (after.must_resolve, after.may_initialize) == (False, True)


def test_the_names_of_an_edit_are_resolved_and_hold_up_no_run_that_is_under_way() -> None:
    edited = Edited(NAMED, 3)
    begun, state = pending(Links(42), *MADE, Resolved(FOUND), edited)
    assert (begun.named_links, begun.edit_number) == (NAMED, 3)
    assert (begun.must_resolve, begun.may_initialize) == (True, True)
    assert begun.resolved_links == FOUND  # those before the edit
    assert begun.missing(state.streams[0], None) == []

    new = structs.replace(FOUND, project_id="p-2")
    resolved, _ = pending(Links(42), *MADE, edited, Resolved(new, 3))
    assert (resolved.must_resolve, resolved.resolved_links) == (False, new)


def test_without_ids_a_stream_is_made_with_those_that_its_run_gives() -> None:
    links, _ = pending(NAMED, OPENED)

    assert links.resolved_links == Links(42, None, "p-1", tags=(TAG,), track_sample=True)


SUCCESS = Stop(9.0, "success")
WHOLE = [Link("sample", "s-1"), Link("project", "p-1"), Link("tracking", "p-1 s-1"), Link("tags", f"t-1 {TAG}")]


@pytest.mark.parametrize(
    ("found", "stop", "expected"),
    [
        (Links(42), None, []),
        (Links(42), SUCCESS, []),
        (FOUND, None, WHOLE),
        (FOUND, SUCCESS, [*WHOLE, Link("ending", "bluesky: success")]),
        (structs.replace(FOUND, track_sample=False, tags=()), SUCCESS, WHOLE[:2]),
        (Links(42), Stop(9.0, "fail", "heater"), [Link("label", "growth · fail [b7c2e9f1-0a1b2c3d]")]),
        (Links(42), Stop(9.0, "abort"), [Link("label", "growth · abort [b7c2e9f1-0a1b2c3d]")]),
        (Links(42), Stop(9.0, ""), []),
        (Links(42), Stop(9.0, "", "no stop document", interrupted=True), []),
        (
            Links(42, tags=("t-1",)),
            Stop(9.0, "fail", "heater"),
            [
                Link("tags", "t-1"),
                Link("ending", "bluesky: fail"),
                Link("label", "growth · fail: heater [b7c2e9f1-0a1b2c3d]"),
            ],
        ),
        (
            Links(42, tags=("t-1",)),
            Stop(9.0, "fail"),
            [Link("tags", "t-1"), Link("ending", "bluesky: fail"), Link("label", "growth · fail [b7c2e9f1-0a1b2c3d]")],
        ),
        (
            Links(42, tags=("t-1",)),
            Stop(9.0, "fail", "no stop document", interrupted=True),
            [Link("tags", "t-1"), Link("ending", "bluesky: interrupted")],
        ),
        (Links(42, tags=("t-1",)), Stop(9.0, ""), [Link("tags", "t-1"), Link("ending", "bluesky: unknown")]),
    ],
)
def test_a_stream_gets_the_links_that_its_run_has_and_says_how_it_ended(
    found: Links, stop: Stop | None, expected: list[Link]
) -> None:
    links, state = pending(NAMED, *MADE, Resolved(found))

    assert links.missing(state.streams[0], stop) == expected


def test_what_is_linked_is_not_linked_again_and_what_was_refused_is() -> None:
    facts: list[Any] = [Linked(0, *WHOLE[0]), LinkRefused(0, *WHOLE[1], "no right")]
    links, state = pending(NAMED, *MADE, Resolved(FOUND), *facts)

    assert links.missing(state.streams[0], None) == WHOLE[1:]


def test_of_the_streams_of_a_run_each_that_is_made_has_links_and_the_first_tracks_the_sample() -> None:
    others = [structs.replace(OPENED, stream=1), structs.replace(OPENED, stream=2), structs.replace(OPENED, stream=3)]
    others[2] = structs.replace(others[2], joins=0)
    links, state = pending(NAMED, *MADE, *others, Initialized(2, "id-2", "metrology"), Resolved(FOUND))

    missing = {number: links.missing(stream, None) for number, stream in state.streams.items()}

    assert missing == {0: WHOLE, 1: [], 2: [WHOLE[0], WHOLE[1], WHOLE[3]], 3: []}


# ---- what became of them ---------------------------------------------------------------------------------------------


@pytest.fixture
def delivery(tmp_path: Path) -> Iterator[RunDelivery]:
    """The delivery of a run whose links are resolved and whose stream is made."""
    spool = Spool(tmp_path / "spool")
    header = Header(1, "b7c2e9f1", 5.0, "growth", 10, "primary", "https://api.atomscale.ai", "null", links=NAMED)
    writer = spool.writers.create(header)
    claim = spool.claim(writer.folder)
    assert claim is not None
    claim.ledger.note(Resolved(FOUND))
    delivery = RunDelivery(claim)
    task = delivery.next_task(0.0)
    assert task is not None
    delivery.apply_result(task, "id", 0.0)
    yield delivery
    delivery.close()
    spool.writers.stop_threads()
    spool.writers.close_writers()


def links_task(delivery: RunDelivery, now: float) -> Task:
    task = delivery.next_task(now)
    assert task is not None
    assert task.kind is Kind.LINK
    return task


def to_make(task: Task) -> tuple[Link, ...]:
    assert isinstance(task.work, MakeLinks)
    return task.work.links_to_make


def test_a_link_that_is_refused_is_noted_with_its_reason_and_logged_when_that_is_new(
    delivery: RunDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    task = links_task(delivery, 0.0)
    assert list(to_make(task)) == WHOLE
    facts = delivery.claim.ledger.size

    delivery.apply_result(task, LinksMade((WHOLE[0],), {WHOLE[1]: "no right", WHOLE[3]: "gone"}), 0.0)

    stream = delivery.run.state.streams[0]
    assert stream.linked == {WHOLE[0]}
    assert stream.links_refused == {WHOLE[1]: "no right", WHOLE[3]: "gone"}
    (told,) = [record.getMessage() for record in caplog.records if "is not linked" in record.getMessage()]
    assert "is not linked (project, tags), its readings are delivered and it stays unfinalized: no right; " in told
    assert delivery.claim.ledger.size > facts


def test_a_refusal_that_is_known_is_neither_noted_nor_logged_again(
    delivery: RunDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    work, told = links_task(delivery, 0.0).work, []
    for reason in ("no right", "no right", "gone"):
        before = delivery.claim.ledger.size
        work.apply_result(delivery.run, LinksMade(refused={WHOLE[1]: reason, WHOLE[3]: "gone"}))
        logged = [text for text in caplog.messages if "is not linked" in text]
        assert bool(logged) == (delivery.claim.ledger.size > before)
        told += logged
        caplog.clear()

    assert ["(project, tags)" in told[0], "(project)" in told[1], len(told)] == [True, True, 2]
    assert delivery.run.state.streams[0].links_refused == {WHOLE[1]: "gone", WHOLE[3]: "gone"}


def test_links_that_were_made_before_an_attempt_failed_are_not_made_again(delivery: RunDelivery) -> None:
    task = links_task(delivery, 0.0)
    links = to_make(task)

    assert delivery.apply_failure(task, ApiUnavailableError("no answer"), 5.0, LinksMade(links[:2]))

    assert delivery.run.state.streams[0].linked == set(links[:2])
    assert to_make(task) == links[2:]
    again = delivery.next_task(5.0)
    assert again is task
