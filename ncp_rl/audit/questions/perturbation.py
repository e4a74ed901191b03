"""What happens under disturbances? Every run, baselines too, under every disturbance, over paired episodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ncp_rl.audit.perturb import Perturbation, Point, perturb
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.plots import COLORS, DASHES, SYMBOLS, Figure, line, packed, plain, row_layout
from ncp_rl.audit.question import Runs, RunsQuestion, Schema
from ncp_rl.audit.section import Grid, Heading, Paragraph, Part, Plot, Table
from ncp_rl.audit.verdict import Verdict
from ncp_rl.runs import Interval

_INTERVAL = {
    "type": "object",
    "properties": {end: {"type": "number"} for end in ("mean", "low", "high")},
    "required": ["mean", "low", "high"],
    "additionalProperties": False,
    "description": "Mean over episodes and its 95 % bootstrap interval.",
}
_POINT = {
    "type": "object",
    "properties": {
        "policy": {"type": "string"},
        "condition": {"type": "string"},
        "level": {"type": "number"},
        **dict.fromkeys(("mean_return", "return_change", "failure_rate"), _INTERVAL),
        "command_deviation": {"oneOf": [{"type": "null"}, _INTERVAL]},
    },
    "required": [
        *("policy", "condition", "level", "mean_return", "return_change", "failure_rate", "command_deviation"),
    ],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Sweep:
    """The perturbation of all runs, and how to judge and show it.

    Attributes:
        perturbation: Outcome of the sweep.
        max_loss: Largest share of the return that a disturbance may cost.
        level_units: Unit of the level of each disturbance, by its name.
    """

    perturbation: Perturbation
    max_loss: float = 0.5
    level_units: Mapping[str, str] = field(default_factory=dict)


class PerturbationQuestion(RunsQuestion[Sweep]):
    """Asks for the cost of disturbances. It passes for each run that no disturbance takes too much return from."""

    name = "perturbation"
    schema: ClassVar[Schema] = {
        "perturbation": {
            "type": "object",
            "properties": {
                "nominal": {"type": "object", "additionalProperties": _POINT},
                "points": {"type": "array", "items": _POINT},
                "level_zero_is_nominal": {"type": ["boolean", "null"]},
                "n_episodes": {"type": "integer"},
                "seed": {"type": "integer"},
            },
            "required": ["nominal", "points", "level_zero_is_nominal", "n_episodes", "seed"],
            "additionalProperties": False,
        }
    }
    title = "When the world is off"
    navigation = "Perturbation"
    verdicts_title = "Under disturbances"

    def lacks(self, evidence: Runs, plan: Plan) -> str | None:
        """Return what is missing: run folders, whose environments run again, or disturbances."""
        if not evidence.folders:
            return "Not asked: no run folder was given, and disturbances need environments to run."
        return None if plan.disturbances else "Not asked: no disturbance was named."

    def ask(self, evidence: Runs, plan: Plan) -> Sweep:
        """Sweep the plan's disturbances over their levels, for all runs."""
        found = perturb(
            evidence.folders,
            plan.disturbances,
            n_episodes=plan.n_perturb_episodes,
            seed=plan.seed,
            max_episode_steps=plan.max_episode_steps,
            n_processes=plan.n_processes,
            progress_bar=evidence.progress_bar,
        )
        return Sweep(found, plan.max_loss, plan.level_units)

    def verdicts(self, answer: Sweep) -> list[Verdict]:
        """Return a verdict for each run."""
        found = answer.perturbation
        return [found.verdict(policy, max_loss=answer.max_loss) for policy in found.nominal]

    def entries(self, answer: Sweep) -> dict[str, Any]:
        """Return every point of the sweep."""
        return {"perturbation": answer.perturbation.to_dict()}

    def section(self, answer: Sweep) -> Iterator[Part]:
        """Yield a plot for each disturbance, one of all ablations, and the undisturbed runs in numbers."""
        found = answer.perturbation
        yield Paragraph(
            f"{found.n_episodes} episodes of each policy at each level, from the same seeds; bars are 95 % bootstrap "
            "intervals over episodes. Failed: share of the episodes. Deviation: root mean square difference of the "
            "command neurons' potentials to the undisturbed episode."
        )
        swept = dict.fromkeys(point.condition for point in found.points if point.level)
        label = "Return, failures and deviation by level of {}"
        yield Grid([(name, Plot(label.format(name), _by_level(answer, name))) for name in swept])
        others = dict.fromkeys(point.condition for point in found.points if point.condition not in swept)
        if others:
            yield Heading("Neurons clamped and synapses cut", 3)
            yield Plot("Change of return under each ablation", _ablations(found, list(others)))
        rows = [[name, *point.mean_return, point.failure_rate.mean] for name, point in found.nominal.items()]
        yield Table("Undisturbed, in numbers", ("policy", "return", "from", "to", "episodes failed"), rows)


def _by_level(answer: Sweep, condition: str) -> Figure:
    """Plot return, failure rate and command neurons' deviation of all policies against a disturbance's level."""
    found, unit = answer.perturbation, answer.level_units.get(condition, "of the disturbance")
    measures = [("return", "mean_return"), ("failed [share]", "failure_rate"), ("deviation", "command_deviation")]
    data = []
    for policy, color, symbol, dash in zip(found.nominal, COLORS * 9, SYMBOLS * 9, DASHES * 9, strict=False):
        own = [point for point in found.points if (point.policy, point.condition) == (policy, condition)]
        for row, (_, measure) in enumerate(measures, 1):
            trace = _intervals(own, measure, plain(policy), color, dash)
            trace |= {"xaxis": "x", "yaxis": f"y{row}", "showlegend": row == 1, "legendgroup": policy}
            data.append(trace | {"mode": "lines+markers", "marker": {"symbol": symbol, "size": 8, "color": color}})
    # Each part of a unit has a line of its own: on one line they would be wider than the chart.
    axis = {"title": {"text": re.sub("([,;]) ", r"\1<br>", f"level [{plain(unit)}]")}, "anchor": "y3"}
    bands = ((0.5, 1.0), (0.26, 0.44), (0.0, 0.2))
    rows = {
        f"yaxis{row if row > 1 else ''}": {"title": {"text": name}, "domain": band, "rangemode": "tozero"}
        for row, ((name, _), band) in enumerate(zip(measures, bands, strict=True), 1)
    }
    return {"data": data, "layout": {"xaxis": axis, **rows, "height": 500}}


def _ablations(found: Perturbation, conditions: Sequence[str]) -> Figure:
    """Plot the change of return of every policy under each ablation."""
    data = []
    for policy, color, symbol in zip(found.nominal, COLORS * 9, SYMBOLS * 9, strict=False):
        own = {point.condition: point for point in found.points if point.policy == policy}
        changes = [(i, own[condition].return_change) for i, condition in enumerate(conditions) if condition in own]
        if changes:
            at, values = zip(*changes, strict=True)
            trace = line([value.mean for value in values], at, plain(policy), color) | {"mode": "markers"}
            trace["error_x"] = _error(values)
            data.append(trace | {"marker": {"symbol": symbol, "size": 8, "color": color}})
    return {"data": data, "layout": row_layout(conditions, "change of return")}


def _intervals(points: Sequence[Point], measure: str, name: str, color: str, dash: str) -> Figure:
    found = [(point.level, getattr(point, measure)) for point in points if getattr(point, measure) is not None]
    levels, values = [level for level, _ in found], [value for _, value in found]
    trace = line(levels, [value.mean for value in values], name, color, dash=dash)
    return trace | {"error_y": _error(values) | {"color": color}}


def _error(values: Sequence[Interval]) -> Figure:
    up, down = [value.high - value.mean for value in values], [value.mean - value.low for value in values]
    return {"type": "data", "symmetric": False, "array": packed(up), "arrayminus": packed(down), "thickness": 1.2}
