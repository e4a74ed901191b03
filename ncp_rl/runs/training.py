"""Training: a policy learns, and its run folder is filled."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from ncp_rl.policy import NCPPolicy
from ncp_rl.readings import BadInputError
from ncp_rl.runs import settings
from ncp_rl.runs.config import EVALUATION_SEED, RunConfig, RunError, to_json
from ncp_rl.runs.environments import make_envs
from ncp_rl.runs.evaluation import SeededEvaluation
from ncp_rl.runs.folder import save_model
from ncp_rl.runs.models import make_model


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
    text = to_json(config)
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
            SeededEvaluation(
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


def _callbacks(config: RunConfig) -> list[BaseCallback]:
    try:
        return settings.callbacks(config.hyperparams.get("callback"))
    except (TypeError, ValueError) as error:
        raise RunError(f"The callbacks cannot be made: {error}") from error


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
