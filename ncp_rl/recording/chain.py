"""The hash chain over a recording's messages, and Ed25519 signatures of its end.

    h_0 = SHA256("ncp_rl recording 1" || SHA256(start of the file: schemas, channels, manifest, circuit))
    h_k = SHA256(h_{k-1} || record of message k: channel, number, times and data)

After every chunk a metadata record holds h_k, the first four bytes of the links since the chunk before (to find the
message that was changed), the SHA-256 of all bytes before it, and its own. The last such record, the seal, is signed
if a key is given.

Without a signature the chain shows damage, and edits by those who do not recompute it; anyone who rewrites the whole
file can compute a new chain too. With a signature and the signer's public key, that forgery shows as well. No chain
shows that a recording was never made. A file that was cut before the seal counts as unfinished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ncp_rl.recording.encode import Integers, Messages
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.files import new_file
from ncp_rl.recording.sha256 import DIGEST_BYTES

_CHAIN_DOMAIN = b"ncp_rl recording 1 chain\0"
_RECORD_DOMAIN = b"ncp_rl recording 1 record\0"

#: Bytes of each link that the file keeps.
LINK_BYTES = 4


#: A function that computes links of a chain from the head before them and the messages' bytes and offsets.
Link = Callable[[bytes, memoryview, Integers], bytes]


def hashlib_links(head: bytes, data: memoryview, offsets: Integers) -> bytes:
    """Compute links of a chain by the standard library; `verify` so checks those that `sha256_links` computed."""
    links = []
    for start, stop in pairwise(offsets.tolist()):
        head = sha256(head + data[start:stop]).digest()
        links.append(head)
    return b"".join(links)


class Chain:
    """The running head of the chain and the running digest of the file."""

    def __init__(self, beginning: bytes, link: Link = hashlib_links) -> None:
        """Start a chain with the file's bytes before the first chunk."""
        self.head = sha256(_CHAIN_DOMAIN + sha256(beginning).digest()).digest()
        self.count = 0
        self._file = sha256(beginning)
        self._link = link

    def extend(self, messages: Messages) -> bytes:
        """Add messages to the chain and return the first `LINK_BYTES` of each of their links, side by side."""
        links = self._link(self.head, messages.data, messages.offsets)
        self.head = links[-DIGEST_BYTES:] or self.head
        self.count += len(messages)
        return np.frombuffer(links, np.uint8).reshape(-1, DIGEST_BYTES)[:, :LINK_BYTES].tobytes()

    def add_bytes(self, data: bytes) -> None:
        """Add bytes of the file to its digest."""
        self._file.update(data)

    def state(self) -> dict[str, str]:
        """Return the entries of every chain record: number of messages, head, and SHA-256 of the file so far."""
        return {"messages": str(self.count), "head": self.head.hex(), "digest": self._file.copy().hexdigest()}


def with_checksum(name: str, entries: dict[str, str]) -> dict[str, str]:
    """Return the entries of a chain record with their SHA-256."""
    return entries | {"sha256": sha256(record_text(name, entries)).hexdigest()}


def record_text(name: str, entries: dict[str, str]) -> bytes:
    """Return the entries of a chain record as one text, which checksums cover and signatures sign."""
    return _RECORD_DOMAIN + json.dumps([name, entries], sort_keys=True).encode()


def spans_text(spans: Sequence[Sequence[int]]) -> str:
    """Return episode, environment, first step and steps of each of a chunk's episodes, as a chain record holds them."""
    return json.dumps(sorted(map(list, spans)), separators=(",", ":"))


def generate_key(path: Path) -> Path:
    """Make a new signing key: `path` (readable by the owner alone) and its public key beside it, as PEM.

    Returns:
        The path of the public key, `path` with the suffix .pub.pem.

    Raises:
        RecordingError: One of the files exists or cannot be written.
    """
    key, public = Ed25519PrivateKey.generate(), path.with_suffix(".pub.pem")
    # If the second file fails, the first is removed: a private key without its public key is useless.
    with (
        new_file(path, "The key", permissions=0o600) as secret,
        secret,
        new_file(public, "The key", permissions=0o644) as open_to_all,
    ):
        secret.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with open_to_all:
            open_to_all.write(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read the signing key of a PEM file without password.

    Raises:
        RecordingError: The file cannot be read, or does not hold such a key.
    """
    key = _read_key(path, lambda data: load_pem_private_key(data, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise RecordingError(f"{path} must hold an Ed25519 private key, got {type(key).__name__}.")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read the public key of a PEM file.

    Raises:
        RecordingError: The file cannot be read, or does not hold such a key.
    """
    key = _read_key(path, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise RecordingError(f"{path} must hold an Ed25519 public key, got {type(key).__name__}.")
    return key


def public_bytes(key: Ed25519PublicKey) -> bytes:
    """Return the 32 bytes of a public key."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def is_signed_by(public_key: bytes, signature: bytes, text: bytes) -> bool:
    """Return whether `signature` signs `text` by the key whose public key has these 32 bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def _read_key(path: Path, load: Any) -> object:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise RecordingError(f"The key file {path} cannot be read: {error}.") from error
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise RecordingError(f"{path} must be an Ed25519 key as PEM, without password: {error}.") from error
