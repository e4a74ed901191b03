"""What weights mean besides their values: a fingerprint of the circuit that they are of, for its state dict.

Two circuits may have equally many synapses in different places, so that the shapes of their weights tell nothing. The
fingerprint holds a digest of the wiring, and the two settings of the solver, `elapsed_time` and `ode_unfolds`.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from ncp_rl.wiring import Wiring

_FORMAT = struct.Struct("<16sdI")


class _Fingerprint(NamedTuple):
    wiring: bytes
    elapsed_time: float
    ode_unfolds: int


def fingerprint(wiring: Wiring, elapsed_time: float, ode_unfolds: int) -> Tensor:
    """The fingerprint of a circuit, (28,) float32: its bytes, a number from 0 to 255 each.

    State dicts are averaged, interpolated and converted to half precision entry by entry; small whole numbers in
    floating point come through that as they were.
    """
    digest = hashlib.sha256(f"{wiring.units} {wiring.n_sensory} {wiring.n_command} {wiring.n_motor}".encode())
    for adjacency in (wiring.adjacency, wiring.sensory_adjacency):
        digest.update(adjacency.tobytes())
    return torch.tensor(list(_FORMAT.pack(digest.digest()[:16], elapsed_time, ode_unfolds)), dtype=torch.float32)


def mismatch(own: Tensor, other: object, key: str) -> str | None:
    """Why weights with the fingerprint `other`, found under `key`, are none of the circuit `own`; None if they are."""
    if other is None:
        return (
            f"The state dict must hold {key!r}, the fingerprint of the circuit that its weights are of, and has none; "
            "it is older than fingerprints, or was put together by hand. If you are sure that wiring, elapsed_time and "
            "ode_unfolds are those of the module it was taken from, set "
            f"state_dict[{key!r}] = module.get_extra_state() with the LTC that is to load it."
        )
    expected, came = _read(own), _read(other)
    assert expected is not None
    if came is None:
        return (
            f"{key!r} must be the fingerprint of a circuit, {len(own)} whole numbers from 0 to 255, and has been "
            "changed; leave this entry of the state dict as it is when you change the others."
        )
    differing = [name for name in _Fingerprint._fields if getattr(expected, name) != getattr(came, name)]
    if not differing:
        return None
    listed = "; ".join(
        f"{name} must be {_shown(getattr(expected, name))}, got {_shown(getattr(came, name))}" for name in differing
    )
    return (
        f"The weights are of another circuit than the one that loads them, by {key!r}: {listed}. Build the module with "
        "the wiring (its recipe's seed included), elapsed_time and ode_unfolds that the weights were trained with."
    )


def _read(tensor: object) -> _Fingerprint | None:
    """None where `tensor` is no fingerprint."""
    if not isinstance(tensor, Tensor):
        return None
    numbers = tensor.detach().cpu().double().round()
    if numbers.shape != (_FORMAT.size,) or not ((numbers >= 0) & (numbers <= 255)).all():
        return None
    return _Fingerprint(*_FORMAT.unpack(bytes(numbers.to(torch.uint8).tolist())))


def _shown(value: bytes | float) -> str:
    return f"that with the digest {value.hex()}" if isinstance(value, bytes) else str(value)
