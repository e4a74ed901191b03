"""The fingerprint of a circuit, which its state dict carries so that weights load into no other circuit.

Two circuits may have equally many synapses in different places, so the shapes of their weights do not distinguish them.
The fingerprint holds a digest of the wiring, `elapsed_time`, and the setting that decides the meaning of the weights:
the `ode_unfolds` of an LTC, the `mode` of a CfC.
"""

from __future__ import annotations

import hashlib
import struct
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ncp_rl.wiring import Wiring


class _LTCFingerprint(NamedTuple):
    wiring: bytes
    elapsed_time: float
    ode_unfolds: int


class _CfCFingerprint(NamedTuple):
    wiring: bytes
    elapsed_time: float
    mode: bytes


_Fingerprint = _LTCFingerprint | _CfCFingerprint

# The formats have different lengths, which distinguish them.
_FORMATS: dict[type[_Fingerprint], struct.Struct] = {
    _LTCFingerprint: struct.Struct("<16sdI"),
    _CfCFingerprint: struct.Struct("<16sd8s"),
}


class Fingerprinted(nn.Module):
    """A layer over a wiring whose state dict carries its fingerprint, and which refuses other circuits' weights."""

    @abstractmethod
    def fingerprint(self) -> Tensor:
        """Return the fingerprint of the circuit; see the function `fingerprint`."""

    def get_extra_state(self) -> Tensor:
        """Return the fingerprint of the circuit, which `state_dict` carries."""
        return self.fingerprint()

    def set_extra_state(self, state: Tensor) -> None:
        """Do nothing, since `load_state_dict` has compared the fingerprint already."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Refuse weights of another circuit, even if their shapes fit; torch raises the messages collected here."""
        key = f"{prefix}_extra_state"
        messages: list[str] = arguments[-1]
        if any(name.startswith(prefix) for name in state_dict):
            problem = mismatch(self.get_extra_state(), state_dict.get(key), key)
            if problem is not None:
                messages.append(problem)
                return
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def fingerprint(wiring: Wiring, elapsed_time: float, meaning: int | str) -> Tensor:
    """Return the fingerprint of a circuit, (28,) or (32,) float32: its bytes, a number from 0 to 255 each.

    State dicts are averaged, interpolated and converted to half precision entry by entry; small whole numbers in
    floating point survive that unchanged.

    Args:
        wiring: Wiring of the circuit.
        elapsed_time: Seconds that a step lasts.
        meaning: The `ode_unfolds` of an LTC, or the `mode` of a CfC.
    """
    digest = hashlib.sha256(f"{wiring.units} {wiring.n_sensory} {wiring.n_command} {wiring.n_motor}".encode())
    for adjacency in (wiring.adjacency, wiring.sensory_adjacency):
        digest.update(adjacency.tobytes())
    kind = _LTCFingerprint if isinstance(meaning, int) else _CfCFingerprint
    last = meaning if isinstance(meaning, int) else meaning.encode()
    return torch.tensor(list(_FORMATS[kind].pack(digest.digest()[:16], elapsed_time, last)), dtype=torch.float32)


def mismatch(own: Tensor, other: object, key: str) -> str | None:
    """Return why weights with the fingerprint `other`, found under `key`, do not fit the circuit `own`, or None."""
    if other is None:
        return (
            f"The state dict must hold {key!r}, the fingerprint of the circuit that its weights are of, and has none; "
            "it is older than fingerprints, or was put together by hand. If you are sure that the wiring and the "
            "layer's settings are those of the module it was taken from, set "
            f"state_dict[{key!r}] = module.get_extra_state() with the layer that is to load it."
        )
    expected, came = _read(own), _read(other)
    assert expected is not None
    if came is None:
        return (
            f"{key!r} must be the fingerprint of a circuit, {len(own)} whole numbers from 0 to 255, and has been "
            "changed; leave this entry of the state dict as it is when you change the others."
        )
    if type(came) is not type(expected):
        return (
            f"The weights are of another kind of neurons than the layer that loads them, by {key!r}; build the policy "
            "with the cell that they were trained with."
        )
    differing = [name for name in expected._fields if getattr(expected, name) != getattr(came, name)]
    if not differing:
        return None
    listed = "; ".join(
        f"{name} must be {_shown(name, getattr(expected, name))}, got {_shown(name, getattr(came, name))}"
        for name in differing
    )
    return (
        f"The weights are of another circuit than the one that loads them, by {key!r}: {listed}. Build the module with "
        f"the wiring (its recipe's seed included), elapsed_time and {expected._fields[-1]} that the weights were "
        "trained with."
    )


def _read(tensor: object) -> _Fingerprint | None:
    """Read a fingerprint from a tensor; return None where it holds none."""
    if not isinstance(tensor, Tensor):
        return None
    numbers = tensor.detach().cpu().double().round()
    found = [kind for kind, form in _FORMATS.items() if numbers.shape == (form.size,)]
    if not found or not ((numbers >= 0) & (numbers <= 255)).all():
        return None
    return found[0](*_FORMATS[found[0]].unpack(bytes(numbers.to(torch.uint8).tolist())))


def _shown(name: str, value: bytes | float) -> str:
    if not isinstance(value, bytes):
        return str(value)
    return (
        repr(value.rstrip(b"\0").decode(errors="replace")) if name == "mode" else f"that with the digest {value.hex()}"
    )
