"""Environments that put a recurrent controller to the test, registered in Gymnasium under `ncp/` on import.

    env = gymnasium.make("ncp_envs:ncp/PendulumNoVel-v1")

The prefix `ncp_envs:` lets Gymnasium import this package; after `import ncp_envs` it can be left out.
"""

import gymnasium
from gymnasium.envs.registration import register

from ncp_envs.disturbance import (
    DISTURBANCES,
    LEVEL_UNITS,
    ActionDelay,
    ActionGainError,
    ActionNoise,
    Fault,
    ObservationDelay,
    SensorBias,
    SensorDropout,
    SensorNoise,
)
from ncp_envs.hidden_state import HIDDEN, NoVelocity, no_velocity_id
from ncp_envs.irregular_time import IrregularTime
from ncp_envs.random_disturbances import RandomDisturbances, read_levels

__all__ = [
    "DISTURBANCES",
    "LEVEL_UNITS",
    "ActionDelay",
    "ActionGainError",
    "ActionNoise",
    "Fault",
    "IrregularTime",
    "NoVelocity",
    "ObservationDelay",
    "RandomDisturbances",
    "SensorBias",
    "SensorDropout",
    "SensorNoise",
    "read_levels",
]

for _upstream in HIDDEN:
    register(
        id=no_velocity_id(_upstream),
        entry_point="ncp_envs.hidden_state:make_no_velocity",
        kwargs=dict(upstream=_upstream),
        max_episode_steps=gymnasium.spec(_upstream).max_episode_steps,
        reward_threshold=gymnasium.spec(_upstream).reward_threshold,
    )

register(id="ncp/PendulumIrregular-v0", entry_point="ncp_envs.irregular_time:make_pendulum_irregular")

register(
    id="ncp/LaneKeepingIrregular-v0",
    entry_point="ncp_envs.irregular_time:make_lane_keeping_irregular",
    max_episode_steps=500,
)

register(
    id="ncp/LaneKeeping-v0",
    entry_point="ncp_envs.lane_keeping.env:LaneKeepingEnv",
    vector_entry_point="ncp_envs.lane_keeping.vector:LaneKeepingVectorEnv",
    max_episode_steps=1000,
)

register(
    id="ncp/LaneKeepingCamera-v0",
    entry_point="ncp_envs.lane_keeping.env:LaneKeepingCameraEnv",
    vector_entry_point="ncp_envs.lane_keeping.vector:LaneKeepingCameraVectorEnv",
    max_episode_steps=1000,
)
