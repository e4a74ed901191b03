"""Recordings of CfC neurons, and of times when there were LTC neurons alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncp_rl import CfC
from ncp_rl.audit import audit_dynamics
from ncp_rl.audit.dynamics import tau_bounds
from ncp_rl.recording import (
    NeuronRecorder,
    Recording,
    RecordingError,
    record_rollouts,
    replay,
    to_pandas,
    trace_neurons,
    verify,
)
from ncp_rl.recording.layout import Layout
from tests.random_env import TIMED, box
from tests.recording.recordings import pendulum, random_model, trained_pendulum
from tests.recording.test_verify import careful

CFC: dict[str, Any] = dict(cell="cfc")
#: Written when time constants left epsilon out; one neuron has next to no leak, and shut synapses.
BEFORE = Path(__file__).parent / "data" / "before_epsilon.mcap"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("cfc") / "pendulum.mcap"
    model, venv = trained_pendulum(policy_kwargs=CFC)
    return record_rollouts(model, venv, path, n_episodes=4, deterministic=False, progress_bar=False), model, venv


def test_a_recording_of_cfc_neurons_is_true(recorded: tuple[Path, Any, Any]) -> None:
    path, model, venv = recorded
    assert verify(path).passed
    recording = Recording.open(path)
    assert recording.circuit.cell == recording.layout.cell == recording.manifest["layout"]["cell"] == "cfc"
    assert not any(field.name.startswith("tau") for topic in recording.layout.topics for field in topic.fields)
    episode = recording[1]
    assert episode.potentials.shape == episode.tau.shape == (200, 12) and np.isnan(episode.tau).all()
    assert np.isfinite(episode.potentials).all() and np.ptp(episode.potentials, axis=0).min() > 0
    found = replay(path, model, venv)
    assert found.passed and found.same_platform and all(comparison.bitwise for comparison in found.comparisons)
    whats = {comparison.what for comparison in found.comparisons}
    assert {"potentials", "action means", "parameters", "values", "run again: reward"} <= whats
    assert "time constants" not in whats
    frame = to_pandas(recording)
    assert "potential.inter_0" in frame and not any(str(name).startswith("tau") for name in frame)


@pytest.mark.parametrize("n_envs", [1, 2, 5, 8, 17])
def test_bits_of_every_width(n_envs: int, tmp_path: Path) -> None:
    """Products of matrices add in another order for each number of rows, and for the last of them."""
    model, venv = trained_pendulum(n_envs, policy_kwargs=CFC)
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=n_envs, progress_bar=False)
    assert all(comparison.bitwise for comparison in replay(path).comparisons)


@pytest.mark.parametrize("mode", ["default", "no_gate", "pure"])
def test_irregular_times(mode: str, tmp_path: Path) -> None:
    model, venv = random_model(TIMED, box(2), policy_kwargs=CFC | dict(cell_kwargs=dict(mode=mode), elapsed_time=0.3))
    model.learn(16)
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=6, progress_bar=False)
    assert len(np.unique(np.concatenate([episode.elapsed_time for episode in Recording.open(path)]))) > 6
    found = replay(path)
    assert found.passed and all(comparison.bitwise for comparison in found.comparisons)


@pytest.mark.parametrize("field", ["potentials", "sensory", "action_mean"])
def test_the_first_divergence_is_named(
    field: str, recorded: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording.open(recorded[0])
    read = Recording.__getitem__

    def falsified(self: Recording, index: int) -> Any:
        episode = read(self, index)
        values = getattr(episode, field).copy()
        values[57] += np.float32(index == 2) * np.float32(1e-3)
        return dataclasses.replace(episode, **{field: values})

    monkeypatch.setattr(Recording, "__getitem__", falsified)
    found = replay(recording)
    assert not found.passed and found.first is not None and (found.first.episode, found.first.step) == (2, 57)


def test_recordings_of_training_and_traces(tmp_path: Path) -> None:
    model, _ = pendulum(2, normalize=False, n_steps=40, policy_kwargs=CFC)
    recorder = NeuronRecorder(tmp_path, every=2)
    policy: Any = model.policy
    with trace_neurons(policy) as calls:
        model.learn(2 * 40 * 2, callback=recorder)
    assert calls[0].tau is None and calls[0].command.shape[1:] == (2, 4)
    assert replay(recorder.paths[0]).passed


def test_held_steps_replay(tmp_path: Path) -> None:
    model, venv = pendulum(2, normalize=False, policy_kwargs=CFC)
    policy: Any = model.policy
    policy.on_bad_input = "hold"
    step, count = venv.step_wait, [0]

    def step_wait() -> Any:
        returned: Any = step()
        observation, *others = returned
        count[0] += 1
        if count[0] % 7 == 0:
            observation[1] = np.nan
        return observation, *others

    venv.step_wait = step_wait  # type: ignore[method-assign]
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=2, progress_bar=False)
    held = Recording.open(path)[1]
    at = np.flatnonzero(held.held)
    assert len(at) > 20
    np.testing.assert_array_equal(held.potentials[at], held.potentials[at - 1])
    assert all(comparison.bitwise for comparison in replay(path).comparisons)


def test_neurons_of_the_users_own_are_not_recorded(tmp_path: Path) -> None:
    class Own(CfC):
        """Nobody who reads a recording could build it."""

    model, venv = random_model(box(3), box(1), policy_kwargs=dict(cell=Own))
    with pytest.raises(RecordingError, match=r"Only neurons of the kinds ltc, cfc can be recorded, got .*Own"):
        record_rollouts(model, venv, tmp_path / "r.mcap", progress_bar=False)


def test_unknown_neurons_are_refused(recorded: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, *_ = recorded
    layout = Recording.open(path).layout.to_dict()
    with pytest.raises(RecordingError, match="a kind that this version knows, ltc, cfc, got 'gru'; read it with"):
        Layout.from_dict(layout | dict(cell="gru"))
    with pytest.raises(RecordingError, match="cell must be a text"):
        Layout.from_dict(layout | dict(cell=["cfc"]))

    def manifest_of(cell: str) -> Any:
        def change(name: str, content: bytes) -> bytes:
            if name != "manifest.json":
                return content
            manifest = json.loads(content)
            manifest["layout"]["cell"] = cell
            return json.dumps(manifest).encode()

        return change

    for cell, message in (("gru", "got 'gru'"), ("ltc", "names ltc neurons, but its circuit has cfc neurons")):
        forged = tmp_path / f"{cell}.mcap"
        forged.write_bytes(careful(path.read_bytes(), rechained=True, attachment=manifest_of(cell)))
        with pytest.raises(RecordingError, match=message):
            Recording.open(forged)


def test_recordings_of_before_keep_their_worth() -> None:
    """They name no kind of neurons and are of LTC; their time constants, without epsilon, are computed anew."""
    assert verify(BEFORE).passed
    recording = Recording.open(BEFORE)
    assert "cell" not in recording.manifest["layout"] and recording.circuit.cell == "ltc"
    found = replay(recording)
    assert found.passed and "time constants" not in {comparison.what for comparison in found.comparisons}
    bounds = tau_bounds(recording.circuit)
    assert all((episode.tau <= bounds.high * (1 + 1e-5)).all() for episode in recording)
    # As they were written, eleven times their bound.
    assert b"59295264" in b"".join(bytes(messages.data) for i in range(2) for messages, _ in _messages(recording, i))
    assert bounds.high[5] < 59295264 / 10
    verdict = audit_dynamics(recording.circuit, list(recording)).verdict()
    assert verdict.passed, verdict


def _messages(recording: Recording, index: int) -> Any:
    return recording._messages_of(index, recording._span(index))
