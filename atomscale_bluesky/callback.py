"""The front door: what `RE.subscribe` calls.

    RunEngine ──document──▶ AtomscaleCallback ──line──▶ the run's journal        (the plan's time)
                                                          └──▶ Uploader ──▶ Atomscale   (our own)

`__call__` routes a document by its run, turns an event into one line and appends it with one write. It does no network
I/O, never raises, and waits for nothing but the local file system; several threads may be in it at once. When it
returns from an event the readings survive a killed process. Everything else happens in the uploader's threads, or in
another process that shares the spool: the setting `uploader` says which.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import process
from .account import StreamStatus
from .channels import EventStream, Selection, mapping_of
from .client import Client
from .errors import LineTooLongError, SettingsError, SpoolError, SpoolFullError
from .lines import Header, Stop, encode
from .oddities import BEHIND_STOP, NOT_KEPT, SEEN_BEFORE, TAKEN_BEFORE, UNREADABLE, Oddities, plain
from .past import Past, PastRuns
from .runs import NO_ROOM, NOT_SELECTED, TOO_LONG, OpenRun, header_of, text_of, time_of, uid_of, without
from .settings import Settings
from .spool import Spool
from .uploader import Drain, Uploader
from .watch import SpoolWatch, Status

if TYPE_CHECKING:
    from .elsewhere import Elsewhere
    from .verify import Verification

_logger = logging.getLogger(__name__)

# Runs that have ended are remembered, to recognise one that is replayed.
REMEMBERED_RUNS = 1000
# A start document older than this is no run that begins now: whether it was sent before is looked up in the spool.
REPLAY_AGE_S = 5.0


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
        self._lock = threading.Lock()  # around all state of the front half; held for memory operations and one write
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
        """Take one document; never raises, whatever it holds."""
        try:
            if name == "event":
                self._event(doc)
            elif name == "event_page":
                self._event_page(doc)
            elif name == "start":
                self._start(doc)
            elif name == "descriptor":
                self._descriptor(doc)
            elif name == "stop":
                self._stop(doc)
        except Exception as error:  # noqa: BLE001 - an exception here would end the plan
            self._oddities.broken(name, error)

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
        from .progress import LOOK_PERIOD_S, Bar

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
            ApiTooLargeError: A stream is more than can be held in memory.
        """
        from .verify import verify_run  # takes a while, and few sessions ask

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
        of which `status` tells more.
        """
        with self._lock:
            return dict(self._oddities.counts)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Drain for at most this long, then stop the threads; True if nothing was left to deliver.

        Where nothing is sent (no key, offline) it is True if the spool is empty. Called again it gives the same answer.
        A run whose stop document has not come counts as interrupted and is completed; should documents of it follow all
        the same, they are kept as a run of their own. What waits stays spooled, and is delivered by the next callback
        or `atomscale-bluesky upload`. Idempotent.
        """
        if self._closed:
            return self._all_delivered
        self._closed = True
        self.settle_open_runs()
        deadline = time.monotonic() + timeout_s
        self._all_delivered = self._uploader.drain(timeout_s) if self._uploader else self._spool.is_empty()
        _stop_threads(self._uploader, self._spool, max(0.5, deadline - time.monotonic()))
        return self._all_delivered

    def settle_open_runs(self, folder: Path | None = None) -> None:
        """Complete the runs whose stop document has not come, or the one in `folder`, as interrupted."""
        with self._lock:
            for run in self._runs.values():
                if run.writer is None and folder is None:
                    self._note_not_kept(run)
                    run.settled = True
                elif run.writer is not None and folder in {None, run.writer.folder}:
                    self._end_run(run, Stop(time.time(), "", "no stop document", interrupted=True))

    # ---- documents -------------------------------------------------------------------------------------------------

    def _start(self, doc: Mapping[str, Any]) -> None:
        uid = uid_of(doc)
        header = header_of(doc, uid, self.settings)
        past = None
        if not self.settings.resend and time.time() - header.started > REPLAY_AGE_S:
            past = self._past_of(uid)
        with self._lock:
            if uid in self._runs:
                self._oddities.ignore("start", f"a second start document of run {uid} is ignored")
                return
            if uid in self._ended and not self.settings.resend:
                past = Past(self._ended[uid], ended=True)
            if past is not None and (past.ended or past.content != header.content):
                self._skip(uid, same=past.content == header.content)
                return
            run = self._runs[uid] = OpenRun(uid, header, past.until if past else None)
            self._open_run(run)
        self._tell_opened(header, goes_on=past is not None)

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
        """Take nothing of a run that was taken before; called with the lock held."""
        if same:
            _logger.warning("run %s was taken before and is not sent again; `resend` would", uid)
        else:
            _logger.error("run %s was taken before with other content: this one is refused; give it its own uid", uid)
        self._oddities.counts[TAKEN_BEFORE] += 1
        self._skipped.add(uid)

    def _tell_opened(self, header: Header, *, goes_on: bool) -> None:
        uid, source = header.run_uid, header.links.synth_source_id
        if goes_on:
            _logger.warning("run %s goes on where it was interrupted: what was kept of it is not taken again", uid)
        if header.problem:
            _logger.error(
                "run %s is parked, its readings are kept: %s; mend it with `atomscale-bluesky edit %s …`",
                uid, header.problem, uid[:8],
            )  # fmt: skip
            return
        _logger.info("run %s opened for synth_source_id %s", uid, source)
        if source is None:
            self._oddities.say_once(
                "unlinked", "no synth_source_id in a run's metadata or the settings: it is streamed unlinked"
            )

    def _open_run(self, run: OpenRun) -> None:
        """Make the run's folder in the spool; called with the lock held."""
        try:
            writer = self._spool.create(run.header, to_deliver=isinstance(self._uploader, Uploader))
        except SpoolError as error:
            run.why_not_kept = str(error)
            self._oddities.say_once(
                f"not kept {run.uid}", f"run {run.uid} is not kept until there is room: {error}", logging.ERROR
            )
            return
        run.begin_again(writer)
        if self._uploader:
            self._uploader.add(writer)

    def _descriptor(self, doc: Mapping[str, Any]) -> None:
        run_uid, uid = str(doc["run_start"]), str(doc["uid"])
        with self._lock:
            run = self._runs.get(run_uid)
            if run is None and run_uid in self._skipped:
                self._streams_skipped.add(uid)
                return
            if run is None:
                self._oddities.ignore(
                    "descriptor", f"a descriptor of run {run_uid}, whose start never came, is ignored"
                )
                return
            name = text_of(doc.get("name"))
            if name not in run.event_streams and not run.describe(doc, name, self._selection):
                _logger.info("event stream %r of run %s is left out by the settings", name, run_uid)
            event_stream = run.event_streams[name]
            if event_stream is not None:
                event_stream.described_again()
            self._streams[uid] = (run, event_stream)

    def _event(self, doc: Mapping[str, Any]) -> None:
        with self._lock:
            known = self._streams.get(doc["descriptor"])
            if known is None:
                self._leave_out_unknown(doc["descriptor"], "event", 1)
                return
            run, event_stream = known
            if event_stream is None:
                run.leave_out(NOT_SELECTED, doc.get("data") or ())
                return
            uid = doc["uid"]
            if run.has_seen(uid):
                self._oddities.counts[SEEN_BEFORE] += 1
                return
            if run.writer is None and (run.settled or self._spool.has_room):
                self._open_run(run)
            try:
                payloads = event_stream.event(doc, time.time())
            except Exception:
                run.leave_out(UNREADABLE, mapping_of(doc.get("data")))
                raise
            if payloads:
                self._keep(run, event_stream, payloads, 1, doc["data"])
            else:  # of a run that goes on, up to where it was interrupted
                self._oddities.counts[SEEN_BEFORE] += 1
            run.remember(uid)

    def _event_page(self, doc: Mapping[str, Any]) -> None:
        with self._lock:
            known = self._streams.get(doc["descriptor"])
            if known is None:
                self._leave_out_unknown(doc["descriptor"], "event_page", len(doc.get("uid") or ()))
                return
            run, event_stream = known
            uids = list(doc["uid"])
            if event_stream is None:
                run.leave_out(NOT_SELECTED, doc.get("data") or (), len(uids))
                return
            if any(map(run.has_seen, uids)):
                doc = without(doc, [i for i, uid in enumerate(uids) if run.has_seen(uid)])
                self._oddities.counts[SEEN_BEFORE] += len(uids) - len(doc["uid"])
                uids = list(doc["uid"])
            if run.writer is None and (run.settled or self._spool.has_room):
                self._open_run(run)
            try:
                payloads = event_stream.event_page(doc, time.time())
            except Exception:
                run.leave_out(UNREADABLE, mapping_of(doc.get("data")), len(uids))
                raise
            if payloads:
                self._keep(run, event_stream, payloads, len(uids), doc.get("data") or ())
            for uid in uids:
                run.remember(uid)

    def _leave_out_unknown(self, descriptor: str, name: str, events: int) -> None:
        """Take nothing of a document whose descriptor belongs to no open run; called with the lock held."""
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

    def _keep(self, run: OpenRun, event_stream: EventStream, payloads: list[bytes], events: int, keys: Any) -> None:
        """Append a document's lines, or count its readings as left out; called with the lock held."""
        if run.writer is None:
            run.leave_out(NO_ROOM, keys, events)
            return
        try:
            run.writer.append(payloads)
        except SpoolFullError as error:
            run.leave_out(NO_ROOM, keys, events)
            self._oddities.say_once(
                f"no room {run.uid}", f"new readings of run {run.uid} are left out: {error}", logging.ERROR
            )
            return
        except LineTooLongError as error:
            run.leave_out(TOO_LONG, keys, events)
            self._oddities.say_once(
                f"too long {run.uid}", f"run {run.uid}: a document's readings are left out: {error}", logging.ERROR
            )
            return
        first = not event_stream.begun
        full = event_stream.accepted(run.header.points_per_chunk if run.header else 1)
        if first and event_stream.left_out:
            said = plain(", ".join(f"{key} ({reason})" for key, reason in event_stream.left_out.items()))
            _logger.info("event stream %r of run %s leaves out %s", event_stream.name, run.uid, said)
        if self._uploader and (first or full):
            self._uploader.wake()

    def _stop(self, doc: Mapping[str, Any]) -> None:
        uid = str(doc["run_start"])
        with self._lock:
            run = self._runs.pop(uid, None)
            if run is None and uid in self._skipped:
                self._skipped.discard(uid)
                self._streams_skipped.clear()
                return
            if run is None:
                self._oddities.ignore("stop", f"a stop document of run {uid}, whose start never came, is ignored")
                return
            for descriptor in [key for key, value in self._streams.items() if value[0] is run]:
                del self._streams[descriptor]
                self._late[descriptor] = uid
            while len(self._late) > REMEMBERED_RUNS:
                self._late.popitem(last=False)
            if run.writer is not None or run.settled:  # else nothing of it is there, and a replay would be welcome
                self._ended[uid] = run.header.content
            if len(self._ended) > REMEMBERED_RUNS:
                self._ended.popitem(last=False)
            if run.writer is None:
                self._note_not_kept(run)
            run.tell_what_was_odd()
            if run.writer is not None:
                stop = Stop(
                    time=time_of(doc),
                    exit_status=text_of(doc.get("exit_status")),
                    reason=text_of(doc.get("reason")),
                )
                self._end_run(run, stop)

    def _note_not_kept(self, run: OpenRun) -> None:
        """Count a run that ends without a journal; called with the lock held."""
        not_kept = run.not_kept(time.time())
        if not_kept is not None:
            self._oddities.counts[NOT_KEPT] += 1
            self._spool.not_kept(not_kept)
            _logger.error(
                "run %s ended without having been kept, %d readings of it are left out: %s; `status` shows it",
                run.uid, not_kept.readings, not_kept.reason,
            )  # fmt: skip

    def _end_run(self, run: OpenRun, stop: Stop) -> None:
        """Write how the run ended and let go of its files; called with the lock held."""
        writer, run.writer, run.settled = run.writer, None, True
        if writer is None:
            return
        stop.rows.update(run.rows())
        try:
            writer.append([*run.left_out_lines(), encode(stop)], always=True)
        except SpoolError as error:
            # Without its stop in the journal the run counts as interrupted once its lock is free, and is completed.
            _logger.error("the stop of run %s could not be written: %s", run.uid, error)
        self._spool.release(writer)
        if self._uploader:
            self._uploader.stopped(writer.folder)

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
            from .elsewhere import Elsewhere  # takes a while, and most sessions have a thread

            uploader = Elsewhere(self._spool, self.settings, start=place == "process", settle=settle)
        uploader.start()
        return uploader

    def after_fork_in_child(self) -> None:
        """The parent's runs and threads are the parent's; a child that gets documents spools runs of its own."""
        self._lock = threading.Lock()
        self._runs, self._streams = {}, {}
        self._spool.forget_after_fork()
        if self._uploader:
            self._uploader.after_fork_in_child()
        self._uploader = None


def _stop_threads(uploader: Uploader | Elsewhere | None, spool: Spool, timeout_s: float) -> None:
    if uploader is not None:
        uploader.stop(timeout_s)
    spool.close(timeout_s)


def _retire(uploader: Uploader | Elsewhere | None, spool: Spool) -> None:
    spool.retire()
    if uploader is not None and uploader.running:
        uploader.retire()
