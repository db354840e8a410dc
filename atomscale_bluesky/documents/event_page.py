"""The columns of an event page, which may be of any kind, and the lines made of its rows. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import numpy as np

from ..errors import ChannelError
from .conversion import DATE_KINDS
from .descriptor import is_flag, mapping_of
from .time_base import TimeBase


class EventPage:
    """The columns of an event page, and the lines made of its rows."""

    def __init__(
        self,
        uids: Sequence[str],
        times: Sequence[float],
        columns: Mapping[Any, Sequence[Any]],
    ) -> None:
        self.uids = uids
        self.times = times
        self.columns = columns
        self._lines: dict[str, list[bytes]] = {}  # by time base
        self._layouts_added: set[int] = set()

    def add_rows(self, base: TimeBase, at: Sequence[float], row: int, records: list[bytes] | None) -> None:
        """Add the lines of rows from `row` on, after the layout that they name.

        Args:
            base: The rows' time base.
            at: The rows' times.
            row: The first of them in the page.
            records: Their records, if `TimeBase.page_records` has made them. Otherwise each row is made on its own.
        """
        out = self._lines.setdefault(base.layout.time_base, [])
        if not base.layout_written and base.layout.layout not in self._layouts_added:
            base.add_layout_lines(out)
            self._layouts_added.add(base.layout.layout)
        number = base.rows_if_written
        if records is None:
            held = [(key, self.columns[key]) for key in base.keys if key in self.columns]
            records = [
                base.row_line({key: column[row + i] for key, column in held}, number + i, time, self.uids[row + i])
                for i, time in enumerate(at)
            ]
        out += records
        base.rows_if_written = number + len(records)

    def lines(self) -> list[bytes]:
        """Return all lines."""
        return [one for lines in self._lines.values() for one in lines]


def only_rows(page: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Return an event page with some of its rows only. What is no column of a value per row is left out.

    Raises:
        ChannelError: Its times or one of its data are no such column.
    """
    count = len(page["uid"])
    out: dict[str, Any] = {"descriptor": page["descriptor"], "data": page.get("data")}

    def remaining(column: Any, what: str) -> list[Any]:
        values = as_list(column)
        if len(values) != count:
            raise ChannelError(f"{what} has {len(values)} values in a page of {count} events; the page is left out")
        return [values[row] for row in rows]

    out["uid"], out["time"] = remaining(page["uid"], "the uids"), remaining(page["time"], "the times")
    if isinstance(page.get("data"), Mapping):
        out["data"] = {key: remaining(column, f"data key {key!r}") for key, column in page["data"].items()}
    for member in ("timestamps", "filled"):
        out[member] = {}
        for key, column in mapping_of(page.get(member)).items():
            if is_flag(column):
                out[member][key] = column
            elif (values := stamps_of(column, count)) is not None:
                out[member][key] = [values[row] for row in rows]
    return out


def stamps_of(column: Any, rows: int) -> Sequence[Any] | None:
    """Return a column of time stamps, or None if it is not one of `rows` values."""
    try:
        values = as_list(column)
    except ChannelError:
        return None
    return values if len(values) == rows else None


def as_list(column: Any) -> Sequence[Any]:
    """Return a column of an event page as a list."""
    if isinstance(column, list | tuple):
        return column
    if not isinstance(column, np.ndarray) and hasattr(column, "__array__"):  # a column of pandas, xarray or dask
        column = np.asarray(column)
    if isinstance(column, np.ndarray):
        if column.ndim:
            # `tolist` would turn dates and records into bare numbers and arrays.
            return list(column) if column.dtype.kind in (*DATE_KINDS, "V") else column.tolist()
    elif isinstance(column, Collection) and not isinstance(column, str | bytes | Mapping | Set):
        return list(column)
    raise ChannelError(f"a column of an event page is a {type(column).__name__}, expected a list; the page is left out")
