"""What cutting a run's journal has given, until delivery takes it: chunks, and streams that take no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Container

from ..model.chunk import Chunk
from ..spool.ledger_state import LedgerState
from ..spool.stream_state import Life


class CutResults:
    """The results for one run. Only a `RunChunker` adds to them. Belongs to the deciding thread.

    Args:
        state: How far the run has got, as its ledger tells.

    Attributes:
        ready: The chunks that are to be pushed next, in order.
        outgrown: The streams that take no more, though more rows are there.
    """

    def __init__(self, state: LedgerState) -> None:
        self._state = state
        self._ready: deque[Chunk] = deque()
        self._damaged: list[Chunk] = []
        self._to_cut_short: set[int] = set()
        self._outgrown: set[int] = set()
        # Attributes and no properties, since `ready` is asked for at each line of the journal.
        self.ready: Collection[Chunk] = self._ready
        self.outgrown: Collection[int] = self._outgrown

    # ---- what the rules have decided ---------------------------------------------------------------------------------

    def add_if_to_push(self, chunk: Chunk) -> None:
        """Add a chunk that is still to be pushed. Drop one that is confirmed or refused already."""
        stream = self._state.streams[chunk.stream]
        noted = stream.tried.get(chunk.index)
        if (noted is None and chunk.index < stream.next_index) or chunk.index in stream.refused or stream.group_parked:
            return
        if stream.life in {Life.FINALIZING, Life.FINALIZED}:
            return  # it takes no more: these points wait, and the account counts them
        if noted is not None and chunk.points < noted.points:
            self._damaged.append(chunk)
        else:
            self._ready.append(chunk)

    def add_to_cut_short(self, stream: int) -> None:
        """Add a stream whose next chunk must end with its preview's rows."""
        self._to_cut_short.add(stream)

    def add_outgrown(self, stream: int) -> None:
        """Add a stream that takes no more, though more rows are there."""
        self._outgrown.add(stream)

    # ---- what delivery takes -----------------------------------------------------------------------------------------

    def pop_ready(self, may_leave: Callable[[Chunk], bool]) -> Chunk | None:
        """Remove and return the first chunk that may leave; None if none may."""
        for place, chunk in enumerate(self._ready):
            if may_leave(chunk):
                del self._ready[place]
                return chunk
        return None

    def drop_ready(self, streams: Container[int]) -> list[Chunk]:
        """Drop the chunks of some streams that were made and have not left, and return them."""
        dropped = [chunk for chunk in self._ready if chunk.stream in streams]
        kept = [chunk for chunk in self._ready if chunk.stream not in streams]
        self._ready.clear()
        self._ready.extend(kept)
        return dropped

    def pop_damaged(self) -> list[Chunk]:
        """Remove and return the chunks that were tried and are no longer whole in the journal. They are never sent."""
        taken, self._damaged = self._damaged, []
        return taken

    def pop_to_cut_short(self, may_end: Callable[[int], bool]) -> list[int]:
        """Remove and return the streams that may end now, and whose next chunk must end with its preview's rows."""
        taken = [stream for stream in self._to_cut_short if may_end(stream)]
        self._to_cut_short.difference_update(taken)
        return taken
