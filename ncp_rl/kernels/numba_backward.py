"""The adjoint of the scan in Numba, eight or sixteen sequences at once.

A substep is v' = n / d with the numerator n = cm v + delta I and the denominator d = cm + delta G. For a gradient g
with respect to v', p = g / d is the gradient with respect to n, and -p v' the one with respect to d. With P = delta p
and -Q = -P v', the gradients with respect to current and conductance, a synapse i->j with sigmoid s receives

    y = (erev P_j - Q_j) s,    z = y (1 - s),

and the sums over substeps, steps and sequences are its gradients: w of y; erev of w P s; sigma of w z (v_i - mu); mu of
-w sigma z; v_i of w sigma z. Sensory synapses receive the same from P and Q summed over the substeps of a step. The
gradient with respect to delta is p (I - G v') = p cm slope.

Three passes serve a step. `solve` runs it again, unless the forward pass kept what that gives. `pull_back_*` run
through the substeps from the last to the first and keep P and Q; then `accumulate` sums over the substeps, synapse by
synapse, in registers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ncp_rl.kernels.numba_cache import inlined, kernel
from ncp_rl.kernels.numba_forward import (
    clear_started,
    gather,
    gather_delta,
    kept_rows,
    scatter,
    sensory_sums,
    solve,
)
from ncp_rl.kernels.numba_lanes import (
    LANES,
    add_to_sources,
    broadcast,
    fold4,
    integer,
    keep_apart,
    keep_first,
    load,
    load_sources,
    prefetch,
    repeat,
    spread,
    store,
    total,
)
from ncp_rl.kernels.numba_memory import Floats, Integers, address_of, bools, floats, integers, new_rows
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

_ZERO = np.float32(0.0)


@inlined
def zero(rows: Floats) -> None:
    """Set all rows of lanes to zero."""
    for row in range(rows.shape[0]):
        store(rows, row, _ZERO)


@inlined
def add_gradient(grad: Floats, first: int, n_sequences: int, step: int, incoming: Floats, adjoint: Floats) -> None:
    """Add the incoming gradient of one step to the adjoint; lanes past the last sequence keep zero."""
    gather(grad, first, n_sequences, step, incoming)
    for j in range(grad.shape[1]):
        store(adjoint, j, load(adjoint, j) + keep_first(load(incoming, j), n_sequences - first))


@inlined
def solved_again(
    delta: Floats, slopes: Floats, reciprocals: Floats, unfolded: Floats, n_neurons: int, kept_size: int
) -> None:
    """From the first U rows of `unfolded`, U rows after each substep, from the slopes that were kept.

    Slopes and reciprocals of the step that is next are fetched meanwhile, see `accumulate`.
    """
    step = load(delta, 0)
    for row in range(slopes.shape[0]):
        prefetch(slopes, row, kept_size)
        prefetch(reciprocals, row, kept_size)
        store(unfolded, row + n_neurons, load(unfolded, row) + step * load(slopes, row))


@inlined
def pull_back_neurons(
    neuronal: Floats,
    delta: Floats,
    unfolded: Floats,
    before: int,
    slopes: Floats,
    reciprocals: Floats,
    adjoint: Floats,
    currents: Floats,
    conductances: Floats,
    sums: Floats,
    delta_sum: Floats,
) -> None:
    """From the adjoint of the potentials after a substep: P and Q, and what reaches the neuron's own past.

    P and Q go to `currents` and `conductances`; P slope is added to `sums`, the share of delta to `delta_sum`.
    """
    keep_apart()
    n_neurons = neuronal.shape[1]
    step = load(delta, 0)
    delta_total = load(delta_sum, 0)
    for j in range(n_neurons):
        slope = load(slopes, before + j)
        p = load(adjoint, j) * load(reciprocals, before + j)
        current = step * p
        remembered = p * neuronal[CM, j]
        delta_total = delta_total + remembered * slope
        store(adjoint, j, remembered)
        store(currents, before + j, current)
        store(conductances, before + j, current * load(unfolded, before + n_neurons + j))
        store(sums, j, load(sums, j) + current * slope)
    store(delta_sum, 0, delta_total)


@inlined
def pull_back_synapses(
    table: Floats,
    pointer: Integers,
    source: Integers,
    currents: Floats,
    conductances: Floats,
    first_row: int,
    sigmoids: Floats,
    first_sigmoid: int,
    adjoint: Floats,
) -> None:
    """Add what reaches the presynaptic potentials to their adjoint; P and Q are at row `first_row` onwards."""
    keep_apart()
    for j in range(pointer.shape[0] - 1):
        current = repeat(load(currents, first_row + j))
        conductance = repeat(load(conductances, first_row + j))
        for e in range(integer(pointer, j), integer(pointer, j + 1)):
            sigmoid = load(sigmoids, first_sigmoid + e)
            y = (current * broadcast(table, e * COLUMNS + REVERSAL) - conductance) * sigmoid
            z = y - y * sigmoid
            add_to_sources(adjoint, source, e, z * broadcast(table, e * COLUMNS + PULL))


@inlined
def sum_neurons(
    currents: Floats, conductances: Floats, current_sums: Floats, conductance_sums: Floats, sums: Floats
) -> None:
    """Sum P and Q over the substeps of one step, which the sensory synapses receive; add these sums to `sums`, too."""
    keep_apart()
    n_neurons = current_sums.shape[0]
    for j in range(n_neurons):
        current_sum, conductance_sum = load(currents, j), load(conductances, j)
        for row in range(j + n_neurons, currents.shape[0], n_neurons):
            current_sum = current_sum + load(currents, row)
            conductance_sum = conductance_sum + load(conductances, row)
        store(current_sums, j, current_sum)
        store(conductance_sums, j, conductance_sum)
        store(sums, n_neurons + j, load(sums, n_neurons + j) + current_sum)
        store(sums, 2 * n_neurons + j, load(sums, 2 * n_neurons + j) + conductance_sum)


@inlined
def accumulate(
    table: Floats,
    pointer: Integers,
    source: Integers,
    presynaptics: Floats,
    n_presynaptic: int,
    n_unfolds: int,
    currents: Floats,
    conductances: Floats,
    sigmoids: Floats,
    sums: Floats,
    kept_size: int,
) -> None:
    """Add P s, y, z and z (v - mu), summed over the substeps of one step and folded, to one row per vector.

    Sigmoids come from memory: those of the step that is next, `kept_size` elements before, are fetched meanwhile.
    """
    keep_apart()
    n_neurons = pointer.shape[0] - 1
    n_vectors = integer(pointer, n_neurons)
    for j in range(n_neurons):
        for e in range(integer(pointer, j), integer(pointer, j + 1)):
            reversal = broadcast(table, e * COLUMNS + REVERSAL)
            midpoint = broadcast(table, e * COLUMNS + MIDPOINT)
            sum_ps = sum_y = sum_z = sum_zv = spread(_ZERO)
            for k in range(n_unfolds):
                current = repeat(load(currents, k * n_neurons + j))
                conductance = repeat(load(conductances, k * n_neurons + j))
                prefetch(sigmoids, k * n_vectors + e, kept_size)
                sigmoid = load(sigmoids, k * n_vectors + e)
                y = (current * reversal - conductance) * sigmoid
                z = y - y * sigmoid
                sum_ps = sum_ps + current * sigmoid
                sum_y = sum_y + y
                sum_z = sum_z + z
                sum_zv = sum_zv + z * (load_sources(presynaptics, k * n_presynaptic, source, e) - midpoint)
            store(sums, e, load(sums, e) + fold4(sum_ps, sum_y, sum_z, sum_zv))


@inlined
def write_synapse_gradients(sums: Floats, slots: Integers, width: int, params: Floats, gradients: Floats) -> None:
    """From the folded sums of each vector, the rows w, sigma, mu, erev of `gradients` (4, E)."""
    n_parts = LANES // width
    for e in range(slots.shape[0]):
        slot = slots[e]
        first_lane = slot % n_parts * width
        sum_ps = sum_y = sum_z = sum_zv = _ZERO
        for lane in range(first_lane, first_lane + width, 4):
            sum_ps += sums[slot // n_parts, lane]
            sum_y += sums[slot // n_parts, lane + 1]
            sum_z += sums[slot // n_parts, lane + 2]
            sum_zv += sums[slot // n_parts, lane + 3]
        w, sigma = params[W, e], params[SIGMA, e]
        gradients[W, e] = sum_y
        gradients[SIGMA, e] = w * sum_zv
        gradients[MU, e] = -w * sigma * sum_z
        gradients[EREV, e] = w * sum_ps


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
    columns = table_width(width)

    @functools.partial(kernel, variant=width)
    def backward_blocks(
        grad_address: int,
        potentials_address: int,
        inputs_address: int,
        state_address: int,
        starts_address: int,
        elapsed_address: int,
        kept_address: int,
        kept_size: int,
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
        limit, between, senses = read_tables(
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
        clamped = largest(state) > limit
        inputs_gradient = floats(inputs_gradient_address, n_samples, n_inputs)
        state_gradient = floats(state_gradient_address, n_sequences, n_neurons)
        elapsed_gradient = floats(elapsed_gradient_address, elapsed_time.shape[0], n_sequences)
        synaptic_partials = floats(synaptic_partials_address, 4 * last_block, n_synapses)
        sensory_partials = floats(sensory_partials_address, 4 * last_block, n_sensory)
        neuronal_partials = floats(neuronal_partials_address, 3 * last_block, n_neurons)

        unfolded = new_rows((ode_unfolds + 1) * n_neurons, width)
        rows = new_rows(n_inputs, width)
        delta = new_rows(1, width)
        current = new_rows(n_neurons, width)
        conductance = new_rows(n_neurons, width)
        adjoint = new_rows(n_neurons, width)
        incoming = new_rows(n_neurons, width)
        inputs_adjoint = new_rows(n_inputs, width)
        currents = new_rows(ode_unfolds * n_neurons, width)
        conductances = new_rows(ode_unfolds * n_neurons, width)
        current_sums = new_rows(n_neurons, width)
        conductance_sums = new_rows(n_neurons, width)
        synaptic_totals = new_rows(n_vectors, LANES)
        sensory_totals = new_rows(n_sensory_vectors, LANES)
        neuronal_totals = new_rows(3 * n_neurons, width)
        delta_sum = new_rows(1, width)
        # A step that was not kept is solved again here.
        own = new_rows(kept_size // LANES if n_kept < n_steps else 0, LANES)
        own_address = address_of(own)
        first_kept = n_steps - n_kept
        for block in range(first_block, last_block):
            first = block * width
            zero(adjoint)
            zero(synaptic_totals)
            zero(sensory_totals)
            zero(neuronal_totals)
            for t in range(n_steps - 1, -1, -1):
                gather(inputs, first, n_sequences, t, rows)
                gather_delta(elapsed_time, t, first, ode_unfolds, delta)
                if t > 0:
                    gather(potentials, first, n_sequences, t - 1, unfolded)
                else:
                    gather(state, first, n_sequences, 0, unfolded)
                clear_started(unfolded, n_neurons, starts, t, first)
                address = own_address
                if t >= first_kept:
                    address = kept_address + 4 * kept_size * (block * n_kept + t - first_kept)
                sensory_sigmoids, slopes, reciprocals, sigmoids = kept_rows(
                    address, n_sensory_vectors, n_vectors, ode_unfolds, n_neurons, width
                )
                if t >= first_kept:
                    solved_again(delta, slopes, reciprocals, unfolded, n_neurons, kept_size)
                else:
                    sensory_sums(*senses, rows, neuronal, current, conductance, sensory_sigmoids, None)
                    leak_and_senses = neuronal, delta, current, conductance
                    solutions = unfolded, ode_unfolds, slopes, reciprocals, sigmoids
                    if clamped:
                        solve(True, None, *between, *leak_and_senses, *solutions)
                    else:
                        solve(None, None, *between, *leak_and_senses, *solutions)
                add_gradient(grad, first, n_sequences, t, incoming, adjoint)
                zero(delta_sum)
                for k in range(ode_unfolds - 1, -1, -1):
                    before = k * n_neurons
                    pull_back_neurons(
                        neuronal,
                        delta,
                        unfolded,
                        before,
                        slopes,
                        reciprocals,
                        adjoint,
                        currents,
                        conductances,
                        neuronal_totals,
                        delta_sum,
                    )
                    pull_back_synapses(*between, currents, conductances, before, sigmoids, k * n_vectors, adjoint)
                sum_neurons(currents, conductances, current_sums, conductance_sums, neuronal_totals)
                accumulate(
                    *between,
                    unfolded,
                    n_neurons,
                    ode_unfolds,
                    currents,
                    conductances,
                    sigmoids,
                    synaptic_totals,
                    kept_size,
                )
                zero(inputs_adjoint)
                # What sensory synapses receive and give.
                sums = current_sums, conductance_sums
                pull_back_synapses(*senses, *sums, 0, sensory_sigmoids, 0, inputs_adjoint)
                accumulate(*senses, rows, n_inputs, 1, *sums, sensory_sigmoids, sensory_totals, kept_size)
                scatter(inputs_adjoint, 0, first, n_sequences, t, inputs_gradient)
                write_elapsed_gradient(delta_sum, first, t, ode_unfolds, elapsed_gradient)
                clear_started(adjoint, n_neurons, starts, t, first)
            scatter(adjoint, 0, first, n_sequences, 0, state_gradient)
            of_synaptic = synaptic_partials[4 * block : 4 * (block + 1)]
            of_sensory = sensory_partials[4 * block : 4 * (block + 1)]
            of_neuronal = neuronal_partials[3 * block : 3 * (block + 1)]
            write_synapse_gradients(synaptic_totals, slots, width, synaptic, of_synaptic)
            write_synapse_gradients(sensory_totals, sensory_slots, width, sensory, of_sensory)
            write_neuron_gradients(neuronal_totals, neuronal, of_neuronal)

    compiled: Callable[..., None] = backward_blocks
    return compiled
