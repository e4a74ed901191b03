"""A callback that writes down each rollout of a trial, and lets two trials meet a sudden end there, for tests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

#: Environment steps after which it happens; there is a checkpoint at each rollout's start.
STEP = 256
#: Trials whose worker kills itself, and which waits for whoever kills the driver; by the ends of their names.
KILLED, WAITING = "__000__1", "__002__0"


def rollouts_of(folder: Path) -> Path:
    """Where a trial's rollouts are written down: outside of its run folder, so that they outlive that."""
    return folder.parents[1] / f"rollouts{folder.name}.txt"


class Counting(BaseCallback):
    """Appends the steps so far, and its process, to a file at each rollout's start."""

    def _on_rollout_start(self) -> None:
        folder = Path(self.logger.dir or "")
        with rollouts_of(folder).open("a") as file:
            file.write(f"{self.num_timesteps} {os.getpid()}\n")
        if self.num_timesteps == STEP and folder.name.endswith((KILLED, WAITING)):
            self.meet_end(folder)

    def meet_end(self, folder: Path) -> None:
        """Once, whatever becomes of the folder."""
        met = folder.parents[1] / f"met{folder.name}"
        if met.exists():
            return
        met.touch()
        if folder.name.endswith(KILLED):
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(0.1)

    def _on_step(self) -> bool:
        return True
