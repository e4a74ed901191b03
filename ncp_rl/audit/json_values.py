"""Numbers as JSON has them: no NaN, no infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def finite(value: float) -> float | None:
    """Return a number as JSON has it: None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def listed(values: npt.ArrayLike) -> list[Any]:
    """Return an array of floats as JSON has it, shortened to float32's digits, None where a number is not finite."""
    array = np.asarray(values, np.float64)
    if array.ndim > 1:
        return [listed(row) for row in array]
    return [float(f"{value:.8g}") if np.isfinite(value) else None for value in array]
