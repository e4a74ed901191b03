"""Controllers where they are deployed: NumPy alone, the example, and recordings of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ncp_rl import AutoNCP, NCPPolicy
from ncp_rl.audit import audit_recording, fit_box
from ncp_rl.export import (
    Controller,
    ControllerError,
    ControllerRecorder,
    Monitor,
    monitor_to_json,
    to_c,
    to_numpy,
    to_onnx,
    verify_export,
    write_runtime,
)
from ncp_rl.recording import Recording, generate_key, read_private_key, replay, verify
from tests.export.policies import IMAGES, VECTORS, make_model, predicted

ROOT = Path(__file__).parents[2]
PENDULUM = "ncp_envs:ncp/PendulumNoVel-v1"

PROGRAM = """
import sys
import numpy as np
from controller import Controller
controller = Controller.load(".")
steps = np.load("steps.npz")
for t, observation in enumerate(steps["observations"]):
    if steps["starts"][t]:
        controller.reset()
    controller.step(observation, steps["seconds"][t])
    np.testing.assert_allclose(controller.potentials, steps["potentials"][t], rtol=0, atol=1e-5)
outside = [name for name in ("torch", "gymnasium", "stable_baselines3", "ncp_rl") if name in sys.modules]
assert not outside, outside
for name in ("torch", "gymnasium"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported: this is no environment with NumPy alone")
print("done")
"""


def numpy_alone(folder: Path) -> Path:
    """The Python of a new environment that has NumPy and nothing else."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    return folder / "bin" / "python"


def test_it_runs_where_only_numpy_is_installed(tmp_path: Path) -> None:
    model, environments = make_model(VECTORS["normalised"])
    folder = to_numpy(model, tmp_path / "controller")
    steps = predicted(model, environments, 100)
    arrays: dict[str, Any] = dict(starts=steps.starts, seconds=steps.seconds, potentials=steps.potentials)
    np.savez(folder / "steps.npz", observations=np.stack(steps.observations), **arrays)
    python = numpy_alone(tmp_path / "venv")
    clean = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([python, "-c", PROGRAM], cwd=folder, capture_output=True, text=True, env=clean, check=False)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("form", ["numpy", "onnx"])
def test_the_example_drives_an_environment_from_the_folder_alone(form: str, tmp_path: Path) -> None:
    environments = make_vec_env(PENDULUM, 1)
    kwargs = dict(wiring=AutoNCP(12), elapsed_time=0.05)
    model = RecurrentPPO(NCPPolicy, environments, seed=0, device="cpu", policy_kwargs=kwargs)
    folder = tmp_path / "controller"
    if form == "numpy":
        to_numpy(model, folder)
    else:
        to_onnx(model, folder / "controller.onnx")
        write_runtime(folder)
    script = ROOT / "examples" / "deploy.py"
    command = [sys.executable, str(script), str(folder), PENDULUM, "--seed", "7", "--every", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0].startswith("step 0: action [") and "motor_0" in done.stdout) or "command_" in done.stdout
    environments.seed(7)
    returns, _ = evaluate_policy(model, environments, 1, return_episode_rewards=True)
    assert lines[-1] == f"return {returns[0]:.1f}"  # type: ignore[index]


def spoiled(observation: Any) -> Any:
    """An observation with a bad reading."""
    if isinstance(observation, dict):
        key = next(key for key in observation if key != "elapsed_time" and key != "image")
        return {**observation, key: spoiled(observation[key])}
    wrong = np.array(observation)
    wrong.flat[0] = np.nan if wrong.dtype.kind == "f" else 99
    return wrong


def recorded(name: str, folder: Path, **kwargs: Any) -> tuple[Any, Any, Path]:
    """Model, environments, and a recording: two episodes of a controller, with a bad reading in the second."""
    case = (VECTORS | IMAGES)[name]
    model, environments = make_model(case, units=16)
    if name in IMAGES:
        to_onnx(model, folder / "controller.onnx")
    else:
        to_c(model, folder)
    controller = Controller.load(folder)
    controller.on_bad_input = "hold"
    steps, path = predicted(model, environments, 60), folder / "flight.mcap"
    with ControllerRecorder(controller, path, **kwargs) as recorder:
        for t, observation in enumerate(steps.observations):
            if t in (0, 30):
                controller.reset()
            if t == 40:
                controller.step(spoiled(observation), steps.seconds[t])
                assert controller.problem
            controller.step(observation, steps.seconds[t])
            recorder.tell(float(t), terminated=t == 29)
    return model, environments, path


@pytest.mark.parametrize("name", ["box", "timed dict", "several discrete", "dense", "switches", "image and vectors"])
def test_a_controllers_recording_is_as_any_other(name: str, tmp_path: Path) -> None:
    model, _, path = recorded(name, tmp_path)
    assert verify(path).passed and replay(path).passed
    recording = Recording.open(path)
    first, second = recording
    assert (len(first), len(second)) == (30, 31) and first.terminated and second.truncated
    assert first.reward.tolist() == list(range(30)) and second.held.tolist() == [t == 10 for t in range(31)]
    assert np.isnan(first.value).all()
    if name not in IMAGES:
        told = replay(path, model)
        assert told.passed and "not of a training's policy" in told.notes[0], told
        found = verify_export(tmp_path / "controller.json", path)
        assert found.passed and found.largest == 0.0
        if shutil.which("gcc"):
            assert verify_export(tmp_path, path).passed


def test_a_signed_recording_of_a_controller(tmp_path: Path) -> None:
    public = generate_key(tmp_path / "key.pem")
    _, _, path = recorded("box", tmp_path / "c", sign_key=read_private_key(tmp_path / "key.pem"))
    assert "signed" in str(verify(path)) and public.exists()


def test_the_audit_reads_a_controllers_recording(tmp_path: Path) -> None:
    _, _, path = recorded("box", tmp_path)
    subject = audit_recording(Recording.open(path), "flight")
    verdicts = {verdict.check: verdict.passed for verdict in subject.verdicts}
    assert verdicts["explain"] and verdicts["certificate"]


def test_a_monitor_beside_the_recorder(tmp_path: Path) -> None:
    _, _, path = recorded("box", tmp_path)
    recording = Recording.open(path)
    envelope = fit_box(recording.circuit, [recording[0]])
    monitor = Monitor.load(monitor_to_json(envelope, tmp_path / "monitor.json"))
    controller = Controller.load(tmp_path)
    controller.observers.append(monitor)
    for _ in range(20):
        controller.step([0.5, 0.5, 0.5], 0.1)
    controller.reset()
    for _ in range(20):
        controller.step([1e6, -1e6, 1e6], 1.0)
    assert [alarm.episode for alarm in monitor.alarms][-1] == 1 and monitor.outside


def test_a_recorder_closes_where_the_loop_fails(tmp_path: Path) -> None:
    model, _ = make_model(VECTORS["box"])
    controller = Controller.load(to_numpy(model, tmp_path))
    with pytest.raises(ControllerError), ControllerRecorder(controller, tmp_path / "a.mcap"):
        controller.step(np.zeros(3))
        controller.step(np.full(3, np.nan))
    assert not controller.observers
    episode = Recording.open(tmp_path / "a.mcap")[0]
    assert episode.held.tolist() == [False, True]
