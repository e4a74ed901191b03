"""The bird's eye view for those who ask for it: only drawing needs pygame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gymnasium.error import DependencyNotInstalled

from ncp_envs.lane_keeping.dynamics import INTERVAL
from ncp_envs.lane_keeping.simulation import Simulation

if TYPE_CHECKING:
    from ncp_envs.lane_keeping.render import BirdsEye

RENDER_FPS = round(1.0 / INTERVAL)


def birds_eye(simulation: Simulation, index: int = 0) -> BirdsEye:
    """What draws car `index` of a simulation.

    Raises:
        gymnasium.error.DependencyNotInstalled: pygame is not installed; the message has the command.
    """
    try:
        from ncp_envs.lane_keeping.render import BirdsEye
    except ModuleNotFoundError as error:
        raise DependencyNotInstalled(
            f'Drawing a car needs what is not installed ({error}); run: pip install "ncp-rl[envs]"'
        ) from error
    return BirdsEye(simulation, index)
