"""Writes Bluesky's documents into journals of runs on disk, and returns what happened to each.

    for name, doc in documents:
        accepted = recorder.take(name, doc)     # the rows survive a killed process
    recorder.sync()                             # and now also a power cut

`AtomscaleCallback` records what a RunEngine emits. A program that gets documents from another source uses a recorder
directly. A recorder sends nothing: what it has recorded is delivered by the callback's uploader, by `atomscale-bluesky
upload`, or by any process that delivers the spool's runs.

A signal may come at any moment. If its handler raises, as Ctrl-C does, the exception leaves `take`, and the next call
finds out from the journal what was written and counts that. A signal handler may call the recorder. So may a document's
value, which is foreign code. Such a call does not wait for itself: its document is taken after the present one.
Nothing is logged while the lock is held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from sys import is_finalizing  # imported by name, because `sys` may be gone when the interpreter ends
from types import TracebackType
from typing import Any

from ..errors import DocumentError, SettingsError, SpoolError
from ..settings import Settings, spool_option
from ..spool.own_files import OUT_OF_RESOURCES
from ..spool.spool import Spool
from .accepted import NOTHING, PUT_OFF, TRY_AGAIN, Accepted
from .early_events import EarlyEvents
from .event_taker import EventTaker
from .ignored_documents import IgnoredDocuments
from .known_runs import KnownRuns
from .open_runs import OpenRuns
from .peers import Peers
from .run_files import RunFiles, RunListener
from .run_lookup import RunLookup
from .run_taker import RunTaker

# Kinds of documents that name files and places in them, and hold no readings.
_WITHOUT_READINGS = frozenset({"resource", "datum", "datum_page", "bulk_datum", "stream_resource", "stream_datum"})


class DocumentRecorder:
    """Records the documents of runs in a spool, and returns what happened to each.

    Make one per process and spool, with the same settings as the process that delivers. Keep it while documents come,
    then close it. Several threads may call it at once: one lock is held while a document is taken. Mostly that is
    memory operations and one `write`. For a start document a folder is made. For an event of an unknown descriptor the
    spool's runs are searched, half a millisecond for each: the youngest 50, or all of them with `redelivers`. Nothing
    waits for a sync, except with `durability = "event"`.

    Args:
        settings: Which spool, and which event streams and data keys are taken. The default is environment and file.
        spool: The spool, if it is already open.
        listener: Delivers the runs in this process. None if they are not delivered here.
        check: Called without the lock when a start document comes. A text that it returns is logged once.
        redelivers: True if the caller gives a document again when the answer says `try_again`, and itself reports runs
            whose start document never came. Then readings that find no disk space are not counted as left out, and a
            start document or descriptor that could not be written is not taken.
        physical_sample: Name or id of the physical sample of runs whose metadata name none.

    Raises:
        SettingsError: A setting cannot be used, such as the spool's folder. Names it and what is expected.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        spool: Spool | None = None,
        listener: RunListener | None = None,
        check: Callable[[], str | None] = lambda: None,
        redelivers: bool = False,
        physical_sample: str | None = None,
    ) -> None:
        settings = Settings.load() if settings is None else settings
        self.settings: Settings = settings
        self._spool = open_spool(settings) if spool is None else spool
        self._owns_spool = spool is None
        self._check = check
        self._redelivers = redelivers
        self.peers = Peers(self._spool.path, settings, self)
        # Guards everything below, and is held while a document is taken. A signal handler or a document's
        # value may call in while it is held. Then `_inside` is set, and the document of that call is put off.
        self._lock = threading.RLock()
        self._inside = False
        # (kind, document), or (None, folder) for runs to complete.
        self._put_off: deque[tuple[str | None, Any]] = deque()
        self._ignored = IgnoredDocuments(log_missing_starts=not redelivers)
        self._files = RunFiles(
            self._spool, listener, self._ignored, redelivers=redelivers, spool_option=spool_option(settings)
        )
        self._early = early = EarlyEvents()
        known_runs = KnownRuns(self._spool, guess=not redelivers)
        self._open_runs = OpenRuns(
            settings, known_runs=known_runs, peers=self.peers, ignored_documents=self._ignored, redelivers=redelivers
        )
        self._lookup = RunLookup(
            settings,
            runs=self._open_runs,
            known_runs=known_runs,
            ignored_documents=self._ignored,
            physical_sample=physical_sample,
            redelivers=redelivers,
        )
        self._runs = RunTaker(
            settings,
            runs=self._open_runs,
            known_runs=known_runs,
            files=self._files,
            early=early,
            ignored_documents=self._ignored,
        )
        self._events = EventTaker(self._open_runs, files=self._files, early=early, ignored_documents=self._ignored)

    def take(self, name: str, doc: Mapping[str, Any], *, leave_out: bool = False) -> Accepted:
        """Record one document. When this returns, its rows survive a killed process.

        If it is called from within itself, by a signal handler or a document's value, the document is taken after the
        present one, and the answer says so.

        Args:
            name: `start`, `descriptor`, `event`, `event_page`, `bulk_events` or `stop`. Documents of Bluesky's other
                kinds, such as `datum`, are not recorded. Those of a kind that is not known are counted in `ignored`.
            doc: The document. It is not changed, and not needed any more afterwards.
            leave_out: Count readings that find no disk space as left out, also if the recorder `redelivers`. For a
                document that is not given again, because `may_get_room` is False.

        Returns:
            How many rows were written, what was known already, and which readings were left out for which reason.

        Raises:
            DocumentError: The document cannot be used: it is malformed, or belongs to no known run or descriptor.
                Nothing of it was recorded, and what is already recorded is not affected. It is counted in `ignored`,
                and logged once per kind. A `StartMissingError` if it belongs to a run whose start document never came.
        """
        try:
            known = None
            if name == "start":
                warning = self._check()
                if warning is not None:
                    self._ignored.log_once(warning, warning)
                known = self._lookup.look_up(doc)
            with self._lock:
                if self._inside:
                    self._put_off.append((name, doc))
                    return PUT_OFF
                self._inside = True
                try:  # around the other, so that no interruption between the two leaves `_inside` set
                    try:
                        if leave_out:
                            self._files.leaves_out = True
                        if self._files.change is not None:
                            self._runs.complete_change()
                        if name == "event":
                            return self._events.take_event(doc)
                        if known is not None:
                            return self._runs.start(*known)
                        return self._take(name, doc)
                    finally:
                        if leave_out:
                            self._files.leaves_out = False
                        if self._put_off:
                            self._take_what_was_put_off()
                finally:
                    self._inside = False
        except DocumentError:  # counted where it was raised
            raise
        except Exception as error:
            if self._redelivers and isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
                self._ignored.log_once("resources", f"documents wait until files can be opened again: {error}")
                return TRY_AGAIN
            raise self._ignored.count_unusable(name, error) from error
        finally:
            if self._ignored.pending_log:
                self._write_log()

    def has_whole(self, run_uid: str) -> bool:
        """Return True if a run was recorded up to its stop document, so that its documents would change nothing.

        Reads the disk. With the setting `resend`, and for a run that is being recorded, the answer is False.
        """
        return self._lookup.has_whole(run_uid)

    def sync(self) -> None:
        """Sync everything taken so far, so that no power cut can take it. Waits for the disk, mostly some milliseconds.

        Raises:
            SpoolError: A journal could not be synced, or the end of a run not written. The next call tries again, and
                so does the background thread.
        """
        self._spool.writers.sync()
        if self._redelivers and self._spool.writers.has_unended:
            raise SpoolError("the end of a run could not be written yet; free some disk space")

    @property
    def has_room(self) -> bool:
        """Return False while the spool or its disk is full, so that no document would be kept. Reads no disk."""
        return self._spool.writers.has_room

    @property
    def why_no_room(self) -> str:
        """Why no document would be kept, with figures, and the remedy, while `has_room` is False. Reads no disk."""
        disk_space = self._spool.disk_space
        return f"{disk_space.why_full}; {disk_space.remedy}"

    def may_get_room(self, *, also_without_a_run: bool = False) -> bool:
        """Return False if the runs that are being recorded leave no room, so that delivery makes none.

        They reach `spool_max_bytes`, or the disk has lacked free space for 30 s, and what else the spool holds is less
        than lacks. Runs of other processes count too. May read the disk, once a second.

        They can only leave the spool when they end. So a source that waits with its next document until there is room
        waits for ever if their stop documents are behind it.

        Args:
            also_without_a_run: Find that out also if this recorder writes no run. Without this, the answer is True
                then: the documents of other processes' runs are not behind the one that waits.
        """
        return not self._spool.writers.fill_spool(also_without_a_run=also_without_a_run)

    @property
    def early_descriptors(self) -> Set[str]:
        """The uids of descriptors that have not come, although events of them have. Does not block for the disk.

        `take` has answered that these events are put off. They wait in memory.
        """
        with self._lock:
            return frozenset(self._early.descriptors)

    def give_up_early_events(self, descriptors: Iterable[str]) -> None:
        """Count the events that wait for these descriptors as ignored, so that they wait no longer.

        Without this they wait until a run stops and no other run is open, or until a hundred runs have stopped. Call it
        if the source holds something until then, such as an acknowledgement. From within `take` it does nothing.
        """
        with self._lock:
            if self._inside:
                return
            self._inside = True
            try:  # around the other, as in `take`
                try:
                    self._runs.give_up_early(descriptors)
                finally:
                    self._take_what_was_put_off()
            finally:
                self._inside = False
        self._write_log()

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many documents were not taken since this recorder was made, by kind. Does not block.

        Documents of no known run or descriptor count under their kind, such as `event`. Other counts are `malformed
        document`, `unknown kind`, `event seen before`, `event behind its run's stop`, `run taken before` and `run not
        kept`.
        """
        return dict(self._ignored.counts)

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
            try:  # around the other, as in `take`
                try:
                    if self._files.change is not None:
                        self._runs.complete_change()
                    self._runs.complete(folder)
                finally:
                    self._take_what_was_put_off()
            finally:
                self._inside = False
        self._write_log()
        return True

    def close(self) -> bool:
        """Complete the open runs and close the files. Waits for the disk, up to some seconds. May be called again.

        Returns:
            False if the runs could not be completed yet, because the call comes from within a document.
        """
        completed = self.complete_open_runs()
        if self._owns_spool:
            self._spool.writers.stop_threads()
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

    def _write_log(self) -> None:
        """Log what was collected. Called without the lock, since a log handler is foreign code."""
        with suppress(Exception):  # a handler that fails must not end the plan
            self._ignored.write_log()

    def after_fork_in_child(self) -> None:
        """Forget the parent's runs, which belong to the parent. A child that gets documents records runs of its own."""
        self._lock = threading.RLock()
        self._inside, self._files.change = False, None
        self._put_off.clear()
        self.peers: Peers = Peers(self._spool.path, self.settings, self)
        self._open_runs.forget_all(self.peers)
        self._early.clear()
        self._ignored.after_fork_in_child()
        self._spool.after_fork_in_child()
        self._files.listener = None

    # ---- the methods below are called with the lock held -----------------------------------------------------------

    def _take(self, name: str, doc: Mapping[str, Any]) -> Accepted:
        """Take a document that is no start."""
        if is_finalizing():
            # A paused RunEngine that is never resumed gives its run's stop when Python takes it apart. The process's
            # end has completed the run before that, and files can no longer be written reliably.
            return NOTHING
        match name:
            case "event":
                return self._events.take_event(doc)
            case "event_page":
                return self._events.take_page(doc)
            case "descriptor":
                answer = self._runs.descriptor(doc)
                return answer if answer is not NOTHING else self._events.take_early(str(doc["uid"]))
            case "bulk_events":
                return self._events.take_bulk_events(doc)
            case "stop":
                return self._runs.stop(doc)
            case _:
                return self._take_another(name, doc)

    def _take_another(self, name: str, doc: object) -> Accepted:
        """Take a document of a kind that has no readings. Of an unknown kind, count it and log the kind once."""
        if name not in _WITHOUT_READINGS:
            if not isinstance(doc, Mapping):
                raise TypeError(f"expected a kind of document and a mapping, got {name!r} and a {type(doc).__name__}")
            text = f"a document of kind {name!r} is ignored: this version does not know the kind"
            self._ignored.ignore("unknown kind", text)
        return NOTHING

    def _take_what_was_put_off(self) -> None:
        """Take the documents that came from within the call that holds the lock. Called at the end of that call."""
        while self._put_off:
            name, doc = self._put_off[0]  # removed when it is done: after an interruption it is done again
            try:
                if self._files.change is not None:
                    self._runs.complete_change()
                if name is None:
                    self._runs.complete(doc)
                elif name == "start":
                    self._runs.start(*self._lookup.look_up(doc))
                else:
                    self._take(name, doc)
            except DocumentError:
                pass
            except Exception as error:  # noqa: BLE001 - as in a call of its own, but no caller receives the error
                self._ignored.count_unusable(name, error)
            self._put_off.popleft()


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
