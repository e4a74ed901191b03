"""What can it never do? The certificate, beside the ranges that an attack reached and that were recorded."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ncp_rl.audit.certify import Certificate, attack_actions, certify
from ncp_rl.audit.intervals import Range, seen_ranges
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.plots import Figure, ranges
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.section import Paragraph, Part, Plot, Table, named_rows
from ncp_rl.audit.verdict import Verdict
from ncp_rl.circuit import Circuit

_RANGE = {
    "type": "array",
    "items": {"type": ["number", "null"]},
    "minItems": 2,
    "maxItems": 2,
    "description": "Lower and upper bound by name; null where nothing is certified.",
}
_RANGES = {"type": "object", "additionalProperties": _RANGE}


@dataclass(frozen=True)
class Certified:
    """A certificate, and how much of its ranges is reached.

    Attributes:
        certificate: Certificate of the circuit.
        attacked: Range of each action mean that an attack reached.
        seen_actions: Range of each action mean in the recording.
        seen_potentials: Range of each potential in the recording.
    """

    certificate: Certificate
    attacked: Range
    seen_actions: Range
    seen_potentials: Range


class CertificateQuestion(RecordingQuestion[Certified]):
    """Asks for the certificate. It passes where parameters allow one and the recording stays within it."""

    name = "certificate"
    schema: ClassVar[Schema] = {
        "certificate": {
            "type": "object",
            "properties": {
                "violations": {"type": "array", "items": {"type": "string"}},
                "min_elapsed_time": {"type": "number", "description": "Seconds."},
                **dict.fromkeys(("box", "range", "action"), _RANGES),
            },
            "required": ["violations", "min_elapsed_time", "box", "range", "action"],
            "additionalProperties": False,
        },
        # The key "provoked" holds the attack's ranges; it keeps its name since format 1.
        "provoked": _RANGES | {"description": "Range of each action mean that an attack reached."},
    }
    title = "What it can never do"
    navigation = "Certificate"
    lead = (
        "Ranges that hold for every input whatever and for ever, proven from the circuit's parameters, against what an "
        "attack reached and what was seen in the recording."
    )
    must_pass = True

    def ask(self, evidence: Evidence, plan: Plan) -> Certified:
        """Certify the circuit for steps as short as the recording's shortest, and attack it."""
        actions, potentials, seconds = seen_ranges(
            evidence.every_episode(),
            lambda episode: episode.action_mean,
            lambda episode: episode.potentials,
            # Held neurons do not move, so held steps do not count.
            lambda episode: np.where(episode.held, np.inf, episode.elapsed_time),
        )
        shortest = float(seconds.low)
        return Certified(
            certificate=certify(evidence.circuit, min_elapsed_time=shortest if 0 < shortest < np.inf else None),
            attacked=_attacked(*evidence.circuit.save()),
            seen_actions=actions,
            seen_potentials=potentials,
        )

    def verdicts(self, answer: Certified) -> list[Verdict]:
        """Return the verdict, with the share that an attack reached; it fails where the recording left a range."""
        certificate = answer.certificate
        verdict = certificate.verdict()
        if certificate.violations:
            return [verdict]
        inside = all(map(certificate.holds, answer.seen_potentials))
        # An action may never move.
        reached = np.maximum(answer.attacked.high - answer.attacked.low, np.finfo(np.float32).tiny)
        ratio = float(np.max((certificate.action.high - certificate.action.low) / reached))
        sentence = f"{verdict.sentence} An attack reached ranges {ratio:.3g} times narrower."
        if not inside:
            sentence += " The recording left it: it is not of this circuit."
        return [Verdict(self.name, inside, sentence, {**verdict.figures, "ratio": ratio})]

    def entries(self, answer: Certified) -> dict[str, Any]:
        """Return the bounds by the names of neurons and actions."""
        ends = np.stack(answer.attacked, 1).tolist()
        attacked = dict(zip(answer.certificate.circuit.action_names, ends, strict=True))
        return {"certificate": answer.certificate.to_dict(), "provoked": attacked}

    def section(self, answer: Certified) -> Iterator[Part]:
        """Yield plots where something is certified, else the faults of the parameters; then the numbers."""
        certificate = answer.certificate
        actions, neurons = certificate.circuit.action_names, certificate.circuit.wiring.names
        for violation in certificate.violations:
            yield Paragraph(f"Nothing is certified: {violation}", "notice")
        if not certificate.violations:
            yield Plot("Ranges of the action means", _actions(answer))
            yield Plot("Ranges of the potentials", _neurons(answer))
        ends = ("certified from", "to", "attack from", "to", "seen from", "to")
        rows = named_rows(actions, *certificate.action, *answer.attacked, *answer.seen_actions)
        yield Table("Actions in numbers", ("action", *ends), rows)
        ends = ("signs alone from", "to", "certified from", "to", "seen from", "to")
        rows = named_rows(neurons, *certificate.box, *certificate.range, *answer.seen_potentials)
        yield Table("Neurons in numbers", ("neuron", *ends), rows)


@functools.lru_cache(maxsize=8)
def _attacked(tensors: bytes, settings: bytes) -> Range:
    """Attack a circuit once: recordings of a fleet often have the same one, and the attack takes longest."""
    return attack_actions(Circuit.load(tensors, settings))


def _actions(answer: Certified) -> Figure:
    """Plot the range of each action mean: certified, reached by an attack, and recorded."""
    bands = [
        ("certified, for every input", answer.certificate.action, "--faint", 16),
        ("reached by an attack", answer.attacked, "--third", 9),
        ("seen in the recording", answer.seen_actions, "--accent", 4),
    ]
    return ranges(answer.certificate.circuit.action_names, bands, "action mean [unit of the action]")


def _neurons(answer: Certified) -> Figure:
    """Plot the range of each potential: from signs alone, certified, and recorded."""
    certificate = answer.certificate
    bands = [
        ("from signs alone", certificate.box, "--faint", 12),
        ("certified, for every input", certificate.range, "--third", 7),
        ("seen in the recording", answer.seen_potentials, "--accent", 3),
    ]
    return ranges(certificate.circuit.wiring.names, bands, "potential [no unit]")
