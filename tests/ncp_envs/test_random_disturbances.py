"""Disturbances to train under: a level for each episode, and never a number of the environment's own."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_match import check_environments_match
from ncp_envs import DISTURBANCES, LEVEL_UNITS, Fault, RandomDisturbances, SensorNoise, read_levels
from ncp_envs.random_disturbances import Levels
from stable_baselines3.common.env_checker import check_env

PENDULUM = "ncp/PendulumNoVel-v1"
#: A range of each that a pendulum can have.
RANGES: dict[str, Levels] = {name: [0, 2] if unit == "steps" else [0.1, 0.4] for name, unit in LEVEL_UNITS.items()}


def steps(env: gym.Env[Any, Any], n_episodes: int, seed: int = 0) -> list[Any]:
    """Observations under random actions."""
    env.action_space.seed(seed)
    seen = []
    for episode in range(n_episodes):
        seen.append(env.reset(seed=seed if episode == 0 else None)[0])
        seen += [env.step(env.action_space.sample())[0] for _ in range(8)]
    return seen


@pytest.mark.parametrize("name", DISTURBANCES)
def test_levels_are_drawn_for_each_episode_within_their_range(name: str) -> None:
    env = RandomDisturbances(gym.make(PENDULUM), **{name: RANGES[name]})
    assert env.observation_space == env.unwrapped.observation_space
    assert env.action_space == env.unwrapped.action_space
    low, high = RANGES[name]  # type: ignore[misc]
    env.reset(seed=0)
    drawn = []
    for _ in range(40):
        drawn.append(env.drawn[name])
        observation = env.step(env.action_space.sample())[0]
        assert observation in env.observation_space
        env.reset()
    assert low <= min(drawn) < low + 0.1 * (high - low) and high - 0.1 * (high - low) < max(drawn) <= high
    assert set(drawn) == {0, 1, 2} if LEVEL_UNITS[name] == "steps" else len(set(drawn)) == 40


def test_a_delay_of_the_episode_is_the_one_drawn() -> None:
    plain, late = gym.make(PENDULUM), RandomDisturbances(gym.make(PENDULUM), observation_delay=[0, 2])
    found = set()
    for seed in range(12):
        true, seen = steps(plain, 1, seed), steps(late, 1, seed)
        delay = int(late.drawn["observation_delay"])
        assert all(map(np.array_equal, seen[delay:], true[: len(true) - delay]))
        found.add(delay)
    assert found == {0, 1, 2}


def test_the_seed_says_all_and_the_order_of_names_nothing() -> None:
    ranges = {name: levels for name, levels in RANGES.items() if name != "sticky_action"}
    envs = [
        RandomDisturbances(gym.make(PENDULUM), **dict(names)) for names in (ranges.items(), reversed(ranges.items()))
    ]
    first, second = (steps(env, 4, seed=5) for env in envs)
    assert all(map(np.array_equal, first, second)) and envs[0].drawn == envs[1].drawn
    assert not all(map(np.array_equal, first, steps(envs[0], 4, seed=6)))


def test_the_environment_beneath_draws_the_same_numbers() -> None:
    ranges = {name: levels for name, levels in RANGES.items() if name != "sticky_action"}
    states = []
    for env in (gym.make(PENDULUM), RandomDisturbances(gym.make(PENDULUM), **ranges)):
        steps(env, 5, seed=3)
        beneath: Any = env.unwrapped
        states.append(beneath.env.unwrapped.np_random.bit_generator.state)
    assert states[0] == states[1]


def test_no_disturbance_and_level_0_are_the_plain_environment() -> None:
    zero = RandomDisturbances(gym.make(PENDULUM), **dict.fromkeys(DISTURBANCES, 0))
    for env in (zero, RandomDisturbances(gym.make(PENDULUM))):
        check_environments_match(gym.make(PENDULUM), env, num_steps=60, seed=3)


def test_a_fixed_level_is_that_disturbance() -> None:
    disturbed = steps(RandomDisturbances(gym.make(PENDULUM), sensor_noise=0.2), 3)
    assert all(map(np.array_equal, disturbed, steps(SensorNoise(gym.make(PENDULUM), 0.2), 3)))


def test_it_is_an_environment_and_is_rebuilt_from_its_spec() -> None:
    env = RandomDisturbances(gym.make(PENDULUM), **RANGES)
    check_env(env)
    for made in (env, Fault(gym.make(PENDULUM), "sensor_bias", 0.3, 4)):
        assert made.spec is not None
        rebuilt = gym.make(EnvSpec.from_json(made.spec.to_json()))
        assert all(map(np.array_equal, steps(made, 2, seed=4), steps(rebuilt, 2, seed=4)))


def test_levels_as_a_command_line_has_them() -> None:
    read = read_levels(["observation_delay=0..2", "sensor_noise=0.05", "sensor_bias=.1...2", "action_noise=1e-2..5e-1"])
    assert read == dict(observation_delay=[0, 2], sensor_noise=0.05, sensor_bias=[0.1, 0.2], action_noise=[0.01, 0.5])
    assert isinstance(read["observation_delay"][0], int)  # type: ignore[index]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["fog=1"], r"no disturbance 'fog'.*sensor_noise \(standard deviation.*observation_delay \(steps\)"),
        (["sensor_noise"], r"NAME=LEVEL or NAME=LOW\.\.HIGH, got 'sensor_noise'.*observation_delay \(steps\)"),
        (["sensor_noise=much"], "NAME=LEVEL"),
        (["sensor_noise=1e"], "must be a number, got '1e'"),
        (
            ["sensor_noise=0.2..0.1"],
            r"sensor_noise must be a level from 0 on, or \[lowest, highest\], got \[0.2, 0.1\]",
        ),
        (["sensor_noise=-0.1"], "sensor_noise must be a level from 0 on"),
        (["sensor_noise=0..1e999"], "sensor_noise must be a level from 0 on"),
        (["observation_delay=0..1.5"], "observation_delay counts steps and takes whole numbers"),
        (["sensor_noise=0.1", "sensor_noise=0.2"], "sensor_noise is set twice"),
    ],
)
def test_refuses_levels_that_are_none(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_levels(settings)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (dict(fog=1), "no disturbance 'fog'"),
        (dict(sensor_noise="0.1"), "sensor_noise must be a level from 0 on"),
        (dict(sensor_noise=[0.1]), "sensor_noise must be a level from 0 on"),
        (dict(sensor_noise=True), "sensor_noise must be a level from 0 on"),
        (
            dict(sensor_dropout=[0.5, 1.5]),
            "cannot have a level of 1.5 here: level must be a probability",
        ),
        (dict(sticky_action=[0, 1]), "sticky_action cannot have a level of 1 here"),
    ],
)
def test_refuses_what_does_not_fit(levels: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomDisturbances(gym.make(PENDULUM), **levels)
