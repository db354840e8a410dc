"""Points as packed 64-bit floats: a column of times or values costs 8 bytes per point in memory. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def packed_column(numbers: Sequence[float | None] | NDArray[np.float64]) -> Sequence[float | None]:
    """Return the numbers packed at eight bytes each, or unchanged if one is missing."""
    if isinstance(numbers, np.ndarray):
        return array("d", numbers.tolist())
    return numbers if None in numbers else array("d", numbers)  # type: ignore[arg-type]
