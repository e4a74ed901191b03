"""Teach 19 neurons to keep a car on its lane by what a camera sees, and drivers of other kinds beside them.

    python scripts/driver.py                                      # the circuit: run folder, figures
    python scripts/driver.py --contenders ncp lstm-19 lstm-64 feed-forward --seeds 0 1 2
    python scripts/driver.py --report                             # table and plot of what has been measured

The task is that of Lechner et al. (Neural circuit policies enabling auditable autonomy, Nature Machine Intelligence,
2020): 12 inter, 6 command and 1 motor neuron behind a small convolutional head. An instructor that sees the car's true
state says what to do (DAgger); pictures are disturbed in training too. Each driver then drives fresh roads under rising
disturbances, one kind at a time. What stands in the table is not done again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib import pyplot
from ncp_envs.lane_keeping.baseline import Instructor
from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.runs import RunConfig, RunError
from ncp_rl.tables import append_rows, read_rows
from ncp_rl.teach import Lessons, Round, dagger, paired_episodes, teach_run

ROOT = Path(__file__).parents[1]
ENV = "ncp/LaneKeepingCamera-v0"
#: The road lies below row 16; squares of four pixels are averaged.
FRAME: dict[str, Any] = dict(rows=[16, 48], pool=2)
HEAD: dict[str, Any] = dict(
    features_extractor_class="ncp_rl.vision.ConvHead", features_extractor_kwargs=dict(features_dim=32)
)
#: The paper's neurons; each feature reaches half of the inter neurons. Command neurons are wired among themselves three
#: times as densely, and time constants start from up to 10 steps: to find out the wheel offset takes a while.
WIRING: dict[str, Any] = dict(
    recipe="NCP",
    inter_neurons=12,
    command_neurons=6,
    sensory_fanout=6,
    inter_fanout=4,
    recurrent_command_synapses=18,
    motor_fanin=6,
)
#: Policy and its arguments by the name of the driver.
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ncp": ("CnnNCPPolicy", dict(wiring=WIRING, critic="mlp", init=dict(tau=[0.1, 10.0]))),
    "lstm-19": ("CnnLstmPolicy", dict(lstm_hidden_size=19, net_arch=dict(pi=[], vf=[64]), enable_critic_lstm=False)),
    "lstm-64": ("CnnLstmPolicy", dict(lstm_hidden_size=64, net_arch=dict(pi=[], vf=[64]), enable_critic_lstm=False)),
    "feed-forward": ("CnnPolicy", dict(net_arch=dict(pi=[64], vf=[64]))),
}
LABELS = {"ncp": "NCP, 19 neurons", "lstm-19": "LSTM, 19", "lstm-64": "LSTM, 64", "feed-forward": "feed-forward, 64"}
DISTURBANCES = ("light", "shadow", "noise", "missing_markings")
#: The level at which drivers are compared, over as many roads as undisturbed, and those of the curves, over fewer.
LEVEL, LEVELS = 0.5, (0.25, 0.75, 1.0)
N_ROADS, N_ROADS_ELSEWHERE, N_STEPS = 100, 40, 1000
#: Disturbances of the cars that are learned from, an equal share of the cars each.
MIX: tuple[dict[str, float], ...] = (
    {},
    {},
    dict(light=0.6),
    dict(shadow=0.6),
    dict(noise=0.6),
    dict(missing_markings=0.6),
    dict(light=0.4, shadow=0.5),
    dict(noise=0.3, missing_markings=0.4),
)
#: The circuit's steps are ten times those of its head: twice the default.
STEPS = dict(lr_scale=10.0, eps=1e-12, fused=True)
LESSONS = Lessons(n_epochs=5, readout=0.1, feature_pull=0.01)
N_CARS, N_ROUNDS, LAST_EPOCHS, PUSHES = 48, 5, 12, 0.6
#: Roads of the figures; training has seeds of its own, judgements between rounds too.
FRESH_SEED = 9_000_000


@dataclass(frozen=True)
class Row:
    """A line of the table: a driver on roads under a disturbance."""

    contender: str
    seed: int
    disturbance: str
    """One of `DISTURBANCES`, or none."""
    level: float
    n_roads: int
    n_crashed: int
    mean_return: float
    min_return: float
    head_parameters: int
    core_parameters: int
    """From the features to the action."""
    training_cpu_s: float


@dataclass(frozen=True)
class Args:
    """What to teach, and where it lies."""

    contenders: tuple[str, ...] = ("ncp",)
    """ncp, lstm-19, lstm-64, feed-forward."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the networks, the wiring and the lessons."""
    levels: tuple[float, ...] = LEVELS
    """Levels of the disturbances besides 0.5, over fewer roads, for the curves; none leaves them out."""
    table: Path = ROOT / "results" / "driver.csv"
    """Read, and extended by each driver."""
    runs: Path = Path("runs") / "driver"
    """Folder for the run folders, CONTENDER__SEED each."""
    progress_bar: bool = True
    """Show progress and remaining time."""
    report: bool = False
    """Teach nothing; sum up what the table holds."""


def main(args: Args) -> int:
    """Teach and measure what is missing, then sum up."""
    torch.set_num_threads(1)
    unknown = set(args.contenders) - set(CONTENDERS)
    if unknown:
        print(f"error: {sorted(unknown)} are no contenders; there are {', '.join(CONTENDERS)}.", file=sys.stderr)
        return 1
    done = {(row.contender, row.seed) for row in read_rows(args.table, Row)}
    for seed in args.seeds if not args.report else ():
        for contender in args.contenders:
            if (contender, seed) in done:
                continue
            try:
                found = measured(contender, seed, args.runs / f"{contender}__{seed}", args.levels, args.progress_bar)
            except RunError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            append_rows(args.table, found)
    rows = read_rows(args.table, Row)
    if not rows:
        print(f"error: the table {args.table} is empty; begin without --report.", file=sys.stderr)
        return 1
    print(summary(rows))
    matplotlib.use("Agg")
    plot(rows, args.table.with_suffix(".png"))
    return 0


def measured(contender: str, seed: int, folder: Path, levels: Sequence[float], progress_bar: bool) -> list[Row]:
    """Teach a driver, and let it drive."""
    began, models = time.process_time(), list[OnPolicyAlgorithm]()

    def teach(model: OnPolicyAlgorithm, venv: VecEnv) -> list[Round]:
        models.append(model)
        return taught(model, seed, progress_bar)

    for number, r in enumerate(teach_run(config(contender, seed), folder, teach)):
        print(f"{contender} {seed}, round {number}: error {r.taught.error:.3f}, return {np.mean(r.returns):.0f}")
    spent = time.process_time() - began
    (model,) = models
    head, core = count_parameters(model)
    found = []
    for disturbance, level, n_roads in plan(levels):
        roads = LaneKeepingVecEnv(50, ENV, **FRAME, **({} if disturbance == "none" else {disturbance: level}))
        drives = paired_episodes(model, roads, n_roads, seed=FRESH_SEED)
        n_crashed = sum(length < N_STEPS for length in drives.lengths)
        s = drives.summary()
        found.append(
            Row(
                contender=contender,
                seed=seed,
                disturbance=disturbance,
                level=level,
                n_roads=n_roads,
                n_crashed=n_crashed,
                mean_return=s["mean_return"],
                min_return=s["min_return"],
                head_parameters=head,
                core_parameters=core,
                training_cpu_s=spent,
            )
        )
    return found


def config(contender: str, seed: int) -> RunConfig:
    """What `evaluate`, `record`, `audit` and `train --init` need of a driver."""
    policy, arguments = CONTENDERS[contender]
    kwargs = HEAD | arguments
    if contender == "ncp":
        kwargs |= dict(wiring=WIRING | dict(seed=seed), optimizer_kwargs=STEPS)
    return RunConfig(ENV, dict(policy=policy, policy_kwargs=kwargs, env_kwargs=FRAME, n_steps=256), seed=seed)


def taught(model: OnPolicyAlgorithm, seed: int, progress_bar: bool) -> list[Round]:
    """Let a model drive disturbed and pushed cars, and learn what the instructor does; the best round's is kept."""
    cars, judged = (
        LaneKeepingVecEnv(N_CARS, ENV, **FRAME, **mixed(N_CARS)),
        LaneKeepingVecEnv(40, ENV, **FRAME, **mixed(40)),
    )
    return dagger(
        model,
        cars,
        Instructor(),
        LESSONS,
        n_rounds=N_ROUNDS,
        n_steps=N_STEPS,
        last_epochs=LAST_EPOCHS,
        privilege=lambda venv: np.stack(venv.get_attr("true_state")),
        pushes=PUSHES,
        judging_venv=judged,
        n_judging_episodes=40,
        seed=1_000 * seed,
        progress_bar=progress_bar,
    )


def mixed(n_cars: int) -> dict[str, list[float]]:
    """Levels of each car."""
    groups = [MIX[i * len(MIX) // n_cars] for i in range(n_cars)]
    return {name: [group.get(name, 0.0) for group in groups] for name in DISTURBANCES}


def plan(levels: Sequence[float]) -> Iterator[tuple[str, float, int]]:
    """Disturbance, level and number of roads of each measurement."""
    yield "none", 0.0, N_ROADS
    for name in DISTURBANCES:
        yield name, LEVEL, N_ROADS
        for level in levels:
            yield name, level, N_ROADS_ELSEWHERE


def count_parameters(model: OnPolicyAlgorithm) -> tuple[int, int]:
    """Parameters of the head, and from its features to the action."""
    counts = {name: parameter.numel() for name, parameter in model.policy.named_parameters()}
    core = ("lstm_actor", "mlp_extractor.policy_net", "action_net")
    head = sum(parameter.numel() for parameter in model.policy.pi_features_extractor.parameters())
    return head, sum(n for name, n in counts.items() if name.startswith(core))


def summary(rows: Sequence[Row]) -> str:
    """The drivers as Markdown: mean return and crashes, without a disturbance and at `LEVEL` of each."""
    worlds = ["none", *DISTURBANCES]
    lines = [
        "| driver | parameters of head, rest | " + " | ".join(worlds) + " |",
        "|---" * (len(worlds) + 2) + "|",
    ]
    for name in CONTENDERS:
        own = [row for row in rows if row.contender == name]
        if own:
            cells = [cell([r for r in own if r.disturbance == world and r.level in (0.0, LEVEL)]) for world in worlds]
            counts = f"{own[0].head_parameters:,}, {own[0].core_parameters:,}"
            n_seeds = len({row.seed for row in own})
            lines.append(f"| {LABELS[name]} ({n_seeds}) | {counts} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(rows: Sequence[Row]) -> str:
    """Mean return over the seeds, and the crashes of all."""
    if not rows:
        return ""
    mean = np.mean([row.mean_return for row in rows])
    return f"{mean:.0f}; {sum(row.n_crashed for row in rows)} of {sum(row.n_roads for row in rows)} crashed"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Mean return and share of crashes over rising levels, a column for each disturbance."""
    figure, axes = pyplot.subplots(
        2, len(DISTURBANCES), figsize=(13, 5.5), sharex=True, sharey="row", layout="constrained"
    )
    for column, disturbance in enumerate(DISTURBANCES):
        for color, name in enumerate(CONTENDERS):
            own = [row for row in rows if row.contender == name and row.disturbance in ("none", disturbance)]
            levels = sorted({row.level for row in own})
            at = [[row for row in own if row.level == level] for level in levels]
            returns = [np.mean([row.mean_return for row in found]) for found in at]
            crashed = [np.mean([row.n_crashed / row.n_roads for row in found]) for found in at]
            axes[0, column].plot(levels, returns, color=f"C{color}", label=LABELS[name] if own else None, marker=".")
            axes[1, column].plot(levels, crashed, color=f"C{color}", marker=".")
        axes[0, column].set_title(disturbance.replace("_", " "), fontsize=10)
        axes[1, column].set_xlabel("level", fontsize=9)
    axes[0, 0].set_ylabel("mean return", fontsize=9)
    axes[1, 0].set_ylabel("share of roads with a crash", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
