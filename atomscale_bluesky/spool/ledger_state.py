"""The state that a run's ledger adds up to: a fold over its facts. Touches no file.

The facts about one metrology stream add up to its `stream_state`.
"""

from __future__ import annotations

from ..errors import SpoolError
from ..model.identifiers import FAMILIES, is_id
from .ledger_format import (
    NO_POINT,
    ChannelLeft,
    ClockFixed,
    Confirmed,
    Discarded,
    Edited,
    Ended,
    Finalized,
    Finalizing,
    GivenUp,
    Initialized,
    Initializing,
    LedgerLine,
    Linked,
    LinkRefused,
    Moved,
    Obeyed,
    Opened,
    Parked,
    PreviewAnswered,
    Previewed,
    PreviewsEnded,
    Refused,
    Resolved,
    Together,
    Tried,
    Unparked,
    Unresolved,
    Verified,
)
from .stream_state import NO_END, Life, MetrologyStreamState, Refusal


class LedgerState:
    """The fold of a run's ledger: apply each fact, then read the attributes."""

    def __init__(self) -> None:
        self.endpoint: str | None = None  # the endpoint that the operator moved the run to
        self.edited: Edited | None = None
        self.orders_obeyed: int = 0
        self._reset()

    def _reset(self) -> None:
        """Reset the state: nothing of the run has reached its endpoint yet."""
        self.streams: dict[int, MetrologyStreamState] = {}
        self.parked: str | None = None  # why the whole run waits for the operator
        self.resolved: Resolved | None = None  # the ids of the links' names
        self.unresolved: str | None = None  # why there are no such ids
        self.discarded: float | None = None
        self.clock: ClockFixed | None = None
        self.previews_ended: str | None = None  # why no further preview is made
        self.verified: float | None = None
        # Why the rest of the ledger cannot be understood. From there on only the operator's orders count.
        self.broken: str | None = None
        self.may_have_moved = False  # the damaged part may have noted a move
        self.broken_was_noted = False

    @property
    def parked_reason(self) -> str | None:
        """Why the whole run waits for the operator, whatever its header says: it is parked, or its ledger is broken."""
        return self.broken or self.parked

    @property
    def is_initialized(self) -> bool:
        """Return True if Atomscale has a stream of the run."""
        return any(stream.data_id is not None for stream in self.streams.values())

    @property
    def is_done(self) -> bool:
        """Return True if nothing of the run is left to deliver."""
        return bool(self.discarded or (self.streams and all(stream.is_done for stream in self.streams.values())))

    def apply(self, fact: LedgerLine) -> None:
        """Apply one fact to the state.

        Raises:
            SpoolError: The fact cannot follow the known facts.
        """
        match fact:
            case Opened():
                if fact.stream in self.streams:
                    raise SpoolError(
                        f"metrology stream {fact.stream} is open already; do two uploaders share this run?"
                    )
                self._opened(fact)
            case Initializing():
                stream = self._stream(fact.stream, Life.OPENED, Life.INITIALIZING)
                _check_family(fact.family)
                stream.life, stream.family = Life.INITIALIZING, fact.family
            case Initialized():
                stream = self._stream(fact.stream, Life.OPENED, Life.INITIALIZING)
                _check_ids(fact.data_id)
                _check_family(fact.family)
                for one in stream.group:
                    one.life, one.data_id, one.family = Life.INITIALIZED, fact.data_id, fact.family
                    one.parked = None  # the reason for parking has passed
            case ChannelLeft():
                left = self._stream(fact.stream).left_at_row
                left[fact.channel] = min(fact.from_row, left.get(fact.channel, NO_END))
            case Tried():
                self._tried(fact)
            case Previewed():
                self._previewed(fact)
            case PreviewAnswered():
                stream = self._stream(fact.stream)
                if stream.last_preview is not None and stream.last_preview.index == fact.index:
                    if fact.taken:
                        stream.last_preview_taken = stream.last_preview
                    else:
                        stream.last_preview = stream.last_preview_taken
            case PreviewsEnded():
                self.previews_ended = fact.reason
            case Confirmed():
                self._confirmed(fact)
            case Refused():
                stream = self._stream(fact.stream, Life.INITIALIZED)
                if fact.index not in stream.tried:
                    raise SpoolError(f"chunk {fact.index} of metrology stream {fact.stream} is not under way")
                known = stream.refused.get(fact.index)
                channels = frozenset(fact.channels) | (known.channels if known else frozenset())
                stream.refused[fact.index] = Refusal(channels, fact.status, fact.reason)
            case Parked(stream=None):
                self.parked = fact.reason
            case Parked():
                self._stream(fact.stream or 0).parked = fact.reason
            case GivenUp():
                pass  # the channel waits for a stream like any other
            case Obeyed():
                self.orders_obeyed = fact.order
            case Ended():
                self._ended(fact)
            case Unparked():
                self._unpark_all(fact.order)
            case Edited():
                self.edited = fact
                self._unpark_all(fact.order)
            case Moved():
                self._reset()
                self.endpoint = fact.endpoint
                self.orders_obeyed = fact.order
            case Discarded():
                self.discarded = fact.time
                self.orders_obeyed = fact.order
            case Resolved():
                _check_ids(fact.links.project_id, fact.links.physical_sample_id, *fact.links.tags)
                self.resolved, self.unresolved = fact, None
            case Unresolved():
                self.unresolved = fact.reason
            case Linked():
                stream = self._stream(fact.stream)
                stream.linked.add((fact.link, fact.to))
                stream.renamed = fact.to if fact.link == "label" else stream.renamed
                stream.links_refused.pop((fact.link, fact.to), None)
            case LinkRefused():
                stream = self._stream(fact.stream)
                if (fact.link, fact.to) not in stream.linked:
                    stream.links_refused[fact.link, fact.to] = fact.reason
            case Finalizing():
                stream = self._stream(fact.stream, Life.INITIALIZED, Life.FINALIZING)
                if not all(one.all_confirmed for one in stream.group):
                    raise SpoolError(f"metrology stream {fact.stream} has chunks that are not confirmed; it stays open")
                for one in stream.group:
                    one.life = Life.FINALIZING
            case Finalized():
                stream = self._stream(fact.stream, Life.FINALIZING)
                for one in stream.group:
                    one.life, one.finalized_at = Life.FINALIZED, fact.time
            case ClockFixed():
                if self.clock is not None:
                    raise SpoolError("the clock of this run is fixed already; do two uploaders share this run?")
                self.clock = fact
            case Verified():
                self.verified = fact.time
            case Together():
                for one in fact.facts:
                    self.apply(one)
            case _:
                raise SpoolError(
                    f"the ledger cannot note {type(fact).__name__}: the package was loaded again in this process; "
                    f"restart the session"
                )

    def _opened(self, fact: Opened) -> None:
        stream = self.streams[fact.stream] = MetrologyStreamState(fact)
        if fact.joins is None:
            stream.group = [stream]
            return
        host = self._stream(fact.joins, Life.OPENED, Life.INITIALIZING, Life.INITIALIZED)
        stream.group = host.group
        stream.group.append(stream)
        stream.life, stream.data_id, stream.family = host.life, host.data_id, host.family

    def _stream(self, number: int, *lives: Life) -> MetrologyStreamState:
        stream = self.streams.get(number)
        if stream is None or (lives and stream.life not in lives):
            life = "unknown" if stream is None else stream.life.value
            raise SpoolError(
                f"metrology stream {number} is {life}, so this cannot follow; do two uploaders share this run?"
            )
        return stream

    def _tried(self, fact: Tried) -> None:
        stream = self._stream(fact.stream)
        if fact.cut_short and fact.index in stream.tried and fact.index not in stream.confirmed_channels:
            del stream.tried[fact.index]  # the whole chunk was tried, and not taken like that
            stream.refused.pop(fact.index, None)
            stream.next_index = fact.index
        if fact.index != stream.next_index:
            raise SpoolError(
                f"chunk {fact.index} of metrology stream {fact.stream} cannot follow {stream.next_index - 1}"
            )
        stream.tried[fact.index] = stream.last_tried = fact
        stream.next_index += 1

    def _previewed(self, fact: Previewed) -> None:
        stream = self._stream(fact.stream, Life.INITIALIZED)
        before = stream.last_preview
        if (
            fact.index != stream.next_index
            or before is not stream.last_preview_taken
            or (before and before.points >= fact.points)
        ):
            raise SpoolError(
                f"a preview of chunk {fact.index} of metrology stream {fact.stream} with {fact.points} points cannot "
                f"follow what was sent before; do two uploaders share this run?"
            )
        stream.last_preview = fact

    def _confirmed(self, fact: Confirmed) -> None:
        stream = self._stream(fact.stream, Life.INITIALIZED)
        tried = stream.tried.get(fact.index)
        if tried is None:
            raise SpoolError(
                f"chunk {fact.index} of metrology stream {fact.stream} is not under way, so it cannot become "
                f"confirmed; do two uploaders share this run?"
            )
        stream.confirmed_at = fact.time
        if fact.channels is None and fact.index not in stream.confirmed_channels and fact.index not in stream.refused:
            stream.delivered[tried.channels] += tried.points  # wholly confirmed at once, as nearly always
            stream.confirm(tried)
            return
        before = stream.confirmed_channels.pop(fact.index, set())
        now = set(fact.channels if fact.channels is not None else tried.channels) - before
        confirmed = tuple(name for name in tried.channels if name in now)
        if confirmed:  # none where the same is noted twice
            stream.delivered[confirmed] += tried.points
        refusal = stream.refused.get(fact.index)
        if refusal is not None:
            refusal.channels -= now
            if not refusal.channels:
                del stream.refused[fact.index]
        if before | now >= set(tried.channels):
            stream.confirm(tried)
        else:
            stream.confirmed_channels[fact.index] = before | now

    def _ended(self, fact: Ended) -> None:
        stream = self._stream(fact.stream, Life.OPENED if fact.why == NO_POINT else Life.INITIALIZED)
        stream.ended = fact.why
        if fact.why in {"closed by the server", NO_POINT} or stream.has_hole:
            stream.life = Life.CLOSED  # a stream with a hole is never finalized
        stream.tried.clear()
        stream.refused.clear()
        stream.confirmed_channels.clear()
        stream.last_preview = stream.last_preview_taken = None

    def _unpark_all(self, order: int) -> None:
        """Let everything that was parked or refused be tried again."""
        self.orders_obeyed = order
        self.parked = self.unresolved = None
        if not self.is_initialized:
            self.resolved = None  # the id of a name may be gone
        for stream in self.streams.values():
            stream.parked = None
            stream.refused.clear()
            stream.links_refused.clear()


class NoIdError(SpoolError):
    """A ledger holds a text that cannot be an id or a path family; this package did not write it."""


def _check_ids(*ids: str | None) -> None:
    """Check that a ledger's ids can be ids: they become part of requests that carry the API key.

    Raises:
        NoIdError: One of them cannot be an id.
    """
    for one in ids:
        if one is not None and not is_id(one):
            raise NoIdError(
                f"the ledger names {one!r:.80} as an id, which cannot be one, so nothing is sent for this run. Where "
                f"did its folder come from? Move it away, or take the line out of `ledger.jsonl`"
            )


def _check_family(family: str) -> None:
    """Check that a ledger's path family is one.

    Raises:
        NoIdError: It is not a path family.
    """
    if family not in FAMILIES:
        raise NoIdError(
            f"the ledger names {family!r:.80} as a path family, expected one of {', '.join(FAMILIES)}, so nothing is "
            f"sent for this run. Where did its folder come from? Move it away, or update the package"
        )
