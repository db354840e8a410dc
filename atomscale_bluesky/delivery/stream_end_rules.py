"""Finds metrology streams that take no more points, and their chunks in doubt. `streams_about_to_end` has the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..model.chunk import Chunk
from ..spool.ledger_format import NO_POINT, Ended, OpeningReason
from ..spool.stream_state import Life, MetrologyStreamState
from .tasks.work import Kind
from .unfinished_tasks import Task

if TYPE_CHECKING:
    from .claimed_run import ClaimedRun


def end_stream(run: ClaimedRun, stream: int, why: OpeningReason, points_per_chunk: int, in_doubt: Chunk | None) -> None:
    """Let a stream, and those that share it, take no more points.

    Its other points go into a continuation once none of its requests is under way.

    Args:
        run: Whose stream.
        stream: The stream that takes no more.
        why: The reason.
        points_per_chunk: Of the continuations.
        in_doubt: A chunk that a closed stream did not take now, but perhaps in an earlier attempt.
    """
    for one in run.streams[stream].group:
        if one.ended:
            continue
        number = one.opening.stream
        doubtful: list[Chunk] = []
        failed = run.pop_failed({number})
        if why == "closed by the server":
            doubtful = _chunks_in_doubt(run, one, failed, in_doubt if number == stream else None)
        else:
            # Pushing them again tells whether they were taken. The stream ends after that.
            for task in filter(_may_have_arrived, failed):
                run.keep_for_retry(task)
        run.streams_about_to_end.begin(number, why, points_per_chunk, doubtful)


def _chunks_in_doubt(
    run: ClaimedRun, stream: MetrologyStreamState, failed: Iterable[Task], in_doubt: Chunk | None
) -> list[Chunk]:
    """Return the chunks that a closed stream may have taken. Drops those that are ready."""
    _read_what_was_tried(run, stream)
    doubtful = [] if in_doubt is None else [in_doubt]
    doubtful += [task.chunk for task in failed if task.chunk is not None and _may_have_arrived(task)]
    dropped = run.run_chunker.results.drop_ready({stream.opening.stream})
    doubtful += [run.as_sent(chunk) for chunk in dropped if chunk.index < stream.next_index]
    return doubtful


def _may_have_arrived(task: Task) -> bool:
    return task.attempts > 0 or bool(getattr(task.work, "may_be_there", False))


def _read_what_was_tried(run: ClaimedRun, stream: MetrologyStreamState) -> None:
    """Read the journal up to every chunk that a process before this one may have pushed."""
    last_row = max((tried.last_row for tried in stream.tried.values()), default=-1)
    while run.run_chunker.account.next_row.get(stream.opening.time_base, 0) <= last_row:
        run.run_chunker.read_on()
        if run.run_chunker.at_end:
            return


def end_damaged_streams(run: ClaimedRun) -> None:
    """End streams of which a tried chunk is no longer whole in the journal, so that it cannot be sent."""
    for chunk in run.run_chunker.results.pop_damaged():
        points = run.streams[chunk.stream].opening.points_per_chunk
        run.streams_about_to_end.begin(chunk.stream, "damaged", points, [run.as_sent(chunk)])
    if not run.run_chunker.all_cut or run.run_chunker.results.ready or run.unfinished_tasks.is_busy:
        return
    for number, stream in run.streams.items():
        if stream.life is not Life.INITIALIZED or stream.group_parked:
            continue  # nothing is cut for a group that waits for the operator, so a chunk of it may wait for that
        if stream.tried.keys() - stream.refused.keys():
            # All has been read and pushed, and yet a chunk waits: none of its rows is left.
            run.streams_about_to_end.begin(number, "damaged", stream.opening.points_per_chunk)


def end_streams_without_a_point(run: ClaimedRun) -> None:
    """End the streams that were opened for rows which never came: they are not made."""
    if run.must_reload or not run.run_chunker.all_cut:
        return  # `must_reload`: the rows of a stream that was opened just now are read next
    for number, stream in run.streams.items():
        if not run.is_made_at_once(number) and stream.is_not_requested and not run.run_chunker.has_point(stream):
            run.ledger.note(Ended(number, NO_POINT))


def end_outgrown_streams(run: ClaimedRun) -> None:
    """End streams whose chunk was cut short at a preview. The rows after it go into a continuation."""
    results, tasks = run.run_chunker.results, run.unfinished_tasks
    for number in results.pop_to_cut_short(lambda one: not tasks.holds(Kind.PREVIEW, one)):
        if not run.previews.cut_short(run.streams[number]):
            run.request_reload("a preview was not taken, so its chunk is made as usual")
    for number in results.outgrown:
        stream = run.streams[number]
        cut_short = stream.last_tried is not None and stream.last_tried.cut_short
        if cut_short and stream.all_confirmed and not (stream.ended or stream.group_parked):
            run.streams_about_to_end.begin(number, "preview", stream.opening.points_per_chunk)
