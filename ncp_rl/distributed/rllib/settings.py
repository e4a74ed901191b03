"""The settings of a run as RLlib takes them: what means the same there, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import LinearSchedule

from ncp_rl.distributed.rllib.environment import EPISODE, RunEnvironment
from ncp_rl.distributed.rllib.learner import NCPLearner
from ncp_rl.distributed.rllib.module import NCPModule, check_action_space, model_config
from ncp_rl.policy import NCPPolicy
from ncp_rl.runs import RunConfig, RunError, is_circuit
from ncp_rl.runs.settings import ZOO_ENTRIES

#: Metrics of env runners: return, not normalised, and length of episodes that have ended.
RETURN, LENGTH = "run_return", "run_length"
#: Arguments of RecurrentPPO that have their like in RLlib.
_CARRIED = frozenset(
    {
        "n_steps",
        "batch_size",
        "n_epochs",
        "gamma",
        "gae_lambda",
        "learning_rate",
        "clip_range",
        "ent_coef",
        "vf_coef",
        "max_grad_norm",
        "use_sde",
        "sde_sample_freq",
    }
)
#: Others, with the value with which they change nothing.
_NEUTRAL: Mapping[str, Any] = {
    "clip_range_vf": None,
    "target_kl": None,
    "normalize_advantage": True,
    "callback": None,
}


@dataclass(frozen=True)
class Workers:
    """The processes of a training with RLlib."""

    runners: int = 2
    """Env runners, which share the run's `n_envs` evenly; each takes a CPU."""
    learners: int = 0
    """Learners, which share each batch evenly and take a CPU each; 0: the driver learns itself."""
    gpus_per_learner: float = 0.0
    """GPUs of each learner."""
    max_seq_len: int | None = None
    """Steps of the sequences through which learners send gradients back; None: as many as `RecurrentPPO` does at most,
    the steps of a rollout or of a minibatch."""
    max_restarts: int = 100
    """How often each env runner is started again after its process died."""
    sample_timeout_s: float = 600.0
    """Seconds after which a training goes on without the env runners that have not brought their part of a rollout."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            RunError: A number is out of range.
        """
        least = dict(runners=1, learners=0, gpus_per_learner=0, max_seq_len=1, max_restarts=0, sample_timeout_s=1)
        for name, number in asdict(self).items():
            if number is not None and number < least[name]:
                raise RunError(f"{name} must be at least {least[name]}, got {number}.")


def check_settings(config: RunConfig, workers: Workers) -> None:
    """Refuse settings that RLlib would not follow.

    Raises:
        RunError: A setting has no like in RLlib, or does not divide by the processes.
    """
    found = config.hyperparams
    if not is_circuit(found.get("policy")):
        raise RunError(f"RLlib trains NCP policies here, and {found['policy']} is none; train it without RLlib.")
    for name, value in found.items():
        if name in ZOO_ENTRIES - {"callback"} or name in _CARRIED:
            continue
        if name not in _NEUTRAL:
            raise RunError(f"RLlib's PPO has nothing like {name}; leave it out, or train without RLlib.")
        if value != _NEUTRAL[name]:
            raise RunError(
                f"RLlib's PPO has nothing like {name}={value!r}; leave it out, which stands for {_NEUTRAL[name]}, or "
                "train without RLlib."
            )
    normalize = found.get("normalize")
    if normalize is True or (isinstance(normalize, Mapping) and normalize.get("norm_obs", True)):
        raise RunError(
            "normalize must be {norm_obs: false, ...} with RLlib: env runners share no statistics of observations "
            f"outside of the policy, whose receptors standardise them; got {normalize!r}."
        )
    if isinstance(found.get("clip_range"), str):
        raise RunError(
            f"clip_range must be a number with RLlib, which has no schedule of it, got {found['clip_range']}."
        )
    if (found.get("policy_kwargs") or {}).get("squash_output"):
        raise RunError("squash_output must be left out with RLlib, which clips actions to their bounds.")
    n_envs = int(found.get("n_envs") or 1)
    if n_envs % workers.runners:
        raise RunError(
            f"n_envs must be a multiple of the {workers.runners} env runners, which share them, got {n_envs}."
        )


def algorithm_config(
    config: RunConfig,
    model: RecurrentPPO,
    workers: Workers,
    *,
    modules: tuple[str, ...] = (),
    rewards: RunningMeanStd | None = None,
) -> PPOConfig:
    """Return the configuration of RLlib's PPO that trains the policy of a model as the model itself would.

    Advantages are normalised over the whole batch, where RecurrentPPO does so in each minibatch; minibatches are whole
    sequences, so that their sizes vary around `batch_size`; and each environment normalises its rewards by statistics
    of its own.

    Args:
        config: Configuration of the run.
        model: The untrained model of the run, with its environments.
        workers: The processes.
        modules: Modules that env runners import first, such as those that register environments.
        rewards: The statistics that environments normalise rewards by at first.

    Raises:
        RunError: A setting has no like in RLlib, or does not divide by the processes.
    """
    check_settings(config, workers)
    n_in_batch, batch_size = _parts_of_batches(model, max(workers.learners, 1))
    max_seq_len = workers.max_seq_len or default_seq_len(model.n_steps, batch_size)
    made = PPOConfig()
    made.environment(
        env=RunEnvironment,
        env_config=dict(config=asdict(config), modules=modules, rewards=rewards),
        # The policy's actions are in the environment's units, as with Stable-Baselines3.
        normalize_actions=False,
        clip_actions=True,
    )
    made.env_runners(
        num_env_runners=workers.runners,
        num_envs_per_env_runner=model.n_envs // workers.runners,
        rollout_fragment_length=model.n_steps,
        sample_timeout_s=workers.sample_timeout_s,
    )
    made.learners(
        num_learners=workers.learners,
        num_gpus_per_learner=workers.gpus_per_learner,
        learner_class=NCPLearner,
    )
    made.rl_module(rl_module_spec=_module_spec(model, max_seq_len))
    made.training(
        train_batch_size_per_learner=n_in_batch,
        minibatch_size=_minibatch_size(batch_size, max_seq_len, n_in_batch),
        **_learning(config, model),
    )
    made.fault_tolerance(
        restart_failed_env_runners=True,
        ignore_env_runner_failures=True,
        max_num_env_runner_restarts=workers.max_restarts,
    )
    made.callbacks(on_episode_end=log_episode)
    made.debugging(seed=config.seed, log_level="ERROR")
    return made


def _parts_of_batches(model: RecurrentPPO, n_learners: int) -> tuple[int, int]:
    """Return the steps of a batch and of a minibatch that each learner gets.

    Raises:
        RunError: They cannot share them evenly.
    """
    n_in_batch, batch_size = model.n_steps * model.n_envs, int(model.batch_size or 1)
    if n_in_batch % n_learners or batch_size % n_learners:
        raise RunError(
            f"n_steps * n_envs = {n_in_batch} and batch_size = {batch_size} must be multiples of the {n_learners} "
            "learners, which share them."
        )
    return n_in_batch // n_learners, batch_size // n_learners


def _module_spec(model: RecurrentPPO, max_seq_len: int) -> RLModuleSpec:
    """Return what RLlib makes modules from, like the policy of a model.

    Raises:
        RunError: RLlib has no distribution of its actions.
    """
    policy = model.policy
    assert isinstance(policy, NCPPolicy)
    try:
        check_action_space(policy.action_space)
    except ValueError as error:
        raise RunError(str(error)) from error
    # -1 stands for once a rollout.
    sde_sample_freq = model.n_steps if model.sde_sample_freq < 1 else model.sde_sample_freq
    return RLModuleSpec(
        module_class=NCPModule,
        observation_space=policy.observation_space,
        action_space=policy.action_space,
        model_config=model_config(policy, max_seq_len=max_seq_len, sde_sample_freq=sde_sample_freq),
    )


def _learning(config: RunConfig, model: RecurrentPPO) -> dict[str, Any]:
    """Return the arguments of PPO that mean the same in RLlib, by their names there."""
    return dict(
        num_epochs=model.n_epochs,
        gamma=model.gamma,
        lambda_=model.gae_lambda,
        lr=_rates(model, config.n_timesteps),
        clip_param=float(config.hyperparams.get("clip_range", 0.2)),
        entropy_coeff=model.ent_coef,
        vf_loss_coeff=model.vf_coef,
        vf_clip_param=math.inf,
        use_kl_loss=False,
        grad_clip=model.max_grad_norm,
        grad_clip_by="global_norm",
    )


def default_seq_len(n_steps: int, batch_size: int) -> int:
    """Return the steps of sequences that cut a rollout into as few pieces as minibatches allow.

    A rollout of `n_steps` has one step more in RLlib, at which only the value is wanted.
    """
    pieces = math.ceil(n_steps / batch_size)
    return math.ceil((n_steps + 1) / pieces)


def _minibatch_size(batch_size: int, max_seq_len: int, n_in_batch: int) -> int | None:
    """Return the steps of as many whole sequences as come next to a minibatch; None for a whole batch."""
    steps = max(round(batch_size / max_seq_len), 1) * max_seq_len
    return steps if steps < n_in_batch else None


def _rates(model: RecurrentPPO, n_timesteps: int) -> float | list[list[float]]:
    """Return the learning rate as RLlib writes it: a number, or rates by environment steps."""
    if not isinstance(model.learning_rate, LinearSchedule):
        return float(model.lr_schedule(1.0))
    return [[0, model.lr_schedule(1.0)], [n_timesteps, model.lr_schedule(0.0)]]


def log_episode(*, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
    """Log return and length of an episode at its end; RLlib calls this."""
    total, length = episode.get_infos(-1)[EPISODE]
    metrics_logger.log_value(RETURN, float(total), window=100)
    metrics_logger.log_value(LENGTH, float(length), window=100)
