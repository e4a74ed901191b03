"""A training of a run by RLlib's PPO on Ray, which fills a run folder as `ncp_rl.runs.train` does."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from ncp_rl.distributed.cluster import ray_running
from ncp_rl.distributed.rllib.environment import pooled, spreads
from ncp_rl.distributed.rllib.settings import LENGTH, RETURN, Workers, algorithm_config, check_settings
from ncp_rl.extras import require
from ncp_rl.runs import Evaluation, RunConfig, RunError, read_config, save_model
from ncp_rl.runs.checkpoint import (
    TrainingPlan,
    contents_of_files,
    read_checkpoint,
    restore_callbacks,
    restore_files,
    states_of_callbacks,
    write_checkpoint,
)
from ncp_rl.runs.config import to_json
from ncp_rl.runs.folder import RLLIB, training_lock, write_file
from ncp_rl.runs.logs import make_logger
from ncp_rl.runs.training import (
    Made,
    check_new,
    going_on,
    new_folder,
    parts_of_training,
    periodic_evaluation,
    require_packages,
    seed_from,
    tell_resumed,
)

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
    n_checkpoints: int = 20,
    init: Path | None = None,
    modules: tuple[str, ...] = (),
    progress_bar: bool = True,
    on_evaluation: Callable[[int, Evaluation], object] | None = None,
) -> OnPolicyAlgorithm:
    """Train a policy by RLlib and fill its run folder.

    The folder is that of `ncp_rl.runs.train`. An env runner that dies is started again, and the others go on; a
    training whose driver or learner dies goes on from its last checkpoint (`resume`). The driver evaluates, writes and,
    without learners, learns.

    Args:
        config: Configuration of the run; see `RunConfig`, and `algorithm_config` for what differs with RLlib.
        folder: New folder for the run.
        workers: The processes; two env runners where None.
        address: Address of a Ray cluster; None starts Ray on this machine for as long as the training lasts.
        n_evaluations: Number of periodic evaluations, each at the end of a rollout.
        n_eval_episodes: Number of episodes of each evaluation.
        n_checkpoints: How often the checkpoint for `resume` is written, each time replacing the last one.
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
    spread = Processes(workers or Workers(), address, modules)
    require_packages(progress_bar)
    check_new(folder)
    check_settings(config, spread.workers)
    plan = TrainingPlan(n_evaluations, n_eval_episodes, n_checkpoints)
    with parts_of_training(config, plan, "cpu", init) as made:
        settings = spread.settings(made)
        with new_folder(folder, config), spread.running(settings, made) as algorithm:
            spread.write(folder)
            return _learn(made, folder, algorithm, progress_bar=progress_bar, on_evaluation=on_evaluation)


def resume(
    folder: Path,
    *,
    n_timesteps: int | None = None,
    workers: Workers | None = None,
    address: str | None = None,
    progress_bar: bool = True,
    on_evaluation: Callable[[int, Evaluation], object] | None = None,
) -> OnPolicyAlgorithm:
    """Resume a training by RLlib that was killed or interrupted, from the last checkpoint in its run folder.

    Steps after the checkpoint are lost. Policy, optimizer, schedules, curves, evaluations and the best model go on;
    episodes begin anew, with other seeds, and each environment normalises its rewards by what all of them had seen.

    Args:
        folder: Folder of the run. Its files are unpickled: resume only runs that you trust.
        n_timesteps: Number of environment steps in all, where it is not the configured one; a finished training
            continues with more steps.
        workers: The processes; those of the training so far where None.
        address: Address of a Ray cluster, "local" for Ray on this machine; where it was so far where None.
        progress_bar: Whether to show progress and remaining time.
        on_evaluation: As for `train`; evaluations before the checkpoint are not told again.

    Returns:
        The trained model, as in `last/`.

    Raises:
        RunError: The checkpoint is missing or damaged, or not of a training by RLlib; the training is finished;
            config.json was changed; another process is training in the folder; or `train` would raise an error.
        ncp_rl.distributed.ClusterError: The cluster cannot be reached.
    """
    require_packages(progress_bar)
    config = read_config(folder)
    with training_lock(folder):
        checkpoint = read_checkpoint(folder)
        if "algorithm" not in checkpoint:
            raise RunError(f"{folder} was not trained by RLlib; ncp-rl train --resume {folder} goes on with it.")
        spread = Processes.read(folder)
        spread = replace(spread, workers=workers or spread.workers, address=address or spread.address)
        config = going_on(config, checkpoint, folder, n_timesteps)
        check_settings(config, spread.workers)
        with parts_of_training(config, TrainingPlan(*checkpoint["plan"]), "cpu") as made:
            with spread.running(spread.settings(made, checkpoint), made) as algorithm:
                algorithm.set_state(checkpoint["algorithm"])
                spread.write(folder)
                write_file(folder / "config.json", to_json(config).encode())
                restore_files(folder, checkpoint)
                tell_resumed(folder, checkpoint, "RLlib's env runners do not keep them")
                return _learn(
                    made,
                    folder,
                    algorithm,
                    progress_bar=progress_bar,
                    on_evaluation=on_evaluation,
                    checkpoint=checkpoint,
                )


@dataclass(frozen=True)
class Processes:
    """How a training is spread over processes and machines, as `rllib.json` says it."""

    workers: Workers
    address: str | None
    modules: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write them into a run folder."""
        entries = asdict(self.workers) | dict(address=self.address, modules=self.modules)
        text = json.dumps(entries | dict(versions={"ray": version("ray")}), indent=2)
        write_file(folder / RLLIB, (text + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Processes:
        """Read those of a run folder.

        Raises:
            RunError: The file is missing or damaged.
        """
        path = folder / RLLIB
        try:
            entries = json.loads(path.read_text())
            workers = Workers(**{field.name: entries[field.name] for field in fields(Workers)})
            return cls(workers, entries["address"], tuple(entries["modules"]))
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise RunError(f"{path} does not say how the training was spread: {error!r}.") from error

    def settings(self, made: Made, checkpoint: Mapping[str, Any] | None = None) -> PPOConfig:
        """Return the configuration of RLlib's algorithm.

        Args:
            made: The parts of the training.
            checkpoint: A checkpoint of a training by RLlib, from which it goes on.

        Raises:
            RunError: A setting has no like in RLlib, or does not divide by the processes.
        """
        assert isinstance(made.model, RecurrentPPO)
        if checkpoint is None:
            return algorithm_config(made.config, made.model, self.workers, modules=self.modules)
        config, rewards = replace(made.config, seed=seed_from(made.config, checkpoint)), checkpoint["rewards"]
        return algorithm_config(config, made.model, self.workers, modules=self.modules, rewards=rewards)

    @contextmanager
    def running(self, settings: PPOConfig, made: Made) -> Iterator[PPO]:
        """Run the algorithm on Ray, with the weights of the untrained model."""
        n_cpus = self.workers.runners + self.workers.learners
        with ray_running(self.address, n_cpus), built(settings, made.model) as algorithm:
            yield algorithm


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
    checkpoint: Mapping[str, Any] | None = None,
) -> OnPolicyAlgorithm:
    """Let RLlib train to the end, from the beginning or from a checkpoint; evaluate, log and save as others do."""
    model, in_all = made.model, made.config.n_timesteps
    kept = checkpoint or dict(steps=0, seconds=0.0, rewards=None)
    steps = model.num_timesteps = kept["steps"]
    model.set_logger(make_logger(folder, steps_before=steps))
    evaluation = periodic_evaluation(made, folder, eval_freq=1, on_evaluation=on_evaluation)
    evaluation.init_callback(model)
    evaluation.on_training_start({}, {})
    if checkpoint is not None:
        restore_callbacks([evaluation], checkpoint)
        _take_weights(model, algorithm)
    intervals = [max(in_all // n, 1) for n in (made.plan.n_evaluations, made.plan.n_checkpoints)]
    came = time.perf_counter()
    began = came - kept["seconds"]
    try:
        with _bar(in_all, progress_bar, steps) as bar:
            while model.num_timesteps < in_all:
                before = model.num_timesteps
                told = algorithm.train()
                if _steps(told) <= before:
                    _wait_for_runners(came)
                    continue
                came = time.perf_counter()
                _count(model, told, came - began)
                bar.update(model.num_timesteps - bar.n)
                now = model.num_timesteps
                evaluates, keeps = (now // every > before // every or now >= in_all for every in intervals)
                if evaluates:
                    _take_weights(model, algorithm)
                    evaluation.on_step()
                else:
                    model.logger.dump(now)
                if keeps:
                    kept = _state(algorithm, folder, evaluation, kept, steps=now, seconds=came - began)
                    write_checkpoint(folder, made.config, made.plan, kept)
    except KeyboardInterrupt as interrupt:
        _take_weights(model, algorithm)
        raise RunError(
            f"Training was interrupted; the model so far is in {folder / 'last'}. ncp-rl train --resume {folder} goes "
            f"on from step {kept['steps']:,}."
        ) from interrupt
    finally:
        # The model has the weights of the last evaluation: where a learner has died, there are no newer ones.
        save_model(model, folder / "last")
        model.logger.close()
    return model


def _state(
    algorithm: PPO,
    folder: Path,
    evaluation: BaseCallback,
    before: Mapping[str, Any],
    *,
    steps: int,
    seconds: float,
) -> dict[str, Any]:
    """Return the state of a training between two rollouts, without its configuration.

    Args:
        algorithm: RLlib's algorithm.
        folder: The run folder.
        evaluation: The callback that evaluates.
        before: The state before, whose statistics of rewards hold where no env runner answers.
        steps: Environment steps so far.
        seconds: Since the training began.
    """
    runners = algorithm.env_runner_group
    assert runners is not None
    found = [spread for each in runners.foreach_env_runner(spreads, local_env_runner=False) for spread in each]
    return dict(
        steps=steps,
        seconds=seconds,
        algorithm=algorithm.get_state(),
        rewards=pooled(found) if found else before["rewards"],
        callbacks=states_of_callbacks([evaluation]),
        files=contents_of_files(folder),
    )


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


def _bar(total: int, shown: bool, initial: int) -> Any:
    require("cli", "tqdm", by="A progress bar")
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, unit="step", disable=not shown)
