"""A killed training goes on: as if it had never been cut, or else it says what begins anew."""

from __future__ import annotations

import csv
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ncp_rl.cli import train as train_script
from ncp_rl.runs import CHECKPOINT, RunError, load_run, resume, train
from ncp_rl.runs.checkpoint import read_checkpoint
from ncp_rl.runs.folder import training_lock, write_file
from tests.runs.killed_training import CASES, HOW, Counting

ROOT = Path(__file__).parents[2]
#: Columns that depend on the clock.
TIMES = {"time/fps", "time/time_elapsed", "time/training_s", "time/training_cpu_s"}
KILLED_FOR_GOOD = ("Box2D", "forgetful")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of run folders whose trainings were killed."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = [sys.executable, "-m", "tests.runs.killed_training", str(folder), *CASES]
    subprocess.run(arguments, cwd=ROOT, check=True, timeout=300)
    return folder


@pytest.fixture
def between(killed: Path, tmp_path: Path) -> Path:
    """A copy of the one that was killed between two checkpoints."""
    shutil.copytree(killed / "between two", tmp_path / "run")
    return tmp_path / "run"


def lines(folder: Path) -> list[dict[str, str]]:
    """Those of progress.csv, but for times."""
    with (folder / "progress.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert all(None not in line and None not in line.values() for line in found)
    return [{name: line[name] for name in sorted(line) if name not in TIMES} for line in found]


def learned_at(folder: Path) -> list[int]:
    """The steps of the lines that tell of an update."""
    return [int(line["time/total_timesteps"]) for line in lines(folder) if line["train/loss"]]


def assert_equal(a: Any, b: Any) -> None:
    """Equal bit for bit, whatever is nested in what."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        np.testing.assert_array_equal(a, b)


def assert_same_end(whole: OnPolicyAlgorithm, resumed: OnPolicyAlgorithm) -> None:
    assert whole.num_timesteps == resumed.num_timesteps
    assert_equal(whole.policy.state_dict(), resumed.policy.state_dict())
    assert_equal(whole.policy.optimizer.state_dict(), resumed.policy.optimizer.state_dict())
    normalize, other = whole.get_vec_normalize_env(), resumed.get_vec_normalize_env()
    if isinstance(normalize, VecNormalize) and isinstance(other, VecNormalize):
        for name in ("obs_rms", "ret_rms"):
            assert_equal(vars(vars(normalize)[name]), vars(vars(other)[name]))
        assert_equal(normalize.returns, other.returns)


def assert_same_folder(whole: Path, resumed: Path) -> None:
    assert lines(whole) == lines(resumed)
    with np.load(whole / "evaluations.npz") as a, np.load(resumed / "evaluations.npz") as b:
        assert_equal({name: a[name] for name in a}, {name: b[name] for name in b})
    models = ("best/model.zip", "last/model.zip")
    for name in models:
        which: Any = name.partition("/")[0]
        ours, theirs = (load_run(folder, which=which, device="cpu")[0] for folder in (whole, resumed))
        assert_equal(ours.policy.state_dict(), theirs.policy.state_dict())
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "events" not in path.name}
        for folder in (whole, resumed)
    ]
    assert names[0] | {"resumed.log"} == names[1]


@pytest.mark.parametrize("name", [name for name in CASES if name not in KILLED_FOR_GOOD])
def test_it_ends_as_if_it_had_never_been_cut(name: str, killed: Path, tmp_path: Path) -> None:
    case, folder = CASES[name], tmp_path / "run"
    shutil.copytree(killed / name, folder)
    assert not (folder / "last").exists()
    began = read_checkpoint(folder)["steps"]
    assert case.step - 64 <= began < case.step
    whole = train(case.config(), tmp_path / "whole", **HOW)
    resumed = resume(folder, progress_bar=False)
    assert_same_end(whole, resumed)
    assert_same_folder(tmp_path / "whole", folder)
    assert "goes on where it was" in (folder / "resumed.log").read_text()
    # TensorBoard shows each step once, though two processes wrote of some.
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == learned_at(folder)


@pytest.mark.parametrize(
    ("name", "why"),
    [("Box2D", "cannot be pickled: TypeError"), ("forgetful", "copy of them takes the next step differently")],
)
def test_environments_that_cannot_go_on_begin_anew_and_it_says_so(
    name: str, why: str, killed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = killed / name
    checkpoint = read_checkpoint(folder)
    model = resume(folder, progress_bar=False)
    assert "episodes begin anew" in caplog.text and why in caplog.text
    assert why in (folder / "resumed.log").read_text()
    assert model.num_timesteps == 512
    assert learned_at(folder) == list(range(64, 513, 32))
    normalize = model.get_vec_normalize_env()
    assert normalize is not None
    # Statistics go on: each step since the checkpoint has added two rewards.
    added = normalize.ret_rms.count - checkpoint["normalize"]["ret_rms"].count
    assert added == 512 - checkpoint["steps"]


def test_killed_at_random_moments_it_loses_an_interval_at_most(tmp_path: Path) -> None:
    """From outside, by SIGKILL; the folder is whole each time, and the end is that of a training never cut."""
    kill_and_compare(tmp_path, n_kills=3, rng=random.Random(0))


GO_ON = """
import sys
from pathlib import Path
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from ncp_rl.runs import resume, train
from tests.runs.killed_training import CASES, HOW

folder, steps = Path(sys.argv[1]), Path(sys.argv[1] + ".steps")

class Tell(BaseCallback):
    def _on_step(self):
        steps.write_text(str(self.num_timesteps))
        return True

torch.set_num_threads(1)
steps.write_text("0")
if folder.exists():
    resume(folder, progress_bar=False, callback=Tell())
else:
    train(CASES["between two"].config().with_n_timesteps(int(sys.argv[2])), folder, callback=Tell(), **HOW)
"""


def kill_and_compare(folder: Path, *, n_kills: int, rng: random.Random) -> None:
    """Start, wait, kill, look at the folder; again and again; then let it end."""
    config, run = CASES["between two"].config().with_n_timesteps(1024 * n_kills), folder / "run"
    command = [sys.executable, "-c", GO_ON, str(run), str(config.n_timesteps)]
    for kill in range(n_kills):
        moment = 1024 * kill + rng.randrange(1, 900)
        steps = 0
        with subprocess.Popen(command, cwd=ROOT) as process:
            while steps < moment and process.poll() is None:
                time.sleep(0.001)
                written = Path(f"{run}.steps").read_text() if Path(f"{run}.steps").exists() else ""
                steps = int(written or steps)
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        look_at(run, steps, config.n_timesteps // HOW["n_checkpoints"])
    resumed = resume(run, progress_bar=False)
    assert len((run / "resumed.log").read_text().splitlines()) == n_kills
    assert_same_end(train(config, folder / "whole", **HOW), resumed)
    assert_same_folder(folder / "whole", run)


def look_at(run: Path, steps: int, interval: int) -> None:
    """What a kill after so many steps has left is whole, and is no older than an interval and a rollout."""
    assert read_checkpoint(run)["steps"] > steps - interval - 2 * 16
    assert lines(run) or steps <= 2 * 16
    for path in run.rglob("*.zip"):
        assert zipfile.ZipFile(path).testzip() is None
    if (run / "evaluations.npz").exists():
        assert len(np.load(run / "evaluations.npz")["results"])
        load_run(run, device="cpu")


def test_a_finished_training_goes_on_with_more_steps(between: Path) -> None:
    model = resume(between, progress_bar=False)
    with pytest.raises(RunError, match=r"has taken 512 steps of 512 and is finished.*--timesteps 1024"):
        resume(between, progress_bar=False)
    with pytest.raises(RunError, match="has taken 512 steps of 100 and is finished"):
        resume(between, n_timesteps=100, progress_bar=False)
    n_updates = model._n_updates
    model = resume(between, n_timesteps=640, progress_bar=False)
    assert model.num_timesteps == 640 and model._n_updates == n_updates * 640 // 512
    assert json.loads((between / "config.json").read_text())["hyperparams"]["n_timesteps"] == 640
    assert learned_at(between) == list(range(64, 641, 32))


def test_killed_between_the_end_and_the_last_model_it_saves_the_model(between: Path) -> None:
    model = resume(between, progress_bar=False)
    shutil.rmtree(between / "last")
    assert_same_end(model, resume(between, progress_bar=False))
    assert (between / "last" / "model.zip").exists()


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 300:
                raise KeyboardInterrupt
            return True

    case = CASES["between two"]
    with pytest.raises(RunError, match=r"interrupted; the model so far is in .* goes on from step 256"):
        train(case.config(), tmp_path / "run", callback=Interrupt(), **HOW)
    resumed = resume(tmp_path / "run", progress_bar=False)
    assert_same_end(train(case.config(), tmp_path / "whole", **HOW), resumed)


def test_without_a_checkpoint_there_is_an_error(between: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        resume(tmp_path, progress_bar=False)
    (between / CHECKPOINT).unlink()
    with pytest.raises(RunError, match=r"must hold the checkpoint checkpoints/resume\.pt to be resumed"):
        resume(between, progress_bar=False)


@pytest.mark.parametrize("damage", [b"", b"\x00garbage" * 99, None])
def test_a_damaged_checkpoint_is_named(damage: bytes | None, between: Path) -> None:
    whole = (between / CHECKPOINT).read_bytes()
    (between / CHECKPOINT).write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(RunError, match=r"resume\.pt is damaged or not a checkpoint"):
        resume(between, progress_bar=False)


def test_other_settings_are_named(between: Path) -> None:
    config = json.loads((between / "config.json").read_text())
    config["hyperparams"]["n_steps"] = 8
    (between / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"hyperparams\.n_steps is 8 here and 16 there\. A resumed"):
        resume(between, progress_bar=False)


def test_other_versions_are_told(between: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = torch.load(between / CHECKPOINT, weights_only=False)
    checkpoint["versions"]["torch"] = "1.0"
    torch.save(checkpoint, between / CHECKPOINT)
    resume(between, progress_bar=False)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"Versions differ, so that numbers may too: torch 1.0 -> {version('torch')}." in caplog.text


def test_two_processes_do_not_train_in_one_folder(between: Path) -> None:
    with training_lock(between), pytest.raises(RunError, match="Another process is training in"):
        resume(between, progress_bar=False)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_the_script_goes_on_and_refuses_other_settings(between: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet: dict[str, Any] = dict(resume=between, progress_bar=False, final_episodes=2, device="cpu")
    assert train_script.main(train_script.Args(**quiet, units=12)) == 2
    message = capsys.readouterr().err
    assert "leave out --units: " in message and "hyperparams.policy_kwargs.wiring.units is 12 here and 8" in message
    assert train_script.main(train_script.Args(**quiet, eval_episodes=3)) == 2
    assert "leave out --eval-episodes." in capsys.readouterr().err
    assert train_script.main(train_script.Args(**quiet)) == 0
    assert f"run folder: {between}" in capsys.readouterr().out
    assert train_script.main(train_script.Args(**quiet)) == 2
    assert "is finished" in capsys.readouterr().err


class Inner(Counting):
    """A user's callback within another one."""


def test_callbacks_within_callbacks_go_on(tmp_path: Path) -> None:
    case, inner = CASES["no memory"], [Inner(), Inner()]

    class Killed(BaseException):
        pass

    class Kill(BaseCallback):
        def _on_step(self) -> bool:
            raise Killed

    def within(callback: BaseCallback, *, kill: bool = False) -> CallbackList:
        last = [EveryNTimesteps(300, Kill())] if kill else []
        return CallbackList([EveryNTimesteps(100, callback), CallbackList([callback]), *last])

    train(case.config(), tmp_path / "whole", callback=within(inner[0]), **HOW)
    with pytest.raises(Killed):
        train(case.config(), tmp_path / "run", callback=within(Inner(), kill=True), **HOW)
    assert (tmp_path / "run" / CHECKPOINT).stat().st_size < 500_000
    resume(tmp_path / "run", progress_bar=False, callback=within(inner[1]))
    assert inner[0].n_calls == inner[1].n_calls > 256
    assert (inner[0].episodes, inner[0].drawn) == (inner[1].episodes, inner[1].drawn)


def test_counts_are_from_one_on(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="n_checkpoints must be at least 1, got 0"):
        train(CASES["no memory"].config(), tmp_path / "run", n_checkpoints=0, progress_bar=False)
    assert not (tmp_path / "run").exists()
