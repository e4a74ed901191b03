"""What a sweep leaves: a table of trials, plots, and the best settings of each environment in rl-zoo's form."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ncp_rl.distributed.search import setting_score
from ncp_rl.distributed.space import Dimension, dimensions, number
from ncp_rl.distributed.trial import Sweep, Trial, read_curve, read_record
from ncp_rl.extras import require
from ncp_rl.runs.folder import write_file
from ncp_rl.tables import append_rows, read_rows


@dataclass(frozen=True)
class Row:
    """A trial, as a row of trials.csv."""

    environment: str
    setting: int
    seed: int
    status: str
    """finished, stopped (early, since its return lay behind), failed, or unfinished."""
    steps: int
    """Environment steps up to the last evaluation."""
    best_return: float
    """Mean return of the best periodic evaluation; NaN where there was none."""
    last_return: float
    """Mean return of the last evaluation."""
    seconds: float
    """Seconds that the training took on the clock."""
    settings: str
    """The values of the setting, as JSON by dotted name."""
    folder: str
    """The run folder, in that of the sweep."""
    message: str
    """Why a trial failed."""


class Best(dict[str, tuple[Trial, float]]):
    """By environment, the best setting whose trials have all ended, and its score; see `setting_score`."""


def read_table(out: Path) -> list[Row]:
    """The rows of a sweep's trials.csv; none where there is no file yet."""
    return read_rows(out / "trials.csv", Row)


def write_results(sweep: Sweep, out: Path, trials: Sequence[Trial]) -> Best:
    """Write trials.csv, best.yml and the plots.

    Args:
        sweep: What was tried.
        out: Its folder.
        trials: Those that were handed out, ended or not.
    """
    best = best_settings(sweep, out, trials)
    write_table([row(trial, out) for trial in trials], out / "trials.csv")
    write_best(sweep, best, out / "best.yml")
    for env in sweep.base:
        of_env = [trial for trial in trials if trial.env == env]
        name = env.replace("/", "_").replace(":", "_")
        if any(read_curve(trial.folder(out)).steps for trial in of_env):
            draw_curves(sweep, out, of_env, best.get(env), out / f"curves_{name}.png")
            draw_settings(sweep, out, of_env, out / f"settings_{name}.png")
    return best


def row(trial: Trial, out: Path) -> Row:
    """The row of a trial."""
    folder = trial.folder(out)
    record, curve = read_record(folder), read_curve(folder)
    return Row(
        environment=trial.env,
        setting=trial.setting,
        seed=trial.seed,
        status="unfinished" if record is None else record.status,
        steps=curve.steps[-1] if curve.steps else 0,
        best_return=max(curve.returns, default=math.nan),
        last_return=curve.returns[-1] if curve.returns else math.nan,
        seconds=_seconds(folder / "progress.csv"),
        settings=json.dumps(trial.values),
        folder=str(folder.relative_to(out)),
        message="" if record is None else record.message,
    )


def _seconds(progress: Path) -> float:
    """What the training has taken by the last line of its curve."""
    if not progress.exists():
        return 0.0
    with progress.open(newline="") as file:
        times = [line["time/time_elapsed"] for line in csv.DictReader(file) if line.get("time/time_elapsed")]
    return float(times[-1]) if times else 0.0


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write all rows; the table is whole or not there."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    if rows:
        append_rows(partial, rows)
        partial.replace(path)


def best_settings(sweep: Sweep, out: Path, trials: Sequence[Trial]) -> Best:
    """The best setting of each environment that has one."""
    best = Best()
    for trial in trials:
        if trial.seed != sweep.seeds[0]:
            continue
        score = setting_score(sweep, out, trial)
        if score is not None and math.isfinite(score) and (trial.env not in best or score > best[trial.env][1]):
            best[trial.env] = (trial, score)
    return best


def write_best(sweep: Sweep, best: Mapping[str, tuple[Trial, float]], path: Path) -> None:
    """Write the best settings in rl-zoo's form, as `ncp_rl.runs.read_hyperparams` and rl-zoo read it."""
    require("cli", "yaml", by="A file of hyperparameters")
    import yaml

    seeds = f"seed{'s' if len(sweep.seeds) > 1 else ''} {', '.join(map(str, sweep.seeds))}"
    parts = [
        "# The best settings of a sweep by environment, in rl-zoo's form; the return is that of the best periodic\n"
        f"# evaluation, mean over {seeds}. Among many settings the best is lucky too: train it with other seeds.\n"
    ]
    for env, (trial, score) in best.items():
        settings = yaml.safe_dump({env: sweep.config(trial).hyperparams}, sort_keys=False)
        parts.append(f"# setting {trial.setting} of {sweep.n_settings}: return {score:.1f}\n{settings}")
    write_file(path, "\n".join(parts).encode())


def draw_curves(sweep: Sweep, out: Path, trials: Sequence[Trial], best: tuple[Trial, float] | None, path: Path) -> None:
    """Learning curves of all trials of an environment; those of the best setting stand out."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    chosen = None if best is None else best[0].setting
    for trial in sorted(trials, key=lambda trial: trial.setting == chosen):
        curve, record = read_curve(trial.folder(out)), read_record(trial.folder(out))
        if not curve.steps:
            continue
        is_best = trial.setting == chosen
        look: dict[str, Any] = dict(color="C0", linewidth=2) if is_best else dict(color="0.7", linewidth=0.8)
        axis.plot(*curve, **look, label=f"setting {trial.setting}, the best" if is_best else "other settings")
        if record is not None and record.status != "finished":
            marker = "x" if record.status == "failed" else "|"
            axis.plot(curve.steps[-1], curve.returns[-1], marker, color=look["color"], label=record.status)
    axis.set_title(trials[0].env)
    axis.set_xlabel("environment steps")
    axis.set_ylabel(f"return, mean over {sweep.n_eval_episodes} episodes")
    labelled = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(labelled.values(), labelled.keys(), fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def draw_settings(sweep: Sweep, out: Path, trials: Sequence[Trial], path: Path) -> None:
    """The best return of each trial of an environment over the value of each varied setting."""
    space = dimensions(sweep.spaces[trials[0].env])
    n_columns = min(len(space), 3)
    n_lines = -(-len(space) // n_columns)
    figure = Figure(figsize=(3.6 * n_columns, 2.8 * n_lines + 0.8), layout="constrained")
    axes = figure.subplots(n_lines, n_columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(space) :]:
        axis.set_axis_off()
    found = [(trial, read_curve(trial.folder(out)), read_record(trial.folder(out))) for trial in trials]
    for status, marker in (("finished", "o"), ("stopped", "|"), ("failed", "x"), ("unfinished", ".")):
        points = [
            (trial.values, max(curve.returns))
            for trial, curve, record in found
            if curve.returns and (record.status if record else "unfinished") == status
        ]
        for axis, dimension in zip(axes.flat, space, strict=False):
            at = [_place(dimension, values[dimension.name]) for values, _ in points]
            axis.plot(
                at,
                [best for _, best in points],
                marker,
                color="C0",
                alpha=0.7,
                label=status if points else None,
            )
    for axis, dimension in zip(axes.flat, space, strict=False):
        _label_axis(axis, dimension)
    for line in axes:
        line[0].set_ylabel("best return", fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(trials[0].env, fontsize=10)
    figure.savefig(path, dpi=120)


def _place(dimension: Dimension, value: Any) -> float:
    """Where a value stands on the axis: a number, or the place of a choice."""
    if dimension.kind == "choice":
        return float(dimension.values.index(value))
    return number(value)


def _label_axis(axis: Axes, dimension: Dimension) -> None:
    axis.set_xlabel(dimension.name + (" (falls linearly)" if dimension.linear else ""), fontsize=8)
    axis.tick_params(which="both", labelsize=7)
    if dimension.kind == "choice":
        labels = [text if len(text := json.dumps(value)) <= 20 else f"{text[:19]}…" for value in dimension.values]
        slanted: dict[str, Any] = dict(rotation=25, ha="right") if max(map(len, labels)) > 6 else {}
        axis.set_xticks(np.arange(len(labels)), labels, **slanted)
        axis.set_xlim(-0.5, len(dimension.values) - 0.5)
        return
    if dimension.kind.startswith("log"):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        low, high = np.log(dimension.values)
        axis.set_xlim(np.exp(low - 0.04 * (high - low)), np.exp(high + 0.04 * (high - low)))
        return
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=dimension.kind == "int"))
    low, high = dimension.values
    axis.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
