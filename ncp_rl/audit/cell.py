"""`Cell`: the equations of a circuit in float64 NumPy, in the terms that the audit's algebra needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ncp_rl import equations
from ncp_rl.circuit import Circuit
from ncp_rl.synapses import SynapseList

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class Connections(NamedTuple):
    """Synapses of one kind, E of them, ordered by destination: w (conductance), sigma, mu, erev (E,) each."""

    source: Indices
    destination: Indices
    w: Array
    sigma: Array
    mu: Array
    erev: Array

    def openness(self, potentials: Array) -> Array:
        """How open each synapse is, in (0, 1): potentials (..., I) of sources -> (..., E)."""
        return equations.openness(potentials[..., self.source], self.sigma, self.mu)

    def total(self, values: Array, n: int) -> Array:
        """Sum (..., n) of values (..., E) over the synapses that end in each of n neurons."""
        sums = np.zeros((*values.shape[:-1], n))
        ends, first = np.unique(self.destination, return_index=True)
        if len(ends):
            sums[..., ends] = np.add.reduceat(values, first, axis=-1)
        return sums


@dataclass(frozen=True)
class Cell:
    """A circuit's constrained parameters; see `ncp_rl.kernels.reference` for the equations.

    Attributes:
        synapses: Between neurons.
        sensory: From sensory inputs to neurons.
        cm: (U,) membrane capacitance.
        gleak: (U,) leak conductance.
        vleak: (U,) leak potential.
        ode_unfolds: Solver substeps per step.
    """

    synapses: Connections
    sensory: Connections
    cm: Array
    gleak: Array
    vleak: Array
    ode_unfolds: int

    @classmethod
    def of(cls, circuit: Circuit) -> Cell:
        """The cell of a circuit.

        Raises:
            ValueError: The circuit's LTC has an input map; a policy's has none, since its encoder stands before.
        """
        ltc, wiring = circuit.ltc, circuit.wiring
        if ltc.input_w is not None:
            raise ValueError("The audit reads circuits without an input map; make the LTC with input_map=False.")
        with torch.no_grad():
            synaptic, sensory, (cm, gleak, vleak) = (rows.double().cpu().numpy() for rows in ltc.packed().params)
        return cls(
            _connections(wiring.synapses, synaptic),
            _connections(wiring.sensory_synapses, sensory),
            cm,
            gleak,
            vleak,
            ltc.ode_unfolds,
        )

    @property
    def units(self) -> int:
        """Number of neurons U."""
        return len(self.cm)

    def conductance(self, opened: Array, sensory_opened: Array) -> Array:
        """Leak and synapses together, (..., U), these open by `opened` (..., E) and `sensory_opened` (..., E_s)."""
        between = self.synapses.total(self.synapses.w * opened, self.units)
        from_senses = self.sensory.total(self.sensory.w * sensory_opened, self.units)
        return equations.conductance(self.gleak, between + from_senses)


def _connections(synapses: SynapseList, rows: Array) -> Connections:
    return Connections(synapses.source.astype(np.int64), synapses.destination.astype(np.int64), *rows)
