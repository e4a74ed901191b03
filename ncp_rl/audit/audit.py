"""`Audit`: the answers to all questions about recordings and runs, their verdicts, and the content of audit.json."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tqdm import tqdm

from ncp_rl.audit.measurable import check_measurable
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.question import Asked, Evidence, Question, RecordingQuestion, Runs, RunsQuestion, ask
from ncp_rl.audit.questions import QUESTIONS
from ncp_rl.audit.verdict import Verdict
from ncp_rl.recording import Episode, Recording

#: Version of audit.json's form, raised by changes that break readers. A new question adds a key, which breaks none.
FORMAT_VERSION = 1

_VERSIONS_OF = ("ncp-rl", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")
_NOTHING_ASKED = Asked({}, (), {})

Questions = Sequence[Question[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One recording, and the audit's findings on it.

    Attributes:
        name: Name of the recording.
        recording: The recording, for its circuit, manifest and images.
        episodes: Its episodes: all of them, or of a recording of more steps than `Plan.max_steps` those that statistics
            are of.
        answers: Answers by the question's name; questions that were not asked are missing.
        verdicts: Verdicts on the answers, in the order of the questions.
        skipped: Reason why a question was not asked, by its name.
    """

    name: str
    recording: Recording
    episodes: tuple[Episode, ...]
    answers: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    skipped: Mapping[str, str]

    @property
    def n_steps(self) -> int:
        """Number of steps of all episodes of the recording."""
        return sum(self.recording.lengths)

    @property
    def sampled(self) -> str:
        """A sentence on which episodes statistics are of; empty where they are of all."""
        if len(self.episodes) == len(self.recording):
            return ""
        return (
            f"The recording is long: its statistics are of {len(self.episodes)} episodes, drawn at random, with "
            f"{sum(map(len, self.episodes)):,} steps together."
        )


@dataclass(frozen=True)
class Audit:
    """The audit of one or several recordings, and of the runs that they were made from.

    Attributes:
        subjects: The recordings.
        of_runs: Answers to the questions about all runs side by side; empty where no run folder was given.
        questions: The questions, asked or skipped; they define what audit.json and the report show of the answers.
    """

    subjects: tuple[Subject, ...]
    of_runs: Asked = _NOTHING_ASKED
    questions: Questions = QUESTIONS

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts, on recordings and on runs."""
        return (*chain.from_iterable(subject.verdicts for subject in self.subjects), *self.of_runs.verdicts)

    @property
    def passed(self) -> bool:
        """Whether every verdict passed."""
        return all(verdict.passed for verdict in self.verdicts)

    def lines(self) -> list[str]:
        """Return the verdicts as lines of text, under the names of the recordings."""
        lines = []
        for subject in self.subjects:
            lines += [f"{subject.name}: {len(subject.recording)} episodes", *map(str, subject.verdicts)]
            lines += [f"skip  {check:<12}  {why}" for check, why in subject.skipped.items()]
            lines += [subject.sampled] if subject.sampled else []
        return lines + [str(verdict) for verdict in self.of_runs.verdicts]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of audit.json; `ncp_rl.audit.schema` has its JSON Schema."""
        found = {
            "format_version": FORMAT_VERSION,
            "passed": self.passed,
            "versions": {name: version(name) for name in _VERSIONS_OF} | {"python": platform.python_version()},
            "subjects": [self._subject_dict(subject) for subject in self.subjects],
        }
        for question in on_runs(self.questions):
            own = self.of_runs.verdicts_on(question)
            found |= _entries(question, self.of_runs.answers)
            found[f"{question.name}_verdicts"] = [_verdict_dict(verdict) for verdict in own]
        return found

    def _subject_dict(self, subject: Subject) -> dict[str, Any]:
        circuit = subject.recording.circuit
        wiring = circuit.wiring
        found = {
            "name": subject.name,
            "n_episodes": len(subject.recording),
            "n_steps": subject.n_steps,
            "n_sampled_episodes": len(subject.episodes),
            "circuit": {
                "cell": circuit.cell,
                "neurons": list(wiring.names),
                "sensory": list(circuit.sensory_names),
                "actions": list(circuit.action_names),
                "n_synapses": len(wiring.synapses.source) + len(wiring.sensory_synapses.source),
            },
            "manifest": dict(subject.recording.manifest),
            "verdicts": [_verdict_dict(verdict) for verdict in subject.verdicts],
            "skipped": dict(subject.skipped),
        }
        for question in on_recordings(self.questions):
            found |= _entries(question, subject.answers)
        return found


def audit_recording(
    recording: Recording,
    name: str,
    plan: Plan = Plan(),  # noqa: B008  (a frozen value)
    *,
    run: Path | None = None,
    faults: Mapping[str, tuple[Sequence[Episode], Sequence[int]]] | None = None,
    public_key: Ed25519PublicKey | None = None,
    questions: Questions = QUESTIONS,
    progress_bar: bool = False,
) -> Subject:
    """Ask all questions about a recording; questions about runs are left out.

    Args:
        recording: The recording.
        name: Name of the recording in the audit.
        plan: Settings of the questions.
        run: Folder of the run that was recorded; with it the replay compares the run's model and environments too.
        faults: Episodes with a fault, and the step at which it begins in each, by the fault's name, for the monitor.
        public_key: Key that must have signed the recording; None where no signature is required.
        questions: The questions, in the order of the answers.
        progress_bar: Show progress.

    Raises:
        ncp_rl.recording.RecordingError: The file is damaged, or holds numbers that are not finite.
        ValueError: The recording holds no episode, or `plan` names a question that there is not.
    """
    check_asked(questions, plan)
    if not len(recording):
        raise ValueError(f"An audit needs at least one episode, and {recording.path} holds none; record some.")
    episodes = tuple(map(recording.__getitem__, _drawn(recording.lengths, plan.max_steps)))
    check_measurable(recording.circuit, episodes)
    evidence = Evidence(recording, episodes, run, faults or {}, public_key)
    own = on_recordings(questions)
    asked = ask(tqdm(own, f"audit {name}", disable=not progress_bar), evidence, plan)
    return Subject(
        name=name,
        recording=recording,
        episodes=episodes,
        answers=asked.answers,
        verdicts=asked.verdicts,
        skipped=asked.skipped,
    )


def audit_runs(
    folders: Mapping[str, Path], plan: Plan, *, questions: Questions = QUESTIONS, progress_bar: bool = False
) -> Asked:
    """Ask the questions about all runs side by side.

    Args:
        folders: Run folders by name, NCPs and baselines.
        plan: Settings of the questions.
        questions: The questions, in the order of the answers; questions about recordings are left out.
        progress_bar: Show progress.

    Raises:
        ncp_rl.runs.RunError: A run folder is missing or damaged, or an episode does not end.
        ValueError: `plan` names a question that there is not.
    """
    check_asked(questions, plan)
    return ask(on_runs(questions), Runs(folders, progress_bar), plan)


def check_asked(questions: Questions, plan: Plan) -> None:
    """Check that each question that a plan names exists.

    Raises:
        ValueError: One does not.
    """
    names = {question.name for question in questions}
    for name in plan.questions or ():
        if name not in names:
            raise ValueError(f"There is no question {name!r}; there are {', '.join(sorted(names))}.")


def _drawn(lengths: Sequence[int], max_steps: int) -> list[int]:
    """Return the numbers of episodes with `max_steps` steps together at most: all, or the first and random ones."""
    if sum(lengths) <= max_steps:
        return list(range(len(lengths)))
    # Episodes side by side end in an order of their own, so that every n-th would be those of one environment.
    order = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(len(lengths) - 1)])
    n_fitting = int(np.searchsorted(np.cumsum(np.array(lengths)[order]), max_steps, side="right"))
    return sorted(order[: max(n_fitting, 1)].tolist())


def on_recordings(questions: Questions) -> list[RecordingQuestion[Any]]:
    """Return the questions about a recording."""
    return [question for question in questions if isinstance(question, RecordingQuestion)]


def on_runs(questions: Questions) -> list[RunsQuestion[Any]]:
    """Return the questions about all runs side by side."""
    return [question for question in questions if isinstance(question, RunsQuestion)]


def _entries(question: Question[Any, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    asked = question.name in answers
    return dict(question.entries(answers[question.name])) if asked else question.entries_unasked()


def _verdict_dict(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"figures": dict(verdict.figures)}
