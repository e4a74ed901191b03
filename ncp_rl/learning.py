"""Parts that let a circuit learn at the stock settings of `RecurrentPPO`, measured in `results/learning_defaults.csv`.

A circuit has few parameters of the order of one; an LSTM has many small ones. At SB3's learning rate of 3e-4 a
circuit hardly leaves its initial values, so its optimizer takes larger steps (`ScaledAdam`). RecurrentPPO clips the
gradients of actor and critic together, at a norm that the critic's loss fills where returns are large: the actor's
gradient then lies below the usual epsilon of Adam. So the value's gradient is scaled down (`scale_gradient`), to which
Adam is invariant, and epsilon is smaller still. Returns come in the environment's own units: the critic's output is a
signed square (`SignedSquare`), so that such steps reach values of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ncp_rl.ltc import LTC

#: Factor of the learning rate in `ScaledAdam` that suits LTC neurons.
LR_SCALE = LTC.lr_scale
#: Factor of the value's gradient.
VALUE_GRADIENT = 1e-4


class ScaledAdam(torch.optim.Adam):
    """Adam whose steps are `lr_scale` times the learning rate.

    SB3 writes the scheduled learning rate into every parameter group before each update; the factor is kept separately
    and so survives this. A group may have an `lr_scale` of its own.
    """

    def __init__(
        self, params: Any, lr: float = 3e-4, *, lr_scale: float = LR_SCALE, eps: float = 1e-12, **kwargs: Any
    ) -> None:
        """Take the arguments of `torch.optim.Adam`, with an epsilon that suits gradients which a clip has made small.

        Args:
            params: Parameters or groups of them.
            lr: Learning rate, before `lr_scale`.
            lr_scale: Factor of groups without one of their own.
            eps: Epsilon of Adam.
            **kwargs: Other arguments of `torch.optim.Adam`.

        Raises:
            ValueError: lr_scale is not positive.
        """
        if not lr_scale > 0:
            raise ValueError(f"lr_scale must be positive, got {lr_scale}.")
        super().__init__(params, lr=lr, eps=eps, **kwargs)
        self.defaults["lr_scale"] = lr_scale
        for group in self.param_groups:
            group.setdefault("lr_scale", lr_scale)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step; see `torch.optim.Adam.step`."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["lr_scale"]
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


class SignedSquare(nn.Module):
    """The function x (1 + |x|): the identity near zero, a square far from it."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function element by element to a tensor of any shape."""
        return x * (1.0 + x.abs())


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x unchanged, with a gradient that is `factor` times as large."""
    scaled: Tensor = _ScaleGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return scaled
