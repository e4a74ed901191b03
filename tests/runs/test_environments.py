"""Environments of a run: what is normalised, and which policy fits."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from ncp_rl import CnnNCPPolicy, NCPPolicy
from ncp_rl.runs import RunConfig, RunError, make_envs, make_model
from tests.random_env import TIMED, RandomEnv, box


def test_a_grid_of_floats_is_a_vector() -> None:
    """As highway_env's racetrack-v0 observes: no image, though it has the shape of one."""
    space = spaces.Box(-np.inf, np.inf, (2, 6, 6), np.float32)
    gym.register("Grid-v0", "tests.random_env:RandomEnv", kwargs=dict(observation_space=space, action_space=box(1)))
    config = RunConfig("Grid-v0", dict(normalize=True, n_steps=8, batch_size=8))
    venv = make_envs(config, 1)
    del gym.registry["Grid-v0"]
    model = make_model(config, venv)
    assert isinstance(venv, VecNormalize) and venv.norm_obs
    assert isinstance(model.policy, NCPPolicy) and not isinstance(model.policy, CnnNCPPolicy)
    assert model.policy.wiring.n_sensory == 8 * 2 * 6 * 6
    model.learn(8)


@pytest.mark.parametrize(
    ("space", "keys"),
    [(TIMED, ["x"]), (TIMED["image"], None), (spaces.Discrete(3), None)],
    ids=["dict", "image", "discrete"],
)
def test_normalises_vectors_alone(space: spaces.Space[Any], keys: list[str] | None) -> None:
    gym.register("Any-v0", "tests.random_env:RandomEnv", kwargs=dict(observation_space=space, action_space=box(1)))
    venv = make_envs(RunConfig("Any-v0", dict(normalize=True)), 2)
    del gym.registry["Any-v0"]
    assert isinstance(venv, VecNormalize)
    assert venv.norm_obs == bool(keys) and venv.norm_obs_keys == keys


def test_names_must_fit_the_observation() -> None:
    gym.register("Misnamed-v0", lambda **kwargs: Misnamed(box(2), box(1), **kwargs))
    config = RunConfig("Misnamed-v0", {})
    venv = make_envs(config, 1)
    del gym.registry["Misnamed-v0"]
    with pytest.raises(RunError, match="observation_names must be texts, or for a Dict observation a mapping"):
        make_model(config, venv)


class Misnamed(RandomEnv):
    observation_names = {"x": ("a", "b")}  # noqa: RUF012
