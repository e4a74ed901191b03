"""Compare every byte of a recording with what was written.

Examples:
    ncp-rl verify mine.mcap
    ncp-rl verify mine.mcap --public-key key.pub.pem --json

Without a signature this shows damage, and edits by those who do not know the chain of hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ncp_rl.cli.status import reports_errors


@dataclass(frozen=True)
class Args:
    """Compare every byte of a recording with what was written."""

    file: Positional[Path]
    """The recording."""
    public_key: Path | None = None
    """Public key, as PEM, of who must have signed it."""
    json: bool = False
    """Print JSON."""
    max_memory: int | None = None
    """Bytes that reading may take; what would take more is refused. Default: 512 MiB."""


@reports_errors()
def main(args: Args) -> int:
    """Print the verdict; 1 where something is wrong."""
    from ncp_rl.cli.reading import limit, report
    from ncp_rl.recording import read_public_key, verify

    key = None if args.public_key is None else read_public_key(args.public_key)
    return report(verify(args.file, key, **limit(args.max_memory)), args.json)
