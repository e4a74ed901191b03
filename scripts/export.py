"""Export a trained policy to C99, NumPy or ONNX, and prove that the export does what was recorded.

python scripts/export.py c runs/mine --out controller
python scripts/export.py numpy runs/mine --out controller
python scripts/export.py onnx runs/mine --out controller
python scripts/export.py monitor flight.mcap --out controller
python scripts/export.py verify controller flight.mcap
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import torch
import tyro

from ncp_rl.audit import fit_box, fit_conformal
from ncp_rl.export import (
    ExportError,
    monitor_to_c,
    monitor_to_json,
    monitor_to_onnx,
    to_c,
    to_numpy,
    to_onnx,
    verify_export,
    write_runtime,
)
from ncp_rl.recording import Recording, RecordingError
from ncp_rl.runs import RunError, load_run


@dataclass(frozen=True)
class _Export:
    """What all exports are told."""

    run_folder: tyro.conf.Positional[Path]
    """Run folder, as scripts/train.py makes it."""
    out: Path
    """Folder for the files."""
    which: Literal["best", "last"] = "best"
    """The best model by periodic evaluation, or the last."""
    min_seconds: float | None = None
    """The shortest step that the certified ranges shall hold for. Default: a tenth of the policy's step."""


@dataclass(frozen=True)
class C(_Export):
    """Write controller.h, controller.c, main.c and, for Python, controller.json and controller.py."""

    def run(self) -> int:
        """Export, say where."""
        model, venv = load_run(self.run_folder, which=self.which, device="cpu")
        print(to_c(model, self.out, env=venv, min_seconds=self.min_seconds) / "controller.c")
        return 0


@dataclass(frozen=True)
class Numpy(_Export):
    """Write controller.json and controller.py, which needs NumPy alone."""

    def run(self) -> int:
        """Export, say where."""
        model, venv = load_run(self.run_folder, which=self.which, device="cpu")
        print(to_numpy(model, self.out, env=venv, min_seconds=self.min_seconds) / "controller.json")
        return 0


@dataclass(frozen=True)
class Onnx(_Export):
    """Write controller.onnx, for images and encoders of one's own too, and controller.py, which runs it."""

    def run(self) -> int:
        """Export, say where."""
        model, venv = load_run(self.run_folder, which=self.which, device="cpu")
        path = to_onnx(model, self.out / "controller.onnx", env=venv, min_seconds=self.min_seconds)
        write_runtime(self.out)
        print(path)
        return 0


@dataclass(frozen=True)
class Monitor:
    """Fit an envelope around the neurons of recorded clean episodes; write it as C, JSON or ONNX."""

    file: tyro.conf.Positional[Path]
    """The recording."""
    out: Path
    """Folder for the files."""
    kind: Literal["conformal", "box"] = "conformal"
    """With a promised false-alarm rate, or each neuron's range."""
    alpha: float = 0.1
    """False-alarm rate per episode that a conformal envelope promises."""
    onnx: bool = False
    """Write monitor.onnx in place of monitor.h, monitor.c and monitor.json."""

    def run(self) -> int:
        """Fit, write, say where."""
        recording = Recording.open(self.file)
        episodes = list(recording)
        if self.kind == "box":
            envelope = fit_box(recording.circuit, episodes)
        else:
            envelope = fit_conformal(recording.circuit, episodes, alpha=self.alpha)
        if self.onnx:
            print(monitor_to_onnx(envelope, self.out / "monitor.onnx"))
            return 0
        monitor_to_c(envelope, self.out)
        print(monitor_to_json(envelope, self.out / "monitor.json"))
        return 0


@dataclass(frozen=True)
class Verify:
    """Drive an export with the observations of a recording, and compare every potential and action."""

    export: tyro.conf.Positional[Path]
    """Folder with controller.c, or controller.json or controller.onnx."""
    file: tyro.conf.Positional[Path]
    """The recording."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""

    def run(self) -> int:
        """Print the verdict; 1 where something came out otherwise."""
        found = verify_export(self.export, self.file)
        print(json.dumps(found.to_dict(), indent=2) if self.as_json else found)
        return 0 if found.passed else 1


Command = C | Numpy | Onnx | Monitor | Verify


def main(command: Command) -> int:
    """Do what was asked."""
    torch.set_num_threads(1)
    try:
        return command.run()
    except (ExportError, RecordingError, RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.path.append("")  # module:id is found in the current folder too, as under `python -m`.
    sys.exit(main(tyro.cli(Command, description=__doc__)))
