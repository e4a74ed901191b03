"""scripts/teach.py, and a training that begins with what was taught."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import pytest
import torch

from ncp_rl.recording import record_rollouts
from ncp_rl.runs import RunConfig, RunError, load_run, read_config, train
from ncp_rl.teach import Lessons, clone, from_recordings, teach_run
from tests.recording.recordings import trained_pendulum

ROOT = Path(__file__).parents[2]
ENV = "ncp_envs:ncp/PendulumNoVel-v1"


def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *args, "--no-progress-bar"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, venv = trained_pendulum()
    return record_rollouts(model, venv, tmp_path_factory.mktemp("shown") / "a.mcap", n_episodes=4, progress_bar=False)


@pytest.fixture(scope="module")
def taught(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a policy that was taught on the command line."""
    out = tmp_path_factory.mktemp("runs") / "taught"
    quick = ("--lessons.n-epochs", "2", "--final-episodes", "2", "--units", "12")
    done = run("teach.py", "clone", str(recording), "--env", ENV, "--out", str(out), *quick)
    assert done.returncode == 0, done.stderr
    assert "held-out loss" in done.stdout and "over 2 episodes" in done.stdout
    return out


def test_a_run_folder_is_taught(taught: Path) -> None:
    assert "teach/held_out_loss" in (taught / "progress.csv").read_text()
    model, _ = load_run(taught)
    assert model.policy.wiring.units == 12  # type: ignore[union-attr]


def test_training_begins_with_it(taught: Path, tmp_path: Path) -> None:
    still = read_config(taught).hyperparams | dict(n_timesteps=16, n_steps=8, batch_size=8, learning_rate=1e-30)
    train(RunConfig(ENV, still), tmp_path / "on", init=taught, progress_bar=False)
    begun, before = load_run(tmp_path / "on", which="last")[0], load_run(taught)[0]
    for (name, after), parameter in zip(begun.policy.named_parameters(), before.policy.parameters(), strict=True):
        assert torch.allclose(after, parameter, atol=1e-20), name
    few = ("--timesteps", "64", "--n-envs", "1", "--final-episodes", "1")
    done = run("train.py", "--init", str(taught), *few, "--out", str(tmp_path / "further"))
    assert done.returncode == 0, done.stderr
    config = read_config(tmp_path / "further")
    assert config.env == ENV and config.hyperparams["policy_kwargs"]["wiring"]["units"] == 12


def test_another_kind_of_policy_is_refused(taught: Path, tmp_path: Path) -> None:
    config = RunConfig(ENV, dict(n_timesteps=16, n_steps=16, batch_size=16, policy_kwargs=dict(wiring=dict(units=9))))
    with pytest.raises(RunError, match="does not fit the one to be trained"):
        train(config, tmp_path / "on", init=taught, progress_bar=False)


def test_dagger_and_distillation_on_the_command_line(taught: Path, tmp_path: Path) -> None:
    quick = ("--lessons.n-epochs", "1", "--final-episodes", "2", "--n-rounds", "2", "--n-steps", "40", "--n-envs", "4")
    expert = "ncp_envs.lane_keeping.baseline.Instructor"
    drives = ("--env", "ncp_envs:ncp/LaneKeeping-v0", "--privilege", "true_state", "--pushes", "0.5")
    done = run("teach.py", "dagger", expert, "--out", str(tmp_path / "dagger"), *drives, *quick)
    assert done.returncode == 0, done.stderr
    assert "round 1: error" in done.stdout
    done = run("teach.py", "distil", str(taught), "--out", str(tmp_path / "twin"), "--policy", "MlpPolicy", *quick)
    assert done.returncode == 0, done.stderr
    assert "return of the student" in done.stdout


def test_what_was_learned_is_kept_and_mistakes_are_told(recording: Path, tmp_path: Path) -> None:
    config = RunConfig(ENV, dict(n_envs=2, n_steps=16, batch_size=16))
    shown = from_recordings([recording])

    def teach(model, venv):  # type: ignore[no-untyped-def]
        clone(model, shown, Lessons(n_epochs=1))
        raise ValueError("the second lesson failed")

    with pytest.raises(RunError, match="cannot be taught: the second lesson failed"):
        teach_run(config, tmp_path / "run", teach)
    assert (tmp_path / "run" / "last" / "model.zip").exists()
    with pytest.raises(RunError, match="exists and is left as it is"):
        teach_run(config, tmp_path / "run", teach)
    done = run("teach.py", "clone", str(tmp_path / "none.mcap"), "--env", ENV, "--out", str(tmp_path / "other"))
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    done = run("teach.py", "clone", str(recording), "--out", str(tmp_path / "other"))
    assert done.returncode == 2 and "give --env" in done.stderr
    assert np.all([len(d) for d in shown])
