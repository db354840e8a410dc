"""The open runs, and to which of them a document belongs.

A start, descriptor or stop document names its run by the run's uid, an event by its descriptor's uid. A run that was
interrupted is resumed if its source continues where it was. A run that was recorded before, or that another recorder of
this process records, is skipped: its documents are known, and nothing of them is written again.

Used by one thread at a time, which holds the recorder's lock. Only `get` needs no lock.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

from msgspec.structs import replace

from ..settings import Settings, spool_option
from ..spool.journal_format import FORMAT, Described, Header
from ..spool.kept_events import KeptEvents
from .description import Description
from .event_stream import EventStream
from .ignored_documents import TAKEN_BEFORE, IgnoredDocuments
from .known_runs import KnownRuns, RunState
from .open_run import OpenRun
from .peers import Peers
from .remembered_runs import RememberedRuns
from .selection import Selection

# After how long a descriptor is sought again if the writer of a run that may have it lived. It may have been dying.
SEARCH_AGAIN_S = 1.0


class OpenRuns:
    """The open runs of one recorder, and what it remembers of others.

    Args:
        settings: Which event streams and data keys are taken, and how they are named.
        known_runs: What earlier processes kept.
        peers: The recorders of this process that get the same runs.
        ignored_documents: Counts what is not taken, and collects log entries.
        redelivers: A document that cannot be written comes again, and so do all documents of a run that goes on.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        known_runs: KnownRuns,
        peers: Peers,
        ignored_documents: IgnoredDocuments,
        redelivers: bool = False,
    ) -> None:
        # By descriptor uid: the run, the event stream or None if it is not selected, and what the descriptor says.
        self.by_descriptor: dict[str, tuple[OpenRun, EventStream | None, Description]] = {}
        self.remembered = RememberedRuns()
        self.peers = peers
        self.selection = Selection(
            event_streams=settings.event_streams,
            channels=settings.channels,
            monitors=settings.monitors,
            rename=settings.rename,
            max_elements=settings.max_elements,
            timestamps=settings.timestamps,
            unprefixed=settings.primary if settings.layout == "run" else None,
        )
        self._runs: dict[str, OpenRun] = {}  # by uid
        self._spool_option = spool_option(settings)  # now, because later the plan would wait for the settings file
        self._known_runs = known_runs
        self._ignored = ignored_documents
        self._redelivers = redelivers
        self._keep_all_uids = False

    def __bool__(self) -> bool:
        """Return True if any run is open."""
        return bool(self._runs)

    def __iter__(self) -> Iterator[OpenRun]:
        """Iterate over the runs that are open now, in the order in which they began. Others may open meanwhile."""
        return iter(list(self._runs.values()))

    def get(self, uid: str) -> OpenRun | None:
        """Return a run if it is open. Needs no lock."""
        return self._runs.get(uid)

    def forget_all(self, peers: Peers) -> None:
        """Forget the open runs, in a forked child: they belong to the parent, and the child has other peers."""
        self._runs.clear()
        self.by_descriptor.clear()
        self.peers = peers

    # ---- a run opens, is described and is forgotten ----------------------------------------------------------------

    def open(self, uid: str, header: Header, earlier_events: KeptEvents | None) -> OpenRun:
        """Open a run. If it was interrupted, `earlier_events` are those that its journals hold."""
        run = self._runs[uid] = OpenRun(uid, header, earlier_events)
        run.keeps_all_uids = self._keep_all_uids
        return run

    def keep_all_uids(self, *, keep: bool) -> None:
        """Let the runs, also those that are opened from now on, keep the uids of all events, or forget old ones."""
        self._keep_all_uids = keep
        for run in self._runs.values():
            run.keeps_all_uids = keep

    def log_opened(self, run: OpenRun) -> None:
        """Log that a run is recorded, and what its account and its start document call for."""
        run.log_opened(self._ignored, self._spool_option)

    def describe(self, run: OpenRun, uid: str, description: Description) -> None:
        """Note what a descriptor says. Events that name it belong to `run` from now on."""
        description = run.shared_description(description)
        name = description.event_stream
        if name not in run.event_streams and not run.describe(description, self.selection):
            self._ignored.log_later(
                logging.INFO, "event stream %r of run %s is left out by the settings", name, run.uid
            )
        run.descriptions[uid] = description
        self.by_descriptor[uid] = run, run.event_streams[name], description

    def _describe_again(self, run: OpenRun, line: Described) -> None:
        """Note what a descriptor said to the process that was interrupted."""
        self.describe(run, line.uid, Description(line.event_stream, line.data_keys, line.hinted))

    def remove(self, run: OpenRun) -> None:
        """Remove a run that could not be opened after all. Its start document comes again."""
        del self._runs[run.uid]
        self.peers.release(run.uid, ended=False)

    def forget_ended(self, run: OpenRun) -> None:
        """Forget a run whose stop document has come, except that it has ended."""
        self._forget_descriptors(run, ended=True)
        self.peers.release(run.uid, ended=run.has_only_ended_journals)
        if run.has_only_ended_journals:  # otherwise nothing of it is kept, and a replay should be taken
            self.remembered.note_ended(run.uid)
        self._runs.pop(run.uid, None)

    def forget_completed(self, run: OpenRun) -> None:
        """Forget a run that was completed as interrupted. If it goes on, it is resumed from its files."""
        self._forget_descriptors(run, ended=False)
        del self._runs[run.uid]

    def _forget_descriptors(self, run: OpenRun, *, ended: bool) -> None:
        """Forget what a run's descriptors say. Remember only their uids, and the run's."""
        descriptors = [descriptor for descriptor, (of_run, _, _) in self.by_descriptor.items() if of_run is run]
        self.remembered.note_descriptors(descriptors, run.uid, ended=ended)
        for descriptor in descriptors:
            del self.by_descriptor[descriptor]

    # ---- a run is resumed, or left to another recorder -------------------------------------------------------------

    def get_or_resume(self, run_uid: str) -> OpenRun | None:
        """Return an open run, or resume one that was interrupted. Return None if it is skipped or unknown.

        Raises:
            OSError: Its files cannot be read now. So nothing is known of it, and the document may be one of its.
        """
        run = self._runs.get(run_uid)
        return self._resume(run_uid) if run is None and not self.remembered.skips(run_uid) else run

    def resume_run_of(self, descriptor: str) -> bool:
        """Find the run of a descriptor that did not come to this process, in the spool, and resume it.

        A run that has ended is skipped from here on. A descriptor of no run is remembered, so that the spool is not
        searched for each of its events.

        Returns:
            True if its events can be recorded now.

        Raises:
            OSError: The spool cannot be searched now.
        """
        run_uid, certain = self.remembered.completed_run_of(descriptor), True
        if run_uid is None:
            if not isinstance(descriptor, str) or self.remembered.is_unknown(descriptor):
                return False
            run_uid, certain = self._known_runs.run_with_descriptor(descriptor, everywhere=self._redelivers)
        if run_uid is not None:
            self._resume_by_descriptor(run_uid, descriptor)
        if self.remembered.skips_descriptor(descriptor):
            return False
        if descriptor in self.by_descriptor:
            return True
        self.remembered.note_unknown(descriptor, math.inf if certain else time.monotonic() + SEARCH_AGAIN_S)
        return False

    def _resume_by_descriptor(self, run_uid: str, descriptor: str) -> None:
        """Resume the run of a descriptor that did not come to this process. If it has ended, skip the descriptor."""
        run = self._runs.get(run_uid)
        if run is None:
            if self._resume(run_uid) is None and self.remembered.skips(run_uid):
                self.remembered.skip_descriptor(descriptor, run_uid)
        elif run.earlier_events is not None and descriptor in run.earlier_events.descriptors:
            self._describe_again(run, run.earlier_events.descriptors[descriptor])

    def _resume(self, run_uid: str) -> OpenRun | None:
        """Resume a run that was interrupted and whose source continues where it was.

        Return None if there is none. A run that has ended, or that another recorder writes, is skipped from here on.

        Raises:
            OSError: Its files cannot be read now.
        """
        if self.peers.another_has(run_uid):  # asked first: reading a journal that is being written may take seconds
            self.leave_to_another(run_uid)
            return None
        known = self._known_runs.known_run(run_uid, resumed=True)
        if known is None:
            return None
        if known.state is not RunState.INTERRUPTED:
            self.remembered.skip(run_uid)
            return None
        earlier_events = known.earlier_events
        if earlier_events is None or earlier_events.header is None:
            return None
        if not self.peers.claim(run_uid):
            self.leave_to_another(run_uid)
            return None
        header = replace(earlier_events.header, format=FORMAT, session="", part=earlier_events.part)
        run = self.open(run_uid, header, earlier_events)
        for line in earlier_events.descriptors.values():
            self._describe_again(run, line)
        self.log_opened(run)
        return run

    def leave_to_another(self, uid: str) -> None:
        """Take nothing of a run that another recorder of this process takes, with the same spool and account."""
        self._ignored.counts[TAKEN_BEFORE] += 1
        self.remembered.skip(uid)
        self._ignored.log_once(
            "another",
            f"run {uid} goes through two callbacks of this process with the same spool and account, so the newer one "
            f"records it and all later runs. A start-up file may have been executed twice. Unsubscribe the older one: "
            f"`RE.unsubscribe(token)`. A second recording on purpose needs a `spool_dir` of its own",
        )
