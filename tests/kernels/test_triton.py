"""The Triton kernels without a GPU: interpreted on the CPU for their numbers, and compiled for an H100.

The interpreter runs the threads of a program in step and computes with numpy, so it shows neither a missing barrier
nor what the GPU's special functions round differently; `test_triton_gpu.py` runs them on a GPU where there is one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from ncp_rl import AutoNCP
from ncp_rl.kernels import Synapses
from ncp_rl.kernels.triton.lanes import (
    FORWARD,
    HELPS,
    IS_HELPED,
    MOST_SLOTS_AHEAD,
    OWNS,
    _lay_out,
    fold,
    group,
    lay_out,
)
from ncp_rl.kernels.triton.slots import tables
from tests.kernels import triton_process as process
from tests.kernels.circuits import TOLERANCES, Sizes, draw_case
from tests.kernels.triton_cost import Shape

pytest.importorskip("triton")

GRID = [
    Sizes(n_steps=1, n_sequences=1, n_inputs=1, n_neurons=7),
    Sizes(n_steps=4, n_sequences=5, n_inputs=18, n_neurons=19),
    Sizes(n_steps=2, n_sequences=2, n_inputs=17, n_neurons=33),
    Sizes(n_steps=1, n_sequences=6, n_inputs=4, n_neurons=5),
    Sizes(n_steps=3, n_sequences=1, n_inputs=2, n_neurons=1, density=1.0),
    Sizes(n_steps=3, n_sequences=3, n_inputs=2, n_neurons=6, density=0.0),
    Sizes(n_steps=1, n_sequences=1, n_inputs=9, n_neurons=128, density=0.1),
    # Registers suffice for the forward scan and the reverse scan, for the first alone, for neither.
    Sizes(n_steps=2, n_sequences=5, n_inputs=3, n_neurons=22, density=1.0),
    Sizes(n_steps=2, n_sequences=5, n_inputs=3, n_neurons=24, density=1.0),
    Sizes(n_steps=1, n_sequences=3, n_inputs=40, n_neurons=64, density=0.2),
    # Two blocks of neurons, rows that are folded, peers in both blocks.
    Sizes(n_steps=2, n_sequences=3, n_inputs=2, n_neurons=64, density=0.1),
    Sizes(n_steps=2, n_sequences=3, n_inputs=0, n_neurons=9),
]


#: Of the kernels that serve circuits of 64 neurons, by sequence and unfold: instructions; of these special functions;
#: and loads, stores and shuffles.
LIMITS = {
    "forward_scan": (330, 44, 48),
    "leak_and_senses": (77, 9, 10),
    "reverse_scan": (450, 44, 50),
    "sensory_gradients": (95, 8, 10),
}


def _pool(*, interpret: bool, cache: Any) -> Executor:
    return ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=process.begin, initargs=(interpret, str(cache))
    )


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Calls a function in a process that interprets the kernels."""
    with _pool(interpret=True, cache=tmp_path_factory.mktemp("triton")) as pool:
        yield lambda function, *args, **kwargs: pool.submit(partial(function, *args, **kwargs)).result()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Calls a function in a process that compiles the kernels."""
    with _pool(interpret=False, cache=tmp_path_factory.mktemp("triton")) as pool:
        yield lambda function, *args, **kwargs: pool.submit(partial(function, *args, **kwargs)).result()


def assert_small(errors: dict[str, float]) -> None:
    tolerances = TOLERANCES[torch.float32]
    assert errors.pop("potentials") <= tolerances["potentials"]
    assert max(errors.values()) <= tolerances["gradient"], errors


class TestInterpreted:
    @pytest.mark.parametrize("sizes", GRID, ids=lambda sizes: "T{}-N{}-S{}-U{}-{}".format(*sizes))
    def test_potentials_and_all_gradients(self, interpreted: Callable[..., Any], sizes: Sizes) -> None:
        assert_small(interpreted(process.errors, sizes))

    @pytest.mark.parametrize("few", [False, True], ids=["many", "few"])
    @pytest.mark.parametrize("irregular_time", [False, True], ids=["second", "irregular"])
    @pytest.mark.parametrize("resets", [False, True], ids=["whole", "resets"])
    def test_with_and_without_resets_and_elapsed_time(
        self, interpreted: Callable[..., Any], resets: bool, irregular_time: bool, few: bool
    ) -> None:
        drawing = dict(resets=resets, irregular_time=irregular_time)
        errors = interpreted(process.errors, Sizes(4, 5, 3, 9), 3, few=few, **drawing)
        assert_small(errors)
        assert ("elapsed_time" in errors) == irregular_time

    def test_no_seconds_change_nothing(self, interpreted: Callable[..., Any]) -> None:
        assert interpreted(process.stays_without_time, Sizes(3, 5, 3, 9))

    def test_one_unfold(self, interpreted: Callable[..., Any]) -> None:
        assert_small(interpreted(process.errors, Sizes(4, 5, 3, 9), 1))

    # More unfolds than are compiled at once; neurons in one block of lanes, folded; in two blocks.
    @pytest.mark.parametrize(
        ("sizes", "ode_unfolds"), [(Sizes(2, 5, 3, 9), 30), (Sizes(3, 5, 3, 32), 6), (Sizes(3, 5, 3, 40, 0.1), 2)]
    )
    def test_few_sequences(self, interpreted: Callable[..., Any], sizes: Sizes, ode_unfolds: int) -> None:
        assert_small(interpreted(process.errors, sizes, ode_unfolds, few=True))

    # Of nine neurons states and denominators of one step take 5 * 9 * 3 * 8 bytes; of 64 p and q as much again.
    @pytest.mark.parametrize("saved_bytes", [0, 2 * 5 * 9 * 3 * 8], ids=["step by step", "two steps"])
    def test_beyond_the_memory_budget(self, interpreted: Callable[..., Any], saved_bytes: int) -> None:
        assert_small(interpreted(process.errors, Sizes(5, 5, 3, 9), 3, saved_bytes))

    def test_beyond_the_memory_budget_streaming(self, interpreted: Callable[..., Any]) -> None:
        assert_small(interpreted(process.errors, Sizes(3, 2, 3, 64, 0.25), 2, 2 * 2 * 64 * 2 * 16))

    # In one block of rows, or in several; a neuron without synapses shares the first with others.
    @pytest.mark.parametrize("n_neurons", [7, 9, 40])
    def test_nan_comes_out_where_it_went_in(self, interpreted: Callable[..., Any], n_neurons: int) -> None:
        actual, expected = interpreted(process.nan_positions, Sizes(5, 3, 4, n_neurons))
        assert expected.any() and not expected.all()
        assert torch.equal(actual, expected)

    @pytest.mark.parametrize("n_neurons", [7, 9, 40])
    def test_nan_gradients_go_where_they_should(self, interpreted: Callable[..., Any], n_neurons: int) -> None:
        actual, expected = interpreted(process.nan_gradient_positions, Sizes(1, 3, 4, n_neurons, 0.2))
        assert expected.any() and not expected[1].all()
        assert torch.equal(actual, expected)

    @pytest.mark.parametrize("few", [False, True], ids=["many", "few"])
    def test_repeats_bit_by_bit(self, interpreted: Callable[..., Any], few: bool) -> None:
        assert interpreted(process.is_repeatable, Sizes(3, 5, 4, 9), few=few)

    def test_operands_need_not_be_contiguous(self, interpreted: Callable[..., Any]) -> None:
        assert interpreted(process.strided_agrees, Sizes(2, 3, 4, 9))


class TestCompiled:
    def test_limits(self, compiled: Callable[..., Any]) -> None:
        """At 64 neurons, 32 inputs and many sequences, by sequence and unfold (of 6 in a step)."""
        counts = compiled(process.counts, Shape(64, 32, 4096, 16))
        assert set(counts) == set(LIMITS)
        for name, most in LIMITS.items():
            executed = [counts[name][kind] for kind in ("instructions", "special_functions", "memory")]
            assert all(n <= limit for n, limit in zip(executed, most, strict=True)), counts
            assert counts[name]["barriers"] == 0, counts
            assert counts[name]["spilled_bytes"] == 0, counts

    def test_limits_of_streaming_kernels(self, compiled: Callable[..., Any]) -> None:
        counts = compiled(process.counts, Shape(64, 32, 4096, 16), resident=False)
        # One for each unfold, and those of the sums over the lanes of a row. Triton 3.6 adds some in every trip.
        if compiled(process.triton_version) >= (3, 7):
            assert counts["forward_scan"]["barriers"] <= 9 and counts["reverse_scan"]["barriers"] <= 16, counts
        for name in ("forward_scan", "reverse_scan", "synapse_gradients"):
            assert counts[name]["spilled_bytes"] == 0 and counts[name]["registers"] <= 168, counts

    def test_few_sequences_wait_less(self, compiled: Callable[..., Any]) -> None:
        shape = Shape(32, 16, 16, 128)
        many, few = (sum(compiled(process.latency, shape, few=few).values()) for few in (False, True))
        assert few <= 0.25 and many >= 1.4 * few, (many, few)

    def test_half_of_the_ceiling(self, compiled: Callable[..., Any]) -> None:
        forward, backward = compiled(process.share_of_ceiling, Shape(64, 32, 4096, 16))
        assert forward >= 0.5 and backward >= 0.5, (forward, backward)

    @pytest.mark.parametrize("sizes", [Sizes(2, 5, 3, 22, 1.0), Sizes(2, 5, 3, 24, 1.0), Sizes(2, 5, 3, 64, 0.25)])
    def test_what_does_not_fit_into_registers_streams(self, compiled: Callable[..., Any], sizes: Sizes) -> None:
        launched = compiled(process.compiled_names, sizes)
        assert all(spilled <= (0 if resident else 16) for _, resident, spilled in launched), launched
        expected = {22: (True, True), 24: (True, False), 64: (False, False)}[sizes.n_neurons]
        resident = {name: resident for name, resident, _ in launched}
        assert (resident["forward_scan"], resident["reverse_scan"]) == expected
        assert ("synapse_gradients" in resident) != expected[1]

    @pytest.mark.gpu_compile
    @pytest.mark.parametrize("blocks", [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 4)], ids=str)
    @pytest.mark.parametrize("kernel", ["forward_scan", "reverse_scan"])
    def test_registers_suffice_up_to_the_border(
        self, compiled: Callable[..., Any], kernel: str, blocks: tuple[int, int]
    ) -> None:
        resources = compiled(process.border_resources, kernel, *blocks)
        assert resources.spilled_bytes == 0, resources

    @pytest.mark.gpu_compile
    @pytest.mark.parametrize("ahead", [2, 6, 16])
    @pytest.mark.parametrize("kernel", ["forward_scan", "reverse_scan"])
    def test_registers_suffice_for_unfolds_ahead(self, compiled: Callable[..., Any], kernel: str, ahead: int) -> None:
        resources = compiled(process.border_resources, kernel, 1, 1, ahead)
        assert resources.spilled_bytes == 0, resources


class TestLanes:
    """Layouts, by what a kernel would sum over them."""

    @pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.4, 1.0])
    @pytest.mark.parametrize("n_neurons", [1, 7, 16, 33, 64])
    def test_every_row_sums_its_own_synapses(self, n_neurons: int, density: float) -> None:
        row, peer, fan_in = draw_synapses(n_neurons, density)
        for rows in (8, 16, 32):
            lanes = _lay_out(row, peer, fan_in, rows)
            exists = lanes.synapses.numpy() >= 0
            first = np.cumsum([0, *lanes.trips])
            sums: Any = np.zeros(len(lanes.neurons), int)
            for block, (trips, tail) in enumerate(zip(lanes.trips, lanes.tails, strict=True)):
                here = slice(block * rows, (block + 1) * rows)
                found = exists[first[block] : first[block] + trips]
                heads, tails = found[: trips - tail].sum(0), found[trips - tail :].sum(0)
                helps = (lanes.roles[here].numpy() & HELPS) != 0
                sums[here] += heads + np.where(helps, 0, tails)
                is_helped = (lanes.roles[here].numpy() & IS_HELPED) != 0
                sums[here] += np.where(is_helped, tails[lanes.partners[here].numpy()], 0)
            expected = np.bincount(row, minlength=n_neurons)
            positions = places(lanes.neurons).numpy()
            assert np.array_equal(sums[positions], expected)
            assert np.array_equal((lanes.roles.numpy()[positions] & OWNS) != 0, expected > 0)

    @pytest.mark.parametrize("n_neurons", [7, 33, 64])
    def test_slots_and_peers_are_those_of_their_synapses(self, n_neurons: int) -> None:
        row, peer, fan_in = draw_synapses(n_neurons, 0.4)
        lanes = _lay_out(row, peer, fan_in, 16)
        slots = places(lanes.synapses)
        assert np.array_equal(lanes.synapses.flatten()[slots], np.arange(len(row)))
        assert np.array_equal(lanes.neurons[lanes.peers.flatten()[slots].long()], peer)
        assert lanes.peer_blocks == places(lanes.neurons)[peer].max() // 16 + 1

    def test_slots_of_an_ncp(self) -> None:
        wiring = AutoNCP(64).build(32, 8)
        held = tables(Synapses.from_lists(wiring.synapses, wiring.sensory_synapses), 32)
        assert held.forward_lanes is not None and held.forward_lanes.cheapest.n_slots == 18
        assert held.reverse_lanes is not None and held.reverse_lanes.cheapest.n_slots == 17

    def test_few_sequences_have_the_fewest_slots(self) -> None:
        row, peer, fan_in = draw_synapses(16, 0.4)
        layouts = lay_out(row, peer, fan_in, registers=FORWARD)
        assert layouts is not None
        assert layouts.cheapest.rows == 16 and layouts.fastest.rows == 32
        assert layouts.fastest.n_slots < layouts.cheapest.n_slots
        assert layouts.fastest.unfolds_ahead(6) == 6
        assert layouts.fastest.unfolds_ahead(MOST_SLOTS_AHEAD) == 1

    def test_a_wiring_is_read_back_once(self) -> None:
        synapses = draw_case(Sizes(1, 1, 3, 9)).synapses
        first = tables(synapses, 3)
        assert tables(synapses, 3) is first
        synapses.source.copy_(synapses.source.clone())
        assert tables(synapses, 3) is not first

    def test_folding(self) -> None:
        assert fold(np.array([23, 23, 11, 0])) == (17, 6)
        # No pair can take over enough for a fold to be worth its cost.
        assert fold(np.array([9, 8, 8, 8])) == (9, 0)
        assert fold(np.array([0, 0, 0, 0])) == (0, 0)

    @pytest.mark.parametrize("most_slots", [None, 3, 100])
    @pytest.mark.parametrize("n_members", [0, 1, 13, 40])
    def test_groups_hold_every_synapse_once(self, n_members: int, most_slots: int | None) -> None:
        random = np.random.default_rng(0)
        row, peer = (array.astype(np.int32) for array in (random.random((n_members, 5)) < 0.6).nonzero())
        groups = group(row, peer, n_members, rows=8, most_slots=most_slots)
        flat, slots = groups.synapses.flatten(), places(groups.synapses)
        assert np.array_equal(flat[slots], np.arange(len(row)))
        assert (flat >= 0).sum() == len(row)
        assert np.array_equal(groups.peers.flatten()[slots], peer)
        # Each group's slots follow those of the groups before, and lie in the lanes of its members.
        of_slot = torch.repeat_interleave(torch.arange(groups.n_groups), groups.trips)[slots // 8]
        assert np.array_equal(groups.members[of_slot * 8 + slots % 8], row)
        if most_slots is not None:
            assert groups.n_slots <= most_slots and (groups.trips == groups.n_slots).all()


def places(table: torch.Tensor) -> torch.Tensor:
    """Where in a flat table each of 0, 1, ... is; negative numbers stand for none."""
    flat = table.flatten()
    there = (flat >= 0).nonzero()[:, 0]
    return there[flat[there].argsort()]


def draw_synapses(n_neurons: int, density: float) -> tuple[Any, Any, Any]:
    """Of a random wiring the neurons where synapses end and where they start, and how many end in each."""
    start, end = (np.random.default_rng(1).random((n_neurons, n_neurons)) < density).nonzero()
    fan_in = np.bincount(end, minlength=n_neurons)
    return end.astype(np.int32), start.astype(np.int32), fan_in.astype(np.int32)


def test_evaluations_are_counted() -> None:
    from ncp_rl.kernels.triton import backend

    synapses = draw_case(Sizes(1, 1, 3, 9)).synapses
    n_synapses, n_sensory = len(synapses.source), len(synapses.sensory_source)
    expected = 4 * 5 * (6 * n_synapses + n_sensory)
    assert backend.synapse_evaluations(synapses, 4, 5, ode_unfolds=6) == expected


class TestErrors:
    def test_too_many_neurons(self) -> None:
        from ncp_rl.kernels.triton import backend

        case = draw_case(Sizes(1, 1, 2, 129, density=0.01)).with_dtype(torch.float32, requires_grad=False)
        with pytest.raises(ValueError, match='up to 128 neurons, got 129; use backend="reference"'):
            backend.forward(case, save=False)

    def test_other_dtype(self) -> None:
        from ncp_rl.kernels.triton import backend

        with pytest.raises(ValueError, match=r'computes in float32, got torch.float64; use backend="reference"'):
            backend.forward(draw_case(Sizes(1, 1, 2, 5)), save=False)
