"""The connection of all fused backends to PyTorch: how autograd and `torch.compile` see a hand-written scan.

Eager mode takes the cheapest way: the kernel itself where no gradient is wanted, an `autograd.Function` where one
is. While `torch.compile` captures a graph, a registered operator stands in for it, because a graph can hold nothing but
operators. A graph that is exported holds the reference instead: it runs without this library.
"""

# mypy: allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ncp_rl.kernels.backends import BackendEntry, FusedBackend, load_backend
from ncp_rl.kernels.contract import VALUES, Gradients, Operands, Params, Synapses


def scan(backend: BackendEntry, operands: Operands) -> Tensor:
    """Run the scan of a fused backend and return the potentials (T, N, U)."""
    if torch.compiler.is_compiling():
        # Unpacked: what `torch.compile` knows of named tuples depends on its version, but it knows their fields.
        params, synapses, *rest, ode_unfolds = operands
        potentials: Tensor = _scan_operator(*params, *rest, *synapses, ode_unfolds, backend.name)
        return potentials
    assert backend.load is not None
    module = backend.load()
    if torch.is_grad_enabled() and _wants_gradient(operands):
        potentials = _FusedScan.apply(module, operands.ode_unfolds, operands.synapses, *operands.values)
        return potentials
    return module.forward(operands, save=False)[0]


def _wants_gradient(operands: Operands) -> bool:
    synaptic, sensory, neuronal = operands.params
    return (
        neuronal.requires_grad
        or synaptic.requires_grad
        or sensory.requires_grad
        or operands.inputs.requires_grad
        or operands.state.requires_grad
        or (operands.elapsed_time is not None and operands.elapsed_time.requires_grad)
    )


class _FusedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: FusedBackend, ode_unfolds: int, synapses: Synapses, *values: Any) -> Tensor:
        operands = Operands.from_values(values, synapses, ode_unfolds)
        potentials, ctx.saved = backend.forward(operands, save=True)
        ctx.backend, ctx.ode_unfolds, ctx.synapses = backend, ode_unfolds, synapses
        ctx.save_for_backward(potentials, *values)
        return potentials

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        potentials, *values = ctx.saved_tensors
        operands = Operands.from_values(values, ctx.synapses, ctx.ode_unfolds)
        gradients = ctx.backend.backward(grad.contiguous(), potentials, ctx.saved, operands)
        return None, None, None, *gradients.values


# The arguments of a graph's operator: `Operands.values`, the synapse lists, then those that are not tensors.
_KINDS = VALUES | dict.fromkeys(Synapses._fields, "Tensor") | {"ode_unfolds": "int", "backend": "str"}
_ARGUMENTS = ", ".join(f"{kind} {name}" for name, kind in _KINDS.items())


def _operands(arguments: Sequence[Any]) -> Operands:
    """Return the operands among the arguments of an operator."""
    *tensors, ode_unfolds, _ = arguments
    return Operands.from_values(tensors[: len(VALUES)], Synapses(*tensors[len(VALUES) :]), ode_unfolds)


@torch.library.custom_op("ncp_rl::ltc_scan", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def _scan_operator(*arguments: Any) -> Tensor:
    return load_backend(arguments[-1]).forward(_operands(arguments), save=False)[0]


@_scan_operator.register_fake
def _scan_shape(*arguments: Any) -> Tensor:
    operands = _operands(arguments)
    return operands.inputs.new_empty(*operands.inputs.shape[:2], operands.state.shape[1])


@torch.library.custom_op(
    "ncp_rl::ltc_scan_backward", mutates_args=(), schema=f"(Tensor grad, Tensor potentials, {_ARGUMENTS}) -> Tensor[]"
)
def _backward_operator(grad: Tensor, potentials: Tensor, *arguments: Any) -> list[Tensor]:
    """Return the gradients that exist, in the order of the values."""
    gradients = load_backend(arguments[-1]).backward(grad.contiguous(), potentials, None, _operands(arguments))
    return [gradient for gradient in gradients.values if gradient is not None]


@_backward_operator.register_fake
def _backward_shapes(grad: Tensor, potentials: Tensor, *arguments: Any) -> list[Tensor]:
    operands = _operands(arguments)
    differentiable = (*operands.params, operands.inputs, operands.state, operands.elapsed_time)
    return [torch.empty_like(value) for value in differentiable if value is not None]


def _save_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.ode_unfolds, ctx.backend = inputs
    ctx.save_for_backward(output, *tensors)


def _operator_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    synaptic, sensory, neuronal, *rest = _backward_operator(grad, *ctx.saved_tensors, ctx.ode_unfolds, ctx.backend)
    gradients = Gradients(Params(synaptic, sensory, neuronal), *rest)
    return *gradients.values, *(None for _ in (*Synapses._fields, "ode_unfolds", "backend"))


_scan_operator.register_autograd(_operator_gradients, setup_context=_save_operands)
