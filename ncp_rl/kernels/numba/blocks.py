"""A block of sequences side by side: each neuron or input has a row, and each lane of a row belongs to a sequence.

Memory outside of the kernels has a row for each step and sequence, so that `gather` and `scatter` transpose.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ncp_rl.jit import inlined
from ncp_rl.kernels.numba.access import prefetch, transpose
from ncp_rl.kernels.numba.memory import Bools, Floats, address_of, bools, floats, rows_at
from ncp_rl.kernels.numba.vectors import LANES

#: Addresses or numbers, as kernels take them in groups.
Numbers = tuple[int, ...]

_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@inlined
def read_operands(addresses: Numbers, sizes: Numbers) -> Any:
    """Return inputs (T * N, S), state (N, U), episode starts and elapsed time (T, N); without rows for None.

    `addresses` are in this order, 0 for None; `sizes` are T, N, S, U and the number of substeps.
    """
    inputs_address, state_address, starts_address, elapsed_address = addresses
    n_steps, n_sequences, n_inputs, n_neurons, _ = sizes
    return (
        floats(inputs_address, n_steps * n_sequences, n_inputs),
        floats(state_address, n_sequences, n_neurons),
        bools(starts_address, n_steps if starts_address else 0, n_sequences),
        floats(elapsed_address, n_steps if elapsed_address else 0, n_sequences),
    )


@inlined
def gather(source: Floats, first: int, n_sequences: int, step: int, rows: Floats, ahead: int) -> None:
    """Transpose columns of `source` (T * N, columns) at one step to rows of lanes; fetch those `ahead` steps later.

    Lanes past the last sequence repeat it, so that they stay finite where it does; nothing reads them.
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
    """Write the seconds of each lane's substeps into `delta` (1, width); `elapsed_time` without rows means 1 second."""
    for lane in range(delta.shape[1]):
        elapsed = _ONE
        if elapsed_time.shape[0] > 0:
            elapsed = elapsed_time[step, min(first + lane, elapsed_time.shape[1] - 1)]
        delta[0, lane] = elapsed / np.float32(ode_unfolds)
