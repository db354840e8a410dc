"""What happened to every reading of the runs in a spool, from its files. Each call reads only what is new.

It needs no claim on a run and disturbs no process. The result is the same in the process that writes a run, in the one
that delivers it, and for an operator who asks on a terminal after both have died.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ..errors import SpoolError
from ..model.labels import shortened
from ..model.text import safe
from ..model.uids import shown_uid, uids_meant
from ..spool.ledger import LedgerReader, is_delivered
from ..spool.ledger_state import LedgerState
from ..spool.orders import Orders, endpoint_of
from ..spool.own_files import OUT_OF_RESOURCES, recording_began, refuse_links_in
from ..spool.run_reader import LEDGER, RunReader, was_synced
from ..spool.runs_not_kept import NotKept
from ..spool.segments import written_at
from ..spool.spool import Spool
from .account import Account, Counts
from .notebook import html_table
from .outage import Outage, read_outage
from .run_status import RunStatus, StreamStatus, status_of, unreadable

# A run that found no disk space is in the status for a week. Only a replay could still deliver it.
NOT_KEPT_SHOWN_S = 7 * 86400.0
# How many runs a status shows at a prompt or in a notebook: the newest ones.
MAX_SHOWN = 20
# A shorter text may be the beginning of a uid. Bluesky's uids are UUIDs, which have 32 digits.
MIN_UID_LENGTH = 32


class Status(tuple[RunStatus, ...]):
    """The runs that are not finalized, oldest first, and their totals."""

    trouble: Outage | None
    no_room: str  # why new readings are left out now; empty if they are not
    not_kept: tuple[NotKept, ...]  # runs of the last seven days that found no disk space
    delivered_to: frozenset[str]  # the endpoints to which a living process delivers runs of this spool now

    def __new__(
        cls,
        runs: Iterable[RunStatus] = (),
        trouble: Outage | None = None,
        no_room: str = "",
        not_kept: Iterable[NotKept] = (),
        delivered_to: Iterable[str] = (),
    ) -> Status:
        """Make a status of the runs, the present outage, what is or was not kept, and where runs are delivered to."""
        self = super().__new__(cls, runs)
        self.trouble = trouble
        self.no_room = no_room
        self.not_kept = tuple(not_kept)
        self.delivered_to = frozenset(delivered_to)
        return self

    def __repr__(self) -> str:
        """Return a line for each of the newest runs, kept or not, below one for all."""
        lines = [self._headline()]
        for run in self[-MAX_SHOWN:]:
            name = shortened(safe(run.label), 60)
            state = run.state + (f" ({ended})" if (ended := bad_ending(run.exit_status)) else "")
            lines.append(f"  {shown_uid(run.run_uid)}  {state:11}  {_counts_in_words(run.points)}  {name}".rstrip())
        for one in self.not_kept[-MAX_SHOWN:]:
            told = f"{one.readings} readings left out, {safe(one.reason, 200)}"
            lines.append(
                f"  {shown_uid(one.run_uid)}  {'not kept':11}  {told}  {shortened(safe(one.label), 60)}".rstrip()
            )
        return "\n".join(lines)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Return the same as a table for a notebook."""
        columns = ("run", "name", "state", "seen", "delivered", "waiting", "refused", "left out", "problem")
        rows: list[tuple[object, ...]] = [
            (
                *(shown_uid(run.run_uid), run.label, run.state, run.points.seen, run.points.delivered),
                *(run.points.waiting, run.points.refused, sum(run.points.left_out.values()), run.problem),
            )
            for run in self[-MAX_SHOWN:]
        ]
        for one in self.not_kept[-MAX_SHOWN:]:
            rows.append(
                (shown_uid(one.run_uid), one.label, "not kept", None, None, None, None, one.readings, one.reason)
            )
        return html_table(self._headline(), columns, rows)

    def _headline(self) -> str:
        text = "no run waits"
        if self:
            text = f"{_runs(len(self))}, {self.points.waiting} points waiting"
        if len(self) > MAX_SHOWN:
            text += f", the newest {MAX_SHOWN} are shown"
        if self and self.last_error:
            text += f"; {safe(self.last_error, 300)}"
        if self.not_kept:
            text += f"; {_runs(len(self.not_kept))} of the last seven days found no room"
        return text

    @property
    def last_error(self) -> str | None:
        """Why Atomscale takes no data, as the process that delivers noted it; else the newest run's problem, if any."""
        if self.trouble is not None:
            return self.trouble.error
        return next((run.problem for run in reversed(self) if run.problem), None)

    @property
    def key_refused(self) -> bool:
        """True if runs wait because the API key of the process that delivers them is refused."""
        trouble = self.trouble
        if trouble is None or not trouble.key_refused:
            return False
        return any((run.points.waiting or run.unfinished) and run.endpoint == trouble.endpoint for run in self)

    @property
    def oldest_waiting(self) -> float | None:
        """Since when the oldest waiting point waits, Unix seconds; None if none waits."""
        return min((run.oldest_waiting for run in self if run.oldest_waiting is not None), default=None)

    @property
    def runs(self) -> tuple[RunStatus, ...]:
        """One entry per run."""
        return tuple(self)

    @property
    def points(self) -> Counts:
        """The sum over all runs."""
        return sum((run.points for run in self), Counts())


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def bad_ending(exit_status: str) -> str:
    """Return how a run ended if it did not end well: `fail`, `abort` or another word; else an empty text."""
    return "" if exit_status in {"", "success"} else safe(exit_status, 40)


def _counts_in_words(points: Counts) -> str:
    """Return the counts in words; what is 0 is left out, except for the waiting points."""
    counts = {"delivered": points.delivered, "waiting": points.waiting}
    more = {"refused": points.refused, "discarded": points.discarded, "left out": sum(points.left_out.values())}
    counts |= {name: n for name, n in (more | {"lost": points.lost}).items() if n}
    return f"{points.seen} seen = " + " + ".join(f"{n} {name}" for name, n in counts.items())


class SpoolStatus:
    """Reports the status of a spool's runs. Each call costs only what was written since the last one."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._runs: dict[Path, _RunWatch] = {}
        self._lock = threading.RLock()  # one thread at a time reads on
        self._calls = 0  # more than one: a handler of a signal or a log has called this again
        self._last = Status()

    def status(self) -> Status:
        """Return the runs in the spool now. A run whose files cannot be read is listed as `unreadable`.

        Raises:
            OSError: The spool's own folder cannot be read, or this process has no file descriptor or memory left.
        """
        with self._lock:
            if self._calls > 1:
                return self._last
            self._calls += 1
            try:
                if self._calls > 1:
                    return SpoolStatus(self._spool).status()  # from the beginning; leaves the outer call's state alone
                self._last = self._read()
                return self._last
            except BaseException:  # also an exception from a signal handler: partly read files are read again
                self.close()
                raise
            finally:
                self._calls -= 1

    def close(self) -> None:
        """Forget what was read. A later call reads it again."""
        while self._runs:
            _, run = self._runs.popitem()
            run.close()

    def _read(self) -> Status:
        folders = self._spool.run_folders()
        for gone in self._runs.keys() - set(folders):
            self._runs.pop(gone).close()
        for folder in folders:
            if folder not in self._runs:
                self._runs[folder] = _RunWatch(folder)
        runs = [self._runs[folder].status(self._spool) for folder in folders]
        found = sorted((run for run in runs if run is not None), key=lambda run: run.started)
        since = time.time() - NOT_KEPT_SHOWN_S
        not_kept = [run for run in self._spool.not_kept.runs() if run.ended >= since]
        not_kept = [run for run in not_kept if not self._was_replayed(run, found)]
        delivered_to = self._delivered_to(found)
        return Status(
            [
                replace(run, state="waiting") if run.state == "delivering" and run.endpoint not in delivered_to else run
                for run in found
            ],
            read_outage(self._spool.path),
            self._spool.disk_space.why_full_now(),
            not_kept,
            delivered_to,
        )

    def _was_replayed(self, run: NotKept, found: Iterable[RunStatus]) -> bool:
        """Return True if as many readings of a run were taken after it had found no disk space."""
        taken = [(one.folder, one.points.seen) for one in found if one.run_uid == run.run_uid]
        for entry in self._spool.history.entries_of(run.run_uid):
            counts = (entry.get("delivered"), entry.get("discarded"), entry.get("lost"))
            seen = sum(int(count or 0) for count in counts) + sum((entry.get("left_out") or {}).values())
            taken.append((str(entry.get("folder")), seen))
        return any(recording_began(folder) >= int(run.ended) and seen >= run.readings for folder, seen in taken)

    def _delivered_to(self, runs: Sequence[RunStatus]) -> set[str]:
        """Return the endpoints to which a living process delivers a run.

        The process holds the locks of a few runs. Its other runs wait for their turn without a lock. A process that
        serves the spool may hold no run's lock.
        """
        found = {endpoint for endpoint in {run.endpoint for run in runs} if self._spool.is_served(endpoint)}
        for run in runs:
            if run.endpoint in found or run.state in {"parked", "unreadable", "discarded"}:
                continue
            if self._spool.uploader_alive(Path(run.folder)):
                found.add(run.endpoint)
        return found

    def parts(self, run: str) -> tuple[RunStatus, ...]:
        """Return the run whose uid begins with `run`, as one status for each folder that it has in the spool.

        A run has several if it was interrupted and went on before the first part had left the spool, or if it was
        recorded twice. They are in the order in which they were recorded.

        Raises:
            SpoolError: No run or several runs match.
        """
        found = [status for status in self.status() if run and status.run_uid.startswith(run)]
        uids = uids_meant((status.run_uid for status in found), run)
        if run not in uids and (not uids or self._has_left(run)):
            raise self.not_found(run)
        if len(uids) > 1:
            raise SpoolError(f"{len(uids)} runs in the spool begin with {run!r}; give more of the uid")
        return tuple(sorted((status for status in found if status.run_uid in uids), key=lambda status: status.folder))

    def _has_left(self, uid: str) -> bool:
        """Return True if this is the whole uid of a run that has left the spool or was not kept."""
        return bool(self._spool.history.entries_of(uid)) or self.was_not_kept(uid)

    def was_not_kept(self, uid: str) -> bool:
        """Return True if this is the whole uid of a run for which the spool had no room."""
        return any(one.run_uid == uid for one in self._spool.not_kept.runs())

    def not_found(self, run: str) -> SpoolError:
        """Return the error for a run that is not in the spool, which says where it is, if that is known."""
        gone = bool(run) and self._spool.history.newest_beginning_with(run) is not None
        more = f"; `atomscale-bluesky status` lists those of {self._spool.path}"
        more = "; it is finished and has left the spool" if gone else more
        if any(one.run_uid.startswith(run) for one in self._spool.not_kept.runs() if run):
            more = "; it was not kept, because the spool had no room for it"
        if len(run) >= MIN_UID_LENGTH:
            return SpoolError(f"run {shown_uid(run)} is not in the spool{more}")
        whole = any(status.run_uid.startswith(run) for status in self.status())  # and another one begins with it
        none = f"run {run!r} is not in the spool" if whole else f"no run in the spool begins with {run!r}"
        return SpoolError(f"{none}{more}")

    def streams(self, run_uid: str) -> tuple[StreamStatus, ...]:
        """Return the metrology streams of a run, in progress, waiting or finished; empty for an unknown run.

        Args:
            run_uid: The run's uid, or its beginning.

        Raises:
            SpoolError: Several runs begin with `run_uid`.
        """
        if 0 < len(run_uid) < MIN_UID_LENGTH:
            run_uid = self._whole_uid(run_uid)
        found = [stream for run in self.status() if run.run_uid == run_uid for stream in run.streams]
        known = {stream.label for stream in found}
        for entry in self._spool.history.entries_of(
            run_uid
        ):  # read last: a run that is finished meanwhile is found here
            streams = msgspec.convert(entry.get("streams") or [], list[StreamStatus])
            found += [stream for stream in streams if stream.label not in known]
        return tuple(found)

    def _whole_uid(self, beginning: str) -> str:
        """Return the uid that begins so, or `beginning` itself if there is none.

        Raises:
            SpoolError: There are several.
        """
        uids = {run.run_uid for run in self.status()}
        uids |= {str(entry.get("run_uid")) for entry in self._spool.history.entries()}
        found = uids_meant(uids, beginning)
        if len(found) > 1:
            raise SpoolError(f"{len(found)} runs begin with {beginning!r}; give more of the uid")
        return next(iter(found), beginning)


class _RunWatch:
    """One run's files, and how far they were read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._account = Account()
        self._journal = RunReader(folder)
        self._ledger = LedgerReader(folder / LEDGER)
        self._orders = Orders(folder)
        self._final: tuple[frozenset[tuple[str, int, int]], RunStatus] | None = None  # of a run that has stopped

    def status(self, spool: Spool) -> RunStatus | None:
        """Return the run's status, or None while the run has no header, because it is just being made or removed."""
        files = self._files()
        if self._final is not None and files == self._final[0]:
            return self._final[1]
        self._final = None
        try:
            found = self._read(spool)
            if found is not None and self._account.stop is not None:  # it depends on its files alone
                self._final = files, found
            return found
        except OSError as error:  # a SpoolError is one
            self._journal.close()
            if error.errno in OUT_OF_RESOURCES:
                raise
            if isinstance(error, FileNotFoundError) and not os.path.lexists(self._folder):
                return None  # it was removed meanwhile
            return unreadable(str(self._folder), str(error))

    def _files(self) -> frozenset[tuple[str, int, int]]:
        """Return name, size and time of change of the run's files. This takes a tenth of the time of reading on."""
        try:
            with os.scandir(self._folder) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        except OSError:  # it is being removed
            return frozenset()
        return frozenset((name, about.st_size, about.st_mtime_ns) for name, about in found)

    def _read(self, spool: Spool) -> RunStatus | None:
        refuse_links_in(self._folder)
        # The ledger first: what it confirms is in the journal already, so no point counts as delivered before it was
        # seen.
        ledger = self._ledger.read_on()
        self._account.read_on(self._journal)
        self._journal.close()
        if self._account.header is None:
            lost = was_synced(self._folder) and not is_delivered(self._folder / LEDGER)
            return unreadable(str(self._folder), "its header is damaged or gone") if lost else None
        alive = self._account.stop is None and spool.writer_alive(self._folder)
        orders = self._orders.read_on()
        ordered = orders[ledger.orders_obeyed :]
        endpoint = endpoint_of(self._account.header, orders, self._folder)
        if endpoint != (ledger.endpoint or self._account.header.endpoint) and ledger.broken is None:
            # Moved: facts about the previous endpoint no longer count, even before an uploader has noted the move.
            edited, ledger = ledger.edited, LedgerState()
            ledger.edited, ledger.endpoint = edited, endpoint
        return status_of(
            self._account,
            ledger,
            writer_alive=alive,
            folder=str(self._folder),
            ordered=ordered,
            last_written=written_at(self._folder) if alive else None,
        )

    def close(self) -> None:
        self._journal.close()
