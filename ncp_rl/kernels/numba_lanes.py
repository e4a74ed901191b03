"""Vectors of float32 as values inside Numba kernels.

A kernel that holds sixteen lanes in one LLVM vector leaves nothing to the auto-vectoriser: the vector is one register
with AVX-512, two with AVX2, four with NEON. Where there are fewer sequences than lanes, a vector takes several synapses
side by side. So two kinds of vectors occur, and arrays of type `RowsType` know how wide theirs are: what belongs to a
neuron is a row of `width` lanes, one for each sequence; what belongs to synapses has `LANES` lanes, `width` for each of
`LANES // width` synapses.

`+`, `-` and `*` work on lanes, also with one number; the functions below load, store and spread them, lead from rows
to synapses and back, and evaluate the two expensive operations of the cell, the power and the reciprocal.
"""

# mypy: allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import extending
from numba.core import errors, types
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model
from numba.np.arrayobj import make_array

#: Lanes of a vector of synapses: one AVX-512 register of float32.
LANES = 16
#: How many sequences a row may hold.
WIDTHS = (8, 16)
#: Exponents to base 2 between this and its negative give powers that are normal numbers.
MAX_EXPONENT = 126.0

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
    """Numba's type of a vector of `width` float32."""

    def __init__(self, width: int) -> None:
        """The type of vectors of one width."""
        super().__init__(name=f"lanes{width}")
        self.width = width


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, ir.VectorType(_FLOAT, numba_type.width))


lanes_type = LanesType(LANES)


class RowsType(types.Array):
    """Numba's type of a (rows, width) float32 array, whose width the compiler knows."""

    def __init__(self, width: int) -> None:
        """The type of arrays of one width."""
        super().__init__(types.float32, 2, "C", name=f"rows{width}")
        self.width = width

    @property
    def key(self) -> Any:
        """What tells this type from others."""
        return (*super().key, self.width)

    @property
    def mangling_args(self) -> Any:
        """What tells the symbols of functions of this type from others.

        Kernels of two widths, compiled in two processes, meet in a third that takes both from the cache; the first
        symbol of a name serves all of them.
        """
        name, arguments = super().mangling_args
        return f"{name}{self.width}", arguments


register_model(RowsType)(models.ArrayModel)


def intrinsic(generator: Callable[..., Typed]) -> Callable[..., Any]:
    """`numba.extending.intrinsic`, typed as kernels call it: without the typing context."""
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
            spread = [_as_lanes(builder, *argument, width) for argument in zip(sig.args, arguments, strict=True)]
            return getattr(builder, instruction)(*spread, flags=_FUSE)


def _width_of(numba_type: Any) -> int:
    return getattr(numba_type, "width", 1)


def _as_lanes(builder: Any, numba_type: Any, value: Any, width: int) -> Any:
    return value if isinstance(numba_type, LanesType) else _spread(builder, value, width)


_register_operator(operator.add, "fadd")
_register_operator(operator.sub, "fsub")
_register_operator(operator.mul, "fmul")


def _constant(value: float, width: int = LANES) -> ir.Constant:
    return ir.Constant(ir.VectorType(_FLOAT, width), [value] * width)


def _shuffle(builder: Any, first: Any, second: Any, lanes: Iterable[int]) -> Any:
    """The chosen lanes of two vectors; those of `second` count on from those of `first`."""
    indices = list(lanes)
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_INT32, len(indices)), indices))


def _choose(builder: Any, value: Any, lanes: Iterable[int]) -> Any:
    return _shuffle(builder, value, ir.Constant(value.type, ir.Undefined), lanes)


def _spread(builder: Any, scalar: Any, width: int = LANES) -> Any:
    undefined = ir.Constant(ir.VectorType(_FLOAT, 1), ir.Undefined)
    return _choose(builder, builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0)), [0] * width)


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any, index_type: Any) -> Any:
    """Address of a flat element, without Numba's wrap-around of negative indices."""
    index = context.cast(builder, index, index_type, types.intp)
    return builder.gep(make_array(array_type)(context, builder, array).data, [index])


def _vector_at(builder: Any, address: Any, width: int) -> Any:
    return builder.bitcast(address, ir.VectorType(_FLOAT, width).as_pointer())


def _row(context: Any, builder: Any, rows_type: Any, rows: Any, row: Any, row_type: Any) -> Any:
    row = context.cast(builder, row, row_type, types.intp)
    first = builder.mul(row, ir.Constant(row.type, rows_type.width))
    return _vector_at(builder, _element(context, builder, rows_type, rows, first, types.intp), rows_type.width)


@intrinsic
def as_rows(typing_context: Any, array: Any, width: Any) -> Typed:
    """The same (rows, width) float32 array, as one whose width the compiler knows; `width` is a constant."""
    if not isinstance(width, types.IntegerLiteral):
        raise errors.RequireLiteralValue(width)
    rows_type = RowsType(width.literal_value)

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return impl_ret_borrowed(context, builder, rows_type, arguments[0])

    return rows_type(array, width), generate


@intrinsic
def keep_apart(typing_context: Any) -> Typed:
    """Keep the calling function out of its callers, whose values would take its registers.

    Registers that do not suffice are kept on its stack, within cache lines.
    """

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        builder.function.attributes.alignstack = 64
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def load(typing_context: Any, rows: Any, row: Any) -> Typed:
    """One row."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _row(context, builder, rows, arguments[0], arguments[1], sig.args[1])
        return builder.load(address, align=_ROW_ALIGNMENT)

    return LanesType(rows.width)(rows, row), generate


@intrinsic
def store(typing_context: Any, rows: Any, row: Any, value: Any) -> Typed:
    """Write one row; a number goes to all of its lanes."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _row(context, builder, rows, arguments[0], arguments[1], sig.args[1])
        builder.store(_as_lanes(builder, sig.args[2], arguments[2], rows.width), address, align=_ROW_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(rows, row, value), generate


@intrinsic
def stream(typing_context: Any, rows: Any, row: Any, value: Any) -> Typed:
    """Write one row, which begins at a multiple of its size, past the caches: for what is read much later.

    Other threads see it after a `fence`.
    """

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _row(context, builder, rows, arguments[0], arguments[1], sig.args[1])
        instruction = builder.store(arguments[2], address, align=4 * rows.width)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_INT32, 1)]))
        return context.get_dummy_value()

    return types.void(rows, row, value), generate


@intrinsic
def fence(typing_context: Any) -> Typed:
    """Let all that was written be seen before anything else happens."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def prefetch(typing_context: Any, rows: Any, row: Any, n_before: Any) -> Typed:
    """Bring near what lies `n_before` elements before a row; nothing needs to be there."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        array, row_index, distance = arguments
        first = builder.bitcast(_row(context, builder, rows, array, row_index, sig.args[1]), _FLOAT.as_pointer())
        address = builder.bitcast(builder.gep(first, [builder.neg(distance)]), ir.IntType(8).as_pointer())
        # Reading, into the second level, of data.
        options = [ir.Constant(_INT32, value) for value in (0, 2, 1)]
        _call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [address, *options])
        return context.get_dummy_value()

    return types.void(rows, row, types.intp), generate


@intrinsic
def load_sources(typing_context: Any, rows: Any, first_row: Any, source: Any, vector: Any) -> Typed:
    """The rows of the presynaptic neurons of all synapses in one vector.

    `source` (vectors * LANES // width,) int32 has where these rows begin, in elements after row `first_row`.
    """

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        addresses = _source_rows(context, builder, sig.args, arguments)
        parts = [builder.load(address, align=_ROW_ALIGNMENT) for address in addresses]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [_shuffle(builder, *pair, range(2 * pair[0].type.count)) for pair in pairs]
        return parts[0]

    return lanes_type(rows, first_row, source, vector), generate


@intrinsic
def add_to_sources(typing_context: Any, rows: Any, source: Any, vector: Any, value: Any) -> Typed:
    """Add its part of `value` to the row of each presynaptic neuron; the inverse of `load_sources`."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        array, *rest, whole = arguments
        first_row = ir.Constant(ir.IntType(64), 0)
        operands = [rows, types.intp, *sig.args[1:3]], [array, first_row, *rest]
        # One after the other: the sources may be the same.
        for part, address in enumerate(_source_rows(context, builder, *operands)):
            before = builder.load(address, align=_ROW_ALIGNMENT)
            share = _choose(builder, whole, range(part * rows.width, (part + 1) * rows.width))
            builder.store(builder.fadd(before, share, flags=_FUSE), address, align=_ROW_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(rows, source, vector, value), generate


@intrinsic
def add_parts(typing_context: Any, rows: Any, row: Any, value: Any) -> Typed:
    """Add to one row: `value` where the row is as wide, else each part of it that is."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _row(context, builder, rows, arguments[0], arguments[1], sig.args[1])
        result = builder.load(address, align=_ROW_ALIGNMENT)
        for first in range(0, LANES, rows.width):
            result = builder.fadd(_choose(builder, arguments[2], range(first, first + rows.width)), result, flags=_FUSE)
        builder.store(result, address, align=_ROW_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(rows, row, value), generate


def _source_rows(context: Any, builder: Any, operand_types: Any, operands: Any) -> list[Any]:
    """Addresses of the rows behind the entries of `source` for one vector."""
    (rows_type, first_type, source_type, vector_type), (rows, first_row, source, vector) = operand_types, operands
    first = builder.bitcast(_row(context, builder, rows_type, rows, first_row, first_type), _FLOAT.as_pointer())
    vector = context.cast(builder, vector, vector_type, types.intp)
    n_parts = LANES // rows_type.width
    addresses = []
    for part in range(n_parts):
        entry = builder.add(builder.mul(vector, ir.Constant(vector.type, n_parts)), ir.Constant(vector.type, part))
        offset = builder.load(_element(context, builder, source_type, source, entry, types.intp))
        row = builder.gep(first, [builder.sext(offset, vector.type)])
        addresses.append(_vector_at(builder, row, rows_type.width))
    return addresses


@intrinsic
def repeat(typing_context: Any, row: Any) -> Typed:
    """One row for every synapse of a vector."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _choose(builder, arguments[0], [lane % row.width for lane in range(LANES)])

    return lanes_type(row), generate


@intrinsic
def fold(typing_context: Any, value: Any, rows: Any) -> Typed:
    """Sum over the synapses of a vector, as wide as `rows`."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        result = arguments[0]
        while result.type.count > rows.width:
            half = result.type.count // 2
            parts = [_choose(builder, result, range(first, first + half)) for first in (0, half)]
            result = builder.fadd(*parts, flags=_FUSE)
        return result

    return LanesType(rows.width)(value, rows), generate


@intrinsic
def keep_first(typing_context: Any, row: Any, count: Any) -> Typed:
    """The first `count` lanes; the others become zero."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        integers = ir.VectorType(_INT32, row.width)
        bound = builder.bitcast(builder.trunc(arguments[1], _INT32), ir.VectorType(_INT32, 1))
        bounds = _choose(builder, bound, [0] * row.width)
        kept = builder.icmp_signed("<", ir.Constant(integers, list(range(row.width))), bounds)
        return builder.select(kept, arguments[0], _constant(0.0, row.width))

    return row(row, types.intp), generate


@intrinsic
def transpose(
    typing_context: Any,
    like: Any,
    source: Any,
    first: Any,
    stride: Any,
    count: Any,
    target: Any,
    target_first: Any,
    target_stride: Any,
    target_count: Any,
) -> Typed:
    """Transpose a tile as many elements wide and high as `like` is wide.

    Its rows begin at flat index `first`, `stride` elements apart. Rows of the source past the first `count` repeat the
    last of these; rows of the target past the first `target_count` are not written.
    """
    width = like.width

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        def address(array: int, row: int) -> Any:
            start, row_stride, rows = arguments[array + 1 : array + 4]
            last = builder.sub(rows, ir.Constant(rows.type, 1))
            index = ir.Constant(rows.type, row)
            row = builder.select(builder.icmp_signed("<", index, last), index, last)
            offset = builder.add(start, builder.mul(row_stride, row))
            return _vector_at(
                builder, _element(context, builder, sig.args[array], arguments[array], offset, types.intp), width
            )

        rows = [builder.load(address(1, row), align=_ROW_ALIGNMENT) for row in range(width)]
        columns = _transpose(builder, rows)
        # From the last to the first: what goes beyond `target_count` goes to the last row, before its own values.
        for column in range(width - 1, -1, -1):
            builder.store(columns[column], address(5, column), align=_ROW_ALIGNMENT)
        return context.get_dummy_value()

    intp = types.intp
    return types.void(like, source, intp, intp, intp, target, intp, intp, intp), generate


def _transpose(builder: Any, rows: list[Any]) -> list[Any]:
    """Swap ever larger off-diagonal blocks of pairs of rows."""
    width = len(rows)
    size = 1
    while size < width:
        upper = [lane if lane & size == 0 else width + lane - size for lane in range(width)]
        lower = [lane + size if lane & size == 0 else width + lane for lane in range(width)]
        swapped = list(rows)
        for row in range(width):
            if row & size == 0:
                pair = rows[row], rows[row + size]
                swapped[row] = _shuffle(builder, *pair, upper)
                swapped[row + size] = _shuffle(builder, *pair, lower)
        rows = swapped
        size *= 2
    return rows


@intrinsic
def broadcast(typing_context: Any, table: Any, row: Any) -> Typed:
    """Row `row` of a table, which holds either all lanes of a vector of synapses, or the one number of them all."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _row(context, builder, table, arguments[0], arguments[1], sig.args[1])
        numbers = builder.load(address, align=_ROW_ALIGNMENT)
        return _choose(builder, numbers, [lane % table.width for lane in range(LANES)])

    return lanes_type(table, row), generate


@intrinsic
def integer(typing_context: Any, array: Any, index: Any) -> Typed:
    """One element of a flat int32 array as int64."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = _element(context, builder, sig.args[0], arguments[0], arguments[1], sig.args[1])
        return builder.sext(builder.load(address), ir.IntType(64))

    return types.int64(array, index), generate


@intrinsic
def number(typing_context: Any, array: Any, index: Any) -> Typed:
    """One element of a float32 array, by its flat index."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.load(_element(context, builder, sig.args[0], arguments[0], arguments[1], sig.args[1]))

    return types.float32(array, index), generate


@intrinsic
def spread(typing_context: Any, value: Any) -> Typed:
    """A float32 in every lane of a vector of synapses."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0])

    return lanes_type(types.float32), generate


@intrinsic
def larger(typing_context: Any, bound: Any, value: Any) -> Typed:
    """In each lane, the larger of `bound` and the magnitude of `value`; NaN does not count."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        magnitude = _call(builder, f"llvm.fabs.v{value.width}f32", arguments[1].type, arguments[1:])
        return builder.select(builder.fcmp_ordered(">", magnitude, arguments[0]), magnitude, arguments[0])

    return value(bound, value), generate


@intrinsic
def highest(typing_context: Any, value: Any) -> Typed:
    """The largest lane, float32."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _call(builder, f"llvm.vector.reduce.fmax.v{value.width}f32", _FLOAT, arguments)

    return types.float32(value), generate


@intrinsic
def total(typing_context: Any, value: Any) -> Typed:
    """Sum over the lanes, float32."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _call(
            builder,
            f"llvm.vector.reduce.fadd.v{value.width}f32",
            _FLOAT,
            [ir.Constant(_FLOAT, 0.0), arguments[0]],
            fastmath=("reassoc",),
        )

    return types.float32(value), generate


@intrinsic
def reciprocal(typing_context: Any, value: Any) -> Typed:
    """1 / value."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.fdiv(_constant(1.0, value.width), arguments[0])

    return value(value), generate


@intrinsic
def one_plus_exp2(typing_context: Any, exponent: Any) -> Typed:
    """1 + 2^x of exponents x, NaN or within `MAX_EXPONENT`: one over the logistic function of -x ln 2.

    Wherever the processor finds powers in a register, a table of them saves two or three multiplications.
    """

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        features = context.codegen().magic_tuple()[2].split(",")
        method = next((method for feature, method in _WITH_TABLE.items() if feature in features), _with_polynomial)
        return method(builder, arguments[0])

    return lanes_type(exponent), generate


@intrinsic
def clamp_exponent(typing_context: Any, exponent: Any) -> Typed:
    """`exponent` within `MAX_EXPONENT`, far into saturation either way. NaN stays NaN: the comparisons are ordered."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        exponent = arguments[0]
        for comparison, bound in (("<", _constant(-MAX_EXPONENT)), (">", _constant(MAX_EXPONENT))):
            exponent = builder.select(builder.fcmp_ordered(comparison, exponent, bound), bound, exponent)
        return exponent

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


def _with_polynomial(builder: Any, exponent: Any) -> Any:
    """1 + 2^x by a whole power of two and a polynomial of degree 5."""
    whole, rest = _split(builder, exponent, steps=1)
    mantissa = _polynomial(builder, rest, _exp2_coefficients(0.5, degree=5))
    shift = ir.Constant(_INT_VECTOR, [23] * LANES)
    power = builder.bitcast(builder.add(builder.bitcast(mantissa, _INT_VECTOR), builder.shl(whole, shift)), _VECTOR)
    return builder.fadd(power, _constant(1.0), flags=_FUSE)


def _with_table(builder: Any, exponent: Any, bits: int, degree: int, look_up: Callable[..., Any]) -> Any:
    """1 + 2^x by a table of 2^`bits` powers, which lies in one register, and a polynomial."""
    steps, rest = _split(builder, exponent, steps=1 << bits)
    coefficients = _exp2_coefficients(0.5 / (1 << bits), degree)
    # The table takes the first coefficient on: what remains begins with 1, a constant that is needed anyway.
    mantissa = _polynomial(builder, rest, coefficients / coefficients[0])
    # Shifted, the number of steps adds its whole part to the exponent; the rest of it is taken off here.
    numbers = np.arange(1 << bits, dtype=np.int32)
    powers = (coefficients[0] * 2.0 ** (numbers / (1 << bits))).astype(np.float32)
    entries = powers.view(np.int32) - (numbers << (23 - bits))
    shift = ir.Constant(_INT_VECTOR, [23 - bits] * LANES)
    found = look_up(builder, entries, steps)
    power = builder.bitcast(builder.add(found, builder.shl(steps, shift)), _VECTOR)
    return _multiply_add(builder, power, mantissa, _constant(1.0))


def _look_up16(builder: Any, entries: Any, index: Any) -> Any:
    """VPERMD reads the lowest four bits of each index."""
    table = ir.Constant(_INT_VECTOR, entries.tolist())
    return _call(builder, "llvm.x86.avx512.permvar.si.512", _INT_VECTOR, [table, index])


def _look_up4(builder: Any, entries: Any, index: Any) -> Any:
    """VPERMILPS reads the lowest two bits of each index."""
    octet = ir.VectorType(_FLOAT, 8)
    table = ir.Constant(octet, [float(x) for x in np.tile(entries.view(np.float32), 2)])
    halves = [_choose(builder, index, range(first, first + 8)) for first in (0, 8)]
    low, high = (_call(builder, "llvm.x86.avx.vpermilvar.ps.256", octet, [table, half]) for half in halves)
    return builder.bitcast(_shuffle(builder, low, high, range(LANES)), _INT_VECTOR)


#: By features of processors, the best first.
_WITH_TABLE: dict[str, Callable[..., Any]] = {
    "+avx512f": functools.partial(_with_table, bits=4, degree=2, look_up=_look_up16),
    "+avx2": functools.partial(_with_table, bits=2, degree=3, look_up=_look_up4),
}


def _split(builder: Any, value: Any, steps: int) -> tuple[Any, Any]:
    """The nearest number of steps of 1 / `steps` in the lowest bits of an integer, and what is left."""
    # The sum has no bits for less than a step, so that adding rounds. Behind the fence the compiler sees no constant,
    # of which it would make a second, negative one: registers are scarce here.
    rounder = _call(builder, f"llvm.arithmetic.fence.v{LANES}f32", _VECTOR, [_constant(1.5 * 2**23 / steps)])
    total = builder.fadd(value, rounder)
    return builder.bitcast(total, _INT_VECTOR), builder.fsub(value, builder.fsub(total, rounder))


def _exp2_coefficients(bound: float, degree: int) -> npt.NDArray[np.float64]:
    """Polynomial of 2^x for -bound <= x <= bound, lowest power first; relative error below 5e-7 as used here."""
    nodes = bound * np.cos(np.linspace(0, np.pi, 4001))
    powers = 2.0**nodes
    fit = np.polynomial.chebyshev.Chebyshev.fit(nodes, powers, degree, w=1 / powers, domain=[-bound, bound])
    return np.asarray(fit.convert(kind=np.polynomial.Polynomial).coef, np.float64)


def _polynomial(builder: Any, x: Any, coefficients: npt.NDArray[np.float64]) -> Any:
    """The polynomial with these coefficients, lowest power first."""
    *lower, result = (_constant(float(np.float32(c))) for c in coefficients)
    for coefficient in lower[::-1]:
        result = _multiply_add(builder, result, x, coefficient)
    return result


def _multiply_add(builder: Any, factor: Any, other: Any, term: Any) -> Any:
    return builder.fadd(builder.fmul(factor, other, flags=_FUSE), term, flags=_FUSE)


def _call(builder: Any, name: str, result: Any, arguments: list[Any], **options: Any) -> Any:
    declaration = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, declaration, name)
    return builder.call(function, arguments, **options)
