"""A run's points as tables, one for each time base: from the spool, or as Atomscale returns them.

All points of the run are in memory, at 8 bytes each.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..api.client import Client
from ..errors import ApiUnavailableError
from ..model.identifiers import FAMILIES
from ..status.run_rows import Block, RunRows
from .stream_reading import read_back

# How long it may take until points that were just delivered can be read.
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class TableColumn:
    """One channel; NaN where a row has no value of it."""

    name: str
    unit: str | None
    values: NDArray[np.float64]

    @property
    def points(self) -> int:
        """How many values it has."""
        return int(np.count_nonzero(~np.isnan(self.values)))

    @property
    def ends(self) -> tuple[float, float] | None:
        """The first and the last value, or None if there is none."""
        known = self.values[~np.isnan(self.values)]
        return (float(known[0]), float(known[-1])) if len(known) else None


@dataclass(frozen=True, slots=True)
class Table:
    """The channels that share their times."""

    name: str  # of the time base, or of the metrology stream
    times: NDArray[np.float64]  # Unix seconds
    columns: tuple[TableColumn, ...]

    def with_channels(self, names: Sequence[str]) -> Table:
        """Return the table with only these channels, in its own order."""
        return Table(self.name, self.times, tuple(column for column in self.columns if column.name in names))


def spool_tables(folder: Path) -> list[Table]:
    """Return the points of the run in a spool's folder, as far as they are written.

    Raises:
        SpoolError: A line of the journal cannot be decoded.
    """
    blocks: dict[str, list[Block]] = {}
    for block in RunRows(folder).read():
        blocks.setdefault(block.layout.time_base, []).append(block)
    return [_table_of(time_base, found) for time_base, found in blocks.items()]


def _table_of(time_base: str, blocks: list[Block]) -> Table:
    units = {channel.name: channel.unit for block in blocks for channel in block.layout.channels}
    rows = sum(len(block.times) for block in blocks)
    values = {name: np.full(rows, np.nan) for name in units}
    at = 0
    for block in blocks:
        end = at + len(block.times)
        for i, channel in enumerate(block.layout.channels):
            values[channel.name][at:end] = block.values[:, i]
        at = end
    columns = tuple(TableColumn(name, unit, values[name]) for name, unit in units.items())
    return Table(time_base, np.concatenate([block.times for block in blocks]), columns)


def join_tables(parts: Iterable[Iterable[Table]], key: Callable[[Table], object]) -> list[Table]:
    """Return the tables of all parts of a run. Those of several parts that have the same key become one table.

    The rows of a part that begins earlier come first. NaN is where a part does not have a channel.
    """
    found: dict[object, list[Table]] = {}
    for tables in parts:
        nth = Counter[object]()
        for table in tables:
            found.setdefault((key(table), nth[key(table)]), []).append(table)
            nth[key(table)] += 1
    return [_joined(tables) if len(tables) > 1 else tables[0] for tables in found.values()]


def _joined(tables: Sequence[Table]) -> Table:
    tables = sorted(tables, key=lambda table: table.times[0] if len(table.times) else math.inf)
    channels = dict.fromkeys((column.name, column.unit) for table in tables for column in table.columns)
    columns = [
        TableColumn(name, unit, np.concatenate([_values_of(table, name, unit) for table in tables]))
        for name, unit in channels
    ]
    return Table(tables[0].name, np.concatenate([table.times for table in tables]), tuple(columns))


def _values_of(table: Table, name: str, unit: str | None) -> NDArray[np.float64]:
    found = (column.values for column in table.columns if (column.name, column.unit) == (name, unit))
    return next(found, np.full(len(table.times), np.nan))


def api_tables(client: Client, streams: Mapping[str, str], channels: Mapping[str, int]) -> list[Table]:
    """Return the points of metrology streams as Atomscale returns them, with times to the millisecond.

    Args:
        client: Sends the requests.
        streams: The streams' names by data_id.
        channels: The channels to read, and how many points each may have.

    Raises:
        ApiUnavailableError: A stream could not be read.
        ApiKeyError: The key may not read.
        ApiTooLargeError: An answer is far larger than its stream can be.
    """
    end = time.monotonic() + PATIENCE_S
    tables: list[Table] = []
    for data_id, name in streams.items():
        found, problem = read_back(
            client, FAMILIES, data_id, channels, is_whole=bool, left_s=lambda: end - time.monotonic(),
            wait=threading.Event().wait,
        )  # fmt: skip
        if problem is not None:
            raise ApiUnavailableError(f"stream {data_id} cannot be read: {problem}")
        by_times: dict[bytes, tuple[NDArray[np.float64], list[TableColumn]]] = {}
        for channel, (unit, times, values) in found.points.items():
            numbers = np.array(times, dtype=np.float64)
            _, columns = by_times.setdefault(numbers.tobytes(), (numbers, []))
            columns.append(TableColumn(channel, unit, np.array(values, dtype=np.float64)))
        tables += [Table(name, times, tuple(columns)) for times, columns in by_times.values()]
    return tables
