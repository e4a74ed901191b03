"""`Container`: the bytes of an MCAP file, record by record (https://mcap.dev/spec).

A container returns the bytes that come next and writes nothing. The recorder appends them to a file; the verifier
compares them with a file, so that it finds every changed byte of a recording, indexes included.

Order: schemas, channels and attachments; then chunks, each with its message indexes and a metadata record of the hash
chain; then the summary.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Attachment,
    AttachmentIndex,
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)

from ncp_rl.recording.encode import Messages
from ncp_rl.recording.layout import COMPRESSED_IMAGE, Layout, Topic

# Fields: opcode, length of the rest, channel, bytes of the entries.
_INDEX_HEADER = struct.Struct("<BQHI")

_Data = TypeVar("_Data", bytes, bytes | bytearray)

MAGIC = b"\x89MCAP0\r\n"
LIBRARY = "ncp_rl recording 1"

EPISODE_CHANNEL = 1
STEP_CHANNELS = (2, 3, 4)
END_CHANNEL = 5
IMAGE_CHANNEL = 6


@dataclass
class Container:
    """The offset of the next record in the file, and the contents of the summary.

    What the summary says of chunks is kept as the bytes that it will be, some 200 a chunk: a recorder writes four
    chunks a second, for as long as it runs.
    """

    offset: int = 0
    _schemas: list[Schema] = field(default_factory=list)
    _channels: list[Channel] = field(default_factory=list)
    _attachments: list[AttachmentIndex] = field(default_factory=list)
    _chunks: bytearray = field(default_factory=bytearray)
    _metadata: bytearray = field(default_factory=bytearray)
    _n_chunks: int = 0
    _n_metadata: int = 0
    _times: tuple[int, int] | None = None
    """First and last time of a message"""
    _counts: dict[int, int] = field(default_factory=dict)

    def begin(self, layout: Layout, attachments: Mapping[str, bytes]) -> bytes:
        """Return the file's beginning: magic, header, schemas, channels, attachments."""
        for number, topic in channel_topics(layout).items():
            self._schemas.append(_schema(number, topic.schema_name, topic.schema()))
            self._channels.append(Channel(number, topic.name, "json", {}, number))
        self._schemas.append(_schema(IMAGE_CHANNEL, "foxglove.CompressedImage", COMPRESSED_IMAGE))
        self._channels.append(Channel(IMAGE_CHANNEL, "/image", "json", {}, IMAGE_CHANNEL))
        head = MAGIC + _bytes([Header("", LIBRARY), *self._schemas, *self._channels])
        return self._advance(head) + b"".join(self._attachment(*item) for item in attachments.items())

    def chunk(self, messages: Messages, compression: str, compressed: bytes) -> bytes:
        """Return a chunk of messages, with an index of them by channel."""
        times = messages.log_times
        chunk = Chunk(
            compression=compression,
            data=compressed,
            message_start_time=int(times.min()),
            message_end_time=int(times.max()),
            uncompressed_crc=zlib.crc32(messages.data),
            uncompressed_size=len(messages.data),
        )
        start, record = self.offset, self._advance(_bytes([chunk]))
        indexes, index_start, places = [], self.offset, {}
        for channel, entries in _message_indexes(messages).items():
            places[channel] = self.offset
            indexes.append(self._advance(entries))
            self._counts[channel] = self._counts.get(channel, 0) + (len(entries) - _INDEX_HEADER.size) // 16
        index = ChunkIndex(
            chunk_length=len(record),
            chunk_start_offset=start,
            compression=compression,
            compressed_size=len(compressed),
            message_end_time=chunk.message_end_time,
            message_index_length=self.offset - index_start,
            message_index_offsets=places,
            message_start_time=chunk.message_start_time,
            uncompressed_size=len(messages.data),
        )
        self._chunks += _bytes([index])
        self._n_chunks += 1
        first, last = self._times or (chunk.message_start_time, chunk.message_end_time)
        self._times = min(first, chunk.message_start_time), max(last, chunk.message_end_time)
        return record + b"".join(indexes)

    def metadata(self, name: str, entries: dict[str, str]) -> bytes:
        """Return a metadata record."""
        record = _bytes([Metadata(name, entries)])
        self._metadata += _bytes([MetadataIndex(self.offset, len(record), name)])
        self._n_metadata += 1
        return self._advance(record)

    def end(self) -> bytes:
        """Return the file's end: the summary, which lists the offsets of records, and the footer."""
        data_end = self._advance(_bytes([DataEnd(0)]))
        start = self.offset
        groups: list[tuple[Opcode, bytes | bytearray]] = [
            (Opcode.SCHEMA, _bytes(self._schemas)),
            (Opcode.CHANNEL, _bytes(self._channels)),
            (Opcode.STATISTICS, _bytes([self._statistics()])),
            (Opcode.CHUNK_INDEX, self._chunks),
            (Opcode.ATTACHMENT_INDEX, _bytes(self._attachments)),
            (Opcode.METADATA_INDEX, self._metadata),
        ]
        summary, offsets = b"", []
        for opcode, group in groups:
            offsets.append(SummaryOffset(opcode, self.offset, len(group)))
            summary += self._advance(group)
        offset_start = self.offset
        summary += self._advance(_bytes(offsets))
        # The footer's CRC covers the summary and the footer up to the CRC itself.
        crc = zlib.crc32(summary + struct.pack("<BQQQ", Opcode.FOOTER, 20, start, offset_start))
        return data_end + summary + self._advance(_bytes([Footer(start, offset_start, crc)]) + MAGIC)

    def _statistics(self) -> Statistics:
        first, last = self._times or (0, 0)
        return Statistics(
            attachment_count=len(self._attachments),
            channel_count=len(self._channels),
            channel_message_counts=dict(sorted(self._counts.items())),
            chunk_count=self._n_chunks,
            message_count=sum(self._counts.values()),
            message_end_time=last,
            message_start_time=first,
            metadata_count=self._n_metadata,
            schema_count=len(self._schemas),
        )

    def _attachment(self, name: str, data: bytes) -> bytes:
        media_type = "application/json" if name.endswith(".json") else "application/octet-stream"
        attachment = Attachment(create_time=0, log_time=0, name=name, media_type=media_type, data=data)
        record = _bytes([attachment])
        self._attachments.append(AttachmentIndex(self.offset, len(record), 0, 0, len(data), name, media_type))
        return self._advance(record)

    def _advance(self, data: _Data) -> _Data:
        self.offset += len(data)
        return data


def channel_topics(layout: Layout) -> dict[int, Topic]:
    """Return the topics of a layout by channel id, without images, whose messages are Foxglove's."""
    channels = (EPISODE_CHANNEL, *STEP_CHANNELS, END_CHANNEL)
    return dict(zip(channels, (layout.episode_topic, *layout.topics, layout.end_topic), strict=True))


def _schema(number: int, name: str, schema: dict[str, Any]) -> Schema:
    return Schema(number, json.dumps(schema, separators=(",", ":")).encode(), "jsonschema", name)


def _bytes(records: Iterable[McapRecord]) -> bytes:
    builder = RecordBuilder()
    for record in records:
        write: Callable[[RecordBuilder], None] = record.write
        write(builder)
    data: bytes = builder.end()  # type: ignore[no-untyped-call]
    return data


def _message_indexes(messages: Messages) -> dict[int, bytes]:
    """Return a message index record for each channel; the library's own would loop over all messages in Python."""
    order = np.argsort(messages.channels, kind="stable")
    entries = np.stack([messages.log_times, messages.offsets[:-1]], axis=1).astype("<u8")[order].tobytes()
    found, start = {}, 0
    for channel, count in enumerate(np.bincount(messages.channels).tolist()):
        if count:
            size = 16 * count
            header = _INDEX_HEADER.pack(Opcode.MESSAGE_INDEX, 6 + size, channel, size)
            found[channel] = header + entries[start : start + size]
            start += size
    return found
