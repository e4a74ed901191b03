"""The actor alone: it computes what the policy does, and its files give it back, or are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ncp_rl import AutoNCP, CfC
from ncp_rl import circuit as module
from ncp_rl.circuit import Circuit
from tests.random_env import box
from tests.recording.recordings import random_model, trained_pendulum

#: Policies whose actors differ in kind, by what makes them.
ACTORS: dict[str, dict[str, Any]] = {
    "ltc": dict(),
    "ltc, dense": dict(motor_map="dense", n_motor=3),
    "ltc, reference": dict(backend="reference", ode_unfolds=3),
    "cfc": dict(cell="cfc"),
    "cfc, dense": dict(cell="cfc", cell_kwargs=dict(mode="no_gate"), motor_map="dense"),
    "cfc, pure": dict(cell="cfc", cell_kwargs=dict(mode="pure")),
}


def policy_of(name: str) -> Any:
    model, _ = random_model(box(3), box(2), policy_kwargs=dict(elapsed_time=0.1) | ACTORS[name])
    model.learn(16)  # No number is what it was at the beginning.
    return model.policy


@pytest.fixture(params=ACTORS)
def policy(request: pytest.FixtureRequest) -> Any:
    return policy_of(request.param)


def inputs(circuit: Circuit, n_steps: int = 20, seed: int = 0) -> tuple[Any, Any, Any]:
    """Sensory inputs, potentials and seconds."""
    rng, wiring = np.random.default_rng(seed), circuit.wiring
    sensory = rng.normal(size=(n_steps, wiring.n_sensory)).astype(np.float32)
    start = rng.normal(size=wiring.units).astype(np.float32)
    return sensory, start, rng.uniform(0.01, 0.3, n_steps).astype(np.float32)


def test_a_circuit_computes_what_its_policy_does(policy: Any) -> None:
    circuit = Circuit.from_policy(policy)
    sensory, start, seconds = inputs(circuit)
    with torch.no_grad():
        operands = (torch.from_numpy(array) for array in (sensory[:, None], start[None], seconds[:, None]))
        x, v, elapsed = operands
        potentials, _ = policy.lstm_actor(x, v, None, elapsed)
        means = policy.action_net(potentials)[:, 0].numpy()
    np.testing.assert_allclose(circuit.run(sensory, start, seconds), potentials[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(circuit.action_means(potentials[:, 0].numpy()), means, rtol=1e-5, atol=1e-6)
    affine = potentials[:, 0, : circuit.wiring.n_motor].numpy() @ circuit.readout.T + circuit.bias
    np.testing.assert_allclose(affine, means, rtol=1e-4, atol=1e-5)
    assert circuit.sensory_names == policy.sensory_names
    assert circuit.action_names == ("action_0", "action_1") and circuit.cell == policy.lstm_actor.cell


def test_steps_side_by_side_are_those_of_a_run(policy: Any) -> None:
    circuit = Circuit.from_policy(policy)
    sensory, start, seconds = inputs(circuit)
    whole = circuit.run(sensory, start, seconds)
    before = np.concatenate([start[None], whole[:-1]])
    np.testing.assert_allclose(circuit.step(sensory, before, seconds), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ltc", "cfc"])
def test_long_runs_go_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = Circuit.from_policy(policy_of(name))
    operands = inputs(circuit)
    whole = circuit.run(*operands, width=4, row=3)
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 500)
    np.testing.assert_array_equal(circuit.run(*operands, width=4, row=3), whole)


def test_it_comes_back_bit_for_bit_without_random_numbers(policy: Any) -> None:
    circuit = Circuit.from_policy(policy)
    tensors, settings = circuit.save()
    assert b"_extra_state" not in tensors
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    again = Circuit.load(tensors, settings)
    assert torch.equal(torch.rand(1), expected)
    operands = inputs(circuit)
    potentials = circuit.run(*operands)
    np.testing.assert_array_equal(again.run(*operands), potentials)
    np.testing.assert_array_equal(again.action_means(potentials), circuit.action_means(potentials))
    assert again.save() == (tensors, settings)
    assert type(again.core) is type(circuit.core) and again.core.settings() == circuit.core.settings()
    assert torch.equal(again.core.state_dict()["_extra_state"], circuit.core.state_dict()["_extra_state"])
    own, loaded = circuit.parameters(), again.parameters()
    assert own.keys() == loaded.keys() and all(np.array_equal(own[name], loaded[name]) for name in own)


def test_it_shares_the_policys_parameters() -> None:
    policy = policy_of("ltc")
    circuit = Circuit.from_policy(policy)
    operands = inputs(circuit)
    before = circuit.run(*operands)
    with torch.no_grad():
        policy.lstm_actor.vleak += 1.0
    assert not np.allclose(circuit.run(*operands), before)


def test_time_constants_are_of_cells_that_have_them() -> None:
    sensory, start, _ = inputs(circuit := Circuit.from_policy(policy_of("ltc")))
    tau = circuit.time_constants(sensory, np.repeat(start[None], len(sensory), axis=0))
    assert tau.shape == (20, 12) and (tau > 0).all()
    other = Circuit.from_policy(policy_of("cfc"))
    with pytest.raises(ValueError, match="CfC neurons have no time constants"):
        other.time_constants(sensory, np.zeros((20, 12), np.float32))
    with pytest.raises(ValueError, match="Only circuits of LTC neurons have this; the circuit's neurons are CfC"):
        _ = other.ltc


def test_circuits_without_a_name_of_their_cell_are_ltc() -> None:
    """Such were all, before there were others."""
    circuit = Circuit.from_policy(policy_of("ltc"))
    tensors, settings = circuit.save()
    entries = json.loads(settings)
    assert entries.pop("cell") == "ltc"
    again = Circuit.load(tensors, json.dumps(entries).encode())
    np.testing.assert_array_equal(again.run(*inputs(circuit)), circuit.run(*inputs(circuit)))


ENTRIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown cell": ("ltc", dict(cell="gru"), "the cell must be one of ltc, cfc, got 'gru'"),
    "cell that is a list": ("ltc", dict(cell=[]), "the cell must be one of"),
    "cell of other weights": ("ltc", dict(cell="cfc"), "the settings must be mode, elapsed_time"),
    "format": ("ltc", dict(format=2), "the format must be 1, got 2"),
    "no time": ("cfc", dict(elapsed_time=0), "elapsed_time must be positive seconds"),
    "time that is a text": ("ltc", dict(elapsed_time="a"), "elapsed_time must be positive seconds"),
    "unfolds": ("ltc", dict(ode_unfolds=10**6), "ode_unfolds must be an integer from 1 to 1000"),
    "backend": ("ltc", dict(backend="evil"), "backend must be one of"),
    "mode": ("cfc", dict(mode=["default"]), "mode must be one of default, no_gate, pure"),
    "mode of other weights": ("cfc", dict(mode="pure"), "Error.s. in loading state_dict for CfC"),
    "wiring": ("cfc", dict(wiring={}), "A description of a wiring must have the keys"),
    "more": ("cfc", dict(backend="auto"), "the settings must be mode, elapsed_time, got"),
    "names": ("ltc", dict(action_names=["a"]), "must fit"),
    "names that are none": ("ltc", dict(sensory_names=[1]), "sensory_names must be a list of texts"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_settings_that_no_circuit_has(name: str) -> None:
    actor, changes, message = ENTRIES[name]
    tensors, settings = Circuit.from_policy(policy_of(actor)).save()
    with pytest.raises(ValueError, match=f"The circuit's files do not describe a circuit: .*{message}"):
        Circuit.load(tensors, json.dumps(json.loads(settings) | changes).encode())


@pytest.mark.parametrize("actor", ["ltc", "cfc"])
def test_files_that_no_circuit_has(actor: str) -> None:
    tensors, settings = Circuit.from_policy(policy_of(actor)).save()
    for broken in (b"{}", b"[]", settings[:-3], b"\xff"):
        with pytest.raises(ValueError, match="files do not describe a circuit"):
            Circuit.load(tensors, broken)
    for broken in (b"", tensors[:100], tensors[:-4]):
        with pytest.raises(ValueError, match="tensors are damaged"):
            Circuit.load(broken, settings)
    loaded = safetensors.torch.load(tensors)
    first = next(name for name in loaded if name.startswith(f"{actor}."))
    for changes, message in (
        ({first: loaded[first].double()}, "must be float32"),
        ({first: loaded[first].flatten()[:-1]}, "size mismatch"),
        ({f"{actor}.more": torch.zeros(1)}, "Unexpected key"),
        ({"readout": torch.zeros(1, 1)}, "must fit"),
        ({"dense.weight": torch.zeros(1, 1), "dense.bias": torch.zeros(1)}, "the dense layer must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Circuit.load(safetensors.torch.save(loaded | changes), settings)
    del loaded[first]
    with pytest.raises(ValueError, match="Missing key"):
        Circuit.load(safetensors.torch.save(loaded), settings)


def test_bits_of_a_rollout_need_as_many_environments() -> None:
    """The kernels of LTC neurons are as wide as a lane at most; matrices of CfC neurons have as many rows as given."""
    ltc = Circuit.from_policy(trained_pendulum()[0].policy).core  # type: ignore[arg-type]
    assert [ltc.equal_bits_width(width) for width in (1, 3, 1000)][:2] == [1, 3] and ltc.equal_bits_width(1000) < 1000
    assert CfC(AutoNCP(9).build(4, 2)).equal_bits_width(1000) == 1000
