"""How long to leave the server alone after a failure: doubled from one to the next, cut by chance, obedient. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable

from ..errors import ApiError, ApiKeyError, ApiUnavailableError

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
FIRST_KEY_PAUSE_S = 5.0
LONGEST_KEY_PAUSE_S = 300.0
# What a server may ask for, in whole seconds. Less than one, or a date that is over, asks for nothing.
SHORTEST_RETRY_AFTER_S, LONGEST_RETRY_AFTER_S = 1.0, 600.0


class Pause:
    """How long to leave the server alone after failures; one for all runs."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self.failures = 0
        self.until = 0.0
        self._jitter = jitter
        self._obliged_until = 0.0  # the server named this time itself

    def failed(self, now: float, error: ApiError) -> float:
        """Count a failure; until when the request that failed should wait."""
        self.failures += 1
        first, longest = FIRST_PAUSE_S, LONGEST_PAUSE_S
        if isinstance(error, ApiKeyError):
            first, longest = FIRST_KEY_PAUSE_S, LONGEST_KEY_PAUSE_S
        delay = min(longest, first * 2.0 ** min(self.failures - 1, 20)) * (0.5 + self._jitter() / 2)
        asked = error.retry_after_s if isinstance(error, ApiUnavailableError) else None
        if asked is not None and asked >= SHORTEST_RETRY_AFTER_S:
            delay = min(asked, LONGEST_RETRY_AFTER_S)
            self._obliged_until = max(self._obliged_until, now + delay)
        self.until = max(self.until, now + delay)
        return self.until

    def succeeded(self) -> None:
        """The server answers: no need to wait, unless it asked for it."""
        self.failures = 0
        self.until = self._obliged_until

    def over(self, now: float) -> bool:
        """Whether requests may leave."""
        return now >= self.until
