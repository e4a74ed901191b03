"""The scan on the CPU, float32, compiled by Numba on the user's machine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncp_rl.kernels.contract import Gradients, Operands, Params
from ncp_rl.kernels.numba.backward import backward_kernel
from ncp_rl.kernels.numba.forward import forward_kernel
from ncp_rl.kernels.numba.solver import kept_size
from ncp_rl.kernels.numba.tables import Tables, tables_of
from ncp_rl.kernels.numba.vectors import LANES, WIDTHS
from ncp_rl.kernels.threads import run_in_threads

#: Number of sigmoids that justify another thread, whose start takes 50 us: about 150 us of work.
SIGMOIDS_PER_THREAD = 1_000_000

#: Bytes that a forward pass may keep for its backward pass, which computes the rest again.
SAVED_BYTES = 256 << 20


class Saved:
    """Values of a forward pass that its backward pass can use; a later pass reuses the memory of a deleted one."""

    def __init__(self, tables: Tables, n_blocks: int, n_steps: int, n_neurons: int, ode_unfolds: int) -> None:
        """Keep the tables, and borrow memory for as many of the last steps as `SAVED_BYTES` allow."""
        width, (n_vectors, n_sensory_vectors) = tables.wiring.width, tables.wiring.sizes
        self.tables = tables
        self.step_size: int = kept_size.py_func(n_sensory_vectors, n_vectors, ode_unfolds, n_neurons, width)
        """Number of float32 for one step of one block"""
        self.n_kept = min(n_steps, SAVED_BYTES // max(1, 4 * n_blocks * self.step_size))
        self._spare, self._capacity = _spare, SAVED_BYTES // 4 + LANES
        self.memory = _borrow(n_blocks * self.n_kept * self.step_size)

    def __del__(self) -> None:
        """Return the memory for reuse."""
        # At exit, functions of this module, and those that `len` of a tensor calls, are deleted before its objects.
        if sum(other.numel() for other in self._spare) + self.memory.numel() <= self._capacity:
            self._spare.append(self.memory)

    @property
    def arguments(self) -> tuple[int, int]:
        """The address of the kept values, at the beginning of a cache line, and the number of kept steps."""
        return -(-self.memory.data_ptr() // 64) * 64, self.n_kept


def forward(operands: Operands, *, save: bool) -> tuple[Tensor, Saved | None]:
    """Run the scan over contiguous float32 operands on the CPU.

    Returns:
        (T, N, U), potentials after each step; and, if `save`, the values that `backward` can use.
    """
    # A policy calls this once per environment step, so it has no loops, no generators and few attribute look-ups.
    params, synapses, inputs, state, episode_starts, elapsed_time, ode_unfolds = operands
    n_steps, n_sequences, n_inputs = inputs.shape
    n_neurons = state.shape[1]
    width = _block_width(n_sequences)
    n_blocks = -(-n_sequences // width)
    tables = tables_of(params, synapses, width)
    potentials = inputs.new_empty(n_steps, n_sequences, n_neurons)
    saved = Saved(tables, n_blocks, n_steps, n_neurons, ode_unfolds) if save else None
    arguments = (
        potentials.data_ptr(),
        (
            inputs.data_ptr(),
            state.data_ptr(),
            0 if episode_starts is None else episode_starts.data_ptr(),
            0 if elapsed_time is None else elapsed_time.data_ptr(),
        ),
        (n_steps, n_sequences, n_inputs, n_neurons, ode_unfolds),
        (0, 0) if saved is None else saved.arguments,
        tables.addresses,
    )
    if n_blocks == 1:
        forward_kernel(width)(*arguments, 0, 1)
    else:
        _run_blocks(forward_kernel(width), n_blocks, operands, arguments)
    return potentials, saved


def backward(grad: Tensor, potentials: Tensor, saved: Saved | None, operands: Operands) -> Gradients:
    """Return the gradients for `grad` (T, N, U) of the potentials that `forward` returned."""
    params, synapses, inputs, state, episode_starts, elapsed_time, ode_unfolds = operands
    n_steps, n_sequences, n_inputs = inputs.shape
    n_neurons = state.shape[1]
    width = _block_width(n_sequences)
    n_blocks = -(-n_sequences // width)
    saved = saved or Saved(tables_of(params, synapses, width), n_blocks, 0, n_neurons, ode_unfolds)
    inputs_gradient, state_gradient = torch.empty_like(inputs), torch.empty_like(state)
    elapsed_gradient = None if elapsed_time is None else torch.empty_like(elapsed_time)
    partials = [inputs.new_empty(n_blocks, *tensor.shape) for tensor in params]
    between, senses = saved.tables.wiring.vectors
    arguments = (
        _addresses(grad, potentials),
        _addresses(inputs, state, episode_starts, elapsed_time),
        (n_steps, n_sequences, n_inputs, n_neurons, ode_unfolds),
        saved.arguments,
        saved.tables.addresses,
        _addresses(params.synaptic, between.slot, params.sensory, senses.slot),
        (params.synaptic.shape[1], params.sensory.shape[1]),
        _addresses(inputs_gradient, state_gradient, elapsed_gradient, *partials),
    )
    _run_blocks(backward_kernel(width), n_blocks, operands, arguments)
    return Gradients(Params(*map(_sum_blocks, partials)), inputs_gradient, state_gradient, elapsed_gradient)


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    """Return the addresses of the tensors' data; 0 stands for None."""
    return tuple([0 if tensor is None else tensor.data_ptr() for tensor in tensors])


#: Memory of deleted forward passes, which later ones reuse: touching new pages takes longer than computing again.
_spare: list[Tensor] = []


def _borrow(n_elements: int) -> Tensor:
    """Return uninitialised float32 memory for `n_elements` from the beginning of a cache line on."""
    n_elements += LANES
    try:
        # Memory that is too small is dropped.
        while len(memory := _spare.pop()) < n_elements:
            pass
    except IndexError:
        # NumPy asks for huge pages, PyTorch does not.
        memory = torch.from_numpy(np.empty(n_elements, np.float32))
    return memory


def _block_width(n_sequences: int) -> int:
    """Return how many sequences a block holds: with few sequences, a vector holds more synapses."""
    return WIDTHS[bisect_left(WIDTHS, min(n_sequences, LANES))]


def _n_sigmoids(operands: Operands) -> int:
    """Return how many sigmoids a pass evaluates, a measure of its work."""
    n_steps, n_sequences, _ = operands.inputs.shape
    n_synapses, n_sensory = operands.params.synaptic.shape[1], operands.params.sensory.shape[1]
    return n_steps * n_sequences * (operands.ode_unfolds * n_synapses + n_sensory)


def _run_blocks(kernel: Callable[..., None], n_blocks: int, operands: Operands, arguments: tuple[Any, ...]) -> None:
    """Run `kernel` over all blocks, on PyTorch's number of threads if there is enough to do for two."""
    if torch.get_num_threads() == 1 or n_blocks == 1 or _n_sigmoids(operands) < 2 * SIGMOIDS_PER_THREAD:
        kernel(*arguments, 0, n_blocks)
        return
    waiting = iter(range(n_blocks))

    def work() -> None:
        for block in waiting:
            kernel(*arguments, block, block + 1)

    # All threads run even if there are fewer blocks, since OpenMP ends threads that a parallel region does not use.
    run_in_threads(work, torch.get_num_threads())


def _sum_blocks(partials: Tensor) -> Tensor:
    """Sum over the first dimension, one block after the other whatever the number of threads."""
    return partials.squeeze_(0) if len(partials) == 1 else torch.from_numpy(partials.numpy().sum(axis=0))
