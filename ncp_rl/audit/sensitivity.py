"""How far can the action move when observations move a little? A proven bound, and the largest change an attack finds.

Potentials are enclosed in an affine form (Comba and Stolfi, "Affine arithmetic and its applications to computer
graphics", SIBGRAPI 1993) around the recorded ones: v = v0 + G z + r, where z in [-1, 1] are the moves of the
observations, G (U, K) is the linear response of the potentials, and |r| <= rho the rest. By the mean value theorem a
substep f has f(v) - f(v0) = f'(xi) (v - v0) with xi in between, so that with derivatives f' in intervals around f'(v0)
the form goes on as G <- f'(v0) G and rho <- |f'(v0)| rho + width (|G| + rho). A box, carried on by the sharp range of
each substep (`ncp_rl.audit.intervals`), stands beside it: the form is tight for small moves, the box for large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ncp_rl.audit.cell import Array, Cell, Connections, Indices
from ncp_rl.audit.intervals import Means, Range
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode

# Receptors are linear in their quantity up to rounding in float32; an input that deviates further is no receptor.
_NOT_LINEAR = 1e-4
# Where the box is narrower than this share of the affine form, the form is replaced by the box.
_GIVE_UP = 0.2


@dataclass(frozen=True)
class Sensitivity:
    """Bounds over W steps of an episode, for each of A action means.

    Attributes:
        action_names: (A,) names of the action means.
        step: The first step whose observation is moved.
        bound: (W, A), how far each action mean can be from its recorded value, after each step.
        found: (W, A), how far the attack on the last step moved it.
    """

    action_names: tuple[str, ...]
    step: int
    bound: Array
    found: Array

    def ratio(self) -> Array:
        """Return the bound over the change found at the last step, (A,): 1 where the bound is tight."""
        ratio: Array = self.bound[-1] / np.maximum(self.found[-1], np.finfo(np.float32).tiny)
        return ratio

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of audit.json: the bound and the change found at the last step."""
        last = zip(self.action_names, self.bound[-1].tolist(), self.found[-1].tolist(), strict=True)
        return {"step": self.step, "n_steps": len(self.bound)} | {
            name: {"bound": bound, "found": found} for name, bound, found in last
        }


def sensitivity(
    circuit: Circuit, episode: Episode, moves: Array, *, step: int = 0, n_steps: int = 20, seed: int = 0
) -> Sensitivity:
    """Bound the change of action means when the observations of `n_steps` steps move, each anew.

    Args:
        circuit: The circuit.
        episode: A recorded episode, without moves.
        moves: (K, S), change of the sensory inputs by one unit of each of K independent moves, in [-1, 1]. For sensory
            inputs that move by epsilon each it is `epsilon * numpy.eye(S)`. For receptors a move is that of an observed
            quantity, and its row holds the gains of its receptors, times epsilon.
        step: The first step that is moved.
        n_steps: Number of steps that are moved; fewer where the episode ends before.
        seed: Seed of the attack's random starts.

    Raises:
        ValueError: `moves` does not fit the circuit, or `step` does not fit the episode.
    """
    if moves.ndim != 2 or moves.shape[1] != circuit.wiring.n_sensory:
        raise ValueError(f"moves must be (K, S) with S = {circuit.wiring.n_sensory}, got {moves.shape}.")
    if not 0 <= step < len(episode) or n_steps < 1:
        raise ValueError(
            f"step must lie in the episode of {len(episode)} steps, and n_steps be 1 or more, got {step=}, {n_steps=}."
        )
    window = slice(step, min(step + n_steps, len(episode)))
    start = episode.potentials[step - 1] if step else episode.start
    sensory, seconds = episode.sensory[window], episode.elapsed_time[window]
    bound = _bound(circuit, *(array.astype(np.float64) for array in (start, sensory, seconds, moves)))
    found = _attack(circuit, start, sensory, seconds, moves, seed)
    return Sensitivity(circuit.action_names, step, bound, found)


def observation_moves(circuit: Circuit, episodes: Sequence[Episode], share: float) -> tuple[Array, str]:
    """Return moves of each observed quantity by a share of its recorded range, for `sensitivity`.

    Receptors are linear in their quantity, so that two recorded values give their gain. Other encoders hide the effect
    of one observation on the sensory inputs: with these, each sensory input moves by itself, by the share of its own
    range.

    Returns:
        moves: (K, S).
        what: The kind of input that moves, "observation" or "sensory input".
    """
    # Where a reading was bad, the circuit was given zeros in its place.
    sensory, observed = (
        np.concatenate([getattr(episode, name)[~episode.held] for episode in episodes]).astype(np.float64)
        for name in ("sensory", "observation")
    )
    quantity = [name.rpartition("_")[0] for name in circuit.sensory_names]
    each = share * np.diag(np.ptp(sensory, axis=0)), "sensory input"
    if not set(quantity) <= set(episodes[0].observation_names):
        return each  # Such as the features of an image.
    rows = []
    for column, name in zip(observed.T, episodes[0].observation_names, strict=True):
        low, high = int(column.argmin()), int(column.argmax())
        own = np.array([of == name for of in quantity])
        line = sensory[low] + np.outer(column - column[low], sensory[high] - sensory[low]) / max(np.ptp(column), 1e-30)
        if not own.any() or np.abs(line - sensory)[:, own].max() > _NOT_LINEAR * max(np.ptp(sensory[:, own]), 1e-30):
            return each
        rows.append(share * (sensory[high] - sensory[low]) * own)
    return np.stack(rows), "observation"


@dataclass
class _Enclosure:
    """Two enclosures of potentials: they are in `box`, and they are center + generators z + r with |r| <= rest."""

    box: Range
    center: Array  # (U,)
    generators: Array  # (U, K)
    rest: Array  # (U,)

    def tighten(self) -> None:
        """Tighten each of the two enclosures by the other."""
        radius = np.abs(self.generators).sum(1) + self.rest
        self.box = self.box.meet(Range(self.center - radius, self.center + radius))
        narrower = self.radius() < _GIVE_UP * radius
        self.generators[narrower] = 0.0
        self.rest = np.where(narrower, self.radius(), self.rest)

    def radius(self) -> Array:
        """Return how far potentials in the box can be from the center, (U,)."""
        radius: Array = np.maximum(self.box.high - self.center, self.center - self.box.low)
        return radius


def _bound(circuit: Circuit, start: Array, sensory: Array, seconds: Array, moves: Array) -> Array:
    """Bound how far the action means can move, (W, A); the module's docstring has the method."""
    cell = Cell.of(circuit)
    means, motor = Means(cell), circuit.wiring.motor
    readout = circuit.readout.astype(np.float64)
    n_steps, n_moves = len(sensory), len(moves)
    around = _Enclosure(Range(start, start), start, np.zeros((cell.units, n_steps * n_moves)), np.zeros(cell.units))
    input_radius, bounds = np.abs(moves).sum(0), []
    for t, inputs in enumerate(sensory):
        own = slice(t * n_moves, (t + 1) * n_moves)
        inputs_range = Range(inputs - input_radius, inputs + input_radius)
        for _ in range(cell.ode_unfolds):
            _substep(cell, means, around, inputs, inputs_range, moves, own, seconds[t] / cell.ode_unfolds)
        linear = np.abs(readout @ around.generators[motor]).sum(1) + np.abs(readout) @ around.rest[motor]
        bounds.append(np.minimum(linear, np.abs(readout) @ around.radius()[motor]))
    return np.stack(bounds)


def _substep(
    cell: Cell,
    means: Means,
    around: _Enclosure,
    inputs: Array,
    inputs_range: Range,
    moves: Array,
    own: slice,
    delta: float,
) -> None:
    """Carry an enclosure over a substep, in place."""
    radius, input_radius = around.radius(), inputs_range.high - inputs
    after = means.range(around.box, inputs_range, around.box, cell.cm, delta)
    at = Range(around.center, around.center), Range(inputs, inputs)
    center = means.range(at[0], at[1], at[0], cell.cm, delta)
    slopes, nominal = (
        _derivatives(cell, potentials, senses, result, delta)
        for potentials, senses, result in ((around.box, inputs_range, after), (*at, center))
    )
    (jacobian, width), (input_jacobian, input_width) = (
        (exact.low, np.maximum(ends.high - exact.low, exact.low - ends.low))
        for ends, exact in zip(slopes, nominal, strict=True)
    )
    generators = jacobian @ around.generators
    generators[:, own] += input_jacobian @ moves.T
    around.rest = np.abs(jacobian) @ around.rest + width @ radius + input_width @ input_radius
    around.box, around.center, around.generators = after, center.low, generators
    around.tighten()


def _derivatives(cell: Cell, potentials: Range, sensory: Range, after: Range, delta: float) -> tuple[Range, Range]:
    """Return the ranges of d v'_j / d v_i, (U, U), and d v'_j / d x_s, (U, S), rows j.

    d v'_j / d v_i = (delta w sigma s (1 - s) (erev - v'_j) + [i = j] cm_j) / D_j.
    """
    denominator = _denominator(cell, potentials, sensory, delta)
    between, from_senses = (
        _slopes(synapses, source, after, denominator, delta)
        for synapses, source in ((cell.synapses, potentials), (cell.sensory, sensory))
    )
    own = Range(cell.cm / denominator.high, cell.cm / denominator.low)
    jacobian = Range(
        *(
            _matrix(cell.synapses, slope, cell.units, cell.units) + np.diag(kept)
            for slope, kept in zip(between, own, strict=True)
        )
    )
    n_sensory = len(sensory.low)
    return jacobian, Range(*(_matrix(cell.sensory, slope, cell.units, n_sensory) for slope in from_senses))


def _denominator(cell: Cell, potentials: Range, sensory: Range, delta: float) -> Range:
    """Return the range (U,) of D = cm + delta (gleak + sum w s + epsilon): conductances rise with each openness."""
    ends = []
    for pick in (np.minimum, np.maximum):
        conductance = cell.conductance(
            *(
                pick(synapses.openness(source.low), synapses.openness(source.high))
                for synapses, source in ((cell.synapses, potentials), (cell.sensory, sensory))
            )
        )
        ends.append(cell.cm + delta * conductance)
    return Range(*ends)


def _slopes(synapses: Connections, source: Range, after: Range, denominator: Range, delta: float) -> Range:
    """Return the range (E,) of delta w sigma s (1 - s) (erev - v') / D."""
    ends = (synapses.openness(source.low), synapses.openness(source.high))
    steep = [s * (1.0 - s) for s in ends]
    crosses = (np.minimum(*ends) < 0.5) & (np.maximum(*ends) > 0.5)
    scale = delta * synapses.w * synapses.sigma
    steepness = Range(np.minimum(*steep), np.where(crosses, 0.25, np.maximum(*steep)))
    share = Range(1.0 / denominator.high[synapses.destination], 1.0 / denominator.low[synapses.destination])
    pull = Range(synapses.erev - after.high[synapses.destination], synapses.erev - after.low[synapses.destination])
    least, most = (scale * pull_end for pull_end in pull)
    # Steepness and share are not negative: the extremes of a product are where the signed factor's are.
    signed = Range(np.minimum(least, most), np.maximum(least, most))
    large, small = steepness.high * share.high, steepness.low * share.low
    return Range(
        signed.low * np.where(signed.low < 0, large, small), signed.high * np.where(signed.high > 0, large, small)
    )


def _matrix(synapses: Connections, values: Array, rows: int, columns: int) -> Array:
    """Return the values (E,) at [destination, source]."""
    matrix = np.zeros((rows, columns))
    index: tuple[Indices, Indices] = (synapses.destination, synapses.source)
    matrix[index] = values
    return matrix


def _attack(
    circuit: Circuit,
    start: Any,
    sensory: Any,
    seconds: Any,
    moves: Array,
    seed: int,
    n_starts: int = 16,
    rounds: int = 20,
) -> Array:
    """Find large changes of each action mean, (W, A), by projected gradient ascent on its last value."""
    n_steps, n_actions = len(sensory), len(circuit.bias)
    device = circuit.ltc.cm.device
    inputs, elapsed = (torch.tensor(array, device=device) for array in (sensory, seconds))
    directions = torch.tensor(moves, dtype=torch.float32, device=device)
    readout = torch.tensor(circuit.readout, device=device)
    generator = torch.Generator().manual_seed(seed)
    # Every action is pushed up and down from every start, all in one batch.
    sign = torch.ones(n_actions, 2, n_starts, device=device) * torch.tensor([[[1.0], [-1.0]]], device=device)
    batch = sign.numel()

    def actions(shift: torch.Tensor) -> torch.Tensor:
        state = torch.tensor(start, device=device).expand(shift.shape[1], -1)
        potentials, _ = circuit.ltc(inputs[:, None] + shift, state, None, elapsed[:, None].expand(shift.shape[:2]))
        means: torch.Tensor = potentials[..., circuit.wiring.motor] @ readout.T  # (W, N, A)
        return means

    z = (torch.rand(n_steps, batch, len(moves), generator=generator).to(device) * 2 - 1).requires_grad_()
    with torch.no_grad():
        nominal = actions(torch.zeros_like(inputs)[:, None])
    found = np.zeros((n_steps, n_actions))
    for round_ in range(rounds):
        moved = actions(z @ directions) - nominal
        found = np.maximum(found, moved.detach().abs().amax(1).cpu().double().numpy())
        target = (moved[-1].unflatten(0, (n_actions, 2, n_starts)).diagonal(dim1=0, dim2=3)).permute(2, 0, 1)
        (gradient,) = torch.autograd.grad((target * sign).sum(), z)
        with torch.no_grad():
            # Each step moves to a corner of the box, where an action that is monotonic in the moves changes most.
            z += gradient.sign() * (1.0 if round_ < rounds // 2 else 0.25)
            z.clamp_(-1.0, 1.0)
    return found
