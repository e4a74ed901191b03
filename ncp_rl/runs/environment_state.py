"""Environments in the middle of their episodes, kept as bytes: where they can be, a training goes on as if never cut.

The bytes are a pickle. As with the models of Stable-Baselines3, load those alone that you trust.
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

# What a layer of vectorised environments has from how it was made.
_MADE = ("venv", "class_attributes")


class Packed(NamedTuple):
    """Environments as bytes, or why there are none."""

    data: bytes | None
    why_not: str = ""


def pack(venv: VecEnv) -> Packed:
    """All that environments and the layers around them hold, random streams included.

    Args:
        venv: Environments in a `DummyVecEnv`; others cannot be packed.
    """
    if not isinstance(_layers(venv)[-1], DummyVecEnv):
        return Packed(None, f"they are in a {type(_layers(venv)[-1]).__name__}, not in a DummyVecEnv")
    parts = [{name: part for name, part in vars(layer).items() if name not in _MADE} for layer in _layers(venv)]
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(parts)
    except Exception as error:  # Whatever an environment's own code raises: it says why there are none.
        return Packed(None, f"they cannot be pickled: {type(error).__name__}: {error}")
    return Packed(buffer.getvalue())


def unpack(data: bytes, venv: VecEnv) -> str:
    """Let environments that were made alike go on as the packed ones; the reason where they cannot, else "".

    Args:
        data: As `pack` gives it.
        venv: Environments of the same configuration; left as they are where they cannot go on.
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
    """Whether all that environments hold was packed: a copy takes the step that they took since, and ends alike.

    Some classes leave out of a pickle what they hold, without a word. `gymnasium.utils.EzPickle` does so too, but is
    seen through.

    Args:
        data: As `pack` gave it, one step ago.
        venv: The environments after that step.

    Returns:
        How the copy differs, or "".
    """
    original: Any = _layers(venv)[-1]
    twin: Any = copy.copy(original)
    try:
        vars(twin).update(pickle.loads(data)[-1])
        twin.step_async(original.actions)
        twin.step_wait()
    except Exception as error:  # Whatever an environment's own code raises.
        return f"a copy of them fails: {type(error).__name__}: {error}"
    same = all(_equal(getattr(twin, name), getattr(original, name)) for name in ("buf_obs", "buf_rews", "buf_dones"))
    return "" if same else "a copy of them goes on in another way"


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Keeps what an environment holds, where `EzPickle` would keep how it was made."""

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle.Pickler.reducer_override`."""
        if isinstance(obj, EzPickle):
            return object.__new__, (type(obj),), vars(obj), None, None, _fill
        return super().reducer_override(obj)


def _fill(obj: Any, parts: dict[str, Any]) -> None:
    vars(obj).update(parts)


def _layers(venv: VecEnv) -> list[VecEnv]:
    """From the outermost to the environments themselves."""
    layers = [venv]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    return layers


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_equal(a[key], b[key]) for key in a)
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
