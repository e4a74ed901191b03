"""How do the neurons behave? Time constants against their bounds, components, slopes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ncp_rl.audit.dynamics import Components, Dynamics, audit_dynamics
from ncp_rl.audit.intervals import seen_ranges
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.plots import Figure, axes, diamonds, line, packed, plain, ranges
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.section import (
    MAX_PLOTTED_ACTIONS,
    Heading,
    Paragraph,
    Part,
    Plot,
    Table,
    named_rows,
    notice_of_plotted,
)
from ncp_rl.audit.verdict import Verdict

# More points than these are slow to draw and hide each other.
_MAX_POINTS = 2500
_NEURON = {
    "type": "object",
    "required": ["name", "silent", "disconnected"],
    "properties": {
        "name": {"type": "string"},
        "silent": {"type": "boolean"},
        "disconnected": {"type": "boolean"},
    },
    "additionalProperties": {"type": ["number", "null"]},
}


class DynamicsQuestion(RecordingQuestion[Dynamics]):
    """Asks for the neurons' dynamics. It passes where no recorded time constant leaves its bounds."""

    name = "dynamics"
    schema: ClassVar[Schema] = {
        "dynamics": {
            "type": "object",
            "properties": {
                "neurons": {"type": "array", "items": _NEURON},
                "components": {"type": "object"},
                "slopes": {"type": "object"},
            },
            "required": ["neurons", "components", "slopes"],
        }
    }
    title = "How its neurons behave"
    navigation = "Dynamics"
    must_pass = True

    def ask(self, evidence: Evidence, plan: Plan) -> Dynamics:
        """Measure the dynamics, and the ranges of all episodes."""
        found = audit_dynamics(evidence.circuit, evidence.episodes)
        if len(evidence.episodes) == len(evidence.recording):
            return found
        every = evidence.every_episode()
        tau, potentials = seen_ranges(every, lambda episode: episode.tau, lambda episode: episode.potentials)
        low, high, tau_low, tau_high = (end.astype(np.float64) for end in (*potentials, *tau))
        return replace(found, tau_low=tau_low, tau_high=tau_high, low=low, high=high)

    def verdicts(self, answer: Dynamics) -> list[Verdict]:
        """Return the verdict: time constants, dead neurons, and the number of directions in which the neurons move."""
        return [answer.verdict()]

    def entries(self, answer: Dynamics) -> dict[str, Any]:
        """Return the figures of each neuron and component."""
        return {"dynamics": answer.to_dict()}

    def section(self, answer: Dynamics) -> Iterator[Part]:
        """Yield time constants, components coloured by each action, and slopes of the actions."""
        slopes, watched = answer.slopes, answer.components.watched
        names = slopes.action_names
        yield Heading("Time constants")
        yield Plot("Time constants", _time_constants(answer))
        yield Table(
            "Neurons in numbers",
            (
                *("neuron", "time constant possible from [s]", "to", "seen from", "median", "to"),
                *("potential mean", "std", "saturated", "dead"),
            ),
            named_rows(
                answer.names,
                *(*answer.tau_bounds, answer.tau_low, answer.tau_median, answer.tau_high),
                *(answer.mean, answer.std, answer.saturation, ["yes" if dead else "no" for dead in answer.dead]),
            ),
        )
        if len(answer.components.axes) > 1:
            for action, name in enumerate(names[:MAX_PLOTTED_ACTIONS]):
                yield Heading(f"Principal components of the {watched}, by {name}")
                yield Paragraph("Click a point to go to its instant.", "hint")
                yield Plot(f"Principal components by {name}", _components(answer, action))
        yield from notice_of_plotted(len(names))
        header = [f"{kind} {name}" for name in names for kind in ("slope of", "R\u00b2 of")]
        pairs = zip(slopes.slope, slopes.r2, strict=True)
        rows = named_rows(slopes.watched.names, *(row for pair in pairs for row in pair))
        yield Table("Slopes of the actions over each neuron", ["neuron", *header], rows)


def _time_constants(answer: Dynamics) -> Figure:
    """Plot the time constants of each neuron: possible and recorded."""
    bands = [
        ("possible, for every input", answer.tau_bounds, "--faint", 12),
        ("seen in the recording", (answer.tau_low, answer.tau_high), "--accent", 4),
    ]
    figure = ranges(answer.names, bands, "time constant [s], logarithmic")
    ends = np.log10([answer.tau_bounds.low.min(), answer.tau_bounds.high.max()])
    figure["layout"]["xaxis"] |= {"type": "log", "range": [ends[0] - 0.1, ends[1] + 0.1]}
    figure["data"].append(diamonds(answer.tau_median, np.arange(len(answer.names)), "median of the steps"))
    return figure


def _components(answer: Dynamics, action: int) -> Figure:
    """Plot the steps in the plane of the first two principal components, coloured by an action mean."""
    found = answer.components
    name, mean = plain(answer.slopes.action_names[action]), found.action_mean[:, action]
    some = np.unique(np.linspace(0, len(mean) - 1, min(_MAX_POINTS, len(mean))).astype(int))
    limit = max(float(np.abs(mean).max()), 1e-6)
    data = []
    for sign, symbol, word in ((1, "triangle-up", "above 0"), (-1, "triangle-down", "below 0")):
        own = some[(mean[some] >= 0) == (sign > 0)]
        marker = {"symbol": symbol, "size": 6, "color": packed(mean[own]), "coloraxis": "coloraxis"}
        x, y = found.projections[own, 0], found.projections[own, 1]
        trace = line(x, y, "", "") | {"mode": "markers", "marker": marker}
        del trace["line"]
        trace |= {
            "customdata": np.stack([found.episode[own], found.step[own]], 1).tolist(),
            "hovertemplate": "episode %{customdata[0]}, step %{customdata[1]}<extra></extra>",
        }
        color = "--pos" if sign > 0 else "--neg"
        key = {"type": "scatter", "mode": "markers", "x": [None], "y": [None]}
        key |= {"name": f"{name} mean {word}, full color at {sign * limit:.3g}"}
        data += [trace | {"showlegend": False}, key | {"marker": {"symbol": symbol, "size": 8, "color": color}}]
    coloraxis = {"cmin": -limit, "cmax": limit, "showscale": False}
    layout = {**axes(_title(found, 0), _title(found, 1)), "height": 460, "coloraxis": coloraxis}
    return {"data": data, "layout": layout}


def _title(found: Components, i: int) -> str:
    return f"component {i + 1} [potential], {found.explained[i]:.0%} of the variance"
