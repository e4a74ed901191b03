"""Run folders: train an NCP policy, or a baseline of SB3's, with PPO, keep all that later steps need, load it again.

A run folder holds

    config.json                    environment, hyperparameters, seed and versions
    best/, last/                   model.zip and, where observations or rewards are normalised, vecnormalize.pkl
    checkpoints/                   models by step
    evaluations.npz                returns and lengths of the periodic evaluations
    progress.csv, events.out.*     training curves, for TensorBoard too

Models are files of Stable-Baselines3, which unpickles them: load only those that you trust.
"""

from __future__ import annotations

import json
import pickle
import platform
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import yaml
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, unwrap_vec_normalize

from ncp_rl import settings
from ncp_rl.encoder import ELAPSED_TIME
from ncp_rl.policy import CnnNCPPolicy, MultiInputNCPPolicy, NCPPolicy
from ncp_rl.readings import BadInputError
from ncp_rl.refusals import check_spaces

POLICIES: dict[str, type[NCPPolicy]] = {
    policy.__name__: policy for policy in (NCPPolicy, CnnNCPPolicy, MultiInputNCPPolicy)
}
#: SB3's own policies, to compare with, and what trains them.
BASELINES: dict[str, type[OnPolicyAlgorithm]] = {
    "MlpLstmPolicy": RecurrentPPO,
    "CnnLstmPolicy": RecurrentPPO,
    "MultiInputLstmPolicy": RecurrentPPO,
    "MlpPolicy": PPO,
    "CnnPolicy": PPO,
    "MultiInputPolicy": PPO,
}

#: Settings of a circuit where nobody has tuned any: rewards are normalised, observations by the policy itself.
GENERAL: dict[str, Any] = dict(
    n_envs=8,
    n_timesteps=200_000,
    normalize=dict(norm_obs=False, norm_reward=True),
    n_steps=128,
    batch_size=128,
    learning_rate="lin_3e-4",
)

#: Added to a run's seed for the environments of its evaluations, which must not start as those of training do.
EVALUATION_SEED = 10_000

#: Steps after which an episode is taken for one that never ends, unless its environment's own limit is larger.
MAX_EPISODE_STEPS = 30_000

_VERSIONS_OF = ("ncp-rl", "torch", "numpy", "numba", "gymnasium", "stable-baselines3", "sb3-contrib")


class RunError(Exception):
    """What a user asked for cannot be done; the message says what, why, and what to do."""


@dataclass(frozen=True)
class RunConfig:
    """All that makes a run: kept as config.json in its folder."""

    env: str
    """Gymnasium id; `module:id` imports the module first."""
    hyperparams: dict[str, Any]
    """In rl-zoo's form: n_envs, n_timesteps, normalize, frame_stack, policy, policy_kwargs, env_kwargs, env_wrapper,
    vec_env_wrapper, monitor_kwargs, callback and the algorithm's arguments; see `ncp_rl.settings`. Classes are named by
    their dotted paths, and their modules are imported."""
    seed: int = 0
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in _VERSIONS_OF})
    python: str = field(default_factory=platform.python_version)
    max_episode_steps: int | None = None
    """Steps after which episodes of evaluations, recordings and audits are cut; the environment's own limit where None.
    Training goes on as the environment has it."""

    def __post_init__(self) -> None:
        """Read hyperparameters that are text.

        Raises:
            RunError: One of them cannot be read.
        """
        object.__setattr__(self, "hyperparams", _plain(self.hyperparams))


@dataclass(frozen=True)
class Evaluation:
    """Returns of evaluation episodes, not normalised."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    def summary(self) -> dict[str, float]:
        """Episodes; mean, standard deviation, minimum and maximum return; mean length."""
        returns = np.array(self.returns)
        return {
            "episodes": len(returns),
            "mean_return": float(returns.mean()),
            "std_return": float(returns.std()),
            "min_return": float(returns.min()),
            "max_return": float(returns.max()),
            "mean_length": float(np.mean(self.lengths)),
        }

    def __str__(self) -> str:
        """The summary in a line."""
        s = self.summary()
        return (
            f"return {s['mean_return']:.1f} +- {s['std_return']:.1f} (min {s['min_return']:.1f}, "
            f"max {s['max_return']:.1f}), length {s['mean_length']:.1f}, over {s['episodes']} episodes"
        )


class EpisodeBound:
    """Counts the steps of each environment's episode, and raises where one does not end.

    Whoever waits for the end of episodes would otherwise wait for ever, without a word, where a task has none. The
    bound is `MAX_EPISODE_STEPS`, or the limit with which an environment was made where that is larger.
    """

    def __init__(self, venv: VecEnv) -> None:
        """Count the steps of `venv` from a reset on."""
        self._venv, self._bound = venv, MAX_EPISODE_STEPS
        self._steps = np.zeros(venv.num_envs, np.int64)

    def count(self, ended: npt.NDArray[np.bool_]) -> None:
        """A step of all N environments.

        Args:
            ended: (N,), where it ended an episode.

        Raises:
            RunError: An episode has not ended within the bound.
        """
        self._steps = np.where(ended, 0, self._steps + 1)
        self._check()

    def watch(self, local: Mapping[str, Any], _: Mapping[str, Any]) -> None:
        """The same as a callback of `evaluate_policy`, which calls it for one environment after the other."""
        # evaluate_policy waits for what a Monitor, where there is one, calls the end.
        ended = local["done"] and ("episode" in local["info"] or not local["is_monitor_wrapped"])
        self._steps[local["i"]] = 0 if ended else self._steps[local["i"]] + 1
        self._check()

    def _check(self) -> None:
        if self._steps.max() < self._bound:
            return
        specs = self._venv.get_attr("spec") if self._venv.has_attr("spec") else []
        self._bound = max([self._bound, *(getattr(spec, "max_episode_steps", None) or 0 for spec in specs)])
        if self._steps.max() < self._bound:
            return
        raise RunError(
            f"The episode of environment {int(self._steps.argmax())} has not ended after {self._bound:,} steps. Where "
            "a task goes on without end, have its episodes cut: --max-episode-steps 1000 for the scripts, "
            "max_episode_steps=1000 for RunConfig and load_run, or env_kwargs=dict(max_episode_steps=1000) for "
            "Stable-Baselines3's make_vec_env."
        )


def read_hyperparams(path: Path, env_id: str) -> dict[str, Any]:
    """Hyperparameters of `env_id` from a yaml file in rl-zoo's form, or {} where it has none.

    As in rl-zoo, `default` stands for environments that the file does not name. Entries as `dict(...)` strings are read
    as rl-zoo reads them, but as literals: nothing of a file is executed. Classes that it names are imported once the
    run is made.

    Raises:
        RunError: The file cannot be read as such.
    """
    try:
        entries = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise RunError(f"The hyperparameters {path} cannot be read: {error}") from error
    if not isinstance(entries, Mapping):
        raise RunError(f"{path} must map environment ids to hyperparameters, got {type(entries).__name__}.")
    found = settings.of_environment(entries, env_id)
    if not isinstance(found, Mapping):
        raise RunError(f"Hyperparameters of {env_id} in {path} must be a mapping, got {type(found).__name__}.")
    return _plain(found)


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return settings.plain(found)
    except ValueError as error:
        raise RunError(str(error)) from error


def train(
    config: RunConfig,
    folder: Path,
    *,
    device: str = "auto",
    n_evaluations: int = 10,
    n_eval_episodes: int = 20,
    progress_bar: bool = True,
    callback: BaseCallback | None = None,
) -> OnPolicyAlgorithm:
    """Train a policy and fill its run folder.

    Args:
        config: What to train; see `RunConfig`. Wrappers for training alone are on in the periodic evaluations too: the
            best model is the best in the world that it is trained for.
        folder: New folder for the run.
        device: Of torch.
        n_evaluations: Periodic evaluations during training; the best model so far is kept.
        n_eval_episodes: Episodes of each.
        progress_bar: Show progress and remaining time.
        callback: A callback of one's own beside ours.

    Returns:
        The trained model, as in `last/`.

    Raises:
        RunError: The folder exists, the environment or the model cannot be made, training was interrupted, a reading
            is bad, or an evaluation's episode does not end.
    """
    if folder.exists():
        raise RunError(f"The folder {folder} exists and is left as it is; name another one for this run.")
    text = _json(config)
    extra = _callbacks(config)
    n_envs = int(config.hyperparams.get("n_envs") or 1)
    venv, eval_venv = make_envs(config, n_envs), make_envs(config, min(n_eval_episodes, 20), training=False)
    try:
        model = make_model(config, venv, device)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(text)
        model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
        n_timesteps = int(config.hyperparams.get("n_timesteps") or 1e5)
        interval = max(n_timesteps // n_evaluations // n_envs, 1)
        callbacks: list[BaseCallback] = [
            _SeededEvaluation(
                eval_venv,
                seed=config.seed + EVALUATION_SEED,
                callback_on_new_best=_KeepBest(folder / "best"),
                n_eval_episodes=n_eval_episodes,
                eval_freq=interval,
                log_path=str(folder),
                verbose=0,
            ),
            CheckpointCallback(interval, str(folder / "checkpoints"), "model", save_vecnormalize=True),
        ]
        callbacks += extra + ([callback] if callback else [])
        try:
            model.learn(n_timesteps, callback=CallbackList(callbacks), progress_bar=progress_bar)
        finally:
            # Also where training is interrupted: nothing that was learned is lost.
            save_model(model, folder / "last")
            model.logger.close()
        return model
    except KeyboardInterrupt as interrupt:
        raise RunError(f"Training was interrupted; the model so far is in {folder / 'last'}.") from interrupt
    except BadInputError as error:
        raise RunError(
            f"Training stopped. {_before_normalisation(venv, model) or error} {_left(folder, venv)}"
        ) from error
    finally:
        venv.close()
        eval_venv.close()


def _json(config: RunConfig) -> str:
    try:
        return json.dumps(asdict(config), indent=2) + "\n"
    except TypeError as error:
        raise RunError(
            f"The hyperparameters cannot be kept in config.json: {error}. Give numbers, text, lists and mappings; name "
            "classes by their dotted paths."
        ) from error


def _callbacks(config: RunConfig) -> list[BaseCallback]:
    try:
        return settings.callbacks(config.hyperparams.get("callback"))
    except (TypeError, ValueError) as error:
        raise RunError(f"The callbacks cannot be made: {error}") from error


def make_envs(
    config: RunConfig,
    n_envs: int,
    *,
    training: bool = True,
    training_wrappers: bool = True,
    max_episode_steps: int | None = None,
    **make_kwargs: Any,
) -> VecEnv:
    """The run's environments: monitored, seeded, wrapped, stacked and normalised as configured.

    rl-zoo stacks what is normalised already. Here, stacks are normalised, each place of a stack by its own statistics:
    so the observation that a recording holds is all that the policy acted on.

    Args:
        config: The run.
        n_envs: Environments side by side.
        training: Whether normalisation statistics move and rewards are normalised.
        training_wrappers: Whether to put on those of the run's wrappers that are for training alone, such as
            `ncp_envs.RandomDisturbances`: their class has an attribute `training_only = True`.
        max_episode_steps: Steps after which episodes are cut. Where None: for training the environment's own limit,
            otherwise the run's.
        **make_kwargs: For `make_vec_env`, such as `env_kwargs`, which come before the run's own, or `wrapper_class`,
            which is put around the run's own.

    Raises:
        RunError: No such environment, it cannot be made, or its spaces are none that a policy serves.
    """
    seed = config.seed if training else config.seed + EVALUATION_SEED
    if max_episode_steps is None and not training:
        max_episode_steps = config.max_episode_steps
    found = config.hyperparams
    try:
        make_kwargs = _make_kwargs(found, make_kwargs, training_wrappers)
        make_kwargs["env_kwargs"] |= _cut(max_episode_steps)
        venv = make_vec_env(config.env, n_envs=n_envs, seed=seed, **make_kwargs)
        made: Any = venv.get_attr("unwrapped", indices=0)[0]
        # What Gymnasium itself takes, such as max_episode_steps, is no argument of the class.
        settings.check_arguments(config.env, type(made), found.get("env_kwargs") or {}, names=False)
        wrap = settings.wrapper("vec_env_wrapper", found.get("vec_env_wrapper"), training=training_wrappers)
        venv = _stacked(config, venv if wrap is None else wrap(venv))
    except (gym.error.Error, AssertionError, ImportError, TypeError, ValueError) as error:
        raise RunError(f"The environment {config.env!r} cannot be made: {error}") from error
    normalize = found.get("normalize")
    if normalize is None or normalize is False:
        return venv
    kwargs = _what_to_normalize(venv.observation_space) | (dict(normalize) if isinstance(normalize, Mapping) else {})
    kwargs |= {"gamma": found["gamma"]} if "gamma" in found else {}  # As in rl-zoo, before that of `normalize`.
    kwargs |= dict(training=training)
    if not training:
        kwargs["norm_reward"] = False
    try:
        settings.check_arguments("normalize", VecNormalize, kwargs)
        return VecNormalize(venv, **kwargs)
    except (TypeError, ValueError) as error:
        raise RunError(f"Observations of {config.env!r} cannot be normalised with {kwargs}: {error}") from error


def _cut(max_episode_steps: int | None) -> dict[str, Any]:
    """The arguments of `gym.make` with which Gymnasium cuts episodes after so many steps."""
    if max_episode_steps is None:
        return {}
    if max_episode_steps < 1:
        raise RunError(f"max_episode_steps must be at least 1, got {max_episode_steps}.")
    return dict(max_episode_steps=max_episode_steps)


def _make_kwargs(found: Mapping[str, Any], given: Mapping[str, Any], training_wrappers: bool) -> dict[str, Any]:
    """Arguments of `make_vec_env`: those given, before or around those of the hyperparameters."""
    own = settings.wrapper("env_wrapper", found.get("env_wrapper"), training=training_wrappers)
    outer = given.get("wrapper_class")

    def wrap(env: gym.Env[Any, Any], **kwargs: Any) -> gym.Env[Any, Any]:
        wrapped = env if own is None else own(env)
        wrapped = wrapped if outer is None else outer(wrapped, **kwargs)
        # Vectorised environments fail on some spaces without naming them.
        check_spaces(wrapped.observation_space, wrapped.action_space)
        return wrapped

    merged = {name: {**(found.get(name) or {}), **(given.get(name) or {})} for name in ("env_kwargs", "monitor_kwargs")}
    return {**given, **merged, "wrapper_class": wrap}


def _stacked(config: RunConfig, venv: VecEnv) -> VecEnv:
    """The environments, whose last observations are stacked as rl-zoo's `frame_stack` says.

    Raises:
        ValueError: The observation cannot be stacked.
    """
    n_stack = config.hyperparams.get("frame_stack")
    if n_stack is None:
        return venv
    if isinstance(venv.observation_space, spaces.Dict) and ELAPSED_TIME in venv.observation_space.spaces:
        raise ValueError(f"frame_stack would stack {ELAPSED_TIME!r} too, which is one number; leave it out.")
    try:
        return VecFrameStack(venv, int(n_stack))
    except (AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"frame_stack cannot stack {venv.observation_space}: {error}") from error


def _what_to_normalize(space: spaces.Space[Any]) -> dict[str, Any]:
    """Vectors; neither images, which SB3 scales by itself, nor the elapsed time, which is in seconds."""
    if not isinstance(space, spaces.Dict):
        return dict(norm_obs=_is_vector(space))
    keys = [key for key, part in space.items() if key != ELAPSED_TIME and _is_vector(part)]
    return dict(norm_obs=bool(keys), norm_obs_keys=keys or None)


def _is_vector(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and not is_image_space(space)


def algorithm(config: RunConfig) -> type[OnPolicyAlgorithm]:
    """What trains a run's policy: RecurrentPPO, or PPO for policies without memory.

    Raises:
        RunError: There is no such policy.
    """
    policy = policy_class(config.hyperparams.get("policy"))
    return RecurrentPPO if policy is None or issubclass(policy, RecurrentActorCriticPolicy) else PPO


def policy_class(name: str | None) -> type[ActorCriticPolicy] | None:
    """The policy of a name: of ours, of SB3's, or a dotted path, whose module is imported; None for None.

    Raises:
        RunError: There is no such policy.
    """
    if name is None:
        return None
    if name in POLICIES:
        return POLICIES[name]
    if name in BASELINES:
        aliases: Mapping[str, Any] = BASELINES[name].policy_aliases
        found = aliases[name]
    elif isinstance(name, str) and "." in name:
        try:
            found = settings.import_path("policy", name)
        except ValueError as error:
            raise RunError(str(error)) from error
    else:
        known = ", ".join([*POLICIES, *BASELINES])
        raise RunError(f"policy must be one of {known} or a dotted path such as ncp_rl.NCPPolicy, got {name!r}.")
    if not isinstance(found, type) or not issubclass(found, ActorCriticPolicy):
        raise RunError(f"policy: {name!r} must be an actor-critic policy for PPO or RecurrentPPO, got {found!r}.")
    return found


def is_circuit(policy: str | None) -> bool:
    """Whether a name, as in `policy` of the hyperparameters, is that of an NCP; None is the NCP that fits.

    Raises:
        RunError: There is no such policy.
    """
    found = policy_class(policy)
    return found is None or issubclass(found, NCPPolicy)


def make_model(config: RunConfig, venv: VecEnv, device: str = "auto") -> OnPolicyAlgorithm:
    """An untrained model on `venv`.

    Raises:
        RunError: Spaces that no policy serves, or hyperparameters that make no model for these spaces.
    """
    try:
        check_spaces(venv.observation_space, venv.action_space)
        arguments = settings.algorithm_arguments(algorithm(config), config.hyperparams)
        policy = _policy_for(config, venv.observation_space)
        kwargs = _policy_kwargs(config, policy, venv)
        return algorithm(config)(policy, venv, policy_kwargs=kwargs, seed=config.seed, device=device, **arguments)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"No policy can be made for {config.env!r}: {error}") from error


def save_model(model: OnPolicyAlgorithm, folder: Path) -> None:
    """Save the model, and normalisation statistics if it has any, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.zip")
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.save(str(folder / "vecnormalize.pkl"))


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        RunError: The folder holds none, or a damaged one.
    """
    path = folder / "config.json"
    try:
        return RunConfig(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise RunError(f"{folder} is no run folder: it has no config.json.") from error
    except (OSError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def load_run(
    folder: Path,
    *,
    which: Literal["best", "last"] = "best",
    n_envs: int = 1,
    device: str = "auto",
    training_wrappers: bool = False,
    max_episode_steps: int | None = None,
    **make_kwargs: Any,
) -> tuple[OnPolicyAlgorithm, VecEnv]:
    """The model of a run folder and environments to evaluate it in, normalised as it was trained.

    Args:
        folder: The run.
        which: "best" by periodic evaluation, or "last".
        n_envs: Environments side by side.
        device: Of torch.
        training_wrappers: Whether to put on wrappers that are for training alone: of a policy that was trained under
            disturbances, it is the undisturbed world that evaluations, recordings and audits begin with.
        max_episode_steps: Steps after which episodes are cut; the run's own limit where None.
        **make_kwargs: For `make_vec_env`, as in `make_envs`.

    Raises:
        RunError: Something is missing or damaged.
    """
    config = read_config(folder)
    make_kwargs |= dict(training_wrappers=training_wrappers, max_episode_steps=max_episode_steps)
    venv = make_envs(config, n_envs, training=False, **make_kwargs)
    path = folder / which / "model.zip"
    try:
        if isinstance(venv, VecNormalize):
            path = folder / which / "vecnormalize.pkl"
            venv = VecNormalize.load(str(path), venv.venv)
            venv.training = venv.norm_reward = False
            path = folder / which / "model.zip"
        return algorithm(config).load(path, env=venv, device=device), venv
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; was the training of this run cut off?") from error
    except (AssertionError, EOFError, KeyError, RuntimeError, ValueError, pickle.PickleError, zipfile.error) as error:
        raise RunError(f"{path} is damaged or of another kind: {error}") from error


def evaluate(
    model: OnPolicyAlgorithm, venv: VecEnv, *, n_episodes: int = 10, deterministic: bool = True, seed: int = 0
) -> Evaluation:
    """Run whole episodes from seeded environments.

    Args:
        model: The model.
        venv: Environments as `load_run` gives them.
        n_episodes: Episodes in all.
        deterministic: The most likely action instead of a sampled one.
        seed: Environment i starts from seed + i; sampled actions follow it too.

    Raises:
        RunError: An episode does not end, or a reading is bad and the policy does not hold it.
    """
    venv.seed(seed)
    model.set_random_seed(seed)
    try:
        returns, lengths = evaluate_policy(
            model,
            venv,
            n_eval_episodes=n_episodes,
            deterministic=deterministic,
            callback=EpisodeBound(venv).watch,
            return_episode_rewards=True,
        )
    except BadInputError as error:
        raise RunError(str(error)) from error
    assert isinstance(returns, list) and isinstance(lengths, list)
    return Evaluation(tuple(map(float, returns)), tuple(lengths))


class _SeededEvaluation(EvalCallback):
    """Evaluates every model from the same starts, so that better is not luckier; logs what training alone took."""

    def __init__(self, eval_env: VecEnv, *, seed: int, **kwargs: Any) -> None:
        super().__init__(eval_env, **kwargs)
        self.seed = seed

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.training_began = _seconds()

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq:
            return super()._on_step()
        began = _seconds()
        for name, spent in zip(("time/training_s", "time/training_cpu_s"), began - self.training_began, strict=True):
            self.logger.record(name, float(spent))
        self.eval_env.seed(self.seed)
        self.bound = EpisodeBound(self.eval_env)
        go_on = super()._on_step()
        self.training_began += _seconds() - began
        return go_on

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """The callback that upstream hands to `evaluate_policy`."""
        self.bound.watch(locals_, globals_)
        super()._log_success_callback(locals_, globals_)


def _seconds() -> npt.NDArray[np.float64]:
    """(2,), of the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


class _KeepBest(BaseCallback):
    """Saves the model with the statistics that it was evaluated with."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        assert isinstance(self.model, OnPolicyAlgorithm)
        save_model(self.model, self.folder)
        return True


def _left(folder: Path, venv: VecEnv) -> str:
    """What a training that a bad reading stopped leaves."""
    if isinstance(venv, VecNormalize) and venv.norm_obs:
        return f"The statistics in last/ are spoiled by it; go on from {folder / 'best'} or {folder / 'checkpoints'}."
    return f"The model so far is in {folder / 'last'}."


def _before_normalisation(venv: VecEnv, model: OnPolicyAlgorithm) -> str:
    """A sentence on the bad reading that an environment gave, where normalisation shows it in all of them."""
    normalize = unwrap_vec_normalize(venv)
    if normalize is None or not isinstance(model.policy, NCPPolicy):
        return ""
    bad = model.policy.find_bad(normalize.get_original_obs(), privileged=True)
    return "" if bad is None else bad.first.sentence()


def _policy_for(config: RunConfig, observation_space: spaces.Space[Any]) -> type[ActorCriticPolicy]:
    """The policy that is named, or the NCP that fits the observation."""
    named = policy_class(config.hyperparams.get("policy"))
    if named is not None:
        return named
    if isinstance(observation_space, spaces.Dict):
        return MultiInputNCPPolicy
    return CnnNCPPolicy if is_image_space(observation_space) else NCPPolicy


def _policy_kwargs(config: RunConfig, policy: type[ActorCriticPolicy], venv: VecEnv) -> dict[str, Any]:
    kwargs = settings.policy_arguments(policy, config.hyperparams.get("policy_kwargs"))
    if not issubclass(policy, NCPPolicy):
        return kwargs
    seconds = seconds_per_step(venv)
    if seconds is not None:
        kwargs = dict(elapsed_time=seconds) | kwargs
    if venv.has_attr("action_names"):
        kwargs = dict(action_names=venv.get_attr("action_names", indices=0)[0]) | kwargs
    takes_names = not issubclass(policy, CnnNCPPolicy) and "features_extractor_class" not in kwargs
    if takes_names and venv.has_attr("observation_names"):
        names = _observation_names(config, venv)
        kwargs["features_extractor_kwargs"] = dict(names=names) | (kwargs.get("features_extractor_kwargs") or {})
    return kwargs


def seconds_per_step(venv: VecEnv) -> float | None:
    """Seconds that a step of the environment lasts, where it tells: `interval`, `dt`, or else its render_fps."""
    for name in ("interval", "dt"):
        seconds = venv.get_attr(name, indices=0)[0] if venv.has_attr(name) else None
        if isinstance(seconds, (int, float)) and 0 < seconds < np.inf:
            return float(seconds)
    metadata = venv.get_attr("metadata", indices=0)[0] if venv.has_attr("metadata") else {}
    frames = (metadata or {}).get("render_fps")
    return 1.0 / frames if isinstance(frames, (int, float)) and 0 < frames < np.inf else None


def _observation_names(config: RunConfig, venv: VecEnv) -> Any:
    """The environment's names of what is observed, also of stacked observations; None where its wrappers observe more.

    Raises:
        ValueError: Names of another form than the observation.
    """
    names = venv.get_attr("observation_names", indices=0)[0]
    if names is None:
        return None
    space, found = venv.observation_space, config.hyperparams
    if isinstance(names, Mapping) != isinstance(space, spaces.Dict):
        raise ValueError(f"observation_names must be names, by key where the observation is a Dict, got {names}.")
    n_stack = int(found.get("frame_stack") or 1)
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    by_key = {
        key: named for key, named in (names if isinstance(names, Mapping) else {"": names}).items() if key in parts
    }
    by_key = {key: [*_earlier(named, n_stack), *named] for key, named in by_key.items()}
    rewrapped = found.get("env_wrapper") or found.get("vec_env_wrapper")
    if rewrapped and any(len(named) != get_flattened_obs_dim(parts[key]) for key, named in by_key.items()):
        return None
    return by_key if isinstance(names, Mapping) else by_key[""]


def _earlier(names: Sequence[str], n_stack: int) -> list[str]:
    """Names of the observations before the last one in a stack, oldest first."""
    return [f"{name}_before_{age}" for age in range(n_stack - 1, 0, -1) for name in names]
