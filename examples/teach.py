"""Teach a circuit to keep a car on its lane by an instructor who sees more than it does.

    python examples/teach.py

The instructor sees the car's true state. The circuit sees neither its speed nor that its wheels are not quite straight,
and has to remember. Half a minute of one core brings it to a return above 900 of 1000.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from ncp_envs.lane_keeping.baseline import Instructor
from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from ncp_rl import NCPPolicy
from ncp_rl.runs import evaluate
from ncp_rl.teach import Lessons, dagger


def true_state(venv: VecEnv) -> np.ndarray:
    """(N, 11), what the instructor sees."""
    return np.stack(venv.get_attr("true_state"))


def main(n_rounds: int, n_steps: int, n_epochs: int, n_episodes: int) -> float:
    """Teach; gives the mean return over fresh episodes."""
    torch.set_num_threads(1)
    # 16 cars in one simulation.
    venv = VecMonitor(LaneKeepingVecEnv(16))
    model = RecurrentPPO(NCPPolicy, venv, policy_kwargs=dict(elapsed_time=0.05), seed=0, device="cpu")

    # In the first round the instructor drives; later the circuit does, and the instructor says what it would have done.
    # Every second car is pushed now and then, so that coming back to the lane is learned too.
    rounds = dagger(
        model,
        venv,
        Instructor(),
        Lessons(n_epochs=n_epochs),
        n_rounds=n_rounds,
        n_steps=n_steps,
        privilege=true_state,
        pushes=0.5,
    )
    for number, done in enumerate(rounds):
        print(f"round {number}: the instructor drove {done.expert_share:.0%}, action error {done.taught.error:.3f}")
    evaluation = evaluate(model, venv, n_episodes=n_episodes, seed=1)
    print(evaluation)
    return float(np.mean(evaluation.returns))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600, help="of each car in a round")
    parser.add_argument("--epochs", type=int, default=15, help="passes over what was seen, in each round")
    parser.add_argument("--episodes", type=int, default=32, help="of the evaluation")
    args = parser.parse_args()
    main(args.rounds, args.steps, args.epochs, args.episodes)
