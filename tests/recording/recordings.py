"""Models, environments and recordings for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from ncp_rl import AutoNCP, CnnNCPPolicy, MultiInputNCPPolicy, NCPPolicy
from ncp_rl.recording import record_rollouts
from tests.random_env import TIMED, RandomEnv, box

PENDULUM = "ncp_envs:ncp/PendulumNoVel-v1"


def pendulum(n_envs: int = 3, *, normalize: bool = True, **kwargs: Any) -> tuple[RecurrentPPO, VecEnv]:
    """An untrained policy whose weights are not those of a beginning, on the pendulum."""
    venv: VecEnv = make_vec_env(PENDULUM, n_envs=n_envs, seed=0)
    if normalize:
        venv = VecNormalize(venv)
    arguments: dict[str, Any] = dict(n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=1)
    policy_kwargs = dict(wiring=AutoNCP(12), elapsed_time=0.05) | kwargs.pop("policy_kwargs", {})
    model = RecurrentPPO(NCPPolicy, venv, policy_kwargs=policy_kwargs, **(arguments | kwargs))
    return model, venv


def still(venv: VecEnv) -> VecEnv:
    """With normalisation statistics that stay."""
    if isinstance(venv, VecNormalize):
        venv.training = False
    return venv


def trained_pendulum(n_envs: int = 3, **kwargs: Any) -> tuple[RecurrentPPO, VecEnv]:
    """After one update, so that no parameter is what it was, and statistics have moved."""
    model, venv = pendulum(n_envs, **kwargs)
    model.learn(32 * n_envs)
    return model, still(venv)


def random_model(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], n_envs: int = 2, **kwargs: Any
) -> tuple[RecurrentPPO, VecEnv]:
    """A policy on random observations of any space."""
    env_kwargs = dict(observation_space=observation_space, action_space=action_space)
    venv = make_vec_env(RandomEnv, n_envs=n_envs, seed=0, env_kwargs=env_kwargs | kwargs.pop("env_kwargs", {}))
    policy: type[NCPPolicy] = MultiInputNCPPolicy if isinstance(observation_space, spaces.Dict) else NCPPolicy
    policy = kwargs.pop("policy", policy)
    policy_kwargs = dict(wiring=AutoNCP(12)) | kwargs.pop("policy_kwargs", {})
    model = RecurrentPPO(
        policy, venv, policy_kwargs=policy_kwargs, n_steps=8, batch_size=8, device="cpu", seed=0, **kwargs
    )
    return model, venv


IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)

#: Spaces of observations and actions, and what else the model takes.
SPACES: dict[str, tuple[spaces.Space[Any], spaces.Space[Any], dict[str, Any]]] = {
    "box": (box(3), box(2), {}),
    "float64": (spaces.Box(-1, 1, (2, 2), np.float64), box(1), {}),
    "discrete": (spaces.Discrete(5), spaces.Discrete(3), {}),
    "multi": (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 2]), {}),
    "binary": (spaces.MultiBinary(3), spaces.MultiBinary(2), {}),
    "timed": (TIMED, box(2), {}),
    "image": (IMAGE, box(1), dict(policy=CnnNCPPolicy)),
    "sde": (box(3), box(2), dict(use_sde=True)),
    "dense": (box(3), box(2), dict(policy_kwargs=dict(motor_map="dense"))),
    "lstm": (box(3), box(2), dict(policy_kwargs=dict(critic="lstm"))),
    "cfc": (box(3), box(2), dict(policy_kwargs=dict(cell="cfc"))),
}


def pendulum_recording(path: Path, **kwargs: Any) -> tuple[RecurrentPPO, VecEnv]:
    """Record four episodes of a trained pendulum."""
    model, venv = trained_pendulum()
    record_rollouts(model, venv, path, n_episodes=4, progress_bar=False, **kwargs)
    return model, venv
