import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from ncp_rl.audit import Clamp, Perturbation, perturb
from ncp_rl.audit.perturb import Point, Trial, failed, roll_out
from ncp_rl.runs import Interval, RunConfig, RunError, train

ENV = "ncp_envs:ncp/PendulumNoVel-v1"
LEVELS = (0.0, 0.5)


class Weaker(gym.ActionWrapper[Any, Any, Any]):
    """Loses a share `level` of every action."""

    def __init__(self, env: gym.Env[Any, Any], level: float) -> None:
        super().__init__(env)
        self.level = level

    def action(self, action: Any) -> Any:
        return action * np.float32(1.0 - self.level)


class Leaky(Weaker):
    """A disturbance at level 0 too."""

    def action(self, action: Any) -> Any:
        return action * np.float32(0.9)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, policy in (("ncp", None), ("lstm", "MlpLstmPolicy"), ("mlp", "MlpPolicy")):
        kwargs: dict[str, Any] = dict(wiring=dict(units=12)) if policy is None else {}
        hyperparams: dict[str, Any] = dict(
            n_envs=2, n_steps=32, n_timesteps=128, normalize=True, policy_kwargs=kwargs, policy=policy
        )
        train(RunConfig(ENV, hyperparams), folder / name, n_eval_episodes=1, progress_bar=False)
    return {name: folder / name for name in ("ncp", "lstm", "mlp")}


@pytest.fixture(scope="module")
def swept(runs: dict[str, Path]) -> Iterator[Perturbation]:
    ablations = [Clamp("command_0", 0.0)]
    yield perturb(runs, {"weaker": (Weaker, LEVELS)}, ablations=ablations, which="last", n_episodes=4, seed=3)


def test_level_zero_equals_nominal_exactly(swept: Perturbation, runs: dict[str, Path]) -> None:
    assert swept.level_zero_is_nominal is True
    for point in swept.points:
        if point.level == 0.0 and point.condition == "weaker":
            assert point.mean_return == swept.nominal[point.policy].mean_return
            assert point.return_change == Interval(0.0, 0.0, 0.0)
            assert point.command_deviation in (None, Interval(0.0, 0.0, 0.0))
    leaky = perturb({"ncp": runs["ncp"]}, {"leaky": (Leaky, [0.0])}, which="last", n_episodes=2)
    assert leaky.level_zero_is_nominal is False
    assert "does not equal" in leaky.verdict("ncp").sentence and not leaky.verdict("ncp").passed


def test_every_policy_stands_beside_the_others(swept: Perturbation) -> None:
    keys = [(point.policy, point.condition, point.level) for point in swept.points]
    sweep = [(policy, "weaker", level) for policy in ("ncp", "lstm", "mlp") for level in LEVELS]
    assert [key for key in keys if key[1] == "weaker"] == sweep
    assert ("ncp", "clamp command_0 at 0.00", 0.0) in keys and len(keys) == len(sweep) + 1
    for point in swept.points:
        assert point.return_change.low <= point.return_change.mean <= point.return_change.high
        assert (point.command_deviation is not None) == (point.policy == "ncp")
        if point.level:
            assert point.return_change.mean != 0.0
            assert point.command_deviation is None or point.command_deviation.mean > 0


def test_processes_give_what_one_gives(swept: Perturbation, runs: dict[str, Path]) -> None:
    ncp = {"ncp": runs["ncp"]}
    two, one = (perturb(ncp, {"w": (Weaker, [0.5])}, which="last", n_episodes=3, n_processes=n) for n in (2, 1))
    assert two == one


def test_a_trial_is_paired_by_seed(runs: dict[str, Path]) -> None:
    first = roll_out(Trial(runs["ncp"], "last", 3, seed=7))
    later = roll_out(Trial(runs["ncp"], "last", 2, seed=8))
    assert first is not None and later is not None
    np.testing.assert_allclose(first.returns[1:], later.returns, rtol=1e-5)
    assert first.command is not None and [trace.shape for trace in first.command] == [(200, 4)] * 3


def test_what_counts_as_failure() -> None:
    assert failed({"is_success": False}, False) and not failed({"is_success": True}, True)
    assert failed({"crash": True}, True) and not failed({"crash": False}, True)
    assert failed({}, True) and not failed({}, False)


def test_verdict_and_json(swept: Perturbation) -> None:
    verdict = swept.verdict("ncp", max_loss=np.inf)
    assert verdict.passed and verdict.figures["loss"] >= 0
    assert not swept.verdict("ncp", max_loss=-1.0).passed
    written = swept.to_dict()
    assert set(written["nominal"]) == {"ncp", "lstm", "mlp"}
    assert set(written["points"][0]["mean_return"]) == {"mean", "low", "high"}


def test_the_verdict_names_the_option_that_trains_under_what_costs_much(swept: Perturbation) -> None:
    def point(condition: str, level: float, change: float) -> Point:
        paired = Interval(change, change, change)
        return replace(swept.nominal["ncp"], condition=condition, level=level, return_change=paired)

    nominal = replace(swept.nominal["ncp"], mean_return=Interval(-200.0, -210.0, -190.0))
    points = (
        point("observation_delay", 2.0, -400.0),
        point("observation_delay", 1.0, -150.0),
        point("sensor_noise", 0.1, -90.0),
        point("action_gain_error", 0.4, -110.0),
        point("clamp command_0 at 0.00", 0.0, -900.0),  # No disturbance: nothing to train under.
    )
    verdict = replace(swept, nominal={"ncp": nominal}, points=points).verdict("ncp")
    assert not verdict.passed
    assert verdict.sentence.endswith(
        "Training under them may help: ncp-rl train --disturb observation_delay=0..1 action_gain_error=0..0.4"
    )
    unhurt = replace(swept, nominal={"ncp": nominal}, points=points[2:3]).verdict("ncp")
    assert unhurt.passed and "--disturb" not in unhurt.sentence


def test_a_missing_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        perturb({"ncp": tmp_path}, {}, n_episodes=1)


def test_other_processes_know_the_environments_that_this_one_has_registered(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    """An id alone, without the module that registers it, as the commands have it."""
    folder = tmp_path / "run"
    shutil.copytree(runs["ncp"], folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace(ENV, ENV.partition(":")[2]))
    assert ENV in config and ENV.partition(":")[2] in gym.registry
    two, one = (perturb({"ncp": folder}, {}, which="last", n_episodes=2, n_processes=n) for n in (2, 1))
    assert two.nominal == one.nominal
