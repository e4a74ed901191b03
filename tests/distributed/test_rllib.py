"""RLlib trains the policy of RecurrentPPO: same pass, same steps; what dies goes on; the run folder at the end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import pytest
import torch
from gymnasium import spaces
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor

from ncp_rl import AutoNCP, CnnNCPPolicy, MultiInputNCPPolicy, NCPPolicy, runs
from ncp_rl.cli import main
from ncp_rl.distributed.cluster import ray_running
from ncp_rl.distributed.rllib import NCPModule, RunEnvironment, Workers, algorithm_config, resume, train
from ncp_rl.distributed.rllib.environment import pooled
from ncp_rl.distributed.rllib.settings import default_seq_len
from ncp_rl.distributed.rllib.training import Processes
from ncp_rl.encoder import ELAPSED_TIME, Standardize
from ncp_rl.learning import LR_SCALE, VALUE_GRADIENT, ScaledAdam
from ncp_rl.policy import frozen_standardization
from ncp_rl.runs import Evaluation, RunConfig, RunError, evaluate, load_run, make_envs, make_model
from ncp_rl.runs.checkpoint import TrainingPlan, read_checkpoint
from ncp_rl.runs.folder import RLLIB
from ncp_rl.runs.training import parts_of_training
from tests.runs.test_resume import assert_equal

ENV = "ncp/PendulumNoVel-v1"
#: Steps, sequences and units of the forward passes that are compared.
T, N, U = 11, 3, 9
SETTINGS: dict[str, Any] = dict(
    n_envs=2,
    n_timesteps=1536,
    n_steps=64,
    batch_size=64,
    n_epochs=1,
    gamma=0.9,
    learning_rate="lin_3e-4",
    normalize=dict(norm_obs=False, norm_reward=True),
    env_kwargs=dict(max_episode_steps=25),
    policy_kwargs=dict(wiring=dict(units=10)),
)
VECTOR = spaces.Box(-5, 5, (2,))
TIMED = spaces.Dict({"x": VECTOR, ELAPSED_TIME: spaces.Box(0, 1, (1,))})
TORQUE = spaces.Box(-2, 2, (1,))

kinds = pytest.mark.parametrize(
    ("observation_space", "action_space", "kwargs"),
    [
        (VECTOR, TORQUE, {}),
        (VECTOR, TORQUE, dict(use_sde=True, critic="mlp")),
        (VECTOR, spaces.Discrete(3), dict(critic="lstm")),
        (VECTOR, spaces.MultiDiscrete([2, 3]), dict(critic="shared")),
        (TIMED, TORQUE, dict(privileged_keys=("y",))),
        (VECTOR, spaces.Box(-1, 1, (2,)), dict(cell="cfc", motor_map="dense")),
        (spaces.Box(0, 255, (1, 36, 36), np.uint8), TORQUE, {}),
    ],
    ids=["box", "gsde", "discrete", "multi_discrete", "privileged_and_timed", "cfc", "image"],
)


def policy_of(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], **kwargs: Any) -> NCPPolicy:
    if "privileged_keys" in kwargs:
        assert isinstance(observation_space, spaces.Dict)
        observation_space = spaces.Dict({**observation_space.spaces, "y": VECTOR})
    kind: Any = MultiInputNCPPolicy if isinstance(observation_space, spaces.Dict) else NCPPolicy
    kind = CnnNCPPolicy if is_image_space(observation_space) else kind
    torch.manual_seed(0)
    policy: NCPPolicy = kind(observation_space, action_space, lambda _: 1e-3, wiring=AutoNCP(U), **kwargs)
    for module in policy.modules():
        if isinstance(module, Standardize):
            module.mean += 0.3
            module.std *= 1.7
    return policy


def readings(space: spaces.Space[Any]) -> Any:
    """(T, N, ...), drawn from a space."""
    if isinstance(space, spaces.Dict):
        return {key: readings(part) for key, part in space.items()}
    space.seed(1)
    return torch.from_numpy(np.stack([[space.sample() for _ in range(N)] for _ in range(T)]))


def at(observations: Any, index: Any) -> Any:
    return {k: v[index] for k, v in observations.items()} if isinstance(observations, dict) else observations[index]


def zeros() -> RNNStates:
    return RNNStates(*((torch.zeros(1, N, U), torch.zeros(1, N, U)) for _ in range(2)))


@kinds
def test_rollouts_are_those_of_the_policy(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], kwargs: dict[str, Any]
) -> None:
    """Sampled actions, values and log-probabilities, bit for bit, over steps in which some episodes start anew."""
    policy = policy_of(observation_space, action_space, **kwargs)
    module = NCPModule.around(policy, max_seq_len=T, sde_sample_freq=4)
    observations = readings(policy.observation_space)
    starts = torch.from_numpy(np.random.default_rng(0).random((T, N)) < 0.3).float()
    starts[0] = 1
    ours, theirs = [], []
    torch.manual_seed(7)
    states = zeros()
    with torch.no_grad(), frozen_standardization(policy):
        for t in range(T):
            if policy.use_sde and t % 4 == 0:
                policy.reset_noise(N)
            *found, states = policy.forward(at(observations, t), states, starts[t])
            theirs.append([found[0], found[1].flatten(), found[2]])
    torch.manual_seed(7)
    initial = module.get_initial_state()
    column = {name: part.expand(N, -1) for name, part in initial.items()}
    for t in range(T):
        # RLlib's connectors give the initial state where an episode starts.
        column = {k: torch.where(starts[t][:, None] > 0, initial[k], part) for k, part in column.items()}
        batch = {Columns.OBS: at(observations, (t, slice(None), None)), Columns.STATE_IN: column}
        output = module.forward_exploration(batch)
        values = module.compute_values(batch).detach()
        ours.append([part[:, 0] for part in (output[Columns.ACTIONS], values, output[Columns.ACTION_LOGP])])
        column = output[Columns.STATE_OUT]
    for mine, others in zip(ours, theirs, strict=True):
        for a, b in zip(mine, others, strict=True):
            assert torch.equal(a, b)


@kinds
def test_updates_see_what_the_policy_sees(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], kwargs: dict[str, Any]
) -> None:
    """Values, log-probabilities and entropies of whole sequences, and that the value's gradient is scaled."""
    policy = policy_of(observation_space, action_space, **kwargs)
    module = NCPModule.around(policy, max_seq_len=T)
    observations = readings(policy.observation_space)
    sequences = {k: v.swapaxes(0, 1) for k, v in observations.items()} if isinstance(observations, dict) else None
    sequences = observations.swapaxes(0, 1) if sequences is None else sequences
    flat = at(sequences, slice(None))
    flat = {k: v.flatten(0, 1) for k, v in flat.items()} if isinstance(flat, dict) else flat.flatten(0, 1)
    with torch.no_grad(), frozen_standardization(policy):
        actions = policy.forward(flat, zeros(), torch.zeros(N * T))[0]
        values, log_probs, entropies = policy.evaluate_actions(flat, actions, zeros(), torch.zeros(N * T))
    column = {name: part.expand(N, -1) for name, part in module.get_initial_state().items()}
    batch = {Columns.OBS: sequences, Columns.STATE_IN: column}
    output = module.forward_train(batch)
    found = module.compute_values(batch, embeddings=output[Columns.EMBEDDINGS])
    distribution: Any = module.get_train_action_dist_cls().from_logits(output[Columns.ACTION_DIST_INPUTS])
    assert torch.equal(found.flatten(), values.flatten())
    assert torch.equal(distribution.logp(actions.reshape(N, T, *actions.shape[1:])).flatten(), log_probs)
    assert entropies is not None
    torch.testing.assert_close(distribution.entropy().flatten(), entropies)
    head: Any = module.policy.value_net
    last = head[0].weight
    (scaled,) = torch.autograd.grad(found.sum(), last)
    (whole,) = torch.autograd.grad(module.compute_values(batch).sum(), last)
    torch.testing.assert_close(scaled, VALUE_GRADIENT * whole)


def test_spaces_that_rllib_lacks_are_refused() -> None:
    policy = policy_of(VECTOR, spaces.MultiBinary(2))
    with pytest.raises(ValueError, match="Discrete, or MultiDiscrete or Box with one axis, got MultiBinary"):
        NCPModule.around(policy, max_seq_len=T)


def test_an_environment_is_that_of_the_run() -> None:
    """Observations, the last one of an episode too, and rewards."""
    config = RunConfig(ENV, SETTINGS | dict(normalize=None))
    env = RunEnvironment(dict(config=asdict(config), modules=()))
    venv: Any = make_envs(config, 1)
    seen, _ = env.reset(seed=3)
    venv.seed(env._seed(3))
    assert np.array_equal(seen, venv.reset()[0])
    rng = np.random.default_rng(0)
    for t in range(60):
        action = rng.uniform(-2, 2, 1).astype(np.float32)
        seen, reward, terminated, truncated, info = env.step(action)
        others, rewards, dones, infos = venv.step(action[None])
        assert (terminated, truncated) == (False, t % 25 == 24) and bool(dones[0]) is truncated
        assert np.array_equal(seen, infos[0]["terminal_observation"] if truncated else others[0])
        assert reward == rewards[0]
        if truncated:
            assert np.array_equal(info["episode"], [infos[0]["episode"]["r"], 25])
            seen, _ = env.reset()
            assert np.array_equal(seen, others[0])


def test_environments_of_different_runners_start_differently() -> None:
    class Context(dict[str, Any]):
        worker_index = 1

    context = dict(config=asdict(RunConfig(ENV, SETTINGS)), modules=())
    second = Context(context)
    second.worker_index = 2
    firsts = [RunEnvironment(c).reset(seed=seed)[0] for c, seed in ((Context(context), 1), (second, 2))]
    counted_on = RunEnvironment(Context(context)).reset(seed=2)[0]  # RLlib's seed of the next environment of a runner.
    assert len({part.tobytes() for part in (*firsts, counted_on)}) == 3


def test_environments_go_on_from_the_rewards_that_all_have_seen() -> None:
    config = dict(config=asdict(RunConfig(ENV, SETTINGS)), modules=())
    first, second = (RunEnvironment(config) for _ in range(2))
    for env, n_steps in ((first, 30), (second, 50)):
        env.reset(seed=n_steps)
        for _ in range(n_steps):
            if env.step(np.zeros(1))[3]:
                env.reset()
    seen = [env.spread() for env in (first, second)]
    assert seen[0] is not None and seen[1] is not None and vars(seen[0]) != vars(seen[1])
    both = pooled([part for part in seen if part is not None])
    assert both.count == pytest.approx(40, abs=1e-3)
    assert both.mean == pytest.approx((30 * seen[0].mean + 50 * seen[1].mean) / 80, rel=1e-4)
    assert min(part.var for part in seen if part) < both.var
    going_on = RunEnvironment(config | dict(rewards=both)).spread()
    assert going_on is not None
    assert vars(going_on) == pytest.approx(vars(both), rel=1e-3)
    assert RunEnvironment(config | dict(config=asdict(RunConfig(ENV, {})))).spread() is None


def refused(workers: Workers | None = None, **settings: Any) -> str:
    with pytest.raises(RunError) as error:
        train(RunConfig(ENV, SETTINGS | settings), Path("nowhere"), workers=workers, progress_bar=False)
    assert not Path("nowhere").exists()
    return str(error.value)


def test_settings_that_rllib_lacks_are_refused() -> None:
    assert "nothing like target_kl=0.1" in refused(target_kl=0.1)
    assert "nothing like callback='a.B'" in refused(callback="a.B")
    assert "nothing like stats_window_size" in refused(stats_window_size=3)
    assert "normalize must be {norm_obs: false" in refused(normalize=True)
    assert "clip_range must be a number" in refused(clip_range="lin_0.2")
    assert "MlpLstmPolicy is none" in refused(policy="MlpLstmPolicy")
    assert "n_envs must be a multiple of the 2 env runners" in refused(n_envs=3)
    assert "squash_output" in refused(policy_kwargs=dict(squash_output=True))
    assert "must be multiples of the 3 learners" in refused(Workers(learners=3))
    with pytest.raises(RunError, match="runners must be at least 1, got 0"):
        Workers(runners=0)


@pytest.mark.parametrize(
    ("n_steps", "batch_size", "expected"), [(128, 128, 129), (256, 128, 129), (128, 512, 129), (100, 40, 34)]
)
def test_sequences_are_as_long_as_minibatches_allow(n_steps: int, batch_size: int, expected: int) -> None:
    assert default_seq_len(n_steps, batch_size) == expected


class Keep(ConnectorV2):
    """Keeps the batch of an update."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        self.batch = dict(batch[DEFAULT_MODULE_ID])
        return batch


class Local(NamedTuple):
    """A rollout of one environment in this process, and a learner that has learned from it."""

    policy: NCPPolicy
    episodes: list[tuple[Any, Any, Any]]
    """Observations, actions and their log-probabilities."""
    batch: dict[str, Any]
    before: dict[str, Tensor]
    learner: Any


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    with ray_running(None, 3):
        yield


@pytest.fixture(scope="module")
def local(on_ray: None) -> Local:
    config = RunConfig(ENV, SETTINGS | dict(n_envs=1, n_steps=60, batch_size=60))
    model = make_model(config, make_envs(config, 1), "cpu")
    assert isinstance(model, RecurrentPPO) and isinstance(model.policy, NCPPolicy)
    settings = algorithm_config(config, model, Workers(runners=1, max_seq_len=20))
    runner: Any = SingleAgentEnvRunner(config=settings, worker_index=1)
    weights = {f"policy.{name}": part.numpy() for name, part in model.policy.state_dict().items()}
    runner.module.set_state(weights)
    episodes = runner.sample(num_timesteps=60)
    both = (model.observation_space, model.action_space)
    learner: Any = settings.build_learner(env=None, spaces={DEFAULT_MODULE_ID: both})
    learner.module[DEFAULT_MODULE_ID].set_state(weights)
    policy = learner.module[DEFAULT_MODULE_ID].policy
    kept = Keep()
    learner._learner_connector.append(kept)
    before = {name: part.clone() for name, part in policy.state_dict().items()}
    observed = [episode.get_observations() for episode in episodes]
    logged = [episode.get_extra_model_outputs(Columns.ACTION_LOGP) for episode in episodes]
    actions = [episode.get_actions() for episode in episodes]
    learner.update(episodes=episodes, timesteps={}, num_epochs=1, minibatch_size=None)
    model.policy.load_state_dict(before)
    return Local(model.policy, list(zip(observed, actions, logged, strict=True)), kept.batch, before, learner)


def test_episodes_through_rllibs_connectors_are_one_sequence_of_the_policy(local: Local) -> None:
    """Three episodes by the env runner, one of them cut, against a single pass with resets, bit for bit."""
    lengths = [len(actions) for _, actions, _ in local.episodes]
    assert lengths == [25, 25, 10]
    observations = torch.from_numpy(np.concatenate([seen[:-1] for seen, _, _ in local.episodes]))
    actions = torch.from_numpy(np.concatenate([taken for _, taken, _ in local.episodes]))
    starts = torch.zeros(60)
    starts[[0, 25, 50]] = 1
    units = local.policy.wiring.units
    states = RNNStates(*((torch.zeros(1, 1, units), torch.zeros(1, 1, units)) for _ in range(2)))
    with torch.no_grad():
        _, log_probs, _ = local.policy.evaluate_actions(observations, actions, states, starts)
    assert np.array_equal(log_probs.numpy(), np.concatenate([logged for _, _, logged in local.episodes]))


def test_sequences_are_cut_and_padded_as_the_module_says(local: Local) -> None:
    # 25 + 1, 25 + 1 and 10 + 1 steps, the last of which serve the value alone, in sequences of 20.
    assert local.batch[Columns.OBS].shape[:2] == (5, 20)
    assert local.batch[Columns.LOSS_MASK].sum(1).tolist() == [20, 5, 20, 5, 10]
    assert set(local.batch[Columns.STATE_IN]) == {"actor", "critic"}
    assert local.batch[Columns.STATE_IN]["actor"].abs().sum(1).gt(0).tolist() == [False, True, False, True, False]


def test_the_learner_takes_the_policys_steps(local: Local) -> None:
    """The first step of Adam is one learning rate long, whatever the gradient, but for epsilon."""
    policy = local.learner.module[DEFAULT_MODULE_ID].policy
    optimizer = local.learner.get_optimizer(DEFAULT_MODULE_ID)
    assert optimizer is policy.optimizer and isinstance(optimizer, ScaledAdam)
    moved = {name: (part - local.before[name]).abs() for name, part in policy.named_parameters()}
    assert moved["log_std"].max().item() == pytest.approx(3e-4, rel=1e-2)
    circuit = torch.cat([part.flatten() for name, part in moved.items() if name.startswith("lstm_actor")])
    assert circuit[circuit > 0].median().item() == pytest.approx(LR_SCALE * 3e-4, rel=1e-2)
    critic = torch.cat([part.flatten() for name, part in moved.items() if name.startswith("value_net")])
    assert critic.median().item() == pytest.approx(LR_SCALE * 3e-4, rel=1e-2)


def test_standardize_moves_by_the_steps_of_the_rollout_alone(local: Local) -> None:
    policy = local.learner.module[DEFAULT_MODULE_ID].policy
    (found,) = (module for module in policy.modules() if isinstance(module, Standardize))
    seen = np.concatenate([observed[:-1] for observed, _, _ in local.episodes])
    assert found.count.item() == 60
    np.testing.assert_allclose(found.mean.numpy(), seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.std.numpy(), seen.std(0), atol=1e-4)
    name = next(name for name in local.before if name.endswith("standardize.count"))
    assert local.before[name].item() == 0


class Trained(NamedTuple):
    """A training by two env runners, one of which was killed, and later all."""

    folder: Path
    curve: list[dict[str, str]]
    evaluated: list[int]


def env_runners() -> list[int]:
    """Processes of env runners, by the titles that Ray gives them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if title.startswith(b"ray::SingleAgentEnvRunner") and is_mine(int(path.parent.name)):
            found.append(int(path.parent.name))
    return found


def is_mine(pid: int) -> bool:
    """Whether this process is its ancestor: trainings of others may run on this machine."""
    while pid > 1:
        if pid == os.getpid():
            return True
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(status.partition("PPid:")[2].split()[0])
    return False


@pytest.fixture(scope="module")
def trained(on_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("rllib") / "run"
    evaluated: list[int] = []

    def kill(steps: int, _: Evaluation) -> None:
        # One of them after the first evaluation, and whichever there are after the second.
        runners = env_runners()
        for pid in ([runners[:1], runners, []])[len(evaluated)]:
            os.kill(pid, signal.SIGKILL)
        evaluated.append(steps)

    model = train(
        RunConfig(ENV, SETTINGS),
        folder,
        n_evaluations=3,
        n_eval_episodes=2,
        modules=("ncp_envs",),
        progress_bar=False,
        on_evaluation=kill,
    )
    assert model.num_timesteps >= SETTINGS["n_timesteps"]
    with (folder / "progress.csv").open(newline="") as file:
        return Trained(folder, list(csv.DictReader(file)), evaluated)


def test_a_training_goes_on_without_dead_env_runners(trained: Trained) -> None:
    runners = [int(line["time/env_runners"]) for line in trained.curve if line["time/env_runners"]]
    assert runners[0] == 2 and min(runners[1:]) == 1
    assert trained.evaluated == [512, 1024, 1536]
    steps = [int(line["time/total_timesteps"]) for line in trained.curve if line["time/total_timesteps"]]
    assert steps == list(range(128, 1537, 128))


def test_a_training_ends_as_a_run_folder(trained: Trained) -> None:
    model, venv = load_run(trained.folder, n_envs=2, device="cpu")
    assert isinstance(model.policy, NCPPolicy)
    assert len(evaluate(model, venv, n_episodes=2).returns) == 2
    venv.close()
    last, venv = load_run(trained.folder, which="last", device="cpu")
    venv.close()
    assert last.num_timesteps == 1536
    (found,) = (module for module in last.policy.modules() if isinstance(module, Standardize))
    assert found.count.item() == 1536
    assert json.loads((trained.folder / "rllib.json").read_text())["runners"] == 2
    names = {str(path.relative_to(trained.folder)) for path in trained.folder.rglob("*")}
    assert {"config.json", "evaluations.npz", "progress.csv", "best/vecnormalize.pkl"} <= names
    assert {f"checkpoints/model_{steps}_steps.zip" for steps in trained.evaluated} <= names
    assert any(line["rollout/ep_rew_mean"] for line in trained.curve)


class Cut(NamedTuple):
    """A training that was interrupted at its second evaluation, after its first checkpoint, and went on."""

    folder: Path
    checkpoint: dict[str, Any]
    restored: dict[str, Any]
    evaluated: list[int]
    model: OnPolicyAlgorithm


@pytest.fixture(scope="module")
def cut(on_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    folder = tmp_path_factory.mktemp("cut") / "run"
    evaluated: list[int] = []

    def interrupt(steps: int, _: Evaluation) -> None:
        evaluated.append(steps)
        if len(evaluated) == 2:
            raise KeyboardInterrupt

    with pytest.raises(RunError, match=f"--resume {folder} goes on from step 512"):
        train(
            RunConfig(ENV, SETTINGS),
            folder,
            workers=Workers(runners=1),
            n_evaluations=3,
            n_eval_episodes=2,
            n_checkpoints=3,
            modules=("ncp_envs",),
            progress_bar=False,
            on_evaluation=interrupt,
        )
    checkpoint = read_checkpoint(folder)
    with parts_of_training(RunConfig(ENV, SETTINGS), TrainingPlan(3, 2, 3), "cpu") as made:
        spread = Processes.read(folder)
        with spread.running(spread.settings(made, checkpoint), made) as algorithm:
            algorithm.set_state(checkpoint["algorithm"])
            restored = algorithm.get_state()
    model = resume(
        folder,
        workers=Workers(runners=2),
        progress_bar=False,
        on_evaluation=lambda steps, _: evaluated.append(steps),
    )
    return Cut(folder, checkpoint, restored, evaluated, model)


def test_an_interrupted_training_goes_on(cut: Cut) -> None:
    assert cut.evaluated == [512, 1024, 1024, 1536]
    with (cut.folder / "progress.csv").open(newline="") as file:
        curve = [line for line in csv.DictReader(file) if line["time/total_timesteps"]]
    assert [int(line["time/total_timesteps"]) for line in curve] == list(range(128, 1537, 128))
    assert [int(line["time/iterations"]) for line in curve] == list(range(1, 13))
    rates = [float(line["train/learning_rate"]) for line in curve]
    assert rates == pytest.approx(np.linspace(11 / 12, 0, 12) * 3e-4)
    assert [int(line["time/env_runners"]) for line in curve] == [1] * 4 + [2] * 8
    assert list(np.load(cut.folder / "evaluations.npz")["timesteps"]) == [512, 1024, 1536]
    assert "At step 512 the training goes on; episodes begin anew" in (cut.folder / "resumed.log").read_text()
    (found,) = (module for module in cut.model.policy.modules() if isinstance(module, Standardize))
    assert found.count.item() == cut.model.num_timesteps == 1536
    assert read_checkpoint(cut.folder)["steps"] == 1536
    assert json.loads((cut.folder / RLLIB).read_text())["runners"] == 2


def test_a_resumed_learner_has_weights_and_moments_of_the_checkpoint(cut: Cut) -> None:
    saved, restored = (state["learner_group"]["learner"] for state in (cut.checkpoint["algorithm"], cut.restored))
    for part in ("rl_module", "optimizer"):
        assert_equal(saved[part], restored[part])
    optimizer = restored["optimizer"]["default_policy_default_optimizer"]["state"]
    moments = optimizer["state"][0]
    assert moments["step"] > 0 and np.abs(moments["exp_avg"]).max() > 0
    assert {group["lr_scale"] for group in optimizer["param_groups"]} == {LR_SCALE, 1.0}


def test_what_did_not_train_by_rllib_does_not_go_on_by_it(cut: Cut, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="was trained by RLlib, which goes on with it"):
        runs.resume(cut.folder)
    with pytest.raises(RunError, match="has taken 1,536 steps of 1,536 and is finished"):
        resume(cut.folder, progress_bar=False)
    runs.train(
        RunConfig(ENV, SETTINGS | dict(n_timesteps=128)), tmp_path / "run", n_eval_episodes=1, progress_bar=False
    )
    with pytest.raises(RunError, match="was not trained by RLlib; ncp-rl train --resume"):
        resume(tmp_path / "run", progress_bar=False)
    shutil.copytree(cut.folder, tmp_path / "damaged")
    (tmp_path / "damaged" / RLLIB).write_text('{"runners": 2}')
    with pytest.raises(RunError, match=r"rllib.json does not say how the training was spread: KeyError"):
        resume(tmp_path / "damaged", n_timesteps=2000, progress_bar=False)


def test_the_command_goes_on_with_a_finished_training(cut: Cut, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(cut.folder, folder)
    options = ["--resume", str(folder), "--timesteps", "1664", "--rllib-runners", "1", "--final-episodes", "1"]
    assert main(["train", *options, "--no-progress-bar"]) == 0
    model, venv = load_run(folder, which="last", device="cpu")
    venv.close()
    assert model.num_timesteps == 1664


# Ray's learners set all of a context in Ray Data, which warns of what is outdated in it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_learners_share_batches_and_what_standardize_has_seen(on_ray: None, tmp_path: Path) -> None:
    settings = SETTINGS | dict(n_timesteps=256)
    model = train(
        RunConfig(ENV, settings),
        tmp_path / "run",
        workers=Workers(runners=1, learners=2),
        n_evaluations=1,
        n_eval_episodes=1,
        modules=("ncp_envs",),
        progress_bar=False,
    )
    (found,) = (module for module in model.policy.modules() if isinstance(module, Standardize))
    assert found.count.item() == model.num_timesteps == 256


def test_its_recording_verifies(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "flight.mcap"
    assert main(["record", str(trained.folder), "--out", str(out), "--episodes", "1"]) == 0
    assert main(["verify", str(out)]) == 0


def test_a_model_becomes_a_module_and_back(trained: Trained) -> None:
    model, venv = load_run(trained.folder, device="cpu")
    venv.close()
    assert isinstance(model.policy, NCPPolicy)
    module = NCPModule.around(model.policy, max_seq_len=8)
    kwargs = dict(wiring=AutoNCP(10), elapsed_time=0.05)
    back = RecurrentPPO(NCPPolicy, gym.make(ENV), device="cpu", policy_kwargs=kwargs)
    back.policy.load_state_dict(module.policy.state_dict())
    for name, part in model.policy.state_dict().items():
        assert torch.equal(back.policy.state_dict()[name], part), name
