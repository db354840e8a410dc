"""The simulated chamber as ophyd devices, which a plan sets, reads and monitors.

Every reading is a number with a unit. A chamber's `read()` shows one instant. The keys are named after the parts, as a
grower would name them (`ga_cell_temperature`, `substrate_pyrometer`), without the chamber's name before them. Making a
chamber starts its clock and no thread. `close()`, or leaving a `with` block, ends the thread that `set()` or a
subscription may have started.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any, Literal, Self, cast

import numpy as np
from ophyd import Component as Cpt
from ophyd import Device, Signal
from ophyd.status import Status
from ophyd.utils import LimitError, ReadOnlyError

from .clock import SimulatedClock
from .physics import Cell, Chamber, Furnace, Rheed, Substrate

# A temperature this close to its set point counts as having reached it.
TOLERANCE_K = 1.0
# A prime, so that no period of a growth or of the readings coincides with the noise's.
NOISE_TICKS = 4093

SHUTTER_STATES = ("closed", "open")
ShutterState = Literal["closed", "open", 0, 1, False, True]


class Readout(Signal):
    """A number read from the physics. Subscribers get each new value while the time moves.

    Args:
        of: Returns the value, given the part's physics.
        units: The units in the descriptor.
        precision: How many decimals are worth showing.
        noise: Standard deviation, in `units`; the same for the same seed, name and tick.
        relative_noise: Standard deviation, as a share of the value.
    """

    def __init__(
        self,
        *,
        of: Callable[[Any], float],
        units: str,
        precision: int,
        noise: float = 0.0,
        relative_noise: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(value=0.0, **kwargs)
        self._metadata["write_access"] = False
        chamber = cast("SimulatedChamber", self.root)
        self._clock = chamber.clock
        self._model: Any = cast("Part | SimulatedChamber", self.parent).model
        self._of = of
        self._units = units
        self._precision = precision
        self._heard: float | None = None
        rng = np.random.default_rng([chamber.seed, zlib.crc32(self.name.encode())])
        table: list[float] = rng.standard_normal(NOISE_TICKS).tolist() if noise or relative_noise else [0.0]
        self._noise = [noise * deviation for deviation in table]
        self._gain = [1.0 + relative_noise * deviation for deviation in table]

    @property
    def timestamp(self) -> float:
        """When the value was last updated, Unix seconds."""
        return self._clock.read_at

    def get(self, **kwargs: Any) -> float:
        """Return the present value."""
        self._clock.advance()
        nth = self._clock.tick % len(self._noise)
        return self._of(self._model) * self._gain[nth] + self._noise[nth]

    def set(self, value: Any, **kwargs: Any) -> Status:
        """Refuse, because the value can only be read.

        Raises:
            ReadOnlyError: Always.
        """
        raise ReadOnlyError(f"{self.name} can only be read; set the part that it belongs to")

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the data key, with unit and precision."""
        return {
            self.name: {
                "source": self.source_name,
                "dtype": "number",
                "dtype_numpy": "<f8",
                "shape": [],
                "units": self._units,
                "precision": self._precision,
            }
        }

    def subscribe(self, callback: Callable[..., Any], event_type: str | None = None, run: bool = True) -> int:
        """Call `callback` with each new value, from any thread that reads the chamber, or from the clock's thread."""
        if event_type in (None, self.SUB_VALUE):
            self._tell()  # so that `run` has a value to begin with
            cid = super().subscribe(callback, event_type=event_type, run=run)
            self._clock.listen(self._tell)
            return cid
        return super().subscribe(callback, event_type=event_type, run=run)

    def _tell(self) -> bool:
        """Pass a new value to the subscribers. Return True if there are any."""
        value = self.get()
        if value != self._heard:
            old, self._heard = self._heard, value
            self._run_subs(sub_type=self.SUB_VALUE, old_value=old, value=value, timestamp=self.timestamp)
        return bool(self._callbacks[self.SUB_VALUE])


class Shutter(Readout):
    """A shutter that opens or closes at once.

    Its value in documents is 1 or 0, as from an EPICS binary output record.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(of=lambda cell: cell.shutter_open, units="1", precision=0, **kwargs)
        self._metadata["write_access"] = True

    def get(self, **kwargs: Any) -> int:
        """Return 1 if it is open, 0 if it is closed."""
        return int(super().get(**kwargs))

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the data key, with the names of the two states."""
        described = super().describe()
        described[self.name] |= {"dtype": "integer", "dtype_numpy": "<i8", "enum_strs": list(SHUTTER_STATES)}
        return described

    def put(self, value: ShutterState, **kwargs: Any) -> None:
        """Move the shutter: "open" or "closed", 1 or 0.

        Raises:
            ValueError: For any other value. The shutter stays as it is.
        """
        if value in SHUTTER_STATES:
            to_open = value == "open"
        elif value in (0, 1):
            to_open = bool(value)
        else:
            raise ValueError(f"{self.name} can be 'open' or 'closed' (or 1 or 0), not {value!r}")
        with self._clock.one_instant():
            self._model.shutter_open = to_open
        self._tell()

    def set(self, value: ShutterState, **kwargs: Any) -> Status:
        """Move the shutter like `put`. The status is finished on return."""
        self.put(value)
        status = Status(self)
        status.set_finished()
        return status


class Pyrometer(Readout):
    """The wafer's temperature by its light. Below its range it shows `pyrometer_below_range`, without noise."""

    def get(self, **kwargs: Any) -> float:
        """Return the value that it shows now."""
        shown_c = super().get(**kwargs)
        if self._model.wafer_in_pyrometer_range():
            return shown_c
        return cast("SimulatedChamber", self.root).pyrometer_below_range


class Part(Device):
    """A part of the chamber, named by its kind.

    Args:
        model: Returns the part's physics, given the chamber's.
    """

    def __init__(self, *, model: Callable[[Chamber], Any], name: str, attr_name: str = "", **kwargs: Any) -> None:
        chamber: SimulatedChamber = kwargs["parent"]  # the parts are direct children of the chamber
        self.model: Any = model(chamber.model)
        self.clock = chamber.clock
        super().__init__(name=attr_name, attr_name=attr_name, **kwargs)


class Heated(Part):
    """A part with a furnace, whose temperature is set.

    Args:
        limits_c: Lowest and highest set point.
    """

    def __init__(self, *, limits_c: tuple[float, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limits_c = limits_c
        self.standby_c = self._furnace.set_point_c

    @property
    def _furnace(self) -> Furnace:
        return self.model.furnace

    def set(self, temperature_c: float) -> Status:
        """Change the set point. The status finishes when the temperature is within 1 K of it.

        If the set point changes again meanwhile, the older statuses follow it: all finish when the newest one is
        reached.

        Raises:
            LimitError: The value is outside `limits_c`, or not a number. The set point stays as it is.
        """
        low, high = self.limits_c
        if not low <= temperature_c <= high:
            raise LimitError(f"{self.name} can be set to {low:g} to {high:g} degC, not {temperature_c!r}")
        with self.clock.one_instant():
            self._furnace.set_point_c = float(temperature_c)
        return self.clock.status_when(self._reached, of=self)

    def _reached(self) -> bool:
        return abs(self._furnace.temperature_c - self._furnace.set_point_c) <= TOLERANCE_K


def _set_point(part: Cell | Substrate) -> float:
    return part.furnace.set_point_c


def _temperature(part: Cell | Substrate) -> float:
    return part.furnace.temperature_c


class EffusionCell(Heated):
    """A furnace full of metal, or of arsenic, and the shutter before it. `set()` takes degrees Celsius."""

    temperature = Cpt(Readout, of=_temperature, units="degC", precision=1, noise=0.05)
    set_point = Cpt(Readout, of=_set_point, units="degC", precision=1)
    flux = Cpt(Readout, of=Cell.atoms_per_cm2_s, units="1/(cm^2 s)", precision=0)
    shutter = Cpt(Shutter)


class SubstrateHeater(Heated):
    """The wafer's heater, controlled by its thermocouple. `set()` takes degrees Celsius at the thermocouple."""

    thermocouple = Cpt(Readout, of=_temperature, units="degC", precision=1, noise=0.1, kind="hinted")
    set_point = Cpt(Readout, of=_set_point, units="degC", precision=1)
    pyrometer = Cpt(Pyrometer, of=Substrate.pyrometer_c, units="degC", precision=1, noise=0.3)
    heater_power = Cpt(Readout, of=Substrate.heater_power_w, units="W", precision=1, noise=0.4)


class FilmGauge(Part):
    """The grown film: known in the simulation, but calculated in a real laboratory."""

    thickness = Cpt(Readout, of=lambda chamber: chamber.film.thickness_nm, units="nm", precision=3, kind="hinted")
    growth_rate = Cpt(Readout, of=Chamber.growth_rate_ml_s, units="ML/s", precision=3)
    growth_time = Cpt(Readout, of=lambda chamber: chamber.film.growth_time_s, units="s", precision=2)


class RheedCamera(Part):
    """The specular reflection of the electrons, as a region of interest on a camera gives it."""

    specular = Cpt(Readout, of=Rheed.specular, units="a.u.", precision=2, relative_noise=0.006, kind="hinted")


class SimulatedChamber(Device):
    """A small machine for molecular beam epitaxy of GaAs and AlGaAs, for experiments without hardware.

    Args:
        name: The device's name in documents. Of its keys, only the pressure's contains it.
        speed: Simulated seconds per real second. At 0 only `skip` lets time pass, and a `set()` waits for that.
        seed: Seed of the noise. Chambers with the same seed and the same history show the same values, tick by tick.
        pyrometer_below_range: The pyrometer's value below about 400 degC; `math.nan` if yours shows nothing there.
        now: Returns real seconds.

    Raises:
        ValueError: `speed` is negative or not finite.
    """

    pressure = Cpt(Readout, of=lambda chamber: chamber.pressure_mbar, units="mbar", precision=11, relative_noise=0.01)
    substrate = Cpt(SubstrateHeater, model=lambda chamber: chamber.substrate, limits_c=(25.0, 900.0))
    ga_cell = Cpt(EffusionCell, model=lambda chamber: chamber.cells["ga"], limits_c=(25.0, 1150.0))
    al_cell = Cpt(EffusionCell, model=lambda chamber: chamber.cells["al"], limits_c=(25.0, 1250.0))
    as_cell = Cpt(EffusionCell, model=lambda chamber: chamber.cells["as"], limits_c=(25.0, 400.0))
    film = Cpt(FilmGauge, model=lambda chamber: chamber)
    rheed = Cpt(RheedCamera, model=lambda chamber: chamber.rheed)

    def __init__(
        self,
        *,
        name: str = "chamber",
        speed: float = 20.0,
        seed: int = 0,
        pyrometer_below_range: float = Substrate.PYROMETER_FROM_C,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        # The parts need these while they are made.
        self.model = Chamber()
        self.clock = SimulatedClock(self.model, speed=speed, now=now)
        self.seed = seed
        self.pyrometer_below_range = pyrometer_below_range
        self._closed_by_pause: list[Shutter] = []
        super().__init__(name=name)

    @property
    def cells(self) -> dict[str, EffusionCell]:
        """The effusion cells, by the material that they evaporate: "ga", "al", "as"."""
        return {"ga": self.ga_cell, "al": self.al_cell, "as": self.as_cell}

    @property
    def elapsed_s(self) -> float:
        """Simulated seconds since the chamber was made."""
        self.clock.advance()
        return self.clock.elapsed_s

    def skip(self, seconds: float) -> None:
        """Let simulated seconds pass at once."""
        self.clock.skip(seconds)

    def read(self) -> Any:  # ophyd has a dict of its own here, which no dict's type matches
        """Return all readings, of one instant and with one timestamp."""
        with self.clock.one_instant():
            return super().read()

    def pause(self) -> None:
        """Close the open group III shutters, as a grower who is called away would. Arsenic protects the surface."""
        self._closed_by_pause = [
            cell.shutter for cell in self.cells.values() if cell.model.group == 3 and cell.shutter.get()
        ]
        for shutter in self._closed_by_pause:
            shutter.put("closed")

    def resume(self) -> None:
        """Open the shutters that `pause` closed."""
        for shutter in self._closed_by_pause:
            shutter.put("open")
        self._closed_by_pause = []

    def close(self, timeout_s: float = 10.0) -> bool:
        """Stop waiting for set points and notifying subscribers. Return True if no thread is left. Idempotent.

        An unfinished status fails. The chamber can still be read.
        """
        return self.clock.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
