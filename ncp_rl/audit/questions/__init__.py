"""The questions of an audit, a file each: question, verdict, entries of audit.json, and section of the report.

To add a question, add a file and its place in `QUESTIONS`.
"""

from typing import Any

from ncp_rl.audit.question import Question
from ncp_rl.audit.questions.ablation import AblationQuestion
from ncp_rl.audit.questions.certificate import CertificateQuestion
from ncp_rl.audit.questions.chain import ChainQuestion
from ncp_rl.audit.questions.dynamics import DynamicsQuestion
from ncp_rl.audit.questions.explain import ExplainQuestion
from ncp_rl.audit.questions.gaze import GazeQuestion
from ncp_rl.audit.questions.monitor import MonitorQuestion
from ncp_rl.audit.questions.perturbation import PerturbationQuestion
from ncp_rl.audit.questions.replay import ReplayQuestion
from ncp_rl.audit.questions.sensitivity import SensitivityQuestion
from ncp_rl.audit.questions.trees import TreesQuestion

#: The questions of an audit, in the order of verdicts and of the report's sections.
QUESTIONS: tuple[Question[Any, Any], ...] = (
    ChainQuestion(),
    ReplayQuestion(),
    ExplainQuestion(),
    CertificateQuestion(),
    SensitivityQuestion(),
    PerturbationQuestion(),
    MonitorQuestion(),
    DynamicsQuestion(),
    TreesQuestion(),
    AblationQuestion(),
    GazeQuestion(),
)
