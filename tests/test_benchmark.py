"""The benchmark: a training gives its rows, what is done is not done again, and what is summed up is in the table."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from ncp_rl.runs import RunConfig, make_envs, make_model, train
from ncp_rl.tables import append_rows, read_rows
from scripts import benchmark
from scripts.benchmark import CONTENDERS, SUITE, Args, Row


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "N_EPISODES", 2)
        return benchmark.run_job(("Pendulum", "ncp", 3), 4096, tmp_path_factory.mktemp("runs") / "run")


def row(
    contender: str = "ncp", seed: int = 0, model: str = "best", mean_return: float = 0.0, cpu_s: float = 1.0
) -> Row:
    return Row("CartPole", contender, seed, model, "undisturbed", 100, mean_return, 0.0, 2.0, cpu_s, 7, 9, "stock")


def test_a_training_gives_its_curve_and_its_models_over_fresh_episodes(rows: list[Row]) -> None:
    assert [r.model for r in rows] == ["curve"] * 10 + ["last", "best", "best", "best"]
    assert [r.world for r in rows[10:]] == ["undisturbed", "sensor_noise=0.1", "observation_delay=1", "undisturbed"]
    assert len({r.mean_return for r in rows[11:]}) == 3
    assert [r.step for r in rows[:10]] == [51 * 8 * (i + 1) for i in range(10)]
    assert all(a.cpu_s <= b.cpu_s and a.wall_s <= b.wall_s for a, b in itertools.pairwise(rows))
    assert {(r.task, r.contender, r.seed, r.settings) for r in rows} == {("Pendulum", "ncp", 3, "tuned")}
    assert rows[0].actor_parameters < rows[0].parameters < 20_000
    assert -2000 < rows[-1].mean_return < 0


def test_the_table_keeps_rows_and_what_it_holds_is_not_trained_again(rows: list[Row], tmp_path: Path) -> None:
    args = Args(tasks=("Pendulum", "PendulumIrregular"), contenders=("ncp", "stack"), table=tmp_path / "table.csv")
    everything = benchmark.missing(args, [])
    assert benchmark.missing(Args(tasks=("PendulumIrregular",), contenders=("ncp-disturbed",)), []) == []
    assert len(everything) == 2 * 5 + 5  # A stack of elapsed times is no elapsed time.
    assert everything[:3] == [("Pendulum", "ncp", 0), ("Pendulum", "stack", 0), ("PendulumIrregular", "ncp", 0)]
    append_rows(args.table, rows)
    append_rows(args.table, [replace(row("stack", 1), task="Pendulum")])
    found = read_rows(args.table, Row)
    assert [asdict(r) for r in found[:-1]] == [pytest.approx(asdict(r), abs=0.01) for r in rows]
    assert set(everything) - set(benchmark.missing(args, found)) == {("Pendulum", "ncp", 3), ("Pendulum", "stack", 1)}


@pytest.mark.parametrize(("contender", "alone"), [("ncp-general", "CartPole"), ("lstm-stock", "LaneKeeping")])
def test_a_training_that_two_contenders_share_is_made_once(contender: str, alone: str) -> None:
    tasks = {task for task, _, _ in benchmark.missing(Args(contenders=(contender,)), [])}
    assert alone not in tasks and "Pendulum" in tasks
    same = benchmark.trained_as(alone, contender)
    found, shared = (benchmark.hyperparams(SUITE[alone], CONTENDERS[name]) for name in (contender, same))
    assert found == shared


def test_general_settings_are_those_of_an_environment_that_no_file_names() -> None:
    contender = CONTENDERS["ncp-general"]
    assert benchmark.source(SUITE["Pendulum"], contender) == "general"
    assert benchmark.hyperparams(SUITE["Pendulum"], contender)["use_sde"]
    assert benchmark.source(SUITE["Pendulum"], CONTENDERS["ncp-stock"]) == "stock"


def test_an_interrupted_benchmark_goes_on_with_its_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "N_EPISODES", 2)
    job, rollout = ("Pendulum", "mlp", 0), 4 * 1024
    args = Args(tasks=job[:1], contenders=job[1:2], seeds=(0,), table=tmp_path / "t.csv", timesteps=rollout)
    run = benchmark.folder(args, job)
    assert run == tmp_path / "t_runs" / "Pendulum_mlp_0"
    settings = benchmark.hyperparams(SUITE["Pendulum"], CONTENDERS["mlp"], 3 * rollout)
    config = RunConfig(SUITE["Pendulum"].env, settings, seed=0)
    with pytest.raises(Killed):
        train(config, run, progress_bar=False, n_eval_episodes=2, callback=Kill(2 * rollout + 4))
    (run / "last" / "model.zip").unlink()  # As after a kill.
    rows = benchmark.run_job(job, 3 * rollout, run)
    assert (run / "resumed.log").read_text() == f"At step {2 * rollout:,} the training goes on where it was.\n"
    assert [r.model for r in rows] == ["curve"] * 10 + ["last", "best", "best", "best"]
    # A finished one, whose rows were not written, is not trained again.
    assert benchmark.run_job(job, 3 * rollout, run) == rows
    assert len((run / "resumed.log").read_text().splitlines()) == 1
    # Other settings begin anew; once rows are written, the folder goes.
    assert not benchmark.unfinished(replace(config, seed=1), run) and benchmark.unfinished(config, run)
    benchmark.run_jobs([job], replace(args, processes=1))
    assert not run.exists() and benchmark.missing(args, read_rows(args.table, Row)) == []
    assert read_rows(args.table, Row)[0].step == rollout // 10 // 4 * 4


class Killed(BaseException):
    """Ends a training as a kill would."""


class Kill(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.step:
            raise Killed
        return True


def test_controls_have_as_many_neurons_and_synapses_as_the_ncp() -> None:
    from ncp_rl import NCPPolicy

    counts = []
    for name in ("ncp", "ncp-random", "ncp-full"):
        config = RunConfig(SUITE["CartPole"].env, benchmark.hyperparams(SUITE["CartPole"], CONTENDERS[name]))
        policy = make_model(config, make_envs(config, 1)).policy
        assert isinstance(policy, NCPPolicy)
        wiring = policy.wiring
        counts.append((wiring.units, len(wiring.synapses.source), len(wiring.sensory_synapses.source)))
    assert counts[0] == counts[1]
    assert counts[2] == (counts[0][0], counts[0][0] ** 2, 16 * counts[0][0])


def test_the_summary_is_of_the_middle_half_and_says_who_reached_the_goal(tmp_path: Path) -> None:
    table = [row(seed=seed, mean_return=value) for seed, value in enumerate((0.0, 490.0, 490.0, 500.0))]
    table += [row("lstm", seed, "curve", value, 10.0) for seed, value in enumerate((480.0, 480.0, 300.0))]
    table += [replace(row("ncp-disturbed", mean_return=60.0), world="observation_delay=1")]
    returns, untuned, costs, worlds = benchmark.summary([*table, row("lstm", mean_return=3.0)]).split("\n\n")
    assert "| CartPole, 100,000 | 490 [" in returns and "(4) | 3 (1) |" in returns
    assert untuned.splitlines()[0] == "| task, steps | NCP, general settings |"
    assert costs.splitlines()[-1] == "| CartPole, 475 | 7; not reached | 7; 10 s |"
    assert worlds.splitlines()[3:] == [
        "| CartPole, NCP of 64 neurons, trained disturbed |  | 60 (1) |  |",
        "| CartPole, LSTM | 3 (1) |  |  |",
    ]
    for x in ("step", "cpu_s"):
        benchmark.plot(table, tmp_path / "plot.png", x=x)
        assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_what_readme_and_page_say_is_in_the_table() -> None:
    table = read_rows(benchmark.ROOT / "results" / "benchmark.csv", Row)
    page = (benchmark.ROOT / "docs" / "benchmarks.md").read_text()
    parts = benchmark.summary(table).split("\n\n")
    for part in parts:
        assert part in page
    assert parts[0] in (benchmark.ROOT / "README.md").read_text()


def test_an_unknown_task_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(Args(tasks=("Cartpole",))) == 1
    assert "'Cartpole' must be one of CartPole," in capsys.readouterr().err
