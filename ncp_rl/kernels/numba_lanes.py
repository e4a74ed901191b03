"""Sixteen float32 lanes as one value inside Numba kernels.

A kernel that holds sixteen sequences in the lanes of one LLVM vector leaves nothing to the auto-vectoriser: the vector
is one register with AVX-512, two with AVX2, four with NEON. `+`, `-` and `*` work on lanes; the functions below load,
store and spread them, and evaluate the two expensive operations of the cell, the logistic function and the reciprocal.
"""

# mypy: allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model
from numba.np.arrayobj import make_array

#: Sequences per vector: one AVX-512 register of float32.
LANES = 16

#: What a function hands to Numba: a signature, and the code generator that belongs to it.
Typed = tuple[Any, Callable[..., Any]]

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INT_VECTOR = ir.VectorType(_INT32, LANES)
_ROW_ALIGNMENT = 4

# A product and a sum may fuse. NaN and infinity keep their meaning: what is not a number must stay visible.
_FUSE = ("nsz", "contract")


class LanesType(types.Type):
    """Numba's type of a vector of `LANES` float32."""


lanes_type = LanesType(name=f"lanes{LANES}")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTOR)


def intrinsic(generator: Callable[..., Typed]) -> Callable[..., Any]:
    """`numba.extending.intrinsic`, typed as kernels call it: without the typing context."""
    compiled: Callable[..., Any] = extending.intrinsic(generator)
    return compiled


def _register_operator(python_operator: Callable[..., Any], instruction: str) -> None:
    @infer_global(python_operator)
    class _OnLanes(ConcreteTemplate):
        cases = [signature(lanes_type, lanes_type, lanes_type)]  # noqa: RUF012

    @lower_builtin(python_operator, lanes_type, lanes_type)
    def _lower(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments, flags=_FUSE)


_register_operator(operator.add, "fadd")
_register_operator(operator.sub, "fsub")
_register_operator(operator.mul, "fmul")


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


def _spread(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INT_VECTOR, [0] * LANES))


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any, index_type: Any) -> Any:
    """Address of a flat element, without Numba's wrap-around of negative indices."""
    index = context.cast(builder, index, index_type, types.intp)
    return builder.gep(make_array(array_type)(context, builder, array).data, [index])


def _row(context: Any, builder: Any, array_type: Any, array: Any, row: Any, row_type: Any) -> Any:
    row = context.cast(builder, row, row_type, types.intp)
    first = builder.mul(row, ir.Constant(row.type, LANES))
    address = builder.gep(make_array(array_type)(context, builder, array).data, [first])
    return builder.bitcast(address, _VECTOR.as_pointer())


@intrinsic
def load(typing_context: Any, array: Any, row: Any) -> Typed:
    """Row `row` of an array of `LANES` columns."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _row(context, builder, sig.args[0], arguments[0], arguments[1], sig.args[1])
        return builder.load(address, align=_ROW_ALIGNMENT)

    return lanes_type(array, row), generate


@intrinsic
def store(typing_context: Any, array: Any, row: Any, value: Any) -> Typed:
    """Write row `row` of an array of `LANES` columns."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _row(context, builder, sig.args[0], arguments[0], arguments[1], sig.args[1])
        builder.store(arguments[2], address, align=_ROW_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(array, row, value), generate


@intrinsic
def transpose(
    typing_context: Any, source: Any, first: Any, stride: Any, target: Any, target_first: Any, target_stride: Any
) -> Typed:
    """Write `LANES` rows of as many elements as columns; rows begin at flat index `first`, `stride` elements apart."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        def address(array: int, row: int) -> Any:
            offset = builder.add(arguments[array + 1], builder.mul(arguments[array + 2], ir.Constant(index, row)))
            start = _element(context, builder, sig.args[array], arguments[array], offset, types.intp)
            return builder.bitcast(start, _VECTOR.as_pointer())

        index = arguments[1].type
        rows = [builder.load(address(0, row), align=_ROW_ALIGNMENT) for row in range(LANES)]
        for row, column in enumerate(_transpose(builder, rows)):
            builder.store(column, address(3, row), align=_ROW_ALIGNMENT)
        return context.get_dummy_value()

    intp = types.intp
    return types.void(source, intp, intp, target, intp, intp), generate


def _transpose(builder: Any, rows: list[Any]) -> list[Any]:
    """Swap ever larger off-diagonal blocks of pairs of rows."""
    for size in (1, 2, 4, 8):
        upper = [lane if lane & size == 0 else LANES + lane - size for lane in range(LANES)]
        lower = [lane + size if lane & size == 0 else LANES + lane for lane in range(LANES)]
        swapped = list(rows)
        for row in range(LANES):
            if row & size == 0:
                pair = rows[row], rows[row + size]
                swapped[row] = builder.shuffle_vector(*pair, ir.Constant(_INT_VECTOR, upper))
                swapped[row + size] = builder.shuffle_vector(*pair, ir.Constant(_INT_VECTOR, lower))
        rows = swapped
    return rows


@intrinsic
def prefetch(typing_context: Any, array: Any, row: Any) -> Typed:
    """Ask for row `row`, which may lie outside of the array, to be brought near."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _row(context, builder, sig.args[0], arguments[0], arguments[1], sig.args[1])
        address = builder.bitcast(address, ir.IntType(8).as_pointer())
        # For reading, to be kept, data.
        hints = [ir.Constant(_INT32, hint) for hint in (0, 3, 1)]
        _call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [address, *hints])
        return context.get_dummy_value()

    return types.void(array, row), generate


@intrinsic
def broadcast(typing_context: Any, array: Any, index: Any) -> Typed:
    """One element of a flat array in every lane."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _element(context, builder, sig.args[0], arguments[0], arguments[1], sig.args[1])
        return _spread(builder, builder.load(address))

    return lanes_type(array, index), generate


@intrinsic
def integer(typing_context: Any, array: Any, index: Any) -> Typed:
    """One element of a flat int32 array as int64."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _element(context, builder, sig.args[0], arguments[0], arguments[1], sig.args[1])
        return builder.sext(builder.load(address), ir.IntType(64))

    return types.int64(array, index), generate


@intrinsic
def spread(typing_context: Any, value: Any) -> Typed:
    """A float32 in every lane."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0])

    return lanes_type(types.float32), generate


@intrinsic
def total(typing_context: Any, value: Any) -> Typed:
    """Sum over the lanes, float32."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _call(
            builder,
            f"llvm.vector.reduce.fadd.v{LANES}f32",
            _FLOAT,
            [ir.Constant(_FLOAT, 0.0), arguments[0]],
            fastmath=("reassoc",),
        )

    return types.float32(value), generate


@intrinsic
def fold4(typing_context: Any, first: Any, second: Any, third: Any, fourth: Any) -> Typed:
    """Partial sums of four lanes values in one: the sum of lanes m, m + 4, ... is the total of the m-th value."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        first, second, third, fourth = arguments
        left, right = _fold(builder, first, second, 1), _fold(builder, third, fourth, 1)
        return _fold(builder, left, right, 2)

    return lanes_type(first, second, third, fourth), generate


def _fold(builder: Any, x: Any, y: Any, width: int) -> Any:
    """Add the halves of each four lanes of x, and of y; `width` lanes of one follow as many of the other."""
    left = [lane for lane in range(LANES) if lane % 4 < 2]
    order: list[int] = []
    for first in range(0, len(left), width):
        chosen = left[first : first + width]
        order += [*chosen, *(LANES + lane for lane in chosen)]
    parts = [builder.shuffle_vector(x, y, ir.Constant(_INT_VECTOR, [lane + half for lane in order])) for half in (0, 2)]
    return builder.fadd(*parts, flags=_FUSE)


@intrinsic
def reciprocal(typing_context: Any, value: Any) -> Typed:
    """1 / value."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.fdiv(_constant(1.0), arguments[0])

    return lanes_type(value), generate


@intrinsic
def logistics2(typing_context: Any, first: Any, second: Any) -> Typed:
    """1 / (1 + 2^x) of two exponents x: the logistic function of -x ln 2.

    Two at once, operation by operation: one alone is a chain of fourteen operations that each wait for the last.
    """

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        values = _logistics2(builder, arguments, _exp2_table if _has_avx512(context) else _exp2)
        return context.make_tuple(builder, sig.return_type, values)

    return types.UniTuple(lanes_type, 2)(first, second), generate


@intrinsic
def float32_pointer(typing_context: Any, address: Any) -> Typed:
    """The address of a tensor's data, as `numba.carray` wants it."""
    return _pointer(types.float32, address)


@intrinsic
def int32_pointer(typing_context: Any, address: Any) -> Typed:
    """The address of a tensor's data, as `numba.carray` wants it."""
    return _pointer(types.int32, address)


@intrinsic
def bool_pointer(typing_context: Any, address: Any) -> Typed:
    """The address of a tensor's data, as `numba.carray` wants it."""
    return _pointer(types.uint8, address)


def _pointer(element_type: Any, address: Any) -> Typed:
    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(sig.return_type))

    return types.CPointer(element_type)(address), generate


def _logistics2(builder: Any, exponents: list[Any], exp2: Callable[..., Any]) -> list[Any]:
    one = _constant(1.0)
    powers = exp2(builder, [_clamp(builder, exponent) for exponent in exponents])
    denominators = [builder.fadd(power, one) for power in powers]
    return [builder.fdiv(one, denominator) for denominator in denominators]


def _clamp(builder: Any, exponent: Any) -> Any:
    """`exponent` between -126 and 126, where powers of two are normal numbers; far into saturation either way.

    The comparisons are ordered, so that NaN stays NaN.
    """
    for comparison, bound in (("<", _constant(-126.0)), (">", _constant(126.0))):
        exponent = builder.select(builder.fcmp_ordered(comparison, exponent, bound), bound, exponent)
    return exponent


def _exp2(builder: Any, exponents: list[Any]) -> list[Any]:
    """2^x by a whole power of two and a polynomial of degree 5."""
    wholes, rests = _split(builder, exponents, steps=1)
    mantissas = _polynomial(builder, rests, _exp2_coefficients(0.5, degree=5))
    shift = ir.Constant(_INT_VECTOR, [23] * LANES)
    return [
        builder.bitcast(builder.add(builder.bitcast(mantissa, _INT_VECTOR), builder.shl(whole, shift)), _VECTOR)
        for mantissa, whole in zip(mantissas, wholes, strict=True)
    ]


def _exp2_table(builder: Any, exponents: list[Any]) -> list[Any]:
    """2^x by a table of sixteenths, which lies in one AVX-512 register, and a polynomial of degree 2."""
    sixteenths, rests = _split(builder, exponents, steps=16)
    mantissas = _polynomial(builder, rests, _exp2_coefficients(1 / 32, degree=2))
    # Shifted by 19, the number of sixteenths adds its whole part to the exponent; the rest of it is taken off here.
    numbers = np.arange(16, dtype=np.int32)
    bits = (2.0 ** (numbers / 16)).astype(np.float32).view(np.int32) - (numbers << 19)
    table = ir.Constant(_INT_VECTOR, bits.tolist())
    shift = ir.Constant(_INT_VECTOR, [19] * LANES)
    # VPERMD reads the lowest four bits of each index.
    found = [_call(builder, "llvm.x86.avx512.permvar.si.512", _INT_VECTOR, [table, index]) for index in sixteenths]
    powers = [
        builder.bitcast(builder.add(entry, builder.shl(index, shift)), _VECTOR)
        for entry, index in zip(found, sixteenths, strict=True)
    ]
    return [builder.fmul(power, mantissa) for power, mantissa in zip(powers, mantissas, strict=True)]


def _split(builder: Any, values: list[Any], steps: int) -> tuple[list[Any], list[Any]]:
    """The nearest number of steps of 1 / `steps` in the lowest bits of an integer, and what is left."""
    # The sum has no bits for less than a step, so that adding rounds.
    rounder = _constant(1.5 * 2**23 / steps)
    sums = [builder.fadd(value, rounder) for value in values]
    rests = [builder.fsub(value, builder.fsub(sum_, rounder)) for value, sum_ in zip(values, sums, strict=True)]
    return [builder.bitcast(sum_, _INT_VECTOR) for sum_ in sums], rests


def _exp2_coefficients(bound: float, degree: int) -> list[float]:
    """Polynomial of 2^x for -bound <= x <= bound, lowest power first; relative error below 3e-7 as used here."""
    nodes = bound * np.cos(np.linspace(0, np.pi, 4001))
    powers = 2.0**nodes
    fit = np.polynomial.chebyshev.Chebyshev.fit(nodes, powers, degree, w=1 / powers, domain=[-bound, bound])
    return [float(np.float32(c)) for c in fit.convert(kind=np.polynomial.Polynomial).coef]


def _polynomial(builder: Any, values: list[Any], coefficients: list[float]) -> list[Any]:
    results = [_constant(coefficients[-1])] * len(values)
    for coefficient in map(_constant, coefficients[-2::-1]):
        products = [builder.fmul(result, x, flags=_FUSE) for result, x in zip(results, values, strict=True)]
        results = [builder.fadd(product, coefficient, flags=_FUSE) for product in products]
    return results


def _has_avx512(context: Any) -> bool:
    return "+avx512f" in context.codegen().magic_tuple()[2].split(",")


def _call(builder: Any, name: str, result: Any, arguments: list[Any], **options: Any) -> Any:
    declaration = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, declaration, name)
    return builder.call(function, arguments, **options)
