"""Action outputs: their number, the range that potentials from -1 to 1 reach at first, and the bounds of means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ncp_rl.action_outputs import action_bounds, clip_inward, n_action_outputs, start_motor_map
from ncp_rl.cell import MotorMap

BOUNDED = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,), np.float32)


@pytest.mark.parametrize(
    ("space", "n"),
    [
        (spaces.Box(-1.0, 1.0, (2, 3)), 6),
        (spaces.Discrete(4), 4),
        (spaces.MultiDiscrete([3, 2]), 5),
        (spaces.MultiBinary(3), 3),
    ],
)
def test_a_space_needs_as_many_outputs_as_its_distribution_has_parameters(space: spaces.Space[Any], n: int) -> None:
    assert n_action_outputs(space) == n


def test_other_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="Actions must be Box, Discrete, MultiDiscrete or MultiBinary, got Text"):
        n_action_outputs(spaces.Text(3))


@pytest.mark.parametrize(
    ("space", "lowest", "highest"),
    [
        (BOUNDED, [-2.0, 0.0], [2.0, 10.0]),
        (UNBOUNDED, [-1.0, -1.0], [1.0, 1.0]),
        (spaces.Discrete(2), [-3.0, -3.0], [3.0, 3.0]),
    ],
)
def test_potentials_reach_the_bounds_of_actions(
    space: spaces.Space[Any], lowest: list[float], highest: list[float]
) -> None:
    motor_map = MotorMap(2)
    start_motor_map(motor_map, space)
    assert motor_map(torch.full((2,), -1.0)).tolist() == lowest
    assert motor_map(torch.ones(2)).tolist() == highest


LOW, HIGH = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 10.0])


def test_only_a_bounded_box_bounds_means() -> None:
    found = action_bounds(spaces.Box(-2.0, np.array([[1.0, 3.0]], np.float32)))
    assert found is not None and [bound.tolist() for bound in found] == [[-2.0, -2.0], [1.0, 3.0]]
    assert action_bounds(UNBOUNDED) is action_bounds(spaces.Discrete(2)) is None


@pytest.mark.parametrize("wanted", [-99.0, 99.0])
def test_means_are_clipped_with_a_gradient_that_leads_inside_alone(wanted: float) -> None:
    mean = torch.tensor([[-3.0, -0.5], [-2.0, 10.0], [2.5, 11.0]], requires_grad=True)
    clipped = clip_inward(mean, LOW, HIGH)
    assert clipped.tolist() == [[-2.0, 0.0], [-2.0, 10.0], [2.0, 10.0]]
    torch.nn.functional.mse_loss(clipped, torch.full_like(mean, wanted)).backward()
    # Means at a bound, not beyond it, are free; the others follow only what is wanted of them inside.
    free = torch.tensor([[wanted > 0, wanted > 0], [True, True], [wanted < 0, wanted < 0]])
    assert mean.grad is not None and torch.equal(mean.grad != 0, free)


def test_clipped_means_are_the_same_without_a_gradient() -> None:
    assert clip_inward(torch.tensor([-3.0, 10.5]), LOW, HIGH).tolist() == [-2.0, 10.0]
    assert clip_inward(torch.tensor([torch.nan, 1.0]), LOW, HIGH).isnan().tolist() == [True, False]
