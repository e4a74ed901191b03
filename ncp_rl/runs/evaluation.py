"""Evaluation: returns of whole episodes from seeded environments, also periodically during training."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.readings import BadInputError
from ncp_rl.runs.config import RunError

#: Steps after which an episode is considered endless, unless its environment's own limit is larger.
MAX_EPISODE_STEPS = 30_000

_RESAMPLES = 2000

# Attributes of `EvalCallback` that hold evaluations so far.
_EVALUATED = (
    "n_calls",
    "num_timesteps",
    "best_mean_reward",
    "last_mean_reward",
    "evaluations_timesteps",
    "evaluations_results",
    "evaluations_length",
    "evaluations_successes",
)


@dataclass(frozen=True)
class Evaluation:
    """Returns of evaluation episodes, not normalised."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    def summary(self) -> dict[str, float]:
        """Return episodes, mean, standard deviation, minimum and maximum return, and mean length."""
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
        """Return the summary in a line."""
        s = self.summary()
        return (
            f"return {s['mean_return']:.1f} +- {s['std_return']:.1f} (min {s['min_return']:.1f}, "
            f"max {s['max_return']:.1f}), length {s['mean_length']:.1f}, over {s['episodes']} episodes"
        )


class Interval(NamedTuple):
    """A mean over episodes and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: npt.NDArray[np.float64]) -> Interval:
    """Return the mean of (E,) values and its 95 % percentile bootstrap; equal values give equal intervals."""
    resampled = np.random.default_rng(0).choice(values, (_RESAMPLES, len(values))).mean(1)
    return Interval(float(values.mean()), *map(float, np.percentile(resampled, [2.5, 97.5])))


class EpisodeBound:
    """Counts the steps of each environment's episode, and raises an error where one does not end.

    Code that waits for the end of episodes would otherwise wait forever, silently, where a task never ends. The
    bound is `MAX_EPISODE_STEPS`, or the limit with which an environment was made where that is larger.
    """

    def __init__(self, venv: VecEnv) -> None:
        """Count the steps of `venv` from a reset on."""
        self._venv, self._bound = venv, MAX_EPISODE_STEPS
        self._steps = np.zeros(venv.num_envs, np.int64)

    def count(self, ended: npt.NDArray[np.bool_]) -> None:
        """Count a step of all N environments.

        Args:
            ended: (N,) bool, whether it ended an episode.

        Raises:
            RunError: An episode has not ended within the bound.
        """
        self._steps = np.where(ended, 0, self._steps + 1)
        self._check()

    def watch(self, local: Mapping[str, Any], _: Mapping[str, Any]) -> None:
        """Count as a callback of `evaluate_policy`, which calls it for one environment after the other."""
        # evaluate_policy waits for the end by a Monitor, where there is one.
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
            "a task never ends, let its episodes be cut: --max-episode-steps 1000 for the scripts, "
            "max_episode_steps=1000 for RunConfig and load_run, or env_kwargs=dict(max_episode_steps=1000) for "
            "Stable-Baselines3's make_vec_env."
        )


def evaluate(
    model: OnPolicyAlgorithm,
    venv: VecEnv,
    *,
    n_episodes: int = 10,
    deterministic: bool = True,
    seed: int = 0,
    acting: PolicyPredictor | None = None,
) -> Evaluation:
    """Run whole episodes from seeded environments.

    Args:
        model: The model.
        venv: Environments, such as `load_run` returns.
        n_episodes: Number of episodes in all.
        deterministic: Whether to take the most likely action instead of a sampled one.
        seed: Environment i starts from seed + i; sampled actions follow it too.
        acting: What acts in the model's place, such as `ncp_rl.audit.MonitoredModel(model, ...)`; the model where None.

    Raises:
        RunError: An episode does not end, or a reading is bad and the policy does not hold it.
    """
    venv.seed(seed)
    model.set_random_seed(seed)
    try:
        returns, lengths = evaluate_policy(
            model if acting is None else acting,
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


class SeededEvaluation(EvalCallback):
    """Evaluates every model from the same starts, so that luck does not decide, and logs the time of training alone."""

    def __init__(
        self,
        eval_env: VecEnv,
        folder: Path,
        *,
        seed: int,
        on_evaluation: Callable[[int, Evaluation], object] | None = None,
        **kwargs: Any,
    ) -> None:
        """Evaluate in `eval_env`, whose environment i starts from seed + i.

        Args:
            eval_env: Environments.
            folder: Folder for evaluations.npz.
            seed: Seed of the environments.
            on_evaluation: Called with the environment steps so far and each evaluation, once all its files are written.
            **kwargs: Arguments of upstream's class.
        """
        super().__init__(eval_env, **kwargs)
        self.seed, self.path, self.on_evaluation = seed, folder / "evaluations.npz", on_evaluation
        # Upstream writes in place; here it writes beside the file, which is then replaced.
        self.log_path = str(folder / "evaluations.partial.npz")

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
        Path(self.log_path or "").replace(self.path)
        if self.on_evaluation is not None:
            returns, lengths = self.evaluations_results[-1], self.evaluations_length[-1]
            self.on_evaluation(self.num_timesteps, Evaluation(tuple(map(float, returns)), tuple(map(int, lengths))))
        self.training_began += _seconds() - began
        return go_on

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """Run the callback that upstream passes to `evaluate_policy`."""
        self.bound.watch(locals_, globals_)
        super()._log_success_callback(locals_, globals_)

    def state_dict(self) -> dict[str, Any]:
        """Return the evaluations so far, for a resumed training."""
        held = {name: copy.copy(vars(self)[name]) for name in _EVALUATED}
        return held | dict(spent=_seconds() - self.training_began)

    def load_state_dict(self, held: Mapping[str, Any]) -> None:
        """Restore evaluations and clocks."""
        vars(self).update({name: held[name] for name in _EVALUATED})
        self.training_began = _seconds() - held["spent"]


def _seconds() -> npt.NDArray[np.float64]:
    """Return the seconds of the clock and of the processor, (2,)."""
    return np.array([time.perf_counter(), time.process_time()])
