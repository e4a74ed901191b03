"""Train a circuit to balance a pole whose velocity is hidden, record it, and audit the recording.

    python examples/train_and_audit.py out

100,000 steps take a minute or two. What comes out: out/pole.zip (the model), out/flight.mcap (every neuron in every
step), out/report.html (open it in a browser).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ncp_rl import NCPPolicy
from ncp_rl.audit import Audit, audit_recording
from ncp_rl.audit.report import write_report
from ncp_rl.recording import Recording, record_rollouts


def main(out: Path, timesteps: int, n_episodes: int) -> bool:
    """Train, record, audit; gives whether every verdict passed."""
    out.mkdir(parents=True)
    torch.set_num_threads(1)  # Circuits of this size are fastest so.

    # The stock RecurrentPPO; the learning rate falls, so that what was learned stays.
    venv = make_vec_env("ncp_envs:ncp/CartPoleNoVel-v1", n_envs=8, seed=0)
    model = RecurrentPPO(
        NCPPolicy,
        venv,
        learning_rate=lambda remaining: 6e-4 * remaining,
        policy_kwargs=dict(
            elapsed_time=0.02,
            action_names=("push_left", "push_right"),
            features_extractor_kwargs=dict(names=["x", "theta"]),
        ),
        seed=0,
    )
    model.learn(timesteps)
    model.save(out / "pole")
    mean_return, _ = evaluate_policy(model, venv, n_eval_episodes=8)
    print(f"return {mean_return:.1f} of 500")

    # Everything that the policy sees, does and is goes into one file, which is all that the audit needs.
    path = record_rollouts(model, venv, out / "flight.mcap", n_episodes=n_episodes, progress_bar=False)
    recording = Recording.open(path)
    subject = audit_recording(recording, "pole")
    for verdict in subject.verdicts:
        print(verdict)
    for question, why in subject.skipped.items():
        print(f"skip  {question}: {why}")
    print(f"report: {write_report(Audit((subject,)), out / 'report.html')}")
    return all(verdict.passed for verdict in subject.verdicts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--timesteps", type=int, default=100_000)
    parser.add_argument("--episodes", type=int, default=20)
    args = parser.parse_args()
    main(args.out, args.timesteps, args.episodes)
