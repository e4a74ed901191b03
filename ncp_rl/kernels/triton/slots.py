"""How the kernels that stream synapses from memory hold them: sliced ELL, and padded to whole blocks of rows.

A row is a neuron (or a sensory input), its slots are its synapses, `LANES` of them side by side. Rows come in
blocks of `rows_per_block`; a block runs as many trips over its slots as its busiest row needs, so that rows without
synapses cost nothing where they stand together. They do in an NCP: motor and command neurons come first and are a
little less than half of all neurons, inter neurons have no synapses from other neurons. With two blocks, an NCP of 32
to 128 neurons takes 1.4 to 2.2 slots per synapse (a dense matrix 5 to 9), a fully connected wiring 1.

`tables` also lays out the synapses between neurons for the resident kernels (`lanes.py`), whose sizes must be known
when they are compiled: the first scan of a wiring reads its synapses back from the device, later ones read nothing.
"""

# The weak dictionary of torch is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ncp_rl.kernels.contract import Synapses
from ncp_rl.kernels.triton.lanes import FORWARD, REVERSE, WARP, Groups, Layouts, group, lay_out

#: Slots of one row that are computed side by side.
LANES = 4

#: Rows of neurons in a group of sensory synapses: few, so that rows of much the same length stand together, but not so
#: few that the samples of a warp lie in many lines: at 64/32/4096/128 an H200 takes 0.43, 0.36, 0.45 ms with 8, 16, 32.
ROWS_OF_SENSES = 16

#: Sensory synapses of one input for whose numbers and gradients a lane has registers.
MOST_SENSORY_SLOTS = 18


class Slots(NamedTuple):
    """Synapses of one kind, grouped into rows, which are padded to whole blocks, as their slots are to whole trips."""

    counts: Tensor
    """(rows,) int32, synapses of each row"""
    trips: Tensor
    """(rows / rows_per_block,) int32, trips over LANES slots that each block takes"""
    peers: Tensor
    """(most trips, rows, LANES) int32, the neuron or input at a synapse's other end"""
    synapses: Tensor
    """(most trips * rows * LANES,) int64, which synapse sits in each slot; 0 where none does"""

    @property
    def n_rows(self) -> int:
        """Rows with their padding."""
        return len(self.counts)

    @property
    def n_blocks(self) -> int:
        """Blocks of rows."""
        return len(self.trips)

    def arrange(self, params: Tensor) -> Tensor:
        """Parameters (4, E) as (slots, 4); whatever comes first where a slot has no synapse."""
        if params.shape[1] == 0:
            return params.new_zeros(len(self.synapses), 4)
        return params.t().index_select(0, self.synapses)


class Tables(NamedTuple):
    """All that the kernels need to know about a wiring."""

    to_neuron: Slots
    """rows: neurons, slots: their synapses from other neurons"""
    from_neuron: Slots
    """rows: neurons, slots: their synapses to other neurons"""
    destination: Tensor
    """(E,) int32"""
    sensory_to_neuron: Groups
    """rows: neurons, slots: their synapses from sensory inputs"""
    from_input: Groups
    """rows: sensory inputs, slots: their synapses to neurons, as many in every group"""
    forward_lanes: Layouts | None
    """rows: neurons, slots: their synapses from other neurons; None where registers do not suffice for them"""
    reverse_lanes: Layouts | None
    """rows: neurons, slots: their synapses to other neurons; None where registers do not suffice for them"""


_tables: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def rows_per_block(n_neurons: int) -> int:
    """Half of the neurons, padded to a power of two."""
    return max(8, _next_power_of_two(n_neurons) // 2)


def tables(synapses: Synapses, n_inputs: int) -> Tables:
    """Tables of a wiring, remembered for as long as its tensors live and stay unmodified."""
    key = (*(id(tensor) for tensor in synapses), *(_version(tensor) for tensor in synapses), n_inputs)
    remembered = _tables.get(synapses.pointer)
    if remembered is None or remembered[0] != key:
        # The tensors are kept with the tables: a key of ids must not outlive them. All but the pointer, whose
        # death ends the entry.
        remembered = key, _build(synapses, n_inputs), synapses[1:]
        _tables[synapses.pointer] = remembered
    result: Tables = remembered[1]
    return result


def _build(synapses: Synapses, n_inputs: int) -> Tables:
    n_neurons = len(synapses.pointer) - 1
    rows, device = rows_per_block(n_neurons), synapses.source.device
    destination = _destinations(synapses.pointer, synapses.source)
    sensory_destination = _destinations(synapses.sensory_pointer, synapses.sensory_source)
    start, end, input_, sensed = (
        tensor.cpu().numpy() for tensor in (synapses.source, destination, synapses.sensory_source, sensory_destination)
    )
    fan_in = np.bincount(end, minlength=n_neurons).astype(np.int32)
    forward_lanes = lay_out(end, start, fan_in, registers=FORWARD)
    reverse_lanes = lay_out(start, end, fan_in, registers=REVERSE)
    rows_of_inputs = next((rows for rows in (8, 16) if n_inputs <= rows), WARP)
    # Two blocks of neurons always, so that the kernels can unroll over them.
    return Tables(
        to_neuron=_slots(destination, synapses.source, 2 * rows, n_neurons, rows),
        from_neuron=_slots(synapses.source, destination, 2 * rows, n_neurons, rows),
        destination=destination,
        sensory_to_neuron=group(sensed, input_, n_neurons, rows=ROWS_OF_SENSES).to(device),
        from_input=group(input_, sensed, n_inputs, rows=rows_of_inputs, most_slots=MOST_SENSORY_SLOTS).to(device),
        forward_lanes=None if forward_lanes is None else forward_lanes.to(device),
        reverse_lanes=None if reverse_lanes is None else reverse_lanes.to(device),
    )


def _slots(row: Tensor, peer: Tensor, n_rows: int, max_per_row: int, rows_per_block: int) -> Slots:
    """Slots of the synapses between `row` (E,) and `peer` (E,)."""
    device, n_synapses = row.device, len(row)
    order = torch.argsort(row, stable=True)
    row = row[order].long()
    counts = torch.zeros(n_rows, dtype=torch.int64, device=device).scatter_add_(0, row, torch.ones_like(row))
    first = counts.cumsum(0) - counts
    position = torch.arange(n_synapses, device=device) - first[row]
    n_trips = max(1, -(-max_per_row // LANES))
    slot = (position // LANES * n_rows + row) * LANES + position % LANES
    synapses = torch.zeros(n_trips * n_rows * LANES, dtype=torch.int64, device=device)
    peers = torch.zeros(n_trips * n_rows * LANES, dtype=torch.int32, device=device)
    return Slots(
        counts=counts.int(),
        trips=((counts.view(-1, rows_per_block).amax(1) + LANES - 1) // LANES).int(),
        peers=peers.scatter_(0, slot, peer[order].int()).view(n_trips, n_rows, LANES),
        synapses=synapses.scatter_(0, slot, order),
    )


def _destinations(pointer: Tensor, source: Tensor) -> Tensor:
    neurons = torch.arange(len(pointer) - 1, dtype=torch.int32, device=pointer.device)
    return torch.repeat_interleave(neurons, pointer.diff(), output_size=len(source))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _next_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
