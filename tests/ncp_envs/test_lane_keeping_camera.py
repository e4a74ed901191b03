"""The lane keeping camera: where points of the ground appear, and what its disturbances do."""

from __future__ import annotations

import gymnasium as gym
import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import numpy.typing as npt
import pytest
from ncp_envs.lane_keeping import camera, road
from ncp_envs.lane_keeping.camera import PictureDisturbances, look
from ncp_envs.lane_keeping.dynamics import HEADING_ERROR, LATERAL_ERROR, STATION
from ncp_envs.lane_keeping.simulation import Simulation

ID = "ncp/LaneKeepingCamera-v0"
Floats = npt.NDArray[np.float64]


def project(points: Floats) -> Floats:
    """(P, 2) metres ahead and to the left of the car, on the ground -> (P, 2) column and row, by K [R | t]."""
    sin, cos = np.sin(camera.PITCH), np.cos(camera.PITCH)
    rotation = np.array([[0.0, -1.0, 0.0], [-sin, 0.0, -cos], [cos, 0.0, -sin]])
    intrinsic = np.array([[camera.FOCAL, 0, camera.WIDTH / 2], [0, camera.FOCAL, camera.HEIGHT / 2], [0, 0, 1.0]])
    world = np.column_stack([points, np.zeros(len(points))]) - [camera.CAMERA_AHEAD, 0, camera.CAMERA_HEIGHT]
    image = world @ rotation.T @ intrinsic.T
    pixels: Floats = image[:, :2] / image[:, 2:]
    return pixels


def driven(n_cars: int = 6) -> Simulation:
    """Cars somewhere on their roads, not quite in the middle, nor straight."""
    simulation, rng = Simulation(n_cars), np.random.default_rng(0)
    for i in range(n_cars):
        simulation.start(i, np.random.default_rng(i))
    simulation.cars[STATION] = rng.uniform(0, 900, n_cars)
    simulation.cars[LATERAL_ERROR] = rng.uniform(-1, 1, n_cars)
    simulation.cars[HEADING_ERROR] = rng.uniform(-0.1, 0.1, n_cars)
    return simulation


def test_the_right_line_is_where_the_formula_says() -> None:
    """The line's points on the ground come from the road's course alone, their pixels from the camera's matrix."""
    simulation = driven()
    images = look(simulation, PictureDisturbances()).astype(np.int64)
    seen = 0
    for i, image in enumerate(images):
        one = slice(i, i + 1)
        station, error, turn = simulation.cars[[STATION, LATERAL_ERROR, HEADING_ERROR], i]
        stations = station + np.arange(0.0, 20.0, 0.05)[None]
        x, y, heading = (
            values[0] for values in road.course(simulation.curvatures[one], simulation.headings[one], stations)
        )
        edge = -0.5 * road.at(simulation.widths[one], stations)[0]
        x, y = x - edge * np.sin(heading), y + edge * np.cos(heading) - error
        points = np.column_stack([x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)])
        pixels = project(points[points[:, 0] > 4.0])
        for row in range(28, 46):
            column = pixels[np.argmin(np.abs(pixels[:, 1] - (row + 0.5))), 0]
            if not 8 <= column <= camera.WIDTH - 8:
                continue
            brightness = image[row].sum(axis=1)
            around = np.arange(int(column) - 6, int(column) + 7)
            excess = np.maximum(brightness[around] - 400, 0)
            assert (excess @ (around + 0.5)) / excess.sum() == pytest.approx(column, abs=0.6)
            seen += 1
    assert seen > 40


def test_the_horizon_parts_sky_and_ground() -> None:
    image = look(driven(1), PictureDisturbances())[0].astype(np.int64)
    horizon = camera.HEIGHT / 2 - camera.FOCAL * np.tan(camera.PITCH)
    assert (image[: int(horizon) - 1, :, 2] > image[: int(horizon) - 1, :, 1]).all()
    assert (image[int(horizon) + 6 :, :, 2] <= image[int(horizon) + 6 :, :, :2].max(axis=2) + 12).all()


def test_level_0_is_the_plain_picture_and_every_level_disturbs_it() -> None:
    simulation = driven()
    plain = look(simulation, PictureDisturbances())
    np.testing.assert_array_equal(plain, look(simulation, PictureDisturbances(0.0, 0.0, 0.0, 0.0)))
    for name in ("light", "shadow", "noise", "missing_markings"):
        weak, strong = (
            look(simulation, PictureDisturbances(**{name: 0.3})),
            look(simulation, PictureDisturbances(**{name: 1.0})),
        )
        np.testing.assert_array_equal(strong, look(simulation, PictureDisturbances(**{name: 1.0})))
        distance = [np.abs(image.astype(int) - plain).mean() for image in (weak, strong)]
        assert 0.0 < distance[0] < distance[1]


def test_noise_has_the_deviation_that_it_says_and_is_new_at_each_step() -> None:
    simulation = driven(1)
    plain = look(simulation, PictureDisturbances()).astype(int)
    inner = (plain > 80) & (plain < 175)
    noise = (look(simulation, PictureDisturbances(noise=0.25)).astype(int) - plain)[inner]
    assert noise.std() == pytest.approx(16.0, rel=0.05) and abs(noise.mean()) < 1.0
    simulation.steps += 1
    other = (look(simulation, PictureDisturbances(noise=0.25)).astype(int) - plain)[inner]
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.05


def test_all_markings_can_be_missing() -> None:
    simulation = driven()
    assert look(simulation, PictureDisturbances()).min(axis=3)[:, 26:].max() > 200
    assert look(simulation, PictureDisturbances(missing_markings=1.0)).min(axis=3)[:, 26:].max() < 120


def test_the_drive_is_that_of_the_plain_environment() -> None:
    seeing = gym.make(ID, light=1.0, shadow=1.0, noise=1.0, missing_markings=1.0)
    knowing = gym.make("ncp/LaneKeeping-v0")
    assert seeing.reset(seed=2)[1] == knowing.reset(seed=2)[1]
    for _ in range(30):
        action = np.array([0.05], np.float32)
        assert seeing.step(action)[1:] == knowing.step(action)[1:]


@pytest.mark.parametrize("level", [-0.1, 1.1, float("nan")])
def test_refuses_what_is_no_level(level: float) -> None:
    with pytest.raises(ValueError, match="shadow must be a level from 0 to 1"):
        gym.make(ID, shadow=level)
