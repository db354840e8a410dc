"""Writes Bluesky's documents into journals of runs on disk, and answers each document.

    for name, doc in documents:
        accepted = recorder.take(name, doc)     # the rows survive a killed process
    recorder.sync()                             # and now also a power cut

`AtomscaleCallback` records what a RunEngine emits. A program that gets documents from another source uses a recorder
directly. A recorder sends nothing: what it has recorded is delivered by the callback's uploader, by `atomscale-bluesky
upload`, or by any process that delivers the spool's runs.

A signal may come at any moment. If its handler raises, as Ctrl-C does, the exception leaves `take`, and the next call
finds out from the journal what was written and counts that. If its handler calls the recorder, or if a document's value
does, which is foreign code, then that call does not wait for itself: its document is taken after the present one.
Nothing is logged while the lock is held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from msgspec.structs import replace

from ..errors import ChannelError, DocumentError, SettingsError, SpoolError
from ..model.loss import Loss
from ..settings import Settings
from ..spool.journal_format import FORMAT, Header, Stop
from ..spool.spool import Spool
from .accepted import KNOWN, NOTHING, PUT_OFF, Accepted
from .description import Description, description_of
from .descriptor import event_stream_of, mapping_of
from .early_events import EarlyEvents
from .event_stream import EventStream
from .known_runs import KnownRun, KnownRuns
from .open_run import OpenRun, without
from .peers import Peers
from .recognition import event_of, kept_of
from .rejections import PARTS_ALONE, SEEN_BEFORE, SUBSCRIBE_EARLY, TAKEN_BEFORE, Rejections
from .run_files import RunFiles, RunListener
from .selection import Selection
from .start_document import header_of, text_of, time_of, uid_of

# How many ended runs are remembered, to recognise a replay.
REMEMBERED_RUNS = 1000
# A start document older than this does not belong to a run that begins now: if another process takes the run, it is
# left to that. A younger one may come to two callbacks, each of which takes its own.
REPLAY_AGE_S = 5.0
# So many runs may be open of which nothing but the start document has come, as of runs around other runs.
MOST_BARE_RUNS = 3


class DocumentRecorder:
    """Records the documents of runs in a spool, and answers for each what happened to it.

    Make one per process and spool, with the same settings as the process that delivers. Keep it while documents come,
    then close it. Several threads may call it at once: one lock is held for each document, for memory operations and
    one `write`, and never while waiting for anything else.

    Args:
        settings: Which spool, and which event streams and data keys are taken. The default is environment and file.
        spool: The spool, if it is already open.
        deliverer: Delivers the runs in this process. None if they are not delivered here.
        check: Is called when a start document comes, without the lock. What it returns is logged once.

    Raises:
        SettingsError: A setting cannot be used, such as the spool's folder. Names it and what is expected.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        spool: Spool | None = None,
        deliverer: RunListener | None = None,
        check: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.settings = settings = Settings.load() if settings is None else settings
        self._spool = open_spool(settings) if spool is None else spool
        self._owns_spool = spool is None
        self._check = check
        self.peers = Peers(self._spool.path, settings, self)
        self._selection = Selection(
            event_streams=settings.event_streams,
            channels=settings.channels,
            monitors=settings.monitors,
            rename=settings.rename,
            max_elements=settings.max_elements,
            timestamps=settings.timestamps,
            unprefixed=settings.primary if settings.layout == "run" else None,
        )
        # Guards everything below, and is held for memory operations and one write. A signal handler or a document's
        # value may call in while it is held. Then `_inside` is set, and the document of that call is put off.
        self._lock = threading.RLock()
        self._inside = False
        self._put_off: deque[tuple[str | None, Any]] = deque()  # documents; and folders to settle, without a name
        self._runs: dict[str, OpenRun] = {}  # open runs by uid
        # By descriptor uid; None: the event stream is not selected.
        self._streams: dict[str, tuple[OpenRun, EventStream | None, Description]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()  # uids of runs
        self._late: OrderedDict[str, str] = OrderedDict()  # descriptor uid → uid of its run, which has ended
        self._skipped: set[str] = set()  # runs taken before that come again
        self._streams_skipped: set[str] = set()  # their descriptors
        self._sought: OrderedDict[str, None] = OrderedDict()  # descriptors that belong to no run in the spool
        self._early = EarlyEvents()
        self._rejections = Rejections()
        self._known_runs = KnownRuns(self._spool)
        self._files = RunFiles(self._spool, deliverer, self._rejections)

    def take(self, name: str, doc: Mapping[str, Any]) -> Accepted:
        """Record one document. When this returns, its rows survive a killed process.

        If it is called from within itself, by a signal handler or a document's value, the document is taken after the
        present one, and the answer says so.

        Args:
            name: `start`, `descriptor`, `event`, `event_page`, `bulk_events` or `stop`. Documents of other kinds are
                not recorded.
            doc: The document. It is not changed, and not needed any more afterwards.

        Returns:
            How many rows were written, what was known already, and which readings were left out for which reason.

        Raises:
            DocumentError: The document cannot be used: it is malformed, or belongs to no known run or descriptor.
                Nothing of it was recorded, and what is already recorded is not affected. It is counted in `ignored`,
                and logged once per kind.
        """
        try:
            known = None
            if name == "start":
                warning = self._check()
                if warning is not None:
                    self._rejections.say_once(warning, warning)
                known = self._known_of(doc)
            with self._lock:
                if self._inside:
                    self._put_off.append((name, doc))
                    return PUT_OFF
                self._inside = True
                try:  # around the other, so that no interruption between the two leaves `_inside` set
                    try:
                        if self._files.step is not None:
                            self._complete_step()
                        if name == "event":
                            return self._event(doc)
                        if name == "event_page":
                            return self._event_page(doc)
                        if known is not None:
                            return self._start(*known)
                        if name == "descriptor":
                            return self._descriptor(doc)
                        if name == "bulk_events":
                            return self._bulk_events(doc)
                        return self._stop(doc) if name == "stop" else NOTHING
                    finally:
                        if self._put_off:
                            self._take_what_was_put_off()
                finally:
                    self._inside = False
        except DocumentError:  # counted where it was raised
            raise
        except Exception as error:
            raise self._rejections.broken(name, error) from error
        finally:
            if self._rejections.untold:
                self._tell()

    def sync(self) -> None:
        """Make everything taken so far survive a power cut. Takes as long as the disk needs, mostly some milliseconds.

        Raises:
            SpoolError: A journal could not be synced. The next call tries again, and so does the background thread.
        """
        self._spool.writers.sync()

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many documents were not taken since this recorder was made, by kind. Does not block.

        Documents of no known run or descriptor count under their name, such as `event`. The other kinds are `malformed
        document`, `event seen before`, `event behind its run's stop`, `run taken before` and `run not kept`.
        """
        return dict(self._rejections.counts)

    def complete_open_runs(self, folder: Path | None = None) -> bool:
        """Complete the runs whose stop document has not come, or only the one in `folder`, as interrupted.

        Documents of such a run that come later are recorded as a run of their own.

        Returns:
            True if it is done; False if the call comes from within a document, and is carried out right after that.
        """
        with self._lock:
            if self._inside:
                self._put_off.append((None, folder))
                return False
            self._inside = True
            try:
                try:
                    if self._files.step is not None:
                        self._complete_step()
                    self._complete(folder)
                finally:
                    self._take_what_was_put_off()
            finally:
                self._inside = False
        self._tell()
        return True

    def close(self) -> bool:
        """Complete the open runs and close the files. Waits for the disk, up to some seconds. May be called again.

        Returns:
            False if the runs could not be completed yet, because the call comes from within a document.
        """
        completed = self.complete_open_runs()
        if self._owns_spool:
            self._spool.writers.close()
        return completed

    def __enter__(self) -> DocumentRecorder:
        """Return the recorder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the recorder."""
        self.close()

    def __repr__(self) -> str:
        """Return a text that names the spool's folder."""
        return f"<DocumentRecorder in {str(self._spool.path)!r}>"

    def _tell(self) -> None:
        """Log what was collected. Called without the lock, since a log handler is foreign code."""
        with suppress(Exception):  # a handler that fails must not end the plan
            self._rejections.tell()

    def after_fork_in_child(self) -> None:
        """Forget the parent's runs, which belong to the parent. A child that gets documents records runs of its own."""
        self._lock = threading.RLock()
        self._inside, self._files.step = False, None
        self._put_off.clear()
        self._runs, self._streams = {}, {}
        self.peers = Peers(self._spool.path, self.settings, self)
        self._early = EarlyEvents()
        self._spool.writers.forget_after_fork()
        self._files.deliverer = None

    # ---- all methods below are called with the lock held, except `_known_of` ---------------------------------------

    def _known_of(self, doc: Mapping[str, Any]) -> tuple[str, Header, KnownRun | None]:
        """Return a run's uid and header, and what was taken of it before. Needs no lock; may read the disk."""
        uid = uid_of(doc)
        header = header_of(doc, uid, self.settings, self._rejections.say_once)
        if self.settings.resend:
            return uid, header, None
        young = time.time() - header.started <= REPLAY_AGE_S
        run = self._runs.get(uid)
        writer = run.writer if run is not None else None
        try:
            if writer is not None:
                kept = None if young else self._known_runs.of_open(uid, writer.folder)
                return uid, header, KnownRun(ended=False, kept=kept)
            known = self._known_runs.of(uid, young=young)
        except OSError as error:  # a SpoolError is one too; and a run taken twice is better than none
            self._rejections.say_once(
                "past", f"whether run {uid} was taken before cannot be told, so it is taken: {error}"
            )
            return uid, header, None
        return uid, header, None if young and known is not None and known.being_taken else known

    def _take_what_was_put_off(self) -> None:
        """Take the documents that came from within the call that holds the lock. Called at the end of that call."""
        while self._put_off:
            name, doc = self._put_off[0]  # removed when it is done: after an interruption it is done again
            try:
                if self._files.step is not None:
                    self._complete_step()
                if name is None:
                    self._complete(doc)
                elif name == "start":
                    self._start(*self._known_of(doc))
                else:
                    takes = {
                        "event": self._event, "event_page": self._event_page, "descriptor": self._descriptor,
                        "bulk_events": self._bulk_events, "stop": self._stop,
                    }  # fmt: skip
                    takes.get(name, lambda doc: NOTHING)(doc)
            except DocumentError:
                pass
            except Exception as error:  # noqa: BLE001 - as in a call of its own, of which nobody gets the error
                self._rejections.broken(str(name), error)
            self._put_off.popleft()

    def _complete_step(self) -> None:
        """Complete the step that an exception from a signal handler has interrupted."""
        try:
            ended = self._files.complete_step()
            if ended is not None:
                self._forget(ended)
        except Exception:  # the same step would fail for ever, and with it every later document
            self._files.step = None
            raise
        self._files.step = None

    def _complete(self, folder: Path | None) -> None:
        if folder is None and self._early:
            self._give_up_early(next(iter(self._runs.values())) if len(self._runs) == 1 else None)
        for run in list(self._runs.values()):
            if run.writer is None and folder is None:
                self._files.note_not_kept(run)
                self.peers.release(run.uid, ended=False)
            elif run.writer is not None and folder in {None, run.writer.folder}:
                self._files.end(run, Stop(time.time(), "", "no stop document", interrupted=True))
                self.peers.release(run.uid, ended=False)
                self._files.step = None

    def _start(self, uid: str, header: Header, past: KnownRun | None) -> Accepted:
        open_run = self._runs.get(uid)
        if open_run is not None:
            self._rejections.ignore("start", f"a second start document of run {uid} is ignored")
            if past is not None and past.kept is not None:
                open_run.kept = past.kept  # an event may repeat one older than those remembered
            return KNOWN
        ended = past.ended if past is not None else False
        if ended or (uid in self._ended and not self.settings.resend):
            self._skip(uid)
            return KNOWN
        if not self.peers.claim(uid, again=self.settings.resend):
            self._leave_to_another(uid)
            return KNOWN
        self._warn_of_starts_alone()
        kept = past.kept if past else None
        run = self._runs[uid] = OpenRun(uid, replace(header, part=kept.part) if kept else header, kept)
        if run.kept is None:
            self._files.make(run)
        run.tell_opened(self._rejections)
        return NOTHING

    def _skip(self, uid: str) -> None:
        """Take nothing of a run that was taken before."""
        self._rejections.counts[TAKEN_BEFORE] += 1
        self._skipped.add(uid)
        self._rejections.say(
            logging.WARNING,
            "run %s was taken before and is not sent again; `resend` would, and another run needs its own uid", uid,
        )  # fmt: skip

    def _leave_to_another(self, uid: str) -> None:
        """Take nothing of a run that another recorder of this process takes, with the same spool and account."""
        self._rejections.counts[TAKEN_BEFORE] += 1
        self._skipped.add(uid)
        self._rejections.say_once(
            "another",
            f"run {uid} goes through two callbacks of this process with the same spool and account, so the younger one "
            f"records it, and later runs too: unsubscribe the older one, `RE.unsubscribe(token)`, as when a start-up "
            f"file was executed twice. A second recording on purpose needs a `spool_dir` of its own",
        )

    def _warn_of_starts_alone(self) -> None:
        """Warn if runs begin one after the other and nothing else comes of them."""
        if sum(not run.event_streams for run in self._runs.values()) >= MOST_BARE_RUNS:
            self._rejections.say_once(PARTS_ALONE, f"only start documents come of several runs; {SUBSCRIBE_EARLY}")

    def _descriptor(self, doc: Mapping[str, Any]) -> Accepted:
        run_uid, uid = str(doc["run_start"]), str(doc["uid"])
        run = self._runs.get(run_uid)
        if run is None and run_uid in self._skipped:
            self._streams_skipped.add(uid)
            return KNOWN
        if run is None:
            run = self._go_on(run_uid)
        if run is None and run_uid in self._skipped:
            self._streams_skipped.add(uid)
            return KNOWN
        if run is None:
            raise self._rejections.ignore_without_start(
                "descriptor", f"a descriptor of run {run_uid}, whose start never came, is ignored"
            )
        description = description_of(doc, uid, event_stream_of(doc))
        new = uid not in run.descriptions
        self._describe(run, description)
        if new:
            self._files.describe(run, [description])
            self._files.step = None
        return self._take_early(uid)

    def _describe(self, run: OpenRun, description: Description) -> None:
        name = description.line.event_stream
        if name not in run.event_streams and not run.describe(description, self._selection):
            self._rejections.say(logging.INFO, "event stream %r of run %s is left out by the settings", name, run.uid)
        run.descriptions[description.line.uid] = description
        self._streams[description.line.uid] = run, run.event_streams[name], description

    def _take_early(self, descriptor: str) -> Accepted:
        """Take the events that came before their descriptor."""
        rows = 0
        for name, doc in self._early.of(descriptor):
            try:
                taken = self._event(doc) if name == "event" else self._event_page(doc)
                rows += taken.rows
            except Exception as error:  # noqa: BLE001 - as in a call of its own
                if not isinstance(error, DocumentError):
                    self._rejections.broken(name, error)
        return Accepted(rows=rows) if rows else NOTHING

    def _go_on(self, run_uid: str) -> OpenRun | None:
        """Open a run that was interrupted and whose source goes on where it was.

        Return None if there is none. A run that has ended is skipped from here on.
        """
        try:
            known = self._known_runs.of(run_uid, goes_on=True)
        except OSError:
            return None
        if known is not None and known.ended:
            self._skipped.add(run_uid)
        if known is None or known.ended or known.kept is None or known.kept.header is None:
            return None
        if not self.peers.claim(run_uid):
            self._leave_to_another(run_uid)
            return None
        header = replace(known.kept.header, format=FORMAT, session="", part=known.kept.part)
        run = self._runs[run_uid] = OpenRun(run_uid, header, known.kept)
        for line in known.kept.descriptors.values():
            self._describe(run, Description(line))
        run.tell_opened(self._rejections)
        return run

    def _find(self, descriptor: str) -> bool:
        """Find the run of a descriptor that did not come to this process, in the spool. Return True if it goes on."""
        if descriptor in self._sought or not isinstance(descriptor, str):
            return False
        try:
            run_uid = self._known_runs.with_descriptor(descriptor)
        except OSError:
            run_uid = None
        run = None if run_uid is None else self._runs.get(run_uid)
        if run is not None and run.kept is not None and descriptor in run.kept.descriptors:
            self._describe(run, Description(run.kept.descriptors[descriptor]))
        elif run_uid is not None and run is None and self._go_on(run_uid) is None and run_uid in self._skipped:
            self._streams_skipped.add(descriptor)
            return False
        if descriptor in self._streams:
            return True
        self._sought[descriptor] = None
        if len(self._sought) > REMEMBERED_RUNS:
            self._sought.popitem(last=False)
        return False

    def _event(self, doc: Mapping[str, Any]) -> Accepted:
        known = self._streams.get(doc["descriptor"])
        if known is None:
            return self._take_unknown("event", doc, 1)
        run, event_stream, description = known
        if event_stream is None:
            return _left_out(run, Loss.EVENT_STREAM_NOT_SELECTED, doc.get("data") or ())
        uid = doc["uid"]
        if uid in run.seen or uid in run.seen_before:
            self._rejections.counts[SEEN_BEFORE] += 1
            return KNOWN
        if description is not event_stream.description:
            event_stream.describe(description)
        if run.kept is not None:
            lacking = self._lacking(run, event_stream, doc)
            if lacking is not None:
                return self._take_part(run, event_stream, doc, lacking) if lacking else KNOWN
        if run.writer is None:
            self._files.make_again(run)
        try:
            payloads = event_stream.event(doc)
        except Exception:
            run.leave_out(Loss.MALFORMED, mapping_of(doc.get("data")))
            raise
        data = doc["data"]
        why = self._files.append(run, event_stream, payloads, (uid,), data)
        if why is not None:
            self._files.step = None
            return _why_left_out(why, len(data))
        run.remember(uid)
        self._files.step = None
        if event_stream.usually is not None and len(payloads) == 1 and len(data) == event_stream.usual:
            return event_stream.usually
        return event_stream.accepted_of(payloads, data)

    def _take_part(self, run: OpenRun, event_stream: EventStream, doc: Mapping[str, Any], keys: Set[str]) -> Accepted:
        """Take the readings of an event that earlier journals of its run do not hold."""
        if run.writer is None:
            self._files.make_again(run)
        payloads = event_stream.part(doc, keys)
        if payloads:
            why = self._files.append(run, event_stream, payloads, (doc["uid"],), keys)
            if why is not None:
                self._files.step = None
                return _why_left_out(why, len(keys))
        run.remember(doc["uid"])
        self._files.step = None
        return Accepted(rows=sum(payload.startswith(b"[") for payload in payloads), known=1)

    def _lacking(self, run: OpenRun, event_stream: EventStream, doc: Mapping[str, Any]) -> Set[str] | None:
        """Return the data keys of an event that earlier journals do not hold; None if they hold none of the event."""
        kept = None if run.kept is None else kept_of(run.kept, event_stream, doc)
        if kept is None:
            return None
        lacking = kept.lacks(mapping_of(doc.get("data")))
        if not lacking:
            with suppress(ChannelError):
                event_stream.saw(doc)
            run.remember(doc["uid"])  # an event recognised by its time is recognised by its uid next time
            self._rejections.counts[SEEN_BEFORE] += 1
        return lacking

    def _event_page(self, doc: Mapping[str, Any]) -> Accepted:
        known = self._streams.get(doc["descriptor"])
        if known is None:
            return self._take_unknown("event_page", doc, len(doc.get("uid") or ()))
        run, event_stream, description = known
        uids = list(doc["uid"])
        if event_stream is None:
            return _left_out(run, Loss.EVENT_STREAM_NOT_SELECTED, doc.get("data") or (), len(uids))
        if description is not event_stream.description:
            event_stream.describe(description)
        seen = [i for i, uid in enumerate(uids) if uid in run.seen or uid in run.seen_before]
        if seen:
            self._rejections.counts[SEEN_BEFORE] += len(seen)
        rows = 0
        if run.kept is not None:
            others = set(seen)
            for i in range(len(uids)):
                event = event_of(doc, i) if i not in others else {}
                lacking = self._lacking(run, event_stream, event) if event else None
                if lacking is not None:
                    seen.append(i)
                    rows += self._event(event).rows if lacking else 0
        if seen:
            doc = without(doc, seen)
            uids = list(doc["uid"])
        if run.writer is None and uids:
            self._files.make_again(run)
        try:
            payloads = event_stream.event_page(doc)
        except Exception:
            run.leave_out(Loss.MALFORMED, mapping_of(doc.get("data")), len(uids))
            raise
        if not payloads:
            return Accepted(rows=rows, known=len(seen))
        data = doc.get("data") or {}
        why = self._files.append(run, event_stream, payloads, uids, data)
        if why is not None:
            self._files.step = None
            return _why_left_out(why, len(data) * len(uids), known=len(seen))
        for uid in uids:
            run.remember(uid)
        self._files.step = None
        return event_stream.accepted_of(payloads, data, len(uids), known=len(seen))

    def _bulk_events(self, doc: Mapping[str, Any]) -> Accepted:
        """Take the events of a document in which older tools put those of a flyer: lists of events by descriptor uid.

        Raises:
            DocumentError: An event cannot be used. The others were taken.
        """
        taken, problem = NOTHING, None
        for events in mapping_of(doc).values():
            for event in events:
                try:
                    taken += self._event(event)
                except DocumentError as error:
                    problem = problem or error
                except Exception as error:  # noqa: BLE001 - counted; it costs the other events nothing
                    problem = problem or self._rejections.broken("bulk_events", error)
        if problem is not None:
            raise problem
        return taken

    def _take_unknown(self, name: str, doc: Mapping[str, Any], events: int) -> Accepted:
        """Take a document whose descriptor did not come, or belongs to no open run, as far as that is possible.

        Raises:
            DocumentError: The descriptor never came.
        """
        descriptor = doc["descriptor"]
        if descriptor in self._streams_skipped:
            return Accepted(known=events)
        run_uid = self._late.get(descriptor)
        if run_uid is None and self._find(descriptor):
            return self._event(doc) if name == "event" else self._event_page(doc)
        if descriptor in self._streams_skipped:
            return Accepted(known=events)
        if run_uid is None:
            if self._runs and self._early.hold(descriptor, name, doc):
                return PUT_OFF
            raise self._never_came(descriptor, name, events)
        self._rejections.counts[Loss.BEHIND_STOP] += events
        self._rejections.say_once(
            f"late {run_uid}", f"an event of run {run_uid} came behind its stop document and is left out"
        )
        return Accepted(left_out={Loss.BEHIND_STOP: events * len(list(doc.get("data") or ()))})

    def _never_came(self, descriptor: str, name: str, events: int) -> DocumentError:
        what = "an event" if name == "event" else "a page"
        return self._rejections.ignore_without_start(
            name, f"{what} of descriptor {descriptor}, which never came, is ignored"
        )

    def _give_up_early(self, run: OpenRun | None) -> None:
        """Count the events whose descriptor has not come: as ignored, and as left out of `run` if that is known."""
        for descriptor, name, doc in self._early.all():
            events = 1 if name == "event" else len(doc.get("uid") or ())
            self._never_came(descriptor, name, events)
            if run is not None:
                run.leave_out(Loss.NO_DESCRIPTOR, list(mapping_of(doc.get("data"))), events)

    def _stop(self, doc: Mapping[str, Any]) -> Accepted:
        uid = str(doc["run_start"])
        run = self._runs.get(uid)
        if run is None and uid in self._skipped:
            self._skipped.discard(uid)
            self._streams_skipped.clear()
            return KNOWN
        if run is None:
            run = self._go_on(uid)
        if run is None and uid in self._skipped:
            self._skipped.discard(uid)
            return KNOWN
        if run is None:
            raise self._rejections.ignore_without_start(
                "stop", f"a stop document of run {uid}, whose start never came, is ignored"
            )
        counts = mapping_of(doc.get("num_events"))
        if not run.event_streams and any(isinstance(count, int) and count > 0 for count in counts.values()):
            self._rejections.say_once(PARTS_ALONE, f"run {uid} had events, and no descriptor came; {SUBSCRIBE_EARLY}")
        stop = Stop(
            time=time_of(doc),
            exit_status=text_of(doc.get("exit_status")),
            reason=text_of(doc.get("reason")),
        )
        if self._early and len(self._runs) == 1:
            self._give_up_early(run)
        self._files.end(run, stop)
        self._forget(run)
        self._files.step = None
        return NOTHING

    def _forget(self, run: OpenRun) -> None:
        """Forget a run, except that it has ended."""
        for descriptor in [key for key, value in self._streams.items() if value[0] is run]:
            self._late[descriptor] = run.uid
            del self._streams[descriptor]
        while len(self._late) > REMEMBERED_RUNS:
            self._late.popitem(last=False)
        self.peers.release(run.uid, ended=run.settled)
        if run.settled:  # otherwise nothing of it is kept, and a replay should be taken
            self._ended[run.uid] = None
        if len(self._ended) > REMEMBERED_RUNS:
            self._ended.popitem(last=False)
        self._runs.pop(run.uid, None)


def open_spool(settings: Settings) -> Spool:
    """Open the spool that the settings name, to record in it.

    Raises:
        SettingsError: The spool's folder cannot be used.
    """
    try:
        return Spool(
            settings.locate_spool(),
            max_bytes=settings.spool_max_bytes,
            min_free_bytes=settings.spool_min_free_bytes,
            sync_each=settings.durability == "event",
        )
    except SpoolError as error:
        raise SettingsError(str(error)) from error


def _left_out(run: OpenRun, reason: Loss, keys: Iterable[Any], events: int = 1) -> Accepted:
    """Count all readings of a document as left out."""
    keys = list(keys)
    run.leave_out(reason, keys, events)
    return Accepted(left_out={reason: len(keys) * events})


def _why_left_out(reason: Loss, readings: int, known: int = 0) -> Accepted:
    return Accepted(left_out={reason: readings}, known=known, try_again=reason.may_pass)
