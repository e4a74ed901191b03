"""Is it in known territory? Envelopes of the command neurons: false alarms of clean episodes, and faults found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ncp_rl.audit.monitor import MonitorAudit, Watch, audit_monitor, missing_episodes
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.plots import COLORS, DASHES, Figure, axes, line, plain
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.section import Heading, Paragraph, Part, Plot, Table
from ncp_rl.audit.verdict import Verdict


class MonitorQuestion(RecordingQuestion[MonitorAudit]):
    """Asks for the monitor's alarms. It fails where clean episodes raise more alarms than the promise allows."""

    name = "monitor"
    schema: ClassVar[Schema] = {
        "monitor": {
            "type": "object",
            "properties": {
                "envelope": {"type": "object"},
                "false_alarms": {"type": "object"},
                "detection": {"type": "object", "additionalProperties": {"type": "object"}},
            },
            "required": ["envelope", "false_alarms", "detection"],
        }
    }
    title = "Is it in known territory?"
    navigation = "Monitor"
    lead = (
        "Scores of held-out clean episodes under an envelope of the watched neurons; above the threshold is an alarm, "
        "marked by a cross and the neuron that is furthest out."
    )
    must_pass = True

    def lacks(self, evidence: Evidence, plan: Plan) -> str | None:
        """Return how many clean episodes the promised rate of false alarms needs, where there are too few."""
        return missing_episodes(len(evidence.episodes), plan.alpha)

    def ask(self, evidence: Evidence, plan: Plan) -> MonitorAudit:
        """Fit on some clean episodes, watch the others and those with faults."""
        return audit_monitor(evidence.circuit, evidence.episodes, alpha=plan.alpha, faults=evidence.faults)

    def verdicts(self, answer: MonitorAudit) -> list[Verdict]:
        """Return the verdict: false alarms against the promise, and the faults found."""
        return [answer.verdict()]

    def entries(self, answer: MonitorAudit) -> dict[str, Any]:
        """Return the envelope, the false alarms of all envelopes, and the faults."""
        return {"monitor": answer.to_dict()}

    def section(self, answer: MonitorAudit) -> Iterator[Part]:
        """Yield the scores of held-out episodes, and of the first episode with each fault."""
        threshold, detection = answer.conformal.threshold, answer.detection
        yield Plot("Monitor scores", _scores({f"episode {one.episode}": one for one in answer.held_out}, threshold))
        counted = (
            ("conformal", answer.conformal, answer.false_alarms),
            ("box", answer.box, answer.box_false_alarms),
            ("mahalanobis", answer.mahalanobis, answer.mahalanobis_false_alarms),
        )
        header = ("envelope", "threshold", "held-out episodes", "alarms", "rate")
        yield Table(
            "Envelopes in numbers",
            header,
            [[name, to.threshold, alarms.n_episodes, alarms.n_alarms, alarms.rate] for name, to, alarms in counted],
        )
        if detection:
            yield Heading("Under injected faults, the first episode of each")
            first = {name: found.watches[0] for name, found in detection.items()}
            yield Plot("Monitor scores under faults", _scores(first, threshold))
            keys = ("n_episodes", "rate", "median_delay_steps")
            entries = {name: found.to_dict() for name, found in detection.items()}
            rows = [[name, *(entry[key] for key in keys)] for name, entry in entries.items()]
            yield Table("Injected faults in numbers", ("fault", "episodes", "found", "median delay [steps]"), rows)
        for one in answer.held_out:
            if one.alarm is not None:
                yield Paragraph(str(one.alarm))


def _scores(watches: Mapping[str, Watch], threshold: float) -> Figure:
    """Plot scores over time under their names, the threshold, and a cross with the neuron's name at each alarm."""
    data, alarms = [], [watched.alarm for watched in watches.values() if watched.alarm is not None]
    for i, (name, watched) in enumerate(watches.items()):
        scores = line(watched.time, watched.scores, plain(name), COLORS[i % 4], dash=DASHES[i // 4 % 4])
        scores["line"]["width"] = 1.4
        data.append(scores)
    end = max(float(watched.time[-1]) for watched in watches.values())
    data.append(line([0.0, end], [threshold, threshold], "threshold", "--text", dash="dash"))
    if alarms:
        marks = line([alarm.time for alarm in alarms], [alarm.score for alarm in alarms], "alarm", "--text")
        marks |= {
            "mode": "markers+text",
            "textposition": "top center",
            "text": [plain(a.bad_input or a.neuron) for a in alarms],
        }
        data.append(marks | {"marker": {"color": "--text", "symbol": "x", "size": 11}})
    return {"data": data, "layout": {**axes("time [s]", "score [no unit]"), "height": 380}}
