"""Reads the rows of a run's journal in blocks, for plots and tables. Each call reads only what is new.

It needs no claim on the run and disturbs no process. A row that a damaged line has taken is missing; a row that repeats
the number of an earlier one is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..spool.journal_format import (
    Header,
    Layout,
    Stop,
    decode_journal,
    decode_payloads,
    decode_row,
    is_row,
    may_decode_together,
)
from ..spool.run_reader import RunReader

# How many rows are decoded together.
BLOCK_ROWS = 512


class Block(NamedTuple):
    """Consecutive rows of one layout."""

    layout: Layout
    first: int  # the number of the first row within its time base
    times: NDArray[np.float64]  # Unix seconds
    values: NDArray[np.float64]  # one row per line, one channel per column; NaN is a gap


class RunRows:
    """The rows of the run in one folder."""

    def __init__(self, folder: Path) -> None:
        self.header: Header | None = None
        self.stop: Stop | None = None
        self._reader = RunReader(folder)
        self.layouts: dict[int, Layout] = {}
        self._next_row: dict[str, int] = {}  # by time base: the row that is expected

    def read(self) -> Iterator[Block]:
        """Yield the rows written since the last call.

        Raises:
            SpoolError: A line cannot be decoded.
        """
        waiting: list[bytes] = []
        try:
            for line in self._reader.read():
                payload = line.payload
                if is_row(payload):
                    if waiting and (len(waiting) >= BLOCK_ROWS or not may_decode_together(payload, waiting[0])):
                        yield from self._blocks(waiting)
                        waiting = []
                    waiting.append(payload)
                    continue
                yield from self._blocks(waiting)
                waiting = []
                match decode_journal(payload):
                    case Header() as header:
                        self.header = header
                    case Layout() as layout:
                        self.layouts[layout.layout] = layout
                    case Stop() as stop:
                        self.stop = stop
                    case _:
                        pass
            yield from self._blocks(waiting)
        finally:
            self._reader.close()

    def _blocks(self, payloads: list[bytes]) -> Iterator[Block]:
        if not payloads:
            return
        rows = decode_payloads(payloads)
        layout = None if rows is None else self.layouts.get(rows.layout)
        if rows is not None and layout is not None and rows.number >= self._next_row.get(layout.time_base, 0):
            self._next_row[layout.time_base] = rows.number + len(rows.times)
            yield Block(layout, rows.number, np.array(rows.times), rows.values)
            return
        for payload in payloads:
            row = decode_row(payload)
            layout = self.layouts.get(row.layout)
            if layout is None or row.number < self._next_row.get(layout.time_base, 0):
                continue
            self._next_row[layout.time_base] = row.number + 1
            values = np.array([row.values], dtype=np.float64)
            yield Block(layout, row.number, np.array([row.time]), values)
