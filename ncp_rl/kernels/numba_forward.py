"""The scan forward in Numba, eight or sixteen sequences at once.

A block is `width` sequences side by side: whatever belongs to a neuron or an input is a row of as many lanes, and a
vector of synapses has as many lanes for each. With the current I and the conductance G that leak and synapses add up
to, the solver's quotient is the same as

    v <- v + delta slope,    slope = (I - G v) / (cm + delta G),

which leaves v as it is where delta is 0, and loses no digits where delta is small. For a backward pass it keeps the
sigmoids, the slopes and the reciprocals of the denominators of as many of the last steps as there is memory for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ncp_rl.kernels.contract import EPSILON
from ncp_rl.kernels.numba_cache import inlined, kernel
from ncp_rl.kernels.numba_lanes import (
    LANES,
    broadcast,
    clamp_exponent,
    fence,
    fold,
    highest,
    integer,
    keep_apart,
    keep_first,
    larger,
    load,
    load_sources,
    one_plus_exp2,
    prefetch,
    reciprocal,
    spread,
    store,
    stream,
    transpose,
)
from ncp_rl.kernels.numba_memory import Bools, Floats, Integers, address_of, bools, floats, new_rows, rows_at
from ncp_rl.kernels.numba_tables import (
    CM,
    COLUMNS,
    DRIVE,
    GLEAK,
    LOOK_AHEAD,
    OFFSET,
    SLOPE,
    VLEAK,
    WEIGHT,
    largest,
    read_tables,
    table_width,
)

_EPSILON = np.float32(EPSILON)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@inlined
def kept_size(n_sensory_vectors: int, n_vectors: int, n_unfolds: int, n_neurons: int, width: int) -> int:
    """How many float32 are kept of one step of a block."""
    return LANES * (n_sensory_vectors + n_unfolds * n_vectors) + 2 * width * n_unfolds * n_neurons


@inlined
def kept_rows(address: int, n_sensory_vectors: int, n_vectors: int, n_unfolds: int, n_neurons: int, width: int) -> Any:
    """What is kept of one step in the memory at `address`: sensory sigmoids, slopes, reciprocals, sigmoids."""
    slopes = address + 4 * LANES * n_sensory_vectors
    reciprocals = slopes + 4 * width * n_unfolds * n_neurons
    sigmoids = reciprocals + 4 * width * n_unfolds * n_neurons
    return (
        rows_at(address, n_sensory_vectors, LANES),
        rows_at(slopes, n_unfolds * n_neurons, width),
        rows_at(reciprocals, n_unfolds * n_neurons, width),
        rows_at(sigmoids, n_unfolds * n_vectors, LANES),
    )


@inlined
def keep(rows: Floats, row: int, value: Any, streamed: bool | None) -> None:
    """Write one row, past the caches if `streamed`."""
    if streamed is None:
        store(rows, row, value)
    else:
        stream(rows, row, value)


@inlined
def exponents(
    table: Floats, source: Integers, vector: int, presynaptics: Floats, first_row: int, clamped: bool | None
) -> Any:
    """Of the sigmoids of a vector of synapses, to base 2; row `first_row` is the first presynaptic potential."""
    row = vector * COLUMNS
    presynaptic = load_sources(presynaptics, first_row, source, vector)
    exponent = presynaptic * broadcast(table, row + SLOPE) + broadcast(table, row + OFFSET)
    return exponent if clamped is None else clamp_exponent(exponent)


@inlined
def look_ahead(table: Floats, source: Integers, presynaptics: Floats, first_row: int, clamped: bool | None) -> Any:
    """What `synaptic_sums` begins with: the first vector's sigmoids, the second's inverse, the third's exponents."""
    first = one_plus_exp2(exponents(table, source, 0, presynaptics, first_row, clamped))
    second = one_plus_exp2(exponents(table, source, 1, presynaptics, first_row, clamped))
    return reciprocal(first), second, exponents(table, source, 2, presynaptics, first_row, clamped)


@inlined
def gather(source: Floats, first: int, n_sequences: int, step: int, rows: Floats, ahead: int) -> None:
    """Columns of `source` (T * N, columns) at one step become rows of lanes; those `ahead` steps later are fetched.

    Lanes past the last sequence repeat it: they stay finite where it does, and nobody reads them.
    """
    n_columns, width = source.shape[1], rows.shape[1]
    sequence, count = step * n_sequences + first, min(width, n_sequences - first)
    later = rows_at(address_of(source) + 4 * n_columns * (sequence + ahead * n_sequences), 0, LANES)
    for line in range(0, -(-count * n_columns // LANES)):
        prefetch(later, line, 0)
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
    ahead: Any,
    presynaptics: Floats,
    first_row: int,
    sigmoids: Floats | None,
    first_sigmoid: int,
    clamped: bool | None,
    streamed: bool | None,
) -> Any:
    """Current and conductance of the synapses of one neuron, and what the next neuron's begin with.

    A sigmoid is a chain of operations, each of which waits for the one before. So four vectors are under way at once,
    across neurons, the one that is furthest first: sums, division, power of two, exponents. `ahead` is what
    `look_ahead` gives; see `exponents` for the operands. The sigmoids go to `sigmoids`, where there is one, past the
    caches if `streamed`. `clamped` and `streamed` are True or None: the compiler leaves out what hangs on None.
    """
    sigmoid, inverse, exponent = ahead
    current = conductance = spread(_ZERO)
    for e in range(first_vector, last_vector):
        if sigmoids is not None:
            keep(sigmoids, first_sigmoid + e, sigmoid, streamed)
        row = e * COLUMNS
        current = current + sigmoid * broadcast(table, row + DRIVE)
        conductance = conductance + sigmoid * broadcast(table, row + WEIGHT)
        sigmoid = reciprocal(inverse)
        inverse = one_plus_exp2(exponent)
        exponent = exponents(table, source, e + LOOK_AHEAD, presynaptics, first_row, clamped)
    return fold(current, presynaptics), fold(conductance, presynaptics), (sigmoid, inverse, exponent)


@inlined
def beyond(rows: Floats, n_rows: int, limit: Any) -> Any:
    """Whether any magnitude in the first `n_rows` rows is above `limit`."""
    magnitude = keep_first(load(rows, 0), 0)
    for row in range(n_rows):
        magnitude = larger(magnitude, load(rows, row))
    return highest(magnitude) > limit


@inlined
def sum_senses(
    clamped: bool | None,
    streamed: bool | None,
    table: Floats,
    pointer: Integers,
    source: Integers,
    inputs: Floats,
    neuronal: Floats,
    current: Floats,
    conductance: Floats,
    sigmoids: Floats | None,
) -> None:
    """See `sensory_sums`, and `synaptic_sums` for `clamped`."""
    keep_apart()
    ahead = look_ahead(table, source, inputs, 0, clamped)
    for j in range(neuronal.shape[1]):
        gleak = neuronal[GLEAK, j]
        of_neuron = integer(pointer, j), integer(pointer, j + 1), ahead
        currents, conductances, ahead = synaptic_sums(
            table, source, *of_neuron, inputs, 0, sigmoids, 0, clamped, streamed
        )
        store(current, j, currents + gleak * neuronal[VLEAK, j])
        store(conductance, j, conductances + (gleak + _EPSILON))


@inlined
def sensory_sums(
    limit: Any,
    n_inputs: int,
    streamed: bool | None,
    table: Floats,
    pointer: Integers,
    source: Integers,
    inputs: Floats,
    *rest: Any,
) -> None:
    """What holds still within a step, (U, width): the current and conductance of leak and sensory synapses.

    Exponents are clamped where any of the `n_inputs` rows of inputs goes beyond `limit`. Other operands are those of
    `sum_senses`.
    """
    if beyond(inputs, n_inputs, limit):
        sum_senses(True, streamed, table, pointer, source, inputs, *rest)
    else:
        sum_senses(None, streamed, table, pointer, source, inputs, *rest)


@inlined
def unfold(
    clamped: bool | None,
    streamed: bool | None,
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
    """See `solve`, and `synaptic_sums` for `clamped`."""
    keep_apart()
    n_neurons = neuronal.shape[1]
    n_vectors = integer(pointer, n_neurons)
    step = load(delta, 0)
    for k in range(ode_unfolds):
        before = k * n_neurons
        ahead = look_ahead(table, source, unfolded, before, clamped)
        for j in range(n_neurons):
            of_neuron = integer(pointer, j), integer(pointer, j + 1), ahead
            currents, conductances, ahead = synaptic_sums(
                table, source, *of_neuron, unfolded, before, sigmoids, k * n_vectors, clamped, streamed
            )
            current_sum = load(current, j) + currents
            conductance_sum = load(conductance, j) + conductances
            inverse_denominator = reciprocal(neuronal[CM, j] + step * conductance_sum)
            potential = load(unfolded, before + j)
            slope = (current_sum - potential * conductance_sum) * inverse_denominator
            if slopes is not None and reciprocals is not None:
                store(slopes, before + j, slope)
                store(reciprocals, before + j, inverse_denominator)
            store(unfolded, before + n_neurons + j, potential + step * slope)


@inlined
def solve(clamped: bool, streamed: bool | None, *operands: Any) -> None:
    """All substeps of one step: from the first U rows of `unfolded`, U rows after each.

    What a backward pass needs beside these is kept where there is room for it, in the same order.

    Args:
        clamped: Whether exponents need it.
        streamed: See `synaptic_sums`.
        operands: Of `unfold`, from the table on.
    """
    if clamped:
        unfold(True, streamed, *operands)
    else:
        unfold(None, streamed, *operands)


@functools.cache
def forward_kernel(width: int) -> Callable[..., None]:
    """The forward pass over blocks of `width` sequences, compiled when it is first called."""
    columns = table_width(width)

    @functools.partial(kernel, variant=width)
    def forward_blocks(
        inputs_address: int,
        state_address: int,
        starts_address: int,
        elapsed_address: int,
        potentials_address: int,
        kept_address: int,
        n_kept: int,
        tables_address: int,
        neuronal_address: int,
        pointer_address: int,
        source_address: int,
        sensory_pointer_address: int,
        sensory_source_address: int,
        n_steps: int,
        n_sequences: int,
        n_inputs: int,
        n_neurons: int,
        ode_unfolds: int,
        first_block: int,
        last_block: int,
    ) -> None:
        """Blocks `first_block` to `last_block`, all steps; an address of 0 stands for an operand that is not there.

        Of each block's last `n_kept` steps, what a backward pass needs is written at `kept_address`.
        """
        inputs = floats(inputs_address, n_steps * n_sequences, n_inputs)
        state = floats(state_address, n_sequences, n_neurons)
        potentials = floats(potentials_address, n_steps * n_sequences, n_neurons)
        starts = bools(starts_address, n_steps if starts_address else 0, n_sequences)
        elapsed_time = floats(elapsed_address, n_steps if elapsed_address else 0, n_sequences)
        neuronal = floats(neuronal_address, 3, n_neurons)
        limits, between, senses = read_tables(
            tables_address,
            pointer_address,
            source_address,
            sensory_pointer_address,
            sensory_source_address,
            n_neurons,
            LANES // width,
            columns,
        )
        n_vectors, n_sensory_vectors = integer(between[1], n_neurons), integer(senses[1], n_neurons)
        step_size = kept_size(n_sensory_vectors, n_vectors, ode_unfolds, n_neurons, width)
        clamped = largest(state) > limits[0]

        unfolded = new_rows((ode_unfolds + 1) * n_neurons, width)
        last = ode_unfolds * n_neurons
        rows = new_rows(max(n_inputs, 1), width)
        delta = new_rows(1, width)
        current = new_rows(n_neurons, width)
        conductance = new_rows(n_neurons, width)
        leak_and_senses = neuronal, current, conductance
        solution = neuronal, delta, current, conductance, unfolded, ode_unfolds
        for block in range(first_block, last_block):
            first = block * width
            first_slot = block * n_kept - (n_steps - n_kept)
            gather(state, first, n_sequences, 0, unfolded, 0)
            for t in range(n_steps):
                clear_started(unfolded, n_neurons, starts, t, first)
                gather(inputs, first, n_sequences, t, rows, 1)
                gather_delta(elapsed_time, t, first, ode_unfolds, delta)
                if t >= n_steps - n_kept:
                    kept = kept_address + 4 * step_size * (first_slot + t)
                    sensory_sigmoids, slopes, reciprocals, sigmoids = kept_rows(
                        kept, n_sensory_vectors, n_vectors, ode_unfolds, n_neurons, width
                    )
                    sensory_sums(limits[1], n_inputs, True, *senses, rows, *leak_and_senses, sensory_sigmoids)
                    solve(clamped, True, *between, *solution, slopes, reciprocals, sigmoids)
                else:
                    sensory_sums(limits[1], n_inputs, None, *senses, rows, *leak_and_senses, None)
                    solve(clamped, None, *between, *solution, None, None, None)
                scatter(unfolded, last, first, n_sequences, t, potentials)
                for j in range(n_neurons):
                    store(unfolded, j, load(unfolded, last + j))
        if n_kept > 0:
            fence()

    compiled: Callable[..., None] = forward_blocks
    return compiled
