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
def reciprocal(typing_context: Any, value: Any) -> Typed:
    """1 / value, within two units in the last place for normal numbers."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _reciprocal(builder, arguments[0], _has_avx512(context))

    return lanes_type(value), generate


@intrinsic
def logistic2(typing_context: Any, exponent: Any) -> Typed:
    """1 / (1 + 2^exponent): the logistic function of -exponent ln 2."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        avx512 = _has_avx512(context)
        # 2^126 is far into saturation, and its reciprocal is still a normal number. The comparison is ordered, so
        # that NaN stays NaN.
        exponent = _minimum(builder, arguments[0], _constant(126.0))
        power = _exp2_avx512(builder, exponent) if avx512 else _exp2(builder, exponent)
        return _reciprocal(builder, builder.fadd(power, _constant(1.0)), avx512)

    return lanes_type(exponent), generate


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


def _exp2_coefficients(first: float, degree: int = 5) -> list[float]:
    """Polynomial of 2^f for f from `first` to `first` + 1, relative error 8e-8 at degree 5; lowest power first."""
    nodes = first + 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, 4001))
    powers = 2.0**nodes
    fit = np.polynomial.chebyshev.Chebyshev.fit(nodes, powers, degree, w=1 / powers, domain=[first, first + 1])
    return [float(np.float32(c)) for c in fit.convert(kind=np.polynomial.Polynomial).coef]


def _horner(builder: Any, x: Any, coefficients: list[float]) -> Any:
    result = _constant(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = builder.fadd(builder.fmul(result, x, flags=_FUSE), _constant(coefficient), flags=_FUSE)
    return result


def _exp2(builder: Any, exponent: Any) -> Any:
    exponent = builder.select(builder.fcmp_ordered("<", exponent, _constant(-126.0)), _constant(-126.0), exponent)
    # Adding 1.5 * 2^23 rounds to the nearest whole number, which then stands in the lowest bits.
    rounder = _constant(1.5 * 2**23)
    shifted = builder.fadd(exponent, rounder)
    fraction = builder.fsub(exponent, builder.fsub(shifted, rounder))
    mantissa = _horner(builder, fraction, _exp2_coefficients(-0.5))
    bits = builder.shl(builder.bitcast(shifted, _INT_VECTOR), ir.Constant(_INT_VECTOR, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(mantissa, _INT_VECTOR), bits), _VECTOR)


_ALL_LANES = ir.Constant(ir.IntType(16), -1)
_CURRENT_ROUNDING = ir.Constant(_INT32, 4)
# VREDUCEPS: x - floor(x), no exceptions.
_FRACTION_ABOVE_FLOOR = ir.Constant(_INT32, 0b1001)


def _exp2_avx512(builder: Any, exponent: Any) -> Any:
    """Two instructions take the exponent apart and put it back, where the portable form needs seven."""
    unused = _constant(0.0)
    fraction = _call(
        builder,
        "llvm.x86.avx512.mask.reduce.ps.512",
        _VECTOR,
        [exponent, _FRACTION_ABOVE_FLOOR, unused, _ALL_LANES, _CURRENT_ROUNDING],
    )
    mantissa = _horner(builder, fraction, _exp2_coefficients(0.0))
    return _call(
        builder,
        "llvm.x86.avx512.mask.scalef.ps.512",
        _VECTOR,
        [mantissa, exponent, unused, _ALL_LANES, _CURRENT_ROUNDING],
    )


def _reciprocal(builder: Any, value: Any, avx512: bool) -> Any:
    one = _constant(1.0)
    if not avx512:
        return builder.fdiv(one, value)
    # 14 bits from the table, 24 after one step of Newton's method: cheaper than a division.
    estimate = _call(builder, "llvm.x86.avx512.rcp14.ps.512", _VECTOR, [value, _constant(0.0), _ALL_LANES])
    error = builder.fsub(one, builder.fmul(value, estimate, flags=_FUSE), flags=_FUSE)
    return builder.fadd(estimate, builder.fmul(estimate, error, flags=_FUSE), flags=_FUSE)


def _minimum(builder: Any, x: Any, bound: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, bound), bound, x)


def _has_avx512(context: Any) -> bool:
    features = context.codegen().magic_tuple()[2].split(",")
    return "+avx512f" in features and "+avx512dq" in features


def _call(builder: Any, name: str, result: Any, arguments: list[Any], **options: Any) -> Any:
    declaration = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, declaration, name)
    return builder.call(function, arguments, **options)
