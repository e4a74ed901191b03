"""What the commands that read recordings share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncp_rl.cli.status import verdict

if TYPE_CHECKING:
    from ncp_rl.recording import Recording


def opened(file: Path, max_memory: int | None = None) -> Recording:
    """A recording; `max_memory` as on the command line, the library's own limit where None."""
    from ncp_rl.recording import Recording

    return Recording.open(file, **limit(max_memory))


def limit(max_memory: int | None) -> dict[str, Any]:
    """The argument `max_memory` of what reads a recording; none where the library's own limit holds."""
    return {} if max_memory is None else dict(max_memory=max_memory)


def report(found: Any, as_json: bool) -> int:
    """Print what was found, as a sentence or JSON; the status of its verdict."""
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)
    return verdict(found.passed)
