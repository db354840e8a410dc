"""Prints a line when a run begins, and another when it is delivered or has to wait.

So the operator sees what a run is called in Atomscale, and what happened to it. The lines are made of the
run's files, in a thread of their own. Neither the plan nor the uploader waits for a terminal: a blocked terminal
holds up this thread and nothing else, and `close` waits for the thread for a second at most.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..documents.run_files import RunListener
from ..errors import SpoolError
from ..model.labels import join_names
from ..model.text import safe
from ..model.uids import shown_uid
from ..settings import Settings, spool_option
from ..spool.gil_yield import GilYield
from ..spool.journal_format import Header
from ..spool.ledger import LedgerReader
from ..spool.orders import Orders, endpoint_of
from ..spool.run_reader import LEDGER, RunReader, read_header
from ..spool.run_writer import RunWriter
from ..spool.spool import Spool
from ..status.account import Account
from ..status.commands import with_option
from ..status.outage import NEW_KEY, key_for_upload, read_outage
from ..status.run_status import RunStatus, status_of
from ..status.run_summary import left_out_by_reason, was_discarded
from ..status.spool_status import bad_ending
from .prompt import as_line
from .terminal import is_terminal

# How long the first line waits for the stream's name, which the process that delivers the run gives it.
NAME_PATIENCE_S = 2.0
# After how long a stopped run that is not delivered is reported as waiting.
PATIENCE_S = 10.0
# How often the files of runs that begin or end are read, and those of runs that were reported as waiting.
POLL_S, POLL_WAITING_S = 0.1, 1.0
# How many waiting runs are followed until they are delivered. Nothing more is printed of older ones.
MAX_WAITING_FOLLOWED = 100
# How many runs that earlier sessions have left are followed, the newest ones. Their end alone is reported.
MAX_EARLIER_RUNS = 10
# How often the files of a run may be unreadable before nothing more is printed of it.
MAX_FAILURES = 20
# How long `close` waits for the last lines.
CLOSE_PATIENCE_S = 1.0


def has_operator() -> bool:
    """Return True if an operator sees what this process prints: in a notebook, or if standard error is a terminal."""
    return _in_notebook() or is_terminal()


class Announcer:
    """Announces the runs of one callback. Passes each notice of the recorder on to the listener that delivers.

    Args:
        spool: The callback's.
        settings: Its settings.
        listener: Delivers the runs in this process. None if nothing is sent.
    """

    def __init__(self, spool: Spool, settings: Settings, listener: RunListener | None) -> None:
        self._spool = spool
        self._settings = settings
        self._option = spool_option(settings)
        self._listener = listener
        self._inbox: queue.SimpleQueue[tuple[str, Path | None]] = queue.SimpleQueue()
        self._runs: dict[Path, _FollowedRun] = self._runs_of_earlier_sessions() if listener is not None else {}
        self._thread = threading.Thread(target=self._loop, name="atomscale-announcer", daemon=True)
        self._thread.start()

    # ---- what a recorder uses; nothing here waits -------------------------------------------------------------------

    @property
    def delivers_new_runs(self) -> bool:
        """Return True if the listener behind it takes the lock of a run that begins now."""
        return self._listener is not None and self._listener.delivers_new_runs

    def add(self, writer: RunWriter) -> None:
        """Note that a run begins."""
        if self._listener is not None:
            self._listener.add(writer)
        self._inbox.put(("begun", writer.folder))

    def wake(self, folder: Any = None) -> None:
        """Note that a journal has new lines that can be sent."""
        if self._listener is not None:
            self._listener.wake(folder)

    def writer_done(self, folder: Any) -> None:
        """Note that the writer of a run has finished."""
        if self._listener is not None:
            self._listener.writer_done(folder)
        self._inbox.put(("stopped", folder))

    def retire(self) -> None:
        """Print the last lines and end. Does not wait. May be called by the garbage collector."""
        self._inbox.put(("close", None))

    def close(self) -> None:
        """Print the last lines and end. Waits for a second at most. A second call does nothing."""
        self.retire()
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_PATIENCE_S)

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                what, folder = self._inbox.get(timeout=self._wait_s())
                if folder is None:
                    break
                run = self._runs.setdefault(folder, _FollowedRun(folder, time.monotonic()))
                if what == "stopped":
                    run.stopped_at = time.monotonic()
            self._poll_all(last=False)
        self._poll_all(last=True)

    def _wait_s(self) -> float | None:
        """Return for how long nothing has to be polled unless a message comes; None if no run is followed."""
        runs = self._runs.values()
        if any(run.has_news_soon for run in runs):
            return POLL_S
        return POLL_WAITING_S if any(run.reported_waiting or not run.reported_begun for run in runs) else None

    def _poll_all(self, *, last: bool) -> None:
        for run in list(self._runs.values()):
            try:
                over = self._poll(run, last)
            except (OSError, SpoolError, ValueError):  # just being removed; or damaged, of which `status` tells
                run.failures += 1
                over = run.failures > MAX_FAILURES
            if over:
                self._runs.pop(run.folder, None)
        waiting = [run for run in self._runs.values() if run.reported_waiting]
        for run in waiting[:-MAX_WAITING_FOLLOWED]:
            del self._runs[run.folder]

    def _poll(self, run: _FollowedRun, last: bool) -> bool:
        """Print what is new about a run. Return True if nothing more will be printed of it."""
        now = time.monotonic()
        run.read()
        entry = None if run.folder.exists() else self._history_entry(run.folder)
        if not run.reported_begun and self._may_report_begun(run, entry, now, last=last):
            run.reported_begun = True
            _print(self._first_line(run, entry))
        if entry is not None:
            _print(delivered_line(entry, earlier=run.of_earlier_session))
            return True
        if run.stopped_at is None:
            return False
        if not run.folder.exists():  # moved away, or removed by its owner
            return now - run.stopped_at > PATIENCE_S
        overdue = last or not self._sends or run.parked or now - run.stopped_at > PATIENCE_S
        if overdue and not run.reported_waiting:
            run.reported_waiting = True
            _print(waiting_line(run.status(), self._why_waiting(run, last=last)))
        return False

    def _may_report_begun(self, run: _FollowedRun, entry: dict[str, Any] | None, now: float, *, last: bool) -> bool:
        """Return True if the run is not parked, and its stream's name is known or was waited for long enough."""
        has_name = entry or last or run.name or not self._sends or now - run.seen_at > NAME_PATIENCE_S
        was_delivered = entry is not None and not was_discarded(entry)
        return bool(has_name) and (was_delivered or not run.parked)  # a parked run goes nowhere until it is mended

    @property
    def _sends(self) -> bool:
        return self._listener is not None

    def _runs_of_earlier_sessions(self) -> dict[Path, _FollowedRun]:
        """Return the newest runs that no living process writes or delivers, which this session takes up."""
        found: dict[Path, _FollowedRun] = {}
        with contextlib.suppress(OSError):  # then less is printed
            for folder in self._spool.run_folders()[-MAX_EARLIER_RUNS:]:
                if not (self._spool.writer_alive(folder) or self._spool.uploader_alive(folder)):
                    run = found[folder] = _FollowedRun(folder, time.monotonic())
                    run.of_earlier_session = run.reported_begun = run.reported_waiting = True
                    run.stopped_at = run.seen_at
        return found

    def _history_entry(self, folder: Path) -> dict[str, Any] | None:
        """Return the history's entry of the run that was in a folder, or None if there is none."""
        return next(iter(self._spool.history.entries_with("folder", folder.name)), None)

    def _first_line(self, run: _FollowedRun, entry: dict[str, Any] | None) -> str:
        uid = run.header.run_uid if run.header else str((entry or {}).get("run_uid"))
        if not self._sends:
            return f"run {shown_uid(uid)} is kept in {self._spool.path} and not sent: {self._why_not_sent()}"
        if entry is None and not run.name and self._lacks_service(run):
            return f"run {shown_uid(uid)} is kept in {self._spool.path}: {self._no_service()}"
        streams = (entry or {}).get("streams") or [{}]
        name = run.name or streams[0].get("label") or (run.header.label if run.header else "")
        endpoint = run.endpoint or str((entry or {}).get("endpoint") or self._settings.endpoint)
        return f'run {shown_uid(uid)} goes to {safe(endpoint, 200)} as "{safe(name, 300)}"'

    def _lacks_service(self, run: _FollowedRun) -> bool:
        """Return True if only a service may deliver a run, and none does."""
        if self._settings.uploader != "none" or self._spool.uploader_alive(run.folder):
            return False
        # A service that lives has perhaps not taken up the new run yet.
        return not self._spool.is_served(run.endpoint or self._settings.endpoint)

    def _no_service(self) -> str:
        """Return why a run waits that only a service may deliver, while none runs."""
        upload = f"atomscale-bluesky upload{self._option}"
        return f"no service delivers it now: start `{upload} --follow`, or deliver once with `{upload}`"

    def _why_not_sent(self) -> str:
        if self._settings.offline:
            return "the setting `offline` is on"
        return "there is no API key (ATOMSCALE_API_KEY)"

    def _why_waiting(self, run: _FollowedRun, *, last: bool) -> str:
        """Return why a run waits, and what ends that. With `last` this session delivers nothing more."""
        if not self._sends:
            return f"{self._why_not_sent()}; a later session sends it, or `atomscale-bluesky upload{self._option}`"
        if run.parked:
            parked = with_option(safe(run.parked, 600), self._option)
            return f"parked: {parked}; `atomscale-bluesky status{self._option}` has more"
        if self._lacks_service(run):
            return self._no_service()
        outage = read_outage(self._spool.path)
        who = self._who_sends()
        if outage is not None and outage.endpoint == run.endpoint and outage.key_refused:
            leaves = last and self._settings.uploader == "thread"
            remedy = key_for_upload(self._option) if leaves else NEW_KEY
            return f"the API key is refused, {safe(outage.error, 300)}; {remedy}"
        if outage is not None and outage.endpoint == run.endpoint:
            return f"{safe(outage.error, 300)}; it is sent as soon as that is over, by {who}"
        return f"it is sent by {who}; `atomscale-bluesky status{self._option}` has more"

    def _who_sends(self) -> str:
        if self._settings.uploader == "process":
            return "the uploader's own process, also after this session has ended"
        return "the service" if self._settings.uploader == "none" else "this session or a later one"


class _FollowedRun:
    """One run that is followed."""

    def __init__(self, folder: Path, seen_at: float) -> None:
        self.folder = folder
        self.seen_at = seen_at
        self.of_earlier_session = False  # an earlier session has left it, so nothing is printed until it is delivered
        self.reported_begun = False  # its first line is printed
        self.stopped_at: float | None = None
        self.reported_waiting = False  # it was reported as waiting
        self.failures = 0
        self.header: Header | None = None
        self.name = ""  # of its first metrology stream
        self.parked: str | None = None
        self.endpoint = ""
        self._ledger = LedgerReader(folder / LEDGER)
        self._orders = Orders(folder)

    @property
    def has_news_soon(self) -> bool:
        """Return True if it has just begun or ended, and that is not reported yet."""
        begins = not (self.reported_begun or self.parked)
        return begins or (self.stopped_at is not None and not self.reported_waiting)

    def read(self) -> None:
        """Read what is new in the ledger."""
        if self.header is None and self.folder.exists():
            self.header = read_header(self.folder)
        if self.header is None:
            return
        state = self._ledger.read_on()
        self.endpoint = endpoint_of(self.header, self._orders.read_on(), self.folder)
        first = next(iter(state.streams.values()), None)
        self.name = first.opening.label if first else (state.edited and state.edited.label) or ""
        blocked = next((stream.group_parked for stream in state.streams.values() if stream.group_parked), None)
        problem = self.header.problem if state.edited is None else None
        self.parked = state.parked_reason or problem or state.unresolved or blocked

    def status(self) -> RunStatus:
        """Return its status. Reads the whole journal, and yields to the plan between two steps.

        Raises:
            SpoolError: The journal cannot be read.
        """
        account, reader, gil_yield = Account(), RunReader(self.folder), GilYield()
        gil_yield.enabled = True
        try:
            account.read_on(reader, gil_yield.worked_through)
        finally:
            reader.close()
        return status_of(account, self._ledger.state, folder=str(self.folder))


def delivered_line(entry: dict[str, Any], *, earlier: bool = False) -> str:
    """Return the line about a run that has left the spool, from its entry in the history."""
    whose = " of an earlier session" if earlier else ""
    text = f"run {shown_uid(str(entry.get('run_uid')))}{whose}{_ending(entry)}: "
    text += f"{_counted(entry.get('delivered') or 0)} delivered"
    for what in ("discarded", "lost"):
        if entry.get(what):
            text += f", {_number(entry[what])} {what}"
    if left_out := left_out_by_reason(entry):
        text += f", {_number(sum(n for n, _ in left_out.values()))} left out ({_main_reason(left_out)})"
    return f"{text}; data_id {', '.join(safe(one, 100) for one in entry.get('data_ids') or ()) or 'none'}"


def _main_reason(left_out: Mapping[str, tuple[int, Mapping[str, int]]]) -> str:
    """Return why most of the readings were left out, and of which data keys."""
    reason, (_, keys) = max(left_out.items(), key=lambda one: one[1][0])
    text = safe(reason, 100) + (f": {join_names([safe(key, 60) for key in keys], 60)}" if keys else "")
    return text if len(left_out) == 1 else f"{text}; and for other reasons"


def waiting_line(run: RunStatus, why: str) -> str:
    """Return the line about a run that has stopped and is not delivered."""
    ended = f" ({status})" if (status := "interrupted" if run.interrupted else bad_ending(run.exit_status)) else ""
    text = f"run {shown_uid(run.run_uid)}{ended}: {_counted(run.points.delivered)} delivered, "
    text += f"{_number(run.points.waiting)} wait"
    if run.points.refused:
        text += f", {_number(run.points.refused)} refused"
    return f"{text}: {why}"


def _ending(entry: dict[str, Any]) -> str:
    if entry.get("interrupted"):
        return " (interrupted)"
    status = bad_ending(str(entry.get("exit_status") or ""))
    return f" ({status})" if status else ""


def _number(count: int) -> str:
    return f"{count:,}".replace(",", " ")


def _counted(points: int) -> str:
    return f"{_number(points)} point{'' if points == 1 else 's'}"


def _in_notebook() -> bool:
    shell: Callable[[], Any] | None = getattr(builtins, "get_ipython", None)
    return shell is not None and hasattr(shell(), "kernel")


def _print(text: str) -> None:
    """Print a line where the operator sees it. Blocks as long as the terminal takes no output."""
    text = as_line(f"atomscale: {text}")
    stream = sys.stdout if _in_notebook() else sys.stderr
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if type(stream) is io.TextIOWrapper:
            # Past the stream's buffer: its lock would still be held by this thread when the interpreter ends, which
            # then cannot flush the stream.
            raw: Any = getattr(stream.buffer, "raw", stream.buffer)
            left = text.encode(stream.encoding, "backslashreplace")
            while left and (written := raw.write(left)):
                left = left[written:]
        else:  # that of IPython's prompt or of a notebook, which takes the text and prints it in a thread of its own
            stream.write(text)
            stream.flush()
