"""The scan forward in Numba, eight or sixteen sequences at once.

A block is `width` sequences side by side: whatever belongs to a neuron or an input is a row of as many lanes, and a
vector of `LANES` lanes holds as many synapses of one neuron as that leaves room for: one where the width is 16, two
where it is 8. With the current I and the conductance G that leak and synapses add up to, the solver's quotient is the
same as

    v <- v + delta slope,    slope = (I - G v) / (cm + delta G),

which leaves v as it is where delta is 0, and loses no digits where delta is small. Nothing is kept for the backward
pass but the potentials after each step: it needs every sigmoid again, and with these it has all substeps anew.

Every tensor arrives as the address of its data: Numba takes twenty integers in half a microsecond, and as many arrays
in ten.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray  # type: ignore[attr-defined]

from ncp_rl.kernels.contract import EPSILON
from ncp_rl.kernels.numba_cache import inlined, kernel
from ncp_rl.kernels.numba_lanes import (
    LANES,
    MAX_EXPONENT,
    as_rows,
    bool_pointer,
    broadcast,
    clamp_exponent,
    float32_pointer,
    fold,
    int32_pointer,
    integer,
    keep_apart,
    load,
    load_sources,
    logistics2,
    number,
    reciprocal,
    spread,
    store,
    transpose,
)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Bools = npt.NDArray[np.uint8]

#: Rows of `Params.synaptic`, `Params.sensory`.
W, SIGMA, MU, EREV = range(4)
#: Rows of `Params.neuronal`.
CM, GLEAK, VLEAK = range(3)

#: Columns of a synapse table: all that the inner loops read of one vector of synapses lies in one cache line.
#: The exponent of the sigmoid is slope * v + offset, to base 2.
SLOPE, OFFSET, WEIGHT, DRIVE, REVERSAL, PULL, MIDPOINT = range(7)
COLUMNS = 8
#: Vectors of synapses that a loop takes at once.
PAIR = 2

_EPSILON = np.float32(EPSILON)
#: Below `MAX_EXPONENT` by more than potentials leave their range for rounding.
_SAFE_EXPONENT = np.float32(0.99 * MAX_EXPONENT)
_LOG2_E = np.float32(math.log2(math.e))
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


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
def lane_memory(n_elements: int) -> Any:
    """(n_elements,) float32, uninitialised, from the beginning of a cache line on."""
    memory = np.empty(n_elements + LANES, np.float32)
    first = -(memory.ctypes.data // 4) % LANES
    return memory[first : first + n_elements]


@inlined
def lane_rows(n_rows: int, width: int) -> Any:
    """(n_rows, width) float32, uninitialised, no row in two cache lines: such a row loads at half speed."""
    return as_rows(lane_memory(n_rows * width).reshape((n_rows, width)), width)


@inlined
def paired(pointer: Integers, n_parts: int) -> Any:
    """(U + 1,) int32, vectors of `n_parts` synapses up to each neuron, a multiple of `PAIR` for every neuron."""
    result = np.zeros(pointer.shape[0], np.int32)
    for j in range(pointer.shape[0] - 1):
        fan_in = pointer[j + 1] - pointer[j]
        result[j + 1] = result[j] + (fan_in + PAIR * n_parts - 1) // (PAIR * n_parts) * PAIR
    return result


@inlined
def paired_source(pointer: Integers, source: Integers, vectors: Integers, width: int) -> Any:
    """Where the rows of the sources begin, (vectors * LANES // width,) int32; padding repeats a neuron's last one."""
    n_parts = LANES // width
    n_neurons = pointer.shape[0] - 1
    result = np.empty(integer(vectors, n_neurons) * n_parts, np.int32)
    for j in range(n_neurons):
        e = integer(pointer, j)
        last = integer(pointer, j + 1) - 1
        for slot in range(integer(vectors, j) * n_parts, integer(vectors, j + 1) * n_parts):
            result[slot] = integer(source, min(e, last)) * width
            e += 1
    return result


def table_widths(width: int) -> tuple[int, int]:
    """Lanes that a table holds of a parameter: for one synapse, and for a vector of them.

    One number is enough where it goes to all lanes, which an instruction does while it computes.
    """
    return (1, 1) if width == LANES else (width, LANES)


@inlined
def synapse_table(
    params: Floats,
    pointer: Integers,
    vectors: Integers,
    n_parts: int,
    cell_width: int,
    table_width: int,
    for_gradients: bool,
) -> Any:
    """(vectors * COLUMNS, table_width) of the (4, E) rows w, sigma, mu, erev; padding repeats without weight.

    The columns from `REVERSAL` on are left out unless they are wanted `for_gradients`.
    """
    n_neurons = pointer.shape[0] - 1
    n_rows = integer(vectors, n_neurons) * COLUMNS
    memory = lane_memory(n_rows * table_width)
    cells = as_rows(memory.reshape((n_rows * n_parts, cell_width)), cell_width)
    n_synapses = params.shape[1]
    for j in range(n_neurons):
        e = integer(pointer, j)
        last = integer(pointer, j + 1) - 1
        for vector in range(integer(vectors, j), integer(vectors, j + 1)):
            for part in range(n_parts):
                at = min(e, last)
                w = number(params, W * n_synapses + at) if e <= last else _ZERO
                sigma, mu = number(params, SIGMA * n_synapses + at), number(params, MU * n_synapses + at)
                erev = number(params, EREV * n_synapses + at)
                cell = vector * COLUMNS * n_parts + part
                store(cells, cell + SLOPE * n_parts, -sigma * _LOG2_E)
                store(cells, cell + OFFSET * n_parts, sigma * mu * _LOG2_E)
                store(cells, cell + WEIGHT * n_parts, w)
                store(cells, cell + DRIVE * n_parts, w * erev)
                if for_gradients:
                    store(cells, cell + REVERSAL * n_parts, erev)
                    store(cells, cell + PULL * n_parts, w * sigma)
                    store(cells, cell + MIDPOINT * n_parts, mu)
                e += 1
    return as_rows(memory.reshape((n_rows, table_width)), table_width)


@inlined
def may_saturate(synaptic: Floats, sensory: Floats, neuronal: Floats, state: Floats) -> bool:
    """Whether an exponent between neurons may pass `MAX_EXPONENT`, so that it must be clamped.

    It seldom may: a potential is a weighted mean of reversal potentials, its leak potential, zero and where it began,
    and never passes the largest of these.
    """
    bound = max(largest(synaptic[EREV]), largest(sensory[EREV]), largest(neuronal[VLEAK]))
    for sequence in range(state.shape[0]):
        bound = max(bound, largest(state[sequence]))
    for e in range(synaptic.shape[1]):
        # The other way round, NaN would pass.
        if not abs(synaptic[SIGMA, e]) * (bound + abs(synaptic[MU, e])) * _LOG2_E <= _SAFE_EXPONENT:
            return True
    return False


@inlined
def largest(values: Floats) -> Any:
    """Largest magnitude; NaN, which saturates nothing, does not count."""
    result = _ZERO
    for i in range(values.shape[0]):
        if abs(values[i]) > result:
            result = abs(values[i])
    return result


@inlined
def exponent(table: Floats, vector: int, presynaptic: Any, clamped: bool | None) -> Any:
    """What the sigmoids of a vector of synapses are taken of, to base 2."""
    value = presynaptic * broadcast(table, vector * COLUMNS + SLOPE) + broadcast(table, vector * COLUMNS + OFFSET)
    if clamped is not None:
        value = clamp_exponent(value)
    return value


@inlined
def gather(source: Floats, first: int, n_sequences: int, step: int, rows: Floats) -> None:
    """Columns of `source` (T * N, columns) at one step become rows of lanes.

    Lanes past the last sequence repeat it: they stay finite where it does, and nobody reads them.
    """
    n_columns, width = source.shape[1], rows.shape[1]
    sequence, count = step * n_sequences + first, min(width, n_sequences - first)
    if n_columns < width:
        for lane in range(width):
            for column in range(n_columns):
                rows[column, lane] = source[sequence + min(lane, count - 1), column]
        return
    for tile in range(0, n_columns, width):
        # The last tile may overlap the one before.
        column = min(tile, n_columns - width)
        corner = sequence * n_columns + column
        transpose(rows, source, corner, n_columns, count, rows, column * width, width, width)


@inlined
def scatter(rows: Floats, first_row: int, first: int, n_sequences: int, step: int, target: Floats) -> None:
    """The inverse of `gather`, into `target` (T * N, columns)."""
    n_columns, width = target.shape[1], rows.shape[1]
    sequence, count = step * n_sequences + first, min(width, n_sequences - first)
    if n_columns < width:
        for lane in range(count):
            for column in range(n_columns):
                target[sequence + lane, column] = rows[first_row + column, lane]
        return
    for tile in range(0, n_columns, width):
        column = min(tile, n_columns - width)
        corner = sequence * n_columns + column
        transpose(rows, rows, (first_row + column) * width, width, width, target, corner, n_columns, count)


@inlined
def clear_started(rows: Floats, n_rows: int, starts: Bools, step: int, first: int) -> None:
    """Zero the lanes of sequences that start an episode at this step, in the first `n_rows` rows.

    `starts` has no rows where no sequence ever does.
    """
    if starts.shape[0] == 0:
        return
    for lane in range(min(rows.shape[1], starts.shape[1] - first)):
        if starts[step, first + lane]:
            for row in range(n_rows):
                rows[row, lane] = _ZERO


@inlined
def gather_delta(elapsed_time: Floats, step: int, first: int, ode_unfolds: int, delta: Floats) -> None:
    """Seconds per unfold of each lane into `delta` (1, width); `elapsed_time` has no rows where it is 1 second."""
    for lane in range(delta.shape[1]):
        elapsed = _ONE
        if elapsed_time.shape[0] > 0:
            elapsed = elapsed_time[step, min(first + lane, elapsed_time.shape[1] - 1)]
        delta[0, lane] = elapsed / np.float32(ode_unfolds)


@inlined
def synaptic_sums(
    table: Floats,
    source: Integers,
    first_vector: int,
    last_vector: int,
    presynaptics: Floats,
    first_row: int,
    sigmoids: Floats | None,
    first_sigmoid: int,
    clamped: bool | None,
) -> Any:
    """Current and conductance of the synapses of one neuron; row `first_row` is the first presynaptic potential.

    Their sigmoids go to `sigmoids`, where there is one. Exponents are `clamped`, unless that is None.
    """
    current = conductance = spread(_ZERO)
    e = first_vector
    while e < last_vector:
        first, second = logistics2(
            exponent(table, e, load_sources(presynaptics, first_row, source, e), clamped),
            exponent(table, e + 1, load_sources(presynaptics, first_row, source, e + 1), clamped),
        )
        if sigmoids is not None:
            store(sigmoids, first_sigmoid + e, first)
            store(sigmoids, first_sigmoid + e + 1, second)
        row = e * COLUMNS
        current = current + first * broadcast(table, row + DRIVE)
        conductance = conductance + first * broadcast(table, row + WEIGHT)
        row += COLUMNS
        current = current + second * broadcast(table, row + DRIVE)
        conductance = conductance + second * broadcast(table, row + WEIGHT)
        e += PAIR
    return fold(current, presynaptics), fold(conductance, presynaptics)


@inlined
def sensory_sums(
    table: Floats,
    pointer: Integers,
    source: Integers,
    inputs: Floats,
    neuronal: Floats,
    current: Floats,
    conductance: Floats,
    sigmoids: Floats | None,
) -> None:
    """What holds still within a step, (U, width): the current and conductance of leak and sensory synapses."""
    keep_apart()
    for j in range(neuronal.shape[1]):
        gleak = neuronal[GLEAK, j]
        currents, conductances = synaptic_sums(
            table, source, integer(pointer, j), integer(pointer, j + 1), inputs, 0, sigmoids, 0, True
        )
        store(current, j, currents + gleak * neuronal[VLEAK, j])
        store(conductance, j, conductances + (gleak + _EPSILON))


@inlined
def solve(
    clamped: bool | None,
    table: Floats,
    pointer: Integers,
    source: Integers,
    neuronal: Floats,
    delta: Floats,
    current: Floats,
    conductance: Floats,
    unfolded: Floats,
    ode_unfolds: int,
    slopes: Floats | None,
    reciprocals: Floats | None,
    sigmoids: Floats | None,
) -> None:
    """All substeps of one step: from the first U rows of `unfolded`, U rows after each.

    What a backward pass needs beside these is kept where there is room for it, in the same order. Exponents are
    `clamped`, unless that is None.
    """
    keep_apart()
    n_neurons = neuronal.shape[1]
    n_vectors = integer(pointer, n_neurons)
    step = load(delta, 0)
    for k in range(ode_unfolds):
        before = k * n_neurons
        for j in range(n_neurons):
            currents, conductances = synaptic_sums(
                table,
                source,
                integer(pointer, j),
                integer(pointer, j + 1),
                unfolded,
                before,
                sigmoids,
                k * n_vectors,
                clamped,
            )
            current_sum = load(current, j) + currents
            conductance_sum = load(conductance, j) + conductances
            inverse = reciprocal(neuronal[CM, j] + step * conductance_sum)
            potential = load(unfolded, before + j)
            slope = (current_sum - potential * conductance_sum) * inverse
            if slopes is not None and reciprocals is not None:
                store(slopes, before + j, slope)
                store(reciprocals, before + j, inverse)
            store(unfolded, before + n_neurons + j, potential + step * slope)


@functools.cache
def forward_kernel(width: int) -> Callable[..., None]:
    """The forward pass over blocks of `width` sequences, compiled when it is first called."""
    cell_width, table_width = table_widths(width)

    @functools.partial(kernel, variant=width)
    def forward_blocks(
        inputs_address: int,
        state_address: int,
        starts_address: int,
        elapsed_address: int,
        synaptic_address: int,
        sensory_address: int,
        neuronal_address: int,
        pointer_address: int,
        source_address: int,
        sensory_pointer_address: int,
        sensory_source_address: int,
        potentials_address: int,
        n_steps: int,
        n_sequences: int,
        n_inputs: int,
        n_neurons: int,
        n_synapses: int,
        n_sensory: int,
        ode_unfolds: int,
        first_block: int,
        last_block: int,
    ) -> None:
        """Blocks `first_block` to `last_block`, all steps; an address of 0 stands for an operand that is not there."""
        inputs = floats(inputs_address, n_steps * n_sequences, n_inputs)
        state = floats(state_address, n_sequences, n_neurons)
        potentials = floats(potentials_address, n_steps * n_sequences, n_neurons)
        starts = bools(starts_address, n_steps if starts_address else 0, n_sequences)
        elapsed_time = floats(elapsed_address, n_steps if elapsed_address else 0, n_sequences)
        neuronal = floats(neuronal_address, 3, n_neurons)
        n_parts = LANES // width
        own_pointer = integers(pointer_address, n_neurons + 1)
        own_sensory_pointer = integers(sensory_pointer_address, n_neurons + 1)
        pointer = paired(own_pointer, n_parts)
        sensory_pointer = paired(own_sensory_pointer, n_parts)
        source = paired_source(own_pointer, integers(source_address, n_synapses), pointer, width)
        own_sensory_source = integers(sensory_source_address, n_sensory)
        sensory_source = paired_source(own_sensory_pointer, own_sensory_source, sensory_pointer, width)
        synaptic, sensory = floats(synaptic_address, 4, n_synapses), floats(sensory_address, 4, n_sensory)
        clamped = may_saturate(synaptic, sensory, neuronal, state)
        table = synapse_table(synaptic, own_pointer, pointer, n_parts, cell_width, table_width, False)
        sensory_table = synapse_table(
            sensory, own_sensory_pointer, sensory_pointer, n_parts, cell_width, table_width, False
        )

        unfolded = lane_rows((ode_unfolds + 1) * n_neurons, width)
        last = ode_unfolds * n_neurons
        rows = lane_rows(n_inputs, width)
        delta = lane_rows(1, width)
        current = lane_rows(n_neurons, width)
        conductance = lane_rows(n_neurons, width)
        for block in range(first_block, last_block):
            first = block * width
            gather(state, first, n_sequences, 0, unfolded)
            for t in range(n_steps):
                clear_started(unfolded, n_neurons, starts, t, first)
                gather(inputs, first, n_sequences, t, rows)
                gather_delta(elapsed_time, t, first, ode_unfolds, delta)
                sensory_sums(sensory_table, sensory_pointer, sensory_source, rows, neuronal, current, conductance, None)
                operands = table, pointer, source, neuronal, delta, current, conductance, unfolded, ode_unfolds
                if clamped:
                    solve(True, *operands, None, None, None)
                else:
                    solve(None, *operands, None, None, None)
                scatter(unfolded, last, first, n_sequences, t, potentials)
                for j in range(n_neurons):
                    store(unfolded, j, load(unfolded, last + j))

    compiled: Callable[..., None] = forward_blocks
    return compiled
