"""Another platform rounds otherwise: what is true there, and that nothing but every bit is true on the same one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl import LTCInit
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Recording, record_rollouts, replay
from ncp_rl.recording.compare import Tally
from ncp_rl.recording.manifest import describe_platform
from ncp_rl.recording.rerun import _repeat
from tests.random_env import box
from tests.recording.recordings import pendulum, random_model, still

RECORD = """
import sys
from pathlib import Path
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from ncp_rl.recording import record_rollouts
from tests.recording.recordings import PENDULUM, still

folder = Path(sys.argv[1])
venv = still(VecNormalize.load(str(folder / "statistics.pkl"), make_vec_env(PENDULUM, n_envs=3, seed=0)))
model = RecurrentPPO.load(folder / "model.zip", env=venv, device="cpu")
for name, deterministic in (("deterministic", True), ("sampled", False)):
    path = folder / f"{name}.mcap"
    record_rollouts(model, venv, path, n_episodes=4, deterministic=deterministic, progress_bar=False)
"""


class Elsewhere(NamedTuple):
    folder: Path
    model: Any
    venv: VecEnv

    def replay(self, recording: Recording | None = None, name: str = "deterministic") -> Any:
        return replay(recording or self.folder / f"{name}.mcap", self.model, self.venv)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Recordings by a processor without vector instructions, of a policy that samples with little noise."""
    folder = tmp_path_factory.mktemp("elsewhere")
    # Slow and steep neurons, so that differences grow.
    model, venv = pendulum(3, policy_kwargs=dict(init=LTCInit(tau=(1.0, 3.0), mu=(0.3, 0.8))))
    model.learn(96)
    still(venv)
    with torch.no_grad():
        policy: Any = model.policy
        policy.log_std.fill_(-6.0)
        for erev in (policy.lstm_actor.erev, policy.lstm_actor.sensory_erev):
            erev.mul_(3.0)
        policy.lstm_actor.sigma.mul_(3.0)
    model.save(folder / "model.zip")
    venv.save(str(folder / "statistics.pkl"))  # type: ignore[attr-defined]
    run(RECORD, str(folder), NUMBA_CPU_NAME="generic")
    return Elsewhere(folder, model, venv)


def run(program: str, *arguments: str, **variables: str) -> str:
    command, environment = [sys.executable, "-c", program, *arguments], os.environ | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["deterministic", "sampled"])
def test_an_honest_recording_of_another_processor_is_true(name: str, elsewhere: Elsewhere) -> None:
    found = elsewhere.replay(name=name)
    assert found.passed and not found.same_platform, str(found)
    assert {"potentials", "values", "run again: reward", "run again: observation"} <= {
        c.what for c in found.comparisons
    }
    assert max(c.max_difference for c in found.comparisons) < 1e-6
    assert "another platform" in str(found) and "edits also pass" in found.to_dict()["worth"]


def test_differences_would_grow_if_steps_did_not_begin_with_what_was_recorded(elsewhere: Elsewhere) -> None:
    recording, tally = Recording.open(elsewhere.folder / "deterministic.mcap"), Tally(0.0)
    _repeat(recording, elsewhere.model, elsewhere.venv, tally)
    step = max(c.max_difference for c in elsewhere.replay().comparisons)
    assert max(c.max_difference for c in tally.comparisons()) > 5 * step  # Seen: beyond the 1e-5 that is allowed.


@pytest.mark.parametrize(
    "field", ["potentials", "sensory", "action_mean", "observation", "value", "log_prob", "action", "reward"]
)
def test_a_false_recording_of_another_processor_is_named(
    field: str, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = falsified(elsewhere.folder / "deterministic.mcap", field, 1e-3, monkeypatch)
    found = elsewhere.replay(recording)
    assert not found.passed and found.first is not None
    assert found.first.episode == 2 and found.first.step in (57, 58)


def test_a_false_probability_is_named_where_the_action_mean_lies_beyond_its_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, venv = pendulum()
    policy: Any = model.policy
    with torch.no_grad():
        policy.log_std.fill_(-6.0)
        policy.action_net.bias.fill_(5.0)  # Torque is at most 2 Nm: that is done in each step, and its mean is 5.
    record_rollouts(model, still(venv), tmp_path / "beyond.mcap", n_episodes=3, progress_bar=False)
    recording = falsified(tmp_path / "beyond.mcap", "log_prob", 1e-3, monkeypatch)
    recording.manifest["platform"]["machine"] = "another"
    [false] = [each for each in replay(recording, model, venv).comparisons if each.first is not None]
    assert false.what == "log-probabilities" and false.first is not None
    assert (false.first.episode, false.first.step) == (2, 57)


@pytest.mark.parametrize("field", ["terminated", "truncated"])
def test_an_end_that_was_none(field: str, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = falsified(elsewhere.folder / "deterministic.mcap", field, None, monkeypatch)
    found = elsewhere.replay(recording)
    assert not found.passed and found.first is not None
    assert (found.first.episode, found.first.step) == (2, 199)


def falsified(path: Path, field: str, by: float | None, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """The recording with another number in step 57 of episode 2, or another end of it."""
    recording, read = Recording.open(path), Recording.__getitem__

    def other(self: Recording, index: int) -> Any:
        episode = read(self, index)
        if self is not recording or index != 2:
            return episode
        if by is None:
            ends: dict[str, Any] = {field: not getattr(episode, field)}
            return dataclasses.replace(episode, **ends)
        values = getattr(episode, field).copy()
        values[57] += by
        return dataclasses.replace(episode, **{field: values})

    monkeypatch.setattr(Recording, "__getitem__", other)
    monkeypatch.setattr(Recording, "__iter__", lambda self: (self[i] for i in range(len(self))))
    return recording


@pytest.mark.parametrize("motor_map", ["affine", "dense"])
def test_no_edit_of_one_bit_passes_by_a_tolerance(motor_map: str, tmp_path: Path) -> None:
    """From the file alone an edit that passes has changed no bit of a result; with the model none passes."""
    policy_kwargs = dict(motor_map=motor_map)
    model, venv = random_model(box(3), box(2), policy_kwargs=policy_kwargs)
    with torch.no_grad():
        for parameter in model.policy.action_net.parameters():
            parameter.add_(torch.rand_like(parameter))
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=4, progress_bar=False)
    assert all(c.bitwise for c in replay(path, model).comparisons)
    honest = Recording.open(path).circuit.parameters()
    assert len(honest) == 13 + 2 * (motor_map == "dense")
    for name, values in honest.items():
        recording = Recording.open(path)
        at = values.size // 2
        recording.circuit.parameters()[name].reshape(-1)[at] = np.nextafter(values.reshape(-1)[at], np.float32(99))
        found = replay(recording)
        assert all(c.bitwise or c.first is not None for c in found.comparisons), (name, str(found))
        if "motor_map" in name or "dense" in name:
            assert not found.passed
        found = replay(recording, model)
        assert (found.first is not None and found.first.name == f"{name}[{at}]") or not found.passed, name
        assert any(c.what == "parameters" and c.first is not None for c in found.comparisons), name
    for name in ("readout", "bias"):
        for index in np.ndindex(getattr(recording.circuit, name).shape):
            recording = Recording.open(path)
            values = getattr(recording.circuit, name).copy()
            values[index] = np.nextafter(values[index], np.float32(99))
            recording.circuit = dataclasses.replace(recording.circuit, **{name: values})
            found = replay(recording)
            assert not found.passed and name in str(found), (name, index, str(found))


def test_the_description_of_a_platform_holds_what_decides_about_bits() -> None:
    here = describe_platform(torch.device("cpu"))
    program = "import json, torch; from ncp_rl.recording.manifest import describe_platform; "
    program += "print(json.dumps(describe_platform(torch.device('cpu'))))"
    variables = dict(
        ATEN_CPU_CAPABILITY="default",
        NUMBA_CPU_NAME="generic",
        MKL_CBWR="COMPATIBLE",
        NPY_DISABLE_CPU_FEATURES=" ".join(here["numpy_cpu"]["found"]),
    )
    other = json.loads(run(program, **variables))
    differ = {name for name in here if here[name] != other[name]}
    assert {"torch_cpu", "numba_cpu", "numba_features", "kernels", "variables"} <= differ
    assert ("numpy_cpu" in differ) == bool(here["numpy_cpu"]["found"])
    assert json.loads(json.dumps(here)) == here
    torch.set_float32_matmul_precision("medium")
    try:
        assert describe_platform(torch.device("cpu")) != here
    finally:
        torch.set_float32_matmul_precision("highest")


def test_as_many_threads_as_the_recording_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, venv = random_model(box(3), box(2))
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=2, progress_bar=False)
    finally:
        torch.set_num_threads(before)
    step = Circuit.run

    def run_noting(self: Circuit, *args: Any, **kwargs: Any) -> Any:
        seen.append(torch.get_num_threads())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Circuit, "run", run_noting)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert replay(path).same_platform and seen == [2, 2] and torch.get_num_threads() == before
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    found = replay(path)
    assert found.passed and not found.same_platform and len(seen) == 2


def test_either_of_two_equally_likely_actions_is_true_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, venv = random_model(box(3), spaces.Discrete(3))
    with torch.no_grad():
        for parameter in model.policy.action_net.parameters():
            parameter.zero_()
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=4, progress_bar=False)
    recording, read = Recording.open(path), Recording.__getitem__

    def tied(self: Recording, index: int) -> Any:
        episode = read(self, index)
        return dataclasses.replace(episode, action=2 - episode.action, sample=2 - episode.action)

    monkeypatch.setattr(Recording, "__iter__", lambda self: (tied(self, i) for i in range(len(self))))
    found = replay(recording, model)
    assert not found.passed and any(c.what == "actions" and c.first is not None for c in found.comparisons)
    recording.manifest["platform"]["cpu"] = "another"
    assert replay(recording, model).passed


@pytest.mark.parametrize("backend", ["triton", "auto", "reference"])
def test_a_circuit_of_a_gpu_is_replayed_on_the_cpu(backend: str, tmp_path: Path) -> None:
    model, venv = random_model(box(3), box(2))
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=2, progress_bar=False)
    tensors, described = Recording.open(path).circuit.save()
    loaded = Circuit.load(tensors, json.dumps(json.loads(described) | {"backend": backend}).encode())
    recording = Recording.open(path)
    recording.circuit = loaded
    recording.manifest["platform"]["device"] = "a GPU"
    assert replay(recording).passed
    assert loaded.ltc.backend == ("reference" if backend == "reference" else "auto")
    with pytest.raises(ValueError, match="backend must be one of auto, reference, numba, triton, got 'evil'"):
        Circuit.load(tensors, json.dumps(json.loads(described) | {"backend": "evil"}).encode())
