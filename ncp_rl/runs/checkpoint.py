"""The state of a training between two rollouts, in one file from which a killed training is resumed.

The newest state is kept as `checkpoints/resume.pt`. It replaces the one before in one step, so that there is
always a complete file. It is a pickle, as models of Stable-Baselines3 are: resume only trainings that you trust.
"""

from __future__ import annotations

import io
import logging
import pickle
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.encoder import Standardize
from ncp_rl.policy import NCPPolicy
from ncp_rl.runs.config import RunConfig, RunError, installed_versions
from ncp_rl.runs.environment_state import Packed, difference_after_step, pack, unpack
from ncp_rl.runs.folder import write_file

CHECKPOINT = Path("checkpoints") / "resume.pt"
#: Files that are restored to their contents at the checkpoint.
_FILES = ("progress.csv", "evaluations.npz", "best/model.zip", "best/vecnormalize.pkl")
# Attributes that an algorithm counts, and that it carries from one rollout to the next.
_COUNTED = ("num_timesteps", "_num_timesteps_at_start", "_n_updates", "_episode_num", "_current_progress_remaining")
_CARRIED = ("_last_obs", "_last_original_obs", "_last_episode_starts", "_last_lstm_states")
_EPISODES = ("ep_info_buffer", "ep_success_buffer")
_LOGGED = ("name_to_value", "name_to_count", "name_to_excluded")
# Attributes that a training sets on its callbacks.
_GIVEN = ("model", "parent", "logger", "locals", "globals")

_log = logging.getLogger("ncp_rl.runs")


class TrainingPlan(NamedTuple):
    """How often a training is evaluated and saved."""

    n_evaluations: int
    n_eval_episodes: int
    n_checkpoints: int


class KeepCheckpoint(BaseCallback):
    """A callback that writes the checkpoint when a rollout starts after every `interval` steps, and at the end.

    In a resumed training it also restores, when the first rollout starts, the state that `learn` itself
    changes: random streams, times, and the attributes of callbacks.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        plan: TrainingPlan,
        *,
        callbacks: Sequence[BaseCallback],
        checkpoint: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the callback of a training.

        The attribute `steps` is the step of the last checkpoint.

        Args:
            folder: Folder of the run.
            config: Configuration of the run.
            plan: How often checkpoints are written.
            callbacks: The training's callbacks, in order, whose attributes are saved and restored.
            checkpoint: Checkpoint to resume from; None for a new training.
        """
        super().__init__()
        self.folder, self.config, self.plan, self.callbacks = folder, config, plan, callbacks
        self.checkpoint = checkpoint
        self.interval = max(config.n_timesteps // plan.n_checkpoints, 1)
        self.steps = 0 if checkpoint is None else checkpoint["steps"]
        self.why_not_packed = "" if checkpoint is None else checkpoint["environments"].why_not
        # The packed environments before their first step, which shows whether packing keeps all their state.
        self.packed: Packed | None = None
        self.whole_rollouts = -1

    @property
    def algorithm(self) -> OnPolicyAlgorithm:
        """The algorithm that trains."""
        assert isinstance(self.model, OnPolicyAlgorithm)
        return self.model

    def _on_rollout_start(self) -> None:
        if self.checkpoint is not None:
            self._put_back(self.checkpoint)
            self.checkpoint = None
        elif self.algorithm.num_timesteps == 0:
            self.packed = pack(self.training_env)
            self.write(dict(steps=0, environments=Packed(None), files={}))
        elif self.algorithm.num_timesteps >= self.steps + self.interval:
            self.write(self.state())

    def _on_step(self) -> bool:
        if self.packed is None:
            return True
        self.why_not_packed = self.packed.why_not
        if self.packed.data is not None:
            streams = random_streams()
            self.why_not_packed = difference_after_step(self.packed.data, self.training_env)
            set_random_streams(streams)
        self.packed = None
        return True

    def _on_rollout_end(self) -> None:
        self.whole_rollouts = self.algorithm.num_timesteps

    def _on_training_end(self) -> None:
        # A callback may end a training within a rollout, whose state cannot be resumed.
        if self.algorithm.num_timesteps == self.whole_rollouts:
            self.write(self.state() | dict(noise=None))

    def state(self) -> dict[str, Any]:
        """Return the state of the training, without its configuration."""
        model, policy, normalize = self.algorithm, self.algorithm.policy, self.algorithm.get_vec_normalize_env()
        held = vars(model)
        statistics = {} if normalize is None else vars(normalize)
        return dict(
            steps=model.num_timesteps,
            environments=self._pack(),
            normalize={name: statistics[name] for name in ("obs_rms", "ret_rms") if name in statistics},
            spaces=(model.action_space, model.observation_space),
            policy=policy.state_dict(),
            optimizer=policy.optimizer.state_dict(),
            seen=[torch.cat(m.seen) if m.seen else None for m in _standardizers(policy)],
            learned_since_rollout=getattr(policy, "learned_since_rollout", None),
            noise=_noise(policy),
            held={name: held[name] for name in (*_COUNTED, *_CARRIED, *_EPISODES) if name in held},
            streams=random_streams(),
            callbacks=states_of_callbacks(self.callbacks),
            logged={name: dict(vars(self.logger)[name]) for name in _LOGGED},
            seconds=(time.time_ns() - model.start_time) / 1e9,
            files=contents_of_files(self.folder),
        )

    def write(self, state: dict[str, Any]) -> None:
        """Write a state, with configuration and versions, which decide whether it can be resumed."""
        write_checkpoint(self.folder, self.config, self.plan, state)
        self.steps = state["steps"]

    def _pack(self) -> Packed:
        packed = Packed(None, self.why_not_packed) if self.why_not_packed else pack(self.training_env)
        self.why_not_packed = packed.why_not
        return packed

    def _put_back(self, checkpoint: Mapping[str, Any]) -> None:
        model = self.algorithm
        restore_callbacks(self.callbacks, checkpoint)
        model._num_timesteps_at_start = checkpoint["held"]["_num_timesteps_at_start"]
        model.start_time = time.time_ns() - int(checkpoint["seconds"] * 1e9)
        for name, values in checkpoint["logged"].items():
            vars(self.logger)[name].update(values)
        set_random_streams(checkpoint["streams"])
        _make_noise(model, checkpoint["noise"])


def write_checkpoint(folder: Path, config: RunConfig, plan: TrainingPlan, state: Mapping[str, Any]) -> None:
    """Write a state, with configuration and versions, in place of the one before."""
    buffer = io.BytesIO()
    about = dict(config=asdict(config), plan=tuple(plan), versions=installed_versions())
    torch.save({**state, **about}, buffer, pickle_module=cloudpickle)
    write_file(folder / CHECKPOINT, buffer.getvalue())


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run folder.

    Raises:
        RunError: The checkpoint is missing or damaged.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        raise RunError(
            f"{folder} must hold the checkpoint {CHECKPOINT} to be resumed, and lacks it: its training was killed "
            "before it wrote one. Train anew in another folder."
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, EOFError, ImportError, OSError, RuntimeError, ValueError, pickle.PickleError) as error:
        raise RunError(f"The checkpoint {path} is damaged or not a checkpoint: {error}") from error
    if not isinstance(found, dict) or not {"steps", "config", "plan", "versions", "files"} <= found.keys():
        raise RunError(f"The file {path} must be a checkpoint of a training, and is not.")
    return found


def restore(model: OnPolicyAlgorithm, checkpoint: Mapping[str, Any], seed: int) -> str:
    """Restore the state of a checkpoint in a new model of the same configuration.

    Args:
        model: A model that `make_model` made.
        checkpoint: The result of `read_checkpoint`, of a training that has taken steps.
        seed: Seed of new episodes, where the environments themselves cannot be restored.

    Returns:
        Why episodes begin anew, in a clause; "" where they continue.

    Raises:
        RunError: The checkpoint belongs to another policy.
    """
    policy, venv = model.policy, model.get_env()
    assert venv is not None
    try:
        policy.load_state_dict(checkpoint["policy"])
        policy.optimizer.load_state_dict(checkpoint["optimizer"])
        for module, seen in zip(_standardizers(policy), checkpoint["seen"], strict=True):
            module.seen = [] if seen is None else [seen.to(model.device)]
    except (KeyError, RuntimeError, ValueError) as error:
        raise RunError(f"The checkpoint belongs to another policy: {error}") from error
    if isinstance(policy, NCPPolicy):
        policy.learned_since_rollout = checkpoint["learned_since_rollout"]
    held = dict(checkpoint["held"])
    packed = checkpoint["environments"]
    why_not: str = packed.why_not or unpack(packed.data, venv)
    if why_not:
        _begin_anew(venv, model, checkpoint, seed)
        held = {name: part for name, part in held.items() if name not in _CARRIED}
    else:
        model.action_space, model.observation_space = venv.action_space, venv.observation_space
    if "_last_lstm_states" in held:
        states = held["_last_lstm_states"]
        held["_last_lstm_states"] = type(states)(*(tuple(part.to(model.device) for part in pair) for pair in states))
    vars(model).update(held)
    return why_not


def _begin_anew(venv: VecEnv, model: OnPolicyAlgorithm, checkpoint: Mapping[str, Any], seed: int) -> None:
    """Restore normalisation and begin new episodes: `learn` resets environments without a last observation."""
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        vars(normalize).update(checkpoint["normalize"])
    model.action_space, model.observation_space = checkpoint["spaces"]
    venv.seed(seed)


def contents_of_files(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files of a run folder that `restore_files` restores."""
    return {name: (folder / name).read_bytes() for name in _FILES if (folder / name).exists()}


def restore_files(folder: Path, checkpoint: Mapping[str, Any]) -> None:
    """Restore curves, evaluations and models of a run folder to their contents at a checkpoint."""
    steps, files = checkpoint["steps"], checkpoint["files"]
    for name in _FILES:
        if name in files:
            write_file(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)
    later = [path for path in (folder / "checkpoints").glob("model_*_steps.*") if int(path.stem.split("_")[-2]) > steps]
    for path in (*later, *folder.glob("last/*"), *folder.rglob("*.partial*")):
        path.unlink()


def random_streams() -> dict[str, Any]:
    """Return the states of the random generators of Python, NumPy and PyTorch."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return dict(python=random.getstate(), numpy=np.random.get_state(), torch=torch.get_rng_state(), cuda=cuda)


def set_random_streams(streams: Mapping[str, Any]) -> None:
    """Set the states of the random generators."""
    random.setstate(streams["python"])
    np.random.set_state(streams["numpy"])
    torch.set_rng_state(streams["torch"])
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(streams["cuda"]) == n_cuda:
        torch.cuda.set_rng_state_all(streams["cuda"])
    else:
        _log.warning(
            "The checkpoint has random streams of %d CUDA devices, but this machine has %d: the streams begin anew.",
            len(streams["cuda"]),
            n_cuda,
        )


def states_of_callbacks(callbacks: Sequence[BaseCallback]) -> list[dict[str, Any]]:
    """Return the attributes of callbacks, and of the callbacks within them."""
    return [attributes(callback) for callback in _all(callbacks)]


def restore_callbacks(callbacks: Sequence[BaseCallback], checkpoint: Mapping[str, Any]) -> None:
    """Restore what `states_of_callbacks` returned, once a training has set its own attributes."""
    for callback, held in zip(_all(callbacks), checkpoint["callbacks"], strict=False):
        put_attributes(callback, held)


def attributes(callback: BaseCallback) -> dict[str, Any]:
    """Return a callback's `state_dict()`, or else all its attributes that are data and can be pickled."""
    if hasattr(callback, "state_dict"):
        return dict(callback.state_dict())
    held = {}
    for name, part in vars(callback).items():
        if name in _GIVEN or callable(part) or isinstance(part, (BaseCallback, VecEnv, Path)):
            continue
        if isinstance(callback, CallbackList) and name == "callbacks":
            continue
        try:
            held[name] = cloudpickle.loads(cloudpickle.dumps(part))
        except Exception as error:  # A user's own object may raise anything.
            _log.info(
                "The attribute %s of the callback %s is not kept in checkpoints: %s",
                name,
                type(callback).__name__,
                error,
            )
    return held


def put_attributes(callback: BaseCallback, held: Mapping[str, Any]) -> None:
    """Restore the attributes of a callback."""
    if hasattr(callback, "load_state_dict"):
        callback.load_state_dict(held)
    else:
        vars(callback).update(held)


def _all(callbacks: Sequence[BaseCallback]) -> Iterator[BaseCallback]:
    """Yield callbacks and the callbacks within them."""
    for callback in callbacks:
        yield callback
        inner = callback.callbacks if isinstance(callback, CallbackList) else vars(callback).values()
        yield from _all([part for part in inner if isinstance(part, BaseCallback) and part is not callback.parent])


def _standardizers(policy: torch.nn.Module) -> list[Standardize]:
    return [module for module in policy.modules() if isinstance(module, Standardize)]


def _noise(policy: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the noise matrices of gSDE, which are drawn before callbacks learn of a rollout's start."""
    distribution = policy.action_dist
    if not isinstance(distribution, StateDependentNoiseDistribution):
        return None
    return distribution.exploration_mat.detach(), distribution.exploration_matrices.detach()


def _make_noise(model: OnPolicyAlgorithm, noise: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    distribution: Any = model.policy.action_dist
    if noise is not None:
        distribution.exploration_mat, distribution.exploration_matrices = (part.to(model.device) for part in noise)
    elif model.use_sde:
        model.policy.reset_noise(model.n_envs)
