"""Previews: the newest points of slow streams, shown before their chunk is full.

A preview is the beginning of a chunk, up to the newest row, sent under the chunk's own index. The full chunk replaces
it later. Its rows are synced and its range is noted and synced before it leaves. So whatever happens, the points sent
under an index only grow, and always begin with the same ones. A preview confirms nothing.

One request per index is under way at a time, and the next one leaves only after the last was answered. In three cases
there can be no next one:

    - no answer came, so the preview may be applied at any later time
    - the server takes no more points under an index that it holds
    - a channel has a gap after the points that were shown

Then the chunk is cut short: it ends with the points that were shown, for ever, and the rest goes on in a
continuation. So a request that is applied late writes what is there already.

Bounded: a run whose previews have cost it `MAX_CONTINUATIONS` makes no more of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..chunking.run_chunker import RunChunker
from ..model.chunk import Chunk
from ..spool.journal_format import Header
from ..spool.ledger import Ledger
from ..spool.ledger_format import Confirmed, PreviewAnswered, Previewed, PreviewsEnded
from ..spool.ledger_state import LedgerState
from ..spool.stream_state import Life, MetrologyStreamState

_logger = logging.getLogger(__name__)

# After this many streams that ended at a preview, a run goes on without previews.
MAX_CONTINUATIONS = 10


def cut_short_in_doubt(ledger: Ledger) -> bool:
    """Cut chunks short whose preview was never answered. They end with the preview, and are pushed like any other.

    To be called before the journal is read for chunks, with no preview under way. Return True if there were any.
    """
    found = False
    for stream in ledger.state.streams.values():
        sent = stream.last_preview
        if sent is not None and sent is not stream.last_preview_taken and sent.index == stream.next_index:
            ledger.note(sent.as_tried(cut_short=True), sync=True)
            found = True
    return found


class Previews:
    """The previews of one run. Belongs to the deciding thread.

    Args:
        header: Says how long a point may wait.
        ledger: Where each preview is noted before it leaves.
        run_chunker: Has the chunks that are not full.
        unix_time: Returns Unix seconds. A test passes its own.
    """

    def __init__(self, header: Header, ledger: Ledger, run_chunker: RunChunker, unix_time: Callable[[], float]) -> None:
        self.asked_at = 0.0  # monotonic, as every time here except `unix_time()`
        self._header = header
        self._ledger = ledger
        self._run_chunker = run_chunker
        self._unix_time = unix_time
        self._limit_s = header.max_latency_s
        self._read_at: float | None = None
        self._since: dict[int, tuple[int, float]] = {}  # stream → chunk, and since when a point of it may wait unseen

    @property
    def _state(self) -> LedgerState:
        return self._ledger.state

    @property
    def wanted(self) -> bool:
        """Return True if this run makes previews."""
        return self._limit_s > 0 and self._state.previews_ended is None

    def note_journal_read(self, now: float) -> None:
        """Note that the journal was read to its present end: new rows came after the call before this one."""
        if not self.wanted:
            return
        # Rows that are found at first may have waited for long, while no process delivered.
        before = now - self._limit_s if self._read_at is None else self._read_at
        self._read_at = now
        since: dict[int, tuple[int, float]] = {}
        for number, index, last_row in self._run_chunker.unfinished():
            sent = self._state.streams[number].last_preview
            if sent is not None and sent.index == index and sent.last_row >= last_row:
                continue
            known = self._since.get(number)
            since[number] = known if known and known[0] == index else (index, before)
        self._since = since

    def next_due(self) -> float | None:
        """Return when to read the journal again or send a preview. None if no such time is after `asked_at`."""
        if not self.wanted or self._read_at is None or self._run_chunker.all_cut:
            return None
        times = [self._read_at + self._limit_s / 2, *(at + self._limit_s for _, at in self._since.values())]
        return min((time for time in times if time > self.asked_at), default=None)

    def next_chunk(self, now: float, may_leave: Callable[[int], bool]) -> Chunk | None:
        """Return the next preview, noted as sent, or None if none is due.

        Args:
            now: Monotonic.
            may_leave: Returns True if nothing else of a stream is under way.
        """
        if not self.wanted:
            return None
        for number, (index, since) in list(self._since.items()):
            stream = self._state.streams[number]
            if now < since + self._limit_s or stream.life is not Life.INITIALIZED or index != stream.next_index:
                continue
            if stream.group_parked or not may_leave(number):
                continue
            if sum(one.opening.why == "preview" for one in self._state.streams.values()) >= MAX_CONTINUATIONS:
                self._end(f"they have cost {MAX_CONTINUATIONS} further streams")
                return None
            del self._since[number]
            chunk = self._run_chunker.preview_of(stream)
            if chunk is not None:
                self._run_chunker.sync()
                self._ledger.note(Previewed.of(chunk))
                return chunk
        return None

    def note_taken(self, stream: int) -> None:
        """Note that Atomscale has taken a preview."""
        self._note_answer(stream, taken=True)

    # ---- other outcomes: each returns True if the run's files have to be read again ----------------------------------

    def note_failed(self, stream: int, *, in_doubt: bool) -> bool:
        """Note that there was no answer, or no useful one. It is in doubt if it may be applied now or later."""
        if in_doubt:
            return cut_short_in_doubt(self._ledger)
        self._note_answer(stream, taken=False)
        return False

    def note_refused(self, stream: int, reason: str) -> bool:
        """Note that the server refuses a preview. The chunk ends with the preview that it took before, if any."""
        self._note_answer(stream, taken=False)
        self._end(reason)
        return self.cut_short(self._state.streams[stream])

    def end_refused_chunk(self, stream: MetrologyStreamState, index: int, reason: str) -> bool:
        """Note that the server takes no channel of a chunk. If it was shown, it ends with that, which confirms it."""
        if stream.last_preview_taken is None or stream.last_preview_taken.index != index or not self.cut_short(stream):
            return False
        self._end(reason)
        return True

    def cut_short(self, stream: MetrologyStreamState) -> bool:
        """End the chunk of which points were shown with these, which confirms it. Return False if there is none."""
        shown = stream.last_preview_taken
        if shown is None or stream.ended or shown.index in stream.confirmed_channels:
            return False
        with self._ledger.together():
            self._ledger.note(shown.as_tried(cut_short=True))
            self._ledger.note(Confirmed(shown.stream, shown.index, self._unix_time()))
        return True

    def _note_answer(self, stream: int, *, taken: bool) -> None:
        sent = self._state.streams[stream].last_preview
        if sent is not None:
            self._ledger.note(PreviewAnswered(stream, sent.index, taken))

    def _end(self, reason: str) -> None:
        if self._state.previews_ended is None:
            self._ledger.note(PreviewsEnded(reason))
            _logger.warning(
                "run %s makes no more previews, its points are shown chunk by chunk: %s; set `max_latency_s` to 0 "
                "if this server never takes a chunk that has grown",
                self._header.run_uid, reason,
            )  # fmt: skip
