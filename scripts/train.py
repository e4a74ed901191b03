"""Train a neural circuit policy with PPO on any Gymnasium environment.

    python scripts/train.py --env ncp/PendulumNoVel-v1
    python scripts/train.py --env my_module:MyEnv-v0 --units 48 --timesteps 500000

Hyperparameters come from --hyperparams where it names the environment; arguments given here come before them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import torch
import tyro

from ncp_rl.runs import BASELINES, RunConfig, RunError, evaluate, load_run, read_hyperparams, train

HYPERPARAMS = Path(__file__).parents[1] / "hyperparams" / "ncp_ppo.yml"


@dataclass(frozen=True)
class Args:
    """What to train."""

    env: str = "ncp/PendulumNoVel-v1"
    """Gymnasium id; module:id imports the module first."""
    policy: str | None = None
    """NCPPolicy and its kin, or a baseline of SB3's: MlpLstmPolicy, MlpPolicy, ... Default: the NCP that fits."""
    recipe: Literal["AutoNCP", "FullyConnected", "Random"] | None = None
    """Wiring of the actor. Default: AutoNCP."""
    units: int | None = None
    """Neurons of the actor. Default: 32."""
    sparsity: float | None = None
    """Share of synapses left out. Default: the recipe's."""
    critic: Literal["ltc", "lstm", "mlp", "shared"] | None = None
    """Recurrent core of the critic. Default: ltc."""
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
    hyperparams: Path = HYPERPARAMS
    """Hyperparameters by environment, in rl-zoo's form."""
    max_episode_steps: int | None = None
    """Cut the episodes of evaluations, recordings and audits after so many steps, for tasks that go on without end."""
    eval_episodes: int = 20
    """Episodes of each periodic evaluation."""
    final_episodes: int = 100
    """Episodes of the evaluation at the end."""
    progress_bar: bool = True
    """Show progress and remaining time."""


def main(args: Args) -> int:
    """Train, evaluate the best model, print where it lies."""
    torch.set_num_threads(args.threads)
    name = args.env.replace("/", "_").replace(":", "_")
    folder = args.out or Path("runs") / f"{name}__{args.seed}__{time.time():.0f}"
    try:
        config = RunConfig(args.env, hyperparams(args), seed=args.seed, max_episode_steps=args.max_episode_steps)
        train(
            config,
            folder,
            device=args.device,
            n_eval_episodes=args.eval_episodes,
            progress_bar=args.progress_bar,
        )
        model, venv = load_run(folder, n_envs=10, device=args.device)
        evaluation = evaluate(model, venv, n_episodes=args.final_episodes, seed=args.seed + 20_000)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(evaluation)
    print(f"run folder: {folder}")
    return 0


def hyperparams(args: Args) -> dict[str, Any]:
    """Those of the file, with what the command line says in their place."""
    defaults: dict[str, Any] = dict(n_envs=8, n_timesteps=200_000, normalize=True)
    found = defaults | read_hyperparams(args.hyperparams, args.env) | _given(dict(policy=args.policy))
    found |= _given(dict(n_envs=args.n_envs, n_timesteps=args.timesteps))
    if found.get("policy") in BASELINES:
        return found | dict(policy_kwargs={})  # The file's describe a circuit.
    policy_kwargs = dict(found.get("policy_kwargs") or {})
    wiring = dict(policy_kwargs.get("wiring") or {})
    if args.recipe is not None and args.recipe != wiring.get("recipe", "AutoNCP"):
        wiring = {"units": wiring.get("units", 32)}  # The file's other entries belong to its own recipe.
    given = dict(recipe=args.recipe, units=args.units, sparsity=args.sparsity)
    default = {} if wiring.get("recipe") == "NCP" else dict(units=32)  # A recipe without a number of units.
    policy_kwargs["wiring"] = default | wiring | _given(given)
    policy_kwargs |= _given(dict(critic=args.critic))
    return found | dict(policy_kwargs=policy_kwargs)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


if __name__ == "__main__":
    sys.path.append("")  # module:id is found in the current folder too, as under `python -m`.
    sys.exit(main(tyro.cli(Args, description=__doc__)))
