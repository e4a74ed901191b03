"""The configuration of a run: environment, hyperparameters and seed; and hyperparameters from a file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ncp_rl.errors import NCPError
from ncp_rl.extras import require
from ncp_rl.runs import settings

#: Settings of a circuit for environments without tuned ones: rewards are normalised here, observations by the policy.
GENERAL: dict[str, Any] = dict(
    n_envs=8,
    n_timesteps=200_000,
    normalize=dict(norm_obs=False, norm_reward=True),
    n_steps=128,
    batch_size=128,
    learning_rate="lin_6e-4",
)

#: Added to a run's seed for the environments of its evaluations, which must start differently from those of training.
EVALUATION_SEED = 10_000


_VERSIONS_OF = ("ncp-rl", "torch", "numpy", "numba", "gymnasium", "stable-baselines3", "sb3-contrib")


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {name: version(name) for name in _VERSIONS_OF}


class RunError(NCPError):
    """Raised where a request concerning a run cannot be fulfilled; the message says why, and what to do."""


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run, which is saved as config.json in its folder."""

    env: str
    """Gymnasium id; `module:id` imports the module first."""
    hyperparams: dict[str, Any]
    """In rl-zoo's form: n_envs, n_timesteps, normalize, frame_stack, policy, policy_kwargs, env_kwargs, env_wrapper,
    vec_env_wrapper, monitor_kwargs, callback and the algorithm's arguments; see `ncp_rl.settings`. Classes are named by
    their dotted paths, and their modules are imported."""
    seed: int = 0
    versions: dict[str, str] = field(default_factory=installed_versions)
    python: str = field(default_factory=platform.python_version)
    max_episode_steps: int | None = None
    """Steps after which episodes of evaluations, recordings and audits are cut; None takes the environment's own limit.
    Episodes of training always follow the environment's own limit."""

    def __post_init__(self) -> None:
        """Parse hyperparameters that are text.

        Raises:
            RunError: A hyperparameter cannot be read.
        """
        object.__setattr__(self, "hyperparams", _plain(self.hyperparams))

    @property
    def n_timesteps(self) -> int:
        """Number of environment steps of the whole training."""
        return int(self.hyperparams.get("n_timesteps") or 1e5)

    def with_n_timesteps(self, n_timesteps: int) -> RunConfig:
        """Return the same configuration for another number of environment steps in all."""
        return replace(self, hyperparams=self.hyperparams | dict(n_timesteps=n_timesteps))

    def differences(self, other: RunConfig) -> list[str]:
        """Return a clause for each setting of another run that differs, the length of the training aside."""
        mine, others = (_flat(json.loads(to_json(config.with_n_timesteps(1)))) for config in (self, other))
        names = [name for name in {**mine, **others} if name.split(".")[0] not in ("versions", "python")]
        return [
            f"{name} is {mine.get(name, 'not given')!r} here and {others.get(name, 'not given')!r} there"
            for name in names
            if mine.get(name) != others.get(name)
        ]


def _flat(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted paths."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return flat


def read_hyperparams(path: Path, env_id: str) -> dict[str, Any]:
    """Read the hyperparameters of `env_id` from a yaml file in rl-zoo's form; return {} where it has none.

    As in rl-zoo, `default` applies to environments that the file does not name. Entries as `dict(...)` strings are read
    as literals, where rl-zoo executes them: nothing of a file is executed. Classes that it names are imported when the
    run is made.

    Raises:
        RunError: The file cannot be read as such.
        ncp_rl.extras.MissingExtraError: PyYAML is not installed.
    """
    require("cli", "yaml", by="A file of hyperparameters")
    import yaml

    try:
        entries = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise RunError(f"The hyperparameters {path} cannot be read: {error}") from error
    if not isinstance(entries, Mapping):
        raise RunError(f"{path} must map environment ids to hyperparameters, got {type(entries).__name__}.")
    found = settings.of_environment(entries, env_id)
    if not isinstance(found, Mapping):
        raise RunError(f"The hyperparameters of {env_id} in {path} must be a mapping, got {type(found).__name__}.")
    return _plain(found)


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return settings.plain(found)
    except ValueError as error:
        raise RunError(str(error)) from error


def to_json(config: RunConfig) -> str:
    """Return the text of config.json.

    Raises:
        RunError: The file cannot hold the hyperparameters.
    """
    try:
        return json.dumps(asdict(config), indent=2) + "\n"
    except TypeError as error:
        raise RunError(
            f"The hyperparameters cannot be kept in config.json: {error}. Give numbers, text, lists and mappings; name "
            "classes by their dotted paths."
        ) from error
