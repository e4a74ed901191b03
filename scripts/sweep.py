"""Try environments x settings x seeds side by side, on this machine or a cluster, and keep the best settings.

Examples:
    python scripts/sweep.py --envs ncp/PendulumNoVel-v1 --seeds 0 1 --settings 16 --timesteps 100000 --out sweeps/mine
    python scripts/sweep.py --out sweeps/mine --resume       # goes on where it was interrupted
"""

from ncp_rl.cli.sweep import Args, main
from ncp_rl.cli.tree import door

if __name__ == "__main__":
    door(Args, main, __doc__)
