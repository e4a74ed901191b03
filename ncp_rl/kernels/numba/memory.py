"""Memory behind addresses, as arrays inside Numba kernels.

Every tensor arrives as the address of its data: Numba takes twenty integers in half a microsecond, and as many arrays
in ten.
"""

# mypy: allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray  # type: ignore[attr-defined]
from numba.core import errors, types
from numba.core.imputils import impl_ret_borrowed

from ncp_rl.jit import inlined
from ncp_rl.kernels.numba.vectors import LANES, RowsType, Typed, intrinsic

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Bools = npt.NDArray[np.uint8]


@inlined
def floats(address: int, rows: int, columns: int) -> Any:
    """Return the (rows, columns) float32 array at `address`."""
    return carray(float32_pointer(address), (rows, columns))


@inlined
def integers(address: int, length: int) -> Any:
    """Return the (length,) int32 array at `address`."""
    return carray(int32_pointer(address), (length,))


@inlined
def bools(address: int, rows: int, columns: int) -> Any:
    """Return the (rows, columns) uint8 array at `address`."""
    return carray(bool_pointer(address), (rows, columns))


@inlined
def rows_at(address: int, n_rows: int, width: int) -> Any:
    """Return the (n_rows, width) float32 array at `address`, whose width the compiler knows."""
    return as_rows(floats(address, n_rows, width), width)


@inlined
def address_of(rows: Floats) -> Any:
    """Return the address of an array's data, int64."""
    return np.int64(rows.ctypes.data)


@inlined
def new_rows(n_rows: int, width: int) -> Any:
    """Return an uninitialised (n_rows, width) float32 array; no row lies in two cache lines, which would be slow."""
    memory = np.empty(n_rows * width + LANES, np.float32)
    first = -(memory.ctypes.data // 4) % LANES
    return as_rows(memory[first : first + n_rows * width].reshape((n_rows, width)), width)


@intrinsic
def as_rows(typing_context: Any, array: Any, width: Any) -> Typed:
    """Return the same (rows, width) float32 array as one whose width the compiler knows; `width` is a constant."""
    if not isinstance(width, types.IntegerLiteral):
        raise errors.RequireLiteralValue(width)
    rows_type = RowsType(width.literal_value)

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return impl_ret_borrowed(context, builder, rows_type, arguments[0])

    return rows_type(array, width), generate


@intrinsic
def float32_pointer(typing_context: Any, address: Any) -> Typed:
    """Return the address of a tensor's data as `numba.carray` takes it."""
    return _pointer(types.float32, address)


@intrinsic
def int32_pointer(typing_context: Any, address: Any) -> Typed:
    """Return the address of a tensor's data as `numba.carray` takes it."""
    return _pointer(types.int32, address)


@intrinsic
def bool_pointer(typing_context: Any, address: Any) -> Typed:
    """Return the address of a tensor's data as `numba.carray` takes it."""
    return _pointer(types.uint8, address)


def _pointer(element_type: Any, address: Any) -> Typed:
    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(sig.return_type))

    return types.CPointer(element_type)(address), generate
