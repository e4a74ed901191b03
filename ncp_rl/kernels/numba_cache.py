"""Compilation of the Numba kernels: once per machine and version of the sources, announced, and kept.

Numba's own cache looks at the file of the compiled function only; an edit in a function that it calls from another
file would run the old code. Here the name of a cache file holds a digest of all kernel sources, so old code cannot be
found, not even while another process writes the new. A kernel from elsewhere calls functions of its own file and of
these alone: the name of its cache file holds a digest of its own file too.

Nor may two kernels share an index file: where two processes write it at once, the entry of one can end up with the code
of the other. So the digest covers the processor too, and each variant of a kernel has a name of its own.
"""

# mypy: allow-untyped-calls, allow-subclassing-any

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching
from numba.core.registry import cpu_target


def compiled_for() -> tuple[str, str]:
    """Name and features of the processor that Numba compiles for: this one, unless NUMBA_CPU_NAME names another."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    return str(name), str(features)


@functools.cache
def sources_digest() -> str:
    """SHA-256 over the sources that Numba compiles and the processor that it compiles for, 16 hexadecimal digits."""
    folder = Path(__file__).parent
    digest = hashlib.sha256(repr(cpu_target.target_context.codegen().magic_tuple()).encode())
    for path in (folder / "contract.py", *sorted(folder.glob("numba_*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _keyed_by_sources(locator: type[Any]) -> type[Any]:
    class _Locator(locator):
        def get_disambiguator(self) -> str:
            own = hashlib.sha256(Path(self._py_file).read_bytes()).hexdigest()[:16]
            return f"{sources_digest()}{own}"

    return _Locator


class _CacheImpl(caching.CompileResultCacheImpl):
    # NUMBA_CACHE_DIR first, then next to the sources, then, where those cannot be written, the user's cache folder.
    _locator_classes = [  # noqa: RUF012
        _keyed_by_sources(locator)
        for locator in (
            caching.UserProvidedCacheLocator,
            caching.InTreeCacheLocator,
            caching.UserWideCacheLocator,
        )
    ]


class _AnnouncingCache(caching.FunctionCache):
    """Says so before it compiles."""

    _impl_class = _CacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            announce_compilation()
        return found


class _NoCache(caching.NullCache):
    """For a machine on which no folder can be written: every process compiles."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        announce_compilation()


@functools.cache
def announce_compilation() -> None:
    """Tell whoever sits at the terminal, once per process, why nothing happens for some seconds."""
    print("ncp_rl: compiling the CPU kernels; this takes about ten seconds, once per machine.", file=sys.stderr)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` into the kernels that call it."""
    return numba.njit(error_model="numpy", nogil=True)(function)


def kernel(function: Callable[..., Any], *, variant: object = "") -> Any:
    """Compile `function` when it is first called, or take it from the cache; it runs without the GIL.

    Args:
        function: What to compile; it is called with arguments of the same types always.
        variant: Tells functions apart that a factory makes from the same lines.
    """
    function.__qualname__ += str(variant)
    dispatcher = inlined(function)
    try:
        dispatcher._cache = _AnnouncingCache(function)
    except RuntimeError:
        # Numba found no folder that it may write to.
        dispatcher._cache = _NoCache()
    return dispatcher
