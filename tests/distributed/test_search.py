"""The search and the halving: what they hand out, learn and stop; and what they know after they were cut off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from ncp_rl.distributed import Sweep, SweepError, Trial, read_sweep
from ncp_rl.distributed.halving import HalvingByEnvironment
from ncp_rl.distributed.results import best_settings, row, write_results
from ncp_rl.distributed.search import JOURNAL, Search
from ncp_rl.distributed.trial import Record, read_record, write_record, write_sweep

SWEEP = Sweep(
    base={env: dict(n_timesteps=1000, n_envs=2) for env in ("A-v0", "B-v0")},
    spaces={env: dict(gamma=dict(uniform=[0.0, 1.0])) for env in ("A-v0", "B-v0")},
    n_settings=3,
    seeds=(4, 7),
)


def end(trial: Trial, out: Path, *returns: float, status: Any = "finished") -> None:
    """Leave what an ended trial leaves: evaluations with two episodes each."""
    folder = trial.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    if returns:
        results = np.array([[mean - 1, mean + 1] for mean in returns])
        np.savez(folder / "evaluations.npz", timesteps=100 * np.arange(1, len(returns) + 1), results=results)
    write_record(folder, Record(status, "it broke" if status == "failed" else ""))


def asked(search: Search, n: int) -> dict[str, Trial]:
    """The next trials, by the ids that Tune has for them."""
    return {(name := f"id{i}"): Trial.of(search.suggest(name)) for i in range(n)}


def study(out: Path, env: str) -> optuna.Study:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / JOURNAL)))
    return optuna.load_study(study_name=env, storage=storage)


def test_environments_settings_and_seeds_are_all_handed_out_once(tmp_path: Path) -> None:
    search = Search(SWEEP, tmp_path)
    assert search.n_left == SWEEP.n_trials == 12
    found = list(asked(search, 12).values())
    assert {(t.env, t.setting, t.seed) for t in found} == {
        (env, setting, seed) for env in SWEEP.base for setting in range(3) for seed in SWEEP.seeds
    }
    assert [t.env for t in found[:4]] == ["A-v0", "A-v0", "B-v0", "B-v0"]
    assert found[0].values == found[1].values != found[4].values
    assert search.suggest("one more") == Search.FINISHED


def test_the_first_setting_is_that_which_the_sweep_varies(tmp_path: Path) -> None:
    space = dict(gamma=dict(uniform=[0.0, 1.0]), n_epochs=dict(int=[4, 12]))
    search = Search(replace(SWEEP, base={"A-v0": dict(gamma=0.25)}, spaces={"A-v0": space}), tmp_path)
    found = list(asked(search, 6).values())
    assert [trial.values["gamma"] == 0.25 for trial in found] == [True, True, False, False, False, False]
    assert all(4 <= trial.values["n_epochs"] <= 12 for trial in found)


def test_optuna_is_told_the_mean_over_the_seeds_of_the_best_evaluations(tmp_path: Path) -> None:
    search = Search(SWEEP, tmp_path)
    first, second = asked(search, 2).items()
    end(first[1], tmp_path, 1, 5, 3)
    search.on_trial_complete(first[0])
    assert study(tmp_path, "A-v0").trials[0].state == TrialState.RUNNING
    end(second[1], tmp_path, 9, 2, status="stopped")
    search.on_trial_complete(second[0])
    told = study(tmp_path, "A-v0").trials[0]
    assert (told.state, told.value) == (TrialState.COMPLETE, 7.0)


def test_a_setting_of_which_a_trial_failed_fails(tmp_path: Path) -> None:
    search = Search(SWEEP, tmp_path)
    for (name, trial), status in zip(asked(search, 2).items(), ("finished", "failed"), strict=True):
        end(trial, tmp_path, 1, status=status)
        search.on_trial_complete(name)
    assert study(tmp_path, "A-v0").trials[0].state == TrialState.FAIL
    assert not best_settings(SWEEP, tmp_path, search.all_trials())
    assert row(search.all_trials()[1], tmp_path).message == "it broke"


def test_a_trial_whose_worker_died_too_often_is_left(tmp_path: Path) -> None:
    search = Search(SWEEP, tmp_path)
    (name, trial), *_ = asked(search, 12).items()
    search.on_trial_complete(name, error=True)
    assert Trial.of(Search(SWEEP, tmp_path).suggest("again")) == trial


def test_a_search_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    search = Search(SWEEP, tmp_path)
    before = list(asked(search, 5).values())  # The second seed of the last setting is not handed out yet.
    for trial in before[:3]:
        end(trial, tmp_path, 3)
    again = Search(SWEEP, tmp_path)
    assert again.n_left == 9
    # The first setting's trials had ended, which its driver had not told Optuna.
    assert study(tmp_path, "A-v0").trials[0].value == 3
    found = list(asked(again, 9).values())
    assert found[:3] == [before[4], replace(before[4], seed=7), before[3]]
    values = [trial.values["gamma"] for trial in again.all_trials() if trial.seed == 4]
    assert len(values) == len(set(values)) == 6  # The sampler does not begin again where it began.
    assert again.suggest("one more") == Search.FINISHED


def test_more_settings_may_be_tried_later(tmp_path: Path) -> None:
    for trial in asked(Search(SWEEP, tmp_path), 12).values():
        end(trial, tmp_path, 0)
    assert Search(SWEEP, tmp_path).n_left == 0
    more = Search(replace(SWEEP, n_settings=4), tmp_path)
    assert more.n_left == 4 and Trial.of(more.suggest("new")).setting == 3


@pytest.mark.parametrize("n_bytes", [1, 40])
def test_a_line_of_the_journal_that_was_cut_off_is_no_obstacle(n_bytes: int, tmp_path: Path) -> None:
    before = asked(Search(SWEEP, tmp_path), 3)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-n_bytes])
    # The line was the value of the third trial's setting, which is chosen anew.
    again = Search(SWEEP, tmp_path)
    assert again.n_left == 12 and again.all_trials() == list(before.values())[:2]
    found = asked(again, 12)
    assert len({trial.name for trial in found.values()}) == 12
    Search(SWEEP, tmp_path)


def reported(halving: HalvingByEnvironment, trial: Trial, out: Path, steps: int, best: float) -> str:
    controller: Any = None
    stand_in: Any = SimpleNamespace(trial_id=trial.name, config=trial.given(out))
    if steps == 200:
        halving.on_trial_add(controller, stand_in)
    return halving.on_trial_result(controller, stand_in, dict(steps=steps, best_return=best))


def test_trials_that_lie_behind_in_their_environment_are_stopped(tmp_path: Path) -> None:
    halving = HalvingByEnvironment(SWEEP, tmp_path)
    trials = [Trial("A-v0", i, 4, {}) for i in range(6)]
    decisions = [
        reported(halving, trial, tmp_path, 200, best) for trial, best in zip(trials, (5, 9, 1, 10, 2, 11), strict=True)
    ]
    assert decisions == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE", "STOP", "CONTINUE"]
    assert [read_record(trial.folder(tmp_path)) for trial in trials] == [
        Record("stopped") if decision == "STOP" else None for decision in decisions
    ]
    # Returns of another environment do not compare.
    other = Trial("B-v0", 0, 4, {})
    assert reported(halving, other, tmp_path, 200, -1000) == "CONTINUE"
    # At the last evaluation nothing is left to stop.
    assert reported(halving, other, tmp_path, 1000, -1000) == "CONTINUE"


def test_rungs_are_recalled_from_trials_that_have_ended(tmp_path: Path) -> None:
    ended = [Trial("A-v0", i, 4, {}) for i in range(3)]
    for trial in ended:
        end(trial, tmp_path, 6, 7, 8)
    new = Trial("A-v0", 3, 4, {})
    assert reported(HalvingByEnvironment(SWEEP, tmp_path), new, tmp_path, 200, 1) == "CONTINUE"
    assert reported(HalvingByEnvironment(SWEEP, tmp_path, ended), new, tmp_path, 200, 1) == "STOP"


def test_without_halving_nothing_is_stopped(tmp_path: Path) -> None:
    halving = HalvingByEnvironment(replace(SWEEP, halving=False), tmp_path)
    for i in range(5):
        assert reported(halving, Trial("A-v0", i, 4, {}), tmp_path, 200, -i) == "CONTINUE"


def test_results_of_a_sweep_that_is_not_finished_say_so(tmp_path: Path) -> None:
    search = Search(SWEEP, tmp_path)
    trials = list(asked(search, 3).values())
    end(trials[0], tmp_path, 1, 2)
    end(trials[1], tmp_path, status="failed")
    best = write_results(SWEEP, tmp_path, search.all_trials())
    assert not best and "#" in (tmp_path / "best.yml").read_text()
    statuses = [row(trial, tmp_path).status for trial in search.all_trials()]
    assert statuses == ["finished", "failed", "unfinished", "unfinished"]
    assert (tmp_path / "curves_A-v0.png").exists() and not (tmp_path / "curves_B-v0.png").exists()


def test_a_sweep_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_sweep(SWEEP, tmp_path)
    assert read_sweep(tmp_path) == SWEEP
    (tmp_path / "sweep.json").write_text(json.dumps({"base": {}}))
    with pytest.raises(SweepError, match="is damaged"):
        read_sweep(tmp_path)


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    (tmp_path / "trial.json").write_text('{"status"')
    with pytest.raises(SweepError, match="Remove the folder"):
        read_record(tmp_path)
