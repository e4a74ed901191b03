"""The layer: ncps' numbers, exact bounds, time, resets, its cache, and the reference library's quickstart."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from ncps.torch import LTC as NcpsLTC
from ncps.torch import LTCCell
from ncps.wirings import AutoNCP as NcpsAutoNCP
from torch import Tensor

from ncp_rl import LTC, AutoNCP, LTCInit, Wiring
from ncp_rl.kernels import BACKENDS, Backend
from ncp_rl.ltc import _Constrain, _constrain, inverse_softplus

ON_CPU = [entry.name for entry in BACKENDS.values() if entry.serves(torch.float32, "cpu")]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small_ltc(**kwargs: Any) -> LTC:
    return LTC(AutoNCP(12).build(4, 2), **kwargs)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("mapping", ["affine", "linear", None])
def test_numbers_of_ncps_over_200_irregular_steps(backend: Backend, implicit: bool, mapping: str | None) -> None:
    cell = LTCCell(NcpsAutoNCP(16, 2), 5, mapping, mapping, implicit_param_constraints=implicit)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name.startswith(("input", "output")):
                parameter.add_(torch.randn_like(parameter) / 3)
    cell.apply_weight_constraints()
    inputs, elapsed_time = torch.randn(200, 7, 5), torch.rand(200, 7) * 2 + 0.05
    state, theirs, outputs = torch.zeros(7, 16), [], []
    with torch.no_grad():
        for x, seconds in zip(inputs, elapsed_time, strict=True):
            output, state = cell(x, state, seconds[:, None])
            theirs.append(state)
            outputs.append(output)
        ltc = LTC.from_ncps(cell, backend=backend)
        potentials, last = ltc(inputs, elapsed_time=elapsed_time)
        torch.testing.assert_close(potentials, torch.stack(theirs), atol=1e-5, rtol=0)
        torch.testing.assert_close(ltc.motor_map(potentials), torch.stack(outputs), atol=1e-5, rtol=0)
        torch.testing.assert_close(last, potentials[-1])


def test_200_random_cells_of_explicit_mode_with_parameters_clamped_to_zero() -> None:
    """Each has a neuron whose capacitance, leak and incoming weights are all 0, and others with some of them."""
    worst = torch.zeros(200)
    for seed in range(200):
        torch.manual_seed(seed)
        cell = LTCCell(NcpsAutoNCP(12, 2), 3, implicit_param_constraints=False, ode_unfolds=2)
        dead = int(torch.randint(12, ()))
        inputs, elapsed_time = torch.randn(12, 4, 3), torch.rand(12, 4) * 2 + 0.05
        state, theirs = torch.zeros(4, 12), []
        with torch.no_grad():
            for name in ("cm", "gleak", "w", "sensory_w"):
                parameter = getattr(cell, name)
                parameter -= torch.rand(()) * torch.rand_like(parameter)
                parameter[..., dead] = -1.0
            cell.apply_weight_constraints()
            for x, seconds in zip(inputs, elapsed_time, strict=True):
                _, state = cell(x, state, seconds[:, None])
                theirs.append(state)
            potentials, _ = LTC.from_ncps(cell)(inputs, elapsed_time=elapsed_time)
        worst[seed] = (potentials - torch.stack(theirs)).abs().max()
    assert worst.max() < 1e-5, f"cell {int(worst.argmax())} is off by {worst.max():.1e}"


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_neuron_of_zeros_has_finite_gradients_where_no_time_passes(backend: Backend) -> None:
    cell = LTCCell(NcpsAutoNCP(12, 2), 3, implicit_param_constraints=False)
    with torch.no_grad():
        for name in ("cm", "gleak", "w", "sensory_w"):
            getattr(cell, name)[..., 5] = 0.0
    ltc = LTC.from_ncps(cell, backend=backend)
    inputs = torch.randn(4, 2, 3, requires_grad=True)
    elapsed_time = torch.tensor([[1.0, 0.5], [0.0, 1e-3], [0.0, 0.0], [0.2, 0.0]])
    potentials, _ = ltc(inputs, elapsed_time=elapsed_time)
    potentials.square().sum().backward()
    assert potentials.isfinite().all() and torch.equal(potentials[1, 0], potentials[0, 0])
    assert all(p.grad is None or p.grad.isfinite().all() for p in (inputs, *ltc.parameters()))


def test_from_ncps_reads_a_whole_layer() -> None:
    layer = NcpsLTC(3, NcpsAutoNCP(10, 1), batch_first=False)
    inputs = torch.randn(20, 2, 3)
    with torch.no_grad():
        ltc = LTC.from_ncps(layer)
        torch.testing.assert_close(ltc.motor_map(ltc(inputs)[0]), layer(inputs)[0], atol=1e-5, rtol=0)


def test_packing_in_one_node_has_the_gradients_of_plain_operations() -> None:
    ltc = small_ltc().double()
    names = [name for name, _ in ltc.named_parameters() if "_map" not in name and "input" not in name]
    order = ["w", "sigma", "mu", "erev", "sensory_w", "sensory_sigma", "sensory_mu", "sensory_erev", "cm", "gleak"]
    raw = [ltc.get_parameter(name) for name in [*order, "vleak"]]
    assert set(names) == {*order, "vleak"}
    apply: Any = _Constrain.apply
    assert torch.autograd.gradcheck(apply, raw)
    for ours, plain in zip(apply(*raw), _constrain(*raw), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_from_ncps_refuses_what_is_no_plain_ltc() -> None:
    with pytest.raises(ValueError, match="mixed_memory"):
        LTC.from_ncps(NcpsLTC(3, NcpsAutoNCP(10, 1), mixed_memory=True))
    with pytest.raises(ValueError, match="epsilon"):
        LTC.from_ncps(LTCCell(NcpsAutoNCP(10, 1), 3, epsilon=1e-3))


def test_parameters_stand_only_where_synapses_are() -> None:
    ltc = small_ltc()
    w = ltc.wiring
    n_synapses = len(w.synapses.source) + len(w.sensory_synapses.source)
    maps = 2 * (w.n_sensory + w.n_motor)
    assert sum(parameter.numel() for parameter in ltc.parameters()) == 4 * n_synapses + 3 * w.units + maps


def test_constraints_hold_after_any_step() -> None:
    ltc = small_ltc()
    with torch.no_grad():
        for parameter in ltc.parameters():
            parameter.add_(100 * torch.randn_like(parameter))
        params = ltc.packed().params
    assert (params.synaptic[0] >= 0).all() and (params.sensory[0] >= 0).all() and (params.neuronal[:2] >= 0).all()


@pytest.mark.parametrize("elapsed_time", [1.0, 0.05])
def test_initial_time_constants_span_a_tenth_of_a_step_to_two(elapsed_time: float) -> None:
    """tau = cm / (gleak + sum w / 2), all synapses half open, in steps."""
    ltc = LTC(AutoNCP(32).build(16, 4), elapsed_time=elapsed_time)
    params, synapses, *_ = ltc.packed()
    cm, gleak, _ = params.neuronal
    conductance = gleak.clone()
    for w, pointer in ((params.synaptic[0], synapses.pointer), (params.sensory[0], synapses.sensory_pointer)):
        conductance += torch.stack([w[a:b].sum() for a, b in pairwise(pointer)]) / 2
    tau = cm / conductance / elapsed_time
    assert tau.min() >= 0.1 - 1e-4 and tau.max() <= 2.0 + 1e-4 and tau.max() / tau.min() > 10


def test_init_ranges_can_be_overridden() -> None:
    ltc = small_ltc(init=LTCInit(cm=(0.4, 0.6), sigma=(2.0, 2.0), vleak=(0.0, 0.0)))
    cm = torch.nn.functional.softplus(ltc.cm)
    assert (cm >= 0.4 - 1e-5).all() and (cm <= 0.6 + 1e-5).all()
    assert (ltc.sigma == 2).all() and (ltc.sensory_sigma != 2).any() and (ltc.vleak == 0).all()
    with pytest.raises(ValueError, match=r"tau must be a range positive"):
        LTCInit(tau=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"mu must be a range \(low, high\)"):
        LTCInit(mu=(1.0, 0.0))


@pytest.mark.parametrize("backend", ON_CPU)
def test_potentials_stay_in_their_invariant_box(backend: Backend) -> None:
    """v_j is a weighted mean of its past, vleak_j and its synapses' erev: the certificate that audits build on."""
    ltc = small_ltc(backend=backend)
    w = ltc.wiring
    with torch.no_grad():
        ltc.erev.mul_(torch.rand_like(ltc.erev) * 3)
        potentials, _ = ltc(1000 * torch.randn(300, 8, 4))
    reached = [[0.0, v] for v in ltc.vleak.tolist()]
    for erev, synapses in ((ltc.erev, w.synapses), (ltc.sensory_erev, w.sensory_synapses)):
        for value, destination in zip(erev.tolist(), synapses.destination, strict=True):
            reached[destination].append(value)
    low, high = (torch.tensor([f(values) for values in reached]) for f in (min, max))
    assert (potentials >= low - 1e-6).all() and (potentials <= high + 1e-6).all()


@pytest.mark.parametrize("backend", ON_CPU)
def test_state_carries_on(backend: Backend) -> None:
    ltc = small_ltc(backend=backend)
    inputs = torch.randn(9, 3, 4)
    whole, last = ltc(inputs)
    first, state = ltc(inputs[:4])
    second, end = ltc(inputs[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("backend", ON_CPU)
def test_episode_starts_inside_a_sequence_begin_anew(backend: Backend) -> None:
    ltc = small_ltc(backend=backend)
    inputs, state = torch.randn(6, 2, 4), torch.randn(2, 12)
    starts = torch.zeros(6, 2)
    starts[3, 1] = 1
    potentials, _ = ltc(inputs, state, starts)
    kept, _ = ltc(inputs, state)
    fresh, _ = ltc(inputs[3:])
    torch.testing.assert_close(potentials[:, 0], kept[:, 0])
    torch.testing.assert_close(potentials[:3], kept[:3])
    torch.testing.assert_close(potentials[3:, 1], fresh[:, 1])


@pytest.mark.parametrize("backend", ON_CPU)
def test_no_time_leaves_potentials_as_they_are(backend: Backend) -> None:
    """Zero-padded minibatches hold elapsed times of 0: values and every gradient must stay finite."""
    ltc = small_ltc(backend=backend)
    inputs, state = torch.randn(3, 2, 4, requires_grad=True), torch.randn(2, 12, requires_grad=True)
    elapsed_time = torch.tensor([[0.5, 0.5], [0.0, 0.5], [0.0, 0.0]])
    potentials, _ = ltc(inputs, state, None, elapsed_time)
    torch.testing.assert_close(potentials[1, 0], potentials[0, 0])
    torch.testing.assert_close(potentials[2], potentials[1])
    potentials.sum().backward()
    gradients = [tensor.grad for tensor in (inputs, state, *ltc.parameters()) if tensor.grad is not None]
    assert len(gradients) > 10 and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_constant_elapsed_time_is_the_same_as_given() -> None:
    ltc = small_ltc(elapsed_time=0.3)
    inputs = torch.randn(5, 2, 4)
    torch.testing.assert_close(ltc(inputs)[0], ltc(inputs, elapsed_time=torch.full((5, 2), 0.3))[0])


def test_packed_parameters_follow_every_change() -> None:
    ltc = small_ltc().eval()
    inputs = torch.randn(5, 2, 4)

    def outcome() -> Tensor:
        with torch.no_grad():
            return ltc(inputs)[0]  # type: ignore[no-any-return]

    before = outcome()
    assert torch.equal(before, outcome())
    other = small_ltc()
    optimizer = torch.optim.Adam(ltc.parameters(), lr=0.1)
    for change in (
        lambda: ltc.load_state_dict(other.state_dict()),
        lambda: (ltc(inputs)[0].sum().backward(), optimizer.step()),
        lambda: torch.nn.utils.vector_to_parameters(
            torch.rand(sum(p.numel() for p in ltc.parameters())), ltc.parameters()
        ),
        lambda: setattr(ltc, "sigma", torch.nn.Parameter(ltc.sigma.detach() + 1)),
    ):
        change()
        after = outcome()
        assert not torch.equal(before, after)
        assert torch.allclose(after, ltc(inputs)[0])
        before = after
    assert torch.equal(copy.deepcopy(ltc)(inputs)[0], ltc(inputs)[0])


def test_compiled_and_exported_layers_agree() -> None:
    ltc = small_ltc()
    arguments = torch.randn(5, 3, 4), torch.randn(3, 12), torch.rand(5, 3) < 0.3, torch.rand(5, 3)
    expected, _ = ltc(*arguments)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in ltc.parameters() if p.grad is not None]
    ltc.zero_grad()
    compiled, _ = torch.compile(ltc, fullgraph=True, backend="aot_eager")(*arguments)
    compiled.sum().backward()
    torch.testing.assert_close(compiled, expected)
    again = [p.grad for p in ltc.parameters() if p.grad is not None]
    for ours, theirs in zip(again, gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    program = torch.export.export(ltc, arguments)
    assert not any("ncp_rl" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*arguments)[0], expected)


def test_double_precision_takes_the_reference() -> None:
    ltc = small_ltc().double()
    potentials, _ = ltc(torch.randn(3, 2, 4, dtype=torch.float64))
    assert potentials.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 2, 5),), r"inputs must be \(T, N, S\) with S = 4, got \(3, 2, 5\)"),
        ((torch.zeros(2, 4),), r"inputs must be \(T, N, S\)"),
        ((torch.zeros(3, 2, 4), torch.zeros(12, 2)), r"state must be \(2, 12\), got \(12, 2\); transpose it"),
        (
            (torch.zeros(3, 2, 4), None, torch.zeros(2, 3)),
            r"episode_starts must be .*\(3, 2\), got \(2, 3\); transpose it",
        ),
        ((torch.zeros(3, 2, 4), None, None, -torch.ones(3, 2)), r"elapsed_time .* got -1.0 at \(t, n\) = \(0, 0\)"),
        ((torch.zeros(3, 2, 4), None, None, torch.full((3, 2), float("nan"))), "elapsed_time must be finite"),
    ],
)
def test_operands_that_do_not_fit_are_refused(arguments: tuple[Tensor | None, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_ltc()(*arguments)
    with pytest.raises(ValueError, match="elapsed_time must be positive seconds, got 0"):
        small_ltc(elapsed_time=0)


def test_inverse_softplus() -> None:
    y = torch.tensor([0.0, 1e-8, 1e-3, 0.5, 3.0, 50.0])
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(y)), y, atol=2e-8, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quickstart_learns_to_double_a_frequency(seed: int) -> None:
    """Sine and cosine over 48 points in, sine of double frequency out; a constant output scores 0.5."""
    torch.manual_seed(seed)
    t = torch.from_numpy(np.linspace(0, 3 * np.pi, 48, dtype=np.float32))
    inputs, target = torch.stack([t.sin(), t.cos()], dim=-1)[:, None], (2 * t).sin()[:, None, None]
    ltc = LTC(AutoNCP(16).build(n_sensory=2, n_motor=1))
    optimizer = torch.optim.Adam(ltc.parameters(), lr=0.01)
    for _ in range(400):
        potentials, _ = ltc(inputs)
        loss = torch.nn.functional.mse_loss(ltc.motor_map(potentials), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() <= 0.003


def test_print_shows_the_circuit() -> None:
    assert "n_inter=6, n_command=4, n_motor=2" in repr(small_ltc())
    assert isinstance(small_ltc().wiring, Wiring)
