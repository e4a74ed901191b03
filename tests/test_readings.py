"""One bad reading: no state and no action is ever computed from it, and whoever runs the policy hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from ncp_envs import IrregularTime
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from ncp_rl import AutoNCP, CnnNCPPolicy, MultiInputNCPPolicy, NCPPolicy
from ncp_rl.audit import Audit, MonitoredModel, Plan, audit_recording, fit_box, observation_moves, watch, write_report
from ncp_rl.readings import BadInputError
from ncp_rl.recording import Recording, RecordingError, record_rollouts, replay, verify
from ncp_rl.runs import RunConfig, RunError, evaluate, make_envs, make_model, train
from tests.random_env import TIMED, RandomEnv, box

MIXED = spaces.Dict(
    x=spaces.Box(-1, 1, (2,), np.float64),
    level=spaces.Discrete(3),
    image=spaces.Box(0, 255, (36, 36, 3), np.uint8),
    elapsed_time=spaces.Box(0, 1, (1,), np.float32),
)


def make_model_of(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None, **kwargs: Any
) -> Any:
    venv = make_vec_env(lambda: RandomEnv(observation_space, action_space or box(2)), n_envs=3, seed=0)
    policy: type[NCPPolicy] = MultiInputNCPPolicy if isinstance(observation_space, spaces.Dict) else NCPPolicy
    policy_kwargs = dict(wiring=AutoNCP(12)) | kwargs.pop("policy_kwargs", {})
    return RecurrentPPO(policy, venv, n_steps=8, batch_size=8, seed=0, policy_kwargs=policy_kwargs, **kwargs)


def observations(space: spaces.Space[Any], n: int = 3) -> Any:
    """A batch of `n`."""
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if not isinstance(space, spaces.Dict):
        return np.stack(samples)
    return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}


def spoiled(observation: Any, key: str | None, at: tuple[int, ...], value: float) -> Any:
    copy = {k: v.copy() for k, v in observation.items()} if isinstance(observation, dict) else observation.copy()
    (copy if key is None else copy[key])[at] = value
    return copy


# Space, key, index in the batch, value, and what the error must say.
BAD: list[tuple[spaces.Space[Any], str | None, tuple[int, ...], float, str]] = [
    (box(3), None, (1, 2), np.nan, r"'obs_2' \(index 2\) of environment 1 is nan; obs_2 must be a finite number"),
    (box(2, 2), None, (2, 0, 1), -np.inf, r"'obs_1' \(index \(0, 1\)\) of environment 2 is -inf"),
    (MIXED, "x", (0, 1), 1e300, r"'x_1' \(index 1 of key 'x'\) of environment 0 is 1e\+300"),
    (
        MIXED,
        "elapsed_time",
        (1, 0),
        -0.5,
        r"'elapsed_time' .* of environment 1 is -0.5; .* finite seconds, not negative",
    ),
    (MIXED, "elapsed_time", (1, 0), np.nan, r"'elapsed_time' .* of environment 1 is nan"),
    (MIXED, "level", (2,), 3, r"'level' .* of environment 2 is 3; level must be a whole number from 0 to 2"),
    (spaces.MultiDiscrete([2, 3]), None, (0, 1), -1, r"of environment 0 is -1; .* from 0 to 2"),
]


@pytest.mark.parametrize(("space", "key", "at", "value", "message"), BAD)
def test_an_error_names_the_reading_and_the_environment(
    space: spaces.Space[Any], key: str | None, at: tuple[int, ...], value: float, message: str
) -> None:
    model = make_model_of(space)
    good = observations(space)
    _, state = model.predict(good)
    with pytest.raises(BadInputError, match=message):
        model.predict(spoiled(good, key, at, value), state)


@pytest.mark.parametrize(("space", "key", "at", "value", "message"), BAD)
@pytest.mark.parametrize("starts", [None, np.ones(3), np.array([True, False, True])])
def test_hold_keeps_state_and_action_of_that_environment_and_lets_the_others_go_on(
    space: spaces.Space[Any], key: str | None, at: tuple[int, ...], value: float, message: str, starts: Any
) -> None:
    model = make_model_of(space)
    good = observations(space)
    before, state = model.predict(good, deterministic=True)
    expected, expected_state = model.predict(good, state, starts, deterministic=True)
    model.policy.on_bad_input = "hold"
    action, new_state = model.predict(spoiled(good, key, at, value), state, starts, deterministic=True)
    env, others = at[0], np.arange(3) != at[0]
    if starts is None or not starts[env]:
        np.testing.assert_array_equal(new_state[0][:, env], state[0][:, env])
        np.testing.assert_array_equal(action[env], before[env])
    else:
        assert not new_state[0][:, env].any()
    np.testing.assert_array_equal(new_state[0][:, others], expected_state[0][:, others])
    np.testing.assert_array_equal(action[others], expected[others])
    # Clean readings go on from there, as they would have without the bad one.
    if starts is None:
        _, back = model.predict(good, new_state, deterministic=True)
        _, direct = model.predict(good, state, deterministic=True)
        np.testing.assert_array_equal(back[0][:, env], direct[0][:, env])


def test_a_single_observation_and_a_first_one_are_held_too() -> None:
    model = make_model_of(box(3), policy_kwargs=dict(on_bad_input="hold", action_names=["left", "right"]))
    bad = np.array([0.0, np.nan, 0.0], np.float32)
    action, state = model.predict(bad, deterministic=True)
    assert action.shape == (2,) and not state[0].any()
    good, after = model.predict(np.zeros(3, np.float32), state, deterministic=True)
    held, kept = model.predict(bad, after, deterministic=True)
    np.testing.assert_array_equal(held, good)
    np.testing.assert_array_equal(kept[0], after[0])


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.MultiBinary(2)])
def test_discrete_actions_and_sampled_ones_are_held_or_drawn_around_the_held_mean(
    action_space: spaces.Space[Any],
) -> None:
    model = make_model_of(box(3), action_space, policy_kwargs=dict(on_bad_input="hold"))
    good = observations(box(3))
    before, state = model.predict(good, deterministic=True)
    held, _ = model.predict(spoiled(good, None, (1, 0), np.nan), state, deterministic=True)
    np.testing.assert_array_equal(held[1], before[1])
    sampled, _ = model.predict(spoiled(good, None, (1, 0), np.nan), state)
    assert all(action_space.contains(action) for action in sampled)


@pytest.mark.parametrize("critic", ["ltc", "lstm"])
def test_hold_changes_nothing_where_no_reading_is_bad(critic: str) -> None:
    policy = make_model_of(box(3), policy_kwargs=dict(critic=critic)).policy
    states = RNNStates(*2 * ((torch.randn(1, 2, 12), torch.randn(1, 2, 12)),))
    sequences = torch.randn(8, 3), torch.randn(8, 2), states, torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
    with torch.no_grad():
        expected = policy.evaluate_actions(*sequences)
        policy.on_bad_input = "hold"
        found = policy.evaluate_actions(*sequences)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde_and_squashed_actions_are_held(squash_output: bool) -> None:
    kwargs = dict(on_bad_input="hold", squash_output=squash_output)
    model = make_model_of(box(3), use_sde=True, policy_kwargs=kwargs)
    good = observations(box(3))
    before, state = model.predict(good, deterministic=True)
    for deterministic in (True, False):
        held, kept = model.predict(spoiled(good, None, (1, 0), np.nan), state, deterministic=deterministic)
        np.testing.assert_array_equal(kept[0][:, 1], state[0][:, 1])
        assert np.isfinite(held).all() and (np.array_equal(held[1], before[1]) or not deterministic)


def test_the_setting_is_kept_and_checked(tmp_path: Path) -> None:
    model = make_model_of(box(3), policy_kwargs=dict(on_bad_input="hold"))
    model.save(tmp_path / "model")
    loaded: Any = RecurrentPPO.load(tmp_path / "model", device="cpu")
    assert loaded.policy.on_bad_input == "hold"
    loaded.policy.save(str(tmp_path / "policy.pt"))
    assert NCPPolicy.load(str(tmp_path / "policy.pt"), device="cpu").on_bad_input == "hold"
    with pytest.raises(ValueError, match='must be "raise" or "hold", got \'hodl\''):
        loaded.policy.on_bad_input = "hodl"
    with pytest.raises(ValueError, match='must be "raise" or "hold"'):
        make_model_of(box(3), policy_kwargs=dict(on_bad_input="ignore"))


def test_what_the_actor_does_not_see_is_not_looked_at_when_it_acts() -> None:
    space = spaces.Dict(seen=box(3), hidden=box(2))
    model = make_model_of(space, policy_kwargs=dict(privileged_keys=("hidden",)))
    good = observations(space)
    expected, _ = model.predict(good, deterministic=True)
    found, _ = model.predict(spoiled(good, "hidden", (0, 0), np.nan), deterministic=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("ode_unfolds", [1, 6])
def test_a_state_that_is_not_finite_is_named(ode_unfolds: int) -> None:
    model = make_model_of(box(3), policy_kwargs=dict(ode_unfolds=ode_unfolds))
    good = observations(box(3))
    _, state = model.predict(good)
    poisoned = state[0].copy()
    poisoned[0, 1] = np.nan
    with pytest.raises(ValueError, match=r"state of environment 1 is not finite: motor_0 is nan. .* set episode_start"):
        model.predict(good, (poisoned, state[1]))
    # Where an episode starts, the state is of no account.
    _, fresh = model.predict(good, (poisoned, state[1]), np.array([0, 1, 0]))
    assert np.isfinite(fresh[0]).all()


class Failing(gym.Wrapper[Any, Any, Any, Any]):
    """One environment's sensor gives `value` at some steps of its episodes."""

    def __init__(self, env: gym.Env[Any, Any], steps: tuple[int, ...] = (3, 4), value: float = np.nan) -> None:
        super().__init__(env)
        self.steps, self.value = steps, value

    def reset(self, **kwargs: Any) -> Any:
        self.t = 0
        observation, info = self.env.reset(**kwargs)
        return self._seen(observation), info

    def step(self, action: Any) -> Any:
        assert np.isfinite(action).all()
        self.t += 1
        observation, *rest = self.env.step(action)
        return self._seen(observation), *rest

    def _seen(self, observation: Any) -> Any:
        if self.t not in self.steps:
            return observation
        key = None if not isinstance(observation, dict) else next(iter(observation))
        return spoiled(observation, key, (0,), self.value)


def pendulums(n_envs: int = 3, *, failing: int | None = 1, timed: bool = False, **kwargs: Any) -> VecEnv:
    """Of which one has a failing sensor."""

    def make(i: int) -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = gym.make("ncp_envs:ncp/PendulumNoVel-v1", max_episode_steps=30)
        env = IrregularTime(env, (0.05, 0.15)) if timed else env
        return Failing(env, **kwargs) if i == failing else env

    return DummyVecEnv([lambda i=i: make(i) for i in range(n_envs)])  # type: ignore[misc]


def pendulum_model(venv: VecEnv, **kwargs: Any) -> Any:
    policy = MultiInputNCPPolicy if isinstance(venv.observation_space, spaces.Dict) else NCPPolicy
    names: Any = ["cos_theta", "sin_theta"] if policy is NCPPolicy else dict(observation=["cos_theta", "sin_theta"])
    policy_kwargs = dict(wiring=AutoNCP(12), elapsed_time=0.05, features_extractor_kwargs=dict(names=names))
    return RecurrentPPO(
        policy, venv, n_steps=16, batch_size=16, n_epochs=1, seed=0, policy_kwargs=policy_kwargs, **kwargs
    )


@pytest.mark.parametrize("hold", [False, True])
def test_training_stops_with_an_error_that_names_the_environment(hold: bool) -> None:
    model = pendulum_model(pendulums())
    model.policy.on_bad_input = "hold" if hold else "raise"
    with pytest.raises(BadInputError, match=r"'cos_theta' \(index 0\) of environment 1 is nan.*correct the env"):
        model.learn(48)
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_training_does_not_learn_from_a_bad_observation_that_ends_an_episode() -> None:
    model = pendulum_model(pendulums(1, failing=0, steps=(30,)))
    with pytest.raises(BadInputError, match=r"'cos_theta' \(index 0\) of environment 0 is nan"):
        model.learn(48)


def test_a_bad_reading_is_named_beneath_normalisation(tmp_path: Path) -> None:
    model = pendulum_model(VecNormalize(pendulums()))
    with pytest.raises(BadInputError, match=r"All environments give .* VecCheckNan"):
        model.learn(48)
    gym.register("Failing-v0", lambda **_: _failing_second(), max_episode_steps=30, disable_env_checker=True)
    config = RunConfig("Failing-v0", dict(normalize=True, n_envs=2, n_timesteps=64, n_steps=16, batch_size=16))
    _COUNT.clear()
    with pytest.raises(
        RunError, match=r"Training stopped. The observation 'obs_0' \(index 0\) of environment 1 is nan"
    ):
        train(config, tmp_path / "run", progress_bar=False)
    del gym.registry["Failing-v0"]


_COUNT: list[int] = []


def _failing_second() -> gym.Env[Any, Any]:
    """The second environment that is made fails."""
    _COUNT.append(0)
    env: gym.Env[Any, Any] = RandomEnv(box(2), box(1))
    return Failing(env, steps=(1, 2, 3, 4)) if len(_COUNT) == 2 else env


@pytest.mark.parametrize("critic", ["ltc", "lstm", "mlp", "shared"])
@pytest.mark.parametrize("timed", [False, True])
def test_a_recording_holds_what_came_and_replays(tmp_path: Path, timed: bool, critic: str) -> None:
    venv = VecNormalize(pendulums(timed=timed, steps=(0, 4, 5)), training=False, norm_obs=not timed)
    model = pendulum_model(venv)
    model.policy_kwargs["critic"] = critic
    model._setup_model()
    model.policy.on_bad_input = "hold"
    path = record_rollouts(model, venv, tmp_path / "held.mcap", n_episodes=3, deterministic=False, progress_bar=False)
    assert verify(path).passed
    model.policy.on_bad_input = "raise"
    found = replay(path, model, venv)
    assert found.passed and all(comparison.bitwise for comparison in found.comparisons), str(found)
    assert model.policy.on_bad_input == "raise"
    clean, failing, _ = sorted(Recording.open(path), key=lambda episode: episode.env_index)
    assert not clean.held.any() and np.flatnonzero(failing.held).tolist() == [0, 4, 5]
    assert np.isnan(failing.observation[failing.held]).any(axis=1).all()
    assert np.isfinite(failing.potentials).all() and np.isfinite(failing.value).all()
    assert not failing.potentials[0].any()
    np.testing.assert_array_equal(failing.potentials[5], failing.potentials[3])
    np.testing.assert_array_equal(failing.action_mean[5], failing.action_mean[3])


def test_without_hold_a_recording_ends_before_the_bad_reading(tmp_path: Path) -> None:
    venv = pendulums()
    with pytest.raises(RecordingError, match=r"'cos_theta' \(index 0\) of environment 1 is nan.*, and can be read"):
        record_rollouts(pendulum_model(venv), venv, tmp_path / "cut.mcap", n_episodes=3, progress_bar=False)
    assert verify(tmp_path / "cut.mcap").passed
    assert Recording.open(tmp_path / "cut.mcap").lengths == (3, 3, 3)


def test_the_monitor_alarms_live_and_over_recordings(tmp_path: Path) -> None:
    clean = pendulums(failing=None)
    model = pendulum_model(clean)
    recording = Recording.open(record_rollouts(model, clean, tmp_path / "clean.mcap", n_episodes=6, progress_bar=False))
    envelope = fit_box(recording.circuit, list(recording), margin=10.0)
    venv = pendulums()
    monitored = MonitoredModel(model, envelope)
    with pytest.raises(BadInputError):
        evaluate_policy(monitored, venv, n_eval_episodes=3, warn=False)
    model.policy.on_bad_input = "hold"
    monitored = MonitoredModel(model, envelope)
    evaluate_policy(monitored, venv, n_eval_episodes=6, warn=False)
    alarms = monitored.monitor.alarms
    assert [(alarm.episode, alarm.env_index, alarm.step) for alarm in alarms] == [(0, 1, 3), (1, 1, 3)]
    assert "'cos_theta' (index 0) of environment 1 is nan; neurons and action are held" in str(alarms[0])
    assert np.isfinite(monitored.monitor.scores).all()
    held = Recording.open(record_rollouts(model, venv, tmp_path / "held.mcap", n_episodes=3, progress_bar=False))
    found = {episode.env_index: one.alarm for episode, one in zip(held, watch(envelope, list(held)), strict=True)}
    assert found[0] is None and found[2] is None and found[1] is not None and found[1].step == 3
    assert "is nan; neurons and action are held" in str(found[1])


def test_time_that_is_a_bad_reading_does_not_stop_the_monitors_clock(tmp_path: Path) -> None:
    clean = pendulums(failing=None, timed=True)
    model = pendulum_model(clean)
    recording = Recording.open(record_rollouts(model, clean, tmp_path / "clean.mcap", n_episodes=3, progress_bar=False))
    model.policy.on_bad_input = "hold"
    monitored = MonitoredModel(model, fit_box(recording.circuit, list(recording), margin=10.0))
    observation: Any = clean.reset()
    _, state = monitored.predict(observation, None, np.ones(3))
    observation["elapsed_time"][1] = np.nan
    monitored.predict(observation, state, np.zeros(3))
    assert np.isfinite(monitored.monitor._time).all()
    assert [alarm.env_index for alarm in monitored.monitor.alarms] == [1]


def test_an_audit_of_a_recording_with_held_steps(tmp_path: Path) -> None:
    venv = pendulums()
    model = pendulum_model(venv)
    model.policy.on_bad_input = "hold"
    path = record_rollouts(model, venv, tmp_path / "held.mcap", n_episodes=6, progress_bar=False)
    subject = audit_recording(Recording.open(path), "held", Plan(alpha=0.5))
    assert not subject.skipped
    # Bounds, ranges and rules are those of what was seen.
    moves, _ = observation_moves(subject.recording.circuit, subject.episodes, 0.01)
    ranges = [
        np.nanmax(column) - np.nanmin(column) for column in np.concatenate([e.observation for e in subject.episodes]).T
    ]
    np.testing.assert_allclose(np.abs(moves).max(axis=1), 0.01 * np.array(ranges), rtol=1e-4)
    assert all(sensitivity.bound.min() > 0 for sensitivity in subject.answers["sensitivity"].bounds)
    assert subject.answers["certificate"].certificate.min_elapsed_time == np.float32(0.05)
    write_report(Audit((subject,)), tmp_path / "report.html")


def test_runs_evaluate_says_what_was_bad() -> None:
    config = RunConfig("Pendulum-v1", dict(n_steps=8, batch_size=8))
    venv = make_envs(config, 2, training=False, wrapper_class=Failing)
    model = make_model(config, venv)
    with pytest.raises(RunError, match="environment 0 is nan"):
        evaluate(model, venv, n_episodes=2)
    model.policy.on_bad_input = "hold"  # type: ignore[assignment]
    assert len(evaluate(model, venv, n_episodes=2).returns) == 2


def test_images_of_floats_are_looked_at_too() -> None:
    space = spaces.Box(0, 1, (3, 36, 36), np.float32)
    venv = make_vec_env(lambda: RandomEnv(space, box(1)), n_envs=2, seed=0)
    kwargs = dict(wiring=AutoNCP(12), normalize_images=False)
    model: Any = RecurrentPPO(CnnNCPPolicy, venv, n_steps=8, policy_kwargs=kwargs)
    good = observations(space, 2)
    with pytest.raises(BadInputError, match=r"index \(2, 0, 35\)\) of environment 1 is nan"):
        model.predict(spoiled(good, None, (1, 2, 0, 35), np.nan))


def test_bad_readings_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = make_model_of(TIMED, device="cuda")
    good = observations(TIMED)
    _, state = model.predict(good)
    for key, at, value in (("x", (1, 0), np.nan), ("elapsed_time", (1, 0), -1.0)):
        model.policy.on_bad_input = "raise"
        bad = spoiled(good, key, at, value)
        with pytest.raises(BadInputError, match="of environment 1"):
            model.predict(bad, state)
        model.policy.on_bad_input = "hold"
        _, new_state = model.predict(bad, state)
        np.testing.assert_array_equal(new_state[0][:, 1], state[0][:, 1])
