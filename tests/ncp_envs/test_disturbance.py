"""Disturbances: nothing at level 0, as much as the level says above, and never a number of the environment's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_match import check_environments_match
from ncp_envs import (
    DISTURBANCES,
    LEVEL_UNITS,
    ActionDelay,
    ActionGainError,
    ActionNoise,
    Fault,
    ObservationDelay,
    SensorBias,
    SensorDropout,
    SensorNoise,
)

from tests.random_env import TIMED, RandomEnv, box

Env = gym.Env[Any, Any]

# Continuous, discrete and Dict; the lander draws random numbers at every step.
IDS = ["ncp/LunarLanderContinuousNoVel-v3", "CartPole-v1", "ncp/PendulumIrregular-v0"]
#: A level of each that disturbs.
LEVELS = dict.fromkeys(DISTURBANCES, 0.2) | {"observation_delay": 2.0, "action_delay": 2.0}
CASES = [(name, env) for name in DISTURBANCES for env in IDS if (name, env) != ("action_gain_error", "CartPole-v1")]


class Spy(gym.Wrapper[Any, Any, Any, Any]):
    """Remembers what the environment was told to do and what it showed."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.actions: list[Any] = []
        self.observations: list[Any] = []

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        self.observations.append(observation)
        return observation, info

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        observation, *outcome = self.env.step(action)
        self.observations.append(observation)
        return (observation, *outcome)


def spied(
    wrapper: Callable[..., Env], level: float, env: str = "ncp/PendulumNoVel-v1", **kwargs: Any
) -> tuple[Env, Spy]:
    spy = Spy(gym.make(env))
    return wrapper(spy, level, **kwargs), spy


def run(env: Env, steps: int, seed: int = 0) -> list[Any]:
    """Observations under random actions, across episodes."""
    env.action_space.seed(seed)
    seen = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(observation)
        if terminated or truncated:
            seen.append(env.reset()[0])
        assert seen[-1] in env.observation_space
    return seen


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return all(same(first[key], second[key]) for key in first)
    return bool(np.array_equal(first, second))


def test_every_disturbance_says_what_its_level_counts() -> None:
    assert list(DISTURBANCES) == list(LEVEL_UNITS)


@pytest.mark.parametrize(("name", "env_id"), CASES)
def test_level_0_is_the_plain_environment(name: str, env_id: str) -> None:
    plain, disturbed = gym.make(env_id), DISTURBANCES[name](gym.make(env_id), 0.0)
    check_environments_match(plain, disturbed, num_steps=150, seed=3)
    assert plain.observation_space == disturbed.observation_space and plain.action_space == disturbed.action_space


@pytest.mark.parametrize(("name", "env_id"), CASES)
def test_a_level_disturbs_by_the_seed_and_is_rebuilt_from_the_spec(name: str, env_id: str) -> None:
    env = DISTURBANCES[name](gym.make(env_id), LEVELS[name])
    seen = run(env, 60)
    assert env.spec is not None
    rebuilt = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert all(map(same, seen, run(rebuilt, 60)))
    assert not all(map(same, seen, run(gym.make(env_id), 60)))
    rebuilt.reset(seed=0)
    check_environments_match(env, rebuilt, num_steps=60, seed=5)


@pytest.mark.parametrize(("name", "env_id"), [case for case in CASES if case[0] != "sticky_action"])
def test_the_environment_beneath_draws_the_same_numbers(name: str, env_id: str) -> None:
    """So runs at several levels compare in pairs."""
    states = []
    for level in (0.0, LEVELS[name]):
        env = DISTURBANCES[name](gym.make(env_id), level)
        env.reset(seed=1)
        for _ in range(5):
            env.step(env.action_space.sample())
        simulator: Any = env
        while hasattr(simulator, "env"):
            simulator = simulator.env
        states.append(simulator.np_random.bit_generator.state)
    assert states[0] == states[1]


def test_stacked_wrappers_of_one_kind_draw_apart() -> None:
    twice = SensorNoise(SensorNoise(gym.make("ncp/PendulumNoVel-v1"), 0.1), 0.1)
    run(twice, 1)
    inner: Any = twice.env
    assert twice.generator.random() != inner.generator.random()


def test_noise_has_the_standard_deviation_asked_for() -> None:
    env, spy = spied(SensorNoise, 0.05, "CartPole-v1")
    error = np.array(run(env, 3000)) - spy.observations
    size = np.array([4.8, 1.0, 0.41887903, 1.0])  # Half ranges; velocities have none.
    np.testing.assert_allclose(error.std(axis=0) / size, 0.05, rtol=0.1)
    np.testing.assert_allclose(error.mean(axis=0) / size, 0, atol=0.005)
    assert abs(np.corrcoef(error[:-1, 0], error[1:, 0])[0, 1]) < 0.1


def test_scale_sets_the_sizes() -> None:
    env, spy = spied(SensorNoise, 0.5, "CartPole-v1", scale=[0.0, 0.2, 0.0, 0.0])
    error = np.array(run(env, 500)) - spy.observations
    assert (error[:, [0, 2, 3]] == 0).all() and error[:, 1].std() == pytest.approx(0.1, rel=0.15)
    by_key = SensorNoise(gym.make("ncp/PendulumIrregular-v0"), 0.5, scale={"observation": 0.0})
    assert all(map(same, run(by_key, 20), run(gym.make("ncp/PendulumIrregular-v0"), 20)))


def test_bias_holds_for_an_episode() -> None:
    env, spy = spied(SensorBias, 0.1, "CartPole-v1", scale=1.0)
    offsets = []
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        offsets.append(observation - spy.observations[-1])
        for _ in range(5):
            observation, *_ = env.step(0)
            np.testing.assert_allclose(observation - spy.observations[-1], offsets[-1], atol=1e-6)
    np.testing.assert_allclose(np.abs(offsets), 0.1, atol=1e-6)
    assert (np.abs(np.sign(offsets).sum(axis=0)) < 20).all()


@pytest.mark.parametrize("fill", ["last", "zero"])
def test_dropout_shows_the_last_reading_or_zero(fill: str) -> None:
    env, spy = spied(SensorDropout, 0.3, fill=fill)
    seen = np.array(run(env, 190))
    true = np.array(spy.observations)
    lost = seen != true
    np.testing.assert_array_equal(seen[0], true[0])
    assert lost.mean() == pytest.approx(0.3, abs=0.06) and not np.array_equal(lost[:, 0], lost[:, 1])
    stands_in = np.vstack([seen[:1], seen[:-1]]) if fill == "last" else np.zeros_like(seen)
    np.testing.assert_array_equal(seen[lost], stands_in[lost])


def test_delay_shows_what_was_and_the_clock_of_now() -> None:
    env, spy = spied(ObservationDelay, 3.0, "ncp/PendulumIrregular-v0")
    seen = run(env, 40)
    for t, observation in enumerate(seen):
        assert same(observation["observation"], spy.observations[max(t - 3, 0)]["observation"])
        assert same(observation["elapsed_time"], spy.observations[t]["elapsed_time"])
    plain, _ = env.reset(seed=9)  # Nothing of the last episode is left.
    assert same(plain, spy.observations[-1])


def test_actions_are_carried_out_late() -> None:
    for env_id, idle in (("ncp/PendulumNoVel-v1", 0.0), ("CartPole-v1", 0)):
        env, spy = spied(ActionDelay, 2.0, env_id)
        env.reset(seed=0)
        env.action_space.seed(0)
        told = [env.action_space.sample() for _ in range(6)]
        for action in told:
            env.step(action)
        assert all(action == idle for action in spy.actions[:2])
        assert all(map(same, spy.actions[2:], told))
    env, spy = spied(ActionDelay, 1.0, "CartPole-v1", idle=1)
    env.reset(seed=0)
    env.step(0)
    assert spy.actions == [1]


def test_action_noise() -> None:
    env, spy = spied(ActionNoise, 0.1)
    env.reset(seed=0)
    for _ in range(199):
        env.step(np.full(1, 0.5, np.float32))
    assert np.std(spy.actions) == pytest.approx(0.1, rel=0.2) and all(a in env.action_space for a in spy.actions)
    env, spy = spied(ActionNoise, 0.4, "Acrobot-v1")
    env.reset(seed=0)
    for _ in range(400):
        env.step(1)
    # Of the actions drawn in place, a third are the same by chance.
    assert np.mean(np.array(spy.actions) != 1) == pytest.approx(0.4 * 2 / 3, abs=0.07)
    assert set(spy.actions) == {0, 1, 2}


def test_gain_error_holds_for_an_episode_and_saturates() -> None:
    env, spy = spied(ActionGainError, 0.25)
    gains = set()
    for seed in range(10):
        env.reset(seed=seed)
        for _ in range(3):
            env.step(np.full(1, 0.4, np.float32))
        assert len({float(action[0]) for action in spy.actions[-3:]}) == 1
        gains.add(round(float(spy.actions[-1][0]) / 0.4, 5))
        env.step(np.full(1, 0.9, np.float32))
        assert spy.actions[-1] in env.action_space
    assert gains == {0.75, 1.25}


@pytest.mark.parametrize("wrapper", [SensorNoise, SensorBias, SensorDropout, ObservationDelay])
def test_images_are_disturbed_and_the_clock_is_not(wrapper: Callable[..., Env]) -> None:
    spy = Spy(RandomEnv(TIMED, box(2)))
    env = wrapper(spy, 1.0 if wrapper is ObservationDelay else 0.3)
    changed = []
    for seen, true in zip(run(env, 30), spy.observations, strict=True):
        assert same(seen["elapsed_time"], true["elapsed_time"]) and seen["image"].dtype == np.uint8
        difference = seen["image"].astype(int) - true["image"]
        changed.append((difference != 0).mean())
        if wrapper is SensorBias:  # Brighter or darker as a whole.
            assert (difference >= 0).all() or (difference <= 0).all()
    if wrapper is SensorDropout:  # As a whole or not at all.
        assert all(share == 0 or share > 0.9 for share in changed)
    assert max(changed) > 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SensorNoise(gym.make("CartPole-v1"), -0.1), "level must be a number from 0 on"),
        (lambda: SensorNoise(gym.make("CartPole-v1"), np.nan), "level must be a number from 0 on"),
        (lambda: SensorDropout(gym.make("CartPole-v1"), 1.5), "level must be a probability"),
        (
            lambda: SensorDropout(gym.make("CartPole-v1"), 0.5, fill="mean"),  # type: ignore[arg-type]
            'fill must be "last" or "zero"',
        ),
        (lambda: SensorNoise(gym.make("FrozenLake-v1"), 0.1), "needs a Box observation"),
        (lambda: SensorBias(gym.make("CartPole-v1"), 0.1, scale=[1, 2]), r"have the shape \(4,\)"),
        (lambda: ObservationDelay(gym.make("CartPole-v1"), 0.5), "must be a whole number"),
        (lambda: ActionDelay(gym.make("CartPole-v1"), 1.5), "must be a whole number"),
        (
            lambda: ActionNoise(gym.make("CartPole-v1"), 1.5),
            "from 0 to 1 for actions in Discrete",
        ),
        (lambda: ActionGainError(gym.make("CartPole-v1"), 0.1), "needs continuous actions"),
        (lambda: ActionDelay(RandomEnv(box(1), spaces.Text(3)), 1), "The idle action of"),
    ],
)
def test_refuses_what_does_not_fit(make: Callable[[], Env], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_fault_begins_at_its_onset() -> None:
    plain, faulty = (gym.make("ncp/PendulumNoVel-v1") for _ in range(2))
    faulty = Fault(faulty, "sensor_bias", 0.3, onset=5)
    for _ in range(2):  # In every episode anew.
        np.testing.assert_array_equal(plain.reset(seed=4)[0], faulty.reset(seed=4)[0])
        for step in range(1, 10):
            action = np.zeros(1, np.float32)
            same = np.array_equal(plain.step(action)[0], faulty.step(action)[0])
            assert same == (step < 5)
    for name, onset, message in (("sticky_action", 5, "disturbance must be one of"), ("sensor_bias", 0, "from 1 on")):
        with pytest.raises(ValueError, match=message):
            Fault(plain, name, 0.3, onset)
