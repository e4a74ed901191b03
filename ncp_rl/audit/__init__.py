"""The audit of a controller: is its recording true, why did it act, what can it never do, what disturbs it.

`audit_sources` asks all questions about run folders and recordings, `audit_recording` about one recording; each
question alone is a function. `write_report` writes an audit as a web page, `ncp_rl.audit.question` shows how to add a
question.
"""

from ncp_rl.extras import require

require("audit", "sklearn", "scipy", "networkx", "jinja2", "plotly", "mcap", "PIL", "tqdm", by="ncp_rl.audit")

from ncp_rl.audit.ablate import Clamp, Cut, Effect, ablate, ablated, effects, every_neuron, every_synapse
from ncp_rl.audit.audit import Audit, Questions, Subject, audit_recording, audit_runs
from ncp_rl.audit.certify import Certificate, attack_actions, certify
from ncp_rl.audit.dynamics import Dynamics, audit_dynamics
from ncp_rl.audit.envelope import Alarm, Envelope, calibrate, episodes_needed, fit_box, fit_conformal, fit_mahalanobis
from ncp_rl.audit.explain import Explanation, explain
from ncp_rl.audit.fail_on import failures
from ncp_rl.audit.monitor import (
    Detection,
    FalseAlarms,
    LiveMonitor,
    MonitorAudit,
    MonitoredModel,
    Watch,
    audit_monitor,
    detect,
    false_alarms,
    watch,
)
from ncp_rl.audit.orchestrate import audit_sources
from ncp_rl.audit.perturb import Perturbation, perturb
from ncp_rl.audit.plan import Plan, PlannedFault
from ncp_rl.audit.question import Asked, Evidence, Question, RecordingQuestion, Runs, RunsQuestion, Schema
from ncp_rl.audit.questions import QUESTIONS
from ncp_rl.audit.report import write_report
from ncp_rl.audit.section import Grid, Heading, Paragraph, Part, Plot, Table
from ncp_rl.audit.sensitivity import Sensitivity, observation_moves, sensitivity
from ncp_rl.audit.step_response import StepResponse, step_response
from ncp_rl.audit.trees import TreeAudit, audit_trees
from ncp_rl.audit.verdict import Verdict

__all__ = [
    "QUESTIONS",
    "Alarm",
    "Asked",
    "Audit",
    "Certificate",
    "Clamp",
    "Cut",
    "Detection",
    "Dynamics",
    "Effect",
    "Envelope",
    "Evidence",
    "Explanation",
    "FalseAlarms",
    "Grid",
    "Heading",
    "LiveMonitor",
    "MonitorAudit",
    "MonitoredModel",
    "Paragraph",
    "Part",
    "Perturbation",
    "Plan",
    "PlannedFault",
    "Plot",
    "Question",
    "Questions",
    "RecordingQuestion",
    "Runs",
    "RunsQuestion",
    "Schema",
    "Sensitivity",
    "StepResponse",
    "Subject",
    "Table",
    "TreeAudit",
    "Verdict",
    "Watch",
    "ablate",
    "ablated",
    "attack_actions",
    "audit_dynamics",
    "audit_monitor",
    "audit_recording",
    "audit_runs",
    "audit_sources",
    "audit_trees",
    "calibrate",
    "certify",
    "detect",
    "effects",
    "episodes_needed",
    "every_neuron",
    "every_synapse",
    "explain",
    "failures",
    "false_alarms",
    "fit_box",
    "fit_conformal",
    "fit_mahalanobis",
    "observation_moves",
    "perturb",
    "sensitivity",
    "step_response",
    "watch",
    "write_report",
]
