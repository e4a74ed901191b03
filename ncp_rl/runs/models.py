"""The policy of a run and the algorithm that trains it: those named, or the NCP that fits the observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.policy import CnnNCPPolicy, MultiInputNCPPolicy, NCPPolicy
from ncp_rl.refusals import check_spaces
from ncp_rl.runs import settings
from ncp_rl.runs.config import RunConfig, RunError

POLICIES: dict[str, type[NCPPolicy]] = {
    policy.__name__: policy for policy in (NCPPolicy, CnnNCPPolicy, MultiInputNCPPolicy)
}
#: SB3's own policies for comparison, and the algorithms that train them.
BASELINES: dict[str, type[OnPolicyAlgorithm]] = {
    "MlpLstmPolicy": RecurrentPPO,
    "CnnLstmPolicy": RecurrentPPO,
    "MultiInputLstmPolicy": RecurrentPPO,
    "MlpPolicy": PPO,
    "CnnPolicy": PPO,
    "MultiInputPolicy": PPO,
}


def algorithm(config: RunConfig) -> type[OnPolicyAlgorithm]:
    """Return the algorithm that trains a run's policy: RecurrentPPO, or PPO for policies without memory.

    Raises:
        RunError: There is no such policy.
    """
    return RecurrentPPO if is_recurrent(config.hyperparams.get("policy")) else PPO


def policy_class(name: str | None) -> type[ActorCriticPolicy] | None:
    """Return the policy class of a name: one of ncp_rl or SB3, or a dotted path that is imported; None for None.

    Raises:
        RunError: There is no such policy.
    """
    if name is None:
        return None
    if name in POLICIES:
        return POLICIES[name]
    if name in BASELINES:
        aliases: Mapping[str, Any] = BASELINES[name].policy_aliases
        found = aliases[name]
    elif isinstance(name, str) and "." in name:
        try:
            found = settings.import_path("policy", name)
        except ValueError as error:
            raise RunError(str(error)) from error
    else:
        known = ", ".join([*POLICIES, *BASELINES])
        raise RunError(f"policy must be one of {known} or a dotted path such as ncp_rl.NCPPolicy, got {name!r}.")
    if not isinstance(found, type) or not issubclass(found, ActorCriticPolicy):
        raise RunError(f"policy: {name!r} must be an actor-critic policy for PPO or RecurrentPPO, got {found!r}.")
    return found


def is_circuit(policy: str | None) -> bool:
    """Return whether `policy` of the hyperparameters names an NCP; None stands for the NCP that fits.

    Raises:
        RunError: There is no such policy.
    """
    found = policy_class(policy)
    return found is None or issubclass(found, NCPPolicy)


def is_recurrent(policy: str | None) -> bool:
    """Return whether `policy` of the hyperparameters names one with a memory, as all NCPs have.

    Raises:
        RunError: There is no such policy.
    """
    found = policy_class(policy)
    return found is None or issubclass(found, RecurrentActorCriticPolicy)


def make_model(config: RunConfig, venv: VecEnv, device: str = "auto") -> OnPolicyAlgorithm:
    """Make an untrained model on `venv`.

    Raises:
        RunError: No policy serves the spaces, or the hyperparameters do not fit them.
    """
    try:
        check_spaces(venv.observation_space, venv.action_space)
        arguments = settings.algorithm_arguments(algorithm(config), config.hyperparams)
        policy = _policy_for(config, venv.observation_space)
        kwargs = _policy_kwargs(config, policy, venv)
        return algorithm(config)(policy, venv, policy_kwargs=kwargs, seed=config.seed, device=device, **arguments)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"No policy can be made for {config.env!r}: {error}") from error


def _policy_for(config: RunConfig, observation_space: spaces.Space[Any]) -> type[ActorCriticPolicy]:
    """Return the named policy, or the NCP that fits the observation."""
    named = policy_class(config.hyperparams.get("policy"))
    if named is not None:
        return named
    if isinstance(observation_space, spaces.Dict):
        return MultiInputNCPPolicy
    return CnnNCPPolicy if is_image_space(observation_space) else NCPPolicy


def _policy_kwargs(config: RunConfig, policy: type[ActorCriticPolicy], venv: VecEnv) -> dict[str, Any]:
    kwargs = settings.policy_arguments(policy, config.hyperparams.get("policy_kwargs"))
    if not issubclass(policy, NCPPolicy):
        return kwargs
    seconds = seconds_per_step(venv)
    if seconds is not None:
        kwargs = dict(elapsed_time=seconds) | kwargs
    if venv.has_attr("action_names"):
        kwargs = dict(action_names=venv.get_attr("action_names", indices=0)[0]) | kwargs
    takes_names = not issubclass(policy, CnnNCPPolicy) and "features_extractor_class" not in kwargs
    if takes_names and venv.has_attr("observation_names"):
        names = _observation_names(config, venv)
        kwargs["features_extractor_kwargs"] = dict(names=names) | (kwargs.get("features_extractor_kwargs") or {})
    return kwargs


def seconds_per_step(venv: VecEnv) -> float | None:
    """Return the seconds of an environment's step, by its `interval`, `dt` or render_fps; None where unknown."""
    for name in ("interval", "dt"):
        seconds = venv.get_attr(name, indices=0)[0] if venv.has_attr(name) else None
        if isinstance(seconds, (int, float)) and 0 < seconds < np.inf:
            return float(seconds)
    metadata = venv.get_attr("metadata", indices=0)[0] if venv.has_attr("metadata") else {}
    frames = (metadata or {}).get("render_fps")
    return 1.0 / frames if isinstance(frames, (int, float)) and 0 < frames < np.inf else None


def _observation_names(config: RunConfig, venv: VecEnv) -> Any:
    """Return the environment's names of observed quantities, also of stacked ones; None where wrappers add others.

    Raises:
        ValueError: The names have another form than the observation.
    """
    names = venv.get_attr("observation_names", indices=0)[0]
    if names is None:
        return None
    space, found = venv.observation_space, config.hyperparams
    if isinstance(names, Mapping) != isinstance(space, spaces.Dict):
        raise ValueError(
            f"observation_names must be texts, or for a Dict observation a mapping of its keys to texts, got {names}."
        )
    n_stack = int(found.get("frame_stack") or 1)
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    by_key = {
        key: named for key, named in (names if isinstance(names, Mapping) else {"": names}).items() if key in parts
    }
    by_key = {key: [*_earlier(named, n_stack), *named] for key, named in by_key.items()}
    rewrapped = found.get("env_wrapper") or found.get("vec_env_wrapper")
    if rewrapped and any(len(named) != get_flattened_obs_dim(parts[key]) for key, named in by_key.items()):
        return None
    return by_key if isinstance(names, Mapping) else by_key[""]


def _earlier(names: Sequence[str], n_stack: int) -> list[str]:
    """Return names of the observations before the last one in a stack, oldest first."""
    return [f"{name}_before_{age}" for age in range(n_stack - 1, 0, -1) for name in names]
