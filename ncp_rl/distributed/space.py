"""Search spaces: which settings a sweep varies, and between what, as a yml file says.

    NCPPolicy:                                          # the policy whose space this is
      learning_rate: {loguniform: [1e-4, 1e-3], linear: true}
      batch_size: {choice: [64, 128, 256]}
      policy_kwargs.wiring.units: {int: [16, 48]}       # a dotted name leads into nested settings

A name is a setting of the hyperparameters in rl-zoo's form. Nothing of a file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ncp_rl.errors import NCPError
from ncp_rl.extras import require
from ncp_rl.runs import is_circuit
from ncp_rl.runs.settings import SCHEDULED, plain

#: Policies that have no space of their own in a file take this one's, if they are circuits.
CIRCUITS = "NCPPolicy"

_RANGES = ("uniform", "loguniform", "int", "logint")
_FORMS = (
    "{uniform: [low, high]}, {loguniform: [low, high]}, {int: [low, high]}, {logint: [low, high]} or {choice: [...]}"
)


class SpaceError(NCPError):
    """A search space cannot be read; the message says what was expected, what came, and what to do."""


@dataclass(frozen=True)
class Dimension:
    """A setting that a sweep varies."""

    name: str
    """Name of the setting; dots lead into nested settings."""
    kind: str
    """uniform, loguniform, int, logint or choice."""
    values: tuple[Any, ...]
    """Both bounds, which belong to the range; or all choices."""
    linear: bool = False
    """Whether the value is where a schedule begins that falls linearly to 0."""

    @staticmethod
    def of(name: str, entry: Any) -> Dimension:
        """A dimension as a yml file has it.

        Raises:
            SpaceError: The entry has another form.
        """
        if not isinstance(entry, Mapping) or len(kinds := [kind for kind in entry if kind != "linear"]) != 1:
            raise SpaceError(f"{name} of a search space must be one of {_FORMS}, got {entry!r}.")
        kind, linear = kinds[0], entry.get("linear", False)
        values = plain({kind: entry[kind]})[kind]
        if kind not in (*_RANGES, "choice"):
            raise SpaceError(f"{name} of a search space must be one of {_FORMS}, got {kind!r}.")
        if not isinstance(values, list) or not values:
            raise SpaceError(f"{name}: {kind} must be followed by a list, as in {_FORMS}, got {values!r}.")
        if kind in _RANGES:
            _check_range(name, kind, values)
        if not isinstance(linear, bool) or (linear and (name not in SCHEDULED or kind not in _RANGES)):
            raise SpaceError(
                f"{name}: linear must be true or false, and true only for ranges of {', '.join(SCHEDULED)}, got "
                f"{linear!r}."
            )
        return Dimension(name, kind, tuple(values), linear)

    def distribution(self) -> BaseDistribution:
        """The same for Optuna, which knows choices among texts, numbers, truth values and null alone."""
        if self.kind == "choice":
            return CategoricalDistribution([_label(value) for value in self.values])
        low, high = self.values
        log = self.kind.startswith("log")
        return IntDistribution(low, high, log) if "int" in self.kind else FloatDistribution(low, high, log)

    def setting(self, drawn: Any) -> Any:
        """What stands in the hyperparameters for a value that Optuna has drawn."""
        if self.kind == "choice":
            return next(value for value in self.values if _label(value) == drawn)
        return f"lin_{drawn:.6g}" if self.linear else drawn

    def drawn(self, setting: Any) -> Any:
        """What Optuna would have drawn for a setting of the hyperparameters; None where it never would."""
        if self.kind == "choice":
            return next((_label(value) for value in self.values if value == setting), None)
        if self.linear != (isinstance(setting, str) and setting.startswith("lin_")):
            return None
        try:
            value = number(setting)
        except ValueError:
            return None
        if not self.values[0] <= value <= self.values[1]:
            return None
        return int(value) if "int" in self.kind else value


def number(setting: Any) -> float:
    """A number, or that at which a schedule of the form lin_<number> begins.

    Raises:
        ValueError: The setting is neither.
    """
    return float(str(setting).removeprefix("lin_"))


def _check_range(name: str, kind: str, values: list[Any]) -> None:
    whole = "int" in kind
    kinds = (int,) if whole else (int, float)
    numbers = len(values) == 2 and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
    if not numbers or not values[0] < values[1] or (kind.startswith("log") and values[0] <= 0):
        raise SpaceError(
            f"{name}: {kind} must be followed by two {'whole ' if whole else ''}numbers, the lower one first"
            f"{', both above 0' if kind.startswith('log') else ''}, got {values!r}."
        )


def _label(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)


def dimensions(space: Mapping[str, Any]) -> list[Dimension]:
    """The dimensions of a space, as a yml file has them by name.

    Raises:
        SpaceError: One of them has another form.
    """
    return [Dimension.of(name, entry) for name, entry in space.items()]


def read_space(path: Path, policy: str | None) -> dict[str, Any]:
    """The search space of a policy from a yml file.

    Args:
        path: Path of the file.
        policy: As in `policy` of the hyperparameters; the last part of a dotted path counts. Circuits that the file
            does not name have the space of `NCPPolicy`, other policies that of `default`.

    Returns:
        Entries by name; see `dimensions`.

    Raises:
        SpaceError: The file cannot be read, has no space for the policy, or a dimension is wrong.
    """
    require("cli", "yaml", by="A search space")
    import yaml

    try:
        spaces = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SpaceError(f"The search space {path} cannot be read: {error}") from error
    if not isinstance(spaces, Mapping) or not spaces:
        raise SpaceError(f"{path} must map policies to search spaces, got {spaces!r}; see ncp_rl.distributed.space.")
    name = (policy or CIRCUITS).rpartition(".")[2]
    names = [name, *([CIRCUITS] if is_circuit(policy) else []), "default"]
    found = next((spaces[name] for name in names if name in spaces), None)
    if not isinstance(found, Mapping) or not found:
        raise SpaceError(
            f"{path} has no search space for {name}, it has some for {', '.join(map(str, spaces))}; add one: a mapping "
            f"of names of settings to {_FORMS}."
        )
    dimensions(found)
    return dict(found)


def values_in(hyperparams: Mapping[str, Any], space: Sequence[Dimension]) -> dict[str, Any]:
    """What Optuna would have drawn for hyperparameters: of each dimension that they have a value of, by its name."""
    found = {}
    for dimension in space:
        level: Any = hyperparams
        for part in dimension.name.split("."):
            level = level.get(part) if isinstance(level, Mapping) else None
        drawn = None if level is None else dimension.drawn(level)
        if drawn is not None:
            found[dimension.name] = drawn
    return found


def with_values(hyperparams: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters with values of a space in their place.

    Args:
        hyperparams: In rl-zoo's form.
        values: By dotted name; nested settings that are missing on the way are made.

    Raises:
        SpaceError: On the way stands something that holds no settings by name.
    """
    found = dict(hyperparams)
    for name, value in values.items():
        *way, last = name.split(".")
        level = found
        for part in way:
            below = level.get(part)
            if below is not None and not isinstance(below, Mapping):
                raise SpaceError(
                    f"{name} of the search space leads through {part}, which is {below!r} here, no mapping."
                )
            level[part] = level = dict(below or {})
        level[last] = value
    return found
