"""What every backend of the scan receives and returns.

Letters: T time steps, N sequences, S sensory inputs, U neurons, E synapses between neurons, E_s sensory synapses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ncp_rl.synapses import SynapseList, synapse_list

#: Keeps the solver's denominator away from zero; `epsilon` of ncps' `LTCCell`.
EPSILON = 1e-8


class Params(NamedTuple):
    """Parameters of the cell, constrained already: w, cm and gleak are not negative."""

    synaptic: Tensor
    """(4, E) rows w, sigma, mu, erev of the synapses between neurons, in the order of `Synapses.source`."""
    sensory: Tensor
    """(4, E_s) the same rows for the sensory synapses, in the order of `Synapses.sensory_source`."""
    neuronal: Tensor
    """(3, U) rows cm, gleak, vleak."""


class FrozenParams(Params):
    """Parameters whose tensors nobody changes any more, so that what follows from them is computed once."""

    @functools.cached_property
    def derived(self) -> dict[Any, Any]:
        """What backends keep here, by keys of their own."""
        return {}

    def __getstate__(self) -> None:
        """Copies derive anew: what is kept here may hold addresses of the original's memory."""


class Synapses(NamedTuple):
    """Where the synapses run: compressed sparse rows by destination, int32, on the device of the computation.

    The synapses that end in neuron j are `source[pointer[j]:pointer[j + 1]]`, sources ascending, each of them once.
    """

    pointer: Tensor
    """(U + 1,) int32"""
    source: Tensor
    """(E,) int32, presynaptic neuron"""
    sensory_pointer: Tensor
    """(U + 1,) int32"""
    sensory_source: Tensor
    """(E_s,) int32, presynaptic sensory input"""

    @classmethod
    def from_adjacency(cls, adjacency: npt.NDArray[np.int8], sensory_adjacency: npt.NDArray[np.int8]) -> Synapses:
        """Synapse lists of `adjacency` (U, U) and `sensory_adjacency` (S, U), [source, destination], 0 for none."""
        return cls.from_lists(synapse_list(adjacency), synapse_list(sensory_adjacency))

    @classmethod
    def from_lists(cls, between: SynapseList, sensory: SynapseList) -> Synapses:
        """Copies of the lists of synapses between neurons and from sensory inputs, as tensors on the CPU."""
        return cls(*(torch.tensor(array) for synapses in (between, sensory) for array in synapses[:2]))

    def to(self, device: torch.device | str) -> Synapses:
        """The same lists on `device`."""
        return Synapses(*(tensor.to(device) for tensor in self))


class Operands(NamedTuple):
    """All that the scan computes with. What backends get is contiguous, on one device, and fits together."""

    params: Params
    """Constrained parameters, of the dtype of the computation"""
    synapses: Synapses
    inputs: Tensor
    """(T, N, S), sensory inputs"""
    state: Tensor
    """(N, U), membrane potentials before the first step"""
    episode_starts: Tensor | None
    """(T, N) bool; True sets a sequence's potentials to zero before that step"""
    elapsed_time: Tensor | None
    """(T, N), seconds that each step lasts; 1 second where None"""
    ode_unfolds: int
    """Solver substeps per step"""

    @property
    def values(self) -> tuple[Tensor | None, ...]:
        """Everything but synapses and substeps, in the order of `VALUES`; so autograd and graphs take it."""
        return *self.params, self.inputs, self.state, self.episode_starts, self.elapsed_time

    @classmethod
    def from_values(cls, values: Sequence[Any], synapses: Synapses, ode_unfolds: int) -> Operands:
        """The operands that have these `values`."""
        synaptic, sensory, neuronal, inputs, state, episode_starts, elapsed_time = values
        params = Params(synaptic, sensory, neuronal)
        return cls(params, synapses, inputs, state, episode_starts, elapsed_time, ode_unfolds)


#: Names of `Operands.values`, each with its type in the schema of a PyTorch operator.
VALUES = {
    "synaptic": "Tensor",
    "sensory": "Tensor",
    "neuronal": "Tensor",
    "inputs": "Tensor",
    "state": "Tensor",
    "episode_starts": "Tensor?",
    "elapsed_time": "Tensor?",
}


class Gradients(NamedTuple):
    """Gradients of a scalar with respect to the operands of the scan, each of its operand's shape."""

    params: Params
    inputs: Tensor
    state: Tensor
    elapsed_time: Tensor | None = None

    @property
    def values(self) -> tuple[Tensor | None, ...]:
        """As `Operands.values`; None for those that have no gradient."""
        return *self.params, self.inputs, self.state, None, self.elapsed_time


def tracing() -> bool:
    """Whether torch.jit.trace or the older torch.onnx records: shapes are values of the graph, not to be looked at."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def exporting() -> bool:
    """Whether a graph is captured that runs without this library: by torch.export, torch.onnx or torch.jit.trace."""
    return torch.compiler.is_exporting() or tracing()
