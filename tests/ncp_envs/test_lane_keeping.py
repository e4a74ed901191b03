"""Lane keeping: the car's physics, its roads, the environments' contracts, one car and many, the baseline."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ncp_envs.lane_keeping import road
from ncp_envs.lane_keeping.baseline import MEMORYLESS, Baseline, Gains
from ncp_envs.lane_keeping.dynamics import (
    ACCELERATION,
    GRAVITY,
    HEADING_ERROR,
    INTERVAL,
    LATERAL_ERROR,
    LATERAL_VELOCITY,
    OFFSET,
    SPEED,
    STATION,
    STEERING,
    YAW_RATE,
    Vehicle,
    reward,
    sine_cosine,
)
from ncp_envs.lane_keeping.env import LaneKeepingEnv
from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
from ncp_envs.lane_keeping.simulation import Simulation
from stable_baselines3.common.env_checker import check_env as check_sb3
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

ID, CAMERA = "ncp/LaneKeeping-v0", "ncp/LaneKeepingCamera-v0"


def straight(n_cars: int, vehicle: Vehicle | None = None) -> Simulation:
    """Cars at rest in their lanes on a straight so wide that none leaves it."""
    simulation = Simulation(n_cars, vehicle)
    simulation.widths[:] = 1e9
    simulation.cars[SPEED] = np.linspace(8, 18, n_cars)
    return simulation


@pytest.mark.parametrize("env_id", [ID, CAMERA])
def test_keeps_gymnasiums_and_sb3s_contract(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array")
    check_env(env.unwrapped)
    check_sb3(env.unwrapped)


@pytest.mark.parametrize("env_id", [ID, CAMERA])
def test_is_deterministic_and_rebuilt_from_its_spec(env_id: str) -> None:
    env = gym.make(env_id)
    assert env.spec is not None
    check_environments_match(env, gym.make(env.spec), num_steps=60, seed=0)


def test_steady_cornering_obeys_the_understeer_formula() -> None:
    """delta = kappa (L + K v^2), K = m / L (l_r / C_f - l_f / C_r): textbook, e.g. Rajamani eq. 3.12, linear tyres."""
    vehicle = Vehicle(friction=math.inf)
    simulation = straight(21, vehicle)
    action = np.full((21, 1), 0.2)
    for _ in range(200):
        simulation.step(action, np.full(21, 0.05))
    speed, yaw_rate = simulation.cars[SPEED], simulation.cars[YAW_RATE]
    wheel = 0.2 * vehicle.max_steering
    length = vehicle.front + vehicle.rear
    gradient = vehicle.mass / length * (vehicle.rear / vehicle.front_stiffness - vehicle.front / vehicle.rear_stiffness)
    np.testing.assert_allclose(simulation.cars[STEERING], wheel, rtol=1e-9)
    np.testing.assert_allclose(yaw_rate, speed * wheel / (length + gradient * speed**2), rtol=1e-9)
    # Rajamani eq. 2.44 and following: sideslip at the rear axle's radius less its slip.
    slip = vehicle.mass * vehicle.front * speed * yaw_rate / (length * vehicle.rear_stiffness)
    np.testing.assert_allclose(simulation.cars[LATERAL_VELOCITY], vehicle.rear * yaw_rate - speed * slip, rtol=1e-9)


def test_tyres_saturate_at_the_friction_limit() -> None:
    simulation = straight(11, Vehicle(friction=0.3))
    for _ in range(100):
        simulation.step(np.ones((11, 1)), np.full(11, 0.05))
    acceleration = simulation.cars[ACCELERATION]
    assert (acceleration < 0.3 * GRAVITY).all() and acceleration.max() > 0.9 * 0.3 * GRAVITY


def test_steering_lags_by_its_time_constant() -> None:
    simulation = straight(1)
    simulation.step(np.ones((1, 1)), np.array([0.2]))
    assert simulation.cars[STEERING, 0] == pytest.approx(0.15 * (1 - math.exp(-1)), rel=1e-4)


def test_coasting_car_goes_straight_and_turned_wheels_turn_it() -> None:
    simulation = straight(3)
    simulation.cars[OFFSET] = (-0.01, 0.0, 0.01)
    for _ in range(20):
        simulation.step(np.zeros((3, 1)), np.full(3, 0.05))
    error = simulation.cars[LATERAL_ERROR]
    assert error[0] < -0.1 and error[1] == 0.0 and error[2] > 0.1
    np.testing.assert_allclose(simulation.cars[STATION, 1], simulation.cars[SPEED, 1] * 1.0, rtol=1e-12)


def test_integration_converges_with_the_fourth_power_of_the_substep() -> None:
    """Times that are substeps of 25, 12.5 and 6.25 ms, against the finest."""
    errors = []
    for parts in (16, 1, 2):
        simulation = straight(5)
        for step in range(40):
            action = np.full((5, 1), 0.5 * math.sin(step))
            for _ in range(parts):
                simulation.step(action, np.full(5, 0.025 / parts))
        errors.append(simulation.cars[:6].copy())
    coarse, fine = np.abs(errors[1] - errors[0]).max(), np.abs(errors[2] - errors[0]).max()
    assert coarse < 1e-3 and 10.0 < coarse / fine < 22.0


def test_any_interval_is_integrated_exactly() -> None:
    whole, parts = straight(1), straight(1)
    whole.step(np.full((1, 1), 0.3), np.array([0.4]))
    for seconds in (0.05, 0.1, 0.025, 0.125, 0.1):
        parts.step(np.full((1, 1), 0.3), np.array([seconds]))
    np.testing.assert_allclose(parts.cars[:6], whole.cars[:6], rtol=1e-6, atol=1e-9)


def test_sine_and_cosine() -> None:
    for angle in np.linspace(-7, 7, 1001):
        assert sine_cosine(angle) == pytest.approx((math.sin(angle), math.cos(angle)), abs=1e-13)


def test_reward_by_hand() -> None:
    assert reward(0.5, 10.0, 0.05, 0.0, 0.0) == 1.0
    assert reward(0.25, 10.0, 0.05, 0.0, 0.0) == 0.5
    assert reward(0.5, 10.0, 0.05, -0.4, 0.0) == pytest.approx(0.5)
    assert reward(0.5, 10.0, 0.05, 0.4, -5.0) == pytest.approx(0.25)
    assert reward(1.0, 10.0, 0.1, 0.0, 0.0) == 2.0
    assert reward(-1.0, 10.0, 0.1, 0.0, 0.0) == 0.0


def test_roads_keep_their_limits() -> None:
    simulation = Simulation(200)
    for i in range(200):
        simulation.start(i, np.random.default_rng(i))
    curvature, heading, width = simulation.curvatures, simulation.headings, simulation.widths
    assert np.abs(curvature).max() <= road.MAX_CURVATURE and np.abs(curvature).max() > 0.95 * road.MAX_CURVATURE
    assert np.abs(np.diff(curvature, axis=1)).max() <= 2 * road.MAX_CURVATURE / road.CLOTHOID[0] + 1e-12
    assert (curvature[:, :4] == 0).all() and (np.abs(curvature[:, -1]) < 1e-12).all()
    assert np.abs(heading).max() <= road.MAX_HEADING + 1e-9
    assert width.min() >= road.MIN_WIDTH and width.max() <= road.MAX_WIDTH
    assert width.max() > 3.9 and width.min() < 3.1
    assert len({tuple(row) for row in curvature}) == 200


def test_course_integrates_the_curvature_without_a_jump() -> None:
    simulation = Simulation(3)
    for i in range(3):
        simulation.start(i, np.random.default_rng(i))
    stations = np.tile(np.arange(-20.0, 2 * road.LENGTH + 20.0, 0.25), (3, 1))
    x, y, heading = road.course(simulation.curvatures, simulation.headings, stations)
    curvature = road.at(simulation.curvatures, stations)
    middle = 0.5 * (curvature[:, 1:] + curvature[:, :-1])
    np.testing.assert_allclose(np.diff(heading, axis=1), 0.25 * middle, atol=1e-9)
    np.testing.assert_allclose(np.hypot(np.diff(x), np.diff(y)), 0.25, rtol=1e-12)
    direction = np.unwrap(np.arctan2(np.diff(y), np.diff(x)))
    np.testing.assert_allclose(direction, 0.5 * (heading[:, 1:] + heading[:, :-1]), atol=1e-4)


def test_observation_and_info_say_what_is_there() -> None:
    env = gym.make(ID)
    base = env.unwrapped
    assert isinstance(base, LaneKeepingEnv)
    seen, info = env.reset(seed=4)
    assert len(base.observation_names) == len(seen) == 6
    for _ in range(20):
        before = base.simulation.cars[:, 0].copy()
        seen, _, terminated, _, info = env.step(np.array([0.1], np.float32))
        car = base.simulation.cars[:, 0]
        curvatures = road.at(base.simulation.curvatures, car[STATION] + np.array([[0.0, 10.0, 20.0, 30.0]]))[0]
        expected = [car[LATERAL_ERROR], car[HEADING_ERROR] / 0.2, *curvatures / 0.02]
        np.testing.assert_allclose(seen, expected, rtol=1e-6, atol=1e-7)
        assert info["lateral_error"] == car[LATERAL_ERROR] and info["distance"] == car[STATION]
        assert info["lateral_jerk"] == pytest.approx((car[ACCELERATION] - before[ACCELERATION]) / INTERVAL)
        assert not info["crash"] and not terminated


def test_leaving_the_lane_is_a_crash() -> None:
    env = gym.make(ID)
    env.reset(seed=1)
    terminated, steps = False, 0
    while not terminated:
        _, _, terminated, truncated, info = env.step(np.ones(1, np.float32))
        steps += 1
        assert not truncated and info["crash"] == terminated
    assert 1.5 <= abs(info["lateral_error"]) < 2.5 and steps < 100


def test_interval_may_be_set_and_is_checked() -> None:
    env = gym.make(ID)
    base = env.unwrapped
    assert isinstance(base, LaneKeepingEnv) and base.interval == INTERVAL
    env.reset(seed=0)
    base.interval = 0.13
    *_, info = env.step(np.zeros(1, np.float32))
    assert info["distance"] == pytest.approx(0.13 * base.simulation.cars[SPEED, 0], rel=0.02)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="interval must be seconds above 0"):
            base.interval = seconds


def test_refuses_actions_and_modes_that_do_not_fit() -> None:
    env = LaneKeepingEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="Actions must be finite"):
        env.step(np.array([math.nan], np.float32))
    with pytest.raises(ValueError, match="Actions must have the shape"):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="render_mode must be None or one of"):
        LaneKeepingEnv(render_mode="ansi")


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(("env_id", "n_cars", "n_steps"), [(ID, 19, 300), (CAMERA, 3, 60)])
def test_batch_has_the_trajectories_of_single_environments(
    env_id: str, n_cars: int, n_steps: int, mode: AutoresetMode
) -> None:
    kwargs: dict[str, Any] = dict(noise=0.3, shadow=1.0) if env_id == CAMERA else {}
    single = SyncVectorEnv(
        [lambda: gym.make(env_id, max_episode_steps=40, **kwargs) for _ in range(n_cars)], autoreset_mode=mode
    )
    batch = gym.make_vec(env_id, n_cars, max_episode_steps=40, autoreset_mode=mode, **kwargs)
    assert batch.metadata["autoreset_mode"] is mode
    same((single.reset(seed=7)), batch.reset(seed=7))
    rng, crashes, truncations = np.random.default_rng(0), 0, 0
    for _ in range(n_steps):
        actions = rng.uniform(-0.6, 0.6, (n_cars, 1)).astype(np.float32)
        expected, got = single.step(actions), batch.step(actions)
        same(expected, got)
        crashes, truncations = crashes + int(got[2].sum()), truncations + int(got[3].sum())
    assert crashes >= n_cars and truncations > 0
    single.close()
    batch.close()


def same(expected: Any, got: Any) -> None:
    """Bitwise equal, whatever is nested in what."""
    assert type(expected) is type(got)
    if isinstance(expected, dict):
        assert expected.keys() == got.keys()
        for key, value in expected.items():
            same(value, got[key])
    elif isinstance(expected, tuple | list):
        assert len(expected) == len(got)
        for one, other in zip(expected, got, strict=True):
            same(one, other)
    elif isinstance(expected, np.ndarray) and expected.dtype == object:
        same(list(expected), list(got))
    else:
        np.testing.assert_array_equal(expected, got)
        assert np.asarray(expected).dtype == np.asarray(got).dtype


def test_vec_env_has_the_trajectories_of_dummy_vec_env() -> None:
    dummy = DummyVecEnv([lambda: gym.make(ID, max_episode_steps=40) for _ in range(17)])
    batch = LaneKeepingVecEnv(17, max_episode_steps=40)
    dummy.seed(3)
    batch.seed(3)
    same(dummy.reset(), batch.reset())
    rng = np.random.default_rng(0)
    for _ in range(200):
        actions = rng.uniform(-0.6, 0.6, (17, 1)).astype(np.float32)
        same(dummy.step(actions), batch.step(actions))
        same(dummy.reset_infos, batch.reset_infos)


def test_vec_env_serves_sb3() -> None:
    batch = LaneKeepingVecEnv(2, render_mode="rgb_array")
    assert batch.get_attr("observation_names")[0][0] == "lateral_error"
    batch.set_attr("interval", 0.1, indices=1)
    assert batch.get_attr("interval") == [0.05, 0.1]
    seen = VecMonitor(batch).reset()
    assert isinstance(seen, np.ndarray) and seen.shape == (2, 6)
    frame = batch.render()
    assert frame is not None and frame.std() > 0
    with pytest.raises(AttributeError, match="Only the attribute 'interval'"):
        batch.set_attr("width", 3)
    with pytest.raises(AttributeError, match="all cars are in one simulation"):
        batch.env_method("reset")
    assert not LaneKeepingVecEnv(1, CAMERA).has_attr("observation_names")


def test_cars_are_reset_by_mask() -> None:
    batch = gym.make_vec(ID, 3, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(RuntimeError, match="call reset first"):
        batch.step(np.zeros((3, 1), np.float32))
    before, _ = batch.reset(seed=0)
    mask = np.array([False, True, False])
    seeds: Any = [None, 5, None]  # Gymnasium's annotation knows one number alone.
    after, infos = batch.reset(seed=seeds, options={"reset_mask": mask})
    assert (after[0] == before[0]).all() and (after[1] != before[1]).any()
    np.testing.assert_array_equal(infos["_crash"], mask)
    while not batch.step(np.ones((3, 1), np.float32))[2].any():
        pass
    with pytest.raises(RuntimeError, match="have ended; reset these cars first"):
        batch.step(np.ones((3, 1), np.float32))
    with pytest.raises(ValueError, match="reset_mask must be a bool array"):
        batch.reset(options={"reset_mask": np.ones(2, np.bool_)})


def drive_baseline(gains: Gains, n_cars: int = 40) -> tuple[np.ndarray[Any, Any], float]:
    """Returns of one episode each, and the share of crashes."""
    venv, baseline = LaneKeepingVecEnv(n_cars), Baseline(n_cars, gains)
    venv.seed(20_000)
    seen: Any = venv.reset()
    starts, going = np.ones(n_cars, np.bool_), np.ones(n_cars, np.bool_)
    returns, crashes = np.zeros(n_cars), 0
    for _ in range(1000):
        seen, rewards, starts, infos = venv.step(baseline.act(seen, starts))
        returns += going * rewards
        crashes += sum(info["crash"] for info, on in zip(infos, going, strict=True) if on)
        going &= ~starts
    return returns, crashes / n_cars


def test_baseline_keeps_the_lane_and_its_memory_pays() -> None:
    returns, crashes = drive_baseline(Gains())
    assert returns.mean() > 890 and crashes == 0
    forgetful, _ = drive_baseline(MEMORYLESS)
    assert forgetful.mean() < returns.mean() - 100


@pytest.mark.parametrize("env_id", [ID, CAMERA])
def test_renders_road_car_and_trace(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    for _ in range(10):
        env.step(np.zeros(1, np.float32))
    second = env.render()
    assert isinstance(first, np.ndarray) and isinstance(second, np.ndarray)
    assert first.shape == (400, 800, 3) and first.dtype == np.uint8
    assert (first != second).any()
    colors = {tuple(color) for color in second.reshape(-1, 3).tolist()}
    assert {(96, 128, 84), (84, 86, 92), (66, 133, 244)} <= colors  # grass, asphalt, car
    env.close()


def test_shows_itself_in_a_window() -> None:
    env = gym.make(ID, render_mode="human")
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    assert env.render() is None
    env.close()
