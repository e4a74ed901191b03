"""The equations of synapses and neurons of the liquid time-constant cell, stated once, in NumPy.

With the potential v_i of the source, or the sensory input in its place,

    s_ij  = sigmoid(sigma_ij (v_i - mu_ij)),                  how open a synapse is, from 0 to 1,
    G_j   = gleak_j + sum_i w_ij s_ij + epsilon,              conductance of a neuron, sensory synapses included,
    tau_j = cm_j / G_j,                                       seconds in which it follows its input

(Hasani et al., "Liquid Time-constant Networks", AAAI 2021; `ncp_rl.kernels.reference` has the whole step, and epsilon).
Since 0 < s < 1, tau lies between its values for all synapses open and all synapses shut, whatever the input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ncp_rl.jit import inlined, kernel
from ncp_rl.kernels import EPSILON

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


def _openness(v: Any, sigma: Any, mu: Any) -> Any:
    return 1.0 / (1.0 + np.exp(sigma * (mu - v)))


def _conductance(gleak: Any, synaptic: Any) -> Any:
    return gleak + synaptic + EPSILON


def _time_constant(cm: Any, conductance: Any) -> Any:
    return cm / conductance


def openness(v: Array, sigma: Array, mu: Array) -> Array:
    """Return how open synapses are, (..., E) from 0 to 1.

    Args:
        v: (..., E), potential of each synapse's source, or the sensory input.
        sigma: (E,), steepness.
        mu: (E,), potential at which a synapse is half open.
    """
    with np.errstate(over="ignore"):  # Where the exponential overflows to infinity, the synapse is shut.
        opened: Array = _openness(v, sigma, mu)
    return opened


def conductance(gleak: Array, synaptic: Array) -> Array:
    """Return the conductance of each neuron, (..., U).

    Args:
        gleak: (U,), conductance of its leak.
        synaptic: (..., U), sum of w s over its synapses.
    """
    total: Array = _conductance(gleak, synaptic)
    return total


def time_constant(cm: Array, conductance: Array) -> Array:
    """Return the time constants of neurons, (..., U) seconds.

    Args:
        cm: (U,), membrane capacitance.
        conductance: (..., U), see `conductance`.
    """
    seconds: Array = _time_constant(cm, conductance)
    return seconds


def time_constants(
    values: Floats, synapses: Floats, source: Integers, destination: Integers, cm: Floats, gleak: Floats
) -> Floats:
    """Compute time constants, (B, U) seconds, by the equations above, compiled, for many steps.

    Args:
        values: (B, I) float32, potentials and sensory inputs side by side.
        synapses: (4, E) float32, rows w, sigma, mu and erev.
        source: (E,) int32, index of the value that opens each synapse.
        destination: (E,) int32, index of the neuron in which each synapse ends.
        cm: (U,) float32, membrane capacitances.
        gleak: (U,) float32, leak conductances.
    """
    found = np.empty((len(values), len(cm)), np.float32)
    _time_constants(values, synapses, source, destination, cm, gleak, found)
    return found


_openness_of_one, _conductance_of_one = inlined(_openness), inlined(_conductance)
_time_constant_of_one = inlined(_time_constant)


@kernel
def _time_constants(values: Any, synapses: Any, source: Any, destination: Any, cm: Any, gleak: Any, found: Any) -> None:
    synaptic = np.empty(len(cm))
    for row in range(len(values)):
        synaptic[:] = 0.0
        for e in range(len(source)):
            w, sigma, mu = synapses[0, e], synapses[1, e], synapses[2, e]
            synaptic[destination[e]] += w * _openness_of_one(values[row, source[e]], sigma, mu)
        for j in range(len(cm)):
            found[row, j] = _time_constant_of_one(cm[j], _conductance_of_one(gleak[j], synaptic[j]))
