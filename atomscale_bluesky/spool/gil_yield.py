"""How the uploader's threads yield to the thread that runs a plan.

Python runs one thread at a time. A thread that computes yields only after the interpreter's switch interval, 5 ms by
default, and a plan's thread has to ask for its turn again after every write. So while a run is open in this process,
threads that work through a backlog sleep briefly between small steps. The sleep lasts long enough for the plan's thread
to start. A sleep of 0 does not.
"""

from __future__ import annotations

import time

# How many bytes of a journal one step may process: about 0.2 ms of work.
STEP_BYTES = 8192
# With the delay that the operating system adds, a sleep takes about 0.1 ms. Measured: a backlog then runs at a sixth of
# its speed.
REST_S = 50e-6


class GilYield:
    """Yields to other threads while `enabled` is set. One object is shared by all threads of one uploader."""

    def __init__(self) -> None:
        self.enabled = False
        self._since = 0  # bytes; several threads may miscount here, which does no harm

    def make_way(self) -> None:
        """Sleep briefly so that another thread can run, if `enabled` is set.

        Otherwise return at once.
        """
        if self.enabled:
            time.sleep(REST_S)

    def worked_through(self, size: int) -> None:
        """Count processed bytes, and yield after each step of `STEP_BYTES`."""
        self._since += size
        if self._since >= STEP_BYTES:
            self._since = 0
            self.make_way()
