"""`RecordingWriter`: takes steps from a rollout and writes them in a thread.

The rollout copies its steps into blocks; a thread encodes, compresses, hashes and writes them, most of it without the
GIL. At least every `INTERVAL` seconds the new steps are written as a chunk of their own, in one call, so that a process
that is killed loses less than a second and leaves a file that opens.
"""

from __future__ import annotations

import atexit
import os
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ncp_rl.circuit import Circuit
from ncp_rl.recording.chain import Chain, public_bytes, record_text, spans_text, with_checksum
from ncp_rl.recording.container import Container
from ncp_rl.recording.encode import Messages
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.files import new_file
from ncp_rl.recording.layout import Layout
from ncp_rl.recording.sha256 import sha256_links
from ncp_rl.recording.steps import Block, Step, StepEncoder

#: Seconds after which steps are written at the latest.
INTERVAL = 0.25

#: Largest number of bytes of a record, and of a chunk's messages.
MAX_RECORD = 2**28

#: A chunk that would shrink by more than this factor is stored uncompressed: readers refuse such ratios as bombs.
MAX_RATIO = 64

# Bytes of messages in a chunk, and number of blocks that may wait for the thread before the rollout waits for it.
_CHUNK_BYTES = 2**22
_MAX_WAITING = 16
_BYTES_PER_NUMBER = 15


class RecordingWriter:
    """Writes one recording. Close it, or use it in a `with`; the program's end closes it too."""

    def __init__(
        self,
        path: Path,
        circuit: Circuit,
        layout: Layout,
        manifest: bytes,
        *,
        sign_key: Ed25519PrivateKey | None = None,
    ) -> None:
        """Make the file and write its beginning.

        Args:
            path: New file.
            circuit: The circuit, which is copied.
            layout: Sizes and names of the steps.
            manifest: The manifest, as JSON.
            sign_key: Key that signs the recording's end.

        Raises:
            RecordingError: The file exists or cannot be written.
        """
        self.path, self._sign_key = path, sign_key
        tensors, settings = circuit.save()
        self._encoder = StepEncoder(layout, Circuit.load(tensors, settings))
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._container = Container()
        attachments = {"manifest.json": manifest, "circuit.json": settings, "circuit.safetensors": tensors}
        beginning = self._container.begin(layout, attachments)
        self._chain = Chain(beginning, sha256_links)
        # The kernel is compiled before the first step, as those of the encoder are.
        sha256_links(b"", memoryview(b""), np.array([0]))
        self._size = 0
        digests = {name: sha256(data).hexdigest() for name, data in attachments.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordingError(f"The recording {path} cannot be created: {error}.") from error
        with new_file(path, "The recording") as self._file:
            self._write(beginning + self._metadata("beginning", digests))

        step_bytes = layout.n_envs * _BYTES_PER_NUMBER * sum(len(topic.kinds) for topic in layout.topics)
        self._steps_per_chunk = max(1, _CHUNK_BYTES // step_bytes)
        self._layout = layout
        self._block, self._waiting = self._new_block(), list[Block]()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._ending: str | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"recording {path.name}", daemon=True)
        self._thread.start()
        atexit.register(self.finish_at_exit)

    def append(self, step: Step) -> None:
        """Record a step. It waits only where the disk is slower than the rollout.

        Raises:
            RecordingError: An earlier step could not be written.
        """
        if self._error is not None:
            self.close()
        with self._lock:  # The condition's own `with` takes three times as long.
            self._block.put(step)
            if not self._block.full:
                return
            self._waiting.append(self._block)
            self._block = self._new_block()
            if len(self._waiting) >= _MAX_WAITING:
                self._changed.notify_all()
                self._changed.wait_for(lambda: len(self._waiting) < _MAX_WAITING or self._error is not None)

    def finish(self, reason: str = "finished") -> None:
        """Let the thread write the remaining steps, the seal and the summary, without waiting for it."""
        with self._changed:
            self._ending = self._ending or reason
            self._changed.notify_all()

    def close(self, reason: str = "finished") -> None:
        """Finish the recording and wait for the thread.

        Raises:
            RecordingError: Something could not be written.
        """
        self.finish(reason)
        self._thread.join()
        atexit.unregister(self.finish_at_exit)
        if self._error is not None:
            raise RecordingError(
                f"The recording {self.path} cannot be continued: {self._error}. What was written before can be read."
            ) from self._error

    def finish_at_exit(self) -> None:
        """Close a recording that the program left open."""
        self.close("interrupted by the program's end")

    def __enter__(self) -> RecordingWriter:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the recording; the seal holds the reason why it ended."""
        self.close("finished" if kind is None else f"interrupted by {kind.__name__}")

    def _run(self) -> None:
        try:
            while self._ending is None or self._waiting or self._block.n_steps:
                for block in self._take():
                    self._write_block(block)
            self._write_end()
        except BaseException as error:  # The rollout's thread raises the error, whatever it is.
            with self._changed:
                self._error = error
                self._waiting = []
                self._changed.notify_all()
        finally:
            self._file.close()

    def _new_block(self) -> Block:
        return Block(self._layout, self._steps_per_chunk)

    def _take(self) -> list[Block]:
        """Return the blocks that came within the interval."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ending is not None or len(self._waiting) >= _MAX_WAITING, timeout=INTERVAL
            )
            blocks, self._waiting = self._waiting, []
            if self._block.n_steps:
                blocks.append(self._block)
                self._block = self._new_block()
            self._changed.notify_all()
        return blocks

    def _write_block(self, block: Block) -> None:
        encoded = self._encoder.encode(block, self._chain.count)
        if encoded is None:
            return
        if len(encoded.messages.data) > MAX_RECORD // 2:
            raise RecordingError(
                f"one step of all environments takes {len(encoded.messages.data)} bytes, more than readers take; "
                "record fewer environments side by side, or smaller images"
            )
        chunk = self._container.chunk(encoded.messages, *self._compress(encoded.messages))
        self._chain.add_bytes(chunk)
        links = self._chain.extend(encoded.messages)
        entries = {"links": links.hex(), "episodes": spans_text(encoded.episodes)}
        self._write(chunk + self._metadata("chunk", entries))

    def _compress(self, messages: Messages) -> tuple[str, bytes]:
        compressed = self._compressor.compress(messages.data)
        if len(messages.data) > MAX_RATIO * len(compressed):
            return "", bytes(messages.data)
        return "zstd", compressed

    def _write_end(self) -> None:
        entries = {"episodes": str(self._encoder.n_episodes), "ending": str(self._ending)}
        if self._sign_key is not None:
            entries["public_key"] = public_bytes(self._sign_key.public_key()).hex()
            signed = record_text("seal", self._chain.state() | entries)
            entries["signature"] = self._sign_key.sign(signed).hex()
        self._write(self._metadata("seal", entries) + self._container.end())
        os.fsync(self._file.fileno())

    def _metadata(self, name: str, entries: dict[str, str]) -> bytes:
        record = self._container.metadata(name, with_checksum(name, self._chain.state() | entries))
        self._chain.add_bytes(record)
        return record

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError:
            # The disk is full, and the half record is removed.
            self._file.truncate(self._size)
            raise
        self._size += len(data)
