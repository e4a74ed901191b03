"""What the page carries: circuits and episodes as float32 in base64, pictures at what rate there is room for."""

from __future__ import annotations

import base64
import gzip
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ncp_rl.audit.audit import Subject
from ncp_rl.audit.cell import Array, Cell, Connections
from ncp_rl.audit.dynamics import Dynamics
from ncp_rl.audit.explain import Explanation
from ncp_rl.audit.intervals import Range
from ncp_rl.audit.questions.certificate import Certified
from ncp_rl.audit.trees import NeuronTree, TreeAudit
from ncp_rl.kernels import EPSILON
from ncp_rl.recording import Episode

# Longest side of an embedded picture, and WebP's quality.
_PIXELS = 240
_QUALITY = 60
# More pictures than these take long to make, and nobody looks at them.
_MAX_PICTURES = 2000


@dataclass(frozen=True)
class Pictures:
    """WebP files in base64, one every `stride` steps from step 0 on; none where none were recorded."""

    stride: int
    files: tuple[str, ...]


def describe(subject: Subject, shown: Sequence[int]) -> dict[str, Any]:
    """A recording's circuit, bounds and rules, and where its episodes lie in the page; only its name if it has none."""
    if not shown:
        return {"name": subject.name, "episodes": []}
    circuit, answers = subject.recording.circuit, subject.answers
    wiring, cell = circuit.wiring, Cell.of(circuit)
    neuronal: dict[str, npt.ArrayLike] = {"cm": cell.cm, "gleak": cell.gleak, "vleak": cell.vleak}
    neuronal |= {"readout": circuit.readout, "bias": circuit.bias}
    trees: TreeAudit | None = answers.get("trees")
    explanations: Sequence[Explanation] = answers["explain"]
    return {
        "name": subject.name,
        "neurons": wiring.names,
        "layers": {name: _ends(getattr(wiring, name)) for name in ("inter", "command", "motor")},
        "sensory_names": circuit.sensory_names,
        "observations": subject.episodes[0].observation_names,
        "actions": circuit.action_names,
        "n_actions": subject.episodes[0].action.shape[1],
        "synapses": _synapses(cell.synapses),
        "sensory": _synapses(cell.sensory),
        "unfolds": cell.ode_unfolds,
        "epsilon": EPSILON,
        "bounds": {name: _base64(values) for name, values in _bounds(subject).items()},
        **{name: _base64(values) for name, values in neuronal.items()},
        "rules": {tree.neuron: _rules(tree) for tree in (trees.trees if trees else ())},
        "episodes": [_heading(subject.episodes[i], explanations[i]) for i in shown],
    }


def pack(episode: Episode) -> str:
    """An episode's arrays one after the other, in the order in which episode.js reads them."""
    arrays = (
        episode.start,
        episode.elapsed_time,
        episode.potentials,
        episode.sensory,
        episode.observation if episode.observation_names else np.empty(0),
        episode.action,
        episode.reward,
    )
    raw = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)
    return compress(raw)


def compress(raw: bytes) -> str:
    """Gzip in base64, the same for the same bytes."""
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()


def pictures(subject: Subject, shown: Sequence[int], room: int) -> dict[int, Pictures]:
    """Pictures of the episodes shown, in at most `room` characters: as many steps as fit get one, evenly spread."""
    first = next(_frames(subject, shown[0]), None) if shown else None
    if first is None:
        return {}
    steps = sum(len(subject.episodes[i]) for i in shown)
    # The first picture tells the size of the others but roughly; a second pass thins out what is still too much.
    stride = math.ceil(max(steps * 1.1 * len(_webp(first)) / max(room, 1), steps / _MAX_PICTURES))
    found = {i: [_webp(frame) for t, frame in enumerate(_frames(subject, i)) if t % stride == 0] for i in shown}
    while sum(len(file) + 3 for files in found.values() for file in files) > room and any(found.values()):
        stride, found = stride * 2, {i: files[::2] if len(files) > 1 else [] for i, files in found.items()}
    return {i: Pictures(stride, tuple(files)) for i, files in found.items() if files}


def _frames(subject: Subject, episode: int) -> Iterator[npt.NDArray[np.uint8]]:
    """What was rendered at each step, or else the first kind of picture that was observed."""
    kind = None
    for image in subject.recording.images(subject.episodes[episode].index):
        kind = kind or image.name
        if image.name == kind:
            yield image.pixels


def _webp(pixels: npt.NDArray[np.uint8]) -> str:
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_PIXELS, _PIXELS))
    image.save(file, "WEBP", quality=_QUALITY, method=2)
    return base64.b64encode(file.getvalue()).decode()


def _bounds(subject: Subject) -> dict[str, Array]:
    """Of potentials and time constants, (U,) each; NaN where the question that gives them was not asked."""
    unknown = np.full(subject.recording.circuit.wiring.units, np.nan)
    certified: Certified | None = subject.answers.get("certificate")
    dynamics: Dynamics | None = subject.answers.get("dynamics")
    potentials = certified.certificate.range if certified else Range(unknown, unknown)
    tau = dynamics.tau_bounds if dynamics else Range(unknown, unknown)
    return {"low": potentials.low, "high": potentials.high, "tau_low": tau.low, "tau_high": tau.high}


def _heading(episode: Episode, explanation: Explanation) -> dict[str, Any]:
    """What the list of episodes says, and the contribution that is drawn at full strength."""
    strongest = [np.abs(part).max(1, initial=0.0) for part in (explanation.synaptic, explanation.sensory)]
    return {
        "index": episode.index,
        "steps": len(episode),
        "return": float(episode.reward.sum(dtype=np.float64)),
        "end": "terminated" if episode.terminated else "truncated" if episode.truncated else "cut off",
        "scale": float(np.quantile(np.maximum(*strongest), 0.9)) or 1.0,
        "sensory_scale": float(np.abs(episode.sensory).max(initial=0.0)) or 1.0,
    }


def _rules(tree: NeuronTree) -> list[dict[str, Any]]:
    return [
        {
            "text": str(rule),
            "share": rule.share,
            "conditions": [[c.quantity, *(b if math.isfinite(b) else None for b in c[1:])] for c in rule.conditions],
        }
        for rule in tree.rules
    ]


def _synapses(synapses: Connections) -> dict[str, Any]:
    ends = {"source": synapses.source.tolist(), "destination": synapses.destination.tolist()}
    return ends | {name: _base64(getattr(synapses, name)) for name in ("w", "sigma", "mu", "erev")}


def _ends(part: slice) -> list[int]:
    return [part.start, part.stop]


def _base64(values: npt.ArrayLike) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
