"""The spool's runs in, everything that was accepted at Atomscale out; owns the threads and the one retry loop.

One thread, the pump, owns every delivery: it reads the journals on, cuts, writes the ledgers and decides what is tried
when. Up to `max_connections` workers do nothing but send one task each and report what came of it. They talk through
queues, so there is no lock, and the RunEngine's thread can wait for nothing here: `wake` and `add` put a message down.

Nothing is given up: a failure that can clear is tried again without end, with a pause that all runs share, doubled
from failure to failure and cut by chance; `Retry-After` is obeyed up to a limit. While nothing succeeds one request at
a time asks whether things are well again. A wrong key makes everything wait, slowly and loudly.

Bounded: as many chunks in memory as there are connections and failed attempts of at most `MAX_ACTIVE` runs.
"""

from __future__ import annotations

import logging
import queue
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .client import Client
from .delivery import Delivery
from .errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError, SpoolError
from .pause import Pause
from .sender import Knowledge, Outcome, perform
from .settings import Settings
from .spool import Spool, read_header
from .tasks import Kind, Task
from .wire import FAMILIES, is_about_the_route

_logger = logging.getLogger(__name__)

# Runs delivered at the same time; more wait in the spool for their turn.
MAX_ACTIVE = 64
# How often the journals of runs are looked at without having been asked to: for points of other processes.
POLL_S = 0.5
# How often the spool is searched for runs that nobody delivers, and for writers that are gone.
SCAN_S = 2.0
# A finished run's files are closed by their writer a moment after its stop.
FINISH_S = 0.02

# After how long the same trouble is said again.
NAG_S = (60.0, 300.0, 900.0, 3600.0)


T = TypeVar("T")


class Uploader:
    """Delivers the runs of a spool to the settings' endpoint.

    Args:
        spool: Whose runs; several uploaders may share one, each run has one deliverer.
        settings: Endpoint, key and limits.
        adopt: Whether to take over runs that nobody delivers.
        settle: Has the writer in this process complete the run in a folder whose stop document never came.
        now, monotonic, jitter: The clocks and the chance that tests hand in.
    """

    def __init__(
        self,
        spool: Spool,
        settings: Settings,
        *,
        adopt: bool = True,
        settle: Callable[[Path], None] = lambda folder: None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._spool = spool
        self._settings = settings
        self._adopt = adopt
        self._settle = settle
        self._now = now
        self._monotonic = monotonic
        self._pause = Pause(jitter)
        self._knowledge = Knowledge(None if settings.api == "auto" else settings.api)
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._tasks: queue.SimpleQueue[tuple[Delivery, Task] | None] = queue.SimpleQueue()
        self._deliveries: dict[Path, Delivery] = {}
        self._turn: deque[Path] = deque()  # whose task comes next
        self._own: set[Path] = set()  # runs whose writer is in this process
        self._foreign: set[Path] = set()  # runs for another endpoint, said once
        self._troubled: set[Path] = set()  # runs let go of until a later scan: not drained
        self._workers: list[threading.Thread] = []
        self._clients: list[Client] = []  # one per worker
        self._in_flight = 0
        self._next_scan = 0.0
        self._more_runs = False  # the spool holds more than are delivered at a time
        self._retired = False
        self._succeeded_at = 0.0
        self._trouble_since: float | None = None
        self._nags = 0
        self._next_nag = 0.0
        self._drains: list[Drain] = []
        self._thread: threading.Thread | None = None
        self.last_error: str | None = None

    # ---- from any thread -------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the pump's thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start delivering; idempotent until `stop`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="atomscale-uploader", daemon=True)
            self._thread.start()
            self._hire()  # at the interpreter's exit, when the last chunks leave, no thread starts any more

    def add(self, folder: Path) -> None:
        """A run of this process begins in `folder`; does not wait."""
        self._inbox.put(_Added(folder))

    def wake(self) -> None:
        """A journal has grown by something worth a look; does not wait."""
        self._inbox.put(None)

    def stopped(self, folder: Path) -> None:
        """The writer in this process is done with the run; does not wait."""
        self._inbox.put(_WriterGone(folder))

    def retire(self) -> None:
        """The callback is gone: complete what it left, then end. May be called by the garbage collector."""
        self._inbox.put(_RETIRE)

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing can move any more.

        Returns:
            Whether every stopped run is finalized, and every full chunk of the others confirmed; False at the time-out
            too, and at once when what is left waits for a person.
        """
        drain = self.ask_whether_drained()
        if drain is None:
            return False
        if not drain.answered.wait(timeout_s):
            drain.given_up = True
        return drain.answer is True

    def ask_whether_drained(self) -> Drain | None:
        """Ask what `drain` waits for and go on; None if the uploader does not run."""
        if not self.running:
            return None
        drain = Drain()
        self._inbox.put(drain)
        return drain

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Stop after the requests under way; True if the threads ended in time. What waits stays spooled."""
        if self._thread is None:
            return True
        deadline = self._monotonic() + timeout_s
        self._inbox.put(_STOP)
        self._thread.join(timeout_s)
        for worker in self._workers:
            worker.join(max(0.0, deadline - self._monotonic()))
        return not any(thread.is_alive() for thread in [self._thread, *self._workers])

    def close_at_exit(self) -> None:
        """Drain and stop at the interpreter's exit, within `exit_timeout_s`; a terminal is told if it takes long."""
        limit_s = self._settings.exit_timeout_s
        soon_s = min(0.5, limit_s)
        if self.running and not self.drain(soon_s) and limit_s > soon_s:
            if sys.stderr is not None and sys.stderr.isatty():
                sys.stderr.write(f"atomscale: up to {limit_s:g} s for what is under way; the rest stays spooled\n")
            self.drain(limit_s - soon_s)
        self.stop(0.5)

    # ---- the pump --------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while self._step():
                pass
        finally:
            for _ in self._workers:
                self._tasks.put(None)
            for delivery in self._deliveries.values():
                delivery.close()
            self._answer_all(False)

    def _step(self) -> bool:
        """Take the messages that are there, hand out what can be done, and wait for the next; False to end."""
        now = self._monotonic()
        for client in self._clients:
            client.cut_if_late()
        if self._adopt and now >= self._next_scan:
            self._scan()
            self._next_scan = self._monotonic() + SCAN_S
        busy = self._hand_out()
        self._finish_runs()
        self._start_again_where_due()
        can_move = self._can_move(busy)
        self._answer_drains(can_move)
        if self._retired and not can_move:
            return False
        try:
            message = self._inbox.get(timeout=self._wait_s(busy))
            while True:
                if message is _STOP:
                    return False
                self._receive(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _receive(self, message: object) -> None:
        match message:
            case _Done():
                self._in_flight -= 1
                self._guarded(message.delivery, lambda: self._came_back(message.delivery, message.outcome))
            case _Added():
                self._own.add(message.folder)
                self._claim(message.folder)
            case _Retire():
                self._retired = True
                self._own.clear()
                self._spool.close_writers()
                for delivery in list(self._deliveries.values()):
                    self._guarded(delivery, delivery.settle_if_interrupted)
            case _WriterGone():
                self._own.discard(message.folder)
            case Drain():
                self._drains.append(message)
            case _:
                pass

    def _hand_out(self) -> bool:
        """Give tasks to workers while there are tasks and workers; whether anything is under way or may be at once."""
        now = self._monotonic()
        limit = self._settings.max_connections if not self._pause.failures else 1
        idle_turns = 0
        while self._turn and self._in_flight < limit and idle_turns < len(self._turn) and self._pause.over(now):
            folder = self._turn[0]
            self._turn.rotate(-1)
            delivery = self._deliveries[folder]
            task = self._guarded(delivery, lambda delivery=delivery: delivery.next_task(now))
            if task is None:
                idle_turns += 1
                continue
            idle_turns = 0
            self._send(delivery, task)
        return self._in_flight > 0 or any(delivery.cutting.more_to_read for delivery in self._deliveries.values())

    def _send(self, delivery: Delivery, task: Task) -> None:
        if task.kind is Kind.INITIALIZE and not task.family:
            family = self._knowledge.family or FAMILIES[0]
            if self._guarded(delivery, lambda: delivery.about_to_initialize(task, family) or True) is None:
                return
        self._in_flight += 1
        self._tasks.put((delivery, task))
        if len(self._workers) < min(self._in_flight, self._settings.max_connections):
            self._hire()

    def _wait_s(self, busy: bool) -> float:
        """How long nothing needs to be done unless a message comes."""
        now = self._monotonic()
        if not self._pause.over(now):
            return max(0.0, min(self._pause.until - now, POLL_S))
        if any(delivery.cutting.more_to_read for delivery in self._deliveries.values()):
            return 0.0
        times = [POLL_S]
        times += [due - now for delivery in self._deliveries.values() if (due := delivery.due()) is not None]
        if not busy and any(delivery.finished for delivery in self._deliveries.values()):
            times.append(FINISH_S)
        return max(0.0, min(times))

    def _finish_runs(self) -> None:
        for folder, delivery in list(self._deliveries.items()):
            if delivery.finished and delivery.in_flight == 0 and self._guarded(delivery, delivery.finish):
                self._forget(folder)

    def _start_again_where_due(self) -> None:
        for folder, delivery in list(self._deliveries.items()):
            if delivery.to_start_again:
                delivery.close()
                del self._deliveries[folder]
                self._turn.remove(folder)
                self._claim(folder)
                self.wake()

    def _can_move(self, busy: bool) -> bool:
        """Whether anything will change without a new document or a person."""
        if busy or self._more_runs or not self._pause.over(self._monotonic()):
            return True
        return any(
            delivery.in_flight or delivery.failed or delivery.finished or not delivery.cutting.at_end
            for delivery in self._deliveries.values()
        )

    def _answer_drains(self, can_move: bool) -> None:
        if can_move:
            self._drains = [drain for drain in self._drains if not drain.given_up]
            return
        left = any(
            delivery.stopped or delivery.parked or any(s.parked or s.refused for s in delivery.state.streams.values())
            for delivery in self._deliveries.values()
        )
        self._answer_all(not (left or self._troubled))

    def _answer_all(self, answer: bool) -> None:
        for drain in self._drains:
            drain.reply(answer)
        self._drains = []

    # ---- runs ------------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        """Take over runs that nobody delivers, and settle those whose writer is gone."""
        for folder, delivery in list(self._deliveries.items()):
            self._guarded(delivery, delivery.obey)
            if delivery.to_settle and folder in self._own:
                self._settle(folder)
            if folder not in self._own and not delivery.stopped and folder in self._deliveries:
                self._guarded(delivery, delivery.settle_if_interrupted)
        try:
            folders = self._spool.run_folders()
        except OSError as error:
            _logger.warning("spool %s cannot be read: %s", self._spool.path, error)
            return
        self._more_runs = False
        self._troubled.intersection_update(folders)
        for folder in folders:
            if folder in self._deliveries:
                continue
            if len(self._deliveries) >= MAX_ACTIVE:
                self._more_runs = True  # looked at as soon as one is finished
                return
            self._claim(folder)

    def _claim(self, folder: Path) -> None:
        if folder in self._deliveries:
            return
        try:
            header = read_header(folder)
            if header is not None and header.endpoint != self._settings.endpoint:
                if folder not in self._foreign:
                    self._foreign.add(folder)
                    _logger.warning(
                        "run %s was spooled for %s and waits for an uploader with that endpoint",
                        header.run_uid, header.endpoint,
                    )  # fmt: skip
                return
            claim = self._spool.claim(folder)
            if claim is None:
                return
            try:
                delivery = Delivery(claim, now=self._now)
                delivery.obey()
                if folder not in self._own:
                    _logger.info("run %s found in the spool; its delivery goes on", claim.header.run_uid)
                    delivery.settle_if_interrupted()
            except BaseException:
                claim.close()  # tried again from scan to scan, so nothing may stay open
                raise
        except (SpoolError, OSError) as error:
            self._trouble(folder, error)
            return
        self._troubled.discard(folder)
        self._deliveries[folder] = delivery
        self._turn.append(folder)

    def _forget(self, folder: Path) -> None:
        del self._deliveries[folder]
        self._turn.remove(folder)
        self._own.discard(folder)
        if self._more_runs:
            self._next_scan = 0.0

    def _guarded(self, delivery: Delivery, step: Callable[[], T]) -> T | None:
        """Take a step of one run; if it cannot go on, let go of it: a later scan starts again from its files."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - one run's files, or a mistake of ours, must not stop all the others
            folder = delivery.claim.folder
            self._trouble(folder, error)
            if folder in self._deliveries:
                delivery.close()
                self._forget(folder)
            return None

    def _trouble(self, folder: Path, error: Exception) -> None:
        self.last_error = str(error)
        self._troubled.add(folder)
        if folder not in self._foreign:
            self._foreign.add(folder)
            expected = isinstance(error, OSError)  # a SpoolError is one
            _logger.error("run in %s cannot be delivered now, it is kept: %s", folder, error, exc_info=not expected)

    # ---- outcomes --------------------------------------------------------------------------------------------------

    def _came_back(self, delivery: Delivery, outcome: Outcome) -> None:
        task, error = outcome.task, outcome.error
        if self._deliveries.get(delivery.claim.folder) is not delivery:
            return  # let go of meanwhile; whoever goes on with it asks again
        if isinstance(error, ApiRefusedError):
            self._answered()
            self._refused(delivery, task, error)
        elif error is not None:
            self._failed(delivery, outcome, error)
        else:
            self._answered()
            match task.kind:
                case Kind.INITIALIZE:
                    self._knowledge.family = self._knowledge.family or task.family
                    delivery.initialized(task, outcome.data_id, task.family)
                    _logger.info("metrology stream %r is %s", task.label, outcome.data_id)
                case Kind.PUSH:
                    self._pushed(delivery, outcome)
                case Kind.READ_BACK:
                    delivery.read_back(task, outcome.points)
                case Kind.FINALIZE:
                    delivery.finalized(task)

    def _pushed(self, delivery: Delivery, outcome: Outcome) -> None:
        task = outcome.task
        too_large = outcome.refused and all(error.status == 413 for error in outcome.refused.values())
        if outcome.closed:
            delivery.end_stream(task, "closed by the server")
        elif too_large and not outcome.confirmed and task.points_per_chunk > 1:
            delivery.end_stream(task, "too large", max(1, task.points_per_chunk // 2))
        else:
            delivery.pushed(task, outcome.confirmed, outcome.refused)

    def _refused(self, delivery: Delivery, task: Task, error: ApiRefusedError) -> None:
        if task.kind is Kind.INITIALIZE and self._knowledge.family is None:
            routeless = error.status in {404, 405} and is_about_the_route(error.detail, task.links)
            following = FAMILIES[FAMILIES.index(task.family) + 1 :] if routeless else ()
            if following:
                task.refusal = str(error)
                delivery.about_to_initialize(task, following[0])
                task.may_exist = False
                delivery.failed_attempt(task, self._monotonic(), error)
                return
            if task.family != FAMILIES[0]:
                delivery.about_to_initialize(task, FAMILIES[0])  # what a person mends begins from the beginning
        if task.kind is Kind.READ_BACK:
            delivery.read_back(task, {})  # it cannot be read, so nothing of it counts as there
        else:
            delivery.park(task, f"{task.refusal}; {error}" if task.refusal else str(error))

    def _failed(self, delivery: Delivery, outcome: Outcome, error: ApiError) -> None:
        now = self._monotonic()
        task = outcome.task
        if task.kind is Kind.INITIALIZE and not (
            isinstance(error, ApiKeyError)
            or (isinstance(error, ApiUnavailableError) and not error.may_have_been_applied)
        ):
            task.may_exist = True
        if error.status == 403:
            if task.forbidden_at is not None and self._succeeded_at > task.forbidden_at:
                delivery.park(task, f"forbidden, while others are taken: {error}")
                return
            task.forbidden_at = task.forbidden_at or now
        not_before = self._pause.failed(now, error)
        _logger.debug("attempt %d to %s failed: %s", task.attempts + 1, task, error)
        delivery.failed_attempt(task, not_before, error, confirmed=outcome.confirmed)
        self._nag(now, error)

    def _nag(self, now: float, error: ApiError) -> None:
        """Say that data wait, once, and again at growing intervals."""
        self.last_error = str(error)
        if self._trouble_since is None:
            self._trouble_since, self._nags, self._next_nag = now, 0, now
        if now < self._next_nag:
            return
        advice = "check the API key" if isinstance(error, ApiKeyError) else "it is tried again until it works"
        _logger.warning(
            "Atomscale at %s does not take data (for %.0f s now); readings are kept in %s, %s: %s",
            self._settings.endpoint, now - self._trouble_since, self._spool.path, advice, error,
        )  # fmt: skip
        self._next_nag = now + NAG_S[min(self._nags, len(NAG_S) - 1)]
        self._nags += 1

    def _answered(self) -> None:
        self._succeeded_at = self._monotonic()
        self._pause.succeeded()
        if self._trouble_since is not None:
            _logger.info("Atomscale at %s takes data again", self._settings.endpoint)
            self._trouble_since = None

    # ---- the workers -----------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        worker = threading.Thread(target=self._work, name=f"atomscale-sender-{len(self._workers)}", daemon=True)
        try:
            worker.start()
        except RuntimeError:  # the interpreter is ending, or there are too many threads: those that are there go on
            return
        self._workers.append(worker)

    def _work(self) -> None:
        client = Client(self._settings)
        self._clients.append(client)
        try:
            while (work := self._tasks.get()) is not None:
                delivery, task = work
                self._inbox.put(_Done(delivery, perform(client, task, self._knowledge)))
        finally:
            client.close()


class Drain:
    """Somebody waits to be told that nothing can move any more; `answer` is None until then."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.answer: bool | None = None
        self.given_up = False

    def reply(self, answer: bool) -> None:
        """Tell who waits."""
        self.answer = answer
        self.answered.set()


@dataclass(frozen=True, slots=True)
class _Done:
    delivery: Delivery
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Added:
    folder: Path


@dataclass(frozen=True, slots=True)
class _WriterGone:
    folder: Path


class _Retire:
    """Nobody writes any more."""


_STOP = object()
_RETIRE = _Retire()
