"""Strict reading of a recording's MCAP records with bounded memory: sizes that a file claims are never trusted."""

from __future__ import annotations

import io
import struct
import zlib
from array import array
from collections.abc import Iterator
from typing import IO, NamedTuple, TypeVar

import numpy as np
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import EndOfFile
from mcap.opcode import Opcode
from mcap.records import Attachment, Chunk, Metadata

from ncp_rl.recording.container import MAGIC
from ncp_rl.recording.encode import MESSAGE_HEADER, MESSAGE_OPCODE, Messages
from ncp_rl.recording.errors import MemoryLimitError, RecordingError
from ncp_rl.recording.writer import MAX_RATIO, MAX_RECORD

#: Bytes of memory that reading a recording may take, unless another limit is given.
MAX_MEMORY = 2**29

# Number of copies of a record, and of a JSON text, that reading holds at a time.
_COPIES = 8
_JSON_COPIES = 32

_HEADER = struct.Struct("<BQ")
_OPCODES = frozenset(map(int, Opcode))
_R = TypeVar("_R")


class Record(NamedTuple):
    """The place of a record in its file."""

    opcode: int
    offset: int
    length: int
    """Length in bytes, with opcode and length field."""

    @property
    def end(self) -> int:
        """Offset of the next record."""
        return self.offset + self.length


class Budget(NamedTuple):
    """The memory that reading may take."""

    max_memory: int = MAX_MEMORY
    """Bytes"""

    def record(self, n_bytes: int, what: str) -> None:
        """Check that a record, or a chunk's messages, of `n_bytes` may be read.

        Raises:
            MemoryLimitError: It would take more memory than allowed.
        """
        self.need(_COPIES * n_bytes, what)

    def json(self, n_bytes: int, what: str) -> None:
        """Check that a text of `n_bytes` may be read as JSON.

        Raises:
            MemoryLimitError: It would take more memory than allowed.
        """
        self.need(_JSON_COPIES * n_bytes, what)

    def need(self, n_bytes: int, what: str) -> None:
        """Check that something may be read that takes `n_bytes` of memory.

        Raises:
            MemoryLimitError: It takes more memory than allowed.
        """
        if n_bytes > self.max_memory:
            raise MemoryLimitError(
                f"{what} would take some {n_bytes:,} bytes of memory, more than max_memory = {self.max_memory:,}; "
                "give a larger max_memory if you trust the file."
            )


DEFAULT_BUDGET = Budget()


def walk_records(file: IO[bytes], size: int) -> Iterator[Record]:
    """Yield the records one after the other, without contents, up to the footer or the last whole record.

    Raises:
        RecordingError: The file does not begin as MCAP files do, or a record is longer than recordings have.
    """
    file.seek(0)
    magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise RecordingError(f"A recording must begin with {MAGIC!r}, as MCAP files do, got {magic!r}.")
    record = record_at(file, size, len(MAGIC))
    while record is not None:
        yield record
        if record.opcode == Opcode.FOOTER:
            return
        record = record_at(file, size, record.end)


def record_at(file: IO[bytes], size: int, offset: int) -> Record | None:
    """Return the record that begins at a byte, or None where no known record does, or the file ends within it.

    Raises:
        RecordingError: The record is longer than recordings have.
    """
    file.seek(offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    opcode, rest = _HEADER.unpack(header)
    if opcode not in _OPCODES or offset + _HEADER.size + rest > size:
        return None
    if rest > MAX_RECORD:
        raise RecordingError(f"The record at byte {offset} claims {rest} bytes, but records have at most {MAX_RECORD}.")
    return Record(opcode, offset, _HEADER.size + rest)


def read_record(file: IO[bytes], record: Record, budget: Budget = DEFAULT_BUDGET) -> bytes:
    """Read the bytes of a record, with opcode and length field.

    Raises:
        RecordingError: The file ends within it.
        MemoryLimitError: The record is longer than the budget allows.
    """
    budget.record(record.length, f"The record at byte {record.offset}")
    file.seek(record.offset)
    data = file.read(record.length)
    if len(data) != record.length:
        raise RecordingError(
            f"The file ends in the record at byte {record.offset}, after {len(data)} of {record.length} bytes."
        )
    return data


def parse_attachment(data: bytes) -> Attachment:
    """Parse an attachment and compare its checksum."""
    attachment = _parse(data, Attachment)
    body = data[_HEADER.size : -4]
    if zlib.crc32(body) != int.from_bytes(data[-4:], "little"):
        raise RecordingError(f"The attachment {attachment.name!r} is damaged: its checksum is wrong.")
    return attachment


def parse_metadata(data: bytes) -> Metadata:
    """Parse a metadata record."""
    return _parse(data, Metadata)


def read_messages(file: IO[bytes], record: Record, budget: Budget) -> Messages:
    """Read the messages of a chunk and compare its checksum.

    Raises:
        RecordingError: The chunk is damaged, or a decompression bomb.
    """
    chunk = parse_chunk(read_record(file, record, budget))
    content = decompress(chunk, budget)
    messages = parse_messages(content)
    if zlib.crc32(content) != chunk.uncompressed_crc or messages.offsets[-1] != len(content):
        raise RecordingError(
            f"The messages of the chunk at byte {record.offset} are damaged; call verify to see what happened."
        )
    return messages


def parse_chunk(data: bytes) -> Chunk:
    """Parse a chunk, without decompressing it."""
    return _parse(data, Chunk)


def decompress(chunk: Chunk, budget: Budget = DEFAULT_BUDGET) -> bytes:
    """Decompress the messages of a chunk.

    Raises:
        RecordingError: The chunk is damaged, or a decompression bomb.
        MemoryLimitError: The messages take more memory than the budget allows.
    """
    size = chunk.uncompressed_size
    if chunk.compression == "":
        return chunk.data
    if chunk.compression != "zstd":
        raise RecordingError(f"A chunk's compression must be 'zstd' or '', got {chunk.compression!r}.")
    if size > min(MAX_RECORD, MAX_RATIO * len(chunk.data)):
        raise RecordingError(
            f"A chunk of {len(chunk.data)} bytes claims to hold {size} bytes, more than recordings ever have."
        )
    budget.record(size, f"A chunk of {size} bytes")
    try:
        # One byte more than claimed is read, so that a longer content is noticed.
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(chunk.data) as reader:
            content = reader.read(size + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise RecordingError(f"A chunk cannot be decompressed: {error}.") from error
    if len(content) != size:
        raise RecordingError(
            f"A chunk claims to hold {size} bytes and holds {'more' if len(content) > size else 'less'}."
        )
    return bytes(content)


def parse_messages(content: bytes) -> Messages:
    """Parse message records side by side, up to the end or to the first bytes that are not a message."""
    offsets, channels, times = array("q", [0]), array("q"), array("q")
    at = 0
    while at + MESSAGE_HEADER.size <= len(content):
        opcode, length, channel, _, log_time, _ = MESSAGE_HEADER.unpack_from(content, at)
        at += 9 + length
        if opcode != MESSAGE_OPCODE or length < MESSAGE_HEADER.size - 9 or at > len(content) or log_time >= 2**63:
            break
        offsets.append(at)
        channels.append(channel)
        times.append(log_time)
    return Messages(memoryview(content), *(np.array(numbers, np.int64) for numbers in (offsets, channels, times)))


def _parse(data: bytes, kind: type[_R]) -> _R:
    """Parse a record of `kind` from its bytes, and check that it uses all of them."""
    body = io.BytesIO(data)
    body.seek(_HEADER.size)
    stream = ReadDataStream(body)
    try:
        record: _R = kind.read(stream)  # type: ignore[attr-defined]
    except (EndOfFile, ValueError, struct.error, OverflowError, MemoryError) as error:
        raise RecordingError(f"A {kind.__name__.lower()} record is damaged: {error!r}.") from error
    if body.read(1):
        raise RecordingError(f"Bytes that belong to nothing follow a {kind.__name__.lower()} record.")
    return record
