"""What the fused backends share: how autograd and `torch.compile` see a hand-written scan.

A fused backend is a module with the functions of `FusedBackend`. Eager mode takes the cheapest way in: the kernel
itself where no gradient is wanted, an `autograd.Function` where one is. While `torch.compile` captures a graph, a
registered operator stands in for it, because a graph can hold nothing but operators. A graph that is exported holds the
reference instead: it runs without this library.
"""

# mypy: allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import functools
import importlib
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ncp_rl.kernels import numba_cpu
from ncp_rl.kernels.contract import Gradients, Params, Synapses


class FusedBackend(Protocol):
    """What a module offers to be a fused backend. All tensors that it gets are contiguous, on one device."""

    def forward(
        self,
        params: Params,
        synapses: Synapses,
        inputs: Tensor,
        state: Tensor,
        episode_starts: Tensor | None,
        elapsed_time: Tensor | None,
        *,
        ode_unfolds: int,
        save: bool,
    ) -> tuple[Tensor, Any]:
        """Potentials (T, N, U), and what `backward` can use if `save`: of any kind, None if nothing."""

    def backward(
        self,
        grad: Tensor,
        potentials: Tensor,
        saved: Any,
        params: Params,
        synapses: Synapses,
        inputs: Tensor,
        state: Tensor,
        episode_starts: Tensor | None,
        elapsed_time: Tensor | None,
        *,
        ode_unfolds: int,
    ) -> Gradients:
        """Gradients for `grad` (T, N, U) of the potentials; `saved` may be None."""


@functools.cache
def load_backend(name: str) -> FusedBackend:
    """The module behind "numba" or "triton"."""
    if name == "numba":
        return numba_cpu
    try:
        return cast(FusedBackend, importlib.import_module("ncp_rl.kernels.triton_gpu"))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The scan on CUDA needs triton, which is not installed; "
            "run `pip install 'ncp-rl[triton]'`, or use the slower backend=\"reference\"."
        ) from error


def scan(
    name: str,
    params: Params,
    synapses: Synapses,
    inputs: Tensor,
    state: Tensor,
    episode_starts: Tensor | None,
    elapsed_time: Tensor | None,
    *,
    ode_unfolds: int,
) -> Tensor:
    """Run the scan of the backend `name`; shapes as in `ncp_rl.kernels.ltc_scan`."""
    rest = (inputs, state, episode_starts, elapsed_time)
    if torch.compiler.is_compiling():
        potentials: Tensor = _scan_operator(*params, *synapses, *rest, ode_unfolds, name)
        return potentials
    if torch.is_grad_enabled() and _wants_gradient(params, inputs, state, elapsed_time):
        potentials = _Scan.apply(name, ode_unfolds, synapses, *params, *rest)
        return potentials
    return load_backend(name).forward(
        params, synapses, inputs, state, episode_starts, elapsed_time, ode_unfolds=ode_unfolds, save=False
    )[0]


def _wants_gradient(params: Params, inputs: Tensor, state: Tensor, elapsed_time: Tensor | None) -> bool:
    synaptic, sensory, neuronal = params
    return (
        neuronal.requires_grad
        or synaptic.requires_grad
        or sensory.requires_grad
        or inputs.requires_grad
        or state.requires_grad
        or (elapsed_time is not None and elapsed_time.requires_grad)
    )


class _Scan(torch.autograd.Function):
    """Operands: 3 parameters, inputs, state, episode_starts, elapsed_time."""

    @staticmethod
    def forward(ctx: Any, name: str, ode_unfolds: int, synapses: Synapses, *operands: Any) -> Tensor:
        params, rest = Params(*operands[:3]), operands[3:]
        potentials, saved = load_backend(name).forward(params, synapses, *rest, ode_unfolds=ode_unfolds, save=True)
        ctx.name, ctx.ode_unfolds, ctx.synapses, ctx.saved = name, ode_unfolds, synapses, saved
        ctx.save_for_backward(potentials, *operands)
        return potentials

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        potentials, *operands = ctx.saved_tensors
        gradients = load_backend(ctx.name).backward(
            grad.contiguous(),
            potentials,
            ctx.saved,
            Params(*operands[:3]),
            ctx.synapses,
            *operands[3:],
            ode_unfolds=ctx.ode_unfolds,
        )
        params, inputs, state, elapsed_time = gradients
        return None, None, None, *params, inputs, state, None, elapsed_time


@torch.library.custom_op("ncp_rl::ltc_scan", mutates_args=())
def _scan_operator(
    synaptic: Tensor,
    sensory: Tensor,
    neuronal: Tensor,
    pointer: Tensor,
    source: Tensor,
    sensory_pointer: Tensor,
    sensory_source: Tensor,
    inputs: Tensor,
    state: Tensor,
    episode_starts: Tensor | None,
    elapsed_time: Tensor | None,
    ode_unfolds: int,
    backend: str,
) -> Tensor:
    return load_backend(backend).forward(
        Params(synaptic, sensory, neuronal),
        Synapses(pointer, source, sensory_pointer, sensory_source),
        inputs,
        state,
        episode_starts,
        elapsed_time,
        ode_unfolds=ode_unfolds,
        save=False,
    )[0]


@_scan_operator.register_fake
def _scan_shape(*operands: Any) -> Tensor:
    inputs: Tensor = operands[7]
    state: Tensor = operands[8]
    return inputs.new_empty(inputs.shape[0], inputs.shape[1], state.shape[1])


@torch.library.custom_op("ncp_rl::ltc_scan_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    potentials: Tensor,
    synaptic: Tensor,
    sensory: Tensor,
    neuronal: Tensor,
    pointer: Tensor,
    source: Tensor,
    sensory_pointer: Tensor,
    sensory_source: Tensor,
    inputs: Tensor,
    state: Tensor,
    episode_starts: Tensor | None,
    elapsed_time: Tensor | None,
    ode_unfolds: int,
    backend: str,
) -> list[Tensor]:
    gradients = load_backend(backend).backward(
        grad.contiguous(),
        potentials,
        None,
        Params(synaptic, sensory, neuronal),
        Synapses(pointer, source, sensory_pointer, sensory_source),
        inputs,
        state,
        episode_starts,
        elapsed_time,
        ode_unfolds=ode_unfolds,
    )
    # An operator cannot return None.
    elapsed_gradient = grad.new_empty(0) if gradients.elapsed_time is None else gradients.elapsed_time
    return [*gradients.params, gradients.inputs, gradients.state, elapsed_gradient]


@_backward_operator.register_fake
def _backward_shapes(*operands: Any) -> list[Tensor]:
    grad, params, (inputs, state, _, elapsed_time) = operands[0], operands[2:5], operands[9:13]
    elapsed_gradient = grad.new_empty(0) if elapsed_time is None else torch.empty_like(elapsed_time)
    return [*map(torch.empty_like, params), torch.empty_like(inputs), torch.empty_like(state), elapsed_gradient]


def _save_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.ode_unfolds, ctx.backend = inputs
    ctx.save_for_backward(output, *operands)


def _operator_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    elapsed_time = ctx.saved_tensors[-1]
    *params, inputs, state, elapsed_gradient = _backward_operator(
        grad, *ctx.saved_tensors, ctx.ode_unfolds, ctx.backend
    )
    # Synapse lists, episode starts, the number of unfolds and the backend have none.
    no_lists = [None] * len(Synapses._fields)
    return *params, *no_lists, inputs, state, None, None if elapsed_time is None else elapsed_gradient, None, None


_scan_operator.register_autograd(_operator_gradients, setup_context=_save_operands)
