"""Search spaces: read from yml, drawn from by Optuna, put into hyperparameters; what is wrong is told by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import optuna
import pytest
import yaml

from ncp_rl.distributed import Dimension, SpaceError, read_space, with_values
from ncp_rl.distributed.space import dimensions, values_in
from ncp_rl.runs import RunConfig, general_settings, make_envs, make_model, tuned_file

SPACE = """
NCPPolicy:
  learning_rate: {loguniform: [1e-5, 1e-3], linear: true}
  gamma: {uniform: [0.9, 0.99]}
  n_epochs: {int: [2, 9]}
  n_steps: {logint: [8, 512]}
  normalize: {choice: [false, {norm_obs: true}, null]}
  policy_kwargs.wiring.units: {choice: [16, 32]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "space.yml").write_text(SPACE)
    return tmp_path / "space.yml"


def drawn(space: list[Dimension], n: int = 60) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask({dimension.name: dimension.distribution() for dimension in space}) for _ in range(n)]
    return [{d.name: d.setting(trial.params[d.name]) for d in space} for trial in trials]


def test_what_is_drawn_lies_where_the_file_says(path: Path) -> None:
    for values in drawn(dimensions(read_space(path, "ncp_rl.NCPPolicy"))):
        rate = values["learning_rate"]
        assert rate.startswith("lin_") and 1e-5 <= float(rate.removeprefix("lin_")) <= 1e-3
        assert 0.9 <= values["gamma"] <= 0.99
        assert type(values["n_epochs"]) is int and 2 <= values["n_epochs"] <= 9
        assert type(values["n_steps"]) is int and 8 <= values["n_steps"] <= 512
        assert values["normalize"] in (False, {"norm_obs": True}, None)
        assert values["policy_kwargs.wiring.units"] in (16, 32)


def test_logarithms_are_drawn_evenly_and_every_choice_comes(path: Path) -> None:
    found = drawn(dimensions(read_space(path, None)), 200)
    rates = sorted(float(values["learning_rate"].removeprefix("lin_")) for values in found)
    assert 0.6e-4 < rates[100] < 1.6e-4  # The middle of the decades; of the range itself it would be 5e-4.
    assert {str(values["normalize"]) for values in found} == {"False", "None", "{'norm_obs': True}"}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(None, "NCPPolicy"), ("ncp_rl.MultiInputNCPPolicy", "NCPPolicy"), ("MlpPolicy", "MlpPolicy")],
)
def test_a_policy_has_its_space_and_circuits_share_one(policy: str | None, expected: str, tmp_path: Path) -> None:
    spaces = {name: {"gamma": {"choice": [name]}} for name in ("NCPPolicy", "MlpPolicy")}
    (tmp_path / "space.yml").write_text(yaml.safe_dump(spaces))
    assert read_space(tmp_path / "space.yml", policy) == spaces[expected]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (0.9, "must be one of {uniform: [low, high]}"),
        ({"uniform": [0.9, 0.99], "int": [1, 2]}, "must be one of"),
        ({"normal": [0, 1]}, "got 'normal'"),
        ({"uniform": 0.9}, "must be followed by a list"),
        ({"choice": []}, "must be followed by a list"),
        ({"uniform": [0.99, 0.9]}, "two numbers, the lower one first, got [0.99, 0.9]"),
        ({"uniform": [0.9, True]}, "two numbers"),
        ({"int": [1, 2.5]}, "two whole numbers"),
        ({"loguniform": [0, 1]}, "both above 0"),
        ({"uniform": [0.1, 0.2], "linear": True}, "true only for ranges of learning_rate, clip_range, clip_range_vf"),
    ],
)
def test_a_wrong_dimension_is_told_by_name(entry: Any, message: str) -> None:
    with pytest.raises(SpaceError) as error:
        Dimension.of("gamma", entry)
    assert "gamma" in str(error.value) and message in str(error.value)


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "space.yml"
    with pytest.raises(SpaceError, match="cannot be read"):
        read_space(path, None)
    for text, message in (
        ("[1, 2]", "must map policies to search spaces"),
        ("a: [", "cannot be read"),
        ("MlpPolicy: {gamma: {choice: [1]}}", "no search space for NCPPolicy, it has some for MlpPolicy"),
        ("NCPPolicy: 3", "no search space for NCPPolicy"),
    ):
        path.write_text(text)
        with pytest.raises(SpaceError, match=message):
            read_space(path, None)


def test_values_are_put_into_nested_settings_and_nothing_else_changes() -> None:
    base = {"gamma": 0.9, "policy_kwargs": {"cell": "cfc", "wiring": {"units": 8, "seed": 1}}}
    found = with_values(base, {"gamma": 0.5, "policy_kwargs.wiring.units": 9, "env_kwargs.level": 2})
    wiring = {"units": 9, "seed": 1}
    assert found == {"gamma": 0.5, "policy_kwargs": {"cell": "cfc", "wiring": wiring}, "env_kwargs": {"level": 2}}
    assert base == {"gamma": 0.9, "policy_kwargs": {"cell": "cfc", "wiring": {"units": 8, "seed": 1}}}
    with pytest.raises(SpaceError, match="leads through wiring, which is 'AutoNCP' here, no mapping"):
        with_values({"policy_kwargs": {"wiring": "AutoNCP"}}, {"policy_kwargs.wiring.units": 9})


@pytest.mark.parametrize(
    ("entry", "setting", "drawn"),
    [
        (dict(loguniform=[1e-4, 1e-3], linear=True), "lin_3e-4", 3e-4),
        (dict(loguniform=[1e-4, 1e-3], linear=True), 3e-4, None),
        (dict(loguniform=[1e-4, 1e-3], linear=True), "lin_3", None),
        (dict(loguniform=[1e-4, 1e-3]), "lin_3e-4", None),
        (dict(int=[4, 12]), 10, 10),
        (dict(int=[4, 12]), "many", None),
        (dict(choice=[[64], [64, 64]]), [64, 64], "[64, 64]"),
        (dict(choice=[[64], [64, 64]]), [32], None),
    ],
)
def test_settings_that_the_space_holds_could_have_been_drawn(entry: Any, setting: Any, drawn: Any) -> None:
    dimension = Dimension.of("learning_rate", entry)
    assert dimension.drawn(setting) == drawn
    assert values_in({"learning_rate": setting}, [dimension]) == ({} if drawn is None else {"learning_rate": drawn})
    if drawn is not None:
        again = dimension.setting(drawn)
        assert again == setting or float(again[4:]) == float(setting[4:])


@pytest.mark.parametrize("policy", ["NCPPolicy", "MlpLstmPolicy", "MlpPolicy"])
def test_the_space_that_comes_along_makes_models(policy: str) -> None:
    for values in drawn(dimensions(read_space(tuned_file("sweep.yml"), policy)), 3):
        settings = with_values(general_settings("ncp/PendulumNoVel-v1", policy) | dict(n_envs=2, policy=policy), values)
        config = RunConfig("ncp/PendulumNoVel-v1", settings)
        venv = make_envs(config, 2)
        model = make_model(config, venv, "cpu")
        assert model.gamma == values["gamma"] and model.n_steps == values["n_steps"]
        venv.close()
