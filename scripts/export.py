"""Export a trained policy to C99, NumPy or ONNX, and prove that the export does what was recorded.

Examples:
    python scripts/export.py c runs/mine --out controller
    python scripts/export.py numpy runs/mine --out controller
    python scripts/export.py onnx runs/mine --out controller
    python scripts/export.py monitor flight.mcap --out controller
    python scripts/export.py verify controller flight.mcap
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro import MISSING
from tyro.conf import Positional, subcommand

from ncp_rl.cli import replay
from ncp_rl.cli.export import Args
from ncp_rl.cli.monitor import Fit
from ncp_rl.cli.tree import door, run


@dataclass(frozen=True)
class Verify:
    """Drive an export with the observations of a recording, and compare every potential and action."""

    export: Positional[Path]
    """Folder with controller.c, or controller.json or controller.onnx."""
    file: Positional[Path]
    """The recording."""
    json: bool = False
    """Print JSON."""


Command = (
    Annotated[Args, subcommand("c", default=Args(MISSING, MISSING, to="c"))]
    | Annotated[Args, subcommand("numpy", default=Args(MISSING, MISSING, to="numpy"))]
    | Annotated[Args, subcommand("onnx", default=Args(MISSING, MISSING, to="onnx"))]
    | Annotated[Fit, subcommand("monitor")]
    | Annotated[Verify, subcommand("verify")]
)


def main(command: Any) -> int:
    """Do what was asked."""
    if isinstance(command, Verify):
        command = replay.Args(command.file, deployed=command.export, json=command.json)
    return run(command)


if __name__ == "__main__":
    door(Command, main, __doc__)
