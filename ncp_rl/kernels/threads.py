"""The threads that kernels run on: PyTorch's own, where that is possible.

Between one parallel operation and the next, PyTorch's OpenMP threads wait actively, for milliseconds, on processors
that other threads would have to share with them. So kernels run on the same threads, through the function that GCC
compiles parallel regions into, `GOMP_parallel`; the OpenMP runtimes of LLVM and Intel have it too. Where PyTorch has
no OpenMP, and in a forked process, which lacks OpenMP's threads, a thread pool is used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

#: `void GOMP_parallel(void (*task)(void *), void *data, unsigned n_threads, unsigned flags)`, libgomp's ABI.
_gomp_parallel = None
if sys.platform == "linux" and torch.backends.openmp.is_available():
    _gomp_parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
if _gomp_parallel is not None:
    _gomp_parallel.argtypes = [_TASK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    _gomp_parallel.restype = None


def run_in_threads(task: Callable[[], None], n_threads: int) -> None:
    """Call `task` in `n_threads` threads at once, this one among them, and wait for all.

    There may be fewer threads than asked for: tasks divide the work among themselves.

    Raises:
        BaseException: The first exception that a task raised.
    """
    if _gomp_parallel is None:
        others = [_pool().submit(task) for _ in range(n_threads - 1)]
        try:
            task()
        finally:
            wait(others)
        for other in others:
            other.result()
        return
    failures: list[BaseException] = []

    def guarded(_: int | None) -> None:
        # An exception cannot pass through the C code in between.
        try:
            task()
        except BaseException as failure:
            failures.append(failure)

    _gomp_parallel(_TASK(guarded), None, n_threads, 0)
    if failures:
        raise failures[0]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="ncp_rl")


def _after_fork() -> None:
    global _gomp_parallel
    _gomp_parallel = None
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
