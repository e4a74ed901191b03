"""N cars on N roads: the one implementation behind the single environment and the batched ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ncp_envs.lane_keeping import road
from ncp_envs.lane_keeping.dynamics import (
    CURVATURE_SCALE,
    HEADING_ERROR,
    HEADING_SCALE,
    LATERAL_ERROR,
    LATERAL_SCALE,
    LATERAL_VELOCITY,
    N_KNOTS,
    N_OUTCOMES,
    N_ROWS,
    OBSERVED_ERROR,
    OFFSET,
    OFFSETS,
    PREVIEWS,
    SPEED,
    SPEEDS,
    STEERING,
    YAW_RATE,
    Vehicle,
    begin,
    drive,
)

Floats = npt.NDArray[np.float64]

OBSERVATION_NAMES = ("lateral_error", "heading_error", *(f"curvature_{distance:.0f}m" for distance in PREVIEWS))
_HIGH = np.array([OBSERVED_ERROR, OBSERVED_ERROR, *(1.0 for _ in PREVIEWS)], dtype=np.float32)
OBSERVATION_SPACE = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

TRUE_STATE_NAMES = (*OBSERVATION_NAMES, "lateral_velocity", "yaw_rate", "steering", "speed", "wheel_offset")
#: The value that a 1 of each stands for: m, rad, 1/m; m/s, rad/s, rad at the wheels, m/s, rad.
TRUE_UNITS = np.array(
    [LATERAL_SCALE, HEADING_SCALE, *(CURVATURE_SCALE for _ in PREVIEWS), 1.0, 0.2, 0.15, SPEEDS[1], OFFSETS[1]]
)
#: Uniform draws at the start of an episode: four for the car, one for what a camera sees, the rest for the road.
N_DRAWS = 5 + road.N_DRAWS


class Simulation:
    """The cars, their roads, and the outcome of the last step.

    Attributes:
        cars: (9, N) float64, the state; rows as in `dynamics`.
        curvatures: (N, K) float64, 1/m at the knots of each car's road.
        headings: (N, K + 1) float64, rad.
        widths: (N, K) float64, m.
        scenes: (N,) uint64, from which the picture of a camera draws what is random in it.
        observations: (N, 6) float32.
        outcome: (5, N) float64, rows as in `dynamics`.
        steps: (N,) int64, since the start.
    """

    def __init__(self, n_cars: int, vehicle: Vehicle | None = None) -> None:
        """Make room for `n_cars`; each waits for its `start`."""
        self.vehicle = vehicle or Vehicle()
        self.cars = np.zeros((N_ROWS, n_cars))
        self.curvatures = np.zeros((n_cars, N_KNOTS))
        self.headings = np.zeros((n_cars, N_KNOTS + 1))
        self.widths = np.zeros((n_cars, N_KNOTS))
        self.scenes = np.zeros(n_cars, dtype=np.uint64)
        self.observations = np.zeros((n_cars, len(OBSERVATION_NAMES)), dtype=np.float32)
        self.outcome = np.zeros((N_OUTCOMES, n_cars))
        self.steps = np.zeros(n_cars, dtype=np.int64)

    def start(self, index: int, rng: np.random.Generator) -> None:
        """Put car `index` at the start of a new road, with all that is random taken from `rng` in one draw."""
        draws = rng.random(N_DRAWS)
        road.lay(draws[5:], self.curvatures[index], self.headings[index], self.widths[index])
        begin(draws, index, self.vehicle, self.cars, self.curvatures[index], self.outcome, self.observations[index])
        self.scenes[index] = draws[4] * 2**53
        self.steps[index] = 0

    def step(self, actions: npt.NDArray[np.floating], intervals: Floats) -> None:
        """Drive all cars.

        Args:
            actions: (N, 1), from -1 to 1.
            intervals: (N,) float64, s.

        Raises:
            ValueError: The actions have another shape, or are not finite.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.cars.shape[1], 1):
            raise ValueError(f"Actions must have the shape {(self.cars.shape[1], 1)}, got {actions.shape}.")
        bad = drive(
            self.cars, self.curvatures, self.widths, actions[:, 0], intervals, self.vehicle,
            self.outcome, self.observations,
        )  # fmt: skip
        if bad >= 0:
            raise ValueError(f"Actions must be finite, got {actions[bad]} for car {bad}.")
        self.steps += 1

    def true_states(self) -> npt.NDArray[np.float32]:
        """Return the true states, (N, 11) float32: `TRUE_STATE_NAMES` in units of `TRUE_UNITS`."""
        cars = self.cars
        errors, motion = (
            cars[[LATERAL_ERROR, HEADING_ERROR]],
            cars[[LATERAL_VELOCITY, YAW_RATE, STEERING, SPEED, OFFSET]],
        )
        curvatures = self.observations[:, 2:].T * CURVATURE_SCALE
        states: npt.NDArray[np.float32] = (np.concatenate([errors, curvatures, motion]).T / TRUE_UNITS).astype(
            np.float32
        )
        return states
