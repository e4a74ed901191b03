"""Hidden velocities: what is dropped is velocity, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.envs.box2d.bipedal_walker import FPS, SCALE, SPEED_HIP, SPEED_KNEE, VIEWPORT_H, VIEWPORT_W
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from ncp_envs import NoVelocity
from ncp_envs.hidden_state import HIDDEN, no_velocity_id
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

Array = npt.NDArray[Any]

MUJOCO = [upstream for upstream, hidden in HIDDEN.items() if hidden.extra == "mujoco"]
BOX2D = [upstream for upstream, hidden in HIDDEN.items() if hidden.extra == "box2d"]
CLASSIC = [upstream for upstream, hidden in HIDDEN.items() if hidden.extra is None]


def dropped(upstream: str) -> list[int]:
    return sorted(set(range(HIDDEN[upstream].size)) - set(HIDDEN[upstream].kept))


@pytest.mark.parametrize("upstream", HIDDEN)
def test_keeps_gymnasiums_and_sb3s_contracts(upstream: str) -> None:
    """With no warning: pytest makes them errors."""
    env = gym.make("ncp_envs:" + no_velocity_id(upstream)).unwrapped
    # MuJoCo's "human" mode needs a screen.
    check_env(env, skip_render_check=upstream in MUJOCO)
    check_env_for_sb3(env)


@pytest.mark.parametrize("upstream", HIDDEN)
def test_drops_entries_and_changes_nothing_else(upstream: str) -> None:
    masked, full = gym.make(no_velocity_id(upstream)), gym.make(upstream)
    kept, names = HIDDEN[upstream].kept, masked.get_wrapper_attr("observation_names")
    assert masked.observation_space.shape == (len(kept),) == (len(names),)
    assert full.spec and masked.spec and full.spec.max_episode_steps == masked.spec.max_episode_steps
    scale = full.action_space.high if isinstance(full.action_space, gym.spaces.Box) else 1
    # float32 rounds scaled actions, and the simulation of a fall spreads what it rounds.
    steps, rtol = (100, 0.0) if np.all(scale == 1) else (20, 1e-4)
    masked.action_space.seed(0)
    (seen, _), (whole, _) = masked.reset(seed=3), full.reset(seed=3)
    for _ in range(steps):
        np.testing.assert_allclose(seen, whole[list(kept)], rtol=rtol, atol=rtol)
        action = masked.action_space.sample()
        seen, *outcome, _ = masked.step(action)
        whole, *expected, _ = full.step(action * scale)
        assert outcome == pytest.approx(expected, rel=rtol, abs=rtol)
        if outcome[1] or outcome[2]:
            break


# Where velocity is the rate of change: position (or its cosine and sine) -> velocity, by index of the observation.
RATES: dict[str, dict[int | tuple[int, int], int]] = {
    "CartPole-v1": {0: 1, 2: 3},
    "Pendulum-v1": {(0, 1): 2},
    "MountainCar-v0": {0: 1},
    "MountainCarContinuous-v0": {0: 1},
    "Acrobot-v1": {(0, 1): 4, (2, 3): 5},
}


def change(before: Array, after: Array, position: int | tuple[int, int]) -> float:
    if isinstance(position, int):
        return float(after[position] - before[position])
    turn = complex(*after[list(position)]) / complex(*before[list(position)])
    return float(np.angle(turn))


@pytest.mark.parametrize("upstream", CLASSIC)
def test_classic_velocities_integrate_to_positions(upstream: str) -> None:
    """Whatever the integrator: the rate of change of a position lies between the velocities before and after."""
    assert sorted(RATES[upstream].values()) == dropped(upstream)
    env = gym.make(upstream)
    env.action_space.seed(0)
    env.unwrapped.dt = 0.02 if upstream == "Acrobot-v1" else getattr(env.unwrapped, "dt", None)  # type: ignore[attr-defined]
    seconds = getattr(env.unwrapped, "tau", None) or env.unwrapped.dt or 1.0  # type: ignore[attr-defined]
    before, _ = env.reset(seed=1)
    largest = 0.0
    for _ in range(150):
        after, _, terminated, *_ = env.step(env.action_space.sample())
        for position, velocity in RATES[upstream].items():
            rate = change(before, after, position) / seconds
            low, high = sorted((before[velocity], after[velocity]))
            assert low - 1e-4 <= rate <= high + 1e-4
            largest = max(largest, abs(rate))
        if terminated:
            break
        before = after
    assert largest > 1e-3


@pytest.mark.parametrize("upstream", MUJOCO)
def test_mujoco_velocities_integrate_to_positions(upstream: str) -> None:
    """Under Euler's rule, position' = position + dt velocity' to the last digit; MuJoCo knows how quaternions turn."""
    env = gym.make(upstream)
    simulator: Any = env.unwrapped
    simulator.model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    simulator.frame_skip = 1
    env.action_space.seed(0)
    env.reset(seed=0)
    model, data, rate = simulator.model, simulator.data, np.zeros(simulator.model.nv)
    for _ in range(20):
        before = data.qpos.copy()
        whole, _, terminated, *_ = env.step(env.action_space.sample())
        mujoco.mj_differentiatePos(model, rate, model.opt.timestep, before, data.qpos)
        clipped = upstream in ("InvertedDoublePendulum-v5", "Hopper-v5", "Walker2d-v5")
        expected = np.clip(rate, -10, 10) if clipped else rate
        np.testing.assert_allclose(whole[dropped(upstream)][: model.nv], expected, atol=1e-9)
        if terminated:
            break
    if upstream != "Humanoid-v5":
        assert len(dropped(upstream)) == model.nv


@pytest.mark.parametrize("upstream", ["Ant-v5", "Humanoid-v5"])
def test_what_stays_of_mujocos_bodies_is_no_velocity(upstream: str) -> None:
    """Twice the joint velocities: twice of all that is dropped; positions, inertias and actuator forces as before."""
    simulator: Any = gym.make(upstream).unwrapped
    simulator.reset(seed=0)
    simulator.data.ctrl[:] = 0.3
    velocity = np.random.default_rng(0).normal(size=simulator.model.nv)
    observations = []
    for factor in (1.0, 2.0):
        simulator.data.qpos[2] += 5.0 * (factor == 1.0)  # In the air, where there are no contacts.
        simulator.data.qvel[:] = factor * velocity
        mujoco.mj_forward(simulator.model, simulator.data)
        observations.append(simulator._get_obs())
    once, twice = observations
    np.testing.assert_allclose(twice[dropped(upstream)], 2 * once[dropped(upstream)], rtol=1e-9, atol=1e-12)
    assert (once[dropped(upstream)] != 0).all()
    kept = list(HIDDEN[upstream].kept)
    np.testing.assert_allclose(twice[kept], once[kept], rtol=1e-9, atol=1e-12)


def test_mujocos_spatial_forces_are_named_in_mujocos_order() -> None:
    """At rest the ground carries the weight: it stands where a name says `force_z`."""
    env = gym.make("ncp/AntNoVel-v5", contact_force_range=(-1e5, 1e5))
    env.reset(seed=0)
    for _ in range(200):
        observation, *_ = env.step(np.zeros(8, np.float32))
    total = {
        part: sum(
            value
            for name, value in zip(env.get_wrapper_attr("observation_names"), observation, strict=True)
            if name.endswith(part)
        )
        for part in ("torque_x", "torque_y", "torque_z", "force_x", "force_y", "force_z")
    }
    weight = 9.81 * env.unwrapped.env.unwrapped.model.body_mass.sum()  # type: ignore[attr-defined]
    assert total.pop("force_z") == pytest.approx(weight, rel=1e-3)
    assert max(map(abs, total.values())) < 1e-2 * weight


@pytest.mark.parametrize("upstream", BOX2D)
def test_box2d_velocities_integrate_to_positions(upstream: str) -> None:
    env = gym.make(upstream)
    simulator: Any = env.unwrapped
    env.action_space.seed(1)
    env.reset(seed=1)
    # Contacts act within a step: let all fall through the ground.
    for body in [simulator.lander] if hasattr(simulator, "lander") else [simulator.hull, *simulator.legs]:
        for fixture in body.fixtures:
            fixture.sensor = True
    rates, velocities = [], []
    before = box2d_positions(simulator)
    for _ in range(30):
        whole, *_ = env.step(env.action_space.sample())
        after = box2d_positions(simulator)
        rates.append((after - before) * FPS * box2d_units(upstream))
        velocities.append(whole[dropped(upstream)])
        before = after
    assert np.shape(rates) == (30, len(dropped(upstream)))
    # The median: where a joint hits its limit, Box2D moves it back without a velocity.
    error = np.median(np.abs(np.array(rates) - velocities), axis=0)
    spread = np.abs(velocities).max(axis=0)
    assert (error <= 0.03 * spread).all(), (error, spread)


def box2d_positions(simulator: Any) -> Array:
    if hasattr(simulator, "lander"):
        body = simulator.lander
        return np.array([*body.worldCenter, body.angle])
    body = simulator.hull
    return np.array([body.angle, *body.worldCenter, *(joint.angle for joint in simulator.joints)])


def box2d_units(upstream: str) -> Array:
    """Of observed velocities per SI unit, as upstream's `step` scales them."""
    if upstream.startswith("LunarLander"):
        return np.array([VIEWPORT_W / SCALE / 2, VIEWPORT_H / SCALE / 2, 20.0]) / FPS
    joints = [1 / SPEED_HIP, 1 / SPEED_KNEE] * 2
    return np.array([2.0 / FPS, 0.3 * (VIEWPORT_W / SCALE) / FPS, 0.3 * (VIEWPORT_H / SCALE) / FPS, *joints])


@pytest.mark.parametrize("upstream", HIDDEN)
def test_is_deterministic_and_rebuilt_from_its_spec(upstream: str) -> None:
    env = gym.make(no_velocity_id(upstream))
    assert env.spec is not None
    rebuilt = gym.make(EnvSpec.from_json(env.spec.to_json()))
    check_environments_match(env, rebuilt, num_steps=100, seed=0)


def test_is_vectorised_by_gymnasium() -> None:
    assert gym.make_vec("ncp/PendulumNoVel-v1", num_envs=3).reset(seed=0)[0].shape == (3, 2)


def test_hands_arguments_on() -> None:
    light = gym.make("ncp/PendulumNoVel-v1", g=1.0)
    assert light.unwrapped.env.unwrapped.g == 1.0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="must observe 17 quantities here"):
        gym.make("ncp/HalfCheetahNoVel-v5", exclude_current_positions_from_observation=False)


@pytest.mark.parametrize(("upstream", "module"), [("LunarLander-v3", "Box2D"), ("Hopper-v5", "mujoco")])
def test_missing_extras_give_the_pip_command(upstream: str, module: str) -> None:
    """In a process where the module cannot be imported."""
    code = f"import sys; sys.modules['{module}'] = None; import gymnasium as gym; gym.make('ncp_envs:{{}}')"
    result = subprocess.run(
        [sys.executable, "-c", code.format(no_velocity_id(upstream))],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode != 0
    assert f'run `pip install "ncp-rl[{HIDDEN[upstream].extra}]"`' in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("kept", "names", "message"),
    [
        ((0, 3), None, "kept must hold indices from 0 to 2"),
        ((), None, "kept must hold indices"),
        ((0, 1), ("a",), "names must name the 2 entries kept"),
    ],
)
def test_refuses_what_does_not_fit(kept: tuple[int, ...], names: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoVelocity(gym.make("Pendulum-v1"), kept, names)
    with pytest.raises(ValueError, match="Box observation of one dimension"):
        NoVelocity(gym.make("FrozenLake-v1"), (0,))


@pytest.mark.parametrize("upstream", HIDDEN)
def test_actions_have_names(upstream: str) -> None:
    env = gym.make(no_velocity_id(upstream))
    names, space = env.get_wrapper_attr("action_names"), env.action_space
    assert len(set(names)) == len(names) == (space.n if isinstance(space, gym.spaces.Discrete) else space.shape[0])  # type: ignore[index]
