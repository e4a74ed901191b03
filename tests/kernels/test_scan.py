"""Every backend of the scan against float64 autograd of the reference, and what holds for the scan itself."""

# mypy: allow-untyped-calls

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from torch import Tensor

from ncp_rl.kernels import BACKENDS, Backend, FrozenParams, Params, Synapses, ltc_scan
from ncp_rl.kernels.backends import BackendEntry, load_backend
from ncp_rl.kernels.numba import backend as numba_backend
from tests.kernels.circuits import TOLERANCES, Case, Sizes, draw_case


def device_of(backend: str) -> str:
    return (BACKENDS[backend].devices or ("cpu",))[0]


def parametrize(entries: Iterable[BackendEntry]) -> pytest.MarkDecorator:
    """Over these entries of the table, skipping those whose device is not here."""
    backends = []
    for entry in entries:
        device = device_of(entry.name)
        missing = pytest.mark.skipif(device == "cuda" and not torch.cuda.is_available(), reason="no CUDA device")
        backends.append(pytest.param(entry.name, id=entry.name, marks=missing))
    return pytest.mark.parametrize("backend", backends)


every_backend = parametrize(BACKENDS.values())
every_fused_backend = parametrize(entry for entry in BACKENDS.values() if entry.load is not None)
every_backend_that_saves = parametrize(entry for entry in BACKENDS.values() if entry.saves)

GRID = [
    Sizes(n_steps=1, n_sequences=1, n_inputs=4, n_neurons=5),
    Sizes(n_steps=9, n_sequences=1, n_inputs=12, n_neurons=19),
    Sizes(n_steps=7, n_sequences=3, n_inputs=16, n_neurons=32),
    Sizes(n_steps=1, n_sequences=5, n_inputs=3, n_neurons=33),
    Sizes(n_steps=5, n_sequences=8, n_inputs=9, n_neurons=21, density=0.1),
    Sizes(n_steps=11, n_sequences=9, n_inputs=8, n_neurons=16),
    Sizes(n_steps=20, n_sequences=17, n_inputs=2, n_neurons=7),
    Sizes(n_steps=12, n_sequences=37, n_inputs=16, n_neurons=32),
    Sizes(n_steps=3, n_sequences=64, n_inputs=32, n_neurons=64, density=0.2),
    Sizes(n_steps=4, n_sequences=5, n_inputs=3, n_neurons=6, density=0.0),
    Sizes(n_steps=4, n_sequences=18, n_inputs=1, n_neurons=1, density=1.0),
    Sizes(n_steps=10, n_sequences=5, n_inputs=0, n_neurons=9),
]
#: A block of eight sequences or less has kernels of its own; the second number fills no block evenly.
few_or_many = pytest.mark.parametrize("n_sequences", [7, 19])


@pytest.fixture
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def run(case: Case, backend: Backend = "auto") -> Tensor:
    *operands, ode_unfolds = case
    return ltc_scan(*operands, ode_unfolds=ode_unfolds, backend=backend)  # type: ignore[arg-type]


def rows_of(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by operand, the parameters' row by row: w, sigma, mu, erev, cm, gleak and vleak differ in size."""
    rows: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        if name in Params._fields:
            rows |= {f"{name}[{i}]": row for i, row in enumerate(gradient)}
        else:
            rows[name] = gradient
    return rows


def potentials_and_gradients(case: Case, backend: Backend, weights: Tensor) -> dict[str, Tensor]:
    potentials = run(case, backend)
    gradients = torch.autograd.grad(
        potentials, list(case.differentiable.values()), weights.to(potentials), materialize_grads=True
    )
    return {"potentials": potentials.detach()} | rows_of(dict(zip(case.differentiable, gradients, strict=True)))


def assert_agrees(case: Case, backend: Backend) -> None:
    """Float32 potentials and every gradient row of `backend` against the float64 reference."""
    case32 = case.with_dtype(torch.float32).to(device_of(backend))
    case64 = case.with_dtype(torch.float64)
    weights = torch.randn(*case.inputs.shape[:2], case.state.shape[1], generator=torch.Generator().manual_seed(1))
    expected = potentials_and_gradients(case64, "reference", weights)
    tolerances = TOLERANCES[torch.float32]
    for name, actual in potentials_and_gradients(case32, backend, weights).items():
        error = actual.double().cpu() - expected[name]
        if name == "potentials":
            assert error.abs().max() <= tolerances["potentials"]
        else:
            assert error.norm() <= tolerances["gradient"] * expected[name].norm(), name


@every_backend
@pytest.mark.parametrize("sizes", GRID, ids=lambda sizes: "T{}-N{}-S{}-U{}-{}".format(*sizes))
def test_potentials_and_all_gradients(backend: Backend, sizes: Sizes) -> None:
    assert_agrees(draw_case(sizes), backend)


@every_backend
@pytest.mark.parametrize("irregular_time", [False, True], ids=["second", "irregular"])
@pytest.mark.parametrize("resets", [False, True], ids=["whole", "resets"])
@few_or_many
def test_with_and_without_resets_and_elapsed_time(
    backend: Backend, n_sequences: int, resets: bool, irregular_time: bool
) -> None:
    assert_agrees(draw_case(Sizes(12, n_sequences, 5, 11), resets=resets, irregular_time=irregular_time), backend)


@every_backend
@pytest.mark.parametrize("ode_unfolds", [1, 3])
@few_or_many
def test_other_numbers_of_unfolds(backend: Backend, n_sequences: int, ode_unfolds: int) -> None:
    assert_agrees(draw_case(Sizes(6, n_sequences, 5, 11), ode_unfolds=ode_unfolds), backend)


@every_backend
@few_or_many
def test_saturated_synapses(backend: Backend, n_sequences: int) -> None:
    case = draw_case(Sizes(6, n_sequences, 5, 11), saturated=True).with_dtype(torch.float32).to(device_of(backend))
    potentials = run(case, backend)
    gradients = torch.autograd.grad(potentials.sum(), list(case.differentiable.values()))
    expected = run(case.with_dtype(torch.float64), "reference").cpu()
    assert all(gradient.isfinite().all() for gradient in gradients)
    # A steep sigmoid turns the rounding of a potential near its midpoint into a difference 100 times larger.
    assert (potentials.cpu() - expected).abs().max() <= 100 * TOLERANCES[torch.float32]["potentials"]


@every_backend
@few_or_many
@pytest.mark.parametrize(("operand", "row"), [("state", -1), ("vleak", 2), ("erev", 3), ("sensory_erev", 3), ("mu", 2)])
def test_exponents_beyond_the_range_of_float32(backend: Backend, n_sequences: int, operand: str, row: int) -> None:
    """One number so large that 2^x overflows on the way to a sigmoid; beside it, a sequence that is not a number."""
    case = draw_case(Sizes(6, n_sequences, 5, 11, density=0.8), resets=False).with_dtype(torch.float32)
    numbers = {
        "state": case.state,
        "vleak": case.params.neuronal,
        "erev": case.params.synaptic,
        "sensory_erev": case.params.sensory,
        "mu": case.params.synaptic,
    }[operand]
    with torch.no_grad():
        numbers[row, -1] = 300
        case.state[0] = float("nan")
    potentials = run(case.to(device_of(backend)), backend).cpu()
    expected = run(case.with_dtype(torch.float64), "reference")
    assert potentials[:, 0].isnan().all()
    assert (potentials - expected)[:, 1:].abs().max() <= 1e-6 * 300


@every_backend
@few_or_many
def test_no_elapsed_time_leaves_potentials_and_finite_gradients(backend: Backend, n_sequences: int) -> None:
    case = draw_case(Sizes(5, n_sequences, 4, 9), resets=False)
    case = case._replace(elapsed_time=torch.zeros(5, n_sequences)).with_dtype(torch.float32).to(device_of(backend))
    potentials = run(case, backend)
    gradients = torch.autograd.grad(potentials.sum(), list(case.differentiable.values()))
    torch.testing.assert_close(potentials, case.state.expand_as(potentials), rtol=1e-6, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients)
    case64 = case.with_dtype(torch.float64)
    (expected,) = torch.autograd.grad(run(case64, "reference").sum(), case64.differentiable["elapsed_time"])
    assert (gradients[-1] - expected).norm() <= TOLERANCES[torch.float32]["gradient"] * expected.norm()


@every_backend
def test_reset_equals_two_sequences(backend: Backend) -> None:
    case = draw_case(Sizes(8, 5, 4, 9), resets=False).with_dtype(torch.float32, requires_grad=False)
    starts = torch.zeros(8, 5, dtype=torch.bool)
    starts[3] = True
    case = case._replace(episode_starts=starts).to(device_of(backend))
    assert case.elapsed_time is not None and case.episode_starts is not None
    before, after = (
        case._replace(
            inputs=case.inputs[part],
            state=state,
            episode_starts=None,
            elapsed_time=case.elapsed_time[part],
        )
        for part, state in ((slice(3), case.state), (slice(3, 8), torch.zeros_like(case.state)))
    )
    torch.testing.assert_close(
        run(case, backend), torch.cat([run(before, backend), run(after, backend)]), rtol=0, atol=0
    )


@every_backend
@pytest.mark.parametrize("n_sequences", [2, 18])
def test_nan_comes_out_where_it_went_in(backend: Backend, n_sequences: int) -> None:
    case = draw_case(Sizes(6, n_sequences, 4, 9)).with_dtype(torch.float32, requires_grad=False)
    assert case.episode_starts is not None and case.elapsed_time is not None
    case.inputs[2, 0, 1] = torch.nan
    case.state[1, 3] = torch.nan
    case.elapsed_time[4, n_sequences - 1] = torch.nan
    # Beside a NaN, inputs that saturate still do.
    case.inputs[3, 0] = torch.tensor([torch.nan, 1e4, -1e4, torch.inf])
    expected = run(case, "reference")
    actual = run(case.to(device_of(backend)), backend).cpu()
    assert expected.isnan().any() and not expected.isnan().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6, equal_nan=True)


@every_backend
@few_or_many
def test_infinite_inputs_saturate(backend: Backend, n_sequences: int) -> None:
    case = draw_case(Sizes(3, n_sequences, 4, 9)).with_dtype(torch.float32, requires_grad=False)
    case.inputs[0, 0], case.inputs[1, 1] = torch.inf, -torch.inf
    torch.testing.assert_close(
        run(case.to(device_of(backend)), backend).cpu(), run(case, "reference"), rtol=0, atol=2e-6
    )


def test_gradcheck_of_the_reference() -> None:
    case = draw_case(Sizes(2, 2, 2, 3, density=0.8), ode_unfolds=2).with_dtype(torch.float64)

    def scan(*leaves: Tensor) -> Tensor:
        inputs, state, elapsed_time = leaves[3:]
        return run(case._replace(params=Params(*leaves[:3]), inputs=inputs, state=state, elapsed_time=elapsed_time))

    # Central differences reach below 0 seconds, where the solver is still smooth.
    assert torch.autograd.gradcheck(scan, tuple(case.differentiable.values()))


@every_backend
def test_deterministic(backend: Backend) -> None:
    case = draw_case(Sizes(20, 70, 8, 17)).with_dtype(torch.float32).to(device_of(backend))
    weights = torch.ones(20, 70, 17)
    first, second = (potentials_and_gradients(case, backend, weights) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_threads_do_not_change_a_bit(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ncp_rl.kernels.numba.backend.SIGMOIDS_PER_THREAD", 1)
    case = draw_case(Sizes(40, 70, 8, 17)).with_dtype(torch.float32)
    weights = torch.ones(40, 70, 17)
    serial = potentials_and_gradients(case, "numba", weights)
    torch.set_num_threads(3)
    threaded = potentials_and_gradients(case, "numba", weights)
    assert all(torch.equal(serial[name], threaded[name]) for name in serial)


@few_or_many
@pytest.mark.parametrize("room", [0, 3, 11])
def test_what_is_kept_for_the_backward_pass_does_not_change_a_bit(
    n_sequences: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = draw_case(Sizes(19, n_sequences, 5, 12)).with_dtype(torch.float32)
    weights = torch.randn(19, n_sequences, 12)
    everything = potentials_and_gradients(case, "numba", weights)
    whole = numba_backend.forward(case, save=True)[1]
    assert whole is not None and whole.n_kept == 19
    n_blocks = -(-n_sequences // whole.tables.wiring.width)
    monkeypatch.setattr(numba_backend, "SAVED_BYTES", 4 * whole.step_size * n_blocks * room)
    part = numba_backend.forward(case, save=True)[1]
    assert part is not None and part.n_kept == room
    for name, tensor in potentials_and_gradients(case, "numba", weights).items():
        assert torch.equal(tensor, everything[name]), name


def test_forward_passes_do_not_share_what_they_keep() -> None:
    """A critic's pass comes between the actor's and its gradient; a graph may be run through twice."""
    drawn = [draw_case(Sizes(6, n_sequences, 5, 12), seed=seed) for seed, n_sequences in enumerate((9, 3, 20))]
    cases = [case.with_dtype(torch.float32) for case in drawn]
    operands = [list(case.differentiable.values()) for case in cases]

    def gradients(loss: Tensor, k: int) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, operands[k], retain_graph=True)

    apart = [gradients(run(case, "numba").square().sum(), k) for k, case in enumerate(cases)]
    together = [run(case, "numba").square().sum() for case in cases]
    for k in (2, 0, 1, 0):
        assert all(map(torch.equal, gradients(together[k], k), apart[k]))


def test_memory_for_the_backward_pass_is_used_again() -> None:
    case = draw_case(Sizes(50, 16, 5, 12)).with_dtype(torch.float32)
    first = numba_backend.forward(case, save=True)[1]
    assert first is not None
    address = first.memory.data_ptr()
    del first
    second = numba_backend.forward(case, save=True)[1]
    assert second is not None and second.memory.data_ptr() == address


@few_or_many
def test_held_parameters_follow_the_synapse_lists(n_sequences: int) -> None:
    """What is computed once for parameters is computed for one wiring and one width of a block."""
    case = draw_case(Sizes(3, n_sequences, 5, 12)).with_dtype(torch.float32, requires_grad=False)
    held = FrozenParams(*case.params)
    rolled = Synapses(case.synapses.pointer, case.synapses.source.flip(0), *case.synapses[2:])
    for synapses in (case.synapses, rolled, Synapses(*case.synapses), rolled):
        expected = run(case._replace(synapses=synapses), "numba")
        assert torch.equal(run(case._replace(params=held, synapses=synapses), "numba"), expected)
    assert held.derived
    assert not copy.deepcopy(held).derived and not pickle.loads(pickle.dumps(held)).derived


@every_backend_that_saves
@few_or_many
def test_a_backward_pass_for_which_nothing_was_kept(
    backend: Backend, n_sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_backend(backend), "SAVED_BYTES", 0)
    assert_agrees(draw_case(Sizes(12, n_sequences, 5, 11)), backend)


@every_backend
def test_operands_need_not_be_contiguous(backend: Backend) -> None:
    case = draw_case(Sizes(6, 18, 4, 9)).with_dtype(torch.float32, requires_grad=False).to(device_of(backend))
    strided = case._replace(
        inputs=case.inputs.transpose(0, 1).contiguous().transpose(0, 1),
        state=case.state.T.contiguous().T,
        params=Params(*(row.T.contiguous().T for row in case.params)),
    )
    assert torch.equal(run(strided, backend), run(case, backend))


@every_backend
def test_gradient_of_some_operands_only(backend: Backend) -> None:
    case = draw_case(Sizes(4, 3, 4, 9)).with_dtype(torch.float32, requires_grad=False).to(device_of(backend))
    case.inputs.requires_grad_()
    run(case, backend).sum().backward()
    assert case.inputs.grad is not None and case.state.grad is None


class TestChoice:
    def test_auto_takes_the_reference_for_float64(self) -> None:
        case = draw_case(Sizes(4, 3, 4, 9))
        assert torch.equal(run(case, "auto"), run(case, "reference"))

    def test_auto_takes_numba_for_float32_on_the_cpu(self) -> None:
        case = draw_case(Sizes(4, 3, 4, 9)).with_dtype(torch.float32)
        assert torch.equal(run(case, "auto"), run(case, "numba"))

    @pytest.mark.parametrize("backend", ["numba", "triton"])
    def test_named_backend_never_falls_back(self, backend: Backend) -> None:
        with pytest.raises(ValueError, match=f'backend="{backend}" runs torch.float32 on .*, got torch.float64 on cpu'):
            run(draw_case(Sizes(4, 3, 4, 9)), backend)

    def test_triton_does_not_run_on_the_cpu(self) -> None:
        with pytest.raises(ValueError, match=r'backend="triton" runs torch.float32 on cuda, got torch.float32 on cpu'):
            run(draw_case(Sizes(4, 3, 4, 9)).with_dtype(torch.float32), "triton")

    def test_unknown_backend(self) -> None:
        with pytest.raises(ValueError, match="backend must be one of auto, reference, numba, triton, got 'cuda'"):
            run(draw_case(Sizes(4, 3, 4, 9)), "cuda")  # type: ignore[arg-type]


class TestErrors:
    @pytest.fixture
    def case(self) -> Case:
        return draw_case(Sizes(6, 3, 4, 9)).with_dtype(torch.float32, requires_grad=False)

    def test_inputs_without_time(self, case: Case) -> None:
        with pytest.raises(ValueError, match=r"inputs must be \(T, N, S\) with T, N >= 1, got \(3, 4\)"):
            run(case._replace(inputs=case.inputs[0]))

    def test_transposed_starts(self, case: Case) -> None:
        assert case.episode_starts is not None
        message = r"episode_starts must be \(T, N\) = \(6, 3\), got \(3, 6\); transpose it"
        with pytest.raises(ValueError, match=message):
            run(case._replace(episode_starts=case.episode_starts.T))

    def test_starts_as_numbers(self, case: Case) -> None:
        assert case.episode_starts is not None
        with pytest.raises(ValueError, match=r"must be bool, got torch.float32; compare it with 0 first"):
            run(case._replace(episode_starts=case.episode_starts.float()))

    @pytest.mark.parametrize("name", ["state", "elapsed_time"])
    def test_mixed_dtypes(self, case: Case, name: str) -> None:
        with pytest.raises(ValueError, match=rf"{name} must be torch.float32 on cpu like inputs, got torch.float64"):
            run(case._replace(**{name: getattr(case, name).double()}))

    def test_mixed_devices(self, case: Case) -> None:
        with pytest.raises(ValueError, match=r"state must be torch.float32 on cpu like inputs, got .* on meta"):
            run(case._replace(state=case.state.to("meta")))

    def test_wrong_number_of_synapses(self, case: Case) -> None:
        params = case.params._replace(synaptic=case.params.synaptic[:, 1:])
        with pytest.raises(ValueError, match=r"params.synaptic must be \(4, \d+\), got \(4, \d+\)"):
            run(case._replace(params=params))

    def test_too_few_inputs(self, case: Case) -> None:
        with pytest.raises(ValueError, match=r"inputs must be \(T, N, S\) with S >= 4"):
            run(case._replace(inputs=case.inputs[..., :3]))

    def test_synapse_from_nowhere(self, case: Case) -> None:
        source = case.synapses.source.clone()
        source[3] = 9
        with pytest.raises(ValueError, match=r"synapses.source must be below U = 9, got 9"):
            run(case._replace(synapses=case.synapses._replace(source=source)))

    def test_pointer_that_falls(self, case: Case) -> None:
        pointer = case.synapses.pointer.flip(0)
        with pytest.raises(ValueError, match=r"synapses.pointer must rise from 0 to"):
            run(case._replace(synapses=case.synapses._replace(pointer=pointer)))

    def test_lists_of_another_dtype(self, case: Case) -> None:
        with pytest.raises(ValueError, match=r"synapses.pointer must be one row of torch.int32"):
            run(case._replace(synapses=Synapses(*(tensor.long() for tensor in case.synapses))))

    def test_no_unfolds(self, case: Case) -> None:
        with pytest.raises(ValueError, match="ode_unfolds must be at least 1, got 0"):
            run(case._replace(ode_unfolds=0))


class TestGraphs:
    """A graph holds the scan as one operator, which agrees with eager mode."""

    case = draw_case(Sizes(6, 18, 4, 9)).with_dtype(torch.float32)

    def test_operator_is_sound(self) -> None:
        operands = (*self.case.values, *self.case.synapses, self.case.ode_unfolds, "numba")
        torch.library.opcheck(torch.ops.ncp_rl.ltc_scan, operands)

    @every_fused_backend
    def test_compile(self, backend: Backend) -> None:
        case = self.case.to(device_of(backend))
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        weights = torch.ones(6, 18, 9, device=case.inputs.device)
        expected = potentials_and_gradients(case, backend, weights)
        potentials = compiled(case, backend)
        gradients = torch.autograd.grad(potentials, list(case.differentiable.values()), weights)
        assert torch.equal(potentials, expected["potentials"])
        for name, gradient in rows_of(dict(zip(case.differentiable, gradients, strict=True))).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)

    def test_export(self) -> None:
        class Scan(torch.nn.Module):
            def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
                return ltc_scan(case.params, case.synapses, inputs, state)

        case = self.case.with_dtype(torch.float32, requires_grad=False)
        exported = torch.export.export(Scan(), (case.inputs, case.state))
        # Operators of PyTorch's own alone: a program runs where this library is not.
        assert "ncp_rl" not in str(exported.graph)
        expected = ltc_scan(case.params, case.synapses, case.inputs, case.state)
        tolerance = TOLERANCES[torch.float32]["potentials"]
        torch.testing.assert_close(exported.module()(case.inputs, case.state), expected, rtol=0, atol=tolerance)


class TestProcesses:
    """Workers of vectorised environments and data loaders run the scan too, threads or no threads in the parent."""

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_worker_agrees(self, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ncp_rl.kernels.numba.backend.SIGMOIDS_PER_THREAD", 1)
        if method not in multiprocessing.get_all_start_methods():
            pytest.skip(f"no {method} here")
        case = draw_case(Sizes(20, 70, 8, 17)).with_dtype(torch.float32)
        # The parent's threads are running by the time of the fork.
        expected = run(case, "numba")
        expected.sum().backward()
        context: Any = multiprocessing.get_context(method)
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(sender,))
        worker.start()
        sender.close()
        assert receiver.poll(timeout=60)
        potentials, gradient = receiver.recv()
        worker.join(timeout=60)
        assert worker.exitcode == 0
        assert (potentials == expected.detach().numpy()).all()
        assert case.params.synaptic.grad is not None
        assert (gradient == case.params.synaptic.grad.numpy()).all()


def _work(sender: Connection) -> None:
    case = draw_case(Sizes(20, 70, 8, 17)).with_dtype(torch.float32)
    potentials = run(case, "numba")
    potentials.sum().backward()
    assert case.params.synaptic.grad is not None
    sender.send((potentials.detach().numpy(), case.params.synaptic.grad.numpy()))
    sender.close()
