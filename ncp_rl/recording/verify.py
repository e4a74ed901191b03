"""Is a recording unchanged? `verify` compares every byte of it, and names the first message that was changed."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from mcap.opcode import Opcode

from ncp_rl.recording.chain import (
    LINK_BYTES,
    Chain,
    is_signed_by,
    public_bytes,
    record_text,
    spans_text,
    with_checksum,
)
from ncp_rl.recording.container import (
    EPISODE_CHANNEL,
    IMAGE_CHANNEL,
    MAGIC,
    STEP_CHANNELS,
    Container,
    channel_topics,
)
from ncp_rl.recording.encode import MESSAGE_HEADER, Messages
from ncp_rl.recording.errors import MemoryLimitError, RecordingError
from ncp_rl.recording.layout import Layout, load_json
from ncp_rl.recording.reader import ATTACHMENTS
from ncp_rl.recording.records import (
    MAX_MEMORY,
    Budget,
    Record,
    decompress,
    parse_attachment,
    parse_chunk,
    parse_messages,
    parse_metadata,
    read_record,
    record_at,
    walk_records,
)

# Largest numbers of records before the first chunk, and of indexes of a chunk.
_MAX_BEGINNING = 64
_MAX_INDEXES = 16

# Bytes of memory for a chunk and its chain record in the file's summary, of which several copies exist while it is
# built again and compared.
_CHUNK_ENTRY_BYTES = 1000

_STEP = re.compile(rb'\{"env":([0-9]{1,15}),"episode":([0-9]{1,15}),"step":([0-9]{1,15}),')

Signature = Literal["none", "unchecked", "valid", "missing", "of another key"]


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        status: "intact": no byte was changed; "unfinished": the end with the seal is missing, since the
            writer was killed or the file cut, and the rest is intact; "damaged": something was changed.
        n_messages: Number of intact messages from the first on.
        first_bad: Number of the first changed message; None where it is not known.
        detail: A clause on what is wrong; empty where nothing is.
        signature: "none": there is no signature, and none was required; "unchecked": there is one, by a key that it
            names itself; if a public key was given, "valid", "missing" or "of another key".
        public_key: Public key of the signature, hexadecimal; None without one.
        ending: Reason why the recording ended, given by its writer.
    """

    status: Literal["intact", "unfinished", "damaged"]
    n_messages: int
    first_bad: int | None = None
    detail: str = ""
    signature: Signature = "none"
    public_key: str | None = None
    ending: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the recording is intact, and signed where a public key was given."""
        return self.status == "intact" and self.signature not in ("missing", "of another key")

    def __str__(self) -> str:
        """Return the verdict in a line."""
        signed = {
            "none": "not signed: anyone who rewrites the whole file can compute a new chain",
            "unchecked": f"signed by {self.public_key}, a key that was not checked",
            "valid": "signature valid",
            "missing": "NOT SIGNED",
            "of another key": f"SIGNED BY ANOTHER KEY, {self.public_key}",
        }[self.signature]
        where = "" if self.first_bad is None else f" at message {self.first_bad}"
        detail = f": {self.detail}" if self.detail else ""
        signed = f"; {signed}" if self.status == "intact" else ""
        return f"{self.status}{where}, {self.n_messages} messages{detail}{signed}"

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes and `passed`, for JSON."""
        return asdict(self) | {"passed": self.passed}


class _DamageError(Exception):
    """Raised where the file differs from what its writer must have written."""

    def __init__(self, detail: str, first_bad: int | None = None) -> None:
        super().__init__(detail)
        self.first_bad = first_bad


def verify(
    path: Path | str, public_key: Ed25519PublicKey | None = None, *, max_memory: int = MAX_MEMORY
) -> Verification:
    """Compare every byte of a recording with what its writer must have written.

    Args:
        path: The file.
        public_key: The key that must have signed it; see `read_public_key`.
        max_memory: Bytes of memory that this may take, so that no file can exhaust a machine's memory.

    Raises:
        RecordingError: The file cannot be read, or would take more memory than is allowed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            verifier = _Verifier(file, path.stat().st_size, Budget(max_memory))
            try:
                verifier.run()
            except MemoryLimitError:
                raise
            except _DamageError as damage:
                return Verification("damaged", verifier.n_intact, damage.first_bad, str(damage))
            except RecordingError as error:
                return Verification("damaged", verifier.n_intact, verifier.n_intact, str(error))
    except OSError as error:
        raise RecordingError(f"The recording {path} cannot be read: {error}.") from error
    return verifier.verdict(public_key)


class _Verifier:
    """Builds the bytes of the recording again from its contents, and compares."""

    def __init__(self, file: IO[bytes], size: int, budget: Budget) -> None:
        self.n_intact = 0
        self._file, self._size, self._budget = file, size, budget
        self._container = Container()
        self._chain: Chain
        self._layout: Layout
        self._seal: dict[str, str] | None = None
        self._n_episodes = self._n_chunks = 0

    def run(self) -> None:
        """Compare the whole file.

        Raises:
            _DamageError: The file differs; raised at the first difference.
            RecordingError: A part cannot be read at all.
        """
        self._beginning()
        while self._seal is None and (record := self._record_at(self._container.offset)) is not None:
            if not self._next(record):
                break
        if self._seal is None:
            self._check_cut()
            return
        self._compare(self._container.end(), "the summary at the file's end was changed")
        if self._size != self._container.offset:
            raise _DamageError(f"{self._size - self._container.offset} bytes follow the recording's end")

    def verdict(self, public_key: Ed25519PublicKey | None) -> Verification:
        """Return the result for a file in which `run` found no difference."""
        if self._seal is None:
            detail = "the end with its seal is missing, since the writer was killed or the file cut"
            left_over = self._size - self._container.offset
            detail += f"; the last {left_over} bytes are part of a record" if left_over else ""
            return Verification("unfinished", self.n_intact, None, detail)
        found = self._seal.get("public_key")
        signature: Signature = "none" if found is None else "unchecked"
        if public_key is not None:
            matches = found == public_bytes(public_key).hex()
            signature = "valid" if matches else "missing" if found is None else "of another key"
        return Verification("intact", self.n_intact, None, "", signature, found, self._seal["ending"])

    def _beginning(self) -> None:
        """Compare schemas, channels, attachments and the record that closes them."""
        attachments: dict[str, bytes] = {}
        closing: Record | None = None
        for record in islice(walk_records(self._file, self._size), _MAX_BEGINNING):
            if record.opcode in (Opcode.CHUNK, Opcode.METADATA):
                closing = record
                break
            if record.opcode == Opcode.ATTACHMENT and len(attachments) <= len(ATTACHMENTS):
                attachment = parse_attachment(self._read(record))
                attachments[attachment.name] = attachment.data
        if tuple(attachments) != ATTACHMENTS:
            raise _DamageError(f"the file must begin with {ATTACHMENTS}, but begins with {tuple(attachments)}", 0)
        entries = self._chain_record(closing, "beginning", {*ATTACHMENTS})
        for name, data in attachments.items():
            if sha256(data).hexdigest() != entries[name]:
                raise _DamageError(f"{name} was changed", 0)
        self._budget.json(len(attachments["manifest.json"]), "The manifest")
        manifest = load_json(attachments["manifest.json"], "the manifest")
        self._layout = Layout.from_dict(manifest.get("layout") or {})
        beginning = self._container.begin(self._layout, attachments)
        self._compare(beginning, "the file's beginning, with schemas and channels, was changed", 0)
        self._chain = Chain(beginning)
        self._close_part(closing, "beginning", entries, "the file's beginning was changed")

    def _next(self, record: Record) -> bool:
        """Compare the chunk with its indexes and chain record, or the seal, at `record`; return whether it is whole."""
        if record.opcode not in (Opcode.CHUNK, Opcode.METADATA):
            raise _DamageError(f"the record at byte {record.offset} does not belong where it stands", self.n_intact)
        if record.opcode == Opcode.CHUNK:
            return self._chunk(record)
        signed = "signature" in parse_metadata(self._read(record)).metadata
        entries = self._chain_record(
            record, "seal", {"episodes", "ending"} | ({"public_key", "signature"} if signed else set())
        )
        if signed:
            rest = {name: value for name, value in entries.items() if name not in ("signature", "sha256")}
            key, signature = (_bytes_of(entries[name]) for name in ("public_key", "signature"))
            if not is_signed_by(key, signature, record_text("seal", rest)):
                raise _DamageError("the signature was not made for this recording by the key that the seal names")
        if entries["episodes"] != str(self._n_episodes):
            raise _DamageError(
                f"the seal counts {entries['episodes']!r} episodes, but the messages make {self._n_episodes}"
            )
        self._close_part(
            record, "seal", entries, f"what followed message {self.n_intact - 1} is missing or was changed"
        )
        self._seal = entries
        return True

    def _chunk(self, record: Record) -> bool:
        n, after = self.n_intact, self._record_at(record.end)
        for _ in range(_MAX_INDEXES):
            if after is not None and after.opcode != Opcode.METADATA:
                after = self._record_at(after.end)
        if after is None:
            # The writer was killed before the chain record, or the file was cut here.
            return False
        chunk = parse_chunk(self._read(record))
        messages = parse_messages(decompress(chunk, self._budget))
        entries = self._chain_record(after, "chunk", {"links", "episodes"})
        self._check_links(messages, _bytes_of(entries["links"]))
        what = f"messages {n} to {self._chain.count - 1} are intact, but their chunk or its index was changed"
        if messages.offsets[-1] != chunk.uncompressed_size or not len(messages):
            raise _DamageError(what)
        if entries["episodes"] != self._episodes(messages):
            raise _DamageError(
                f"messages {n} to {self._chain.count - 1} are intact, but the list of their episodes was changed"
            )
        rebuilt = self._container.chunk(messages, chunk.compression, chunk.data)
        self._compare(rebuilt, what)
        self._chain.add_bytes(rebuilt)
        self._n_chunks += 1
        self._budget.need(_CHUNK_ENTRY_BYTES * self._n_chunks, "The list of chunks")
        self._close_part(after, "chunk", entries, what)
        self.n_intact = self._chain.count
        return True

    def _episodes(self, messages: Messages) -> str:
        """Return the list of episodes that the messages make, and count those that begin."""
        self._n_episodes += int(np.count_nonzero(messages.channels == EPISODE_CHANNEL))
        found: dict[tuple[int, int], list[int]] = {}
        offsets = messages.offsets.tolist()
        for at in np.flatnonzero(messages.channels == STEP_CHANNELS[0]).tolist():
            where = _STEP.match(messages.data, offsets[at] + MESSAGE_HEADER.size, offsets[at + 1])
            if where is None:
                raise _DamageError(
                    f"message {self.n_intact + at} does not say which step of which episode it is", self.n_intact + at
                )
            env, episode, step = map(int, where.groups())
            found.setdefault((episode, env), [step, 0])[1] += 1
        return spans_text([(*key, *steps) for key, steps in found.items()])

    def _check_links(self, messages: Messages, links: bytes) -> None:
        n = self.n_intact
        found = self._chain.extend(messages)
        if found == links:
            return
        pairs = zip(range(0, len(links), LINK_BYTES), range(0, len(found), LINK_BYTES), strict=False)
        at = next((i for i, j in pairs if links[i : i + LINK_BYTES] != found[j : j + LINK_BYTES]), None)
        if at is None:
            missing = len(found) < len(links)
            first = min(len(found), len(links)) // LINK_BYTES
            what = "is missing or cannot be read" if missing else "does not belong where it stands"
            raise _DamageError(f"message {n + first} {what}", n + first)
        first = at // LINK_BYTES
        self.n_intact = n + first
        described = _describe(messages, first, self._layout)
        raise _DamageError(f"message {n + first}{described} was changed, removed, repeated or moved", n + first)

    def _chain_record(self, record: Record | None, name: str, keys: set[str]) -> dict[str, str]:
        """Return the entries of `record`, which must be a chain record with a correct checksum of its own."""
        where = "the file's beginning" if name == "beginning" else f"message {self.n_intact}"
        if record is None or record.opcode != Opcode.METADATA:
            raise _DamageError(f"the chain record after {where} is missing", self.n_intact)
        metadata = parse_metadata(self._read(record))
        entries = dict(metadata.metadata)
        if metadata.name != name or set(entries) != keys | {"messages", "head", "digest", "sha256"}:
            raise _DamageError(
                f"the metadata record after {where} must be a chain record {name!r}, and is {metadata.name!r}",
                self.n_intact,
            )
        rest = {key: value for key, value in entries.items() if key != "sha256"}
        if with_checksum(name, rest) != entries:
            raise _DamageError(f"the chain record after {where} was changed", self.n_intact)
        return entries

    def _close_part(self, closing: Record | None, name: str, entries: dict[str, str], damage: str) -> None:
        """Compare the state of the chain, and the bytes of the chain record, with those of `closing`."""
        if self._chain.state().items() - entries.items():
            raise _DamageError(damage, None if name == "chunk" else self.n_intact)
        assert closing is not None
        record = self._container.metadata(name, entries)
        start = self._container.offset - len(record)
        if closing.offset != start or self._read(closing) != record:
            raise _DamageError(f"the chain record at byte {start} was changed", self.n_intact)
        self._chain.add_bytes(record)

    def _record_at(self, offset: int) -> Record | None:
        return record_at(self._file, self._size, offset)

    def _read(self, record: Record) -> bytes:
        return read_record(self._file, record, self._budget)

    def _compare(self, expected: bytes, damage: str, first_bad: int | None = None) -> None:
        """Compare `expected` with the bytes before the container's offset."""
        self._file.seek(self._container.offset - len(expected))
        if self._file.read(len(expected)) != expected:
            raise _DamageError(damage, first_bad)

    def _check_cut(self) -> None:
        """Check that a file without a seal ends with part of a chunk or a seal, or with nothing."""
        offset = self._container.offset
        self._file.seek(offset)
        first = self._file.read(1)
        self._file.seek(max(self._size - len(MAGIC), 0))
        whole = self._file.read() == MAGIC and self._size > offset + len(MAGIC)
        if whole or (first and first[0] not in (Opcode.CHUNK, Opcode.METADATA)):
            raise _DamageError(f"what follows message {self.n_intact - 1} cannot be read", self.n_intact)


def _describe(messages: Messages, index: int, layout: Layout) -> str:
    """Return channel, environment, episode and step of a message, as far as they can be read."""
    start, stop = messages.offsets[index], messages.offsets[index + 1]
    channel = int(messages.channels[index])
    topic = channel_topics(layout).get(channel)
    name = topic.name if topic else "/image" if channel == IMAGE_CHANNEL else f"channel {channel}"
    try:
        message = json.loads(bytes(messages.data[start + MESSAGE_HEADER.size : stop]))
        place = ", ".join(f"{key} {message[key]:d}" for key in ("env", "episode", "step") if key in message)
    except (KeyError, RecursionError, TypeError, ValueError):
        place = "unreadable"
    return f" ({name}, {place})" if place else f" ({name})"


def _bytes_of(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise _DamageError(f"a chain record must hold hexadecimal text, and holds {text[:20]!r}") from error
