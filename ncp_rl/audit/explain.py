"""Why this action? Exact contributions of every synapse, of memory and of leak, now and back through time.

A substep of the solver (`ncp_rl.kernels.reference`) is a weighted mean. With delta = elapsed_time / ode_unfolds and
D_j = cm_j + delta (gleak_j + sum_i w_ij s_ij + epsilon) it reads

    v_j <- (cm_j / D_j) v_j + sum_i (delta w_ij s_ij erev_ij / D_j) + delta gleak_j vleak_j / D_j,

linear in its own past once the openings s_ij are known. Unrolled over the substeps of a step it gives, exactly,

    v_j(t) = m_j(t) v_j(t - 1) + sum_i c_ij(t) + c_leak_j(t):

c_ij is what synapse i -> j contributed, m_j in (0, 1) what was remembered. No sampling, gradient or approximation.

Policies compute in float32, so a recorded potential differs from that sum by what rounding did. How much that can be at
most follows from the same numbers (`Explanation.rounding`): a running error analysis (Higham, "Accuracy and Stability
of Numerical Algorithms", 2002, section 3.3) of the substeps. A potential that is further away was not computed so.

Further back (`Explanation.history`) an opening is itself a function of the source's potential. It is written as
s(v) = s(0) + v (s(v) - s(0)) / v: what v adds to the opening at rest is credited to the parts of v in proportion. For
a function of a sum this is the Aumann-Shapley value (Aumann and Shapley, "Values of Non-Atomic Games", 1974; as
integrated gradients: Sundararajan et al., ICML 2017). Denominators are taken as they were. The credits add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ncp_rl.audit.cell import Array, Cell, Connections
from ncp_rl.audit.measurable import check_measurable
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode

# Below this potential a secant is taken as the tangent: their difference is smaller than float64 resolves.
_TINY = 1e-7

# Unit roundoff of float32, and how many of them each part of a substep may cost: the argument of a sigmoid, relative to
# its terms (folded constants, a product, a sum); the sigmoid, relative to itself (a polynomial and a division, 5e-7 at
# most); a potential's numerator and denominator, relative to their terms, besides one for each synapse.
_UNIT = 2.0**-24
_ARGUMENT, _SIGMOID, _SUMS = 4.0, 10.0, 8.0


@dataclass(frozen=True)
class Drivers:
    """What a quantity (a potential, an action mean) was made of at each of T steps; the parts add up to it.

    Attributes:
        neurons: (T, U), through synapses from each neuron.
        sensory: (T, S), through synapses from each sensory input.
        memory: (T,), remembered from the step before.
        leak: (T,), pull of the leak potentials.
        offset: Constant of the readout; 0 for a neuron.
    """

    neurons: Array
    sensory: Array
    memory: Array
    leak: Array
    offset: float

    def total(self) -> Array:
        """(T,), the sum of all parts."""
        total: Array = self.neurons.sum(1) + self.sensory.sum(1) + self.memory + self.leak + self.offset
        return total


@dataclass(frozen=True)
class History:
    """What a quantity at step t was made of, over the last W steps; row d is d steps ago. All parts add up to it.

    Attributes:
        sensory: (W, S), stems from sensory input s seen d steps ago.
        rest: (W,), stems from leak and from openings at rest, d steps ago.
        before: Stems from the potentials before the window.
        offset: Constant of the readout.
        paths: (E_s, U + 1), the sum of `sensory` over time by path: the sensory synapse where it came in, and the
            neuron by which it reached the target; column U: straight from the senses to the target. In a circuit of
            four layers these are the paths sensory -> inter -> ... -> command -> motor.
    """

    sensory: Array
    rest: Array
    before: float
    offset: float
    paths: Array

    def total(self) -> float:
        """The sum of all parts."""
        return float(self.sensory.sum() + self.rest.sum() + self.before + self.offset)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Contributions over an episode of T steps.

    Attributes:
        circuit: The circuit.
        episode: The episode.
        cell: The circuit's equations.
        synaptic: (T, E), contribution of each synapse between neurons to its destination's potential.
        sensory: (T, E_s), of each sensory synapse.
        leak: (T, U), of the leak.
        memory: (T, U), of the potential of the step before.
        retention: (T, U), m: the share of the potential of the step before that was kept.
        rounding: (T, U), by how much a solver in float32 can be away from the sum of the contributions at most.
    """

    circuit: Circuit
    episode: Episode
    cell: Cell
    synaptic: Array
    sensory: Array
    leak: Array
    memory: Array
    retention: Array
    rounding: Array

    def potentials(self) -> Array:
        """(T, U), the sum of all contributions."""
        between = self.cell.synapses.total(self.synaptic, self.cell.units)
        return self.memory + self.leak + between + self.cell.sensory.total(self.sensory, self.cell.units)

    def residual(self) -> float:
        """Largest difference of a recorded potential to the sum of its contributions."""
        return float(self._differences().max(initial=0.0))

    def share_of_rounding(self) -> float:
        """Largest difference as a share of `rounding` there; above 1 the potential is no sum of these contributions."""
        return float((self._differences() / self.rounding).max(initial=0.0))

    def _differences(self) -> Array:
        differences: Array = np.abs(self.potentials() - self.episode.potentials)
        return differences

    def of_neuron(self, neuron: int) -> Drivers:
        """What the potential of `neuron` was made of."""
        return self._drivers(np.eye(self.cell.units)[neuron], 0.0)

    def of_action(self, action: int) -> Drivers:
        """What the mean of `action` was made of, in the action's unit."""
        return self._drivers(self._readout(action), float(self.circuit.bias[action]))

    def by_layer(self) -> dict[str, Array]:
        """For each layer of sources (sensory, inter, command, motor) and memory and leak: (T, U), contributed."""
        wiring, synapses = self.circuit.wiring, self.cell.synapses
        parts = {"sensory": self.cell.sensory.total(self.sensory, self.cell.units)}
        for layer in ("inter", "command", "motor"):
            part: slice = getattr(wiring, layer)
            inside = (synapses.source >= part.start) & (synapses.source < part.stop)
            parts[layer] = synapses.total(self.synaptic * inside, self.cell.units)
        return parts | {"memory": self.memory, "leak": self.leak}

    def sentence(self, step: int, action: int = 0, *, n_parts: int = 3, time: float | None = None) -> str:
        """The action at a step in words: its strongest parts, and what drove the strongest neuron among them.

        Args:
            step: The step; -1 is the last.
            action: The action.
            n_parts: Number of parts to name.
            time: Seconds since the episode's start, where the explanation is of a part of the episode; those of the
                step where None.

        Raises:
            IndexError: The episode has no such step; -1 is the last.
        """
        step = self._step(step)
        drivers, time = self.of_action(action), self.episode.time[step] if time is None else time
        strongest = int(np.argmax(np.abs(drivers.neurons[step])))
        text = (
            f"{self.circuit.action_names[action]} {drivers.total()[step]:.2f} at {time:.2f} s: "
            f"{self._parts(drivers, step, n_parts)}"
        )
        if drivers.neurons[step, strongest] == 0.0:
            return text
        causes = self._parts(self.of_neuron(strongest), step, n_parts)
        potential = self.episode.potentials[step, strongest]
        return f"{text}; {self.circuit.wiring.names[strongest]} ({potential:.2f}) was driven by {causes}"

    def history(self, step: int, *, n_steps: int, action: int | None = None, neuron: int | None = None) -> History:
        """Where an action mean, or a neuron's potential, at `step` came from, through all the circuit and back in time.

        Args:
            step: The step to explain; -1 is the last.
            n_steps: Steps to go back, that of `step` included; as many as there are where fewer.
            action: The action to explain, or
            neuron: the neuron to explain.

        Raises:
            IndexError: The episode has no such step.
            ValueError: Neither or both of action and neuron are given, or no step is asked for.
        """
        step = self._step(step)
        if (action is None) == (neuron is None) or n_steps < 1:
            raise ValueError(f"Name an action or a neuron, and a step or more: {action=}, {neuron=}, {n_steps=}.")
        units, first = self.cell.units, max(step + 1 - n_steps, 0)
        credit = np.zeros((units, units + 1))  # Of each neuron's potential, by the neuron that handed it on.
        credit[:, units] = np.eye(units)[neuron] if neuron is not None else self._readout(action or 0)
        offset = 0.0 if action is None else float(self.circuit.bias[action])
        sensory, rest = np.zeros((step + 1 - first, self.episode.sensory.shape[1])), np.zeros(step + 1 - first)
        paths = np.zeros((len(self.cell.sensory.source), units + 1))
        previous = _previous(self.episode)
        for back, t in enumerate(range(step, first - 1, -1)):
            substeps = list(_substeps(self.cell, previous[t : t + 1], *_operands(self.episode, slice(t, t + 1))))
            for substep in reversed(substeps):
                flow = substep.sensory[0, :, None] * credit[self.cell.sensory.destination]
                paths += flow
                np.add.at(sensory[back], self.cell.sensory.source, flow.sum(1))
                at_rest, gain = _secants(self.cell, substep)
                rest[back] += credit.sum(1) @ (substep.leak[0] + self.cell.synapses.total(at_rest, units))
                credit = substep.kept[0, :, None] * credit + _handed_back(self.cell, gain, credit)
        before = float(credit.sum(1) @ previous[first])
        return History(sensory, rest, before, offset, paths)

    def _step(self, step: int) -> int:
        """Number of a step counted from the episode's start, or from its end where negative."""
        n = len(self.episode)
        if not -n <= step < n:
            raise IndexError(f"step must lie in the episode, from {-n} to {n - 1}, got {step}.")
        return step % n

    def _drivers(self, weights: Array, offset: float) -> Drivers:
        """Parts of sum_j weights_j v_j + offset."""
        synapses, sensory = self.cell.synapses, self.cell.sensory
        return Drivers(
            (self.synaptic * weights[synapses.destination]) @ (synapses.source[:, None] == np.arange(self.cell.units)),
            (self.sensory * weights[sensory.destination])
            @ (sensory.source[:, None] == np.arange(self.circuit.wiring.n_sensory)),
            self.memory @ weights,
            self.leak @ weights,
            offset,
        )

    def _readout(self, action: int) -> Array:
        weights = np.zeros(self.cell.units)
        weights[self.circuit.wiring.motor] = self.circuit.readout[action]
        return weights

    def _parts(self, drivers: Drivers, step: int, n_parts: int) -> str:
        names = (*self.circuit.wiring.names, *self.circuit.sensory_names)
        values = np.concatenate([drivers.neurons[step], drivers.sensory[step]])
        strongest = [i for i in np.argsort(-np.abs(values))[:n_parts] if values[i] != 0.0]
        parts = [f"{names[i]} {values[i]:+.2f}" for i in strongest]
        others = values.sum() - values[strongest].sum()
        parts += [f"others {others:+.2f}"] if abs(others) >= 0.005 else []
        parts += [f"memory {drivers.memory[step]:+.2f}", f"leak {drivers.leak[step]:+.2f}"]
        parts += [f"offset {drivers.offset:+.2f}"] if abs(drivers.offset) >= 0.005 else []
        return ", ".join(parts)


def explain(circuit: Circuit, episode: Episode) -> Explanation:
    """Contributions to every potential of an episode, each step from the recorded potentials before it.

    Raises:
        ncp_rl.recording.RecordingError: Numbers of circuit or episode are not finite.
        ValueError: The episode is not of this circuit: its sizes differ.
    """
    check_measurable(circuit, [episode])
    wiring = circuit.wiring
    sizes = (episode.sensory.shape[1], episode.potentials.shape[1])
    if sizes != (wiring.n_sensory, wiring.units):
        raise ValueError(
            f"The circuit has {wiring.n_sensory} sensory inputs and {wiring.units} neurons, the episode {sizes}."
        )
    cell, previous = Cell.of(circuit), _previous(episode)
    synaptic = np.zeros((len(episode), len(cell.synapses.source)))
    sensory = np.zeros((len(episode), len(cell.sensory.source)))
    leak, retention, rounding = np.zeros_like(previous), np.ones_like(previous), np.zeros_like(previous)
    for substep in _substeps(cell, previous, *_operands(episode, slice(None))):
        kept = substep.kept
        synaptic = synaptic * kept[:, cell.synapses.destination] + substep.synaptic
        sensory = sensory * kept[:, cell.sensory.destination] + substep.sensory
        leak, retention = leak * kept + substep.leak, retention * kept
        rounding = _rounded(cell, substep, rounding)
    return Explanation(
        circuit=circuit,
        episode=episode,
        cell=cell,
        synaptic=synaptic,
        sensory=sensory,
        leak=leak,
        memory=retention * previous,
        retention=retention,
        rounding=rounding,
    )


@dataclass(frozen=True)
class _Substep:
    """One substep of T steps side by side: potentials (T, U) that it starts from, and the parts of what it gives."""

    start: Array
    inputs: Array  # (T, S)
    opened: Array  # (T, E)
    sensory_opened: Array  # (T, E_s)
    kept: Array  # (T, U), cm / D
    share: Array  # (T, U), delta / D
    synaptic: Array  # (T, E)
    sensory: Array  # (T, E_s)
    leak: Array  # (T, U)
    end: Array  # (T, U), the potentials that it gives


def _substeps(cell: Cell, start: Array, inputs: Array, elapsed_time: Array) -> Iterator[_Substep]:
    """The substeps of T steps, each from its row of `start` (T, U), with inputs (T, S) and elapsed time (T,)."""
    delta = elapsed_time[:, None] / cell.ode_unfolds
    sensory_open, potentials = cell.sensory.openness(inputs), start
    for _ in range(cell.ode_unfolds):
        opened = cell.synapses.openness(potentials)
        denominator = cell.cm + delta * cell.conductance(opened, sensory_open)
        kept, share = cell.cm / denominator, delta / denominator
        synaptic = share[:, cell.synapses.destination] * cell.synapses.w * opened * cell.synapses.erev
        sensory = share[:, cell.sensory.destination] * cell.sensory.w * sensory_open * cell.sensory.erev
        leak = share * cell.gleak * cell.vleak
        currents = cell.synapses.total(synaptic, cell.units) + cell.sensory.total(sensory, cell.units)
        end = kept * potentials + currents + leak
        yield _Substep(potentials, inputs, opened, sensory_open, kept, share, synaptic, sensory, leak, end)
        potentials = end


def _rounded(cell: Cell, substep: _Substep, before: Array) -> Array:
    """Bound (T, U) of what float32 makes of a substep that starts from potentials within `before` (T, U)."""
    end, units = substep.end, cell.units
    moved, narrowed = substep.kept * before, np.zeros_like(before)
    sizes = np.abs(substep.kept * substep.start) + np.abs(substep.leak) + np.abs(end)
    n_terms = np.full(units, _SUMS)
    for synapses, values, apart, opened, parts in (
        (cell.synapses, substep.start, before, substep.opened, substep.synaptic),
        (cell.sensory, substep.inputs, np.zeros_like(substep.inputs), substep.sensory_opened, substep.sensory),
    ):
        conductance = synapses.w * _opened_apart(synapses, values, apart, opened)  # (T, E)
        from_end = np.abs(synapses.erev - end[:, synapses.destination])
        moved = moved + substep.share * synapses.total(conductance * from_end, units)
        narrowed = narrowed + substep.share * synapses.total(conductance, units)
        sizes = sizes + synapses.total(np.abs(parts), units)
        n_terms = n_terms + np.bincount(synapses.destination, minlength=units)
    # `moved` is the error of the numerator less `end` times that of the denominator. The denominator that divides them
    # may itself be smaller by `narrowed`, but holds at least cm.
    bound: Array = moved / np.maximum(1.0 - narrowed, substep.kept) + n_terms * _UNIT * sizes
    return bound


def _opened_apart(synapses: Connections, values: Array, apart: Array, opened: Array) -> Array:
    """Bound (T, E) of how far float32 opens synapses from `opened` (T, E), for values (T, I) known within `apart`."""
    source, sizes = synapses.source, np.abs(values)[:, synapses.source] + np.abs(synapses.mu)
    argument = np.abs(synapses.sigma) * (apart[:, source] + _ARGUMENT * _UNIT * sizes)
    # The slope of a sigmoid grows by e^x at most over a distance of x, and is nowhere above 1/4.
    slope = np.minimum(opened * (1.0 - opened) * np.exp(np.minimum(argument, 1.0)), 0.25)
    bound: Array = np.where(argument < 1.0, slope, 0.25) * argument + _SIGMOID * _UNIT * opened
    return bound


def _secants(cell: Cell, substep: _Substep) -> tuple[Array, Array]:
    """Each synapse's contribution (E,) as (that of a source at rest, that per unit of the source's potential)."""
    synapses, start = cell.synapses, substep.start[0]
    scale = substep.share[0, synapses.destination] * synapses.w * synapses.erev
    at_zero, opened = synapses.openness(np.zeros(cell.units)), synapses.openness(start)
    source = start[synapses.source]
    small = np.abs(source) < _TINY
    slope = np.where(
        small, synapses.sigma * at_zero * (1.0 - at_zero), (opened - at_zero) / np.where(small, 1.0, source)
    )
    # Where the tangent stands for the secant, the rest takes up the difference, so that the sum stays exact.
    return scale * (opened - slope * source), scale * slope


def _handed_back(cell: Cell, gain: Array, credit: Array) -> Array:
    """Credit (U, U + 1) that passes from destinations to sources; what leaves the target is named after the source."""
    units = cell.units
    matrix = np.zeros((units, units))
    matrix[cell.synapses.source, cell.synapses.destination] = gain
    handed = np.zeros_like(credit)
    handed[:, :units] = matrix @ credit[:, :units] + np.diag(matrix @ credit[:, units])
    return handed


def _operands(episode: Episode, steps: slice) -> tuple[Array, Array]:
    return episode.sensory[steps].astype(np.float64), episode.elapsed_time[steps].astype(np.float64)


def _previous(episode: Episode) -> Array:
    return np.concatenate([episode.start[None], episode.potentials[:-1]]).astype(np.float64)
