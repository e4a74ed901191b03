"""Training curves that continue those of a killed training: progress.csv and TensorBoard's events."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    filter_excluded_keys,
)

from ncp_rl.extras import require

_ITERATIONS = "time/iterations"


class ProgressCsv(CSVOutputFormat):
    """A CSV log that appends to its file; a new column never leaves half a file behind."""

    def __init__(self, path: Path, *, iterations_before: int = 0) -> None:
        """Continue the file, or begin it.

        Args:
            path: Path of the file.
            iterations_before: Number of rollouts of earlier processes, which a resumed training does not count.
        """
        path.touch()
        self.path, self.iterations_before = path, iterations_before
        self.file = path.open("r+", newline="")
        self.separator, self.quotechar = ",", '"'
        header = self.file.readline().strip()
        self.keys = header.split(",") if header else []
        self.file.seek(0, os.SEEK_END)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write a line; see upstream."""
        if _ITERATIONS in key_values:
            key_values = key_values | {_ITERATIONS: key_values[_ITERATIONS] + self.iterations_before}
        if filter_excluded_keys(key_values, key_excluded, "csv").keys() <= set(self.keys):
            super().write(key_values, key_excluded, step)
            return
        # For a new column, upstream rewrites all lines in place; here it does so in a copy.
        copy = self.path.with_name(f"{self.path.name}.partial")
        copy.write_bytes(self.path.read_bytes())
        self.file.close()
        self.file = copy.open("r+", newline="")
        self.file.seek(0, os.SEEK_END)
        super().write(key_values, key_excluded, step)
        copy.replace(self.path)


class Events(TensorBoardOutputFormat):
    """TensorBoard events that replace those that an earlier process wrote from a step on."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Begin a file beside those of earlier processes, whose events from `first_step` on TensorBoard then hides.

        Raises:
            ncp_rl.extras.MissingExtraError: TensorBoard is not installed.
        """
        require("cli", "tensorboard", by="The training curve of a run")
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step)
        self._is_closed = False


def make_logger(folder: Path, *, steps_before: int = 0, iterations_before: int = 0) -> Logger:
    """Make the logger of a run, after this many steps and rollouts of earlier processes."""
    outputs: list[KVWriter] = [
        ProgressCsv(folder / "progress.csv", iterations_before=iterations_before),
        Events(folder, first_step=steps_before + 1),
    ]
    return Logger(str(folder), outputs)
