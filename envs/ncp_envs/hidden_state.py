"""Tasks whose velocities are hidden, so that a controller must remember to see motion."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs


class NoVelocity(gym.ObservationWrapper[npt.NDArray[Any], Any, npt.NDArray[Any]], RecordConstructorArgs):
    """Leaves the velocities out of a vector observation: entries are dropped, not zeroed.

    ## Environments

    | Id                   | Num | Observation    | Min  | Max | Unit |
    |----------------------|-----|----------------|------|-----|------|
    | ncp/PendulumNoVel-v1 | 0   | x = cos(theta) | -1.0 | 1.0 | -    |
    |                      | 1   | y = sin(theta) | -1.0 | 1.0 | -    |

    ## Rewards, Starting State, Episode End

    Those of the environment beneath; for ncp/PendulumNoVel-v1, Gymnasium's Pendulum-v1 (200 steps of 0.05 s).

    ## Version History

    * v1: as the Pendulum-v1 beneath; initial version.
    """

    def __init__(
        self, env: gym.Env[npt.NDArray[Any], Any], kept: tuple[int, ...], names: tuple[str, ...] | None = None
    ) -> None:
        """Wrap `env`.

        Args:
            env: With a Box observation of one dimension.
            kept: Indices of the entries that stay, in their new order.
            names: Of the entries that stay, kept as `observation_names`.

        Raises:
            ValueError: The observation is no vector, or indices and names do not fit it.
        """
        RecordConstructorArgs.__init__(self, kept=kept, names=names)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"NoVelocity needs a Box observation of one dimension, got {space}.")
        if not kept or not all(0 <= index < space.shape[0] for index in kept):
            raise ValueError(f"kept must be indices from 0 to {space.shape[0] - 1}, got {kept}.")
        if names is not None and len(names) != len(kept):
            raise ValueError(f"names must name the {len(kept)} entries kept, got {names}.")
        self._kept = np.array(kept)
        self.observation_names = names
        self.observation_space = spaces.Box(space.low[self._kept], space.high[self._kept], dtype=space.dtype.type)

    def observation(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The entries that stay."""
        kept: npt.NDArray[Any] = observation[self._kept]
        return kept
