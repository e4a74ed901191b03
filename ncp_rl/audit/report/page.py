"""The page from an audit: what the template shows, and the policy that lets nothing else run."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ncp_rl.audit.audit import Audit, Subject, on_runs
from ncp_rl.audit.question import Question, RecordingQuestion, RunsQuestion
from ncp_rl.audit.report import data
from ncp_rl.audit.section import Paragraph, Part, number
from ncp_rl.audit.verdict import Verdict

_SCRIPTS = ("cell.js", "episode.js", "player.js", "page.js")
# Share of the page that episodes may fill before later ones are left out; pictures take what remains.
_EPISODES_SHARE = 0.7


class _Section(NamedTuple):
    """What a question shows: one after the other of each recording, or once of all runs."""

    question: Question[Any, Any]
    by_recording: bool
    parts: tuple[tuple[Part, ...], ...]


def write_report(
    audit: Audit,
    path: Path,
    *,
    title: str = "What the controller did, why, and what it can never do",
    max_bytes: int = 10_000_000,
) -> Path:
    """Write a page that shows an audit; it works offline, from a file, and asks nothing of any network.

    Args:
        audit: The audit.
        path: New file; one that exists is replaced.
        title: Of the page.
        max_bytes: Of the page. Episodes that do not fit are left out, and the page says so; pictures are thinned out.

    Returns:
        The path.
    """
    shown = _fitting(audit, int(_EPISODES_SHARE * max_bytes))
    packed = {
        f"episode-{r}-{e}": data.pack(audit.subjects[r].episodes[i])
        for r, indices in enumerate(shown)
        for e, i in enumerate(indices)
    }
    css, script = (_text("style.css"), "\n".join(map(_text, _SCRIPTS)))
    plotly = get_plotlyjs()
    context = dict(
        title=title,
        audit=audit,
        policy=_policy(script, plotly, css),
        css=Markup(css),
        script=Markup(script),
        plotly=Markup(_packed_plotly()),
        anchors=_anchors(audit.questions),
        sections=list(_sections(audit)),
        run_verdicts=list(_run_verdicts(audit)),
        subjects=[_subject(*pair) for pair in zip(audit.subjects, shown, strict=True)],
        left_out=list(_left_out(audit, shown)),
        data={"subjects": [data.describe(*pair) for pair in zip(audit.subjects, shown, strict=True)]},
        islands=packed,
        pictures={},
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ncp_rl.audit.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = number
    environment.tests["part"] = _is_part
    template = environment.get_template("page.html.jinja")
    room = max_bytes - len(template.render(context).encode())
    context["pictures"] = dict(_pictures(audit, shown, room - 20_000))
    path.write_text(template.render(context), encoding="utf-8")
    return path


@functools.cache
def _packed_plotly() -> str:
    return data.compress(get_plotlyjs().encode())


def _fitting(audit: Audit, room: int) -> list[list[int]]:
    """Which episodes of each recording the page holds: the first ones, recordings taking turns while there is room.

    The player has none of a recording that is not explained.
    """
    shown: list[list[int]] = [[] for _ in audit.subjects]
    for i in range(max((len(subject.episodes) for subject in audit.subjects), default=0)):
        for own, subject in zip(shown, audit.subjects, strict=True):
            if i < len(subject.episodes) and "explain" in subject.answers and (room > 0 or not own):
                room -= len(data.pack(subject.episodes[i]))
                own += [i] if room > 0 or not own else []
    return shown


def _left_out(audit: Audit, shown: Sequence[Sequence[int]]) -> Iterator[str]:
    for subject, own in zip(audit.subjects, shown, strict=True):
        if not own:
            yield f"{subject.name} is not in the player. {subject.skipped.get('explain', 'It was not explained.')}"
        elif len(own) < len(subject.recording):
            seen = "more" if subject.sampled else "all"
            yield (
                f"The page has room for {len(own)} of the {len(subject.recording)} episodes of {subject.name}; "
                f"verdicts and plots are of {seen} of them."
            )
        if subject.sampled:
            yield f"{subject.name}: {subject.sampled}"


def _pictures(audit: Audit, shown: Sequence[Sequence[int]], room: int) -> Iterator[tuple[str, Any]]:
    for r, (subject, own) in enumerate(zip(audit.subjects, shown, strict=True)):
        found = data.pictures(subject, own, room // len(audit.subjects))
        for e, i in enumerate(own):
            if found.get(i):
                yield f"pictures-{r}-{e}", {kind: asdict(pictures) for kind, pictures in found[i].items()}


def _sections(audit: Audit) -> Iterator[_Section]:
    """A section for each question that has a title, in their order."""
    for question in audit.questions:
        if not question.title or not _told(audit, question):
            continue
        if isinstance(question, RecordingQuestion):
            parts = tuple(_parts(question, subject.answers, subject.skipped) for subject in audit.subjects)
            yield _Section(question, True, parts)
        else:
            yield _Section(question, False, (_parts(question, audit.of_runs.answers, audit.of_runs.skipped),))


def _told(audit: Audit, question: Question[Any, Any]) -> bool:
    """Whether it was asked, or it was said why not."""
    asked = audit.subjects if isinstance(question, RecordingQuestion) else (audit.of_runs,)
    return any(question.name in found.answers or question.name in found.skipped for found in asked)


def _parts(question: Question[Any, Any], answers: Mapping[str, Any], skipped: Mapping[str, str]) -> tuple[Part, ...]:
    if question.name in answers:
        return tuple(question.section(answers[question.name]))
    return (Paragraph(skipped.get(question.name, "Not asked."), "notice"),)


def _run_verdicts(audit: Audit) -> Iterator[tuple[RunsQuestion[Any], list[Verdict]]]:
    """Verdicts on all runs, by question."""
    for question in on_runs(audit.questions):
        if own := audit.of_runs.verdicts_on(question):
            yield question, own


def _anchors(questions: Sequence[Question[Any, Any]]) -> dict[str, str]:
    """Id of the element that says more of each check; what has no section stands with the manifest."""
    return {q.name: q.anchor or (q.name if q.title else "manifest") for q in questions}


def _subject(subject: Subject, shown: Sequence[int]) -> dict[str, Any]:
    """What the template shows of a recording besides the answers to questions."""
    return dict(
        name=subject.name,
        about=_about(subject),
        verdicts=subject.verdicts,
        skipped=subject.skipped,
        encoder=_encoder(subject),
        senses=_senses(subject),
        is_played=bool(shown),
        facts=_facts(subject),
        manifest=json.dumps(subject.recording.manifest, indent=1, ensure_ascii=False),
    )


def _about(subject: Subject) -> str:
    wiring = subject.recording.circuit.wiring
    layers = [("inter", wiring.units - wiring.n_motor - wiring.n_command), ("command", wiring.n_command)]
    neurons = ", ".join(f"{n} {name}" for name, n in [("sensory", wiring.n_sensory), *layers])
    n_synapses = len(wiring.synapses.source) + len(wiring.sensory_synapses.source)
    environment, encoder = (
        _at(subject.recording.manifest, *at) for at in (("environment", "id"), ("policy", "encoder"))
    )
    return (
        f"{len(subject.recording)} episodes, {subject.n_steps} steps of {environment}. The circuit: {neurons} and "
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
        "SHA-256 of the file": _sha256(path),
        "SHA-256 of the policy": _at(manifest, "policy", "sha256"),
        "environment": _at(manifest, "environment", "description"),
        "created": manifest.get("created"),
        "seed": manifest.get("seed"),
        "deterministic actions": manifest.get("deterministic"),
        "git commit": f"{_at(manifest, 'git', 'commit')}, modified: {_at(manifest, 'git', 'modified')}",
        "ended": subject.recording.ending or "no: the file has no seal",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else versions,
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _at(manifest: Any, *keys: str) -> Any:
    """An entry of a manifest, which may hold anything; None where there is none."""
    for key in keys:
        manifest = manifest.get(key) if isinstance(manifest, dict) else None
    return manifest


def _is_part(part: Part, kind: str) -> bool:
    """For the template: `part is part("Plot")`."""
    return type(part).__name__ == kind


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
