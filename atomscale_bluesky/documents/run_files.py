"""The files of the open runs: makes, appends to and ends them, even if an exception from a signal handler interrupts.

Every change is noted in `change` before it is made. If an exception ended it, `complete_change` finds out from the
journal what was written, and completes or repeats the rest.

Used by one thread at a time, which holds the recorder's lock. Nothing is logged here: `IgnoredDocuments` collects the
log entries, which are written when the lock is free.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from ..errors import LineTooLongError, SpoolError, SpoolFullError
from ..model.loss import Loss
from ..model.text import encodable, safe
from ..spool.journal_format import Stop
from ..spool.lines import encode
from ..spool.run_writer import RunWriter
from ..spool.spool import Spool
from .description import Description, descriptor_lines
from .event_stream import EventStream
from .ignored_documents import NOT_KEPT, IgnoredDocuments
from .open_run import OpenRun

# For this long after a failure, a run's files are not made again. Otherwise every document would try.
TRY_AGAIN_S = 1.0

# A change of a run's files: the run, the event stream and the lines to append with their event uids, or how the run
# ended with the lines that say so. Without either, the journal is being made. The last item is the journal's size
# before. A plain tuple, because one is made per event.
_Change = tuple[OpenRun, EventStream | None, list[bytes], Sequence[str], Stop | None, int]


class RunListener(Protocol):
    """What a recorder notifies about its runs: whatever delivers them in this process. No method blocks."""

    @property
    def delivers_new_runs(self) -> bool:
        """Return True if it delivers a run that begins now: then its lock is taken together with the run's folder."""
        ...

    def add(self, writer: RunWriter) -> None:
        """Note that a run begins."""
        ...

    def wake(self, folder: Any = None) -> None:
        """Note that a journal has new lines that can be sent."""
        ...

    def writer_done(self, folder: Any) -> None:
        """Note that the writer of a run has finished, and writes nothing more."""
        ...


class RunFiles:
    """Writes what is recorded of open runs.

    Args:
        spool: Where their folders are made.
        listener: Is notified of new runs, full chunks and ends. None if runs are not delivered in this process.
        ignored_documents: Collects what is to be logged.
        redelivers: A document that could not be written is given again, so its readings are not counted as left out.
        spool_option: Appended to the command that is named, such as ` --spool-dir /data/spool`.
    """

    def __init__(
        self,
        spool: Spool,
        listener: RunListener | None,
        ignored_documents: IgnoredDocuments,
        *,
        redelivers: bool = False,
        spool_option: str = "",
    ) -> None:
        self._spool = spool
        self._spool_option = spool_option
        self.listener = listener
        self._ignored = ignored_documents
        self.leaves_out = False  # the present document is not given again after all
        self._redelivers = redelivers
        self.change: _Change | None = None  # begun; still set if an exception from a signal handler ended it

    @property
    def source_redelivers(self) -> bool:
        """Return True if the source gives a document again that was not acknowledged, the present one or another."""
        return self._redelivers

    @property
    def redelivers(self) -> bool:
        """Return True if the present document is given again if it could not be written."""
        return self._redelivers and not self.leaves_out

    def make_folder(self, run: OpenRun) -> bool:
        """Make the run's folder in the spool. If that fails, the run's readings are counted as left out.

        Sets `change` to None at the end.

        Returns:
            True if the folder is there, with all that the run's descriptors say.
        """
        self.change = (run, None, [], (), None, 0)
        try:
            to_deliver = self.listener is not None and self.listener.delivers_new_runs
            self._spool.writers.create(run.header, to_deliver=to_deliver, accept=run.begin_journal)
        except SpoolError as error:
            run.no_writer_text = encodable(str(error))  # a folder's name may be no text
            run.no_writer_reason, until = Loss.NO_ROOM, "there is room"
            if not isinstance(error, SpoolFullError):
                run.no_writer_reason, until = Loss.NOT_WRITTEN, "its files can be made"
                run.try_again_at = time.monotonic() + TRY_AGAIN_S
            text = f"run {run.uid} is not recorded until {until}; until then its readings are left out: {error}"
            self._ignored.log_once(f"not kept {run.uid}", text, logging.ERROR)
        described = self.describe(run, run.descriptions)
        self._notify_of_journal(run)
        self.change = None
        return described

    def describe(self, run: OpenRun, descriptions: Mapping[str, Description]) -> bool:
        """Write down what descriptors say, by uid, for a process that resumes the run. The caller then resets `change`.

        If they do not come again, they are also written while the spool is full, as far as its allowance goes.

        Returns:
            False if they could not be written, and might be later.
        """
        lines = [line for uid, description in descriptions.items() for line in descriptor_lines(uid, description)]
        if run.writer is None:
            return False
        if not lines:
            return True
        self.change = (run, None, lines, (), None, run.writer.written)
        try:
            self._append_descriptors(run.writer, lines)
        except SpoolError as error:
            comes_again = self.redelivers and not isinstance(error, LineTooLongError)
            if comes_again:
                self._ignored.log_later(logging.DEBUG, "a descriptor of run %s could not be kept: %s", run.uid, error)
            else:
                text = (
                    f"a descriptor of run {run.uid} could not be kept, so a process that resumes the run cannot take "
                    f"its events: {error}"
                )
                self._ignored.log_once(f"descriptor not kept {run.uid}", text, logging.ERROR)
            return isinstance(error, LineTooLongError)
        return True

    def _append_descriptors(self, writer: RunWriter, lines: list[bytes]) -> None:
        if self.redelivers:
            writer.append(lines)
        else:
            writer.append_within_allowance(lines)

    def make_folder_if_due(self, run: OpenRun) -> bool:
        """Make a folder for a run that has none, if that may succeed by now. Return True as `make_folder` does."""
        may_succeed = run.has_only_ended_journals or self._spool.writers.has_room
        return may_succeed and time.monotonic() >= run.try_again_at and self.make_folder(run)

    def append(
        self, run: OpenRun, event_stream: EventStream, payloads: list[bytes], uids: Sequence[str], keys: Any
    ) -> Loss | None:
        """Append a document's lines, or count its readings as left out. The caller then sets `change` to None.

        Returns:
            Why the readings were left out; None if they were appended.
        """
        writer = run.writer
        if writer is None:
            self._leave_out(run, run.no_writer_reason, keys, len(uids))
            return run.no_writer_reason
        self.change = (run, event_stream, payloads, uids, None, writer.written)
        try:
            unsynced = writer.append(payloads)
        except SpoolError as error:
            why = self._reason_for(run, error)
            self._leave_out(run, why, keys, len(uids))
            return why
        first = not event_stream.has_rows
        full = event_stream.note_written(run.header.points_per_chunk)
        if unsynced is not None:
            self._ignored.log_later(
                logging.ERROR,
                "journal in %s could not be synced, so a power cut may take its last rows: %s",
                writer.folder,
                unsynced,
            )
        if first and event_stream.left_out:
            listed = safe(", ".join(f"{key} ({reason})" for key, reason in event_stream.left_out.items()))
            self._ignored.log_later(
                logging.INFO, "event stream %r of run %s leaves out %s", event_stream.name, run.uid, listed
            )
        if self.listener is not None and (first or full):
            self.listener.wake(writer.folder)
        return None

    def _leave_out(self, run: OpenRun, why: Loss, keys: Any, events: int) -> None:
        if not (self.redelivers and why.may_be_kept_later):
            run.leave_out(why, keys, events)

    def _reason_for(self, run: OpenRun, error: SpoolError) -> Loss:
        if isinstance(error, SpoolFullError):
            why, about, text = Loss.NO_ROOM, "no room", f"new readings of run {run.uid} are left out: {error}"
            if self.leaves_out:
                about = "fills the spool"
                text += "; runs that are being recorded fill it, so delivery makes none; "
                text += self._spool.disk_space.remedy
        elif isinstance(error, LineTooLongError):
            why, about, text = (
                Loss.DOCUMENT_TOO_LONG,
                "too long",
                f"run {run.uid}: a document's readings are left out: {error}",
            )
        else:
            why, about, text = Loss.NOT_WRITTEN, "not written", f"new readings of run {run.uid} are left out: {error}"
        self._ignored.log_once(f"{about} {run.uid}", text, logging.ERROR)
        return why

    def end(self, run: OpenRun, stop: Stop) -> None:
        """Write into the run's files how it ended. The caller then sets `change` to None."""
        lines, before = [], 0
        if run.writer is not None:  # encoded first: what fails here has changed nothing
            stop.rows.update(run.rows_by_time_base())
            lines, before = [*run.left_out_lines(), encode(stop)], run.writer.written
        self.change = (run, None, lines, (), stop, before)
        self._end(run, stop, lines, before)

    def complete_change(self) -> OpenRun | None:
        """Complete the change that an exception from a signal handler has interrupted.

        The caller then sets `change` to None.

        Returns:
            The run that has ended with this, by its stop document; None if it was another change.
        """
        if self.change is None:
            return None
        run, event_stream, payloads, uids, stop, before = self.change
        if stop is not None:
            self._end(run, stop, payloads, before)
            return None if stop.interrupted else run
        if event_stream is None:
            if not payloads:  # the journal was being made: none of the run's descriptors is in it yet
                self.describe(run, run.descriptions)
            elif run.writer is not None and not _has_written(run.writer, payloads, before):
                with suppress(SpoolError):  # as in `describe`
                    self._append_descriptors(run.writer, payloads)
            self._notify_of_journal(run)
        elif run.writer is not None and _has_written(run.writer, payloads, before):
            event_stream.note_written()
            run.remember_all(uids)
            if self.listener is not None:
                self.listener.wake(run.writer.folder)
        return None

    def give_up_change(self) -> OpenRun | None:
        """Forget a change that cannot be completed, so that nothing after it is affected.

        A run that was ending gets nothing more into that journal. If it could not be written, the run counts as
        interrupted once this process has ended.

        Returns:
            The run if its stop document has come; None if it was another change.
        """
        if self.change is None:
            return None
        run, _, _, _, stop, _ = self.change
        if stop is not None and run.writer is not None:
            run.release_journal()
        return None if stop is None or stop.interrupted else run

    def note_not_kept(self, run: OpenRun) -> None:
        """Note in the spool a run without a journal for the readings that were left out of it."""
        not_kept = run.pop_not_kept_note(time.time())
        if not_kept is not None:
            self._ignored.counts[NOT_KEPT] += 1
            self._spool.writers.note_not_kept(not_kept)
            self._ignored.log_later(
                logging.ERROR,
                "run %s ended without having been kept, %d readings of it are left out: %s; "
                "`atomscale-bluesky status%s` shows it",
                run.uid, not_kept.readings, not_kept.reason, self._spool_option,
            )  # fmt: skip

    def _end(self, run: OpenRun, stop: Stop, lines: list[bytes], before: int) -> None:
        """Write how the run ended. After an interruption, all of this is done again."""
        if not stop.interrupted:
            if run.writer is None:
                self.note_not_kept(run)
            run.log_what_was_odd(self._ignored, self._spool_option)
        if run.writer is not None:
            self._end_journal(run, run.writer, lines, before)

    def _end_journal(self, run: OpenRun, writer: RunWriter, lines: list[bytes], before: int) -> None:
        self._notify_of_journal(run)
        try:
            writer.end(lines, before)
        except SpoolError as error:
            # Without its stop in the journal the run counts as interrupted once its lock is free, and is completed.
            self._ignored.log_later(
                logging.ERROR, "the stop of run %s could not be written, it is tried again: %s", run.uid, error
            )
        self._spool.writers.release(writer)
        if self.listener is not None:
            self.listener.writer_done(writer.folder)
        run.release_journal()

    def _notify_of_journal(self, run: OpenRun) -> None:
        """Notify the listener of a new journal, only once however often this is called."""
        if not run.listener_knows and run.writer is not None and self.listener is not None:
            self.listener.add(run.writer)
        run.listener_knows = True


def _has_written(writer: RunWriter, payloads: list[bytes], written_before: int) -> bool:
    try:
        return writer.recover_append(payloads, written_before)
    except SpoolError:  # the disk fails; half a line may be there, which is removed before anything else is written
        return False
