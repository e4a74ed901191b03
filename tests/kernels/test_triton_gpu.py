"""The Triton kernels on a GPU: numbers, every bit of a repetition, streams, devices, sizes. `make gpu` runs these.

What can be shown without one, `test_triton.py` shows; the comparisons are those of `triton_process.py` in both.
"""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ncp_rl.kernels import BACKENDS, ltc_scan
from ncp_rl.kernels.contract import Operands
from tests.kernels import triton_process as process
from tests.kernels.circuits import TOLERANCES, Case, Sizes, draw_case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

#: Circuits whose scans are both resident, whose forward alone is, and whose scans both stream, and sizes between.
CIRCUITS = [
    *(Sizes(3, 5, 3, n_neurons, 0.4) for n_neurons in (1, 2, 7, 8, 9, 16, 17, 31, 33)),
    Sizes(3, 5, 3, 22, 1.0),
    Sizes(3, 5, 3, 24, 1.0),
    Sizes(3, 5, 3, 64, 0.1),
    Sizes(3, 5, 3, 64, 0.4),
    Sizes(3, 5, 3, 127, 0.05),
    Sizes(3, 5, 3, 128, 0.3),
    Sizes(3, 5, 300, 20, 0.3),
    Sizes(3, 5, 0, 9, 0.4),
]


def forward(case: Operands) -> torch.Tensor:
    *operands, ode_unfolds = case
    return ltc_scan(*operands, ode_unfolds=ode_unfolds, backend="triton")  # type: ignore[arg-type]


def on_gpu(sizes: Sizes, device: str = "cuda") -> Case:
    return draw_case(sizes).with_dtype(torch.float32, requires_grad=False).to(device)


def assert_small(errors: dict[str, float]) -> None:
    tolerances = TOLERANCES[torch.float32]
    assert errors.pop("potentials") <= tolerances["potentials"]
    assert max(errors.values()) <= tolerances["gradient"], errors


@pytest.fixture
def memory() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


class TestNumbers:
    @pytest.mark.parametrize("sizes", CIRCUITS, ids=lambda sizes: "T{}-N{}-S{}-U{}-{}".format(*sizes))
    def test_circuits(self, sizes: Sizes) -> None:
        assert_small(process.errors(sizes, device="cuda"))

    @pytest.mark.parametrize("n_sequences", [1, 2, 3, 31, 33, 1000, 8192])
    @pytest.mark.parametrize("n_neurons", [9, 48, 100])
    def test_sequences(self, n_sequences: int, n_neurons: int) -> None:
        assert_small(process.errors(Sizes(2, n_sequences, 4, n_neurons, 0.2), 2, device="cuda"))

    @pytest.mark.parametrize("irregular_time", [False, True], ids=["second", "irregular"])
    @pytest.mark.parametrize("resets", [False, True], ids=["whole", "resets"])
    @pytest.mark.parametrize("n_neurons", [19, 100])
    def test_resets_and_elapsed_time(self, n_neurons: int, resets: bool, irregular_time: bool) -> None:
        sizes = Sizes(40, 7, 5, n_neurons, 0.2)
        assert_small(process.errors(sizes, device="cuda", resets=resets, irregular_time=irregular_time))

    @pytest.mark.parametrize(
        ("n_neurons", "n_unfolds"), [(9, 1), (9, 12), (16, 6), (32, 1), (32, 6), (48, 6), (48, 30)]
    )
    def test_few_sequences(self, n_neurons: int, n_unfolds: int) -> None:
        sizes = Sizes(20, 17, 4, n_neurons, 0.2)
        assert_small(process.errors(sizes, n_unfolds, device="cuda", few=True))
        assert process.is_repeatable(sizes, "cuda", few=True)

    @pytest.mark.parametrize("saved_bytes", [0, 2 * 5 * 9 * 3 * 8])
    def test_beyond_the_memory_budget(self, saved_bytes: int) -> None:
        assert_small(process.errors(Sizes(5, 5, 3, 9), 3, saved_bytes, device="cuda"))

    def test_no_seconds_change_nothing(self) -> None:
        assert process.stays_without_time(Sizes(3, 5, 3, 9), "cuda")

    @pytest.mark.parametrize("n_neurons", [9, 100])
    def test_nan_comes_out_where_it_went_in(self, n_neurons: int) -> None:
        actual, expected = process.nan_positions(Sizes(5, 3, 4, n_neurons), "cuda")
        assert expected.any() and not expected.all()
        assert torch.equal(actual, expected)

    @pytest.mark.parametrize("n_neurons", [9, 64, 128])
    def test_repeats_bit_by_bit(self, n_neurons: int) -> None:
        assert process.is_repeatable(Sizes(20, 300, 4, n_neurons, 0.1), "cuda")

    def test_tf32_changes_no_bit(self) -> None:
        case = on_gpu(Sizes(5, 40, 8, 64, 0.1))
        potentials = []
        for allowed in (False, True):
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = allowed
            try:
                potentials.append(forward(case))
            finally:
                torch.backends.cuda.matmul.allow_tf32 = before
        assert torch.equal(*potentials)

    @pytest.mark.parametrize("n_neurons", [16, 128], ids=["resident", "streaming"])
    def test_more_elements_than_an_int32_counts(self, memory: None, n_neurons: int) -> None:
        n_sequences = 8192
        n_steps = 2**31 // (n_sequences * n_neurons) + 2
        # Potentials, A and B.
        if torch.cuda.get_device_properties().total_memory < 4 * 4 * n_steps * n_sequences * n_neurons:
            pytest.skip("the GPU has too little memory")
        case = draw_case(Sizes(1, 1, 1, n_neurons, 0.05)).with_dtype(torch.float32, requires_grad=False).to("cuda")
        case = case._replace(
            inputs=torch.randn(n_steps, n_sequences, 1, device="cuda"),
            state=torch.zeros(n_sequences, n_neurons, device="cuda"), episode_starts=None, elapsed_time=None,
            ode_unfolds=1,
        )  # fmt: skip
        potentials = forward(case)
        assert potentials.numel() > 2**31
        last = case._replace(inputs=case.inputs[-3:], state=potentials[-4])
        assert torch.equal(forward(last), potentials[-3:])


class TestDevice:
    def test_does_not_wait_for_it(self) -> None:
        from ncp_rl.kernels.triton import backend

        def run() -> None:
            potentials, saved = backend.forward(case, save=True)
            backend.backward(torch.ones_like(potentials), potentials, saved, case)

        case = on_gpu(Sizes(3, 5, 4, 9))
        # Lists of synapses are read back when they are new, and kernels are loaded when they are first run.
        run()
        with warnings.catch_warnings():
            # PyTorch warns once that the mode is a prototype.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_other_stream(self) -> None:
        case = on_gpu(Sizes(20, 300, 4, 64, 0.1))
        expected = forward(case)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            actual = forward(case)
        stream.synchronize()
        assert torch.equal(actual, expected)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
    def test_other_device(self) -> None:
        sizes = Sizes(5, 30, 4, 33)
        assert torch.equal(forward(on_gpu(sizes, "cuda:1")).cpu(), forward(on_gpu(sizes)).cpu())

    def test_captured_in_a_graph(self) -> None:
        case = on_gpu(Sizes(1, 64, 8, 32, 0.2))
        case = case._replace(episode_starts=None, elapsed_time=None)
        forward(case)  # reads the lists back, compiles and loads
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = forward(case)
        case.inputs.normal_()
        graph.replay()
        assert torch.equal(captured, forward(case))

    def test_registry_serves_it(self) -> None:
        assert BACKENDS["triton"].serves(torch.float32, "cuda")


class TestModels:
    def test_saved_on_one_device_and_loaded_on_the_other(self) -> None:
        from ncp_rl import LTC, AutoNCP

        layer = LTC(AutoNCP(16).build(3, 2)).cuda()
        inputs = torch.randn(4, 5, 3)
        expected = layer(inputs.cuda())[0]
        moved = LTC(AutoNCP(16).build(3, 2))
        moved.load_state_dict({name: value.cpu() for name, value in layer.state_dict().items()})
        assert (moved(inputs)[0] - expected.cpu()).abs().max() < 1e-5
        back = copy.deepcopy(moved).cuda()
        assert torch.equal(back(inputs.cuda())[0], expected)

    def test_recorded_on_it_and_replayed_on_the_cpu(self, tmp_path: Path) -> None:
        for needed in ("gymnasium", "sb3_contrib", "mcap"):
            pytest.importorskip(needed)
        from sb3_contrib import RecurrentPPO

        from ncp_rl import NCPPolicy
        from ncp_rl.recording import record_rollouts, replay

        model = RecurrentPPO(NCPPolicy, "Pendulum-v1", n_steps=64, batch_size=64, device="cuda", seed=0)
        model.learn(128)
        env = model.get_env()
        assert env is not None
        recording = record_rollouts(model, env, tmp_path / "run.mcap", n_episodes=1, progress_bar=False)
        model.save(tmp_path / "model.zip")
        assert replay(recording, RecurrentPPO.load(tmp_path / "model.zip", device="cpu")).passed
