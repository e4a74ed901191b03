"""`run_again`: runs a recorded rollout again from its seeds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ncp_rl.recording.compare import Tally
from ncp_rl.recording.episode import Episode
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.layout import Layout
from ncp_rl.recording.reader import Recording
from ncp_rl.recording.recorder import record_rollouts

Array = npt.NDArray[Any]

#: Prefix of the names of quantities of a rollout that was run again.
AGAIN = "run again: "


def run_again(recording: Recording, model: OnPolicyAlgorithm, env: VecEnv, tally: Tally) -> None:
    """Run the recorded rollout again and compare.

    Where every bit must come back, model and environments run freely. Elsewhere a difference of one bit would
    grow with every step, through policy and environment, so the environments take the recorded actions.

    Raises:
        RecordingError: The recording is not of a rollout, or has another number of environments.
    """
    if recording.manifest["kind"] != "rollouts":
        raise RecordingError(
            "Only recordings of rollouts can be run again, and this one was made in training; replay it without env."
        )
    missing = [name for name in ("n_episodes", "seed", "deterministic") if recording.manifest.get(name) is None]
    if missing:
        raise RecordingError(
            f"A rollout can only be run again if the manifest holds {', '.join(missing)}, and it does not."
        )
    if env.num_envs != recording.layout.n_envs:
        raise RecordingError(
            f"env must have as many environments as the recording, {recording.layout.n_envs}, got {env.num_envs}."
        )
    if tally.exact:
        _repeat(recording, model, env, tally)
    else:
        _follow(recording, env, tally)


def _repeat(recording: Recording, model: OnPolicyAlgorithm, env: VecEnv, tally: Tally) -> None:
    arguments = {name: recording.manifest[name] for name in ("n_episodes", "deterministic", "seed")}
    with tempfile.TemporaryDirectory() as folder:
        path = record_rollouts(model, env, Path(folder) / "again.mcap", **arguments, progress_bar=False)
        again = Recording.open(path, max_memory=recording.budget.max_memory)
        for i in range(len(recording)):
            _compare_episodes(recording[i], again[i] if i < len(again) else None, tally)


def _compare_episodes(episode: Episode, again: Episode | None, tally: Tally) -> None:
    """Compare an episode with its repetition, where both have the same length."""
    length = 0 if again is None or again.env_index != episode.env_index else len(again)
    tally.add_number(episode, AGAIN + "length", len(episode), length)
    if again is None or length != len(episode):
        return
    for name in ("observation", "action", "reward", "sensory", "potentials", "value", "log_prob"):
        tally.add(episode, AGAIN + name, getattr(episode, name), getattr(again, name))
    for name in ("terminated", "truncated"):
        tally.add_number(episode, AGAIN + name, getattr(episode, name), getattr(again, name))


def _follow(recording: Recording, env: VecEnv, tally: Tally) -> None:
    """Run the environments from their seeds with the recorded actions, and compare observations and rewards."""
    if not len(recording):
        return
    normalize = unwrap_vec_normalize(env)
    tracks = [_Track(recording, n) for n in range(env.num_envs)]
    idle = recording[0].action[0]
    env.seed(recording.manifest["seed"])
    observation: Any = env.reset()
    while any(track.episode is not None for track in tracks):
        seen = _numbers(recording.layout, observation if normalize is None else normalize.old_obs)
        actions = _actions(env.action_space, [track.action(idle) for track in tracks])
        observation, reward, done, infos = env.step(actions)
        reward = reward if normalize is None else normalize.old_reward
        for n, track in enumerate(tracks):
            truncated = bool(done[n]) and bool(infos[n].get("TimeLimit.truncated", False))
            track.add(seen[n], float(reward[n]), bool(done[n]) and not truncated, truncated, tally)


class _Track:
    """The recorded episodes of one environment, one after the other, and the repetition of the present one."""

    def __init__(self, recording: Recording, env_index: int) -> None:
        numbers = [i for i, env in enumerate(recording.env_indices) if env == env_index]
        self._episodes = (recording[i] for i in numbers)
        self._again: list[tuple[Array, float, bool, bool]] = []
        self.episode = next(self._episodes, None)

    def action(self, idle: Array) -> Array:
        """Return the recorded action of the next step, (A,), or `idle` where the recording has no more."""
        return idle if self.episode is None else self.episode.action[len(self._again)]

    def add(self, observation: Array, reward: float, terminated: bool, truncated: bool, tally: Tally) -> None:
        """Add the outcome of a step, and compare where the recorded episode or its repetition ends."""
        if self.episode is None:
            return
        self._again.append((observation, reward, terminated, truncated))
        ended, last = terminated or truncated, len(self._again) == len(self.episode)
        if ended or last:
            self._compare(self.episode, tally)
            # Where the two do not end together, later steps cannot be compared.
            self.episode = next(self._episodes, None) if ended and last else None
            self._again = []

    def _compare(self, episode: Episode, tally: Tally) -> None:
        columns = dict(
            zip(("observation", "reward", "terminated", "truncated"), zip(*self._again, strict=True), strict=True)
        )
        n = len(self._again)
        for name, values in columns.items():
            recorded = getattr(episode, name)
            if name in ("terminated", "truncated"):
                recorded = recorded & (np.arange(len(episode)) == len(episode) - 1)
            tally.add(episode, AGAIN + name, recorded[:n], np.asarray(values))


def _numbers(layout: Layout, observation: Any) -> Array:
    """Return observed quantities (N, D) as messages hold them."""
    parts = [
        np.asarray(observation if part.key is None else observation[part.key], part.dtype).reshape(layout.n_envs, -1)
        for part in layout.observed_numbers
    ]
    kept = np.concatenate([np.empty((layout.n_envs, 0), np.float32), *parts], axis=1)
    return kept.copy()


def _actions(space: spaces.Space[Any], actions: list[Array]) -> Array:
    """Return actions (N, ...) as the environments take them, from recorded ones (A,)."""
    return np.stack(actions).reshape(len(actions), *(space.shape or ())).astype(space.dtype)
