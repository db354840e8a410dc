"""A growth that says of itself, in its metadata, what it belongs to.

    export ATOMSCALE_API_KEY=...
    python examples/growth.py

The chamber is a simulated one. Under `atomscale` stands what is meant for Atomscale; everything else stays here.
"""

from bluesky import RunEngine

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.sim import QUICK, SimulatedChamber, grow

RE = RunEngine()
callback = AtomscaleCallback()
RE.subscribe(callback)

metadata = {
    "wafer": "W1234",
    "atomscale": {
        "synth_source_id": 42,
        "stream_name": "W1234 first growth",
        "points_per_chunk": 50,
    },
}

with SimulatedChamber(speed=0.0) as chamber:
    RE(grow(chamber, QUICK, metadata, period_s=None, on_step=print))

print("All that was kept is delivered." if callback.drain(timeout_s=30.0) else callback.status())
callback.close()  # in a terminal a line says how many points are delivered, and under which data_id
