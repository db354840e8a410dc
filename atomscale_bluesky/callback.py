"""The front door: what `RE.subscribe` calls.

    RunEngine ──document──▶ AtomscaleCallback ──line──▶ the run's journal        (the plan's time)
                                                          └──▶ Uploader ──▶ Atomscale   (our own)

`__call__` routes a document by its run, turns an event into one line and appends it with one write. It does no network
I/O, never raises, and waits for nothing but the local file system; several threads may be in it at once. When it
returns from an event the readings survive a killed process. Everything else happens in the uploader's threads, or in
another process that shares the spool: the setting `uploader` says which.

A signal may come at any moment. Where its handler raises, as Ctrl-C does, the exception leaves `__call__`, and the next
call finds out from the journal what was written and counts that. Where its handler calls the callback, or a document's
value does, which is foreign code, that call does not wait for itself: what it gives is taken when the present document
is done. Nothing is logged while the lock is held.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .api.client import Client
from .delivery import exit_hooks as process
from .delivery.drain import Drain
from .delivery.uploader import Uploader
from .documents.event_stream import EventStream, mapping_of
from .documents.known_runs import Past, PastRuns
from .documents.open_run import NO_ROOM, NOT_SELECTED, NOT_WRITTEN, TOO_LONG, OpenRun, without
from .documents.rejections import BEHIND_STOP, NOT_KEPT, SEEN_BEFORE, TAKEN_BEFORE, UNREADABLE, Oddities
from .documents.selection import Selection
from .documents.start_document import header_of, text_of, time_of, uid_of
from .errors import LineTooLongError, SettingsError, SpoolError, SpoolFullError
from .model.text import plain
from .settings import Settings
from .spool.journal_format import Header, Stop
from .spool.kept_events import KeptEvents, times_of
from .spool.lines import encode
from .spool.run_writer import RunWriter
from .spool.spool import Spool
from .status.account import StreamStatus
from .status.spool_status import SpoolWatch, Status

if TYPE_CHECKING:
    from .checks.verification import Verification
    from .delivery.uploader_process import Elsewhere

_logger = logging.getLogger(__name__)

# Runs that have ended are remembered, to recognise one that is replayed.
REMEMBERED_RUNS = 1000
# A start document older than this is no run that begins now: whether it was sent before is looked up in the spool.
REPLAY_AGE_S = 5.0
# How long after a failure the files of a run are tried to be made again, where its plan does not wait for that.
TRY_AGAIN_S = 1.0


# What is being done to a run's files: the run, whose lines are appended for which events, or how it ended; with neither
# its journal is being made. At last, how much its journal held before. A plain tuple, because one is made per event.
_Step = tuple[OpenRun, EventStream | None, list[bytes], Sequence[str], Stop | None, int]


class AtomscaleCallback:
    """Streams every run of a RunEngine to Atomscale: `RE.subscribe(AtomscaleCallback())`.

    A run's start document initializes a metrology stream linked to `synth_source_id`, its readings arrive there in
    chunks while the plan runs, and its stop document finalizes it. Readings are spooled to disk first, so an outage, a
    crash or a missing key costs nothing but time: what is left is sent when things are well again, also by the next
    process.

    Construction checks the settings and opens the spool; it needs no network and starts no request of its own but for
    what earlier runs have left.

    Args:
        api_key: Key of the Atomscale account; without one, here, in `ATOMSCALE_API_KEY` or `AS_API_KEY` or in the
            settings' file, readings are spooled until there is one.
        endpoint: Origin of the API.
        synth_source_id: Growth instrument for runs whose metadata name none.
        points_per_chunk: Points of each channel in a chunk, for runs whose metadata say nothing; 100 by default.
        spool_dir: Folder of the runs not yet finalized; by default in the user's state folder.
        event_streams: Event streams to take, as shell-style patterns; `!pattern` leaves out.
        channels: Data keys to take, as shell-style patterns; `!pattern` leaves out; `"hints"` takes the hinted fields.
        settings: Instead of environment and file; the other arguments win over it. `Settings.load` makes one.

    Raises:
        SettingsError: A setting cannot be used, the spool's folder among them; names it and what is expected.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        endpoint: str | None = None,
        synth_source_id: int | None = None,
        points_per_chunk: int | None = None,
        spool_dir: str | Path | None = None,
        event_streams: str | list[str] | tuple[str, ...] | None = None,
        channels: str | list[str] | tuple[str, ...] | None = None,
        settings: Settings | None = None,
    ) -> None:
        arguments = {
            "api_key": api_key,
            "endpoint": endpoint,
            "synth_source_id": synth_source_id,
            "points_per_chunk": points_per_chunk,
            "spool_dir": spool_dir,
            "event_streams": event_streams,
            "channels": channels,
        }
        self.settings = Settings.load(**arguments) if settings is None else settings.replaced(**arguments)
        try:
            self._spool = Spool(
                self.settings.locate_spool(),
                max_bytes=self.settings.spool_max_bytes,
                min_free_bytes=self.settings.spool_min_free_bytes,
                sync_each=self.settings.durability == "event",
            )
        except SpoolError as error:
            raise SettingsError(str(error)) from error
        self._selection = Selection(
            event_streams=self.settings.event_streams,
            channels=self.settings.channels,
            monitors=self.settings.monitors,
            rename=self.settings.rename,
            max_elements=self.settings.max_elements,
            timestamps=self.settings.timestamps,
            unprefixed=self.settings.primary if self.settings.layout == "run" else None,
        )
        # Around all state of the front half; held for memory operations and one write. A signal's handler, or a
        # document's value, may come back to it: `_inside` says so, and what it gives is put off.
        self._lock = threading.RLock()
        self._inside = False
        self._put_off: deque[tuple[str | None, Any]] = deque()  # documents; and folders to settle, without a name
        self._step: _Step | None = None  # that was begun; still there where a signal's exception interrupted it
        self._runs: dict[str, OpenRun] = {}  # open runs by uid
        self._streams: dict[str, tuple[OpenRun, EventStream | None]] = {}  # by descriptor uid; None: not selected
        self._ended: OrderedDict[str, str] = OrderedDict()  # uid → digest of the start document
        self._late: OrderedDict[str, str] = OrderedDict()  # descriptor uid → uid of the run, which has ended
        self._skipped: set[str] = set()  # runs taken before, being replayed
        self._streams_skipped: set[str] = set()  # their descriptors
        self._oddities = Oddities()
        self._past = PastRuns(self._spool)
        self._watch = SpoolWatch(self._spool)
        self._uploader = self._make_uploader()
        self._closed = self._all_delivered = False
        # When nobody holds the callback any more, its threads complete what it left, and end.
        weakref.finalize(self, _retire, self._uploader, self._spool).atexit = False
        process.look_after(self, self._uploader)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document; never raises, whatever it holds.

        Called from within itself, by a signal's handler or a document's value, it takes the document after the present
        one.
        """
        try:
            known = self._known_of(doc) if name == "start" else None
            with self._lock:
                if self._inside:
                    self._put_off.append((name, doc))
                    return
                self._inside = True
                try:
                    if self._step is not None:
                        self._make_up()
                    if name == "event":
                        self._event(doc)
                    elif name == "event_page":
                        self._event_page(doc)
                    elif known is not None:
                        self._start(*known)
                    elif name == "descriptor":
                        self._descriptor(doc)
                    elif name == "stop":
                        self._stop(doc)
                except Exception as error:  # noqa: BLE001 - an exception here would end the plan
                    self._oddities.broken(name, error)
                finally:
                    try:
                        if self._put_off:
                            self._take_what_was_put_off()
                    finally:
                        self._inside = False
            if self._oddities.untold:
                self._tell()
        except Exception as error:  # noqa: BLE001 - a start document without a uid, say
            self._oddities.broken(name, error)
            self._tell()

    def _tell(self) -> None:
        """Log what there is to say; called without the lock, since a log's handler is foreign code."""
        with suppress(Exception):  # a handler that fails must not end the plan
            self._oddities.tell()

    def _take_what_was_put_off(self) -> None:
        """Take what came from within the call that holds the lock; called at its end."""
        while self._put_off:
            name, doc = self._put_off[0]  # taken away when it is done: interrupted in between it is done again
            try:
                if self._step is not None:
                    self._make_up()
                if name is None:
                    self._settle(doc)
                elif name == "start":
                    self._start(*self._known_of(doc))
                else:
                    takes = {
                        "event": self._event, "event_page": self._event_page, "descriptor": self._descriptor,
                        "stop": self._stop,
                    }  # fmt: skip
                    takes.get(name, lambda doc: None)(doc)
            except Exception as error:  # noqa: BLE001 - as in a call of its own
                self._oddities.broken(str(name), error)
            self._put_off.popleft()

    def _make_up(self) -> None:
        """Finish what a signal's exception has interrupted: what counts is what the journal holds."""
        if self._step is None:
            return
        run, event_stream, payloads, uids, stop, before = self._step
        try:
            if stop is not None:
                self._finish(run, stop)
            elif event_stream is None:
                self._announce(run)
            elif run.writer is not None and _kept(run.writer, payloads, before):
                event_stream.accepted()
                for uid in uids:
                    run.remember(uid)
                if self._uploader:
                    self._uploader.wake(run.writer.folder)
        except Exception:  # what fails once more would fail for ever, and every document after it
            self._step = None
            raise
        self._step = None

    def __enter__(self) -> AtomscaleCallback:
        """The callback itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Where it sends to and where it spools."""
        return f"<AtomscaleCallback to {self.settings.endpoint}, spool {str(self._spool.path)!r}>"

    def drain(self, timeout_s: float, *, progress: bool = False) -> bool:
        """Wait until everything that can be delivered is; for scripts, not for plans.

        Args:
            timeout_s: How long to wait at most.
            progress: Whether to show a bar on the terminal meanwhile: points, rate and remaining time.

        Returns:
            True when every stopped run is finalized and every full chunk of the open ones confirmed; False at the
            time-out, or at once when what is left cannot move by itself: no key, offline, parked, refused.

        Raises:
            SettingsError: `progress` is asked for and the extra that draws it, `cli`, is not installed.
        """
        if self._uploader is None:
            return False
        if not progress:
            return self._uploader.drain(timeout_s)
        return self._drain_with_bar(timeout_s)

    def _drain_with_bar(self, timeout_s: float) -> bool:
        from .status.progress import LOOK_PERIOD_S, Bar

        try:
            from rich.console import Console
        except ImportError as error:
            raise SettingsError(
                "a progress bar needs rich: `pip install 'atomscale-bluesky[cli]'`, or leave out `progress`"
            ) from error
        end = time.monotonic() + timeout_s
        with Bar(Console(markup=False, emoji=False, highlight=False, stderr=True), self._watch) as bar:
            question = self.ask_whether_drained()
            while question is not None and (left_s := end - time.monotonic()) > 0:
                if question.answered.wait(min(LOOK_PERIOD_S, left_s)):
                    break
                bar.look()
            bar.look()
        if question is not None and question.answer is None:
            question.given_up = True
        return question is not None and question.answer is True

    def ask_whether_drained(self) -> Drain | None:
        """Ask what `drain` waits for without waiting; None where nothing is sent: no key, offline, closed."""
        return self._uploader.ask_whether_drained() if self._uploader else None

    def status(self) -> Status:
        """What became of every reading of the runs that are not finalized; may be called from any thread.

        Reads on in the spool's files, so it tells the same as `atomscale-bluesky status`; not for the plan's thread.
        """
        return self._watch.status()

    def streams(self, run_uid: str) -> tuple[StreamStatus, ...]:
        """The metrology streams that a run became, be it under way, waiting or finished; for plans and notebooks.

        Each has its `data_id`, None until Atomscale has given one, its `label`, its `event_stream` and its `state`.
        Empty for a run that is not known here. Reads the spool's files, and waits for nothing else.
        """
        return self._watch.streams(run_uid)

    def verify(self, run_uid: str, *, patience_s: float = 30.0) -> Verification:
        """Read a run back from Atomscale and compare every point with the run's journal; for scripts, not for plans.

        Asks Atomscale, so it blocks. Of a run under way, what was confirmed so far is compared. A run is in the spool
        until it is finalized, or, with `keep = "verified"`, until it was read back and is equal.

        Args:
            run_uid: The run's uid, or its beginning.
            patience_s: How long to go on reading while something that was confirmed cannot be read yet.

        Returns:
            What was compared and what differs; `equal` says whether the whole run is in Atomscale, point by point.

        Raises:
            SpoolError: No run of the spool, or several, begin with `run_uid`; or its files cannot be read.
            ApiKeyError: The key may not read.
            ApiUnavailableError: There was no answer of the API's in time.
            ApiTooLargeError: An answer is far larger than its stream can be.
        """
        from .checks.verification import verify_run  # takes a while, and few sessions ask

        folder = Path(self._watch.find(run_uid).folder)
        client = Client(self.settings)
        try:
            return verify_run(folder, client, patience_s=patience_s)
        finally:
            client.close()

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many documents were not taken, by kind; since this callback was made.

        Those of no run or descriptor that is known count under their name, `event` say. The others are a `malformed
        document`, an `event seen before`, an `event behind its run's stop`, a `run taken before` and a `run not kept`,
        of which `status` tells more. Waits for nothing.
        """
        return dict(self._oddities.counts)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Drain for at most this long, then stop the threads; True if nothing was left to deliver.

        Where nothing is sent (no key, offline) it is True if the spool is empty. Called again it gives the same answer.
        A run whose stop document has not come counts as interrupted and is completed; should documents of it follow all
        the same, they are kept as a run of their own, which the next `close` completes. What waits stays spooled, and
        is delivered by the next callback or `atomscale-bluesky upload`. Idempotent.

        A signal's handler may call it too. Where that interrupts a document, the open runs are completed right behind
        that document, and delivered by the next callback; it is False then.
        """
        if self._closed:
            self.settle_open_runs()  # of which documents have come since
            return self._all_delivered
        self._closed = True
        settled = self.settle_open_runs()
        deadline = time.monotonic() + timeout_s
        drained = self._uploader.drain(timeout_s) if self._uploader else self._spool.is_empty()
        self._all_delivered = drained and settled
        _stop_threads(self._uploader, self._spool, max(0.5, deadline - time.monotonic()))
        return self._all_delivered

    def settle_open_runs(self, folder: Path | None = None) -> bool:
        """Complete the runs whose stop document has not come, or the one in `folder`, as interrupted.

        Returns:
            False where it is called from within a document: it is done right behind that.
        """
        with self._lock:
            if self._inside:
                self._put_off.append((None, folder))
                return False
            self._inside = True
            try:
                if self._step is not None:
                    self._make_up()
                self._settle(folder)
            finally:
                try:
                    self._take_what_was_put_off()
                finally:
                    self._inside = False
        self._tell()
        return True

    def _settle(self, folder: Path | None) -> None:
        for run in list(self._runs.values()):
            if run.writer is None and folder is None:
                self._note_not_kept(run)
            elif run.writer is not None and folder in {None, run.writer.folder}:
                stop = Stop(time.time(), "", "no stop document", interrupted=True)
                self._step = (run, None, [], (), stop, 0)
                self._finish(run, stop)
                self._step = None

    # ---- documents; all that follows is called with the lock held --------------------------------------------------

    def _known_of(self, doc: Mapping[str, Any]) -> tuple[str, Header, Past | None]:
        """A run's uid and header, and what was taken of it before. Needs no lock; may read the disk."""
        uid = uid_of(doc)
        header = header_of(doc, uid, self.settings)
        if self.settings.resend or time.time() - header.started <= REPLAY_AGE_S:
            return uid, header, None
        run = self._runs.get(uid)
        writer = run.writer if run is not None else None
        if writer is not None:
            return uid, header, Past(header.content, ended=False, kept=self._past.of_open(uid, writer.folder))
        return uid, header, self._past_of(uid)

    def _start(self, uid: str, header: Header, past: Past | None) -> None:
        open_run = self._runs.get(uid)
        if open_run is not None:
            self._oddities.ignore("start", f"a second start document of run {uid} is ignored")
            if past is not None and past.kept is not None:
                open_run.kept = past.kept  # what comes now may have come before, longer ago than is remembered
            return
        if uid in self._ended and not self.settings.resend:
            past = Past(self._ended[uid], ended=True)
        if past is not None and (past.ended or past.content != header.content):
            self._skip(uid, same=past.content == header.content)
            return
        run = self._runs[uid] = OpenRun(uid, header, past.kept if past else None)
        self._open_run(run)
        self._tell_opened(header, run.kept)

    def _past_of(self, uid: str) -> Past | None:
        """What is known of a run; None also where that cannot be read, for a run taken twice is better than none."""
        try:
            return self._past.of(uid)
        except OSError as error:  # a SpoolError is one
            self._oddities.say_once(
                "past", f"whether run {uid} was taken before cannot be told, so it is taken: {error}"
            )
            return None

    def _skip(self, uid: str, *, same: bool) -> None:
        """Take nothing of a run that was taken before."""
        if same:
            self._oddities.say(logging.WARNING, "run %s was taken before and is not sent again; `resend` would", uid)
        else:
            self._oddities.say(
                logging.ERROR,
                "run %s was taken before with other content: this one is refused; give it its own uid", uid,
            )  # fmt: skip
        self._oddities.counts[TAKEN_BEFORE] += 1
        self._skipped.add(uid)

    def _tell_opened(self, header: Header, kept: KeptEvents | None) -> None:
        uid, source = header.run_uid, header.links.synth_source_id
        if kept is not None:
            self._oddities.say(
                logging.WARNING, "run %s goes on where it was interrupted: what was kept of it is not taken again", uid
            )
        if kept is not None and kept.beyond:
            self._oddities.say(
                logging.WARNING,
                "run %s: %d of the events that were kept are too many to be known; they are taken again if they come",
                uid, kept.beyond,
            )  # fmt: skip
        if header.problem:
            self._oddities.say(
                logging.ERROR,
                "run %s is parked, its readings are kept: %s; mend it with `atomscale-bluesky edit %s …`",
                uid, header.problem, uid[:8],
            )  # fmt: skip
            return
        self._oddities.say(logging.INFO, "run %s opened for synth_source_id %s", uid, source)
        if source is None:
            self._oddities.say_once(
                "unlinked", "no synth_source_id in a run's metadata or the settings: it is streamed unlinked"
            )

    def _open_run(self, run: OpenRun) -> None:
        """Make the run's folder in the spool."""
        self._step = (run, None, [], (), None, 0)
        try:
            to_deliver = isinstance(self._uploader, Uploader) and self._uploader.takes_up
            self._spool.create(run.header, to_deliver=to_deliver, accept=run.begin_again)
        except SpoolError as error:
            run.why_not_kept = str(error)
            run.why_none, until = NO_ROOM, "there is room"
            if not isinstance(error, SpoolFullError):
                run.why_none, until = NOT_WRITTEN, "its files can be made"
                run.try_again_at = time.monotonic() + TRY_AGAIN_S
            text = f"run {run.uid} is not kept until {until}, its readings are counted: {error}"
            self._oddities.say_once(f"not kept {run.uid}", text, logging.ERROR)
        self._announce(run)
        self._step = None

    def _announce(self, run: OpenRun) -> None:
        """Have a new journal delivered; as often as one likes, it is done once."""
        if run.to_announce and run.writer is not None and self._uploader:
            self._uploader.add(run.writer)
        run.to_announce = False

    def _open_run_again(self, run: OpenRun) -> None:
        """Make a folder for a run that has none, if that may succeed by now."""
        if (run.settled or self._spool.has_room) and time.monotonic() >= run.try_again_at:
            self._open_run(run)

    def _descriptor(self, doc: Mapping[str, Any]) -> None:
        run_uid, uid = str(doc["run_start"]), str(doc["uid"])
        run = self._runs.get(run_uid)
        if run is None and run_uid in self._skipped:
            self._streams_skipped.add(uid)
            return
        if run is None:
            self._oddities.ignore("descriptor", f"a descriptor of run {run_uid}, whose start never came, is ignored")
            return
        name = text_of(doc.get("name"))
        if name not in run.event_streams and not run.describe(doc, name, self._selection):
            self._oddities.say(logging.INFO, "event stream %r of run %s is left out by the settings", name, run_uid)
        event_stream = run.event_streams[name]
        if event_stream is not None:
            event_stream.described_again()
        self._streams[uid] = (run, event_stream)

    def _event(self, doc: Mapping[str, Any]) -> None:
        known = self._streams.get(doc["descriptor"])
        if known is None:
            self._leave_out_unknown(doc["descriptor"], "event", 1)
            return
        run, event_stream = known
        if event_stream is None:
            run.leave_out(NOT_SELECTED, doc.get("data") or ())
            return
        uid = doc["uid"]
        if uid in run.seen or uid in run.seen_before or (run.kept and _is_kept(run.kept, event_stream, doc)):
            run.remember(uid)  # one that its time told is told by its uid when it comes once more
            self._oddities.counts[SEEN_BEFORE] += 1
            return
        if run.writer is None:
            self._open_run_again(run)
        try:
            payloads = event_stream.event(doc, time.time() if event_stream.by_reading else 0.0)
        except Exception:
            run.leave_out(UNREADABLE, mapping_of(doc.get("data")))
            raise
        self._keep(run, event_stream, payloads, (uid,), doc["data"])
        run.remember(uid)
        self._step = None

    def _event_page(self, doc: Mapping[str, Any]) -> None:
        known = self._streams.get(doc["descriptor"])
        if known is None:
            self._leave_out_unknown(doc["descriptor"], "event_page", len(doc.get("uid") or ()))
            return
        run, event_stream = known
        uids = list(doc["uid"])
        if event_stream is None:
            run.leave_out(NOT_SELECTED, doc.get("data") or (), len(uids))
            return
        seen = [i for i, uid in enumerate(uids) if uid in run.seen or uid in run.seen_before]
        if run.kept is not None:
            seen = sorted({*seen, *_kept_rows(run.kept, event_stream, doc)})
        if seen:
            for i in seen:
                run.remember(uids[i])
            doc = without(doc, seen)
            self._oddities.counts[SEEN_BEFORE] += len(seen)
            uids = list(doc["uid"])
        if run.writer is None:
            self._open_run_again(run)
        try:
            payloads = event_stream.event_page(doc, time.time())
        except Exception:
            run.leave_out(UNREADABLE, mapping_of(doc.get("data")), len(uids))
            raise
        if payloads:
            self._keep(run, event_stream, payloads, uids, doc.get("data") or ())
        for uid in uids:
            run.remember(uid)
        self._step = None

    def _leave_out_unknown(self, descriptor: str, name: str, events: int) -> None:
        """Take nothing of a document whose descriptor belongs to no open run."""
        if descriptor in self._streams_skipped:
            return
        run_uid = self._late.get(descriptor)
        if run_uid is None:
            what = "an event" if name == "event" else "a page"
            self._oddities.ignore(name, f"{what} of descriptor {descriptor}, which never came, is ignored")
            return
        self._oddities.counts[BEHIND_STOP] += events
        self._oddities.say_once(
            f"late {run_uid}", f"an event of run {run_uid} came behind its stop document and is left out"
        )

    def _keep(
        self, run: OpenRun, event_stream: EventStream, payloads: list[bytes], uids: Sequence[str], keys: Any
    ) -> None:
        """Append a document's lines, or count its readings as left out. The step is the caller's to end."""
        writer = run.writer
        if writer is None:
            run.leave_out(run.why_none, keys, len(uids))
            return
        self._step = (run, event_stream, payloads, uids, None, writer.written)
        try:
            unsynced = writer.append(payloads)
        except SpoolFullError as error:
            run.leave_out(NO_ROOM, keys, len(uids))
            self._oddities.say_once(
                f"no room {run.uid}", f"new readings of run {run.uid} are left out: {error}", logging.ERROR
            )
            return
        except LineTooLongError as error:
            run.leave_out(TOO_LONG, keys, len(uids))
            self._oddities.say_once(
                f"too long {run.uid}", f"run {run.uid}: a document's readings are left out: {error}", logging.ERROR
            )
            return
        except SpoolError as error:
            run.leave_out(NOT_WRITTEN, keys, len(uids))
            self._oddities.say_once(
                f"not written {run.uid}", f"new readings of run {run.uid} are left out: {error}", logging.ERROR
            )
            return
        first = not event_stream.begun
        full = event_stream.accepted(run.header.points_per_chunk if run.header else 1)
        if unsynced is not None:
            self._oddities.say(
                logging.ERROR, "journal in %s could not be synced, a power cut may take it: %s", writer.folder, unsynced
            )
        if first and event_stream.left_out:
            said = plain(", ".join(f"{key} ({reason})" for key, reason in event_stream.left_out.items()))
            self._oddities.say(
                logging.INFO, "event stream %r of run %s leaves out %s", event_stream.name, run.uid, said
            )
        if self._uploader and (first or full):
            self._uploader.wake(writer.folder)

    def _stop(self, doc: Mapping[str, Any]) -> None:
        uid = str(doc["run_start"])
        run = self._runs.get(uid)
        if run is None and uid in self._skipped:
            self._skipped.discard(uid)
            self._streams_skipped.clear()
            return
        if run is None:
            self._oddities.ignore("stop", f"a stop document of run {uid}, whose start never came, is ignored")
            return
        stop = Stop(
            time=time_of(doc),
            exit_status=text_of(doc.get("exit_status")),
            reason=text_of(doc.get("reason")),
        )
        self._step = (run, None, [], (), stop, 0)
        self._finish(run, stop)
        self._step = None

    def _note_not_kept(self, run: OpenRun) -> None:
        """Count a run that ends without a journal."""
        not_kept = run.not_kept(time.time())
        if not_kept is not None:
            self._oddities.counts[NOT_KEPT] += 1
            self._spool.not_kept(not_kept)
            self._oddities.say(
                logging.ERROR,
                "run %s ended without having been kept, %d readings of it are left out: %s; `status` shows it",
                run.uid, not_kept.readings, not_kept.reason,
            )  # fmt: skip

    def _finish(self, run: OpenRun, stop: Stop) -> None:
        """Have the run's files say how it ended; where it was interrupted, done again from its beginning."""
        if not stop.interrupted:
            if run.writer is None:
                self._note_not_kept(run)
            run.tell_what_was_odd(self._oddities)
        if run.writer is not None:
            self._end_run(run, run.writer, stop)
        if not stop.interrupted:
            self._forget(run)

    def _end_run(self, run: OpenRun, writer: RunWriter, stop: Stop) -> None:
        """Write how the run ended and let go of its files."""
        self._announce(run)
        if run.last_lines is None:
            stop.rows.update(run.rows())
            run.last_lines = ([*run.left_out_lines(), encode(stop)], writer.written)
        lines, before = run.last_lines
        try:
            writer.end(lines, before)
        except SpoolError as error:
            # Without its stop in the journal the run counts as interrupted once its lock is free, and is completed.
            self._oddities.say(
                logging.ERROR, "the stop of run %s could not be written, it is tried again: %s", run.uid, error
            )
        self._spool.release(writer)
        if self._uploader:
            self._uploader.stopped(writer.folder)
        run.end()

    def _forget(self, run: OpenRun) -> None:
        """Know of a run only that it has ended."""
        for descriptor in [key for key, value in self._streams.items() if value[0] is run]:
            self._late[descriptor] = run.uid
            del self._streams[descriptor]
        while len(self._late) > REMEMBERED_RUNS:
            self._late.popitem(last=False)
        if run.settled:  # else nothing of it is there, and a replay would be welcome
            self._ended[run.uid] = run.header.content
        if len(self._ended) > REMEMBERED_RUNS:
            self._ended.popitem(last=False)
        self._runs.pop(run.uid, None)

    # ---- process ---------------------------------------------------------------------------------------------------

    def _make_uploader(self) -> Uploader | Elsewhere | None:
        place = self.settings.uploader
        if self.settings.offline or not (self.settings.api_key or place == "none"):
            why = "offline by setting" if self.settings.offline else "no API key (ATOMSCALE_API_KEY)"
            _logger.warning(
                "%s: readings are spooled in %s and sent by a later session that has one", why, self._spool.path
            )
            return None
        # Weakly: the uploader's threads must not keep a callback alive that nobody else holds.
        this = weakref.ref(self)

        def settle(folder: Path) -> None:
            callback = this()
            if callback is not None:
                callback.settle_open_runs(folder)

        if place == "thread":
            uploader = Uploader(self._spool, self.settings, settle=settle)
        else:
            from .delivery.uploader_process import Elsewhere  # takes a while, and most sessions have a thread

            uploader = Elsewhere(self._spool, self.settings, start=place == "process", settle=settle)
        uploader.start()
        return uploader

    def after_fork_in_child(self) -> None:
        """The parent's runs and threads are the parent's; a child that gets documents spools runs of its own."""
        self._lock = threading.RLock()
        self._inside, self._step = False, None
        self._put_off.clear()
        self._watch = SpoolWatch(self._spool)
        self._runs, self._streams = {}, {}
        self._spool.forget_after_fork()
        if self._uploader:
            self._uploader.after_fork_in_child()
        self._uploader = None


def _is_kept(kept: KeptEvents, event_stream: EventStream, doc: Mapping[str, Any]) -> bool:
    """Whether earlier journals of the run hold an event."""
    stamps = mapping_of(doc.get("timestamps"))
    return kept.has(event_stream.name, doc["uid"], times_of(doc.get("time"), *stamps.values()))


def _kept_rows(kept: KeptEvents, event_stream: EventStream, page: Mapping[str, Any]) -> list[int]:
    """The rows of a page that earlier journals of the run hold."""
    uids = page["uid"]
    columns = [page["time"], *mapping_of(page.get("timestamps")).values()]
    columns = [column for column in columns if len(column) == len(uids)]  # another length is seen to later
    return [
        i
        for i, uid in enumerate(uids)
        if kept.has(event_stream.name, uid, times_of(*(column[i] for column in columns)))
    ]


def _kept(writer: RunWriter, payloads: list[bytes], written_before: int) -> bool:
    try:
        return writer.kept(payloads, written_before)
    except SpoolError:  # the disk fails: nothing is written behind it before half a line was taken back
        return False


def _stop_threads(uploader: Uploader | Elsewhere | None, spool: Spool, timeout_s: float) -> None:
    if uploader is not None:
        uploader.stop(timeout_s)
    spool.close(timeout_s)


def _retire(uploader: Uploader | Elsewhere | None, spool: Spool) -> None:
    spool.retire()
    if uploader is not None and uploader.running:
        uploader.retire()
