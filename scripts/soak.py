"""Record and monitor many lane keepers for a long time: does memory grow, and is every step in the recording?

    python scripts/soak.py                          # 64 cars at 20 Hz for 30 minutes, into results/soak.json
    python scripts/soak.py --minutes 0.2 --hertz 0  # as fast as it goes

An untrained circuit steers the cars, so that most episodes end early and episodes are many. Its neurons are recorded
and watched in every step. Memory is what the process holds (VmRSS, as Linux counts); its slope is fitted to the samples
after the warm-up. The recording is verified at the end, and its steps are counted. The exit status is 1 where one is
missing, or where the recording is not intact.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from ncp_rl import NCPPolicy
from ncp_rl.audit import Envelope, LiveMonitor, fit_conformal
from ncp_rl.cli.stopwatch import resident
from ncp_rl.recording import Recording, record_rollouts, verify
from ncp_rl.recording.trace import PolicyTap

ROOT = Path(__file__).parents[1]
#: Seconds between two samples of memory.
SAMPLED = 1.0
#: Share of the time that counts as warm-up.
WARM_UP = 1 / 5
#: Episodes that the monitor's envelope comes from, and its rate of false alarms per episode.
N_CLEAN, ALPHA = 128, 0.05
#: More episodes than any soak has.
ENDLESS = 2**31


@dataclass(frozen=True)
class Args:
    """How long, how many cars, and how fast."""

    minutes: float = 30.0
    """Minutes of recording and monitoring."""
    cars: int = 64
    """Cars side by side."""
    hertz: float = 20.0
    """Steps a second of each car; 0: as fast as it goes."""
    seed: int = 0
    """Seed of policy and cars."""
    out: Path = ROOT / "results" / "soak.json"
    """File for the figures."""
    folder: Path | None = None
    """Folder for the recordings, which take some 30 MB a minute at the default rate and are removed at the end.
    Default: that of temporary files."""


class _TimeUpError(Exception):
    """Ends a rollout that would go on without end."""


class Soaked(VecEnvWrapper):
    """Environments whose driver is watched in each step, at a fixed rate, until the time is up.

    Attributes:
        n_steps: Number of steps taken so far, each of all environments.
        n_late: Number of steps that began later than the rate asks for.
        n_ended: Number of episodes that ended.
        samples: Seconds since the beginning and bytes of memory, once in `SAMPLED` seconds.
    """

    def __init__(self, venv: VecEnv, policy: NCPPolicy, monitor: LiveMonitor, *, hertz: float, seconds: float) -> None:
        """Watch `policy` by `monitor` for so many seconds."""
        super().__init__(venv)
        self.n_steps = self.n_late = self.n_ended = 0
        self.samples: list[tuple[float, int]] = []
        self.monitor, self._tap = monitor, PolicyTap(policy)
        self._hertz, self._seconds, self._began = hertz, seconds, time.perf_counter()

    def reset(self) -> Any:
        """Start all environments, and the clock."""
        self._began = time.perf_counter()
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Watch the neurons of the step, wait until it is due, and take it.

        Raises:
            _TimeUpError: The time is up.
        """
        self._sample()
        if time.perf_counter() - self._began >= self._seconds:
            raise _TimeUpError
        seen = self._tap.seen
        assert seen is not None
        self.monitor.observe((seen.potentials.numpy(),), seen.episode_starts.numpy()[0])
        if self._hertz:
            rest = self.n_steps / self._hertz - (time.perf_counter() - self._began)
            self.n_late += rest < -1 / self._hertz
            time.sleep(max(rest, 0.0))
        result = self.venv.step_wait()
        self.n_steps += 1
        self.n_ended += int(np.count_nonzero(result[2]))
        return result

    def close(self) -> None:
        """Stop watching, and close the environments."""
        self._tap.close()
        super().close()

    def _sample(self) -> None:
        now = time.perf_counter() - self._began
        if now >= SAMPLED * len(self.samples):
            self.samples.append((now, resident("VmRSS")))


def soak(args: Args, folder: Path) -> dict[str, Any]:
    """Record and watch, and return the figures."""
    torch.set_num_threads(1)
    cars = LaneKeepingVecEnv(args.cars)
    model = RecurrentPPO(NCPPolicy, cars, seed=args.seed, device="cpu", policy_kwargs=dict(elapsed_time=0.05))
    assert isinstance(model.policy, NCPPolicy)
    monitor = LiveMonitor(_envelope(model, cars, folder / "clean.mcap", args.seed))
    soaked = Soaked(cars, model.policy, monitor, hertz=args.hertz, seconds=60 * args.minutes)
    path = folder / "soak.mcap"
    try:
        record_rollouts(model, soaked, path, n_episodes=ENDLESS, seed=args.seed + 1, progress_bar=False)
    except _TimeUpError:  # The recording is closed, and sealed.
        pass
    peak = resident("VmHWM")
    soaked.close()
    verification = verify(path)
    recorded = sum(Recording.open(path).lengths)
    return {
        "minutes": args.minutes,
        "cars": args.cars,
        "hertz": args.hertz,
        "steps_taken": args.cars * soaked.n_steps,
        "steps_recorded": recorded,
        "late_ticks": soaked.n_late,
        "episodes_ended": soaked.n_ended,
        "alarms": len(monitor.alarms),
        "verification": str(verification),
        "intact": verification.passed,
        "recording_mib": round(path.stat().st_size / 2**20, 1),
        "peak_mib": round(peak / 2**20, 1),
        **slope(soaked.samples),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "samples_s_mib": [
            (round(s), round(n / 2**20, 2)) for s, n in soaked.samples[:: len(soaked.samples) // 200 + 1]
        ],
    }


def _envelope(model: RecurrentPPO, cars: VecEnv, path: Path, seed: int) -> Envelope:
    record_rollouts(model, cars, path, n_episodes=N_CLEAN, seed=seed, progress_bar=False)
    recording = Recording.open(path)
    return fit_conformal(recording.circuit, list(recording), alpha=ALPHA)


def slope(samples: list[tuple[float, int]]) -> dict[str, float]:
    """Return how fast memory grows after the warm-up, by least squares over samples (seconds, bytes).

    Returns:
        The slope and its standard error where samples are independent, in MiB an hour, and the memory at the beginning,
        after the warm-up and at the end, in MiB.
    """
    table: npt.NDArray[np.float64] = np.array(samples, np.float64) / [3600.0, 2.0**20]
    warm = table[table[:, 0] >= WARM_UP * table[-1, 0]]
    hours, mib = (warm - warm.mean(axis=0)).T
    spread = float(hours @ hours)
    growth = float(hours @ mib) / spread
    deviation = float(np.sum((mib - growth * hours) ** 2)) / max(len(warm) - 2, 1)
    return {
        "slope_mib_per_hour": round(growth, 3),
        "slope_standard_error": round((deviation / spread) ** 0.5, 3),
        "mib_at_the_beginning": round(table[0, 1], 1),
        "mib_after_the_warm_up": round(warm[0, 1], 1),
        "mib_at_the_end": round(table[-1, 1], 1),
    }


def main(args: Args) -> int:
    """Soak, write the figures, print them."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = soak(args, Path(folder))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found) + "\n")
    lost = found["steps_taken"] - found["steps_recorded"]
    print(f"{found['steps_taken']:,} steps of {args.cars} cars in {args.minutes:g} minutes, {lost} not recorded")
    print(f"recording: {found['verification']}, {found['recording_mib']} MiB")
    print(
        f"memory: {found['mib_after_the_warm_up']} MiB after the warm-up, {found['mib_at_the_end']} MiB at the end: "
        f"{found['slope_mib_per_hour']} +- {found['slope_standard_error']} MiB an hour"
    )
    print(f"figures: {args.out}")
    return int(lost != 0 or not found["intact"])


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
