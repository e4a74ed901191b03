"""The scan forward in Numba, four, eight or sixteen sequences at once.

For a backward pass it keeps the sigmoids, the slopes and the reciprocals of the denominators of as many of the last
steps as there is memory for; `solver.py` has the equations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from ncp_rl.kernels.numba.access import fence, load, load_integer, store
from ncp_rl.kernels.numba.blocks import (
    Numbers,
    clear_started,
    gather,
    gather_delta,
    read_operands,
    scatter,
)
from ncp_rl.kernels.numba.memory import floats, new_rows
from ncp_rl.kernels.numba.solver import kept_rows, kept_size, leak_and_senses, solve
from ncp_rl.kernels.numba.sources import scan_kernel
from ncp_rl.kernels.numba.tables import largest_magnitude, read_tables
from ncp_rl.kernels.numba.vectors import LANES


@functools.cache
def forward_kernel(width: int) -> Callable[..., None]:
    """Return the forward pass over blocks of `width` sequences, which is compiled when it is first called."""
    n_parts = LANES // width

    @functools.partial(scan_kernel, variant=width)
    def forward_blocks(
        potentials_address: int,
        operands: Numbers,
        sizes: Numbers,
        kept: Numbers,
        tables: Numbers,
        first_block: int,
        last_block: int,
    ) -> None:
        """Run all steps of blocks `first_block` to `last_block`.

        Args:
            potentials_address: Address of the result, (T * N, U) float32.
            operands: Addresses, see `read_operands`.
            sizes: T, N, S, U and the number of substeps.
            kept: Address for the values of each block's last steps that a backward pass needs, and the number of steps.
            tables: Addresses, see `read_tables`.
            first_block: The first of the blocks.
            last_block: The one after the last of them.
        """
        n_steps, n_sequences, n_inputs, n_neurons, ode_unfolds = sizes
        kept_address, n_kept = kept
        inputs, state, starts, elapsed_time = read_operands(operands, sizes)
        potentials = floats(potentials_address, n_steps * n_sequences, n_neurons)
        limits, neuronal, between, senses = read_tables(tables, n_neurons, n_parts)
        n_vectors, n_sensory_vectors = load_integer(between[1], n_neurons), load_integer(senses[1], n_neurons)
        step_size = kept_size(n_sensory_vectors, n_vectors, ode_unfolds, n_neurons, width)
        clamped = largest_magnitude(state) > limits[0]

        unfolded = new_rows((ode_unfolds + 1) * n_neurons, width)
        last = ode_unfolds * n_neurons
        rows = new_rows(max(n_inputs, 1), width)
        delta = new_rows(1, width)
        current = new_rows(n_neurons, width)
        conductance = new_rows(n_neurons, width)
        of_step = neuronal, current, conductance
        solver_operands = neuronal, delta, current, conductance, unfolded, ode_unfolds
        for block in range(first_block, last_block):
            first = block * width
            first_kept = block * n_kept - (n_steps - n_kept)
            gather(state, first, n_sequences, 0, unfolded, 0)
            for t in range(n_steps):
                clear_started(unfolded, n_neurons, starts, t, first)
                gather(inputs, first, n_sequences, t, rows, 1)
                gather_delta(elapsed_time, t, first, ode_unfolds, delta)
                if t >= n_steps - n_kept:
                    sensory_sigmoids, slopes, reciprocals, sigmoids = kept_rows(
                        kept_address + 4 * step_size * (first_kept + t),
                        n_sensory_vectors,
                        n_vectors,
                        ode_unfolds,
                        n_neurons,
                        width,
                    )
                    leak_and_senses(limits[1], n_inputs, True, *senses, rows, *of_step, sensory_sigmoids)
                    solve(clamped, True, *between, *solver_operands, slopes, reciprocals, sigmoids)
                else:
                    leak_and_senses(limits[1], n_inputs, None, *senses, rows, *of_step, None)
                    solve(clamped, None, *between, *solver_operands, None, None, None)
                scatter(unfolded, last, first, n_sequences, t, potentials)
                for j in range(n_neurons):
                    store(unfolded, j, load(unfolded, last + j))
        if n_kept > 0:
            fence()

    compiled: Callable[..., None] = forward_blocks
    return compiled
