"""What lets a circuit learn at the stock settings of `RecurrentPPO`: `results/learning_defaults.csv` has the evidence.

A circuit's parameters are few and of the order of one, an LSTM's are many and small. At SB3's learning rate of 3e-4 a
circuit stays where it was drawn: its optimizer takes larger steps (`ScaledAdam`). RecurrentPPO clips the gradients of
actor and critic together, at a norm that the critic's loss fills where returns are large: what is left for the actor
then lies below the usual epsilon of Adam. So the value's gradient is made small (`scale_gradient`), which Adam does not
see, and epsilon smaller still. Returns come in the environment's own units: the critic's output is a signed square
(`SignedSquare`), so that values of any size are within reach of such steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ncp_rl.ltc import LTC

#: Steps of `ScaledAdam`, in learning rates: those that suit LTC neurons.
LR_SCALE = LTC.lr_scale
#: Of the value's gradient, beside the policy's.
VALUE_GRADIENT = 1e-4


class ScaledAdam(torch.optim.Adam):
    """Adam whose steps are `lr_scale` times the learning rate.

    SB3 writes the scheduled learning rate into every parameter group before each update; the factor stands beside it
    and so outlives that. A group may have an `lr_scale` of its own.
    """

    def __init__(
        self, params: Any, lr: float = 3e-4, *, lr_scale: float = LR_SCALE, eps: float = 1e-12, **kwargs: Any
    ) -> None:
        """Take what `torch.optim.Adam` takes, with an epsilon fit for gradients that a clip has made small.

        Args:
            params: Parameters or groups of them.
            lr: Learning rate, before `lr_scale`.
            lr_scale: Factor of groups that have none of their own.
            eps: Of Adam.
            **kwargs: For `torch.optim.Adam`.

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
        """One step; see `torch.optim.Adam.step`."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["lr_scale"]
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


class SignedSquare(nn.Module):
    """x (1 + |x|): the identity near zero, a square far from it."""

    def forward(self, x: Tensor) -> Tensor:
        """Element by element, any shape."""
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
    """The same x, whose gradient is `factor` times as large."""
    scaled: Tensor = _ScaleGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return scaled
