"""The batched lane keeping environments as a `VecEnv` of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from ncp_envs.lane_keeping.vector import LaneKeepingVectorEnv

_INFO = ("lateral_error", "lateral_jerk", "crash", "distance")


class LaneKeepingVecEnv(VecEnv):
    """What `DummyVecEnv` of as many single environments gives under equal seeds and actions, in one simulation.

    model = RecurrentPPO(NCPPolicy, VecMonitor(LaneKeepingVecEnv(64)))
    """

    def __init__(self, n_envs: int, env_id: str = "ncp/LaneKeeping-v0", **kwargs: Any) -> None:
        """Make `n_envs` cars.

        Args:
            n_envs: Number of cars.
            env_id: "ncp/LaneKeeping-v0" or "ncp/LaneKeepingCamera-v0".
            **kwargs: Of the environment.
        """
        vector = gym.make_vec(env_id, n_envs, "vector_entry_point", autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
        if not isinstance(vector, LaneKeepingVectorEnv):
            raise ValueError(f"env_id must name a lane keeping environment, got {env_id!r}.")
        self.vector = vector
        self._actions: npt.NDArray[Any] = np.zeros((n_envs, 1), dtype=np.float32)
        super().__init__(n_envs, vector.single_observation_space, vector.single_action_space)

    def reset(self) -> npt.NDArray[Any]:
        """Start all cars, from the seeds given before if any."""
        observations, infos = self.vector.reset(seed=self._seeds)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = _rows(infos)
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Steer all cars; those that are done start anew at once."""
        observations, rewards, terminations, truncations, infos = self.vector.step(self._actions)
        rows = _rows(infos)
        for row in rows:
            row["TimeLimit.truncated"] = False
        dones = terminations | truncations
        if "final_info" in infos:
            final = _rows(infos["final_info"])
            for i in np.flatnonzero(dones).tolist():
                self.reset_infos[i] = {name: rows[i][name] for name in _INFO}
                rows[i] = final[i] | {
                    "TimeLimit.truncated": bool(truncations[i] and not terminations[i]),
                    "terminal_observation": infos["final_obs"][i],
                }
        return observations, rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        """Close the simulation."""
        self.vector.close()

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """A frame for each car."""
        return self.vector.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each car; what all share is given for each."""
        value = getattr(self.vector, attr_name)
        return [float(value[i]) if attr_name == "interval" else value for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the `interval` of cars; nothing else differs between them."""
        if attr_name != "interval":
            raise AttributeError(f"Only the interval of single cars can be set, not {attr_name!r}.")
        self.vector.interval[list(self._get_indices(indices))] = value

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: there are no single environments.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(f"All cars are in one simulation: no single environment has a method {method_name!r}.")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """None is."""
        return [False for _ in self._get_indices(indices)]


def _rows(infos: dict[str, Any]) -> list[dict[str, Any]]:
    """A dict for each car."""
    columns = [infos[name].tolist() for name in _INFO]
    return [dict(zip(_INFO, row, strict=True)) for row in zip(*columns, strict=True)]
