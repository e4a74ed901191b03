"""`Circuit`: the actor of a policy from sensory inputs to action means, which is recorded and audited."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ncp_rl.cell import Floats, MotorMap, RecurrentCell
from ncp_rl.cores import CELLS
from ncp_rl.ltc import LTC
from ncp_rl.policy import NCPPolicy
from ncp_rl.wiring import Wiring

#: Version of the files that `Circuit.save` makes.
FORMAT = 1
# Largest number of inputs and potentials that `Circuit.run` computes at a time.
_NUMBERS_AT_ONCE = 2**22

_ENTRIES = ("format", "cell", "wiring", "sensory_names", "action_names")


@dataclass(frozen=True)
class Circuit:
    """A circuit from sensory inputs over neurons to action means, with the names of inputs and outputs.

    Attributes:
        core: The neurons. An LTC has no input map, since the encoder precedes it.
        readout: (A, M) float32, weight of each motor neuron's potential in each action mean (logit, where actions are
            discrete); diagonal unless the policy has a dense motor map.
        bias: (A,) float32, added to the action means.
        sensory_names: (S,), names of the sensory inputs.
        action_names: (A,), names of the action means.
        dense: The linear layer between motor map and action means, or None; readout and bias combine both.
    """

    core: RecurrentCell
    readout: Floats
    bias: Floats
    sensory_names: tuple[str, ...]
    action_names: tuple[str, ...]
    dense: nn.Linear | None = None

    @classmethod
    def from_policy(cls, policy: NCPPolicy) -> Circuit:
        """Return the actor of a policy, with which it shares parameters."""
        layers = list(policy.action_net.children())
        dense = layers[-1] if layers else None
        assert dense is None or isinstance(dense, nn.Linear)
        readout, bias = _affine(policy.lstm_actor.motor_map, dense)
        return cls(policy.lstm_actor, readout, bias, policy.sensory_names, policy.action_names, dense)

    @property
    def wiring(self) -> Wiring:
        """The wiring, with the neurons' names."""
        return self.core.wiring

    @property
    def cell(self) -> str:
        """The kind of neurons, "ltc" or "cfc"."""
        return self.core.cell

    @property
    def ltc(self) -> LTC:
        """The neurons, where they are LTC neurons.

        Raises:
            ValueError: The neurons are of another kind.
        """
        if not isinstance(self.core, LTC):
            raise ValueError(
                f"Only circuits of LTC neurons have this; the circuit's neurons are {type(self.core).__name__} neurons."
            )
        return self.core

    @property
    def device(self) -> torch.device:
        """The device on which the circuit computes."""
        return next(self.core.parameters()).device

    def save(self) -> tuple[bytes, bytes]:
        """Return the circuit as safetensors and as JSON, for `load`."""
        # The fingerprint is left out, since the settings hold what it is made from.
        weights = self.core.state_dict()
        del weights["_extra_state"]
        tensors = {f"{self.cell}.{name}": tensor.contiguous().cpu() for name, tensor in weights.items()}
        if self.dense is not None:
            tensors |= {f"dense.{name}": tensor.contiguous().cpu() for name, tensor in self.dense.state_dict().items()}
        tensors |= {"readout": torch.from_numpy(self.readout), "bias": torch.from_numpy(self.bias)}
        values = (FORMAT, self.cell, self.wiring.to_dict(), self.sensory_names, self.action_names)
        settings = dict(zip(_ENTRIES, values, strict=True)) | self.core.settings()
        return safetensors.torch.save(tensors), json.dumps(settings).encode()

    @classmethod
    def load(cls, tensors: bytes, settings: bytes) -> Circuit:
        """Build the circuit that `save` saved, on the CPU, without unpickling and without drawing random numbers.

        Raises:
            ValueError: The files are damaged or do not fit each other.
        """
        try:
            loaded: dict[str, Tensor] = safetensors.torch.load(tensors)
            entries, settings_of_cell = _checked_entries(json.loads(settings))
            wiring = Wiring.from_dict(entries["wiring"])
            # A new layer draws its parameters, which must not change the random stream of the caller's program.
            with torch.random.fork_rng(devices=[]):
                core = CELLS[entries["cell"]].from_settings(wiring, settings_of_cell)
            for name, tensor in loaded.items():
                if tensor.dtype != torch.float32:
                    raise ValueError(f"{name} must be float32, got {tensor.dtype}")
            readout, bias = loaded.pop("readout").numpy(), loaded.pop("bias").numpy()
            dense = _load_dense({name: loaded.pop(name) for name in list(loaded) if name.startswith("dense.")})
            weights = {name.removeprefix(f"{core.cell}."): tensor for name, tensor in loaded.items()}
            core.load_state_dict(weights | {"_extra_state": core.state_dict()["_extra_state"]})
            circuit = cls(core, readout, bias, tuple(entries["sensory_names"]), tuple(entries["action_names"]), dense)
            expected = ((len(circuit.action_names), wiring.n_motor), (len(circuit.action_names),))
            if dense is not None and dense.weight.shape != expected[0]:
                raise ValueError(f"the dense layer must be {expected[0]}, got {tuple(dense.weight.shape)}")
            if (readout.shape, bias.shape) != expected or len(circuit.sensory_names) != wiring.n_sensory:
                raise ValueError(f"readout {readout.shape}, bias {bias.shape} and names must fit {expected}")
            return circuit
        except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"The circuit's files do not describe a circuit: {error}") from error
        except safetensors.SafetensorError as error:
            raise ValueError(f"The circuit's tensors are damaged: {error}") from error

    def time_constants(self, sensory: Floats, potentials: Floats) -> Floats:
        """Return the time constants of all neurons, (..., U) float32 seconds; see `ncp_rl.equations`.

        Args:
            sensory: (..., S) float32, sensory inputs.
            potentials: (..., U) float32.

        Raises:
            ValueError: The neurons have no time constants (`core.has_time_constants`).
        """
        return self.core.time_constants(sensory, potentials)

    def run(self, sensory: Floats, start: Floats, elapsed_time: Floats, *, width: int = 1, row: int = 0) -> Floats:
        """Compute the potentials (T, U) after each step.

        Args:
            sensory: (T, S) float32, sensory inputs.
            start: (U,) float32, potentials before the first step.
            elapsed_time: (T,) float32, seconds since the step before.
            width: Number of equal sequences side by side. Kernels add in another order for other widths, so the
                bits of a rollout come back only with the number of its environments.
            row: Number of the sequence that is returned; it changes bits where matrices are multiplied.
        """
        width = self.core.equal_bits_width(width)
        # The number of steps at a time bounds the memory, whatever the width.
        at_once = max(1, _NUMBERS_AT_ONCE // (width * (self.wiring.n_sensory + self.wiring.units)))
        at_once = at_once if self.core.scan_keeps_bits else 1
        potentials = np.empty((len(sensory), self.wiring.units), np.float32)
        for first in range(0, len(sensory), at_once):
            part = slice(first, first + at_once)
            inputs, elapsed = (np.repeat(array[part, None], width, axis=1) for array in (sensory, elapsed_time))
            potentials[part] = self._scan(inputs, np.repeat(start[None], width, axis=0), elapsed)[:, row % width]
            start = potentials[part][-1]
        return potentials

    def step(self, sensory: Floats, potentials: Floats, elapsed_time: Floats) -> Floats:
        """Compute the potentials (N, U) after one step of N circuits side by side.

        Args:
            sensory: (N, S) float32, sensory inputs.
            potentials: (N, U) float32, before the step.
            elapsed_time: (N,) float32, seconds that the step lasts.
        """
        after: Floats = self._scan(sensory[None], potentials, elapsed_time[None])[0]
        return after

    def _scan(self, sensory: Floats, start: Floats, elapsed_time: Floats) -> Floats:
        operands = (torch.from_numpy(np.ascontiguousarray(array)) for array in (sensory, start, elapsed_time))
        inputs, state, elapsed = (operand.to(self.device) for operand in operands)
        with torch.no_grad():
            potentials, _ = self.core(inputs, state, None, elapsed)
        return np.asarray(potentials.cpu().numpy())

    def action_means(self, potentials: Floats, *, width: int = 1, row: int = 0) -> Floats:
        """Compute action means (..., A), before squashing or clipping, from potentials (..., U).

        Args:
            potentials: (..., U) float32.
            width: Number of sequences side by side, as in `run`; a dense layer adds in another order for other widths.
            row: Number of the sequence that is returned.
        """
        if self.dense is not None:
            steps = self._dense_means(potentials.reshape(-1, self.wiring.units), width, row)
            return steps.reshape(*potentials.shape[:-1], len(self.bias))
        if self.is_affine:
            # The policy computes it so, with one rounding where NumPy would round twice.
            with torch.no_grad():
                inputs = torch.from_numpy(np.ascontiguousarray(potentials)).to(self.device)
                return np.asarray(self.core.motor_map(inputs).cpu())
        means: Floats = potentials[..., self.wiring.motor] @ self.readout.T + self.bias
        return means

    def _dense_means(self, potentials: Floats, width: int, row: int) -> Floats:
        """Compute (T, A) from (T, U) a step at a time, as the policy does it."""
        assert self.dense is not None
        with torch.no_grad():
            motor = self.core.motor_map(torch.from_numpy(potentials).to(self.device))
            rows = [self.dense(m.expand(width, -1).contiguous())[row].cpu().numpy() for m in motor]
        means: Floats = np.stack(rows)
        return means

    def parameters(self) -> dict[str, Floats]:
        """Return all learned numbers by name, including those that `readout` and `bias` combine."""
        parts: dict[str, RecurrentCell | nn.Module] = {self.cell: self.core} | (
            {} if self.dense is None else {"dense": self.dense}
        )
        return {
            f"{part}.{name}": parameter.detach().cpu().numpy()
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
        }

    def readout_of_layers(self) -> tuple[Floats, Floats]:
        """Compute readout and bias from motor map and dense layer, or return the own ones without a motor map."""
        motor_map = self.core.motor_map
        return _affine(motor_map, self.dense) if isinstance(motor_map, MotorMap) else (self.readout, self.bias)

    @property
    def is_affine(self) -> bool:
        """Whether each action mean is one motor neuron through the motor map, without a dense layer behind."""
        if self.dense is not None or not isinstance(self.core.motor_map, MotorMap):
            return False
        readout, bias = self.readout_of_layers()
        return np.array_equal(readout, self.readout) and np.array_equal(bias, self.bias)


def _load_dense(tensors: dict[str, Tensor]) -> nn.Linear | None:
    if not tensors:
        return None
    n_out, n_in = tensors["dense.weight"].shape
    layer = nn.Linear(n_in, n_out, device="meta")
    layer.load_state_dict({name.removeprefix("dense."): tensor for name, tensor in tensors.items()}, assign=True)
    return layer.requires_grad_(False)


def _checked_entries(entries: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the entries of every circuit, and return them and the settings of its cell, which checks these itself."""
    if not isinstance(entries, dict):
        raise ValueError(f"the settings must be a JSON object, got {type(entries).__name__}")
    entries = {"cell": LTC.cell} | entries  # Older circuits do not name their cell, which is LTC.
    missing = [name for name in _ENTRIES if name not in entries]
    if missing:
        raise ValueError(f"the settings must have the keys {', '.join(_ENTRIES)}; {', '.join(missing)} is missing")
    if entries["format"] != FORMAT:
        raise ValueError(
            f"the format must be {FORMAT}, got {entries['format']!r}; read it with the version of ncp_rl that wrote it"
        )
    if type(entries["cell"]) is not str or entries["cell"] not in CELLS:
        raise ValueError(f"the cell must be one of {', '.join(CELLS)}, got {entries['cell']!r:.40}")
    for name in ("sensory_names", "action_names"):
        if not isinstance(entries[name], list) or not all(isinstance(item, str) for item in entries[name]):
            raise ValueError(f"{name} must be a list of texts, got {entries[name]!r:.40}")
        for item in entries[name]:
            item.encode()  # Half a character, which JSON can hold, raises an error.
    return entries, {name: value for name, value in entries.items() if name not in _ENTRIES}


def _affine(motor_map: MotorMap | nn.Module, dense: nn.Linear | None) -> tuple[Floats, Floats]:
    """Return weight (A, M) and bias (A,) of a policy's readout: a motor map and, if any, a linear layer behind it."""
    assert isinstance(motor_map, MotorMap)
    with torch.no_grad():
        weight, bias = torch.diag(motor_map.weight), motor_map.bias
        if dense is not None:
            weight, bias = dense.weight @ weight, dense(bias)
    return weight.detach().cpu().numpy().copy(), bias.detach().cpu().numpy().copy()
