"""Writes a fitted envelope for a controller, in C, ONNX or JSON; it raises the audit's alarms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ncp_rl.audit.cell import Array
from ncp_rl.audit.envelope import Envelope, Score
from ncp_rl.audit.watched import Watched
from ncp_rl.export.c_source import TEMPLATES, TableRow, comment
from ncp_rl.export.controller import MONITOR_FORMAT
from ncp_rl.export.numpy_source import json_text
from ncp_rl.export.onnx_graph import write_graph
from ncp_rl.export.spec import ExportError, write_new
from ncp_rl.wiring import Wiring


def monitor_to_json(envelope: Envelope, path: Path | str) -> Path:
    """Write an envelope for `ncp_rl.export.controller.Monitor`, which needs NumPy alone, and for `read_monitor`.

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
        ExportError: The file exists.
        ncp_rl.extras.MissingExtraError: The package onnx is not installed.
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
        # What `read_monitor` needs beside.
        "layer": envelope.watched.layer,
        "low": envelope.low.tolist(),
        "high": envelope.high.tolist(),
        "n_fit": envelope.n_fit,
        "calibration": envelope.calibration.tolist(),
        "elapsed_time": envelope.elapsed_time,
    }


def read_monitor(path: Path | str, wiring: Wiring) -> Envelope:
    """The envelope of a file that `monitor_to_json` wrote, for `ncp_rl.audit.watch` and `MonitoredModel`.

    Args:
        path: The file.
        wiring: Wiring of the circuit that is to be watched.

    Raises:
        ExportError: The file is no such monitor, or it watches neurons of another circuit.
    """
    try:
        described = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(described, dict) or described.get("format") != MONITOR_FORMAT:
            raise ValueError(f"it must be a JSON object of format {MONITOR_FORMAT!r}")
        index = np.array(described["index"], np.int64)
        watched = Watched(str(described["layer"]), index, tuple(map(str, described["names"])))
        numbers = {name: _numbers(described, name, (len(index),)) for name in ("centre", "low", "high")}
        numbers["precision"] = _numbers(described, "precision", (len(index), len(index)))
        numbers |= {name: _numbers(described, name, (-1,)) for name in ("profile", "calibration")}
        if described["score"] not in get_args(Score) or not len(numbers["profile"]):
            raise ValueError(f"score must be one of {get_args(Score)}, and profile must have an entry")
        threshold, alpha = described["threshold"], described["alpha"]
        envelope = Envelope(
            watched=watched,
            score=described["score"],
            threshold=np.inf if threshold is None else float(threshold),
            alpha=None if alpha is None else float(alpha),
            n_fit=int(described["n_fit"]),
            n_calibration=len(numbers["calibration"]),
            elapsed_time=float(described["elapsed_time"]),
            **numbers,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"The monitor {path} cannot be read: {error}. Fit it again: ncp-rl monitor fit.") from error
    own = Watched.of(wiring)
    if watched.names != own.names or not np.array_equal(watched.index, own.index):
        raise ExportError(
            f"The monitor {path} watches {len(watched.names)} neurons, {_few(watched.names)}, and the circuit has "
            f"{len(own.names)} to watch, {_few(own.names)}; fit a monitor for this circuit."
        )
    return envelope


def _numbers(described: dict[str, Any], name: str, shape: tuple[int, ...]) -> Array:
    """An entry as finite numbers of a shape, in which -1 stands for any length."""
    found = np.array(described[name], np.float64)
    fits = found.ndim == len(shape) and all(want in (-1, has) for want, has in zip(shape, found.shape, strict=True))
    if not fits or not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite numbers of shape {shape}, got {found.shape}")
    return found


def _few(names: Sequence[str]) -> str:
    return f"{names[0]} to {names[-1]}" if names else "none"


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
