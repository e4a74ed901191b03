"""`RunEnvironment`: an environment of a run, as `ncp_rl.runs.make_envs` makes it, in Gymnasium's form for RLlib."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from ncp_rl.runs import RunConfig, make_envs

#: Info of the last step of an episode: its return, not normalised, and its length.
EPISODE = "episode"


class RunEnvironment(gym.Env[Any, Any]):
    """A single environment with all that the run puts around it: wrappers, stacked frames, normalised rewards.

    Statistics by which rewards are normalised are its own.
    """

    def __init__(self, context: Mapping[str, Any]) -> None:
        """Make the environment.

        Args:
            context: RLlib's EnvContext: `config`, fields of the `RunConfig`; `modules`, which are imported first, such
                as those that register environments; `rewards`, the statistics that rewards are normalised by at first,
                or None; and RLlib's own number of the env runner, from which random streams follow.
        """
        for module in context["modules"]:
            importlib.import_module(module)
        config = RunConfig(**context["config"])
        self._runner = int(getattr(context, "worker_index", 0) or 0)
        # As algorithms of Stable-Baselines3 do, it puts the channels of images first.
        self._venv = BaseAlgorithm._wrap_env(make_envs(replace(config, seed=self._seed(config.seed)), 1))
        self._normalize = unwrap_vec_normalize(self._venv)
        if self._normalize is not None and context.get("rewards") is not None:
            self._normalize.ret_rms.combine(context["rewards"])
        self.observation_space, self.action_space = self._venv.observation_space, self._venv.action_space
        self.metadata = dict(render_modes=[])
        # The first observation of an episode that the VecEnv has begun by itself.
        self._begun: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; see upstream."""
        super().reset(seed=seed)
        if seed is not None:
            self._venv.seed(self._seed(seed))
            self._begun = None
        observation, self._begun = self._venv.reset() if self._begun is None else self._begun, None
        return _only(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step; see upstream."""
        observation, rewards, dones, infos = self._venv.step(np.asarray(action)[None])
        if not dones[0]:
            return _only(observation), float(rewards[0]), False, False, {}
        self._begun = observation
        truncated = bool(infos[0].get("TimeLimit.truncated"))
        monitored = infos[0]["episode"]
        told = {EPISODE: np.array([monitored["r"], monitored["l"]])}
        last = _typed(infos[0]["terminal_observation"], self.observation_space)
        return last, float(rewards[0]), not truncated, truncated, told

    def spread(self) -> RunningMeanStd | None:
        """The statistics of returns that it normalises rewards by; None where it does not."""
        return self._normalize.ret_rms if self._normalize is not None and self._normalize.norm_reward else None

    def close(self) -> None:
        """Close it."""
        self._venv.close()

    def _seed(self, seed: int) -> int:
        # RLlib counts on from the run's seed over runners and over the environments of each, so that these would meet.
        return int(np.random.SeedSequence([seed, self._runner]).generate_state(1)[0]) % 2**31


def _only(observations: Any) -> Any:
    """The observation of the one environment."""
    if isinstance(observations, Mapping):
        return {key: part[0] for key, part in observations.items()}
    return observations[0]


def _typed(observation: Any, space: gym.Space[Any]) -> Any:
    """The observation in the types of its space: a VecEnv leaves the last one of an episode as it came."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _typed(observation[key], part) for key, part in space.items()}
    return np.asarray(observation, space.dtype)


def spreads(runner: Any) -> list[RunningMeanStd]:
    """The statistics of an env runner's environments that normalise rewards."""
    return [spread for spread in runner.env.unwrapped.call("spread") if spread is not None]


def pooled(spreads: Sequence[RunningMeanStd]) -> RunningMeanStd:
    """The statistics of all that several environments have seen, for each to go on from with its share of the count."""
    found = RunningMeanStd(epsilon=0.0)
    for spread in spreads:
        found.combine(spread)
    found.count /= len(spreads)
    return found
