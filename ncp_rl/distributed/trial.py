"""A trial: one setting on one environment with one seed, trained into a run folder of its own, by whatever process.

The folder is the truth. A trial whose folder holds a record, trial.json, has ended; one whose folder holds a checkpoint
goes on from there; any other begins. So whoever is asked to train a trial for a second time, after a worker or the
driver died, does no work twice, but for the steps since the checkpoint.
"""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from ray import tune

from ncp_rl.distributed.space import dimensions, with_values
from ncp_rl.errors import NCPError
from ncp_rl.runs import Evaluation, RunConfig, resume, train
from ncp_rl.runs.checkpoint import CHECKPOINT, read_checkpoint
from ncp_rl.runs.folder import FolderInUseError, training_lock, write_file

#: What trials report to Tune: environment steps, the mean return of the best evaluation so far, and of the last one.
STEPS, BEST, LAST = "steps", "best_return", "last_return"

#: Seconds within which a process whose driver is dead has left its folder.
_PATIENCE = 120

Status = Literal["finished", "stopped", "failed"]


class SweepError(NCPError):
    """A sweep cannot be run as asked for; the message says what was expected, what came, and what to do."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep tries: kept as sweep.json in its folder."""

    base: dict[str, dict[str, Any]]
    """Hyperparameters in rl-zoo's form by environment, in which the values of a setting are put."""
    spaces: dict[str, dict[str, Any]]
    """What is varied, by environment; see `ncp_rl.distributed.space`."""
    n_settings: int
    """Settings of each environment."""
    seeds: tuple[int, ...] = (0,)
    """Seeds that each setting is trained with; the search goes by the mean over them."""
    n_evaluations: int = 10
    """Periodic evaluations of a training, which the search sees."""
    n_eval_episodes: int = 20
    """Episodes of each."""
    n_checkpoints: int = 20
    """How often a training keeps all from which it goes on."""
    max_episode_steps: int | None = None
    """Steps after which evaluations cut an episode, as in `RunConfig`."""
    halving: bool = True
    """Whether trials whose return lies behind are stopped early (ASHA)."""
    grace: int = 2
    """Evaluations before a trial may be stopped; it is looked at again after twice as many, and so on."""
    search_seed: int = 0
    """Seed of the search."""
    modules: tuple[str, ...] = ()
    """Modules that workers import first, such as those that register environments."""

    def __post_init__(self) -> None:
        """Check the numbers, and take lists, as JSON has them, for tuples.

        Raises:
            SweepError: A number is out of range, or seeds repeat.
            ncp_rl.distributed.SpaceError: A search space has another form.
        """
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "modules", tuple(self.modules))
        for name in ("n_settings", "n_evaluations", "n_eval_episodes", "n_checkpoints", "grace"):
            if getattr(self, name) < 1:
                raise SweepError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SweepError(f"seeds must be different whole numbers, at least one, got {list(self.seeds)}.")
        if not self.base or self.base.keys() != self.spaces.keys():
            raise SweepError(
                f"base and spaces must name the same environments, at least one, got {list(self.base)} and "
                f"{list(self.spaces)}."
            )
        for space in self.spaces.values():
            dimensions(space)

    def config(self, trial: Trial) -> RunConfig:
        """What a trial trains."""
        settings = with_values(self.base[trial.env], trial.values)
        return RunConfig(trial.env, settings, seed=trial.seed, max_episode_steps=self.max_episode_steps)

    @property
    def n_trials(self) -> int:
        """Trials in all."""
        return len(self.base) * self.n_settings * len(self.seeds)


def read_sweep(out: Path) -> Sweep:
    """The sweep of a folder.

    Raises:
        SweepError: The folder holds none, or a damaged one.
    """
    path = out / "sweep.json"
    try:
        return Sweep(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise SweepError(f"{out} holds no sweep: it has no sweep.json. Name the folder of one, or begin it.") from error
    except (OSError, TypeError, ValueError) as error:
        raise SweepError(f"{path} is damaged: {error}") from error


def write_sweep(sweep: Sweep, out: Path) -> None:
    """Keep what a sweep tries."""
    try:
        text = json.dumps(asdict(sweep), indent=2) + "\n"
    except TypeError as error:
        raise SweepError(f"Settings of the sweep cannot be kept in sweep.json: {error}") from error
    write_file(out / "sweep.json", text.encode())


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    env: str
    setting: int
    """Number of the setting, counted in each environment from 0."""
    seed: int
    values: dict[str, Any] = field(hash=False)
    """Values of the setting, by dotted name, as they stand in the hyperparameters."""

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.env.replace('/', '_').replace(':', '_')}__{self.setting:03d}__{self.seed}"

    def folder(self, out: Path) -> Path:
        """Its run folder in that of the sweep."""
        return out / "trials" / self.name

    def given(self, out: Path) -> dict[str, Any]:
        """The configuration with which Tune trains it."""
        return asdict(self) | dict(out=str(out))

    @staticmethod
    def of(given: Mapping[str, Any]) -> Trial:
        """The trial of Tune's configuration."""
        return Trial(**{name: given[name] for name in ("env", "setting", "seed", "values")})

    def __str__(self) -> str:
        """For people."""
        return f"{self.env}, setting {self.setting}, seed {self.seed}"


class Record(NamedTuple):
    """How a trial ended."""

    status: Status
    message: str = ""


def read_record(folder: Path) -> Record | None:
    """How the trial of a folder ended; None where it has not.

    Raises:
        SweepError: The record is damaged.
    """
    path = folder / "trial.json"
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise SweepError(f"{path} is damaged: {error}. Remove the folder; --resume then trains it anew.") from error


def write_record(folder: Path, record: Record) -> None:
    """Keep how a trial ended."""
    write_file(folder / "trial.json", (json.dumps(record._asdict()) + "\n").encode())


class Curve(NamedTuple):
    """The periodic evaluations of a run folder."""

    steps: list[int]
    returns: list[float]
    """Mean over the episodes of each."""


def read_curve(folder: Path) -> Curve:
    """The evaluations so far; none where there is no file yet."""
    path = folder / "evaluations.npz"
    if not path.exists():
        return Curve([], [])
    with np.load(path) as evaluations:
        return Curve(evaluations["timesteps"].tolist(), evaluations["results"].mean(1).tolist())


def train_trial(given: Mapping[str, Any]) -> None:
    """Train a trial to its end, from the beginning or from its checkpoint, and report each evaluation to Tune.

    Args:
        given: See `Trial.given`.
    """
    torch.set_num_threads(1)
    out, trial = Path(given["out"]), Trial.of(given)
    sweep = read_sweep(out)
    for module in sweep.modules:
        importlib.import_module(module)
    folder, reporter = trial.folder(out), _Reporter()
    _wait_until_free(folder)
    if (folder / CHECKPOINT).exists():
        for steps, mean_return in zip(*read_curve(folder), strict=True):
            reporter.report(steps, mean_return)
    if read_record(folder) is None:
        write_record(folder, trained(sweep, trial, folder, reporter))
    reporter.end()


def trained(sweep: Sweep, trial: Trial, folder: Path, on_evaluation: Callable[[int, Evaluation], object]) -> Record:
    """Train what is left of a trial, if anything is.

    Args:
        sweep: What is tried.
        trial: Which of it.
        folder: The trial's run folder, new or left by a process that died.
        on_evaluation: As for `ncp_rl.runs.train`.

    Returns:
        How it ended.

    Raises:
        OSError: The machine fails, such as by a full disk.
    """
    how: dict[str, Any] = dict(device="cpu", progress_bar=False, on_evaluation=on_evaluation)
    try:
        if _is_finished(sweep, trial, folder):
            return Record("finished")
        if (folder / CHECKPOINT).exists():
            resume(folder, **how)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # Its process died before the first step.
            numbers = {name: getattr(sweep, name) for name in ("n_evaluations", "n_eval_episodes", "n_checkpoints")}
            train(sweep.config(trial), folder, **how, **numbers)
    except OSError:  # Of the machine, not of the settings: Tune tries the trial again.
        raise
    except Exception as error:  # Settings may fail in any way, such as by numbers that overflow, and fail again.
        return Record("failed", f"{type(error).__name__}: {error}")
    return Record("finished")


def _is_finished(sweep: Sweep, trial: Trial, folder: Path) -> bool:
    """Whether the training of a process that died before it could keep the record had ended."""
    if not (folder / CHECKPOINT).exists() or not (folder / "last" / "model.zip").exists():
        return False
    steps: int = read_checkpoint(folder)["steps"]
    return steps >= sweep.config(trial).n_timesteps


def _wait_until_free(folder: Path) -> None:
    """Wait until a process whose driver is dead has left the folder.

    Raises:
        FolderInUseError: It has not, after two minutes.
    """
    began = time.monotonic()
    while folder.exists():
        try:
            with training_lock(folder):
                return
        except FolderInUseError:
            if time.monotonic() - began > _PATIENCE:
                raise
            time.sleep(0.5)


class _Reporter:
    """Tells Tune of evaluations, each once."""

    def __init__(self) -> None:
        self.last = {STEPS: 0, BEST: -np.inf, LAST: -np.inf}

    def __call__(self, steps: int, evaluation: Evaluation) -> None:
        self.report(steps, evaluation.summary()["mean_return"])

    def report(self, steps: int, mean_return: float) -> None:
        if steps <= self.last[STEPS]:  # Told already by the process before.
            return
        self.last = {STEPS: steps, BEST: max(self.last[BEST], mean_return), LAST: mean_return}
        tune.report(dict(self.last))

    def end(self) -> None:
        """Tune asks for at least one report, which a training that failed at once has not made."""
        if self.last[STEPS] == 0:
            tune.report(dict(self.last))
