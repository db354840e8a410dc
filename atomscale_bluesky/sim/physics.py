"""The physics of the simulated chamber: furnaces, beams, a film, a RHEED spot and a pressure gauge.

Turns set points and shutters into the state of a chamber, one fixed step at a time: no clock, no thread, no noise, no
device. The same steps give the same state, to the last bit.

What is physics and what is illustration:

- vapour pressures are published (see `GALLIUM`, `ALUMINIUM`, `ARSENIC`), and beams follow from kinetic gas theory and
  one geometry for all cells; the rates, 0.1 to 1 monolayers per second at usual temperatures, follow from these;
- a film grows by the monolayer, as fast as the group III atoms arrive, or half as fast as the arsenic atoms arrive if
  that is less; nothing desorbs;
- time constants, RHEED damping and recovery, the gauge's share of each beam and the heater's losses are illustrative:
  of a plausible size, and chosen so that a growth is over in minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

BOLTZMANN = 1.380649e-23  # J/K
ATOMIC_MASS_KG = 1.66053907e-27
STEFAN_BOLTZMANN = 5.670374e-8  # W/(m^2 K^4)
ZERO_CELSIUS_K = 273.15
ROOM_C = 25.0
ATMOSPHERE_PA = 101325.0

# GaAs(001): group III sites of one monolayer, and its height, half the lattice constant of 0.56533 nm.
SITES_PER_CM2 = 6.26e14
MONOLAYER_NM = 0.28266

# One geometry for all cells: the orifice, and its distance from the wafer. Illustrative, for a small research machine.
ORIFICE_CM2 = 5.0
DISTANCE_CM = 15.0


@dataclass(frozen=True, slots=True)
class Element:
    """A material that a cell evaporates: log10(p/Pa) = a + b/T + c*log10(T), with T in kelvin."""

    symbol: str
    a: float
    b: float
    c: float
    molecule_u: float
    """Mass of the evaporating molecule."""
    atoms: int
    """Atoms in that molecule."""

    def vapour_pressure_pa(self, temperature_c: float) -> float:
        """Return the equilibrium pressure over the melt, or over the solid for arsenic."""
        kelvin = temperature_c + ZERO_CELSIUS_K
        return 10.0 ** (self.a + self.b / kelvin + self.c * math.log10(kelvin))


_PER_ATMOSPHERE = math.log10(ATMOSPHERE_PA)
# Liquid gallium and aluminium: Alcock, Itkin and Horrigan, Can. Metall. Q. 23 (1984) 309, given there in atmospheres.
GALLIUM = Element("Ga", a=6.754 + _PER_ATMOSPHERE, b=-13984.0, c=-0.3413, molecule_u=69.723, atoms=1)
ALUMINIUM = Element("Al", a=5.911 + _PER_ATMOSPHERE, b=-16211.0, c=0.0, molecule_u=26.982, atoms=1)
# Solid arsenic, as As4: the line through 1 Pa at 280 degC and 100 Pa at 373 degC of the CRC Handbook's table.
ARSENIC = Element("As", a=13.89, b=-7682.0, c=0.0, molecule_u=4 * 74.922, atoms=4)


@dataclass(slots=True)
class Furnace:
    """A heated object that follows its set point as exp(-t/time_constant_s)."""

    temperature_c: float
    set_point_c: float
    time_constant_s: float

    def step(self, step_s: float) -> None:
        """Move towards the set point. Exact for a step of any length."""
        left = math.exp(-step_s / self.time_constant_s)
        self.temperature_c = self.set_point_c + (self.temperature_c - self.set_point_c) * left


@dataclass(slots=True)
class Cell:
    """An effusion cell and the shutter before it."""

    element: Element
    furnace: Furnace
    group: int
    """Of the periodic table's main groups: 3 or 5."""
    shutter_open: bool = False

    def molecules_per_m2_s(self) -> float:
        """Return the beam at the wafer's place, in molecules per m^2 and second, with the shutter open or not."""
        kelvin = self.furnace.temperature_c + ZERO_CELSIUS_K
        mass_kg = self.element.molecule_u * ATOMIC_MASS_KG
        pressure_pa = self.element.vapour_pressure_pa(self.furnace.temperature_c)
        effusion = pressure_pa / math.sqrt(2.0 * math.pi * mass_kg * BOLTZMANN * kelvin)
        return effusion * ORIFICE_CM2 / (math.pi * DISTANCE_CM**2)

    def atoms_per_cm2_s(self) -> float:
        """Return the beam that an open shutter lets through, in atoms per cm^2 and second."""
        return 1e-4 * self.element.atoms * self.molecules_per_m2_s()

    def beam_pressure_mbar(self) -> float:
        """Return the pressure that a gauge in the beam would show: its molecules' density, at room temperature."""
        kelvin = self.furnace.temperature_c + ZERO_CELSIUS_K
        speed = math.sqrt(8.0 * BOLTZMANN * kelvin / (math.pi * self.element.molecule_u * ATOMIC_MASS_KG))
        return 1e-2 * self.molecules_per_m2_s() / speed * BOLTZMANN * (ROOM_C + ZERO_CELSIUS_K)


@dataclass(slots=True)
class Substrate:
    """The heater, controlled by its thermocouple, and the wafer, which is colder and measured by a pyrometer."""

    furnace: Furnace

    # The thermocouple behind the wafer measures the heater. This is its excess per degree above room temperature.
    THERMOCOUPLE_EXCESS = 0.10
    # The pyrometer's wavelength over the second radiation constant, in 1/K, and the ratio of the wafer's emissivity to
    # the one that was set. The pyrometer's range ends where a silicon detector's does.
    WAVELENGTH_OVER_C2 = 0.95e-6 / 1.4388e-2
    EMISSIVITY_RATIO = 0.98
    PYROMETER_FROM_C = 400.0
    # Radiating area times emissivity, and the heat capacity of heater and wafer.
    RADIATOR_M2 = 6.5e-3
    HEAT_CAPACITY_J_PER_K = 12.0

    def wafer_c(self) -> float:
        """Return the wafer's true temperature."""
        heater_c = self.furnace.temperature_c
        return heater_c - self.THERMOCOUPLE_EXCESS * (heater_c - ROOM_C)

    def pyrometer_c(self) -> float:
        """Return the value that the pyrometer would show, by Wien's law, if its range had no end."""
        inverse = 1.0 / (self.wafer_c() + ZERO_CELSIUS_K) - self.WAVELENGTH_OVER_C2 * math.log(self.EMISSIVITY_RATIO)
        return 1.0 / inverse - ZERO_CELSIUS_K

    def wafer_in_pyrometer_range(self) -> bool:
        """Return True if the wafer is bright enough for the pyrometer."""
        return self.pyrometer_c() >= self.PYROMETER_FROM_C

    def heater_power_w(self) -> float:
        """Return the heater's power: what it radiates plus what warms it. Never negative."""
        furnace = self.furnace
        hot, cold = furnace.temperature_c + ZERO_CELSIUS_K, ROOM_C + ZERO_CELSIUS_K
        radiated_w = STEFAN_BOLTZMANN * self.RADIATOR_M2 * (hot**4 - cold**4)
        warming_k_per_s = (furnace.set_point_c - furnace.temperature_c) / furnace.time_constant_s
        return max(0.0, radiated_w + self.HEAT_CAPACITY_J_PER_K * warming_k_per_s)


@dataclass(slots=True)
class Film:
    """The film grown since the chamber was made."""

    monolayers: float = 0.0
    growth_time_s: float = 0.0
    """Time for which it grew."""

    @property
    def thickness_nm(self) -> float:
        """The thickness of all layers together."""
        return self.monolayers * MONOLAYER_NM


@dataclass(slots=True)
class Rheed:
    """The specular spot: one oscillation per monolayer, damped during growth and recovering without it.

    `unfinished` is the fraction of the present monolayer, -0.5 to 0.5, zero if the surface is complete. `smooth` is the
    share of the surface that grows layer by layer. Growth reduces `smooth`, as new layers begin on unfinished ones.
    Without growth the surface heals and both recover, the steps of the present layer first.
    """

    unfinished: float = 0.0
    smooth: float = 1.0

    FULL = 100.0
    # A rough surface is as bright as half-way between a complete layer and half a layer.
    ROUGH = 55.0
    DAMPING_MONOLAYERS = 11.0
    EDGE_RECOVERY_S = 1.5
    RECOVERY_S = 7.0

    def step(self, step_s: float, grown_monolayers: float) -> None:
        """Grow by this many monolayers, or heal if there are none."""
        if grown_monolayers > 0.0:
            phase = self.unfinished + grown_monolayers
            self.unfinished = phase - round(phase)
            self.smooth *= math.exp(-grown_monolayers / self.DAMPING_MONOLAYERS)
        else:
            self.unfinished *= math.exp(-step_s / self.EDGE_RECOVERY_S)
            self.smooth = 1.0 - (1.0 - self.smooth) * math.exp(-step_s / self.RECOVERY_S)

    def specular(self) -> float:
        """Return the intensity, which is `FULL` on a smooth, complete surface."""
        return self.ROUGH + (self.FULL - self.ROUGH) * self.smooth * math.cos(2.0 * math.pi * self.unfinished)


def _cells() -> dict[str, Cell]:
    """Return the three cells, at their standby temperatures."""
    return {
        "ga": Cell(GALLIUM, Furnace(800.0, 800.0, time_constant_s=12.0), group=3),
        "al": Cell(ALUMINIUM, Furnace(900.0, 900.0, time_constant_s=12.0), group=3),
        "as": Cell(ARSENIC, Furnace(150.0, 150.0, time_constant_s=12.0), group=5),
    }


@dataclass(slots=True)
class Chamber:
    """The whole chamber. Write set points and shutters to its parts; `step` lets time pass."""

    cells: dict[str, Cell] = field(default_factory=_cells)
    substrate: Substrate = field(default_factory=lambda: Substrate(Furnace(400.0, 400.0, time_constant_s=15.0)))
    film: Film = field(default_factory=Film)
    rheed: Rheed = field(default_factory=Rheed)
    pressure_mbar: float = 0.0

    BASE_PRESSURE_MBAR = 3e-10
    # The share of a beam that a gauge on the wall measures, behind its shutter and past it, and the pump's time
    # constant.
    GAUGE_CLOSED = 0.01
    GAUGE_OPEN = 0.08
    PUMP_S = 2.0
    # As4 gives at most half of its atoms to GaAs: Foxon and Joyce, Surf. Sci. 64 (1977) 293.
    ARSENIC_TAKEN = 0.5

    def __post_init__(self) -> None:
        self.pressure_mbar = self._pressure_to_come_mbar()

    def growth_rate_ml_s(self) -> float:
        """Return the rate at this instant, in monolayers per second."""
        arriving = {3: 0.0, 5: 0.0}
        for cell in self.cells.values():
            if cell.shutter_open:
                arriving[cell.group] += cell.atoms_per_cm2_s()
        return min(arriving[3], self.ARSENIC_TAKEN * arriving[5]) / SITES_PER_CM2

    def step(self, step_s: float) -> None:
        """Let `step_s` seconds pass. Set points and shutters stay as they are meanwhile."""
        for cell in self.cells.values():
            cell.furnace.step(step_s)
        self.substrate.furnace.step(step_s)

        grown = self.growth_rate_ml_s() * step_s
        self.film.monolayers += grown
        if grown > 0.0:
            self.film.growth_time_s += step_s
        self.rheed.step(step_s, grown)

        to_come_mbar = self._pressure_to_come_mbar()
        left = math.exp(-step_s / self.PUMP_S)
        self.pressure_mbar = to_come_mbar + (self.pressure_mbar - to_come_mbar) * left

    def _pressure_to_come_mbar(self) -> float:
        """Return the pressure that the present beams lead to in the end."""
        return self.BASE_PRESSURE_MBAR + sum(
            cell.beam_pressure_mbar() * (self.GAUGE_OPEN if cell.shutter_open else self.GAUGE_CLOSED)
            for cell in self.cells.values()
        )
