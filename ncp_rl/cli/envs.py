"""List the environments under ncp/: what is observed, what is done, and what is hidden.

Examples:
    ncp-rl envs
    ncp-rl envs --json
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ncp_rl.cli.status import FINE, reports_errors


@dataclass(frozen=True)
class Args:
    """List the environments under ncp/."""

    json: bool = False
    """Print JSON."""


@reports_errors()
def main(args: Args) -> int:
    """A line for each environment."""
    from ncp_envs.catalogue import catalogue

    entries = catalogue()
    if args.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return FINE
    rows = [("id", "observation", "action", "hidden")]
    for entry in entries:
        seen = entry.observation_space or "cannot be made here"
        rows.append((entry.id, seen, entry.action_space, entry.hidden))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(part.ljust(width) for part, width in zip(row, (*widths, 0), strict=True)).rstrip())
    for missing in dict.fromkeys(entry.missing for entry in entries if entry.missing):
        print(missing)
    return FINE
