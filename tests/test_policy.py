"""NCP policies under the unmodified RecurrentPPO: what its LSTM policies can do, ours do too, and nothing leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from ncp_envs import NoVelocity
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from ncp_rl import NCP, AutoNCP, CnnNCPPolicy, FullyConnected, LTCInit, MultiInputNCPPolicy, NCPPolicy, Random
from tests.random_env import TIMED, RandomEnv, box

# The combinations of sb3-contrib's recurrent suite, as far as they make sense for a circuit of one layer.
CRITICS: list[dict[str, Any]] = [
    {},
    dict(critic="shared"),
    dict(critic="ltc", wiring=AutoNCP(10)),
    dict(critic="lstm", wiring=AutoNCP(10)),
    dict(critic="mlp", wiring=AutoNCP(10)),
    dict(critic=NCP(8, 6, 2, 3, 0, 3), wiring=NCP(8, 6, 3, 3, 4, 3)),
    dict(critic=Random(16, sparsity=0.75), wiring=AutoNCP(16)),
]


class ToDict(gym.ObservationWrapper[Any, Any, Any]):
    """The observation under a key."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"obs": env.observation_space})

    def observation(self, observation: Any) -> dict[str, Any]:
        return {"obs": observation}


def make_model(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    policy: type[NCPPolicy] = NCPPolicy,
    n_envs: int = 3,
    policy_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    venv = make_vec_env(lambda: RandomEnv(observation_space, action_space), n_envs=n_envs, seed=0)
    policy_kwargs = dict(wiring=AutoNCP(12)) | (policy_kwargs or {})
    return RecurrentPPO(
        policy, venv, policy_kwargs=policy_kwargs, **(dict(n_steps=16, batch_size=20, n_epochs=2, seed=0) | kwargs)
    )


@pytest.mark.parametrize("kwargs", [*CRITICS, dict(share_features_extractor=False)])
def test_cnn(kwargs: dict[str, Any]) -> None:
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3)
    model: Any = RecurrentPPO(CnnNCPPolicy, env, n_steps=16, n_epochs=2, seed=0, policy_kwargs=kwargs)
    model.learn(32)
    assert model.policy.wiring.n_sensory == 32


@pytest.mark.parametrize("kwargs", CRITICS)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_learns_under_every_critic(env: str, kwargs: dict[str, Any]) -> None:
    model: Any = RecurrentPPO(NCPPolicy, env, n_steps=16, seed=0, policy_kwargs=kwargs)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(32)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("kwargs", CRITICS)
def test_dict_observations(kwargs: dict[str, Any]) -> None:
    """A vector under a key teaches what the vector alone does, number by number."""

    def learned(policy: type[NCPPolicy], wrapper: Any) -> Any:
        venv = make_vec_env("CartPole-v1", n_envs=1, seed=0, wrapper_class=wrapper)
        return RecurrentPPO(policy, venv, n_steps=32, seed=0, policy_kwargs=kwargs).learn(64)

    model, plain = learned(MultiInputNCPPolicy, ToDict), learned(NCPPolicy, None)
    assert model.policy.sensory_names[:8] == tuple(f"obs_0_{r}" for r in range(8))
    pairs = zip(model.policy.parameters(), plain.policy.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    mean, _ = evaluate_policy(model, model.get_env(), warn=False)
    assert isinstance(mean, float) and 8 <= mean <= 500


@pytest.mark.parametrize(
    "action_space",
    [box(3), box(2, 2), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4)],
    ids=lambda space: type(space).__name__ + str(space.shape),
)
def test_action_spaces(action_space: spaces.Space[Any]) -> None:
    model = make_model(box(5), action_space).learn(64)
    venv = model.get_env()
    evaluate_policy(model, venv)
    motor_map = model.policy.action_net
    assert len(motor_map.weight) == model.policy.wiring.n_motor


@pytest.mark.parametrize(
    "observation_space", [box(4), box(2, 3), spaces.Discrete(5), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4)]
)
def test_vector_observation_spaces(observation_space: spaces.Space[Any]) -> None:
    """Each quantity has its receptors, all of them learn, and another observation is another action."""
    model = make_model(observation_space, box(1))
    encoder = model.policy.pi_features_extractor
    assert model.policy.wiring.n_sensory == 8 * get_flattened_obs_dim(observation_space) == len(encoder.gain)
    before = encoder.gain.detach().clone()
    model.learn(48)
    assert (encoder.gain != before).all()
    observation_space.seed(0)
    observations = np.stack([observation_space.sample() for _ in range(16)])
    actions, _ = model.predict(observations, deterministic=True)
    different = np.unique(observations.reshape(16, -1), axis=0)
    assert len(np.unique(actions, axis=0)) == len(different) > 1


@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde(squash_output: bool) -> None:
    model: Any = RecurrentPPO(
        NCPPolicy,
        "Pendulum-v1",
        n_steps=16,
        seed=0,
        use_sde=True,
        sde_sample_freq=4,
        clip_range_vf=0.1,
        policy_kwargs=dict(squash_output=squash_output),
    )
    model.learn(200)
    assert model.policy.log_std.shape == (32, 1)


@pytest.mark.parametrize(
    ("policy", "observation_space", "kwargs"),
    [
        *[(NCPPolicy, box(5), kwargs) for kwargs in CRITICS],
        (CnnNCPPolicy, spaces.Box(0, 255, (36, 36, 3), np.uint8), dict(critic="ltc")),
        *[(MultiInputNCPPolicy, TIMED, dict(critic=critic)) for critic in ("ltc", "lstm", "mlp", "shared")],
        (MultiInputNCPPolicy, TIMED, dict(privileged_keys=("image",))),
    ],
)
@pytest.mark.parametrize("action_space", [box(2), spaces.Discrete(3)], ids=["box", "discrete"])
def test_minibatches_recompute_what_the_rollout_saw(
    policy: type[NCPPolicy],
    observation_space: spaces.Space[Any],
    kwargs: dict[str, Any],
    action_space: spaces.Space[Any],
) -> None:
    """Padded minibatches over several environments, whose episodes end inside them, give log-probabilities and values
    of the rollout; nothing of the padding reaches a gradient."""
    model = make_model(observation_space, action_space, policy, policy_kwargs=kwargs)
    _, callback = model._setup_learn(48, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
    seen, starts = 0, 0
    for _ in range(3):
        for data in model.rollout_buffer.get(20):
            actions = data.actions.long().flatten() if isinstance(action_space, spaces.Discrete) else data.actions
            values, log_prob, _ = model.policy.evaluate_actions(
                data.observations, actions, data.lstm_states, data.episode_starts
            )
            mask = data.mask > 1e-8
            torch.testing.assert_close(log_prob[mask], data.old_log_prob[mask], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(values.flatten()[mask], data.old_values[mask], atol=1e-5, rtol=1e-5)
            model.policy.zero_grad()
            (log_prob[mask].sum() + values.flatten()[mask].sum()).backward()
            gradients = [p.grad for p in model.policy.parameters() if p.grad is not None]
            assert all(torch.isfinite(gradient).all() for gradient in gradients)
            seen, starts = seen + int(mask.sum()), starts + int(data.episode_starts[mask].sum())
    assert seen == 3 * 48 and starts > 20


def test_whole_rollouts_with_resets_inside_equal_single_steps() -> None:
    """Sequences that RecurrentPPO would cut at episode starts, left whole: the scan resets inside."""
    policy = make_model(box(5), box(2)).policy
    observations, starts = torch.randn(9, 3, 5), (torch.rand(9, 3) < 0.3).float()
    states = RNNStates(*2 * ((torch.randn(1, 3, 12), torch.zeros(1, 3, 12)),))
    actions: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    log_probs: list[torch.Tensor] = []
    step = states
    with torch.no_grad():
        for x, start in zip(observations, starts, strict=True):
            action, value, log_prob, step = policy(x, step, start)
            for kept, new in ((actions, action), (values, value.flatten()), (log_probs, log_prob)):
                kept.append(new)
        by_sequence = [torch.stack(part).swapaxes(0, 1).flatten(0, 1) for part in (actions, values, log_probs)]
        again, log_prob, _ = policy.evaluate_actions(
            observations.swapaxes(0, 1).flatten(0, 1), by_sequence[0], states, starts.T.flatten()
        )
    torch.testing.assert_close(again.flatten(), by_sequence[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_prob, by_sequence[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("critic", ["ltc", "lstm", "mlp", "shared"])
def test_nothing_leaks_between_environments_or_episodes(critic: str) -> None:
    policy = make_model(box(5), box(2), policy_kwargs=dict(critic=critic)).policy
    states = RNNStates(*2 * ((torch.randn(1, 3, 12), torch.randn(1, 3, 12)),))
    observations, starts = torch.randn(3, 5), torch.tensor([0.0, 1.0, 0.0])

    def outcome(observations: torch.Tensor, states: RNNStates) -> torch.Tensor:
        with torch.no_grad():
            action, value, _, (pi, vf) = policy(observations, states, starts, deterministic=True)
        return torch.cat([action, value, pi[0][0], vf[0][0]], dim=1)

    before = outcome(observations, states)
    other = observations.clone()
    other[0] += 1
    changed = outcome(other, states)
    assert not torch.equal(changed[0], before[0]) and torch.equal(changed[1:], before[1:])
    # The episode of environment 1 starts here: its states must not matter, those of the others must.
    shifted = outcome(observations, RNNStates(*[(h + 0.5, c + 0.5) for h, c in states]))
    assert torch.equal(shifted[1], before[1]) and not torch.equal(shifted[0], before[0])


def test_gradients_do_not_cross_sequences_or_episode_starts() -> None:
    policy = make_model(box(5), box(2)).policy
    inputs = torch.randn(2 * 6, 5, requires_grad=True)
    starts = torch.zeros(2, 6)
    starts[0, 3] = 1
    h = torch.zeros(1, 2, 12)
    latent, _ = policy._process_sequence(policy.extract_features(inputs), (h, h), starts.flatten(), policy.lstm_actor)
    latent[5].sum().backward()
    assert inputs.grad is not None
    reached = inputs.grad.abs().sum(dim=1).reshape(2, 6) > 0
    assert reached.tolist() == [[False] * 3 + [True] * 3, [False] * 6]


@pytest.mark.parametrize("critic", ["ltc", "lstm"])
def test_predict_carries_states(critic: str) -> None:
    model = make_model(box(5), box(2), policy_kwargs=dict(critic=critic))
    observations = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    state: tuple[np.ndarray, ...] | None = None
    for x in observations:
        action, state = model.predict(x, state, np.zeros(3), deterministic=True)
    assert action.shape == (3, 2) and state is not None and state[0].shape == (1, 3, 12)
    fresh, _ = model.predict(observations[-1], None, np.ones(3), deterministic=True)
    restarted, _ = model.predict(observations[-1], state, np.ones(3), deterministic=True)
    np.testing.assert_array_equal(fresh, restarted)
    assert not np.allclose(action, fresh)
    single, _ = model.predict(observations[-1, 0], deterministic=True)
    assert single.shape == (2,)


def test_elapsed_time_reaches_the_cell_as_time() -> None:
    model = make_model(TIMED, box(1), MultiInputNCPPolicy)
    policy = model.policy
    assert policy.wiring.n_sensory == 3 * 8 + 32 and not any("elapsed" in name for name in policy.sensory_names)
    venv = model.get_env()
    observation = obs_as_tensor(venv.reset(), model.device)
    assert isinstance(observation, dict)
    states = RNNStates(*2 * ((torch.randn(1, 3, 12), torch.zeros(1, 3, 12)),))
    observation["elapsed_time"] = torch.zeros(3, 1)
    with torch.no_grad():
        *_, after = policy(observation, states, torch.zeros(3))
    torch.testing.assert_close(after.pi[0], states.pi[0])  # No time has passed.
    observation["elapsed_time"] = -torch.ones(3, 1)
    with pytest.raises(ValueError, match=r"elapsed_time .* keep it out of normalisation"):
        policy(observation, states, torch.zeros(3))


def test_privileged_keys_reach_the_critic_alone() -> None:
    space = spaces.Dict(seen=box(3), hidden=box(2))
    model = make_model(space, box(1), MultiInputNCPPolicy, policy_kwargs=dict(privileged_keys=("hidden",)))
    policy = model.learn(32).policy
    assert policy.sensory_names[0] == "seen_0_0" and policy.wiring.n_sensory == 3 * 8
    states = RNNStates(*2 * ((torch.zeros(1, 1, 12), torch.zeros(1, 1, 12)),))

    def outcome(hidden: float) -> tuple[torch.Tensor, torch.Tensor]:
        observation = {"seen": torch.ones(1, 3), "hidden": torch.full((1, 2), hidden)}
        with torch.no_grad():
            action, value, *_ = policy(observation, states, torch.zeros(1), deterministic=True)
        return action, value

    (action, value), (other_action, other_value) = outcome(0.0), outcome(1.0)
    assert torch.equal(action, other_action) and not torch.equal(value, other_value)


def test_the_action_mean_is_the_motor_neuron() -> None:
    model: Any = RecurrentPPO(NCPPolicy, "Pendulum-v1", n_steps=16, seed=0)
    actor, policy = model.policy.lstm_actor, model.policy
    assert policy.action_net is actor.motor_map
    observation, h = torch.randn(1, 3), torch.zeros(1, 1, 32)
    with torch.no_grad():
        distribution, (state, _) = policy.get_distribution(observation, (h, h), torch.zeros(1))
        motor = actor.motor_map.weight * state[0, :, 0] + actor.motor_map.bias
    torch.testing.assert_close(distribution.mode()[0], motor)
    # At the start potentials from -1 to 1 reach over the torque from -2 to 2 newton metres.
    assert actor.motor_map.weight.item() == 2.0 and actor.motor_map.bias.item() == 0.0


@pytest.mark.parametrize("motor_map", ["affine", "dense"])
def test_a_mean_beyond_the_bounds_is_clipped_and_learns_back_inside_alone(motor_map: Any) -> None:
    policy: Any = NCPPolicy(box(3), box(1), lambda _: 3e-4, wiring=AutoNCP(12), motor_map=motor_map)
    last = policy.action_net if motor_map == "affine" else policy.action_net[1]
    with torch.no_grad():
        last.bias.fill_(9.0)
    h = torch.zeros(1, 1, 12)
    distribution, _ = policy.get_distribution(torch.zeros(1, 3), (h, h), torch.zeros(1))
    assert distribution.mode().item() == 1.0
    for action, leads in ((0.5, True), (1.5, False)):
        policy.zero_grad()
        (-distribution.log_prob(torch.tensor([[action]])).sum()).backward(retain_graph=True)
        assert bool(last.bias.grad.item() > 0) == leads


def test_dense_motor_map_on_request() -> None:
    kwargs = dict(motor_map="dense", n_motor=3)
    policy = make_model(box(5), box(2), policy_kwargs=kwargs).learn(32).policy
    assert policy.wiring.n_motor == 3 and isinstance(policy.action_net[1], nn.Linear)


def test_sensory_neurons_keep_the_names_of_observations() -> None:
    kwargs = dict(features_extractor_kwargs=dict(receptors=2, names=["x", "theta"]))
    assert make_model(box(2), box(1), policy_kwargs=kwargs).policy.sensory_names == ("x_0", "x_1", "theta_0", "theta_1")
    plain = make_model(box(2), box(1), policy_kwargs=dict(features_extractor_class=FlattenExtractor)).policy
    assert plain.sensory_names == ("feature_0", "feature_1")
    combined = dict(features_extractor_class=CombinedExtractor)
    multi = make_model(TIMED, box(1), MultiInputNCPPolicy, policy_kwargs=combined).policy
    assert len(multi.sensory_names) == multi.wiring.n_sensory == 3 + 256


NON_DEFAULT: dict[str, Any] = dict(
    wiring=AutoNCP(14, sparsity=0.3, seed=3),
    critic=FullyConnected(14, seed=5),
    net_arch=dict(vf=[7]),
    share_features_extractor=False,
    features_extractor_kwargs=dict(receptors=3),
    elapsed_time=0.1,
    ode_unfolds=4,
    init=LTCInit(tau=(2.0, 3.0)),
    motor_map="dense",
    n_motor=2,
)


def test_save_and_load(tmp_path: Path) -> None:
    model = make_model(box(5), box(3), policy_kwargs=NON_DEFAULT).learn(48)
    model.save(tmp_path / "model")
    model.policy.save(str(tmp_path / "policy.pt"))
    observations = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    loaded: Any = RecurrentPPO.load(tmp_path / "model", env=model.get_env(), device="cpu")
    policy: Any = NCPPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    for other in (loaded, policy):
        np.testing.assert_array_equal(other.predict(observations, deterministic=True)[0], expected)
    assert policy._get_constructor_parameters().keys() == loaded.policy._get_constructor_parameters().keys()
    assert policy.lstm_actor.ode_unfolds == 4 and policy.wiring == model.policy.wiring
    loaded.learn(48)


def test_load_across_devices(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = make_model(box(5), box(3), policy_kwargs=NON_DEFAULT, device="cuda").learn(48)
    model.save(tmp_path / "model")
    observations = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    loaded: Any = RecurrentPPO.load(tmp_path / "model", device="cpu")
    np.testing.assert_allclose(
        loaded.predict(observations, deterministic=True)[0],
        model.predict(observations, deterministic=True)[0],
        atol=1e-5,
    )


def test_eval_callback_and_vec_normalize(tmp_path: Path) -> None:
    venv: VecEnv = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    eval_venv = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=1), training=False, norm_reward=False)
    callback = EvalCallback(eval_venv, n_eval_episodes=2, eval_freq=32, best_model_save_path=str(tmp_path), verbose=0)
    RecurrentPPO(NCPPolicy, venv, n_steps=32, seed=0).learn(128, callback=callback)
    assert RecurrentPPO.load(tmp_path / "best_model.zip", env=eval_venv).predict(eval_venv.reset())[0].shape == (2, 1)


def test_learns_to_balance_a_pole_whose_velocity_is_hidden() -> None:
    """A policy without memory balances for some 50 of the 500 steps, whatever it learns."""

    def make_env() -> gym.Env[Any, Any]:
        return NoVelocity(gym.make("CartPole-v1"), kept=(0, 2))

    venv = VecNormalize(make_vec_env(make_env, n_envs=8, seed=1), norm_obs=False)
    enough = StopTrainingOnRewardThreshold(450)
    eval_venv = VecNormalize(
        make_vec_env(make_env, n_envs=10, seed=2), training=False, norm_obs=False, norm_reward=False
    )
    callback = EvalCallback(eval_venv, callback_on_new_best=enough, n_eval_episodes=20, eval_freq=1250, verbose=0)
    # Stock settings, but for smaller steps towards the end.
    model = RecurrentPPO(NCPPolicy, venv, learning_rate=LinearSchedule(3e-4, 0.0, 1.0), seed=1)
    model.learn(100_000, callback=callback)
    assert callback.best_mean_reward >= 450


def test_same_seed_same_policy() -> None:
    def learned() -> list[torch.Tensor]:
        return list(make_model(box(5), box(2)).learn(96).policy.parameters())

    assert all(torch.equal(a, b) for a, b in zip(learned(), learned(), strict=True))


def test_optimizer_holds_every_parameter_that_is_used() -> None:
    policy = make_model(box(5), box(2)).policy
    held = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in policy.parameters()}
    assert policy.optimizer.param_groups[0]["lr"] == 3e-4 and policy.optimizer.param_groups[0]["eps"] == 1e-12


def test_layers_of_pi_beside_the_critics_are_left_out_with_a_warning() -> None:
    """As rl-zoo's sampler sends them."""
    with pytest.warns(UserWarning, match=r"net_arch puts layers behind.*The layers of pi are ignored"):
        tuned = make_model(box(5), box(2), policy_kwargs=dict(net_arch=dict(pi=[64, 64], vf=[7]))).policy
    plain = make_model(box(5), box(2), policy_kwargs=dict(net_arch=dict(vf=[7]))).policy
    assert {name: p.shape for name, p in tuned.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(net_arch=[64, 64]), ValueError, "puts layers behind the motor neurons"),
        (dict(net_arch=dict(pi=[8])), ValueError, "puts layers behind the motor neurons"),
        (dict(critic="gru"), ValueError, 'critic must be "cell", "ltc", "cfc", .* or a recipe, got '),
        (dict(motor_map="linear"), ValueError, 'motor_map must be "affine" or "dense"'),
        (dict(n_motor=5), ValueError, "n_motor must be 2, a motor neuron for each action output, got 5"),
        (dict(critic=FullyConnected(7)), ValueError, "critic's recipe gives 7 neurons, the actor has 12"),
        (dict(wiring=AutoNCP(4)), ValueError, "n_motor must be from 1 to units - 3 = 1, got 2"),
        (dict(privileged_keys=("x",)), ValueError, "must be keys of the observation"),
        (dict(lstm_hidden_size=64), TypeError, r"use wiring=AutoNCP\(units=...\)"),
        (dict(enable_critic_lstm=False), TypeError, 'use critic="cell"'),
        (dict(nonsense=1), TypeError, "NCPPolicy has no argument 'nonsense'"),
        (dict(share_features_extractor=False, critic="shared"), AssertionError, "cannot be shared"),
        (dict(features_extractor_kwargs=dict(receptors=0)), ValueError, "receptors must be at least 1"),
        (dict(features_extractor_kwargs=dict(names=["a"])), ValueError, "names must name the 5 observed quantities"),
    ],
)
def test_what_makes_no_sense_is_refused(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_model(box(5), box(2), policy_kwargs=kwargs)


def test_images_and_times_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="use CnnNCPPolicy"):
        make_model(spaces.Box(0, 255, (36, 36, 3), np.uint8), box(1))
    with pytest.raises(ValueError, match="must be one number of seconds"):
        make_model(spaces.Dict(x=box(1), elapsed_time=box(2)), box(1), MultiInputNCPPolicy)
    with pytest.raises(ValueError, match="must read at least one key"):
        make_model(spaces.Dict(elapsed_time=box(1)), box(1), MultiInputNCPPolicy)


def test_action_names_are_kept_and_checked(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = dict(wiring=AutoNCP(8), action_names=["torque"])
    model = RecurrentPPO(NCPPolicy, "Pendulum-v1", n_steps=8, policy_kwargs=kwargs)
    model.save(tmp_path / "model")
    policy = RecurrentPPO.load(tmp_path / "model").policy
    assert isinstance(policy, NCPPolicy) and policy.action_names == ("torque",)
    with pytest.raises(ValueError, match="action_names must name the 2 action outputs"):
        RecurrentPPO(NCPPolicy, "CartPole-v1", n_steps=8, policy_kwargs=kwargs)
