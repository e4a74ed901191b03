"""What a step computes for each car: motion, reward and observation, compiled.

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

All compiled functions are in this file, since Numba's cache looks at the file of the called kernel only.
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

#: Seconds between observations, unless an environment's `interval` says otherwise.
INTERVAL = 0.05
#: m and m/s^3: the lateral error and the lateral jerk that each halve the reward.
CENTRING_SCALE, COMFORT_SCALE = 0.4, 5.0
#: Metres ahead of the car at which it observes the road's curvature.
PREVIEWS = (0.0, 10.0, 20.0, 30.0)
#: What an observed 1 means: m, rad, 1/m.
LATERAL_SCALE, HEADING_SCALE, CURVATURE_SCALE = 2.0, 0.5, 0.02
#: Lateral and heading error are cut here, in scales: a car on its lane does not get so far.
OBSERVED_ERROR = 1.5

#: Columns of the (N, 9) float64 array of cars.
STATION, LATERAL_ERROR, HEADING_ERROR, LATERAL_VELOCITY, YAW_RATE, STEERING, SPEED, OFFSET, ACCELERATION = range(9)
N_COLUMNS = 9
#: Rows of the (5, N) float64 array of what came of a step.
REWARD, ERROR, JERK, DISTANCE, CRASH = range(5)
N_ROWS = 5


class Vehicle(NamedTuple):
    """Parameters of the car: the sedan of Rajamani's examples, the steering's and the friction of a dry road."""

    mass: float = 1573.0
    """kg."""
    yaw_inertia: float = 2873.0
    """kg m^2."""
    front: float = 1.10
    """m, from the centre of gravity to the front axle."""
    rear: float = 1.58
    """m, to the rear axle."""
    front_stiffness: float = 160e3
    """N/rad, cornering stiffness of the front axle (two tyres of 80 kN/rad)."""
    rear_stiffness: float = 160e3
    """N/rad, of the rear axle."""
    friction: float = 0.9
    """Of tyres and road; math.inf makes the tyres linear."""
    steering_lag: float = 0.2
    """s, time constant from the commanded to the actual angle of the front wheels."""
    max_steering: float = 0.15
    """rad at the front wheels, commanded by the actions 1 and -1."""


def _compiled(function: Any) -> Any:
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


@_compiled
def axle_force(slip: float, stiffness: float, limit: float) -> float:
    """Lateral force of an axle in N, at a slip angle in rad; `limit` is what friction allows, in N."""
    linear = stiffness * slip
    return linear / math.sqrt(1.0 + (linear / limit) ** 2)


@_compiled
def lateral_forces(v_y: float, r: float, wheel: float, speed: float, vehicle: Vehicle) -> tuple[float, float]:
    """Forces of both axles in N, with the front wheels at `wheel` rad."""
    load = vehicle.friction * vehicle.mass * GRAVITY / (vehicle.front + vehicle.rear)
    slip_f = wheel - (v_y + vehicle.front * r) / speed
    slip_r = -(v_y - vehicle.rear * r) / speed
    return (
        axle_force(slip_f, vehicle.front_stiffness, load * vehicle.rear),
        axle_force(slip_r, vehicle.rear_stiffness, load * vehicle.front),
    )


@_compiled
def along(values: Floats, station: float) -> float:
    """A road's curvature or width at a station: linear between knots, from the start again after the last."""
    knot = station / KNOT_SPACING
    knot -= values.shape[0] * math.floor(knot / values.shape[0])
    index = min(int(knot), values.shape[0] - 1)
    following = index + 1 if index + 1 < values.shape[0] else 0
    linear: float = values[index] + (values[following] - values[index]) * (knot - index)
    return linear


@_compiled
def derivatives(
    s: float,
    e: float,
    psi: float,
    v_y: float,
    r: float,
    delta: float,
    command: float,
    speed: float,
    offset: float,
    curvature: Floats,
    vehicle: Vehicle,
) -> tuple[float, float, float, float, float, float]:
    """Rates of change of the first six arguments: the equations above."""
    front, rear = lateral_forces(v_y, r, delta + offset, speed, vehicle)
    kappa = along(curvature, s)
    sin, cos = math.sin(psi), math.cos(psi)
    ds = (speed * cos - v_y * sin) / (1.0 - kappa * e)
    return (
        ds,
        speed * sin + v_y * cos,
        r - kappa * ds,
        (front + rear) / vehicle.mass - speed * r,
        (vehicle.front * front - vehicle.rear * rear) / vehicle.yaw_inertia,
        (command - delta) / vehicle.steering_lag,
    )


@_compiled
def substep(car: Floats, command: float, h: float, curvature: Floats, vehicle: Vehicle) -> None:
    """Advance one car by h seconds with the classic Runge-Kutta method of fourth order."""
    s, e, psi, v_y, r, delta, v, o = car[0], car[1], car[2], car[3], car[4], car[5], car[SPEED], car[OFFSET]
    a = derivatives(s, e, psi, v_y, r, delta, command, v, o, curvature, vehicle)
    g = 0.5 * h
    b = derivatives(
        s + g * a[0], e + g * a[1], psi + g * a[2], v_y + g * a[3], r + g * a[4], delta + g * a[5],
        command, v, o, curvature, vehicle,
    )  # fmt: skip
    c = derivatives(
        s + g * b[0], e + g * b[1], psi + g * b[2], v_y + g * b[3], r + g * b[4], delta + g * b[5],
        command, v, o, curvature, vehicle,
    )  # fmt: skip
    d = derivatives(
        s + h * c[0], e + h * c[1], psi + h * c[2], v_y + h * c[3], r + h * c[4], delta + h * c[5],
        command, v, o, curvature, vehicle,
    )  # fmt: skip
    for i in range(6):
        car[i] += h / 6.0 * (a[i] + 2.0 * b[i] + 2.0 * c[i] + d[i])


@_compiled
def lateral_acceleration(car: Floats, vehicle: Vehicle) -> float:
    """m/s^2 at the centre of gravity, to the left."""
    front, rear = lateral_forces(car[LATERAL_VELOCITY], car[YAW_RATE], car[STEERING] + car[OFFSET], car[SPEED], vehicle)
    return (front + rear) / vehicle.mass


@_compiled
def reward(distance: float, speed: float, interval: float, lateral_error: float, lateral_jerk: float) -> float:
    """Progress times centring times comfort, each from 0 to 1, in units of the standard interval.

    Args:
        distance: m driven along the road in this step.
        speed: m/s of the car.
        interval: s of this step.
        lateral_error: m at its end.
        lateral_jerk: m/s^3, mean over the step.
    """
    progress = min(max(distance / (speed * interval), 0.0), 1.0)
    centring = 1.0 / (1.0 + (lateral_error / CENTRING_SCALE) ** 2)
    comfort = 1.0 / (1.0 + (lateral_jerk / COMFORT_SCALE) ** 2)
    return progress * centring * comfort * interval / INTERVAL


@_compiled
def observe(car: Floats, curvature: Floats, observation: npt.NDArray[np.float32]) -> None:
    """Fill (6,) float32: lateral error, heading error and the curvature at each of `PREVIEWS`, in their scales."""
    lateral, heading = car[LATERAL_ERROR] / LATERAL_SCALE, car[HEADING_ERROR] / HEADING_SCALE
    observation[0] = min(max(lateral, -OBSERVED_ERROR), OBSERVED_ERROR)
    observation[1] = min(max(heading, -OBSERVED_ERROR), OBSERVED_ERROR)
    for k, distance in enumerate(PREVIEWS):
        observation[2 + k] = along(curvature, car[STATION] + distance) / CURVATURE_SCALE


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
        cars: (N, 9) float64, changed in place.
        curvatures: (N, K) float64, 1/m at the knots of each car's road.
        widths: (N, K) float64, m.
        actions: (N,) float64, from -1 (right) to 1 (left), cut there.
        intervals: (N,) float64, s.
        vehicle: Parameters of all cars.
        outcome: (5, N) float64, filled: reward; lateral error in m; lateral jerk in m/s^3, mean over the step; metres
            along the road since its start; 1 where the centre of gravity has left the lane.
        observations: (N, 6) float32, filled.

    Returns:
        -1, or the first car whose action is not finite: then no car has moved.
    """
    for i in range(cars.shape[0]):
        if not math.isfinite(actions[i]):
            return i
    for i in range(cars.shape[0]):
        car, curvature, width = cars[i], curvatures[i], widths[i]
        command = vehicle.max_steering * min(max(actions[i], -1.0), 1.0)
        start, acceleration = car[STATION], car[ACCELERATION]
        n_substeps = max(math.ceil(intervals[i] / MAX_SUBSTEP - 1e-9), 1)
        h = intervals[i] / n_substeps
        elapsed, crash = 0.0, False
        for _ in range(n_substeps):
            substep(car, command, h, curvature, vehicle)
            elapsed += h
            crash = abs(car[LATERAL_ERROR]) > 0.5 * along(width, car[STATION])
            if crash:
                break
        car[ACCELERATION] = lateral_acceleration(car, vehicle)
        outcome[ERROR, i] = car[LATERAL_ERROR]
        outcome[JERK, i] = (car[ACCELERATION] - acceleration) / elapsed
        outcome[DISTANCE, i] = car[STATION]
        outcome[CRASH, i] = crash
        outcome[REWARD, i] = reward(
            distance=car[STATION] - start,
            speed=car[SPEED],
            interval=elapsed,
            lateral_error=car[LATERAL_ERROR],
            lateral_jerk=outcome[JERK, i],
        )
        observe(car, curvature, observations[i])
    return -1
