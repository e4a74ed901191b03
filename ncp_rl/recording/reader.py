"""`Recording`: reads a recording by episode, without loading all of it."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import warnings
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, pairwise
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
from ncp_rl.recording.manifest import read_manifest
from ncp_rl.recording.pictures import from_picture
from ncp_rl.recording.records import (
    MAX_MEMORY,
    Budget,
    Record,
    parse_attachment,
    parse_metadata,
    read_messages,
    read_record,
    walk_records,
)

#: Attachments of every recording.
ATTACHMENTS = ("manifest.json", "circuit.json", "circuit.safetensors")

# Share of the allowed memory for messages kept between episodes that ran side by side.
_CACHED = 1 / 8

# Bytes of memory for a number of a message while an episode is read, and for a pixel of a picture.
_NUMBER_BYTES = 40
_PIXEL_BYTES = 8

# Bytes of memory for a row of the list of episodes while it is sorted, and for a chunk's place in the file.
_ROW_BYTES = 400
_RECORD_BYTES = 200

# Text with which every message of an episode begins: numbers as they are written, without zeros before them.
_EPISODE = re.compile(rb'\{"env":(0|[1-9][0-9]{0,14}),"episode":(0|[1-9][0-9]{0,14}),')

# Counts in a file must be below this, so that sums of them are exact.
_MAX_COUNT = 2**40


class RecordedImage(NamedTuple):
    """A picture of an episode."""

    name: str
    """"render", or "observation/..." for what was observed"""
    nanoseconds: int
    """Simulated time since the recording began, as in the file"""
    pixels: npt.NDArray[np.uint8]
    """(H, W, 3) or (H, W)"""


class _Chunk(NamedTuple):
    """Messages of a chunk, and the episode of each; (M,) each, -1 where a message belongs to none."""

    messages: Messages
    env_index: npt.NDArray[np.int64]
    episode: npt.NDArray[np.int64]


class _EpisodeSpan(NamedTuple):
    """Place of an episode in the file."""

    env_index: int
    n_steps: int
    chunks: list[Record]


class Recording:
    """A recording, opened for reading; `recording[i]` is its i-th `Episode`, read when asked for.

    Reading checks shapes and checksums, not whether the recording is true: see `verify` and `replay`.

    Attributes:
        path: The file.
        manifest: Origin of the recording, as parsed from JSON.
        layout: Sizes and names of what it holds.
        circuit: The circuit that acted.
        budget: Memory that reading may take.
        ending: Reason why the recording ended, usually "finished"; None where the file has no seal, since its writer
            was killed or the file cut.
    """

    def __init__(self, path: Path | str, *, max_memory: int = MAX_MEMORY) -> None:
        """Read the beginning and the places of episodes; see `Recording.open`."""
        self.path = Path(path)
        self.ending: str | None = None
        self.budget = Budget(max_memory)
        self._cache: OrderedDict[int, _Chunk] = OrderedDict()
        attachments, spans = self._read_index()
        if set(attachments) != set(ATTACHMENTS):
            raise RecordingError(
                f"A recording must hold the attachments {ATTACHMENTS}, but {path} holds {tuple(attachments)}."
            )
        for name in ("manifest.json", "circuit.json"):
            self.budget.json(len(attachments[name]), f"{name} of {path}")
        self.manifest = read_manifest(attachments["manifest.json"])
        self.layout = Layout.from_dict(self.manifest["layout"])
        self._spans = spans.by_episode(self.layout.n_envs)
        if self.ending is not None and spans.sealed != str(len(self)):
            raise RecordingError(
                f"{path} lists {len(self)} episodes, but its seal counts {spans.sealed}; call verify to see what "
                "happened."
            )
        try:
            self.circuit = Circuit.load(attachments["circuit.safetensors"], attachments["circuit.json"])
        except ValueError as error:
            raise RecordingError(f"{path}: {error}.") from error
        self._check_circuit()

    def _read_index(self) -> tuple[dict[str, bytes], _Spans]:
        """Read the attachments and the places of episodes, skipping the contents of chunks."""
        attachments: dict[str, bytes] = {}
        spans = _Spans(self.budget)
        with _opened(self.path) as (file, size):
            for record in walk_records(file, size):
                if record.opcode == Opcode.ATTACHMENT and len(attachments) < len(ATTACHMENTS):
                    attachment = parse_attachment(read_record(file, record, self.budget))
                    attachments[attachment.name] = attachment.data
                elif record.opcode == Opcode.CHUNK:
                    spans.begin_chunk(record)
                elif record.opcode == Opcode.METADATA:
                    metadata = parse_metadata(read_record(file, record, self.budget))
                    if metadata.name == "chunk":
                        spans.add(metadata.metadata.get("episodes", ""))
                    elif metadata.name == "seal":
                        self.ending = metadata.metadata.get("ending", "")
                        spans.sealed = metadata.metadata.get("episodes")
        return attachments, spans

    @classmethod
    def open(cls, path: Path | str, *, max_memory: int = MAX_MEMORY) -> Recording:
        """Open a recording: read its beginning and the places of its episodes.

        Args:
            path: The file.
            max_memory: Bytes that reading may take, so that no file can exhaust a machine's memory. Reading that would
                take more is refused, here, where an episode or a picture is read, and by `replay`.

        Raises:
            RecordingError: The file cannot be read, or is not a recording.
        """
        return cls(path, max_memory=max_memory)

    def __len__(self) -> int:
        """Return the number of episodes, including those that the recording's end cut off."""
        return len(self._spans)

    def __iter__(self) -> Iterator[Episode]:
        """Yield the episodes one after the other."""
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of each episode."""
        return tuple(self._spans.n_steps.tolist())

    @property
    def env_indices(self) -> tuple[int, ...]:
        """Number of the environment of each episode."""
        return tuple(self._spans.env_index.tolist())

    @property
    def max_episode_steps(self) -> int | None:
        """Steps after which the environment cut episodes, from the manifest; None where it has no limit."""
        environment = self.manifest.get("environment")
        limit = environment.get("max_episode_steps") if isinstance(environment, dict) else None
        return limit if type(limit) is int else None

    def __getitem__(self, index: int) -> Episode:
        """Read episode number `index`.

        Raises:
            IndexError: There is no such episode.
            RecordingError: Its part of the file is damaged.
        """
        span = self._span(index)
        topics = channel_topics(self.layout)
        n_numbers = span.n_steps * sum(len(topics[channel].kinds) for channel in STEP_CHANNELS)
        self.budget.need(_NUMBER_BYTES * n_numbers, f"Episode {index} of {span.n_steps} steps")
        rows: dict[int, list[npt.NDArray[np.float64]]] = {channel: [] for channel in topics}
        for messages, own in self._messages_of(index, span):
            for at in own.tolist():
                if (channel := int(messages.channels[at])) in topics:
                    rows[channel].append(np.array(topics[channel].parse(_text(messages, at))))
        counts = {channel: len(found) for channel, found in rows.items()}
        expected = {channel: span.n_steps for channel in STEP_CHANNELS} | {EPISODE_CHANNEL: 1}
        expected[END_CHANNEL] = min(counts[END_CHANNEL], 1)  # An episode that the recording cut off has no end message.
        if counts != expected:
            raise RecordingError(
                f"Episode {index} must have {expected} messages by channel, got {counts}; call verify to see what "
                "happened."
            )
        return self._episode(index, span.env_index, {c: np.array(found) for c, found in rows.items()})

    def images(self, index: int) -> Iterator[RecordedImage]:
        """Yield the pictures of episode number `index` in order; there are none unless they were recorded.

        Raises:
            IndexError: There is no such episode.
            RecordingError: Its part of the file is damaged.
        """
        span = self._span(index)
        times = {time for messages, own in self._messages_of(index, span) for time in messages.log_times[own].tolist()}
        for messages, _ in self._messages_of(index, span):
            for at in np.flatnonzero(messages.channels == IMAGE_CHANNEL).tolist():
                if (time := int(messages.log_times[at])) in times:
                    image = _image(_text(messages, at), span.env_index, time, self.budget)
                    if image is not None:
                        yield image

    def observations(self, episode: Episode) -> Any:
        """Return an episode's observations as the environment gave them, (T, ...) or a dict of such, with images.

        Returns:
            The observations; None where images were observed and not recorded.

        Raises:
            RecordingError: Images of some steps are missing or have another size, or the file is damaged.
        """
        parts = observation_parts(self.layout, episode.observation, episode.index)
        observed = {f"observation/{part.key or 'image'}": part for part in self.layout.observed if not part.names}
        if not observed:
            return parts
        found: dict[str | None, list[npt.NDArray[np.uint8]]] = {part.key: [] for part in observed.values()}
        for image in self.images(episode.index):
            if image.name in observed:
                part = observed[image.name]
                found[part.key].append(from_picture(image.pixels, part.shape))
        if not any(found.values()):
            return None
        for key, frames in found.items():
            if len(frames) != len(episode):
                raise RecordingError(
                    f"Episode {episode.index} must have an image of the observation {key or 'image'!r} in each of its "
                    f"{len(episode)} steps, got {len(frames)} images."
                )
        images = {key: np.stack(frames) for key, frames in found.items()}
        return images[None] if None in images else {**parts, **images}

    def _span(self, index: int) -> _EpisodeSpan:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no episode {index}: the recording has {len(self)}, counted from 0.")
        return self._spans[index]

    def _messages_of(self, index: int, span: _EpisodeSpan) -> Iterator[tuple[Messages, npt.NDArray[np.int64]]]:
        """Yield the messages of each of an episode's chunks, and the positions of its own among them."""
        with _opened(self.path) as (file, _):
            for record in span.chunks:
                if record.offset not in self._cache:
                    self._cache[record.offset] = _chunk(read_messages(file, record, self.budget))
                    room = _CACHED * self.budget.max_memory
                    while len(self._cache) > 1 and sum(len(c.messages.data) for c in self._cache.values()) > room:
                        self._cache.popitem(last=False)
                messages, env_index, episode = self._cache[record.offset]
                yield messages, np.flatnonzero((episode == index) & (env_index == span.env_index))

    def _episode(self, index: int, env_index: int, rows: Mapping[int, npt.NDArray[np.float64]]) -> Episode:
        fields: dict[str, npt.NDArray[np.float64]] = {}
        topics = channel_topics(self.layout)
        for channel in STEP_CHANNELS:
            fields |= {name: rows[channel][:, at] for name, at in topics[channel].slices.items()}
        if (fields["step"][:, 0] != np.arange(len(fields["step"]))).any():
            raise RecordingError(
                f"The steps of episode {index} must be 0, 1, 2, ..., and are not; call verify to see what happened."
            )
        elapsed = fields["elapsed_time"][:, 0]
        wrong = np.flatnonzero(~(np.isfinite(elapsed) & (elapsed >= 0)))
        if len(wrong):
            raise RecordingError(
                f"Elapsed times must be finite seconds, not negative, got {elapsed[wrong[0]]} in step {wrong[0]} of "
                f"episode {index}; see verify."
            )
        layers = [name for name in ("motor", "command", "inter") if f"potentials.{name}" in fields]
        potentials = np.concatenate([fields[f"potentials.{layer}"] for layer in layers], axis=1)
        if not self.circuit.core.has_time_constants:
            tau = np.full_like(potentials, np.nan)
        elif self.has_time_constants:
            tau = np.concatenate([fields[f"tau.{layer}"] for layer in layers], axis=1)
        else:
            operands = dict(sensory=fields["sensory"], potentials=potentials)
            tau = self.circuit.time_constants(
                *(_cast(values, np.float32, name, index) for name, values in operands.items())
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
            observation=_cast(fields["observation"], wanted, "observation", index),
            final_observation=_cast(final, wanted, "final observation", index) if len(final) else None,
            observation_names=self.layout.observation_names,
            terminated=bool(fields["terminated"][-1, 0]),
            truncated=bool(fields["truncated"][-1, 0]),
            **{name: _cast(values, np.float32, name, index) for name, values in several.items()},
        )

    @property
    def has_time_constants(self) -> bool:
        """Whether time constants are read from the file.

        Older recordings, which do not name their kind of neurons, have time constants without epsilon
        in the conductance; these are computed anew. CfC neurons have no time constants.
        """
        return self.circuit.core.has_time_constants and "cell" in self.manifest["layout"]

    def _check_circuit(self) -> None:
        wiring, layout = self.circuit.wiring, self.layout
        if self.circuit.cell != layout.cell:
            raise RecordingError(
                f"The manifest of {self.path} names {layout.cell} neurons, but its circuit has {self.circuit.cell} "
                "neurons."
            )
        found = (wiring.n_sensory, wiring.n_motor, wiring.n_command, wiring.units, len(self.circuit.bias))
        expected = (layout.n_sensory, layout.n_motor, layout.n_command, layout.units, layout.n_outputs)
        if found != expected:
            raise RecordingError(
                f"The manifest and the circuit of {self.path} differ in their numbers of sensory inputs, motor, "
                "command and "
                f"all neurons, and outputs: {expected} and {found}."
            )


def _cast(values: npt.NDArray[Any], dtype: Any, name: str, index: int) -> npt.NDArray[Any]:
    """Return the values in the type that they were written from.

    Raises:
        RecordingError: The type does not hold one of them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.astype(dtype)
    whole = np.issubdtype(dtype, np.floating) or (found == values).all()
    if not whole or (np.isfinite(found) != np.isfinite(values)).any():
        raise RecordingError(
            f"{name} of episode {index} holds numbers that are no {np.dtype(dtype)}; call verify to see what happened."
        )
    return found


def observation_parts(layout: Layout, observations: npt.NDArray[Any], index: int) -> Any:
    """Return observations (T, D) as the environment gave them, (T, ...) or a dict of such, without images.

    Raises:
        RecordingError: The type of a part does not hold a number of episode `index`.
    """
    found: dict[str | None, npt.NDArray[Any]] = {}
    start = 0
    for part in layout.observed:
        if part.names:
            stop = start + len(part.names)
            numbers = _cast(observations[:, start:stop], part.dtype, part.key or "observation", index)
            found[part.key] = numbers.reshape(len(observations), *part.shape)
            start = stop
    return found.get(None, found)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    try:
        with path.open("rb") as file:
            yield file, path.stat().st_size
    except OSError as error:
        raise RecordingError(f"The recording {path} cannot be read: {error}.") from error


def _chunk(messages: Messages) -> _Chunk:
    """Find the episode of each message, once for all episodes of a chunk."""
    found = array("q")
    offsets = messages.offsets.tolist()
    for start, stop in pairwise(offsets):
        begin = _EPISODE.match(messages.data, start + MESSAGE_HEADER.size, stop)
        found.extend((-1, -1) if begin is None else (int(begin[1]), int(begin[2])))
    return _Chunk(messages, *np.array(found, np.int64).reshape(-1, 2).T.copy())


def _text(messages: Messages, at: int) -> memoryview:
    """Return the JSON of a message."""
    return messages.data[int(messages.offsets[at]) + MESSAGE_HEADER.size : int(messages.offsets[at + 1])]


class _SpansByEpisode:
    """Places of all episodes as a table, since a recording may have a million episodes."""

    def __init__(self, rows: npt.NDArray[np.int64], chunks: list[Record]) -> None:
        """Take rows (K, 5) of an episode, environment, first step, steps and chunk, ordered by episode."""
        self._chunks, self._chunk_of = chunks, rows[:, 4]
        self._starts = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))
        self.env_index = rows[self._starts, 1]
        self.n_steps = np.add.reduceat(rows[:, 3], self._starts) if len(rows) else rows[:, 3]

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._starts)

    def __getitem__(self, index: int) -> _EpisodeSpan:
        """Return the place of episode number `index`."""
        stop = self._starts[index + 1] if index + 1 < len(self) else len(self._chunk_of)
        chunks = [self._chunks[at] for at in self._chunk_of[self._starts[index] : stop].tolist()]
        return _EpisodeSpan(int(self.env_index[index]), int(self.n_steps[index]), chunks)


class _Spans:
    """Collects the lists of episodes that each chunk has in its chain record."""

    def __init__(self, budget: Budget) -> None:
        self.sealed: str | None = None
        """Number of episodes by the seal"""
        self._budget = budget
        self._chunks: list[Record] = []
        self._rows: list[npt.NDArray[np.int64]] = []
        self._n_rows = 0

    def begin_chunk(self, record: Record) -> None:
        """Note that the next list belongs to this chunk."""
        self._chunks.append(record)
        self._need_room()

    def add(self, text: str) -> None:
        """Add the list of the last chunk.

        Raises:
            RecordingError: The text is not a list of episodes.
        """
        self._budget.json(len(text), "A list of episodes")
        if not self._chunks:
            raise RecordingError(
                "A list of episodes must follow a chunk, and one comes before any; call verify to see what happened."
            )
        try:
            table = _table(json.loads(text))
        except (RecursionError, ValueError) as error:
            raise RecordingError(f"A list of episodes is damaged: {error}.") from error
        self._rows.append(np.column_stack([table, np.full(len(table), len(self._chunks) - 1)]))
        self._n_rows += len(table)
        self._need_room()

    def by_episode(self, n_envs: int) -> _SpansByEpisode:
        """Return the places of each episode.

        Raises:
            RecordingError: Episodes or steps are missing or out of order, or an environment does not exist.
        """
        rows = np.concatenate([np.empty((0, 5), np.int64), *self._rows])
        order = np.argsort(rows[:, 0], kind="stable")
        rows = rows[order]
        episode, env, first, count, _ = rows.T
        begins = np.diff(episode, prepend=-1) != 0
        starts = np.flatnonzero(begins)
        start = starts[np.cumsum(begins) - 1]
        # A row must begin with the number of steps before it in its episode.
        before = np.cumsum(count) - count
        whole = (episode[starts] == np.arange(len(starts))).all() and (np.diff(order[starts]) > 0).all()
        if not whole or (before - before[start] != first).any() or (env != env[start]).any():
            raise RecordingError(
                "The recording lists the steps of its episodes out of order; call verify to see what happened."
            )
        if (env >= n_envs).any():
            raise RecordingError(
                f"The recording lists environment {env.max()}, but it has {n_envs}; call verify to see what happened."
            )
        return _SpansByEpisode(rows, self._chunks)

    def _need_room(self) -> None:
        self._budget.need(_RECORD_BYTES * len(self._chunks) + _ROW_BYTES * self._n_rows, "The list of episodes")


def _table(rows: Any) -> npt.NDArray[np.int64]:
    """Return the (K, 4) table of a list of lists."""
    if type(rows) is not list or not all(type(row) is list and len(row) == 4 for row in rows):
        raise ValueError("it must be a list of lists [episode, environment, first step, steps]")
    if not {int}.issuperset(map(type, chain.from_iterable(rows))):
        raise ValueError("its numbers must be integers")
    if not all(0 <= number < _MAX_COUNT for number in chain.from_iterable(rows)) or not all(row[3] for row in rows):
        raise ValueError(f"its numbers must be from 0, or steps from 1, to {_MAX_COUNT - 1}")
    return np.array(rows, np.int64).reshape(-1, 4)


def _image(text: memoryview, env_index: int, nanoseconds: int, budget: Budget) -> RecordedImage | None:
    """Return the picture of a message, or None where it belongs to another environment."""
    budget.json(len(text), "A picture")
    message = load_json(bytes(text), "an image")
    try:
        found = re.fullmatch(r"env_([0-9]{1,9})/(.+)", message["frame_id"])
        if found is None or int(found[1]) != env_index:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # The budget decides.
            image = Image.open(io.BytesIO(base64.b64decode(message["data"], validate=True)), formats=("PNG",))
        budget.need(_PIXEL_BYTES * image.width * image.height, f"A picture of {image.width} x {image.height} pixels")
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"pictures must be of mode L or RGB, got {image.mode}")
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
