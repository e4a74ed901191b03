"""The audit of a controller: is its recording true, why did it act, what can it never do, what if the world is off.

`audit_sources` asks everything of run folders and recordings, `audit_recording` of one recording; each question alone
is a function. `ncp_rl.audit.report.write_report` shows an audit, `ncp_rl.audit.question` says how a question is added.
"""

from ncp_rl.extras import require

require("audit", "sklearn", "scipy", "networkx", "jinja2", "plotly", "mcap", "PIL", "tqdm", by="ncp_rl.audit")

from ncp_rl.audit.ablate import Clamp, Cut, ablate, ablated, effects, every_neuron, every_synapse
from ncp_rl.audit.audit import Audit, Subject, audit_recording, audit_runs
from ncp_rl.audit.certify import Certificate, attack_actions, certify
from ncp_rl.audit.dynamics import Dynamics, audit_dynamics
from ncp_rl.audit.envelope import Alarm, Envelope, calibrate, fit_box, fit_conformal, fit_mahalanobis
from ncp_rl.audit.explain import Explanation, explain
from ncp_rl.audit.fail_on import failures
from ncp_rl.audit.monitor import LiveMonitor, MonitorAudit, MonitoredModel, audit_monitor, detect, false_alarms, watch
from ncp_rl.audit.orchestrate import audit_sources
from ncp_rl.audit.perturb import Perturbation, perturb
from ncp_rl.audit.plan import Fault, Plan
from ncp_rl.audit.question import Evidence, Question, RecordingQuestion, Runs, RunsQuestion
from ncp_rl.audit.questions import QUESTIONS
from ncp_rl.audit.sensitivity import Sensitivity, observation_moves, sensitivity
from ncp_rl.audit.step_response import StepResponse, step_response
from ncp_rl.audit.trees import TreeAudit, audit_trees
from ncp_rl.audit.verdict import Verdict

__all__ = [
    "QUESTIONS",
    "Alarm",
    "Audit",
    "Certificate",
    "Clamp",
    "Cut",
    "Dynamics",
    "Envelope",
    "Evidence",
    "Explanation",
    "Fault",
    "LiveMonitor",
    "MonitorAudit",
    "MonitoredModel",
    "Perturbation",
    "Plan",
    "Question",
    "RecordingQuestion",
    "Runs",
    "RunsQuestion",
    "Sensitivity",
    "StepResponse",
    "Subject",
    "TreeAudit",
    "Verdict",
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
]
