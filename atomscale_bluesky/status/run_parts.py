"""All parts of a run: its folders in the spool, and its lines in the history.

A run has several if it was interrupted and went on, or if it was recorded twice. All of them have its uid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SpoolError
from ..model.uids import uids_meant
from ..spool.own_files import recording_began
from ..spool.spool import Spool
from .run_status import RunStatus
from .run_summary import verified_at
from .spool_status import SpoolStatus


@dataclass(frozen=True, slots=True)
class RunPart:
    """A run, or what one recording has of it: a folder of the spool, or a line of the history."""

    status: RunStatus | None  # None: it has left the spool
    entry: dict[str, Any] | None  # of the history; None: it is in the spool

    @property
    def data_ids(self) -> tuple[str, ...]:
        """The ids of its metrology streams."""
        return self.status.data_ids if self.status is not None else tuple((self.entry or {}).get("data_ids") or ())

    @property
    def began(self) -> float:
        """When its recording began, Unix seconds; 0.0 if an earlier version has not noted that."""
        return recording_began(self.status.folder if self.status else str((self.entry or {}).get("folder")))


@dataclass(frozen=True, slots=True)
class RunParts:
    """All parts of one run, in the order in which they were recorded."""

    run_uid: str
    parts: tuple[RunPart, ...]

    @property
    def in_spool(self) -> tuple[RunStatus, ...]:
        """Those that are in the spool."""
        return tuple(part.status for part in self.parts if part.status is not None)

    @property
    def finished(self) -> tuple[dict[str, Any], ...]:
        """The history's lines of those that have left the spool."""
        return tuple(part.entry for part in self.parts if part.entry is not None)

    @property
    def data_ids(self) -> tuple[str, ...]:
        """The ids of the run's metrology streams."""
        return tuple(dict.fromkeys(data_id for part in self.parts for data_id in part.data_ids))

    @property
    def read_back_at(self) -> float | None:
        """When the run was read back and was equal, Unix seconds.

        None while something of it is in the spool, or if it has left the spool and some point was not read back.
        """
        times = [at for entry in self.finished if (at := verified_at(entry)) is not None]
        unread = any(entry.get("delivered") and verified_at(entry) is None for entry in self.finished)
        return max(times, default=None) if not (self.in_spool or unread) else None


def group_parts(statuses: Iterable[RunStatus], entries: Iterable[dict[str, Any]]) -> list[RunParts]:
    """Return the runs of which these are the parts.

    Args:
        statuses: Of the spool, read before `entries`, so that a run that leaves the spool meanwhile is in one of them.
        entries: Of the history. One whose folder is among `statuses` too is left out.
    """
    found: dict[str, list[RunPart]] = {}
    folders: set[str] = set()
    for status in statuses:
        folders.add(Path(status.folder).name)
        found.setdefault(status.run_uid, []).append(RunPart(status, None))
    for entry in entries:
        if entry.get("folder") not in folders:
            found.setdefault(str(entry.get("run_uid") or ""), []).append(RunPart(None, entry))
    # A part that has left the spool is the older one of two that began in the same second.
    in_order = {uid: sorted(parts, key=lambda part: (part.began, part.entry is None)) for uid, parts in found.items()}
    return [RunParts(uid, tuple(parts)) for uid, parts in in_order.items()]


def find_parts(spool: Spool, watch: SpoolStatus, run: str) -> RunParts:
    """Return the parts of the run whose uid is `run` or begins with it, in the spool and in its history.

    Raises:
        SpoolError: No run or several runs match.
    """
    here = [status for status in watch.status() if run and status.run_uid.startswith(run)]
    gone = spool.history.entries_beginning_with(run) if run else []
    runs = {one.run_uid: one for one in group_parts(here, gone)}
    uids = uids_meant(runs, run)
    if run not in uids and watch.was_not_kept(run):
        raise watch.not_found(run)
    if len(uids) > 1:
        raise SpoolError(f"{len(uids)} runs begin with {run!r}; give more of the uid")
    for uid in uids:
        return runs[uid]
    raise watch.not_found(run)


def parts_of(spool: Spool, uid: str) -> RunParts:
    """Return the parts of a run by its whole uid; none for an unknown run."""
    here = [status for status in SpoolStatus(spool).status() if status.run_uid == uid]
    return next(iter(group_parts(here, spool.history.entries_of(uid))), RunParts(uid, ()))
