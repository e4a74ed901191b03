"""An environment with any spaces, for tests of policies and runs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class RandomEnv(gym.Env[Any, Any]):
    """Random observations of any space, short episodes of random length."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], render_mode: str | None = None
    ) -> None:
        self.observation_space, self.action_space, self.render_mode = observation_space, action_space, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = int(self.np_random.integers(1, 7))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.left -= 1
        return self.observation_space.sample(), float(self.np_random.normal()), self.left == 0, False, {}


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-1, 1, shape, np.float32)


TIMED = spaces.Dict(
    x=box(3), image=spaces.Box(0, 255, (36, 36, 3), np.uint8), elapsed_time=spaces.Box(0, 1, (1,), np.float32)
)
