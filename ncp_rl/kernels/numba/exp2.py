"""1 + 2^x on vectors, from which a sigmoid is one division away; accurate to some 5e-7 of its value."""

# mypy: allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ncp_rl.kernels.numba.vectors import (
    FLOAT,
    FUSE,
    INT_VECTOR,
    LANES,
    VECTOR,
    Typed,
    call,
    choose_lanes,
    constant,
    intrinsic,
    lanes_type,
    shuffle,
)

#: Exponents to base 2 between this and its negative give powers that are normal numbers.
MAX_EXPONENT = 126.0


@intrinsic
def one_plus_exp2(typing_context: Any, exponent: Any) -> Typed:
    """Compute 1 + 2^x of exponents x, NaN or within `MAX_EXPONENT`: one over the logistic function of -x ln 2.

    Where the processor can look up powers in a register, a table of them saves two or three multiplications.
    """

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        features = context.codegen().magic_tuple()[2].split(",")
        method = next((method for feature, method in _WITH_TABLE.items() if feature in features), _with_polynomial)
        return method(builder, arguments[0])

    return lanes_type(exponent), generate


@intrinsic
def clamp_exponent(typing_context: Any, exponent: Any) -> Typed:
    """Clamp `exponent` to `MAX_EXPONENT`, where the sigmoid is saturated. NaN stays NaN by ordered comparisons."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        exponent = arguments[0]
        for comparison, bound in (("<", constant(-MAX_EXPONENT)), (">", constant(MAX_EXPONENT))):
            exponent = builder.select(builder.fcmp_ordered(comparison, exponent, bound), bound, exponent)
        return exponent

    return lanes_type(exponent), generate


def _with_polynomial(builder: Any, exponent: Any) -> Any:
    """Compute 1 + 2^x by a whole power of two and a polynomial of degree 5."""
    whole, rest = _split(builder, exponent, steps=1)
    mantissa = _polynomial(builder, rest, _exp2_coefficients(0.5, degree=5))
    shift = ir.Constant(INT_VECTOR, [23] * LANES)
    power = builder.bitcast(builder.add(builder.bitcast(mantissa, INT_VECTOR), builder.shl(whole, shift)), VECTOR)
    return builder.fadd(power, constant(1.0), flags=FUSE)


def _with_table(builder: Any, exponent: Any, bits: int, degree: int, look_up: Callable[..., Any]) -> Any:
    """Compute 1 + 2^x by a table of 2^`bits` powers, which lies in one register, and a polynomial."""
    steps, rest = _split(builder, exponent, steps=1 << bits)
    coefficients = _exp2_coefficients(0.5 / (1 << bits), degree)
    # The table absorbs the first coefficient, so the polynomial begins with 1, a constant that is needed anyway.
    mantissa = _polynomial(builder, rest, coefficients / coefficients[0])
    # The shifted number of steps adds its whole part to the exponent; the other bits are removed here.
    numbers = np.arange(1 << bits, dtype=np.int32)
    powers = (coefficients[0] * 2.0 ** (numbers / (1 << bits))).astype(np.float32)
    entries = powers.view(np.int32) - (numbers << (23 - bits))
    shift = ir.Constant(INT_VECTOR, [23 - bits] * LANES)
    found = look_up(builder, entries, steps)
    power = builder.bitcast(builder.add(found, builder.shl(steps, shift)), VECTOR)
    return _multiply_add(builder, power, mantissa, constant(1.0))


def _look_up16(builder: Any, entries: Any, index: Any) -> Any:
    """Look up entries by VPERMD, which reads the lowest four bits of each index."""
    table = ir.Constant(INT_VECTOR, entries.tolist())
    return call(builder, "llvm.x86.avx512.permvar.si.512", INT_VECTOR, [table, index])


def _look_up4(builder: Any, entries: Any, index: Any) -> Any:
    """Look up entries by VPERMILPS, which reads the lowest two bits of each index."""
    octet = ir.VectorType(FLOAT, 8)
    table = ir.Constant(octet, [float(x) for x in np.tile(entries.view(np.float32), 2)])
    halves = [choose_lanes(builder, index, range(first, first + 8)) for first in (0, 8)]
    low, high = (call(builder, "llvm.x86.avx.vpermilvar.ps.256", octet, [table, half]) for half in halves)
    return builder.bitcast(shuffle(builder, low, high, range(LANES)), INT_VECTOR)


#: Methods with a table by the features of processors, the fastest first.
_WITH_TABLE: dict[str, Callable[..., Any]] = {
    "+avx512f": functools.partial(_with_table, bits=4, degree=2, look_up=_look_up16),
    "+avx2": functools.partial(_with_table, bits=2, degree=3, look_up=_look_up4),
}


def _split(builder: Any, value: Any, steps: int) -> tuple[Any, Any]:
    """Split `value` into the nearest number of steps of 1 / `steps`, in the lowest bits of an integer, and the rest."""
    # The sum has no bits for less than a step, so that adding rounds. Behind the fence the compiler sees no constant,
    # from which it would make a second, negative constant: registers are scarce here.
    rounder = call(builder, f"llvm.arithmetic.fence.v{LANES}f32", VECTOR, [constant(1.5 * 2**23 / steps)])
    total = builder.fadd(value, rounder)
    return builder.bitcast(total, INT_VECTOR), builder.fsub(value, builder.fsub(total, rounder))


def _exp2_coefficients(bound: float, degree: int) -> npt.NDArray[np.float64]:
    """Fit a polynomial to 2^x for -bound <= x <= bound, lowest power first, to a relative error below 5e-7."""
    nodes = bound * np.cos(np.linspace(0, np.pi, 4001))
    powers = 2.0**nodes
    fit = np.polynomial.chebyshev.Chebyshev.fit(nodes, powers, degree, w=1 / powers, domain=[-bound, bound])
    return np.asarray(fit.convert(kind=np.polynomial.Polynomial).coef, np.float64)


def _polynomial(builder: Any, x: Any, coefficients: npt.NDArray[np.float64]) -> Any:
    """Evaluate the polynomial with these coefficients, lowest power first."""
    *lower, result = (constant(float(np.float32(c))) for c in coefficients)
    for coefficient in lower[::-1]:
        result = _multiply_add(builder, result, x, coefficient)
    return result


def _multiply_add(builder: Any, factor: Any, other: Any, term: Any) -> Any:
    return builder.fadd(builder.fmul(factor, other, flags=FUSE), term, flags=FUSE)
