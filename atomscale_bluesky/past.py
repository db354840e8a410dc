"""What the spool and its history know of a run whose start document comes again, by a replay or a bus.

A run that has ended is recognised and not taken again. One that was interrupted, because its process was killed or its
bus delivers again from an earlier place, goes on: what was kept of it is told by the time of the last row of each time
base, for replays do not keep the uids of events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from .account import Account
from .errors import SpoolError
from .reading import RunReader, read_header
from .spool import Spool


class Past(msgspec.Struct, frozen=True):
    """What is left of a run that was taken before, by whichever process."""

    content: str  # the digest of its start document
    ended: bool  # by a stop document; or somebody else is taking it right now
    until: dict[str, float] = {}  # by time base, the time of the last row that was kept


# How many headers are read at construction, in some 20 ms, and later at a time.
AT_CONSTRUCTION, AT_A_TIME = 500, 100


class PastRuns:
    """The runs of a spool and its history by their uids. Each header is read once.

    Those of the youngest runs are read at construction, where they are many the others in a thread of the spool's. So
    what a start document waits for does not grow with the runs that wait: of these it reads one folder's names.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._uids: dict[str, str] = {}  # by folder name
        names = sorted(spool.run_names())
        self._read(names[max(0, len(names) - AT_CONSTRUCTION) :])
        if len(names) > AT_CONSTRUCTION:
            spool.in_background(self._read_on)
        with suppress(OSError):  # reported by whoever asks for a run
            spool.read_history()

    def of(self, run_uid: str) -> Past | None:
        """What is known of a run; None if it is in neither spool nor history. Reads what is in the spool of it."""
        # The spool first: what leaves it meanwhile is in the history by then.
        found = [*self._in_spool(run_uid), *self._in_history(run_uid)]
        if not found:
            return None
        until: dict[str, float] = {}
        for past in found:
            for time_base, time in past.until.items():
                until[time_base] = max(time, until.get(time_base, time))
        return Past(found[0].content, any(past.ended for past in found), until)

    def _look(self) -> None:
        self._read(self._spool.run_names())

    def _read(self, names: Sequence[str]) -> None:
        # A new one in the place of the old: several threads may ask, and none waits for another.
        known = self._uids
        self._uids = {name: known.get(name) or _uid_in(self._spool.path / name) for name in names}

    def _read_on(self) -> bool:
        """Read some of the headers that were not read yet; whether there are more."""
        names = self._spool.run_names()
        new = [name for name in names if name not in self._uids]
        # Also a new one: another thread may be going through the old. What it reads meanwhile it may read once more.
        self._uids = {**self._uids, **{name: _uid_in(self._spool.path / name) for name in new[:AT_A_TIME]}}
        return len(new) > AT_A_TIME

    def _in_history(self, run_uid: str) -> Iterator[Past]:
        for entry in self._spool.history_of(run_uid):
            yield Past(str(entry.get("content", "")), not entry.get("interrupted"), dict(entry.get("until") or {}))

    def _in_spool(self, run_uid: str) -> Iterator[Past]:
        self._look()
        for name in [name for name, uid in self._uids.items() if uid == run_uid]:
            folder = self._spool.path / name
            header = read_header(folder)
            if header is not None:
                yield _as_kept(self._spool, folder, header.content)


def _uid_in(folder: Path) -> str:
    """The uid of the run in a folder; none while it has no header that can be read, which concerns no other run."""
    try:
        header = read_header(folder)
    except OSError:  # a SpoolError is one
        return ""
    return header.run_uid if header else ""


def _as_kept(spool: Spool, folder: Path, content: str) -> Past:
    if spool.writer_alive(folder):
        return Past(content, ended=True)
    account = Account()
    reader = RunReader(folder)
    try:
        for line in reader.read():
            account.take(line.payload)
    except SpoolError:  # a line that is not understood: what stands before it has to do
        pass
    finally:
        reader.close()
    return Past(content, account.stop is not None and not account.stop.interrupted, dict(account.until))
