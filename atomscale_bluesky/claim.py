"""The delivering end of one run: its header, its ledger, what people ordered, and its way into the history."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from .courtesy import Courtesy
from .errors import SpoolError
from .files import open_to_read, refuse_links_in
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
from .kept import keep_events
from .ledger import Ledger
from .lines import FORMAT, Edit, Edited, Header, Move, Moved, Obeyed, OrderLine, Parked, Stop, decode_order, encode
from .locks import WRITER_LOCK, RunLock, locked, remove_folder, session_lives
from .oddities import plain
from .reading import HEAD, LEDGER, described_lines, has_stop, keep_copies

_logger = logging.getLogger(__name__)

ORDERS = "orders.jsonl"
HISTORY = "history.jsonl"
# Some 20 000 runs, and twice as many where the older file has just been left behind.
HISTORY_BYTES = 16 * 2**20

_RUN_UID = re.compile(rb'"run_uid":"([^"]*)"')


class History:
    """What is kept of the runs of a spool that are over: one line each, of at least the last `max_bytes`.

    A file that has become so large makes way for a new one, and is kept beside it until that is as large: so the files
    have twice as much at most, and nobody who looks something up reads more. May be used by several threads at once.
    """

    def __init__(
        self,
        spool: Path,
        *,
        name: str = HISTORY,
        max_bytes: int = HISTORY_BYTES,
        make_room: Callable[[], object] = lambda: None,
    ) -> None:
        self._path = spool / name
        self._make_room = make_room
        self._before = self._path.with_stem(f"{self._path.stem}-1")
        self._max_bytes = max_bytes
        self._uids: dict[tuple[int, int], _Uids] = {}  # by file
        self._lock = threading.RLock()  # around these; a signal's handler may come back here in the middle of reading

    def entries(self) -> list[dict[str, Any]]:
        """All of them, oldest first."""
        return list(self._found(b""))

    def entries_with(self, name: str, value: str) -> list[dict[str, Any]]:
        """Those in which `name` is this text; of the others, however many there are, none is decoded."""
        sought = msgspec.json.encode({name: value})[1:-1]
        return [entry for entry in self._found(sought) if entry.get(name) == value]

    def of(self, run_uid: str) -> list[dict[str, Any]]:
        """Those of one run. Where there is none, this costs no more than the lines that were added since last time."""
        self.read_on()
        with self._lock:
            perhaps = any(run_uid in uids for uids in self._uids.values())
        return self.entries_with("run_uid", run_uid) if perhaps else []

    def has_one_like(self, beginning: str) -> bool:
        """Return True if there is an entry of a run whose uid begins with this text."""
        sought = msgspec.json.encode({"run_uid": beginning})[1:-2]
        return any(str(entry.get("run_uid")).startswith(beginning) for entry in self._found(sought))

    def read_on(self) -> None:
        """Take in whose entries were added since the last call."""
        with self._lock:
            uids: dict[tuple[int, int], _Uids] = {}
            for file in self._open():
                with file:
                    found = os.fstat(file.fileno())
                    known = self._uids.get((found.st_dev, found.st_ino))
                    if known is None or known.offset > found.st_size:
                        known = _Uids()
                    if known.offset < found.st_size:
                        known.read_on(file)
                    uids[found.st_dev, found.st_ino] = known
            self._uids = uids

    def add(self, entry: dict[str, Any]) -> None:
        """Note a run that is over; several processes may do so at once.

        Raises:
            SpoolError: The file cannot be written.
        """
        with locked(self._path.with_suffix(".lock"), self._make_room):
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size >= self._max_bytes:
                    self._path.replace(self._before)
            file = LineFile(self._path, make_room=self._make_room)
            try:
                file.append(line(msgspec.json.encode(entry)))
                file.sync()
            finally:
                file.close()

    def _found(self, sought: bytes) -> Iterator[dict[str, Any]]:
        """The entries of the lines that hold these bytes, oldest first."""
        for file in self._open():
            with file:
                for _, text in whole_lines(file):
                    if text is not None and sought in text and (payload := payload_of(text)) is not None:
                        yield msgspec.json.decode(payload)

    def _open(self) -> list[BinaryIO]:
        """The files there are, older one first."""
        files: list[BinaryIO] = []
        # The younger one first: it may become the older one between the two.
        for path in (self._path, self._before):
            with contextlib.suppress(FileNotFoundError):
                files.insert(0, open_to_read(path))
        if len(files) == 2 and os.path.sameopenfile(files[0].fileno(), files[1].fileno()):
            files.pop().close()
        return files


class _Uids:
    """Whose entries a file holds, as far as it was read: numbers made of their uids, which take little memory."""

    def __init__(self) -> None:
        self.offset = 0
        self._hashes: set[int] = set()

    def __contains__(self, run_uid: str) -> bool:
        """Return True if there may be an entry of the run; False if there surely is none."""
        text = _RUN_UID.search(msgspec.json.encode({"run_uid": run_uid}))
        return text is not None and hash(text[1]) in self._hashes

    def read_on(self, file: BinaryIO) -> None:
        """Take in what follows."""
        for end, text in whole_lines(file, self.offset):
            found = None if text is None else _RUN_UID.search(text)
            if found is not None:
                self._hashes.add(hash(found[1]))
            self.offset = end  # last: interrupted before, a line is taken in once more


class Claim:
    """A run that is ours to deliver, until `close`; `make_room` is called where the disk is full."""

    def __init__(
        self,
        folder: Path,
        header: Header,
        lock: RunLock,
        history: History,
        make_room: Callable[[], object] = lambda: None,
    ) -> None:
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
        self.ledger = Ledger(folder / LEDGER, make_room=make_room)
        self._make_room = make_room
        # Where all was delivered before, whoever did it may have got as far as the history.
        self._perhaps_in_history = self.ledger.state.is_over
        self._history = history
        self._lock = lock
        try:
            self._begin_anew_if_moved()
        except BaseException:
            self.ledger.close()
            raise

    def _begin_anew_if_moved(self) -> None:
        """Where a person has moved the run since, what the endpoint before has of it counts no more."""
        self._note_if_broken()
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

    def _note_if_broken(self) -> None:
        """Note that the ledger cannot be understood, once: what is ordered after that is meant with that in mind."""
        state = self.ledger.state
        if state.broken is None or state.broken_was_noted:
            return
        if state.may_have_moved and len(self.orders()) > state.orders_obeyed:
            # The line that is damaged may have told that the last move was obeyed: again would send all of it twice.
            self.ledger.note(Obeyed(len(self.orders())))
        self.ledger.note(Parked(state.broken), sync=True)

    @property
    def endpoint(self) -> str:
        """Where the run's requests may go."""
        state = self.ledger.state
        if state.broken is not None and state.may_have_moved:
            return endpoint_of(self.folder, self.header)
        return state.endpoint or self.header.endpoint

    def settle_if_interrupted(self) -> bool:
        """Write the stop of a run whose writer is gone without one; False while it lives, or where there is a stop."""
        lock = RunLock(self.folder / WRITER_LOCK)
        if not lock.acquire():
            return False
        try:
            if has_stop(self.folder) or session_lives(self.folder.parent, self.header.session):
                return False
            journal = JournalWriter(self.folder, make_room=self._make_room)
            try:
                stop = Stop(time=time.time(), exit_status="", reason="no stop document", interrupted=True)
                journal.append(line(encode(stop)))
                journal.sync()
            finally:
                journal.close()
            if not (self.folder / HEAD).exists():  # killed before its writer's first sync
                keep_copies(self.folder, described_lines(self.folder), make_room=self._make_room)
        finally:
            lock.release()
        return True

    def orders(self) -> list[OrderLine]:
        """Everything that was asked for so far, in order.

        Raises:
            SpoolError: An order is not understood.
        """
        return read_orders(self.folder)

    def finish(self, entry: dict[str, Any], courtesy: Courtesy | None = None) -> bool:
        """Move a run that is finalized whole into the history; False while its writer still has files open.

        Which events an interrupted one has given stays known, in case it is delivered again.
        """
        lock = RunLock(self.folder / WRITER_LOCK)
        if not lock.acquire():
            return False
        folder = entry["folder"] = self.folder.name
        # A process that died between these two steps leaves the run in both places; whoever comes next only removes it.
        if not (self._perhaps_in_history and self._history.entries_with("folder", folder)):
            if entry.get("interrupted"):
                entry["events"] = keep_events(self.folder, courtesy)
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
