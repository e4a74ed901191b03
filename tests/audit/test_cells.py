"""The audit of CfC neurons: what it answers, and what it says of the questions that it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from ncp_envs.disturbance import DISTURBANCES

from ncp_rl.audit import QUESTIONS, Audit, Clamp, Plan, ablate, audit_sources, step_response
from ncp_rl.cores import CELLS
from ncp_rl.runs import RunConfig, train
from tests.audit.test_audit import ENV, SCHEMA, SCRIPT


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Path]:
    """A run folder from settings that a yml file can hold: recorded, replayed, perturbed."""
    folder = tmp_path_factory.mktemp("cfc")
    kwargs = dict(wiring=dict(units=12), cell="cfc", cell_kwargs=dict(mode="no_gate"))
    hyperparams: dict[str, Any] = dict(n_envs=2, n_steps=32, n_timesteps=128, normalize=True, policy_kwargs=kwargs)
    train(RunConfig(ENV, hyperparams), folder / "run", n_eval_episodes=1, n_evaluations=1, progress_bar=False)
    disturbances = {"action_delay": (DISTURBANCES["action_delay"], (0.0, 3.0))}
    plan = Plan(n_episodes=14, faults={}, disturbances=disturbances, n_perturb_episodes=2, max_loss=np.inf)
    return audit_sources([folder / "run"], folder / "out", plan), folder / "out"


def test_what_holds_is_asked_and_the_rest_says_why_not(audited: tuple[Audit, Path]) -> None:
    audit, out = audited
    (subject,) = audit.subjects
    assert [verdict.check for verdict in audit.verdicts] == ["chain", "replay", "monitor", "trees", "perturbation"]
    assert all(verdict.passed for verdict in audit.verdicts if verdict.check != "trees")
    assert "Replay equal bit for bit, 14 episodes" in subject.verdicts[1].sentence
    assert set(subject.skipped) == {"explain", "certificate", "sensitivity", "dynamics", "ablation"}
    assert all("CfC neuron" in why and why.endswith(".") for why in subject.skipped.values())
    assert sum(line.startswith("skip  ") for line in audit.lines()) == 5
    written = json.loads((out / "audit.json").read_text())
    jsonschema.validate(written, SCHEMA)
    told = written["subjects"][0]
    assert told["circuit"]["cell"] == "cfc" and told["skipped"] == subject.skipped
    assert [told[name] for name in ("explain", "certificate", "provoked", "dynamics")] == [None] * 4
    assert told["sensitivity"] == told["ablation"] == [] and told["monitor"]["envelope"]["n_calibration"] >= 7
    assert not CELLS["ltc"].unanswered
    assert set(CELLS["cfc"].unanswered) <= {question.name for question in QUESTIONS}


def test_the_script_passes_what_was_not_asked(audited: tuple[Audit, Path], tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(audited[1] / "run.mcap"), "--out", str(tmp_path / "out")]
    result = subprocess.run([*command, "--no-progress-bar"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "skip  certificate   CfC neurons have no conductances" in result.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "run is not in the player. CfC neurons have no conductances" in page and 'id="trees"' in page


def test_questions_asked_by_hand(audited: tuple[Audit, Path]) -> None:
    audit, _ = audited
    circuit = audit.subjects[0].recording.circuit
    with pytest.raises(ValueError, match="Only circuits of LTC neurons have this; the circuit's neurons are CfC"):
        ablate(circuit, Clamp("command_0", 0.0))
    response = step_response(circuit, 0, 1.0, n_steps=50)
    assert np.isfinite(response.potentials).all() and response.change.any() and np.isfinite(response.slowest_mode)
