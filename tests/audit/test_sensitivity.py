import numpy as np
import pytest
import torch

from ncp_rl import AutoNCP, FullyConnected
from ncp_rl.audit import sensitivity
from tests.audit.circuits import circuit, episode, recorded
from tests.audit.test_explain import arrays, one_neuron


@pytest.mark.parametrize("recipe", [AutoNCP(20, sparsity=0.3), FullyConnected(9)])
@pytest.mark.parametrize("epsilon", [0.003, 0.05, 0.5])
def test_no_move_leaves_the_bound(recipe: AutoNCP, epsilon: float) -> None:
    net = circuit(recipe)
    run = episode(net)
    result = sensitivity(net, run, epsilon * np.eye(6), step=10, n_steps=15)
    assert result.bound.shape == result.found.shape == (15, 2)
    assert (result.found <= result.bound + 2e-6).all()
    generator = torch.Generator().manual_seed(0)
    moves = (torch.rand(15, 2000, 6, generator=generator) * 2 - 1) * epsilon
    moves[:, 1000:] = moves[:, 1000:].sign() * epsilon
    inputs = torch.from_numpy(run.sensory[10:25])[:, None] + moves
    start = torch.from_numpy(run.potentials[9]).expand(2000, -1)
    elapsed = torch.from_numpy(run.elapsed_time[10:25])[:, None].expand(15, 2000)
    with torch.no_grad():
        potentials, _ = net.ltc(inputs, start, None, elapsed)
    moved = np.abs(net.action_means(potentials.numpy()) - run.action_mean[10:25, None]).max(1)
    assert (moved <= result.bound + 5e-6).all()


def test_small_moves_are_bounded_tightly() -> None:
    net = circuit(AutoNCP(32, sparsity=0.5), n_sensory=12, seed=1)
    result = sensitivity(net, episode(net), 0.001 * np.eye(12), step=10, n_steps=20)
    assert (result.ratio() < 1.1).all()
    assert (sensitivity(net, episode(net), 0.5 * np.eye(12), step=10, n_steps=20).ratio() < 6).all()


def test_by_hand() -> None:
    # v' = (1.5 v + 2 s - 0.2) / (2 + 2 s) with v = 0.6, s = 1/2: moved by epsilon, it moves by 2 (1 - v') / 3 * 3 / 4.
    net = one_neuron()
    result = sensitivity(net, recorded(net, *arrays([[0.0]], [0.6], [1.0])), np.full((1, 1), 1e-4), n_steps=5)
    after = 0.3 + 1 / 3 - 0.2 / 3
    np.testing.assert_allclose(result.bound, 2 * 2 * (1 - after) / 3 * 3 / 4 * 1e-4, rtol=1e-3)


def test_moves_that_go_together_are_bounded_together() -> None:
    """One observation behind all receptors moves the action less than receptors that move apart."""
    net = circuit()
    together = sensitivity(net, episode(net), np.full((1, 6), 0.02), n_steps=10)
    apart = sensitivity(net, episode(net), 0.02 * np.eye(6), n_steps=10)
    assert (together.bound[-1] < apart.bound[-1]).all()


def test_errors_and_ends() -> None:
    net = circuit()
    run = episode(net)
    assert len(sensitivity(net, run, np.eye(6), step=48, n_steps=10).bound) == 2
    with pytest.raises(ValueError, match=r"moves must be \(K, S\) with S = 6, got \(6, 5\)"):
        sensitivity(net, run, np.ones((6, 5)))
    with pytest.raises(ValueError, match="step must lie in the episode of 50 steps"):
        sensitivity(net, run, np.eye(6), step=50)
