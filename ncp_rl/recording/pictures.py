"""Observed images as pictures of a recording, and back, without loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ncp_rl.recording.errors import RecordingError

Array = npt.NDArray[Any]


def as_pictures(frames: Array) -> Array:
    """Return images (N, H, W, C) or (N, C, H, W) as pictures (N, H, W, 3), or (N, C H, W) where C is not 3."""
    if _first(frames.shape[1:]):
        frames = frames.transpose(0, 2, 3, 1)
    if frames.shape[-1] == 3:
        return np.ascontiguousarray(frames)
    return np.ascontiguousarray(np.concatenate(np.moveaxis(frames, -1, 0), axis=1))


def from_picture(pixels: Array, shape: tuple[int, ...]) -> Array:
    """Return an observed image of `shape`, (H, W, C) or (C, H, W), from its picture.

    Raises:
        RecordingError: The picture has another size.
    """
    if len(shape) != 3:
        raise RecordingError(f"An observed image must have rows, columns and channels, got the shape {shape}.")
    first = _first(shape)
    n_channels, height, width = shape if first else (shape[2], *shape[:2])
    wanted = (height, width, 3) if n_channels == 3 else (n_channels * height, width)
    if pixels.shape != wanted:
        raise RecordingError(f"A picture of an observed image {shape} must be {wanted}, got {pixels.shape}.")
    channels = np.moveaxis(pixels, -1, 0) if n_channels == 3 else pixels.reshape(n_channels, height, width)
    return channels if first else np.moveaxis(channels, 0, -1)


def _first(shape: tuple[int, ...]) -> bool:
    """Return whether channels come first, by Stable-Baselines3's rule: they are fewer than rows and columns."""
    return int(np.argmin(shape)) == 0
