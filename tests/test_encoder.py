"""Encoders: receptors tile the range of each observation and keep its name."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces

from ncp_rl import MultiInputReceptors, Receptors
from ncp_rl.encoder import KeyFilter

BOX = spaces.Box(-1, 1, (2,), np.float32)


def test_each_receptor_carries_one_observation() -> None:
    receptors = Receptors(BOX, receptors=3, names=("x", "theta"))
    assert receptors.sensory_names == ("x_0", "x_1", "x_2", "theta_0", "theta_1", "theta_2")
    jacobian = torch.autograd.functional.jacobian(receptors, torch.zeros(1, 2))[0, :, 0]  # (6, 2)
    np.testing.assert_array_equal(jacobian != 0, np.repeat(np.eye(2, dtype=bool), 3, axis=0))


def test_receptors_open_evenly_over_the_range() -> None:
    """A synapse opens at mu, on average 0.55: solved for the observation, that is the middle of each part."""
    receptors = Receptors(BOX, receptors=4)
    opening = ((0.55 - receptors.offset) / receptors.gain).detach().reshape(2, 4)
    torch.testing.assert_close(opening, torch.tensor([[-0.75, -0.25, 0.25, 0.75]] * 2))


def test_receptors_compute_gain_and_offset() -> None:
    receptors = Receptors(BOX, receptors=2)
    with torch.no_grad():
        receptors.gain.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        receptors.offset.copy_(torch.tensor([0.0, 0.5, 0.0, -0.5]))
    torch.testing.assert_close(receptors(torch.tensor([[1.0, 10.0]])), torch.tensor([[1.0, 2.5, 30.0, 39.5]]))


def test_dict_observations_are_named_by_key() -> None:
    space = spaces.Dict(speed=spaces.Box(0, 1, (1,), np.float32), wheel=BOX)
    encoder = MultiInputReceptors(space, receptors=2)
    assert encoder.sensory_names == ("speed_0", "speed_1", "wheel_0_0", "wheel_0_1", "wheel_1_0", "wheel_1_1")
    assert encoder({"speed": torch.zeros(5, 1), "wheel": torch.zeros(5, 2)}).shape == (5, 6)


def test_elapsed_time_passes_unencoded_as_the_last_feature() -> None:
    space = spaces.Dict(x=BOX, elapsed_time=spaces.Box(0, 1, (1,), np.float32), hidden=BOX)
    encoder = KeyFilter(space, MultiInputReceptors, dict(receptors=2), frozenset({"hidden"}))
    seconds = torch.tensor([[0.1], [0.3]])
    features = encoder({"x": torch.ones(2, 2), "elapsed_time": seconds, "hidden": torch.full((2, 2), torch.nan)})
    assert features.shape == (2, 5) and torch.isfinite(features).all()
    torch.testing.assert_close(features[:, -1:], seconds)
