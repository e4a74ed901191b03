"""Recordings as data frames, Parquet and Minari datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ncp_rl.recording import Recording, RecordingError, record_rollouts, to_pandas, write_minari, write_parquet
from tests.recording.recordings import SPACES, pendulum_recording, random_model


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("export") / "r.mcap"
    pendulum_recording(path)
    return Recording.open(path)


def test_data_frames_and_parquet(recording: Recording, tmp_path: Path) -> None:
    frame = to_pandas(recording)
    assert frame.shape[0] == 800 and frame["episode"].nunique() == 4
    episode = recording[2]
    own = frame[frame["episode"] == 2]
    assert np.array_equal(own["observation.cos_theta"], episode.observation[:, 0])
    assert np.array_equal(own["potential.motor_0"], episode.potentials[:, 0])
    assert own["truncated"].tolist() == [False] * 199 + [True]
    path = write_parquet(recording, tmp_path / "r.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame)
    with pytest.raises(RecordingError, match="exists"):
        write_parquet(recording, path)
    with pytest.raises(RecordingError, match="cannot be created"):
        write_parquet(recording, tmp_path / "none" / "r.parquet")


@pytest.mark.filterwarnings("ignore:.* is None:UserWarning", "ignore:.* is set to None:UserWarning")
@pytest.mark.parametrize("name", ["pendulum", "box", "float64", "discrete", "multi"])
def test_minari(name: str, recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    if name != "pendulum":
        model, venv = random_model(*SPACES[name][:2])
        record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=3, progress_bar=False)
        recording = Recording.open(tmp_path / "r.mcap")
    dataset: Any = write_minari(recording, "ncp/test-v0")
    assert dataset.total_episodes == len(recording)
    for own, episode in zip(dataset.iterate_episodes(), recording, strict=True):
        shape = own.observations.shape
        assert shape[0] == len(episode) + 1
        assert np.array_equal(own.observations[:-1].reshape(len(episode), -1), episode.observation)
        assert np.array_equal(own.actions.reshape(len(episode), -1), episode.action)
        assert np.array_equal(own.rewards, episode.reward)
        assert own.terminations[-1] == episode.terminated and own.truncations[-1] == episode.truncated


def test_minari_needs_whole_observations(tmp_path: Path) -> None:
    model, venv = random_model(*SPACES["timed"][:2])
    record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=1, progress_bar=False)
    with pytest.raises(RecordingError, match="observed images are not in"):
        write_minari(Recording.open(tmp_path / "r.mcap"), "ncp/test-v0")
