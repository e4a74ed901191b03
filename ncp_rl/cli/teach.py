"""Teach a policy what demonstrations, a controller or a trained model show; its run folder is like a trained one's.

Examples:
    ncp-rl teach clone mine.mcap --env ncp/PendulumNoVel-v1 --out runs/taught
    ncp-rl teach dagger my_module.Controller --env my_module:MyEnv-v0 --out runs/taught
    ncp-rl teach distil runs/lstm --out runs/twin       # an auditable twin of a trained policy
    ncp-rl train --init runs/taught                     # go on with PPO
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes, Positional

from ncp_rl.cli.status import FINE, reports_errors
from ncp_rl.lessons import Lessons

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecEnv


@dataclass(frozen=True)
class Student:
    """Who is taught, and how."""

    out: Path
    """New folder for the run."""
    env: str | None = None
    """Gymnasium id; module:id imports the module first. Default: that of the teacher's run."""
    policy: str | None = None
    """Policy, named as for ncp-rl train. Default: the NCP that fits."""
    units: int | None = None
    """Neurons of an NCP. Default: 32."""
    seed: int = 0
    """Seed of the networks, the environments and the order of lessons."""
    n_envs: int = 8
    """Environments side by side, to drive in."""
    hyperparams: Path | None = None
    """Settings of the policy by environment, in rl-zoo's form, which PPO goes on with. Default:
    hyperparams/ncp_ppo.yml, which comes with ncp_rl."""
    final_episodes: int = 100
    """Episodes of the evaluation at the end; pairs of episodes too, where a teacher is beside."""
    progress_bar: bool = True
    """Show progress and remaining time."""


@dataclass(frozen=True)
class Rounds:
    """Settings of the rounds of driving and learning."""

    n_rounds: int = 5
    """Rounds; in the first the expert drives alone."""
    n_steps: int = 1000
    """Steps of each environment in a round."""
    decay: float = 0.3
    """In round r the expert drives a share decay ** r of the steps."""
    pushes: float = 0.0
    """Every second environment is pushed now and then, by up to so many half ranges of the action."""
    privilege: str | None = None
    """An attribute of the environments that the expert sees in place of the observation, such as true_state."""


@dataclass(frozen=True)
class Clone:
    """Learn from demonstrations."""

    demonstrations: Positional[tuple[str, ...]]
    """Recordings (.mcap) and Minari datasets by name."""
    student: OmitArgPrefixes[Student]
    """The student."""
    lessons: Lessons = field(default_factory=Lessons)
    """How it learns from what it is shown."""


@dataclass(frozen=True)
class Dagger:
    """Learn from an expert who watches the student drive."""

    expert: Positional[str]
    """Dotted path of a class, called without arguments, or of an object, with a method `predict` like those of
    Stable-Baselines3; its module is imported."""
    student: OmitArgPrefixes[Student]
    """The student."""
    lessons: Lessons = field(default_factory=Lessons)
    """How it learns from what it is shown."""
    rounds: OmitArgPrefixes[Rounds] = field(default_factory=Rounds)
    """The rounds."""


@dataclass(frozen=True)
class Distil:
    """Learn from the trained policy of a run folder, whose files are unpickled; ends with episodes of both."""

    teacher: Positional[Path]
    """The teacher's run folder."""
    student: OmitArgPrefixes[Student]
    """The student."""
    lessons: Lessons = field(default_factory=Lessons)
    """How it learns from what it is shown."""
    rounds: OmitArgPrefixes[Rounds] = field(default_factory=Rounds)
    """The rounds."""


Args = Clone | Dagger | Distil


@reports_errors()
def main(args: Args) -> int:
    """Teach, evaluate, print where the run lies."""
    import torch

    import ncp_rl.cli.worlds  # noqa: F401  (registers ncp/ environments)
    from ncp_rl.runs import RunConfig, evaluate, load_run
    from ncp_rl.teach import teach_run

    torch.set_num_threads(1)
    student = args.student
    config = RunConfig(environment(args), settings(args), seed=student.seed)
    print(teach_run(config, student.out, lambda model, venv: taught(args, model, venv), n_envs=student.n_envs))
    model, venv = load_run(student.out, n_envs=10)
    print(evaluate(model, venv, n_episodes=student.final_episodes, seed=student.seed + 20_000))
    venv.close()
    print(f"run folder: {student.out}")
    return FINE


def environment(args: Args) -> str:
    """The student's environment.

    Raises:
        RunError: Neither the command line nor a teacher's run names one.
    """
    from ncp_rl.runs import RunError, read_config

    if args.student.env is not None:
        return args.student.env
    if isinstance(args, Distil):
        return read_config(args.teacher).env
    raise RunError("No environment is named; give --env, a Gymnasium id.")


def settings(args: Args) -> dict[str, Any]:
    """The student's hyperparameters: those of its environment, else general ones."""
    from ncp_rl.runs import GENERAL, general_settings, is_circuit, read_hyperparams, tuned_file, with_given

    student = args.student
    env = environment(args)
    found: dict[str, Any] = read_hyperparams(student.hyperparams or tuned_file(), env)
    if not found or student.policy not in (None, found.get("policy")):
        found = general_settings(env) if is_circuit(student.policy) else dict(GENERAL)
    return with_given(found, policy=student.policy, units=student.units)


def taught(args: Args, model: OnPolicyAlgorithm, venv: VecEnv) -> str:
    """Teach a model; what came of it in a sentence."""
    from ncp_rl.runs import load_run
    from ncp_rl.runs.settings import import_path
    from ncp_rl.teach import attribute_of_envs, clone, dagger, distil, from_sources

    student, lessons = args.student, args.lessons
    if isinstance(args, Clone):
        outcome = clone(model, from_sources(args.demonstrations), lessons, progress_bar=student.progress_bar)
        return (
            f"held-out loss {min(outcome.held_out_loss):.4g} in epoch {outcome.best_epoch}, error {outcome.error:.3f}"
        )
    rounds = args.rounds
    common: dict[str, Any] = dict(n_rounds=rounds.n_rounds, n_steps=rounds.n_steps, decay=rounds.decay)
    common |= dict(pushes=rounds.pushes, seed=student.seed, progress_bar=student.progress_bar)
    common |= dict(privilege=None if rounds.privilege is None else attribute_of_envs(rounds.privilege))
    if isinstance(args, Distil):
        teacher, _ = load_run(args.teacher)
        return str(distil(model, teacher, venv, lessons, n_episodes=student.final_episodes, **common))
    expert = import_path("expert", args.expert)
    found = dagger(model, venv, expert() if isinstance(expert, type) else expert, lessons, **common)
    return "\n".join(f"round {i}: error {r.taught.error:.3f}, expert {r.expert_share:.0%}" for i, r in enumerate(found))
