"""`Question`: a question of an audit, with the verdict, JSON and report section that follow from its answer.

    class NSteps(RecordingQuestion[int]):
        name = "n_steps"
        schema: ClassVar[Schema] = {"n_steps": {"type": "integer"}}
        title, navigation = "How long was it?", "Length"

        def ask(self, evidence, plan):
            return sum(map(len, evidence.every_episode()))

        def verdicts(self, answer):
            return [Verdict(self.name, answer > 0, f"It lasted {answer} steps.", {"steps": answer})]

        def entries(self, answer):
            return {"n_steps": answer}

        def section(self, answer):
            yield Paragraph(f"{answer} steps.")

    audit_recording(recording, "mine", questions=(*QUESTIONS, NSteps()))

Verdicts, audit.json and its schema, the report and its navigation, and the names that `--fail-on` knows all follow from
the tuple of questions, by default `ncp_rl.audit.questions.QUESTIONS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ncp_rl.audit.measurable import measurable
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
    """A recording, and what else a question about it may use.

    Attributes:
        recording: The recording, with its circuit and its file.
        episodes: Its episodes, at least one, the first among them: all of them, or of a recording of more steps than
            `Plan.max_steps` some, drawn at random.
        run: Folder of the run that was recorded; None where only the recording is there.
        faults: Episodes with a fault, and the step at which it begins in each, by the fault's name.
        public_key: Key that must have signed the recording; None where no signature is required.
    """

    recording: Recording
    episodes: tuple[Episode, ...]
    run: Path | None = None
    faults: Mapping[str, tuple[Sequence[Episode], Sequence[int]]] = field(default_factory=dict)
    public_key: Ed25519PublicKey | None = None

    def every_episode(self) -> Iterator[Episode]:
        """Yield all episodes of the recording, one in memory at a time where it is long.

        Raises:
            ncp_rl.recording.RecordingError: The file is damaged, or holds numbers that are not finite.
        """
        if len(self.episodes) == len(self.recording):
            yield from self.episodes
        else:
            yield from measurable(self.circuit, self.recording)

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
    """A question with one answer, about each recording or about all runs; the module has an example.

    Attributes:
        name: Name of the question, one word: the key of its answers, and the check of its verdicts.
        schema: JSON Schema of each key of `entries`. Where the question was not asked, a key holds its "default", or
            null.
        title: Heading of its section in the report; where empty, it has no section.
        navigation: Word for the section among the links on top of the page.
        lead: Paragraph under the title; where empty, there is none.
        anchor: Id of the element of the page to which its verdicts link; where empty, its own section, or else the
            manifest.
        must_pass: Whether ncp-rl audit exits with status 1 where a verdict fails, unless `--fail-on` sets other
            conditions.
        of_fleets: Whether ncp-rl audit asks it of each recording of a folder by default. An answer that depends on the
            circuit more than on what was recorded is much the same for all recordings of a policy.
    """

    name: ClassVar[str]
    schema: ClassVar[Schema] = {}
    title: ClassVar[str] = ""
    navigation: ClassVar[str] = ""
    lead: ClassVar[str] = ""
    anchor: ClassVar[str] = ""
    must_pass: ClassVar[bool] = False
    of_fleets: ClassVar[bool] = True

    def concerns(self, evidence: EvidenceT) -> bool:
        """Return whether the question applies: one about images is left out silently where there are no images."""
        return True

    def lacks(self, evidence: EvidenceT, plan: Plan) -> str | None:
        """Return a sentence on what is missing for an answer; None where nothing is missing."""
        return None

    def why_not(self, evidence: EvidenceT, plan: Plan) -> str | None:
        """Return a sentence on why the question is not asked; None where it is asked."""
        return self.lacks(evidence, plan)

    @abstractmethod
    def ask(self, evidence: EvidenceT, plan: Plan) -> AnswerT:
        """Return the answer. It is called where `why_not` returned None."""

    def verdicts(self, answer: AnswerT) -> Sequence[Verdict]:
        """Return verdicts on the answer, each with the question's name as its check."""
        return ()

    def entries(self, answer: AnswerT) -> Mapping[str, Any]:
        """Return the answer's entries of audit.json, by the keys of `schema`."""
        return {}

    def entries_unasked(self) -> dict[str, Any]:
        """Return the entries of audit.json where the question was not asked."""
        return {key: schema.get("default") for key, schema in self.schema.items()}

    def section(self, answer: AnswerT) -> Iterable[Part]:
        """Yield the parts of the answer's section of the report."""
        return ()


class RecordingQuestion(Question[Evidence, AnswerT]):
    """A question about each recording."""

    def not_for(self, circuit: Circuit) -> str | None:
        """Return a sentence on why the question has no answer for this circuit; None where it has one.

        The classes of neurons define this themselves: `ncp_rl.cell.RecurrentCell.unanswered`.
        """
        return circuit.core.unanswered.get(self.name)

    def why_not(self, evidence: Evidence, plan: Plan) -> str | None:
        """Return why the question is not asked: the circuit has no answer, or something is missing."""
        return self.not_for(evidence.circuit) or self.lacks(evidence, plan)


class RunsQuestion(Question[Runs, AnswerT]):
    """A question about all runs side by side, asked once.

    Attributes:
        verdicts_title: Heading of its verdicts in the report; verdicts about recordings stand under the recording's
            name.
    """

    verdicts_title: ClassVar[str]


@dataclass(frozen=True)
class Asked:
    """The answers to several questions.

    Attributes:
        answers: Answers by the question's name.
        verdicts: Verdicts on all answers, in the order of the questions.
        skipped: Reason why a question was not asked, by its name.
    """

    answers: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    skipped: Mapping[str, str]

    def verdicts_on(self, question: Question[Any, Any]) -> list[Verdict]:
        """Return the verdicts on one question's answer."""
        return [verdict for verdict in self.verdicts if verdict.check == question.name]


def ask(questions: Iterable[Question[EvidenceT, Any]], evidence: EvidenceT, plan: Plan) -> Asked:
    """Ask questions of the same evidence, one after the other.

    Raises:
        ValueError: Two questions have the same name, or a verdict's check is not its question's name.
    """
    answers: dict[str, Any] = {}
    verdicts: list[Verdict] = []
    skipped: dict[str, str] = {}
    for question in questions:
        if question.name in answers or question.name in skipped:
            raise ValueError(f"Two questions have the name {question.name!r}; answers are kept by name, so rename one.")
        if not question.concerns(evidence):
            continue
        left_out = plan.questions is not None and question.name not in plan.questions
        why = "It was left out by choice." if left_out else question.why_not(evidence, plan)
        if why is not None:
            skipped[question.name] = why
            continue
        answers[question.name] = question.ask(evidence, plan)
        own = question.verdicts(answers[question.name])
        wrong = [verdict.check for verdict in own if verdict.check != question.name]
        if wrong:
            raise ValueError(
                f"The check of a verdict must be the name of its question, {question.name!r}, got {wrong[0]!r}."
            )
        verdicts += own
    return Asked(answers, tuple(verdicts), skipped)
