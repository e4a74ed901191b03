"""What a teacher of lane keeping sees and does, and pictures cut and disturbed car by car."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from ncp_envs.lane_keeping.baseline import Instructor
from ncp_envs.lane_keeping.camera import Frame
from ncp_envs.lane_keeping.dynamics import OFFSETS, SPEED
from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
from ncp_envs.lane_keeping.simulation import TRUE_STATE_NAMES
from stable_baselines3.common.vec_env import DummyVecEnv

CAMERA = "ncp/LaneKeepingCamera-v0"


def drive(venv: Any, seed: int) -> float:
    """Mean return of the instructor over an episode of each car."""
    venv.seed(seed)
    venv.reset()
    total, running = np.zeros(venv.num_envs), np.ones(venv.num_envs, np.bool_)
    for _ in range(1000):
        actions, _ = Instructor().predict(np.stack(venv.get_attr("true_state")))
        _, rewards, dones, _ = venv.step(actions)
        total += running * rewards
        running &= ~dones
    return float(total.mean())


def test_the_instructor_drives_better_than_the_baseline() -> None:
    assert drive(LaneKeepingVecEnv(20), 5_000) > 930  # The baseline: 915.


def test_the_true_state_is_the_same_one_by_one_and_together() -> None:
    single = DummyVecEnv([lambda: gym.make("ncp/LaneKeeping-v0") for _ in range(2)])
    batched = LaneKeepingVecEnv(2)
    for venv in (single, batched):
        venv.seed(3)
        venv.reset()
        for _ in range(5):
            venv.step(np.full((2, 1), 0.3, np.float32))
    one, many = (np.stack(venv.get_attr("true_state")) for venv in (single, batched))
    assert one.shape == (2, len(TRUE_STATE_NAMES)) and one.dtype == np.float32
    np.testing.assert_allclose(one, many, rtol=1e-6)
    named = dict(zip(TRUE_STATE_NAMES, many[1].tolist(), strict=True))
    simulation = batched.vector.simulation
    assert named["speed"] * 18 == pytest.approx(simulation.cars[SPEED, 1])
    assert abs(named["wheel_offset"] * OFFSETS[1]) <= OFFSETS[1]
    assert named["lateral_error"] == pytest.approx(float(simulation.observations[1, 0]))


def test_pictures_are_cut_and_averaged() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 48, 160, 3)).astype(np.uint8)
    found = Frame((16, 48), 2).cut(images)
    assert found.shape == (3, 16, 80, 3) and found.dtype == np.uint8
    square = images[1, 20:22, 14:16, 2].astype(float)
    assert found[1, 2, 7, 2] == np.floor(square.mean() + 0.5)
    assert Frame().cut(images) is not None and np.array_equal(Frame().cut(images), images)
    assert np.array_equal(Frame((16, 48)).cut(images), images[:, 16:])


@pytest.mark.parametrize("wrong", [dict(rows=(10, 50)), dict(rows=(20, 20)), dict(pool=5), dict(pool=0)])
def test_frames_that_the_picture_lacks_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Frame(**wrong)


def test_the_cut_picture_is_observed() -> None:
    env = gym.make(CAMERA, rows=(16, 48), pool=2, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)
    whole = gym.make(CAMERA)
    cut, _ = env.reset(seed=4)
    seen, _ = whole.reset(seed=4)
    assert np.array_equal(cut, Frame((16, 48), 2).cut(seen[None])[0])
    assert env.render() is not None  # The view's inset is the whole picture.


def test_each_car_has_its_own_disturbances() -> None:
    levels = dict(noise=[0.0, 0.8], light=[0.0, 0.0])
    mixed, plain, noisy = (LaneKeepingVecEnv(2, CAMERA, **kwargs) for kwargs in (levels, {}, dict(noise=0.8)))
    pictures = []
    for venv in (mixed, plain, noisy):
        venv.seed(1)
        pictures.append(venv.reset())
    assert np.array_equal(pictures[0][0], pictures[1][0])
    assert np.array_equal(pictures[0][1], pictures[2][1])
    with pytest.raises(ValueError, match=r"noise must be one level or 2 of them, got \(3,\)"):
        LaneKeepingVecEnv(2, CAMERA, noise=[0.0, 0.1, 0.2])
