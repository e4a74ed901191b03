"""`ltc_scan`: checks its operands, chooses the backend, runs the whole sequence in one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncp_rl.kernels import fused, reference
from ncp_rl.kernels.backends import Backend, choose
from ncp_rl.kernels.contract import FrozenParams, Operands, Params, Synapses, exporting, tracing


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

    All floating-point operands have one dtype, and all operands are on one device.

    Args:
        params: Constrained parameters of the cell.
        synapses: Lists of synapses. Pass the same object in each call, since a new object is checked in full.
        inputs: (T, N, S), sensory inputs.
        state: (N, U), membrane potentials before the first step.
        episode_starts: (T, N) bool; True sets a sequence's potentials to zero before that step.
        elapsed_time: (T, N), seconds that each step lasts, not negative; 1 second where None.
        ode_unfolds: Solver substeps per step.
        backend: A name in `BACKENDS`: "numba" (CPU, float32), "triton" (CUDA, float32), "reference" (any); or "auto",
            which takes the fused backend of the device for float32 and the reference for other dtypes. Whatever the
            backend, a graph for others (torch.export, torch.onnx, torch.jit.trace) is that of the reference, in
            operations of PyTorch's own.

    Returns:
        (T, N, U), potentials after each step, differentiable in every floating-point operand.

    Raises:
        ValueError: Operands that do not fit each other, or that the named backend cannot serve.
        ModuleNotFoundError: The backend of this device is not installed.
    """
    if tracing():
        return reference.scan(Operands(params, synapses, inputs, state, episode_starts, elapsed_time, ode_unfolds))
    shape = inputs.shape
    if len(shape) != 3 or 0 in shape[:2]:
        raise ValueError(f"inputs must be (T, N, S) with T, N >= 1, got {tuple(shape)}.")
    if ode_unfolds < 1:
        raise ValueError(f"ode_unfolds must be at least 1, got {ode_unfolds}.")
    n_steps, n_sequences, _ = shape
    sizes = _sizes_of(synapses, inputs)
    params = _fit_params(params, sizes, inputs)
    state = _fit("state", state, (n_sequences, sizes.n_neurons), inputs)
    if episode_starts is not None:
        episode_starts = _fit_starts(episode_starts, (n_steps, n_sequences), inputs)
    if elapsed_time is not None:
        elapsed_time = _fit("elapsed_time", elapsed_time, (n_steps, n_sequences), inputs)
    operands = Operands(params, sizes.synapses, inputs.contiguous(), state, episode_starts, elapsed_time, ode_unfolds)
    chosen = choose(backend, inputs.dtype, sizes.device_type)
    if chosen.load is None or exporting():
        return reference.scan(operands)
    return fused.scan(chosen, operands)


@dataclass
class _Sizes:
    """The sizes of synapse lists that were checked."""

    synapses: Synapses
    """The lists that the sizes are of, contiguous"""
    original: Synapses
    """The object that the caller passed"""
    device: torch.device
    device_type: str
    n_neurons: int
    n_synapses: int
    n_sensory_synapses: int
    n_inputs: int
    """Least number of sensory inputs"""
    fitted: FrozenParams | None = None
    """The parameters that fitted last, on the lists' device"""


#: Lists that were checked, by id. The values hold the lists themselves, so that no other object can get their id.
_known: dict[int, _Sizes] = {}
_MAX_KNOWN = 64


def _sizes_of(synapses: Synapses, inputs: Tensor) -> _Sizes:
    """Return the sizes of `synapses` after checking that they fit `inputs` (T, N, S)."""
    if torch.compiler.is_compiling():
        # Values of traced tensors cannot be read, and their identities change from call to call.
        sizes = _measure(synapses, n_inputs=0)
    else:
        sizes = _known.get(id(synapses)) or _check_synapses(synapses)
    if sizes.device != inputs.device:
        raise ValueError(
            f"synapses must be on {inputs.device} like inputs, got {sizes.device}; move them with synapses.to(...)."
        )
    if inputs.shape[2] < sizes.n_inputs:
        raise ValueError(
            f"inputs must be (T, N, S) with S >= {sizes.n_inputs}, the inputs that sensory synapses start from, "
            f"got {tuple(inputs.shape)}."
        )
    return sizes


def _measure(synapses: Synapses, n_inputs: int) -> _Sizes:
    pointer, source, sensory_pointer, sensory_source = synapses
    for name, tensor in zip(Synapses._fields, synapses, strict=True):
        if tensor.dim() != 1 or tensor.dtype is not torch.int32 or tensor.device != pointer.device:
            raise ValueError(
                f"synapses.{name} must be one row of torch.int32 on {pointer.device}, got {tuple(tensor.shape)} of "
                f"{tensor.dtype} on {tensor.device}; build the lists with Synapses.from_adjacency."
            )
    if len(pointer) < 2 or len(sensory_pointer) != len(pointer):
        raise ValueError(
            f"synapses.pointer and synapses.sensory_pointer must both be (U + 1,) with U >= 1, got ({len(pointer)},) "
            f"and ({len(sensory_pointer)},); build the lists with Synapses.from_adjacency."
        )
    whole = all(tensor.is_contiguous() for tensor in synapses)
    contiguous = synapses if whole else Synapses(*(tensor.contiguous() for tensor in synapses))
    device, counts = pointer.device, (len(pointer) - 1, len(source), len(sensory_source))
    return _Sizes(contiguous, synapses, device, device.type, *counts, n_inputs)


def _check_synapses(synapses: Synapses) -> _Sizes:
    """Check `synapses` in full, once: kernels follow the lists without bounds checks."""
    if synapses.pointer.is_meta:
        return _measure(synapses, n_inputs=0)  # Tensors on this device have no values.
    sizes = _measure(synapses, _n_sources(synapses.sensory_source))
    for name, pointer, source in (("", *synapses[:2]), ("sensory_", *synapses[2:])):
        if pointer[0] != 0 or pointer[-1] != len(source) or (pointer.diff() < 0).any():
            raise ValueError(
                f"synapses.{name}pointer must rise from 0 to {len(source)}, the length of synapses.{name}source; "
                f"build the lists with Synapses.from_adjacency."
            )
        if len(source) and source.min() < 0:
            raise ValueError(f"synapses.{name}source must not be negative, got {source.min()}.")
    if _n_sources(synapses.source) > sizes.n_neurons:
        raise ValueError(f"synapses.source must be below U = {sizes.n_neurons}, got {synapses.source.max()}.")
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    _known[id(synapses)] = sizes
    return sizes


def _n_sources(source: Tensor) -> int:
    return int(source.max()) + 1 if len(source) else 0


def _fit(name: str, tensor: Tensor, shape: tuple[int, ...], inputs: Tensor) -> Tensor:
    """Return `tensor` as contiguous after checking its `shape`, and that dtype and device are those of `inputs`."""
    if tensor.shape == shape and tensor.dtype is inputs.dtype and tensor.device == inputs.device:
        return tensor if tensor.is_contiguous() else tensor.contiguous()
    if tensor.shape != shape:
        hint = "; transpose it" if tuple(tensor.shape) == shape[::-1] else ""
        raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}{hint}.")
    raise ValueError(
        f"{name} must be {inputs.dtype} on {inputs.device} like inputs, got {tensor.dtype} on {tensor.device}; "
        f"convert it with .to({inputs.device.type!r}, {inputs.dtype})."
    )


def _fit_params(params: Params, sizes: _Sizes, inputs: Tensor) -> Params:
    """Return `params` as contiguous, and remember the last `FrozenParams`, which a rollout passes at every step."""
    if params is sizes.fitted and params.neuronal.dtype is inputs.dtype:
        return params
    fitting = (
        _fit("params.synaptic", params.synaptic, (4, sizes.n_synapses), inputs),
        _fit("params.sensory", params.sensory, (4, sizes.n_sensory_synapses), inputs),
        _fit("params.neuronal", params.neuronal, (3, sizes.n_neurons), inputs),
    )
    if not all(tensor.is_contiguous() for tensor in params):
        return Params(*fitting)
    if isinstance(params, FrozenParams):
        sizes.fitted = params
    return params


def _fit_starts(episode_starts: Tensor, shape: tuple[int, int], inputs: Tensor) -> Tensor:
    if episode_starts.dtype is not torch.bool:
        raise ValueError(f"episode_starts must be bool, got {episode_starts.dtype}; compare it with 0 first.")
    if episode_starts.shape == shape and episode_starts.device != inputs.device:
        raise ValueError(f"episode_starts must be on {inputs.device} like inputs, got {episode_starts.device}.")
    if episode_starts.shape != shape:
        hint = "; transpose it" if tuple(episode_starts.shape) == shape[::-1] else ""
        raise ValueError(f"episode_starts must be (T, N) = {shape}, got {tuple(episode_starts.shape)}{hint}.")
    return episode_starts if episode_starts.is_contiguous() else episode_starts.contiguous()
