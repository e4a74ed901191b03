"""One step of the cell, for a block of sequences: the currents of leak and senses, then the substeps of the solver.

With the current I and the conductance G that leak and synapses add up to, the solver's quotient is the same as

    v <- v + delta slope,    slope = (I - G v) / (cm + delta G),

which leaves v unchanged where delta is 0, and loses no digits where delta is small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ncp_rl.jit import inlined, never_inline
from ncp_rl.kernels.contract import EPSILON
from ncp_rl.kernels.numba.access import load, load_constant, load_integer, load_sources, store, store_uncached
from ncp_rl.kernels.numba.arithmetic import (
    filled,
    highest_lane,
    keep_first,
    larger_magnitude,
    reciprocal,
    sum_synapses,
)
from ncp_rl.kernels.numba.exp2 import clamp_exponent, one_plus_exp2
from ncp_rl.kernels.numba.memory import Floats, Integers, rows_at
from ncp_rl.kernels.numba.tables import CM, COLUMNS, DRIVE, GLEAK, LOOK_AHEAD, OFFSET, SLOPE, VLEAK, WEIGHT
from ncp_rl.kernels.numba.vectors import LANES

_EPSILON = np.float32(EPSILON)
_ZERO = np.float32(0.0)


@inlined
def kept_size(n_sensory_vectors: int, n_vectors: int, n_unfolds: int, n_neurons: int, width: int) -> int:
    """Return how many float32 numbers are kept of one step of a block."""
    # Slopes and reciprocals fill whole cache lines, since sigmoids must begin with one.
    n_lines = -(-2 * width * n_unfolds * n_neurons // LANES)
    return LANES * (n_sensory_vectors + n_lines + n_unfolds * n_vectors)


@inlined
def kept_rows(address: int, n_sensory_vectors: int, n_vectors: int, n_unfolds: int, n_neurons: int, width: int) -> Any:
    """Return the arrays kept of a step in the memory at `address`: sensory sigmoids, slopes, reciprocals, sigmoids."""
    slopes = address + 4 * LANES * n_sensory_vectors
    reciprocals = slopes + 4 * width * n_unfolds * n_neurons
    size = kept_size(n_sensory_vectors, n_vectors, n_unfolds, n_neurons, width)
    sigmoids = address + 4 * (size - LANES * n_unfolds * n_vectors)
    return (
        rows_at(address, n_sensory_vectors, LANES),
        rows_at(slopes, n_unfolds * n_neurons, width),
        rows_at(reciprocals, n_unfolds * n_neurons, width),
        rows_at(sigmoids, n_unfolds * n_vectors, LANES),
    )


@inlined
def store_kept(rows: Floats, row: int, value: Any, uncached: bool | None) -> None:
    """Write one row, past the caches if `uncached`."""
    if uncached is None:
        store(rows, row, value)
    else:
        store_uncached(rows, row, value)


@inlined
def exponents(
    table: Floats, source: Integers, vector: int, presynaptics: Floats, first_row: int, clamped: bool | None
) -> Any:
    """Compute the exponents in the sigmoids of a vector of synapses; presynaptic rows begin at row `first_row`."""
    row = vector * COLUMNS
    presynaptic = load_sources(presynaptics, first_row, source, vector)
    exponent = presynaptic * load_constant(table, row + SLOPE) + load_constant(table, row + OFFSET)
    return exponent if clamped is None else clamp_exponent(exponent)


@inlined
def look_ahead(table: Floats, source: Integers, presynaptics: Floats, first_row: int, clamped: bool | None) -> Any:
    """Start `synaptic_sums`: return the first vector's sigmoids, the second's inverses and the third's exponents."""
    first = one_plus_exp2(exponents(table, source, 0, presynaptics, first_row, clamped))
    second = one_plus_exp2(exponents(table, source, 1, presynaptics, first_row, clamped))
    return reciprocal(first), second, exponents(table, source, 2, presynaptics, first_row, clamped)


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
    uncached: bool | None,
) -> Any:
    """Return the current and conductance of one neuron's synapses, and the start of the next neuron's.

    A sigmoid is a chain of operations, each of which waits for the one before. So four vectors are computed at once,
    across neurons, each one operation behind the other: sums, division, power of two, exponents. `ahead` is the result
    of `look_ahead`; see `exponents` for the operands. The sigmoids are written to `sigmoids` unless that is None, past
    the caches if `uncached`. `clamped` and `uncached` are True or None: Numba compiles no code for branches on None.
    """
    sigmoid, inverse, exponent = ahead
    current = conductance = filled(_ZERO)
    for e in range(first_vector, last_vector):
        if sigmoids is not None:
            store_kept(sigmoids, first_sigmoid + e, sigmoid, uncached)
        row = e * COLUMNS
        current = current + sigmoid * load_constant(table, row + DRIVE)
        conductance = conductance + sigmoid * load_constant(table, row + WEIGHT)
        sigmoid = reciprocal(inverse)
        inverse = one_plus_exp2(exponent)
        exponent = exponents(table, source, e + LOOK_AHEAD, presynaptics, first_row, clamped)
    return sum_synapses(current, presynaptics), sum_synapses(conductance, presynaptics), (sigmoid, inverse, exponent)


@inlined
def any_beyond(rows: Floats, n_rows: int, limit: Any) -> Any:
    """Return whether any magnitude in the first `n_rows` rows is above `limit`."""
    magnitude = keep_first(load(rows, 0), 0)
    for row in range(n_rows):
        magnitude = larger_magnitude(magnitude, load(rows, row))
    return highest_lane(magnitude) > limit


@inlined
def sum_leak_and_senses(
    clamped: bool | None,
    uncached: bool | None,
    table: Floats,
    pointer: Integers,
    source: Integers,
    inputs: Floats,
    neuronal: Floats,
    current: Floats,
    conductance: Floats,
    sigmoids: Floats | None,
) -> None:
    """See `leak_and_senses`, and `synaptic_sums` for `clamped`."""
    never_inline()
    ahead = look_ahead(table, source, inputs, 0, clamped)
    for j in range(neuronal.shape[1]):
        gleak = neuronal[GLEAK, j]
        of_neuron = load_integer(pointer, j), load_integer(pointer, j + 1), ahead
        currents, conductances, ahead = synaptic_sums(
            table, source, *of_neuron, inputs, 0, sigmoids, 0, clamped, uncached
        )
        store(current, j, currents + gleak * neuronal[VLEAK, j])
        store(conductance, j, conductances + (gleak + _EPSILON))


@inlined
def leak_and_senses(
    limit: Any,
    n_inputs: int,
    uncached: bool | None,
    table: Floats,
    pointer: Integers,
    source: Integers,
    inputs: Floats,
    *rest: Any,
) -> None:
    """Compute the constants of a step, (U, width): the current and conductance of leak and sensory synapses.

    Exponents are clamped where any of the `n_inputs` rows of inputs goes beyond `limit`. Other operands are those of
    `sum_leak_and_senses`.
    """
    if any_beyond(inputs, n_inputs, limit):
        sum_leak_and_senses(True, uncached, table, pointer, source, inputs, *rest)
    else:
        sum_leak_and_senses(None, uncached, table, pointer, source, inputs, *rest)


@inlined
def unfold(
    clamped: bool | None,
    uncached: bool | None,
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
    never_inline()
    n_neurons = neuronal.shape[1]
    n_vectors = load_integer(pointer, n_neurons)
    step = load(delta, 0)
    for k in range(ode_unfolds):
        before = k * n_neurons
        ahead = look_ahead(table, source, unfolded, before, clamped)
        for j in range(n_neurons):
            of_neuron = load_integer(pointer, j), load_integer(pointer, j + 1), ahead
            currents, conductances, ahead = synaptic_sums(
                table, source, *of_neuron, unfolded, before, sigmoids, k * n_vectors, clamped, uncached
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
def solve(clamped: bool, uncached: bool | None, *operands: Any) -> None:
    """Solve all substeps of one step: fill U rows of `unfolded` after each, from its first U rows.

    Values that a backward pass needs beside these are written to the arrays for them, in the same order.

    Args:
        clamped: Whether exponents must be clamped.
        uncached: See `synaptic_sums`.
        operands: Operands of `unfold`, from the table on.
    """
    if clamped:
        unfold(True, uncached, *operands)
    else:
        unfold(None, uncached, *operands)
