"""The manifest: the origin of a recording, as JSON."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize

from ncp_rl.cores import CELLS
from ncp_rl.jit import compiled_for
from ncp_rl.kernels.numba.sources import DIGEST
from ncp_rl.policy import NCPPolicy
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.layout import Layout, Observed, load_json

FORMAT = "ncp_rl recording 1"

_PACKAGES = (
    "ncp-rl",
    "numpy",
    "gymnasium",
    "stable-baselines3",
    "sb3-contrib",
    "mcap",
    "safetensors",
)


def ncp_policy(model: OnPolicyAlgorithm) -> NCPPolicy:
    """Return the model's policy.

    Raises:
        RecordingError: The policy is not an NCP policy.
    """
    if not isinstance(model.policy, NCPPolicy):
        raise RecordingError(f"Only NCP policies can be recorded, got a {type(model.policy).__name__}.")
    return model.policy


def make_layout(policy: NCPPolicy, env: VecEnv) -> Layout:
    """Return sizes and names of a recording of `policy` in `env`.

    Raises:
        RecordingError: The neurons are of a user's own class, which readers of the recording could not build.
    """
    if type(policy.lstm_actor) not in CELLS.values():
        raise RecordingError(
            f"Only neurons of the kinds {', '.join(CELLS)} can be recorded, got {type(policy.lstm_actor)}."
        )
    wiring, space = policy.wiring, policy.action_space
    n_outputs = int(policy.action_net(torch.zeros(1, wiring.units, device=policy.device)).shape[-1])
    return Layout(
        n_envs=env.num_envs,
        observed=observed_parts(raw_observation_space(env), env),
        n_actions=int(np.prod(space.shape)) if space.shape is not None else 1,
        n_outputs=n_outputs,
        discrete=not isinstance(space, spaces.Box),
        n_sensory=wiring.n_sensory,
        n_motor=wiring.n_motor,
        n_command=wiring.n_command,
        n_inter=wiring.units - wiring.n_command - wiring.n_motor,
        cell=policy.lstm_actor.cell,
    )


def raw_observation_space(env: VecEnv) -> spaces.Space[Any]:
    """Return the space of observations before normalisation."""
    normalize = unwrap_vec_normalize(env)
    return env.observation_space if normalize is None else normalize.venv.observation_space


def observed_parts(space: spaces.Space[Any], env: VecEnv) -> tuple[Observed, ...]:
    """Return the parts of an observation, with the environment's names or numbered ones."""
    if isinstance(space, spaces.Dict):
        parts = (_observed(key, part) for key, part in space.spaces.items())
        return tuple(parts)
    part = _observed(None, space)
    if part.names and env.has_attr("observation_names"):
        names = tuple(map(str, env.get_attr("observation_names", indices=0)[0]))
        if len(names) == len(part.names):
            return (Observed(None, part.shape, part.dtype, names),)
    return (part,)


def _observed(key: str | None, space: spaces.Space[Any]) -> Observed:
    shape, prefix = tuple(space.shape or ()), key or "obs"
    image = is_image_space(space, check_channels=False)
    size = 0 if image else int(np.prod(shape))
    names = (key,) if key and size == 1 else tuple(f"{prefix}_{i}" for i in range(size))
    return Observed(key, shape, str(space.dtype), names)


def make_manifest(model: OnPolicyAlgorithm, env: VecEnv, layout: Layout, **settings: Any) -> bytes:
    """Return the manifest of a recording as JSON.

    Args:
        model: The model.
        env: The environments that it acts in.
        layout: Layout of the recording.
        **settings: How the recording is made: kind, seed, deterministic, ...
    """
    policy = ncp_policy(model)
    entries = {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **settings,
        "environment": _environment(env),
        "observation_space": describe_space(raw_observation_space(env)),
        "action_space": describe_space(env.action_space),
        "policy": {
            "sha256": policy_digest(policy, unwrap_vec_normalize(env)),
            "class": type(policy).__name__,
            "encoder": type(policy.pi_features_extractor).__name__,
            "backend": policy.backend,
            "squash_output": bool(policy.squash_output),
        },
        "platform": describe_platform(policy.device),
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "git": _git(),
        "layout": layout.to_dict(),
    }
    return json.dumps(entries, indent=1, allow_nan=False).encode()


def read_manifest(data: bytes) -> dict[str, Any]:
    """Read the manifest that `make_manifest` made.

    Raises:
        RecordingError: The format is another one, or an entry is missing or wrong.
    """
    manifest: dict[str, Any] = load_json(data, "the manifest")
    if manifest.get("format") != FORMAT:
        raise RecordingError(f"The manifest must be of format {FORMAT!r}, got {manifest.get('format')!r}.")
    kind = manifest.get("kind")
    if type(kind) is not str or kind not in _ENTRIES:
        raise RecordingError(f"The manifest's kind must be one of {', '.join(_ENTRIES)}, got {kind!r}.")
    for name, expected in (_ENTRIES[kind] | _ENTRIES_OF_ALL).items():
        value: Any = manifest.get(name)
        if value is None and name not in _ENTRIES_OF_ALL:
            continue  # Code that needs the entry reports that it is missing.
        if type(value) is not expected or (type(value) is int and not 0 <= value < _MAX_INTEGER):
            whole = f" from 0 to {_MAX_INTEGER - 1}" if expected is int else ""
            raise RecordingError(f"The manifest's {name} must be of type {expected.__name__}{whole}, got {value!r}.")
    if type(manifest["policy"].get("sha256")) is not str:
        raise RecordingError("The manifest must hold the policy's SHA-256 as a text, policy.sha256, and lacks it.")
    return manifest


_MAX_INTEGER = 2**40
_ENTRIES_OF_ALL = {"policy": dict, "platform": dict, "layout": dict, "threads": int}
#: Types of the entries that are read again, by the manifest's kind.
_ENTRIES: dict[str, dict[str, type]] = {
    "rollouts": {"n_episodes": int, "seed": int, "deterministic": bool},
    "training": {"timesteps": int, "deterministic": bool},
}


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of the packages that a run depends on."""
    return {name: version(name) for name in _PACKAGES}


def describe_platform(device: torch.device) -> dict[str, Any]:
    """Describe everything that decides the last bits of a computation on `device`, except the number of threads."""
    return _machine() | {
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


@functools.cache
def _machine() -> dict[str, Any]:
    """Describe the part that does not change while the program runs."""
    numba_cpu, numba_features = compiled_for()
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": llvmlite.binding.get_host_cpu_name(),
        "cpu_features": _digest(llvmlite.binding.get_host_cpu_features().flatten()),
        "numba_cpu": numba_cpu,
        "numba_features": _digest(numba_features),
        "numpy_cpu": np.show_config(mode="dicts")["SIMD Extensions"],
        "kernels": DIGEST,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        **{name: version(name) for name in ("torch", "numpy", "numba", "llvmlite")},
    }


# Environment variables by which the libraries below PyTorch and NumPy choose their code.
_VARIABLES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE")


def _digest(text: str) -> str:
    """Return a digest of a text, 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def policy_digest(policy: NCPPolicy, normalize: VecNormalize | None) -> str:
    """Return the SHA-256 of the policy's tensors, wiring, solver settings and normalisation statistics."""
    digest = hashlib.sha256(json.dumps([policy.wiring.to_dict(), policy.ode_unfolds, policy.elapsed_time]).encode())
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in policy.state_dict().items()}
    arrays |= _statistics(normalize)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _statistics(normalize: VecNormalize | None) -> dict[str, np.ndarray[Any, Any]]:
    if normalize is None:
        return {}
    found = {"normalize.limits": np.array([normalize.epsilon, normalize.clip_obs, normalize.norm_obs])}
    if normalize.norm_obs:  # Without it VecNormalize keeps no statistics of observations.
        statistics = normalize.obs_rms if isinstance(normalize.obs_rms, dict) else {"": normalize.obs_rms}
        for key, part in statistics.items():
            found[f"normalize.{key}.mean"], found[f"normalize.{key}.var"] = part.mean, part.var
    return found


def _environment(env: VecEnv) -> dict[str, Any]:
    spec = env.get_attr("spec", indices=0)[0] if env.has_attr("spec") else None
    wrappers, inner = [], env
    while isinstance(inner, VecEnvWrapper):
        wrappers.append(type(inner).__name__)
        inner = inner.venv
    found = {
        "id": None if spec is None else spec.id,
        "description": _description(env, inner),
        "vectorised": [*wrappers, type(inner).__name__],
        "max_episode_steps": None if spec is None else spec.max_episode_steps,
        "spec": None,
    }
    if spec is not None:
        try:
            found["spec"] = json.loads(spec.to_json())
        except (TypeError, ValueError) as error:
            found["spec_error"] = f"The specification has no JSON form: {error}"
    return found


def _description(env: VecEnv, inner: VecEnv) -> str:
    try:
        return str(env.env_method("__str__", indices=0)[0])
    except AttributeError:  # Every object has __str__: there is no single environment, as in a batched simulation.
        return f"{type(inner).__name__} of {env.num_envs} environments"


def describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a space for JSON; `read_space` reads it back."""
    described: dict[str, Any] = {"type": type(space).__name__}
    if isinstance(space, spaces.Dict):
        return described | {"spaces": {key: describe_space(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.Box):
        bounds = {name: getattr(space, name).flatten() for name in ("low", "high")}
        # Bounds that are all equal are written once; as text, since JSON has no infinity.
        texts = {name: [str(x) for x in (b[:1] if (b == b[0]).all() else b).tolist()] for name, b in bounds.items()}
        return described | {"shape": list(space.shape), "dtype": str(space.dtype)} | texts
    if isinstance(space, spaces.Discrete):
        return described | {"n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return described | {"nvec": space.nvec.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return described | {"n": list(space.shape)}
    raise RecordingError(f"Spaces must be Box, Discrete, MultiDiscrete, MultiBinary or Dict of such, got {space}.")


def read_space(described: Any) -> spaces.Space[Any]:
    """Return the space that `describe_space` described.

    Raises:
        RecordingError: The description is not that of a space.
    """
    try:
        return _READERS[described["type"]](described)
    except (AssertionError, AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise RecordingError(f"The description of a space in the manifest is damaged: {error!r}.") from error


def _read_box(described: Mapping[str, Any]) -> spaces.Box:
    shape, dtype = tuple(described["shape"]), np.dtype(described["dtype"])
    if dtype.kind not in "biuf" or not 0 <= math.prod(shape) <= _MAX_BOX:
        raise ValueError(f"a Box must hold at most {_MAX_BOX} numbers, got shape {shape} of {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        bounds = [np.array([float(x) for x in described[name]]).astype(dtype) for name in ("low", "high")]
    low, high = (np.broadcast_to(b, shape) if len(b) == 1 else b.reshape(shape) for b in bounds)
    return spaces.Box(low, high, shape, dtype.type)


# Largest number of numbers of a Box; an image of 4096 x 4096 pixels has fewer.
_MAX_BOX = 2**26

_READERS: dict[str, Callable[[Any], spaces.Space[Any]]] = {
    "Box": _read_box,
    "Dict": lambda described: spaces.Dict({key: read_space(part) for key, part in described["spaces"].items()}),
    "Discrete": lambda described: spaces.Discrete(described["n"], start=described["start"]),
    "MultiDiscrete": lambda described: spaces.MultiDiscrete(described["nvec"]),
    "MultiBinary": lambda described: spaces.MultiBinary(described["n"]),
}


@functools.cache
def _git() -> dict[str, Any] | None:
    """Return the commit of the folder that the program runs in; None outside a repository or without git."""
    try:
        commit = subprocess.run(("git", "rev-parse", "HEAD"), capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(
            ("git", "status", "--porcelain", "--untracked-files=no"),
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "modified": bool(status.stdout.strip())}
