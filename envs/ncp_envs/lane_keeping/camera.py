"""The forward camera: every pixel is projected onto the ground plane, and painted by where on the road it falls.

The camera looks ahead and a little down. The ray through the middle of pixel (u, v), in metres ahead, to the left and
up, is

    (cos p, 0, -sin p) + (u + 1/2 - c_u) / f (0, -1, 0) + (v + 1/2 - c_v) / f (-sin p, 0, -cos p)

with the pitch p, the focal length f and the image's centre (c_u, c_v) in pixels; it meets the ground where it has
fallen by the camera's height. What lies there follows from the station along the road and the offset from the lane's
middle, found from the nearest point of the centreline. Edges are softened over a pixel's width on the ground.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ncp_envs.lane_keeping import road
from ncp_envs.lane_keeping.dynamics import HEADING_ERROR, LATERAL_ERROR, STATION
from ncp_envs.lane_keeping.simulation import Simulation

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 48, 160
#: Pixels, radians, and metres above the ground and ahead of the centre of gravity.
FOCAL, PITCH, CAMERA_HEIGHT, CAMERA_AHEAD = 90.0, 0.1, 1.3, 1.0
#: Metres of road along which ground is painted as road, from behind the car, sampled at every metre.
BEHIND, AHEAD, SAMPLE = 6.0, 95.0, 1.0
#: Metres: a line's width, asphalt beyond the outer lines, a dash of the middle line and its period.
LINE, SHOULDER, DASH, PERIOD = 0.15, 0.4, 4.0, 10.0
#: Lines at -1/2, 1/2 and 3/2 of the lane's width from its middle; the middle one is dashed.
RIGHT, MIDDLE, LEFT = range(3)
#: Metres of the pieces in which lines are missing or shadows lie, and of the stripes of the grass.
PIECE, SHADE, STRIPE = 15.0, 9.0, 8.0
#: Rows of a course.
X, Y, SINE, COSINE, CURVATURE, LANE, ALONG = range(7)
#: Share of the pieces of ground that lie in shadow; slope of a ray that still counts as meeting the ground.
SHADED, MIN_FALL = 0.4, 0.01
#: Samples that the search for the nearest one passes at most, from one pixel to the next.
MAX_WALK = 16
#: Metres over which haze takes all but 1/e of the colour.
HAZE = 160.0
#: Red, green, blue.
GRASS, ASPHALT, PAINT = (92.0, 124.0, 74.0), (92.0, 94.0, 100.0), (240.0, 240.0, 232.0)
HORIZON, ZENITH = (206.0, 216.0, 226.0), (120.0, 160.0, 214.0)


@dataclass(frozen=True)
class Frame:
    """The part of the picture that is observed."""

    rows: tuple[int, int] = (0, HEIGHT)
    """First row and the row after the last one; the road lies below row 16."""
    pool: int = 1
    """Side of the squares of pixels whose mean is observed."""

    def __post_init__(self) -> None:
        """Refuse rows and squares that do not fit the picture."""
        top, bottom = self.rows
        object.__setattr__(self, "rows", (top, bottom))
        if not 0 <= top < bottom <= HEIGHT:
            raise ValueError(f"rows must be two ascending numbers from 0 to {HEIGHT}, got {self.rows}.")
        if self.pool < 1 or (bottom - top) % self.pool or WIDTH % self.pool:
            raise ValueError(f"pool must divide {bottom - top} rows and {WIDTH} columns, got {self.pool}.")

    @property
    def space(self) -> spaces.Box:
        """The space of an observation."""
        return spaces.Box(0, 255, ((self.rows[1] - self.rows[0]) // self.pool, WIDTH // self.pool, 3), np.uint8)

    def cut(self, images: Images) -> Images:
        """Cut (N, HEIGHT, WIDTH, 3) pictures to (N, h, w, 3) uint8, rounded means of the squares."""
        images = images[:, self.rows[0] : self.rows[1]]
        if self.pool == 1:
            return images
        means = np.empty((len(images), *self.space.shape), dtype=np.uint8)
        average(images, self.pool, means)
        return means


@dataclass(frozen=True)
class PictureDisturbances:
    """Levels of a picture's disturbances from 0 (none) to 1; their random values are drawn anew for each episode."""

    light: float = 0.0
    """Brightness is multiplied by a factor between 1 - 0.8 light and 1 + 0.8 light."""
    shadow: float = 0.0
    """Bands of shadow across the road take up to 0.8 shadow of its light."""
    noise: float = 0.0
    """Noise of each pixel and colour, nearly normal, has a standard deviation of 64 noise, of 255."""
    missing_markings: float = 0.0
    """Share of the pieces of lane lines that are missing."""

    def __post_init__(self) -> None:
        """Refuse numbers that are not from 0 to 1."""
        for name, level in vars(self).items():
            if not 0.0 <= level <= 1.0:
                raise ValueError(f"{name} must be a level from 0 to 1, got {level}.")


def look(simulation: Simulation, disturbances: PictureDisturbances | Sequence[PictureDisturbances]) -> Images:
    """Return the pictures of the cameras of all cars.

    Args:
        simulation: N cars.
        disturbances: Levels for all pictures, or N of them, one for each car.

    Returns:
        (N, HEIGHT, WIDTH, 3) uint8, red, green, blue.
    """
    state, curvatures = simulation.cars, simulation.curvatures
    stations = state[STATION][:, None] + np.arange(-BEHIND, AHEAD + SAMPLE, SAMPLE)
    x, y, heading = road.course(curvatures, simulation.headings, stations)
    # From the first sample's frame to the car's, which is beside sample `at`, to the left and turned.
    at = round(BEHIND / SAMPLE)
    turn = state[HEADING_ERROR] + heading[:, at]
    left = heading[:, at]
    car_x = x[:, at] - state[LATERAL_ERROR] * np.sin(left)
    car_y = y[:, at] + state[LATERAL_ERROR] * np.cos(left)
    x, y = x - car_x[:, None], y - car_y[:, None]
    sine, cosine = np.sin(turn)[:, None], np.cos(turn)[:, None]
    course = np.stack(
        [
            cosine * x + sine * y,
            cosine * y - sine * x,
            np.sin(heading - turn[:, None]),
            np.cos(heading - turn[:, None]),
            road.at(curvatures, stations),
            road.at(simulation.widths, stations),
            stations,
        ],
        axis=1,
    )
    images = np.empty((len(stations), HEIGHT, WIDTH, 3), dtype=np.uint8)
    each = [disturbances] * len(stations) if isinstance(disturbances, PictureDisturbances) else disturbances
    levels = np.array([astuple(of_car) for of_car in each], dtype=np.float64)
    paint(course, simulation.scenes, simulation.steps, levels, images)
    return images


def _compiled(function: Any) -> Any:
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "arcp", "nsz"})(function)


@_compiled
def average(images: Images, pool: int, means: Images) -> None:
    """Fill (N, h, w, 3) with the rounded means of squares of `pool` pixels of (N, h pool, w pool, 3) pictures."""
    area = pool * pool
    for n in range(means.shape[0]):
        for v in range(means.shape[1]):
            for u in range(means.shape[2]):
                for c in range(3):
                    total = area // 2
                    for j in range(v * pool, (v + 1) * pool):
                        for i in range(u * pool, (u + 1) * pool):
                            total += int(images[n, j, i, c])
                    means[n, v, u, c] = total // area


@_compiled
def soft(inside: float, pixel: float) -> float:
    """Return how much of a pixel is covered, whose middle lies `inside` metres within an edge; `pixel` is its size."""
    return min(max(inside / pixel + 0.5, 0.0), 1.0)


@_compiled
def mix(scene: np.uint64, a: np.uint64, b: np.uint64) -> np.uint64:
    """Hash a scene and two numbers to 64 bits by the finalizer of SplitMix64 (Steele, Lea, Flood, 2014)."""
    z = scene + a * np.uint64(0x9E3779B97F4A7C15) + b * np.uint64(0xD1B54A32D192ED03)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_compiled
def uniform(scene: np.uint64, a: int, b: int) -> float:
    """Return a number in [0, 1) that belongs to a scene and two integers."""
    return float(mix(scene, np.uint64(a), np.uint64(b)) >> np.uint64(11)) / 2.0**53


@_compiled
def line_cover(
    scene: np.uint64, line: int, inside: float, pixel: float, station: float, length: float, missing: float
) -> float:
    """Return how much of a pixel a lane line covers, `inside` metres within it; 0 where this piece of it is missing.

    The pixel is `pixel` metres wide across the line and `length` metres long along it.
    """
    cover: float = soft(inside, pixel)
    if cover == 0.0:
        return 0.0
    # A pixel that is wider than the line holds all of it.
    cover *= min(1.0, LINE / pixel)
    if line == MIDDLE:
        phase = station - PERIOD * math.floor(station / PERIOD)
        cover *= soft(min(phase, DASH - phase), length)
    if missing > 0.0 and uniform(scene, 1 + line, math.floor(station / PIECE)) < missing:
        return 0.0
    return cover


@_compiled
def paint_sky(pixels: Images, fall: float, gain: float) -> None:
    """Fill a row of pixels, (WIDTH, 3), whose rays rise by -fall for each metre ahead."""
    blend = min(max(-fall / 0.2, 0.0), 1.0)
    for u in range(WIDTH):
        for c in range(3):
            pixels[u, c] = int(min(gain * (HORIZON[c] + blend * (ZENITH[c] - HORIZON[c])), 255.0) + 0.5)


@_compiled
def nearest(course: Floats, sample: int, ahead: float, side: float) -> int:
    """Return the sample of the centreline that is nearest to a point; beyond the middle of a bend there is none."""
    last = course.shape[1] - 1
    for _ in range(MAX_WALK):
        dx, dy = ahead - course[X, sample], side - course[Y, sample]
        forth = dx * course[COSINE, sample] + dy * course[SINE, sample]
        following = sample + 1 if forth > 0.0 else sample - 1
        if abs(forth) <= 0.5 * SAMPLE or following < 0 or following > last:
            break
        sample = following
    return sample


@_compiled
def paint_ground(
    pixels: Images,
    u: int,
    course: Floats,
    sample: int,
    ahead: float,
    side: float,
    across: float,
    length: float,
    haze: float,
    scene: np.uint64,
    gain: float,
    shadow: float,
    missing: float,
) -> None:
    """Fill pixel u of a row, (WIDTH, 3): `across` by `length` metres of ground, `ahead` of the car and to its left.

    `haze` is the share of its colour that haze takes, `gain` a factor of brightness.
    """
    sine, cosine, kappa = course[SINE, sample], course[COSINE, sample], course[CURVATURE, sample]
    dx, dy = ahead - course[X, sample], side - course[Y, sample]
    offset = dy * cosine - dx * sine
    # From the tangent at the sample to the arc.
    along = (dx * cosine + dy * sine) / (1.0 - kappa * offset)
    offset -= 0.5 * kappa * along * along * (1.0 - kappa * offset)
    station, half = course[ALONG, sample] + along, 0.5 * course[LANE, sample]
    road_cover = lines = 0.0
    if abs(along) <= SAMPLE:
        road_cover = soft(3.0 * half + SHOULDER - offset, across) * soft(offset + half + SHOULDER, across)
    if road_cover > 0.0:
        # The pixel's size across the lines.
        size = across * abs(cosine) + length * abs(side / ahead * cosine - sine)
        lines += line_cover(scene, RIGHT, 0.5 * LINE - abs(offset + half), size, station, length, missing)
        lines += line_cover(scene, MIDDLE, 0.5 * LINE - abs(offset - half), size, station, length, missing)
        lines += line_cover(scene, LEFT, 0.5 * LINE - abs(offset - 3.0 * half), size, station, length, missing)
    marked = road_cover * min(lines, 1.0)
    stripe = 0.04 if math.floor(station / STRIPE) % 2 == 0 else -0.04
    dark = 1.0
    if shadow > 0.0 and uniform(scene, 4, math.floor((station + 0.4 * offset) / SHADE)) < SHADED:
        dark = 1.0 - 0.8 * shadow
    for c in range(3):
        color = GRASS[c] * (1.0 + stripe)
        color += road_cover * (ASPHALT[c] - color)
        color += marked * (PAINT[c] - color)
        color *= dark
        color += haze * (HORIZON[c] - color)
        pixels[u, c] = int(min(gain * color, 255.0) + 0.5)


@_compiled
def paint(
    courses: Floats,
    scenes: npt.NDArray[np.uint64],
    steps: npt.NDArray[np.int64],
    disturbances: Floats,
    images: Images,
) -> None:
    """Paint N pictures.

    Args:
        courses: (N, 7, M) float64: x, y and heading (sine, cosine) of the centreline seen from the car, its curvature,
            the lane's width and the station, sampled along the road.
        scenes: (N,) uint64, whatever is random in a picture follows from it.
        steps: (N,) int64, since the start of the episode: noise is new at each.
        disturbances: (N, 4) float64, levels of light, shadow, noise and missing markings.
        images: (N, HEIGHT, WIDTH, 3) uint8, filled.
    """
    for n in range(courses.shape[0]):
        light, shadow, noise, missing = disturbances[n]
        # Taken out of the loops over pixels: Numba counts references to each slice of an array.
        course, image, scene, start = courses[n], images[n], scenes[n], 0
        gain = 1.0 + 0.8 * light * (2.0 * uniform(scene, 0, 0) - 1.0)
        for v in range(HEIGHT - 1, -1, -1):
            slope = (v + 0.5 - 0.5 * HEIGHT) / FOCAL
            fall = math.sin(PITCH) + slope * math.cos(PITCH)
            if fall <= MIN_FALL:
                paint_sky(image[v], fall, gain)
                continue
            depth = CAMERA_HEIGHT / fall
            ahead = CAMERA_AHEAD + depth * (math.cos(PITCH) - slope * math.sin(PITCH))
            # A pixel's size on the ground, to the side and ahead.
            across, length = depth / FOCAL, depth * depth / (CAMERA_HEIGHT * FOCAL)
            haze, sample, pixels = 1.0 - math.exp(-ahead / HAZE), start, image[v]
            for u in range(WIDTH):
                side = -across * (u + 0.5 - 0.5 * WIDTH)
                sample = nearest(course, sample, ahead, side)
                start = sample if u == 0 else start
                paint_ground(pixels, u, course, sample, ahead, side, across, length, haze, scene, gain, shadow, missing)
        if noise > 0.0:
            add_noise(image, scene, steps[n], 64.0 * noise)


@_compiled
def add_noise(image: Images, scene: np.uint64, step: int, deviation: float) -> None:
    """Add noise to each pixel and colour: sums of four uniform numbers of ten bits, nearly normal."""
    unit = deviation / math.sqrt(4.0 * (1024.0**2 - 1.0) / 12.0)
    ten = np.uint64(1023)
    for v in range(HEIGHT):
        for u in range(WIDTH):
            for c in range(3):
                bits = mix(scene, np.uint64(5 + step), np.uint64((v * WIDTH + u) * 3 + c))
                total = (bits & ten) + ((bits >> np.uint64(10)) & ten) + ((bits >> np.uint64(20)) & ten)
                total += (bits >> np.uint64(30)) & ten
                image[v, u, c] = int(min(max(image[v, u, c] + unit * (np.int64(total) - 2046), 0.0), 255.0) + 0.5)
