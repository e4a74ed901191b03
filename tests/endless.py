"""An environment whose episodes never end, for tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ID = "tests.endless:Endless-v0"


class Endless(gym.Env[Any, Any]):
    """A point that drifts, and that the action pushes back."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (Gymnasium's own form)
    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        noise = 0.1 * self.np_random.normal(size=2)
        self.x = np.clip(0.95 * self.x + 0.1 * action + noise, -10, 10).astype(np.float32)
        return self.x, -float(np.abs(self.x).sum()), False, False, {}


gym.register("Endless-v0", "tests.endless:Endless")
