"""Envelopes and alarms, by hand on a few steps, and the promised false-alarm rate on hundreds of real episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sb3_contrib import RecurrentPPO
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ncp_rl import AutoNCP, FullyConnected, MultiInputNCPPolicy
from ncp_rl.audit import (
    Alarm,
    Envelope,
    LiveMonitor,
    MonitoredModel,
    audit_monitor,
    calibrate,
    detect,
    episodes_needed,
    false_alarms,
    fit_box,
    fit_conformal,
    fit_mahalanobis,
    watch,
)
from ncp_rl.audit.episode_split import split_episodes
from ncp_rl.circuit import Circuit
from ncp_rl.encoder import ELAPSED_TIME
from ncp_rl.recording import Episode, Recording, record_rollouts
from tests.audit.episodes import Observations, built, episode, pendulum, roll_out, small_model
from tests.random_env import TIMED, RandomEnv, box

# One motor neuron and two command neurons, 0.1 s a step.
CIRCUIT = built(np.zeros((3, 3)), np.ones((1, 3)), n_motor=1, n_command=2)


def held(steps: Sequence[Sequence[float]], index: int = 0) -> Episode:
    """An episode whose command neurons have these potentials (T, 2)."""
    command = np.array(steps, np.float32)
    potentials = np.concatenate([np.zeros((len(command), 1), np.float32), command], axis=1)
    return episode(CIRCUIT, index, 0, dict(potentials=potentials, sensory=np.zeros((len(command), 1), np.float32)))


CLEAN = held([[-1, 0], [1, 2], [0, 1]])


def test_box_by_hand() -> None:
    envelope = fit_box(CIRCUIT, [CLEAN], margin=0.5)
    np.testing.assert_allclose(envelope.centre, [0, 1])
    np.testing.assert_allclose(envelope.scores_of(held([[0, 1], [0.5, 1], [0.5, 3]])), [0, 0.5, 2])
    assert envelope.threshold == pytest.approx(1.5)
    assert watch(envelope, [CLEAN])[0].alarm is None
    (watched,) = watch(envelope, [held([[0, 1], [1.4, 1], [0, -0.6], [3, 3]], index=7)])
    alarm = watched.alarm
    assert alarm is not None and (alarm.episode, alarm.step, alarm.neuron) == (7, 2, "command_1")
    assert alarm.time == pytest.approx(0.3) and alarm.score == pytest.approx(1.6)
    assert str(alarm) == "episode 7, step 2 (0.30 s): command_1 leaves known territory, score 1.6 > 1.5"


def test_mahalanobis_by_hand() -> None:
    envelope = fit_mahalanobis(CIRCUIT, [CLEAN])
    covariance = np.array([[2.0, 1.0], [1.0, 1.0]])
    envelope = replace(envelope, centre=np.zeros(2), precision=np.linalg.inv(covariance))
    one = held([[1, 2], [3, 3]])
    # [1, 2] inverse(covariance) [1, 2]' = 1 - 4 + 8.
    np.testing.assert_allclose(envelope.scores_of(one)[0] ** 2, 5.0)
    # What neuron j adds to what the other alone would give: d^2 - v_other^2 / var_other.
    np.testing.assert_allclose(envelope.outlyingness(one.potentials)[0], [5 - 4 / 1, 5 - 1 / 2])
    assert envelope.blame(one.potentials[0]) == "command_1"


def test_a_neuron_that_never_moved_raises_no_alarm_by_rounding() -> None:
    for fit in (fit_box, fit_mahalanobis):
        envelope = fit(CIRCUIT, [held([[-1, 0.3], [1, 0.3]] * 200)])
        assert watch(envelope, [held([[0, 0.3 + 1e-7]])])[0].alarm is None
        alarm = watch(envelope, [held([[0, 0.4]])])[0].alarm
        assert alarm is not None and alarm.neuron == "command_1"


@pytest.mark.parametrize("fit", [fit_box, fit_mahalanobis])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_an_alarm(fit: Any, value: float) -> None:
    (watched,) = watch(fit(CIRCUIT, [CLEAN]), [held([[0, 1], [0, value]])])
    assert watched.alarm is not None
    assert (watched.alarm.step, watched.alarm.neuron, watched.alarm.score) == (1, "command_1", np.inf)
    with pytest.raises(ValueError, match=r"episode 3 has .* at step 1, neuron 2"):
        fit(CIRCUIT, [held([[0, 1], [0, value]], index=3)])


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.2, 4), (1 / 3, 2), (0.01, 99), (0.9, 1)])
def test_episodes_needed(alpha: float, needed: int) -> None:
    assert episodes_needed(alpha) == needed


def test_conformal_threshold_by_hand() -> None:
    envelope = fit_box(CIRCUIT, [CLEAN])
    calibration = [held([[0, 1], [i / 10, 1]]) for i in range(39)]
    # k = ceil(40 * 0.95) = 38: the second largest maximum.
    assert calibrate(envelope, calibration, alpha=0.05).threshold == pytest.approx(3.7)
    assert calibrate(envelope, calibration[:19], alpha=0.05).threshold == pytest.approx(1.8)
    with pytest.raises(ValueError, match=r"alpha = 0.05 needs at least 19 episodes to calibrate, got 18"):
        calibrate(envelope, calibration[:18], alpha=0.05)


def test_what_is_usual_in_one_phase_is_an_alarm_in_another() -> None:
    # command_0 moves between -1 and 1 for ten steps, then between -0.1 and 0.1.
    moves = [[(-1) ** t * (1.0 if t < 10 else 0.1), 0.0] for t in range(32)]
    odd = [held([*moves[:t], [0.5, 0], *moves[t + 1 :]]) for t in (5, 25)]
    flat = fit_conformal(CIRCUIT, [held(moves)] * 6, alpha=0.5, score="box", profiled=False)
    assert [watched.alarm for watched in watch(flat, odd)] == [None, None]
    profiled = fit_conformal(CIRCUIT, [held(moves)] * 6, alpha=0.5, score="box")
    np.testing.assert_allclose(profiled.profile, [1.0] * 15 + [0.1] * 17, rtol=1e-6)
    early, late = watch(profiled, odd)
    assert early.alarm is None and late.alarm is not None
    assert (late.alarm.step, late.alarm.neuron) == (25, "command_0")
    assert late.alarm.score == pytest.approx(5.0)


def test_steps_that_few_episodes_reach_share_a_profile() -> None:
    # Of three episodes in four 10 steps, of the others 40; what comes late is as usual as the largest of it.
    short = [[(-1.0) ** t, 0.0] for t in range(10)]
    long = [*short, *([(-1.0) ** t * (0.2 if t < 30 else 0.4), 0.0] for t in range(10, 40))]
    envelope = fit_conformal(CIRCUIT, [held(long), *[held(short)] * 3] * 4, alpha=0.5, score="box", seed=1)
    assert len(envelope.profile) == 10
    assert watch(envelope, [held(long)])[0].alarm is None


def test_too_few_episodes_say_how_many() -> None:
    with pytest.raises(ValueError, match=r"needs 19 clean episodes .* 20 in all, got 12"):
        fit_conformal(CIRCUIT, [CLEAN] * 12)
    with pytest.raises(ValueError, match="needs 13 clean episodes, got 12"):
        audit_monitor(CIRCUIT, [CLEAN] * 12, alpha=0.1)
    audit_monitor(CIRCUIT, [CLEAN] * 13, alpha=0.1)
    with pytest.raises(ValueError, match="between 0 and 1, got 0"):
        fit_conformal(CIRCUIT, [CLEAN] * 12, alpha=0)
    with pytest.raises(ValueError, match="At least one episode"):
        fit_box(CIRCUIT, [])
    with pytest.raises(ValueError, match="margin must not be negative"):
        fit_box(CIRCUIT, [CLEAN], margin=-0.1)


def test_false_alarms_by_hand() -> None:
    envelope = calibrate(fit_box(CIRCUIT, [CLEAN]), [held([[i / 10, 1]]) for i in range(9)], alpha=0.1)
    quiet, loud = held([[0.1, 1]]), held([[0.9, 1]])
    assert false_alarms(envelope, [quiet]).p_value == pytest.approx(1.0)
    # A new episode is the largest of ten with probability 1/10; both of two new ones are above nine with 1/55.
    assert false_alarms(envelope, [loud]).p_value == pytest.approx(0.1)
    counted = false_alarms(envelope, [loud, loud])
    assert counted.rate == 1.0 and counted.p_value == pytest.approx(2 / (11 * 10))


def test_detection_by_hand() -> None:
    envelope = fit_box(CIRCUIT, [CLEAN], margin=0.0)
    inside, outside = [0.0, 1.0], [5.0, 1.0]
    episodes = [
        held([inside, inside, inside, outside, inside]),  # Found a step after the onset, failing a step later.
        held([outside, inside, inside, outside, outside]),  # A false alarm before.
        held([inside] * 5),  # Not found.
        held([inside, inside, outside, inside, inside]),  # Found at once.
    ]
    found = detect(envelope, episodes, [2, 2, 2, 2], [4, None, 4, None])
    np.testing.assert_array_equal(found.early, [False, True, False, False])
    np.testing.assert_array_equal(found.delay, [1, np.nan, np.nan, 0])
    np.testing.assert_array_equal(found.lead, [1, np.nan, np.nan, np.nan])
    assert (found.rate, found.in_time) == (0.5, 0.5)
    assert found.to_dict()["median_delay_steps"] == 0.5
    with pytest.raises(ValueError, match="got 4 episodes, 1 onsets"):
        detect(envelope, episodes, [2])


def test_without_command_neurons_all_are_watched() -> None:
    circuit = built(np.zeros((2, 2)), np.ones((1, 2)))
    arrays = dict(potentials=np.eye(2, dtype=np.float32), sensory=np.zeros((2, 1), np.float32))
    envelope = fit_box(circuit, [episode(circuit, 0, 0, arrays)])
    assert envelope.watched.layer == "all" and envelope.watched.names == circuit.wiring.names
    assert "no command neurons" in str(envelope.watched)


@pytest.fixture(scope="module")
def clean() -> tuple[Circuit, list[Episode]]:
    """480 clean episodes of 40 steps."""
    venv = pendulum(n_envs=40, n_steps=40)
    model = small_model(venv)
    return Circuit.from_policy(model.policy), roll_out(model, venv, 480)  # type: ignore[arg-type]


@pytest.mark.parametrize("score", ["box", "mahalanobis"])
def test_false_alarms_are_as_often_as_promised(clean: tuple[Circuit, list[Episode]], score: Any) -> None:
    # A calibration set of its own for every new episode: their alarms are independent, with probability 1/5 exactly.
    circuit, episodes = clean
    fitted = fit_conformal(circuit, episodes[:80], alpha=0.2, score=score)
    groups = [episodes[i : i + 5] for i in range(80, 480, 5)]
    alarms = [watch(calibrate(fitted, group[:4], alpha=0.2), group[4:])[0].alarm for group in groups]
    count = sum(alarm is not None for alarm in alarms)
    assert stats.binomtest(count, len(groups), 0.2).pvalue > 0.05


@pytest.mark.parametrize("score", ["box", "mahalanobis"])
def test_the_rate_over_many_splits_is_alpha(clean: tuple[Circuit, list[Episode]], score: Any) -> None:
    # Of one split the rate spreads by 0.03; of sixty it is known to 0.01 (two and a half standard errors).
    circuit, episodes = clean
    counted = []
    for seed in range(60):
        known, held_out = split_episodes(480, 120, seed)
        envelope = fit_conformal(circuit, [episodes[i] for i in known], alpha=0.05, score=score, seed=1000 + seed)
        counted.append(false_alarms(envelope, [episodes[i] for i in held_out]))
    assert abs(np.mean([one.rate for one in counted]) - 0.05) < 0.01
    assert np.mean([one.p_value < 0.01 for one in counted]) <= 0.05


@pytest.mark.parametrize("score", ["box", "mahalanobis"])
def test_audit_of_real_episodes(clean: tuple[Circuit, list[Episode]], score: Any) -> None:
    circuit, episodes = clean
    faults = dict(bias=(biased(circuit), [20] * 40))
    found = audit_monitor(circuit, episodes, alpha=0.05, score=score, faults=faults, seed=2)
    counted, verdict = found.false_alarms, found.verdict()
    assert counted.n_episodes == 120 and verdict.passed
    assert counted.p_value == stats.betabinom.sf(counted.n_alarms - 1, 120, 9, 172)  # 180 calibrate, k = 172.
    detection = found.detection["bias"]
    assert detection.rate > 0.8 and float(np.nanmedian(detection.delay)) < 10
    assert "held-out clean episodes raise an alarm over the command neurons" in verdict.sentence
    assert all(np.isfinite(value) for value in verdict.figures.values())
    assert len(json.dumps(found.to_dict(), allow_nan=False)) < 10_000


def test_a_broken_promise_fails(clean: tuple[Circuit, list[Episode]]) -> None:
    circuit, episodes = clean
    found = audit_monitor(circuit, episodes, alpha=0.05)
    beside = replace(found, false_alarms=false_alarms(found.conformal, biased(circuit)))
    assert not beside.verdict().passed


def biased(circuit: Circuit) -> list[Episode]:
    """Episodes whose sensors read too much from step 20 on."""
    venv = pendulum(n_envs=40, n_steps=40)
    model = small_model(venv)

    def fault(observation: Observations, step: int) -> Observations:
        return observation + np.float32(3) if step >= 20 else observation

    episodes = roll_out(model, venv, 40, fault, seed=1000)
    np.testing.assert_array_equal(circuit.readout, Circuit.from_policy(model.policy).readout)  # type: ignore[arg-type]
    return episodes


def test_live_alarms_are_those_of_the_recording(clean: tuple[Circuit, list[Episode]]) -> None:
    circuit, episodes = clean
    envelope = fit_conformal(circuit, episodes[:80], alpha=0.5)
    expected = [watched.alarm for watched in watch(envelope, episodes[80:160]) if watched.alarm]
    assert 20 < len(expected) < 60
    potentials = np.stack([recorded.potentials for recorded in episodes[80:160]])  # 40 side by side, twice.
    monitor = LiveMonitor(envelope)
    for half in (potentials[:40], potentials[40:]):
        for step in range(40):
            state = (half[None, :, step], np.zeros_like(half[None, :, step]))
            raised = monitor.observe(state, np.full(40, step == 0))
            assert all(alarm.step == step for alarm in raised)

    def key(alarm: Alarm) -> tuple[int, int, str]:
        return alarm.env_index, alarm.step, alarm.neuron

    assert sorted(map(key, monitor.alarms)) == sorted(map(key, expected))
    assert {alarm.episode for alarm in monitor.alarms} == {0, 1}
    times = {alarm.step: alarm.time for alarm in expected}
    assert all(alarm.time == pytest.approx(times[alarm.step]) for alarm in monitor.alarms)
    with pytest.raises(ValueError, match="watches 40 environments, got the state of 1"):
        monitor.observe((np.zeros((1, 1, circuit.wiring.units)),))


def test_a_watched_model_stands_wherever_a_model_does(clean: tuple[Circuit, list[Episode]]) -> None:
    circuit, episodes = clean
    venv = pendulum(n_envs=2, n_steps=10)
    model = small_model(venv)
    expected = evaluate_policy(model, venv, n_eval_episodes=4)
    raised: list[Alarm] = []
    envelope: Envelope = replace(fit_box(circuit, episodes), threshold=-1.0)  # Everything is an alarm.
    watched = MonitoredModel(model, envelope, raised.append)
    venv.seed(0)
    assert evaluate_policy(watched, venv, n_eval_episodes=4)[1] == expected[1]
    assert raised == watched.monitor.alarms
    assert [(alarm.env_index, alarm.episode, alarm.step) for alarm in raised[:4]] == [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (1, 1, 0),
    ]


def test_live_alarms_are_those_of_a_recorded_file(tmp_path: Path) -> None:
    venv = pendulum(n_envs=3, n_steps=40)
    model = small_model(venv)
    recording = Recording(record_rollouts(model, venv, tmp_path / "clean.mcap", n_episodes=15, progress_bar=False))
    episodes = list(recording)
    envelope = fit_conformal(recording.circuit, episodes, alpha=0.5)
    expected = [watched.alarm for watched in watch(envelope, episodes) if watched.alarm]
    watched = MonitoredModel(model, envelope)
    venv.seed(0)
    evaluate_policy(watched, venv, n_eval_episodes=15)

    def key(alarm: Alarm) -> tuple[int, int, str, float]:
        return alarm.env_index, alarm.step, alarm.neuron, round(alarm.time, 4)

    assert 2 < len(expected) < 13
    assert sorted(map(key, watched.monitor.alarms)) == sorted(map(key, expected))


def test_elapsed_times_are_seen() -> None:
    venv = make_vec_env(lambda: RandomEnv(TIMED, box(1)), n_envs=2, seed=0)
    model = RecurrentPPO(MultiInputNCPPolicy, venv, policy_kwargs=dict(wiring=AutoNCP(12)))
    circuit = Circuit.from_policy(model.policy)  # type: ignore[arg-type]
    envelope = replace(small_envelope(circuit), threshold=-1.0)
    watched, observation = MonitoredModel(model, envelope), venv.reset()
    assert isinstance(observation, dict)
    watched.predict(observation)
    seconds = [alarm.time for alarm in watched.monitor.alarms]
    np.testing.assert_allclose(seconds, observation[ELAPSED_TIME].ravel(), rtol=1e-6)


def small_envelope(circuit: Circuit) -> Envelope:
    potentials = np.random.default_rng(0).normal(size=(5, circuit.wiring.units)).astype(np.float32)
    sensory = np.zeros((5, circuit.wiring.n_sensory), np.float32)
    return fit_box(circuit, [episode(circuit, 0, 0, dict(potentials=potentials, sensory=sensory))])


def test_a_model_without_memory_cannot_be_watched() -> None:
    venv = pendulum(n_envs=1, n_steps=10)
    circuit = Circuit.from_policy(small_model(venv, FullyConnected(4)).policy)  # type: ignore[arg-type]
    watched = MonitoredModel(PPO("MlpPolicy", venv), small_envelope(circuit))
    with pytest.raises(TypeError, match="PPO has no recurrent state"):
        watched.predict(np.asarray(venv.reset()))
