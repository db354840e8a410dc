"""Recipes: what to grow, as plain data.

A recipe checks itself when it is made, so that a growth does not fail in its third layer because of a misspelt
material.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Which group III shutters open for which material. The arsenic shutter is open throughout.
MATERIALS = {"GaAs": ("ga",), "AlAs": ("al",), "AlGaAs": ("ga", "al")}
ARSENIC_CELL = "as"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, and how long the surface may recover after it.

    Raises:
        ValueError: The material is not one of `MATERIALS`, or not exactly one of thickness and duration is given.
    """

    material: str
    thickness_nm: float | None = None
    duration_s: float | None = None
    """Simulated seconds of growth, instead of a thickness."""
    interruption_s: float = 0.0
    """Simulated seconds with closed group III shutters after it."""

    def __post_init__(self) -> None:
        if self.material not in MATERIALS:
            raise ValueError(f"material {self.material!r} cannot be grown here; choose one of {', '.join(MATERIALS)}")
        amounts = [amount for amount in (self.thickness_nm, self.duration_s) if amount is not None]
        if len(amounts) != 1 or not amounts[0] > 0.0:
            raise ValueError(
                f"a layer of {self.material} takes either thickness_nm or duration_s, above 0; "
                f"given were {self.thickness_nm!r} and {self.duration_s!r}"
            )

    @property
    def cells(self) -> tuple[str, ...]:
        """The group III cells whose shutters open."""
        return MATERIALS[self.material]

    def __str__(self) -> str:
        amount = f"{self.thickness_nm:g} nm" if self.thickness_nm is not None else f"{self.duration_s:g} s"
        return f"{amount} {self.material}"


@dataclass(frozen=True, slots=True)
class Anneal:
    """Keeps the finished film hot, under arsenic."""

    substrate_c: float
    duration_s: float
    """Simulated seconds, heating included."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Heats up, grows the layers, anneals, cools down.

    Raises:
        ValueError: A required cell has no temperature.
    """

    name: str
    cells_c: Mapping[str, float]
    """Set points of the cells, "ga", "al", "as"; arsenic's and those of the layers are needed."""
    substrate_c: float
    """Set point of the substrate's thermocouple."""
    layers: tuple[Layer, ...]
    anneal: Anneal | None = None
    arsenic_until_c: float = 450.0
    """Below this thermocouple temperature the surface needs no arsenic any more, and the growth is over."""
    reading_interval_s: float = field(default=0.3, kw_only=True)
    """Simulated seconds between readings, where they are taken as fast as possible."""

    def __post_init__(self) -> None:
        needed = {ARSENIC_CELL, *(cell for layer in self.layers for cell in layer.cells)}
        if cold := sorted(needed - set(self.cells_c)):
            raise ValueError(f"recipe {self.name!r} has no temperature for {', '.join(cold)}; add it to cells_c")

    def as_metadata(self) -> dict[str, Any]:
        """Return the recipe in a form that a start document may hold."""
        return {**dataclasses.asdict(self), "cells_c": dict(self.cells_c)}


# 0.40 ML/s of GaAs, and 0.17 ML/s of AlAs on top: Al(0.3)Ga(0.7)As; about ten times as much arsenic.
_CELLS_C = {"ga": 879.5, "al": 985.0, "as": 250.0}

QUANTUM_WELL = Recipe(
    name="GaAs quantum well in AlGaAs",
    cells_c=_CELLS_C,
    substrate_c=640.0,
    layers=(
        Layer("GaAs", thickness_nm=8.0, interruption_s=20.0),
        Layer("AlGaAs", thickness_nm=6.0, interruption_s=15.0),
        Layer("GaAs", thickness_nm=5.0, interruption_s=15.0),
        Layer("AlGaAs", thickness_nm=6.0, interruption_s=15.0),
        Layer("GaAs", thickness_nm=3.0),
    ),
    anneal=Anneal(substrate_c=660.0, duration_s=30.0),
)
"""Seven minutes of growth: some 20 s at a chamber's default speed."""

QUICK = Recipe(
    name="quick GaAs and AlGaAs",
    cells_c=_CELLS_C,
    substrate_c=600.0,
    layers=(Layer("GaAs", thickness_nm=1.5, interruption_s=5.0), Layer("AlGaAs", duration_s=6.0)),
    anneal=Anneal(substrate_c=600.0, duration_s=5.0),
    reading_interval_s=0.75,
)
"""Two minutes of growth: as fast as possible, well below a second."""
