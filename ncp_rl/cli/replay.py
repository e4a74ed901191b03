"""Compute a recording again: from the file alone, with the model of a run, from the seeds on, or with an export.

Examples:
    ncp-rl replay mine.mcap                             # neurons and action means
    ncp-rl replay mine.mcap --run runs/mine             # sensory inputs, actions and values too
    ncp-rl replay mine.mcap --run runs/mine --env       # the whole rollout, environments included
    ncp-rl replay mine.mcap --deployed controller       # does an exported controller do the same?
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ncp_rl.cli.status import reports_errors


@dataclass(frozen=True)
class Args:
    """Compute a recording again: from the file alone, with the model of a run, or from the seeds on."""

    file: Positional[Path]
    """The recording."""
    run_folder: Annotated[Path | None, arg(name="run")] = None
    """Run folder that was recorded: its policy computes sensory inputs, actions and values again."""
    which: Literal["best", "last"] = "best"
    """Model of the run folder."""
    env: bool = False
    """Run the environments again too, from their seeds."""
    deployed: Path | None = None
    """An export of the policy (ncp-rl export): a folder with controller.c, or controller.json or controller.onnx. It is
    driven with the observations of the recording, and every potential and action is compared."""
    json: bool = False
    """Print JSON."""
    max_memory: int | None = None
    """Bytes that reading may take; what would take more is refused. Default: 512 MiB."""


@reports_errors(ValueError)
def main(args: Args) -> int:
    """Print the verdict; 1 where something came out otherwise."""
    import torch

    import ncp_rl.cli.worlds  # noqa: F401  (registers ncp/ environments)
    from ncp_rl.cli.reading import opened, report
    from ncp_rl.recording import RecordingError, replay
    from ncp_rl.runs import load_run

    torch.set_num_threads(1)
    if args.deployed is not None:
        if args.run_folder is not None or args.env:
            raise RecordingError("--deployed replays with an export alone; leave out --run and --env.")
        from ncp_rl.export import verify_export

        return report(verify_export(args.deployed, opened(args.file, args.max_memory)), args.json)
    if args.run_folder is None and args.env:
        raise RecordingError("--env needs --run, the run folder whose policy acted.")
    recording = opened(args.file, args.max_memory)
    if args.run_folder is None:
        return report(replay(recording), args.json)
    n_envs, limit = recording.layout.n_envs, recording.max_episode_steps
    model, venv = load_run(args.run_folder, which=args.which, n_envs=n_envs, device="cpu", max_episode_steps=limit)
    found = replay(recording, model, venv if args.env else None)
    venv.close()
    return report(found, args.json)
