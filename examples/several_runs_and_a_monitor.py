"""Several runs in a session, and a pressure that is monitored during each of them.

    export ATOMSCALE_API_KEY=...
    python examples/several_runs_and_a_monitor.py

A run's readings go into its metrology stream. What is monitored has times of its own, so it gets a metrology stream of
its own beside it.
"""

from bluesky import RunEngine
from bluesky.plans import count
from bluesky.preprocessors import SupplementalData

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.sim import SimulatedChamber

RE = RunEngine({"synth_source_id": 42})

with AtomscaleCallback() as callback, SimulatedChamber(speed=60.0) as chamber:
    RE.subscribe(callback)
    RE.preprocessors.append(SupplementalData(monitors=[chamber.pressure]))

    for substrate_c in (450.0, 500.0, 550.0):
        chamber.substrate.set(substrate_c)
        RE(count([chamber.substrate], num=60, delay=0.01), substrate_c=substrate_c)

    print("delivered" if callback.drain(timeout_s=30.0) else f"still waiting: {callback.status().points.waiting}")
