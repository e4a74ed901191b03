"""The operands and results of every backend of the scan.

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
    """Constrained parameters of the cell: w, cm and gleak are not negative."""

    synaptic: Tensor
    """(4, E) rows w, sigma, mu, erev of the synapses between neurons, in the order of `Synapses.source`."""
    sensory: Tensor
    """(4, E_s) the same rows of the sensory synapses, in the order of `Synapses.sensory_source`."""
    neuronal: Tensor
    """(3, U) rows cm, gleak, vleak."""


class FrozenParams(Params):
    """Parameters whose tensors never change, so that backends can keep values derived from them."""

    @functools.cached_property
    def derived(self) -> dict[Any, Any]:
        """Values that backends derived from the parameters, by the backends' own keys."""
        return {}

    def __getstate__(self) -> None:
        """Keep `derived` out of copies, since it may hold addresses of the original's memory."""


class Synapses(NamedTuple):
    """Lists of synapses: compressed sparse rows by destination, int32, on the device of the computation.

    The synapses that end in neuron j are `source[pointer[j]:pointer[j + 1]]`, sources ascending, each of them once.
    """

    pointer: Tensor
    """(U + 1,) int32, first synapse of each neuron"""
    source: Tensor
    """(E,) int32, presynaptic neuron"""
    sensory_pointer: Tensor
    """(U + 1,) int32, first synapse of each neuron"""
    sensory_source: Tensor
    """(E_s,) int32, presynaptic sensory input"""

    @classmethod
    def from_adjacency(cls, adjacency: npt.NDArray[np.int8], sensory_adjacency: npt.NDArray[np.int8]) -> Synapses:
        """List the synapses of `adjacency` (U, U) and `sensory_adjacency` (S, U), [source, destination], 0 for none."""
        return cls.from_lists(synapse_list(adjacency), synapse_list(sensory_adjacency))

    @classmethod
    def from_lists(cls, between: SynapseList, sensory: SynapseList) -> Synapses:
        """Copy the lists of synapses between neurons and from sensory inputs to tensors on the CPU."""
        return cls(*(torch.tensor(array) for synapses in (between, sensory) for array in synapses[:2]))

    def to(self, device: torch.device | str) -> Synapses:
        """Return the same lists on `device`."""
        return Synapses(*(tensor.to(device) for tensor in self))


class Operands(NamedTuple):
    """The operands of the scan. Backends get them contiguous, on one device, and with shapes that fit."""

    params: Params
    """Constrained parameters, in the dtype of the computation"""
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
        """All operands but synapses and substeps, in the order of `VALUES`, as autograd and graphs take them."""
        return *self.params, self.inputs, self.state, self.episode_starts, self.elapsed_time

    @classmethod
    def from_values(cls, values: Sequence[Any], synapses: Synapses, ode_unfolds: int) -> Operands:
        """Return the operands that have these `values`."""
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
    """Gradients of a scalar with respect to the operands of the scan, each in the shape of its operand."""

    params: Params
    inputs: Tensor
    state: Tensor
    elapsed_time: Tensor | None = None

    @property
    def values(self) -> tuple[Tensor | None, ...]:
        """The gradients in the order of `Operands.values`; None for operands without one."""
        return *self.params, self.inputs, self.state, None, self.elapsed_time


def tracing() -> bool:
    """Return whether torch.jit.trace or the older torch.onnx records; shapes are then values of the graph."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def exporting() -> bool:
    """Return whether torch.export, torch.onnx or torch.jit.trace captures a graph, which runs without this library.

    The flag is what `torch.compiler.is_exporting` returns; that function is True in each graph of torch.compile too
    where PyTorch is older than 2.13.
    """
    return torch.compiler._is_exporting_flag or tracing()
