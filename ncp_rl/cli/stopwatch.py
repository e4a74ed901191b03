"""Contenders timed side by side: they take turns, so that a machine whose speed drifts slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """How contenders are timed.

    Attributes:
        seconds: For each group of contenders, at least five rounds.
    """

    seconds: float


@dataclass(frozen=True)
class Group:
    """Contenders timed side by side."""

    name: str
    unit: str
    medians: dict[str, float] = field(default_factory=dict)
    """Per contender, in the unit."""

    def table(self) -> str:
        """Medians, and how many times the first contender's each is."""
        first = next(iter(self.medians.values()))
        rows = [
            f"{name:46}{median:14,.2f} {self.unit:8}{median / first:10.3f}" for name, median in self.medians.items()
        ]
        return "\n".join([f"{self.name:46}{'median':>14} {'':8}{'of first':>10}", *rows]) + "\n"


def measure(name: str, unit: str, per_second: float, contenders: dict[str, Run], timing: Timing) -> Group:
    """Median time of each contender, taking turns.

    Args:
        name: Name of the group.
        unit: Unit of the figures.
        per_second: Units in a second; negative for rates: that many units are done in a run.
        contenders: What to run.
        timing: For how long.
    """
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    started = time.perf_counter()
    while time.perf_counter() - started < timing.seconds or len(next(iter(times.values()))) < 5:
        for contender, run in contenders.items():
            times[contender].append(clock(run))
    medians = {contender: statistics.median(values) for contender, values in times.items()}
    rate = per_second < 0
    return Group(name, unit, {c: -per_second / m if rate else m * per_second for c, m in medians.items()})


def clock(run: Run) -> float:
    """Seconds of one run, after one that brings its memory back from the contender before; short ones are repeated."""
    run()
    started, repeats = time.perf_counter(), 0
    while repeats == 0 or time.perf_counter() - started < 1e-1:
        run()
        repeats += 1
    return (time.perf_counter() - started) / repeats


def resident(name: str, pid: int | str = "self") -> int:
    """Bytes of a process, now (VmRSS) or at its peak (VmHWM), as Linux counts; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)
