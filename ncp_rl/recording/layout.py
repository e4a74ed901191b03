"""`Layout`: the channels of a recording, their messages' fields and the JSON Schemas of both.

Messages are JSON, so that Foxglove and every MCAP tool can show and plot them. Numbers come back bit for bit:

- float32 values have nine significant digits, float64 values 17: enough for the one value that was written;
- infinities are written `1e999` and `-1e999`, which JSON allows and every reader reads as infinite;
- JSON has no NaN: `1e999` is written in its place, `nan_at` gives its position among the message's numbers and
  `nan_bits` its bits, hexadecimal. Messages without NaN lack both keys.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from ncp_rl.cores import CELLS
from ncp_rl.ltc import LTC
from ncp_rl.recording.errors import RecordingError

Kind = Literal["float32", "float64", "integer", "boolean"]

# A float32 holds observations of the first types without loss, a float64 those of the others.
_IN_FLOAT32 = frozenset({"float32", "float16", "int8", "uint8", "int16", "uint16", "bool"})
_IN_FLOAT64 = frozenset({"float64", "int32", "uint32", "int64", "uint64"})

# Sizes in a recording are below this.
_MAX_SIZE = 2**20

# Largest number of characters of a number, and of its position and bits where it is NaN.
_NUMBER_CHARACTERS = 26
_NAN_CHARACTERS = 32


@dataclass(frozen=True)
class Field:
    """The numbers of one name in a message; a dot in the name puts them into an inner object."""

    name: str
    kind: Kind = "float32"
    size: int | None = None
    """Length of an array, or None for a single number."""

    @property
    def width(self) -> int:
        """Number of numbers that it holds."""
        return 1 if self.size is None else self.size

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the value, with plain types only, since Foxglove refuses alternatives."""
        number = {"type": self.kind if self.kind in ("integer", "boolean") else "number"}
        if self.size is None:
            return number
        return {"type": "array", "items": number, "minItems": self.size, "maxItems": self.size}


@dataclass(frozen=True)
class Topic:
    """A channel whose messages hold `fields`."""

    name: str
    fields: tuple[Field, ...]

    @property
    def schema_name(self) -> str:
        """Name of the channel's schema."""
        return "ncp_rl." + self.name.strip("/").capitalize()

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Position of each field's numbers among those of a message."""
        found, start = {}, 0
        for field in self.fields:
            found[field.name] = slice(start, start + field.width)
            start += field.width
        return found

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Kind of each number of a message."""
        return tuple(field.kind for field in self.fields for _ in range(field.width))

    @cached_property
    def _places(self) -> tuple[tuple[list[str], Field], ...]:
        return tuple((field.name.split("."), field) for field in self.fields)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the messages."""
        root: dict[str, Any] = _object()
        for field in self.fields:
            *outer, name = field.name.split(".")
            at = root
            for key in outer:
                at["required"] = list(dict.fromkeys([*at["required"], key]))
                at = at["properties"].setdefault(key, _object())
            at["properties"][name] = field.schema()
            at["required"].append(name)
        root["title"] = self.schema_name
        root["properties"]["nan_at"] = {"type": "array", "items": {"type": "integer"}}
        root["properties"]["nan_bits"] = {"type": "array", "items": {"type": "string"}}
        return root

    @cached_property
    def literals(self) -> tuple[str, ...]:
        """The text before each number of a message, and the text after the last."""
        texts: list[str] = []
        scope: list[str] = []
        pending, first = "{", True
        for field in self.fields:
            *outer, name = field.name.split(".")
            while scope != outer[: len(scope)]:
                scope.pop()
                pending += "}"
            pending += "" if first else ","
            for key in outer[len(scope) :]:
                pending += f'"{key}":{{'
            scope, first = list(outer), False
            pending += f'"{name}":' + ("" if field.size is None else "[")
            for i in range(field.width):
                texts.append(pending + ("," if i else ""))
                pending = ""
            pending += "" if field.size is None else "]"
        return (*texts, pending + "}" * (len(scope) + 1))

    @cached_property
    def max_bytes(self) -> int:
        """Largest length of a message in bytes."""
        texts = sum(map(len, self.literals)) + len('"nan_at":[],"nan_bits":[],')
        return texts + (_NUMBER_CHARACTERS + _NAN_CHARACTERS) * len(self.kinds)

    def parse(self, data: bytes | memoryview) -> list[float]:
        """Return the numbers of a message, in the order of the fields.

        Raises:
            RecordingError: The message is not valid JSON, or does not fit this channel's schema.
        """
        if len(data) > self.max_bytes:
            raise RecordingError(f"A message of {self.name} has at most {self.max_bytes} bytes, got {len(data)}.")
        message = load_json(bytes(data), f"a message of {self.name}", infinite=True)
        numbers: list[float] = []
        try:
            for keys, field in self._places:
                value = message
                for key in keys:
                    value = value[key]
                numbers += _numbers(value, field)
            for at, bits in _nans(message):
                if type(at) is not int or not 0 <= at < len(numbers):
                    raise ValueError(f"nan_at must hold positions from 0 to {len(numbers) - 1}, got {at}")
                numbers[at] = _nan(self.kinds[at], bits)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise RecordingError(f"A message of {self.name} does not fit its schema: {error!r}.") from error
        return numbers


@dataclass(frozen=True)
class Observed:
    """One part of the observation: all of it, or a key of a Dict.

    Raises:
        RecordingError: Numbers of this type cannot be recorded, or names do not fit the shape.
    """

    key: str | None
    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...]
    """Names of its flattened quantities; empty for an image, which is not in the messages."""

    def __post_init__(self) -> None:
        """Check that a message can hold the part."""
        if self.dtype not in _IN_FLOAT32 | _IN_FLOAT64:
            known = ", ".join(sorted(_IN_FLOAT32 | _IN_FLOAT64))
            raise RecordingError(f"Observations must be of one of the types {known}, got {self.dtype!r}.")
        if not all(0 <= size < _MAX_SIZE for size in self.shape) or len(self.shape) > 16:
            raise RecordingError(
                f"The sizes in an observation's shape must be from 0 to {_MAX_SIZE - 1}, got {self.shape}."
            )
        if self.names and len(self.names) != math.prod(self.shape):
            raise RecordingError(
                f"An observation of shape {self.shape} must have a name for each number, got {len(self.names)} names."
            )


@dataclass(frozen=True)
class Layout:
    """Sizes and names of everything that a recording holds.

    Raises:
        RecordingError: Sizes are out of range, several observations have one key, or the kind of neurons is unknown.
    """

    n_envs: int
    observed: tuple[Observed, ...]
    n_actions: int
    """Number of numbers of an action, as given to the environment."""
    n_outputs: int
    """Number of action means, or logits."""
    discrete: bool
    """Whether actions are discrete, so that they have no standard deviation."""
    n_sensory: int
    n_motor: int
    n_command: int
    n_inter: int
    cell: str = LTC.cell
    """Kind of neurons; recordings that do not name it have LTC neurons."""

    def __post_init__(self) -> None:
        """Check the sizes, the keys and the kind of neurons."""
        if self.cell not in CELLS:
            raise RecordingError(
                f"The recording's neurons must be of a kind that this version knows, {', '.join(CELLS)}, got "
                f"{self.cell!r:.40}; "
                "read it with the version of ncp_rl that wrote it."
            )
        for name, size in vars(self).items():
            least = 0 if name in ("n_command", "n_inter") else 1
            if name.startswith("n_") and not least <= size < _MAX_SIZE:
                raise RecordingError(f"{name} of a recording must be from {least} to {_MAX_SIZE - 1}, got {size}.")
        keys = [part.key for part in self.observed]
        if not keys or len(set(keys)) < len(keys) or (None in keys and len(keys) > 1):
            raise RecordingError(
                f"A recording must have one observation, or several with different keys, got the keys {keys}."
            )

    @property
    def units(self) -> int:
        """Number of neurons."""
        return self.n_motor + self.n_command + self.n_inter

    @cached_property
    def observed_numbers(self) -> tuple[Observed, ...]:
        """The parts of the observation that are not images."""
        return tuple(part for part in self.observed if part.names)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """(D,), names of the observed quantities in the messages."""
        return tuple(name for part in self.observed for name in part.names)

    @property
    def observation_kind(self) -> Kind:
        """Kind of the observation's numbers: "float32" where that holds every quantity, else "float64"."""
        return "float32" if all(part.dtype in _IN_FLOAT32 for part in self.observed_numbers) else "float64"

    @cached_property
    def topics(self) -> tuple[Topic, ...]:
        """The channels of a step, in the order in which its messages are written."""
        where = (Field("env", "integer"), Field("episode", "integer"), Field("step", "integer"))
        layers = tuple((n, getattr(self, f"n_{n}")) for n in ("motor", "command", "inter") if getattr(self, f"n_{n}"))
        transition = (
            Field("observation", self.observation_kind, len(self.observation_names)),
            Field("action", size=self.n_actions),
            Field("reward"),
            Field("terminated", "boolean"),
            Field("truncated", "boolean"),
            Field("elapsed_time"),
        )
        neurons = (
            Field("sensory", size=self.n_sensory),
            *(Field(f"potentials.{layer}", size=size) for layer, size in layers),
            *(Field(f"tau.{layer}", size=size) for layer, size in layers if CELLS[self.cell].has_time_constants),
        )
        policy = (
            Field("value"),
            Field("action_mean", size=self.n_outputs),
            Field("action_std", size=0 if self.discrete else self.n_outputs),
            Field("sample", size=self.n_actions),
            Field("log_prob"),
        )
        return (
            Topic("/transition", where + transition),
            Topic("/neurons", where + neurons),
            Topic("/policy", where + policy),
        )

    @cached_property
    def episode_topic(self) -> Topic:
        """The channel of the beginnings of episodes."""
        where = (Field("env", "integer"), Field("episode", "integer"))
        return Topic("/episode", (*where, Field("start", size=self.units)))

    @cached_property
    def end_topic(self) -> Topic:
        """The channel of the observations with which episodes end, after their last step."""
        where = (Field("env", "integer"), Field("episode", "integer"))
        return Topic("/end", (*where, Field("observation", self.observation_kind, len(self.observation_names))))

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Position of each field in a row that holds all fields of a step once."""
        found: dict[str, slice] = {}
        start = 0
        for field in (field for topic in self.topics for field in topic.fields if field.size != 0):
            if field.name not in found:
                found[field.name] = slice(start, start + field.width)
                start += field.width
        return found

    @property
    def width(self) -> int:
        """Number of numbers of such a row."""
        return sum(at.stop - at.start for at in self.columns.values())

    def to_dict(self) -> dict[str, Any]:
        """Return a description that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Layout:
        """Return the layout that `to_dict` described.

        Raises:
            RecordingError: The description is not that of a layout.
        """
        try:
            entries = dict(description)
            observed = tuple(_observed(part) for part in entries.pop("observed"))
            for name, value in entries.items():
                expected, described = _TYPES.get(name, (int, "an integer"))
                if type(value) is not expected:
                    raise ValueError(f"{name} must be {described}, got {value!r:.40}")
            return cls(observed=observed, **entries)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"The manifest's layout is damaged: {error!r}.") from error


# Types of the entries that are not numbers.
_TYPES: dict[str, tuple[type, str]] = {"discrete": (bool, "true or false"), "cell": (str, "a text")}


def _observed(described: Mapping[str, Any]) -> Observed:
    entries: dict[str, Any] = {name: tuple(v) if type(v) is list else v for name, v in described.items()}
    part = Observed(**entries)
    if not (part.key is None or type(part.key) is str) or type(part.dtype) is not str:
        raise ValueError(f"key and dtype of an observation must be texts, got {part.key!r} and {part.dtype!r}")
    if type(part.shape) is not tuple or any(type(size) is not int for size in part.shape):
        raise ValueError(f"shape must be a list of integers, got {part.shape!r}")
    if type(part.names) is not tuple or any(type(name) is not str for name in part.names):
        raise ValueError(f"names must be a list of texts, got {part.names!r:.40}")
    return part


#: The image messages that Foxglove shows, base64 inside; https://docs.foxglove.dev/docs/sdk/schemas/compressed-image
COMPRESSED_IMAGE: dict[str, Any] = {
    "title": "foxglove.CompressedImage",
    "type": "object",
    "properties": {
        "timestamp": {
            "type": "object",
            "title": "time",
            "properties": {"sec": {"type": "integer", "minimum": 0}, "nsec": {"type": "integer", "minimum": 0}},
        },
        "frame_id": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": {"type": "string"},
    },
}


def load_json(data: bytes, what: str, *, infinite: bool = False) -> Any:
    """Parse a JSON object in UTF-8; numbers beyond float64 stand for infinity where that is allowed.

    Raises:
        RecordingError: It is not a JSON object, holds NaN, is nested too deeply, or has halves of characters in a text.
    """
    try:
        text = data.decode()
        value = (_DECODER if infinite else _FINITE_DECODER).decode(text)
        if "\\u" in text:
            # An escape can stand for half a character, which cannot be written to files or screens.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{what[0].upper() + what[1:]} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise RecordingError(f"{what[0].upper() + what[1:]} must be a JSON object, got {type(value).__name__}.")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is larger than float64 can hold")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"JSON has no number {name}")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_FINITE_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _object() -> dict[str, Any]:
    return {"type": "object", "properties": {}, "required": []}


def _numbers(value: Any, field: Field) -> Sequence[float]:
    values = [value] if field.size is None else value
    if type(values) is not list or len(values) != (1 if field.size is None else field.size):
        raise ValueError(f"{field.name} must be {field.width} numbers, got {value!r:.40}")
    if not _NUMBER_TYPES[field.kind].issuperset(map(type, values)):
        raise ValueError(f"{field.name} must hold values of type {field.kind}, got {value!r:.40}")
    return list(map(float, values))


def _nans(message: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return the positions of NaN, and their bits."""
    at, bits = (message.get(name, []) for name in ("nan_at", "nan_bits"))
    if type(at) is not list or type(bits) is not list:
        raise ValueError(f"nan_at and nan_bits must be lists, got {at!r:.40} and {bits!r:.40}")
    return list(zip(at, bits, strict=True))


def _nan(kind: Kind, bits: Any) -> float:
    form = _NAN_FORMS.get(kind)
    if form is None or type(bits) is not str or len(bits) != 2 * struct.calcsize(form):
        raise ValueError(f"nan_bits must hold the hexadecimal bits of NaN of type {kind}, got {bits!r:.40}")
    (value,) = struct.unpack(form, bytes.fromhex(bits))
    if not math.isnan(value):
        raise ValueError(f"nan_bits must hold the bits of NaN, got those of the number {value}")
    return float(value)


def nan_bits(kind: Kind, value: float) -> str:
    """Return the hexadecimal bits of a NaN."""
    return struct.pack(_NAN_FORMS[kind], value).hex()


# Types of a number's values in JSON.
_NUMBER_TYPES: dict[Kind, frozenset[type]] = {
    "float32": frozenset((int, float)),
    "float64": frozenset((int, float)),
    "integer": frozenset((int,)),
    "boolean": frozenset((bool,)),
}

_NAN_FORMS: dict[Kind, str] = {"float32": ">f", "float64": ">d"}
