"""Answers from the spool's files whether everything is delivered, for runs that another process delivers."""

from __future__ import annotations

from pathlib import Path

from ..spool.ledger import LedgerReader
from ..spool.orders import endpoint_of, read_orders
from ..spool.own_files import refuse_links_in
from ..spool.run_reader import LEDGER, read_header
from ..spool.spool import Spool
from ..status.run_status import RunStatus
from ..status.spool_status import SpoolStatus


class DrainCheck:
    """Answers drains of one spool and endpoint. Belongs to one thread.

    Args:
        spool: Whose runs.
        endpoint: Runs for another endpoint are left alone.
    """

    def __init__(self, spool: Spool, endpoint: str) -> None:
        self._spool = spool
        self._endpoint = endpoint
        self._status = SpoolStatus(spool)
        self._ledgers: dict[Path, LedgerReader] = {}  # of the runs that a drain waits for

    def answer(self) -> bool | None:
        """Return whether everything is delivered, or None while something can still move.

        Returns:
            True if every stopped run is finalized, and every full chunk of the others is confirmed. False if the rest
            waits for the operator. None also while the spool's folder cannot be read, which is logged at each scan.
        """
        try:
            return self._answer()
        except OSError:
            return None

    def _answer(self) -> bool | None:
        if any(self._is_under_way(folder) for folder in self._spool.run_folders()):
            return None
        left = [run for run in self._status.status() if self._is_ours(run)]
        moving = [run for run in left if not _needs_operator(run)]
        if not all(self._holds_no_full_chunk(run) for run in moving):
            return None
        self._ledgers = {}
        return len(moving) == len(left)

    def _is_under_way(self, folder: Path) -> bool:
        """Return True if a stopped run of ours will leave the spool by itself. Does not read its journal."""
        try:
            header = read_header(folder)
            if header is None or endpoint_of(header, read_orders(folder), folder) != self._endpoint:
                return False
            if self._spool.writer_alive(folder):
                return False
            refuse_links_in(folder)  # the process that delivers it does the same first
            ledger = self._ledgers.setdefault(folder, LedgerReader(folder / LEDGER)).read_on()
        except OSError:  # a SpoolError is one
            return False
        if ledger.parked_reason or (header.problem and ledger.edited is None):
            return False
        return not any(stream.parked or stream.refused for stream in ledger.streams.values())

    def _is_ours(self, run: RunStatus) -> bool:
        try:
            folder = Path(run.folder)
            header = read_header(folder)
            return header is None or endpoint_of(header, read_orders(folder), folder) == self._endpoint
        except OSError:  # a SpoolError is one
            return True

    def _holds_no_full_chunk(self, run: RunStatus) -> bool:
        """Return True if a run is in progress and none of its streams can have a full chunk that waits."""
        if run.state != "running":
            return False
        if not run.points.waiting:
            return True
        if not run.data_ids:
            return False
        folder = Path(run.folder)
        ledger = self._ledgers.setdefault(folder, LedgerReader(folder / LEDGER)).read_on()
        # By an order or after a refusal a stream's chunks may be smaller than the run's header says.
        sizes = {one.opening.label: one.opening.points_per_chunk for one in ledger.streams.values() if not one.is_done}
        full = {name: sizes[one.label] for one in run.streams if one.label in sizes for name in one.channels}
        smallest = min(sizes.values(), default=1)
        return all(counts.waiting < full.get(name, smallest) for name, counts in run.channels.items())


def _needs_operator(run: RunStatus) -> bool:
    return run.state in {"parked", "unreadable"} or run.problem is not None or run.points.refused > 0
