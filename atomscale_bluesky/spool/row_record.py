"""The binary form of a row without gaps, as a journal holds it: encode, recognise, check, decode. Pure.

A record is, in this order:

    f5 72 6f 77    four bytes with which no line of text begins
    width          how many bytes the record has, 32 bits, little-endian
    MessagePack    [layout, row, time, event uid, [value, …]]: row, time and values as 64-bit floats
    CRC-32         of all bytes before it, little-endian
    0a             a newline

Records of one layout are mostly equally wide, so many of them are checked and decoded as a table. Each ends with its
own checksum, and the CRC of data that are followed by their own CRC is a constant. So the checksum of several whole
records depends only on their number and width, whatever they hold. One checksum shows that a whole block is intact.

A width is believed only if it follows from what the record's beginning says about uid and values: a damaged width must
not make a reader wait for bytes that never come.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..model.rows import Row, Rows

MAGIC = b"\xf5row"
RECORD = MAGIC[0]  # the first byte of a record, and of no text
# The bytes before the MessagePack text: those of `MAGIC`, and the width.
HEAD_BYTES = 8
# The bytes after it: checksum and newline.
TAIL_BYTES = 5
# No record has more values, so that it is never longer than a line may be.
MAX_VALUES = 4_000_000
# No record has a longer uid. A row with a longer one is written as a line of text.
MAX_UID_BYTES = 0xFFFF
_FLOAT, _NEWLINE = 0xCB, 0x0A
# The bytes before a length of 1, 2 and 4 bytes. A text of 4 GB is no uid.
_TEXT, _ARRAY = (0xD9, 0xDA, None), (None, 0xDC, 0xDD)
_tail = struct.Struct("<IB").pack
# The first bytes of 64-bit floats below 2**49: up to there no integer loses a digit. A number that is not finite begins
# with another byte.
FIRST_BYTES_OF_PLAIN_FLOATS = bytes([*range(0x43), *range(0x80, 0xC3)])
_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(tuple[int, float, float, str, list[float]]).decode


class Shape(NamedTuple):
    """Where the parts of a record are, in bytes from its beginning."""

    width: int
    layout: int
    row: int  # of the float's 8 bytes; the time's are 9 bytes further
    uid: int  # of the uid's first byte
    values: int  # of the first value's tag; each value has 9 bytes
    channels: int  # how many values it has


Encode = Callable[[float, float, str, Sequence[Any]], bytes | None]


def encoder(layout: int, count: int) -> Encode:
    """Return a function that encodes rows of a layout with this many channels.

    It takes the row's number, its time, its event's uid and its values. It returns None unless the uid is a line of
    ASCII text, and all values are floats, finite, and so small that none of them can be an integer that lost digits.
    It is to be called by one thread at a time.
    """
    if count > MAX_VALUES:
        return lambda number, time, uid, values: None
    buffer = bytearray(MAGIC + bytes(4))
    tags = bytes([_FLOAT]) * count
    known = (-1, 0)  # of the last uid: its length, and the record's width without its tail

    def encode(number: float, time: float, uid: str, values: Sequence[Any]) -> bytes | None:
        nonlocal known
        length, size = known
        try:
            if len(uid) != length:
                known = -1, 0  # an exception from a signal handler may come before the width is written
                size = _size(layout, uid, count)
                buffer[4:8] = (size + TAIL_BYTES).to_bytes(4, "little")
                known = len(uid), size
            _encode_into((layout, number, time, uid, values), buffer, HEAD_BYTES)
            plain = type(uid) is str and uid.isascii() and "\n" not in uid and len(uid) <= MAX_UID_BYTES
        except (TypeError, AttributeError, UnicodeError, OverflowError, msgspec.MsgspecError):  # of a foreign type
            return None
        begin = size - 9 * count
        # If the length is right, and there is a float where each value begins, then all values are floats.
        if (
            not plain
            or len(buffer) != size
            or buffer[begin::9] != tags
            or buffer[begin + 1 :: 9].translate(None, FIRST_BYTES_OF_PLAIN_FLOATS)
        ):
            return None
        return b"".join((buffer, _tail(zlib.crc32(buffer), _NEWLINE)))

    return encode


def encode_one(layout: int, number: int, time: float, uid: str, values: Sequence[float]) -> bytes | None:
    """Return the record of a row of any finite floats. None if no record may have this uid or this many values."""
    if type(uid) is not str or "\n" in uid or len(uid) > MAX_UID_BYTES // 4 or len(values) > MAX_VALUES:
        return None
    buffer = bytearray(MAGIC + bytes(4))
    try:
        _encode_into((layout, float(number), time, uid, values), buffer, HEAD_BYTES)
    except UnicodeError:  # half of a character
        return None
    buffer[4:8] = (len(buffer) + TAIL_BYTES).to_bytes(4, "little")
    return b"".join((buffer, _tail(zlib.crc32(buffer), _NEWLINE)))


def encode_rows(
    layout: int, first: int, times: Sequence[float], uids: Sequence[Any], columns: Sequence[Sequence[Any]]
) -> list[bytes] | None:
    """Return the records of consecutive rows, given by columns; the same as `encoder` for one row after the other.

    None unless all uids are equally long lines of ASCII text, and all values are as `encoder` wants them.

    Args:
        layout: The rows' layout.
        first: The number of the first row.
        times: A time for each row.
        uids: The event's uid for each row.
        columns: For each channel a value for each row.
    """
    count = len(columns)
    try:
        text = "".join(uids)
    except TypeError:
        return None
    if not text.isascii() or "\n" in text or {*map(type, uids)} != {str} or {*map(len, uids)} != {len(uids[0])}:
        return None
    if count > MAX_VALUES or len(uids[0]) > MAX_UID_BYTES:
        return None
    size = _size(layout, uids[0], count)
    begin, tags, records = size - 9 * count, bytes([_FLOAT]) * count, list[bytes]()
    buffer = bytearray(MAGIC + (size + TAIL_BYTES).to_bytes(4, "little"))
    rows = zip(*columns, strict=True) if columns else [()] * len(uids)
    try:
        for number, (time, uid, values) in enumerate(zip(times, uids, rows, strict=True), first):
            _encode_into((layout, float(number), time, uid, values), buffer, HEAD_BYTES)
            if (
                len(buffer) != size
                or buffer[begin::9] != tags
                or buffer[begin + 1 :: 9].translate(None, FIRST_BYTES_OF_PLAIN_FLOATS)
            ):
                return None
            records.append(b"".join((buffer, _tail(zlib.crc32(buffer), _NEWLINE))))
    except (TypeError, AttributeError, UnicodeError, OverflowError, msgspec.MsgspecError):  # of a foreign type
        return None
    return records


def is_record(payload: bytes) -> bool:
    """Return True if a line of a journal is a record, and not text."""
    return payload[:1] == MAGIC[:1]


def shape_of(block: bytes, at: int) -> Shape | None:
    """Return where the parts of the record are that begins at `at`, or None if no record begins there.

    Raises:
        IndexError: The block ends before that can be told.
    """
    if block[at : at + 4] != MAGIC[: len(block) - at]:
        return None
    width = int.from_bytes(_bytes(block, at + 4, 4), "little")
    if block[at + 8] != 0x95:  # an array of five
        return None
    where = at + 9
    layout, where = _unsigned(block, where)
    if layout is None or block[where] != _FLOAT or block[where + 9] != _FLOAT:
        return None
    row = where + 1
    where += 18
    length, where = _length(block, where, 0xA0, 0x20, _TEXT)
    if length is None or length > width:
        return None
    uid = where
    count, where = _length(block, where + length, 0x90, 0x10, _ARRAY)
    if count is None or count > MAX_VALUES or width != where - at + 9 * count + TAIL_BYTES:
        return None
    return Shape(width, layout, row - at, uid - at, where - at, count)


def is_intact(record: bytes) -> bool:
    """Return True if the checksum of a record of the right width holds."""
    body = memoryview(record)[:-TAIL_BYTES]
    return record[-1:] == b"\n" and zlib.crc32(body) == int.from_bytes(record[-TAIL_BYTES:-1], "little")


def decode_record(record: bytes) -> Row:
    """Return the row of an intact record.

    Raises:
        ValueError: It is none.
    """
    return Row(*_parts(record))


def _parts(record: bytes) -> tuple[int, int, float, str, list[float | None]]:
    try:
        layout, number, time, uid, values = _decode(memoryview(record)[HEAD_BYTES:-TAIL_BYTES])
    except msgspec.MsgspecError as error:
        raise ValueError(f"a row is not understood: {error}") from error
    return layout, int(number), time, uid, list(values)


def start_of(record: bytes) -> tuple[int, int, float]:
    """Return the layout, the number and the time of an intact record."""
    layout, where = _unsigned(record, HEAD_BYTES + 1)
    if layout is None:
        raise ValueError("a row is not understood")
    number, _, time = struct.unpack_from(">dcd", record, where + 1)
    return layout, int(number), time


def head_of(record: bytes) -> tuple[int, int, float, str, bytes]:
    """Return the layout, the number, the time, the event's uid and the big-endian values of an intact record."""
    shape = shape_of(record, 0)
    if shape is None:
        raise ValueError("a row is not understood")
    number, _, time = struct.unpack_from(">dcd", record, shape.row)
    length = _length(record, shape.row + 17, 0xA0, 0x20, _TEXT)[0] or 0
    uid = record[shape.uid : shape.uid + length].decode()
    values = np.ndarray((shape.channels, 8), np.uint8, record, shape.values + 1, (9, 1)).tobytes()
    return shape.layout, int(number), time, uid, values


def decode_records(records: bytes | memoryview, width: int) -> Rows | None:
    """Decode records of one width that follow each other. Return None unless they are intact and `Rows`.

    Decoding them together takes a fraction of the time. A caller that gets None decodes them one by one.
    """
    count, table = len(records) // width, np.frombuffer(records, dtype=np.uint8).reshape(-1, width)
    try:
        shape = shape_of(table[0].tobytes(), 0)
    except IndexError:
        return None
    if shape is None or shape.width != width or zlib.crc32(records) != _checksum_of(count, width):
        return None
    differs = np.bitwise_or.reduce(table ^ table[0], axis=0)
    if (differs & _alike_in_all(shape)).any():
        return None
    numbers = _column(records, shape.row, count, width)
    values = np.ndarray((count, shape.channels), ">f8", records, shape.values + 1, (width, 9)).astype(np.float64)
    first = int(numbers[0])
    if (numbers != np.arange(first, first + count)).any() or not np.isfinite(values).all():
        return None
    times = tuple(_column(records, shape.row + 9, count, width).tolist())
    return Rows(shape.layout, first, times, values)


@functools.lru_cache(maxsize=256)
def _alike_in_all(shape: Shape) -> NDArray[np.uint8]:
    """Return a mask of the bytes that all records of this shape share: all but row, time, event's uid and values."""
    mask = np.zeros(shape.width, dtype=np.uint8)
    mask[: shape.row] = mask[shape.row + 8] = mask[shape.row + 17 : shape.uid] = 0xFF
    mask[shape.uid + _uid_bytes(shape) : shape.values] = mask[shape.values : shape.width - TAIL_BYTES : 9] = 0xFF
    return mask


def _uid_bytes(shape: Shape) -> int:
    header = 1 if shape.channels < 0x10 else 3 if shape.channels < 0x10000 else 5
    return shape.values - header - shape.uid


def _column(records: bytes | memoryview, at: int, count: int, width: int) -> NDArray[np.float64]:
    return np.ndarray((count,), ">f8", records, at, (width,)).astype(np.float64)


@functools.lru_cache(maxsize=256)
def _checksum_of(count: int, width: int) -> int:
    """Return the checksum that `count` intact records of this width have together, whatever they hold."""
    body = bytes(width - TAIL_BYTES)
    record, checksum = body + _tail(zlib.crc32(body), _NEWLINE), 0
    for _ in range(count):
        checksum = zlib.crc32(record, checksum)
    return checksum


def _size(layout: int, uid: str, count: int) -> int:
    """Return how many bytes a record has without its tail, with a uid of as many ASCII letters as this one has."""
    text = bytearray()
    _encode_into((layout, 0.0, 0.0, "x" * len(uid), [0.0] * count), text)
    return HEAD_BYTES + len(text)


def _bytes(block: bytes, at: int, count: int) -> bytes:
    found = block[at : at + count]
    if len(found) < count:
        raise IndexError
    return found


def _unsigned(block: bytes, at: int) -> tuple[int | None, int]:
    """Return the non-negative integer at `at`, or None if there is none, and where it ends."""
    first = block[at]
    if first < 0x80:
        return first, at + 1
    size = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(first)
    if size is None:
        return None, at
    return int.from_bytes(_bytes(block, at + 1, size), "big"), at + 1 + size


def _length(
    block: bytes, at: int, fixed: int, below: int, sized: tuple[int | None, int | None, int | None]
) -> tuple[int | None, int]:
    """Return the length that a text or array at `at` says it has, or None if there is none, and where it begins."""
    first = block[at]
    if fixed <= first < fixed + below:
        return first - fixed, at + 1
    for kind, size in zip(sized, (1, 2, 4), strict=True):
        if first == kind:
            return int.from_bytes(_bytes(block, at + 1, size), "big"), at + 1 + size
    return None, at
