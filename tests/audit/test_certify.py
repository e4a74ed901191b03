import numpy as np
import pytest
import torch

from ncp_rl import AutoNCP, FullyConnected, Random
from ncp_rl.audit import Certificate, attack_actions, certify
from ncp_rl.circuit import Circuit
from tests.audit.circuits import circuit
from tests.audit.test_explain import one_neuron

RECIPES = [AutoNCP(20, sparsity=0.3), AutoNCP(32, sparsity=0.5), FullyConnected(9), Random(12, sparsity=0.5)]


def test_by_hand() -> None:
    # One synapse that pulls to 1 with at most 2, against a leak that pulls to -0.4 with 0.5.
    certificate = certify(one_neuron())
    slack = certificate.rounding[0]
    assert 0 < slack < 1e-4
    np.testing.assert_allclose([certificate.box.low[0], certificate.box.high[0]], [-0.4, 1.0], atol=2 * slack)
    # Open, it draws to (2 - 0.2) / 2.5; shut, to -0.4.
    np.testing.assert_allclose([certificate.range.low[0], certificate.range.high[0]], [-0.4, 0.72], atol=2 * slack)
    action = [certificate.action.low[0], certificate.action.high[0]]
    np.testing.assert_allclose(action, [2 * -0.4 + 0.1, 2 * 0.72 + 0.1], atol=1e-4)
    assert "pass  certificate   For every finite input and for ever, action means lie in" in str(certificate.verdict())
    assert "torque in [-0.70" in certificate.verdict().sentence


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_million_adversarial_inputs_stay_inside(recipe: AutoNCP, seed: int) -> None:
    net = circuit(recipe, seed=seed)
    certificate = certify(net)
    assert not certificate.violations
    assert (certificate.range.low >= certificate.box.low).all()
    assert (certificate.range.high <= certificate.box.high).all()
    generator = torch.Generator().manual_seed(seed)
    shape = (25, 20_000, net.wiring.n_sensory)
    for scale in (1.0, 1e8):
        inputs = torch.randn(shape, generator=generator) * scale
        elapsed = torch.rand(shape[:2], generator=generator) * 5 + 1
        potentials, _ = net.ltc(inputs, elapsed_time=elapsed)
        assert certificate.holds(potentials.detach().numpy())
    found = attack_actions(net, n_starts=16, rounds=25)
    assert (found.low >= certificate.action.low).all() and (found.high <= certificate.action.high).all()


def test_the_certificate_is_of_finite_inputs_and_says_so() -> None:
    net = circuit(AutoNCP(12))
    certificate = certify(net)
    largest = float(np.finfo(np.float32).max)
    inputs = torch.tensor([largest, -largest, 1e-45, 0.0, torch.nan]).expand(6, 3, 5).permute(1, 2, 0).contiguous()
    with torch.no_grad():
        potentials = net.ltc(inputs)[0].numpy()
    assert certificate.holds(potentials[:, :4]) and not certificate.holds(potentials[:, 4])
    assert "For every finite input" in certificate.verdict().sentence


def test_a_synapse_of_no_steepness_is_half_open_at_every_input() -> None:
    net = circuit(AutoNCP(12))
    with torch.no_grad():
        net.ltc.sensory_sigma.zero_()
    certificate = certify(net)
    assert np.isfinite(certificate.range.low).all() and np.isfinite(certificate.action.high).all()
    with torch.no_grad():
        assert certificate.holds(net.ltc(torch.randn(6, 3, net.wiring.n_sensory) * 1e8)[0].numpy())


def test_parameters_too_large_for_float32_are_named() -> None:
    net = circuit(AutoNCP(12))
    with torch.no_grad():
        net.ltc.erev[0] = 1e38
    assert "too large for sums of float32" in str(certify(net).verdict()) and not certify(net).verdict().passed


def test_gradients_push_every_neuron_to_its_bounds() -> None:
    """The first layer, which the senses drive freely, comes within a few per cent of its certified range."""
    net = circuit(AutoNCP(20, sparsity=0.3))
    certificate, inter = certify(net), net.wiring.inter
    width = torch.from_numpy(certificate.range.high - certificate.range.low)[inter]
    low, high = torch.full_like(width, torch.inf), torch.full_like(width, -torch.inf)
    for sign in (1.0, -1.0):
        for neuron in range(inter.start, inter.stop):
            inputs = torch.zeros(1, 1, 6, requires_grad=True)
            for _ in range(30):
                potentials, _ = net.ltc(inputs.expand(60, -1, -1))
                assert certificate.holds(potentials.detach().numpy())
                last = potentials[-1, 0].double().detach()[inter]
                low, high = torch.minimum(low, last), torch.maximum(high, last)
                (gradient,) = torch.autograd.grad(sign * potentials[-1, 0, neuron], inputs)
                inputs = (inputs + gradient.sign() * 0.3).detach().requires_grad_()
    assert ((high - low) / width).mean() > 0.9


def test_certificate_is_tight_enough_to_matter() -> None:
    net = circuit(AutoNCP(32, sparsity=0.5), n_sensory=12, seed=1)
    certificate, found = certify(net), attack_actions(net)
    ratio = (certificate.action.high - certificate.action.low) / (found.high - found.low)
    assert (ratio >= 1).all() and (ratio < 4).all()


def test_violations_are_named() -> None:
    net = circuit()
    with torch.no_grad():
        net.ltc.erev[0] = torch.nan
        net.ltc.cm[2] = torch.inf
    certificate = certify(net)
    source, destination = net.wiring.synapses.source[0], net.wiring.synapses.destination[0]
    names = net.wiring.names
    assert certificate.violations == (
        f"cm of {names[2]} is inf",
        f"erev of {names[source]} -> {names[destination]} is nan",
    )
    verdict = certificate.verdict()
    assert not verdict.passed and "Nothing is certified: cm of command_0 is inf and 1 more." in str(verdict)
    assert certificate.to_dict()["range"]["motor_0"] == [None, None]
    assert not certificate.holds(np.zeros(20))


def test_readout_violations_are_named() -> None:
    net = circuit()
    broken = Circuit(net.ltc, net.readout, np.array([np.nan, 0], np.float32), net.sensory_names, net.action_names)
    assert certify(broken).violations == ("bias of action_0 is nan",)


def test_shorter_steps_leave_more_to_rounding() -> None:
    long, short = (certify(circuit(), min_elapsed_time=seconds) for seconds in (1.0, 0.01))
    assert (short.rounding > long.rounding).all() and (short.range.high >= long.range.high).all()
    with pytest.raises(ValueError, match="min_elapsed_time must be positive seconds, got 0"):
        certify(circuit(), min_elapsed_time=0)


def test_to_dict() -> None:
    certificate: Certificate = certify(circuit())
    written = certificate.to_dict()
    assert list(written["action"]) == ["action_0", "action_1"]
    first = certificate.circuit.wiring.inter.start
    assert written["range"]["inter_0"] == [certificate.range.low[first], certificate.range.high[first]]
