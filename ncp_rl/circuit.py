"""`Circuit`: the actor of a policy from sensory inputs to action means, alone. What is recorded and audited."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ncp_rl.ltc import LTC, MotorMap
from ncp_rl.policy import NCPPolicy
from ncp_rl.wiring import Wiring

Floats = npt.NDArray[np.float32]


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
        names = tuple(f"action_{i}" for i in range(len(bias)))
        return cls(policy.lstm_actor, readout, bias, policy.sensory_names, names)

    @property
    def wiring(self) -> Wiring:
        """The wiring, with the neurons' names."""
        return self.ltc.wiring

    def run(self, sensory: Floats, start: Floats, elapsed_time: Floats) -> Floats:
        """Potentials (T, U) after each step.

        Args:
            sensory: (T, S) float32, sensory inputs.
            start: (U,) float32, potentials before the first step.
            elapsed_time: (T,) float32, seconds since the step before.
        """
        operands = (
            torch.from_numpy(np.array(array)) for array in (sensory[:, None], start[None], elapsed_time[:, None])
        )
        inputs, state, elapsed = (operand.to(self.ltc.cm.device) for operand in operands)
        with torch.no_grad():
            potentials, _ = self.ltc(inputs, state, None, elapsed)
        return np.asarray(potentials[:, 0].cpu())

    def action_means(self, potentials: Floats) -> Floats:
        """Potentials (..., U) -> action means (..., A), before any squashing or clipping."""
        means: Floats = potentials[..., self.wiring.motor] @ self.readout.T + self.bias
        return means


def _affine(action_net: nn.Module) -> tuple[Floats, Floats]:
    """Weight (A, M) and bias (A,) of a policy's readout: a motor map, with a linear layer behind it or not."""
    layers = [action_net] if isinstance(action_net, MotorMap) else list(action_net.children())
    assert isinstance(layers[0], MotorMap)
    with torch.no_grad():
        weight, bias = torch.diag(layers[0].weight), layers[0].bias
        for layer in layers[1:]:
            assert isinstance(layer, nn.Linear)
            weight, bias = layer.weight @ weight, layer(bias)
    return np.asarray(weight.detach().cpu()), np.asarray(bias.detach().cpu())
