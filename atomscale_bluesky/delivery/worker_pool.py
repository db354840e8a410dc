"""The threads that send: each takes one task at a time, performs it over a connection of its own, and reports.

They decide nothing and know nothing of runs. Bounded: at most as many threads as `permit` allows, started as they are
needed. If fewer are permitted later, the others rest, with their connections open. Further tasks lie ready, so that no
thread has to wait for the deciding thread between one task and the next.
A task that no thread has begun can be taken back. After a task that failed, its thread begins no other before the
deciding thread has seen the failure.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from ..api.client import Client
from ..api.clock import measure
from ..api.connection import Traffic
from ..settings import Settings
from ..spool.gil_yield import GilYield
from .run_delivery import RunDelivery
from .task_runner import Outcome, perform
from .tasks.work import ServerFacts
from .tracing import Tracing
from .unfinished_tasks import Task

# How often the server's clock is measured for `status`: NTP corrects a host's clock within minutes.
CLOCK_INTERVAL_S = 3600.0
# How long an exchange with it may take: the thread's next task waits, and a slower one would tell little.
CLOCK_LIMIT_S = 2.0


class Report(NamedTuple):
    """The message that a worker is done with a task of a run."""

    delivery: RunDelivery
    outcome: Outcome
    traffic: Traffic  # of this task


class _Rest:
    """The message to one thread to wait until it is woken."""


class WorkerPool:
    """The threads that send.

    Args:
        settings: Endpoint, key and limits.
        server_facts: What is known about the server, shared by all runs.
        report: Called in a worker's thread with a `Report` for each task, and now and then with a `ClockReading`.
        gil_yield: Makes way for a plan's thread.
    """

    def __init__(
        self,
        settings: Settings,
        server_facts: ServerFacts,
        report: Callable[[object], None],
        gil_yield: GilYield | None = None,
    ) -> None:
        self.in_flight = 0  # queued, and not noted as returned; counted by the deciding thread alone
        self._settings = settings
        self._server_facts = server_facts
        self._report = report
        self._gil_yield = gil_yield or GilYield()
        self._may_work = threading.Semaphore(0)  # for workers that have reported a failure
        self._tasks: queue.SimpleQueue[tuple[RunDelivery, Task] | _Rest | None] = queue.SimpleQueue()
        self._permitted = 1
        self._resting = 0  # threads that rest, or will when they have done the tasks that were queued before
        self._wake = threading.Semaphore(0)  # for threads that rest
        self._threads: list[threading.Thread] = []
        self._clients: list[Client] = []  # one per thread
        self._measuring: set[threading.Thread] = set()  # those that measure the clock
        self._ending = False

    def permit(self, number: int) -> None:
        """Permit up to `number` threads to work from now on. Returns at once.

        To be called every second or so: if the system refused a thread that tasks wait for, it is asked again.
        """
        self._permitted = number
        while self._working_threads > number:
            self._resting += 1
            self._tasks.put(_Rest())
        self._use_another_thread()

    def queue_task(self, delivery: RunDelivery, task: Task) -> None:
        """Queue a task. Returns at once."""
        self.in_flight += 1
        self._tasks.put((delivery, task))
        self._use_another_thread()

    def note_returned(self) -> None:
        """Note that a task's report was received."""
        self.in_flight -= 1

    def resume_failed(self) -> None:
        """Let a worker that reported a failure begin another task."""
        self._may_work.release()

    def take_back_tasks(self) -> list[tuple[RunDelivery, Task]]:
        """Return the tasks that no thread has begun. None of them will be."""
        found: list[tuple[RunDelivery, Task]] = []
        others: list[_Rest | None] = []
        with suppress(queue.Empty):
            while True:
                work = self._tasks.get_nowait()
                if isinstance(work, tuple):
                    found.append(work)
                else:
                    others.append(work)
        for work in others:
            self._tasks.put(work)
        self.in_flight -= len(found)
        return found

    def start_thread(self) -> None:
        """Start another thread, if the system allows it."""
        thread = threading.Thread(target=self._work_loop, name=f"atomscale-sender-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or there are too many threads: the others go on
            return
        self._threads.append(thread)

    def cut_if_late(self) -> None:
        """Break off requests that are past their time limit. To be called every second or so."""
        for client in self._clients:
            client.connection.cut_if_late()

    def end_threads(self) -> None:
        """Let every thread end after its present task."""
        self._ending = True
        for _ in self._threads:
            self._tasks.put(None)
            self._may_work.release()
            self._wake.release()

    @property
    def is_own_thread(self) -> bool:
        """Return True in one of these threads."""
        return threading.current_thread() in self._threads

    def join(self, timeout_s: float) -> bool:
        """Wait for up to `timeout_s` until all threads have ended. Return True if they have.

        One that measures the clock has nothing more to send, and ends by itself.
        """
        deadline = time.monotonic() + timeout_s
        threads = [thread for thread in self._threads if thread not in self._measuring]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    @property
    def _working_threads(self) -> int:
        return len(self._threads) - self._resting

    def _use_another_thread(self) -> None:
        """Wake or start a thread if there are fewer than are permitted and have a task."""
        if self._working_threads < min(self.in_flight, self._permitted):
            if self._resting:
                self._resting -= 1
                self._wake.release()
            else:
                self.start_thread()

    def _work_loop(self) -> None:
        client = Client(self._settings, make_way=self._gil_yield.make_way)
        self._clients.append(client)
        tracing = Tracing()
        try:
            while (work := self._tasks.get()) is not None:
                if isinstance(work, _Rest):
                    self._wake.acquire()
                    continue
                delivery, task = work
                before = client.connection.traffic
                # If the run was released meanwhile, another uploader may have begun the same.
                span = None if delivery.released else tracing.begin(delivery.run_uid, task)
                outcome = Outcome(task) if delivery.released else perform(client, task, self._server_facts)
                traffic = client.connection.traffic.since(before)
                tracing.end(span, outcome, traffic)
                self._report(Report(delivery, outcome, traffic))
                if outcome.error is None:
                    self._measure_clock(client)
                else:
                    self._may_work.acquire()
        finally:
            client.close()

    def _measure_clock(self, client: Client) -> None:
        """Measure how far this host's clock is off, once an hour. A failure is ignored."""
        now = time.monotonic()
        if self._ending or now - self._server_facts.clock_measured < CLOCK_INTERVAL_S:
            return
        self._server_facts.clock_measured = now
        self._measuring.add(threading.current_thread())
        with suppress(Exception):
            self._report(measure(client, CLOCK_LIMIT_S))
        self._measuring.discard(threading.current_thread())
