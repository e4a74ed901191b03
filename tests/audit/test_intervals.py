import numpy as np
import pytest
import torch

from ncp_rl import AutoNCP, FullyConnected
from ncp_rl.audit.cell import Cell
from ncp_rl.audit.intervals import Means, Range, reach
from tests.audit.circuits import circuit, episode


@pytest.mark.parametrize("recipe", [AutoNCP(20, sparsity=0.3), FullyConnected(5)])
def test_reach_holds_every_step_and_is_sharp(recipe: AutoNCP) -> None:
    """A substep's range is attained: each end by the weights that the switch point names, tried here by brute force."""
    net = circuit(recipe, ode_unfolds=1)
    means, rng = Means(Cell.of(net)), np.random.default_rng(0)
    units, n_sensory = net.wiring.units, net.wiring.n_sensory
    low = rng.uniform(-1, 0.5, units)
    potentials = Range(low, low + rng.uniform(0, 1, units))
    x_low = rng.uniform(-1, 0.5, n_sensory)
    sensory = Range(x_low, x_low + rng.uniform(0, 1, n_sensory))
    after = reach(means, potentials, sensory, 0.7)
    picks = rng.random((20_000, units + n_sensory))
    picks[10_000:] = picks[10_000:].round()
    v = low + picks[:, :units] * (potentials.high - low)
    x = x_low + picks[:, units:] * (sensory.high - x_low)
    reached = reach(means, Range(v, v), Range(x, x), np.full(20_000, 0.7)).low
    np.testing.assert_array_less(after.low - 1e-12, reached.min(0))
    np.testing.assert_array_less(reached.max(0), after.high + 1e-12)
    width = (reached.max(0) - reached.min(0)) / (after.high - after.low)
    assert np.median(width) > 0.7


def test_the_switch_point_by_hand() -> None:
    """Values 1 and -1, weights in [1, 3], and a leak of weight 1 at 0: at most (3 - 1) / 5, at least (1 - 3) / 5."""
    net = circuit(FullyConnected(1, seed=1), n_sensory=2, n_motor=1)
    values = {"sensory_sigma": 1.0, "sensory_mu": 0.0, "vleak": 0.0, "w": -300.0}
    with torch.no_grad():
        for name, value in values.items():
            getattr(net.ltc, name).fill_(value)
        net.ltc.sensory_w.fill_(np.log(np.expm1(4.0)))
        net.ltc.gleak.fill_(np.log(np.expm1(1.0)))
        net.ltc.sensory_erev.copy_(torch.tensor([1.0, -1.0]))
    quarter = np.log(1 / 3)  # sigmoid gives 1/4 there, and 3/4 at its negative.
    x = Range(np.full(2, quarter), np.full(2, -quarter))
    at_zero = Range(np.zeros(1), np.zeros(1))
    drawn_to = Means(Cell.of(net)).range(at_zero, x, at_zero, np.zeros(1), 1.0)
    np.testing.assert_allclose([drawn_to.low[0], drawn_to.high[0]], [-0.4, 0.4], rtol=1e-6)


def test_equal_ends_give_the_solver_itself() -> None:
    net = circuit()
    run = episode(net, 1)
    v, x = run.start.astype(np.float64), run.sensory[0].astype(np.float64)
    after = reach(Means(Cell.of(net)), Range(v, v), Range(x, x), float(run.elapsed_time[0]))
    np.testing.assert_allclose(after.low, after.high, atol=1e-14)
    np.testing.assert_allclose(after.low, run.potentials[0], atol=1e-6)
