"""Tasks to be taught, small enough for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl import AutoNCP, NCPPolicy
from ncp_rl.teach import Demonstration
from tests.random_env import RandomEnv, box

ONE = box(1)


def echoes(n_episodes: int = 40, length: int = 20, seed: int = 0) -> list[Demonstration]:
    """The action is what was observed a step before: nothing that a policy without memory could know."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_episodes):
        observation = rng.uniform(-1, 1, (length, 1)).astype(np.float32)
        before = np.concatenate([np.zeros((1, 1), np.float32), observation[:-1]])
        found.append(Demonstration(observation, 0.8 * before))
    return found


def student(
    observation_space: spaces.Space[Any] = ONE,
    action_space: spaces.Space[Any] = ONE,
    *,
    policy: Any = NCPPolicy,
    venv: VecEnv | None = None,
    n_envs: int = 3,
    **policy_kwargs: Any,
) -> OnPolicyAlgorithm:
    """An untrained model on random observations."""
    env_kwargs = dict(observation_space=observation_space, action_space=action_space)
    venv = venv or make_vec_env(RandomEnv, n_envs=n_envs, seed=0, env_kwargs=env_kwargs)
    if policy == "MlpPolicy":
        return PPO(policy, venv, n_steps=8, batch_size=8, device="cpu", seed=0, policy_kwargs=policy_kwargs)
    if policy is NCPPolicy:
        policy_kwargs = dict(wiring=AutoNCP(12)) | policy_kwargs
    return RecurrentPPO(policy, venv, n_steps=8, batch_size=8, device="cpu", seed=0, policy_kwargs=policy_kwargs)


class Proportional:
    """An expert: half of the first observed number."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, None]:
        return (0.5 * observation[:, :1]).astype(np.float32), None
