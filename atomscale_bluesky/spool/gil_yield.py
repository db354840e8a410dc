"""How the uploader's threads make way for the one that runs a plan.

Python runs one thread at a time. Whoever computes gives way after the interpreter's switch interval only, 5 ms unless
somebody changes it, and a plan's thread asks for its turn again after every write. So while a run is open in this
process, those who work off a backlog rest for a moment between small steps: long enough that another thread is on its
way before they ask for their turn again, which a sleep of nothing is not.
"""

from __future__ import annotations

import time

# What one step may work through, in bytes of a journal: some 0.2 ms.
STEP_BYTES = 8192
# With what a system adds to a sleep, some 0.1 ms: a sixth of the speed of a backlog, measured.
REST_S = 50e-6


class Courtesy:
    """Makes way while `asked` to; shared by all threads of one uploader."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0  # bytes; several threads may count wrongly here, and it does not matter

    def make_way(self) -> None:
        """Let another thread go first, while asked to; else whoever works goes on, which is cheapest for all."""
        if self.asked:
            time.sleep(REST_S)

    def worked_through(self, size: int) -> None:
        """Count work, and make way after every step's worth."""
        self._since += size
        if self._since >= STEP_BYTES:
            self._since = 0
            self.make_way()
