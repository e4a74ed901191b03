"""C99 by a real compiler: no warning, no undefined behaviour, the policy's numbers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from ncp_rl import NCPPolicy, Receptors
from ncp_rl.audit import Envelope
from ncp_rl.audit.watched import Watched
from ncp_rl.circuit import Circuit
from ncp_rl.export import ExportError, monitor_to_c, to_c
from ncp_rl.export.c_source import comment, literal
from ncp_rl.export.toolchain import FLAGS, GO_ON, RESET, build_here
from ncp_rl.runs import RunError
from tests.export.policies import BOX, IMAGES, VECTORS, Case, flat, make_model, predicted
from tests.random_env import box

ATOL = 1e-5
#: `controller_status` of controller.h.
BAD_OBSERVATION, BAD_SECONDS, OUT_OF_RANGE = 1, 2, 3
RANDOM_STEPS = Path(__file__).with_name("random_steps.c")

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler: apt-get install gcc g++")
needs_cppcheck = pytest.mark.skipif(shutil.which("cppcheck") is None, reason="apt-get install cppcheck")

#: MISRA rules that are not met; docs/deployment.md says why.
NOT_MET = {"controller.c": {"2.5", "8.9", "21.15"}, "monitor.c": {"2.5", "8.9"}, "main.c": {"2.5", "17.7", "21.6"}}
#: What cppcheck, which reads no system headers, must know of float.h.
FLOAT_H = ("-DFLT_RADIX=2", "-DFLT_MANT_DIG=24", "-DFLT_MAX_EXP=128")


def exported(case: Case, folder: Path, **kwargs: Any) -> Path:
    model, _ = make_model(case, **kwargs)
    return to_c(model, folder)


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_gcc
@pytest.mark.parametrize("name", VECTORS)
def test_every_step_is_that_of_predict(name: str, tmp_path: Path) -> None:
    model, venv = make_model(VECTORS[name])
    folder = to_c(model, tmp_path / "c")
    program = build_here(folder, tmp_path)
    steps = predicted(model, venv, 300)
    description = json.loads((folder / "controller.json").read_text())
    observation = np.stack([flat(one, description) for one in steps.observations])
    outcome, _ = program.run(np.where(steps.starts, RESET, GO_ON), steps.seconds, observation)
    assert not outcome.held.any()
    np.testing.assert_allclose(outcome.potentials, steps.potentials, rtol=0, atol=ATOL)
    actions = np.array([np.ravel(action) for action in steps.actions])
    np.testing.assert_allclose(outcome.action, actions, rtol=0, atol=ATOL * max(1, np.abs(actions).max()))


@needs_gcc
@pytest.mark.parametrize("name", ["timed dict", "squashed", "several discrete", "switches", "dense", "one value"])
def test_no_compiler_warns(name: str, tmp_path: Path) -> None:
    folder = exported(VECTORS[name], tmp_path / "c")
    for compiler in (("gcc", "-std=c99"), ("g++", "-std=c++17", "-x", "c++")):
        if shutil.which(compiler[0]) is None:
            pytest.skip("needs g++ too: apt-get install g++")
        for code in ("controller.c", "main.c"):
            assert not call(*compiler, *FLAGS, "-O2", "-c", str(folder / code), "-o", str(tmp_path / "out.o"))


@needs_gcc
@pytest.mark.parametrize("name, n_values", [("normalised", 0), ("several discrete", 2)])
def test_a_million_random_steps_have_no_undefined_behaviour(name: str, n_values: int, tmp_path: Path) -> None:
    """The program checks in each that a refused step leaves all as it is, and that actions are finite."""
    folder = exported(VECTORS[name], tmp_path / "c")
    program = tmp_path / "random_steps"
    sanitize = "-fsanitize=address,undefined,float-cast-overflow"
    sources = str(RANDOM_STEPS), str(folder / "controller.c"), f"-I{folder}"
    call("gcc", "-std=c99", "-O1", "-g", sanitize, "-fno-sanitize-recover=all", *sources, "-o", str(program))
    good, bad_observation, bad_seconds, out_of_range = map(int, call(str(program), "1000000", str(n_values)).split())
    assert good > 900_000 and bad_observation > 1000 and bad_seconds > 1000 and 500 < out_of_range < 20_000


@needs_cppcheck
@pytest.mark.parametrize("name", ["timed dict", "squashed", "several discrete", "dense"])
def test_misra_rules_as_cppcheck_knows_them(name: str, tmp_path: Path) -> None:
    folder = exported(VECTORS[name], tmp_path / "c")
    watched = Watched("all", np.arange(12), tuple(f"neuron_{i}" for i in range(12)))
    numbers: dict[str, Any] = dict(
        centre=np.zeros(12), low=np.zeros(12), high=np.zeros(12), precision=np.eye(12), profile=np.ones(1)
    )
    promise: dict[str, Any] = dict(threshold=1.0, alpha=None, n_fit=1, n_calibration=0, calibration=np.empty(0))
    monitor_to_c(Envelope(watched=watched, score="mahalanobis", **numbers, **promise, elapsed_time=0.1), folder)

    for code, not_met in NOT_MET.items():
        said = misra(folder / code)
        assert set(re.findall(r"misra-c2012-([\d.]+)", said)) <= not_met, said


@needs_cppcheck
def test_a_broken_misra_rule_is_seen(tmp_path: Path) -> None:
    folder = exported(VECTORS["box"], tmp_path / "c")
    code = (folder / "controller.c").read_text()
    (folder / "controller.c").write_text(code.replace("if (good == 0) {", "if (good) {"))
    assert "misra-c2012-14.4" in misra(folder / "controller.c")


def misra(code: Path) -> str:
    said = call("cppcheck", "--addon=misra", "--std=c99", "--enable=all", *FLOAT_H, str(code))
    # Cppcheck succeeds too where it finds nothing to analyse.
    assert not any(word in said for word in ("noValidConfiguration", ": error:", ": warning:")), said
    return said


@needs_gcc
def test_bad_readings_leave_state_and_action(tmp_path: Path) -> None:
    program = build_here(exported(VECTORS["box"], tmp_path / "c"), tmp_path)
    good = np.full((5, 3), 0.3, np.float32)
    for wrong, seconds, status in (
        (np.nan, 0.1, BAD_OBSERVATION),
        (np.inf, 0.1, BAD_OBSERVATION),
        (0.3, -0.1, BAD_SECONDS),
        (0.3, np.nan, BAD_SECONDS),
        (0.3, np.inf, BAD_SECONDS),
    ):
        observation, elapsed = good.copy(), np.full(5, 0.1)
        observation[2, 1], elapsed[2] = wrong, seconds
        outcome, _ = program.run(np.array([RESET, 0, 0, 0, 0]), elapsed, observation)
        assert outcome.status.tolist() == [0, 0, status, 0, 0]
        np.testing.assert_array_equal(outcome.potentials[2], outcome.potentials[1])
        np.testing.assert_array_equal(outcome.action[2], outcome.action[1])
        # The fourth step is the third of an episode without the bad one.
        short, _ = program.run(np.array([RESET, 0, 0]), np.full(3, 0.1), good[:3])
        np.testing.assert_array_equal(outcome.potentials[3], short.potentials[2])


@needs_gcc
@pytest.mark.parametrize("wrong", [-1.0, 3.0, 0.5])
def test_values_that_a_discrete_observation_does_not_have(wrong: float, tmp_path: Path) -> None:
    program = build_here(exported(VECTORS["several discrete"], tmp_path / "c"), tmp_path)
    observation = np.array([[1, 1], [wrong, 1]], np.float32)
    outcome, _ = program.run(np.array([RESET, GO_ON]), np.full(2, 0.1), observation)
    assert outcome.status.tolist() == [0, BAD_OBSERVATION]


@needs_gcc
def test_a_potential_outside_its_certified_range_is_refused(tmp_path: Path) -> None:
    """Numbers of the table are changed, as by broken memory: what follows is not handed on."""
    folder = exported(VECTORS["box"], tmp_path / "c")
    code = (folder / "controller.c").read_text()
    row = re.search(r"\{ 0u, ([^ ]+), ", code[code.index("SENSORY_SYNAPSES[") :])
    assert row is not None
    tampered = code.replace("1.0f / (1.0f + exponential", "30.0f / (1.0f + exponential").replace(
        "*current += open * one->erev", "*current += 5.0f * open * one->erev"
    )
    assert tampered != code
    (folder / "controller.c").write_text(tampered)
    outcome, _ = build_here(folder, tmp_path).run(np.array([RESET, GO_ON]), np.full(2, 0.1), np.ones((2, 3)))
    assert (outcome.status == OUT_OF_RANGE).all() and not outcome.potentials.any()


@needs_gcc
def test_normalisation_keeps_digits_far_from_zero(tmp_path: Path) -> None:
    """Readings of a million that differ by one: a mean in float32 alone would lose them."""
    far = spaces.Box(np.full(2, 1_000_000.0, np.float64), np.full(2, 1_000_002.0, np.float64), dtype=np.float64)
    model, venv = make_model(Case(far, BOX, normalize={}))
    program = build_here(to_c(model, tmp_path / "c"), tmp_path)
    steps = predicted(model, venv, 50)
    observation = np.stack(steps.observations).astype(np.float32)
    # What float32 cannot tell apart, no controller of float32 can.
    steps = predicted_at(model, venv, observation, steps.starts)
    outcome, _ = program.run(np.where(steps[1], RESET, GO_ON), np.full(50, 0.1), observation)
    np.testing.assert_allclose(outcome.potentials, steps[0], rtol=0, atol=ATOL)


def predicted_at(model: Any, venv: Any, observation: Any, starts: Any) -> Any:
    state, found = None, []
    for t in range(len(observation)):
        _, state = model.predict(
            venv.normalize_obs(observation[t : t + 1].astype(np.float64)), state, starts[t : t + 1]
        )
        found.append(state[0][0, 0])
    return np.array(found), starts


@needs_gcc
def test_the_example_reads_lines(tmp_path: Path) -> None:
    folder = exported(VECTORS["box"], tmp_path / "c")
    program = tmp_path / "controller"
    call("gcc", "-std=c99", str(folder / "main.c"), str(folder / "controller.c"), "-o", str(program))
    done = subprocess.run([str(program)], input="0 0 0\n0 nan 0\n", capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("status 0, action ") and second == first.replace("status 0", "status 1")


def test_the_header_names_everything(tmp_path: Path) -> None:
    folder = exported(VECTORS["timed dict"], tmp_path / "c")
    header = (folder / "controller.h").read_text()
    description = json.loads((folder / "controller.json").read_text())
    assert f'"{description["policy_sha256"]}"' in header
    for j, name in enumerate(description["neuron_names"]):
        low, high = (description["certified"]["potentials"][end][j] for end in ("low", "high"))
        assert re.search(rf"{name} +\[{low:.6g}, {high:.6g}\]", header)
    assert "] speed: speed_1" in header and "] gear, a whole number from 0 to 3" in header


def test_names_cannot_leave_their_comments() -> None:
    assert comment("a */ system(0); /* \\\n??/ é") == "a __ system(0)_ __ _____ _"


def test_literals_are_read_back_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=200), 10.0 ** rng.uniform(-38, 38, 200), [0, 1, -2]]).astype(np.float32)
    for value in values:
        text = literal(value)
        assert np.float32(text.removesuffix("f")) == value and re.fullmatch(r"-?[\d.]+(e[-+]\d+)?f", text)


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_refused_with_the_way_that_serves_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Export it by to_onnx"):
        exported(IMAGES[name], tmp_path / "c")


def test_an_encoder_of_ones_own_is_refused(tmp_path: Path) -> None:
    class Squared(Receptors):
        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return super().forward(observations**2)

    with pytest.raises(ExportError, match="through an encoder of another kind"):
        exported(Case(box(3), BOX, kwargs=dict(features_extractor_class=Squared)), tmp_path / "c")


def test_neurons_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Only policies of LTC neurons can be exported, this one has CfC neurons"):
        exported(Case(box(3), BOX, kwargs=dict(cell="cfc")), tmp_path / "c")


def test_what_stands_there_is_left(tmp_path: Path) -> None:
    model, _ = make_model(VECTORS["box"])
    to_c(model, tmp_path)
    with pytest.raises(ExportError, match="exists and is left as it is"):
        to_c(model, tmp_path)


def test_broken_policies_and_missing_runs_are_refused(tmp_path: Path) -> None:
    model, _ = make_model(VECTORS["box"])
    assert isinstance(model.policy, NCPPolicy)
    with torch.no_grad():
        Circuit.from_policy(model.policy).ltc.vleak[2] = torch.nan
    with pytest.raises(ExportError, match=r"vleak of .* is nan"):
        to_c(model, tmp_path / "c")
    with pytest.raises(RunError, match="no run folder"):
        to_c(tmp_path / "nowhere", tmp_path / "c")


def test_encoders_and_statistics_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model, venv = make_model(VECTORS["normalised"])
    assert isinstance(venv, VecNormalize) and isinstance(venv.obs_rms, RunningMeanStd)
    venv.obs_rms.mean[1] = np.nan
    with pytest.raises(ExportError, match="VecNormalize's mean of the observation holds numbers that are not finite"):
        to_c(model, tmp_path / "c")
    model, _ = make_model(VECTORS["box"])
    with torch.no_grad():
        model.policy.get_parameter("pi_features_extractor.gain")[0] = torch.inf
    with pytest.raises(ExportError, match="gain of the encoder"):
        to_c(model, tmp_path / "c")


def test_a_model_without_environments_is_refused(tmp_path: Path) -> None:
    """It would lose the normalisation that it was trained with, and nobody would see."""
    model, venv = make_model(VECTORS["normalised"])
    model.save(tmp_path / "model")
    alone = RecurrentPPO.load(tmp_path / "model")
    with pytest.raises(ExportError, match="env=venv"):
        to_c(alone, tmp_path / "c")
    to_c(alone, tmp_path / "c", env=venv)


@needs_gcc
def test_fast_math_is_refused(tmp_path: Path) -> None:
    folder = exported(VECTORS["box"], tmp_path / "c")
    command = ["gcc", "-std=c99", "-ffast-math", "-c", str(folder / "controller.c"), "-o", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and "-ffast-math forbids" in done.stderr


def test_elapsed_time_must_not_be_normalised(tmp_path: Path) -> None:
    model, venv = make_model(VECTORS["timed dict"])
    assert isinstance(venv, VecNormalize) and isinstance(venv.obs_rms, dict)
    venv.norm_obs_keys = ["speed", "elapsed_time"]
    venv.obs_rms["elapsed_time"] = venv.obs_rms["speed"]
    with pytest.raises(ExportError, match="leave it out of norm_obs_keys"):
        to_c(model, tmp_path / "c")
