"""`Step`, what a rollout hands over; `Block`, where many are kept; `StepEncoder`, which makes messages of a block."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

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


class Block:
    """Steps of N environments, side by side in arrays.

    A step is copied rather than referred to: tensors that live on keep the rollout from using their memory again, which
    costs more than the copy does.
    """

    def __init__(self, layout: Layout, capacity: int) -> None:
        """Make room for `capacity` steps, once the first one tells its sizes; observed images are left out."""
        self.n_steps = 0
        self.before: Array
        """(N, U), potentials before the first step, still without resets"""
        self.final: list[tuple[int, int, Any]] = []
        """Step, environment and the observation that an episode ended with"""
        self.images: list[dict[str, Array]] = []
        self._observed = observed_names(layout)
        self._capacity = capacity
        self._arrays: dict[str, Array] = {}

    @property
    def full(self) -> bool:
        """Whether no step fits in any more."""
        return self.n_steps == self._capacity

    def put(self, step: Step) -> None:
        """Copy a step."""
        k, seen = self.n_steps, step.seen
        if k == 0:
            self.before = seen.before.cpu().numpy().copy()
        for name, value in zip(Seen._fields, seen, strict=True):
            if value is not None and name != "before":
                self._keep(name, k, value.cpu().numpy())
        for name in ("sample", "action", "reward", "done", "truncated", "keep"):
            value = getattr(step, name)
            if value is not None:
                self._keep(name, k, value)
        for name, key in self._observed.items():
            self._keep(name, k, step.observation if key is None else step.observation[key])
        self.final += [(k, n, observation) for n, observation in step.final.items()]
        self.images.append(step.images)
        self.n_steps += 1

    def _keep(self, name: str, k: int, value: Array) -> None:
        if name not in self._arrays:
            # What not every step has is False where it has not.
            self._arrays[name] = np.zeros((self._capacity, *value.shape), value.dtype)
        self._arrays[name][k] = value

    def __contains__(self, name: str) -> bool:
        """Whether any step had it."""
        return name in self._arrays

    def __getitem__(self, name: str) -> Array:
        """(K, ...), of the steps so far."""
        return self._arrays[name][: self.n_steps]


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

    def encode(self, block: Block, sequence: int) -> EncodedSteps | None:
        """Messages of K steps, the first with number `sequence`; None where no environment is recorded."""
        fields = _fields(block, self._layout, self._circuit)
        shape = (block.n_steps, self._layout.n_envs)
        keep = block["keep"] if "keep" in block else np.ones(shape, bool)
        starts = block["episode_starts"].reshape(shape) != 0
        before = np.where(starts[0][:, None], 0, block.before)
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
        parts += self._end_messages(block, keep, places, sequence + count)
        count = sum(map(len, parts))
        parts += _image_messages(block.images, keep, places.log_time, sequence + count)
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

    def _end_messages(self, block: Block, keep: Array, places: _Places, sequence: int) -> list[Messages]:
        """A message for each episode that ended with an observation."""
        found: list[Messages] = []
        for k, n, observation in block.final:
            if keep[k, n]:
                parts = observation if isinstance(observation, dict) else {None: observation}
                values = [v for part in self._layout.observed if part.names for v in np.ravel(parts[part.key])]
                numbers = [float(n), float(places.episode[k, n]), *map(float, values)]
                text, time = message_text(self._layout.end_topic, numbers), int(places.log_time[k, n])
                found.append(Messages.single(END_CHANNEL, sequence + len(found), time, text))
        return found


def observed_names(layout: Layout) -> dict[str, str | None]:
    """Names in a `Block` of what is observed, images left out, and their keys in Dict observations."""
    return {f"observation/{part.key}": part.key for part in layout.observed if part.names}


def _fields(block: Block, layout: Layout, circuit: Circuit) -> dict[str, Array]:
    """Every field of the messages but for the counts: (K, N, ...)."""
    shape = (block.n_steps, layout.n_envs)
    sensory, potentials = block["sensory"][:, 0], block["potentials"][:, 0]
    tau = circuit.time_constants(sensory, potentials)
    truncated = block["truncated"] if "truncated" in block else np.zeros(shape, bool)
    observed = (block[name].reshape(*shape, -1) for name in observed_names(layout))
    parts = [np.empty((*shape, 0), np.float32), *observed]
    seconds = np.full(shape, circuit.ltc.elapsed_time, np.float32)
    fields: dict[str, Array] = {
        "observation": np.concatenate(parts, axis=-1),
        "terminated": block["done"] & ~truncated,
        "truncated": block["done"] & truncated,
        "elapsed_time": block["elapsed_time"][:, 0] if "elapsed_time" in block else seconds,
        "sensory": sensory,
    }
    fields |= {name: block[name] for name in ("action", "sample", "reward", "value", "action_mean", "log_prob")}
    for layer in ("motor", "command", "inter"):
        where = getattr(circuit.wiring, layer)
        fields[f"potentials.{layer}"], fields[f"tau.{layer}"] = potentials[..., where], tau[..., where]
    if not layout.discrete:
        fields["action_std"] = block["action_std"]
    return fields


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
