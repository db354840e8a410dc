"""The delivering end of one run: its header, its ledger, what people ordered, and its way into the history."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import msgspec

from .errors import SpoolError
from .files import open_to_read, read_own, refuse_links_in
from .journal import (
    JournalReader,
    JournalWriter,
    LineFile,
    line,
    payload_of,
    segment_path,
    segments,
    sync_folder,
    whole_lines,
)
from .ledger import Ledger
from .lines import FORMAT, Edit, Edited, Header, Move, Moved, OrderLine, Stop, decode_order, encode
from .locks import WRITER_LOCK, RunLock, locked, remove_folder
from .oddities import plain
from .reading import HEAD, LEDGER, described_lines, has_stop, keep_copies

_logger = logging.getLogger(__name__)

ORDERS = "orders.jsonl"
HISTORY = "history.jsonl"


class History:
    """What is kept of the finished runs of a spool: one line each."""

    def __init__(self, spool: Path) -> None:
        self._path = spool / HISTORY

    def entries(self) -> list[dict[str, Any]]:
        """All of them, oldest first."""
        return _decoded(self._read().splitlines())

    def entries_with(self, name: str, value: str) -> list[dict[str, Any]]:
        """Those in which `name` is this text; of the others, however many there are, none is decoded."""
        text, sought = self._read(), msgspec.json.encode({name: value})[1:-1]
        if sought not in text:
            return []
        found = _decoded([one for one in text.splitlines() if sought in one])
        return [entry for entry in found if entry.get(name) == value]

    def _read(self) -> bytes:
        try:
            return read_own(self._path)
        except FileNotFoundError:
            return b""

    def add(self, entry: dict[str, Any]) -> None:
        """Note a finished run; several processes may do so at once.

        Raises:
            SpoolError: The file cannot be written.
        """
        with locked(self._path.with_suffix(".lock")):
            file = LineFile(self._path)
            try:
                file.append(line(msgspec.json.encode(entry)))
                file.sync()
            finally:
                file.close()


def _decoded(lines: list[bytes]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(payload) for one in lines if (payload := payload_of(one)) is not None]


class Claim:
    """A run that is ours to deliver, until `close`."""

    def __init__(self, folder: Path, header: Header, lock: RunLock, history: History) -> None:
        if header.format > FORMAT:
            raise SpoolError(
                f"{folder} was written in format {header.format}, this version knows up to {FORMAT}; update the package"
            )
        refuse_links_in(folder)
        # Before anything is asked for it, the run can be found again after a power cut, with its header.
        JournalReader(folder).sync()
        sync_folder(folder.parent)
        self.folder = folder
        self.header = header
        self.ledger = Ledger(folder / LEDGER)
        self._history = history
        self._lock = lock
        try:
            self._begin_anew_if_moved()
        except BaseException:
            self.ledger.close()
            raise

    def _begin_anew_if_moved(self) -> None:
        """Where a person has moved the run since, what the endpoint before has of it counts no more."""
        orders, obeyed = self.orders(), self.ledger.state.orders_obeyed
        last = max((i for i, order in enumerate(orders) if isinstance(order, Move)), default=-1)
        if last < obeyed:
            return
        for number, order in enumerate(orders[obeyed : last + 1], start=obeyed + 1):
            match order:
                case Edit():  # the one order before it that means something there, too
                    self.ledger.note(Edited(order.links, number, order.points_per_chunk))
                case Move() if number == last + 1:
                    self.ledger.note(Moved(order.endpoint, number), sync=True)
                case _:
                    pass

    @property
    def endpoint(self) -> str:
        """Where the run's requests may go."""
        return self.ledger.state.endpoint or self.header.endpoint

    def settle_if_interrupted(self) -> bool:
        """Write the stop of a run whose writer is gone without one; False while it lives, or where there is a stop."""
        lock = RunLock(self.folder / WRITER_LOCK)
        if not lock.acquire():
            return False
        try:
            if has_stop(self.folder):
                return False
            journal = JournalWriter(self.folder)
            try:
                stop = Stop(time=time.time(), exit_status="", reason="no stop document", interrupted=True)
                journal.append(line(encode(stop)))
                journal.sync()
            finally:
                journal.close()
            if not (self.folder / HEAD).exists():  # killed before its writer's first sync
                keep_copies(self.folder, described_lines(self.folder))
        finally:
            lock.release()
        return True

    def orders(self) -> list[OrderLine]:
        """Everything that was asked for so far, in order.

        Raises:
            SpoolError: An order is not understood.
        """
        return read_orders(self.folder)

    def finish(self, entry: dict[str, Any]) -> bool:
        """Move a run that is finalized whole into the history; False while its writer still has files open."""
        lock = RunLock(self.folder / WRITER_LOCK)
        if not lock.acquire():
            return False
        folder = entry["folder"] = self.folder.name
        # A process that died between these two steps leaves the run in both places; whoever comes next only removes it.
        if not self._history.entries_with("folder", folder):
            self._history.add(entry)
        self.ledger.close()
        # The copy goes first, so that it tells of a journal that should be there; the ledger goes last: a journal that
        # is found without one would be delivered again from its beginning.
        (self.folder / HEAD).unlink(missing_ok=True)
        for segment in reversed(segments(self.folder)):
            segment_path(self.folder, segment).unlink(missing_ok=True)
        sync_folder(self.folder)
        (self.folder / LEDGER).unlink(missing_ok=True)
        foreign = remove_folder(self.folder, self._lock, lock)
        if foreign:
            _logger.warning(
                "run %s is finished; its folder %s stays, for it holds what the package did not make: %s",
                self.header.run_uid, self.folder, plain(", ".join(sorted(foreign))),
            )  # fmt: skip
        return True

    def hand_over(self) -> RunLock:
        """Let go of the run's files, but not of the lock, with which it can be claimed again."""
        self.ledger.close()
        return self._lock

    def close(self) -> None:
        """Let go of the run as it is; idempotent."""
        self.ledger.close()
        self._lock.release()


def endpoint_of(folder: Path, header: Header) -> str:
    """Where a run's requests may go: where it was spooled for, or where a person has moved it since.

    Raises:
        SpoolError: An order is not understood.
    """
    moves = [order.endpoint for order in read_orders(folder) if isinstance(order, Move)]
    return moves[-1] if moves else header.endpoint


def read_orders(folder: Path) -> list[OrderLine]:
    """Everything that people have asked to be done with the run in a folder, in order.

    Raises:
        SpoolError: An order is not understood.
    """
    try:
        file = open_to_read(folder / ORDERS)
    except FileNotFoundError:
        return []
    with file:
        payloads = (payload_of(text) for _, text in whole_lines(file) if text is not None)
        return [decode_order(payload) for payload in payloads if payload is not None]
