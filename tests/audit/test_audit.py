import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from ncp_envs.disturbance import DISTURBANCES, Fault

from ncp_rl.audit import Audit, Plan, PlannedFault, audit_sources, failures
from ncp_rl.audit.schema import audit_schema
from ncp_rl.audit.trees import MIN_R2
from ncp_rl.recording import Recording, RecordingError
from ncp_rl.runs import RunConfig, RunError, train

ENV = "ncp_envs:ncp/PendulumNoVel-v1"
SCRIPT = Path(__file__).parents[2] / "scripts" / "audit.py"
SCHEMA = audit_schema()


def small_run(folder: Path, policy: str | None = None) -> Path:
    kwargs: dict[str, Any] = dict(wiring=dict(units=12)) if policy is None else {}
    hyperparams = dict(n_envs=2, n_steps=32, n_timesteps=128, normalize=True, policy_kwargs=kwargs, policy=policy)
    train(RunConfig(ENV, hyperparams), folder, n_eval_episodes=1, n_evaluations=1, progress_bar=False)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "ncp")


@pytest.fixture(scope="module")
def audited(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Path]:
    folder = tmp_path_factory.mktemp("audit")
    baseline = small_run(folder / "mlp", "MlpPolicy")
    plan = Plan(
        n_episodes=14,
        faults={"bias": PlannedFault(Fault, dict(disturbance="sensor_bias", level=0.5, onset=20), 20)},
        n_fault_episodes=2,
        disturbances={"action_delay": (DISTURBANCES["action_delay"], (0.0, 3.0))},
        n_perturb_episodes=2,
        max_loss=np.inf,
    )
    return audit_sources([run, baseline], folder / "out", plan), folder / "out"


def test_every_question_has_a_verdict(audited: tuple[Audit, Path]) -> None:
    audit, _ = audited
    checks = [verdict.check for verdict in audit.verdicts]
    asked = ["chain", "replay", "explain", "certificate", "sensitivity", "monitor", "dynamics", "trees"]
    assert checks == [*asked, "perturbation", "perturbation"]
    # How much rules tell of a circuit that has hardly been trained is left open; either way the sentence says it.
    passed = [(verdict.check, verdict.passed) for verdict in audit.verdicts if verdict.check != "trees"]
    assert passed == [(check, True) for check in checks if check != "trees"]
    trees = next(verdict for verdict in audit.verdicts if verdict.check == "trees")
    r2 = trees.figures["trees_r2"]
    assert trees.passed == (r2 >= MIN_R2) and f"{r2:.0%}" in trees.sentence
    of_runs = [verdict.sentence.partition(":")[0] for verdict in audit.of_runs.verdicts]
    assert of_runs == ["ncp", "mlp"]
    replay = audit.subjects[0].verdicts[1]
    assert "Replay equal bit for bit, 14 episodes" in replay.sentence and replay.figures["max_difference"] == 0.0
    assert set(audit.subjects[0].answers["monitor"].detection) == {"bias"}
    for verdict in audit.verdicts:
        assert not verdict.sentence[0].islower() or verdict.check == "perturbation"
        assert verdict.sentence.endswith(".") and np.isfinite(list(verdict.figures.values())).all()
    assert audit.lines()[0] == "ncp: 14 episodes" and audit.lines()[1].startswith("pass  chain         Intact")


def test_audit_json_keeps_its_schema(audited: tuple[Audit, Path]) -> None:
    audit, out = audited
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    written = json.loads((out / "audit.json").read_text())
    jsonschema.validate(written, SCHEMA)
    assert written["passed"] == audit.passed and written["format_version"] == 1
    assert written["subjects"][0]["verdicts"][3]["sentence"] == audit.subjects[0].verdicts[3].sentence
    assert [point["condition"] for point in written["perturbation"]["points"]] == ["action_delay"] * 4
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"format_version": 2}, SCHEMA)


def test_thresholds(audited: tuple[Audit, Path]) -> None:
    audit, _ = audited
    assert failures(audit, ["chain", "certificate.width<0.0"]) == []
    (found,) = failures(audit, ["certificate.width > 1e-9"])
    assert found.startswith("certificate.width > 1e-9: it is ")
    with pytest.raises(ValueError, match="it has max_difference"):
        failures(audit, ["replay.widht>1"])
    with pytest.raises(ValueError, match="names a check or figure that this audit lacks; it has certificate, chain"):
        failures(audit, ["chains"])
    with pytest.raises(ValueError, match="A condition must be `check` or"):
        failures(audit, ["chain > 3"])


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments), "--no-progress-bar"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_exits_by_what_fails(audited: tuple[Audit, Path], tmp_path: Path) -> None:
    _, out = audited
    recording = out / "ncp.mcap"
    strict = ("--fail-on", "chain", "monitor", "certificate.width>0")
    result = script(recording, "--out", tmp_path / "strict", "--alpha", "0.05", *strict)
    assert result.returncode == 1 and "failed: certificate.width>0: it is" in result.stderr
    assert "pass  replay" in result.stdout and "skip  monitor" in result.stdout and "monitor" not in result.stderr
    assert f"audit: {tmp_path / 'strict' / 'audit.json'}" in result.stdout
    jsonschema.validate(json.loads((tmp_path / "strict" / "audit.json").read_text()), SCHEMA)
    assert (tmp_path / "strict" / "report.html").read_text().startswith("<!doctype html>")
    assert script(recording, "--out", tmp_path / "good", "--fail-on", "chain").returncode == 0


def test_a_changed_recording_fails(audited: tuple[Audit, Path], tmp_path: Path) -> None:
    data = bytearray((audited[1] / "ncp.mcap").read_bytes())
    data[-20] ^= 1  # In the footer: the content can still be read.
    changed = tmp_path / "changed.mcap"
    changed.write_bytes(data)
    audit = audit_sources([changed], tmp_path / "out")
    (failure,) = failures(audit, ["chain", "replay"])
    assert failure.startswith("chain: Damaged") and not audit.passed


def test_errors(run: Path, tmp_path: Path) -> None:
    result = script(run, "--disturbances", "rain")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "error: There is no 'rain'; there are sensor_noise" in result.stderr
    for sources, out, message in (
        ([tmp_path / "none"], tmp_path / "a", "a run folder or a recording; these do not exist"),
        ([run], tmp_path, "exists and is left as it is"),
    ):
        with pytest.raises(RunError, match=message):
            audit_sources(sources, out)
    with pytest.raises(RecordingError):
        audit_sources([SCRIPT], tmp_path / "b")
    with pytest.raises(ValueError, match=r"must be between 0 and 1, got 1\.5"):
        Plan(alpha=1.5)


def test_several_recordings_keep_apart(audited: tuple[Audit, Path], tmp_path: Path) -> None:
    _, out = audited
    copy = tmp_path / "ncp.mcap"
    copy.write_bytes((out / "ncp.mcap").read_bytes())
    audit = audit_sources([out / "ncp.mcap", copy], tmp_path / "two")
    assert [subject.name for subject in audit.subjects] == ["ncp_0", "ncp_1"]
    assert isinstance(audit.subjects[0].recording, Recording)
