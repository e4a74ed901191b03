"""`Variant`: an environment made of another one and wrappers around it."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.error import DependencyNotInstalled


class Variant(gym.Env[Any, Any]):
    """Another environment with wrappers around it, as an environment of its own: `unwrapped` is this one.

    Checkers, and all that looks at `env.unwrapped`, see the spaces of the variant, not those of what lies beneath.

    Attributes:
        env: The environment beneath with its wrappers; `env.unwrapped` is the simulator.
        action_names: A name for each number of a Box, or each choice of a Discrete space; None where they have none.
    """

    def __init__(self, env: gym.Env[Any, Any], action_names: tuple[str, ...] | None = None) -> None:
        """Make an environment of `env`; where `action_names` is None, its own names are kept."""
        self.env = env
        if action_names is None and env.has_wrapper_attr("action_names"):
            action_names = env.get_wrapper_attr("action_names")
        self.action_names = action_names
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata, self.render_mode = env.metadata, env.render_mode

    @property
    def dt(self) -> float | None:
        """Seconds of a step of the environment beneath; None where it has no unit of time."""
        return step_seconds(self.env)

    @property
    def observation_names(self) -> Any:
        """Names of the observed quantities: a tuple, or by key for Dict observations."""
        return self.env.get_wrapper_attr("observation_names")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment beneath."""
        super().reset(seed=seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment beneath."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        # Some of Gymnasium's own return NumPy's scalars, which its checkers and SB3's refuse.
        return observation, float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """Render the environment beneath."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment beneath."""
        self.env.close()


def step_seconds(env: gym.Env[Any, Any]) -> float | None:
    """Return the seconds of a step: `dt` in Gymnasium's environments, `tau` in its CartPole, else None."""
    for name in ("dt", "tau"):
        seconds = getattr(env.unwrapped, name, None)
        if seconds is not None:
            return float(seconds)
    return None


def make_upstream(upstream: str, extra: str | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make Gymnasium's environment `upstream` without wrappers: the variant's id brings its own limit and checks.

    Args:
        upstream: Id of the environment.
        extra: The extra of ncp-rl that brings what it needs.
        **kwargs: Arguments of the environment.

    Raises:
        DependencyNotInstalled: A package is missing; the message has the command.
    """
    try:
        return gym.make(upstream, disable_env_checker=True, **kwargs).unwrapped
    except (DependencyNotInstalled, ImportError) as error:
        if extra is None:
            raise
        raise DependencyNotInstalled(
            f'{upstream} needs a package that is not installed ({error}); run `pip install "ncp-rl[{extra}]"`.'
        ) from error
