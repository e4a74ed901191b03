"""Training of a policy, which fills its run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_normalize

from ncp_rl.extras import require
from ncp_rl.policy import NCPPolicy
from ncp_rl.readings import BadInputError
from ncp_rl.runs import settings
from ncp_rl.runs.checkpoint import KeepCheckpoint, TrainingPlan, read_checkpoint, restore, restore_files
from ncp_rl.runs.config import EVALUATION_SEED, RunConfig, RunError, installed_versions, to_json
from ncp_rl.runs.environments import make_envs
from ncp_rl.runs.evaluation import Evaluation, SeededEvaluation
from ncp_rl.runs.folder import load_run, read_config, save_model, training_lock, write_file
from ncp_rl.runs.logs import make_logger
from ncp_rl.runs.models import make_model


class Made(NamedTuple):
    """The parts of a training."""

    config: RunConfig
    plan: TrainingPlan
    venv: VecEnv
    eval_venv: VecEnv
    model: OnPolicyAlgorithm
    callbacks: list[BaseCallback]


def train(
    config: RunConfig,
    folder: Path,
    *,
    device: str = "auto",
    n_evaluations: int = 10,
    n_eval_episodes: int = 20,
    n_checkpoints: int = 20,
    init: Path | None = None,
    progress_bar: bool = True,
    callback: BaseCallback | None = None,
    on_evaluation: Callable[[int, Evaluation], object] | None = None,
) -> OnPolicyAlgorithm:
    """Train a policy and fill its run folder.

    Args:
        config: Configuration of the run; see `RunConfig`. Wrappers for training only are applied in the periodic
            evaluations too, so the best model is the best one under the conditions of its training.
        folder: New folder for the run.
        device: Device of torch.
        n_evaluations: Number of periodic evaluations; the best model so far, and the model of each, are saved.
        n_eval_episodes: Number of episodes of each evaluation.
        n_checkpoints: How often the checkpoint for `resume` is written, each time replacing the last one.
        init: A run folder whose best policy the training starts from, such as a taught one (`ncp_rl.teach`); its files
            are unpickled. Its statistics of observations are taken over where both runs normalise them.
        progress_bar: Whether to show progress and remaining time.
        callback: A further callback.
        on_evaluation: Called after each periodic evaluation, once its files are written, with the environment steps so
            far and the evaluation. What it raises ends the training.

    Returns:
        The trained model, as in `last/`.

    Raises:
        RunError: The folder exists, the environment or the model cannot be made, training was interrupted, a reading
            is bad, or an evaluation's episode does not end.
        ncp_rl.extras.MissingExtraError: What writes training curves or shows progress is not installed.
    """
    require_packages(progress_bar)
    check_new(folder)
    with parts_of_training(config, TrainingPlan(n_evaluations, n_eval_episodes, n_checkpoints), device, init) as made:
        with new_folder(folder, config):
            return _learn(made, folder, progress_bar=progress_bar, callback=callback, on_evaluation=on_evaluation)


def resume(
    folder: Path,
    *,
    n_timesteps: int | None = None,
    device: str = "auto",
    progress_bar: bool = True,
    callback: BaseCallback | None = None,
    on_evaluation: Callable[[int, Evaluation], object] | None = None,
) -> OnPolicyAlgorithm:
    """Resume a training that was killed or interrupted, from the last checkpoint in its run folder.

    Steps after the checkpoint are lost, and their lines of progress.csv removed. Everything else continues: the model,
    its optimizer, schedules, normalisation, random streams, callbacks, curves, evaluations and the best model, and the
    environments in the middle of their episodes. On the same machine and with the same versions, the model comes out
    bit for bit as if the training had never been cut. Environments that cannot be pickled, such as Box2D's, begin new
    episodes instead; the log and the folder's `resumed.log` say which case it was.

    Args:
        folder: Folder of the run. Its files are unpickled: resume only runs that you trust.
        n_timesteps: Number of environment steps in all, where it is not the configured one; a finished training
            continues with more steps. Schedules and evaluations follow the new number from here on.
        device: Device of torch.
        progress_bar: Whether to show progress and remaining time.
        callback: The callback that `train` was given, if any. A callback gets back its `state_dict()` through
            `load_state_dict`, or, without these, all of its attributes that are data.
        on_evaluation: As for `train`; evaluations before the checkpoint are not told again.

    Returns:
        The trained model, as in `last/`.

    Raises:
        RunError: The checkpoint is missing or damaged; the training is finished; config.json was changed; another
            process is training in the folder; or `train` would raise an error.
    """
    require_packages(progress_bar)
    config = read_config(folder)
    with training_lock(folder):
        checkpoint = read_checkpoint(folder)
        if "algorithm" in checkpoint:
            raise RunError(f"{folder} was trained by RLlib, which goes on with it: ncp_rl.distributed.rllib.resume.")
        config = going_on(config, checkpoint, folder, n_timesteps)
        with parts_of_training(config, TrainingPlan(*checkpoint["plan"]), device) as made:
            began = checkpoint["steps"] > 0
            why_not = restore(made.model, checkpoint, seed_from(config, checkpoint)) if began else ""
            write_file(folder / "config.json", to_json(config).encode())
            restore_files(folder, checkpoint)
            tell_resumed(folder, checkpoint, why_not)
            return _learn(
                made,
                folder,
                progress_bar=progress_bar,
                callback=callback,
                on_evaluation=on_evaluation,
                checkpoint=checkpoint if began else None,
            )


def require_packages(progress_bar: bool) -> None:
    """Check what training needs before anything is made: Stable-Baselines3 would tell only once it begins."""
    require("cli", "tensorboard", *(["tqdm", "rich"] if progress_bar else []), by="Training into a run folder")


def check_new(folder: Path) -> None:
    """Refuse a folder that exists.

    Raises:
        RunError: It does.
    """
    if folder.exists():
        raise RunError(
            f"The folder {folder} exists and is left as it is; name another one for this run, or resume a killed "
            f"training: ncp-rl train --resume {folder}."
        )


@contextmanager
def new_folder(folder: Path, config: RunConfig) -> Iterator[None]:
    """Make the folder of a run, with its configuration, and lock it against other processes that train."""
    text = to_json(config)
    folder.mkdir(parents=True)
    with training_lock(folder):
        write_file(folder / "config.json", text.encode())
        yield


def going_on(config: RunConfig, checkpoint: Mapping[str, Any], folder: Path, n_timesteps: int | None) -> RunConfig:
    """Return the configuration of the resumed training."""
    differences = config.differences(RunConfig(**checkpoint["config"]))
    if differences:
        raise RunError(
            f"{folder / 'config.json'} differs from the checkpoint beside it: {'; '.join(differences)}. A resumed "
            "training keeps its settings: restore the file, or train anew."
        )
    steps, in_all = checkpoint["steps"], config.n_timesteps if n_timesteps is None else n_timesteps
    if steps < in_all or (n_timesteps is None and not (folder / "last" / "model.zip").exists()):
        return config.with_n_timesteps(in_all)
    raise RunError(
        f"The training of {folder} has taken {steps:,} steps of {in_all:,} and is finished. To continue it, give "
        f"more steps in all: --timesteps {2 * steps} for ncp-rl train, n_timesteps={2 * steps} for resume."
    )


def seed_from(config: RunConfig, checkpoint: Mapping[str, Any]) -> int:
    """Return the seed of episodes that begin anew at a checkpoint, so that earlier ones are not driven again."""
    return int(np.random.SeedSequence([config.seed, checkpoint["steps"]]).generate_state(1)[0]) % 2**31


def tell_resumed(folder: Path, checkpoint: Mapping[str, Any], why_not: str) -> None:
    """Log how the training is resumed, also in the folder's `resumed.log`."""
    before, now = checkpoint["versions"], installed_versions()
    changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    line = f"At step {checkpoint['steps']:,} the training goes on" + (
        f"; episodes begin anew, since environments cannot go on: {why_not}." if why_not else " where it was."
    )
    if changed:
        line += f" Versions differ, so that numbers may too: {', '.join(changed)}."
    logging.getLogger("ncp_rl.runs").log(logging.WARNING if why_not or changed else logging.INFO, line)
    with (folder / "resumed.log").open("a") as file:
        file.write(line + "\n")


@contextmanager
def parts_of_training(config: RunConfig, plan: TrainingPlan, device: str, init: Path | None = None) -> Iterator[Made]:
    """Make environments, model and callbacks of a run, and close the environments at the end.

    Args:
        config: Configuration of the run.
        plan: How often it is evaluated and saved.
        device: Device of torch.
        init: A run folder whose best policy the training starts from.

    Raises:
        RunError: A number of the plan is below 1, or a part cannot be made.
    """
    to_json(config)  # What config.json cannot hold is refused before anything is made.
    for name, number in plan._asdict().items():
        if number < 1:
            raise RunError(f"{name} must be at least 1, got {number}.")
    callbacks = _callbacks(config)
    n_envs = int(config.hyperparams.get("n_envs") or 1)
    venv, eval_venv = make_envs(config, n_envs), make_envs(config, min(plan.n_eval_episodes, 20), training=False)
    try:
        model = make_model(config, venv, device)
        if isinstance(model.get_env(), VecTransposeImage):
            eval_venv = VecTransposeImage(eval_venv)  # The model wraps its own so, and EvalCallback warns otherwise.
        made = Made(config, plan, venv, eval_venv, model, callbacks)
        if init is not None:
            _begin_with(init, made)
        yield made
    finally:
        venv.close()
        eval_venv.close()


def _learn(
    made: Made,
    folder: Path,
    *,
    progress_bar: bool,
    callback: BaseCallback | None,
    on_evaluation: Callable[[int, Evaluation], object] | None,
    checkpoint: Mapping[str, Any] | None = None,
) -> OnPolicyAlgorithm:
    """Train to the end, from the beginning or from a checkpoint that `restore` has restored."""
    config, plan, model = made.config, made.plan, made.model
    eval_freq = max(config.n_timesteps // plan.n_evaluations // model.n_envs, 1)
    evaluation = periodic_evaluation(made, folder, eval_freq=eval_freq, on_evaluation=on_evaluation)
    others = made.callbacks + ([callback] if callback else [])
    keep = KeepCheckpoint(folder, config, plan, callbacks=[evaluation, *others], checkpoint=checkpoint)
    steps = model.num_timesteps
    rollouts = steps // (model.n_steps * model.n_envs)
    model.set_logger(make_logger(folder, steps_before=steps, iterations_before=rollouts))
    try:
        try:
            model.learn(
                max(config.n_timesteps - steps, 0),
                callback=CallbackList([evaluation, keep, *others]),
                reset_num_timesteps=checkpoint is None,
                progress_bar=progress_bar,
            )
        finally:
            # The model is saved also where training is interrupted, so that nothing learned is lost.
            save_model(model, folder / "last")
            model.logger.close()
        return model
    except KeyboardInterrupt as interrupt:
        raise RunError(
            f"Training was interrupted; the model so far is in {folder / 'last'}. ncp-rl train --resume {folder} "
            f"goes on from step {keep.steps:,}."
        ) from interrupt
    except BadInputError as error:
        raise RunError(
            f"Training stopped. {_before_normalisation(made.venv, model) or error} {_left(folder, made.venv)}"
        ) from error


def periodic_evaluation(
    made: Made, folder: Path, *, eval_freq: int, on_evaluation: Callable[[int, Evaluation], object] | None
) -> SeededEvaluation:
    """Make the callback that evaluates the model and keeps it in the run folder, as the best one and by step.

    Args:
        made: The parts of the training.
        folder: Folder of the run.
        eval_freq: Calls of the callback for each evaluation.
        on_evaluation: As for `train`.
    """
    return SeededEvaluation(
        made.eval_venv,
        folder,
        seed=made.config.seed + EVALUATION_SEED,
        on_evaluation=on_evaluation,
        callback_on_new_best=_KeepModel(folder / "best"),
        callback_after_eval=_KeepModel(folder / "checkpoints", by_step=True),
        n_eval_episodes=made.plan.n_eval_episodes,
        eval_freq=eval_freq,
        verbose=0,
    )


def _begin_with(init: Path, made: Made) -> None:
    """Take over the best policy of another run, and the statistics of its observations."""
    taught, venv = load_run(init, device=made.model.device.type)
    venv.close()
    try:
        made.model.policy.load_state_dict(taught.policy.state_dict())
    except (RuntimeError, ValueError) as error:
        raise RunError(f"The policy of {init} does not fit the one to be trained: {error}") from error
    theirs, ours = taught.get_vec_normalize_env(), unwrap_vec_normalize(made.venv)
    if theirs is not None and ours is not None and theirs.norm_obs and ours.norm_obs:
        ours.obs_rms = theirs.obs_rms


def _callbacks(config: RunConfig) -> list[BaseCallback]:
    try:
        return settings.callbacks(config.hyperparams.get("callback"))
    except (TypeError, ValueError) as error:
        raise RunError(f"The callbacks cannot be made: {error}") from error


class _KeepModel(BaseCallback):
    """A callback that saves the model with the statistics that it was evaluated with."""

    def __init__(self, folder: Path, *, by_step: bool = False) -> None:
        super().__init__()
        self.folder, self.by_step = folder, by_step

    def _on_step(self) -> bool:
        assert isinstance(self.model, OnPolicyAlgorithm)
        steps = f"{self.model.num_timesteps}_steps"
        names = dict(name=f"model_{steps}.zip", statistics=f"model_vecnormalize_{steps}.pkl") if self.by_step else {}
        save_model(self.model, self.folder, **names)
        return True


def _left(folder: Path, venv: VecEnv) -> str:
    """Return a sentence on the files that a training leaves which a bad reading stopped."""
    if isinstance(venv, VecNormalize) and venv.norm_obs:
        return f"It has spoiled the statistics in last/; continue from {folder / 'best'} or {folder / 'checkpoints'}."
    return f"The model so far is in {folder / 'last'}."


def _before_normalisation(venv: VecEnv, model: OnPolicyAlgorithm) -> str:
    """Return a sentence on the environment's bad reading, where normalisation spreads it to all environments."""
    normalize = unwrap_vec_normalize(venv)
    if normalize is None or not isinstance(model.policy, NCPPolicy):
        return ""
    bad = model.policy.find_bad(normalize.get_original_obs(), privileged=True)
    return "" if bad is None else bad.first.sentence()
