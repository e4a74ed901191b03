"""The Triton kernels without a GPU: interpreted on the CPU for their numbers, and compiled for an H100.

The interpreter runs the threads of a program in step and computes with numpy, so it shows neither a missing barrier
nor what the GPU's special functions round differently; `test_scan.py` compares the backend on a GPU where there is one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch

from tests.kernels import triton_process as process
from tests.kernels.circuits import TOLERANCES, Sizes, draw_case

pytest.importorskip("triton")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

GRID = [
    Sizes(n_steps=1, n_sequences=1, n_inputs=1, n_neurons=7),
    Sizes(n_steps=4, n_sequences=5, n_inputs=18, n_neurons=19),
    Sizes(n_steps=2, n_sequences=2, n_inputs=17, n_neurons=33),
    Sizes(n_steps=1, n_sequences=6, n_inputs=4, n_neurons=5),
    Sizes(n_steps=3, n_sequences=1, n_inputs=2, n_neurons=1, density=1.0),
    Sizes(n_steps=3, n_sequences=3, n_inputs=2, n_neurons=6, density=0.0),
    Sizes(n_steps=1, n_sequences=1, n_inputs=9, n_neurons=128, density=0.1),
]


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

    @pytest.mark.parametrize("irregular_time", [False, True], ids=["second", "irregular"])
    @pytest.mark.parametrize("resets", [False, True], ids=["whole", "resets"])
    def test_with_and_without_resets_and_elapsed_time(
        self, interpreted: Callable[..., Any], resets: bool, irregular_time: bool
    ) -> None:
        errors = interpreted(process.errors, Sizes(4, 5, 3, 9), 3, resets=resets, irregular_time=irregular_time)
        assert_small(errors)
        assert ("elapsed_time" in errors) == irregular_time

    def test_no_seconds_change_nothing(self, interpreted: Callable[..., Any]) -> None:
        assert interpreted(process.stays_without_time, Sizes(3, 5, 3, 9))

    def test_one_unfold(self, interpreted: Callable[..., Any]) -> None:
        assert_small(interpreted(process.errors, Sizes(4, 5, 3, 9), 1))

    # p, q, states and denominators of one step take 5 * 9 * 3 * 16 bytes.
    @pytest.mark.parametrize("saved_bytes", [0, 2 * 5 * 9 * 3 * 16], ids=["step by step", "two steps"])
    def test_beyond_the_memory_budget(self, interpreted: Callable[..., Any], saved_bytes: int) -> None:
        assert_small(interpreted(process.errors, Sizes(5, 5, 3, 9), 3, saved_bytes))

    def test_nan_comes_out_where_it_went_in(self, interpreted: Callable[..., Any]) -> None:
        actual, expected = interpreted(process.nan_positions, Sizes(5, 3, 4, 9))
        assert expected.any() and not expected.all()
        assert torch.equal(actual, expected)

    def test_repeats_bit_by_bit(self, interpreted: Callable[..., Any]) -> None:
        assert interpreted(process.is_repeatable, Sizes(3, 5, 4, 9))

    def test_operands_need_not_be_contiguous(self, interpreted: Callable[..., Any]) -> None:
        assert interpreted(process.strided_agrees, Sizes(2, 3, 4, 9))


class TestCompiled:
    @pytest.mark.parametrize("batch", [1, 4])
    @pytest.mark.parametrize("n_neurons", [16, 32, 64, 128])
    def test_registers_suffice(self, compiled: Callable[..., Any], n_neurons: int, batch: int) -> None:
        resources = compiled(process.compile_kernels, n_neurons, batch)
        assert all(resource.spilled_bytes == 0 for resource in resources.values()), resources
        assert all(resource.registers <= 128 for resource in resources.values()), resources

    def test_without_resets_and_elapsed_time(self, compiled: Callable[..., Any]) -> None:
        assert "forward_scan" in compiled(process.compile_kernels, 32, 2, bare=True)


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


@needs_gpu
class TestOnGpu:
    def test_does_not_wait_for_the_device(self) -> None:
        from ncp_rl.kernels.triton import backend

        case = draw_case(Sizes(3, 5, 4, 9)).with_dtype(torch.float32, requires_grad=False).to("cuda")
        backend.forward(case, save=True)  # compiles
        fresh = case._replace(synapses=case.synapses._replace(pointer=case.synapses.pointer.clone()))
        torch.cuda.set_sync_debug_mode("error")
        try:
            potentials, saved = backend.forward(fresh, save=True)
            backend.backward(torch.ones_like(potentials), potentials, saved, fresh)
        finally:
            torch.cuda.set_sync_debug_mode("default")
