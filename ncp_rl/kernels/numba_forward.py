"""The scan forward in Numba: sixteen sequences per vector, or, for a few sequences, synapses along the loop.

A block is `LANES` sequences side by side. Its potentials lie as rows of lanes, one row per neuron. What a step leaves
behind for the backward pass is a record: the potentials before each unfold and after the last, (ode_unfolds + 1) * U
rows, then the reciprocals of the denominators, ode_unfolds * U rows.

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
    logistic2,
    reciprocal,
    spread,
    store,
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
def synapse_table(params: Floats) -> Floats:
    """(E, COLUMNS) of the (4, E) rows w, sigma, mu, erev."""
    table = np.empty((params.shape[1], COLUMNS), np.float32)
    for e in range(params.shape[1]):
        w, sigma, mu, erev = params[W, e], params[SIGMA, e], params[MU, e], params[EREV, e]
        table[e, SLOPE] = -sigma * _LOG2_E
        table[e, OFFSET] = sigma * mu * _LOG2_E
        table[e, WEIGHT] = w
        table[e, DRIVE] = w * erev
        table[e, REVERSAL] = erev
        table[e, PULL] = w * sigma
        table[e, MIDPOINT] = mu
    return table


@inlined
def gather(source: Floats, first: int, n_sequences: int, step: int, rows: Floats, first_row: int) -> None:
    """Columns of `source` (T * N, columns) at one step become rows of lanes.

    Lanes past the last sequence repeat it: they stay finite where it does, and nobody reads them.
    """
    for lane in range(LANES):
        sequence = step * n_sequences + min(first + lane, n_sequences - 1)
        for column in range(source.shape[1]):
            rows[first_row + column, lane] = source[sequence, column]


@inlined
def scatter(rows: Floats, first_row: int, first: int, n_sequences: int, step: int, target: Floats) -> None:
    """The inverse of `gather`, into `target` (T * N, columns)."""
    for lane in range(min(LANES, n_sequences - first)):
        sequence = step * n_sequences + first + lane
        for column in range(target.shape[1]):
            target[sequence, column] = rows[first_row + column, lane]


@inlined
def clear_started(rows: Floats, first_row: int, n_rows: int, starts: Bools, step: int, first: int) -> None:
    """Zero the lanes of sequences that start an episode at this step; `starts` has no rows where there are none."""
    if starts.shape[0] == 0:
        return
    for lane in range(min(LANES, starts.shape[1] - first)):
        if starts[step, first + lane]:
            for row in range(first_row, first_row + n_rows):
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
        for e in range(integer(pointer, j), integer(pointer, j + 1)):
            column = e * COLUMNS
            presynaptic = load(inputs, integer(source, e))
            sigmoid = logistic2(presynaptic * broadcast(table, column + SLOPE) + broadcast(table, column + OFFSET))
            current_sum = current_sum + sigmoid * broadcast(table, column + DRIVE)
            conductance_sum = conductance_sum + sigmoid * broadcast(table, column + WEIGHT)
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
    record: Floats,
    before: int,
    after: int,
    reciprocals: int,
) -> None:
    """One substep, from the potentials at row `before` of the record to those at row `after`."""
    step = load(delta, 0)
    for j in range(neuronal.shape[1]):
        current_sum = load(current, j)
        conductance_sum = load(conductance, j)
        for e in range(integer(pointer, j), integer(pointer, j + 1)):
            column = e * COLUMNS
            presynaptic = load(record, before + integer(source, e))
            sigmoid = logistic2(presynaptic * broadcast(table, column + SLOPE) + broadcast(table, column + OFFSET))
            current_sum = current_sum + sigmoid * broadcast(table, column + DRIVE)
            conductance_sum = conductance_sum + sigmoid * broadcast(table, column + WEIGHT)
        inverse = reciprocal(spread(neuronal[CM, j]) + step * conductance_sum)
        potential = load(record, before + j)
        # The solver's quotient less v: no elapsed time changes nothing, and little time costs no digits.
        change = step * (current_sum - potential * conductance_sum) * inverse
        store(record, reciprocals + j, inverse)
        store(record, after + j, potential + change)


@inlined
def solve(
    table: Floats,
    pointer: Integers,
    source: Integers,
    neuronal: Floats,
    delta: Floats,
    current: Floats,
    conductance: Floats,
    record: Floats,
    start: int,
    ode_unfolds: int,
) -> None:
    """Fill the record of one step, whose potentials at row `start` are there already."""
    n_neurons = neuronal.shape[1]
    reciprocals = start + (ode_unfolds + 1) * n_neurons
    for k in range(ode_unfolds):
        before = start + k * n_neurons
        unfold(
            table,
            pointer,
            source,
            neuronal,
            delta,
            current,
            conductance,
            record,
            before,
            before + n_neurons,
            reciprocals + k * n_neurons,
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
    pointer = integers(pointer_address, n_neurons + 1)
    source = integers(source_address, n_synapses)
    sensory_pointer = integers(sensory_pointer_address, n_neurons + 1)
    sensory_source = integers(sensory_source_address, n_sensory)
    table = synapse_table(floats(synaptic_address, 4, n_synapses))
    sensory_table = synapse_table(floats(sensory_address, 4, n_sensory))

    record_rows = (2 * ode_unfolds + 1) * n_neurons
    record = np.empty((record_rows, LANES), np.float32)
    rows = np.empty((n_inputs, LANES), np.float32)
    delta = np.empty((1, LANES), np.float32)
    current = np.empty((n_neurons, LANES), np.float32)
    conductance = np.empty((n_neurons, LANES), np.float32)
    for block in range(first_block, last_block):
        first = block * LANES
        start = 0
        if saved_address:
            record = floats(saved_address + block * n_steps * record_rows * LANES * 4, n_steps * record_rows, LANES)
        gather(state, first, n_sequences, 0, record, start)
        for t in range(n_steps):
            clear_started(record, start, n_neurons, starts, t, first)
            gather(inputs, first, n_sequences, t, rows, 0)
            gather_delta(elapsed_time, t, first, ode_unfolds, delta)
            sensory_sums(sensory_table, sensory_pointer, sensory_source, rows, neuronal, current, conductance)
            solve(table, pointer, source, neuronal, delta, current, conductance, record, start, ode_unfolds)
            end = start + ode_unfolds * n_neurons
            scatter(record, end, first, n_sequences, t, potentials)
            if t + 1 < n_steps:
                following = start + record_rows if saved_address else 0
                for j in range(n_neurons):
                    store(record, following + j, load(record, end + j))
                start = following
