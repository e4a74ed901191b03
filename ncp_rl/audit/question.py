"""`Question`: what an audit asks, and all that follows from the answer: verdict, JSON and section of the report.

    class NSteps(RecordingQuestion[int]):
        name = "n_steps"
        schema: ClassVar[Schema] = {"n_steps": {"type": "integer"}}
        title, navigation = "How long was it?", "Length"

        def ask(self, evidence, plan):
            return sum(map(len, evidence.episodes))

        def verdicts(self, answer):
            return [Verdict(self.name, answer > 0, f"It lasted {answer} steps.", {"steps": answer})]

        def entries(self, answer):
            return {"n_steps": answer}

        def section(self, answer):
            yield Paragraph(f"{answer} steps.")

    audit_recording(recording, "mine", questions=(*QUESTIONS, NSteps()))

Verdicts, audit.json and its schema, the report and its navigation, and what `--fail-on` knows all follow from the tuple
of questions. Where none is given, that is `ncp_rl.audit.questions.QUESTIONS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ncp_rl.audit.plan import Plan
from ncp_rl.audit.section import Part
from ncp_rl.audit.verdict import Verdict
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode, Recording

#: JSON Schemas by key.
Schema = Mapping[str, Mapping[str, Any]]
AnswerT = TypeVar("AnswerT")
EvidenceT = TypeVar("EvidenceT")


@dataclass(frozen=True)
class Evidence:
    """A recording, and what else there is for questions on it.

    Attributes:
        recording: The recording, with its circuit and its file.
        episodes: All episodes of it, one at least.
        run: Folder of the run that was recorded; None where only the recording is there.
        faults: By name: episodes with a fault, and the step at which it begins in each.
        public_key: That must have signed the recording; None where none must.
    """

    recording: Recording
    episodes: tuple[Episode, ...]
    run: Path | None = None
    faults: Mapping[str, tuple[Sequence[Episode], Sequence[int]]] = field(default_factory=dict)
    public_key: Ed25519PublicKey | None = None

    @property
    def circuit(self) -> Circuit:
        """The circuit that acted."""
        return self.recording.circuit


@dataclass(frozen=True)
class Runs:
    """Run folders by name, NCPs and baselines; and whether to show progress."""

    folders: Mapping[str, Path]
    progress_bar: bool = False


class Question(ABC, Generic[EvidenceT, AnswerT]):
    """A question that has one answer; see the module for an example. It is asked of each recording or of all runs.

    Attributes:
        name: One word. Answers are kept under it, and its verdicts are checks of this name.
        schema: JSON Schema of each key of `entries`. Where the question was not asked, a key holds its "default" or
            null.
        title: Heading of its section in the report; without one it has no section.
        navigation: Word for the section among the links on top of the page.
        lead: Paragraph under the title.
        anchor: Id of the element of the page to which its verdicts link; where empty, its own section, or else the
            manifest.
        must_pass: Whether ncp-rl audit exits with status 1 where a verdict fails and no `--fail-on` says otherwise.
    """

    name: ClassVar[str]
    schema: ClassVar[Schema] = {}
    title: ClassVar[str] = ""
    navigation: ClassVar[str] = ""
    lead: ClassVar[str] = ""
    anchor: ClassVar[str] = ""
    must_pass: ClassVar[bool] = False

    def concerns(self, evidence: EvidenceT) -> bool:
        """Whether there is what it is about: a question on images is left out, without a word, where there are none."""
        return True

    def lacks(self, evidence: EvidenceT, plan: Plan) -> str | None:
        """What is missing for an answer, in a sentence; None where nothing is."""
        return None

    def why_not(self, evidence: EvidenceT, plan: Plan) -> str | None:
        """Why it is not asked, in a sentence; None where it is."""
        return self.lacks(evidence, plan)

    @abstractmethod
    def ask(self, evidence: EvidenceT, plan: Plan) -> AnswerT:
        """The answer; `why_not` has said nothing against asking."""

    def verdicts(self, answer: AnswerT) -> Sequence[Verdict]:
        """Verdicts on the answer, each with the question's name as its check."""
        return ()

    def entries(self, answer: AnswerT) -> Mapping[str, Any]:
        """What audit.json holds of the answer, by the keys of `schema`."""
        return {}

    def entries_unasked(self) -> dict[str, Any]:
        """What audit.json holds where the question was not asked."""
        return {key: schema.get("default") for key, schema in self.schema.items()}

    def section(self, answer: AnswerT) -> Iterable[Part]:
        """What the section shows of the answer."""
        return ()


class RecordingQuestion(Question[Evidence, AnswerT]):
    """Asked of each recording."""

    def not_for(self, circuit: Circuit) -> str | None:
        """Why the question has no answer for this circuit, in a sentence; None where it has.

        What holds for each kind of neurons stands with them: `ncp_rl.cell.RecurrentCell.unanswered`.
        """
        return circuit.core.unanswered.get(self.name)

    def why_not(self, evidence: Evidence, plan: Plan) -> str | None:
        """Why it is not asked: first the circuit, then what else is missing."""
        return self.not_for(evidence.circuit) or self.lacks(evidence, plan)


class RunsQuestion(Question[Runs, AnswerT]):
    """Asked once, of all runs side by side.

    Attributes:
        verdicts_title: Heading of its verdicts in the report, where those on recordings have the recording's name.
    """

    verdicts_title: ClassVar[str]


@dataclass(frozen=True)
class Asked:
    """What came of some questions.

    Attributes:
        answers: By name of the question.
        verdicts: Of all answers, in the order of the questions.
        skipped: What was not asked, and why, by name of the question.
    """

    answers: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    skipped: Mapping[str, str]

    def verdicts_on(self, question: Question[Any, Any]) -> list[Verdict]:
        """The verdicts on one question's answer."""
        return [verdict for verdict in self.verdicts if verdict.check == question.name]


def ask(questions: Iterable[Question[EvidenceT, Any]], evidence: EvidenceT, plan: Plan) -> Asked:
    """Ask questions of the same evidence, one after the other.

    Raises:
        ValueError: Two questions have one name, or a verdict is not of its question's name.
    """
    answers: dict[str, Any] = {}
    verdicts: list[Verdict] = []
    skipped: dict[str, str] = {}
    for question in questions:
        if question.name in answers or question.name in skipped:
            raise ValueError(f"There are two questions {question.name!r}; answers are kept by name, so rename one.")
        if not question.concerns(evidence):
            continue
        why = question.why_not(evidence, plan)
        if why is not None:
            skipped[question.name] = why
            continue
        answers[question.name] = question.ask(evidence, plan)
        own = question.verdicts(answers[question.name])
        wrong = [verdict.check for verdict in own if verdict.check != question.name]
        if wrong:
            raise ValueError(
                f"Verdicts of the question {question.name!r} must have it as their check, got {wrong[0]!r}."
            )
        verdicts += own
    return Asked(answers, tuple(verdicts), skipped)
