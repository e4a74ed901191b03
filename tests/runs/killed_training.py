"""Trainings that are killed: by themselves at a step, or from outside at a moment.

python -m tests.runs.killed_training FOLDER NAME...            # each until its step, into FOLDER/NAME
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from ncp_rl.runs import RunConfig, train

SETTINGS: dict[str, Any] = dict(
    n_envs=2,
    n_timesteps=512,
    n_steps=16,
    batch_size=16,
    n_epochs=2,
    learning_rate="lin_1e-3",
    normalize=True,
    callback="tests.runs.killed_training.Counting",
)
CIRCUIT = dict(wiring=dict(units=8))
HOW: dict[str, Any] = dict(n_evaluations=4, n_eval_episodes=2, n_checkpoints=8, progress_bar=False)


class Case(NamedTuple):
    """What is trained, and the step at which it is killed; checkpoints are at 64, 128, ..."""

    env: str
    settings: dict[str, Any]
    step: int

    def config(self) -> RunConfig:
        return RunConfig(self.env, SETTINGS | self.settings, seed=3)


DISTURBED = [{"ncp_envs.RandomDisturbances": dict(observation_delay=[0, 2], sensor_noise=0.1)}]
CASES = {
    "right after a checkpoint": Case("ncp/PendulumNoVel-v1", dict(policy_kwargs=CIRCUIT), 322),
    "between two": Case("ncp/PendulumNoVel-v1", dict(policy_kwargs=CIRCUIT), 300),
    "before the first": Case("ncp/PendulumNoVel-v1", dict(policy_kwargs=CIRCUIT), 40),
    "gSDE": Case("ncp/PendulumNoVel-v1", dict(policy_kwargs=CIRCUIT, use_sde=True), 300),
    "MuJoCo": Case("ncp/HopperNoVel-v5", dict(policy_kwargs=CIRCUIT, frame_stack=2), 300),
    "disturbed": Case("ncp/LaneKeeping-v0", dict(policy_kwargs=CIRCUIT, env_wrapper=DISTURBED), 300),
    "irregular": Case("ncp/PendulumIrregular-v0", dict(policy_kwargs=CIRCUIT, normalize=False), 300),
    "LSTM": Case("CartPole-v1", dict(policy="MlpLstmPolicy", policy_kwargs=dict(lstm_hidden_size=4)), 300),
    "no memory": Case("CartPole-v1", dict(policy="MlpPolicy"), 300),
    "Box2D": Case("ncp/LunarLanderContinuousNoVel-v3", dict(policy_kwargs=CIRCUIT), 300),
    "forgetful": Case("tests.runs.forgetful:Forgetful-v0", dict(policy_kwargs=CIRCUIT), 300),
}


class Counting(BaseCallback):
    """Counts episodes, and draws from NumPy's generator, which training draws from too."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0
        self.drawn: list[float] = []

    def _on_rollout_start(self) -> None:
        self.drawn.append(float(np.random.random()))

    def _on_step(self) -> bool:
        self.episodes += int(np.sum(self.locals["dones"]))
        self.logger.record("episodes", self.episodes)
        return True


class KillAt(BaseCallback):
    """Kills its own process, as a lack of memory or of power would."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


def main(folder: Path, names: list[str]) -> None:
    """Fork, train, be killed."""
    torch.set_num_threads(1)
    for name in names:
        child = os.fork()
        if child == 0:
            train(CASES[name].config(), folder / name, callback=KillAt(CASES[name].step), **HOW)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{name} was not killed: {status}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
