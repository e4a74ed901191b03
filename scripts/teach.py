"""Teach a policy what demonstrations, a controller or a trained model show; its run folder is like one of train.py's.

Examples:
    python scripts/teach.py clone mine.mcap --env ncp/PendulumNoVel-v1 --out runs/taught
    python scripts/teach.py dagger my_module.Controller --env my_module:MyEnv-v0 --out runs/taught
    python scripts/teach.py distil runs/lstm --out runs/twin           # an auditable twin of a trained policy
    python scripts/train.py --init runs/taught                         # go on with PPO
"""

from ncp_rl.cli.teach import Args, main
from ncp_rl.cli.tree import door

if __name__ == "__main__":
    door(Args, main, __doc__)
