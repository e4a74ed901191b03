"""`teach_run`: saves a taught policy as a run folder, which is used like that of a trained one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.runs import RunConfig, RunError, make_envs, make_model, save_model
from ncp_rl.runs.config import to_json
from ncp_rl.runs.folder import write_file
from ncp_rl.runs.logs import make_logger

T = TypeVar("T")


def teach_run(
    config: RunConfig,
    folder: Path,
    teach: Callable[[OnPolicyAlgorithm, VecEnv], T],
    *,
    n_envs: int | None = None,
    device: str = "auto",
) -> T:
    """Make a run's environments and its untrained model, teach it, and save it as `best/` and `last/`.

    Args:
        config: Configuration of the run: environment, policy and settings, as for `ncp_rl.runs.train`.
        folder: New folder for the run; losses go into its progress.csv and its TensorBoard events.
        teach: Function that teaches the model, such as `lambda model, venv: dagger(model, venv, expert)`.
        n_envs: Number of environments side by side; None takes the configuration's.
        device: Device of torch.

    Returns:
        The result of `teach`.

    Raises:
        RunError: The folder exists, the environments or the model cannot be made, or demonstrations do not fit.
    """
    if folder.exists():
        raise RunError(f"The folder {folder} exists and is left as it is; name another one for this run.")
    text = to_json(config)
    venv = make_envs(config, n_envs or int(config.hyperparams.get("n_envs") or 1))
    try:
        model = make_model(config, venv, device)
        folder.mkdir(parents=True)
        write_file(folder / "config.json", text.encode())
        model.set_logger(make_logger(folder))
        try:
            outcome = teach(model, venv)
        except ValueError as error:
            raise RunError(f"The policy cannot be taught: {error}") from error
        finally:
            for name in ("best", "last"):
                save_model(model, folder / name)
            model.logger.close()
        return outcome
    finally:
        venv.close()
