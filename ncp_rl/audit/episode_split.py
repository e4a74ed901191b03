"""`split_episodes`: some episodes to learn from, the others to be scored on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def split_episodes(n_episodes: int, n_held_out: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split the numbers 0 to n_episodes - 1 at random into two ascending parts; the second has `n_held_out` numbers.

    Episodes are split, never steps: steps of one episode resemble each other, so that a step held out of an episode
    whose other steps were learned from would prove nothing.
    """
    order = np.random.default_rng(seed).permutation(n_episodes)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])
