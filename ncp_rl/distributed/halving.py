"""Stops trials whose return lies behind: successive halving (ASHA) within each environment.

L. Li et al.: A System for Massively Parallel Hyperparameter Tuning, MLSys 2020. Returns of different environments say
nothing of each other, so that each has rungs of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from ncp_rl.distributed.trial import BEST, STEPS, Record, Sweep, Trial, read_curve, read_record, write_record

#: One in so many of the trials that reach a rung goes on, and rungs lie so many times as far apart.
REDUCTION = 2


class HalvingByEnvironment(FIFOScheduler):
    """Asks the scheduler of a trial's environment, and keeps a record where it stops the trial."""

    def __init__(self, sweep: Sweep, out: Path, ended: Iterable[Trial] = ()) -> None:
        """Begin rungs.

        Args:
            sweep: What is tried.
            out: Its folder.
            ended: Trials of an interrupted sweep that have ended; their evaluations are in the rungs again.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric, self._out = BEST, out
        self._by_env = {env: _asha(sweep, env) for env in sweep.base}
        for trial in ended:
            self._recall(trial)

    def _recall(self, trial: Trial) -> None:
        controller: Any = None
        stand_in: Any = SimpleNamespace(trial_id=trial.name, config=trial.given(self._out))
        curve = read_curve(trial.folder(self._out))
        self.on_trial_add(controller, stand_in)
        best = -float("inf")
        for steps, mean_return in zip(*curve, strict=True):
            best = max(best, mean_return)
            self._by_env[trial.env].on_trial_result(controller, stand_in, {STEPS: steps, BEST: best})

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Both are known here already."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """See upstream."""
        self._by_env[trial.config["env"]].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See upstream; a trial is recorded as stopped before it is."""
        decision: str = self._by_env[trial.config["env"]].on_trial_result(tune_controller, trial, result)
        if decision != TrialScheduler.STOP:
            return decision
        folder = Trial.of(trial.config).folder(self._out)
        if read_record(folder) is None:
            write_record(folder, Record("stopped"))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """See upstream."""
        self._by_env[trial.config["env"]].on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """See upstream."""
        self._by_env[trial.config["env"]].on_trial_remove(tune_controller, trial)


def _asha(sweep: Sweep, env: str) -> FIFOScheduler:
    """The scheduler of an environment: rungs are evaluations, without the last one, after which nothing is left."""
    n_timesteps, n_envs = (int(sweep.base[env].get(name) or 1) for name in ("n_timesteps", "n_envs"))
    interval = max(n_timesteps // sweep.n_evaluations // n_envs, 1) * n_envs  # As `ncp_rl.runs.train` has it.
    if not sweep.halving or sweep.grace >= sweep.n_evaluations:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=STEPS,
        metric=BEST,
        mode="max",
        grace_period=sweep.grace * interval,
        max_t=(sweep.n_evaluations - 1) * interval,
        reduction_factor=REDUCTION,
        stop_last_trials=False,
    )
