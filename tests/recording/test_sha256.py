"""The compiled SHA-256 is that of the standard."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pytest

from ncp_rl.recording.chain import hashlib_links
from ncp_rl.recording.sha256 import DIGEST_BYTES, sha256_links


def offsets(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])


def test_the_vector_of_nist() -> None:
    """https://csrc.nist.gov/projects/cryptographic-standards-and-guidelines/example-values, one block."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_links(b"", memoryview(b"abc"), np.array([0, 3])).hex() == expected


def test_every_short_length() -> None:
    for length in range(301):
        data = np.random.default_rng(length).bytes(length)
        assert sha256_links(b"", memoryview(data), np.array([0, length])) == sha256(data).digest(), length
        assert sha256_links(data, memoryview(b""), np.array([0, 0])) == sha256(data).digest(), length


@pytest.mark.parametrize("seed", range(5))
def test_chains_of_messages_of_any_length(seed: int) -> None:
    rng = np.random.default_rng(seed)
    at = offsets(rng.integers(0, [300, 3000, 30_000, 300, 3000][seed], 100))
    head, data = rng.bytes(DIGEST_BYTES), memoryview(rng.bytes(int(at[-1])))
    assert sha256_links(head, data, at) == hashlib_links(head, data, at)


def test_no_messages() -> None:
    assert sha256_links(bytes(DIGEST_BYTES), memoryview(b""), np.array([0])) == b""
