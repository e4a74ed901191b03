"""Run folders: what a training leaves, saved and loaded again."""

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


def write_file(path: Path, data: bytes) -> None:
    """Write a file such that, whenever the process is killed, the old one or the new one is there, and is whole."""
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
    """Another process trains in the folder."""


@contextmanager
def trained_by_one(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder meanwhile; a killed process keeps none from it.

    Raises:
        FolderInUseError: Another process trains in it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(f"Another process trains in {folder} now; wait for its end, or stop it.") from error
        yield
    finally:
        os.close(descriptor)


def save_model(
    model: OnPolicyAlgorithm, folder: Path, *, name: str = "model.zip", statistics: str = "vecnormalize.pkl"
) -> None:
    """Save the model, and normalisation statistics if it has any, into `folder`; each file is whole or not there."""
    buffer = io.BytesIO()
    model.save(buffer)
    write_file(folder / name, buffer.getvalue())
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        write_file(folder / statistics, pickle.dumps(normalize))


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        RunError: The folder holds none, or a damaged one.
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
    """The model of a run folder and environments to evaluate it in, normalised as it was trained.

    Args:
        folder: The run.
        which: "best" by periodic evaluation, or "last".
        n_envs: Environments side by side.
        device: Of torch.
        training_wrappers: Whether to put on wrappers that are for training alone: of a policy that was trained under
            disturbances, it is the undisturbed world that evaluations, recordings and audits begin with.
        max_episode_steps: Steps after which episodes are cut; the run's own limit where None.
        **make_kwargs: For `make_vec_env`, as in `make_envs`.

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
        raise RunError(f"{path} is missing; was the training of this run cut off?") from error
    except (AssertionError, EOFError, KeyError, RuntimeError, ValueError, pickle.PickleError, zipfile.error) as error:
        raise RunError(f"{path} is damaged or of another kind: {error}") from error
