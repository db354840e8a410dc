"""What the spool and its history know of a run whose start document comes again, by a replay or from a message bus.

A run that has ended is recognised and not taken again. A run that was interrupted, because its process was killed or
its bus delivers again from an earlier position, goes on: each event is checked against those already kept.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ..model.text import safe
from ..spool.journal_events import Events, read_events
from ..spool.kept_events import KeptEvents
from ..spool.run_reader import descriptors_in, read_header
from ..spool.spool import Spool
from ..spool.stored_events import stored_events

_logger = logging.getLogger(__name__)


class KnownRun(msgspec.Struct, frozen=True):
    """What is left of a run that some process took before."""

    ended: bool  # ended by a stop document; or another process is taking it right now
    being_taken: bool = False  # by another process, or by another recorder
    kept: KeptEvents | None = None  # the kept events of an interrupted run


TWICE = (
    "run %s is recorded by another process too, with the same spool %s, so its readings arrive twice, and so do those "
    "of later runs: subscribe only one of the two; a second recording on purpose needs a `spool_dir` of its own"
)

# In how many runs of the spool, the youngest ones, a descriptor is sought that no run read so far has.
MOST_SEARCHED = 50
# How many runs that began here wait to be checked for a second recorder.
MOST_BEGUN = 50
# How many headers are read at construction, which takes about 20 ms, and at a time later.
AT_CONSTRUCTION, AT_A_TIME = 500, 100


class KnownRuns:
    """The runs of a spool and its history, by uid. Each header is read once.

    Headers of the youngest runs are read at construction. If there are more, a thread of the spool reads the rest. A
    run that began a moment ago can only be one of the youngest, so its start document waits for no other headers: of
    the runs that wait it reads only the folders' names.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._uids: dict[str, str] = {}  # by folder name; empty while there is no header
        self._descriptors: dict[str, set[str]] = {}  # by folder name, of runs that no process writes
        names = sorted(spool.run_names())
        self._most_uids = _twice(names)  # from this many on, those of folders that are gone are forgotten
        self._read(names[max(0, len(names) - AT_CONSTRUCTION) :])
        self._unread = len(names) > AT_CONSTRUCTION
        # Runs to check for a second recorder. Any thread may append. Without the spool's thread the oldest are dropped.
        self._begun: deque[tuple[str, str, Callable[[str], bool]]] = deque(maxlen=MOST_BEGUN)
        self._told = False  # that another process records a run too
        if self._unread:
            spool.writers.in_background(self._step)
        with suppress(OSError):  # reported when a run is asked for
            spool.history.read_on()

    def of(self, run_uid: str, *, goes_on: bool = False, young: bool = False) -> KnownRun | None:
        """Return what is known of a run, or None if it is in neither spool nor history.

        Reads the run's files in the spool.

        Args:
            run_uid: The run's uid.
            goes_on: The run goes on where it was, so its source keeps the uids of events.
            young: The run began a moment ago: only the youngest runs of the spool are searched, and those known.
        """
        found, entries = self._found(run_uid, young=young)
        if not found and not entries:
            return None
        if any(map(_has_ended, found.values())) or not all(entry.get("interrupted") for entry in entries):
            return KnownRun(ended=True, being_taken=None in found.values())
        parts = [part for part in found.values() if part is not None]
        return KnownRun(ended=False, kept=self._kept(parts, entries, uids_alone=goes_on))

    def of_open(self, run_uid: str, folder: Path) -> KeptEvents:
        """Return the events of a run that is open in `folder`, as far as they are written at the time of the call."""
        found, entries = self._found(run_uid, but=folder.name)
        parts = [part for part in found.values() if part is not None]
        return self._kept(parts, entries, read_events(folder))

    def with_descriptor(self, uid: str, *, everywhere: bool = False) -> str | None:
        """Return the uid of the interrupted run to which a descriptor belongs, or None.

        Searches the runs of the spool, the youngest ones first, and those in the history.

        Args:
            uid: The descriptor's uid.
            everywhere: Read every run of the spool if need be, about half a millisecond for each. Otherwise up to
                `MOST_SEARCHED` of those that no earlier call has read.
        """
        self._look(young=not everywhere)
        names = sorted(self._spool.run_names(), reverse=True)
        self._descriptors = {name: self._descriptors[name] for name in names if name in self._descriptors}
        left = len(names) if everywhere else MOST_SEARCHED
        for name in names:
            if name not in self._descriptors:
                if not left:
                    continue
                folder = self._spool.path / name
                if self._spool.writer_alive(folder):
                    continue
                left -= 1
                self._descriptors[name] = descriptors_in(folder)
            if uid in self._descriptors[name]:
                return self._uids.get(name)
        entry = self._spool.history.with_descriptor(uid)
        return None if entry is None else str(entry.get("run_uid"))

    def watch(self, run_uid: str, folder: Path, *, on_purpose: Callable[[str], bool]) -> None:
        """Let a thread of the spool find out whether another process records a run too, and log that once.

        Returns at once. The thread looks within a second: if two processes begin a run at the same moment, neither has
        found the other one's files before.

        Args:
            run_uid: The run, which begins here.
            folder: Its folder.
            on_purpose: Returns True for a run that another recorder of this process has, too.
        """
        if not self._told:
            self._begun.append((run_uid, folder.name, on_purpose))
            self._spool.writers.in_background(self._step)

    def _step(self) -> bool:
        """Read some headers and check the runs in `_begun`, in the spool's thread. Return True if more is to do."""
        while self._begun:
            run_uid, name, on_purpose = self._begun.popleft()
            self._look(young=True)
            others = [other for other, uid in self._uids.items() if uid == run_uid and other != name]
            if not self._told and any(map(self._begins, others)) and not on_purpose(run_uid):
                self._told = True
                _logger.warning(TWICE, run_uid, safe(str(self._spool.path)))
        self._unread = self._unread and self._read_on()
        return self._unread

    def _begins(self, name: str) -> bool:
        """Return True if a folder has the beginning of a run, and not what came after an interruption."""
        header = read_header(self._spool.path / name)
        return header is not None and header.part == 0

    def _look(self, *, young: bool = False) -> None:
        """Read the headers of runs that are not known yet, or only those of the youngest."""
        if len(self._uids) > self._most_uids:
            self._read([name for name in self._spool.run_names() if name in self._uids])
            self._most_uids = _twice(self._uids)
        names = self._spool.run_names_but(self._uids)
        names = names[max(0, len(names) - AT_CONSTRUCTION) :] if young else names
        names += [name for name, uid in self._uids.items() if not uid]
        if names:
            self._uids = {**self._uids, **{name: _uid_in(self._spool.path / name) for name in names}}

    def _read(self, names: Sequence[str]) -> None:
        # A new dict replaces the old one: several threads may call this, and none waits for another.
        known = self._uids
        self._uids = {name: known.get(name) or _uid_in(self._spool.path / name) for name in names}

    def _read_on(self) -> bool:
        """Read some of the headers not read yet. Return True if there are more."""
        names = self._spool.run_names()
        new = [name for name in names if name not in self._uids]
        # Also a new dict: another thread may be iterating over the old one. A header read meanwhile may be read again.
        self._uids = {**self._uids, **{name: _uid_in(self._spool.path / name) for name in new[:AT_A_TIME]}}
        return len(new) > AT_A_TIME

    def _found(
        self, run_uid: str, but: str = "", *, young: bool = False
    ) -> tuple[dict[str, Events | None], list[dict[str, Any]]]:
        """Return what the spool has of a run, except in the folder `but`, and the run's entries in the history."""
        # The spool first: a run that leaves it meanwhile is then in the history, and what was read of it does not
        # count.
        found = self._in_spool(run_uid, but, young=young)
        entries = self._spool.history.of(run_uid)
        for entry in entries:
            found.pop(str(entry.get("folder")), None)
        return found, entries

    def _in_spool(self, run_uid: str, but: str, *, young: bool) -> dict[str, Events | None]:
        """Return the run's events by folder name. They are None while the folder is being written."""
        self._look(young=young)
        found: dict[str, Events | None] = {}
        for name in sorted(name for name, uid in self._uids.items() if uid == run_uid and name != but):
            folder = self._spool.path / name
            if read_header(folder) is None:
                continue
            written = self._spool.writer_alive(folder)
            events = read_events(folder)
            # The writer may have written its stop without having released the run yet.
            found[name] = events if events.stop is not None or not written else None
        return found

    def _kept(
        self,
        parts: list[Events],
        entries: list[dict[str, Any]],
        by_uid: Events | None = None,
        *,
        uids_alone: bool = False,
    ) -> KeptEvents:
        until: dict[str, float] = {}
        earlier: list[Events] = []
        for entry in entries:
            events = stored_events(self._spool.path, str(entry.get("events")))
            if events is not None:
                earlier.append(events)
                continue
            for time_base, time in dict(entry.get("until") or {}).items():
                until[time_base] = max(time, until.get(time_base, time))
        return KeptEvents([*earlier, *parts], until, by_uid=by_uid, uids_alone=uids_alone)


def _twice(names: Collection[str]) -> int:
    return 2 * len(names) + AT_CONSTRUCTION


def _has_ended(events: Events | None) -> bool:
    return events is None or (events.stop is not None and not events.stop.interrupted)


def _uid_in(folder: Path) -> str:
    """Return the uid of the run in a folder, or an empty text without a readable header.

    Other runs are not affected.
    """
    try:
        header = read_header(folder)
    except OSError:  # a SpoolError is one too
        return ""
    return header.run_uid if header else ""
