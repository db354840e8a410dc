"""The demo: streams a simulated growth to a local server, through an outage, and compares it point by point.

`run_demo` does everything: it starts a local server in a process of its own, runs a RunEngine with a simulated chamber
and an `AtomscaleCallback`, makes the server unreachable for some seconds in the middle, reads everything back through
the API and says whether every point arrived as it was emitted. The caller passes in a `Display`, which decides how it
looks. `draw` makes the picture. Everything that was started is ended, also on Ctrl-C.

    story           the steps in order
    watcher         reads the state ten times a second, and takes the server away; display, what it shows
    emitted         what was emitted, and how it compares with what arrived
    server_process  the local server in a process of its own
    picture         draws the result
"""

from __future__ import annotations

from ..checks.comparison import Series, join_streams
from .display import Display, Moment
from .emitted import Comparison, Emitted, compare
from .story import Choices, Outcome, run_demo

__all__ = [
    "Choices",
    "Comparison",
    "Display",
    "Emitted",
    "Moment",
    "Outcome",
    "Series",
    "compare",
    "join_streams",
    "run_demo",
]
