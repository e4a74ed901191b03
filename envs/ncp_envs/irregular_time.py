"""Tasks whose observations come at irregular times, so that a controller must take the elapsed time into account."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import TimeLimit

from ncp_envs.generator import OwnGenerator
from ncp_envs.hidden_state import make_no_velocity
from ncp_envs.variant import Variant, make_upstream, step_seconds

#: Key of the observation that holds the seconds since the last one.
ELAPSED_TIME = "elapsed_time"


class IrregularTime(OwnGenerator, RecordConstructorArgs):
    """Draws the time between observations anew for each step, and adds it to the observation.

    An environment that integrates any span of time, by an attribute `interval` (seconds that its next step lasts), is
    given a span drawn uniformly from `interval`. Any other environment repeats its step a random number of times,
    uniformly from those whose time lies in `interval`; rewards add up, and the end of the episode ends the repeats. The
    action stays the same meanwhile; the controller knows the last span, not the coming one.

    The observation is a Dict: `observation`, or the keys of a Dict beneath, and `elapsed_time`, (1,) float32, seconds
    since the last observation. At an episode's start, which has no last one, it is one step, or the shortest span.
    """

    def __init__(self, env: gym.Env[Any, Any], interval: tuple[float, float], seconds: float | None = None) -> None:
        """Wrap `env`.

        Args:
            env: Any environment.
            interval: Shortest and longest time between observations, in seconds.
            seconds: Duration of a step of `env`, where it is repeated; None takes its own `dt` (or `tau`).

        Raises:
            ValueError: The interval does not fit, or the duration of a step of the environment is not known.
        """
        RecordConstructorArgs.__init__(self, interval=tuple(interval), seconds=seconds)
        super().__init__(env)
        low, high = interval
        if not 0 < low <= high < np.inf:
            raise ValueError(
                f"interval must be (shortest, longest) seconds with 0 < shortest <= longest, got {interval}."
            )
        self.integrates = seconds is None and hasattr(env.unwrapped, "interval")
        self.interval = (float(low), float(high))
        self.first = self.interval[0]
        if not self.integrates:
            self.first = self.seconds = _duration(env, seconds)
            # A tolerance for rounding: 0.15 / 0.05 is 2.9999999999999996.
            self.repeats = (int(np.ceil(low / self.seconds - 1e-9)), int(np.floor(high / self.seconds + 1e-9)))
            if self.repeats[0] > self.repeats[1]:
                raise ValueError(
                    f"interval must hold a multiple of the step's {self.seconds} s, got {low} to {high} s; widen it."
                )
        beneath = env.observation_space
        parts = dict(beneath.spaces) if isinstance(beneath, spaces.Dict) else {"observation": beneath}
        if ELAPSED_TIME in parts:
            raise ValueError(
                f"The observation must not have a key {ELAPSED_TIME!r} before the wrapper adds it, got {beneath}."
            )
        parts[ELAPSED_TIME] = spaces.Box(np.float32(self.first), np.float32(max(high, self.first)), (1,), np.float32)
        self.observation_space = spaces.Dict(parts)

    @property
    def observation_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the observed quantities by key, as far as the environment names them."""
        if not self.env.has_wrapper_attr("observation_names"):
            return {}
        names = self.env.get_wrapper_attr("observation_names")
        if names is None:
            return {}
        return dict(names) if isinstance(self.env.observation_space, spaces.Dict) else {"observation": tuple(names)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and the stream of spans."""
        observation, info = super().reset(seed=seed, options=options)
        return self._timed(observation, self.first), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Hold the action for a drawn span of time."""
        if self.integrates:
            seconds = float(self.generator.uniform(*self.interval))
            self.env.unwrapped.interval = seconds  # type: ignore[attr-defined]
            observation, reward, terminated, truncated, info = self.env.step(action)
            return self._timed(observation, seconds), reward, terminated, truncated, info
        total, done = 0.0, 0
        for _ in range(self.generator.integers(*self.repeats, endpoint=True)):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total, done = total + float(reward), done + 1
            if terminated or truncated:
                break
        return self._timed(observation, done * self.seconds), total, terminated, truncated, info

    def _timed(self, observation: Any, seconds: float) -> dict[str, Any]:
        parts = observation if isinstance(self.env.observation_space, spaces.Dict) else {"observation": observation}
        return {**parts, ELAPSED_TIME: np.array([seconds], np.float32)}


def _duration(env: gym.Env[Any, Any], seconds: float | None) -> float:
    known = step_seconds(env) if seconds is None else seconds
    if known is None or not known > 0:
        raise ValueError(
            f"The duration of a step of {env} must be positive seconds, got {known}; give it as seconds=..."
        )
    return known


def make_pendulum_irregular(interval: tuple[float, float] = (0.05, 0.15), **kwargs: Any) -> Variant:
    """Make a pendulum without velocity, observed at irregular times: only the elapsed time reveals the velocity.

    ## Action Space

    | Num | Action                                            | Min  | Max | Unit  |
    |-----|---------------------------------------------------|------|-----|-------|
    | 0   | torque, held until the next observation           | -1.0 | 1.0 | 2 N m |

    ## Observation Space

    | Key          | Num | Observation                                  | Min  | Max  | Unit |
    |--------------|-----|----------------------------------------------|------|------|------|
    | observation  | 0   | x = cos(theta)                               | -1.0 | 1.0  | -    |
    |              | 1   | y = sin(theta)                               | -1.0 | 1.0  | -    |
    | elapsed_time | 0   | time since the last observation              | 0.05 | 0.15 | s    |

    ## Rewards

    Those of Pendulum-v1, added up over the steps of 0.05 s between two observations: one to three, drawn uniformly.

    ## Starting State

    As Pendulum-v1.

    ## Episode End

    After 10 s, as in Pendulum-v1 (200 steps of the simulation, about 100 of the controller), so that returns compare.

    ## Arguments

    `interval`: shortest and longest time between observations in seconds, multiples of 0.05; others go to Pendulum-v1.

    ## Version History

    * v0: initial version (ncp-rl 0.1).
    """
    return Variant(IrregularTime(TimeLimit(make_no_velocity("Pendulum-v1", **kwargs), 200), interval))


def make_lane_keeping_irregular(interval: tuple[float, float] = (0.02, 0.18), **kwargs: Any) -> Variant:
    """Make lane keeping from observations at irregular times; the car moves for exactly the time drawn.

    ## Action Space

    That of ncp/LaneKeeping-v0; the steering holds until the next observation.

    ## Observation Space

    | Key          | Num | Observation                     | Min  | Max  | Unit |
    |--------------|-----|---------------------------------|------|------|------|
    | observation  |     | that of ncp/LaneKeeping-v0      |      |      |      |
    | elapsed_time | 0   | time since the last observation | 0.02 | 0.18 | s    |

    ## Rewards

    That of ncp/LaneKeeping-v0, in proportion to the time.

    ## Starting State

    As ncp/LaneKeeping-v0.

    ## Episode End

    As ncp/LaneKeeping-v0; after 500 observations, 50 s on average.

    ## Arguments

    `interval`: shortest and longest time between observations in seconds; others go to ncp/LaneKeeping-v0.

    ## Version History

    * v0: initial version (ncp-rl 0.1).
    """
    return Variant(IrregularTime(make_upstream("ncp/LaneKeeping-v0", **kwargs), interval))
