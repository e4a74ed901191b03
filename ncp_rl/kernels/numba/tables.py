"""Tables that the Numba kernels read in place of synapse lists and parameters, computed once for many steps.

A vector of `LANES` lanes holds one synapse of a neuron where a block is 16 sequences wide, two where it is 8, four
where it is 4. A table has one number for each synapse, which kernels spread over its lanes: a table with all lanes
would not fit into the first-level cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncp_rl.jit import inlined
from ncp_rl.kernels.contract import FrozenParams, Params, Synapses
from ncp_rl.kernels.numba.access import load_integer, load_number, store
from ncp_rl.kernels.numba.exp2 import MAX_EXPONENT
from ncp_rl.kernels.numba.memory import Floats, Integers, floats, integers, rows_at
from ncp_rl.kernels.numba.sources import scan_kernel
from ncp_rl.kernels.numba.vectors import LANES

#: Rows of `Params.synaptic` and `Params.sensory`.
W, SIGMA, MU, EREV = range(4)
#: Rows of `Params.neuronal`.
CM, GLEAK, VLEAK = range(3)

#: Number of vectors that loops look ahead.
LOOK_AHEAD = 3

#: Columns of a synapse table. A sigmoid is 1 / (1 + 2^(slope v + offset)) with slope = -sigma log2(e) and
#: offset = sigma mu log2(e); weight is w, drive w erev, reversal erev, pull w sigma, midpoint mu.
SLOPE, OFFSET, WEIGHT, DRIVE, REVERSAL, PULL, MIDPOINT = range(7)
#: Number of columns, one more than are used, so that a vector's columns lie in the fewest cache lines.
COLUMNS = 8

#: Below `MAX_EXPONENT` by more than rounding can carry potentials out of their range.
_SAFE_EXPONENT = np.float32(0.99 * MAX_EXPONENT)
_LOG2_E = np.float32(math.log2(math.e))
_INFINITY = np.float32(math.inf)
_ZERO = np.float32(0.0)
_NOTHING_IS_SAFE = np.float32(-1.0)


class Vectors(NamedTuple):
    """Synapses in vectors; each vector holds synapses of one neuron, and each of its slots holds one synapse.

    Tables and sources hold `LOOK_AHEAD` additional vectors at the end, whose source is the first row.
    """

    pointer: Tensor
    """(U + 1,) int32, first vector of each neuron"""
    source: Tensor
    """(slots + `LOOK_AHEAD` vectors,) int32, where the row of the presynaptic potential begins, in elements"""
    synapse: Tensor
    """(slots,) int32, number of each slot's synapse; padding repeats a neuron's last synapse"""
    slot: Tensor
    """(E,) int32, slot of each synapse"""


@dataclass(frozen=True)
class VectorizedWiring:
    """A wiring as the kernels read it: synapses in vectors, for blocks of one width."""

    synapses: Synapses
    width: int
    """How many sequences a block holds"""
    vectors: tuple[Vectors, Vectors]
    """Vectors of synapses between neurons, then those of sensory synapses"""
    sizes: tuple[int, int]
    """Number of vectors of each kind"""
    lists: tuple[int, ...]
    """Addresses of pointer and source of both kinds"""
    places: tuple[int, ...]
    """Addresses of synapse and slot of both kinds"""


class Tables(NamedTuple):
    """Parameters as the kernels read them."""

    wiring: VectorizedWiring
    memory: Tensor
    """(n,) float32, read by `read_tables`"""
    neuronal: Tensor
    """(3, U), a copy of `Params.neuronal`: no other code may move the memory that an address points to"""
    addresses: tuple[int, ...]
    """Addresses of `memory` and `neuronal`, then `VectorizedWiring.lists`, as `read_tables` takes them"""


def tables_of(params: Params, synapses: Synapses, width: int) -> Tables:
    """Return tables for blocks of `width` sequences; those of `FrozenParams` are made once."""
    if not isinstance(params, FrozenParams):
        return _make_tables(params, synapses, width)
    tables: Tables | None = params.derived.get(width)
    # Another `Synapses` object may hold the same lists.
    if tables is None or (tables.wiring.synapses is not synapses and tables.wiring is not _vectorized(synapses, width)):
        tables = params.derived[width] = _make_tables(params, synapses, width)
    return tables


def _make_tables(params: Params, synapses: Synapses, width: int) -> Tables:
    wiring = _vectorized(synapses, width)
    synaptic, sensory, neuronal = params.synaptic, params.sensory, params.neuronal.clone()
    memory = torch.zeros(LANES + (sum(wiring.sizes) + LOOK_AHEAD) * COLUMNS * (LANES // width))
    own = memory.data_ptr(), neuronal.data_ptr()
    fill_kernel(width)(
        *own,
        synaptic.data_ptr(),
        sensory.data_ptr(),
        *wiring.places,
        neuronal.shape[1],
        synaptic.shape[1],
        sensory.shape[1],
        *wiring.sizes,
    )
    return Tables(wiring, memory, neuronal, own + wiring.lists)


@functools.lru_cache(maxsize=64)
def _vectorized(synapses: Synapses, width: int) -> VectorizedWiring:
    """Arrange a wiring for blocks of `width` sequences; the cache compares tensors by identity."""
    pointer, source, sensory_pointer, sensory_source = (tensor.numpy() for tensor in synapses)
    vectors = _arrange(pointer, source, width), _arrange(sensory_pointer, sensory_source, width)
    between, sensory = vectors
    return VectorizedWiring(
        synapses,
        width,
        vectors,
        (int(between.pointer[-1]), int(sensory.pointer[-1])),
        tuple(tensor.data_ptr() for kind in vectors for tensor in (kind.pointer, kind.source)),
        tuple(tensor.data_ptr() for kind in vectors for tensor in (kind.synapse, kind.slot)),
    )


def _arrange(pointer: Integers, source: Integers, width: int) -> Vectors:
    n_parts = LANES // width
    fan_in = np.diff(pointer)
    n_vectors = -(-fan_in // n_parts)
    vector_pointer = np.concatenate([[0], np.cumsum(n_vectors)])
    neuron = np.repeat(np.arange(len(fan_in)), n_vectors * n_parts)
    rank = np.arange(len(neuron)) - vector_pointer[neuron] * n_parts
    synapse = pointer[neuron] + np.minimum(rank, fan_in[neuron] - 1)
    slot = np.flatnonzero(rank < fan_in[neuron])
    arrays = vector_pointer, np.pad(source[synapse] * width, (0, LOOK_AHEAD * n_parts)), synapse, slot
    return Vectors(*(torch.from_numpy(array.astype(np.int32)) for array in arrays))


@functools.cache
def fill_kernel(width: int) -> Callable[..., None]:
    """Return the function that writes the memory of `Tables`, which is compiled when it is first called."""
    n_parts = LANES // width

    @functools.partial(scan_kernel, variant=width)
    def fill_tables(
        address: int,
        neuronal_address: int,
        synaptic_address: int,
        sensory_address: int,
        synapse_address: int,
        slot_address: int,
        sensory_synapse_address: int,
        sensory_slot_address: int,
        n_neurons: int,
        n_synapses: int,
        n_sensory: int,
        n_vectors: int,
        n_sensory_vectors: int,
    ) -> None:
        synaptic, sensory = floats(synaptic_address, 4, n_synapses), floats(sensory_address, 4, n_sensory)
        neuronal = floats(neuronal_address, 3, n_neurons)
        limits = floats(address, 1, 2)
        limits[0, 0], limits[0, 1] = start_limit(synaptic, sensory, neuronal), presynaptic_limit(sensory)
        address += 4 * LANES
        cells = rows_at(address, n_vectors * COLUMNS * n_parts, 1)
        synapse, slot = integers(synapse_address, n_vectors * n_parts), integers(slot_address, n_synapses)
        fill_table(synaptic, synapse, slot, n_parts, cells)
        address += 4 * n_vectors * COLUMNS * n_parts
        cells = rows_at(address, n_sensory_vectors * COLUMNS * n_parts, 1)
        synapse = integers(sensory_synapse_address, n_sensory_vectors * n_parts)
        fill_table(sensory, synapse, integers(sensory_slot_address, n_sensory), n_parts, cells)

    compiled: Callable[..., None] = fill_tables
    return compiled


@inlined
def read_tables(addresses: tuple[int, ...], n_neurons: int, n_parts: int) -> Any:
    """Return two limits, the neurons' (3, U), and table, pointer and source of both kinds of synapses.

    The limits are those of first potentials and of inputs. Magnitudes up to a limit take no exponent past
    `MAX_EXPONENT`: see `start_limit` and `presynaptic_limit`. Synapses between neurons come first, sensory synapses
    second. A table has `COLUMNS` rows for each vector of `n_parts` synapses, one of each kind of constant, with a
    number for each synapse. `addresses` are those of `Tables`.
    """
    address, neuronal_address, pointer_address, source_address, sensory_pointer_address, sensory_source_address = (
        addresses
    )
    pointer = integers(pointer_address, n_neurons + 1)
    sensory_pointer = integers(sensory_pointer_address, n_neurons + 1)
    n_vectors, n_sensory_vectors = load_integer(pointer, n_neurons), load_integer(sensory_pointer, n_neurons)
    first = address + 4 * LANES
    second = first + 4 * n_vectors * COLUMNS * n_parts
    table = rows_at(first, n_vectors * COLUMNS, n_parts)
    sensory_table = rows_at(second, n_sensory_vectors * COLUMNS, n_parts)
    source = integers(source_address, (n_vectors + LOOK_AHEAD) * n_parts)
    sensory_source = integers(sensory_source_address, (n_sensory_vectors + LOOK_AHEAD) * n_parts)
    return (
        floats(address, 1, 2)[0],
        floats(neuronal_address, 3, n_neurons),
        (table, pointer, source),
        (sensory_table, sensory_pointer, sensory_source),
    )


@inlined
def fill_table(params: Floats, synapse: Integers, slot: Integers, n_parts: int, cells: Floats) -> None:
    """Fill the columns of all slots from the (4, E) rows w, sigma, mu, erev; padding has weight 0."""
    n_synapses = params.shape[1]
    for i in range(synapse.shape[0]):
        e = load_integer(synapse, i)
        w = load_number(params, W * n_synapses + e) if load_integer(slot, e) == i else _ZERO
        sigma, mu = load_number(params, SIGMA * n_synapses + e), load_number(params, MU * n_synapses + e)
        erev = load_number(params, EREV * n_synapses + e)
        cell = i // n_parts * COLUMNS * n_parts + i % n_parts
        store(cells, cell + SLOPE * n_parts, -sigma * _LOG2_E)
        store(cells, cell + OFFSET * n_parts, sigma * mu * _LOG2_E)
        store(cells, cell + WEIGHT * n_parts, w)
        store(cells, cell + DRIVE * n_parts, w * erev)
        store(cells, cell + REVERSAL * n_parts, erev)
        store(cells, cell + PULL * n_parts, w * sigma)
        store(cells, cell + MIDPOINT * n_parts, mu)


@inlined
def presynaptic_limit(params: Floats) -> Any:
    """Return the presynaptic magnitude up to which exponents stay within `MAX_EXPONENT`, or -1 if there is none.

    `params` are the (4, E) rows w, sigma, mu, erev of synapses.
    """
    result = _INFINITY
    for e in range(params.shape[1]):
        magnitude = _SAFE_EXPONENT / (abs(params[SIGMA, e]) * _LOG2_E) - abs(params[MU, e])
        if not magnitude >= _ZERO:
            return _NOTHING_IS_SAFE
        result = min(result, magnitude)
    return result


@inlined
def start_limit(synaptic: Floats, sensory: Floats, neuronal: Floats) -> Any:
    """Return the `presynaptic_limit` of first potentials such that no later potential leaves it, or -1 if one may.

    A potential is a weighted mean of reversal potentials, its leak potential, zero and where it began, and never passes
    the largest of these.
    """
    result = presynaptic_limit(synaptic)
    bound = max(
        largest_magnitude(synaptic[EREV:]), largest_magnitude(sensory[EREV:]), largest_magnitude(neuronal[VLEAK:])
    )
    return result if result >= bound else _NOTHING_IS_SAFE


@inlined
def largest_magnitude(rows: Floats) -> Any:
    """Return the largest magnitude; NaN, which saturates no sigmoid, is ignored."""
    result = _ZERO
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            if abs(rows[row, column]) > result:
                result = abs(rows[row, column])
    return result
