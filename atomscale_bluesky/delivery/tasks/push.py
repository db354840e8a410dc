"""Pushes full chunks. Before a chunk leaves for the first time, its rows are synced and their range is noted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

import msgspec

from ...errors import ApiError
from ...model.chunk import Chunk
from ...spool.ledger_format import Confirmed, Refused, Tried
from ...spool.stream_state import Life, MetrologyStreamState
from ..refusals import is_too_large
from ..stream_end_rules import end_stream
from .chunk_requests import ChunkWork, Sent
from .work import Kind

if TYPE_CHECKING:
    from ..claimed_run import ClaimedRun

_logger = logging.getLogger(__name__)


class Push(ChunkWork, frozen=True, eq=False):
    """Push a full chunk, or what is left of it."""

    kind: ClassVar[Kind] = Kind.PUSH

    may_be_there: bool = False  # an earlier attempt, perhaps of another process, may have been applied

    def apply_result(self, run: ClaimedRun, result: Sent) -> None:
        """Note which channels are confirmed and which are refused, or let the stream end."""
        if result.closed:
            in_doubt = self.chunk if self.may_be_there else None
            end_stream(run, self.stream, "closed by the server", self.points_per_chunk, in_doubt)
        elif any(map(is_too_large, result.refused.values())) and self._may_be_halved(run, result):
            if result.confirmed:  # close to the limit, a channel's digits decide
                run.ledger.note(Confirmed(self.stream, self.chunk.index, run.unix_time(), result.confirmed))
            end_stream(run, self.stream, "too large", max(1, self.points_per_chunk // 2), None)
        else:
            self._answered(run, result)

    def _may_be_halved(self, run: ClaimedRun, result: Sent) -> bool:
        """Return True if the points of a chunk that is too large may go into smaller chunks of a further stream.

        Not if the stream holds all points of some channels of a chunk that was shown, and shows a part of the others':
        it cannot end there, and these would be there twice. Then what is too large waits for the operator.
        """
        stream = run.streams[self.stream]
        shown = None if stream.last_preview_taken is None else stream.last_preview_taken.index
        in_part = shown in stream.confirmed_channels or (shown == self.chunk.index and result.confirmed)
        return self.points_per_chunk > 1 and not in_part

    def _answered(self, run: ClaimedRun, result: Sent) -> None:
        confirmed, refused, index = result.confirmed, result.refused, self.chunk.index
        names = self.chunk.names
        if refused and not confirmed and refused.keys() >= {*names}:
            reason = str(next(iter(refused.values())))
            if run.previews.end_refused_chunk(run.streams[self.stream], index, reason):
                run.request_reload("a refused chunk ends with what was shown of it")
                return
        for name, error in refused.items():
            run.ledger.note(Refused(self.stream, index, (name,), error.status, str(error)))
            run.pushed_singly.setdefault(self.stream, set()).add(name)
            _logger.error(
                "chunk %d of channel %r in %r was refused and is kept: %s; see `atomscale-bluesky status%s`",
                index, name, self.label, error, run.server_facts.spool_option,
            )  # fmt: skip
        if confirmed:
            whole = confirmed == names or {*confirmed} >= {*names}
            run.ledger.note(Confirmed(self.stream, index, run.unix_time(), None if whole else confirmed))
            if self.stream in run.pushed_singly:
                run.pushed_singly[self.stream].difference_update(confirmed)  # taken again, so sent with the others

    def apply_failure(self, run: ClaimedRun, error: ApiError, part: Sent | None) -> Push:
        """Note the channels that were confirmed, and return the others."""
        chunk = self.chunk
        if part is not None and part.confirmed:
            run.ledger.note(Confirmed(self.stream, chunk.index, run.unix_time(), part.confirmed))
            chunk = chunk.with_channels(name for name in chunk.names if name not in part.confirmed)
        return msgspec.structs.replace(self, chunk=chunk, may_be_there=True)


def next_work(run: ClaimedRun, now: float) -> Push | None:
    """Return the next chunk that can leave, noted as tried. Read the journal on if none is ready.

    Args:
        run: Whose chunk.
        now: Monotonic.
    """
    if not (run.run_chunker.results.ready or run.run_chunker.all_cut):
        run.run_chunker.read_on()
        if run.run_chunker.at_end:
            run.previews.note_journal_read(now)
    if run.offset_unknown:
        return None  # the shift of a chunk's times is noted before its first attempt
    chunk = run.run_chunker.results.pop_ready(lambda chunk: _may_leave(run, chunk))
    if chunk is None:
        return None
    run.run_chunker.sync()
    stream = run.streams[chunk.stream]
    tried_before = chunk.index < stream.next_index
    if not tried_before:
        # If a power cut took this note, the preview sent before would be sent again, and that has fewer points.
        run.ledger.note(Tried.of(chunk), sync=stream.last_preview is not None)
    opening = stream.opening
    return Push(
        opening.stream,
        opening.label,
        stream.data_id or "",
        stream.family or "",
        opening.points_per_chunk,
        run.as_sent(_unconfirmed(stream, chunk)),
        frozenset(run.pushed_singly.get(opening.stream, ())),
        tried_before,
    )


def _may_leave(run: ClaimedRun, chunk: Chunk) -> bool:
    stream = run.streams[chunk.stream]
    if stream.life is not Life.INITIALIZED or chunk.stream in run.streams_about_to_end:
        return False  # it waits for its data_id, or for that of its continuation
    if run.unfinished_tasks.holds(Kind.PREVIEW, chunk.stream) or stream.may_be_cut_short_before(chunk.index):
        return False
    # The first chunk leaves alone. It shows whether the server takes chunks of this kind and size.
    return stream.has_an_answer or not run.unfinished_tasks.holds(Kind.PUSH, chunk.stream)


def _unconfirmed(stream: MetrologyStreamState, chunk: Chunk) -> Chunk:
    """Return the channels of a chunk that are not confirmed yet."""
    confirmed = stream.confirmed_channels.get(chunk.index)
    return chunk.with_channels(name for name in chunk.names if name not in confirmed) if confirmed else chunk
