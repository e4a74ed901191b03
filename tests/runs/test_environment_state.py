"""Environments in the middle of their episodes, packed and unpacked."""

from __future__ import annotations

from typing import Any

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.runs import RunConfig, make_envs
from ncp_rl.runs.environment_state import difference_after_step, pack, unpack

ENVS = ["ncp/CartPoleNoVel-v1", "ncp/PendulumIrregular-v0", "ncp/HalfCheetahNoVel-v5", "ncp/LaneKeeping-v0"]
DISTURBED = [{"ncp_envs.RandomDisturbances": dict(observation_delay=[0, 2], sensor_noise=0.1)}]


def flat(stepped: Any) -> list[Any]:
    """Observations, rewards and ends of a step."""
    observations = stepped[0].values() if isinstance(stepped[0], dict) else [stepped[0]]
    return [*map(np.copy, observations), stepped[1], stepped[2]]


def steps(venv: VecEnv, actions: list[Any]) -> list[Any]:
    return [part for action in actions for part in flat(venv.step(action))]


@pytest.mark.parametrize("env_id", ENVS)
def test_they_go_on_where_they_were(env_id: str) -> None:
    settings: dict[str, Any] = dict(env_wrapper=DISTURBED, normalize=True)
    config = RunConfig(env_id, settings if "Irregular" in env_id else settings | dict(frame_stack=2), seed=1)
    venv, other = make_envs(config, 2), make_envs(config, 2)
    venv.reset()
    venv.action_space.seed(0)
    actions = [np.stack([venv.action_space.sample() for _ in range(2)]) for _ in range(70)]
    steps(venv, actions[:30])
    packed = pack(venv)
    assert packed.data is not None, packed.why_not
    first = steps(venv, actions[30:31])
    assert difference_after_step(packed.data, venv) == ""
    assert unpack(packed.data, other) == ""
    for a, b in zip(first + steps(venv, actions[31:]), steps(other, actions[30:]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_packed_says_why() -> None:
    venv = make_envs(RunConfig("ncp/LunarLanderNoVel-v3", {}), 1)
    venv.reset()
    packed = pack(venv)
    assert packed.data is None and "cannot be pickled: TypeError" in packed.why_not
    other = make_envs(RunConfig("ncp/CartPoleNoVel-v1", {}), 1)
    assert "cannot be unpickled: UnpicklingError" in unpack(b"garbage", other)
    other.reset()
