"""Which rows make which chunk: held to a plain, slow reference, and resumed at every moment."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chunks import spelled
from hypothesis import given, settings
from hypothesis import strategies as st

from atomscale_bluesky.chunking.chunker import Chunker
from atomscale_bluesky.chunking.cut_stream import Resumed
from atomscale_bluesky.chunking.decisions import CutShort, Decision, Leave, Open, Outgrown
from atomscale_bluesky.delivery.run_delivery import RunDelivery
from atomscale_bluesky.delivery.tasks.chunk_requests import Sent
from atomscale_bluesky.delivery.tasks.work import Kind
from atomscale_bluesky.delivery.unfinished_tasks import Task
from atomscale_bluesky.errors import ApiUnavailableError
from atomscale_bluesky.model.chunk import Chunk
from atomscale_bluesky.model.rows import Channel, Position, Row
from atomscale_bluesky.spool.journal_format import Header, Layout, Stop, encode_row, pack_values
from atomscale_bluesky.spool.ledger_format import (
    ChannelLeft,
    Confirmed,
    Initialized,
    Opened,
    PreviewAnswered,
    Previewed,
    Tried,
)
from atomscale_bluesky.spool.ledger_state import LedgerState
from atomscale_bluesky.spool.lines import encode
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.spool.stream_state import MetrologyStreamState

POLICIES = ["own_stream", "null", "drop_row"]
T0 = 1_760_000_000.0


def layout_of(number: int, names: str, time_base: str = "primary") -> Layout:
    return Layout(
        layout=number,
        event_stream="primary",
        time_base=time_base,
        channels=tuple(Channel(name, name, unit=f"unit of {name}") for name in names),
    )


@dataclass
class Story:
    """What a journal holds for one time base: layouts, and rows that name them."""

    points_per_chunk: int
    policy: str
    layouts: list[Layout]
    rows: list[Row]
    seed: int = 0

    @property
    def lines(self) -> Iterator[Layout | Row]:
        said: set[int] = set()
        for row in self.rows:
            if row.layout not in said:
                said.add(row.layout)
                yield self.layouts[row.layout]
            yield row

    def series(self) -> dict[str, list[tuple[float, float | None]]]:
        """What each channel is due, by the policy, in order: the plain and slow reference."""
        together: dict[str, int] = {}  # which channels share their first stream
        due: dict[str, list[tuple[float, float | None]]] = {}
        for row in self.rows:
            names = [channel.name for channel in self.layouts[row.layout].channels]
            for name in names:
                together.setdefault(name, row.layout)
            for name, value in zip(names, row.values, strict=True):
                due.setdefault(name, [])
                if self.policy == "null" or value is not None:
                    fellows = [v for n, v in zip(names, row.values, strict=True) if together[n] == together[name]]
                    if self.policy != "drop_row" or None not in fellows:
                        due[name].append((row.time, value))
        return {name: series for name, series in due.items() if series}


@st.composite
def stories(draw: st.DrawFn, *, parting: bool = True) -> Story:
    """Up to 40 rows with gaps, some numbers missing, over layouts that grow and, where `parting`, shrink."""
    sets = [draw(st.sampled_from(["a", "ab", "abc"]))]
    for _ in range(draw(st.integers(0, 2))):
        more = sets[-1] + draw(st.sampled_from(["", "d", "de", "f"])).translate(
            {ord(name): None for name in "".join(sets)}
        )
        less = draw(st.sampled_from(["", "", "b", "c"])) if parting else ""
        sets.append("".join(name for name in more if name not in less) or more)
    gaps = draw(st.sampled_from([0.0, 0.1, 0.5]))
    chance = random.Random(draw(st.integers(0, 2**32)))
    rows: list[Row] = []
    number = 0
    for layout, names in enumerate(sets):
        for _ in range(draw(st.integers(1, 20))):
            number += 1 if not rows or chance.random() > 0.03 else 2
            values = [None if chance.random() < gaps else chance.random() for _ in names]
            rows.append(Row(layout, number - 1, T0 + number / 8, f"uid {number}", values))
    return Story(
        points_per_chunk=draw(st.integers(1, 7)),
        policy=draw(st.sampled_from(POLICIES)),
        layouts=[layout_of(i, names) for i, names in enumerate(sets)],
        rows=rows,
        seed=chance.randrange(2**32),
    )


class Notes:
    """Carries out what is decided, as a ledger notes it."""

    def __init__(self, points_per_chunk: int) -> None:
        self.state = LedgerState()
        self._points_per_chunk = points_per_chunk
        self.open(Open("run start", 0, Position(1, 0), ()))

    def open(self, decision: Open) -> MetrologyStreamState:
        number = len(self.state.streams)
        opening = Opened(
            stream=number,
            time_base="primary",
            from_row=decision.from_row,
            why=decision.why,
            label=f"stream {number}",
            token="0",
            points_per_chunk=self._points_per_chunk,
            segment=decision.position.segment,
            offset=decision.position.offset,
            channels=decision.channels or None,
            skip=decision.skip,
        )
        self.state.apply(opening)
        if decision.from_stream is not None:
            for name in decision.channels:
                self.state.apply(ChannelLeft(decision.from_stream, name, decision.from_row))
        return self.state.streams[number]

    def chunks(self, chunker: Chunker, decisions: Iterable[Decision]) -> Iterator[Chunk]:
        """Yield the chunks among decisions, and note the others."""
        for decision in decisions:
            match decision:
                case Chunk():
                    yield decision
                case Open():
                    chunker.take_opened(self.open(decision))
                case Leave(stream, channels, from_row):
                    for name in channels:
                        self.state.apply(ChannelLeft(stream, name, from_row))
                case _:
                    raise AssertionError(decision)


def cut(story: Story) -> list[Chunk]:
    """The chunks of a story, cut in one go."""
    notes = Notes(story.points_per_chunk)
    chunker: Chunker | None = None
    chunks: list[Chunk] = []
    for offset, found in enumerate(story.lines):
        position = Position(1, offset)
        if chunker is None:
            assert isinstance(found, Layout)
            chunker = Chunker(found, non_finite=story.policy, streams=[Resumed(notes.state.streams[0])])
        elif isinstance(found, Row):
            chunks += notes.chunks(chunker, chunker.take_row(position, found))
        else:
            following = next(row.number for row in story.rows if row.layout == found.layout)
            chunker.take_layout(found, from_row=following)
    if chunker is not None:
        chunks += notes.chunks(chunker, chunker.finish())
    return chunks


def series_of(chunks: list[Chunk]) -> dict[str, list[tuple[float, float | None]]]:
    """All points by channel, stream after stream."""
    found: dict[str, list[tuple[float, float | None]]] = {}
    for chunk in sorted(chunks, key=lambda chunk: (chunk.stream, chunk.index)):
        for column in chunk.columns:
            found.setdefault(column.name, []).extend(zip(chunk.times, column.values, strict=True))
    return found


def by_stream(chunks: list[Chunk]) -> dict[int, list[Chunk]]:
    found: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        found.setdefault(chunk.stream, []).append(chunk)
    return found


@settings(max_examples=300)
@given(stories())
def test_every_point_comes_out_exactly_once_in_order(story: Story) -> None:
    assert series_of(cut(story)) == story.series()


@settings(max_examples=300)
@given(stories())
def test_chunks_are_numbered_without_holes_and_only_a_streams_last_one_is_short(story: Story) -> None:
    for chunks in by_stream(cut(story)).values():
        assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
        assert all(chunk.points == story.points_per_chunk for chunk in chunks[:-1])
        assert 1 <= chunks[-1].points <= story.points_per_chunk


@settings(max_examples=300)
@given(stories())
def test_channels_of_a_chunk_share_its_times_and_none_joins_late_or_comes_back(story: Story) -> None:
    for chunks in by_stream(cut(story)).values():
        for chunk in chunks:
            assert chunk.columns
            assert len(set(chunk.names)) == len(chunk.names)
            assert all(len(column.values) == len(chunk.times) for column in chunk.columns)
            assert all(column.unit == f"unit of {column.name}" for column in chunk.columns)
            assert chunk.first_row <= chunk.last_row
        for before, after in zip(chunks, chunks[1:], strict=False):
            assert set(after.names) <= set(before.names)
            assert before.last_row < after.first_row


@given(stories())
def test_only_where_the_policy_asks_for_it_is_a_gap_sent(story: Story) -> None:
    sent = [value for chunk in cut(story) for column in chunk.columns for value in column.values]

    assert story.policy == "null" or None not in sent


@given(stories())
def test_cutting_again_gives_the_same_chunks(story: Story) -> None:
    assert [*map(spelled, cut(story))] == [*map(spelled, cut(story))]


# ---- as a delivery does it, interrupted at any moment ----------------------------------------------------------------


@dataclass
class Shelf:
    """Stands for Atomscale: what was pushed, by stream, chunk and channel."""

    held: dict[str, dict[tuple[int, str], tuple[tuple[float, ...], tuple[float | None, ...]]]] = field(
        default_factory=dict
    )
    finalized: set[str] = field(default_factory=set)

    def initialize(self, task: Task) -> str:
        data_id = f"id-{task.stream}"  # found again by its label when it was made before
        self.held.setdefault(data_id, {})
        return data_id

    def push(self, data_id: str, chunk: Chunk) -> None:
        assert data_id not in self.finalized
        for column in chunk.columns:
            content = (chunk.times, tuple(column.values))
            assert self.held[data_id].setdefault((chunk.index, column.name), content) == content

    def series(self) -> dict[str, list[tuple[float, float | None]]]:
        found: dict[str, list[tuple[float, float | None]]] = {}
        for held in self.held.values():
            for (_, name), (times, values) in sorted(held.items(), key=lambda one: (one[0][1], one[0][0])):
                found.setdefault(name, []).extend(zip(times, values, strict=True))
        return found


def texts(found: Layout | Row, story: Story) -> bytes:
    if isinstance(found, Layout):
        return encode(found)
    names = [channel.name for channel in story.layouts[found.layout].channels]
    gaps = {name: "not finite" for name, value in zip(names, found.values, strict=True) if value is None}
    return encode_row(found.layout, found.number, found.time, found.event_uid, pack_values(found.values), gaps)


def deliver(story: Story, *, crashes: int) -> tuple[Shelf, RunDelivery]:
    """Write and deliver a run step by step, in an order that chance gives, dying so many times in between."""
    chance = random.Random(story.seed)
    header = Header(
        format=1,
        run_uid="b7c2e9f1-0000",
        started=T0,
        label="story",
        points_per_chunk=story.points_per_chunk,
        primary="primary",
        endpoint="https://api.atomscale.ai",
        non_finite=story.policy,
    )
    lines = [texts(found, story) for found in story.lines]
    lines.append(encode(Stop(time=T0 + 100, exit_status="success")))
    shelf = Shelf()
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder))
        writer = spool.writers.create(header)
        try:
            delivery = claimed(spool, writer.folder)
            under_way: list[Task] = []
            idle = 0
            for _ in range(10_000):
                if delivery.run.finished and not under_way:
                    break
                deed = chance.choice(["write", "begin", "begin", "end", "die"])
                if deed == "write" and lines:
                    writer.append([lines.pop(0) for _ in range(min(len(lines), chance.randint(1, 8)))])
                elif deed == "begin" and len(under_way) < 4:
                    task = delivery.next_task(0.0)
                    if task is not None:
                        under_way.append(task)
                        begin(shelf, task, applied=chance.random() < 0.7)
                    elif not (lines or under_way or delivery.run.run_chunker.more_to_read or delivery.run.finished):
                        idle += 1
                        assert idle < 3, "nothing moves any more"
                elif deed == "end" and under_way:
                    end(shelf, delivery, under_way.pop(chance.randrange(len(under_way))), chance)
                elif deed == "die" and crashes:
                    crashes -= 1
                    under_way = []
                    delivery.close()
                    delivery = claimed(spool, writer.folder)
            assert delivery.run.finished
            delivery.close()
            return shelf, delivery
        finally:
            spool.writers.release(writer)
            spool.writers.stop_threads()


def claimed(spool: Spool, folder: Path) -> RunDelivery:
    claim = spool.claim(folder)
    assert claim is not None
    return RunDelivery(claim)


def begin(shelf: Shelf, task: Task, *, applied: bool) -> None:
    """A request leaves, and may be applied long before its answer comes, if that comes at all."""
    if task.kind is Kind.INITIALIZE:
        if applied:
            shelf.initialize(task)
    elif task.chunk is not None and applied:
        shelf.push(task.work.data_id, task.chunk)


def end(shelf: Shelf, delivery: RunDelivery, task: Task, chance: random.Random) -> None:
    """The answer comes."""
    if task.kind is Kind.INITIALIZE:
        delivery.apply_result(task, shelf.initialize(task), 0.0)
    elif task.kind is Kind.FINALIZE:
        shelf.finalized.add(task.work.data_id)
        delivery.apply_result(task, None, 0.0)
    elif task.chunk is not None:
        some = tuple(name for name in task.chunk.names if chance.random() < 0.5)
        if chance.random() < 0.2 and some != task.chunk.names:
            shelf.push(task.work.data_id, task.chunk.with_channels(some))
            delivery.apply_failure(task, ApiUnavailableError("no answer"), 0.0, Sent(some))
        else:
            shelf.push(task.work.data_id, task.chunk)
            delivery.apply_result(task, Sent(task.chunk.names), 0.0)


@settings(max_examples=60)
@given(stories(), st.integers(0, 6))
def test_a_delivery_that_dies_at_any_moment_goes_on_with_the_same_chunks(story: Story, crashes: int) -> None:
    shelf, delivery = deliver(story, crashes=crashes)

    assert shelf.series() == story.series()
    assert shelf.finalized == set(shelf.held)
    for held in shelf.held.values():
        for name in {name for _, name in held}:
            lengths = [len(times) for (_, one), (times, _) in sorted(held.items()) if one == name]
            indices = sorted(index for index, one in held if one == name)
            assert indices == list(range(len(lengths)))
            assert all(length == story.points_per_chunk for length in lengths[:-1])
    status = delivery.run.status()
    assert status.state == "finalized"
    assert status.points.waiting == 0


# ---- single facts ----------------------------------------------------------------------------------------------------


def safe(points_per_chunk: int, policy: str, *series: list[float | None], names: str = "abc") -> Story:
    rows = [Row(0, n, T0 + n, f"uid {n}", list(values)) for n, values in enumerate(zip(*series, strict=True))]
    return Story(points_per_chunk, policy, [layout_of(0, names[: len(series)])], rows)


def shape(chunks: list[Chunk]) -> list[tuple[int, int, str, list[float]]]:
    return [(c.stream, c.index, "".join(c.names), [time - T0 for time in c.times]) for c in chunks]


def test_a_channel_with_a_gap_leaves_before_the_chunk_that_has_it_and_goes_on_alone() -> None:
    a: list[float | None] = [0, 1, 2, 3, 4, 5, 6]
    b: list[float | None] = [0, 1, 2, None, 4, 5, 6]

    assert sorted(shape(cut(safe(2, "own_stream", a, b)))) == [
        (0, 0, "ab", [0, 1]),
        (0, 1, "a", [2, 3]),
        (0, 2, "a", [4, 5]),
        (0, 3, "a", [6]),
        (1, 0, "b", [2, 4]),
        (1, 1, "b", [5, 6]),
    ]


def test_a_channel_that_never_has_a_value_opens_no_stream() -> None:
    chunks = cut(safe(2, "own_stream", [0, 1, 2], [None, None, None]))

    assert {c.stream for c in chunks} == {0}
    assert {name for c in chunks for name in c.names} == {"a"}


def test_a_row_with_a_gap_is_dropped_for_all_channels_of_its_stream_where_asked() -> None:
    assert shape(cut(safe(2, "drop_row", [0, 1, 2, 3], [0, None, 2, 3]))) == [
        (0, 0, "ab", [0, 2]),
        (0, 1, "ab", [3]),
    ]


def test_gaps_go_out_as_null_where_asked() -> None:
    (first, second) = cut(safe(2, "null", [0, None, 2], [None, None, None]))

    assert [column.values for column in first.columns] == [(0, None), (None, None)]
    assert [column.values for column in second.columns] == [(2,), (None,)]


def test_channels_that_come_late_share_a_stream_that_begins_with_them() -> None:
    story = safe(2, "own_stream", [0, 1, 2])
    story.layouts.append(layout_of(1, "axy"))
    story.rows += [Row(1, n, T0 + n, "", [float(n)] * 3) for n in (3, 4, 5)]

    assert sorted(shape(cut(story))) == [
        (0, 0, "a", [0, 1]),
        (0, 1, "a", [2, 3]),
        (0, 2, "a", [4, 5]),
        (1, 0, "xy", [3, 4]),
        (1, 1, "xy", [5]),
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_channel_that_gets_a_time_base_of_its_own_takes_nothing_from_the_others(policy: str) -> None:
    story = safe(4, policy, [0, 1], [0, 1])
    story.layouts.append(layout_of(1, "a"))
    story.rows += [Row(1, n, T0 + n, "", [float(n)]) for n in range(2, 9)]

    found = series_of(cut(story))

    assert [time - T0 for time, _ in found["a"]] == list(range(9))
    assert [(time - T0, value) for time, value in found["b"]] == [(0, 0), (1, 1)]


def test_a_part_of_a_chunk_keeps_its_place() -> None:
    (chunk,) = cut(safe(3, "own_stream", [0, 1, 2], [3, 4, 5], [6, 7, 8]))

    part = chunk.with_channels(["c", "a", "z"])

    assert part.names == ("a", "c")
    assert (part.index, part.times, part.first_row, part.last_row) == (0, chunk.times, 0, 2)
    name, unit, values = part.columns[1]
    assert (name, unit, [*values]) == ("c", "unit of c", [6, 7, 8])


# ---- lines that were damaged after their chunk was noted -------------------------------------------------------------


def resumed(
    story: Story,
    tried: list[tuple[int, int, int]],
    confirmed: list[int],
    damaged: set[int],
    *,
    points: int = 2,
    left: Mapping[str, int] | None = None,
) -> list[Chunk]:
    """The chunks that are cut after a restart: some were tried, some confirmed, and some rows are damaged since."""
    notes = Notes(story.points_per_chunk)
    names = tuple(channel.name for channel in story.layouts[0].channels)
    notes.state.apply(Initialized(0, "id", "metrology"))
    for index, first, last in tried:
        notes.state.apply(Tried(0, index, first, last, points, names, 1, first, T0 + last))
    for index in confirmed:
        notes.state.apply(Confirmed(0, index, T0))
    for name, from_row in (left or {}).items():
        notes.state.apply(ChannelLeft(0, name, from_row))
    stream = notes.state.streams[0]
    index, from_row, _ = stream.resume_point
    chunker = Chunker(story.layouts[0], non_finite=story.policy, streams=[Resumed(stream, index, from_row)])
    chunks: list[Chunk] = []
    for row in story.rows:
        if row.number not in damaged:
            chunks += notes.chunks(chunker, chunker.take_row(Position(1, row.number), row))
    return [*chunks, *notes.chunks(chunker, chunker.finish())]


TEN = safe(2, "own_stream", [float(n) for n in range(10)])
NOTED = [(0, 0, 1), (1, 2, 3), (2, 4, 5), (3, 6, 7)]


@pytest.mark.parametrize("damaged", [set(), {2}, {3}, {4}, {2, 4}, {5}, {4, 5}, {3, 6}])
def test_a_line_that_is_damaged_later_costs_itself_and_moves_no_boundary_that_was_noted(damaged: set[int]) -> None:
    # Chunks 0 and 2 are confirmed, 1 and 3 are not.
    chunks = resumed(TEN, NOTED, [0, 2], damaged)

    expected = [(1, [2, 3]), (3, [6, 7]), (4, [8, 9])]
    assert [(c.index, [int(time - T0) for time in c.times]) for c in chunks] == [
        (index, [row for row in rows if row not in damaged]) for index, rows in expected
    ]


def test_a_chunk_of_which_every_line_is_damaged_gives_its_index_to_no_other_rows() -> None:
    chunks = resumed(TEN, NOTED, [0], {2, 3})

    assert [(c.index, [int(time - T0) for time in c.times]) for c in chunks] == [(2, [4, 5]), (3, [6, 7]), (4, [8, 9])]


@pytest.mark.parametrize(
    ("last_row_twice", "rows", "expected"),
    [
        (False, [2, 2, 3, 4, 5], [(1, [2, 2, 3]), (2, [4, 5])]),
        (False, [2, 3, 3, 4, 5], [(1, [2, 3]), (2, [4, 5])]),
        (True, [2, 3, 3, 4, 5], [(1, [2, 3, 3]), (2, [4, 5])]),
        (True, [2, 3, 4, 5], [(1, [2, 3]), (2, [4, 5])]),  # the further row is damaged now
    ],
)
def test_a_row_whose_number_stands_there_twice_moves_no_boundary_that_was_noted(
    last_row_twice: bool, rows: list[int], expected: list[tuple[int, list[int]]]
) -> None:
    story = Story(2, "own_stream", [layout_of(0, "a")], [Row(0, n, T0 + n, f"uid {n}", [float(n)]) for n in rows])

    chunks = resumed(story, [(0, 0, 1), (1, 2, 3)], [0], set(), points=3 if last_row_twice else 2)

    assert [(c.index, [int(time - T0) for time in c.times]) for c in chunks] == expected


THREE = safe(2, "own_stream", *[[float(n) for n in range(8)]] * 3)


def test_channels_that_left_at_different_rows_leave_apart_when_all_rows_between_are_damaged() -> None:
    chunks = resumed(THREE, [(0, 0, 1), (1, 2, 3), (2, 4, 5)], [0], {3, 4, 5}, left={"b": 4, "c": 6})

    assert sorted(shape(chunks)) == [
        (0, 1, "a", [2]), (0, 3, "a", [6, 7]), (1, 0, "b", [2]), (2, 0, "c", [2]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("left", "damaged", "expected"),
    [
        # Where a chunk ends, a channel that left there has no further point in the stream.
        ({"b": 4}, set(), [(0, 1, "abc", [2, 3]), (0, 2, "ac", [4, 5]), (0, 3, "ac", [6, 7])]),
        ({"b": 4, "c": 6}, set(), [(0, 1, "abc", [2, 3]), (0, 2, "ac", [4, 5]), (0, 3, "a", [6, 7])]),
        # The row before that is damaged now, so its chunk has no end there. What the channel has of the chunk goes into
        # a stream of its own, and what comes after that is in another one already.
        ({"b": 4}, {3}, [(0, 1, "ac", [2]), (0, 2, "ac", [4, 5]), (0, 3, "ac", [6, 7]), (1, 0, "b", [2])]),
        ({"b": 4}, {2, 3}, [(0, 2, "ac", [4, 5]), (0, 3, "ac", [6, 7])]),
        (
            {"b": 4, "c": 4},
            {3},
            [(0, 1, "a", [2]), (0, 2, "a", [4, 5]), (0, 3, "a", [6, 7]), (1, 0, "bc", [2])],
        ),
    ],
)
def test_a_channel_that_left_leaves_at_the_same_row_when_its_journal_is_read_again(
    left: dict[str, int], damaged: set[int], expected: list[tuple[int, int, str, list[float]]]
) -> None:
    assert sorted(shape(resumed(THREE, [(0, 0, 1), (1, 2, 3)], [0], damaged, left=left))) == expected


# ---- what a preview has shown ----------------------------------------------------------------------------------------


class Shown:
    """A stream of which some rows of the chunk of index 0 were shown."""

    def __init__(self, rows: int = 3, points_per_chunk: int = 5, names: str = "ab") -> None:
        self.notes = Notes(points_per_chunk)
        self.notes.state.apply(Initialized(0, "id", "metrology"))
        self.chunker = Chunker(
            layout_of(0, names), non_finite="own_stream", streams=[Resumed(self.notes.state.streams[0])]
        )
        self.decisions: list[Decision] = []
        for number in range(rows):
            self.take(number, *[float(number)] * len(names))
        (chunk,) = self.chunker.preview_of(0)
        assert isinstance(chunk, Chunk)
        self.notes.state.apply(Previewed.of(chunk))
        self.notes.state.apply(PreviewAnswered(0, 0, taken=True))
        self.shown = chunk

    def take(self, number: int, *values: float | None) -> list[Decision]:
        return [*self.chunker.take_row(Position(1, number), Row(0, number, T0 + number, "", list(values)))]


def test_a_preview_shows_the_points_so_far_which_the_chunk_begins_with() -> None:
    stream = Shown()
    assert shape([stream.shown]) == [(0, 0, "ab", [0, 1, 2])]
    assert list(stream.chunker.unfinished()) == [(0, 0, 2)]

    assert stream.take(3, 3.0, 3.0) == []
    assert list(stream.chunker.unfinished()) == [(0, 0, 3)]
    (chunk,) = stream.take(4, 4.0, 4.0)

    assert isinstance(chunk, Chunk)
    assert shape([chunk]) == [(0, 0, "ab", [0, 1, 2, 3, 4])]
    assert list(stream.chunker.unfinished()) == []
    assert list(stream.chunker.preview_of(0)) == []
    assert stream.take(5, 5.0, None) == [Leave(0, ("b",), 5)]  # of the next chunk nothing was shown


def test_a_stream_that_would_split_after_a_preview_ends_with_what_was_shown() -> None:
    stream = Shown()

    assert stream.take(3, 3.0, None) == [CutShort(0), Outgrown(0)]
    assert stream.take(4, 4.0, 4.0) == [Outgrown(0)]
    assert stream.take(5, None, None) == []  # no channel has a point there
    assert list(stream.chunker.unfinished()) == []
    assert list(stream.chunker.finish()) == []


def test_a_row_that_all_channels_lack_after_a_preview_splits_nothing() -> None:
    stream = Shown()

    assert stream.take(3, None, None) == []
    assert [stream.take(4, 4.0, 4.0), list(stream.chunker.unfinished())] == [[], [(0, 0, 4)]]
    (chunk,) = stream.chunker.finish()
    assert isinstance(chunk, Chunk)
    assert shape([chunk]) == [(0, 0, "ab", [0, 1, 2, 4])]


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_stream_of_which_a_row_is_damaged_that_was_shown_ends_with_what_was_shown(damaged: int) -> None:
    state = Shown().notes.state.streams[0]
    again = Chunker(layout_of(0, "ab"), non_finite="own_stream", streams=[Resumed(state)])
    decisions: list[Decision] = []
    for number in set(range(6)) - {damaged}:
        decisions += again.take_row(Position(1, number), Row(0, number, T0 + number, "", [1.0, 2.0]))

    assert decisions == [CutShort(0), Outgrown(0)]
    assert list(again.finish()) == []


# ---- patterns of gaps ------------------------------------------------------------------------------------------------


@st.composite
def patterned(draw: st.DrawFn) -> Story:
    """Rows of 1 to 64 channels, of which any may lack the same rows as others, all rows, or rows of their own."""
    channels, rows = draw(st.integers(1, 64)), draw(st.integers(1, 40))
    chance = random.Random(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.02, 0.2, 0.7]))
    patterns: list[set[int]] = [set(), set(range(rows)), set(range(chance.randrange(rows)))]
    patterns += [{n for n in range(rows) if chance.random() < share} for _ in range(draw(st.integers(1, 6)))]
    lacks = [chance.choice(patterns) | (patterns[-1] if chance.random() < 0.1 else set()) for _ in range(channels)]
    names = [f"c{n}" for n in range(channels)]
    layout = Layout(
        layout=0,
        event_stream="primary",
        time_base="primary",
        channels=tuple(Channel(name, name, unit="K") for name in names),
    )
    values = [[None if n in gaps else n + place / 100 for place, gaps in enumerate(lacks)] for n in range(rows)]
    return Story(
        points_per_chunk=draw(st.integers(1, 12)),
        policy="own_stream",
        layouts=[layout],
        rows=[Row(0, n, T0 + n / 8, f"uid {n}", row) for n, row in enumerate(values)],
        seed=chance.randrange(2**32),
    )


@settings(max_examples=60, deadline=None)
@given(patterned(), st.integers(0, 4))
def test_channels_with_one_pattern_of_gaps_share_a_stream_and_no_finite_value_is_left_out(
    story: Story, crashes: int
) -> None:
    shelf, delivery = deliver(story, crashes=crashes)

    assert shelf.series() == story.series()
    names = [channel.name for channel in story.layouts[0].channels]
    gaps = {name: frozenset(row.number for row in story.rows if row.values[i] is None) for i, name in enumerate(names)}
    patterns = {gaps[name] for name in story.series()}
    assert len(shelf.held) <= max(1, len(patterns))
    assert not patterns or all(shelf.held.values())  # no stream is empty, unless the run is
    for held in shelf.held.values():
        assert all(None not in values for _, values in held.values())
    points = delivery.run.status().points
    finite = sum(value is not None for row in story.rows for value in row.values)
    assert (points.delivered, points.waiting, points.lost) == (finite, 0, 0)
    assert points.left_out == ({"not finite": points.seen - finite} if points.seen > finite else {})


def test_channels_that_lack_a_row_together_go_on_together_and_those_that_come_back_do_too() -> None:
    a: list[float | None] = [0, 1, 2, 3, 4, 5, 6, 7]
    b: list[float | None] = [0, 1, None, None, 4, 5, 6, 7]
    c: list[float | None] = [0, 1, None, 3, 4, 5, 6, 7]

    assert sorted(shape(cut(safe(2, "own_stream", a, b, c)))) == [
        (0, 0, "abc", [0, 1]),
        (0, 1, "a", [2, 3]),
        (0, 2, "a", [4, 5]),
        (0, 3, "a", [6, 7]),
        (1, 0, "c", [3, 4]),  # both left before a chunk was begun, and wait: c for row 3, b for row 4
        (1, 1, "c", [5, 6]),
        (1, 2, "c", [7]),
        (2, 0, "b", [4, 5]),
        (2, 1, "b", [6, 7]),
    ]


def test_a_row_that_all_channels_lack_parts_no_stream() -> None:
    gappy: list[float | None] = [0, 1, 2, None, None, 5, 6, 7]

    assert sorted(shape(cut(safe(3, "own_stream", gappy, gappy, gappy)))) == [
        (0, 0, "abc", [0, 1, 2]),
        (0, 1, "abc", [5, 6, 7]),
    ]


def test_channels_whose_wait_ends_with_the_same_row_share_a_stream() -> None:
    a: list[float | None] = [0, 1, 2, 3, 4, 5]
    b: list[float | None] = [None, None, None, 3, 4, 5]
    c: list[float | None] = [0, 1, None, 3, 4, 5]

    assert sorted(shape(cut(safe(2, "own_stream", a, b, c)))) == [
        (0, 0, "ac", [0, 1]),
        (0, 1, "a", [2, 3]),
        (0, 2, "a", [4, 5]),
        (1, 0, "bc", [3, 4]),
        (1, 1, "bc", [5]),
    ]


def test_channels_that_come_late_get_a_stream_with_their_first_value() -> None:
    story = safe(2, "own_stream", [0, 1])
    story.layouts.append(layout_of(1, "axy"))
    story.rows += [Row(1, n, T0 + n, "", [float(n), None if n < 4 else 1.0, None]) for n in (2, 3, 4, 5)]

    assert [one for one in sorted(shape(cut(story))) if one[0]] == [(1, 0, "x", [4, 5])]
