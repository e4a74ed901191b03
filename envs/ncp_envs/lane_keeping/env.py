"""`ncp/LaneKeeping-v0`."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ncp_envs.lane_keeping.dynamics import CRASH, DISTANCE, ERROR, INTERVAL, JERK, REWARD, Vehicle
from ncp_envs.lane_keeping.render import RENDER_FPS, BirdsEye
from ncp_envs.lane_keeping.simulation import ACTION_SPACE, OBSERVATION_NAMES, OBSERVATION_SPACE, Simulation

Observation = npt.NDArray[np.float32]
Action = npt.NDArray[np.float32]


class LaneKeepingEnv(gym.Env[Observation, Action]):
    """A car keeps to its lane at a speed that it does not see, by steering alone."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "human"], "render_fps": RENDER_FPS}
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
        self._view = None if render_mode is None else BirdsEye(self.simulation)

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
        self._show()
        return self._observation(), self._info()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Steer for `interval` seconds."""
        simulation = self.simulation
        simulation.step(action[None], self._interval)
        self._show()
        info = self._info()
        return self._observation(), float(simulation.outcome[REWARD, 0]), info["crash"], False, info

    def render(self) -> npt.NDArray[np.uint8] | None:  # type: ignore[override]
        """The bird's eye view, where the render mode is "rgb_array"; "human" shows it by itself."""
        if self._view is None or self.render_mode == "human":
            return None
        return self._view.frame(self._inset())

    def close(self) -> None:
        """Close the window."""
        if self._view is not None:
            self._view.close()

    def _show(self) -> None:
        if self._view is not None:
            self._view.remember()
            if self.render_mode == "human":
                self._view.show(self._inset())

    def _observation(self) -> npt.NDArray[Any]:
        return self.simulation.observations[0].copy()

    def _inset(self) -> npt.NDArray[np.uint8] | None:
        """An image for the corner of the view."""
        return None

    def _info(self) -> dict[str, Any]:
        outcome = self.simulation.outcome[:, 0].tolist()
        return {
            "lateral_error": outcome[ERROR],
            "lateral_jerk": outcome[JERK],
            "crash": bool(outcome[CRASH]),
            "distance": outcome[DISTANCE],
        }
