"""`Plan`: the settings of an audit's questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gymnasium import Env

from ncp_rl.audit.envelope import episodes_needed
from ncp_rl.audit.perturb import DisturbEnv

#: Environments side by side while recording a run, at most; a replay has as many.
N_ENVS = 10


@dataclass(frozen=True)
class PlannedFault:
    """A fault that begins in mid-episode: a module-level wrapper, its arguments, and the step at which it begins."""

    wrapper: Callable[..., Env[Any, Any]]
    arguments: Mapping[str, Any]
    onset: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of an audit's questions.

    Attributes:
        n_episodes: Number of episodes recorded of each run.
        alpha: False-alarm rate per episode that the monitor promises.
        epsilon: Share of its range by which each observation moves, for the bound on how far the action can move.
        n_moved_steps: Number of steps over which observations move.
        seed: Seed of recorded and of perturbed episodes.
        max_episode_steps: Steps after which episodes of runs are cut; None takes each run's own limit.
        images: Whether to record what the environments of runs render, for the report.
        faults: Faults by name, which the monitor is to find in runs.
        n_fault_episodes: Number of episodes recorded under each fault.
        disturbances: Disturbances of runs by name, with the levels to sweep; where empty, the sweep is left out.
        level_units: Unit of the level of each disturbance, by its name, for the report.
        n_perturb_episodes: Number of episodes of each level.
        n_processes: Number of trials that run at a time, each in a process.
        max_loss: Largest share of the return that a disturbance may cost.
        max_steps: Number of steps of a recording that are held in memory at most. Of a longer one, statistics are taken
            over episodes drawn at random that have so many steps together; questions about every step read it episode
            by episode.
        questions: Names of the questions to ask; the others are skipped. None asks all.

    Raises:
        ValueError: alpha is not between 0 and 1, or max_steps is not positive.
    """

    n_episodes: int = 20
    alpha: float = 0.1
    epsilon: float = 0.01
    n_moved_steps: int = 20
    seed: int = 30_000
    max_episode_steps: int | None = None
    images: bool = False
    faults: Mapping[str, PlannedFault] = field(default_factory=dict)
    n_fault_episodes: int = 10
    disturbances: Mapping[str, tuple[DisturbEnv, Sequence[float]]] = field(default_factory=dict)
    level_units: Mapping[str, str] = field(default_factory=dict)
    n_perturb_episodes: int = 10
    n_processes: int = 1
    max_loss: float = 0.5
    max_steps: int = 100_000
    questions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check alpha and max_steps before anything is recorded."""
        episodes_needed(self.alpha)
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}.")
