"""Observed images in recordings: what is read is what was seen, and replay looks at it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from ncp_rl import CnnNCPPolicy
from ncp_rl.recording import Recording, RecordingError, record_rollouts, recorder, replay
from ncp_rl.recording.pictures import as_pictures, from_picture
from ncp_rl.teach import from_recordings
from tests.random_env import TIMED, box
from tests.recording.recordings import random_model

IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)


def recorded(path: Path, space: spaces.Space[Any], **kwargs: Any) -> tuple[Any, Any, Recording]:
    policy: dict[str, Any] = dict(policy=CnnNCPPolicy) if isinstance(space, spaces.Box) else {}
    model, venv = random_model(space, box(2), **policy)
    record_rollouts(model, venv, path, n_episodes=3, progress_bar=False, **kwargs)
    return model, venv, Recording.open(path)


@pytest.mark.parametrize("space", [IMAGE, TIMED], ids=["image", "image among others"])
def test_replay_goes_from_pixels_to_action(space: spaces.Space[Any], tmp_path: Path) -> None:
    model, venv, recording = recorded(tmp_path / "a.mcap", space, images=True)
    found = replay(recording, model, venv)
    assert found.passed and found.same_platform and not found.notes
    assert {"sensory inputs", "policy's action means", "values"} <= {c.what for c in found.comparisons}
    assert all(comparison.bitwise for comparison in found.comparisons)
    shown = from_recordings([recording.path])
    assert [len(d) for d in shown] == [len(episode) for episode in recording]


def test_a_pixel_that_was_not_seen_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def retouched(frames: Any) -> Any:
        pictures = as_pictures(frames).copy()
        pictures[:, 5:9, 5:9] ^= 255
        return pictures

    monkeypatch.setattr(recorder, "as_pictures", retouched)
    model, _, recording = recorded(tmp_path / "a.mcap", IMAGE, images=True)
    found = replay(recording, model)
    assert not found.passed and found.first is not None and found.first.step == 0
    assert found.first.name.startswith("feature_")


def test_without_images_replay_says_what_it_leaves_out(tmp_path: Path) -> None:
    model, venv, recording = recorded(tmp_path / "a.mcap", IMAGE)
    found = replay(recording, model, venv)
    assert found.passed and "images were observed and none recorded (record --images)" in str(found)
    assert recording.observations(recording[0]) is None
    with pytest.raises(RecordingError, match="were not recorded; record with images=True"):
        from_recordings([recording.path])


def test_images_of_some_steps_alone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, recording = recorded(tmp_path / "a.mcap", IMAGE, images=True)
    longest = max(recording, key=len)
    images = list(recording.images(longest.index))
    monkeypatch.setattr(Recording, "images", lambda *_: iter(images[1:]))
    with pytest.raises(
        RecordingError,
        match=f"an image of the observation 'image' in .* {len(longest)} steps, got {len(images) - 1} images",
    ):
        recording.observations(longest)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3, 1), (4, 7, 3), (5, 7, 1)])
def test_pictures_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RecordingError, match="image"):
        from_picture(np.zeros((5, 7, 3), np.uint8), shape)
