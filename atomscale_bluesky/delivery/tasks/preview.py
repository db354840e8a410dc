"""Sends the newest points of a slow stream before their chunk is full. `previews` has the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...errors import ApiError
from ..refusals import surely_did_nothing
from ..stream_end_rules import end_stream
from .chunk_requests import ChunkWork, Sent
from .work import Kind

if TYPE_CHECKING:
    from ..claimed_run import ClaimedRun


class Preview(ChunkWork, frozen=True, eq=False):
    """Send the beginning of a chunk. Never tried again: the next one has more points."""

    kind: ClassVar[Kind] = Kind.PREVIEW
    finds_refused: ClassVar[bool] = False  # nothing needs to know which channel it is

    def apply_result(self, run: ClaimedRun, result: Sent) -> None:
        """Note that it is shown or that the server takes no previews, or let the stream end."""
        if result.closed:
            run.unfinished_tasks.hold(Kind.PREVIEW, self.stream)  # until the run's files are read again
            end_stream(run, self.stream, "closed by the server", self.points_per_chunk, None)
        elif not result.refused:
            run.previews.note_taken(self.stream)
        elif result.confirmed:  # some channels are taken, which cannot be undone, so this is the chunk
            self._not_answered(run, in_doubt=True)
        elif run.previews.note_refused(self.stream, str(next(iter(result.refused.values())))):
            run.request_reload("a chunk ends with the last preview that was taken")

    def park(self, run: ClaimedRun, reason: str) -> None:
        """Park the stream. Nothing more is shown of it until the run's files are read again."""
        super().park(run, reason)
        run.unfinished_tasks.hold(Kind.PREVIEW, self.stream)

    def apply_failure(self, run: ClaimedRun, error: ApiError, part: Sent | None) -> None:
        """Note that it was not answered. It may be applied now or later, unless it surely did nothing."""
        some = part is not None and bool(part.confirmed)
        self._not_answered(run, in_doubt=some or not surely_did_nothing(error))

    def put_back(self, run: ClaimedRun) -> None:
        """Note that it did not leave."""
        self._not_answered(run, in_doubt=False)

    def _not_answered(self, run: ClaimedRun, *, in_doubt: bool) -> None:
        if run.previews.note_failed(self.stream, in_doubt=in_doubt):
            run.request_reload("a chunk ends with a preview that was not answered")


def next_work(run: ClaimedRun, now: float) -> Preview | None:
    """Return the next preview that is due by a monotonic clock, noted and synced."""
    if run.offset_unknown or run.run_chunker.results.ready or not run.run_chunker.at_end:
        return None

    def is_quiet(number: int) -> bool:
        tasks = run.unfinished_tasks
        return not (tasks.is_in_flight(number) or tasks.holds(Kind.PUSH, number) or number in run.streams_about_to_end)

    chunk = run.previews.next_chunk(now, is_quiet)
    if chunk is None:
        return None
    stream = run.streams[chunk.stream]
    opening = stream.opening
    return Preview(
        opening.stream,
        opening.label,
        stream.data_id or "",
        stream.family or "",
        opening.points_per_chunk,
        run.as_sent(chunk),
        frozenset(run.pushed_singly.get(opening.stream, ())),
    )
