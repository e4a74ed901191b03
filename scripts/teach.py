"""Teach a policy what demonstrations, a controller or a trained model show; its run folder is like one of train.py's.

python scripts/teach.py clone mine.mcap --env ncp/PendulumNoVel-v1 --out runs/taught
python scripts/teach.py dagger my_module.Controller --env my_module:MyEnv-v0 --out runs/taught
python scripts/teach.py distil runs/lstm --out runs/twin           # an auditable twin of a trained policy
python scripts/train.py --init runs/taught                         # go on with PPO
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import torch
import tyro
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.policy import DEFAULT_WIRING
from ncp_rl.recording import RecordingError
from ncp_rl.runs import GENERAL, RunConfig, RunError, evaluate, is_circuit, load_run, read_config, read_hyperparams
from ncp_rl.runs.settings import import_path
from ncp_rl.teach import (
    Demonstration,
    Lessons,
    Privilege,
    clone,
    dagger,
    distil,
    from_minari,
    from_recordings,
    teach_run,
)

HYPERPARAMS = Path(__file__).parents[1] / "hyperparams" / "ncp_ppo.yml"


@dataclass(frozen=True)
class Student:
    """Who is taught, and how."""

    out: Path
    """New folder for the run."""
    env: str | None = None
    """Gymnasium id; module:id imports the module first. Default: that of the teacher's run."""
    policy: str | None = None
    """As for train.py. Default: the NCP that fits."""
    units: int | None = None
    """Neurons of an NCP. Default: 32."""
    seed: int = 0
    """Of the networks, the environments and the order of lessons."""
    n_envs: int = 8
    """Environments side by side, to drive in."""
    hyperparams: Path = HYPERPARAMS
    """Settings of the policy by environment, in rl-zoo's form, which PPO goes on with."""
    final_episodes: int = 100
    """Episodes of the evaluation at the end; pairs of episodes too, where a teacher is beside."""
    progress_bar: bool = True
    """Show progress and remaining time."""


@dataclass(frozen=True)
class Rounds:
    """Of driving and learning."""

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

    demonstrations: tyro.conf.Positional[tuple[str, ...]]
    """Recordings (.mcap) and Minari datasets by name."""
    student: tyro.conf.OmitArgPrefixes[Student]
    """The student."""
    lessons: Lessons = field(default_factory=Lessons)
    """How it learns from what it is shown."""


@dataclass(frozen=True)
class Dagger:
    """Learn from an expert who watches the student drive."""

    expert: tyro.conf.Positional[str]
    """Dotted path of a class, called without arguments, or of an object, with a method `predict` like those of
    Stable-Baselines3; its module is imported."""
    student: tyro.conf.OmitArgPrefixes[Student]
    """The student."""
    lessons: Lessons = field(default_factory=Lessons)
    """How it learns from what it is shown."""
    rounds: tyro.conf.OmitArgPrefixes[Rounds] = field(default_factory=Rounds)
    """The rounds."""


@dataclass(frozen=True)
class Distil:
    """Learn from the trained policy of a run folder, whose files are unpickled; ends with episodes of both."""

    teacher: tyro.conf.Positional[Path]
    """The teacher's run folder."""
    student: tyro.conf.OmitArgPrefixes[Student]
    """The student."""
    lessons: Lessons = field(default_factory=Lessons)
    """How it learns from what it is shown."""
    rounds: tyro.conf.OmitArgPrefixes[Rounds] = field(default_factory=Rounds)
    """The rounds."""


def main(args: Clone | Dagger | Distil) -> int:
    """Teach, evaluate, print where the run lies."""
    torch.set_num_threads(1)
    student = args.student
    try:
        config = RunConfig(environment(args), settings(args), seed=student.seed)
        print(teach_run(config, student.out, lambda model, venv: taught(args, model, venv), n_envs=student.n_envs))
        model, venv = load_run(student.out, n_envs=10)
        print(evaluate(model, venv, n_episodes=student.final_episodes, seed=student.seed + 20_000))
        venv.close()
    except (RunError, RecordingError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"run folder: {student.out}")
    return 0


def environment(args: Clone | Dagger | Distil) -> str:
    """The student's environment.

    Raises:
        RunError: Neither the command line nor a teacher's run names one.
    """
    if args.student.env is not None:
        return args.student.env
    if isinstance(args, Distil):
        return read_config(args.teacher).env
    raise RunError("No environment is named; give --env, a Gymnasium id.")


def settings(args: Clone | Dagger | Distil) -> dict[str, Any]:
    """The student's hyperparameters: those of its environment, else general ones."""
    student = args.student
    found: dict[str, Any] = read_hyperparams(student.hyperparams, environment(args)) or dict(GENERAL)
    if student.policy not in (None, found.get("policy")):
        found = dict(GENERAL) | dict(policy=student.policy)
    if student.units is not None:
        if not is_circuit(found.get("policy")):
            raise RunError(f"--units is for NCPs; {student.policy} takes none.")
        wiring = dict(recipe="AutoNCP", **vars(DEFAULT_WIRING)) | dict(units=student.units)
        found["policy_kwargs"] = (found.get("policy_kwargs") or {}) | dict(wiring=wiring)
    return found


def taught(args: Clone | Dagger | Distil, model: OnPolicyAlgorithm, venv: VecEnv) -> str:
    """Teach a model; what came of it in a sentence."""
    student, lessons = args.student, args.lessons
    if isinstance(args, Clone):
        outcome = clone(model, shown(args.demonstrations), lessons, progress_bar=student.progress_bar)
        return (
            f"held-out loss {min(outcome.held_out_loss):.4g} in epoch {outcome.best_epoch}, error {outcome.error:.3f}"
        )
    rounds = args.rounds
    common: dict[str, Any] = dict(n_rounds=rounds.n_rounds, n_steps=rounds.n_steps, decay=rounds.decay)
    common |= dict(pushes=rounds.pushes, seed=student.seed, progress_bar=student.progress_bar)
    common |= dict(privilege=None if rounds.privilege is None else sees(rounds.privilege))
    if isinstance(args, Distil):
        teacher, _ = load_run(args.teacher)
        return str(distil(model, teacher, venv, lessons, n_episodes=student.final_episodes, **common))
    expert = import_path("expert", args.expert)
    found = dagger(model, venv, expert() if isinstance(expert, type) else expert, lessons, **common)
    return "\n".join(f"round {i}: error {r.taught.error:.3f}, expert {r.expert_share:.0%}" for i, r in enumerate(found))


def shown(sources: tuple[str, ...]) -> list[Demonstration]:
    """The demonstrations of recordings and datasets."""
    found: list[Demonstration] = []
    for source in sources:
        found += from_recordings([source]) if source.endswith(".mcap") else from_minari(source)
    return found


def sees(name: str) -> Privilege:
    """An attribute of each environment, as an expert sees it."""
    return lambda venv: np.stack(venv.get_attr(name))


if __name__ == "__main__":
    sys.path.append("")  # module:id is found in the current folder too, as under `python -m`.
    sys.exit(main(tyro.cli(Clone | Dagger | Distil, description=__doc__)))
