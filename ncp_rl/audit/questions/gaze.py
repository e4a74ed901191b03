"""What does it look at? The map of where a convolutional head's features come from, and how far noise moves it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup
from PIL import Image
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor

from ncp_rl.audit.plan import Plan
from ncp_rl.audit.plots import axes, line
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.section import Paragraph, Part, Plot, Table
from ncp_rl.policy import NCPPolicy
from ncp_rl.runs import load_run
from ncp_rl.vision import ConvHead, structural_similarity, visual_back_prop

#: Standard deviations of the noise on every pixel and colour, of 255.
NOISE = (4.0, 8.0, 16.0, 32.0, 64.0)
#: Images that the similarity is of, and those that the report shows.
N_MEASURED, N_SHOWN = 64, 8
# Colour of what is looked at.
_LIGHT = np.array([255, 190, 60], np.float32)


@dataclass(frozen=True, kw_only=True)
class Gaze:
    """What a head looks at.

    Attributes:
        head: The head.
        steps: (K,), steps of the first episode that the section shows.
        pictures: (K, H, W, 3) uint8, what was looked at in them, see `draw`.
        similarity: (L,), mean structural similarity of maps with and without noise, for each of `NOISE`.
    """

    head: ConvHead
    steps: npt.NDArray[np.int64]
    pictures: npt.NDArray[np.uint8]
    similarity: npt.NDArray[np.float64]

    def draw(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Draw where the head looks in observed images, (B, H, W, C) or (B, C, H, W), over them.

        Returns:
            (B, H, W, 3): the image in dark grey, and above it the map in light.
        """
        return _drawn(self.head, images)


class GazeQuestion(RecordingQuestion[Gaze]):
    """Asks where a `ncp_rl.vision.ConvHead` looks; it gives no verdict."""

    name = "gaze"
    schema: ClassVar[Schema] = {
        "gaze": {
            "type": "object",
            "properties": {
                "noise": {"type": "array", "items": {"type": "number"}, "description": "Standard deviations, of 255."},
                "similarity": {
                    "type": "array",
                    "items": {"type": "number"},
                    "description": "Mean structural similarity of the maps with and without that noise.",
                },
            },
            "required": ["noise", "similarity"],
            "additionalProperties": False,
        }
    }
    title = "What does it look at?"
    navigation = "Gaze"
    lead = (
        "Bright: where the features of the convolutional head come from (VisualBackProp), over the observed image, at "
        "instants of the first episode; the player shows it at every instant."
    )

    def concerns(self, evidence: Evidence) -> bool:
        """Where an image is observed."""
        return any(not part.names for part in evidence.recording.layout.observed)

    def lacks(self, evidence: Evidence, plan: Plan) -> str | None:
        """The encoder, which recordings do not hold, of a kind that has maps; and the images."""
        if evidence.run is None:
            return "What it looks at asks for the encoder, which a recording does not hold: audit its run folder."
        head = _head(evidence)
        if not isinstance(head, ConvHead):
            return f"There are maps of a ConvHead alone; the policy's encoder is {type(head).__name__}."
        pictures = evidence.recording.images(evidence.episodes[0].index)
        if not any(picture.name.startswith("observation/") for picture in pictures):
            return "The images that were observed were not recorded; audit with --images."
        return None

    def ask(self, evidence: Evidence, plan: Plan) -> Gaze:
        """Map images spread over the first episode, then the same under noise."""
        images = np.asarray(evidence.recording.observations(evidence.episodes[0]))
        head = _head(evidence)
        assert isinstance(head, ConvHead)
        measured = _spread(len(images), N_MEASURED)
        clean = visual_back_prop(head, _tensor(head, images[measured]))
        rng, similarity = np.random.default_rng(plan.seed), []
        for deviation in NOISE:
            noisy = images[measured] + rng.normal(0.0, deviation, images[measured].shape)
            seen = visual_back_prop(head, _tensor(head, np.clip(noisy + 0.5, 0, 255).astype(np.uint8)))
            similarity.append(float(structural_similarity(clean, seen).mean()))
        steps = _spread(len(images), N_SHOWN)
        return Gaze(head=head, steps=steps, pictures=_drawn(head, images[steps]), similarity=np.array(similarity))

    def entries(self, answer: Gaze) -> dict[str, Any]:
        """How alike maps stay under noise."""
        return {"gaze": {"noise": list(NOISE), "similarity": answer.similarity.tolist()}}

    def section(self, answer: Gaze) -> Iterator[Part]:
        """The images under their maps, and the similarity over noise."""
        pictures = Markup("").join(
            Markup('<figure><img alt="what was looked at in step {0}" src="data:image/png;base64,{1}">').format(
                step, _png(picture)
            )
            + Markup("<figcaption>step {}</figcaption></figure>").format(step)
            for step, picture in zip(answer.steps.tolist(), answer.pictures, strict=True)
        )
        yield Markup('<div class="grid gaze">{}</div>').format(pictures)
        yield Paragraph("How alike the maps stay where noise is added to every pixel: 1 is the same map.")
        figure = {
            "data": [line([0.0, *NOISE], [1.0, *answer.similarity], "similarity", "--pos")],
            "layout": {**axes("standard deviation of the noise [of 255]", "structural similarity"), "height": 300},
        }
        yield Plot("Similarity of maps under noise", figure)
        rows = [[f"{deviation:g}", value] for deviation, value in zip(NOISE, answer.similarity.tolist(), strict=True)]
        yield Table("Similarity in numbers", ("standard deviation", "structural similarity"), rows)


def _head(evidence: Evidence) -> torch.nn.Module:
    assert evidence.run is not None
    model, venv = load_run(evidence.run, device="cpu")
    venv.close()
    assert isinstance(model.policy, NCPPolicy)
    model.policy.set_training_mode(False)
    return model.policy.pi_features_extractor


def _spread(n: int, at_most: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).astype(np.int64))


def _tensor(head: ConvHead, images: npt.NDArray[np.uint8]) -> Tensor:
    """(B, C, H, W) from 0 to 1, as the policy hands them to its head."""
    space: Any = head._observation_space
    if images.shape[1:] != space.shape:
        images = np.moveaxis(images, -1, 1)
    found = preprocess_obs(torch.from_numpy(np.ascontiguousarray(images)), space)
    assert isinstance(found, Tensor)
    return found


def _drawn(head: ConvHead, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`Gaze.draw`."""
    maps = visual_back_prop(head, _tensor(head, images)).numpy()
    channels_last = images if images.shape[1:3] == maps.shape[1:] else np.moveaxis(images, 1, -1)
    grey, light = 0.55 * channels_last.astype(np.float32).mean(-1, keepdims=True), maps[..., None]
    drawn: npt.NDArray[np.uint8] = np.clip(grey + light * (_LIGHT - grey), 0, 255).astype(np.uint8)
    return drawn


def _png(picture: npt.NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
