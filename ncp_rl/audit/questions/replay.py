"""Does computing the recording again give the same numbers? Circuit, policy and rollout are computed anew."""

from __future__ import annotations

from sb3_contrib import RecurrentPPO

from ncp_rl.audit.plan import N_ENVS, Plan
from ncp_rl.audit.question import Evidence, RecordingQuestion
from ncp_rl.audit.verdict import Verdict, sentence_of
from ncp_rl.recording import Replay, replay
from ncp_rl.runs import load_run


class ReplayQuestion(RecordingQuestion[Replay]):
    """Asks for the replay. It passes where the numbers come out again; with a run, its model and environments too."""

    name = "replay"
    anchor = "manifest"
    must_pass = True

    def ask(self, evidence: Evidence, plan: Plan) -> Replay:
        """Replay the file, with the run's model and environments where there is a run."""
        if evidence.run is None:
            return replay(evidence.recording, episodes=evidence.every_episode())
        # The replay shares nothing but files with the process that made the recording.
        n_envs = min(plan.n_episodes, N_ENVS)
        model, venv = load_run(evidence.run, n_envs=n_envs, max_episode_steps=plan.max_episode_steps)
        assert isinstance(model, RecurrentPPO)
        try:
            return replay(evidence.recording, model, venv, episodes=evidence.every_episode())
        finally:
            venv.close()

    def verdicts(self, answer: Replay) -> list[Verdict]:
        """Return the verdict: what was compared, with the largest difference."""
        largest = max((comparison.max_difference for comparison in answer.comparisons), default=0.0)
        return [Verdict(self.name, answer.passed, sentence_of(answer), {"max_difference": float(largest)})]
