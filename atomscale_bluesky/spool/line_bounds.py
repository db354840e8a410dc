"""Finds where lines begin and end in the bytes of a journal, damaged ones too.

A line is either text, as `lines` has it, or a binary `row_record`. Each has a checksum. So a line that was cut short or
changed by the disk is recognised and costs only itself: reading goes on at the next bytes with which a line may begin.
"""

from __future__ import annotations

import os
import re

from .line_file import BLOCK_BYTES, MAX_LINE_BYTES, end_of_lines
from .lines import payload_of
from .row_record import HEAD_BYTES, MAGIC, is_intact, shape_of

# How much of a journal's end is read first, to see whether it ends with a whole line.
CHECKED_TAIL_BYTES = 2**16
# How many possible beginnings before a newline are tried. Normally the first one tried is right.
MAX_STARTS_TRIED = 16
# How a line begins: a record, or the checksum of a text.
BEGIN = re.compile(re.escape(MAGIC) + rb"|[0-9a-f]{8} [\[{]")


def end_of_journal_lines(descriptor: int, size: int) -> int:
    """Return where the last whole line of a journal's segment of this size ends.

    Mostly reads `CHECKED_TAIL_BYTES`, and more if these do not end with an intact line.
    """
    if _ends_with_a_line(_tail(descriptor, size, CHECKED_TAIL_BYTES)):
        return size
    after_newline, length = end_of_lines(descriptor, size), BLOCK_BYTES
    while True:
        block = _tail(descriptor, size, length)
        begins = [found.start() for found in BEGIN.finditer(block)]
        intact = _end_of_last_intact(block, begins)
        if intact or len(block) == size or length >= MAX_LINE_BYTES:
            break
        length *= 4
    start = size - len(block)
    # Only after the last intact line: before it, bytes that look like a torn record's beginning are part of a line.
    torn = next((at for at in begins if at >= intact and end_of_record(block, at) is None), None)
    return max(start + intact, after_newline) if torn is None else start + torn


def _tail(descriptor: int, size: int, length: int) -> bytes:
    start = max(0, size - length)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, size - start)


def _ends_with_a_line(block: bytes) -> bool:
    """Return True if the end of a block is an intact line."""
    magic = block.rfind(MAGIC)
    if magic >= 0 and end_of_record(block, magic) == len(block) and is_intact(block[magic:]):
        return True
    return block.endswith(b"\n") and payload_of(block[block.rfind(b"\n", 0, -1) + 1 : -1]) is not None


def _end_of_last_intact(block: bytes, begins: list[int]) -> int:
    """Return where the last intact line of a block ends, 0 if there is none. Takes time in proportion to the block."""
    newline, tries, behind = -1, 0, len(block)
    for at in reversed(begins):
        found = block.find(b"\n", at, behind)
        if found >= 0:
            newline, tries = found, 0
        behind = at
        if block.startswith(MAGIC, at):
            end = end_of_record(block, at)
            if end and is_intact(block[at:end]):
                return end
        elif newline >= 0 and tries < MAX_STARTS_TRIED:
            tries += 1
            if payload_of(block[at:newline]) is not None:
                return newline + 1
    return 0


def end_of_record(block: bytes, at: int) -> int | None:
    """Return where the record ends that begins at `at`, 0 if none begins there, None if the block ends before."""
    try:
        shape = shape_of(block, at)
    except IndexError:
        return None
    if shape is None:
        return 0
    return at + shape.width if at + shape.width <= len(block) else None


def end_of_line(block: bytes, at: int) -> int:
    """Return where a line that begins at this place of a block ends; 0 if the block ends before.

    If the line is damaged, this may be any later place.
    """
    if block[at : at + 1] == MAGIC[:1]:
        end = end_of_record(block, at)
        if end:
            return end
        return 0 if end is None else at + 1  # the block ends within the record; or the byte is damage
    return block.find(b"\n", at) + 1


def end_of_alike(block: bytes, at: int, width: int, limit: int) -> int:
    """Return where the records end, up to `limit`, that begin like the one at this place of a block.

    They are equally wide. If no record is there, none begins so.
    """
    head = block[at : at + HEAD_BYTES]
    while head.startswith(MAGIC) and at + width <= limit and block.startswith(head, at):
        at += width
    return at


def has_lines(block: bytes, at: int, lines: int) -> bool:
    """Return True if at least `lines` whole lines follow one another from this place of a block on."""
    while lines:
        end = end_of_line(block, at)
        if not end:
            return False
        alike = end_of_alike(block, at, end - at, min(len(block), at + lines * (end - at)))
        lines -= max(1, (alike - at) // (end - at))
        at = max(end, alike)
    return True


def payload_in(block: bytes, at: int, end: int) -> bytes | None:
    """Return the JSON text, or the whole record, of the line in this part of a block; None if it is damaged."""
    if block[at] == MAGIC[0]:
        record = block[at:end]
        return record if is_intact(record) else None
    return payload_of(block[at : end - 1])


def next_begin(block: bytes, at: int) -> int:
    """Return the next place after `at` where a line may begin, 0 if there is none in the block."""
    found = BEGIN.search(block, at + 1)
    return found.start() if found else 0


def looks_like_a_line(block: bytes, at: int) -> bool:
    """Return True if what stands at this place of a block looks like a line, damaged or not."""
    if block.startswith(MAGIC, at):
        return end_of_record(block, at) != 0
    return BEGIN.match(block, at) is not None
