"""Measure the memory and the time that verify, replay and audit take by the number of steps in a recording.

    python scripts/lengths.py                                  # 10^5, 3 10^5 and 10^6 steps, into results/lengths.json
    python scripts/lengths.py --steps 20000 60000              # shorter ones

An untrained circuit steers 16 cars. Each figure is that of a process of its own: its peak (VmHWM, as Linux counts), and
the seconds of processor that it took. Growth, in bytes a step, is that between the shortest and the longest recording.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
from sb3_contrib import RecurrentPPO

from ncp_rl import NCPPolicy
from ncp_rl.audit import audit_sources, write_report
from ncp_rl.audit.workers import begin_worker
from ncp_rl.cli.stopwatch import resident
from ncp_rl.recording import Recording, record_rollouts, replay, verify

ROOT = Path(__file__).parents[1]
N_CARS = 16
#: Steps of an untrained driver's episode, on average.
EPISODE_STEPS = 25


@dataclass(frozen=True)
class Args:
    """How long."""

    steps: tuple[int, ...] = (100_000, 300_000, 1_000_000)
    """Steps of each recording, about."""
    tasks: tuple[str, ...] = ("open", "verify", "replay", "audit")
    """What to measure."""
    out: Path = ROOT / "results" / "lengths.json"
    """File for the figures."""
    folder: Path | None = None
    """Folder for the recordings, some 600 bytes a step, which are removed at the end. Default: that of temporary
    files."""


def record(path: Path, n_steps: int) -> None:
    """Record a file of so many steps, about."""
    venv = LaneKeepingVecEnv(N_CARS)
    model = RecurrentPPO(NCPPolicy, venv, seed=0, device="cpu", policy_kwargs=dict(elapsed_time=0.05))
    record_rollouts(model, venv, path, n_episodes=n_steps // EPISODE_STEPS, progress_bar=False)


def audit(path: Path) -> None:
    """Audit a recording, and write its report."""
    found = audit_sources([path], path.with_suffix(".audit"))
    write_report(found, path.with_suffix(".audit") / "report.html")


TASKS: dict[str, Callable[[Path], object]] = {
    "open": Recording.open,
    "verify": verify,
    "replay": replay,
    "audit": audit,
}


def measured(task: str, path: Path) -> dict[str, float]:
    """Do a task in this process; return its peak in MiB and the seconds of processor that it took."""
    began = time.process_time()
    TASKS[task](path)
    return {"peak_mib": round(resident("VmHWM") / 2**20, 1), "seconds": round(time.process_time() - began, 1)}


def main(args: Args) -> int:
    """Record, measure, write the figures, print them."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for n_steps in args.steps:
            path = Path(folder) / f"{n_steps}.mcap"
            record(path, n_steps)
            row = {"steps": sum(Recording.open(path).lengths), "mib": round(path.stat().st_size / 2**20, 1)}
            for task in args.tasks:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin_worker) as pool:
                    row |= {f"{task}_{k}": v for k, v in pool.submit(measured, task, path).result().items()}
            print(json.dumps(row), flush=True)
            rows.append(row)
    first, last = rows[0], rows[-1]
    growth = {
        task: round(
            (last[f"{task}_peak_mib"] - first[f"{task}_peak_mib"]) * 2**20 / (last["steps"] - first["steps"]), 1
        )
        for task in args.tasks
        if len(rows) > 1
    }
    print(f"bytes a step: {growth}")
    found = {"recordings": rows, "bytes_per_step": growth, "cars": N_CARS, "platform": platform.platform()}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
