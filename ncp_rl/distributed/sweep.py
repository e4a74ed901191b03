"""Runs a sweep on Ray: on this machine, or on a cluster whose nodes all see the sweep's folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from tqdm import tqdm

from ncp_rl.distributed.cluster import ray_running
from ncp_rl.distributed.halving import HalvingByEnvironment
from ncp_rl.distributed.results import Best, row, write_results
from ncp_rl.distributed.search import Search
from ncp_rl.distributed.space import dimensions, with_values
from ncp_rl.distributed.trial import BEST, Sweep, SweepError, Trial, read_record, read_sweep, train_trial, write_sweep
from ncp_rl.runs import RunConfig, make_envs, make_model
from ncp_rl.runs.folder import training_lock


def run_sweep(
    sweep: Sweep | None,
    out: Path,
    *,
    n_settings: int | None = None,
    address: str | None = None,
    max_concurrent: int | None = None,
    max_failures: int = 3,
    progress_bar: bool = True,
) -> Best:
    """Try all settings of a sweep, or what is left of an interrupted one, and write its results.

    Args:
        sweep: What to try, into a new folder; None goes on with the sweep of a folder.
        out: The folder. On a cluster it must be a path that all nodes see, such as one on a network file system.
        n_settings: Settings of each environment, where they shall be others than those of the sweep that goes on.
        address: Address of a Ray cluster; None starts Ray on this machine for as long as the sweep lasts.
        max_concurrent: Trials at a time, each with one CPU and one thread; as many as there are CPUs where None.
        max_failures: How often a trial whose worker died is tried again, each time from its checkpoint.
        progress_bar: Show progress, and a line for each trial that has ended.

    Returns:
        The best setting of each environment that has one.

    Raises:
        SweepError: The folder exists, or holds no sweep; a number is out of range; or trials are left, since workers
            died too often or the sweep was interrupted.
        ncp_rl.distributed.ClusterError: The cluster cannot be reached.
        ncp_rl.distributed.SpaceError: A search space does not fit the settings of its environment.
        ncp_rl.runs.RunError: An environment or a model cannot be made; or another process sweeps in the folder.
    """
    for name, number in (("max_concurrent", max_concurrent), ("n_settings", n_settings)):
        if number is not None and number < 1:
            raise SweepError(f"{name} must be at least 1, got {number}.")
    out = out.resolve()
    if sweep is None:
        sweep = read_sweep(out)
        sweep = replace(sweep, n_settings=n_settings or sweep.n_settings)
    elif out.exists():
        raise SweepError(
            f"The folder {out} exists and is left as it is; name another one for this sweep, or go on with an "
            f"interrupted one: ncp-rl sweep --out {out} --resume."
        )
    else:
        for env in sweep.base:
            _check_settings(sweep, env)
        out.mkdir(parents=True)
    with training_lock(out):
        write_sweep(sweep, out)
        search = Search(sweep, out)
        if search.n_left:
            with ray_running(address, max_concurrent):
                _tune(sweep, out, search, max_concurrent, max_failures, progress_bar)
        best = write_results(sweep, out, search.all_trials())
    left = sweep.n_trials - sum(read_record(trial.folder(out)) is not None for trial in search.all_trials())
    if left > 0:
        raise SweepError(
            f"{left} of {sweep.n_trials} trials are left: the sweep was interrupted, or their workers died more than "
            f"{max_failures} times. ncp-rl sweep --out {out} --resume goes on with them; trials.csv has the others."
        )
    return best


def _check_settings(sweep: Sweep, env: str) -> None:
    """Make the environment and the model once, so that what cannot work is told before anything begins."""
    values = {dimension.name: dimension.setting(_first(dimension)) for dimension in dimensions(sweep.spaces[env])}
    config = RunConfig(env, with_values(sweep.base[env], values), max_episode_steps=sweep.max_episode_steps)
    venv = make_envs(config, 1)
    try:
        make_model(config, venv, "cpu")
    finally:
        venv.close()


def _first(dimension: Any) -> Any:
    distribution = dimension.distribution()
    return distribution.choices[0] if dimension.kind == "choice" else distribution.low


def _tune(
    sweep: Sweep, out: Path, search: Search, max_concurrent: int | None, max_failures: int, progress_bar: bool
) -> None:
    """Let Ray Tune run all trials that are left."""
    ended = [trial for trial in search.all_trials() if read_record(trial.folder(out)) is not None]
    with (
        _faults() as faults,
        tqdm(total=sweep.n_trials, initial=len(ended), unit="trial", disable=not progress_bar) as bar,
    ):
        tuner = tune.Tuner(
            tune.with_resources(train_trial, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric=BEST,
                mode="max",
                search_alg=search,
                scheduler=HalvingByEnvironment(sweep, out, ended),
                num_samples=search.n_left,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,  # Workers import PyTorch once.
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=f"from_{len(ended)}",
                storage_path=str(out / "tune"),
                callbacks=[_Tell(out, bar, faults)],
                failure_config=tune.FailureConfig(max_failures=max_failures),
                verbose=0,
            ),
        )
        tuner.fit()


def _name(trial: Any) -> str:
    return Trial.of(trial.config).name


class _Faults(logging.Filter):
    """Keeps the last line of each traceback that Tune logs of a worker, in place of showing all of it."""

    last = "its worker died"

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info is None or record.exc_info[1] is None:
            return True
        error = record.exc_info[1]
        self.last = _Faults.last
        if not isinstance(error, ray.exceptions.RayActorError):  # Of that, the message is about Ray.
            self.last += f" of {(str(error).strip() or type(error).__name__).splitlines()[-1]}"
        return False


@contextmanager
def _faults() -> Iterator[_Faults]:
    log, faults = logging.getLogger("ray.tune.execution.tune_controller"), _Faults()
    log.addFilter(faults)
    try:
        yield faults
    finally:
        log.removeFilter(faults)


class _Tell(tune.Callback):
    """Says in a line how each trial ended."""

    def __init__(self, out: Path, bar: Any, faults: _Faults) -> None:
        self._out, self._bar, self._faults = out, bar, faults

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ended = row(Trial.of(trial.config), self._out)
        found = f"best return {ended.best_return:.1f}" if np.isfinite(ended.best_return) else ended.message
        self._say(f"{ended.status} {Trial.of(trial.config)}: {found} ({ended.steps:,} steps, {ended.seconds:.0f} s)")
        self._bar.update()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"{Trial.of(trial.config)}: {self._faults.last}; it is tried again from its checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"{Trial.of(trial.config)}: {self._faults.last}, too often; it is left to --resume")

    def _say(self, line: str) -> None:
        if not self._bar.disable:
            self._bar.write(line)
