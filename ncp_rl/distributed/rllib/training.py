"""A training of a run by RLlib's PPO on Ray, which fills a run folder as `ncp_rl.runs.train` does."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from ncp_rl.distributed.cluster import ray_running
from ncp_rl.distributed.rllib.settings import LENGTH, RETURN, Workers, algorithm_config, check_settings
from ncp_rl.extras import require
from ncp_rl.runs import Evaluation, RunConfig, RunError, save_model
from ncp_rl.runs.checkpoint import TrainingPlan
from ncp_rl.runs.folder import write_file
from ncp_rl.runs.logs import make_logger
from ncp_rl.runs.training import (
    Made,
    check_new,
    new_folder,
    parts_of_training,
    periodic_evaluation,
    require_packages,
)

#: File of a run folder that says how the training was spread.
WORKERS = "rllib.json"

#: Seconds within which dead env runners are back, or the training ends.
_PATIENCE = 120


def train(
    config: RunConfig,
    folder: Path,
    *,
    workers: Workers | None = None,
    address: str | None = None,
    n_evaluations: int = 10,
    n_eval_episodes: int = 20,
    init: Path | None = None,
    modules: tuple[str, ...] = (),
    progress_bar: bool = True,
    on_evaluation: Callable[[int, Evaluation], object] | None = None,
) -> OnPolicyAlgorithm:
    """Train a policy by RLlib and fill its run folder.

    The folder is that of `ncp_rl.runs.train`, but for the checkpoint: a training whose driver dies cannot be resumed.
    An env runner that dies is started again, and the others go on. The driver evaluates, writes and, without learners,
    learns.

    Args:
        config: Configuration of the run; see `RunConfig`, and `algorithm_config` for what differs with RLlib.
        folder: New folder for the run.
        workers: The processes; two env runners where None.
        address: Address of a Ray cluster; None starts Ray on this machine for as long as the training lasts.
        n_evaluations: Number of periodic evaluations, each at the end of a rollout.
        n_eval_episodes: Number of episodes of each evaluation.
        init: A run folder whose best policy the training starts from; its files are unpickled.
        modules: Modules that env runners import first, such as those that register environments.
        progress_bar: Whether to show progress and remaining time.
        on_evaluation: As for `ncp_rl.runs.train`.

    Returns:
        The trained model, as in `last/`.

    Raises:
        RunError: The folder exists; RLlib has nothing like a setting, or settings do not divide by the processes; the
            environment or the model cannot be made; or no env runner gives steps any more.
        ncp_rl.distributed.ClusterError: The cluster cannot be reached.
        ncp_rl.extras.MissingExtraError: What writes training curves or shows progress is not installed.
    """
    workers = workers or Workers()
    require_packages(progress_bar)
    check_new(folder)
    check_settings(config, workers)
    with parts_of_training(config, TrainingPlan(n_evaluations, n_eval_episodes, 1), "cpu", init) as made:
        assert isinstance(made.model, RecurrentPPO)
        settings = algorithm_config(config, made.model, workers, modules=modules)
        with (
            new_folder(folder, config),
            ray_running(address, workers.runners + workers.learners),
            built(settings, made.model) as algorithm,
        ):
            spread = asdict(workers) | dict(address=address, versions={"ray": version("ray")})
            write_file(folder / WORKERS, (json.dumps(spread, indent=2) + "\n").encode())
            return _learn(made, folder, algorithm, progress_bar=progress_bar, on_evaluation=on_evaluation)


@contextmanager
def built(settings: PPOConfig, model: OnPolicyAlgorithm) -> Iterator[PPO]:
    """Build RLlib's algorithm, with the weights of a model in all of its processes, and stop it at the end.

    Args:
        settings: Configuration of the algorithm; see `algorithm_config`.
        model: The model whose policy RLlib trains.
    """
    log = logging.getLogger("ray.rllib")
    level = log.level
    log.setLevel(logging.ERROR)  # It warns that its current API stack is the current one.
    algorithm = settings.build_algo()
    assert isinstance(algorithm, PPO)
    try:
        weights = {f"policy.{name}": part.cpu().numpy() for name, part in model.policy.state_dict().items()}
        learners, runners = algorithm.learner_group, algorithm.env_runner_group
        assert learners is not None and runners is not None
        learners.set_weights({DEFAULT_MODULE_ID: weights})
        runners.sync_weights(from_worker_or_learner_group=learners)
        yield algorithm
    finally:
        algorithm.stop()
        # RLlib makes a folder for logs in the home directory, which stays empty: the run folder has the curves.
        shutil.rmtree(algorithm.logdir)
        log.setLevel(level)


def _learn(
    made: Made,
    folder: Path,
    algorithm: PPO,
    *,
    progress_bar: bool,
    on_evaluation: Callable[[int, Evaluation], object] | None,
) -> OnPolicyAlgorithm:
    """Let RLlib train to the end; evaluate, log and save as a training without it does."""
    model, in_all = made.model, made.config.n_timesteps
    model.set_logger(make_logger(folder))
    evaluation = periodic_evaluation(made, folder, eval_freq=1, on_evaluation=on_evaluation)
    evaluation.init_callback(model)
    evaluation.on_training_start({}, {})
    interval = max(in_all // made.plan.n_evaluations, 1)
    began = came = time.perf_counter()
    evaluated = 0
    try:
        with _bar(in_all, progress_bar) as bar:
            while model.num_timesteps < in_all:
                told = algorithm.train()
                if _steps(told) <= model.num_timesteps:
                    _wait_for_runners(came)
                    continue
                came = time.perf_counter()
                _count(model, told, came - began)
                bar.update(model.num_timesteps - bar.n)
                if model.num_timesteps >= min(evaluated + interval, in_all):
                    evaluated = model.num_timesteps // interval * interval
                    _take_weights(model, algorithm)
                    evaluation.on_step()
                else:
                    model.logger.dump(model.num_timesteps)
    except KeyboardInterrupt as interrupt:
        _take_weights(model, algorithm)
        raise RunError(
            f"Training was interrupted; the model so far is in {folder / 'last'}. A training with RLlib is not "
            f"resumed; another one can begin with its best policy: --init {folder}."
        ) from interrupt
    finally:
        # The model has the weights of the last evaluation: where a learner has died, there are no newer ones.
        save_model(model, folder / "last")
        model.logger.close()
    return model


def _take_weights(model: OnPolicyAlgorithm, algorithm: PPO) -> None:
    """Take over the weights, and the moments of `Standardize`, of RLlib's module."""
    assert algorithm.learner_group is not None
    weights = algorithm.learner_group.get_weights([DEFAULT_MODULE_ID])[DEFAULT_MODULE_ID]
    state = {name.removeprefix("policy."): torch.as_tensor(part) for name, part in weights.items()}
    model.policy.load_state_dict(state)


def _steps(told: Mapping[str, Any]) -> int:
    """The environment steps of all iterations so far."""
    return int(told.get("env_runners", {}).get("num_env_steps_sampled_lifetime", 0))


def _wait_for_runners(since: float) -> None:
    """Wait a second for env runners to come back.

    Args:
        since: When the last steps came.

    Raises:
        RunError: They have been away for too long.
    """
    if time.perf_counter() - since > _PATIENCE:
        raise RunError(
            f"No env runner has given steps for {_PATIENCE} seconds: their processes end, their environments raise "
            "errors, or they need more seconds than sample_timeout_s. RLlib has said above which error it was; Ray's "
            "logs have the rest, /tmp/ray/session_latest/logs/worker-*.err on the machine of the runner."
        )
    time.sleep(1)


def _count(model: OnPolicyAlgorithm, told: Mapping[str, Any], seconds: float) -> None:
    """Count the steps of an iteration and log what it brought, under the names of Stable-Baselines3.

    Args:
        model: The model.
        told: What RLlib tells of the iteration.
        seconds: Since the training began.
    """
    runners, learned = told["env_runners"], told["learners"][DEFAULT_MODULE_ID]
    steps = model.num_timesteps = _steps(told)
    for name, value in {
        "rollout/ep_rew_mean": runners.get(RETURN),
        "rollout/ep_len_mean": runners.get(LENGTH),
        "time/iterations": told["training_iteration"],
        "time/time_elapsed": int(seconds),
        "time/fps": int(steps / seconds),
        "time/total_timesteps": steps,
        "time/env_runners": told["fault_tolerance"]["num_healthy_workers"],
        "train/policy_gradient_loss": learned["policy_loss"],
        "train/value_loss": learned["vf_loss_unclipped"],
        "train/explained_variance": learned["vf_explained_var"],
        "train/entropy_loss": -learned["entropy"],
        "train/learning_rate": learned["default_optimizer_learning_rate"],
    }.items():
        if value is not None and math.isfinite(value):  # No episode may have ended.
            model.logger.record(name, value)


def _bar(total: int, shown: bool) -> Any:
    require("cli", "tqdm", by="A progress bar")
    from tqdm import tqdm

    return tqdm(total=total, unit="step", disable=not shown)
