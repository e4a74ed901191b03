"""Run folders: damage is named, and an interrupted training leaves what it learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from ncp_rl.runs import RunConfig, RunError, load_run, train

SMALL = dict(n_steps=16, batch_size=16, n_timesteps=64, normalize=True, policy_kwargs=dict(wiring=dict(units=8)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(RunConfig("CartPole-v1", SMALL), folder, n_eval_episodes=1, progress_bar=False)
    return folder


@pytest.mark.parametrize("part", ["best/model.zip", "best/vecnormalize.pkl", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "gone"])
def test_damaged_runs_are_named(run: Path, tmp_path: Path, part: str, damage: str) -> None:
    for source in (path for path in run.rglob("*") if path.is_file()):
        target = tmp_path / source.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    victim = tmp_path / part
    whole = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"\x00garbage" * 99)
    with pytest.raises(RunError, match=part.rpartition("/")[2]):
        load_run(tmp_path)


def test_an_interrupted_training_keeps_what_it_learned(tmp_path: Path) -> None:
    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            raise KeyboardInterrupt

    config = RunConfig("CartPole-v1", SMALL)
    with pytest.raises(RunError, match="interrupted; the model so far is in"):
        train(config, tmp_path / "run", progress_bar=False, callback=Interrupt())
    load_run(tmp_path / "run", which="last")
