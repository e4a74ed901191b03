"""`RandomDisturbances`: an environment to train in, disturbed by levels that are drawn anew for each episode."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar, SupportsFloat

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import StickyAction

from ncp_envs.disturbance import DISTURBANCES, LEVEL_UNITS, Disturbance
from ncp_envs.generator import OwnGenerator

#: A level, or the lowest and the highest that an episode may have.
Levels = float | list[float]

_SETTING = re.compile(r"(?P<name>\w+)=(?P<low>[-+.\deE]+?)(\.\.(?P<high>[-+.\deE]+))?")


class RandomDisturbances(OwnGenerator, RecordConstructorArgs):
    """Several disturbances at once, each at a level drawn uniformly for the episode; levels that count steps are whole.

        env = RandomDisturbances(gymnasium.make("ncp/PendulumNoVel-v1"), observation_delay=[0, 2], sensor_noise=0.05)

    Levels come from the wrapper's own stream, which follows the seed of `reset`; the order of the arguments does not
    matter. Spaces are those of the environment, which draws the same numbers as without disturbances (except under
    `sticky_action`).

    Attributes:
        training_only: Tells those who make environments from settings that this wrapper is for training, and for
            choosing the best model during it; afterwards a policy is evaluated and audited without.
        levels: Lowest and highest level by name.
        drawn: Level of this episode by name.
    """

    training_only: ClassVar[bool] = True

    def __init__(self, env: gym.Env[Any, Any], **levels: Levels) -> None:
        """Wrap `env`.

        Args:
            env: The environment.
            **levels: By name of a disturbance in `DISTURBANCES`, a level, or the lowest and the highest one.

        Raises:
            ValueError: There is no such disturbance or level, or it does not fit the environment's spaces.
        """
        RecordConstructorArgs.__init__(self, **levels)  # type: ignore[arg-type]  # No level is named as its own argument.
        super().__init__(env)
        for name, given in levels.items():
            _check(name, given)
        self.levels = {name: _bounds(levels[name]) for name in DISTURBANCES if name in levels}
        self.drawn: dict[str, float] = {}
        self._parts: dict[str, gym.Env[Any, Any]] = {}
        # The chain stands beside `self.env`, not in it: the spec names this wrapper alone.
        self._disturbed = env
        for name, (_, high) in self.levels.items():
            self._disturbed = self._parts[name] = _wrapped(name, self._disturbed, high)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw the levels of the episode and reset the environment."""
        self.reseed(seed)
        for name, bounds in self.levels.items():
            self.drawn[name] = self._draw(name, *bounds)
            _set_level(self._parts[name], self.drawn[name])
        return self._disturbed.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the disturbed environment."""
        return self._disturbed.step(action)

    def _draw(self, name: str, low: float, high: float) -> float:
        if _counts_steps(name):
            return float(self.generator.integers(int(low), int(high), endpoint=True))
        return float(self.generator.uniform(low, high))


def read_levels(settings: Iterable[str]) -> dict[str, Levels]:
    """Return the levels from text, as a command line has them.

        read_levels(["observation_delay=0..2", "sensor_noise=0.05"])  # {"observation_delay": [0, 2], ...}

    Raises:
        ValueError: A text has another form, names no disturbance or level, or a name is given twice.
    """
    levels: dict[str, Levels] = {}
    for setting in settings:
        parts = _SETTING.fullmatch(setting.strip())
        if parts is None:
            raise ValueError(f"A disturbance must be set as NAME=LEVEL or NAME=LOW..HIGH, got {setting!r}. {known()}")
        name = parts["name"]
        if name in levels:
            raise ValueError(f"{name} is set twice; give each disturbance one level or range.")
        low = _number(setting, parts["low"])
        levels[name] = low if parts["high"] is None else [low, _number(setting, parts["high"])]
        _check(name, levels[name])
    return levels


def known() -> str:
    """Return a sentence with the names of all disturbances and the units of their levels."""
    return f"Disturbances are {'; '.join(f'{name} ({unit})' for name, unit in LEVEL_UNITS.items())}."


def _number(setting: str, text: str) -> float:
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError as error:
        raise ValueError(f"The level in {setting!r} must be a number, got {text!r}. {known()}") from error


def _check(name: str, given: Any) -> None:
    """Refuse an unknown disturbance, and a level that it cannot have."""
    if name not in DISTURBANCES:
        raise ValueError(f"There is no disturbance {name!r}. {known()}")
    pair = given if isinstance(given, (list, tuple)) else [given, given]
    numbers = len(pair) == 2 and all(isinstance(bound, (int, float)) and not isinstance(bound, bool) for bound in pair)
    if not numbers or not 0 <= pair[0] <= pair[1] < float("inf"):
        raise ValueError(
            f"{name} must be a level from 0 on, or [lowest, highest], got {given!r}; its unit is: {LEVEL_UNITS[name]}."
        )
    if _counts_steps(name) and any(bound != int(bound) for bound in pair):
        raise ValueError(f"{name} counts steps and takes whole numbers, got {given!r}.")


def _bounds(given: Levels) -> tuple[float, float]:
    low, high = given if isinstance(given, (list, tuple)) else (given, given)
    return float(low), float(high)


def _counts_steps(name: str) -> bool:
    return LEVEL_UNITS[name] == "steps"


def _wrapped(name: str, env: gym.Env[Any, Any], highest: float) -> gym.Env[Any, Any]:
    try:
        return DISTURBANCES[name](env, highest)
    except (ValueError, gym.error.Error) as error:
        raise ValueError(f"{name} cannot have a level of {highest:g} here: {error}") from error


def _set_level(wrapper: gym.Env[Any, Any], level: float) -> None:
    if isinstance(wrapper, StickyAction):
        wrapper.repeat_action_probability = level
    elif isinstance(wrapper, Disturbance):  # Else the plain environment, which `sticky_action` gives at level 0.
        wrapper.level = level
