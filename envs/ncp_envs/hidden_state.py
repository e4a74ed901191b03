"""Tasks whose velocities are hidden, so that a controller must remember to see motion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import RescaleAction

from ncp_envs.variant import Variant, make_upstream

#: Bound of observed quantities without a bound upstream, in their own units; the tasks stay far below it.
LIMIT = 1e6


class NoVelocity(gym.ObservationWrapper[npt.NDArray[Any], Any, npt.NDArray[Any]], RecordConstructorArgs):
    """Removes the velocities from a vector observation: entries are dropped, not set to zero."""

    def __init__(
        self,
        env: gym.Env[npt.NDArray[Any], Any],
        kept: tuple[int, ...],
        names: tuple[str, ...] | None = None,
        limit: float = np.inf,
    ) -> None:
        """Wrap `env`.

        Args:
            env: An environment with a Box observation of one dimension.
            kept: Indices of the entries that stay, in their new order.
            names: Names of the entries that stay, which become the attribute `observation_names`.
            limit: Bound to which entries without one are clipped.

        Raises:
            ValueError: The observation is not a vector, or indices and names do not fit it.
        """
        RecordConstructorArgs.__init__(self, kept=kept, names=names, limit=limit)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"NoVelocity needs a Box observation of one dimension, got {space}.")
        if not kept or not all(0 <= index < space.shape[0] for index in kept):
            raise ValueError(f"kept must hold indices from 0 to {space.shape[0] - 1}, got {kept}.")
        if names is not None and len(names) != len(kept):
            raise ValueError(f"names must name the {len(kept)} entries kept, got {names}.")
        self._kept = np.array(kept)
        self.observation_names = names
        low, high = space.low[self._kept], space.high[self._kept]
        # Entries that are bounded upstream stay as they are, also where the simulator goes beyond.
        self._low = np.where(np.isinf(low), -limit, -np.inf).astype(space.dtype)
        self._high = np.where(np.isinf(high), limit, np.inf).astype(space.dtype)
        self.observation_space = spaces.Box(
            np.maximum(low, self._low), np.minimum(high, self._high), dtype=space.dtype.type
        )

    def observation(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the entries that stay."""
        kept: npt.NDArray[Any] = np.clip(observation[self._kept], self._low, self._high)
        return kept


@dataclass(frozen=True)
class Hidden:
    """The entries of an observation that stay when its velocities are removed.

    Attributes:
        size: Number of entries upstream.
        kept: Indices of the entries that stay, by the observation table in the upstream class's docstring.
        names: Names of these entries.
        extra: The extra of ncp-rl that the environment needs.
        actions: Names of the actions; None for MuJoCo's environments, whose model names them.
    """

    size: int
    kept: tuple[int, ...]
    names: tuple[str, ...]
    extra: Literal["box2d", "mujoco"] | None = None
    actions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check that each entry has a name."""
        assert len(self.kept) == len(self.names) == len(set(self.names))


def _numbered(name: str, size: int) -> tuple[str, ...]:
    return tuple(f"{name}_{i}" for i in range(size))


def _each(bodies: tuple[str, ...], quantities: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{body}_{quantity}" for body in bodies for quantity in quantities)


# MuJoCo's spatial vectors have the rotational part first (mjdata.h), where Gymnasium's text has the forces first.
_WRENCH = ("torque_x", "torque_y", "torque_z", "force_x", "force_y", "force_z")
_INERTIA = ("xx", "yy", "zz", "xy", "xz", "yz", "mass_x", "mass_y", "mass_z", "mass")
_FREE = ("z", "orientation_w", "orientation_x", "orientation_y", "orientation_z")
_LEG = ("thigh", "leg", "foot")
_CHEETAH_LEG = ("thigh", "shin", "foot")
_ANT_JOINTS = _each(("front_left", "front_right", "back_left", "back_right"), ("hip", "ankle"))
_ANT_BODIES = ("torso", *_each(("front_left", "front_right", "back_left", "back_right"), ("leg", "aux", "ankle")))
_HUMANOID_LEG = ("hip_x", "hip_z", "hip_y", "knee")
_HUMANOID_ARM = ("shoulder1", "shoulder2", "elbow")
_HUMANOID_JOINTS = (
    *("abdomen_z", "abdomen_y", "abdomen_x"),
    *_each(("right", "left"), _HUMANOID_LEG),
    *_each(("right", "left"), _HUMANOID_ARM),
)
_HUMANOID_BODIES = (
    *("torso", "lwaist", "pelvis"),
    *_each(("right", "left"), ("thigh", "shin", "foot")),
    *_each(("right", "left"), ("upper_arm", "lower_arm")),
)

#: Gymnasium's environments by id, and what stays of their observations. The source of each row is the observation table
#: in the upstream class's docstring, and its `_get_obs` where that is MuJoCo's.
HIDDEN: dict[str, Hidden] = {
    "CartPole-v1": Hidden(4, (0, 2), ("x", "theta"), actions=("push_left", "push_right")),
    "Pendulum-v1": Hidden(3, (0, 1), ("cos_theta", "sin_theta"), actions=("torque",)),
    "MountainCar-v0": Hidden(2, (0,), ("x",), actions=("push_left", "coast", "push_right")),
    "MountainCarContinuous-v0": Hidden(2, (0,), ("x",), actions=("force",)),
    "Acrobot-v1": Hidden(
        6,
        (0, 1, 2, 3),
        ("cos_theta1", "sin_theta1", "cos_theta2", "sin_theta2"),
        actions=("torque_left", "no_torque", "torque_right"),
    ),
    "LunarLander-v3": Hidden(
        8,
        (0, 1, 4, 6, 7),
        ("x", "y", "theta", "left_contact", "right_contact"),
        "box2d",
        ("idle", "left_engine", "main_engine", "right_engine"),
    ),
    "LunarLanderContinuous-v3": Hidden(
        8,
        (0, 1, 4, 6, 7),
        ("x", "y", "theta", "left_contact", "right_contact"),
        "box2d",
        ("main_engine", "side_engines"),
    ),
    "BipedalWalker-v3": Hidden(
        24,
        (0, 4, 6, 8, 9, 11, 13, *range(14, 24)),
        ("hull", *_each(("leg1", "leg2"), ("hip", "knee", "contact")), *_numbered("lidar", 10)),
        "box2d",
        _each(("leg1", "leg2"), ("hip", "knee")),
    ),
    "InvertedPendulum-v5": Hidden(4, (0, 1), ("x", "theta"), "mujoco"),
    "InvertedDoublePendulum-v5": Hidden(
        9,
        (0, 1, 2, 3, 4, 8),
        ("x", "sin_theta1", "sin_theta2", "cos_theta1", "cos_theta2", "constraint_force"),
        "mujoco",
    ),
    "HalfCheetah-v5": Hidden(
        17, tuple(range(8)), ("z", "theta", *_each(("back",), _CHEETAH_LEG), *_each(("front",), _CHEETAH_LEG)), "mujoco"
    ),
    "Hopper-v5": Hidden(11, tuple(range(5)), ("z", "theta", *_LEG), "mujoco"),
    "Walker2d-v5": Hidden(17, tuple(range(8)), ("z", "theta", *_each(("right", "left"), _LEG)), "mujoco"),
    "Ant-v5": Hidden(
        105, (*range(13), *range(27, 105)), (*_FREE, *_ANT_JOINTS, *_each(_ANT_BODIES, _WRENCH)), "mujoco"
    ),
    "Swimmer-v5": Hidden(8, (0, 1, 2), ("theta", "rotor1", "rotor2"), "mujoco"),
    "Humanoid-v5": Hidden(
        348,
        (*range(22), *range(45, 175), *range(253, 348)),
        (
            *(*_FREE, *_HUMANOID_JOINTS),
            *_each(_HUMANOID_BODIES, tuple(f"inertia_{part}" for part in _INERTIA)),
            *_each(_HUMANOID_JOINTS, ("actuator",)),
            *_each(_HUMANOID_BODIES, _WRENCH),
        ),
        "mujoco",
    ),
}


def no_velocity_id(upstream: str) -> str:
    """Return the id without velocities of an upstream id: `ncp/PendulumNoVel-v1` for `Pendulum-v1`."""
    name, _, version = upstream.rpartition("-")
    return f"ncp/{name}NoVel-{version}"


def make_no_velocity(upstream: str, **kwargs: Any) -> Variant:
    """Make one of Gymnasium's environments without the velocities in its observation.

    ## Observation Space

    Positions, angles, contacts, forces and inertias stay, in upstream's order and units; `HIDDEN` has the indices,
    `observation_names` the names. Where upstream has no bound, values are clipped to +-1e6 of their unit. Actuator and
    contact forces of Ant and Humanoid are no velocities and stay: a controller may feel the ground.

    | Id                               | Num     | Observation                         | Min    | Max   | Unit   |
    |----------------------------------|---------|-------------------------------------|--------|-------|--------|
    | ncp/CartPoleNoVel-v1             | 0       | cart position                       | -4.8   | 4.8   | m      |
    |                                  | 1       | pole angle                          | -0.418 | 0.418 | rad    |
    | ncp/PendulumNoVel-v1             | 0       | cos(theta)                          | -1     | 1     | -      |
    |                                  | 1       | sin(theta)                          | -1     | 1     | -      |
    | ncp/MountainCarNoVel-v0,         | 0       | car position                        | -1.2   | 0.6   | m      |
    | ncp/MountainCarContinuousNoVel-v0|         |                                     |        |       |        |
    | ncp/AcrobotNoVel-v1              | 0, 1    | cos, sin of theta1                  | -1     | 1     | -      |
    |                                  | 2, 3    | cos, sin of theta2                  | -1     | 1     | -      |
    | ncp/LunarLanderNoVel-v3,         | 0       | x, 10 m                             | -2.5   | 2.5   | 10 m   |
    | ncp/LunarLanderContinuousNoVel-v3| 1       | y, 6.67 m                           | -2.5   | 2.5   | 6.67 m |
    |                                  | 2       | angle                               | -2 pi  | 2 pi  | rad    |
    |                                  | 3, 4    | contact of left, right leg          | 0      | 1     | -      |
    | ncp/BipedalWalkerNoVel-v3        | 0       | hull angle                          | -pi    | pi    | rad    |
    |                                  | 1, 2    | hip and knee angle of leg 1         | -pi    | pi    | rad    |
    |                                  | 3       | ground contact of leg 1             | 0      | 5     | -      |
    |                                  | 4, 5, 6 | the same of leg 2                   |        |       |        |
    |                                  | 7-16    | lidar, share of its range           | -1     | 1     | -      |
    | ncp/InvertedPendulumNoVel-v5     | 0       | cart position                       | -1e6   | 1e6   | m      |
    |                                  | 1       | pole angle                          | -1e6   | 1e6   | rad    |
    | ncp/InvertedDoublePendulumNoVel- | 0       | cart position                       | -1e6   | 1e6   | m      |
    | v5                               | 1, 2    | sines of both angles                | -1e6   | 1e6   | -      |
    |                                  | 3, 4    | cosines of both angles              | -1e6   | 1e6   | -      |
    |                                  | 5       | constraint force on the cart        | -1e6   | 1e6   | N      |
    | ncp/HalfCheetahNoVel-v5          | 0       | height of the front tip             | -1e6   | 1e6   | m      |
    |                                  | 1       | angle of the front tip              | -1e6   | 1e6   | rad    |
    |                                  | 2-4     | back thigh, shin, foot              | -1e6   | 1e6   | rad    |
    |                                  | 5-7     | front thigh, shin, foot             | -1e6   | 1e6   | rad    |
    | ncp/HopperNoVel-v5               | 0       | height of the torso                 | -1e6   | 1e6   | m      |
    |                                  | 1       | angle of the torso                  | -1e6   | 1e6   | rad    |
    |                                  | 2-4     | thigh, leg, foot                    | -1e6   | 1e6   | rad    |
    | ncp/Walker2dNoVel-v5             | 0, 1    | as Hopper                           | -1e6   | 1e6   | m, rad |
    |                                  | 2-4     | right thigh, leg, foot              | -1e6   | 1e6   | rad    |
    |                                  | 5-7     | left thigh, leg, foot               | -1e6   | 1e6   | rad    |
    | ncp/AntNoVel-v5                  | 0       | height of the torso                 | -1e6   | 1e6   | m      |
    |                                  | 1-4     | orientation of the torso (w x y z)  | -1e6   | 1e6   | -      |
    |                                  | 5-12    | hip and ankle of each leg           | -1e6   | 1e6   | rad    |
    |                                  | 13-90   | external torque (x y z) and force   | -1e6   | 1e6   | N m, N |
    |                                  |         | (x y z) on each of 13 bodies        |        |       |        |
    | ncp/SwimmerNoVel-v5              | 0       | angle of the front tip              | -1e6   | 1e6   | rad    |
    |                                  | 1, 2    | angles of the rotors                | -1e6   | 1e6   | rad    |
    | ncp/HumanoidNoVel-v5             | 0       | height of the torso                 | -1e6   | 1e6   | m      |
    |                                  | 1-4     | orientation of the torso (w x y z)  | -1e6   | 1e6   | -      |
    |                                  | 5-21    | joint angles                        | -1e6   | 1e6   | rad    |
    |                                  | 22-151  | inertia (6), mass times offset (3)  | -1e6   | 1e6   | kg m2, |
    |                                  |         | and mass of each of 13 bodies       |        |       | kg m,kg|
    |                                  | 152-168 | actuator torques of the joints      | -1e6   | 1e6   | N m    |
    |                                  | 169-246 | external torques and forces, as Ant | -1e6   | 1e6   | N m, N |

    ## Action Space

    Upstream's. Continuous actions are in [-1, 1], the bounds of upstream's own range, which differs from that for
    Pendulum (2 N m), InvertedPendulum (3 N) and Humanoid (0.4).

    ## Rewards, Starting State, Episode End

    Upstream's.

    ## Arguments

    Those of the upstream environment: `gymnasium.make("ncp/PendulumNoVel-v1", g=5.0)`. Arguments that change what
    MuJoCo's environments observe are refused where the table's indices would no longer hold.

    ## Version History

    The number after the id's `-v` is that of the upstream environment.

    * All: initial version (ncp-rl 0.1).

    Args:
        upstream: Id of Gymnasium's environment, a key of `HIDDEN`.
        **kwargs: Arguments of that environment.

    Raises:
        DependencyNotInstalled: MuJoCo or Box2D is missing; the message has the command.
        ValueError: An argument changes the observation.
    """
    hidden = HIDDEN[upstream]
    env: gym.Env[Any, Any] = make_upstream(upstream, hidden.extra, **kwargs)
    if env.observation_space.shape != (hidden.size,):
        raise ValueError(
            f"{upstream} must observe {hidden.size} quantities here, got {env.observation_space}; arguments: {kwargs}."
        )
    if isinstance(env.action_space, spaces.Box) and not np.array_equal(np.abs(env.action_space.high), 1.0):
        ones = np.ones(env.action_space.shape, np.float32)
        env = RescaleAction(env, -ones, ones)
    actions = _joints_moved(env.unwrapped) if hidden.extra == "mujoco" else hidden.actions
    return Variant(NoVelocity(env, hidden.kept, hidden.names, LIMIT), actions)


def _joints_moved(env: Any) -> tuple[str, ...]:
    """Return the names of the joints of MuJoCo's actuators."""
    model = env.model
    return tuple(model.joint(model.actuator(i).trnid[0]).name for i in range(model.nu))
