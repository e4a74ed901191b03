"""Try environments x settings x seeds side by side, on this machine or a cluster, and keep the best settings.

Examples:
    ncp-rl sweep --envs ncp/PendulumNoVel-v1 --seeds 0 1 --settings 16 --timesteps 100000 --out sweeps/pendulum
    ncp-rl sweep my_space.yml --envs ncp/CartPoleNoVel-v1 my_module:MyEnv-v0 --out sweeps/mine
    ncp-rl sweep --out sweeps/mine --resume                  # goes on where it was interrupted
    ncp-rl sweep --out sweeps/mine --resume --settings 32    # tries more settings
    ncp-rl sweep --envs ncp/HopperNoVel-v5 --out /shared/hopper --address auto
    ncp-rl train --env ncp/PendulumNoVel-v1 --hyperparams sweeps/pendulum/best.yml

Settings that are not varied are those that ncp-rl train would take. The folder holds trials.csv, plots, best.yml, and a
run folder for each trial.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from ncp_rl.cli import train
from ncp_rl.cli.status import FINE, reports_errors

if TYPE_CHECKING:
    from ncp_rl.distributed import Sweep

#: Arguments that a sweep which goes on may be given anew.
ANEW = {"out", "resume", "settings", "address", "max_concurrent", "max_failures", "progress_bar"}


@dataclass(frozen=True)
class Args:
    """What to try."""

    out: Path
    """Folder of the sweep; on a cluster, a path that all nodes see, such as one on a network file system."""
    space: Positional[Path | None] = None
    """Search spaces by policy: which settings are varied, and between what. Nothing of the file is executed. Default:
    hyperparams/sweep.yml, which comes with ncp_rl."""
    envs: tuple[str, ...] = ()
    """Gymnasium ids; module:id imports the module first."""
    seeds: tuple[int, ...] = (0,)
    """Each setting is trained with each of them; the search goes by the mean."""
    settings: int | None = None
    """Settings to try on each environment. Default: 16."""
    timesteps: int | None = None
    """Environment steps of each training. Default: those of the settings."""
    policy: str | None = None
    """Policy, named as for ncp-rl train. Default: that of the settings, or the NCP that fits."""
    hyperparams: Path | None = None
    """Settings that are not varied, by environment; as for ncp-rl train."""
    disturb: tuple[str, ...] = ()
    """Train under disturbances; as for ncp-rl train."""
    max_episode_steps: int | None = None
    """Cut the episodes of evaluations after so many steps, for tasks that go on without end."""
    evaluations: int = 10
    """Periodic evaluations of a training, from which the search learns."""
    eval_episodes: int = 20
    """Episodes of each."""
    checkpoints: int = 20
    """How often a training keeps all from which it goes on when its worker has died."""
    halving: bool = True
    """Stop trials early whose return lies behind that of others on the same environment (ASHA)."""
    grace: int = 2
    """Evaluations before a trial may be stopped."""
    search_seed: int = 0
    """Seed of the search."""
    resume: bool = False
    """Go on with the interrupted sweep of --out. Its arguments hold; --settings may be given anew."""
    address: str | None = None
    """Address of a Ray cluster; auto is the one that this machine is part of. Default: Ray is started on this machine
    while the sweep lasts. --out must be a path that all nodes see."""
    max_concurrent: int | None = None
    """Trials at a time, each with one CPU. Default: as many as there are CPUs."""
    max_failures: int = 3
    """How often a trial whose worker died is tried again, each time from its checkpoint."""
    progress_bar: bool = True
    """Show progress, and a line for each trial that has ended."""


@reports_errors()
def main(args: Args) -> int:
    """Sweep, print the best settings and where all lies."""
    import ncp_rl.cli.worlds  # noqa: F401  (registers ncp/ environments)
    from ncp_rl.distributed import run_sweep

    best = run_sweep(
        None if args.resume else sweep(args),
        args.out,
        n_settings=resumed(args) if args.resume else None,
        address=args.address,
        max_concurrent=args.max_concurrent,
        max_failures=args.max_failures,
        progress_bar=args.progress_bar,
    )
    for env, (trial, score) in best.items():
        values = ", ".join(f"{name} {number(value)}" for name, value in trial.values.items())
        print(f"{env}: best return {score:.1f} with setting {trial.setting}: {values}")
    print(f"trials: {args.out / 'trials.csv'}")
    print(f"best settings: {args.out / 'best.yml'}")
    return FINE


def number(value: Any) -> str:
    """A value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def resumed(args: Args) -> int | None:
    """Settings of a sweep that goes on, where they are given.

    Raises:
        SweepError: The command line gives what the sweep has already.
    """
    from ncp_rl.distributed import SweepError

    given = {f.name for f in fields(Args) if f.name != "out" and getattr(args, f.name) != f.default} - ANEW
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise SweepError(f"A sweep goes on with its own arguments; leave out {options}, or begin another one.")
    return args.settings


def sweep(args: Args) -> Sweep:
    """What the command line asks for.

    Raises:
        SweepError: No environment is named.
    """
    from ncp_rl.distributed import Sweep, SweepError, read_space
    from ncp_rl.runs import tuned_file

    if not args.envs:
        raise SweepError("No environment is named; give --envs, Gymnasium ids, or --resume to go on with a sweep.")
    base: dict[str, dict[str, Any]] = {env: train.hyperparams(for_training(args, env)) for env in args.envs}
    space = args.space or tuned_file("sweep.yml")
    return Sweep(
        base=base,
        spaces={env: read_space(space, settings.get("policy")) for env, settings in base.items()},
        n_settings=16 if args.settings is None else args.settings,
        seeds=args.seeds,
        n_evaluations=args.evaluations,
        n_eval_episodes=args.eval_episodes,
        n_checkpoints=args.checkpoints,
        max_episode_steps=args.max_episode_steps,
        halving=args.halving,
        grace=args.grace,
        search_seed=args.search_seed,
        modules=("ncp_rl.cli.worlds",),
    )


def for_training(args: Args, env: str) -> train.Args:
    """The arguments of ncp-rl train that say which settings an environment has."""
    return train.Args(
        env=env,
        policy=args.policy,
        timesteps=args.timesteps,
        hyperparams=args.hyperparams,
        disturb=args.disturb,
    )
