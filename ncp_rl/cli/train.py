"""Train a neural circuit policy with PPO on any Gymnasium environment.

Examples:
    ncp-rl train --env ncp/PendulumNoVel-v1
    ncp-rl train --env my_module:MyEnv-v0 --units 48 --timesteps 500000
    ncp-rl train --disturb observation_delay=0..2 sensor_noise=0.05
    ncp-rl train --resume runs/mine
    ncp-rl train --init runs/taught
    ncp-rl train --rllib-runners 4 --address auto

Hyperparameters come from --hyperparams where it names the environment; arguments given here come before them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ncp_rl.choices import CellName, Critic
from ncp_rl.cli.status import FINE, reports_errors

if TYPE_CHECKING:
    from ncp_rl.runs import Evaluation, RunConfig

#: The wrapper that disturbs, as `env_wrapper` of the hyperparameters names it.
DISTURBANCES = "ncp_envs.RandomDisturbances"
#: Arguments that a training which goes on may be given anew.
ANEW = {"resume", "timesteps", "device", "threads", "final_episodes", "progress_bar"}


@dataclass(frozen=True)
class Args:
    """What to train."""

    env: str = "ncp/PendulumNoVel-v1"
    """Gymnasium id; module:id imports the module first."""
    policy: str | None = None
    """NCPPolicy and its kin, a baseline of SB3's: MlpLstmPolicy, MlpPolicy, ..., or a dotted path, whose module is
    imported. Default: the NCP that fits."""
    recipe: Literal["AutoNCP", "FullyConnected", "Random"] | None = None
    """Wiring of the actor. Default: AutoNCP."""
    units: int | None = None
    """Neurons of the actor. Default: 32."""
    sparsity: float | None = None
    """Share of synapses left out. Default: the recipe's."""
    cell: CellName | None = None
    """Neurons of the actor. Default: ltc."""
    critic: Critic | None = None
    """Recurrent core of the critic. Default: cell, neurons of the actor's kind."""
    timesteps: int | None = None
    """Environment steps in all. Default: 200,000."""
    n_envs: int | None = None
    """Environments side by side. Default: 8."""
    seed: int = 0
    """Seed of networks, environments and actions."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 1
    """Threads of torch; small circuits are fastest with one."""
    out: Path | None = None
    """New folder for the run. Default: runs/ENV__SEED__TIME."""
    hyperparams: Path | None = None
    """Hyperparameters by environment, in rl-zoo's form. Nothing of the file is executed, but modules of the classes
    that it names, such as wrappers, are imported. Default: what comes with ncp_rl, hyperparams/ncp_ppo.yml for
    circuits, rl-zoo's for baselines."""
    disturb: tuple[str, ...] = ()
    """Train under disturbances: NAME=LEVEL, or NAME=LOW..HIGH for a level that each episode draws anew, such as
    observation_delay=0..2 sensor_noise=0.05. There are sensor_noise, sensor_bias, sensor_dropout, observation_delay,
    action_noise, action_delay, action_gain_error and sticky_action; a wrong name or level prints their units. The best
    model is chosen under them too; evaluations and audits of the run begin with the undisturbed world."""
    max_episode_steps: int | None = None
    """Cut the episodes of evaluations, recordings and audits after so many steps, for tasks that go on without end."""
    eval_episodes: int = 20
    """Episodes of each periodic evaluation."""
    checkpoints: int = 20
    """How often all that --resume needs is kept, in the place of the last: a killed training loses what came since."""
    init: Path | None = None
    """Begin with the best policy of this run folder, such as a taught one (ncp-rl teach), on its environment and with
    its settings, but for those given here; its files are unpickled."""
    resume: Path | None = None
    """Go on with the killed or interrupted training of this run folder, from its last checkpoint; its files are
    unpickled. The run's settings hold; --timesteps gives it more or fewer steps in all, so that a finished one goes on
    too."""
    rllib_runners: int | None = None
    """Train by RLlib's PPO on Ray, with so many processes that step the environments, which they share. With --resume:
    go on with so many. Default: RecurrentPPO in this process."""
    rllib_learners: int = 0
    """Processes of RLlib that learn, each with a GPU under --device cuda; 0: this process."""
    address: str | None = None
    """Address of a Ray cluster for RLlib; auto is the one that this machine is part of, local is Ray started on this
    machine while the training lasts. Default: local, or where the resumed training was."""
    final_episodes: int = 100
    """Episodes of the evaluation at the end."""
    progress_bar: bool = True
    """Show progress and remaining time."""


@reports_errors()
def main(args: Args) -> int:
    """Train, evaluate the best model, print where it lies."""
    import torch

    import ncp_rl.cli.worlds  # noqa: F401  (registers ncp/ environments)
    from ncp_rl.runs import RunConfig, RunError, has_training_wrappers, read_config, resume, train

    torch.set_num_threads(args.threads)
    name = args.env.replace("/", "_").replace(":", "_")
    folder = args.resume or args.out or Path("runs") / f"{name}__{args.seed}__{time.time():.0f}"
    if args.init is not None and args.env == Args.env:
        args = replace(args, env=read_config(args.init).env)
    config = RunConfig(args.env, hyperparams(args), seed=args.seed, max_episode_steps=args.max_episode_steps)
    goes_on_by_rllib = args.resume is not None and by_rllib(args.resume)
    if args.rllib_runners is not None or (goes_on_by_rllib and not args.rllib_learners):
        config = train_by_rllib(args, config, folder)
    elif args.rllib_learners or args.address:
        raise RunError("--rllib-learners and --address belong to a training by RLlib: give --rllib-runners too.")
    elif args.resume is None:
        train(
            config,
            folder,
            device=args.device,
            n_eval_episodes=args.eval_episodes,
            n_checkpoints=args.checkpoints,
            init=args.init,
            progress_bar=args.progress_bar,
        )
    else:
        config = resumed(args, config, folder)
        resume(folder, n_timesteps=args.timesteps, device=args.device, progress_bar=args.progress_bar)
    evaluation = final(args, config, folder, disturbed=False)
    disturbed = final(args, config, folder, disturbed=True) if has_training_wrappers(config) else None
    print(evaluation if disturbed is None else f"undisturbed: {evaluation}\nas trained: {disturbed}")
    print(f"run folder: {folder}")
    return FINE


def by_rllib(folder: Path) -> bool:
    """Whether a run folder is that of a training by RLlib."""
    from ncp_rl.runs.folder import RLLIB

    return (folder / RLLIB).exists()


def train_by_rllib(args: Args, config: RunConfig, folder: Path) -> RunConfig:
    """Train on Ray, or go on; return the configuration of the run.

    Raises:
        ncp_rl.extras.MissingExtraError: Ray, or what RLlib needs, is not installed.
    """
    from ncp_rl.extras import require

    require("rllib", "ray", "tree", by="A training by RLlib")
    from ncp_rl.distributed.rllib import Workers, resume, train

    workers = None
    if args.rllib_runners is not None:
        workers = Workers(
            runners=args.rllib_runners,
            learners=args.rllib_learners,
            gpus_per_learner=1.0 if args.device == "cuda" else 0.0,
        )
    where: dict[str, Any] = dict(workers=workers, address=args.address, progress_bar=args.progress_bar)
    if args.resume is not None:
        config = resumed(args, config, folder)
        resume(folder, n_timesteps=args.timesteps, **where)
        return config
    train(
        config,
        folder,
        n_eval_episodes=args.eval_episodes,
        n_checkpoints=args.checkpoints,
        init=args.init,
        modules=("ncp_rl.cli.worlds",),
        **where,
    )
    return config


def resumed(args: Args, given: RunConfig, folder: Path) -> RunConfig:
    """The configuration of the run that goes on.

    Raises:
        RunError: The command line asks for another run, or `folder` holds none.
    """
    from ncp_rl.runs import RunError, read_config

    config = read_config(folder)
    named = {f.name for f in fields(Args) if getattr(args, f.name) != f.default} - ANEW
    if args.out == folder:
        named -= {"out"}
    if by_rllib(folder):
        named -= {"rllib_runners", "rllib_learners", "address"}
    # config.json does not say whether these are the run's.
    unknown = named & {"out", "eval_episodes", "checkpoints", "init"}
    differences = given.differences(config) if named - unknown else []
    if differences or unknown:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(named))
        told = f": {'; '.join(differences)} ({folder})" if differences else ""
        raise RunError(f"A training goes on with the settings of its run; leave out {options}{told}.")
    return config


def final(args: Args, config: RunConfig, folder: Path, *, disturbed: bool) -> Evaluation:
    """The best model over fresh episodes, disturbed as in training or not."""
    from ncp_rl.runs import evaluate, load_run

    model, venv = load_run(folder, n_envs=10, device=args.device, training_wrappers=disturbed)
    evaluation = evaluate(model, venv, n_episodes=args.final_episodes, seed=config.seed + 20_000)
    venv.close()
    return evaluation


def hyperparams(args: Args) -> dict[str, Any]:
    """Those of the file, with what the command line says in their place."""
    from ncp_rl.runs import general_settings, read_config, read_hyperparams, tuned_settings, with_given

    if args.init is not None:
        found = read_config(args.init).hyperparams
    elif args.hyperparams is not None:
        found = read_hyperparams(args.hyperparams, args.env)
    else:
        found = tuned_settings(args.env, args.policy)
    found = disturbed(args, dict(n_timesteps=200_000) | (found or general_settings(args.env, args.policy)))
    entries = with_given(
        found,
        policy=args.policy,
        n_envs=args.n_envs,
        n_timesteps=args.timesteps,
        recipe=args.recipe,
        units=args.units,
        sparsity=args.sparsity,
        cell=args.cell,
        critic=args.critic,
    )
    left_out = sorted({*(found.get("policy_kwargs") or {})} - {*entries["policy_kwargs"]})
    if left_out:
        print(f"ncp_rl: left out, since they do not fit {args.policy}: {', '.join(left_out)}", file=sys.stderr)
    return entries


def disturbed(args: Args, found: dict[str, Any]) -> dict[str, Any]:
    """The disturbances of the command line, else of the file's `disturb`, as a wrapper around the file's others.

    Raises:
        RunError: There is no such disturbance, or no such level.
    """
    from ncp_rl.cli.worlds import levels_of

    levels = found.pop("disturb", None)
    if args.disturb:
        levels = levels_of(args.disturb)
    if not levels:
        return found
    wrappers = found.get("env_wrapper") or []
    wrappers = wrappers if isinstance(wrappers, list) else [wrappers]
    others = [wrapper for wrapper in wrappers if not (isinstance(wrapper, dict) and DISTURBANCES in wrapper)]
    return found | dict(env_wrapper=[*others, {DISTURBANCES: levels}])
