"""The subcommands as one tree for tyro: parsing, help and shell completion."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any, NoReturn, Union

import tyro
from tyro import MISSING_NONPROP as MISSING

from ncp_rl.cli import (
    audit,
    bench,
    convert,
    envs,
    evaluate,
    export,
    keygen,
    monitor,
    record,
    replay,
    sweep,
    teach,
    train,
    verify,
)

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "sweep": sweep,
    "evaluate": evaluate,
    "teach": teach,
    "record": record,
    "verify": verify,
    "replay": replay,
    "convert": convert,
    "export": export,
    "audit": audit,
    "monitor": monitor,
    "envs": envs,
    "keygen": keygen,
    "bench": bench,
}

DESCRIPTION = """Neural circuit policies for reinforcement learning that can be audited.

Examples:
    ncp-rl train --env ncp/PendulumNoVel-v1 --out runs/mine
    ncp-rl evaluate runs/mine
    ncp-rl audit runs/mine
    ncp-rl train --help

Exit statuses:
    0  all is well
    1  a verdict failed: of an audit, a verification, a replay, a monitor
    2  what was asked for cannot be done; the message says what to do

Other options:
    --version  print the version
    --tyro-print-completion {bash,zsh,tcsh}  print a script that completes commands and options; in bash:
               ncp-rl --tyro-print-completion bash > ~/.local/share/bash-completion/completions/ncp-rl
"""


def parse(arguments: Sequence[str]) -> Any:
    """The arguments of a subcommand, an instance of its `Args`; ends the process where they are wrong."""
    asked = arguments[0] if arguments else None
    # The list of subcommands has a line for each; the help of one has its examples too.
    lines = {name: description(module).partition("\n")[0] for name, module in COMMANDS.items()}
    if asked in COMMANDS:
        lines[asked] = description(COMMANDS[asked])
    return tyro.cli(union(COMMANDS, lines), prog="ncp-rl", description=DESCRIPTION, args=list(arguments))


def description(module: ModuleType) -> str:
    """What the help of a subcommand says: the docstring of its module."""
    return (module.__doc__ or "").strip()


def union(modules: Mapping[str, ModuleType], lines: Mapping[str, str] | None = None) -> Any:
    """The type that tyro parses into the `Args` of one of several subcommands.

    Args:
        modules: By the names of the subcommands.
        lines: What help says of each; else the docstring of its `Args`.
    """
    parts = [
        Annotated[module.Args, tyro.conf.subcommand(name, description=None if lines is None else lines[name])]
        for name, module in modules.items()
    ]
    return Union[tuple(parts)]  # noqa: UP007  (made of a list)


def run(args: Any) -> int:
    """Run the subcommand to which arguments belong."""
    status: int = sys.modules[type(args).__module__].main(args)
    return status


def door(args_type: Any, command: Any, description: str | None, *, default: Any = MISSING) -> NoReturn:
    """Parse the arguments of a script, run it, and end the process with its status.

    Args:
        args_type: What tyro parses them into.
        command: Takes that and gives an exit status.
        description: For its help.
        default: Arguments that are not given.
    """
    sys.path.append("")  # module:id is found in the current folder too, as under `python -m`.
    sys.exit(command(tyro.cli(args_type, description=description, default=default)))
