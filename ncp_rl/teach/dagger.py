"""DAgger (Ross, Gordon and Bagnell, AISTATS 2011), and distillation of a trained model by it.

The student drives, the expert says at every step what it would have done, and the student learns from all steps
so far: so it learns to recover from its own mistakes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ncp_rl.lessons import DEFAULT, Lessons
from ncp_rl.runs import EpisodeBound, Evaluation, mean_interval
from ncp_rl.teach.cloning import Imitation, Taught
from ncp_rl.teach.demonstrations import Demonstration, Expert, Privilege, demonstrate, expert_view, frozen_statistics

#: Added to a seed for the environments in which a student is judged.
JUDGING_SEED = 500_000


@dataclass(frozen=True)
class Round:
    """A round of DAgger.

    Attributes:
        expert_share: Share of the steps that the expert drove.
        taught: Result of learning from all rounds so far.
        returns: (E,), returns of the student afterwards, over the same episodes in every round; empty without judging.
    """

    expert_share: float
    taught: Taught
    returns: tuple[float, ...] = ()


def dagger(
    model: OnPolicyAlgorithm,
    venv: VecEnv,
    expert: Expert,
    lessons: Lessons = DEFAULT,
    *,
    n_rounds: int = 5,
    n_steps: int = 1000,
    decay: float = 0.3,
    last_epochs: int | None = None,
    privilege: Privilege | None = None,
    pushes: float = 0.0,
    demonstrations: Sequence[Demonstration] = (),
    judging_venv: VecEnv | None = None,
    n_judging_episodes: int = 20,
    seed: int = 0,
    progress_bar: bool = False,
) -> list[Round]:
    """Teach a model by rounds of driving and learning.

    Args:
        model: A model of PPO or RecurrentPPO.
        venv: N environments to drive in; the model's own, or equal ones.
        expert: The expert; see `demonstrate`.
        lessons: Settings of each round's learning.
        n_rounds: Number of rounds. In the first only the expert drives.
        n_steps: Number of steps of each environment in a round.
        decay: In round r the expert drives a share `decay ** r` of the steps.
        last_epochs: Number of passes in the last round; None takes that of the lessons.
        privilege: Function that returns what the expert sees instead of the observation; see `demonstrate`.
        pushes: Size of pushes; see `demonstrate`.
        demonstrations: Further demonstrations to learn from.
        judging_venv: Environments in which the student is judged after each round, so that the best round's model is
            kept; None keeps the last one's.
        n_judging_episodes: Number of episodes of each judgement, from seeds that nothing else uses.
        seed: Seed of the rounds.
        progress_bar: Whether to show progress.

    Raises:
        ValueError: See `clone` and `demonstrate`.
    """
    if n_rounds < 1 or n_steps < 1:
        raise ValueError(f"n_rounds and n_steps must be at least 1, got {n_rounds} and {n_steps}.")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be a share from 0 to 1, got {decay}.")
    imitation, seen = Imitation(model, lessons), list(demonstrations)
    rounds: list[Round] = []
    best: dict[str, Any] = {}
    for number in range(n_rounds):
        share = decay**number
        seen += demonstrate(
            expert,
            venv,
            n_steps,
            seed=seed + number * venv.num_envs,
            privilege=privilege,
            student=model if share < 1 else None,
            expert_share=share,
            pushes=pushes,
            progress_bar=progress_bar,
        )
        if number == n_rounds - 1 and last_epochs is not None:
            imitation.lessons = replace(lessons, n_epochs=last_epochs)
        taught = imitation.learn(seen, progress_bar=progress_bar)
        returns: tuple[float, ...] = ()
        if judging_venv is not None:
            returns = paired_episodes(model, judging_venv, n_judging_episodes, seed=seed + JUDGING_SEED).returns
        rounds.append(Round(share, taught, returns))
        if number == max(range(len(rounds)), key=lambda i: np.mean(rounds[i].returns) if returns else i):
            best = copy.deepcopy(model.policy.state_dict())
    model.policy.load_state_dict(best)
    return rounds


@dataclass(frozen=True)
class Fidelity:
    """How closely a student follows its teacher.

    Attributes:
        error: Error of the student's actions along its own episodes; see `Taught.error`.
        teacher_returns, student_returns: (E,), returns over episodes with the same starts.
    """

    error: float
    teacher_returns: tuple[float, ...]
    student_returns: tuple[float, ...]

    def summary(self) -> dict[str, float]:
        """Return error, mean returns, and the mean difference of the pairs with its 95 % bootstrap interval."""
        difference = np.subtract(self.student_returns, self.teacher_returns)
        mean, low, high = mean_interval(difference)
        return dict(
            error=self.error,
            teacher_return=float(np.mean(self.teacher_returns)),
            student_return=float(np.mean(self.student_returns)),
            difference=mean,
            difference_low=low,
            difference_high=high,
        )

    def __str__(self) -> str:
        """Return the summary in a line."""
        s = self.summary()
        return (
            f"action error {s['error']:.3f}; return of the student {s['student_return']:.1f}, of the teacher "
            f"{s['teacher_return']:.1f}, difference {s['difference']:.1f} [{s['difference_low']:.1f}, "
            f"{s['difference_high']:.1f}] over {len(self.student_returns)} pairs of episodes"
        )


def distil(
    model: OnPolicyAlgorithm,
    teacher: Expert,
    venv: VecEnv,
    lessons: Lessons = DEFAULT,
    *,
    n_rounds: int = 5,
    n_steps: int = 1000,
    n_episodes: int = 20,
    seed: int = 0,
    progress_bar: bool = False,
    **arguments: Any,
) -> Fidelity:
    """Make an auditable twin of a trained model by `dagger`, and compare both over paired episodes.

    Args:
        model: The student.
        teacher: A trained model of Stable-Baselines3, of any algorithm. If it has a VecNormalize of its own, it
            sees observations normalised by that, else as the environment gives them.
        venv: N environments, such as the student's.
        lessons: As in `dagger`.
        n_rounds: As in `dagger`.
        n_steps: As in `dagger`.
        n_episodes: Number of pairs of episodes at the end.
        seed: Seed of the rounds and of the episodes.
        progress_bar: Whether to show progress.
        **arguments: Further arguments of `dagger`.

    Raises:
        ValueError: See `clone` and `demonstrate`.
    """
    expert = _Normalized(teacher)
    rounds = dagger(
        model,
        venv,
        expert,
        lessons,
        n_rounds=n_rounds,
        n_steps=n_steps,
        seed=seed,
        progress_bar=progress_bar,
        **arguments,
    )
    judged: dict[str, Any] = dict(n_episodes=n_episodes, seed=seed + 2 * JUDGING_SEED)
    teachers = paired_episodes(expert, venv, as_expert=True, privilege=arguments.get("privilege"), **judged)
    students = paired_episodes(model, venv, **judged)
    return Fidelity(rounds[-1].taught.error, teachers.returns, students.returns)


class _Normalized:
    """A teacher whose observations are normalised by its own VecNormalize, if it has one, as in its training."""

    def __init__(self, teacher: Expert) -> None:
        self.teacher = teacher
        self.normalize = teacher.get_vec_normalize_env() if isinstance(teacher, BaseAlgorithm) else None

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        if self.normalize is not None:
            observation = self.normalize.normalize_obs(observation)
        return self.teacher.predict(observation, *args, **kwargs)


def paired_episodes(
    who: Expert,
    venv: VecEnv,
    n_episodes: int,
    *,
    seed: int = 0,
    as_expert: bool = False,
    privilege: Privilege | None = None,
) -> Evaluation:
    """Run episodes whose starts do not depend on who acts: episode i starts from seed + i.

    Args:
        who: The model or controller that acts, by its most likely action.
        venv: N environments, which are reset first.
        n_episodes: Number of episodes E.
        seed: Seed of the first episode.
        as_expert: Whether it sees observations as an expert does, before VecNormalize.
        privilege: Function that returns what an expert sees instead of the observation.

    Returns:
        Returns, not normalised, and lengths of the E episodes.

    Raises:
        ncp_rl.runs.RunError: An episode does not end.
    """
    returns: list[float] = []
    lengths: list[int] = []
    with frozen_statistics(venv):
        for begin in range(0, n_episodes, venv.num_envs):
            venv.seed(seed + begin)
            observation: Any = venv.reset()
            state, bound = None, EpisodeBound(venv)
            starts, running = np.ones(venv.num_envs, np.bool_), np.ones(venv.num_envs, np.bool_)
            total, steps = np.zeros(venv.num_envs), np.zeros(venv.num_envs, np.int64)
            while running.any():
                seen = expert_view(venv, observation, privilege) if as_expert else observation
                actions, state = who.predict(seen, state, starts, deterministic=True)
                observation, rewards, starts, _ = venv.step(actions)
                normalize = unwrap_vec_normalize(venv)
                total += running * (rewards if normalize is None else normalize.get_original_reward())
                steps += running
                running &= ~starts
                bound.count(starts)
            returns += total.tolist()
            lengths += steps.tolist()
    return Evaluation(tuple(returns[:n_episodes]), tuple(lengths[:n_episodes]))
