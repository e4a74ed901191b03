"""CfC neurons beside ncps' own, and within the policy that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ncps.torch
import ncps.wirings
import numpy as np
import onnxruntime
import pytest
import torch
from sb3_contrib import RecurrentPPO

from ncp_rl import LTC, NCP, AutoNCP, CfC, FullyConnected, Random, Wiring
from ncp_rl.cell import RecurrentCell
from ncp_rl.cores import CELLS
from ncp_rl.wiring import Recipe
from tests.random_env import box
from tests.recording.recordings import pendulum, random_model

MODES = ("default", "no_gate", "pure")
WIRINGS: dict[str, Any] = {
    "auto": lambda: ncps.wirings.AutoNCP(12, 3),
    "ncp": lambda: ncps.wirings.NCP(5, 4, 2, 3, 2, 3, 2),
    "full": lambda: ncps.wirings.FullyConnected(7, 2),
    "random": lambda: ncps.wirings.Random(7, 2),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WIRINGS)
def test_ncps_weights_give_ncps_numbers(name: str, mode: str) -> None:
    """Over 50 steps of irregular length, potential by potential."""
    torch.manual_seed(0)
    theirs = ncps.torch.CfC(5, WIRINGS[name](), mode=mode)
    ours = CfC.from_ncps(theirs)
    cell, units = theirs.rnn_cell, ours.wiring.units
    inputs, seconds = torch.randn(50, 4, 5), torch.rand(50, 4) * 3
    # ncps keeps potentials layer by layer, inter neurons first.
    order = np.concatenate([cell._wiring.get_neurons_of_layer(layer) for layer in range(cell.num_layers)]).tolist()
    state = torch.randn(4, units)
    expected, theirs_state = [], state[:, order]
    with torch.no_grad():
        for x, t in zip(inputs, seconds, strict=True):
            _, theirs_state = cell(x, theirs_state, t[:, None])
            expected.append(theirs_state)
        potentials, last = ours(inputs, state, None, seconds)
    np.testing.assert_allclose(potentials[..., order], torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert torch.equal(last, potentials[-1])


def test_without_elapsed_times_a_step_lasts_the_layers_own() -> None:
    """The step is the unit of time, whatever its length."""
    wiring, inputs = AutoNCP(12).build(5, 2), torch.randn(6, 3, 5)
    for seconds in (1.0, 0.05, 0.1, 1 / 3, 7.3):
        cfc = CfC(wiring, elapsed_time=seconds)
        with torch.no_grad():
            assert torch.equal(cfc(inputs)[0], cfc(inputs, None, None, torch.full((6, 3), seconds))[0])
    theirs = ncps.torch.CfC(5, ncps.wirings.AutoNCP(12, 2), batch_first=False)
    with torch.no_grad():
        motor = CfC.from_ncps(theirs)(inputs)[0][..., :2]
        np.testing.assert_allclose(motor, theirs(inputs)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("recipe", [AutoNCP(9), FullyConnected(5)], ids=["layers", "one layer"])
def test_resets_and_held_steps_are_inside(recipe: Recipe, mode: Any) -> None:
    torch.manual_seed(0)
    cfc = CfC(recipe.build(4, 2), mode=mode)
    inputs, seconds = torch.randn(8, 3, 4), torch.rand(8, 3) + 0.1
    starts = torch.zeros(8, 3)
    starts[5, 1] = 1
    seconds[3, 2] = -0.0
    with torch.no_grad():
        whole, _ = cfc(inputs, None, starts, seconds)
        state, steps = None, []
        for t in range(8):
            after, state = cfc(inputs[t : t + 1], state, starts[t : t + 1], seconds[t : t + 1])
            steps.append(after[0])
        torch.testing.assert_close(whole, torch.stack(steps), atol=1e-6, rtol=1e-5)
        fresh, _ = cfc(inputs[5:, 1:2], None, None, seconds[5:, 1:2])
    torch.testing.assert_close(whole[5:, 1:2], fresh, atol=1e-6, rtol=1e-5)
    assert torch.equal(whole[3, 2], whole[2, 2]) and not torch.equal(whole[3, 1], whole[2, 1])


def test_gradients_reach_every_parameter_and_cross_no_episode() -> None:
    torch.manual_seed(0)
    for mode in MODES:
        cfc = CfC(AutoNCP(9).build(4, 2), mode=mode).double()  # type: ignore[arg-type]
        inputs = torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True)
        state = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
        seconds = torch.rand(4, 2, dtype=torch.float64) + 0.1
        seconds.requires_grad_()
        starts = torch.zeros(4, 2)
        starts[2, 0] = 1
        operands = (inputs, state, seconds)
        assert torch.autograd.gradcheck(lambda x, v, s, cfc=cfc, starts=starts: cfc(x, v, starts, s)[0], operands)
        cfc.motor_map(cfc(inputs, state, starts, seconds)[0][-1]).sum().backward()
        assert inputs.grad is not None and state.grad is not None
        assert not inputs.grad[:2, 0].any() and inputs.grad[2:, 0].any() and inputs.grad[:2, 1].any()
        assert not state.grad[0].any() and state.grad[1].any()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in cfc.parameters())


def test_wired_maps_read_by_the_wiring() -> None:
    """What no synapse reaches has no part in f and g; the gates read the whole layer before, as in ncps."""
    torch.manual_seed(0)
    cfc = CfC(NCP(6, 4, 1, 1, 1, 1).build(3, 2), mode="pure")
    inputs = torch.randn(1, 1, 3, requires_grad=True)
    potentials, _ = cfc(inputs)
    for neuron in range(*cfc.wiring.inter.indices(cfc.wiring.units)):
        (gradient,) = torch.autograd.grad(potentials[0, 0, neuron], inputs, retain_graph=True)
        assert ((gradient[0, 0] != 0).numpy() == (cfc.wiring.sensory_adjacency[:, neuron] != 0)).all()


def test_what_no_layer_can_hear_is_refused() -> None:
    wiring = AutoNCP(9).build(4, 2)
    skipping = wiring.adjacency.copy()
    skipping[wiring.inter.start, 0] = 1
    with pytest.raises(ValueError, match=r"a synapse from inter_0 to motor_0\. Use NCP"):
        CfC(Wiring(skipping, wiring.sensory_adjacency, 2, wiring.n_command))
    senses = wiring.sensory_adjacency.copy()
    senses[3, 1] = -1
    with pytest.raises(ValueError, match="a synapse from sensory_3 to motor_1"):
        CfC(Wiring(wiring.adjacency, senses, 2, wiring.n_command))
    assert CfC(Random(9, 0.5).build(4, 2)).hidden_size == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(elapsed_time=0.0), "elapsed_time must be positive"),
        (dict(mode="fast"), "mode must be one of default, no_gate, pure, got 'fast'"),
    ],
)
def test_arguments_that_make_no_sense(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CfC(AutoNCP(9).build(4, 2), **arguments)


def test_operands_that_do_not_fit() -> None:
    cfc, inputs = CfC(AutoNCP(9).build(4, 2)), torch.zeros(5, 3, 4)
    for operands, message in (
        ((inputs[..., :3],), r"inputs must be \(T, N, S\) with S = 4"),
        ((inputs, torch.zeros(3, 8)), r"state must be \(N, U\) = \(3, 9\)"),
        ((inputs, None, torch.zeros(3, 5)), r"episode_starts must be \(T, N\) = \(5, 3\), got \(3, 5\)"),
        ((inputs, None, None, torch.zeros(5)), r"elapsed_time must be \(T, N\)"),
        ((inputs, None, None, torch.full((5, 3), -1.0)), "not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            cfc(*operands)


def test_modules_of_ncps_that_are_more_than_a_wired_cfc() -> None:
    wiring = ncps.wirings.AutoNCP(12, 3)
    for module, message in (
        (ncps.torch.CfC(5, 12), "wired CfCs only"),
        (ncps.torch.CfC(5, wiring, mixed_memory=True), "mixed_memory"),
        (ncps.torch.CfC(5, wiring, proj_size=2), "proj_size"),
    ):
        with pytest.raises(ValueError, match=message):
            CfC.from_ncps(module)


def test_weights_of_another_circuit_are_refused() -> None:
    wiring = AutoNCP(12, seed=1).build(5, 2)
    state = CfC(wiring).state_dict()
    CfC(wiring).load_state_dict(state)
    for other, message in (
        (CfC(AutoNCP(12, seed=2).build(5, 2)), "wiring must be that with the digest"),
        (CfC(wiring, mode="no_gate"), "mode must be 'no_gate', got 'default'"),
        (CfC(wiring, elapsed_time=0.1), "elapsed_time must be 0.1, got 1.0"),
        (LTC(wiring), "another kind of neurons"),
    ):
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(state)


@pytest.mark.parametrize("kind", CELLS.values())
def test_every_cell_keeps_to_the_protocol(kind: type[RecurrentCell]) -> None:
    wiring = AutoNCP(12).build(5, 2)
    build: Any = kind
    cell: RecurrentCell = build(wiring, motor_map=True, elapsed_time=0.1)
    assert isinstance(cell, RecurrentCell) and isinstance(cell, torch.nn.Module)
    assert (cell.input_size, cell.hidden_size, cell.num_layers) == (5, 12, 1)
    again = kind.from_settings(wiring, cell.settings() | (dict(backend="auto") if kind is LTC else {}))
    assert again.settings() == cell.settings() and again.elapsed_time == 0.1
    inputs = torch.randn(3, 2, 5)
    with torch.no_grad():
        held = cell(inputs, torch.ones(2, 12), None, torch.full((3, 2), -0.0))[0]
    assert torch.equal(held, torch.ones(3, 2, 12))
    values = np.zeros((4, 5), np.float32), np.zeros((4, 12), np.float32)
    if cell.has_time_constants:
        assert cell.time_constants(*values).shape == (4, 12)
    else:
        with pytest.raises(ValueError, match="no time constants"):
            cell.time_constants(*values)


def test_a_policy_of_cfc_neurons_learns_saves_and_loads(tmp_path: Path) -> None:
    """The stock RecurrentPPO, actions that are motor neurons, an optimizer with the cell's steps."""
    model, venv = pendulum(2, policy_kwargs=dict(cell="cfc", cell_kwargs=dict(mode="no_gate")))
    policy: Any = model.policy
    assert isinstance(policy.lstm_actor, CfC) and isinstance(policy.lstm_critic, CfC)
    assert policy.action_net is policy.lstm_actor.motor_map and policy.lstm_actor.elapsed_time == 0.05
    assert [group["lr_scale"] for group in policy.optimizer.param_groups] == [CfC.lr_scale, 1.0]
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    model.learn(192)
    moved = [name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])]
    assert set(moved) == set(before)
    model.save(tmp_path / "model")
    loaded: Any = RecurrentPPO.load(tmp_path / "model", env=venv, device="cpu")
    assert loaded.policy.lstm_actor.mode == "no_gate"
    observations = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    expected, state = model.predict(observations, deterministic=True)
    found, again = loaded.predict(observations, deterministic=True)
    np.testing.assert_array_equal(found, expected)
    assert state is not None and again is not None
    np.testing.assert_array_equal(state[0], again[0])
    loaded.learn(64)


@pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
)
def test_exported_controllers_compute_the_same(tmp_path: Path) -> None:
    """As plain operators, at times that the caller gives."""
    cfc = CfC(AutoNCP(12).build(5, 2), elapsed_time=0.1).eval()
    operands = torch.randn(1, 3, 5), torch.randn(3, 12), None, torch.rand(1, 3)
    expected = [tensor.detach().numpy() for tensor in cfc(*operands)]
    for found, wanted in zip(torch.export.export(cfc, operands).module()(*operands), expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-6, atol=1e-6)
    path = tmp_path / "cfc.onnx"
    torch.onnx.export(cfc, operands, path, dynamo=False)
    session = onnxruntime.InferenceSession(path)
    given = [operand.numpy() for operand in operands if operand is not None]
    found = session.run(None, dict(zip([entry.name for entry in session.get_inputs()], given, strict=True)))
    for values, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)


def test_bad_readings_hold_cfc_neurons_too() -> None:
    model, _ = pendulum(2, normalize=False, policy_kwargs=dict(cell="cfc"), n_steps=8)
    policy: Any = model.policy
    policy.on_bad_input = "hold"
    action, state = model.predict(np.ones((2, 2), np.float32), deterministic=True)
    reading = np.array([[np.nan, 1.0], [0.5, 1.0]], np.float32)
    held, after = model.predict(reading, state, np.zeros(2), deterministic=True)
    assert state is not None and after is not None
    np.testing.assert_array_equal(held[0], action[0])
    np.testing.assert_array_equal(after[0][0, 0], state[0][0, 0])
    assert (after[0][0, 1] != state[0][0, 1]).all()


@pytest.mark.parametrize(
    ("critic", "kinds"),
    [("cell", ("cfc", "cfc")), ("ltc", ("cfc", "ltc")), ("cfc", ("cfc", "cfc")), (FullyConnected(12), ("cfc", "cfc"))],
    ids=str,
)
def test_the_critics_cell(critic: Any, kinds: tuple[str, str]) -> None:
    model, _ = random_model(box(3), box(2), policy_kwargs=dict(cell="cfc", critic=critic))
    policy: Any = model.learn(32).policy
    assert (policy.lstm_actor.cell, policy.lstm_critic.cell) == kinds
    if critic == "ltc":
        assert policy.lstm_critic.input_w is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(cell="gru"), "cell must be one of 'ltc', 'cfc', or a class, got 'gru'"),
        (dict(cell="cfc", ode_unfolds=4), "Only LTC neurons take the argument ode_unfolds, and the cell is CfC"),
        (dict(cell="cfc", cell_kwargs=dict(mode="fast")), "mode must be one of"),
    ],
)
def test_cells_that_there_are_not(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_model(box(3), box(2), policy_kwargs=kwargs)


def test_a_class_of_the_users() -> None:
    class Slow(CfC):
        lr_scale = 0.5

    model, _ = random_model(box(3), box(2), policy_kwargs=dict(cell=Slow))
    policy: Any = model.learn(32).policy
    assert type(policy.lstm_actor) is type(policy.lstm_critic) is Slow
    assert policy.optimizer.param_groups[0]["lr_scale"] == 0.5
    explicit, _ = random_model(
        box(3), box(2), policy_kwargs=dict(cell=Slow, optimizer_kwargs=dict(lr_scale=2.0, eps=1e-12))
    )
    assert explicit.policy.optimizer.param_groups[0]["lr_scale"] == 2.0
