"""What is recorded is what happened, and recording changes nothing."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from mcap.reader import make_reader
from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from ncp_rl import AutoNCP, NCPPolicy, equations
from ncp_rl.recording import (
    NeuronRecorder,
    Recording,
    RecordingError,
    encode,
    record_rollouts,
    replay,
    sha256,
    steps,
    trace_neurons,
    verify,
)
from ncp_rl.recording.container import Container
from ncp_rl.recording.encode import Messages
from tests.recording.recordings import SPACES, pendulum, random_model, trained_pendulum


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("recorded") / "pendulum.mcap"
    model, venv = trained_pendulum()
    record_rollouts(model, venv, path, n_episodes=4, deterministic=False, seed=5, progress_bar=False)
    return path, model, venv


def test_episodes_hold_what_happened(recorded: tuple[Path, Any, Any]) -> None:
    """Against the plain loop over `predict`, with the same seeds."""
    path, model, venv = recorded
    venv.seed(5)
    model.set_random_seed(5)
    observation, state, start = venv.reset(), None, np.ones(3, bool)
    raw, actions, rewards = [], [], []
    with trace_neurons(model.policy) as calls:
        for _ in range(400):
            raw.append(venv.get_original_obs())
            action, state = model.predict(observation, state, start)
            observation, _, start, _ = venv.step(action)
            actions.append(action)
            rewards.append(venv.get_original_reward())
    recording = Recording.open(path)
    assert (len(recording), recording.lengths, recording.ending) == (4, (200,) * 4, "finished")
    assert [(e.index, e.env_index) for e in recording] == [(0, 0), (1, 1), (2, 2), (3, 2)]
    for episode, at in zip(recording, (0, 0, 0, 200), strict=True):
        n, steps = episode.env_index, slice(at, at + 200)
        assert np.array_equal(episode.observation, np.array(raw)[steps, n])
        assert np.array_equal(episode.action, np.array(actions)[steps, n])
        assert np.array_equal(episode.reward, np.array(rewards)[steps, n])
        assert (episode.terminated, episode.truncated) == (False, True)
        command = np.stack([call.command[0, n] for call in calls[steps]])
        assert np.array_equal(episode.potentials[:, recording.circuit.wiring.command], command)
        assert np.array_equal(episode.sensory, np.stack([call.sensory[0, n] for call in calls[steps]]))
        tau = np.stack([call.tau[0, n] for call in calls[steps] if call.tau is not None])
        assert np.allclose(episode.tau, tau, rtol=1e-6)
        assert not episode.start.any() and len(episode) == 200
        assert np.allclose(episode.time, 0.05 * np.arange(1, 201))
        assert episode.observation_names == ("cos_theta", "sin_theta")
        assert episode.final_observation is not None and episode.final_observation.shape == (2,)


def test_actions_are_those_of_an_evaluation(tmp_path: Path) -> None:
    model, venv = trained_pendulum()
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=5, seed=3, progress_bar=False)
    venv.seed(3)
    assert isinstance(venv, VecNormalize)
    venv.norm_reward = False
    returns: Any = evaluate_policy(model, venv, n_eval_episodes=5, return_episode_rewards=True, warn=False)[0]
    assert sorted(float(e.reward.sum(dtype=np.float64)) for e in Recording.open(path)) == pytest.approx(sorted(returns))


@pytest.mark.parametrize("name", SPACES)
def test_every_kind_of_space(name: str, tmp_path: Path) -> None:
    observation_space, action_space, kwargs = SPACES[name]
    model, venv = random_model(observation_space, action_space, **kwargs)
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=5, deterministic=False, progress_bar=False)
    assert str(verify(path)).startswith("intact")
    recording = Recording.open(path)
    assert len(recording) == 5
    for episode in recording:
        assert episode.terminated and not episode.truncated
        assert episode.observation.shape == (len(episode), len(episode.observation_names))
        assert np.isfinite(episode.log_prob).all()
        assert np.isfinite(episode.tau).all() == recording.circuit.core.has_time_constants
        assert np.isnan(episode.action_std).all() == recording.layout.discrete
        assert episode.sample is not None and episode.sample.shape == episode.action.shape
        if name == "float64":
            assert episode.observation.dtype == np.float64
            assert not np.array_equal(episode.observation, episode.observation.astype(np.float32))
        if name == "timed":
            assert np.array_equal(
                episode.elapsed_time, episode.observation[:, episode.observation_names.index("elapsed_time")]
            )


def test_images_come_back_as_they_were(tmp_path: Path) -> None:
    observation_space, action_space, _ = SPACES["timed"]
    model, venv = random_model(observation_space, action_space)
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=2, images=True, progress_bar=False)
    venv.seed(0)
    expected: Any = venv.reset()
    recording = Recording.open(path)
    assert verify(path).passed
    for index in range(2):
        pictures = list(recording.images(index))
        assert len(pictures) == len(recording[index])
        n = recording[index].env_index
        image = expected["image"][n]
        assert np.array_equal(pictures[0].pixels, image if image.shape[-1] == 3 else image.transpose(1, 2, 0))
    with pytest.raises(RecordingError, match="no images"):
        model, venv = random_model(*SPACES["box"][:2])
        record_rollouts(model, venv, tmp_path / "none.mcap", images=True, progress_bar=False)


def test_other_readers_understand_the_file(recorded: tuple[Path, Any, Any]) -> None:
    """The library of the MCAP project, checksums compared; every message follows its channel's schema."""
    path, _, _ = recorded
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None and summary.statistics is not None
        assert {channel.topic for channel in summary.channels.values()} == {
            "/episode", "/transition", "/neurons", "/policy", "/end", "/image",
        }  # fmt: skip
        validators: dict[int, Any] = {}
        count = 0
        for schema, channel, message in reader.iter_messages():
            assert schema is not None and (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
            count += 1
            if count < 200:
                check = validators.setdefault(schema.id, jsonschema.Draft202012Validator(json.loads(schema.data)))
                check.validate(json.loads(message.data))
        assert count == summary.statistics.message_count == 3 * 800 + 8
        names = [attachment.name for attachment in reader.iter_attachments()]
        assert names == ["manifest.json", "circuit.json", "circuit.safetensors"]


def test_the_manifest_says_where_it_comes_from(recorded: tuple[Path, Any, Any]) -> None:
    manifest = Recording.open(recorded[0]).manifest
    assert manifest["environment"]["id"] == "ncp/PendulumNoVel-v1" and manifest["environment"]["spec"]
    assert manifest["environment"]["vectorised"] == ["VecNormalize", "DummyVecEnv"]
    assert (manifest["seed"], manifest["deterministic"], manifest["n_episodes"]) == (5, False, 4)
    assert len(manifest["policy"]["sha256"]) == 64 and manifest["versions"]["ncp-rl"]


def learned(callback: Any) -> tuple[dict[str, torch.Tensor], Any, torch.Tensor, list[Any]]:
    model, venv = pendulum(4, n_steps=64, policy_kwargs=dict(critic="shared"))
    model.learn(64 * 4 * 4, callback=callback)
    assert isinstance(venv, VecNormalize) and not isinstance(venv.obs_rms, dict)
    returns = [info["r"] for info in model.ep_info_buffer or ()]
    return model.policy.state_dict(), venv.obs_rms.mean, torch.rand(3), returns


def test_learning_is_the_same_with_and_without_recording(tmp_path: Path) -> None:
    recorder = NeuronRecorder(tmp_path / "new" / "folder", every=3)
    (own, *rest), (other, *other_rest) = learned(None), learned(recorder)
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    assert np.array_equal(rest[0], other_rest[0]) and torch.equal(rest[1], other_rest[1]) and rest[2] == other_rest[2]
    assert [path.name for path in recorder.paths] == ["rollout_0000000000.mcap", "rollout_0000000768.mcap"]
    for path in recorder.paths:
        assert verify(path).passed
        assert sum(Recording.open(path).lengths) == 64 * 4
    later = Recording.open(recorder.paths[1])
    episode = later[0]
    # It began before the recording did.
    assert episode.start.any()
    potentials = later.circuit.run(episode.sensory, episode.start, episode.elapsed_time, width=4)
    assert np.array_equal(potentials, episode.potentials)


def test_existing_files_and_foreign_policies_are_left_alone(tmp_path: Path) -> None:
    model, venv = pendulum(1)
    path = tmp_path / "there.mcap"
    path.write_text("mine")
    with pytest.raises(RecordingError, match="exists and is left as it is"):
        record_rollouts(model, venv, path, progress_bar=False)
    assert path.read_text() == "mine"
    with pytest.raises(RecordingError, match="n_episodes"):
        record_rollouts(model, venv, tmp_path / "none.mcap", n_episodes=0, progress_bar=False)
    with pytest.raises(RecordingError, match="every"):
        NeuronRecorder(tmp_path, every=0)


def test_an_interrupted_rollout_is_kept(tmp_path: Path) -> None:
    model, venv = pendulum(1)
    calls, step = [], venv.step

    def fails_late(actions: Any) -> Any:
        calls.append(actions)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return step(actions)

    venv.step = fails_late  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        record_rollouts(model, venv, tmp_path / "r.mcap", progress_bar=False)
    recording = Recording.open(tmp_path / "r.mcap")
    assert recording.ending == "interrupted by KeyboardInterrupt" and recording.lengths == (49,)
    assert recording[0].final_observation is None and verify(tmp_path / "r.mcap").passed


def test_traces_of_training_calls_and_names() -> None:
    model, _ = pendulum(2)
    policy: Any = model.policy
    with trace_neurons(policy) as calls:
        model.learn(64)
        model.predict(np.zeros((2, 2), np.float32))
    assert not policy.lstm_actor._forward_hooks
    call = calls[-1]
    assert call.names["motor"] == ("motor_0",) and call.names["sensory"][0] == policy.sensory_names[0]
    assert call.tau is not None
    assert call.sensory.shape[:2] == call.inter.shape[:2] == call.tau.shape[:2] == (1, 2)
    assert max(call.sensory.shape[0] * call.sensory.shape[1] for call in calls) > 2


@pytest.mark.parametrize("space", SPACES)
def test_no_kernel_is_compiled_while_steps_wait(tmp_path: Path, space: str) -> None:
    """Each is compiled for one kind of arguments, when a recording begins: another would take more than a second."""
    observation_space, action_space, kwargs = SPACES[space]
    model, venv = random_model(observation_space, action_space, **kwargs)
    record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=2, progress_bar=False)
    kernels: list[Any] = [steps._place, equations._time_constants, encode._encode_rows, sha256._link]
    assert [len(kernel.signatures) for kernel in kernels] == [1, 1, 1, 1]


def test_cars_in_one_simulation_are_recorded(tmp_path: Path) -> None:
    """No single environment exists that could be asked what it is."""
    venv = LaneKeepingVecEnv(3)
    model = RecurrentPPO(
        NCPPolicy, venv, seed=0, device="cpu", policy_kwargs=dict(wiring=AutoNCP(12), elapsed_time=0.05)
    )
    path = record_rollouts(model, venv, tmp_path / "cars.mcap", n_episodes=4, progress_bar=False)
    recording = Recording.open(path)
    assert recording.manifest["environment"]["description"] == "LaneKeepingVecEnv of 3 environments"
    assert recording.manifest["environment"]["id"] == "ncp/LaneKeeping-v0" and len(recording) == 4
    assert verify(path).passed and replay(recording).passed


def test_a_chunk_takes_little_memory_in_the_summary(recorded: tuple[Path, Any, Any]) -> None:
    """A recorder writes four chunks a second for as long as it runs."""
    container, n_chunks = Container(), 2000
    messages = Messages.single(2, 0, 5, b"{}")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(n_chunks):
            container.chunk(messages, "", bytes(messages.data))
            container.metadata("chunk", {})
        assert tracemalloc.get_traced_memory()[0] - before < 400 * n_chunks
    finally:
        tracemalloc.stop()
