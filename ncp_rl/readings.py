"""Readings: which numbers of an observation a controller cannot act on, and their replacement.

`NCPPolicy.predict` documents what a policy does with bad readings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ncp_rl.encoder import ELAPSED_TIME

Array = npt.NDArray[Any]
OnBadInput = Literal["raise", "hold"]

#: Added to the `episode_starts` (0 or 1) of environments whose neurons are held through a step.
HELD = 2

#: Networks compute in float32, where a larger number is infinite.
LARGEST = float(np.finfo(np.float32).max)
_FLOAT32 = np.dtype(np.float32)


class BadInputError(ValueError):
    """Raised for a reading that no controller can act on; the message names it, its index and its environment."""


class BadReading(NamedTuple):
    """The first bad reading of an environment."""

    env: int
    key: str | None
    """Key of the Dict observation that holds it; None where the observation is not a Dict."""
    at: tuple[int, ...]
    """Index of the reading in the observation, or in that key's part of it."""
    flat: int
    """Index of the reading in the flattened observation, or in that key's flattened part."""
    n_readings: int
    """Number of readings of the observation, or of that key's part of it."""
    name: str
    """Name of the reading; a numbered one unless the encoder names it."""
    value: float
    expected: str
    """Description of a good reading at this place."""

    def named(self, names: tuple[str, ...]) -> BadReading:
        """Return the reading with its name among `names`, those of the flattened readings, where their number fits."""
        return self._replace(name=names[self.flat]) if len(names) == self.n_readings else self

    def sentence(self) -> str:
        """Return a sentence: which reading is bad, its value, and what it must be."""
        text = str(self)
        return f"{text[0].upper()}{text[1:]}; {self.name} must be {self.expected}."

    def __str__(self) -> str:
        """Return a clause: which reading is bad, and its value."""
        at = self.at[0] if len(self.at) == 1 else self.at
        where = "" if self.key is None else f" of key {self.key!r}"
        return f"the observation {self.name!r} (index {at}{where}) of environment {self.env} is {self.value:g}"


class BadInput(NamedTuple):
    """Bad readings in an observation of N environments."""

    rows: npt.NDArray[np.bool_]
    """(N,) bool, whether an environment has a bad reading."""
    readings: dict[int, BadReading]
    """First bad reading of each environment that has one, by its number."""

    @property
    def first(self) -> BadReading:
        """The bad reading of the first environment that has one."""
        return self.readings[int(self.rows.argmax())]


def find_bad(observation: Any, space: spaces.Space[Any], *, unread: tuple[str, ...] = ()) -> BadInput | None:
    """Return the bad readings of an observation, or None. The check takes microseconds.

    A reading is bad where it is not finite (as float32), an elapsed time also where it is negative, and a number of a
    discrete space where the space lacks it.

    Args:
        observation: An array, or a dict of arrays, of one environment or of N environments.
        space: Space of one environment's observation.
        unread: Keys that are not checked.
    """
    if isinstance(space, spaces.Dict) and isinstance(observation, dict):
        parts = [(part, space.spaces.get(key), key == ELAPSED_TIME) for key, part in observation.items()]
        good = all(_is_good(*part) for part in parts)
    else:
        good = _is_good(observation, space, False)
    return None if good else _describe(observation, space, unread)


def replace_bad(observation: Any, space: spaces.Space[Any]) -> Any:
    """Return a copy of the observation with zeros in place of bad readings."""
    replaced = {
        key: np.where(_wrong(part, part_space, key == ELAPSED_TIME), 0, part).astype(part.dtype)
        for key, part, part_space in _parts(observation, space)
    }
    return {**observation, **replaced} if isinstance(observation, dict) else replaced[None]


def _parts(observation: Any, space: spaces.Space[Any]) -> Iterator[tuple[str | None, Array, spaces.Space[Any]]]:
    """Yield key, array and space of each part; Stable-Baselines3 refuses what does not fit its space."""
    if isinstance(space, spaces.Dict):
        given = observation.items() if isinstance(observation, dict) else ()
        pairs = [(key, part, space.spaces[key]) for key, part in given if key in space.spaces]
    else:
        pairs = [(None, observation, space)]
    for key, value, part_space in pairs:
        part = np.asarray(value)
        if part_space.shape in (part.shape, part.shape[1:]):
            yield key, part, part_space


def is_finite(array: Array) -> bool:
    """Return whether every number is finite, by the sum of squares, which takes half the time of `isfinite`."""
    # The sum of squares may overflow although all numbers are finite.
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _is_good(value: Any, space: spaces.Space[Any] | None, seconds: bool) -> bool:
    """Return whether no reading is bad, by the fastest way for what most policies observe."""
    if type(space) is spaces.Box and not seconds and getattr(value, "dtype", None) is _FLOAT32:
        return is_finite(value)
    return space is None or not any(
        _wrong(part, part_space, seconds).any() for _, part, part_space in _parts(value, space)
    )


def _wrong(part: Array, space: spaces.Space[Any], seconds: bool) -> npt.NDArray[np.bool_]:
    """Return where the readings of a part are bad, in their shape."""
    values = discrete_values(space)
    if values is not None:
        low, n = values
        return np.asarray(~((part >= low) & (part < low + n)))
    wrong = ~(np.abs(part) <= LARGEST) if part.dtype.kind == "f" else np.zeros(part.shape, np.bool_)
    return np.asarray(wrong | (part < 0) if seconds else wrong)


def discrete_values(space: spaces.Space[Any]) -> tuple[Any, Any] | None:
    """Return the lowest number of a discrete space and how many it has; None for a Box."""
    if isinstance(space, spaces.Discrete):
        return space.start, space.n
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.nvec
    return (0, 2) if isinstance(space, spaces.MultiBinary) else None


def _describe(observation: Any, space: spaces.Space[Any], unread: tuple[str, ...]) -> BadInput | None:
    """Describe the bad readings; return None where only unread keys have any, or the observation does not fit."""
    found: dict[int, BadReading] = {}
    n_envs = 1
    for key, part, part_space in _parts(observation, space):
        wrong, size = _wrong(part, part_space, key == ELAPSED_TIME), int(np.prod(part_space.shape or ()))
        values, wrong = part.reshape(-1, size), wrong.reshape(-1, size)
        n_envs = len(values)
        for env in [] if key in unread else np.flatnonzero(wrong.any(axis=1)).tolist():
            flat = int(wrong[env].argmax())
            index = tuple(map(int, np.unravel_index(flat, part_space.shape or (1,))))
            expected = _expected(part_space, flat, key == ELAPSED_TIME)
            name = f"obs_{flat}" if key is None else key
            found.setdefault(env, BadReading(env, key, index, flat, size, name, float(values[env, flat]), expected))
    if not found:
        return None
    rows = np.zeros(n_envs, np.bool_)
    rows[list(found)] = True
    return BadInput(rows, found)


def _expected(space: spaces.Space[Any], flat: int, seconds: bool) -> str:
    values = discrete_values(space)
    if values is not None:
        low, n = (int(np.broadcast_to(bound, space.shape or ()).flat[flat]) for bound in values)
        return f"a whole number from {low} to {low + n - 1}"
    if seconds:
        return "finite seconds, not negative; keep it out of normalisation (VecNormalize: norm_obs_keys)"
    return "a finite number"
