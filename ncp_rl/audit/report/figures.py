"""The report's plots, as the JSON that plotly.js takes; colours are names of the page's CSS variables."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ncp_rl.audit.audit import Subject
from ncp_rl.audit.dynamics import Components
from ncp_rl.audit.monitor import Watch
from ncp_rl.audit.perturb import Interval, Perturbation, Point

Figure = dict[str, Any]

# What tells policies apart besides their colours.
_COLORS = ("--pos", "--neg", "--third", "--fourth")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up")
_DASHES = ("solid", "dash", "dot", "dashdot")
# More points than these are drawn slowly and hide each other.
_MAX_POINTS = 2500


def packed(values: npt.ArrayLike) -> Figure:
    """An array as plotly.js reads it, float32 in base64."""
    array = np.ascontiguousarray(values, "<f4")
    return {"dtype": "f4", "bdata": base64.b64encode(array.tobytes()).decode()}


def plain(text: str) -> str:
    """Text that plotly.js shows as it is: it would take tags for formatting and links."""
    return html.escape(text, quote=False)


def certified_actions(subject: Subject) -> Figure:
    """Range of each action mean: certified, reached by an attack, and seen."""
    assert subject.certificate is not None and subject.provoked is not None
    means = np.concatenate([episode.action_mean for episode in subject.episodes])
    certified = subject.certificate.action
    bands = [
        ("certified, for every input", certified, "--faint", 16),
        ("reached by an attack", subject.provoked, "--third", 9),
        ("seen in the recording", (means.min(0), means.max(0)), "--accent", 4),
    ]
    return _ranges(subject.certificate.circuit.action_names, bands, "action mean [unit of the action]")


def certified_neurons(subject: Subject) -> Figure:
    """Range of each potential: from signs alone, certified, and seen."""
    assert subject.certificate is not None and subject.dynamics is not None
    certificate, dynamics = subject.certificate, subject.dynamics
    bands = [
        ("from signs alone", certificate.box, "--faint", 12),
        ("certified, for every input", certificate.range, "--third", 7),
        ("seen in the recording", (dynamics.low, dynamics.high), "--accent", 3),
    ]
    return _ranges(dynamics.names, bands, "potential [no unit]")


def time_constants(subject: Subject) -> Figure:
    """Time constant of each neuron: possible and seen."""
    assert subject.dynamics is not None
    dynamics = subject.dynamics
    bands = [
        ("possible, for every input", dynamics.tau_bounds, "--faint", 12),
        ("seen in the recording", (dynamics.tau_low, dynamics.tau_high), "--accent", 4),
    ]
    figure = _ranges(dynamics.names, bands, "time constant [s], logarithmic")
    ends = np.log10([dynamics.tau_bounds.low.min(), dynamics.tau_bounds.high.max()])
    figure["layout"]["xaxis"] |= {"type": "log", "range": [ends[0] - 0.1, ends[1] + 0.1]}
    median = _line(dynamics.tau_median, np.arange(len(dynamics.names)), "median of the steps", "--pos")
    figure["data"].append(median | {"mode": "markers", "marker": {"color": "--pos", "symbol": "diamond", "size": 7}})
    return figure


def sensitivities(subject: Subject) -> Figure:
    """How far each action mean can move, and how far an attack moved it, by the step."""
    data = []
    for told, color, symbol in zip(subject.sensitivities, _COLORS, _SYMBOLS, strict=False):
        for action, name in enumerate(told.action_names):
            steps, label = np.arange(1, len(told.bound) + 1), f"{plain(name)} from step {told.step}"
            data.append(_line(steps, told.bound[:, action], f"{label}: bound", color))
            found = _line(steps, told.found[:, action], f"{label}: attack", color, dash="dot")
            data.append(found | {"mode": "lines+markers", "marker": {"symbol": symbol, "size": 5}})
    axes = _axes("steps that are moved [steps]", "move of the action mean [its unit]")
    return {"data": data, "layout": {**axes, "height": 380}}


def monitor_scores(subject: Subject) -> Figure:
    """Scores of held-out episodes over time, the threshold, and alarms."""
    assert subject.monitor is not None
    watches, threshold = subject.monitor.held_out, subject.monitor.conformal.threshold
    return _scores({f"episode {watched.episode}": watched for watched in watches}, threshold)


def fault_scores(subject: Subject) -> Figure:
    """Scores of the first episode with each fault."""
    assert subject.monitor is not None
    first = {name: detection.watches[0] for name, detection in subject.monitor.detection.items()}
    return _scores(first, subject.monitor.conformal.threshold)


def components(subject: Subject, action: int) -> Figure:
    """Steps in the plane of the first two principal components, coloured by an action mean."""
    assert subject.dynamics is not None
    found = subject.dynamics.components
    name = plain(subject.dynamics.slopes.action_names[action])
    steps = np.concatenate([np.arange(len(episode)) for episode in subject.episodes])
    mean = found.action_mean[:, action]
    some = np.unique(np.linspace(0, len(mean) - 1, min(_MAX_POINTS, len(mean))).astype(int))
    limit = max(float(np.abs(mean).max()), 1e-6)
    data = []
    for sign, symbol, word in ((1, "triangle-up", "above 0"), (-1, "triangle-down", "below 0")):
        own = some[(mean[some] >= 0) == (sign > 0)]
        marker = {"symbol": symbol, "size": 6, "color": packed(mean[own]), "coloraxis": "coloraxis"}
        x, y = found.projections[own, 0], found.projections[own, 1]
        trace = _line(x, y, "", "") | {"mode": "markers", "marker": marker}
        del trace["line"]
        instants = np.stack([found.episode[own], steps[own]], 1).tolist()
        trace |= {
            "customdata": instants,
            "hovertemplate": "episode %{customdata[0]}, step %{customdata[1]}<extra></extra>",
        }
        color = "--pos" if sign > 0 else "--neg"
        key = {"type": "scatter", "mode": "markers", "x": [None], "y": [None]}
        key |= {"name": f"{name} mean {word}, full color at {sign * limit:.3g}"}
        data += [trace | {"showlegend": False}, key | {"marker": {"symbol": symbol, "size": 8, "color": color}}]
    coloraxis = {"cmin": -limit, "cmax": limit, "showscale": False}
    axes = _axes(_component_title(found, 0), _component_title(found, 1))
    return {"data": data, "layout": {**axes, "height": 460, "coloraxis": coloraxis}}


def ablation(subject: Subject, action: int) -> Figure:
    """Change of an action mean when each neuron is clamped, the strongest first."""
    effects = sorted(subject.effects, key=lambda effect: -float(effect.rms[action]))
    y = np.arange(len(effects))
    rms, largest = (np.array([getattr(effect, kind)[action] for effect in effects]) for kind in ("rms", "largest"))
    bar = {"type": "bar", "orientation": "h", "x": packed(rms), "y": packed(y), "name": "root mean square"}
    marks = _line(largest, y, "largest", "--pos") | {"mode": "markers"}
    marks["marker"] = {"color": "--pos", "symbol": "diamond", "size": 7}
    name = subject.recording.circuit.action_names[action]
    layout = _rows([str(effect.ablation) for effect in effects], f"change of {plain(name)} mean [its unit]")
    return {"data": [bar | {"marker": {"color": "--third"}}, marks], "layout": layout}


def perturbed(perturbation: Perturbation, condition: str, unit: str) -> Figure:
    """Return, failure rate and command neurons' deviation of all policies against the level of a disturbance."""
    measures = [("return", "mean_return"), ("failed [share]", "failure_rate"), ("deviation", "command_deviation")]
    data = []
    for policy, color, symbol, dash in zip(perturbation.nominal, _COLORS * 9, _SYMBOLS * 9, _DASHES * 9, strict=False):
        own = [point for point in perturbation.points if (point.policy, point.condition) == (policy, condition)]
        for row, (_, measure) in enumerate(measures, 1):
            trace = _intervals(own, measure, plain(policy), color, dash)
            trace |= {"xaxis": "x", "yaxis": f"y{row}", "showlegend": row == 1, "legendgroup": policy}
            data.append(trace | {"mode": "lines+markers", "marker": {"symbol": symbol, "size": 8, "color": color}})
    axis = {"title": {"text": f"level [{plain(unit)}]".replace(", ", ",<br>")}, "anchor": "y3"}
    bands = ((0.5, 1.0), (0.26, 0.44), (0.0, 0.2))
    rows = {
        f"yaxis{row if row > 1 else ''}": {"title": {"text": name}, "domain": band, "rangemode": "tozero"}
        for row, ((name, _), band) in enumerate(zip(measures, bands, strict=True), 1)
    }
    return {"data": data, "layout": {"xaxis": axis, **rows, "height": 500}}


def clamped(perturbation: Perturbation, conditions: Sequence[str]) -> Figure:
    """Change of return of every policy under each ablation."""
    data = []
    for policy, color, symbol in zip(perturbation.nominal, _COLORS * 9, _SYMBOLS * 9, strict=False):
        own = {point.condition: point for point in perturbation.points if point.policy == policy}
        found = [(i, own[condition].return_change) for i, condition in enumerate(conditions) if condition in own]
        if found:
            at, changes = zip(*found, strict=True)
            trace = _line([change.mean for change in changes], at, plain(policy), color) | {"mode": "markers"}
            trace["error_x"] = _error(changes)
            data.append(trace | {"marker": {"symbol": symbol, "size": 8, "color": color}})
    return {"data": data, "layout": _rows(conditions, "change of return")}


def _scores(watches: Mapping[str, Watch], threshold: float) -> Figure:
    """Scores over time under their names, the threshold, and a cross and the neuron at each alarm."""
    data, alarms = [], [watched.alarm for watched in watches.values() if watched.alarm is not None]
    for i, (name, watched) in enumerate(watches.items()):
        line = _line(watched.time, watched.scores, plain(name), _COLORS[i % 4], dash=_DASHES[i // 4 % 4])
        line["line"]["width"] = 1.4
        data.append(line)
    end = max(float(watched.time[-1]) for watched in watches.values())
    data.append(_line([0.0, end], [threshold, threshold], "threshold", "--text", dash="dash"))
    if alarms:
        marks = _line([alarm.time for alarm in alarms], [alarm.score for alarm in alarms], "alarm", "--text")
        marks |= {
            "mode": "markers+text",
            "textposition": "top center",
            "text": [plain(a.bad_input or a.neuron) for a in alarms],
        }
        data.append(marks | {"marker": {"color": "--text", "symbol": "x", "size": 11}})
    return {"data": data, "layout": {**_axes("time [s]", "score [no unit]"), "height": 380}}


def _component_title(found: Components, i: int) -> str:
    return f"component {i + 1} [potential], {found.explained[i]:.0%} of the variance"


def _intervals(points: Sequence[Point], measure: str, name: str, color: str, dash: str) -> Figure:
    found = [(point.level, getattr(point, measure)) for point in points if getattr(point, measure) is not None]
    levels, values = [level for level, _ in found], [value for _, value in found]
    trace = _line(levels, [value.mean for value in values], name, color, dash=dash)
    return trace | {"error_y": _error(values) | {"color": color}}


def _error(values: Sequence[Interval]) -> Figure:
    up, down = [value.high - value.mean for value in values], [value.mean - value.low for value in values]
    return {"type": "data", "symmetric": False, "array": packed(up), "arrayminus": packed(down), "thickness": 1.2}


def _ranges(names: Sequence[str], bands: Sequence[tuple[str, Any, str, int]], title: str) -> Figure:
    """Ranges of named things as bars, the widest behind."""
    data = []
    for name, (low, high), color, width in bands:
        gap = np.full(len(names), np.nan)
        x = np.stack([low, high, gap], 1).ravel()
        line = _line(x, np.repeat(np.arange(len(names)), 3), name, color)
        data.append(line | {"line": {"color": color, "width": width}, "connectgaps": False})
    layout, (low, high) = _rows(names, title), bands[0][1]
    margin = 0.02 * float(np.max(high) - np.min(low))
    layout["xaxis"]["range"] = [float(np.min(low)) - margin, float(np.max(high)) + margin]
    return {"data": data, "layout": layout}


def _rows(names: Sequence[str], title: str) -> Figure:
    """A row for each name, the first on top."""
    ticks = {"tickvals": list(range(len(names))), "ticktext": [plain(name) for name in names]}
    # Room for ticks, title and legend besides the rows.
    height, axis = 130 + 20 * len(names), {"range": [len(names) - 0.5, -0.5], "zeroline": False}
    return {"xaxis": {"title": {"text": title}}, "yaxis": {**axis, **ticks}, "height": height}


def _axes(x: str, y: str) -> Figure:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def _line(x: npt.ArrayLike, y: npt.ArrayLike, name: str, color: str, *, dash: str = "solid") -> Figure:
    line = {"color": color, "dash": dash, "width": 2}
    return {"type": "scatter", "mode": "lines", "x": packed(x), "y": packed(y), "name": name, "line": line}
