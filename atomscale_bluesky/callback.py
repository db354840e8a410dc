"""The front door: the object that `RE.subscribe` takes.

    RunEngine ──document──▶ AtomscaleCallback ──▶ DocumentRecorder ──line──▶ the run's journal   (while the plan waits)
                                                                                └──▶ Uploader ──▶ Atomscale      (later)

`__call__` passes the document to the recorder. It does no network I/O, never raises, and waits only for the local file
system. Several threads may call it at once. When it returns from an event, the readings survive a killed process.
Everything else happens in the uploader's threads, or in another process that shares the spool, as the setting
`uploader` says.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .delivery import exit_hooks
from .delivery.announcer import Announcer, has_operator
from .delivery.deliverer import Deliverer
from .delivery.drain import DrainQuestion
from .delivery.terminal_log import log_to_terminal
from .documents.recorder import DocumentRecorder, open_spool
from .documents.subscriptions import YoungerFirst, double_subscription_warning, was_class_called
from .errors import SettingsError, SpoolError
from .settings import Settings, path_in_endpoint, refuse_other_arguments, spool_option
from .spool.spool import Spool
from .status.commands import with_option
from .status.notebook import escaped
from .status.run_status import StreamStatus
from .status.spool_status import SpoolStatus, Status

if TYPE_CHECKING:
    from .checks.verification import Verification

_logger = logging.getLogger(__name__)


class AtomscaleCallback:
    """Streams every run of a RunEngine to Atomscale: `RE.subscribe(AtomscaleCallback())`.

    A run's start document initializes a metrology stream linked to `synth_source_id`, its readings arrive there in
    chunks while the plan runs, and its stop document finalizes it. Readings are spooled to disk first, so an outage, a
    crash or a missing key costs nothing but time: the waiting readings are sent as soon as that is possible again, by
    this process or the next one.

    Construction checks the settings and opens the spool. It needs no network, and sends no request except for data of
    earlier runs.

    Args:
        api_key: Key of the Atomscale account. If it is given neither here nor in `ATOMSCALE_API_KEY`, `AS_API_KEY` or
            the settings' file, readings are spooled until there is one.
        endpoint: Origin of the API.
        synth_source_id: Growth instrument for runs whose metadata name none.
        points_per_chunk: Points of each channel in a chunk, for runs whose metadata say nothing; 100 by default.
        spool_dir: Folder of the runs not yet finalized; by default in the user's state folder.
        event_streams: Event streams to take, as shell-style patterns; `!pattern` leaves out.
        channels: Data keys to take, as shell-style patterns; `!pattern` leaves out; `"hints"` takes the hinted fields.
        settings: Used instead of environment and file. The other arguments take precedence. `Settings.load` makes one.

    Raises:
        SettingsError: A setting cannot be used, such as the spool's folder. Names it and what is expected.
    """

    def __new__(cls, *arguments: object, **settings: object) -> Self:
        """Make a callback. If a RunEngine calls the class instead of an instance, log an error and make none."""
        if was_class_called(arguments):
            return None  # type: ignore[return-value] - of interest to nobody: a RunEngine drops what a callback returns
        if arguments:
            raise TypeError(f"AtomscaleCallback takes only keyword arguments, but got {len(arguments)} positional ones")
        if cls.__init__ is AtomscaleCallback.__init__:  # a subclass may take others
            refuse_other_arguments(settings, AtomscaleCallback.__init__.__kwdefaults__ or {}, "AtomscaleCallback")
        return super().__new__(cls)

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
        log_to_terminal()  # first, because loading the settings may log warnings
        self.settings: Settings = Settings.load(**arguments) if settings is None else settings.replaced(**arguments)
        if (doubt := path_in_endpoint(self.settings.endpoint)) is not None:
            _logger.warning("%s", doubt)
        # Appended to commands in messages, such as ` --spool-dir /data/spool`.
        self._spool_option = spool_option(self.settings)
        self._spool = open_spool(self.settings)
        self._watch = SpoolStatus(self._spool)
        self._uploader = self._make_uploader()
        self._announcer = self._make_announcer()
        self._recorder = DocumentRecorder(
            self.settings,
            spool=self._spool,
            listener=self._announcer or self._uploader,
            check=double_subscription_warning,
        )
        self._take: Callable[[str, Mapping[str, Any]], object] = self._recorder.take
        self._closed = self._all_delivered = False
        self._recorder.peers.add_subscriber(self)
        if self._uploader is not None:
            self._uploader.start()
        # When nothing refers to the callback any more, its threads complete the remaining work, and end.
        weakref.finalize(self, _retire, self._uploader, self._announcer, self._spool).atexit = False
        exit_hooks.register(self, self._uploader)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document. Never raises, whatever the document holds.

        If it is called from within itself, by a signal handler or a document's value, the document is taken after the
        present one.
        """
        try:  # noqa: SIM105 - this is called for each event
            self._take(name, doc)
        except Exception:  # noqa: BLE001, S110 - the recorder has counted and logged it; it would end the plan
            pass

    def __enter__(self) -> AtomscaleCallback:
        """Return the callback itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the callback."""
        self.close()

    def __repr__(self) -> str:
        """Return a text that names the endpoint and the spool's folder, and says if nothing is sent."""
        why = "" if self._uploader is not None else "; nothing is sent, the setting `offline` is on"
        if why and not self.settings.offline:
            why = "; nothing is sent, there is no API key"
        return f"<AtomscaleCallback to {self.settings.endpoint}, spool {str(self._spool.path)!r}{why}>"

    def _repr_html_(self) -> str:
        """Return that text as HTML, with a table of the runs that wait, for a notebook. Reads the spool's files."""
        return f"<div>{escaped(repr(self))}</div>{self.status()._repr_html_()}"  # noqa: SLF001 - a notebook's protocol

    def drain(self, timeout_s: float, *, progress: bool = False) -> bool:
        """Wait until everything that can be delivered is delivered; for scripts, not for plans.

        Args:
            timeout_s: How long to wait at most.
            progress: Show a bar on the terminal meanwhile: points, rate and remaining time.

        Returns:
            True when every stopped run is finalized and every full chunk of the open ones confirmed. False at the
            time-out, or at once when waiting cannot help: no key, offline, parked, refused.

        Raises:
            SettingsError: `progress` is set, and the extra `cli`, which draws the bar, is not installed.
        """
        if self._uploader is None:
            return False
        if not progress:
            return self._uploader.drain(timeout_s)
        return self._drain_with_bar(timeout_s)

    def _drain_with_bar(self, timeout_s: float) -> bool:
        from .status.progress import POLL_S, Bar

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
                if question.answered.wait(min(POLL_S, left_s)):
                    break
                bar.update()
            bar.update()
        if question is not None and question.answer is None:
            question.given_up = True
        return question is not None and question.answer is True

    def ask_whether_drained(self) -> DrainQuestion | None:
        """Check the condition of `drain` without waiting. Return None if nothing is sent: no key, offline, closed."""
        return self._uploader.ask_whether_drained() if self._uploader else None

    def status(self) -> Status:
        """Return what happened to every reading of the runs that are not finalized; may be called from any thread.

        Reads the spool's files, so the result is the same as that of `atomscale-bluesky status`. Not for the plan's
        thread.
        """
        return self._watch.status()

    def streams(self, run_uid: str) -> tuple[StreamStatus, ...]:
        """Return a run's metrology streams, whether it is in progress, waiting or finished; for plans and notebooks.

        Each has its `data_id`, None until Atomscale has given one, its `label`, its `event_stream` and its `state`.
        Empty for an unknown run. Reads the spool's files, and waits for nothing else.

        Args:
            run_uid: The run's uid, or its beginning.

        Raises:
            SpoolError: Several runs begin with `run_uid`.
        """
        return self._watch.streams(run_uid)

    def verify(self, run_uid: str, *, patience_s: float = 30.0) -> Verification:
        """Read a run back from Atomscale and compare every point with the run's journal; for scripts, not for plans.

        Blocks, because it sends requests to Atomscale. Of a run in progress, the points confirmed so far are compared.
        The run has to be in the spool, which it leaves as soon as it is finalized. With `keep = "verified"` it leaves
        only after it was read back and was equal. The SpoolError for a run that has left then says when that was.

        Args:
            run_uid: The run's uid, or its beginning.
            patience_s: How long to go on reading while confirmed points cannot be read yet.

        Returns:
            What was compared and what differs; `equal` says whether the whole run is in Atomscale, point by point.
            While the run goes on, it is False.

        Raises:
            SpoolError: No run of the spool, or several, begin with `run_uid`; or the run has left the spool; or its
                files cannot be read.
            ApiKeyError: The key may not read.
            ApiUnavailableError: The API did not answer in time.
            ApiTooLargeError: An answer is far larger than its stream can be.
        """
        from .api.client import Client  # both take a while, and few sessions need them
        from .checks.verify_run import check_in_spool, verify_parts
        from .status.run_parts import find_parts

        try:
            run = find_parts(self._spool, self._watch, run_uid)
            check_in_spool(run)
        except SpoolError as error:
            raise SpoolError(with_option(str(error), self._spool_option)) from None
        client = Client(self.settings)
        try:
            return verify_parts(run, client, patience_s=patience_s)
        finally:
            client.close()

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many documents were not taken since this callback was made, by kind. Does not block.

        Documents of no known run or descriptor count under their kind, such as `event`. Other counts are `malformed
        document`, `unknown kind`, `event seen before`, `event behind its run's stop`, `run taken before` and `run not
        kept`, about which `status` says more.
        """
        return self._recorder.ignored

    def close(self, timeout_s: float = 10.0) -> bool:
        """Drain for up to `timeout_s`, then stop the threads. Return True if nothing was left to deliver.

        If nothing is sent (no key, offline), it returns True if the spool is empty. A second call gives the same
        answer, unless documents have come since: then it returns True if the spool is empty. A run whose stop document
        has not come counts as interrupted and is completed. Documents of it that come later are kept as a run of their
        own, which the next `close` completes. Waiting readings stay spooled, and the next callback or
        `atomscale-bluesky upload` delivers them. Idempotent.

        Ctrl-C ends the waiting: KeyboardInterrupt is raised, a line in the log says who delivers the rest, and the
        process's end does not wait again.

        A signal handler may call it too. If that interrupts a document, it returns False: the open runs are completed
        right after that document, and the next callback delivers them.
        """
        if self._closed:
            self.settle_open_runs()  # documents may have come since
            used = isinstance(self._take, YoungerFirst) and self._take.used
            return self._spool.is_empty() if used else self._all_delivered
        self._closed = True
        self._flush()
        self._let_younger_first(closed=True)
        completed = self.settle_open_runs()
        deadline = time.monotonic() + timeout_s
        try:
            drained = self._uploader.drain(timeout_s) if self._uploader else self._spool.is_empty()
        except KeyboardInterrupt:  # the operator does not want to wait now, nor at the process's end
            _logger.warning("closing was interrupted; %s", self.what_stays)
            _stop_threads(self._uploader, self._spool, 0.0)
            raise
        self._all_delivered = drained and completed
        if self._announcer is not None:
            self._announcer.close()
        _stop_threads(self._uploader, self._spool, max(0.5, deadline - time.monotonic()))
        return self._all_delivered

    @property
    def what_stays(self) -> str:
        """Where the readings that are not delivered are, and who delivers them, in words for a terminal."""
        upload = f"atomscale-bluesky upload{self._spool_option}"
        who = f"the next session or `{upload}`"
        if self.settings.uploader == "process":
            who = "the uploader's process"
        elif self.settings.uploader == "none":
            who = f"the service `{upload} --follow`"
        return f"readings that are not delivered stay in {self._spool.path}, and {who} sends them"

    def settle_open_runs(self, folder: Path | None = None) -> bool:
        """Complete the runs whose stop document has not come, or only the one in `folder`, as interrupted.

        Returns:
            False if it is called from within a document: then it is done right after that document.
        """
        self._flush()
        return self._recorder.complete_open_runs(folder)

    def step_back(self) -> None:
        """Leave runs to a younger callback of this process, with the same spool and account, that gets them too."""
        self._let_younger_first(closed=self._closed)

    def _let_younger_first(self, *, closed: bool) -> None:
        """From now on, put start documents aside. Those that were put aside before stay aside."""
        if isinstance(self._take, YoungerFirst):
            self._take.closed = closed
        else:
            self._take = YoungerFirst(self._recorder.take, closed=closed, spool_option=self._spool_option)

    def _flush(self) -> None:
        """Take the start documents that were put aside to let a younger callback go first."""
        if isinstance(self._take, YoungerFirst):
            self._take.flush()

    # ---- process ---------------------------------------------------------------------------------------------------

    def _make_uploader(self) -> Deliverer | None:
        place = self.settings.uploader
        if self.settings.offline or not (self.settings.api_key or place == "none"):
            why = "offline by setting" if self.settings.offline else "no API key (ATOMSCALE_API_KEY)"
            _logger.warning(
                "%s: readings are spooled in %s, and a later session that may send delivers them", why, self._spool.path
            )
            return None
        # A weak reference: the uploader's threads must not keep a callback alive that nothing else refers to.
        this = weakref.ref(self)

        def complete_run(folder: Path) -> None:
            callback = this()
            if callback is not None:
                callback.settle_open_runs(folder)

        if place == "thread":
            from .delivery.uploader import Uploader  # a third of the package, which other sessions do not need

            return Uploader(self._spool, self.settings, complete_run=complete_run)
        from .delivery.uploader_elsewhere import UploaderElsewhere  # takes a while, and most sessions have a thread

        return UploaderElsewhere(self._spool, self.settings, start=place == "process", complete_run=complete_run)

    def _make_announcer(self) -> Announcer | None:
        choice = self.settings.announce
        if choice == "off" or (choice == "auto" and not has_operator()):
            return None
        return Announcer(self._spool, self.settings, self._uploader)

    def after_fork_in_child(self) -> None:
        """Forget the parent's runs and threads, which belong to the parent.

        A child that gets documents has its own runs.
        """
        self._watch = SpoolStatus(self._spool)
        self._recorder.after_fork_in_child()
        if isinstance(self._take, YoungerFirst):
            self._take = YoungerFirst(self._recorder.take, closed=self._closed, spool_option=self._spool_option)
        if self._uploader:
            self._uploader.after_fork_in_child()
        self._uploader = self._announcer = None


def _stop_threads(uploader: Deliverer | None, spool: Spool, timeout_s: float) -> None:
    if uploader is not None:
        uploader.stop(timeout_s)
    spool.writers.stop_threads(timeout_s)


def _retire(uploader: Deliverer | None, announcer: Announcer | None, spool: Spool) -> None:
    spool.writers.retire()
    if announcer is not None:
        announcer.retire()
    if uploader is not None and uploader.running:
        uploader.retire()
