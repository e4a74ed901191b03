"""The equations as NumPy, the compiled kernel, the solver and the report's page have them: one and the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ncp_rl import LTC, AutoNCP, equations
from ncp_rl.audit import audit_dynamics
from ncp_rl.audit.cell import Cell
from ncp_rl.audit.dynamics import tau_bounds
from ncp_rl.kernels import EPSILON
from tests.audit.circuits import circuit as random_circuit
from tests.audit.episodes import built, run_episode


def test_by_hand() -> None:
    one, three = np.ones(1), np.array([3.0])
    assert equations.openness(one * 0.3, one * 5, one * 0.3) == 0.5
    np.testing.assert_allclose(equations.openness(one, 2 * one, one / 2), 1 / (1 + np.exp(-1.0)), rtol=1e-15)
    # Nothing overflows.
    np.testing.assert_array_equal(equations.openness(np.array([-1e5, 1e5]), np.full(2, 8.0), np.zeros(2)), [0, 1])
    np.testing.assert_allclose(equations.conductance(one / 2, 2 * one), 2.5 + EPSILON, rtol=1e-15)
    assert equations.time_constant(three, 2 * one) == 1.5


def test_a_neuron_with_all_synapses_shut_keeps_within_its_bounds() -> None:
    """Next to no leak, and a synapse without conductance: what is left is epsilon, ten times the leak."""
    circuit = built([[0]], [[1]], cm=1.0, gleak=1e-9, sensory_w=0.0, elapsed_time=0.05)
    episode = run_episode(circuit, np.ones((20, 1), np.float32))
    tau = circuit.time_constants(episode.sensory, episode.potentials)
    np.testing.assert_allclose(tau, 1 / (1e-9 + EPSILON), rtol=1e-6)
    bounds = tau_bounds(circuit)
    assert (tau <= bounds.high * (1 + 1e-6)).all() and (tau >= bounds.low * (1 - 1e-6)).all()
    verdict = audit_dynamics(circuit, [replace(episode, tau=tau)]).verdict()
    assert verdict.passed, verdict


def test_the_compiled_kernel_is_the_audits_algebra() -> None:
    circuit = random_circuit()
    rng = np.random.default_rng(0)
    sensory, potentials = (rng.normal(size=(3, 7, n)).astype(np.float32) for n in (6, circuit.wiring.units))
    cell = Cell.of(circuit)
    opened, sensory_opened = (
        cell.synapses.openness(potentials.astype(float)),
        cell.sensory.openness(sensory.astype(float)),
    )
    total = cell.conductance(opened, sensory_opened)
    tau = circuit.time_constants(sensory, potentials)
    assert tau.dtype == np.float32 and tau.shape == potentials.shape
    np.testing.assert_allclose(tau, equations.time_constant(cell.cm, total), rtol=5e-6)


def test_the_solver_moves_by_the_same_conductance() -> None:
    """Where nothing pulls (erev = vleak = 0), a substep leaves cm / (cm + delta G) of a potential."""
    torch.manual_seed(0)
    ltc = LTC(AutoNCP(12).build(5, 2), input_map=False, ode_unfolds=1, elapsed_time=0.3, backend="reference").double()
    with torch.no_grad():
        for name in ("erev", "sensory_erev", "vleak"):
            getattr(ltc, name).zero_()
        inputs, state = torch.randn(1, 4, 5).double(), torch.rand(4, 12).double() + 0.1
        after = ltc(inputs, state)[1]
        synaptic, sensory, (cm, gleak, _) = (rows.numpy() for rows in ltc.packed().params)
    values = np.concatenate([state.numpy(), inputs[0].numpy()], axis=1)
    between, senses = ltc.wiring.synapses, ltc.wiring.sensory_synapses
    w, sigma, mu, _ = np.concatenate([synaptic, sensory], axis=1)
    source = np.concatenate([between.source, 12 + senses.source])
    destination = np.concatenate([between.destination, senses.destination])
    opened = equations.openness(values[:, source], sigma, mu)
    total = equations.conductance(gleak, (w * opened) @ (destination[:, None] == np.arange(12)))
    np.testing.assert_allclose(after.numpy(), state.numpy() * cm / (cm + 0.3 * total), rtol=1e-6)
