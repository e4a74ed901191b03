"""Recorders that are killed: forks one after the other, each recording until the moment that was drawn for it.

python killed_process.py FOLDER SECONDS...

Each fork writes FOLDER/N.mcap and notes, step by step, into FOLDER/N.steps: the time and the steps so far.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path

from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.circuit import Circuit
from ncp_rl.recording import recorder
from ncp_rl.recording.manifest import make_layout, make_manifest, ncp_policy
from ncp_rl.recording.writer import RecordingWriter
from tests.recording.recordings import trained_pendulum

NOTE = struct.Struct("<dq")
ROOM = 30_000


def record(model: RecurrentPPO, venv: VecEnv, folder: Path, number: int) -> None:
    """Record until killed."""
    policy = ncp_policy(model)
    layout = make_layout(policy, venv)
    with (folder / f"{number}.steps").open("w+b") as file:
        file.truncate(ROOM * NOTE.size)
        notes = mmap.mmap(file.fileno(), ROOM * NOTE.size)
        manifest = make_manifest(model, venv, layout, kind="rollouts")
        writer = RecordingWriter(folder / f"{number}.mcap", Circuit.from_policy(policy), layout, manifest)
        (folder / f"{number}.ready").touch()
        for count, step in enumerate(recorder._rollout(policy, venv, None, deterministic=False)):
            writer.append(step)
            NOTE.pack_into(notes, count * NOTE.size, time.monotonic(), 3 * (count + 1))


def main(folder: Path, moments: list[float]) -> None:
    """Fork, wait, kill."""
    model, venv = trained_pendulum()
    for number, moment in enumerate(moments):
        child = os.fork()
        if child == 0:
            record(model, venv, folder, number)
        while not (folder / f"{number}.ready").exists():
            time.sleep(0.001)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        (folder / f"{number}.killed").write_text(str(time.monotonic()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [float(moment) for moment in sys.argv[2:]])
