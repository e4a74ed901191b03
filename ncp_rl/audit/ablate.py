"""What does each neuron do? Clamp a neuron or cut a synapse, and see how the action changes.

Both are exact changes of parameters, so that an ablated circuit runs wherever the circuit does. A cut synapse has no
conductance. A clamped neuron's synapses open by a constant: each is a constant conductance towards a constant
potential, and so part of its destination's leak,

    gleak'_j = gleak_j + sum w_ij s_ij(v),    gleak'_j vleak'_j = gleak_j vleak_j + sum w_ij s_ij(v) erev_ij;

a clamped motor neuron adds a constant to the action means that read it. Ablating what cannot reach a motor neuron
changes no bit of an action.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ncp_rl.audit.cell import Array
from ncp_rl.circuit import Circuit
from ncp_rl.ltc import LTC, inverse_softplus
from ncp_rl.policy import NCPPolicy
from ncp_rl.recording import Episode
from ncp_rl.wiring import Wiring

# softplus gives exactly 0 here in float32.
_SHUT = -200.0


@dataclass(frozen=True)
class Clamp:
    """Hold a neuron, by name, at a potential."""

    neuron: str
    potential: float

    def __str__(self) -> str:
        """Return the ablation as tables show it."""
        return f"clamp {self.neuron} at {self.potential:.2f}"


@dataclass(frozen=True)
class Cut:
    """Cut the synapse between two neurons, or from a sensory input, by their names."""

    source: str
    destination: str

    def __str__(self) -> str:
        """Return the ablation as tables show it."""
        return f"cut {self.source} -> {self.destination}"


Ablation = Clamp | Cut


@dataclass(frozen=True)
class Effect:
    """The change that an ablation makes to the actions of an episode, for the recorded sensory inputs.

    Attributes:
        ablation: What was changed.
        rms: (A,), root mean square change of each action mean over the steps.
        largest: (A,), largest change.
    """

    ablation: Ablation
    rms: Array
    largest: Array


def ablate(circuit: Circuit, ablation: Ablation) -> Circuit:
    """Return an ablated copy of the circuit.

    Raises:
        ValueError: There is no such neuron or synapse.
    """
    ltc = copy.deepcopy(circuit.ltc)
    _apply(ltc, ablation, circuit.sensory_names)
    motor = _motor(ltc.wiring, ablation)
    if motor is None:
        return replace(circuit, core=ltc)
    assert isinstance(ablation, Clamp)
    readout, bias = circuit.readout.copy(), circuit.bias + circuit.readout[:, motor] * np.float32(ablation.potential)
    readout[:, motor] = 0.0
    # `readout` and `bias` hold the dense layer too, where a policy has one; the layer alone could not leave a motor
    # neuron out.
    return replace(circuit, core=ltc, readout=readout, bias=bias, dense=None)


@contextmanager
def ablated(policy: NCPPolicy, ablation: Ablation | None) -> Iterator[NCPPolicy]:
    """Ablate the policy's actor inside the context, and restore it afterwards.

    Raises:
        ValueError: There is no such neuron or synapse.
    """
    state = copy.deepcopy(policy.lstm_actor.state_dict())
    try:
        if ablation is not None:
            _apply(Circuit.from_policy(policy).ltc, ablation, policy.sensory_names)
            _clamp_motor_map(policy, ablation)
        yield policy
    finally:
        policy.lstm_actor.load_state_dict(state)


def every_neuron(circuit: Circuit, episodes: Sequence[Episode]) -> list[Clamp]:
    """Return a clamp of each neuron at its mean potential over the episodes."""
    mean = np.concatenate([episode.potentials for episode in episodes]).mean(0, dtype=np.float64)
    return [Clamp(name, float(potential)) for name, potential in zip(circuit.wiring.names, mean, strict=True)]


def every_synapse(circuit: Circuit) -> list[Cut]:
    """Return a cut of each synapse: sensory synapses first, then those between neurons."""
    names, wiring = circuit.wiring.names, circuit.wiring
    return [
        Cut(sources[i], names[j])
        for sources, synapses in ((circuit.sensory_names, wiring.sensory_synapses), (names, wiring.synapses))
        for i, j in zip(synapses.source, synapses.destination, strict=True)
    ]


def effects(circuit: Circuit, episode: Episode, ablations: Sequence[Ablation]) -> list[Effect]:
    """Measure how far each ablation moves the action means for the episode's recorded sensory inputs.

    Raises:
        ValueError: There is no such neuron or synapse.
    """
    whole = _action_means(circuit, episode)
    found = []
    for ablation in ablations:
        change = np.abs(_action_means(ablate(circuit, ablation), episode) - whole)
        found.append(Effect(ablation, np.sqrt(np.mean(change**2, axis=0)), change.max(0)))
    return found


def _action_means(circuit: Circuit, episode: Episode) -> Array:
    potentials = circuit.run(episode.sensory, episode.start, episode.elapsed_time)
    return circuit.action_means(potentials).astype(np.float64)


def _apply(ltc: LTC, ablation: Ablation, sensory_names: Sequence[str]) -> None:
    """Change the parameters of a layer; the caller changes the readout of a clamped motor neuron."""
    names, synapses = ltc.wiring.names, ltc.wiring.synapses
    with torch.no_grad():
        if isinstance(ablation, Cut):
            weight, at = _synapse(ltc, ablation, sensory_names)
            weight[at] = _SHUT
            return
        neuron = _index(names, ablation.neuron)
        w, sigma, mu, erev = (row.double() for row in ltc.packed().params.synaptic)
        _, gleak, vleak = (row.double() for row in ltc.packed().params.neuronal)
        # A clamped neuron's synapse to itself does not matter: nothing reads its state any more.
        gone = torch.from_numpy((synapses.source == neuron) & (synapses.destination != neuron)).to(w.device)
        destination = torch.from_numpy(synapses.destination).long().to(w.device)[gone]
        conductance = (w * torch.sigmoid(sigma * (ablation.potential - mu)))[gone]
        total = gleak.index_add(0, destination, conductance)
        current = (gleak * vleak).index_add(0, destination, conductance * erev[gone])
        changed = destination.unique()
        ltc.gleak[changed] = inverse_softplus(total)[changed].to(ltc.gleak)
        ltc.vleak[changed] = (current / total.clamp(min=1e-30))[changed].to(ltc.vleak)
        ltc.w[gone] = _SHUT


def _motor(wiring: Wiring, ablation: Ablation) -> int | None:
    """Return the motor neuron that is clamped, if any."""
    if not isinstance(ablation, Clamp):
        return None
    neuron = wiring.names.index(ablation.neuron)
    return neuron if neuron < wiring.n_motor else None


def _clamp_motor_map(policy: NCPPolicy, ablation: Ablation) -> None:
    motor, motor_map = _motor(policy.lstm_actor.wiring, ablation), policy.lstm_actor.motor_map
    if motor is None:
        return
    assert isinstance(ablation, Clamp) and not isinstance(motor_map, nn.Identity)
    with torch.no_grad():
        motor_map.bias[motor] += motor_map.weight[motor] * ablation.potential
        motor_map.weight[motor] = 0.0


def _synapse(ltc: LTC, cut: Cut, sensory_names: Sequence[str]) -> tuple[torch.Tensor, int]:
    """Return the weights that hold a synapse's weight, and its index."""
    destination = _index(ltc.wiring.names, cut.destination)
    if cut.source in sensory_names:
        weight, synapses, source = ltc.sensory_w, ltc.wiring.sensory_synapses, list(sensory_names).index(cut.source)
    else:
        weight, synapses, source = ltc.w, ltc.wiring.synapses, _index((*ltc.wiring.names, *sensory_names), cut.source)
    found = np.nonzero((synapses.source == source) & (synapses.destination == destination))[0]
    if not len(found):
        raise ValueError(f"There is no synapse from {cut.source} to {cut.destination}.")
    return weight, int(found[0])


def _index(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise ValueError(f"There is no neuron {name!r}; the names are {', '.join(names)}.")
    return list(names).index(name)
