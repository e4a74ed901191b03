"""Demonstrations: observations and an expert's actions, from recordings, Minari datasets and running experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from tqdm import tqdm

from ncp_rl.extras import require
from ncp_rl.recording import Recording, RecordingError
from ncp_rl.recording.manifest import read_space

Array = npt.NDArray[Any]
Observation = Array | dict[str, Array]
#: A function that returns what an expert sees of environments in place of the observation, (N, P).
Privilege = Callable[[VecEnv], Array]


class Expert(Protocol):
    """A class that acts by the protocol of Stable-Baselines3: its models, its policies, or a user's controller."""

    def predict(
        self,
        observation: Any,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """Return actions of N environments, and the state for the next observation."""
        ...


@dataclass(frozen=True)
class Demonstration:
    """T steps of one episode, or of its beginning.

    Attributes:
        observation: (T, ...) observations as the environment gave them, or a dict of such.
        action: (T, ...) actions of the expert, as the environment takes them, whether or not they were carried out.
        privileged: (T, P) what the expert saw, or None where that was the observation.
    """

    observation: Observation
    action: Array
    privileged: Array | None = None

    def __len__(self) -> int:
        """Return the number of steps T."""
        return len(self.action)


def from_recordings(paths: Sequence[Path | str]) -> list[Demonstration]:
    """Read the episodes of recordings, without held steps, in which neurons did not move.

    Raises:
        RecordingError: A recording is damaged, or images were observed and not recorded.
    """
    found = []
    for path in paths:
        recording = Recording.open(Path(path))
        space = read_space(recording.manifest.get("action_space"))
        for episode in recording:
            observation = recording.observations(episode)
            if observation is None:
                raise RecordingError(
                    f"The policy in {path} observed images, which were not recorded; record with images=True."
                )
            action = episode.action.reshape(len(episode), *(space.shape or ())).astype(space.dtype)
            found.append(Demonstration(_rows(observation, ~episode.held), action[~episode.held]))
    return found


def from_minari(dataset: Any) -> list[Demonstration]:
    """Read the episodes of a Minari dataset, given itself or by the name of one on this machine.

    Raises:
        ncp_rl.extras.MissingExtraError: Minari is not installed.
    """
    if isinstance(dataset, str):
        require("minari", "minari", by="A Minari dataset")
        minari: Any = import_module("minari")  # It has no types.
        dataset = minari.load_dataset(dataset)
    episodes = dataset.iterate_episodes()
    return [Demonstration(_rows(e.observations, slice(len(e.actions))), np.asarray(e.actions)) for e in episodes]


def from_sources(sources: Sequence[Path | str]) -> list[Demonstration]:
    """The episodes of recordings, whose names end in .mcap, and of Minari datasets, in this order.

    Raises:
        RecordingError: See `from_recordings`.
        ncp_rl.extras.MissingExtraError: Minari is not installed.
    """
    found: list[Demonstration] = []
    for source in map(str, sources):
        found += from_recordings([source]) if source.endswith(".mcap") else from_minari(source)
    return found


def attribute_of_envs(name: str) -> Privilege:
    """A privilege: the expert sees this attribute of each environment, such as `true_state`."""
    return lambda venv: np.stack(venv.get_attr(name))


def demonstrate(
    expert: Expert,
    venv: VecEnv,
    n_steps: int,
    *,
    seed: int = 0,
    privilege: Privilege | None = None,
    student: Expert | None = None,
    expert_share: float = 1.0,
    pushes: float = 0.0,
    progress_bar: bool = False,
) -> list[Demonstration]:
    """Run environments by the expert, or by a student, and keep the expert's actions.

    Args:
        expert: The expert, which sees observations as the environment gives them, before VecNormalize.
        venv: N environments, which are reset first.
        n_steps: Number of steps of each environment.
        seed: Environment i starts from seed + i; the choice of drivers and the pushes follow it too.
        privilege: Function that returns what the expert sees instead of the observation, such as the true state.
        student: The model that drives where the expert does not; it sees observations as `venv` gives them.
        expert_share: Probability that the expert drives a step, where there is a student.
        pushes: Every second environment is pushed at random times: for 4 to 20 steps, up to this many half ranges of
            the action are added to it. The expert then shows how to recover.
        progress_bar: Whether to show progress.

    Returns:
        A demonstration for each episode; the last one of each environment may be cut off.

    Raises:
        ValueError: The expert's actions do not fit the action space, or pushes are not 0 and actions are not in a
            bounded Box.
    """
    n, space, rng = venv.num_envs, venv.action_space, np.random.default_rng(seed)
    push = _Pushes(space, n, pushes, rng) if pushes else None
    ends = np.zeros((n, n_steps), np.bool_)
    kept: dict[str, Any] = {}
    with frozen_statistics(venv), tqdm(range(n_steps), desc="drive", unit="step", disable=not progress_bar) as steps:
        venv.seed(seed)
        observation: Any = venv.reset()
        starts = np.ones(n, np.bool_)
        expert_state = student_state = None
        for step in steps:
            seen = expert_view(venv, observation, privilege)
            labels, expert_state = expert.predict(seen, expert_state, starts, deterministic=True)
            labels = _fitting(labels, space, n)
            _keep(kept, "observation", expert_view(venv, observation, None), step, n_steps)
            _keep(kept, "action", labels, step, n_steps)
            if privilege is not None:
                _keep(kept, "privileged", seen, step, n_steps)
            actions = labels
            if student is not None:
                own, student_state = student.predict(observation, student_state, starts, deterministic=True)
                shown = (rng.random(n) < expert_share).reshape(n, *(1,) * (labels.ndim - 1))
                actions = np.where(shown, labels, own)
            if push is not None:
                actions = push(actions)
            observation, _, starts, _ = venv.step(actions)
            ends[:, step] = starts
    return list(_episodes(kept, ends))


def expert_view(venv: VecEnv, observation: Any, privilege: Privilege | None) -> Any:
    """Return what an expert sees: its privilege, else the observation before normalisation."""
    if privilege is not None:
        return privilege(venv)
    normalize = unwrap_vec_normalize(venv)
    return observation if normalize is None else normalize.get_original_obs()


@contextmanager
def frozen_statistics(venv: VecEnv) -> Iterator[None]:
    """Keep the statistics of a VecNormalize unchanged inside the context."""
    normalize = unwrap_vec_normalize(venv)
    training = normalize is not None and normalize.training
    if normalize is not None:
        normalize.training = False
    try:
        yield
    finally:
        if normalize is not None:
            normalize.training = training


class _Pushes:
    """Adds a constant to the actions of every second environment at random times."""

    def __init__(self, space: spaces.Space[Any], n: int, size: float, rng: np.random.Generator) -> None:
        if not isinstance(space, spaces.Box) or not space.is_bounded():
            raise ValueError(f"pushes need actions in a bounded Box, got {space}; leave pushes at 0.")
        self.space, self.size, self.rng = space, size, rng
        self.left, self.push = np.zeros(n, np.int64), np.zeros((n, *space.shape), space.dtype)
        self.pushed = np.arange(n) % 2 == 1

    def __call__(self, actions: Array) -> Array:
        n, half = len(actions), (self.space.high - self.space.low) / 2
        new = self.pushed & (self.left == 0) & (self.rng.random(n) < 0.02)
        self.left = np.where(new, self.rng.integers(4, 20, n), np.maximum(self.left - 1, 0))
        self.push[new] = (self.rng.uniform(-self.size, self.size, self.push.shape) * half)[new]
        self.push[self.left == 0] = 0
        pushed: Array = np.clip(actions + self.push, self.space.low, self.space.high)
        return pushed


def _fitting(labels: Any, space: spaces.Space[Any], n: int) -> Array:
    """Convert an expert's actions to the action space; those of a Box are clipped, as in Stable-Baselines3.

    Raises:
        ValueError: The actions do not fit the space, or are not finite.
    """
    labels = np.asarray(labels)
    if labels.shape != (n, *(space.shape or ())):
        raise ValueError(f"The expert's actions must be {(n, *(space.shape or ()))} for {space}, got {labels.shape}.")
    wrong = np.argwhere(~np.isfinite(labels))
    if len(wrong):
        env, *place = wrong[0].tolist()
        raise ValueError(
            f"The expert's actions must be finite, but that of environment {env} at "
            f"{tuple(place)} is {labels[tuple(wrong[0])]}."
        )
    if isinstance(space, spaces.Box):
        labels = np.clip(labels, space.low, space.high)
    fitting: Array = labels.astype(space.dtype)
    return fitting


def _keep(kept: dict[str, Any], name: str, rows: Any, step: int, n_steps: int) -> None:
    """Write rows (N, ...), or a dict of such, into arrays (N, T, ...), which the first step creates."""
    if isinstance(rows, dict):
        for key, part in rows.items():
            _keep(kept.setdefault(name, {}), key, part, step, n_steps)
        return
    rows = np.asarray(rows)
    if name not in kept:
        kept[name] = np.empty((len(rows), n_steps, *rows.shape[1:]), rows.dtype)
    kept[name][:, step] = rows


def _episodes(kept: dict[str, Any], ends: npt.NDArray[np.bool_]) -> Iterator[Demonstration]:
    """Cut the arrays into episodes at the ends (N, T), without copies."""
    for env, ended in enumerate(ends):
        bounds = np.unique([0, *(np.flatnonzero(ended) + 1), len(ended)])
        for start, stop in pairwise(bounds.tolist()):
            yield Demonstration(**{name: _rows(_rows(v, env), slice(start, stop)) for name, v in kept.items()})


def _rows(arrays: Any, index: Any) -> Any:
    """Return rows of an array, or of each array of a dict; None for None."""
    if isinstance(arrays, dict):
        return {key: _rows(part, index) for key, part in arrays.items()}
    return None if arrays is None else arrays[index]


class Sequences(NamedTuple):
    """N pieces of T steps side by side, from episodes that follow each other in each of N lanes.

    Attributes:
        lanes: (N,), numbers of the lanes that the pieces belong to.
        observation: (N * T, ...) or a dict of such, sequence by sequence.
        action: (N * T, ...).
        privileged: (N * T, P), what the expert saw, or None.
        starts: (N * T,) bool, whether an episode starts.
        real: (N * T,) bool, False for padding behind the end of a lane.
    """

    lanes: npt.NDArray[np.int64]
    observation: Any
    action: Array
    privileged: Array | None
    starts: npt.NDArray[np.bool_]
    real: npt.NDArray[np.bool_]


def sequences(
    demonstrations: Sequence[Demonstration], n_lanes: int, length: int, order: npt.NDArray[np.int64]
) -> Iterator[Sequences]:
    """Yield demonstrations in `n_lanes` lanes, `length` steps at a time, so that states can be carried.

    A lane that has finished an episode begins the next one of `order`, and ends when there is none left.
    """
    lanes: list[list[int]] = [[] for _ in range(min(n_lanes, len(order)))]
    steps = np.zeros(len(lanes), np.int64)
    for index in order.tolist():
        lane = int(steps.argmin())
        lanes[lane].append(index)
        steps[lane] += len(demonstrations[index])
    for begin in range(0, int(steps.max()), length):
        running = np.flatnonzero(steps > begin)
        pieces = [_piece([demonstrations[i] for i in lanes[lane]], begin, length) for lane in running.tolist()]
        observation, action, privileged, starts, real = (_joined(parts) for parts in zip(*pieces, strict=True))
        yield Sequences(running, observation, action, privileged, starts, real)


def _piece(episodes: Sequence[Demonstration], begin: int, length: int) -> tuple[Any, ...]:
    """Return steps `begin` to `begin + length` of joined episodes; the last step is repeated behind their end."""
    found, at = [], 0
    for episode in episodes:
        first, last = max(begin - at, 0), min(begin + length - at, len(episode))
        if first < last:
            found.append((episode, first, last))
        at += len(episode)
    n = sum(last - first for _, first, last in found)
    observation, action, privileged = (
        _padded(_joined([_rows(getattr(e, name), slice(first, last)) for e, first, last in found]), length - n)
        for name in ("observation", "action", "privileged")
    )
    starts = np.concatenate([np.arange(first, last) == 0 for _, first, last in found])
    return observation, action, privileged, _padded(starts, length - n), np.arange(length) < n


def _joined(parts: Sequence[Any]) -> Any:
    if parts[0] is None:
        return None
    if isinstance(parts[0], dict):
        return {key: _joined([part[key] for part in parts]) for key in parts[0]}
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(rows: Any, n: int) -> Any:
    if rows is None or n == 0:
        return rows
    if isinstance(rows, dict):
        return {key: _padded(part, n) for key, part in rows.items()}
    return np.concatenate([rows, np.repeat(rows[-1:], n, axis=0)])


def take_steps(demonstrations: Sequence[Demonstration], steps: npt.NDArray[np.int64]) -> Any:
    """Return observations (B, ...), or a dict of such, at ascending `steps` (B,), counted over all demonstrations."""
    ends = np.cumsum([len(d) for d in demonstrations])
    found, begin = [], 0
    for demonstration, end in zip(demonstrations, ends.tolist(), strict=True):
        here = steps[(steps >= begin) & (steps < end)] - begin
        if len(here):
            found.append(_rows(demonstration.observation, here))
        begin = end
    return _joined(found)
