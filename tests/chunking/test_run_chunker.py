"""A run's journal in, its chunks out: taken whole where that gives the same, named, counted and read in parts."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunks import spelled
from waiting import wait_until

from atomscale_bluesky.chunking.chunker import ChannelWait, Chunker
from atomscale_bluesky.chunking.cut_stream import Resumed
from atomscale_bluesky.chunking.rows_ahead import RowsAhead
from atomscale_bluesky.chunking.run_chunker import LINES_AT_ONCE, RunChunker
from atomscale_bluesky.delivery.run_delivery import RunDelivery
from atomscale_bluesky.delivery.tasks.chunk_requests import Sent
from atomscale_bluesky.model.chunk import Chunk, Span
from atomscale_bluesky.model.rows import Channel, Position, Row, Rows
from atomscale_bluesky.spool.gil_yield import GilYield
from atomscale_bluesky.spool.journal_format import Header, Layout, Stop, encode_row, pack_values
from atomscale_bluesky.spool.journal_writer import JournalWriter
from atomscale_bluesky.spool.ledger_format import (
    ChannelLeft,
    Ended,
    Finalizing,
    GivenUp,
    Initialized,
    Initializing,
    Opened,
    Parked,
    Tried,
)
from atomscale_bluesky.spool.lines import checksummed, encode
from atomscale_bluesky.spool.locks import WRITER_LOCK, is_held
from atomscale_bluesky.spool.row_record import encode_one
from atomscale_bluesky.spool.run_reader import RunReader
from atomscale_bluesky.spool.segments import START
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.spool.stream_state import MetrologyStreamState

T0 = 1_760_000_000.0
LAYOUT = Layout(
    layout=0, event_stream="primary", time_base="primary", channels=(Channel("a", "a"), Channel("b", "b", "K"))
)
SMALLER = Layout(layout=1, event_stream="primary", time_base="primary", channels=(Channel("a", "a"),))


# ---- one chunk's rows at once ----------------------------------------------------------------------------------------


def stream(number: int = 4, *, noted: tuple[Tried, ...] = (), ahead: tuple[Span, ...] = (), **opening: Any) -> Any:
    """A metrology stream of which some chunks may have been tried or settled before."""
    opened = Opened(number, "primary", 0, "run start", "label", "token", 5, 1, 0, **opening)
    return MetrologyStreamState(opened, tried={tried.index: tried for tried in noted}, confirmed_ahead=[*ahead])


def chunker(*resumed: Resumed, waiting: dict[str, ChannelWait] | None = None) -> Chunker:
    return Chunker(LAYOUT, non_finite="own_stream", streams=resumed, waiting=waiting, known=("a", "b"))


def row(number: int, layout: int = 0) -> Row:
    return Row(layout, number, T0 + number, f"uid {number}", [float(number), number / 8])


def rows(begin: int, count: int) -> Rows:
    found = [row(number) for number in range(begin, begin + count)]
    return Rows(0, begin, tuple(one.time for one in found), np.array([one.values for one in found]))


@pytest.mark.parametrize("begin", [0, 1, 2, 3, 7, 10, 13])
def test_rows_taken_at_once_are_the_chunk_that_they_are_one_by_one(begin: int) -> None:
    at_once, one_by_one = (chunker(Resumed(stream(), index=2, from_row=begin)) for _ in range(2))
    assert at_once.rows_of_whole_chunk(0, begin) == 5

    for index in (2, 3):
        chunk = at_once.chunk_of(Position(1, begin * 100), rows(begin, 5))
        places = [Position(1, number * 100) for number in range(begin, begin + 5)]
        (expected,) = [
            chunk for number, place in enumerate(places) for chunk in one_by_one.take_row(place, row(begin + number))
        ]
        assert spelled(chunk) == spelled(expected)
        assert (chunk.index, chunk.first_row, chunk.last_row) == (index, begin, begin + 4)
        begin += 5
        assert at_once.rows_of_whole_chunk(0, begin) == one_by_one.rows_of_whole_chunk(0, begin) == 5
        assert at_once.rows_of_whole_chunk(0, begin - 1) == one_by_one.rows_of_whole_chunk(0, begin - 1) == 0


def begun() -> Chunker:
    begun = chunker(Resumed(stream()))
    assert list(begun.take_row(START, row(9))) == []
    return begun


def smaller() -> Chunker:
    smaller = chunker(Resumed(stream()))
    smaller.take_layout(SMALLER, from_row=10)
    return smaller


@pytest.mark.parametrize(
    "special",
    [
        pytest.param(lambda: (chunker(Resumed(stream(), from_row=11)), 0), id="rows that earlier chunks hold"),
        pytest.param(lambda: (chunker(Resumed(stream(skip=((20, 30),)))), 0), id="rows that an earlier stream holds"),
        pytest.param(
            lambda: (chunker(Resumed(stream()), waiting={"c": ChannelWait(50, "gap")}), 0),
            id="a channel without a stream",
        ),
        pytest.param(lambda: (chunker(), 0), id="no stream"),
        pytest.param(
            lambda: (chunker(Resumed(stream(channels=("a",))), Resumed(stream(5, channels=("b",)))), 0),
            id="two streams",
        ),
        pytest.param(
            lambda: (chunker(Resumed(stream(noted=(Tried(4, 0, 10, 12, 3, ("a", "b"), 1, 0, T0),)))), 0),
            id="a chunk that was tried",
        ),
        pytest.param(lambda: (begun(), 0), id="a chunk that is begun"),
        pytest.param(lambda: (smaller(), 1), id="a layout without one of the channels"),
    ],
)
def test_rows_are_taken_one_by_one_where_they_may_not_be_the_next_chunk(
    special: Callable[[], tuple[Chunker, int]],
) -> None:
    special_cutter, layout = special()

    assert special_cutter.rows_of_whole_chunk(layout, 10) == 0
    assert chunker(Resumed(stream(), from_row=10)).rows_of_whole_chunk(0, 10) == 5  # nothing special


def test_a_stream_of_some_of_the_channels_takes_rows_at_once_too() -> None:
    some = chunker(Resumed(stream(channels=("b",))))

    assert some.rows_of_whole_chunk(0, 0) == 5
    (column,) = some.chunk_of(START, rows(0, 5)).columns
    assert (column.name, column.unit, list(column.values)) == ("b", "K", [n / 8 for n in range(5)])


def test_chunks_that_are_settled_already_are_passed_over_with_their_rows() -> None:
    settled = (Span(1, 3, 5, 19), Span(5, 5, 25, 29))
    one_by_one, at_once = (chunker(Resumed(stream(ahead=settled))) for _ in range(2))

    chunks = [chunk for number in range(35) for chunk in one_by_one.take_row(START, row(number))]
    assert [(chunk.index, chunk.first_row, chunk.last_row) for chunk in chunks] == [(0, 0, 4), (4, 20, 24), (6, 30, 34)]
    for index, first in ((0, 0), (4, 20), (6, 30)):
        assert at_once.rows_of_whole_chunk(0, first) == 5
        assert at_once.chunk_of(START, rows(first, 5)).index == index
        assert at_once.rows_of_whole_chunk(0, first + 5) == (0 if index < 6 else 5)


def test_a_continuation_takes_every_row_but_those_that_an_earlier_stream_holds() -> None:
    continuation = chunker(Resumed(stream(skip=((3, 5), (8, 8))), from_row=1))
    chunks = [chunk for number in range(12) for chunk in continuation.take_row(START, row(number))] + [
        *continuation.finish()
    ]

    assert [[int(time - T0) for time in chunk.times] for chunk in chunks] == [[1, 2, 6, 7, 9], [10, 11]]


# ---- a run's journal -------------------------------------------------------------------------------------------------

Deliver = Callable[..., RunDelivery]


@pytest.fixture
def deliver(tmp_path: Path) -> Iterator[Deliver]:
    spool = Spool(tmp_path / "spool")
    made: list[RunDelivery] = []

    def make(lines: list[bytes], **header: Any) -> RunDelivery:
        given = {"non_finite": "own_stream", "layout": "time_base"} | header
        writer = spool.writers.create(
            Header(1, "b7c2e9f1-0000", T0, "growth", 10, "primary", "https://api.atomscale.ai", **given)
        )
        writer.append(lines)
        spool.writers.release(writer)
        claim = spool.claim(writer.folder)
        assert claim is not None
        made.append(RunDelivery(claim))
        return made[-1]

    yield make
    for delivery in made:
        delivery.close()
    spool.writers.stop_threads()


def append(folder: Path, lines: list[bytes]) -> None:
    """Append lines to a run's journal, as the process does that writes it."""
    writer = JournalWriter(folder)
    writer.append(b"".join(checksummed(line) for line in lines))
    writer.close()


def text(number: int, values: list[float | None]) -> bytes:
    gaps = {f"c{place}": "not finite" for place, value in enumerate(values) if value is None}
    return encode_row(0, number, T0 + number, f"uid {number}", pack_values(values), gaps)


def record(number: int, values: list[float | None]) -> bytes:
    uid = f"0b9c7c52-4a55-4d0e-9a53-{number:012}"
    found = encode_one(0, number, T0 + number + number / 128, uid, [value for value in values if value is not None])
    assert found is not None
    return found


def layout(channels: int) -> bytes:
    names = tuple(Channel(f"c{n}", f"c{n}") for n in range(channels))
    return encode(Layout(layout=0, event_stream="primary", time_base="primary", channels=names))


def all_chunks(run_chunker: RunChunker) -> list[Chunk]:
    found: list[Chunk] = []
    while not run_chunker.at_end or run_chunker.results.ready:
        run_chunker.read_on()
        found += taken(run_chunker)
    return found


def taken(run_chunker: RunChunker) -> list[Chunk]:
    found: list[Chunk] = []
    while (chunk := run_chunker.results.pop_ready(lambda _: True)) is not None:
        found.append(chunk)
    return found


def calls_of(what: Callable[[], object]) -> int:
    """How many calls of Python functions something takes."""
    called = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal called
        called += event == "call"

    sys.setprofile(count)
    try:
        what()
    finally:
        sys.setprofile(None)
    return called


STOP = encode(Stop(time=T0 + 100, exit_status="success"))


@pytest.mark.parametrize("plain_row", [text, record], ids=["as text", "as records"])
def test_a_backlog_of_plain_rows_is_cut_chunk_by_chunk_and_what_is_special_row_by_row(
    deliver: Deliver, plain_row: Callable[[int, list[float | None]], bytes]
) -> None:
    lines = [plain_row(n, [float(n), n / 8]) for n in range(95)]
    lines[42] = text(42, [42.0, None])
    run_chunker = deliver([layout(2), *lines, STOP], non_finite="null").run.run_chunker

    chunks: list[Chunk] = []
    calls: list[int] = []
    while not run_chunker.at_end:
        calls.append(calls_of(run_chunker.read_on))
        chunks += taken(run_chunker)

    assert [chunk.first_row for chunk in chunks] == list(range(0, 95, 10))
    assert [int(time - T0) for chunk in chunks for time in chunk.times] == list(range(95))
    assert chunks[4].columns[1].values[2] is None
    special, ordinary = calls[4], [*calls[1:4], *calls[5:9]]
    assert special > 3 * max(ordinary)


def test_rows_of_small_chunks_are_decoded_together_and_make_the_same_chunks(deliver: Deliver) -> None:
    lines = [record(n, [float(n), -n / 8]) for n in range(700)]
    lines[333] = text(333, [333.0, None])
    run_chunker = deliver([layout(2), *lines, STOP], non_finite="null").run.run_chunker

    chunks: list[Chunk] = []
    calls: list[int] = []
    while not run_chunker.at_end:
        calls.append(calls_of(run_chunker.read_on))
        chunks += taken(run_chunker)

    assert [chunk.first_row for chunk in chunks] == list(range(0, 700, 10))
    assert [value for chunk in chunks for value in chunk.columns[0].values] == list(range(700))
    gaps = [
        n for n, value in enumerate(value for chunk in chunks for value in chunk.columns[1].values) if value is None
    ]
    assert gaps == [333]
    decoding = [n for n, count in enumerate(calls[1:33]) if count > 1.5 * min(calls)]
    assert decoding[:4] == [0, 2, 6, 14]  # the rows of 2, 4, 8 and 16 chunks together


def sizes_ahead(rows_ahead: RowsAhead, wanted: int, channels: int) -> list[int]:
    """How many rows are decoded together, look after look, until there are too few."""
    sizes: list[int] = []
    while (rows := rows_ahead.peek(wanted, channels)) is not None:
        sizes.append(len(rows.times))
        assert rows.values.shape == (sizes[-1], channels)
        rows_ahead.skip(rows, sizes[-1])
    return sizes


@pytest.mark.parametrize(
    ("channels", "wanted", "rows", "sizes"),
    [
        (100, 10, 460, [10, 20, 40, 80, 100, 100, 100, 10]),  # up to 10 000 points, and then the rest
        (100, 120, 400, [120, 120, 120]),  # one chunk has more
        (1, 10, 75, [10, 20, 40]),
        (1, 10, 55, [10, 20, 10, 10]),  # too few for four chunks
    ],
)
def test_rows_of_small_chunks_are_decoded_together_up_to_a_number_of_points(
    deliver: Deliver, channels: int, wanted: int, rows: int, sizes: list[int]
) -> None:
    lines = [record(n, [float(n)] * channels) for n in range(rows)]
    delivery = deliver([layout(channels), *lines])
    reader = RunReader(delivery.claim.folder)
    next(line for line in reader.read() if b'"layout"' in line.payload[:20])

    assert sizes_ahead(RowsAhead(reader, GilYield()), wanted, channels) == sizes
    reader.close()


def test_rows_that_are_decoded_and_not_taken_are_there_at_the_next_look(deliver: Deliver) -> None:
    delivery = deliver([layout(1), *(record(n, [float(n)]) for n in range(70))])
    reader = RunReader(delivery.claim.folder)
    next(line for line in reader.read() if b'"layout"' in line.payload[:20])
    ahead = RowsAhead(reader, GilYield())
    first = ahead.peek(10, 1)
    assert first is not None
    ahead.skip(first, 10)
    second = ahead.peek(10, 1)
    assert second is not None
    assert (second.number, len(second.times)) == (10, 20)
    ahead.skip(second, 10)

    third = ahead.peek(10, 1)

    assert third is not None
    assert (third.number, len(third.times), third.values[0][0]) == (20, 10, 20.0)
    assert ahead.peek(10, 1) is third
    wider = ahead.peek(11, 1)
    assert wider is not None
    assert (wider.number, len(wider.times)) == (20, 44)
    reader.close()


def test_chunks_that_are_not_pushed_now_are_passed_over_in_one_call(deliver: Deliver) -> None:
    delivery = deliver([layout(1), *(text(n, [1.0]) for n in range(35)), STOP])
    delivery.claim.ledger.note(Parked("it is too large", 0))
    run_chunker = delivery.run.run_chunker

    run_chunker.read_on()

    assert (run_chunker.all_cut, run_chunker.at_end, run_chunker.more_to_read) == (True, True, False)
    assert (list(run_chunker.results.ready), run_chunker.account.next_row) == ([], {"primary": 35})


def test_one_call_of_read_on_ends_with_a_chunk_and_at_the_journals_present_end(deliver: Deliver) -> None:
    run_chunker = deliver([layout(1), *(text(n, [1.0]) for n in range(25))]).run.run_chunker

    for index in (0, 1):
        run_chunker.read_on()
        (chunk,) = taken(run_chunker)
        assert (chunk.index, run_chunker.at_end, run_chunker.more_to_read) == (index, False, False)
    run_chunker.read_on()
    assert (list(run_chunker.results.ready), run_chunker.at_end, run_chunker.more_to_read, run_chunker.all_cut) == (
        [],
        True,
        False,
        False,
    )


def test_rows_that_are_too_few_for_a_chunk_are_left_until_there_are_more(deliver: Deliver) -> None:
    delivery = deliver([layout(1), *(text(n, [1.0]) for n in range(14))])
    run_chunker, writer = delivery.run.run_chunker, JournalWriter(delivery.claim.folder)

    assert [(chunk.first_row, chunk.points) for chunk in all_chunks(run_chunker)] == [(0, 10)]
    assert run_chunker.account.next_row["primary"] == 10
    writer.append(b"".join(checksummed(text(n, [1.0])) for n in range(14, 23)))
    run_chunker.read_on()
    assert [(chunk.first_row, chunk.points) for chunk in all_chunks(run_chunker)] == [(10, 10)]
    writer.append(checksummed(STOP))
    run_chunker.read_on()
    assert [(chunk.first_row, chunk.points) for chunk in all_chunks(run_chunker)] == [(20, 3)]
    assert run_chunker.all_cut
    writer.close()


@pytest.mark.parametrize("policy", ["own_stream", "null", "drop_row"])
def test_a_long_row_among_too_few_for_a_chunk_holds_up_no_row_after_it(deliver: Deliver, policy: str) -> None:
    # The row with gaps is more than twice as long, so 9 lines have the bytes of 10.
    lines = [text(n, [None if n == 14 else 1.0] * 64) for n in range(32)]
    delivery = deliver([layout(64), *lines[:19]], non_finite=policy)
    run_chunker, writer = delivery.run.run_chunker, JournalWriter(delivery.claim.folder)
    found = all_chunks(run_chunker)

    for row in lines[19:]:
        writer.append(checksummed(row))
        run_chunker.read_on()
        found += taken(run_chunker)

    third = 20 if policy == "null" else 21
    assert [chunk.first_row for chunk in found] == [0, 10, third]
    writer.close()


def test_rows_of_two_time_bases_are_read_although_they_are_too_few_for_a_chunk_of_one(deliver: Deliver) -> None:
    other = encode(Layout(layout=1, event_stream="gauge", time_base="gauge", channels=(Channel("g", "g"),)))
    rows = [encode_row(n % 2, n // 2, T0 + n, f"uid {n}", pack_values([float(n)])) for n in range(24)]
    run_chunker = deliver([layout(1), other, *rows]).run.run_chunker

    assert [(chunk.first_row, chunk.points) for chunk in all_chunks(run_chunker)] == [(0, 10), (0, 10)]


def test_rows_that_a_preview_may_show_are_read_at_once(deliver: Deliver) -> None:
    run_chunker = deliver([layout(1), *(text(n, [1.0]) for n in range(4))], max_latency_s=1.0).run.run_chunker

    assert all_chunks(run_chunker) == []
    assert run_chunker.account.next_row["primary"] == 4


def test_a_long_backlog_is_read_in_parts_so_that_other_runs_have_their_turn(deliver: Deliver) -> None:
    lines = [text(n, [None]) for n in range(LINES_AT_ONCE + 100)]
    run_chunker = deliver([layout(1), *lines]).run.run_chunker

    run_chunker.read_on(count_only=True)
    assert (run_chunker.more_to_read, run_chunker.at_end) == (True, False)
    run_chunker.read_on(count_only=True)
    assert (run_chunker.more_to_read, run_chunker.at_end) == (False, True)
    assert run_chunker.account.next_row["primary"] == LINES_AT_ONCE + 100
    assert list(run_chunker.results.ready) == []


def test_counting_a_parked_runs_rows_makes_no_chunks(deliver: Deliver) -> None:
    run_chunker = deliver([layout(1), *(text(n, [1.0]) for n in range(25)), STOP]).run.run_chunker

    run_chunker.read_on(count_only=True)

    assert (list(run_chunker.results.ready), run_chunker.at_end, run_chunker.all_cut) == ([], True, False)
    assert run_chunker.account.stop is not None


@pytest.mark.skipif(sys.platform != "linux", reason="another call syncs a file there")
def test_the_rows_of_a_chunk_are_synced_before_it_is_pushed_for_the_first_time(
    deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = deliver([layout(1), *(text(n, [1.0]) for n in range(5))])
    folder = delivery.claim.folder
    wait_until(lambda: not is_held(folder / WRITER_LOCK))  # its writer has closed, and syncs nothing any more
    journal, synced, sync = (folder / "journal-0001.jsonl").stat().st_ino, [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(os.fstat(file).st_ino), sync(file)))
    append(folder, [*(text(n, [1.0]) for n in range(5, 25)), STOP])

    task = delivery.next_task(0.0)
    assert task is not None
    delivery.apply_result(task, "id", 0.0)
    assert journal not in synced
    task = delivery.next_task(0.0)
    assert task is not None
    assert task.chunk is not None
    assert synced.count(journal) == 1
    delivery.apply_result(task, Sent(task.chunk.names), 0.0)
    assert delivery.next_task(0.0) is not None
    assert synced.count(journal) == 1  # to its end, as it was then


@pytest.mark.skipif(sys.platform != "linux", reason="another call syncs a file there")
def test_rows_that_were_synced_when_the_run_was_claimed_are_not_synced_again(
    deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(os.fstat(file).st_ino), sync(file)))
    delivery = deliver([layout(1), *(text(n, [1.0]) for n in range(25)), STOP])
    folder = delivery.claim.folder
    wait_until(lambda: not is_held(folder / WRITER_LOCK))
    journal = (folder / "journal-0001.jsonl").stat().st_ino
    assert journal in synced
    synced.clear()

    for result in ("id", Sent(("c0",)), Sent(("c0",))):
        task = delivery.next_task(0.0)
        assert task is not None
        delivery.apply_result(task, result, 0.0)
    assert delivery.run.state.streams[0].chunks_confirmed == 2
    assert journal not in synced


def open_stream(run_chunker: RunChunker, time_base: str) -> str:
    opened = run_chunker.openings.open(
        why="closed by the server", time_base=time_base, from_row=0, position=START, channels=("x",)
    )
    return opened.label.rpartition(" [")[0]


def test_a_streams_name_tells_its_event_stream_and_counts_its_continuations(deliver: Deliver) -> None:
    delivery = deliver([layout(1)])
    first = delivery.run.state.streams[0].opening

    assert first.label == f"growth [b7c2e9f1-{first.token}]"
    assert [open_stream(delivery.run.run_chunker, name) for name in ("primary", "monitor", "primary", "monitor")] == [
        "growth (2)",
        "growth · monitor",
        "growth (3)",
        "growth · monitor (2)",
    ]


def test_with_one_stream_per_run_a_stream_of_other_channels_joins_it_and_the_next_is_numbered(deliver: Deliver) -> None:
    delivery = deliver([layout(1)], layout="run")
    delivery.claim.ledger.note(Initialized(0, "id", "metrology"))
    delivery.run.run_chunker.read_on()

    assert open_stream(delivery.run.run_chunker, "monitor") == "growth"
    assert delivery.run.state.streams[1].opening.joins == 0
    assert open_stream(delivery.run.run_chunker, "monitor") == "growth (2)"  # the channel is in the first one already
    assert delivery.run.state.streams[2].opening.joins is None


MADE = [Initializing(0, "metrology"), Initialized(0, "id", "metrology")]


@pytest.mark.parametrize(
    ("facts", "opening", "joins"),
    [
        ([], {}, 0),
        (MADE[:1], {}, 0),
        (MADE, {}, 0),
        ([*MADE, Finalizing(0)], {}, None),
        ([*MADE, Ended(0, "too large")], {}, None),
        ([Parked("it is too large", 0)], {}, None),
        ([], {"points_per_chunk": 20}, None),
        ([], {"points_per_chunk": 10}, 0),
        ([], {"channels": ("x", "c1")}, None),  # the stream has one of them already
        ([], {"channels": None}, 0),  # those of its time base, which has no layout yet
    ],
)
def test_with_one_stream_per_run_channels_join_the_stream_if_it_can_take_them(
    deliver: Deliver, facts: list[Any], opening: dict[str, Any], joins: int | None
) -> None:
    delivery = deliver([layout(2)], layout="run")
    for fact in facts:
        delivery.claim.ledger.note(fact)
    run_chunker = delivery.run.run_chunker
    run_chunker.read_on()
    given: Any = {"why": "event stream", "time_base": "gauge", "from_row": 0, "position": START, "channels": ("x",)}

    opened = run_chunker.openings.open(**(given | opening))

    assert (opened.stream, opened.joins) == (1, joins)
    assert opened.points_per_chunk == opening.get("points_per_chunk", 10)
    first = delivery.run.state.streams[0].opening
    assert (opened.token == first.token, opened.label == first.label) == (joins == 0, joins == 0)


def test_channels_join_no_stream_made_before_one_that_has_them(deliver: Deliver) -> None:
    delivery = deliver([layout(1)], layout="run")
    run_chunker = delivery.run.run_chunker
    run_chunker.read_on()
    given: Any = {"why": "event stream", "time_base": "gauge", "from_row": 0, "position": START}
    opened = [
        run_chunker.openings.open(**given, channels=channels, points_per_chunk=points)
        for channels, points in ((("x",), 20), (("y",), 10), (("x",), 10), (("z",), 20), (("x", "z"), 20))
    ]

    assert [one.joins for one in opened] == [None, 0, None, 1, None]


def noted(index: int, channels: tuple[str, ...] = ("c0", "c1")) -> Tried:
    return Tried(0, index, 10 * index, 10 * index + 9, 10, channels, 1, 0, T0)


@pytest.mark.parametrize("damaged", [set(), {12}, {19}, set(range(10, 20))])
def test_chunks_that_were_tried_are_cut_again_as_they_were(deliver: Deliver, damaged: set[int]) -> None:
    lines = [text(n, [float(n), n / 8]) for n in range(45) if n not in damaged]
    lines.insert(25, text(3, [-1.0, -1.0]))  # damage: its number is lower than the last one, so it was not sent
    delivery = deliver([layout(2), *lines, STOP])
    run_chunker = delivery.run.run_chunker
    all_chunks(run_chunker)
    stream = delivery.run.state.streams[0]

    chunks = [*run_chunker.recut(stream, {index: noted(index) for index in (1, 2)})]

    rows = {index: [n for n in range(10 * index, 10 * index + 10) if n not in damaged] for index in (1, 2)}
    assert {chunk.index: [time - T0 for time in chunk.times] for chunk in chunks} == {
        index: numbers for index, numbers in rows.items() if numbers
    }
    assert all([*chunk.columns[1].values] == [n / 8 for n in rows[chunk.index]] for chunk in chunks)
    assert [*run_chunker.recut(stream, {})] == []


def test_a_chunk_of_some_of_the_channels_is_cut_again_without_the_others(deliver: Deliver) -> None:
    lines = [text(n, [float(n), None if n == 10 else 1.0]) for n in range(45)]
    delivery = deliver([layout(2), *lines, STOP])
    run_chunker = delivery.run.run_chunker
    all_chunks(run_chunker)
    stream = delivery.run.state.streams[0]
    assert stream.left_at_row == {"c1": 10}

    chunks = [*run_chunker.recut(stream, {0: noted(0), 1: noted(1, ("c0",))})]

    assert [(chunk.index, chunk.names, chunk.points) for chunk in chunks] == [(0, ("c0", "c1"), 10), (1, ("c0",), 10)]


def test_channels_that_all_lack_the_same_rows_stay_in_one_stream_without_these_rows(deliver: Deliver) -> None:
    lines = [text(n, [None if n % 10 == 3 else 1.0] * 64) for n in range(30)]
    delivery = deliver([layout(64), *lines, STOP])

    chunks = all_chunks(delivery.run.run_chunker)

    assert len(delivery.run.state.streams) == 1
    assert {len(chunk.names) for chunk in chunks} == {64}
    times = [int(time - T0) for chunk in chunks for time in chunk.times]
    assert times == [n for n in range(30) if n % 10 != 3]


def test_each_pattern_of_gaps_has_one_stream_however_many_channels_it_has(deliver: Deliver) -> None:
    gaps = {0: set(), 1: {3, 14}, 2: {7}}  # which rows a channel lacks, by its number modulo 3
    rows = [text(n, [None if n in gaps[c % 3] else float(c) for c in range(60)]) for n in range(30)]
    delivery = deliver([layout(60), *rows, STOP])

    chunks = all_chunks(delivery.run.run_chunker)

    streams = delivery.run.state.streams
    assert [len(one.opening.channels or ()) for one in streams.values()] == [0, 20, 20]  # the first one: all channels
    points = Counter(name for chunk in chunks for name in chunk.names for _ in chunk.times)
    assert points == Counter({f"c{c}": 30 - len(gaps[c % 3]) for c in range(60)})


def test_the_label_of_a_continuation_names_its_channels(deliver: Deliver) -> None:
    rows = [text(n, [1.0] + [None if n == 3 else 1.0] * 30) for n in range(30)]
    delivery = deliver([layout(31), *rows, STOP])
    all_chunks(delivery.run.run_chunker)

    first, second = (stream.opening for stream in delivery.run.state.streams.values())
    assert first.label == f"growth [b7c2e9f1-{first.token}]"
    assert second.label == (
        f"growth (2) · c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, c16, c17, c18 and 12 more "
        f"[b7c2e9f1-{second.token}]"
    )


def test_a_channel_that_its_stream_was_refused_gets_one_after_an_update(deliver: Deliver) -> None:
    """Earlier versions gave channels with gaps no stream beyond a limit, and noted that."""
    delivery = deliver([layout(2), *(text(n, [1.0, None if n == 3 else 2.0]) for n in range(8))])
    ledger = delivery.claim.ledger
    ledger.note(ChannelLeft(0, "c1", 0))
    ledger.note(GivenUp("primary", "c1"))
    run_chunker = RunChunker(delivery.claim.folder, delivery.run.header, ledger)
    run_chunker.read_on()

    assert sorted(run_chunker.unfinished()) == [(0, 0, 7), (1, 0, 7)]
    assert delivery.run.state.streams[1].opening.channels == ("c1",)
    run_chunker.close()
