"""Evaluate the policy of a run folder.

Examples:
    python scripts/evaluate.py runs/my_run --episodes 100
    python scripts/evaluate.py runs/my_run --video videos --json
    python scripts/evaluate.py runs/my_run --disturb observation_delay=1
"""

from ncp_rl.cli.evaluate import Args, main
from ncp_rl.cli.tree import door

if __name__ == "__main__":
    door(Args, main, __doc__)
