"""scripts/record.py, from the training of a policy to the verdict on its recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tyro

from ncp_rl.runs import RunConfig, train
from scripts.record import Command, main
from tests.recording.recordings import PENDULUM


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """As on the command line, in this process: to import torch takes seconds."""
    command: Any = tyro.cli(Command, args=list(map(str, arguments)))
    assert main(command) == code
    said = capsys.readouterr()
    return said.out + said.err


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("script") / "run"
    hyperparams = dict(n_envs=2, n_timesteps=64, n_steps=32, batch_size=32, normalize=True)
    train(RunConfig(PENDULUM, hyperparams), folder, n_evaluations=1, n_eval_episodes=1, progress_bar=False)
    return folder


def test_from_key_to_verdict(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, out = tmp_path / "key.pem", tmp_path / "out.mcap"
    run(capsys, "keygen", key)
    said = run(capsys, "record", run_folder, "--out", out, "--episodes", 3, "--sign", key, "--no-progress-bar")
    assert "3 episodes, 600 steps" in said
    assert "signature valid" in run(capsys, "verify", out, "--public-key", tmp_path / "key.pub.pem")
    assert "the rollout run again" in run(capsys, "replay", out, "--run", run_folder, "--env")
    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(data)
    assert "damaged" in run(capsys, "verify", out, "--json", code=1)
    assert "error: Name --parquet" in run(capsys, "export", out, code=2)
