"""`ltc_scan`: checks its operands, chooses the backend, runs the whole sequence in one call."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ncp_rl.kernels import fused, numba_cpu, reference
from ncp_rl.kernels.contract import Params, Synapses

Backend = Literal["auto", "reference", "numba", "triton"]

fused.register("numba", numba_cpu)


def ltc_scan(
    params: Params,
    synapses: Synapses,
    inputs: Tensor,
    state: Tensor,
    episode_starts: Tensor | None = None,
    elapsed_time: Tensor | None = None,
    *,
    ode_unfolds: int = 6,
    backend: Backend = "auto",
) -> Tensor:
    """Run liquid time-constant neurons over N sequences of T steps.

    Args:
        params: Constrained parameters of the cell.
        synapses: Where the synapses run.
        inputs: (T, N, S), sensory inputs.
        state: (N, U), membrane potentials before the first step.
        episode_starts: (T, N) bool; True sets a sequence's potentials to zero before that step.
        elapsed_time: (T, N), seconds that each step lasts, not negative; 1 second where None.
        ode_unfolds: Solver substeps per step.
        backend: "numba" (CPU, float32), "triton" (CUDA, float32), "reference" (any), or "auto", which takes the
            fused backend of the device for float32 and the reference for other dtypes.

    Returns:
        (T, N, U), potentials after each step, differentiable in every floating-point operand.

    Raises:
        ValueError: Operands that do not fit each other, or that the named backend cannot serve.
        ModuleNotFoundError: The backend of this device is not installed.
    """
    _check_shapes(params, synapses, inputs, state, episode_starts, elapsed_time)
    if ode_unfolds < 1:
        raise ValueError(f"ode_unfolds must be at least 1, got {ode_unfolds}.")
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}.")
    if backend == "auto":
        backend = _choose(inputs)
    if backend == "reference":
        return reference.scan(params, synapses, inputs, state, episode_starts, elapsed_time, ode_unfolds=ode_unfolds)
    return fused.scan(
        backend,
        Params(*(tensor.contiguous() for tensor in params)),
        Synapses(*(tensor.contiguous() for tensor in synapses)),
        inputs.contiguous(),
        state.contiguous(),
        None if episode_starts is None else episode_starts.contiguous(),
        None if elapsed_time is None else elapsed_time.contiguous(),
        ode_unfolds=ode_unfolds,
    )


def _choose(inputs: Tensor) -> Backend:
    if inputs.dtype != torch.float32:
        return "reference"
    if inputs.is_cuda:
        return "reference"
    return "numba" if inputs.is_cpu else "reference"


def _check_shapes(
    params: Params,
    synapses: Synapses,
    inputs: Tensor,
    state: Tensor,
    episode_starts: Tensor | None,
    elapsed_time: Tensor | None,
) -> None:
    if inputs.dim() != 3 or 0 in inputs.shape[:2]:
        raise ValueError(f"inputs must be (T, N, S) with T, N >= 1, got {tuple(inputs.shape)}.")
    n_steps, n_sequences, _ = inputs.shape
    n_neurons = params.neuronal.shape[-1]
    expected = {
        "state": (state, (n_sequences, n_neurons)),
        "params.synaptic": (params.synaptic, (4, len(synapses.source))),
        "params.sensory": (params.sensory, (4, len(synapses.sensory_source))),
        "params.neuronal": (params.neuronal, (3, len(synapses.pointer) - 1)),
        "episode_starts": (episode_starts, (n_steps, n_sequences)),
        "elapsed_time": (elapsed_time, (n_steps, n_sequences)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            hint = "; transpose it" if tuple(tensor.shape) == shape[::-1] else ""
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}{hint}.")
    if episode_starts is not None and episode_starts.dtype != torch.bool:
        raise ValueError(f"episode_starts must be bool, got {episode_starts.dtype}; compare it with 0 first.")
