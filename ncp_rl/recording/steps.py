"""`Step`, the values of a rollout's step; `Block`, which keeps many steps; `StepEncoder`, which encodes a block."""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ncp_rl.circuit import Circuit
from ncp_rl.jit import kernel
from ncp_rl.recording.container import END_CHANNEL, EPISODE_CHANNEL, IMAGE_CHANNEL, STEP_CHANNELS
from ncp_rl.recording.encode import Messages, RowEncoder, message_text
from ncp_rl.recording.layout import Layout, Observed
from ncp_rl.recording.trace import Seen

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


class Step(NamedTuple):
    """One step of N environments, as a rollout produces it."""

    observation: Any
    """(N, ...) before normalisation, or a dict of such"""
    seen: Seen
    sample: Array
    """(N, ...) as drawn from the distribution"""
    action: Array
    """(N, ...) as given to the environment"""
    reward: Array
    """(N,) not normalised"""
    terminated: Array
    """(N,) bool"""
    truncated: Array
    """(N,) bool"""
    keep: Array
    """(N,) bool, whether an environment is recorded"""
    final: dict[int, Any]
    """Last observation of each environment whose episode ended, by its number, before normalisation"""
    images: dict[str, Array]
    """Frames (N, H, W, 3) or (N, H, W) uint8 by name; empty unless they are recorded"""


# Bytes of pictures, before they are compressed, after which a block is full.
_PICTURE_BYTES = 2**24


class Block:
    """Steps of N environments side by side, stored as bytes, so that storing a step takes little of the rollout's time.

    A step is copied rather than referred to: tensors that stay alive keep the rollout from reusing their memory, which
    costs more than the copy does.
    """

    def __init__(self, layout: Layout, capacity: int) -> None:
        """Make room for `capacity` steps; observed images are left out."""
        self.before: Array
        """(N, U), potentials before the first step, before resets"""
        self.final: list[tuple[int, int, Any]] = []
        """Step, environment and last observation of each episode that ended"""
        self.images: list[dict[str, Array]] = []
        self._observed, self._capacity = layout.observed_numbers, capacity
        self._steps: list[bytes] = []
        self._picture_bytes = 0
        self._dtype: np.dtype[Any]

    @property
    def n_steps(self) -> int:
        """Number of steps so far."""
        return len(self._steps)

    @property
    def full(self) -> bool:
        """Whether the block has no room for another step."""
        return len(self._steps) == self._capacity or self._picture_bytes >= _PICTURE_BYTES

    def put(self, step: Step) -> None:
        """Copy a step."""
        before, *seen = step.seen
        parts = [tensor.numpy(force=True) for tensor in seen if tensor is not None]
        parts += step.sample, step.action, step.terminated, step.truncated, step.keep
        # Environments may change the dtype from step to step.
        parts.append(np.asarray(step.reward, np.float32))
        for part in self._observed:
            whole = step.observation if part.key is None else step.observation[part.key]
            parts.append(np.asarray(whole, part.dtype))
        if not self._steps:
            self.before = before.numpy(force=True).copy()
            self._dtype = self._fields(step.seen, parts)
        if step.final:
            self.final += [(self.n_steps, n, observation) for n, observation in step.final.items()]
        self.images.append(step.images)
        if step.images:
            self._picture_bytes += sum(frames.nbytes for frames in step.images.values())
        self._steps.append(b"".join([part.tobytes() for part in parts]))

    def _fields(self, seen: Seen, parts: list[Array]) -> np.dtype[Any]:
        names = [name for name, tensor in zip(Seen._fields[1:], seen[1:], strict=True) if tensor is not None]
        names += ["sample", "action", "terminated", "truncated", "keep", "reward", *map(observed_name, self._observed)]
        return np.dtype([(name, part.dtype, part.shape) for name, part in zip(names, parts, strict=True)])

    def steps(self) -> Array:
        """Return the steps so far, (K,) with a field for each part."""
        return np.frombuffer(b"".join(self._steps), self._dtype)


class _Envs(NamedTuple):
    """Counts of each environment, (N,) each."""

    episode: Integers
    step: Integers
    time: Integers


class _BlockSpan(NamedTuple):
    """Steps of one episode."""

    episode: int
    env: int
    step: int
    """Number of the first step"""
    n_steps: int
    k: int
    """Position of the first step in the block"""


class EncodedSteps(NamedTuple):
    """Messages of some steps."""

    messages: Messages
    episodes: list[tuple[int, int, int, int]]
    """(episode, env, first step, steps) of each episode that the steps belong to"""


class StepEncoder:
    """Counts episodes, steps and simulated time over all steps that it encodes.

    Each operation of NumPy on a large array gives the GIL to the rollout's thread and then waits for it, and the
    rollout waits in turn, so a block is encoded by few, large operations.
    """

    def __init__(self, layout: Layout, circuit: Circuit) -> None:
        """Start a recording of `circuit`."""
        self.n_episodes = 0
        self._layout, self._circuit = layout, circuit
        self._rows = RowEncoder(layout, STEP_CHANNELS)
        self._envs = _Envs(*(np.full(layout.n_envs, start, np.int64) for start in (-1, 0, 0)))
        self._columns: Integers | None = None
        # Kernels are compiled here, before the first step, and not while steps wait to be written.
        no_steps = np.empty((0, layout.n_envs), np.float32)
        self._count(no_steps != 0, no_steps != 0, no_steps)
        if circuit.core.has_time_constants:
            circuit.time_constants(np.empty((0, layout.n_sensory), np.float32), np.empty((0, layout.units), np.float32))
        self._rows.encode(np.empty((0, layout.width)), np.empty(0, np.int64), 0)

    def encode(self, block: Block, sequence: int) -> EncodedSteps | None:
        """Encode K steps, the first message with number `sequence`; return None where no environment is recorded."""
        steps = block.steps()
        # The values are copied, since kernels would be compiled again for the strides of a step's fields.
        keep, starts, elapsed = steps["keep"].copy(), steps["episode_starts"][:, 0] != 0, self._elapsed_time(steps)
        times, places, spans = self._count(starts, keep, elapsed)
        if not spans:
            return None
        more = dict(elapsed_time=elapsed, places=places)
        if self._circuit.core.has_time_constants:
            more["tau"] = self._circuit.time_constants(steps["sensory"][:, 0], steps["potentials"][:, 0])
        values = self._values(steps, **more)
        parts = self._episode_messages(spans, starts, block.before, times, sequence)
        rows, row_times = values.reshape(keep.size, -1), times.ravel()
        if not keep.all():
            rows, row_times = rows[keep.ravel()], row_times[keep.ravel()]
        parts.append(self._rows.encode(rows, row_times, sequence + len(parts)))
        parts += self._end_messages(block, keep, places, times, sequence + sum(map(len, parts)))
        parts += _image_messages(block.images, keep, times, sequence + sum(map(len, parts)))
        return EncodedSteps(Messages.join(parts), sorted(span[:4] for span in spans))

    def _elapsed_time(self, steps: Array) -> Array:
        """Return the elapsed times, (K, N) seconds."""
        if "elapsed_time" in (steps.dtype.names or ()):
            return steps["elapsed_time"][:, 0].copy()
        return np.full((len(steps), self._layout.n_envs), self._circuit.core.elapsed_time, np.float32)

    def _values(self, steps: Array, **more: Array) -> npt.NDArray[np.float64]:
        """Return the numbers of the steps, and of `more` fields, by the layout's columns, (K, N, C)."""
        names = list(steps.dtype.names or ())
        shapes = {name: steps.dtype[name].shape for name in names} | {name: more[name].shape[1:] for name in more}
        rows = np.empty(len(steps), [(name, np.float64, shape) for name, shape in shapes.items()])
        # float64 holds float32 and every smaller type exactly.
        rows[names] = steps
        for name, values in more.items():
            rows[name] = values.reshape(len(steps), *shapes[name])
        if self._columns is None:
            self._columns = _columns(shapes, self._layout, self._circuit)
        return np.take(rows.view(np.float64).reshape(len(steps), -1), self._columns, axis=1)

    def _count(self, starts: Array, keep: Array, elapsed: Array) -> tuple[Integers, Array, list[_BlockSpan]]:
        """Count the steps; see `_place` for the arguments and the results `times`, `places` and `spans`."""
        times, places = np.empty(keep.shape, np.int64), np.empty((*keep.shape, 3))
        spans = np.empty((keep.size, len(_BlockSpan._fields)), np.int64)
        counts = self.n_episodes, *self._envs
        self.n_episodes, n_spans = _place(starts, keep, elapsed, *counts, times, places, spans)
        return times, places, [_BlockSpan(*span) for span in spans[:n_spans].tolist()]

    def _episode_messages(
        self, spans: list[_BlockSpan], starts: Array, before: Array, times: Integers, sequence: int
    ) -> list[Messages]:
        """Return a message for each episode that begins; it starts off zero only if it began before the recording."""
        found: list[Messages] = []
        for span in (span for span in spans if span.step == 0):
            goes_on = span.k == 0 and not starts[0, span.env]
            start = before[span.env] if goes_on else np.zeros(self._layout.units)
            numbers = [float(span.env), float(span.episode), *map(float, start)]
            text, time = message_text(self._layout.episode_topic, numbers), int(times[span.k, span.env])
            found.append(Messages.single(EPISODE_CHANNEL, sequence + len(found), time, text))
        return found

    def _end_messages(self, block: Block, keep: Array, places: Array, times: Integers, sequence: int) -> list[Messages]:
        """Return a message for each episode that ended with an observation."""
        found: list[Messages] = []
        for k, n, observation in block.final:
            if keep[k, n]:
                parts = observation if isinstance(observation, dict) else {None: observation}
                values = [v for part in self._layout.observed_numbers for v in np.ravel(parts[part.key])]
                numbers = [float(n), float(places[k, n, 1]), *map(float, values)]
                text, time = message_text(self._layout.end_topic, numbers), int(times[k, n])
                found.append(Messages.single(END_CHANNEL, sequence + len(found), time, text))
        return found


def observed_name(part: Observed) -> str:
    """Return the name of a part in a `Block`."""
    return f"observation/{part.key}"


def _columns(shapes: dict[str, tuple[int, ...]], layout: Layout, circuit: Circuit) -> Integers:
    """Return the position of each environment's numbers, (N, C), in a step whose fields have these shapes."""
    stops = np.cumsum([math.prod(shape) for shape in shapes.values()]).tolist()
    fields = {
        name: np.arange(stop - math.prod(shape), stop).reshape(layout.n_envs, -1)
        for (name, shape), stop in zip(shapes.items(), stops, strict=True)
    }
    observed = [fields[observed_name(part)] for part in layout.observed_numbers]
    places = fields["places"]
    sources = {
        "env": places[:, :1],
        "episode": places[:, 1:2],
        "step": places[:, 2:],
        "observation": np.concatenate([places[:, :0], *observed], axis=1),
    }
    for name in layout.columns.keys() - sources.keys():
        whole, _, layer = name.partition(".")
        sources[name] = fields[whole][:, getattr(circuit.wiring, layer) if layer else slice(None)]
    return np.concatenate([sources[name] for name in layout.columns], axis=1)


@kernel
def _place(
    starts: Any,
    keep: Any,
    elapsed: Any,
    n_episodes: int,
    episode: Any,
    step: Any,
    time: Any,
    times: Any,
    places: Any,
    spans: Any,
) -> tuple[int, int]:
    """Count the steps of each environment.

    Args:
        starts: (K, N) bool, whether an episode starts.
        keep: (K, N) bool, whether a step is recorded.
        elapsed: (K, N) seconds.
        n_episodes: Number of the next episode.
        episode: (N,), the environments' episodes, -1 before the first; changed.
        step: (N,), number of the next step; changed.
        time: (N,), nanoseconds of simulated time since the recording began, episodes of an environment one after the
            other; changed.
        times: (K, N), filled: `time` after each step.
        places: (K, N, 3), filled: environment, episode and step.
        spans: (K N, 5), filled with a `_BlockSpan` for each episode that is recorded.

    Returns:
        The number of the next episode, and how many spans there are.
    """
    n_spans = 0
    span = np.full(len(episode), -1)
    for k in range(len(keep)):
        for n in range(len(episode)):
            if keep[k, n] and (starts[k, n] or episode[n] < 0):
                episode[n], step[n], span[n] = n_episodes, 0, -1
                n_episodes += 1
            if keep[k, n]:
                if span[n] < 0:
                    span[n] = n_spans
                    spans[n_spans] = (episode[n], n, step[n], 0, k)
                    n_spans += 1
                spans[span[n], 3] += 1
                if math.isfinite(elapsed[k, n]):
                    time[n] += np.int64(np.rint(elapsed[k, n] * 1e9))
            times[k, n] = time[n]
            places[k, n] = (n, episode[n], step[n])
            step[n] += 1
    return n_episodes, n_spans


def _image_messages(images: list[dict[str, Array]], keep: Array, times: Array, sequence: int) -> list[Messages]:
    found: list[Messages] = []
    for k, frames in enumerate(images):
        for name, frame in frames.items():
            for n in np.flatnonzero(keep[k]):
                text = image_text(f"env_{n}/{name}", frame[n], int(times[k, n]))
                found.append(Messages.single(IMAGE_CHANNEL, sequence + len(found), int(times[k, n]), text))
    return found


def image_text(frame_id: str, frame: Array, nanoseconds: int) -> bytes:
    """Return a foxglove.CompressedImage as JSON: `frame` (H, W, 3) or (H, W) uint8 as PNG, without loss."""
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
