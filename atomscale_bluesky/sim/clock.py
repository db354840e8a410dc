"""The clock of the simulated chamber: advances the physics to the present, and reports when a state was reached.

Simulated time runs `speed` times as fast as real time, in steps of `TICK_S`, and jumps on demand. Each reader advances
the physics. Nothing runs while no thread waits or listens. A thread exists only while a status is unfinished or a
signal has subscribers, and ends with that or with `close()`.

Any thread may call any method. Catching up takes at most `MAX_STEPS` steps. After a longer absence the steps are
longer, which does not affect temperatures, because each step of theirs is exact.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ophyd.status import Status

from .physics import Chamber

# Short compared with everything that happens in a chamber: the fastest RHEED oscillation takes about a second.
TICK_S = 0.05
# About 100 ms of work at most.
MAX_STEPS = 5000
# How often, in real seconds, the thread checks for waiting statuses and listeners.
LOOK_PERIOD_S = 0.02

NEVER_RAN = "speed is {speed!r}, but simulated seconds per real second are a finite number, 0 or more; 1 is real time"


class SimulatedClock:
    """Advances `physics` with the time that `now` returns, `speed` times as fast.

    Args:
        physics: Advanced by this clock only.
        speed: Simulated seconds per real second. At 0 only `skip` moves the time.
        now: Returns real seconds, from an origin of its own.
    """

    def __init__(self, physics: Chamber, *, speed: float, now: Callable[[], float] = time.monotonic) -> None:
        if not (math.isfinite(speed) and speed >= 0.0):
            raise ValueError(NEVER_RAN.format(speed=speed))
        self.speed = speed
        self.tick = 0
        self.read_at = time.time()
        self._physics = physics
        self._now = now
        self._started = now()
        self._skipped_s = 0.0
        self._lock = threading.RLock()
        self._standing = False
        self._waiting: list[tuple[Callable[[], bool], Status]] = []
        self._listeners: list[Callable[[], bool]] = []
        self._thread: threading.Thread | None = None
        self._polling = False  # True while that thread will check again; otherwise it may be about to end
        self._closing = threading.Event()

    @property
    def elapsed_s(self) -> float:
        """Simulated seconds since the clock was made, as far as the physics has been advanced."""
        return self.tick * TICK_S

    def skip(self, seconds: float) -> None:
        """Let `seconds` of simulated time pass at once."""
        if not (math.isfinite(seconds) and seconds >= 0.0):
            raise ValueError(f"cannot skip {seconds!r} seconds; time goes forward, by a finite number of them")
        with self._lock:
            self._skipped_s += seconds
        self.advance()

    def advance(self) -> None:
        """Advance the physics to the present, finish the statuses whose state was reached, and notify the listeners."""
        with self._lock:
            if self._standing:
                return
            moved = self._catch_up()
            done = [status for reached, status in self._waiting if reached()]
            self._waiting = [(reached, status) for reached, status in self._waiting if status not in done]
            listeners = list(self._listeners) if moved else []
        # Outside the lock: callbacks may read, set and wait.
        for status in done:
            status.set_finished()
        for tell in listeners:
            if not tell():
                self._forget(tell)

    @contextmanager
    def one_instant(self) -> Iterator[None]:
        """Advance the physics to the present and hold it there.

        Values read inside belong to one instant. Values written inside take effect from then on.
        """
        self.advance()
        with self._lock:
            before, self._standing = self._standing, True
            try:
                yield
            finally:
                self._standing = before

    def status_when(self, reached: Callable[[], bool], *, of: Any) -> Status:
        """Return a status for the object `of` that finishes as soon as `reached()` is true; `close()` makes it fail."""
        status = Status(of)
        with self._lock:
            self._waiting.append((reached, status))
        self.advance()
        self._poll_while_needed()
        return status

    def listen(self, tell: Callable[[], bool]) -> None:
        """Call `tell` each time the physics has advanced, until it returns False. Adding it twice is harmless."""
        with self._lock:
            if tell not in self._listeners:
                self._listeners.append(tell)
        self._poll_while_needed()

    def close(self, timeout_s: float = 10.0) -> bool:
        """End the thread and fail the unfinished statuses. Return True if the thread ended in time. Idempotent.

        Time continues afterwards for readers.
        """
        self._closing.set()
        with self._lock:
            thread = self._thread
            waiting, self._waiting = self._waiting, []
            self._listeners.clear()
        for _, status in waiting:
            status.set_exception(RuntimeError("the simulated chamber was closed before this was reached"))
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def _catch_up(self) -> bool:
        """Step to the present. Return True if that took a step."""
        self.read_at = time.time()
        present_s = self._skipped_s + self.speed * (self._now() - self._started)
        # Adds a millionth of a tick, because 0.3 / 0.05 is slightly less than 6.
        behind = math.floor(present_s / TICK_S + 1e-6) - self.tick
        if behind <= 0:
            return False
        stride = math.ceil(behind / MAX_STEPS)
        while behind > 0:
            ticks = min(stride, behind)
            self._physics.step(ticks * TICK_S)
            self.tick += ticks
            behind -= ticks
        return True

    def _forget(self, tell: Callable[[], bool]) -> None:
        with self._lock:
            # Called again, because another thread may have subscribed since, and found it still listed. The call reads,
            # so the physics may advance meanwhile, and another thread may already have removed it.
            if tell in self._listeners and not tell() and tell in self._listeners:
                self._listeners.remove(tell)

    def _poll_while_needed(self) -> None:
        """Start the thread if a status or a listener waits, the time moves, and the thread does not run yet."""
        with self._lock:
            if not self._polling and self.speed > 0.0 and self._needed() and not self._closing.is_set():
                self._polling = True
                self._thread = threading.Thread(target=self._poll_loop, name="simulated chamber", daemon=True)
                self._thread.start()

    def _poll_loop(self) -> None:
        while not self._closing.wait(LOOK_PERIOD_S):
            self.advance()
            with self._lock:
                if not self._needed():
                    self._polling = False
                    return

    def _needed(self) -> bool:
        return bool(self._waiting or self._listeners)
