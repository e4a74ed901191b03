"""Vectors of float32 as values inside Numba kernels: their types, operators, and helpers of code generators.

A kernel that holds sixteen lanes in one LLVM vector leaves nothing to the auto-vectoriser: the vector is one register
with AVX-512, two with AVX2, four with NEON. Where there are fewer sequences than lanes, a vector takes several synapses
side by side. So there are two kinds of vectors, and arrays of type `RowsType` know the width of theirs: values of a
neuron are a row of `width` lanes, one for each sequence; values of synapses have `LANES` lanes, `width` for each of
`LANES // width` synapses.

`+`, `-` and `*` work on lanes, also with one number. The other functions of this file are for code generators, which
`access.py`, `arithmetic.py` and `exp2.py` hold: they write LLVM instructions with a `builder`.
"""

# mypy: allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model
from numba.np.arrayobj import make_array

#: Lanes of a vector of synapses: one AVX-512 register of float32.
LANES = 16
#: Numbers of sequences that a row may hold.
WIDTHS = (4, 8, 16)

#: The result of a typing function for Numba: a signature, and its code generator.
Typed = tuple[Any, Callable[..., Any]]

FLOAT = ir.FloatType()
INT32 = ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
INT_VECTOR = ir.VectorType(INT32, LANES)
#: Bytes; a row may begin at any float32.
ROW_ALIGNMENT = 4

#: A product and a sum may fuse. NaN and infinity keep their meaning, so that errors stay visible.
FUSE = ("nsz", "contract")


class LanesType(types.Type):
    """Numba's type of a vector of `width` float32."""

    def __init__(self, width: int) -> None:
        """The type of vectors of one width."""
        super().__init__(name=f"lanes{width}")
        self.width = width


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, ir.VectorType(FLOAT, numba_type.width))


lanes_type = LanesType(LANES)


class RowsType(types.Array):
    """Numba's type of a (rows, width) float32 array, whose width the compiler knows."""

    def __init__(self, width: int) -> None:
        """The type of arrays of one width."""
        super().__init__(types.float32, 2, "C", name=f"rows{width}")
        self.width = width

    @property
    def key(self) -> Any:
        """The values by which Numba distinguishes this type from others."""
        return (*super().key, self.width)

    @property
    def mangling_args(self) -> Any:
        """The values by which symbols of functions of this type differ from others.

        Kernels of two widths, compiled in two processes, meet in a third that takes both from the cache; the first
        symbol of a name serves all of them.
        """
        name, arguments = super().mangling_args
        return f"{name}{self.width}", arguments


register_model(RowsType)(models.ArrayModel)


def intrinsic(generator: Callable[..., Typed]) -> Callable[..., Any]:
    """Apply `numba.extending.intrinsic`, with the type that kernels call: without the typing context."""
    compiled: Callable[..., Any] = extending.intrinsic(prefer_literal=True)(generator)
    return compiled


def _register_operator(python_operator: Callable[..., Any], instruction: str) -> None:
    lanes = [LanesType(width) for width in WIDTHS]
    number = types.float32
    operands = [pair for one in lanes for pair in ((one, one), (one, number), (number, one))]

    @infer_global(python_operator)
    class _OnLanes(ConcreteTemplate):
        cases = [signature(max(pair, key=_width_of), *pair) for pair in operands]  # noqa: RUF012

    for pair in operands:

        @lower_builtin(python_operator, *pair)
        def _lower(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            width = sig.return_type.width
            spread = [as_lanes(builder, *argument, width) for argument in zip(sig.args, arguments, strict=True)]
            return getattr(builder, instruction)(*spread, flags=FUSE)


def _width_of(numba_type: Any) -> int:
    return getattr(numba_type, "width", 1)


def as_lanes(builder: Any, numba_type: Any, value: Any, width: int) -> Any:
    """Return a vector unchanged, or a number in all of `width` lanes."""
    return value if isinstance(numba_type, LanesType) else fill_lanes(builder, value, width)


_register_operator(operator.add, "fadd")
_register_operator(operator.sub, "fsub")
_register_operator(operator.mul, "fmul")


def constant(value: float, width: int = LANES) -> ir.Constant:
    """Return the constant vector with `value` in `width` lanes."""
    return ir.Constant(ir.VectorType(FLOAT, width), [value] * width)


def shuffle(builder: Any, first: Any, second: Any, lanes: Iterable[int]) -> Any:
    """Choose lanes of two vectors; the lanes of `second` are numbered after those of `first`."""
    indices = list(lanes)
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(INT32, len(indices)), indices))


def choose_lanes(builder: Any, value: Any, lanes: Iterable[int]) -> Any:
    """Choose lanes of one vector."""
    return shuffle(builder, value, ir.Constant(value.type, ir.Undefined), lanes)


def fill_lanes(builder: Any, scalar: Any, width: int = LANES) -> Any:
    """Return a vector with a number in every lane."""
    undefined = ir.Constant(ir.VectorType(FLOAT, 1), ir.Undefined)
    return choose_lanes(builder, builder.insert_element(undefined, scalar, ir.Constant(INT32, 0)), [0] * width)


def element_address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, index_type: Any) -> Any:
    """Return the address of a flat element, without Numba's wrap-around of negative indices."""
    index = context.cast(builder, index, index_type, types.intp)
    return builder.gep(make_array(array_type)(context, builder, array).data, [index])


def vector_at(builder: Any, address: Any, width: int) -> Any:
    """Return the same address as that of a vector."""
    return builder.bitcast(address, ir.VectorType(FLOAT, width).as_pointer())


def row_address(context: Any, builder: Any, rows_type: Any, rows: Any, row: Any, row_type: Any) -> Any:
    """Return the address of one row as that of a vector."""
    row = context.cast(builder, row, row_type, types.intp)
    first = builder.mul(row, ir.Constant(row.type, rows_type.width))
    return vector_at(builder, element_address(context, builder, rows_type, rows, first, types.intp), rows_type.width)


def call(builder: Any, name: str, result: Any, arguments: list[Any], **options: Any) -> Any:
    """Call the LLVM intrinsic of this name."""
    declaration = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, declaration, name)
    return builder.call(function, arguments, **options)
