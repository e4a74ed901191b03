"""`Step`, what a rollout hands over, and `StepEncoder`, which makes messages of many of them."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ncp_rl.circuit import Circuit
from ncp_rl.recording.container import END_CHANNEL, EPISODE_CHANNEL, IMAGE_CHANNEL, STEP_CHANNELS
from ncp_rl.recording.encode import Messages, RowEncoder, message_text
from ncp_rl.recording.layout import Layout
from ncp_rl.recording.trace import Seen

Array = npt.NDArray[Any]


class Step(NamedTuple):
    """One step of N environments, as a rollout has it at hand."""

    observation: Any
    """(N, ...) before normalisation, or a dict of such"""
    seen: Seen
    sample: Array
    """(N, ...) as drawn from the distribution"""
    action: Array
    """(N, ...) as handed to the environment"""
    reward: Array
    """(N,) not normalised"""
    done: Array
    """(N,) bool"""
    truncated: Array | None
    """(N,) bool, or None where none is"""
    keep: Array | None
    """(N,) bool, which environments are recorded; None for all"""
    final: dict[int, Any]
    """By environment, where one ended an episode: the observation that it ended with, before normalisation"""
    images: dict[str, Array]
    """Frames (N, H, W, 3) or (N, H, W) uint8 by name; none unless asked for"""


class EncodedSteps(NamedTuple):
    """Messages of some steps."""

    messages: Messages
    episodes: list[tuple[int, int, int, int]]
    """(episode, env, first step, steps) of those that the steps belong to"""


@dataclass(frozen=True)
class _Places:
    """Where each step stands: (K, N) arrays."""

    episode: Array
    step: Array
    log_time: Array
    """Nanoseconds of simulated time since the recording began, episodes of an environment one after the other."""


class StepEncoder:
    """Counts episodes, steps and simulated time over all steps that it encodes."""

    def __init__(self, layout: Layout, circuit: Circuit) -> None:
        """Start a recording of `circuit`."""
        self.n_episodes = 0
        self._layout, self._circuit = layout, circuit
        self._rows = RowEncoder(layout, STEP_CHANNELS)
        # Of each environment: its episode, steps in it and time so far.
        self._episode, self._step, self._time = (np.zeros(layout.n_envs, np.int64) for _ in range(3))
        self._begun = False

    def encode(self, steps: list[Step], sequence: int) -> EncodedSteps | None:
        """Messages of K steps, the first with number `sequence`; None where no environment is recorded."""
        fields = _fields(steps, self._layout, self._circuit)
        keep = np.stack([np.ones(self._layout.n_envs, bool) if s.keep is None else s.keep for s in steps])
        starts = _host_steps([s.seen.episode_starts for s in steps]) != 0
        before = np.where(starts[0][:, None], 0, _host([steps[0].seen.before])[0])
        if not self._begun:
            starts[0] = True
            self._begun = True
        places = self._count(starts & keep, keep, fields["elapsed_time"])
        parts = self._episode_messages(starts & keep, before, places, sequence)
        if keep.any():
            values = self._values(fields, places)[keep.ravel()]
            times = places.log_time.ravel()[keep.ravel()]
            parts.append(self._rows.encode(values, times, sequence + len(parts)))
        if not parts:
            return None
        count = sum(map(len, parts))
        parts += self._end_messages(steps, keep, places, sequence + count)
        count = sum(map(len, parts))
        parts += _image_messages([s.images for s in steps], keep, places.log_time, sequence + count)
        return EncodedSteps(Messages.join(parts), _episode_spans(places, keep))

    def _count(self, starts: Array, keep: Array, elapsed: Array) -> _Places:
        """Go on counting; starts (K, N), keep (K, N) bool, elapsed (K, N) seconds."""
        n_steps = len(starts)
        k = np.arange(n_steps)[:, None]
        numbers = self.n_episodes + np.cumsum(starts.ravel()).reshape(starts.shape) - 1
        last = np.maximum.accumulate(np.where(starts, k, -1), axis=0)
        begun = np.take_along_axis(numbers, np.maximum(last, 0), axis=0)
        episode = np.where(last >= 0, begun, self._episode)
        step = np.where(last >= 0, k - last, self._step + k)
        nanoseconds = np.rint(np.nan_to_num(elapsed.astype(np.float64)) * 1e9).astype(np.int64)
        log_time = self._time + np.cumsum(nanoseconds * keep, axis=0)
        self.n_episodes += int(starts.sum())
        self._episode, self._step, self._time = episode[-1], step[-1] + 1, log_time[-1]
        return _Places(episode, step, log_time)

    def _values(self, fields: dict[str, Array], places: _Places) -> npt.NDArray[np.float64]:
        n_steps, n = places.step.shape
        envs = np.broadcast_to(np.arange(n), (n_steps, n))
        sources = fields | {"env": envs, "episode": places.episode, "step": places.step}
        columns = self._layout.columns
        values = np.empty((n_steps * n, max(at.stop for at in columns.values())))
        for name, at in columns.items():
            values[:, at] = sources[name].reshape(n_steps * n, -1)
        return values

    def _episode_messages(self, starts: Array, before: Array, places: _Places, sequence: int) -> list[Messages]:
        """A message for each episode that begins; only the first step of all can begin with other than zero."""
        found: list[Messages] = []
        for k, n in np.argwhere(starts):
            start = before[n] if k == 0 else np.zeros(self._layout.units)
            numbers = [float(n), float(places.episode[k, n]), *map(float, start)]
            text = message_text(self._layout.episode_topic, numbers)
            time = int(places.log_time[k, n])
            found.append(Messages.single(EPISODE_CHANNEL, sequence + len(found), time, text))
        return found

    def _end_messages(self, steps: list[Step], keep: Array, places: _Places, sequence: int) -> list[Messages]:
        """A message for each episode that ended with an observation."""
        found: list[Messages] = []
        for k, step in enumerate(steps):
            for n, observation in step.final.items():
                if keep[k, n]:
                    batch = [_add_axis(observation)]
                    values = observations_of(batch, replace(self._layout, n_envs=1))[0, 0]
                    numbers = [float(n), float(places.episode[k, n]), *map(float, values)]
                    text, time = message_text(self._layout.end_topic, numbers), int(places.log_time[k, n])
                    found.append(Messages.single(END_CHANNEL, sequence + len(found), time, text))
        return found


def _add_axis(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: np.asarray(part)[None] for key, part in observation.items()}
    return np.asarray(observation)[None]


def _fields(steps: list[Step], layout: Layout, circuit: Circuit) -> dict[str, Array]:
    """Every field of the messages but for the counts: (K, N, ...)."""
    seen = [s.seen for s in steps]
    sensory, potentials = _host_steps([s.sensory for s in seen]), _host_steps([s.potentials for s in seen])
    tau = circuit.time_constants(sensory, potentials)
    done = np.stack([s.done for s in steps])
    truncated = np.stack([np.zeros(layout.n_envs, bool) if s.truncated is None else s.truncated for s in steps])
    fields: dict[str, Array] = {
        "observation": observations_of([s.observation for s in steps], layout),
        "action": np.stack([s.action for s in steps]),
        "sample": np.stack([s.sample for s in steps]),
        "reward": np.stack([s.reward for s in steps]),
        "terminated": done & ~truncated,
        "truncated": done & truncated,
        "elapsed_time": _seconds([s.elapsed_time for s in seen], layout, circuit),
        "sensory": sensory,
        "value": _host([s.value for s in seen]),
        "action_mean": _host([s.action_mean for s in seen]),
        "log_prob": _host([s.log_prob for s in seen]),
    }
    for name, where in (("motor", circuit.wiring.motor), ("command", circuit.wiring.command)):
        fields[f"potentials.{name}"], fields[f"tau.{name}"] = potentials[..., where], tau[..., where]
    inter = circuit.wiring.inter
    fields["potentials.inter"], fields["tau.inter"] = potentials[..., inter], tau[..., inter]
    if not layout.discrete:
        fields["action_std"] = _host([s.action_std for s in seen if s.action_std is not None])
    return fields


def observations_of(observations: list[Any], layout: Layout) -> Array:
    """(K, N, D), the parts side by side, images left out."""
    n = layout.n_envs
    parts: list[Array] = [np.empty((len(observations), n, 0), np.float32)]
    for part in layout.observed:
        if part.names:
            arrays = [o if part.key is None else o[part.key] for o in observations]
            parts.append(np.stack(arrays).reshape(len(arrays), n, -1))
    return np.concatenate(parts, axis=-1)


def _seconds(elapsed: list[Tensor | None], layout: Layout, circuit: Circuit) -> Array:
    """Elapsed times (K, N), the policy's constant where none were given."""
    given = [seconds for seconds in elapsed if seconds is not None]
    if given:
        return _host_steps(given)
    return np.full((len(elapsed), layout.n_envs), circuit.ltc.elapsed_time, np.float32)


def _host(tensors: list[Tensor]) -> Array:
    """K tensors of the same shape (N, ...) as one array (K, N, ...)."""
    return np.asarray(torch.stack(tensors).cpu())


def _host_steps(tensors: list[Tensor]) -> Array:
    """K tensors of the same shape (1, N, ...) as one array (K, N, ...)."""
    return np.asarray(torch.cat(tensors).cpu())


def _episode_spans(places: _Places, keep: Array) -> list[tuple[int, int, int, int]]:
    envs = np.broadcast_to(np.arange(keep.shape[1]), keep.shape)[keep]
    episodes, steps = places.episode[keep], places.step[keep]
    found = []
    for episode in np.unique(episodes).tolist():
        at = episodes == episode
        found.append((episode, int(envs[at][0]), int(steps[at].min()), int(at.sum())))
    return found


def _image_messages(images: list[dict[str, Array]], keep: Array, times: Array, sequence: int) -> list[Messages]:
    found: list[Messages] = []
    for k, frames in enumerate(images):
        for name, frame in frames.items():
            for n in np.flatnonzero(keep[k]):
                text = image_text(f"env_{n}/{name}", frame[n], int(times[k, n]))
                found.append(Messages.single(IMAGE_CHANNEL, sequence + len(found), int(times[k, n]), text))
    return found


def image_text(frame_id: str, frame: Array, nanoseconds: int) -> bytes:
    """A foxglove.CompressedImage as JSON: `frame` (H, W, 3) or (H, W) uint8 as PNG, which loses nothing."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "png", compress_level=1)
    seconds, rest = divmod(nanoseconds, 10**9)
    message = {
        "timestamp": {"sec": seconds, "nsec": rest},
        "frame_id": frame_id,
        "format": "png",
        "data": base64.b64encode(stream.getvalue()).decode(),
    }
    return json.dumps(message, separators=(",", ":")).encode()
