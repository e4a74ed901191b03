"""An export is proven equal to a recording, and what is changed in either is found and named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl import NCPPolicy
from ncp_rl.circuit import Circuit
from ncp_rl.export import DeployedQuestion, ExportError, to_c, to_numpy, to_onnx, verify_export
from ncp_rl.recording import NeuronRecorder, Recording, record_rollouts
from ncp_rl.recording.pictures import as_pictures, from_picture
from ncp_rl.runs import RunConfig, train
from tests.export.policies import IMAGES, VECTORS, Case, make_model
from tests.random_env import box

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler: apt-get install gcc")
SCRIPTS = Path(__file__).parents[2] / "scripts"


def recorded(case: Case, path: Path, **kwargs: Any) -> tuple[RecurrentPPO, VecEnv]:
    model, venv = make_model(case, n_envs=2)
    record_rollouts(model, venv, path, n_episodes=5, progress_bar=False, **kwargs)
    return model, venv


@pytest.mark.parametrize("name", VECTORS)
def test_c_numpy_and_onnx_do_what_was_recorded(name: str, tmp_path: Path) -> None:
    model, _ = recorded(VECTORS[name], tmp_path / "a.mcap")
    to_c(model, tmp_path / "c")
    to_onnx(model, tmp_path / "controller.onnx")
    for export, form in (("c", "C99"), ("c/controller.json", "NumPy"), ("controller.onnx", "ONNX")):
        found = verify_export(tmp_path / export, tmp_path / "a.mcap")
        assert found.passed and found.form == form and len(found.episodes) == 5 and found.largest <= 1e-5
        assert "does what was recorded: 5 episodes" in str(found)
        assert json.dumps(found.to_dict())


@pytest.mark.parametrize("name", IMAGES)
def test_recorded_images_drive_the_graph(name: str, tmp_path: Path) -> None:
    model, _ = recorded(IMAGES[name], tmp_path / "a.mcap", images=True)
    path = to_onnx(model, tmp_path / "a.onnx")
    assert verify_export(path, tmp_path / "a.mcap").passed
    record_rollouts(model, recorded(IMAGES[name], tmp_path / "x.mcap")[1], tmp_path / "b.mcap", progress_bar=False)
    with pytest.raises(ExportError, match="record with images=True"):
        verify_export(path, tmp_path / "b.mcap")


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7, 1), (5, 7, 4), (3, 5, 7), (1, 5, 7), (4, 5, 7)])
def test_pictures_become_what_was_observed(shape: tuple[int, ...]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, *shape)).astype(np.uint8)
    np.testing.assert_array_equal(from_picture(as_pictures(frames)[0], shape), frames[0])


def test_an_edited_number_is_named_by_its_neuron_and_the_first_step(tmp_path: Path) -> None:
    model, _ = recorded(VECTORS["box"], tmp_path / "a.mcap")
    folder = to_c(model, tmp_path / "c")
    code = (folder / "controller.c").read_text()
    # The capacitance of a command neuron, a thousandth more.
    row = re.search(r"\{ (\d+u, \d+u, )([\d.e-]+)f,([^}]*)\}(,? /\* \d+: command_1 \*/)", code)
    assert row is not None
    edited = f"{{ {row[1]}{float(row[2]) * 1.001:.9g}f,{row[3]}}}{row[4]}"
    (folder / "controller.c").write_text(code.replace(row[0], edited))
    found = verify_export(folder, tmp_path / "a.mcap")
    assert not found.passed and found.first is not None and found.rounding is False
    assert (found.first.episode, found.first.step, found.first.name) == (0, 0, "command_1")
    recording = Recording.open(tmp_path / "a.mcap")
    index = recording.circuit.wiring.names.index("command_1")
    assert found.first.recorded == pytest.approx(recording[0].potentials[0, index])
    assert re.search(r"first command_1 in step 0 of episode 0: recorded [-\d.e]+, exported [-\d.e]+", str(found))
    question = DeployedQuestion(folder)
    (verdict,) = question.verdicts(found)
    assert not verdict.passed and verdict.figures["max_difference"] > 1e-5
    jsonschema.validate(question.entries(found)["deployed"], question.schema["deployed"])


def test_an_edited_bound_of_the_action_is_found(tmp_path: Path) -> None:
    model, _ = recorded(VECTORS["box"], tmp_path / "a.mcap")
    description = json.loads((to_numpy(model, tmp_path / "n") / "controller.json").read_text())
    description["action"]["high"] = [-1.9, -0.4]
    (tmp_path / "n" / "controller.json").write_text(json.dumps(description))
    found = verify_export(tmp_path / "n", tmp_path / "a.mcap")
    assert found.first is not None and found.first.name.startswith("actions")


def test_another_policy_is_told_by_its_hash(tmp_path: Path) -> None:
    model, _ = recorded(VECTORS["box"], tmp_path / "a.mcap")
    assert isinstance(model.policy, NCPPolicy)
    with torch.no_grad():
        Circuit.from_policy(model.policy).ltc.vleak[0] += 1e-7
    found = verify_export(to_c(model, tmp_path / "c"), tmp_path / "a.mcap")
    assert not found.passed and "is of another policy than the recording" in str(found)


def test_normalisation_that_is_left_out_is_told_by_the_hash(tmp_path: Path) -> None:
    model, venv = recorded(VECTORS["normalised"], tmp_path / "a.mcap")
    export = to_numpy(model, tmp_path / "n", env=venv.venv)  # type: ignore[attr-defined]
    assert not verify_export(export, tmp_path / "a.mcap").passed


def test_held_steps_are_held_by_the_export_too(tmp_path: Path) -> None:
    model, venv = make_model(VECTORS["timed dict"])
    assert isinstance(model.policy, NCPPolicy)
    model.policy.on_bad_input = "hold"
    step, count = venv.venv.step_wait, iter(range(10**6))  # type: ignore[attr-defined]

    def broken() -> Any:
        observation, *rest = step()
        wrong = next(count)
        if wrong % 3 == 1:
            observation["speed" if wrong % 2 else "elapsed_time"][0] = np.nan
        return observation, *rest

    venv.venv.step_wait = broken  # type: ignore[attr-defined]
    record_rollouts(model, venv, tmp_path / "a.mcap", n_episodes=6, progress_bar=False)
    held = [episode.held.sum() for episode in Recording.open(tmp_path / "a.mcap")]
    assert sum(held) > 2
    to_c(model, tmp_path / "c")
    for export in ("c", "c/controller.json"):
        assert verify_export(tmp_path / export, tmp_path / "a.mcap").passed


def test_recordings_of_a_training_begin_in_mid_episode_and_sample(tmp_path: Path) -> None:
    model, _ = make_model(VECTORS["box"], n_envs=2)
    recorder = NeuronRecorder(tmp_path / "r", every=1)
    before = Path(tmp_path / "c")
    model.learn(64, callback=recorder, reset_num_timesteps=False)
    # A rollout's policy is that of its beginning; nothing is learned while it is recorded.
    recording = Recording.open(recorder.paths[-1])
    assert any(episode.start.any() for episode in recording)
    to_c(model, before)
    found = verify_export(before, recording)
    assert not found.passed and "another policy" in str(found)


def test_exports_that_observe_what_the_recording_lacks(tmp_path: Path) -> None:
    recorded(VECTORS["box"], tmp_path / "a.mcap")
    other, _ = make_model(Case(box(4), VECTORS["box"].action))
    export = to_numpy(other, tmp_path / "n")
    assert not verify_export(export, tmp_path / "a.mcap").passed
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"must hold controller\.json or controller\.onnx"):
        verify_export(tmp_path / "empty", tmp_path / "a.mcap")


def test_code_that_does_not_compile(tmp_path: Path) -> None:
    model, _ = recorded(VECTORS["box"], tmp_path / "a.mcap")
    folder = to_c(model, tmp_path / "c")
    (folder / "controller.c").write_text("int;")
    with pytest.raises(ExportError, match="failed with status"):
        verify_export(folder, tmp_path / "a.mcap")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ncp"
    kwargs: dict[str, Any] = dict(wiring=dict(units=12))
    found = dict(n_envs=2, n_steps=32, n_timesteps=128, normalize=True, policy_kwargs=kwargs)
    config = RunConfig("ncp_envs:ncp/PendulumNoVel-v1", found)
    train(config, folder, n_eval_episodes=1, n_evaluations=1, progress_bar=False)
    return folder


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=SCRIPTS.parent
    )


def test_from_a_run_folder_to_the_audit_by_scripts(run: Path, tmp_path: Path) -> None:
    script, out, flight = SCRIPTS / "export.py", tmp_path / "controller", tmp_path / "flight.mcap"
    for command in ("c", "onnx"):
        folder = out if command == "c" else tmp_path / "onnx"
        done = call(script, command, run, "--out", folder)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).exists()
    assert (tmp_path / "onnx" / "controller.py").exists()
    assert call(SCRIPTS / "record.py", "record", run, "--out", flight, "--episodes", 12).returncode == 0
    done = call(script, "monitor", flight, "--out", out)
    assert done.returncode == 0 and (out / "monitor.c").exists(), done.stderr
    done = call(script, "verify", out, flight)
    assert done.returncode == 0 and "does what was recorded: 12 episodes" in done.stdout, done.stderr
    asked = (SCRIPTS / "audit.py", flight, "--out", tmp_path / "audit", "--fail-on", "chain", "--deployed")
    done = call(*asked, tmp_path / "onnx")
    assert done.returncode == 0, done.stderr
    assert re.search(r"pass  deployed +The ONNX controller does what was recorded", done.stdout)
    code = (out / "controller.c").read_text()
    (out / "controller.c").write_text(code.replace("(1.0f / 24.0f)", "(1.0f / 12.0f)"))
    done = call(script, "verify", out, flight)
    assert done.returncode == 1 and "The C99 controller differs" in done.stdout
    asked = (SCRIPTS / "audit.py", flight, "--out", tmp_path / "audit2", "--fail-on", "chain", "--deployed")
    done = call(*asked, out)
    assert done.returncode == 1 and "FAIL  deployed" in done.stdout
    done = call(script, "verify", tmp_path / "nowhere", flight)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
