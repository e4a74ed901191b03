"""The backends of the scan: one table, which `ltc_scan`, the tests and the benchmark read.

A fused backend is a module with the functions of `FusedBackend`; `ncp_rl.kernels.fused` fits it into PyTorch. To add
one, add a row: `tests/kernels/test_scan.py` runs over all of them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from ncp_rl.kernels.contract import Gradients, Operands

#: What `ltc_scan` may be asked for, for type checkers: "auto" and the names of `BACKENDS`.
Backend = Literal["auto", "reference", "numba", "triton"]


class FusedBackend(Protocol):
    """What a module offers to be a fused backend."""

    def forward(self, operands: Operands, *, save: bool) -> tuple[Tensor, Any]:
        """Potentials (T, N, U), and what `backward` can use if `save`: of any kind, None if nothing."""

    def backward(self, grad: Tensor, potentials: Tensor, saved: Any, operands: Operands) -> Gradients:
        """Gradients for `grad` (T, N, U) of the potentials that `forward` returned; `saved` may be None."""


@dataclass(frozen=True)
class Row:
    """What is known of a backend before it is loaded."""

    name: str
    devices: tuple[str, ...] | None
    """Types of the devices that it runs on; None for any."""
    dtypes: tuple[torch.dtype, ...] | None
    """What it computes in; None for any floating-point dtype."""
    load: Callable[[], FusedBackend] | None
    """Imports the module; None for the reference, which is plain PyTorch."""
    saves: bool
    """Whether its forward pass keeps for the backward pass what would be computed again otherwise, in up to
    `SAVED_BYTES` bytes, a variable of its module."""

    def serves(self, dtype: torch.dtype, device: str) -> bool:
        """Whether the backend computes in `dtype` on devices of the type `device`."""
        return (self.dtypes is None or dtype in self.dtypes) and (self.devices is None or device in self.devices)


@functools.cache
def _load_numba() -> FusedBackend:
    return cast(FusedBackend, importlib.import_module("ncp_rl.kernels.numba.backend"))


@functools.cache
def _load_triton() -> FusedBackend:
    try:
        return cast(FusedBackend, importlib.import_module("ncp_rl.kernels.triton.backend"))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The scan on CUDA needs triton, which is not installed; "
            "run `pip install 'ncp-rl[triton]'`, or use the slower backend=\"reference\"."
        ) from error


#: By name. "auto" is the first fused one that serves the operands, the reference where none does.
BACKENDS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("reference", devices=None, dtypes=None, load=None, saves=False),
        Row("numba", devices=("cpu",), dtypes=(torch.float32,), load=_load_numba, saves=True),
        Row("triton", devices=("cuda",), dtypes=(torch.float32,), load=_load_triton, saves=True),
    )
}


def choose(name: str, dtype: torch.dtype, device: str) -> Row:
    """The backend that is named, or the best for "auto", to compute in `dtype` on devices of the type `device`.

    Raises:
        ValueError: No backend has this name, or it does not compute in this dtype on this device.
    """
    if name == "auto":
        for row in BACKENDS.values():
            if row.load is not None and row.serves(dtype, device):
                return row
        return BACKENDS["reference"]
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(('auto', *BACKENDS))}, got {name!r}.")
    row = BACKENDS[name]
    if not row.serves(dtype, device):
        dtypes = " or ".join(map(str, row.dtypes or ("any dtype",)))
        devices = " or ".join(row.devices or ("any device",))
        raise ValueError(
            f'backend="{name}" runs {dtypes} on {devices}, got {dtype} on {device}; convert the operands, or use '
            'backend="auto".'
        )
    return row


def load_backend(name: str) -> FusedBackend:
    """The module of a fused backend, imported when it is first asked for.

    Raises:
        ValueError: No fused backend has this name.
        ModuleNotFoundError: The backend needs a package that is not installed.
    """
    row = BACKENDS.get(name)
    if row is None or row.load is None:
        fused = ", ".join(row.name for row in BACKENDS.values() if row.load is not None)
        raise ValueError(f"The fused backends are {fused}, got {name!r}.")
    return row.load()
