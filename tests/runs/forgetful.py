"""An environment whose pickle does not hold what it holds, for tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Forgetful(gym.Env[Any, Any]):
    """Leaves out of its pickle what it holds, without a word."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (Gymnasium's own form)
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    x = 0.0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x, self.left = float(self.np_random.uniform(-1, 1)), 10
        return np.array([self.x], np.float32), {}

    def step(self, action: Any) -> Any:
        self.left = getattr(self, "left", 10) - 1
        return np.array([self.x], np.float32), -abs(self.x), self.left == 0, False, {}


gym.register("Forgetful-v0", "tests.runs.forgetful:Forgetful")
