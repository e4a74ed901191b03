"""Hidden velocities: what is dropped is velocity, and nothing else changes."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from ncp_envs import NoVelocity

ID = "ncp_envs:ncp/PendulumNoVel-v1"


# Gymnasium's own Pendulum-v1 has torques from -2 to 2; the checker asks for wrapped environments to be unwrapped.
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version:UserWarning")
def test_keeps_gymnasiums_contract() -> None:
    check_env(gym.make(ID, render_mode="rgb_array"))


def test_drops_the_velocity_alone() -> None:
    masked, full = gym.make(ID), gym.make("Pendulum-v1")
    assert masked.observation_space.shape == (2,) and masked.observation_space.dtype == np.float32
    masked.action_space.seed(0)
    (seen, _), (whole, _) = masked.reset(seed=3), full.reset(seed=3)
    for _ in range(200):
        np.testing.assert_array_equal(seen, whole[:2])
        action = masked.action_space.sample()
        seen, *outcome, _ = masked.step(action)
        before, (whole, *expected, _) = whole, full.step(action)
        assert outcome == expected
        # What is gone is the rate of change of what stays: 0.05 s at that velocity turn the pendulum from old to new.
        assert isinstance(full.unwrapped, PendulumEnv)
        turned = np.angle(complex(*whole[:2]) / complex(*before[:2]))
        assert turned == pytest.approx(whole[2] * full.unwrapped.dt, abs=1e-5)
    assert outcome[2] is True  # 200 steps


def test_is_deterministic_and_rebuilt_from_its_spec() -> None:
    env = gym.make(ID)
    assert env.spec is not None
    check_environments_match(env, gym.make(env.spec), num_steps=300, seed=0)
    assert env.get_wrapper_attr("observation_names") == ("cos_theta", "sin_theta")
    assert gym.make_vec("ncp/PendulumNoVel-v1", num_envs=3).reset(seed=0)[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("kept", "names", "message"),
    [
        ((0, 3), None, "kept must be indices from 0 to 2"),
        ((), None, "kept must be indices"),
        ((0, 1), ("a",), "names must name the 2 entries kept"),
    ],
)
def test_refuses_what_does_not_fit(kept: tuple[int, ...], names: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoVelocity(gym.make("Pendulum-v1"), kept, names)
    with pytest.raises(ValueError, match="Box observation of one dimension"):
        NoVelocity(gym.make("FrozenLake-v1"), (0,))
