"""Finds where lines begin and end in the bytes of a journal, damaged ones too.

A line is either text, as `lines` has it, or a binary `row_record`. Each has a checksum. So a line that was cut short or
changed by the disk is recognised and costs only itself: reading goes on at the next bytes with which a line may begin.
"""

from __future__ import annotations

import os
import re

from .line_file import BLOCK_BYTES, MAX_LINE_BYTES, end_of_lines
from .lines import payload_of
from .row_record import MAGIC, is_intact, shape_of

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
