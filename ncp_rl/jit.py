"""Functions compiled by Numba once per machine and version of the sources, and kept in a cache.

Numba's own cache looks only at the file of the compiled function; after an edit of a function that it calls from
another file it would run the old code. Here the name of a cache file holds a digest of the kernel's own file, of this
one, and of those that `sources` digests, so old code cannot be found, not even while another process writes the new
code. A kernel without `sources` calls functions of its own file and of this one only.

Two kernels must not share an index file: where two processes write it at once, the entry of one can end up with the
code of the other. So the digest covers the processor too, and each variant of a kernel has its own name.
"""

# mypy: allow-untyped-calls, allow-subclassing-any

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
from numba import extending
from numba.core import caching, types
from numba.core.registry import cpu_target


def compiled_for() -> tuple[str, str]:
    """Return name and features of the processor that Numba compiles for: this one, or NUMBA_CPU_NAME's."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    return str(name), str(features)


def digest_of(sources: Iterable[Path]) -> str:
    """Return the SHA-256 of files and of the processor that Numba compiles for, 16 hexadecimal digits."""
    digest = hashlib.sha256(repr(cpu_target.target_context.codegen().magic_tuple()).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _AnnouncingCache(caching.FunctionCache):
    """A cache that announces each compilation."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            announce_compilation()
        return found


class _NoCache(caching.NullCache):
    """A cache for machines on which no folder can be written: every process compiles."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        announce_compilation()


@functools.cache
def announce_compilation() -> None:
    """Print once per process that kernels are compiled, which takes some seconds."""
    print("ncp_rl: compiling the CPU kernels; this takes about ten seconds, once per machine.", file=sys.stderr)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` into the kernels that call it."""
    return numba.njit(error_model="numpy", nogil=True)(function)


def kernel(function: Callable[..., Any], *, variant: object = "", sources: str = "") -> Any:
    """Compile `function` when it is first called, or load it from the cache; it runs without the GIL.

    Args:
        function: Function to compile; it must always be called with arguments of the same types.
        variant: Name that distinguishes functions which a factory makes from the same lines.
        sources: `digest_of` the other files that `function` is compiled from: those of the functions and constants that
            it uses.
    """
    own = digest_of((Path(__file__), Path(inspect.getfile(function))))
    # Numba names the cache's files after this name.
    function.__qualname__ += f"{variant}_{sources}{own}"
    dispatcher = inlined(function)
    try:
        dispatcher._cache = _AnnouncingCache(function)
    except RuntimeError:
        # Numba found no folder that it can write to.
        dispatcher._cache = _NoCache()
    return dispatcher


def _never_inline(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        builder.function.attributes.alignstack = 64
        return context.get_dummy_value()

    return types.void(), generate


#: A call within a compiled function keeps LLVM from inlining that function into its callers, whose values would take
#: its registers. Its own values that find no register are kept on its stack, aligned to cache lines.
never_inline: Any = extending.intrinsic(_never_inline)
