"""One value in; a finite float out, or the reason why it is none. Pure.

A value decides for itself: what a descriptor promises about it is only the first guess (see `channels`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any

import numpy as np

from ..model.loss import Loss

# A list that holds nothing else is a table, or text.
_NO_ELEMENTS = (list, tuple, str, dict)
# A list that holds more than any array of channels is told by the first elements of it.
MOST_LOOKED_AT = 1000
# Lists of one element within lists of one element are looked into so far; one that holds itself has no end.
MAX_DEPTH = 8


class Rounded(float):
    """What an integer beyond 2**53 became: the nearest float, which is not the integer itself."""


def number(value: Any, depth: int = MAX_DEPTH) -> float | Loss:
    """A value as a finite float, or the reason why it is none.

    Booleans are 0 and 1, a Decimal the nearest float; numpy scalars and arrays or lists of one element are that
    element. An integer that loses digits as a float comes as `Rounded`.
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else Loss.NOT_FINITE
    if isinstance(value, np.datetime64 | np.timedelta64):
        return Loss.NOT_NUMERIC  # before `item`, which makes a bare count of nanoseconds of some
    if isinstance(value, np.generic):
        value = value.item()
        if isinstance(value, np.generic):  # a longdouble stays what it is
            value = float(value) if isinstance(value, np.floating) else Loss.NOT_NUMERIC
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else Loss.NOT_FINITE
    if isinstance(value, Decimal):
        nearest = float(value) if value.is_finite() else math.nan
        return Loss.NOT_FINITE if math.isnan(nearest) else nearest if math.isfinite(nearest) else Loss.TOO_LARGE
    if isinstance(value, int):
        try:
            nearest = float(value)
        except OverflowError:
            return Loss.TOO_LARGE
        return nearest if nearest == value else Rounded(nearest)
    if value is None:
        return Loss.NO_VALUE
    if isinstance(value, str):
        return Loss.TEXT
    if isinstance(value, np.ndarray):
        if value.size != 1 or not depth:
            return Loss.ARRAY
        # Of a subclass, a masked array or one with units, an element may be an array again.
        return Loss.NO_VALUE if np.ma.is_masked(value) else number(np.asarray(value).reshape(-1)[0], depth - 1)
    if isinstance(value, list | tuple):
        return number(value[0], depth - 1) if len(value) == 1 and depth else Loss.ARRAY
    return Loss.NOT_NUMERIC


def choice(choices: Sequence[str]) -> Callable[[Any], float | Loss]:
    """As `number`, but text that is one of the choices is its index among them."""
    indices = {choice: float(i) for i, choice in enumerate(choices)}

    def index(value: Any) -> float | Loss:
        return indices.get(plain(value), Loss.TEXT) if isinstance(value, str) else number(value)

    return index


def plain(value: Any) -> Any:
    """An enum's value; anything else as it is."""
    return value.value if isinstance(value, Enum) else value


def length_of(value: Any, described: Mapping[str, Any]) -> int | None:
    """How many channels a one-dimensional array of numbers gives; None for what is no array, or one of one element.

    Args:
        value: The first value seen.
        described: Its data key, whose shape has to do where the value is empty or None.
    """
    length = 0
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biuf":
        length = int(value.size)
    elif isinstance(value, list | tuple) and (not value or _has_elements(value)):
        length = len(value)
    elif value is not None:
        return None
    shape = described.get("shape")
    if not length and described.get("dtype") == "array" and isinstance(shape, list | tuple) and len(shape) == 1:
        length = shape[0] if isinstance(shape[0], int) else 0  # nothing was seen yet, so the promise has to do
    return length if length > 1 else None


def _has_elements(values: Sequence[Any]) -> bool:
    """Return True if any of a list's first elements may be a number."""
    looked_at = values if len(values) <= MOST_LOOKED_AT else values[:MOST_LOOKED_AT]
    return any(not isinstance(item, _NO_ELEMENTS) for item in looked_at)


def numbers(values: Any, count: int) -> list[float | Loss]:
    """The first `count` elements of an array as numbers, or the reasons why they are none; no other is looked at."""
    if isinstance(values, np.ndarray) and values.ndim:
        values = values[:count].tolist() if values.ndim == 1 else list(values[:count])
    if not isinstance(values, list | tuple):
        return [Loss.MISSING] * count
    return [number(values[i]) if i < len(values) else Loss.MISSING for i in range(count)]
