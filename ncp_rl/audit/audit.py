"""The whole audit of recordings and runs: every question asked, a verdict a line, `audit.json`."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import chain
from typing import Any

import numpy as np
from tqdm import tqdm

from ncp_rl.audit.ablate import Effect, effects, every_neuron
from ncp_rl.audit.cell import Array
from ncp_rl.audit.certify import Certificate, certify, provoke
from ncp_rl.audit.dynamics import Dynamics, audit_dynamics
from ncp_rl.audit.explain import Explanation, explain
from ncp_rl.audit.intervals import Range
from ncp_rl.audit.monitor import MonitorAudit, audit_monitor
from ncp_rl.audit.perturb import Perturbation
from ncp_rl.audit.sensitivity import Sensitivity, observation_moves, sensitivity
from ncp_rl.audit.trees import TreeAudit, audit_trees
from ncp_rl.audit.verdict import Verdict
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode, Recording

#: Of audit.json's form; a change that breaks readers raises it.
FORMAT_VERSION = 1

# Contributions add up exactly to what the solver gives in float64; what float32 gave, on whatever platform, is near.
_MAX_RESIDUAL = 1e-5
# Bounds on moves are of exact arithmetic; what an attack finds comes from float32.
_MAX_ROUNDING = 1e-4
_VERSIONS_OF = ("ncp-rl", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")


@dataclass(frozen=True)
class Subject:
    """One recording, and all that the audit found in it.

    Attributes:
        name: Of the recording.
        recording: The recording, for its circuit, manifest and images.
        episodes: Its episodes.
        explanations: Of each episode; none of neurons that have no such explanation.
        certificate: Of the circuit; None where its neurons allow none.
        provoked: Range of each action mean that an attack reached; None without a certificate.
        sensitivities: Bounds on the actions when every sensory input moves a little, at some steps.
        dynamics: How the neurons behaved; None where they have no time constants.
        monitor: Envelopes of the command neurons; None where there are too few episodes.
        trees: Rules of the command neurons; None where there are too few episodes.
        effects: Of clamping each neuron, over the first episode.
        verdicts: A line each.
        skipped: What was not asked, and why.
    """

    name: str
    recording: Recording
    episodes: tuple[Episode, ...]
    explanations: tuple[Explanation, ...]
    certificate: Certificate | None
    provoked: Range | None
    sensitivities: tuple[Sensitivity, ...]
    dynamics: Dynamics | None
    monitor: MonitorAudit | None
    trees: TreeAudit | None
    effects: tuple[Effect, ...]
    verdicts: tuple[Verdict, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """The audit of one or several recordings.

    Attributes:
        subjects: The recordings.
        perturbation: Sweeps of all policies side by side; None where no run folder was given.
        perturbation_verdicts: One for each policy.
    """

    subjects: tuple[Subject, ...]
    perturbation: Perturbation | None = None
    perturbation_verdicts: tuple[Verdict, ...] = ()

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All of them."""
        return (*chain.from_iterable(subject.verdicts for subject in self.subjects), *self.perturbation_verdicts)

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
        return lines + [str(verdict) for verdict in self.perturbation_verdicts]

    def to_dict(self) -> dict[str, Any]:
        """What audit.json holds; its JSON Schema is `audit.schema.json` beside this file."""
        return {
            "format_version": FORMAT_VERSION,
            "passed": self.passed,
            "versions": {name: version(name) for name in _VERSIONS_OF} | {"python": platform.python_version()},
            "subjects": [_subject_dict(subject) for subject in self.subjects],
            "perturbation": None if self.perturbation is None else self.perturbation.to_dict(),
            "perturbation_verdicts": [_verdict_dict(verdict) for verdict in self.perturbation_verdicts],
        }


def audit_recording(
    recording: Recording,
    name: str,
    *,
    alpha: float = 0.1,
    epsilon: float = 0.01,
    n_steps: int = 20,
    truth: Sequence[Verdict] = (),
    faults: dict[str, tuple[Sequence[Episode], Sequence[int]]] | None = None,
    progress_bar: bool = False,
) -> Subject:
    """Ask a recording all that it can answer by itself.

    Args:
        recording: The recording.
        name: What to call it.
        alpha: False-alarm rate per episode that the monitor promises.
        epsilon: By which share of its range each observation moves, for the bound on how far the action can move.
        n_steps: Steps over which observations move.
        truth: Verdicts on the file itself, from `ncp_rl.recording.verify` and `replay`.
        faults: By name, for the monitor: episodes with a fault, and the step at which it begins in each.
        progress_bar: Show progress.

    Raises:
        ncp_rl.recording.RecordingError: The file is damaged, or holds numbers that are not finite.
        ValueError: It holds no whole episode.
    """
    circuit = recording.circuit
    with tqdm(total=len(recording) + 6, desc=f"audit {name}", disable=not progress_bar) as progress:

        def done(answer: Any) -> Any:
            progress.update()
            return answer

        episodes = tuple(recording)
        if not episodes:
            raise ValueError(f"The recording {recording.path} holds no episodes.")
        skipped = dict(circuit.core.unanswered)
        explanations: tuple[Explanation, ...] = ()
        certificate = provoked = dynamics = monitor = trees = None
        sensitivities: tuple[Sensitivity, ...] = ()
        if "explain" not in skipped:
            explanations = tuple(done(explain(circuit, episode)) for episode in episodes)
        if "certificate" not in skipped:
            certificate = done(certify(circuit, min_elapsed_time=_shortest(episodes)))
            provoked = done(provoke(circuit))
        moves, moved = observation_moves(circuit, episodes, epsilon)
        if "sensitivity" not in skipped and not (certificate and certificate.violations):
            sensitivities = done(tuple(_sensitivities(circuit, episodes[0], moves, n_steps)))
        if "dynamics" not in skipped:
            dynamics = done(audit_dynamics(circuit, episodes))
        try:
            monitor = audit_monitor(circuit, episodes, alpha=alpha, faults=faults)
        except ValueError as error:
            skipped["monitor"] = str(error)
        done(monitor)
        if len(episodes) > 1:
            trees = audit_trees(circuit, episodes)
        else:
            skipped["trees"] = "Trees need two episodes, one to grow on and one to be scored on."
        clamped: tuple[Effect, ...] = ()
        if "ablation" not in skipped:
            clamped = done(tuple(effects(circuit, episodes[0], every_neuron(circuit, episodes))))
    verdicts = [*truth, *_reasons(explanations, certificate, provoked, episodes)]
    verdicts += [_sensitive(sensitivities, moved, epsilon)] if sensitivities else []
    verdicts += [part.verdict() for part in (monitor, dynamics, trees) if part is not None]
    return Subject(
        name,
        recording,
        episodes,
        explanations,
        certificate,
        provoked,
        sensitivities,
        dynamics,
        monitor,
        trees,
        clamped,
        tuple(verdicts),
        skipped,
    )


def _shortest(episodes: Sequence[Episode]) -> float | None:
    """Seconds of the shortest step; neurons that are held stay in whatever range they are in."""
    seconds = np.concatenate([episode.elapsed_time[~episode.held] for episode in episodes])
    return (float(seconds.min()) or None) if len(seconds) else None


def _sensitivities(circuit: Circuit, episode: Episode, moves: Array, n_steps: int) -> Iterator[Sensitivity]:
    """At three steps spread over the episode."""
    for step in np.unique(np.linspace(0, max(len(episode) - n_steps, 0), 3).astype(int)):
        yield sensitivity(circuit, episode, moves, step=int(step), n_steps=n_steps)


def _reasons(
    explanations: Sequence[Explanation],
    certificate: Certificate | None,
    provoked: Range | None,
    episodes: Sequence[Episode],
) -> Iterator[Verdict]:
    """Verdicts on what there is of explanations and certificate."""
    if explanations:
        yield _explained(explanations)
    if certificate is not None and provoked is not None:
        yield _certified(certificate, provoked, episodes)


def _explained(explanations: Sequence[Explanation]) -> Verdict:
    residual = max(explanation.residual() for explanation in explanations)
    first = explanations[0]
    step = int(np.abs(first.episode.action_mean[:, 0] - first.episode.action_mean[:, 0].mean()).argmax())
    sentence = f"Contributions add up to every potential within {residual:.1g}. {first.sentence(step)}."
    return Verdict("explain", residual < _MAX_RESIDUAL, sentence, {"residual": residual})


def _certified(certificate: Certificate, provoked: Range, episodes: Sequence[Episode]) -> Verdict:
    """The certificate's verdict, with how much of it an attack reached; fails where a recording left it."""
    verdict = certificate.verdict()
    if certificate.violations:
        return verdict
    inside = all(certificate.holds(episode.potentials) for episode in episodes)
    reached = np.maximum(provoked.high - provoked.low, np.finfo(np.float32).tiny)  # An action may never move.
    ratio = float(np.max((certificate.action.high - certificate.action.low) / reached))
    sentence = f"{verdict.sentence} An attack reached ranges {ratio:.3g} times narrower."
    if not inside:
        sentence += " The recording left it: it is not of this circuit."
    return Verdict(verdict.check, inside, sentence, {**verdict.figures, "ratio": ratio})


def _sensitive(sensitivities: Sequence[Sensitivity], moved: str, epsilon: float) -> Verdict:
    """How far actions can move; passes where the attack stayed within the bound, but for float32's rounding."""
    bound = max(float(told.bound.max()) for told in sensitivities)
    found = max(float(told.found.max()) for told in sensitivities)
    ratio = max(float(told.ratio().max()) for told in sensitivities)
    sound = all((told.found <= told.bound + _MAX_ROUNDING).all() for told in sensitivities)
    sentence = (
        f"Where every {moved} moves by {epsilon:.1%} of its range, no action mean moves by more than {bound:.3g} "
        f"within {len(sensitivities[0].bound)} steps; an attack moved one by {found:.3g}."
    )
    return Verdict("sensitivity", sound, sentence, {"bound": bound, "found": found, "ratio": ratio})


def _subject_dict(subject: Subject) -> dict[str, Any]:
    wiring, circuit = subject.recording.circuit.wiring, subject.recording.circuit
    return {
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
        "explain": _residual_dict(subject.explanations),
        "certificate": None if subject.certificate is None else subject.certificate.to_dict(),
        "provoked": None
        if subject.provoked is None
        else dict(zip(circuit.action_names, np.stack(subject.provoked, 1).tolist(), strict=True)),
        "sensitivity": [told.to_dict() for told in subject.sensitivities],
        "dynamics": None if subject.dynamics is None else subject.dynamics.to_dict(),
        "monitor": None if subject.monitor is None else subject.monitor.to_dict(),
        "trees": None if subject.trees is None else subject.trees.to_dict(),
        "ablation": [
            {"ablation": str(effect.ablation), "rms": effect.rms.tolist(), "largest": effect.largest.tolist()}
            for effect in subject.effects
        ],
    }


def _residual_dict(explanations: Sequence[Explanation]) -> dict[str, float] | None:
    return {"residual": max(told.residual() for told in explanations)} if explanations else None


def _verdict_dict(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"figures": dict(verdict.figures)}
