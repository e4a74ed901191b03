"""Why did it act so? Contributions that add up to every potential; the report's player shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ncp_rl.audit.explain import explain
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.verdict import Verdict
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode

# Steps that are explained at a time: contributions take some kilobytes a step.
_STEPS = 1024


@dataclass(frozen=True)
class Explained:
    """How far all contributions add up, over every step of every episode; `explain` computes them again at any time.

    Attributes:
        residual: Largest difference of a recorded potential to the sum of its contributions.
        share_of_rounding: Largest difference as a share of what rounding in float32 can do there.
        sentence: The first action in words, at the step of the first episode at which it was farthest from its mean.
        strongest: By the episode's number: what the strongest contribution of a step exceeds in a tenth of the steps.
    """

    residual: float
    share_of_rounding: float
    sentence: str
    strongest: dict[int, float]


class ExplainQuestion(RecordingQuestion[Explained]):
    """Passes where contributions add up to what was recorded."""

    name = "explain"
    schema: ClassVar[Schema] = {
        "explain": {
            "type": "object",
            "properties": {
                "residual": {
                    "type": "number",
                    "description": "Largest difference of a recorded potential to the sum of its contributions.",
                },
                "share_of_rounding": {
                    "type": "number",
                    "description": "Largest difference as a share of what rounding in float32 can do there.",
                },
            },
            "required": ["residual", "share_of_rounding"],
            "additionalProperties": False,
        }
    }
    # The player belongs to the page: it also chooses which recording the sections show.
    anchor = "player"
    must_pass = True

    def ask(self, evidence: Evidence, plan: Plan) -> Explained:
        """Explain every step of every episode."""
        return explain_all(evidence.circuit, evidence.every_episode())

    def verdicts(self, answer: Explained) -> list[Verdict]:
        """The residual, and the instant at which the first action was farthest from its mean, in words.

        Contributions add up exactly to what the solver gives in float64; what a policy computed in float32, on whatever
        platform, lies within what rounding can do.
        """
        share = answer.share_of_rounding
        sentence = (
            f"Contributions add up to every potential within {answer.residual:.1g}, {share:.2g} of what rounding in "
            f"float32 can do. {answer.sentence}."
        )
        return [Verdict(self.name, share <= 1.0, sentence, _figures(answer))]

    def entries(self, answer: Explained) -> dict[str, dict[str, float]]:
        """The residual; contributions can be computed from the recording at any time."""
        return {"explain": _figures(answer)}


def explain_all(circuit: Circuit, episodes: Iterable[Episode]) -> Explained:
    """Explain every step of one or more episodes, `_STEPS` at a time."""
    residual, share, sentence = 0.0, 0.0, ""
    strongest = {}
    for episode in episodes:
        own = []
        for first in range(0, len(episode), _STEPS):
            explanation = explain(circuit, episode.part(first, first + _STEPS))
            residual = max(residual, explanation.residual())
            share = max(share, explanation.share_of_rounding())
            kinds = (explanation.synaptic, explanation.sensory)
            own.append(np.maximum(*(np.abs(kind).max(1, initial=0.0) for kind in kinds)))
        strongest[episode.index] = float(np.quantile(np.concatenate(own), 0.9))
        sentence = sentence or _sentence(circuit, episode)
    return Explained(residual, share, sentence, strongest)


def _figures(answer: Explained) -> dict[str, float]:
    return {"residual": answer.residual, "share_of_rounding": answer.share_of_rounding}


def _sentence(circuit: Circuit, episode: Episode) -> str:
    step = int(np.abs(episode.action_mean[:, 0] - episode.action_mean[:, 0].mean()).argmax())
    explanation = explain(circuit, episode.part(step, step + 1))
    return explanation.sentence(0, time=float(episode.time[step]))
