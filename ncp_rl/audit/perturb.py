"""What happens under disturbances? Return, failures and command neurons against the level of each disturbance.

Every policy runs the same episodes at every level: episode k starts from the same seed, so that differences
come from the disturbance and not from chance. Intervals are 95 % percentile bootstraps over episodes (Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13); those of changes are taken over the differences to
the nominal episodes. Ablated policies (`ncp_rl.audit.ablate`) run the same episodes.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from ncp_rl.audit.ablate import Ablation, ablated
from ncp_rl.audit.cell import Array
from ncp_rl.audit.verdict import Verdict
from ncp_rl.audit.workers import begin_worker
from ncp_rl.policy import NCPPolicy
from ncp_rl.runs import EpisodeBound, Interval, load_run, mean_interval, read_config

#: Disturbs an environment by a level; level 0 leaves it unchanged.
DisturbEnv = Callable[[gym.Env[Any, Any], float], gym.Env[Any, Any]]

# Name and level of a condition, its disturbance and its ablation.
_Condition = tuple[str, float, DisturbEnv | None, Ablation | None]


@dataclass(frozen=True)
class Trial:
    """Episodes of one policy under one condition; episode k starts from seed + k."""

    run: Path
    which: Literal["best", "last"] = "best"
    n_episodes: int = 20
    seed: int = 0
    disturbance: DisturbEnv | None = None
    level: float = 0.0
    ablation: Ablation | None = None
    max_episode_steps: int | None = None


class TrialOutcome(NamedTuple):
    """Outcome of a trial's N episodes."""

    returns: Array
    """(N,) returns, not normalised."""
    failed: Array
    """(N,), 1 where an episode failed and 0 elsewhere; see `failed`."""
    command: list[Array] | None
    """For each episode (T, C), potentials of the command neurons; None for policies without them."""


@dataclass(frozen=True)
class Point:
    """One policy under one condition.

    Attributes:
        policy: Name of the policy.
        condition: Name of the disturbance, or the ablation in words.
        level: Level of the disturbance; 0 for ablations.
        mean_return: Mean return of the episodes.
        return_change: Paired difference to the nominal episodes.
        failure_rate: Share of failed episodes.
        command_deviation: Root mean square difference of the command neurons' potentials to the same steps of the
            nominal episode; None for policies without command neurons.
    """

    policy: str
    condition: str
    level: float
    mean_return: Interval
    return_change: Interval
    failure_rate: Interval
    command_deviation: Interval | None


@dataclass(frozen=True)
class Perturbation:
    """Points of all policies, conditions and levels, and the nominal (undisturbed) point of each policy.

    Attributes:
        nominal: The nominal point of each policy, by its name.
        points: The other points, in the order of policies, conditions and levels.
        level_zero_is_nominal: Whether every episode at level 0 equals the nominal one exactly; None without a level 0.
        n_episodes: Number of episodes of each point.
        seed: Seed of the first episode.
    """

    nominal: Mapping[str, Point]
    points: tuple[Point, ...]
    level_zero_is_nominal: bool | None
    n_episodes: int
    seed: int

    def verdict(self, policy: str, *, max_loss: float = 0.5) -> Verdict:
        """Return the verdict, which passes where no level costs more than `max_loss` of the nominal |return|.

        Where disturbances cost more, the sentence names the option of ncp-rl train that trains under them, each up
        to its lowest level that costs so much.
        """
        own = [point for point in self.points if point.policy == policy]
        worst = min(own, key=lambda point: point.return_change.mean)
        nominal = self.nominal[policy].mean_return.mean
        loss = self._loss(worst)
        sentence = (
            f"{policy}: return {nominal:.1f}; worst under {worst.condition} at {worst.level:g}: "
            f"{worst.mean_return.mean:.1f} (change {worst.return_change.low:+.1f} to {worst.return_change.high:+.1f}), "
            f"{worst.failure_rate.mean:.0%} of episodes fail."
        )
        if self.level_zero_is_nominal is False:
            sentence += " At level 0 it does not equal the undisturbed run."
        costly = [point for point in own if point.level > 0 and self._loss(point) > max_loss]
        if costly:
            names = dict.fromkeys(point.condition for point in costly)
            lowest = {name: min(point.level for point in costly if point.condition == name) for name in names}
            levels = " ".join(f"{name}=0..{level:g}" for name, level in lowest.items())
            sentence += f" Training under them may help: ncp-rl train --disturb {levels}"
        passed = loss <= max_loss and self.level_zero_is_nominal is not False
        return Verdict("perturbation", passed, sentence, {"loss": loss, "failure_rate": worst.failure_rate.mean})

    def _loss(self, point: Point) -> float:
        """Return the loss at a point, as a share of the policy's nominal |return|."""
        return -point.return_change.mean / max(abs(self.nominal[point.policy].mean_return.mean), 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of audit.json."""
        plain = asdict(self)
        for point in (*plain["nominal"].values(), *plain["points"]):
            point |= {name: value._asdict() for name, value in point.items() if isinstance(value, Interval)}
        return plain


def perturb(
    runs: Mapping[str, Path],
    disturbances: Mapping[str, tuple[DisturbEnv, Sequence[float]]],
    *,
    ablations: Sequence[Ablation] = (),
    which: Literal["best", "last"] = "best",
    n_episodes: int = 20,
    seed: int = 0,
    max_episode_steps: int | None = None,
    n_processes: int = 1,
    progress_bar: bool = False,
) -> Perturbation:
    """Sweep every disturbance over its levels, and every ablation, for every policy.

    Args:
        runs: Run folders by name of the policy; NCPs or baselines.
        disturbances: A module-level function and the levels to try, by the disturbance's name.
        ablations: Ablations of policies that are NCPs; other policies skip them.
        which: "best" or "last" model of each run.
        n_episodes: Episodes of each point, which run side by side.
        seed: Seed of the first episode.
        max_episode_steps: Steps after which episodes are cut; None takes each run's own limit.
        n_processes: Number of trials that run at a time, each in a process.
        progress_bar: Whether to show progress.

    Raises:
        ncp_rl.runs.RunError: A run folder is missing or damaged, or an episode does not end.
    """
    conditions: list[_Condition] = [("nominal", 0.0, None, None)]
    conditions += [(name, level, wrap, None) for name, (wrap, levels) in disturbances.items() for level in levels]
    conditions += [(str(ablation), 0.0, None, ablation) for ablation in ablations]
    keys = [(policy, *condition) for policy in runs for condition in conditions]
    trials = [
        Trial(
            runs[policy],
            which,
            n_episodes,
            seed=seed,
            disturbance=wrap,
            level=level,
            ablation=ablation,
            max_episode_steps=max_episode_steps,
        )
        for policy, _, level, wrap, ablation in keys
    ]
    outcomes = dict(
        zip(
            [key[:3] for key in keys],
            tqdm(_outcomes(trials, n_processes), "perturb", len(trials), disable=not progress_bar),
            strict=True,
        )
    )
    nominal = {policy: outcomes[policy, "nominal", 0.0] for policy in runs}
    points = {key: _point(*key, outcome, nominal[key[0]]) for key, outcome in outcomes.items() if outcome}
    at_zero = [
        _equal(outcomes[policy, name, 0.0], nominal[policy])
        for policy in runs
        for name, (_, levels) in disturbances.items()
        if 0.0 in levels
    ]
    return Perturbation(
        nominal={policy: points.pop((policy, "nominal", 0.0)) for policy in runs},
        points=tuple(points.values()),
        level_zero_is_nominal=all(at_zero) if at_zero else None,
        n_episodes=n_episodes,
        seed=seed,
    )


def roll_out(trial: Trial) -> TrialOutcome | None:
    """Run a trial's episodes side by side; return None for an ablation of a policy that is not an NCP."""
    wrap: dict[str, Any] = {}
    if trial.disturbance is not None:
        wrap = dict(wrapper_class=trial.disturbance, wrapper_kwargs=dict(level=trial.level))
    limit = trial.max_episode_steps
    model, venv = load_run(trial.run, which=trial.which, n_envs=trial.n_episodes, max_episode_steps=limit, **wrap)
    try:
        policy = model.policy
        if not isinstance(policy, NCPPolicy):
            return _episodes(model, venv, trial.seed) if trial.ablation is None else None
        with ablated(policy, trial.ablation):
            return _episodes(model, venv, trial.seed)
    finally:
        venv.close()


def failed(info: Mapping[str, Any], terminated: bool) -> bool:
    """Return whether an episode failed: by `is_success`, else `crash` of its last info, else by `terminated`."""
    if "is_success" in info:
        return not info["is_success"]
    return bool(info.get("crash", terminated))


def _episodes(model: OnPolicyAlgorithm, venv: VecEnv, seed: int) -> TrialOutcome:
    """Return the first episode of every environment."""
    command = model.policy.wiring.command if isinstance(model.policy, NCPPolicy) else None
    venv.seed(seed)
    observation, state, starts = venv.reset(), None, np.ones(venv.num_envs, bool)
    running, returns, failures = starts.copy(), np.zeros(venv.num_envs), np.zeros(venv.num_envs)
    traces: list[list[Array]] = [[] for _ in range(venv.num_envs)]
    bound = EpisodeBound(venv)
    while running.any():
        action, state = model.predict(observation, state, starts, deterministic=True)  # type: ignore[arg-type]
        if command is not None and state is not None:
            for env in np.flatnonzero(running):
                traces[env].append(state[0][0, env, command].astype(np.float64))
        observation, rewards, starts, infos = venv.step(action)
        bound.count(starts)
        returns[running] += rewards[running]
        for env in np.flatnonzero(running & starts):
            failures[env] = failed(infos[env], not infos[env].get("TimeLimit.truncated", False))
        running &= ~starts
    has_command = command is not None and command.stop > command.start
    return TrialOutcome(returns, failures, [np.stack(trace) for trace in traces] if has_command else None)


def _outcomes(trials: Sequence[Trial], n_processes: int) -> Iterable[TrialOutcome | None]:
    """Yield the outcomes of trials in order, from `n_processes` processes."""
    if n_processes == 1:
        yield from map(roll_out, trials)
        return
    # Forked processes would inherit the threads of PyTorch and Numba in whatever state they are.
    context = multiprocessing.get_context("spawn")
    envs = {read_config(run).env for run in {trial.run for trial in trials}}
    specs = [gym.registry[env] for env in envs if env in gym.registry]
    with ProcessPoolExecutor(n_processes, context, _begin_process, (specs,)) as pool:
        yield from pool.map(roll_out, trials)


def _begin_process(specs: Sequence[EnvSpec]) -> None:
    """Prepare a new process: one thread, and the environments of the runs, which this process has not registered."""
    begin_worker()
    for spec in specs:
        if isinstance(spec.entry_point, str):
            importlib.import_module(spec.entry_point.partition(":")[0])
        gym.registry.setdefault(spec.id, spec)


def _point(policy: str, condition: str, level: float, outcome: TrialOutcome, nominal: TrialOutcome | None) -> Point:
    assert nominal is not None
    deviation = None
    if outcome.command is not None and nominal.command is not None:
        pairs = zip(outcome.command, nominal.command, strict=True)
        deviation = mean_interval(np.array([_rms_difference(*pair) for pair in pairs]))
    return Point(
        policy=policy,
        condition=condition,
        level=level,
        mean_return=mean_interval(outcome.returns),
        return_change=mean_interval(outcome.returns - nominal.returns),
        failure_rate=mean_interval(outcome.failed),
        command_deviation=deviation,
    )


def _rms_difference(trace: Array, nominal: Array) -> float:
    """Return the root mean square difference over the steps that both episodes have."""
    n_steps = min(len(trace), len(nominal))
    return float(np.sqrt(np.mean((trace[:n_steps] - nominal[:n_steps]) ** 2)))


def _equal(outcome: TrialOutcome | None, nominal: TrialOutcome | None) -> bool:
    assert outcome is not None and nominal is not None
    same = np.array_equal(outcome.returns, nominal.returns)
    return same and all(map(np.array_equal, outcome.command or [], nominal.command or []))
