"""Every line that a run's journal may hold, as a type. `ledger_format` and `orders` have the lines of the other files.

The callback writes the journal: a `Header`, descriptors, `Layout`s, rows, `LeftOut`s and finally a `Stop`.
A row with a value for every channel is a binary record (`row_record`). Any other row is a JSON array, `[layout, row,
time, event uid, values, gaps]`. `gaps` is an object that gives a reason for each channel without a point. If an integer
was rounded, one more array follows, with its channels. Every other line is an object whose `kind` names its type. A
kind or member that this version does not know makes the line unreadable. That is an error of its own, never a guess.

The values of such an array are one text of 16 hexadecimal digits per value: a 64-bit IEEE 754 float, big-endian. A gap
is NaN. To decode the text:

    struct.unpack(f">{len(text) // 16}d", bytes.fromhex(text))
"""

from __future__ import annotations

import math
import re
import struct
from binascii import hexlify, unhexlify
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import SpoolError
from ..model.endpoints import normalized_endpoint
from ..model.links import Links
from ..model.rows import Channel, Row, Rows
from .lines import FileLine, table_of
from .row_record import MAGIC, decode_record, decode_records, is_record, start_of

# Increased when an older version would misread a file. A file of a newer format is left alone. Before format 2 the
# values of a row were an array of JSON numbers and nulls, and in format 2 all rows were JSON arrays. Both can still be
# read. Format 3 has binary rows, and descriptors.
FORMAT = 3


class Header(FileLine, frozen=True, tag="header"):
    """The first line of a journal: what a run's delivery needs from start document and settings."""

    format: int
    run_uid: str
    started: float  # the start document's time, Unix seconds
    label: str  # of the run's streams, before a suffix that tells them apart is added
    points_per_chunk: int
    primary: str  # the event stream that goes into the metrology stream the start document initializes
    endpoint: str  # the origin that this run's requests may go to
    non_finite: str  # how gaps are handled: own_stream, null or drop_row
    layout: str = "time_base"  # one metrology stream per time base, or one for the run
    links: Links = Links()
    problem: str | None = None  # why the metadata cannot be used; parks the run until the operator mends it
    content: str = ""  # a digest of the start document in earlier versions; a run is its uid, so nothing reads it
    keep: str = "finalized"  # how long the run stays in the spool: until finalized, or until verified
    clock: str = "host"  # which clock's times are sent: the host's as recorded, or shifted to the reference
    max_latency_s: float = 0.0  # after how long points that wait for a full chunk are shown in a preview; 0: never
    scan_id: int | None = None  # of the start document, to find the run by
    session: str = ""  # the lock in the spool that its writer holds until it writes the stop; empty: writer.lock
    part: int = 0  # how many earlier journals of the run there were; above 0 if it goes on after an interruption
    # With `problem`: the metadata keys that cannot be used; `atomscale` for an unknown key in that dict. `links`,
    # `label` and `points_per_chunk` have the values of all others. Earlier versions kept none of these with a problem
    unusable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Bring the endpoint, which an earlier version kept as it was written, into the form that is compared."""
        msgspec.structs.force_setattr(self, "endpoint", normalized_endpoint(self.endpoint))


class DataKey(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is used of a data key's description. None stands for a member that is missing or malformed."""

    dtype: str | None = None
    units: str | None = None
    length: int | None = None  # of a one-dimensional array, as its shape says
    choices: tuple[str, ...] = ()
    external: bool = False


# What follows an event stream's name in the name of its first time base, if that name is taken.
_NUMBER = re.compile(r" \(\d+\)")


class Layout(FileLine, frozen=True, tag="layout"):
    """Which channels the values of this layout's rows belong to, in order."""

    layout: int
    event_stream: str
    time_base: str  # rows are numbered within it; it has the event stream's name, unless the keys have own times
    channels: tuple[Channel, ...]
    left_out: dict[str, str] = {}  # data key → why its readings never become points
    own_times: bool = False  # its rows have the readings' own times, since the times tell that a flyer collected them

    @property
    def has_first_rows(self) -> bool:
        """True if each event of the event stream has its first row in this time base.

        It has the event stream's name, and a number if another event stream's keys have a time base of that name.
        """
        return self.time_base == self.event_stream or (
            self.time_base.startswith(self.event_stream)
            and _NUMBER.fullmatch(self.time_base, len(self.event_stream)) is not None
        )


class Described(FileLine, frozen=True, tag="descriptor"):
    """What a run that goes on later needs of a descriptor document."""

    uid: str  # events name their descriptor by it
    event_stream: str
    data_keys: dict[str, DataKey] = {}
    hinted: tuple[str, ...] = ()


class LeftOut(FileLine, frozen=True, tag="left_out"):
    """Readings that never became rows, since the last such line."""

    event_stream: str
    reason: str
    readings: int
    keys: dict[str, int] = {}


class Stop(FileLine, frozen=True, tag="stop"):
    """The end of a run; nothing follows. `interrupted` means that no stop document came."""

    time: float
    exit_status: str
    reason: str = ""
    interrupted: bool = False
    rows: dict[str, int] = {}  # by time base: how many rows there are, to notice when the last ones are damaged
    not_given: dict[str, int] = {}  # by event stream: how many events the stop document counts that never came


# ---- reading and writing ---------------------------------------------------------------------------------------------

JournalLine = Header | Described | Layout | LeftOut | Stop

_journal_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(JournalLine)


_TO_VALUES, _END = b',"', b'"]'


def pack_values(values: Iterable[float | None]) -> bytes:
    """Return the values of a row as the journal's text; None stands for a gap."""
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
    """Return the JSON text of a row that cannot be a record. `values` is the result of `pack_values`."""
    head = orjson.dumps((layout, number, time, event_uid))[:-1]
    if rounded:
        return b'%b,"%b",%b,%b]' % (head, values, orjson.dumps(gaps or {}), orjson.dumps(rounded))
    if gaps:
        return b'%b,"%b",%b]' % (head, values, orjson.dumps(gaps))
    return b'%b,"%b"]' % (head, values)


def decode_journal(payload: bytes) -> JournalLine | Row:
    """Decode a journal's line into its type.

    Raises:
        SpoolError: The line is intact, but of a kind or shape that this version does not know.
    """
    if is_row(payload):
        return decode_row(payload)
    try:
        return _journal_decoder.decode(payload)
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise _not_understood(error) from error


def decode_row(payload: bytes) -> Row:
    """Decode a row.

    Raises:
        SpoolError: As for `decode_journal`.
    """
    try:
        if is_record(payload):
            return decode_record(payload)
        layout, number, time, event_uid, values, *rest = orjson.loads(payload)
        if not isinstance(values, list):  # as in format 1
            numbers = struct.unpack(f">{len(values) // 16}d", bytes.fromhex(values))
            values = [None if math.isnan(value) else value for value in numbers]
        return Row(layout, number, time, event_uid, values, *rest)
    except (ValueError, TypeError, struct.error) as error:
        raise _not_understood(error) from error


def _not_understood(error: Exception) -> SpoolError:
    return SpoolError(f"a journal's line is not understood: {error}; was it written by a newer version?")


def is_row(payload: bytes) -> bool:
    """Return True if a journal's line is a row."""
    return payload.startswith((MAGIC, b"["))


def start_of_row(payload: bytes) -> tuple[int, int, float]:
    """Return the layout, the number and the time of a row. Takes a fraction of the time that decoding it takes.

    Raises:
        SpoolError: As for `decode_journal`.
    """
    if is_record(payload):
        try:
            return start_of(payload)
        except ValueError as error:
            raise _not_understood(error) from error
    try:
        layout, number, time, _ = payload[1:80].split(b",", 3)
        return int(layout), int(number), float(time)
    except ValueError as error:
        raise _not_understood(error) from error


def may_decode_together(payload: bytes, other: bytes) -> bool:
    """Return True if two rows may be decoded together: they are equally long and of one layout."""
    if len(payload) != len(other) or payload[:1] != other[:1]:
        return False
    if not is_record(payload):
        return payload[: payload.index(b",")] == other[: other.index(b",")]
    return start_of(payload)[0] == start_of(other)[0]


def decode_lines(lines: memoryview, width: int) -> Rows | None:
    """Decode whole lines of a journal, all of one width, as rows. Return None unless they are intact and `Rows`.

    Decoding them together takes a fraction of the time. A caller that gets None decodes them one by one, which handles
    every kind of line.
    """
    if is_record(bytes(lines[:1])):
        return decode_records(lines, width)
    table = table_of(lines, width)
    return None if table is None else _decode_table(table)


def decode_payloads(payloads: Sequence[bytes]) -> Rows | None:
    """Decode lines that were read one by one and that `may_decode_together`. Return None unless they are `Rows`."""
    if is_record(payloads[0]):
        return decode_records(b"".join(payloads), len(payloads[0]))
    return _decode_table(np.frombuffer(b"".join(payloads), dtype=np.uint8).reshape(len(payloads), -1))


def _decode_table(payloads: NDArray[np.uint8]) -> Rows | None:
    """Decode a journal's lines of text, one below the other, as rows. Return None unless they are `Rows`.

    In format 2 all rows of a layout were equally wide.
    """
    count = len(payloads)
    begin = payloads[0].tobytes().rfind(_TO_VALUES)
    # Every row must have its values where the first row has them, and nothing after them.
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


def join_rows(parts: list[Rows]) -> Rows | None:
    """Return consecutive parts as one, or None if they are not consecutive."""
    first, number = parts[0], parts[0].number
    for part in parts:
        if (part.layout, part.number) != (first.layout, number) or part.values.shape[1:] != first.values.shape[1:]:
            return None
        number += len(part.times)
    if len(parts) == 1:
        return first
    times = tuple(time for part in parts for time in part.times)
    return Rows(first.layout, first.number, times, np.concatenate([part.values for part in parts]))
