"""Which settings are tried: a study of Optuna for each environment, kept on disk with every setting it hands out.

The journal studies.log is written before a trial begins, and the run folders say how trials ended. From both together
a sweep that was interrupted at any moment is continued, so that Tune's own snapshots, which lag behind by seconds, are
not needed: a setting that was handed out since the last snapshot would be lost to them. `optuna-dashboard studies.log`
shows the journal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from ncp_rl.distributed.space import dimensions, values_in
from ncp_rl.distributed.trial import BEST, Sweep, Trial, read_curve, read_record

JOURNAL = "studies.log"


class Search(Searcher):
    """Hands out environments x settings x seeds as trials, and tells Optuna the mean over the seeds of each setting.

    The return of a trial is that of its best periodic evaluation: its model is what the run folder keeps as `best/`,
    and, since it never falls, a trial that was stopped early is never judged better than if it had gone on.
    """

    def __init__(self, sweep: Sweep, out: Path) -> None:
        """Begin the search, or go on with that of the folder.

        Args:
            sweep: What is tried.
            out: Its folder, in which the studies are kept. Trials that have not ended are handed out again, first.
        """
        super().__init__(metric=BEST, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._out = sweep, out
        self._dimensions = {env: dimensions(space) for env, space in sweep.spaces.items()}
        _heal(out / JOURNAL)
        storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
        self._studies = {env: _study(storage, env, sweep.search_seed) for env in sweep.base}
        self._running: dict[str, Trial] = {}
        self._waiting: deque[Trial] = deque()
        for trial in self.all_trials():
            if read_record(trial.folder(out)) is None:
                self._waiting.append(trial)
            else:
                self._tell_if_complete(trial)

    @property
    def n_left(self) -> int:
        """Trials that have not ended, those of settings still to be chosen among them."""
        to_ask = sum(max(self._sweep.n_settings - self._n_settings(env), 0) for env in self._studies)
        return to_ask * len(self._sweep.seeds) + len(self._waiting) + len(self._running)

    def all_trials(self) -> list[Trial]:
        """All trials that were handed out so far, ended or not, by environment, setting and seed."""
        return [trial for study in self._studies.values() for trial in trials(self._sweep, study)]

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """All is known here already."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial; see upstream."""
        if not self._waiting:
            self._ask()
        if not self._waiting:
            return Searcher.FINISHED
        trial = self._running[trial_id] = self._waiting.popleft()
        return trial.given(self._out)

    def _ask(self) -> None:
        """Let the trials of a new setting wait, of the environment that has the fewest, unless all have theirs."""
        env = min(self._studies, key=self._n_settings)
        n_settings = self._n_settings(env)
        if n_settings >= self._sweep.n_settings:
            return
        if n_settings == 0:
            # Optuna begins with the settings that the sweep varies; what the space has besides is drawn.
            given = values_in(self._sweep.base[env], self._dimensions[env])
            self._studies[env].enqueue_trial(given, skip_if_exists=True)
        self._studies[env].ask({dimension.name: dimension.distribution() for dimension in self._dimensions[env]})
        self._waiting.extend(list(trials(self._sweep, self._studies[env]))[-len(self._sweep.seeds) :])

    def _n_settings(self, env: str) -> int:
        return len(settings(self._sweep, self._studies[env]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See upstream; a trial without a record, whose worker died too often, is left to a later --resume."""
        trial = self._running.pop(trial_id)
        if read_record(trial.folder(self._out)) is not None:
            self._tell_if_complete(trial)

    def _tell_if_complete(self, trial: Trial) -> None:
        """Tell Optuna of a setting all of whose seeds have ended."""
        study = self._studies[trial.env]
        if study.trials[trial.setting].state.is_finished():
            return
        score = setting_score(self._sweep, self._out, trial)
        if score is None:
            return
        if np.isfinite(score):
            study.tell(trial.setting, score)
        else:
            study.tell(trial.setting, state=TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Tune asks to save the search now and then; it is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


def setting_score(sweep: Sweep, out: Path, trial: Trial) -> float | None:
    """The mean over a setting's seeds of the best evaluation's return.

    Args:
        sweep: What is tried.
        out: Its folder.
        trial: Any trial of the setting.

    Returns:
        NaN where a trial of the setting failed, None where one has not ended.
    """
    scores = []
    for seed in sweep.seeds:
        folder = Trial(trial.env, trial.setting, seed, trial.values).folder(out)
        record, curve = read_record(folder), read_curve(folder)
        if record is None:
            return None
        scores.append(max(curve.returns) if record.status != "failed" and curve.returns else np.nan)
    return float(np.mean(scores))


def settings(sweep: Sweep, study: optuna.Study) -> list[FrozenTrial]:
    """The settings of a study, without one whose values a killed process has not written to the end."""
    names = sweep.spaces[study.study_name].keys()
    return [found for found in study.get_trials(deepcopy=False) if names <= found.params.keys()]


def trials(sweep: Sweep, study: optuna.Study) -> Iterator[Trial]:
    """The trials of an environment's settings."""
    space = dimensions(sweep.spaces[study.study_name])
    for found in settings(sweep, study):
        values = {dimension.name: dimension.setting(found.params[dimension.name]) for dimension in space}
        for seed in sweep.seeds:
            yield Trial(study.study_name, found.number, seed, values)


def _study(storage: JournalStorage, env: str, seed: int) -> optuna.Study:
    study = optuna.create_study(storage=storage, study_name=env, direction="maximize", load_if_exists=True)
    # A search that goes on must not draw again what it has drawn.
    stream = np.random.SeedSequence([seed, len(study.trials), *env.encode()])
    study.sampler = TPESampler(seed=int(stream.generate_state(1)[0]))
    return study


def _heal(journal: Path) -> None:
    """Cut off a line that a killed process has not written to its end, or Optuna would refuse all that follows it."""
    if journal.exists() and not (written := journal.read_bytes()).endswith(b"\n"):
        journal.write_bytes(written[: written.rfind(b"\n") + 1])
