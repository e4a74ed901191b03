"""Recordings as data frames, Parquet files and Minari datasets."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ncp_rl.extras import require
from ncp_rl.recording.episode import Episode
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.files import new_file
from ncp_rl.recording.manifest import read_space
from ncp_rl.recording.reader import Recording, observation_parts

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]


def to_pandas(recording: Recording) -> pd.DataFrame:
    """Return a data frame with a row per step, episodes one after the other, and named columns.

    Raises:
        RecordingError: The recording is damaged.
        ncp_rl.extras.MissingExtraError: pandas is not installed.
    """
    pandas = _import("pandas", "export")
    frames = [pandas.DataFrame(_columns(recording, episode)) for episode in recording]
    frame: pd.DataFrame = pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()
    return frame


def write_parquet(recording: Recording, path: Path | str) -> Path:
    """Write the columns of `to_pandas` as a Parquet file, a row group per episode; memory holds one episode at a time.

    Returns:
        The path.

    Raises:
        RecordingError: The file exists or cannot be written, or the recording is damaged or empty.
        ncp_rl.extras.MissingExtraError: pyarrow is not installed.
    """
    arrow, parquet, path = _import("pyarrow", "export"), _import("pyarrow.parquet", "export"), Path(path)
    tables = (arrow.table(_columns(recording, episode)) for episode in recording)
    first = next(tables, None)
    if first is None:
        raise RecordingError(f"{recording.path} must hold at least one step to be exported, and it holds none.")
    with new_file(path, "The table") as file, file, parquet.ParquetWriter(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    return path


def write_minari(recording: Recording, dataset_id: str, **description: Any) -> Any:
    """Make a Minari dataset of the recording's episodes, stored where Minari stores its own.

    Observations and actions are those that the environment gave and took. An episode that the recording cut off loses
    its last step, whose outcome is unknown, and counts as truncated.

    Args:
        recording: The recording.
        dataset_id: Minari's id of the dataset, such as "pendulum/ncp-v0".
        **description: Arguments of `minari.create_dataset_from_buffers`: author, env, code_permalink, ...

    Returns:
        The `minari.MinariDataset`.

    Raises:
        RecordingError: Observed images, which the messages lack; or the recording is damaged.
        ncp_rl.extras.MissingExtraError: Minari is not installed.
    """
    minari = _import("minari", "minari")
    space, action_space = (read_space(recording.manifest.get(f"{name}_space")) for name in ("observation", "action"))
    if any(not part.names for part in recording.layout.observed):
        raise RecordingError(
            "Minari needs whole observations, but observed images are not in a recording's messages; export without "
            "them."
        )
    buffers = [
        buffer for episode in recording if (buffer := _buffer(recording, episode, action_space, minari)) is not None
    ]
    if not buffers:
        raise RecordingError(f"{recording.path} must hold at least one whole step to be exported, and it holds none.")
    arguments = {
        "algorithm_name": "NCP",
        "data_format": "arrow",
        "observation_space": space,
        "action_space": action_space,
    }
    return minari.create_dataset_from_buffers(dataset_id, buffers, **(arguments | description))


def _buffer(recording: Recording, episode: Episode, action_space: spaces.Space[Any], minari: Any) -> Any:
    n = len(episode) if episode.final_observation is not None else len(episode) - 1
    if n < 1:
        return None
    observations = episode.observation
    if episode.final_observation is not None:
        observations = np.concatenate([observations, episode.final_observation[None]])
    truncations = np.zeros(n, bool)
    truncations[-1] = not episode.terminated or n < len(episode)
    actions = episode.action[:n].reshape(n, *(action_space.shape or ())).astype(action_space.dtype)
    return minari.data_collector.episode_buffer.EpisodeBuffer(
        observations=observation_parts(recording.layout, observations, episode.index),
        actions=actions,
        rewards=list(episode.reward[:n]),
        terminations=list(np.arange(n) == n - 1 if episode.terminated and n == len(episode) else np.zeros(n, bool)),
        truncations=list(truncations),
    )


def _columns(recording: Recording, episode: Episode) -> dict[str, Array]:
    """Return a column by name for each recorded number."""
    circuit, n = recording.circuit, len(episode)
    found: dict[str, Array] = {
        "episode": np.full(n, episode.index),
        "env": np.full(n, episode.env_index),
        "step": np.arange(n),
        "time": episode.time,
        "reward": episode.reward,
        "terminated": (np.arange(n) == n - 1) & episode.terminated,
        "truncated": (np.arange(n) == n - 1) & episode.truncated,
        "value": episode.value,
        "log_prob": episode.log_prob,
        "elapsed_time": episode.elapsed_time,
    }
    assert episode.sample is not None
    numbered = [f"{i}" for i in range(episode.action.shape[1])]
    groups = (
        ("observation", episode.observation_names, episode.observation),
        ("action", numbered, episode.action),
        ("sample", numbered, episode.sample),
        ("action_mean", circuit.action_names, episode.action_mean),
        ("action_std", circuit.action_names, episode.action_std),
        ("sensory", circuit.sensory_names, episode.sensory),
        ("potential", circuit.wiring.names, episode.potentials),
        ("tau", circuit.wiring.names if circuit.core.has_time_constants else (), episode.tau),
    )
    for prefix, names, values in groups:
        found |= {f"{prefix}.{name}": values[:, i] for i, name in enumerate(names)}
    return found


def _import(name: str, extra: str) -> Any:
    require(extra, name.partition(".")[0], by="This form of a recording")
    return importlib.import_module(name)
