"""Why did it act so? Contributions that add up to every potential; the report's player shows them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ncp_rl.audit.explain import Explanation, explain
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.verdict import Verdict

# Contributions add up exactly to what the solver gives in float64; what float32 gave, on whatever platform, is near.
_MAX_RESIDUAL = 1e-5


class ExplainQuestion(RecordingQuestion[tuple[Explanation, ...]]):
    """Passes where contributions add up to what was recorded. The answer has an explanation of each episode."""

    name = "explain"
    schema: ClassVar[Schema] = {
        "explain": {
            "type": "object",
            "properties": {
                "residual": {
                    "type": "number",
                    "description": "Largest difference of a recorded potential to the sum of its contributions.",
                }
            },
            "required": ["residual"],
            "additionalProperties": False,
        }
    }
    # The player belongs to the page: it also chooses which recording the sections show.
    anchor = "player"
    must_pass = True

    def ask(self, evidence: Evidence, plan: Plan) -> tuple[Explanation, ...]:
        """Explain every episode."""
        return tuple(explain(evidence.circuit, episode) for episode in evidence.episodes)

    def verdicts(self, answer: tuple[Explanation, ...]) -> list[Verdict]:
        """The residual, and the instant at which the first action was farthest from its mean, in words."""
        residual, first = _residual(answer), answer[0]
        step = int(np.abs(first.episode.action_mean[:, 0] - first.episode.action_mean[:, 0].mean()).argmax())
        sentence = f"Contributions add up to every potential within {residual:.1g}. {first.sentence(step)}."
        return [Verdict(self.name, residual < _MAX_RESIDUAL, sentence, {"residual": residual})]

    def entries(self, answer: tuple[Explanation, ...]) -> dict[str, dict[str, float]]:
        """The residual; contributions can be computed from the recording at any time."""
        return {"explain": {"residual": _residual(answer)}}


def _residual(explanations: tuple[Explanation, ...]) -> float:
    return max(explanation.residual() for explanation in explanations)
