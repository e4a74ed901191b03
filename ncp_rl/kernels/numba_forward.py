"""The scan forward in Numba, sixteen sequences per vector.

A block is `LANES` sequences side by side: whatever belongs to a neuron or an input is a row of lanes. With the current
I and the conductance G that leak and synapses add up to, the solver's quotient is the same as

    v <- v + delta slope,    slope = (I - G v) / (cm + delta G),

which leaves v as it is where delta is 0, and loses no digits where delta is small. A step leaves a record behind for
the backward pass: the U potentials before it, then ode_unfolds * U slopes, then as many reciprocals 1 / (cm + delta G).

Every tensor arrives as the address of its data: Numba takes twenty integers in half a microsecond, and as many arrays
in ten.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray  # type: ignore[attr-defined]

from ncp_rl.kernels.contract import EPSILON
from ncp_rl.kernels.numba_cache import inlined, kernel
from ncp_rl.kernels.numba_lanes import (
    LANES,
    bool_pointer,
    broadcast,
    float32_pointer,
    int32_pointer,
    integer,
    load,
    logistics2,
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

#: Columns of a synapse table, one row per synapse: all that its inner loops read lies in half a cache line.
#: The exponent of the sigmoid is slope * v + offset, to base 2.
SLOPE, OFFSET, WEIGHT, DRIVE, REVERSAL, PULL, MIDPOINT = range(7)
COLUMNS = 8
#: Synapses that a loop takes at once.
PAIR = 2

_EPSILON = np.float32(EPSILON)
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
def lane_rows(n_rows: int) -> Floats:
    """(n_rows, LANES) float32, uninitialised, each row one cache line: a row across two lines loads at half speed."""
    memory = np.empty((n_rows + 1) * LANES, np.float32)
    first = -(memory.ctypes.data // 4) % LANES
    return memory[first : first + n_rows * LANES].reshape((n_rows, LANES))


@inlined
def paired(pointer: Integers) -> Any:
    """(U + 1,) int32 like `pointer`, each neuron's synapses padded to a multiple of `PAIR`."""
    result = np.zeros(pointer.shape[0], np.int32)
    for j in range(pointer.shape[0] - 1):
        fan_in = pointer[j + 1] - pointer[j]
        result[j + 1] = result[j] + (fan_in + PAIR - 1) // PAIR * PAIR
    return result


@inlined
def paired_source(pointer: Integers, source: Integers, rows: Integers) -> Any:
    """Sources by row of the table; padding has the source of the synapse that it follows."""
    result = np.zeros(rows[-1], np.int32)
    for j in range(pointer.shape[0] - 1):
        for row in range(rows[j], rows[j + 1]):
            result[row] = source[min(pointer[j] + row - rows[j], pointer[j + 1] - 1)]
    return result


@inlined
def synapse_table(params: Floats, pointer: Integers, rows: Integers) -> Floats:
    """(rows, COLUMNS) of the (4, E) rows w, sigma, mu, erev; padding repeats a synapse without its weight."""
    table = np.zeros((rows[-1], COLUMNS), np.float32)
    for j in range(pointer.shape[0] - 1):
        for row in range(rows[j], rows[j + 1]):
            e = min(pointer[j] + row - rows[j], pointer[j + 1] - 1)
            w = params[W, e] if e == pointer[j] + row - rows[j] else _ZERO
            sigma, mu, erev = params[SIGMA, e], params[MU, e], params[EREV, e]
            table[row, SLOPE] = -sigma * _LOG2_E
            table[row, OFFSET] = sigma * mu * _LOG2_E
            table[row, WEIGHT] = w
            table[row, DRIVE] = w * erev
            table[row, REVERSAL] = erev
            table[row, PULL] = w * sigma
            table[row, MIDPOINT] = mu
    return table


@inlined
def exponent(table: Floats, row: int, presynaptic: Any) -> Any:
    """What the sigmoid of a synapse is taken of, to base 2."""
    return presynaptic * broadcast(table, row * COLUMNS + SLOPE) + broadcast(table, row * COLUMNS + OFFSET)


@inlined
def gather(source: Floats, first: int, n_sequences: int, step: int, rows: Floats) -> None:
    """Columns of `source` (T * N, columns) at one step become rows of lanes.

    Lanes past the last sequence repeat it: they stay finite where it does, and nobody reads them.
    """
    n_columns = source.shape[1]
    # Whole tiles by vectors, the rest one by one.
    tiled = n_columns // LANES * LANES if first + LANES <= n_sequences else 0
    for column in range(0, tiled, LANES):
        corner = (step * n_sequences + first) * n_columns + column
        transpose(source, corner, n_columns, rows, column * LANES, LANES)
    for lane in range(LANES):
        sequence = step * n_sequences + min(first + lane, n_sequences - 1)
        for column in range(tiled, n_columns):
            rows[column, lane] = source[sequence, column]


@inlined
def scatter(rows: Floats, first_row: int, first: int, n_sequences: int, step: int, target: Floats) -> None:
    """The inverse of `gather`, into `target` (T * N, columns)."""
    n_columns = target.shape[1]
    tiled = n_columns // LANES * LANES if first + LANES <= n_sequences else 0
    for column in range(0, tiled, LANES):
        corner = (step * n_sequences + first) * n_columns + column
        transpose(rows, (first_row + column) * LANES, LANES, target, corner, n_columns)
    for lane in range(min(LANES, n_sequences - first)):
        sequence = step * n_sequences + first + lane
        for column in range(tiled, n_columns):
            target[sequence, column] = rows[first_row + column, lane]


@inlined
def clear_started(rows: Floats, n_rows: int, starts: Bools, step: int, first: int) -> None:
    """Zero the lanes of sequences that start an episode at this step, in the first `n_rows` rows.

    `starts` has no rows where no sequence ever does.
    """
    if starts.shape[0] == 0:
        return
    for lane in range(min(LANES, starts.shape[1] - first)):
        if starts[step, first + lane]:
            for row in range(n_rows):
                rows[row, lane] = _ZERO


@inlined
def gather_delta(elapsed_time: Floats, step: int, first: int, ode_unfolds: int, delta: Floats) -> None:
    """Seconds per unfold of each lane into `delta` (1, LANES); `elapsed_time` has no rows where it is 1 second."""
    for lane in range(LANES):
        elapsed = _ONE
        if elapsed_time.shape[0] > 0:
            elapsed = elapsed_time[step, min(first + lane, elapsed_time.shape[1] - 1)]
        delta[0, lane] = elapsed / np.float32(ode_unfolds)


@inlined
def sensory_sums(
    table: Floats,
    pointer: Integers,
    source: Integers,
    inputs: Floats,
    neuronal: Floats,
    current: Floats,
    conductance: Floats,
) -> None:
    """What holds still within a step, (U, LANES): the current and conductance of leak and sensory synapses."""
    for j in range(neuronal.shape[1]):
        gleak = neuronal[GLEAK, j]
        current_sum = spread(gleak * neuronal[VLEAK, j])
        conductance_sum = spread(gleak + _EPSILON)
        for e in range(integer(pointer, j), integer(pointer, j + 1), PAIR):
            first, second = logistics2(
                exponent(table, e, load(inputs, integer(source, e))),
                exponent(table, e + 1, load(inputs, integer(source, e + 1))),
            )
            column = e * COLUMNS
            current_sum = current_sum + first * broadcast(table, column + DRIVE)
            conductance_sum = conductance_sum + first * broadcast(table, column + WEIGHT)
            column += COLUMNS
            current_sum = current_sum + second * broadcast(table, column + DRIVE)
            conductance_sum = conductance_sum + second * broadcast(table, column + WEIGHT)
        store(current, j, current_sum)
        store(conductance, j, conductance_sum)


@inlined
def unfold(
    table: Floats,
    pointer: Integers,
    source: Integers,
    neuronal: Floats,
    delta: Floats,
    current: Floats,
    conductance: Floats,
    unfolded: Floats,
    before: int,
    record: Floats,
    slopes: int,
    reciprocals: int,
) -> None:
    """One substep: from the potentials at row `before` of `unfolded` to those that follow them."""
    n_neurons = neuronal.shape[1]
    step = load(delta, 0)
    for j in range(n_neurons):
        current_sum = load(current, j)
        conductance_sum = load(conductance, j)
        for e in range(integer(pointer, j), integer(pointer, j + 1), PAIR):
            first, second = logistics2(
                exponent(table, e, load(unfolded, before + integer(source, e))),
                exponent(table, e + 1, load(unfolded, before + integer(source, e + 1))),
            )
            column = e * COLUMNS
            current_sum = current_sum + first * broadcast(table, column + DRIVE)
            conductance_sum = conductance_sum + first * broadcast(table, column + WEIGHT)
            column += COLUMNS
            current_sum = current_sum + second * broadcast(table, column + DRIVE)
            conductance_sum = conductance_sum + second * broadcast(table, column + WEIGHT)
        inverse = reciprocal(spread(neuronal[CM, j]) + step * conductance_sum)
        potential = load(unfolded, before + j)
        slope = (current_sum - potential * conductance_sum) * inverse
        store(record, slopes + j, slope)
        store(record, reciprocals + j, inverse)
        store(unfolded, before + n_neurons + j, potential + step * slope)


@inlined
def solve(
    table: Floats,
    pointer: Integers,
    source: Integers,
    neuronal: Floats,
    delta: Floats,
    current: Floats,
    conductance: Floats,
    unfolded: Floats,
    record: Floats,
    start: int,
    ode_unfolds: int,
) -> None:
    """All substeps of one step, from the first U rows of `unfolded`; the record begins at row `start`."""
    n_neurons = neuronal.shape[1]
    slopes = start + n_neurons
    reciprocals = slopes + ode_unfolds * n_neurons
    for j in range(n_neurons):
        store(record, start + j, load(unfolded, j))
    for k in range(ode_unfolds):
        rows = k * n_neurons
        unfold(
            table,
            pointer,
            source,
            neuronal,
            delta,
            current,
            conductance,
            unfolded,
            rows,
            record,
            slopes + rows,
            reciprocals + rows,
        )


@kernel
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
    saved_address: int,
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
    own_pointer = integers(pointer_address, n_neurons + 1)
    own_sensory_pointer = integers(sensory_pointer_address, n_neurons + 1)
    pointer = paired(own_pointer)
    sensory_pointer = paired(own_sensory_pointer)
    source = paired_source(own_pointer, integers(source_address, n_synapses), pointer)
    sensory_source = paired_source(own_sensory_pointer, integers(sensory_source_address, n_sensory), sensory_pointer)
    table = synapse_table(floats(synaptic_address, 4, n_synapses), own_pointer, pointer)
    sensory_table = synapse_table(floats(sensory_address, 4, n_sensory), own_sensory_pointer, sensory_pointer)

    record_rows = (2 * ode_unfolds + 1) * n_neurons
    record = lane_rows(record_rows)
    unfolded = lane_rows((ode_unfolds + 1) * n_neurons)
    last = ode_unfolds * n_neurons
    rows = lane_rows(n_inputs)
    delta = lane_rows(1)
    current = lane_rows(n_neurons)
    conductance = lane_rows(n_neurons)
    for block in range(first_block, last_block):
        first = block * LANES
        start = 0
        if saved_address:
            record = floats(saved_address + block * n_steps * record_rows * LANES * 4, n_steps * record_rows, LANES)
        gather(state, first, n_sequences, 0, unfolded)
        for t in range(n_steps):
            clear_started(unfolded, n_neurons, starts, t, first)
            gather(inputs, first, n_sequences, t, rows)
            gather_delta(elapsed_time, t, first, ode_unfolds, delta)
            sensory_sums(sensory_table, sensory_pointer, sensory_source, rows, neuronal, current, conductance)
            if saved_address:
                start = t * record_rows
            solve(
                table,
                pointer,
                source,
                neuronal,
                delta,
                current,
                conductance,
                unfolded,
                record,
                start,
                ode_unfolds,
            )
            scatter(unfolded, last, first, n_sequences, t, potentials)
            for j in range(n_neurons):
                store(unfolded, j, load(unfolded, last + j))
