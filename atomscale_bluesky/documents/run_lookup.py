"""What a recorder has to know of a run before it takes the run's start document: its header, and what was kept of it.

Any thread may call it. It takes no lock, and `take` calls it before it takes the recorder's, so no other document waits
while the disk is read. Only a start document that was put off is looked up with that lock held, at the end of the call
that it interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..settings import Settings
from ..spool.journal_format import Header
from ..spool.own_files import OUT_OF_RESOURCES
from .ignored_documents import IgnoredDocuments
from .known_runs import KnownRun, KnownRuns, RunState
from .open_runs import OpenRuns
from .start_document import header_of, uid_of

# A start document older than this is a replay: if another process takes the run now, the run is left to that process. A
# younger one begins a run, which two processes may get at the same moment. Then each of them records it.
REPLAY_AGE_S = 5.0


class RunLookup:
    """Looks runs up in the spool and its history.

    Args:
        settings: What a run's header says that its start document does not.
        runs: The open runs, which are not looked up.
        known_runs: What earlier processes kept.
        ignored_documents: Collects log entries.
        physical_sample: Name or id of the physical sample of runs whose metadata name none.
        redelivers: A start document that cannot be looked up for want of descriptors or of memory comes again.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        runs: OpenRuns,
        known_runs: KnownRuns,
        ignored_documents: IgnoredDocuments,
        physical_sample: str | None = None,
        redelivers: bool = False,
    ) -> None:
        self._settings = settings
        self._runs = runs
        self._known_runs = known_runs
        self._ignored = ignored_documents
        self._physical_sample = physical_sample
        self._redelivers = redelivers

    def look_up(self, doc: Mapping[str, Any]) -> tuple[str, Header, KnownRun | None]:
        """Return a run's uid and header, and what was taken of it before. May read the disk.

        Raises:
            OSError: The disk cannot be read for want of descriptors or of memory, and the document comes again.
        """
        uid = uid_of(doc)
        header = header_of(doc, uid, self._settings, self._ignored.log_once, physical_sample=self._physical_sample)
        if self._settings.resend:
            return uid, header, None
        young = time.time() - header.started <= REPLAY_AGE_S
        run = self._runs.get(uid)
        writer = run.writer if run is not None else None
        try:
            if writer is not None:
                earlier_events = None if young else self._known_runs.events_of_open_run(uid, writer.folder)
                return uid, header, KnownRun(RunState.INTERRUPTED, earlier_events)
            known = self._known_runs.known_run(uid, young=young)
        except OSError as error:  # a SpoolError is one too; and a run taken twice is better than none
            if self._redelivers and error.errno in OUT_OF_RESOURCES:
                raise
            self._ignored.log_once(
                "known run",
                f"run {uid} is recorded, although it may have been recorded before: the spool cannot be searched: "
                f"{error}",
            )
            return uid, header, None
        if young and known is not None and known.state is RunState.BEING_RECORDED:
            known = None  # two processes got its start document at the same moment: each of them records the run
        return uid, header, known

    def has_whole(self, uid: str) -> bool:
        """Return True if a run has ended, here or in another process. May read the disk."""
        if self._settings.resend or self._runs.get(uid) is not None:
            return False
        try:
            known = self._known_runs.known_run(uid)
        except OSError:
            return False
        return known is not None and known.state is RunState.ENDED
