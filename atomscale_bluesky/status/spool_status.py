"""What became of every reading of the runs in a spool, told by its files, read on from call to call.

It needs no claim on a run and disturbs nobody: the same for the process that writes a run, the one that delivers it,
and a person who asks from a terminal after both have died.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ..errors import SpoolError
from ..spool.history import NotKept
from ..spool.ledger import LedgerReader, is_delivered
from ..spool.ledger_state import LedgerState
from ..spool.orders import endpoint_of
from ..spool.own_files import refuse_links_in
from ..spool.run_reader import LEDGER, RunReader, was_synced
from ..spool.spool import Spool
from .account import Account, Counts, RunStatus, StreamStatus, unreadable
from .outage import Trouble, read_trouble

# A run that found no room is in the status for a week, since nobody can do anything about it but replay it.
NOT_KEPT_SHOWN_S = 7 * 86400.0


class Status(tuple[RunStatus, ...]):
    """The runs that are not finalized, oldest first, and what they come to together."""

    trouble: Trouble | None
    no_room: str  # why new readings are left out at present; empty if they are not
    not_kept: tuple[NotKept, ...]  # runs of the last seven days that found no room

    def __new__(
        cls,
        runs: Iterable[RunStatus] = (),
        trouble: Trouble | None = None,
        no_room: str = "",
        not_kept: Iterable[NotKept] = (),
    ) -> Status:
        """The runs, what keeps them from leaving, and what keeps or kept new readings out."""
        self = super().__new__(cls, runs)
        self.trouble = trouble
        self.no_room = no_room
        self.not_kept = tuple(not_kept)
        return self

    @property
    def last_error(self) -> str | None:
        """Why Atomscale takes no data, as whichever process delivers has met it; else what waits for a person."""
        if self.trouble is not None:
            return self.trouble.error
        return next((run.problem for run in reversed(self) if run.problem), None)

    @property
    def oldest_waiting(self) -> float | None:
        """Time of the oldest point that waits, Unix seconds; None if none does."""
        return min((run.oldest_waiting for run in self if run.oldest_waiting is not None), default=None)

    @property
    def runs(self) -> tuple[RunStatus, ...]:
        """One entry per run."""
        return tuple(self)

    @property
    def points(self) -> Counts:
        """All runs together."""
        return sum((run.points for run in self), Counts())


class SpoolWatch:
    """Tells the status of a spool's runs as often as one likes, at the cost of what was written in between."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._runs: dict[Path, _RunWatch] = {}
        self._lock = threading.RLock()  # one thread at a time reads on
        self._calls = 0  # more than one: a handler, of a signal or of a log, has come back here
        self._last = Status()

    def status(self) -> Status:
        """The runs that are in the spool now; one whose files are not understood is there as `unreadable`."""
        with self._lock:
            if self._calls > 1:
                return self._last
            self._calls += 1
            try:
                if self._calls > 1:
                    return SpoolWatch(self._spool).status()  # from the beginning, and leaves what is read on alone
                self._last = self._read()
                return self._last
            except BaseException:  # also one that a signal raises: what was read in part is read again
                self.close()
                raise
            finally:
                self._calls -= 1

    def close(self) -> None:
        """Forget what was read; a later call reads it again."""
        while self._runs:
            _, run = self._runs.popitem()
            run.close()

    def _read(self) -> Status:
        folders = self._spool.run_folders()
        for gone in self._runs.keys() - set(folders):
            self._runs.pop(gone).close()
        runs = [self._runs.setdefault(folder, _RunWatch(folder)).status(self._spool) for folder in folders]
        found = sorted((run for run in runs if run is not None), key=lambda run: run.started)
        since = time.time() - NOT_KEPT_SHOWN_S
        not_kept = [run for run in self._spool.runs_not_kept() if run.ended >= since]
        return Status(found, read_trouble(self._spool.path), self._spool.why_no_room(), not_kept)

    def find(self, run: str) -> RunStatus:
        """The run whose uid begins with a text.

        Raises:
            SpoolError: There is none, or several do.
        """
        found = [status for status in self.status() if run and status.run_uid.startswith(run)]
        if not found:
            gone = bool(run) and self._spool.has_finished(run)
            more = "; it is finished and has left the spool" if gone else "; see `atomscale-bluesky status`"
            if any(one.run_uid.startswith(run) for one in self._spool.runs_not_kept() if run):
                more = "; it was not kept, because the spool had no room for it"
            raise SpoolError(f"no run in the spool begins with {run!r}{more}")
        if len({status.run_uid for status in found}) > 1:
            raise SpoolError(f"{len(found)} runs in the spool begin with {run!r}; give more of the uid")
        return found[0]

    def streams(self, run_uid: str) -> tuple[StreamStatus, ...]:
        """What a run became in Atomscale, be it under way, waiting or finished; empty for one that is not known."""
        found = [stream for run in self.status() if run.run_uid == run_uid for stream in run.streams]
        known = {stream.label for stream in found}
        for entry in self._spool.history_of(run_uid):  # read last: a run that is finished meanwhile is here
            streams = msgspec.convert(entry.get("streams") or [], list[StreamStatus])
            found += [stream for stream in streams if stream.label not in known]
        return tuple(found)


class _RunWatch:
    """One run's files, and how far they were read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._account = Account()
        self._journal = RunReader(folder)
        self._ledger = LedgerReader(folder / LEDGER)

    def status(self, spool: Spool) -> RunStatus | None:
        """None while the run has no header, because it is just being made or removed."""
        try:
            return self._read(spool)
        except SpoolError as error:
            self._journal.close()
            return unreadable(str(self._folder), str(error))

    def _read(self, spool: Spool) -> RunStatus | None:
        refuse_links_in(self._folder)
        # The ledger first: what it confirms is in the journal already, so nothing is delivered before it was seen.
        ledger = self._ledger.read_on()
        for line in self._journal.read():
            self._account.take(line.payload)
        self._journal.close()
        if self._account.header is None:
            lost = was_synced(self._folder) and not is_delivered(self._folder / LEDGER)
            return unreadable(str(self._folder), "its header is damaged or gone") if lost else None
        alive = self._account.stop is None and spool.writer_alive(self._folder)
        endpoint = endpoint_of(self._folder, self._account.header)
        if endpoint != (ledger.endpoint or self._account.header.endpoint) and ledger.broken is None:
            # Moved: what the ledger tells of the endpoint before counts no more, also until an uploader has noted that.
            edited, ledger = ledger.edited, LedgerState()
            ledger.edited, ledger.endpoint = edited, endpoint
        return self._account.status(ledger, writer_alive=alive, folder=str(self._folder))

    def close(self) -> None:
        self._journal.close()
