"""The adjoint of the scan in Numba, sixteen sequences per vector.

With numerator n and denominator d of a substep, v' = n / d. For a gradient g with respect to v', p = g / d is the
gradient with respect to n, and -q = -p v' the one with respect to d. A synapse i->j with sigmoid s receives

    r = erev p_j - q_j,    y = r s,    z = y (1 - s),

and the sums over time, times delta, are its gradients: w of y; erev of w p s; sigma of w z (v_i - mu); mu of
-w sigma z; v_i of w sigma z. The substeps of a step run backwards to find p and q of each (`pull_back`), and keep the
sigmoids; the sums over substeps then stay in registers, synapse by synapse (`accumulate`). The sum of w y, before it is
multiplied by delta, is the gradient with respect to delta.
"""

from __future__ import annotations

import numpy as np

from ncp_rl.kernels.numba_cache import inlined, kernel
from ncp_rl.kernels.numba_forward import (
    _EPSILON,
    CM,
    COLUMNS,
    EREV,
    GLEAK,
    MIDPOINT,
    MU,
    OFFSET,
    PULL,
    REVERSAL,
    SIGMA,
    SLOPE,
    VLEAK,
    WEIGHT,
    Floats,
    Integers,
    W,
    bools,
    clear_started,
    floats,
    gather,
    gather_delta,
    integers,
    scatter,
    sensory_sums,
    solve,
    synapse_table,
)
from ncp_rl.kernels.numba_lanes import LANES, broadcast, integer, load, logistic2, spread, store, total

_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@inlined
def zero(rows: Floats) -> None:
    """Set all rows of lanes to zero."""
    for row in range(rows.shape[0]):
        store(rows, row, spread(_ZERO))


@inlined
def add_gradient(grad: Floats, first: int, n_sequences: int, step: int, adjoint: Floats) -> None:
    """Add the incoming gradient of one step to the adjoint; lanes past the last sequence keep zero."""
    for lane in range(min(LANES, n_sequences - first)):
        sequence = step * n_sequences + first + lane
        for j in range(grad.shape[1]):
            adjoint[j, lane] += grad[sequence, j]


@inlined
def pull_back(
    table: Floats,
    pointer: Integers,
    source: Integers,
    neuronal: Floats,
    delta: Floats,
    record: Floats,
    before: int,
    reciprocals: int,
    adjoint: Floats,
    pulls: Floats,
    numerators: Floats,
    denominators: Floats,
    first_row: int,
    sigmoids: Floats,
    first_sigmoid: int,
) -> None:
    """Turn the adjoint of the potentials after a substep into that of the potentials before it.

    Writes p and q to rows `first_row` onwards of `numerators` and `denominators`, the sigmoids to `sigmoids`.
    """
    n_neurons = neuronal.shape[1]
    zero(pulls)
    for j in range(n_neurons):
        p = load(adjoint, j) * load(record, reciprocals + j)
        q = p * load(record, before + n_neurons + j)
        store(numerators, first_row + j, p)
        store(denominators, first_row + j, q)
        for e in range(integer(pointer, j), integer(pointer, j + 1)):
            column = e * COLUMNS
            i = integer(source, e)
            presynaptic = load(record, before + i)
            sigmoid = logistic2(presynaptic * broadcast(table, column + SLOPE) + broadcast(table, column + OFFSET))
            store(sigmoids, first_sigmoid + e, sigmoid)
            y = (p * broadcast(table, column + REVERSAL) - q) * sigmoid
            z = y - y * sigmoid
            store(pulls, i, load(pulls, i) + z * broadcast(table, column + PULL))
    step = load(delta, 0)
    for j in range(n_neurons):
        remembered = load(numerators, first_row + j) * spread(neuronal[CM, j])
        store(adjoint, j, remembered + step * load(pulls, j))


@inlined
def accumulate(
    table: Floats,
    pointer: Integers,
    source: Integers,
    n_neurons: int,
    delta: Floats,
    record: Floats,
    start: int,
    ode_unfolds: int,
    numerators: Floats,
    denominators: Floats,
    sigmoids: Floats,
    sums: Floats,
    delta_sum: Floats,
) -> None:
    """Add the step's share of p s, y, z and z (v - mu) to four rows of `sums` per synapse, of w y to `delta_sum`."""
    step = load(delta, 0)
    n_synapses = table.shape[0]
    total_y = spread(_ZERO)
    for j in range(n_neurons):
        for e in range(integer(pointer, j), integer(pointer, j + 1)):
            column = e * COLUMNS
            i = integer(source, e)
            reversal = broadcast(table, column + REVERSAL)
            midpoint = broadcast(table, column + MIDPOINT)
            sum_ps = sum_y = sum_z = sum_zv = spread(_ZERO)
            for k in range(ode_unfolds):
                p = load(numerators, k * n_neurons + j)
                sigmoid = load(sigmoids, k * n_synapses + e)
                y = (p * reversal - load(denominators, k * n_neurons + j)) * sigmoid
                z = y - y * sigmoid
                sum_ps = sum_ps + p * sigmoid
                sum_y = sum_y + y
                sum_z = sum_z + z
                sum_zv = sum_zv + z * (load(record, start + k * n_neurons + i) - midpoint)
            store(sums, 4 * e, load(sums, 4 * e) + step * sum_ps)
            store(sums, 4 * e + 1, load(sums, 4 * e + 1) + step * sum_y)
            store(sums, 4 * e + 2, load(sums, 4 * e + 2) + step * sum_z)
            store(sums, 4 * e + 3, load(sums, 4 * e + 3) + step * sum_zv)
            total_y = total_y + sum_y * broadcast(table, column + WEIGHT)
    store(delta_sum, 0, load(delta_sum, 0) + total_y)


@inlined
def accumulate_neurons(
    neuronal: Floats,
    delta: Floats,
    record: Floats,
    start: int,
    ode_unfolds: int,
    numerators: Floats,
    denominators: Floats,
    numerator_sums: Floats,
    denominator_sums: Floats,
    sums: Floats,
    delta_sum: Floats,
) -> None:
    """Sum p and q over the substeps; add the step's share of cm, gleak and vleak to three rows of `sums` per neuron."""
    n_neurons = neuronal.shape[1]
    step = load(delta, 0)
    epsilon = spread(_EPSILON)
    total_leak = spread(_ZERO)
    for j in range(n_neurons):
        sum_p = sum_q = remembered = spread(_ZERO)
        for k in range(ode_unfolds):
            row = k * n_neurons + j
            p, q = load(numerators, row), load(denominators, row)
            sum_p = sum_p + p
            sum_q = sum_q + q
            remembered = remembered + p * (load(record, start + row) - load(record, start + row + n_neurons))
        leak = sum_p * spread(neuronal[VLEAK, j]) - sum_q
        store(numerator_sums, j, sum_p)
        store(denominator_sums, j, sum_q)
        store(sums, 3 * j + CM, load(sums, 3 * j + CM) + remembered)
        store(sums, 3 * j + GLEAK, load(sums, 3 * j + GLEAK) + step * leak)
        store(sums, 3 * j + VLEAK, load(sums, 3 * j + VLEAK) + step * sum_p * spread(neuronal[GLEAK, j]))
        total_leak = total_leak + leak * spread(neuronal[GLEAK, j]) - sum_q * epsilon
    store(delta_sum, 0, load(delta_sum, 0) + total_leak)


@inlined
def sensory_backward(
    table: Floats,
    pointer: Integers,
    source: Integers,
    n_neurons: int,
    delta: Floats,
    inputs: Floats,
    numerator_sums: Floats,
    denominator_sums: Floats,
    pulls: Floats,
    sums: Floats,
    delta_sum: Floats,
) -> None:
    """`pull_back` and `accumulate` in one for the sensory synapses, whose sigmoids hold still within a step."""
    step = load(delta, 0)
    total_y = spread(_ZERO)
    zero(pulls)
    for j in range(n_neurons):
        p, q = load(numerator_sums, j), load(denominator_sums, j)
        for e in range(integer(pointer, j), integer(pointer, j + 1)):
            column = e * COLUMNS
            i = integer(source, e)
            presynaptic = load(inputs, i)
            sigmoid = logistic2(presynaptic * broadcast(table, column + SLOPE) + broadcast(table, column + OFFSET))
            y = (p * broadcast(table, column + REVERSAL) - q) * sigmoid
            z = step * (y - y * sigmoid)
            store(pulls, i, load(pulls, i) + z * broadcast(table, column + PULL))
            store(sums, 4 * e, load(sums, 4 * e) + step * (p * sigmoid))
            store(sums, 4 * e + 1, load(sums, 4 * e + 1) + step * y)
            store(sums, 4 * e + 2, load(sums, 4 * e + 2) + z)
            store(sums, 4 * e + 3, load(sums, 4 * e + 3) + z * (presynaptic - broadcast(table, column + MIDPOINT)))
            total_y = total_y + y * broadcast(table, column + WEIGHT)
    store(delta_sum, 0, load(delta_sum, 0) + total_y)


@inlined
def write_synapse_gradients(sums: Floats, params: Floats, gradients: Floats, first: int) -> None:
    """From the four sums of each synapse, the rows w, sigma, mu, erev at `first` of the flat `gradients`."""
    n_synapses = params.shape[1]
    for e in range(n_synapses):
        w, sigma = params[W, e], params[SIGMA, e]
        sum_z = total(load(sums, 4 * e + 2))
        gradients[first + W * n_synapses + e] = total(load(sums, 4 * e + 1))
        gradients[first + SIGMA * n_synapses + e] = w * total(load(sums, 4 * e + 3))
        gradients[first + MU * n_synapses + e] = -w * sigma * sum_z
        gradients[first + EREV * n_synapses + e] = w * total(load(sums, 4 * e))


@inlined
def write_neuron_gradients(sums: Floats, n_neurons: int, gradients: Floats, first: int) -> None:
    """From the three sums of each neuron, the rows cm, gleak, vleak at `first` of the flat `gradients`."""
    for j in range(n_neurons):
        for row in range(3):
            gradients[first + row * n_neurons + j] = total(load(sums, 3 * j + row))


@inlined
def write_elapsed_gradient(delta_sum: Floats, first: int, step: int, ode_unfolds: int, gradient: Floats) -> None:
    """Gradient of each lane's elapsed time; `gradient` has no rows where there is no elapsed time."""
    if gradient.shape[0] == 0:
        return
    for lane in range(min(LANES, gradient.shape[1] - first)):
        gradient[step, first + lane] = delta_sum[0, lane] / np.float32(ode_unfolds)


@kernel
def backward_blocks(
    grad_address: int,
    potentials_address: int,
    saved_address: int,
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
    inputs_gradient_address: int,
    state_gradient_address: int,
    elapsed_gradient_address: int,
    partials_address: int,
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
    """Blocks `first_block` to `last_block`, all steps; each block writes its own row of parameter gradients.

    An address of 0 stands for an operand that is not there; without saved records, the steps are solved again.
    """
    n_rows = n_steps * n_sequences
    grad = floats(grad_address, n_rows, n_neurons)
    potentials = floats(potentials_address, n_rows, n_neurons)
    inputs = floats(inputs_address, n_rows, n_inputs)
    state = floats(state_address, n_sequences, n_neurons)
    starts = bools(starts_address, n_steps if starts_address else 0, n_sequences)
    elapsed_time = floats(elapsed_address, n_steps if elapsed_address else 0, n_sequences)
    synaptic = floats(synaptic_address, 4, n_synapses)
    sensory = floats(sensory_address, 4, n_sensory)
    neuronal = floats(neuronal_address, 3, n_neurons)
    pointer = integers(pointer_address, n_neurons + 1)
    source = integers(source_address, n_synapses)
    sensory_pointer = integers(sensory_pointer_address, n_neurons + 1)
    sensory_source = integers(sensory_source_address, n_sensory)
    inputs_gradient = floats(inputs_gradient_address, n_rows, n_inputs)
    state_gradient = floats(state_gradient_address, n_sequences, n_neurons)
    elapsed_gradient = floats(elapsed_gradient_address, elapsed_time.shape[0], n_sequences)
    table = synapse_table(synaptic)
    sensory_table = synapse_table(sensory)

    record_rows = (2 * ode_unfolds + 1) * n_neurons
    record = np.empty((record_rows, LANES), np.float32)
    rows = np.empty((n_inputs, LANES), np.float32)
    delta = np.empty((1, LANES), np.float32)
    current = np.empty((n_neurons, LANES), np.float32)
    conductance = np.empty((n_neurons, LANES), np.float32)
    adjoint = np.empty((n_neurons, LANES), np.float32)
    pulls = np.empty((n_neurons, LANES), np.float32)
    sensory_pulls = np.empty((n_inputs, LANES), np.float32)
    numerators = np.empty((ode_unfolds * n_neurons, LANES), np.float32)
    denominators = np.empty((ode_unfolds * n_neurons, LANES), np.float32)
    numerator_sums = np.empty((n_neurons, LANES), np.float32)
    denominator_sums = np.empty((n_neurons, LANES), np.float32)
    sigmoids = np.empty((ode_unfolds * n_synapses, LANES), np.float32)
    sums = np.empty((4 * n_synapses, LANES), np.float32)
    sensory_sums_ = np.empty((4 * n_sensory, LANES), np.float32)
    neuronal_sums = np.empty((3 * n_neurons, LANES), np.float32)
    delta_sum = np.empty((1, LANES), np.float32)
    n_partials = 4 * n_synapses + 4 * n_sensory + 3 * n_neurons
    partials = floats(partials_address, last_block, n_partials)
    for block in range(first_block, last_block):
        first = block * LANES
        start = 0
        if saved_address:
            record = floats(saved_address + block * n_steps * record_rows * LANES * 4, n_steps * record_rows, LANES)
        zero(adjoint)
        zero(sums)
        zero(sensory_sums_)
        zero(neuronal_sums)
        for t in range(n_steps - 1, -1, -1):
            gather(inputs, first, n_sequences, t, rows, 0)
            gather_delta(elapsed_time, t, first, ode_unfolds, delta)
            if saved_address:
                start = t * record_rows
            else:
                if t > 0:
                    gather(potentials, first, n_sequences, t - 1, record, 0)
                else:
                    gather(state, first, n_sequences, 0, record, 0)
                clear_started(record, 0, n_neurons, starts, t, first)
                sensory_sums(sensory_table, sensory_pointer, sensory_source, rows, neuronal, current, conductance)
                solve(table, pointer, source, neuronal, delta, current, conductance, record, 0, ode_unfolds)
            add_gradient(grad, first, n_sequences, t, adjoint)
            reciprocals = start + (ode_unfolds + 1) * n_neurons
            for k in range(ode_unfolds - 1, -1, -1):
                pull_back(
                    table,
                    pointer,
                    source,
                    neuronal,
                    delta,
                    record,
                    start + k * n_neurons,
                    reciprocals + k * n_neurons,
                    adjoint,
                    pulls,
                    numerators,
                    denominators,
                    k * n_neurons,
                    sigmoids,
                    k * n_synapses,
                )
            zero(delta_sum)
            accumulate(
                table,
                pointer,
                source,
                n_neurons,
                delta,
                record,
                start,
                ode_unfolds,
                numerators,
                denominators,
                sigmoids,
                sums,
                delta_sum,
            )
            accumulate_neurons(
                neuronal,
                delta,
                record,
                start,
                ode_unfolds,
                numerators,
                denominators,
                numerator_sums,
                denominator_sums,
                neuronal_sums,
                delta_sum,
            )
            sensory_backward(
                sensory_table,
                sensory_pointer,
                sensory_source,
                n_neurons,
                delta,
                rows,
                numerator_sums,
                denominator_sums,
                sensory_pulls,
                sensory_sums_,
                delta_sum,
            )
            scatter(sensory_pulls, 0, first, n_sequences, t, inputs_gradient)
            write_elapsed_gradient(delta_sum, first, t, ode_unfolds, elapsed_gradient)
            clear_started(adjoint, 0, n_neurons, starts, t, first)
        scatter(adjoint, 0, first, n_sequences, 0, state_gradient)
        write_synapse_gradients(sums, synaptic, partials[block], 0)
        write_synapse_gradients(sensory_sums_, sensory, partials[block], 4 * n_synapses)
        write_neuron_gradients(neuronal_sums, n_neurons, partials[block], 4 * (n_synapses + n_sensory))
