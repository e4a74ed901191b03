"""Arithmetic on vectors inside Numba kernels, beside `+`, `-` and `*`."""

# mypy: allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from ncp_rl.kernels.numba.vectors import (
    FLOAT,
    FUSE,
    INT32,
    LANES,
    LanesType,
    Typed,
    call,
    choose_lanes,
    constant,
    fill_lanes,
    intrinsic,
    lanes_type,
)


@intrinsic
def filled(typing_context: Any, value: Any) -> Typed:
    """Return a vector of synapses with a float32 in every lane."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return fill_lanes(builder, arguments[0])

    return lanes_type(types.float32), generate


@intrinsic
def repeat_row(typing_context: Any, row: Any) -> Typed:
    """Repeat one row for every synapse of a vector."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return choose_lanes(builder, arguments[0], [lane % row.width for lane in range(LANES)])

    return lanes_type(row), generate


@intrinsic
def sum_synapses(typing_context: Any, value: Any, rows: Any) -> Typed:
    """Sum over the synapses of a vector, as wide as `rows`."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        result = arguments[0]
        while result.type.count > rows.width:
            half = result.type.count // 2
            parts = [choose_lanes(builder, result, range(first, first + half)) for first in (0, half)]
            result = builder.fadd(*parts, flags=FUSE)
        return result

    return LanesType(rows.width)(value, rows), generate


@intrinsic
def keep_first(typing_context: Any, row: Any, count: Any) -> Typed:
    """Keep the first `count` lanes and set the others to zero."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        integers = ir.VectorType(INT32, row.width)
        bound = builder.bitcast(builder.trunc(arguments[1], INT32), ir.VectorType(INT32, 1))
        bounds = choose_lanes(builder, bound, [0] * row.width)
        kept = builder.icmp_signed("<", ir.Constant(integers, list(range(row.width))), bounds)
        return builder.select(kept, arguments[0], constant(0.0, row.width))

    return row(row, types.intp), generate


@intrinsic
def larger_magnitude(typing_context: Any, bound: Any, value: Any) -> Typed:
    """Return in each lane the larger of `bound` and the magnitude of `value`; NaN is ignored."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        magnitude = call(builder, f"llvm.fabs.v{value.width}f32", arguments[1].type, arguments[1:])
        return builder.select(builder.fcmp_ordered(">", magnitude, arguments[0]), magnitude, arguments[0])

    return value(bound, value), generate


@intrinsic
def highest_lane(typing_context: Any, value: Any) -> Typed:
    """Return the largest lane, float32."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return call(builder, f"llvm.vector.reduce.fmax.v{value.width}f32", FLOAT, arguments)

    return types.float32(value), generate


@intrinsic
def sum_lanes(typing_context: Any, value: Any) -> Typed:
    """Sum over the lanes, float32."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return call(
            builder,
            f"llvm.vector.reduce.fadd.v{value.width}f32",
            FLOAT,
            [ir.Constant(FLOAT, 0.0), arguments[0]],
            fastmath=("reassoc",),
        )

    return types.float32(value), generate


@intrinsic
def reciprocal(typing_context: Any, value: Any) -> Typed:
    """Return 1 / value."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.fdiv(constant(1.0, value.width), arguments[0])

    return value(value), generate
