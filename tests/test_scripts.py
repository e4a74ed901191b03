"""The commands as a user runs them: each in its own process, on real environments and files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import pytest
import torch

from ncp_rl import NCPPolicy
from ncp_rl.runs import evaluate, load_run

ROOT = Path(__file__).parents[1]
ENV = "ncp/PendulumNoVel-v1"


def script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def train(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    short = ["--timesteps", "1024", "--eval-episodes", "1", "--final-episodes", "2", "--no-progress-bar"]
    return script("train", *short, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = train(folder.parent, "--env", ENV, "--out", str(folder), "--n-envs", "2", "--seed", "1")
    assert result.returncode == 0, result.stderr
    assert f"run folder: {folder}" in result.stdout and "over 2 episodes" in result.stdout
    return folder


def test_a_run_folder_holds_all_that_later_steps_need(run: Path) -> None:
    names = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    assert names >= {
        "config.json",
        "best/model.zip",
        "best/vecnormalize.pkl",
        "last/model.zip",
        "last/vecnormalize.pkl",
    }
    assert names >= {"evaluations.npz", "progress.csv"} and any(name.startswith("events.out") for name in names)
    assert any(name.startswith("checkpoints/model_") for name in names)
    config = json.loads((run / "config.json").read_text())
    assert config["env"] == ENV and config["seed"] == 1 and config["hyperparams"]["n_envs"] == 2
    assert config["versions"]["torch"] == torch.__version__
    model, venv = load_run(run)
    assert model.policy.sensory_names[0] == "cos_theta_0"  # type: ignore[index]
    assert model.policy.action_names == ("torque",)
    assert evaluate(model, venv, n_episodes=2) == evaluate(model, venv, n_episodes=2)


def test_evaluate_prints_the_same_figures_for_the_same_seed(run: Path, tmp_path: Path) -> None:
    arguments = [str(run), "--episodes", "3", "--json", "--seed", "5"]
    first, second = (script("evaluate", *arguments, cwd=tmp_path) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    figures = json.loads(first.stdout)
    assert figures["lengths"] == [200, 200, 200]
    assert figures["mean_return"] == pytest.approx(np.mean(figures["returns"]))
    sampled = script("evaluate", *arguments, "--no-deterministic", "--which", "last", cwd=tmp_path)
    assert json.loads(sampled.stdout)["returns"] != figures["returns"]


def test_evaluate_films_every_episode(run: Path, tmp_path: Path) -> None:
    result = script("evaluate", str(run), "--episodes", "2", "--video", "videos", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    films = sorted((tmp_path / "videos").glob("*.mp4"))
    assert len(films) == 2 and all(b"ftyp" in film.read_bytes()[:16] for film in films)


def test_your_own_environment_as_its_page_has_it(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your-environment.md").read_text()
    (tmp_path / "my_module.py").write_text(page.partition('```python title="my_module.py"\n')[2].partition("```")[0])
    result = train(
        tmp_path, "--env", "my_module:MyEnv-v0", "--recipe", "FullyConnected", "--units", "8", "--out", "run"
    )
    assert result.returncode == 0, result.stderr


def test_an_environment_that_no_one_here_wrote(tmp_path: Path) -> None:
    """Dict observations of float64 and shape (4, 1)."""
    result = train(tmp_path, "--env", "highway_env:lane-keeping-v0", "--out", "run")
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["env"] == "highway_env:lane-keeping-v0"


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "ncp/NoSuchThing-v0"], "ncp/NoSuchThing-v0"),
        (["--env", "no_such_module:X-v0"], "no_such_module"),
        (["--env", "CartPole-v1", "--units", "4"], "n_motor must be from 1 to units - 3 = 1, got 2"),
        (["--units", "1"], "units must be at least 4, got 1"),
        (["--sparsity", "2"], "sparsity must be from 0.0 to 0.9, got 2.0"),
        (["--hyperparams", "missing.yml"], "missing.yml"),
    ],
)
def test_train_refuses_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in one_line(train(tmp_path, *arguments, "--out", "run"))
    assert not (tmp_path / "run").exists()


def test_train_leaves_an_existing_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("precious")
    assert "exists and is left as it is" in one_line(train(tmp_path, "--out", "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_evaluate_refuses_in_one_line(run: Path, tmp_path: Path) -> None:
    assert "is no run folder" in one_line(script("evaluate", str(tmp_path), cwd=tmp_path))
    (tmp_path / "videos").mkdir()
    result = script("evaluate", str(run), "--video", "videos", cwd=tmp_path)
    assert "exists and is left as it is" in one_line(result)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help(name: str, tmp_path: Path) -> None:
    result = script(name, "--help", cwd=tmp_path)
    assert result.returncode == 0 and "--seed" in result.stdout


def test_published_circuits_and_baselines_train_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "settings.yml").write_text(
        "CartPole-v1:\n  n_steps: 32\n  batch_size: 32\n  policy_kwargs:\n    wiring: {recipe: NCP, inter_neurons: 12, "
        "command_neurons: 6, sensory_fanout: 6, inter_fanout: 4, recurrent_command_synapses: 4, motor_fanin: 6}\n"
    )
    common = ["--env", "CartPole-v1", "--hyperparams", "settings.yml", "--n-envs", "2"]
    for name, *policy in (["circuit"], ["baseline", "--policy", "MlpLstmPolicy"]):
        result = train(tmp_path, *common, *policy, "--out", name)
        assert result.returncode == 0, result.stderr
    model, _ = load_run(tmp_path / "circuit")
    assert isinstance(model.policy, NCPPolicy) and model.policy.wiring.units == 12 + 6 + 2
    assert not isinstance(load_run(tmp_path / "baseline")[0].policy, NCPPolicy)
