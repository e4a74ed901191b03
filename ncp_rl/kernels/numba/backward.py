"""The scan backward in Numba, four, eight or sixteen sequences at once, from the last step to the first.

`solve` runs a step again, unless the forward pass kept its values; `adjoint.py` computes the gradients through it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ncp_rl.jit import inlined
from ncp_rl.kernels.numba.access import load_integer
from ncp_rl.kernels.numba.adjoint import (
    N_SUMS,
    SUM_WIDTH,
    add_gradient,
    add_to_totals,
    pull_back_neurons,
    pull_back_synapses,
    restore_potentials,
    rows_after,
    rows_of_synapses,
    sum_neurons,
    write_elapsed_gradient,
    write_neuron_gradients,
    write_synapse_gradients,
    zero,
)
from ncp_rl.kernels.numba.blocks import (
    Numbers,
    clear_started,
    gather,
    gather_delta,
    read_operands,
    scatter,
)
from ncp_rl.kernels.numba.memory import address_of, floats, integers, new_rows
from ncp_rl.kernels.numba.solver import kept_rows, kept_size, leak_and_senses, solve
from ncp_rl.kernels.numba.sources import scan_kernel
from ncp_rl.kernels.numba.tables import largest_magnitude, read_tables
from ncp_rl.kernels.numba.vectors import LANES

#: Steps after which sums are added to totals: rounding errors of a long sum grow with the number of its terms.
N_SUMMED = 32


@inlined
def read_results(addresses: Numbers, sizes: Numbers) -> Any:
    """Return the gradients of the potentials and the potentials, both (T * N, U)."""
    grad_address, potentials_address = addresses
    n_steps, n_sequences, _, n_neurons, _ = sizes
    return (
        floats(grad_address, n_steps * n_sequences, n_neurons),
        floats(potentials_address, n_steps * n_sequences, n_neurons),
    )


@inlined
def read_synapses(addresses: Numbers, n_synapses: Numbers) -> Any:
    """Return parameters (4, E) and slots (E,) of the synapses between neurons, then those of the sensory synapses.

    `n_synapses` are E and E_s.
    """
    synaptic_address, slots_address, sensory_address, sensory_slots_address = addresses
    n_between, n_sensory = n_synapses
    return (
        (floats(synaptic_address, 4, n_between), integers(slots_address, n_between)),
        (floats(sensory_address, 4, n_sensory), integers(sensory_slots_address, n_sensory)),
    )


@inlined
def read_gradients(addresses: Numbers, sizes: Numbers, n_synapses: Numbers, n_blocks: int) -> Any:
    """Return the arrays of gradients: of inputs, state and elapsed time, and of the parameters for each block.

    Their shapes are (T * N, S) for inputs, (N, U) for the state, (T, N) for elapsed time, without rows where there is
    none; (4 * blocks, E) for synapses, (4 * blocks, E_s) for sensory synapses and (3 * blocks, U) for neurons.
    """
    inputs_address, state_address, elapsed_address, synaptic_address, sensory_address, neuronal_address = addresses
    n_steps, n_sequences, n_inputs, n_neurons, _ = sizes
    n_between, n_sensory = n_synapses
    return (
        floats(inputs_address, n_steps * n_sequences, n_inputs),
        floats(state_address, n_sequences, n_neurons),
        floats(elapsed_address, n_steps if elapsed_address else 0, n_sequences),
        floats(synaptic_address, 4 * n_blocks, n_between),
        floats(sensory_address, 4 * n_blocks, n_sensory),
        floats(neuronal_address, 3 * n_blocks, n_neurons),
    )


@functools.cache
def backward_kernel(width: int) -> Callable[..., None]:
    """Return the backward pass over blocks of `width` sequences, which is compiled when it is first called."""
    n_parts = LANES // width
    # A vector's row of sums holds its synapses one after the other.
    sum_width = min(width, SUM_WIDTH)
    sums_width = sum_width * n_parts

    @functools.partial(scan_kernel, variant=width)
    def backward_blocks(
        results: Numbers,
        operands: Numbers,
        sizes: Numbers,
        kept: Numbers,
        tables: Numbers,
        parameters: Numbers,
        n_synapses: Numbers,
        gradients: Numbers,
        first_block: int,
        last_block: int,
    ) -> None:
        """Run all steps of blocks `first_block` to `last_block`; each block writes parameter gradients of its own.

        Args:
            results: Addresses, see `read_results`.
            operands: Addresses, see `read_operands`.
            sizes: T, N, S, U and the number of substeps.
            kept: Address of the values that `forward_kernel` kept, and the number of last steps that they cover.
            tables: Addresses, see `read_tables`.
            parameters: Addresses, see `read_synapses`.
            n_synapses: E and E_s.
            gradients: Addresses, see `read_gradients`.
            first_block: The first of the blocks.
            last_block: The one after the last of them.
        """
        n_steps, n_sequences, n_inputs, n_neurons, ode_unfolds = sizes
        kept_address, n_kept = kept
        grad, potentials = read_results(results, sizes)
        inputs, state, starts, elapsed_time = read_operands(operands, sizes)
        limits, neuronal, between, senses = read_tables(tables, n_neurons, n_parts)
        of_between, of_senses = read_synapses(parameters, n_synapses)
        inputs_gradient, state_gradient, elapsed_gradient, synaptic_parts, sensory_parts, neuronal_parts = (
            read_gradients(gradients, sizes, n_synapses, last_block)
        )
        n_vectors, n_sensory_vectors = load_integer(between[1], n_neurons), load_integer(senses[1], n_neurons)
        step_size = kept_size(n_sensory_vectors, n_vectors, ode_unfolds, n_neurons, width)
        clamped = largest_magnitude(state) > limits[0]

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
        # A step whose values were not kept is solved again here.
        solved_again = new_rows(step_size // LANES if n_kept < n_steps else 0, LANES)
        # Number of elements from a substep's sigmoids back to those of the substep before, which may be the last of a
        # step.
        to_substep = LANES * n_vectors
        to_step = step_size - (ode_unfolds - 1) * to_substep
        for block in range(first_block, last_block):
            first = block * width
            first_kept = block * n_kept - (n_steps - n_kept)
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
                    kept_address + 4 * step_size * (first_kept + t) if is_kept else address_of(solved_again),
                    n_sensory_vectors,
                    n_vectors,
                    ode_unfolds,
                    n_neurons,
                    width,
                )
                if is_kept:
                    restore_potentials(delta, slopes, unfolded, n_neurons)
                else:
                    leak_and_senses(
                        limits[1], n_inputs, None, *senses, rows, neuronal, current, conductance, sensory_sigmoids
                    )
                    solver_operands = neuronal, delta, current, conductance, unfolded, ode_unfolds
                    solve(clamped, None, *between, *solver_operands, slopes, reciprocals, sigmoids)
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
                    add_to_totals(sums_between, totals_between)
                    add_to_totals(sums_of_senses, totals_of_senses)
                scatter(inputs_adjoint, 0, first, n_sequences, t, inputs_gradient)
                write_elapsed_gradient(delta_sum, first, t, ode_unfolds, elapsed_gradient)
                clear_started(adjoint, n_neurons, starts, t, first)
            scatter(adjoint, 0, first, n_sequences, 0, state_gradient)
            synaptic_part = synaptic_parts[4 * block : 4 * (block + 1)]
            sensory_part = sensory_parts[4 * block : 4 * (block + 1)]
            neuronal_part = neuronal_parts[3 * block : 3 * (block + 1)]
            write_synapse_gradients(rows_of_synapses(totals_between, sum_width), n_parts, *of_between, synaptic_part)
            write_synapse_gradients(rows_of_synapses(totals_of_senses, sum_width), n_parts, *of_senses, sensory_part)
            write_neuron_gradients(neuronal_sums, neuronal, neuronal_part)

    compiled: Callable[..., None] = backward_blocks
    return compiled
