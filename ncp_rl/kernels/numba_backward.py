"""The adjoint of the scan in Numba, eight or sixteen sequences at once.

A substep is v' = n / d with the numerator n = cm v + delta I and the denominator d = cm + delta G. For a gradient g
with respect to v', p = g / d is the gradient with respect to n, and -p v' the one with respect to d. With P = delta p
and -Q = -P v', the gradients with respect to current and conductance, a synapse i->j with sigmoid s receives

    y = (erev P_j - Q_j) s,    z = y (1 - s),

and the sums over substeps, steps and sequences are its gradients: w of y; erev of w P s; sigma of w z (v_i - mu); mu of
-w sigma z; v_i of w sigma z. Sensory synapses receive the same from P and Q summed over the substeps of a step. The
gradient with respect to delta is p (I - G v') = p cm slope.

`solve` runs a step again, unless the forward pass kept what that gives. Then, from the last substep to the first,
`pull_back_neurons` takes the gradients of the potentials after it to P and Q, and `pull_back_synapses` takes these to
the potentials before it and to the parameters. What a synapse adds to a sum is added at once, over half the lanes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ncp_rl.kernels.numba_cache import inlined, kernel
from ncp_rl.kernels.numba_forward import (
    clear_started,
    gather,
    gather_delta,
    kept_rows,
    kept_size,
    scatter,
    sensory_sums,
    solve,
)
from ncp_rl.kernels.numba_lanes import (
    LANES,
    add_parts,
    add_to_sources,
    broadcast,
    integer,
    keep_apart,
    keep_first,
    load,
    load_sources,
    prefetch,
    repeat,
    store,
    total,
)
from ncp_rl.kernels.numba_memory import Floats, Integers, address_of, bools, floats, integers, new_rows, rows_at
from ncp_rl.kernels.numba_tables import (
    CM,
    COLUMNS,
    EREV,
    GLEAK,
    MIDPOINT,
    MU,
    PULL,
    REVERSAL,
    SIGMA,
    VLEAK,
    W,
    largest,
    read_tables,
    table_width,
)

#: Lanes over which each synapse's sums are kept, and how many sums.
SUM_WIDTH = 8
N_SUMS = 4
#: Steps after which they are added to totals: rounding errors of a long sum grow with the number of its terms.
N_SUMMED = 32

_ZERO = np.float32(0.0)


@inlined
def zero(rows: Floats) -> None:
    """Set all rows of lanes to zero."""
    for row in range(rows.shape[0]):
        store(rows, row, _ZERO)


@inlined
def move(sums: Floats, totals: Floats) -> None:
    """Add all rows of `sums` to those of `totals`, and begin them anew."""
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
def solved_again(delta: Floats, slopes: Floats, unfolded: Floats, n_neurons: int) -> None:
    """From the first U rows of `unfolded`, U rows after each substep, from the slopes that were kept."""
    step = load(delta, 0)
    for row in range(slopes.shape[0]):
        store(unfolded, row + n_neurons, load(unfolded, row) + step * load(slopes, row))


@inlined
def rows_after(rows: Floats, first: int, width: int) -> Any:
    """The rows from `first` on."""
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
    """From the adjoint of the potentials after substep `k`: P and Q, and what reaches the neuron's own past.

    P and Q go to row k of the `n_unfolds` that each neuron has of `currents` and `conductances`; the share of delta is
    added to `delta_sum`. What lies `ahead` elements before the slopes and reciprocals is fetched: the next step's.
    """
    keep_apart()
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
    """From P and Q of each neuron: what reaches its presynaptic potentials, and what its synapses' parameters gain.

    P and Q of neuron j are at row j * stride, presynaptic potentials from row `first_row` on. What reaches these is
    added to `adjoint`; P s, y, z and z (v - mu) of each vector are added to its `N_SUMS` rows of `sums`. What lies
    `ahead` elements before the sigmoids is fetched: what comes next.
    """
    keep_apart()
    for j in range(pointer.shape[0] - 1):
        current = repeat(load(currents, j * stride))
        conductance = repeat(load(conductances, j * stride))
        for e in range(integer(pointer, j), integer(pointer, j + 1)):
            row = e * COLUMNS
            prefetch(sigmoids, first_sigmoid + e, ahead)
            sigmoid = load(sigmoids, first_sigmoid + e)
            distance = load_sources(presynaptics, first_row, source, e) - broadcast(table, row + MIDPOINT)
            y = (current * broadcast(table, row + REVERSAL) - conductance) * sigmoid
            z = y - y * sigmoid
            add_to_sources(adjoint, source, e, z * broadcast(table, row + PULL))
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
    keep_apart()
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
def narrow(sums: Floats) -> Any:
    """The same memory, a row for each synapse."""
    return rows_at(address_of(sums), sums.shape[0] * sums.shape[1] // SUM_WIDTH, SUM_WIDTH)


@inlined
def write_synapse_gradients(sums: Floats, slots: Integers, n_parts: int, params: Floats, gradients: Floats) -> None:
    """From the sums of each vector, (rows, `SUM_WIDTH`), the rows w, sigma, mu, erev of `gradients` (4, E)."""
    for e in range(slots.shape[0]):
        vector, part = slots[e] // n_parts, slots[e] % n_parts
        first = N_SUMS * vector * n_parts + part
        w, sigma = params[W, e], params[SIGMA, e]
        gradients[W, e] = total(load(sums, first + n_parts))
        gradients[SIGMA, e] = w * total(load(sums, first + 3 * n_parts))
        gradients[MU, e] = -w * sigma * total(load(sums, first + 2 * n_parts))
        gradients[EREV, e] = w * total(load(sums, first))


@inlined
def write_neuron_gradients(sums: Floats, neuronal: Floats, gradients: Floats) -> None:
    """From U rows each of sums of P slope, P and Q, the rows cm, gleak, vleak of `gradients` (3, U)."""
    n_neurons = neuronal.shape[1]
    for j in range(n_neurons):
        current, conductance = total(load(sums, n_neurons + j)), total(load(sums, 2 * n_neurons + j))
        gradients[CM, j] = -total(load(sums, j))
        gradients[GLEAK, j] = neuronal[VLEAK, j] * current - conductance
        gradients[VLEAK, j] = neuronal[GLEAK, j] * current


@inlined
def write_elapsed_gradient(delta_sum: Floats, first: int, step: int, ode_unfolds: int, gradient: Floats) -> None:
    """Gradient of each lane's elapsed time; `gradient` has no rows where there is no elapsed time."""
    if gradient.shape[0] == 0:
        return
    for lane in range(min(delta_sum.shape[1], gradient.shape[1] - first)):
        gradient[step, first + lane] = delta_sum[0, lane] / np.float32(ode_unfolds)


@functools.cache
def backward_kernel(width: int) -> Callable[..., None]:
    """The backward pass over blocks of `width` sequences, compiled when it is first called."""
    columns, n_parts = table_width(width), LANES // width
    # A vector's row of sums, which holds its synapses one after the other.
    sums_width = SUM_WIDTH * n_parts

    @functools.partial(kernel, variant=width)
    def backward_blocks(
        grad_address: int,
        potentials_address: int,
        inputs_address: int,
        state_address: int,
        starts_address: int,
        elapsed_address: int,
        kept_address: int,
        n_kept: int,
        tables_address: int,
        neuronal_address: int,
        pointer_address: int,
        source_address: int,
        sensory_pointer_address: int,
        sensory_source_address: int,
        synaptic_address: int,
        sensory_address: int,
        slots_address: int,
        sensory_slots_address: int,
        inputs_gradient_address: int,
        state_gradient_address: int,
        elapsed_gradient_address: int,
        synaptic_partials_address: int,
        sensory_partials_address: int,
        neuronal_partials_address: int,
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
        """Blocks `first_block` to `last_block`, all steps; each block writes parameter gradients of its own.

        An address of 0 stands for an operand that is not there; what is kept is as `forward_kernel` wrote it.
        """
        n_samples = n_steps * n_sequences
        grad = floats(grad_address, n_samples, n_neurons)
        potentials = floats(potentials_address, n_samples, n_neurons)
        inputs = floats(inputs_address, n_samples, n_inputs)
        state = floats(state_address, n_sequences, n_neurons)
        starts = bools(starts_address, n_steps if starts_address else 0, n_sequences)
        elapsed_time = floats(elapsed_address, n_steps if elapsed_address else 0, n_sequences)
        neuronal = floats(neuronal_address, 3, n_neurons)
        synaptic = floats(synaptic_address, 4, n_synapses)
        sensory = floats(sensory_address, 4, n_sensory)
        slots = integers(slots_address, n_synapses)
        sensory_slots = integers(sensory_slots_address, n_sensory)
        limits, between, senses = read_tables(
            tables_address,
            pointer_address,
            source_address,
            sensory_pointer_address,
            sensory_source_address,
            n_neurons,
            n_parts,
            columns,
        )
        n_vectors, n_sensory_vectors = integer(between[1], n_neurons), integer(senses[1], n_neurons)
        step_size = kept_size(n_sensory_vectors, n_vectors, ode_unfolds, n_neurons, width)
        clamped = largest(state) > limits[0]
        inputs_gradient = floats(inputs_gradient_address, n_samples, n_inputs)
        state_gradient = floats(state_gradient_address, n_sequences, n_neurons)
        elapsed_gradient = floats(elapsed_gradient_address, elapsed_time.shape[0], n_sequences)
        synaptic_partials = floats(synaptic_partials_address, 4 * last_block, n_synapses)
        sensory_partials = floats(sensory_partials_address, 4 * last_block, n_sensory)
        neuronal_partials = floats(neuronal_partials_address, 3 * last_block, n_neurons)

        unfolded = new_rows((ode_unfolds + 1) * n_neurons, width)
        rows = new_rows(max(n_inputs, 1), width)
        delta = new_rows(1, width)
        current = new_rows(n_neurons, width)
        conductance = new_rows(n_neurons, width)
        adjoint = new_rows(n_neurons, width)
        incoming = new_rows(n_neurons, width)
        inputs_adjoint = new_rows(n_inputs, width)
        currents = new_rows(ode_unfolds * n_neurons, width)
        conductances = new_rows(ode_unfolds * n_neurons, width)
        step_currents = new_rows(n_neurons, width)
        step_conductances = new_rows(n_neurons, width)
        neuronal_sums = new_rows(3 * n_neurons, width)
        sums_between = new_rows(N_SUMS * n_vectors, sums_width)
        totals_between = new_rows(N_SUMS * n_vectors, sums_width)
        sums_of_senses = new_rows(N_SUMS * n_sensory_vectors, sums_width)
        totals_of_senses = new_rows(N_SUMS * n_sensory_vectors, sums_width)
        delta_sum = new_rows(1, width)
        # A step that was not kept is solved again here.
        own = new_rows(step_size // LANES if n_kept < n_steps else 0, LANES)
        # Elements from a substep's sigmoids back to those of the one before, or to the last one's of the step before.
        to_substep = LANES * n_vectors
        to_step = step_size - (ode_unfolds - 1) * to_substep
        for block in range(first_block, last_block):
            first = block * width
            first_slot = block * n_kept - (n_steps - n_kept)
            zero(adjoint)
            zero(neuronal_sums)
            zero(sums_between)
            zero(totals_between)
            zero(sums_of_senses)
            zero(totals_of_senses)
            for t in range(n_steps - 1, -1, -1):
                gather(inputs, first, n_sequences, t, rows, -1)
                gather_delta(elapsed_time, t, first, ode_unfolds, delta)
                if t > 0:
                    gather(potentials, first, n_sequences, t - 1, unfolded, -1)
                else:
                    gather(state, first, n_sequences, 0, unfolded, 0)
                clear_started(unfolded, n_neurons, starts, t, first)
                is_kept = t >= n_steps - n_kept
                sensory_sigmoids, slopes, reciprocals, sigmoids = kept_rows(
                    kept_address + 4 * step_size * (first_slot + t) if is_kept else address_of(own),
                    n_sensory_vectors,
                    n_vectors,
                    ode_unfolds,
                    n_neurons,
                    width,
                )
                if is_kept:
                    solved_again(delta, slopes, unfolded, n_neurons)
                else:
                    leak_and_senses = neuronal, current, conductance
                    sensory_sums(limits[1], n_inputs, None, *senses, rows, *leak_and_senses, sensory_sigmoids)
                    solution = neuronal, delta, current, conductance, unfolded, ode_unfolds
                    solve(clamped, None, *between, *solution, slopes, reciprocals, sigmoids)
                add_gradient(grad, first, n_sequences, t, incoming, adjoint)
                zero(delta_sum)
                for k in range(ode_unfolds - 1, -1, -1):
                    after = neuronal, delta, unfolded, slopes, reciprocals, step_size, ode_unfolds, k, adjoint
                    pull_back_neurons(*after, currents, conductances, delta_sum)
                    of_neurons = rows_after(currents, k, width), rows_after(conductances, k, width), ode_unfolds
                    of_synapses = sigmoids, k * n_vectors, to_substep if k > 0 else to_step
                    pull_back_synapses(
                        *between, unfolded, k * n_neurons, *of_neurons, *of_synapses, adjoint, sums_between
                    )
                of_step = step_currents, step_conductances
                sum_neurons(currents, conductances, slopes, ode_unfolds, *of_step, neuronal_sums)
                zero(inputs_adjoint)
                of_synapses = sensory_sigmoids, 0, step_size
                pull_back_synapses(*senses, rows, 0, *of_step, 1, *of_synapses, inputs_adjoint, sums_of_senses)
                if t % N_SUMMED == 0:
                    move(sums_between, totals_between)
                    move(sums_of_senses, totals_of_senses)
                scatter(inputs_adjoint, 0, first, n_sequences, t, inputs_gradient)
                write_elapsed_gradient(delta_sum, first, t, ode_unfolds, elapsed_gradient)
                clear_started(adjoint, n_neurons, starts, t, first)
            scatter(adjoint, 0, first, n_sequences, 0, state_gradient)
            of_synaptic = synaptic_partials[4 * block : 4 * (block + 1)]
            of_sensory = sensory_partials[4 * block : 4 * (block + 1)]
            of_neuronal = neuronal_partials[3 * block : 3 * (block + 1)]
            write_synapse_gradients(narrow(totals_between), slots, n_parts, synaptic, of_synaptic)
            write_synapse_gradients(narrow(totals_of_senses), sensory_slots, n_parts, sensory, of_sensory)
            write_neuron_gradients(neuronal_sums, neuronal, of_neuronal)

    compiled: Callable[..., None] = backward_blocks
    return compiled
