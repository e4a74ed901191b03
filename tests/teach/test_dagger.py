"""DAgger and distillation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from ncp_rl.teach import Fidelity, Lessons, dagger, distil, paired_episodes
from tests.random_env import RandomEnv, box
from tests.teach.lessons import Proportional, student

QUICK = Lessons(n_epochs=3, n_sequences=8, sequence_length=8, learning_rate=3e-3)


class Reach(RandomEnv):
    """The reward is how near the action comes to half of the first observed number."""

    def __init__(self) -> None:
        super().__init__(box(2), box(1))

    def reset(self, **kwargs: Any) -> Any:
        self.seen, info = super().reset(**kwargs)
        return self.seen, info

    def step(self, action: Any) -> Any:
        reward = -float(abs(action[0] - 0.5 * self.seen[0]))
        self.seen, _, *rest = super().step(action)
        return self.seen, reward, *rest


def reach(n_envs: int = 4) -> Any:
    return make_vec_env(Reach, n_envs=n_envs, seed=0)


def mean_return(model: Any, venv: Any) -> float:
    return paired_episodes(model, venv, 40, seed=900).summary()["mean_return"]


def test_the_student_comes_near_the_expert() -> None:
    venv = reach()
    model = student(venv=venv)
    before = mean_return(model, venv)
    rounds = dagger(model, venv, Proportional(), QUICK, n_rounds=3, n_steps=150, judging_venv=reach(), seed=1)
    after = mean_return(model, venv)
    assert [r.expert_share for r in rounds] == pytest.approx([1.0, 0.3, 0.09])
    assert paired_episodes(Proportional(), venv, 40, seed=900, as_expert=True).summary()["max_return"] == 0.0
    assert after > 0.4 * before  # Both are below zero, the best possible.
    best = max(rounds, key=lambda r: np.mean(r.returns))
    assert paired_episodes(model, reach(), 20, seed=1 + 500_000).returns == pytest.approx(best.returns)


def test_rounds_repeat_themselves() -> None:
    weights = []
    for _ in range(2):
        model = student(venv=reach())
        dagger(model, reach(), Proportional(), QUICK, n_rounds=2, n_steps=20, seed=5)
        weights.append(model.policy.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_episodes_begin_alike_whoever_drives_and_however_many_run() -> None:
    model = student(venv=reach())
    first = paired_episodes(model, reach(4), 10, seed=7)
    for venv in (reach(3), VecNormalize(reach(4), norm_obs=False)):
        found = paired_episodes(model, venv, 10, seed=7)
        assert found.returns == pytest.approx(first.returns) and found.lengths == first.lengths
    assert len(set(first.lengths)) > 2 and max(first.lengths) <= 6


def test_a_black_box_gets_a_twin() -> None:
    venv = VecNormalize(reach(), norm_reward=False)
    teacher = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, learning_rate=3e-3, device="cpu", seed=0)
    teacher.learn(4_000)
    model = student(venv=reach())
    fidelity = distil(model, teacher, reach(), QUICK, n_rounds=2, n_steps=100, n_episodes=12)
    # The teacher saw through its own statistics, which stood still.
    venv.training = False
    assert fidelity.teacher_returns == pytest.approx(
        paired_episodes(teacher, venv, 12, seed=1_000_000).returns, abs=1e-4
    )
    assert fidelity.error < 0.5
    summary = fidelity.summary()
    assert summary["difference_low"] <= summary["difference"] <= summary["difference_high"]
    assert f"over {len(fidelity.student_returns)} pairs of episodes" in str(fidelity)


def test_fidelity_counts_pairs() -> None:
    summary = Fidelity(0.1, (1.0, 2.0, 3.0), (2.0, 3.0, 4.0)).summary()
    assert (summary["difference"], summary["difference_low"], summary["difference_high"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("wrong", [dict(n_rounds=0), dict(n_steps=0), dict(decay=1.5)])
def test_rounds_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dagger(student(venv=reach()), reach(), Proportional(), QUICK, **wrong)
