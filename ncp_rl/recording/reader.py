"""`Recording`: read a recording by episode, without loading all of it."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mcap.opcode import Opcode
from PIL import Image

from ncp_rl.circuit import Circuit
from ncp_rl.recording.container import END_CHANNEL, EPISODE_CHANNEL, IMAGE_CHANNEL, STEP_CHANNELS, channel_topics
from ncp_rl.recording.encode import MESSAGE_HEADER, Messages
from ncp_rl.recording.episode import Episode
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.layout import Layout, load_json
from ncp_rl.recording.manifest import FORMAT
from ncp_rl.recording.scan import Record, parse_attachment, parse_metadata, read_messages, read_record, scan

#: What every recording has on board.
ATTACHMENTS = ("manifest.json", "circuit.json", "circuit.safetensors")

# Messages kept between episodes that ran side by side, in bytes.
_CACHE_BYTES = 2**26

# Pixels of an image, beyond which it is refused.
_MAX_PIXELS = 2**26


class RecordedImage(NamedTuple):
    """A picture of an episode."""

    name: str
    """"render", or "observation/..." for what was observed"""
    nanoseconds: int
    """Simulated time, as in the file"""
    pixels: npt.NDArray[np.uint8]
    """(H, W, 3) or (H, W)"""


@dataclass
class _Span:
    """Where an episode lies."""

    env_index: int
    n_steps: int = 0
    chunks: list[Record] = field(default_factory=list)


class Recording:
    """A recording, opened for reading; `recording[i]` is its i-th `Episode`, read when asked for.

    What is read is checked for shape and checksums, not for truth: see `verify` and `replay`.

    Attributes:
        path: The file.
        manifest: Where it comes from, as JSON gave it.
        layout: Sizes and names.
        circuit: The circuit that acted.
        ending: Why the recording ended, "finished" as a rule; None where the file has no seal, since its writer was
            killed or the file cut.
    """

    def __init__(self, path: Path | str) -> None:
        """Read the beginning, and where the episodes lie; `Recording.open` is the same.

        Raises:
            RecordingError: The file cannot be read, or is no recording.
        """
        self.path = Path(path)
        self.ending: str | None = None
        self._spans: dict[int, _Span] = {}
        self._cache: OrderedDict[int, Messages] = OrderedDict()
        attachments: dict[str, bytes] = {}
        with _opened(self.path) as (file, size):
            chunk: Record | None = None
            for record in scan(file, size):
                if record.opcode == Opcode.ATTACHMENT and len(attachments) < len(ATTACHMENTS):
                    attachment = parse_attachment(read_record(file, record))
                    attachments[attachment.name] = attachment.data
                elif record.opcode == Opcode.CHUNK:
                    chunk = record
                elif record.opcode == Opcode.METADATA:
                    self._read_metadata(parse_metadata(read_record(file, record)), chunk)
        if set(attachments) != set(ATTACHMENTS):
            raise RecordingError(f"{path} is no recording: it must hold {ATTACHMENTS}, got {tuple(attachments)}.")
        self.manifest = load_json(attachments["manifest.json"], "the manifest")
        if self.manifest.get("format") != FORMAT:
            raise RecordingError(f"{path} must be of format {FORMAT!r}, got {self.manifest.get('format')!r}.")
        self.layout = Layout.from_dict(_mapping(self.manifest.get("layout")))
        try:
            self.circuit = Circuit.load(attachments["circuit.safetensors"], attachments["circuit.json"])
        except ValueError as error:
            raise RecordingError(f"{path}: {error}.") from error
        self._check_circuit()

    @classmethod
    def open(cls, path: Path | str) -> Recording:
        """Read the beginning of a recording, and where its episodes lie.

        Raises:
            RecordingError: The file cannot be read, or is no recording.
        """
        return cls(path)

    def __len__(self) -> int:
        """Number of episodes, those that the recording's end cut off included."""
        return len(self._spans)

    def __iter__(self) -> Iterator[Episode]:
        """Episodes, one after the other."""
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of each episode."""
        return tuple(self._spans[i].n_steps for i in range(len(self)))

    @property
    def max_episode_steps(self) -> int | None:
        """Steps after which the environment cut episodes, as the manifest has it; None where it names no limit."""
        limit = _mapping(self.manifest.get("environment")).get("max_episode_steps")
        return limit if type(limit) is int else None

    def __getitem__(self, index: int) -> Episode:
        """Episode number `index`.

        Raises:
            IndexError: There is none.
            RecordingError: Its part of the file is damaged.
        """
        span = self._span(index)
        topics = channel_topics(self.layout)
        rows: dict[int, list[list[float]]] = {channel: [] for channel in topics}
        prefix = f'{{"env":{span.env_index},"episode":{index},'.encode()
        for messages in self._messages(span):
            for channel, text in _texts(messages):
                if channel in topics and text[: len(prefix)] == prefix:
                    rows[channel].append(topics[channel].parse(text))
        counts = {channel: len(found) for channel, found in rows.items()}
        expected = {channel: span.n_steps for channel in STEP_CHANNELS} | {EPISODE_CHANNEL: 1}
        expected[END_CHANNEL] = min(counts[END_CHANNEL], 1)  # None where the recording stopped before.
        if counts != expected:
            raise RecordingError(
                f"Episode {index} must have {expected} messages by channel, got {counts}; see verify for what happened."
            )
        return self._episode(index, span.env_index, {c: np.array(found) for c, found in rows.items()})

    def images(self, index: int) -> Iterator[RecordedImage]:
        """Pictures of episode number `index`, in order; none unless they were recorded.

        Raises:
            IndexError: There is no such episode.
            RecordingError: Its part of the file is damaged.
        """
        span = self._span(index)
        times = set(self._log_times(index, span))
        for messages in self._messages(span):
            for (channel, text), time in zip(_texts(messages), messages.log_times.tolist(), strict=True):
                if channel == IMAGE_CHANNEL and time in times:
                    image = _image(text, span.env_index, time)
                    if image is not None:
                        yield image

    def _log_times(self, index: int, span: _Span) -> Iterator[int]:
        prefix = f'{{"env":{span.env_index},"episode":{index},'.encode()
        for messages in self._messages(span):
            for (_, text), time in zip(_texts(messages), messages.log_times.tolist(), strict=True):
                if text[: len(prefix)] == prefix:
                    yield time

    def _span(self, index: int) -> _Span:
        if not 0 <= index < len(self):
            raise IndexError(f"The recording has {len(self)} episodes, asked for number {index}.")
        return self._spans[index]

    def _messages(self, span: _Span) -> Iterator[Messages]:
        with _opened(self.path) as (file, _):
            for record in span.chunks:
                if record.offset not in self._cache:
                    self._cache[record.offset] = read_messages(file, record)
                    while len(self._cache) > 1 and sum(len(m.data) for m in self._cache.values()) > _CACHE_BYTES:
                        self._cache.popitem(last=False)
                yield self._cache[record.offset]

    def _episode(self, index: int, env_index: int, rows: Mapping[int, npt.NDArray[np.float64]]) -> Episode:
        fields: dict[str, npt.NDArray[np.float64]] = {}
        topics = channel_topics(self.layout)
        for channel in STEP_CHANNELS:
            fields |= {name: rows[channel][:, at] for name, at in topics[channel].slices.items()}
        if (fields["step"][:, 0] != np.arange(len(fields["step"]))).any():
            raise RecordingError(f"The steps of episode {index} are not 0, 1, 2, ...; see verify for what happened.")
        layers = [name for name in ("motor", "command", "inter") if f"tau.{name}" in fields]
        potentials, tau = (
            np.concatenate([fields[f"{kind}.{layer}"] for layer in layers], axis=1) for kind in ("potentials", "tau")
        )
        start = rows[EPISODE_CHANNEL][0, topics[EPISODE_CHANNEL].slices["start"]]
        ends = rows[END_CHANNEL]
        final = ends[0, topics[END_CHANNEL].slices["observation"]] if len(ends) else ends
        std = np.full_like(fields["action_mean"], np.nan) if self.layout.discrete else fields["action_std"]
        dtype = np.result_type(np.float32, *(part.dtype for part in self.layout.observed_numbers))
        wanted = dtype if self.layout.observation_kind == "float64" else np.float32
        single = {name: fields[name][:, 0] for name in ("reward", "value", "log_prob", "elapsed_time")}
        several = dict(
            **{name: fields[name] for name in ("action", "sensory", "action_mean", "sample")},
            **single,
            start=start,
            potentials=potentials,
            tau=tau,
            action_std=std,
        )
        return Episode(
            index=index,
            env_index=env_index,
            observation=fields["observation"].astype(wanted),
            final_observation=final.astype(wanted) if len(final) else None,
            observation_names=self.layout.observation_names,
            terminated=bool(fields["terminated"][-1, 0]),
            truncated=bool(fields["truncated"][-1, 0]),
            **{name: values.astype(np.float32) for name, values in several.items()},
        )

    def _read_metadata(self, metadata: Any, chunk: Record | None) -> None:
        entries = metadata.metadata
        if metadata.name == "seal":
            self.ending = entries.get("ending", "")
        if metadata.name != "chunk" or chunk is None:
            return
        for episode, env, first, count in _spans(entries.get("episodes", "")):
            span = self._spans.setdefault(episode, _Span(env))
            if span.env_index != env or span.n_steps != first or episode >= len(self._spans):
                raise RecordingError(f"{self.path} lists the steps of episode {episode} out of order; see verify.")
            span.n_steps += count
            span.chunks.append(chunk)

    def _check_circuit(self) -> None:
        wiring, layout = self.circuit.wiring, self.layout
        found = (wiring.n_sensory, wiring.n_motor, wiring.n_command, wiring.units, len(self.circuit.bias))
        expected = (layout.n_sensory, layout.n_motor, layout.n_command, layout.units, layout.n_outputs)
        if found != expected:
            raise RecordingError(
                f"Manifest and circuit of {self.path} do not fit: sensory, motor, command, all neurons and outputs are "
                f"{expected} and {found}."
            )


def observation_parts(layout: Layout, observations: npt.NDArray[Any]) -> Any:
    """(T, D) as the environment gave them, (T, ...) or a dict of such; observed images are left out."""
    found: dict[str | None, npt.NDArray[Any]] = {}
    start = 0
    for part in layout.observed:
        if part.names:
            stop = start + len(part.names)
            found[part.key] = observations[:, start:stop].astype(part.dtype).reshape(len(observations), *part.shape)
            start = stop
    return found.get(None, found)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    try:
        with path.open("rb") as file:
            yield file, path.stat().st_size
    except OSError as error:
        raise RecordingError(f"The recording {path} cannot be read: {error}.") from error


def _texts(messages: Messages) -> Iterator[tuple[int, memoryview]]:
    """Channel and JSON of each message."""
    offsets = messages.offsets.tolist()
    for channel, start, stop in zip(messages.channels.tolist(), offsets, offsets[1:], strict=False):
        yield channel, messages.data[start + MESSAGE_HEADER.size : stop]


def _spans(text: str) -> list[tuple[int, int, int, int]]:
    try:
        rows = json.loads(text)
        spans = [(int(a), int(b), int(c), int(d)) for a, b, c, d in rows]
    except (RecursionError, TypeError, ValueError) as error:
        raise RecordingError(f"A list of episodes is damaged: {error!r}.") from error
    if any(min(span) < 0 or span[3] == 0 for span in spans):
        raise RecordingError(f"A list of episodes holds negative numbers: {spans}.")
    return spans


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RecordingError(f"The manifest must hold a layout, got {value!r}.")
    return value


def _image(text: memoryview, env_index: int, nanoseconds: int) -> RecordedImage | None:
    """The picture of a message, or None where it is of another environment."""
    message = load_json(bytes(text), "an image")
    try:
        found = re.fullmatch(r"env_(\d+)/(.+)", message["frame_id"])
        if found is None or int(found[1]) != env_index:
            return None
        image = Image.open(io.BytesIO(base64.b64decode(message["data"], validate=True)), formats=("PNG",))
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        return RecordedImage(found[2], nanoseconds, np.asarray(image))
    except (
        KeyError,
        TypeError,
        ValueError,
        OSError,
        SyntaxError,
        binascii.Error,
        Image.DecompressionBombError,
    ) as error:
        raise RecordingError(f"An image is damaged: {error!r}.") from error
