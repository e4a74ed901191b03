"""What the commands know of ncp_envs: its environments, registered on import of this module, and its disturbances."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym
import ncp_envs

from ncp_rl.runs import RunError


def levels_of(settings: Iterable[str]) -> dict[str, Any]:
    """Levels of disturbances from text; see `ncp_envs.read_levels`.

    Raises:
        RunError: There is no such disturbance, or no such level.
    """
    try:
        return dict(ncp_envs.read_levels(settings))
    except ValueError as error:
        raise RunError(str(error)) from error


def disturbing(settings: Iterable[str]) -> Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]:
    """What disturbs an environment as text says.

    Raises:
        RunError: See `levels_of`.
    """
    levels = levels_of(settings)
    return lambda env: ncp_envs.RandomDisturbances(env, **levels) if levels else env
