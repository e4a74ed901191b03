"""The processes of a pool: they compute with one thread, and end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

import torch


def begin_worker() -> None:
    """Begin a process of a pool.

    A pool's processes wait for work forever where the process that started them was killed, and keep their memory.
    """
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
