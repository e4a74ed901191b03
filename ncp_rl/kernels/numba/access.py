"""Loads and stores inside Numba kernels: between arrays and vectors, and between rows and synapses."""

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
    ROW_ALIGNMENT,
    LanesType,
    Typed,
    as_lanes,
    call,
    choose_lanes,
    element_address,
    intrinsic,
    lanes_type,
    row_address,
    shuffle,
    vector_at,
)


@intrinsic
def load(typing_context: Any, rows: Any, row: Any) -> Typed:
    """Load one row."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = row_address(context, builder, rows, arguments[0], arguments[1], sig.args[1])
        return builder.load(address, align=ROW_ALIGNMENT)

    return LanesType(rows.width)(rows, row), generate


@intrinsic
def store(typing_context: Any, rows: Any, row: Any, value: Any) -> Typed:
    """Store one row; a number goes to all of its lanes."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = row_address(context, builder, rows, arguments[0], arguments[1], sig.args[1])
        builder.store(as_lanes(builder, sig.args[2], arguments[2], rows.width), address, align=ROW_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(rows, row, value), generate


@intrinsic
def store_uncached(typing_context: Any, rows: Any, row: Any, value: Any) -> Typed:
    """Store one row, which begins at a multiple of its size, past the caches: for values that are read much later.

    Other threads see it after a `fence`.
    """

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = row_address(context, builder, rows, arguments[0], arguments[1], sig.args[1])
        instruction = builder.store(arguments[2], address, align=4 * rows.width)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(INT32, 1)]))
        return context.get_dummy_value()

    return types.void(rows, row, value), generate


@intrinsic
def fence(typing_context: Any) -> Typed:
    """Make all stores visible before any later operation."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def prefetch(typing_context: Any, rows: Any, row: Any, n_before: Any) -> Typed:
    """Fetch into the cache what lies `n_before` elements before a row; the address need not be valid."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        array, row_index, distance = arguments
        first = builder.bitcast(row_address(context, builder, rows, array, row_index, sig.args[1]), FLOAT.as_pointer())
        address = builder.bitcast(builder.gep(first, [builder.neg(distance)]), ir.IntType(8).as_pointer())
        # The constants mean: for reading, into the second-level cache, of data.
        options = [ir.Constant(INT32, value) for value in (0, 2, 1)]
        call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [address, *options])
        return context.get_dummy_value()

    return types.void(rows, row, types.intp), generate


@intrinsic
def load_constant(typing_context: Any, table: Any, row: Any) -> Typed:
    """Load row `row` of a table, which holds a number for each synapse of a vector, into all lanes of the synapse."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = row_address(context, builder, table, arguments[0], arguments[1], sig.args[1])
        numbers = builder.load(address, align=ROW_ALIGNMENT)
        return choose_lanes(builder, numbers, [lane * table.width // LANES for lane in range(LANES)])

    return lanes_type(table, row), generate


@intrinsic
def load_sources(typing_context: Any, rows: Any, first_row: Any, source: Any, vector: Any) -> Typed:
    """Load the rows of the presynaptic neurons of all synapses in one vector.

    `source` (vectors * LANES // width,) int32 holds where these rows begin, in elements after row `first_row`.
    """

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        addresses = _source_rows(context, builder, sig.args, arguments)
        parts = [builder.load(address, align=ROW_ALIGNMENT) for address in addresses]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [shuffle(builder, *pair, range(2 * pair[0].type.count)) for pair in pairs]
        return parts[0]

    return lanes_type(rows, first_row, source, vector), generate


@intrinsic
def add_to_sources(typing_context: Any, rows: Any, source: Any, vector: Any, value: Any) -> Typed:
    """Add the part of `value` that belongs to each presynaptic neuron to its row; the inverse of `load_sources`."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        array, *rest, whole = arguments
        first_row = ir.Constant(ir.IntType(64), 0)
        operands = [rows, types.intp, *sig.args[1:3]], [array, first_row, *rest]
        # The rows are updated one after the other, since two sources may be the same.
        for part, address in enumerate(_source_rows(context, builder, *operands)):
            before = builder.load(address, align=ROW_ALIGNMENT)
            share = choose_lanes(builder, whole, range(part * rows.width, (part + 1) * rows.width))
            builder.store(builder.fadd(before, share, flags=FUSE), address, align=ROW_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(rows, source, vector, value), generate


@intrinsic
def add_parts(typing_context: Any, rows: Any, row: Any, value: Any) -> Typed:
    """Add `value` to one row; where it is wider than the row, add each of its parts of the row's width."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = row_address(context, builder, rows, arguments[0], arguments[1], sig.args[1])
        result = builder.load(address, align=ROW_ALIGNMENT)
        for first in range(0, LANES, rows.width):
            result = builder.fadd(
                choose_lanes(builder, arguments[2], range(first, first + rows.width)), result, flags=FUSE
            )
        builder.store(result, address, align=ROW_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(rows, row, value), generate


def _source_rows(context: Any, builder: Any, operand_types: Any, operands: Any) -> list[Any]:
    """Return the addresses of the rows that the entries of `source` point to, for one vector."""
    (rows_type, first_type, source_type, vector_type), (rows, first_row, source, vector) = operand_types, operands
    first = builder.bitcast(row_address(context, builder, rows_type, rows, first_row, first_type), FLOAT.as_pointer())
    vector = context.cast(builder, vector, vector_type, types.intp)
    n_parts = LANES // rows_type.width
    addresses = []
    for part in range(n_parts):
        entry = builder.add(builder.mul(vector, ir.Constant(vector.type, n_parts)), ir.Constant(vector.type, part))
        offset = builder.load(element_address(context, builder, source_type, source, entry, types.intp))
        row = builder.gep(first, [builder.sext(offset, vector.type)])
        addresses.append(vector_at(builder, row, rows_type.width))
    return addresses


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
            return vector_at(
                builder, element_address(context, builder, sig.args[array], arguments[array], offset, types.intp), width
            )

        rows = [builder.load(address(1, row), align=ROW_ALIGNMENT) for row in range(width)]
        columns = _transpose(builder, rows)
        # Rows are stored from the last to the first: those beyond `target_count` go to the last row, before its own
        # values.
        for column in range(width - 1, -1, -1):
            builder.store(columns[column], address(5, column), align=ROW_ALIGNMENT)
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
                swapped[row] = shuffle(builder, *pair, upper)
                swapped[row + size] = shuffle(builder, *pair, lower)
        rows = swapped
        size *= 2
    return rows


@intrinsic
def load_integer(typing_context: Any, array: Any, index: Any) -> Typed:
    """Load one element of a flat int32 array as int64."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        address = element_address(context, builder, sig.args[0], arguments[0], arguments[1], sig.args[1])
        return builder.sext(builder.load(address), ir.IntType(64))

    return types.int64(array, index), generate


@intrinsic
def load_number(typing_context: Any, array: Any, index: Any) -> Typed:
    """Load one element of a float32 array by its flat index."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.load(element_address(context, builder, sig.args[0], arguments[0], arguments[1], sig.args[1]))

    return types.float32(array, index), generate
