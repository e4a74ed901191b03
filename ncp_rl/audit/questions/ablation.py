"""What does each neuron do? Every neuron in turn is clamped, and the change of the action means is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ncp_rl.audit.ablate import Effect, effects, every_neuron
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.plots import Figure, diamonds, packed, plain, row_layout
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.section import MAX_PLOTTED_ACTIONS, Part, Plot, Table, notice_of_plotted

_NUMBERS = {"type": "array", "items": {"type": "number"}}


@dataclass(frozen=True)
class Ablations:
    """The effects of clamping each neuron on each of A action means over the first episode.

    Attributes:
        action_names: (A,) names of the actions.
        effects: Effect of each neuron, in the order of the wiring.
    """

    action_names: tuple[str, ...]
    effects: tuple[Effect, ...]


class AblationQuestion(RecordingQuestion[Ablations]):
    """Asks for the effects of neurons. It has no verdict, since neither a large nor a small effect is a fault."""

    name = "ablation"
    schema: ClassVar[Schema] = {
        "ablation": {
            "type": "array",
            "default": [],
            "items": {
                "type": "object",
                "properties": {"ablation": {"type": "string"}, "rms": _NUMBERS, "largest": _NUMBERS},
                "required": ["ablation", "rms", "largest"],
                "additionalProperties": False,
            },
        }
    }
    title = "What each neuron does"
    navigation = "Ablation"
    lead = (
        "Each neuron in turn is held at its mean potential while the circuit receives the senses of the first episode "
        "again: how far the action mean moves."
    )
    of_fleets = False

    def ask(self, evidence: Evidence, plan: Plan) -> Ablations:
        """Clamp every neuron at its mean over all episodes."""
        circuit, episodes = evidence.circuit, evidence.episodes
        found = effects(circuit, episodes[0], every_neuron(circuit, episodes))
        return Ablations(circuit.action_names, tuple(found))

    def entries(self, answer: Ablations) -> dict[str, list[dict[str, Any]]]:
        """Return the effects of each neuron."""
        return {
            "ablation": [
                {"ablation": str(effect.ablation), "rms": effect.rms.tolist(), "largest": effect.largest.tolist()}
                for effect in answer.effects
            ]
        }

    def section(self, answer: Ablations) -> Iterator[Part]:
        """Yield a plot of the effects on each action."""
        names = answer.action_names
        for action, name in enumerate(names[:MAX_PLOTTED_ACTIONS]):
            yield Plot(f"Effect on {name} of clamping each neuron", _figure(answer, action))
        yield from notice_of_plotted(len(names))
        header = [f"{name} {kind}" for name in names for kind in ("root mean square", "largest")]
        rows = [[str(e.ablation), *np.stack([e.rms, e.largest], 1).ravel().tolist()] for e in answer.effects]
        yield Table("In numbers", ["ablation", *header], rows)


def _figure(answer: Ablations, action: int) -> Figure:
    """Plot the change of an action mean when each neuron is clamped, the strongest first."""
    ordered = sorted(answer.effects, key=lambda effect: -float(effect.rms[action]))
    y = np.arange(len(ordered))
    rms, largest = (np.array([getattr(effect, kind)[action] for effect in ordered]) for kind in ("rms", "largest"))
    bar = {"type": "bar", "orientation": "h", "x": packed(rms), "y": packed(y), "name": "root mean square"}
    names = [str(effect.ablation) for effect in ordered]
    layout = row_layout(names, f"change of {plain(answer.action_names[action])} mean [its unit]")
    return {"data": [bar | {"marker": {"color": "--third"}}, diamonds(largest, y, "largest")], "layout": layout}
