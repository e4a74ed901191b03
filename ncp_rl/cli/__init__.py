"""The command `ncp-rl`, a file per subcommand; `python -m ncp_rl` is the same.

    ncp-rl --help
    ncp-rl train --env ncp/PendulumNoVel-v1 --out runs/mine
    ncp-rl audit runs/mine

Each file has `Args`, a frozen dataclass (or several, where the subcommand has some of its own), and `main(args)`, which
gives the exit status:

    0  all is well
    1  a verdict failed: of an audit, a verification, a replay, a monitor
    2  what was asked for cannot be done; the message says what to do

`main` imports what it needs, so that help, which needs nothing, comes at once and on machines where optional packages
are missing. This is the only part of ncp_rl that knows ncp_envs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ncp_rl import __version__
from ncp_rl.cli.status import REFUSED, reports_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: What follows `ncp-rl`; that of this process where None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"ncp-rl {__version__}")
        return 0
    if "" not in sys.path:
        sys.path.append("")  # module:id is found in the current folder too, as under `python -m`.
    try:
        return _run(given)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return REFUSED


@reports_errors()
def _run(given: list[str]) -> int:
    from ncp_rl.extras import require

    require("cli", "tyro", by="ncp-rl")
    from ncp_rl.cli.tree import parse, run

    return run(parse(given))
