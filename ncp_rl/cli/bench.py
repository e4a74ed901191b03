"""Time this machine's CPU: the scan, a step, and the training loop, beside nn.LSTM, SB3's own policies, and ncps.

Examples:
    ncp-rl bench                          # the table, on the CPU with one thread: a minute; with ncps, three
    ncp-rl bench --parts rllib            # training loops by RLlib on Ray, with one env runner and with two
    ncp-rl bench --parts cars             # lane keeping: one simulation against many, the camera
    ncp-rl bench --parts deployed         # exported controllers: here, and on a Cortex-M4F
    ncp-rl bench --out cpu.json

Contenders take turns, round after round, so that a machine whose speed drifts slows all of them; figures are medians
over rounds. Compilation and caches come before the first round. ncps takes part where it is installed: pip install
"ncp-rl[bench]". A GPU is timed by `make gpu`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ncp_rl.cli.status import FINE, reports_errors
from ncp_rl.extras import MissingExtraError, require

if TYPE_CHECKING:
    from ncp_rl.cli.stopwatch import Group

Part = Literal["scan", "step", "loop", "rllib", "recording", "memory", "cars", "deployed"]
#: All parts of the table.
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Args:
    """What to time."""

    threads: int = 1
    """Threads of torch and of the scan."""
    seconds: float = 6.0
    """For each group of contenders, at least five rounds."""
    parts: tuple[Part, ...] = ("scan", "step", "loop")
    """Parts of the table."""
    out: Path | None = None
    """JSON file for the figures."""


@reports_errors()
def main(args: Args) -> int:
    """Time, print, save."""
    import torch

    from ncp_rl.cli.contenders import TIMED
    from ncp_rl.cli.stopwatch import Timing

    torch.set_num_threads(args.threads)
    peers = has_ncps()
    machine = describe_machine(args, peers)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), end="\n\n")
    groups: list[Group] = []
    for part in PARTS:
        if part in args.parts:
            for group in TIMED[part](Timing(args.seconds)):
                print(group.table(), flush=True)
                groups.append(group)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"machine": machine, "groups": [asdict(group) for group in groups]}, indent=2))
    return FINE


def has_ncps() -> bool:
    """Whether ncps takes part; where it does not, standard error says how it would."""
    try:
        require("bench", "ncps", by="The comparison with ncps")
    except MissingExtraError as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True


def describe_machine(args: Args, peers: bool) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    names = ("torch", "numba", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib", *(["ncps"] if peers else []))
    cpu = Path("/proc/cpuinfo")
    models = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in names),
    }
