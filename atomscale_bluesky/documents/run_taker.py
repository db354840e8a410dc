"""Takes start, descriptor and stop documents: a run begins, is described, and ends, or is completed as interrupted.

Used by one thread at a time, which holds the recorder's lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ..model.loss import Loss
from ..settings import Settings
from ..spool.journal_format import Header, Stop
from .accepted import KNOWN, NOTHING, TRY_AGAIN, Accepted
from .description import description_of
from .descriptor import event_stream_of, mapping_of
from .early_events import EarlyEvents
from .ignored_documents import TAKEN_BEFORE, IgnoredDocuments
from .known_runs import KnownRun, KnownRuns, RunState
from .missing_events import count_missing_events, counts_in
from .nothing_selected import nothing_selected
from .open_run import OpenRun
from .open_runs import OpenRuns
from .run_files import RunFiles
from .start_document import text_of, time_of

# Up to this many runs that were completed as interrupted stay in memory, each with up to 20 000 uids of events. If
# another one continues, it is resumed from its files.
MAX_COMPLETED_RUNS = 16
# Up to this many open runs may have nothing but a start document, as runs that enclose other runs have at first.
MAX_BARE_RUNS = 3


class RunTaker:
    """Takes the beginning and the end of the runs of one recorder.

    Args:
        settings: Whether runs that were recorded before are taken again.
        runs: The open runs.
        known_runs: Finds out whether another process records a run too.
        files: Writes the runs' journals.
        early: The events that wait for their descriptors.
        ignored_documents: Counts what is not taken, and collects log entries.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        runs: OpenRuns,
        known_runs: KnownRuns,
        files: RunFiles,
        early: EarlyEvents,
        ignored_documents: IgnoredDocuments,
    ) -> None:
        self._resend = settings.resend
        self._runs = runs
        self._known_runs = known_runs
        self._files = files
        self._early = early
        self._ignored = ignored_documents

    def start(self, uid: str, header: Header, known: KnownRun | None) -> Accepted:
        """Open a run, unless it is skipped. The arguments are what `RunLookup.look_up` returns.

        Return `TRY_AGAIN` if its files cannot be made and its source gives it again.
        """
        open_run = self._runs.get(uid)
        if open_run is not None:
            self._ignored.ignore("start", f"a second start document of run {uid} is ignored")
            if known is not None and known.earlier_events is not None:
                open_run.begin_again(known.earlier_events)  # an event may repeat one older than those remembered
            return KNOWN
        is_ours = known is None or known.state is RunState.INTERRUPTED
        if not is_ours or (self._runs.remembered.has_ended(uid) and not self._resend):
            self._skip(uid)
            return KNOWN
        if not self._runs.peers.claim(uid, again=self._resend):
            self._runs.leave_to_another(uid)
            return KNOWN
        self._warn_of_bare_starts()
        earlier_events = known.earlier_events if known is not None else None
        if earlier_events is not None:
            header = replace(header, part=earlier_events.part)
        run = self._runs.open(uid, header, earlier_events)
        if run.earlier_events is None:
            self._files.make_folder(run)
            if run.writer is None and self._files.redelivers:
                self._runs.remove(run)
                return TRY_AGAIN
            if run.writer is not None and not self._resend:
                self._known_runs.check_for_second_recorder(
                    uid, run.writer.folder, on_purpose=self._runs.peers.has_another_account
                )
        self._runs.log_opened(run)
        return NOTHING

    def descriptor(self, doc: Mapping[str, Any]) -> Accepted:
        """Keep what a descriptor says. Return `KNOWN` if its run is skipped.

        Return `TRY_AGAIN` if it cannot be written and its source gives it again. Do so even if readings are left out
        meanwhile, unless the run has no files: without the descriptor, a process that resumes the run takes no event of
        it, however much room there is then.

        Raises:
            DocumentError: The run's start document never came.
        """
        run_uid, uid = str(doc["run_start"]), str(doc["uid"])
        run = self._runs.get_or_resume(run_uid)
        if run is None and self._runs.remembered.skips(run_uid):
            self._runs.remembered.skip_descriptor(uid, run_uid)
            return KNOWN
        if run is None:
            raise self._ignored.ignore_without_start(
                "descriptor", f"a descriptor of run {run_uid}, whose start never came, is ignored", run_uid
            )
        description = description_of(doc, event_stream_of(doc))
        new = uid not in run.descriptions
        self._runs.describe(run, uid, description)
        if not new:
            return NOTHING
        if run.lacks_descriptor(uid):
            # The descriptor may come only once, and another process may have to resume the run.
            described = self._files.make_folder_if_due(run)
        else:
            described = self._files.describe(run, {uid: description}) or self._is_described(run, uid)
        self._files.change = None
        has_files = run.writer is not None or run.has_only_ended_journals
        if not described and (self._files.redelivers or (self._files.source_redelivers and has_files)):
            del run.descriptions[uid]  # so that it is new when it comes again
            return TRY_AGAIN
        return NOTHING

    def stop(self, doc: Mapping[str, Any]) -> Accepted:
        """End a run. Return `KNOWN` if it is skipped.

        Return `TRY_AGAIN` if the files of a resumed run cannot be made and its source gives it again.

        Raises:
            DocumentError: The run's start document never came.
        """
        uid = str(doc["run_start"])
        run = self._runs.get_or_resume(uid)
        if run is None and self._runs.remembered.skips(uid):
            self._runs.remembered.end_skipped(uid)
            self._early.note_run_ended()
            return KNOWN
        if run is None:
            raise self._ignored.ignore_without_start(
                "stop", f"a stop document of run {uid}, whose start never came, is ignored", uid
            )
        if run.has_only_ended_journals:  # its files say that no stop document came
            self._files.make_folder_if_due(run)
            if run.writer is None and self._files.redelivers:
                return TRY_AGAIN
        counts = counts_in(doc)
        if counts and not run.event_streams:
            self._ignored.warn_of_incomplete_run(f"run {uid} had events, and no descriptor came")
        stop = Stop(
            time=time_of(doc),
            exit_status=text_of(doc.get("exit_status")),
            reason=text_of(doc.get("reason")),
        )
        if self._early:
            overdue = self._early.note_stop()
            alone = all(other is run or other.completed for other in self._runs)
            if alone:
                self._leave_out_all_early(run)
            else:
                self._early.note_run_ended()
                self.give_up_early(overdue)
        stop.not_given.update(count_missing_events(run, counts, self._runs.selection))
        run.log_missing_events(stop.not_given, self._ignored)
        self._warn_if_nothing_selected(run)
        self._files.end(run, stop)
        self._runs.forget_ended(run)
        self._files.change = None
        return NOTHING

    def complete(self, folder: Path | None) -> None:
        """Complete all open runs, or the one in `folder`, as interrupted."""
        if folder is None and self._early:
            open_runs = [run for run in self._runs if not run.completed]
            if len(open_runs) == 1:
                self._leave_out_all_early(open_runs[0])
            else:
                self.give_up_early(self._early.descriptors)
        for run in self._runs:
            try:
                self._complete_run(run, folder)
            except Exception as error:  # noqa: BLE001 - what fails with one run must not cost the others their end
                if self._files.change is not None:
                    self.complete_change()
                else:
                    self._log_incomplete(run.uid, error)
                self._runs.peers.release(run.uid, ended=False)
        self._forget_oldest_completed()

    def _complete_run(self, run: OpenRun, folder: Path | None) -> None:
        if run.writer is not None and folder in {None, run.writer.folder}:
            self._complete_journal(run, closing=folder is None)
        elif run.writer is None and folder is None:  # no journal says what was left out of it
            self._files.note_not_kept(run)
            self._runs.peers.release(run.uid, ended=False)

    def _complete_journal(self, run: OpenRun, *, closing: bool) -> None:
        """Write into a run's journal that its stop document has not come. `closing`: it is one of all open runs."""
        self._early.note_run_ended()
        self._warn_if_nothing_selected(run)
        self._files.end(run, Stop(time.time(), "", "no stop document", interrupted=True))
        self._runs.peers.release(run.uid, ended=False)
        self._files.change = None
        if closing and self._runs.peers.has_several_subscribers:
            self._ignored.log_once(
                "completed beside another",
                f"run {run.uid} is marked as interrupted, because its callback was closed before its stop document. "
                f"The other callback of this process will not go on with it. Keep the closed callback subscribed until "
                f"the run ends if its further readings matter",
            )

    def _warn_if_nothing_selected(self, run: OpenRun) -> None:
        """Warn, once per cause, if a pattern leaves out all that came: such a run ends, and nothing of it is sent."""
        why = nothing_selected(run, self._runs.selection)
        if why is not None:
            self._ignored.log_once(
                f"nothing selected: {why}",
                f"run {run.uid}: all of its readings are left out: {why}; correct the setting, then start the session "
                f"again",
            )

    def _forget_oldest_completed(self) -> None:
        """Forget runs that were completed as interrupted, except the youngest. If one continues, it is resumed."""
        completed = [run for run in self._runs if run.completed]
        for run in completed[: max(0, len(completed) - MAX_COMPLETED_RUNS)]:
            self._files.note_not_kept(run)  # what came since then and found no room
            self._runs.forget_completed(run)

    def give_up_early(self, descriptors: Iterable[str]) -> None:
        """Count the events that wait for these descriptors as ignored: their run is not known."""
        for early in self._early.give_up(descriptors):
            self._ignored.count_given_up(early.descriptor, early.name)

    def _leave_out_all_early(self, run: OpenRun) -> None:
        """Count all events whose descriptor has not come, as ignored and as left out of `run`, the only open one.

        Those that waited while another run ended may be of that run, so they count as ignored only.
        """
        self.give_up_early(self._early.of_any_run)
        for early in self._early.give_up(self._early.descriptors):
            self._ignored.count_given_up(early.descriptor, early.name)
            run.leave_out(Loss.NO_DESCRIPTOR, list(mapping_of(early.doc.get("data"))), early.events)

    def complete_change(self) -> None:
        """Complete the change that an exception has interrupted, such as one from a signal handler.

        If that fails too, it is logged: the document that comes now is not affected.
        """
        try:
            ended = self._files.complete_change()
        except Exception as error:  # noqa: BLE001 - it would fail with every later document
            if self._files.change is not None:
                self._log_incomplete(self._files.change[0].uid, error)
            ended = self._files.give_up_change()
        if ended is not None:
            self._runs.forget_ended(ended)
        self._files.change = None

    def _log_incomplete(self, run_uid: str, error: Exception) -> None:
        self._ignored.log_later(
            logging.ERROR,
            "run %s: what was being written could not be completed; if its stop is missing, the run counts as "
            "interrupted once this process has ended", run_uid, error=error,
        )  # fmt: skip

    def _skip(self, uid: str) -> None:
        """Take nothing of a run that was taken before."""
        self._ignored.counts[TAKEN_BEFORE] += 1
        self._runs.remembered.skip(uid)
        self._ignored.log_later(
            logging.INFO if self._files.redelivers else logging.WARNING,
            "run %s was recorded before and is not sent again; set `resend` to send it again. If it is another run, "
            "give it its own uid", uid,
        )  # fmt: skip

    def _warn_of_bare_starts(self) -> None:
        """Warn if runs begin one after the other and nothing else comes of them."""
        if sum(not run.event_streams for run in self._runs) >= MAX_BARE_RUNS:
            self._ignored.warn_of_incomplete_run("several runs have only their start documents")

    def _is_described(self, run: OpenRun, descriptor: str) -> bool:
        """Return True if files of the run have a descriptor. Make them if there are none of this process."""
        if run.earlier_events is not None and descriptor in run.earlier_events.descriptors:
            return True
        if run.writer is None and self._files.redelivers:
            return self._files.make_folder_if_due(run)  # writes all descriptors
        return False
