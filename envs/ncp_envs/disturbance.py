"""Disturbances of an environment: each is a wrapper with a level. Level 0 is exactly the plain environment.

    env = DISTURBANCES["sensor_noise"](gymnasium.make("ncp_envs:ncp/PendulumNoVel-v1"), 0.1)

Every wrapper has its own random stream, which follows the seed of `reset`: under one seed, the environment beneath
draws the same numbers at every level, so that runs can be compared in pairs (except `sticky_action`). Disturbed
observations and actions stay in their spaces. In a Dict observation every Box is disturbed except `elapsed_time`, the
controller's own clock.

The size of an observed or commanded quantity is half the range of its Box. A quantity without bounds, or with bounds
of a thousand or more, which count as no bounds, has size 1: the level is then in its own unit. `scale` sets other
sizes, such as standard deviations seen in a recording.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import StickyAction

from ncp_envs.generator import OwnGenerator
from ncp_envs.irregular_time import ELAPSED_TIME

Array = npt.NDArray[Any]
#: Sizes of the quantities of a Box, in its shape or one for all; by key for Dict observations.
Scale = float | Sequence[Any] | Mapping[str, Any]

# A half range of this or more counts as no bound.
_UNBOUNDED = 1e3


class Disturbance(OwnGenerator, RecordConstructorArgs, ABC):
    """A disturbance of observations or actions; subclasses override what they disturb.

    Attributes:
        level: Strength of the disturbance; 0 leaves observations and actions unchanged. It may be set between episodes.
    """

    def __init__(self, env: gym.Env[Any, Any], level: float, **arguments: Any) -> None:
        """Wrap `env`; the subclass's `arguments` are kept in the spec.

        Raises:
            ValueError: The level is not a number from 0 on.
        """
        RecordConstructorArgs.__init__(self, level=level, **arguments)
        super().__init__(env)
        if not 0 <= level < np.inf:
            raise ValueError(f"level must be a number from 0 on, got {level}.")
        self.level = level

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and draw the disturbance's values for the episode."""
        observation, info = super().reset(seed=seed, options=options)
        if self.level == 0:
            return observation, info
        self.begin()
        return self.observe(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step with a disturbed action to a disturbed observation."""
        if self.level == 0:
            return self.env.step(action)
        observation, *outcome = self.env.step(self.act(action))
        return (self.observe(observation), *outcome)

    def begin(self) -> None:
        """Start an episode."""

    def observe(self, observation: Any) -> Any:
        """Return the disturbed observation."""
        return observation

    def act(self, action: Any) -> Any:
        """Return the disturbed action."""
        return action


class SensorDisturbance(Disturbance):
    """A disturbance of each Box of an observation; subclasses define the kind."""

    def __init__(self, env: gym.Env[Any, Any], level: float, **arguments: Any) -> None:
        """Wrap `env`.

        Raises:
            ValueError: No Box is observed, or the scale does not fit.
        """
        super().__init__(env, level, **arguments)
        space, scale = env.observation_space, arguments.get("scale")
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.boxes = {key: box for key, box in parts.items() if isinstance(box, spaces.Box) and key != ELAPSED_TIME}
        if not self.boxes:
            raise ValueError(f"{type(self).__name__} needs a Box observation, or a Dict with one, got {space}.")
        scales = scale if isinstance(scale, Mapping) else dict.fromkeys(self.boxes, scale)
        self.scales = {key: sizes(box, scales.get(key)) for key, box in self.boxes.items()}

    def observe(self, observation: Any) -> Any:
        """Return the observation with every Box disturbed; other spaces and the elapsed time stay unchanged."""
        if "" in self.boxes:
            return self._fit("", observation)
        return {key: self._fit(key, part) if key in self.boxes else part for key, part in observation.items()}

    def _fit(self, key: str, reading: Array) -> Array:
        return fitted(self.disturb(key, reading), self.boxes[key])

    @abstractmethod
    def disturb(self, key: str, reading: Array) -> Array:
        """Return the disturbed reading of a Box; it may lie outside the bounds, since the caller clips it."""


class SensorNoise(SensorDisturbance):
    """Adds normal noise to every observed quantity at every step.

    Level: standard deviation, as a share of the quantity's size.
    """

    def __init__(self, env: gym.Env[Any, Any], level: float, scale: Scale | None = None) -> None:
        """Wrap `env`; `scale` sets the sizes of the quantities."""
        super().__init__(env, level, scale=scale)

    def disturb(self, key: str, reading: Array) -> Array:
        """Add noise to each number."""
        noisy: Array = reading + self.level * self.scales[key] * self.generator.standard_normal(reading.shape)
        return noisy


class SensorBias(SensorDisturbance):
    """Shifts every observed quantity by an offset that holds for the episode; an image as a whole.

    Level: the offset, as a share of the quantity's size; its sign is drawn for each quantity and episode.
    """

    def __init__(self, env: gym.Env[Any, Any], level: float, scale: Scale | None = None) -> None:
        """Wrap `env`; `scale` sets the sizes of the quantities."""
        super().__init__(env, level, scale=scale)

    def begin(self) -> None:
        """Draw the signs."""
        self._signs = {
            key: self.generator.choice([-1.0, 1.0], size=() if is_image(box) else box.shape)
            for key, box in self.boxes.items()
        }

    def disturb(self, key: str, reading: Array) -> Array:
        """Add the episode's offset."""
        shifted: Array = reading + self.level * self.scales[key] * self._signs[key]
        return shifted


class SensorDropout(SensorDisturbance):
    """Loses readings, each quantity by itself, an image as a whole; the first of an episode always arrives.

    Level: probability that a reading is lost, at each step.
    """

    def __init__(self, env: gym.Env[Any, Any], level: float, fill: Literal["last", "zero"] = "last") -> None:
        """Wrap `env`.

        Args:
            env: The environment.
            level: Probability that a reading is lost, at each step.
            fill: What stands for a lost reading: the last one that arrived, or zero (the bound next to it, where zero
                is out of bounds).
        """
        super().__init__(env, level, fill=fill)
        if level > 1:
            raise ValueError(f"level must be a probability from 0 to 1, got {level}.")
        if fill not in ("last", "zero"):
            raise ValueError(f'fill must be "last" or "zero", got {fill!r}.')
        self.fill = fill

    def begin(self) -> None:
        """Forget the readings of the last episode."""
        self._last: dict[str, Array] = {}

    def disturb(self, key: str, reading: Array) -> Array:
        """Replace the lost readings by earlier ones, or by zero."""
        if key not in self._last:
            self._last[key] = reading
            return reading
        lost = self.generator.random(() if is_image(self.boxes[key]) else reading.shape) < self.level
        arrived = np.where(lost, self._last[key] if self.fill == "last" else 0, reading)
        self._last[key] = arrived
        return arrived


class ObservationDelay(Disturbance):
    """Shows observations late; in an episode's first steps it shows the first observation.

    Level: delay in steps, a whole number.

    Gymnasium's `DelayObservation` shows zeros at first, which are no valid angle of a pendulum and no elapsed time.
    """

    def __init__(self, env: gym.Env[Any, Any], level: float) -> None:
        """Wrap `env`."""
        super().__init__(env, level)
        whole(level)

    def begin(self) -> None:
        """Forget the observations of the last episode."""
        self._under_way: deque[Any] = deque(maxlen=whole(self.level) + 1)

    def observe(self, observation: Any) -> Any:
        """Return the observation of `level` steps ago, with the elapsed time of this step."""
        self._under_way.append(observation)
        late = self._under_way[0]
        if isinstance(late, Mapping) and ELAPSED_TIME in late:
            return {**late, ELAPSED_TIME: observation[ELAPSED_TIME]}
        return late


class ActionNoise(Disturbance):
    """Adds normal noise to continuous actions; replaces discrete ones at random.

    Level: standard deviation, as a share of half the action's range; for actions that are not in a Box, the probability
    that an action drawn uniformly takes its place.
    """

    def __init__(self, env: gym.Env[Any, Any], level: float) -> None:
        """Wrap `env`."""
        super().__init__(env, level)
        if not isinstance(env.action_space, spaces.Box) and level > 1:
            raise ValueError(f"level must be a probability from 0 to 1 for actions in {env.action_space}, got {level}.")

    def begin(self) -> None:
        """Seed the space that random actions are drawn from."""
        self._random_actions = copy.deepcopy(self.env.action_space)
        self._random_actions.seed(int(self.generator.integers(2**31)))

    def act(self, action: Any) -> Any:
        """Add noise to a continuous action, or replace a discrete one."""
        space = self.env.action_space
        if isinstance(space, spaces.Box):
            noise = self.generator.standard_normal(space.shape)
            return fitted(np.asarray(action) + self.level * sizes(space) * noise, space)
        return self._random_actions.sample() if self.generator.random() < self.level else action


class ActionDelay(Disturbance):
    """Carries actions out late; until the first one is due, the action is `idle`.

    Level: delay in steps, a whole number.
    """

    def __init__(self, env: gym.Env[Any, Any], level: float, idle: Any = None) -> None:
        """Wrap `env`.

        Args:
            env: The environment.
            level: Delay in steps.
            idle: The action until the first one is due. Where None: zero, or the bound next to it, for a Box; the first
                action of a discrete space.
        """
        super().__init__(env, level, idle=idle)
        whole(level)
        self.idle = idle_action(env.action_space) if idle is None else idle

    def begin(self) -> None:
        """Fill the queue with idle actions."""
        self._under_way: deque[Any] = deque([self.idle] * whole(self.level))

    def act(self, action: Any) -> Any:
        """Return the action of `level` steps ago."""
        self._under_way.append(copy.copy(action))
        return self._under_way.popleft()


class ActionGainError(Disturbance):
    """Actuators answer too strongly or too weakly: each action is multiplied by 1 + level or 1 - level.

    Level: error of the gain; its sign is drawn for each action and episode.
    """

    def __init__(self, env: gym.Env[Any, Any], level: float) -> None:
        """Wrap `env`.

        Raises:
            ValueError: The actions are not a Box and cannot be multiplied.
        """
        super().__init__(env, level)
        if not isinstance(env.action_space, spaces.Box):
            raise ValueError(f"ActionGainError needs continuous actions (Box), got {env.action_space}.")
        self._actions = env.action_space

    def begin(self) -> None:
        """Draw the signs."""
        self._gain = 1.0 + self.level * self.generator.choice([-1.0, 1.0], size=self._actions.shape)

    def act(self, action: Any) -> Any:
        """Multiply the action by the episode's gains."""
        return fitted(self._gain * action, self._actions)


def sticky_action(env: gym.Env[Any, Any], level: float) -> gym.Env[Any, Any]:
    """Wrap `env` in Gymnasium's `StickyAction`: with probability `level`, below 1, the last action is repeated.

    `StickyAction` draws from the environment's own random stream, at probability 0 too; so level 0 returns `env`
    itself.
    """
    return StickyAction(env, level) if level else env


#: For each name, a function from an environment and a level to the disturbed environment.
DISTURBANCES: dict[str, Callable[[gym.Env[Any, Any], float], gym.Env[Any, Any]]] = {
    "sensor_noise": SensorNoise,
    "sensor_bias": SensorBias,
    "sensor_dropout": SensorDropout,
    "observation_delay": ObservationDelay,
    "action_noise": ActionNoise,
    "action_delay": ActionDelay,
    "action_gain_error": ActionGainError,
    "sticky_action": sticky_action,
}

#: For each name, the unit of its level.
LEVEL_UNITS: dict[str, str] = {
    "sensor_noise": "standard deviation, share of the quantity's size",
    "sensor_bias": "offset, share of the quantity's size",
    "sensor_dropout": "probability per reading",
    "observation_delay": "steps",
    "action_noise": "standard deviation, share of half the range; probability for discrete actions",
    "action_delay": "steps",
    "action_gain_error": "relative error of the gain",
    "sticky_action": "probability per step",
}


#: For each name, the levels that a sweep tries.
LEVELS: dict[str, tuple[float, ...]] = {
    "sensor_noise": (0.0, 0.05, 0.1, 0.2),
    "sensor_bias": (0.0, 0.05, 0.1, 0.2),
    "sensor_dropout": (0.0, 0.1, 0.3, 0.5),
    "observation_delay": (0.0, 1.0, 2.0, 4.0),
    "action_noise": (0.0, 0.1, 0.2, 0.4),
    "action_delay": (0.0, 1.0, 2.0, 4.0),
    "action_gain_error": (0.0, 0.1, 0.2, 0.4),
    "sticky_action": (0.0, 0.1, 0.25, 0.5),
}


class Fault(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """A disturbance that begins in mid-episode, to see whether a monitor notices."""

    def __init__(self, env: gym.Env[Any, Any], disturbance: str, level: float, onset: int) -> None:
        """Wrap `env`.

        Args:
            env: The environment.
            disturbance: Name of a `Disturbance`.
            level: Level of the disturbance from the onset on.
            onset: Step of each episode whose action and observation are the first to be disturbed, from 1 on.

        Raises:
            ValueError: There is no such disturbance, or onset is not a step from 1 on.
        """
        RecordConstructorArgs.__init__(self, disturbance=disturbance, level=level, onset=onset)
        disturbed = DISTURBANCES[disturbance](env, level) if disturbance in DISTURBANCES else None
        if not isinstance(disturbed, Disturbance):
            known = [name for name, make in DISTURBANCES.items() if make is not sticky_action]
            raise ValueError(f"disturbance must be one of {', '.join(known)}, got {disturbance!r}.")
        if onset < 1:
            raise ValueError(f"onset must be a step from 1 on, got {onset}.")
        super().__init__(env)  # Not around `disturbed`: the spec would name both, and rebuild the disturbance twice.
        self._disturbed, self._level, self._onset = disturbed, level, onset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, undisturbed."""
        self._disturbed.level, self._step = 0, 0
        return self._disturbed.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, disturbed from the onset on."""
        self._step += 1
        if self._step == self._onset:
            self._disturbed.level = self._level
            self._disturbed.begin()
        return self._disturbed.step(action)


def sizes(box: spaces.Box, scale: Any = None) -> Array:
    """Return size of each quantity of a Box, in its shape: half its range, or 1 where that says nothing; or `scale`.

    Raises:
        ValueError: The scale does not fit the Box.
    """
    if scale is None:
        half = (box.high.astype(np.float64) - box.low) / 2
        return np.where(half < _UNBOUNDED, half, 1.0)
    try:
        return np.broadcast_to(np.asarray(scale, np.float64), box.shape)
    except ValueError as error:
        raise ValueError(f"scale must be a number or have the shape {box.shape}, got {scale}.") from error


def fitted(values: Array, box: spaces.Box) -> Array:
    """Return the values in the Box: within its bounds, rounded where it has whole numbers, of its dtype."""
    whole_numbers = np.issubdtype(box.dtype, np.integer)
    return np.clip(np.rint(values) if whole_numbers else values, box.low, box.high).astype(box.dtype)


def is_image(box: spaces.Box) -> bool:
    """Return whether the quantities of a Box are pixels."""
    return box.dtype == np.uint8 and len(box.shape) >= 2


def whole(level: float) -> int:
    """Return a level that counts steps as an integer.

    Raises:
        ValueError: The level is not a whole number.
    """
    if level != int(level):
        raise ValueError(f"level is a number of steps and must be a whole number, got {level}.")
    return int(level)


def idle_action(space: spaces.Space[Any]) -> Any:
    """Return the action zero, or the action nearest to it.

    Raises:
        ValueError: The space has no such action.
    """
    if isinstance(space, spaces.Box):
        return fitted(np.zeros(space.shape), space)
    if isinstance(space, spaces.Discrete):
        return space.start
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.copy()
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, space.dtype)
    raise ValueError(f"The idle action of {space} is not known; give it as idle=...")
