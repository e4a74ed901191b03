import networkx as nx
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO

from ncp_rl import AutoNCP, FullyConnected, NCPPolicy, Random
from ncp_rl.audit import Clamp, Cut, ablate, ablated, effects, every_neuron, every_synapse
from ncp_rl.circuit import Circuit
from tests.audit.circuits import circuit, episode
from tests.audit.test_explain import one_neuron


def without_path_to_motor(net: Circuit) -> set[str]:
    graph, motor = net.wiring.graph(), net.wiring.names[net.wiring.motor]
    return {name for name in net.wiring.names if not any(nx.has_path(graph, name, m) for m in motor)}


def test_no_path_no_change() -> None:
    net = circuit(Random(14, sparsity=0.85, seed=3))
    idle = without_path_to_motor(net)
    assert 0 < len(idle) < 14
    for effect in effects(net, episode(net), every_neuron(net, [episode(net)])):
        assert isinstance(effect.ablation, Clamp)
        assert (effect.largest == 0).all() == (effect.ablation.neuron in idle)
    for cut in effects(net, episode(net), every_synapse(net)):
        assert isinstance(cut.ablation, Cut)
        assert cut.ablation.destination not in idle or (cut.largest == 0).all()


@pytest.mark.parametrize("recipe", [AutoNCP(20, sparsity=0.3), FullyConnected(7)])
def test_a_clamp_is_what_a_constant_neuron_would_do(recipe: AutoNCP) -> None:
    """Against the same circuit whose neuron is held by an overwhelming leak."""
    net, run = circuit(recipe), episode(circuit(recipe))
    neuron = net.wiring.units - 1
    name = net.wiring.names[neuron]
    held = Circuit(net.ltc, net.readout, net.bias, net.sensory_names, net.action_names)
    clamped = ablate(net, Clamp(name, 0.37))
    with torch.no_grad():
        held.ltc.gleak[neuron], held.ltc.vleak[neuron] = 1e6, 0.37
    start = run.start.copy()
    start[neuron] = 0.37
    expected = held.run(run.sensory, start, run.elapsed_time)
    got = clamped.run(run.sensory, start, run.elapsed_time)
    np.testing.assert_allclose(np.delete(got, neuron, 1), np.delete(expected, neuron, 1), atol=2e-5)


def test_motor_and_cut_by_hand() -> None:
    net = one_neuron()
    sensory, start, seconds = np.zeros((2, 1), np.float32), np.zeros(1, np.float32), np.ones(2, np.float32)
    clamped = ablate(net, Clamp("motor_0", 0.25))
    np.testing.assert_allclose(clamped.action_means(clamped.run(sensory, start, seconds)), 2 * 0.25 + 0.1)
    cut = ablate(net, Cut("theta", "motor_0"))  # What is left is the leak: (1.5 v - 0.2) / 2.
    np.testing.assert_allclose(cut.run(sensory, start, seconds)[:, 0], [-0.1, -0.175], rtol=1e-6)


def test_a_policy_is_ablated_inside_the_context_alone() -> None:
    model = RecurrentPPO(NCPPolicy, "Pendulum-v1", n_steps=8, seed=0, policy_kwargs=dict(wiring=AutoNCP(12)))
    policy = model.policy
    assert isinstance(policy, NCPPolicy)
    observation = np.array([[1.0, 0.0, 0.5]], np.float32)
    before, _ = model.predict(observation, deterministic=True)
    with ablated(policy, Clamp("motor_0", 0.3)):
        clamped, _ = model.predict(observation, deterministic=True)
    np.testing.assert_allclose(clamped, 2 * 0.3, rtol=1e-6)  # The motor map starts at the bounds of the action, 2.
    with ablated(policy, Clamp(policy.wiring.names[-1], 1.0)):
        assert not np.array_equal(model.predict(observation, deterministic=True)[0], before)
    with ablated(policy, None):
        np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], before)
    np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], before)


def test_errors() -> None:
    with pytest.raises(ValueError, match="There is no neuron 'inter_99'; the names are motor_0"):
        ablate(circuit(), Clamp("inter_99", 0.0))
    with pytest.raises(ValueError, match="There is no synapse from sense_0 to motor_0"):
        ablate(circuit(), Cut("sense_0", "motor_0"))
