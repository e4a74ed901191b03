"""Environments in the middle of their episodes as bytes, so that a resumed training continues their episodes.

The bytes are a pickle. As with the models of Stable-Baselines3, load only bytes that you trust.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from gymnasium.utils import EzPickle
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

# Attributes of a layer of vectorised environments that follow from how it was made.
_MADE = ("venv", "class_attributes")


class Packed(NamedTuple):
    """Environments as bytes, or a clause on why they cannot be packed."""

    data: bytes | None
    why_not: str = ""


def pack(venv: VecEnv) -> Packed:
    """Pack the state of environments and of the layers around them, random streams included.

    Args:
        venv: Environments in a `DummyVecEnv`; others cannot be packed.
    """
    if not isinstance(_layers(venv)[-1], DummyVecEnv):
        return Packed(None, f"they are in a {type(_layers(venv)[-1]).__name__}, not in a DummyVecEnv")
    parts = [{name: part for name, part in vars(layer).items() if name not in _MADE} for layer in _layers(venv)]
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(parts)
    except Exception as error:  # An environment's own code may raise anything, which is then the reason.
        return Packed(None, f"they cannot be pickled: {type(error).__name__}: {error}")
    return Packed(buffer.getvalue())


def unpack(data: bytes, venv: VecEnv) -> str:
    """Restore packed state in environments of the same configuration; return why it is impossible, else "".

    Args:
        data: Bytes that `pack` made.
        venv: Environments of the same configuration; they do not change where it is impossible.
    """
    try:
        parts = pickle.loads(data)
    except Exception as error:
        return f"they cannot be unpickled: {type(error).__name__}: {error}"
    venv.close()
    for layer, part in zip(_layers(venv), parts, strict=True):
        vars(layer).update(part)
    return ""


def difference_after_step(data: bytes, venv: VecEnv) -> str:
    """Check that packing kept all state: an unpacked copy takes the same step and must end in the same state.

    Some classes silently leave state out of a pickle. `gymnasium.utils.EzPickle` does so too, but is
    bypassed.

    Args:
        data: Bytes that `pack` made one step ago.
        venv: The environments after that step.

    Returns:
        A clause on how the copy differs, or "".
    """
    original: Any = _layers(venv)[-1]
    twin: Any = copy.copy(original)
    try:
        vars(twin).update(pickle.loads(data)[-1])
        twin.step_async(original.actions)
        twin.step_wait()
    except Exception as error:  # An environment's own code may raise anything.
        return f"a copy of them fails: {type(error).__name__}: {error}"
    same = all(_equal(getattr(twin, name), getattr(original, name)) for name in ("buf_obs", "buf_rews", "buf_dones"))
    return "" if same else "an unpickled copy of them takes the next step differently"


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles the state of an environment where `EzPickle` would pickle its arguments."""

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle.Pickler.reducer_override`."""
        if isinstance(obj, EzPickle):
            return object.__new__, (type(obj),), vars(obj), None, None, _fill
        return super().reducer_override(obj)


def _fill(obj: Any, parts: dict[str, Any]) -> None:
    vars(obj).update(parts)


def _layers(venv: VecEnv) -> list[VecEnv]:
    """Return the layers of vectorised environments, from the outermost to the environments themselves."""
    layers = [venv]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    return layers


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_equal(a[key], b[key]) for key in a)
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
