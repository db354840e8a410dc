"""The delivering end of one run: its header, its ledger, its orders, and its move into the history."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import SpoolError
from ..model.rows import Position
from ..model.text import safe
from .gil_yield import GilYield
from .history import History
from .journal_format import FORMAT, Header, Stop
from .journal_reader import JournalReader
from .journal_writer import JournalWriter
from .ledger import Ledger
from .ledger_format import Edited, Moved, Obeyed, Parked
from .lines import checksummed, encode
from .locks import WRITER_LOCK, RunLock, is_held, remove_folder
from .orders import ORDERS_LOCK, AnyOrder, Edit, Move, Orders, endpoint_of
from .own_files import refuse_links_in
from .reserve import with_room
from .run_reader import HEAD, LEDGER, append_to_copy, has_stop, lines_to_copy
from .segments import segment_path, segments
from .session_lock import is_session_alive
from .stored_events import StoredEvents, store_events, write_events
from .sync import sync_folder

_logger = logging.getLogger(__name__)


class FoundRun:
    """What the files of an unclaimed run say: its header, and the orders given for it.

    Raises:
        SpoolError: A line cannot be decoded.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder = folder
        self.header = header
        self.orders: Orders = Orders(folder)
        self.endpoint: str = endpoint_of(header, self.orders.read_on(), folder)  # where the run is to go


class RunClaim:
    """A run that this process delivers, until `close`. `make_room` is called when the disk is full."""

    def __init__(
        self,
        found: FoundRun,
        lock: RunLock,
        history: History,
        make_room: Callable[[], object] = lambda: None,
    ) -> None:
        folder, header = found.folder, found.header
        if header.format > FORMAT:
            raise SpoolError(
                f"{folder} was written in format {header.format}, this version knows up to {FORMAT}; update the package"
            )
        refuse_links_in(folder)
        # Before the first request for the run: after a power cut its header can be read again.
        self.synced_to: Position = JournalReader(folder).sync()  # at least up to here the journal is safe
        self.folder = folder
        self.header = header
        self.ledger: Ledger = Ledger(folder / LEDGER, make_room=make_room)
        self._make_room = make_room
        # If everything was delivered before, the process that did it may already have written the history.
        self._perhaps_in_history = self.ledger.state.is_done
        self._orders = found.orders
        self._history = history
        self._lock = lock
        try:
            self._note_if_broken()
            self._note_if_moved()
        except BaseException:
            self.ledger.close()
            raise

    def _note_if_moved(self) -> None:
        """If the operator has moved the run, note that: facts about the previous endpoint no longer count."""
        orders, obeyed = self.orders(), self.ledger.state.orders_obeyed
        moves = [number for number, order in enumerate(orders, start=1) if isinstance(order, Move)]
        if not moves or moves[-1] <= obeyed:
            return
        for number, order in enumerate(orders[obeyed : moves[-1]], start=obeyed + 1):
            match order:
                case Edit():  # the only earlier order that also holds at the new endpoint
                    self.ledger.note(Edited(order.links, number, order.points_per_chunk, order.label))
                case Move() if number == moves[-1]:
                    self.ledger.note(Moved(order.endpoint, number))
                case _:
                    pass

    def _note_if_broken(self) -> None:
        """Note once that the ledger cannot be understood. Orders given after that are meant with this in mind."""
        state = self.ledger.state
        if state.broken is None or state.broken_was_noted:
            return
        if state.may_have_moved and len(self.orders()) > state.orders_obeyed:
            # The damaged line may have noted that the last move was carried out. Repeating it would send all of it
            # twice.
            self.ledger.note(Obeyed(len(self.orders())))
        self.ledger.note(Parked(state.broken))

    @property
    def endpoint(self) -> str:
        """The endpoint that the run's requests may go to."""
        state = self.ledger.state
        if state.broken is not None and state.may_have_moved:
            return endpoint_of(self.header, self.orders(), self.folder)
        return state.endpoint or self.header.endpoint

    def complete_if_interrupted(self) -> bool:
        """Write the stop of a run whose writer died without one.

        Return False if the writer lives or a stop is there.
        """
        # The lock is tested and not taken: no writer comes back to a folder, and another process that looks for this
        # run meanwhile has to find it interrupted, not being written.
        if (
            is_held(self.folder / WRITER_LOCK)
            or is_session_alive(self.folder.parent, self.header.session)
            or has_stop(self.folder)
        ):
            return False
        journal = JournalWriter(self.folder, make_room=self._make_room)
        try:
            stop = Stop(time=time.time(), exit_status="", reason="no stop document", interrupted=True)
            journal.append(checksummed(encode(stop)))
            journal.sync()
        finally:
            journal.close()
        if not (self.folder / HEAD).exists():  # killed before its writer's first sync
            append_to_copy(self.folder, lines_to_copy(self.folder), make_room=self._make_room)
        return True

    def orders(self) -> Sequence[AnyOrder]:
        """Return all orders given so far, in order.

        Raises:
            SpoolError: An order cannot be decoded.
        """
        return self._orders.read_on()

    def finish(self, entry: dict[str, Any], gil_yield: GilYield | None = None) -> bool:
        """Move a finalized run into the history. Return False while its writer still has files open.

        Return False also if an order has come that is not obeyed yet. While the run is moved it takes none.

        The events of an interrupted run stay known, in case it is replayed. If they cannot be stored, the run stays.

        Raises:
            SpoolError: A file cannot be read or written.
        """
        locks = [RunLock(self.folder / name) for name in (WRITER_LOCK, ORDERS_LOCK)]
        try:
            if not all(with_room(lock.acquire, self._make_room) for lock in locks):
                return False
            if len(self.orders()) > self.ledger.state.orders_obeyed:
                return False
            stored = self._to_history(entry, gil_yield)
            foreign = self._remove(locks)
        finally:
            for lock in locks:
                lock.release()
        if stored is not None and stored.whole is not None:
            self._store_rows(stored.path, stored.whole)
        if foreign:
            _logger.warning(
                "run %s is finished; its folder %s stays, because it holds files that the package did not make: %s",
                self.header.run_uid, self.folder, safe(", ".join(sorted(foreign))),
            )  # fmt: skip
        return True

    def _to_history(self, entry: dict[str, Any], gil_yield: GilYield | None) -> StoredEvents | None:
        """Write the run's entry into the history, unless it is there. Return what was stored of its events."""
        folder = entry["folder"] = self.folder.name
        # A process that died between these two steps leaves the run in both places. The next process only removes it.
        if self._perhaps_in_history and self._history.entries_with("folder", folder):
            return None
        stored = None
        if entry.get("interrupted"):
            stored = store_events(self.folder, gil_yield, make_room=self._make_room)
            entry["events"] = stored.path.name if stored else None
            entry["descriptors"] = stored.descriptors if stored else []
        self._history.add(entry)
        return stored

    def _store_rows(self, path: Path, whole: bytes) -> None:
        """Store the list of the run's events, for which the disk had no space before the journal was removed."""
        try:
            write_events(path, whole)
        except OSError as error:
            _logger.warning(
                "run %s was interrupted, and the list of its events cannot be stored: if it comes again, some of its "
                "readings may arrive twice: %s", self.header.run_uid, error,
            )  # fmt: skip

    def _remove(self, locks: Sequence[RunLock]) -> list[str]:
        """Remove the run from the spool, with these locks of it, and return the names of files that are not ours."""
        self.ledger.close()
        # The copy goes first, because it would show that a journal should be there. The ledger goes last: a journal
        # without a ledger would be delivered again from its beginning.
        (self.folder / HEAD).unlink(missing_ok=True)
        for segment in reversed(segments(self.folder)):
            segment_path(self.folder, segment).unlink(missing_ok=True)
        sync_folder(self.folder)
        (self.folder / LEDGER).unlink(missing_ok=True)
        return remove_folder(self.folder, self._lock, *locks)

    def hand_over(self) -> RunLock:
        """Close the run's files but keep the lock, and return it: the run can be claimed again with it."""
        self.ledger.close()
        return self._lock

    def close(self) -> None:
        """Release the run as it is. A second call does nothing."""
        self.ledger.close()
        self._lock.release()
