"""The backends of the scan: one table, which `ltc_scan`, the tests and the benchmark read.

A fused backend is a module with the functions of `FusedBackend`; `ncp_rl.kernels.fused` fits it into PyTorch. Whoever
adds one adds an entry here, and to `Backend`: `tests/kernels/test_scan.py` runs over all entries.
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

#: What `ltc_scan` may be asked for, for type checkers: "auto" and the names of `BACKENDS`.
Backend = Literal["auto", "reference", "numba", "triton"]


class FusedBackend(Protocol):
    """What a module offers to be a fused backend."""

    def forward(self, operands: Operands, *, save: bool) -> tuple[Tensor, Any]:
        """Potentials (T, N, U), and what `backward` can use if `save`: of any kind, None if nothing."""

    def backward(self, grad: Tensor, potentials: Tensor, saved: Any, operands: Operands) -> Gradients:
        """Gradients for `grad` (T, N, U) of the potentials that `forward` returned; `saved` may be None."""


@dataclass(frozen=True)
class BackendEntry:
    """What is known of a backend before it is loaded."""

    name: str
    devices: tuple[str, ...] | None
    """Types of the devices that it runs on; None for any."""
    dtypes: tuple[torch.dtype, ...] | None
    """What it computes in; None for any floating-point dtype."""
    load: Callable[[], FusedBackend] | None
    """Imports the module; None for the reference, which is plain PyTorch."""
    saves: bool
    """Whether its forward pass keeps what its backward pass would have to compute again: up to `SAVED_BYTES`, a number
    of its module, where a test or a user may set another."""

    def serves(self, dtype: torch.dtype, device: str) -> bool:
        """Whether the backend computes in `dtype` on devices of the type `device`."""
        return (self.dtypes is None or dtype in self.dtypes) and (self.devices is None or device in self.devices)


@functools.cache
def _load_numba() -> FusedBackend:
    return cast(FusedBackend, importlib.import_module("ncp_rl.kernels.numba.backend"))


@functools.cache
def _load_triton() -> FusedBackend:
    require("triton", "triton", by="The scan on CUDA", otherwise=', or take the slower backend="reference".')
    return cast(FusedBackend, importlib.import_module("ncp_rl.kernels.triton.backend"))


#: By name. "auto" is the first fused one that serves the operands, the reference where none does.
BACKENDS: dict[str, BackendEntry] = {
    entry.name: entry
    for entry in (
        BackendEntry("reference", devices=None, dtypes=None, load=None, saves=False),
        BackendEntry("numba", devices=("cpu",), dtypes=(torch.float32,), load=_load_numba, saves=True),
        BackendEntry("triton", devices=("cuda",), dtypes=(torch.float32,), load=_load_triton, saves=True),
    )
}


def choose(name: str, dtype: torch.dtype, device: str) -> BackendEntry:
    """The backend that is named, or the best for "auto", to compute in `dtype` on devices of the type `device`.

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
    """The module of a fused backend, imported when it is first asked for.

    Raises:
        ValueError: No fused backend has this name.
        ModuleNotFoundError: The backend needs a package that is not installed.
    """
    entry = BACKENDS.get(name)
    if entry is None or entry.load is None:
        fused = ", ".join(entry.name for entry in BACKENDS.values() if entry.load is not None)
        raise ValueError(f"The fused backends are {fused}, got {name!r}.")
    return entry.load()
