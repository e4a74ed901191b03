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

from ncp_envs.lane_keeping.dynamics import ERROR
from ncp_envs.lane_keeping.vector import LaneKeepingVectorBase


class LaneKeepingVecEnv(VecEnv):
    """N cars in one simulation, equal to a `DummyVecEnv` of N single environments under equal seeds and actions.

    model = RecurrentPPO(NCPPolicy, VecMonitor(LaneKeepingVecEnv(64)))
    """

    def __init__(self, n_envs: int, env_id: str = "ncp/LaneKeeping-v0", **kwargs: Any) -> None:
        """Make `n_envs` cars.

        Args:
            n_envs: Number of cars.
            env_id: "ncp/LaneKeeping-v0" or "ncp/LaneKeepingCamera-v0".
            **kwargs: Arguments of the environment.
        """
        vector = gym.make_vec(env_id, n_envs, "vector_entry_point", autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
        if not isinstance(vector, LaneKeepingVectorBase):
            raise ValueError(f"env_id must name a lane keeping environment, got {env_id!r}.")
        self.vector = vector
        self._actions: npt.NDArray[Any] = np.zeros((n_envs, 1), dtype=np.float32)
        super().__init__(n_envs, vector.single_observation_space, vector.single_action_space)

    def reset(self) -> npt.NDArray[Any]:
        """Start all cars, from the seeds that were given before, if any."""
        observations, _ = self.vector.reset(seed=self._seeds)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [self._info(i) for i in range(self.num_envs)]
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Steer all cars; those that are done start anew at once."""
        rewards, terminations, truncations = self.vector.advance(self._actions)
        observations, dones, infos = self.vector.observations(), terminations | truncations, self._infos(terminations)
        if dones.any():
            last = observations
            self.vector.start(dones)
            observations = self.vector.observations()
            for i in dones.nonzero()[0].tolist():
                infos[i]["terminal_observation"] = last[i]
                infos[i]["TimeLimit.truncated"] = not infos[i]["crash"]
                self.reset_infos[i] = self._info(i)
        return observations, rewards.astype(np.float32), dones, infos

    def _infos(self, crashes: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
        _, errors, jerks, distances, _ = self.vector.simulation.outcome.tolist()
        # The dicts are written out, since a loop would take a good part of a step's time.
        return [
            {
                "lateral_error": error,
                "lateral_jerk": jerk,
                "crash": crash,
                "distance": distance,
                "TimeLimit.truncated": False,
            }
            for error, jerk, distance, crash in zip(errors, jerks, distances, crashes.tolist(), strict=True)
        ]

    def _info(self, i: int) -> dict[str, Any]:
        """Return the info of car i at its start."""
        error = float(self.vector.simulation.outcome[ERROR, i])
        return {"lateral_error": error, "lateral_jerk": 0.0, "crash": False, "distance": 0.0}

    def close(self) -> None:
        """Close the simulation."""
        self.vector.close()

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """Return a frame for each car."""
        return self.vector.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute of each car; an attribute of the simulation is repeated for each."""
        value = getattr(self.vector, attr_name)
        if attr_name == "interval":
            value = value.tolist()
        return [value[i] if attr_name in ("interval", "true_state") else value for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the `interval` of cars; nothing else differs between them."""
        if attr_name != "interval":
            raise AttributeError(
                f"Only the attribute 'interval' of cars can be set, got {attr_name!r}; use single environments for "
                "others."
            )
        self.vector.interval[list(self._get_indices(indices))] = value

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse to call a method, since there are no single environments.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(
            f"The method {method_name!r} cannot be called: all cars are in one simulation; use single environments."
        )

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for each car: no single environment exists to be wrapped."""
        return [False for _ in self._get_indices(indices)]
