"""The configuration of a run: hyperparameters of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ncp_rl.runs import RunError, read_hyperparams


def test_hyperparams_are_read_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "hyperparams.yml"
    path.write_text('A-v0:\n  normalize: "dict(norm_obs=True, clip_obs=5.0)"\n  learning_rate: lin_3e-4\n')
    assert read_hyperparams(path, "my_module:A-v0") == {
        "normalize": {"norm_obs": True, "clip_obs": 5.0},
        "learning_rate": "lin_3e-4",
    }
    assert read_hyperparams(path, "B-v0") == {}
    path.write_text("A-v0:\n  normalize: \"dict(norm_obs=__import__('os').getcwd())\"\n")
    with pytest.raises(RunError, match="must be a dict"):
        read_hyperparams(path, "A-v0")
    path.write_text("- A-v0")
    with pytest.raises(RunError, match="must map environment ids"):
        read_hyperparams(path, "A-v0")
