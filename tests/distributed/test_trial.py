"""A trial in its folder: it begins, goes on, or is left as it is, and says how it ended."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ncp_rl.distributed import Sweep, SweepError, Trial
from ncp_rl.distributed.trial import Record, read_curve, trained
from ncp_rl.runs import Evaluation, RunError, resume, train
from ncp_rl.runs.checkpoint import CHECKPOINT, read_checkpoint

ENV = "CartPole-v1"
SWEEP = Sweep(
    base={ENV: dict(n_timesteps=128, n_envs=2, n_steps=16, batch_size=32, n_epochs=1, policy="MlpPolicy")},
    spaces={ENV: dict(gamma=dict(uniform=[0.8, 0.9]))},
    n_settings=1,
    n_evaluations=2,
    n_eval_episodes=3,
)
TRIAL = Trial(ENV, 0, 5, {"gamma": 0.85})


class Told(list[tuple[int, Evaluation]]):
    """Evaluations that were told."""

    def __call__(self, steps: int, evaluation: Evaluation) -> None:
        self.append((steps, evaluation))

    def steps(self) -> list[int]:
        return [steps for steps, _ in self]


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_evaluations_are_told_as_they_are_written(tmp_path: Path) -> None:
    told = Told()
    assert trained(SWEEP, TRIAL, tmp_path / "run", told) == Record("finished")
    curve = read_curve(tmp_path / "run")
    assert told.steps() == curve.steps == [64, 128]
    assert [evaluation.summary()["mean_return"] for _, evaluation in told] == pytest.approx(curve.returns)
    assert all(len(evaluation.returns) == len(evaluation.lengths) == 3 for _, evaluation in told)


def test_a_training_that_had_ended_is_left_as_it_is(tmp_path: Path) -> None:
    trained(SWEEP, TRIAL, tmp_path / "run", Told())
    before, told = modified(tmp_path / "run"), Told()
    assert trained(SWEEP, TRIAL, tmp_path / "run", told) == Record("finished")
    assert not told and modified(tmp_path / "run") == before


def test_a_training_that_was_cut_off_goes_on_and_tells_the_rest(tmp_path: Path) -> None:
    class CutError(BaseException):
        pass

    def cut(steps: int, evaluation: Evaluation) -> None:
        raise CutError

    with pytest.raises(CutError):
        train(SWEEP.config(TRIAL), tmp_path / "run", n_evaluations=2, progress_bar=False, on_evaluation=cut)
    assert 0 < read_checkpoint(tmp_path / "run")["steps"] <= 64
    told = Told()
    assert trained(SWEEP, TRIAL, tmp_path / "run", told) == Record("finished")
    assert told.steps()[-1] == 128 and (tmp_path / "run" / "resumed.log").exists()
    with pytest.raises(RunError, match="is finished"):
        resume(tmp_path / "run", progress_bar=False)


def test_a_folder_whose_process_died_before_the_first_step_begins_anew(tmp_path: Path) -> None:
    trained(SWEEP, TRIAL, tmp_path / "run", Told())
    (tmp_path / "run" / CHECKPOINT).unlink()
    told = Told()
    assert trained(SWEEP, TRIAL, tmp_path / "run", told) == Record("finished")
    assert told.steps() == [64, 128]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_settings_that_do_not_work_fail_with_the_reason(tmp_path: Path) -> None:
    record = trained(SWEEP, replace(TRIAL, values={"batch_size": 0}), tmp_path / "run", Told())
    assert record.status == "failed" and record.message.startswith("RunError: No policy can be made")
    record = trained(SWEEP, replace(TRIAL, values={"learning_rate": 1e30}), tmp_path / "other", Told())
    assert record.status == "failed" and "nan" in record.message.lower()


def test_a_full_disk_is_no_failure_of_the_settings(tmp_path: Path) -> None:
    def full(steps: int, evaluation: Evaluation) -> None:
        shutil.rmtree(tmp_path / "run")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        trained(SWEEP, TRIAL, tmp_path / "run", full)


def test_what_is_tried_is_checked() -> None:
    with pytest.raises(SweepError, match="n_evaluations must be at least 1, got 0"):
        replace(SWEEP, n_evaluations=0)
    with pytest.raises(SweepError, match="seeds must be different"):
        replace(SWEEP, seeds=())
    with pytest.raises(SweepError, match="same environments"):
        replace(SWEEP, spaces={})
