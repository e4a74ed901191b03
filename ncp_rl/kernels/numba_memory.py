"""Memory behind addresses, as arrays inside Numba kernels.

Every tensor arrives as the address of its data: Numba takes twenty integers in half a microsecond, and as many arrays
in ten.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray  # type: ignore[attr-defined]

from ncp_rl.kernels.numba_cache import inlined
from ncp_rl.kernels.numba_lanes import LANES, as_rows, bool_pointer, float32_pointer, int32_pointer

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Bools = npt.NDArray[np.uint8]


@inlined
def floats(address: int, rows: int, columns: int) -> Any:
    """(rows, columns) float32 at `address`."""
    return carray(float32_pointer(address), (rows, columns))


@inlined
def integers(address: int, length: int) -> Any:
    """(length,) int32 at `address`."""
    return carray(int32_pointer(address), (length,))


@inlined
def bools(address: int, rows: int, columns: int) -> Any:
    """(rows, columns) uint8 at `address`."""
    return carray(bool_pointer(address), (rows, columns))


@inlined
def rows_at(address: int, n_rows: int, width: int) -> Any:
    """(n_rows, width) float32 at `address`, whose width the compiler knows."""
    return as_rows(floats(address, n_rows, width), width)


@inlined
def address_of(rows: Floats) -> Any:
    """Where the data of an array begins, int64."""
    return np.int64(rows.ctypes.data)


@inlined
def new_rows(n_rows: int, width: int) -> Any:
    """(n_rows, width) float32, uninitialised, no row in two cache lines: such a row loads at half speed."""
    memory = np.empty(n_rows * width + LANES, np.float32)
    first = -(memory.ctypes.data // 4) % LANES
    return as_rows(memory[first : first + n_rows * width].reshape((n_rows, width)), width)
