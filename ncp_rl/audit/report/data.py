"""What the page carries: circuits and episodes as float32 in base64, pictures at what rate there is room for."""

from __future__ import annotations

import base64
import gzip
import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ncp_rl.audit.audit import Subject
from ncp_rl.audit.cell import Array, Cell, Connections
from ncp_rl.audit.dynamics import Dynamics
from ncp_rl.audit.intervals import Range
from ncp_rl.audit.questions.certificate import Certified
from ncp_rl.audit.questions.explain import Explained
from ncp_rl.audit.questions.gaze import Gaze
from ncp_rl.audit.trees import NeuronTree, TreeAudit
from ncp_rl.kernels import EPSILON
from ncp_rl.recording import Episode

# Longest side of an embedded picture, and WebP's quality.
_PIXELS = 240
_QUALITY = 60
# More than so many pixels of one kind of picture take long to make, and nobody looks at them.
_MAX_PIXELS = 2000 * 240 * 120
# Maps of what a camera policy looks at that are computed at once.
_BATCH = 256

#: (Number of an episode, stride) -> a picture (H, W, 3) of every `stride`th step, from step 0 on.
Source = Callable[[int, int], Iterator[npt.NDArray[np.uint8]]]


@dataclass(frozen=True)
class Pictures:
    """WebP files in base64, one every `stride` steps from step 0 on."""

    stride: int
    files: tuple[str, ...]

    def size(self) -> int:
        """Characters that the page needs for them."""
        return sum(len(file) + 3 for file in self.files)


def describe(subject: Subject, shown: Sequence[int]) -> dict[str, Any]:
    """A recording's circuit, bounds and rules, and where its episodes lie in the page; only its name if it has none."""
    if not shown:
        return {"name": subject.name, "episodes": []}
    circuit, answers = subject.recording.circuit, subject.answers
    wiring, cell = circuit.wiring, Cell.of(circuit)
    neuronal: dict[str, npt.ArrayLike] = {"cm": cell.cm, "gleak": cell.gleak, "vleak": cell.vleak}
    neuronal |= {"readout": circuit.readout, "bias": circuit.bias}
    trees: TreeAudit | None = answers.get("trees")
    explained: Explained = answers["explain"]
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
        "episodes": [_heading(subject.episodes[i], explained) for i in shown],
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


def pictures(subject: Subject, shown: Sequence[int], room: int) -> dict[int, dict[str, Pictures]]:
    """Pictures of the episodes shown by kind, in at most `room` characters, of as many steps as fit, evenly spread.

    "environment" is what was rendered or else observed; "gaze" is what a camera policy looked at, where that was asked,
    and may take half of the room.
    """
    found: dict[int, dict[str, Pictures]] = {i: {} for i in shown}
    gaze: Gaze | None = subject.answers.get("gaze")
    if gaze is not None:
        looked = _thinned(subject, shown, room // 2, partial(_gazes, subject, gaze))
        room -= sum(pictures.size() for pictures in looked.values())
        for i, pictures in looked.items():
            found[i]["gaze"] = pictures
    for i, pictures in _thinned(subject, shown, room, partial(_frames, subject)).items():
        found[i]["environment"] = pictures
    return found


def _thinned(subject: Subject, shown: Sequence[int], room: int, source: Source) -> dict[int, Pictures]:
    """Pictures of one kind; no entry of an episode that has none."""
    first = next(source(shown[0], 1), None) if shown else None
    if first is None:
        return {}
    steps, (file, n_pixels) = sum(len(subject.episodes[i]) for i in shown), _webp(first)
    # The first picture tells the size of the others but roughly; a second pass thins out what is still too much.
    stride = math.ceil(max(steps * 1.1 * len(file) / max(room, 1), steps * n_pixels / _MAX_PIXELS))
    found = {i: Pictures(stride, tuple(_webp(picture)[0] for picture in source(i, stride))) for i in shown}
    while sum(pictures.size() for pictures in found.values()) > room and any(p.files for p in found.values()):
        found = {i: Pictures(2 * p.stride, p.files[::2] if len(p.files) > 1 else ()) for i, p in found.items()}
    return {i: pictures for i, pictures in found.items() if pictures.files}


def _frames(subject: Subject, episode: int, stride: int) -> Iterator[npt.NDArray[np.uint8]]:
    """What was rendered, or else the first kind of picture that was observed."""
    images = subject.recording.images(subject.episodes[episode].index)
    first = next(images, None)
    if first is not None:
        frames = (image.pixels for image in itertools.chain([first], images) if image.name == first.name)
        yield from itertools.islice(frames, 0, None, stride)


def _gazes(subject: Subject, gaze: Gaze, episode: int, stride: int) -> Iterator[npt.NDArray[np.uint8]]:
    """What was looked at."""
    images = np.asarray(subject.recording.observations(subject.episodes[episode]))[::stride]
    for first in range(0, len(images), _BATCH):
        yield from gaze.draw(images[first : first + _BATCH])


def _webp(pixels: npt.NDArray[np.uint8]) -> tuple[str, int]:
    """A picture as WebP in base64, and the number of its pixels."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_PIXELS, _PIXELS))
    image.save(file, "WEBP", quality=_QUALITY, method=2)
    return base64.b64encode(file.getvalue()).decode(), image.width * image.height


def _bounds(subject: Subject) -> dict[str, Array]:
    """Return bounds of potentials and time constants, (U,) each; NaN where their question was not asked."""
    unknown = np.full(subject.recording.circuit.wiring.units, np.nan)
    certified: Certified | None = subject.answers.get("certificate")
    dynamics: Dynamics | None = subject.answers.get("dynamics")
    potentials = certified.certificate.range if certified else Range(unknown, unknown)
    tau = dynamics.tau_bounds if dynamics else Range(unknown, unknown)
    return {"low": potentials.low, "high": potentials.high, "tau_low": tau.low, "tau_high": tau.high}


def _heading(episode: Episode, explained: Explained) -> dict[str, Any]:
    """What the list of episodes says, and the contribution that is drawn at full strength."""
    return {
        "index": episode.index,
        "steps": len(episode),
        "return": float(episode.reward.sum(dtype=np.float64)),
        "end": "terminated" if episode.terminated else "truncated" if episode.truncated else "cut off",
        "scale": explained.strongest[episode.index] or 1.0,
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
