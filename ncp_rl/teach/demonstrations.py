"""Demonstrations: what was observed and what an expert did, from recordings, Minari datasets and experts at work."""

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
#: What an expert sees of environments beyond the observation; None where it sees the observation.
Privilege = Callable[[VecEnv], Array]


class Expert(Protocol):
    """Whoever acts by the protocol of Stable-Baselines3: its models, its policies, or a controller of one's own."""

    def predict(
        self,
        observation: Any,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """Actions of N environments, and the state to hand over with the next observation."""
        ...


@dataclass(frozen=True)
class Demonstration:
    """T steps of one episode, or of its beginning.

    Attributes:
        observation: (T, ...) as the environment gave it, or a dict of such.
        action: (T, ...) as the environment takes it: what the expert did, or would have done.
        privileged: (T, P) what the expert saw, where that was not the observation.
    """

    observation: Observation
    action: Array
    privileged: Array | None = None

    def __len__(self) -> int:
        """Number of steps T."""
        return len(self.action)


def from_recordings(paths: Sequence[Path | str]) -> list[Demonstration]:
    """The episodes of recordings, without the steps in which a bad reading was held: neurons stood still in those.

    Raises:
        RecordingError: A recording is damaged, or images were observed and none recorded.
    """
    found = []
    for path in paths:
        recording = Recording.open(Path(path))
        space = read_space(recording.manifest.get("action_space"))
        for episode in recording:
            observation = recording.observations(episode)
            if observation is None:
                raise RecordingError(f"Images were observed in {path} and none recorded; record with images=True.")
            action = episode.action.reshape(len(episode), *(space.shape or ())).astype(space.dtype)
            found.append(Demonstration(_rows(observation, ~episode.held), action[~episode.held]))
    return found


def from_minari(dataset: Any) -> list[Demonstration]:
    """The episodes of a Minari dataset, given as such or by its name, which Minari must have on this machine.

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
    """Run environments, by the expert or by a student whom it watches, and keep what the expert does or would do.

    Args:
        expert: The expert. It sees observations as the environment gives them, before VecNormalize.
        venv: N environments, which are reset.
        n_steps: Steps of each environment.
        seed: Environment i starts from seed + i; who drives and who is pushed follow it too.
        privilege: What the expert sees instead of the observation, such as the true state.
        student: Who drives where the expert does not; it sees observations as `venv` gives them.
        expert_share: Chance of a step that the expert drives it, where there is a student.
        pushes: Every second environment is pushed now and then: for 4 to 20 steps, by up to so many half ranges of the
            action, a push is added to it. The expert shows how to come back.
        progress_bar: Show progress.

    Returns:
        An episode each; the last of each environment may have been cut off.

    Raises:
        ValueError: The expert's actions do not fit the action space, or pushes were asked for without a bounded Box.
    """
    n, space, rng = venv.num_envs, venv.action_space, np.random.default_rng(seed)
    push = _Pushes(space, n, pushes, rng) if pushes else None
    ends = np.zeros((n, n_steps), np.bool_)
    kept: dict[str, Any] = {}
    with still(venv), tqdm(range(n_steps), desc="drive", unit="step", disable=not progress_bar) as steps:
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
    """What an expert sees: its privilege, else the observation before normalisation."""
    if privilege is not None:
        return privilege(venv)
    normalize = unwrap_vec_normalize(venv)
    return observation if normalize is None else normalize.get_original_obs()


@contextmanager
def still(venv: VecEnv) -> Iterator[None]:
    """Let statistics of a VecNormalize stand still inside the context."""
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
    """Now and then a constant on top of the actions of every second environment."""

    def __init__(self, space: spaces.Space[Any], n: int, size: float, rng: np.random.Generator) -> None:
        if not isinstance(space, spaces.Box) or not space.is_bounded():
            raise ValueError(f"Only actions of a bounded Box can be pushed, not {space}; leave pushes at 0.")
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
    """An expert's actions as the space has them; a Box's are clipped, as Stable-Baselines3 does.

    Raises:
        ValueError: They do not fit.
    """
    labels = np.asarray(labels)
    if labels.shape != (n, *(space.shape or ())):
        raise ValueError(f"The expert's actions must be {(n, *(space.shape or ()))} for {space}, got {labels.shape}.")
    wrong = np.argwhere(~np.isfinite(labels))
    if len(wrong):
        env, *place = wrong[0].tolist()
        raise ValueError(f"The expert's action {tuple(place)} of environment {env} is {labels[tuple(wrong[0])]}.")
    if isinstance(space, spaces.Box):
        labels = np.clip(labels, space.low, space.high)
    fitting: Array = labels.astype(space.dtype)
    return fitting


def _keep(kept: dict[str, Any], name: str, rows: Any, step: int, n_steps: int) -> None:
    """Write (N, ...) rows, or a dict of such, into (N, T, ...) arrays that the first step makes."""
    if isinstance(rows, dict):
        for key, part in rows.items():
            _keep(kept.setdefault(name, {}), key, part, step, n_steps)
        return
    rows = np.asarray(rows)
    if name not in kept:
        kept[name] = np.empty((len(rows), n_steps, *rows.shape[1:]), rows.dtype)
    kept[name][:, step] = rows


def _episodes(kept: dict[str, Any], ends: npt.NDArray[np.bool_]) -> Iterator[Demonstration]:
    """(N, T) ends cut what was kept into episodes; no copies."""
    for env, ended in enumerate(ends):
        bounds = np.unique([0, *(np.flatnonzero(ended) + 1), len(ended)])
        for start, stop in pairwise(bounds.tolist()):
            yield Demonstration(**{name: _rows(_rows(v, env), slice(start, stop)) for name, v in kept.items()})


def _rows(arrays: Any, index: Any) -> Any:
    """Rows of an array, or of each array of a dict; None of None."""
    if isinstance(arrays, dict):
        return {key: _rows(part, index) for key, part in arrays.items()}
    return None if arrays is None else arrays[index]


class Sequences(NamedTuple):
    """N pieces of T steps side by side, of episodes that lie behind each other in each of N lanes.

    Attributes:
        lanes: (N,), which lanes they belong to.
        observation: (N * T, ...) or a dict of such, sequence by sequence.
        action: (N * T, ...).
        privileged: (N * T, P), or None.
        starts: (N * T,) bool, where an episode starts.
        real: (N * T,) bool; steps behind the end of a lane are not.
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
    """Walk through demonstrations in `n_lanes` lanes, `length` steps at a time, so that states can be carried.

    Whoever is through with an episode begins with the next one of `order`; once there is none left, a lane ends.
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
    """Steps `begin` to `begin + length` of episodes behind each other; the last step is repeated behind their end."""
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
    """(B, ...) observations, or a dict of such, at ascending `steps` (B,), counted through all demonstrations."""
    ends = np.cumsum([len(d) for d in demonstrations])
    found, begin = [], 0
    for demonstration, end in zip(demonstrations, ends.tolist(), strict=True):
        here = steps[(steps >= begin) & (steps < end)] - begin
        if len(here):
            found.append(_rows(demonstration.observation, here))
        begin = end
    return _joined(found)
