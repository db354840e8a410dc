"""The recorder's state of one run: its header, what has been seen of it, and what never reaches its journal."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any

from msgspec.structs import replace

from ..model.loss import Loss
from ..model.text import safe
from ..model.uids import shown_uid
from ..spool.journal_format import Header, LeftOut
from ..spool.kept_events import KeptEvents
from ..spool.lines import encode
from ..spool.run_writer import RunWriter
from ..spool.runs_not_kept import NotKept
from .channels import Names
from .description import Description
from .descriptor import mapping_of
from .event_stream import EventStream
from .ignored_documents import IgnoredDocuments
from .selection import Selection
from .start_document import text_of

# The same event may come twice (two subscriptions, a bus that delivers again). At least this many uids of each run are
# remembered, up to twice as many, and in addition those of up to two documents of several events: a document's uids are
# not divided.
REMEMBERED_EVENTS = 10_000

# Reasons whose readings come again in each replay. Others may be kept the next time, or are counted by their rows.
_COMES_AGAIN = frozenset({Loss.EVENT_STREAM_NOT_SELECTED, Loss.MALFORMED, Loss.DOCUMENT_TOO_LONG})

# A line of the journal names no more keys than this, so that it is never too long.
KEYS_PER_LINE = 10_000


class OpenRun:
    """A run whose stop document has not come.

    Args:
        uid: The run's uid.
        header: The first line of its journal.
        earlier_events: What its earlier journals hold, if it was interrupted.
    """

    def __init__(self, uid: str, header: Header, earlier_events: KeptEvents | None = None) -> None:
        self.uid = uid
        self.header = header
        self.first_part = header.part  # of the first journal that this process writes
        # What the descriptors say, by uid. The journal has it too, for a process that resumes the run.
        self.descriptions: dict[str, Description] = {}
        # Each of them once, by its content: a plan that configures a device again has another descriptor each time.
        self._different_descriptions: dict[Hashable, Description] = {}
        self.writer: RunWriter | None = None  # of the journal that is being written
        # True while the run has journals of which none is being written: its next reading makes a further one.
        self.has_only_ended_journals = earlier_events is not None
        self.completed = False  # its last journal says how it ended, and nothing came since
        # Without a writer: why the last attempt to make one failed, in a reading's account and for the operator.
        self.no_writer_reason = Loss.NO_ROOM
        self.no_writer_text = ""
        self.try_again_at = 0.0  # monotonic: when to try again to make one
        self._noted_as_not_kept = False
        self.listener_knows = True  # of its journal, if there is one
        self.event_streams: dict[str, EventStream | None] = {}  # None: not selected
        self.channel_names: Names = {}  # of all channels
        self.earlier_events = earlier_events
        # Uids of earlier events, at least of the last `REMEMBERED_EVENTS`.
        self.seen: set[str] = set()  # the youngest
        self.seen_before: set[str] = set()  # the ones before those
        # Those seen when the start document came again, and not since: the earlier journals do not know that they came.
        self.seen_before_start: set[str] = set()
        self.keeps_all_uids = False  # True while the events of one document are taken one by one
        self._layouts = 0
        self._left_out: Counter[tuple[str, str]] = Counter()  # reason, key
        self.has_malformed_events = False  # events of it came that could not be read
        # What earlier journals count as left out, for reasons that a replay brings again. It is not counted twice.
        left_out = earlier_events.left_out if earlier_events is not None else {}
        self._counted_before = {
            counted: readings for counted, readings in left_out.items() if counted[0] in _COMES_AGAIN
        }

    def describe(self, description: Description, selection: Selection) -> bool:
        """Add the first descriptor of an event stream. Return False if the event stream is not selected."""
        name = description.event_stream
        taken = selection.takes_event_stream(name)
        self.event_streams[name] = (
            EventStream(
                description,
                selection,
                started=self.header.started,
                next_layout=self._next_layout,
                names=self.channel_names,
                earlier=self.earlier_events.layouts_of(name) if self.earlier_events else (),
                collected=self.earlier_events is not None and self.earlier_events.shows_collected(name),
                all_time_base_names=self._all_time_base_names,
            )
            if taken
            else None
        )
        return taken

    def begin_again(self, earlier_events: KeptEvents) -> None:
        """Note that the run comes again from its start document, and that its journals hold these events."""
        self.seen_before_start = self.seen | self.seen_before
        self.earlier_events = earlier_events

    def shared_description(self, description: Description) -> Description:
        """Return the first description of the run that says the same: this one, if there is none."""
        return self._different_descriptions.setdefault(description.content, description)

    def begin_journal(self, writer: RunWriter) -> None:
        """Write into this empty journal from here on: the run's first, or a further one after an interruption."""
        for event_stream in self.event_streams.values():
            if event_stream is not None:
                event_stream.restart_numbering()
        self.completed = False
        # In one statement, and last: if this is interrupted before, the run gets a further journal.
        self.writer, self.has_only_ended_journals, self.listener_knows, writer.is_accepted = writer, False, False, True

    def lacks_descriptor(self, descriptor: str) -> bool:
        """Return True if the run has only ended journals, and none of them has this descriptor."""
        return self.has_only_ended_journals and (
            self.earlier_events is None or descriptor not in self.earlier_events.descriptors
        )

    def release_journal(self) -> None:
        """Release the journal, which now says how the run ended. If more comes of the run, it has a further journal."""
        self.header = replace(self.header, part=self.header.part + 1)
        left_out: Counter[tuple[str, str]] = Counter()
        for event_stream in filter(None, self.event_streams.values()):
            event_stream.late.clear()
        self.completed = True
        self.writer, self.has_only_ended_journals, self._left_out = None, True, left_out

    def remember(self, uid: str) -> None:
        """Remember an event's uid. When there are too many, forget the oldest, many at once."""
        self.seen.add(uid)
        if len(self.seen) > REMEMBERED_EVENTS:
            self.forget_oldest_uids()

    def remember_all(self, uids: Iterable[str]) -> None:
        """Remember the uids of a page's events."""
        self.seen.update(uids)
        self.forget_oldest_uids()

    def forget_oldest_uids(self) -> None:
        """Forget the oldest uids if there are too many, unless all are to be kept for now."""
        if len(self.seen) > REMEMBERED_EVENTS and not self.keeps_all_uids:
            self.seen, self.seen_before = set(), self.seen

    def leave_out(self, reason: str, keys: Iterable[Any], events: int = 1) -> None:
        """Count readings that do not reach the journal."""
        for key in keys:
            counted = (reason, text_of(key))
            before = min(events, self._counted_before.get(counted, 0))
            if before:
                self._counted_before[counted] -= before
            if events > before:
                self._left_out[counted] += events - before

    def leave_out_malformed(self, doc: Mapping[str, Any], events: int = 1) -> None:
        """Count the readings of a document that cannot be read, of so many events. It may have none that can be told.

        So that its events are not reported as if they had never come, this is noted too.
        """
        self.has_malformed_events = True
        self.leave_out(Loss.MALFORMED, list(mapping_of(doc.get("data"))), events)

    def has_left_out_for(self, reasons: Set[str]) -> bool:
        """Return True if any reading was left out for one of these reasons, here or in an earlier journal."""
        before = self.earlier_events.left_out if self.earlier_events else {}
        return any(reason in reasons for reason, _ in [*self._left_out, *before])

    def pop_not_kept_note(self, ended: float) -> NotKept | None:
        """Take out the counts of left-out readings that have no journal, as a note. Return None if there are none.

        After a note the counts start again from 0.
        """
        readings = sum(n for (reason, _), n in self._left_out.items() if Loss(reason).may_be_kept_later)
        # A run without any journal is noted even if it lost no reading, but only once.
        is_first_note = not (self.has_only_ended_journals or self._noted_as_not_kept)
        if not readings and not is_first_note:
            return None
        self._noted_as_not_kept = True
        self._left_out.clear()
        return NotKept(
            run_uid=self.uid,
            label=self.header.label,
            started=self.header.started,
            ended=ended,
            readings=readings,
            reason=self.no_writer_text,
        )

    def left_out_lines(self) -> list[bytes]:
        """Return the counts as lines for the journal."""
        counted = dict(self._left_out)
        for event_stream in filter(None, self.event_streams.values()):
            counted |= {(Loss.LATE, key): n for key, n in event_stream.late.items()}
        by_reason: dict[str, list[dict[str, int]]] = {}
        for (reason, key), n in counted.items():
            lines = by_reason.setdefault(reason, [{}])
            if len(lines[-1]) >= KEYS_PER_LINE:
                lines.append({})
            lines[-1][key] = n
        return [
            encode(LeftOut(event_stream="", reason=reason, readings=sum(keys.values()), keys=keys))
            for reason, lines in by_reason.items()
            for keys in lines
        ]

    def rows_by_time_base(self) -> dict[str, int]:
        """Return how many rows of each time base are in this journal."""
        streams = (event_stream for event_stream in self.event_streams.values() if event_stream is not None)
        return {time_base: rows for stream in streams for time_base, rows in stream.rows_by_time_base.items()}

    def log_opened(self, ignored_documents: IgnoredDocuments, spool_option: str) -> None:
        """Log that the run begins, and what the operator has to know about it.

        Args:
            ignored_documents: Collects the log entries.
            spool_option: Appended to the command that is named, such as ` --spool-dir /data/spool`.
        """
        if self.earlier_events is not None:
            ignored_documents.log_later(
                logging.WARNING, "run %s is resumed where it was interrupted: what was recorded is not recorded again",
                self.uid,
            )  # fmt: skip
        if self.earlier_events is not None and self.earlier_events.rows_not_remembered:
            ignored_documents.log_later(
                logging.WARNING,
                "run %s: it has %d rows more than can be recognised; if their events come again, they are recorded "
                "twice",
                self.uid, self.earlier_events.rows_not_remembered,
            )  # fmt: skip
        if self.header.problem:
            ignored_documents.log_later(
                logging.ERROR,
                "run %s is parked, its readings are kept: %s; mend it with `atomscale-bluesky edit %s …%s`",
                self.uid, self.header.problem, shown_uid(self.uid), spool_option,
            )  # fmt: skip
            return
        source = self.header.links.synth_source_id
        ignored_documents.log_later(logging.INFO, "run %s opened for synth_source_id %s", self.uid, source)
        if source is None:
            ignored_documents.log_once(
                "unlinked", "no synth_source_id in a run's metadata or the settings: it is streamed unlinked"
            )

    def log_what_was_odd(self, ignored_documents: IgnoredDocuments, spool_option: str) -> None:
        """Log, at the run's end, which readings were not recorded as they came.

        Args:
            ignored_documents: Collects the log entries.
            spool_option: Appended to the command that is named, such as ` --spool-dir /data/spool`.
        """
        for event_stream in filter(None, self.event_streams.values()):
            times = event_stream.times
            if times.before_the_run:
                ignored_documents.log_later(
                    logging.INFO,
                    "event stream %r of run %s: %d readings were taken before the run; they have their event's time",
                    event_stream.name, self.uid, times.before_the_run,
                )  # fmt: skip
            if times.used_relative:
                ignored_documents.log_later(
                    logging.WARNING,
                    "event stream %r of run %s: its time stamps are no Unix seconds, the first is %r; they count as "
                    "seconds after the run's start; let the device give Unix seconds, or set `timestamps = \"event\"`",
                    event_stream.name, self.uid, times.first_relative_stamp,
                )  # fmt: skip
            if event_stream.replaced_times > times.before_the_run:
                ignored_documents.log_later(
                    logging.WARNING,
                    "event stream %r of run %s: %d readings had impossible times and got their event's",
                    event_stream.name, self.uid, event_stream.replaced_times - times.before_the_run,
                )  # fmt: skip
            if event_stream.late:
                ignored_documents.log_later(
                    logging.WARNING,
                    "event stream %r of run %s: keys that came after 100 changes of its keys or arrays are left out: "
                    "%s",
                    event_stream.name, self.uid, safe(", ".join(event_stream.late)),
                )  # fmt: skip
            if event_stream.rounded:
                ignored_documents.log_later(
                    logging.WARNING,
                    "event stream %r of run %s: integers beyond 2**53 lost digits in %s; "
                    "`atomscale-bluesky status%s` has the counts",
                    event_stream.name, self.uid, safe(", ".join(event_stream.rounded)), spool_option,
                )  # fmt: skip

        if self.earlier_events is not None and self.earlier_events.recognised_by_time:
            ignored_documents.log_later(
                logging.WARNING,
                "run %s: %d events had new uids and were recognised by their times and values, so they were not "
                "recorded again",
                self.uid, self.earlier_events.recognised_by_time,
            )  # fmt: skip
        if self.earlier_events is not None and self.earlier_events.possibly_taken_twice:
            ignored_documents.log_later(
                logging.WARNING,
                "run %s: the list of the events that were recorded before is gone, so %d events may be recorded twice",
                self.uid, self.earlier_events.possibly_taken_twice,
            )  # fmt: skip

    def log_missing_events(self, events: Mapping[str, int], ignored_documents: IgnoredDocuments) -> None:
        """Log which events the stop document counts that never came."""
        if events:
            listed = safe(", ".join(f"{n} of event stream {name!r}" for name, n in events.items()))
            ignored_documents.log_later(
                logging.WARNING,
                "run %s: its stop document counts events that never came: %s; if its source has them, `resend` records "
                "the whole run again",
                self.uid, listed,
            )  # fmt: skip

    def _all_time_base_names(self, but: str) -> Set[str]:
        """Return the names of all time bases, also of event streams that have no row yet, except of `but`."""
        return self.rows_by_time_base().keys() | (self.event_streams.keys() - {but})

    def _next_layout(self) -> int:
        """Return a layout number that is unique in this run."""
        self._layouts += 1
        return self._layouts - 1
