"""`make_envs`: makes, seeds, wraps, stacks and normalises the environments of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from ncp_rl.encoder import ELAPSED_TIME
from ncp_rl.refusals import check_spaces
from ncp_rl.runs import settings
from ncp_rl.runs.config import EVALUATION_SEED, RunConfig, RunError


def make_envs(
    config: RunConfig,
    n_envs: int,
    *,
    training: bool = True,
    training_wrappers: bool = True,
    max_episode_steps: int | None = None,
    **make_kwargs: Any,
) -> VecEnv:
    """Make the environments of a run: monitored, seeded, wrapped, stacked and normalised as configured.

    rl-zoo stacks normalised observations. Here stacks are normalised, each place of a stack by its own statistics,
    so that a recording holds the whole observation that the policy acted on.

    Args:
        config: Configuration of the run.
        n_envs: Number of environments side by side.
        training: Whether normalisation statistics move and rewards are normalised.
        training_wrappers: Whether to apply those of the run's wrappers that are for training only, such as
            `ncp_envs.RandomDisturbances`: their class has an attribute `training_only = True`.
        max_episode_steps: Steps after which episodes are cut. None takes the environment's own limit for training,
            and the run's limit otherwise.
        **make_kwargs: Arguments of `make_vec_env`, such as `env_kwargs`, which override the run's own, or
            `wrapper_class`, which is applied around the run's own.

    Raises:
        RunError: The environment does not exist, cannot be made, or has spaces that no policy serves.
    """
    seed = config.seed if training else config.seed + EVALUATION_SEED
    if max_episode_steps is None and not training:
        max_episode_steps = config.max_episode_steps
    found = config.hyperparams
    try:
        make_kwargs = _make_kwargs(found, make_kwargs, training_wrappers)
        make_kwargs["env_kwargs"] |= _cut(max_episode_steps)
        venv = make_vec_env(config.env, n_envs=n_envs, seed=seed, **make_kwargs)
        made: Any = venv.get_attr("unwrapped", indices=0)[0]
        # Arguments of Gymnasium itself, such as max_episode_steps, are not arguments of the class.
        settings.check_arguments(config.env, type(made), found.get("env_kwargs") or {}, names=False)
        wrap = settings.wrapper("vec_env_wrapper", found.get("vec_env_wrapper"), training=training_wrappers)
        venv = _stacked(config, venv if wrap is None else wrap(venv))
    except (gym.error.Error, AssertionError, ImportError, TypeError, ValueError) as error:
        raise RunError(f"The environment {config.env!r} cannot be made: {error}") from error
    normalize = found.get("normalize")
    if normalize is None or normalize is False:
        return venv
    kwargs = _what_to_normalize(venv.observation_space) | (dict(normalize) if isinstance(normalize, Mapping) else {})
    kwargs |= {"gamma": found["gamma"]} if "gamma" in found else {}  # As in rl-zoo, it overrides that of `normalize`.
    kwargs |= dict(training=training)
    if not training:
        kwargs["norm_reward"] = False
    try:
        settings.check_arguments("normalize", VecNormalize, kwargs)
        return VecNormalize(venv, **kwargs)
    except (TypeError, ValueError) as error:
        raise RunError(f"Observations of {config.env!r} cannot be normalised with {kwargs}: {error}") from error


def has_training_wrappers(config: RunConfig) -> bool:
    """Whether training has wrappers that later evaluations do without: see `training_wrappers` of `make_envs`.

    Raises:
        ValueError: A wrapper cannot be imported.
    """
    wrappers = settings.named("env_wrapper", config.hyperparams.get("env_wrapper"))
    return any(getattr(wrapper.call, "training_only", False) for wrapper in wrappers)


def _cut(max_episode_steps: int | None) -> dict[str, Any]:
    """Return the arguments of `gym.make` with which Gymnasium cuts episodes after this many steps."""
    if max_episode_steps is None:
        return {}
    if max_episode_steps < 1:
        raise RunError(f"max_episode_steps must be at least 1, got {max_episode_steps}.")
    return dict(max_episode_steps=max_episode_steps)


def _make_kwargs(found: Mapping[str, Any], given: Mapping[str, Any], training_wrappers: bool) -> dict[str, Any]:
    """Return the arguments of `make_vec_env`, from those given and those of the hyperparameters."""
    own = settings.wrapper("env_wrapper", found.get("env_wrapper"), training=training_wrappers)
    outer = given.get("wrapper_class")

    def wrap(env: gym.Env[Any, Any], **kwargs: Any) -> gym.Env[Any, Any]:
        wrapped = env if own is None else own(env)
        wrapped = wrapped if outer is None else outer(wrapped, **kwargs)
        # The spaces are checked here, since vectorised environments fail on some without naming them.
        check_spaces(wrapped.observation_space, wrapped.action_space)
        return wrapped

    merged = {name: {**(found.get(name) or {}), **(given.get(name) or {})} for name in ("env_kwargs", "monitor_kwargs")}
    return {**given, **merged, "wrapper_class": wrap}


def _stacked(config: RunConfig, venv: VecEnv) -> VecEnv:
    """Stack the last observations of the environments as rl-zoo's `frame_stack` says.

    Raises:
        ValueError: The observation cannot be stacked.
    """
    n_stack = config.hyperparams.get("frame_stack")
    if n_stack is None:
        return venv
    if isinstance(venv.observation_space, spaces.Dict) and ELAPSED_TIME in venv.observation_space.spaces:
        raise ValueError(
            f"frame_stack must be left out where {ELAPSED_TIME!r} is observed, since it would stack the time too."
        )
    try:
        return VecFrameStack(venv, int(n_stack))
    except (AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"frame_stack cannot stack {venv.observation_space}: {error}") from error


def _what_to_normalize(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return VecNormalize's arguments for vectors: SB3 scales images, and elapsed times must stay in seconds."""
    if not isinstance(space, spaces.Dict):
        return dict(norm_obs=_is_vector(space))
    keys = [key for key, part in space.items() if key != ELAPSED_TIME and _is_vector(part)]
    return dict(norm_obs=bool(keys), norm_obs_keys=keys or None)


def _is_vector(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and not is_image_space(space)
