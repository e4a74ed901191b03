"""Roads of straights, arcs and the clothoids that join them, and their course in the plane.

The curvature of a road is linear between knots that lie `KNOT_SPACING` metres apart: a clothoid, an arc where both
knots are equal, a straight where both are zero. So is the width of its lane. After `LENGTH` metres both repeat, so
that no road ends under a car.

| Limit                                | Value                                                       |
|--------------------------------------|-------------------------------------------------------------|
| Curvature of an arc                  | 0.004 to 0.02 1/m, radii of 250 to 50 m                     |
| Length of a clothoid                 | 15 to 40 m                                                  |
| Length of an arc or a straight       | 10 to 50 m                                                  |
| Width of the lane                    | 3.0 to 4.0 m, in waves of 0 to 0.4 m and 125 m or longer    |
| Heading against the start, first lap | -pi/2 to pi/2: a road does not cross itself                 |
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from ncp_envs.lane_keeping.dynamics import KNOT_SPACING, N_KNOTS

Floats = npt.NDArray[np.float64]

LENGTH = N_KNOTS * KNOT_SPACING
MIN_CURVATURE, MAX_CURVATURE = 0.004, 0.02
MIN_WIDTH, MAX_WIDTH, MAX_WAVE, MAX_WAVES = 3.0, 4.0, 0.2, 8
MAX_HEADING = math.pi / 2
#: Share of straights among arcs and straights.
STRAIGHTS = 0.2
#: The least and the greatest number of knots of a clothoid, and of what lies between two.
CLOTHOID, ELEMENT = (3, 8), (2, 10)
#: Knots of the straight with which a road begins, and of the way back to straight with which it ends.
START, END = 4, 9

#: Uniform draws of a road: four of the width, and four for each element and the last, which does not fit any more.
N_DRAWS = 4 + 4 * (N_KNOTS // (CLOTHOID[0] + ELEMENT[0]) + 1)


@numba.njit(cache=True, error_model="numpy")
def lay(draws: Floats, curvature: Floats, heading: Floats, width: Floats) -> None:
    """Lay a road.

    Args:
        draws: (N_DRAWS,) float64, uniform in [0, 1).
        curvature: (N_KNOTS,) float64, filled, 1/m, positive to the left.
        heading: (N_KNOTS + 1,) float64, filled, rad against the start; the last is the first of the next lap.
        width: (N_KNOTS,) float64, filled, m.
    """
    wave = MAX_WAVE * draws[0]
    middle = MIN_WIDTH + wave + draws[1] * (MAX_WIDTH - MIN_WIDTH - 2.0 * wave)
    waves, phase = 1 + int(draws[2] * MAX_WAVES), 2.0 * math.pi * draws[3]
    # Sines of evenly spaced angles, each from the two before it.
    step = 2.0 * math.pi * waves / N_KNOTS
    before, now = math.sin(phase - step), math.sin(phase)
    for k in range(N_KNOTS):
        width[k] = middle + wave * now
        before, now = now, 2.0 * math.cos(step) * now - before

    curvature[:] = 0.0
    knot, draw, course, bend = START, 4, 0.0, 0.0
    while True:
        clothoid = CLOTHOID[0] + int(draws[draw] * (CLOTHOID[1] - CLOTHOID[0] + 1))
        element = ELEMENT[0] + int(draws[draw + 1] * (ELEMENT[1] - ELEMENT[0] + 1))
        size = MIN_CURVATURE + draws[draw + 2] * (MAX_CURVATURE - MIN_CURVATURE)
        side = draws[draw + 3]
        draw += 4
        if knot + clothoid + element + END > N_KNOTS:
            break
        target = 0.0 if side < STRAIGHTS else size if side < 0.5 * (1.0 + STRAIGHTS) else -size
        # What the way to `target`, the element and the longest way back to straight turn, to either side.
        onto = course + 0.5 * clothoid * bend * KNOT_SPACING
        along = (0.5 * clothoid + element + 0.5 * CLOTHOID[1]) * target * KNOT_SPACING
        if abs(onto + along) > MAX_HEADING:
            target = -target if abs(onto - along) <= MAX_HEADING else 0.0
        for k in range(clothoid):
            curvature[knot + k] = bend + (target - bend) * (k + 1) / clothoid
        for k in range(clothoid, clothoid + element):
            curvature[knot + k] = target
        course += (0.5 * clothoid * (bend + target) + element * target) * KNOT_SPACING
        knot, bend = knot + clothoid + element, target
    for k in range(CLOTHOID[1]):
        curvature[knot + k] = bend * (1.0 - (k + 1) / CLOTHOID[1])

    heading[0] = 0.0
    for k in range(N_KNOTS):
        heading[k + 1] = heading[k] + 0.5 * (curvature[k] + curvature[(k + 1) % N_KNOTS]) * KNOT_SPACING


def at(values: Floats, stations: Floats) -> Floats:
    """Return the curvature or width of N roads, each at M stations of its own: (N, N_KNOTS) and (N, M) -> (N, M)."""
    knots = np.mod(stations, LENGTH) / KNOT_SPACING
    left = np.minimum(knots.astype(np.int64), N_KNOTS - 1)
    start, end = np.take_along_axis(values, left, 1), np.take_along_axis(values, (left + 1) % N_KNOTS, 1)
    linear: Floats = start + (end - start) * (knots - left)
    return linear


def headings_at(curvatures: Floats, headings: Floats, stations: Floats) -> Floats:
    """Return the heading of N roads, each at M stations of its own, exactly.

    Args:
        curvatures: (N, N_KNOTS) float64, 1/m.
        headings: (N, N_KNOTS + 1) float64, rad.
        stations: (N, M) float64, m.

    Returns:
        (N, M) float64, rad.
    """
    laps, within = np.divmod(stations, LENGTH)
    knots = within / KNOT_SPACING
    left = np.minimum(knots.astype(np.int64), N_KNOTS - 1)
    u = (knots - left) * KNOT_SPACING
    start = np.take_along_axis(curvatures, left, axis=1)
    slope = (np.take_along_axis(curvatures, (left + 1) % N_KNOTS, axis=1) - start) / KNOT_SPACING
    exact: Floats = laps * headings[:, -1:] + np.take_along_axis(headings, left, axis=1) + u * (start + 0.5 * slope * u)
    return exact


def course(curvatures: Floats, headings: Floats, stations: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the centrelines of N roads at M stations each, evenly spaced, against the first: it lies at 0, 0, along x.

    The midpoint rule between stations errs by at most (step * curvature)^2 / 24 of the way.

    Returns:
        x, y: (N, M) float64, m, y to the left.
        heading: (N, M) float64, rad.
    """
    turned = headings_at(curvatures, headings, stations)
    step = stations[:, 1:] - stations[:, :-1]
    middle = headings_at(curvatures, headings, stations[:, :-1] + 0.5 * step) - turned[:, :1]
    x, y = np.zeros_like(stations), np.zeros_like(stations)
    np.cumsum(step * np.cos(middle), axis=1, out=x[:, 1:])
    np.cumsum(step * np.sin(middle), axis=1, out=y[:, 1:])
    return x, y, turned - turned[:, :1]
