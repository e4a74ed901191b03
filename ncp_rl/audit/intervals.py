"""Sharp ranges of the potentials after a substep of a cell, for ranges of potentials and inputs before it.

A new potential is a weighted mean whose weights, the open conductances, lie in intervals. Its extremes are an interval
weighted average (Karnik and Mendel, "Centroid of a type-2 fuzzy set", Information Sciences 132, 2001): with the values
in order, the largest mean gives every value above a switch point its largest weight and every other its smallest.
Trying all switch points gives the extremes exactly, in one pass of cumulated sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ncp_rl.audit.cell import Array, Cell, Connections, Indices
from ncp_rl.kernels import EPSILON
from ncp_rl.recording import Episode


class Range(NamedTuple):
    """Lower and upper bounds of the same shape."""

    low: Array
    high: Array

    def hull(self, other: Range) -> Range:
        """Return the smallest range around both."""
        return Range(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def meet(self, other: Range) -> Range:
        """Return the intersection of both."""
        return Range(np.maximum(self.low, other.low), np.minimum(self.high, other.high))


def seen_ranges(
    episodes: Iterable[Episode], *quantities: Callable[[Episode], npt.NDArray[np.floating[Any]]]
) -> tuple[Range, ...]:
    """Return the range of each quantity (T, ...) over all steps of all episodes, in one pass; NaN where a value is."""
    found: tuple[Range, ...] = ()
    for episode in episodes:
        values = [quantity(episode) for quantity in quantities]
        own = tuple(Range(array.min(axis=0), array.max(axis=0)) for array in values)
        found = tuple(map(Range.hull, found, own)) if found else own
    return found


class Means:
    """Ranges of weighted means over each neuron's incoming synapses, for one cell."""

    def __init__(self, cell: Cell) -> None:
        """Sort each neuron's synapses, of both kinds, by their reversal potentials."""
        self.cell = cell
        both = (cell.sensory, cell.synapses)
        destination = np.concatenate([kind.destination for kind in both])
        erev = np.concatenate([kind.erev for kind in both])
        order = np.lexsort((-erev, destination))
        fan_in = np.bincount(destination, minlength=cell.units)
        column = np.arange(len(order)) - np.repeat(np.cumsum(fan_in) - fan_in, fan_in)
        # Row j: the synapses that end in neuron j, highest reversal potential first; padded by one without weight.
        self.incoming: Indices = np.full((cell.units, int(fan_in.max(initial=0))), len(erev))
        self.incoming[destination[order], column] = order
        self.erev = np.append(erev, 0.0)[self.incoming]
        self.w = np.concatenate([kind.w for kind in both])

    def range(self, potentials: Range, sensory: Range, memory: Range, kept: Array, delta: Array | float) -> Range:
        """Bound (kept v + delta (gleak vleak + sum w s erev)) / (kept + delta (gleak + sum w s + eps)), (..., U).

        Args:
            potentials: (..., U) of the presynaptic neurons.
            sensory: (..., S) of the sensory inputs; may be infinite.
            memory: (..., U) of v, the neurons' own potentials before the substep.
            kept: (U,) weight of v: the capacitances, or 0 for the mean that a neuron is drawn to.
            delta: Seconds, broadcastable against (..., U).
        """
        cell = self.cell
        opened = [_openness(kind, at) for kind, at in ((cell.sensory, sensory), (cell.synapses, potentials))]
        weights = Range(*(np.concatenate(side, axis=-1) * self.w for side in zip(*opened, strict=True)))
        delta = np.asarray(delta)
        smallest, largest = (delta[..., None] * self._by_neuron(side) for side in weights)
        fixed = kept + delta * (cell.gleak + EPSILON)
        pull = delta * cell.gleak * cell.vleak
        low = _switched(smallest, largest, self.erev, fixed, kept * memory.low + pull).min(-1)
        high = _switched(largest, smallest, self.erev, fixed, kept * memory.high + pull).max(-1)
        return Range(low, high)

    def _by_neuron(self, values: Array) -> Array:
        """Return the values (..., E_s + E) of the synapses as (..., U, fan-in), 0 where a neuron has fewer."""
        nothing = np.zeros((*values.shape[:-1], 1))
        return np.concatenate([values, nothing], axis=-1)[..., self.incoming]


def reach(means: Means, potentials: Range, sensory: Range, elapsed_time: Array | float) -> Range:
    """Return range (..., U) of the potentials after a step from anywhere in `potentials` under any input in `sensory`.

    The range is sharp for each neuron and substep. Over several substeps it is an enclosure, since ranges ignore
    correlations.
    """
    delta = np.asarray(elapsed_time)[..., None] / means.cell.ode_unfolds
    for _ in range(means.cell.ode_unfolds):
        potentials = means.range(potentials, sensory, potentials, means.cell.cm, delta)
    return potentials


def _switched(first: Array, second: Array, values: Array, fixed: Array, pull: Array) -> Array:
    """Return weighted means (..., U, fan-in + 1) by switch point: weights are `first` before it, then `second`."""
    weight = _prefix(first) + _suffix(second)
    weighted = _prefix(first * values) + _suffix(second * values)
    means: Array = (weighted + pull[..., None]) / (weight + fixed[..., None])
    return means


def _prefix(values: Array) -> Array:
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)


def _suffix(values: Array) -> Array:
    return _prefix(values[..., ::-1])[..., ::-1]


def _openness(synapses: Connections, source: Range) -> tuple[Array, Array]:
    """Return the smallest and largest openness (..., E) of each synapse; sigma may have either sign."""
    ends = synapses.openness(source.low), synapses.openness(source.high)
    return np.minimum(*ends), np.maximum(*ends)
