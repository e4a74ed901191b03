"""Files by those who mean harm, or by accident: a clear error or a damaged verdict, in little time and memory."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.records import Chunk, Metadata

from ncp_rl.recording import MemoryLimitError, Recording, RecordingError, record_rollouts, replay, verify
from ncp_rl.recording.container import MAGIC, _bytes
from ncp_rl.recording.layout import Layout
from ncp_rl.recording.manifest import read_space
from ncp_rl.recording.records import walk_records
from tests.random_env import box
from tests.recording.recordings import pendulum_recording, random_model
from tests.recording.test_verify import careful


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    folder = tmp_path_factory.mktemp("hostile")
    pendulum_recording(folder / "good.mcap")
    return (folder / "good.mcap").read_bytes(), folder / "hostile.mcap"


def read(path: Path, data: bytes) -> None:
    """Whatever one does with a recording; errors of ours alone."""
    path.write_bytes(data)
    assert verify(path).status in ("intact", "unfinished", "damaged")
    try:
        recording = Recording.open(path)
        for index in range(min(len(recording), 2)):
            recording[index]
            list(recording.images(index))
    except RecordingError as error:
        assert str(error)


def spliced(good: bytes, opcode: int, replacement: bytes) -> bytes:
    """The recording with its first record of a kind replaced."""
    record = next(r for r in walk_records(io.BytesIO(good), len(good)) if r.opcode == opcode)
    return good[: record.offset] + replacement + good[record.offset + record.length :]


def chunk(data: bytes, size: int, compression: str = "zstd") -> bytes:
    return _bytes([Chunk(compression, data, 1, 1, 0, size)])


def hostile(good: bytes) -> dict[str, bytes]:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(2**28))
    tiny = struct.pack("<BQHIQQ", 5, 22, 2, 0, 0, 0)
    nested = struct.pack("<BQHIQQ", 5, 22 + 200_000, 3, 0, 0, 0) + b"[" * 200_000
    metadata = Metadata("chunk", {"episodes": "[" * 100_000, "links": "00"})
    many = Metadata("chunk", {"episodes": "[[0,0,0,999999999999]]", "links": "00"})
    return {
        "empty": b"",
        "magic alone": MAGIC,
        "magic twice": MAGIC * 2,
        "random": np.random.default_rng(0).bytes(5000),
        "random behind magic": MAGIC + np.random.default_rng(1).bytes(5000),
        "huge record": MAGIC + struct.pack("<BQ", 6, 2**63) + bytes(100),
        "huge record inside a large file": MAGIC + struct.pack("<BQ", 6, 2**64 - 1) + bytes(2**20),
        "huge string": MAGIC + struct.pack("<BQI", 12, 20, 2**32 - 1) + bytes(16),
        "bomb that tells": spliced(good, 6, chunk(bomb, 2**28)),
        "bomb that lies": spliced(good, 6, chunk(bomb, 100)),
        "window of gigabytes": spliced(good, 6, chunk(b"\x28\xb5\x2f\xfd\x00\xff" + bytes(50), 1000)),
        "another compression": spliced(good, 6, chunk(b"abc", 3, "lz4")),
        "not compressed at all": spliced(good, 6, chunk(b"abc", 3)),
        "tiny messages": spliced(good, 6, chunk(tiny * 5000, len(tiny) * 5000, "")),
        "deeply nested message": spliced(good, 6, chunk(nested, len(nested), "")),
        "deeply nested list": spliced(good, 12, _bytes([metadata])) + good[-8:],
        "endless episode": spliced(good, 15, _bytes([many])),
        "manifest of nothing": good.replace(b'"format": "ncp_rl recording 1"', b'"format": "nothing to be seen"'),
        "layout of giants": good.replace(b'"n_sensory": 16', b'"n_sensory": 9' + b"9" * 0 + b"9"),
    }


def test_hostile_files(good: tuple[bytes, Path]) -> None:
    data, path = good
    contents = hostile(data)
    tracemalloc.start()
    try:
        for name, content in contents.items():
            assert content != data, name
            path.write_bytes(content)
            verification = verify(path)
            assert verification.status != "intact" and verification.detail, name
            read(path, content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**27


MEMORY = """
import json, resource, sys
from pathlib import Path
from ncp_rl.recording import Recording, RecordingError, record_rollouts, replay, verify

def kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

folder, before, found = Path(sys.argv[1]), kilobytes(), {}
for name in ("sparse", "zeros", "environments", "listed", "chunk"):
    for ask in (verify, replay if name == "environments" else Recording.open):
        try:
            said = str(ask(folder / f"{name}.mcap"))
        except RecordingError as error:
            said = type(error).__name__ + ": " + str(error)
        found[f"{name} {ask.__name__}"] = said
print(json.dumps(found | {"megabytes": (kilobytes() - before) / 1024}))
"""


def test_memory_stays_bounded(good: tuple[bytes, Path]) -> None:
    """A sparse file, half a recording and zeros, a million environments and episodes, and a chunk that fills memory."""
    data, path = good
    folder = path.parent
    (folder / "sparse.mcap").write_bytes(data[: len(data) // 3])
    os.truncate(folder / "sparse.mcap", 400_000_000)
    (folder / "zeros.mcap").write_bytes(data[: len(data) // 2] + bytes(60_000_000))

    def environments(manifest: bytes) -> bytes:
        return manifest.replace(b'"n_envs": 3', b'"n_envs": 1048575')

    (folder / "environments.mcap").write_bytes(careful(data, rechained=True, manifest=environments))
    listed = Metadata("chunk", {"episodes": json.dumps([[i, 0, 0, 1] for i in range(500_000)]), "links": "00"})
    first_list = next(r for r in walk_records(io.BytesIO(data), len(data)) if r.opcode == 6).end
    (folder / "listed.mcap").write_bytes(data[:first_list] + 3 * _bytes([listed]) + data[first_list:])
    (folder / "chunk.mcap").write_bytes(spliced(data, 6, chunk(tiny_messages(2**25), 2**25, "")))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, timeout=300, check=True
    )
    found = json.loads(done.stdout)
    assert found.pop("megabytes") < 512
    assert found["environments replay"].startswith("MemoryLimitError: To replay 1048575 environments")
    assert found["listed open"].startswith("MemoryLimitError: The list of episodes")
    assert found["zeros verify"].startswith(("damaged", "unfinished"))
    assert found["sparse verify"].startswith(("damaged", "unfinished"))


def tiny_messages(size: int) -> bytes:
    """Messages without text, of which as many as can be fit in."""
    message = struct.pack("<BQHIQQ", 5, 22, 2, 0, 0, 0)
    return (message * (size // len(message) + 1))[:size]


def test_the_limit_of_memory_can_be_set(good: tuple[bytes, Path]) -> None:
    data, path = good
    path.write_bytes(data)
    with pytest.raises(MemoryLimitError, match="max_memory = 100,000; give a larger max_memory"):
        verify(path, max_memory=100_000)
    with pytest.raises(MemoryLimitError, match="max_memory = 30,000"):
        Recording.open(path, max_memory=30_000)
    recording = Recording.open(path, max_memory=400_000)
    with pytest.raises(MemoryLimitError, match=r"Episode 0 of 200 steps|A chunk|The record"):
        recording[0]
    assert len(Recording.open(path, max_memory=2**26)[0]) == 200


def test_a_recording_of_large_pictures_is_read_within_the_limit(tmp_path: Path) -> None:
    """Pictures fill a block sooner than steps do."""
    model, venv = random_model(box(2), box(1), n_envs=4, env_kwargs=dict(render_mode="rgb_array"))
    picture = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    venv.get_images = lambda: [picture] * 4  # type: ignore[method-assign]
    path = record_rollouts(model, venv, tmp_path / "r.mcap", n_episodes=8, images=True, progress_bar=False)
    recording = Recording.open(path, max_memory=2**28)
    for index in (0, 7):
        for image in recording.images(index):
            np.testing.assert_array_equal(image.pixels, picture)


def test_episodes_filled_with_nan_come_back(good: tuple[bytes, Path], tmp_path: Path) -> None:
    """Their text is not JSON's NaN, which is refused."""
    _, path = good
    assert path.parent.joinpath("good.mcap").exists()
    recording = Recording.open(path.parent / "good.mcap")
    episode = recording[0]
    assert np.isfinite(episode.potentials).all()
    data = path.parent.joinpath("good.mcap").read_bytes()
    text = b'{"env":0,"episode":0,"step":0,"observation":[NaN,NaN]'
    message = struct.pack("<BQHIQQ", 5, 22 + len(text), 2, 0, 0, 0) + text
    path.write_bytes(spliced(data, 6, chunk(message, len(message), "")))
    with pytest.raises(RecordingError):
        Recording.open(path)[0]
    with pytest.raises(RecordingError):
        replay(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutations(good: tuple[bytes, Path], data: Any) -> None:
    """Any few bytes of a recording replaced, left out or put in, and the file cut anywhere."""
    content, path = good
    at = data.draw(st.integers(0, len(content)))
    removed = data.draw(st.sampled_from([0, 0, 1, 8, 100, 10**6]))
    inserted = data.draw(st.binary(max_size=40) | st.just(b"\xff" * 8))
    read(path, content[:at] + inserted + content[at + removed :])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 15), st.binary(max_size=60), st.none() | st.integers(0, 2**64 - 1)), max_size=8)
)
def test_records_of_any_content(good: tuple[bytes, Path], records: list[tuple[int, bytes, int | None]]) -> None:
    content = b"".join(struct.pack("<BQ", op, len(body) if n is None else n) + body for op, body, n in records)
    read(good[1], MAGIC + content + MAGIC)


def test_manifests_of_any_form(good: tuple[bytes, Path]) -> None:
    layouts: list[dict[str, Any]] = [{}, {"observed": 3}, {"observed": [{}]}, {"observed": [], "n_envs": -1}]
    for value in layouts:
        with pytest.raises(RecordingError):
            Layout.from_dict(value)
    for described in (
        None,
        {},
        {"type": "Tuple"},
        {"type": "Box", "shape": [-1]},
        json.loads('{"type":"Discrete","n":-2}'),
    ):
        with pytest.raises(RecordingError):
            read_space(described)
