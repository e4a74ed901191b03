"""What a policy cannot serve is refused while the model is made, in a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TransformAction
from sb3_contrib import TRPO, RecurrentPPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from ncp_rl import NCP, AutoNCP, CnnNCPPolicy, LTCInit, MultiInputNCPPolicy, NCPPolicy, Random
from ncp_rl.recording import Recording, record_rollouts, replay
from ncp_rl.runs import RunConfig, RunError, make_envs, make_model
from tests.random_env import RandomEnv, box

IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


def make(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any] | None = None,
    policy: type[NCPPolicy] = NCPPolicy,
    wrapper: Any = None,
    **policy_kwargs: Any,
) -> Any:
    actions = action_space or box(1)
    venv = make_vec_env(lambda: RandomEnv(observation_space, actions), n_envs=2, seed=0, wrapper_class=wrapper)
    policy_kwargs = dict(wiring=AutoNCP(16)) | policy_kwargs
    return RecurrentPPO(policy, venv, n_steps=8, batch_size=8, n_epochs=1, seed=0, policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3, start=5), r"Discrete\(3, start=5\) does not count from 0.*TransformAction"),
        (spaces.MultiDiscrete([2, 3], start=[0, 1]), r"MultiDiscrete.* does not count from 0.*TransformAction"),
        (spaces.MultiDiscrete(np.array([[2, 3]])), r"has several axes.*TransformAction"),
        (spaces.MultiBinary([2, 2]), r"has several axes.*TransformAction"),
        (spaces.Box(0, 5, (2,), np.int64), r"Box\(0, 5, \(2,\), int64\) holds whole numbers.*MultiDiscrete"),
        (spaces.Box(0, 255, (1,), np.uint8), r"holds whole numbers"),
        (spaces.Box(-1, 1, (0,), np.float32), r"holds no number"),
        (spaces.Dict(a=box(1)), r"Dict.* of a kind that policies do not serve"),
    ],
)
def test_action_spaces_that_sb3_serves_with_other_actions(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"The action space .*{message}"):
        NCPPolicy(box(2), space, lambda _: 1e-3)


def test_the_cure_for_actions_that_do_not_count_from_0() -> None:
    def cure(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return TransformAction(env, lambda action: action + 5, spaces.Discrete(3))

    make(box(2), spaces.Discrete(3, start=5), wrapper=cure).learn(16)  # The environment asserts its own space.


@pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")  # The space says so of a number.
def test_actions_without_axes() -> None:
    model = make(box(2), spaces.Box(-1, 1, (), np.float32)).learn(16)
    action, _ = model.predict(np.zeros((2, 2), np.float32))
    assert action.shape == (2,)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(5, start=5), r"The observation space, Discrete\(5, start=5\), does not count from 0"),
        (spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])), r"has several axes.*FlattenObservation"),
        (spaces.MultiDiscrete([2, 3], start=[1, 0]), r"does not count from 0.*FlattenObservation"),
        (spaces.Box(-1, 1, (0,), np.float32), r"holds no number; leave it out"),
        (spaces.Text(5), r"Text\(.* is of a kind that policies do not serve; let the environment give a Box"),
        (spaces.Sequence(box(2)), "Sequence.* is of a kind that policies do not serve"),
        (spaces.Graph(box(2), box(1)), "Graph.* is of a kind that policies do not serve"),
        (spaces.Tuple((box(2), box(1))), "is nested.*FlattenObservation"),
        (spaces.Dict(a=spaces.Dict(b=box(2))), "of key 'a', .* is nested.*FlattenObservation"),
        (spaces.Dict(a=box(2), b=spaces.Text(3)), "of key 'b', Text.* of a kind"),
        (spaces.Dict(a=box(2), b=spaces.Discrete(2, start=1)), "of key 'b', .* does not count from 0"),
        (spaces.Dict(), "[Dd]ict.*(without keys|not allowed)"),
    ],
)
def test_observation_spaces_are_refused_by_policy_and_runs(space: spaces.Space[Any], message: str) -> None:
    policy = MultiInputNCPPolicy if isinstance(space, spaces.Dict) else NCPPolicy
    with pytest.raises(ValueError, match=message):
        policy(space, box(1), lambda _: 1e-3)  # type: ignore[arg-type]
    gym.register("Riddle-v0", "tests.random_env:RandomEnv", kwargs=dict(observation_space=space, action_space=box(1)))
    try:
        with pytest.raises(RunError, match=rf"'Riddle-v0' cannot be made: .*{message}"):
            make_envs(RunConfig("Riddle-v0", {}), 1)
    finally:
        del gym.registry["Riddle-v0"]


def test_make_model_names_spaces_of_environments_that_others_made() -> None:
    config = RunConfig("Mine-v0", dict(policy="MlpPolicy"))
    with pytest.raises(RunError, match=r"No policy .* Discrete\(5, start=5\), does not count from 0"):
        make_model(config, make_vec_env(lambda: RandomEnv(spaces.Discrete(5, start=5), box(1))))


@pytest.mark.parametrize("space", [spaces.Discrete(5, start=5), spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]))])
def test_the_cure_for_discrete_observations(space: spaces.Space[Any]) -> None:
    make(space, wrapper=FlattenObservation).learn(16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_observations_without_axes(dtype: Any, tmp_path: Path) -> None:
    bare = spaces.Box(0, 100, (), dtype)
    model = make(bare).learn(16)
    assert model.policy.wiring.n_sensory == 8
    action, _ = model.predict(np.array([1, 2], dtype))
    assert action.shape == (2, 1) and model.predict(np.asarray(1, dtype))[0].shape == (1,)
    timed = spaces.Dict(a=bare, elapsed_time=spaces.Box(0, 1, (), np.float32))
    model = make(timed, policy=MultiInputNCPPolicy).learn(16)
    path = record_rollouts(model, model.get_env(), tmp_path / "bare.mcap", n_episodes=2, progress_bar=False)
    assert replay(path, model).passed and Recording.open(path)[0].observation.shape[1] == 2
    for space, encoder in ((bare, FlattenExtractor), (timed, CombinedExtractor)):
        policy = MultiInputNCPPolicy if isinstance(space, spaces.Dict) else NCPPolicy
        with pytest.raises(ValueError, match=r"has no axes, which .*Extractor cannot read; give it the shape \(1,\)"):
            make(space, policy=policy, features_extractor_class=encoder)


AWKWARD = ["imu.acc", "values", "type", "keys", "", "training", "100%", "forward", "x y"]


def test_keys_that_pytorch_cannot_name(tmp_path: Path) -> None:
    space = spaces.Dict({key: box(2) for key in AWKWARD})
    model = make(space, policy=MultiInputNCPPolicy, privileged_keys=("type",)).learn(16)
    assert "imu.acc_0_0" in model.policy.sensory_names
    model.save(tmp_path / "model")
    loaded = RecurrentPPO.load(tmp_path / "model", device="cpu")
    observation = {key: np.full(2, i, np.float32) for i, key in enumerate(AWKWARD)}
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    path = record_rollouts(model, model.get_env(), tmp_path / "keys.mcap", n_episodes=2, progress_bar=False)
    assert replay(path, model).passed
    with pytest.raises(ValueError, match=r"'imu\.acc' has a name that CombinedExtractor cannot hold; rename it"):
        make(spaces.Dict({"imu.acc": box(2)}), policy=MultiInputNCPPolicy, features_extractor_class=CombinedExtractor)


def test_ordinary_keys_keep_the_names_of_parameters_in_older_files() -> None:
    model = make(spaces.Dict(x=box(2), speed_2=box(1)), policy=MultiInputNCPPolicy)
    assert {"features_extractor.encoders.x.gain", "features_extractor.encoders.speed_2.gain"} <= set(
        model.policy.state_dict()
    )


def test_a_key_that_a_baseline_cannot_hold_is_a_run_error() -> None:
    config = RunConfig("Mine-v0", dict(policy="MultiInputPolicy"))
    with pytest.raises(RunError, match=r"imu\.acc"):
        make_model(config, make_vec_env(lambda: RandomEnv(spaces.Dict({"imu.acc": box(2)}), box(1))))


@pytest.mark.parametrize(
    ("policy", "space", "message"),
    [
        (NCPPolicy, spaces.Dict(x=box(2)), "is a Dict of 'x'; use MultiInputNCPPolicy"),
        (CnnNCPPolicy, spaces.Dict(x=box(2)), "is a Dict of 'x'; use MultiInputNCPPolicy"),
        (MultiInputNCPPolicy, box(2), r"observation space is Box.*; use NCPPolicy"),
        (MultiInputNCPPolicy, IMAGE, r"observation space is Box.*; use CnnNCPPolicy"),
        (MultiInputNCPPolicy, spaces.Discrete(3), r"use NCPPolicy"),
        (CnnNCPPolicy, box(2), r"reads images, .*; use NCPPolicy"),
        (NCPPolicy, IMAGE, r"use CnnNCPPolicy"),
        (CnnNCPPolicy, spaces.Box(0, 255, (20, 40, 3), np.uint8), r"takes 36 x 36 pixels or more; enlarge it"),
        (
            MultiInputNCPPolicy,
            spaces.Dict(camera=spaces.Box(0, 255, (20, 20, 1), np.uint8)),
            r"'camera' is an image of shape .*takes 36 x 36 pixels or more",
        ),
        (NCPPolicy, spaces.Box(0, 1, (36, 36, 3), np.float32), r"has the shape of an image.*as uint8 from 0 to 255"),
    ],
)
def test_the_class_that_fits_is_named(policy: type[NCPPolicy], space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(space, policy=policy)


def test_a_dict_is_read_by_an_encoder_that_can() -> None:
    space = spaces.Dict(x=box(2), y=spaces.Discrete(3))
    make(space, features_extractor_class=CombinedExtractor).learn(16)


def test_an_image_that_vec_normalize_normalises_is_no_vector() -> None:
    def venv(space: spaces.Space[Any]) -> VecEnv:
        return make_vec_env(lambda: RandomEnv(space, box(1)), n_envs=2, seed=0)

    def both() -> VecEnv:
        return venv(spaces.Dict(x=box(2), camera=IMAGE))

    with pytest.raises(ValueError, match=r"'camera' has the shape of an image, \(36, 36, 1\), .*norm_obs_keys"):
        RecurrentPPO(MultiInputNCPPolicy, VecNormalize(both(), norm_obs_keys=["x", "camera"]))
    model: Any = RecurrentPPO(MultiInputNCPPolicy, VecNormalize(both(), norm_obs_keys=["x"]))
    assert model.policy.wiring.n_sensory == 2 * 8 + 32
    for policy in (NCPPolicy, CnnNCPPolicy):
        with pytest.raises(ValueError, match=r"has the shape of an image.*norm_obs=False"):
            RecurrentPPO(policy, VecNormalize(venv(IMAGE)))


@pytest.mark.parametrize("algorithm", [PPO, A2C, TRPO, SAC])
def test_algorithms_without_states(algorithm: type[BaseAlgorithm]) -> None:
    with pytest.raises(TypeError, match=f"got {algorithm.__name__}; use sb3_contrib.RecurrentPPO"):
        algorithm(NCPPolicy, "Pendulum-v1")  # type: ignore[call-arg]

    class Own(algorithm):  # type: ignore[misc, valid-type]
        """An algorithm of the user's."""

    with pytest.raises(TypeError, match=r"NCPPolicy needs an algorithm that carries its state .*, got Own"):
        Own(NCPPolicy, "Pendulum-v1")


def test_a_policy_made_while_another_algorithm_trains() -> None:
    class Distil(BaseCallback):
        def _on_step(self) -> bool:
            self.student = NCPPolicy(self.model.observation_space, self.model.action_space, lambda _: 1e-3)
            self.learner = RecurrentPPO(NCPPolicy, "Pendulum-v1", n_steps=8)
            return False

    callback = Distil()
    PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8).learn(8, callback=callback)
    assert isinstance(callback.student, NCPPolicy)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(wiring=32), r"wiring must be a recipe such as AutoNCP\(units=32\), a Wiring, or a mapping .*, got 32"),
        (dict(wiring="AutoNCP"), r"got 'AutoNCP'"),
        (dict(wiring=AutoNCP), r"got <class"),
        (dict(wiring=None), r"got None"),
        (dict(critic=32), r"critic must be a recipe .* got 32"),
        (dict(wiring=dict(recipe="Auto", units=32)), r"recipe of wiring must be one of NCP, AutoNCP, .* got 'Auto'"),
        (
            dict(wiring=dict(unit=32)),
            r"AutoNCP, the recipe of wiring, takes units, .*, recurrence and needs units, got",
        ),
        (dict(critic=dict(recipe="Random")), r"Random, the recipe of critic, takes .* and needs units, got {}"),
    ],
)
def test_what_is_no_wiring(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(box(3), **kwargs)


def test_wirings_as_a_yml_file_has_them(tmp_path: Path) -> None:
    model = make(
        box(3),
        wiring=dict(recipe="AutoNCP", units=12, sparsity=0.3),
        critic=dict(recipe="Random", units=12, sparsity=0.5),
        init=dict(tau=[1.5, 2.5]),
    )
    policy = model.policy
    assert policy.recipe == AutoNCP(12, sparsity=0.3) and policy.critic_recipe == Random(12, sparsity=0.5)
    assert policy.init == LTCInit(tau=(1.5, 2.5))
    model.save(tmp_path / "model")
    loaded: Any = RecurrentPPO.load(tmp_path / "model", device="cpu")
    assert loaded.policy.recipe == policy.recipe and loaded.policy.wiring == policy.wiring
    whole = dict(
        recipe="NCP",
        inter_neurons=8,
        command_neurons=6,
        sensory_fanout=2,
        inter_fanout=3,
        recurrent_command_synapses=0,
        motor_fanin=3,
    )
    assert make(box(3), wiring=whole).policy.recipe == NCP(8, 6, 2, 3, 0, 3)
