"""Recordings outlive their programs: killed, out of disk space, or not allowed to write."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ncp_rl.recording import Recording, RecordingError, generate_key, record_rollouts, verify
from tests.recording.killed_process import NOTE
from tests.recording.recordings import pendulum

KILLS = 25


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """The file opens, loses less than a second of steps, and what is there is intact."""
    rng = random.Random(0)
    moments = [f"{rng.uniform(0, 1.2 if i % 4 == 0 else 0.4):.4f}" for i in range(KILLS)]
    halves = [subprocess.Popen(command(tmp_path, i, moments[i::2])) for i in range(2)]
    assert [half.wait(timeout=200) for half in halves] == [0, 0]
    killed = sorted(tmp_path.glob("*/*.mcap"))
    assert len(killed) == KILLS
    lengths = []
    for path in killed:
        notes = [note for note in NOTE.iter_unpack(path.with_suffix(".steps").read_bytes()) if note[1]]
        end = float(path.with_suffix(".killed").read_text())
        before = max((count for time, count in notes if time < end - 1), default=0)
        recording, verification = Recording.open(path), verify(path)
        lengths.append(sum(recording.lengths))
        assert lengths[-1] >= before
        assert recording.ending is None and verification.status == "unfinished", verification
        assert sum(len(episode) for episode in recording) == lengths[-1] <= (notes[-1][1] if notes else 0)
    assert max(lengths) > 0


def command(folder: Path, part: int, moments: list[str]) -> list[str]:
    (folder / f"{part}").mkdir()
    return [sys.executable, "-m", "tests.recording.killed_process", str(folder / f"{part}"), *moments]


FULL = """
import resource, signal, sys
from pathlib import Path
from ncp_rl.recording import Recording, RecordingError, record_rollouts, verify
from tests.recording.recordings import trained_pendulum

model, venv = trained_pendulum()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
path = Path(sys.argv[1])
try:
    record_rollouts(model, venv, path, n_episodes=300, progress_bar=False)
except RecordingError as error:
    assert "cannot be continued" in str(error) and "can be read" in str(error), error
    verification = verify(path)
    assert verification.status == "unfinished" and verification.n_messages > 100, verification
    assert "are part of a record" not in verification.detail
    assert sum(len(episode) for episode in Recording.open(path)) > 30
    print("told")
"""


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path: Path) -> None:
    """The limit on file sizes gives the same errors as a full disk does, at the same place."""
    arguments = [sys.executable, "-c", FULL, str(tmp_path / "full.mcap")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "told", done.stderr


BEGUN = """
import resource, signal, sys
from pathlib import Path
from ncp_rl.recording import Recording, RecordingError, generate_key, record_rollouts, write_parquet
from tests.recording.recordings import trained_pendulum

model, venv = trained_pendulum()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
record_rollouts(model, venv, folder / "whole.mcap", n_episodes=4, progress_bar=False)
recording = Recording.open(folder / "whole.mcap")
writers = {
    "r.mcap": lambda path: record_rollouts(model, venv, path, n_episodes=4, progress_bar=False),
    "k.pem": generate_key,
    "t.parquet": lambda path: write_parquet(recording, path),
}
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (0, 50):
    for name, write in writers.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        try:
            write(folder / name)
        except RecordingError as error:
            assert "cannot be written" in str(error), error
        else:
            raise AssertionError(name)
        assert [path.name for path in folder.iterdir()] == ["whole.mcap"]
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
for name, write in writers.items():
    write(folder / name)
print(len(Recording.open(folder / "r.mcap")))
"""


def test_what_cannot_be_begun_leaves_no_file_in_the_way_of_the_next_attempt(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BEGUN, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "4", done.stderr


def test_half_a_pair_of_keys_is_none(tmp_path: Path) -> None:
    (tmp_path / "k.pub.pem").touch()
    with pytest.raises(RecordingError, match=r"k\.pub\.pem exists"):
        generate_key(tmp_path / "k.pem")
    assert not (tmp_path / "k.pem").exists()


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    model, venv = pendulum(1)
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "r.mcap", tmp_path / ("n" * 300), Path("/proc/none/r.mcap")]
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked" / "r.mcap")
    for path in places:
        with pytest.raises(RecordingError, match=r"cannot be created|exists"):
            record_rollouts(model, venv, path, n_episodes=1, progress_bar=False)
