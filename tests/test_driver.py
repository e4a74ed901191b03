"""scripts/driver.py: the drivers that it teaches, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import pytest

from ncp_rl import NCPPolicy
from ncp_rl.runs import make_envs, make_model
from ncp_rl.tables import append_rows, read_rows
from scripts import driver
from scripts.driver import CONTENDERS, Row


def row(contender: str, disturbance: str, level: float, n_crashed: int = 0) -> Row:
    return Row(contender, 0, disturbance, level, 100, n_crashed, 900.0 - 100 * level, 500.0, 32_000, 1_000, 60.0)


@pytest.mark.parametrize("contender", CONTENDERS)
def test_drivers_have_one_head_and_the_neurons_that_they_say(contender: str) -> None:
    config = driver.config(contender, 0)
    venv = make_envs(config, 1)
    assert venv.observation_space.shape == (16, 80, 3)
    model = make_model(config, venv)
    head, core = driver.count_parameters(model)
    assert head == 1_216 + 3_480 + 6_944 + 20_512  # Three convolutions and the linear layer.
    if isinstance(model.policy, NCPPolicy):
        wiring = model.policy.wiring
        assert (wiring.units, wiring.n_command, wiring.n_motor) == (19, 6, 1)
        assert core < 1_200
    else:
        assert core > 1_200
    venv.close()


def test_all_cars_have_a_share_of_the_mix() -> None:
    levels = driver.mixed(driver.N_CARS)
    assert {len(of_cars) for of_cars in levels.values()} == {driver.N_CARS}
    undisturbed = sum(not any(of_cars[i] for of_cars in levels.values()) for i in range(driver.N_CARS))
    assert undisturbed == driver.N_CARS // 4
    worlds = list(driver.plan(driver.LEVELS))
    assert worlds[0] == ("none", 0.0, 100) and ("noise", 0.5, 100) in worlds and len(worlds) == 17
    assert len(list(driver.plan([]))) == 5


def test_the_report_says_what_the_table_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "driver.csv"
    assert driver.main(driver.Args(table=table, report=True)) == 1
    rows = [row(name, d, level) for name in ("ncp", "lstm-19") for d, level, _ in driver.plan(driver.LEVELS)]
    append_rows(table, [*rows, row("feed-forward", "none", 0.0, n_crashed=3)])
    assert driver.main(driver.Args(table=table, report=True)) == 0
    printed = capsys.readouterr().out
    assert "| NCP, 19 neurons (1) | 32,000, 1,000 | 900; 0 of 100 crashed | 850; 0 of 100 crashed |" in printed
    assert "900; 3 of 100 crashed" in printed
    assert (tmp_path / "driver.png").stat().st_size > 10_000 and len(read_rows(table, Row)) == 35
    assert driver.main(driver.Args(contenders=("gru",), table=table)) == 1


def test_the_page_on_teaching_says_what_the_table_holds() -> None:
    page = (driver.ROOT / "docs" / "teaching.md").read_text()
    assert driver.summary(read_rows(driver.ROOT / "results" / "driver.csv", Row)) in page
