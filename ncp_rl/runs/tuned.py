"""Hyperparameters of a run: tuned ones of a file, or general ones, with what a user gives in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gymnasium import spaces

from ncp_rl.policy import DEFAULT_WIRING
from ncp_rl.runs import settings
from ncp_rl.runs.config import GENERAL, RunConfig, RunError, read_hyperparams
from ncp_rl.runs.environments import make_envs
from ncp_rl.runs.models import is_circuit, is_recurrent, policy_class

#: In a wheel the files lie in the package, in a checkout beside it.
_FOLDERS = (Path(__file__).parents[1] / "hyperparams", Path(__file__).parents[2] / "hyperparams")


def tuned_file(name: str = "ncp_ppo.yml") -> Path:
    """A file of hyperparameters by environment, in rl-zoo's form, that comes with ncp_rl.

    Args:
        name: "ncp_ppo.yml": those of NCP policies; "peers_lstm.yml", "peers_ppo.yml": rl-zoo's of baselines.

    Raises:
        RunError: This installation has no such file.
    """
    found = [folder / name for folder in _FOLDERS if (folder / name).is_file()]
    if not found:
        raise RunError(
            f"{name} is neither in {' nor in '.join(map(str, _FOLDERS))}; install ncp-rl again, or name a file of "
            "hyperparameters yourself."
        )
    return found[0]


def tuned_settings(env: str, policy: str | None = None) -> dict[str, Any]:
    """Hyperparameters that come with ncp_rl for an environment; {} where there are none.

    Those of circuits are this project's own. Those of other policies are rl-zoo's, of `MlpLstmPolicy` with RecurrentPPO
    and of `MlpPolicy` with PPO, so that a baseline is compared at its best.

    Args:
        env: Its Gymnasium id.
        policy: As in `policy` of the hyperparameters.

    Raises:
        RunError: There is no such policy, or this installation lacks the file.
    """
    if is_circuit(policy):
        return read_hyperparams(tuned_file(), env)
    return read_hyperparams(tuned_file("peers_lstm.yml" if is_recurrent(policy) else "peers_ppo.yml"), env)


def general_settings(env: str, policy: str | None = None) -> dict[str, Any]:
    """Hyperparameters of an environment that nobody has tuned any for.

    Those of circuits are `GENERAL`, with gSDE where actions are continuous: noise that lasts four steps adds up to a
    movement. With more actions each has less of it, so that all together move as far.

    Args:
        env: Its Gymnasium id; for a circuit it is made once, to see what its actions are.
        policy: As in `policy` of the hyperparameters.

    Raises:
        RunError: The environment cannot be made, or there is no such policy.
    """
    if not is_circuit(policy):
        return dict(n_envs=8, normalize=True)
    venv = make_envs(RunConfig(env, {}), 1)
    venv.close()
    if not isinstance(venv.action_space, spaces.Box):
        return dict(GENERAL)
    n_actions = math.prod(venv.action_space.shape)
    log_std = round(-1.0 - 0.5 * math.log(n_actions), 2)
    return GENERAL | dict(use_sde=True, sde_sample_freq=4, policy_kwargs=dict(log_std_init=log_std))


def with_given(
    found: Mapping[str, Any],
    *,
    policy: str | None = None,
    n_envs: int | None = None,
    n_timesteps: int | None = None,
    **circuit: Any,
) -> dict[str, Any]:
    """Hyperparameters with what a user gives in their place; None is not given.

    Args:
        found: Hyperparameters. Arguments of their policy are left out where the given one is of another kind, a
            circuit or none, and where it does not take them.
        policy: The policy.
        n_envs: Environments side by side.
        n_timesteps: Environment steps in all.
        **circuit: Cell and critic of a circuit, and entries of its wiring, such as recipe, units and sparsity.

    Raises:
        RunError: There is no such policy, or it is no circuit and arguments of a circuit are given.
    """
    entries = dict(found)
    policy_kwargs = dict(entries.get("policy_kwargs") or {})
    if policy not in (None, entries.get("policy")):
        policy_kwargs = _kept(policy_kwargs, entries.get("policy"), policy)
    entries |= _given(dict(policy=policy, n_envs=n_envs, n_timesteps=n_timesteps))
    if is_circuit(entries.get("policy")):
        policy_kwargs = _circuit(policy_kwargs, **circuit)
    elif _given(circuit):
        names = ", ".join(_given(circuit))
        raise RunError(f"Only NCP policies have {names}, and {entries['policy']} is no NCP policy; leave out {names}.")
    return entries | dict(policy_kwargs=policy_kwargs)


def _kept(policy_kwargs: dict[str, Any], described: str | None, given: str) -> dict[str, Any]:
    """What a policy takes of the arguments of another one."""
    if is_circuit(given):
        return policy_kwargs if is_circuit(described) else {}
    if described is not None and is_circuit(described):
        return {}
    policy = policy_class(given)
    assert policy is not None
    unknown = settings.unknown_arguments(given, policy, policy_kwargs)
    return {name: value for name, value in policy_kwargs.items() if name not in unknown}


def _circuit(policy_kwargs: dict[str, Any], *, cell: Any = None, critic: Any = None, **wiring: Any) -> dict[str, Any]:
    """Arguments of an NCP policy, with what is given in their place."""
    wired = dict(policy_kwargs.get("wiring") or dict(recipe="AutoNCP", **asdict(DEFAULT_WIRING)))
    if wiring.get("recipe") not in (None, wired.get("recipe", "AutoNCP")):
        wired = {"units": wired.get("units", 32)}  # The other entries belong to their own recipe.
    return policy_kwargs | dict(wiring=wired | _given(wiring)) | _given(dict(cell=cell, critic=critic))


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
