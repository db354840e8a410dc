"""What the spool and its history know of a run whose start document comes again, by a replay or a bus.

A run that has ended is recognised and not taken again. One that was interrupted, because its process was killed or its
bus delivers again from an earlier place, goes on: what was kept of it is told event by event.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ..spool.kept_events import Events, KeptEvents, read_events, stored_events
from ..spool.run_reader import read_header
from ..spool.spool import Spool


class Past(msgspec.Struct, frozen=True):
    """What is left of a run that was taken before, by whichever process."""

    content: str  # the digest of its start document
    ended: bool  # by a stop document; or somebody else is taking it right now
    kept: KeptEvents | None = None  # the events of one that was interrupted


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
        found, entries = self._found(run_uid)
        if not found and not entries:
            return None
        contents = [content for content, _ in found.values()] + [str(entry.get("content", "")) for entry in entries]
        parts = [events for _, events in found.values()]
        if any(map(_has_ended, parts)) or not all(entry.get("interrupted") for entry in entries):
            return Past(contents[0], ended=True)
        return Past(contents[0], ended=False, kept=self._kept([part for part in parts if part is not None], entries))

    def of_open(self, run_uid: str, folder: Path) -> KeptEvents:
        """Return the events of a run that is open in `folder`, as far as they were written when this is called."""
        found, entries = self._found(run_uid, but=folder.name)
        return self._kept([events for _, events in found.values() if events is not None], entries, read_events(folder))

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

    def _found(self, run_uid: str, but: str = "") -> tuple[dict[str, tuple[str, Events | None]], list[dict[str, Any]]]:
        """What the spool has of a run, but for one folder, and the entries of what has left it."""
        # The spool first: what leaves it meanwhile is in the history by then, and what was read of it does not count.
        found = self._in_spool(run_uid, but)
        entries = self._spool.history_of(run_uid)
        for entry in entries:
            found.pop(str(entry.get("folder")), None)
        return found, entries

    def _in_spool(self, run_uid: str, but: str) -> dict[str, tuple[str, Events | None]]:
        """By folder name the run's content and its events; none where it is being written."""
        self._look()
        found: dict[str, tuple[str, Events | None]] = {}
        for name in [name for name, uid in self._uids.items() if uid == run_uid and name != but]:
            folder = self._spool.path / name
            header = read_header(folder)
            if header is None:
                continue
            written = self._spool.writer_alive(folder)
            events = read_events(folder)
            # Who has written its end may not have let go of it yet.
            found[name] = header.content, events if events.stop is not None or not written else None
        return found

    def _kept(self, parts: list[Events], entries: list[dict[str, Any]], by_uid: Events | None = None) -> KeptEvents:
        until: dict[str, float] = {}
        for entry in entries:
            events = stored_events(self._spool.path, str(entry.get("events")))
            if events is not None:
                parts.append(events)
                continue
            for time_base, time in dict(entry.get("until") or {}).items():
                until[time_base] = max(time, until.get(time_base, time))
        return KeptEvents(parts, until, by_uid=by_uid)


def _has_ended(events: Events | None) -> bool:
    return events is None or (events.stop is not None and not events.stop.interrupted)


def _uid_in(folder: Path) -> str:
    """The uid of the run in a folder; none while it has no header that can be read, which concerns no other run."""
    try:
        header = read_header(folder)
    except OSError:  # a SpoolError is one
        return ""
    return header.run_uid if header else ""
