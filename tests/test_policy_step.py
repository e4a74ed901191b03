"""`PolicyStep`: the numbers of `policy.forward`, bad readings that hold, and nothing that waits for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn

from ncp_rl import LTC, AutoNCP, MultiInputNCPPolicy, NCPPolicy
from ncp_rl.cuda_graph import Addresses, capture
from ncp_rl.policy import frozen_standardization
from ncp_rl.policy_step import PolicyStep
from ncp_rl.readings import BadInputError
from tests.random_env import box

N_ENVS = 3
TIMED = spaces.Dict(
    x=box(3), image=spaces.Box(0, 255, (3, 36, 36), np.uint8), elapsed_time=spaces.Box(0, 1, (1,), np.float32)
)
CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    (box(4), box(2), {}),
    (box(2, 3), spaces.Discrete(3), dict(critic="lstm")),
    (TIMED, spaces.MultiDiscrete([2, 3]), dict(critic="mlp")),
    (TIMED, box(2), dict(critic="lstm", cell="cfc")),
    (spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), dict(critic="shared")),
    (spaces.Discrete(5), box(1), dict(cell="cfc", elapsed_time=0.05)),
    (spaces.MultiBinary(4), box(2), dict(motor_map="dense", n_motor=3, elapsed_time=0.05)),
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def make_policy(observation_space: Any, action_space: Any, *, device: str = "cpu", **kwargs: Any) -> NCPPolicy:
    torch.manual_seed(0)
    kind = MultiInputNCPPolicy if isinstance(observation_space, spaces.Dict) else NCPPolicy
    policy = kind(observation_space, action_space, lambda _: 1e-3, **(dict(wiring=AutoNCP(12)) | kwargs))
    return policy.to(device)


def draw(space: Any, seed: int, n_envs: int = N_ENVS, device: str = "cpu") -> Any:
    """Observations of all environments."""
    space.seed(seed)
    seen = [space.sample() for _ in range(n_envs)]
    if isinstance(space, spaces.Dict):
        return {key: torch.from_numpy(np.stack([one[key] for one in seen])).to(device) for key in space.spaces}
    return torch.from_numpy(np.stack(seen)).to(device)


def zero_states(policy: NCPPolicy, n_envs: int = N_ENVS) -> RNNStates:
    h, c, critic_h, critic_c = torch.zeros(4, 1, n_envs, policy.wiring.units, device=policy.device)
    return RNNStates((h, c), (critic_h, critic_c))


def flat(states: RNNStates) -> Tensor:
    return torch.stack([tensor for pair in states for tensor in pair])


def forward(policy: NCPPolicy, *operands: Any) -> Any:
    with torch.no_grad(), frozen_standardization(policy):
        return policy(*operands)


@pytest.mark.parametrize("deterministic", [True, False], ids=["likeliest", "sampled"])
@pytest.mark.parametrize(("observation_space", "action_space", "kwargs"), CASES)
def test_numbers_of_forward(observation_space: Any, action_space: Any, kwargs: Any, deterministic: bool) -> None:
    policy = make_policy(observation_space, action_space, **kwargs)
    step, states = PolicyStep(policy, N_ENVS, deterministic=deterministic, captured=False), zero_states(policy)
    is_box = isinstance(action_space, spaces.Box)
    for t in range(4):
        observation, starts = draw(observation_space, seed=t), torch.tensor([t == 0, t == 2, False])
        torch.manual_seed(t)
        actions, values, log_probs, states = forward(policy, observation, states, starts.float(), deterministic)
        torch.manual_seed(t)
        outcome = step(observation, starts)
        if deterministic or is_box:
            torch.testing.assert_close(outcome.actions, actions)
            torch.testing.assert_close(outcome.log_probs, log_probs)
        assert outcome.actions.shape == actions.shape and outcome.actions.dtype == actions.dtype
        torch.testing.assert_close(outcome.values, values)
        torch.testing.assert_close(flat(step.states), flat(states))
        assert not outcome.held.any()
    step.check()


def test_no_episode_starts_where_none_is_said() -> None:
    policy = make_policy(box(4), box(2))
    step, other = (PolicyStep(policy, N_ENVS, deterministic=True, captured=False) for _ in range(2))
    for t in range(3):
        outcome, expected = step(draw(box(4), t)), other(draw(box(4), t), torch.zeros(N_ENVS))
        assert torch.equal(outcome.actions, expected.actions)


@pytest.mark.parametrize("action_space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3])])
def test_discrete_actions_are_drawn_by_their_probabilities(action_space: Any) -> None:
    policy = make_policy(box(4), action_space)
    n_envs = 20_000
    step = PolicyStep(policy, n_envs, captured=False)
    observation = draw(box(4), seed=1, n_envs=1).expand(n_envs, 4)
    torch.manual_seed(0)
    actions, _, log_probs, _ = step(observation)
    with torch.no_grad():
        h, c, *_ = flat(zero_states(policy, n_envs))
        distribution, _ = policy.get_distribution(observation, (h, c), torch.zeros(n_envs))
        torch.testing.assert_close(log_probs, distribution.log_prob(actions))
    made: Any = distribution.distribution
    for column, one in enumerate(made if isinstance(made, list) else [made]):
        frequencies = torch.bincount(actions.reshape(n_envs, -1)[:, column], minlength=one.probs.shape[1]) / n_envs
        # Five standard deviations of the widest.
        assert (frequencies - one.probs[0]).abs().max() < 5 * (0.25 / n_envs) ** 0.5


class TestBadReadings:
    @pytest.mark.parametrize("on_bad_input", ["raise", "hold"])
    @pytest.mark.parametrize(
        ("space", "key", "value"),
        [
            (box(4), None, np.nan), (box(4), None, np.inf), (TIMED, "x", np.nan), (TIMED, "elapsed_time", -1.0),
            (spaces.Discrete(5), None, 5), (spaces.MultiDiscrete([2, 3]), None, -1),
        ],
    )  # fmt: skip
    def test_hold_their_environment_alone(self, space: Any, key: str | None, value: float, on_bad_input: Any) -> None:
        policy = make_policy(space, box(2), critic="lstm", on_bad_input=on_bad_input)
        step, other = (PolicyStep(policy, N_ENVS, deterministic=True, captured=False) for _ in range(2))
        before = step(draw(space, 0)).actions
        other(draw(space, 0))
        states, observation = flat(step.states).clone(), draw(space, 1)
        expected = other(draw(space, 1))
        part = observation if key is None else observation[key]
        part.view(N_ENVS, -1)[1, -1] = value
        outcome = step(observation)
        assert outcome.held.tolist() == [False, True, False]
        assert torch.equal(outcome.actions[1], before[1])
        assert torch.equal(flat(step.states)[:, :, 1], states[:, :, 1])
        assert torch.equal(outcome.actions[[0, 2]], expected.actions[[0, 2]])
        assert torch.equal(outcome.values[[0, 2]], expected.values[[0, 2]])
        assert all(tensor.isfinite().all() for tensor in outcome)

    def test_at_an_episodes_start_hold_neurons_at_zero(self) -> None:
        step = PolicyStep(make_policy(box(4), box(2)), N_ENVS, captured=False)
        step(draw(box(4), 0))
        observation = draw(box(4), 1)
        observation[1] = torch.nan
        step(observation, torch.ones(N_ENVS))
        assert (flat(step.states)[[0, 2], 0, 1] == 0).all() and (flat(step.states)[0, 0, 0] != 0).any()

    def test_are_named_by_the_check_once(self) -> None:
        policy = make_policy(TIMED, box(2), features_extractor_kwargs=dict(names={"x": ["p", "q", "r"]}))
        step = PolicyStep(policy, N_ENVS, captured=False)
        observation = draw(TIMED, 0)
        observation["x"][1, 2] = torch.inf
        step(observation)
        step(draw(TIMED, 1))
        with pytest.raises(
            BadInputError, match=r"observation 'r' \(index 2 of key 'x'\) of environment 1 is inf.*1 of 3"
        ):
            step.check()
        step.check()

    def test_are_forgotten_by_a_reset(self) -> None:
        step = PolicyStep(make_policy(box(4), box(2)), N_ENVS, captured=False)
        step(torch.full((N_ENVS, 4), torch.nan))
        step.reset()
        step.check()

    def test_of_discrete_spaces_are_named(self) -> None:
        step = PolicyStep(make_policy(spaces.Discrete(5), box(2)), N_ENVS, captured=False)
        step(torch.tensor([0, 4, 9]))
        with pytest.raises(BadInputError, match=r"environment 2 is 9; .* must be a whole number from 0 to 4"):
            step.check()


class TestStates:
    def test_go_on_from_given_ones(self) -> None:
        policy = make_policy(box(4), box(2), critic="lstm")
        step = PolicyStep(policy, N_ENVS, deterministic=True, captured=False)
        first = step(draw(box(4), 0)).values
        kept = RNNStates(*[tuple(tensor.clone() for tensor in pair) for pair in step.states])
        second = step(draw(box(4), 1)).values
        step.reset(kept)
        assert torch.equal(step(draw(box(4), 1)).values, second)
        step.reset()
        assert torch.equal(step(draw(box(4), 0)).values, first)

    def test_buffers_can_be_written_into(self) -> None:
        policy = make_policy(box(4), box(2))
        step, other = (PolicyStep(policy, N_ENVS, deterministic=True, captured=False) for _ in range(2))
        assert isinstance(step.observation, Tensor)
        step.observation.copy_(draw(box(4), 0))
        assert torch.equal(step(step.observation).actions, other(draw(box(4), 0)).actions)

    def test_statistics_stand_still(self) -> None:
        policy = make_policy(box(4), box(2))
        PolicyStep(policy, N_ENVS, captured=False)(draw(box(4), 0))
        assert policy._standardizers and not any(module.seen for module in policy._standardizers)


class TestNothingWaits:
    """Tensors on the device "meta" have shapes and no values, so that reading one back is an error there."""

    @pytest.mark.parametrize("deterministic", [True, False], ids=["likeliest", "sampled"])
    @pytest.mark.parametrize(("observation_space", "action_space", "kwargs"), CASES)
    def test_no_value_is_read_back(
        self, observation_space: Any, action_space: Any, kwargs: Any, deterministic: bool
    ) -> None:
        policy = make_policy(observation_space, action_space, device="meta", **kwargs)
        step = PolicyStep(policy, N_ENVS, deterministic=deterministic, captured=False)
        outcome = step(step.observation, torch.zeros(N_ENVS, device="meta"))
        assert outcome.actions.shape == (N_ENVS, *action_space.shape) and outcome.actions.is_meta

    def test_forward_itself_does(self) -> None:
        policy = make_policy(box(4), box(2), device="meta")
        with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
            forward(policy, draw(box(4), 0, device="meta"), zero_states(policy), torch.zeros(N_ENVS, device="meta"))


class TestRefused:
    def test_a_policy_on_the_cpu(self) -> None:
        with pytest.raises(ValueError, match=r'needs a policy on a GPU, and this one is on "cpu"; .*captured=False'):
            PolicyStep(make_policy(box(4), box(2)), N_ENVS)
        with pytest.raises(ValueError, match='needs a GPU, got the device "cpu"'):
            capture(lambda: None, torch.device("cpu"))

    def test_sampled_gsde(self) -> None:
        policy = make_policy(box(4), box(2), use_sde=True)
        with pytest.raises(ValueError, match=r"gSDE draws .* set deterministic=True"):
            PolicyStep(policy, N_ENVS, captured=False)
        step = PolicyStep(policy, N_ENVS, deterministic=True, captured=False)
        expected = forward(policy, draw(box(4), 0), zero_states(policy), torch.zeros(N_ENVS), True)
        torch.testing.assert_close(step(draw(box(4), 0)).log_probs, expected[2])

    def test_another_policy(self) -> None:
        policy: Any = nn.Linear(1, 1)
        with pytest.raises(TypeError, match=r"must be an NCPPolicy, got Linear; pass model.policy"):
            PolicyStep(policy, N_ENVS, captured=False)
        with pytest.raises(ValueError, match="n_envs must be at least 1, got 0"):
            PolicyStep(make_policy(box(4), box(2)), 0, captured=False)

    def test_observations_that_do_not_fit(self) -> None:
        step = PolicyStep(make_policy(TIMED, box(2)), N_ENVS, captured=False)
        with pytest.raises(
            ValueError, match=r"observation must be a dict with the keys .*elapsed_time.*, got a tensor"
        ):
            step(torch.zeros(N_ENVS, 3))
        plain = PolicyStep(make_policy(box(4), box(2)), N_ENVS, captured=False)
        with pytest.raises(
            ValueError, match=r"observation must be \(3, 4\), got \(5, 4\); a step serves 3 environments"
        ):
            plain(torch.zeros(5, 4))
        with pytest.raises(ValueError, match=r"must be torch.float32, got torch.float64"):
            plain(torch.zeros(3, 4, dtype=torch.float64))
        with pytest.raises(ValueError, match=r"must be on cpu like the policy, got meta"):
            plain(torch.zeros(3, 4, device="meta"))
        with pytest.raises(ValueError, match=r"episode_starts must be \(3,\), got \(4,\)"):
            plain(torch.zeros(3, 4), torch.zeros(4))
        with pytest.raises(ValueError, match=r"observation must be a tensor, got keys x"):
            plain({"x": torch.zeros(3, 4)})


class TestAddresses:
    def test_changes_in_place_move_nothing(self) -> None:
        policy = make_policy(box(4), box(2))
        addresses = Addresses(policy)
        for parameter in policy.parameters():
            parameter.grad = torch.ones_like(parameter)
        policy.optimizer.step()
        policy.load_state_dict(policy.state_dict())
        assert addresses.first_moved() is None

    def test_new_tensors_are_named(self) -> None:
        policy = make_policy(box(4), box(2))
        addresses = Addresses(policy)
        assert isinstance(policy.lstm_actor, LTC)
        policy.lstm_actor.cm.data = policy.lstm_actor.cm.data.clone()
        assert addresses.first_moved() == "lstm_actor.cm"
        addresses = Addresses(policy)
        policy.log_std = nn.Parameter(torch.zeros(2))
        assert addresses.first_moved() == "log_std"


class ReadsBack(FlattenExtractor):
    """An encoder that waits for the device."""

    def forward(self, observations: Tensor) -> Tensor:
        return super().forward(observations) * float(observations.mean() > -2.0)


@needs_gpu
class TestOnAGPU:
    @pytest.mark.parametrize("deterministic", [True, False], ids=["likeliest", "sampled"])
    @pytest.mark.parametrize(("observation_space", "action_space", "kwargs"), CASES)
    def test_a_graph_gives_what_its_operations_give(
        self, observation_space: Any, action_space: Any, kwargs: Any, deterministic: bool
    ) -> None:
        policy = make_policy(observation_space, action_space, device="cuda", **kwargs)
        plain, graph = (
            PolicyStep(policy, N_ENVS, deterministic=deterministic, captured=captured) for captured in (False, True)
        )
        for t in range(4):
            observation = draw(observation_space, t, device="cuda")
            starts = torch.tensor([t == 0, t == 2, False], device="cuda")
            torch.manual_seed(t)
            expected = plain(observation, starts)
            torch.manual_seed(t)
            torch.testing.assert_close(graph(observation, starts), expected)
            torch.testing.assert_close(flat(graph.states), flat(plain.states))

    def test_weights_may_change_in_place(self) -> None:
        policy = make_policy(box(4), box(2), device="cuda")
        graph = PolicyStep(policy, N_ENVS, deterministic=True)
        before = graph(draw(box(4), 0, device="cuda")).actions.clone()
        for parameter in policy.parameters():
            parameter.grad = torch.randn_like(parameter)
        for _ in range(20):
            policy.optimizer.step()
        graph.reset()
        after = graph(draw(box(4), 0, device="cuda")).actions
        expected = PolicyStep(policy, N_ENVS, deterministic=True, captured=False)(
            draw(box(4), 0, device="cuda")
        ).actions
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, expected)

    def test_weights_may_not_move(self) -> None:
        policy = make_policy(box(4), box(2), device="cuda")
        graph = PolicyStep(policy, N_ENVS)
        policy.log_std = nn.Parameter(torch.zeros(2, device="cuda"))
        with pytest.raises(RuntimeError, match=r"log_std of the policy was replaced or moved .* make a new PolicyStep"):
            graph(draw(box(4), 0, device="cuda"))

    def test_bad_readings_hold(self) -> None:
        policy = make_policy(box(4), box(2), device="cuda")
        graph = PolicyStep(policy, N_ENVS, deterministic=True)
        before = graph(draw(box(4), 0, device="cuda")).actions.clone()
        observation = draw(box(4), 1, device="cuda")
        observation[1, 2] = torch.nan
        outcome = graph(observation)
        assert outcome.held.tolist() == [False, True, False]
        torch.testing.assert_close(outcome.actions[1], before[1])
        with pytest.raises(BadInputError, match="of environment 1 is nan"):
            graph.check()

    def test_samples_are_new_in_each_replay_and_repeat_with_the_seed(self) -> None:
        policy = make_policy(box(4), box(2), device="cuda")
        graph, runs = PolicyStep(policy, N_ENVS), []
        for _ in range(2):
            torch.manual_seed(5)
            graph.reset()
            runs.append(
                [graph(draw(box(4), 0, device="cuda"), torch.ones(N_ENVS, device="cuda")).actions.clone() for _ in "ab"]
            )
        (first, second), again = runs
        assert not torch.equal(first, second)
        assert torch.equal(first, again[0]) and torch.equal(second, again[1])

    def test_what_waits_is_refused(self) -> None:
        policy = make_policy(box(4), box(2), device="cuda", features_extractor_class=ReadsBack)
        with pytest.raises(RuntimeError, match=r"could not be captured as a CUDA graph. A part of it"):
            PolicyStep(policy, N_ENVS)
        # What follows goes on as if nothing had been: a capture that failed would have broken the generator.
        assert torch.rand(1, device="cuda").isfinite()
        assert torch.cuda.get_sync_debug_mode() == 0
