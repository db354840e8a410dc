"""A run whose account does not add up is never finalized and never leaves the spool, whatever mistake led there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from journals import lines_in, renumbered, row_at, with_first_value_negative
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.ledger import LedgerReader
from atomscale_bluesky.spool.ledger_format import (
    ChannelLeft,
    Confirmed,
    Ended,
    Finalized,
    Finalizing,
    LedgerLine,
    Opened,
    Together,
    Tried,
    decode_ledger,
)
from atomscale_bluesky.spool.lines import checksummed, encode, payload_of
from atomscale_bluesky.spool.orders import Discard
from atomscale_bluesky.spool.segments import segment_path
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]


def folder_in(spool_dir: Path) -> Path:
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    return folder


# ---- rows whose number repeats or goes back --------------------------------------------------------------------------


def spooled(make_callback: MakeCallback, spool_dir: Path, points: int = 35) -> Path:
    """The journal of a run of two channels that waits in the spool."""
    with make_callback(offline=True) as callback:
        for name, doc in growth(points=points):
            callback(name, doc)
    return segment_path(folder_in(spool_dir), 1)


def repeat(journal: Path, after: int, number: int) -> None:
    """Put a row of other values, with a number that came before, behind a row."""
    content = journal.read_bytes()
    at = row_at(content, after)
    record = lines_in(content[at:])[0]
    repeated = with_first_value_negative(renumbered(record, number))
    journal.write_bytes(content[: at + len(record)] + repeated + content[at + len(record) :])


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        pytest.param([(4, 4)], 0, id="within a chunk"),
        pytest.param([(9, 9)], 1, id="behind a chunk"),
        pytest.param([(29, 29)], 1, id="behind the last whole chunk"),
        pytest.param([(34, 34)], 0, id="the last row"),
        pytest.param([(15, 3)], 1, id="far back"),
        pytest.param([(15, 13)], 1, id="back within a chunk"),
        pytest.param([(4, 4), (9, 9), (25, 22), (25, 25)], 1, id="several"),
    ],
)
def test_a_row_that_repeats_a_number_goes_out_or_is_counted_as_lost_and_costs_no_other(
    make_callback: MakeCallback,
    server: LocalServer,
    spool_dir: Path,
    rows: list[tuple[int, int]],
    lost: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = spooled(make_callback, spool_dir)
    for after, number in rows:
        repeat(journal, after, number)

    assert make_callback().drain(timeout_s=30)

    values = held(server)["k0"]
    assert [value for value in values if value >= 0] == [float(n) for n in range(35)]
    assert sum(value < 0 for value in values) == len(rows) - lost
    assert [stream.status for stream in server.streams()] == ["success"]
    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["delivered"], entry["lost"]) == (2 * (35 + len(rows) - lost), 2 * lost)
    assert f"{len(rows)} rows of its journal repeat the number of an earlier row" in caplog.text


def test_a_row_that_repeats_a_number_is_in_the_status(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repeat(spooled(make_callback, spool_dir), 9, 9)

    (run,) = make_callback(offline=True).status()

    assert (run.points.seen, run.points.waiting, run.points.lost, run.repeated_rows) == (72, 70, 2, 1)
    assert main(["status", "--spool-dir", str(spool_dir)]) == 1
    assert "1 row had the number of an earlier one" in " ".join(capsys.readouterr()[0].split())


@pytest.mark.parametrize(("row", "points"), [(14, 72), (19, 70)], ids=["within a chunk", "behind a chunk"])
def test_a_run_with_a_repeated_number_reads_back_equal(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, row: int, points: int
) -> None:
    repeat(spooled(make_callback, spool_dir), row, row)
    server.misbehave(Fault(call="finalize", status=503))
    callback = make_callback()
    wait_until(lambda: callback.status().points.delivered == points)

    found = callback.verify(callback.status()[0].run_uid)

    assert found.arrived, str(found)
    assert (found.points, found.lost) == (points, 72 - points)


@pytest.mark.parametrize("row", [14, 18], ids=["within the chunk", "the chunk's last two rows"])
def test_a_chunk_that_was_tried_with_a_repeated_row_is_cut_as_it_was(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, row: int
) -> None:
    repeat(spooled(make_callback, spool_dir), row, row)
    server.misbehave(*(Fault(call="chunk_multi", chunk_index=index, status=503) for index in (1, 2, 3)))
    with make_callback(exit_timeout_s=0) as callback:
        wait_until(lambda: len(server.requests("chunk_multi")) >= 4)
        callback.close(timeout_s=0)
    tried = {fact.index: fact for fact in facts_in(spool_dir) if isinstance(fact, Tried)}
    assert (tried[1].last_row, tried[1].points) == (18, 10)
    server.behave()

    assert make_callback().drain(timeout_s=20)

    assert [(stream.status, stream.points, stream.changed) for stream in server.streams()] == [("success", 72, 0)]
    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["delivered"], entry["lost"]) == (72, 0)


# ---- ledgers that tell of too little ---------------------------------------------------------------------------------


def facts_in(spool_dir: Path) -> list[LedgerLine]:
    texts = (folder_in(spool_dir) / "ledger.jsonl").read_bytes().split(b"\n")
    payloads = dict.fromkeys(payload_of(text) for text in texts[:-1])
    return [decode_ledger(payload) for payload in payloads if payload is not None]


def write(spool_dir: Path, facts: list[LedgerLine]) -> None:
    (folder_in(spool_dir) / "ledger.jsonl").write_bytes(b"".join(checksummed(encode(fact)) for fact in facts))


def delivered_but_not_finalized(make_callback: MakeCallback, server: LocalServer) -> None:
    server.misbehave(Fault(call="finalize", status=503))
    with make_callback(exit_timeout_s=0) as callback:
        for name, doc in growth(points=35):
            callback(name, doc)
        wait_until(lambda: callback.status().points.delivered == 70)
        wait_until(lambda: any(request.call == "finalize" for request in server.requests()))
        callback.close(timeout_s=0)
    server.behave()


def without(facts: list[LedgerLine], *kinds: type, beyond: int = -1) -> list[LedgerLine]:
    """The facts but for those of some kinds, or of these only those about chunks beyond an index."""
    return [fact for fact in facts if not (isinstance(fact, kinds) and getattr(fact, "index", beyond + 1) > beyond)]


def changed(facts: list[LedgerLine], index: int, **change: Any) -> list[LedgerLine]:
    return [
        msgspec.structs.replace(fact, **change) if isinstance(fact, Tried) and fact.index == index else fact
        for fact in facts
    ]


def too_few_points(facts: list[LedgerLine]) -> list[LedgerLine]:
    return changed(without(facts, Finalizing), 1, points=9)


def a_range_of_too_many_rows(facts: list[LedgerLine]) -> list[LedgerLine]:
    return changed(without(without(facts, Finalizing), Tried, Confirmed, beyond=1), 1, last_row=34)


def a_range_that_begins_too_late(facts: list[LedgerLine]) -> list[LedgerLine]:
    return changed(without(facts, Finalizing), 2, first_row=22, points=8)


def a_channel_that_left(facts: list[LedgerLine]) -> list[LedgerLine]:
    kept = without(facts, Finalizing)
    for index in (2, 3):
        kept = changed(kept, index, channels=("k0",))
    place = next(i for i, fact in enumerate(kept) if isinstance(fact, Tried) and fact.index == 2)
    return [*kept[:place], ChannelLeft(0, "k1", 20), *kept[place:]]


def a_skip_over_what_is_nowhere(facts: list[LedgerLine]) -> list[LedgerLine]:
    kept = without(without(facts, Finalizing), Tried, Confirmed, beyond=1)
    opened = next(fact for fact in kept if isinstance(fact, Opened))
    goes_on = msgspec.structs.replace(
        opened, stream=1, why="too large", from_row=20, skip=((23, 27),), label=f"{opened.label} (2)", token="x"
    )
    return [*kept, Together((Ended(0, "too large"), goes_on))]


def finalizing_noted_already(facts: list[LedgerLine]) -> list[LedgerLine]:
    assert any(isinstance(fact, Finalizing) for fact in facts)
    return changed(facts, 1, points=9)


def more_points_than_there_are(facts: list[LedgerLine]) -> list[LedgerLine]:
    return changed(without(facts, Finalizing), 1, points=12)


FORGERIES = [
    too_few_points,
    a_range_of_too_many_rows,
    a_range_that_begins_too_late,
    a_channel_that_left,
    a_skip_over_what_is_nowhere,
    finalizing_noted_already,
    more_points_than_there_are,
]


@pytest.mark.parametrize("forged", FORGERIES, ids=lambda forged: forged.__name__)
def test_a_stream_is_not_finalized_while_points_of_it_are_nowhere(
    make_callback: MakeCallback,
    server: LocalServer,
    spool_dir: Path,
    forged: Callable[[list[LedgerLine]], list[LedgerLine]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    delivered_but_not_finalized(make_callback, server)
    write(spool_dir, forged(facts_in(spool_dir)))
    caplog.clear()

    callback = make_callback()
    assert not callback.drain(timeout_s=20)

    (run,) = callback.status()
    assert run.state == "parked"
    assert "its account does not add up (channel 'k" in (run.problem or "")
    assert "seen 35" in (run.problem or "")
    assert {stream.status for stream in server.streams()} == {"stream_active"}
    callback.close(timeout_s=1)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1  # said once
    assert "account does not add up" in errors[0].getMessage()
    again = make_callback()
    assert not again.drain(timeout_s=10)
    assert {stream.status for stream in server.streams()} == {"stream_active"}
    assert Spool(spool_dir).history.entries() == []

    Spool(spool_dir).give_order(folder_in(spool_dir), Discard())

    wait_until(lambda: Spool(spool_dir).history.entries())
    assert {stream.status for stream in server.streams()} == {"stream_active"}


@pytest.mark.parametrize("forged", [too_few_points, a_skip_over_what_is_nowhere], ids=lambda forged: forged.__name__)
def test_a_run_does_not_leave_the_spool_while_points_of_it_are_nowhere(
    make_callback: MakeCallback,
    server: LocalServer,
    spool_dir: Path,
    forged: Callable[[list[LedgerLine]], list[LedgerLine]],
) -> None:
    delivered_but_not_finalized(make_callback, server)
    facts = forged(facts_in(spool_dir))
    further = [msgspec.structs.replace(fact, stream=1) for fact in facts if type(fact).__name__ == "Initialized"]
    if forged is a_skip_over_what_is_nowhere:
        facts += [*further, Finalizing(1), Finalized(1, 1.0)]
    write(spool_dir, [*facts, Finalizing(0), Finalized(0, 1.0)])
    assert LedgerReader(folder_in(spool_dir) / "ledger.jsonl").read_on().streams[0].is_done

    callback = make_callback()
    assert not callback.drain(timeout_s=20)

    (run,) = callback.status()
    assert run.state == "parked"
    assert "its account does not add up" in (run.problem or "")
    assert Spool(spool_dir).history.entries() == []
    assert segment_path(folder_in(spool_dir), 1).exists()


def test_a_missing_confirmation_has_its_chunk_pushed_again(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    delivered_but_not_finalized(make_callback, server)
    facts = facts_in(spool_dir)
    write(
        spool_dir,
        [fact for fact in without(facts, Finalizing) if not (isinstance(fact, Confirmed) and fact.index == 2)],
    )

    assert make_callback().drain(timeout_s=20)

    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 70)]
    assert held(server)["k0"] == [float(n) for n in range(35)]


def test_rows_damaged_after_they_were_delivered_still_add_up(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    delivered_but_not_finalized(make_callback, server)
    journal = segment_path(folder_in(spool_dir), 1)
    content = journal.read_bytes()
    begin = row_at(content, 31)  # with all that follows, the stop too
    journal.write_bytes(content[:begin] + bytes(len(content) - begin))

    assert make_callback().drain(timeout_s=20)

    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 70)]
    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["delivered"], entry["lost"]) == (70, 0)
