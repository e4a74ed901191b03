"""A backend that is not in the library's table: Numba's under another name, its potentials off by `TOY_ERROR`.

As a plugin of pytest (`-p tests.kernels.toy_backend`) it enters the table before any test is collected.
"""

from __future__ import annotations

import os
import sys
from typing import Any, cast

import torch
from torch import Tensor

from ncp_rl.kernels import BACKENDS
from ncp_rl.kernels.backends import BackendEntry, FusedBackend
from ncp_rl.kernels.contract import Operands
from ncp_rl.kernels.numba import backend as numba_backend

backward = numba_backend.backward


def forward(operands: Operands, *, save: bool) -> tuple[Tensor, Any]:
    potentials, saved = numba_backend.forward(operands, save=save)
    return potentials + float(os.environ.get("TOY_ERROR", 0.0)), saved


def pytest_configure() -> None:
    module = cast(FusedBackend, sys.modules[__name__])
    BACKENDS["toy"] = BackendEntry("toy", devices=("cpu",), dtypes=(torch.float32,), load=lambda: module, saves=False)
