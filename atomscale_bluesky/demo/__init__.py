"""The demo: a simulated growth is streamed to a local server, through an outage, and compared point by point.

`run_demo` is the whole story: it starts a local server in a process of its own, runs a RunEngine with a simulated
chamber and an `AtomscaleCallback`, makes the server unreachable for some seconds in the middle, reads everything back
through the API and says whether every point arrived as it was emitted. How it looks is the business of whoever hands
in a `Display`; `draw` makes the picture. Everything that was started is ended, also on Ctrl-C.
"""

from __future__ import annotations

from ..checks.comparison import Series, joined
from .emitted import Comparison, Emitted, compare
from .story import Choices, Display, Moment, Outcome, run_demo

__all__ = [
    "Choices",
    "Comparison",
    "Display",
    "Emitted",
    "Moment",
    "Outcome",
    "Series",
    "compare",
    "joined",
    "run_demo",
]
