"""What can it never do? Ranges that hold for every neuron and action, for every finite input and for ever.

The certificate covers finite inputs only. A broken sensor can send NaN, which makes potentials NaN. Nothing is
certified after NaN until the next reset, so keep NaN from the policy.

Every potential is a weighted mean of its own past, its leak potential and the reversal potentials of its synapses, the
weights being conductances that are not negative (`ncp_rl.kernels.reference`). Hence from a start at zero

    min(0, vleak_j, min_i erev_ij) <= v_j <= max(0, vleak_j, max_i erev_ij):

the box, whose proof needs the signs of parameters only. The range is sharper: with every source in its own range,
synapses open only so far. The mean that neuron j is drawn to then lies in an interval (`ncp_rl.audit.intervals`), which
together with zero holds the potential for ever; repeated from the box on, each round gives a range within the last.

Float32 rounds: bounds are widened by what rounding can add up to (Higham, "Accuracy and Stability of Numerical
Algorithms", 2002, section 4.2: n roundings change a sum of n terms by at most n u / (1 - n u) of their magnitudes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ncp_rl.audit.cell import Array, Cell
from ncp_rl.audit.intervals import Means, Range
from ncp_rl.audit.measurable import LARGEST
from ncp_rl.audit.verdict import Verdict
from ncp_rl.circuit import Circuit
from ncp_rl.kernels import EPSILON

# Unit roundoff of float32, and the relative error allowed to a backend's sigmoid (measured: below 5e-7).
_ROUNDOFF = 2.0**-24
_SIGMOID_ERROR = 1e-6
# Rounds of the sharper range. The range after each round is valid, so the rounds may stop early.
_MAX_ROUNDS = 200


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Ranges of a circuit's potentials and action means, float32 rounding included.

    Attributes:
        circuit: The circuit.
        violations: Faults of the parameters, a sentence each; where there is one, nothing is certified and
            all bounds are NaN.
        box: (U,), range of each potential that follows from the signs of parameters alone.
        range: (U,), range of each potential within the box, which also takes into account how far synapses can open.
        action: (A,), range of each action mean, from the extremes of `range`.
        rounding: (U,), largest difference between float32 and exact arithmetic; the ranges contain it.
        min_elapsed_time: Seconds; the certificate holds for steps at least as long. Shorter ones leave more to
            rounding alone.
    """

    circuit: Circuit
    violations: tuple[str, ...]
    box: Range
    range: Range
    action: Range
    rounding: Array = field(repr=False)
    min_elapsed_time: float

    def verdict(self) -> Verdict:
        """Return the verdict: the range of each action mean, or the first violation."""
        if self.violations:
            more = f" and {len(self.violations) - 1} more" if len(self.violations) > 1 else ""
            return Verdict("certificate", False, f"Nothing is certified: {self.violations[0]}{more}.", {})
        named = zip(self.circuit.action_names, *self.action, strict=True)
        ranges = ", ".join(f"{name} in [{low:.3f}, {high:.3f}]" for name, low, high in named)
        width = float(np.max(self.action.high - self.action.low))
        return Verdict(
            "certificate",
            True,
            f"For every finite input and for ever, action means lie in these ranges: {ranges}.",
            {"width": width},
        )

    def holds(self, potentials: Any) -> bool:
        """Return whether potentials (..., U) lie in the range."""
        return bool(np.all((potentials >= self.range.low) & (potentials <= self.range.high)))

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of audit.json: bounds by the names of neurons and actions."""
        names, actions = self.circuit.wiring.names, self.circuit.action_names
        return {
            "violations": list(self.violations),
            "min_elapsed_time": self.min_elapsed_time,
            "box": _named(names, self.box),
            "range": _named(names, self.range),
            "action": _named(actions, self.action),
        }


def certify(circuit: Circuit, *, min_elapsed_time: float | None = None) -> Certificate:
    """Certify a circuit for every finite input, for ever, from a start at zero (or anywhere in the range).

    Args:
        circuit: The circuit.
        min_elapsed_time: Seconds of the shortest step; None takes the constant step of the circuit.

    Raises:
        ValueError: min_elapsed_time is not positive.
    """
    seconds = circuit.ltc.elapsed_time if min_elapsed_time is None else float(min_elapsed_time)
    if not seconds > 0:
        raise ValueError(f"min_elapsed_time must be positive seconds, got {min_elapsed_time}.")
    cell = Cell.of(circuit)
    found = violations(circuit)
    if found:
        nowhere, no_action = (Range(*np.full((2, n), np.nan)) for n in (cell.units, len(circuit.bias)))
        return Certificate(
            circuit=circuit,
            violations=found,
            box=nowhere,
            range=nowhere,
            action=no_action,
            rounding=nowhere.low,
            min_elapsed_time=seconds,
        )
    box = invariant_box(cell)
    rounding = _rounding(cell, box, seconds)
    inside = _invariant(cell, box, rounding)
    return Certificate(
        circuit=circuit,
        violations=(),
        box=_widened(box, rounding),
        range=inside,
        action=_action(circuit, inside),
        rounding=rounding,
        min_elapsed_time=seconds,
    )


def attack_actions(
    circuit: Circuit, *, n_steps: int = 40, n_starts: int = 64, rounds: int = 60, seed: int = 0
) -> Range:
    """Return the widest range of each action mean that gradient ascent reaches: how tight a certificate is.

    From random starts, Adam changes constant inputs so that each action mean is as high or low as possible after
    `n_steps`.

    Args:
        circuit: The circuit.
        n_steps: Steps from zero.
        n_starts: Random inputs to start from, per action and direction.
        rounds: Steps of Adam.
        seed: Seed of the random inputs.
    """
    readout, bias = (torch.tensor(array, device=circuit.ltc.cm.device) for array in (circuit.readout, circuit.bias))
    n_actions, n_sensory = readout.shape[0], circuit.wiring.n_sensory
    directions = torch.cat([torch.eye(n_actions), -torch.eye(n_actions)]).repeat_interleave(n_starts, 0).to(readout)
    draws = torch.rand(len(directions), n_sensory, generator=torch.Generator().manual_seed(seed))
    inputs = (3.0 * draws - 1.0).to(readout).requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=0.2)
    low, high = torch.full((2, n_actions), torch.inf, device=readout.device) * torch.tensor([[1.0], [-1.0]])
    for _ in range(rounds):
        potentials, _ = circuit.ltc(inputs.expand(n_steps, -1, -1))
        means = potentials[..., circuit.wiring.motor] @ readout.T + bias  # (T, N, A)
        low = torch.minimum(low, means.detach().amin((0, 1)))
        high = torch.maximum(high, means.detach().amax((0, 1)))
        optimizer.zero_grad()
        (-(means[-1] * directions).sum()).backward(inputs=[inputs])
        optimizer.step()
    return Range(*(bound.double().cpu().numpy() for bound in (low, high)))


def violations(circuit: Circuit) -> tuple[str, ...]:
    """Return a clause for each parameter that is not finite, or is negative where it must not be."""
    wiring, cell = circuit.wiring, Cell.of(circuit)
    found = [
        _violation(name, wiring.names[j], value, name != "vleak")
        for name in ("cm", "gleak", "vleak")
        for j, value in enumerate(getattr(cell, name))
    ]
    for synapses, sources in ((cell.synapses, wiring.names), (cell.sensory, circuit.sensory_names)):
        for name in ("w", "sigma", "mu", "erev"):
            for i, j, value in zip(synapses.source, synapses.destination, getattr(synapses, name), strict=True):
                found.append(_violation(name, f"{sources[i]} -> {wiring.names[j]}", value, name == "w"))
    found += [_violation("readout", circuit.action_names[i], v, False) for (i, _), v in np.ndenumerate(circuit.readout)]
    found += [_violation("bias", circuit.action_names[i], value, False) for i, value in enumerate(circuit.bias)]
    return tuple(violation for violation in found if violation)


def invariant_box(cell: Cell) -> Range:
    """Return the smallest and largest of 0, leak potential and reversal potentials, (U,) each, without rounding."""
    low, high = np.minimum(cell.vleak, 0.0), np.maximum(cell.vleak, 0.0)
    for synapses in (cell.synapses, cell.sensory):
        np.minimum.at(low, synapses.destination, synapses.erev)
        np.maximum.at(high, synapses.destination, synapses.erev)
    return Range(low, high)


def _invariant(cell: Cell, box: Range, rounding: Array) -> Range:
    """Return the sharper range: each round joins zero and the mean that a neuron is drawn to, widened by rounding."""
    means, inside = Means(cell), _widened(box, rounding)
    # The largest finite inputs: a synapse of no steepness stays half open at them, and would be nan at infinite ones.
    largest = np.full(cell.sensory.source.max(initial=0) + 1, np.finfo(np.float64).max)
    anything = Range(-largest, largest)
    zero = Range(np.zeros(cell.units), np.zeros(cell.units))
    for _ in range(_MAX_ROUNDS):
        drawn_to = means.range(inside, anything, inside, np.zeros(cell.units), 1.0)
        sharper = inside.meet(_widened(drawn_to.hull(zero), rounding))
        moved = max(np.max(sharper.low - inside.low), np.max(inside.high - sharper.high))
        inside = sharper
        if moved < 1e-9:
            break
    return inside


def _rounding(cell: Cell, box: Range, seconds: float) -> Array:
    """Return how far float32 can carry each potential out of its range, (U,): the errors of all substeps added up."""
    fan_in = sum(np.bincount(kind.destination, minlength=cell.units) for kind in (cell.synapses, cell.sensory))
    magnitude = np.maximum(-box.low, box.high)
    per_substep = (2 * fan_in + 8) * _ROUNDOFF * magnitude
    # A substep keeps at most cm / (cm + leak) of an excess, so that excesses add up to 1 / (1 - kept) of one.
    leak = seconds / cell.ode_unfolds * (cell.gleak + EPSILON)
    return per_substep * (cell.cm + leak) / leak + 2 * _SIGMOID_ERROR * magnitude


def _action(circuit: Circuit, inside: Range) -> Range:
    motor = circuit.wiring.motor
    weight, bias = circuit.readout.astype(np.float64), circuit.bias.astype(np.float64)
    ends = np.stack([weight * inside.low[motor], weight * inside.high[motor]])
    margin = (len(weight.T) + 2) * _ROUNDOFF * (np.abs(ends).max(0).sum(1) + np.abs(bias))
    return Range(ends.min(0).sum(1) + bias - margin, ends.max(0).sum(1) + bias + margin)


def _violation(name: str, place: str, value: float | np.floating[Any], not_negative: bool) -> str:
    if not -LARGEST <= value <= LARGEST:
        return f"{name} of {place} is {value:.3g}" + (", too large for sums of float32" if np.isfinite(value) else "")
    return f"{name} of {place} is negative ({value:.3g})" if not_negative and value < 0 else ""


def _widened(bounds: Range, margin: Array) -> Range:
    return Range(bounds.low - margin, bounds.high + margin)


def _named(names: tuple[str, ...], bounds: Range) -> dict[str, list[float | None]]:
    pairs = zip(*(side.tolist() for side in bounds), strict=True)
    return {name: [end if np.isfinite(end) else None for end in pair] for name, pair in zip(names, pairs, strict=True)}
