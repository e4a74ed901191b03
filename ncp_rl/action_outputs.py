"""A policy's action outputs: how many an action space needs, the range that they start with, and the means' bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical

from ncp_rl.cell import MotorMap
from ncp_rl.kernels import exporting

# Potentials lie from about -1 to 1; logits that differ by 6 make an action nearly certain.
_LOGIT_GAIN = 3.0


def n_action_outputs(action_space: spaces.Space[Any]) -> int:
    """Count the parameters of a distribution over actions: means of a Box, logits of discrete spaces.

    Raises:
        ValueError: RecurrentPPO does not serve the action space.
    """
    if isinstance(action_space, spaces.Box):
        return int(np.prod(action_space.shape))
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(np.sum(action_space.nvec))
    if isinstance(action_space, spaces.MultiBinary):
        return int(np.prod(action_space.shape))
    raise ValueError(f"Actions must be Box, Discrete, MultiDiscrete or MultiBinary, got {action_space}.")


def start_motor_map(motor_map: nn.Module, action_space: spaces.Space[Any]) -> None:
    """Map potentials from -1 to 1 to the range of bounded actions, or to logits from -3 to 3.

    Args:
        motor_map: A `MotorMap`, changed in place; that of unbounded actions stays the identity.
        action_space: The policy's action space.
    """
    assert isinstance(motor_map, MotorMap)
    if not isinstance(action_space, spaces.Box):
        with torch.no_grad():
            motor_map.weight.fill_(_LOGIT_GAIN)
    elif (bounds := action_bounds(action_space)) is not None:
        low, high = bounds
        with torch.no_grad():
            motor_map.weight.copy_((high - low) / 2)
            motor_map.bias.copy_((high + low) / 2)


def action_bounds(action_space: spaces.Space[Any]) -> Tensor | None:
    """Return the lowest and the highest actions of a bounded Box, (2, A) float32; None for any other space."""
    if not (isinstance(action_space, spaces.Box) and action_space.is_bounded()):
        return None
    return torch.stack([torch.from_numpy(bound).float().flatten() for bound in (action_space.low, action_space.high)])


class _ClipInward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(mean < low, mean > high)
        return mean.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        below, above = ctx.saved_tensors
        # A step goes against the gradient.
        outward = (below & (gradient > 0)) | (above & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None


def clip_inward(mean: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip action means, with a gradient that leads back inside from beyond a bound, and never further out.

    Args:
        mean: (..., A).
        low: (A,), lower bounds.
        high: (A,), upper bounds.

    Returns:
        (..., A).
    """
    if not mean.requires_grad or exporting():
        return mean.clamp(low, high)
    clipped: Tensor = _ClipInward.apply(mean, low, high)  # type: ignore[no-untyped-call]
    return clipped


class _DrawnOnDevice(Categorical):
    """A categorical distribution whose samples need no check by the host, for which `torch.multinomial` waits."""

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw the category whose exponentially distributed time, at a rate of its probability, is the shortest."""
        probabilities = self.probs.expand(*sample_shape, *self.probs.shape)
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)


def drawn_on_device(distributions: Any) -> Any:
    """Return the PyTorch distribution, or the list of them, with categorical ones that draw without the host."""
    if isinstance(distributions, list):
        return [drawn_on_device(each) for each in distributions]
    if type(distributions) is Categorical:
        return _DrawnOnDevice(logits=distributions.logits, validate_args=False)
    return distributions
