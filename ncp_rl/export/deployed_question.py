"""Does the deployed controller do what was recorded? The audit's question about an exported controller."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ncp_rl.audit.plan import Plan
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.section import Paragraph, Part, Table
from ncp_rl.audit.verdict import Verdict
from ncp_rl.export.export_check import ExportCheck, verify_export

#: Largest difference that JSON shows, which stands for infinite ones.
_LARGEST = 1e30


class DeployedQuestion(RecordingQuestion[ExportCheck]):
    """Asks whether an exported controller does what was recorded, and passes where it does; see `verify_export`.

    audit_recording(recording, "mine", questions=(*QUESTIONS, DeployedQuestion(Path("controller"))))

    """

    name = "deployed"
    schema: ClassVar[Schema] = {
        "deployed": {
            "type": "object",
            "properties": {
                "form": {"type": "string", "description": "C99, NumPy or ONNX."},
                "sha256": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "SHA-256 of the exported policy, and of the recorded one.",
                },
                "max_difference": {"type": "number", "description": "Largest, absolute up to 1 and relative beyond."},
            },
            "required": ["form", "sha256", "max_difference"],
            "additionalProperties": False,
        }
    }
    title = "Is it what is deployed?"
    navigation = "Deployed"
    lead = "An exported controller is driven with the recording's observations, each episode from its start on."
    must_pass = True

    def __init__(self, export: Path) -> None:
        """Ask about an export: a folder with controller.c, or controller.json or controller.onnx."""
        self.export = export

    def ask(self, evidence: Evidence, plan: Plan) -> ExportCheck:
        """Build the export, drive it with the recording, and compare."""
        return verify_export(self.export, evidence.recording)

    def verdicts(self, answer: ExportCheck) -> list[Verdict]:
        """Return the verdict, with the largest difference."""
        figures = {"max_difference": min(answer.largest, _LARGEST)}
        return [Verdict(self.name, answer.passed, str(answer), figures)]

    def entries(self, answer: ExportCheck) -> dict[str, Any]:
        """Return form and identity of the controller, and the largest difference."""
        largest = min(answer.largest, _LARGEST)
        return {"deployed": {"form": answer.form, "sha256": list(answer.sha256), "max_difference": largest}}

    def section(self, answer: ExportCheck) -> Iterator[Part]:
        """Yield the verdict's sentence, and the differences of each episode."""
        yield Paragraph(str(answer))
        rows = [[f"{d.episode}", d.n_steps, d.potentials, d.action_means, d.actions] for d in answer.episodes]
        yield Table("Largest differences", ["episode", "steps", "potentials", "action means", "actions"], rows)
