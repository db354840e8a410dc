"""The callback's end of an uploader that is in another process: `uploader = "process"` or `"none"`.

Nothing passes between the two but the spool's files, so either may be killed at any time. With "process" a thread here
sees to it that one is there: it starts one where the operating system's lock says that nobody serves the spool, waits
longer from one that dies to the next, and passes on what it warns of. With "none" the site runs one. The API key goes
through a pipe: it is in no command line and no environment.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..errors import SpoolError
from ..model.text import plain
from ..settings import Settings
from ..spool.ledger import LedgerReader
from ..spool.locks import Bell, RunLock
from ..spool.orders import Settle, endpoint_of, read_orders
from ..spool.own_files import open_own, open_to_read, read_own
from ..spool.run_reader import LEDGER, read_header
from ..spool.run_writer import RunWriter
from ..spool.spool import Spool
from ..status.account import RunStatus
from ..status.spool_status import SpoolStatus
from . import backoff
from .drain import Drain
from .uploader_service import ALREADY_SERVED, KEY_REFUSED, LOG, Order, is_served, served_by

_logger = logging.getLogger(__name__)

# What a process says that cannot even log.
LAST_WORDS = "uploader.stderr"
# How often it is asked whether somebody serves the spool, and how often what a drain waits for.
LOOK_S = 1.0
DRAIN_LOOK_S = 0.05
# How many looks pass until every open run is looked into for an order of which nothing else tells.
LOOKS_PER_ROUND = 30
# How long a process that was started stays when its starter is gone and there is nothing to do.
IDLE_S = 30.0
# So long a process has to say that it serves; and one that lived so long was no failure.
STARTING_S = 30.0

# Whatever the plan's own folder and environment hold, the package of this process is found.
_BOOTSTRAP = (
    "import json, os, sys; line = b''\n"
    "while not line.endswith(b'\\n'): line += os.read(0, 1) or b'\\n'\n"
    "sys.path[:] = json.loads(line)\n"
    "from atomscale_bluesky.delivery.uploader_service import main; sys.exit(main())"
)


class UploaderProcess:
    """What the callback knows of an uploader in another process.

    Args:
        spool: The callback's.
        settings: Its settings; a process that is started gets the same.
        start: Whether to see to it that there is a process.
        settle: Completes the run in a folder whose stop document never came.
    """

    def __init__(
        self, spool: Spool, settings: Settings, *, start: bool, settle: Callable[[Path], None] = lambda folder: None
    ) -> None:
        self._spool = spool
        self._settings = settings
        self._start = start
        self._settle = settle
        self._watch = SpoolStatus(spool)
        self._own: set[Path] = set()  # runs that are open here
        self._ordered_at = 0  # when an order was last given, as far as it was seen
        self._looks = 0
        self._drains: list[Drain] = []
        self._ledgers: dict[Path, LedgerReader] = {}  # of the runs that a drain waits for
        self._retired = False
        self._wake = Bell()
        self._ending = threading.Event()
        self._guard = threading.Lock()  # around the process: at the interpreter's exit two threads may look after it
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting: RunLock | None = None  # held by the one of many callbacks that has started a process
        self._started_at = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._trouble = ""  # logged last
        self._log = _LogOf(settings.spool_path / LOG)

    # ---- from any thread -------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it looks after the process, and answers."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def _is_here(self) -> bool:
        """Whether its own thread asks, in which a handler of the log has called the callback."""
        return self._thread is threading.current_thread()

    def start(self) -> None:
        """Start the process if nobody serves the spool, and look after it from now on; idempotent."""
        if self._thread is None:
            self._start_process_if_due()
            self._thread = threading.Thread(target=self._loop, name="atomscale-elsewhere", daemon=True)
            self._thread.start()

    @property
    def takes_up(self) -> bool:
        """Return False: the other process takes the lock of a run."""
        return False

    def add(self, writer: RunWriter) -> None:
        """A run of this process begins; does not wait."""
        self._own.add(writer.folder)

    def wake(self, folder: Path | None = None) -> None:
        """A journal has grown: the other process looks by itself."""

    def stopped(self, folder: Path) -> None:
        """The writer in this process is done with the run; does not wait."""
        self._own.discard(folder)

    def retire(self) -> None:
        """The callback is gone: let go of what it left. May be called by the garbage collector."""
        self._retired = True

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing can move any more, as the files tell.

        Returns:
            Whether every stopped run is finalized, and every full chunk of the others confirmed; False at the time-out
            too, and at once when what is left waits for a person.
        """
        drain = None if self._is_here else self.ask_whether_drained()
        if drain is None:
            return False
        if not drain.answered.wait(timeout_s):
            drain.given_up = True
        return drain.answer is True

    def ask_whether_drained(self) -> Drain | None:
        """Ask what `drain` waits for and go on; None if nobody is there to answer."""
        if not self.running:
            return None
        drain = Drain()
        self._drains.append(drain)
        self._wake.ring()
        return drain

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Look after nothing any more; True if the thread ended in time. The other process finishes what is left."""
        self._ending.set()
        self._wake.ring()
        if self._thread is not None and not self._is_here:
            self._thread.join(timeout_s)
        return not self.running

    def close_at_exit(self) -> None:
        """What is left at the interpreter's exit is delivered by the other process; nothing is waited for."""
        if not self._ending.is_set():
            self._start_process_if_due()  # the last one may have died, and what is left shall not wait for us
        self.stop(0.5)

    def after_fork_in_child(self) -> None:
        """The process belongs to the parent; hold nothing of it."""
        if self._process is not None:
            _let_go(self._process)
        self._starting = None

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while not (self._ending.is_set() or self._retired):
                self._look()
                self._wake.wait(DRAIN_LOOK_S if self._drains else LOOK_S)
        finally:
            if self._retired:
                self._spool.writers.close_all()
            for drain in self._drains:
                drain.reply(False)
            with self._guard:
                self._starting_is_over()
                if self._process is not None:
                    _let_go(self._process)
                    self._process = None

    def _look(self) -> None:
        try:
            if self._start:
                self._start_process_if_due()
                self._log.pass_on()
            self._settle_where_ordered()
            self._answer_drains()
        except OSError as error:  # a SpoolError is one
            self._tell_trouble(error)

    def _tell_trouble(self, error: OSError) -> None:
        """Log what keeps it from looking after the process, not again while it lasts."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            _logger.warning("the uploader's process cannot be looked after now: %s", error)

    def _settle_where_ordered(self) -> None:
        ordered_at = self._spool.ordered_at()
        self._looks += 1
        if ordered_at == self._ordered_at and self._looks % LOOKS_PER_ROUND:
            return
        self._ordered_at = ordered_at
        for folder in list(self._own):
            if any(isinstance(order, Settle) for order in read_orders(folder)):
                self._settle(folder)

    def _answer_drains(self) -> None:
        self._drains = [drain for drain in self._drains if not drain.given_up]
        if not self._drains:
            return
        if any(self._is_under_way(folder) for folder in self._spool.run_folders()):
            return
        left = [run for run in self._watch.status() if self._is_ours(run)]
        moving = [run for run in left if not _waits_for_a_person(run)]
        if all(self._holds_no_full_chunk(run) for run in moving):
            answered, self._drains, self._ledgers = self._drains, [], {}
            for drain in answered:
                drain.reply(len(moving) == len(left))

    def _is_under_way(self, folder: Path) -> bool:
        """Whether a stopped run of ours will leave the spool by itself, told without reading its journal."""
        try:
            header = read_header(folder)
            if header is None or endpoint_of(folder, header) != self._settings.endpoint:
                return False
            if self._spool.writer_alive(folder):
                return False
            ledger = self._ledgers.setdefault(folder, LedgerReader(folder / LEDGER)).read_on()
        except SpoolError:
            return False
        if ledger.stuck or (header.problem and ledger.edited is None):
            return False
        return not any(stream.parked or stream.refused for stream in ledger.streams.values())

    def _is_ours(self, run: RunStatus) -> bool:
        try:
            folder = Path(run.folder)
            header = read_header(folder)
            return header is None or endpoint_of(folder, header) == self._settings.endpoint
        except SpoolError:
            return True

    def _holds_no_full_chunk(self, run: RunStatus) -> bool:
        if run.state != "running":
            return False
        header = read_header(Path(run.folder))
        full = header.points_per_chunk if header else 1
        return bool(run.data_ids) and all(counts.waiting < full for counts in run.channels.values())

    # ---- the process -----------------------------------------------------------------------------------------------

    def _start_process_if_due(self) -> None:
        with self._guard:
            try:
                self._look_after_the_process(time.monotonic())
            except OSError as error:  # a SpoolError is one
                self._tell_trouble(error)

    def _look_after_the_process(self, now: float) -> None:
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                if self._starting and (is_served(self._settings) or now - self._started_at > STARTING_S):
                    self._starting_is_over()
                return
            self._ended(self._process, code, now)
        if not self._start or now < self._not_before or is_served(self._settings):
            return
        # Of many callbacks that see the same free lock one starts a process; the others look again.
        lock = RunLock(served_by(self._settings).with_suffix(".starting"))
        if not lock.acquire():
            return
        self._starting, self._started_at = lock, now
        try:
            self._process = _started(self._settings)
        except OSError as error:
            self._failed(now, f"cannot be started: {error}")
        else:
            _logger.info("process %d uploads; it logs to %s", self._process.pid, self._log.path)

    def _ended(self, process: subprocess.Popen[bytes], code: int, now: float) -> None:
        _let_go(process)
        self._process = None
        if code == ALREADY_SERVED:
            self._starting_is_over()
        elif code == KEY_REFUSED:
            self._failed(now, "ended because the API key is refused")
        elif code != 0 or now - self._started_at < STARTING_S:
            self._failed(now, f"ended with code {code}{self._last_words()}")
        else:
            self._starting_is_over()
            self._failures = 0

    def _failed(self, now: float, what: str) -> None:
        self._starting_is_over()
        if now - self._started_at > STARTING_S:
            self._failures = 0
        pause_s = backoff.RESTART.pause_s(self._failures)
        self._failures += 1
        self._not_before = now + pause_s
        _logger.warning(
            "the uploader's process %s; readings are kept in %s, and another is started in %.0f s; see %s",
            what, self._spool.path, pause_s, self._log.path,
        )  # fmt: skip

    def _last_words(self) -> str:
        try:
            words = read_own(self._settings.spool_path / LAST_WORDS).decode(errors="replace").strip()
        except OSError:
            return ""
        return f" ({plain(words.splitlines()[-1], 500)})" if words else ""

    def _starting_is_over(self) -> None:
        if self._starting is not None:
            self._starting.release()
            self._starting = None


def _started(settings: Settings) -> subprocess.Popen[bytes]:
    """A new process that serves the settings' spool; it holds nothing of this one's but a pipe.

    Raises:
        OSError: It cannot be started.
    """
    if not sys.executable:
        raise FileNotFoundError("this program does not know its Python interpreter")
    whole = msgspec.structs.replace(
        settings,
        spool_dir=str(settings.spool_path),
        ca_bundle=None if settings.ca_bundle is None else os.path.abspath(settings.ca_bundle),
    )
    package = str(Path(__file__).parents[2])
    path = [os.path.abspath(entry) for entry in sys.path if entry]  # "" is the folder that the plan is in just now
    path += [package] * (package not in path)
    order = Order(settings=whole, idle_s=IDLE_S)
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    with open(settings.spool_path / LAST_WORDS, "wb", opener=open_own) as last_words:
        process = subprocess.Popen(
            # What it is shows in the list of processes; the order, which holds the key, does not.
            [sys.executable, "-P", "-c", _BOOTSTRAP, "atomscale-bluesky-uploader", str(settings.spool_path)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=last_words,
            cwd=settings.spool_path,
            creationflags=flags,
            start_new_session=True,  # Ctrl-C in a terminal is for the plan
        )
    if process.stdin is not None:  # it always is
        with contextlib.suppress(BrokenPipeError):  # it has died already, which is noticed soon
            # Two lines, together far below what a pipe takes at once, so this waits for nobody.
            process.stdin.write(json.dumps(path).encode() + b"\n" + msgspec.json.encode(order) + b"\n")
    return process


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe, which tells the process that nobody needs it any longer; it outlives us."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.returncode = 0  # or Python would complain that it still runs, which is what it is for


def _waits_for_a_person(run: RunStatus) -> bool:
    return run.state in {"parked", "unreadable"} or run.problem is not None or run.points.refused > 0


class _LogOf:
    """The log of the other process, of which warnings are passed on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = self._size()

    def pass_on(self) -> None:
        """Log what was warned of since the last call."""
        size = self._size()
        if size == self._offset:
            return
        if size < self._offset:
            self._offset = 0  # begun anew
        with open_to_read(self.path) as file:
            file.seek(self._offset)
            *texts, _ = file.read(65536).split(b"\n")
        self._offset += sum(len(text) + 1 for text in texts)
        for text in texts:
            parts = text.decode(errors="replace").split(" ", 3)  # date, time, level, message
            if len(parts) == 4 and parts[2] in {"WARNING", "ERROR"}:
                _logger.log(logging.getLevelName(parts[2]), "%s", plain(parts[3]))

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0
