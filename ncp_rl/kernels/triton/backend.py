"""The fused scan on CUDA, in Triton: float32, up to 128 neurons, any number of steps and sequences.

Forward, two launches. The synapses from the sensory inputs hold still within a step, so all steps sum them at once
(`leak_and_senses`). Then `forward_scan` carries sequences through all steps and unfolds.

Backward, in chunks of steps from the last to the first, as many as memory allows. `reverse_scan` carries the
gradients of the potentials back through the unfolds and leaves p and q; `sensory_gradients` follows from their sums
over a step.

There are two of each scan. Where a circuit fits into the registers of a warp, it stays there (`resident.py`); larger
ones stream from L1 (`kernels.py`), and their synapses' gradients take a kernel of their own. Which it is follows from
the wiring (`lanes.py`), for the forward and the reverse scan each. No program adds to what another one adds to:
results repeat bit by bit, as long as the number of sequences stays on the same side of `FEW_SEQUENCES`.

What the backward needs of the forward, the potentials before each unfold and the solver's denominators, is 8 K bytes
per neuron and step (K unfolds). Up to `SAVED_BYTES` it is saved, which spares the backward a second forward; beyond,
each chunk of the backward computes it anew.

An H200 has run the tests and timed the kernels (`docs/kernels.md`, `results/bench_gpu.json`). Without a GPU the numbers
are checked in Triton's interpreter, and what each kernel executes in its machine code. `synapse_evaluations` tells how
far a timing is from the ceiling.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ncp_rl.kernels.contract import EPSILON, Gradients, Operands, Params, Synapses
from ncp_rl.kernels.triton import kernels, resident
from ncp_rl.kernels.triton.lanes import WARP, Lanes, Layouts
from ncp_rl.kernels.triton.slots import LANES, Slots, Tables, rows_per_block, tables

MAX_NEURONS = 128

#: What a forward may keep for its backward, and what a backward may use of scratch memory at a time.
SAVED_BYTES = 2 << 30

#: Programs for one multiprocessor to hide latency with, before programs take more than one sequence each.
PROGRAMS_PER_MULTIPROCESSOR = 8

#: Up to so many sequences, what a scan takes is the latency of one: each shares a scheduler of an H100 with three more
#: at most. On an H200 both passes of 2112 sequences of 32 neurons over 64 steps take 0.28 ms by the layout for few and
#: 0.38 by that for many; of 4096 they take the same. Their number sets the order of summation, so it depends on nothing
#: but the shapes.
FEW_SEQUENCES = 2112

#: How every kernel is compiled. Fused multiply-adds are named because Triton's default is about to change. Its software
#: pipelining is off: a load that it moved up would pass the barrier behind which another thread writes the value.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}

#: Most programs of the resident reverse scan, each of which sums gradients of its own: two for each place on an H100.
#: Their number sets the order of summation, so it depends on nothing but the shapes.
REVERSE_PROGRAMS = 2112

#: Programs of `sensory_gradients`, of all groups together, if there are samples enough.
SENSORY_PROGRAMS = 2112

#: Tile of `synapse_gradients`, and how many programs share the work; their number sets the order of summation, so it
#: depends on nothing but the shapes.
SYNAPSES_PER_PROGRAM = 256
SAMPLES_PER_TILE = 4
GRADIENT_PROGRAMS = 2048


class _Unfolds(NamedTuple):
    """What the backward needs of the forward."""

    states: Tensor
    """(T, N, K, U), potentials before each unfold"""
    denominators: Tensor
    """(T, N, K, U), of the solver in each unfold"""


def forward(operands: Operands, *, save: bool) -> tuple[Tensor, _Unfolds | None]:
    """Potentials (T, N, U), and what `backward` can use, if `save` and it fits.

    Raises:
        ValueError: More neurons than `MAX_NEURONS`, or another dtype than float32.
    """
    _check(operands)
    _, _, inputs, state, episode_starts, elapsed_time, ode_unfolds = operands
    n_steps, n_sequences, n_neurons = *inputs.shape[:2], state.shape[1]
    shape = (2, n_steps, n_sequences, ode_unfolds, n_neurons)
    saved = _Unfolds(*inputs.new_empty(shape)) if save and _fits(shape) else None
    with _on_device_of(inputs):
        potentials = _Scan(operands).forward(
            inputs.contiguous(), state.contiguous(), _contiguous(episode_starts), _contiguous(elapsed_time), saved
        )
    return potentials, saved


def backward(grad: Tensor, potentials: Tensor, saved: _Unfolds | None, operands: Operands) -> Gradients:
    """Gradients for `grad` (T, N, U) of the potentials that `forward` returned together with `saved`."""
    _, _, inputs, state, episode_starts, elapsed_time, _ = operands
    with _on_device_of(inputs):
        return _Scan(operands).backward(
            grad.contiguous(),
            potentials.contiguous(),
            saved,
            inputs.contiguous(),
            state.contiguous(),
            _contiguous(episode_starts),
            _contiguous(elapsed_time),
        )


def synapse_evaluations(synapses: Synapses, n_steps: int, n_sequences: int, *, ode_unfolds: int) -> int:
    """Sigmoids that a forward over T steps and N sequences must evaluate: the measure of its arithmetic.

    Each takes an exponential and a division, two of the 16 special-function results that an H100's multiprocessor
    gives per cycle; a backward takes twice as many, three times if it must compute the unfolds anew.
    """
    return n_steps * n_sequences * (len(synapses.source) * ode_unfolds + len(synapses.sensory_source))


class _Reversed(NamedTuple):
    """What the reverse scan gives for some steps."""

    p: Tensor
    """(T, N, U), summed over the unfolds of each step"""
    q: Tensor
    """(T, N, U), as `p`"""
    state: Tensor
    """(N, U), gradient of the potentials before the first step"""
    delta: Tensor | None
    """(T, N), what the synapses between neurons give of the gradient of the seconds per unfold"""
    neuronal: Tensor
    """(3, U), gradients of cm, gleak and vleak"""
    synaptic: Tensor
    """(4, E), gradients of the synapses between neurons"""


class _Scan:
    """Launches the kernels for one wiring and its parameters."""

    def __init__(self, operands: Operands) -> None:
        self.params = Params(*(tensor.contiguous() for tensor in operands.params))
        self.synapses = operands.synapses
        self.n_inputs = operands.inputs.shape[2]
        self.tables: Tables = tables(self.synapses, self.n_inputs)
        self.n_neurons = self.params.neuronal.shape[1]
        self.ode_unfolds = operands.ode_unfolds

    def forward(
        self,
        inputs: Tensor,
        state: Tensor,
        episode_starts: Tensor | None,
        elapsed_time: Tensor | None,
        unfolds: _Unfolds | None,
    ) -> Tensor:
        """Potentials (T, N, U); fills `unfolds` where given."""
        leak_and_senses = self.leak_and_senses(inputs)
        return self.forward_scan(*leak_and_senses, state, episode_starts, elapsed_time, unfolds)

    def leak_and_senses(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What leak and sensory synapses contribute to each step's current and conductance, two (T, N, U)."""
        n_samples = inputs.shape[0] * inputs.shape[1]
        current, conductance = inputs.new_empty(2, *inputs.shape[:2], self.n_neurons)
        groups = self.tables.sensory_to_neuron
        wanted = PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(inputs.device)
        repeats = 8 if n_samples >= 32 * wanted else 1
        kernels.leak_and_senses[(triton.cdiv(n_samples, repeats * (WARP // groups.rows)) * groups.n_groups,)](
            current, conductance, inputs, self.params.neuronal, self.params.sensory, groups.members, groups.owns,
            groups.first, groups.trips, groups.synapses, groups.peers, n_samples=n_samples, n_inputs=self.n_inputs,
            n_neurons=self.n_neurons, n_synapses=self.params.sensory.shape[1], n_groups=groups.n_groups,
            EPSILON=EPSILON, REPEATS=repeats, ROWS=groups.rows, num_warps=1, **OPTIONS,
        )  # fmt: skip
        return current, conductance

    def forward_scan(
        self,
        leak_current: Tensor,
        leak_conductance: Tensor,
        state: Tensor,
        episode_starts: Tensor | None,
        elapsed_time: Tensor | None,
        unfolds: _Unfolds | None,
    ) -> Tensor:
        """Potentials (T, N, U); fills `unfolds` where given."""
        n_steps, n_sequences, n_neurons = leak_current.shape
        potentials = torch.empty_like(leak_current)
        states, denominators = (None, None) if unfolds is None else unfolds
        operands = state, leak_current, leak_conductance, _as_bytes(episode_starts), elapsed_time, self.params.neuronal
        sizes: dict[str, Any] = {
            "n_steps": n_steps, "n_sequences": n_sequences, "n_neurons": n_neurons, "n_unfolds": self.ode_unfolds,
            "SAVE": unfolds is not None,
        }  # fmt: skip
        if self.tables.forward_lanes is not None:
            lanes = _chosen(self.tables.forward_lanes, n_sequences)
            resident.forward_scan[(_n_groups(n_sequences, lanes),)](
                potentials, states, denominators, *operands, *self._lane_arguments(lanes), **sizes,
                **self._lane_sizes(lanes, n_sequences) | {"enable_fp_fusion": False},
            )  # fmt: skip
            return potentials
        if states is None:
            states = state.new_empty(n_sequences, 2, n_neurons)
        slots, tile = self.tables.to_neuron, self._tile(n_sequences)
        kernels.forward_scan[(triton.cdiv(n_sequences, tile["BATCH"]),)](
            potentials, states, denominators, *operands, *_synapse_arguments(slots, self.params.synaptic), **sizes,
            n_rows=slots.n_rows, **tile,
        )  # fmt: skip
        return potentials

    def backward(
        self,
        grad: Tensor,
        potentials: Tensor,
        saved: _Unfolds | None,
        inputs: Tensor,
        state: Tensor,
        episode_starts: Tensor | None,
        elapsed_time: Tensor | None,
    ) -> Gradients:
        """Gradients of all operands, chunk by chunk of steps, the last first."""
        n_steps = len(grad)
        grad_inputs = torch.empty_like(inputs)
        grad_elapsed = None if elapsed_time is None else torch.empty_like(elapsed_time)
        grad_state: Tensor | None = None
        params: Params | None = None

        chunk = self._steps_per_chunk(state, n_steps, is_saved=saved is not None)
        for start in reversed(range(0, n_steps, chunk)):
            steps = slice(start, min(start + chunk, n_steps))
            x, starts, seconds = inputs[steps], _part(episode_starts, steps), _part(elapsed_time, steps)
            begin = state if start == 0 else potentials[start - 1]
            leak_and_senses = None if saved is not None and seconds is None else self.leak_and_senses(x)
            if saved is not None:
                unfolds = _Unfolds(*(rows[steps] for rows in saved))
            else:
                assert leak_and_senses is not None
                unfolds = _Unfolds(*inputs.new_empty(2, *x.shape[:2], self.ode_unfolds, self.n_neurons))
                self.forward_scan(*leak_and_senses, begin, starts, seconds, unfolds)
            reverse = self.streaming_reverse if self.tables.reverse_lanes is None else self.resident_reverse
            back = reverse(grad[steps], grad_state, potentials[steps], unfolds, starts, seconds)
            grad_state = back.state
            part = Params(back.synaptic, self.sensory_gradients(grad_inputs[steps], x, back, seconds), back.neuronal)
            params = part if params is None else Params(*map(torch.add, params, part))
            if grad_elapsed is not None:
                assert leak_and_senses is not None and back.delta is not None
                current, conductance = leak_and_senses
                of_delta = (back.p * current - back.q * conductance).sum(-1) + back.delta
                grad_elapsed[steps] = of_delta / self.ode_unfolds
        assert params is not None and grad_state is not None
        return Gradients(params, grad_inputs, grad_state, grad_elapsed)

    def resident_reverse(
        self,
        grad: Tensor,
        grad_last: Tensor | None,
        potentials: Tensor,
        unfolds: _Unfolds,
        episode_starts: Tensor | None,
        elapsed_time: Tensor | None,
    ) -> _Reversed:
        """Through some steps, in the registers of one warp for each few sequences."""
        assert self.tables.reverse_lanes is not None
        n_steps, n_sequences, n_neurons = grad.shape
        lanes = _chosen(self.tables.reverse_lanes, n_sequences)
        n_groups = _n_groups(n_sequences, lanes)
        n_programs = triton.cdiv(n_groups, triton.cdiv(n_groups, REVERSE_PROGRAMS))
        p, q = grad.new_empty(2, *grad.shape)
        grad_state = grad.new_empty(n_sequences, n_neurons)
        of_delta = None if elapsed_time is None else torch.empty_like(grad)
        partials = grad.new_empty(n_programs, 3 * len(lanes.trips) + 4 * lanes.n_slots, WARP)
        sizes = self._lane_sizes(lanes, n_sequences)
        resident.reverse_scan[(n_programs,)](
            p, q, grad_state, of_delta, partials, grad, grad_last, potentials, *unfolds, _as_bytes(episode_starts),
            elapsed_time, self.params.neuronal, *self._lane_arguments(lanes), n_steps=n_steps, n_sequences=n_sequences,
            n_groups=n_groups, n_neurons=n_neurons, n_unfolds=self.ode_unfolds,
            PREFETCH=sizes["AHEAD"] == 1 and _compiles(), **sizes,
        )  # fmt: skip
        of_params = _gather(partials, lanes.sums)
        return _Reversed(
            p, q, grad_state, None if of_delta is None else of_delta.sum(-1),
            of_params[: 3 * n_neurons].view(3, -1), of_params[3 * n_neurons :].view(4, -1),
        )  # fmt: skip

    def streaming_reverse(
        self,
        grad: Tensor,
        grad_last: Tensor | None,
        potentials: Tensor,
        unfolds: _Unfolds,
        episode_starts: Tensor | None,
        elapsed_time: Tensor | None,
    ) -> _Reversed:
        """Through some steps, for circuits that registers do not suffice for."""
        n_steps, n_sequences, n_neurons = grad.shape
        p_and_q = grad.new_empty(2, *unfolds.states.shape)
        grad_last = grad.new_zeros(n_sequences, n_neurons) if grad_last is None else grad_last
        grad_state, grad_cm = torch.empty_like(grad_last), torch.zeros_like(grad_last)
        grad_delta = None if elapsed_time is None else torch.empty_like(elapsed_time)
        slots, tile = self.tables.from_neuron, self._tile(n_sequences)
        kernels.reverse_scan[(triton.cdiv(n_sequences, tile["BATCH"]),)](
            *p_and_q, grad_state, grad_delta, grad.new_empty(2, n_sequences, n_neurons), grad_cm, grad, grad_last,
            potentials, *unfolds, _as_bytes(episode_starts), elapsed_time, self.params.neuronal,
            *_synapse_arguments(slots, self.params.synaptic), n_steps=n_steps, n_sequences=n_sequences,
            n_neurons=n_neurons, n_rows=slots.n_rows, n_unfolds=self.ode_unfolds, **tile,
        )  # fmt: skip
        p, q = per_step = p_and_q.sum(3)  # (2, T, N, U)
        seconds = 1.0 / self.ode_unfolds if elapsed_time is None else elapsed_time[..., None] / self.ode_unfolds
        of_current, of_conductance = (per_step * seconds).sum((1, 2))
        _, gleak, vleak = self.params.neuronal
        neuronal = torch.stack([grad_cm.sum(0), of_current * vleak - of_conductance, of_current * gleak])
        synaptic = self.synapse_gradients(unfolds.states, p_and_q[0], p_and_q[1], elapsed_time)
        return _Reversed(p, q, grad_state, grad_delta, neuronal, synaptic)

    def sensory_gradients(
        self, grad_inputs: Tensor, inputs: Tensor, back: _Reversed, elapsed_time: Tensor | None
    ) -> Tensor:
        """Gradients of the sensory synapses (4, E_s); fills `grad_inputs` (T, N, S)."""
        n_samples = inputs.shape[0] * inputs.shape[1]
        groups = self.tables.from_input
        n_programs = min(triton.cdiv(n_samples, WARP // groups.rows), triton.cdiv(SENSORY_PROGRAMS, groups.n_groups))
        of_chunks = grad_inputs if groups.chunks == 1 else inputs.new_empty(groups.chunks, *inputs.shape)
        partials = inputs.new_empty(n_programs, groups.n_groups, 4, groups.n_slots, WARP)
        resident.sensory_gradients[groups.n_groups, n_programs](
            of_chunks, partials, inputs, back.p, back.q, elapsed_time, self.params.sensory, groups.members, groups.owns,
            groups.synapses, groups.peers, n_samples=n_samples, n_inputs=self.n_inputs, n_neurons=self.n_neurons,
            n_synapses=self.params.sensory.shape[1], n_groups_per_chunk=groups.n_groups // groups.chunks,
            n_unfolds=self.ode_unfolds, ROWS=groups.rows, SLOTS=groups.n_slots, num_warps=1, **OPTIONS,
        )  # fmt: skip
        if groups.chunks > 1:
            torch.sum(of_chunks, 0, out=grad_inputs)
        return _gather(partials, groups.sums).view(4, -1)

    def synapse_gradients(self, states: Tensor, p: Tensor, q: Tensor, elapsed_time: Tensor | None) -> Tensor:
        """Gradients (4, E) of the synapses between neurons; states, p and q (T, N, K, U)."""
        params = self.params.synaptic
        n_synapses, n_samples = params.shape[1], states.numel() // self.n_neurons
        if n_synapses == 0:
            return torch.zeros_like(params)
        blocks = triton.cdiv(n_synapses, SYNAPSES_PER_PROGRAM)
        parts = min(triton.cdiv(GRADIENT_PROGRAMS, blocks), triton.cdiv(n_samples, 8 * SAMPLES_PER_TILE))
        samples_per_program = triton.cdiv(triton.cdiv(n_samples, parts), SAMPLES_PER_TILE) * SAMPLES_PER_TILE
        parts = triton.cdiv(n_samples, samples_per_program)
        partials = params.new_empty(parts, 4, n_synapses)
        # Blocks of synapses vary fastest: those that read the same samples run together.
        kernels.synapse_gradients[blocks, parts](
            partials, states, p, q, elapsed_time, params, self.synapses.source.contiguous(), self.tables.destination,
            n_samples=n_samples, samples_per_program=samples_per_program, n_synapses=n_synapses,
            n_neurons=self.n_neurons, n_unfolds=self.ode_unfolds, SAMPLES=SAMPLES_PER_TILE,
            SYNAPSES=SYNAPSES_PER_PROGRAM, num_warps=4, **OPTIONS,
        )  # fmt: skip
        return partials.sum(0)

    def _tile(self, n_sequences: int) -> dict[str, Any]:
        """Shape of the programs' tiles: the wiring sets rows and warps, the number of sequences how many they share.

        One thread holds one (row, lane) of all the program's sequences.
        """
        rows = rows_per_block(self.n_neurons)
        wanted = PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(self.params.neuronal.device)
        batch = next((batch for batch in (4, 2) if n_sequences >= batch * wanted), 1)
        return {
            "BATCH": batch, "ROWS": rows, "LANES": LANES, "num_warps": max(1, rows * LANES // 32), **OPTIONS,
        }  # fmt: skip

    def _steps_per_chunk(self, state: Tensor, n_steps: int, *, is_saved: bool) -> int:
        # Tensors (T, N, K, U) beside what is saved: both of `_Unfolds`; p and q, where the reverse scan streams.
        n_tensors = 2 * (not is_saved) + 2 * (self.tables.reverse_lanes is None)
        bytes_per_step = n_tensors * state.numel() * self.ode_unfolds * state.element_size()
        return max(1, SAVED_BYTES // bytes_per_step) if bytes_per_step > 0 else n_steps

    def _lane_arguments(self, lanes: Lanes) -> tuple[Tensor, ...]:
        return self.params.synaptic, lanes.neurons, lanes.synapses, lanes.peers, lanes.partners, lanes.roles

    def _lane_sizes(self, lanes: Lanes, n_sequences: int) -> dict[str, Any]:
        ahead = lanes.unfolds_ahead(self.ode_unfolds) if n_sequences <= FEW_SEQUENCES else 1
        return {
            "n_synapses": self.params.synaptic.shape[1], "ROWS": lanes.rows, "BLOCKS": len(lanes.trips),
            "TRIPS": lanes.trips, "TAILS": lanes.tails, "PEER_BLOCKS": lanes.peer_blocks, "AHEAD": ahead,
            "num_warps": 1, **OPTIONS,
        }  # fmt: skip


def _check(operands: Operands) -> None:
    n_neurons = operands.state.shape[1]
    if n_neurons > MAX_NEURONS:
        raise ValueError(
            f'backend="triton" serves up to {MAX_NEURONS} neurons, got {n_neurons}; use backend="reference".'
        )
    for tensor in (*operands.params, operands.inputs, operands.state, operands.elapsed_time):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f'backend="triton" computes in float32, got {tensor.dtype}; use backend="reference".')


def _chosen(layouts: Layouts, n_sequences: int) -> Lanes:
    """The layout for so many sequences."""
    return layouts.fastest if n_sequences <= FEW_SEQUENCES else layouts.cheapest


def _n_groups(n_sequences: int, lanes: Lanes) -> int:
    """Warps for so many sequences, of which each carries as many as it has lanes for."""
    return int(triton.cdiv(n_sequences, WARP // lanes.rows))


def _synapse_arguments(slots: Slots, params: Tensor) -> tuple[Tensor, ...]:
    return slots.counts, slots.trips, slots.peers, slots.arrange(params)


def _fits(shape: tuple[int, ...]) -> bool:
    return 4 * functools.reduce(int.__mul__, shape) <= SAVED_BYTES


def _gather(partials: Tensor, sums: Tensor) -> Tensor:
    """Over the programs of `partials` (programs, ...) and the lanes of each parameter in `sums` (k, n): sums (n,)."""
    of_lanes = partials.sum(0).view(-1)
    return of_lanes[sums[0]] if len(sums) == 1 else of_lanes[sums].sum(0)


def _compiles() -> bool:
    """Whether kernels are compiled; Triton's interpreter knows no assembly."""
    return not triton.knobs.runtime.interpret


def _part(tensor: Tensor | None, steps: slice) -> Tensor | None:
    return None if tensor is None else tensor[steps]


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _as_bytes(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.view(torch.uint8)


def _on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    # Triton launches on the current device, wherever the tensors are; its interpreter runs on the CPU.
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
