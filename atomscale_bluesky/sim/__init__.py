"""A simulated chamber for molecular beam epitaxy: ophyd devices, a recipe, and a plan that grows it.

For trying things without a machine: in tests, tutorials and the demo.

    with SimulatedChamber(speed=20.0) as chamber:
        RE(grow(chamber, QUANTUM_WELL, md={"synth_source_id": 42}))

A chamber has 21 numeric keys that behave as a grower expects: cells and heater lag behind their set points, beams
follow vapour pressures and pass only open shutters, RHEED oscillates once per monolayer, damps and recovers. With the
same seed, `speed=0` and `period_s=None`, a growth shows the same readings each time. `physics` says which parts are
physics and which are illustration. Needs bluesky and ophyd. Importing it starts nothing.

    devices  the ophyd devices, and the chamber that has them: add a device there
    physics  how they behave
    recipe   what is grown: layers and anneals
    growth   the plan
    clock    the chamber's time, which may run faster than the wall's
"""

from __future__ import annotations

from .devices import EffusionCell, Readout, Shutter, SimulatedChamber, SubstrateHeater
from .growth import grow, stand_by
from .recipe import QUANTUM_WELL, QUICK, Anneal, Layer, Recipe

__all__ = [
    "QUANTUM_WELL",
    "QUICK",
    "Anneal",
    "EffusionCell",
    "Layer",
    "Readout",
    "Recipe",
    "Shutter",
    "SimulatedChamber",
    "SubstrateHeater",
    "grow",
    "stand_by",
]
