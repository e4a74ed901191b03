"""Make a key that signs recordings, and its public key beside it.

Examples:
    ncp-rl keygen key.pem
    ncp-rl record runs/mine --out mine.mcap --sign key.pem
    ncp-rl verify mine.mcap --public-key key.pub.pem
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ncp_rl.cli.status import FINE, reports_errors


@dataclass(frozen=True)
class Args:
    """Make a key that signs recordings, and its public key beside it."""

    path: Positional[Path]
    """New file for the private key, as PEM; the public key gets the suffix .pub.pem."""


@reports_errors()
def main(args: Args) -> int:
    """Make it, say where."""
    from ncp_rl.recording import generate_key

    public = generate_key(args.path)
    print(f"private key, to be kept secret: {args.path}\npublic key, to be given away: {public}")
    return FINE
