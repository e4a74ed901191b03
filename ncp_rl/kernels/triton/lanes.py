"""How the resident kernels hold a circuit: one neuron a lane, synapses in slots whose number is known when compiled.

A warp of 32 lanes carries 32 / R sequences, R of the lanes for each. Neurons stand in rows, R of them in a block;
lane r of a sequence holds the neurons in row r of every block. A slot is one synapse for each lane; the `trips` slots
of a block are computed one after the other, so that a block takes as long as its busiest lane. Three things keep lanes
busy:

- Rows are sorted by fan-in. In an NCP fewer than half of the neurons receive synapses from other neurons, so that
  the last blocks need no slots at all, and the gradients, which come from the neurons at which synapses end, stand
  in the first block alone.
- Rows are folded: the busiest lane and the idlest are partners, so are the second busiest and the second idlest, and so
  on. A lane may leave the synapses that it has no slots for to the last `tails` slots of its partner.
- R is chosen such that a sequence costs least; or, for few sequences, such that an unfold takes least time.

An NCP of 64 neurons and 483 synapses takes 18 slots forward and 17 in reverse, of 32 synapses each; without folding it
would take 23 and 22.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WARP = 32

#: More blocks than this fit into no kernel's registers.
MAX_BLOCKS = 4

#: Bits of `Lanes.roles`.
OWNS, HELPS, IS_HELPED = 1, 2, 4

#: Trips that a block costs besides its slots, and those that a fold costs; for the choice of R and of folds.
_TRIPS_PER_BLOCK, _TRIPS_PER_FOLD = 3, 1

#: Most slots of a step that are compiled one after the other, so that compilers stay quick, and the registers that each
#: of its unfolds takes.
MOST_SLOTS_AHEAD, PER_UNFOLD_AHEAD = 64, 4

#: Registers that a thread can have.
_MAX_REGISTERS = 255

_Integers = npt.NDArray[np.int32]


class Registers(NamedTuple):
    """How many registers a kernel takes at most, as its machine code shows (`make gpu-compile`)."""

    base: int
    per_block: int
    per_slot: int
    per_far_slot: int
    """Added to those of a slot where the peers stand in several blocks"""

    def most_slots(self, n_blocks: int, peer_blocks: int) -> int:
        """For how many slots there are registers left."""
        left = _MAX_REGISTERS - self.base - self.per_block * n_blocks
        per_slot = self.per_slot + self.per_far_slot * (peer_blocks > 1)
        return left // per_slot if n_blocks <= MAX_BLOCKS else -1


FORWARD = Registers(base=63, per_block=0, per_slot=8, per_far_slot=0)
REVERSE = Registers(base=34, per_block=21, per_slot=9, per_far_slot=1)


class Lanes(NamedTuple):
    """The synapses between neurons, in the slots of lanes."""

    rows: int
    """R"""
    trips: tuple[int, ...]
    """Slots of each block"""
    tails: tuple[int, ...]
    """How many of them, the last, may be a partner's"""
    peer_blocks: int
    """The first blocks, in which all neurons at the other ends stand"""
    neurons: Tensor
    """(blocks * R,) int32, the neuron in each row, -1 for none"""
    synapses: Tensor
    """(slots, R) int32, the synapse in each slot; ~i where none is, but the numbers of synapse i do no harm"""
    peers: Tensor
    """(slots, R) int32, the row at its other end"""
    partners: Tensor
    """(blocks * R,) int32, the row within the block with which each is folded"""
    roles: Tensor
    """(blocks * R,) int32, bits `OWNS`: has synapses, `HELPS`: its tail is the partner's, `IS_HELPED`"""
    sums: Tensor
    """(32 / R, 3 U + 4 E) int64, where in what the lanes of a warp sum up, flat (3 blocks + 4 slots, 32), each
    parameter's parts are: cm, gleak and vleak of the neurons, then w, sigma, mu and erev of the synapses"""

    @property
    def n_slots(self) -> int:
        """Number of slots of all blocks."""
        return sum(self.trips)

    @property
    def latency(self) -> int:
        """What a warp takes for an unfold, in slots."""
        return self.n_slots + _TRIPS_PER_BLOCK * len(self.trips)

    @property
    def cost(self) -> int:
        """Cost of a sequence, in slots of one lane."""
        return self.rows * self.latency

    def fits(self, registers: Registers) -> bool:
        """Whether a kernel that takes these registers has enough of them."""
        return self.n_slots <= registers.most_slots(len(self.trips), self.peer_blocks)

    def unfolds_ahead(self, n_unfolds: int) -> int:
        """How many unfolds a scan is compiled for at once: all of a step where they are few and fit, or else 1."""
        registers = REVERSE._replace(base=REVERSE.base + PER_UNFOLD_AHEAD * n_unfolds)
        is_small = len(self.trips) == 1 and n_unfolds * self.n_slots <= MOST_SLOTS_AHEAD
        return n_unfolds if is_small and self.fits(registers) else 1

    def to(self, device: torch.device) -> Lanes:
        """The same with its tables on `device`."""
        return Lanes(*self[:4], *(table.to(device) for table in self[4:]))


class Layouts(NamedTuple):
    """Two layouts of the same synapses."""

    cheapest: Lanes
    """For many sequences, which keep all warps busy"""
    fastest: Lanes
    """For few, each of which has a warp for itself"""

    def to(self, device: torch.device) -> Layouts:
        """The same with their tables on `device`."""
        return Layouts(*(lanes.to(device) for lanes in self))


def lay_out(row: _Integers, peer: _Integers, fan_in: _Integers, *, registers: Registers) -> Layouts | None:
    """The best layouts of the synapses between `row` (E,) and `peer` (E,), both neurons; None if none fits.

    Args:
        row: The neuron whose lane computes each synapse.
        peer: The neuron at its other end.
        fan_in: (U,), synapses from other neurons that end in each.
        registers: What the kernel takes.
    """
    layouts = [_lay_out(row, peer, fan_in, rows) for rows in (WARP, WARP // 2, WARP // 4)]
    fitting = [lanes for lanes in layouts if lanes.fits(registers)]
    if not fitting:
        return None
    return Layouts(min(fitting, key=lambda lanes: lanes.cost), min(fitting, key=lambda lanes: lanes.latency))


class Groups(NamedTuple):
    """Sensory synapses by neuron or by input: rows sorted by their number, R rows in a group, each on a lane."""

    rows: int
    """R"""
    n_slots: int
    """Slots of the group that has most"""
    chunks: int
    """Groups that share the synapses of the same rows"""
    members: Tensor
    """(groups * R,) int32, the neuron or input in each row, -1 for none; groups of one chunk follow each other"""
    owns: Tensor
    """(groups * R,) int32, whether a row has synapses in this group"""
    first: Tensor
    """(groups,) int32, the first slot of each group"""
    trips: Tensor
    """(groups,) int32, slots of each group"""
    synapses: Tensor
    """(slots, R) int32, as in `Lanes`"""
    peers: Tensor
    """(slots, R) int32, the input or neuron at a synapse's other end"""
    sums: Tensor
    """(32 / R, 4 E_s) int64, where in what the lanes of all groups' warps sum up, flat (groups, 4, slots, 32), each
    parameter's parts are: w, sigma, mu and erev of the synapses; without `most_slots` of no use"""

    @property
    def n_groups(self) -> int:
        """Number of groups of all chunks."""
        return len(self.trips)

    def to(self, device: torch.device) -> Groups:
        """The same with its tables on `device`."""
        return Groups(*self[:3], *(table.to(device) for table in self[3:]))


def group(row: _Integers, peer: _Integers, n_members: int, *, rows: int, most_slots: int | None = None) -> Groups:
    """Groups of the synapses between `row` (E_s,), below `n_members`, and `peer` (E_s,).

    With `most_slots` all groups have the same number of slots, at most so many, which is known when kernels are
    compiled; rows with more synapses are cut into chunks. Without, each has as many as its busiest row needs.
    """
    counts = np.bincount(row, minlength=n_members)
    order = np.argsort(-counts, kind="stable")
    incident = [np.flatnonzero(row == member).tolist() for member in order]
    incident += [[] for _ in range(-n_members % rows or (rows if n_members == 0 else 0))]
    members = np.full(len(incident), -1, np.int32)
    members[:n_members] = order
    most = max(map(len, incident))
    chunks = 1 if most_slots is None else max(1, -(-most // most_slots))
    even = -(-most // chunks)
    tables = []
    for chunk in range(chunks):
        for start in range(0, len(incident), rows):
            parts = [synapses[chunk * even : (chunk + 1) * even] for synapses in incident[start : start + rows]]
            trips = even if most_slots is not None else max(map(len, parts))
            columns = [_padded(part, trips) for part in parts]
            tables.append(np.stack(columns, axis=1) if trips else np.empty((0, rows), np.int32))
    synapses, trips_of = np.concatenate(tables), np.array([len(table) for table in tables], np.int32)
    owns = np.concatenate([(table[:1] >= 0).any(0) for table in tables]) if most else np.zeros(chunks * len(members))
    slots = np.empty(len(row), np.int64)
    slots[synapses[synapses >= 0]] = np.flatnonzero(synapses >= 0)
    ends = peer if len(peer) else np.zeros(1, np.int32)
    n_slots = int(trips_of.max())
    group_of, slot_of = np.divmod(slots // rows, max(n_slots, 1))
    sums = _in_warps((4 * group_of + np.arange(4)[:, None]) * n_slots + slot_of, slots % rows, rows)
    arrays = (
        np.tile(members, chunks), owns.astype(np.int32), (trips_of.cumsum() - trips_of).astype(np.int32), trips_of,
        synapses, ends[np.where(synapses < 0, ~synapses, synapses)].astype(np.int32), sums,
    )  # fmt: skip
    return Groups(rows, n_slots, chunks, *map(torch.from_numpy, arrays))


def fold(counts: _Integers) -> tuple[int, int]:
    """The fewest slots, and tails, in which lanes with `counts` (R,) synapses, the busiest first, find room."""
    busy, idle = counts[: len(counts) // 2], counts[::-1][: len(counts) // 2]
    most = int(counts[0])
    for trips in range(-(-int(counts.sum()) // len(counts)), most - _TRIPS_PER_FOLD):
        for tail in range(1, trips + 1):
            if np.all((busy <= trips) | ((busy <= trips + tail) & (idle <= trips - tail))):
                return trips, tail
    return most, 0


def _lay_out(row: _Integers, peer: _Integers, fan_in: _Integers, rows: int) -> Lanes:
    n_neurons, n_blocks = len(fan_in), -(-len(fan_in) // rows)
    neurons = np.full(n_blocks * rows, -1, np.int32)
    neurons[:n_neurons] = np.argsort(-fan_in, kind="stable")
    positions = np.empty(n_neurons, np.int64)
    positions[neurons[:n_neurons]] = np.arange(n_neurons)
    incident: list[list[int]] = [[] for _ in range(n_blocks * rows)]
    for synapse, neuron in enumerate(row):
        incident[positions[neuron]].append(synapse)
    blocks = [_Block(incident[start : start + rows]) for start in range(0, n_blocks * rows, rows)]
    synapses = np.concatenate([block.slots for block in blocks])
    slots = np.empty(len(row), np.int64)
    slots[synapses[synapses >= 0]] = np.flatnonzero(synapses >= 0)
    ends = positions[peer] if len(peer) else np.zeros(1, np.int64)
    of_neurons = np.arange(3)[:, None] * n_blocks + positions // rows
    of_synapses = 3 * n_blocks + np.arange(4)[:, None] * len(synapses) + slots // rows
    sums = [_in_warps(of_neurons, positions % rows, rows), _in_warps(of_synapses, slots % rows, rows)]
    tables = (
        neurons, synapses, ends[np.where(synapses < 0, ~synapses, synapses)].astype(np.int32),
        np.concatenate([block.partners for block in blocks]), np.concatenate([block.roles for block in blocks]),
        np.concatenate(sums, axis=1),
    )  # fmt: skip
    return Lanes(
        rows,
        tuple(block.trips for block in blocks),
        tuple(block.tail for block in blocks),
        int(ends.max()) // rows + 1,
        *map(torch.from_numpy, tables),
    )


class _Block:
    """The slots of one block of rows, which have these `incident` synapses."""

    def __init__(self, incident: list[list[int]]) -> None:
        n_rows = len(incident)
        counts = np.array([len(synapses) for synapses in incident], np.int32)
        order = np.argsort(-counts, kind="stable")
        self.trips, self.tail = fold(counts[order])
        self.partners = np.empty(n_rows, np.int32)
        self.partners[order] = order[::-1]
        self.roles = np.where(counts > 0, OWNS, 0).astype(np.int32)
        self.slots = np.empty((self.trips, n_rows), np.int32)
        for lane, synapses in enumerate(incident):
            self.slots[:, lane] = _padded(synapses[: self.trips], self.trips)
        for lane in map(int, np.flatnonzero(counts > self.trips)):
            helper = int(self.partners[lane])
            self.roles[lane] |= IS_HELPED
            self.roles[helper] |= HELPS
            rest = incident[lane][self.trips :]
            self.slots[self.trips - self.tail :, helper] = _padded(rest, self.tail)


def _in_warps(warps: npt.NDArray[Any], row: npt.NDArray[Any], rows: int) -> npt.NDArray[np.int64]:
    """Where, flat in (..., 32), the lanes of `row` (n,) are in each of `warps` (k, n): (32 / R, k n)."""
    first = np.arange(WARP // rows)[:, None, None] * rows
    lanes: npt.NDArray[np.int64] = (warps * WARP + row + first).reshape(WARP // rows, -1).astype(np.int64)
    return lanes


def _padded(synapses: list[int], length: int) -> _Integers:
    """`synapses` and, for want of more, the first of them again and again, marked as ~synapse."""
    padding = ~(synapses[0] if synapses else 0)
    return np.array([*synapses, *[padding] * (length - len(synapses))], np.int32)
