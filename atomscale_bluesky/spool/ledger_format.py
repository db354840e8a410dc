"""Every line that a run's ledger may hold, as a type. Pure.

The uploader writes the ledger: what it is about to do with each metrology stream and chunk, and what Atomscale
answered. A kind or member that this version does not know makes the line unreadable, which is an error of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, Self

import msgspec

from ..errors import SpoolError
from ..model.chunk import Chunk
from ..model.endpoints import normalized_endpoint
from ..model.links import Links
from .lines import FileLine

OpeningReason = Literal[
    "run start",
    "event stream",
    "gap",
    "late channel",
    "closed by the server",
    "too large",
    "damaged",
    "preview",
    "no point",
]
# Why a stream ended that was opened for rows which never came. It is not made in Atomscale.
NO_POINT: Final = "no point"


class Fact(FileLine, frozen=True):
    """The base of all lines of a ledger."""

    # True: it is noted without a sync, because it can be found out again after a power cut, from the journal or by
    # pushing again. All other facts are synced when they are noted, because what is done next builds on them.
    unsynced: ClassVar[bool] = False


class Opened(Fact, frozen=True, tag="opened"):
    """An opening: starts a metrology stream of the run, before anything is done about it.

    The first one of a run is synced with the next line, which is synced before the stream is made in Atomscale. Any
    other is synced itself: a power cut could take it and leave later lines about other streams, which do not contradict
    that, so its rows would never be sent.
    """

    unsynced = True
    stream: int  # counts from 0 within the run
    time_base: str
    from_row: int
    why: OpeningReason
    label: str  # unique: it ends in the run's uid and a token of this stream's own
    token: str
    points_per_chunk: int
    segment: int  # where to start reading the journal to find its first row
    offset: int
    channels: tuple[str, ...] | None = None  # None: those of the time base's first layout
    own: bool = False  # of earlier versions, in which each channel with gaps had a stream of its own; ignored
    skip: tuple[tuple[int, int], ...] = ()  # (first, last) rows that an earlier stream holds, both included
    joins: int | None = None  # the opening whose metrology stream this one shares, instead of having its own


class Initializing(Fact, frozen=True, tag="initializing"):
    """A request to initialize is about to be sent on this path family: from here on the stream may exist."""

    stream: int
    family: str


class Initialized(Fact, frozen=True, tag="initialized"):
    """Atomscale has given the stream an id."""

    stream: int
    data_id: str
    family: str


class ChannelLeft(Fact, frozen=True, tag="left"):
    """A channel ends in this stream: from `from_row` on, no row gives it a point here."""

    unsynced = True
    stream: int
    channel: str
    from_row: int


class _Range(Fact, frozen=True):
    """Consecutive rows of a metrology stream under one index."""

    stream: int
    index: int
    first_row: int
    last_row: int
    points: int  # per channel
    channels: tuple[str, ...]
    segment: int  # where its first row stands in the journal
    offset: int
    last_time: float  # of its last point
    first_time: float | None = None

    @classmethod
    def of(cls, chunk: Chunk) -> Self:
        """Return the line that notes a chunk's rows under its index."""
        return cls(
            stream=chunk.stream,
            index=chunk.index,
            first_row=chunk.first_row,
            last_row=chunk.last_row,
            points=chunk.points,
            channels=chunk.names,
            segment=chunk.position.segment,
            offset=chunk.position.offset,
            last_time=chunk.times[-1],
            first_time=chunk.times[0],
        )


class Tried(_Range, frozen=True, tag="tried"):
    """A chunk is about to be pushed for the first time. From now on it always consists of these rows."""

    unsynced = True
    cut_short: bool = False  # it ends with the rows of a preview, and the metrology stream ends with it


class Previewed(_Range, frozen=True, tag="previewed"):
    """A preview is about to be sent. From now on the chunk of this index always begins with these rows."""

    def as_tried(self, *, cut_short: bool) -> Tried:
        """Return the same rows as a chunk that is tried."""
        return Tried(**msgspec.structs.asdict(self), cut_short=cut_short)


class PreviewAnswered(Fact, frozen=True, tag="preview_answered"):
    """Atomscale shows the last preview (`taken`), or it surely does not, and what it showed before stands."""

    unsynced = True
    stream: int
    index: int
    taken: bool


class PreviewsEnded(Fact, frozen=True, tag="previews_ended"):
    """The run makes no further preview."""

    reason: str


class Confirmed(Fact, frozen=True, tag="confirmed"):
    """Atomscale holds these channels of the chunk, or all channels that the chunk has."""

    unsynced = True
    stream: int
    index: int
    time: float
    channels: tuple[str, ...] | None = None


class Refused(Fact, frozen=True, tag="refused"):
    """Atomscale does not take these channels of the chunk as they are."""

    unsynced = True
    stream: int
    index: int
    channels: tuple[str, ...]
    status: int | None
    reason: str


class GivenUp(Fact, frozen=True, tag="given_up"):
    """Only in ledgers of earlier versions, which limited the number of streams: a channel that got none.

    It gets one now.
    """

    unsynced = True
    time_base: str
    channel: str


class Ended(Fact, frozen=True, tag="ended"):
    """The stream takes no further chunk. The remaining rows go into a continuation."""

    stream: int
    why: OpeningReason


class Obeyed(Fact, frozen=True, tag="obeyed"):
    """An order was carried out that needs no other line in the ledger."""

    order: int


class Discarded(Fact, frozen=True, tag="discarded"):
    """The operator gave up what this run still had waiting or refused."""

    time: float
    order: int


class Parked(Fact, frozen=True, tag="parked"):
    """The stream, or the whole run if no stream is named, waits for the operator."""

    reason: str
    stream: int | None = None


class Unparked(Fact, frozen=True, tag="unparked"):
    """The operator asked to try again what was parked or refused."""

    order: int


class Edited(Fact, frozen=True, tag="edited"):
    """The operator corrected the values with which the run's streams are initialized."""

    links: Links
    order: int
    points_per_chunk: int | None = None
    label: str | None = None  # None: that of the header


class Moved(Fact, frozen=True, tag="moved"):
    """The operator moved the run to another endpoint. Facts noted before do not hold there."""

    endpoint: str
    order: int

    def __post_init__(self) -> None:
        """Bring the endpoint, which an earlier version kept as it was written, into the form that is compared."""
        msgspec.structs.force_setattr(self, "endpoint", normalized_endpoint(self.endpoint))


class Resolved(Fact, frozen=True, tag="resolved"):
    """The ids in Atomscale of the names that the run is linked to: the same ids for every stream of the run."""

    links: Links  # with ids in place of names
    order: int = 0  # the edit that gave the names; 0 means the run's metadata


class Unresolved(Fact, frozen=True, tag="unresolved"):
    """Something that the run is to be linked to is not in Atomscale and cannot be made there."""

    reason: str


class Linked(Fact, frozen=True, tag="linked"):
    """Atomscale has made one link of an existing stream."""

    stream: int
    link: str  # sample, project, tracking, tags, ending or label
    to: str


class LinkRefused(Fact, frozen=True, tag="link_refused"):
    """Atomscale refuses one link. The stream's chunks are still sent, but the stream is not finalized."""

    stream: int
    link: str
    to: str
    reason: str


class Finalizing(Fact, frozen=True, tag="finalizing"):
    """A request to finalize is about to be sent. From now on nothing is pushed to the stream."""

    stream: int


class Finalized(Fact, frozen=True, tag="finalized"):
    """Atomscale has closed the stream, complete."""

    stream: int
    time: float


class ClockFixed(Fact, frozen=True, tag="clock_fixed"):
    """The shift of all times of the run to the server's clock when they are sent; subtract it to undo that."""

    offset_s: float
    time: float  # when it was measured
    # How long the exchange took; the shift is accurate to half of that. None: not measured, so no shift
    delay_s: float | None = None


class Verified(Fact, frozen=True, tag="verified"):
    """The whole run was read back, and everything is equal."""

    time: float


class Together(Fact, frozen=True, tag="together"):
    """Facts that belong together: a crash leaves all of them, or none."""

    facts: tuple[LedgerLine, ...]


LedgerLine = (
    Opened
    | Initializing
    | Initialized
    | ChannelLeft
    | Tried
    | Previewed
    | PreviewAnswered
    | PreviewsEnded
    | Confirmed
    | Refused
    | GivenUp
    | Ended
    | Discarded
    | Obeyed
    | Parked
    | Unparked
    | Edited
    | Moved
    | Resolved
    | Unresolved
    | Linked
    | LinkRefused
    | Finalizing
    | Finalized
    | ClockFixed
    | Verified
    | Together
)
_ledger_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(LedgerLine)


def decode_ledger(payload: bytes) -> LedgerLine:
    """Decode a ledger's line into its type.

    Raises:
        SpoolError: The line is intact, but of a kind or shape that this version does not know.
    """
    try:
        return _ledger_decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise SpoolError(f"a ledger's line is not understood: {error}; was it written by a newer version?") from error
