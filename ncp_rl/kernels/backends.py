"""The table of the scan's backends, which `ltc_scan`, the tests and the benchmark read.

A fused backend is a module with the functions of `FusedBackend`; `ncp_rl.kernels.fused` connects it to PyTorch. To
add one, add an entry here, and to `Backend`: `tests/kernels/test_scan.py` runs over all entries.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from ncp_rl.extras import require
from ncp_rl.kernels.contract import Gradients, Operands

#: Values of `ltc_scan`'s argument `backend`, for type checkers: "auto" and the names of `BACKENDS`.
Backend = Literal["auto", "reference", "numba", "triton"]


class FusedBackend(Protocol):
    """The functions of a module that is a fused backend."""

    def forward(self, operands: Operands, *, save: bool) -> tuple[Tensor, Any]:
        """Return the potentials (T, N, U) and, if `save`, anything that `backward` can use, or None."""

    def backward(self, grad: Tensor, potentials: Tensor, saved: Any, operands: Operands) -> Gradients:
        """Return the gradients for `grad` (T, N, U) of the potentials that `forward` returned; `saved` may be None."""


@dataclass(frozen=True)
class BackendEntry:
    """The properties of a backend that are known before it is loaded."""

    name: str
    devices: tuple[str, ...] | None
    """Types of the devices that it runs on; None stands for all."""
    dtypes: tuple[torch.dtype, ...] | None
    """Dtypes in which it computes; None stands for all floating-point dtypes."""
    load: Callable[[], FusedBackend] | None
    """Function that imports the module; None for the reference, which is plain PyTorch."""
    saves: bool
    """Whether its forward pass keeps values for its backward pass: up to `SAVED_BYTES`, a number
    of its module, which a test or a user may change."""

    def serves(self, dtype: torch.dtype, device: str) -> bool:
        """Return whether the backend computes in `dtype` on devices of the type `device`."""
        return (self.dtypes is None or dtype in self.dtypes) and (self.devices is None or device in self.devices)


@functools.cache
def _load_numba() -> FusedBackend:
    return cast(FusedBackend, importlib.import_module("ncp_rl.kernels.numba.backend"))


@functools.cache
def _load_triton() -> FusedBackend:
    require("triton", "triton", by="The scan on CUDA", otherwise=', or take the slower backend="reference".')
    return cast(FusedBackend, importlib.import_module("ncp_rl.kernels.triton.backend"))


#: The backends by name. "auto" is the first fused backend that serves the operands, or else the reference.
BACKENDS: dict[str, BackendEntry] = {
    entry.name: entry
    for entry in (
        BackendEntry("reference", devices=None, dtypes=None, load=None, saves=False),
        BackendEntry("numba", devices=("cpu",), dtypes=(torch.float32,), load=_load_numba, saves=True),
        BackendEntry("triton", devices=("cuda",), dtypes=(torch.float32,), load=_load_triton, saves=True),
    )
}


def choose(name: str, dtype: torch.dtype, device: str) -> BackendEntry:
    """Return the named backend, or the best for "auto", to compute in `dtype` on devices of the type `device`.

    Raises:
        ValueError: No backend has this name, or it does not compute in this dtype on this device.
    """
    if name == "auto":
        for entry in BACKENDS.values():
            if entry.load is not None and entry.serves(dtype, device):
                return entry
        return BACKENDS["reference"]
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(('auto', *BACKENDS))}, got {name!r}.")
    entry = BACKENDS[name]
    if not entry.serves(dtype, device):
        dtypes = " or ".join(map(str, entry.dtypes or ("any dtype",)))
        devices = " or ".join(entry.devices or ("any device",))
        raise ValueError(
            f'backend="{name}" runs {dtypes} on {devices}, got {dtype} on {device}; convert the operands, or use '
            'backend="auto".'
        )
    return entry


def load_backend(name: str) -> FusedBackend:
    """Return the module of a fused backend, which the first call imports.

    Raises:
        ValueError: No fused backend has this name.
        ModuleNotFoundError: The backend needs a package that is not installed.
    """
    entry = BACKENDS.get(name)
    if entry is None or entry.load is None:
        fused = ", ".join(entry.name for entry in BACKENDS.values() if entry.load is not None)
        raise ValueError(f"name must be one of the fused backends, {fused}, got {name!r}.")
    return entry.load()
