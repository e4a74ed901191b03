"""Evaluate the policy of a run folder.

Examples:
    ncp-rl evaluate runs/mine --episodes 100
    ncp-rl evaluate runs/mine --video videos --json
    ncp-rl evaluate runs/mine --disturb observation_delay=1
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from ncp_rl.cli.status import FINE, reports_errors
from ncp_rl.extras import require


@dataclass(frozen=True)
class Args:
    """What to evaluate, and how."""

    run: Positional[Path]
    """Run folder, as ncp-rl train makes it."""
    episodes: int = 100
    """Episodes in all."""
    deterministic: bool = True
    """The most likely action; --no-deterministic samples."""
    seed: int = 0
    """Seed of environments and sampled actions."""
    which: Literal["best", "last"] = "best"
    """The best model by periodic evaluation, or the last."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps. Default: as the run was trained with."""
    disturb: tuple[str, ...] = ()
    """Disturb the environment, as --disturb of ncp-rl train does. Default: undisturbed, whatever it trained in."""
    video: Path | None = None
    """New folder for a video of each episode."""
    json: bool = False
    """Print JSON, with every episode's return and length."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 1
    """Threads of torch; small circuits are fastest with one."""


@reports_errors()
def main(args: Args) -> int:
    """Evaluate and print."""
    if args.video is not None:
        require("video", "moviepy", by="--video")
    import torch

    from ncp_rl.runs import RunError, evaluate, load_run

    torch.set_num_threads(args.threads)
    if args.video is not None and args.video.exists():
        raise RunError(f"The folder {args.video} exists and is left as it is; name another one for the videos.")
    n_envs = 1 if args.video else min(args.episodes, 10)
    making: dict[str, Any] = dict(n_envs=n_envs, device=args.device, max_episode_steps=args.max_episode_steps)
    model, venv = load_run(args.run, which=args.which, **making, **wrapped(args))
    evaluation = evaluate(model, venv, n_episodes=args.episodes, deterministic=args.deterministic, seed=args.seed)
    venv.close()
    print(json.dumps(evaluation.summary() | asdict(evaluation), indent=2) if args.json else evaluation)
    return FINE


def wrapped(args: Args) -> dict[str, Any]:
    """Arguments of `make_vec_env` that disturb the environment and film every episode.

    Raises:
        RunError: There is no such disturbance, or no such level.
    """
    from gymnasium.wrappers import RecordVideo

    from ncp_rl.cli.worlds import disturbing

    disturb = disturbing(args.disturb)
    if args.video is None:
        return dict(wrapper_class=disturb)
    filming: dict[str, Any] = dict(episode_trigger=lambda episode: episode < args.episodes)
    return dict(
        wrapper_class=lambda env: RecordVideo(disturb(env), str(args.video), **filming),
        env_kwargs=dict(render_mode="rgb_array"),
    )
