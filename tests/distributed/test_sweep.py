"""Sweeps on a real Ray: a worker and the driver are killed; no trial is lost, and none is trained twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from ncp_rl.cli import main
from ncp_rl.distributed import Row, read_table
from ncp_rl.runs import RunConfig, load_run, read_config, read_hyperparams, train
from tests.distributed.counting import KILLED, STEP, WAITING, rollouts_of

ROOT = Path(__file__).parents[2]
ENV = "CartPole-v1"
N_STEPS, ROLLOUT = 512, 32
BASE = f"""
{ENV}:
  n_envs: 2
  n_timesteps: {N_STEPS}
  n_steps: {ROLLOUT // 2}
  batch_size: 32
  n_epochs: 1
  callback: tests.distributed.counting.Counting
  policy_kwargs: {{wiring: {{units: 8}}}}
"""
SPACE = """
NCPPolicy:
  learning_rate: {loguniform: [1e-4, 1e-2], linear: true}
  policy_kwargs.wiring.units: {int: [6, 10]}
  normalize: {choice: [false, {norm_obs: false}]}
"""


class Swept(NamedTuple):
    """A sweep of four settings x two seeds whose worker and driver were killed, and that has gone on."""

    out: Path
    ended_before: dict[str, int]
    """By trial, when those ended that had when the driver was killed."""
    said: str
    """By the second driver."""


def start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A driver that says into a file what it says."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "envs")])
    command = [sys.executable, "-m", "ncp_rl", "sweep", *arguments]
    environment = os.environ | {"PYTHONPATH": paths}
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def wait_until(true: Callable[[], bool], driver: subprocess.Popen[bytes] | None = None) -> None:
    """Wait; whether a machine is fast or slow, it must become true, and the driver must run until then."""
    began = time.monotonic()
    while not true():
        ended = driver is not None and driver.poll() is not None
        if ended or time.monotonic() - began > 400:
            if driver is not None:
                driver.kill()
            pytest.fail("The driver ended before it became true." if ended else "It did not become true.")
        time.sleep(0.05)


def endings(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("trials/*/trial.json")}


def processes(out: Path) -> set[int]:
    """Those that have trained."""
    return {int(line.split()[1]) for path in out.glob("rollouts*.txt") for line in path.read_text().splitlines()}


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    out = folder / "out"
    (folder / "base.yml").write_text(BASE)
    (folder / "space.yml").write_text(SPACE)
    often = ["--evaluations", "4", "--eval-episodes", "2", "--checkpoints", str(N_STEPS // ROLLOUT)]
    what = [str(folder / "space.yml"), "--envs", ENV, "--seeds", "0", "1", "--settings", "4", "--no-halving"]
    what += ["--hyperparams", str(folder / "base.yml"), *often]
    driver = start(folder / "first.log", *what, "--out", str(out), "--max-concurrent", "2")
    # One trial waits; the other worker trains all trials before it, and the one beside it.
    wait_until(lambda: len(endings(out)) >= 4 and any(out.glob(f"met*{WAITING}")), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not any(map(is_alive, processes(out))))
    ended = endings(out)
    assert 4 <= len(ended) < 8
    driver = start(folder / "second.log", "--out", str(out), "--resume", "--max-concurrent", "2")
    wait_until(lambda: driver.poll() is not None, driver)
    said = (folder / "second.log").read_text()
    assert driver.returncode == 0, said
    return Swept(out, ended, said)


def rollouts(folder: Path) -> list[int]:
    """Environment steps at the beginnings of all rollouts, whichever process began them."""
    return [int(line.split()[0]) for line in rollouts_of(folder).read_text().splitlines()]


def test_no_trial_is_lost(swept: Swept) -> None:
    rows = read_table(swept.out)
    assert [(row.setting, row.seed) for row in rows] == [(i, seed) for i in range(4) for seed in (0, 1)]
    for row in rows:
        assert (row.environment, row.status, row.steps, row.message) == (ENV, "finished", N_STEPS, "")
        model, venv = load_run(swept.out / row.folder, which="last", device="cpu")
        venv.close()
        assert model.num_timesteps == N_STEPS
    assert {path.name for path in (swept.out / "trials").iterdir()} == {Path(row.folder).name for row in rows}


def test_no_trial_is_trained_twice(swept: Swept) -> None:
    once = list(range(0, N_STEPS, ROLLOUT))
    for folder in (swept.out / "trials").iterdir():
        began, log = rollouts(folder), folder / "resumed.log"
        times = len(log.read_text().splitlines()) if log.exists() else 0
        assert sorted(set(began)) == once
        # The rollout in which a process died begins again, and no other.
        assert len(began) <= len(once) + times and (times or began == once)
    assert {name: ended for name, ended in endings(swept.out).items() if name in swept.ended_before} == (
        swept.ended_before
    )


@pytest.mark.parametrize("name", [KILLED, WAITING])
def test_a_killed_trial_goes_on_from_its_checkpoint_in_another_process(name: str, swept: Swept) -> None:
    (folder,) = swept.out.glob(f"trials/*{name}")
    assert (folder / "resumed.log").read_text() == f"At step {STEP} the training goes on where it was.\n"
    assert rollouts(folder) == sorted([*range(0, N_STEPS, ROLLOUT), STEP])
    pids = [line.split()[1] for line in rollouts_of(folder).read_text().splitlines()]
    at = rollouts(folder).index(STEP)
    assert len(set(pids[: at + 1])) == len(set(pids[at + 1 :])) == 1 and pids[at] != pids[at + 1]


def test_each_trial_has_its_settings_and_seeds_share_them(swept: Swept) -> None:
    rows: dict[int, list[Row]] = {}
    for row in read_table(swept.out):
        rows.setdefault(row.setting, []).append(row)
        config, values = read_config(swept.out / row.folder), json.loads(row.settings)
        assert config.seed == row.seed
        assert config.hyperparams["learning_rate"] == values["learning_rate"]
        assert config.hyperparams["normalize"] == values["normalize"]
        assert config.hyperparams["policy_kwargs"]["wiring"]["units"] == values["policy_kwargs.wiring.units"]
    assert all(a.settings == b.settings for a, b in rows.values())
    assert len({a.settings for a, _ in rows.values()}) == 4


def test_the_driver_says_how_trials_ended_and_what_is_best(swept: Swept) -> None:
    rows = read_table(swept.out)
    means = {row.setting: sum(r.best_return for r in rows if r.setting == row.setting) / 2 for row in rows}
    best = max(means, key=means.__getitem__)
    assert f"{ENV}: best return {means[best]:.1f} with setting {best}: learning_rate lin_" in swept.said
    assert swept.said.count(f"finished {ENV}, setting") == 8 - len(swept.ended_before)
    assert "experiment" not in swept.said and "Warning" not in swept.said


def test_the_best_settings_train(swept: Swept, tmp_path: Path) -> None:
    found = read_hyperparams(swept.out / "best.yml", ENV)
    rows = read_table(swept.out)
    best = max(rows, key=lambda row: sum(r.best_return for r in rows if r.setting == row.setting))
    assert found == read_config(swept.out / best.folder).hyperparams
    train(RunConfig(ENV, found).with_n_timesteps(64), tmp_path / "run", progress_bar=False, n_eval_episodes=1)


def test_plots_are_drawn(swept: Swept) -> None:
    for name in ("curves", "settings"):
        assert (swept.out / f"{name}_{ENV}.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_sweep_has_nothing_to_go_on_with(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--out", str(swept.out), "--resume"]) == 0
    assert "best settings:" in capsys.readouterr().out
    assert main(["sweep", "--out", str(swept.out), "--resume", "--seeds", "3", "4"]) == 2
    assert "leave out --seeds" in capsys.readouterr().err
    assert main(["sweep", "--out", str(swept.out), "--envs", ENV]) == 2
    assert "exists and is left as it is" in capsys.readouterr().err


def test_what_cannot_be_swept_is_told_before_ray_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["sweep", "--out", str(tmp_path / "out"), *arguments]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    space = tmp_path / "space.yml"
    assert "No environment is named; give --envs" in refused()
    assert "holds no sweep" in refused("--resume")
    space.write_text("NCPPolicy: {gama: {uniform: [0.9, 0.99]}}")
    assert "takes no argument 'gama'" in refused(str(space), "--envs", ENV)
    space.write_text("NCPPolicy: {gamma: [0.9, 0.99]}")
    assert "gamma of a search space must be one of {uniform: [low, high]}" in refused(str(space), "--envs", ENV)
    assert "has no search space for MlpPolicy" in refused(str(space), "--envs", ENV, "--policy", "MlpPolicy")
    assert "Nowhere-v0" in refused("--envs", "Nowhere-v0")
    assert "seeds must be different" in refused("--envs", ENV, "--seeds", "1", "1")
    assert "n_settings must be at least 1, got 0" in refused("--envs", ENV, "--settings", "0")
    assert "max_concurrent must be at least 1, got 0" in refused("--envs", ENV, "--max-concurrent", "0")
