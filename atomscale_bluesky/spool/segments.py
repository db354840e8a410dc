"""The segments of a journal: their names, and the first and the last line of them.

A journal is a sequence of segments, `journal-0001.jsonl`, `journal-0002.jsonl` and so on. A position names a segment
and an offset in it. A line is either text, as `lines` has it, or a binary `row_record`. Knows nothing of runs.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..model.rows import Position
from .line_file import BLOCK_BYTES, MAX_LINE_BYTES, end_of_lines
from .lines import PREFIX_BYTES, payload_of
from .own_files import is_run_file, open_own, open_to_read
from .row_record import MAGIC

# How much of a journal is read to find its header.
FIRST_BYTES = 4096

START = Position(1, 0)


def segment_path(folder: Path, segment: int) -> Path:
    """Return the path of a journal's segment."""
    return folder / f"journal-{segment:04d}.jsonl"


def segments(folder: Path) -> list[int]:
    """Return the numbers of a folder's segments, in order."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # the run has just been finished, or is not ours
        return []
    journals = [name for name in names if name.startswith("journal-") and is_run_file(name)]
    return sorted(int(name.removeprefix("journal-").removesuffix(".jsonl")) for name in journals)


def written_at(folder: Path) -> float | None:
    """Return when a journal was last written to, in Unix seconds; None if there is none."""
    times: list[float] = []
    for segment in segments(folder)[-1:]:
        with contextlib.suppress(OSError):  # the run has just been finished
            times.append(segment_path(folder, segment).lstat().st_mtime)
    return max(times, default=None)


def first_line(folder: Path) -> bytes | None:
    """Return the JSON text of a journal's first line, or None if it is damaged, missing, or longer than a header.

    Takes a third of the time that a reader takes.
    """
    try:
        descriptor = open_own(segment_path(folder, START.segment), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        text, newline, _ = os.read(descriptor, FIRST_BYTES).partition(b"\n")
    finally:
        os.close(descriptor)
    return payload_of(text) if newline else None


def last_line(folder: Path) -> bytes | None:
    """Return the JSON text of a journal's last intact line of text, or None if there is none.

    Records may follow it in the last `BLOCK_BYTES`. More is read only until a record is met, and up to the longest
    line: the journal of a run that is being written is mostly records, and is read here often.
    """
    for segment in reversed(segments(folder)):
        with open_to_read(segment_path(folder, segment)) as file:
            payload = _last_text(file.fileno())
        if payload is not None:
            return payload
    return None


def _last_text(descriptor: int) -> bytes | None:
    """Return the payload of the last intact line of text, as `last_line` has it. Reads in blocks, from the end."""
    begin = end = end_of_lines(descriptor, os.lseek(descriptor, 0, os.SEEK_END))
    held: list[bytes] = []  # what was read of the line whose beginning is still to come
    while begin > 0 and end - begin <= MAX_LINE_BYTES + 1:  # with its newline
        size = min(begin, BLOCK_BYTES)
        begin -= size
        os.lseek(descriptor, begin, os.SEEK_SET)
        block = os.read(descriptor, size)
        held.insert(0, block)
        if begin and b"\n" not in block:
            continue
        texts = b"".join(held).split(b"\n")
        for text in reversed(texts[1 if begin else 0 :]):
            payload = payload_of(text) if text[PREFIX_BYTES - 1 : PREFIX_BYTES] == b" " else None
            if payload is not None:
                return payload
        if MAGIC in block:
            return None
        held = texts[:1]
    return None
