"""Irregular time: spans are drawn, kept to, told, and worth knowing."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from ncp_envs import IrregularTime
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from torch import Tensor

from ncp_rl import LTC, FullyConnected
from ncp_rl.runs import RunConfig, make_envs, make_model

ID = "ncp_envs:ncp/PendulumIrregular-v0"
LANE = "ncp_envs:ncp/LaneKeepingIrregular-v0"


class Falling(gym.Env[Any, Any]):
    """Falls at 1 m/s and integrates any span: the time is what it has fallen."""

    observation_space = spaces.Dict(height=spaces.Box(-np.inf, np.inf, (1,)))
    action_space = spaces.Discrete(2)
    interval = 0.1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.height = 0.0
        return {"height": np.zeros(1, np.float32)}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.height -= self.interval
        return {"height": np.array([self.height], np.float32)}, self.interval, False, False, {}


@pytest.mark.parametrize("env_id", [ID, LANE])
def test_keeps_gymnasiums_and_sb3s_contracts(env_id: str) -> None:
    env = gym.make(env_id).unwrapped
    check_env(env)
    check_env_for_sb3(env)


def test_repeats_the_step_as_long_as_it_says() -> None:
    """Against the plain environment, stepped by hand."""
    irregular = IrregularTime(gym.make("Pendulum-v1"), interval=(0.1, 0.25))
    plain = gym.make("Pendulum-v1")
    irregular.action_space.seed(0)
    (seen, _), (expected, _) = irregular.reset(seed=4), plain.reset(seed=4)
    assert seen["elapsed_time"] == np.float32(0.05)
    steps: list[int] = []
    truncated = False
    while not truncated:
        np.testing.assert_array_equal(seen["observation"], expected)
        action = irregular.action_space.sample()
        seen, total, _, truncated, _ = irregular.step(action)
        steps.append(round(float(seen["elapsed_time"][0]) / 0.05))
        rewards = 0.0
        for _ in range(steps[-1]):
            expected, reward, *_ = plain.step(action)
            rewards += float(reward)
        assert total == rewards and seen in irregular.observation_space
    assert sum(steps) == 200  # The end of the episode cuts the last span.
    assert set(steps[:-1]) == {2, 3, 4, 5}


def test_draws_follow_the_seed_alone() -> None:
    env = gym.make(ID)
    assert env.spec is not None
    check_environments_match(env, gym.make(env.spec), num_steps=200, seed=0)
    first, other = (spans(env, seed) for seed in (1, 2))
    assert first == spans(env, 1) != other


def spans(env: gym.Env[Any, Any], seed: int) -> list[float]:
    env.reset(seed=seed)
    return [float(env.step(env.action_space.sample())[0]["elapsed_time"][0]) for _ in range(30)]


def test_an_environment_with_an_interval_integrates_it() -> None:
    env = IrregularTime(Falling(), interval=(0.02, 0.3))
    observation, _ = env.reset(seed=0)
    assert observation["elapsed_time"] == np.float32(0.02) and list(observation) == ["height", "elapsed_time"]
    times, heights = [0.0], [0.0]
    for _ in range(200):
        observation, reward, *_ = env.step(0)
        assert observation in env.observation_space and observation["elapsed_time"][0] == np.float32(reward)
        times.append(float(observation["elapsed_time"][0]))
        heights.append(float(observation["height"][0]))
    np.testing.assert_allclose(np.cumsum(times), -np.array(heights), rtol=1e-5)
    assert len(set(times)) == 201 and min(times[1:]) < 0.03 and max(times) > 0.29


def test_the_car_drives_for_the_time_that_is_told() -> None:
    """Speed is constant: the distance over the time is the same at every observation, whatever the time."""
    env = gym.make(LANE)
    env.reset(seed=0)
    times, distances = [], [0.0]
    for _ in range(40):
        observation, _, crashed, _, info = env.step(np.zeros(1, np.float32))
        if crashed:
            break
        times.append(float(observation["elapsed_time"][0]))
        distances.append(info["distance"])
    speeds = np.diff(distances) / times
    assert len(times) > 5 and np.ptp(times) > 0.05
    np.testing.assert_allclose(speeds, speeds.mean(), rtol=0.02)


def test_the_time_reaches_the_cell_as_time_and_names_reach_the_senses() -> None:
    config = RunConfig(ID, dict(n_steps=16, batch_size=16, policy_kwargs=dict(wiring=dict(units=8))))
    model = make_model(config, make_envs(config, 1))
    policy = model.policy
    assert policy.sensory_names == tuple(f"{name}_{r}" for name in ("cos_theta", "sin_theta") for r in range(8))
    potentials = []
    for seconds in (0.005, 0.25):
        observation = {"observation": np.array([[0.6, 0.8]]), "elapsed_time": np.array([[seconds]])}
        _, state = policy.predict(observation, deterministic=True)
        assert state is not None
        potentials.append(torch.from_numpy(state[0]))
    short, long = potentials
    assert (long.norm() > 1.5 * short.norm()).all()  # From zero, more time carries the potentials further.
    model.learn(32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(interval=(0.2, 0.1)), "0 < shortest <= longest"),
        (dict(interval=(0.06, 0.09)), "must hold a multiple of the step's 0.05 s"),
        (dict(interval=(0.1, 0.2), seconds=-1.0), "must be positive seconds"),
    ],
)
def test_refuses_what_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IrregularTime(gym.make("Pendulum-v1"), **arguments)


def test_refuses_steps_without_duration_and_a_second_clock() -> None:
    with pytest.raises(ValueError, match=r"must be positive seconds, got None; give it as seconds="):
        IrregularTime(gym.make("MountainCar-v0"), (0.1, 0.2))
    with pytest.raises(ValueError, match="must not have a key 'elapsed_time'"):
        IrregularTime(gym.make(ID), (0.1, 0.2))


@pytest.fixture(scope="module")
def rollouts() -> tuple[Tensor, Tensor, Tensor]:
    """Observations (T, N, 2), seconds (T, N) and hidden velocities (T, N, 1) under random torques."""
    env = gym.make(ID, interval=(0.05, 0.25))
    env.action_space.seed(0)
    pendulum: Any = env
    while pendulum.unwrapped is not pendulum or hasattr(pendulum, "env"):
        pendulum = pendulum.env
    episodes = []
    for seed in range(320):
        observation, _ = env.reset(seed=seed)
        for _ in range(35):
            episodes.append((*observation["observation"], *observation["elapsed_time"], pendulum.state[1] / 8))
            observation, *_ = env.step(env.action_space.sample())
    table = torch.tensor(np.array(episodes, np.float32)).reshape(320, 35, 4).swapaxes(0, 1)
    return table[..., :2], table[..., 2], table[..., 3:]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_knowing_the_time_predicts_better(rollouts: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
    """The velocity is an angle by a time: an LTC that is told the time finds it, one that is told a constant less so.

    Mean squared errors on episodes not trained on, true time against constant, seeds 0 to 4: 0.017 to 0.020 against
    0.044 to 0.064, 2.6 to 3.3 times as much.
    """
    true, constant = (prediction_error(*rollouts, seed=seed, timed=timed) for timed in (True, False))
    assert true < 0.03 and constant > 1.7 * true


def prediction_error(inputs: Tensor, seconds: Tensor, target: Tensor, *, seed: int, timed: bool) -> float:
    torch.manual_seed(seed)
    ltc = LTC(FullyConnected(units=16).build(n_sensory=2, n_motor=1), elapsed_time=0.15)
    optimizer = torch.optim.Adam(ltc.parameters(), lr=0.02)
    elapsed = seconds if timed else torch.full_like(seconds, float(seconds.mean()))

    def error(episodes: Tensor | slice) -> Tensor:
        potentials, _ = ltc(inputs[:, episodes], elapsed_time=elapsed[:, episodes])
        # Motion shows after a few observations.
        return torch.nn.functional.mse_loss(ltc.motor_map(potentials)[5:], target[5:, episodes])

    for _ in range(300):
        optimizer.zero_grad()
        error(torch.randperm(256)[:64]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(error(slice(256, None)))
