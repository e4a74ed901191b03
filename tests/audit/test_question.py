"""A question is registered here alone, and all that an audit makes of a question is there."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import numpy as np
import pytest
import torch

from ncp_rl.audit import (
    QUESTIONS,
    Audit,
    Evidence,
    Grid,
    Heading,
    Paragraph,
    Part,
    Plan,
    Plot,
    Question,
    RecordingQuestion,
    Runs,
    RunsQuestion,
    Schema,
    Table,
    Verdict,
    audit_recording,
    audit_sources,
    failures,
    write_report,
)
from ncp_rl.audit.plots import line
from ncp_rl.audit.questions.explain import ExplainQuestion
from ncp_rl.audit.schema import audit_schema
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Recording, record_rollouts
from tests.audit.circuits import circuit
from tests.audit.episodes import pendulum, small_model

MARKUP = "<b>3 & 4</b>"


class Length(RecordingQuestion[int]):
    name = "length"
    schema: ClassVar[Schema] = {"length": {"type": "integer", "minimum": 1}}
    title, navigation, lead = "How long was it?", "Length", "Steps of all episodes."

    def ask(self, evidence: Evidence, plan: Plan) -> int:
        return sum(map(len, evidence.episodes))

    def verdicts(self, answer: int) -> list[Verdict]:
        return [Verdict(self.name, answer > 1000, f"It lasted {answer} steps.", {"steps": answer})]

    def entries(self, answer: int) -> dict[str, int]:
        return {"length": answer}

    def section(self, answer: int) -> Iterator[Part]:
        yield Paragraph(f"{answer} steps {MARKUP}", "hint")
        yield Heading("In detail")
        yield Plot("Steps", {"data": [line([0, 1], [0, answer], "steps", "--pos")], "layout": {}})
        yield Table("In numbers", ("recording", "steps"), [["all", answer]])
        yield Grid([("left", Plot("A", {"data": [], "layout": {}})), ("right", Plot("B", {"data": [], "layout": {}}))])


class Elsewhere(Length):
    """Length of circuits that there are none of."""

    name = "elsewhere"
    schema: ClassVar[Schema] = {"elsewhere": {"type": "integer"}}

    def not_for(self, circuit: Circuit) -> str | None:
        return "Lengths are of other circuits."


class CountRuns(RunsQuestion[int]):
    name = "count"
    schema: ClassVar[Schema] = {"count": {"type": "integer"}}
    title, navigation, verdicts_title = "How many?", "Count", "Counted"

    def ask(self, evidence: Runs, plan: Plan) -> int:
        return len(evidence.folders)

    def verdicts(self, answer: int) -> list[Verdict]:
        return [Verdict(self.name, True, "They were counted.", {"n": answer})]

    def entries(self, answer: int) -> dict[str, int]:
        return {"count": answer}

    def section(self, answer: int) -> Iterator[Part]:
        yield Paragraph(f"There are {answer} runs.")


TOYS: tuple[Question[Any, Any], ...] = (Length(), Elsewhere(), CountRuns())


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = pendulum(2, 15)
    path = tmp_path_factory.mktemp("question") / "short.mcap"
    return record_rollouts(small_model(venv), venv, path, n_episodes=2, progress_bar=False)


@pytest.fixture(scope="module")
def audited(recording: Path) -> tuple[Audit, Path]:
    """Asked the toys and nothing that takes time besides."""
    out = recording.parent / "out"
    asked = (ExplainQuestion(), *TOYS)
    return audit_sources([recording], out, Plan(n_moved_steps=2), questions=asked), out


def test_a_question_has_its_verdict_and_condition(audited: tuple[Audit, Path]) -> None:
    audit, _ = audited
    assert [verdict.check for verdict in audit.verdicts] == ["explain", "length", "count"]
    assert audit.subjects[0].answers["length"] == 30 and not audit.passed
    assert audit.lines()[2:4] == [
        "FAIL  length        It lasted 30 steps.",
        "skip  elsewhere     Lengths are of other circuits.",
    ]
    assert failures(audit, ["length", "length.steps>20", "length.steps<20", "elsewhere", "count.n>0"]) == [
        "length: It lasted 30 steps.",
        "length.steps>20: it is 30",
    ]


def test_a_question_has_its_json_and_schema(audited: tuple[Audit, Path]) -> None:
    audit, out = audited
    written, schema = json.loads((out / "audit.json").read_text()), audit_schema(audit.questions)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(written, schema)
    (subject,) = written["subjects"]
    assert (subject["length"], subject["elsewhere"], written["count"]) == (30, None, 0)
    assert subject["skipped"] == {"elsewhere": "Lengths are of other circuits."}
    assert written["count_verdicts"] == [
        {"check": "count", "passed": True, "sentence": "They were counted.", "figures": {"n": 0}}
    ]
    with pytest.raises(jsonschema.ValidationError, match="length"):
        jsonschema.validate(written | {"subjects": [subject | {"length": 0.5}]}, schema)
    with pytest.raises(jsonschema.ValidationError, match="length"):
        jsonschema.validate(written, audit_schema(QUESTIONS))


def test_a_question_has_its_section_and_navigation(audited: tuple[Audit, Path], tmp_path: Path) -> None:
    page = write_report(audited[0], tmp_path / "report.html").read_text()
    assert '<a href="#length">Length</a>' in page and '<a href="#count">Count</a>' in page
    section = page[page.index('<section id="length"') : page.index('<section id="elsewhere"')]
    for piece in (
        '<h2 id="length-title">How long was it?</h2>',
        "<p>Steps of all episodes.</p>",
        '<p class="hint">30 steps &lt;b&gt;3 &amp; 4&lt;/b&gt;</p>',
        "<h4>In detail</h4>",
        'data-figure="length-0-2" role="img" aria-label="Steps, short"',
        '<script type="application/json" id="length-0-2">{"data": [{',
        '<th scope="row">all</th><td>30</td>',
        "<h3>right</h3>",
        'id="length-0-4-1"',
    ):
        assert piece in section
    verdict = page[page.index('href="#length" data-choose="0"') :]
    assert verdict.startswith('href="#length" data-choose="0">length</a>\n<span>It lasted 30 steps.</span>')
    assert '<p class="notice">Lengths are of other circuits.</p>' in page
    assert "<h3>Counted</h3>" in page and "<p>There are 0 runs.</p>" in page


def test_names_keep_questions_apart(recording: Path) -> None:
    with pytest.raises(ValueError, match="Two questions have the name 'length'"):
        audit_recording(Recording.open(recording), "a", questions=(Length(), Length()))

    class Astray(Length):
        name = "astray"

        def verdicts(self, answer: int) -> list[Verdict]:
            return Length().verdicts(answer)

    with pytest.raises(ValueError, match="name of its question, 'astray', got 'length'"):
        audit_recording(Recording.open(recording), "a", questions=(Astray(),))


def test_bounds_on_moves_need_valid_parameters() -> None:
    broken = circuit()
    with torch.no_grad():
        broken.ltc.erev[0] = np.nan
    (sensitivity,) = (question for question in QUESTIONS if question.name == "sensitivity")
    assert isinstance(sensitivity, RecordingQuestion)
    why = sensitivity.not_for(broken)
    assert why is not None and why.startswith("Bounds on moves need parameters that are valid: erev of ")
    assert sensitivity.entries_unasked() == {"sensitivity": []}


def test_the_schema_is_published() -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "ncp_rl.audit.schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == audit_schema()
    names = [question.name for question in QUESTIONS]
    assert len(set(names)) == len(names)
    for question in QUESTIONS:
        for key in question.schema:
            assert f'"{key}": {{' in printed


def test_questions_that_are_not_named_are_left_out(recording: Path) -> None:
    subject = audit_recording(Recording.open(recording), "mine", Plan(questions=("chain",)))
    assert set(subject.answers) == {"chain"} and subject.skipped["explain"] == "It was left out by choice."
    with pytest.raises(ValueError, match="There is no question 'change'; there are ablation, certificate, chain"):
        audit_recording(Recording.open(recording), "mine", Plan(questions=("change",)))
