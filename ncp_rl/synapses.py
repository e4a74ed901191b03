"""The synapses of an adjacency matrix as lists, in the order that all other code uses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class SynapseList(NamedTuple):
    """Synapses sorted by destination, then source; those that end in neuron j are `pointer[j]:pointer[j + 1]`."""

    pointer: npt.NDArray[np.int32]
    """(U + 1,) int32, compressed-sparse-row pointer by destination."""
    source: npt.NDArray[np.int32]
    """(E,) int32, presynaptic neuron, or input for sensory synapses."""
    destination: npt.NDArray[np.int32]
    """(E,) int32, postsynaptic neuron."""
    polarity: npt.NDArray[np.int8]
    """(E,) int8, +1 excitatory, -1 inhibitory."""


def synapse_list(adjacency: npt.NDArray[np.int8]) -> SynapseList:
    """List the synapses of `adjacency` (U or S, U) int8, [source, destination], polarity or 0 for none."""
    destination, source = np.nonzero(adjacency.T)
    pointer = np.concatenate([[0], np.cumsum(np.bincount(destination, minlength=adjacency.shape[1]))])
    polarity = adjacency[source, destination]
    return SynapseList(pointer.astype(np.int32), source.astype(np.int32), destination.astype(np.int32), polarity)
