"""Writes a fitted envelope for a controller, in C, ONNX or JSON; it raises the audit's alarms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncp_rl.audit.envelope import Envelope
from ncp_rl.export.c_source import TEMPLATES, TableRow, comment
from ncp_rl.export.controller import MONITOR_FORMAT
from ncp_rl.export.numpy_source import json_text
from ncp_rl.export.onnx_graph import write_graph
from ncp_rl.export.spec import write_new


def monitor_to_json(envelope: Envelope, path: Path | str) -> Path:
    """Write an envelope for `ncp_rl.export.controller.Monitor`, which needs NumPy alone.

    Args:
        envelope: Envelope fitted by a function of `ncp_rl.audit.envelope`.
        path: New file.

    Raises:
        ExportError: The file exists.
    """
    path = Path(path)
    write_new(path.parent, {path.name: json_text(_described(envelope))})
    return path


def monitor_to_onnx(envelope: Envelope, path: Path | str) -> Path:
    """Write an envelope as an ONNX graph, for any number of controllers side by side.

    Inputs are `potentials` (N, U) float32, of all neurons after a step, and `step` (N,) int64, of the episode, from 0.
    Outputs are `score` (N,) float64, `outside` (N,) bool, whether it exceeds the threshold, and `neuron` (N,) int64,
    the place among the watched neurons of the one that is furthest out; the metadata entry `ncp_rl` names them.

    Args:
        envelope: Envelope fitted by a function of `ncp_rl.audit.envelope`.
        path: New file, .onnx.

    Raises:
        ExportError: The file exists, or the package onnx is missing.
    """
    example = torch.zeros(2, int(envelope.watched.index.max()) + 1), torch.zeros(2, dtype=torch.int64)
    inputs, outputs = ["potentials", "step"], ["score", "outside", "neuron"]
    axes = {name: {0: "controllers"} for name in (*inputs, *outputs)}
    axes["potentials"][1] = "neurons"
    return write_graph(_Watch(envelope), example, Path(path), (inputs, outputs, axes), _described(envelope))


class _Watch(nn.Module):
    """One step of `ncp_rl.export.controller.Monitor`, without the state of its episode."""

    def __init__(self, envelope: Envelope) -> None:
        super().__init__()
        self.box, self.threshold = envelope.score == "box", envelope.threshold
        self.index = torch.from_numpy(envelope.watched.index.astype(np.int64))
        self.centre, self.precision, self.profile = (
            torch.from_numpy(np.asarray(array, np.float64))
            for array in (envelope.centre, envelope.precision, envelope.profile)
        )

    def forward(self, potentials: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        deviation = potentials[:, self.index].double() - self.centre
        known = deviation.abs() < np.inf  # The comparison is False for NaN too.
        finite = torch.where(known, deviation, 0.0)
        weighted = finite @ self.precision
        shares = torch.where(known, weighted.square() / self.precision.diagonal(), np.inf)
        squared = shares.amax(1) if self.box else (finite * weighted).sum(1).clamp_min(0.0)
        squared = torch.where(known.all(1), squared, np.inf)
        score = squared.sqrt() / self.profile[step.clamp_max(len(self.profile) - 1)]
        return score, score > self.threshold, shares.argmax(1)


def monitor_to_c(envelope: Envelope, folder: Path | str) -> Path:
    """Write monitor.h and monitor.c: `monitor_step` takes the potentials that `controller_step` left.

    Potentials are compared in double precision, as in the audit. The code calls nothing of libc but `sqrt`.

    Args:
        envelope: Envelope fitted by a function of `ncp_rl.audit.envelope`.
        folder: Folder for the files, usually that of the controller.

    Raises:
        ExportError: A file exists.
    """
    names = _names(envelope)
    texts = {name: TEMPLATES.get_template(f"{name}.jinja").render(names) for name in ("monitor.h", "monitor.c")}
    write_new(Path(folder), texts)
    return Path(folder)


def _described(envelope: Envelope) -> dict[str, Any]:
    return {
        "format": MONITOR_FORMAT,
        "score": envelope.score,
        "names": list(envelope.watched.names),
        "index": envelope.watched.index.tolist(),
        "centre": envelope.centre.tolist(),
        "precision": envelope.precision.tolist(),
        "profile": envelope.profile.tolist(),
        # JSON has no infinity, a threshold that never raises an alarm.
        "threshold": envelope.threshold if np.isfinite(envelope.threshold) else None,
        "alpha": envelope.alpha,
    }


def _names(envelope: Envelope) -> dict[str, Any]:
    """Return the values that the templates use."""
    box = envelope.score == "box"
    promise = "It promises nothing about false alarms."
    if envelope.alpha is not None:
        promise = f"An episode like those that it was fitted on raises an alarm with probability {envelope.alpha:g}."
    names = [comment(name) for name in envelope.watched.names]
    precision = np.diag(envelope.precision)[:, None] if box else envelope.precision
    known = np.isfinite(envelope.threshold)
    return {
        "promise": promise,
        "names": names,
        "n_watched": len(names),
        # Neurons behind the last watched one are not read.
        "n_neurons": int(envelope.watched.index.max()) + 1,
        "box": box,
        "index": ", ".join(f"{j}u" for j in envelope.watched.index.tolist()),
        "centre": [TableRow(_double(x), name) for x, name in zip(envelope.centre, names, strict=True)],
        "precision": [", ".join(map(_double, row)) for row in precision],
        "profile": [_double(x) for x in envelope.profile],
        "threshold": _double(envelope.threshold) if known else "HUGE_VAL",
        "threshold_comment": f"{envelope.threshold:.6g}",
    }


def _double(value: Any) -> str:
    """Return a float64 as a literal of C, from which the same number is read."""
    return repr(float(value))
