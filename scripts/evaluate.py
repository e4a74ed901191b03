"""Evaluate the policy of a run folder.

python scripts/evaluate.py runs/my_run --episodes 100
python scripts/evaluate.py runs/my_run --video videos --json
python scripts/evaluate.py runs/my_run --disturb observation_delay=1
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
import tyro
from gymnasium.wrappers import RecordVideo
from ncp_envs import RandomDisturbances, read_levels

from ncp_rl.runs import RunError, evaluate, load_run


@dataclass(frozen=True)
class Args:
    """What to evaluate, and how."""

    run: tyro.conf.Positional[Path]
    """Run folder, as scripts/train.py makes it."""
    episodes: int = 100
    """Episodes in all."""
    deterministic: bool = True
    """The most likely action; --no-deterministic samples."""
    seed: int = 0
    """Of environments and sampled actions."""
    which: Literal["best", "last"] = "best"
    """The best model by periodic evaluation, or the last."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps. Default: as the run was trained with."""
    disturb: tuple[str, ...] = ()
    """Disturb the environment, as --disturb of scripts/train.py does. Default: undisturbed, whatever it trained in."""
    video: Path | None = None
    """New folder for a video of each episode."""
    json: bool = False
    """Print JSON, with every episode's return and length."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 1
    """Threads of torch; small circuits are fastest with one."""


def main(args: Args) -> int:
    """Evaluate and print."""
    torch.set_num_threads(args.threads)
    try:
        if args.video is not None and args.video.exists():
            raise RunError(f"The folder {args.video} exists and is left as it is; name another one for the videos.")
        n_envs = 1 if args.video else min(args.episodes, 10)
        making: dict[str, Any] = dict(n_envs=n_envs, device=args.device, max_episode_steps=args.max_episode_steps)
        model, venv = load_run(args.run, which=args.which, **making, **wrapped(args))
        evaluation = evaluate(model, venv, n_episodes=args.episodes, deterministic=args.deterministic, seed=args.seed)
        venv.close()
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(evaluation.summary() | asdict(evaluation), indent=2) if args.json else evaluation)
    return 0


def wrapped(args: Args) -> dict[str, Any]:
    """Arguments of `make_vec_env` that disturb the environment and film every episode.

    Raises:
        RunError: There is no such disturbance, or no such level.
    """
    try:
        levels = read_levels(args.disturb)
    except ValueError as error:
        raise RunError(str(error)) from error

    def wrap(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        env = RandomDisturbances(env, **levels) if levels else env
        if args.video is None:
            return env
        return RecordVideo(env, str(args.video), episode_trigger=lambda episode: episode < args.episodes)

    render = {} if args.video is None else dict(env_kwargs=dict(render_mode="rgb_array"))
    return dict(wrapper_class=wrap, **render)


if __name__ == "__main__":
    sys.path.append("")  # module:id is found in the current folder too, as under `python -m`.
    sys.exit(main(tyro.cli(Args, description=__doc__)))
