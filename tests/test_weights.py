"""A policy acts with the weights that it has, whichever way they came, and takes those of its own circuit alone."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel

from ncp_rl import LTC, AutoNCP, NCPPolicy
from ncp_rl.kernels import FrozenParams
from tests.random_env import RandomEnv, box

Floats = npt.NDArray[np.float32]
#: So wide that no action is clipped, which would hide a difference.
ACTIONS = spaces.Box(-1e3, 1e3, (2,), np.float32)
OBSERVATIONS = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)


def new_policy(seed: int = 0, **kwargs: Any) -> NCPPolicy:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = dict(wiring=AutoNCP(12), critic="mlp") | kwargs
    policy = NCPPolicy(box(3), ACTIONS, lambda _: 3e-2, **arguments)
    policy.set_training_mode(False)
    return policy


def actor(policy: NCPPolicy) -> LTC:
    assert isinstance(policy.lstm_actor, LTC)
    return policy.lstm_actor


def act(policy: Any, observations: Floats = OBSERVATIONS) -> Floats:
    """Actions over four steps of one sequence."""
    actions, state = [], None
    for observation in observations:
        action, state = policy.predict(observation, state, deterministic=True)
        actions.append(action)
    return np.stack(actions)


def vector(policy: NCPPolicy) -> Tensor:
    return nn.utils.parameters_to_vector(policy.parameters()).detach() + 0.3


def step_of(
    optimizer_class: type[torch.optim.Optimizer], lr: float = 0.1, **kwargs: Any
) -> Callable[[NCPPolicy], None]:
    def step(policy: NCPPolicy) -> None:
        optimizer = optimizer_class(policy.parameters(), lr=lr, **kwargs)  # type: ignore[call-arg]
        zeros = torch.zeros(1, 4, 12)
        states = RNNStates((zeros, zeros), (zeros, zeros))
        observations = torch.from_numpy(OBSERVATIONS)
        _, log_prob, _ = policy.evaluate_actions(observations, torch.ones(4, 2), states, torch.zeros(4))
        log_prob.sum().backward()
        optimizer.step()

    return step


def edit_data(policy: NCPPolicy) -> None:
    for parameter in policy.parameters():
        parameter.data.add_(0.2)


def replace_data(policy: NCPPolicy) -> None:
    for parameter in policy.parameters():
        parameter.data = parameter.data + 0.2


def edit_in_numpy(policy: NCPPolicy) -> None:
    for parameter in policy.parameters():
        parameter.detach().numpy()[...] += 0.2


def edit_one_ulp_times_many(policy: NCPPolicy) -> None:
    actor(policy).cm.data[-1] += 1e-3


def new_parameters(policy: NCPPolicy) -> None:
    ltc = actor(policy)
    for name, parameter in list(ltc.named_parameters(recurse=False)):
        setattr(ltc, name, nn.Parameter(parameter.detach() + 0.2))


def swap_neurons_parameters(policy: NCPPolicy) -> None:
    """The same tensors in each other's place: neither versions nor the set of addresses tell."""
    ltc = actor(policy)
    ltc.vleak, ltc.cm = ltc.cm, ltc.vleak


def share_and_edit(policy: NCPPolicy) -> None:
    policy.share_memory()
    edit_in_numpy(policy)


def double_and_back(policy: NCPPolicy) -> None:
    policy.double()
    edit_data(policy)
    policy.float()


CHANGES: dict[str, Callable[[NCPPolicy], object]] = {
    "load_from_vector": lambda policy: policy.load_from_vector(vector(policy).numpy()),
    "vector_to_parameters": lambda policy: nn.utils.vector_to_parameters(vector(policy), policy.parameters()),
    "load_state_dict": lambda policy: policy.load_state_dict(new_policy(1).state_dict()),
    "load_state_dict, assign": lambda policy: policy.load_state_dict(new_policy(1).state_dict(), assign=True),
    "data": edit_data,
    "data replaced": replace_data,
    "numpy": edit_in_numpy,
    "one number": edit_one_ulp_times_many,
    "new parameters": new_parameters,
    "parameters swapped": swap_neurons_parameters,
    "shared memory": share_and_edit,
    "double and back": double_and_back,
    "Adam": step_of(torch.optim.Adam),
    "Adam, fused": step_of(torch.optim.Adam, fused=True),
    "Adam, foreach": step_of(torch.optim.Adam, foreach=True),
    "SGD, fused": step_of(torch.optim.SGD, lr=1e-8, fused=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_actions_are_those_of_a_fresh_policy_with_the_same_weights(change: Callable[[NCPPolicy], object]) -> None:
    """Three changes in a row with predictions between them: memory that a change frees is soon used again."""
    policy = new_policy()
    for _ in range(3):
        before = act(policy)
        change(policy)
        fresh = new_policy(2)
        fresh.load_state_dict(policy.state_dict())
        np.testing.assert_array_equal(act(policy), act(fresh))
        if change is not CHANGES["load_state_dict"] and change is not CHANGES["load_state_dict, assign"]:
            assert not np.array_equal(act(policy), before)


def test_thirty_vectors_between_predictions_that_are_not_looked_at() -> None:
    """An evolution strategy loads a vector to be overwritten at once by the next one."""
    policy, generator = new_policy(), np.random.default_rng(0)
    size = len(vector(policy))
    for _ in range(30):
        for _ in range(2):
            theta = generator.normal(size=size).astype(np.float32)
            policy.load_from_vector(theta)
        fresh = new_policy(1)
        fresh.load_from_vector(theta)
        np.testing.assert_array_equal(act(policy), act(fresh))


def test_any_order_of_changes() -> None:
    generator = random.Random(0)
    policy = new_policy()
    for _ in range(40):
        generator.choice(list(CHANGES.values()))(policy)
        if generator.random() < 0.5:
            act(policy)
            policy = generator.choice([policy, copy.deepcopy(policy)])
    fresh = new_policy(2)
    fresh.load_state_dict(policy.state_dict())
    np.testing.assert_array_equal(act(policy), act(fresh))


def by_pickle(policy: NCPPolicy) -> NCPPolicy:
    copied: NCPPolicy = pickle.loads(pickle.dumps(policy))
    return copied


def by_torch(policy: NCPPolicy) -> NCPPolicy:
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    copied: NCPPolicy = torch.load(file, weights_only=False)
    return copied


def by_shared_memory(policy: NCPPolicy) -> NCPPolicy:
    copied: NCPPolicy = ForkingPickler.loads(ForkingPickler.dumps(policy))
    return copied


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, by_pickle, by_torch, by_shared_memory])
def test_copies_act_alike_and_leave_the_original_as_it_is(copied: Callable[[NCPPolicy], NCPPolicy]) -> None:
    policy = new_policy()
    before = act(policy)
    for _ in range(3):
        other = copied(policy)
        np.testing.assert_array_equal(act(other), before)
        np.testing.assert_array_equal(act(policy), before)
        del other
    held = actor(policy)._frozen
    assert held is not None and held.params.derived
    if copied is not copy.copy:
        other = copied(policy)
        edit_data(other)
        expected = new_policy(1)
        expected.load_state_dict(other.state_dict())
        np.testing.assert_array_equal(act(other), act(expected))


def test_what_is_kept_for_speed_does_not_travel() -> None:
    policy = new_policy()
    before = len(pickle.dumps(actor(policy)))
    act(policy)
    assert actor(policy)._frozen is not None
    assert len(pickle.dumps(actor(policy))) == before
    assert actor(copy.deepcopy(policy))._frozen is None


def predict_elsewhere(policy: NCPPolicy) -> Floats:
    return act(policy)


def test_the_parent_of_a_pool_of_processes_keeps_its_policy() -> None:
    """PyTorch's pickler moves tensors into shared memory, in place, and the memory that they leave is used again."""
    policy = new_policy()
    before = act(policy)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in range(2):
            np.testing.assert_array_equal(pool.submit(predict_elsewhere, policy).result(timeout=120), before)
            rubbish = [torch.full((n,), 1e3) for n in range(1, 400)]
            np.testing.assert_array_equal(act(policy), before)
            del rubbish


def test_packed_parameters_that_are_sent_away_leave_the_kernel_its_own_memory() -> None:
    ltc = actor(new_policy())
    inputs = torch.randn(5, 1, ltc.input_size)
    with torch.no_grad():
        before = ltc(inputs)[0]
        packed = ltc.packed()
        assert isinstance(packed.params, FrozenParams)
        for _ in range(2):
            sent = ForkingPickler.dumps(packed.params)
            rubbish = [torch.full((n,), 1e3) for n in range(1, 400)]
            torch.testing.assert_close(ltc(inputs)[0], before, rtol=0, atol=0)
        del sent, rubbish


class Shifted(nn.Module):
    """A parametrisation whose value follows a number that is no parameter."""

    by = 0.0

    def forward(self, raw: Tensor) -> Tensor:
        return raw + self.by


def test_parametrised_weights_are_followed() -> None:
    policy = new_policy()
    act(policy)
    shift = Shifted()
    for name in ("vleak", "sigma", "sensory_w"):
        parametrize.register_parametrization(actor(policy), name, shift)
    expected = new_policy()
    for by in (0.0, 0.4, -0.3):
        shift.by = by
        for name in ("vleak", "sigma", "sensory_w"):
            actor(expected).get_parameter(name).data.copy_(getattr(actor(policy), name))
        np.testing.assert_array_equal(act(policy), act(expected))
    copied = copy.deepcopy(policy)
    np.testing.assert_array_equal(act(copied), act(policy))
    original: Any = actor(policy).parametrizations
    original.vleak.original.data.add_(0.5)
    assert not np.array_equal(act(policy), act(copied))
    for name in ("vleak", "sigma", "sensory_w"):
        parametrize.remove_parametrizations(actor(policy), name)
    fresh = new_policy(1)
    fresh.load_state_dict(policy.state_dict())
    np.testing.assert_array_equal(act(policy), act(fresh))


def test_pruned_weights_are_followed() -> None:
    policy = new_policy()
    before = act(policy)
    prune.random_unstructured(actor(policy), "erev", amount=0.5)
    pruned = act(policy)
    assert not np.array_equal(pruned, before)
    prune.remove(actor(policy), "erev")
    fresh = new_policy(1)
    fresh.load_state_dict(policy.state_dict())
    np.testing.assert_array_equal(pruned, act(fresh))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_weights_are_followed(use_buffers: bool) -> None:
    policies = [new_policy(seed) for seed in range(3)]
    averaged = AveragedModel(policies[0], use_buffers=use_buffers)
    for n, policy in enumerate(policies, 1):
        averaged.update_parameters(policy)
        expected = new_policy(7)
        mean = {
            name: torch.stack([p.state_dict()[name] for p in policies[:n]]).mean(0) for name in expected.state_dict()
        }
        expected.load_state_dict(mean)
        np.testing.assert_allclose(act(averaged.module), act(expected), rtol=1e-5)
        fresh = new_policy(8)
        fresh.load_state_dict(averaged.module.state_dict())
        np.testing.assert_array_equal(act(averaged.module), act(fresh))


def test_functional_calls_take_the_weights_they_are_given() -> None:
    ltc, other = actor(new_policy()), actor(new_policy(1))
    inputs = torch.randn(5, 2, ltc.input_size)
    with torch.no_grad():
        before, expected = ltc(inputs)[0], other(inputs)[0]
        given = torch.func.functional_call(ltc, dict(other.named_parameters()), inputs)[0]
        assert torch.equal(given, expected) and not torch.equal(given, before)
        assert torch.equal(ltc(inputs)[0], before)
        assert torch.equal(torch.func.functional_call(ltc, other.state_dict(), inputs)[0], expected)


def test_double_precision_is_followed_without_gradients() -> None:
    ltc = actor(new_policy())
    inputs = torch.randn(5, 2, ltc.input_size)
    with torch.no_grad():
        before = ltc(inputs)[0]
        potentials = ltc.double()(inputs.double())[0]
        assert potentials.dtype == torch.float64
        torch.testing.assert_close(potentials.float(), before, rtol=0, atol=2e-6)
        assert torch.equal(ltc.float()(inputs)[0], before)


def test_set_parameters_and_saved_models_are_followed(tmp_path: Path) -> None:
    env = RandomEnv(box(3), box(2))
    model, other = (RecurrentPPO(NCPPolicy, env, seed=seed, policy_kwargs=dict(wiring=AutoNCP(12))) for seed in (0, 1))
    act(model.policy)
    weights: Any = other.get_parameters()
    model.set_parameters(weights)
    np.testing.assert_array_equal(act(model.policy), act(other.policy))
    model.save(tmp_path / "model.zip")
    np.testing.assert_array_equal(act(RecurrentPPO.load(tmp_path / "model.zip").policy), act(other.policy))
    model.policy.save(str(tmp_path / "policy.pt"))
    np.testing.assert_array_equal(act(NCPPolicy.load(str(tmp_path / "policy.pt"))), act(other.policy))


# What the weights are of.


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(wiring=AutoNCP(20, seed=1)), r"wiring must be that with the digest \w{32}, got that with the digest"),
        (dict(wiring=AutoNCP(20), ode_unfolds=3), r"ode_unfolds must be 3, got 6"),
        (dict(wiring=AutoNCP(20), elapsed_time=0.05), r"elapsed_time must be 0.05, got 1.0"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_another_circuit_are_refused(kwargs: dict[str, Any], message: str, strict: bool) -> None:
    state, policy = new_policy(wiring=AutoNCP(20)).state_dict(), new_policy(1, **kwargs)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    assert shapes == {name: tensor.shape for name, tensor in policy.state_dict().items()}
    before = actor(policy).sigma.detach().clone()
    with pytest.raises(RuntimeError, match=rf"another circuit .* by 'lstm_actor._extra_state': {message}"):
        policy.load_state_dict(state, strict=strict)
    assert torch.equal(actor(policy).sigma, before)
    new_policy(1, wiring=AutoNCP(20)).load_state_dict(state)


def test_the_critic_is_told_apart_too() -> None:
    state = new_policy(critic=AutoNCP(12)).state_dict()
    with pytest.raises(RuntimeError, match=r"by 'lstm_critic\._extra_state'"):
        new_policy(critic=AutoNCP(12, seed=9)).load_state_dict(state)


def test_models_with_weights_of_another_circuit_are_refused() -> None:
    env = RandomEnv(box(3), box(2))
    model, other = (
        RecurrentPPO(NCPPolicy, env, policy_kwargs=dict(wiring=AutoNCP(20, seed=seed))) for seed in (22222, 1)
    )
    weights: Any = other.get_parameters()
    with pytest.raises(RuntimeError, match="wiring must be that with the digest"):
        model.set_parameters(weights)


def test_weights_without_a_fingerprint_are_refused_with_the_way_out() -> None:
    policy = new_policy()
    state = policy.state_dict()
    del state["lstm_actor._extra_state"]
    for strict in (True, False):
        with pytest.raises(
            RuntimeError, match=r"must hold 'lstm_actor._extra_state', the fingerprint .*get_extra_state"
        ):
            policy.load_state_dict(state, strict=strict)
    state["lstm_actor._extra_state"] = actor(policy).get_extra_state()
    policy.load_state_dict(state)
    # What holds nothing of the circuit is none of its business.
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("features_extractor")}
    assert "lstm_actor.w" in policy.load_state_dict(encoder, strict=False).missing_keys


@pytest.mark.parametrize("damage", [torch.zeros(3), torch.full((28,), torch.nan), torch.full((28,), 300.0), "text"])
def test_damaged_fingerprints_are_named(damage: Any) -> None:
    policy = new_policy()
    state = policy.state_dict() | {"lstm_actor._extra_state": damage}
    with pytest.raises(RuntimeError, match=r"must be the fingerprint of a circuit, 28 whole numbers"):
        policy.load_state_dict(state)


def test_fingerprints_survive_what_is_done_to_whole_state_dicts() -> None:
    a, b = new_policy(0).state_dict(), new_policy(1).state_dict()
    policy = new_policy(2)
    for merged in (
        {name: (a[name] + b[name]) / 2 for name in a},
        {name: 0.995 * a[name] + 0.005 * b[name] for name in a},
        {name: torch.lerp(a[name], b[name], 0.3) for name in a},
        {name: a[name] + 0.05 * torch.randn_like(a[name]) for name in a},
        {name: tensor.bfloat16() for name, tensor in a.items()},
        {name: tensor.half() for name, tensor in a.items()},
    ):
        policy.load_state_dict(merged)
        assert torch.equal(policy.state_dict()["lstm_actor._extra_state"], a["lstm_actor._extra_state"])


def test_a_fingerprint_is_no_parameter_and_no_buffer() -> None:
    policy = new_policy()
    assert not any("_extra_state" in name for name, _ in [*policy.named_parameters(), *policy.named_buffers()])
    assert len(policy.parameters_to_vector()) == sum(p.numel() for p in policy.parameters())
    own = actor(policy).state_dict()["_extra_state"]
    same = LTC(policy.wiring, input_map=False)
    assert torch.equal(own, same.get_extra_state())


def test_discrete_spaces_act_alike() -> None:
    """The invariant holds for every kind of action."""
    for space in (spaces.Discrete(3), spaces.MultiBinary(2)):
        torch.manual_seed(0)
        policy, other = (NCPPolicy(box(3), space, lambda _: 1e-3, wiring=AutoNCP(12)) for _ in range(2))
        act(policy)
        policy.load_from_vector(other.parameters_to_vector())
        np.testing.assert_array_equal(act(policy), act(other))
