"""`Circuit`: the actor of a policy from sensory inputs to action means, alone. What is recorded and audited."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ncp_rl.kernels.numba_cache import kernel
from ncp_rl.ltc import LTC, MotorMap
from ncp_rl.policy import NCPPolicy
from ncp_rl.wiring import Wiring

Floats = npt.NDArray[np.float32]

#: Version of the files that `Circuit.save` makes.
FORMAT = 1
_SETTINGS = ("format", "wiring", "ode_unfolds", "elapsed_time", "backend", "sensory_names", "action_names")


@dataclass(frozen=True)
class Circuit:
    """Sensory inputs -> LTC neurons -> action means, with the names of all that enters and leaves.

    Attributes:
        ltc: The neurons; without an input map, since the encoder stands before.
        readout: (A, M) float32, weight of each motor neuron's potential in each action mean (logit, where actions are
            discrete); diagonal unless the policy has a dense motor map.
        bias: (A,) float32, of the action means.
        sensory_names: (S,), what each sensory input carries.
        action_names: (A,), of the action means.
    """

    ltc: LTC
    readout: Floats
    bias: Floats
    sensory_names: tuple[str, ...]
    action_names: tuple[str, ...]

    @classmethod
    def from_policy(cls, policy: NCPPolicy) -> Circuit:
        """The actor of a policy; shares its parameters."""
        readout, bias = _affine(policy.action_net)
        return cls(policy.lstm_actor, readout, bias, policy.sensory_names, policy.action_names)

    @property
    def wiring(self) -> Wiring:
        """The wiring, with the neurons' names."""
        return self.ltc.wiring

    def save(self) -> tuple[bytes, bytes]:
        """All that `load` needs, as safetensors and as JSON."""
        # Without the fingerprint: what it tells stands in the settings.
        weights = self.ltc.state_dict()
        del weights["_extra_state"]
        tensors = {f"ltc.{name}": tensor.contiguous().cpu() for name, tensor in weights.items()}
        tensors |= {"readout": torch.from_numpy(self.readout), "bias": torch.from_numpy(self.bias)}
        values = (
            FORMAT,
            self.wiring.to_dict(),
            self.ltc.ode_unfolds,
            self.ltc.elapsed_time,
            self.ltc.backend,
            self.sensory_names,
            self.action_names,
        )
        return safetensors.torch.save(tensors), json.dumps(dict(zip(_SETTINGS, values, strict=True))).encode()

    @classmethod
    def load(cls, tensors: bytes, settings: bytes) -> Circuit:
        """The circuit that `save` saved, on the CPU. Nothing is unpickled, and no random number is drawn.

        Raises:
            ValueError: The files are damaged or do not fit each other.
        """
        try:
            loaded: dict[str, Tensor] = safetensors.torch.load(tensors)
            entries = _checked_settings(json.loads(settings))
            wiring = Wiring.from_dict(entries["wiring"])
            # A new layer draws its parameters; those of the caller's program must not notice.
            with torch.random.fork_rng(devices=[]):
                ltc = LTC(
                    wiring,
                    input_map=False,
                    ode_unfolds=entries["ode_unfolds"],
                    elapsed_time=entries["elapsed_time"],
                    backend=entries["backend"],
                )
            for name, tensor in loaded.items():
                if tensor.dtype != torch.float32:
                    raise ValueError(f"{name} must be float32, got {tensor.dtype}")
            readout, bias = loaded.pop("readout").numpy(), loaded.pop("bias").numpy()
            weights = {name.removeprefix("ltc."): tensor for name, tensor in loaded.items()}
            ltc.load_state_dict(weights | {"_extra_state": ltc.get_extra_state()})
            circuit = cls(ltc, readout, bias, tuple(entries["sensory_names"]), tuple(entries["action_names"]))
            expected = ((len(circuit.action_names), wiring.n_motor), (len(circuit.action_names),))
            if (readout.shape, bias.shape) != expected or len(circuit.sensory_names) != wiring.n_sensory:
                raise ValueError(f"readout {readout.shape}, bias {bias.shape} and names must fit {expected}")
            return circuit
        except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"No circuit can be made of these files: {error}") from error
        except safetensors.SafetensorError as error:
            raise ValueError(f"The circuit's tensors are damaged: {error}") from error

    def time_constants(self, sensory: Floats, potentials: Floats) -> Floats:
        """Seconds (..., U) in which each neuron follows its input: cm / (gleak + sum of w s over its synapses).

        Args:
            sensory: (..., S) float32, sensory inputs.
            potentials: (..., U) float32.
        """
        between, senses = self.wiring.synapses, self.wiring.sensory_synapses
        with torch.no_grad():
            synaptic, sensory_rows, (cm, gleak, _) = (rows.cpu().numpy() for rows in self.ltc.packed().params)
        source = np.concatenate([between.source, self.wiring.units + senses.source])
        destination = np.concatenate([between.destination, senses.destination])
        values = np.concatenate([potentials, sensory], axis=-1, dtype=np.float32)
        found = np.empty(potentials.shape, np.float32)
        rows = np.concatenate([synaptic, sensory_rows], axis=1)
        table = found.reshape(math.prod(found.shape[:-1]), self.wiring.units)
        _time_constants(values.reshape(len(table), values.shape[-1]), rows, source, destination, cm, gleak, table)
        return found

    def run(self, sensory: Floats, start: Floats, elapsed_time: Floats, *, width: int = 1) -> Floats:
        """Potentials (T, U) after each step.

        Args:
            sensory: (T, S) float32, sensory inputs.
            start: (U,) float32, potentials before the first step.
            elapsed_time: (T,) float32, seconds since the step before.
            width: Sequences side by side, all the same: kernels add in another order for other widths, so that the
                bits of a rollout come back only with as many as it had environments.
        """
        operands = (
            torch.from_numpy(np.repeat(array, width, axis=axis))
            for array, axis in ((sensory[:, None], 1), (start[None], 0), (elapsed_time[:, None], 1))
        )
        inputs, state, elapsed = (operand.to(self.ltc.cm.device) for operand in operands)
        with torch.no_grad():
            potentials, _ = self.ltc(inputs, state, None, elapsed)
        return np.asarray(potentials[:, 0].cpu().numpy())

    def action_means(self, potentials: Floats) -> Floats:
        """Potentials (..., U) -> action means (..., A), before any squashing or clipping."""
        if self.is_affine:
            # As the policy does it: with one rounding where NumPy would round twice.
            with torch.no_grad():
                inputs = torch.from_numpy(np.ascontiguousarray(potentials)).to(self.ltc.cm.device)
                return np.asarray(self.ltc.motor_map(inputs).cpu())
        means: Floats = potentials[..., self.wiring.motor] @ self.readout.T + self.bias
        return means

    @property
    def is_affine(self) -> bool:
        """Whether each action mean is one motor neuron through the motor map, no dense layer behind."""
        motor_map = self.ltc.motor_map
        if not isinstance(motor_map, MotorMap):
            return False
        with torch.no_grad():
            own = torch.diag(motor_map.weight).cpu().numpy(), motor_map.bias.cpu().numpy()
        return np.array_equal(own[0], self.readout) and np.array_equal(own[1], self.bias)


def _checked_settings(entries: Any) -> dict[str, Any]:
    if not isinstance(entries, dict) or set(entries) != set(_SETTINGS):
        raise ValueError(f"the settings must be an object with the keys {_SETTINGS}")
    if entries["format"] != FORMAT:
        raise ValueError(f"their format is {entries['format']!r}, this version reads {FORMAT}")
    unfolds, seconds = entries["ode_unfolds"], entries["elapsed_time"]
    if type(unfolds) is not int or not 0 < unfolds <= 1000 or type(seconds) not in (int, float):
        raise ValueError(f"ode_unfolds {unfolds!r} or elapsed_time {seconds!r} is none")
    for name in ("sensory_names", "action_names"):
        if not isinstance(entries[name], list) or not all(isinstance(item, str) for item in entries[name]):
            raise ValueError(f"{name} must be a list of names")
    return entries


@kernel
def _time_constants(values: Any, synapses: Any, source: Any, destination: Any, cm: Any, gleak: Any, found: Any) -> None:
    one = np.float32(1)
    for row in range(len(values)):
        for j in range(len(gleak)):
            found[row, j] = gleak[j]
        for e in range(len(source)):
            w, sigma, mu = synapses[0, e], synapses[1, e], synapses[2, e]
            found[row, destination[e]] += w / (one + math.exp(sigma * (mu - values[row, source[e]])))
        for j in range(len(cm)):
            found[row, j] = cm[j] / found[row, j]


def _affine(action_net: nn.Module) -> tuple[Floats, Floats]:
    """Weight (A, M) and bias (A,) of a policy's readout: a motor map, with a linear layer behind it or not."""
    layers = [action_net] if isinstance(action_net, MotorMap) else list(action_net.children())
    assert isinstance(layers[0], MotorMap)
    with torch.no_grad():
        weight, bias = torch.diag(layers[0].weight), layers[0].bias
        for layer in layers[1:]:
            assert isinstance(layer, nn.Linear)
            weight, bias = layer.weight @ weight, layer(bias)
    return weight.detach().cpu().numpy().copy(), bias.detach().cpu().numpy().copy()
