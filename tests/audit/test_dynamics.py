"""Dynamics by hand on circuits of one or two neurons, and over real episodes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ncp_rl import FullyConnected
from ncp_rl.audit import audit_dynamics, step_response
from ncp_rl.audit.dynamics import action_slopes, disconnected, principal_components, saturation, tau_bounds
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode
from tests.audit.episodes import built, episode, pendulum, roll_out, run_episode, small_model


def with_potentials(circuit: Circuit, potentials: Any, **arrays: Any) -> Episode:
    potentials = np.array(potentials, np.float32)
    sensory = np.zeros((len(potentials), circuit.wiring.n_sensory), np.float32)
    return episode(circuit, 0, 0, dict(potentials=potentials, sensory=sensory) | arrays)


def test_time_constants_by_hand() -> None:
    # Neuron 0 hears the sensory input (w = 3) and neuron 1 (w = 2); neuron 1 hears nobody.
    circuit = built([[0, 0], [1, 0]], [[1, 0]], cm=2.0, gleak=0.5, w=2.0, sensory_w=3.0)
    bounds = tau_bounds(circuit)
    np.testing.assert_allclose(bounds.low, [2 / 5.5, 2 / 0.5], rtol=1e-6)
    np.testing.assert_allclose(bounds.high, [2 / 0.5, 2 / 0.5], rtol=1e-6)
    recorded = run_episode(circuit, np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32))
    assert not audit_dynamics(circuit, [recorded]).tau_violations.any()


def test_a_time_constant_outside_its_bounds_fails() -> None:
    circuit = built([[0, 0], [1, 0]], [[1, 0]])
    recorded = run_episode(circuit, np.ones((20, 1), np.float32))
    assert audit_dynamics(circuit, [recorded]).verdict().passed
    for wrong in (2 * recorded.tau, np.full_like(recorded.tau, np.nan)):
        verdict = audit_dynamics(circuit, [replace(recorded, tau=wrong)]).verdict()
        assert not verdict.passed and verdict.figures["dynamics_tau_violations"] >= 1
        assert "outside the bounds in" in verdict.sentence


def test_saturation_by_hand() -> None:
    # sigmoid(x) leaves [0.02, 0.98] where |x| > log(49) = 3.89; sigma = 1 and 10, mu = 0.
    circuit = built([[0, 0, 0], [1, 0, 0], [1, 0, 0]], [[1, 1, 1]], sigma=[1.0, 10.0], mu=0.0)
    potentials = [[0, 0, 0], [0, 1, 1], [0, -3.88, 0.38], [0, 3.90, -0.4]]
    share = saturation(circuit, [with_potentials(circuit, potentials)])
    assert math.isnan(share[0])
    np.testing.assert_allclose(share[1:], [1 / 4, 2 / 4])


def test_dead_neurons() -> None:
    # 1 -> 0 (motor); 2 -> 3, which reach no motor neuron; 1 never moves.
    circuit = built(
        [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], [[1, 0, 1, 0]], erev=1.0, sensory_erev=-1.0
    )
    np.testing.assert_array_equal(disconnected(circuit.wiring), [False, False, True, True])
    dynamics = audit_dynamics(circuit, [with_potentials(circuit, [[0, 0.3, 0, 0], [1, 0.3, 1, 1]])])
    np.testing.assert_array_equal(dynamics.silent, [False, True, False, False])
    verdict = dynamics.verdict()
    assert verdict.passed and "3 of 4 neurons do nothing (inter_0, inter_1, inter_2)" in verdict.sentence


def test_components_by_hand() -> None:
    circuit = built(np.zeros((3, 3)), np.ones((1, 3)), n_command=2)
    along = np.array([-1.0, 0, 0, 1])[:, None] * [0, 0.6, 0.8] + [0, 5, 5]
    components = principal_components(circuit, [with_potentials(circuit, along)])
    np.testing.assert_allclose(components.explained, [1, 0], atol=1e-6)
    np.testing.assert_allclose(np.abs(components.axes[0]), [0.6, 0.8], atol=1e-6)
    np.testing.assert_allclose(np.abs(components.projections[:, 0]), [1, 0, 0, 1], atol=1e-6)
    assert components.n_for_95_percent == 1 and components.watched.names == ("command_0", "command_1")
    still = principal_components(circuit, [with_potentials(circuit, np.ones((3, 3)))])
    assert still.n_for_95_percent == 0 and np.isnan(still.explained).all()
    assert still.projections.shape == (3, 2) and not still.projections.any()


def test_slopes_by_hand() -> None:
    circuit = built(np.zeros((4, 4)), np.ones((1, 4)), n_command=3)
    # The action is 2 command_0 + 1; command_1 has nothing to do with it; command_2 never moves.
    command = np.array([[0, 0, 3], [1, 1, 3], [2, 1, 3], [3, 0, 3]], np.float32)
    potentials = np.concatenate([np.zeros((4, 1)), command], axis=1)
    slopes = action_slopes(circuit, [with_potentials(circuit, potentials, action_mean=2 * command[:, :1] + 1)])
    np.testing.assert_allclose(slopes.slope, [[2, 0, np.nan]])
    np.testing.assert_allclose(slopes.r2, [[1, 0, np.nan]])


def test_step_response_of_one_neuron() -> None:
    # The synapse is shut below 0.5 and open above: v goes from 0 to w erev / (gleak + w) = 0.5, tau = cm / (gleak + w).
    values: dict[str, Any] = dict(
        cm=0.5, gleak=1.0, vleak=0.0, sensory_w=1.0, sensory_erev=1.0, sensory_sigma=1e4, sensory_mu=0.5
    )
    circuit = built([[0]], [[1]], elapsed_time=0.01, ode_unfolds=50, **values)
    response = step_response(circuit, "x_0", 1.0)
    np.testing.assert_allclose(response.potentials[:, 0], 0.5 * (1 - np.exp(-response.time / 0.25)), atol=1e-4)
    assert response.settled and abs(response.rest[0]) < 1e-6 and response.overshoot[0] == 0
    assert response.change[0] == pytest.approx(0.5, rel=1e-4)
    assert response.rise_time[0] == pytest.approx(0.25, rel=1e-3)
    assert response.slowest_mode == pytest.approx(0.25, rel=1e-3)
    # Exactly what the solver does with long substeps: a factor 1 / (1 + delta / tau) each.
    coarse = step_response(built([[0]], [[1]], elapsed_time=0.3, ode_unfolds=2, **values), 0, 1.0)
    factor = (1 + 0.15 / 0.25) ** -2
    np.testing.assert_allclose(coarse.potentials[:3, 0], 0.5 * (1 - factor ** np.arange(1, 4)), rtol=1e-5)
    assert coarse.slowest_mode == pytest.approx(-0.3 / math.log(factor), rel=1e-4)
    json.dumps(response.to_dict(), allow_nan=False)


def test_step_response_overshoots_where_inhibition_follows() -> None:
    # The input drives motor neuron 0 at once and, slowly, neuron 1, which holds neuron 0 back.
    circuit = built(
        [[0, 0], [-1, 0]],
        [[1, 1]],
        cm=[0.05, 2.0],
        gleak=1.0,
        vleak=0.0,
        sensory_w=1.0,
        sensory_sigma=1e4,
        sensory_mu=0.5,
        sensory_erev=1.0,
        w=2.0,
        sigma=20.0,
        mu=0.25,
        erev=0.0,
        elapsed_time=0.05,
    )
    response = step_response(circuit, "x_0", 1.0)
    # 0.5 before neuron 1 opens, 1 / (1 + 1 + 2) after; some leave it early or late.
    assert response.change[0] == pytest.approx(0.25, abs=0.01)
    assert 0.7 < response.overshoot[0] < 1.0
    assert response.rise_time[0] < 0.05 < response.rise_time[1]


def test_no_response_has_no_rise_time() -> None:
    response = step_response(built([[0]], [[0]], vleak=0.0), 0, 1.0, base=[0.3])
    assert math.isnan(response.rise_time[0]) and math.isnan(response.overshoot[0])
    assert response.to_dict()["rise_time"] == [None]


def test_step_response_refuses_what_is_not_there() -> None:
    circuit = built([[0]], [[1]])
    with pytest.raises(ValueError, match="no sensory input 'theta'; the 1 inputs are x_0"):
        step_response(circuit, "theta", 1.0)
    with pytest.raises(ValueError, match="no sensory input 1"):
        step_response(circuit, 1, 1.0)
    with pytest.raises(ValueError, match=r"base must be \(S,\) = \(1,\), got \(2,\)"):
        step_response(circuit, 0, 1.0, base=[0, 0])


@pytest.mark.parametrize("recipe", [None, FullyConnected(6)])
def test_real_episodes(recipe: Any) -> None:
    venv = pendulum(n_envs=4, n_steps=60)
    model = small_model(venv, recipe) if recipe else small_model(venv)
    circuit = Circuit.from_policy(model.policy)  # type: ignore[arg-type]
    episodes = roll_out(model, venv, 8)
    dynamics = audit_dynamics(circuit, episodes)
    low, high = dynamics.box
    assert (low <= dynamics.low).all() and (dynamics.high <= high).all()
    assert dynamics.components.projections.shape == (480, 3)
    assert dynamics.components.explained.sum() == pytest.approx(1.0)
    assert dynamics.verdict().passed
    assert len(json.dumps(dynamics.to_dict(), allow_nan=False)) < 20_000


def test_recordings_to_refuse() -> None:
    circuit = built([[0]], [[1]])
    with pytest.raises(ValueError, match="At least one episode"):
        audit_dynamics(circuit, [])
    with pytest.raises(ValueError, match="must be finite"):
        audit_dynamics(circuit, [with_potentials(circuit, [[np.nan]])])
