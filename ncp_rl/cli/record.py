"""Run the policy of a run folder, and record what it saw and did with every neuron's state.

Examples:
    ncp-rl record runs/mine --out mine.mcap --episodes 10
    ncp-rl record runs/mine --out mine.mcap --sign key.pem --images
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from ncp_rl.cli.status import FINE, reports_errors


@dataclass(frozen=True)
class Args:
    """Run the policy of a run folder and record it."""

    run_folder: Positional[Path]
    """Run folder, as ncp-rl train makes it."""
    out: Path
    """New file for the recording, .mcap."""
    episodes: int = 10
    """Episodes in all."""
    deterministic: bool = True
    """The most likely action; --no-deterministic samples."""
    seed: int = 0
    """Seed of environments and sampled actions."""
    n_envs: int = 8
    """Environments side by side, at most as many as episodes."""
    which: Literal["best", "last"] = "best"
    """The best model by periodic evaluation, or the last."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps. Default: as the run was trained with."""
    sign: Path | None = None
    """Private key that signs the recording."""
    images: bool = False
    """Record rendered and observed images too."""
    progress_bar: bool = True
    """Show progress and remaining time."""


@reports_errors()
def main(args: Args) -> int:
    """Record, say what."""
    import torch

    import ncp_rl.cli.worlds  # noqa: F401  (registers ncp/ environments)
    from ncp_rl.recording import Recording, read_private_key, record_rollouts
    from ncp_rl.runs import load_run

    torch.set_num_threads(1)
    key = None if args.sign is None else read_private_key(args.sign)
    render: dict[str, Any] = dict(env_kwargs=dict(render_mode="rgb_array")) if args.images else {}
    n_envs = max(min(args.n_envs, args.episodes), 1)
    limit = args.max_episode_steps
    model, venv = load_run(
        args.run_folder, which=args.which, n_envs=n_envs, device="cpu", max_episode_steps=limit, **render
    )
    record_rollouts(
        model,
        venv,
        args.out,
        n_episodes=args.episodes,
        deterministic=args.deterministic,
        seed=args.seed,
        images=args.images,
        sign_key=key,
        progress_bar=args.progress_bar,
    )
    venv.close()
    recording = Recording.open(args.out)
    size = args.out.stat().st_size / 2**20
    print(f"{args.out}: {len(recording)} episodes, {sum(recording.lengths)} steps, {size:.1f} MiB")
    return FINE
