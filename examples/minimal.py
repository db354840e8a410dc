"""The three lines that stream every run of a RunEngine, and a plan to see it.

    export ATOMSCALE_API_KEY=...
    python examples/minimal.py

In a terminal two lines tell what the run is called in Atomscale, and what became of it. What is still under way when
the plan has ended is delivered while Python ends.
"""

from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import det

from atomscale_bluesky import AtomscaleCallback

RE = RunEngine({"synth_source_id": 42})  # the number of your growth instrument
RE.subscribe(AtomscaleCallback())  # the key is taken from ATOMSCALE_API_KEY

RE(count([det], num=250))
