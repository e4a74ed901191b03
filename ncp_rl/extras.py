"""Optional packages: what is missing is named, with the pip command that brings it, when it is asked for.

pyproject.toml says which extra brings which package, and why.
"""

from __future__ import annotations

from importlib.util import find_spec

from ncp_rl.errors import NCPError


class MissingExtraError(NCPError, ModuleNotFoundError):
    """An optional package is not installed; the message has the pip command."""


def require(extra: str, *modules: str, by: str, otherwise: str = "") -> None:
    """Check that optional packages are installed; none is imported.

    Args:
        extra: The extra of ncp-rl that brings them.
        *modules: Top-level modules, by the names under which they are imported.
        by: Who needs them, as the subject of the message.
        otherwise: What can be done without them, as the end of the message.

    Raises:
        MissingExtraError: Some are not installed; the message names all of these.
    """
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        command = f'pip install "ncp-rl[{extra}]"'
        raise MissingExtraError(
            f"{by} needs {', '.join(missing)}, which {verb} not installed; run: {command}{otherwise}", name=missing[0]
        )


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # ValueError: sys.modules holds None, which blocks an import.
        return False
