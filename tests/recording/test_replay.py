"""A true recording comes out again bit for bit; a false one is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncp_rl.recording import NeuronRecorder, Recording, RecordingError, record_rollouts, replay
from tests.recording.recordings import SPACES, pendulum, pendulum_recording, random_model, trained_pendulum


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("replay") / "pendulum.mcap"
    return path, *pendulum_recording(path, deterministic=False)


def test_from_the_file_alone(recorded: tuple[Path, Any, Any]) -> None:
    found = replay(recorded[0])
    assert found.passed and found.same_platform and found.tolerance == 0
    assert (found.n_episodes, found.n_steps, found.notes) == (4, 800, ())
    assert {c.what: (c.n_values, c.bitwise) for c in found.comparisons} == {
        "readout": (2, True),
        "potentials": (800 * 12, True),
        "action means": (800, True),
        "time constants": (800 * 12, True),
    }
    assert str(found).startswith("replay equal bit for bit, 4 episodes, 800 steps")
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("n_envs", [1, 5, 8, 17])
def test_bits_of_every_width(n_envs: int, tmp_path: Path) -> None:
    """The kernels add in another order for each."""
    model, venv = trained_pendulum(n_envs)
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=n_envs, progress_bar=False)
    assert all(c.bitwise for c in replay(path).comparisons)


def test_with_model_and_environment(recorded: tuple[Path, Any, Any]) -> None:
    path, model, venv = recorded
    found = replay(path, model, venv)
    assert found.passed and all(comparison.bitwise for comparison in found.comparisons), str(found)
    whats = {comparison.what for comparison in found.comparisons}
    assert {"sensory inputs", "log-probabilities", "values", "run again: reward", "run again: length"} <= whats


@pytest.mark.parametrize("name", SPACES)
def test_every_kind_of_space(name: str, tmp_path: Path) -> None:
    observation_space, action_space, kwargs = SPACES[name]
    model, venv = random_model(observation_space, action_space, **kwargs)
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=4, seed=2, progress_bar=False)
    found = replay(path, model, venv)
    assert found.passed, str(found)
    exact = {comparison.what for comparison in found.comparisons if comparison.bitwise}
    assert {"potentials", "run again: reward"} <= exact
    assert bool(found.notes) == (name in ("timed", "image"))


@pytest.mark.parametrize(
    "field", ["potentials", "tau", "sensory", "action_mean", "observation", "value", "log_prob", "action"]
)
def test_the_first_divergence_is_named(
    field: str, recorded: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model, venv = recorded
    recording = Recording.open(path)
    read = Recording.__getitem__

    def falsified(self: Recording, index: int) -> Any:
        episode = read(self, index)
        if self is not recording or index != 2:
            return episode
        values = getattr(episode, field).copy()
        at = (57, ...) if values.ndim == 1 else (57, values.shape[1] - 1)
        values[at] = np.nextafter(values[at], np.float32(9))
        return dataclasses.replace(episode, **{field: values})

    monkeypatch.setattr(Recording, "__getitem__", falsified)
    monkeypatch.setattr(Recording, "__iter__", lambda self: (self[i] for i in range(len(self))))
    found = replay(recording, model, venv)
    assert not found.passed and found.first is not None
    assert (found.first.episode, found.first.step) == (2, 57)
    assert "step 57 of episode 2" in str(found)
    if field == "potentials":
        assert found.first.name == "inter_6" and found.first.recorded != found.first.replayed


def test_another_model_or_number_of_environments(recorded: tuple[Path, Any, Any]) -> None:
    path, _, venv = recorded
    other, _ = pendulum(3)
    with pytest.raises(RecordingError, match="SHA-256"):
        replay(path, other)
    with pytest.raises(RecordingError, match="model too"):
        replay(path, env=venv)
    model, fewer = trained_pendulum(2)
    record_rollouts(model, fewer, path.parent / "two.mcap", n_episodes=2, progress_bar=False)
    with pytest.raises(RecordingError, match="as the recording, 2, got 3"):
        three, env = trained_pendulum(3)
        del three
        env.obs_rms, env.epsilon = fewer.obs_rms, fewer.epsilon  # type: ignore[attr-defined]
        replay(path.parent / "two.mcap", model, env)


def test_recordings_of_training(tmp_path: Path) -> None:
    model, venv = pendulum(2, normalize=False, n_steps=40)
    recorder = NeuronRecorder(tmp_path, every=2)
    model.learn(2 * 40 * 2, callback=recorder)
    assert replay(recorder.paths[0]).passed
    with pytest.raises(RecordingError, match="SHA-256"):
        replay(recorder.paths[0], model)
    fresh, _ = pendulum(2, normalize=False, n_steps=40)
    found = replay(recorder.paths[0], fresh)
    assert found.passed, str(found)
    with pytest.raises(RecordingError, match="this one was made in training"):
        replay(recorder.paths[0], fresh, venv)
