"""What the spool and its history know of a run whose start document comes again, by a replay or from a message bus.

A run that has ended is recognised and not recorded again. A run that was interrupted, because its process was killed
or its bus delivers again from an earlier position, is resumed: each event is checked against those already kept.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Sequence, Set
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from ..model.text import safe
from ..spool.journal_events import EventDigests, read_events
from ..spool.kept_events import KeptEvents, KeptSpan
from ..spool.own_files import OUT_OF_RESOURCES
from ..spool.run_reader import descriptors_in, read_header
from ..spool.spool import Spool
from ..spool.stored_events import load_events

_logger = logging.getLogger(__name__)


class RunState(Enum):
    """How far a run was recorded before."""

    ENDED = "ended"  # up to its stop document
    BEING_RECORDED = "being recorded"  # another process, or another recorder, writes its journal right now
    INTERRUPTED = "interrupted"  # its journals have no stop document, so it can be resumed


class KnownRun(msgspec.Struct, frozen=True):
    """What is left of a run that some process recorded before."""

    state: RunState
    earlier_events: KeptEvents | None = None  # what the journals of an interrupted run hold


RECORDED_TWICE = (
    "run %s is recorded by another process too, with the same spool %s, so its readings arrive twice, and so do those "
    "of later runs: subscribe only one of the two; a second recording on purpose needs a `spool_dir` of its own"
)

# In how many runs of the spool, the youngest ones, a descriptor is sought that no run read so far has.
MAX_RUNS_SEARCHED = 50
# How many runs that began here wait to be checked for a second recorder.
MAX_TO_CHECK = 50
# How many headers are read at construction, which takes about 20 ms, and at a time later.
HEADERS_AT_CONSTRUCTION, HEADERS_AT_A_TIME = 500, 100


class KnownRuns:
    """The runs of a spool and its history, by uid. Each header is read once.

    Headers of the youngest runs are read at construction. If there are more, a thread of the spool reads the rest. A
    run that began a moment ago can only be one of the youngest or a newer one, so its start document waits for no
    other headers: of the runs that wait it reads only the folders' names.

    Args:
        spool: Whose runs.
        guess: What cannot be read for want of descriptors or of memory counts as missing. Otherwise the methods raise
            an `OSError` then: for a source that gives a document again.
    """

    def __init__(self, spool: Spool, *, guess: bool = True) -> None:
        self._spool = spool
        self._guess = guess
        self._uid_by_folder: dict[str, str] = {}  # by folder name; empty while there is no header
        self._descriptors_by_folder: dict[str, set[str]] = {}  # by folder name, of runs that no process writes
        names = sorted(spool.run_names())
        # When `_uid_by_folder` is larger than this, folders that are gone are dropped from it.
        self._max_uids = _twice(names)
        self._older: Set[str] = frozenset(names[: max(0, len(names) - HEADERS_AT_CONSTRUCTION)])  # not read yet
        self._read_headers_of([name for name in names if name not in self._older])
        # Runs to check for a second recorder. Any thread may append. Without the spool's thread the oldest are dropped.
        self._to_check: deque[tuple[str, str, Callable[[str], bool]]] = deque(maxlen=MAX_TO_CHECK)
        self._warned = False  # that another process records a run too
        if self._older:
            spool.writers.run_in_background(self._background_step)
        with suppress(OSError):  # reported when a run is asked for
            spool.history.read_on()

    def known_run(self, run_uid: str, *, resumed: bool = False, young: bool = False) -> KnownRun | None:
        """Return what is known of a run, or None if it is in neither spool nor history.

        Reads the run's files in the spool.

        Args:
            run_uid: The run's uid.
            resumed: Its source continues where it was and does not make up new uids, so events are recognised by uid
                alone.
            young: The run began a moment ago: runs that are older than this object and not read yet are left out.

        Raises:
            OSError: The files cannot be read now.
        """
        found, entries = self._found_in_spool_and_history(run_uid, young=young)
        if not found and not entries:
            return None
        if any(map(_has_ended, found.values())) or not all(entry.get("interrupted") for entry in entries):
            return KnownRun(RunState.BEING_RECORDED if None in found.values() else RunState.ENDED)
        parts = [part for part in found.values() if part is not None]
        return KnownRun(RunState.INTERRUPTED, self._kept_events(parts, entries, uids_alone=resumed))

    def events_of_open_run(self, run_uid: str, folder: Path) -> KeptEvents:
        """Return the events of a run that is open in `folder`, as far as they are written at the time of the call."""
        found, entries = self._found_in_spool_and_history(run_uid, except_folder=folder.name)
        parts = [part for part in found.values() if part is not None]
        return self._kept_events(parts, entries, read_events(folder))

    def run_with_descriptor(self, uid: str, *, everywhere: bool = False) -> tuple[str | None, bool]:
        """Return the uid of the interrupted run to which a descriptor belongs, or None; and whether that is certain.

        Searches the runs of the spool, the youngest ones first, and those in the history. It is not certain that there
        is none if a run was left out because its writer lives, which may be about to end.

        Args:
            uid: The descriptor's uid.
            everywhere: Read every run of the spool if need be, about half a millisecond for each. Otherwise up to
                `MAX_RUNS_SEARCHED` of those that no earlier call has read.

        Raises:
            OSError: A file cannot be read now.
        """
        self._read_new_headers(young=not everywhere, guess=self._guess)
        names = sorted(self._spool.run_names(), reverse=True)
        known = self._descriptors_by_folder
        self._descriptors_by_folder = {name: known[name] for name in names if name in known}
        left = len(names) if everywhere else MAX_RUNS_SEARCHED
        certain = True
        for name in names:
            if name not in self._descriptors_by_folder:
                if not left:
                    continue
                folder = self._spool.path / name
                if self._spool.writer_alive(folder, guess=self._guess):
                    certain = False
                    continue
                left -= 1
                self._descriptors_by_folder[name] = descriptors_in(folder)
            if uid in self._descriptors_by_folder[name] and self._uid_by_folder.get(name):
                return self._uid_by_folder[name], True
        entry = self._spool.history.entry_with_descriptor(uid)
        return (None, certain) if entry is None else (str(entry.get("run_uid")), True)

    def check_for_second_recorder(self, run_uid: str, folder: Path, *, on_purpose: Callable[[str], bool]) -> None:
        """Let a thread of the spool find out whether another process records a run too, and log that once.

        Returns at once. The thread checks it within a second. Two processes that begin a run at the same moment cannot
        find each other's files at that moment.

        Args:
            run_uid: The run, which begins here.
            folder: Its folder.
            on_purpose: Returns True for a run that another recorder of this process has, too.
        """
        if not self._warned:
            self._to_check.append((run_uid, folder.name, on_purpose))
            self._spool.writers.run_in_background(self._background_step)

    def _background_step(self) -> bool:
        """Read some headers and check the runs in `_to_check`, in the spool's thread. Return True if more is to do."""
        while self._to_check:
            run_uid, name, on_purpose = self._to_check.popleft()
            self._read_new_headers(young=True)
            others = [other for other, uid in self._uid_by_folder.items() if uid == run_uid and other != name]
            if not self._warned and any(map(self._has_beginning, others)) and not on_purpose(run_uid):
                self._warned = True
                _logger.warning(RECORDED_TWICE, run_uid, safe(str(self._spool.path)))
        if self._older:
            self._read_some_older_headers()
        return bool(self._older)

    def _has_beginning(self, name: str) -> bool:
        """Return True if a folder has the beginning of a run, and not what came after an interruption."""
        header = read_header(self._spool.path / name)
        return header is not None and header.part == 0

    def _read_new_headers(self, *, young: bool, guess: bool = True) -> None:
        """Read the headers of folders that are not known yet, or only of the newer ones, and of those that had none."""
        if len(self._uid_by_folder) > self._max_uids:
            known = self._uid_by_folder
            self._uid_by_folder = {name: known[name] for name in self._spool.run_names() if name in known}
            self._max_uids = _twice(self._uid_by_folder)
        new = self._spool.new_run_names(self._uid_by_folder, self._older if young else ())
        without_header = [name for name, uid in self._uid_by_folder.items() if not uid]
        self._read_headers_of([*new, *without_header], guess=guess)
        if not young:
            self._older = frozenset()

    def _read_headers_of(self, names: Sequence[str], *, guess: bool = True) -> None:
        """Add the uids of the runs in these folders."""
        if names:
            # A new dict replaces the old one: several threads may call this or iterate, and none waits for another.
            uids = {name: _uid_in(self._spool.path / name, guess=guess) for name in names}
            self._uid_by_folder = {**self._uid_by_folder, **uids}

    def _read_some_older_headers(self) -> None:
        older = self._older
        some = sorted(older)[-HEADERS_AT_A_TIME:]
        new = [name for name in some if name not in self._uid_by_folder]
        self._read_headers_of([name for name in new if (self._spool.path / name).is_dir()])
        self._older = older - set(some)

    def _found_in_spool_and_history(
        self, run_uid: str, except_folder: str = "", *, young: bool = False
    ) -> tuple[dict[str, EventDigests | None], list[dict[str, Any]]]:
        """Return what the spool has of a run, except in one folder, and the run's entries in the history."""
        # The spool first: a run that leaves it meanwhile is then in the history, and what was read of it does not
        # count.
        found = self._in_spool(run_uid, except_folder, young=young)
        entries = self._spool.history.entries_of(run_uid)
        for entry in entries:
            found.pop(str(entry.get("folder")), None)
        return found, entries

    def _in_spool(self, run_uid: str, except_folder: str, *, young: bool) -> dict[str, EventDigests | None]:
        """Return the run's events by folder name. They are None while the folder is being written."""
        self._read_new_headers(young=young, guess=self._guess)
        found: dict[str, EventDigests | None] = {}
        for name in sorted(
            name for name, uid in self._uid_by_folder.items() if uid == run_uid and name != except_folder
        ):
            folder = self._spool.path / name
            if read_header(folder) is None:
                continue
            written = self._spool.writer_alive(folder, guess=self._guess)
            events = read_events(folder)
            # The writer may have written its stop without having released the run yet, or have died just now.
            if written and events.stop is None and not self._spool.writer_alive(folder, guess=self._guess):
                written, events = False, read_events(folder)
            found[name] = events if events.stop is not None or not written else None
        return found

    def _kept_events(
        self,
        parts: list[EventDigests],
        entries: list[dict[str, Any]],
        resent: EventDigests | None = None,
        *,
        uids_alone: bool = False,
    ) -> KeptEvents:
        spans: dict[str, list[KeptSpan]] = {}
        earlier: list[EventDigests] = []
        for entry in entries:
            events = self._stored_events(str(entry.get("events")))
            if events is not None:
                earlier.append(events)
                if events.uids or not events.rows_not_remembered:
                    continue  # otherwise the disk was full, and the file has no rows
            first_times = dict(entry.get("since") or {})
            for time_base, last in dict(entry.get("until") or {}).items():
                spans.setdefault(time_base, []).append(KeptSpan(first_times.get(time_base, math.nan), last))
        return KeptEvents([*earlier, *parts], spans, resent=resent, uids_alone=uids_alone)

    def _stored_events(self, name: str) -> EventDigests | None:
        """Return the events of a run that has left the spool, or None if they are not there."""
        try:
            return load_events(self._spool.path, name)
        except OSError:
            if not self._guess:
                raise
            return None


def _twice(names: Collection[str]) -> int:
    return 2 * len(names) + HEADERS_AT_CONSTRUCTION


def _has_ended(events: EventDigests | None) -> bool:
    return events is None or (events.stop is not None and not events.stop.interrupted)


def _uid_in(folder: Path, *, guess: bool) -> str:
    """Return the uid of the run in a folder, or an empty text if its header cannot be read.

    One unreadable run must not hide the others.

    Raises:
        OSError: It cannot be read for want of descriptors or of memory, and `guess` is False.
    """
    try:
        header = read_header(folder)
    except OSError as error:  # a SpoolError is one too
        if error.errno in OUT_OF_RESOURCES and not guess:
            raise
        return ""
    return header.run_uid if header else ""
