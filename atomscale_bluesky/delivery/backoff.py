"""How long to wait after a failure: longer each time, up to a limit. Pure: the deciding thread does the waiting."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable

import msgspec

from ..errors import ApiError, ApiKeyError, ApiUnavailableError

# What a server may ask for. Less than a second, or a date that is over, asks for nothing.
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 600.0


class Backoff(msgspec.Struct, frozen=True):
    """Pauses that double from one failure to the next, up to a limit."""

    first_s: float
    max_s: float

    def pause_s(self, failures_before: int) -> float:
        """Return how long to wait after a failure, of which there were `failures_before` since the last success."""
        return min(self.max_s, self.first_s * 2.0 ** min(failures_before, 20))


# After a request that was not answered, or answered by an error that can clear.
SERVER = Backoff(0.5, 30.0)
# After a refused API key: it clears when the operator acts.
KEY = Backoff(5.0, 300.0)
# After a failed link or look-up, for that task alone. Chunks may well be taken meanwhile, and each failure makes all
# tasks pause.
LINK = Backoff(0.5, 60.0)
# After a read, or a look at the catalogue, that shows less than was stored. That may take a while until it can be read.
READ = Backoff(0.5, 30.0)
# After Atomscale refused a request because something that it names does not exist. It may be created later.
MISSING = Backoff(60.0, 3600.0)
# After the process that uploads died or could not be started.
RESTART = Backoff(1.0, 60.0)
# After the files of a run could not be used. Each attempt may read the whole run.
FILES = Backoff(2.0, 300.0)


class Pause:
    """How long to send nothing after failures. One for all runs."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self.failures = 0
        self.until = 0.0
        self._jitter = jitter
        self._obliged_until = 0.0  # the server named this time itself

    def note_failure(self, now: float, error: ApiError) -> float:
        """Count a failure, and return until when the request that failed should wait.

        While a pause is on, only requests that left before it can fail. They do not lengthen it by themselves: an
        outage fails all requests under way, and one failure counts for all of them.
        """
        delay = 0.0
        if self.is_over(now) or not self.failures:
            backoff = KEY if isinstance(error, ApiKeyError) else SERVER
            delay = backoff.pause_s(self.failures) * (0.5 + self._jitter() / 2)
            self.failures += 1
        asked = error.retry_after_s if isinstance(error, ApiUnavailableError) else None
        if asked is not None and asked >= MIN_RETRY_AFTER_S:
            delay = min(asked, MAX_RETRY_AFTER_S)
            self._obliged_until = max(self._obliged_until, now + delay)
        self.until = max(self.until, now + delay)
        return self.until

    def note_success(self) -> None:
        """Note that the server answers: there is no need to wait, unless it asked for it."""
        self.failures = 0
        self.until = self._obliged_until

    def is_over(self, now: float) -> bool:
        """Return True if requests may leave."""
        return now >= self.until


class Patience:
    """When to ask again for something that did not exist: after a minute, then less and less often."""

    def __init__(self) -> None:
        self._waits: dict[Hashable, tuple[float, int]] = {}  # when to ask again, and how often that was done

    def may_ask_again(self, what: Hashable, now: float) -> bool:
        """Return True if it is time to ask again, and begin the next, longer wait. The first call begins the first."""
        at, asked = self._waits.setdefault(what, (now + MISSING.pause_s(0), 0))
        if now < at:
            return False
        self._waits[what] = (now + MISSING.pause_s(asked + 1), asked + 1)
        return True


class RunPauses:
    """When to try each run again whose files could not be used: after pauses that grow from failure to failure.

    Args:
        monotonic: Returns monotonic seconds. A test passes its own.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._pauses: dict[Hashable, tuple[float, int]] = {}  # until when, and how often it failed

    def note_failure(self, run: Hashable) -> None:
        """Begin a run's next pause. If the last failure is long past, it is the first one again."""
        now = self._monotonic()
        until, failures = self._pauses.get(run, (now, 0))
        if now - until > FILES.max_s:
            failures = 0
        self._pauses[run] = (now + FILES.pause_s(failures), failures + 1)

    def is_over(self, run: Hashable) -> bool:
        """Return True if the run may be tried."""
        until, _ = self._pauses.get(run, (-math.inf, 0))
        return self._monotonic() >= until

    def end_all(self) -> None:
        """Let every run be tried at once. The next pause after a failure is longer all the same."""
        now = self._monotonic()
        self._pauses = {run: (min(until, now), failures) for run, (until, failures) in self._pauses.items()}

    def forget(self, run: Hashable) -> None:
        """Forget a run that has left the spool."""
        self._pauses.pop(run, None)
