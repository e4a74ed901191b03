"""What is registered under `ncp/`, for people who choose an environment."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
from gymnasium import spaces

from ncp_envs.hidden_state import HIDDEN, no_velocity_id

#: What the observation of an environment lacks, and a controller must find out; of those that hide no velocity alone.
_LACKS = {
    "ncp/PendulumIrregular-v0": "angular velocity; observations come at irregular times",
    "ncp/LaneKeeping-v0": "speed and wheel offset, both new in each episode",
    "ncp/LaneKeepingIrregular-v0": "speed and wheel offset; observations come at irregular times",
    "ncp/LaneKeepingCamera-v0": "all but a picture of 48 x 160 pixels",
}


@dataclass(frozen=True)
class Entry:
    """A registered environment.

    Attributes:
        id: For `gymnasium.make`, once ncp_envs is imported.
        hidden: What the observation lacks, and a controller must find out.
        observation_space, action_space: As text; "" where the environment cannot be made here.
        missing: Why it cannot be made here, with the pip command; "" where it can.
    """

    id: str
    hidden: str
    observation_space: str
    action_space: str
    missing: str = ""


def catalogue() -> list[Entry]:
    """All environments under `ncp/`, in the order of their registration; each is made and closed."""
    ids = [name for name in gym.registry if name.startswith("ncp/")]
    return [_entry(name) for name in ids]


def _entry(name: str) -> Entry:
    hidden = _hidden(name)
    try:
        env = gym.make(name)
    except gym.error.DependencyNotInstalled as error:
        return Entry(name, hidden, "", "", missing=str(error))
    try:
        return Entry(name, hidden, _text(env.observation_space), _text(env.action_space))
    finally:
        env.close()


def _hidden(name: str) -> str:
    if name in _LACKS:
        return _LACKS[name]
    upstream = {no_velocity_id(upstream): upstream for upstream in HIDDEN}[name]
    found = HIDDEN[upstream]
    return f"velocities: {found.size - len(found.kept)} of the {found.size} numbers of {upstream}"


def _text(space: spaces.Space[object]) -> str:
    """A space in a few words: kind, shape and type, without bounds."""
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{key}: {_text(part)}' for key, part in space.items())})"
    if isinstance(space, spaces.Box):
        return f"Box({', '.join(map(str, space.shape))}) {space.dtype}"
    return str(space)
