"""rl-zoo trains our policy from our file and replays it; `make rl-zoo` runs this in an environment of its own.

    python -m tests.rl_zoo build/rl-zoo

rl_zoo3 does not agree with constraints.txt, so that this is no part of the tests.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from sb3_contrib import RecurrentPPO

from ncp_rl import NCPPolicy

ENV, N_STEPS = "ncp/PendulumNoVel-v1", 2048
COMMON = ("--algo", "ppo_lstm", "--env", ENV, "--gym-packages", "ncp_envs", "--num-threads", "1")
HYPERPARAMS = Path(__file__).parents[1] / "hyperparams" / "ncp_ppo.yml"


def rl_zoo(module: str, folder: Path, *arguments: str) -> str:
    """Run a module of rl_zoo3 as its documentation says; return what it printed."""
    command = [sys.executable, "-m", f"rl_zoo3.{module}", *COMMON, "-f", str(folder), *arguments]
    print(" ".join(command), flush=True)
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main(folder: Path) -> None:
    """Train for a moment, replay two episodes, load what was saved."""
    shutil.rmtree(folder, ignore_errors=True)
    trained = rl_zoo("train", folder, "--conf-file", str(HYPERPARAMS), "-n", str(N_STEPS), "--eval-freq", "-1")
    assert "('policy', 'ncp_rl.NCPPolicy')" in trained and f"Overwriting n_timesteps with n={N_STEPS}" in trained, (
        trained
    )
    replayed = rl_zoo("enjoy", folder, "--no-render", "-n", "400")
    returns = [float(found) for found in re.findall(r"Episode Reward: (-?[\d.]+)", replayed)]
    assert len(returns) == 2 and all(-2000 < value < 0 for value in returns), replayed
    run = folder / "ppo_lstm" / "ncp-PendulumNoVel-v1_1"
    model = RecurrentPPO.load(run / "ncp-PendulumNoVel-v1.zip", device="cpu")
    assert isinstance(model.policy, NCPPolicy) and model.num_timesteps == N_STEPS
    assert (run / "ncp-PendulumNoVel-v1" / "vecnormalize.pkl").exists()
    print(f"rl-zoo trained {N_STEPS} steps and replayed 2 episodes: returns {returns}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
