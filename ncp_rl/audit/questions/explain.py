"""Why did it act so? Contributions that add up to every potential; the report's player shows them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ncp_rl.audit.explain import Explanation, explain
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.verdict import Verdict


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

    def ask(self, evidence: Evidence, plan: Plan) -> tuple[Explanation, ...]:
        """Explain every episode."""
        return tuple(explain(evidence.circuit, episode) for episode in evidence.episodes)

    def verdicts(self, answer: tuple[Explanation, ...]) -> list[Verdict]:
        """The residual, and the instant at which the first action was farthest from its mean, in words.

        Contributions add up exactly to what the solver gives in float64; what a policy computed in float32, on whatever
        platform, lies within what rounding can do.
        """
        found, first = _residuals(answer), answer[0]
        step = int(np.abs(first.episode.action_mean[:, 0] - first.episode.action_mean[:, 0].mean()).argmax())
        share = found["share_of_rounding"]
        sentence = (
            f"Contributions add up to every potential within {found['residual']:.1g}, {share:.2g} of what rounding in "
            f"float32 can do. {first.sentence(step)}."
        )
        return [Verdict(self.name, share <= 1.0, sentence, found)]

    def entries(self, answer: tuple[Explanation, ...]) -> dict[str, dict[str, float]]:
        """The residual; contributions can be computed from the recording at any time."""
        return {"explain": _residuals(answer)}


def _residuals(explanations: tuple[Explanation, ...]) -> dict[str, float]:
    return {
        "residual": max(explanation.residual() for explanation in explanations),
        "share_of_rounding": max(explanation.share_of_rounding() for explanation in explanations),
    }
