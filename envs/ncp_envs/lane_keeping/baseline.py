"""A hand-written controller to compare with, so that a return means something.

Stanley's law (Hoffmann et al., Autonomous Automobile Trajectory Tracking for Off-Road Driving, ACC 2007) steers by the
heading error and the arctangent of the lateral error over the speed. Here the speed is not seen, so that its middle
stands for it; the road's curvature is fed forward, a little ahead to make up for the steering lag; and an integral of
the lateral error, the controller's memory, finds the wheel offset. The gains were found by random search for the
highest return.

Over 100 fresh episodes of `ncp/LaneKeeping-v0` it scores 915 and never crashes. Without memory the best gains found,
`MEMORYLESS`, score 753 and crash in 3 episodes of 100 (`results/lane_keeping.json`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ncp_envs.lane_keeping.dynamics import (
    CURVATURE_SCALE,
    HEADING_SCALE,
    INTERVAL,
    LATERAL_SCALE,
    SPEEDS,
    Vehicle,
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gains:
    """Of the controller."""

    lateral: float = 0.75
    """1/s, of the lateral error in Stanley's law."""
    heading: float = 0.98
    """Of the heading error; Stanley's is 1."""
    integral: float = 0.115
    """rad/(m s), of the lateral error's integral; 0 for a controller without memory."""
    curvature: float = 2.85
    """m, of the curvature fed forward: the wheelbase, and somewhat more since the car understeers."""
    ahead: float = 4.6
    """m, where the curvature is taken, between beside the car and 10 m ahead."""


#: The best found without an integral.
MEMORYLESS = Gains(lateral=1.46, heading=1.036, integral=0.0, curvature=2.685, ahead=4.67)


class Baseline:
    """Drives N cars by their observations."""

    def __init__(self, n_cars: int, gains: Gains | None = None, vehicle: Vehicle | None = None) -> None:
        """Make it for `n_cars`."""
        self.gains, self.vehicle = gains or Gains(), vehicle or Vehicle()
        self.speed = 0.5 * (SPEEDS[0] + SPEEDS[1])
        self._integral = np.zeros(n_cars)

    def act(self, observations: npt.NDArray[np.float32], starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Steer.

        Args:
            observations: (N, 6) of `ncp/LaneKeeping-v0`, its `interval` apart.
            starts: (N,) bool, whether an episode starts with them.

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
