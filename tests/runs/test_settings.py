"""Settings in rl-zoo's form: each entry is what it is to rl-zoo, or is refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecCheckNan, VecFrameStack, VecNormalize, unwrap_vec_normalize

from ncp_rl import MultiInputNCPPolicy, NCPPolicy
from ncp_rl.cli import evaluate as evaluate_script
from ncp_rl.cli import teach as teach_script
from ncp_rl.cli import train as train_script
from ncp_rl.policy import DEFAULT_WIRING
from ncp_rl.recording import record_rollouts, replay
from ncp_rl.runs import (
    GENERAL,
    RunConfig,
    RunError,
    general_settings,
    load_run,
    make_envs,
    make_model,
    policy_class,
    read_hyperparams,
    train,
    tuned_file,
)
from tests.random_env import box

PENDULUM = "ncp/PendulumNoVel-v1"
ROOT = Path(__file__).parents[2]
SMALL = dict(n_steps=8, batch_size=8, policy_kwargs=dict(wiring=dict(units=8)))
RANDOM_DISTURBANCES = "ncp_envs.RandomDisturbances"


def read(tmp_path: Path, entry: str, env_id: str = PENDULUM) -> dict[str, Any]:
    """An entry of a file, as a run has it."""
    path = tmp_path / "hyperparams.yml"
    path.write_text(f"{PENDULUM}:\n" + "".join(f"  {line}\n" for line in entry.splitlines()))
    return RunConfig(PENDULUM, read_hyperparams(path, env_id)).hyperparams


class Counting(BaseCallback):
    """Counts what it was made with and what it saw."""

    made: list[int] = []  # noqa: RUF012  (of all of them)

    def __init__(self, start: int = 0, loud: bool = False) -> None:
        super().__init__()
        self.made.append(start)

    def _on_step(self) -> bool:
        self.made[-1] += 1
        return True


class Shifted(gym.ObservationWrapper[Any, Any, Any]):
    """Adds to what is observed, and says where it was put on."""

    def __init__(self, env: gym.Env[Any, Any], by: float = 1.0) -> None:
        super().__init__(env)
        self.by = by

    def observation(self, observation: Any) -> Any:
        return observation + np.float32(self.by)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("normalize: \"{'norm_obs': False, 'norm_reward': True}\"", {"norm_obs": False, "norm_reward": True}),
        ('normalize: "dict(norm_obs=False, clip_obs=5.)"', {"norm_obs": False, "clip_obs": 5.0}),
        ("normalize: {norm_obs: no}", {"norm_obs": False}),
        ('normalize: "False"', False),
        ("normalize: off", False),
        (
            'policy_kwargs: "dict(log_std_init=-2, activation_fn=nn.ReLU, net_arch=dict(pi=[64, 64], vf=[64]))"',
            {"log_std_init": -2, "activation_fn": "nn.ReLU", "net_arch": {"pi": [64, 64], "vf": [64]}},
        ),
        (
            'policy_kwargs: "dict(optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5, betas=(0.9, 0.99)))"',
            {"optimizer_class": "RMSpropTFLike", "optimizer_kwargs": {"eps": 1e-5, "betas": [0.9, 0.99]}},
        ),
        ("policy_kwargs: {optimizer_kwargs: {eps: 1e-5}}", {"optimizer_kwargs": {"eps": 1e-5}}),
        ("env_kwargs: \"{'size': 3}\"", {"size": 3}),
        ("n_timesteps: 1e5", 100_000),
        ("learning_rate: 3e-4", 3e-4),
        ("learning_rate: lin_3e-4", "lin_3e-4"),
    ],
)
def test_text_is_read_as_what_it_stands_for(tmp_path: Path, entry: str, value: Any) -> None:
    assert list(read(tmp_path, entry).values()) == [value]
    # The same from Python, and from config.json.
    given = yaml.safe_load(entry)
    assert RunConfig(PENDULUM, given).hyperparams == read(tmp_path, entry)
    assert json.loads(json.dumps(read(tmp_path, entry))) == read(tmp_path, entry)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("normalize: 'yes please'", "normalize is text that cannot be read"),
        ("normalize: \"dict(norm_obs=__import__('os').getcwd())\"", "normalize is text that cannot be read"),
        ("policy_kwargs: \"dict(**{'a': 1})\"", "policy_kwargs is text that cannot be read"),
        ('policy_kwargs: "[64, 64]"', "policy_kwargs must be a mapping of arguments"),
        ("normalize: 1", "normalize must be true, false or a mapping of arguments, got 1"),
        ("env_kwargs: [1]", "env_kwargs must be a mapping"),
        ("n_envs: 0", "n_envs must be a whole number from 1 on, got 0"),
        ("n_envs: many", "n_envs must be a whole number"),
        ("frame_stack: yes", "frame_stack must be a whole number"),
        ("frame_stack: 2.5", "frame_stack must be a whole number"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        read(tmp_path, entry)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("use_sde: 'False'", "use_sde of RecurrentPPO must be true or false, got the text 'False'"),
        ("policy_kwargs: {ortho_init: 'no'}", "ortho_init of NCPPolicy must be true or false, got the text 'no'"),
        ("normalize: {norm_obs: 'False'}", "norm_obs of normalize must be true or false, got the text 'False'"),
        ("normalize: {norm_observations: false}", "normalize takes no argument 'norm_observations'; it takes"),
        ("n_steps: many", "n_steps must be a number, got 'many'"),
        ("noise_type: normal", "RecurrentPPO takes no argument 'noise_type'; it takes learning_rate"),
        ("seed: 3", "seed cannot be set here: the seed is RunConfig's"),
        ("disturb: {sensor_noise: 0.1}", "disturb cannot be set here: ncp-rl train reads it"),
        ("learning_rate: cos_1e-3", 'learning_rate must be a number or "lin_<number>"'),
        ("clip_range_vf: lin_", "clip_range_vf must be a number"),
        ("policy: no_such_module.Policy", "policy: 'no_such_module.Policy' cannot be imported: No module named"),
        ("policy: ncp_rl.LTC", "policy: 'ncp_rl.LTC' must be an actor-critic policy"),
        ("policy: GruPolicy", "policy must be one of NCPPolicy, .* or a dotted path such as ncp_rl.NCPPolicy"),
        ("policy_kwargs: {activation_fn: nn.Foo}", "activation_fn: 'nn.Foo' cannot be imported"),
        ("env_wrapper: rl_zoo9.wrappers.X", "env_wrapper: 'rl_zoo9.wrappers.X' cannot be imported"),
        ("env_wrapper: Shifted", "env_wrapper must be a dotted path such as package.module.Name"),
        ("env_wrapper: [3]", "env_wrapper must name a dotted path, or map it to arguments by name, got 3"),
        ("env_wrapper: {tests.runs.test_settings.Shifted: 3}", "or map it to arguments by name"),
        (
            "env_wrapper: {tests.runs.test_settings.Shifted: {of: 3}}",
            "takes no argument 'of'; it takes env, by",
        ),
        ("env_wrapper: {tests.runs.test_settings.Shifted: , by: 3}", "must map one dotted path to its arguments"),
        ("env_wrapper: tests.runs.test_settings.SMALL", "must be a class or function"),
        ("vec_env_wrapper: gymnasium.Nothing", "vec_env_wrapper: 'gymnasium.Nothing' cannot be imported"),
        ("env_kwargs: {wind: 3}", "unexpected keyword argument 'wind'"),
        ("env_kwargs: {sutton_barto_reward: 'no'}", "sutton_barto_reward of CartPole-v1 must be true or false"),
        ("callback: {tests.runs.test_settings.Counting: {loud: 'no'}}", "loud of .*Counting must be true or false"),
        ("callback: gymnasium.Wrapper", "The callbacks cannot be made"),
        ("callback: collections.OrderedDict", "collections.OrderedDict does not say which arguments it takes"),
        ("callback: collections.UserDict", "must be a BaseCallback of Stable-Baselines3"),
    ],
)
def test_what_cannot_be_done_is_named_before_a_folder_is_made(tmp_path: Path, entry: str, message: str) -> None:
    env_id = "CartPole-v1" if "CartPole" in message else PENDULUM
    with pytest.raises(RunError, match=message):
        train(RunConfig(env_id, read(tmp_path, entry)), tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run").exists()


def test_an_environment_is_found_as_the_zoo_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "hyperparams.yml"
    path.write_text("A-v0: {n_envs: 2}\natari: {n_envs: 3}\ndefault: {n_envs: 4}\n")
    gym.register("Pong-v9", "no_such_module:AtariEnv")
    try:
        found = [read_hyperparams(path, name)["n_envs"] for name in ("A-v0", "module:A-v0", "Pong-v9", "B-v0")]
    finally:
        del gym.registry["Pong-v9"]
    assert found == [2, 2, 3, 4]
    path.write_text("A-v0: 3")
    with pytest.raises(RunError, match=r"The hyperparameters of A-v0 in .* must be a mapping, got int"):
        read_hyperparams(path, "A-v0")


@pytest.mark.parametrize("normalize", ["{'norm_obs': False, 'norm_reward': True}", "dict(norm_obs=False)", "False"])
def test_text_is_never_taken_for_truth(normalize: str) -> None:
    venv = make_envs(RunConfig(PENDULUM, dict(normalize=normalize)), 1)
    found = unwrap_vec_normalize(venv)
    assert (found is None) == (normalize == "False") and (found is None or not found.norm_obs)


def test_normalises_with_the_algorithms_gamma_as_the_zoo_does() -> None:
    config = RunConfig(PENDULUM, dict(normalize=dict(gamma=0.5, norm_obs=False), gamma=0.9))
    venv = make_envs(config, 1)
    assert isinstance(venv, VecNormalize) and venv.gamma == 0.9 and venv.norm_reward
    assert isinstance(make_envs(RunConfig(PENDULUM, dict(normalize={})), 1), VecNormalize)


def test_wrappers_are_put_on_in_order_with_their_arguments(tmp_path: Path) -> None:
    entry = """\
env_wrapper:
  - tests.runs.test_settings.Shifted
  - tests.runs.test_settings.Shifted:
      by: 10
  - gymnasium.wrappers.FlattenObservation
vec_env_wrapper:
  - stable_baselines3.common.vec_env.VecCheckNan
frame_stack: 2
normalize: "dict(norm_obs=False)"
env_kwargs: {g: 5.0}
monitor_kwargs: "dict(info_keywords=('TimeLimit.truncated',))"
"""
    config = RunConfig(PENDULUM, read(tmp_path, entry))
    venv = make_envs(config, 2)
    assert isinstance(venv, VecNormalize) and isinstance(venv.venv, VecFrameStack)
    assert isinstance(venv.venv.venv, VecCheckNan)
    wrapped: Any = venv.get_attr("by")
    assert wrapped == [10, 10]
    seen = venv.reset()
    assert isinstance(seen, np.ndarray) and seen.shape == (2, 4)
    np.testing.assert_allclose(np.linalg.norm(seen[:, 2:] - 11, axis=1), 1, rtol=1e-5)  # cos and sin, shifted by 11.
    inner: Any = venv.get_attr("env")[0]
    assert inner.unwrapped.env.unwrapped.g == 5.0


def test_what_is_given_comes_before_and_around_what_is_configured() -> None:
    config = RunConfig(PENDULUM, dict(env_kwargs=dict(g=5.0, render_mode=None), env_wrapper=f"{__name__}.Shifted"))
    venv = make_envs(config, 1, env_kwargs=dict(g=7.0), wrapper_class=Shifted, wrapper_kwargs=dict(by=3.0))
    outer: Any = venv.get_attr("env")[0]
    assert venv.get_attr("by") == [3.0] and outer.by == 1.0
    assert outer.unwrapped.env.unwrapped.g == 7.0


def test_names_follow_the_stack_and_are_left_out_where_a_wrapper_observes_more() -> None:
    config = RunConfig(PENDULUM, dict(SMALL, frame_stack=3))
    policy = make_model(config, make_envs(config, 1)).policy
    assert isinstance(policy, NCPPolicy)
    assert policy.sensory_names[::8] == tuple(
        f"{name}{age}_0" for age in ("_before_2", "_before_1", "") for name in ("cos_theta", "sin_theta")
    )
    config = RunConfig(PENDULUM, dict(SMALL, env_wrapper="gymnasium.wrappers.TimeAwareObservation"))
    policy = make_model(config, make_envs(config, 1)).policy
    assert isinstance(policy, NCPPolicy) and policy.sensory_names[::8] == ("obs_0_0", "obs_1_0", "obs_2_0")
    with pytest.raises(RunError, match="frame_stack must be left out where 'elapsed_time'"):
        make_envs(RunConfig("ncp/PendulumIrregular-v0", dict(frame_stack=2)), 1)
    parts = dict(observation_space=spaces.Discrete(3), action_space=box(1))
    gym.register("Choice-v0", "tests.random_env:RandomEnv", kwargs=parts)
    try:
        with pytest.raises(RunError, match="frame_stack cannot stack Discrete"):
            make_envs(RunConfig("Choice-v0", dict(frame_stack=2)), 1)
    finally:
        del gym.registry["Choice-v0"]


def test_schedules_classes_and_policies_reach_the_model(tmp_path: Path) -> None:
    entry = (
        "learning_rate: lin_1e-3\nclip_range: lin_0.2\nclip_range_vf: lin_0.4\nn_steps: 8\nbatch_size: 8\npolicy: {}\n"
    )
    lstm = 'policy_kwargs: "dict(activation_fn=nn.ELU, lstm_hidden_size=4, net_arch=dict(pi=[6], vf=[5]))"'
    for policy, algorithm, kwargs in (
        (
            "ncp_rl.NCPPolicy",
            RecurrentPPO,
            "policy_kwargs: {wiring: {recipe: AutoNCP, units: 8}, activation_fn: nn.ELU}",
        ),
        ("MlpLstmPolicy", RecurrentPPO, lstm),
        ("sb3_contrib.common.recurrent.policies.RecurrentActorCriticPolicy", RecurrentPPO, lstm),
        ("stable_baselines3.common.policies.ActorCriticPolicy", PPO, "policy_kwargs: {activation_fn: torch.nn.ELU}"),
    ):
        config = RunConfig(PENDULUM, read(tmp_path, entry.format(policy) + kwargs))
        model = make_model(config, make_envs(config, 1))
        assert type(model) is algorithm and isinstance(model.policy, ActorCriticPolicy)
        assert isinstance(model.policy, NCPPolicy) == policy.startswith("ncp_rl")
        assert any(isinstance(module, torch.nn.ELU) for module in model.policy.modules())
        assert [model.lr_schedule(0.5), model.clip_range(0.5), model.clip_range_vf(0.5)] == [5e-4, 0.1, 0.2]  # type: ignore
    model.learn(8)


@pytest.mark.parametrize(
    ("file", "env_id"),
    [
        (file, env_id)
        for file in ("ncp_ppo.yml", "ncp_disturbed.yml")
        for env_id in yaml.safe_load((ROOT / "hyperparams" / file).read_text())
    ],
)
def test_our_files_serve_us_and_have_what_the_zoo_needs(file: str, env_id: str) -> None:
    found = read_hyperparams(ROOT / "hyperparams" / file, env_id)
    policy = policy_class(found["policy"])
    config = RunConfig(env_id, found)
    model = make_model(config, make_envs(config, 1), "cpu")
    # rl-zoo knows policies by their dotted path, and passes what is no entry of its own to the algorithm.
    assert "." in found["policy"] and policy is not None and type(model.policy) is policy
    assert policy is (MultiInputNCPPolicy if "Irregular" in env_id else NCPPolicy)
    assert isinstance(found["n_timesteps"], int)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under disturbances, with stacked observations and a callback, as its user starts it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "settings.yml").write_text(f"""\
{PENDULUM}:
  n_steps: 16
  batch_size: 16
  n_envs: 2
  n_timesteps: 64
  normalize: "dict(norm_obs=True, norm_reward=False)"
  frame_stack: 2
  policy: ncp_rl.NCPPolicy
  env_wrapper: {__name__}.Shifted
  disturb: {{sensor_bias: 0.5}}
  callback: {{{__name__}.Counting: {{start: 100}}}}
  policy_kwargs: {{wiring: {{units: 8}}}}
""")
    arguments = train_script.Args(
        hyperparams=folder / "settings.yml",
        disturb=("observation_delay=1..2", "sensor_noise=0.2"),
        out=folder / "run",
        eval_episodes=1,
        final_episodes=2,
        device="cpu",
        progress_bar=False,
    )
    assert train_script.main(arguments) == 0
    return folder / "run"


def test_a_run_says_under_what_it_was_trained(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    levels = {"observation_delay": [1, 2], "sensor_noise": 0.2}
    assert config["hyperparams"]["env_wrapper"] == [f"{__name__}.Shifted", {RANDOM_DISTURBANCES: levels}]
    assert "disturb" not in config["hyperparams"]
    assert Counting.made[-1] >= 100 + 64 // 2


def test_training_and_choosing_the_best_are_disturbed_and_what_follows_is_not(run: Path) -> None:
    config = RunConfig(**json.loads((run / "config.json").read_text()))
    for training in (True, False):
        assert make_envs(config, 1, training=training).has_attr("drawn")
    model, venv = load_run(run, n_envs=2, device="cpu")
    assert not venv.has_attr("drawn") and venv.has_attr("by")
    assert load_run(run, training_wrappers=True, device="cpu")[1].has_attr("drawn")
    assert isinstance(venv, VecNormalize) and not venv.training and model.observation_space.shape == (4,)


def test_stacked_observations_are_recorded_and_replayed(run: Path, tmp_path: Path) -> None:
    model, venv = load_run(run, n_envs=2, device="cpu")
    assert isinstance(model, RecurrentPPO)
    record_rollouts(model, venv, tmp_path / "stacked.mcap", n_episodes=2, progress_bar=False)
    found = replay(tmp_path / "stacked.mcap", *load_run(run, n_envs=2, device="cpu"))
    assert found.passed, str(found)


def test_a_run_is_evaluated_undisturbed_and_on_request_disturbed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for disturb in ((), ("sensor_noise=0",), ("action_delay=5",)):
        assert evaluate_script.main(evaluate_script.Args(run, episodes=1, device="cpu", disturb=disturb)) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]
    assert evaluate_script.main(evaluate_script.Args(run, disturb=("fog=1",))) == 2
    assert "There is no disturbance 'fog'" in capsys.readouterr().err


def test_train_refuses_disturbances_that_there_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for disturb, message in (("fog=1", "no disturbance 'fog'"), ("sensor_dropout=0..2", "sensor_dropout cannot have")):
        assert train_script.main(train_script.Args(disturb=(disturb,), out=tmp_path / "run")) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yml"
    path.write_text(
        "A-v0: {policy: MlpLstmPolicy, policy_kwargs: {lstm_hidden_size: 4}}\n"
        "B-v0: {policy_kwargs: {wiring: {units: 9}, elapsed_time: 0.5},\n"
        "  env_wrapper: x.Y, disturb: {sensor_noise: 0.1}}\n"
        f"D-v0: {{env_wrapper: {{{RANDOM_DISTURBANCES}: {{sensor_noise: 0.1}}}}}}\n"
    )

    def hyperparams(**given: Any) -> dict[str, Any]:
        return train_script.hyperparams(train_script.Args(hyperparams=path, **given))

    # What the file does not say about an environment of its own is as in rl-zoo; about others, general settings hold.
    lstm = dict(n_timesteps=200_000, policy="MlpLstmPolicy", policy_kwargs=dict(lstm_hidden_size=4))
    assert hyperparams(env="A-v0") == lstm == hyperparams(env="A-v0", policy="MlpLstmPolicy")
    own = dict(recipe="AutoNCP", **asdict(DEFAULT_WIRING))
    assert hyperparams(env="CartPole-v1") == GENERAL | dict(policy_kwargs=dict(wiring=own))
    lstm = dict(n_envs=8, n_timesteps=200_000, normalize=True, policy="MlpLstmPolicy", policy_kwargs={})
    assert hyperparams(env="CartPole-v1", policy="MlpLstmPolicy") == lstm
    assert hyperparams(env="CartPole-v1", units=12)["policy_kwargs"] == dict(wiring=own | dict(units=12))
    # Arguments of one kind of policy are none of another kind.
    assert hyperparams(env="A-v0", policy="NCPPolicy")["policy_kwargs"] == dict(wiring=own)
    assert hyperparams(env="B-v0", policy="MlpPolicy")["policy_kwargs"] == {}
    assert hyperparams(env="B-v0", policy="ncp_rl.NCPPolicy", units=12)["policy_kwargs"] == dict(
        wiring=dict(units=12), elapsed_time=0.5
    )
    assert hyperparams(env="A-v0", policy="ncp_rl.lstm.FastMlpLstmPolicy")["policy_kwargs"] == dict(lstm_hidden_size=4)
    assert hyperparams(env="B-v0")["env_wrapper"] == ["x.Y", {RANDOM_DISTURBANCES: dict(sensor_noise=0.1)}]
    assert hyperparams(env="B-v0", disturb=("sensor_bias=0..1",))["env_wrapper"] == [
        "x.Y",
        {RANDOM_DISTURBANCES: dict(sensor_bias=[0, 1])},
    ]
    assert hyperparams(env="D-v0")["env_wrapper"] == {RANDOM_DISTURBANCES: dict(sensor_noise=0.1)}
    instead = hyperparams(env="D-v0", disturb=("sensor_bias=0.2",))["env_wrapper"]
    assert instead == [{RANDOM_DISTURBANCES: dict(sensor_bias=0.2)}]


def test_baselines_have_settings_of_their_own_and_what_they_cannot_take_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hyperparams(policy: str, path: Path | None = None) -> dict[str, Any]:
        args = train_script.Args(env="ncp/PendulumNoVel-v1", policy=policy, hyperparams=path)
        return train_script.hyperparams(args)

    lstm, mlp = hyperparams("ncp_rl.lstm.FastMlpLstmPolicy"), hyperparams("MlpPolicy")
    assert (lstm["normalize"], lstm["n_envs"], lstm["policy_kwargs"]["lstm_hidden_size"]) == (True, 4, 64)
    assert (mlp["n_steps"], mlp["policy_kwargs"]) == (1024, {})
    assert not capsys.readouterr().err
    path = tmp_path / "settings.yml"
    path.write_text(
        "ncp/PendulumNoVel-v1: {policy: MlpLstmPolicy, policy_kwargs: {lstm_hidden_size: 4, net_arch: [8]}}\n"
    )
    assert hyperparams("MlpPolicy", path)["policy_kwargs"] == dict(net_arch=[8])
    assert capsys.readouterr().err == "ncp_rl: left out, since they do not fit MlpPolicy: lstm_hidden_size\n"
    assert list(hyperparams("NCPPolicy", path)["policy_kwargs"]) == ["wiring"]
    assert "since they do not fit NCPPolicy: lstm_hidden_size, net_arch" in capsys.readouterr().err


@pytest.mark.parametrize(("env", "log_std"), [("Pendulum-v1", -1.0), ("LunarLanderContinuous-v3", -1.35)])
def test_general_settings_explore_with_lasting_noise_where_actions_are_continuous(env: str, log_std: float) -> None:
    found = general_settings(env)
    assert found == GENERAL | dict(use_sde=True, sde_sample_freq=4, policy_kwargs=dict(log_std_init=log_std))
    assert train_script.hyperparams(train_script.Args(env=env))["policy_kwargs"]["log_std_init"] == log_std
    assert general_settings("CartPole-v1") == GENERAL
    assert general_settings(env, "MlpPolicy") == dict(n_envs=8, normalize=True)


def test_students_explore_as_circuits_do_only_if_they_are_circuits(tmp_path: Path) -> None:
    def settings(policy: str | None) -> dict[str, Any]:
        student = teach_script.Student(out=tmp_path / "taught", env="Pendulum-v1", policy=policy)
        return teach_script.settings(teach_script.Dagger("a.Expert", student))

    assert settings(None)["policy_kwargs"]["log_std_init"] == -1.0
    assert settings("MlpPolicy") == GENERAL | dict(policy="MlpPolicy", policy_kwargs={})


def test_what_only_circuits_have_is_refused_for_others() -> None:
    with pytest.raises(RunError, match="Only NCP policies have units, cell, and MlpLstmPolicy is no NCP policy"):
        train_script.hyperparams(train_script.Args(policy="MlpLstmPolicy", units=12, cell="cfc"))


def test_settings_come_from_the_file_that_is_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tuned_file() == ROOT / "hyperparams" / "ncp_ppo.yml"
    found = train_script.hyperparams(train_script.Args(env=PENDULUM))
    assert found["gamma"] == 0.9
    monkeypatch.setattr("ncp_rl.runs.tuned._FOLDERS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(RunError, match=r"ncp_ppo.yml is neither in .*a nor in .*b; install ncp-rl again"):
        train_script.hyperparams(train_script.Args(env=PENDULUM))


def test_settings_that_no_file_can_hold_are_refused(tmp_path: Path) -> None:
    config = RunConfig(PENDULUM, dict(policy_kwargs=dict(activation_fn=torch.nn.ReLU)))
    with pytest.raises(RunError, match=r"cannot be kept in config.json.*name classes by their dotted paths"):
        train(config, tmp_path / "run", progress_bar=False)
