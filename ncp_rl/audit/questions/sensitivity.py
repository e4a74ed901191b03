"""How far can the action move when observations move a little? Bounds at three steps of an episode, and an attack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ncp_rl.audit.certify import violations
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.plots import COLORS, SYMBOLS, Figure, axes, line, plain
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.section import Part, Plot
from ncp_rl.audit.sensitivity import Sensitivity, observation_moves, sensitivity
from ncp_rl.audit.verdict import Verdict
from ncp_rl.circuit import Circuit

# The bound holds for exact arithmetic, while the attack computes in float32.
_MAX_ROUNDING = 1e-4
_ACTION = {
    "type": "object",
    "properties": {"bound": {"type": "number"}, "found": {"type": "number"}},
    "required": ["bound", "found"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Moves:
    """Bounds that begin at some steps of the first episode.

    Attributes:
        bounds: The bounds that begin at each of the steps.
        moved: The kind of input that moves, "observation" or "sensory input".
        epsilon: Share of its range by which it moves.
    """

    bounds: tuple[Sensitivity, ...]
    moved: str
    epsilon: float


class SensitivityQuestion(RecordingQuestion[Moves]):
    """Asks for the sensitivity. It passes where the attack stayed within the bound, up to rounding in float32."""

    name = "sensitivity"
    schema: ClassVar[Schema] = {
        "sensitivity": {
            "type": "array",
            "default": [],
            "items": {
                "type": "object",
                "properties": {"step": {"type": "integer"}, "n_steps": {"type": "integer"}},
                "required": ["step", "n_steps"],
                "additionalProperties": _ACTION,
            },
        }
    }
    title = "How far a small move can take it"
    navigation = "Sensitivity"
    lead = (
        "Every observation moves a little at each step, each anew: the proven bound on how far an action mean can move "
        "(solid), and how far an attack moved it (dotted)."
    )
    must_pass = True
    of_fleets = False

    def not_for(self, circuit: Circuit) -> str | None:
        """Return why not: the kind of neurons, or parameters whose substeps are not weighted means."""
        if (other := super().not_for(circuit)) is not None:
            return other
        found = violations(circuit)
        return f"Bounds on moves need parameters that are valid: {found[0]}." if found else None

    def ask(self, evidence: Evidence, plan: Plan) -> Moves:
        """Move the observations at three steps spread over the first episode."""
        circuit, first, n_steps = evidence.circuit, evidence.episodes[0], plan.n_moved_steps
        moves, moved = observation_moves(circuit, evidence.episodes, plan.epsilon)
        steps = np.unique(np.linspace(0, max(len(first) - n_steps, 0), 3).astype(int))
        bounds = (sensitivity(circuit, first, moves, step=int(step), n_steps=n_steps) for step in steps)
        return Moves(tuple(bounds), moved, plan.epsilon)

    def verdicts(self, answer: Moves) -> list[Verdict]:
        """Return the verdict: how far actions can move, and how far an attack moved one."""
        bounds = answer.bounds
        bound, found, ratio = (
            max(float(values(one).max()) for one in bounds)
            for values in (lambda one: one.bound, lambda one: one.found, Sensitivity.ratio)
        )
        sound = all((one.found <= one.bound + _MAX_ROUNDING).all() for one in bounds)
        sentence = (
            f"Where every {answer.moved} moves by {answer.epsilon:.1%} of its range, no action mean moves by more than "
            f"{bound:.3g} within {len(bounds[0].bound)} steps; an attack moved one by {found:.3g}."
        )
        return [Verdict(self.name, sound, sentence, {"bound": bound, "found": found, "ratio": ratio})]

    def entries(self, answer: Moves) -> dict[str, list[dict[str, Any]]]:
        """Return the bound and the largest change found at the last step, for each beginning."""
        return {"sensitivity": [one.to_dict() for one in answer.bounds]}

    def section(self, answer: Moves) -> Iterator[Part]:
        """Yield plots of bounds and attacks by the step."""
        yield Plot("Bounds on moves of the action means", _figure(answer))


def _figure(answer: Moves) -> Figure:
    """Plot how far each action mean can move, and how far an attack moved it, by the step."""
    data = []
    for one, color, symbol in zip(answer.bounds, COLORS, SYMBOLS, strict=False):
        for action, name in enumerate(one.action_names):
            steps, label = np.arange(1, len(one.bound) + 1), f"{plain(name)} from step {one.step}"
            data.append(line(steps, one.bound[:, action], f"{label}: bound", color))
            found = line(steps, one.found[:, action], f"{label}: attack", color, dash="dot")
            data.append(found | {"mode": "lines+markers", "marker": {"symbol": symbol, "size": 5}})
    titles = axes("steps that are moved [steps]", "move of the action mean [its unit]")
    return {"data": data, "layout": {**titles, "height": 380}}
