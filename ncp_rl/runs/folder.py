"""Run folders: saving and loading the results of a training."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from ncp_rl.runs.config import RunConfig, RunError
from ncp_rl.runs.environments import make_envs
from ncp_rl.runs.models import algorithm

if sys.platform != "win32":
    import fcntl

#: File that says over which processes a training by RLlib was spread.
RLLIB = "rllib.json"


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that, whenever the process is killed, the complete old or new file exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class FolderInUseError(RunError):
    """Raised where another process is training in the folder."""


@contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that train; the lock of a killed process vanishes.

    Raises:
        FolderInUseError: Another process is training in it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(
                f"Another process is training in {folder}; wait until it ends, or stop it."
            ) from error
        yield
    finally:
        os.close(descriptor)


def save_model(
    model: OnPolicyAlgorithm, folder: Path, *, name: str = "model.zip", statistics: str = "vecnormalize.pkl"
) -> None:
    """Save the model, and normalisation statistics if any, into `folder`; each file is complete or missing."""
    buffer = io.BytesIO()
    model.save(buffer)
    write_file(folder / name, buffer.getvalue())
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        write_file(folder / statistics, pickle.dumps(normalize))


def read_config(folder: Path) -> RunConfig:
    """Read the configuration of a run folder.

    Raises:
        RunError: The configuration is missing or damaged.
    """
    path = folder / "config.json"
    try:
        return RunConfig(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise RunError(f"{folder} is no run folder: it has no config.json.") from error
    except (OSError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def load_run(
    folder: Path,
    *,
    which: Literal["best", "last"] = "best",
    n_envs: int = 1,
    device: str = "auto",
    training_wrappers: bool = False,
    max_episode_steps: int | None = None,
    **make_kwargs: Any,
) -> tuple[OnPolicyAlgorithm, VecEnv]:
    """Load the model of a run folder, and make environments to evaluate it in, normalised as in its training.

    Args:
        folder: The run.
        which: "best" model by periodic evaluation, or "last".
        n_envs: Number of environments side by side.
        device: Device of torch.
        training_wrappers: Whether to apply wrappers that are for training only. A policy that was trained under
            disturbances is evaluated, recorded and audited without them by default.
        max_episode_steps: Steps after which episodes are cut; None takes the run's own limit.
        **make_kwargs: Arguments of `make_vec_env`, as in `make_envs`.

    Raises:
        RunError: Something is missing or damaged.
    """
    config = read_config(folder)
    make_kwargs |= dict(training_wrappers=training_wrappers, max_episode_steps=max_episode_steps)
    venv = make_envs(config, n_envs, training=False, **make_kwargs)
    path = folder / which / "model.zip"
    try:
        if isinstance(venv, VecNormalize):
            path = folder / which / "vecnormalize.pkl"
            venv = VecNormalize.load(str(path), venv.venv)
            venv.training = venv.norm_reward = False
            path = folder / which / "model.zip"
        return algorithm(config).load(path, env=venv, device=device), venv
    except FileNotFoundError as error:
        raise RunError(f"The file {path} is missing; the training of this run may have been interrupted.") from error
    except (AssertionError, EOFError, KeyError, RuntimeError, ValueError, pickle.PickleError, zipfile.error) as error:
        raise RunError(f"The file {path} is damaged or was written by something else: {error}") from error
