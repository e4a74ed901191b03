"""Is the recording unchanged? Its hash chain, every other byte, and its signature are checked."""

from __future__ import annotations

from ncp_rl.audit.plan import Plan
from ncp_rl.audit.question import Evidence, RecordingQuestion
from ncp_rl.audit.verdict import Verdict, sentence_of
from ncp_rl.recording import Verification, verify


class ChainQuestion(RecordingQuestion[Verification]):
    """Asks whether the file is intact, and signed where it must be; it passes where it is."""

    name = "chain"
    anchor = "manifest"
    must_pass = True

    def ask(self, evidence: Evidence, plan: Plan) -> Verification:
        """Verify the file."""
        return verify(evidence.recording.path, evidence.public_key)

    def verdicts(self, answer: Verification) -> list[Verdict]:
        """Return the finding, with the number of messages."""
        figures = {"n_messages": float(answer.n_messages)}
        return [Verdict(self.name, answer.passed, sentence_of(answer), figures)]
