"""Record a fleet, audit it with `ncp-rl audit`, and sample the memory of all processes of that audit.

    python scripts/fleet.py                                        # 1,000 recordings, 2.5 million steps: hours
    python scripts/fleet.py --recordings 20 --folder /tmp/fleet    # a small one; goes on where it was interrupted

Each recording is of other seeds, and one of every 25 of another circuit, trained for a moment. One more is cut short,
one has a changed byte and one is no recording: the audit must name these three, and go on. Memory is what the processes
hold (VmRSS, as Linux counts).
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import torch
import tyro
from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from ncp_rl import NCPPolicy
from ncp_rl.audit.fleet import Row, recordings_in
from ncp_rl.cli.stopwatch import resident
from ncp_rl.recording import Recording, record_rollouts
from ncp_rl.tables import read_rows

ROOT = Path(__file__).parents[1]
#: Environments with seconds per step, and episodes that make some 2,500 steps of a policy that has learned little.
TASKS: dict[str, tuple[float, int]] = {
    "ncp/PendulumNoVel-v1": (0.05, 12),
    "ncp/CartPoleNoVel-v1": (0.02, 96),
    "ncp/MountainCarContinuousNoVel-v0": (1.0, 3),
    "ncp/LaneKeeping-v0": (0.05, 96),
}
N_ENVS, PER_CIRCUIT, TRAINED = 8, 25, 2048
#: Seconds between two samples of memory.
SAMPLED = 5.0


@dataclass(frozen=True)
class Args:
    """How many recordings, and where."""

    recordings: int = 1000
    """Recordings, beside the three that are broken."""
    folder: Path = Path("fleet")
    """Folder for recordings/ and audits/; one that exists is gone on with."""
    processes: int = 1
    """Recordings that are audited at a time."""
    audit: tuple[str, ...] = ()
    """More arguments of ncp-rl audit, behind "--"."""
    out: Path = ROOT / "results" / "fleet.json"
    """File for the figures."""


def record(folder: Path, n_recordings: int) -> None:
    """Record what the folder lacks, and break three."""
    folder.mkdir(parents=True, exist_ok=True)
    model: RecurrentPPO | None = None
    circuit = -1
    for i in tqdm(range(n_recordings), "record", unit="file"):
        path = folder / f"flight_{i:04d}.mcap"
        if path.exists() and Recording.open(path).ending == "finished":
            continue
        path.unlink(missing_ok=True)
        if circuit != i // PER_CIRCUIT:
            circuit = i // PER_CIRCUIT
            model = _trained(circuit)
        assert model is not None
        n_episodes = TASKS[_task(circuit)][1]
        record_rollouts(model, _venv(model), path, n_episodes=n_episodes, seed=1000 * i, progress_bar=False)
    whole = (folder / "flight_0000.mcap").read_bytes()
    (folder / "broken_cut.mcap").write_bytes(whole[: len(whole) // 2])
    (folder / "broken_changed.mcap").write_bytes(whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
    (folder / "broken_text.mcap").write_text("This is no recording.\n")


def _venv(model: RecurrentPPO) -> VecEnv:
    venv = model.get_env()
    assert venv is not None
    return venv


def _task(circuit: int) -> str:
    return list(TASKS)[circuit % len(TASKS)]


def _trained(circuit: int) -> RecurrentPPO:
    """Train a circuit for a moment on its task."""
    task = _task(circuit)
    venv = LaneKeepingVecEnv(N_ENVS) if "Lane" in task else make_vec_env(task, N_ENVS)
    kwargs: dict[str, Any] = dict(n_steps=128, batch_size=128, n_epochs=2, seed=circuit, device="cpu")
    model = RecurrentPPO(NCPPolicy, venv, policy_kwargs=dict(elapsed_time=TASKS[task][0]), **kwargs)
    return model.learn(TRAINED)


def audit(args: Args) -> list[dict[str, float]]:
    """Audit the folder in a process of its own; return the memory of it and of its processes over time."""
    command = [sys.executable, "-m", "ncp_rl", "audit", str(args.folder / "recordings")]
    command += ["--out", str(args.folder / "audits"), "--processes", str(args.processes), *args.audit]
    process, began, samples = subprocess.Popen(command), time.perf_counter(), list[dict[str, float]]()
    while process.poll() is None:
        held = {pid: resident("VmRSS", pid) / 2**20 for pid in (process.pid, *_children(process.pid))}
        workers = [held[pid] for pid in held if pid != process.pid]
        seconds = time.perf_counter() - began
        sample = dict(seconds=seconds, parent_mib=held[process.pid], largest_worker_mib=max(workers, default=0.0))
        samples.append({name: round(value, 1) for name, value in sample.items()})
        time.sleep(SAMPLED)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}.")
    return samples


def _children(pid: int) -> Iterator[int]:
    """Yield the processes that a process started, and those that they did."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # It has ended.
            continue
        if parent == pid:
            yield int(path.parent.name)
            yield from _children(int(path.parent.name))


def figures(args: Args, samples: list[dict[str, float]]) -> dict[str, Any]:
    """Return what the table says, and the memory of the processes of the last call."""
    recordings, audits = args.folder / "recordings", args.folder / "audits"
    rows = read_rows(audits / "fleet.csv", Row)
    return {
        "recordings": len(rows),
        "steps": sum(row.n_steps for row in rows),
        "episodes": sum(row.n_episodes for row in rows),
        "mib": round(sum(path.stat().st_size for path in recordings_in(recordings)) / 2**20),
        "unreadable": sorted(row.recording for row in rows if row.error),
        "failed": sorted(row.recording for row in rows if row.bad and not row.error),
        "processes": args.processes,
        "seconds_of_all_audits": round(sum(row.seconds for row in rows)),
        "index_kib": round((audits / "index.html").stat().st_size / 2**10),
        "worker_peak_mib": round(max(row.peak_mib for row in rows)),
        "parent_peak_mib": round(max(sample["parent_mib"] for sample in samples)),
        "samples": samples[:: len(samples) // 200 + 1],
        "platform": platform.platform(),
    }


def main(args: Args) -> int:
    """Record, audit, write the figures."""
    torch.set_num_threads(1)
    record(args.folder / "recordings", args.recordings)
    found = figures(args, audit(args))
    args.out.write_text(json.dumps(found) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
