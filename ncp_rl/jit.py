"""Functions compiled by Numba: once per machine and version of the sources, announced, and kept.

Numba's own cache looks at the file of the compiled function only; an edit in a function that it calls from another
file would run the old code. Here the name of a cache file holds a digest of the kernel's own file, of this one, and of
those that `sources` stands for, so old code cannot be found, not even while another process writes the new. A kernel
without `sources` calls functions of its own file and of these alone.

Nor may two kernels share an index file: where two processes write it at once, the entry of one can end up with the code
of the other. So the digest covers the processor too, and each variant of a kernel has a name of its own.
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
    """Name and features of the processor that Numba compiles for: this one, unless NUMBA_CPU_NAME names another."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    return str(name), str(features)


def digest_of(sources: Iterable[Path]) -> str:
    """SHA-256 over files and the processor that Numba compiles for, 16 hexadecimal digits."""
    digest = hashlib.sha256(repr(cpu_target.target_context.codegen().magic_tuple()).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _AnnouncingCache(caching.FunctionCache):
    """Says so before it compiles."""

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


def kernel(function: Callable[..., Any], *, variant: object = "", sources: str = "") -> Any:
    """Compile `function` when it is first called, or take it from the cache; it runs without the GIL.

    Args:
        function: What to compile; it is called with arguments of the same types always.
        variant: Tells functions apart that a factory makes from the same lines.
        sources: `digest_of` the other files that `function` is compiled from, those of functions and constants that it
            uses.
    """
    own = digest_of((Path(__file__), Path(inspect.getfile(function))))
    # Numba names the cache's files by this name.
    function.__qualname__ += f"{variant}_{sources}{own}"
    dispatcher = inlined(function)
    try:
        dispatcher._cache = _AnnouncingCache(function)
    except RuntimeError:
        # Numba found no folder that it may write to.
        dispatcher._cache = _NoCache()
    return dispatcher


def _never_inline(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        builder.function.attributes.alignstack = 64
        return context.get_dummy_value()

    return types.void(), generate


#: Called within a compiled function: that function never becomes part of its callers, whose values would take its
#: registers. Those of its own values that find no register are kept on its stack, within cache lines.
never_inline: Any = extending.intrinsic(_never_inline)
