"""`OwnGenerator`: a wrapper with its own random numbers, independent of those of the environment beneath."""

from __future__ import annotations

import zlib
from typing import Any

import gymnasium as gym
import numpy as np


class OwnGenerator(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper with a random stream of its own, so that the environment beneath draws what it would draw without it.

    Attributes:
        generator: Generator seeded from the seed of `reset`, the wrapper's class and its place among the wrappers.
    """

    generator: np.random.Generator

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap `env` with a generator that is not seeded yet."""
        super().__init__(env)
        self.generator = np.random.default_rng()
        kind, place = zlib.crc32(type(self).__name__.encode()), 0
        while isinstance(env, gym.Wrapper):
            env, place = env.env, place + 1
        self._stream = (kind, place)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; a seed seeds the wrapper's own stream too."""
        self.reseed(seed)
        return self.env.reset(seed=seed, options=options)

    def reseed(self, seed: int | None) -> None:
        """Begin the wrapper's own stream anew; where None, it goes on."""
        if seed is not None:
            self.generator = np.random.default_rng((seed, *self._stream))
