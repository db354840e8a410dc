"""Every line that a run's files may hold, as a type: this module is the format of the spool.

The journal, written by the callback, holds a `Header`, `Layout`s, rows, `LeftOut`s and at last a `Stop`. The ledger,
written by the uploader, holds what became of each metrology stream and chunk. An order is what a person asked for.
Rows are JSON arrays, `[layout, row, time, event uid, values]`, followed by an object of gaps where a value could not
become a point, and by an array of channels where an integer lost digits; everything else is an object whose `kind`
names its type. A kind or member that this version does not know makes the line unreadable, which is an error of its
own, never a guess.

The values of a row are one text: 16 hexadecimal digits for each, those of a 64-bit IEEE 754 float, the sign first; a
gap is not a number. Numbers in decimal would be several times as slow to write and to read. For whoever has to:

    struct.unpack(f">{len(text) // 16}d", bytes.fromhex(text))
"""

from __future__ import annotations

import math
import struct
from binascii import hexlify, unhexlify
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from .errors import SpoolError

# Raised when a file would be read wrongly by an older version; what is newer than this is left alone. Before 2 the
# values of a row were an array of JSON numbers and nulls, which is still read.
FORMAT = 2


class Position(NamedTuple):
    """A place in a journal: a segment's number, from 1, and an offset in bytes; positions compare in journal order."""

    segment: int
    offset: int


class _Line(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True):
    """What all lines but rows share."""


# ---- journal ---------------------------------------------------------------------------------------------------------


class Links(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a metrology stream is linked to in Atomscale."""

    synth_source_id: int | None = None
    physical_sample_id: str | None = None
    project_id: str | None = None
    physical_sample: str | None = None  # a name, to be found in Atomscale or created there
    tags: tuple[str, ...] = ()  # names, or ids; those of a stream that has any tell how its run ended, too
    track_sample: bool = False  # make the sample the one that the project's growth monitoring follows


class Header(_Line, frozen=True, tag="header"):
    """The first line of a journal: everything that a run's delivery needs to know, from start document and settings."""

    format: int
    run_uid: str
    started: float  # the start document's time, Unix seconds
    label: str  # of the run's streams, before what tells them apart is added
    points_per_chunk: int
    primary: str  # the event stream that goes into the metrology stream the start document initializes
    endpoint: str  # the origin that this run's requests may go to
    non_finite: str  # what becomes of gaps: own_stream, null or drop_row
    layout: str = "time_base"  # one metrology stream per time base, or one for the run
    links: Links = Links()
    problem: str | None = None  # why the metadata cannot be used; parks the run until somebody mends it
    content: str = ""  # a digest of the start document, which tells a replay from another run of the same uid
    keep: str = "finalized"  # until when the run stays in the spool: finalized, or verified
    clock: str = "host"  # whose times go out: the host's as they were recorded, or shifted to the reference
    max_latency_s: float = 0.0  # after how long points that wait for a full chunk are shown in a preview; 0: never
    session: str = ""  # the lock in the spool that its writer holds until it writes the stop; empty: writer.lock


class Channel(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One named scalar series, made from one data key (or one element of an array-valued one)."""

    name: str  # as Atomscale shows it
    key: str  # the data key
    unit: str | None = None
    element: int | None = None  # index into a one-dimensional array, None for a scalar


class Layout(_Line, frozen=True, tag="layout"):
    """Which channels the values of the rows that name it belong to, in order."""

    layout: int
    event_stream: str
    time_base: str  # what rows are numbered by; the event stream's name, unless its keys have times of their own
    channels: tuple[Channel, ...]
    left_out: dict[str, str] = {}  # data key → why its readings never become points


class LeftOut(_Line, frozen=True, tag="left_out"):
    """Readings that never became rows, since the last such line."""

    event_stream: str
    reason: str
    readings: int
    keys: dict[str, int] = {}


class Stop(_Line, frozen=True, tag="stop"):
    """The run ended; nothing follows. `interrupted` says that no stop document came."""

    time: float
    exit_status: str
    reason: str = ""
    interrupted: bool = False
    rows: dict[str, int] = {}  # by time base: how many there are, which tells when the last ones are damaged


class Row(msgspec.Struct, frozen=True):
    """The values of all channels of a layout at one instant; None where there is a gap."""

    layout: int
    number: int  # counts from 0 within its time base
    time: float  # Unix seconds
    event_uid: str
    values: list[float | None]
    gaps: dict[str, str] = {}  # channel name → why its value is None
    rounded: list[str] = []  # channels whose value was an integer that a float cannot hold exactly


class Rows(NamedTuple):
    """Consecutive rows of one layout, each with a value for every channel."""

    layout: int
    number: int  # of the first
    times: tuple[float, ...]
    values: NDArray[np.float64]  # row by channel


# ---- ledger ----------------------------------------------------------------------------------------------------------

Why = Literal[
    "run start", "event stream", "gap", "late channel", "closed by the server", "too large", "damaged", "preview"
]


class Opened(_Line, frozen=True, tag="opened"):
    """An opening: a metrology stream of the run, before anything is done about it."""

    stream: int  # counts from 0 within the run
    time_base: str
    from_row: int
    why: Why
    label: str  # unique: it ends in the run's uid and a token of this stream's own
    token: str
    points_per_chunk: int
    segment: int  # where to read the journal from, to find its first row
    offset: int
    channels: tuple[str, ...] | None = None  # None: those of the time base's first layout
    own: bool = False  # the own stream of a channel that has gaps: its points are the rows where it has none
    skip: tuple[tuple[int, int], ...] = ()  # first and last rows that an earlier stream holds already
    joins: int | None = None  # the opening whose metrology stream it goes into, instead of one of its own


class Initializing(_Line, frozen=True, tag="initializing"):
    """A request to initialize is about to leave for this path family: from here on the stream may exist."""

    stream: int
    family: str


class Initialized(_Line, frozen=True, tag="initialized"):
    """Atomscale has given the stream an id."""

    stream: int
    data_id: str
    family: str


class Left(_Line, frozen=True, tag="left"):
    """A channel ends in this stream: no row from `from_row` on gives it a point here."""

    stream: int
    channel: str
    from_row: int


class _Range(_Line, frozen=True):
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


class Tried(_Range, frozen=True, tag="tried"):
    """A chunk is about to be pushed for the first time: which rows it is made of, for ever."""

    cut_short: bool = False  # it ends with what a preview has shown, and the metrology stream with it


class Previewed(_Range, frozen=True, tag="previewed"):
    """A preview is about to leave: the chunk of this index begins with these rows, for ever."""

    def as_tried(self, *, cut_short: bool) -> Tried:
        """The same rows as a chunk that is tried."""
        return Tried(**msgspec.structs.asdict(self), cut_short=cut_short)


class PreviewAnswered(_Line, frozen=True, tag="preview_answered"):
    """Atomscale shows the last preview; or surely does not, and what it showed before stands."""

    stream: int
    index: int
    taken: bool


class PreviewsEnded(_Line, frozen=True, tag="previews_ended"):
    """The run makes no further preview."""

    reason: str


class Confirmed(_Line, frozen=True, tag="confirmed"):
    """Atomscale holds the chunk; of the channels named, or of all that it has."""

    stream: int
    index: int
    time: float
    channels: tuple[str, ...] | None = None


class Refused(_Line, frozen=True, tag="refused"):
    """Atomscale will not take these channels of the chunk as they are."""

    stream: int
    index: int
    channels: tuple[str, ...]
    status: int | None
    reason: str


class GivenUp(_Line, frozen=True, tag="given_up"):
    """A channel with gaps would need one metrology stream too many: it gets none, and its points are left out."""

    time_base: str
    channel: str


class Ended(_Line, frozen=True, tag="ended"):
    """The stream takes no further chunk; what it does not hold goes on in a continuation."""

    stream: int
    why: Why


class Obeyed(_Line, frozen=True, tag="obeyed"):
    """An order was carried out that changes nothing here."""

    order: int


class Discarded(_Line, frozen=True, tag="discarded"):
    """A person gave up what this run still had waiting or refused."""

    time: float
    order: int


class Parked(_Line, frozen=True, tag="parked"):
    """The stream (or, without one, the run) waits for a person."""

    reason: str
    stream: int | None = None


class Unparked(_Line, frozen=True, tag="unparked"):
    """A person asked to try again what was parked or refused."""

    order: int


class Edited(_Line, frozen=True, tag="edited"):
    """A person corrected what the run's streams are to be initialized with."""

    links: Links
    order: int
    points_per_chunk: int | None = None


class Moved(_Line, frozen=True, tag="moved"):
    """A person moved the run to another endpoint: nothing that was noted before holds there."""

    endpoint: str
    order: int


class Resolved(_Line, frozen=True, tag="resolved"):
    """What the names of the run's links stand for in Atomscale: the same ids for every stream of the run."""

    links: Links  # with ids for names
    order: int = 0  # the edit that gave the names; 0 for the run's metadata


class Unresolved(_Line, frozen=True, tag="unresolved"):
    """Something that the run is to be linked to is not in Atomscale, and cannot be made there."""

    reason: str


class Linked(_Line, frozen=True, tag="linked"):
    """Atomscale has taken one link of a stream that exists."""

    stream: int
    link: str  # sample, project, tracking, tags, ending or label
    to: str


class LinkRefused(_Line, frozen=True, tag="link_refused"):
    """Atomscale does not take one link; the stream's chunks go on, and it is not finalized."""

    stream: int
    link: str
    to: str
    reason: str


class Finalizing(_Line, frozen=True, tag="finalizing"):
    """A request to finalize is about to leave: nothing is pushed to the stream any more."""

    stream: int


class Finalized(_Line, frozen=True, tag="finalized"):
    """Atomscale has closed the stream, complete."""

    stream: int
    time: float


class ClockFixed(_Line, frozen=True, tag="clock_fixed"):
    """What all times of the run are shifted by as they go out, to the server's clock; subtract it to undo that."""

    offset_s: float
    time: float  # when it was measured
    delay_s: float | None = None  # of the exchange; right to half of it. None: it could not be measured, so nothing


class Verified(_Line, frozen=True, tag="verified"):
    """The whole run was read back, and all of it is equal."""

    time: float


class Together(_Line, frozen=True, tag="together"):
    """Facts that hold together: a crash leaves all of them, or none."""

    facts: tuple[LedgerLine, ...]


# ---- orders ----------------------------------------------------------------------------------------------------------


class Retry(_Line, frozen=True, tag="retry"):
    """Try again what is parked or refused."""


class Discard(_Line, frozen=True, tag="discard"):
    """Give up what is not delivered; what is stays, in streams that are not finalized."""


class Edit(_Line, frozen=True, tag="edit"):
    """Initialize the run's streams with these values instead of what its metadata said."""

    links: Links
    points_per_chunk: int | None = None


class Settle(_Line, frozen=True, tag="settle"):
    """Complete the run although its stop document has not come: it never will."""


class Move(_Line, frozen=True, tag="move"):
    """Deliver the run to another endpoint, from its first row on; what the one before has stays there."""

    endpoint: str


# ---- reading and writing ---------------------------------------------------------------------------------------------

JournalLine = Header | Layout | LeftOut | Stop
LedgerLine = (
    Opened
    | Initializing
    | Initialized
    | Left
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

_journal_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(JournalLine)
OrderLine = Retry | Discard | Edit | Settle | Move

_order_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(OrderLine)
_ledger_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(LedgerLine)


def encode(value: JournalLine | LedgerLine | OrderLine) -> bytes:
    """The JSON text of a line that is not a row."""
    return msgspec.json.encode(value)


# What comes before a row's values is filled up with spaces to so many bytes, enough for a UUID: rows of one layout are
# equally wide, and a reader can take many of them as a table.
_HEAD_BYTES = 72
_TO_VALUES, _END = b',"', b'"]'


def packed(values: Iterable[float | None]) -> bytes:
    """The values of a row as they stand in it; None for a gap."""
    numbers = [math.nan if value is None else value for value in values]
    return hexlify(struct.pack(f">{len(numbers)}d", *numbers))


def encode_row(
    layout: int,
    number: int,
    time: float,
    event_uid: str,
    values: bytes,
    gaps: Mapping[str, str] | None = None,
    rounded: Sequence[str] = (),
) -> bytes:
    """The JSON text of a row whose `values` are `packed` already."""
    head = orjson.dumps((layout, number, time, event_uid))[:-1].ljust(_HEAD_BYTES)
    if rounded:
        return b'%b,"%b",%b,%b]' % (head, values, orjson.dumps(gaps or {}), orjson.dumps(rounded))
    if gaps:
        return b'%b,"%b",%b]' % (head, values, orjson.dumps(gaps))
    return b'%b,"%b"]' % (head, values)


def decode_journal(payload: bytes) -> JournalLine | Row:
    """A journal's line as its type.

    Raises:
        SpoolError: The line is intact, but of a kind or shape that this version does not know.
    """
    try:
        if payload.startswith(b"["):
            layout, number, time, event_uid, values, *rest = orjson.loads(payload)
            if not isinstance(values, list):  # as it is in format 1
                numbers = struct.unpack(f">{len(values) // 16}d", bytes.fromhex(values))
                values = [None if math.isnan(value) else value for value in numbers]
            return Row(layout, number, time, event_uid, values, *rest)
        return _journal_decoder.decode(payload)
    except (msgspec.DecodeError, ValueError, TypeError, struct.error) as error:
        raise SpoolError(f"a journal's line is not understood: {error}; was it written by a newer version?") from error


def decode_rows(payloads: NDArray[np.uint8]) -> Rows | None:
    """A journal's lines, all of one width and one below the other, as rows; None unless they are `Rows`.

    All at once, and so at a fraction of the price. Whoever gets None decodes them one by one, which takes everything
    that there is.
    """
    count = len(payloads)
    begin = payloads[0].tobytes().rfind(_TO_VALUES)
    # Where the first row has its values, all have to have theirs, and nothing behind them.
    if (
        begin < 0
        or payloads[:, begin : begin + len(_TO_VALUES)].tobytes() != _TO_VALUES * count
        or payloads[:, -len(_END) :].tobytes() != _END * count
    ):
        return None
    heads = np.full((count, begin + 2), ord("]"), dtype=np.uint8)
    heads[:, :begin], heads[:, -1] = payloads[:, :begin], ord(",")
    values = np.ascontiguousarray(payloads[:, begin + len(_TO_VALUES) : -len(_END)])
    try:
        layouts, numbers, times, _ = zip(*orjson.loads(b"[%b]" % heads.tobytes()[:-1]), strict=True)
        array = np.frombuffer(unhexlify(values.data), dtype=">f8").reshape(count, -1).astype(np.float64)
    except (TypeError, ValueError):
        return None
    consecutive = numbers == tuple(range(numbers[0], numbers[0] + count))
    if len(set(layouts)) > 1 or not consecutive or not np.isfinite(array).all():
        return None
    return Rows(layouts[0], numbers[0], times, array)


def joined(parts: list[Rows]) -> Rows | None:
    """Rows that follow each other as one; None if they do not."""
    first, number = parts[0], parts[0].number
    for part in parts:
        if (part.layout, part.number) != (first.layout, number) or part.values.shape[1:] != first.values.shape[1:]:
            return None
        number += len(part.times)
    if len(parts) == 1:
        return first
    times = tuple(time for part in parts for time in part.times)
    return Rows(first.layout, first.number, times, np.concatenate([part.values for part in parts]))


def decode_order(payload: bytes) -> OrderLine:
    """An order as its type.

    Raises:
        SpoolError: The line is intact, but of a kind or shape that this version does not know.
    """
    try:
        return _order_decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise SpoolError(f"an order is not understood: {error}; was it written by a newer version?") from error


def decode_ledger(payload: bytes) -> LedgerLine:
    """A ledger's line as its type.

    Raises:
        SpoolError: The line is intact, but of a kind or shape that this version does not know.
    """
    try:
        return _ledger_decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise SpoolError(f"a ledger's line is not understood: {error}; was it written by a newer version?") from error
