"""scripts/record.py, from the training of a policy to the verdict on its recording."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ncp_rl.runs import RunConfig, train
from tests.recording.recordings import PENDULUM

SCRIPT = Path(__file__).parents[2] / "scripts" / "record.py"


def run(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("script") / "run"
    hyperparams = dict(n_envs=2, n_timesteps=64, n_steps=32, batch_size=32, normalize=True)
    train(RunConfig(PENDULUM, hyperparams), folder, n_evaluations=1, n_eval_episodes=1, progress_bar=False)
    return folder


def test_from_key_to_verdict(run_folder: Path, tmp_path: Path) -> None:
    key, out = tmp_path / "key.pem", tmp_path / "out.mcap"
    run("keygen", key)
    said = run("record", run_folder, "--out", out, "--episodes", 3, "--sign", key, "--no-progress-bar")
    assert "3 episodes, 600 steps" in said
    assert "signature valid" in run("verify", out, "--public-key", tmp_path / "key.pub.pem")
    assert "the rollout run again" in run("replay", out, "--run", run_folder, "--env")
    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(data)
    assert "damaged" in run("verify", out, "--json", code=1)
    assert "error: Name --parquet" in run("export", out, code=1)
