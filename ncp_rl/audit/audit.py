"""`Audit`: the answers to every question on recordings and runs, a verdict a line, and what audit.json holds."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tqdm import tqdm

from ncp_rl.audit.measurable import check_measurable
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.question import Asked, Evidence, Question, RecordingQuestion, Runs, RunsQuestion, ask
from ncp_rl.audit.questions import QUESTIONS
from ncp_rl.audit.verdict import Verdict
from ncp_rl.recording import Episode, Recording

#: Of audit.json's form; a change that breaks readers raises it. A question that comes adds a key, which breaks none.
FORMAT_VERSION = 1

_VERSIONS_OF = ("ncp-rl", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")
_NOTHING_ASKED = Asked({}, (), {})

Questions = Sequence[Question[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One recording, and all that the audit found in it.

    Attributes:
        name: Of the recording.
        recording: The recording, for its circuit, manifest and images.
        episodes: Its episodes.
        answers: By name of the question; those that were not asked are not there.
        verdicts: A line each.
        skipped: What was not asked, and why, by name of the question.
    """

    name: str
    recording: Recording
    episodes: tuple[Episode, ...]
    answers: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Audit:
    """The audit of one or several recordings, and of the runs that they are of.

    Attributes:
        subjects: The recordings.
        of_runs: What was asked of all runs side by side; nothing where no run folder was given.
        questions: All that were asked, or were to be; they say what JSON and report show of the answers.
    """

    subjects: tuple[Subject, ...]
    of_runs: Asked = _NOTHING_ASKED
    questions: Questions = QUESTIONS

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All of them."""
        return (*chain.from_iterable(subject.verdicts for subject in self.subjects), *self.of_runs.verdicts)

    @property
    def passed(self) -> bool:
        """Whether every verdict passed."""
        return all(verdict.passed for verdict in self.verdicts)

    def lines(self) -> list[str]:
        """A verdict a line, under the names of the recordings."""
        lines = []
        for subject in self.subjects:
            lines += [f"{subject.name}: {len(subject.episodes)} episodes", *map(str, subject.verdicts)]
            lines += [f"skip  {check:<12}  {why}" for check, why in subject.skipped.items()]
        return lines + [str(verdict) for verdict in self.of_runs.verdicts]

    def to_dict(self) -> dict[str, Any]:
        """What audit.json holds; `ncp_rl.audit.schema` has its JSON Schema."""
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
            "n_episodes": len(subject.episodes),
            "n_steps": sum(map(len, subject.episodes)),
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
    """Ask a recording all that it can answer; questions on runs are left out.

    Args:
        recording: The recording.
        name: What to call it.
        plan: What to ask, and how much of it.
        run: Folder of the run that was recorded, whose model and environments the replay then compares too.
        faults: By name, for the monitor: episodes with a fault, and the step at which it begins in each.
        public_key: That must have signed the recording.
        questions: What to ask, in this order.
        progress_bar: Show progress.

    Raises:
        ncp_rl.recording.RecordingError: The file is damaged, or holds numbers that are not finite.
        ValueError: It holds no whole episode.
    """
    episodes = tuple(recording)
    if not episodes:
        raise ValueError(f"An audit needs at least one episode, and {recording.path} holds none; record some.")
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
    """Ask what is asked of all runs side by side.

    Args:
        folders: Run folders by name, NCPs and baselines.
        plan: What to ask, and how much of it.
        questions: What to ask, in this order; questions on recordings are left out.
        progress_bar: Show progress.

    Raises:
        ncp_rl.runs.RunError: A run folder is missing or damaged, or an episode does not end.
    """
    return ask(on_runs(questions), Runs(folders, progress_bar), plan)


def on_recordings(questions: Questions) -> list[RecordingQuestion[Any]]:
    """The questions that are asked of each recording."""
    return [question for question in questions if isinstance(question, RecordingQuestion)]


def on_runs(questions: Questions) -> list[RunsQuestion[Any]]:
    """The questions that are asked of all runs side by side."""
    return [question for question in questions if isinstance(question, RunsQuestion)]


def _entries(question: Question[Any, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    asked = question.name in answers
    return dict(question.entries(answers[question.name])) if asked else question.entries_unasked()


def _verdict_dict(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"figures": dict(verdict.figures)}
