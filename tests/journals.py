"""A journal's lines in tests: text as well as the binary records of rows."""

from __future__ import annotations

import struct
import zlib

import msgspec

from atomscale_bluesky.spool.row_record import MAGIC, TAIL_BYTES, shape_of


def lines_in(content: bytes) -> list[bytes]:
    """All whole lines of an intact journal."""
    found: list[bytes] = []
    at = 0
    while at < len(content):
        shape = shape_of(content, at) if content.startswith(MAGIC, at) else None
        end = at + shape.width if shape else content.index(b"\n", at) + 1
        found.append(content[at:end])
        at = end
    return found


def row_mark(number: int, layout: int = 0) -> bytes:
    """The bytes in a journal that only the record of this row has."""
    return b"\x95" + msgspec.msgpack.encode(layout) + b"\xcb" + struct.pack(">d", number)


def row_at(content: bytes, number: int, layout: int = 0) -> int:
    """Where the record of this row begins."""
    return content.index(row_mark(number, layout)) - len(MAGIC) - 4


def renumbered(record: bytes, number: int) -> bytes:
    """The record of a row under another number."""
    shape = shape_of(record, 0)
    assert shape is not None
    return _changed(record, shape.row, struct.pack(">d", number))


def with_first_value_negative(record: bytes) -> bytes:
    """The record of a row whose first value has the other sign."""
    shape = shape_of(record, 0)
    assert shape is not None
    return _changed(record, shape.values + 1, bytes([record[shape.values + 1] ^ 0x80]))


def _changed(record: bytes, at: int, to: bytes) -> bytes:
    body = record[:at] + to + record[at + len(to) : -TAIL_BYTES]
    return body + zlib.crc32(body).to_bytes(4, "little") + b"\n"
