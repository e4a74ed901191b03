"""Hand-written controllers: `Baseline` to compare returns with, and `Instructor` to learn from.

Stanley's law (Hoffmann et al., Autonomous Automobile Trajectory Tracking for Off-Road Driving, ACC 2007) steers by the
heading error and the arctangent of the lateral error over the speed. Here the speed is not seen, so that its middle
stands for it; the road's curvature is fed forward, a little ahead to make up for the steering lag; and an integral of
the lateral error, the controller's memory, finds the wheel offset. The gains were found by random search for the
highest return.

Over 100 fresh episodes of `ncp/LaneKeeping-v0` it scores 915 and never crashes. Without memory the best gains found,
`MEMORYLESS`, score 753 and crash in 3 episodes of 100 (`results/lane_keeping.json`).

`Instructor` sees the true state, with the speed and the wheel offset, which no policy observes. What
it does depends on the present state alone, so that it can act from any state that a pupil reaches. It scores 944.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ncp_envs.lane_keeping.dynamics import (
    CURVATURE_SCALE,
    HEADING_SCALE,
    INTERVAL,
    LATERAL_SCALE,
    PREVIEWS,
    SPEEDS,
    Vehicle,
)
from ncp_envs.lane_keeping.simulation import TRUE_UNITS

Floats = npt.NDArray[np.float64]
Actions = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Gains:
    """Gains of `Baseline`."""

    lateral: float = 0.75
    """1/s, gain of the lateral error in Stanley's law."""
    heading: float = 0.98
    """Gain of the heading error; Stanley's is 1."""
    integral: float = 0.115
    """rad/(m s), gain of the lateral error's integral; 0 for a controller without memory."""
    curvature: float = 2.85
    """m, gain of the curvature fed forward: the wheelbase, and somewhat more since the car understeers."""
    ahead: float = 4.6
    """m, distance ahead of the car at which the curvature is taken, from 0 to 10."""


#: The best gains found without an integral.
MEMORYLESS = Gains(lateral=1.46, heading=1.036, integral=0.0, curvature=2.685, ahead=4.67)


class Baseline:
    """A controller that drives N cars by their observations."""

    def __init__(self, n_cars: int, gains: Gains | None = None, vehicle: Vehicle | None = None) -> None:
        """Make a controller of `n_cars` cars."""
        self.gains, self.vehicle = gains or Gains(), vehicle or Vehicle()
        self.speed = 0.5 * (SPEEDS[0] + SPEEDS[1])
        self._integral = np.zeros(n_cars)

    def act(self, observations: npt.NDArray[np.float32], starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Steer.

        Args:
            observations: (N, 6) float32, of `ncp/LaneKeeping-v0`, its `interval` after the last ones.
            starts: (N,) bool, whether a car's episode starts with its observation.

        Returns:
            (N, 1) float32 actions.
        """
        gains, seen = self.gains, observations.astype(np.float64)
        lateral, heading = seen[:, 0] * LATERAL_SCALE, seen[:, 1] * HEADING_SCALE
        self._integral = np.where(starts, 0.0, self._integral) + lateral * INTERVAL
        curvature = CURVATURE_SCALE * (seen[:, 2] + 0.1 * gains.ahead * (seen[:, 3] - seen[:, 2]))
        stanley = -gains.heading * heading - np.arctan(gains.lateral * lateral / self.speed)
        wheel = stanley + gains.curvature * curvature - gains.integral * self._integral
        return np.clip(wheel / self.vehicle.max_steering, -1.0, 1.0)[:, None].astype(np.float32)


@dataclass(frozen=True)
class Instruction:
    """Gains of the instructor, found by random search for the highest return."""

    lateral: float = 1.73
    """1/s, gain of the lateral error in Stanley's law."""
    heading: float = 1.067
    """Gain of the heading error."""
    yaw_rate: float = 0.339
    """s, gain of the yaw rate beyond the one that follows the road."""
    curvature: float = 0.758
    """m, gain of the curvature fed forward at speed 0."""
    understeer: float = 0.0081
    """s^2/m, added to that gain, times the square of the speed."""
    ahead: float = -1.29
    """m, distance ahead of the car at which the curvature is taken at speed 0."""
    ahead_time: float = 0.382
    """s, added to that distance, times the speed."""


class Instructor:
    """A controller that drives cars by their `true_state`, with the `predict` of Stable-Baselines3's policies.

    dagger(model, venv, Instructor(), privilege=lambda venv: np.stack(venv.get_attr("true_state")))

    """

    def __init__(self, gains: Instruction | None = None, vehicle: Vehicle | None = None) -> None:
        """Make a controller of any number of cars."""
        self.gains, self.vehicle = gains or Instruction(), vehicle or Vehicle()

    def predict(
        self,
        observation: npt.NDArray[np.float32],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, None]:
        """Steer.

        Args:
            observation: (N, 11), true states of N cars; see `simulation.TRUE_STATE_NAMES`.
            state: Not used: the controller has no memory.
            episode_start: Not used.
            deterministic: Not used.

        Returns:
            (N, 1) float32 actions, and no state.
        """
        gains, seen = self.gains, (observation.astype(np.float64) * TRUE_UNITS).T
        lateral, heading, curvatures = seen[0], seen[1], seen[2 : 2 + len(PREVIEWS)]
        _, yaw_rate, _, speed, offset = seen[2 + len(PREVIEWS) :]
        ahead = np.clip(gains.ahead + gains.ahead_time * speed, PREVIEWS[0], PREVIEWS[-1])
        curvature = [np.interp(x, PREVIEWS, road) for x, road in zip(ahead, curvatures.T, strict=True)]
        wheel = -offset - gains.heading * heading - np.arctan(gains.lateral * lateral / speed)
        wheel += (gains.curvature + gains.understeer * speed**2) * np.array(curvature)
        wheel -= gains.yaw_rate * (yaw_rate - speed * curvatures[0])
        return np.clip(wheel / self.vehicle.max_steering, -1.0, 1.0)[:, None].astype(np.float32), None
