"""Behaviour cloning: what is learned, from what, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from ncp_rl import AutoNCP, NCPPolicy
from ncp_rl.encoder import Standardize
from ncp_rl.learning import LR_SCALE
from ncp_rl.teach import Demonstration, Lessons, clone
from ncp_rl.teach.cloning import Imitation
from tests.random_env import TIMED, RandomEnv, box
from tests.teach.lessons import echoes, student

QUICK = Lessons(n_epochs=2, n_sequences=8, sequence_length=8)


def test_a_memory_is_learned() -> None:
    lessons = Lessons(n_epochs=60, n_sequences=8, sequence_length=10, learning_rate=3e-3)
    without = clone(student(policy="MlpPolicy"), echoes(), lessons)
    # Uniform from -0.8 to 0.8: a policy without memory knows the mean at best.
    assert without.error > 0.9 * 0.8 / np.sqrt(3)
    taught = clone(student(), echoes(), lessons)
    assert taught.error < 0.5 * without.error
    assert taught.held_out_loss[taught.best_epoch] == min(taught.held_out_loss)


@pytest.mark.parametrize("loss", ["huber", "squared", "likelihood"])
def test_sampled_actions_deviate_as_far_as_the_mean_errs(loss: Any) -> None:
    """A likelihood teaches the deviation; other losses set it, in the units of the action."""
    model = student()
    began = model.policy.log_std.clone()
    taught = clone(model, echoes(), Lessons(n_epochs=4, learning_rate=3e-3, loss=loss))
    space = model.action_space
    assert isinstance(space, spaces.Box)
    expected = np.log(taught.error * (space.high - space.low) / 2)
    found = model.policy.log_std.detach().numpy()
    if loss == "likelihood":
        assert not np.allclose(found, expected) and not np.allclose(found, began.detach().numpy())
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert model.policy.log_std.requires_grad


def test_the_deviation_of_gsde_is_left_alone() -> None:
    venv = student().get_env()
    assert venv is not None
    model = RecurrentPPO(NCPPolicy, venv, use_sde=True, device="cpu", policy_kwargs=dict(wiring=AutoNCP(12)))
    began = model.policy.log_std.detach().clone()
    clone(model, echoes(), Lessons(n_epochs=1))
    torch.testing.assert_close(model.policy.log_std.detach(), began)


def test_an_lstm_is_taught_too() -> None:
    taught = clone(student(policy="MlpLstmPolicy"), echoes(), Lessons(n_epochs=8, learning_rate=1e-2))
    assert taught.loss[-1] < 0.9 * taught.loss[0]


def test_states_are_carried_between_stretches() -> None:
    """Walked through in pieces, the policy says what it says when it runs along, episodes in the middle or not."""
    model = student()
    policy = model.policy
    assert isinstance(policy, RecurrentActorCriticPolicy)
    shown = echoes(5, 23)
    imitation = Imitation(model, Lessons(n_sequences=2, sequence_length=7, held_out=0))
    lanes: dict[int, list[float]] = {}
    with torch.no_grad():
        for batch, distribution, _ in imitation._walk(shown, np.arange(5)):
            means = distribution.mode().numpy().reshape(len(batch.lanes), -1)
            for lane, row, real in zip(
                batch.lanes.tolist(), means, batch.real.reshape(len(batch.lanes), -1), strict=True
            ):
                lanes.setdefault(lane, []).extend(row[real].tolist())
    for lane, episodes in ((0, (0, 2, 4)), (1, (1, 3))):
        expected = []
        for index in episodes:
            state: Any = (torch.zeros(1, 1, 12), torch.zeros(1, 1, 12))
            start = np.ones(1, np.bool_)
            for observation in np.asarray(shown[index].observation):
                with torch.no_grad():
                    obs, started = torch.from_numpy(observation[None]), torch.from_numpy(start).float()
                    found, state = policy.get_distribution(obs, state, started)
                expected.append(float(found.mode()))
                start = np.zeros(1, np.bool_)
        assert np.allclose(lanes[lane], expected, atol=1e-6)


@pytest.mark.parametrize(
    "action_space",
    [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-5, 5, (2,), np.float32)],
    ids=str,
)
def test_every_action_space_is_taught(action_space: spaces.Space[Any]) -> None:
    rng = np.random.default_rng(0)
    action_space.seed(0)
    shown = []
    for _ in range(60):
        action = np.stack([np.asarray(action_space.sample())] * 8)
        observation = np.concatenate([action.reshape(8, -1), rng.normal(size=(8, 1))], 1).astype(np.float32)
        shown.append(Demonstration(observation, action))
    model = student(box(shown[0].observation.shape[1]), action_space)  # type: ignore[union-attr]
    taught = clone(model, shown, Lessons(n_epochs=40, n_sequences=4, sequence_length=8, learning_rate=3e-3))
    assert taught.loss[-1] < 0.5 * taught.loss[0]
    assert taught.error < 0.35


def test_images_elapsed_time_and_gsde() -> None:
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(3):
        observed = dict(x=rng.normal(size=(9, 3)).astype(np.float32))
        observed["image"] = rng.integers(0, 255, (9, 36, 36, 3)).astype(np.uint8)
        observed["elapsed_time"] = rng.uniform(0, 1, (9, 1)).astype(np.float32)
        shown.append(Demonstration(observed, np.tanh(observed["x"][:, :1])))
    from ncp_rl import MultiInputNCPPolicy

    model = student(TIMED, policy=MultiInputNCPPolicy)
    first = clone(model, shown, Lessons(n_epochs=8, n_sequences=2, sequence_length=4, feature_pull=0.01))
    assert first.loss[-1] < first.loss[0]


def test_statistics_come_from_the_demonstrations() -> None:
    space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    env_kwargs = dict(observation_space=space, action_space=box(1))
    venv = VecNormalize(make_vec_env(RandomEnv, n_envs=2, env_kwargs=env_kwargs))
    far = [Demonstration(200 + 10 * np.asarray(d.observation), d.action) for d in echoes()]
    model = student(venv=venv)
    clone(model, far, QUICK)
    seen: Any = venv.obs_rms
    assert seen.mean[0] == pytest.approx(200, abs=1)
    model = student(space)
    clone(model, far, QUICK)
    moments = [m for m in model.policy.modules() if isinstance(m, Standardize)]
    assert moments and all(float(m.mean[0]) == pytest.approx(200, abs=1) for m in moments)
    before = copy.deepcopy([m.mean for m in moments])
    clone(model, echoes(), QUICK)  # What has been learned on stays.
    assert all(torch.equal(m.mean, b) for m, b in zip(moments, before, strict=True))


def test_the_critic_and_the_optimizer_are_left_alone() -> None:
    model = student(share_features_extractor=False)
    critic = {k: v.clone() for k, v in model.policy.state_dict().items() if k.startswith(("lstm_critic", "value_net"))}
    clone(model, echoes(), QUICK)
    after = model.policy.state_dict()
    assert critic and all(torch.equal(after[name], value) for name, value in critic.items())
    assert not model.policy.optimizer.state


def test_a_student_is_taught_at_the_steps_of_its_kind() -> None:
    for policy in ("MlpPolicy", NCPPolicy):
        imitation = Imitation(student(policy=policy), QUICK)
        scales = {group.get("lr_scale") for group in imitation.optimizer.param_groups}
        assert scales == ({None} if policy == "MlpPolicy" else {LR_SCALE, 1.0})


def test_teaching_repeats_itself_and_is_logged(tmp_path: Any) -> None:
    runs = []
    for name in "ab":
        model = student()
        model.set_logger(configure(str(tmp_path / name), ["csv"]))
        runs.append((clone(model, echoes(), QUICK), model.policy.state_dict()))
        model.logger.close()
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1].values(), runs[1][1].values(), strict=True))
    lines = (tmp_path / "a" / "progress.csv").read_text().splitlines()
    assert len(lines) == 3 and "teach/held_out_loss" in lines[0]


def test_teaching_stops_where_nothing_gets_better() -> None:
    taught = clone(student(), echoes(6, 4), Lessons(n_epochs=400, patience=2, learning_rate=0.1))
    assert len(taught.loss) < 400
    assert taught.best_epoch == len(taught.loss) - 3


def test_the_encoder_learns_to_tell_what_the_expert_saw() -> None:
    shown = [
        Demonstration(d.observation, np.zeros_like(d.action), np.asarray(d.observation) ** 2 * 3) for d in echoes()
    ]
    model = student(features_extractor_kwargs=dict(standardize=False))
    imitation = Imitation(model, Lessons(n_epochs=40, n_sequences=8, readout=1.0, learning_rate=3e-3))
    imitation.learn(shown)
    assert imitation.readout is not None
    with pytest.raises(ValueError, match="readout needs demonstrations that hold what the expert saw"):
        clone(model, echoes(), Lessons(readout=1.0))


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ([], "must hold at least one step"),
        ([Demonstration(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32))], "at least one step"),
        (echoes(1), "At least two episodes are needed to hold some of them out, got 1"),
        ([Demonstration(np.zeros((4, 2)), np.zeros((4, 1)))] * 2, r"must be \(4, 1\) for 4 actions, got \(4, 2\)"),
        ([Demonstration(np.zeros((4, 1)), np.zeros((4, 2)))] * 2, r"actions must be \(4, 1\).*got \(4, 2\)"),
        ([Demonstration(dict(x=np.zeros((4, 1))), np.zeros((4, 1)))] * 2, r"must observe \[''\], got \['x'\]"),
        (
            [Demonstration(np.zeros((4, 1)), np.array([[0.0], [0], [np.nan], [0]]))] * 2,
            r"action must be finite, but \(0,\) is nan in step 2",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused(shown: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clone(student(), shown, QUICK)


@pytest.mark.parametrize("wrong", [dict(n_epochs=0), dict(learning_rate=0.0), dict(held_out=1.0), dict(loss="l2")])
def test_lessons_that_teach_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Lessons(**wrong)


def test_discrete_actions_have_no_mean() -> None:
    with pytest.raises(ValueError, match="have no mean"):
        clone(student(action_space=spaces.Discrete(2)), [], Lessons(loss="squared"))
