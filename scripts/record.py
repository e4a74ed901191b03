"""Record rollouts with every neuron's state; verify, replay and export recordings.

python scripts/record.py keygen key.pem
python scripts/record.py record runs/my_run --out rollouts.mcap --sign key.pem
python scripts/record.py verify rollouts.mcap --public-key key.pub.pem
python scripts/record.py replay rollouts.mcap --run runs/my_run --env
python scripts/record.py export rollouts.mcap --parquet rollouts.parquet
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import torch
import tyro

from ncp_rl.recording import (
    MAX_MEMORY,
    Recording,
    RecordingError,
    generate_key,
    read_private_key,
    read_public_key,
    record_rollouts,
    replay,
    verify,
    write_minari,
    write_parquet,
)
from ncp_rl.runs import RunError, load_run


@dataclass(frozen=True)
class Keygen:
    """Make a key that signs recordings, and its public key beside it."""

    path: tyro.conf.Positional[Path]
    """New file for the private key, as PEM; the public key gets the suffix .pub.pem."""

    def run(self) -> int:
        """Make it, say where."""
        public = generate_key(self.path)
        print(f"private key, to be kept secret: {self.path}\npublic key, to be given away: {public}")
        return 0


@dataclass(frozen=True)
class Record:
    """Run the policy of a run folder and record it."""

    run_folder: tyro.conf.Positional[Path]
    """Run folder, as scripts/train.py makes it."""
    out: Path
    """New file for the recording, .mcap."""
    episodes: int = 10
    """Episodes in all."""
    deterministic: bool = True
    """The most likely action; --no-deterministic samples."""
    seed: int = 0
    """Of environments and sampled actions."""
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

    def run(self) -> int:
        """Record, say what."""
        key = None if self.sign is None else read_private_key(self.sign)
        render: dict[str, Any] = dict(env_kwargs=dict(render_mode="rgb_array")) if self.images else {}
        n_envs = max(min(self.n_envs, self.episodes), 1)
        limit = self.max_episode_steps
        model, venv = load_run(
            self.run_folder, which=self.which, n_envs=n_envs, device="cpu", max_episode_steps=limit, **render
        )
        record_rollouts(
            model,
            venv,
            self.out,
            n_episodes=self.episodes,
            deterministic=self.deterministic,
            seed=self.seed,
            images=self.images,
            sign_key=key,
            progress_bar=self.progress_bar,
        )
        venv.close()
        recording = Recording.open(self.out)
        size = self.out.stat().st_size / 2**20
        print(f"{self.out}: {len(recording)} episodes, {sum(recording.lengths)} steps, {size:.1f} MiB")
        return 0


@dataclass(frozen=True)
class Verify:
    """Compare every byte of a recording with what was written."""

    file: tyro.conf.Positional[Path]
    """The recording."""
    public_key: Path | None = None
    """Public key, as PEM, of who must have signed it."""
    json: bool = False
    """Print JSON."""
    max_memory: int = MAX_MEMORY
    """Bytes that reading may take; what would take more is refused."""

    def run(self) -> int:
        """Print the verdict; 1 where something is wrong."""
        key = None if self.public_key is None else read_public_key(self.public_key)
        verification = verify(self.file, key, max_memory=self.max_memory)
        return _report(verification, self.json)


@dataclass(frozen=True)
class Replay:
    """Compute a recording again: from the file alone, with the model of a run, or from the seeds on."""

    file: tyro.conf.Positional[Path]
    """The recording."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Run folder that was recorded: its policy computes sensory inputs, actions and values again."""
    which: Literal["best", "last"] = "best"
    """Model of the run folder."""
    env: bool = False
    """Run the environments again too, from their seeds."""
    json: bool = False
    """Print JSON."""
    max_memory: int = MAX_MEMORY
    """Bytes that reading may take; what would take more is refused."""

    def run(self) -> int:
        """Print the verdict; 1 where something came out otherwise."""
        if self.run_folder is None and self.env:
            raise RecordingError("--env needs --run, the run folder whose policy acted.")
        recording = Recording.open(self.file, max_memory=self.max_memory)
        if self.run_folder is None:
            return _report(replay(recording), self.json)
        n_envs, limit = recording.layout.n_envs, recording.max_episode_steps
        model, venv = load_run(self.run_folder, which=self.which, n_envs=n_envs, device="cpu", max_episode_steps=limit)
        found = replay(recording, model, venv if self.env else None)
        venv.close()
        return _report(found, self.json)


@dataclass(frozen=True)
class Export:
    """Export a recording for data frames or offline reinforcement learning."""

    file: tyro.conf.Positional[Path]
    """The recording."""
    parquet: Path | None = None
    """New Parquet file, a row per step."""
    minari: str | None = None
    """Id of a new Minari dataset, such as pendulum/ncp-v0."""
    max_memory: int = MAX_MEMORY
    """Bytes that reading may take; what would take more is refused."""

    def run(self) -> int:
        """Export, say where."""
        if self.parquet is None and self.minari is None:
            raise RecordingError("Name --parquet FILE, --minari ID or both.")
        recording = Recording.open(self.file, max_memory=self.max_memory)
        if self.parquet is not None:
            print(write_parquet(recording, self.parquet))
        if self.minari is not None:
            print(write_minari(recording, self.minari).storage.data_path)
        return 0


Command = Keygen | Record | Verify | Replay | Export


def main(command: Command) -> int:
    """Do what was asked."""
    torch.set_num_threads(1)
    try:
        return command.run()
    except (RecordingError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _report(found: Any, as_json: bool) -> int:
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.path.append("")  # module:id is found in the current folder too, as under `python -m`.
    sys.exit(main(tyro.cli(Command, description=__doc__)))
