"""Encoding of many steps at once as the bytes of MCAP message records.

Python's own JSON encoder would take a third of a rollout's time. Here a compiled kernel, which runs beside the
rollout without the GIL, writes the numbers between the fixed texts of a `Layout`; a row with a value that the kernel
does not write (NaN, infinite, beyond 1e+-280) goes through `encode_row`, which is plain Python and defines the format.
"""

# mypy: allow-untyped-calls, allow-untyped-decorators, no-warn-return-any

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ncp_rl.jit import inlined, kernel
from ncp_rl.recording.layout import Kind, Layout, Topic, nan_bits

Floats64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Fields: opcode, length of the rest, channel, sequence, log time, publish time.
MESSAGE_HEADER = struct.Struct("<BQHIQQ")
MESSAGE_OPCODE = 5

# Largest length of a number: sign, point, four zeros and 17 digits, or an exponent.
_MAX_DIGITS = 26
_DIGITS: dict[Kind, int] = {"float32": 9, "float64": 17, "integer": 17, "boolean": 0}
_END = -1

# 10^k as the sum of two doubles, so that 17 digits are exact; k from -300 to 300.
_OFFSET = 300
_POWERS = [Fraction(10) ** k for k in range(-_OFFSET, _OFFSET + 1)]
_HIGH = np.array([float(power) for power in _POWERS])
_LOW = np.array([float(power - Fraction(float(power))) for power in _POWERS])


@dataclass(frozen=True)
class Messages:
    """Message records side by side, as they stand in a chunk.

    Attributes:
        data: The records' bytes.
        offsets: (M + 1,), the start of each record, and the end of the last.
        channels: (M,), channel ids.
        log_times: (M,), nanoseconds.
    """

    data: memoryview
    offsets: Integers
    channels: Integers
    log_times: Integers

    def __len__(self) -> int:
        """Return the number of messages."""
        return len(self.channels)

    @classmethod
    def join(cls, parts: list[Messages]) -> Messages:
        """Join the messages of `parts`, one after the other."""
        starts = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        return cls(
            memoryview(b"".join(part.data for part in parts)),
            np.concatenate([[0], *(part.offsets[1:] + start for part, start in zip(parts, starts, strict=False))]),
            np.concatenate([part.channels for part in parts]),
            np.concatenate([part.log_times for part in parts]),
        )

    @classmethod
    def single(cls, channel: int, sequence: int, log_time: int, text: bytes) -> Messages:
        """Make one message."""
        data = message_record(channel, sequence, log_time, text)
        return cls(memoryview(data), np.array([0, len(data)]), np.array([channel]), np.array([log_time]))


class _Pieces(NamedTuple):
    """The pieces that the kernel writes for a row: each is a text, then a number or the end of a message."""

    texts: npt.NDArray[np.uint8]
    text_offsets: Integers
    columns: Integers
    """Column of the number; _END at the end of a message."""
    digits: Integers
    """Number of digits; 0 for a boolean."""


class RowEncoder:
    """Encodes rows of a layout's columns, one row per step and environment."""

    def __init__(self, layout: Layout, channels: tuple[int, ...]) -> None:
        """Prepare the texts of `layout`, whose topics have the ids `channels`."""
        self.layout = layout
        self.channels = np.array(channels, np.int64)

    @cached_property
    def _pieces(self) -> _Pieces:
        texts, columns, digits = [], [], []
        for topic in self.layout.topics:
            texts += [text.encode() for text in topic.literals]
            columns += [*self._columns(topic), _END]
            digits += [*(_DIGITS[kind] for kind in topic.kinds), 0]
        offsets = np.cumsum([0, *map(len, texts)])
        return _Pieces(np.frombuffer(b"".join(texts), np.uint8), offsets, np.array(columns), np.array(digits))

    def _columns(self, topic: Topic) -> list[int]:
        where = self.layout.columns
        return [
            i for field in topic.fields if field.width for i in range(where[field.name].start, where[field.name].stop)
        ]

    def encode(self, values: Floats64, log_times: Integers, sequence: int) -> Messages:
        """Encode all rows as messages.

        Args:
            values: (R, C), numbers by the layout's columns.
            log_times: (R,), nanoseconds.
            sequence: Number of the first message.
        """
        pieces, n_topics = self._pieces, len(self.channels)
        row_size = len(pieces.texts) + _MAX_DIGITS * len(pieces.columns) + MESSAGE_HEADER.size * n_topics
        out = np.empty(len(values) * row_size, np.uint8)
        offsets = np.zeros(len(values) * n_topics + 1, np.int64)
        row = position = 0
        while True:
            arguments = (*pieces, self.channels, values, log_times, sequence, _HIGH, _LOW)
            row, position = _encode_rows(row, position, *arguments, out, offsets)
            if row == len(values):
                break
            first = row * n_topics
            for i, record in enumerate(self.encode_row(values[row], int(log_times[row]), sequence + first), first):
                out = _room(out, position + len(record) + (len(values) - row) * row_size)
                out[position : position + len(record)] = np.frombuffer(record, np.uint8)
                position += len(record)
                offsets[i + 1] = position
            row += 1
        return Messages(
            out.data[:position],
            offsets,
            np.tile(self.channels, len(values)),
            np.repeat(log_times, n_topics),
        )

    def encode_row(self, values: Floats64, log_time: int, sequence: int) -> list[bytes]:
        """Encode one row to the same records in plain Python."""
        records = []
        for i, topic in enumerate(self.layout.topics):
            text = message_text(topic, [float(v) for v in values[self._columns(topic)]])
            records.append(message_record(int(self.channels[i]), sequence + i, log_time, text))
        return records


def message_text(topic: Topic, numbers: list[float]) -> bytes:
    """Return a message of `topic` as JSON; `ncp_rl.recording.layout` defines how NaN and infinity are written."""
    written = [*map(_number, numbers, topic.kinds), ""]
    text = "".join(literal + number for literal, number in zip(topic.literals, written, strict=True))
    nan_at = [i for i, number in enumerate(numbers) if math.isnan(number)]
    if nan_at:
        bits = ",".join(f'"{nan_bits(topic.kinds[i], numbers[i])}"' for i in nan_at)
        text = f'{text[:-1]},"nan_at":[{",".join(map(str, nan_at))}],"nan_bits":[{bits}]}}'
    return text.encode()


def message_record(channel: int, sequence: int, log_time: int, text: bytes) -> bytes:
    """Return a message as an MCAP record."""
    length = MESSAGE_HEADER.size - 9 + len(text)
    header = MESSAGE_HEADER.pack(MESSAGE_OPCODE, length, channel, sequence % 2**32, log_time, log_time)
    return header + text


def _number(value: float, kind: Kind) -> str:
    if not math.isfinite(value):
        return "-1e999" if value < 0 else "1e999"
    if kind == "boolean":
        return "true" if value else "false"
    if kind == "integer":
        return str(int(value))
    text = f"{value:.9g}" if kind == "float32" else repr(value)
    return "-0.0" if text == "-0" else text


def _room(out: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    return out if len(out) >= size else np.concatenate([out, np.empty(size - len(out), np.uint8)])


@inlined
def _write_integer(value: int, n_bytes: int, out: Any, position: int) -> int:
    for i in range(n_bytes):
        out[position + i] = (value >> (8 * i)) & 0xFF
    return position + n_bytes


@inlined
def _copy(text: Any, start: int, stop: int, out: Any, position: int) -> int:
    for i in range(start, stop):
        out[position] = text[i]
        position += 1
    return position


@inlined
def _exact_product(a: float, high: float, low: float) -> Any:
    """Round a (high + low), below 2^62, to an integer by Dekker's exact product (Numerische Mathematik 18, 1971)."""
    product = a * high
    c = 134217729.0 * a
    a_high = c - (c - a)
    a_low = a - a_high
    c = 134217729.0 * high
    b_high = c - (c - high)
    b_low = high - b_high
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low + a * low
    whole = np.int64(product)
    return np.uint64(whole + np.int64(np.rint((product - np.float64(whole)) + rest)))


@inlined
def _write_digits(number: Any, n_digits: int, exponent: int, out: Any, position: int) -> int:
    """Write `number`, which has n_digits digits, as d.ddd times 10^exponent, without trailing zeros."""
    fixed = -5 <= exponent < 17
    small = fixed and exponent < 0
    # The digits are written where a small number has them, or one place to the right, so that a point fits in.
    start = position + (1 - exponent if small else 1)
    _write_pairs(number, n_digits, out, start)
    while out[start + n_digits - 1] == 48:
        n_digits -= 1
    if small:
        for i in range(1 - exponent):
            out[position + i] = 46 if i == 1 else 48
        return start + n_digits
    point = exponent + 1 if fixed else 1
    for i in range(min(point, n_digits)):
        out[position + i] = out[start + i]
    if point < n_digits:
        out[position + point] = 46
        end = start + n_digits
    else:
        for i in range(n_digits, point):
            out[position + i] = 48
        end = position + point
    return end if fixed else _write_exponent(exponent, out, end)


@inlined
def _write_pairs(number: Any, n_digits: int, out: Any, start: int) -> None:
    """Write all digits of `number`, the last first, two with each division; n_digits is odd."""
    hundred, ten = np.uint64(100), np.uint64(10)
    at = start + n_digits
    for _ in range(n_digits // 2):
        quotient = number // hundred
        pair = number - quotient * hundred
        number = quotient
        at -= 2
        out[at] = np.uint8(np.uint64(48) + pair // ten)
        out[at + 1] = np.uint8(np.uint64(48) + pair % ten)
    out[start] = np.uint8(np.uint64(48) + number)


@inlined
def _write_exponent(exponent: int, out: Any, position: int) -> int:
    out[position] = 101
    position += 1
    if exponent < 0:
        out[position] = 45
        position += 1
        exponent = -exponent
    if exponent >= 100:
        out[position] = 48 + exponent // 100
        position += 1
    if exponent >= 10:
        out[position] = 48 + exponent // 10 % 10
        position += 1
    out[position] = 48 + exponent % 10
    return position + 1


@inlined
def _write_number(value: float, n_digits: int, high: Any, low: Any, out: Any, position: int) -> int:
    """Write `value`, zero or from 1e-280 to 1e280, with `n_digits` significant digits."""
    a = abs(value)
    if math.copysign(1.0, value) < 0:
        out[position] = 45
        position += 1
    if a == 0:
        out[position] = 48
        if math.copysign(1.0, value) < 0:
            out[position + 1], out[position + 2] = 46, 48
            return position + 3
        return position + 1
    # floor(log10 a) from the binary exponent, which is too low by one at most.
    exponent = ((math.frexp(a)[1] - 1) * 78913) >> 18
    if a >= high[exponent + 301]:
        exponent += 1
    at = n_digits - 1 - exponent + 300
    # A rounded product is enough for nine digits, but not for 17.
    number = np.uint64(a * high[at] + 0.5) if n_digits == 9 else _exact_product(a, high[at], low[at])
    if number >= (np.uint64(1000000000) if n_digits == 9 else np.uint64(100000000000000000)):
        # The number was rounded up to a power of ten.
        exponent += 1
        number //= np.uint64(10)
    return _write_digits(number, n_digits, exponent, out, position)


@inlined
def _write_boolean(value: float, out: Any, position: int) -> int:
    text = (116, 114, 117, 101, 0) if value != 0 else (102, 97, 108, 115, 101)
    for i in range(5):
        if text[i] != 0:
            out[position] = text[i]
            position += 1
    return position


@kernel
def _encode_rows(
    row: int,
    position: int,
    texts: Any,
    text_offsets: Any,
    columns: Any,
    digits: Any,
    channels: Any,
    values: Any,
    log_times: Any,
    sequence: int,
    high: Any,
    low: Any,
    out: Any,
    offsets: Any,
) -> tuple[int, int]:
    """Write rows from `row` on, up to one that needs `encode_row`; return that row and its position."""
    while row < len(values):
        for column in range(values.shape[1]):
            a = abs(values[row, column])
            if not (1e-280 < a < 1e280 or a == 0):
                return row, position
        message = row * len(channels)
        start = -1
        for piece in range(len(columns)):
            if start < 0:
                start = position
                out[position] = 5
                position = _write_integer(channels[message % len(channels)], 2, out, position + 9)
                position = _write_integer((sequence + message) % 4294967296, 4, out, position)
                position = _write_integer(log_times[row], 8, out, position)
                position = _write_integer(log_times[row], 8, out, position)
            position = _copy(texts, text_offsets[piece], text_offsets[piece + 1], out, position)
            if columns[piece] < 0:
                _write_integer(position - start - 9, 8, out, start + 1)
                message += 1
                offsets[message] = position
                start = -1
            elif digits[piece] == 0:
                position = _write_boolean(values[row, columns[piece]], out, position)
            else:
                position = _write_number(values[row, columns[piece]], digits[piece], high, low, out, position)
        row += 1
    return row, position
