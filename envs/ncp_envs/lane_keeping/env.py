"""`ncp/LaneKeeping-v0` and `ncp/LaneKeepingCamera-v0`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ncp_envs.lane_keeping import camera
from ncp_envs.lane_keeping.drawing import RENDER_FPS, birds_eye
from ncp_envs.lane_keeping.dynamics import CRASH, DISTANCE, ERROR, INTERVAL, JERK, REWARD, Vehicle
from ncp_envs.lane_keeping.simulation import ACTION_SPACE, OBSERVATION_NAMES, OBSERVATION_SPACE, Simulation

Observation = npt.NDArray[Any]
Action = npt.NDArray[np.float32]


class LaneKeepingBase(gym.Env[Observation, Action], ABC):
    """A simulation of one car; subclasses define what is observed."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": RENDER_FPS}  # noqa: RUF012
    action_names = ("steering",)

    def __init__(self, render_mode: str | None = None, vehicle: Vehicle | None = None) -> None:
        """Make the environment.

        Args:
            render_mode: None, "rgb_array" or "human".
            vehicle: Parameters of the car.

        Raises:
            ValueError: There is no such render mode.
            gymnasium.error.DependencyNotInstalled: A render mode is given, and pygame is not installed.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode must be None or one of {self.metadata['render_modes']}, got {render_mode!r}."
            )
        self.action_space = ACTION_SPACE
        self.render_mode = render_mode
        self.simulation = Simulation(1, vehicle)
        self._interval = np.full(1, INTERVAL)
        self._view = None if render_mode is None else birds_eye(self.simulation)

    @property
    def interval(self) -> float:
        """Seconds from this observation to the next: any time above 0 may be set before a step."""
        return float(self._interval[0])

    @interval.setter
    def interval(self, seconds: float) -> None:
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"interval must be seconds above 0, got {seconds}.")
        self._interval[0] = seconds

    @property
    def true_state(self) -> npt.NDArray[np.float32]:
        """(11,) float32, the true state, which only an expert may see; see `Simulation.true_states`."""
        seen: npt.NDArray[np.float32] = self.simulation.true_states()[0]
        return seen

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

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return the bird's eye view where the render mode is "rgb_array"; "human" shows it in each step."""
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

    @abstractmethod
    def _observation(self) -> Observation: ...

    def _inset(self) -> npt.NDArray[np.uint8] | None:
        """Return an image for the corner of the view."""
        return None

    def _info(self) -> dict[str, Any]:
        outcome = self.simulation.outcome[:, 0].tolist()
        return {
            "lateral_error": outcome[ERROR],
            "lateral_jerk": outcome[JERK],
            "crash": bool(outcome[CRASH]),
            "distance": outcome[DISTANCE],
        }


class LaneKeepingEnv(LaneKeepingBase):
    """A car is to keep to the middle of its lane, at a speed that it does not see, by steering alone.

    ## Description

    A cruise control holds a speed that is new in each episode. The front wheels follow the steering command with a
    lag, and they are not quite straight when they should be: an offset, also new in each episode and not seen. The
    tyres slip. No velocity is observed. A controller that remembers can find out the offset and the speed.

    The car is a dynamic single-track model (Rajamani, Vehicle Dynamics and Control, chapter 2) on a road of straights,
    clothoids and arcs: equations, parameters and limits are in `dynamics.py` and `road.py` of this folder.

    ## Action Space

    | Num | Action                                                | Min  | Max | Unit               |
    |-----|-------------------------------------------------------|------|-----|--------------------|
    | 0   | steering, commanded angle of the front wheels to the left | -1.0 | 1.0 | `max_steering`, 0.15 rad |

    ## Observation Space

    | Num | Observation                                 | Name          | Min  | Max | Unit    |
    |-----|---------------------------------------------|---------------|------|-----|---------|
    | 0   | offset to the left of the lane's middle     | lateral_error | -4.0 | 4.0 | 1 m     |
    | 1   | heading against the road's, to the left     | heading_error | -4.0 | 4.0 | 0.2 rad |
    | 2   | curvature of the road beside the car        | curvature_0m  | -1.0 | 1.0 | 0.02/m  |
    | 3   | curvature 10 m ahead                        | curvature_10m | -1.0 | 1.0 | 0.02/m  |
    | 4   | curvature 20 m ahead                        | curvature_20m | -1.0 | 1.0 | 0.02/m  |
    | 5   | curvature 30 m ahead                        | curvature_30m | -1.0 | 1.0 | 0.02/m  |

    `info` holds `lateral_error` in metres, `lateral_jerk` in m/s^3 (mean over the step), `crash`, and `distance` in
    metres driven along the road.

    ## Rewards

    Progress times centring times comfort, each from 0 to 1, so that a return of 1000 is a perfect drive of 1000 steps:

    - progress: distance along the road over what the speed allows;
    - centring: 1 / (1 + (lateral error / 0.4 m)^2);
    - comfort: 1 / (1 + (lateral jerk / 5 m/s^3)^2).

    A step of another `interval` than 0.05 s counts in proportion. `baseline.py` holds a controller to compare with.

    ## Starting State

    Uniformly random: speed 8 to 18 m/s, wheel offset -0.03 to 0.03 rad, lateral error -0.5 to 0.5 m, heading error
    -0.05 to 0.05 rad, and a new road.

    ## Episode End

    Terminated when the centre of gravity leaves the lane, half of its width from the middle. Truncated after 1000
    steps.

    ## Arguments

    - `render_mode`: None, "rgb_array" or "human".
    - `vehicle`: a `Vehicle` of other parameters.

    The attribute `interval`, seconds from this observation to the next, is 0.05. It may be set to any time above 0
    before a step: the next steps integrate exactly that time, in substeps of at most 0.025 s.

    ## Version History

    * v0: initial version.
    """

    observation_names = OBSERVATION_NAMES

    def __init__(self, render_mode: str | None = None, vehicle: Vehicle | None = None) -> None:
        """Make the environment; see `LaneKeepingBase`."""
        super().__init__(render_mode, vehicle)
        self.observation_space = OBSERVATION_SPACE

    def _observation(self) -> Observation:
        seen: Observation = self.simulation.observations[0].copy()
        return seen


class LaneKeepingCameraEnv(LaneKeepingBase):
    """The drive of `ncp/LaneKeeping-v0`, seen through a camera that looks ahead.

    ## Description

    As `ncp/LaneKeeping-v0`, with the same drives under the same seeds. The camera is 1.3 m above the ground, looks 0.1
    rad down and sees 83 degrees; each pixel is projected onto the ground plane (`camera.py`).

    ## Action Space

    | Num | Action                                                | Min  | Max | Unit               |
    |-----|-------------------------------------------------------|------|-----|--------------------|
    | 0   | steering, commanded angle of the front wheels to the left | -1.0 | 1.0 | `max_steering`, 0.15 rad |

    ## Observation Space

    | Num           | Observation                                    | Min | Max | Unit |
    |---------------|------------------------------------------------|-----|-----|------|
    | (48, 160, 3)  | image, uint8: rows from above, red green blue  | 0   | 255 | -    |

    ## Rewards, Starting State, Episode End

    Those of `ncp/LaneKeeping-v0`, and its `info` and `interval`.

    ## Arguments

    - `render_mode`: None, "rgb_array" or "human".
    - `light`, `shadow`, `noise`, `missing_markings`: levels from 0, the plain picture, to 1; see
      `camera.PictureDisturbances`. These disturb the picture alone: the drive stays the same.
    - `rows`, `pool`: which rows of the picture are observed, and the side of the squares of pixels that are averaged;
      `rows=(16, 48), pool=2` leaves the sky out and gives (16, 80, 3).
    - `vehicle`: a `Vehicle` of other parameters.

    ## Version History

    * v0: initial version.
    """

    def __init__(
        self,
        render_mode: str | None = None,
        light: float = 0.0,
        shadow: float = 0.0,
        noise: float = 0.0,
        missing_markings: float = 0.0,
        rows: tuple[int, int] = (0, camera.HEIGHT),
        pool: int = 1,
        vehicle: Vehicle | None = None,
    ) -> None:
        """Make the environment; see `LaneKeepingBase`, `camera.PictureDisturbances` and `camera.Frame`."""
        super().__init__(render_mode, vehicle)
        self.frame = camera.Frame(rows, pool)
        self.observation_space = self.frame.space
        self.disturbances = camera.PictureDisturbances(light, shadow, noise, missing_markings)

    def _observation(self) -> Observation:
        seen: Observation = self.frame.cut(self._picture()[None])[0]
        return seen

    def _inset(self) -> npt.NDArray[np.uint8]:
        return self._picture()

    def _picture(self) -> npt.NDArray[np.uint8]:
        picture: npt.NDArray[np.uint8] = camera.look(self.simulation, self.disturbances)[0]
        return picture
