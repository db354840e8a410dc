"""Converts one value to a finite float, or gives the reason why that is not possible. Pure.

The value itself decides: what a descriptor promises about it is only the first guess (see `layout_chooser`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any

import numpy as np

from ..model.loss import Loss

# Numpy's dates and durations. `float`, `item` and `tolist` turn some of them into a bare count of nanoseconds.
DATES = (np.datetime64, np.timedelta64)
DATE_KINDS = "mM"
# A list that holds only these is a table, or it holds text.
_NO_ELEMENTS = (list, tuple, str, dict)
# Of a list longer than any array of channels, only the first elements decide what it is.
MAX_ELEMENTS_CHECKED = 1000
# How many levels of one-element lists are unwrapped. A list that contains itself would never end.
MAX_DEPTH = 8


class Rounded(float):
    """The nearest float to an integer beyond 2**53, if it differs from that integer."""


def number(value: Any, depth: int = MAX_DEPTH) -> float | Loss:
    """Return a value as a finite float, or the reason why it is not one.

    A boolean gives 0 or 1, a Decimal the nearest float. A numpy scalar, or an array or list of one element, gives that
    element. An integer that loses digits as a float gives a `Rounded`.
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else Loss.NOT_FINITE
    if isinstance(value, DATES):
        return Loss.NOT_NUMERIC
    if isinstance(value, np.generic):
        value = value.item()
        if isinstance(value, np.generic):  # `item` leaves a longdouble as it is
            value = float(value) if isinstance(value, np.floating) else Loss.NOT_NUMERIC
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else Loss.NOT_FINITE
    if isinstance(value, Decimal):
        if not value.is_finite():
            return Loss.NOT_FINITE
        nearest = float(value)
        return nearest if math.isfinite(nearest) else Loss.TOO_LARGE
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
        # An element of a subclass, such as a masked array or one with units, may again be an array.
        return Loss.NO_VALUE if np.ma.is_masked(value) else number(np.asarray(value).reshape(-1)[0], depth - 1)
    if isinstance(value, list | tuple):
        return number(value[0], depth - 1) if len(value) == 1 and depth else Loss.ARRAY
    return Loss.NOT_NUMERIC


def choice(choices: Sequence[str]) -> Callable[[Any], float | Loss]:
    """Return a function like `number` that also converts text which is one of the choices: to its index among them."""
    indices = {choice: float(i) for i, choice in enumerate(choices)}

    def index(value: Any) -> float | Loss:
        return indices.get(enum_value(value), Loss.TEXT) if isinstance(value, str) else number(value)

    return index


def enum_value(value: Any) -> Any:
    """Return an enum's value, and any other value unchanged."""
    return value.value if isinstance(value, Enum) else value


def length_of(value: Any, promised: int | None = None) -> int | None:
    """Return how many channels a one-dimensional array of numbers gives; None for no array, or one of one element.

    Args:
        value: The value.
        promised: How long its descriptor says that it is. That decides if it is empty or None.
    """
    length = 0
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biuf":
        length = int(value.size)
    elif isinstance(value, list | tuple) and (not value or _has_elements(value)):
        length = len(value)
    elif value is not None:
        return None
    length = length or promised or 0
    return length if length > 1 else None


def has_no_elements(value: Any) -> bool:
    """Return True for a one-dimensional array or a list without elements."""
    return getattr(value, "ndim", 1) == 1 and len(value) == 0


def _has_elements(values: Sequence[Any]) -> bool:
    """Return True if any of a list's first elements may be a number."""
    looked_at = values if len(values) <= MAX_ELEMENTS_CHECKED else values[:MAX_ELEMENTS_CHECKED]
    return any(not isinstance(item, _NO_ELEMENTS) for item in looked_at)


def numbers(values: Any, count: int) -> list[float | Loss]:
    """Return the elements of an array as `count` numbers or reasons. A number counts as an array of one element.

    An array of more elements is left out as a whole.
    """
    if isinstance(values, np.ndarray) and values.ndim:
        whole = values.ndim == 1 and len(values) <= count and values.dtype.kind not in DATE_KINDS
        values = values.tolist() if whole else list(values[: count + 1])
    if isinstance(values, list | tuple):
        if len(values) > count:
            return [Loss.LONG_ARRAY] * count
        return [number(values[i]) if i < len(values) else Loss.MISSING for i in range(count)]
    only = number(values)
    if not isinstance(only, str):
        return [only, *[Loss.MISSING] * (count - 1)]
    return [Loss.MISSING if only is Loss.NO_VALUE else only] * count
