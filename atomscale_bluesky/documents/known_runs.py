"""What the spool and its history know of a run whose start document comes again, by a replay or from a message bus.

A run that has ended is recognised and not taken again. A run that was interrupted, because its process was killed or
its bus delivers again from an earlier position, goes on: each event is checked against those already kept.
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


class KnownRun(msgspec.Struct, frozen=True):
    """What is left of a run that some process took before."""

    content: str  # the digest of its start document
    ended: bool  # ended by a stop document; or another process is taking it right now
    kept: KeptEvents | None = None  # the kept events of an interrupted run


# How many headers are read at construction, which takes about 20 ms, and at a time later.
AT_CONSTRUCTION, AT_A_TIME = 500, 100


class KnownRuns:
    """The runs of a spool and its history, by uid. Each header is read once.

    Headers of the youngest runs are read at construction. If there are more, a thread of the spool reads the rest. So a
    start document's wait does not grow with the number of waiting runs: of these it reads only folder names.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._uids: dict[str, str] = {}  # by folder name
        names = sorted(spool.run_names())
        self._read(names[max(0, len(names) - AT_CONSTRUCTION) :])
        if len(names) > AT_CONSTRUCTION:
            spool.writers.in_background(self._read_on)
        with suppress(OSError):  # reported when a run is asked for
            spool.history.read_on()

    def of(self, run_uid: str) -> KnownRun | None:
        """Return what is known of a run, or None if it is in neither spool nor history.

        Reads the run's files in the spool.
        """
        found, entries = self._found(run_uid)
        if not found and not entries:
            return None
        contents = [content for content, _ in found.values()] + [str(entry.get("content", "")) for entry in entries]
        parts = [events for _, events in found.values()]
        if any(map(_has_ended, parts)) or not all(entry.get("interrupted") for entry in entries):
            return KnownRun(contents[0], ended=True)
        return KnownRun(
            contents[0], ended=False, kept=self._kept([part for part in parts if part is not None], entries)
        )

    def of_open(self, run_uid: str, folder: Path) -> KeptEvents:
        """Return the events of a run that is open in `folder`, as far as they are written at the time of the call."""
        found, entries = self._found(run_uid, but=folder.name)
        return self._kept([events for _, events in found.values() if events is not None], entries, read_events(folder))

    def _look(self) -> None:
        self._read(self._spool.run_names())

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

    def _found(self, run_uid: str, but: str = "") -> tuple[dict[str, tuple[str, Events | None]], list[dict[str, Any]]]:
        """Return what the spool has of a run, except in the folder `but`, and the run's entries in the history."""
        # The spool first: a run that leaves it meanwhile is then in the history, and what was read of it does not
        # count.
        found = self._in_spool(run_uid, but)
        entries = self._spool.history.of(run_uid)
        for entry in entries:
            found.pop(str(entry.get("folder")), None)
        return found, entries

    def _in_spool(self, run_uid: str, but: str) -> dict[str, tuple[str, Events | None]]:
        """Return the run's content and events by folder name. The events are None while the folder is being written."""
        self._look()
        found: dict[str, tuple[str, Events | None]] = {}
        for name in [name for name, uid in self._uids.items() if uid == run_uid and name != but]:
            folder = self._spool.path / name
            header = read_header(folder)
            if header is None:
                continue
            written = self._spool.writer_alive(folder)
            events = read_events(folder)
            # The writer may have written its stop without having released the run yet.
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
    """Return the uid of the run in a folder, or an empty text without a readable header.

    Other runs are not affected.
    """
    try:
        header = read_header(folder)
    except OSError:  # a SpoolError is one too
        return ""
    return header.run_uid if header else ""
