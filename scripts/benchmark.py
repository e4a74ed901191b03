"""Train every contender on every task, keep each figure in one table, and sum it up.

    python scripts/benchmark.py                                   # all that the table lacks, on all cores
    python scripts/benchmark.py --tasks CartPole Pendulum --contenders ncp lstm --seeds 0 1
    python scripts/benchmark.py --report                          # the summary and the plots alone

A training ends in rows of results/benchmark.csv: its learning curve (20 deterministic episodes at ten points), and the
returns of its last and of its best model over 20 fresh episodes whose seeds nothing else has used, of the best one in
disturbed worlds too. What stands in the table is not trained again, and unfinished trainings are kept beside it, in
results/benchmark_runs/, so that an interrupted benchmark goes on where it was. Each training has a core and a thread of
its own.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import tyro
from matplotlib import pyplot
from matplotlib.axes import Axes
from ncp_envs import RandomDisturbances
from scipy import stats
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm import tqdm

from ncp_rl import NCPPolicy
from ncp_rl.audit.workers import begin_worker
from ncp_rl.runs import (
    RunConfig,
    evaluate,
    general_settings,
    load_run,
    make_envs,
    make_model,
    read_config,
    read_hyperparams,
    resume,
    train,
)
from ncp_rl.runs.checkpoint import CHECKPOINT
from ncp_rl.tables import append_rows, read_rows

ROOT = Path(__file__).parents[1]
#: Seeds of the fresh episodes lie beyond those of training, of periodic evaluation and of what train.py ends with.
FRESH_SEED = 30_000
N_EPISODES = 20
#: Checkpoints of a training: one that is cut loses a hundredth at most.
N_CHECKPOINTS = 100
#: Under what the best model of each training is evaluated.
WORLDS: dict[str, dict[str, Any]] = {
    "undisturbed": {},
    "observation_delay=1": dict(observation_delay=1),
    "sensor_noise=0.1": dict(sensor_noise=0.1),
}
#: Settings of contenders for which there are none: those of Stable-Baselines3, over eight environments.
STOCK: dict[str, Any] = dict(n_envs=8)
#: Levels that each episode draws, for contenders that train disturbed: up to twice the delay, and the noise.
DISTURBED = dict(observation_delay=[0, 2], sensor_noise=[0, 0.1])


@dataclass(frozen=True)
class Task:
    """An environment of the suite."""

    env: str
    steps: int
    seeds: int
    goal: float
    """The return whose time is taken."""
    timed: bool = False
    """Whether the observation is a Dict that tells the elapsed time."""
    disturbed_steps: int = 0
    """Steps of contenders that train under disturbances, which takes longer; 0 where none does."""


@dataclass(frozen=True)
class Contender:
    """A policy, and where its settings come from."""

    label: str
    policy: Literal["ncp", "lstm", "mlp"]
    settings: str | None = None
    """A file in hyperparams/; None: general ones, as `ncp-rl train` has for an environment without tuned ones."""
    stock: bool = False
    """Whether it has those of `STOCK`."""
    wiring: Literal["Random", "FullyConnected"] | None = None
    """In place of the NCP, with as many neurons, and with as many synapses where they are drawn at random."""
    frame_stack: int = 1
    disturbed: bool = False
    """Whether it trains under `DISTURBED`."""


SUITE = {
    "CartPole": Task("ncp/CartPoleNoVel-v1", 100_000, 5, goal=475, disturbed_steps=200_000),
    "Pendulum": Task("ncp/PendulumNoVel-v1", 100_000, 5, goal=-250, disturbed_steps=400_000),
    "MountainCar": Task("ncp/MountainCarContinuousNoVel-v0", 300_000, 5, goal=90),
    "PendulumIrregular": Task("ncp/PendulumIrregular-v0", 200_000, 5, goal=-250, timed=True),
    "LunarLander": Task("ncp/LunarLanderContinuousNoVel-v3", 500_000, 3, goal=200),
    "LaneKeeping": Task("ncp/LaneKeeping-v0", 600_000, 3, goal=850, disturbed_steps=600_000),
    "Hopper": Task("ncp/HopperNoVel-v5", 1_000_000, 3, goal=1_000),
    "HalfCheetah": Task("ncp/HalfCheetahNoVel-v5", 1_000_000, 3, goal=2_000),
}
CONTENDERS = {
    "ncp": Contender("NCP", "ncp", "ncp_ppo.yml"),
    "lstm": Contender("LSTM", "lstm", "peers_lstm.yml"),
    "mlp": Contender("no memory", "mlp", "peers_ppo.yml"),
    "stack": Contender("4 stacked frames", "mlp", "peers_ppo.yml", frame_stack=4),
    "ncp-general": Contender("NCP, general settings", "ncp"),
    "ncp-stock": Contender("NCP, stock settings", "ncp", stock=True),
    "lstm-stock": Contender("LSTM, stock settings", "lstm", stock=True),
    "ncp-random": Contender("wired at random", "ncp", "ncp_ppo.yml", wiring="Random"),
    "ncp-full": Contender("fully connected", "ncp", "ncp_ppo.yml", wiring="FullyConnected"),
    "ncp-disturbed": Contender("NCP of 64 neurons, trained disturbed", "ncp", "ncp_disturbed.yml", disturbed=True),
    "lstm-disturbed": Contender("LSTM, trained disturbed", "lstm", "peers_lstm.yml", disturbed=True),
}

PAIRS = tuple((key, name) for key in SUITE for name in CONTENDERS)
#: Contenders whose returns stand side by side.
TUNED = ("ncp", "lstm", "mlp", "stack")
UNTUNED = ("ncp-general", "ncp-stock", "lstm-stock")
WIRED = ("ncp", "ncp-random", "ncp-full")
#: Contenders whose returns in disturbed worlds do.
ROBUST = ("ncp", "ncp-disturbed", "lstm", "lstm-disturbed", "mlp")


@dataclass(frozen=True)
class Row:
    """A line of the table: one model of one training, evaluated."""

    task: str
    contender: str
    seed: int
    model: str
    """curve: a point of the learning curve; best, last: by periodic evaluation and by time, over fresh episodes."""
    world: str
    """In which it was evaluated, one of `WORLDS`; curves are those of the world that was trained in."""
    step: int
    mean_return: float
    std_return: float
    wall_s: float
    """Seconds of training until `step`, without evaluations."""
    cpu_s: float
    """The same in seconds of the processor, which neighbours on the machine disturb less."""
    actor_parameters: int
    parameters: int
    settings: str
    """Whose: stock, rl-zoo, or this project's, for any task (general) or for this one (tuned)."""


@dataclass(frozen=True)
class Args:
    """What to train, and where the table lies."""

    tasks: tuple[str, ...] = tuple(SUITE)
    """Tasks of the suite; all of them by default."""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    """All of them by default."""
    seeds: tuple[int, ...] | None = None
    """Default: as many as the suite says, from 0 on."""
    table: Path = ROOT / "results" / "benchmark.csv"
    """Read, and extended by each training that ends; unfinished ones are in a folder beside it, TABLE_runs."""
    processes: int = len(os.sched_getaffinity(0))
    """Trainings side by side, each on a core of its own."""
    timesteps: int | None = None
    """Steps of each training in place of the suite's, to try the script."""
    report: bool = False
    """Train nothing; sum up what the table holds."""


Job = tuple[str, str, int]


def main(args: Args) -> int:
    """Train what is missing, then sum up."""
    known = [*SUITE, *CONTENDERS]
    for name in (*args.tasks, *args.contenders):
        if name not in known:
            print(f"error: {name!r} must be one of {', '.join(known)}.", file=sys.stderr)
            return 1
    if not args.report:
        run_jobs(missing(args, read_rows(args.table, Row)), args)
    rows = read_rows(args.table, Row)
    if not rows:
        print(f"error: the table {args.table} is empty; train first, without --report.", file=sys.stderr)
        return 1
    print(summary(rows))
    matplotlib.use("Agg")
    plot(rows, args.table.with_name(f"{args.table.stem}_steps.png"), x="step")
    plot(rows, args.table.with_name(f"{args.table.stem}_seconds.png"), x="cpu_s")
    return 0


def missing(args: Args, rows: Sequence[Row]) -> list[Job]:
    """Trainings that the table lacks: seed after seed, so that a first picture of everything comes early."""
    done = {(row.task, row.contender, row.seed) for row in rows}
    return [
        (task, contender, seed)
        for seed in args.seeds or range(max(task.seeds for task in SUITE.values()))
        for task in args.tasks
        for contender in args.contenders
        if (args.seeds or seed < SUITE[task].seeds)
        and not (SUITE[task].timed and CONTENDERS[contender].frame_stack > 1)  # A stack of times is no time.
        and (SUITE[task].disturbed_steps or not CONTENDERS[contender].disturbed)
        and trained_as(task, contender) == contender
        and (task, contender, seed) not in done
    ]


def trained_as(task: str, contender: str) -> str:
    """The contender with the same training: where a file lacks the task, it is the stock or general one."""
    same = {"lstm-stock": "lstm", "ncp-general": "ncp"}.get(contender, contender)
    settings = CONTENDERS[same].settings
    if settings and not read_hyperparams(ROOT / "hyperparams" / settings, SUITE[task].env):
        return same
    return contender


def run_jobs(jobs: Sequence[Job], args: Args) -> None:
    """Train side by side; the rows of a training are written when it ends."""
    context = multiprocessing.get_context("spawn")
    cores: Queue[int] = context.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    with ProcessPoolExecutor(args.processes, context, initializer=_take_core, initargs=(cores,)) as pool:
        futures = {pool.submit(run_job, job, args.timesteps, folder(args, job)): job for job in jobs}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="training"):
                rows = future.result()
                append_rows(args.table, rows)
                shutil.rmtree(folder(args, futures[future]))
                best = rows[-1]
                tqdm.write(f"{best.task} {best.contender} {best.seed}: {best.mean_return:.1f} after {best.cpu_s:.0f} s")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # An error is told at once, not after all trainings.
            raise


def _take_core(cores: Queue[int]) -> None:
    os.sched_setaffinity(0, {cores.get()})
    begin_worker()


def folder(args: Args, job: Job) -> Path:
    """The run folder of a training whose rows are not in the table yet."""
    return args.table.with_name(f"{args.table.stem}_runs") / "_".join(map(str, job))


def run_job(job: Job, timesteps: int | None, run: Path) -> list[Row]:
    """One training, from the environment or from where `run` was left, to its rows; the best model's comes last."""
    import ncp_envs  # noqa: F401  (registers ncp/ environments in this process)

    task, contender, seed = SUITE[job[0]], CONTENDERS[job[1]], job[2]
    config = RunConfig(task.env, hyperparams(task, contender, timesteps), seed=seed)
    actor, total = count_parameters(trained(config, run))
    common: dict[str, Any] = dict(task=job[0], contender=job[1], seed=seed, settings=source(task, contender))
    common |= dict(actor_parameters=actor, parameters=total)
    curve = list(read_curve(run))
    learned_in = "disturbed" if contender.disturbed else "undisturbed"
    rows = [Row(model="curve", world=learned_in, **point, **common) for point in curve]
    end = curve[-1] | common
    rows.append(Row(model="last", world="undisturbed", **(end | fresh_returns(run, "last", "undisturbed"))))
    for world in reversed(WORLDS):
        rows.append(Row(model="best", world=world, **(end | fresh_returns(run, "best", world))))
    return rows


def trained(config: RunConfig, run: Path) -> OnPolicyAlgorithm:
    """The trained model: of a training that was finished, that goes on, or that begins, also where settings changed."""
    if not unfinished(config, run):
        shutil.rmtree(run, ignore_errors=True)
        return train(config, run, progress_bar=False, n_eval_episodes=N_EPISODES, n_checkpoints=N_CHECKPOINTS)
    if (run / "last" / "model.zip").exists():
        return load_run(run, which="last")[0]
    return resume(run, progress_bar=False)


def unfinished(config: RunConfig, run: Path) -> bool:
    """Whether a folder holds a training of these settings and versions that can go on."""
    if not (run / CHECKPOINT).exists():
        return False
    found = read_config(run)
    same_length = found.n_timesteps == config.n_timesteps
    return same_length and found.versions == config.versions and not config.differences(found)


def fresh_returns(run: Path, which: Literal["best", "last"], world: str) -> dict[str, float]:
    """Mean and standard deviation of a model's returns over the fresh episodes of a world."""
    levels = WORLDS[world]
    model, venv = load_run(run, which=which, n_envs=10, wrapper_class=lambda env: RandomDisturbances(env, **levels))
    figures = evaluate(model, venv, n_episodes=N_EPISODES, seed=FRESH_SEED).summary()
    venv.close()
    return {name: figures[name] for name in ("mean_return", "std_return")}


def hyperparams(task: Task, contender: Contender, timesteps: int | None = None) -> dict[str, Any]:
    """The contender's hyperparameters for a task, in rl-zoo's form."""
    found = _from_file(task, contender)
    if contender.policy != "ncp":
        observed = "MultiInput" if task.timed else "Mlp"
        found["policy"] = f"ncp_rl.lstm.Fast{observed}LstmPolicy" if contender.policy == "lstm" else f"{observed}Policy"
    if contender.frame_stack > 1:
        found["frame_stack"] = contender.frame_stack
    if contender.wiring:
        found["policy_kwargs"] = (found.get("policy_kwargs") or {}) | dict(wiring=_control(task, contender.wiring))
    if contender.disturbed:
        found["env_wrapper"] = [{"ncp_envs.RandomDisturbances": DISTURBED}]
    steps = task.disturbed_steps if contender.disturbed else task.steps
    return found | dict(n_timesteps=timesteps or steps)


def _from_file(task: Task, contender: Contender) -> dict[str, Any]:
    found = contender.settings and read_hyperparams(ROOT / "hyperparams" / contender.settings, task.env)
    if found:
        return found
    return dict(STOCK) if contender.stock or contender.policy != "ncp" else general_settings(task.env)


def _control(task: Task, recipe: str) -> dict[str, Any]:
    venv = make_envs(RunConfig(task.env, {}), 1)
    policy = make_model(RunConfig(task.env, hyperparams(task, CONTENDERS["ncp"])), venv).policy
    venv.close()
    assert isinstance(policy, NCPPolicy)
    wiring = policy.wiring
    if recipe == "FullyConnected":
        return dict(recipe=recipe, units=wiring.units)
    matrices = dict(sparsity=wiring.adjacency, sensory_sparsity=wiring.sensory_adjacency)
    left_out = {name: 1.0 - np.count_nonzero(matrix) / matrix.size for name, matrix in matrices.items()}
    return dict(recipe=recipe, units=wiring.units, **left_out)


def source(task: Task, contender: Contender) -> str:
    """Whose settings a contender has on a task."""
    found = _from_file(task, contender)
    if contender.policy != "ncp" or found == STOCK:
        return "stock" if found == STOCK else "rl-zoo"
    return "general" if found == general_settings(task.env) else "tuned"


def count_parameters(model: OnPolicyAlgorithm) -> tuple[int, int]:
    """Parameters of the actor, from observation to action, and of the whole policy."""
    critic = ("lstm_critic", "critic", "value_net", "mlp_extractor.value_net", "vf_features_extractor")
    counts = {name: parameter.numel() for name, parameter in model.policy.named_parameters()}
    return sum(n for name, n in counts.items() if not name.startswith(critic)), sum(counts.values())


def read_curve(run: Path) -> Iterator[dict[str, Any]]:
    """The periodic evaluations of a run folder, and what training had taken by then."""
    with (run / "progress.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line.get("eval/mean_reward")]
    with np.load(run / "evaluations.npz") as evaluations:
        for line, step, returns in zip(lines, evaluations["timesteps"], evaluations["results"], strict=True):
            yield dict(
                step=int(step),
                mean_return=float(returns.mean()),
                std_return=float(returns.std()),
                wall_s=float(line["time/training_s"]),
                cpu_s=float(line["time/training_cpu_s"]),
            )


def summary(rows: Sequence[Row]) -> str:
    """The results as Markdown: returns; parameters of the actor and seconds to the goal; returns under disturbances."""
    trained = {(key, name): (key, trained_as(key, name)) for key, name in PAIRS}
    found = {pair: [row for row in rows if (row.task, row.contender) == trained[pair]] for pair in PAIRS}
    returns = [
        table(found, names, lambda task, at: returns_cell(at), "steps", at_least)
        for names, at_least in ((TUNED, 1), (UNTUNED, 1), (WIRED, 2))
    ]
    costs = table(found, TUNED, lambda task, at: cost_cell(at, task.goal), "goal", at_least=1)
    worlds = ["| task, policy | " + " | ".join(WORLDS) + " |", "|---" * (len(WORLDS) + 1) + "|"]
    for key, task in SUITE.items():
        for name in ROBUST if task.disturbed_steps else ():
            if found[key, name]:
                cells = " | ".join(returns_cell(found[key, name], world) for world in WORLDS)
                worlds.append(f"| {key}, {CONTENDERS[name].label} | {cells} |")
    return "\n\n".join(part for part in [*returns, costs, "\n".join(worlds)] if part)


def table(
    found: Mapping[tuple[str, str], Sequence[Row]],
    names: Sequence[str],
    cell: Callable[[Task, Sequence[Row]], str],
    of_task: Literal["steps", "goal"],
    at_least: int,
) -> str:
    """Contenders side by side, a line for each task on which `at_least` of them were trained; "" where none was."""
    names = [name for name in names if any(found[key, name] for key in SUITE)]
    lines = [f"| task, {of_task} | " + " | ".join(CONTENDERS[name].label for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for key, task in SUITE.items():
        if sum(bool(found[key, name]) for name in names) >= at_least:
            figure = f"{task.steps:,}" if of_task == "steps" else f"{task.goal:g}"
            lines.append(f"| {key}, {figure} | " + " | ".join(cell(task, found[key, n]) for n in names) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def returns_cell(rows: Sequence[Row], world: str = "undisturbed") -> str:
    """Interquartile mean of the best models over fresh episodes; 95 % interval, of several; how many there are."""
    returns = np.array([row.mean_return for row in rows if (row.model, row.world) == ("best", world)])
    if not len(returns):
        return ""
    middle = round(interquartile_mean(returns))
    if len(returns) == 1:
        return f"{middle} (1)"
    low, high = interval(returns)
    return f"{middle} [{round(low)}, {round(high)}] ({len(returns)})"


def cost_cell(rows: Sequence[Row], goal: float) -> str:
    """Parameters of the actor; median processor seconds until the learning curve first reaches the goal."""
    if not rows:
        return ""
    seeds = {row.seed for row in rows}
    times = {
        seed: [r.cpu_s for r in rows if (r.seed, r.model) == (seed, "curve") and r.mean_return >= goal]
        for seed in seeds
    }
    reached = [min(found) if found else np.inf for found in times.values()]
    median = float(np.median(reached))
    return f"{rows[0].actor_parameters:,}; " + (f"{median:.0f} s" if np.isfinite(median) else "not reached")


def interquartile_mean(returns: npt.NDArray[np.float64], axis: int = -1) -> Any:
    """The mean without the lowest and the highest quarter (Agarwal et al., NeurIPS 2021)."""
    return stats.trim_mean(returns, 0.25, axis=axis)


def interval(returns: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile bootstrap of the interquartile mean over the seeds of one task, its stratum."""
    found = stats.bootstrap((returns,), interquartile_mean, n_resamples=2000, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def plot(rows: Sequence[Row], path: Path, x: Literal["step", "cpu_s"]) -> None:
    """Learning curves of tuned and stock contenders, by steps or seconds: interquartile mean and range of the seeds."""
    keys = [key for key in SUITE if any(row.task == key for row in rows)]
    n_columns = min(len(keys), 4)
    n_lines = -(-len(keys) // n_columns)
    figure, axes = pyplot.subplots(
        n_lines, n_columns, figsize=(4 * n_columns, 3 * n_lines + 0.6), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(keys) :]:
        axis.set_axis_off()
    for axis, key in zip(axes.flat, keys, strict=False):
        for color, name in enumerate((*TUNED, *UNTUNED)):
            points = [row for row in rows if (row.task, row.contender, row.model) == (key, name, "curve")]
            draw_curve(axis, points, x, f"C{color}", CONTENDERS[name].label)
        axis.set_title(SUITE[key].env, fontsize=9)
        axis.set_xlabel("steps" if x == "step" else "processor seconds", fontsize=8)
        axis.tick_params(labelsize=7)
        if x == "cpu_s":
            axis.set_xscale("log")
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_curve(axis: Axes, points: Sequence[Row], x: Literal["step", "cpu_s"], color: str, label: str) -> None:
    """One contender's curve on one task; nothing where it has not been trained."""
    by_step: dict[int, list[Row]] = {}
    for point in points:
        by_step.setdefault(point.step, []).append(point)
    if not by_step:
        return
    returns = [np.array([point.mean_return for point in found]) for found in by_step.values()]
    at = [float(np.median([getattr(point, x) for point in found])) for found in by_step.values()]
    axis.plot(at, [interquartile_mean(found) for found in returns], color=color, label=label, linewidth=1.2)
    axis.fill_between(at, list(map(np.min, returns)), list(map(np.max, returns)), color=color, alpha=0.12, linewidth=0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
