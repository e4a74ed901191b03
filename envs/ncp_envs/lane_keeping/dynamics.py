"""Motion, reward and observation of each car in a step, compiled.

The car is a dynamic single-track model in road coordinates. Its equations are those of R. Rajamani, Vehicle Dynamics
and Control, 2nd ed., Springer 2012, chapter 2 (lateral dynamics), with the small slip angles of the tyres and the exact
kinematics of the road:

    m (v_y' + v_x r) = F_f + F_r                              lateral force
    I_z r' = l_f F_f - l_r F_r                                yaw moment
    alpha_f = delta + offset - (v_y + l_f r) / v_x            slip angles
    alpha_r = -(v_y - l_r r) / v_x
    tau delta' = delta_command - delta                        steering lag
    s' = (v_x cos psi - v_y sin psi) / (1 - kappa(s) e)       along the road, whose curvature is kappa
    e' = v_x sin psi + v_y cos psi                            to its left
    psi' = r - kappa(s) s'                                    heading against the road's

The force of an axle is C alpha for small slip angles, as Rajamani has it, and saturates smoothly at the friction limit
mu F_z (its static load): F = C alpha / sqrt(1 + (C alpha / (mu F_z))^2). The speed v_x is held by a cruise control.

The classic Runge-Kutta method of fourth order integrates them. From 5 m/s on, under full steering to either side at
random, substeps of 25 ms keep a car within 0.1 mm of the exact way in the first second.

Cars are computed `LANES` at a time, in loops of fixed length over arrays of fixed shape and without calls, which LLVM
turns into vector instructions. Only the look-up of the road is done car by car. All compiled functions that call each
other are in this file, since Numba's cache looks at the file of the called kernel only.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

GRAVITY = 9.81
#: Seconds, the longest substep of the integration.
MAX_SUBSTEP = 0.025
#: m/s; below, the slip angles (which divide by the speed) would ask for a kinematic model and for smaller substeps.
MIN_SPEED = 5.0
#: Metres between the knots of a road's curvature and width, which are linear in between.
KNOT_SPACING = 5.0
N_KNOTS = 200

#: Seconds between observations, unless an environment's `interval` says otherwise.
INTERVAL = 0.05
#: m and m/s^3: the lateral error and the lateral jerk that each halve the reward.
CENTRING_SCALE, COMFORT_SCALE = 0.4, 5.0
#: Metres ahead of the car at which it observes the road's curvature.
PREVIEWS = (0.0, 10.0, 20.0, 30.0)
#: The values that an observed 1 stands for: m, rad, 1/m.
LATERAL_SCALE, HEADING_SCALE, CURVATURE_SCALE = 1.0, 0.2, 0.02
#: Lateral and heading error are cut here, in scales: a car on its lane does not get so far.
OBSERVED_ERROR = 4.0

#: Ranges of an episode's starting values, drawn uniformly: m/s, rad, m, rad.
SPEEDS, OFFSETS, ERRORS, HEADINGS = (8.0, 18.0), (-0.03, 0.03), (-0.5, 0.5), (-0.05, 0.05)

#: Rows of the (9, N) float64 array of cars; the first six change with time.
STATION, LATERAL_ERROR, HEADING_ERROR, LATERAL_VELOCITY, YAW_RATE, STEERING, SPEED, OFFSET, ACCELERATION = range(9)
N_STATES, N_ROWS = 6, 9
#: Rows of the (5, N) float64 array of a step's outcome.
REWARD, ERROR, JERK, DISTANCE, CRASH = range(5)
N_OUTCOMES = 5

#: Cars side by side: two vectors of AVX-512, four of AVX2.
LANES = 16


class Vehicle(NamedTuple):
    """Parameters of the car: the sedan of Rajamani's examples, the steering's and the friction of a dry road."""

    mass: float = 1573.0
    """Mass in kg."""
    yaw_inertia: float = 2873.0
    """Yaw inertia in kg m^2."""
    front: float = 1.10
    """m, from the centre of gravity to the front axle."""
    rear: float = 1.58
    """m, from the centre of gravity to the rear axle."""
    front_stiffness: float = 160e3
    """N/rad, cornering stiffness of the front axle (two tyres of 80 kN/rad)."""
    rear_stiffness: float = 160e3
    """N/rad, cornering stiffness of the rear axle."""
    friction: float = 0.9
    """Friction coefficient of tyres and road; math.inf makes the tyres linear."""
    steering_lag: float = 0.2
    """s, time constant from the commanded to the actual angle of the front wheels."""
    max_steering: float = 0.15
    """rad at the front wheels, commanded by the actions 1 and -1."""


# Products and sums may be contracted, reciprocals kept: the same code computes one car and many, so these agree.
_OPTIONS: dict[str, Any] = dict(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "arcp", "nsz"})


def _compiled(function: Any) -> Any:
    return numba.njit(**_OPTIONS)(function)


def _inlined(function: Any) -> Any:
    return numba.njit(**_OPTIONS, inline="always")(function)


@_inlined
def axle_force(slip: float, stiffness: float, limit: float) -> float:
    """Return the lateral force of an axle in N, at a slip angle in rad; `limit` is what friction allows, in N."""
    linear = stiffness * slip
    return linear / math.sqrt(1.0 + (linear / limit) ** 2)


@_inlined
def lateral_forces(v_y: float, r: float, wheel: float, speed: float, vehicle: Vehicle) -> tuple[float, float]:
    """Return the forces of both axles in N, with the front wheels at `wheel` rad."""
    load = vehicle.friction * vehicle.mass * GRAVITY / (vehicle.front + vehicle.rear)
    slip_f = wheel - (v_y + vehicle.front * r) / speed
    slip_r = -(v_y - vehicle.rear * r) / speed
    return (
        axle_force(slip_f, vehicle.front_stiffness, load * vehicle.rear),
        axle_force(slip_r, vehicle.rear_stiffness, load * vehicle.front),
    )


@_inlined
def along(values: Floats, station: float) -> float:
    """Return a road's curvature or width at a station: linear between knots, from the start again after the last."""
    knot = station / KNOT_SPACING
    knot -= N_KNOTS * math.floor(knot / N_KNOTS)
    left = min(int(knot), N_KNOTS - 1)
    right = left + 1 if left + 1 < N_KNOTS else 0
    linear: float = values[left] + (values[right] - values[left]) * (knot - left)
    return linear


@_inlined
def sine_cosine(angle: float) -> tuple[float, float]:
    """Return sine and cosine to 5e-14, by their series in a quarter turn: a library call would not be vectorised."""
    half_turns = math.floor(angle / math.pi + 0.5)
    sign = 1.0 - 2.0 * (half_turns - 2.0 * math.floor(0.5 * half_turns))
    x = angle - half_turns * math.pi
    q = x * x
    sine = 1.0 - q / 272.0
    sine = 1.0 - q / 210.0 * sine
    sine = 1.0 - q / 156.0 * sine
    sine = 1.0 - q / 110.0 * sine
    sine = 1.0 - q / 72.0 * sine
    sine = 1.0 - q / 42.0 * sine
    sine = 1.0 - q / 20.0 * sine
    sine = 1.0 - q / 6.0 * sine
    cosine = 1.0 - q / 306.0
    cosine = 1.0 - q / 240.0 * cosine
    cosine = 1.0 - q / 182.0 * cosine
    cosine = 1.0 - q / 132.0 * cosine
    cosine = 1.0 - q / 90.0 * cosine
    cosine = 1.0 - q / 56.0 * cosine
    cosine = 1.0 - q / 30.0 * cosine
    cosine = 1.0 - q / 12.0 * cosine
    cosine = 1.0 - q / 2.0 * cosine
    return sign * x * sine, sign * cosine


@_inlined
def derivatives(
    e: float,
    psi: float,
    v_y: float,
    r: float,
    delta: float,
    command: float,
    speed: float,
    offset: float,
    kappa: float,
    vehicle: Vehicle,
) -> tuple[float, float, float, float, float, float]:
    """Return the rates of change of s, e, psi, v_y, r and delta: the equations above."""
    front, rear = lateral_forces(v_y, r, delta + offset, speed, vehicle)
    sine, cosine = sine_cosine(psi)
    ds = (speed * cosine - v_y * sine) / (1.0 - kappa * e)
    return (
        ds,
        speed * sine + v_y * cosine,
        r - kappa * ds,
        (front + rear) / vehicle.mass - speed * r,
        (vehicle.front * front - vehicle.rear * rear) / vehicle.yaw_inertia,
        (command - delta) / vehicle.steering_lag,
    )


@_inlined
def runge_kutta_stage(
    cars: Floats,
    at: Floats,
    slopes: Floats,
    kappa: Floats,
    command: Floats,
    h: Floats,
    ahead: float,
    weight: float,
    vehicle: Vehicle,
) -> None:
    """Add the slopes at `at`, weighted, to `slopes`; move `at` from the cars along them, `ahead` substeps.

    All are arrays over lanes: cars (9, LANES), at and slopes (6, LANES), the rest (LANES,).
    """
    for j in range(LANES):
        ds, de, dpsi, dv_y, dr, ddelta = derivatives(
            at[1, j], at[2, j], at[3, j], at[4, j], at[5, j],
            command[j], cars[SPEED, j], cars[OFFSET, j], kappa[j], vehicle,
        )  # fmt: skip
        slopes[0, j] += weight * ds
        slopes[1, j] += weight * de
        slopes[2, j] += weight * dpsi
        slopes[3, j] += weight * dv_y
        slopes[4, j] += weight * dr
        slopes[5, j] += weight * ddelta
        step = ahead * h[j]
        at[0, j] = cars[0, j] + step * ds
        at[1, j] = cars[1, j] + step * de
        at[2, j] = cars[2, j] + step * dpsi
        at[3, j] = cars[3, j] + step * dv_y
        at[4, j] = cars[4, j] + step * dr
        at[5, j] = cars[5, j] + step * ddelta


@_inlined
def substep(
    cars: Floats,
    at: Floats,
    slopes: Floats,
    kappa: Floats,
    command: Floats,
    h: Floats,
    curvatures: Floats,
    first: int,
    n_cars: int,
    vehicle: Vehicle,
) -> None:
    """Advance cars in lanes by h seconds each; where h is 0, a car stays as it is."""
    for row in range(N_STATES):
        for j in range(LANES):
            at[row, j] = cars[row, j]
            slopes[row, j] = 0.0
    for stage in range(4):
        for j in range(LANES):
            kappa[j] = along(curvatures[min(first + j, n_cars - 1)], at[STATION, j])
        inner = stage == 1 or stage == 2
        runge_kutta_stage(
            cars, at, slopes, kappa, command, h, 1.0 if stage == 2 else 0.5, 2.0 if inner else 1.0, vehicle
        )
    for row in range(N_STATES):
        for j in range(LANES):
            cars[row, j] += h[j] / 6.0 * slopes[row, j]


@_inlined
def lateral_acceleration(v_y: float, r: float, wheel: float, speed: float, vehicle: Vehicle) -> float:
    """Return the acceleration at the centre of gravity, to the left, in m/s^2."""
    front, rear = lateral_forces(v_y, r, wheel, speed, vehicle)
    acceleration: float = (front + rear) / vehicle.mass
    return acceleration


@_inlined
def reward(distance: float, speed: float, interval: float, lateral_error: float, lateral_jerk: float) -> float:
    """Return progress times centring times comfort, each from 0 to 1, in units of the standard interval.

    Args:
        distance: m driven along the road in this step.
        speed: m/s of the car.
        interval: s of this step.
        lateral_error: m at the end of the step.
        lateral_jerk: m/s^3, mean over the step.
    """
    progress = min(max(distance / (speed * interval), 0.0), 1.0)
    centring = 1.0 / (1.0 + (lateral_error / CENTRING_SCALE) ** 2)
    comfort = 1.0 / (1.0 + (lateral_jerk / COMFORT_SCALE) ** 2)
    value: float = progress * centring * comfort * interval / INTERVAL
    return value


@_compiled
def observe(cars: Floats, car: int, curvature: Floats, observation: npt.NDArray[np.float32]) -> None:
    """Fill (6,) float32: lateral error, heading error and the curvature at each of `PREVIEWS`, in their scales."""
    lateral, heading = cars[LATERAL_ERROR, car] / LATERAL_SCALE, cars[HEADING_ERROR, car] / HEADING_SCALE
    observation[0] = min(max(lateral, -OBSERVED_ERROR), OBSERVED_ERROR)
    observation[1] = min(max(heading, -OBSERVED_ERROR), OBSERVED_ERROR)
    for k, distance in enumerate(PREVIEWS):
        observation[2 + k] = along(curvature, cars[STATION, car] + distance) / CURVATURE_SCALE


@_inlined
def between(bounds: tuple[float, float], draw: float) -> float:
    """Return the uniform `draw` from [0, 1) between bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * draw


@_compiled
def begin(
    draws: Floats,
    car: int,
    vehicle: Vehicle,
    cars: Floats,
    curvature: Floats,
    outcome: Floats,
    observation: npt.NDArray[np.float32],
) -> None:
    """Put a car at the start of its road.

    Args:
        draws: (4 or more,) float64, uniform in [0, 1).
        car: Its column in `cars` and `outcome`.
        vehicle: Its parameters.
        cars: (9, N) float64, its column filled.
        curvature: (N_KNOTS,) float64, 1/m, of its road.
        outcome: (5, N) float64, its column filled.
        observation: (6,) float32, filled.
    """
    for row in range(N_ROWS):
        cars[row, car] = 0.0
    speed, offset = between(SPEEDS, draws[0]), between(OFFSETS, draws[1])
    cars[SPEED, car], cars[OFFSET, car] = speed, offset
    cars[LATERAL_ERROR, car], cars[HEADING_ERROR, car] = between(ERRORS, draws[2]), between(HEADINGS, draws[3])
    cars[ACCELERATION, car] = lateral_acceleration(0.0, 0.0, offset, speed, vehicle)
    for row in range(N_OUTCOMES):
        outcome[row, car] = 0.0
    outcome[ERROR, car] = cars[LATERAL_ERROR, car]
    observe(cars, car, curvature, observation)


@_inlined
def arrive(
    cars: Floats,
    car: int,
    lanes: Floats,
    lane: int,
    elapsed: float,
    curvature: Floats,
    width: Floats,
    vehicle: Vehicle,
    outcome: Floats,
    observation: npt.NDArray[np.float32],
) -> None:
    """Copy a car from its lane of the computation to its column of `cars`, and fill the outcome of the step."""
    driven, before = lanes[STATION, lane] - cars[STATION, car], cars[ACCELERATION, car]
    for row in range(N_STATES):
        cars[row, car] = lanes[row, lane]
    speed, error, station = cars[SPEED, car], cars[LATERAL_ERROR, car], cars[STATION, car]
    acceleration = lateral_acceleration(
        cars[LATERAL_VELOCITY, car], cars[YAW_RATE, car], cars[STEERING, car] + cars[OFFSET, car], speed, vehicle
    )
    jerk = (acceleration - before) / elapsed
    cars[ACCELERATION, car] = acceleration
    outcome[REWARD, car] = reward(driven, speed, elapsed, error, jerk)
    outcome[ERROR, car], outcome[JERK, car], outcome[DISTANCE, car] = error, jerk, station
    outcome[CRASH, car] = abs(error) > 0.5 * along(width, station)
    observe(cars, car, curvature, observation)


@_compiled
def drive(
    cars: Floats,
    curvatures: Floats,
    widths: Floats,
    actions: Floats,
    intervals: Floats,
    vehicle: Vehicle,
    outcome: Floats,
    observations: npt.NDArray[np.float32],
) -> int:
    """Drive N cars for an interval each, in equal substeps of at most `MAX_SUBSTEP`, or until they leave the lane.

    Args:
        cars: (9, N) float64, changed in place.
        curvatures: (N, N_KNOTS) float64, 1/m at the knots of each car's road.
        widths: (N, N_KNOTS) float64, m.
        actions: (N,) float64, from -1 (right) to 1 (left), cut there.
        intervals: (N,) float64, s.
        vehicle: Parameters of all cars.
        outcome: (5, N) float64, filled: reward; lateral error in m; lateral jerk in m/s^3, mean over the step; metres
            along the road since its start; 1 where the centre of gravity has left the lane.
        observations: (N, 6) float32, filled.

    Returns:
        -1, or the first car whose action is not finite: then no car has moved.
    """
    n_cars = cars.shape[1]
    for i in range(n_cars):
        if not math.isfinite(actions[i]):
            return i
    lanes, at, slopes = np.empty((N_ROWS, LANES)), np.empty((N_STATES, LANES)), np.empty((N_STATES, LANES))
    kappa, command, h, left, elapsed = (
        np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES),
    )  # fmt: skip
    for first in range(0, n_cars, LANES):
        n_substeps = 1
        for j in range(LANES):
            # The lanes beyond the last car repeat it.
            i = min(first + j, n_cars - 1)
            for row in range(N_ROWS):
                lanes[row, j] = cars[row, i]
            command[j] = vehicle.max_steering * min(max(actions[i], -1.0), 1.0)
            left[j] = max(math.ceil(intervals[i] / MAX_SUBSTEP - 1e-9), 1)
            n_substeps = max(n_substeps, int(left[j]))
            h[j] = intervals[i] / left[j]
            elapsed[j] = 0.0
        for _ in range(n_substeps):
            substep(lanes, at, slopes, kappa, command, h, curvatures, first, n_cars, vehicle)
            for j in range(LANES):
                i = min(first + j, n_cars - 1)
                elapsed[j] += h[j]
                left[j] -= 1.0
                if left[j] == 0.0 or abs(lanes[LATERAL_ERROR, j]) > 0.5 * along(widths[i], lanes[STATION, j]):
                    h[j] = 0.0
        for j in range(min(LANES, n_cars - first)):
            i = first + j
            arrive(cars, i, lanes, j, elapsed[j], curvatures[i], widths[i], vehicle, outcome, observations[i])
    return -1
