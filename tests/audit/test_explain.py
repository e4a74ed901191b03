from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ncp_rl import LTC, AutoNCP, FullyConnected, Random
from ncp_rl.audit import Explanation, explain
from ncp_rl.audit.questions.explain import ExplainQuestion, explain_all
from ncp_rl.circuit import Circuit
from ncp_rl.kernels import EPSILON
from ncp_rl.ltc import inverse_softplus
from tests.audit.circuits import circuit, episode, recorded
from tests.audit.episodes import built

RECIPES = [AutoNCP(20, sparsity=0.3), AutoNCP(32, sparsity=0.5), FullyConnected(9), Random(12, sparsity=0.5)]


def one_neuron(*, unfolds: int = 1) -> Circuit:
    """One sensory input, one motor neuron, one synapse that is half open at 0."""
    values: dict[str, Any] = dict(sensory_w=2.0, sensory_sigma=3.0, sensory_mu=0.0, sensory_erev=1.0)
    values |= dict(cm=1.5, gleak=0.5, vleak=-0.4)
    neuron = built([[0]], [[1]], elapsed_time=1.0, ode_unfolds=unfolds, **values)
    readout, bias = np.full((1, 1), 2.0, np.float32), np.full(1, 0.1, np.float32)
    return replace(neuron, readout=readout, bias=bias, sensory_names=("theta",), action_names=("torque",))


def test_by_hand() -> None:
    # cm = 1.5, gleak = 0.5, w s = 2 / 2 = 1, delta = 1: the denominator is 3.
    explanation = explain(one_neuron(), recorded(one_neuron(), *arrays([[0.0], [0.0]], [0.6], [1.0, 1.0])))
    np.testing.assert_allclose(explanation.retention[0], 0.5)
    np.testing.assert_allclose(explanation.memory[0], 0.3)
    np.testing.assert_allclose(explanation.sensory[0], 1 / 3, rtol=1e-7)
    np.testing.assert_allclose(explanation.leak[0], -0.2 / 3, rtol=1e-6)
    action = explanation.of_action(0)
    np.testing.assert_allclose(action.sensory[0], 2 / 3, rtol=1e-7)
    np.testing.assert_allclose(action.total()[0], 2 * (0.3 + 1 / 3 - 0.2 / 3) + 0.1, rtol=1e-6)
    assert explanation.sentence(0) == "torque 1.23 at 1.00 s: theta +0.67, memory +0.60, leak -0.13, offset +0.10"
    # A step later half of what came in is left.
    past = explanation.history(1, n_steps=2, neuron=0)
    np.testing.assert_allclose(past.sensory[:, 0], [1 / 3, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(past.rest, [-0.2 / 3, -0.1 / 3], rtol=1e-6)
    np.testing.assert_allclose(past.before, 0.15, rtol=1e-6)


def arrays(*lists: list[list[float]] | list[float]) -> tuple[Any, ...]:
    return tuple(np.array(numbers, np.float32) for numbers in lists)


def test_unfolds_by_hand() -> None:
    # delta = 1/2: each substep keeps 1.5 / (1.5 + 0.75) = 2/3.
    explanation = explain(one_neuron(unfolds=2), recorded(one_neuron(unfolds=2), *arrays([[0.0]], [0.6], [1.0])))
    np.testing.assert_allclose(explanation.retention[0], 4 / 9, rtol=1e-6)
    np.testing.assert_allclose(explanation.sensory[0], 0.5 / 2.25 * (1 + 2 / 3), rtol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_contributions_add_up_to_the_potentials(recipe: AutoNCP, seed: int) -> None:
    net = circuit(recipe, seed=seed)
    explanation = explain(net, episode(net, seed=seed))
    assert explanation.residual() < 1e-6
    np.testing.assert_allclose(sum(explanation.by_layer().values()), explanation.potentials(), atol=1e-12)
    for action in range(2):
        np.testing.assert_allclose(
            explanation.of_action(action).total(), explanation.episode.action_mean[:, action], atol=5e-6
        )
    np.testing.assert_allclose(explanation.of_neuron(5).total(), explanation.potentials()[:, 5], atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("steepness", [0.1, 1.0, 10.0, 100.0])
def test_rounding_is_bounded_however_steep_the_synapses(recipe: AutoNCP, steepness: float) -> None:
    """What kernels and a plain solver give in float32 lies within the bound, and an edited potential does not."""
    net = circuit(recipe, seed=2)
    with torch.no_grad():
        for sigma in (net.ltc.sigma, net.ltc.sensory_sigma):
            sigma.copy_(inverse_softplus(net.ltc.packed().params[0][1].max() * steepness * torch.rand_like(sigma)))
    taken = episode(net, seed=3)
    explanation = explain(net, taken)
    assert (explanation.rounding > 0.0).all() and explanation.share_of_rounding() < 1.0
    np.testing.assert_array_less(np.abs(plain_steps(explanation) - explanation.potentials()), explanation.rounding)
    for sign in (-1, 1):
        edited = taken.potentials.copy()
        edited[-1, 3] += np.float32(sign * 3.0 * explanation.rounding[-1, 3])
        (verdict,) = ExplainQuestion().verdicts(explain_all(net, [replace(taken, potentials=edited)]))
        assert not verdict.passed and verdict.figures["share_of_rounding"] > 1.0


def plain_steps(explanation: Explanation) -> Any:
    """(T, U), each step of an episode by NumPy in float32, sums in the order of the synapses."""
    cell, taken = explanation.cell, explanation.episode
    v = np.concatenate([taken.start[None], taken.potentials[:-1]])
    delta = (taken.elapsed_time / np.float32(cell.ode_unfolds))[:, None]

    def single(values: Any) -> Any:
        return np.asarray(values, np.float32)

    for _ in range(cell.ode_unfolds):
        numerator, denominator = (np.broadcast_to(single(row), v.shape).copy() for row in (cell.gleak, cell.gleak))
        numerator *= single(cell.vleak)
        denominator += np.float32(EPSILON)
        for synapses, values in ((cell.synapses, v), (cell.sensory, taken.sensory)):
            for e in range(len(synapses.source)):
                x = single(synapses.sigma[e]) * (values[:, synapses.source[e]] - single(synapses.mu[e]))
                with np.errstate(over="ignore"):
                    conductance = single(synapses.w[e]) / (np.float32(1.0) + np.exp(-x))
                numerator[:, synapses.destination[e]] += conductance * single(synapses.erev[e])
                denominator[:, synapses.destination[e]] += conductance
        v = (single(cell.cm) * v + delta * numerator) / (single(cell.cm) + delta * denominator)
        assert v.dtype == np.float32
    return v


@pytest.mark.parametrize("recipe", RECIPES)
def test_history_adds_up(recipe: AutoNCP) -> None:
    net = circuit(recipe)
    explanation = explain(net, episode(net))
    for n_steps in (1, 7, 1000):
        past = explanation.history(30, n_steps=n_steps, action=1)
        assert len(past.rest) == min(n_steps, 31)
        np.testing.assert_allclose(past.total(), explanation.episode.action_mean[30, 1], atol=2e-5)
        np.testing.assert_allclose(past.paths.sum(), past.sensory.sum(), rtol=1e-9)


def test_steps_are_counted_from_the_end_too() -> None:
    net = circuit(AutoNCP(12))
    explanation = explain(net, episode(net))
    last = len(explanation.episode) - 1
    for back in (-1, -3, -1 - last):
        step = last + 1 + back
        assert explanation.sentence(back) == explanation.sentence(step)
        ours, theirs = (explanation.history(at, n_steps=4, action=1) for at in (back, step))
        assert ours.total() == theirs.total() and len(ours.rest) == min(4, step + 1)
        np.testing.assert_array_equal(ours.paths, theirs.paths)
        np.testing.assert_allclose(ours.total(), explanation.episode.action_mean[step, 1], atol=2e-5)
    for beyond in (last + 1, -2 - last):
        with pytest.raises(IndexError, match=f"from {-1 - last} to {last}, got {beyond}"):
            explanation.history(beyond, n_steps=1, action=0)
        with pytest.raises(IndexError, match=f"from {-1 - last} to {last}, got {beyond}"):
            explanation.sentence(beyond)


def test_paths_run_along_synapses() -> None:
    net = circuit(AutoNCP(20, sparsity=0.3))
    explanation = explain(net, episode(net))
    paths = explanation.history(30, n_steps=40, neuron=0).paths
    adjacency = net.wiring.adjacency
    assert not paths[:, 20].any()  # No sense reaches a motor neuron directly in a circuit of four layers.
    assert set(np.nonzero(paths.any(0))[0]) == set(np.nonzero(adjacency[:, 0])[0])


def test_what_was_not_seen_yet_has_no_credit() -> None:
    """An input that changes at step 20 changes the credit of later steps alone."""
    net = circuit()
    first = episode(net)
    sensory = first.sensory.copy()
    sensory[20:] += 1.0
    second = recorded(net, sensory, first.start, first.elapsed_time)
    one, other = explain(net, first), explain(net, second)
    np.testing.assert_array_equal(one.synaptic[:20], other.synaptic[:20])
    assert not np.allclose(one.sensory[20], other.sensory[20])


def test_a_closed_synapse_contributes_nothing() -> None:
    net = circuit()
    with torch.no_grad():
        net.ltc.w[3] = -200.0  # softplus gives 0
    explanation = explain(net, episode(net))
    assert not explanation.synaptic[:, 3].any()
    assert explanation.cell.synapses.w[3] < EPSILON


def test_sentence_names_the_strongest() -> None:
    net = circuit()
    explanation = explain(net, episode(net))
    drivers = explanation.of_action(0)
    strongest = net.wiring.names[int(np.abs(drivers.neurons[10]).argmax())]
    sentence = explanation.sentence(10)
    assert sentence.startswith(
        f"action_0 {explanation.episode.action_mean[10, 0]:.2f} at {explanation.episode.time[10]:.2f} s: "
    )
    assert (
        f"{strongest} ({explanation.episode.potentials[10, net.wiring.names.index(strongest)]:.2f}) was driven by"
        in sentence
    )


def test_errors() -> None:
    net = circuit()
    with pytest.raises(ValueError, match=r"The circuit has 6 sensory inputs and 20 neurons, the episode \(6, 12\)"):
        explain(net, episode(circuit(Random(12, sparsity=0.5))))
    with pytest.raises(ValueError, match="Name an action or a neuron"):
        explain(net, episode(net)).history(3, n_steps=2)
    mapped = Circuit(LTC(net.wiring), net.readout, net.bias, net.sensory_names, net.action_names)
    with pytest.raises(ValueError, match="input_map=False"):
        explain(mapped, episode(net))
