"""`ncp/LaneKeeping-v0`."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ncp_envs.lane_keeping.dynamics import CRASH, DISTANCE, ERROR, INTERVAL, JERK, REWARD, Vehicle
from ncp_envs.lane_keeping.simulation import ACTION_SPACE, OBSERVATION_NAMES, OBSERVATION_SPACE, Simulation

Observation = npt.NDArray[np.float32]
Action = npt.NDArray[np.float32]


class LaneKeepingEnv(gym.Env[Observation, Action]):
    """A car keeps to its lane at a speed that it does not see, by steering alone."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "human"], "render_fps": round(1 / INTERVAL)}
    observation_names = OBSERVATION_NAMES

    def __init__(self, render_mode: str | None = None, vehicle: Vehicle | None = None) -> None:
        """Make it.

        Args:
            render_mode: None, "rgb_array" or "human".
            vehicle: Parameters of the car.
        """
        self.observation_space, self.action_space = OBSERVATION_SPACE, ACTION_SPACE
        self.render_mode = render_mode
        self.simulation = Simulation(1, vehicle)
        self._interval = np.full(1, INTERVAL)

    @property
    def interval(self) -> float:
        """Seconds from this observation to the next: any time above 0 may be set before a step."""
        return float(self._interval[0])

    @interval.setter
    def interval(self, seconds: float) -> None:
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"interval must be seconds above 0, got {seconds}.")
        self._interval[0] = seconds

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start on a new road."""
        super().reset(seed=seed)
        self.simulation.start(0, self.np_random)
        return self.simulation.observations[0].copy(), self._info()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Steer for `interval` seconds."""
        simulation = self.simulation
        simulation.step(action[None], self._interval)
        info = self._info()
        reward = float(simulation.outcome[REWARD, 0])
        return simulation.observations[0].copy(), reward, info["crash"], False, info

    def _info(self) -> dict[str, Any]:
        outcome = self.simulation.outcome[:, 0].tolist()
        return {
            "lateral_error": outcome[ERROR],
            "lateral_jerk": outcome[JERK],
            "crash": bool(outcome[CRASH]),
            "distance": outcome[DISTANCE],
        }
