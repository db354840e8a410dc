"""The growth plan: a recipe on a simulated chamber, as one Bluesky run with an event stream `primary`.

However the plan ends, by failure or abort too, all shutters are closed and all set points are back at standby before
the run is closed. Only `RE.halt()`, which forbids any cleaning up, leaves the chamber as it is. A pause closes the
group III shutters (see `SimulatedChamber.pause`) and costs the film nothing, as layers are measured by their thickness.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, cast

from bluesky import Msg
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp

from .devices import ShutterState, SimulatedChamber
from .physics import MONOLAYER_NM
from .recipe import ARSENIC_CELL, QUANTUM_WELL, Layer, Recipe

Plan = Generator[Msg, Any, Any]

# Longer than any intended layer. If it takes longer, the cells are cold, or a shutter does not open.
LAYER_LIMIT_S = 6 * 3600.0


def grow(
    chamber: SimulatedChamber,
    recipe: Recipe = QUANTUM_WELL,
    md: Mapping[str, Any] | None = None,
    *,
    period_s: float | None = 0.015,
    on_step: Callable[[str], None] | None = None,
) -> Plan:
    """Grow `recipe`, and read the whole chamber meanwhile. The plan's result is the run's uid.

    Args:
        chamber: The chamber.
        recipe: The recipe.
        md: For the start document. Takes precedence over the plan's own entries there.
        period_s: Real seconds from one reading to the next; None for as fast as possible, where each reading lets the
            recipe's `reading_interval_s` pass in the chamber. On a chamber with `speed=0`, which needs None, such a
            growth shows the same readings each time.
        on_step: Called with a line of text at the beginning of each step, on the RunEngine's thread.

    Raises:
        ValueError: `period_s` is given, but the chamber's time stands still.
        RuntimeError: A layer would not be finished within six hours. By then the chamber is at standby.
    """
    if period_s is not None and chamber.clock.speed == 0.0:
        raise ValueError(f"the time of {chamber.name!r} stands still (speed=0); grow there with period_s=None")
    announce = on_step or (lambda _: None)
    readings = _Readings(chamber, period_s=period_s, interval_s=recipe.reading_interval_s)
    metadata = {
        "plan_name": "grow",
        "detectors": [chamber.name],
        "recipe": recipe.as_metadata(),
        "simulation": {"speed": chamber.clock.speed, "seed": chamber.seed},
        "hints": {"dimensions": [[["time"], "primary"]]},
        **(md or {}),
    }
    safe = bpp.finalize_wrapper(_steps(chamber, recipe, readings, announce), lambda: stand_by(chamber))
    return (yield from bpp.run_wrapper(safe, md=metadata))


def stand_by(chamber: SimulatedChamber) -> Plan:
    """Close all shutters, arsenic's last, and let everything cool to standby, without waiting for that."""
    yield from _move_shutters(chamber, [name for name in chamber.cells if name != ARSENIC_CELL], "closed")
    yield from _move_shutters(chamber, [ARSENIC_CELL], "closed")
    for heated in (chamber.substrate, *chamber.cells.values()):
        yield from _set(heated, heated.standby_c)


class _Readings:
    """Takes readings at a fixed pace until a condition holds."""

    def __init__(self, chamber: SimulatedChamber, *, period_s: float | None, interval_s: float) -> None:
        self._chamber = chamber
        self._period_s = period_s
        self._interval_s = interval_s
        self._due = time.monotonic()

    def until(self, done: Callable[[], bool]) -> Plan:
        """Read the chamber and wait for the time of the next reading, repeatedly until `done()`; at least once."""
        while True:
            yield from bps.checkpoint()
            yield from bps.create(name="primary")
            yield from bps.read(cast("Any", self._chamber))
            yield from bps.save()
            yield from self._pass_time()
            if done():
                return

    def for_s(self, seconds: float) -> Plan:
        """Read for this many simulated seconds."""
        end_s = self._chamber.elapsed_s + seconds
        yield from self.until(lambda: self._chamber.elapsed_s >= end_s)

    def _pass_time(self) -> Plan:
        if self._period_s is None:
            self._chamber.skip(self._interval_s)
            return
        # By the clock, not by sleeping a whole period after each reading. Missed readings are not made up for.
        self._due = max(self._due + self._period_s, time.monotonic())
        yield from bps.sleep(self._due - time.monotonic())


def _steps(chamber: SimulatedChamber, recipe: Recipe, readings: _Readings, announce: Callable[[str], None]) -> Plan:
    announce(f"heat up: substrate to {recipe.substrate_c:g} degC")
    yield from _move_shutters(chamber, [ARSENIC_CELL], "open")
    heating = [(yield from _set(chamber.substrate, recipe.substrate_c))]
    for name, temperature_c in recipe.cells_c.items():
        heating.append((yield from _set(chamber.cells[name], temperature_c)))
    yield from readings.until(lambda: all(status.done for status in heating))

    for nth, layer in enumerate(recipe.layers, start=1):
        announce(f"layer {nth} of {len(recipe.layers)}: {layer}")
        yield from _move_shutters(chamber, layer.cells, "open")
        yield from readings.until(_grown(chamber, layer))
        yield from _move_shutters(chamber, layer.cells, "closed")
        if layer.interruption_s > 0.0:
            announce(f"growth interruption: {layer.interruption_s:g} s")
            yield from readings.for_s(layer.interruption_s)

    if recipe.anneal is not None:
        announce(f"anneal: {recipe.anneal.duration_s:g} s at {recipe.anneal.substrate_c:g} degC")
        yield from _set(chamber.substrate, recipe.anneal.substrate_c)
        yield from readings.for_s(recipe.anneal.duration_s)

    announce(f"cool down: under arsenic to {recipe.arsenic_until_c:g} degC")
    for heated in (chamber.substrate, chamber.ga_cell, chamber.al_cell):
        yield from _set(heated, heated.standby_c)
    yield from readings.until(lambda: chamber.substrate.thermocouple.get() <= recipe.arsenic_until_c)
    announce("done")


def _grown(chamber: SimulatedChamber, layer: Layer) -> Callable[[], bool]:
    """Return a function that says whether `layer`, whose shutters have just opened, is finished."""
    rate_ml_s = chamber.film.growth_rate.get()
    if layer.duration_s is not None:
        gauge, amount, takes_s = chamber.film.growth_time, layer.duration_s, layer.duration_s
    else:
        gauge, amount = chamber.film.thickness, layer.thickness_nm or 0.0
        takes_s = amount / (rate_ml_s * MONOLAYER_NM) if rate_ml_s > 0.0 else math.inf
    if rate_ml_s <= 0.0 or takes_s > LAYER_LIMIT_S:
        raise RuntimeError(
            f"{layer} at {rate_ml_s:.2g} monolayers per second would not be finished within {LAYER_LIMIT_S:g} s; "
            f"are the cells of the recipe hot enough?"
        )
    end = gauge.get() + amount
    return lambda: gauge.get() >= end


def _set(part: Any, temperature_c: float) -> Plan:
    """Set without waiting. The result is the status. `part` is untyped, as ophyd's types do not match bluesky's."""
    return (yield from bps.abs_set(part, temperature_c))


def _move_shutters(chamber: SimulatedChamber, names: Iterable[str], state: ShutterState) -> Plan:
    moves = [argument for name in names for argument in (chamber.cells[name].shutter, state)]
    yield from bps.mv(*moves)
