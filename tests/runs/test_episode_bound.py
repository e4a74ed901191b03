"""Tasks that go on without end: whoever waits for an episode's end says so, or cuts it where told to."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tyro
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env

from ncp_rl.audit import Plan, audit_sources, perturb
from ncp_rl.audit.perturb import Trial, roll_out
from ncp_rl.recording import Recording, record_rollouts, replay
from ncp_rl.runs import (
    EpisodeBound,
    RunConfig,
    RunError,
    evaluate,
    evaluation,
    folder,
    load_run,
    make_envs,
    make_model,
    train,
)
from tests.endless import ID, Endless

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = dict(
    n_envs=2, n_timesteps=64, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=dict(wiring=dict(units=8))
)
NAMED = r"not ended after 300 steps.*--max-episode-steps.*max_episode_steps=1000"


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is not 30,000 steps until the word."""
    monkeypatch.setattr(evaluation, "MAX_EPISODE_STEPS", 300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the endless task, its evaluations cut after 40 steps."""
    folder = tmp_path_factory.mktemp("endless") / "run"
    train(RunConfig(ID, SETTINGS, max_episode_steps=40), folder, n_evaluations=2, n_eval_episodes=3, progress_bar=False)
    return folder


def test_training_says_at_the_first_evaluation_that_it_would_never_end(bound: None, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=NAMED):
        train(RunConfig(ID, SETTINGS), tmp_path / "run", n_evaluations=2, n_eval_episodes=2, progress_bar=False)
    assert (tmp_path / "run" / "last" / "model.zip").exists()


def test_evaluation_and_recording_say_so_too(bound: None, tmp_path: Path) -> None:
    config = RunConfig(ID, SETTINGS)
    venv = make_envs(config, 2, training=False)
    model = make_model(config, venv)
    with pytest.raises(RunError, match=NAMED):
        evaluate(model, venv, n_episodes=2)
    with pytest.raises(RunError, match=NAMED):
        record_rollouts(model, venv, tmp_path / "endless.mcap", n_episodes=2, progress_bar=False)


def test_an_end_that_the_monitor_does_not_see_is_none(bound: None) -> None:
    """evaluate_policy waits for Monitor's word, which a limit around it never gives."""
    config = RunConfig(ID, SETTINGS)
    venv = make_vec_env(Endless, n_envs=2, wrapper_class=lambda env: TimeLimit(env, 20))
    with pytest.raises(RunError, match=NAMED):
        evaluate(make_model(config, venv), venv, n_episodes=2)


def test_perturbed_trials_say_so_too(bound: None, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["max_episode_steps"] == 40
    monkeypatch.setattr(folder, "read_config", lambda _: RunConfig(**config | dict(max_episode_steps=None)))
    with pytest.raises(RunError, match=NAMED):
        roll_out(Trial(run, n_episodes=2))


def test_a_longer_limit_of_the_environment_is_no_error(bound: None) -> None:
    venv = make_vec_env(ID, env_kwargs=dict(max_episode_steps=400))
    counted = EpisodeBound(venv)
    for _ in range(399):
        counted.count(np.array([False]))
    counted.count(np.array([True]))
    with pytest.raises(RunError, match="not ended after 400 steps"):
        for _ in range(400):
            counted.count(np.array([False]))


def test_a_run_keeps_the_length_at_which_its_episodes_are_cut(run: Path, tmp_path: Path) -> None:
    assert np.load(run / "evaluations.npz")["ep_lengths"].tolist() == [[40] * 3] * 2
    model, venv = load_run(run, n_envs=2)
    assert evaluate(model, venv, n_episodes=2).lengths == (40, 40)
    path = record_rollouts(model, venv, tmp_path / "run.mcap", n_episodes=2, progress_bar=False)
    assert Recording.open(path).max_episode_steps == 40
    model, venv = load_run(run, n_envs=2, max_episode_steps=25)
    assert evaluate(model, venv, n_episodes=2).lengths == (25, 25)
    # Training goes on as the task does.
    assert make_envs(RunConfig(ID, SETTINGS, max_episode_steps=40), 1).get_attr("spec")[0].max_episode_steps is None
    with pytest.raises(RunError, match="max_episode_steps must be at least 1, got 0"):
        load_run(run, max_episode_steps=0)


def test_a_shorter_limit_comes_before_the_environments_own() -> None:
    venv = make_envs(RunConfig("Pendulum-v1", {}, max_episode_steps=7), 1, training=False)
    model = make_model(RunConfig("Pendulum-v1", dict(n_steps=8, batch_size=8)), venv)
    assert evaluate(model, venv, n_episodes=1).lengths == (7,)


def noisy(env: gym.Env[Any, Any], level: float) -> gym.Env[Any, Any]:
    """Any disturbance."""
    return env


def test_audits_cut_episodes_as_the_run_does_or_as_they_are_told(run: Path, tmp_path: Path) -> None:
    found = perturb({"run": run}, {"nothing": (noisy, (0.0,))}, n_episodes=2)
    assert found.level_zero_is_nominal
    plan = Plan(n_episodes=3, alpha=0.5, max_episode_steps=15, disturbances={"nothing": (noisy, (0.0,))})
    audit = audit_sources([run], tmp_path / "audit", plan)
    assert [len(episode) for episode in audit.subjects[0].episodes] == [15] * 3
    replayed = next(verdict for verdict in audit.verdicts if verdict.check == "replay")
    assert replayed.passed and "the rollout run again" in replayed.sentence


def script(name: str, *arguments: str) -> int:
    """A script's `main`, in this process: what it takes to start one is not the question here."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    status: int = module.main(tyro.cli(module.Command if name == "record" else module.Args, args=arguments))
    return status


def test_the_scripts_take_the_limit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("evaluate", str(run), "--episodes", "2", "--max-episode-steps", "12") == 0
    assert "length 12.0" in capsys.readouterr().out
    recording, limit = str(tmp_path / "run.mcap"), ["--max-episode-steps", "10"]
    assert script("record", "record", str(run), "--out", recording, "--episodes", "2", "--no-progress-bar", *limit) == 0
    assert "2 episodes, 20 steps" in capsys.readouterr().out
    # The recording says where episodes were cut: its replay needs no word.
    assert script("record", "replay", recording, "--run", str(run), "--env") == 0
    assert "the rollout run again" in capsys.readouterr().out
    model, venv = load_run(run, n_envs=2, max_episode_steps=10)
    assert replay(recording, model, venv).passed


def test_train_and_audit_take_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit, quiet = ["--max-episode-steps", "9"], "--no-progress-bar"
    short = ["--units", "8", "--timesteps", "256", "--n-envs", "2", "--eval-episodes", "1", "--final-episodes", "2"]
    assert script("train", "--env", ID, "--out", str(tmp_path / "run"), *short, *limit, quiet) == 0
    assert "length 9.0" in capsys.readouterr().out
    few = ["--episodes", "3", "--alpha", "0.5", "--perturb-episodes", "2", "--disturbances", "sensor_noise", "--faults"]
    audit = ["audit", str(tmp_path / "run"), "--out", str(tmp_path / "audit"), *few]
    assert script(*audit, "--max-episode-steps", "6", quiet, "--fail-on", "replay") == 0
    assert Recording.open(tmp_path / "audit" / "run.mcap").lengths == (6, 6, 6)
