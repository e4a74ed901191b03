"""The page from an audit: what the template shows, and the policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ncp_rl.audit.audit import Audit, Subject
from ncp_rl.audit.report import data, figures
from ncp_rl.ltc import LTC

# Which section answers a check; those of the file itself stand with the manifest.
_SECTIONS = {"explain": "player"} | {
    name: name for name in ("certificate", "sensitivity", "perturbation", "monitor", "dynamics", "trees")
}
_SCRIPTS = ("cell.js", "episode.js", "player.js", "page.js")
# Plots of this many actions; tables have all of them.
_MAX_ACTIONS = 4
# Share of the page that episodes may fill before later ones are left out; pictures take what remains.
_EPISODES_SHARE = 0.7


def write_report(
    audit: Audit,
    path: Path,
    *,
    title: str = "What the controller did, why, and what it can never do",
    level_units: Mapping[str, str] | None = None,
    max_bytes: int = 10_000_000,
) -> Path:
    """Write a page that shows an audit; it works offline, from a file, and asks nothing of any network.

    Args:
        audit: The audit.
        path: New file; one that exists is replaced.
        title: Of the page.
        level_units: What the level of each disturbance counts, by its name.
        max_bytes: Of the page. Episodes that do not fit are left out, and the page says so; pictures are thinned out.

    Returns:
        The path.

    Raises:
        ValueError: A recording is of neurons that the page has no equations for: CfC.
    """
    for subject in audit.subjects:
        if subject.recording.circuit.cell != LTC.cell:
            raise ValueError(f"The page shows LTC neurons alone; leave {subject.name} out, whose neurons are others.")
    shown = _fitting(audit, int(_EPISODES_SHARE * max_bytes))
    packed = {
        f"episode-{r}-{e}": data.pack(audit.subjects[r].episodes[i])
        for r, indices in enumerate(shown)
        for e, i in enumerate(indices)
    }
    plots = dict(_figures(audit, level_units or {}))
    css, script = (_text("style.css"), "\n".join(map(_text, _SCRIPTS)))
    plotly = get_plotlyjs()
    context = dict(
        title=title,
        audit=audit,
        policy=_policy(script, plotly, css),
        css=Markup(css),
        script=Markup(script),
        plotly=Markup(data.compress(plotly.encode())),
        sections=_SECTIONS,
        subjects=[_subject(r, subject) for r, subject in enumerate(audit.subjects)],
        left_out=list(_left_out(audit, shown)),
        figures=plots,
        disturbances={id: name for id, name in _disturbances(audit).items()},
        nominal_rows=_nominal_rows(audit),
        data={"subjects": [data.describe(*pair) for pair in zip(audit.subjects, shown, strict=True)]},
        islands=packed,
        pictures={},
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ncp_rl.audit.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = _number
    template = environment.get_template("page.html.jinja")
    room = max_bytes - len(template.render(context).encode())
    context["pictures"] = dict(_pictures(audit, shown, room - 20_000))
    path.write_text(template.render(context), encoding="utf-8")
    return path


def _fitting(audit: Audit, room: int) -> list[list[int]]:
    """Which episodes of each recording the page holds: the first ones, recordings taking turns while there is room."""
    shown: list[list[int]] = [[] for _ in audit.subjects]
    for i in range(max((len(subject.episodes) for subject in audit.subjects), default=0)):
        for own, subject in zip(shown, audit.subjects, strict=True):
            if i < len(subject.episodes) and (room > 0 or not own):
                room -= len(data.pack(subject.episodes[i]))
                own += [i] if room > 0 or not own else []
    return shown


def _left_out(audit: Audit, shown: Sequence[Sequence[int]]) -> Iterator[str]:
    for subject, own in zip(audit.subjects, shown, strict=True):
        if len(own) < len(subject.episodes):
            yield (
                f"The page has room for {len(own)} of the {len(subject.episodes)} episodes of {subject.name}; verdicts "
                "and plots are of all of them."
            )


def _pictures(audit: Audit, shown: Sequence[Sequence[int]], room: int) -> Iterator[tuple[str, Any]]:
    for r, (subject, own) in enumerate(zip(audit.subjects, shown, strict=True)):
        found = data.pictures(subject, own, room // len(audit.subjects))
        for e, i in enumerate(own):
            if i in found:
                yield f"pictures-{r}-{e}", {"stride": found[i].stride, "files": list(found[i].files)}


def _figures(audit: Audit, level_units: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for r, subject in enumerate(audit.subjects):
        yield from _subject_figures(r, subject)
    if audit.perturbation is not None:
        names = _disturbances(audit)
        for id, name in names.items():
            yield id, figures.perturbed(audit.perturbation, name, level_units.get(name, "of the disturbance"))
        others = [p.condition for p in audit.perturbation.points if p.condition not in names.values()]
        if others:
            yield "ablations", figures.clamped(audit.perturbation, list(dict.fromkeys(others)))


def _subject_figures(r: int, subject: Subject) -> Iterator[tuple[str, Any]]:
    if subject.certificate is not None and not subject.certificate.violations:
        yield f"certificate-action-{r}", figures.certified_actions(subject)
        yield f"certificate-{r}", figures.certified_neurons(subject)
    if subject.sensitivities:
        yield f"sensitivity-{r}", figures.sensitivities(subject)
    if subject.monitor is not None:
        yield f"monitor-{r}", figures.monitor_scores(subject)
        if subject.monitor.detection:
            yield f"faults-{r}", figures.fault_scores(subject)
    yield f"tau-{r}", figures.time_constants(subject)
    for action in range(min(_MAX_ACTIONS, len(subject.recording.circuit.action_names))):
        if _has_components(subject):
            yield f"components-{action}-{r}", figures.components(subject, action)
        yield f"ablation-{action}-{r}", figures.ablation(subject, action)


def _disturbances(audit: Audit) -> dict[str, str]:
    """Names of what was swept over levels, by the id of its plot."""
    points = () if audit.perturbation is None else audit.perturbation.points
    swept = dict.fromkeys(point.condition for point in points if point.level)
    return {f"perturbation-{i}": name for i, name in enumerate(swept)}


def _has_components(subject: Subject) -> bool:
    return subject.dynamics is not None and len(subject.dynamics.components.axes) > 1


def _subject(number: int, subject: Subject) -> dict[str, Any]:
    """What the template shows of a recording."""
    dynamics, certificate, circuit = subject.dynamics, subject.certificate, subject.recording.circuit
    assert dynamics is not None and certificate is not None and subject.provoked is not None
    means = np.concatenate([episode.action_mean for episode in subject.episodes])
    actions, trees = circuit.action_names, subject.trees
    slopes, effects = dynamics.slopes, subject.effects
    dead = ["yes" if dead else "no" for dead in dynamics.dead]
    return dict(
        number=number,
        name=subject.name,
        about=_about(subject),
        verdicts=subject.verdicts,
        skipped=subject.skipped,
        encoder=_encoder(subject),
        senses=_senses(subject),
        violations=certificate.violations,
        sensitive=bool(subject.sensitivities),
        watched=dynamics.components.watched,
        has_components=_has_components(subject),
        plotted_actions=actions[:_MAX_ACTIONS],
        n_actions=len(actions),
        action_rows=_columns(actions, *certificate.action, *subject.provoked, means.min(0), means.max(0)),
        neuron_rows=_columns(dynamics.names, *certificate.box, *certificate.range, dynamics.low, dynamics.high),
        dynamics_rows=_columns(
            dynamics.names,
            *dynamics.tau_bounds,
            *(dynamics.tau_low, dynamics.tau_median, dynamics.tau_high),
            *(dynamics.mean, dynamics.std, dynamics.saturation, dead),
        ),
        slope_header=[f"{kind} {name}" for name in actions for kind in ("slope of", "R\u00b2 of")],
        slope_rows=_columns(
            slopes.watched.names, *(row for pair in zip(slopes.slope, slopes.r2, strict=True) for row in pair)
        ),
        effect_header=[f"{name} {kind}" for name in actions for kind in ("root mean square", "largest")],
        effect_rows=[[str(e.ablation), *np.stack([e.rms, e.largest], 1).ravel().tolist()] for e in effects],
        trees=() if trees is None else trees.trees,
        **_monitor(subject),
        facts=_facts(subject),
        manifest=json.dumps(subject.recording.manifest, indent=1, ensure_ascii=False),
    )


def _monitor(subject: Subject) -> dict[str, Any]:
    found = subject.monitor
    if found is None:
        return dict(monitor=None, envelope_rows=[], detection_rows=[], alarms=[])
    counted = {
        "conformal": (found.conformal, found.false_alarms),
        "box": (found.box, found.box_false_alarms),
        "mahalanobis": (found.mahalanobis, found.mahalanobis_false_alarms),
    }
    detections = ((name, detection.to_dict()) for name, detection in found.detection.items())
    return dict(
        monitor=found,
        envelope_rows=[
            [name, envelope.threshold, alarms.n_episodes, alarms.n_alarms, alarms.rate]
            for name, (envelope, alarms) in counted.items()
        ],
        detection_rows=[
            [name, told["n_episodes"], told["rate"], told["median_delay_steps"]] for name, told in detections
        ],
        alarms=[str(watched.alarm) for watched in found.held_out if watched.alarm is not None],
    )


def _nominal_rows(audit: Audit) -> list[list[Any]]:
    nominal = {} if audit.perturbation is None else audit.perturbation.nominal
    return [[name, *point.mean_return, point.failure_rate.mean] for name, point in nominal.items()]


def _about(subject: Subject) -> str:
    wiring = subject.recording.circuit.wiring
    n_steps = sum(map(len, subject.episodes))
    layers = [("inter", wiring.units - wiring.n_motor - wiring.n_command), ("command", wiring.n_command)]
    neurons = ", ".join(f"{n} {name}" for name, n in [("sensory", wiring.n_sensory), *layers])
    n_synapses = len(wiring.synapses.source) + len(wiring.sensory_synapses.source)
    environment, encoder = (
        _at(subject.recording.manifest, *at) for at in (("environment", "id"), ("policy", "encoder"))
    )
    return (
        f"{len(subject.episodes)} episodes, {n_steps} steps of {environment}. The circuit: {neurons} and "
        f"{wiring.n_motor} motor neurons, {n_synapses} synapses. Encoder: {encoder}."
    )


def _encoder(subject: Subject) -> str:
    if len(_senses(subject)) > 1 or "Receptors" in str(_at(subject.recording.manifest, "policy", "encoder")):
        return "Receptors: each sensory neuron carries one observed quantity, by a gain and an offset of its own."
    return "A dense or convolutional encoder: each sensory neuron mixes what is observed, its name is only a number."


def _senses(subject: Subject) -> dict[str, list[str]]:
    """Sensory neurons by what they carry: their names without the number at the end."""
    senses: dict[str, list[str]] = {}
    for name in subject.recording.circuit.sensory_names:
        stem, _, number = name.rpartition("_")
        senses.setdefault(stem if stem and number.isdecimal() else name, []).append(name)
    return senses


def _facts(subject: Subject) -> dict[str, Any]:
    manifest, path = subject.recording.manifest, subject.recording.path
    versions = manifest.get("versions")
    return {
        "file": path.name,
        "SHA-256 of the file": hashlib.sha256(path.read_bytes()).hexdigest(),
        "SHA-256 of the policy": _at(manifest, "policy", "sha256"),
        "environment": _at(manifest, "environment", "description"),
        "created": manifest.get("created"),
        "seed": manifest.get("seed"),
        "deterministic actions": manifest.get("deterministic"),
        "git commit": f"{_at(manifest, 'git', 'commit')}, modified: {_at(manifest, 'git', 'modified')}",
        "ended": subject.recording.ending or "no: the file has no seal",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else versions,
    }


def _at(manifest: Any, *keys: str) -> Any:
    """An entry of a manifest, which may hold anything; None where there is none."""
    for key in keys:
        manifest = manifest.get(key) if isinstance(manifest, dict) else None
    return manifest


def _columns(names: Sequence[str], *columns: Any) -> list[list[Any]]:
    return [[name, *values] for name, *values in zip(names, *columns, strict=True)]


def _number(value: Any) -> str:
    """A number with four digits, as the tables show it; text as it is."""
    if value is None or isinstance(value, str):
        return value or "none"
    return f"{value:.4g}" if math.isfinite(value) else "none"


def _policy(script: str, plotly: str, css: str) -> str:
    """The page's scripts and styles by their hashes, pictures from the page itself, and nothing else.

    plotly.js fills an empty style element by rules, which takes the hash of nothing.
    """
    scripts, styles = (" ".join(map(_hash, texts)) for texts in ((script, plotly), (css, "")))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; connect-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return resources.files("ncp_rl.audit.report").joinpath(name).read_text(encoding="utf-8")
