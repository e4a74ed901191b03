"""Action outputs: their number for each action space, and the range that potentials from -1 to 1 reach at first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ncp_rl.action_outputs import n_action_outputs, start_motor_map
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
