"""Environments that put a recurrent controller to the test, registered in Gymnasium under `ncp/` on import.

    env = gymnasium.make("ncp_envs:ncp/PendulumNoVel-v1")

The prefix `ncp_envs:` lets Gymnasium import this package; after `import ncp_envs` it can be left out.
"""

from gymnasium.envs.registration import register

from ncp_envs.hidden_state import NoVelocity

__all__ = ["NoVelocity"]

register(
    id="ncp/PendulumNoVel-v1",
    entry_point="gymnasium.envs.classic_control.pendulum:PendulumEnv",
    max_episode_steps=200,
    additional_wrappers=(NoVelocity.wrapper_spec(kept=(0, 1), names=("cos_theta", "sin_theta")),),
)
