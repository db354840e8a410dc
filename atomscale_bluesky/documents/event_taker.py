"""Takes events, in each kind of document that holds them, into the journals of their runs. Each reading is taken once.

The uids of the last events of each run are remembered, so an event that comes again is recognised. For an interrupted
run the earlier journals are searched too. An event whose descriptor has not come waits for it.

Used by one thread at a time, which holds the recorder's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

import numpy as np

from ..errors import ChannelError, DocumentError
from ..model.loss import Loss
from ..spool.journal_format import is_row
from ..spool.own_files import OUT_OF_RESOURCES
from .accepted import KNOWN, NOTHING, PUT_OFF, Accepted
from .description import Description
from .descriptor import mapping_of
from .early_events import MAX_DOCUMENTS, MAX_VALUES, EarlyEvents
from .event_page import only_rows
from .event_stream import EventStream
from .ignored_documents import SEEN_BEFORE, IgnoredDocuments
from .open_run import OpenRun
from .open_runs import OpenRuns
from .recognition import event_of, kept_readings_of
from .run_files import RunFiles


class EventTaker:
    """Takes the events of one recorder.

    Args:
        runs: The open runs.
        files: Writes their journals.
        early: The events that wait for their descriptors.
        ignored_documents: Counts what is not taken, and collects log entries.
    """

    def __init__(
        self, runs: OpenRuns, *, files: RunFiles, early: EarlyEvents, ignored_documents: IgnoredDocuments
    ) -> None:
        self._runs = runs
        self._by_descriptor = runs.by_descriptor
        self._files = files
        self._early = early
        self._ignored = ignored_documents

    def take_event(self, doc: Mapping[str, Any]) -> Accepted:
        """Take an event.

        Raises:
            DocumentError: Its descriptor never came.
            ChannelError: It lacks something that every event must have.
        """
        known = self._by_descriptor.get(doc["descriptor"])
        if known is None:
            return self._take_unknown("event", doc, 1)
        run, event_stream, description = known
        try:
            uid = doc["uid"]
            seen = uid in run.seen or uid in run.seen_before
            if uid is None:  # all events without a uid would be the same one
                raise ChannelError("an event's uid is None, expected text; it is left out")
        except Exception:  # it has no uid, or one that cannot be compared
            run.leave_out_malformed(doc)
            raise
        if seen:
            if uid in run.seen_before_start:
                _recognise_seen(run, known, doc)
            self._ignored.counts[SEEN_BEFORE] += 1
            return KNOWN
        if event_stream is None:
            return _count_not_selected(run, (uid,), doc)
        if description is not event_stream.description:
            event_stream.describe(description)
        if run.earlier_events is not None:
            try:
                lacking = self._recognise(run, event_stream, doc)
            except Exception:  # a foreign object
                run.leave_out_malformed(doc)
                raise
            if lacking is not None:
                return self._take_part(run, event_stream, doc, lacking) if lacking else KNOWN
        if run.writer is None:
            self._files.make_folder_if_due(run)
        try:
            payloads = event_stream.lines_of_event(doc)
        except Exception:
            run.leave_out_malformed(doc)
            raise
        data = doc["data"]
        why = self._files.append(run, event_stream, payloads, (uid,), data)
        if why is not None:
            self._files.change = None
            return _answer_for_left_out(why, len(data))
        run.remember(uid)
        self._files.change = None
        chooser = event_stream.chooser
        if chooser.usual_answer is not None and len(data) == chooser.usual_keys:
            return chooser.usual_answer
        return chooser.answer(payloads, data)

    def take_page(self, doc: Mapping[str, Any]) -> Accepted:
        """Take the events of a page that are new. Raises as `take_event` does."""
        try:
            uids = list(doc["uid"])
            different = {*uids}
            if None in different:
                raise ChannelError("a uid in a page of events is None, expected text; the page is left out")
        except Exception:  # it has no uids, or some that cannot be compared
            known = self._by_descriptor.get(doc["descriptor"])
            if known is not None:
                known[0].leave_out_malformed(doc, _events_in(doc))
            raise
        if not uids:  # an empty page changes nothing, whatever run it names
            return NOTHING
        known = self._by_descriptor.get(doc["descriptor"])
        if known is None:
            return self._take_unknown("event_page", doc, len(uids))
        run, event_stream, description = known
        rows = len(uids)
        new: Sequence[int] = range(rows)  # the rows of the page whose events are recorded below …
        answer = NOTHING  # … and the answer for the others
        if len(different) < rows or not (different.isdisjoint(run.seen) and different.isdisjoint(run.seen_before)):
            new = _rows_not_seen(run, uids)
            if not different.isdisjoint(run.seen_before_start):
                for row in sorted(set(range(rows)).difference(new)):
                    _recognise_seen(run, known, doc, row)
            self._ignored.counts[SEEN_BEFORE] += rows - len(new)
            answer = Accepted(known=rows - len(new))
        if event_stream is None:
            return answer + _count_not_selected(run, [uids[row] for row in new], doc)
        if description is not event_stream.description:
            event_stream.describe(description)
        if run.earlier_events is not None:
            new, answer = self._take_earlier_events(run, event_stream, doc, new, answer)
            if self._to_be_given_again(answer):
                return answer
        if not new:
            return answer
        if run.writer is None:
            self._files.make_folder_if_due(run)
        try:
            if len(new) < rows:
                uids = [uids[row] for row in new]
                doc = only_rows(doc, new)
            payloads = event_stream.lines_of_page(doc)
        except Exception:
            run.leave_out_malformed(doc, len(uids))
            raise
        data = doc.get("data") or {}
        why = self._files.append(run, event_stream, payloads, uids, data)
        if why is not None:
            self._files.change = None
            return answer + _answer_for_left_out(why, len(data) * len(uids))
        run.remember_all(uids)
        self._files.change = None
        written = event_stream.chooser.answer(payloads, data, len(uids))
        return written if answer is NOTHING else answer + written

    def _take_earlier_events(
        self, run: OpenRun, event_stream: EventStream, page: Mapping[str, Any], rows: Sequence[int], answer: Accepted
    ) -> tuple[list[int], Accepted]:
        """Take those events of a page that earlier journals of its run hold, wholly or in part.

        Returns:
            The rows whose events they do not hold, and `answer` with the others added. It stops early if an event is
            to be given again.
        """
        new: list[int] = []
        for i, row in enumerate(rows):
            try:
                event = event_of(page, row)
                lacking = self._recognise(run, event_stream, event)
            except Exception:  # a foreign object: neither the new events so far nor the rest can be taken
                run.leave_out_malformed(page, len(new) + len(rows) - i)
                raise
            if lacking is None:
                new.append(row)
                continue
            answer += self._take_part(run, event_stream, event, lacking) if lacking else KNOWN
            if self._to_be_given_again(answer):
                break
        return new, answer

    def take_bulk_events(self, doc: Mapping[str, Any]) -> Accepted:
        """Take the events of a document in which older tools put those of a flyer: lists of events by descriptor uid.

        Raises:
            DocumentError: An event, or a list of them, cannot be used. The others were taken. Not raised if the answer
                says that an event is to be given again or waits, because the document must not be acknowledged then.
            TypeError: It is no mapping.
        """
        if not isinstance(doc, Mapping):
            raise TypeError(f"expected lists of events by descriptor uid, got a {type(doc).__name__}")
        # If it comes again because its end could not be written, its first events have to be known, however many.
        self._runs.keep_all_uids(keep=True)
        try:
            taken, problem = self._take_lists(doc)
        finally:
            self._runs.keep_all_uids(keep=False)
        if self._to_be_given_again(taken):
            return taken
        for run in self._runs:
            run.forget_oldest_uids()
        if problem is not None and not taken.put_off:
            raise problem
        return taken

    def _take_lists(self, doc: Mapping[str, Any]) -> tuple[Accepted, DocumentError | None]:
        """Take lists of events. Return the answer, and why the first of those that cannot be used is none.

        It stops early if an event is to be given again.
        """
        taken, problem = NOTHING, None
        for events in doc.values():
            try:
                listed = _listed(events)
            except Exception as error:  # noqa: BLE001 - counted; it costs the other lists nothing
                unusable = self._ignored.count_unusable("bulk_events", error)
                problem = problem or unusable
                continue
            for event in listed:
                try:
                    taken += self.take_event(event)
                    if self._to_be_given_again(taken):
                        return taken, problem
                except DocumentError as error:
                    problem = problem or error
                except Exception as error:  # counted; it costs the other events nothing
                    if self._files.redelivers and isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
                        raise  # the document comes again
                    unusable = self._ignored.count_unusable("bulk_events", error)
                    problem = problem or unusable
        return taken, problem

    def _to_be_given_again(self, taken: Accepted) -> bool:
        """Return True if the source gives the document again, because a part of it could not be written."""
        return taken.try_again and self._files.redelivers

    def take_early(self, descriptor: str) -> Accepted:
        """Take the events that came before their descriptor. If one is to be given again, it and the rest stay."""
        total = NOTHING
        while (early := self._early.first(descriptor)) is not None:
            try:
                taken = self.take_event(early.doc) if early.name == "event" else self.take_page(early.doc)
            except Exception as error:  # noqa: BLE001 - as in a call of its own
                if not isinstance(error, DocumentError):
                    self._ignored.count_unusable(early.name, error)
            else:
                total += taken
                if self._to_be_given_again(taken):
                    return total  # the descriptor comes again, and the event with it
            self._early.forget_first(descriptor)
        return total

    def _take_part(self, run: OpenRun, event_stream: EventStream, doc: Mapping[str, Any], keys: Set[str]) -> Accepted:
        """Take the readings of an event that earlier journals of its run do not hold."""
        if run.writer is None:
            self._files.make_folder_if_due(run)
        try:
            payloads = event_stream.lines_of_keys(doc, keys)
        except Exception:
            run.leave_out_malformed({"data": dict.fromkeys(keys)})
            raise
        if payloads:
            why = self._files.append(run, event_stream, payloads, (doc["uid"],), keys)
            if why is not None:
                self._files.change = None
                return _answer_for_left_out(why, len(keys))
        run.remember(doc["uid"])
        self._files.change = None
        return Accepted(rows=sum(map(is_row, payloads)), known=1)

    def _recognise(self, run: OpenRun, event_stream: EventStream, doc: Mapping[str, Any]) -> Set[str] | None:
        """Look for an event in the earlier journals of its run. Call it once per event, since it counts what it finds.

        An event that they hold wholly is remembered, and counts as seen before.

        Returns:
            - None if they hold nothing of the event;
            - an empty set if they hold all of it;
            - otherwise the data keys whose readings they do not hold.
        """
        kept = None if run.earlier_events is None else kept_readings_of(run.earlier_events, event_stream, doc)
        if kept is None:
            return None
        lacking = kept.lacks(mapping_of(doc.get("data")))
        if not lacking:
            with suppress(ChannelError):
                event_stream.note_times(doc)
            run.remember(doc["uid"])  # an event recognised by its time is recognised by its uid next time
            self._ignored.counts[SEEN_BEFORE] += 1
        return lacking

    def _take_unknown(self, name: str, doc: Mapping[str, Any], events: int) -> Accepted:
        """Take a document whose descriptor did not come, or belongs to no open run, as far as that is possible.

        Raises:
            DocumentError: The descriptor never came.
        """
        descriptor = doc["descriptor"]
        remembered = self._runs.remembered
        if remembered.skips_descriptor(descriptor):
            return Accepted(known=events)
        run_uid = remembered.ended_run_of(descriptor)
        if run_uid is None and self._runs.resume_run_of(descriptor):
            return self.take_event(doc) if name == "event" else self.take_page(doc)
        if remembered.skips_descriptor(descriptor):
            return Accepted(known=events)
        comes_again = run_uid is not None and self._runs.get(run_uid) is not None  # its descriptor will come again too
        if run_uid is not None and not comes_again and remembered.skips(run_uid):
            return Accepted(known=events)
        if run_uid is None or comes_again:
            if not self._runs or not isinstance(descriptor, str):
                raise self._ignored.count_without_descriptor(descriptor, name)
            if self._early.hold(descriptor, name, doc, events):
                return PUT_OFF
            return self._leave_out_early(descriptor, name, doc, events)
        self._ignored.counts[Loss.BEHIND_STOP] += events
        self._ignored.log_once(
            f"late {run_uid}",
            f"an event of run {run_uid} came behind its stop document and is left out",
            logging.ERROR,
        )
        return Accepted(left_out={Loss.BEHIND_STOP: events * len(mapping_of(doc.get("data")))})

    def _leave_out_early(self, descriptor: str, name: str, doc: Mapping[str, Any], events: int) -> Accepted:
        """Count a document that cannot wait for its descriptor: as ignored, and as left out of the only open run."""
        self._ignored.counts[name] += 1
        self._ignored.log_once(
            f"too early {descriptor}",
            f"events of descriptor {descriptor} are left out, because too many wait for their descriptors: "
            f"{MAX_DOCUMENTS:,} documents or {MAX_VALUES:,} values may; have descriptors sent before their events",
            logging.ERROR,
        )
        keys = list(mapping_of(doc.get("data")))
        open_runs = [run for run in self._runs if not run.completed]
        if len(open_runs) == 1 and descriptor not in self._early.of_any_run:
            open_runs[0].leave_out(Loss.NO_DESCRIPTOR, keys, events)
        return Accepted(left_out={Loss.NO_DESCRIPTOR: events * len(keys)})


def _rows_not_seen(run: OpenRun, uids: Sequence[Any]) -> list[int]:
    """Return the rows of a page whose events have not been seen. Of an event that the page has twice, the first."""
    rows: dict[Any, int] = {}
    for row, uid in enumerate(uids):
        if uid not in run.seen and uid not in run.seen_before:
            rows.setdefault(uid, row)
    return list(rows.values())


def _recognise_seen(
    run: OpenRun,
    known: tuple[OpenRun, EventStream | None, Description],
    doc: Mapping[str, Any],
    row: int | None = None,
) -> None:
    """Count an event that this process has seen as come, in the earlier journals of its run.

    Otherwise a new event with the same time and values would be taken for it.

    Args:
        run: The run. Its start document has come again since.
        known: What is known of the event's descriptor.
        doc: The event, or a page of events.
        row: The event's row in the page.
    """
    _, event_stream, description = known
    if event_stream is None or run.earlier_events is None:
        return
    with suppress(Exception):  # a foreign object; the event was taken all the same
        event = doc if row is None else event_of(doc, row)
        if event["uid"] not in run.seen_before_start:
            return
        if description is not event_stream.description:
            event_stream.describe(description)
        kept_readings_of(run.earlier_events, event_stream, event)
        run.seen_before_start.discard(event["uid"])  # last: after an interruption it comes again


def _listed(events: Any) -> list[Any]:
    """Return the events of one descriptor.

    Raises:
        TypeError: They are no list of documents.
    """
    if isinstance(events, str | bytes | Mapping) or not isinstance(events, Iterable):
        raise TypeError(f"expected a list of events, got a {type(events).__name__}")
    return list(events)


def _events_in(page: Mapping[str, Any]) -> int:
    """Return how many events a page has whose uids cannot be read: as many as the longest of its columns."""
    columns = [page.get("time"), page.get("seq_num"), *mapping_of(page.get("data")).values()]
    return max([1, *(len(column) for column in columns if isinstance(column, list | tuple | np.ndarray))])


def _count_not_selected(run: OpenRun, uids: Sequence[Any], doc: Mapping[str, Any]) -> Accepted:
    """Count the readings of events of an event stream that the settings leave out, once."""
    keys = list(mapping_of(doc.get("data")))
    run.leave_out(Loss.EVENT_STREAM_NOT_SELECTED, keys, len(uids))
    for uid in uids:
        run.remember(uid)
    return Accepted(left_out={Loss.EVENT_STREAM_NOT_SELECTED: len(keys) * len(uids)}) if uids else NOTHING


def _answer_for_left_out(reason: Loss, readings: int) -> Accepted:
    return Accepted(left_out={reason: readings}, try_again=reason.may_be_kept_later)
