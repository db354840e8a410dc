"""Reads what a stream that ended holds, if chunks of it are in doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import msgspec

from ...api.answers import PointsByChannel
from ...api.client import Client
from ...errors import ApiRefusedError
from .. import backoff
from .work import Kind, RetryAfter, Work, WorkerContext

if TYPE_CHECKING:
    from ..claimed_run import ClaimedRun

# How often stored points are read before a difference counts: for a minute and a half, with growing pauses.
MAX_READS = 8


class ReadBack(Work[PointsByChannel], frozen=True, eq=False):
    """Read the points of a stream."""

    kind: ClassVar[Kind] = Kind.READ_BACK

    data_id: str
    family: str
    max_points: dict[str, int]  # channel → how many points of it may be there
    reads: int = 0  # how often fewer points were read than are confirmed

    def perform(self, client: Client, context: WorkerContext) -> PointsByChannel:
        """Read the points of these channels."""
        return client.points(self.family, self.data_id, self.max_points).points

    def apply_result(self, run: ClaimedRun, result: PointsByChannel) -> RetryAfter | None:
        """Count the chunks in doubt that are there as confirmed."""
        if self.reads < MAX_READS and run.streams_about_to_end.is_short(self.stream, result):
            # Not all confirmed points can be read yet. So points in doubt may be there too.
            return RetryAfter(msgspec.structs.replace(self, reads=self.reads + 1), backoff.READ.pause_s(self.reads))
        run.streams_about_to_end.note_read_back(self.stream, result)
        return None

    def apply_refusal(self, run: ClaimedRun, error: ApiRefusedError) -> None:
        """Count none of the chunks in doubt as confirmed, because the stream cannot be read."""
        run.streams_about_to_end.note_read_back(self.stream, {})


def next_work(run: ClaimedRun) -> ReadBack | None:
    """End the streams of which nothing is under way. Return one whose chunks are in doubt, which is read first."""
    tasks = run.unfinished_tasks

    def is_under_way(number: int) -> bool:
        """Return True if an answer about what the stream holds is still to come."""
        return tasks.is_in_flight(number) or tasks.holds(Kind.PUSH, number) or tasks.holds(Kind.READ_BACK, number)

    def ended(number: int) -> None:
        run.previews.cut_short(run.streams[number])
        run.request_reload("a stream ended, and the rest goes on in a continuation")

    in_doubt = run.streams_about_to_end.end_streams(is_under_way, ended)
    if in_doubt is None:
        return None
    stream = run.streams[in_doubt]
    max_points = run.streams_about_to_end.points_to_read(in_doubt)
    return ReadBack(in_doubt, stream.opening.label, stream.data_id or "", stream.family or "", max_points)
