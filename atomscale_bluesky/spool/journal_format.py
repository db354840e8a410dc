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
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import SpoolError
from ..model.links import Links
from ..model.rows import Channel, Row, Rows
from .lines import FileLine

# Raised when a file would be read wrongly by an older version; what is newer than this is left alone. Before 2 the
# values of a row were an array of JSON numbers and nulls, which is still read.
FORMAT = 2


class Header(FileLine, frozen=True, tag="header"):
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


class Layout(FileLine, frozen=True, tag="layout"):
    """Which channels the values of the rows that name it belong to, in order."""

    layout: int
    event_stream: str
    time_base: str  # what rows are numbered by; the event stream's name, unless its keys have times of their own
    channels: tuple[Channel, ...]
    left_out: dict[str, str] = {}  # data key → why its readings never become points


class LeftOut(FileLine, frozen=True, tag="left_out"):
    """Readings that never became rows, since the last such line."""

    event_stream: str
    reason: str
    readings: int
    keys: dict[str, int] = {}


class Stop(FileLine, frozen=True, tag="stop"):
    """The run ended; nothing follows. `interrupted` says that no stop document came."""

    time: float
    exit_status: str
    reason: str = ""
    interrupted: bool = False
    rows: dict[str, int] = {}  # by time base: how many there are, which tells when the last ones are damaged


# ---- reading and writing ---------------------------------------------------------------------------------------------

JournalLine = Header | Layout | LeftOut | Stop

_journal_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(JournalLine)


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
