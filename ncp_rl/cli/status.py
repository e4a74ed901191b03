"""Exit statuses of the commands, and how an error becomes one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from ncp_rl.errors import NCPError

P = ParamSpec("P")

#: All is well.
FINE = 0
#: A verdict failed.
FAILED = 1
#: What was asked for cannot be done; tyro, too, ends so where arguments are wrong.
REFUSED = 2


def reports_errors(*others: type[Exception]) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Make a command print errors that tell a user what to do in one line, and return `REFUSED`.

    Args:
        *others: Errors beside `NCPError` whose messages are for users too.
    """
    told: tuple[type[Exception], ...] = (NCPError, *others)

    def decorate(command: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(command)
        def reporting(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return command(*args, **kwargs)
            except told as error:
                print(f"error: {error}", file=sys.stderr)
                return REFUSED

        return reporting

    return decorate


def verdict(passed: bool) -> int:
    """The status of a verdict."""
    return FINE if passed else FAILED
