"""ncp-rl monitor: fitted on clean episodes, it says nothing of them and finds what is wrong with a sensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ncp_rl.cli import main
from ncp_rl.runs import RunConfig, train

ENV = "ncp_envs:ncp/PendulumNoVel-v1"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = dict(n_envs=2, n_timesteps=64, n_steps=32, batch_size=32, policy_kwargs=dict(wiring=dict(units=12)))
    train(RunConfig(ENV, settings), folder, n_evaluations=1, n_eval_episodes=1, progress_bar=False)
    return folder


def test_from_clean_episodes_to_an_alarm(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, monitor = str(tmp_path / "clean.mcap"), str(tmp_path / "controller" / "monitor.json")
    assert main(["record", str(run_folder), "--out", clean, "--episodes", "1", "--no-progress-bar"]) == 0
    assert main(["monitor", "fit", clean, "--out", str(tmp_path / "controller"), "--kind", "box"]) == 0
    assert (tmp_path / "controller" / "monitor.c").exists()
    capsys.readouterr()
    assert main(["monitor", "check", clean, "--monitor", monitor]) == 0
    assert capsys.readouterr().out == "0 of 1 episodes raised an alarm.\n"
    live = ["monitor", "run", str(run_folder), "--monitor", monitor, "--episodes", "1"]
    # The same episode once more.
    assert main(live) == 0
    assert "0 of 1 episodes raised an alarm." in capsys.readouterr().out
    assert main([*live, "--disturb", "sensor_noise=1"]) == 1
    said = capsys.readouterr().out
    assert said.count("leaves known territory") == 1 and "1 of 1 episodes raised an alarm." in said


def test_check_tells_alarms_of_a_recording_as_json(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, more = str(tmp_path / "few.mcap"), str(tmp_path / "more.mcap")
    for path, n, seed in ((few, "1", "0"), (more, "4", "7")):
        assert (
            main(["record", str(run_folder), "--out", path, "--episodes", n, "--seed", seed, "--no-progress-bar"]) == 0
        )
    assert main(["monitor", "fit", few, "--out", str(tmp_path), "--kind", "box"]) == 0
    capsys.readouterr()
    # One episode is too few to know what is clean: others leave its envelope.
    assert main(["monitor", "check", more, "--monitor", str(tmp_path / "monitor.json"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["n_episodes"] == 4 and 1 <= len(found["alarms"]) <= 4
    assert found["alarms"][0]["neuron"].startswith("command_") and found["alarms"][0]["score"] > 1
