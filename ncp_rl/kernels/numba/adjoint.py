"""One step of the cell backward, for a block of sequences: from the gradients of its potentials to all other gradients.

A substep is v' = n / d with the numerator n = cm v + delta I and the denominator d = cm + delta G. For a gradient g
with respect to v', p = g / d is the gradient with respect to n, and -p v' the one with respect to d. With P = delta p
and -Q = -P v', the gradients with respect to current and conductance, a synapse i->j with sigmoid s receives

    y = (erev P_j - Q_j) s,    z = y (1 - s),

and the sums over substeps, steps and sequences are its gradients: w of y; erev of w P s; sigma of w z (v_i - mu); mu of
-w sigma z; v_i of w sigma z. Sensory synapses receive the same from P and Q summed over the substeps of a step. The
gradient with respect to delta is p (I - G v') = p cm slope.

From the last substep to the first, `pull_back_neurons` takes the gradients of the potentials after it to P and Q, and
`pull_back_synapses` takes these to the potentials before it and to the parameters. A synapse's terms are added to its
sums at once, over half the lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ncp_rl.jit import inlined, never_inline
from ncp_rl.kernels.numba.access import (
    add_parts,
    add_to_sources,
    load,
    load_constant,
    load_integer,
    load_sources,
    prefetch,
    store,
)
from ncp_rl.kernels.numba.arithmetic import keep_first, repeat_row, sum_lanes
from ncp_rl.kernels.numba.blocks import gather
from ncp_rl.kernels.numba.memory import Floats, Integers, address_of, rows_at
from ncp_rl.kernels.numba.tables import CM, COLUMNS, EREV, GLEAK, MIDPOINT, MU, PULL, REVERSAL, SIGMA, VLEAK, W

#: Largest number of lanes over which each synapse's sums are kept, and number of sums.
SUM_WIDTH = 8
N_SUMS = 4

_ZERO = np.float32(0.0)


@inlined
def zero(rows: Floats) -> None:
    """Set all rows of lanes to zero."""
    for row in range(rows.shape[0]):
        store(rows, row, _ZERO)


@inlined
def add_to_totals(sums: Floats, totals: Floats) -> None:
    """Add all rows of `sums` to those of `totals`, and set `sums` to zero."""
    for row in range(sums.shape[0]):
        store(totals, row, load(totals, row) + load(sums, row))
    zero(sums)


@inlined
def add_gradient(grad: Floats, first: int, n_sequences: int, step: int, incoming: Floats, adjoint: Floats) -> None:
    """Add the incoming gradient of one step to the adjoint; lanes past the last sequence keep zero."""
    gather(grad, first, n_sequences, step, incoming, -1)
    for j in range(grad.shape[1]):
        store(adjoint, j, load(adjoint, j) + keep_first(load(incoming, j), n_sequences - first))


@inlined
def restore_potentials(delta: Floats, slopes: Floats, unfolded: Floats, n_neurons: int) -> None:
    """Fill U rows of `unfolded` after each substep, from its first U rows and the slopes that were kept."""
    step = load(delta, 0)
    for row in range(slopes.shape[0]):
        store(unfolded, row + n_neurons, load(unfolded, row) + step * load(slopes, row))


@inlined
def rows_after(rows: Floats, first: int, width: int) -> Any:
    """Return the rows from `first` on."""
    return rows_at(address_of(rows) + 4 * width * first, rows.shape[0] - first, width)


@inlined
def pull_back_neurons(
    neuronal: Floats,
    delta: Floats,
    unfolded: Floats,
    slopes: Floats,
    reciprocals: Floats,
    ahead: int,
    n_unfolds: int,
    k: int,
    adjoint: Floats,
    currents: Floats,
    conductances: Floats,
    delta_sum: Floats,
) -> None:
    """Compute P, Q and the adjoint before substep `k` from the adjoint of the potentials after it.

    P and Q go to row k of the `n_unfolds` that each neuron has of `currents` and `conductances`; the share of delta is
    added to `delta_sum`. The next step's slopes and reciprocals, `ahead` elements before these, are fetched.
    """
    never_inline()
    n_neurons = neuronal.shape[1]
    step = load(delta, 0)
    delta_total = load(delta_sum, 0)
    for j in range(n_neurons):
        row = k * n_neurons + j
        prefetch(slopes, row, ahead)
        prefetch(reciprocals, row, ahead)
        p = load(adjoint, j) * load(reciprocals, row)
        current = step * p
        remembered = p * neuronal[CM, j]
        delta_total = delta_total + remembered * load(slopes, row)
        store(adjoint, j, remembered)
        store(currents, j * n_unfolds + k, current)
        store(conductances, j * n_unfolds + k, current * load(unfolded, row + n_neurons))
    store(delta_sum, 0, delta_total)


@inlined
def pull_back_synapses(
    table: Floats,
    pointer: Integers,
    source: Integers,
    presynaptics: Floats,
    first_row: int,
    currents: Floats,
    conductances: Floats,
    stride: int,
    sigmoids: Floats,
    first_sigmoid: int,
    ahead: int,
    adjoint: Floats,
    sums: Floats,
) -> None:
    """Compute the gradients of presynaptic potentials and of synapses' parameters from P and Q of each neuron.

    P and Q of neuron j are at row j * stride, presynaptic potentials from row `first_row` on. Gradients of these are
    added to `adjoint`; P s, y, z and z (v - mu) of each vector are added to its `N_SUMS` rows of `sums`. The sigmoids
    that are needed next, `ahead` elements before these, are fetched.
    """
    never_inline()
    for j in range(pointer.shape[0] - 1):
        current = repeat_row(load(currents, j * stride))
        conductance = repeat_row(load(conductances, j * stride))
        for e in range(load_integer(pointer, j), load_integer(pointer, j + 1)):
            row = e * COLUMNS
            prefetch(sigmoids, first_sigmoid + e, ahead)
            sigmoid = load(sigmoids, first_sigmoid + e)
            distance = load_sources(presynaptics, first_row, source, e) - load_constant(table, row + MIDPOINT)
            y = (current * load_constant(table, row + REVERSAL) - conductance) * sigmoid
            z = y - y * sigmoid
            add_to_sources(adjoint, source, e, z * load_constant(table, row + PULL))
            add_parts(sums, N_SUMS * e, current * sigmoid)
            add_parts(sums, N_SUMS * e + 1, y)
            add_parts(sums, N_SUMS * e + 2, z)
            add_parts(sums, N_SUMS * e + 3, z * distance)


@inlined
def sum_neurons(
    currents: Floats,
    conductances: Floats,
    slopes: Floats,
    n_unfolds: int,
    step_currents: Floats,
    step_conductances: Floats,
    sums: Floats,
) -> None:
    """Sum P and Q over the substeps of one step for the sensory synapses; add P slope, P and Q to `sums`."""
    never_inline()
    n_neurons = step_currents.shape[0]
    for j in range(n_neurons):
        row = j * n_unfolds
        current_sum, conductance_sum = load(currents, row), load(conductances, row)
        slope_sum = current_sum * load(slopes, j)
        for k in range(1, n_unfolds):
            current = load(currents, row + k)
            slope_sum = slope_sum + current * load(slopes, k * n_neurons + j)
            current_sum = current_sum + current
            conductance_sum = conductance_sum + load(conductances, row + k)
        store(step_currents, j, current_sum)
        store(step_conductances, j, conductance_sum)
        store(sums, j, load(sums, j) + slope_sum)
        store(sums, n_neurons + j, load(sums, n_neurons + j) + current_sum)
        store(sums, 2 * n_neurons + j, load(sums, 2 * n_neurons + j) + conductance_sum)


@inlined
def rows_of_synapses(sums: Floats, width: int) -> Any:
    """Return the same memory as an array with a row of `width` lanes for each synapse."""
    return rows_at(address_of(sums), sums.shape[0] * sums.shape[1] // width, width)


@inlined
def write_synapse_gradients(sums: Floats, n_parts: int, params: Floats, slots: Integers, gradients: Floats) -> None:
    """Fill rows w, sigma, mu, erev of `gradients` (4, E) from the sums of each synapse, (rows, lanes)."""
    for e in range(slots.shape[0]):
        vector, part = slots[e] // n_parts, slots[e] % n_parts
        first = N_SUMS * vector * n_parts + part
        w, sigma = params[W, e], params[SIGMA, e]
        gradients[W, e] = sum_lanes(load(sums, first + n_parts))
        gradients[SIGMA, e] = w * sum_lanes(load(sums, first + 3 * n_parts))
        gradients[MU, e] = -w * sigma * sum_lanes(load(sums, first + 2 * n_parts))
        gradients[EREV, e] = w * sum_lanes(load(sums, first))


@inlined
def write_neuron_gradients(sums: Floats, neuronal: Floats, gradients: Floats) -> None:
    """Fill rows cm, gleak, vleak of `gradients` (3, U) from U rows each of sums of P slope, P and Q."""
    n_neurons = neuronal.shape[1]
    for j in range(n_neurons):
        current, conductance = sum_lanes(load(sums, n_neurons + j)), sum_lanes(load(sums, 2 * n_neurons + j))
        gradients[CM, j] = -sum_lanes(load(sums, j))
        gradients[GLEAK, j] = neuronal[VLEAK, j] * current - conductance
        gradients[VLEAK, j] = neuronal[GLEAK, j] * current


@inlined
def write_elapsed_gradient(delta_sum: Floats, first: int, step: int, ode_unfolds: int, gradient: Floats) -> None:
    """Write the gradient of each lane's elapsed time; `gradient` has no rows where there is no elapsed time."""
    if gradient.shape[0] == 0:
        return
    for lane in range(min(delta_sum.shape[1], gradient.shape[1] - first)):
        gradient[step, first + lane] = delta_sum[0, lane] / np.float32(ode_unfolds)
