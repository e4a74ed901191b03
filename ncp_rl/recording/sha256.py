"""SHA-256 (FIPS 180-4) over the links of a hash chain, compiled.

hashlib keeps the GIL while it digests short data, so that digesting each message would stop the rollout. Here one call
links all messages of a chunk beside the rollout. Verification uses hashlib and so checks every link made here.
"""

# mypy: allow-untyped-calls, allow-untyped-decorators, no-warn-return-any

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ncp_rl.jit import inlined, kernel

DIGEST_BYTES = 32
_BLOCK_BYTES = 64

_PRIMES = [n for n in range(2, 312) if all(n % d for d in range(2, n))]

# The first 32 fractional bits of square roots of the first eight primes, and of cube roots of the first 64.
_START = np.array([math.isqrt(prime << 64) % 2**32 for prime in _PRIMES[:8]], np.uint32)
_ROUNDS = np.array([int(prime ** (1 / 3) * 2**32) % 2**32 for prime in _PRIMES], np.uint32)


def sha256_links(head: bytes, data: memoryview, offsets: npt.NDArray[np.int64]) -> bytes:
    """Compute links of a chain, side by side, each the SHA-256 of the link before it and a part of `data`.

    Args:
        head: Link before the first part.
        data: The parts, side by side.
        offsets: (M + 1,), the start of each part, and the end of the last.
    """
    links = np.empty((len(offsets) - 1, DIGEST_BYTES), np.uint8)
    longest = max(len(head), DIGEST_BYTES) + int(np.diff(offsets).max(initial=0))
    padded = np.empty(longest + 2 * _BLOCK_BYTES, np.uint8)
    _link(np.frombuffer(head, np.uint8), np.frombuffer(data, np.uint8), offsets, padded, links)
    return links.tobytes()


@kernel
def _link(head: Any, data: Any, offsets: Any, padded: Any, links: Any) -> None:
    schedule, state = np.empty(64, np.uint32), np.empty(8, np.uint32)
    n_head = len(head)
    padded[:n_head] = head
    for k in range(len(links)):
        size = n_head + offsets[k + 1] - offsets[k]
        padded[n_head:size] = data[offsets[k] : offsets[k + 1]]
        stop = _pad(padded, size)
        state[:] = _START
        for at in range(0, stop, 64):
            _compress(padded, at, schedule, state)
        for i in range(DIGEST_BYTES):
            links[k, i] = state[i // 4] >> np.uint32(24 - 8 * (i % 4))
        n_head = DIGEST_BYTES
        padded[:n_head] = links[k]


@inlined
def _pad(padded: Any, size: int) -> int:
    """Pad to whole blocks by a one, zeros and the number of bits (section 5.1.1); return the end."""
    stop = (size + 8) // 64 * 64 + 64
    padded[size] = 0x80
    padded[size + 1 : stop] = 0
    for i in range(8):
        padded[stop - 1 - i] = (8 * size) >> (8 * i) & 0xFF
    return stop


@inlined
def _compress(padded: Any, at: int, w: Any, state: Any) -> None:
    """Update the state by the block at `at` (section 6.2.2)."""
    # Sums of uint32 are uint64 in Numba.
    u32 = np.uint32
    for t in range(16):
        i = at + 4 * t
        w[t] = u32(padded[i]) << u32(24) | u32(padded[i + 1]) << u32(16) | u32(padded[i + 2]) << u32(8) | padded[i + 3]
    for t in range(16, 64):
        sigma_0 = _rotate(w[t - 15], 7) ^ _rotate(w[t - 15], 18) ^ w[t - 15] >> u32(3)
        sigma_1 = _rotate(w[t - 2], 17) ^ _rotate(w[t - 2], 19) ^ w[t - 2] >> u32(10)
        w[t] = sigma_1 + w[t - 7] + sigma_0 + w[t - 16]
    a, b, c, d, e, f, g, h = state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7]
    for t in range(64):
        sum_1 = _rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25)
        one = u32(h + sum_1 + (e & f ^ ~e & g) + _ROUNDS[t] + w[t])
        sum_0 = _rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)
        two = u32(sum_0 + (a & b ^ a & c ^ b & c))
        a, b, c, d, e, f, g, h = u32(one + two), a, b, c, u32(d + one), e, f, g
    for i, value in enumerate((a, b, c, d, e, f, g, h)):
        state[i] += value


@inlined
def _rotate(x: Any, n: int) -> Any:
    return np.uint32(x >> np.uint32(n) | x << np.uint32(32 - n))
