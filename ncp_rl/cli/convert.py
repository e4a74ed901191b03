"""Write a recording as a table for data frames, or as a dataset for offline reinforcement learning.

Examples:
    ncp-rl convert mine.mcap --parquet mine.parquet
    ncp-rl convert mine.mcap --minari mine/ncp-v0
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ncp_rl.cli.status import FINE, reports_errors


@dataclass(frozen=True)
class Args:
    """Write a recording for data frames or offline reinforcement learning."""

    file: Positional[Path]
    """The recording."""
    parquet: Path | None = None
    """New Parquet file, a row per step."""
    minari: str | None = None
    """Id of a new Minari dataset, such as pendulum/ncp-v0."""
    max_memory: int | None = None
    """Bytes that reading may take; what would take more is refused. Default: 512 MiB."""


@reports_errors()
def main(args: Args) -> int:
    """Convert, say where."""
    from ncp_rl.cli.reading import opened
    from ncp_rl.recording import RecordingError, write_minari, write_parquet

    if args.parquet is None and args.minari is None:
        raise RecordingError("Name --parquet FILE, --minari ID or both.")
    recording = opened(args.file, args.max_memory)
    if args.parquet is not None:
        print(write_parquet(recording, args.parquet))
    if args.minari is not None:
        print(write_minari(recording, args.minari).storage.data_path)
    return FINE
