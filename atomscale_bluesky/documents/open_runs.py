"""The open runs: how each begins, is resumed after an interruption, and ends; and which of them a document belongs to.

A start, descriptor or stop document names its run by the run's uid, an event by its descriptor's uid. A run that was
recorded before, or that another recorder of this process records, is skipped: its documents are known, and nothing of
them is written again.

Used by one thread at a time, which holds the recorder's lock.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ..model.loss import Loss
from ..settings import Settings, spool_option
from ..spool.journal_format import FORMAT, Header, Stop
from ..spool.own_files import OUT_OF_RESOURCES
from .accepted import KNOWN, NOTHING, TRY_AGAIN, Accepted
from .description import Description, description_of
from .descriptor import event_stream_of, mapping_of
from .early_events import EarlyEvents
from .event_stream import EventStream
from .ignored_documents import TAKEN_BEFORE, IgnoredDocuments
from .known_runs import KnownRun, KnownRuns, RunState
from .not_given import count_not_given
from .open_run import OpenRun
from .peers import Peers
from .run_files import RunFiles
from .selection import Selection
from .start_document import header_of, text_of, time_of, uid_of

# How many ended runs are remembered, to recognise a replay.
REMEMBERED_RUNS = 1000
# A start document older than this is a replay: if another process takes the run now, the run is left to that process. A
# younger one begins a run, which two processes may get at the same moment. Then each of them records it.
REPLAY_AGE_S = 5.0
# Up to this many runs that were completed as interrupted stay in memory, each with up to 20 000 uids of events. If
# another one continues, it is resumed from its files.
MAX_COMPLETED_RUNS = 16
# After how long a descriptor is sought again if the writer of a run that may have it lived. It may have been dying.
SEARCH_AGAIN_S = 1.0
# Up to this many open runs may have nothing but a start document, as runs that enclose other runs have at first.
MAX_BARE_RUNS = 3


class OpenRuns:
    """The open runs of one recorder, and what it knows of others.

    Args:
        settings: What a run's header says that its start document does not.
        known_runs: What earlier processes kept.
        peers: The recorders of this process that get the same runs.
        files: Writes the runs' journals.
        early: The events that wait for their descriptors.
        ignored_documents: Counts what is not taken, and collects log entries.
        redelivers: A start document or descriptor that could not be written is given again, so it is not taken.
        physical_sample: Name or id of the physical sample of runs whose metadata name none.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        known_runs: KnownRuns,
        peers: Peers,
        files: RunFiles,
        early: EarlyEvents,
        ignored_documents: IgnoredDocuments,
        redelivers: bool = False,
        physical_sample: str | None = None,
    ) -> None:
        # By descriptor uid: the run, the event stream or None if it is not selected, and what the descriptor says.
        self.by_descriptor: dict[str, tuple[OpenRun, EventStream | None, Description]] = {}
        self._settings = settings
        self._spool_option = spool_option(settings)  # now, because later the plan would wait for the settings file
        self._redelivers = redelivers
        self._physical_sample = physical_sample
        self._selection = Selection(
            event_streams=settings.event_streams,
            channels=settings.channels,
            monitors=settings.monitors,
            rename=settings.rename,
            max_elements=settings.max_elements,
            timestamps=settings.timestamps,
            unprefixed=settings.primary if settings.layout == "run" else None,
        )
        self._known_runs = known_runs
        self._peers = peers
        self._files = files
        self._early = early
        self._ignored = ignored_documents
        self._runs: dict[str, OpenRun] = {}  # by uid
        self._ended: OrderedDict[str, None] = OrderedDict()  # uids of runs
        # By descriptor uid: the uid of its run, which has ended; and of those that were completed as interrupted.
        self._descriptors_of_ended: OrderedDict[str, str] = OrderedDict()
        self._descriptors_of_completed: OrderedDict[str, str] = OrderedDict()
        self._skipped: set[str] = set()  # uids of runs
        self._skipped_descriptors: dict[str, str] = {}  # uid → uid of its run, which is skipped
        # By uid of a descriptor that was sought in the spool in vain: when to search again, monotonic.
        self._unknown_descriptors: OrderedDict[str, float] = OrderedDict()

    def __bool__(self) -> bool:
        """Return True if any run is open."""
        return bool(self._runs)

    def skips(self, descriptor: str) -> bool:
        """Return True if a descriptor belongs to a run that is skipped."""
        return descriptor in self._skipped_descriptors

    def ended_run_of(self, descriptor: str) -> str | None:
        """Return the uid of the run that a descriptor belonged to, if that has ended, or None."""
        return self._descriptors_of_ended.get(descriptor)

    def forget_all(self, peers: Peers) -> None:
        """Forget the open runs, in a forked child: they belong to the parent, and the child has other peers."""
        self._runs.clear()
        self.by_descriptor.clear()
        self._early.clear()
        self._peers = peers

    def look_up(self, doc: Mapping[str, Any]) -> tuple[str, Header, KnownRun | None]:
        """Return a run's uid and header, and what was taken of it before. Needs no lock; may read the disk."""
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
        """Return True if a run has ended, here or in another process. Needs no lock; may read the disk."""
        if self._settings.resend or uid in self._runs:
            return False
        try:
            known = self._known_runs.known_run(uid)
        except OSError:
            return False
        return known is not None and known.state is RunState.ENDED

    def start(self, uid: str, header: Header, known: KnownRun | None) -> Accepted:
        """Open a run, unless it is skipped. The arguments are what `look_up` returns.

        Return `TRY_AGAIN` if its files cannot be made and its source gives it again.
        """
        open_run = self._runs.get(uid)
        if open_run is not None:
            self._ignored.ignore("start", f"a second start document of run {uid} is ignored")
            if known is not None and known.earlier_events is not None:
                open_run.earlier_events = known.earlier_events  # an event may repeat one older than those remembered
            return KNOWN
        is_ours = known is None or known.state is RunState.INTERRUPTED
        if not is_ours or (uid in self._ended and not self._settings.resend):
            self._skip(uid)
            return KNOWN
        if not self._peers.claim(uid, again=self._settings.resend):
            self._leave_to_another(uid)
            return KNOWN
        self._warn_of_bare_starts()
        earlier_events = known.earlier_events if known is not None else None
        if earlier_events is not None:
            header = replace(header, part=earlier_events.part)
        run = self._runs[uid] = OpenRun(uid, header, earlier_events)
        if run.earlier_events is None:
            self._files.make_folder(run)
            if run.writer is None and self._redelivers:
                del self._runs[uid]
                self._peers.release(uid, ended=False)
                return TRY_AGAIN
            if run.writer is not None and not self._settings.resend:
                self._known_runs.check_for_second_recorder(
                    uid, run.writer.folder, on_purpose=self._peers.has_another_account
                )
        run.log_opened(self._ignored, self._spool_option)
        return NOTHING

    def descriptor(self, doc: Mapping[str, Any]) -> Accepted:
        """Keep what a descriptor says. Return `KNOWN` if its run is skipped.

        Return `TRY_AGAIN` if it cannot be written and its source gives it again.

        Raises:
            DocumentError: The run's start document never came.
        """
        run_uid, uid = str(doc["run_start"]), str(doc["uid"])
        run = self._get_or_resume(run_uid)
        if run is None and run_uid in self._skipped:
            self._skipped_descriptors[uid] = run_uid
            return KNOWN
        if run is None:
            raise self._ignored.ignore_without_start(
                "descriptor", f"a descriptor of run {run_uid}, whose start never came, is ignored", run_uid
            )
        description = description_of(doc, uid, event_stream_of(doc))
        new = uid not in run.descriptions
        self._describe(run, description)
        if not new:
            return NOTHING
        if run.lacks_descriptor(uid):
            # The descriptor may come only once, and another process may have to resume the run.
            described = self._files.make_folder_if_due(run)
        else:
            described = self._files.describe(run, [description]) or self._is_described(run, uid)
        self._files.change = None
        if self._redelivers and not described:
            del run.descriptions[uid]  # so that it is new when it comes again
            return TRY_AGAIN
        return NOTHING

    def stop(self, doc: Mapping[str, Any]) -> Accepted:
        """End a run. Return `KNOWN` if it is skipped.

        Raises:
            DocumentError: The run's start document never came.
        """
        uid = str(doc["run_start"])
        run = self._get_or_resume(uid)
        if run is None and uid in self._skipped:
            self._skipped.discard(uid)
            for descriptor in [key for key, run_uid in self._skipped_descriptors.items() if run_uid == uid]:
                self._descriptors_of_ended[descriptor] = self._skipped_descriptors.pop(descriptor)
            _forget_oldest(self._descriptors_of_ended)
            self._early.note_run_ended()
            return KNOWN
        if run is None:
            raise self._ignored.ignore_without_start(
                "stop", f"a stop document of run {uid}, whose start never came, is ignored", uid
            )
        counts = mapping_of(doc.get("num_events"))
        if not run.event_streams and any(isinstance(count, int) and count > 0 for count in counts.values()):
            self._ignored.warn_of_incomplete_run(f"run {uid} had events, and no descriptor came")
        stop = Stop(
            time=time_of(doc),
            exit_status=text_of(doc.get("exit_status")),
            reason=text_of(doc.get("reason")),
        )
        if self._early:
            overdue = self._early.note_stop()
            alone = all(other is run or other.completed for other in self._runs.values())
            if alone:
                self._leave_out_all_early(run)
            else:
                self._early.note_run_ended()
                self.give_up_early(overdue)
        stop.not_given.update(count_not_given(run, counts, self._selection))
        run.log_not_given(stop.not_given, self._ignored)
        if run.has_only_ended_journals:
            self._files.make_folder_if_due(run)  # its files say that no stop document came
        self._files.end(run, stop)
        self._forget(run)
        self._files.change = None
        return NOTHING

    def resume_run_of(self, descriptor: str) -> bool:
        """Find the run of a descriptor that did not come to this process, in the spool, and resume it.

        A run that has ended is skipped from here on. A descriptor of no run is remembered, so that the spool is not
        searched for each of its events.

        Returns:
            True if its events can be recorded now.

        Raises:
            OSError: The spool cannot be searched now.
        """
        run_uid, certain = self._descriptors_of_completed.get(descriptor), True
        if run_uid is None:
            search_again_at = self._unknown_descriptors.get(descriptor, -math.inf)
            if not isinstance(descriptor, str) or time.monotonic() < search_again_at:
                return False
            run_uid, certain = self._known_runs.run_with_descriptor(descriptor, everywhere=self._redelivers)
        if run_uid is not None:
            self._resume_by_descriptor(run_uid, descriptor)
        if descriptor in self._skipped_descriptors:
            return False
        if descriptor in self.by_descriptor:
            return True
        self._unknown_descriptors[descriptor] = math.inf if certain else time.monotonic() + SEARCH_AGAIN_S
        if len(self._unknown_descriptors) > REMEMBERED_RUNS:
            self._unknown_descriptors.popitem(last=False)
        return False

    def _resume_by_descriptor(self, run_uid: str, descriptor: str) -> None:
        """Resume the run of a descriptor that did not come to this process. If it has ended, skip the descriptor."""
        run = self._runs.get(run_uid)
        if run is None:
            if self._resume(run_uid) is None and run_uid in self._skipped:
                self._skipped_descriptors[descriptor] = run_uid
        elif run.earlier_events is not None and descriptor in run.earlier_events.descriptors:
            self._describe(run, Description(run.earlier_events.descriptors[descriptor]))

    def complete(self, folder: Path | None) -> None:
        """Complete all open runs, or the one in `folder`, as interrupted."""
        if folder is None and self._early:
            open_runs = [run for run in self._runs.values() if not run.completed]
            if len(open_runs) == 1:
                self._leave_out_all_early(open_runs[0])
            else:
                self.give_up_early(self._early.descriptors)
        for run in list(self._runs.values()):
            if run.writer is not None and folder in {None, run.writer.folder}:
                self._complete_journal(run, closing=folder is None)
            elif run.writer is None and folder is None:  # no journal says what was left out of it
                self._files.note_not_kept(run)
                self._peers.release(run.uid, ended=False)
        self._forget_oldest_completed()

    def _complete_journal(self, run: OpenRun, *, closing: bool) -> None:
        """Write into a run's journal that its stop document has not come. `closing`: it is one of all open runs."""
        self._early.note_run_ended()
        self._files.end(run, Stop(time.time(), "", "no stop document", interrupted=True))
        self._peers.release(run.uid, ended=False)
        self._files.change = None
        if closing and self._peers.has_several_subscribers:
            self._ignored.log_once(
                "completed beside another",
                f"run {run.uid} is marked as interrupted, because its callback was closed before its stop document. "
                f"The other callback of this process will not go on with it. Keep the closed callback subscribed until "
                f"the run ends if its further readings matter",
            )

    def _forget_oldest_completed(self) -> None:
        """Forget runs that were completed as interrupted, except the youngest. If one continues, it is resumed."""
        completed = [run for run in self._runs.values() if run.completed]
        for run in completed[: max(0, len(completed) - MAX_COMPLETED_RUNS)]:
            self._files.note_not_kept(run)  # what came since then and found no room
            self._forget_descriptors(run, self._descriptors_of_completed)
            del self._runs[run.uid]

    def give_up_early(self, descriptors: Iterable[str]) -> None:
        """Count the events that wait for these descriptors as ignored: their run is not known."""
        for early in self._early.give_up(descriptors):
            self._ignored.count_given_up(early.descriptor, early.name)

    def complete_change(self) -> None:
        """Complete the change that an exception from a signal handler has interrupted."""
        try:
            ended = self._files.complete_change()
            if ended is not None:
                self._forget(ended)
        except Exception:  # the same change would fail for ever, and with it every later document
            self._files.change = None
            raise
        self._files.change = None

    def _skip(self, uid: str) -> None:
        """Take nothing of a run that was taken before."""
        self._ignored.counts[TAKEN_BEFORE] += 1
        self._skipped.add(uid)
        self._ignored.log_later(
            logging.INFO if self._redelivers else logging.WARNING,
            "run %s was recorded before and is not sent again; set `resend` to send it again. If it is another run, "
            "give it its own uid", uid,
        )  # fmt: skip

    def _leave_to_another(self, uid: str) -> None:
        """Take nothing of a run that another recorder of this process takes, with the same spool and account."""
        self._ignored.counts[TAKEN_BEFORE] += 1
        self._skipped.add(uid)
        self._ignored.log_once(
            "another",
            f"run {uid} goes through two callbacks of this process with the same spool and account, so the newer one "
            f"records it and all later runs. A start-up file may have been executed twice. Unsubscribe the older one: "
            f"`RE.unsubscribe(token)`. A second recording on purpose needs a `spool_dir` of its own",
        )

    def _warn_of_bare_starts(self) -> None:
        """Warn if runs begin one after the other and nothing else comes of them."""
        if sum(not run.event_streams for run in self._runs.values()) >= MAX_BARE_RUNS:
            self._ignored.warn_of_incomplete_run("several runs have only their start documents")

    def _is_described(self, run: OpenRun, descriptor: str) -> bool:
        """Return True if files of the run have a descriptor. Make them if there are none of this process."""
        if run.earlier_events is not None and descriptor in run.earlier_events.descriptors:
            return True
        if run.writer is None and self._redelivers:
            return self._files.make_folder_if_due(run)  # writes all descriptors
        return False

    def _describe(self, run: OpenRun, description: Description) -> None:
        name = description.line.event_stream
        if name not in run.event_streams and not run.describe(description, self._selection):
            self._ignored.log_later(
                logging.INFO, "event stream %r of run %s is left out by the settings", name, run.uid
            )
        run.descriptions[description.line.uid] = description
        self.by_descriptor[description.line.uid] = run, run.event_streams[name], description

    def _get_or_resume(self, run_uid: str) -> OpenRun | None:
        """Return an open run, or resume one that was interrupted. Return None if it is skipped or unknown."""
        run = self._runs.get(run_uid)
        return self._resume(run_uid) if run is None and run_uid not in self._skipped else run

    def _resume(self, run_uid: str) -> OpenRun | None:
        """Resume a run that was interrupted and whose source continues where it was.

        Return None if there is none. A run that has ended, or that another recorder writes, is skipped from here on.

        Raises:
            OSError: Its files cannot be read now.
        """
        try:
            known = self._known_runs.known_run(run_uid, resumed=True)
        except OSError as error:
            if error.errno in OUT_OF_RESOURCES:
                raise
            return None
        if known is None:
            return None
        if known.state is not RunState.INTERRUPTED:
            self._skipped.add(run_uid)
            return None
        earlier_events = known.earlier_events
        if earlier_events is None or earlier_events.header is None:
            return None
        if not self._peers.claim(run_uid):
            self._leave_to_another(run_uid)
            return None
        header = replace(earlier_events.header, format=FORMAT, session="", part=earlier_events.part)
        run = self._runs[run_uid] = OpenRun(run_uid, header, earlier_events)
        for line in earlier_events.descriptors.values():
            self._describe(run, Description(line))
        run.log_opened(self._ignored, self._spool_option)
        return run

    def _leave_out_all_early(self, run: OpenRun) -> None:
        """Count all events whose descriptor has not come, as ignored and as left out of `run`, the only open one.

        Those that waited while another run ended may be of that run, so they count as ignored only.
        """
        self.give_up_early(self._early.of_any_run)
        for early in self._early.give_up(self._early.descriptors):
            events = 1 if early.name == "event" else len(early.doc.get("uid") or ())
            self._ignored.count_given_up(early.descriptor, early.name)
            run.leave_out(Loss.NO_DESCRIPTOR, list(mapping_of(early.doc.get("data"))), events)

    def _forget(self, run: OpenRun) -> None:
        """Forget a run, except that it has ended."""
        self._forget_descriptors(run, self._descriptors_of_ended)
        self._peers.release(run.uid, ended=run.has_only_ended_journals)
        if run.has_only_ended_journals:  # otherwise nothing of it is kept, and a replay should be taken
            self._ended[run.uid] = None
        if len(self._ended) > REMEMBERED_RUNS:
            self._ended.popitem(last=False)
        self._runs.pop(run.uid, None)

    def _forget_descriptors(self, run: OpenRun, remembered: OrderedDict[str, str]) -> None:
        """Forget what a run's descriptors say. Remember only their uids, and the run's."""
        for descriptor in [key for key, value in self.by_descriptor.items() if value[0] is run]:
            remembered[descriptor] = run.uid
            del self.by_descriptor[descriptor]
        _forget_oldest(remembered)


def _forget_oldest(remembered: OrderedDict[str, str]) -> None:
    while len(remembered) > REMEMBERED_RUNS:
        remembered.popitem(last=False)
