"""Demonstrations: where they come from, and how they are walked through."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from ncp_rl.recording import Recording, record_rollouts, write_minari
from ncp_rl.teach import Demonstration, demonstrate, from_minari, from_recordings
from ncp_rl.teach.demonstrations import sequences
from tests.random_env import RandomEnv, box
from tests.recording.recordings import random_model, trained_pendulum
from tests.teach.lessons import Proportional


def numbered(*lengths: int) -> list[Demonstration]:
    """Episodes whose observation says which episode and step it is."""
    return [
        Demonstration(np.stack([np.full(n, i), np.arange(n)], 1).astype(np.float32), np.full((n, 1), i, np.float32))
        for i, n in enumerate(lengths)
    ]


def test_every_step_is_walked_through_once_in_order() -> None:
    lengths = (5, 1, 12, 7, 3)
    seen: dict[int, list[tuple[int, int]]] = {}
    for batch in sequences(numbered(*lengths), 2, 4, np.array([3, 0, 4, 2, 1])):
        shape = len(batch.lanes), 4
        steps = batch.observation.reshape(*shape, 2).astype(int)
        starts, real = batch.starts.reshape(shape), batch.real.reshape(shape)
        for row, lane in enumerate(batch.lanes.tolist()):
            # An episode starts where its step 0 is, and nowhere else.
            assert (starts[row][real[row]] == (steps[row, real[row], 1] == 0)).all()
            seen.setdefault(lane, []).extend(map(tuple, steps[row][real[row]].tolist()))
        assert (batch.action[:, 0] == batch.observation[:, 0]).all()
    walked = [step for lane in seen.values() for step in lane]
    assert sorted(walked) == [(i, t) for i, n in enumerate(lengths) for t in range(n)]
    for lane in seen.values():
        assert lane == sorted(lane, key=lambda step: ([3, 0, 4, 2, 1].index(step[0]), step[1]))


def test_recordings_are_demonstrations(tmp_path: Path) -> None:
    model, venv = trained_pendulum()
    path = record_rollouts(model, venv, tmp_path / "a.mcap", n_episodes=2)
    found = from_recordings([path])
    for demonstration, episode in zip(found, Recording.open(path), strict=True):
        assert np.array_equal(np.asarray(demonstration.observation), episode.observation)
        assert np.array_equal(demonstration.action, episode.action)


def test_actions_of_recordings_have_their_space(tmp_path: Path) -> None:
    observed = spaces.Dict(x=box(2), y=spaces.Discrete(3))
    model, venv = random_model(observed, spaces.MultiDiscrete([2, 3]))
    path = record_rollouts(model, venv, tmp_path / "a.mcap", n_episodes=3)
    for demonstration in from_recordings([path]):
        assert isinstance(demonstration.observation, dict)
        assert demonstration.observation["x"].shape == (len(demonstration), 2)
        assert demonstration.observation["y"].shape == (len(demonstration),)
        assert demonstration.action.dtype == np.int64 and demonstration.action.shape == (len(demonstration), 2)


def test_minari_datasets_are_demonstrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    model, venv = trained_pendulum()
    recording = Recording.open(record_rollouts(model, venv, tmp_path / "a.mcap", n_episodes=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari's, on what a dataset should say of itself.
        write_minari(recording, "pendulum/test-v0")
    for demonstration, episode in zip(from_minari("pendulum/test-v0"), recording, strict=True):
        assert np.array_equal(np.asarray(demonstration.observation), episode.observation)
        assert np.array_equal(demonstration.action, episode.action)


def random_envs(n_envs: int = 4, **kwargs: Any) -> Any:
    env_kwargs = dict(observation_space=box(2), action_space=box(1)) | kwargs
    return make_vec_env(RandomEnv, n_envs=n_envs, seed=0, env_kwargs=env_kwargs)


def noted(venv: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows by the actions of each step."""
    taken: list[Any] = []
    step = venv.step

    def note(actions: Any) -> Any:
        taken.append(actions.copy())
        return step(actions)

    monkeypatch.setattr(venv, "step", note)
    return taken


class Constant(Proportional):
    """A driver that always does the same."""

    def __init__(self, action: float) -> None:
        self.action = action

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        return np.full((len(observation), 1), self.action, np.float32), None


def test_the_student_drives_and_the_expert_is_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    venv = random_envs()
    taken = noted(venv, monkeypatch)
    found = demonstrate(Proportional(), venv, 200, student=Constant(0.9), expert_share=0.25, seed=3)
    assert sum(map(len, found)) == 4 * 200
    assert all(len(d) <= 6 for d in found)  # The longest episode of the environment.
    for demonstration in found:
        assert np.allclose(demonstration.action, 0.5 * np.asarray(demonstration.observation)[:, :1])
    assert np.mean(np.array(taken) == np.float32(0.9)) == pytest.approx(0.75, abs=0.06)


def test_every_second_environment_is_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    venv = random_envs()
    taken = noted(venv, monkeypatch)
    found = demonstrate(Constant(0.0), venv, 300, pushes=0.5)
    pushed = np.array(taken)[..., 0]
    assert (pushed[:, ::2] == 0).all()
    share = np.mean(pushed[:, 1::2] != 0)
    assert 0.1 < share < 0.35 and 0.3 < np.abs(pushed).max() <= 0.5
    assert all((demonstration.action == 0).all() for demonstration in found)  # What is shown is not the push.
    discrete = random_envs(action_space=spaces.Discrete(2))
    with pytest.raises(ValueError, match="pushes need actions in a bounded Box"):
        demonstrate(Constant(0.0), discrete, 5, pushes=0.5)


def test_experts_see_what_the_environment_gives() -> None:
    venv = VecNormalize(random_envs(observation_space=spaces.Box(50, 60, (2,), np.float32)))
    found = demonstrate(Constant(0.0), venv, 10)
    assert min(np.asarray(d.observation).min() for d in found) >= 50
    moments: Any = venv.obs_rms
    assert venv.training and moments.count < 1  # Statistics stood still meanwhile.
    found = demonstrate(Constant(0.0), venv, 10, privilege=lambda venv: np.arange(4.0)[:, None])
    assert {float(row[0]) for d in found for row in np.asarray(d.privileged)} == {0.0, 1.0, 2.0, 3.0}


def test_actions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(4, 1\) for Box"):
        demonstrate(_Gives(np.zeros(3)), random_envs(), 5)
    with pytest.raises(ValueError, match=r"that of environment 2 at \(0,\) is nan"):
        demonstrate(_Gives(np.array([[0.0], [0.0], [np.nan], [0.0]])), random_envs(), 5)


class _Gives(Proportional):
    def __init__(self, action: Any) -> None:
        self.action = action

    def predict(self, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        return self.action, None
